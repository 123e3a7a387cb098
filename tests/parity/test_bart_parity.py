"""Weights of BART, imported, compute in our modules what they compute in `transformers`' BART.

UnIVAL puts norms before its branches where BART puts them behind, and has no positions in its input, so the outputs of
whole layers differ by design. What the two share is compared on the same random inputs: embeddings, attention, feed
forward, norms, logits of words.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import BartConfig, BartForConditionalGeneration

from tests import tiny
from tests.parity.test_golden_base import configuration
from unival.checkpoint import load_bart, quiet_transformers
from unival.model.configuration import UnivalConfig
from unival.model.modeling import UnivalForConditionalGeneration

Pair = tuple[UnivalForConditionalGeneration, BartForConditionalGeneration]
ATOL = 1e-9  # of double precision: sums in another order, as of large matrices with few rows, do not decide
# Logits of attention divided by sqrt(head width), as BART's; ours have another factor by default.
OURS: dict[str, Any] = {"attn_scale_factor": 1.0, "image_encoder": None, "video_encoder": None, "audio_encoder": None}


def imported(config: UnivalConfig, num_words: int, folder: Path) -> Pair:
    """Save a random BART of the sizes of `config` as `transformers` does, and import it from its folder."""
    sizes = ("encoder_layers", "decoder_layers", "encoder_ffn_dim", "decoder_ffn_dim", "encoder_attention_heads")
    shared = {name: getattr(config, name) for name in (*sizes, "decoder_attention_heads", "d_model")}
    options = {"vocab_size": num_words, "max_position_embeddings": config.max_text_positions, "init_std": 0.1}
    with quiet_transformers():
        torch.manual_seed(0)
        bart = BartForConditionalGeneration(BartConfig(**shared, **options)).eval()
        with torch.no_grad():
            for parameter in bart.parameters():
                if parameter.ndim == 1:  # norms and biases are 1 and 0 at the start
                    parameter.add_(0.1 * torch.randn_like(parameter))
        bart.save_pretrained(folder)
    model = UnivalForConditionalGeneration(config).eval()
    load_bart(model, folder)
    return model.double(), bart.double()


@pytest.fixture(
    scope="module",
    params=[pytest.param(False, id="tiny"), pytest.param(True, id="base", marks=pytest.mark.slow)],
)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tmp_path_factory.mktemp("bart")
    if request.param:
        return imported(configuration("base", **OURS), 50265, folder)
    return imported(UnivalConfig(vocab_size=120, **(tiny.SIZES | OURS)), 100, folder)


def draw(pair: Pair, length: int) -> Tensor:
    generator = torch.Generator().manual_seed(length)
    return torch.randn(2, length, pair[0].config.d_model, generator=generator, dtype=torch.float64)


def layers(pair: Pair, side: str) -> Iterator[tuple[Any, Any]]:
    """Yield our layer and BART's."""
    model, bart = pair
    yield from zip(model.get_submodule(side).layers, bart.get_submodule(f"model.{side}").layers, strict=True)


@pytest.mark.parametrize("side", ["encoder", "decoder"])
@torch.no_grad()
def test_branches_of_layers_compute_the_same(pair: Pair, side: str) -> None:
    x, bias = draw(pair, 5), torch.zeros(1, 1, 5, 5)
    for ours, theirs in layers(pair, side):
        expected = theirs.self_attn(x, attention_mask=bias)[0]
        torch.testing.assert_close(ours.self_attn(x, bias), expected, atol=ATOL, rtol=ATOL)
        found, expected = (layer.fc2(F.gelu(layer.fc1(x))) for layer in (ours, theirs))
        torch.testing.assert_close(found, expected, atol=ATOL, rtol=ATOL)
        for norm in ("self_attn_layer_norm", "final_layer_norm"):
            assert torch.equal(ours.get_submodule(norm)(x), theirs.get_submodule(norm)(x))


@torch.no_grad()
def test_cross_attention_computes_the_same(pair: Pair) -> None:
    x, memory, bias = draw(pair, 5), draw(pair, 7), torch.zeros(1, 1, 5, 7)
    for ours, theirs in layers(pair, "decoder"):
        expected = theirs.encoder_attn(x, memory, attention_mask=bias)[0]
        torch.testing.assert_close(ours.encoder_attn(x, bias, memory=memory), expected, atol=ATOL, rtol=ATOL)
        assert torch.equal(ours.encoder_attn_layer_norm(x), theirs.encoder_attn_layer_norm(x))


@torch.no_grad()
def test_words_go_in_and_come_out_the_same(pair: Pair) -> None:
    model, bart = pair
    num_words, x = bart.config.vocab_size, draw(pair, 5)
    ids = torch.arange(4, num_words, max(num_words // 50, 1))
    assert torch.equal(model.encoder.embed_tokens(ids), bart.model.encoder.embed_tokens(ids))
    logits = model.decoder.output_projection(x)
    assert logits.shape[-1] == model.config.vocab_size
    torch.testing.assert_close(logits[..., :num_words], bart.lm_head(x), atol=ATOL, rtol=ATOL)
    for side in ("encoder", "decoder"):
        ours, theirs = model.get_submodule(side), bart.get_submodule(f"model.{side}")
        assert torch.equal(ours.embed_positions.weight, theirs.embed_positions.weight)  # row by row, not shifted
        assert torch.equal(ours.layernorm_embedding(x), theirs.layernorm_embedding(x))
