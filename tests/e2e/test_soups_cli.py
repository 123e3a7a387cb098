"""From two tiny checkpoints to a merged model, a resumed sweep and a front, through the command line."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from soups.cli import app
from soups.engine.live import LiveSoup
from soups.errors import UserError
from soups.methods import get_method
from soups.points import segment
from soups.results import open_results, read_results
from soups.state import open_checkpoint
from soups.sweep import Sweep, run_sweep

ME = __name__  # the evaluators below are found as module:function, like any other
calls: list[torch.Tensor] = []


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(5, 4)
        self.norm = torch.nn.BatchNorm1d(4)
        self.head = torch.nn.Linear(4, 5, bias=False)
        self.head.weight = self.embed.weight  # tied: saved once, live twice


class TinyEvaluator:
    """Scores how near the weights are to each of two targets, per row of the embedding."""

    def __init__(self, checkpoint_path: Path, interrupt_after: int = 1000, broken: str = "") -> None:
        self.model = Net()
        self.interrupt_after = interrupt_after
        self.broken = broken

    def state(self) -> dict[str, torch.Tensor]:
        state = self.model.state_dict()
        return state | {"other": torch.zeros(3)} if self.broken == "state" else state

    def evaluate(self) -> dict[str, list]:
        if len(calls) >= self.interrupt_after:
            raise KeyboardInterrupt
        weight = self.model.embed.weight.detach()
        calls.append(weight.clone())
        near = [(-((weight - end(seed)["embed.weight"]) ** 2).sum(dim=1)).tolist() for seed in (1, 2)]
        scores = {"near_a": near[0], "near_b": near[1], "norm": weight.norm(dim=1).tolist()}
        if self.broken == "nan":
            scores["norm"][2] = float("nan")
        if self.broken == "sum":
            scores["norm"] = [1e308] * len(scores["norm"])
        if self.broken == "text":
            scores["norm"][0] = "0.5"
        if self.broken == "length":
            scores["norm"].pop()
        return scores

    def samples(self) -> list[dict[str, str]]:
        return [{"prompt": "</script><b>1", "output": f"{self.model.embed.weight[0, 0].item():.3f}"}]


def not_an_evaluator(checkpoint_path: Path) -> int:
    return 3


def end(seed: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    state = Net().state_dict()
    del state["head.weight"]
    state["embed.weight"] = torch.randn(5, 4)
    return state


@pytest.fixture
def models(tmp_path):
    calls.clear()
    for seed, name in ((1, "a"), (2, "b")):
        (tmp_path / name).mkdir()
        save_file(end(seed), tmp_path / name / "model.safetensors", metadata={"format": "pt"})
        (tmp_path / name / "config.json").write_text("{}")
    return [str(tmp_path / "a"), str(tmp_path / "b")]


def soups(*args: object, code: int = 0) -> str:
    """Run a command; return stdout, or stderr when it is meant to fail."""
    result = CliRunner().invoke(app, [str(arg) for arg in args])
    assert result.exit_code == code, result.output + repr(result.exception)
    return result.stdout if code == 0 else result.stderr


def sweep(models, out, *args: object, code: int = 0) -> str:
    return soups("sweep", *models, "--evaluator", f"{ME}:TinyEvaluator", "-o", out, *args, code=code)


def table(out: Path) -> list[dict]:
    rows = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def test_merge_writes_a_checkpoint_and_its_card(models, tmp_path):
    summary = json.loads(soups("merge", *models, "--weights", "0.25,0.75", "-o", tmp_path / "out", "--json"))
    assert summary["coefficients"] == {"a": 0.25, "b": 0.75}
    merged = load_file(tmp_path / "out" / "model.safetensors")["embed.weight"]
    torch.testing.assert_close(merged, 0.25 * end(1)["embed.weight"] + 0.75 * end(2)["embed.weight"])
    assert open_checkpoint(models[0]).digest in (tmp_path / "out" / "README.md").read_text()


def test_a_dry_run_writes_nothing(models, tmp_path):
    out = soups("merge", *models, "-o", tmp_path / "out", "--dry-run")
    assert "would write" in out
    assert "a 0.5  b 0.5" in out
    assert not (tmp_path / "out").exists()


def test_task_arithmetic_takes_a_base_and_parameters(models, tmp_path):
    options = ("--method", "task_arithmetic", "--weights", "1,1", "--param", "scale=0.5")
    soups("merge", *models, *options, "--base", models[0], "-o", tmp_path / "out")
    merged = load_file(tmp_path / "out" / "model.safetensors")["embed.weight"]
    torch.testing.assert_close(merged, (end(1)["embed.weight"] + end(2)["embed.weight"]) / 2)


def test_a_sweep_scores_every_point_and_its_ends_bit_for_bit(models, tmp_path):
    printed = json.loads(sweep(models, tmp_path / "s", "--points", 5, "--json"))
    rows = table(tmp_path / "s")
    assert [row["coefficients"] for row in rows] == [{"a": 1 - i / 4, "b": i / 4} for i in range(5)]
    assert [row["metrics"] for row in rows] == [point["metrics"] for point in printed["points"]]
    assert torch.equal(calls[0], end(1)["embed.weight"])
    assert torch.equal(calls[4], end(2)["embed.weight"])
    middle = (end(1)["embed.weight"].double() + end(2)["embed.weight"].double()) / 2
    assert torch.equal(calls[2], middle.float())
    assert rows[0]["metrics"]["near_a"] == 0.0
    assert rows[0]["num_samples"] == len(rows[0]["scores"]["near_a"]) == 5
    assert rows[0]["metrics"]["norm"] == pytest.approx(calls[0].norm(dim=1).mean().item())


def test_an_interrupted_sweep_resumes_to_the_same_table(models, tmp_path):
    sweep(models, tmp_path / "whole", "--points", 4)
    calls.clear()
    options = {"checkpoints": [open_checkpoint(m) for m in models], "method": get_method("linear")}
    halting = Sweep(**options, evaluator=f"{ME}:halting")
    with pytest.raises(KeyboardInterrupt):
        run_sweep(halting, segment(4), tmp_path / "half")
    assert len(read_results(tmp_path / "half")) == 2
    calls.clear()
    globals()["halting"] = TinyEvaluator
    run_sweep(halting, segment(4), tmp_path / "half")
    assert len(calls) == 2
    whole, resumed = table(tmp_path / "whole"), table(tmp_path / "half")
    assert [row | {"key": None} for row in whole] == [row | {"key": None} for row in resumed]


def halting(checkpoint_path: Path) -> TinyEvaluator:
    return TinyEvaluator(checkpoint_path, interrupt_after=2)


@pytest.mark.parametrize("lost", [1, 40, 10_000])
def test_a_line_torn_by_a_kill_is_evaluated_again(models, tmp_path, lost):
    sweep(models, tmp_path / "s", "--points", 3)
    complete = (tmp_path / "s" / "results.jsonl").read_bytes()
    last = complete.rstrip(b"\n").rfind(b"\n") + 1
    (tmp_path / "s" / "results.jsonl").write_bytes(complete[: max(len(complete) - lost, last + 1)])
    before = table(tmp_path / "s") if lost == 1 else None
    assert len(read_results(tmp_path / "s")) == 2
    calls.clear()
    sweep(models, tmp_path / "s", "--points", 3)
    assert len(calls) == 1
    rows = table(tmp_path / "s")
    assert len(rows) == 3
    assert before is None or rows == before


def test_a_sweep_is_extended_and_repeated_without_new_work(models, tmp_path):
    sweep(models, tmp_path / "s", "--points", 3)
    sweep(models, tmp_path / "s", "--points", 5)
    assert len(calls) == 5
    sweep(models, tmp_path / "s", "--weights", "0.5,0.5", "--weights", "-0.5,1.5", "--extrapolate")
    assert len(calls) == 6
    sweep(models, tmp_path / "s", "--points", 5)
    assert len(calls) == 6


def test_three_models_are_swept_on_a_triangle(models, tmp_path):
    (tmp_path / "c").mkdir()
    save_file(end(3), tmp_path / "c" / "model.safetensors")
    sweep([*models, str(tmp_path / "c")], tmp_path / "s", "--points", 3)
    assert len(table(tmp_path / "s")) == 6
    soups("front", tmp_path / "s", "--x", "near_a", "--y", "near_b")


def test_two_sweeps_cannot_write_into_one_folder(models, tmp_path):
    (tmp_path / "s").mkdir()
    with open_results(tmp_path / "s"):
        assert "another sweep is writing here" in sweep(models, tmp_path / "s", code=2)


def test_another_sweep_in_the_same_folder_is_refused(models, tmp_path):
    sweep(models, tmp_path / "s", "--points", 2)
    message = sweep(models, tmp_path / "s", "--points", 2, "--arg", "interrupt_after=50", code=2)
    assert "differs in: args" in message


def test_the_same_models_in_another_order_are_refused_with_the_order_of_the_folder(models, tmp_path):
    """Paths between models, the shades of figures and `--integers first` are read in the order of the first run."""
    sweep(models, tmp_path / "s", "--points", 2)
    before = table(tmp_path / "s")
    message = sweep(reversed(models), tmp_path / "s", "--points", 5, code=2)
    assert "a sweep of these models in another order: a, b" in message
    assert "give the models, and their --weights, in that order, or give another -o" in " ".join(message.split())
    assert table(tmp_path / "s") == before


def test_a_corrupt_line_in_the_middle_is_named(models, tmp_path):
    sweep(models, tmp_path / "s", "--points", 2)
    path = tmp_path / "s" / "results.jsonl"
    path.write_text("{oops\n" + path.read_text())
    assert "results.jsonl, line 1" in soups("front", tmp_path / "s", code=2)


def test_the_front_is_written_as_data_figure_and_page(models, tmp_path):
    sweep(models, tmp_path / "s", "--points", 5)
    (tmp_path / "init.json").write_text(json.dumps({"metrics": {"near_a": -9.0, "near_b": [-8.0, -10.0]}}))
    out = tmp_path / "s"
    printed = json.loads(
        soups("front", out, "--x", "near_a", "--y", "near_b", "--init", tmp_path / "init.json", "--json")
    )
    front = json.loads((out / "front.json").read_text())
    assert printed == front
    assert front["init"] == {"near_a": -9.0, "near_b": -9.0}
    assert [point["nondominated"] for point in front["points"]] == [True] * 5
    # The scores are minus squared distances, so that soup minus line is lambda (1 - lambda) times the span.
    margin = front["margins"]["near_a"]
    assert margin["max"]["value"] == pytest.approx(0.25, rel=1e-4)
    assert margin["num_violating"] == 0
    assert front["knee"]["coefficients"] == {"a": 0.5, "b": 0.5}
    low, value, high = (front["hypervolume"][key] for key in ("low", "value", "high"))
    assert low < value < high
    assert front["straight_line"]["gain"]["value"] == pytest.approx(
        value - front["straight_line"]["hypervolume"]["value"]
    )
    assert (out / "front.png").read_bytes().startswith(b"\x89PNG")
    ElementTree.parse(out / "front.svg")


def test_points_beyond_the_models_are_not_among_those_judged_by_the_straight_line(models, tmp_path):
    sweep(models, tmp_path / "s", "--range", "-0.5,1.5", "--points", 9, "--extrapolate")
    text = soups("front", tmp_path / "s", "--x", "near_a", "--y", "near_b")
    assert "margin over the straight line, near_a" in text
    assert text.count(" of 5 below") == 2


def test_the_page_is_self_contained_and_escapes_the_data(models, tmp_path):
    sweep(models, tmp_path / "s", "--points", 2, "--name", "<i>a", "--name", "$b$")
    soups("front", tmp_path / "s", "--x", "near_a", "--y", "near_b")
    html = (tmp_path / "s" / "front.html").read_text()
    assert "<i>a" not in html
    assert "<b>1" not in html
    assert not re.search(r"(src|href)\s*=|@import|url\(", html)
    data = html.partition('id="data">')[2].partition("</script>")[0]
    soup = next(curve for curve in json.loads(data)["panels"][0]["curves"] if curve["name"] == "soup")
    assert soup["marks"][0]["samples"][0]["prompt"] == "</script><b>1"
    assert soup["marks"][0]["details"]["Coefficients"] == {"<i>a": "1", "$b$": "0"}


def test_figures_of_equal_data_are_equal(models, tmp_path):
    sweep(models, tmp_path / "s", "--points", 3)
    for out in ("x", "y"):
        soups("front", tmp_path / "s", "-o", tmp_path / out)
    for name in ("front.json", "front.png", "front.svg", "front.html"):
        assert (tmp_path / "x" / name).read_bytes() == (tmp_path / "y" / name).read_bytes()


def test_a_front_without_the_ends_says_so(models, tmp_path):
    sweep(models, tmp_path / "s", "--weights", "0.5,0.5", "--weights", "0.2,0.8")
    assert "not every model was evaluated alone" in soups("front", tmp_path / "s")
    assert json.loads((tmp_path / "s" / "front.json").read_text())["straight_line"] is None


def test_the_scores_of_the_init_may_come_from_a_sweep_of_one_model(models, tmp_path):
    sweep(models, tmp_path / "s", "--points", 2)
    sweep(models[:1], tmp_path / "init")
    soups("front", tmp_path / "s", "--init", tmp_path / "init")
    assert json.loads((tmp_path / "s" / "front.json").read_text())["init"]["near_a"] == 0.0


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["merge", "A", "nowhere", "-o", "O"], "no such checkpoint"),
        (["merge", "A", "E", "-o", "O"], "no model.safetensors"),
        (["merge", "A", "T", "-o", "O"], "truncated or corrupt"),
        (["merge", "A", "A", "-o", "O"], "two checkpoints are called 'a'"),
        (["merge", "A", "B", "--weights", "0.5", "-o", "O"], "1 weight for 2 models"),
        (["merge", "A", "B", "--weights", "x,y", "-o", "O"], "not a list of numbers"),
        (["merge", "A", "B", "--weights", "0.5,0.6", "-o", "O"], "sum to 1.1"),
        (["merge", "A", "B", "--weights", "nan,1", "--extrapolate", "-o", "O"], "finite"),
        (["merge", "A", "B", "--method", "slrep", "-o", "O"], "did you mean 'slerp'?"),
        (["merge", "A", "B", "--method", "task_arithmetic", "-o", "O"], "needs a base"),
        (["merge", "A", "B", "--param", "scale=1", "-o", "O"], "no parameter 'scale'"),
        (["merge", "A", "B", "--param", "scale", "-o", "O"], "not key=value"),
        (["merge", "A", "B", "--integers", "last", "-o", "O"], "unknown policy"),
        (["merge", "A", "B", "-o", "E"], "already there"),
        (["merge", "A", "B", "--name", "x", "-o", "O"], "1 names for 2 models"),
        (["sweep", "A", "B", "--evaluator", "nope:f", "-o", "O"], "cannot import 'nope'"),
        (["sweep", "A", "B", "--evaluator", "nope", "-o", "O"], "module:function"),
        (["sweep", "A", "B", "--evaluator", "ME:TinyEvaluatr", "-o", "O"], "did you mean 'TinyEvaluator'?"),
        (["sweep", "A", "B", "--evaluator", "ME:not_an_evaluator", "-o", "O"], "no method state()"),
        (["sweep", "A", "B", "--evaluator", "ME:TinyEvaluator", "--arg", "brokn=1", "-o", "O"], "broken"),
        (
            ["sweep", "A", "B", "--evaluator", "ME:TinyEvaluator", "--arg", "broken=nan", "-o", "O"],
            "not finite",
        ),
        (
            ["sweep", "A", "B", "--evaluator", "ME:TinyEvaluator", "--arg", "broken=sum", "-o", "O"],
            "the scores of 'norm' have no finite mean",
        ),
        (
            ["sweep", "A", "B", "--evaluator", "ME:TinyEvaluator", "--arg", "broken=text", "-o", "O"],
            "the scores of 'norm' are not a list of numbers",
        ),
        (
            ["sweep", "A", "B", "--evaluator", "ME:TinyEvaluator", "--arg", "broken=length", "-o", "O"],
            "same number",
        ),
        (
            ["sweep", "A", "B", "--evaluator", "ME:TinyEvaluator", "--arg", "broken=state", "-o", "O"],
            "stored: other",
        ),
        (["sweep", "A", "B", "--evaluator", "ME:TinyEvaluator", "--points", "1", "-o", "O"], "at least 2"),
        (["front", "E"], "no results.jsonl"),
        (["front", "S", "--x", "CIDEr"], "choices: near_a, near_b, norm"),
        (["front", "S", "--x", "norm", "--y", "norm"], "two different metrics"),
        (["front", "S", "--init", "A"], "score it first"),
        (["front", "S", "--init", "nowhere"], "check --init"),
        (["front", "S", "--reference", "1"], "1 numbers for 2 metrics"),
        (["pick", "S", "--preference", "norm=1", "--by", "grid"], "unknown search 'grid'"),
    ],
)
def test_wrong_input_is_one_clear_error(models, tmp_path, args, expected):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").touch()
    (tmp_path / "torn").mkdir()
    raw = (Path(models[0]) / "model.safetensors").read_bytes()
    (tmp_path / "torn" / "model.safetensors").write_bytes(raw[:-10])
    paths = {"A": models[0], "B": models[1], "E": tmp_path / "empty", "T": tmp_path / "torn"}
    paths |= {"O": tmp_path / "out", "S": tmp_path / "s"}
    if "S" in args:
        sweep(models, tmp_path / "s", "--points", 2)
    message = soups(*[paths.get(arg, arg.replace("ME:", f"{ME}:")) for arg in args], code=2)
    assert message.startswith("error: ")
    assert expected in message
    assert "Traceback" not in message
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_the_traceback_is_shown_on_request(models, tmp_path):
    message = soups("merge", models[0], "nowhere", "-o", tmp_path / "out", "--debug", code=2)
    assert "Traceback" in message


def test_a_sweep_can_be_corrected_before_its_first_result(models, tmp_path):
    sweep(models, tmp_path / "s", "--arg", "broken=nan", code=2)
    sweep(models, tmp_path / "s", "--points", 2)
    assert len(table(tmp_path / "s")) == 2


def test_live_names_of_one_memory_must_agree_in_the_checkpoints(models):
    checkpoints = [open_checkpoint(model) for model in models]
    shared = torch.zeros(4)
    live = Net().state_dict()
    live["norm.weight"] = live["norm.bias"] = shared
    swept = Sweep(checkpoints, get_method("linear"), "x:y")
    with pytest.raises(UserError, match="share memory"):
        LiveSoup(swept, live)


def test_methods_are_listed():
    listed = json.loads(soups("methods", "--json"))["methods"]
    by_name = {row["name"]: row for row in listed}
    assert list(by_name) == sorted(by_name)
    assert {"linear", "slerp", "task_arithmetic"} <= set(by_name)
    assert by_name["task_arithmetic"]["params"] == {"scale": 1.0}


def test_help_imports_nothing_heavy():
    code = (
        "import sys\nfrom soups.cli import COMMANDS, app\n"
        "for args in (['--help'], *([name, '--help'] for name in COMMANDS)):\n"
        "    app(args, standalone_mode=False)\n"
        "print('HEAVY', [m for m in ('torch', 'numpy', 'matplotlib', 'safetensors') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "HEAVY []" in done.stdout
