"""Nothing mixes devices: training, generation, prediction and sweeps give on another one what they give on the CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from unival.device import find_device
from unival.errors import UserError

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("names", [["train"], ["generate", "predict", "sweep", "codec"]], ids=["train", "use"])
def test_a_device_gives_what_the_cpu_gives(names: list[str]) -> None:
    command = [sys.executable, "-m", "tests.on_device", *names]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    assert {name.split(":")[0] for name in found} == set(names)
    problems = [f"{name}: {problem}" for name, problem in found.items() if problem]
    assert not problems, "\n".join(problems)


def test_a_tensor_that_stayed_on_the_cpu_is_found() -> None:
    code = "from tests import device; import torch; torch.ones(2).to(device.DEVICE) + torch.ones(2)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert "expected all tensors to be on one device" in done.stderr


@pytest.mark.parametrize(
    ("name", "num_gpus", "found"), [("auto", 0, "cpu"), ("auto", 2, "cuda"), ("cuda:1", 2, "cuda:1")]
)
def test_a_gpu_is_taken_where_there_is_one(
    monkeypatch: pytest.MonkeyPatch, name: str, num_gpus: int, found: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: num_gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: num_gpus)
    assert find_device(name) == torch.device(found)


@pytest.mark.parametrize(
    ("name", "num_gpus", "message"),
    [("cuda", 0, "no GPU that torch can use"), ("cuda:2", 2, "no GPU 2"), ("gpu", 1, "no such device: 'gpu'")],
)
def test_a_device_that_is_not_there_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, num_gpus: int, message: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: num_gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: num_gpus)
    with pytest.raises(UserError, match=message):
        find_device(name)
