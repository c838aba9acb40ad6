"""Shards give back the bits that went in, from any number of threads, or raise an error that names the damage."""

from __future__ import annotations

import errno
import importlib.util
import os
import random
import re
import resource
import signal
import struct
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import xxhash
from entries import is_same
from torch import Tensor

from fasttransfer.core import files
from fasttransfer.core.errors import InputError
from fasttransfer.core.tensor_files import CorruptFileError
from fasttransfer.features import shards
from fasttransfer.features.shards import ShardReader, write_shard
from fasttransfer.ops import pack_features, unpack_features

_shards = pytest.importorskip("fasttransfer.features._shards")

ENTRY = "0123456789abcdef" * 4
SHAPE = (5, 3, 7)
HEADER, FOOTER, PLACE = 128, 48, 32


def draw_features(n: int, shape: Sequence[int] = SHAPE, share: float = 0.3, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn((n, *shape), generator=generator)
    x = x.masked_fill(torch.rand(x.shape, generator=generator) >= share, 0.0).bfloat16()
    return x.contiguous(memory_format=torch.channels_last) if len(shape) == 3 else x


def behind_relu(x: Tensor) -> Tensor:
    """Return features without signs and not too small, which are packed to 12 bits per value."""
    return x.abs() + (x != 0)


def write(path: Path, x: Tensor, *, entry: str = ENTRY, position: int = 0, first: int = 0, packed: bool = True) -> Path:
    with write_shard(path, entry=entry, position=position, first=first, shape=x.shape[1:], packed=packed) as shard:
        for part in x.split(7):
            shard.append(part)
        assert shard.records == len(x)
    return path


def open_(*paths: Path, shape: Sequence[int] = SHAPE, threads: int = 2) -> ShardReader:
    return ShardReader(paths, entry=ENTRY, shape=shape, threads=threads)


def test_the_checksum_is_xxh3() -> None:
    data = random.Random(0).randbytes(5000)
    for size in [*range(300), 511, 512, 513, 1023, 1024, 1025, 1087, 1088, 1089, 2048, 2049, 4999, 5000]:
        assert _shards.checksum(data[:size]) == xxhash.xxh3_64_intdigest(data[:size]), size


def test_the_version_is_the_one_that_is_written(tmp_path: Path) -> None:
    header = write(tmp_path / "s", draw_features(1)).read_bytes()[:HEADER]
    assert _shards.VERSION == shards.VERSION == int.from_bytes(header[8:12], "little")


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("shape", [SHAPE, (1,), (64,), (100,), (256, 6, 6)])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_records_come_back_as_they_were_written(
    tmp_path: Path, packed: bool, shape: tuple[int, ...], share: float
) -> None:
    x = draw_features(23, shape, share)
    path = write(tmp_path / "s", x, packed=packed)
    with open_(path, shape=shape) as reader:
        assert len(reader) == 23
        assert reader.bytes == path.stat().st_size
        assert is_same(reader.read(range(23)), x)
        out = torch.empty_like(x[:4])
        assert reader.read(torch.tensor([22, 0, 5, 5]), out) is out
        assert is_same(out, x[[22, 0, 5, 5]])
        assert len(reader.read([])) == 0
        reader.verify()


def test_packed_records_take_their_share_of_the_bytes(tmp_path: Path) -> None:
    """12 bits per value where they are of one sign and within 2^32 of each other, else 16."""
    signed = draw_features(50, (256, 6, 6), 0.25)
    for x, bits in ((signed, 16), (behind_relu(signed), 12)):
        size = write(tmp_path / "s", x).stat().st_size
        expected = HEADER + FOOTER + 50 * (PLACE + 9216 // 8) + bits * int((x != 0).sum()) / 8
        assert expected <= size <= expected + 50 * 8  # each begins at a multiple of 8


@pytest.mark.parametrize("n", [1, 2, 3, 31, 64, 65, 100])
def test_values_within_a_window_and_at_its_edges(tmp_path: Path, n: int) -> None:
    """Try every pair of upper bytes as the least and the most: the lower bytes come back, whatever they are."""
    generator = torch.Generator().manual_seed(n)
    lower = torch.randint(0, 256, (256, n), generator=generator)
    widths = torch.arange(256)[:, None] % 19
    least = torch.randint(0, 237, (256, 1), generator=generator)
    upper = least + torch.randint(0, 1 << 20, (256, n), generator=generator) % (widths + 1)
    upper[:, 0], upper[:, -1] = least[:, 0], (least + widths)[:, 0]
    x = (upper << 8 | lower).to(torch.uint16).view(torch.bfloat16)
    path = write(tmp_path / "s", x)
    with open_(path, shape=(n,)) as reader:
        assert is_same(reader.read(range(256)), x)
        assert is_same(unpack_features(reader.read_packed(range(256)), (n,)), x)


def test_every_value_of_16_bits_comes_back(tmp_path: Path) -> None:
    """NaNs and negative zeros as well, beside others."""
    bits = torch.arange(1 << 16).to(torch.uint16).view(torch.bfloat16)
    for x in (bits.view(256, 256), bits.view(-1, 16), bits.view(256, 256).T.contiguous()):
        with open_(write(tmp_path / "s", x), shape=x.shape[1:]) as reader:
            assert is_same(reader.read(range(len(x))), x)


def test_an_older_build_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_shards, "VERSION", 1)
    spec = importlib.util.find_spec("fasttransfer.features.shards")
    assert spec is not None and spec.loader is not None
    fresh = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fresh)
    with pytest.raises(InputError, match="a build of format 1, this source has 2"):
        fresh.ShardReader([], entry=ENTRY, shape=SHAPE)


