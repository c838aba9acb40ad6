"""Write the README's section about speed from bench/results/bench-all.json and the results beside it.

    python bench/readme.py

A test fails when the README and the committed numbers differ.
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
BEGIN, END = "## Speed\n", "## Repository layout\n"
_SAID = {
    STEP: "fasttransfer, bf16",
    "eager bf16 channels-last": "PyTorch, bf16 autocast, channels-last",
    "compiled bf16 channels-last": "the same, compiled",
    "eager fp32": "PyTorch, fp32, as usually written",
    ALONE: "the convolutions and matrix products alone, bf16",
}


def section(result: Mapping[str, Any], folder: Path = RESULTS) -> str:
    """Return the section with its heading; parts that were not measured are left out."""
    book = targets.book(result, folder)
    on = result["machine"]
    lines = [
        BEGIN,
        "```",
        "make bench                     # measure everything in one run and write a page of the results",
        "fasttransfer bench step        # compare a training step with the usual PyTorch variants and profile it",
        "fasttransfer bench ablation    # measure how much each optimisation gains on this machine",
        "make bench-check               # check that no ratio to PyTorch has become worse",
        "```",
        "",
        textwrap.fill(
            f"Measured on {on['cores']} cores ({on['processor']}, {on['instructions']}) with PyTorch {on['torch']} on "
            f"{result['when']}; medians (`{result['command']}`, `bench/results/bench-all.json`; all results: "
            "[bench/results/bench-all.md](bench/results/bench-all.md)).",
            120,
            break_on_hyphens=False,
        ),
        "",
    ]
    for made in (_step, _others, _goals):
        lines += made(book)
    lines += [
        "The operators also have CUDA versions, compiled and tested in emulation but not yet run on a GPU",
        "([what the emulation can and cannot show](docs/decisions/cuda-library.md)). A GPU is used where there is one;",
        "`python bench/gpu.py 55` builds, tests and measures as much there as fits into 55 minutes.",
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
    yield "| | images per second | relative time |"
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
            "Native operators run everything but the convolutions and matrix products. Bias, ReLU, pooling and "
            "normalisation together, forward and backward in bf16 on 64 x 96 x 55 x 55, take "
            f"{taken['native']} ms where PyTorch takes {taken['eager']} ms and `torch.compile` {taken['compiled']} ms, "
            f"at {case['of_copy']:.0%} of the speed of a plain copy of the bytes they need "
            f"(`{book['kernels']['command']}` measures every operator)."
        )
    case = book.get("kernels", {}).get("cases", {}).get(BEHIND_POOLING)
    if case is not None:
        taken = {name: f"{1e3 * timing['median']:.0f}" for name, timing in case["seconds"].items()}
        yield _point(
            "Most gradients behind pooling and a ReLU are zero, and the backward pass of a convolution there skips "
            f"them: that of stage 2, 64 images in bf16, takes {taken['native']} ms where PyTorch takes "
            f"{taken['eager']} ms (`{book['kernels']['command']} --only sparse_conv_backward`)."
        )
    data = book.get("data", {})
    feeds = list(data.get("feed", {}).values())
    if feeds:
        gains = [feed["against"]["fasttransfer raw"] for feed in feeds]
        yield _point(
            f"A prepared store yields crops and mirrors {gains[0]:.0f} times as fast per core as a DataLoader with "
            f"Pillow that decodes the same images from JPEG, and {gains[-1]:.0f} times as fast on all cores "
            f"(`{data['command']} --only feed`)."
        )
    prepared = list(data.get("prepare", {}).values())
    if prepared:
        rate, share = prepared[-1]["images per second"]["prepare raw"], prepared[-1]["against"]["prepare raw"]
        yield _point(
            f"A store is prepared at {rate:,.0f} images per second, {share:.2f} of the rate of the fastest decoder "
            f"alone (`{data['command']} --only prepare`)."
        )
    rates = projection.rates_of(book)
    if rates is not None:
        found = projection.project(projection.papers_networks(), rates)
        yield _point(
            f"All {projection.NETWORKS} networks of the paper would take {found.together / 86400:,.0f} days on this "
            f"machine, trained one by one {found.alone / 86400:,.0f}; they took {projection.K20_DAYS:,} K20-days "
            f"(`{book['cells']['command']}`; the page lists the assumptions)."
        )
    yield ""


def _point(text: str) -> str:
    return textwrap.fill(text, 120, initial_indent="* ", subsequent_indent="  ", break_on_hyphens=False)


def _goals(book: targets.Book) -> Iterator[str]:
    yield "The goals, and what was measured:"
    yield ""
    yield "| | compared with | goal | measured | command |"
    yield "|---|---|---|---|---|"
    missed: list[str] = []
    for goal in targets.TARGETS:
        found = goal.of(book, False)
        said, command = (found.text, f"`{found.command}`") if found else (targets.NOT_YET, "")
        if found is not None and found.met is False:
            said += " (missed)"
            missed += [f"{goal.what}: {found.why}"] * bool(found.why)
        yield f"| {goal.what} | {goal.against} | {goal.cpu or '–'} | {said} | {command} |"
    yield ""
    if missed:
        yield from _reasons(missed)
    yield f"On a GPU: {targets.NOT_YET}."
    yield ""


def _reasons(missed: Sequence[str]) -> Iterator[str]:
    yield "Why the missed goals were missed:"
    yield ""
    for reason in missed:
        yield _point(f"{reason}.")
    yield ""


def updated(text: str, said: str) -> str:
    """Return the README with `said` as its section about speed."""
    head, rest = text.split(BEGIN, 1)
    return head + said + END + rest.split(END, 1)[1]


def main() -> None:
    text = updated(README.read_text(), section(read(RESULTS / "bench-all.json")))
    with replace_file(README) as file:
        file.write(text.encode())
    print(f"written: {README}")


if __name__ == "__main__":
    main()
