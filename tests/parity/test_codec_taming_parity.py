"""Our VQGAN against numbers of taming-transformers (`make_codec_fixture.py`): names, features, codes, pixels."""

import json

import pytest
import torch

from tests.parity.make_codec_fixture import PATH, pixels, weight
from unival.codec.vqgan import build_codec, inferred_config

CASES = json.loads(PATH.read_text(encoding="utf-8"))["cases"]


@pytest.mark.parametrize("name", CASES)
def test_a_checkpoint_of_taming_gives_its_numbers(name: str) -> None:
    case = CASES[name]
    state = {key: weight(key, torch.Size(shape)) for key, shape in case["names"].items()}
    config = inferred_config(state, name)
    assert (list(config.multipliers), list(config.attention)) == (
        case["case"]["multipliers"],
        case["case"]["attention"],
    )
    codec = build_codec(config, state, name).double()
    assert {key: list(tensor.shape) for key, tensor in codec.state_dict().items()} == case["names"]
    features = codec.features(pixels()).flatten()[::7]
    assert features.tolist() == pytest.approx(case["features"], rel=1e-9, abs=1e-11)  # float64, sums of a few hundred
    codes = codec.encode(pixels())
    assert codes.tolist() == case["codes"]
    assert len(set(codes.flatten().tolist())) > 1
    restored = codec.decode(codes).flatten()[::37]
    expected = [min(max(value, -1.0), 1.0) for value in case["pixels"]]
    assert restored.tolist() == pytest.approx(expected, rel=1e-9, abs=1e-11)
    assert sum(abs(value) < 1.0 for value in expected) > 5
