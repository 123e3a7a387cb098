"""Kinds of figures, one file each; the file name is the name of the kind (``user_preference`` is user-preference).

A file defines ``figure(inputs: Inputs) -> Figure``. It reads results only, so that figures are drawn again without
any model. The kinds are those of rewarded soups (Rame et al. 2023, arXiv:2306.04488) and of UnIVAL (Shukor et al.
2023, arXiv:2307.16184).
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from soups.errors import UserError, did_you_mean

if TYPE_CHECKING:  # the names of the kinds are part of --help, which must not wait for numpy
    from soups.figures.spec import Figure
    from soups.pareto import Floats
    from soups.results import Result

# Other names in the papers of what is drawn the same way.
ALIASES = {"end-to-end": "front", "pairs": "front", "radar": "spider"}
NOT_KINDS = ("__init__", "spec", "curves")
Fit = Literal["polyline", "smooth", "steps", "none"]


@dataclass(frozen=True)
class Inputs:
    """What a figure may be drawn from.

    Attributes:
        sweeps: results by name; the first is the main one.
        x: metric of the horizontal axis; the first metric by default.
        y: metric of the vertical axis; the second metric by default.
        init: mean scores of the initialisation.
        series: scores (P, S, 2) of ``x`` and ``y`` of other sets of models, such as MORL.
        trajectories: the same, of one training over time.
        fit: the line of the soups: through the points, a cubic fit, the steps of what they dominate, or none.
        num_columns: of small multiples.
    """

    sweeps: Mapping[str, Sequence[Result]] = field(default_factory=dict)
    x: str | None = None
    y: str | None = None
    init: Mapping[str, float] | None = None
    series: Mapping[str, Floats] = field(default_factory=dict)
    trajectories: Mapping[str, Floats] = field(default_factory=dict)
    fit: Fit = "polyline"
    num_columns: int = 3

    def main(self) -> Sequence[Result]:
        """Return the results of the first sweep.

        Raises:
            UserError: there is none, or it is empty.
        """
        results = next(iter(self.sweeps.values()), None)
        if not results:
            raise UserError("this figure needs the results of a sweep", where="SWEEPS", fix="give its folder")
        return results

    def plain(self) -> Sequence[Result]:
        """Return the results of the first sweep in which one set of coefficients holds for all tensors.

        Raises:
            UserError: there is none.
        """
        results = [result for result in self.main() if result.is_plain]
        if not results:
            what = "every point of this sweep has coefficients of its own for some modules"
            raise UserError(what, where="SWEEPS", fix="draw it with: soups plot front")
        return results


def kind_names() -> list[str]:
    """List the kinds, aliases included."""
    files = (path.stem.replace("_", "-") for path in Path(__file__).parent.glob("*.py") if path.stem not in NOT_KINDS)
    return sorted([*files, *ALIASES])


def draw(kind: str, inputs: Inputs) -> Figure:
    """Return the figure of a kind.

    Raises:
        UserError: unknown kind, or the inputs do not suffice.
    """
    known = kind_names()
    if kind not in known:
        raise UserError(f"unknown figure {kind!r}", where="KIND", fix=did_you_mean(kind, known, len(known)))
    module = importlib.import_module(f"soups.figures.{ALIASES.get(kind, kind).replace('-', '_')}")
    return module.figure(inputs)