def test_several_shards_are_one_list_in_any_order(tmp_path: Path) -> None:
    x = draw_features(100)
    paths, first = [], 0
    for i, n in enumerate((40, 0, 1, 59)):
        paths.append(write(tmp_path / str(i), x[first : first + n], position=i, first=first, packed=i != 2))
        first += n
    order = torch.randperm(100, generator=torch.Generator().manual_seed(1))
    with open_(*paths) as reader:
        assert len(reader) == 100
        assert not reader.packed
        assert is_same(reader.read(order), x[order])
        batches = list(reader.batches(order.split(9), ahead=3))
        assert [len(b) for b in batches] == [9] * 11 + [1]
        assert all(b.is_contiguous(memory_format=torch.channels_last) for b in batches)
        assert is_same(torch.cat(batches), x[order])


def test_batches_are_read_into_the_callers_memory(tmp_path: Path) -> None:
    x = draw_features(100)
    order = torch.randperm(100, generator=torch.Generator().manual_seed(1)).split(9)
    out = [torch.empty((9, *SHAPE), dtype=torch.bfloat16).to(memory_format=torch.channels_last) for _ in range(3)]
    with open_(write(tmp_path / "s", x)) as reader:
        for i, (rows, batch) in enumerate(zip(order, reader.batches(order, ahead=2, out=out), strict=True)):
            assert batch.data_ptr() == out[i % 3].data_ptr()
            assert is_same(batch, x[rows])
        with pytest.raises(ValueError, match="out has 3 tensors, 2 are needed"):
            next(reader.batches(order, ahead=1, out=out))


def test_packed_records_are_what_the_operator_unpacks(tmp_path: Path) -> None:
    x = draw_features(30)
    rows = torch.tensor([29, 3, 3, 0])
    with open_(write(tmp_path / "s", x)) as reader:
        packed = reader.read_packed(rows)
        assert is_same(unpack_features(packed, SHAPE), x[rows])
        expected = pack_features(x[rows].contiguous(memory_format=torch.channels_last))
        assert torch.equal(packed.mask, expected.mask) and torch.equal(packed.offsets, expected.offsets)
    with open_(write(tmp_path / "d", x, packed=False)) as reader, pytest.raises(RuntimeError, match="are dense"):
        reader.read_packed(rows)


