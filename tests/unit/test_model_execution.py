"""How the model runs: whole graphs, any device, bf16, gradient checkpointing, beams that share what they read."""

import warnings

import pytest
import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, EncoderDecoderCache

from tests import tiny
from unival.batch import Modality
from unival.model.modeling import UnivalForConditionalGeneration

PROMPT = torch.tensor([[5, 6, 7], [8, 9, 1]])
PREFIX = torch.tensor([[0, 31, 12, 7], [0, 8, 40, 9]])


def one_step(model: UnivalForConditionalGeneration, encoded: object, cache: EncoderDecoderCache, step: int) -> Tensor:
    ids = PREFIX[:, step : step + 1]
    return model(decoder_input_ids=ids, encoder_outputs=encoded, past_key_values=cache, use_cache=True).logits


def fresh_cache() -> EncoderDecoderCache:
    return EncoderDecoderCache(DynamicCache(), DynamicCache())


@pytest.mark.slow
@pytest.mark.parametrize("modality", ["text", "image", "video"])
def test_the_encoder_is_one_graph(modality: Modality) -> None:
    model, media = tiny.build_model(), tiny.media(modality, 2)
    compiled = torch.compile(model.encoder, backend="eager", fullgraph=True)
    with torch.no_grad():
        found = compiled(PROMPT, PROMPT.ne(1), **media)
        expected = model.encoder(PROMPT, PROMPT.ne(1), **media)
    torch.testing.assert_close(found.last_hidden_state, expected.last_hidden_state)
    torch._dynamo.reset()


@pytest.mark.slow
def test_a_decoding_step_is_one_graph_at_every_length() -> None:
    model = tiny.build_model()
    compiled = torch.compile(one_step, backend="eager", fullgraph=True)
    with torch.no_grad():
        encoded = model.encoder(PROMPT, **tiny.media("image", 2))
        ours, expected = fresh_cache(), fresh_cache()
        for step in range(PREFIX.shape[1]):
            found = compiled(model, encoded, ours, step)
            torch.testing.assert_close(found, one_step(model, encoded, expected, step))
    torch._dynamo.reset()


@pytest.mark.parametrize("modality", ["text", "image", "video"])
def test_no_tensor_is_made_on_another_device(modality: Modality) -> None:
    """On the device without memory any tensor from elsewhere, and any look at a value, is an error."""
    model = tiny.build_model().to("meta")
    prompt, prefix = PROMPT.to("meta"), PREFIX.to("meta")
    media = {name: value.to("meta") for name, value in tiny.media(modality, 2).items()}
    encoded = model.encoder(prompt, **media)
    cache = fresh_cache()
    for writes_codes in (False, True):
        out = model(decoder_input_ids=prefix, encoder_outputs=encoded, writes_codes=writes_codes)
        assert out.logits.shape == (2, 4, model.config.vocab_size)
    assert one_step_shape(model, encoded, cache, prefix) == (2, 1, model.config.vocab_size)


def one_step_shape(
    model: UnivalForConditionalGeneration, encoded: object, cache: EncoderDecoderCache, prefix: Tensor
) -> torch.Size:
    for step in range(3):
        ids = prefix[:, step : step + 1]
        out = model(decoder_input_ids=ids, encoder_outputs=encoded, past_key_values=cache)
    return out.logits.shape


@pytest.mark.parametrize("modality", tiny.MODALITIES)
def test_bf16_autocast_computes_nearly_the_same_and_trains(modality: Modality) -> None:
    model, inputs = tiny.build_model(), {"input_ids": PROMPT, **tiny.media(modality, 2)}
    expected = model(**inputs, labels=PREFIX)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = model(**inputs, labels=PREFIX)
        written = model.generate(**inputs, num_beams=2, max_new_tokens=5, do_sample=False)
    assert written.shape[1] <= 6
    # bf16 has 8 bits; the error of a logit is some rounding steps of the largest activations.
    error = (found.logits.float() - expected.logits).abs().mean() / expected.logits.abs().mean()
    assert float(error.detach()) < 0.1
    found.loss.backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert all(bool(gradient.isfinite().all()) for gradient in gradients)


@pytest.mark.parametrize("switch", ["activation_checkpointing_enable", "gradient_checkpointing_enable"])
def test_gradient_checkpointing_gives_the_same_gradients(switch: str) -> None:
    inputs = {"input_ids": PROMPT, "labels": PREFIX, **tiny.media("image", 2)}
    gradients, calls = [], []
    for is_on in (False, True):
        model = tiny.build_model(decoder_prompt_length=2, adapter_dim=4)
        calls.append([])
        model.decoder.layers[0].fc1.register_forward_hook(lambda *_, seen=calls[-1]: seen.append(1))
        if is_on:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # the older of the two names
                getattr(model, switch)()
        torch.manual_seed(0)
        model.train()(**inputs).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert [len(seen) for seen in calls] == [1, 2]  # run again in the backward pass
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-6, rtol=1e-5, msg=name)


def test_generation_in_training_mode_with_checkpointing_uses_its_cache() -> None:
    model = tiny.build_model()
    expected = model.generate(PROMPT, max_new_tokens=6, do_sample=False)
    model.activation_checkpointing_enable()
    with torch.no_grad():
        assert torch.equal(model.train().generate(PROMPT, max_new_tokens=6, do_sample=False), expected)


def test_beams_share_the_encoders_output_and_its_projections() -> None:
    model, seen = tiny.build_model(), []

    def look(module: torch.nn.Module, args: tuple, output: Tensor) -> None:
        _, encoded, cache, *_ = args
        cross = cache.cross_attention_cache.layers[0].keys
        seen.append((len(args[0]), len(encoded.last_hidden_state), len(cross)))

    model.decoder.register_forward_hook(look)
    model.generate(PROMPT, num_beams=3, max_new_tokens=4, do_sample=False, **tiny.media("image", 2))
    assert set(seen) == {(6, 2, 2)}


@pytest.mark.parametrize("modality", tiny.MODALITIES)
def test_rows_that_share_an_encoded_row_compute_what_repeated_rows_compute(modality: Modality) -> None:
    model, media = tiny.exact_model(), tiny.media(modality, 2, dtype=torch.float64)
    prefix = torch.randint(4, 300, (6, 5), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        shared = model(decoder_input_ids=prefix, encoder_outputs=model.encoder(PROMPT, **media)).logits
        rows = torch.tensor([0, 0, 0, 1, 1, 1])
        repeated = {name: value[rows] for name, value in media.items()}
        expected = model(decoder_input_ids=prefix, encoder_outputs=model.encoder(PROMPT[rows], **repeated)).logits
    torch.testing.assert_close(shared, expected, atol=1e-9, rtol=1e-9)
