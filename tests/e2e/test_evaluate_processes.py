"""`torchrun ... unival evaluate`: two processes give the predictions of one, also after a kill."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from unival.yaml12 import write_yaml

pytestmark = pytest.mark.slow
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def suite(folder: Path) -> Path:
    world = {"world": "test", "limit": 6}
    evaluations = [
        {"name": "caption", "task": "caption", "source": world, "batch_size": 2, "num_beams": 2},
        {"name": "vqa", "task": "vqa", "source": world, "batch_size": 3},
    ]
    path = folder / "suite.yaml"
    path.write_text(write_yaml({"evaluations": evaluations}), encoding="utf-8")
    return path


def command(path: Path, out: Path, *launcher: str) -> list[str]:
    return [sys.executable, *launcher, "-m", "unival.cli", "evaluate", str(path), "--out", str(out), "--json"]


def predictions(out: Path) -> dict[str, str]:
    return {path.name: path.read_text(encoding="utf-8") for path in sorted(out.glob("predictions-*.jsonl"))}


def test_two_processes_give_the_files_of_one(tmp_path: Path) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    path = suite(tmp_path)
    subprocess.run(command(path, tmp_path / "one"), env=environment, check=True, capture_output=True)
    launched = subprocess.run(
        command(path, tmp_path / "two", *TORCHRUN), env=environment, check=True, capture_output=True, text=True
    )
    assert json.loads(launched.stdout) == json.loads((tmp_path / "one" / "evaluation.json").read_text())
    assert predictions(tmp_path / "two") == predictions(tmp_path / "one")
    assert json.loads((tmp_path / "two" / "metrics.json").read_text())["vqa"]["processes"] == 2


def test_a_killed_evaluation_goes_on_with_another_number_of_processes(tmp_path: Path) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    path, out = suite(tmp_path), tmp_path / "out"
    subprocess.run(command(path, tmp_path / "whole"), env=environment, check=True, capture_output=True)
    running = subprocess.Popen(command(path, out), env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE)
    while running.poll() is None and not any(out.glob(".unfinished/*/*.jsonl")):
        time.sleep(0.01)
    running.send_signal(signal.SIGKILL)
    running.communicate()
    subprocess.run(command(path, out, *TORCHRUN), env=environment, check=True, capture_output=True)
    assert predictions(out) == predictions(tmp_path / "whole")
    assert not (out / ".unfinished").exists()
