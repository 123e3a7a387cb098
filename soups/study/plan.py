"""From a study to what has to be done: trainings and merges in order, then mixtures to score. Nothing is run here.

Everything has a key: a hash of what it is made from (the command, the content of the files that it names, the keys
of the models that it starts from). The key names its folder, so that what is done is found again, and what changes
is done anew with all that depends on it.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from soups.errors import UserError, did_you_mean
from soups.methods import get_method
from soups.points import Point, corners, segment
from soups.state import open_checkpoint
from soups.study.config import extended_files
from soups.study.schema import START, Chain, Merge, Pair, Study, Template, Training

FORMAT = 1
PLACE = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class Node:
    """A checkpoint of the study.

    Attributes:
        id: its name in the study, with the seed.
        name: how people call it.
        key: hash of what it is made from.
        words: of a training, the command; `{out}` and the places of `needs` are still open.
        needs: place to the id of the model that stands there; of a merge, member to member.
        model: of a training, the checkpoint inside its folder; of a file, its path.
        is_training: whether a command makes it; otherwise it is a file, or the uniform mean of what it needs.
    """

    id: str
    name: str
    key: str
    words: tuple[str, ...] = ()
    needs: Mapping[str, str] = field(default_factory=dict)
    model: str = ""
    is_training: bool = False


@dataclass(frozen=True)
class Mixture:
    """Mixtures of the same models that are scored together.

    Attributes:
        name: how people call it.
        kind: what it is in the report: `model`, `pair`, `path`, `merge` or `spider`.
        seed: of the trainings.
        members: name to node.
        points: coefficients in the order of the members.
        method, params: how they are merged.
        greedy: the metric of a greedy soup; its coefficients are found when the models are there.
        has_base: whether the method uses the start.
    """

    name: str
    kind: str
    seed: int
    members: Mapping[str, str]
    points: tuple[Point, ...]
    method: str = "linear"
    params: Mapping[str, Any] = field(default_factory=dict)
    greedy: str = ""
    has_base: bool = False


@dataclass
class Plan:
    """All nodes by id, each after those that it needs, and what is scored."""

    study: Study
    nodes: dict[str, Node] = field(default_factory=dict)
    mixtures: list[Mixture] = field(default_factory=list)

    @property
    def start(self) -> str:
        """Return the id of the start model."""
        return self.study.start if self.study.start in self.study.starts else START

    def trainings(self) -> list[Node]:
        """Return what has to be trained, in order."""
        return [node for node in self.nodes.values() if node.is_training]


def make_plan(study: Study) -> Plan:
    """Return everything that a study needs.

    Raises:
        UserError: the start is no checkpoint, a command has an unknown place, or seeds change nothing.
    """
    plan = Plan(study)
    if plan.start == START:
        checkpoint = open_checkpoint(study.start, START)
        plan.nodes[START] = Node(START, START, checkpoint.digest, model=study.start)
    for name in study.starts:
        _training(plan, name, study.seeds[0])
    seen: dict[tuple[str, ...], int] = {}
    for seed in study.seeds:
        _plan_seed(plan, seed)
        nodes = (f"{name}/s{seed}" for name in study.specialists)
        keys = tuple(plan.nodes[node].key if node in plan.nodes else "" for node in nodes)
        if keys in seen:
            what = (
                f"seeds {seen[keys]} and {seed} would train the same specialists, which are no independent repetitions"
            )
            fix = "write {seed} into the command and leave `seed` out of the specialists, or give one seed"
            raise UserError(what, where="seeds", fix=fix)
        seen[keys] = seed
    return plan


def _plan_seed(plan: Plan, seed: int) -> None:
    study = plan.study
    vanilla = {name: _training(plan, name, seed) for name in study.specialists}
    plan.mixtures.append(_model(START, plan.start, seed))
    plan.mixtures += [_model(name, node, seed) for name, node in vanilla.items()]
    for pair in study.pairs:
        members = {name: vanilla[name] for name in pair.of}
        plan.mixtures.append(Mixture(" | ".join(pair.of), "pair", seed, members, tuple(segment(pair.points))))
        for chain in pair.chains:
            plan.mixtures.append(_chained_pair(plan, pair, chain, vanilla, seed))
        for weights in inner_points(pair.morl):
            mixed = dict(zip(pair.of, weights, strict=True))
            plan.mixtures.append(_model(morl_name(mixed), _mixed(plan, mixed, seed), seed))
    for path in study.paths:
        members = {name: vanilla[name] for name in path.of}
        plan.mixtures.append(Mixture(" | ".join(path.of), "path", seed, members, tuple(segment(path.points))))
    if study.spider:
        names = study.spider.of
        uniform = tuple(1 / len(names) for _ in names)
        plan.mixtures.append(Mixture("uniform soup", "spider", seed, {n: vanilla[n] for n in names}, (uniform,)))
        if study.spider.morl:
            mixed = dict.fromkeys(names, 1 / len(names))
            plan.mixtures.append(_model("MORL", _mixed(plan, mixed, seed), seed, "spider"))
    for name, merge in study.merges.items():
        plan.mixtures += _merged(plan, name, merge, vanilla, seed)


def _chained_pair(plan: Plan, pair: Pair, chain: Chain, vanilla: Mapping[str, str], seed: int) -> Mixture:
    """Return the front between the means of all trainings of either target."""
    ends = [_chained(plan, chain, target, vanilla, seed) for target in pair.of]
    points = tuple(
        tuple(weight / len(end) for weight, end in zip(point, ends, strict=True) for _ in end)
        for point in segment(pair.points)
    )
    return Mixture(chained_name(pair, chain), "pair", seed, ends[0] | ends[1], points)


def chained_name(pair: Pair, chain: Chain) -> str:
    """Return the name of the front of a chain."""
    return f"{' | '.join(pair.of)}, {chain}"


def inner_points(count: int) -> list[Point]:
    """Return evenly spaced weights of two models, both strictly positive."""
    return segment(count + 2)[1:-1]


def morl_name(weights: Mapping[str, float]) -> str:
    """Return the name of a training on mixed rewards."""
    return "MORL " + " ".join(f"{name}:{weight:.3g}" for name, weight in weights.items())


def _model(name: str, node: str, seed: int, kind: str = "model") -> Mixture:
    return Mixture(name, kind, seed, {name: node}, ((1.0,),))


def _merged(plan: Plan, name: str, merge: Merge, vanilla: Mapping[str, str], seed: int) -> list[Mixture]:
    """Return the mixtures of one merge: one of all specialists, or one for each."""
    sources = {target: _chained(plan, merge.chain, target, vanilla, seed) for target in vanilla}
    groups = {f"{name}: {target}": members for target, members in sources.items()} if merge.each else {}
    groups = groups or {name: {n: node for members in sources.values() for n, node in members.items()}}
    found = []
    for label, members in groups.items():
        if merge.method == "greedy":
            design = corners(len(members))  # the coefficients are found later; these are scored on the way
            found.append(Mixture(label, "merge", seed, members, tuple(design), greedy=merge.metric))
            continue
        share = (1 - merge.start_weight) / len(members)
        point = tuple(share for _ in members)
        if merge.start_weight:
            members, point = {**members, START: plan.start}, (*point, merge.start_weight)
        has_base = get_method(merge.method).base == "required"
        found.append(Mixture(label, "merge", seed, members, (point,), merge.method, merge.params, has_base=has_base))
    return found


def _chained(plan: Plan, chain: Chain, target: str, vanilla: Mapping[str, str], seed: int) -> dict[str, str]:
    """Return the trainings of one target, by name: its own, from the mean of all, or from each of the others."""
    if chain == "vanilla":
        return {target: vanilla[target]}
    if chain == "fusing":
        mean = Node(
            f"mean/s{seed}",
            "mean of all",
            _hash({"mean": sorted(plan.nodes[node].key for node in vanilla.values())}),
            needs={node: node for node in vanilla.values()},
        )
        plan.nodes.setdefault(mean.id, mean)
        return {f"{target} from mean": _training(plan, target, seed, {START: mean.id}, " from mean")}
    others = [name for name in vanilla if name != target]
    return {
        f"{target} from {name}": _training(plan, target, seed, {START: vanilla[name]}, f" from {name}")
        for name in others
    }


def _mixed(plan: Plan, weights: Mapping[str, float], seed: int) -> str:
    """Plan a training on mixed rewards: that of the first specialist, with the weighted sum of all rewards."""
    rewards: dict[str, float] = {}
    args: dict[str, Any] = {}
    for name, weight in weights.items():
        specialist = plan.study.specialists[name]
        args |= specialist.reward_args
        for reward, own in specialist.rewards.items():
            rewards[reward] = round(rewards.get(reward, 0.0) + weight * own, 9)
    specialist = plan.study.specialists[next(iter(weights))]
    first = specialist.model_copy(update={"rewards": rewards, "reward_args": args})
    return _add_training(plan, morl_name(weights), first, seed)


def _training(plan: Plan, name: str, seed: int, starts: Mapping[str, str] | None = None, suffix: str = "") -> str:
    """Plan a named training and what it needs; return its id."""
    training = plan.study.specialists.get(name) or plan.study.starts[name]
    return _add_training(plan, f"{name}{suffix}", training, seed, starts, name)


def _add_training(
    plan: Plan,
    label: str,
    training: Training,
    seed: int,
    starts: Mapping[str, str] | None = None,
    name: str | None = None,
) -> str:
    study = plan.study
    is_start = name in study.starts
    own_seed = seed if training.seed is None else training.seed
    node_id = label if is_start or training.seed is not None else f"{label}/s{seed}"
    if node_id in plan.nodes:
        return node_id
    plain = Template() if is_start and training.command else study.train
    needs = {} if is_start and START not in training.needs else {START: plan.start}
    for place, needed in training.needs.items():
        needs[place] = plan.start if needed == START else _training(plan, needed, seed)
    needs |= starts or {}
    values = plain.values | training.values
    places = {
        **{key: _spelled(value) for key, value in values.items()},
        "seed": str(own_seed),
        "name": name or label,
        "rewards": json.dumps(training.rewards, sort_keys=True),
        "reward_args": json.dumps(training.reward_args, sort_keys=True),
    }
    words = _words(training.command or plain.command, places, [*needs, "out"], label)
    used = {place: node for place, node in needs.items() if any(f"{{{place}}}" in word for word in words)}
    model = training.model or plain.model
    key = _hash(
        {
            "format": FORMAT,
            "words": words,
            "files": {str(path): _digest(path) for word in words for path in _files(word)},
            "needs": {place: plan.nodes[node].key for place, node in used.items()},
            "model": model,
        }
    )
    plan.nodes[node_id] = Node(node_id, label, key, tuple(words), used, model, is_training=True)
    return node_id


def _spelled(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _words(command: str, places: Mapping[str, str], later: Sequence[str], label: str) -> list[str]:
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise UserError(f"not a command: {command!r} ({error})", where=label, fix="close the quote") from error

    def fill(match: re.Match[str]) -> str:
        place = match[1]
        if place in places:
            return places[place]
        if place in later:
            return match[0]
        raise UserError(
            f"unknown place {match[0]}", where=f"command of {label}", fix=did_you_mean(place, [*places, *later])
        )

    filled = [PLACE.sub(fill, word) for word in words]
    if not any("{out}" in word for word in filled):
        raise UserError("the command has no {out}", where=f"command of {label}", fix="such as --out {out}")
    return filled


def _files(word: str) -> list[Path]:
    """Return the files that a word names, alone or after an equals sign, and what they extend."""
    found = [Path(text) for text in {word, word.partition("=")[2]} if text]
    return [each for path in found if len(str(path)) < 250 and path.is_file() for each in extended_files(path)]


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
