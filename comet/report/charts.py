"""Small charts as SVG and heat maps as PNG. The page around them sets the colours of their classes, light or dark.

By hand: matplotlib 3.11 would add 97 MB of packages (a 10 MB wheel and eight dependencies beside numpy) and 0.5 s to
the import, and its drawings have no classes to colour and no tooltips.
"""

import base64
import math
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import zip_longest

import numpy as np
from numpy.typing import NDArray

WIDTH, HEIGHT = 360, 228
LEFT, RIGHT, TOP, BOTTOM = 46, 18, 10, 44
HEAT = (46, 124, 214)  # between the light page and the dark one, so that one picture serves both

Point = tuple[float, float]
Range = tuple[float, float]


@dataclass(frozen=True)
class Series:
    """Numbers of one kind. `kind` is the class that colours them, `notes` are their tooltips."""

    kind: str
    name: str
    values: Sequence[float]
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Line:
    """Points (x, y) from left to right. `kind` is the class that colours them, `notes` are their tooltips."""

    kind: str
    name: str
    points: Sequence[Point]
    notes: Sequence[str] = ()
    dots: bool = False
    hollow: Sequence[bool] = ()


@dataclass(frozen=True)
class Frame:
    """The mapping of data in the ranges x and y to a drawing of WIDTH × HEIGHT."""

    x: Range
    y: Range

    def at(self, x: float, y: float) -> Point:
        across = (x - self.x[0]) / (self.x[1] - self.x[0])
        up = (y - self.y[0]) / (self.y[1] - self.y[0])
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)


