"""The commands that a demo page lists run its steps again, in their order."""

import json

import pytest

from unival.report import commands_of, write_report
from unival.report.folder import RunFolder

ARGS = {"limit": 200, "x": "two words"}


def dump(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


@pytest.fixture
def out(tmp_path):
    checkpoints = {"detail": {"path": "runs/demo/detail/model"}, "two words": {"path": "two words"}}
    dump(tmp_path / "sweep/sweep.json", {"checkpoints": checkpoints, "evaluator": "a:b", "args": ARGS})
    (tmp_path / "sweep/results.jsonl").write_text("{}\n" * 5, encoding="utf-8")
    return tmp_path


def sweep(out):
    return (
        "soups sweep runs/demo/detail/model 'two words' --name detail --name 'two words' --points 5 --evaluator a:b "
        f"--arg limit=200 --arg 'x=two words' -o {out.as_posix()}/sweep"
    )


def test_a_training_and_a_sweep_are_one_command_each(out):
    run = RunFolder(out)
    assert commands_of(run, "audio") == ["unival train configs/demo/audio.yaml"]
    assert commands_of(run, "sweep") == [sweep(out)]
    assert commands_of(run, "ood") == []


def test_a_front_and_the_scores_of_the_start_are_listed_with_the_sweep(out):
    dump(out / "sweep/front.json", {"x": "cider_d", "y": "brevity", "init": None})
    front = f"soups front {out.as_posix()}/sweep --x cider_d --y brevity"
    assert commands_of(RunFolder(out), "sweep") == [sweep(out), front]

    dump(out / "sweep/front.json", {"x": "cider_d", "y": "brevity", "init": {"cider_d": 5.0, "brevity": 0.5}})
    manifest = {"checkpoints": {"start": {"path": "start"}}, "evaluator": "a:b", "args": {"limit": 200}}
    dump(out / "sweep_start/sweep.json", manifest)
    start = f"soups sweep start --name start --evaluator a:b --arg limit=200 -o {out.as_posix()}/sweep_start"
    front += f" --init {out.as_posix()}/sweep_start"
    assert commands_of(RunFolder(out), "sweep") == [start, sweep(out), front]

    steps = [{"name": "sweep", "title": "Sweep the soup, draw the front", "seconds": 2.5, "complete": True}]
    dump(out / "times.json", {"steps": steps, "total_seconds": 2.5, "seed": 1})
    assert f"{front}</pre>" in write_report(out).read_text(encoding="utf-8")
