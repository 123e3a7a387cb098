"""Settings for every test: seeds, one torch thread, hypothesis without deadlines."""

import random
import sys

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
