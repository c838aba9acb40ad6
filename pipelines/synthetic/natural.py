"""The natural side: animals' coats, plants, shells, stone, water, sky.

Each function turns a sketch into an image (3, n, n); `sketch` has the legend.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from fasttransfer.pipelines.synthetic.sketch import Array, Sketch, cell_value, comb, edge, inked, modulo, norm, stripes


def _coat_phase(s: Sketch, u: Array, v: Array) -> Array:
    """Return stripe numbers of a coat: nearly parallel bands, bent by the body beneath, that fork in places."""
    phase = v + s.between(0.3, 1.1) * s.wrap(s.field(s.between(2, 4), 2), u, v, s.between(2.5, 5)) * 2
    for _ in range(s.whole(0, 3)):  # a turn round a point adds one stripe on one side of it: a fork
        sign = 1 if s.chance(0.5) else -1
        phase = phase + sign * np.arctan2(v - s.between(-3, 3), u - s.between(-3, 3)) / (2 * math.pi)
    return phase.astype(np.float32)


def _fur(s: Sketch, image: Array, strength: float = 0.12) -> Array:
    s.shade(image, s.field(s.between(14, 30), 2, stretch=s.between(1, 4)), strength)
    return image


def zebra_coat(s: Sketch) -> Array:
    p = s.look((2.2, 6.0), turn=1.0)
    phase = _coat_phase(s, p.u, p.v)
    wide = s.between(-0.12, 0.12) + 0.35 * (s.field(2, 2) - 0.5)
    mask = edge(0.5 + wide - stripes(phase), s.between(0.15, 0.4))
    image = s.flat(s.tone(s.whole(3, 4)))
    s.paint(image, mask, s.tone(s.whole(0, 1)), s.between(0.75, 1))
    return _fur(s, image)


def tiger_coat(s: Sketch) -> Array:
    p = s.look((2.0, 5.0), turn=1.0)
    phase = _coat_phase(s, p.u, p.v)
    # A tiger's stripes taper and stop: their width follows a patchy field, nothing where that is low.
    patchy = s.wrap(s.field(s.between(3, 5), 2), p.u * s.between(0.4, 0.8), p.v, 3)
    mask = edge(0.62 + 0.9 * (0.5 - patchy) - stripes(phase), s.between(0.15, 0.35))
    ground = np.clip(s.field(1.5, 2) * 0.7 + 0.3, 0, 1)
    image = s.ramp(ground, np.stack([s.tone(2), s.tone(2), s.tone(3), s.tone(4)]))
    s.paint(image, mask, s.tone(s.whole(0, 1)), s.between(0.75, 1))
    return _fur(s, image)


def leopard_coat(s: Sketch) -> Array:
    p = s.look((1.8, 4.5), turn=math.pi)
    bend = s.field(s.between(5, 9), 2) - 0.5
    near, _, _ = s.cells(p.u + 0.5 * bend, p.v - 0.5 * bend, 0.75)
    gaps = s.wrap(s.field(9, 2), p.u, p.v, 2.5)
    radius, band = s.between(0.25, 0.34), s.between(0.05, 0.1)
    ring = edge(np.abs(near - radius) - band * (0.2 + 1.8 * gaps), 0.08)
    image = s.ramp(s.field(2, 2), np.stack([s.tone(2), s.tone(3), s.tone(4)]))
    s.paint(image, edge(near - radius, 0.1), s.tone(2), s.between(0.2, 0.7))
    s.paint(image, ring, s.tone(0), s.between(0.75, 1))
    return _fur(s, image)


def giraffe_coat(s: Sketch) -> Array:
    p = s.look((1.6, 4.0), turn=math.pi)
    bend = (s.field(s.between(4, 8), 3) - 0.5) * s.between(0.2, 0.5)
    near, next_, number = s.cells(p.u + bend, p.v - bend, s.between(0.6, 0.95))
    gap = s.between(0.1, 0.26)
    patch = edge(gap - (next_ - near), s.between(0.06, 0.16))
    image = s.flat(s.tone(s.whole(3, 4)))
    dark = s.ramp(0.75 * s.table(1024)[number] + 0.25 * near, np.stack([s.tone(1), s.tone(2)]))
    s.paint(image, patch, dark, s.between(0.75, 1))
    return _fur(s, image)


def fish_scales(s: Sketch) -> Array:
    p = s.look((2.2, 5.5), turn=math.pi)
    v = p.v * s.between(1.2, 1.9) + 0.4 * s.field(2, 1)
    u = p.u + 0.4 * s.field(2, 1)
    row0 = np.floor(v)
    table = s.table()
    radius = s.between(0.62, 0.72)
    rim = np.zeros_like(u)
    tint = np.zeros_like(u)
    taken = np.zeros(u.shape, dtype=bool)
    # A scale hangs below its row's centre and is covered by the row above: ask the upper rows first.
    for up in (1, 0, -1):
        row = row0 - up
        column = np.floor(u + 0.5 * modulo(row, 2))
        along = u + 0.5 * modulo(row, 2) - column - 0.5
        far = np.sqrt(along * along + np.square((v - row - 0.3) * 0.8)) / radius
        mine = (far < 1) & ~taken
        rim = np.where(mine, far, rim)
        tint = np.where(mine, cell_value(table, column, row), tint)
        taken |= mine
    low, high = (0.15, 0.7) if s.chance(0.6) else (0.75, 0.2)
    image = s.ramp(np.clip(low + (high - low) * rim * rim + s.between(0.1, 0.4) * (tint - 0.5), 0, 1), s.palette)
    s.paint(image, edge(0.9 - rim, 0.12), s.tone(s.whole(0, 1)), s.between(0.4, 0.9))
    s.shade(image, s.field(2, 2), 0.25)
    return image


def feather(s: Sketch) -> Array:
    p = s.look((0.75, 1.3), turn=1.2, shift=0.3)
    u = p.u - s.between(-0.35, 0.35) * p.v * p.v
    t = np.clip((p.v + 1) / 2, 0, 1)  # 0 tip, 1 quill
    wide = s.between(0.32, 0.6) * np.power(t + 0.02, s.between(0.4, 0.7)) * np.sqrt(np.clip(1.03 - t, 0, 1))
    side = np.abs(u) * np.where(u > 0, np.float32(1), np.float32(s.between(1, 1.8)))
    slant, count = s.between(0.6, 1.4), s.between(9, 18)
    barb = (p.v + slant * side) * count + 0.6 * s.field(6, 2)
    ragged = 0.14 * (s.wrap(s.field(12, 1), barb / count * 4, u * 0 + 1) - 0.5)
    mask = edge(side - wide - ragged * wide * 3, 0.03) * edge(np.abs(p.v) - 1, 0.03)
    banded = stripes((p.v + slant * side * 0.6) * s.between(0.8, 3) + s.between(0, 1))
    tint = np.clip(0.25 + 0.35 * stripes(barb) + s.between(0.1, 0.5) * (banded - 0.3), 0, 1)
    image = s.backdrop()
    s.paint(image, mask, s.ramp(tint, s.palette if s.chance(0.5) else s.palette[1:]))
    s.paint(
        image, edge(np.abs(u) - 0.022 * (0.4 + t), 0.02) * edge(np.abs(p.v) - 1.15, 0.03), s.tone(s.whole(0, 1) * 4)
    )
    return image


def leaf(s: Sketch) -> Array:
    p = s.look((0.75, 1.3), turn=1.2, shift=0.3)
    u = p.u - s.between(-0.3, 0.3) * p.v * p.v
    t = np.clip((p.v + 1) / 2, 0, 1)
    belly = s.between(0.7, 1.3)
    wide = s.between(0.35, 0.75) * np.sin(math.pi * np.power(t, belly))
    side = np.abs(u)
    slant, count = s.between(0.5, 1.3), s.between(3.5, 8)
    vein = (p.v + slant * side) * count
    teeth = s.between(0, 0.14) * (modulo(vein * s.whole(1, 2), 1) - 0.5)
    mask = edge(side - wide * (1 + teeth), 0.03)
    image = s.backdrop()
    body = s.ramp(np.clip(s.field(3, 3) * 0.6 + 0.25 * modulo(vein, 1) + 0.1, 0, 1), s.palette[1:4])
    ink = s.tone(4) if s.chance(0.6) else s.tone(0)
    s.paint(body, edge(comb(vein) / count - s.between(0.012, 0.025), 0.025), ink, s.between(0.5, 0.95))
    s.paint(body, edge(side - s.between(0.015, 0.04), 0.025), ink)
    s.paint(image, mask, body)
    s.paint(image, edge(side - 0.02, 0.02) * edge(np.abs(p.v - 1.15) - 0.2, 0.03), ink)
    return image


def flower(s: Sketch) -> Array:
    image = s.backdrop()
    for _ in range(s.whole(1, 2)):
        p = s.look((0.8, 2.1), turn=math.pi, shift=0.45)
        far, angle = norm(p.u, p.v), np.arctan2(p.v, p.u)
        petals, pointed = s.whole(4, 12), s.between(0.25, 1.0)
        rows = s.whole(1, 2)
        colours = s.palette[[1, 2, 3, 4]] if s.chance(0.5) else s.palette[[4, 3, 2]]
        for row in range(rows):
            turned = angle * (petals / 2) + (row * math.pi / 2)
            reach = (1 - 0.3 * row) * (s.between(0.2, 0.45) + 0.6 * np.power(np.abs(np.cos(turned)), pointed))
            streaks = 0.12 * np.cos(turned * s.whole(4, 8))
            body = s.ramp(np.clip(far / reach * 0.9 + streaks, 0, 1), colours)
            s.shade(body, np.abs(np.cos(turned)).astype(np.float32), 0.3)
            s.paint(image, edge(far - reach, 0.05), body)
        heart = s.between(0.14, 0.3)
        s.paint(image, edge(far - heart, 0.04), s.ramp(s.field(20, 1), s.palette[[0, 1, 3]]))
    return image


def grass(s: Sketch) -> Array:
    p = s.look((1.0, 1.7), turn=0.6, lean=0.15)
    image = s.ramp(s.field(4, 3), s.palette[:3] if s.chance(0.6) else s.other[1:4])
    wind = s.between(-0.5, 0.5)
    t = np.linspace(0, 1, 7)
    for layer in range(3):
        blades = s.whole(8, 18)
        base, foot, tall, wide, lean, curl = s.rng.random((6, blades, 1))
        curl = curl - 0.5
        middle = 3.8 * base - 1.9 + (wind + 0.8 * lean - 0.4) * t + curl * t * t
        height = 0.6 + 1.2 * foot - (0.9 + 1.3 * tall) * (t - 0.25 * np.abs(curl) * t * t)
        half = (0.03 + 0.06 * wide) * (1 - t**1.5)
        there, back = np.stack([middle - half, height], 2), np.stack([middle + half, height], 2)
        outlines = p.project(np.concatenate([there, back[:, ::-1]], 1).reshape(-1, 2))
        canvas, pen = s.pen()
        for k in range(blades):
            pen.polygon(outlines[14 * k : 14 * k + 14], fill=s.whole(150, 255))
        s.paint(image, inked(canvas), s.tone(layer + (1 if s.chance(0.5) else 2), 0.15))
    return image


def snail_shell(s: Sketch) -> Array:
    image = s.backdrop()
    p = s.look((0.9, 1.9), turn=math.pi, shift=0.35)
    u = p.u if s.chance(0.5) else -p.u
    far, angle = norm(u, p.v) + 1e-4, np.arctan2(p.v, u)
    growth = s.between(1.7, 2.6)
    whorl = np.log(far) / math.log(growth) - angle / (2 * math.pi)
    number = np.floor(whorl)
    across = whorl - number  # 0 to 1 from seam to seam
    along = (number + angle / (2 * math.pi)) * growth**0.5
    mask = edge(whorl * 0.4, 0.03)  # the mouth is where whorl 0 begins
    tint = 0.15 + 0.75 * np.sin(math.pi * across)
    ribs = s.between(0, 0.3) * stripes(along * s.between(6, 14))
    bands = s.between(0, 0.35) * stripes(across * s.whole(1, 3) + 0.2)
    body = s.ramp(np.clip(tint - ribs - bands, 0, 1), s.palette if s.chance(0.6) else s.palette[[0, 2, 4]])
    s.paint(body, edge(np.minimum(across, 1 - across) - 0.05, 0.06), s.tone(0), s.between(0.4, 0.9))
    s.paint(image, mask, body)
    return image


def clouds(s: Sketch) -> Array:
    p = s.look((0.9, 1.4), turn=0.4)
    sky = s.ramp(np.clip((p.v + 1.2) / 2.4, 0, 1), s.palette[[1, 2, 3]] if s.chance(0.7) else s.palette[[2, 1, 0]])
    puff = s.wrap(s.field(s.between(3, 7), 5, gain=s.between(0.45, 0.6)), p.u, p.v * s.between(1, 2.2), 3.5)
    mask = np.clip((puff - s.between(0.35, 0.55)) / s.between(0.12, 0.4), 0, 1)
    step = max(s.n // 24, 1)
    lit = np.clip(0.55 + 2.2 * (puff - np.roll(puff, step, axis=0)), 0, 1)
    s.paint(sky, mask, s.ramp(lit, s.palette[[1, 3, 4]] if s.chance(0.7) else s.palette[[2, 3, 4]]), s.between(0.7, 1))
    return sky


def water_ripples(s: Sketch) -> Array:
    p = s.look((1.0, 2.5), turn=math.pi, lean=0.3)
    bend = s.between(0, 0.6) * s.field(3, 2)
    u, v = p.u + bend, p.v * s.between(1, 2.2) - bend
    wave = np.zeros_like(u)
    for _ in range(s.whole(1, 3)):
        far = norm(u - s.between(-2, 2), v - s.between(-2, 2))
        wave += s.between(0.5, 1) * np.sin(far * s.between(5, 13) + s.between(0, 6))
    wave += 0.6 * (s.field(6, 2) - 0.5)
    t = 0.5 + 0.5 * wave / max(float(np.abs(wave).max()), 1e-6)
    image = s.ramp(t, s.palette[:4] if s.chance(0.5) else s.palette)
    s.paint(image, edge(s.between(0.75, 0.88) - t, 0.1), s.tone(4), s.between(0.2, 0.9))
    return image


def marble(s: Sketch) -> Array:
    p = s.look((0.8, 2.0), turn=1.0)
    rough = s.wrap(s.field(s.between(3, 6), 5, gain=0.6), p.u, p.v, 3) - 0.5
    phase = p.v * s.between(0.5, 1.4) + s.between(1.2, 2.6) * rough
    vein = 1 - np.abs(2 * modulo(phase, 1) - 1)
    fine = 1 - np.abs(2 * modulo(p.u * 0.7 + 3 * rough, 1) - 1)
    t = 0.5 + 0.4 * rough + s.between(0.1, 0.3) * np.power(1 - vein, 2)
    light = s.chance(0.5)
    image = s.ramp(np.clip(t, 0, 1), s.palette[2:] if light else s.palette[[2, 1, 0]])
    ink = s.tone(s.whole(0, 1) if light else s.whole(3, 4))
    s.paint(image, edge(vein - s.between(0.05, 0.2), 0.25), ink, s.between(0.5, 0.95))
    s.paint(image, edge(fine - 0.03, 0.15), ink, s.between(0.2, 0.6))
    return image


def tree_bark(s: Sketch) -> Array:
    p = s.look((1.0, 2.2), turn=0.7 if s.chance(0.6) else math.pi)
    bend = s.wrap(s.field(4, 3), p.u, p.v) - 0.5
    thin = s.between(2.2, 4)
    near, next_, number = s.cells(p.u * thin + 1.4 * bend, p.v * s.between(0.5, 1.0) + 0.5 * bend, 0.95)
    crack = edge(next_ - near - s.between(0.08, 0.25), 0.18)
    grain = s.wrap(s.field(18, 2), p.u * 1.5, p.v * 0.25 + bend)
    tint = 0.25 + 0.35 * grain + 0.25 * s.table(1024)[number] + 0.25 * bend
    image = s.ramp(np.clip(tint, 0, 1), s.palette[1:4] if s.chance(0.6) else s.palette[1:])
    s.paint(image, crack, s.tone(0), s.between(0.6, 1))
    return image


def spider_web(s: Sketch) -> Array:
    image = s.backdrop()
    s.shade(image, s.field(5, 3), 0.3)
    p = s.look((0.7, 1.5), turn=math.pi, shift=0.5)
    spokes, rings = s.whole(8, 17), s.whole(6, 13)
    angles = (np.arange(spokes) + 0.3 * s.table(spokes)) * (2 * math.pi / spokes)
    canvas, pen = s.pen()
    width = max(round(s.n * s.between(0.008, 0.02)), 1)
    for angle in angles:
        pen.line(
            p.project([(0, 0), (2.2 * math.cos(angle), 2.2 * math.sin(angle))]), fill=s.whole(150, 255), width=width
        )
    sag, grow = s.between(0.8, 0.97), s.between(0.9, 1.4)
    middle = (angles + np.roll(angles, -1)) / 2
    middle[-1] += math.pi
    all_angles = np.stack([angles, middle], 1).ravel()
    pull = np.tile([1.0, sag], spokes)
    for ring in range(1, rings + 1):
        radius = 1.5 * (ring / rings) ** grow * (1 + 0.06 * np.repeat(s.table(spokes), 2)) * pull
        points = np.stack([radius * np.cos(all_angles), radius * np.sin(all_angles)], 1)
        pen.line(p.project(np.concatenate([points, points[:1]])), fill=s.whole(140, 255), width=width)
    s.paint(image, inked(canvas), s.tone(4) if s.chance(0.75) else s.tone(0), s.between(0.7, 1))
    return image


def mountains(s: Sketch) -> Array:
    p = s.look((0.9, 1.4), turn=0.25, lean=0.15)
    misty = s.chance(0.6)
    image = s.ramp(np.clip((p.v + 1) / 1.6, 0, 1), s.other[[2, 3, 4]] if s.chance(0.6) else s.other[[0, 1, 3]])
    layers = s.whole(2, 4)
    rock = s.field(s.between(5, 9), 4, gain=0.6)
    for layer in range(layers):
        steps = np.linspace(-3, 3, 600)
        profile = np.zeros(600)
        cells, strength = s.between(4, 8), s.between(0.35, 0.7)
        for _ in range(5):
            knots = np.linspace(-3, 3, int(cells) + 2)
            profile += strength * np.interp(steps, knots, s.rng.random(len(knots)))
            cells, strength = cells * 2, strength * 0.5
        foot = -0.9 + 1.5 * (layer + 0.8) / layers
        top = (foot + 0.35 - profile).astype(np.float32)
        column = np.clip((p.u + 3) * 100, 0, 599).astype(np.intp)
        below = p.v - top[column]
        tint = s.tone(min(4 - layer, 3) if misty else s.whole(0, 3))
        body = s.flat(tint)
        s.shade(body, rock, 0.5)
        if s.chance(0.5):
            s.paint(body, edge(below - 0.3 * rock - s.between(0, 0.1), 0.05), s.tone(4), 0.9)
        s.paint(image, edge(-below, 0.03), body)
    return image


# Class -> the function that draws it, and the palettes it mostly has in life.
CLASSES: dict[str, tuple[Callable[[Sketch], Array], tuple[int, ...]]] = {
    "clouds": (clouds, (2, 6, 8)),
    "feather": (feather, (4, 0, 5)),
    "fish-scales": (fish_scales, (2, 8, 4)),
    "flower": (flower, (5, 3, 6)),
    "giraffe-coat": (giraffe_coat, (0, 9)),
    "grass": (grass, (1, 7)),
    "leaf": (leaf, (1, 9, 7)),
    "leopard-coat": (leopard_coat, (0, 3)),
    "marble": (marble, (4, 8)),
    "mountains": (mountains, (8, 4, 2)),
    "snail-shell": (snail_shell, (0, 9, 4)),
    "spider-web": (spider_web, (1, 4, 6)),
    "tiger-coat": (tiger_coat, (3, 9)),
    "tree-bark": (tree_bark, (0, 7, 4)),
    "water-ripples": (water_ripples, (2, 8)),
    "zebra-coat": (zebra_coat, (4,)),
}
