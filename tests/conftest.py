"""Settings for every test: seeds, one torch thread, hypothesis without deadlines; and a file that several read."""

import random
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings

# A deadline would be an assertion on time, which a busy machine fails.
settings.register_profile("offline", deadline=None, max_examples=50, derandomize=True)
settings.load_profile("offline")


@pytest.fixture(autouse=True)
def fixed_seeds() -> None:
    """Seed every generator, and keep torch to one thread: tiny tensors run faster, sums have one order."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - libraries draw from the global generator
    torch = sys.modules.get("torch")  # a test that needs no torch must not pay for its import
    if torch is not None:
        torch.set_num_threads(1)
        torch.manual_seed(0)


@pytest.fixture
def sound_in_mp4(tmp_path: Path) -> Path:
    """Write a container of videos that holds a sound only."""
    import av  # not at the start of tests that need none

    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path
