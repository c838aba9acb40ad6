"""`fasttransfer bench all`: every part in one run, one JSON, and the page made of it."""

from __future__ import annotations

import time
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.text import Text

from fasttransfer.bench import command, grid, pages
from fasttransfer.core import devices
from fasttransfer.core.errors import InputError
from fasttransfer.core.files import make_folder

STUDIES = ("limit", "cohort")  # of the parts of "grid": plain PyTorch takes longer than all the rest
LAYERS = (5, 7)  # of "cached"
# Parts that read the images that are given, which may be too few for a study.
WITH_IMAGES = ("ceilings", "data", "ablation")
# A run of everything takes a quarter of an hour: five samples are enough for a median, and what memory a prepare takes
# is a question of its own.
FULL = replace(command.FULL, rounds=5, images=400, many=0)


def run(
    *, quick: bool, device: str, out: Path, console: Console, source: Path | None = None, price: float | None = None
) -> bool:
    """Measures all parts on `device` into `out`, a JSON file, after every result, and writes the page beside it.

    A part that fails is recorded with its error and the next one begins; returns whether none did.

    Args:
        quick: fewer samples and a smaller batch.
        source: the images to decode and feed; the built-in ones without, and for the study always.
        price: of an hour of this machine, for the projection of the study; in any currency.

    Raises:
        InputError: `out` cannot be written.
    """
    if device == "cpu":
        devices.keep_freed_memory()
    asked = grid.GridBenchmark(source, None, None, device, quick)
    words = f"{command.command_of('all', asked)}{'' if price is None else f' --price {price:g}'}"
    result: dict[str, Any] = command.described(words, device) | {"price": price, "parts": {}}
    make_folder(out.parent)
    command.write(out, result)
    size = command.sized(command.QUICK if quick else FULL, device)
    good = True
    for part in command.measures(asked):
        given = asked if part in WITH_IMAGES else replace(asked, source=None)
        measure = command.measures(given, STUDIES, LAYERS)[part]
        found: dict[str, Any] = {"command": command.command_of(part, given)}
        result["parts"][part] = found
        start = time.monotonic()
        console.print(Text(f"\n{part}", style="bold"))
        try:
            for piece in measure(size, "", torch.device(device), console):
                found |= piece
                command.write(out, result)
        except Exception as error:  # a borrowed machine's hour must not end with one part
            if isinstance(error, InputError):
                console.print(Text(str(error)), soft_wrap=True)
            else:
                traceback.print_exc()
            found["failed"] = f"{type(error).__name__}: {error}"
            good = False
        found["took"] = round(time.monotonic() - start, 1)
        command.write(out, result)
        console.print(Text(f"{part} took {found['took']:.0f} s"))
    for path in pages.write_pages([result], out):
        console.print(Text(f"written: {path}"), soft_wrap=True)
    return good
