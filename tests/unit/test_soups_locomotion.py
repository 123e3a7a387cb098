"""Trainers of studies: policies of a toy robot; how they mix and score."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from soups.errors import UserError
from soups.evaluators import locomotion
from soups.study.config import load_settings

ROOT = Path(__file__).resolve().parents[2]


class Cart:
    """One number to push: the forward reward is the push, the cost its square, and a push above 2 falls over."""

    action_space = SimpleNamespace(low=np.full(1, -1.5), high=np.full(1, 1.5))

    def reset(self, seed: int) -> tuple[np.ndarray, dict[str, Any]]:
        self.time, self.place = 0, float(seed % 3)
        return np.array([self.place]), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, Mapping[str, float]]:
        self.time, push = self.time + 1, float(action[0])
        info = {"reward_forward": push, "reward_ctrl": -(push**2), "x_position": self.place}
        return np.array([self.place]), 0.0, False, self.time == 4, info


def policy(scale: float) -> dict[str, torch.Tensor]:
    """The push is tanh of the normalised place, times a scale."""
    return {
        "mlp_extractor.policy_net.0.weight": torch.ones(1, 1),
        "mlp_extractor.policy_net.0.bias": torch.zeros(1),
        "mlp_extractor.value_net.0.weight": torch.ones(1, 1),
        "action_net.weight": torch.full((1, 1), scale),
        "action_net.bias": torch.zeros(1),
        "log_std": torch.zeros(1),
        locomotion.MEAN: torch.ones(1),
        locomotion.STD: torch.full((1,), 0.5),
    }


def test_a_policy_is_scored_by_what_its_most_probable_actions_earn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_file(policy(0.5), tmp_path / "policy.safetensors")
    monkeypatch.setattr(locomotion, "open_env", lambda name: Cart())
    scores = {"risky": {"forward": 1.0}, "cautious": {"forward": 1.0, "ctrl": 2.0}}
    judge = locomotion.evaluator(tmp_path / "policy.safetensors", scores, episodes=3, seed=0)
    pushes = 0.5 * np.tanh((np.arange(3) - 1.0) / 0.5)
    found = judge.evaluate()
    assert found["risky"] == pytest.approx((4 * pushes).tolist())
    assert found["cautious"] == pytest.approx((4 * pushes - 8 * pushes**2).tolist())
    judge.state()["action_net.weight"].fill_(100.0)  # the live tensors: pushes stay inside the bounds of actions
    assert judge.evaluate()["risky"] == pytest.approx([-6.0, 0.0, 6.0])
    with pytest.raises(UserError, match="no reward 'survive'"):
        locomotion.evaluator(tmp_path, {"a": {"survive": 1.0}}).evaluate()
    save_file({"w": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match=r"no policy: it has no observation\.mean"):
        locomotion.evaluator(tmp_path / "other.safetensors", scores)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "policy.safetensors").write_bytes(b"no")
    for path in ("absent.safetensors", "broken", "broken/policy.safetensors"):
        with pytest.raises(UserError, match="cannot read the policy"):
            locomotion.evaluator(tmp_path / path, scores)


def test_a_simulator_that_does_not_load_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "mujoco.py").write_text("raise ImportError('Version mismatch\\n  of mujoco')")
    monkeypatch.setitem(sys.modules, "gymnasium", SimpleNamespace())
    monkeypatch.delitem(sys.modules, "mujoco", raising=False)
    with pytest.raises(UserError, match="no simulator: Version mismatch of mujoco") as caught:
        locomotion.open_env("HalfCheetah-v5")
    assert "unival[locomotion]" in str(caught.value)


def test_warnings_of_the_simulator_go_to_stderr_and_into_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """MuJoCo writes MUJOCO_LOG.TXT into the current folder unless somebody takes its warnings."""
    handlers: list[Any] = []
    error = SimpleNamespace(Error=RuntimeError)
    monkeypatch.setitem(sys.modules, "mujoco", SimpleNamespace(set_mju_user_warning=handlers.append))
    monkeypatch.setitem(sys.modules, "gymnasium", SimpleNamespace(make=lambda name, **options: name, error=error))
    assert locomotion.open_env("HalfCheetah-v5") == "HalfCheetah-v5"
    handlers[0]("'settotalmass' is deprecated")
    handlers[0]("Nan in QACC")
    assert capsys.readouterr().err == "MuJoCo: Nan in QACC\n"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # those of the simulator
def test_a_policy_keeps_the_statistics_of_its_start(tmp_path: Path) -> None:
    pytest.importorskip("stable_baselines3", reason="needs the extra `locomotion`")
    pytest.importorskip("mujoco", reason="needs the extra `locomotion`", exc_type=ImportError)
    from soups.trainers import ppo

    config = ROOT / "configs/soups/train/locomotion.yaml"
    small = ["steps=64", "rollout=64", "batch=32", "epochs=2", "env=Hopper-v5", "hidden=[8]"]

    def train(name: str, *overrides: str) -> dict[str, torch.Tensor]:
        out = tmp_path / name
        ppo.train(load_settings(config, [*small, f"out={out}", *overrides], ppo.Settings, ""))
        return load_file(out / ppo.POLICY)

    start = train("start")
    path = f"start={tmp_path / 'start' / ppo.POLICY}"
    risky, cautious = train("risky", path), train("cautious", path, "rewards={forward: 1.0, ctrl: 1.0}")
    assert start.keys() == risky.keys() == cautious.keys()
    for name in (ppo.MEAN, ppo.STD):
        assert torch.equal(start[name], risky[name])
        assert torch.equal(start[name], cautious[name])
    assert not torch.equal(risky["action_net.weight"], cautious["action_net.weight"])
    scores = {"risky": {"forward": 1.0}, "alive": {"survive": 1.0}}
    judge = locomotion.evaluator(tmp_path / "risky" / ppo.POLICY, scores, env="Hopper-v5", episodes=2)
    first = judge.evaluate()
    assert judge.evaluate() == first  # the same beginnings
    assert all(value > 0 for value in first["alive"])
    with pytest.raises(UserError, match="has no reward 'speed'"):
        train("other", "rewards={speed: 1.0}")
    with pytest.raises(UserError, match="the start does not fit"):
        train("other", path, "hidden=[9]")
    with pytest.raises(UserError, match="cannot read the policy"):
        train("other", "start=absent.safetensors")
    with pytest.raises(UserError, match="cannot open the task"):
        train("other", "env=Pong-v5")
