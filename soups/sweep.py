"""Score many mixtures of the same checkpoints and keep every score.

Rewarded soups (Rame et al. 2023, arXiv:2306.04488): N trainings, then one evaluation per coefficient. Results
are keyed by content, so that a sweep can be killed, resumed and extended.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from soups.errors import UserError
from soups.evaluator import digests_of_files
from soups.merge import Recipe
from soups.methods import Method
from soups.points import Point
from soups.recipes.coefficients import Rule
from soups.recipes.policies import Policies
from soups.results import (
    SWEEP_NAME,
    Result,
    append_result,
    append_shared,
    described_method,
    marked,
    method_of,
    new_or_old,
    open_results,
    read_manifest,
    read_results,
)
from soups.scoring import Scorer, remove_leftovers, score_points
from soups.shares import Share
from soups.state import Checkpoint, read_digests, reopen, write_text

FORMAT = 1
EVERYTHING = Share()


@dataclass(frozen=True)
class Sweep:
    """What is swept: everything but the points, which may be added to later.

    Attributes:
        checkpoints: the models.
        method: how they are merged.
        evaluator: ``module:function``, see `soups.evaluator`.
        args: its arguments.
        base: the common initialisation, for methods that use one.
        integers: policy for integer tensors that differ, see ``soups.recipes.policies.resolve``.
        modules: patterns of tensor names that have coefficients of their own: a point then holds one coefficient
            per model, and as many again for each pattern. The first pattern that matches a whole name counts.
        depths: of the modules that are depth profiles, the number of depths: the module then has that many times
            one coefficient per model, from the first layer to the last, linear between; see ``Rule``.
        rules: coefficients of some tensors that are the same at every point; they count before the modules.
        policies: what may differ between the models.
    """

    checkpoints: Sequence[Checkpoint]
    method: Method
    evaluator: str
    args: Mapping[str, Any] = field(default_factory=dict)
    base: Checkpoint | None = None
    integers: str = "error"
    modules: Sequence[str] = ()
    depths: Mapping[str, int] = field(default_factory=dict)
    rules: Sequence[Rule] = ()
    policies: Policies = field(default_factory=Policies)

    @cached_property
    def files(self) -> dict[str, str]:
        """Return the digest of every file that the arguments of the evaluator name, by path."""
        return digests_of_files(self.args)

    @property
    def labels(self) -> list[str]:
        """Return what has coefficients of its own besides the rest: a module, or a depth of one that is a profile."""
        found = []
        for pattern in self.modules:
            count = self.depths.get(pattern, 1)
            found += [f"{pattern} at depth {i}/{count - 1}" for i in range(count)] if count > 1 else [pattern]
        return found

    def parts(self, point: Point) -> list[Point]:
        """Return the coefficients of the tensors that no pattern matches, then those of each label.

        Raises:
            UserError: the point has too few or too many coefficients.
        """
        size, wanted = len(self.checkpoints), len(self.checkpoints) * (1 + len(self.labels))
        if len(point) != wanted:
            fix = "give one per model, and as many again for each --module, after a semicolon"
            raise UserError(f"{len(point)} weights for {wanted} coefficients", where="--weights", fix=fix)
        return [point[start : start + size] for start in range(0, wanted, size)]

    def recipe(self, point: Point) -> Recipe:
        """Return the recipe of one point."""
        rest, *others = self.parts(point)
        rules = list(self.rules)
        for pattern in self.modules:
            values = [others.pop(0) for _ in range(self.depths.get(pattern, 1))]
            rules.append(Rule(pattern, tuple(zip(*values, strict=True))))
        return Recipe(self.checkpoints, rest, self.method, self.base, self.integers, rules, self.policies)

    def named(self, point: Point) -> dict[str, float]:
        """Return coefficients by the name of the checkpoint, of the tensors that no pattern matches."""
        return {c.name: weight for c, weight in zip(self.checkpoints, self.parts(point)[0], strict=True)}

    def named_modules(self, point: Point) -> dict[str, dict[str, float]]:
        """Return coefficients by label and name of the checkpoint."""
        names = [checkpoint.name for checkpoint in self.checkpoints]
        parts = zip(self.labels, self.parts(point)[1:], strict=True)
        return {label: dict(zip(names, part, strict=True)) for label, part in parts}

    def key(self, point: Point) -> str:
        """Return the content hash of a point; it depends neither on the order nor on the names of models."""
        rest, *modules = [
            sorted((c.digest, weight) for c, weight in zip(self.checkpoints, part, strict=True))
            for part in self.parts(point)
        ]
        content = {
            "format": FORMAT,
            "coefficients": rest,
            "base": self.base.digest if self.base else None,
            "method": self.method.identity,
            "params": self.method.described_params,
            "evaluator": self.evaluator,
            "args": dict(self.args),
        }
        if self.modules:
            content["modules"] = [[label, part] for label, part in zip(self.labels, modules, strict=True)]
        if self.rules:
            content["rules"] = [
                [rule.pattern, sorted(zip((c.digest for c in self.checkpoints), rule.weights, strict=True))]
                for rule in self.rules
            ]
        if self.policies != Policies():
            content["policies"] = self.policies.described()
        if self.files:
            content["files"] = sorted(self.files.items())
        if self.method.extras:
            content["extras"] = sorted((model.digest, extra.digest) for model, extra in self.method.extras)
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def manifest(self) -> dict[str, Any]:
        """Return the content of ``sweep.json``."""
        return {
            "format": FORMAT,
            "checkpoints": {c.name: c.described() for c in self.checkpoints},
            "base": self.base.described() if self.base else None,
            **described_method(self.method),
            "integers": self.integers,
            "evaluator": self.evaluator,
            "args": dict(self.args),
            **({"modules": list(self.modules)} if self.modules else {}),
            **({"depths": dict(self.depths)} if self.depths else {}),
            **({"rules": [[rule.pattern, rule.weights] for rule in self.rules]} if self.rules else {}),
            **({"policies": self.policies.described()} if self.policies != Policies() else {}),
            **({"files": self.files} if self.files else {}),
            **({"extras": self._extras()} if self.method.extras else {}),
        }

    def _extras(self) -> dict[str, Any]:
        return {model.name: extra.described() for model, extra in self.method.extras}


def check_distinct(sweep: Sweep) -> None:
    """Require models to differ: between copies there is nothing to sweep, and their corners would be one result.

    Raises:
        UserError: two have the same weights.
    """
    read_digests(sweep.checkpoints)
    names: dict[str, str] = {}
    for checkpoint in sweep.checkpoints:
        other = names.setdefault(checkpoint.digest, checkpoint.name)
        if other != checkpoint.name:
            what = f"{other!r} and {checkpoint.name!r} are the same weights"
            raise UserError(what, where=str(checkpoint.path), fix="give each model once")


def run_sweep(
    sweep: Sweep,
    points: Sequence[Point],
    out_dir: Path,
    on_result: Callable[[Result, bool], None] = lambda result, is_new: None,
    num_workers: int = 1,
    scorer: Scorer | None = None,
    share: Share = EVERYTHING,
) -> list[Result]:
    """Score the points that ``out_dir`` does not hold yet; return the results of all of them, in order.

    Args:
        sweep: what to mix and how to score it.
        points: coefficients in the order of the checkpoints.
        out_dir: where ``results.jsonl`` and ``sweep.json`` are written.
        on_result: called for each point, with its result and whether it was computed now.
        num_workers: processes that score points at the same time.
        scorer: one to use again when points are added one after the other; it keeps the models in memory.
        share: which of the points this process scores, when others score the rest at the same time; returned are
            then the results that are there, theirs too.

    Raises:
        UserError: something does not fit; headers and coefficients are checked before any data is read.
    """
    for point in points:
        sweep.recipe(point).check()
    read_digests(sweep.recipe(points[0]).files if points else [])
    is_shared = share.count > 1
    with new_or_old(out_dir, is_shared=is_shared), open_results(out_dir, is_shared=is_shared) as (previous, file):
        _write_manifest(sweep, out_dir, has_results=bool(previous))
        if not is_shared:
            remove_leftovers(out_dir)
        done = {result.key: result for result in previous}
        missing = [point for point in share.of(points) if sweep.key(point) not in done]
        for point in share.of(points):
            if sweep.key(point) in done:
                on_result(done[sweep.key(point)], False)
        if missing:
            # Closing ends the workers at once when a result is refused or the sweep is interrupted.
            with closing(score_points(sweep, missing, out_dir, num_workers, scorer)) as results:
                for result in results:
                    _check_same_table(result, next(iter(done.values()), result), sweep.evaluator)
                    if is_shared:
                        append_shared(file, result, out_dir)
                    else:
                        append_result(file, result)
                    done[result.key] = result
                    on_result(result, True)
    if is_shared:
        done |= {result.key: result for result in read_results(out_dir)}
    return marked([done[key] for key in map(sweep.key, points) if key in done], sweep.method.is_exact, sweep.rules)


def reopen_sweep(out_dir: Path) -> Sweep:
    """Return the sweep that wrote a folder, to add points to it; its checkpoints must still be there, unchanged.

    Raises:
        UserError: no sweep in the folder, or a checkpoint is gone or has changed.
    """
    manifest = read_manifest(out_dir)
    if manifest is None:
        raise UserError(f"no {SWEEP_NAME} in this folder", where=str(out_dir), fix="give the output of soups sweep")
    checkpoints = [reopen(entry, name) for name, entry in manifest["checkpoints"].items()]
    extras = [
        (checkpoint, reopen(manifest["extras"][checkpoint.name], f"{checkpoint.name}, extra"))
        for checkpoint in checkpoints
        if "extras" in manifest
    ]
    # Points outside the simplex are checked where they are asked for, so that this permits nothing new.
    return Sweep(
        checkpoints,
        method_of(manifest, extras),
        manifest["evaluator"],
        manifest["args"],
        reopen(manifest["base"]) if manifest["base"] else None,
        manifest["integers"],
        manifest.get("modules", ()),
        manifest.get("depths", {}),
        [Rule(pattern, tuple(map(tuple, weights))) for pattern, weights in manifest.get("rules", ())],
        Policies(**manifest.get("policies", {})),
    )


def _write_manifest(sweep: Sweep, out_dir: Path, *, has_results: bool) -> None:
    manifest = json.loads(json.dumps(sweep.manifest()))  # as it will be read back
    before = read_manifest(out_dir)
    if before is None or not has_results:
        write_text(out_dir / SWEEP_NAME, json.dumps(manifest, indent=2) + "\n")
        return
    names = sorted({*before, *manifest})
    changed = [name for name in names if _without_paths(before.get(name)) != _without_paths(manifest.get(name))]
    if changed:
        raise UserError(
            f"this folder holds another sweep, which differs in: {', '.join(changed)}",
            where=str(out_dir / SWEEP_NAME),
            fix="give another -o",
        )
    # Coefficients, paths between models and `--integers first` are read in this order.
    if list(before["checkpoints"]) != list(manifest["checkpoints"]):
        raise UserError(
            f"this folder holds a sweep of these models in another order: {', '.join(before['checkpoints'])}",
            where=str(out_dir / SWEEP_NAME),
            fix="give the models, and their --weights, in that order, or give another -o",
        )


def _without_paths(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_paths(item) for key, item in value.items() if key != "path"}
    return value


def _check_same_table(result: Result, other: Result, spec: str) -> None:
    if (sorted(result.metrics), result.num_samples) != (sorted(other.metrics), other.num_samples):
        raise UserError(
            f"evaluate() returned {result.num_samples} samples of {', '.join(result.metrics)}; "
            f"before, {other.num_samples} samples of {', '.join(other.metrics)}",
            where=spec,
            fix="score the same samples with the same metrics at every call",
        )
