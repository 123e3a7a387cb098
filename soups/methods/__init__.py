"""Merge methods, one file each; the file name is the name of the method.

A method file defines

* ``BASE``: ``"none"``, ``"optional"`` or ``"required"``: whether it uses the common initialisation;
* ``ELEMENTWISE``: whether each output entry depends on the same entry of the inputs only, so that it may be
  computed in pieces;
* ``merge(models, weights, base, *, ...)``: a pure function over one parameter. It receives float64 tensors
  and returns one; it returns ``models[i]`` itself when the result is that model, which makes endpoints
  byte-equal. Keyword-only arguments are the parameters of the method; their defaults live there only;
* ``check(weights, ...)``, with the same keyword-only arguments: rejects coefficients before any data is read.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from soups.errors import UserError, did_you_mean

if TYPE_CHECKING:
    import torch

CHUNK_ELEMENTS = 1 << 16  # 512 kB in float64: the pieces stay in cache, which beats one whole float32 pass


def method_names() -> list[str]:
    """List the methods: the files of this folder that do not start with an underscore."""
    return sorted(path.stem for path in Path(__file__).parent.glob("[!_]*.py"))


@dataclass(frozen=True)
class Method:
    """A method with its parameters bound."""

    name: str
    params: Mapping[str, Any]
    module: ModuleType

    @property
    def base(self) -> str:
        """Say whether a base is used: none, optional or required."""
        return self.module.BASE

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

    def merge_into(
        self,
        out: torch.Tensor,
        models: Sequence[torch.Tensor],
        weights: Sequence[float],
        base: torch.Tensor | None = None,
    ) -> None:
        """Write the merge of one floating-point parameter into ``out``, in place.

        The sums are accumulated in float64 and rounded once, to the dtype of ``out``, which may differ from
        that of the models, as may its device; it must not share memory with them.
        """
        size = CHUNK_ELEMENTS if self.module.ELEMENTWISE else max(models[0].numel(), 1)
        flat_models = [model.reshape(-1) for model in models]
        flat_base = None if base is None else base.reshape(-1)
        if out.is_contiguous() and out.device.type == "cpu":
            self._merge_pieces(out.view(-1), flat_models, weights, flat_base, size)
        else:
            result = models[0].new_empty(models[0].shape, dtype=out.dtype)
            self._merge_pieces(result.view(-1), flat_models, weights, flat_base, size)
            out.copy_(result)

    def _merge_pieces(
        self,
        out: torch.Tensor,
        models: Sequence[torch.Tensor],
        weights: Sequence[float],
        base: torch.Tensor | None,
        size: int,
    ) -> None:
        for start in range(0, out.numel(), size):
            piece = slice(start, start + size)
            inputs = [model[piece] for model in models]
            wide = [part.double() for part in inputs]
            merged = self.module.merge(wide, weights, None if base is None else base[piece].double(), **self.params)
            # Identity, not equality: the method chose this model, so its own bytes are copied, NaNs included.
            exact = next((part for part, used in zip(inputs, wide, strict=True) if merged is used), merged)
            out[piece].copy_(exact)

    def merge(
        self,
        models: Sequence[torch.Tensor],
        weights: Sequence[float],
        base: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the merge of one floating-point parameter, in the dtype of the models."""
        out = models[0].new_empty(models[0].shape)
        self.merge_into(out, models, weights, base)
        return out


def get_method(name: str, params: Mapping[str, Any] | None = None) -> Method:
    """Look a method up by its file name and bind its parameters.

    Raises:
        UserError: unknown method, unknown parameter, or a value of the wrong type.
    """
    if name not in method_names():
        raise UserError(f"unknown method {name!r}", fix=did_you_mean(name, method_names()))
    module = importlib.import_module(f"soups.methods.{name}")
    known = method_params(module)
    for key, value in (params or {}).items():
        if key not in known:
            raise UserError(f"method {name!r} has no parameter {key!r}", fix=did_you_mean(key, known))
        expected = type(known[key])
        is_number = expected is float and isinstance(value, int) and not isinstance(value, bool)
        if type(value) is not expected and not is_number:
            raise UserError(
                f"parameter {key!r} of method {name!r} is {value!r}",
                fix=f"give a value of type {expected.__name__}, as the default {known[key]!r}",
            )
    return Method(name, {**known, **(params or {})}, module)


def method_params(module: ModuleType) -> dict[str, Any]:
    """Return the parameters of a method and their defaults, read from the signature of its ``merge``."""
    signature = inspect.signature(module.merge)
    return {p.name: p.default for p in signature.parameters.values() if p.kind is p.KEYWORD_ONLY}
