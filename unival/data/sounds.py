"""Sounds: one or two short recordings in a row, with captions, families and questions.

    sound = Sounds("test")[7]
    sound.waveform              # float32 (64000,), 4 s at 16 kHz
    sound.caption               # "a cash register followed by a low tabla drum hit"
    sound.families              # ("percussion", "tabla")

The 115 recordings are the Sonic Pi samples of at most 2 s (CC0). They are split by name without its
trailing number, so a test sound was never heard in training, nor was another take of it. Every family is
heard in training, and every family with at least two names is tested.
"""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
import soundfile

from unival.data import world
from unival.data.language import Question, noun_phrase, pick
from unival.data.questions import spread
from unival.errors import UserError

SOUND_QUESTION_TYPES = ("what", "family", "count", "yesno")
_TEST_FRACTION, _VALIDATION_FRACTION = 0.2, 0.1
_LEAD_SECONDS, _GAP_SECONDS, _TAIL_SECONDS = 0.1, 0.2, 0.1
_PEAK = 0.8
_NOISE, _LEAST_NOISE, _MOST_NOISE = 0.001, 0.0003, 0.003  # of a microphone; digital silence would be -100 dB everywhere


@dataclass(frozen=True, slots=True)
class Recording:
    """One recorded sound; `base_name` decides the split, `start` and `length` are in samples."""

    name: str
    base_name: str
    family: str
    caption: str
    start: int
    length: int


@dataclass(frozen=True)
class Sound:
    """A waveform, float32 in [-1, 1], with its recordings in the order in which they are heard.

    `spans` holds the first sample of each recording and the one after its last.
    """

    waveform: np.ndarray
    sample_rate: int
    recordings: tuple[Recording, ...]
    spans: tuple[tuple[int, int], ...]

    @cached_property
    def caption(self) -> str:
        """The canonical description: "a cash register", "a snare drum hit followed by a finger snap"."""
        return " followed by ".join(recording.caption for recording in self.recordings)

    @property
    def captions(self) -> tuple[str, ...]:
        """The caption of each recording."""
        return tuple(recording.caption for recording in self.recordings)

    @property
    def families(self) -> tuple[str, ...]:
        """The family of each recording."""
        return tuple(recording.family for recording in self.recordings)


class Sounds:
    """An indexable set of sounds.

    Args:
        split: "train", "validation" or "test".
        sample_rate: samples per second of the waveforms.
        seconds: length of every waveform, at least 2.5.
        max_sounds: 1 or 2 recordings per waveform.
        seed: a different seed gives different combinations of the same split.
        augment: vary gain, speed, tone, start and the level of the faint noise; by default for "train" only.
        octaves: how far the speed varies either way when augmented; beyond 0.1 pitch words in captions become wrong.
        tone_db: how much the tone varies when augmented, the standard deviation of a smooth random filter.
        length: what `len` reports.
    """

    def __init__(
        self,
        split: str,
        sample_rate: int = 16_000,
        seconds: float = 4.0,
        max_sounds: int = 2,
        seed: int = 0,
        augment: bool | None = None,
        octaves: float = 0.1,
        tone_db: float = 0.0,
        length: int = 1_000_000_000,
    ) -> None:
        if seconds < 2.5 or sample_rate < 4000 or max_sounds not in (1, 2):
            raise UserError(
                f"seconds={seconds}, sample_rate={sample_rate}, max_sounds={max_sounds}",
                where="Sounds",
                fix="use at least 2.5 seconds, at least 4000 Hz, and 1 or 2 sounds",
            )
        self.split = world.check_split(split)
        self.sample_rate = sample_rate
        self.seconds = seconds
        self.max_sounds = max_sounds
        self.seed = seed
        self.augment = split == "train" if augment is None else augment
        self.octaves, self.tone_db = octaves, tone_db
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Sound:
        if not 0 <= index < self.length:
            raise IndexError(f"sound {index} of {self.length}")
        rng = world.generator(self.seed, self.split, "audio", index)
        pool = split_recordings(self.split)
        chosen = [_draw(rng, pool)]
        if self.max_sounds == 2 and rng.random() < 0.5:
            # Leave room for a slowed-down pair, the gap and the lead.
            room = 0.97 * 2**-self.octaves * (self.seconds - 0.6) - chosen[0].length / _packed_rate()
            others = [r for r in pool if r.caption != chosen[0].caption and r.length / _packed_rate() <= room]
            chosen += [_draw(rng, others)] if others else []
        waves = [self._render(rng, recording) for recording in chosen]
        waveform, spans = self._arrange(rng, waves)
        return Sound(waveform, self.sample_rate, tuple(chosen), spans)

    def _render(self, rng: np.random.Generator, recording: Recording) -> np.ndarray:
        """Return one recording at the sample rate, scaled to its peak."""
        speed, peak = 1.0, _PEAK
        if self.augment:
            speed, peak = 2 ** (self.octaves * (2 * rng.random() - 1)), 0.35 + 0.6 * rng.random()
        wave = _stream()[recording.start : recording.start + recording.length]
        wave = _resample(wave, self.sample_rate / _packed_rate() / speed)
        if self.augment and self.tone_db:
            wave = _colour(rng, wave, self.tone_db)
        return wave * (peak / max(float(np.abs(wave).max()), 1e-4))

    def _arrange(
        self, rng: np.random.Generator, waves: list[np.ndarray]
    ) -> tuple[np.ndarray, tuple[tuple[int, int], ...]]:
        """Put the waves one after the other on faint noise."""
        num_samples = round(self.seconds * self.sample_rate)
        gap = round(_GAP_SECONDS * self.sample_rate) if len(waves) == 2 else 0
        start = round(_LEAD_SECONDS * self.sample_rate)
        noise = _LEAST_NOISE + (_MOST_NOISE - _LEAST_NOISE) * rng.random() if self.augment else _NOISE
        result = np.float32(noise) * rng.standard_normal(num_samples, np.float32)
        if self.augment:
            spare = num_samples - sum(len(wave) for wave in waves) - gap - round(_TAIL_SECONDS * self.sample_rate)
            start = int(rng.integers(max(spare, 0) + 1))
        spans = []
        for wave in waves:
            part = result[start : start + len(wave)]
            part += wave[: len(part)]
            spans.append((start, start + len(part)))
            start += len(wave) + gap
        return np.clip(result, -1, 1), tuple(spans)


