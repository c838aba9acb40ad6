"""A contact sheet: some classes and some images of each in one image, so that a person sees what the labels mean.

Training images are left, validation images right, behind a gap; below them stand the name and the words of their
class. The same source or store always gives the same sheet.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from fasttransfer.core.errors import InputError
from fasttransfer.core.files import replace_file
from fasttransfer.pipelines.decode import ImageError, decode
from fasttransfer.pipelines.layouts import Listing
from fasttransfer.pipelines.store import PARTS, Store

CLASSES, IMAGES = 40, 8  # at most
FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}

_VAL = 2  # of IMAGES, where a class has as many
_SIDE, _GAP, _PART_GAP, _MARGIN = 96, 3, 12, 16  # pixels
_CAPTION, _HEADING = 24, 56  # pixels high
_WIDTH = 1700  # pixels of a whole sheet, about
_LEAST = 4  # images whose width a caption needs
_ROWS = 8  # before there is a second column
_INK, _FAINT, _PAPER, _BAD = "#1a1a1a", "#6b6b6b", "#ffffff", "#e9e2e2"


class _ClassRow(NamedTuple):
    """The images of one class; None for one that cannot be decoded."""

    name: str
    words: str
    counts: dict[str, int]
    tiles: dict[str, list[Image.Image | None]]


def check_name(path: Path) -> None:
    """Check that the name of a sheet says which kind of image it is, and that its folder exists.

    Raises:
        InputError: it is neither .png nor .jpg; there is no such folder.
    """
    if path.suffix.lower() not in FORMATS:
        raise InputError(f"{path}: a contact sheet is a .png or a .jpg: name it so")
    if not path.parent.is_dir():
        raise InputError(f"{path}: there is no folder {path.parent}: make it first")


def write_sheet(what: Listing | Store, path: Path) -> None:
    """Draw at most `CLASSES` classes, spread evenly over all, with at most `IMAGES` images each.

    Raises:
        InputError: the name has no known extension, or the file cannot be written.
    """
    check_name(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of odd notes in files that decode well
        image = _draw(what)
    memory = io.BytesIO()
    image.save(memory, FORMATS[path.suffix.lower()], quality=90)
    with replace_file(path) as file:
        file.write(memory.getvalue())


def _draw(what: Listing | Store) -> Image.Image:
    labels = _spread(len(what.classes), CLASSES)
    class_rows = _rows(what, labels)
    longest = max(_LEAST, *(sum(map(len, row.tiles.values())) for row in class_rows))
    across = longest * (_SIDE + _GAP) + _PART_GAP - 2 * _GAP
    columns = min(-(-len(labels) // _ROWS), _WIDTH // (across + _MARGIN))
    rows = -(-len(labels) // columns)
    width = columns * (across + _MARGIN) + _MARGIN
    image = Image.new("RGB", (width, _HEADING + rows * (_SIDE + _CAPTION) + _MARGIN), _PAPER)
    draw = ImageDraw.Draw(image)
    title, facts = _heading(what, len(labels))
    _text(draw, (_MARGIN, 12), title, _font(16), _INK, width - 2 * _MARGIN)
    _text(draw, (_MARGIN, 33), facts, _font(12), _FAINT, width - 2 * _MARGIN)
    for place, row in enumerate(class_rows):
        x = _MARGIN + place // rows * (across + _MARGIN)
        y = _HEADING + place % rows * (_SIDE + _CAPTION)
        _draw_row(image, draw, x, y, across, row)
    return image


def _draw_row(image: Image.Image, draw: ImageDraw.ImageDraw, x: int, y: int, across: int, row: _ClassRow) -> None:
    at = x
    for part in PARTS:
        for tile in row.tiles[part]:
            if tile is None:
                draw.rectangle((at, y, at + _SIDE - 1, y + _SIDE - 1), fill=_BAD)
                draw.multiline_text((at + 12, y + 32), "cannot be\ndecoded", _FAINT, _font(12))
            else:
                image.paste(tile, (at, y))
            at += _SIDE + _GAP
        at = x + across - len(row.tiles["val"]) * (_SIDE + _GAP) + _GAP
    counts = f"{row.counts['train']:,} train, {row.counts['val']:,} val"
    room = across - round(_font(12).getlength(counts)) - _PART_GAP
    used = _text(draw, (x, y + _SIDE + 3), row.name, _font(12), _INK, room)
    _text(draw, (x + used + 8, y + _SIDE + 3), row.words, _font(12), _FAINT, room - used - 8)
    draw.text((x + across, y + _SIDE + 3), counts, _FAINT, _font(12), anchor="ra")


def _rows(what: Listing | Store, labels: Sequence[int]) -> list[_ClassRow]:
    class_rows = []
    every = what.labels
    for label in labels:
        rows = {part: np.flatnonzero(every[part] == label).tolist() for part in PARTS}
        val = min(len(rows["val"]), max(_VAL, IMAGES - len(rows["train"])))
        share = {"train": IMAGES - val, "val": val}
        tiles = {
            part: [_tile(what, part, rows[part][i]) for i in _spread(len(rows[part]), share[part])] for part in PARTS
        }
        name = what.classes[label]
        counts = {part: len(rows[part]) for part in PARTS}
        class_rows.append(_ClassRow(name, what.words.get(name, ""), counts, tiles))
    return class_rows


def _tile(what: Listing | Store, part: str, row: int) -> Image.Image | None:
    """Return an image at the size of a tile; None where it cannot be decoded."""
    try:
        if isinstance(what, Listing):
            return Image.fromarray(decode(what.read(what.parts[part][row]), _SIDE))
        image = Image.fromarray(what.parts[part].gather(np.array([row]))[0])
    except (OSError, ImageError, InputError):
        return None
    return image if image.width == _SIDE else image.resize((_SIDE, _SIDE), Image.Resampling.BICUBIC)


def _heading(what: Listing | Store, drawn: int) -> tuple[str, str]:
    classes = f"{len(what.classes):,} classes" + (f" ({drawn} shown)" if drawn < len(what.classes) else "")
    facts = f"{classes}, {len(what.train):,} training and {len(what.val):,} validation images"
    if len(what.val):
        facts += " (right)"
    if isinstance(what, Store):
        return str(what.folder), f"{what.kind} store, {what.size} x {what.size}, digest {what.digest}; {facts}"
    return str(what.source), f"{what.layout}; {facts}{', held out of training' if what.held_out and what.val else ''}"


def _spread(count: int, most: int) -> list[int]:
    """Return at most `most` of the first `count` numbers, evenly apart."""
    return list(range(count)) if count <= most else [place * count // most for place in range(most)]


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    from matplotlib import get_data_path  # for its font, which has more than Latin letters

    return ImageFont.truetype(Path(get_data_path()) / "fonts/ttf/DejaVuSans.ttf", size)


def _text(
    draw: ImageDraw.ImageDraw, at: tuple[int, int], text: str, font: ImageFont.FreeTypeFont, ink: str, room: int
) -> int:
    """Write `text` on one line, cut to `room` pixels; return the pixels that it takes."""
    line = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)
    if font.getlength(line) > room:
        while line and font.getlength(f"{line}…") > room:
            line = line[:-1]
        line = f"{line.rstrip(' ,')}…" if line else ""
    draw.text(at, line, ink, font)
    return round(font.getlength(line))
