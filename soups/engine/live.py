"""The mixture in memory: every checkpoint read once, each point written into one live model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from soups.errors import UserError
from soups.points import Point
from soups.recipes.compute import compute_into
from soups.state import MAX_LISTED, Checkpoint, Reader, by_name, read_digests

if TYPE_CHECKING:
    import torch

    from soups.merge import Recipe
    from soups.sweep import Sweep

GPU_SHARE = 0.8  # of the free memory of a GPU that the checkpoints may take


class LiveSoup:
    """The weights of all checkpoints in memory, and the live tensors that receive their mixtures.

    Memory: the checkpoints in their stored dtype, plus the live model; tensors that several checkpoints read from
    one place in a file, such as the base of adapters, are held once. They are held where the model is: on a GPU if
    they fit beside it. A mixture is written in place, in one pass, rounded once to the dtype of the live tensor.
    """

    def __init__(self, sweep: Sweep, live: Mapping[str, torch.Tensor]) -> None:
        import torch

        self._sweep = sweep
        if sweep.policies.batch_norm == "recompute":
            fix = "use soups.evaluators.batch_norm, which reports recomputed statistics too, or --command"
            raise UserError("a live model has no second pass over data", where="policies: batch_norm", fix=fix)
        within = self._within()
        infos = {name: action.info for name, action in within.actions.items()}
        check_live(infos, live, sweep.evaluator)
        read_digests(sweep.checkpoints)
        sweep.method.check_origin()
        self._digests = [checkpoint.digest for checkpoint in sweep.checkpoints]
        self._live = {name: live[name] for name in infos}
        checkpoints = [*sweep.checkpoints, *([sweep.base] if sweep.base else [])]
        states = _load(checkpoints, self._live)
        self._states, self._base = states[: len(self._digests)], states[-1] if sweep.base else None
        self._groups = aliases(self._live)
        for names in self._groups:
            _check_aliases_agree(names, states)
        for name, action in within.actions.items():
            if action.how == "agree":  # fail now rather than at the first mixture
                self._compute(within, name, torch.empty_like(self._live[name]))

    def _within(self) -> Recipe:
        """Return the recipe of a point where every model counts; at a corner, policies may leave tensors out."""
        num_models = len(self._sweep.checkpoints)
        return self._sweep.recipe((1 / num_models,) * num_models * (1 + len(self._sweep.labels)))

    def write(self, point: Point) -> None:
        """Write the mixture of one point into the live tensors."""
        import torch

        recipe = self._sweep.recipe(point)
        shapes = {name: action.info.shape for name, action in recipe.actions.items()}
        if shapes != {name: tuple(tensor.shape) for name, tensor in self._live.items()}:
            what = f"the mixture {', '.join(f'{weight:g}' for weight in point)} has other tensors than the live model"
            fix = "score files instead: --command, or an evaluator with evaluate_checkpoint()"
            raise UserError(what, where="policies", fix=fix)
        skipped = {name for names in self._groups for name in names[1:]}  # written with the first of their group
        names = [name for name in self._live if name not in skipped]
        with torch.no_grad():
            for name in names:
                self._compute(recipe, recipe.actions[name].source or name, self._live[name])

    def check_kept(self, again: Mapping[str, torch.Tensor]) -> None:
        """Require an evaluator to give the same tensors again: what is written into others never reaches its model.

        Raises:
            UserError: names one that is elsewhere.
        """
        for name, tensor in self._live.items():
            if name not in again or place(again[name]) != place(tensor):
                what = f"{name!r} of state() is another tensor now than before: no mixture would reach the model"
                fix = "return what the model computes with, model.state_dict(), and do not move or cast it to score"
                raise UserError(what, where=self._sweep.evaluator, fix=fix)

    def _compute(self, recipe: Recipe, name: str, out: torch.Tensor) -> None:
        states = [state.__getitem__ for state in self._states]
        base = None if self._base is None else self._base.__getitem__
        compute_into(out, name, recipe.actions[name], states, base, recipe.method, self._digests)


def _load(checkpoints: Sequence[Checkpoint], live: Mapping[str, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
    """Read every checkpoint, onto the devices of the live tensors if there is room."""
    import torch

    infos = [info for checkpoint in checkpoints for info in checkpoint.infos.values()]
    num_bytes = sum(info.num_bytes for info in infos)
    gpus = {tensor.device for tensor in live.values() if tensor.device.type == "cuda"}
    fits = all(num_bytes < GPU_SHARE * torch.cuda.mem_get_info(gpu)[0] for gpu in gpus)
    shared: dict[Any, torch.Tensor] = {}
    states: list[dict[str, torch.Tensor]] = []
    for checkpoint in checkpoints:
        # An adapter changes the tensor after it is read: the place in the file does not tell what it is.
        keys = {n: (info, checkpoint if n in checkpoint.updates else None) for n, info in checkpoint.infos.items()}
        missing = {key: name for name, key in keys.items() if key not in shared}
        with checkpoint.reader() as read:
            placed = partial(_read_onto, read, live if fits else {})
            found = by_name(placed, missing.values())
        shared |= {key: found[name] for key, name in missing.items()}
        states.append({name: shared[key] for name, key in keys.items()})
    return states


def _read_onto(read: Reader, live: Mapping[str, torch.Tensor], name: str) -> torch.Tensor:
    """Read a tensor onto the device of the live one, if there is one."""
    tensor = read(name)
    return tensor.to(live[name].device) if name in live else tensor


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
            fix="return model.state_dict() of the architecture that was saved; where its library renames tensors as it "
            "loads them (transformers: Mixtral, ViT), score files: --command, or soups.evaluators.function:of_file",
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
            if names[0] in state and name in state and not torch.equal(state[names[0]], state[name]):
                raise UserError(
                    f"{names[0]!r} and {name!r} share memory in the live model but differ in a checkpoint",
                    fix="untie them in the evaluator, or save the checkpoints tied",
                )
