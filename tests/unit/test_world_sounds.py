"""Sounds: recordings stay in their split, waveforms hold what captions and answers say."""

import numpy as np
import pytest

from unival.data.sounds import (
    Sounds,
    families,
    family_of_caption,
    recordings,
    sound_questions,
    split_recordings,
)
from unival.data.world import SPLITS
from unival.errors import UserError


def test_names_are_split_and_every_family_is_heard_in_training():
    names = {split: {r.base_name for r in split_recordings(split)} for split in SPLITS}
    assert not names["train"] & names["validation"]
    assert not names["train"] & names["test"]
    assert not names["validation"] & names["test"]
    assert sum(len(split_recordings(split)) for split in SPLITS) == len(recordings()) == 115
    assert {r.family for r in split_recordings("train")} == set(families())
    for family in families():
        if len({r.base_name for r in recordings() if r.family == family}) >= 2:
            assert family in {r.family for r in split_recordings("test")}


def test_a_caption_names_one_family():
    assert all(family_of_caption()[r.caption] == r.family for r in recordings())
    assert family_of_caption()["a snare drum hit"] == "snare drum"


@pytest.mark.parametrize("split", SPLITS)
def test_waveforms_are_audible_bounded_and_captioned(split):
    source = Sounds(split)
    lengths = set()
    for i in range(40):
        sound = source[i]
        assert sound.waveform.shape == (64_000,)
        assert sound.waveform.dtype == np.float32
        assert 0.2 < np.abs(sound.waveform).max() <= 1
        assert sound.caption == " followed by ".join(sound.captions)
        assert set(sound.recordings) <= set(split_recordings(split))
        lengths.add(len(sound.recordings))
    assert lengths == {1, 2}


def test_two_sounds_come_one_after_the_other():
    source = Sounds("test")
    pairs = [sound for sound in (source[i] for i in range(40)) if len(sound.recordings) == 2]
    for sound in pairs:
        first, second = sound.recordings
        end = 1600 + first.length
        assert np.abs(sound.waveform[1600:end]).max() == pytest.approx(0.8, abs=6e-3)  # faint noise
        assert np.abs(sound.waveform[end : end + 3200]).max() < 0.01
        rest = sound.waveform[end + 3200 : end + 3200 + second.length]
        assert np.abs(rest).max() == pytest.approx(0.8, abs=6e-3)  # faint noise


def test_another_sample_rate_keeps_the_sound():
    low, high = Sounds("test", max_sounds=1)[3].waveform, Sounds("test", sample_rate=32_000, max_sounds=1)[3]
    assert high.waveform.shape == (128_000,)
    assert np.corrcoef(low, high.waveform[::2])[0, 1] > 0.99


def test_answers_follow_from_the_recordings():
    source = Sounds("train")
    for i in range(60):
        sound = source[i]
        for question in sound_questions(sound, np.random.default_rng(i), 6):
            index = -1 if "last" in question.question else 0
            expected = {
                "what": sound.captions[index],
                "family": sound.families[index],
                "count": str(len(sound.recordings)),
                "yesno": "yes" if any(f" {f} sound" in question.question for f in sound.families) else "no",
            }
            assert question.answer == expected[question.type]


def test_the_same_index_gives_the_same_sound():
    assert np.array_equal(Sounds("train")[5].waveform, Sounds("train")[5].waveform)
    assert not np.array_equal(Sounds("train")[5].waveform, Sounds("train", seed=1)[5].waveform)


def test_too_short_clips_are_refused():
    with pytest.raises(UserError, match=r"2\.5 seconds"):
        Sounds("train", seconds=1.0)
