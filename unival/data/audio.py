"""Read a sound of any common format as one channel of float32 at a given rate."""

from math import gcd
from pathlib import Path
from typing import Any, BinaryIO, Literal

import av
import numpy as np
import soundfile
from av.error import FFmpegError

from unival.data.container import declared_num_bytes
from unival.data.media import MediaSource, looks_like_text, open_media
from unival.errors import UserError

MAX_SECONDS = 600.0
RATES_HZ = range(1_000, 768_001)
BLOCK_FRAMES = 65_536
MP3_TOLERANCE = 4 * 1152  # samples: the frames that encoders count differ by some, and decoders drop the first
# torchaudio's filter has (new rate) x (old rate) / gcd^2 values; 44,099 Hz to 16 kHz would take 2.8 GB.
MAX_FILTER_VALUES = 4_000_000
# Real containers only: a playlist could make FFmpeg open other files or addresses.
FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,flv,asf,ogg,mp3,aac,wav,flac,aiff"


def load_audio(
    source: MediaSource,
    sample_rate: int,
    seconds: float | None = None,
    *,
    pad: Literal["repeat", "zero"] = "repeat",
    crop: Literal["start", "centre", "random"] = "start",
    rng: np.random.Generator | None = None,
    max_seconds: float = MAX_SECONDS,
) -> np.ndarray:
    """Return the mean of the channels at `sample_rate`, float32 (num_samples,), full scale at -1 and 1.

    Args:
        source: Path, file content, or open binary file; of a video, its sound track.
        sample_rate: Hz.
        seconds: Fixed length of the result; None keeps the sound's own.
        pad: What to do with a shorter sound: repeat it a whole number of times, then zeros; or zeros only.
        crop: Which part to keep of a longer one; "random" needs `rng`.
        rng: Source of the random choice.
        max_seconds: Refuse a longer sound before reading it.

    Raises:
        UserError: Names the file and says whether it is missing, no sound, too long, empty, or cut off, and
            then how much of it can be read.
    """
    if crop == "random" and rng is None:
        raise ValueError("crop='random' needs rng")
    stream, name = open_media(source, "audio")
    try:
        samples, rate = _read_mono(stream, name, max_seconds)
    finally:
        if isinstance(source, str | Path | bytes):
            stream.close()
    if len(samples) == 0:
        raise UserError("the sound is empty: 0 samples can be read", where=name)
    if not np.isfinite(samples).all():
        raise UserError("the sound holds values that are no numbers", where=name)
    samples = resample(samples, rate, sample_rate)
    if seconds is None:
        return samples
    return fit_length(samples, round(seconds * sample_rate), pad, crop, rng)


