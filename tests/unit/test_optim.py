"""Schedules against the specification's formulas (section 5), weight decay on everything, freezing by prefix."""

from typing import Any

import pytest
import torch

from tests import tiny
from unival.errors import UserError
from unival.schema import OptimConfig, StageConfig
from unival.training.optim import LossScale, build_optimizer, clip_gradients, freeze, learning_rate, set_train_mode


def rates(num_steps: int, **fields: Any) -> list[float]:
    config = OptimConfig.model_validate({"lr": 2.0} | fields)
    return [learning_rate(config, step, num_steps) for step in range(num_steps)]


def test_linear_warm_up_then_linear_decay_to_zero() -> None:
    assert rates(10, warmup_ratio=0.2) == pytest.approx([1.0, 2.0, *(2 * (1 - i / 8) for i in range(8))])
    assert rates(4, warmup_ratio=0.0) == pytest.approx([2.0, 1.5, 1.0, 0.5])


def test_cosine_is_half_way_at_the_middle() -> None:
    found = rates(8, schedule="cosine", warmup_ratio=0.0)
    assert found[0] == 2.0
    assert found[4] == pytest.approx(1.0)
    assert found == sorted(found, reverse=True)
    config = OptimConfig(lr=2.0, schedule="cosine", warmup_ratio=0.0)
    assert learning_rate(config, 8, 8) == pytest.approx(0.0)


def test_constant_stays() -> None:
    assert rates(5, schedule="constant", warmup_ratio=0.4) == pytest.approx([1.0, 2.0, 2.0, 2.0, 2.0])


def test_warm_up_in_updates_replaces_the_ratio() -> None:
    config = OptimConfig(lr=1.0, schedule="constant", warmup_ratio=0.5, warmup_steps=4)
    assert [learning_rate(config, step, 100) for step in range(5)] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])
    assert [learning_rate(config, step, 9999) for step in range(2)] == pytest.approx([0.25, 0.5])
    assert learning_rate(OptimConfig(lr=1.0, warmup_steps=0), 0, 10) == 1.0


@pytest.mark.parametrize("schedule", ["polynomial", "cosine", "constant"])
@pytest.mark.parametrize("num_steps", [1, 2, 7])
def test_every_rate_is_positive_and_at_most_the_peak(schedule: str, num_steps: int) -> None:
    for warmup in (0, 1, num_steps, 3 * num_steps):
        found = rates(num_steps, schedule=schedule, warmup_steps=warmup)
        assert all(0 < rate <= 2.0 for rate in found)


def test_an_update_is_adamw_with_decay_on_every_parameter() -> None:
    """With a constant gradient the first update of Adam is the sign of the gradient (Kingma and Ba 2015)."""
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.LayerNorm(2))
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = build_optimizer(model, OptimConfig(lr=0.1, weight_decay=0.5))
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 3.0)
    optimizer.step()
    for old, new in zip(before, model.parameters(), strict=True):
        torch.testing.assert_close(new.detach(), old * (1 - 0.1 * 0.5) - 0.1, atol=1e-6, rtol=1e-6)


def stage(**fields: Any) -> StageConfig:
    task = {"task": "caption", "source": {"world": "train"}}
    return StageConfig.model_validate({"name": "a", "steps": 1, "groups": [{"rows": 1, "tasks": [task]}]} | fields)


def test_frozen_prefixes_and_nothing_else_are_not_trained() -> None:
    model = tiny.build_model()
    freeze(model, stage(freeze=["encoder.embed_images", "decoder.layers.1.", "encoder.embed_tokens"]))
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    prefixes = ("encoder.embed_images", "decoder.layers.1.", "encoder.embed_tokens", "encoder.embed_audios.logmel")
    assert frozen == {name for name, _ in model.named_parameters() if name.startswith(prefixes)}
    assert not model.decoder.output_projection.weight.requires_grad  # tied
    trained = {id(p) for group in build_optimizer(model, OptimConfig()).param_groups for p in group["params"]}
    assert trained == {id(p) for p in model.parameters() if p.requires_grad}


def test_a_later_stage_trains_what_an_earlier_one_froze() -> None:
    model = tiny.build_model()
    freeze(model, stage(freeze=["encoder"]))
    freeze(model, stage())
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    assert frozen == ["encoder.embed_audios.logmel_extractor.melW"]


def test_a_prefix_that_matches_nothing_is_refused() -> None:
    with pytest.raises(UserError, match=r"no parameter starts with 'encoder\.embed_image\.'.*encoder\.embed_images"):
        freeze(tiny.build_model(), stage(freeze=["encoder.embed_image."]))


@pytest.mark.parametrize("is_frozen", [False, True])
def test_batch_norm_statistics_stay_when_asked(is_frozen: bool) -> None:
    model = tiny.build_model()
    set_train_mode(model, stage(freeze_batchnorm=is_frozen))
    before = {name: buffer.clone() for name, buffer in model.named_buffers() if "running" in name}
    for modality in ("image", "video", "audio"):
        model.encoder.encode_media(**tiny.media(modality, 2))
    changed = [name for name, old in before.items() if not torch.equal(old, model.get_buffer(name))]
    assert changed == ([] if is_frozen else list(before))
    assert model.training
    assert model.decoder.layers[0].residual.training


# --------------------------------------------------------------------------------------------- clipping and loss scale
def with_gradients(*gradients: float) -> list[torch.nn.Parameter]:
    parameters = [torch.nn.Parameter(torch.zeros(1)) for _ in gradients]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = torch.tensor([gradient])
    return [*parameters, torch.nn.Parameter(torch.zeros(1))]  # the last one had no gradient


def test_gradients_are_divided_by_the_scale_then_clipped_together() -> None:
    parameters = with_gradients(3.0 * 64, 4.0 * 64)
    assert clip_gradients(parameters, max_norm=1.0, scale=64.0) == pytest.approx(5.0)
    assert [p.grad.item() for p in parameters[:2] if p.grad is not None] == pytest.approx([0.6, 0.8], rel=1e-5)
    parameters = with_gradients(0.3, 0.4)
    assert clip_gradients(parameters, max_norm=1.0) == pytest.approx(0.5)
    assert parameters[0].grad is not None
    assert parameters[0].grad.item() == pytest.approx(0.3)


def test_the_loss_scale_halves_at_an_overflow_and_doubles_after_a_window() -> None:
    scale = LossScale(value=128.0, window=3)
    values = []
    for is_finite in (True, True, False, True, True, True, True):
        scale.update(is_finite)
        values.append(scale.value)
    assert values == [128, 128, 64, 64, 64, 128, 128]


def test_without_scale_or_at_its_smallest_a_gradient_that_is_not_finite_is_an_error() -> None:
    with pytest.raises(FloatingPointError):
        LossScale().update(is_finite=False)
    with pytest.raises(FloatingPointError):
        LossScale(value=2**-14, window=9).update(is_finite=False)


def test_what_counts_does_not_depend_on_what_is_frozen() -> None:
    model = tiny.build_model()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("encoder.embed_images"))
    scales = {"encoder.embed_images": 0.1, "encoder": 0.5}
    optimizer = build_optimizer(model, OptimConfig(lr=1.0, lr_scale=scales, muon=["encoder"]))
    assert {group["scale"] for group in optimizer.param_groups} == {0.1}
