"""How far checkpoints are from each other, by module: norms, cosines, agreement of signs, permutations.

Full weights of two fine-tunings are almost parallel, whatever they learned; so cosines and signs are of task
vectors (a model minus the common initialisation), or, without one, of nothing. Everything is summed in float64,
in pieces, so that memory holds a few pieces and no model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from soups.modules import module_of
from soups.state import Checkpoint, check_compatible

if TYPE_CHECKING:
    import torch

PIECE = 1 << 20  # entries in float64 at a time: 8 MB per model
MAX_UNITS = 4096  # larger tensors, such as embeddings, have no units to match
TOTAL = "all"


class _Sums:
    """Sums over the entries of some tensors: enough for every number of a row.

    ``gram`` (V, V) holds the products of the vectors (base, then models, or task vectors), ``signs`` (N, N) the
    entries where two task vectors are both non-zero, and agree.
    """

    def __init__(self, num_models: int, has_base: bool) -> None:
        self.num_entries = 0
        self.weights = np.zeros((num_models, num_models))
        self.updates = np.zeros((num_models, num_models))
        self.base = 0.0
        self.changed = np.zeros(num_models, np.int64)
        self.both = np.zeros((num_models, num_models), np.int64)
        self.agree = np.zeros((num_models, num_models), np.int64)
        self.squares = np.zeros((num_models, num_models))  # of the differences of two models
        self.has_base = has_base

    def add(self, models: torch.Tensor, base: torch.Tensor | None) -> None:
        """Add one piece: models (N, E) and base (E,), float64."""
        self.num_entries += models.shape[1]
        self.weights += (models @ models.T).numpy()
        for i, j in combinations(range(len(models)), 2):
            self.squares[i, j] += float((models[i] - models[j]).square().sum())
        if base is None:
            return
        updates = models - base
        signs = updates.sign()
        nonzero = signs.abs()
        both, product = (nonzero @ nonzero.T).numpy(), (signs @ signs.T).numpy()
        self.base += float(base.square().sum())
        self.updates += (updates @ updates.T).numpy()
        self.changed += nonzero.sum(dim=1).long().numpy()
        self.both += both.astype(np.int64)
        self.agree += ((both + product) / 2).astype(np.int64)  # the product counts +1 and -1


def diff(checkpoints: Sequence[Checkpoint], base: Checkpoint | None = None) -> dict[str, Any]:
    """Compare checkpoints, tensor by tensor, and sum by module (`soups.modules.module_of`).

    Args:
        checkpoints: two models or more.
        base: their common initialisation; needed for everything about task vectors.

    Returns:
        ``modules``: one row per module and one named ``all``: ``num_entries``; ``norm`` and, with a base,
        ``update_norm``, ``relative_update`` and ``changed`` (share of entries) by model; ``distance`` and, with
        a base, ``cosine`` and ``sign_agreement`` by pair of models. ``permutation``: see `matching_units`.
        ``integers``: integer tensors that differ.

    Raises:
        UserError: the checkpoints do not have the same tensors.
    """
    everything = [*checkpoints, *([base] if base else [])]
    check_compatible(everything)
    names = [checkpoint.name for checkpoint in checkpoints]
    sums: dict[str, _Sums] = {}
    units: dict[str, list[dict[str, Any]]] = {f"{a}|{b}": [] for a, b in combinations(names, 2)}
    integers = []
    with ExitStack() as stack:
        readers = [stack.enter_context(checkpoint.reader()) for checkpoint in checkpoints]
        read_base = stack.enter_context(base.reader()) if base else None
        for name in _once(everything):
            info = checkpoints[0].infos[name]
            tensors = [read(name) for read in readers]
            if not info.is_float:
                if _differ(tensors):
                    integers.append(name)
                continue
            origin = read_base(name) if read_base else None
            for group in (module_of(name), TOTAL):
                row = sums.setdefault(group, _Sums(len(names), base is not None))
                _add_pieces(row, tensors, origin)
            for (i, j), rows in zip(combinations(range(len(names)), 2), units.values(), strict=True):
                matched = matching_units(tensors[i], tensors[j])
                if matched is not None:
                    rows.append({"tensor": name, "num_units": int(info.shape[0]), "matched": matched})
    order = sorted(name for name in sums if name != TOTAL)
    return {
        "checkpoints": names,
        "base": base.name if base else None,
        "modules": {name: _row(sums[name], names) for name in [*order, *([TOTAL] if sums else [])]},
        "permutation": {pair: _permutation(rows) for pair, rows in units.items()},
        "integers": integers,
    }


def _once(checkpoints: Sequence[Checkpoint]) -> Iterable[str]:
    """Return the names, one of those that are one tensor everywhere: tied ones lie at one place of a file."""
    places: dict[Any, str] = {}
    for name in checkpoints[0].infos:
        # An adapter changes the tensor after it is read: the place in the file does not tell what it is.
        key = tuple((each.infos[name], name if name in each.updates else None) for each in checkpoints)
        places.setdefault(key, name)
    return places.values()


def _differ(tensors: Sequence[torch.Tensor]) -> bool:
    import torch

    return any(not torch.equal(tensors[0], other) for other in tensors[1:])


def _add_pieces(row: _Sums, tensors: Sequence[torch.Tensor], base: torch.Tensor | None) -> None:
    import torch

    flat = [tensor.reshape(-1) for tensor in tensors]
    flat_base = None if base is None else base.reshape(-1)
    for start in range(0, flat[0].numel(), PIECE):
        piece = slice(start, start + PIECE)
        stacked = torch.stack([tensor[piece].double() for tensor in flat])
        row.add(stacked, None if flat_base is None else flat_base[piece].double())


def _row(sums: _Sums, names: Sequence[str]) -> dict[str, Any]:
    pairs = {f"{names[i]}|{names[j]}": (i, j) for i, j in combinations(range(len(names)), 2)}
    row: dict[str, Any] = {
        "num_entries": sums.num_entries,
        "norm": _by_model(names, lambda i: np.sqrt(sums.weights[i, i])),
        "distance": {pair: float(np.sqrt(sums.squares[i, j])) for pair, (i, j) in pairs.items()},
    }
    if sums.has_base:
        norms = np.sqrt(np.diag(sums.updates))
        row |= {
            "base_norm": float(np.sqrt(sums.base)),
            "update_norm": _by_model(names, lambda i: norms[i]),
            "relative_update": _by_model(names, lambda i: _ratio(norms[i], np.sqrt(sums.base))),
            "changed": _by_model(names, lambda i: _ratio(sums.changed[i], sums.num_entries)),
            "cosine": {pair: _ratio(sums.updates[i, j], norms[i] * norms[j]) for pair, (i, j) in pairs.items()},
            "sign_agreement": {pair: _ratio(sums.agree[i, j], sums.both[i, j]) for pair, (i, j) in pairs.items()},
        }
    return row


def _by_model(names: Sequence[str], value: Callable[[int], float | None]) -> dict[str, float | None]:
    values = [value(index) for index in range(len(names))]
    return {name: None if v is None else float(v) for name, v in zip(names, values, strict=True)}


def _ratio(number: float, of: float) -> float | None:
    """Return a quotient; None where there is nothing to divide by, such as a cosine with a zero vector."""
    return float(number / of) if of > 0 else None


def matching_units(first: torch.Tensor, second: torch.Tensor) -> float | None:
    """Return the share of output units (rows) of one weight whose nearest unit in the other is their own.

    Fine-tunings of one model give one: then no permutation of units brings the models closer, and weights may
    be averaged as they are. Two trainings from different initialisations give about one over the number of
    units. Nearest is by cosine. None for tensors that are no matrices of 2 to 4,096 units.
    """
    import torch

    if first.ndim < 2 or not 2 <= first.shape[0] <= MAX_UNITS or first[0].numel() < 2:
        return None
    rows = [torch.nn.functional.normalize(t.reshape(len(t), -1).float(), dim=1) for t in (first, second)]
    similarity = rows[0] @ rows[1].T
    own = similarity.diagonal()
    return float((own >= similarity.max(dim=1).values - 1e-6).float().mean())


def _permutation(rows: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Summarise the check over tensors: the share of all units, and the tensors where it is not one."""
    if not rows:
        return None
    num_units = sum(row["num_units"] for row in rows)
    matched = sum(row["matched"] * row["num_units"] for row in rows) / num_units
    moved = sorted((row for row in rows if row["matched"] < 1), key=lambda row: row["matched"])
    return {"num_units": num_units, "matched": matched, "moved": moved}