def _draw(rng: np.random.Generator, pool: Sequence[Recording]) -> Recording:
    """Draw a family, then one of its recordings, so that families are even."""
    families = sorted({recording.family for recording in pool})
    family = pick(rng, families)
    return pick(rng, [recording for recording in pool if recording.family == family])


@cache
def recordings() -> tuple[Recording, ...]:
    """Return all recordings in the order of the packed stream."""
    return tuple(
        Recording(r["name"], re.sub(r"\d+$", "", r["name"]), r["family"], r["caption"], r["start"], r["length"])
        for r in world.layout()["sounds"]
    )


@cache
def split_recordings(split: str) -> tuple[Recording, ...]:
    """Return the recordings of a split; no base name is in two splits.

    Within a family the base names are ordered by their number of takes, then by a stable hash, so that
    names with many takes train. Of two or more names the first fifth (at least one) are tested, of three or
    more the next tenth (at least one) validate, and the rest train.
    """
    world.check_split(split)
    families: dict[str, dict[str, int]] = {}
    for recording in recordings():
        takes = families.setdefault(recording.family, {})
        takes[recording.base_name] = takes.get(recording.base_name, 0) + 1
    owner: dict[str, str] = {}
    for takes in families.values():
        ordered = sorted(takes, key=lambda name: (takes[name], world.hash_percent(name), name))
        num_test = max(1, round(_TEST_FRACTION * len(ordered))) if len(ordered) > 1 else 0
        num_validation = max(1, round(_VALIDATION_FRACTION * len(ordered))) if len(ordered) > 2 else 0
        for position, name in enumerate(ordered):
            held_out = "test" if position < num_test else "validation"
            owner[name] = held_out if position < num_test + num_validation else "train"
    return tuple(recording for recording in recordings() if owner[recording.base_name] == split)


@cache
def families() -> tuple[str, ...]:
    """Return the names of the sound families, sorted."""
    return tuple(sorted({recording.family for recording in recordings()}))


@cache
def family_of_caption() -> dict[str, str]:
    """Return the family of every caption of a single recording."""
    return {recording.caption: recording.family for recording in recordings()}


@cache
def _packed_rate() -> int:
    return world.layout()["sample_rate_hz"]


@cache
def _stream() -> np.ndarray:
    """Decode the packed stream once: float32, 16 kHz."""
    wave, _ = soundfile.read(io.BytesIO(world.asset("sounds.ogg").read_bytes()), dtype="float32")
    return wave


def _resample(wave: np.ndarray, ratio: float) -> np.ndarray:
    """Resample to about `ratio` times the length by cutting or padding the spectrum."""
    if ratio == 1:
        return wave
    # Silence up to a power of two makes the wrap-around inaudible; steps of 1/128 are fast to invert.
    padded = 1 << (len(wave) + 256).bit_length()
    length = padded // 128 * round(128 * ratio)
    spectrum = np.fft.rfft(wave, padded)
    num_samples = round(len(wave) * length / padded)
    return (np.fft.irfft(spectrum, length)[:num_samples] * (length / padded)).astype(np.float32)


def _colour(rng: np.random.Generator, wave: np.ndarray, tone_db: float) -> np.ndarray:
    """Filter with random gains of `tone_db` deviation, smooth over the square root of frequency."""
    spectrum = np.fft.rfft(wave)
    gains_db = tone_db * rng.standard_normal(6)
    gains_db = np.interp(np.linspace(0, 1, len(spectrum)) ** 0.5, np.linspace(0, 1, len(gains_db)), gains_db)
    return np.fft.irfft(spectrum * 10 ** (gains_db / 20), len(wave)).astype(np.float32)


def sound_questions(sound: Sound, rng: np.random.Generator, n: int) -> list[Question]:
    """Return up to n different questions with the types of SOUND_QUESTION_TYPES spread evenly."""
    return spread(lambda type: sound_question_of_type(sound, rng, type), SOUND_QUESTION_TYPES, rng, n)


def sound_question_of_type(sound: Sound, rng: np.random.Generator, type: str) -> Question:
    """Return a random question of one type."""
    return Question(type, *_question(sound, rng, type))


def _question(sound: Sound, rng: np.random.Generator, type: str) -> tuple[str, str]:
    if type == "count":
        return "how many sounds are there?", str(len(sound.recordings))
    if type == "yesno":
        is_yes = rng.random() < 0.5
        absent = [family for family in families() if family not in sound.families]
        family = pick(rng, list(sound.families) if is_yes else absent)
        return f"is {noun_phrase(family)} sound heard?", "yes" if is_yes else "no"
    index = int(rng.integers(len(sound.recordings)))
    when = ("",) if len(sound.recordings) == 1 else (" first", " last")
    if type == "family":
        return f"what kind of sound is heard{when[index]}?", sound.families[index]
    return f"what is heard{when[index]}?", sound.captions[index]
