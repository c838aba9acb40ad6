"""The sections of the page of a run of `bench all`: tables with the command beside every number, bars, assumptions.

A goal that has not been measured on a GPU says so and nothing else. The file is long because each section has its own
prose.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fasttransfer.bench import ablation, projection, targets
from fasttransfer.bench.cells import FORWARD, TRAIN
from fasttransfer.bench.parts import UNITS
from fasttransfer.bench.targets import NOT_YET, Book, ratio
from fasttransfer.study.paper import IMAGES_PER_SECOND

WIDTH = 40  # characters of the longest bar in Markdown
ASSUMED = (
    "Every network takes as many steps of 256 images as its record says (450,000; 200,000 where the training set was "
    "reduced), with 1000 outputs and a validation every 1,000 steps on all validation images of its task.",
    "148 networks have records; the other {missing} count as bases on half of the classes, one by one.",
    "An image costs what it cost in a step of {batch} images ({cells}): each cell its trained stages, each source "
    "its frozen stages, once for all cells of one split and target that start behind them.",
    "Images come from a prepared store in memory at the rate that was measured ({feed}), once for each mean image "
    "that is subtracted, while nothing is trained.",
    "One machine does it all, one cohort after another; checkpoints, reports and making the store are not in it.",
)


@dataclass(frozen=True)
class Bar:
    """One bar: `text` is its number as it is written; ours are drawn in colour. Ends of the spread, if there is one."""

    label: str
    value: float
    text: str
    ours: bool
    least: float | None = None
    most: float | None = None


@dataclass(frozen=True)
class Chart:
    """Bars below each other."""

    name: str
    title: str
    bars: Sequence[Bar]


@dataclass(frozen=True)
class Table:
    """A table: `rows` are what stands in front, the cells, and the command that measures the row."""

    caption: str
    heads: Sequence[str]
    rows: Sequence[tuple[str, Sequence[str], str]]


@dataclass(frozen=True)
class Section:
    """A part of the page; `notes` stand below its lead."""

    id: str
    title: str
    lead: str
    charts: Sequence[Chart] = ()
    tables: Sequence[Table] = ()
    notes: Sequence[str] = ()


def sections(results: Sequence[Mapping[str, Any]]) -> list[Section]:
    """What the page says, in order; parts that were not measured are left out."""
    result = results[0]
    book = targets.book(result)
    makers = (_steps, _kernels, _cells, _data, _features, _cached, _ablation, _cohorts, _grid)
    made = [_goals(results), _ceilings(book), *(make(book) for make in makers), _projected(book, result.get("price"))]
    return [section for section in made if section is not None]


def _spread(timing: Mapping[str, float]) -> str:
    """How far the samples are from their median, in per cent of it."""
    return f"-{1 - timing['least'] / timing['median']:.0%} +{timing['most'] / timing['median'] - 1:.0%}"


def _duration(seconds: float) -> str:
    return f"{seconds * 1e3:,.2f} ms" if seconds >= 1e-3 else f"{seconds * 1e6:,.1f} us"


def _ceiling(book: Book, name: str) -> float | None:
    found = book.get("ceilings", {}).get("a second", {}).get(name)
    return None if found is None else float(found)


def _share(part: float, ceiling: float | None) -> str:
    return "" if ceiling is None else f"{part / ceiling:.0%}"


# -- the sections ---------------------------------------------------------------------------------------------------


def _goals(results: Sequence[Mapping[str, Any]]) -> Section:
    books = {result["device"]: targets.book(result) for result in results}
    rows: list[tuple[str, Sequence[str], str]] = []
    notes = []
    for goal in targets.TARGETS:
        cells, command = [goal.against], ""
        for device, target in (("cpu", goal.cpu), ("cuda", goal.gpu)):
            found = goal.of(books[device], device == "cuda") if device in books else None
            cells += [target, NOT_YET if found is None else found.text + {True: " ✓", False: " ✗", None: ""}[found.met]]
            if found is not None:
                command = found.command
                if found.met is False and found.why and device == "cpu":
                    notes.append(f"Missed: {goal.what}: {found.why}.")
        rows.append((goal.what, cells, command))
    heads = ("what", "against", "target, CPU", "measured", "target, GPU", "measured")
    lead = "What this project set out to reach, and what was measured: each ratio within one run on one machine."
    return Section("goals", "The goals", lead, tables=[Table("Goals", heads, rows)], notes=notes)


def _ceilings(book: Book) -> Section | None:
    part = book.get("ceilings", {})
    if "a second" not in part:
        return None
    rows = []
    for name, rate in part["a second"].items():
        scale, unit = UNITS[part["unit"][name]]
        rows.append((name, (f"{rate / scale:,.1f} {unit}", _spread(part["seconds"][name])), part["command"]))
    lead = "What the machine can do at the most, measured: other numbers are shares of these."
    return Section("ceilings", "Ceilings", lead, tables=[Table("Ceilings", ("what", "a second", "spread"), rows)])


def _steps(book: Book) -> Section | None:
    part = book.get("step", {})
    charts, tables, notes = [], [], []
    for geometry in ("caffenet", "caffenet-mini"):
        step = part.get(geometry)
        if step is None:
            continue
        seconds, batch = step["seconds"], step["batch"]
        bars, rows = [], []
        for name, timing in seconds.items():
            rates = [batch / timing[key] for key in ("median", "most", "least")]
            bars.append(Bar(name, rates[0], f"{rates[0]:,.0f}", name.startswith("fasttransfer"), rates[1], rates[2]))
            precision = "fp32" if "fp32" in name else "bf16"
            flops = step["work"][precision]["flops"] / timing["median"]
            cells = (
                f"{rates[0]:,.0f}",
                _spread(timing),
                f"{ratio(seconds, name, targets.STEP):.2f}x",
                f"{flops / 1e9:,.0f}",
                _share(flops, _ceiling(book, f"convolutions, {precision}")),
            )
            rows.append((name, cells, f"{part['command']} --only {geometry}"))
        charts.append(Chart(f"step-{geometry}", f"{geometry}, batch {batch}: images per second", bars))
        heads = ("variant", "images/s", "spread", "takes", "GFLOP/s", "of the convolutions' ceiling")
        tables.append(Table(f"{geometry}: forward, backward and update, batch {batch}", heads, rows))
        command = f"{part['command']} --only {geometry}"
        top = [(row["operator"], (f"{row['ms']:,.1f}", str(row["calls"])), command) for row in step["profile"][:8]]
        tables.append(Table(f"{geometry}: where the bf16 step's time goes", ("operator", "ms per step", "calls"), top))
        notes += _bounds(book, geometry, step)
    lead = "A training step against PyTorch's usual forms and against its convolutions and matrix products alone."
    return Section("step", "The training step", lead, charts, tables, notes) if tables else None


def _bounds(book: Book, geometry: str, step: Mapping[str, Any]) -> list[str]:
    work, median = step["work"]["bf16"], step["seconds"][targets.STEP]["median"]
    products, copied = (_ceiling(book, name) for name in ("convolutions, bf16", "copy"))
    if products is None or copied is None:
        return []
    arithmetic, memory = work["flops"] / products, work["bytes"] / copied
    return [
        f"{geometry}: {work['flops'] / 1e9:,.0f} GFLOP, with those that a gradient of zero needs not, and at least "
        f"{work['bytes'] / 1e9:.2f} GB per step would take {_duration(arithmetic)} and {_duration(memory)} at the "
        f"ceilings; it takes {_duration(median)}."
    ]


def _kernels(book: Book) -> Section | None:
    part = book.get("kernels", {})
    rows, bars = [], []
    for label, case in part.get("cases", {}).items():
        seconds = case["seconds"]
        native = seconds["native"]
        others = {name: ratio(seconds, name, "native") for name in seconds if name not in ("native", "copy")}
        bars.append(Bar(label, others["eager"], f"{others['eager']:.1f}x", True))
        cells = (
            _duration(native["median"]),
            _spread(native),
            f"{case['least_bytes'] / native['median'] / 1e9:,.1f}",
            _of_ceiling(book, label, case),
            ", ".join(f"{found:.2f}x {name}" for name, found in others.items()),
        )
        rows.append((label, cells, f'{part["command"]} --only "{label}"'))
    if not rows:
        return None
    heads = ("case", "takes", "spread", "GB/s of least traffic", "of its ceiling", "others take")
    lead = "Each native operator beside the same in PyTorch, and beside a plain copy of the bytes it has to move."
    charts = [
        Chart(f"kernels-{dtype}", f"How many times as long PyTorch takes, eager, {dtype}", chosen)
        for dtype in ("bfloat16", "float32")
        if (chosen := [bar for bar in bars if f" {dtype} " in bar.label])
    ]
    return Section("kernels", "Operators", lead, charts, [Table("Operators", heads, rows)])


def _of_ceiling(book: Book, label: str, case: Mapping[str, Any]) -> str:
    """A share of the convolutions' rate where there are any, else of a copy's."""
    precision = "fp32" if "float32" in label else "bf16"
    rate = _ceiling(book, f"convolutions, {precision}")
    if case.get("flops") and rate is not None:
        return f"{case['flops'] / case['seconds']['native']['median'] / rate:.0%} of convolutions"
    return f"{case['of_copy']:.0%} of a copy"


def _cells(book: Book) -> Section | None:
    part = book.get("cells", {})
    if "seconds" not in part:
        return None
    seconds, batch = part["seconds"], part["batch"]
    rows, bars = [], []
    for n, then in enumerate(IMAGES_PER_SECOND):
        trained = seconds[TRAIN.format(n)]
        forward = seconds[FORWARD.format(n)]["median"] if n else 0.0
        rate = batch / (trained["median"] + forward)
        bars.append(Bar(f"n = {n}", rate, f"{rate:,.0f}", True))
        flops = part["work"][TRAIN.format(n)]["flops"] / trained["median"]
        cells = (
            f"{rate:,.0f}",
            f"{batch / trained['median']:,.0f}",
            f"{batch / forward:,.0f}" if n else "",
            _spread(trained),
            _share(flops, _ceiling(book, "convolutions, bf16")) if n < 5 else "",
            str(then),
        )
        rows.append((str(n), cells, part["command"]))
    heads = (
        "n", "a cell alone", "its stages", "its prefix", "spread", "of the convolutions' ceiling", "K20, 2014",
    )  # fmt: skip
    lead = f"Images a second of a cell whose first n layers are frozen, bf16, batch {batch}, and of the paper's GPU."
    if "cohort" in part:
        together = part["cohort"]["seconds"]["step"]["median"]
        lead += f" {part['cohort']['cells']} cells on one stream: {batch / together:,.0f} images per second each."
    for size, step in part.get("larger", {}).items():
        lead += f" A step of {size}: {int(size) / step['seconds']['step']['median']:,.0f} images per second."
    chart = Chart("cells", "Images a second of a frozen cell alone", bars)
    return Section("cells", "Cells", lead, [chart], [Table("Frozen cells", heads, rows)])


def _data(book: Book) -> Section | None:
    part = book.get("data", {})
    charts, tables = [], []
    decoding = [rate for name, rate in book.get("ceilings", {}).get("a second", {}).items() if "decoding" in name]
    for step in ("decode", "resize", "prepare", "feed"):
        for cores, found in part.get(step, {}).items():
            rates, seconds = found["images per second"], found["seconds"]
            rows, bars = [], []
            for name, rate in rates.items():
                least, most = (rate * seconds[name]["median"] / seconds[name][end] for end in ("most", "least"))
                ours = name.startswith(("fasttransfer", "prepare"))
                bars.append(Bar(name, rate, f"{rate:,.0f}", ours, least, most))
                against = found["against"]
                shares = [f"{against[name]:.2f}x"]
                if step == "feed":
                    shares.append(f"{rate / rates['copy']:.0%} of a copy")
                elif decoding and not cores.startswith("1 "):
                    shares.append(f"{rate / max(decoding):.0%} of the fastest decoder")
                else:
                    shares.append("")
                rows.append(
                    (name, (f"{rate:,.0f}", _spread(seconds[name]), *shares), f"{part['command']} --only {step}")
                )
            if step in ("prepare", "feed"):
                charts.append(Chart(f"data-{step}-{cores[0]}", f"{step}, {cores}: images per second", bars))
            heads = ("way", "images/s", "spread", f"against {found['against']['what']}", "ceiling")
            tables.append(Table(f"{step}, {cores}", heads, rows))
    if not tables:
        return None
    facts = part["images"]
    lead = (
        f"The same {facts['images']:,} images ({facts['source']}, {facts['bytes'] / 1e3:,.0f} kB each) decoded, "
        "prepared and fed beside what is commonly done."
    )
    return Section("data", "Images", lead, charts, tables)


def _features(book: Book) -> Section | None:
    part = book.get("features", {})
    if "pack" not in part:
        return None
    rows = []
    for way in ("pack", "unpack"):
        timing = part[way]["seconds"]["packed"]
        rate = part["dense_bytes"] / timing["median"] / 1e9
        rows.append((way, (f"{rate:.1f} GB/s", _spread(timing), f"{part[way]['of_copy']:.0%}"), part["command"]))
    lead = (
        f"Features of the paper's cut 5, {part['not_zero']:.0%} of them not zero, packed to {part['of_dense']:.0%} of "
        "their bytes without loss, on one core."
    )
    heads = ("way", "dense features per second", "spread", "of a copy")
    return Section("features", "Frozen features", lead, tables=[Table("Features", heads, rows)])


def _ablation(book: Book) -> Section | None:
    part = book.get("ablation", {})
    charts, rows = [], []
    for group, ideas in ablation.IDEAS.items():
        if group not in part:
            continue
        seconds, batch = part[group]["seconds"], part[group]["batch"]
        whole = seconds[ablation.WHOLE]
        command = f"{part['command']} --only {group}"
        rows.append((f"{group}: {ablation.WHOLE}", (_duration(whole["median"]), "1", _spread(whole), ""), command))
        bars = []
        for idea in ideas:
            timing = seconds.get(idea.name)
            if timing is None:
                rows.append((f"{group}: without {idea.name}", ("", "", "", "only a GPU uses it"), command))
                continue
            taken = timing["median"] / whole["median"]
            bars.append(Bar(f"without {idea.name}", taken, f"{taken:.2f}x", False))
            cells = (_duration(timing["median"]), f"{taken:.2f}x", _spread(timing), idea.instead)
            rows.append((f"{group}: without {idea.name}", cells, command))
        if ablation.COMPILED in seconds:
            timing = seconds[ablation.COMPILED]
            taken = timing["median"] / whole["median"]
            cells = (_duration(timing["median"]), f"{taken:.2f}x", _spread(timing), "added; a study does without it")
            rows.append((f"{group}: {ablation.COMPILED}", cells, command))
        bars.insert(0, Bar(ablation.WHOLE, 1.0, "1", True))
        charts.append(Chart(f"ablation-{group}", f"{group}, batch {batch}: how many times as long it takes", bars))
    if not rows:
        return None
    lead = "The step of the paper's network with each idea taken away in turn: what each is worth on this machine."
    heads = ("variant", "a step", "takes", "spread", "instead")
    return Section("ablation", "What each idea is worth", lead, charts, [Table("Ideas", heads, rows)])


def _grid(book: Book) -> Section | None:
    tables, notes = [], []
    for name, title in (("grid", "The default study"), ("both ways", "The same, and as one would write it in PyTorch")):
        part = book.get(name, {})
        rows = []
        for way in ("cohort", "plain"):
            if way in part:
                found = part[way]
                shares = ", ".join(f"{share:.0%} of {limit}" for limit, share in found.get("of_limit", {}).items())
                cells = (f"{found['wall_seconds']:,.0f}", f"{found['images_per_second']:,.0f}", shares)
                rows.append((way, cells, part["command"]))
        if rows:
            tables.append(Table(title, ("way", "seconds", "images/s", "of the limit"), rows))
        if "plain_over_cohort" in part:
            told = f"Plain PyTorch takes {part['plain_over_cohort']:.1f} times as long.{_beside(part)}"
            notes.append(f"{told}")
    if not tables:
        return None
    lead = "A whole study, from the image files to the page: networks trained on shared streams."
    return Section("grid", "A whole study", lead, tables=tables, notes=notes)


def _cached(book: Book) -> Section | None:
    part = book.get("cached", {})
    rows = [
        (n, (f"{found['live']:,.0f}", f"{found['cached']:,.0f}", f"{found['ratio']:.1f}x"), part["command"])
        for n, found in part.get("n", {}).items()
    ]
    if not rows:
        return None
    lead = f"Images a second of a frozen cell alone, live and from the cache of features.{_beside(part)}"
    heads = ("n", "live", "from the cache", "gain")
    return Section("cached", "Features from the cache", lead, tables=[Table("Frozen cells", heads, rows)])


def _cohorts(book: Book) -> Section | None:
    part = book.get("cohorts", {})
    rows = [
        (case, (f"{found['gain']:.2f}x", f"{found['arithmetic_allows']:.2f}x", str(found["batch"])), part["command"])
        for case, found in part.get("frozen cells", {}).items()
    ]
    if not rows:
        return None
    lead = f"Seven frozen cells of one source on one stream, against seven cohorts of one.{_beside(part)}"
    heads = ("network", "gain", "arithmetic allows", "batch")
    return Section("cohorts", "Cells together", lead, tables=[Table("Seven frozen cells", heads, rows)])


def _beside(part: Mapping[str, Any]) -> str:
    """Of what was not measured in this run: when and where it was."""
    if "beside" not in part:
        return ""
    on = part["machine"]
    when = f"on {part['when']}, " if "when" in part else ""
    return f" Not of this run: bench/results/{part['beside']}, {when}{on['processor']}, {on['cores']} cores."


def _projected(book: Book, price: float | None) -> Section | None:
    rates = projection.rates_of(book)
    if rates is None:
        return None
    found = projection.project(projection.papers_networks(), rates)
    rows = []
    for name, seconds in (("on shared streams", found.together), ("each network alone", found.alone)):
        days = seconds / 86400
        cost = "no --price given" if price is None else f"{price * seconds / 3600:,.0f}"
        cells = (f"{days:,.1f}" if days < 100 else f"{days:,.0f}", f"{projection.K20_DAYS / days:.3g}x", cost)
        rows.append((name, cells, book["cells"]["command"]))
    bars = [Bar(name, float(cells[0].replace(",", "")), f"{cells[0]} days", True) for name, cells, _ in rows]
    bars.append(Bar("the paper, K20s", projection.K20_DAYS, f"{projection.K20_DAYS:,} K20-days", False))
    rows.append(("the paper, K20s", (f"{projection.K20_DAYS:,}", "1", ""), ""))
    feed = "not measured: counted as nothing"
    if rates.feed:
        feed = f"{1 / rates.feed:,.0f} a second, {book['data']['command']} --only feed"
    notes = [
        note.format(
            missing=projection.NETWORKS - 148,
            batch=book["cells"]["batch"],
            cells=book["cells"]["command"],
            feed=feed,
        )
        for note in ASSUMED
    ]
    lead = f"All {projection.NETWORKS} networks of the paper at the rates of this machine, next to its K20-days."
    heads = ("how", "days", "against the K20s", "cost" + ("" if price is None else f", at {price:g} an hour"))
    chart = Chart("projected", "Days for all networks", bars)
    return Section("projection", "The whole study, projected", lead, [chart], [Table("Projection", heads, rows)], notes)
