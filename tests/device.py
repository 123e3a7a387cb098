"""A second device made of the processor's memory: what would fail on a GPU fails here, without one.

Its tensors hold their values on the CPU and say that they are elsewhere. An operation on tensors of both devices is
refused, as CUDA refuses it; any other computes what the CPU computes, so results can be compared bit for bit. It
changes torch for good, so it is imported before `unival`, in a process of its own (`tests/e2e/test_device.py`).

Under autocast it casts what CUDA casts (`torch/aten/src/ATen/autocast_mode.h`). Not copied: kernels and streams.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import (
    _DummyBackendModule,
    _setup_privateuseone_for_python_backend,
)

NAME = "elsewhere"
COPIES = ("aten::_to_copy", "aten::copy_")
INDEXED = ("aten::index", "aten::index_put_", "aten::_index_put_impl_")  # CUDA takes their indices from the CPU too


class _Stream:
    def synchronize(self) -> None:
        """Wait for nothing."""

    def wait_stream(self, other: Any) -> None:
        """Wait for nothing."""


class _Backend(_DummyBackendModule):
    """What torch asks of the module of a device."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]

    def current_stream(self, *_: Any) -> _Stream:
        return _Stream()

    Stream = current_stream

    def stream(self, _: _Stream) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()


_setup_privateuseone_for_python_backend(NAME, backend_module=_Backend())
DEVICE = torch.device(NAME, 0)
CASTS = {
    "short": "conv1d conv2d conv3d linear matmul mm mv bmm baddbmm addmm addmv addbmm einsum "
    "scaled_dot_product_attention",
    "float32": "exp log log1p expm1 pow rsqrt reciprocal softplus layer_norm native_layer_norm group_norm "
    "cosine_similarity nll_loss nll_loss2d cross_entropy_loss kl_div l1_loss mse_loss cdist logsumexp",
    "float32 without dtype": "prod softmax log_softmax cumprod cumsum sum linalg_vector_norm",
    "widest": "addcdiv addcmul dot index_put tensordot scatter_add grid_sampler bilinear",
}
AUTOCAST = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)
_fallthrough = torch.library.Library("_", "IMPL", "AutocastPrivateUse1")
_fallthrough.fallback(torch.library.fallthrough_kernel)
_casting = torch.library.Library("aten", "IMPL", "AutocastPrivateUse1")


class Elsewhere(Tensor):
    """A tensor on the device; `here` is its values."""

    here: Tensor

    @staticmethod
    def __new__(cls, here: Tensor) -> "Elsewhere":
        """Wrap a tensor of the CPU."""
        made = Tensor._make_wrapper_subclass(
            cls, here.size(), here.stride(), here.storage_offset(), dtype=here.dtype, device=DEVICE
        )
        made.here = here
        return made

    def __init__(self, here: Tensor) -> None:
        """Do nothing: `__new__` did."""

    __torch_dispatch__ = classmethod(lambda cls, func, types, args=(), kwargs=None: run(func, args, kwargs or {}))

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Read lists and addresses from the values; refuse arrays, as tensors of a GPU do."""
        if func is Tensor.tolist:
            return args[0].here.tolist()
        if func is Tensor.data_ptr:
            return args[0].here.data_ptr()
        if func in (Tensor.numpy, Tensor.__array__):
            raise TypeError(f"can't convert {NAME} tensor to numpy")
        return torch._C._disabled_torch_function_impl(func, types, args, kwargs or {})


def run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Compute an operation on the values.

    Raises:
        RuntimeError: Some tensors are on the device and some are not.
    """
    name = func.name().split(".")[0]
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    ours = [tensor for tensor in tensors if isinstance(tensor, Elsewhere)]
    others = [tensor for tensor in tensors if not isinstance(tensor, Elsewhere) and tensor.ndim > 0]
    if name in INDEXED:
        others = [tensor for tensor in others if any(tensor is arg for arg in args)]  # indices are in a list
    if ours and others and name not in COPIES:
        raise RuntimeError(f"{name}: expected all tensors to be on one device: {[t.device for t in tensors]}")
    is_ours = isinstance(args[0], Elsewhere) if name == "aten::copy_" else bool(ours)
    if kwargs.get("device") is not None:
        is_ours = torch.device(kwargs["device"]).type == NAME
        kwargs = kwargs | {"device": torch.device("cpu")}
    taken = {id(tensor.here): tensor for tensor in ours}
    found = func(*tree_map(_here, args), **tree_map(_here, kwargs))

    def wrapped(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        return taken.get(id(leaf)) if id(leaf) in taken else Elsewhere(leaf) if is_ours else leaf  # or in place

    return tree_map(wrapped, found)


def _here(leaf: Any) -> Any:
    return leaf.here if isinstance(leaf, Elsewhere) else leaf


def _cast(operation: Any, kind: str) -> Any:
    def run(*args: Any, **kwargs: Any) -> Any:
        dtype = torch.get_autocast_dtype(NAME) if kind == "short" else torch.float32
        floats = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
        is_left = kind == "float32 without dtype" and kwargs.get("dtype") is not None
        is_left |= kind == "widest" and not any(leaf.dtype == torch.float32 for leaf in floats)
        with torch._C._ExcludeDispatchKeyGuard(AUTOCAST):
            return operation(*args, **kwargs) if is_left else operation(*_to(dtype, args), **_to(dtype, kwargs))

    return run


def _to(dtype: torch.dtype, tree: Any) -> Any:
    def cast(leaf: Any) -> Any:
        is_cast = isinstance(leaf, Elsewhere) and leaf.is_floating_point() and leaf.dtype != torch.float64
        return leaf.to(dtype) if is_cast else leaf

    return tree_map(cast, tree)


for kind, names in CASTS.items():
    for packet in (getattr(torch.ops.aten, name) for name in names.split()):
        for operation in (getattr(packet, overload) for overload in packet.overloads() if "out" not in overload):
            _casting.impl(operation.name().removeprefix("aten::"), _cast(operation, kind))


class _Mode(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})


class _Unchanged(contextlib.ContextDecorator):
    def __enter__(self) -> None:
        """Change nothing."""

    def __exit__(self, *_: object) -> None:
        """Change nothing."""


def _empty(size: Any, *args: Any, **options: Any) -> Tensor:
    return Elsewhere(torch.empty(size, dtype=options.get("dtype")))


def _empty_strided(size: Any, stride: Any, **options: Any) -> Tensor:
    return Elsewhere(torch.empty_strided(size, stride, dtype=options.get("dtype")))


# Tensors made on the device in other threads than that of `elsewhere`.
_made = torch.library.Library("aten", "IMPL")
_made.impl("empty.memory_format", _empty, "PrivateUse1")
_made.impl("empty_strided", _empty_strided, "PrivateUse1")
# A wrapper has no version in inference mode; weights would be untied by `to`; `torch.tensor(..., device=)` must copy.
torch.inference_mode = lambda mode=True: torch.no_grad() if mode else _Unchanged()  # type: ignore[assignment, misc]
torch.__future__.set_swap_module_params_on_conversion(True)
torch._C._set_only_lift_cpu_tensors(True)


@contextlib.contextmanager
def elsewhere() -> Iterator[torch.device]:
    """Let tensors be made on the device while the block runs."""
    with _Mode():
        yield DEVICE
