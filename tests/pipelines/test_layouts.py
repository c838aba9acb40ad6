from __future__ import annotations

import os
import socket
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sources import by_class, encoded, jpeg, listing_refusal, noise, pack, write

from fasttransfer.pipelines.ilsvrc12 import ilsvrc12, ilsvrc12_val_labels
from fasttransfer.pipelines.layouts import ImageFile, Listing, list_images
from fasttransfer.pipelines.prepare import prepare_into

ANIMALS = ("cat", "dog", "eel")
WNIDS = tuple(synset.wnid for synset in ilsvrc12()[:3])


def paths(images: tuple[ImageFile, ...]) -> list[str]:
    return [image.path for image in images]


def image_folder(folder: Path) -> Path:
    return write(folder, by_class("train/", ANIMALS, 3) | by_class("val/", ANIMALS, 2))


def tiny_imagenet(folder: Path) -> Path:
    lines = "".join(f"val_{i}.JPEG\t{name}\t0\t0\t9\t7\n" for i, name in enumerate(reversed(WNIDS)))
    files: dict[str, bytes | str] = dict(by_class("train/", WNIDS, 2, inside="images/"))
    files |= {f"train/{name}/{name}_boxes.txt": "0\t0\t9\t7\n" for name in WNIDS}
    files |= {f"val/images/val_{i}.JPEG": jpeg(i) for i in range(len(WNIDS))}
    files |= {"val/val_annotations.txt": lines, "test/images/test_0.JPEG": jpeg()}
    files |= {"words.txt": f"{WNIDS[0]}\tfish, of a kind\nn00000000\tunused\n", "wnids.txt": "\n".join(WNIDS)}
    return write(folder, files)


def ilsvrc(folder: Path) -> Path:
    """Three classes and the first validation images of each, flat; and one of another class."""
    files = {f"train/{name}/{name}_{i}.JPEG": jpeg(i) for name in WNIDS for i in range(2)}
    labels = ilsvrc12_val_labels()
    for label in (2, 0, 1, 7):
        files[f"val/ILSVRC2012_val_{labels.index(label) + 1:08d}.JPEG"] = jpeg(label)
    return write(folder, dict(files))


def test_image_folder(tmp_path: Path) -> None:
    found = list_images(image_folder(tmp_path))
    assert (found.layout, found.classes, found.held_out, found.notes) == ("image-folder", ANIMALS, False, ())
    assert paths(found.train) == [f"train/{name}/{i}.jpg" for name in ANIMALS for i in range(3)]
    assert paths(found.val) == [f"val/{name}/{i}.jpg" for name in ANIMALS for i in range(2)]
    assert [image.label for image in found.val] == [0, 0, 1, 1, 2, 2]
    assert found.read(found.train[4]) == (tmp_path / "train/dog/1.jpg").read_bytes()


@pytest.mark.parametrize("name", ["valid", "validation"])
def test_other_names_of_the_validation_part(tmp_path: Path, name: str) -> None:
    image_folder(tmp_path)
    (tmp_path / "val").rename(tmp_path / name)
    found = list_images(tmp_path)
    assert len(found.val) == 6 and not found.held_out


def test_classes_directly_under_the_source_hold_out_a_tenth(tmp_path: Path) -> None:
    write(tmp_path, by_class("", ANIMALS, 25) | by_class("", ("fox",), 4))
    found = list_images(tmp_path)
    assert found.held_out and "held out" in found.notes[0]
    per_class = [sum(image.label == label for image in found.val) for label in range(4)]
    assert per_class == [2, 2, 2, 1]
    assert not set(paths(found.train)) & set(paths(found.val))
    assert len(found.train) + len(found.val) == 79


