"""Sounds of every common kind come out mono, at the asked rate and length; bad files are one clear line."""

import io
import random
import struct
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from unival.data import audio
from unival.data.audio import fit_length, load_audio
from unival.errors import UserError

RATE = 16_000


def tone(seconds: float = 1.0, hz: float = 440.0, rate: int = RATE) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def encoded(samples: np.ndarray, file_format: str = "WAV", rate: int = RATE, subtype: str | None = None) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=file_format, subtype=subtype)
    return buffer.getvalue()


def in_container(
    path: Path,
    samples: np.ndarray,
    codec: str = "aac",
    rate: int = RATE,
    options: dict[str, str] | None = None,
    bit_rate: int | None = None,
) -> Path:
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream(codec, rate=rate, layout="mono")
        if bit_rate is not None:
            stream.bit_rate = bit_rate
        for start in range(0, len(samples), 960):
            block = samples[None, start : start + 960]
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(block), format="fltp", layout="mono")
            frame.sample_rate, frame.pts = rate, start
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def main_hz(samples: np.ndarray, rate: int = RATE) -> float:
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return float(spectrum.argmax() * rate / len(samples))


@pytest.mark.parametrize(
    ("file_format", "subtype", "tolerance"),
    [
        ("WAV", "FLOAT", 0.0),
        ("WAV", "PCM_16", 2**-15),  # one step of 16 bits
        ("WAV", "PCM_U8", 2**-7),
        ("FLAC", "PCM_16", 2**-15),
        ("AIFF", "PCM_24", 2**-23),
    ],
)
def test_lossless_formats_keep_every_sample(file_format: str, subtype: str, tolerance: float) -> None:
    samples = load_audio(encoded(tone(), file_format, subtype=subtype), RATE)
    assert samples.dtype == np.float32
    assert samples.shape == (RATE,)
    assert np.abs(samples - tone()).max() <= tolerance


@pytest.mark.parametrize("file_format", ["OGG", "MP3"])
def test_lossy_formats_keep_the_tone(file_format: str) -> None:
    samples = load_audio(encoded(tone(), file_format), RATE)
    assert abs(len(samples) - RATE) < 2500  # MP3 pads to whole frames
    assert main_hz(samples) == pytest.approx(440, abs=2)


@pytest.mark.parametrize(("name", "codec"), [("a.m4a", "aac"), ("a.mp4", "aac"), ("a.mkv", "flac")])
def test_the_sound_track_of_a_container_is_read(name: str, codec: str, tmp_path: Path) -> None:
    samples = load_audio(in_container(tmp_path / name, tone(), codec), RATE)
    assert abs(len(samples) - RATE) < 2100  # AAC frames of 1024 samples
    assert main_hz(samples[:RATE]) == pytest.approx(440, abs=2)
    assert np.abs(samples).max() == pytest.approx(0.5, abs=0.05)


def test_path_text_bytes_and_file_give_the_same(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(encoded(tone()))
    with path.open("rb") as file:
        results = [load_audio(source, RATE) for source in (path, str(path), path.read_bytes(), file)]
        assert not file.closed
    assert all(np.array_equal(result, results[0]) for result in results)


def test_channels_are_averaged() -> None:
    stereo = np.stack([tone(hz=440), np.zeros(RATE, np.float32)], axis=1)
    assert np.abs(load_audio(encoded(stereo, subtype="FLOAT"), RATE) - tone() / 2).max() < 1e-7


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 48_000])
def test_resampling_keeps_the_tone_and_the_length(rate: int) -> None:
    samples = load_audio(encoded(tone(rate=rate), rate=rate, subtype="FLOAT"), RATE)
    assert len(samples) == RATE
    # Away from the ends; the filter is six zero crossings wide.
    assert np.abs(samples[1000:-1000] - tone()[1000:-1000]).max() < 2e-3


def test_an_odd_rate_needs_no_giant_filter() -> None:
    samples = load_audio(encoded(tone(rate=44_099), rate=44_099), RATE)
    assert abs(len(samples) - RATE) <= 1
    assert main_hz(samples) == pytest.approx(440, abs=2)


