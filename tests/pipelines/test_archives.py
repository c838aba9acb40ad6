from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fasttransfer.pipelines.archives import Archive, ArchiveError, ArchiveMember, read_at

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}
KINDS = {tarfile.REGTYPE: "file", tarfile.DIRTYPE: "folder", tarfile.SYMTYPE: "link", tarfile.LNKTYPE: "hard link"}


def tar(path: Path, members: list[tuple[tarfile.TarInfo, bytes]], form: str = "ustar", **more: object) -> Path:
    with tarfile.open(path, "w", format=FORMATS[form], **more) as archive:  # type: ignore[call-overload]
        for info, data in members:
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def info(name: str, kind: bytes = tarfile.REGTYPE, target: str = "", mtime: float = 1_339_000_000) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.linkname, made.mtime = kind, target, mtime
    return made


def as_tarfile_sees(path: Path) -> list[ArchiveMember]:
    with tarfile.open(path, "r:") as archive:
        return [
            ArchiveMember(
                each.name,
                KINDS.get(each.type, "other"),
                each.size,
                int(each.mtime * 1e9),
                each.offset_data,
                each.linkname,
            )
            for each in archive
        ]


NAMES = st.text(st.sampled_from("ab/é \n."), min_size=1, max_size=150).map(lambda name: f"x{name.rstrip('/')}y")
MEMBERS = st.lists(
    st.tuples(NAMES, st.sampled_from(sorted(KINDS)), NAMES, st.binary(max_size=1500), st.floats(0, 2e9)), max_size=12
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(drawn=MEMBERS, form=st.sampled_from(("gnu", "pax")))
def test_members_are_what_tarfile_sees(tmp_path_factory: pytest.TempPathFactory, drawn: list[Any], form: str) -> None:
    made = [
        (
            info(
                name, kind, "" if KINDS[kind] in ("file", "folder") else target, mtime if form == "pax" else int(mtime)
            ),
            data if kind == tarfile.REGTYPE else b"",
        )
        for name, kind, target, data, mtime in drawn
    ]
    path = tar(tmp_path_factory.mktemp("tar") / "all.tar", made, form)
    found = list(Archive(path).members())
    assert found == as_tarfile_sees(path)
    data = [read_at(path, member.offset, member.size) for member in found]
    assert data == [data for _, data in made]


def test_long_names_of_the_old_standard(tmp_path: Path) -> None:
    path = tar(tmp_path / "all.tar", [(info(f"{'folder/' * 20}{'n' * 90}.jpg"), b"x")])
    assert list(Archive(path).members()) == as_tarfile_sees(path)


@pytest.mark.parametrize("form", FORMATS)
def test_many_members(tmp_path: Path, form: str) -> None:
    times = 1.5 if form == "pax" else 1
    long = "l" * (90 if form == "ustar" else 200)
    path = tar(tmp_path / "all.tar", [(info(f"{long}{i}.jpg", mtime=times), b"x" * i) for i in range(1000)], form)
    assert list(Archive(path).members()) == as_tarfile_sees(path)


@pytest.mark.parametrize(
    "headers", [{"hdrcharset": "ISO-IR 10646 2000 UTF-8"}, {"comment": "made by hand"}, {"mtime": "1234567890.5"}]
)
def test_attributes_of_all_members(tmp_path: Path, headers: dict[str, str]) -> None:
    """The `pax_headers` of an archive are such attributes."""
    made = [(info(f"{i}é.jpg"), b"x" * i) for i in range(5)]
    path = tar(tmp_path / "all.tar", made, "pax", pax_headers=headers)
    assert list(Archive(path).members()) == as_tarfile_sees(path)


@pytest.mark.parametrize("blocks", [0, 1, 3])
def test_sparse_files_of_gnu_are_skipped(tmp_path: Path, blocks: int) -> None:
    header = bytearray(info("holes", tarfile.GNUTYPE_SPARSE).tobuf(tarfile.GNU_FORMAT))
    header[124:136] = b"00000001274\0"  # 700 bytes of data
    header[482] = blocks > 0
    header[483:495] = b"00000010000\0"
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    more = b"".join(bytes(504) + bytes([number < blocks - 1]) + bytes(7) for number in range(blocks))
    after = tar(tmp_path / "after.tar", [(info("after.jpg"), b"after")]).read_bytes()
    (tmp_path / "all.tar").write_bytes(bytes(header) + more + bytes(1024) + after)
    found = list(Archive(tmp_path / "all.tar").members())
    assert [(each.name, each.kind) for each in found] == [("holes", "other"), ("after.jpg", "file")]
    assert [each.offset for each in found] == [each.offset for each in as_tarfile_sees(tmp_path / "all.tar")]


def test_sparse_files_by_attributes_and_unknown_types_are_skipped(tmp_path: Path) -> None:
    sparse, unknown = info("holes"), info("label", b"V")
    sparse.pax_headers = {"GNU.sparse.major": "9", "comment": "of a version that nobody knows"}
    path = tar(tmp_path / "all.tar", [(sparse, b"x" * 700), (unknown, b"x" * 600), (info("a.jpg"), b"a")], "pax")
    found = list(Archive(path).members())
    assert [(each.name, each.kind) for each in found] == [("holes", "other"), ("label", "other"), ("a.jpg", "file")]
    assert [each.offset for each in found] == [each.offset for each in as_tarfile_sees(path)]


def test_an_archive_inside_another(tmp_path: Path) -> None:
    inner = tar(tmp_path / "inner.tar", [(info(f"{i}.jpg"), bytes([i]) * 700) for i in range(3)]).read_bytes()
    path = tar(tmp_path / "outer.tar", [(info("a"), b"before"), (info("inner.tar"), inner), (info("b"), b"after")])
    member = list(Archive(path).members())[1]
    found = list(Archive(path, member.offset, member.offset + member.size).members())
    assert [(each.name, read_at(path, each.offset, each.size)) for each in found] == [
        (f"{i}.jpg", bytes([i]) * 700) for i in range(3)
    ]
    with pytest.raises(ArchiveError, match="bytes too early"):
        list(Archive(path, member.offset, member.offset + 1500).members())


def test_sizes_beyond_octal_digits(tmp_path: Path) -> None:
    made = info("big.jpg")
    made.size = 9 << 30
    for form in ("gnu", "pax"):
        path = tmp_path / f"{form}.tar"
        with open(path, "wb") as file:
            header = made.tobuf(FORMATS[form])
            file.write(header)
            file.truncate(len(header) + made.size + 1024)  # all holes
        (found,) = Archive(path).members()
        assert (found.size, found.offset) == (made.size, len(header))


def test_damaged_archives_are_refused(tmp_path: Path) -> None:
    whole = tar(tmp_path / "all.tar", [(info(f"{i}.jpg"), bytes([i]) * 700) for i in range(3)]).read_bytes()

    def reason(data: bytes) -> str:
        (tmp_path / "bad.tar").write_bytes(data)
        with pytest.raises(ArchiveError) as caught:
            list(Archive(tmp_path / "bad.tar").members())
        return str(caught.value)

    assert "empty" in reason(b"")
    assert "within a header" in reason(b"\xff\xd8\xff")
    assert "checksum" in reason(b"\xff\xd8\xff" * 400)
    assert "1024 bytes too early" in reason(whole[:512])
    assert "324 bytes too early" in reason(whole[:1212])
    assert "checksum" in reason(whole[:1540] + b"?" + whole[1541:])
    assert "within a header" in reason(whole[:1600])
    text = b"not a length path=x\n"
    pax = info("x", tarfile.XHDTYPE)
    pax.size = len(text)
    assert "attributes" in reason(pax.tobuf(tarfile.USTAR_FORMAT) + text.ljust(512, b"\0") + whole)
    for attribute, words in ((b"17 size=-1024000\n", "negative size"), (b"13 mtime=inf\n", "attributes")):
        pax.size = len(attribute)
        assert words in reason(pax.tobuf(tarfile.USTAR_FORMAT) + attribute.ljust(512, b"\0") + whole)


def test_members_before_the_damage_are_yielded(tmp_path: Path) -> None:
    path = tar(tmp_path / "all.tar", [(info(f"{i}.jpg"), b"x" * 700) for i in range(3)])
    path.write_bytes(path.read_bytes()[:3600])
    members = Archive(path).members()
    assert [next(members).name, next(members).name] == ["0.jpg", "1.jpg"]
    with pytest.raises(ArchiveError, match="ends 1008 bytes too early"):
        next(members)


def test_reading_beyond_the_end(tmp_path: Path) -> None:
    (tmp_path / "short").write_bytes(b"12345")
    with pytest.raises(OSError, match="ends 3 bytes too early"):
        read_at(tmp_path / "short", 2, 6)


def test_files_are_closed(tmp_path: Path) -> None:
    path = tar(tmp_path / "all.tar", [(info("a.jpg"), b"x")])
    before = set(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else set()
    for _ in range(3):
        list(Archive(path).members())
        read_at(path, 0, 5)
    after = set(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else set()
    assert after == before
