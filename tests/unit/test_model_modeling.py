"""The assembled model: tied embeddings, refused inputs, picture codes, loss, initial weights, saving."""

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForSeq2SeqLM

from tests import tiny
from unival.batch import Modality
from unival.model.bias import causal_bias, mask_bias
from unival.model.layers import drop_path_rates
from unival.model.modeling import MEDIA_INPUTS, UnivalForConditionalGeneration

PROMPT = torch.tensor([[5, 6, 7]])
OWN = {"architectures": None, "_name_or_path": ""}  # entries that say where a model comes from


def test_the_three_embeddings_are_one_tensor() -> None:
    model = tiny.build_model()
    weight = model.encoder.embed_tokens.weight
    assert model.decoder.embed_tokens.weight is weight
    assert model.decoder.output_projection.weight is weight
    assert sum(p.shape == weight.shape for p in model.parameters()) == 1
    new = torch.nn.Embedding(*weight.shape)
    model.set_input_embeddings(new)
    model.tie_weights()
    assert model.decoder.output_projection.weight is new.weight
    assert model.get_input_embeddings() is new


def test_two_media_at_once_are_refused() -> None:
    media = tiny.media("image", 1) | tiny.media("audio", 1)
    with pytest.raises(ValueError, match="one modality per batch, got image and audio"):
        tiny.model()(input_ids=PROMPT, decoder_input_ids=PROMPT, **media)


@pytest.mark.parametrize("modality", ["image", "video", "audio"])
def test_a_medium_without_its_encoder_is_refused(modality: Modality) -> None:
    model = tiny.build_model(**{f"{modality}_encoder": None})
    assert not any(f"{modality}_proj" in name or f"embed_{modality}s" in name for name in model.state_dict())
    with pytest.raises(ValueError, match=f"no {modality} encoder: add `{modality}_encoder`"):
        model(input_ids=PROMPT, decoder_input_ids=PROMPT, **tiny.media(modality, 1))
    others = [name for name in ("image", "video", "audio") if name != modality]
    for other in others:
        assert model(input_ids=PROMPT, decoder_input_ids=PROMPT, **tiny.media(other, 1)).logits.isfinite().all()


@pytest.mark.parametrize(
    ("modality", "shape", "message"),
    [
        ("image", (1, 3, 56, 24), "7x3 does not fit the position table of 6x6"),
        ("video", (1, 3, 4, 24, 56), "3x7 does not fit the position table of 6x6"),
        ("audio", (1, 8000), "40 audio tokens do not fit the position table of 6x6"),
    ],
)
def test_a_medium_larger_than_the_position_table_is_refused(
    modality: Modality, shape: tuple[int, ...], message: str
) -> None:
    media = {MEDIA_INPUTS[modality]: torch.zeros(shape)}
    with pytest.raises(ValueError, match=message):
        tiny.model()(input_ids=PROMPT, decoder_input_ids=PROMPT, **media)


def test_a_prompt_longer_than_the_position_table_is_refused() -> None:
    with pytest.raises(ValueError, match="65 text tokens exceed max_text_positions = 64"):
        tiny.model()(input_ids=torch.full((1, 65), 5), decoder_input_ids=PROMPT)


def test_media_tokens_come_first_and_only_text_is_padding() -> None:
    prompts = torch.tensor([[5, 6, 7], [8, 1, 1]])
    encoded = tiny.model().encoder(prompts, **tiny.media("image", 2))
    assert encoded.last_hidden_state.shape == (2, 9 + 3, 16)
    assert encoded.attention_mask.tolist() == [[True] * 12, [True] * 10 + [False] * 2]
    assert [p.shape for p in encoded.position_embeddings] == [(1, 12, 16)]


def test_media_encoded_before_give_the_same_result() -> None:
    encoder, media = tiny.model().encoder, tiny.media("video", 2)
    prompts = torch.tensor([[5, 6], [8, 9], [4, 3]])
    index = torch.tensor([1, 0, 1])
    direct = encoder(prompts, media_index=index, **media).last_hidden_state
    before = encoder(prompts, media_index=index, media_tokens=encoder.encode_media(**media))
    assert torch.equal(direct, before.last_hidden_state)


