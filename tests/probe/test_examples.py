"""The examples drawn, held out and batched are functions of the seed alone."""

from __future__ import annotations

import pytest
import torch

from fasttransfer.core.errors import InputError
from fasttransfer.probe.examples import FOLDS, STEPS, ExampleSet, draw_example_sets

NAMES = ("ant", "bee", "cat")
LABELS = torch.arange(90) % 3


def example_set(sets: list[ExampleSet], per_class: int | None, seed: int, fold: int | None = None) -> ExampleSet:
    (found,) = [each for each in sets if (each.per_class, each.seed, each.fold) == (per_class, seed, fold)]
    return found


def test_each_class_has_as_many_as_asked_and_fewer_are_among_more() -> None:
    sets = draw_example_sets(LABELS, NAMES, (1, 2, 5, 25, None), (0, 1))
    before: set[int] = set()
    for k in (1, 2, 5, 25, None):
        rows = example_set(sets, k, 0).rows
        assert LABELS[rows].bincount().tolist() == [k or 30] * 3
        assert before <= set(rows.tolist())
        before = set(rows.tolist())
    assert before == set(range(90))
    assert set(example_set(sets, 5, 0).rows.tolist()) != set(example_set(sets, 5, 1).rows.tolist())


def test_draws_do_not_depend_on_other_draws() -> None:
    many = draw_example_sets(LABELS, NAMES, (1, 2, 5, 25, None), (0, 1, 2))
    for k, seed, fold in ((5, 2, 3), (None, 1, None), (25, 0, 0)):
        alone = example_set(draw_example_sets(LABELS, NAMES, (k,), (seed,)), k, seed, fold)
        among = example_set(many, k, seed, fold)
        assert torch.equal(alone.rows, among.rows)
        assert torch.equal(alone.held_out, among.held_out)
        assert all(torch.equal(a, b) for a, b in zip(alone.batches(), among.batches(), strict=True))


@pytest.mark.parametrize(("k", "held"), [(1, 0), (2, 2), (3, 3), (5, 5), (10, 5), (25, 1), (None, 1)])
def test_held_out_examples_are_not_learned_and_come_once(k: int | None, held: int) -> None:
    sets = draw_example_sets(LABELS, NAMES, (k,), (4,))
    whole = set(example_set(sets, k, 4).rows.tolist())
    assert len(sets) == 1 + held
    out: list[int] = []
    for fold in range(held):
        each = example_set(sets, k, 4, fold)
        assert set(each.rows.tolist()) | set(each.held_out.tolist()) == whole
        assert not set(each.rows.tolist()) & set(each.held_out.tolist())
        assert LABELS[each.held_out].bincount().unique().numel() == 1  # of every class alike
        out += each.held_out.tolist()
    assert len(out) == len(set(out))
    if held > 1:
        assert set(out) == whole
    elif held:
        assert len(out) == len(whole) / FOLDS


def test_batches_show_every_example_once_an_epoch() -> None:
    each = example_set(draw_example_sets(LABELS, NAMES, (None,), (0,)), None, 0)
    shown = torch.cat(list(each.batches()))
    assert len(shown) == STEPS * each.batch
    for epoch in shown.split(90)[:20]:
        assert sorted(epoch.tolist()) == list(range(90))
    assert not torch.equal(shown[:90], shown[90:180])


def test_many_examples_come_in_larger_batches() -> None:
    rows = torch.arange(30_000)
    assert ExampleSet(None, 0, None, rows, rows[:0]).batch == 1000  # ten epochs
    assert ExampleSet(None, 0, None, rows[:200], rows[:0]).batch == 64
    few = ExampleSet(1, 0, None, rows[:16], rows[:0])
    assert few.batch == 16
    assert torch.equal(next(few.batches()), rows[:16])


def test_more_than_there_are() -> None:
    labels = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2, 2])
    with pytest.raises(InputError, match="--examples 3: class bee has 2 training images: ask for 2 or fewer, or all"):
        draw_example_sets(labels, NAMES, (1, 3), (0,))
    assert len(example_set(draw_example_sets(labels, NAMES, (None,), (0,)), None, 0).rows) == 9
