"""Models that fit by their tensors and not otherwise: what is refused, and what is said."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import nn
from typer.testing import CliRunner

from soups.agreement import disagreements
from soups.cli import app
from soups.evaluators.function import ModelEvaluator
from soups.search.learn import Objective
from soups.state import open_checkpoint

ME = __name__
INPUTS = torch.linspace(-1, 1, 8)[:, None]


class Tied(nn.Module):
    """A table that is also the output layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.table(ids))


def moving_scores(model: nn.Module) -> dict[str, list[float]]:
    model.to(torch.float64)
    return {"high": model(torch.eye(2).double()).flatten().tolist()}


def moving(checkpoint_path: Path) -> ModelEvaluator:
    torch.manual_seed(0)
    return ModelEvaluator(nn.Linear(2, 1), moving_scores)


def unsure(checkpoint_path: Path) -> ModelEvaluator:
    return ModelEvaluator(nn.Linear(2, 1), lambda model: {"high": [math.nan, 1.0]})


def cross_entropy(checkpoint_path: Path) -> Objective:
    print("the objective speaks")
    ids = torch.arange(5)
    return Objective(Tied(), [ids], lambda call, batch: nn.functional.cross_entropy(call(batch), (batch + 1) % 5))


def save(folder: Path, tensors: Mapping[str, torch.Tensor], **files: Any) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(dict(tensors), folder / "model.safetensors", metadata={"format": "pt"})
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return str(folder)


