"""Merge methods, one file each; the file name is the name of the method, its path that of one outside this folder.

A method file defines

* ``BASE``: ``"none"``, ``"optional"`` or ``"required"``: whether it uses the common initialisation;
* ``ELEMENTWISE``: whether each output entry depends on the same entry of the inputs only, so that it may be
  computed in pieces;
* ``merge(models, weights, base, *, ...)``: a pure function over one parameter. It receives float64 tensors
  and returns one; it returns ``models[i]`` itself when the result is that model, which makes endpoints
  byte-equal. Keyword-only arguments are the parameters of the method; their defaults live there only;
* ``check(weights, *, ...)``: rejects coefficients and parameters before any data is read. It is given every
  parameter; those it does not use may go to ``**others``.

and, if it needs them,

* ``measure(models, weights, base, place, *, ...)``: what must be known of the whole parameter before its pieces
  are merged: one value per model, such as a threshold, or a mask drawn at random, of the parameter's shape. It
  receives the whole tensors in their stored dtype;
* ``EXTRA``: the name of a further tensor per model, such as a Fisher diagonal (None where there is none);

  either becomes the fourth argument of ``merge``, cut like the models;
* ``EXACT``: parameters under which all the weight on one model returns that model (nothing is trimmed);
* ``ARRAYS``: whether ``merge`` uses operators only, and so takes numpy arrays too; a merge on the CPU then needs
  no torch, whose import takes longer than most merges;
* ``SUM``: whether ``merge`` is nothing but the sum of the models times their coefficients; arrays are then added up
  in memory that is used again, which is twice as fast.
"""

from __future__ import annotations

import importlib
import inspect
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from soups.engine.infinities import has_nan, keep_equal
from soups.errors import UserError, did_you_mean
from soups.methods._own import DIGEST, is_own, own_method
from soups.methods._weights import one_hot
from soups.sources.safetensors_file import metadata_of

if TYPE_CHECKING:
    import torch

    from soups.engine.arrays import Raw
    from soups.sources.info import TensorInfo
    from soups.state import Checkpoint

MAX_LISTED = 10
GPU_CHUNK_ELEMENTS = 1 << 24
CHUNK_ELEMENTS = 1 << 16  # 512 kB in float64: the pieces stay in cache, which beats one whole float32 pass
ARRAY_ELEMENTS = 1 << 14  # the same for numpy, which costs less per call


def method_names() -> list[str]:
    """List the methods: the files of this folder that do not start with an underscore."""
    return sorted(path.stem for path in Path(__file__).parent.glob("[!_]*.py"))


@dataclass(frozen=True)
class Place:
    """Which parameter of which models is merged.

    Attributes:
        tensor: its name.
        models: the digest of each model, in the order of the tensors: random methods draw by (seed, tensor,
            model), so that neither the order nor the names of models change the result.
    """

    tensor: str
    models: Sequence[str]