def test_held_out_images_depend_on_names_from_the_class_on(tmp_path: Path) -> None:
    plain = list_images(write(tmp_path / "a", by_class("", ANIMALS, 30)))
    parted = list_images(write(tmp_path / "b", by_class("train/", ANIMALS, 30)))
    packed = list_images(pack(tmp_path / "a", tmp_path / "c.tar", top="top"))
    assert paths(parted.val) == [f"train/{path}" for path in paths(plain.val)]
    assert paths(packed.val) == [f"top/{path}" for path in paths(plain.val)]


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(counts=st.lists(st.integers(1, 35), min_size=2, max_size=4))
def test_held_out_and_trained_are_all_and_disjoint(tmp_path_factory: pytest.TempPathFactory, counts: list[int]) -> None:
    files = {f"c{label}/{number}.png": b"" for label, count in enumerate(counts) for number in range(count)}
    found = list_images(write(tmp_path_factory.mktemp("source"), files))
    assert sorted(paths(found.train) + paths(found.val)) == sorted(files)
    for label, count in enumerate(counts):
        held = sum(image.label == label for image in found.val)
        assert held == (0 if count == 1 else max(1, count // 10))


def test_a_class_with_one_image_is_listed_and_noted(tmp_path: Path) -> None:
    found = list_images(write(tmp_path, by_class("", ANIMALS, 1)))
    assert (len(found.train), len(found.val), found.held_out) == (3, 0, True)
    assert "3 of 3 classes have one image" in found.notes[0]


def test_other_files_are_ignored_and_missed_ones_noted(tmp_path: Path) -> None:
    image_folder(tmp_path)
    rubbish = ("Thumbs.db", ".DS_Store", "README.txt", ".hidden.jpg", "._0.jpg", "notes.pdf", "noextension")
    write(tmp_path, {f"train/cat/{name}": b"x" for name in rubbish})
    write(tmp_path, {"train/.git/0.jpg": b"x", "__MACOSX/cat/0.jpg": b"x", "train/cat/new.HEIC": b"x"})
    write(tmp_path, {"train/stray.jpg": jpeg(), "LICENSE": "free"})
    found = list_images(tmp_path)
    assert found.classes == ANIMALS and len(found.train) == 9
    assert found.notes == (
        "1 image outside the class folders left out (train/stray.jpg)",
        "files of kinds that cannot be read left out: 1 .heic",
    )


def test_extensions_in_any_case_and_images_at_any_depth(tmp_path: Path) -> None:
    names = ("a.JPG", "b.Jpeg", "c.PNG", "d.bmp", "e.webp", "f.ppm", "g.tif", "h.TIFF", "more/deep/i.jpg")
    write(tmp_path, {f"{name}/{file}": b"x" for name in ANIMALS for file in names})
    found = list_images(tmp_path)
    assert len(found.train) + len(found.val) == len(ANIMALS) * len(names)


def test_order_is_that_of_bytes(tmp_path: Path) -> None:
    classes = ("Zebra", "ape", "Ähre", "\udce9t\udce9")  # the last: Latin-1 bytes in a UTF-8 world
    write(tmp_path, by_class("train/", classes, 12) | by_class("val/", classes, 1))
    found = list_images(tmp_path)
    assert found.classes == tuple(sorted(classes, key=os.fsencode))
    assert paths(found.train)[:4] == [
        "train/Zebra/0.jpg",
        "train/Zebra/1.jpg",
        "train/Zebra/10.jpg",
        "train/Zebra/11.jpg",
    ]


def test_a_folder_called_train_may_be_a_class(tmp_path: Path) -> None:
    assert list_images(write(tmp_path, by_class("", ("car", "train"), 2))).classes == ("car", "train")


def test_tiny_imagenet(tmp_path: Path) -> None:
    found = list_images(tiny_imagenet(tmp_path))
    assert (found.layout, found.classes, found.held_out) == ("tiny-imagenet", WNIDS, False)
    assert len(found.train) == 6
    assert paths(found.val) == [f"val/images/val_{i}.JPEG" for i in (2, 1, 0)]
    assert found.words[WNIDS[0]] == "fish, of a kind"  # the source's own word before the table's
    assert found.words[WNIDS[1]] == ilsvrc12()[1].words


def test_tiny_imagenet_with_validation_sorted_into_class_folders(tmp_path: Path) -> None:
    tiny_imagenet(tmp_path)
    for i, name in enumerate(reversed(WNIDS)):
        folder = tmp_path / "val" / name / "images"
        folder.mkdir(parents=True)
        (tmp_path / f"val/images/val_{i}.JPEG").rename(folder / f"val_{i}.JPEG")
    found = list_images(tmp_path)
    assert (found.layout, len(found.val)) == ("tiny-imagenet", 3)


def test_ilsvrc12_with_flat_validation_in_published_order(tmp_path: Path) -> None:
    found = list_images(ilsvrc(tmp_path))
    assert (found.layout, found.classes) == ("ilsvrc12", WNIDS)
    numbers = [int(path[-13:-5]) for path in paths(found.val)]
    assert [ilsvrc12_val_labels()[number - 1] for number in numbers] == [0, 1, 2]
    assert found.notes == ("1 validation images of classes that train does not have left out",)
    assert found.words == {synset.wnid: synset.words for synset in ilsvrc12()[:3]}


def test_ilsvrc12_with_validation_in_class_folders(tmp_path: Path) -> None:
    files = {f"{part}/{name}/{name}_0.JPEG": jpeg() for name in WNIDS for part in ("train", "val")}
    found = list_images(write(tmp_path, dict(files)))
    assert (found.layout, len(found.train), len(found.val)) == ("ilsvrc12", 3, 3)


@pytest.mark.parametrize("top", ["", "my images"])
@pytest.mark.parametrize("make", [image_folder, tiny_imagenet, ilsvrc])
def test_a_tar_is_read_in_place_like_its_folder(tmp_path: Path, make: object, top: str) -> None:
    folder = make(tmp_path / "folder")  # type: ignore[operator]
    archive = pack(folder, tmp_path / "all.tar", top=top)
    before = sorted(tmp_path.iterdir())
    plain, packed = list_images(folder), list_images(archive)
    prefix = f"{top}/" if top else ""
    same = [(field, getattr(plain, field)) for field in ("layout", "classes", "words", "held_out", "notes")]
    assert same == [(field, getattr(packed, field)) for field, _ in same]
    for part in ("train", "val"):
        ours, theirs = getattr(plain, part), getattr(packed, part)
        assert [(prefix + each.path, each.label) for each in ours] == [(each.path, each.label) for each in theirs]
        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(packed.read, theirs)) == list(map(plain.read, ours))
    assert sorted(tmp_path.iterdir()) == before


def published(folder: Path, archives: Path) -> Path:
    """The archives, as they were published, of what `ilsvrc` writes into `folder`; those of the classes in `inner`."""
    ilsvrc(folder)
    inner = archives.with_name("inner")
    inner.mkdir()
    for name in WNIDS:
        pack(folder / "train" / name, inner / f"{name}.tar")
    archives.mkdir()
    pack(inner, archives / "ILSVRC2012_img_train.tar")
    pack(folder / "val", archives / "ILSVRC2012_img_val.tar")
    return archives


def same_but_for_the_place(found: Listing, plain: Listing) -> None:
    fields = ("layout", "classes", "words", "held_out")
    assert [getattr(found, field) for field in fields] == [getattr(plain, field) for field in fields]
    for part in ("train", "val"):
        ours, theirs = getattr(found, part), getattr(plain, part)
        assert [(each.label, found.read(each)) for each in ours] == [(each.label, plain.read(each)) for each in theirs]
        assert [each.path.rpartition("/")[2] for each in ours] == [each.path.rpartition("/")[2] for each in theirs]


def test_ilsvrc12_s_archives_are_read_in_place(tmp_path: Path) -> None:
    archives = published(tmp_path / "folder", tmp_path / "archives")
    found = list_images(archives)
    same_but_for_the_place(found, list_images(tmp_path / "folder"))
    assert found.train[0].path == f"ILSVRC2012_img_train/{WNIDS[0]}/{WNIDS[0]}_0.JPEG"
    assert sorted(path.name for path in archives.iterdir()) == ["ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(found.read, found.train * 5)) == list(map(found.read, found.train)) * 5


def test_ilsvrc12_s_archives_in_a_tar_and_below_a_folder(tmp_path: Path) -> None:
    archives = published(tmp_path / "folder", tmp_path / "archives")
    plain = list_images(tmp_path / "folder")
    same_but_for_the_place(list_images(pack(archives, tmp_path / "both.tar", top="download")), plain)
    (tmp_path / "download").mkdir()
    archives.rename(tmp_path / "download/ILSVRC2012")
    same_but_for_the_place(list_images(tmp_path / "download"), plain)


def test_ilsvrc12_s_training_archive_alone(tmp_path: Path) -> None:
    archives = published(tmp_path / "folder", tmp_path / "archives")
    found = list_images(archives / "ILSVRC2012_img_train.tar")
    assert (found.layout, found.classes, found.held_out) == ("ilsvrc12", WNIDS, True)
    assert (len(found.train), len(found.val)) == (3, 3)
    (archives / "ILSVRC2012_img_train.tar").unlink()
    assert "ILSVRC2012_img_val is a validation part without a training part" in listing_refusal(archives)


@pytest.mark.parametrize("part", ["train/", "ILSVRC2012_img_train/", ""])
def test_ilsvrc12_half_unpacked(tmp_path: Path, part: str) -> None:
    """Two of three classes are still tars, in the folder of the training part or beside that of the other."""
    published(tmp_path / "folder", tmp_path / "archives")
    half = tmp_path / "half" / part
    half.mkdir(parents=True)
    (tmp_path / "folder/train" / WNIDS[1]).rename(half / WNIDS[1])
    for name in (WNIDS[0], WNIDS[2]):
        (tmp_path / "inner" / f"{name}.tar").rename(half / f"{name}.tar")
    (tmp_path / "folder/val").rename(tmp_path / "half/val")
    whole = list_images(tmp_path / "archives")
    same_but_for_the_place(list_images(tmp_path / "half"), whole)
    (tmp_path / "half/val").rename(tmp_path / "val")
    (tmp_path / "archives/ILSVRC2012_img_val.tar").rename(tmp_path / "half/ILSVRC2012_img_val.tar")
    packed_val = list_images(tmp_path / "half")
    assert [packed_val.read(each) for each in packed_val.val] == [
        (tmp_path / "val" / each.path.rpartition("/")[2]).read_bytes() for each in whole.val
    ]
    assert len(packed_val.train) == len(whole.train)


def test_archives_beside_what_they_were_unpacked_to_are_left_out(tmp_path: Path) -> None:
    archives = published(tmp_path / "folder", tmp_path / "archives")
    plain = list_images(tmp_path / "folder")
    for name in ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"):
        (archives / name).rename(tmp_path / "folder" / name)
    (tmp_path / f"inner/{WNIDS[0]}.tar").rename(tmp_path / f"folder/train/{WNIDS[0]}.tar")
    found = list_images(tmp_path / "folder")
    assert (found.train, found.val) == (plain.train, plain.val)
    assert "left out because they lie unpacked beside: ILSVRC2012_img_train.tar" in found.notes[0]
    assert f"train/{WNIDS[0]}.tar" in found.notes[0]


def test_a_damaged_archive_of_a_class_is_named(tmp_path: Path) -> None:
    source = write(tmp_path / "source", {f"train/{name}/0.JPEG": jpeg() for name in WNIDS[:2]})
    write(source, {f"train/{WNIDS[2]}.tar": b"x" * 600})
    assert f"train/{WNIDS[2]}.tar: is not a tar archive" in listing_refusal(source)
    folder = write(tmp_path / "folder", {f"{i}.JPEG": jpeg() for i in range(2)})
    archive = pack(folder, source / f"train/{WNIDS[2]}.tar")
    archive.write_bytes(archive.read_bytes()[:3500])
    assert f"train/{WNIDS[2]}.tar: the archive is damaged after 1 images" in listing_refusal(source)


@pytest.mark.parametrize("packed", [False, True])
def test_a_folder_named_like_an_image_is_a_folder(tmp_path: Path, packed: bool) -> None:
    folder = image_folder(tmp_path / "folder")
    write(folder, {"train/cat/more.jpg/9.png": jpeg(9), "train/cat/empty.jpeg/": b""})
    for name in ("fox.jpg", "n01440764.tar", "words.txt"):
        write(folder, {f"{part}/{name}/0.jpg": jpeg(8) for part in ("train", "val")})
    found = list_images(pack(folder, tmp_path / "all.tar") if packed else folder)
    assert found.classes == ("cat", "dog", "eel", "fox.jpg", "n01440764.tar", "words.txt")
    assert paths(found.train)[:4] == [*(f"train/cat/{i}.jpg" for i in range(3)), "train/cat/more.jpg/9.png"]
    assert found.read(found.train[3]) == jpeg(9)


@pytest.mark.parametrize("packed", [False, True])
def test_pipes_and_devices_are_refused_and_never_opened(
    tmp_path: Path, packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Opening a pipe blocks until a process writes into it."""
    folder = image_folder(tmp_path / "folder")
    os.mkfifo(folder / "train/cat/pipe.jpg")
    (folder / "train/cat/zeros.jpg").symlink_to("/dev/zero")
    names = {"pipe.jpg", "zeros.jpg"}
    if not packed:  # tars hold no sockets
        monkeypatch.chdir(folder / "train/cat")  # the paths of sockets are short
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind("socket.jpg")
        names.add("socket.jpg")
    found = list_images(pack(folder, tmp_path / "all.tar") if packed else folder)
    odd = {image.path.rpartition("/")[2]: image for image in found.train}
    assert names < odd.keys() and len(found.train) == 9 + len(names)
    for name in names:
        with pytest.raises(OSError, match=r"not a plain file|a link to /dev/zero, which the archive does not hold"):
            found.read(odd[name])


@pytest.mark.parametrize("name", ["words.txt", "train/n01440764.tar", "ILSVRC2012_img_train.tar"])
def test_a_pipe_in_the_place_of_a_text_or_an_archive(tmp_path: Path, name: str) -> None:
    folder = image_folder(tmp_path)
    if name.startswith("ILSVRC"):
        (folder / "train").rename(folder / "more")
    os.mkfifo(folder / name)
    assert "(not a plain file)" in listing_refusal(folder)


def test_one_top_folder_is_looked_through(tmp_path: Path) -> None:
    image_folder(tmp_path / "download")
    assert paths(list_images(tmp_path).train)[0] == "download/train/cat/0.jpg"


def test_a_tar_made_with_dots_and_links(tmp_path: Path) -> None:
    folder = image_folder(tmp_path / "folder")
    os.link(folder / "train/cat/0.jpg", folder / "train/cat/hard.jpg")
    (folder / "train/cat/soft.jpg").symlink_to("../dog/1.jpg")
    (folder / "train/cat/lost.jpg").symlink_to("nowhere.jpg")
    found = list_images(pack(folder, tmp_path / "dots.tar", top="."))
    read = {image.path: image for image in found.train}
    assert found.read(read["train/cat/hard.jpg"]) == (folder / "train/cat/0.jpg").read_bytes()
    assert found.read(read["train/cat/soft.jpg"]) == (folder / "train/dog/1.jpg").read_bytes()
    with pytest.raises(OSError, match="link to nowhere"):
        found.read(read["train/cat/lost.jpg"])


def test_links_in_a_folder(tmp_path: Path) -> None:
    folder = image_folder(tmp_path / "folder")
    (folder / "train/cat/ring").symlink_to(folder / "train")
    (folder / "train/fox").symlink_to(folder / "train/dog")
    (folder / "val/fox").symlink_to(folder / "val/dog")
    (folder / "train/eel/lost.jpg").symlink_to("nowhere.jpg")
    found = list_images(folder)
    assert found.classes == ("cat", "dog", "eel", "fox")
    lost = next(image for image in found.train if image.path.endswith("lost.jpg"))
    with pytest.raises(OSError, match="no such file"):
        found.read(lost)


def test_the_tiny_imagenet_subset(shared: Path) -> None:
    found = list_images(shared / "data/tiny-imagenet-200-subset.tar")
    assert (found.layout, len(found.classes), len(found.train), len(found.val)) == ("tiny-imagenet", 200, 24000, 5000)
    assert set(found.words) == set(found.classes) and not found.held_out and not found.notes
    annotated: dict[str, str] = {}
    with tarfile.open(found.source) as archive:
        lines = archive.extractfile("tiny-imagenet-200-subset/val/val_annotations.txt")
        assert lines is not None
        for line in lines.read().decode().splitlines():
            annotated[line.split("\t")[0]] = line.split("\t")[1]
        some = found.train[::4000] + found.val[::1000]
        for image in some:
            member = archive.extractfile(image.path)
            assert member is not None and member.read() == found.read(image)
    assert {each.path.rpartition("/")[2]: found.classes[each.label] for each in found.val} == annotated


def test_the_ilsvrc12_samples(shared: Path) -> None:
    found = list_images(shared / "data/ilsvrc12-samples.tar")
    assert (found.layout, len(found.classes), len(found.train), len(found.val)) == ("ilsvrc12", 400, 400, 0)
    assert found.held_out and set(found.words) == set(found.classes)


def test_no_such_source(tmp_path: Path) -> None:
    assert "does not exist" in listing_refusal(tmp_path / "nothing")


def test_neither_folder_nor_tar(tmp_path: Path) -> None:
    (tmp_path / "one.jpg").write_bytes(jpeg())
    assert "is not a tar archive" in listing_refusal(tmp_path / "one.jpg")
    (tmp_path / "empty.tar").write_bytes(b"")
    assert "is not a tar archive" in listing_refusal(tmp_path / "empty.tar")
    os.mkfifo(tmp_path / "pipe")
    assert "neither a folder nor a file" in listing_refusal(tmp_path / "pipe")


@pytest.mark.parametrize(("mode", "tool"), [("w:gz", "gunzip"), ("w:bz2", "bunzip2"), ("w:xz", "unxz")])
def test_a_compressed_tar_says_how_to_unpack_it(tmp_path: Path, mode: str, tool: str) -> None:
    archive = pack(image_folder(tmp_path / "folder"), tmp_path / "packed.tar", mode=mode)
    assert f"unpack it with {tool}" in listing_refusal(archive)


def test_a_truncated_tar(tmp_path: Path) -> None:
    archive = pack(image_folder(tmp_path / "folder"), tmp_path / "cut.tar")
    archive.write_bytes(archive.read_bytes()[:8000])
    assert "the archive is damaged after" in listing_refusal(archive)


def test_a_truncated_archive_of_ilsvrc12_is_not_taken_for_something_else(tmp_path: Path) -> None:
    for folder in ("tars", "source"):
        (tmp_path / folder).mkdir()
    for name in WNIDS:
        pack(write(tmp_path / name, {"0.JPEG": jpeg()}), tmp_path / f"tars/{name}.tar")
    archive = pack(tmp_path / "tars", tmp_path / "source/ILSVRC2012_img_train.tar")
    with tarfile.open(archive) as whole:
        last = whole.getmembers()[-1]
    os.truncate(archive, last.offset_data + 700)
    assert "ILSVRC2012_img_train.tar: the archive is damaged after 2 archives in it" in listing_refusal(
        tmp_path / "source"
    )


def test_a_store_is_no_source(tmp_path: Path) -> None:
    store = prepare_into(image_folder(tmp_path / "source"), tmp_path / "store", size=8, log=lambda text: None)
    assert "is a prepared store, not a source of images" in listing_refusal(store.folder)


def test_a_tar_of_tars_says_so(tmp_path: Path) -> None:
    write(tmp_path / "folder", {f"{name}.tar": b"x" for name in ANIMALS})
    assert "holds no images but archives (cat.tar" in listing_refusal(pack(tmp_path / "folder", tmp_path / "all.tar"))


def test_no_classes(tmp_path: Path) -> None:
    assert "holds no class folders:" in listing_refusal(tmp_path)
    write(tmp_path, {"a.jpg": jpeg(), "b.jpg": jpeg()})
    assert "no class folders but 2 images outside any" in listing_refusal(tmp_path)


@pytest.mark.parametrize("part", ["", "train/"])
def test_only_one_class(tmp_path: Path, part: str) -> None:
    assert "one class only (cat)" in listing_refusal(write(tmp_path, by_class(part, ("cat",), 3)))


@pytest.mark.parametrize("packed", [False, True])
def test_an_empty_class_is_named(tmp_path: Path, packed: bool) -> None:
    folder = image_folder(tmp_path / "folder")
    write(folder, {"train/gnu/": b"", "val/gnu/0.jpg": jpeg()})
    source = pack(folder, tmp_path / "all.tar") if packed else folder
    assert "in class gnu:" in listing_refusal(source)


def test_validation_has_a_class_that_train_has_not(tmp_path: Path) -> None:
    image_folder(tmp_path)
    write(tmp_path, {"val/gnu/0.jpg": jpeg()})
    assert "val/ has class gnu, which train has not" in listing_refusal(tmp_path)


def test_a_class_lacks_in_validation(tmp_path: Path) -> None:
    image_folder(tmp_path)
    write(tmp_path, {"train/gnu/0.jpg": jpeg(), "val/gnu/": b""})
    assert "val/ has no image of class gnu" in listing_refusal(tmp_path)


def test_an_empty_validation_part(tmp_path: Path) -> None:
    write(tmp_path, by_class("train/", ANIMALS, 2) | {"val/": b""})
    assert "val/ holds no images" in listing_refusal(tmp_path)


def test_a_validation_part_alone(tmp_path: Path) -> None:
    assert "val has class folders but train has none" in listing_refusal(write(tmp_path, by_class("val/", ANIMALS, 2)))


def test_flat_validation_without_published_labels(tmp_path: Path) -> None:
    write(tmp_path, by_class("train/", ANIMALS, 2) | {"val/0.jpg": jpeg()})
    assert "val/ holds 1 image (val/0.jpg) but has no class folders" in listing_refusal(tmp_path)


def test_flat_ilsvrc12_validation_with_a_foreign_file(tmp_path: Path) -> None:
    ilsvrc(tmp_path)
    write(tmp_path, {"val/ILSVRC2012_val_00050001.JPEG": jpeg()})
    assert "ILSVRC2012_val_00050001.JPEG is not one of" in listing_refusal(tmp_path)


def annotate(folder: Path, text: str | bytes) -> Path:
    return write(folder, {"val/val_annotations.txt": text})


def test_annotations_that_do_not_fit(tmp_path: Path) -> None:
    tiny_imagenet(tmp_path)
    good = (tmp_path / "val/val_annotations.txt").read_text()
    assert "line 4 of val/val_annotations.txt names val_9.JPEG, which" in listing_refusal(
        annotate(tmp_path, good + f"val_9.JPEG\t{WNIDS[0]}\n")
    )
    assert "line 4 of val/val_annotations.txt names val_0.JPEG for the second time" in listing_refusal(
        annotate(tmp_path, good + f"val_0.JPEG\t{WNIDS[0]}\n")
    )
    assert "line 4 of val/val_annotations.txt is not <file> tab <class>" in listing_refusal(
        annotate(tmp_path, good + "x\n")
    )
    assert "does not name 1 image that val/ has (val/images/val_2.JPEG)" in listing_refusal(
        annotate(tmp_path, "".join(good.splitlines(keepends=True)[:2]))
    )
    assert "val/ has class n09999999, which train has not" in listing_refusal(
        annotate(tmp_path, good.replace(WNIDS[0], "n09999999"))
    )
    assert "not UTF-8" in listing_refusal(annotate(tmp_path, b"val_0.JPEG\t\xff\n"))


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may read everything")
def test_an_unreadable_folder(tmp_path: Path) -> None:
    image_folder(tmp_path)
    (tmp_path / "train/cat").chmod(0)
    try:
        assert "permission denied" in listing_refusal(tmp_path)
    finally:
        (tmp_path / "train/cat").chmod(0o755)


def test_an_image_is_read_whole_from_the_middle_of_an_archive(tmp_path: Path) -> None:
    big = encoded(noise(1, width=600, height=500), "BMP")
    write(tmp_path / "folder", {"a/0.bmp": big, "a/1.bmp": jpeg(), "b/0.bmp": jpeg(2), "b/1.bmp": jpeg(3)})
    found: Listing = list_images(pack(tmp_path / "folder", tmp_path / "all.tar"))
    both = {image.path: found.read(image) for image in found.train + found.val}
    assert both["a/0.bmp"] == big and both["b/0.bmp"] == jpeg(2)
