"""Writes the README's section about speed from bench/results/bench-all.json and what lies beside it.

    python bench/readme.py

A test fails when the README says something else than the committed numbers.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fasttransfer.bench import projection, targets
from fasttransfer.bench.readings import read
from fasttransfer.bench.targets import ALONE, BEHIND_POOLING, POOLING, RESULTS, STEP, ratio
from fasttransfer.core.files import replace_file

README = Path(__file__).resolve().parents[1] / "README.md"
BEGIN, END = "## Speed\n", "## What is in the house\n"
_SAID = {
    STEP: "fasttransfer, bf16",
    "eager bf16 channels-last": "PyTorch, bf16 autocast, channels-last",
    "compiled bf16 channels-last": "the same, compiled",
    "eager fp32": "PyTorch, fp32, as it is usually written",
    ALONE: "its convolutions and matrix products alone, bf16",
}


def section(result: Mapping[str, Any], folder: Path = RESULTS) -> str:
    """The section, with its heading; parts that were not measured are left out."""
    book = targets.book(result, folder)
    on = result["machine"]
    lines = [
        BEGIN,
        "```",
        "make bench                     # everything, in one run, and a page of it",
        "fasttransfer bench step        # a training step against PyTorch's usual forms, and where its time goes",
        "fasttransfer bench ablation    # what each idea is worth on this machine",
        "make bench-check               # whether anything has become slower against PyTorch",
        "```",
        "",
        textwrap.fill(
            f"Measured on {on['cores']} cores ({on['processor']}, {on['instructions']}) with PyTorch {on['torch']} on "
            f"{result['when']}, medians (`{result['command']}`, `bench/results/bench-all.json`; its page: "
            "[bench/results/bench-all.md](bench/results/bench-all.md)).",
            120,
            break_on_hyphens=False,
        ),
        "",
    ]
    for made in (_step, _others, _goals):
        lines += made(book)
    lines += [
        "The operators have CUDA versions too, compiled and tested in emulation but not yet run on a GPU",
        "([what that shows and what not](docs/decisions/cuda-library.md)); GPUs are used when there. With one,",
        "`python bench/gpu.py 55` makes the most of an hour.",
        "",
    ]
    return "\n".join(lines) + "\n"


def _step(book: targets.Book) -> Iterator[str]:
    part = book.get("step", {})
    step = part.get("caffenet")
    if step is None:
        return
    seconds, batch = step["seconds"], step["batch"]
    yield f"A training step of the paper's network (forward, backward, update; batch {batch}, 500 classes;"
    yield f"`{part['command']} --only caffenet`):"
    yield ""
    yield "| | images per second | takes |"
    yield "|---|---|---|"
    for name, said in _SAID.items():
        rate, taken = batch / seconds[name]["median"], ratio(seconds, name, STEP)
        yield f"| {said} | {rate:,.0f} | {'1' if name == STEP else f'{taken:.2f}x'} |"
    yield ""


def _others(book: targets.Book) -> Iterator[str]:
    case = book.get("kernels", {}).get("cases", {}).get(POOLING)
    if case is not None:
        taken = {name: f"{1e3 * timing['median']:.0f}" for name, timing in case["seconds"].items()}
        yield _point(
            "What is no convolution and no product runs in native operators: bias, ReLU, pooling and normalisation "
            "together, forward and backward in bf16 on 64 x 96 x 55 x 55, take "
            f"{taken['native']} ms where PyTorch takes {taken['eager']} and compiled {taken['compiled']}, at "
            f"{case['of_copy']:.0%} of the speed of a plain copy of the bytes they need "
            f"(`{book['kernels']['command']}` has every operator)."
        )
    case = book.get("kernels", {}).get("cases", {}).get(BEHIND_POOLING)
    if case is not None:
        taken = {name: f"{1e3 * timing['median']:.0f}" for name, timing in case["seconds"].items()}
        yield _point(
            "Gradients behind pooling and a ReLU are mostly zero, and convolutions there multiply with the rest alone: "
            f"those of the second one, 64 images in bf16, take {taken['native']} ms where PyTorch takes "
            f"{taken['eager']} (`{book['kernels']['command']} --only sparse_conv_backward`)."
        )
    data = book.get("data", {})
    feeds = list(data.get("feed", {}).values())
    if feeds:
        gains = [feed["against"]["fasttransfer raw"] for feed in feeds]
        yield _point(
            f"From a prepared store, crops and mirrors come {gains[0]:.0f} times as fast a core as from a DataLoader "
            f"and Pillow that decode the same images from JPEG, {gains[-1]:.0f} times on all cores "
            f"(`{data['command']} --only feed`)."
        )
    prepared = list(data.get("prepare", {}).values())
    if prepared:
        rate, share = prepared[-1]["images per second"]["prepare raw"], prepared[-1]["against"]["prepare raw"]
        yield _point(
            f"A store is prepared at {rate:,.0f} images per second, {share:.2f} of what the fastest decoder alone does "
            f"(`{data['command']} --only prepare`)."
        )
    rates = projection.rates_of(book)
    if rates is not None:
        found = projection.project(projection.papers_networks(), rates)
        yield _point(
            f"All {projection.NETWORKS} networks of the paper would take {found.together / 86400:,.0f} days on this "
            f"machine, each alone {found.alone / 86400:,.0f}; they took {projection.K20_DAYS:,} K20-days "
            f"(`{book['cells']['command']}`; the page says what that assumes)."
        )
    yield ""


def _point(text: str) -> str:
    return textwrap.fill(text, 120, initial_indent="* ", subsequent_indent="  ", break_on_hyphens=False)


def _goals(book: targets.Book) -> Iterator[str]:
    yield "What was set out to be reached, and what was:"
    yield ""
    yield "| | against | goal | measured | with |"
    yield "|---|---|---|---|---|"
    missed: list[str] = []
    for goal in targets.TARGETS:
        found = goal.of(book, False)
        said, command = (found.text, f"`{found.command}`") if found else (targets.NOT_YET, "")
        if found is not None and found.met is False:
            said += ", missed"
            missed += [f"{goal.what}: {found.why}"] * bool(found.why)
        yield f"| {goal.what} | {goal.against} | {goal.cpu or '–'} | {said} | {command} |"
    yield ""
    if missed:
        yield from _reasons(missed)
    yield f"On a GPU: {targets.NOT_YET}."
    yield ""


def _reasons(missed: Sequence[str]) -> Iterator[str]:
    yield "Why what was missed was missed:"
    yield ""
    for reason in missed:
        yield _point(f"{reason}.")
    yield ""


def updated(text: str, said: str) -> str:
    """The README with `said` as its section about speed."""
    head, rest = text.split(BEGIN, 1)
    return head + said + END + rest.split(END, 1)[1]


def main() -> None:
    text = updated(README.read_text(), section(read(RESULTS / "bench-all.json")))
    with replace_file(README) as file:
        file.write(text.encode())
    print(f"written: {README}")


if __name__ == "__main__":
    main()
