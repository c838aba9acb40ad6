"""The pages in a browser: nothing is complained about, nothing sticks out of a phone, tables sort, all is readable."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import browser
import pytest

from fasttransfer.report.page import page
from fasttransfer.study.records import StudyResults

# The contrast between what is written and what is behind it, for every piece of text outside of figures.
CONTRASTS = """
(() => {
  const parse = colour => colour.match(/[\\d.]+/g).map(Number);
  const linear = v => v <= 10 ? v / 255 / 12.92 : ((v / 255 + .055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => .2126 * linear(r) + .7152 * linear(g) + .0722 * linear(b);
  const behind = element => {
    for (; element; element = element.parentElement) {
      const colour = parse(getComputedStyle(element).backgroundColor);
      if (colour.length === 3 || colour[3] > 0) return colour;
    }
    return [255, 255, 255];
  };
  const found = [];
  const texts = document.createTreeWalker(document.querySelector("main"), NodeFilter.SHOW_TEXT);
  for (let node; node = texts.nextNode();) {
    const element = node.parentElement;
    if (!node.textContent.trim() || element.closest("svg, .line")) continue;
    const [a, b] = [light(parse(getComputedStyle(element).color)), light(behind(element))].sort((x, y) => y - x);
    if ((a + .05) / (b + .05) < 4.5) found.push([node.textContent.trim(), (a + .05) / (b + .05)]);
  }
  return found;
})()
"""
OPEN_ALL = "document.querySelectorAll('details').forEach(part => part.open = true)"
# Text of figures that is drawn smaller on the screen than 9 points of a page of usual size.
SMALL = """
[...document.querySelectorAll("figure svg text")].map(text => {
  const {a, b} = text.getScreenCTM();  // some of it is written upwards
  const scale = Math.hypot(a, b);
  return [text.textContent, parseFloat(getComputedStyle(text).fontSize) * scale];
}).filter(([, size]) => size < 9)
"""


@pytest.fixture(scope="module")
def chromium() -> Iterator[browser.Browser]:
    program = browser.find()
    if program is None:
        pytest.skip("no Chromium on this machine")
    with browser.Browser(program) as found:
        yield found


@pytest.fixture(scope="module", params=["study", "many cuts", "paper"])
def index(
    request: pytest.FixtureRequest,
    study: Callable[..., StudyResults],
    papers_page: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    path = tmp_path_factory.mktemp("page") / "index.html"
    deep = ("stem", *(f"layer{i}.{j}" for i in range(4) for j in range(8)), "head")
    made = {
        "study": lambda: page(study(seeds=(0, 1), diverged=["R7A"], done=0.98)),
        "many cuts": lambda: page(study(stages=deep)),
        "paper": lambda: papers_page,
    }
    path.write_text(made[request.param](), encoding="utf-8")
    return path


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_a_page_is_readable(chromium: browser.Browser, index: Path, width: int, dark: bool) -> None:
    chromium.open(index, width=width, dark=dark)
    assert chromium.complaints == []
    chromium.run(OPEN_ALL)
    assert chromium.run("document.documentElement.scrollWidth") <= width
    assert chromium.run(CONTRASTS) == []
    assert chromium.run(SMALL) == []
    background = chromium.run("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(246, 247, 249)") != dark


def test_tables_sort_and_read_without_script(
    chromium: browser.Browser, study: Callable[..., StudyResults], tmp_path: Path
) -> None:
    index = tmp_path / "index.html"
    index.write_text(page(study(("B",), (0,), treatments=["transfer"])), encoding="utf-8")
    last = "[...document.querySelectorAll('#networks tbody tr')].map(row => row.cells[5].textContent)"
    chromium.open(index, script=False)
    assert chromium.complaints == []
    chromium.open(index)
    as_written = chromium.run(last)
    click = "document.querySelectorAll('#networks thead button')[5].click()"
    chromium.run(click)
    assert chromium.run(last) == sorted(as_written, key=float) != as_written
    chromium.run(click)
    assert chromium.run(last) == sorted(as_written, key=float, reverse=True)
    assert chromium.run("document.querySelector('#networks [aria-sort]').getAttribute('aria-sort')") == "descending"
    assert chromium.complaints == []
