"""A number with its interval, spelled and drawn the same way everywhere on the page."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from unival.report.markup import Markup, join, tag
from unival.report.plot import strip

Z95 = 1.959964  # of the normal distribution: 95 % lie within


@dataclass(frozen=True, slots=True)
class Metric:
    """How a metric is called and shown: rates in percent, others as numbers up to `top`."""

    label: str
    is_rate: bool = True
    top: float = 1.0


METRICS = {
    "cider_d": Metric("CIDEr-D, of 10", is_rate=False, top=10.0),
    "exact": Metric("whole caption equal to the reference"),
    "names": Metric("every object named, none invented"),
    "accuracy": Metric("answer right"),
    "accuracy@0.5": Metric("box right (IoU at least 0.5)"),
    "iou": Metric("mean IoU", is_rate=False),
    "brevity": Metric("brevity, of 1", is_rate=False),
}


def metric_of(name: str) -> Metric:
    """Return how a metric is shown; an unknown one is a number under its own name."""
    return METRICS.get(name) or Metric(name.replace("_", " "), is_rate=False)


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean and the bounds of its 95 % interval."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, content: Mapping[str, float]) -> "Estimate":
        """Read `{"mean" or "value", "low", "high"}`."""
        mean = content["mean"] if "mean" in content else content["value"]
        return cls(float(mean), float(content["low"]), float(content["high"]))

    @classmethod
    def of_rate(cls, content: Mapping[str, float], num_samples: int) -> "Estimate":
        """Read the estimate of a rate; where all samples agree, resamples have no spread, so Wilson's is taken."""
        found = cls.of(content)
        return wilson(found.mean, num_samples) if found.mean in (0.0, 1.0) and num_samples else found

    @property
    def sign(self) -> int:
        """Return 1 or -1 if the interval excludes zero, else 0."""
        return 1 if self.low > 0 else -1 if self.high < 0 else 0

    def spell(self, metric: Metric) -> Markup:
        """Return "91.3 % [86.7, 95.3]"."""
        if metric.is_rate:
            return _spelled(f"{100 * self.mean:.1f} %", f"{100 * self.low:.1f}, {100 * self.high:.1f}")
        return _spelled(number(self.mean), f"{number(self.low)}, {number(self.high)}")

    def spell_change(self, metric: Metric) -> Markup:
        """Return "+4.6 points [1.2, 8.0]": a difference has a sign, and rates differ by points."""
        if metric.is_rate:
            bounds = f"{signed(100 * self.low, '.1f')}, {signed(100 * self.high, '.1f')}"
            return _spelled(f"{signed(100 * self.mean, '.1f')} points", bounds)
        digits = ".3f" if abs(self.mean) < 0.1 else ".2f"
        return _spelled(signed(self.mean, digits), f"{signed(self.low, digits)}, {signed(self.high, digits)}")

    def draw(self, metric: Metric, baseline: float | None = None) -> Markup:
        """Draw the interval on the metric's range."""
        return strip(self.mean, self.low, self.high, 0.0, metric.top, baseline)

    def draw_change(self) -> Markup:
        """Draw the interval around zero."""
        reach = 1.15 * max(abs(self.low), abs(self.high), abs(self.mean), 1e-9)
        return strip(self.mean, self.low, self.high, -reach, reach)


def wilson(rate: float, num_samples: int) -> Estimate:
    """Return the score interval of a share (Wilson 1927), which is not empty at 0 and 1."""
    z = Z95 * Z95 / num_samples
    centre = (rate + z / 2) / (1 + z)
    half = math.sqrt(z * (rate * (1 - rate) + z / 4)) / (1 + z)
    return Estimate(rate, max(0.0, min(rate, centre - half)), min(1.0, max(rate, centre + half)))


def number(value: float) -> str:
    """Return a number with as many digits as a reader can use."""
    return f"{value:.3f}" if abs(value) < 0.1 and value else f"{value:.2f}"


def signed(value: float, digits: str) -> str:
    """Return a number with its sign, a true minus."""
    text = format(value, f"+{digits}")
    return format(0.0, digits) if float(text) == 0 else text.replace("-", "\N{MINUS SIGN}")


def verdict(estimate: Estimate, better: str, worse: str, neither: str) -> str:
    """Return the sentence that the interval allows."""
    return {1: better, -1: worse, 0: neither}[estimate.sign]


def _spelled(value: str, interval: str) -> Markup:
    return join([tag("span", value, class_="num"), " ", tag("span", f"[{interval}]", class_="ci")])
