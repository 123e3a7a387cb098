"""Files of torch, moving averages and adapters, through the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from soups.cli import app


def soups(*args: object, code: int = 0) -> str:
    """Run a command; return stdout, or stderr when it is meant to fail."""
    result = CliRunner().invoke(app, [str(arg) for arg in args])
    assert result.exit_code == code, result.output + repr(result.exception)
    return result.stdout if code == 0 else result.stderr


def save_training(path: Path, value: float) -> Path:
    torch.save(
        {"model": {"w": torch.full((3, 2), value)}, "extra_state": {"ema": {"w": torch.full((3, 2), -value)}}}, path
    )
    return path


def save_adapter(folder: Path, value: float, rank: int = 1) -> Path:
    folder.mkdir()
    stored = {"a": torch.full((rank, 2), value), "b": torch.arange(3.0 * rank).reshape(3, rank)}
    save_file(
        {f"base_model.model.w.lora_{side.upper()}.weight": tensor for side, tensor in stored.items()},
        folder / "adapter_model.safetensors",
    )
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": rank, "lora_alpha": rank}))
    return folder


@pytest.fixture
def files(tmp_path):
    return [save_training(tmp_path / f"{name}.pt", value) for name, value in (("a", 1.0), ("b", 2.0))]


@pytest.fixture
def adapters(tmp_path):
    (tmp_path / "base").mkdir()
    save_file({"w.weight": torch.ones(3, 2), "other": torch.ones(1)}, tmp_path / "base" / "model.safetensors")
    (tmp_path / "base" / "config.json").write_text("{}")
    return [save_adapter(tmp_path / "x", 1.0), save_adapter(tmp_path / "y", 3.0, rank=2)]


@pytest.mark.parametrize(("flags", "expected"), [((), 1.75), (("--ema",), -1.75)], ids=["raw", "average"])
def test_two_files_of_torch_merge_raw_or_averaged(files, tmp_path, flags, expected):
    soups("merge", *files, *flags, "--weights", "0.25,0.75", "--dtype", "bfloat16", "-o", tmp_path / "out")
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert found["w"].dtype == torch.bfloat16
    assert found["w"].unique().tolist() == [expected]
    assert "| a | 0.25 | a.pt |" in (tmp_path / "out" / "README.md").read_text()


def test_a_recipe_takes_averages_and_puts_adapters_on_its_base(files, adapters, tmp_path):
    recipe = {"models": {"a": str(files[0]), "b": {"path": str(files[1]), "ema": True}}}
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    soups("merge", tmp_path / "recipe.yaml", "-o", tmp_path / "out")
    assert load_file(tmp_path / "out" / "model.safetensors")["w"].unique().tolist() == [-0.5]
    recipe = {"models": {path.name: str(path) for path in adapters}, "base": str(tmp_path / "base")}
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    soups("merge", tmp_path / "recipe.yaml", "-o", tmp_path / "adapted")
    soups("merge", *adapters, "--base", tmp_path / "base", "-o", tmp_path / "flags")
    found = [load_file(tmp_path / name / "model.safetensors")["w.weight"] for name in ("adapted", "flags")]
    assert torch.equal(*found)


def test_a_dry_run_predicts_memory_and_time(files, tmp_path):
    out = soups("merge", *files, "-o", tmp_path / "out", "--dry-run", "--shard-size", "5GB")
    assert "predicted: " in out
    assert "would write" in out
    assert not (tmp_path / "out").exists()


def test_adapters_merge_on_top_of_their_base_with_any_method(adapters, tmp_path):
    base = tmp_path / "base"
    soups("merge", *adapters, "--base", base, "-o", tmp_path / "out")
    update = torch.arange(3.0)[:, None] * torch.ones(1, 2), torch.tensor([[1.0], [5.0], [9.0]]) * 3 * torch.ones(1, 2)
    expected = 1 + (update[0] + update[1]) / 2
    assert torch.equal(load_file(tmp_path / "out" / "model.safetensors")["w.weight"], expected)
    assert (tmp_path / "out" / "config.json").exists()
    options = ("--method", "task_arithmetic", "--weights", "1,1")
    soups("merge", *adapters, "--base", base, *options, "-o", tmp_path / "sum")
    assert torch.equal(load_file(tmp_path / "sum" / "model.safetensors")["w.weight"], 1 + update[0] + update[1])


def test_adapters_merge_into_one_adapter_that_says_how_exact_it_is(adapters, tmp_path):
    printed = json.loads(soups("merge", *adapters, "--lora-mode", "cat", "-o", tmp_path / "cat", "--json"))
    assert printed["relative_error"] < 1e-6
    config = json.loads((tmp_path / "cat" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["use_rslora"]) == (3, 3, False)
    assert "relative error of the update: " in soups("merge", *adapters, "--lora-mode", "svd-1", "-o", tmp_path / "svd")


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["X", "Y", "--lora-mode", "factor"], "has rank 2, scale 1 in 'y', but rank 1"),
        (["X", "Y", "--lora-mode", "mean"], "choices: delta, factor, cat, svd-RANK"),
        (["X", "Y", "--lora-mode", "cat", "--method", "slerp"], "needs whole weights"),
        (["X", "Y", "--lora-mode", "cat", "--dtype", "float32"], "leave them out"),
        (["X", "Y", "--lora-mode", "cat", "--weights", "0.5"], "1 weight for 2 models"),
        (["X", "X", "--lora-mode", "cat"], "1 names for 2 adapters"),
        (["A", "B", "--lora-mode", "cat"], "no adapter_config.json"),
        (["X", "Y"], "not named"),
        (["X", "Y", "--base", "X"], "the base of this adapter"),
        (["A", "B", "--dtype", "half"], "unknown dtype 'half'"),
        (["A", "B", "--shard-size", "big"], "not a size: 'big'"),
        (["X", "Y", "--base", "D", "--ema"], "no moving average"),
    ],
)
def test_wrong_options_are_one_clear_error(files, adapters, tmp_path, args, expected):
    names = {"A": files[0], "B": files[1], "X": adapters[0], "Y": adapters[1], "D": tmp_path / "base"}
    message = soups("merge", *[names.get(arg, arg) for arg in args], "-o", tmp_path / "out", code=2)
    assert message.startswith("error: ")
    assert expected in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_copied_configuration_names_the_dtype_of_the_merge(tmp_path, dtype):
    text = '{ "dtype": "bfloat16",\n "text_config": {"torch_dtype" : "torch.bfloat16", "a": "bfloat16"}, "x": 1.50 }'
    for value, name in enumerate("ab"):
        (tmp_path / name).mkdir()
        save_file({"w": torch.full((2,), value, dtype=torch.bfloat16)}, tmp_path / name / "model.safetensors")
        (tmp_path / name / "config.json").write_text(text)
    soups("merge", tmp_path / "a", tmp_path / "b", "--dtype", dtype, "-o", tmp_path / "out")
    changed = text.replace(': "bfloat16",\n', f': "{dtype}",\n').replace("torch.bfloat16", dtype)
    assert (tmp_path / "out" / "config.json").read_text() == changed
    soups("merge", tmp_path / "a", tmp_path / "b", "-o", tmp_path / "plain")
    assert (tmp_path / "plain" / "config.json").read_text() == text


def test_transformers_loads_the_dtype_that_a_recipe_asked_for(tmp_path):
    from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

    for seed, name in enumerate("ab"):
        torch.manual_seed(seed)
        model = GPT2LMHeadModel(GPT2Config(vocab_size=8, n_positions=8, n_embd=4, n_layer=1, n_head=1))
        model.bfloat16().save_pretrained(tmp_path / name)
    models = f"models: {{a: {tmp_path / 'a'}, b: {tmp_path / 'b'}}}"
    (tmp_path / "recipe.yaml").write_text(f"{models}\npolicies: {{dtype: F32}}\n")
    soups("merge", tmp_path / "recipe.yaml", "-o", tmp_path / "out")
    stored = load_file(tmp_path / "out" / "model.safetensors")["transformer.wte.weight"]
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict()["transformer.wte.weight"]
    assert stored.dtype == loaded.dtype == torch.float32
    assert loaded.equal(stored)
    assert not loaded.equal(loaded.bfloat16().float())  # the mean of two numbers may need a digit more
