"""Where a model computes: on a GPU when there is one."""

import torch

from unival.errors import UserError


def find_device(name: str = "auto") -> torch.device:
    """Return the device of a name: `auto`, `cpu`, `cuda`, `cuda:1`; `auto` is a GPU when torch can use one.

    Raises:
        UserError: If there is none.
    """
    has_gpu = torch.cuda.is_available()
    if name == "auto":
        return torch.device("cuda" if has_gpu else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"no such device: {name!r}", "device", "give auto, cpu, cuda or cuda:1") from None
    if device.type == "cuda" and not has_gpu:
        raise UserError("there is no GPU that torch can use", "device", "give cpu, or install torch for CUDA")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"there is no GPU {device.index}", "device", f"give one below {torch.cuda.device_count()}")
    return device
