"""A merge method in a file of one's own: merges, sweeps, and what is refused."""

from __future__ import annotations

import json
import pickle
import re
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from soups.cli import app
from soups.methods import get_method
from soups.results import read_results

METHOD = '''"""Pick every entry from the model with the larger one."""
from soups.methods._weights import one_hot

BASE = "none"
ELEMENTWISE = True


def check(weights, **params):
    pass


def merge(models, weights, base=None, *, sign=1.0):
    endpoint = one_hot(weights)
    if endpoint is not None:
        return models[endpoint]
    return sign * (sign * models[0]).maximum(sign * models[1])
'''
EVALUATOR = """
import torch
from soups.evaluators.function import ModelEvaluator

def evaluator(checkpoint_path):
    model = torch.nn.Linear(3, 2, bias=False)
    return ModelEvaluator(model, lambda m: {"sum": m.weight.sum(1).tolist(), "first": [m.weight[0, 0].item()] * 2})
"""
A, B = torch.tensor([[1.0, -2, 3], [0, 5, 6]]), torch.tensor([[0.0, 2, 4], [1, 1, 9]])


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "path", [*sys.path])  # where the folder is added
    (tmp_path / "larger.py").write_text(METHOD)
    (tmp_path / f"scores_{tmp_path.name}.py").write_text(EVALUATOR)
    for name, weight in (("a", A), ("b", B)):
        (tmp_path / name).mkdir()
        save_file({"weight": weight}, tmp_path / name / "model.safetensors", metadata={"format": "pt"})
    return tmp_path


def soups(*words: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, list(words), catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result.stdout if code == 0 else " ".join(result.output.split())


def sweep(folder: Path, *words: str, code: int = 0) -> str:
    evaluator = f"scores_{folder.name}:evaluator"
    return soups("sweep", "a", "b", "--points", "3", "--evaluator", evaluator, "-o", "out", *words, code=code)


def test_a_file_merges_with_its_parameters_and_is_recorded_by_its_digest(folder: Path) -> None:
    soups("merge", "a", "b", "--method", "larger.py", "--param", "sign=-1", "-o", "soup")
    assert torch.equal(load_file(folder / "soup/model.safetensors")["weight"], torch.minimum(A, B))
    card = (folder / "soup/README.md").read_text()
    assert f"larger.py {get_method('larger.py').file_sha256}" in card
    (folder / "recipe.yaml").write_text("method: larger.py\nmodels: {a: {path: a}, b: {path: b}}\n")
    soups("merge", "recipe.yaml", "-o", "other")
    assert torch.equal(load_file(folder / "other/model.safetensors")["weight"], torch.maximum(A, B))


def test_a_sweep_is_extended_by_the_same_content_only_and_read_without_the_file(folder: Path) -> None:
    sweep(folder, "--method", "larger.py")
    middle = read_results(folder / "out")[1]
    assert middle.scores["sum"] == [torch.maximum(A, B)[0].sum(), torch.maximum(A, B)[1].sum()]
    (folder / "larger.py").write_text(METHOD + "# changed\n")
    refused = sweep(folder, "--method", "larger.py", code=2)
    assert "another sweep, which differs in: method_file" in refused
    (folder / "larger.py").unlink()
    assert [result.is_exact for result in read_results(folder / "out")] == [True] * 3
    front = json.loads(soups("front", "out", "--json"))
    assert len(front["points"]) == 3


def test_a_changed_file_is_another_method_in_the_same_process_and_one_crosses_to_another(folder: Path) -> None:
    before = get_method("larger.py")
    assert pickle.loads(pickle.dumps(before)) == before
    (folder / "larger.py").write_text(METHOD.replace("sign=1.0", "sign=2.0"))
    after = get_method("larger.py")
    assert (before.params, after.params) == ({"sign": 1.0}, {"sign": 2.0})
    assert before.identity != after.identity


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("largre.py", METHOD, r"there is no such file.*did you mean 'larger.py'"),
        ("larger", METHOD, r"unknown method 'larger'.*or a file of your own: larger.py"),
        ("larger.py", "BASE = 'none'", "defines no ELEMENTWISE"),
        ("larger.py", METHOD.replace('"none"', '"some"'), "BASE of method 'larger.py' is 'some'.*required"),
        ("larger.py", "import no_such_module", "cannot be imported: No module named 'no_such_module'"),
    ],
)
def test_what_is_no_method_is_explained(folder: Path, name: str, content: str, message: str) -> None:
    (folder / "larger.py").write_text(content)
    assert re.search(message, soups("merge", "a", "b", "--method", name, "-o", "soup", code=2))
    assert not (folder / "soup").exists()
