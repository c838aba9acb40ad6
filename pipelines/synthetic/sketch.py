"""The tools that draw every built-in image: a canvas, a camera, noise, palettes and a lens.

A class draws on a `Sketch` of twice the wanted size, in colours from 0 to 1, planes first. `Sketch.finish`
then adds a careless photographer's faults: uneven light, something in the way, blur, poor exposure, grain.

Legend: n = side of the canvas in pixels (twice the image's). `x`, `y` = screen coordinates, -1 to 1, y
down. `u`, `v` = coordinates of the drawing, as a turned, sheared and tilted camera sees it. A mask is (n, n),
0 to 1; an image (3, n, n). All arrays are float32: float64 would double the time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

Array = NDArray[Any]  # float32, which NumPy's type stubs lose track of next to a Python number

# How hard the images are. 0 = upright, clean, evenly lit; 1 = too much for a small network in ten epochs.
# It scales pose, clutter, things in the way, light, blur, exposure and grain together, but not the variation
# within a class, such as the designs of flags or the shapes of signs.
DIFFICULTY = 0.2

# The probability that a class has its colours in life, green leaves and red bricks; else any of its side's.
USUAL_COLOURS = 0.4

# Dark to light. Any class may get any palette of its side, so that colour alone says little.
NATURAL_PALETTES = (
    "2b1d0e 6b4423 c08a4a e3c27a f6ead0",
    "10200f 2f4f26 5f8a3a a3bf6b e6edc8",
    "0b1f33 1f4f73 3f86a8 8fc3cf e6f2ee",
    "240a06 7a1f0d cf5a1a f2a63b fbe7b0",
    "1d1d1f 4a4a4c 7f7d7a b5b1a8 ece8df",
    "2d1226 7a2f5a c7658f eaa7b8 faeaea",
    "17142e 453a6b 8a6a9c d39aa6 f5dcc6",
    "1a1c10 45482a 7c7a45 b8ad78 ece4c4",
    "14222d 3f6075 86a9b8 c4dade f7fbfb",
    "2a140c 6d2f16 b3642a dba253 f3e1b5",
)
MANMADE_PALETTES = (
    "16181c 3c434b 737b84 aab2b9 e9edf0",
    "2a100c 6e2a1f ad4b35 cf8a6c f0dcc8",
    "0a1a3a 173f8a 2f74c9 86b4e6 f3f6fa",
    "2b0508 8a0f16 d42a2a ee8a78 fbf1ea",
    "1c1a10 5b4a12 c99a12 f2cf3c fdf6d2",
    "06201a 0f5a45 2a9a72 8fd0ae eef8f0",
    "1a1008 4f3116 8d6033 c39a62 ecd9b4",
    "12101c 3d2f66 7a4fb0 c98ad6 f6e9f6",
    "101414 2f4a4d 5f8c8a a9c7bf f4f3e6",
    "1b1512 5c4a42 9c8779 cdbfae f5efe3",
)


def _colours(text: str) -> Array:
    return np.array([list(bytes.fromhex(part)) for part in text.split()], dtype=np.float32) * np.float32(1 / 255)


_POOLS = {"natural": [_colours(p) for p in NATURAL_PALETTES], "man-made": [_colours(p) for p in MANMADE_PALETTES]}


@dataclass(frozen=True)
class Plane:
    """A flat drawing seen by the camera: its coordinates at every pixel, and the way back for a pen."""

    u: Array
    v: Array
    back: NDArray[np.float64]  # 3x3, drawing -> canvas pixels

    def project(self, points: Sequence[tuple[float, float]] | NDArray[np.float64]) -> list[tuple[float, float]]:
        """Return canvas pixels of drawing coordinates, for PIL's pen."""
        flat = np.asarray(points, dtype=np.float64)
        seen = self.back @ np.stack([flat[:, 0], flat[:, 1], np.ones(len(flat))])
        return list(zip((seen[0] / seen[2]).tolist(), (seen[1] / seen[2]).tolist(), strict=True))


