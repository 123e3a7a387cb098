"""Sweeps of recipes, of profiles, shared by processes and jobs, and searches that score points of their own."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from typer.testing import CliRunner

from soups import pareto
from soups.cli import app
from soups.evaluators.function import ModelEvaluator
from soups.results import read_results

ME = __name__
INPUTS = torch.linspace(-1, 1, 8)[:, None]


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1))


def end(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    start = network().state_dict()
    return {name: value + 0.5 * torch.randn(value.shape, generator=generator) for name, value in start.items()}


def outputs(state: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.func.functional_call(network(), state, (INPUTS,)).detach()


def errors(model: nn.Module) -> dict[str, list[float]]:
    found = model(INPUTS)
    return {
        name: (-(found - outputs(end(seed))).square().flatten()).tolist()
        for seed, name in ((1, "near_a"), (2, "near_b"))
    }


def evaluator(checkpoint_path: Path) -> ModelEvaluator:
    return ModelEvaluator(network(), errors)


@pytest.fixture
def models(tmp_path):
    for seed, name in ((1, "a"), (2, "b")):
        (tmp_path / name).mkdir()
        save_file(end(seed), tmp_path / name / "model.safetensors", metadata={"format": "pt"})
    return [str(tmp_path / "a"), str(tmp_path / "b")]


def soups(*args: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, [str(arg) for arg in args])
    assert result.exit_code == code, result.output + repr(result.exception)
    return result.stdout if code == 0 else result.stderr


def sweep(models, out, *args: object, code: int = 0) -> str:
    return soups("sweep", *models, "--evaluator", f"{ME}:evaluator", "-o", out, *args, code=code)


def test_a_sweep_of_a_recipe_keeps_its_rules_and_policies(models, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rule = r"{tensors: 2\.bias, weights: {a: 1, b: 0}}"
    text = f"models: {{a: a, b: b}}\ncoefficients: [{rule}]\npolicies: {{dtype: F64}}\n"
    (tmp_path / "recipe.yaml").write_text(text)
    args = ("--evaluator", f"{ME}:evaluator", "--points", 3, "-o", tmp_path / "s")
    soups("sweep", "recipe.yaml", *args)
    last = next(r for r in read_results(tmp_path / "s") if r.coefficients == {"a": 0.0, "b": 1.0})
    model = network()
    model.load_state_dict({name: end(1 if name == "2.bias" else 2)[name] for name in end(1)})
    with torch.no_grad():
        assert dict(last.scores) == errors(model)
    assert "another sweep" in sweep(models, tmp_path / "s", code=2)
    assert "takes no flags" in soups("sweep", "recipe.yaml", "--integers", "first", *args, code=2)
    (tmp_path / "weighed.yaml").write_text(text + "weights: {a: 0.5, b: 0.5}\n")
    assert "weights are what a sweep varies" in soups("sweep", "weighed.yaml", *args, code=2)
    assert "extrapolate: true" in soups("sweep", "recipe.yaml", "--extrapolate", *args, code=2)

    words = ("--preference", "near_b=1", "--refine", 1, "--recipe", "chosen.yaml", "--json")
    picked = json.loads(soups("pick", tmp_path / "s", *words))
    assert picked["merge"] is None
    soups("merge", "chosen.yaml", "-o", tmp_path / "soup")
    found = load_file(tmp_path / "soup" / "model.safetensors")
    assert found["2.bias"].equal(end(1)["2.bias"].double())
    chosen = picked["choice"]["coefficients"]
    expected = chosen["a"] * end(1)["0.weight"].double() + chosen["b"] * end(2)["0.weight"].double()
    torch.testing.assert_close(found["0.weight"], expected, rtol=1e-9, atol=1e-12)


def test_a_profile_has_coefficients_at_several_depths(models, tmp_path, monkeypatch):
    out = tmp_path / "s"
    pattern = r"(\d)\..*"
    point = "0.5,0.5;1,0;0,1"  # the first layer of a, the last of b
    error = sweep(models, out, "--profile", f"2:{pattern}", "--weights", point, "--weights", "1,0;1,0;1,0", "--json")
    assert len(json.loads(error)["points"]) == 2
    first = read_results(out)[0]
    assert list(first.modules) == [f"{pattern} at depth 0/1", f"{pattern} at depth 1/1"]
    model = network()
    model.load_state_dict({name: end(1 if name.startswith("0") else 2)[name] for name in end(1)})
    with torch.no_grad():
        assert dict(first.scores) == errors(model)
    monkeypatch.chdir(tmp_path)
    soups("pick", out, "--preference", "near_b=1", "--recipe", "chosen.yaml")
    soups("merge", "chosen.yaml", "-o", tmp_path / "soup")
    assert "not COUNT:PATTERN" in sweep(models, out, "--profile", pattern, code=2)


def test_random_points_of_modules_are_as_many_as_asked_for(models, tmp_path):
    text = sweep(models, tmp_path / "s", "--module", r"2\..*", "--random", 3, "--json")
    assert len(json.loads(text)["points"]) == 2 + 3
    assert all(r.modules[r"2\..*"] != r.coefficients for r in read_results(tmp_path / "s")[2:])


def test_policies_that_leave_tensors_out_need_files_to_score(models, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_file(end(2) | {"more": torch.ones(2)}, tmp_path / "b" / "model.safetensors")
    (tmp_path / "recipe.yaml").write_text("models: {a: a, b: b}\npolicies: {keys: common}\n")
    args = ("--evaluator", f"{ME}:evaluator", "--points", 3, "-o", tmp_path / "live")
    assert "has other tensors than the live model" in soups("sweep", "recipe.yaml", *args, code=2)
    (tmp_path / "recipe.yaml").write_text("models: {a: a, b: b}\npolicies: {batch_norm: recompute, recompute: x:y}\n")
    assert "no batch-norm statistics" in soups("sweep", "recipe.yaml", *args, code=2)


def test_a_sweep_whose_first_point_is_refused_leaves_nothing(models, tmp_path):
    wrong = ("--evaluator", f"{ME}:nowhere", "--points", 3, "-o", tmp_path / "s")
    assert "has no function 'nowhere'" in soups("sweep", *models, *wrong, code=2)
    assert not (tmp_path / "s").exists()
    sweep(models, tmp_path / "s", "--points", 3)
    assert "another sweep" in soups("sweep", *models, *wrong, code=2)
    assert len(read_results(tmp_path / "s")) == 3


def test_processes_share_a_sweep(models, tmp_path):
    from soups.methods import get_method
    from soups.points import segment
    from soups.shares import Share
    from soups.state import open_checkpoint
    from soups.sweep import Sweep, run_sweep

    swept = Sweep([open_checkpoint(path) for path in models], get_method("linear"), f"{ME}:evaluator")
    alone = run_sweep(swept, segment(5), tmp_path / "alone")
    first = run_sweep(swept, segment(5), tmp_path / "shared", share=Share(0, 2))
    with (tmp_path / "shared" / "results.jsonl").open("a") as file:
        file.write('{"key": "to')  # killed while writing
    both = run_sweep(swept, segment(5), tmp_path / "shared", share=Share(1, 2))
    assert [r.coefficients["b"] for r in first] == [0.0, 0.5, 1.0]
    assert [(r.key, r.scores) for r in both] == [(r.key, r.scores) for r in alone]
    assert len(read_results(tmp_path / "shared")) == 5


def test_a_launched_process_scores_its_share_while_another_waits_for_the_lock(models, tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert sweep(models, tmp_path / "s", "--points", 5, "--json") == ""  # the first process shows the results
    assert [result.coefficients["b"] for result in read_results(tmp_path / "s")] == [0.25, 0.75]
    monkeypatch.setenv("RANK", "0")
    assert len(json.loads(sweep(models, tmp_path / "s", "--points", 5, "--json"))["points"]) == 5


def test_jobs_of_a_cluster_need_submitit_and_share_the_points(models, tmp_path, monkeypatch):
    assert "jobs of what?" in sweep(models, tmp_path / "s", "--jobs", 2, code=2)
    if importlib.util.find_spec("submitit") is None:
        assert "submitit is not installed" in sweep(models, tmp_path / "s", "--cluster", "local", code=2)
        return
    # The jobs import this file by its name.
    monkeypatch.setenv("PYTHONPATH", f"{Path(__file__).parent}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    found = json.loads(sweep(models, tmp_path / "s", "--points", 3, "--cluster", "local", "--jobs", 2, "--json"))
    assert [point["coefficients"]["b"] for point in found["points"]] == [0.0, 0.5, 1.0]
    assert "submitit: " in sweep(models, tmp_path / "s", "--cluster", "local", "--cluster-arg", "gpu=1", code=2)


@pytest.mark.parametrize("by", ["tpe", "cma"])
def test_a_search_scores_points_of_its_own(models, tmp_path, by):
    sweep(models, tmp_path / "s", "--points", 3)
    words = ("pick", tmp_path / "s", "--preference", "near_a=1,near_b=1", "--refine", 4, "--by", by)
    package = {"tpe": "optuna", "cma": "cma"}[by]
    if importlib.util.find_spec(package) is None:
        assert f"{package} is not installed" in soups(*words, code=2)
        return
    soups(*words)
    points = [r.coefficients for r in read_results(tmp_path / "s")]
    assert len(points) == 7
    assert all(sum(point.values()) == pytest.approx(1, abs=1e-9) and min(point.values()) >= 0 for point in points)
    assert "unknown search" in soups(*words[:-1], "grid", code=2)


def three(model: nn.Module) -> dict[str, list[float]]:
    found = model(INPUTS)
    return errors(model) | {"small": (-found.square().flatten()).tolist()}


def evaluator_of_three(checkpoint_path: Path) -> ModelEvaluator:
    return ModelEvaluator(network(), three)


def test_a_front_of_three_metrics(models, tmp_path):
    out = tmp_path / "s"
    words = ("--points", 5, "--evaluator", f"{ME}:evaluator_of_three")
    soups("sweep", *models, "-o", out, *words)
    soups("front", out, "--also", "small", "--resamples", 20, "--compare", f"again={out}")
    data = json.loads((out / "front.json").read_text())
    assert [data["x"], data["y"], *data["more"]] == ["near_a", "near_b", "small"]
    assert len(data["reference"]) == 3
    points = np.array([[p["metrics"][m]["value"] for m in ("near_a", "near_b", "small")] for p in data["points"]])
    assert data["hypervolume"]["value"] == pytest.approx(pareto.hypervolume(points, np.array(data["reference"])))
    assert [p["nondominated"] for p in data["points"]] == pareto.nondominated(points).tolist()
    assert list(data["margins"]) == ["near_a", "near_b", "small"]
    assert data["straight_line"]["num_below"] is None
    assert data["comparison"]["coverage"]["again"]["num_uncovered"] == 0
    assert (out / "front.png").stat().st_size > 10_000
    assert "given twice" in soups("front", out, "--also", "near_a", code=2)
    assert "2 numbers for 3 metrics" in soups("front", out, "--also", "small", "--reference", "0,0", code=2)
