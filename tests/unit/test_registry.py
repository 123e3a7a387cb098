"""Tasks and objectives outside the package: the documented one works, and what is none is explained."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import tiny
from unival.errors import UserError
from unival.objectives.base import get_objective
from unival.registry import member
from unival.schema import RunConfig
from unival.tasks.base import get_task
from unival.train import train
from unival.training.check import check_run

DOCS = Path(__file__).resolve().parents[2] / "docs"
RECORD: dict[str, Any] = {"uid": "7", "image": "a.jpg", "objects": ["red apple", "cat"]}


def examples(page: str, title: str) -> list[str]:
    section = (DOCS / page).read_text(encoding="utf-8").split(f"\n## {title}\n")[1]
    return re.findall(r"```(?:python|yaml)\n(.*?)```", section, re.S)


@pytest.fixture
def blocks() -> list[str]:
    return examples("tasks.md", "A new task")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])  # where the folder is added
    return tmp_path


def test_the_task_of_the_page_asks_parses_and_scores(folder: Path, blocks: list[str]) -> None:
    (folder / "things.py").write_text(blocks[0])
    task = get_task("things.py", {"prompt": "what is here?"})
    example = task.example(RECORD)
    assert (example.prompt, example.target, example.media_id) == ("what is here?", "red apple and cat", "a.jpg")
    unlabelled = {"uid": "8", "image": "b.jpg"}
    assert (task.example(unlabelled).target, task.is_labelled(unlabelled), task.is_labelled(RECORD)) == (
        "",
        False,
        True,
    )
    assert task.parse("cat and dog", RECORD) == ["cat", "dog"]
    assert task.score([["cat", "dog"], ["cat", "red apple"]], [RECORD, RECORD])["recall"].tolist() == [0.5, 1.0]
    with pytest.raises(UserError, match=r"task things.py has no argument 'promt'.*did you mean 'prompt'"):
        get_task("things.py", {"promt": ""})


def test_the_run_of_the_page_passes_every_check_before_training(folder: Path, blocks: list[str]) -> None:
    (folder / "things.py").write_text(blocks[0])
    check_run(RunConfig.model_validate(yaml.safe_load(blocks[1])))


def test_a_file_is_imported_once_and_finds_what_lies_beside_it(folder: Path, blocks: list[str]) -> None:
    (folder / "mine").mkdir()
    (folder / "mine" / f"beside_{folder.name}.py").write_text("LIMIT = 3\n")
    (folder / "mine" / "json.py").write_text(f"from beside_{folder.name} import LIMIT\n" + blocks[0])
    assert member("unival.tasks", "mine/json.py", "Task") is member(
        "unival.tasks", str(folder / "mine/json.py"), "Task"
    )
    assert sys.modules["json"] is json  # a name of its own: it hides no module


@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_objective_of_the_page_trains(folder: Path, accumulation: int) -> None:
    (folder / "focal.py").write_text(examples("objectives.md", "An objective of your own")[0])
    settings = tiny.run_settings(folder / "run", (2, 1), accumulation=accumulation)
    del settings["stages"][1]
    settings["stages"][0]["objective"] = {"name": "focal.py", "args": {"power": 0.0}}
    focal = losses(train(RunConfig.model_validate(settings)))
    settings["stages"][0]["objective"] = {"args": {"label_smoothing": 0.0}}
    plain = losses(train(RunConfig.model_validate(settings | {"out": str(folder / "plain")})))
    assert focal == pytest.approx(plain, rel=1e-4)  # of power 0: cross entropy
    with pytest.raises(UserError, match=r"objective focal.py has no argument 'powr'.*did you mean 'power'"):
        get_objective("focal.py", {"powr": 2.0}, None, list)


def losses(model: Path) -> list[float]:
    lines = (model.parent / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines if "loss" in json.loads(line)]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("things.py", None, r"task 'things.py': there is no file .*things.py"),
        ("thingz.py", "", r"did you mean 'things.py'"),
        ("things", "", r"unknown task 'things'.*or a file of your own: things.py"),
        ("things.py", "", "things.py defines no class Task"),
        ("things.py", "Task = 3", "things.py defines no class Task"),
        ("things.py", "import no_such_module", "cannot be imported: No module named 'no_such_module'.*install"),
        (
            "things.py",
            "class Task:\n    example = parse = score = monitor = ''",
            "the class Task in things.py is no TaskArgs",
        ),
        ("things.py", "from unival.tasks.base import TaskArgs as Task", "the class Task in things.py has no example"),
    ],
)
def test_what_is_no_task_is_explained(folder: Path, name: str, content: str | None, message: str) -> None:
    if content is not None:
        (folder / "things.py").write_text(content)
    with pytest.raises(UserError, match=message):
        get_task(name)
