"""What two results have in common, and whether one is slower than the other beyond what its samples spread.

A reading is one number of a result: the seconds of one variant, which say something on one machine only, or how many
times as long a variant takes as another of the same run, which can be held against a run elsewhere.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fasttransfer.core.errors import InputError

LEAST = 0.05  # a smaller change is none, whatever the samples say
OURS = ("native", "fasttransfer bf16", "fasttransfer raw", "fasttransfer", "packed", "all ideas", "one cohort")
_SAME_MACHINE = ("processor", "instructions", "cores", "threads", "cuda")


@dataclass(frozen=True)
class Reading:
    """One number: `half` is how far its samples reach from it, as a share of it; ratios are better when larger."""

    name: str
    value: float
    half: float
    ratio: bool


@dataclass(frozen=True)
class Change:
    """The same reading twice. `times` is how many times as good the new one is, `allowed` how little may be noise."""

    name: str
    old: float
    new: float
    times: float
    allowed: float
    ratio: bool

    @property
    def worse(self) -> bool:
        """Beyond the spread."""
        return self.times < 1 - self.allowed

    @property
    def better(self) -> bool:
        """Likewise."""
        return self.times > 1 / (1 - self.allowed)


def read(path: Path) -> dict[str, Any]:
    """A result of `bench`.

    Raises:
        InputError: no such file, or something else.
    """
    try:
        found = json.loads(path.read_text())
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({(error.strerror or str(error)).lower()})") from error
    except ValueError as error:
        raise InputError(f"{path}: is no JSON: name a file that fasttransfer bench wrote") from error
    if not isinstance(found, dict) or "machine" not in found or "command" not in found:
        raise InputError(f"{path}: is no result of fasttransfer bench: name a file that it wrote")
    return found


def readings(result: Mapping[str, Any]) -> dict[str, Reading]:
    """All readings of a result, of one part or of all, by name."""
    return {reading.name: reading for reading in _walk(parts_of(result), "")}


def parts_of(result: Mapping[str, Any]) -> dict[str, Any]:
    """Part -> what was found: a result of one part has its name in its command."""
    if "parts" in result:
        return dict(result["parts"])
    words = result["command"].split()
    return {words[2] if words[1:2] == ["bench"] else "result": result}


def merged(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Results in the form of `bench all`, one a device: parts that come again replace those before them."""
    found: dict[str, dict[str, Any]] = {}
    for result in results:
        device = result.get("device", "cpu")
        whole = found.setdefault(device, {**result, "device": device, "parts": {}, "price": None})
        if result["command"] not in whole["command"]:
            whole["command"] += f"; {result['command']}"
        whole["price"] = result.get("price") or whole["price"]
        whole["parts"] |= parts_of(result)
    return list(found.values())


def same_machine(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether absolute times can be compared."""
    ours, theirs = one["machine"], other["machine"]
    return one.get("device") == other.get("device") and all(ours.get(k) == theirs.get(k) for k in _SAME_MACHINE)


def compare(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Change]:
    """Readings that both have, as old against new: ratios always, seconds on the same machine."""
    before, after = readings(old), readings(new)
    seconds = same_machine(old, new)
    found = []
    for name, was in before.items():
        now = after.get(name)
        if now is None or not (was.ratio or seconds):
            continue
        times = now.value / was.value if was.ratio else was.value / now.value
        allowed = min(0.9, max(LEAST, was.half + now.half))
        found.append(Change(name, was.value, now.value, times, allowed, was.ratio))
    return found


def _walk(found: Any, path: str) -> Iterator[Reading]:
    if not isinstance(found, Mapping):
        return
    for key, value in found.items():
        if key == "seconds" and isinstance(value, Mapping) and value:
            yield from _of_timings(value, path)
        else:
            yield from _walk(value, f"{path}{' / ' if path else ''}{key}")


def _of_timings(timings: Mapping[str, Mapping[str, Any]], path: str) -> Iterator[Reading]:
    ours = next((name for name in OURS if name in timings), None)
    for name, timing in timings.items():
        half = (timing["most"] - timing["least"]) / 2 / timing["median"]
        yield Reading(f"{path}: {name}, seconds", timing["median"], half, False)
        if ours is not None and name != ours:
            samples = ratios(timing, timings[ours])
            middle = statistics.median(samples)
            yield Reading(f"{path}: {name} / {ours}", middle, (max(samples) - min(samples)) / 2 / middle, True)


def ratios(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> list[float]:
    """Round by round, how many times as long theirs take; from the ends of the samples where a result has no more."""
    if theirs.get("samples") and len(theirs["samples"]) == len(ours.get("samples", ())):
        return [a / b for a, b in zip(theirs["samples"], ours["samples"], strict=True)]
    pairs = ((theirs["least"], ours["most"]), (theirs["median"], ours["median"]), (theirs["most"], ours["least"]))
    return [a / b for a, b in pairs]
