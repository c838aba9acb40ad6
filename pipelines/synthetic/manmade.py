"""The man-made side: walls, wheels, signs, bridges, cloth, boards.

Each function turns a sketch into an image (3, n, n); `sketch` has the legend. The file is long because no two of its
sixteen classes share more than a line.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from fasttransfer.pipelines.synthetic.sketch import (
    Array,
    Plane,
    Sketch,
    cell_value,
    comb,
    edge,
    inked,
    modulo,
    norm,
    stripes,
    turned,
)


def _box(u: Array, v: Array, half_u: float, half_v: float, corner: float = 0.0) -> Array:
    """Return the distance to a box with rounded corners, negative inside."""
    du, dv = np.abs(u) - (half_u - corner), np.abs(v) - (half_v - corner)
    return norm(np.maximum(du, 0), np.maximum(dv, 0)) + np.minimum(np.maximum(du, dv), 0) - np.float32(corner)


def _cell(w: Array) -> tuple[Array, Array]:
    """Return the number of the unit cell, and the place in it from -0.5 to 0.5."""
    number = np.floor(w)
    return number, w - number - np.float32(0.5)


def brick_wall(s: Sketch) -> Array:
    p = s.look((2.2, 4.8), turn=0.4)
    row, v = _cell(p.v)
    long = s.between(1.7, 2.8)
    column, u = _cell(p.u / long + row * (0.5 if s.chance(0.7) else 0.33))
    mortar = s.between(0.03, 0.1)
    rough = 0.05 * (s.field(20, 2) - 0.5)
    mask = edge(np.maximum(np.abs(u * long) - long / 2, np.abs(v) - 0.5) + mortar + rough, 0.06)
    tint = 0.5 + s.between(0.2, 0.9) * (cell_value(s.table(), column, row) - 0.5)
    body = s.ramp(np.clip(tint, 0, 1), s.palette[1:4])
    s.shade(body, s.field(24, 2), s.between(0.1, 0.35))
    image = s.flat(s.tone(4 if s.chance(0.6) else 0))
    s.paint(image, mask, body)
    return image


def floor_tiles(s: Sketch) -> Array:
    p = s.look((1.4, 3.2), turn=0.8, lean=0.2)
    table = s.table()
    kind = s.whole(0, 2)
    if kind == 0:  # squares, chequered or mixed
        (column, u), (row, v) = _cell(p.u), _cell(p.v)
        gap = 0.5 - np.maximum(np.abs(u), np.abs(v))
        tint = modulo(column + row, 2) if s.chance(0.6) else cell_value(table, column, row)
    elif kind == 1:  # diamonds set between squares
        (column, u), (row, v) = _cell(p.u), _cell(p.v)
        diamond = np.abs(u) + np.abs(v) - 0.5
        gap = np.abs(diamond) * 0.7
        tint = np.where(diamond < 0, 0.15, 0.8) + 0.2 * (cell_value(table, column, row) - 0.5)
    else:  # hexagons: two lattices of long boxes, each pixel belongs to the nearer centre
        high = math.sqrt(3)
        (column, u), (row, v) = _cell(p.u), _cell(p.v / high)
        (column2, u2), (row2, v2) = _cell(p.u + 0.5), _cell(p.v / high + 0.5)
        first = np.square(u) + 3 * np.square(v) < np.square(u2) + 3 * np.square(v2)
        u, v = np.abs(np.where(first, u, u2)), np.abs(np.where(first, v, v2)) * high
        gap = 0.5 - np.maximum(u, 0.5 * u + 0.5 * high * v)
        tint = cell_value(table, np.where(first, column, column2), 2 * np.where(first, row, row2) + first)
    if kind == 0 and s.chance(0.5):
        inlay = norm(u, v) - s.between(0.2, 0.42)
        tint = np.where(inlay < 0, 1 - tint, tint)
    first = s.whole(0, 2)
    image = s.ramp(np.clip(tint, 0, 1).astype(np.float32), np.stack([s.tone(first), s.tone(s.whole(first + 2, 4))]))
    s.shade(image, s.field(8, 3), s.between(0.05, 0.3))
    s.paint(image, edge(gap - s.between(0.01, 0.06), 0.05), s.tone(s.whole(0, 1) * 4))
    return image


def window_facade(s: Sketch) -> Array:
    p = s.look((1.6, 3.6), turn=0.25, lean=0.18)
    wide, tall = s.between(0.9, 1.7), s.between(1.0, 1.8)
    column, u = _cell(p.u / wide)
    row, v = _cell(p.v / tall)
    u, v = u * wide, v * tall
    half_u, half_v = wide * s.between(0.25, 0.42), tall * s.between(0.25, 0.4)
    box = _box(u, v, half_u, half_v)
    image = s.flat(s.tone(s.whole(1, 4)))
    s.shade(image, s.field(20, 2), s.between(0, 0.2))
    lit = cell_value(s.table(), column, row)
    glass = 0.15 + 0.8 * (lit > s.between(0.4, 1.0)).astype(np.float32) + 0.25 * (v / tall) + 0.15 * lit
    s.paint(image, edge(box - s.between(0.03, 0.1), 0.04), s.tone(4 if s.chance(0.7) else 0))
    s.paint(image, edge(box, 0.04), s.ramp(np.clip(glass, 0, 1), s.other[[0, 1, 2, 4]]))
    bars = np.abs(u) if s.chance(0.5) else np.abs(np.abs(u) - half_u / 3)
    if s.chance(0.5):
        bars = np.minimum(bars, np.abs(v + half_v * s.between(0, 0.5)))
    s.paint(image, edge(bars - 0.03, 0.05) * edge(box, 0.04), s.tone(4))
    if s.chance(0.4):
        s.paint(image, edge(np.abs(v - half_v - 0.08) - 0.05, 0.04), s.tone(0), 0.6)
    if s.chance(0.35):  # the edge of the house, sky beyond
        corner = s.x + s.between(-0.2, 0.2) * s.y + s.between(0.3, 0.9)
        s.paint(image, edge(corner if s.chance(0.5) else s.between(1.2, 1.8) - corner, 0.05), s.backdrop())
    return image


def keyboard(s: Sketch) -> Array:
    p = s.look((1.9, 3.8), turn=0.5, lean=0.2)
    row, v = _cell(p.v)
    shifted = p.u + 0.37 * row
    bar = row == s.whole(0, 2)  # the row with the long space key
    column, u = _cell(np.where(bar, shifted / 4, shifted))
    half = np.where(bar, 2.0, 0.5).astype(np.float32)
    u = u * half * 2
    rim = s.between(0.05, 0.12)
    corner = s.between(0.05, 0.2)
    box = _box(np.maximum(np.abs(u) - (half - 0.5), 0), v, 0.5 - rim, 0.5 - rim, corner)
    dark = s.chance(0.5)
    image = s.flat(s.tone(0 if dark or s.chance(0.5) else 3))
    body = s.ramp(np.clip(0.5 - 0.8 * v, 0, 1), s.palette[[1, 2]] if dark else s.palette[[3, 4]])
    special = cell_value(s.table(), column, row) > s.between(0.8, 1.0)
    s.paint(body, special.astype(np.float32), s.other[2])
    s.paint(image, edge(box, 0.05), body)
    s.paint(image, edge(np.abs(box + 0.1) - 0.02, 0.05), s.tone(0), 0.35)
    letters = s.field(s.size / 5, 1) > 0.52
    spot = edge(np.maximum(np.abs(u + 0.1) - 0.13, np.abs(v + 0.08) - 0.15), 0.03) * ~bar
    s.paint(image, spot * letters, s.tone(4 if dark else 0))
    return image


def gear(s: Sketch) -> Array:
    image = s.backdrop()
    for _ in range(s.whole(1, 2)):
        p = s.look((1.0, 1.7), turn=math.pi, shift=0.4)
        far, angle = norm(p.u, p.v), np.arctan2(p.v, p.u)
        teeth, tooth = s.whole(8, 20), s.between(0.1, 0.22)
        wave = np.clip(np.cos(angle * teeth) * s.between(1.5, 4), -1, 1)
        outline = far - (1 - tooth / 2 + tooth / 2 * wave)
        mask = edge(outline, 0.04)
        hole = s.between(0.12, 0.3)
        mask = mask * edge(hole - far, 0.04)
        if s.chance(0.6):  # windows in the disc
            count = s.whole(3, 7)
            place = modulo(angle * count / (2 * math.pi), 1) - 0.5
            window = _box(
                place * 2 * math.pi / count * 0.55, far - 0.53, s.between(0.1, 0.18), s.between(0.1, 0.16), 0.08
            )
            mask = mask * edge(-window, 0.04)
        sheen = 0.5 + 0.3 * np.cos(angle * 2 + s.between(0, 6)) + 0.2 * np.cos(far * s.between(6, 25))
        body = s.ramp(np.clip(sheen, 0, 1), s.palette[1:4])
        s.paint(body, edge(np.abs(outline + 0.03) - 0.02, 0.04), s.tone(4), 0.6)
        s.paint(image, mask, body)
    return image


def spoked_wheel(s: Sketch) -> Array:
    image = s.backdrop()
    p = s.look((1.0, 1.7), turn=math.pi, shift=0.35)
    far, angle = norm(p.u, p.v), np.arctan2(p.v, p.u)
    tyre = s.between(0.09, 0.18)
    if s.chance(0.3):
        s.paint(image, edge(far - 1, 0.04), s.tone(s.whole(1, 3)), s.between(0.5, 1))
    spokes = s.whole(6, 18)
    cross = s.between(0, 1.2) if s.chance(0.4) else 0.0  # laced spokes miss the hub's centre
    thin = s.between(0.04, 0.07) if spokes > 9 else s.between(0.06, 0.12)
    ink = np.zeros_like(far)
    for way in (-1, 1) if cross else (1,):
        place = comb(angle * spokes / (2 * math.pi) + way * cross * (1 - far))
        ink = np.maximum(ink, edge(place * (2 * math.pi / spokes) * far - thin / 2, 0.04))
    s.paint(image, ink * edge(far - 0.95, 0.03), s.tone(s.whole(3, 4) if s.chance(0.6) else 1))
    s.paint(image, edge(np.abs(far - 1 + 1.4 * tyre) - tyre * 0.5, 0.04), s.tone(s.whole(2, 4)))
    s.paint(image, edge(np.abs(far - 1 + tyre / 2) - tyre / 2, 0.04), s.tone(0 if s.chance(0.7) else 2))
    s.paint(image, edge(far - s.between(0.08, 0.25), 0.04), s.tone(s.whole(0, 4)))
    return image


def clock(s: Sketch) -> Array:
    image = s.backdrop()
    p = s.look((1.0, 1.7), turn=0.6, shift=0.35)
    square = s.chance(0.2)
    far, angle = norm(p.u, p.v), np.arctan2(p.v, p.u)
    outline = _box(p.u, p.v, 1, 1, 0.2) + 1 if square else far
    rim = s.between(0.05, 0.18)
    dark = s.chance(0.3)
    s.paint(image, edge(outline - 1, 0.04), s.tone(s.whole(0, 3)))
    s.paint(image, edge(outline - (1 - rim), 0.03), s.tone(0 if dark else 4))
    ink = s.tone(4 if dark else 0)
    marks = 12 if s.chance(0.75) else 60
    place = comb(angle * marks / (2 * math.pi)) * (2 * math.pi / marks) * far
    length = s.between(0.08, 0.2)
    tick = np.maximum(place - s.between(0.02, 0.05), np.abs(outline - (0.92 - rim - length / 2)) - length / 2)
    s.paint(image, edge(tick, 0.03), ink)
    for reach, thick in ((s.between(0.4, 0.55), 0.06), (s.between(0.62, 0.8), 0.04), (0.8, 0.015))[: s.whole(2, 3)]:
        turn = s.between(0, 2 * math.pi)
        along, across = turned(p.u, p.v, turn)
        hand = np.maximum(np.abs(across) - thick, np.abs(along - reach / 2 + 0.08) - reach / 2 - 0.08)
        s.paint(image, edge(hand, 0.03), ink if thick > 0.02 or s.chance(0.5) else s.tone(2))
    s.paint(image, edge(far - 0.07, 0.03), ink)
    return image


def road_sign(s: Sketch) -> Array:
    image = s.backdrop()
    p = s.look((1.05, 1.8), turn=0.4, shift=0.35)
    u, v = p.u, p.v
    s.paint(image, edge(np.maximum(np.abs(u) - s.between(0.05, 0.1), -v), 0.03), s.tone(1))
    kind = s.whole(0, 4)
    if kind == 0:
        outline = norm(u, v) - 1
    elif kind == 1:
        flip = v if s.chance(0.7) else -v
        outline = np.maximum(np.abs(u) * 0.87 - flip * 0.5, flip) - 0.62
    elif kind == 2:
        outline = np.maximum(np.maximum(np.abs(u), np.abs(v)), (np.abs(u) + np.abs(v)) * 0.707) - 0.92
    elif kind == 3:
        outline = (np.abs(u) + np.abs(v)) * 0.707 - 0.72
    else:
        outline = _box(u, v, 0.85, s.between(0.5, 0.95), 0.12)
    rim = s.between(0.08, 0.22)
    bold, pale = s.tone(s.whole(1, 2)), s.tone(4)
    if s.chance(0.4):
        bold, pale = pale, bold
    s.paint(image, edge(outline, 0.03), bold)
    s.paint(image, edge(outline + rim, 0.03), pale if s.chance(0.7) else s.tone(3))
    ink = s.tone(0) if s.chance(0.6) else bold
    symbol = s.whole(0, 4)
    half = s.between(0.07, 0.14)
    if symbol == 0:  # a bar
        figure = _box(u, v, 0.55, half * 1.3)
    elif symbol == 1:  # an arrow
        a, b = turned(u, v, s.whole(0, 3) * math.pi / 2)
        figure = np.minimum(_box(a + 0.12, b, 0.3, half), np.maximum(np.abs(b) * 0.9 + a * 0.8 - 0.38, 0.08 - a))
    elif symbol == 2:  # an exclamation mark
        figure = np.minimum(_box(u, v + 0.12, half, 0.28), norm(u, v - 0.34) - half * 1.2)
    elif symbol == 3:  # digits, or what looks like them from afar
        figure = np.minimum(
            np.abs(_box(u - 0.24, v, 0.15, 0.3, 0.12)) - half * 0.6,
            np.abs(_box(u + 0.24, v, 0.15, 0.3, 0.05)) - half * 0.6,
        )
    else:  # forbidden
        figure = np.maximum(np.abs(u * 0.707 + v * 0.707) - half, outline)
    s.paint(image, edge(figure, 0.03), ink)
    return image


def truss_bridge(s: Sketch) -> Array:
    image = s.backdrop()
    if s.chance(0.6):
        s.paint(image, edge(s.between(-0.1, 0.6) - s.y + 0 * s.x, 0.05), s.other[s.whole(0, 3)], 0.8)
    p = s.look((1.0, 1.7), turn=0.4, lean=0.2, shift=0.3)
    panels, bay = s.whole(7, 12), s.between(0.45, 0.8)
    tall, arch = s.between(0.6, 1.1), s.between(0, 0.8) * s.whole(0, 1)
    lattice = s.whole(0, 3)
    for depth in range(s.whole(1, 2)):
        canvas, pen = s.pen()
        width = max(round(s.n * s.between(0.02, 0.045) * (1 - 0.3 * depth)), 1)
        drop, slide = 0.5 + 0.1 * depth, 0.13 * depth
        place = (np.arange(panels + 1) - panels / 2) * bay + slide
        top = drop - tall - arch * (1 - (2 * place / (panels * bay)) ** 2)
        foot = np.full_like(place, drop)
        for line in (top, foot):
            pen.line(p.project(np.stack([place, line], 1)), fill=255, width=width + 1)
        for k in range(panels + 1):
            bars = [] if lattice == 3 else [((place[k], top[k]), (place[k], foot[k]))]
            if k < panels:
                falling = ((place[k], top[k]), (place[k + 1], foot[k + 1]))
                rising = ((place[k], foot[k]), (place[k + 1], top[k + 1]))
                if lattice == 2:
                    bars += [falling, rising]
                elif lattice == 3:
                    bars += [falling if k % 2 else rising]
                else:
                    bars += [falling if (k < panels / 2) == (lattice == 0) else rising]
            for ends in bars:
                pen.line(p.project(ends), fill=230, width=max(width - 1, 1))
        if depth == 0 and s.chance(0.6):
            deck = [(-9.0, drop), (9.0, drop), (9.0, drop + 0.15), (-9.0, drop + 0.15)]
            deck = [(max(min(a, place[-1]), place[0]), b) for a, b in deck]
            pen.polygon(p.project(deck), fill=255)
        s.paint(image, inked(canvas), s.tone(s.whole(0, 1) if depth == 0 else 2))
    return image


def staircase(s: Sketch) -> Array:
    if s.chance(0.5):  # from the front: treads and risers, narrower further up
        p = s.look((2.5, 5.0), turn=0.45, lean=0.2)
        narrow = s.between(0, 0.12)
        _, v = _cell(p.v * (1 + 0.08 * p.v * narrow))
        tread = s.between(-0.2, 0.25)
        first, second, nose = s.tone(s.whole(3, 4)), s.tone(s.whole(1, 2)), s.tone(s.whole(0, 1) * 4)
        image = s.flat(first)
        s.paint(image, edge(v - tread, 0.08), second)
        s.shade(image, 0.5 + v, s.between(0, 0.4))
        s.paint(image, edge(np.abs(v - tread) - s.between(0.02, 0.07), 0.06), nose, 0.8)
        half = s.between(1.5, 3.5)
        wall = half - np.abs(p.u + s.between(-0.8, 0.8)) + narrow * p.v
        s.paint(image, edge(wall, 0.1), s.backdrop())
        s.paint(image, edge(np.abs(wall) - s.between(0.03, 0.1), 0.06), s.tone(0), 0.7)
    else:  # from the side: a zigzag over a dark flank
        p = s.look((2.0, 4.5), turn=0.4, lean=0.18)
        u = p.u if s.chance(0.5) else -p.u
        rise = s.between(0.55, 0.95)
        number, inside = _cell(u)
        step = p.v - number * rise
        image = s.backdrop()
        body = s.ramp(np.clip(0.4 + 0.2 * (p.v - u * rise), 0, 1), s.palette[1:4])
        s.shade(body, inside + 0.5, s.between(0, 0.3))
        s.paint(image, edge(-step, 0.06), body)
        s.paint(image, edge(np.abs(step - 0.08) - 0.09, 0.05), s.tone(4 if s.chance(0.6) else 0))
        under = p.v - u * rise - s.between(1.6, 3.0)
        if s.chance(0.6):
            s.paint(image, edge(-under, 0.06), s.backdrop())
        if s.chance(0.6):  # a handrail on posts
            rail = p.v - u * rise + s.between(1.2, 1.9)
            posts = np.maximum(np.abs(inside) - 0.05, np.maximum(-rail, step))
            s.paint(image, edge(np.minimum(np.abs(rail) - 0.08, posts), 0.05), s.tone(s.whole(0, 1)))
    return image


def woven_cloth(s: Sketch) -> Array:
    p = s.look((4.0, 9.0), turn=0.9, lean=0.15)
    bend = s.between(0, 0.8) * s.field(2, 2)
    column, u = _cell(p.u + bend)
    row, v = _cell(p.v - bend)
    run = s.whole(2, 4)  # 2: plain weave; 3, 4: twill
    over = modulo(column + row, run) < (1 if run < 4 else 2)
    warp, weft = s.table(64), s.table(64)
    period = s.whole(3, 12)
    if s.chance(0.5):  # tartan: the same few threads again and again
        warp_tint, weft_tint = (warp[modulo(column, period).astype(np.intp)], weft[modulo(row, period).astype(np.intp)])
    else:
        warp_tint, weft_tint = np.full_like(u, warp[0]), np.full_like(u, weft[1])
    tint = np.where(over, warp_tint, weft_tint)
    image = s.ramp(tint, s.palette[s.rng.permutation(5)[:3]])
    round_ = np.where(over, 0.25 - u * u, 0.25 - v * v) * 4
    s.shade(image, np.clip(round_, 0, 1), s.between(0.4, 0.75))
    s.shade(image, s.field(30, 1), 0.15)
    return image


def chain(s: Sketch) -> Array:
    image = s.backdrop()
    thick = s.between(0.13, 0.2)
    for _ in range(s.whole(1, 3)):
        p = s.look((1.9, 3.2), turn=1.2, shift=0.4)
        v = p.v + s.between(-0.25, 0.25) * np.square(p.u * 0.6)
        _, u = _cell(p.u / 2.3)
        u = u * 2.3
        _, between = _cell(p.u / 2.3 + 0.5)
        half = s.between(0.75, 0.95)
        ring = np.abs(_box(u, v, half, s.between(0.45, 0.6), 0.44)) - thick
        on_edge = _box(between * 2.3, v, 0.8, thick, thick)
        for link in (ring, on_edge) if s.chance(0.5) else (on_edge, ring):
            body = s.ramp(np.clip(-link / thick, 0, 1), s.palette[[0, 1, 3, 4]])
            s.paint(image, edge(link, 0.1), body)
    return image


def text_page(s: Sketch) -> Array:
    p = s.look((0.75, 1.6), turn=0.6, lean=0.18)
    lines, columns = s.whole(9, 18), s.whole(22, 44)
    # Letters are random 3x5 marks with a foot and a stem: from reading distance, text.
    page = np.zeros((lines, 8, columns, 4), dtype=np.float32)
    page[:, 1:6, :, :3] = s.rng.random((lines, 5, columns, 3)) < 0.5
    page[:, 1:6, :, 0] = np.maximum(page[:, 1:6, :, 0], s.rng.random((lines, 1, columns)) < 0.6)
    page *= s.rng.random((lines, 1, columns, 1)) > 0.17  # spaces
    length = np.where(s.rng.random(lines) < 0.25, s.rng.uniform(0, 0.8, lines), 1.0) * columns
    page *= (np.arange(columns) < length[:, None])[:, None, :, None]
    if s.chance(0.5):  # a heading
        page[0] = page[0].repeat(2, axis=1)[:, :columns]
    flat = page.reshape(lines * 8, columns * 4)
    margin = s.between(0.82, 0.95)
    u, v = p.u / margin, p.v / (margin * s.between(0.9, 1.3))
    row = np.clip((v + 1) / 2 * flat.shape[0], 0, flat.shape[0] - 1).astype(np.intp)
    column = np.clip((u + 1) / 2 * flat.shape[1], 0, flat.shape[1] - 1).astype(np.intp)
    inside = np.maximum(np.abs(u), np.abs(v)) < 1
    ink = flat[row, column] * inside
    dark = s.chance(0.25)
    image = s.backdrop()
    sheet = s.flat(s.tone(0 if dark else 4))
    s.shade(sheet, s.field(3, 2), s.between(0, 0.2))
    if s.chance(0.3):
        s.paint(
            sheet,
            edge(np.maximum(np.abs(p.u - s.between(-0.4, 0.4)), np.abs(p.v - s.between(-0.5, 0.5))) - 0.35, 0.03),
            s.tone(2),
        )
    s.paint(sheet, ink, s.tone(4 if dark else s.whole(0, 1)), s.between(0.7, 1))
    s.paint(image, edge(np.maximum(np.abs(u), np.abs(v)) - 1.06, 0.02), sheet)
    return image


def _chip(s: Sketch, p: Plane, image: Array) -> None:
    canvas, pen = s.pen()
    u, v, half_u, half_v = s.between(-1, 1), s.between(-1, 1), s.between(0.15, 0.45), s.between(0.12, 0.3)
    pins = s.whole(3, 8)
    for k in range(pins):
        at = u + half_u * (2 * (k + 0.5) / pins - 1)
        pen.line(p.project([(at, v - half_v - 0.1), (at, v + half_v + 0.1)]), fill=255, width=max(s.n // 48, 1))
    s.paint(image, inked(canvas), s.tone(4))
    canvas, pen = s.pen()
    corners = [(u - half_u, v - half_v), (u + half_u, v - half_v), (u + half_u, v + half_v), (u - half_u, v + half_v)]
    pen.polygon(p.project(corners), fill=255)
    s.paint(image, inked(canvas), s.other[s.whole(0, 1)])


def circuit_board(s: Sketch) -> Array:
    p = s.look((0.9, 1.7), turn=0.8)
    dark = s.chance(0.7)
    image = s.flat(s.tone(s.whole(1, 2) if dark else 3))
    s.shade(image, s.field(5, 2), 0.2)
    canvas, pen = s.pen()
    pads, dot = s.pen()
    width = max(round(s.n * s.between(0.012, 0.028)), 1)
    steps = ((1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1))
    grid = s.between(0.14, 0.24)
    for _ in range(s.whole(8, 15)):  # a bus of parallel tracks that turn together by eighths
        u, v = round(s.between(-9, 9)), round(s.between(-9, 9))
        heading = s.whole(0, 7)
        path = [(u, v)]
        for _ in range(s.whole(2, 4)):
            far = s.whole(1, 6)
            u, v = u + far * steps[heading][0], v + far * steps[heading][1]
            path.append((u, v))
            heading = (heading + s.whole(-1, 1)) % 8
        for k in range(s.whole(1, 3)):
            points = p.project((np.array(path) + 0.8 * k) * grid)
            pen.line(points, fill=255, width=width)
            for a, b in (points[0], points[-1]):
                dot.ellipse((a - 1.6 * width, b - 1.6 * width, a + 1.6 * width, b + 1.6 * width), fill=255)
    s.paint(image, inked(canvas), s.tone(3 if dark else 1), s.between(0.6, 1))
    s.paint(image, inked(pads), s.tone(4 if dark else 0))
    for _ in range(s.whole(0, 3)):
        _chip(s, p, image)
    return image


def flag(s: Sketch) -> Array:
    image = s.backdrop()
    p = s.look((0.85, 1.6), turn=0.5, shift=0.3)
    swell, waves, start = s.between(0.03, 0.14), s.between(0.6, 1.6), s.between(0, 1)
    phase = p.u * waves * 0.5 + start + 0.15 * p.v
    u, v = p.u, p.v + swell * np.sin(2 * math.pi * phase) * (p.u + 1.2) * 0.6
    tall = s.between(0.55, 0.8)
    colours = [s.tone(int(k), 0.15) for k in s.rng.permutation(5)] + [s.other[s.whole(1, 3)]]
    order = s.rng.permutation(6)
    colours = [colours[int(k)] for k in order]
    design = s.whole(0, 4)
    cloth = s.flat(colours[0])
    if design <= 1:  # bands, lying or standing
        bands = s.whole(2, 3) if s.chance(0.6) else s.whole(5, 9)
        t = (v / tall + 1) / 2 if design == 0 else (u + 1) / 2
        number = np.clip(np.floor(t * bands), 0, bands - 1)
        for k in range(bands):
            s.paint(cloth, (number == k).astype(np.float32), colours[k % 3 if bands == 3 else k % 2])
    elif design == 2:  # a cross, or two
        at, wide = s.between(-0.4, 0), s.between(0.08, 0.2)
        arms = np.minimum(np.abs(u - at), np.abs(v))
        s.paint(cloth, edge(arms - wide, 0.02), colours[1])
        s.paint(cloth, edge(arms - wide / 2, 0.02), colours[s.whole(1, 2)])
    elif design == 3:  # a saltire or a diagonal
        slope = np.abs(v) - tall * np.abs(u) if s.chance(0.5) else v - tall * u
        s.paint(cloth, edge(-slope, 0.02), colours[2])
        s.paint(cloth, edge(np.abs(slope) - s.between(0.1, 0.2), 0.02), colours[1])
    else:  # a disc
        s.paint(cloth, edge(norm(u - s.between(-0.3, 0.1), v) - tall * s.between(0.4, 0.65), 0.02), colours[1])
    if s.chance(0.35):
        s.paint(cloth, edge(np.maximum(u + s.between(0, 0.4), v + s.between(0, 0.1)), 0.02), colours[3])
        if s.chance(0.6):
            dots = norm(comb(u * 5), comb(v * 5 + 0.5)) - 0.25
            s.paint(cloth, edge(dots, 0.1) * edge(np.maximum(u + 0.35, v + 0.1), 0.02), colours[4])
    s.shade(cloth, stripes(phase + 0.2), s.between(0.1, 0.4))
    s.paint(image, edge(np.maximum(np.abs(u) - 1, np.abs(v) - tall), 0.02), cloth)
    pole = np.maximum(np.abs(p.u + 1.05) - s.between(0.03, 0.06), -tall - 0.2 - p.v)
    s.paint(image, edge(pole, 0.02), s.tone(s.whole(0, 4)))
    return image


def bookshelf(s: Sketch) -> Array:
    p = s.look((1.6, 4.0), turn=0.4, lean=0.18)
    tall = s.between(1.8, 2.6)
    row, v = _cell(p.v / tall + s.between(0, 1))
    v = (v + 0.5) * tall  # 0 at the top board
    # 512 places per shelf, books of random width: one look-up each for number, left edge and height.
    widths = s.rng.integers(8, 26, 64)
    ends = np.cumsum(widths)
    starts, sizes = (ends - widths).astype(np.float32), widths.astype(np.float32)
    place = np.searchsorted(ends, np.arange(512), side="right")
    spot = modulo(p.u * 40 + row * 171 + 4096, 512)
    book = place[spot.astype(np.intp)]
    left, wide = starts[book], sizes[book]
    across = (spot - left) / wide - 0.5
    key = (book + (row * 17).astype(np.intp)) & 255
    top = tall * (0.12 + 0.3 * s.table()[key] * s.between(0.5, 1))
    inside = edge(top - v, 0.05)
    colours = np.concatenate([s.palette, s.other])
    books = colours[s.rng.integers(0, 10, 256)] * (0.8 + 0.4 * s.table()[:, None])
    body = np.clip(books.T.astype(np.float32), 0, 1)[:, key]
    s.shade(body, 1 - 2.5 * across * across, s.between(0.2, 0.45))
    height = (v - top) / (tall - top)
    band = np.abs(height - 0.15 - 0.5 * s.table()[key]) - 0.03 - 0.1 * s.table()[key]
    s.paint(body, edge(band, 0.04) * (s.table()[key] > 0.35), colours[s.whole(0, 1) * 4])
    s.paint(body, edge((0.5 - np.abs(across)) * wide / 40 - 0.025, 0.04), colours[0], 0.8)
    image = s.flat(s.tone(0))
    s.paint(image, inside, body)
    s.paint(image, edge(np.minimum(v, tall - v) - s.between(0.06, 0.12), 0.04), s.tone(s.whole(1, 3)))
    return image


# Class -> the function that draws it, and the palettes it mostly has in life.
CLASSES: dict[str, tuple[Callable[[Sketch], Array], tuple[int, ...]]] = {
    "bookshelf": (bookshelf, (6, 1, 9)),
    "brick-wall": (brick_wall, (1, 9, 3)),
    "chain": (chain, (0, 8)),
    "circuit-board": (circuit_board, (5, 2)),
    "clock": (clock, (6, 0, 9)),
    "flag": (flag, (3, 2, 4, 5)),
    "floor-tiles": (floor_tiles, (8, 9, 0)),
    "gear": (gear, (0, 4)),
    "keyboard": (keyboard, (0, 8)),
    "road-sign": (road_sign, (3, 4, 2)),
    "spoked-wheel": (spoked_wheel, (0, 3)),
    "staircase": (staircase, (9, 6, 0)),
    "text-page": (text_page, (0, 9)),
    "truss-bridge": (truss_bridge, (0, 3, 8)),
    "window-facade": (window_facade, (1, 9, 0)),
    "woven-cloth": (woven_cloth, (3, 2, 7)),
}
