from __future__ import annotations

import hashlib
import tomllib
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fasttransfer.core.errors import InputError
from fasttransfer.pipelines.ilsvrc12 import ilsvrc12, ilsvrc12_val_labels
from fasttransfer.pipelines.layouts import list_images
from fasttransfer.pipelines.synthetic import SIDES
from fasttransfer.study import splits
from fasttransfer.study.splits import Split, limit_classes, make_split

WNIDS = tuple(synset.wnid for synset in ilsvrc12())
NAMES = st.lists(st.text(min_size=1, max_size=8), min_size=4, max_size=40, unique=True)


def refusal(spec: str | Path, classes: tuple[str, ...] = ("bus", "car", "cat", "dog")) -> str:
    with pytest.raises(InputError) as caught:
        make_split(str(spec), classes)
    message = str(caught.value)
    assert "\n" not in message
    return message


def split_file(folder: Path, text: str) -> Path:
    path = folder / "mine.toml"
    path.write_text(text)
    return path


def test_the_facts_are_whole() -> None:
    assert len(WNIDS) == len(set(WNIDS)) == 1000 and list(WNIDS) == sorted(WNIDS)
    assert {synset.side for synset in ilsvrc12()} == {"natural", "man-made"}
    assert all(synset.words for synset in ilsvrc12())
    assert np.all(np.bincount(ilsvrc12_val_labels()) == 50)


def test_the_facts_are_the_published_ones(shared: Path) -> None:
    lines = (shared / "paper/synset_words.txt").read_text().splitlines()
    assert [f"{synset.wnid} {synset.words}" for synset in ilsvrc12()] == lines
    natural = {int(line) for line in (shared / "paper/natural_class_indices.txt").read_text().split()}
    assert {label for label, synset in enumerate(ilsvrc12()) if synset.side == "natural"} == natural


def test_every_half_has_its_published_md5() -> None:
    assert splits.verify() == [(half, md5, md5) for half, md5 in splits.PUBLISHED.items()]


def test_a_wrong_half_does_not_verify() -> None:
    split = make_split("random:0", WNIDS)
    assert splits.hash_validation_list(split.a[1:]) != splits.PUBLISHED["0A"]
    assert splits.hash_validation_list(tuple(reversed(split.a))) != splits.PUBLISHED["0A"]
    assert splits.hash_validation_list(split.b) == splits.PUBLISHED["0B"]


def test_validation_list_has_new_labels() -> None:
    text = splits.export_validation_list(WNIDS[65:67])
    lines = text.splitlines()
    assert lines[0] == "ILSVRC2012_val_00000001.JPEG 0" and len(lines) == 100
    assert splits.hash_validation_list(WNIDS[65:67]) == hashlib.md5(text.encode()).hexdigest()
    with pytest.raises(InputError, match="cat: not in ILSVRC12"):
        splits.export_validation_list(["cat"])


def test_natural_manmade_of_all_classes() -> None:
    split = make_split("natural-manmade", WNIDS)
    assert (split.name, len(split.a), len(split.b)) == ("natural-manmade", 449, 551)
    assert split.a[0] == "n01440764" and "n02672831" in split.b  # tench, accordion


def test_natural_manmade_of_the_built_in_classes() -> None:
    split = make_split("natural-manmade", sorted(SIDES))
    assert {SIDES[name] for name in split.a} == {"natural"}
    assert {SIDES[name] for name in split.b} == {"man-made"}
    assert len(split.a) + len(split.b) == len(SIDES)


def test_natural_manmade_of_tiny_imagenet(shared: Path) -> None:
    listing = list_images(shared / "data/tiny-imagenet-200-subset.tar")
    split = make_split("natural-manmade", listing.classes)
    assert sorted(split.a + split.b) == list(listing.classes)
    assert len(split.a) == 72


def test_natural_manmade_of_other_classes() -> None:
    message = refusal("natural-manmade")
    assert "none of the 4 classes (bus, car, cat and 1 more)" in message and 'A = ["cat", "dog"]' in message
    message = refusal("natural-manmade", (*WNIDS[:9], "bus"))
    assert "does not know bus: write a split file" in message
    message = refusal("natural-manmade", WNIDS[:9])
    assert "of the 9 classes 0 on the man-made side" in message


@pytest.mark.parametrize("spec", ["", "halves", "natural", "random", "mine.json", "RANDOM:0"])
def test_unknown_forms(spec: str) -> None:
    message = refusal(spec)
    assert "natural-manmade" in message and "random:SEED" in message and ".toml" in message


@pytest.mark.parametrize("seed", ["", "x", "-1", "1.5", "4294967296", "1 ", "٣", "9" * 99])
def test_bad_seeds(seed: str) -> None:
    assert "the seed is a whole number" in refusal(f"random:{seed}")


def test_too_few_classes_for_halves() -> None:
    assert "3 classes: at least 4" in refusal("random:0", ("a", "b", "c"))


@settings(max_examples=60, deadline=None)
@given(names=NAMES, seed=st.integers(0, 2**32 - 1))
def test_halves_are_disjoint_complete_ordered_and_repeatable(names: list[str], seed: int) -> None:
    split = make_split(f"random:{seed}", names)
    assert not set(split.a) & set(split.b)
    assert set(split.a) | set(split.b) == set(names)
    assert len(split.a) == len(names) // 2
    assert list(split.a) == [name for name in names if name in split.a]
    assert list(split.b) == [name for name in names if name in split.b]
    assert make_split(f"random:{seed}", names) == split


