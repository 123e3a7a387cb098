"""Paired comparison of two prediction files, as a function and as a command."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from unival.cli import app
from unival.errors import UserError
from unival.metrics.compare import compare_predictions


def write(path: Path, scores: dict[str, float], prediction: str = "a", metric: str = "accuracy") -> Path:
    lines = [json.dumps({"uid": uid, "prediction": prediction, "scores": {metric: s}}) for uid, s in scores.items()]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_samples_are_matched_by_uid_and_counted(tmp_path: Path) -> None:
    first = write(tmp_path / "a.jsonl", {"1": 1.0, "2": 0.0, "3": 1.0, "4": 0.5})
    second = write(tmp_path / "b.jsonl", {"4": 0.5, "3": 0.0, "2": 0.6, "1": 0.0}, "b")
    result = compare_predictions(first, second)
    assert (result["samples"], result["same_predictions"]) == (4, 0)
    found = result["metrics"]["accuracy"]
    assert (found["first"], found["second"]) == (pytest.approx(0.625), pytest.approx(0.275))
    assert found["difference"] == pytest.approx(0.35)
    assert found["low"] < 0.35 < found["high"]
    assert (found["better"], found["worse"], found["equal"]) == (2, 1, 1)
    assert (found["largest_gains"], found["largest_losses"]) == (["1", "3"], ["2"])


def test_a_file_compared_with_itself_has_no_difference(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", {str(i): i / 7 for i in range(8)})
    found = compare_predictions(path, path)["metrics"]["accuracy"]
    assert (found["difference"], found["low"], found["high"], found["equal"]) == (0.0, 0.0, 0.0, 8)


def test_pairing_sees_what_separate_intervals_cannot(tmp_path: Path) -> None:
    # Every sample gains 0.01 while samples differ by up to 1.
    first = write(tmp_path / "a.jsonl", {str(i): i / 100 + 0.01 for i in range(100)})
    second = write(tmp_path / "b.jsonl", {str(i): i / 100 for i in range(100)})
    found = compare_predictions(first, second)["metrics"]["accuracy"]
    assert found["low"] == pytest.approx(0.01)
    assert found["high"] == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no scores"),
        ("{", r"not a JSON line.*b.jsonl:1"),
        ('{"uid": "1"}', "needs `uid` and `scores`"),
        ("[" * 100_000, r"not a JSON line.*b.jsonl:1"),
        ('{"uid": ' + "9" * 5000 + "}", r"not a JSON line.*b.jsonl:1"),
        ('{"uid": "1", "scores": {"accuracy": NaN}}', "no finite number"),
        ('{"uid": "1", "scores": {"accuracy": ' + "9" * 400 + "}}", "no finite number"),
        ('{"uid": "1", "scores": {"accuracy": 1}}\n{"uid": "1", "scores": {"accuracy": 1}}', r"twice.*b.jsonl:2"),
        ('{"uid": "1", "scores": {"accuracy": 1}}\n{"uid": "2", "scores": {"iou": 1}}', "the first one accuracy"),
        ('{"uid": "9", "scores": {"accuracy": 1}}', "1 of 1 samples .*are not in"),
        ('{"uid": "1", "scores": {"iou": 1}}', "no metric in common: accuracy against iou"),
    ],
)
def test_files_that_cannot_be_compared_are_refused(text: str, message: str, tmp_path: Path) -> None:
    first = write(tmp_path / "a.jsonl", {"1": 1.0})
    (tmp_path / "b.jsonl").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        compare_predictions(first, tmp_path / "b.jsonl")
    with pytest.raises(UserError, match="cannot be read"):
        compare_predictions(first, tmp_path / "b.jsonl" / "below a file")


def test_the_command_prints_a_table_or_json(tmp_path: Path) -> None:
    first: Any = write(tmp_path / "a.jsonl", {"1": 1.0, "2": 1.0})
    second: Any = write(tmp_path / "b.jsonl", {"1": 0.0, "2": 1.0})
    printed = CliRunner().invoke(app, ["compare", str(first), str(second), "--json"])
    assert printed.exit_code == 0
    assert json.loads(printed.stdout)["metrics"]["accuracy"]["difference"] == 0.5
    table = CliRunner().invoke(app, ["compare", str(first), str(second)])
    assert "accuracy" in table.stdout
    assert "2 samples" in table.stdout