@dataclass(frozen=True)
class Method:
    """A method with its parameters bound.

    Attributes:
        extras: for a method with ``EXTRA``, pairs of a model and the checkpoint of its further tensors.
    """

    name: str
    params: Mapping[str, Any]
    module: ModuleType
    extras: Sequence[tuple[Checkpoint, Checkpoint]] = ()

    def __reduce__(self) -> tuple[Any, ...]:
        """Let a method cross to another process; modules do not pickle."""
        return get_method, (self.name, dict(self.params), self.extras)

    @property
    def identity(self) -> str:
        """Return what keys and recipes call it: the name, with the digest of the content where it is a file.

        A file may move without another result, and may not change.
        """
        return f"{Path(self.name).name} {self.file_sha256}" if self.file_sha256 else self.name

    @property
    def file_sha256(self) -> str | None:
        """Return the digest of a file of one's own; None for a method of the package."""
        return getattr(self.module, DIGEST, None)

    @property
    def base(self) -> str:
        """Say whether a base is used: none, optional or required."""
        return self.module.BASE

    @property
    def is_elementwise(self) -> bool:
        """Say whether a caller may cut the tensors and merge the parts, in any order."""
        return self.module.ELEMENTWISE and self.extra is None

    @property
    def takes_arrays(self) -> bool:
        """Say whether `merge_raw` may be called."""
        return getattr(self.module, "ARRAYS", False)

    @property
    def extra(self) -> str | None:
        """Return what further tensor of each model is used, if any."""
        return getattr(self.module, "EXTRA", None)

    @property
    def exact_params(self) -> dict[str, Any]:
        """Return the parameters under which all the weight on one model returns that model."""
        return getattr(self.module, "EXACT", {})

    @property
    def is_exact(self) -> bool:
        """Say whether all the weight on one model returns that model."""
        return all(self.params[name] == value for name, value in self.exact_params.items())

    @property
    def described_params(self) -> dict[str, Any]:
        """Return the parameters that change the result; ``extrapolate`` only permits coefficients."""
        return {name: value for name, value in self.params.items() if name != "extrapolate"}

    def check(self, weights: Sequence[float], *, has_base: bool) -> None:
        """Reject coefficients or a base that this method cannot take, before any data is read."""
        if self.base == "required" and not has_base:
            raise UserError(f"method {self.name!r} needs a base", fix="give the initialisation: --base DIR")
        if self.base == "none" and has_base:
            raise UserError(f"method {self.name!r} takes no base", fix="remove --base")
        self.module.check(weights, **self.params)

    def check_extras(self, infos: Mapping[str, TensorInfo]) -> None:
        """Require the further tensors that the method needs, from headers.

        Elementwise methods need one of the same shape for every parameter, others at least one.

        Args:
            infos: the parameters.

        Raises:
            UserError: they are missing, misshapen, or given to a method that takes none.
        """
        if self.extra is None:
            if self.extras:
                raise UserError(f"method {self.name!r} takes no further tensors", fix="remove extra:")
            return
        if not self.extras:
            raise UserError(f"method {self.name!r} needs a {self.extra} per model", fix="give each model extra: DIR")
        for model, extra in self.extras:
            found = {name: info for name, info in extra.infos.items() if name in infos and infos[name].is_float}
            lacking = [
                n for n, info in infos.items() if info.is_float and (n not in found or found[n].shape != info.shape)
            ]
            if not found or (self.module.ELEMENTWISE and lacking):
                what = f"{self.extra} of {model.name!r} missing or of another shape for {len(lacking)} parameters"
                listed = ", ".join(lacking[:MAX_LISTED])
                raise UserError(f"{what}: {listed}", where=str(extra.path), fix="store one under each parameter's name")

    def merge_into(
        self,
        out: torch.Tensor,
        models: Sequence[torch.Tensor],
        weights: Sequence[float],
        base: torch.Tensor | None = None,
        place: Place | None = None,
    ) -> None:
        """Write the merge of one floating-point parameter into ``out``, in place.

        The sums are accumulated in float64 and rounded once, to the dtype of ``out``, which may differ from
        that of the models, as may its device; it must not share memory with them.

        Args:
            out: receives the result; same shape as the models.
            models: the parameter in each model.
            weights: one coefficient per model.
            base: the parameter in the common initialisation.
            place: which parameter this is; random methods and those with ``EXTRA`` need it.
        """
        if out.is_contiguous() and out.device == models[0].device:
            self._merge_pieces(out, models, weights, base, place)
        else:
            result = models[0].new_empty(models[0].shape, dtype=out.dtype)
            self._merge_pieces(result, models, weights, base, place)
            out.copy_(result)

    def check_origin(self) -> None:
        """Require further tensors to be of the weights of their model, where their file says of which they are.

        Reads the digest of every model, so it is left to those who need that anyway.

        Raises:
            UserError: they are those of other weights.
        """
        for model, extra in self.extras:
            for path in extra.weight_paths:
                digest = None
                with suppress(ValueError, AttributeError):  # it may say anything, or nothing
                    digest = json.loads(metadata_of(path).get("soups", "")).get("sha256")
                if isinstance(digest, str) and digest != model.digest:
                    what = f"these are the statistics of other weights than {model.name!r}"
                    fix = "give each model its own extra:, or run soups stats"
                    raise UserError(what, where=str(extra.path), fix=fix)

    def merge_raw(self, out: Raw, models: Sequence[Raw], weights: Sequence[float], base: Raw | None = None) -> None:
        """Write the merge of entries of one parameter into ``out``, as `merge_into` does, with numpy.

        Args:
            out: receives the result; as many entries as the models.
            models: the entries in each model.
            weights: one coefficient per model.
            base: the entries in the common initialisation.
        """
        from soups.engine.arrays import add_up, quiet

        is_sum = self._is_sum(weights)
        size = CHUNK_ELEMENTS if is_sum else ARRAY_ELEMENTS
        for start in range(0, len(out), size):
            piece = slice(start, min(start + size, len(out)))
            inputs = [model[piece] for model in models]
            if is_sum:
                add_up(out[piece], inputs, weights)
                continue
            wide = [part.widen() for part in inputs]
            wide_base = None if base is None else base[piece].widen()
            with quiet():
                merged = self.module.merge(wide, weights, wide_base, **self.params)
                exact = next((part for part, used in zip(inputs, wide, strict=True) if merged is used), None)
                if exact is None:
                    keep_equal(merged, wide, weights, wide_base)
            if exact is not None and exact.dtype == out.dtype:
                out[piece].data[:] = exact.data
            else:
                out[piece].store(merged)

    def _is_sum(self, weights: Sequence[float]) -> bool:
        """Say whether models are added up, with coefficients that the method takes; a model alone is copied."""
        is_sum = getattr(self.module, "SUM", False) and one_hot(weights) is None
        if is_sum:
            self.module.check(weights, **self.params)
        return is_sum

    def _merge_pieces(
        self,
        out: torch.Tensor,
        models: Sequence[torch.Tensor],
        weights: Sequence[float],
        base: torch.Tensor | None,
        place: Place | None,
    ) -> None:
        if self._is_sum(weights):
            _add_up(out.view(-1), [model.reshape(-1) for model in models], weights)
            return
        pieces: Sequence[Any] = [...] if out.numel() else []
        facts = self._facts(models, weights, base, place) if out.numel() else None
        if self.module.ELEMENTWISE or hasattr(self.module, "measure"):
            out, base = out.view(-1), None if base is None else base.reshape(-1)
            models, facts = [model.reshape(-1) for model in models], facts and [_flat(fact) for fact in facts]
            size = CHUNK_ELEMENTS if out.device.type == "cpu" else GPU_CHUNK_ELEMENTS
            pieces = [slice(start, start + size) for start in range(0, out.numel(), size)]
        for piece in pieces:
            inputs = [model[piece] for model in models]
            wide = [part.double() for part in inputs]
            wide_base = None if base is None else base[piece].double()
            context = [] if facts is None else [[_cut(fact, piece) for fact in facts]]
            merged = self.module.merge(wide, weights, wide_base, *context, **self.params)
            # Identity, not equality: the method chose this model, so its own bytes are copied, NaNs included.
            exact = next((part for part, used in zip(inputs, wide, strict=True) if merged is used), None)
            if exact is None:
                keep_equal(merged, wide, weights, wide_base)
            out[piece].copy_(merged if exact is None else exact)

    def _facts(
        self,
        models: Sequence[torch.Tensor],
        weights: Sequence[float],
        base: torch.Tensor | None,
        place: Place | None,
    ) -> list[Any] | None:
        """Return one value per model for the fourth argument of ``merge``, or None if it takes none."""
        if hasattr(self.module, "measure"):
            return self.module.measure(models, weights, base, place, **self.params)
        if self.extra is None:
            return None
        if place is None:
            raise ValueError(f"method {self.name!r} must be told which parameter it merges")
        extras = {model.digest: extra for model, extra in self.extras}
        return [_read(extras[model], place.tensor) for model in place.models]

    def merge(
        self,
        models: Sequence[torch.Tensor],
        weights: Sequence[float],
        base: torch.Tensor | None = None,
        place: Place | None = None,
    ) -> torch.Tensor:
        """Return the merge of one floating-point parameter, in the dtype of the models."""
        out = models[0].new_empty(models[0].shape)
        self.merge_into(out, models, weights, base, place)
        return out