class Sketch:
    """A canvas, its random draws and its palette.

    `usual` has the indices of the palettes that the class mostly has in life. `palette` is (5, 3), dark to light;
    `other` is a second one of the same side, for backgrounds.
    """

    def __init__(self, rng: np.random.Generator, size: int, side: str, usual: Sequence[int] = ()) -> None:
        self.rng = rng
        self.size = size
        self.side = side
        self._resolve(2 * size)
        pool = len(_POOLS[side])
        own = len(usual) > 0 and self.chance(USUAL_COLOURS)
        self.palette = self._draw_palette(usual[self.whole(0, len(usual) - 1)] if own else self.whole(0, pool - 1))
        self.other = self._draw_palette(self.whole(0, pool - 1))

    def _resolve(self, n: int) -> None:
        """Make one canvas pixel 2 / n wide from here on."""
        self.n = n
        axis = ((np.arange(n, dtype=np.float32) + 0.5) * np.float32(2 / n) - 1).astype(np.float32)
        self.x, self.y = axis[None, :], axis[:, None]

    # draws

    def between(self, low: float, high: float) -> float:
        """Draw a number, uniform from low to high."""
        return low + (high - low) * float(self.rng.random())

    def chance(self, probability: float) -> bool:
        """Draw True with a probability."""
        return float(self.rng.random()) < probability

    def whole(self, low: int, high: int) -> int:
        """Draw an integer from low to high, both included."""
        return int(self.rng.integers(low, high + 1))

    def table(self, count: int = 256) -> Array:
        """Return uniform draws, to be looked up by cell: see `cell_value`."""
        return self.rng.random(count, dtype=np.float32)

    def _draw_palette(self, index: int) -> Array:
        pool = _POOLS[self.side]
        colours = pool[index]
        if self.chance(0.2):  # two palettes crossed: hues nobody listed
            colours = 0.5 * (colours + pool[self.whole(0, len(pool) - 1)][:, self.rng.permutation(3)])
        gain = 1 + 0.2 * (self.rng.random(3, dtype=np.float32) - 0.5)
        lift = 0.1 * (self.rng.random((5, 1), dtype=np.float32) - 0.5)
        return np.clip(colours * gain + lift, 0, 1).astype(np.float32)

    def tone(self, index: int, spread: float = 0.08) -> Array:
        """Return colour `index` of the palette, varied a little: (3,)."""
        return np.clip(self.palette[index] + spread * (self.rng.random(3, dtype=np.float32) - 0.5) * 2, 0, 1)

    # the camera

    def look(
        self,
        zoom: tuple[float, float],
        *,
        turn: float = 0.35,
        lean: float = 0.16,
        shift: float = 0.25,
        shear: float = 0.14,
    ) -> Plane:
        """Return a drawing as a camera at a random place sees it.

        `zoom` = drawing units from the centre to the edge of the canvas, log-uniform between the two at
        difficulty 1. `turn` (radians), `lean` (perspective: relative change of scale from centre to edge),
        `shift` (half canvases) and `shear` are the largest values at difficulty 1.
        """
        hard = DIFFICULTY
        middle, spread = math.log(zoom[0] * zoom[1]) / 2, math.log(zoom[1] / zoom[0]) / 2 * min(hard, 1.5)
        scale = math.exp(self.between(middle - spread, middle + spread))
        turn = min(turn * hard, math.pi)
        angle = self.between(-turn, turn)
        stretch = math.exp(self.between(-0.2, 0.2) * hard)
        skew = self.between(-shear, shear) * hard
        lean = min(lean * hard, 0.4)
        shift_x, shift_y = (self.between(-shift, shift) * hard for _ in "xy")
        cos, sin = math.cos(angle) * scale, math.sin(angle) * scale
        linear = np.array([[stretch, skew], [0, 1 / stretch]]) @ np.array([[cos, -sin], [sin, cos]])
        matrix = np.eye(3)
        matrix[:2, :2] = linear
        matrix[2, :2] = self.between(-lean, lean), self.between(-lean, lean)
        matrix = matrix @ np.array([[1, 0, -shift_x], [0, 1, -shift_y], [0, 0, 1]])
        (a, b, c), (d, e, f), (p, q, r) = matrix.astype(np.float32)
        depth = 1 / np.maximum(p * self.x + q * self.y + r, np.float32(0.15))
        u = (a * self.x + b * self.y + c) * depth
        v = (d * self.x + e * self.y + f) * depth
        pixels = np.array([[self.size, 0, self.size - 0.5], [0, self.size, self.size - 0.5], [0, 0, 1]])
        return Plane(u, v, pixels @ np.linalg.inv(matrix))

    # fields and masks

    def field(self, cells: float, octaves: int = 4, *, gain: float = 0.5, stretch: float = 1.0) -> Array:
        """Return smooth noise in [0, 1].

        `cells` = bumps across the canvas in the first octave; `stretch` > 1 draws them out downwards.
        """
        high = max(cells / stretch, 1.0)
        grid = self.rng.random((math.ceil(high) + 4, math.ceil(cells) + 4), dtype=np.float32)
        finer, strength = 1, gain
        # The octaves are summed on a grid that doubles from one to the next; only the last becomes an image.
        while octaves > 1 and 2 * finer * cells <= self.n / 2:
            grid = _subdivide(_subdivide(grid).T).T
            grid += np.float32(strength) * self.rng.random(grid.shape, dtype=np.float32)
            finer, strength, octaves = finer * 2, strength * gain, octaves - 1
        left, top = 1 + finer * self.between(0, 1), 1 + finer * self.between(0, 1)
        box = (left, top, left + finer * cells, top + finer * high)
        image = Image.fromarray(grid).resize((self.n, self.n), Image.Resampling.BICUBIC, box=box)
        total = np.array(image)
        total -= total.min()
        total *= 1 / max(float(total.max()), 1e-6)
        return total

    def wrap(self, field: Array, u: Array, v: Array, tile: float = 2.0) -> Array:
        """Return `field` laid on the drawing: one copy `tile` units wide in the middle, mirrored ones around it."""
        n = self.n

        def index(w: Array) -> NDArray[np.intp]:
            t = np.abs(modulo(w * np.float32(1 / tile) + np.float32(0.5), 2) - 1)
            return np.minimum((t * n).astype(np.intp), n - 1)

        return field.ravel()[index(v) * n + index(u)]

    def cells(self, u: Array, v: Array, jitter: float = 0.9) -> tuple[Array, Array, NDArray[np.intp]]:
        """Return Voronoi cells of one jittered point per unit square.

        They are computed on every second pixel and enlarged: four times as fast, and invisible.

        Returns:
            The distance to the nearest point, to the second nearest, and the number of the cell.
        """
        u, v = u[::2, ::2].copy(), v[::2, ::2].copy()
        left, top = np.floor(u), np.floor(v)
        u -= left
        v -= top
        origin = top.astype(np.intp) * 37 + left.astype(np.intp)
        spots = 0.5 + jitter * (self.rng.random((2, 1024), dtype=np.float32) - 0.5)
        first = np.full(u.shape, 9, dtype=np.float32)
        second = first.copy()
        number = np.zeros(u.shape, dtype=np.intp)
        for down in (-1, 0, 1):
            for right in (-1, 0, 1):
                cell = (origin + (down * 37 + right)) & 1023
                far = np.square(spots[0][cell] - (u - right))
                far += np.square(spots[1][cell] - (v - down))
                np.minimum(second, np.maximum(far, first), out=second)
                np.copyto(number, cell, where=far < first)
                np.minimum(first, far, out=first)
        return self._enlarge(np.sqrt(first)), self._enlarge(np.sqrt(second)), number.repeat(2, 0).repeat(2, 1)

    def _enlarge(self, small: Array) -> Array:
        return np.asarray(Image.fromarray(small).resize((self.n, self.n), Image.Resampling.BILINEAR))

    # colour

    def ramp(self, t: Array, colours: Array) -> Array:
        """Return the image of t in [0, 1] through `colours` (k, 3) at even steps."""
        stops = np.linspace(0, 1, len(colours))
        steps = np.linspace(0, 1, 256)
        image = np.empty((3, self.n, self.n), dtype=np.float32)
        place = np.clip(t * np.float32(255), 0, 255).astype(np.intp)
        for channel in range(3):
            table = np.interp(steps, stops, colours[:, channel]).astype(np.float32)
            image[channel] = table[place]
        return image

    def flat(self, colour: Array) -> Array:
        """Return an image of one colour, (3,)."""
        return np.broadcast_to(colour.astype(np.float32)[:, None, None], (3, self.n, self.n)).copy()

    def backdrop(self) -> Array:
        """Return a background: soft noise or a gradient, and a little clutter."""
        start = self.whole(0, 2)
        colours = self.other[start : start + 3]  # neighbours: a background has little contrast
        fine = self.n
        self._resolve(self.size)  # half the resolution suffices for soft things
        if self.chance(0.6):
            image = self.ramp(self.field(self.between(1.5, 5), 3), colours)
        else:
            angle = self.between(0, 2 * math.pi)
            t = 0.5 + 0.5 * (math.cos(angle) * self.x + math.sin(angle) * self.y) / 1.42
            image = self.ramp(t.astype(np.float32), colours)
        for _ in range(self.whole(0, round(3 * DIFFICULTY))):
            self.paint(image, self.blob(0.1, 0.5), self.other[self.whole(0, 4)], self.between(0.3, 0.9))
        self._resolve(fine)
        return image.repeat(fine // self.size, axis=1).repeat(fine // self.size, axis=2)

    def blob(self, low: float, high: float) -> Array:
        """Return the mask of a disc, a bar or a box somewhere on the canvas."""
        x, y = self.x - self.between(-1, 1), self.y - self.between(-1, 1)
        angle, radius = self.between(0, math.pi), self.between(low, high)
        along, across = turned(x, y, angle)
        kind = self.whole(0, 2)
        if kind == 0:
            far = norm(along * self.between(0.6, 1), across) - radius
        elif kind == 1:
            far = np.abs(across) - 0.3 * radius
        else:
            far = np.maximum(np.abs(along) - radius, np.abs(across) - radius * self.between(0.4, 1))
        return edge(far.astype(np.float32), 3 / self.n)

    def paint(self, image: Array, mask: Array, colour: Array, strength: float = 1.0) -> None:
        """Lay `colour`, (3,) or an image, over `image` by `mask`, in place."""
        mask = mask * np.float32(strength)
        for plane, tint in zip(image, colour, strict=True):  # a plane at a time stays in the cache
            change = tint - plane
            change *= mask
            plane += change

    def shade(self, image: Array, light: Array, strength: float) -> None:
        """Darken and lighten in place: `light` 0 to 1, where a half changes nothing."""
        image *= 1 + np.float32(2 * strength) * (light - np.float32(0.5))

    def pen(self) -> tuple[Image.Image, ImageDraw.ImageDraw]:
        """Return an empty image for PIL to draw on with fill 255, which `inked` turns into a mask."""
        image = Image.new("L", (self.n, self.n), 0)
        return image, ImageDraw.Draw(image)

    # the lens

    def finish(self, image: Array) -> NDArray[np.uint8]:
        """Return the photograph, (size, size, 3) uint8, of a drawing (3, n, n)."""
        hard, rng = DIFFICULTY, self.rng
        half = image[:, ::2] + image[:, 1::2]
        small = np.float32(0.25) * (half[..., ::2] + half[..., 1::2])
        self._resolve(self.size)
        angle = self.between(0, 2 * math.pi)
        light = np.float32(math.cos(angle)) * self.x + np.float32(math.sin(angle)) * self.y
        small *= 1 + np.float32(self.between(0, 0.35) * hard) * light
        if self.chance(0.4 * hard):  # the shadow of something
            self.shade(small, self.field(self.between(1, 2.5), 1), self.between(0.2, 0.5) * min(hard, 1.5))
        for _ in range(int(rng.binomial(3, min(0.16 * hard, 1)))):  # something in the way
            self.paint(small, self.blob(0.12, 0.38), self.other[self.whole(0, 4)], self.between(0.75, 1))
        small = np.clip(small, 0, 1)
        if self.chance(0.08):
            small = np.broadcast_to(small.mean(axis=0, keepdims=True), small.shape)
        if self.chance(0.06 * hard):
            small = 1 - small  # a negative: light and dark say as little as hue
        contrast = 1 - self.between(0, 0.4) * min(hard, 2)
        small = (small - 0.5) * np.float32(contrast) + np.float32(0.5 + self.between(-0.12, 0.12) * min(hard, 1.5))
        grain = self.between(0, 0.05) * hard
        out = np.clip(small * 255, 0, 255).astype(np.uint8).transpose(1, 2, 0)
        blur = self.between(-0.6, 0.9) * hard * self.size / 64
        if blur > 0.15:
            out = np.asarray(Image.fromarray(np.ascontiguousarray(out)).filter(ImageFilter.BoxBlur(blur)))
        draws = rng.integers(0, 256, (2, *out.shape), dtype=np.uint8).astype(np.float32)
        # The difference of two uniform draws: close enough to a normal one, and ten times as fast.
        noisy = out + (draws[0] - draws[1]) * np.float32(2.45 * grain)
        return np.clip(noisy + np.float32(0.5), 0, 255).astype(np.uint8)


def _subdivide(grid: Array) -> Array:
    """Return twice the rows, less two: corner cutting, whose limit is a quadratic B-spline."""
    fine = np.empty((2 * len(grid) - 2, grid.shape[1]), dtype=np.float32)
    quarter, rest = np.float32(0.25) * grid, np.float32(0.75) * grid
    np.add(rest[:-1], quarter[1:], out=fine[::2])
    np.add(quarter[:-1], rest[1:], out=fine[1::2])
    return fine


def edge(distance: Array, soft: float) -> Array:
    """Return 1 where `distance` is negative, 0 where positive, with a ramp `soft` wide between."""
    return np.clip(np.float32(0.5) - distance * np.float32(1 / soft), 0, 1)


def modulo(w: Array, period: float) -> Array:
    """Return `w` modulo `period`, in [0, period]; many times as fast as NumPy's."""
    return w - np.float32(period) * np.floor(w * np.float32(1 / period))


def norm(u: Array, v: Array) -> Array:
    return np.sqrt(u * u + v * v)


def turned(u: Array, v: Array, angle: float) -> tuple[Array, Array]:
    """Return the coordinates along and across a direction, `angle` radians from that of u."""
    return math.cos(angle) * u + math.sin(angle) * v, math.cos(angle) * v - math.sin(angle) * u


def stripes(phase: Array) -> Array:
    """Return 0 to 1 and back, smoothly, once per unit of `phase`."""
    return np.float32(0.5) + np.float32(0.5) * np.sin(phase * np.float32(2 * math.pi))


def comb(phase: Array) -> Array:
    """Return the distance to the nearest whole number, 0 to 0.5."""
    return np.abs(phase - np.round(phase))


def cell_value(table: Array, column: Array, row: Array) -> Array:
    """Return a table's entry for each cell of a grid, the same throughout the cell."""
    return table[(column.astype(np.intp) * 73 + row.astype(np.intp) * 151) & (len(table) - 1)]


def inked(image: Image.Image) -> Array:
    return np.asarray(image, dtype=np.float32) * np.float32(1 / 255)
