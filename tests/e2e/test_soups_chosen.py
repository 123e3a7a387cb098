"""What ``soups pick`` prints and writes makes the model that was scored, to the byte."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from soups.cli import app

ME = __name__


def soups(*args: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, [str(arg) for arg in args])
    assert result.exit_code == code, result.output + repr(result.exception)
    return result.stdout if code == 0 else result.stderr


def scored(path: Path, wanted: list[float]) -> dict[str, list[float]]:
    """Keep what was scored beside the sweep, and prefer the point that was asked for."""
    with safe_open(path / "model.safetensors", "pt") as file:
        found = list(json.loads(file.metadata()["soups"])["coefficients"].values())
    distance = sum(abs(here - there) for here, there in zip(found, wanted, strict=True))
    if distance < 1e-9:
        (path.parent / "scored.safetensors").write_bytes((path / "model.safetensors").read_bytes())
    return {"near": [-distance] * 3, "far": [distance] * 3}


def save_training(path: Path, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    raw, average = ({"w": torch.randn(5, 3, generator=generator), "n": torch.tensor([seed])} for _ in range(2))
    torch.save({"model": raw, "extra_state": {"ema": average}}, path)


def save_adapter(folder: Path, seed: int) -> None:
    folder.mkdir()
    generator = torch.Generator().manual_seed(seed)
    sides = {"A": torch.randn(2, 3, generator=generator), "B": torch.randn(5, 2, generator=generator)}
    factors = {f"base_model.model.w.lora_{side}.weight": tensor for side, tensor in sides.items()}
    save_file(factors, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "base_model_name_or_path": "base"}
    (folder / "adapter_config.json").write_text(json.dumps(settings))


@pytest.fixture
def models(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("a", "b", "c d")):
        save_training(tmp_path / f"{name}.pt", seed)
    for seed, name in enumerate(("base", "base2")):
        (tmp_path / name).mkdir()
        weights = {"w.weight": torch.randn(5, 3, generator=torch.Generator().manual_seed(seed + 7))}
        save_file(weights, tmp_path / name / "model.safetensors")
    save_adapter(tmp_path / "x", 1)
    save_adapter(tmp_path / "y", 2)
    save_training(tmp_path / "start.pt", 9)


THIRDS = [1 / 3, 1 / 3, 1 / 3]
FIRST = ("--integers", "first")
CASES = {
    "averages": (["a.pt", "b.pt"], [0.5, 0.5], ["--ema", *FIRST], ["--ema"]),
    "adapters on another base": (["x", "y"], [0.5, 0.5], ["--base", "base2"], ["--base"]),
    "adapters on their base": (["x", "y"], [0.5, 0.5], [], []),
    "slerp of adapters": (["x", "y"], [0.5, 0.5], ["--method", "slerp"], ["--method"]),
    "slerp from a base": (["x", "y"], [0.5, 0.5], ["--method", "slerp", "--base", "base2"], ["--base"]),
    "ties": (["a.pt", "b.pt"], [0.5, 0.5], ["--method", "ties", "--base", "start.pt", *FIRST], ["normalize=true"]),
    "one model": (["a.pt", "b.pt"], [0.0, 1.0], ["--method", "slerp", "--integers", "from:a"], []),
    "outside": (
        ["a.pt", "b.pt"],
        [1.5, -0.5],
        ["--range", "-0.5,1.5", "--extrapolate", "--integers", "max"],
        ["--extrapolate"],
    ),
    "thirds": (["a.pt", "b.pt", "c d.pt"], THIRDS, ["--points", 4, *FIRST], ["'c d.pt'"]),
    "names": (["a.pt", "c d.pt"], [0.5, 0.5], ["--name", "one", "--name", "two", "--integers", "from:two"], ["--name"]),
}


@pytest.mark.parametrize("case", CASES)
def test_the_printed_command_and_the_recipe_make_the_scored_model(models, case):
    paths, wanted, flags, printed = CASES[case]
    design = () if {"--range", "--points"} & set(flags) else ("--points", 3)
    evaluator = ("--evaluator", "soups.evaluators.function:of_file", "--arg", f"score={ME}:scored")
    soups("sweep", *paths, *flags, *design, *evaluator, "--arg", f"wanted={wanted}", "-o", "s")
    picked = json.loads(soups("pick", "s", "--preference", "near=1", "--recipe", "recipe.yaml", "--json"))
    assert list(picked["choice"]["coefficients"].values()) == wanted
    words = shlex.split(picked["merge"])
    assert words[:2] == ["soups", "merge"]
    assert all(text in picked["merge"] for text in printed)
    assert ("--extrapolate" in words) == (case == "outside")
    soups(*words[1:-1], "by_command")
    soups("merge", "recipe.yaml", "-o", "by_recipe")
    assert Path("by_command/model.safetensors").read_bytes() == Path("s/scored.safetensors").read_bytes()
    tensors = load_file("s/scored.safetensors")
    by_recipe = load_file("by_recipe/model.safetensors")  # its header names all policies
    assert by_recipe.keys() == tensors.keys()
    assert all(by_recipe[name].equal(tensors[name]) for name in tensors)


def test_models_averaged_one_by_one_are_chosen_by_a_recipe(models, tmp_path):
    (tmp_path / "swept.yaml").write_text("models: {a: {path: a.pt, ema: true}, b: b.pt}\npolicies: {integers: max}\n")
    evaluator = ("--evaluator", "soups.evaluators.function:of_file", "--arg", f"score={ME}:scored")
    soups("sweep", "swept.yaml", "--points", 3, *evaluator, "--arg", "wanted=[0.5,0.5]", "-o", "s")
    picked = json.loads(soups("pick", "s", "--preference", "near=1", "--recipe", "recipe.yaml", "--json"))
    assert picked["merge"] is None
    soups("merge", "recipe.yaml", "-o", "out")
    assert load_file("out/model.safetensors")["w"].equal(load_file("s/scored.safetensors")["w"])


def test_points_outside_the_simplex_are_refined(models):
    flags = ("--range", "-0.5,1.5", "--points", 3, "--extrapolate", "--integers", "max")
    evaluator = ("--evaluator", "soups.evaluators.function:of_file", "--arg", f"score={ME}:scored")
    soups("sweep", "a.pt", "b.pt", *flags, *evaluator, "--arg", "wanted=[1.25,-0.25]", "-o", "s")
    picked = json.loads(soups("pick", "s", "--preference", "near=1", "--refine", 2, "--json"))
    assert picked["num_new_points"] == 2
    assert picked["choice"]["coefficients"] == {"a": 1.25, "b": -0.25}
