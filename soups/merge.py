"""Merge checkpoints on disk, one tensor at a time, and say in the result where it comes from."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from soups.errors import UserError
from soups.methods import Method
from soups.methods._weights import one_hot
from soups.points import explicit
from soups.state import Checkpoint, check_compatible, check_free, write_checkpoint

if TYPE_CHECKING:
    import torch

Integers = Literal["error", "first"]


@dataclass(frozen=True)
class Recipe:
    """What to merge and how.

    Attributes:
        checkpoints: the models, with distinct names.
        weights: one coefficient per model.
        method: the method, parameters bound.
        base: the common initialisation, for methods that use one.
        integers: what to do with integer and boolean tensors that differ: stop, or take those of the first
            checkpoint (of the only one used, when all the weight is on one).
    """

    checkpoints: Sequence[Checkpoint]
    weights: Sequence[float]
    method: Method
    base: Checkpoint | None = None
    integers: Integers = "error"

    def check(self) -> None:
        """Check names, coefficients and headers; reads no data.

        Raises:
            UserError: something does not fit.
        """
        check_names(self.checkpoints)
        explicit([self.weights], len(self.checkpoints))
        self.method.check(self.weights, has_base=self.base is not None)
        check_compatible([*self.checkpoints, *([self.base] if self.base else [])])

    def describe(self) -> dict[str, Any]:
        """Return the recipe as plain data: names, digests, coefficients, method and parameters."""
        return {
            "method": self.method.name,
            "params": self.method.described_params,
            "coefficients": {c.name: w for c, w in zip(self.checkpoints, self.weights, strict=True)},
            "sha256": {c.name: c.digest for c in self.checkpoints},
            "base": {"name": self.base.name, "sha256": self.base.digest} if self.base else None,
            "integers": self.integers,
        }


def check_names(checkpoints: Sequence[Checkpoint]) -> None:
    """Require distinct names, because coefficients are always given by name."""
    names = [checkpoint.name for checkpoint in checkpoints]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise UserError(
            f"two checkpoints are called {repeated[0]!r}",
            where=" and ".join(str(c.path) for c in checkpoints if c.name == repeated[0]),
            fix="name each model, in order: --name first --name second",
        )


def canonical_order(checkpoints: Sequence[Checkpoint]) -> list[int]:
    """Return the order in which models are summed: by digest.

    Floating-point sums of three terms depend on their order; with this one, the same models given in another
    order give the same bytes.
    """
    return sorted(range(len(checkpoints)), key=lambda index: checkpoints[index].digest)


def pick_integer(
    name: str, tensors: Sequence[torch.Tensor], weights: Sequence[float], integers: Integers
) -> torch.Tensor:
    """Choose the value of an integer or boolean tensor; such tensors are never averaged.

    Raises:
        UserError: the models disagree and the policy is ``error``.
    """
    import torch

    differ = any(not torch.equal(tensors[0], other) for other in tensors[1:])
    if differ and integers == "error":
        raise UserError(
            f"integer tensor {name!r} differs between the models",
            fix="choose --integers first to take it from the first model",
        )
    endpoint = one_hot(weights)
    return tensors[0 if endpoint is None else endpoint]


def merge(recipe: Recipe, out_dir: Path) -> None:
    """Write the merged checkpoint, its side files and its model card; the folder appears when complete."""
    recipe.check()
    check_free(out_dir)
    described = recipe.describe()
    order = canonical_order(recipe.checkpoints)
    with ExitStack() as stack:
        readers = [stack.enter_context(checkpoint.reader()) for checkpoint in recipe.checkpoints]
        read_base = stack.enter_context(recipe.base.reader()) if recipe.base else None

        def tensor(name: str) -> torch.Tensor:
            models = [read(name) for read in readers]
            if not recipe.checkpoints[0].infos[name].is_float:
                return pick_integer(name, models, recipe.weights, recipe.integers)
            base = read_base(name) if read_base else None
            return recipe.method.merge([models[i] for i in order], [recipe.weights[i] for i in order], base)

        _write(recipe, described, out_dir, tensor)


def _write(recipe: Recipe, described: Mapping[str, Any], out_dir: Path, tensor: Callable[[str], torch.Tensor]) -> None:
    first = recipe.checkpoints[0]
    write_checkpoint(
        out_dir,
        first.infos,
        tensor,
        side_files_from=first.path,
        texts={"README.md": model_card(recipe, described)},
        # "format": "pt" is what transformers asks for; no time stamp, so that equal inputs give equal bytes.
        metadata={"format": "pt", "soups": json.dumps(described, sort_keys=True)},
    )


def plan(recipe: Recipe) -> dict[str, Any]:
    """Return what a merge would do, from the headers: tensors, parameters, dtypes and bytes."""
    recipe.check()
    infos = recipe.checkpoints[0].infos.values()
    num_bytes = sum(info.num_bytes for info in infos)
    num_read = len(recipe.checkpoints) + (recipe.base is not None)
    return {
        "method": recipe.method.name,
        "params": recipe.method.described_params,
        "coefficients": {c.name: w for c, w in zip(recipe.checkpoints, recipe.weights, strict=True)},
        "base": recipe.base.name if recipe.base else None,
        "num_tensors": len(infos),
        "num_parameters": sum(info.num_elements for info in infos if info.is_float),
        "dtypes": sorted({info.dtype for info in infos}),
        "integer_tensors": [name for name, info in recipe.checkpoints[0].infos.items() if not info.is_float],
        "bytes_read": num_bytes * num_read,
        "bytes_written": num_bytes,
    }


def model_card(recipe: Recipe, described: Mapping[str, Any]) -> str:
    """Return the README of the merged model: inputs, digests, recipe."""
    rows = [
        f"| {_cell(c.name)} | {weight:g} | {_cell(file)} | `{digest}` |"
        for c, weight in zip(recipe.checkpoints, recipe.weights, strict=True)
        for file, digest in c.file_digests.items()
    ]
    if recipe.base:
        rows += [
            f"| {_cell(recipe.base.name)} | base | {_cell(file)} | `{digest}` |"
            for file, digest in recipe.base.file_digests.items()
        ]
    return "\n".join(
        [
            "---",
            "tags: [merge, soups]",
            "---",
            "# Merged model",
            "",
            f"Made with `soups merge`, method `{recipe.method.name}`, from:",
            "",
            "| model | coefficient | file | SHA-256 |",
            "|---|---:|---|---|",
            *rows,
            "",
            "Configuration and tokenizer are those of the first model. The recipe, also in the weights:",
            "",
            "```json",
            json.dumps(described, indent=2, sort_keys=True),
            "```",
            "",
        ]
    )


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
