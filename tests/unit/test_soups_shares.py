"""Which share of a sweep a process has, and which GPU."""

import os

import pytest

from soups import shares
from soups.shares import Share, launched_share, take_gpu


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_shares_are_all_points_and_each_once(count):
    points = [(i / 10, 1 - i / 10) for i in range(11)]
    found = [point for index in range(count) for point in Share(index, count).of(points)]
    assert sorted(found) == points
    assert max(len(Share(i, count).of(points)) for i in range(count)) == -(-11 // count)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, Share()),
        ({"RANK": "2", "WORLD_SIZE": "4"}, Share(2, 4)),
        ({"RANK": "0", "WORLD_SIZE": "1"}, Share()),
        ({"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "3"}, Share(1, 3)),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "3"}, Share()),  # a batch script is one process
        ({"RANK": "x", "WORLD_SIZE": "4"}, Share()),
    ],
)
def test_the_launcher_says_which_share(environment, expected):
    assert launched_share(environment) == expected


def test_processes_of_a_machine_take_its_gpus_in_turn(tmp_path, monkeypatch):
    for name in ("0000:01", "0000:02"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(shares, "GPUS", tmp_path)
    for name in ("CUDA_VISIBLE_DEVICES", "SLURM_LOCALID"):
        monkeypatch.setenv(name, "")  # so that what was there before is put back in the end
        monkeypatch.delenv(name)
    monkeypatch.setenv("LOCAL_RANK", "3")
    take_gpu()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "1"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6")
    take_gpu()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "4"
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr(shares, "GPUS", tmp_path / "none")
    take_gpu()
    assert "CUDA_VISIBLE_DEVICES" not in os.environ
