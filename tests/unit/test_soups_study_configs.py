"""Every study that ships fits its schema, and every command that it would run is one that the other package accepts."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from soups.errors import UserError
from soups.evaluators.causal_lm import load_rewards
from soups.study.config import load_settings, load_study
from soups.study.plan import Plan, make_plan
from soups.study.schema import Study
from soups.trainers import grpo, ppo
from unival.config import load_config
from unival.rewards import REWARDS, get_reward
from unival.schema import RunConfig
from unival.tasks.base import get_task

ROOT = Path(__file__).resolve().parents[2]
STUDIES = sorted((ROOT / "configs" / "soups").glob("*.yaml"))
SHIPPED = {
    "captioning_rewards",
    "grounding_sizes",
    "vqa_rewards",
    "caption_audio_rewards",
    "task_merging",
    "video_tasks",
    "connectivity",
    "text_to_text",
    "locomotion",
    "art_styles",
}
TRAINERS = {"soups.trainers.grpo": grpo.Settings, "soups.trainers.ppo": ppo.Settings}
OF_UNIVAL = [path for path in STUDIES if path.stem not in ("text_to_text", "locomotion")]


@pytest.fixture(autouse=True)
def in_the_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def test_the_studies_of_the_documentation_are_there() -> None:
    assert {path.stem for path in STUDIES} >= SHIPPED


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_a_study_fits_and_its_trainings_are_accepted(path: Path) -> None:
    study = load_study(path)
    assert study.title
    assert study.question
    assert study.paper
    plan = make_plan(study)
    assert 2 <= len(plan.trainings()) <= 40
    for node in plan.trainings():
        words = [word.replace("{out}", "runs/any").replace("{start}", "unival-tiny") for word in node.words]
        if words[:2] == ["python", "-m"]:
            check_module(words[2:])
            continue
        assert words[:2] == ["unival", "train"]
        config = load_config(
            words[2], [word.replace("{encoder}", "runs/any.safetensors") for word in words[3:]], RunConfig
        )
        objective = config.stages[0].objective
        for name in objective.args.get("rewards", {}):
            args = (objective.args.get("reward_args") or {}).get(name)
            assert get_reward(name, args, records=[ROW], given={"num_bins": 100})


def check_module(words: list[str]) -> None:
    """Check the settings of a trainer of `soups`, and that others exist."""
    if words[0] in TRAINERS:
        settings = load_settings(Path(words[1]), words[2:], TRAINERS[words[0]], "")
        assert settings.out == "runs/any"
        for name, weight in getattr(settings, "rewards", {}).items():
            assert isinstance(weight, float)
            functions = getattr(settings, "functions", None)
            assert functions is None or name in functions
    else:
        assert words[0] in ("unival.tiny.pretrain_encoder", "soups.trainers.from_gguf")


@pytest.mark.parametrize("name", ["text_to_text", "locomotion"])
def test_the_metrics_of_other_studies_are_those_of_their_evaluation(name: str) -> None:
    study = load_study(ROOT / "configs" / "soups" / f"{name}.yaml")
    args = study.evaluation.args
    known = args["rewards"] if name == "text_to_text" else args["scores"]
    assert {specialist.metric for specialist in study.specialists.values()} == set(known)
    if name == "text_to_text":
        assert set(load_rewards(known)) == set(known)
        trained = load_settings(
            ROOT / "configs/soups/train/summary.yaml", ["model=a", "out=b", "rewards={similar: 1}"], grpo.Settings, ""
        )
        assert trained.functions == known  # what is trained on is what is measured


@pytest.mark.parametrize("path", OF_UNIVAL, ids=lambda path: path.stem)
def test_the_metrics_of_a_study_are_those_of_its_evaluation(path: Path) -> None:
    study = load_study(path)
    parts = study.evaluation.args["parts"]
    known = set(itertools.chain(*(labels(name, part, len(parts)) for name, part in parts.items())))
    for part in parts.values():
        get_task(part["task"], part.get("task_args"))
        for metric in part["metrics"]:
            key = metric.split(":")[0]
            assert key in REWARDS or metric in ("accuracy", "accuracy@0.5", "names", "exact", "log_likelihood")
    if all(len(part["metrics"]) == 1 for part in parts.values()):
        known.add("mean")
    for specialist in study.specialists.values():
        assert specialist.metric in known | {""}
    for path_between in study.paths:
        assert path_between.metric in known
    for merge in study.merges.values():
        assert merge.metric in known | {""}


def labels(name: str, part: dict[str, Any], num_parts: int) -> list[str]:
    shared = part["metrics"] if num_parts > 1 else []  # their mean over the parts
    if not name:
        return part["metrics"]
    own = [name] if len(part["metrics"]) == 1 else [f"{name}/{metric}" for metric in part["metrics"]]
    return [*own, *shared]


ROW = {
    "uid": "1",
    "caption": "a cat left of a dog",
    "objects": ["cat", "dog"],
    "answers": ["cat"],
    "question_type": "what",
    "box": [0.0, 0.0, 9.0, 9.0],
    "width": 96,
    "height": 96,
}


def small(overrides: list[str] | None = None) -> Plan:
    return make_plan(load_study(ROOT / "configs" / "soups" / "task_merging.yaml", overrides or []))


def test_keys_change_with_what_a_training_is_made_from_and_with_nothing_else() -> None:
    before = {node.id: node.key for node in small().trainings()}
    same = small(["evaluation.args.limit=7", "merges.TIES.params.density=0.5", "title=another"])
    assert {node.id: node.key for node in same.trainings()} == before
    one = small(["specialists.vqa.values.steps=7"])
    changed = {node.id for node in one.trainings() if node.key != before[node.id]}
    # VQA, all that starts from it or from the mean of all, and VQA from the others: nothing else.
    fused = {f"{name} from mean/s1" for name in ("caption", "vqa", "grounding", "entailment")}
    others = ("caption", "grounding", "entailment")
    assert changed == fused | {"vqa/s1"} | {f"{n} from vqa/s1" for n in others} | {f"vqa from {n}/s1" for n in others}


def test_the_content_of_a_configuration_is_part_of_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "base.yaml").write_text("rate: 1\n")
    (tmp_path / "run.yaml").write_text("extends: base.yaml\n")
    start = ROOT / "unival" / "assets" / "unival-tiny"
    study = Study.model_validate(
        {
            "title": "t",
            "start": str(start),
            "train": {"command": "trainer config=run.yaml {out}"},
            "specialists": {"a": {}},
            "evaluation": {"evaluator": "m:f", "splits": {"test": {}}},
        }
    )
    monkeypatch.chdir(tmp_path)
    first = make_plan(study).nodes["a/s1"].key
    assert make_plan(study).nodes["a/s1"].key == first
    (tmp_path / "base.yaml").write_text("rate: 2\n")
    assert make_plan(study).nodes["a/s1"].key != first


def test_mixed_rewards_are_weighted_sums_of_those_of_the_specialists() -> None:
    plan = make_plan(load_study(ROOT / "configs" / "soups" / "captioning_rewards.yaml"))
    (node,) = [node for node in plan.trainings() if node.id == "MORL detail:0.25 brevity:0.75/s1"]
    assert 'stages.0.objective.args.rewards={"brevity": 0.75, "cider_d": 0.025}' in node.words


def test_overrides_reach_lists_and_unknown_keys_are_named(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text("extends: base.yaml\nseeds: [3]\n")
    (tmp_path / "base.yaml").write_text((ROOT / "configs/soups/video_tasks.yaml").read_text())
    study = load_study(path, ["pairs.0.points=3", "train.values={steps: 1}"])
    assert (study.pairs[0].points, study.train.values, study.seeds) == (3, {"steps": 1}, [3])
    for override, said in (("pairs.7.points=3", "no item '7'"), ("title.sub=1", "no section"), ("tilte=1", "tilte")):
        with pytest.raises(UserError, match=said):
            load_study(path, [override])
    with pytest.raises(UserError, match="did you mean"):
        load_study(tmp_path / "studyy.yaml")


def test_soups_must_meet_the_baselines() -> None:
    with pytest.raises(UserError, match="no soup at the weights"):
        load_study(ROOT / "configs" / "soups" / "captioning_rewards.yaml", ["pairs.0.points=10"])
