"""From all scores to the numbers of a report, section by section: plain data, written as ``report.json``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from soups import pareto
from soups.diff import TOTAL, diff
from soups.front import Bootstrap, compute_front
from soups.metric_names import written
from soups.pareto import Floats
from soups.results import Result
from soups.study.evidence import (
    ENSEMBLE,
    MORL,
    Quantity,
    Trade,
    barrier_quantities,
    mean_quantity,
    over_best,
    over_seeds,
    trade_quantities,
    verdict,
)
from soups.study.parts import Models
from soups.study.plan import Plan, chained_name, inner_points, morl_name
from soups.study.schema import START, Pair, Path
from soups.study.scores import SELECTION, Table

FORMAT = 1
MAX_COLUMNS, MAX_ROWS = 5, 6  # of the samples along the coefficient
HIDDEN = ("uid",)


@dataclass
class Collector:
    """Reads the table; every section is a method."""

    plan: Plan
    table: Table
    models: Models
    curves: dict[str, list[Result]] = field(default_factory=dict)
    """Of every pair, the soups averaged over the seeds: what its figures are drawn from."""

    @property
    def first_split(self) -> str:
        """Return the split that fronts are drawn on."""
        return next(iter(self.plan.study.evaluation.splits))

    def results(self, kind: str, name: str, seed: int, split: str = "") -> list[Result]:
        """Return the points of a mixture."""
        return self.table.results[f"{kind}/{name}/{seed}", split or self.first_split]

    def report(self) -> dict[str, Any]:
        """Return the whole report but for its figures and times."""
        study = self.plan.study
        start = self.results("model", START, study.seeds[0])[0]
        return {
            "format": FORMAT,
            "title": study.title,
            "question": study.question,
            "paper": study.paper,
            "seeds": list(study.seeds),
            "num_samples": start.num_samples,
            "labels": {metric: written(metric) for metric in start.metrics},
            "splits": {name: {"ood": split.ood} for name, split in study.evaluation.splits.items()},
            "fronts": [self.front(pair) for pair in study.pairs],
            "spider": self.spider() if study.spider else None,
            "models": self.models_table(),
            "merges": self.merges() if study.merges else None,
            "paths": [self.path(path) for path in study.paths],
            "study": study.model_dump(mode="json"),
        }

    # -- fronts ---------------------------------------------------------------------------------------------------

    def front(self, pair: Pair) -> dict[str, Any]:
        """Return what lies between two specialists, under every seed and on average."""
        study = self.plan.study
        metrics = [study.specialists[name].metric for name in pair.of]
        name = " | ".join(pair.of)
        sweeps = [self.results("pair", name, seed) for seed in study.seeds]
        trades = [
            Trade(
                np.array([[result.coefficients[n] for n in pair.of] for result in sweep]),
                _scores(sweep, metrics),
                self._others(pair, seed, sweep, metrics),
            )
            for seed, sweep in zip(study.seeds, sweeps, strict=True)
        ]
        measured = [trade_quantities(trade, study.resamples, len(pair.of)) for trade in trades]
        numbers = {key: over_seeds([each[key] for each in measured]) for key in measured[0]}
        mean = self.curves[name] = averaged(sweeps)
        start = self.results("model", START, study.seeds[0])[0]
        data = compute_front(
            mean,
            *metrics,
            init=start.metrics,
            bootstrap=Bootstrap(num_resamples=study.resamples),
            series={other: np.mean([trade.others[other] for trade in trades], axis=0) for other in trades[0].others},
        )
        return {
            "of": list(pair.of),
            "metrics": metrics,
            "num_morl": pair.morl,
            "numbers": numbers,
            "hypotheses": _hypotheses(numbers, data),
            "knee": data["knee"],
            "front": data,
            "samples": samples_along(sweeps[0]),
        }

    def _others(self, pair: Pair, seed: int, sweep: Sequence[Result], metrics: Sequence[str]) -> dict[str, Floats]:
        """Return the scores of the baselines, from the first specialist to the second."""
        ends = _scores([sweep[0], sweep[-1]], metrics)
        others = {}
        if pair.morl:
            names = [morl_name(dict(zip(pair.of, w, strict=True))) for w in inner_points(pair.morl)]
            inner = [self.results("model", name, seed)[0] for name in names]
            others[MORL] = np.concatenate([ends[:1], _scores(inner, metrics), ends[1:]])
        found = self.table.ensembles.get((" | ".join(pair.of), seed, self.first_split), [])
        if found:
            inner = np.array([[scores[metric] for metric in metrics] for _, scores in found]).transpose(0, 2, 1)
            others[ENSEMBLE] = np.concatenate([ends[:1], inner, ends[1:]])
        for chain in pair.chains:
            others[chain] = _scores(self.results("pair", chained_name(pair, chain), seed), metrics)
        return others

    # -- several rewards ------------------------------------------------------------------------------------------

    def spider(self) -> dict[str, Any]:
        """Return the uniform soup of several specialists against one training on all their rewards."""
        study = self.plan.study
        assert study.spider is not None
        names = study.spider.of
        metrics = [study.specialists[name].metric for name in names]
        rows = {START: ("model", START)} | {name: ("model", name) for name in names}
        rows["uniform soup"] = ("spider", "uniform soup")
        if study.spider.morl:
            rows[MORL] = ("spider", MORL)
        values = {row: {metric: self.quantities(*where, metric) for metric in metrics} for row, where in rows.items()}
        leads = {}
        if study.spider.morl:
            for metric in metrics:
                both = zip(values["uniform soup"][metric], values[MORL][metric], strict=True)
                leads[metric] = over_seeds([soup - morl for soup, morl in both])
        return {
            "of": list(names),
            "metrics": metrics,
            "values": {row: {m: over_seeds(q) for m, q in each.items()} for row, each in values.items()},
            "soup_minus_morl": leads,
            "num_ahead": sum(lead["low"] > 0 for lead in leads.values()),
            "num_behind": sum(lead["high"] < 0 for lead in leads.values()),
        }

    def quantities(self, kind: str, name: str, metric: str, split: str = "") -> list[Quantity]:
        """Return the mean of a metric under every seed."""
        study = self.plan.study
        return [
            mean_quantity(self.results(kind, name, seed, split)[-1].scores[metric], study.resamples)
            for seed in study.seeds
        ]

    # -- models and merges on every split -------------------------------------------------------------------------

    def model_names(self) -> list[tuple[str, str]]:
        """Return kind and name of every single model, the start first."""
        seed = self.plan.study.seeds[0]
        kinds = ("model", "merge", "spider")
        return [(m.kind, m.name) for m in self.plan.mixtures if m.seed == seed and m.kind in kinds]

    def models_table(self) -> list[dict[str, Any]]:
        """Return every model with its scores on every split."""
        rows = []
        for kind, name in self.model_names():
            cells = {
                split: {m: over_seeds(self.quantities(kind, name, m, split)) for m in self._metrics(kind, name, split)}
                for split in self.plan.study.evaluation.splits
            }
            role = "specialist" if name in self.plan.study.specialists else START if name == START else kind
            rows.append({"name": name, "role": "baseline" if role == "model" else role, "scores": cells})
        return rows

    def _metrics(self, kind: str, name: str, split: str) -> list[str]:
        return list(self.results(kind, name, self.plan.study.seeds[0], split)[-1].metrics)

    def merges(self) -> dict[str, Any]:
        """Return every merge against the best single specialist and against the start, on every split.

        The merge that is `chosen` for a metric is the best one on the selection samples: of the numbers of a table
        with many merges, the largest flatters.
        """
        study = self.plan.study
        names = [name for kind, name in self.model_names() if kind == "merge"]
        metrics = self._metrics("model", START, self.first_split)
        splits = {}
        for split in study.evaluation.splits:
            splits[split] = {metric: self._leads(names, metric, split) for metric in metrics}
        chosen = {}
        if study.evaluation.selection is not None:
            for metric in metrics:
                means = {name: _mean(self.quantities("merge", name, metric, SELECTION)) for name in names}
                chosen[metric] = max(means, key=means.__getitem__)
        greedy = {
            key.split("/")[1]: {"members": found["members"], "coefficients": found["coefficients"]}
            for key, found in self.table.greedy.items()
        }
        return {"names": names, "leads": splits, "chosen": chosen, "greedy": greedy}

    def _leads(self, names: Sequence[str], metric: str, split: str) -> dict[str, Any]:
        study = self.plan.study
        singles = [self.quantities("model", name, metric, split) for name in study.specialists]
        start = self.quantities("model", START, metric, split)
        best = max(study.specialists, key=lambda name: _mean(self.quantities("model", name, metric, split)))
        rows = {}
        for name in names:
            own = self.quantities("merge", name, metric, split)
            over = [over_best(model, [single[i] for single in singles]) for i, model in enumerate(own)]
            lead = over_seeds(over)
            rows[name] = {
                "over_best_single": lead,
                "verdict": verdict(lead),
                "over_start": over_seeds([model - first for model, first in zip(own, start, strict=True)]),
            }
        return {"best_single": best, "rows": rows}

    # -- connectivity ---------------------------------------------------------------------------------------------

    def path(self, path: Path) -> dict[str, Any]:
        """Return the barrier between two models and how far they are from each other."""
        study = self.plan.study
        name, found = " | ".join(path.of), []
        for seed in study.seeds:
            sweep = self.results("path", name, seed)
            shares = np.array([[result.coefficients[n] for n in path.of] for result in sweep])
            scores = np.array([result.scores[path.metric] for result in sweep])
            found.append(barrier_quantities(shares, scores, study.resamples))
        numbers = {key: over_seeds([each[key] for each in found]) for key in found[0]}
        curve = averaged([self.results("path", name, seed) for seed in study.seeds])
        return {
            "of": list(path.of),
            "metric": path.metric,
            "group": path.group or name,
            "numbers": numbers,
            "verdict": verdict({"low": numbers["barrier"]["low"], "high": numbers["barrier"]["high"]}),
            "curve": [result.metrics[path.metric] for result in curve],
            "distance": float(np.mean([self._distance(path, seed) for seed in study.seeds])),
        }

    def _distance(self, path: Path, seed: int) -> float:
        """Return the distance of the two models, in units of the norm of the first."""
        name = " | ".join(path.of)
        mixture = next(m for m in self.plan.mixtures if (m.kind, m.name, m.seed) == ("path", name, seed))
        pair = [self.models.checkpoint(node, label) for label, node in mixture.members.items()]
        row = diff(pair)["modules"][TOTAL]
        return float(next(iter(row["distance"].values())) / next(iter(row["norm"].values())))


def _scores(results: Sequence[Result], metrics: Sequence[str]) -> Floats:
    """Return scores (P, N, 2) of some points."""
    return np.array([[result.scores[metric] for metric in metrics] for result in results], float).transpose(0, 2, 1)


def _mean(quantities: Sequence[Quantity]) -> float:
    return float(np.mean([quantity.value for quantity in quantities]))


def averaged(sweeps: Sequence[Sequence[Result]]) -> list[Result]:
    """Return one sweep with the scores of every sample averaged over the seeds; examples are those of the first."""
    if len(sweeps) == 1:
        return list(sweeps[0])
    found = []
    for results in zip(*sweeps, strict=True):
        scores = {m: np.mean([r.scores[m] for r in results], axis=0).tolist() for m in results[0].scores}
        means = {metric: float(np.mean(values)) for metric, values in scores.items()}
        found.append(replace(results[0], scores=scores, metrics=means))
    return found


def _hypotheses(numbers: Mapping[str, Any], data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the two working hypotheses with their margins and verdicts."""
    line = data["straight_line"]
    first = {
        "statement": "the front of the soups lies above the straight line between the specialists",
        "area": numbers["area above the chord"],
        "gain": numbers["gain over the line"],
        "verdict": verdict(numbers["area above the chord"]),
        "num_below": None if line is None else line["num_below"],
        "num_inside": len(data["points"]) - 2,
        "smallest_margins": {data["x"]: numbers["smallest margin/0"], data["y"]: numbers["smallest margin/1"]},
        "mean_margins": {data["x"]: numbers["mean margin/0"], data["y"]: numbers["mean margin/1"]},
    }
    found = {"lmc": first}
    key = f"equal points/{MORL}/hypervolume"
    if key in numbers:
        found["pareto"] = {
            "statement": "the soups are at least as good as trainings on mixed rewards",
            "equal_points": numbers[key],
            "equal_points_igd_plus": numbers[f"equal points/{MORL}/igd_plus"],
            "equal_cost": numbers[f"equal cost/{MORL}/hypervolume"],
            "equal_cost_igd_plus": numbers[f"equal cost/{MORL}/igd_plus"],
            "verdict": verdict(numbers[key]),
            "verdict_at_equal_cost": verdict(numbers[f"equal cost/{MORL}/hypervolume"]),
        }
    return found


def samples_along(results: Sequence[Result]) -> dict[str, Any]:
    """Return examples as a table: one row per example, what all points share first, then one column per point."""
    if not results or not all(result.samples for result in results):
        return {"columns": [], "rows": []}
    chosen = [results[index] for index in pareto.evenly_spaced(len(results), MAX_COLUMNS)]
    rows = []
    for index in range(min(MAX_ROWS, len(results[0].samples))):
        samples = [dict(result.samples[index]) for result in chosen]
        same = {key for key in samples[0] if len({sample.get(key) for sample in samples}) == 1}
        outputs = [key for key in samples[0] if key not in same] or [list(samples[0])[-1]]
        shared = {key: value for key, value in samples[0].items() if key not in outputs and key not in HIDDEN}
        rows.append({"shared": shared, "cells": ["\n".join(sample[key] for key in outputs) for sample in samples]})
    return {"columns": [dict(result.coefficients) for result in chosen], "rows": rows}
