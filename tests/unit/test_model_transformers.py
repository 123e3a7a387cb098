"""The model in the hands of `transformers` and PEFT: training, new tokens, caches, what is refused."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, StaticCache

from tests import tiny
from unival.evaluation.answering import code_options
from unival.model.modeling import UnivalForConditionalGeneration

PROMPT = torch.tensor([[5, 6, 7], [8, 9, 1]])


class Targets(torch.utils.data.Dataset[dict[str, Tensor]]):
    """Four prompts with targets of equal length, so that a mean of means is the mean."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(index)
        return {name: torch.randint(4, 100, (4,), generator=generator) for name in ("input_ids", "labels")}


def test_batches_that_a_trainer_accumulates_have_the_gradient_of_one_batch(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    from transformers import Trainer, TrainingArguments

    def first_step(rows: int, batches: int) -> tuple[float, float]:
        model = tiny.build_model(image_encoder=None, video_encoder=None, audio_encoder=None)
        arguments = TrainingArguments(
            str(tmp_path),
            per_device_train_batch_size=rows,
            gradient_accumulation_steps=batches,
            max_steps=1,
            logging_steps=1,
            report_to=[],
            use_cpu=True,
            save_strategy="no",
            disable_tqdm=True,
        )
        trainer = Trainer(model, arguments, train_dataset=Targets())
        trainer.train()
        log = trainer.state.log_history[0]
        return log["loss"], log["grad_norm"]

    assert first_step(1, 4) == pytest.approx(first_step(4, 1), rel=1e-3)


@pytest.mark.parametrize("added", [7, -7])
def test_the_vocabulary_is_resized_in_all_three_places(tmp_path: Path, added: int) -> None:
    model = tiny.build_model()
    old, size = model.encoder.embed_tokens.weight.detach().clone(), model.config.vocab_size + added
    model.resize_token_embeddings(size)
    weight = model.get_input_embeddings().weight
    assert model.decoder.embed_tokens.weight is weight
    assert model.decoder.output_projection.weight is weight
    assert model.decoder.output_projection.out_features == model.config.vocab_size == size
    kept = min(len(old), size)
    assert torch.equal(weight[:kept], old[:kept])
    inputs = {"input_ids": torch.tensor([[5, size - 1]]), **tiny.media("image", 1)}
    found = model.generate(**inputs, num_beams=2, max_new_tokens=4)
    model.save_pretrained(tmp_path)
    loaded = UnivalForConditionalGeneration.from_pretrained(tmp_path).eval()
    assert torch.equal(loaded.get_output_embeddings().weight, weight)
    assert torch.equal(loaded.generate(**inputs, num_beams=2, max_new_tokens=4), found)


def test_picture_codes_keep_their_ids_when_tokens_are_added() -> None:
    model, processor = tiny.build_model(), tiny.processor()
    before = code_options(model.config, processor)
    end = model.config.vocab_size - tiny.NUM_BINS
    assert before["constraint_range"] == (end - tiny.NUM_CODES, end)
    model.resize_token_embeddings(model.config.vocab_size + 5)
    assert code_options(model.config, processor) == before


def test_unknown_inputs_are_refused_with_the_closest_name() -> None:
    model, pixels = tiny.model(), tiny.media("image", 2)["pixel_values"]
    for call in (model, model.encoder):
        with pytest.raises(TypeError, match=r"unexpected argument 'pixel_value' \(did you mean 'pixel_values'\?"):
            call(input_ids=PROMPT, pixel_value=pixels)


@pytest.mark.parametrize("name", ["inputs_embeds", "output_attentions", "output_hidden_states"])
def test_what_other_models_take_is_refused_unless_it_asks_for_nothing(name: str) -> None:
    model = tiny.model()
    expected = model(input_ids=PROMPT, labels=PROMPT).logits
    assert torch.equal(model(input_ids=PROMPT, labels=PROMPT, **{name: None}).logits, expected)  # as PEFT does
    with pytest.raises(ValueError, match=f"UnIVAL does not support {name}"):
        model(input_ids=PROMPT, labels=PROMPT, **{name: True})
    if name != "inputs_embeds":
        with pytest.raises(ValueError, match=f"UnIVAL does not support {name}"):
            model.generate(PROMPT, max_new_tokens=2, return_dict_in_generate=True, **{name: True})


def test_outputs_may_be_tuples() -> None:
    model = tiny.model()
    output = model(input_ids=PROMPT, labels=PROMPT)
    loss, logits, states = model(input_ids=PROMPT, labels=PROMPT, return_dict=False)
    assert torch.equal(loss, output.loss)
    assert torch.equal(logits, output.logits)
    assert torch.equal(states, output.encoder_last_hidden_state)
    assert torch.equal(model.encoder(PROMPT, return_dict=False)[0], states)


def test_media_encoded_before_can_be_generated_from() -> None:
    model, media = tiny.model(), tiny.media("image", 2)
    found = model.generate(PROMPT, media_tokens=model.encoder.encode_media(**media), num_beams=2, max_new_tokens=6)
    assert torch.equal(found, model.generate(PROMPT, **media, num_beams=2, max_new_tokens=6))


def test_a_cache_of_self_attention_only_is_used() -> None:
    model, cache, prefix = tiny.model(), DynamicCache(), torch.tensor([[0, 31, 12], [0, 8, 40]])
    expected = model(input_ids=PROMPT, decoder_input_ids=prefix).logits
    encoded = model.encoder(PROMPT)
    for step in range(3):
        out = model(encoder_outputs=encoded, decoder_input_ids=prefix[:, step : step + 1], past_key_values=cache)
        torch.testing.assert_close(out.logits[:, 0], expected[:, step], atol=1e-5, rtol=1e-5)
    assert cache.get_seq_length() == 3
    found = model.generate(PROMPT, past_key_values=DynamicCache(), num_beams=2, max_new_tokens=6)
    assert torch.equal(found, model.generate(PROMPT, num_beams=2, max_new_tokens=6))


def test_a_cache_of_fixed_length_is_refused() -> None:
    model = tiny.model()
    with pytest.raises(ValueError, match="cannot use a StaticCache"):
        model.generate(PROMPT, cache_implementation="static", max_new_tokens=4)
    with pytest.raises(ValueError, match="cannot use a StaticCache"):
        model(input_ids=PROMPT, decoder_input_ids=PROMPT, past_key_values=StaticCache(model.config, 8))
