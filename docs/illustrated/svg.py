"""Plots as SVG text: one figure, axes on it, and marks in the data's own units.

Written by hand so that the bytes depend on nothing but the numbers: pixels have one decimal. A figure brings its own
background, light or dark as the reader's system is, so that it can be read on any page. The colours are Okabe and
Ito's, which colour-blind readers can tell apart; no figure tells things apart by colour alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Literal

Point = tuple[float, float]
Anchor = Literal["start", "middle", "end"]
Shape = Literal["circle", "square", "triangle", "diamond"]

CORNERS: dict[Shape, list[Point]] = {
    "square": [(-4, -4), (4, -4), (4, 4), (-4, 4)],
    "triangle": [(0, -5.5), (5, 4), (-5, 4)],
    "diamond": [(0, -5.5), (5.5, 0), (0, 5.5), (-5.5, 0)],
}
"""Pixels to the right of a mark's place and below it."""

STYLE = """
svg { --paper: #ffffff; --ink: #1f2328; --soft: #59636e; --grid: #e4e7eb; --grey: #b4bac1;
      --blue: #0072b2; --orange: #d55e00; --green: #007a5a; }
@media (prefers-color-scheme: dark) {
  svg { --paper: #161b22; --ink: #f0f3f6; --soft: #a9b3bd; --grid: #30363d; --grey: #6e7681;
        --blue: #56b4e9; --orange: #f0883e; --green: #35c79a; }
}
text { font: 13px system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; fill: var(--ink); }
.soft { fill: var(--soft); } .head { font-weight: 600; } .small { font-size: 11px; }
.paper { fill: var(--paper); } .grid { stroke: var(--grid); } .axis { stroke: var(--soft); }
.line { fill: none; stroke-width: 2.2; stroke-linejoin: round; stroke-linecap: round; }
.dashed { stroke-dasharray: 5 5; stroke-width: 1.4; }
.blue { stroke: var(--blue); } .orange { stroke: var(--orange); } .green { stroke: var(--green); }
.ink { stroke: var(--soft); }
.fill-blue { fill: var(--blue); } .fill-orange { fill: var(--orange); } .fill-green { fill: var(--green); }
.fill-grey { fill: var(--grey); } .mark { stroke: var(--paper); stroke-width: 1.2; }
""".strip()


def pixels(value: float) -> str:
    """One decimal, and no sign on zero."""
    return f"{round(value, 1) + 0.0:.1f}".removesuffix(".0")


@dataclass
class Figure:
    """Elements in drawing order, in pixels from the upper left corner."""

    width: int
    height: int
    title: str
    elements: list[str] = field(default_factory=list)

    def line(self, start: Point, end: Point, style: str) -> None:
        (x1, y1), (x2, y2) = start, end
        ends = f'x1="{pixels(x1)}" y1="{pixels(y1)}" x2="{pixels(x2)}" y2="{pixels(y2)}"'
        self.elements.append(f'<line class="{style}" {ends}/>')

    def curve(self, points: Sequence[Point], style: str) -> None:
        path = " ".join(f"{pixels(x)},{pixels(y)}" for x, y in points)
        self.elements.append(f'<polyline class="line {style}" points="{path}"/>')

    def bar(self, left: float, top: float, width: float, bottom: float, style: str) -> None:
        place = f'x="{pixels(left)}" y="{pixels(top)}" width="{pixels(width)}" height="{pixels(bottom - top)}"'
        self.elements.append(f'<rect class="{style}" {place}/>')

    def mark(self, at: Point, shape: Shape, style: str) -> None:
        x, y = at
        if shape == "circle":
            self.elements.append(f'<circle class="mark {style}" cx="{pixels(x)}" cy="{pixels(y)}" r="4.5"/>')
            return
        path = " ".join(f"{pixels(x + right)},{pixels(y + down)}" for right, down in CORNERS[shape])
        self.elements.append(f'<polygon class="mark {style}" points="{path}"/>')

    def text(self, at: Point, words: str, style: str = "", anchor: Anchor = "start") -> None:
        """`words` may hold one subscript between underscores: `π_ref_`."""
        x, y = at
        before, *subscript = escape(words).split("_")
        inside = before
        if subscript:
            inside += f'<tspan dy="4" font-size="75%">{subscript[0]}</tspan><tspan dy="-4">{subscript[1]}</tspan>'
        where = f'x="{pixels(x)}" y="{pixels(y)}" text-anchor="{anchor}"'
        self.elements.append(f'<text class="{style}" {where}>{inside}</text>')

    def turned(self, at: Point, words: str) -> None:
        """Text that reads upwards, centred on `at`."""
        x, y = at
        turn = f"rotate(-90 {pixels(x)} {pixels(y)})"
        where = f'x="{pixels(x)}" y="{pixels(y)}" text-anchor="middle" transform="{turn}"'
        self.elements.append(f'<text class="soft" {where}>{escape(words)}</text>')

    def render(self) -> str:
        return "\n".join(
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" '
                f'width="{self.width}" height="{self.height}" role="img">',
                f"<title>{escape(self.title)}</title>",
                f"<style>\n{STYLE}\n</style>",
                f'<rect class="paper" width="{self.width}" height="{self.height}" rx="8"/>',
                *self.elements,
                "</svg>\n",
            ]
        )


@dataclass(frozen=True)
class Scale:
    """A range of data that is spread over a range of pixels, evenly or by logarithms."""

    data: tuple[float, float]
    pixels: tuple[float, float]
    logarithmic: bool = False

    def __call__(self, value: float) -> float:
        low, high = self.data
        if self.logarithmic:
            value, low, high = math.log10(value), math.log10(low), math.log10(high)
        start, end = self.pixels
        return start + (end - start) * (value - low) / (high - low)


@dataclass(frozen=True)
class Axes:
    """One panel of a figure; its methods take the data's units."""

    figure: Figure
    x: Scale
    y: Scale

    def at(self, x: float, y: float) -> Point:
        return self.x(x), self.y(y)

    def frame(self, title: str, x_label: str, y_label: str) -> None:
        """The heading above, the names of both axes, and the x axis itself."""
        (left, right), (bottom, top) = self.x.pixels, self.y.pixels
        self.figure.text((left, top - 14), title, "head")
        self.figure.text(((left + right) / 2, bottom + 38), x_label, "soft", "middle")
        self.figure.turned((left - 42, (top + bottom) / 2), y_label)
        self.figure.line((left, bottom), (right, bottom), "axis")

    def x_ticks(self, ticks: Iterable[tuple[float, str]]) -> None:
        bottom, top = self.y.pixels
        for value, label in ticks:
            self.figure.line((self.x(value), bottom), (self.x(value), top), "grid")
            self.figure.text((self.x(value), bottom + 18), label, "soft small", "middle")

    def y_ticks(self, ticks: Iterable[tuple[float, str]]) -> None:
        left, right = self.x.pixels
        for value, label in ticks:
            self.figure.line((left, self.y(value)), (right, self.y(value)), "grid")
            self.figure.text((left - 8, self.y(value) + 4), label, "soft small", "end")

    def curve(self, points: Iterable[Point], style: str) -> None:
        self.figure.curve([self.at(x, y) for x, y in points], style)

    def mark(self, x: float, y: float, shape: Shape, style: str) -> None:
        self.figure.mark(self.at(x, y), shape, style)

    def note(self, x: float, y: float, words: str, shift: Point = (0, 0), anchor: Anchor = "start") -> None:
        """`words` beside a point of the data, moved by `shift` pixels."""
        right, down = shift
        self.figure.text((self.x(x) + right, self.y(y) + down), words, "small", anchor)