def test_video_frames_share_the_position_of_their_cell() -> None:
    tokens = tiny.model().encoder.encode_media(torch.rand(1, 3, 24, 24))
    clip = tiny.model().encoder.encode_media(pixel_values_videos=torch.rand(1, 3, 12, 24, 24))
    assert tokens is not None
    assert clip is not None
    assert tokens.ids.tolist() == [1, 2, 3, 7, 8, 9, 13, 14, 15]
    assert clip.ids.tolist() == tokens.ids.tolist() * (len(clip.ids) // 9)
    assert len(clip.ids) > 9


def test_picture_codes_have_two_dimensional_positions() -> None:
    """Permuting rows of the text table changes nothing, and the first cell of a row is near the one above it."""
    model = tiny.build_model()
    codes = torch.arange(331, 341)[None]
    prefix = torch.cat([torch.zeros(1, 1, dtype=torch.long), codes], dim=1)

    def features() -> Tensor:
        with torch.inference_mode():
            return model(input_ids=PROMPT, decoder_input_ids=prefix, writes_codes=True).logits

    before = features()
    with torch.no_grad():
        model.decoder.embed_positions.weight.normal_()
        model.decoder.layernorm_embedding.weight.normal_()
        for table in model.decoder.token_rel_pos_table_list:
            table.weight.normal_()
    assert torch.equal(features(), before)
    with torch.no_grad():  # the bucket "one row up", used first by the fifth code of a grid with four columns
        grid = model.config.image_bucket_size
        up = grid * (2 * grid - 1) + grid - 1
        for table in model.decoder.image_rel_pos_table_list:
            table.weight[up] += 3.0
    after = features()
    assert torch.equal(after[:, :5], before[:, :5])
    assert (after[:, 5] - before[:, 5]).abs().max() > 1e-2


def test_generate_can_write_picture_codes() -> None:
    model = tiny.model()
    first_code = model.config.vocab_size - tiny.NUM_BINS - tiny.NUM_CODES
    is_code = range(first_code, first_code + tiny.NUM_CODES)
    others = [token for token in range(model.config.vocab_size) if token not in is_code]
    found = model.generate(PROMPT, writes_codes=True, max_new_tokens=16, suppress_tokens=others, do_sample=False)
    prefix = torch.zeros(1, 1, dtype=torch.long)
    with torch.inference_mode():
        for _ in range(16):
            out = model(input_ids=PROMPT, decoder_input_ids=prefix, writes_codes=True).logits[:, -1]
            best = out[:, is_code.start : is_code.stop].argmax(-1) + is_code.start
            prefix = torch.cat([prefix, best[:, None]], dim=1)
    assert torch.equal(found, prefix)


def test_loss_is_the_mean_over_real_target_tokens() -> None:
    model = tiny.model()
    labels = torch.tensor([[8, 9, 2], [7, 2, -100], [6, 2, 1]])
    out = model(input_ids=PROMPT.expand(3, -1), labels=labels)
    log_probs = out.logits.log_softmax(-1)
    picked = [log_probs[b, t, labels[b, t]] for b, t in [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (2, 0), (2, 1)]]
    torch.testing.assert_close(out.loss, -torch.stack(picked).mean(), atol=1e-6, rtol=1e-6)
    assert model.shift_right(labels).tolist() == [[0, 8, 9], [0, 7, 2], [0, 6, 2]]


def test_initial_weights_follow_the_specification() -> None:
    torch.manual_seed(1)
    model = UnivalForConditionalGeneration(tiny.model().config)
    weights = {name: weight.detach() for name, weight in model.named_parameters()}
    table = weights["encoder.embed_tokens.weight"]
    assert float(table[2:].std()) == pytest.approx(0.02, rel=0.05)
    assert not table[1].any()  # the padding row
    assert float(weights["decoder.layers.0.fc1.weight"].std()) == pytest.approx(0.02, rel=0.2)
    assert float(weights["encoder.image_rel_pos_table_list.0.weight"].std()) == pytest.approx(0.02, rel=0.2)
    for name, weight in weights.items():
        if name.endswith(".bias"):
            assert not weight.any(), name
        if name.endswith("c_attn") or "layer_norm.weight" in name:
            assert bool((weight == 1).all()), name
    convolution = weights["encoder.embed_audios.conv_block2.conv1.weight"]
    fan_out = convolution.shape[0] * 9
    assert float(convolution.std()) == pytest.approx((2 / fan_out) ** 0.5, rel=0.2)


def test_save_pretrained_and_from_pretrained_are_inverse(tmp_path) -> None:
    model = tiny.model()
    model.save_pretrained(tmp_path)
    for cls in (UnivalForConditionalGeneration, AutoModelForSeq2SeqLM):
        loaded = cls.from_pretrained(tmp_path).eval()
        assert all(torch.equal(v, loaded.state_dict()[k]) for k, v in model.state_dict().items())
        assert loaded.config.to_diff_dict() | OWN == model.config.to_diff_dict() | OWN
        media = tiny.media("audio", 1)
        ours = model(input_ids=PROMPT, decoder_input_ids=PROMPT, **media).logits
        assert torch.equal(loaded(input_ids=PROMPT, decoder_input_ids=PROMPT, **media).logits, ours)


def test_masks_hide_padding_and_the_future() -> None:
    minimum = torch.finfo(torch.float32).min
    assert mask_bias(torch.tensor([[True, False]]), torch.float32).tolist() == [[[[0.0, minimum]]]]
    assert causal_bias(1, 3, torch.zeros(1)).tolist() == [[0.0, 0.0, minimum], [0.0, 0.0, 0.0]]


def test_stochastic_depth_grows_linearly_with_depth() -> None:
    assert drop_path_rates(0.3, 4) == pytest.approx([0.0, 0.1, 0.2, 0.3])
    assert drop_path_rates(0.3, 1) == [0.0]