def _add_up(out: torch.Tensor, models: Sequence[torch.Tensor], weights: Sequence[float]) -> None:
    """Write the sum of flat tensors, each times its weight, into ``out``; those without weight are not read.

    The steps are those of `soups.engine.arrays.add_up`, in pieces that all threads of torch share.
    """
    import torch

    used = [(model, weight) for model, weight in zip(models, weights, strict=True) if weight != 0]  # 0 * inf is NaN
    size = CHUNK_ELEMENTS * torch.get_num_threads() if out.device.type == "cpu" else GPU_CHUNK_ELEMENTS
    memory = torch.zeros(2, min(size, out.numel()), dtype=torch.float64, device=out.device)
    for start in range(0, out.numel(), size):
        target = out[start : start + size]
        total, term = memory[:, : len(target)]
        for number, (model, weight) in enumerate(used):
            product = (term if number else total).copy_(model[start : start + size])
            product *= weight
            if number:
                total += term
        if min(weights) < 0 and has_nan(total):  # else infinities of one sign add up to themselves
            keep_equal(total, [model[start : start + size].double() for model in models], weights)
        target.copy_(total)


def _read(checkpoint: Checkpoint, name: str) -> torch.Tensor | None:
    if name not in checkpoint.infos:
        return None
    with checkpoint.reader() as read:
        return read(name)


