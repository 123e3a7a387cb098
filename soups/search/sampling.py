"""Which point to score next, when scoring is dear and models are many: CMA-ES or TPE, asked and told.

Both work in the unit cube; coefficients are made of it per group (all models, or those of one module), so that every
point is on the simplex, corners included. TPE (Bergstra et al. 2011) is optuna's, CMA-ES (Hansen and Ostermeier
2001) that of ``cma``; both are in the extra ``search``.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from soups.errors import UserError
from soups.pareto import Floats
from soups.points import Point

HALVING = "halving"  # no sampler: `soups.search.pick.next_point`
KINDS = (HALVING, "tpe", "cma")
STEP = 0.25  # of CMA-ES at its start, in the unit cube


class Sampler(Protocol):
    """Proposes points and learns from their values, higher is better."""

    def ask(self) -> Point:
        """Return the next point to score."""
        ...

    def tell(self, value: float) -> None:
        """Say what the point asked for last is worth."""
        ...


def check_kind(kind: str) -> None:
    """Require a search that there is.

    Raises:
        UserError: names the choices.
    """
    if kind not in KINDS:
        raise UserError(f"unknown search {kind!r}", where="--by", fix=f"choices: {', '.join(KINDS)}")


def sampler(kind: str, coefficients: Floats, values: Floats, num_models: int, seed: int = 0) -> Sampler:
    """Return a sampler that knows the points scored so far.

    Args:
        kind: ``tpe`` or ``cma``.
        coefficients: of the points (P, G * num_models), a group of ``num_models`` after the other.
        values: what the points are worth (P,).
        num_models: how many models there are.
        seed: of the draws.

    Raises:
        UserError: its package is not installed.
    """
    try:
        return (_Tpe if kind == "tpe" else _Cma)(coefficients, values, num_models, seed)
    except ImportError as error:
        raise UserError(f"{error.name} is not installed", where="--by", fix='pip install "unival[search]"') from error


def to_cube(coefficients: Floats, num_models: int) -> Floats:
    """Return the point of the unit cube (..., N) that `to_simplex` maps to coefficients on the simplex."""
    groups = coefficients.reshape(*coefficients.shape[:-1], -1, num_models).clip(min=0)
    return (groups / groups.max(axis=-1, keepdims=True)).reshape(coefficients.shape)


def to_simplex(cube: Floats, num_models: int) -> Floats:
    """Return coefficients that sum to one in each group, in the ratios of a point of the unit cube (..., N)."""
    groups = cube.reshape(*cube.shape[:-1], -1, num_models).clip(min=0)
    sums = groups.sum(axis=-1, keepdims=True)
    shares = np.divide(groups, sums, out=np.full_like(groups, 1 / num_models), where=sums > 0)
    return shares.reshape(cube.shape)


def _point(cube: Floats, num_models: int) -> Point:
    shares = np.round(to_simplex(cube, num_models), 12)
    return tuple(float(share) for share in shares)


class _Tpe:
    def __init__(self, coefficients: Floats, values: Floats, num_models: int, seed: int) -> None:
        import optuna  # pyright: ignore[reportMissingImports] - an extra

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._num_models = num_models
        names = [f"x{index}" for index in range(coefficients.shape[1])]
        self._space = {name: optuna.distributions.FloatDistribution(0.0, 1.0) for name in names}
        self._study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed))
        for row, value in zip(to_cube(coefficients, num_models).tolist(), values.tolist(), strict=True):
            params = dict(zip(names, row, strict=True))
            self._study.add_trial(
                optuna.trial.create_trial(params=params, distributions=dict(self._space), value=value)
            )
        self._trial: Any = None

    def ask(self) -> Point:
        self._trial = self._study.ask(dict(self._space))
        return _point(np.array(list(self._trial.params.values())), self._num_models)

    def tell(self, value: float) -> None:
        self._study.tell(self._trial, value)


class _Cma:
    def __init__(self, coefficients: Floats, values: Floats, num_models: int, seed: int) -> None:
        import cma  # pyright: ignore[reportMissingImports] - an extra

        self._num_models = num_models
        start = to_cube(coefficients[int(values.argmax())], num_models)
        options = {"bounds": [0, 1], "seed": seed + 1, "verbose": -9}  # a seed of zero means the clock
        self._strategy = cma.CMAEvolutionStrategy(start.tolist(), STEP, options)
        self._asked: list[Any] = []
        self._told: list[float] = []

    def ask(self) -> Point:
        if len(self._told) == len(self._asked):
            if self._asked:
                self._strategy.tell(self._asked, self._told)
            self._asked, self._told = list(self._strategy.ask()), []
        return _point(np.asarray(self._asked[len(self._told)]), self._num_models)

    def tell(self, value: float) -> None:
        self._told.append(-value)
