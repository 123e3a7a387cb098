"""Score many mixtures of the same checkpoints: read each once, write every mixture into one live model.

Rewarded soups (Rame et al. 2023, arXiv:2306.04488): N trainings, then one evaluation per coefficient. Results
are keyed by content, so that a sweep can be killed, resumed and extended.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from soups.errors import UserError
from soups.evaluator import Evaluator, checked_samples, checked_scores, load_evaluator
from soups.merge import Integers, Recipe, canonical_order, pick_integer
from soups.methods import Method
from soups.points import Point
from soups.results import SWEEP_NAME, Result, append_result, open_results, read_manifest
from soups.state import MAX_LISTED, Checkpoint, write_text

if TYPE_CHECKING:
    import torch

FORMAT = 1


@dataclass(frozen=True)
class Sweep:
    """What is swept: everything but the points, which may be added to later."""

    checkpoints: Sequence[Checkpoint]
    method: Method
    evaluator: str
    args: Mapping[str, Any] = field(default_factory=dict)
    base: Checkpoint | None = None
    integers: Integers = "error"

    def recipe(self, point: Point) -> Recipe:
        """Return the recipe of one point."""
        return Recipe(self.checkpoints, point, self.method, self.base, self.integers)

    def named(self, point: Point) -> dict[str, float]:
        """Return coefficients by the name of the checkpoint."""
        return {c.name: weight for c, weight in zip(self.checkpoints, point, strict=True)}

    def key(self, point: Point) -> str:
        """Return the content hash of a point; it depends neither on the order nor on the names of models."""
        content = {
            "format": FORMAT,
            "coefficients": sorted((c.digest, w) for c, w in zip(self.checkpoints, point, strict=True)),
            "base": self.base.digest if self.base else None,
            "method": self.method.name,
            "params": self.method.described_params,
            "evaluator": self.evaluator,
            "args": dict(self.args),
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def manifest(self) -> dict[str, Any]:
        """Return the content of ``sweep.json``."""
        return {
            "format": FORMAT,
            "checkpoints": {c.name: {"path": str(c.path), "sha256": c.digest} for c in self.checkpoints},
            "base": {"path": str(self.base.path), "sha256": self.base.digest} if self.base else None,
            "method": self.method.name,
            "params": self.method.described_params,
            "integers": self.integers,
            "evaluator": self.evaluator,
            "args": dict(self.args),
        }


def run_sweep(
    sweep: Sweep,
    points: Sequence[Point],
    out_dir: Path,
    on_result: Callable[[Result, bool], None] = lambda result, is_new: None,
) -> list[Result]:
    """Score the points that ``out_dir`` does not hold yet; return the results of all of them, in order.

    Args:
        sweep: what to mix and how to score it.
        points: coefficients in the order of the checkpoints.
        out_dir: where ``results.jsonl`` and ``sweep.json`` are written.
        on_result: called for each point, with its result and whether it was computed now.

    Raises:
        UserError: something does not fit; headers and coefficients are checked before any data is read.
    """
    for point in points:
        sweep.recipe(point).check()
    out_dir.mkdir(parents=True, exist_ok=True)
    with open_results(out_dir) as (previous, file):
        _write_manifest(sweep, out_dir, has_results=bool(previous))
        done = {result.key: result for result in previous}
        missing = [point for point in points if sweep.key(point) not in done]
        for point in points:
            if sweep.key(point) in done:
                on_result(done[sweep.key(point)], False)
        if missing:
            evaluator = load_evaluator(sweep.evaluator, sweep.checkpoints[0].path, sweep.args)
            soup = LiveSoup(sweep, evaluator.state())
            for point in missing:
                result = _score(sweep, soup, evaluator, point)
                _check_same_table(result, next(iter(done.values()), result), sweep.evaluator)
                append_result(file, result)
                done[result.key] = result
                on_result(result, True)
    return [done[sweep.key(point)] for point in points]


def _write_manifest(sweep: Sweep, out_dir: Path, *, has_results: bool) -> None:
    manifest = json.loads(json.dumps(sweep.manifest()))  # as it will be read back
    before = read_manifest(out_dir)
    if before is None or not has_results:
        write_text(out_dir / SWEEP_NAME, json.dumps(manifest, indent=2) + "\n")
        return
    changed = [name for name in manifest if _without_paths(before.get(name)) != _without_paths(manifest[name])]
    if changed:
        raise UserError(
            f"this folder holds another sweep, which differs in: {', '.join(changed)}",
            where=str(out_dir / SWEEP_NAME),
            fix="give another -o",
        )


def _without_paths(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_paths(item) for key, item in value.items() if key != "path"}
    return value


def _score(sweep: Sweep, soup: LiveSoup, evaluator: Evaluator, point: Point) -> Result:
    start = time.perf_counter()
    soup.write(point)
    scores = checked_scores(evaluator.evaluate(), sweep.evaluator)
    return Result(
        key=sweep.key(point),
        coefficients=sweep.named(point),
        metrics={metric: sum(values) / len(values) for metric, values in scores.items()},
        num_samples=len(next(iter(scores.values()))),
        scores=scores,
        samples=checked_samples(evaluator),
        seconds=round(time.perf_counter() - start, 6),
    )


def _check_same_table(result: Result, other: Result, spec: str) -> None:
    if (sorted(result.metrics), result.num_samples) != (sorted(other.metrics), other.num_samples):
        raise UserError(
            f"evaluate() returned {result.num_samples} samples of {', '.join(result.metrics)}; "
            f"before, {other.num_samples} samples of {', '.join(other.metrics)}",
            where=spec,
            fix="score the same samples with the same metrics at every call",
        )


class LiveSoup:
    """The weights of all checkpoints in memory, and the live tensors that receive their mixtures.

    Memory: the checkpoints in their stored dtype, plus the live model. A mixture is written in place, one
    tensor at a time, rounded once to the dtype of the live tensor.
    """

    def __init__(self, sweep: Sweep, live: Mapping[str, torch.Tensor]) -> None:
        self._method = sweep.method
        self._integers: Integers = sweep.integers
        self._order = canonical_order(sweep.checkpoints)
        infos = sweep.checkpoints[0].infos
        check_live(infos, live, sweep.evaluator)
        self._live = {name: live[name] for name in infos}
        self._states = [checkpoint.load() for checkpoint in sweep.checkpoints]
        self._base = sweep.base.load() if sweep.base else None
        for names in aliases(self._live):
            _check_aliases_agree(names, [*self._states, *([self._base] if self._base else [])])
        for name, info in infos.items():
            if not info.is_float:  # fail now rather than at the first mixture
                pick_integer(name, [state[name] for state in self._states], (), self._integers)

    def write(self, point: Point) -> None:
        """Write the mixture of one point into the live tensors."""
        import torch

        weights = [point[index] for index in self._order]
        with torch.no_grad():
            for name, live in self._live.items():
                models = [state[name] for state in self._states]
                if live.is_floating_point():
                    base = self._base[name] if self._base else None
                    self._method.merge_into(live, [models[i] for i in self._order], weights, base)
                else:
                    live.copy_(pick_integer(name, models, point, self._integers))


def check_live(infos: Mapping[str, Any], live: Mapping[str, torch.Tensor], spec: str) -> None:
    """Require the live tensors to be those of the checkpoints.

    A live name that is not stored is allowed only if it shares its memory with one that is (tied weights are
    stored once).

    Raises:
        UserError: names at most ten tensors that do not fit.
    """
    stored = {place(live[name]) for name in infos if name in live}
    problems = [f"not in the live model: {name}" for name in infos if name not in live]
    problems += [f"not stored: {name}" for name in live if name not in infos and place(live[name]) not in stored]
    for name, info in infos.items():
        if name not in live:
            continue
        if tuple(live[name].shape) != info.shape:
            problems.append(f"shape: {name} is {list(live[name].shape)} in the live model, stored {info}")
        elif live[name].is_floating_point() != info.is_float:
            problems.append(f"dtype: {name} is {live[name].dtype} in the live model, stored {info}")
    if problems:
        listed = "".join(f"\n    {problem}" for problem in problems[:MAX_LISTED])
        raise UserError(
            f"state() does not match the checkpoints in {len(problems)} tensors:{listed}",
            where=spec,
            fix="return model.state_dict() of the architecture that was saved",
        )


def place(tensor: torch.Tensor) -> tuple[Any, ...]:
    """Return what two names of the same memory have in common: device, address, shape and strides."""
    return (tensor.device, tensor.data_ptr(), tuple(tensor.shape), tensor.stride())


def aliases(live: Mapping[str, torch.Tensor]) -> list[list[str]]:
    """Return the groups of names that share their memory."""
    groups: dict[tuple[Any, ...], list[str]] = {}
    for name, tensor in live.items():
        if tensor.numel():  # empty tensors all have the address 0
            groups.setdefault(place(tensor), []).append(name)
    return [names for names in groups.values() if len(names) > 1]


def _check_aliases_agree(names: Sequence[str], states: Sequence[Mapping[str, torch.Tensor]]) -> None:
    import torch

    for state in states:
        for name in names[1:]:
            if not torch.equal(state[names[0]], state[name]):
                raise UserError(
                    f"{names[0]!r} and {name!r} share memory in the live model but differ in a checkpoint",
                    fix="untie them in the evaluator, or save the checkpoints tied",
                )