def test_a_short_sound_is_repeated_whole_and_then_silent() -> None:
    assert fit_length(np.array([1, 2, 3], np.float32), 8).tolist() == [1, 2, 3, 1, 2, 3, 0, 0]
    assert fit_length(np.array([1, 2, 3], np.float32), 5, pad="zero").tolist() == [1, 2, 3, 0, 0]
    assert fit_length(np.array([1, 2, 3], np.float32), 3).tolist() == [1, 2, 3]


def test_a_long_sound_is_cut() -> None:
    samples = np.arange(10, dtype=np.float32)
    assert fit_length(samples, 4).tolist() == [0, 1, 2, 3]
    assert fit_length(samples, 4, crop="centre").tolist() == [3, 4, 5, 6]
    rng = np.random.default_rng(0)
    starts = {int(fit_length(samples, 4, crop="random", rng=rng)[0]) for _ in range(100)}
    assert starts == set(range(7))


@given(
    st.integers(1, 50),
    st.integers(1, 60),
    st.sampled_from(["repeat", "zero"]),
    st.sampled_from(["start", "centre"]),
)
def test_the_length_is_always_the_asked_one(num_samples: int, num_wanted: int, pad: str, crop: str) -> None:
    samples = np.arange(1, num_samples + 1, dtype=np.float32)
    fitted = fit_length(samples, num_wanted, pad, crop)  # type: ignore[arg-type]
    assert fitted.shape == (num_wanted,)
    assert fitted.dtype == np.float32
    assert set(fitted.tolist()) <= {0.0, *samples.tolist()}


def test_seconds_fix_the_length_at_the_new_rate() -> None:
    data = encoded(tone(0.25, rate=8_000), rate=8_000)
    assert load_audio(data, RATE, 1.0).shape == (RATE,)
    assert load_audio(data, RATE, 0.1).shape == (1600,)


def test_random_crop_needs_a_generator() -> None:
    with pytest.raises(ValueError, match="needs rng"):
        load_audio(encoded(tone()), RATE, 0.1, crop="random")


def test_a_long_sound_is_refused_before_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audio, "_read_soundfile", None)
    with pytest.raises(UserError, match=r"lasts 2 s, more than the 1 s allowed"):
        load_audio(encoded(tone(2)), RATE, max_seconds=1)


def test_a_long_sound_track_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"lasts 2 s, more than the 1 s allowed"):
        load_audio(in_container(tmp_path / "a.m4a", tone(2)), RATE, max_seconds=1)


def wav_header(num_bytes: int, rate: int = RATE) -> bytes:
    return (
        b"RIFF"
        + struct.pack("<I", (num_bytes + 36) & 0xFFFFFFFF)
        + b"WAVEfmt "
        + struct.pack("<IHHIIHH", 16, 1, 1, rate, rate * 2, 2, 16)
        + b"data"
        + struct.pack("<I", num_bytes)
    )


def test_a_header_that_claims_two_gigabytes_is_refused() -> None:
    with pytest.raises(UserError, match=r"cut off: 144 of 2,147,483,691 bytes"):
        load_audio(wav_header(2**31 - 1) + bytes(100), RATE)


def test_a_streamed_wav_without_a_length_is_read() -> None:
    assert load_audio(wav_header(0xFFFFFFFF) + struct.pack("<100h", *range(100)), RATE).shape == (100,)


@pytest.mark.parametrize("rate", [1, 10_000_000])
def test_an_absurd_sample_rate_is_refused(rate: int) -> None:
    with pytest.raises(UserError, match="sample rate"):
        load_audio(wav_header(200, rate) + bytes(200), RATE)


