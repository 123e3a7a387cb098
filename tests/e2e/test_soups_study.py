"""A whole study with a trainer that costs nothing: its report, what is done again and what is not, and kill -9."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

import pytest
from typer.testing import CliRunner

from soups.cli import app
from soups.errors import UserError
from soups.state import write_bytes
from soups.study.config import load_study
from soups.study.parts import environments, run
from soups.study.run import run_study

# A model is two numbers; a reward is near its own target, so that mixtures are better than their ends' mean.
TRAINER = """
import argparse, json, pathlib, struct

parser = argparse.ArgumentParser()
for name in ("start", "out", "rewards", "seed", "rate"):
    parser.add_argument("--" + name)
args = parser.parse_args()
targets = {"east": (1.0, 0.0), "north": (0.0, 1.0), "up": (0.6, 0.6)}

def read(path):
    data = pathlib.Path(path, "model.safetensors").read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    return struct.unpack("<2f", data[8 + size : 16 + size])

def write(folder, values):
    header = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    header += b" " * (-len(header) % 8)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + struct.pack("<2f", *values))

if __name__ == "__main__":
    rewards = json.loads(args.rewards)
    total = sum(rewards.values())
    goal = [sum(weight * targets[name][k] for name, weight in rewards.items()) / total for k in (0, 1)]
    start, rate = read(args.start), float(args.rate)
    noise = (int(args.seed) - 1) * 0.02
    out = pathlib.Path(args.out)
    with open("trained.txt", "a") as log:
        log.write(args.out + "\\n")
    write(out / "model", [s + rate * (g - s) + noise for s, g in zip(start, goal)])
"""
SCORES = """
import torch
from soups.evaluators.function import ModelEvaluator
from torch import nn

TARGETS = {"east": (1.0, 0.0), "north": (0.0, 1.0), "up": (0.6, 0.6)}

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(2))

def scores(w, shift, samples):
    noise = torch.linspace(-1, 1, samples)[:, None] * torch.tensor([0.2, -0.1])
    table = {}
    for name, target in TARGETS.items():
        goal = torch.tensor(target) + shift + noise
        table[name] = (1 - (w - goal).square().sum(dim=1)).tolist()
    table["mean"] = [sum(values) / 3 for values in zip(*table.values())]
    return table

def evaluator(path, shift=0.0, samples=40):
    def samples_of(model):
        return [{"uid": "1", "prompt": "where", "output": f"{float(model.w[0]):.2f} {float(model.w[1]):.2f}"}]
    return ModelEvaluator(Model(), lambda model: scores(model.w.detach(), shift, samples), samples_of)

class Ensemble:
    def __init__(self, paths, shift, samples):
        from safetensors.torch import load_file
        self.models = [load_file(path / "model.safetensors")["w"] for path in paths]
        self.shift, self.samples = shift, samples

    def evaluate(self, weights):
        mixed = sum(weight * w for weight, w in zip(weights, self.models))
        return scores(mixed, self.shift, self.samples)

def ensemble(paths, shift=0.0, samples=40):
    return Ensemble(paths, shift, samples)
"""
STUDY = """
title: Two numbers
question: Do soups of "two numbers" <b>work</b>?
start: start
train:
  command: python trainer.py --start {start} --out {out} --rewards {rewards} --seed {seed} --rate {rate}
  model: model
  values: {rate: 0.9}
specialists:
  east: {rewards: {east: 1.0}, metric: east}
  north: {rewards: {north: 1.0}, metric: north}
  up: {rewards: {up: 1.0}, metric: up}
seeds: [1, 2]
resamples: 50
evaluation:
  evaluator: "study_scores:evaluator"
  ensemble: "study_scores:ensemble"
  splits:
    test: {}
    far: {args: {shift: 0.2}, ood: true}
  selection: {shift: 0.01}
pairs: [{of: [east, north], points: 5, morl: 1, ensemble: 1, chains: [ratatouille]}]
spider: {of: [east, north, up]}
merges:
  uniform: {}
  greedy: {method: greedy, metric: mean}
  TIES: {method: ties, params: {density: 1.0}}
  WiSE-FT of one: {start_weight: 0.5, each: true}
  fusing: {chain: fusing}
  ratatouille: {chain: ratatouille}
