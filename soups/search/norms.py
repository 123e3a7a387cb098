"""Batch norms whose running statistics have a gradient: the fused operators of torch have none for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from inspect import signature
from typing import Any

from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

NORMS = (functional.batch_norm, functional.instance_norm)  # their arguments have the same names, but for one


class DifferentiableNorms(TorchFunctionMode):
    """A context in which norms by statistics that need a gradient are computed by operators that have one."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Compute a function of torch, norms in evaluation apart."""
        if func not in NORMS:
            return func(*args, **(kwargs or {}))
        bound = signature(func).bind(*args, **(kwargs or {}))
        bound.apply_defaults()
        given = bound.arguments
        mean, variance = given["running_mean"], given["running_var"]
        if mean is None or not mean.requires_grad:
            return func(*bound.args, **bound.kwargs)
        if given.get("training") or given.get("use_input_stats"):  # statistics are written then, and not read
            given |= {"running_mean": mean.detach(), "running_var": variance.detach()}
            return func(*bound.args, **bound.kwargs)
        return _normalised(given["input"], mean, variance, given["weight"], given["bias"], given["eps"])


def _normalised(
    values: Tensor, mean: Tensor, variance: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
    """Return what the fused operators do in evaluation; channels are the second dimension."""
    shape = (1, -1, *(1 for _ in values.shape[2:]))
    scale = (variance + eps).rsqrt() if weight is None else (variance + eps).rsqrt() * weight
    result = (values - mean.reshape(shape)) * scale.reshape(shape)
    return (result if bias is None else result + bias.reshape(shape)).to(values.dtype)
