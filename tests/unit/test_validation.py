"""What is best, when patience ends, and copies that draw no random number."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from tests import tiny
from unival.errors import UserError
from unival.evaluation.checks import metric_names
from unival.schema import ValidationConfig
from unival.training.distributed import World
from unival.training.ema import untied
from unival.training.validation import Watch, drop_others, first_of_each, plain_copy, save_best

EVALUATION = {"name": "vqa", "task": "vqa", "source": {"world": "validation"}}


def config(**fields: Any) -> ValidationConfig:
    fields = {"every": 1, "evaluations": [EVALUATION], "monitor": "vqa/accuracy"} | fields
    return ValidationConfig.model_validate(fields)


def watched(scores: list[float], **fields: Any) -> tuple[Watch, list[bool]]:
    watch = Watch(config(**fields), {})
    return watch, [watch.take({"vqa/accuracy": score}, f"s-step-{step}") for step, score in enumerate(scores)]


def test_the_best_are_kept_in_order_and_the_first_of_equals_wins() -> None:
    watch, kept = watched([0.1, 0.5, 0.2, 0.5, 0.4], keep_best=2)
    assert watch.best == [(0.5, "s-step-1"), (0.5, "s-step-3")]
    assert kept == [True, True, True, True, False]
    watch, kept = watched([3.0, 1.0, 2.0], mode="min")
    assert watch.best == [(1.0, "s-step-1")]
    assert kept == [True, True, False]


def test_patience_counts_validations_since_the_best() -> None:
    watch, _ = watched([0.1, 0.5, 0.5], patience=2)
    assert (watch.since_best, watch.is_over) == (1, False)
    again = Watch(config(patience=2), watch.state())  # a continued run remembers
    again.take({"vqa/accuracy": 0.4}, "s-step-3")
    assert again.is_over
    again.take({"vqa/accuracy": 0.6}, "s-step-4")
    assert not again.is_over
    assert not watched([0.5, 0.1, 0.1, 0.1])[0].is_over


def test_a_metric_that_is_not_measured_is_refused_with_the_right_one() -> None:
    with pytest.raises(UserError, match=r"no metric 'vqa/acuracy'.*did you mean 'vqa/accuracy'"):
        Watch(config(monitor="vqa/acuracy"), {}).take({"vqa/accuracy": 1.0}, "a")
    assert not Watch(None, {}).take({}, "a")


def test_a_metric_may_have_slashes() -> None:
    evaluation = {"name": "boxes", "task": "grounding", "source": {"world": "validation"}}
    options = {"evaluations": [EVALUATION, evaluation | {"task_args": {"by_size": True}}]}
    found = config(monitor="boxes/accuracy@0.5/small", **options).monitored
    assert found is not None
    assert found[1] == "accuracy@0.5/small"
    assert found[1] in metric_names(found[0])


@pytest.mark.parametrize(
    "fields",
    [{"monitor": "caption/cider_d"}, {"monitor": None, "patience": 2}, {"keep_best": 0}, {"every": 0}, {"every": []}],
)
def test_impossible_validations_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        config(**fields)


def test_a_copy_is_equal_is_its_own_and_draws_nothing() -> None:
    model = tiny.build_model().train()
    before = torch.get_rng_state()
    plain = plain_copy(model, untied(model), World())
    assert torch.equal(torch.get_rng_state(), before)
    assert not plain.training
    assert plain.decoder.output_projection.weight is plain.encoder.embed_tokens.weight
    inputs = tiny.prompt_ids(["what does the image describe?"]) | tiny.media("image", 1)
    assert torch.equal(plain.generate(**inputs, max_new_tokens=5), model.eval().generate(**inputs, max_new_tokens=5))
    with torch.no_grad():
        plain.encoder.layer_norm.weight.fill_(0.0)
    assert model.encoder.layer_norm.weight.abs().sum() > 0


def test_only_the_best_of_a_stage_stay_on_disk(tmp_path: Path) -> None:
    model, watch, stage = tiny.model(), Watch(config(keep_best=1), {}), "a[1]"  # nothing that a pattern would match
    states = {"model": untied(model)}
    for step, score in enumerate([0.1, 0.3]):
        name = f"{stage}-step-{step}"
        watch.take({"vqa/accuracy": score}, name)
        save_best(tmp_path, watch, name, states, model, tiny.processor())
    for other in ("b-step-0", f"{stage}-step-x-step-0"):
        (tmp_path / other).mkdir()
    save_best(tmp_path, watch, f"{stage}-step-1", states, model, tiny.processor())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a[1]-step-1", "a[1]-step-x-step-0", "b-step-0"]
    assert (tmp_path / "a[1]-step-1" / "score.json").read_text() == '{"name": "a[1]-step-1", "score": 0.3}'
    assert (tmp_path / "a[1]-step-1" / "model" / "model.safetensors").is_file()


def test_a_model_stays_until_no_checkpoint_knows_it_and_one_that_is_gone_is_forgotten(tmp_path: Path) -> None:
    names = [f"s-step-{step}" for step in range(3)]
    for name in names:
        (tmp_path / name).mkdir()
    watch = Watch(config(), {"best": [[0.5, names[0]]]}, names)  # as a checkpoint says
    watch.take({"vqa/accuracy": 0.6}, names[1])
    drop_others(tmp_path, "s", watch)
    assert sorted(path.name for path in tmp_path.iterdir()) == names[:2]
    watch.safe = {names[1]}
    drop_others(tmp_path, "s", watch)
    assert [path.name for path in tmp_path.iterdir()] == [names[1]]
    drop_others(tmp_path / "absent", "s", watch)
    again = Watch(config(keep_best=2), {"best": [[0.6, names[2]], [0.5, names[1]]]}, names[:2])
    assert again.best == [(0.5, names[1])]


def test_samples_take_tasks_in_turn() -> None:
    assert first_of_each(["a", "a", "b", "a", "c"], 4) == [0, 2, 4, 1]
    assert first_of_each(["a"], 3) == [0]
