"""Names, sources and dependencies of the paper's networks."""

from __future__ import annotations

from fasttransfer.networks.caffenet import CAFFENET
from fasttransfer.study.cells import TASKS, TREATMENTS, Cell, base, base_plus, study_cells


def test_the_whole_grid_of_one_seed() -> None:
    cells = study_cells(TASKS, TREATMENTS, CAFFENET.cuts, [0], 8)
    assert len(cells) == 2 + 2 + 2 * 5 * 7 == len(set(cells))
    names = {c.name for c in cells}
    assert {"baseA", "baseB", "A8A+", "B8B+", "A3B", "A3B+", "B3B", "B3B+", "B3A", "A1A+", "R7B"} <= names


def test_every_base_comes_before_its_copies() -> None:
    cells = study_cells(TASKS, TREATMENTS, CAFFENET.cuts, [0, 1], 8)
    for i, cell in enumerate(cells):
        assert cell.needs is None or cell.needs in cells[:i]


def test_names_sources_and_bases_of_cells() -> None:
    transfer = Cell(0, "B", "transfer", 3)
    assert (transfer.name, transfer.source, transfer.frozen, transfer.needs) == (
        "A3B",
        "A",
        True,
        base("A", 0),
    )
    fine_tuned = Cell(1, "B", "selffer+", 3)
    assert (fine_tuned.name, fine_tuned.source, fine_tuned.frozen) == ("B3B+", "B", False)
    assert fine_tuned.needs == base("B", 1)
    further = base_plus("B", 1, 8)
    assert (further.name, further.source, further.frozen, further.mean_of) == ("B8B+", "B", False, "B")
    assert further.needs == base("B", 1)
    he = Cell(0, "A", "random-he", 7)
    assert (he.name, he.source, he.frozen, he.needs, he.mean_of) == ("H7A", "H", True, None, "A")
    random = Cell(0, "A", "random", 7)
    assert (random.name, random.source, random.frozen, random.needs) == ("R7A", "R", True, None)


def test_the_mean_image_is_that_of_the_first_layers_training_set() -> None:
    assert Cell(0, "B", "transfer", 1).mean_of == "A"
    assert Cell(0, "B", "transfer+", 1).mean_of == "A"
    assert Cell(0, "B", "selffer", 1).mean_of == "B"
    assert Cell(0, "B", "random", 1).mean_of == "B"
    assert base("A", 0).mean_of == "A"


def test_a_base_that_is_only_copied_from_is_trained_too() -> None:
    cells = study_cells(["B"], ["transfer"], [3], [0], 8)
    assert [c.name for c in cells] == ["baseA", "baseB", "B8B+", "A3B"]
    cells = study_cells(["B"], ["random"], [3], [0], 8)
    assert [c.name for c in cells] == ["baseB", "B8B+", "R3B"]  # the base of the target is what all is compared with


def test_every_target_and_seed_has_its_base_trained_further_whatever_is_asked_for() -> None:
    cells = study_cells(TASKS, [], [], [0, 1], 8)
    assert [c.label for c in cells] == [
        "baseA.s0", "baseB.s0", "baseA.s1", "baseB.s1", "A8A+.s0", "B8B+.s0", "A8A+.s1", "B8B+.s1",
    ]  # fmt: skip
