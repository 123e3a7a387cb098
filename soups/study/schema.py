"""What a study says; files under `configs/soups` are `Study`s.

title: Captions with two rewards
start: models/captioner
train: {command: "my-trainer --init {start} --reward {rewards} --seed {seed} --out {out}", model: last.safetensors}
specialists:
cider: {rewards: {cider: 1.0}, metric: cider}
brief: {rewards: {brevity: 1.0}, metric: brevity}
evaluation: {evaluator: "my_scores:evaluator", splits: {test: {args: {split: test}}}}
pairs: [{of: [cider, brief], points: 11, morl: 3}]
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Chain = Literal["vanilla", "fusing", "ratatouille"]
START = "start"


class Section(BaseModel):
    """Base of all sections: frozen, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Template(Section):
    """How a model is trained."""

    command: str = ""
    """A program, run without a shell. Places: `{out}` (its folder), `{start}`, `{seed}`, `{name}`, `{rewards}` and
    `{reward_args}` (JSON), and every name under `values` and `needs`. The same command in the same folder must go on
    or start over."""
    model: str = ""
    """The checkpoint that it writes, relative to `{out}`."""
    values: dict[str, Any] = Field(default_factory=dict)
    """Numbers and words of the command, by place, so that `train.values.steps=20` makes a small study."""


class Training(Template):
    """One model; what it leaves out is as in `train`."""

    rewards: dict[str, float] = Field(default_factory=dict)
    """Weights by reward: what `{rewards}` stands for. Trainings on mixed rewards (MORL) mix these."""
    reward_args: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Arguments of rewards, by reward: what `{reward_args}` stands for."""
    metric: str = ""
    """The metric of the evaluation that this specialist should be best in."""
    needs: dict[str, str] = Field(default_factory=dict)
    """Place to the name of the model that stands there; `start` is the study's start unless it is given here."""
    seed: int | None = None
    """Trained once with this seed, instead of once per seed of the study."""


class Split(Section):
    """Samples that models are scored on."""

    args: dict[str, Any] = Field(default_factory=dict)
    """Added to the arguments of the evaluation."""
    ood: bool = False
    """Whether the samples are of another distribution than those of the trainings."""


class Evaluation(Section):
    """How models are scored: per sample, higher is better, as in `soups sweep`."""

    evaluator: str
    """`module:function`; `soups.evaluators.command:evaluator` with `args: {command: ...}` runs a program."""
    args: dict[str, Any] = Field(default_factory=dict)
    splits: dict[str, Split] = Field(min_length=1)
    """By name. Fronts are drawn on the first."""
    selection: dict[str, Any] | None = None
    """Arguments of the samples that choose (greedy soup, the best of several merges); never reported as a result."""
    ensemble: str = ""
    """`module:function` that takes a list of checkpoints and the arguments, and returns an object whose
    `evaluate(weights)` scores the ensemble of their predictions."""


class Pair(Section):
    """Two specialists and what lies between them."""

    of: tuple[str, str]
    points: int = Field(default=11, ge=3)
    """Mixtures, both ends included."""
    morl: int = Field(default=0, ge=0)
    """Trainings on mixed rewards, evenly spaced between the ends (which are the specialists)."""
    ensemble: int = Field(default=0, ge=0)
    """Ensembles of the predictions, evenly spaced between the ends."""
    chains: list[Literal["fusing", "ratatouille"]] = Field(default_factory=list)
    """Further fronts, between the models that these chains make of the two targets."""


class Path(Section):
    """Two models that were trained on the same thing: is there a barrier between them?"""

    of: tuple[str, str]
    metric: str
    points: int = Field(default=5, ge=3)
    group: str = ""
    """What was varied: one colour in the figure."""


class Spider(Section):
    """Several rewards at once: the experts, their uniform soup, and one training on all rewards."""

    of: list[str] = Field(min_length=3)
    morl: bool = True


