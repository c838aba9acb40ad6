"""Reads a page as a strict browser would, and notes what tests ask about it."""

from __future__ import annotations

import re
from html.parser import HTMLParser

VOID = {"meta", "br", "hr", "img", "input", "link"}


class Reader(HTMLParser):
    """Checks that elements close in order; collects ids, links and the text people read."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.tags: list[str] = []
        self.links: list[str] = []
        self.loads: list[str] = []
        self.words: list[str] = []
        self.heads: list[str | None] = []  # the scope of every head of a table
        self.images: list[str] = []  # what is read aloud of every figure
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        given = dict(attrs)
        if tag == "th":
            self.heads.append(given.get("scope"))
        if tag == "svg":
            assert given.get("role") == "img"
            self.images.append(given.get("aria-label") or "")
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            elif name == "href" and tag == "a":
                self.links.append(value or "")
            elif name in ("src", "href", "xlink:href", "data", "action"):
                self.loads.append(value or "")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"style", "script"} & set(self.open):
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))


def check_stands_alone(text: str) -> Reader:
    """A page closes what it opens, has each id once and loads nothing; its tables have heads, its figures words."""
    read = Reader(text)
    assert len(read.ids) == len(set(read.ids))
    assert not {"link", "img", "iframe", "object"} & set(read.tags)
    assert read.tags.count("script") == 1 and "<script>" in text  # its own, inline
    for loaded in read.loads:
        assert loaded.startswith(("#", "data:image/png;base64,")), loaded
    assert "@import" not in text
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", text))
    assert all(link.removeprefix("#") in read.ids for link in read.links if link.startswith("#"))
    assert all(scope in ("row", "col") for scope in read.heads)
    assert all(read.images) and len(set(read.images)) == len(read.images)
    return read
