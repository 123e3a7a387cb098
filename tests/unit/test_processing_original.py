"""The processor with the original's settings: what `configs/model/base.yaml` asks of pictures, clips and sounds."""

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import BaseModel

from tests import tiny
from unival.config import load_config
from unival.data.clean import clean_caption, clean_question
from unival.errors import UserError
from unival.model import processing
from unival.model.processing import UnivalProcessor

ROOT = Path(__file__).resolve().parents[2]


class ModelFile(BaseModel):
    """What files under `configs/model` hold."""

    model: dict[str, Any]
    processor: dict[str, Any]
    tokenizer: dict[str, Any]


def build(**changes: Any) -> UnivalProcessor:
    settings = load_config(ROOT / "configs" / "model" / "base.yaml", [], ModelFile).processor
    return UnivalProcessor(tiny.processor().tokenizer, **(settings | changes))


def test_the_file_and_the_released_settings_agree() -> None:
    assert load_config(ROOT / "configs" / "model" / "base.yaml", [], ModelFile).processor == processing.RELEASED


def test_sizes_are_the_originals() -> None:
    processor = build()
    assert processor.image(tiny.picture()).shape == (3, 480, 480)
    assert processor.audio(np.ones(100)).shape == (480_000,)


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "model").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_model_file_names_options_that_exist(path: Path) -> None:
    file = load_config(path, [], ModelFile)
    assert file.processor.keys() <= set(inspect.signature(UnivalProcessor).parameters)


def test_clips_are_cut_in_the_centre_and_small_ones_framed_in_black(monkeypatch: pytest.MonkeyPatch) -> None:
    frames = np.full((2, 6, 10, 3), 255, dtype=np.uint8)
    frames[:, 3, 5] = (10, 20, 30)
    monkeypatch.setattr(processing, "load_video", lambda source, num_frames, *rest, **options: frames)
    clip = build(video_px=8, num_frames=2).video("clip")
    assert clip.shape == (3, 2, 8, 8)
    black, white = -1.0, 1.0
    assert clip[:, :, 0].eq(black).all()
    assert clip[:, :, 7].eq(black).all()
    assert clip[:, 0, 1:7].ne(white).sum() == 3  # six rows stay whole; columns 1 to 8 are kept
    assert clip[:, 1, 4, 4].tolist() == pytest.approx([10 / 127.5 - 1, 20 / 127.5 - 1, 30 / 127.5 - 1])


def test_short_sounds_are_repeated_whole_and_long_ones_cut_in_the_centre() -> None:
    processor = build(sample_rate=10, audio_seconds=1.0, audio_int16=False)
    assert processor.audio(np.array([1.0, 2.0, 3.0])).tolist() == [1, 2, 3] * 3 + [0]
    assert processor.audio(np.arange(14.0)).tolist() == [*range(2, 12)]


def test_samples_are_rounded_to_sixteen_bits() -> None:
    samples = build(sample_rate=4, audio_seconds=1.0).audio(np.array([0.5, -0.5, 2.0, 1e-5]))
    assert samples.tolist() == pytest.approx([16383 / 32767, -16383 / 32767, 1.0, 0.0])
    assert samples.dtype == torch.float32


def test_pixels_can_be_normalised_by_channel() -> None:
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    pixels = np.full((2, 2, 3), 51, dtype=np.uint8)
    values = UnivalProcessor(tiny.processor().tokenizer, pixel_mean=mean, pixel_std=std, image_px=2).image(pixels)
    assert values[:, 0, 0].tolist() == pytest.approx([(0.2 - m) / s for m, s in zip(mean, std, strict=True)], rel=1e-5)


@pytest.mark.parametrize("option", ["video_fit", "audio_pad", "audio_crop"])
def test_an_unknown_choice_is_refused(option: str) -> None:
    with pytest.raises(UserError, match=f"{option}: 'stretch' is unknown"):
        build(**{option: "stretch"})


def test_settings_are_saved_with_the_processor(tmp_path: Path) -> None:
    processor = build()
    processor.save_pretrained(tmp_path)
    loaded = UnivalProcessor.from_pretrained(tmp_path)
    names = [name for name in inspect.signature(UnivalProcessor).parameters if name != "tokenizer"]
    assert {name: getattr(loaded, name) for name in names} == {name: getattr(processor, name) for name in names}


def test_texts_are_cleaned_as_the_original_does() -> None:
    assert clean_question("?What-is/this:  a   cat?", 80) == "what is this: a cat?"
    assert clean_caption(" <person> Rides a horse\n", 3) == "person rides a"
    assert clean_question("<person>", 5) == "<person>"