def number(value: float) -> str:
    """Return a number as short as a tick label must be: 0.25, 20, 1.5k, 20k, 3M."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:g}"


def whole(value: float) -> str:
    """Return the label of a whole step, empty for a tick between two steps."""
    return number(value) if value == round(value) else ""


def percent(value: float) -> str:
    return f"{100 * value:.3g}%"


def _tick_step(low: float, high: float, most: int = 5) -> float:
    """Return the smallest 1, 2 or 5 times a power of ten that cuts a range, not empty, into at most `most` parts."""
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    return power * next(m for m in (1, 2, 5, 10) if m * power >= rough * (1 - 1e-9))


def ticks(low: float, high: float) -> list[float]:
    """Return the multiples of the tick step from low to high."""
    step = _tick_step(low, high)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [i * step for i in range(first, last + 1)]


def widen(values: Sequence[float]) -> Range:
    """Return a range that holds the values and ends on ticks, never empty."""
    low, high = min(values), max(values)
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        low, high = (low - abs(low) / 2, high + abs(high) / 2) if high else (0.0, 1.0)
    for _ in range(2):  # the wider range may have a wider step
        step = _tick_step(low, high)
        low, high = step * math.floor(low / step + 1e-9), step * math.ceil(high / step - 1e-9)
    return low, high


def line_chart(
    label: str,
    lines: Sequence[Line],
    x_name: str,
    x: Range | None = None,
    y: Range | None = None,
    tick_label: Callable[[float], str] = number,
    mark: tuple[Point, str] | None = None,
) -> str:
    """Draw lines over a common x, whole steps unless its range is given. `mark` is a point with a name, drawn last."""
    points = [point for line in lines for point in line.points]
    first, last = min(px for px, _ in points), max(px for px, _ in points)
    frame = Frame(x or (first, max(last, first + 1)), y or widen([py for _, py in points]))
    parts = [*_y_axis(frame, tick_label), *_x_axis(frame, tick_label if x else whole), _caption(x_name)]
    for line in lines:
        at = [frame.at(*point) for point in line.points]
        if len(at) > 1:
            path = "M" + "L".join(f"{px:.1f} {py:.1f}" for px, py in at)
            parts.append(f'<path class="line {line.kind}" d="{path}"/>')
        if line.dots or len(at) == 1:
            for p, note, hollow in zip_longest(at, line.notes, line.hollow):
                parts.append(_dot(p, f"dot few {line.kind}" if hollow else f"dot {line.kind}", note or ""))
    if mark:
        (px, py), name = frame.at(*mark[0]), mark[1]
        parts.append(f'<path class="mark" d="M{px:.1f} {TOP}V{HEIGHT - BOTTOM}"/>')
        parts.append(_dot((px, py), "dot best", name))
        side = (px + 6, "start") if px < WIDTH / 2 else (px - 6, "end")
        parts.append(_words(side[0], TOP + 10, name, side[1], "strong"))
    return _drawing(label, parts)


def bar_chart(
    label: str,
    names: Sequence[Sequence[str]],
    series: Sequence[Series],
    x_name: str,
    tick_label: Callable[[float], str] = number,
) -> str:
    """Draw groups of bars side by side, one group for each of `names`, whose lines stand under it."""
    frame = Frame((0.0, float(len(names))), widen([0.0, *(value for one in series for value in one.values)]))
    parts = _y_axis(frame, tick_label)
    width = min((WIDTH - LEFT - RIGHT) / len(names) * 0.7 / len(series), 36.0)
    for i, lines in enumerate(names):
        middle, floor = frame.at(i + 0.5, max(frame.y[0], 0.0))
        for j, one in enumerate(series):
            top = frame.at(0, one.values[i])[1]
            left = middle + (j - len(series) / 2) * width
            note = f"<title>{escape(one.notes[i])}</title>" if one.notes else ""
            parts.append(
                f'<rect class="bar {one.kind}" x="{left + 1:.1f}" y="{min(top, floor):.1f}" width="{width - 2:.1f}" '
                f'height="{abs(floor - top):.1f}">{note}</rect>'
            )
        parts += [_words(middle, HEIGHT - BOTTOM + 14 + 12 * n, text, "middle") for n, text in enumerate(lines)]
    return _drawing(label, [*parts, _caption(x_name)])


def _drawing(label: str, parts: Sequence[str]) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">{"".join(parts)}</svg>'


def _y_axis(frame: Frame, tick_label: Callable[[float], str]) -> list[str]:
    parts = []
    for tick in ticks(*frame.y):
        y = frame.at(frame.x[0], tick)[1]
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(_words(LEFT - 6, y + 3.5, tick_label(tick), "end"))
    return parts


def _x_axis(frame: Frame, tick_label: Callable[[float], str]) -> list[str]:
    return [
        _words(frame.at(tick, frame.y[0])[0], HEIGHT - BOTTOM + 15, tick_label(tick), "middle")
        for tick in ticks(*frame.x)
    ]


def _caption(text: str) -> str:
    return _words((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 4, text, "middle", "muted")


def _words(x: float, y: float, text: str, anchor: str, kind: str = "tick") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _dot(at: Point, kind: str, note: str) -> str:
    title = f"<title>{escape(note)}</title>" if note else ""
    return f'<circle class="{kind}" cx="{at[0]:.1f}" cy="{at[1]:.1f}" r="4">{title}</circle>'


def heat_map(values: NDArray, most: float) -> str:
    """Return values [n, m] as the data URL of a PNG, one pixel each: transparent at 0, opaque at `most`."""
    share = np.clip(values / most if most > 0 else np.zeros_like(values), 0.0, 1.0)
    return "data:image/png;base64," + base64.b64encode(_png(np.rint(share * 255).astype(np.uint8))).decode()


def _png(opacity: NDArray[np.uint8]) -> bytes:
    """Return a PNG of one colour whose pixels [n, m] have this opacity, by a palette that differs in nothing else.

    Portable Network Graphics, third edition (W3C 2025): colour type 3, bit depth 8, a tRNS chunk, filter 0.
    """

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = opacity.shape
    lines = np.insert(opacity, 0, 0, axis=1)  # [n, 1 + m], each line behind its filter type
    return b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)),
            chunk(b"PLTE", bytes(HEAT) * 256),
            chunk(b"tRNS", bytes(range(256))),
            chunk(b"IDAT", zlib.compress(lines.tobytes(), 9)),
            chunk(b"IEND", b""),
        ]
    )
