"""The page of a run of `bench all`: HTML in the look of a study's page, and the same as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fasttransfer.bench.sections import Chart, Table, sections
from fasttransfer.core.files import replace_file

WIDTH = 40  # characters of the longest bar in Markdown


def write_pages(results: Sequence[Mapping[str, Any]], out: Path) -> list[Path]:
    """Writes `out` with .html and .md in place of its ending.

    Args:
        results: of `bench all`, at most one a device; the first gives the sections.

    Raises:
        InputError: the folder cannot be written.
    """
    made = {".html": html_page(results), ".md": markdown_page(results)}
    for suffix, text in made.items():
        with replace_file(out.with_suffix(suffix)) as file:
            file.write(text.encode())
    return [out.with_suffix(suffix) for suffix in made]


def html_page(results: Sequence[Mapping[str, Any]]) -> str:
    """One file that needs neither network nor script."""
    from fasttransfer.bench.bars import drawn  # matplotlib takes a second
    from fasttransfer.report.template import element, render

    made = sections(results)
    return render(
        "speed.html.j2",
        title=_TITLE,
        facts=_facts(results[0]),
        failures=list(_failures(results[0])),
        sections=made,
        figures={c.name: element(drawn(c), c.name, c.title) for section in made for c in section.charts},
        command=results[0]["command"],
        machine=list(results[0]["machine"].items()),
    )


def markdown_page(results: Sequence[Mapping[str, Any]]) -> str:
    """The same for a terminal or a repository's browser."""
    lines = [f"# {_TITLE}", "", " · ".join(_facts(results[0])), "", f"`{results[0]['command']}`", ""]
    lines += [f"**{failure}**\n" for failure in _failures(results[0])]
    for section in sections(results):
        lines += [f"## {section.title}", "", section.lead, ""]
        lines += [f"* {note}" for note in section.notes] + [""] * bool(section.notes)
        for chart in section.charts:
            lines += [f"{chart.title}:", "", "```", *_bars(chart), "```", ""]
        for table in section.tables:
            lines += [f"**{table.caption}**", "", *_rows(table), ""]
    return "\n".join(lines)


_TITLE = "Speed, measured"


def _facts(result: Mapping[str, Any]) -> list[str]:
    on = result["machine"]
    where = on["cuda"] if result["device"] == "cuda" else f"{on['processor']}, {on['instructions']}"
    facts = [where, f"{on['cores']} cores", on["memory"], f"PyTorch {on['torch']}", f"Python {on['python']}"]
    facts += [f"fasttransfer {on['fasttransfer']}", result["when"]]
    return facts + ["quick: rough numbers"] * ("--quick" in result["command"])


def _failures(result: Mapping[str, Any]) -> Iterator[str]:
    for name, part in result["parts"].items():
        if "failed" in part:
            yield f"{name} failed: {part['failed']}"


def _bars(chart: Chart) -> list[str]:
    longest = max((len(bar.label) for bar in chart.bars), default=0)
    most = max((bar.value for bar in chart.bars), default=0) or 1.0
    return [f"{bar.label:<{longest}}  {'█' * max(1, round(WIDTH * bar.value / most))} {bar.text}" for bar in chart.bars]


def _rows(table: Table) -> list[str]:
    heads = [*table.heads, "command"]
    rows = [[name, *cells, f"`{command}`" if command else ""] for name, cells, command in table.rows]
    lines = [heads, ["---"] * len(heads), *rows]
    return ["| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines]
