"""A file of the released size, 0.25 billion parameters in float32, both ways: a minute and 4 GB of disk.

Time is measured by `benchmarks/model.py`; here only what is the same on every machine.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.parity.test_golden_base import configuration
from tests.unit.test_convert import MEASURE, contents
from unival.convert.layout import EMBEDDING, TIED, empty_model, original_names, rebuild
from unival.pickles.torch_file import StoredTensor, read_torch_file

NUM_PARAMETERS = 250_489_072
NUM_TENSORS = 1656
LOAD = """
import json, resource, sys, time
import unival.model.processing
from transformers import AutoModelForSeq2SeqLM
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
before, start = resident(), time.perf_counter()
model = AutoModelForSeq2SeqLM.from_pretrained(sys.argv[1])
seconds = time.perf_counter() - start
tensors = {tensor.data_ptr(): tensor for tensor in model.state_dict().values()}
for tensor in tensors.values():  # what is mapped from the file becomes memory when it is read
    tensor.sum()
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
size = sum(tensor.nbytes for tensor in tensors.values())
print(json.dumps({"growth": peak - before, "size": size, "seconds": seconds}))
"""
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc"),
]


def base_file(path: Path) -> Path:
    """Write a file of the original with random weights of the base model for pictures and clips."""
    torch.manual_seed(0)
    model = empty_model(configuration("base"))
    drawn: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        if name not in TIED:
            is_counter = not tensor.is_floating_point()
            drawn[name] = torch.full(tensor.shape, 7) if is_counter else torch.empty(tensor.shape).uniform_(-1.0, 1.0)
    drawn |= dict.fromkeys(TIED, torch.empty(model.state_dict()[EMBEDDING].shape).uniform_(-1.0, 1.0))
    state = {}
    for name in original_names(drawn):
        table = rebuild(name, model.config, torch.float32)
        state[name] = drawn[name] if table is None else table
    assert len(state) == NUM_TENSORS
    settings = {"arch": "unival_base", "task": "caption", "code_dict_size": 8192, "num_bins": 1000, "hop_size": 200}
    torch.save(contents(state, cfg={"task": {"_name": "caption"}, "model": settings}), path)
    return path


def run(code: str, *arguments: str | Path) -> Any:
    """Run code in a process of its own; return what its last line says."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def tensors_in(path: Path) -> dict[str, StoredTensor]:
    return dict(read_torch_file(path).tree["model"].items())


def test_the_base_model_goes_both_ways_bit_for_bit_in_little_memory(tmp_path: Path) -> None:
    if shutil.disk_usage(tmp_path).free < 5e9:
        pytest.skip("needs 5 GB of disk")
    source, folder, back = base_file(tmp_path / "base.pt"), tmp_path / "base", tmp_path / "back.pt"
    size = source.stat().st_size
    assert size > 4 * NUM_PARAMETERS
    for start, end, to in ((source, folder, "transformers"), (folder, back, "fairseq")):
        used = run(MEASURE, start, end, to)
        assert used < 1.5 * size, f"{used / size:.2f} times the file, to {to}"
    first, second = tensors_in(source), tensors_in(back)
    assert list(first) == list(second)
    for name, tensor in first.items():
        assert torch.equal(tensor.load(), second[name].load()), name
    loaded = run(LOAD, folder)
    print(f"loaded in {loaded['seconds']:.2f} s, {loaded['growth'] / loaded['size']:.2f} times its size")
    assert loaded["size"] >= 4 * NUM_PARAMETERS
    assert loaded["growth"] < 1.2 * loaded["size"]