paths: [{of: [east, up], metric: north, points: 3, group: rewards}]
"""
NUM_TRAININGS = 2 * (3 + 1 + 1 + 3 + 6)  # by seed: specialists, MORL of the pair and of all, fusing, ratatouille


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in [name for name in sys.modules if name == "study_scores"]:
        monkeypatch.delitem(sys.modules, name)
    Path("trainer.py").write_text(TRAINER)
    Path("study_scores.py").write_text(SCORES)
    Path("study.yaml").write_text(STUDY)
    header = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    header += b" " * (-len(header) % 8)
    Path("start").mkdir()
    Path("start/model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing is most of the time of a study of two numbers."""
    monkeypatch.setattr("soups.study.run.save_figures", two_small_figures)


def trainings() -> list[str]:
    path = Path("trained.txt")
    return path.read_text().splitlines() if path.is_file() else []


def without_times(report: dict) -> dict:
    return {key: value for key, value in report.items() if key != "timing"}


@pytest.mark.usefixtures("undrawn")
def test_a_start_in_bfloat16_mixes_with_specialists_in_float32(tmp_path: Path) -> None:
    Path("trainer.py").write_text(TRAINER.replace("read(args.start), float", "(0.0, 0.0), float"))
    merges = {"WiSE-FT": {"start_weight": 0.5}, "TIES": {"method": "ties", "params": {"density": 1.0}}}
    changes = ["seeds=[1]", "pairs=[]", "paths=[]", "spider=null", f"merges={json.dumps(merges)}"]
    found = []
    for kind, num_bytes in (("F32", 8), ("BF16", 4)):  # both hold two zeros
        header = json.dumps({"w": {"dtype": kind, "shape": [2], "data_offsets": [0, num_bytes]}}).encode()
        header += b" " * (-len(header) % 8)
        content = len(header).to_bytes(8, "little") + header + bytes(num_bytes)
        Path("start/model.safetensors").write_bytes(content)
        run_study(load_study(Path("study.yaml"), changes), tmp_path / kind)
        found.append(json.loads((tmp_path / kind / "report.json").read_text()))
    assert found[1]["models"] == found[0]["models"]
    assert found[1]["merges"] == found[0]["merges"]
    assert "WiSE-FT" in found[1]["merges"]["names"]


def test_a_study_gives_one_report_with_everything(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["study", "run", "study.yaml", "-o", "out", "--json"])
    assert done.exit_code == 0, done.output + repr(done.exception)
    report = json.loads(Path("out/report.json").read_text())
    assert json.loads(done.stdout) == report
    assert len(trainings()) == NUM_TRAININGS
    front = report["fronts"][0]
    # 1 - |w - goal|^2 falls short by the square of the distance: halfway between (.9, 0) and (0, .9), twice .45^2 more
    # than the mean of the ends; the same at both rewards.
    assert front["hypotheses"]["lmc"]["verdict"] == "supported"
    assert front["hypotheses"]["lmc"]["num_below"] == 0
    east = [point["metrics"]["east"]["value"] for point in front["front"]["points"]]
    assert east[2] - (east[0] + east[4]) / 2 == pytest.approx(0.9**2 / 2, abs=1e-6)
    # The trainer is linear in the rewards, so MORL is the soup, and so is the ensemble.
    for key in ("equal points/MORL/hypervolume", "equal points/prediction ensemble/igd_plus"):
        assert front["numbers"][key]["value"] == pytest.approx(0, abs=1e-6)
        assert len(front["numbers"][key]["per_seed"]) == 2
    assert front["hypotheses"]["pareto"]["verdict_at_equal_cost"] == "supported"
    assert front["numbers"]["hypervolume/ratatouille"]["value"] > 0
    assert front["knee"]["coefficients"] == {"east": 0.5, "north": 0.5}
    assert [column["north"] for column in front["samples"]["columns"]] == [0, 0.25, 0.5, 0.75, 1]
    assert front["samples"]["rows"][0]["shared"] == {"prompt": "where"}
    assert report["spider"]["soup_minus_morl"]["up"]["value"] == pytest.approx(0, abs=1e-6)
    merges = report["merges"]
    assert merges["names"][:3] == ["uniform", "greedy", "TIES"]
    assert {"WiSE-FT of one: up", "fusing", "ratatouille"} <= set(merges["names"])
    lead = merges["leads"]["far"]["mean"]["rows"]["uniform"]["over_best_single"]
    assert lead["low"] <= lead["value"] <= lead["high"]
    apart = (0.36**2 + 0.54**2) ** 0.5  # of (.9, 0) and (.54, .54); the second seed moves both by (.02, .02)
    assert report["paths"][0]["distance"] == pytest.approx((apart / 0.9 + apart / (0.92**2 + 0.02**2) ** 0.5) / 2)
    assert len(report["timing"]["training_seconds"]) == NUM_TRAININGS


