"""Merges without torch: the same bytes as with it."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from soups.engine.arrays import Raw
from soups.merge import Recipe, merge, plan
from soups.methods import get_method
from soups.state import open_checkpoint

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
SPECIAL = [0.0, -0.0, 1.0, 1 + 2**-9, 1 + 3 * 2**-9, 65504.0, 65520.0, 3.4e38, 1e39, 6e-8, 1e-40, 1e-46]
SPECIAL += [float("inf"), float("-inf"), float("nan")]


def raw(tensor: torch.Tensor, dtype: str) -> Raw:
    return Raw(tensor.view(torch.uint8).numpy(), dtype, tensor.element_size())


def same(first: torch.Tensor, second: torch.Tensor) -> bool:
    is_nan = first.isnan()
    return bool((is_nan == second.isnan()).all()) and first[~is_nan].equal(second[~is_nan])


@pytest.mark.parametrize("dtype", DTYPES)
@given(values=st.lists(st.floats(width=64) | st.sampled_from(SPECIAL), min_size=1, max_size=20))
def test_rounding_is_that_of_torch(dtype, values):
    wide = torch.tensor([*values, *SPECIAL], dtype=torch.float64)
    found = torch.empty(len(wide), dtype=DTYPES[dtype])
    raw(found, dtype).store(wide.numpy())
    assert same(found, wide.to(DTYPES[dtype]))
    assert same(torch.from_numpy(raw(found, dtype).widen()), found.double())


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_every_value_of_two_bytes_is_widened_and_stored_again(dtype):
    bits = torch.arange(-(1 << 15), 1 << 15).to(torch.int16)
    stored = bits.view(DTYPES[dtype])
    found = torch.empty_like(stored)
    raw(found, dtype).store(raw(stored, dtype).widen())
    is_nan = stored.isnan()
    assert same(found, stored)
    assert found[~is_nan].view(torch.int16).equal(bits[~is_nan])  # the sign of zero too


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("method", "weights", "params"),
    [
        ("linear", (0.3, 0.7), {}),
        ("linear", (0.2, 0.3, 0.5), {}),
        ("linear", (1.0, 0.0), {}),
        ("linear", (0.0, 0.0), {"extrapolate": True}),
        ("linear", (1.5, -0.5), {"extrapolate": True}),
        ("task_arithmetic", (1.0, -0.5), {"scale": 0.4}),
        ("task_arithmetic", (0.0, 1.0), {}),
    ],
)
def test_a_merge_of_arrays_is_a_merge_of_tensors(dtype, method, weights, params):
    generator = torch.Generator().manual_seed(0)
    models = [torch.randn(40_000, generator=generator).to(DTYPES[dtype]) for _ in weights]
    base = torch.randn(40_000, generator=generator).to(DTYPES[dtype]) if method != "linear" else None
    for tensor in (*models, *([] if base is None else [base])):
        tensor[::1000] = -torch.inf  # of a mask
    bound = get_method(method, params)
    expected, found = torch.empty_like(models[0]), torch.empty_like(models[0])
    bound._merge_pieces(expected, models, weights, base, None)
    bound.merge_raw(
        raw(found, dtype), [raw(m, dtype) for m in models], weights, base if base is None else raw(base, dtype)
    )
    assert found.equal(expected)
    assert bound.merge(models, weights, base).equal(expected)
    assert expected[::1000].isneginf().all() or not any(weights)


def test_the_first_operand_of_a_cut_is_not_copied():
    whole = Raw(np.zeros(32, np.uint8), "F32", 4)
    whole[slice(2, 4)].store(np.array([1.0, 2.0]))
    assert whole.widen().tolist() == [0, 0, 1, 2, 0, 0, 0, 0]
    assert len(whole) == 8


PROGRAM = """
import sys
from soups.cli import app
code = 0
try:
    app(sys.argv[1:], prog_name="soups")
except SystemExit as error:
    code = error.code
assert "torch" not in sys.modules, "torch was imported"
raise SystemExit(code)
"""


def test_a_linear_merge_imports_no_torch_and_records_the_true_digests(tmp_path):
    for seed, name in enumerate(("a", "b", "c")):
        generator = torch.Generator().manual_seed(seed)
        tensors = {"w": torch.randn(300, 7, generator=generator), "h": torch.randn(9, generator=generator).half()}
        save_file(tensors | {"steps": torch.tensor(3)}, tmp_path / f"{name}.safetensors")
    paths = [tmp_path / f"{name}.safetensors" for name in "abc"]
    words = ["merge", *map(str, paths), "--weights", "0.2,0.3,0.5", "-o", str(tmp_path / "out")]
    done = subprocess.run([sys.executable, "-c", PROGRAM, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    checkpoints = [open_checkpoint(path) for path in paths]
    found = load_file(tmp_path / "out" / "model.safetensors")
    for name in ("w", "h"):
        states = [load_file(path)[name].double() for path in paths]
        expected = sum(weight * state for weight, state in zip((0.2, 0.3, 0.5), states, strict=True))
        torch.testing.assert_close(found[name].double(), expected, rtol=2**-10 if name == "h" else 2**-23, atol=1e-9)
    raw_header = (tmp_path / "out" / "model.safetensors").read_bytes()
    length = int.from_bytes(raw_header[:8], "little")
    recorded = json.loads(json.loads(raw_header[8 : 8 + length])["__metadata__"]["soups"])
    assert recorded["sha256"] == {checkpoint.name: checkpoint.digest for checkpoint in checkpoints}
    merge(Recipe(checkpoints[::-1], (0.5, 0.3, 0.2), get_method("linear")), tmp_path / "again")
    again = load_file(tmp_path / "again" / "model.safetensors")
    assert all(again[name].equal(tensor) for name, tensor in found.items())
    assert plan(Recipe(checkpoints, (0.2, 0.3, 0.5), get_method("linear")))["bytes_memory"] < 100e6
