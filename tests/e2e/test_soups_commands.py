"""pick, greedy, learn, diff and plot, other evaluators, workers and a killed sweep, through the command line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from typer.testing import CliRunner

from soups.cli import app
from soups.evaluators.function import ModelEvaluator
from soups.results import read_results
from soups.search.learn import Objective

ROOT = Path(__file__).resolve().parents[2]
ME = __name__
INPUTS = torch.linspace(-1, 1, 8)[:, None]
MIXED = (0.25, 0.75)  # the coefficients that the objective below was made with


def network(checkpoint_path: Path | None = None) -> nn.Module:
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


def shown(model: nn.Module) -> list[dict[str, str]]:
    return [{"prompt": "one", "output": f"{float(model(torch.ones(1, 1))):.4f}"}]


def evaluator(checkpoint_path: Path) -> ModelEvaluator:
    return ModelEvaluator(network(), errors, shown)


def failing(checkpoint_path: Path) -> ModelEvaluator:
    def fail(model: nn.Module) -> dict[str, list[float]]:
        raise OSError("the camera is gone")

    return ModelEvaluator(network(), fail)


def of_folder(path: Path) -> dict[str, list[float]]:
    model = network()
    model.load_state_dict(load_file(path / "model.safetensors"))
    with torch.no_grad():
        return errors(model)


def objective(checkpoint_path: Path, wanted: float = MIXED[1]) -> Objective:
    ends = [end(1), end(2)]
    mixed = {name: (1 - wanted) * ends[0][name] + wanted * ends[1][name] for name in ends[0]}
    target = outputs(mixed)
    return Objective(network(), [(INPUTS, target)], lambda call, batch: (call(batch[0]) - batch[1]).square().mean())


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


def scores(out: Path) -> dict[str, dict]:
    return {result.key: dict(result.scores) for result in read_results(out)}


def test_pick_chooses_refines_and_says_how_to_merge(models, tmp_path):
    sweep(models, tmp_path / "s", "--points", 3)
    preference = ("--preference", "near_a=1,near_b=1")
    first = json.loads(soups("pick", tmp_path / "s", *preference, "--json"))
    assert first["num_points"] == 3
    assert first["preference"] == {"near_a": 0.5, "near_b": 0.5}
    assert {row["policy"] for row in first["policies"]} == {
        "preference",
        "closed form",
        "quadratic fit",
        "best measured",
    }
    refined = json.loads(soups("pick", tmp_path / "s", *preference, "--refine", 2, "--json"))
    assert (refined["num_new_points"], refined["num_points"]) == (2, 5)
    words = refined["merge"].split()
    assert words[:2] == ["soups", "merge"]
    soups(*words[1:-1], tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").is_file()
    assert "unknown metric 'cider'" in soups("pick", tmp_path / "s", "--preference", "cider=1", code=2)
    assert "not name=number" in soups("pick", tmp_path / "s", "--preference", "near_a", code=2)


def test_greedy_keeps_what_helps_and_continues_where_it_stopped(models, tmp_path):
    bad = tmp_path / "bad"
    bad.mkdir()
    save_file({name: value + 9 for name, value in end(1).items()}, bad / "model.safetensors")
    args = ("greedy", *models, bad, "--evaluator", f"{ME}:evaluator", "--metric", "near_a", "-o", tmp_path / "g")
    data = json.loads(soups(*args, "--save", tmp_path / "soup", "--json"))
    # near_a is zero for the first model alone, its largest value, so that nothing else can help
    assert data["members"] == ["a"]
    assert [trial["kept"] for trial in data["trials"]] == [True, False, False]
    assert data["trials"][-1]["model"] == "bad"
    assert len(read_results(tmp_path / "g")) == 5
    merged = load_file(tmp_path / "soup" / "model.safetensors")
    assert all(torch.equal(merged[name], value) for name, value in end(1).items())
    again = json.loads(soups(*args, "--json"))
    assert again["trials"] == data["trials"]
    assert json.loads((tmp_path / "g" / "greedy.json").read_text())["score"] == 0.0
    assert "unknown metric" in soups(*args[:-3], "cider", *args[-2:], code=2)
    new = soups("greedy", *models, *args[4:6], "--metric", "cider", "-o", tmp_path / "new", code=2)
    assert "unknown metric 'cider'" in new
    assert len(read_results(tmp_path / "new")) == 1  # told after the first score
    assert "choices: reject, accept" in soups(*args, "--ties", "keep", code=2)


def test_greedy_learn_and_stats_take_the_moving_average(tmp_path):
    files = [tmp_path / "a.pt", tmp_path / "b.pt"]
    for seed, path in enumerate(files, start=1):
        torch.save({"model": network().state_dict(), "extra_state": {"ema": end(seed)}}, path)
    common = (*files, "--ema", "--json")
    args = ("--evaluator", f"{ME}:evaluator", "--metric", "near_a", "-o", tmp_path / "g")
    assert json.loads(soups("greedy", *common, *args))["score"] == 0.0
    args = ("--loss", f"{ME}:objective", "--epochs", 300, "-o", tmp_path / "l.json")
    learned = json.loads(soups("learn", *common, *args))["coefficients"]["all"]
    assert learned == pytest.approx({"a": 0.25, "b": 0.75}, abs=0.02)
    (distance,) = json.loads(soups("diff", *common))["modules"]["all"]["distance"].values()
    apart = sum(float((end(1)[name] - end(2)[name]).square().sum()) for name in end(1)) ** 0.5
    assert distance == pytest.approx(apart, rel=1e-5)
    for ema in ((), ("--ema",)):
        args = ("--kind", "fisher", "--loss", f"{ME}:objective", "-o", tmp_path / f"f{len(ema)}", *ema)
        soups("stats", files[0], *args)
    raw, averaged = (load_file(tmp_path / name / "model.safetensors") for name in ("f0", "f1"))
    assert not torch.equal(raw["0.weight"], averaged["0.weight"])


def test_a_copy_is_a_tie(models, tmp_path):
    copy = tmp_path / "copy"
    copy.mkdir()
    save_file(end(1), copy / "model.safetensors", metadata={"format": "pt"})
    args = ("greedy", models[0], copy, "--evaluator", f"{ME}:evaluator", "--metric", "near_a", "--json")
    assert len(json.loads(soups(*args, "-o", tmp_path / "g"))["members"]) == 1
    assert len(json.loads(soups(*args, "--ties", "accept", "-o", tmp_path / "g"))["members"]) == 2


@pytest.mark.parametrize("per", ["model", "module", "tensor"])
def test_learned_coefficients_are_those_the_objective_was_made_with(models, tmp_path, per):
    args = ("learn", *models, "--loss", f"{ME}:objective", "--per", per, "--epochs", 300, "-o", tmp_path / "l.json")
    data = json.loads(soups(*args, "--save", tmp_path / "soup", "--json"))
    groups = {"model": ["all"], "module": ["0", "2"], "tensor": ["0.bias", "0.weight", "2.bias", "2.weight"]}[per]
    assert list(data["coefficients"]) == groups
    for weights in data["coefficients"].values():
        assert sum(weights.values()) == pytest.approx(1.0)
    assert data["losses"]["learned"] < 0.02 * min(data["losses"]["equal"], data["losses"]["a"], data["losses"]["b"])
    if per == "model":
        assert data["coefficients"]["all"] == pytest.approx({"a": 0.25, "b": 0.75}, abs=0.02)
    merged = load_file(tmp_path / "soup" / "model.safetensors")
    for name, tensor in merged.items():
        group = {"model": "all", "module": name[0], "tensor": name}[per]
        weights = data["coefficients"][group]
        expected = weights["a"] * end(1)[name].double() + weights["b"] * end(2)[name].double()
        torch.testing.assert_close(tensor, expected.float(), rtol=0, atol=1e-6)


def normed() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(1, 3), torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 1))


def normed_objective(checkpoint_path: Path) -> Objective:
    batches = [torch.arange(6.0)[:, None]]
    return Objective(normed(), batches, lambda call, batch: (call(batch) - batch).square().mean())


def test_batch_norm_is_learned_through_with_its_statistics_mixed(tmp_path):
    states = []
    for seed, name in enumerate("ab"):
        torch.manual_seed(seed)
        model = normed()
        model(torch.randn(8, 1) + seed)
        states.append(model.state_dict())
        save_file(states[-1], tmp_path / f"{name}.safetensors")
    models = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    args = ("--loss", f"{ME}:normed_objective", "--epochs", 5, "-o", tmp_path / "l.json", "--save", tmp_path / "soup")
    data = json.loads(soups("learn", *models, *args, "--json"))
    assert data["losses"]["learned"] < data["losses"]["equal"]
    a, b = data["coefficients"]["all"].values()
    merged = load_file(tmp_path / "soup" / "model.safetensors")
    expected = a * states[0]["1.running_var"] + b * states[1]["1.running_var"]
    torch.testing.assert_close(merged["1.running_var"], expected)
    text = soups("merge", *models, "-o", tmp_path / "out")
    assert "2 batch-norm statistics are mixed too" in text


def test_wrong_objectives_are_refused(models, tmp_path):
    args = ("learn", *models, "-o", tmp_path / "l.json")
    assert "returned ModelEvaluator" in soups(*args, "--loss", f"{ME}:evaluator", code=2)
    assert "choices: model, module, tensor" in soups(*args, "--loss", f"{ME}:objective", "--per", "layer", code=2)
    assert not (tmp_path / "l.json").exists()


def test_diff_reports_weights_barriers_and_disagreement(models, tmp_path):
    save_file(network().state_dict(), tmp_path / "base.safetensors")
    options = ("--evaluator", f"{ME}:evaluator", "--results", tmp_path / "path", "--points", 5)
    data = json.loads(soups("diff", *models, "--base", tmp_path / "base.safetensors", *options, "--json"))
    assert list(data["modules"]) == ["0", "2", "all"]
    assert data["modules"]["all"]["num_entries"] == 13
    assert set(data["barriers"]["a|b"]) == {"near_a", "near_b"}
    assert data["disagreement"]["a|b"]["outputs"]["share"] == 1.0
    text = soups("diff", *models, "--results", tmp_path / "path", "-o", tmp_path / "diff.json")
    assert "barrier of near_a" in text
    assert json.loads((tmp_path / "diff.json").read_text())["base"] is None
    assert "nothing to differ from" in soups("diff", models[0], code=2)
    assert "nowhere to keep" in soups("diff", *models, "--evaluator", f"{ME}:evaluator", code=2)


def test_what_is_no_number_is_null_in_json(models, tmp_path):
    broken = end(1) | {"2.bias": torch.tensor([float("nan")])}
    save_file(broken, tmp_path / "broken.safetensors")
    text = soups("diff", *models, tmp_path / "broken.safetensors", "--json", "-o", tmp_path / "diff.json")

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    data = json.loads(text, parse_constant=refuse)
    assert data == json.loads((tmp_path / "diff.json").read_text(), parse_constant=refuse)
    row = data["modules"]["2"]
    assert row["norm"]["broken"] is row["distance"]["a|broken"] is None
    assert row["distance"]["a|b"] > 0


def test_plot_writes_a_picture_and_a_page(models, tmp_path):
    sweep(models, tmp_path / "s", "--points", 5)
    data = json.loads(soups("plot", "pairs", tmp_path / "s", "-o", tmp_path / "f", "--line", "smooth", "--json"))
    assert [Path(path).name for path in data["files"]] == ["pairs.png", "pairs.svg", "pairs.html"]
    assert all(Path(path).stat().st_size > 1000 for path in data["files"])
    assert "choices" in soups("plot", "cake", tmp_path / "s", code=2)
    assert "choices: polyline" in soups("plot", "front", tmp_path / "s", "--line", "wavy", code=2)
    assert "called 's'" in soups("plot", "seeds", tmp_path / "s", tmp_path / "s", code=2)
    assert "not NAME=PATH" in soups("plot", "front", tmp_path / "s", "--compare", "morl", code=2)


PROGRAM = """
import json, sys
from pathlib import Path
sys.path.insert(0, {root!r})
from {module} import of_folder
table = of_folder(Path(sys.argv[1]))
Path(sys.argv[2]).write_text(json.dumps({{"scores": table, "samples": [{{"prompt": "p", "output": "o"}}]}}))
"""


def test_a_program_a_function_of_a_path_and_a_live_model_agree(models, tmp_path):
    sweep(models, tmp_path / "live", "--points", 2)
    program = tmp_path / "my eval.py"
    program.write_text(PROGRAM.format(root=str(ROOT), module=ME))
    command = f"'{sys.executable}' '{program}' {{model}} {{result}}"
    soups("sweep", *models, "--command", command, "--points", 2, "-o", tmp_path / "program")
    named = ("--evaluator", "soups.evaluators.function:of_file", "--arg", f"score={ME}:of_folder")
    soups("sweep", *models, *named, "--points", 2, "-o", tmp_path / "file")
    built = ("--arg", f"model={ME}:network", "--arg", f"score={ME}:errors", "--arg", f"samples={ME}:shown")
    soups(
        "sweep",
        *models,
        "--evaluator",
        "soups.evaluators.function:of_model",
        *built,
        "--points",
        2,
        "-o",
        tmp_path / "m",
    )
    wanted = list(scores(tmp_path / "live").values())
    for name in ("program", "file", "m"):
        assert list(scores(tmp_path / name).values()) == wanted
        assert not list((tmp_path / name).glob(".soup-*"))
    assert read_results(tmp_path / "program")[0].samples == [{"prompt": "p", "output": "o"}]


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("true {model}", "no {result}"),
        ("true {model} {result}", "wrote no {result}"),
        ("false {model} {result}", "exit code 1"),
        ("sh -c 'echo no disk >&2; exit 3' {model} {result}", "no disk"),
        ("sh -c 'printf \"\\\\377 no text\\\\n\" >&2; exit 3' {model} {result}", "\N{REPLACEMENT CHARACTER} no text"),
        ("sh -c 'echo [1] > \"$1\"' {model} {result}", "not a table"),
        ("no-such-program {model} {result}", "cannot run 'no-such-program'"),
        ("echo '{model} {result}", "close the quote"),
    ],
)
def test_a_program_that_fails_is_one_error(models, tmp_path, command, message):
    text = soups("sweep", *models, "--command", command, "-o", tmp_path / "s", code=2)
    assert text.startswith("error: ")
    assert message in text


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
@pytest.mark.parametrize("ended_by", ["timeout", "interrupt"])
def test_what_a_program_started_ends_with_it(models, tmp_path, ended_by):
    pids = tmp_path / "pids"
    script = f'sleep 600 & echo $$ $! > "{pids}.part"; mv "{pids}.part" "{pids}"; sleep 600; : {{model}} {{result}}'
    words = ["sweep", *models, "--command", f"sh -c '{script}'", "--points", "2", "-o", str(tmp_path / "s")]
    words += ["--arg", "timeout=1.5"] if ended_by == "timeout" else []
    sweeping = subprocess.Popen([sys.executable, "-m", "soups", *words], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    if ended_by == "interrupt":
        for _ in range(600):
            if pids.exists():
                break
            time.sleep(0.05)
        sweeping.send_signal(signal.SIGINT)
    said = sweeping.communicate(timeout=60)[1]
    assert sweeping.returncode == (2 if ended_by == "timeout" else 130)
    assert ("did not end within 1.5 s" if ended_by == "timeout" else "interrupted") in said
    started = [Path("/proc", pid, "stat") for pid in pids.read_text().split()]
    assert len(started) == 2
    for _ in range(100):
        if not any(is_running(stat) for stat in started):
            return
        time.sleep(0.05)
    pytest.fail("the program, or what it started, is still running")


def is_running(stat: Path) -> bool:
    try:
        return stat.read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_program_may_print_what_is_no_text(models, tmp_path):
    program = tmp_path / "eval.py"
    program.write_text(PROGRAM.format(root=str(ROOT), module=ME) + 'sys.stderr.buffer.write(b"\\xff")\n')
    command = f"'{sys.executable}' '{program}' {{model}} {{result}}"
    soups("sweep", *models, "--command", command, "--points", 2, "-o", tmp_path / "s")
    assert len(read_results(tmp_path / "s")) == 2


def talkative(checkpoint_path: Path) -> ModelEvaluator:
    print("loading")

    def noted(model: nn.Module) -> dict[str, list[float]]:
        print("scoring")
        subprocess.run(["sh", "-c", "echo a program of its own"], check=True)  # writes to the descriptor itself
        return errors(model)

    return ModelEvaluator(network(), noted)


@pytest.mark.parametrize("workers", [1, 2])
def test_what_an_evaluator_prints_is_no_part_of_the_json(models, tmp_path, workers):
    words = ["sweep", *models, "--evaluator", f"{ME}:talkative", "--points", "2", "-o", str(tmp_path / "s"), "--json"]
    code = f"import sys; sys.argv[1:] = {[*words, '--workers', str(workers)]!r}; from soups.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert len(json.loads(done.stdout)["points"]) == 2
    assert done.stderr.count("scoring") == done.stderr.count("a program of its own") == 2


def test_workers_give_the_same_table(models, tmp_path):
    sweep(models, tmp_path / "one", "--points", 5)
    printed = json.loads(sweep(models, tmp_path / "two", "--points", 5, "--workers", 2, "--json"))
    assert scores(tmp_path / "one") == scores(tmp_path / "two")
    assert [point["coefficients"]["b"] for point in printed["points"]] == [0.0, 0.25, 0.5, 0.75, 1.0]
    sweep(models, tmp_path / "two", "--points", 5, "--workers", 2)
    assert len(read_results(tmp_path / "two")) == 5


def test_a_persons_error_in_a_worker_reaches_the_person(models, tmp_path):
    args = ("sweep", *models, "--points", 3, "--workers", 2, "-o", tmp_path / "s")
    assert "did you mean 'evaluator'" in soups(*args, "--evaluator", f"{ME}:evaluater", code=2)


@pytest.mark.slow
def test_a_defect_in_a_worker_is_raised_here(models, tmp_path):
    args = ("sweep", *models, "--points", 3, "--workers", 2, "-o", tmp_path / "s")
    result = CliRunner().invoke(app, [str(arg) for arg in (*args, "--evaluator", f"{ME}:failing")])
    assert isinstance(result.exception, RuntimeError)
    assert "the camera is gone" in str(result.exception)


SLOW = """
import sys, time
sys.path.insert(0, {root!r})
from {module} import errors, network
from soups.evaluators.function import ModelEvaluator