def test_many_threads_and_many_readers(tmp_path: Path) -> None:
    """Readers of their own and one that all share, more threads than cores, thousands of records in random order."""
    x = draw_features(400)
    path = write(tmp_path / "s", x)
    wrong: list[str] = []

    def use(reader: ShardReader, seed: int) -> None:
        order = torch.randint(0, 400, (2000,), generator=torch.Generator().manual_seed(seed)).split(61)
        for rows, batch in zip(order, reader.batches(order, ahead=4), strict=True):
            if not is_same(batch, x[rows]):
                wrong.append(f"{seed}: {rows.tolist()}")

    with open_(path, threads=5) as shared, open_(path, threads=1) as other:
        threads = [threading.Thread(target=use, args=(shared if i % 2 else other, i)) for i in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


def test_pending_reads_may_be_dropped(tmp_path: Path) -> None:
    """The memory of a batch that nobody waits for is not written to any more, even if its reader is closed."""
    x = draw_features(300, (256, 6, 6))
    path = write(tmp_path / "s", x)
    for _ in range(20):
        reader = open_(path, shape=(256, 6, 6))
        reads = [reader.start(range(300)) for _ in range(3)]
        del reads[1]
        reader.close()
        assert is_same(reads[0](), x)
        del reads, reader


def test_missing_records_are_an_error(tmp_path: Path) -> None:
    with open_(write(tmp_path / "s", draw_features(3))) as reader:
        for rows in ([3], [0, -1], [2**40]):
            with pytest.raises(IndexError, match="there are 3"):
                reader.read(rows)
            with pytest.raises(IndexError, match="there are 3"):
                reader.read_packed(rows)


def test_other_dtypes_shapes_and_memory_orders_are_refused(tmp_path: Path) -> None:
    x = draw_features(4)
    shape, order = r"must be \(N, 5, 3, 7\) bfloat16 on the CPU", "must be in channels-last memory"
    bad = [(x.float(), shape), (x[:, :4], shape), (x.contiguous(), order), (x[..., ::2], shape)]
    with open_(write(tmp_path / "s", x)) as reader:
        for out, why in bad:
            with pytest.raises(RuntimeError, match=why):
                reader.read(range(4), out)
        with pytest.raises(RuntimeError, match="out has room for 3 images, 4 are to be read"):
            reader.read(range(4), x[:3])
    for tensor, why in bad:
        with (
            pytest.raises(RuntimeError, match=why),
            write_shard(tmp_path / "no", entry=ENTRY, position=0, first=0, shape=SHAPE, packed=True) as shard,
        ):
            shard.append(tensor)
    assert not (tmp_path / "no").exists()
    for entry in ("", "x" * 65):
        with pytest.raises(RuntimeError, match="identity"):
            write(tmp_path / "no", x, entry=entry)


def read_all(path: Path) -> Tensor:
    with open_(path) as reader:
        return reader.read(range(len(reader)))


@pytest.mark.parametrize("kind", ["narrow", "packed", "dense"])
def test_every_flipped_bit_is_found(tmp_path: Path, kind: str) -> None:
    """Flip a bit of every byte of a small shard: a read returns what was written or raises."""
    x = behind_relu(draw_features(3)) if kind == "narrow" else draw_features(3)
    whole = write(tmp_path / "s", x, packed=kind != "dense").read_bytes()
    used = set(range(HEADER)) | set(range(len(whole) - FOOTER - 3 * PLACE, len(whole)))
    for i in range(3):
        at = len(whole) - FOOTER - (3 - i) * PLACE
        offset, size = struct.unpack("<QQ", whole[at : at + 16])
        used |= set(range(offset, offset + size))
    path = tmp_path / "damaged"
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :])
        if at in used:
            with pytest.raises(CorruptFileError) as caught:
                read_all(path)
            assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)
        else:  # between the records
            assert is_same(read_all(path), x)


@pytest.mark.parametrize(
    ("region", "says"),
    [("magic", "not a shard"), ("identity", "header does not match"), ("record", "record 1 does not match"),
     ("index", "index does not match"), ("footer", "footer does not match"), ("end", "its end is missing")],
)  # fmt: skip
def test_the_error_names_the_damage(tmp_path: Path, region: str, says: str) -> None:
    path = write(tmp_path / "s", draw_features(3))
    whole = bytearray(path.read_bytes())
    index = len(whole) - FOOTER - 3 * PLACE
    second = struct.unpack("<Q", whole[index + PLACE : index + PLACE + 8])[0]
    at = {"magic": 1, "identity": 45, "record": second, "index": index, "footer": len(whole) - 40, "end": -1}[region]
    whole[at] ^= 16
    path.write_bytes(whole)
    with pytest.raises(CorruptFileError, match=says):
        read_all(path)


def test_a_damaged_record_spares_the_others(tmp_path: Path) -> None:
    x = draw_features(50)
    path = write(tmp_path / "s", x)
    whole = bytearray(path.read_bytes())
    whole[HEADER] ^= 1
    path.write_bytes(whole)
    with open_(path) as reader:
        assert is_same(reader.read(range(1, 50)), x[1:])
        with pytest.raises(CorruptFileError, match="record 0 does not match its checksum"):
            reader.verify()
        with pytest.raises(CorruptFileError, match="record 0 does not match its checksum"):
            reader.read_packed(range(50))
        assert is_same(reader.read([49]), x[49:])  # and the reader goes on


def test_every_shorter_file_is_found(tmp_path: Path) -> None:
    x = draw_features(3)
    whole = write(tmp_path / "s", x).read_bytes()
    path = tmp_path / "short"
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(CorruptFileError, match=r"cut short|makes no sense|not where its footer"):
            read_all(path)
    path.write_bytes(whole + b"\0")
    with pytest.raises(CorruptFileError, match="cut short, its end is missing"):
        read_all(path)


