"""Line charts as SVG: a card with its own background, in the reader's light or dark scheme.

The same data gives the same bytes. Colours are told apart by their labels, never by colour alone.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import pairwise

WIDTH, HEIGHT = 920, 400
LEFT, RIGHT, TOP, BOTTOM = 78, 190, 64, 62
STYLE = """
  text { fill: #0f172a; font: 14px system-ui, -apple-system, 'Segoe UI', sans-serif; }
  .small { font-size: 12.5px; fill: #334155; }
  .head { font-weight: 600; font-size: 16px; }
  .label { font-weight: 600; font-size: 13px; }
  .card { fill: #ffffff; }
  .grid { stroke: #e2e8f0; stroke-width: 1; }
  .axis { stroke: #334155; stroke-width: 1.5; }
  .mark { stroke: #94a3b8; stroke-width: 1.2; stroke-dasharray: 5 4; }
  .line { fill: none; stroke-width: 2.4; stroke-linejoin: round; stroke-linecap: round; }
  .s0 { stroke: #1d4ed8; } text.s0, circle.s0 { fill: #1d4ed8; stroke: none; }
  .s1 { stroke: #047857; } text.s1, circle.s1 { fill: #047857; stroke: none; }
  .s2 { stroke: #c2410c; } text.s2, circle.s2 { fill: #c2410c; stroke: none; }
  .s3 { stroke: #7e22ce; } text.s3, circle.s3 { fill: #7e22ce; stroke: none; }
"""
DARK = """
    text { fill: #f1f5f9; }
    .small { fill: #cbd5e1; }
    .card { fill: #0f172a; }
    .grid { stroke: #263449; }
    .axis { stroke: #94a3b8; }
    .mark { stroke: #64748b; }
    .s0 { stroke: #60a5fa; } text.s0, circle.s0 { fill: #60a5fa; }
    .s1 { stroke: #34d399; } text.s1, circle.s1 { fill: #34d399; }
    .s2 { stroke: #fb923c; } text.s2, circle.s2 { fill: #fb923c; }
    .s3 { stroke: #d8b4fe; } text.s3, circle.s3 { fill: #d8b4fe; }
"""


@dataclass(frozen=True)
class Axis:
    """From 0 to `most`, with a line and a number at each of `ticks`."""

    title: str
    most: float
    ticks: Sequence[float]
    shown: Callable[[float], str] = "{:g}".format


@dataclass(frozen=True)
class Series:
    """A labelled line. What is above the axis is cut off: the line leaves the picture there."""

    label: str
    points: Sequence[tuple[float, float]]
    dots: bool = True


@dataclass(frozen=True)
class Chart:
    """`description` is for who cannot see it. `marks` are vertical lines with a word each.

    Labels stand at the lines, or in a `legend` where lines end together.
    """

    title: str
    description: str
    x: Axis
    y: Axis
    series: Sequence[Series]
    marks: Sequence[tuple[float, str]] = field(default_factory=tuple)
    legend: bool = False

    def svg(self) -> str:
        parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
            'aria-labelledby="title description">',
            f'<title id="title">{escape(self.title)}</title>',
            f'<desc id="description">{escape(self.description)}</desc>',
            f"<style>{STYLE}  @media (prefers-color-scheme: dark) {{{DARK}  }}\n</style>",
            f'<clipPath id="plot"><rect x="{LEFT}" y="{TOP}" width="{WIDTH - LEFT - RIGHT}" '
            f'height="{HEIGHT - TOP - BOTTOM}"/></clipPath>',
            f'<rect class="card" width="{WIDTH}" height="{HEIGHT}" rx="10"/>',
            f'<text class="head" x="{LEFT}" y="30">{escape(self.title)}</text>',
            *self._frame(),
            *self._marks(),
            *self._lines(),
            "</svg>",
        ]
        return "\n".join(parts) + "\n"

    def _across(self, value: float) -> float:
        return LEFT + value / self.x.most * (WIDTH - LEFT - RIGHT)

    def _up(self, value: float) -> float:
        return HEIGHT - BOTTOM - value / self.y.most * (HEIGHT - TOP - BOTTOM)

    def _frame(self) -> list[str]:
        right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
        parts = []
        for tick in self.y.ticks:
            y = self._up(tick)
            parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{right}"/>')
            parts.append(_text(LEFT - 10, y + 4.5, self.y.shown(tick), "small", "end"))
        for tick in self.x.ticks:
            shown = self.x.shown(tick)
            parts.append(_text(self._across(tick), bottom + 20, shown, "small", "middle"))
        parts.append(f'<path class="axis" d="M{LEFT} {bottom}H{right}"/>')
        parts.append(_text((LEFT + right) / 2, HEIGHT - 16, self.x.title, "small", "middle"))
        parts.append(_text(LEFT, 51, self.y.title, "small", "start"))
        return parts

    def _marks(self) -> list[str]:
        parts = []
        for value, word in self.marks:
            x = self._across(value)
            parts.append(f'<path class="mark" d="M{x:.1f} {TOP}V{HEIGHT - BOTTOM}"/>')
            parts.append(_text(x + 6, TOP + 14, word, "small", "start"))
        return parts

    def _lines(self) -> list[str]:
        parts = []
        for number, series in enumerate(self.series):
            points = [(self._across(x), self._up(y)) for x, y in series.points]
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
            shapes = [f'<polyline class="line s{number}" points="{path}"/>']
            if series.dots:
                shapes += [
                    f'<circle class="s{number}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>'
                    for x, y in points
                ]
            parts.append(f'<g clip-path="url(#plot)">{"".join(shapes)}</g>')
        return parts + (self._legend() if self.legend else self._labels())

    def _labels(self) -> list[str]:
        """Beside the end of each line, or beside where it leaves the picture."""
        parts, ends = [], []
        height = 0.88 * self.y.most
        for number, series in enumerate(self.series):
            if series.points[-1][1] <= self.y.most:
                ends.append((self._up(series.points[-1][1]), number))
                continue
            x = self._across(_crossing(series.points, height)) + 14
            kind = f"label s{number}"
            parts.append(_text(x, self._up(height) + 4.5, series.label, kind, "start"))
        lowest = 0.0
        for y, number in sorted(ends):
            lowest = max(y, lowest + 19.0)
            label, x = self.series[number].label, WIDTH - RIGHT + 14
            parts.append(_text(x, lowest + 4.5, label, f"label s{number}", "start"))
        return parts

    def _legend(self) -> list[str]:
        parts = []
        for number, series in enumerate(self.series):
            x, y = WIDTH - RIGHT + 16, TOP + 12 + 26 * number
            parts.append(f'<path class="line s{number}" d="M{x} {y}h22"/>')
            parts.append(_text(x + 30, y + 4.5, series.label, f"label s{number}", "start"))
        return parts


def _crossing(points: Sequence[tuple[float, float]], height: float) -> float:
    """Where the line last rises through `height`."""
    for (x0, y0), (x1, y1) in reversed(list(pairwise(points))):
        if y0 <= height < y1:
            return x0 + (height - y0) / (y1 - y0) * (x1 - x0)
    raise ValueError("the line does not rise so high")


def _text(x: float, y: float, text: str, kind: str, anchor: str) -> str:
    return (
        f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
    )
