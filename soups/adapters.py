"""Merge LoRA adapters into one adapter, without their base: stacked, truncated or averaged factors.

The exact mixture of updates ``sum_i w_i s_i B_i A_i`` has the sum of the ranks. Three ways to store it:

* ``cat`` stacks the factors: exact, the ranks add up;
* ``svd-R`` keeps the best approximation of rank R (Eckart & Young 1936), from the factors alone;
* ``factor`` averages A and B apart, as the code of rewarded soups does: small, and in general not the mixture.

How far the result is from the exact mixture is measured and reported. Mixing on top of the base instead
(``--lora-mode delta``) is exact and makes a whole model.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from soups.engine.output import TOKENIZER_FILES, WeightFiles, check_free, copy_side_files, new_folder, plan_shards
from soups.errors import UserError
from soups.methods._weights import check_convex, one_hot, sums_to_one
from soups.sources.info import DTYPES, TensorInfo
from soups.sources.lora import ADAPTER_FILES, CONFIG_NAME, Adapter, read_adapter
from soups.state import Checkpoint

if TYPE_CHECKING:
    import torch

MODES = "delta, factor, cat, svd-RANK"


@dataclass(frozen=True)
class _Layer:
    """The factors of one layer in every adapter, as matrices: ``left[i] @ right[i]`` is the update of adapter i."""

    left: Sequence[torch.Tensor]
    right: Sequence[torch.Tensor]

    def product(self, weights: Sequence[float]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return two matrices whose product is the exact mixture."""
        import torch

        pairs = zip(self.left, weights, strict=True)
        return torch.cat([left * weight for left, weight in pairs], dim=1), torch.cat(list(self.right))