def test_a_block_that_the_disk_lost_is_found(tmp_path: Path) -> None:
    path, messages = write(tmp_path / "s", draw_features(300)), list[str]()
    whole = path.read_bytes()
    for at in range(0, len(whole), 4096):
        path.write_bytes(whole[:at] + bytes(len(whole[at : at + 4096])) + whole[at + 4096 :])
        with pytest.raises(CorruptFileError) as lost:
            read_all(path)
        messages.append(str(lost.value).removeprefix(f"{path}: "))
    assert messages[0] == "not a shard of features" and messages[-1] == "cut short, its end is missing"
    record = re.compile(
        r"damaged: record \d+ does not match its checksum|damaged: its index does not match its checksum"
    )
    assert len(messages) > 4 and all(record.fullmatch(each) for each in messages[1:-1])


def test_shards_in_each_others_place_are_found(tmp_path: Path) -> None:
    x = draw_features(40)
    a = write(tmp_path / "a", x[:20], position=0, first=0)
    b = write(tmp_path / "b", x[20:], position=1, first=20)
    with pytest.raises(CorruptFileError, match="is shard 1 of its entry, from record 20, where shard 0"):
        open_(b, a)
    with pytest.raises(CorruptFileError, match="is shard 0 of its entry"):
        open_(a, a)
    with pytest.raises(CorruptFileError, match="from record 20, where shard 1, from record 19"):
        open_(write(tmp_path / "c", x[:19]), b)
    theirs = write(tmp_path / "d", x[:20], entry="another")
    with pytest.raises(CorruptFileError, match=f"belongs to entry another, not to {ENTRY}"):
        open_(theirs)
    with pytest.raises(CorruptFileError, match="images of 105 elements, not 100"):
        open_(a, shape=(100,))


def test_halves_of_two_shards_are_not_a_shard(tmp_path: Path) -> None:
    """The same sizes everywhere, so that only the repeated checksum tells."""
    a = write(tmp_path / "a", draw_features(4), packed=False).read_bytes()
    b = write(tmp_path / "b", draw_features(4, seed=1), packed=False, position=1).read_bytes()
    (tmp_path / "a").write_bytes(a[:HEADER] + b[HEADER:])
    with pytest.raises(CorruptFileError, match="of different shards"):
        read_all(tmp_path / "a")


def rewritten(path: Path, at: int, field: bytes) -> None:
    """Change the header as another program would write it, with checksums that fit."""
    whole = bytearray(path.read_bytes())
    whole[at : at + len(field)] = field
    checksum = struct.pack("<Q", xxhash.xxh3_64_intdigest(bytes(whole[: HEADER - 8])))
    whole[HEADER - 8 : HEADER] = checksum
    footer = len(whole) - FOOTER
    whole[footer + 24 : footer + 32] = checksum
    whole[footer + 32 : footer + 40] = struct.pack("<Q", xxhash.xxh3_64_intdigest(bytes(whole[footer : footer + 32])))
    path.write_bytes(whole)


def test_versions_byte_orders_and_kinds(tmp_path: Path) -> None:
    for at, field, says in [
        (8, struct.pack("<I", 3), r"written by a newer fasttransfer \(format 3, this one reads 2\)"),
        (8, struct.pack("<I", 1), "makes no sense"),
        (12, struct.pack(">I", 0x01020304), "other order"),
        (16, struct.pack("<I", 7), "makes no sense"),
    ]:
        path = write(tmp_path / "s", draw_features(2))
        rewritten(path, at, field)
        with pytest.raises(CorruptFileError, match=says):
            read_all(path)
    path = write(tmp_path / "s", draw_features(2, share=1.0), packed=False)
    rewritten(path, 16, struct.pack("<I", 1))  # dense, said to be packed
    with pytest.raises(CorruptFileError, match="record 0 is not where its index says"):
        read_all(path)


