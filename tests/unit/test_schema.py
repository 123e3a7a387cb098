"""The options of a run: what is required, what is refused, and that every configuration of the repository fits."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from tests import tiny
from unival.config import dump_config, load_config
from unival.errors import UserError
from unival.schema import EvaluationSuite, GroupConfig, OptimConfig, RunConfig, SourceConfig, StageConfig
from unival.tasks.base import get_task
from unival.yaml12 import parse_yaml, write_yaml

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
# Studies, merges and the trainers of soups have schemas and tests of their own; _names are only extended.
OF_SOUPS = ("soups/train/locomotion.yaml", "soups/train/summary.yaml")
FILES = sorted(
    path
    for path in CONFIGS.rglob("*.yaml")
    if path.parent.name not in {"soups", "merge"}
    and path.relative_to(CONFIGS).as_posix() not in OF_SOUPS
    and not path.name.startswith("_")
)
TASK = {"task": "caption", "source": {"world": "train"}}
STAGE = {"name": "a", "steps": 1, "groups": [{"rows": 1, "tasks": [TASK]}]}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(CONFIGS).as_posix())
def test_every_configuration_fits_and_names_things_that_exist(path: Path, tmp_path: Path) -> None:
    settings = parse_yaml(path.read_text(encoding="utf-8"))
    if path.parent.name == "model":  # what runs extend: a model and its processor, no stages
        shutil.copytree(path.parent, tmp_path / "model")
        run = {"extends": f"model/{path.name}", "out": "runs/any", "stages": [STAGE]}
        assert load_config(write(tmp_path, run), [], RunConfig).model
        return
    config = load_config(path, [], RunConfig if "out" in settings else EvaluationSuite)
    entries: list[Any] = list(config.evaluations)
    if isinstance(config, RunConfig):
        entries += [entry for stage in config.stages for group in stage.groups for entry in group.tasks]
    for entry in entries:
        get_task(entry.task, entry.task_args)


def write(tmp_path: Path, settings: dict[str, Any]) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(write_yaml(settings), encoding="utf-8")
    return path


def test_a_configuration_survives_writing_and_reading(tmp_path: Path) -> None:
    config = RunConfig.model_validate(tiny.run_settings(tmp_path / "run"))
    dump_config(config, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml", [], RunConfig) == config


def test_a_source_is_the_world_or_a_manifest() -> None:
    assert SourceConfig(world="test").manifest is None
    for both in ({}, {"world": "test", "manifest": "rows.jsonl"}):
        with pytest.raises(ValidationError, match="exactly one of `world`, `manifest`"):
            SourceConfig.model_validate(both)
    with pytest.raises(ValidationError, match="world"):
        SourceConfig.model_validate({"world": "tset"})


@pytest.mark.parametrize(
    ("cls", "fields"),
    [
        (GroupConfig, {"rows": 0, "tasks": [TASK]}),
        (GroupConfig, {"rows": 1, "tasks": []}),
        (GroupConfig, {"rows": 1, "tasks": [TASK | {"share": 0}]}),
        (GroupConfig, {"rows": 1, "tasks": [TASK | {"every": 0}]}),
        (GroupConfig, {"rows": 1, "tasks": [TASK | {"shares": 2}]}),
        (StageConfig, STAGE | {"steps": 0}),
        (StageConfig, STAGE | {"groups": []}),
        (OptimConfig, {"lr": 0.0}),
        (OptimConfig, {"warmup_ratio": 1.0}),
        (OptimConfig, {"schedule": "linear"}),
        (OptimConfig, {"clip_norm": -1.0}),
        (RunConfig, {"out": "x", "stages": []}),
        (RunConfig, {"out": "x", "stages": [STAGE], "keep_checkpoints": 1}),
        (RunConfig, {"out": "x", "stages": [STAGE], "precision": "fp8"}),
        (RunConfig, {"stages": [STAGE]}),
        (EvaluationSuite, {"evaluations": []}),
    ],
)
def test_impossible_values_are_refused(cls: type, fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        cls.model_validate(fields)


def test_a_misspelt_key_is_reported_with_the_right_one(tmp_path: Path) -> None:
    path = write(tmp_path, {"out": "x", "stages": [STAGE | {"stepps": 3}]})
    with pytest.raises(UserError, match=r"stepps.*steps"):
        load_config(path, [], RunConfig)


def test_an_override_reaches_into_lists(tmp_path: Path) -> None:
    path = write(tmp_path, {"out": "x", "stages": [STAGE]})
    config = load_config(path, ["stages.0.optim.lr=0.5", "stages.0.groups.0.tasks.0.share=3"], RunConfig)
    assert config.stages[0].optim.lr == 0.5
    assert config.stages[0].groups[0].tasks[0].share == 3
    assert config.seed == 1


def test_a_configuration_cannot_be_changed() -> None:
    config = OptimConfig()
    with pytest.raises(ValidationError, match="frozen"):
        config.lr = 1.0  # type: ignore[misc]