def test_the_page_needs_nothing_from_outside() -> None:
    run_study(load_study(Path("study.yaml"), ["seeds=[1]", "merges={}"]), Path("out"))
    page = Path("out/report.html").read_text()
    assert not re.search(r'(?:src|href)="(?!data:|#)', page)
    assert "<script" not in page
    assert "&lt;b&gt;work&lt;/b&gt;" in page
    assert page.count("data:image/png;base64,") == 5
    for name in json.loads(Path("out/report.json").read_text())["figures"].values():
        assert Path("out", name).read_bytes().startswith(b"\x89PNG")


@pytest.mark.usefixtures("undrawn")
def test_workers_change_no_number() -> None:
    study = load_study(Path("study.yaml"), ["seeds=[1]", "resamples=20"])
    alone = run_study(study, Path("alone"))
    order = trainings()
    together = run_study(study, Path("together"), num_workers=2)
    assert without_times(together) == without_times(alone)
    again = [out.replace("together", "alone") for out in trainings()[len(order) :]]
    assert sorted(again) == sorted(order)
    position = {Path(out).parent.name.rpartition("-")[0]: index for index, out in enumerate(again)}
    assert position["east-from-mean"] > max(position[name] for name in ("east", "north", "up"))


@pytest.mark.parametrize("num_workers", [1, 2])
def test_what_other_trainings_reached_is_kept_when_one_fails(num_workers: int) -> None:
    Path("trainer.py").write_text(TRAINER.replace("goal = [", "assert 'north' not in rewards\n    goal = ["))
    study = load_study(Path("study.yaml"), ["seeds=[1]", "merges={}", "spider=null", "paths=[]"])
    with pytest.raises(UserError, match="AssertionError"):
        run_study(study, Path("out"), num_workers=num_workers)
    done = {path.parent.name.partition("-")[0] for path in Path("out").rglob("done.json")}
    assert "east" in done
    assert "north" not in done