def test_a_wrong_mask_with_a_right_checksum_is_refused(tmp_path: Path) -> None:
    """Memory stays safe if the writer makes a mistake."""
    path = write(tmp_path / "s", draw_features(1))
    whole = bytearray(path.read_bytes())
    index = len(whole) - FOOTER - PLACE
    offset, size = struct.unpack("<QQ", whole[index : index + 16])
    for mask in (bytes(16), b"\xff" * 16, bytes([whole[offset] ^ 1]) + bytes(whole[offset + 1 : offset + 16])):
        lying = bytearray(whole)
        lying[offset : offset + 16] = mask
        checksum = xxhash.xxh3_64_intdigest(bytes(lying[offset : offset + size]))
        lying[index + 16 : index + 24] = struct.pack("<Q", checksum)
        footer = len(lying) - FOOTER
        checksum = xxhash.xxh3_64_intdigest(bytes(lying[index:footer]))
        lying[footer + 16 : footer + 24] = struct.pack("<Q", checksum)
        checksum = xxhash.xxh3_64_intdigest(bytes(lying[footer : footer + 32]))
        lying[footer + 32 : footer + 40] = struct.pack("<Q", checksum)
        path.write_bytes(lying)
        with pytest.raises(CorruptFileError, match="does not fit its number of values"):
            read_all(path)


@pytest.mark.parametrize("field", [struct.pack("<IHH", 105, 1, 0), struct.pack("<IHH", 1 << 20, 0, 0),
                                   struct.pack("<IHH", 5, 7, 0), struct.pack("<IHH", 5, 1, 300)])  # fmt: skip
def test_a_wrong_index_with_a_right_checksum_is_refused(tmp_path: Path, field: bytes) -> None:
    """Impossible numbers of values, forms and windows."""
    path = write(tmp_path / "s", draw_features(1))
    whole = bytearray(path.read_bytes())
    footer = len(whole) - FOOTER
    whole[footer - 8 : footer] = field
    whole[footer + 16 : footer + 24] = struct.pack(
        "<Q", xxhash.xxh3_64_intdigest(bytes(whole[footer - PLACE : footer]))
    )
    checksum = xxhash.xxh3_64_intdigest(bytes(whole[footer : footer + 32]))
    whole[footer + 32 : footer + 40] = struct.pack("<Q", checksum)
    path.write_bytes(whole)
    with pytest.raises(CorruptFileError, match="record 0 is not where its index says"):
        read_all(path)


def test_missing_and_unreadable_files_are_errors(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no-such"):
        open_(tmp_path / "no-such")
    with pytest.raises(OSError, match=r"No such device|Is a directory"):
        open_(tmp_path)


def test_a_failed_writer_leaves_the_old_file(tmp_path: Path) -> None:
    path = write(tmp_path / "s", draw_features(3))
    before = path.read_bytes()

    def interrupted() -> None:
        with write_shard(path, entry=ENTRY, position=0, first=0, shape=SHAPE, packed=True) as shard:
            shard.append(draw_features(2))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["s"]


def test_a_full_device_is_an_error() -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        writer = shards.ShardWriter(full, ENTRY, 0, 0, SHAPE, True)
        writer.append(draw_features(3))
        with pytest.raises(OSError, match="No space left") as answer:
            writer.finish()
        assert answer.value.errno == errno.ENOSPC
    finally:
        os.close(full)


def test_a_disk_that_fills_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Limit the size of files in place of a full disk: the writer raises one error and leaves no file behind."""
    monkeypatch.setattr(files, "_DISK_ERRNOS", {errno.EFBIG})
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
        with pytest.raises(InputError, match="cannot write here"):
            write(tmp_path / "s", draw_features(5000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert os.listdir(tmp_path) == []


def test_a_folder_that_is_not_ours_to_write(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot write here"):
        write(tmp_path / "file" / "s", draw_features(1))


@pytest.mark.parametrize("records", [0, 700, 1400])
def test_a_killed_writer_leaves_no_shard(tmp_path: Path, records: int) -> None:
    """Kill it before, between and after blocks of 4 MB reach the disk; then another process writes the same name."""
    path, shape = tmp_path / "s", (256, 6, 6)
    x = draw_features(records, shape, 0.9)
    child = os.fork()
    if child == 0:
        try:
            with write_shard(path, entry=ENTRY, position=0, first=0, shape=shape, packed=True) as shard:
                shard.append(x)
                os.kill(os.getpid(), signal.SIGKILL)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    left = list(tmp_path.iterdir())
    assert len(left) == 1 and left[0].suffix == ".tmp"
    assert (left[0].stat().st_size > 4 << 20) == (records > 0)
    with pytest.raises(CorruptFileError, match="cut short"):
        open_(*left, shape=shape)
    x = draw_features(5, shape)
    with open_(write(path, x), shape=shape) as reader:
        assert is_same(reader.read(range(5)), x)


def test_a_missing_native_module_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(shards, "_shards", None)
    monkeypatch.setattr(shards, "_why_not", "no such file", raising=False)
    with pytest.raises(InputError, match="does not load"):
        write(tmp_path / "s", draw_features(1))
    assert os.listdir(tmp_path) == []
