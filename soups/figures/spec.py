"""What a figure holds, as plain data: drawn as a picture by `soups.plot` and as a page by `soups.interactive`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from soups.metric_names import written
from soups.results import Result

Line = Literal["none", "solid", "dashed", "thin"]
Marker = Literal["dot", "ring", "cross", "square", "small", "none"]
# Colours of sets of models other than the soups of the first sweep, which have the gradient of their coefficient.
PALETTE = (
    *("#7c5cbf", "#2e9e75", "#c28b1d", "#d1495b", "#4a6fa5"),
    *("#8a6d5c", "#e58fc0", "#35b5d3", "#a3b82e", "#5a2a5e"),
)
GRADIENT = ("#fa7659", "#6dafd7")  # of the demo of rewarded soups: first model, last model
INK, GREY, PALE = "#22272e", "#6b7280", "#d9dde3"
MAX_SAMPLES = 8  # kept per point; a page stays small


@dataclass(frozen=True)
class Mark:
    """One point of a plane.

    Attributes:
        x: where it is.
        y: where it is.
        label: text beside it; drawn if there is room, or always if ``is_named``.
        is_named: whether the label is a name that must be read.
        interval: ``x_low, x_high, y_low, y_high``, if known.
        shade: place in the gradient, 0 to 1; None for the colour of the curve.
        is_faded: whether it is drawn hollow: dominated, or outside.
        details: tables shown when it is chosen, by title.
        samples: examples shown when it is chosen.
    """

    x: float
    y: float
    label: str = ""
    is_named: bool = False
    interval: tuple[float, float, float, float] | None = None
    shade: float | None = None
    is_faded: bool = False
    details: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    samples: Sequence[Mapping[str, str]] = ()


@dataclass(frozen=True)
class Curve:
    """Points that belong together.

    Attributes:
        name: in the legend.
        marks: the points, in order.
        colour: of marks without a shade.
        line: through the points.
        marker: of the points.
        path: the line to draw if it is not the one through the marks.
        in_legend: whether the legend has it.
        faded_name: what hollow marks mean, in the legend; empty if they are not explained.
    """

    name: str
    marks: Sequence[Mark]
    colour: str = INK
    line: Line = "solid"
    marker: Marker = "dot"
    path: Sequence[tuple[float, float]] | None = None
    in_legend: bool = True
    faded_name: str = ""


@dataclass(frozen=True)
class Plane:
    """One pair of axes; ``shaded`` are ranges of x drawn grey; ``bar`` names the gradient, if it is used."""

    x_label: str
    y_label: str
    curves: Sequence[Curve]
    title: str = ""
    shaded: Sequence[tuple[float, float]] = ()
    bar: str = ""
    kind: str = "plane"


@dataclass(frozen=True)
class Spoke:
    """One axis of a spider map: the centre is the worst value, the rim the best."""

    label: str
    worst: float
    best: float


@dataclass(frozen=True)
class Polygon:
    """The values of one model on every spoke."""

    name: str
    values: Sequence[float]
    colour: str
    is_dashed: bool = False
    details: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    samples: Sequence[Mapping[str, str]] = ()


@dataclass(frozen=True)
class Spider:
    """A spider map."""

    spokes: Sequence[Spoke]
    polygons: Sequence[Polygon]
    title: str = ""
    kind: str = "spider"


@dataclass(frozen=True)
class Strip:
    """Outputs side by side: one row per example, one column per point; a cell is text or a ``data:image`` URI.

    The first ``num_given`` columns are what all points share, such as the picture that they were shown.
    """

    columns: Sequence[str]
    rows: Sequence[str]
    cells: Sequence[Sequence[str]]
    title: str = ""
    num_given: int = 0
    kind: str = "strip"


@dataclass(frozen=True)
class Figure:
    """Panels in rows of ``num_columns``, a title and the text below."""

    title: str
    panels: Sequence[Plane | Spider | Strip]
    caption: str = ""
    num_columns: int = 1
    shares_axes: bool = False

    def _repr_png_(self) -> bytes:
        """Return what a notebook shows of a figure that is the last line of a cell."""
        from soups.plot import rendered

        return rendered(self, "png")


def is_picture(text: str) -> bool:
    """Say whether a cell holds a picture."""
    return text.startswith("data:image/")


def shown(value: float) -> str:
    """Return a number with four digits."""
    return f"{value:.4g}"


def spell(estimate: Mapping[str, float]) -> str:
    """Return an estimate and its interval as text; the value alone if the interval has no width."""
    if estimate["low"] == estimate["high"]:
        return shown(estimate["value"])
    return f"{estimate['value']:.4g} [{estimate['low']:.4g}, {estimate['high']:.4g}]"


def details_of(result: Result) -> dict[str, dict[str, str]]:
    """Return the tables shown for a result."""
    modules = {
        f"Coefficients of {pattern}": {name: shown(weight) for name, weight in weights.items()}
        for pattern, weights in result.modules.items()
    }
    return {
        "Coefficients": {name: shown(weight) for name, weight in result.coefficients.items()},
        **modules,
        "Scores": {written(metric): shown(value) for metric, value in result.metrics.items()},
    }


def samples_of(result: Result) -> list[dict[str, str]]:
    """Return the examples shown for a result."""
    return [dict(sample) for sample in result.samples[:MAX_SAMPLES]]


def share_of(result: Result) -> float:
    """Return the coefficient of the last model: the place along a sweep of two models."""
    return list(result.coefficients.values())[-1]


def expert_name(coefficients: Mapping[str, Any]) -> str | None:
    """Return the model that has all the weight, or None."""
    used = [name for name, weight in coefficients.items() if weight != 0]
    return used[0] if len(used) == 1 and coefficients[used[0]] == 1 else None


def shorten(name: str, num_characters: int = 28) -> str:
    """Return a name that fits in a figure."""
    return name if len(name) <= num_characters else name[: num_characters - 1] + "…"