def test_each_of_several_trainings_has_its_part_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("soups.study.parts.num_cores", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert environments(1) == [{}]
    assert environments(3) == [{"OMP_NUM_THREADS": "2"}] * 3
    monkeypatch.setattr("soups.study.parts.visible_gpus", lambda: ["4", "7"])
    assert [found["CUDA_VISIBLE_DEVICES"] for found in environments(3)] == ["4", "7", "4"]
    Path("said.py").write_text("import os\nprint(os.environ['OMP_NUM_THREADS'], os.environ['CUDA_VISIBLE_DEVICES'])\n")
    run(["python", "said.py"], Path("log.txt"), environments(3)[1])
    assert Path("log.txt").read_text() == "2 7\n"


@pytest.mark.usefixtures("undrawn")
def test_scores_are_those_of_the_content_of_a_file() -> None:
    text = SCORES.replace(
        "def evaluator(path, shift=0.0, samples=40):",
        "def evaluator(path, data, shift=0.0):\n    samples = int(Path(data).read_text())",
    )
    Path("study_scores.py").write_text("from pathlib import Path\n" + text)
    small = ["seeds=[1]", "merges={}", "spider=null", "paths=[]", "pairs.0.chains=[]", "pairs.0.ensemble=0"]
    study = load_study(Path("study.yaml"), [*small, "evaluation.selection=null", "evaluation.args.data=number.txt"])
    for samples in (20, 30):
        Path("number.txt").write_text(str(samples))
        assert run_study(study, Path("out"))["num_samples"] == samples
    assert len(trainings()) == 4


@pytest.mark.usefixtures("undrawn")
def test_trainers_that_read_files_are_given_files() -> None:
    text = TRAINER.replace('pathlib.Path(path, "model.safetensors")', "pathlib.Path(path)")
    Path("trainer.py").write_text(text)
    merges = "merges={fusing: {chain: fusing}}"
    small = ["seeds=[1]", merges, "spider=null", "paths=[]", "pairs=[]", "train.model=model/model.safetensors"]
    run_study(load_study(Path("study.yaml"), [*small, "start=start/model.safetensors"]), Path("out"))
    assert len(trainings()) == 6


@pytest.mark.usefixtures("undrawn")
def test_only_what_changed_is_done_again() -> None:
    small = ["seeds=[1]", "merges={}", "spider=null", "paths=[]", "pairs.0.chains=[]"]
    first = run_study(load_study(Path("study.yaml"), small), Path("out"))
    assert len(trainings()) == 4
    again = run_study(load_study(Path("study.yaml"), small), Path("out"))
    assert len(trainings()) == 4
    assert without_times(again) == without_times(first)
    run_study(load_study(Path("study.yaml"), [*small, "specialists.up.values.rate=0.5"]), Path("out"))
    assert len(trainings()) == 5
    run_study(load_study(Path("study.yaml"), [*small, "train.values.rate=0.5"]), Path("out"))
    assert len(trainings()) == 5 + 3  # `up` with this rate is there


@pytest.mark.usefixtures("undrawn")
def test_specialists_in_another_order_are_scored_in_folders_of_their_own() -> None:
    small = ["seeds=[1]", "merges={uniform: {}}", "spider=null", "paths=[]", "pairs=[]"]
    first = run_study(load_study(Path("study.yaml"), small), Path("out"))
    up = "  up: {rewards: {up: 1.0}, metric: up}\n"
    Path("study.yaml").write_text(STUDY.replace(up, "").replace("specialists:\n", "specialists:\n" + up))
    again = run_study(load_study(Path("study.yaml"), small), Path("out"))
    assert len(trainings()) == 3
    assert again["merges"]["names"] == first["merges"]["names"]


@pytest.mark.usefixtures("undrawn")
@pytest.mark.slow
def test_a_study_that_is_killed_at_every_write_ends_with_the_same_numbers() -> None:
    merges = "{greedy: {method: greedy, metric: mean}, fusing: {chain: fusing}}"
    overrides = [
        "seeds=[1]",
        "resamples=20",
        "spider=null",
        f"merges={merges}",
        "pairs.0.chains=[]",
        "pairs.0.points=3",
    ]
    assert not killed_at_write(10**9, "whole", overrides)
    number, num_kills, seen = 3, 0, set()
    while killed_at_write(number, "killed", overrides):
        num_kills += 1
        kept = [path for part in ("trainings", "merged", "scores") for path in Path("killed", part).rglob("*")]
        there = {(path, path.stat().st_size) for path in kept if path.is_file() and not path.name.endswith(".tmp")}
        number += (
            there <= seen
        )  # a run that kept nothing new was killed while it wrote the report: go one write further
        seen |= there
    assert num_kills > 10
    whole, killed = (json.loads(Path(name, "report.json").read_text()) for name in ("whole", "killed"))
    assert without_times(killed) == without_times(whole)
    assert not list(Path("killed").rglob("*.tmp"))


def two_small_figures(content: object, curves: object, root: Path) -> dict[str, str]:
    for name in ("a", "b"):
        write_bytes(root / "figures" / f"{name}.png", b"\x89PNG")
    return defaultdict(lambda: "figures/a.png")  # whatever the page asks for


def killed_at_write(number: int, folder: str, overrides: list[str]) -> bool:
    """Run the study in a child that ends itself by SIGKILL at a write; tell whether it came that far."""
    child = os.fork()
    if child == 0:
        real, count, code = os.fsync, [0], 1

        def fsync(file: int) -> None:
            count[0] += 1
            if count[0] == number:
                os.kill(os.getpid(), signal.SIGKILL)
            real(file)

        os.fsync = fsync
        try:
            run_study(load_study(Path("study.yaml"), overrides), Path(folder))
            code = 0
        finally:
            os._exit(code)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "the study failed"
    return os.WIFSIGNALED(status)


def test_a_training_ends_with_the_study_that_was_killed() -> None:
    """The study is a process that is killed while a training that never ends has started a process of its own."""
    Path("endless.py").write_text(
        "import os, subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "open('pids.txt', 'w').write(f'{os.getpid()} {child.pid}\\n')\n"
        "time.sleep(600)\n"
    )
    Path("asker.py").write_text(
        "import sys\nfrom pathlib import Path\nfrom soups.study.parts import run\n"
        "run(['python', 'endless.py', '{out}'], Path('log.txt'))\n"
    )
    root = Path(__file__).resolve().parents[2]
    asker = subprocess.Popen([sys.executable, "asker.py"], env={**os.environ, "PYTHONPATH": str(root)})
    try:
        pids = [int(pid) for pid in waited_for("pids.txt").split()]
        assert len(pids) == 2
    finally:
        asker.kill()
        asker.wait()
    wait_for_end(pids)


@pytest.mark.slow
def test_processes_that_score_end_with_the_study_that_was_killed() -> None:
    endless = (
        "    if multiprocessing.parent_process():  # the study itself scores the start before everything else\n"
        "        Path(f'{os.getpid()}.pid').write_text('here\\n')\n"
        "        time.sleep(600)\n"
        "    return ModelEvaluator"
    )
    text = SCORES.replace("    return ModelEvaluator", endless)
    Path("study_scores.py").write_text("import multiprocessing, os, time\nfrom pathlib import Path\n" + text)
    changes = ["seeds=[1]", "merges={}", "evaluation.selection=null", "spider=null", "paths=[]", "pairs.0.chains=[]"]
    words = [sys.executable, "-m", "soups", "study", "run", "study.yaml", *changes, "-o", "out", "--workers", "2"]
    root = Path(__file__).resolve().parents[2]
    asker = subprocess.Popen(words, env={**os.environ, "PYTHONPATH": f"{root}{os.pathsep}."})
    try:
        for _ in range(1200):
            pids = [int(path.stem) for path in Path().glob("*.pid")]
            if len(pids) == 2 or asker.poll() is not None:
                break
            time.sleep(0.1)
        assert len(pids) == 2
        assert asker.poll() is None
    finally:
        asker.kill()
        asker.wait()
    wait_for_end(pids)


def waited_for(name: str) -> str:
    for _ in range(1200):
        if Path(name).is_file() and Path(name).read_text().endswith("\n"):
            return Path(name).read_text()
        time.sleep(0.1)
    pytest.fail(f"no {name}")


def wait_for_end(pids: list[int]) -> None:
    for _ in range(600):
        if not any(is_running(pid) for pid in pids):
            return
        time.sleep(0.1)
    pytest.fail(f"of the processes {pids}, not all have ended")


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_failing_training_is_told_in_its_own_words() -> None:
    study = load_study(Path("study.yaml"), ["train.values.rate=fast"])
    with pytest.raises(UserError, match="could not convert string to float"):
        run_study(study, Path("out"))
    assert not list(Path("out").rglob("done.json"))


def test_a_training_without_a_checkpoint_is_refused() -> None:
    with pytest.raises(UserError, match="no checkpoint"):
        run_study(load_study(Path("study.yaml"), ["train.model=elsewhere"]), Path("out"))


def test_a_dry_run_writes_nothing() -> None:
    done = CliRunner().invoke(app, ["study", "run", "study.yaml", "-o", "out", "--dry-run", "--json"])
    rows = json.loads(done.stdout)["trainings"]
    assert len(rows) == NUM_TRAININGS
    assert not any(row["done"] for row in rows)
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("seeds", "not key=value"),
        ("sedes=[1]", "sedes: extra inputs"),
        ("pairs.0.of=[east, west]", "no specialist is called 'west'"),
        ("pairs.0.of=[east, east]", "same metric"),
        ("train.command=python trainer.py {start}", "no {out}"),
        ("train.command=python {stat} {out}", "unknown place {stat}"),
        ("start=nowhere", "nowhere"),
        ("specialists.east.metric=west", "the evaluator gives no metric 'west'"),
        ("paths.0.metric=west", "the evaluator gives no metric 'west'"),
        ("merges.greedy.metric=west", "the evaluator gives no metric 'west'"),
        ("merges.TIES.method=tise", "did you mean 'ties'"),
        ("merges.TIES.params.density=7", "density"),
        ("evaluation.evaluator=study_scores:evaluate", "no function 'evaluate'"),
        ("evaluation.splits.far.args.shfit=1", "cannot be called with these arguments"),
        ("evaluation.selection.shfit=1", "cannot be called with these arguments"),
        ("evaluation.ensemble=study_scores:together", "no function 'together'"),
        (
            "specialists.north={rewards: {east: 1}, reward_args: {east: {size: 2}}, metric: north}",
            "different reward_args",
        ),
        (
            "train.command=python trainer.py --start {start} --out {out} --rewards {rewards} --seed 1 --rate {rate}",
            "seeds 1 and 2 would train the same specialists",
        ),
        ("seeds=[3, 3]", "seeds 3 and 3 would train the same specialists"),
    ],
)
def test_what_does_not_fit_is_one_message(override: str, said: str) -> None:
    done = CliRunner().invoke(app, ["study", "run", "study.yaml", override, "-o", "out"])
    assert done.exit_code == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert not trainings()
