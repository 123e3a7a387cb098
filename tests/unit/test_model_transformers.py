"""The model in the hands of `transformers` and PEFT: training, new tokens, caches, what is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.cache_utils import DynamicCache, StaticCache
from transformers.modeling_outputs import BaseModelOutput

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


def test_what_other_models_take_is_refused_unless_it_asks_for_nothing() -> None:
    model = tiny.model()
    expected = model(input_ids=PROMPT, labels=PROMPT).logits
    assert torch.equal(model(input_ids=PROMPT, labels=PROMPT, inputs_embeds=None).logits, expected)  # as PEFT does
    with pytest.raises(ValueError, match="UnIVAL does not support inputs_embeds"):
        model(input_ids=PROMPT, labels=PROMPT, inputs_embeds=True)


def test_weights_of_attention_and_states_are_returned_and_change_nothing() -> None:
    model, config = tiny.model(), tiny.model().config
    inputs = {"input_ids": PROMPT, "decoder_input_ids": PROMPT.flip(1), **tiny.media("image", 2)}
    with torch.no_grad():
        plain = model(**inputs)
        found = model(**inputs, output_attentions=True, output_hidden_states=True)
        logits = model.decoder.output_projection(found.decoder_hidden_states[-1])
    torch.testing.assert_close(found.logits, plain.logits, atol=1e-5, rtol=1e-5)
    assert plain.encoder_attentions is plain.decoder_hidden_states is plain.cross_attentions is None
    assert torch.equal(logits, found.logits)
    assert torch.equal(found.encoder_hidden_states[-1], found.encoder_last_hidden_state)
    source = found.encoder_last_hidden_state.shape[1]
    num_layers = config.encoder_layers, config.decoder_layers, config.decoder_layers
    kinds = found.encoder_attentions, found.decoder_attentions, found.cross_attentions
    sizes = (source, source), (3, 3), (3, source)
    for attentions, number, size in zip(kinds, num_layers, sizes, strict=True):
        assert len(attentions) == number
        for weights in attentions:
            assert weights.shape == (2, config.decoder_attention_heads, *size)
            torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))
    assert len(found.encoder_hidden_states) == config.encoder_layers + 1
    assert not found.decoder_attentions[0].triu(1).any()  # no token looks ahead
    assert not found.encoder_attentions[0][1, :, :, -1].any()  # nor at padding
    assert not found.cross_attentions[0][1, :, :, -1].any()
    assert all(layer.self_attn.weights is None for layer in model.decoder.layers)


def test_weights_of_beams_are_those_of_their_rows() -> None:
    model = tiny.model()
    targets = torch.tensor([[0, 5], [0, 6], [0, 7], [0, 8]])
    with torch.no_grad():
        encoded = model.encoder(PROMPT)
        twice = model.encoder(PROMPT.repeat_interleave(2, 0))
        shared = model(encoder_outputs=encoded, decoder_input_ids=targets, output_attentions=True)
        apart = model(encoder_outputs=twice, decoder_input_ids=targets, output_attentions=True)
        searched = model.generate(
            PROMPT,
            num_beams=2,
            min_new_tokens=3,
            max_new_tokens=3,
            output_attentions=True,
            output_hidden_states=True,
            return_dict_in_generate=True,
        )
    for one, other in zip(shared.cross_attentions, apart.cross_attentions, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)
    assert [step[0].shape[0] for step in searched.cross_attentions] == [4, 4, 4]
    assert [step[0].shape[-2:] for step in searched.decoder_attentions] == [(1, 1), (1, 2), (1, 3)]
    assert len(searched.encoder_attentions) == model.config.encoder_layers
    assert len(searched.decoder_hidden_states) == 3


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


def test_norms_with_frozen_weights_keep_their_statistics() -> None:
    model = tiny.build_model()
    model.encoder.embed_images.requires_grad_(False)  # as PEFT freezes whatever it does not train
    before = {name: tensor.clone() for name, tensor in model.encoder.state_dict().items()}
    inputs = {"input_ids": PROMPT, "labels": PROMPT}
    model.train()(**inputs, **tiny.media("image", 2))
    model(**inputs, **tiny.media("audio", 2))
    moved = {name for name, tensor in model.encoder.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved
    assert all(name.startswith("embed_audios") for name in moved)
    assert model.encoder.layers[0].training
    model.encoder.embed_images.requires_grad_(True)
    model.train()(**inputs, **tiny.media("image", 2))
    name = "embed_images.bn1.running_mean"
    assert not torch.equal(model.encoder.state_dict()[name], before[name])


@pytest.mark.parametrize("how", ["assign", "to_empty"])
def test_a_model_built_without_memory_is_the_same_with_weights(how: str) -> None:
    model = tiny.model()
    with torch.device("meta"):
        again = UnivalForConditionalGeneration(model.config).eval()
    if how == "to_empty":
        again.to_empty(device="cpu")
    again.load_state_dict(model.state_dict(), assign=how == "assign")
    inputs = {"input_ids": PROMPT, "labels": PROMPT, **tiny.media("image", 2)}
    for _ in range(2):
        assert torch.equal(again(**inputs).logits, model(**inputs).logits)


def test_low_rank_updates_that_a_folder_lacks_begin_as_nothing(tmp_path: Path) -> None:
    tiny.model().save_pretrained(tmp_path)
    tuned = UnivalForConditionalGeneration.from_pretrained(tmp_path, lora_rank=2).eval()
    updates = {name: tensor for name, tensor in tuned.state_dict().items() if "lora_" in name}
    assert all(bool(tensor.any()) == name.endswith("lora_A") for name, tensor in updates.items())
    assert all(tensor.abs().max() < 5.0 for tensor in updates.values())
    inputs = {"input_ids": PROMPT, "labels": PROMPT}
    assert torch.equal(tuned(**inputs).logits, tiny.model()(**inputs).logits)


def test_half_precision_takes_what_the_processor_returns() -> None:
    model = tiny.build_model().to(torch.bfloat16).eval()
    for modality in ("image", "video", "audio"):
        media = tiny.media(modality, 2)
        assert all(tensor.dtype is torch.float32 for tensor in media.values())
        assert model(input_ids=PROMPT, labels=PROMPT, **media).logits.dtype is torch.bfloat16


def test_generation_stops_at_strings() -> None:
    tokenizer = tiny.processor().tokenizer
    options = {"input_ids": PROMPT[:1], "max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}
    free = tiny.model().generate(**options)
    stop = tokenizer.decode(free[0, 1:3])
    found = tiny.model().generate(**options, stop_strings=[stop], tokenizer=tokenizer)
    assert found.shape[1] < free.shape[1]
    assert torch.equal(found[0], free[0, : found.shape[1]])


def test_collators_prepare_the_decoder_from_labels() -> None:
    labels = torch.tensor([[5, 6, 2], [7, 2, -100]])
    expected = torch.tensor([[0, 5, 6], [0, 7, 2]])
    assert torch.equal(tiny.model().prepare_decoder_input_ids_from_labels(labels), expected)


def test_rows_that_belong_to_no_row_of_the_encoder_are_refused() -> None:
    model = tiny.model()
    encoded = model.encoder(PROMPT)
    expected = model(encoder_outputs=encoded, labels=PROMPT).logits
    assert torch.equal(model(encoder_outputs=encoded.to_tuple(), labels=PROMPT).logits, expected)
    assert len(model(encoder_outputs=encoded, decoder_input_ids=PROMPT.repeat(2, 1)).logits) == 4  # beams
    for options, message in (
        ({"labels": PROMPT.repeat(2, 1)}, "labels have 4 rows for 2 of the encoder"),
        ({"decoder_input_ids": PROMPT.repeat(2, 1)[:3]}, "decoder_input_ids have 3 rows for 2 of the encoder"),
        ({"decoder_input_ids": PROMPT[:1]}, "decoder_input_ids have 1 rows for 2 of the encoder"),
    ):
        with pytest.raises(ValueError, match=message):
            model(encoder_outputs=encoded, **options)
    foreign = BaseModelOutput(last_hidden_state=encoded.last_hidden_state)
    with pytest.raises(ValueError, match="what this model's encoder returns"):
        model(encoder_outputs=foreign, labels=PROMPT)


def test_gradients_of_a_sound_after_a_search() -> None:
    sound = tiny.media("audio", 2)["input_values"]
    with torch.inference_mode():
        tiny.model().encoder.encode_media(input_values=sound)
    sound.requires_grad_()
    tiny.model()(input_ids=PROMPT, labels=PROMPT, input_values=sound).loss.backward()
    assert sound.grad is not None
    assert sound.grad.any()


def test_an_export_leaves_sounds_as_they_are() -> None:
    model = tiny.build_model().eval()
    inputs = {"input_ids": PROMPT, "decoder_input_ids": PROMPT, **tiny.media("audio", len(PROMPT))}
    with torch.no_grad():
        expected = model(**inputs).logits
        torch.export.export(model, (), inputs, strict=False)
        found = model(**inputs).logits
    assert type(found) is Tensor
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: {"input_values": (x * 32767).short()}, r"input_values is torch.int16: give floats in \[-1, 1\]"),
        (lambda x: {"input_values": x[0]}, r"input_values is \(\d+,\), and needs 2 axes"),
        (lambda x: {"input_values": x[:1]}, "1 media for 2 texts: give as many, or media_index"),
    ],
)
def test_media_of_another_kind_or_number_are_refused(change: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny.model().encoder(PROMPT, **change(tiny.media("audio", 2)["input_values"]))


def test_a_batch_without_rows_has_no_rows() -> None:
    empty = PROMPT[:0]
    for media in ({}, {"pixel_values": tiny.media("image", 1)["pixel_values"][:0]}):
        with torch.no_grad():
            assert tiny.model()(input_ids=empty, decoder_input_ids=empty, **media).logits.shape[:2] == empty.shape


def test_auto_classes_of_images_and_text_know_the_model(tmp_path: Path) -> None:
    tiny.model().save_pretrained(tmp_path)
    tiny.processor().save_pretrained(tmp_path)
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert type(loaded) is UnivalForConditionalGeneration
    assert type(AutoProcessor.from_pretrained(tmp_path)) is type(tiny.processor())
