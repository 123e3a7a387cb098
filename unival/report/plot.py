"""Small drawings as inline SVG: curves, intervals, waveforms, boxes, bars. Sizes are CSS pixels at 100 %."""

import math
import wave
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from unival.report.markup import Markup, tag

# The ends are those of the front that `soups` draws; ink and greys are the page's.
CORAL, BLUE, INK, GREY, PALE = "#fa7659", "#6dafd7", "#22272e", "#6b7280", "#d9dde3"
CURVE = "#3b7fb0"
WIDTH, HEIGHT = 260, 144
LEFT, RIGHT, TOP, BOTTOM = 30, 254, 10, 124


def blend(position: float) -> str:
    """Return the colour of a coefficient between the first model (0) and the last (1)."""
    ends = [[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in (CORAL, BLUE)]
    t = min(max(position, 0.0), 1.0)
    return "#" + "".join(f"{round(a + (b - a) * t):02x}" for a, b in zip(*ends, strict=True))


def ticks(top: float, num: int = 3) -> list[float]:
    """Return 0 and multiples of a round step up to `top`."""
    raw = max(top, 1e-9) / num
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * (1 - 1e-9))
    return [step * i for i in range(int(top / step + 1e-9) + 1)]


def curve(
    steps: Sequence[float],
    values: Sequence[float],
    last_step: float,
    top: float,
    boundaries: Sequence[float] = (),
    colour: str = CURVE,
    label: str = "",
) -> Markup:
    """Draw one quantity over training steps, from 0; a dashed line marks where a stage begins.

    Args:
        steps, values: the points; those that are not finite are left out.
        last_step: right end of the axis.
        top: upper end of the axis.
        boundaries: steps at which a stage begins.
        colour: of the line.
        label: what is drawn, for screen readers.
    """

    def x(step: float) -> float:
        return LEFT + (RIGHT - LEFT) * step / max(last_step, 1)

    def y(value: float) -> float:
        return BOTTOM - (BOTTOM - TOP) * min(max(value, 0.0), top * 1.05) / max(top, 1e-9)

    parts = []
    for tick in ticks(top):
        parts.append(_line(LEFT, y(tick), RIGHT, y(tick), PALE if tick == 0 else "#eef0f3"))
        parts.append(_text(LEFT - 5, y(tick) + 3.5, f"{tick:g}", "end"))
    parts += [_line(x(b), TOP - 4, x(b), BOTTOM, GREY, stroke_dasharray="3 3") for b in boundaries]
    parts += [_text(LEFT, HEIGHT - 5, "0"), _text(RIGHT, HEIGHT - 5, f"step {last_step:g}", "end")]
    points = [(x(s), y(v)) for s, v in zip(steps, values, strict=True) if math.isfinite(v)]
    if points:
        d = Markup("M" + "L".join(f"{px:.1f} {py:.1f}" for px, py in points))
        parts.append(tag("path", d=d, fill="none", stroke=colour, stroke_width=1.8, stroke_linejoin="round"))
        parts.append(tag("circle", cx=f"{points[-1][0]:.1f}", cy=f"{points[-1][1]:.1f}", r=2.8, fill=colour))
    return tag("svg", *parts, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=label, class_="curve")


def strip(
    mean: float, low: float, high: float, start: float, end: float, baseline: float | None = None, colour: str = CURVE
) -> Markup:
    """Draw an interval on the range [start, end]: a dot in a bar, and a tick for a baseline."""

    def at(value: float) -> str:
        share = (value - start) / ((end - start) or 1.0)
        return f"{2 + 96 * min(max(share, 0.0), 1.0):.2f}%"  # a margin for the dot

    if not all(map(math.isfinite, (mean, low, high))):
        return Markup()
    parts = [_line(at(start), 8, at(end), 8, PALE)]
    if start < 0 < end:
        parts.append(_line(at(0), 1, at(0), 15, GREY))
    parts.append(_line(at(low), 8, at(high), 8, colour, stroke_width=5, opacity=0.35))
    if baseline is not None:
        parts.append(_line(at(baseline), 3, at(baseline), 13, GREY, stroke_width=1.5))
    parts.append(tag("circle", cx=at(mean), cy=8, r=3.6, fill=colour))
    return tag("svg", *parts, class_="strip", aria_hidden="true")


def bar(share: float) -> Markup:
    """Draw a share of the width as a bar."""
    width = f"{100 * min(max(share, 0.0), 1.0):.1f}%"
    return tag("svg", tag("rect", y=4, width=width, height=8, rx=2, fill=BLUE), class_="strip", aria_hidden="true")


def boxes(width: float, height: float, prediction: object, reference: object) -> Markup:
    """Draw the predicted box (solid) and the reference (dashed) over a picture of the given size in pixels."""
    parts = []
    for box, colour, dash in ((reference, INK, "5 4"), (prediction, "#e0482a", None)):
        corners = _corners(box)
        if corners is None:
            continue
        x0, y0, x1, y1 = corners
        place = {"x": f"{x0:.2f}", "y": f"{y0:.2f}", "width": f"{x1 - x0:.2f}", "height": f"{y1 - y0:.2f}"}
        for stroke, stroke_width in (("#fff", 4.5), (colour, 2.2)):
            parts.append(
                tag("rect", **place, fill="none", stroke=stroke, stroke_width=stroke_width, stroke_dasharray=dash)
            )
    return tag("svg", *parts, viewBox=f"0 0 {float(width):g} {float(height):g}", class_="boxes", aria_hidden="true")


def waveform(path: Path, num_bars: int = 120) -> Markup | None:
    """Draw the loudness of a 16-bit WAV file over time, or return None if it is of another kind."""
    try:
        with wave.open(str(path), "rb") as file:
            if file.getsampwidth() != 2:
                return None
            samples = np.frombuffer(file.readframes(file.getnframes()), dtype="<i2")[:: file.getnchannels()]
    except (wave.Error, EOFError):
        return None
    peaks = [int(np.abs(part.astype(int)).max(initial=0)) for part in np.array_split(samples, num_bars)]
    halves = [0.5 + 19 * peak / max(*peaks, 1) for peak in peaks]
    d = Markup("".join(f"M{i} {20 - half:.1f}V{20 + half:.1f}" for i, half in enumerate(halves)))
    line = tag("path", d=d, stroke=CURVE, stroke_width=0.55, fill="none")
    box = f"-0.5 0 {num_bars} 40"
    return tag("svg", line, viewBox=box, preserveAspectRatio="none", class_="wave", aria_hidden="true")


def _corners(box: object) -> tuple[float, ...] | None:
    if not isinstance(box, list | tuple) or len(box) != 4:
        return None
    x0, y0, x1, y1 = (float(c) for c in box)
    if not all(map(math.isfinite, (x0, y0, x1, y1))):
        return None
    return min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)


def _line(x1: object, y1: object, x2: object, y2: object, colour: str, **more: object) -> Markup:
    place = {k: f"{v:.1f}" if isinstance(v, float) else v for k, v in (("x1", x1), ("y1", y1), ("x2", x2), ("y2", y2))}
    return tag("line", **place, stroke=colour, **more)


def _text(x: float, y: float, text: str, anchor: str | None = None) -> Markup:
    return tag("text", text, x=f"{x:.1f}", y=f"{y:.1f}", text_anchor=anchor)
