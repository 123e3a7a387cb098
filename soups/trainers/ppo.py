"""Train a policy of a simulated robot on parts of its reward: PPO of stable-baselines3 in a MuJoCo task of gymnasium.

    python -m soups.trainers.ppo configs/soups/train/locomotion.yaml out=runs/risky 'rewards={forward: 1}' steps=30000

A reward is a weighted sum of the parts that the task reports (`reward_forward` and `reward_ctrl` in `info`, and
`reward_survive` where a robot can fall), with the cost of actions at weight one: rewarded soups' velocity minus alpha
times the squared actions (Ramé et al. 2023, arXiv:2306.04488, locomotion). The statistics that normalise observations
are learned with the start and frozen afterwards, so that weights of different trainings mean the same. A policy is a
file of tensors: those of stable-baselines3, and `observation.mean` and `observation.std`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from soups.errors import UserError, did_you_mean
from soups.evaluators.locomotion import CLIP, MEAN, STD, open_env, read_policy, reward_parts
from soups.trainers.entry import TrainerSettings, output, run

if TYPE_CHECKING:
    import torch

POLICY = "policy.safetensors"


class Settings(TrainerSettings):
    """One training; `out` gets the policy, `policy.safetensors`. `steps` are of the simulation, in whole rollouts."""

    start: str = ""
    """Policy to begin with, whose statistics of observations are kept. Without one, training begins from scratch."""
    env: str = "HalfCheetah-v5"
    """MuJoCo task of gymnasium."""
    rewards: dict[str, float] = Field(min_length=1)
    """Weights of the parts of the reward, such as `forward` and `ctrl`."""
    envs: int = Field(default=1, gt=0)
    rollout: int = Field(default=2048, gt=0)
    """Steps of each simulation between updates."""
    batch: int = Field(default=64, gt=0)
    epochs: int = Field(default=10, gt=0)
    lr: float = Field(default=3e-4, gt=0)
    gamma: float = Field(default=0.99, gt=0, le=1)
    clip: float = Field(default=0.2, gt=0)
    entropy: float = Field(default=0.0, ge=0)
    hidden: list[int] = Field(default=[64, 64], min_length=1)
    """Widths of the layers of the policy and of the value."""


def train(settings: Settings, report: Callable[[str], None] = lambda line: None) -> None:
    """Train and write the policy, whole or not at all.

    Raises:
        UserError: a package is missing, the task has no such reward, or the start does not fit.
    """
    try:
        from stable_baselines3 import PPO  # pyright: ignore[reportMissingImports]  # an extra
        from stable_baselines3.common.vec_env import (  # pyright: ignore[reportMissingImports]
            DummyVecEnv,
            VecNormalize,
        )
    except ImportError as error:
        raise UserError(f"cannot import {error.name}", fix='pip install "unival[locomotion]"') from None
    from safetensors.torch import save_file

    start = read_policy(Path(settings.start)) if settings.start else {}
    frozen = {MEAN: start.pop(MEAN).numpy(), STD: start.pop(STD).numpy()} if start else None
    simulations = DummyVecEnv([lambda: make_env(settings.env, settings.rewards, frozen)] * settings.envs)
    # The scale of the reward is learned anew by each training: it moves no weights of the policy by itself.
    normalised = VecNormalize(simulations, norm_obs=not frozen, clip_obs=CLIP, gamma=settings.gamma)
    options = {"n_steps": settings.rollout, "batch_size": settings.batch, "n_epochs": settings.epochs}
    options |= {"learning_rate": settings.lr, "gamma": settings.gamma, "clip_range": settings.clip}
    shape = {"net_arch": {"pi": settings.hidden, "vf": settings.hidden}}
    model = PPO(
        "MlpPolicy",
        normalised,
        ent_coef=settings.entropy,
        policy_kwargs=shape,
        seed=settings.seed,
        device="cpu",
        **options,
    )
    if start:
        try:
            model.policy.load_state_dict(start)
        except RuntimeError as error:
            what = str(error).splitlines()[-1].strip()
            raise UserError(
                f"the start does not fit: {what}", where=settings.start, fix="same env and hidden"
            ) from None
    model.learn(settings.steps)
    returns = [episode["r"] for episode in model.ep_info_buffer or []]
    report(f"{model.num_timesteps} steps, last episodes: {sum(returns) / max(len(returns), 1):.1f}")
    tensors = {name: tensor.detach().clone().contiguous() for name, tensor in model.policy.state_dict().items()}
    tensors |= statistics(normalised, frozen)
    with output(settings) as folder:
        save_file(tensors, folder / POLICY, metadata={"env": settings.env})


def statistics(normalised: Any, frozen: Mapping[str, Any] | None) -> dict[str, torch.Tensor]:
    """Return mean and standard deviation of observations: those of the start, or those that were learned."""
    import torch

    if frozen is not None:
        return {name: torch.from_numpy(values.copy()) for name, values in frozen.items()}
    learned = normalised.obs_rms
    std = (torch.from_numpy(learned.var) + normalised.epsilon).sqrt()
    return {MEAN: torch.from_numpy(learned.mean.copy()).float(), STD: std.float()}


def make_env(name: str, rewards: Mapping[str, float], frozen: Mapping[str, Any] | None) -> Any:
    """Return the task with a mixed reward and, if there are any, frozen statistics of observations.

    Raises:
        UserError: there is no such task, or it reports no such reward.
    """
    import numpy as np
    from gymnasium import Wrapper  # pyright: ignore[reportMissingImports]  # an extra
    from stable_baselines3.common.monitor import Monitor  # pyright: ignore[reportMissingImports]

    class Mixed(Wrapper):
        """The task with another reward, and observations as the policy sees them."""

        def reset(self, **options: Any) -> tuple[Any, dict[str, Any]]:
            observation, info = self.env.reset(**options)
            return self.seen(observation), info

        def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
            observation, _, terminated, truncated, info = self.env.step(action)
            parts = reward_parts(info)
            for part in rewards.keys() - parts.keys():
                raise UserError(f"{name} has no reward {part!r}", where="rewards", fix=did_you_mean(part, parts))
            reward = sum(weight * parts[part] for part, weight in rewards.items())
            return self.seen(observation), reward, terminated, truncated, info

        def seen(self, observation: Any) -> Any:
            if frozen is None:
                return observation
            return np.clip((observation - frozen[MEAN]) / frozen[STD], -CLIP, CLIP).astype(np.float32)

    return Monitor(Mixed(open_env(name)))


if __name__ == "__main__":
    run(Settings, train, "soups/trainers/ppo.py explains the keys")