def _flat(fact: Any) -> Any:
    return fact.reshape(-1) if hasattr(fact, "reshape") else fact


def _cut(fact: Any, piece: Any) -> Any:
    return fact[piece] if hasattr(fact, "reshape") else fact


def get_method(
    name: str, params: Mapping[str, Any] | None = None, extras: Sequence[tuple[Checkpoint, Checkpoint]] = ()
) -> Method:
    """Look a method up by its file name, or import a file of one's own, and bind its parameters.

    Raises:
        UserError: unknown method, unknown parameter, or a value of the wrong type.
    """
    if is_own(name):
        module, name = own_method(name), str(Path(name).resolve())
    elif name in method_names():
        module = importlib.import_module(f"soups.methods.{name}")
    else:
        fix = f"{did_you_mean(name, method_names())}; or a file of your own: {name or 'my'}.py"
        raise UserError(f"unknown method {name!r}", fix=fix)
    known, given = method_params(module), dict(params or {})
    for key, value in given.items():
        if key not in known:
            raise UserError(f"method {name!r} has no parameter {key!r}", fix=did_you_mean(key, known))
        expected = type(known[key])
        if expected is float and isinstance(value, str):
            with suppress(ValueError):
                given[key] = value = float(value)  # YAML 1.1 reads .3 and 1e-6 as text
        is_number = expected is float and isinstance(value, int) and not isinstance(value, bool)
        if type(value) is not expected and not is_number:
            raise UserError(
                f"parameter {key!r} of method {name!r} is {value!r}",
                fix=f"give a value of type {expected.__name__}, as the default {known[key]!r}",
            )
    return Method(name, {**known, **given}, module, tuple(extras))


def method_params(module: ModuleType) -> dict[str, Any]:
    """Return the parameters of a method and their defaults, read from the signature of its ``merge``."""
    signature = inspect.signature(module.merge)
    return {p.name: p.default for p in signature.parameters.values() if p.kind is p.KEYWORD_ONLY}
