"""The outputs of every point side by side: one row per example, one column per point.

What all points share (the picture they were shown, the reference) stands once, in columns before those of the points.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from soups.errors import UserError
from soups.figures import Inputs
from soups.figures.spec import MAX_SAMPLES, Figure, Strip, is_picture, shorten
from soups.results import Result

ASKED = ("prompt", "question", "instruction", "input", "text")  # what a row is called after
IDENTITIES = ("uid", "id")  # they say nothing to a reader
SAID = ("prediction", "output")
REFERENCE = "reference"
TITLES = {"picture": "input", "image": "input", "input": "input", "caption": REFERENCE, REFERENCE: REFERENCE}
MAX_COLUMNS = 7

Sample = Mapping[str, str]


def figure(inputs: Inputs) -> Figure:
    """Draw the stored examples of the first sweep; pictures are cells that start with ``data:image/``."""
    results = _spread(inputs.main())
    if not all(result.samples for result in results):
        raise UserError(
            "no examples are stored", where="SWEEPS", fix="let the evaluator define samples(), see docs/soups.md"
        )
    count = min(MAX_SAMPLES, *(len(result.samples) for result in results))
    examples = [[result.samples[index] for result in results] for index in range(count)]
    shared = _shared(examples)
    given = [dict(_given(row[0], shared)) for row in examples]
    titles = list(dict.fromkeys(title for row in given for title in row))
    titles.sort(key=lambda title: title == REFERENCE)  # next to what is compared with it
    return Figure(
        "Outputs along the sweep",
        [
            Strip(
                columns=[*titles, *map(_column, results)],
                rows=[_label(row[0], shared, index) for index, row in enumerate(examples)],
                cells=[
                    [*(own.get(title, "") for title in titles), *(_output(sample, shared) for sample in row)]
                    for own, row in zip(given, examples, strict=True)
                ],
                num_given=len(titles),
            )
        ],
    )


def _spread(results: Sequence[Result]) -> list[Result]:
    """Return at most ``MAX_COLUMNS`` points, evenly spaced in the order of the first coefficient."""
    names = list(results[0].coefficients)
    ordered = sorted(results, key=lambda r: [-r.coefficients[name] for name in names])
    count = min(MAX_COLUMNS, len(ordered))
    return [ordered[round(i * (len(ordered) - 1) / max(count - 1, 1))] for i in range(count)]


def _shared(examples: Sequence[Sequence[Sample]]) -> set[str]:
    """Return the fields that no model wrote: those that are the same in all columns of every row.

    Where no other field is left, as of one point, whatever is no question and no reference counts as written.
    """
    every = dict.fromkeys(name for row in examples for sample in row for name in sample)
    same = {name for name in every if all(len({sample.get(name) for sample in row}) == 1 for row in examples)}
    known = {*IDENTITIES, "caption", REFERENCE, *(_asked(row[0], same) for row in examples)}
    has_output = any(name in SAID or name not in same | known for name in every)
    return same - set(SAID) if has_output else same & known


def _given(sample: Sample, shared: set[str]) -> list[tuple[str, str]]:
    """Return the columns that a row has for what all points share, in the order of the sample."""
    hidden = {*IDENTITIES, _asked(sample, shared)}
    return [(TITLES.get(name, name), text) for name, text in sample.items() if name in shared and name not in hidden]


def _output(sample: Sample, shared: set[str]) -> str:
    """Return what a point said or drew: a picture that differs between points was drawn by them."""
    own = {name: text for name, text in sample.items() if name not in shared and name not in IDENTITIES}
    drawn = next((text for text in own.values() if is_picture(text)), None)
    said = next((own[name] for name in SAID if name in own), None)
    return drawn or (said if said is not None else "\n".join(own.values()))


def _asked(sample: Sample, shared: set[str]) -> str | None:
    return next((name for name in ASKED if name in shared & sample.keys() and not is_picture(sample[name])), None)


def _label(sample: Sample, shared: set[str], index: int) -> str:
    asked = _asked(sample, shared)
    return sample[asked] if asked else str(index + 1)


def _column(result: Result) -> str:
    if result.alone is not None:
        return shorten(result.alone, 16)
    return " : ".join(f"{weight:.2g}" for weight in result.coefficients.values())
