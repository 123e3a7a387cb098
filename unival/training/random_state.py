"""The state of every global random generator of a process, as a safetensors file."""

import json
import random
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file


def seed_process(seed: int, rank: int, step: int = 0) -> None:
    """Seed the generators of one process; in the main one, before the first step, torch's is `seed` itself."""
    mixed = int(np.random.SeedSequence((seed, rank, step)).generate_state(1, np.uint64)[0]) >> 1
    torch.manual_seed(mixed if rank or step else seed)
    random.seed(mixed)
    np.random.seed(mixed % 2**32)  # noqa: NPY002 (what libraries draw from must be reproducible too)


def save_random(path: Path, device: torch.device) -> None:
    """Write the states of the generators of torch (CPU and this process's GPU), Python and NumPy."""
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)  # noqa: NPY002
    tensors = {"torch": torch.get_rng_state(), "numpy": torch.from_numpy(np.asarray(keys, dtype=np.uint32).copy())}
    if device.type == "cuda":
        tensors["cuda"] = torch.cuda.get_rng_state(device)
    others = {"numpy": [name, position, has_gauss, cached], "python": random.getstate()}
    save_file(tensors, path, {"others": json.dumps(others)})


def load_random(path: Path, device: torch.device) -> None:
    """Restore what `save_random` wrote; a generator that was not there then is left alone."""
    with safe_open(path, "pt") as file:
        others = json.loads(file.metadata()["others"])
        name, position, has_gauss, cached = others["numpy"]
        keys = file.get_tensor("numpy").numpy()
        np.random.set_state((name, keys, position, has_gauss, cached))  # noqa: NPY002
        version, internal, gauss = others["python"]
        random.setstate((version, tuple(internal), gauss))
        if device.type == "cuda" and "cuda" in file.keys():  # noqa: SIM118 (not a mapping)
            torch.cuda.set_rng_state(file.get_tensor("cuda"), device)
        torch.set_rng_state(file.get_tensor("torch"))
