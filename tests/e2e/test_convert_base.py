"""Files of the released size, 0.25 billion parameters, both ways: some minutes and 4 GB of disk each.

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
from unival.log import peak_resident
from transformers import AutoModelForSeq2SeqLM
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
before, start = resident(), time.perf_counter()
model = AutoModelForSeq2SeqLM.from_pretrained(sys.argv[1])
seconds = time.perf_counter() - start
tensors = {tensor.data_ptr(): tensor for tensor in model.state_dict().values()}
for tensor in tensors.values():  # what is mapped from the file becomes memory when it is read
    tensor.sum()
size = sum(tensor.nbytes for tensor in tensors.values())
print(json.dumps({"growth": peak_resident() - before, "size": size, "seconds": seconds}))
"""
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc"),
]


def base_file(path: Path, is_zip: bool, dtype: torch.dtype, has_optimizer: bool) -> Path:
    """Write a file of the original with random weights of the base model for pictures and clips."""
    torch.manual_seed(0)
    model = empty_model(configuration("base"))
    drawn: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        if name not in TIED:
            is_counter = not tensor.is_floating_point()
            drawn[name] = torch.full(tensor.shape, 7) if is_counter else uniform(tensor, dtype)
    drawn |= dict.fromkeys(TIED, uniform(model.state_dict()[EMBEDDING], dtype))
    state = {}
    for name in original_names(drawn):
        table = rebuild(name, model.config, dtype)
        state[name] = drawn[name] if table is None else table
    assert len(state) == NUM_TENSORS
    settings = {"arch": "unival_base", "task": "caption", "code_dict_size": 8192, "num_bins": 1000, "hop_size": 200}
    moments = {"step": 4, "exp_avg": torch.zeros(NUM_PARAMETERS), "exp_avg_sq": torch.zeros(NUM_PARAMETERS)}
    optimizer = {"last_optimizer_state": {"state": {0: moments}}} if has_optimizer else {}
    content = contents(state, cfg={"task": {"_name": "caption"}, "model": settings}, **optimizer)
    torch.save(content, path, _use_new_zipfile_serialization=is_zip)
    return path


def uniform(like: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.empty(like.shape).uniform_(-1.0, 1.0).to(dtype)


def run(code: str, *arguments: str | Path) -> Any:
    """Run code in a process of its own; return what its last line says."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def tensors_in(path: Path) -> dict[str, StoredTensor]:
    return dict(read_torch_file(path).tree["model"].items())


@pytest.mark.parametrize(
    ("is_zip", "dtype", "has_optimizer"),
    [(True, torch.float32, False), (False, torch.float16, True)],
    ids=["zip, float32", "legacy, float16, optimizer state"],
)
def test_the_base_model_goes_both_ways_bit_for_bit_in_little_memory(
    tmp_path: Path, is_zip: bool, dtype: torch.dtype, has_optimizer: bool
) -> None:
    if shutil.disk_usage(tmp_path).free < 5e9:
        pytest.skip("needs 5 GB of disk")
    source = base_file(tmp_path / "base.pt", is_zip, dtype, has_optimizer)
    folder, back, size = tmp_path / "base", tmp_path / "back.pt", dtype.itemsize * NUM_PARAMETERS
    assert source.stat().st_size > size + (8 * NUM_PARAMETERS if has_optimizer else 0)
    for start, end, to in ((source, folder, "transformers"), (folder, back, "fairseq")):
        used = run(MEASURE, start, end, to)
        print(f"to {to}: {used / size:.2f} times the weights, {used / source.stat().st_size:.2f} times the file")
        assert used < 1.5 * source.stat().st_size
    first, second = tensors_in(source), tensors_in(back)
    assert list(first) == list(second)
    for name, tensor in first.items():
        assert torch.equal(tensor.load(), second[name].load()), name
    loaded = run(LOAD, folder)
    print(f"loaded in {loaded['seconds']:.2f} s, {loaded['growth'] / loaded['size']:.2f} times its size")
    assert loaded["size"] >= size
    assert loaded["growth"] < 1.2 * loaded["size"]