def slow(model):
    time.sleep(0.15)
    return errors(model)

def evaluator(checkpoint_path):
    return ModelEvaluator(network(), slow)
"""


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc")
@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_sweep_killed_by_the_system_resumes_and_leaves_no_process(models, tmp_path, monkeypatch, workers):
    (tmp_path / "slow.py").write_text(SLOW.format(root=str(ROOT), module=ME))
    words = [sys.executable, "-m", "soups", "sweep", *models, "--evaluator", "slow:evaluator", "--points", "9"]
    words += ["--workers", str(workers), "-o", "s"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(words, cwd=tmp_path, env=environment, start_new_session=True)
    path = tmp_path / "s" / "results.jsonl"
    deadline = time.monotonic() + 300
    while not (path.is_file() and path.read_bytes().count(b"\n") >= 2):
        assert process.poll() is None, "ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    first = path.read_bytes()
    assert 2 <= first.count(b"\n") < 9
    while _is_group_alive(process.pid):  # workers notice at their next point
        assert time.monotonic() < deadline, "a worker is still there"
        time.sleep(0.05)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    soups(*words[3:])
    complete = first[: first.rfind(b"\n") + 1]
    assert path.read_bytes().startswith(complete)
    assert len(scores(tmp_path / "s")) == len(read_results(tmp_path / "s")) == 9
    sweep(models, tmp_path / "whole", "--points", 9)
    assert sorted(map(str, scores(tmp_path / "whole").values())) == sorted(map(str, scores(tmp_path / "s").values()))


def _is_group_alive(group: int) -> bool:
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, process_group = path.read_text().rpartition(")")[2].split()[:3]
        except OSError:  # it ended meanwhile
            continue
        if int(process_group) == group and state != "Z":
            return True
    return False


def test_modules_have_coefficients_of_their_own(models, tmp_path):
    out = tmp_path / "s"
    sweep(models, out, "--module", r"2\..*", "--points", 3)
    results = read_results(out)
    assert len(results) == 9
    mixed = next(r for r in results if r.coefficients == {"a": 1.0, "b": 0.0} and r.modules[r"2\..*"]["b"] == 1.0)
    state = {name: end(2 if name.startswith("2") else 1)[name] for name in end(1)}
    model = network()
    model.load_state_dict(state)
    with torch.no_grad():
        assert dict(mixed.scores) == errors(model)
    soups("front", out)
    assert json.loads((out / "front.json").read_text())["straight_line"] is None
    picked = json.loads(soups("pick", out, "--preference", "near_a=1,near_b=1", "--json"))
    assert picked["merge"] is None
    assert len(picked["choice"]["coefficients"]) == 4
    sweep(models, out, "--module", r"2\..*", "--weights", "0.5,0.5;0.2,0.8")
    assert len(read_results(out)) == 10
    assert "differs in: modules" in sweep(models, out, "--points", 3, code=2)
    assert "matches no tensor" in sweep(models, tmp_path / "t", "--module", "head", code=2)


def test_designs_of_a_sweep(models, tmp_path):
    def shares(*args: object) -> list[float]:
        out = tmp_path / "-".join(str(arg) for arg in args)
        return [p["coefficients"]["b"] for p in json.loads(sweep(models, out, *args, "--json"))["points"]]

    assert shares("--corners") == [0.0, 1.0]
    assert shares("--range", "-0.5,1.5", "--points", 5, "--extrapolate") == [-0.5, 0.0, 0.5, 1.0, 1.5]
    random = shares("--random", 3, "--seed", 1)
    assert random[:2] == [0.0, 1.0]
    assert len(set(random)) == 5
    assert "exclude each other" in sweep(models, tmp_path / "x", "--corners", "--points", 3, code=2)
    assert "not a range" in sweep(models, tmp_path / "x", "--range", "1,0", code=2)
    both = ("sweep", *models, "--evaluator", f"{ME}:evaluator", "--command", "c", "-o", tmp_path / "x")
    assert "two evaluators" in soups(*both, code=2)
    assert "no evaluator" in soups("sweep", *models, "-o", tmp_path / "x", code=2)


def test_the_front_compares_with_other_sets(models, tmp_path):
    sweep(models, tmp_path / "s", "--points", 5)
    sweep(models, tmp_path / "trained", "--corners")
    text = soups("front", tmp_path / "s", "--compare", f"morl={tmp_path / 'trained'}")
    assert "soups match 2 of 2 points of morl" in text
    data = json.loads((tmp_path / "s" / "front.json").read_text())
    assert [row["name"] for row in data["comparison"]["sets"]] == ["soups", "morl", "straight line"]
    assert data["comparison"]["sets"][0]["equal"]["num_points"] == 2
    assert data["labels"]["near_a"] == "Near a"