def merge_adapters(
    paths: Sequence[Path],
    names: Sequence[str],
    weights: Sequence[float],
    mode: str,
    out_dir: Path,
    *,
    extrapolate: bool = False,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Write the mixture of some adapters as one adapter; return what was done, with its error.

    Args:
        paths: folders of PEFT.
        names: how people call them.
        weights: one coefficient per adapter.
        mode: ``cat``, ``svd-RANK`` or ``factor``.
        out_dir: the folder to create.
        extrapolate: whether coefficients outside [0, 1], or whose sum is not one, are permitted.
        dry_run: whether to stop after all checks; the error is then not known.

    Raises:
        UserError: the adapters do not fit together, or the mode cannot hold their mixture.
    """
    if len(set(names)) != len(paths):
        raise UserError(
            f"{len(set(names))} names for {len(paths)} adapters", fix="name each: --name first --name second"
        )
    adapters = [read_adapter(path) for path in paths]
    rank = _check(adapters, names, weights, mode, extrapolate=extrapolate)
    check_free(out_dir)
    summary: dict[str, Any] = {
        "mode": mode,
        "coefficients": dict(zip(names, weights, strict=True)),
        "num_layers": len(adapters[0].layers),
    }
    if dry_run:
        return summary | {"relative_error": None, "written": False}
    checkpoints = [
        Checkpoint(name, adapter.path, adapter.factors, updates=adapter.layers)
        for name, adapter in zip(names, adapters, strict=True)
    ]
    tensors, ranks, error = _mixture(adapters, checkpoints, weights, mode, rank)
    sha256 = {checkpoint.name: checkpoint.digest for checkpoint in checkpoints}
    summary |= {"relative_error": error, "sha256": sha256}
    endpoint = one_hot(weights)
    _write(adapters[endpoint or 0], tensors, ranks, summary, out_dir, is_copy=endpoint is not None)
    return summary | {"written": True}


def _check(
    adapters: Sequence[Adapter], names: Sequence[str], weights: Sequence[float], mode: str, *, extrapolate: bool
) -> int:
    """Check that the adapters fit together; return the rank of ``svd-RANK``, or 0."""
    check_convex(weights, extrapolate=extrapolate)
    kind, _, number = mode.partition("-")
    if mode not in ("cat", "factor") and not (kind == "svd" and number.isdecimal() and int(number) > 0):
        raise UserError(f"unknown mode {mode!r}", where="--lora-mode", fix=f"choices: {MODES}")
    first = adapters[0]
    if first.replacements and not sums_to_one(weights):
        # An update counts from zero; a tensor that is stored whole counts from the base, which is not here.
        what = f"the coefficients sum to {sum(weights):g}, and {min(first.replacements)!r} is stored whole"
        fix = "add what the adapters change: --method task_arithmetic --base DIR, on top of the base (delta)"
        raise UserError(what, where="--lora-mode", fix=fix)
    for adapter, name in zip(adapters, names, strict=True):
        if any(update.magnitude for update in adapter.layers.values()):
            what = f"{name!r} is a DoRA: its update is no product of two factors"
            raise UserError(what, where=str(adapter.path), fix="merge on top of the base: --lora-mode delta --base DIR")
        different = {*adapter.layers, *adapter.replacements} ^ {*first.layers, *first.replacements}
        if different:
            what = f"{name!r} and {names[0]!r} change different tensors, such as {sorted(different)[0]}"
            raise UserError(what, where=str(adapter.path), fix="merge on top of the base: --lora-mode delta --base DIR")
        _check_shapes(first, adapter, name, mode)
    return int(number) if kind == "svd" else 0


def _check_shapes(first: Adapter, other: Adapter, name: str, mode: str) -> None:
    for layer, update in other.layers.items():
        a, b = other.factors[update.a].shape, other.factors[update.b].shape
        expected = first.layers[layer]
        a0, b0 = first.factors[expected.a].shape, first.factors[expected.b].shape
        if (a[1:], b[:1], b[2:]) != (a0[1:], b0[:1], b0[2:]) or a[0] != b[1]:
            what = f"the update of {layer!r} in {name!r} has another shape"
            raise UserError(what, where=str(other.path), fix="merge adapters of one base")
        if mode == "factor" and (a, update.scale) != (a0, expected.scale):
            here, there = f"rank {a[0]}, scale {update.scale:g}", f"rank {a0[0]}, scale {expected.scale:g}"
            what = f"{layer!r} has {here} in {name!r}, but {there} in the first adapter"
            fix = "factors of different rank or scale have no mean: --lora-mode cat or svd-RANK"
            raise UserError(what, where=str(other.path), fix=fix)


def _mixture(
    adapters: Sequence[Adapter], checkpoints: Sequence[Checkpoint], weights: Sequence[float], mode: str, rank: int
) -> tuple[dict[str, torch.Tensor], dict[str, int], float]:
    """Return the tensors of the result by stored name, the rank of each layer, and the relative error."""
    first, ranks = adapters[0], {}
    errors, norms = 0.0, 0.0
    with ExitStack() as stack:
        readers = [stack.enter_context(checkpoint.reader()) for checkpoint in checkpoints]
        endpoint = one_hot(weights)
        if endpoint is not None:
            chosen = adapters[endpoint]
            ranks = {layer: chosen.factors[update.a].shape[0] for layer, update in chosen.layers.items()}
            return {name: readers[endpoint](name) for name in chosen.factors}, ranks, 0.0
        tensors = {
            stored: _weighted(
                [read(each.replacements[name]) for read, each in zip(readers, adapters, strict=True)], weights
            )
            for name, stored in first.replacements.items()
        }
        for name, update in first.layers.items():
            updates = [adapter.layers[name] for adapter in adapters]
            b, a = ([readers[i](getattr(u, side)) for i, u in enumerate(updates)] for side in "ba")
            layer = _Layer(
                [t.double().reshape(t.shape[0], -1) * u.scale for t, u in zip(b, updates, strict=True)],
                [t.double().reshape(t.shape[0], -1) for t in a],
            )
            left, right = _reduced(layer, weights, mode, rank)
            ranks[name] = left.shape[1]
            error, norm = _distance((left, right), layer.product(weights))
            errors, norms = errors + error, norms + norm
            keep = first.layers[name].scale if mode == "factor" else 1.0
            tensors[update.b] = (left / keep).reshape(b[0].shape[0], -1, *b[0].shape[2:]).float()
            tensors[update.a] = right.reshape(-1, *a[0].shape[1:]).float()
    return tensors, ranks, math.sqrt(errors / norms) if norms else 0.0


def _reduced(layer: _Layer, weights: Sequence[float], mode: str, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    import torch

    if mode == "factor":
        return _weighted(layer.left, weights), _weighted(layer.right, weights)
    left, right = layer.product(weights)
    if mode == "cat":
        return left, right
    # Of the product only the small core of two QR decompositions needs a singular value decomposition.
    q_left, r_left = torch.linalg.qr(left)
    q_right, r_right = torch.linalg.qr(right.t())
    u, s, v = torch.linalg.svd(r_left @ r_right.t(), full_matrices=False)
    rank = min(rank, len(s))
    root = s[:rank].sqrt()
    return q_left @ (u[:, :rank] * root), (q_right @ (v.t()[:, :rank] * root)).t()


def _weighted(tensors: Sequence[torch.Tensor], weights: Sequence[float]) -> torch.Tensor:
    """Return the weighted sum, in the dtype of the tensors."""
    total = tensors[0].new_zeros(tensors[0].shape).double()
    for tensor, weight in zip(tensors, weights, strict=True):
        total += tensor.double() * weight
    return total.to(tensors[0].dtype)


def _distance(
    found: tuple[torch.Tensor, torch.Tensor], exact: tuple[torch.Tensor, torch.Tensor]
) -> tuple[float, float]:
    """Return the squared norms of the difference of two products, and of the second; neither is multiplied out."""
    import torch

    left, right = torch.cat([found[0], -exact[0]], dim=1), torch.cat([found[1], exact[1]])
    squares = [((l.t() @ l) * (r @ r.t())).sum() for l, r in ((left, right), exact)]  # noqa: E741
    return max(float(squares[0]), 0.0), float(squares[1])


def _write(
    like: Adapter,
    tensors: Mapping[str, torch.Tensor],
    ranks: Mapping[str, int],
    summary: Mapping[str, Any],
    out_dir: Path,
    *,
    is_copy: bool,
) -> None:
    import torch

    names = {getattr(torch, name): key for key, (name, _) in DTYPES.items()}
    infos = {name: TensorInfo(names[t.dtype], tuple(t.shape), out_dir) for name, t in tensors.items()}
    config = dict(like.config)
    if not is_copy and summary["mode"] != "factor":
        # Scale one everywhere: the factors hold all of it.
        top = max(ranks.values(), default=1)
        # PEFT matches the end of a name; the anchor makes it the whole name.
        pattern = {f"^{re.escape(layer)}": rank for layer, rank in ranks.items() if rank != top}
        config |= {"r": top, "lora_alpha": top, "rank_pattern": pattern, "alpha_pattern": pattern, "use_rslora": False}
    metadata = {"format": "pt", "soups": json.dumps(summary, sort_keys=True)}
    with new_folder(out_dir) as folder:
        with WeightFiles(folder, plan_shards(infos, metadata, name=ADAPTER_FILES[0])) as files:
            for name, tensor in tensors.items():
                files.write(name, 0, tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
        (folder / CONFIG_NAME).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        copy_side_files(like.path, folder, patterns=TOKENIZER_FILES)
        (folder / "README.md").write_text(_card(summary), encoding="utf-8")


def _card(summary: Mapping[str, Any]) -> str:
    rows = [f"| {name} | {w:g} | `{summary['sha256'][name]}` |" for name, w in summary["coefficients"].items()]
    lines = ["---", "tags: [merge, soups, lora]", "---", "# Merged adapter", ""]
    lines += [f"Made with `soups merge --lora-mode {summary['mode']}`, from:", ""]
    lines += ["| adapter | coefficient | SHA-256 |", "|---|---:|---|", *rows, ""]
    return "\n".join([*lines, f"Relative error of the update: {summary['relative_error']:.2e}.", ""])