def linear(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {"weight": torch.randn(1, 2, generator=generator), "bias": torch.randn(1, generator=generator)}


def soups(*words: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == code, result.output + repr(result.exception)
    return result.stdout if code == 0 else " ".join(result.stderr.split())


def test_other_settings_and_tokenizers_are_said(tmp_path: Path) -> None:
    config = {
        "num_attention_heads": 2,
        "hidden_act": "gelu",
        "vocab_size": 3,
        "_name_or_path": "a",
        "rope": {"theta": 1},
    }
    words = {"model": {"vocab": {"a": 0, "b": 1}}}
    a = save(tmp_path / "a", linear(1), config=config, tokenizer=words)
    other = {"num_attention_heads": 4, "_name_or_path": "b", "rope": {"theta": 2}, "attention_dropout": 0.1}
    b = save(tmp_path / "b", linear(2), config=config | other, tokenizer={"model": {"vocab": {"b": 0, "a": 1}}})
    report = json.loads(soups("merge", a, b, "-o", tmp_path / "soup", "--json"))
    assert report["disagreements"] == [
        "the configurations of b and a differ in num_attention_heads, rope.theta",
        "the tokenizers of b and a have other entries under the same ids",
    ]
    assert "warning: the tokenizers" in soups("merge", a, b, "-o", tmp_path / "text")
    longer = {"model": {"vocab": {"a": 0, "b": 1, "c": 2}}}  # words were added: those that both have are the same
    c = save(tmp_path / "c", linear(3), config=config | {"vocab_size": 4, "use_cache": False}, tokenizer=longer)
    assert disagreements([open_checkpoint(Path(a)), open_checkpoint(Path(c))]) == []


def test_an_evaluator_that_moves_its_model_is_refused_at_the_first_point(tmp_path: Path) -> None:
    models = [save(tmp_path / name, linear(seed)) for seed, name in enumerate("ab")]
    said = soups("sweep", *models, "--evaluator", f"{ME}:moving", "--points", 3, "-o", tmp_path / "out", code=2)
    assert "of state() is another tensor now than before" in said
    assert "do not move or cast it" in said


@pytest.mark.parametrize("policy", ["owners", "common"])
def test_models_without_a_common_name_are_refused_with_their_prefix(tmp_path: Path, policy: str) -> None:
    a = save(tmp_path / "a", linear(1))
    b = save(tmp_path / "b", {f"model.{name}": tensor for name, tensor in linear(2).items()})
    recipe = {"models": {"a": a, "b": b}, "policies": {"keys": policy}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    said = soups("merge", tmp_path / "recipe.yaml", "-o", tmp_path / "soup", code=2)
    assert "'a' and 'b' have no tensor in common" in said
    assert "begin with 'model.'" in said


def test_names_of_wrappers_are_cut_in_any_order_and_format(tmp_path: Path) -> None:
    plain = linear(1)
    a = save(tmp_path / "a", {f"_orig_mod.module.{name}": tensor for name, tensor in plain.items()})
    torch.save({f"module._orig_mod.{name}": tensor for name, tensor in linear(2).items()}, tmp_path / "b.pt")
    soups("merge", a, tmp_path / "b.pt", "-o", tmp_path / "soup")
    merged = load_file(tmp_path / "soup/model.safetensors")
    assert merged.keys() == plain.keys()
    torch.testing.assert_close(merged["weight"], (plain["weight"] + linear(2)["weight"]) / 2)


@pytest.mark.parametrize(
    ("scaled", "scale", "dtype"),
    [
        ("w.weight", "w.SCB", torch.int8),
        ("w.weight", "w.weight.absmax", torch.uint8),
        ("w.qweight", "w.scales", torch.int32),
        ("w.weight", "w.scale", torch.float8_e4m3fn),
    ],
)
def test_numbers_that_have_a_scale_are_refused(tmp_path: Path, scaled: str, scale: str, dtype: torch.dtype) -> None:
    tensors = {scaled: torch.ones(2, 2).to(dtype), scale: torch.ones(2)}
    models = [save(tmp_path / name, tensors) for name in "ab"]
    said = soups("merge", *models, "--integers", "first", "-o", tmp_path / "soup", code=2)
    assert f"to be multiplied by '{scale}'" in said
    indices = {"position_ids": torch.arange(3), "scale": torch.ones(1)}
    models = [save(tmp_path / f"plain_{name}", indices) for name in "ab"]
    soups("merge", *models, "-o", tmp_path / "soup")


@pytest.mark.parametrize(("policy", "expected"), [("auto", "interpolated"), ("merge", "negative")])
def test_variances_are_not_dropped_and_rescaled_unless_asked_for(tmp_path: Path, policy: str, expected: str) -> None:
    def norm(variance: float) -> dict[str, torch.Tensor]:
        return {
            "n.running_var": torch.full((64,), variance),
            "n.running_mean": torch.full((64,), variance),
            "n.num_batches_tracked": torch.tensor(3),
            "n.weight": torch.full((64,), variance),
        }

    base = save(tmp_path / "base", norm(1.0))
    models = {name: save(tmp_path / name, norm(value)) for name, value in (("a", 0.1), ("b", 0.3))}
    recipe: dict[str, Any] = {"models": models, "base": base, "method": "dare", "params": {"density": 0.3}}
    recipe["policies"] = {"batch_norm": policy}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    soups("merge", tmp_path / "recipe.yaml", "-o", tmp_path / "soup")
    merged = load_file(tmp_path / "soup/model.safetensors")
    if expected == "interpolated":
        np.testing.assert_allclose(merged["n.running_var"], 0.2, rtol=1e-6)
    else:
        assert merged["n.running_var"].min() < 0
    assert merged["n.weight"].min() < 0


def test_statistics_of_another_model_are_refused(tmp_path: Path) -> None:
    models = {name: str(tmp_path / name) for name in "ab"}
    for name in "ab":
        save(tmp_path / name, {"table.weight": torch.randn(5, 3, generator=torch.Generator().manual_seed(ord(name)))})
        soups("stats", models[name], "--kind", "fisher", "--loss", f"{ME}:cross_entropy", "-o", tmp_path / f"f{name}")
    right = {name: {"path": models[name], "extra": str(tmp_path / f"f{name}")} for name in "ab"}
    wrong = {name: entry | {"extra": right["ba"["ab".index(name)]]["extra"]} for name, entry in right.items()}
    for number, given in enumerate((right, wrong)):
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({"models": given, "method": "fisher"}))
        said = soups("merge", tmp_path / "recipe.yaml", "-o", tmp_path / f"soup{number}", code=2 * number)
    assert "the statistics of other weights than 'a'" in said


def test_a_tied_model_is_measured_and_learned_and_what_it_prints_is_no_json(tmp_path: Path) -> None:
    table = {name: torch.randn(5, 3, generator=torch.Generator().manual_seed(seed)) for seed, name in enumerate("ab")}
    stored = [save(tmp_path / name, {"table.weight": table[name]}) for name in "ab"]  # as save_pretrained leaves it
    for kind in ("fisher", "gram"):
        words = ["stats", stored[0], "--kind", kind, "--loss", f"{ME}:cross_entropy", "-o", tmp_path / kind, "--json"]
        assert json.loads(soups(*words))["num_tensors"] == 1
    for name in "ab":
        torch.save({"table.weight": table[name], "head.weight": table[name]}, tmp_path / f"{name}.pt")
    models = [tmp_path / "a.pt", tmp_path / "b.pt"]
    words = ["learn", *models, "--loss", f"{ME}:cross_entropy", "-o", tmp_path / "l.json", "--epochs", 2, "--json"]
    losses = json.loads(soups(*words))["losses"]
    half = Tied()
    with torch.no_grad():
        half.table.weight.copy_((table["a"] + table["b"]) / 2)
        expected = nn.functional.cross_entropy(half(torch.arange(5)), (torch.arange(5) + 1) % 5)
    assert losses["equal"] == pytest.approx(float(expected), rel=1e-5)
    for lr in ("-1", "nan"):
        assert f"the learning rate is {lr}" in soups(*words, "--lr", lr, code=2)
    for per in ("module", "tensor"):  # the output layer has the coefficients of the embedding that it is
        found = json.loads(soups(*words, "--lr", 1, "--per", per, "--save", tmp_path / per))
        ((_, weights),) = found["coefficients"].items()
        expected = weights["a"] * table["a"].double() + weights["b"] * table["b"].double()
        merged = load_file(tmp_path / per / "model.safetensors")
        assert weights["a"] != weights["b"]
        for name in merged:
            torch.testing.assert_close(merged[name], expected.float())


@pytest.mark.parametrize(
    "text",
    [
        "merge_method: linear",
        "merge_method: linear\nmodels: []",
        "merge_method: linear\nmodels: 5",
        "merge_method: linear\nmodels: [{model: a}]\nparameters: 3",
        "merge_method: [linear]\nmodels: [{model: a}]",
        "merge_method: linear\nmodels: [{model: a}]\ndtype: [x]",
        "merge_method: linear\nslices: [{sources: 3}]",
        "merge_method: linear\nmodels: [{model: a, parameters: 3}]",
    ],
)
def test_malformed_recipes_of_mergekit_are_one_message(tmp_path: Path, text: str) -> None:
    (tmp_path / "recipe.yaml").write_text(text)
    assert soups("merge", tmp_path / "recipe.yaml", "-o", tmp_path / "soup", code=2).startswith("error: ")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["merge", "a", "b", "-o", "soup.pt"], "this is the name of a file.*give -o soup"),
        (["merge", "a", "b", "--weights", "1,1", "-o", "soup"], "params: {extrapolate: true} in a recipe"),
        (["merge", "named", "b", "-o", "soup"], "give one of its adapters: named/one"),
        (["merge", "recipe.yaml", "-o", "soup"], "models.b: a path, or a mapping with a path"),
        (["sweep", "a", "b", "--range", "0,1", "--weights", "1,0"], "--range and --weights exclude each other"),
        (["sweep", "a", "b", "--range", "0"], "'0' is no range"),
        (["sweep", "a", "b", "--module", "weight", "--weights", "1,0"], "2 weights, 4 are needed.*after a semicolon"),
        (["pick", "out", "--preference", "high=inf"], "not finite: 'high=inf'"),
        (["pick", "out", "--preference", "high=1,high=5"], "'high' is given twice"),
    ],
)
def test_mistakes_name_what_helps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    save(Path("a"), linear(1))
    save(Path("b"), linear(2))
    Path("named/one").mkdir(parents=True)
    Path("named/one/adapter_config.json").write_text("{}")
    Path("recipe.yaml").write_text("models: {a: a, b: 5}\n")
    if words[0] == "sweep":
        words += ["--evaluator", f"{ME}:unsure", "-o", "out"]
    assert re.search(message, soups(*words, code=2)), soups(*words, code=2)


def test_jobs_that_fail_are_one_message(tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    models = [save(tmp_path / name, linear(seed)) for seed, name in enumerate("ab")]
    words = ["sweep", *models, "--evaluator", f"{ME}:unsure", "--points", 2, "-o", tmp_path / "out"]
    said = soups(*words, "--cluster", "local", code=2)
    assert "job 0 of 1" in said
    assert "the same command goes on" in said


def test_module_coefficients_are_shown(tmp_path: Path) -> None:
    torch.manual_seed(0)
    models = [save(tmp_path / name, linear(seed)) for seed, name in enumerate("ab")]
    words = ["sweep", *models, "--evaluator", "tests.e2e.test_soups_mistakes:evaluator", "--module", "bias"]
    text = soups(*words, "--points", 2, "-o", tmp_path / "out")
    assert "a 1 b 0 a @ bias 0 b @ bias 1" in " ".join(text.split())
    points = json.loads(soups(*words, "--points", 2, "-o", tmp_path / "out", "--json"))["points"]
    assert [point["modules"]["bias"]["a"] for point in points] == [1, 0, 1, 0]