def fit_length(
    samples: np.ndarray,
    num_samples: int,
    pad: Literal["repeat", "zero"] = "repeat",
    crop: Literal["start", "centre", "random"] = "start",
    rng: np.random.Generator | None = None,
) -> np.ndarray:
    """Cut or extend float32 (n,) to (num_samples,), n at least 1; see `load_audio` for the choices."""
    surplus = len(samples) - num_samples
    if surplus > 0:
        if crop == "random" and rng is None:
            raise ValueError("crop='random' needs rng")
        start = {"start": 0, "centre": surplus // 2}.get(crop)
        if start is None:
            start = int(rng.integers(0, surplus + 1)) if rng else 0
        return samples[start : start + num_samples].copy()
    if pad == "repeat":
        samples = np.tile(samples, num_samples // len(samples))
    return np.pad(samples, (0, num_samples - len(samples)))


def _read_mono(stream: BinaryIO, name: str, max_seconds: float) -> tuple[np.ndarray, int]:
    declared_bytes, num_bytes = declared_num_bytes(stream), stream.seek(0, 2)
    if declared_bytes is not None and declared_bytes > num_bytes:
        what = f"the sound is cut off: {num_bytes:,} of {declared_bytes:,} bytes are there"
        raise UserError(what, where=name, fix="copy the file again")
    is_counted = _counts_mp3_frames(stream)
    stream.seek(0)
    try:
        file = soundfile.SoundFile(stream)
    except (soundfile.SoundFileError, TypeError, MemoryError):  # MemoryError: a header with a false size
        return _read_container(stream, name, max_seconds)
    with file:
        if file.format == "MP3" and not is_counted:  # libsndfile estimates the length, and reads no further
            return _read_container(stream, name, max_seconds)
        _check(file.frames, file.samplerate, max_seconds, name)
        return _read_soundfile(file, name), file.samplerate


def _counts_mp3_frames(stream: BinaryIO) -> bool:
    """Return whether the first frame of an MP3 is a header that says how many follow, as nearly all encoders write."""
    stream.seek(0)
    head = stream.read(10)
    size = 0
    for byte in head[6:] if head[:3] == b"ID3" else b"":  # 7 bits each (ID3v2.4, 6.2)
        size = size << 7 | byte & 0x7F
    stream.seek(10 + size if size else 0)
    first = stream.read(200)
    return any(tag in first for tag in (b"Xing", b"Info", b"VBRI"))


def _read_soundfile(file: Any, name: str) -> np.ndarray:
    blocks, num_read = [], 0
    try:
        # Block by block, because only the mean of the channels is kept.
        while num_read < file.frames:
            block = file.read(BLOCK_FRAMES, dtype="float32", always_2d=True)
            if len(block) == 0:
                break
            blocks.append(block.mean(axis=1, dtype=np.float32))
            num_read += len(block)
    except (soundfile.SoundFileError, MemoryError):
        pass  # what follows says how much could be read
    tolerance = MP3_TOLERANCE if file.format == "MP3" and num_read > 0 else 0  # of others the length is exact
    if num_read < file.frames - tolerance:
        what = f"the sound is cut off or damaged: only {num_read:,} of {file.frames:,} samples can be read"
        raise UserError(what, where=name, fix="copy the file again")
    return np.concatenate(blocks) if blocks else np.zeros(0, np.float32)


def _read_container(stream: BinaryIO, name: str, max_seconds: float) -> tuple[np.ndarray, int]:
    stream.seek(0)
    try:
        container = av.open(stream, mode="r", options={"format_whitelist": FORMATS}, metadata_errors="replace")
    except (FFmpegError, ValueError):
        stream.seek(0)
        if stream.read(4) == b"OggS":  # libsndfile refuses a cut one, and FFmpeg one without its first packets
            raise UserError("the sound is cut off or damaged", where=name, fix="copy the file again") from None
        kind = "it holds text" if looks_like_text(stream) else "its content is no known audio format, or damaged"
        fix = "give a WAV, FLAC, OGG, MP3 or M4A file, or a video with sound"
        raise UserError(f"not a sound: {kind}", where=name, fix=fix) from None
    with container:
        if not container.streams.audio:
            raise UserError("the file has no sound track", where=name, fix="give a file with sound")
        audio = container.streams.audio[0]
        if audio.codec_context is None:
            raise UserError("no decoder knows this sound's codec", where=name, fix="encode it as WAV or FLAC")
        rate = audio.codec_context.sample_rate
        _check((container.duration or 0) / av.time_base * rate, rate, max_seconds, name)
        resampler = av.AudioResampler(format="fltp")
        blocks, num_read = [], 0
        try:
            for frame in container.decode(audio):
                for converted in resampler.resample(frame):
                    blocks.append(converted.to_ndarray().mean(axis=0, dtype=np.float32))
                    num_read += len(blocks[-1])
                _check(num_read, rate, max_seconds, name)
        except FFmpegError as error:
            what = f"the sound is damaged after {num_read / rate:.1f} s: {error.strerror}"
            raise UserError(what, where=name, fix="copy or encode the file again") from None
        return np.concatenate(blocks) if blocks else np.zeros(0, np.float32), rate


def _check(num_samples: float, rate_hz: int, max_seconds: float, name: str) -> None:
    if rate_hz not in RATES_HZ:
        raise UserError(f"a sample rate of {rate_hz:,} Hz is not between {RATES_HZ[0]:,} and {RATES_HZ[-1]:,}", name)
    if num_samples > max_seconds * rate_hz:
        what = f"the sound lasts {num_samples / rate_hz:,.0f} s, more than the {max_seconds:,.0f} s allowed"
        raise UserError(what, where=name, fix="cut it into shorter pieces")


def resample(samples: np.ndarray, rate_hz: int, new_rate_hz: int) -> np.ndarray:
    """Return float32 samples (num_samples,) at another rate."""
    if rate_hz * new_rate_hz // gcd(rate_hz, new_rate_hz) ** 2 > MAX_FILTER_VALUES:
        rate_hz = round(rate_hz / 25) * 25  # off by 0.05 % at most above 25 kHz: nobody hears it
    if rate_hz == new_rate_hz:
        return samples
    import torch  # here, because reading a sound at its own rate needs no torch
    from torchaudio import functional

    return functional.resample(torch.from_numpy(samples), rate_hz, new_rate_hz).numpy()
