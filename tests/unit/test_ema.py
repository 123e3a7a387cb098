"""The average against the formula, and what is averaged."""

import pytest
import torch

from tests import tiny
from unival.schema import EmaConfig
from unival.training.ema import Ema, untied

NO_ENCODERS = {"video_encoder": None, "audio_encoder": None}


@torch.no_grad()
def moved(model: torch.nn.Module, amount: float) -> None:
    for tensor in {id(t): t for t in [*model.parameters(), *model.buffers()]}.values():
        tensor.add_(1 if not tensor.is_floating_point() else amount)


def test_the_average_follows_the_formula_for_weights_and_statistics_and_copies_integers() -> None:
    model = tiny.build_model(**NO_ENCODERS)
    expected = {name: tensor.clone() for name, tensor in untied(model).items()}
    ema = Ema(model, EmaConfig(decay=0.75))
    for update in range(3):
        moved(model, 0.1)
        ema.update(model, update)
        for name, tensor in untied(model).items():
            is_float = tensor.is_floating_point()
            expected[name] = 0.75 * expected[name] + 0.25 * tensor if is_float else tensor.clone()
    for name, tensor in ema.tensors.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-6, atol=1e-6)
    assert any(name.endswith("running_mean") for name in ema.tensors)
    assert ema.tensors["encoder.embed_images.bn1.num_batches_tracked"] == 3


def test_tied_weights_are_averaged_once() -> None:
    model = tiny.build_model(**NO_ENCODERS)
    ema = Ema(model, EmaConfig(decay=0.5))
    assert "decoder.output_projection.weight" not in ema.tensors
    assert "encoder.embed_tokens.weight" in ema.tensors


def test_until_its_start_the_average_is_a_copy() -> None:
    model = tiny.build_model(**NO_ENCODERS)
    ema = Ema(model, EmaConfig(decay=0.5, start=2))
    for update in range(3):
        moved(model, 1.0)
        ema.update(model, update)
        name = "encoder.layer_norm.weight"
        distance = (untied(model)[name] - ema.tensors[name]).abs().max().item()
        assert distance == pytest.approx(0.5 if update == 2 else 0.0, abs=1e-6)


def test_given_values_replace_the_weights_of_their_names() -> None:
    model = tiny.build_model(**NO_ENCODERS)
    ema = Ema(model, EmaConfig(), {"encoder.layer_norm.weight": torch.full((16,), 7.0)})
    assert ema.tensors["encoder.layer_norm.weight"].tolist() == [7.0] * 16
    assert torch.equal(ema.tensors["encoder.layer_norm.bias"], untied(model)["encoder.layer_norm.bias"])
