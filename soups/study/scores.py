"""The scores of a study: every mixture on every split, each point evaluated once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from soups.errors import UserError, did_you_mean
from soups.evaluator import check_args, checked_scores, digests_of_files, import_function, load_evaluator
from soups.methods import get_method
from soups.points import Point
from soups.recipes.policies import Policies
from soups.results import Result, read_manifest
from soups.scoring import Scorer
from soups.search.greedy import greedy_soup
from soups.state import write_text
from soups.study.parts import Models, Report, slug
from soups.study.plan import Mixture, Plan, inner_points
from soups.study.schema import START, Pair, Study
from soups.sweep import Sweep, run_sweep

SELECTION = "selection"
Scores = Mapping[str, Sequence[float]]


@dataclass
class Table:
    """All results.

    Attributes:
        results: by (mixture, split): the points in order.
        ensembles: by (pair, seed, split): coefficients and scores of each.
        greedy: what the greedy soups tried, by mixture.
    """

    results: dict[tuple[str, str], list[Result]] = field(default_factory=dict)
    ensembles: dict[tuple[str, int, str], list[tuple[Point, Scores]]] = field(default_factory=dict)
    greedy: dict[str, dict[str, Any]] = field(default_factory=dict)


def key_of(mixture: Mixture) -> str:
    """Return the key of a mixture in the table."""
    return f"{mixture.kind}/{mixture.name}/{mixture.seed}"


@dataclass(frozen=True)
class Work:
    """One call of the judge of a split: the name of its method, and the arguments."""

    split: str
    method: str
    args: tuple[Any, ...]


class Judges:
    """Does works; of the judges, the last is kept, so that one evaluator is in memory at a time."""

    def __init__(self, plan: Plan, models: Models, root: Path) -> None:
        self._plan, self._models, self._root = plan, models, root
        self._last: Judge | None = None

    def do(self, work: Work) -> Any:
        """Return what the judge of the split answers."""
        if self._last is None or self._last.split != work.split:
            self._last = Judge(self._plan, self._models, self._root, work.split)
        return getattr(self._last, work.method)(*work.args)


Do = Callable[[Sequence[Work]], Iterable[Any]]


def check_evaluation(plan: Plan) -> None:
    """Refuse, before anything is trained, what could not be scored afterwards.

    Raises:
        UserError: an unknown merge method or parameter, or an evaluator or ensemble that cannot be called.
    """
    for mixture in plan.mixtures:
        get_method(mixture.method, mixture.params).check(mixture.points[0], has_base=mixture.has_base)
    evaluation = plan.study.evaluation
    splits = [split.args for split in evaluation.splits.values()]
    chosen_on = [] if evaluation.selection is None else [evaluation.selection]
    calls = [("evaluation.evaluator", evaluation.evaluator, args) for args in (*splits, *chosen_on)]
    if any(pair.ensemble for pair in plan.study.pairs):
        calls += [("evaluation.ensemble", evaluation.ensemble, args) for args in splits]
    for where, spec, args in calls:
        check_args(spec, import_function(spec, where), evaluation.args | args)


def check_metrics(study: Study, found: Iterable[str]) -> None:
    """Require the evaluator to give every metric that the study names.

    Raises:
        UserError: names the first that it does not give.
    """
    named = {f"specialists.{name}.metric": each.metric for name, each in study.specialists.items()}
    named |= {f"paths.{index}.metric": path.metric for index, path in enumerate(study.paths)}
    named |= {f"merges.{name}.metric": merge.metric for name, merge in study.merges.items()}
    for where, metric in named.items():
        if metric and metric not in found:
            what = f"the evaluator gives no metric {metric!r}"
            raise UserError(what, where=where, fix=did_you_mean(metric, found))


def score_start(plan: Plan, do: Do) -> None:
    """Score the start on the first split, and check the metrics: mistakes show before hours of training."""
    mixture = next(m for m in plan.mixtures if (m.kind, m.name) == ("model", START))
    (results,) = do([Work(next(iter(plan.study.evaluation.splits)), "score", (mixture,))])
    check_metrics(plan.study, list(results[0].metrics))


def score_all(plan: Plan, do: Do, report: Report) -> Table:
    """Score everything, split by split.

    Args:
        plan: what to score; its models are there.
        do: answers works in their order, here or in several processes.
        report: called with a line about everything that is begun.
    """
    table = Table()
    evaluation = plan.study.evaluation
    mixtures = plan.mixtures
    if evaluation.selection is not None:
        report("scores on the samples that choose")
        searched = [mixture for mixture in mixtures if mixture.greedy]
        found = do([Work(SELECTION, "greedy", (mixture,)) for mixture in searched])
        table.greedy |= zip(map(key_of, searched), found, strict=True)
        mixtures = [_settled(mixture, table) for mixture in mixtures]
        _score(SELECTION, table, [mixture for mixture in mixtures if mixture.kind == "merge"], do)
    for number, name in enumerate(evaluation.splits, start=1):
        report(f"scores {number}/{len(evaluation.splits)}: {name}")
        if number > 1:  # fronts and barriers are drawn on the first split only
            mixtures = [mixture for mixture in mixtures if mixture.kind in ("model", "merge", "spider")]
        _score(name, table, mixtures, do)
        if number == 1:
            pairs = [(pair, seed) for pair in plan.study.pairs for seed in plan.study.seeds]
            found = do([Work(name, "ensembles", args) for args in pairs])
            keys = ((" | ".join(pair.of), seed, name) for pair, seed in pairs)
            table.ensembles |= zip(keys, found, strict=True)
    return table


def _score(split: str, table: Table, mixtures: Sequence[Mixture], do: Do) -> None:
    found = do([Work(split, "score", (mixture,)) for mixture in mixtures])
    table.results |= zip(((key_of(mixture), split) for mixture in mixtures), found, strict=True)


def _settled(mixture: Mixture, table: Table) -> Mixture:
    """Return a greedy soup with the coefficients that were found."""
    if not mixture.greedy:
        return mixture
    found = table.greedy[key_of(mixture)]["coefficients"]
    point = tuple(found[name] for name in mixture.members)
    return Mixture(mixture.name, mixture.kind, mixture.seed, mixture.members, (point,))


class Judge:
    """Scores mixtures on one split; the evaluator is loaded when the first point is missing."""

    def __init__(self, plan: Plan, models: Models, root: Path, split: str) -> None:
        self.plan, self.models, self.evaluation, self.split = plan, models, plan.study.evaluation, split
        own = self.evaluation.selection if split == SELECTION else self.evaluation.splits[split].args
        self.args = dict(self.evaluation.args) | dict(own or {})
        files = digests_of_files(self.args)
        described = json.dumps([self.evaluation.evaluator, self.args, *([files] if files else [])], sort_keys=True)
        self.root = root / "scores" / f"{slug(split)}-{hashlib.sha256(described.encode()).hexdigest()[:8]}"
        self._evaluator: Any = None
        self._shapes: dict[str, Any] = {}

    def sweep(self, mixture: Mixture) -> Sweep:
        """Return the sweep of a mixture."""
        checkpoints = [self.models.checkpoint(node, name) for name, node in mixture.members.items()]
        base = self.models.checkpoint(self.plan.start) if mixture.has_base else None
        method = get_method(mixture.method, mixture.params)
        spec = self.evaluation.evaluator
        # A start in bfloat16, as models are released, and specialists in float32, as they are trained.
        everything = [*checkpoints, *([base] if base else [])]
        dtypes = {info.dtype for checkpoint in everything for info in checkpoint.infos.values() if info.is_float}
        policies = Policies(dtype="F32" if len(dtypes) > 1 else None)
        return Sweep(checkpoints, method, spec, self.args, base, self.plan.study.integers, policies=policies)

    def folder(self, mixture: Mixture) -> Path:
        """Return where the scores of a mixture are."""
        members = {name: self.models.checkpoint(node, name).digest for name, node in mixture.members.items()}
        base = self.models.checkpoint(self.plan.start).digest if mixture.has_base else None
        identity = get_method(mixture.method).identity
        content = json.dumps([members, identity, dict(mixture.params), base, bool(mixture.greedy)], sort_keys=True)
        folder = self._named(mixture, content)
        # A sweep has its models in an order; where this one is another, it has a folder of its own.
        before = (read_manifest(folder) or {"checkpoints": members})["checkpoints"]
        return folder if list(before) == list(members) else self._named(mixture, content + json.dumps(list(members)))

    def _named(self, mixture: Mixture, content: str) -> Path:
        return self.root / f"{slug(mixture.name)}-{hashlib.sha256(content.encode()).hexdigest()[:12]}"

    def score(self, mixture: Mixture) -> list[Result]:
        """Return the results of all points of a mixture, in order."""
        sweep, folder = self.sweep(mixture), self.folder(mixture)
        scorer = Scorer(sweep, folder, lambda: self.evaluator(sweep))
        return run_sweep(sweep, mixture.points, folder, scorer=scorer)

    def greedy(self, mixture: Mixture) -> dict[str, Any]:
        """Find the coefficients of a greedy soup."""
        return greedy_soup(self.sweep(mixture), mixture.greedy, self.folder(mixture))

    def evaluator(self, sweep: Sweep) -> Any:
        """Return the evaluator, loaded once for models of the same shapes."""
        first = sweep.checkpoints[0]
        shapes = {name: info.shape for name, info in first.infos.items()}
        if shapes != self._shapes:
            self._evaluator = load_evaluator(sweep.evaluator, first.model_path, sweep.args)
            self._shapes = shapes
        return self._evaluator

    def ensembles(self, pair: Pair, seed: int) -> list[tuple[Point, Scores]]:
        """Return the scores of ensembles of the predictions of two specialists, at evenly spaced weights."""
        nodes = [f"{name}/s{seed}" if f"{name}/s{seed}" in self.plan.nodes else name for name in pair.of]
        keys = [self.models.checkpoint(node).digest for node in nodes]
        spec, found, ensemble = self.evaluation.ensemble, [], None
        for weights in inner_points(pair.ensemble):
            content = json.dumps([spec, keys, weights], sort_keys=True)
            path = self.root / f"ensemble-{hashlib.sha256(content.encode()).hexdigest()[:16]}.json"
            if not path.is_file():
                ensemble = ensemble or _load_ensemble(spec, [self.models.path(node) for node in nodes], self.args)
                scores = checked_scores(ensemble.evaluate(weights), spec)
                write_text(path, json.dumps({"weights": weights, "scores": scores}))
            found.append((weights, json.loads(path.read_text(encoding="utf-8"))["scores"]))
        return found


def _load_ensemble(spec: str, paths: Sequence[Path], args: Mapping[str, Any]) -> Any:
    function: Callable[..., Any] = import_function(spec, "evaluation.ensemble")
    check_args(spec, function, args)
    ensemble = function(paths, **args)
    if not callable(getattr(ensemble, "evaluate", None)):
        raise UserError(
            f"{spec} returned {type(ensemble).__name__}, which has no method evaluate(weights)",
            where="evaluation.ensemble",
            fix="return an object whose evaluate(weights) gives scores by metric",
        )
    return ensemble
