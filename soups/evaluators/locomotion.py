"""Score policies of simulated robots, such as those of `soups.trainers.ppo`: what an episode earns.

    soups sweep runs/risky/policy.safetensors runs/cautious/policy.safetensors \
        --evaluator soups.evaluators.locomotion:evaluator \
        --arg 'scores={"risky": {"forward": 1}, "cautious": {"forward": 1, "ctrl": 1}}' -o runs/sweep

A score is a weighted sum of the parts of the reward over an episode. A sample is an episode that begins in a state of
its own; all mixtures begin in the same ones. Needs gymnasium and MuJoCo, and no library of reinforcement learning.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from soups.errors import UserError

if TYPE_CHECKING:
    import torch

HIDDEN = "mlp_extractor.policy_net.{}.{}"  # names of stable-baselines3
OUTPUT = "action_net.{}"
MEAN, STD = "observation.mean", "observation.std"
CLIP = 10.0  # of normalised observations, in standard deviations
PREFIX = "reward_"  # of the parts of a reward in `info`
MAX_STEPS = 10_000  # tasks of gymnasium end after 1,000


class LocomotionEvaluator:
    """Plays episodes with the most probable actions.

    Args:
        tensors: a policy; a sweep writes mixtures into them.
        env: the task.
        scores: weights of the parts of the reward, by score.
        episodes: how many.
        seed: of the first one's beginning.
    """

    def __init__(
        self,
        tensors: dict[str, torch.Tensor],
        env: Any,
        scores: Mapping[str, Mapping[str, float]],
        episodes: int,
        seed: int,
    ) -> None:
        self._tensors, self._env, self._scores = tensors, env, scores
        self._episodes, self._seed = episodes, seed

    def state(self) -> dict[str, torch.Tensor]:
        """Return the live tensors of the policy."""
        return self._tensors

    def evaluate(self) -> dict[str, list[float]]:
        """Return the scores of every episode."""
        arrays = {name: tensor.double().numpy() for name, tensor in self._tensors.items()}
        earned = [self._play(arrays, self._seed + number) for number in range(self._episodes)]
        return {
            name: [sum(weight * parts[part] for part, weight in weights.items()) for parts in earned]
            for name, weights in self._scores.items()
        }

    def _play(self, arrays: Mapping[str, Any], seed: int) -> dict[str, float]:
        """Return the parts of the reward, summed over an episode."""
        total = dict.fromkeys((part for weights in self._scores.values() for part in weights), 0.0)
        observation, _ = self._env.reset(seed=seed)
        for _ in range(MAX_STEPS):
            observation, _, terminated, truncated, info = self._env.step(self._action(arrays, observation))
            parts = reward_parts(info)
            for part in total:
                if part not in parts:
                    raise UserError(f"no reward {part!r}", where="scores", fix=f"there are: {', '.join(sorted(parts))}")
                total[part] += parts[part]
            if terminated or truncated:
                break
        return total

    def _action(self, arrays: Mapping[str, Any], observation: Any) -> Any:
        """Return the mean of the policy's distribution, inside the bounds of actions."""
        import numpy as np

        x, layer = np.clip((observation - arrays[MEAN]) / arrays[STD], -CLIP, CLIP), 0
        while HIDDEN.format(layer, "weight") in arrays:
            x = np.tanh(arrays[HIDDEN.format(layer, "weight")] @ x + arrays[HIDDEN.format(layer, "bias")])
            layer += 2  # an activation stands between
        x = arrays[OUTPUT.format("weight")] @ x + arrays[OUTPUT.format("bias")]
        return np.clip(x, self._env.action_space.low, self._env.action_space.high)


def evaluator(
    checkpoint_path: Path,
    scores: Mapping[str, Mapping[str, float]],
    env: str = "HalfCheetah-v5",
    episodes: int = 10,
    seed: int = 1000,
) -> LocomotionEvaluator:
    """Open a policy and its task.

    Args:
        checkpoint_path: a file of tensors with the names of stable-baselines3 (`MlpPolicy`, tanh).
        scores: weights of the parts of the reward (`forward`, `ctrl`, `survive`), by score.
        env: MuJoCo task of gymnasium.
        episodes: samples of a score.
        seed: of the first one's beginning; the others count on.

    Raises:
        UserError: gymnasium or the task is missing, or the file is no policy.
    """
    tensors = read_policy(Path(checkpoint_path))
    return LocomotionEvaluator(tensors, open_env(env), scores, episodes, seed)


def read_policy(path: Path) -> dict[str, torch.Tensor]:
    """Read the tensors of a policy: a file, or one in a folder.

    Raises:
        UserError: there is none, or it is no policy.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    fix = "train one: soups.trainers.ppo"
    try:
        tensors = load_file(next(path.glob("*.safetensors"), path) if path.is_dir() else path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot read the policy: {error}", where=str(path), fix=fix) from None
    missing = [name for name in (MEAN, STD, OUTPUT.format("weight")) if name not in tensors]
    if missing:
        raise UserError(f"no policy: it has no {missing[0]}", where=str(path), fix=fix)
    return tensors


def open_env(name: str) -> Any:
    """Return a task, with the cost of actions at weight one.

    Raises:
        UserError: gymnasium or MuJoCo is not installed, or there is no such task.
    """
    try:
        import gymnasium  # pyright: ignore[reportMissingImports]  # an extra
        import mujoco  # pyright: ignore[reportMissingImports]
    except ImportError as error:  # parts of MuJoCo of different versions too
        what = " ".join(str(error).split())
        raise UserError(f"no simulator: {what}", fix='pip install "unival[locomotion]"') from None
    mujoco.set_mju_user_warning(_warn)
    try:
        return gymnasium.make(name, ctrl_cost_weight=1.0)
    except (gymnasium.error.Error, TypeError) as error:
        what = f"cannot open the task: {error}"
        raise UserError(what, where=name, fix="such as HalfCheetah-v5 or Hopper-v5") from None


def _warn(text: str) -> None:
    """Print what the simulator warns of; by itself it writes a file MUJOCO_LOG.TXT wherever the command was started."""
    if "is deprecated" not in text:  # of the tasks' own XML files
        print(f"MuJoCo: {text}", file=sys.stderr, flush=True)


def reward_parts(info: Mapping[str, Any]) -> dict[str, float]:
    """Return the parts of a step's reward by name, such as `forward` and `ctrl`."""
    return {key.removeprefix(PREFIX): float(value) for key, value in info.items() if key.startswith(PREFIX)}
