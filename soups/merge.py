"""Merge checkpoints on disk, piece by piece, and say in the result where it comes from."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from soups.agreement import disagreements
from soups.batch_norm import is_statistic, recomputed
from soups.digests import sha256
from soups.engine.jobs import num_cores
from soups.engine.output import (
    TOKENIZER_FILES,
    WeightFiles,
    check_free,
    check_space,
    copy_side_files,
    new_folder,
    plan_shards,
)
from soups.engine.processes import can_fork
from soups.engine.stream import NotFinite, Read, Task, predicted_memory, predicted_seconds, stream
from soups.errors import UserError
from soups.methods import Method
from soups.points import explicit
from soups.recipes.coefficients import Rule
from soups.recipes.compute import compute_into, disagree, raw_of
from soups.recipes.policies import Action, Policies, resolve
from soups.sources.config import fit_config
from soups.state import Checkpoint, Reader, files_without_digest, read_digests, record_digests

if TYPE_CHECKING:
    import torch

RECIPE_NAME = "merge_recipe.yaml"
MAX_COMPARED_BYTES = 1 << 26
NO_DIGEST = "0" * 64  # as long as a digest


@dataclass(frozen=True)
class Recipe:
    """What to merge and how.

    Attributes:
        checkpoints: the models, with distinct names.
        weights: one coefficient per model.
        method: the method, parameters bound.
        base: the common initialisation, for methods that use one.
        integers: what to do with integer and boolean tensors that differ, see ``resolve``.
        rules: coefficients of some tensors, instead of ``weights``.
        policies: what else may differ between the models.
        text: the recipe as written by a person, kept beside the result as ``merge_recipe.yaml``.
        given: tensors of the result that are known already, such as recomputed batch-norm statistics.
    """

    checkpoints: Sequence[Checkpoint]
    weights: Sequence[float]
    method: Method
    base: Checkpoint | None = None
    integers: str = "error"
    rules: Sequence[Rule] = ()
    policies: Policies = field(default_factory=Policies)
    text: str = ""
    given: Mapping[str, torch.Tensor] = field(default_factory=dict)

    @cached_property
    def actions(self) -> dict[str, Action]:
        """Return how each tensor of the result is made, by name; from headers alone."""
        return resolve(self.checkpoints, self.base, self.method, self.weights, self.integers, self.rules, self.policies)

    @property
    def inputs(self) -> list[Checkpoint]:
        """Return everything that is read: the models, then the base."""
        return [*self.checkpoints, *([self.base] if self.base else [])]

    @property
    def files(self) -> list[Checkpoint]:
        """Return everything whose digest is recorded: what is read, and the bases of adapters."""
        under = [checkpoint.base for checkpoint in self.inputs if checkpoint.base]
        return [*self.inputs, *under, *(extra for _, extra in self.method.extras)]

    @property
    def is_commutative(self) -> bool:
        """Say whether the order in which models are summed changes no byte: sums of two terms."""
        return all(len(part.models) <= 2 for action in self.actions.values() for part in action.parts)

    @property
    def template(self) -> Checkpoint:
        """Return the model whose configuration fits the result: the first with its names and shapes, or the first."""
        shapes = {name: action.info.shape for name, action in self.actions.items()}
        fits = (c for c in self.checkpoints if {name: info.shape for name, info in c.infos.items()} == shapes)
        return next(fits, self.checkpoints[0])

    def is_elementwise(self, name: str) -> bool:
        """Say whether parts of a tensor may be computed apart: each entry depends on the same entries only."""
        action = self.actions[name]
        by_entries = self.method.is_elementwise if action.how == "merge" else action.how != "tied"
        return by_entries and len(action.parts) == 1 and name not in self.given

    def check(self) -> None:
        """Check names, coefficients and headers; reads no data.

        Raises:
            UserError: something does not fit.
        """
        check_names(self.checkpoints)
        explicit([self.weights], len(self.checkpoints))
        assert self.actions  # resolving them checks coefficients and headers

    def describe(self, digest: Callable[[Checkpoint], str] = attrgetter("digest")) -> dict[str, Any]:
        """Return the recipe as plain data: names, digests, coefficients, method and parameters."""
        return {
            "method": self.method.identity,
            "params": self.method.described_params,
            "coefficients": {c.name: w for c, w in zip(self.checkpoints, self.weights, strict=True)},
            "sha256": {c.name: digest(c) for c in self.checkpoints},
            "base": {"name": self.base.name, "sha256": digest(self.base)} if self.base else None,
            "integers": self.integers,
            **self._described_exceptions(digest),
        }

    def _described_exceptions(self, digest: Callable[[Checkpoint], str]) -> dict[str, Any]:
        """Return what most recipes do not have: rules, policies, further tensors, tensors given."""
        found: dict[str, Any] = {}
        if self.rules:
            found["rules"] = [
                {rule.pattern: {c.name: list(w) for c, w in zip(self.checkpoints, rule.weights, strict=True)}}
                for rule in self.rules
            ]
        if self.policies != Policies():
            found["policies"] = self.policies.described()
        if self.method.extras:
            found["extra_sha256"] = {model.name: digest(extra) for model, extra in self.method.extras}
        if self.given:
            found["recomputed"] = sorted(self.given)
        return found


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


def merge(recipe: Recipe, out_dir: Path, *, shard_bytes: int | None = None) -> NotFinite:
    """Write the merged checkpoint, its side files and its model card; the folder appears when complete.

    Args:
        recipe: what to merge and how.
        out_dir: the folder to create.
        shard_bytes: the largest size of a file of weights; one file by default.

    Returns:
        The entries of the result that are not finite.

    Raises:
        UserError: something does not fit; headers, coefficients and the space on the disk are checked first.
    """
    recipe.check()
    check_free(out_dir)
    if recipe.policies.batch_norm == "recompute" and not recipe.given:
        recipe = replace(recipe, given=_recomputed(recipe, out_dir.resolve()))
    infos = {name: action.info for name, action in recipe.actions.items()}
    check_space(out_dir, sum(info.num_bytes for info in infos.values()))
    recipe.method.check_origin()
    tasks = _tasks(recipe)
    needs_torch, forks = any(task.needs_torch for task in tasks), can_fork()
    with ExitStack() as stack:
        readers = {checkpoint: stack.enter_context(checkpoint.reader()) for checkpoint in recipe.inputs}
        _check_integers(recipe, readers)
        folder = stack.enter_context(new_folder(out_dir))
        if needs_torch or not recipe.is_commutative:
            _read_digests_first(recipe, needs_torch)
        shards = partial(plan_shards, infos, shard_bytes=shard_bytes)
        with WeightFiles(folder, shards(metadata=_metadata(recipe, lambda checkpoint: NO_DIGEST))) as files:
            # The other digests are computed by those that merge, before: what the disk has read serves both.
            paths = files_without_digest(recipe.files)
            hashing = [partial(sha256, path) for path in paths]
            digests, not_finite = stream(tasks, readers, files, forks=forks, further=hashing)
            record_digests(recipe.files, dict(zip(paths, digests, strict=True)))
            files.write_headers(shards(metadata=_metadata(recipe)))
        _write_side_files(recipe, folder)
        (folder / "README.md").write_text(model_card(recipe), encoding="utf-8")
        if recipe.text:
            (folder / RECIPE_NAME).write_text(recipe.text, encoding="utf-8")
    return not_finite


def _write_side_files(recipe: Recipe, folder: Path) -> None:
    template = recipe.template
    copy_side_files(template.model_path, folder, recipe.policies.dtype)
    if template.base:  # with words that were added in training
        copy_side_files(template.path, folder, patterns=TOKENIZER_FILES)
    after = {name: action.info for name, action in recipe.actions.items()}
    sources = {name: action.source or name for name, action in recipe.actions.items()}
    fit_config(folder, (template.base or template).infos, after, sources)


def _check_integers(recipe: Recipe, readers: Mapping[Checkpoint, Reader]) -> None:
    """Compare tensors that must agree before anything is written; large ones are compared when their turn comes."""
    for name, action in recipe.actions.items():
        source = action.source or name
        models = [recipe.checkpoints[index] for part in recipe.actions[source].parts for index in part.models]
        is_small = action.info.num_bytes <= MAX_COMPARED_BYTES and all(c.is_contiguous(source) for c in models)
        if action.how != "agree" or not is_small or source in recipe.given:
            continue
        stored = [bytearray(checkpoint.infos[source].num_bytes) for checkpoint in models]
        for checkpoint, content in zip(models, stored, strict=True):
            readers[checkpoint].fill(source, 0, memoryview(content))
        if any(content != stored[0] for content in stored):
            raise disagree(source)


def _read_digests_first(recipe: Recipe, needs_torch: bool) -> None:
    with ThreadPoolExecutor(1) as thread:
        digests = thread.submit(read_digests, recipe.files)
        if needs_torch:
            import torch  # noqa: F401 - it takes seconds, which the digests take too
        digests.result()


def _recomputed(recipe: Recipe, out_dir: Path) -> dict[str, torch.Tensor]:
    """Merge with interpolated statistics into a temporary folder; return those of a pass over data."""
    policies = replace(recipe.policies, batch_norm="interpolate", recompute="", recompute_args={})
    wanted = {name: action.info for name, action in recipe.actions.items() if is_statistic(name)}
    out_dir.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out_dir.name}.", suffix=".tmp", dir=out_dir.parent) as folder:
        merge(replace(recipe, policies=policies), Path(folder) / out_dir.name)
        spec, args = recipe.policies.recompute, recipe.policies.recompute_args
        return recomputed(Path(folder) / out_dir.name, spec, args, wanted)


def _metadata(recipe: Recipe, digest: Callable[[Checkpoint], str] = attrgetter("digest")) -> dict[str, str]:
    # "format": "pt" is what transformers asks for; no time stamp, so that equal inputs give equal bytes.
    return {"format": "pt", "soups": json.dumps(recipe.describe(digest), sort_keys=True)}


def _tasks(recipe: Recipe) -> list[Task]:
    return [_task(recipe, name) for name in recipe.actions]


def _task(recipe: Recipe, name: str) -> Task:
    """Return how one tensor is made; a tied one is computed once more, which gives the same bytes."""
    action = recipe.actions[name]
    source = action.source or name
    how = recipe.actions[source]
    used = sorted({index for part in how.parts for index in part.models})
    sources = [recipe.checkpoints[index] for index in used]
    base = recipe.base if how.how == "merge" and recipe.base and source in recipe.base.infos else None

    def compute(out: torch.Tensor, read: Read) -> None:
        if source in recipe.given:
            out.copy_(recipe.given[source])
            return
        readers = [partial(read, checkpoint) for checkpoint in recipe.checkpoints]
        digests = [checkpoint.digest for checkpoint in recipe.checkpoints]
        compute_into(out, source, how, readers, base and partial(read, base), recipe.method, digests)

    return Task(
        name,
        action.info,
        tuple((checkpoint, source) for checkpoint in [*sources, *([base] if base else [])]),
        compute,
        recipe.is_elementwise(source),
        None if source in recipe.given else raw_of(source, how, recipe.method, sources, base is not None),
    )


def plan(recipe: Recipe) -> dict[str, Any]:
    """Return what a merge would do, from the headers: tensors, dtypes, bytes, memory and time; needs no torch."""
    recipe.check()
    infos = {name: action.info for name, action in recipe.actions.items()}
    tasks = _tasks(recipe)
    stored = [
        info for checkpoint in recipe.inputs for info in (*checkpoint.infos.values(), *checkpoint.factors.values())
    ]
    num_read, num_written = (sum(info.num_bytes for info in each) for each in (stored, infos.values()))
    return {
        "method": recipe.method.identity,
        "params": recipe.method.described_params,
        "coefficients": {c.name: w for c, w in zip(recipe.checkpoints, recipe.weights, strict=True)},
        "base": recipe.base.name if recipe.base else None,
        "num_tensors": len(infos),
        "num_parameters": sum(info.num_elements for info in infos.values() if info.is_float),
        "dtypes": sorted({info.dtype for info in infos.values()}),
        "integer_tensors": [name for name, info in infos.items() if not info.is_float],
        "mixed_statistics": [name for name in infos if is_statistic(name) and _is_mixed(recipe, name)],
        "bytes_read": num_read,
        "bytes_written": num_written,
        "bytes_memory": predicted_memory(tasks, num_cores(), forks=can_fork()),
        "disagreements": disagreements(recipe.inputs),
        "seconds": round(predicted_seconds(tasks, num_read + num_written, num_cores()), 1),
    }


def _is_mixed(recipe: Recipe, name: str) -> bool:
    """Say whether several models went into a tensor, and not a pass over data."""
    action = recipe.actions[name]
    several = any(sum(weight != 0 for weight in part.weights) > 1 for part in action.parts)
    return action.how in ("merge", "linear") and several and recipe.policies.batch_norm != "recompute"


def used_base(base: Checkpoint | None, method: Method, checkpoints: Sequence[Checkpoint]) -> Checkpoint | None:
    """Return the base that a method is given: none where it is only what adapters are applied to."""
    return None if method.base == "none" and any(each.updates for each in checkpoints) else base


def model_card(recipe: Recipe) -> str:
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
    added = ", ".join(sorted({f"`{name}`" for c in recipe.checkpoints for name in c.added}))
    note = f"The base has no {added}: load this with the class, and the labels, that the adapters were trained with."
    return "\n".join(
        [
            "---",
            "tags: [merge, soups]",
            "---",
            "# Merged model",
            "",
            f"Made with `soups merge`, method `{recipe.method.identity}`, from:",
            "",
            "| model | coefficient | file | SHA-256 |",
            "|---|---:|---|---|",
            *rows,
            "",
            *([note, ""] if added else []),
            f"Configuration and tokenizer are those of {recipe.template.name}. The recipe, also in the weights:",
            "",
            "```json",
            json.dumps(recipe.describe(), indent=2, sort_keys=True),
            "```",
            "",
        ]
    )


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