def test_seeds_differ() -> None:
    assert len({make_split(f"random:{seed}", WNIDS).a for seed in range(20)}) == 20


def test_split_file(tmp_path: Path) -> None:
    path = split_file(tmp_path, 'name = "pets"\nA = ["dog", "cat"]\nB = ["car", "bus"]\n')
    assert make_split(str(path), ("bus", "car", "cat", "dog", "eel")) == Split("pets", ("cat", "dog"), ("bus", "car"))
    path = split_file(tmp_path, 'A = ["dog", "cat"]\nB = ["car", "bus"]\n')
    assert make_split(str(path), ("bus", "car", "cat", "dog")).name == "mine"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('A = ["cat", "dog"\n', "is not TOML"),
        ('A = ["cat", "dog"]\n', "B is not a list of class names"),
        ('A = "cat"\nB = ["bus", "car"]\n', "A is not a list of class names"),
        ('A = ["cat", 1]\nB = ["bus", "car"]\n', "A is not a list of class names"),
        ('A = ["cat", "gnu"]\nB = ["bus", "car"]\n', "names gnu, which the images do not have"),
        ('A = ["cat", "dog"]\nB = ["bus", "cat"]\n', "cat in both tasks"),
        ('A = ["cat", "dog", "cat"]\nB = ["bus", "car"]\n', "cat twice in A"),
        ('A = ["cat", "dog"]\nB = ["bus"]\n', "B has 1 classes"),
        ('A = ["cat", "dog"]\nB = []\n', "B has 0 classes"),
        ('A = ["cat", "dog"]\nB = ["bus", "car"]\nC = []\n', "does not know C"),
        ('name = 3\nA = ["cat", "dog"]\nB = ["bus", "car"]\n', "name is not text"),
        ('name = " "\nA = ["cat", "dog"]\nB = ["bus", "car"]\n', "name is not text"),
    ],
)
def test_bad_split_files(tmp_path: Path, text: str, expected: str) -> None:
    message = refusal(split_file(tmp_path, text))
    assert expected in message and "mine.toml" in message


def test_split_files_that_cannot_be_read(tmp_path: Path) -> None:
    assert "no such split file" in refusal(tmp_path / "lost.toml")
    (tmp_path / "folder.toml").mkdir()
    assert "cannot be read (is a directory)" in refusal(tmp_path / "folder.toml")
    (tmp_path / "latin.toml").write_bytes(b'A = ["caf\xe9", "b"]')
    assert "is not TOML" in refusal(tmp_path / "latin.toml")


@settings(max_examples=60, deadline=None)
@given(names=NAMES, name=st.text(min_size=1).filter(lambda text: text == text.strip()), words=st.text())
def test_export_is_read_back(tmp_path_factory: pytest.TempPathFactory, names: list[str], name: str, words: str) -> None:
    drawn = make_split("random:1", names)
    split = Split(name, drawn.a, drawn.b)
    path = tmp_path_factory.getbasetemp() / "exported.toml"
    path.write_bytes(splits.export(split, dict.fromkeys(names, words)).encode())
    assert make_split(str(path), names) == split


def test_export_shows_words() -> None:
    text = splits.export(make_split("natural-manmade", WNIDS), splits.load_ilsvrc12_words())
    assert '"n01440764",  # tench, Tinca tinca' in text
    assert len(tomllib.loads(text)["B"]) == 551


def test_limit_classes_takes_the_first_of_an_order_that_the_seed_draws() -> None:
    split = make_split("natural-manmade", WNIDS)
    ten, twenty = limit_classes(split, 10, 0), limit_classes(split, 20, 0)
    assert len(ten.a) == len(ten.b) == 10
    assert set(ten.a) < set(twenty.a) < set(split.a) and set(ten.b) < set(twenty.b) < set(split.b)
    assert list(ten.a) == sorted(ten.a)
    assert limit_classes(split, 10, 0) == ten != limit_classes(split, 10, 1)
    assert limit_classes(split, 449, 3).a == split.a


def test_limit_classes_refuses_more_classes_than_there_are() -> None:
    split = make_split("natural-manmade", WNIDS)
    with pytest.raises(InputError, match="task A of natural-manmade has 449"):
        limit_classes(split, 450, 0)
    with pytest.raises(InputError, match="at least 2"):
        limit_classes(split, 1, 0)


def test_list_and_show() -> None:
    known = splits.list_splits()
    assert known[0][:3] == ("natural-manmade", 449, 551)
    assert [spec for spec, *_ in known] == ["natural-manmade", "natural-manmade", "random:SEED"]
    members = splits.show(make_split("natural-manmade", WNIDS), splits.load_ilsvrc12_words())
    assert len(members) == 1000
    assert members[0] == ("A", 0, "n01440764", "tench, Tinca tinca")
    assert members[449][:2] == ("B", 0)


def test_a_split_file_may_spell_letters_with_accents_in_another_way(tmp_path: Path) -> None:
    classes = tuple(unicodedata.normalize("NFD", name) for name in ("bar", "café", "hôtel", "quay"))
    path = tmp_path / "mine.toml"
    path.write_text('A = ["café", "bar"]\nB = ["hôtel", "quay"]\n', encoding="utf-8")
    assert make_split(str(path), classes).tasks == {"A": classes[:2], "B": classes[2:]}