@pytest.mark.parametrize("share", [0.99, 0.5, 0.02])
@pytest.mark.parametrize("file_format", ["WAV", "FLAC"])
def test_a_cut_file_says_how_much_is_left(file_format: str, share: float, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 30_000).astype(np.float32)
    data = encoded(noise, file_format)
    (tmp_path / "a.snd").write_bytes(data[: int(len(data) * share)])
    with pytest.raises(UserError, match=r"(cut off|damaged).* of \d[\d,]* (bytes|samples).*a.snd"):
        load_audio(tmp_path / "a.snd", RATE)


def with_tags(mp3: bytes) -> bytes:
    """Put an ID3v2 tag of 300 bytes in front, as files of music have."""
    return b"ID3\x04\0\0\0\0\x02\x2c" + bytes(300) + mp3


@pytest.mark.parametrize("wrap", [bytes, with_tags])
def test_an_mp3_that_counts_its_frames_may_not_be_short(wrap: Callable[[bytes], bytes]) -> None:
    data = wrap(encoded(tone(3), "MP3"))
    assert len(load_audio(data, RATE)) == 3 * RATE
    with pytest.raises(UserError, match=r"cut off or damaged: only [12]\d,\d{3} of 48,000 samples"):
        load_audio(data[: len(data) // 2], RATE)


def test_an_mp3_that_counts_nothing_is_as_long_as_it_is(tmp_path: Path) -> None:
    plain = {"write_xing": "0", "id3v2_version": "0"}
    data = in_container(tmp_path / "a.mp3", tone(3), "libmp3lame", options=plain).read_bytes()
    assert 22_000 < len(load_audio(data[: len(data) // 2], RATE)) < 26_000
    parts = [  # a length estimated from the first frame's bit rate would be far too short
        in_container(tmp_path / f"{rate}.mp3", tone(3), "libmp3lame", options=plain, bit_rate=rate)
        for rate in (128_000, 8_000)
    ]
    samples = load_audio(b"".join(part.read_bytes() for part in parts), RATE)
    assert 6 * RATE <= len(samples) < 6 * RATE + 8_000
    assert abs(main_hz(samples[-RATE:]) - main_hz(tone(1))) < 5


def test_a_cut_ogg_file_is_no_unknown_format() -> None:
    with pytest.raises(UserError, match="the sound is cut off or damaged"):
        load_audio(encoded(tone(), "OGG")[:500], RATE)


def test_a_cut_container_is_an_error(tmp_path: Path) -> None:
    data = in_container(tmp_path / "a.m4a", tone()).read_bytes()
    with pytest.raises(UserError, match="cut off"):
        load_audio(data[: len(data) // 2], RATE)


def test_values_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(UserError, match="no numbers"):
        load_audio(encoded(np.array([0, np.nan, np.inf], np.float32), subtype="FLOAT"), RATE)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is empty"),
        (b"notes about a sound\n" * 20, "not a sound: it holds text"),
        (b"\0\x01\x02" * 100, "no known audio format"),
        (encoded(np.zeros(0, np.float32)), "the sound is empty: 0 samples"),
    ],
)
def test_bad_content_is_one_clear_line(data: bytes, words: str) -> None:
    with pytest.raises(UserError, match=words) as info:
        load_audio(data, RATE)
    assert "\n" not in str(info.value)


def test_a_silent_video_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        frame = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(UserError, match="has no sound track"):
        load_audio(tmp_path / "a.mp4", RATE)
    with pytest.raises(UserError, match=r"the audio file does not exist"):
        load_audio(tmp_path / "b.wav", RATE)


def test_damaged_files_raise_nothing_else(tmp_path: Path) -> None:
    rng = random.Random(0)
    seeds = [encoded(tone(0.1), kind) for kind in ("WAV", "FLAC", "OGG", "MP3", "AIFF")]
    seeds.append(in_container(tmp_path / "a.m4a", tone(0.1)).read_bytes())
    for trial in range(120):
        data = bytearray(seeds[trial % len(seeds)])
        for _ in range(rng.choice([1, 5, 20])):
            data[rng.randrange(len(data))] = rng.randrange(256)
        try:
            samples = load_audio(bytes(data), RATE)
        except UserError:
            continue
        assert samples.ndim == 1
        assert np.isfinite(samples).all()
