"""The processor: media transforms, batches that share media, saving."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests import tiny
from unival.batch import Example
from unival.data.clips import MovingClips
from unival.errors import UserError
from unival.model.processing import UnivalProcessor, normalise, resize


def example(uid: str, media_id: str = "", prompt: str = "what?", seed: int = 0) -> Example:
    return Example(uid, prompt, "a cat", modality="image", media=tiny.picture(seed), media_id=media_id)


def test_pixels_are_mapped_to_minus_one_and_one() -> None:
    values = normalise(np.array([0, 255, 51], dtype=np.uint8))
    assert values.tolist() == pytest.approx([-1.0, 1.0, -0.6])
    assert values.dtype == torch.float32


def test_pictures_are_squashed_to_a_square_with_bicubic_filter(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (30, 50, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    expected = np.asarray(Image.fromarray(pixels).resize((24, 24), Image.Resampling.BICUBIC)) / 127.5 - 1.0
    for source in (pixels, Image.fromarray(pixels), tmp_path / "a.png", (tmp_path / "a.png").read_bytes()):
        tensor = tiny.processor().image(source)
        assert tensor.shape == (3, 24, 24)
        np.testing.assert_allclose(tensor.permute(1, 2, 0), expected, atol=1e-6)


def test_a_picture_of_the_right_size_is_not_filtered() -> None:
    pixels = tiny.picture(3)
    assert resize(pixels, 24) is pixels
    np.testing.assert_allclose(tiny.processor().image(pixels)[:, 0, 0], pixels[0, 0] / 127.5 - 1.0, atol=1e-6)


def test_videos_are_frames_in_order() -> None:
    clip = MovingClips("train")[1]
    tensor = tiny.processor().video(clip.encode())
    assert tensor.shape == (3, 4, 24, 24)
    frames = [resize(clip.frames[i], 24) / 127.5 - 1.0 for i in (1, 3, 5, 7)]  # the middle of each of four parts
    others = [resize(clip.frames[i], 24) / 127.5 - 1.0 for i in (7, 5, 3, 1)]
    distance = [np.abs(np.stack(f) - tensor.permute(1, 2, 3, 0).numpy()).mean() for f in (frames, others)]
    assert distance[0] < 0.06  # lossy compression
    assert distance[0] < distance[1]


def test_sounds_are_cut_or_padded_with_silence() -> None:
    processor = tiny.processor()
    long, short = np.arange(3000.0) / 3000, np.ones(500)
    assert processor.audio(long).tolist() == pytest.approx((np.arange(2000.0) / 3000).tolist())
    padded = processor.audio(short)
    assert padded.dtype == torch.float32
    assert padded[:500].eq(1).all()
    assert len(padded) == 2000
    assert not padded[500:].any()


def test_prompts_and_targets_are_padded_and_only_prompts_have_a_start() -> None:
    batch = tiny.processor().collate(
        [Example("0", "the", "a cat"), Example("1", "what does the image describe?", "cat")]
    )
    words = tiny.processor().tokenizer.convert_ids_to_tokens
    assert words(batch.inputs["input_ids"][0])[:4] == ["<s>", "Ġthe", "</s>", "<pad>"]
    assert batch.inputs["attention_mask"][0].tolist() == [1, 1, 1] + [0] * (batch.inputs["input_ids"].shape[1] - 3)
    assert words(batch.target[0]) == ["Ġa", "Ġcat", "</s>"]
    assert words(batch.target[1]) == ["Ġcat", "</s>", "<pad>"]
    assert set(batch.inputs) == {"input_ids", "attention_mask"}


def test_every_row_finds_its_own_medium_and_equal_ids_share_one() -> None:
    examples = [
        example("0", "b", seed=1),
        example("1", "a", seed=2),
        example("2", "b", seed=1),
        example("3", "", seed=3),
    ]
    inputs = tiny.processor().collate(examples).inputs
    assert len(inputs["pixel_values"]) == 3
    index = inputs["media_index"].tolist()
    assert index[0] == index[2]
    for row, own in enumerate(examples):
        assert torch.equal(inputs["pixel_values"][index[row]], tiny.processor().image(own.media))


def test_media_without_ids_are_not_shared() -> None:
    inputs = tiny.processor().collate([example("0", seed=1), example("1", seed=2)]).inputs
    index = inputs.get("media_index", torch.arange(2))
    for row, seed in enumerate((1, 2)):
        assert torch.equal(inputs["pixel_values"][index[row]], tiny.processor().image(tiny.picture(seed)))


def test_pictures_can_be_read_at_another_size() -> None:
    inputs = tiny.processor().collate([example("0", seed=1)], image_px=40).inputs
    assert inputs["pixel_values"].shape == (1, 3, 40, 40)
    assert torch.equal(inputs["pixel_values"][0], tiny.processor().image(tiny.picture(1), 40))


def test_a_shared_medium_is_loaded_once() -> None:
    opened = []

    class Counting(UnivalProcessor):
        def image(self, source: object, image_px: int | None = None, out: torch.Tensor | None = None) -> torch.Tensor:
            opened.append(source)
            return super().image(source, image_px, out)

    Counting(tiny.processor().tokenizer).collate([example(str(i), "same") for i in range(5)])
    assert len(opened) == 1


def test_a_batch_of_two_modalities_is_refused() -> None:
    with pytest.raises(ValueError, match=r"a batch holds one modality, got \['image', 'text'\]"):
        tiny.processor().collate([example("0"), Example("1", "what?")])


def test_a_broken_picture_is_named(tmp_path: Path) -> None:
    path = tmp_path / "notes.png"
    path.write_text("not a picture")
    with pytest.raises(UserError, match=r"notes\.png"):
        tiny.processor().collate([Example("0", "what?", modality="image", media=path)])


def test_saving_and_loading_keep_everything(tmp_path: Path) -> None:
    processor = UnivalProcessor(tiny.processor().tokenizer, num_bins=tiny.NUM_BINS, **tiny.PROCESSOR)
    processor.save_pretrained(tmp_path)
    loaded = UnivalProcessor.from_pretrained(tmp_path)
    for name in ("num_bins", "image_px", "video_px", "num_frames", "sample_rate", "audio_seconds"):
        assert getattr(loaded, name) == getattr(processor, name), name
    texts = [*tiny.TEXTS, "", "naïve café ☃", "<bin_1> <bin_2>", "a </s> b"]
    assert loaded.encode(texts) == processor.encode(texts)
    ids = torch.tensor([processor.encode([text])[0] for text in ("a cat",)])
    assert loaded.decode(ids) == processor.decode(ids) == ["a cat"]
    assert (tmp_path / "tokenizer.json").is_file()
    files = "".join(path.read_text() for path in tmp_path.iterdir())
    assert str(tmp_path) not in files


def test_a_code_that_the_model_has_not_is_refused_with_its_row() -> None:
    processor = tiny.processor()
    last = tiny.NUM_CODES - 1
    good = Example("1", "draw it", f"<code_0><code_{last}>", writes_codes=True)
    empty = Example("2", "draw it", "", writes_codes=True)  # nothing to compare with
    assert processor.collate([good, empty]).writes_codes
    bad = Example("3", "draw it", f"<code_0><code_{last + 1}>", writes_codes=True, where="pictures.jsonl:7")
    with pytest.raises(UserError, match=f"its largest is {last + 1}") as caught:
        processor.collate([good, bad])
    assert caught.value.where == "pictures.jsonl:7"


def test_a_call_makes_the_inputs_that_a_batch_has() -> None:
    processor = tiny.processor()
    pictures = [tiny.picture(seed) for seed in range(2)]
    examples = [
        Example(str(i), text, modality="image", media=p)
        for i, (text, p) in enumerate(zip(("a cat", "a dog and a cat"), pictures, strict=True))
    ]
    expected = processor.collate(examples).inputs
    assert "media_index" not in expected  # one picture each, in order
    found = processor(images=pictures, text=[example.prompt for example in examples])
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    one = processor(pictures[1], "a dog and a cat", return_tensors="pt", padding=True)
    assert torch.equal(one["pixel_values"], expected["pixel_values"][1:])
    sound = np.linspace(-0.5, 0.5, 4000, dtype=np.float32)
    assert torch.equal(processor(text="a cat", audio=sound)["input_values"][0], processor.audio(sound))
    assert processor(text=["a cat"]).keys() == {"input_ids", "attention_mask"}
    assert processor(images=pictures).keys() == {"pixel_values"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "got nothing"),
        ({"text": "a", "images": [1, 2]}, "1 prompts and 2 media of kind image"),
        ({"text": "a", "images": [1], "audio": [2]}, "got image and audio"),
        ({"text": "a", "return_tensors": "np"}, "return_tensors='np'"),
        ({"text": "a", "padding": "max_length"}, "padding='max_length'"),
    ],
)
def test_a_call_that_means_nothing_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        tiny.processor()(**options)
    with pytest.raises(TypeError, match="truncation"):
        tiny.processor()(text="a", truncation=True)


def test_one_row_is_decoded_to_a_text_and_several_to_texts() -> None:
    processor = tiny.processor()
    ids = torch.tensor(processor.encode(["a cat", "a dog"]))
    assert processor.decode(ids[0]) == "a cat"
    assert processor.decode(ids) == processor.batch_decode(ids, skip_special_tokens=True) == ["a cat", "a dog"]
    assert processor.decode(ids.tolist()) == ["a cat", "a dog"]
    assert processor.decode(ids[0], skip_special_tokens=False) == "<s> a cat</s>"


def test_sounds_at_another_rate_are_resampled() -> None:
    processor = tiny.processor()
    rate = processor.sample_rate
    tone = np.sin(2 * np.pi * 200 * np.arange(rate) / rate).astype(np.float32)
    twice = np.sin(2 * np.pi * 200 * np.arange(2 * rate) / (2 * rate)).astype(np.float32)
    given = processor(text="what is it?", audio=tone)["input_values"]
    found = processor(text="what is it?", audio=twice, sampling_rate=2 * rate)["input_values"]
    assert found.shape == given.shape
    assert (found - given)[:, 100:-100].abs().max() < 0.02
    assert torch.equal(processor(text="what is it?", audio=tone, sampling_rate=rate)["input_values"], given)
    with pytest.raises(UserError, match="the list of prompts is empty"):
        processor(text=[])
