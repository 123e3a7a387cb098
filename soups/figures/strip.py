"""The outputs of every point side by side: one row per example, one column per point."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from soups.errors import UserError
from soups.figures import Inputs
from soups.figures.spec import MAX_SAMPLES, Figure, Strip, shorten
from soups.results import Result

INPUT_KEYS = ("prompt", "question", "input", "uid", "id", "reference")
MAX_COLUMNS = 7


def figure(inputs: Inputs) -> Figure:
    """Draw the stored examples of the first sweep; pictures are cells that start with ``data:image/``."""
    results = _spread(inputs.main())
    if not all(result.samples for result in results):
        raise UserError(
            "no examples are stored", where="SWEEPS", fix="let the evaluator define samples(), see docs/soups.md"
        )
    first = results[0].samples[: min(MAX_SAMPLES, *(len(result.samples) for result in results))]
    key = next((key for key in INPUT_KEYS if key in first[0]), None)
    rows = [sample.get(key, "") if key else str(index + 1) for index, sample in enumerate(first)]
    cells = [[_output(result.samples[index], key) for result in results] for index in range(len(first))]
    columns = [_column(result) for result in results]
    return Figure("Outputs along the sweep", [Strip(columns, rows, cells)])


def _spread(results: Sequence[Result]) -> list[Result]:
    """Return at most ``MAX_COLUMNS`` points, evenly spaced in the order of the first coefficient."""
    names = list(results[0].coefficients)
    ordered = sorted(results, key=lambda r: [-r.coefficients[name] for name in names])
    count = min(MAX_COLUMNS, len(ordered))
    return [ordered[round(i * (len(ordered) - 1) / max(count - 1, 1))] for i in range(count)]


def _output(sample: Mapping[str, str], key: str | None) -> str:
    shown = [value for name, value in sample.items() if name not in INPUT_KEYS and name != key]
    picture = next((value for value in shown if value.startswith("data:image/")), None)
    return picture or "\n".join(shown)


def _column(result: Result) -> str:
    if result.alone is not None:
        return shorten(result.alone, 16)
    return " : ".join(f"{weight:.2g}" for weight in result.coefficients.values())
