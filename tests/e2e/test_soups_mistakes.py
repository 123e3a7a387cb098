"""What would give a wrong or an empty result without a word is refused, and nothing is lost or half-written."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
import torch
import typer
from safetensors.torch import save_file
from torch import nn
from typer.testing import CliRunner

from soups import merge as merge_module
from soups.cli import app
from soups.commands.output import reports_errors
from soups.evaluators.function import ModelEvaluator
from soups.search.learn import Objective

ME = __name__


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(2, 1)


def scores(model: nn.Module) -> dict[str, list[float]]:
    found = model(torch.eye(2)).flatten()
    return {"high": found.tolist(), "low": (-found).tolist()}


def evaluator(checkpoint_path: Path) -> ModelEvaluator:
    return ModelEvaluator(network(), scores)


class Copies(ModelEvaluator):
    """Gives copies of its tensors, as `{k: v.clone() ...}` does."""

    def state(self) -> dict[str, torch.Tensor]:
        return {name: tensor.clone() for name, tensor in super().state().items()}


def copies(checkpoint_path: Path) -> ModelEvaluator:
    return Copies(network(), scores)


def objective(checkpoint_path: Path) -> Objective:
    pytest.fail("asked for before the output was checked")


@pytest.fixture
def models(tmp_path: Path) -> list[str]:
    for seed, name in enumerate("ab"):
        generator = torch.Generator().manual_seed(seed)
        tensors = {"weight": torch.randn(1, 2, generator=generator), "bias": torch.randn(1, generator=generator)}
        save_file(tensors, tmp_path / f"{name}.safetensors", metadata={"format": "pt"})
    return [str(tmp_path / "a.safetensors"), str(tmp_path / "b.safetensors")]


def refused(*args: object) -> str:
    result = CliRunner().invoke(app, [str(arg) for arg in args])
    assert result.exit_code == 2, result.output + repr(result.exception)
    assert "Traceback" not in result.stderr
    return result.stderr


def swept(models: list[str], out: Path) -> None:
    args = ["sweep", *models, "--evaluator", f"{ME}:evaluator", "--points", "3", "-o", str(out)]
    result = CliRunner().invoke(app, args)
    assert result.exit_code == 0, result.output


def test_an_evaluator_that_gives_copies_scores_nothing(models: list[str], tmp_path: Path) -> None:
    said = refused("sweep", *models, "--evaluator", f"{ME}:copies", "--points", 3, "-o", tmp_path / "out")
    assert "of state() is another tensor now than before" in said
    assert not (tmp_path / "out" / "results.jsonl").exists() or not (tmp_path / "out" / "results.jsonl").read_text()


def test_two_files_with_the_same_weights_are_no_sweep(models: list[str], tmp_path: Path) -> None:
    (tmp_path / "c.safetensors").write_bytes(Path(models[0]).read_bytes())
    args = (*models, tmp_path / "c.safetensors", "--evaluator", f"{ME}:evaluator", "--points", 3)
    assert "'a' and 'c' are the same weights" in refused("sweep", *args, "-o", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_integers_that_differ_are_found_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, count in (("a", 1), ("b", 2)):
        save_file({"w": torch.ones(8), "z.count": torch.tensor(count)}, tmp_path / f"{name}.safetensors")
    monkeypatch.setattr(merge_module, "new_folder", lambda path: pytest.fail("a folder was begun"))
    said = refused("merge", tmp_path / "a.safetensors", tmp_path / "b.safetensors", "-o", tmp_path / "out")
    assert "integer tensor 'z.count' differs" in said


@pytest.mark.parametrize("command", ["sweep", "plot", "front", "diff", "learn", "pick"])
def test_an_output_that_cannot_be_is_one_message(models: list[str], tmp_path: Path, command: str) -> None:
    swept(models, tmp_path / "s")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    calls = {
        "sweep": ["sweep", *models, "--evaluator", f"{ME}:evaluator", "--points", 3, "-o", tmp_path / "file"],
        "plot": ["plot", "front", tmp_path / "s", "-o", tmp_path / "file"],
        "front": ["front", tmp_path / "s", "-o", tmp_path / "file"],
        "diff": ["diff", *models, "-o", tmp_path / "folder"],
        "learn": ["learn", *models, "--loss", f"{ME}:objective", "-o", tmp_path / "folder"],
        "pick": ["pick", tmp_path / "s", "--preference", "high=1,low=1", "--recipe", tmp_path / "folder"],
    }
    said = refused(*calls[command])
    assert "file" in said or "folder" in said
    assert (tmp_path / "file").read_text() == "mine"
    assert list((tmp_path / "folder").iterdir()) == []


def test_the_scores_of_other_models_are_no_path(models: list[str], tmp_path: Path) -> None:
    swept(models, tmp_path / "s")
    save_file({"weight": torch.ones(1, 2), "bias": torch.ones(1)}, tmp_path / "other.safetensors")
    said = refused("diff", models[0], tmp_path / "other.safetensors", "--results", tmp_path / "s")
    assert "a sweep of other models: 'other' is none of them" in said
    result = CliRunner().invoke(app, ["diff", *models, "--results", str(tmp_path / "s"), "--json"])
    assert json.loads(result.stdout)["barriers"]


def test_a_full_disk_is_no_defect_though_an_open_file_has_no_name(capsys):
    def write(number: int) -> None:
        raise OSError(number, os.strerror(number))

    with pytest.raises(typer.Exit):
        reports_errors(write)(errno.ENOSPC)
    assert capsys.readouterr().err.splitlines()[0] == "error: No space left on device"
    with pytest.raises(OSError, match="Bad file descriptor"):
        reports_errors(write)(errno.EBADF)
