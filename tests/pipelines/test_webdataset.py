from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest
from sources import by_class, jpeg, listing_refusal, pack, write

from fasttransfer.pipelines.ilsvrc12 import ilsvrc12
from fasttransfer.pipelines.layouts import Listing, list_images


def shard(path: Path, members: Mapping[str, bytes | str] | Iterable[tuple[str, bytes | str]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for name, data in members.items() if isinstance(members, Mapping) else members:
            data = data.encode() if isinstance(data, str) else data
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def keys(first: int, classes: Iterable[str], *, kind: str = "jpg") -> dict[str, bytes | str]:
    """A key for each of `classes`, numbered from `first`, as WebDataset writes them."""
    made: dict[str, bytes | str] = {}
    for number, name in enumerate(classes, first):
        made |= {f"{number:06d}.cls": name, f"{number:06d}.{kind}": jpeg(number), f"{number:06d}.json": "{}"}
    return made


def described(listing: Listing) -> dict[str, list[tuple[str, str]]]:
    return {
        part: [(each.path, listing.classes[each.label]) for each in getattr(listing, part)] for part in ("train", "val")
    }


@pytest.mark.parametrize(
    ("train", "val"),
    [
        ("train-00000{}.tar", "val-00000{}.tar"),
        ("train/00000{}.tar", "valid/00000{}.tar"),
        ("birds-train-00000{}.tar", "birds-validation-00000{}.tar"),
        ("download/train0{}.tar", "download/val0{}.tar"),
    ],
)
def test_shards_of_two_parts(tmp_path: Path, train: str, val: str) -> None:
    shard(tmp_path / train.format(0), keys(0, ("0", "1", "0")))
    shard(tmp_path / train.format(1), keys(3, ("1\n", " 1")))
    shard(tmp_path / val.format(0), keys(5, ("1", "0")))
    found = list_images(tmp_path)
    assert (found.layout, found.classes, found.held_out, found.notes) == ("webdataset", ("0", "1"), False, ())
    first, second, third = train.format(0), train.format(1), val.format(0)
    assert described(found) == {
        "train": [
            (f"{first}/000000.jpg", "0"),
            (f"{first}/000002.jpg", "0"),
            (f"{first}/000001.jpg", "1"),
            (f"{second}/000003.jpg", "1"),
            (f"{second}/000004.jpg", "1"),
        ],
        "val": [(f"{third}/000006.jpg", "0"), (f"{third}/000005.jpg", "1")],
    }
    assert [found.read(each) for each in found.train] == [jpeg(number) for number in (0, 2, 1, 3, 4)]


def test_a_single_shard_holds_out_a_tenth(tmp_path: Path) -> None:
    found = list_images(shard(tmp_path / "all.tar", keys(0, ["3", "12"] * 20)))
    assert (found.layout, found.classes, found.held_out) == ("webdataset", ("03", "12"), True)
    assert (len(found.train), len(found.val)) == (36, 4) and "held out" in found.notes[0]
    number = int(found.val[0].path[:6])
    assert found.read(found.val[0]) == jpeg(number)


def test_shards_that_do_not_say_their_part_are_for_training(tmp_path: Path) -> None:
    for i in range(2):
        shard(tmp_path / f"pretraining-{i}.tar", keys(10 * i, ["a", "b"] * 5))
    found = list_images(tmp_path)
    assert (len(found.train), len(found.val), found.held_out) == (18, 2, True)


@pytest.mark.parametrize("name", ["classes.txt", "classnames.txt"])
@pytest.mark.parametrize("single", [False, True])
def test_names_of_numbered_classes(tmp_path: Path, name: str, single: bool) -> None:
    wnids = [synset.wnid for synset in ilsvrc12()[:3]]
    write(tmp_path, {name: "\r\n".join(reversed(wnids)) + "\n\n"})
    archive = shard(tmp_path / "train-0.tar", keys(0, ("0", "0", "2")))
    found = list_images(archive if single else tmp_path)
    assert found.classes == (wnids[0], wnids[2])
    assert found.words == {synset.wnid: synset.words for synset in (ilsvrc12()[0], ilsvrc12()[2])}
    assert sum(found.classes[each.label] == wnids[2] for each in found.train + found.val) == 2


def test_names_in_the_shards(tmp_path: Path) -> None:
    shard(tmp_path / "train-0.tar", keys(0, ("grey wolf", "Ähre", "grey wolf")))
    assert list_images(tmp_path).classes == ("grey wolf", "Ähre")


def test_keys_with_folders_other_members_and_other_kinds(tmp_path: Path) -> None:
    members = keys(0, ("a", "b"), kind="PNG") | {"./deep/er/x.cls": "a", "./deep/er/x.jpeg": jpeg(7)}
    members |= {"000000.seg.png": b"a mask", "000001.txt": "a caption", ".hidden.jpg": b"x", "000001.avif": b"x"}
    found = list_images(shard(tmp_path / "all.tar", members))
    assert sorted(each.path for each in found.train + found.val) == ["000000.PNG", "000001.PNG", "deep/er/x.jpeg"]
    read = {each.path: each for each in found.train + found.val}
    assert found.read(read["deep/er/x.jpeg"]) == jpeg(7)
    assert "1 .avif" in found.notes[0]


def test_keys_with_dots_that_an_image_and_its_class_agree_on(tmp_path: Path) -> None:
    members = keys(0, ("a", "b"))
    for name in ("n01440764_1.v2", "n01440764_1.v3", "x.y/n01440764_2.1.2", "000000.crop"):
        members |= {f"{name}.jpg": jpeg(len(members)), f"{name}.cls": "a"}
    members |= {"000001.seg.png": b"a mask", "000001.fine.cls": "bb"}
    found = list_images(shard(tmp_path / "all.tar", members))
    assert found.classes == ("a", "b")
    labelled = {each.path: found.classes[each.label] for each in found.train + found.val}
    assert labelled == {
        "000000.jpg": "a",
        "000000.crop.jpg": "a",
        "000001.jpg": "b",
        "n01440764_1.v2.jpg": "a",
        "n01440764_1.v3.jpg": "a",
        "x.y/n01440764_2.1.2.jpg": "a",
    }
    read = {each.path: found.read(each) for each in found.train + found.val}
    assert all(read[path] == members[path] for path in read)


def test_shards_of_nothing_but_keys_with_dots(tmp_path: Path) -> None:
    members = {f"{i}.v2.{kind}": data for i in range(6) for kind, data in (("jpg", jpeg(i)), ("cls", str(i % 2)))}
    found = list_images(shard(tmp_path / "all.tar", members))
    assert (found.layout, len(found.train) + len(found.val)) == ("webdataset", 6)


def test_the_same_images_as_folders_and_as_shards(tmp_path: Path) -> None:
    files = by_class("train/", ("cat", "dog"), 4) | by_class("val/", ("cat", "dog"), 2)
    plain = list_images(write(tmp_path / "folders", files))
    for part in ("train", "val"):
        members: list[tuple[str, bytes | str]] = []
        for path, data in files.items():
            if path.startswith(part):
                _, name, file = path.split("/")
                members += [(f"{name}-{file}", data), (f"{name}-{file.removesuffix('.jpg')}.cls", name)]
        shard(tmp_path / "shards" / f"{part}-0.tar", members)
    packed = list_images(tmp_path / "shards")
    assert packed.classes == plain.classes
    for part in ("train", "val"):
        ours, theirs = getattr(packed, part), getattr(plain, part)
        assert [(each.label, packed.read(each)) for each in ours] == [(each.label, plain.read(each)) for each in theirs]


def test_headers_that_python_writes(tmp_path: Path) -> None:
    """Times with fractions of a second get headers of their own."""
    folder = write(tmp_path / "folder", keys(0, ("a", "b", "a", "b")))
    found = list_images(pack(folder, tmp_path / "all.tar"))
    assert (found.layout, found.classes, len(found.train) + len(found.val)) == ("webdataset", ("a", "b"), 4)


def test_test_shards_are_left_out_and_noted(tmp_path: Path) -> None:
    shard(tmp_path / "train-0.tar", keys(0, ("a", "b")))
    shard(tmp_path / "val-0.tar", keys(2, ("a", "b")))
    shard(tmp_path / "test-0.tar", {"9.jpg": jpeg(), "9.json": "{}"})
    found = list_images(tmp_path)
    assert (len(found.train), len(found.val)) == (2, 2)
    assert found.notes == ("test shards left out: test-0.tar",)


def test_an_image_beside_the_shards_is_no_folder_of_images(tmp_path: Path) -> None:
    shard(tmp_path / "train-0.tar", keys(0, ("a", "b") * 2))
    write(tmp_path, {"sheet.png": jpeg()})
    found = list_images(tmp_path)
    assert found.layout == "webdataset" and all(each.path.startswith("train-0") for each in found.train)


def test_folders_of_images_come_before_shards(tmp_path: Path) -> None:
    write(tmp_path, by_class("", ("cat", "dog"), 2))
    shard(tmp_path / "backup.tar", keys(0, ("a", "b")))
    found = list_images(tmp_path)
    assert (found.layout, found.classes) == ("image-folder", ("cat", "dog"))


def test_bad_shards_are_refused(tmp_path: Path) -> None:
    good = keys(0, ("0", "1"))

    def said(name: str, members: object, **texts: str) -> str:
        folder = tmp_path / name
        shard(folder / "train-0.tar", members)  # type: ignore[arg-type]
        write(folder, {f"{file}.txt": text for file, text in texts.items()})
        return listing_refusal(folder)

    assert "train-0.tar: 7.jpg has no 7.cls: add it" in said("lacks", good | {"7.jpg": jpeg()})
    assert "train-0.tar: 7.cls has no image" in said("alone", good | {"7.cls": "1"})
    assert "train-0.tar: key 000000 has two images (000000.png" in said("two", good | {"000000.png": jpeg()})
    assert "8.v2.jpg has no 8.v2.cls, and a key ends at the first dot" in said(
        "dots", good | {"8.v2.jpg": jpeg(), "8.cls": "1"}
    )
    assert "8.v2.cls has no image" in said("half", good | {"8.v2.cls": "1"})
    assert "000000.cls is there twice" in said("twice", [*good.items(), ("000000.cls", "1")])
    assert "7.cls is not UTF-8 text" in said("latin", good | {"7.jpg": jpeg(), "7.cls": b"\xe9"})
    assert "7.cls holds no class" in said("empty", good | {"7.jpg": jpeg(), "7.cls": " \n"})
    assert "7.cls holds no class" in said("lines", good | {"7.jpg": jpeg(), "7.cls": "a\nb"})
    assert "7.cls holds no class" in said("long", good | {"7.jpg": jpeg(), "7.cls": "a" * 5000})
    assert "000000.jpg is a number, that of train-0.tar/7.jpg is not" in said(
        "mixed", good | {"7.jpg": jpeg(), "7.cls": "-1"}
    )
    assert "a .cls says 1, but classes.txt has 1 lines" in said("short", good, classes="cat\n")
    assert "classes.txt names 'cat' 2 times" in said("same", good, classes="cat\ncat\n")
    assert "classes.txt is empty" in said("none", good, classes="\n")
    assert "holds one class only (1)" in said("one", keys(0, ("1", "1")))


def test_parts_that_do_not_fit(tmp_path: Path) -> None:
    shard(tmp_path / "train-0.tar", keys(0, ("a", "b")))
    shard(tmp_path / "more-0.tar", keys(2, ("a", "b")))
    assert "more-0.tar says neither train nor val" in listing_refusal(tmp_path)
    (tmp_path / "more-0.tar").rename(tmp_path / "val-0.tar")
    shard(tmp_path / "val-1.tar", keys(4, ("c",)))
    assert "the validation shards has class c, which train has not" in listing_refusal(tmp_path)
    (tmp_path / "val-1.tar").unlink()
    (tmp_path / "train-0.tar").unlink()
    assert "none of the 1 shards is for training" in listing_refusal(tmp_path)


def test_compressed_shards(tmp_path: Path) -> None:
    shard(tmp_path / "train-0.tar", keys(0, ("a", "b")))
    (tmp_path / "train-1.tar.gz").write_bytes(b"\x1f\x8b rest")
    assert "train-1.tar.gz: is compressed" in listing_refusal(tmp_path)
    (tmp_path / "train-0.tar").unlink()
    assert "holds no images but archives (train-1.tar.gz)" in listing_refusal(tmp_path)
    (tmp_path / "train-1.tar.gz").rename(tmp_path / "train-1.tar")
    assert "train-1.tar: is compressed, but archives are read in place: unpack it with gunzip" in listing_refusal(
        tmp_path
    )


def test_a_damaged_shard(tmp_path: Path) -> None:
    path = shard(tmp_path / "train-0.tar", keys(0, ("a", "b")))
    path.write_bytes(path.read_bytes()[:4200])
    assert "train-0.tar: the archive is damaged after 1 images" in listing_refusal(tmp_path)


def test_tars_without_classes_are_no_shards(tmp_path: Path) -> None:
    shard(tmp_path / "cats.tar", {"1.jpg": jpeg(), "2.jpg": jpeg()})
    assert "holds no images but archives (cats.tar)" in listing_refusal(tmp_path)
