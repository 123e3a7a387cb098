"""Freed memory is used again: a further large tensor costs no new pages."""

import json
import subprocess
import sys

import pytest

CODE = """
import json, resource
import torch
from unival.memory import keep_freed_memory

def pages_of_new_tensors():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    tensors = [torch.empty(6_000_000).fill_(1.0) for _ in range(4)]  # 24 MB each
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

usual = [pages_of_new_tensors() for _ in range(3)]
is_kept = keep_freed_memory()
print(json.dumps({"usual": usual, "kept": [pages_of_new_tensors() for _ in range(3)], "is_kept": is_kept}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the C library of Linux")
def test_the_memory_of_freed_tensors_is_used_again() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    if not found["is_kept"]:
        pytest.skip("not glibc")
    assert found["kept"][2] < 0.01 * found["usual"][0]