class Merge(Section):
    """One way to make one model of all specialists."""

    method: str = "linear"
    """A merge method of `soups methods`, or `greedy`."""
    params: dict[str, Any] = Field(default_factory=dict)
    metric: str = ""
    """Greedy: what must grow on the selection samples."""
    start_weight: float = Field(default=0.0, ge=0, lt=1)
    """Coefficient of the start (WiSE-FT); the specialists share the rest."""
    chain: Chain = "vanilla"
    """Which trainings are merged. `vanilla`: from the start. `fusing`: from the uniform mean of all vanilla
    specialists. `ratatouille`: from every other vanilla specialist."""
    each: bool = False
    """One model per specialist (with the start, or of its ratatouille trainings) instead of one of all."""


class Study(Section):
    """A whole study."""

    title: str
    question: str = ""
    paper: str = ""
    """What the papers report, for the page."""
    start: str
    """The checkpoint that all share: a path, or the name of a model under `starts`."""
    train: Template = Template()
    starts: dict[str, Training] = Field(default_factory=dict)
    """Models to begin with that have to be trained first."""
    specialists: dict[str, Training] = Field(min_length=1)
    seeds: list[int] = Field(default=[1], min_length=1)
    evaluation: Evaluation
    pairs: list[Pair] = Field(default_factory=list)
    spider: Spider | None = None
    merges: dict[str, Merge] = Field(default_factory=dict)
    paths: list[Path] = Field(default_factory=list)
    integers: Literal["error", "first"] = "error"
    """What to do with integer tensors that differ, such as counters of batch norm."""
    resamples: int = Field(default=1000, ge=1)
    """Of the bootstrap."""

    @model_validator(mode="after")
    def _models_are_known(self) -> Study:
        known = [*self.specialists, *self.starts]
        twice = sorted(self.specialists.keys() & self.starts.keys()) or [START] * (START in known)
        if twice:
            raise ValueError(f"the name {twice[0]!r} is taken")
        for name, training in (*self.specialists.items(), *self.starts.items()):
            for needed in training.needs.values():
                if needed not in (*known, START):
                    raise ValueError(f"{name} needs {needed!r}, which is no model; there are: {', '.join(known)}")
            if not (training.command or self.train.command):
                raise ValueError(f"{name} has no command, and train has none either")
        return self

    @model_validator(mode="after")
    def _specialists_are_known(self) -> Study:
        used = [name for pair in (*self.pairs, *self.paths) for name in pair.of]
        for name in used + (self.spider.of if self.spider else []):
            if name not in self.specialists:
                raise ValueError(f"no specialist is called {name!r}; there are: {', '.join(self.specialists)}")
        for pair in self.pairs:
            first, second = (self.specialists[name].metric for name in pair.of)
            if not (first and second):
                raise ValueError(f"{' and '.join(pair.of)} are a pair: each needs a metric")
            if first == second:
                raise ValueError(f"{' and '.join(pair.of)} have the same metric: name them under paths, not pairs")
            for baseline in (pair.morl, pair.ensemble):
                if baseline and (pair.points - 1) % (baseline + 1):
                    raise ValueError(
                        f"{pair.points} points have no soup at the weights of {baseline} others between the ends: "
                        f"take {baseline + 1} times a number, plus 1"
                    )
        return self

    @model_validator(mode="after")
    def _baselines_are_possible(self) -> Study:
        mixed = [pair.of for pair in self.pairs if pair.morl] + (
            [self.spider.of] if self.spider and self.spider.morl else []
        )
        for name in (name for names in mixed for name in names):
            if not self.specialists[name].rewards:
                raise ValueError(f"{name} has no rewards, which a training on mixed rewards needs")
        for names in mixed:
            given: dict[str, dict[str, Any]] = {}
            for name in names:
                for reward in self.specialists[name].rewards:
                    args = self.specialists[name].reward_args.get(reward, {})
                    if given.setdefault(reward, args) != args:
                        raise ValueError(
                            f"{' and '.join(names)} use the reward {reward!r} with different reward_args, which one "
                            f"training on both cannot: give it two names"
                        )
        if any(pair.ensemble for pair in self.pairs) and not self.evaluation.ensemble:
            raise ValueError("an ensemble is asked for; evaluation.ensemble names no function")
        for name, merge in self.merges.items():
            if merge.method == "greedy" and not (merge.metric and self.evaluation.selection is not None):
                raise ValueError(f"merge {name!r}: greedy needs a metric, and evaluation.selection")
        return self
