"""Read a fixed number of frames, spread over a whole clip, from any common video file."""

import struct
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, NoReturn

import av
import numpy as np
from av.error import FFmpegError

from unival.data.container import declared_num_bytes
from unival.data.media import MediaSource, looks_like_text, open_media
from unival.errors import UserError

Sampling = Literal["middle", "random"]
Decoder = Literal["av", "decord", "torchcodec"]
MAX_SECONDS = 600.0
MAX_FRAME_PIXELS = 36_000_000  # 8K
# Up to here every frame is decoded once; beyond, only the groups of pictures that hold a wanted frame.
MAX_IN_ORDER_FRAMES = 300
# Real containers only: a playlist or a concatenation script could make FFmpeg open other files or addresses.
FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,gif,mpegts,mpeg,mpegvideo,flv,asf,ogg"


@dataclass(frozen=True)
class _Index:
    """The frames of a file as its packets announce them, without decoding."""

    times: list[int | None]  # presentation times of the visible frames, sorted where all are known
    key_times: list[int]
    num_packets: int
    num_declared: int  # 0: the container does not say
    is_short: bool  # packets end before the declared end


def load_video(
    source: MediaSource,
    num_frames: int,
    sampling: Sampling = "middle",
    rng: np.random.Generator | None = None,
    *,
    decoder: Decoder = "av",
    max_seconds: float = MAX_SECONDS,
) -> np.ndarray:
    """Return upright RGB frames, uint8 (num_frames, H, W, 3), one from each equal part of the clip.

    Args:
        source: Path, file content, or open binary file.
        num_frames: At least 1; a clip with fewer frames repeats its last chosen one.
        sampling: See `frame_indices`; "random" needs `rng`.
        rng: Source of the random choice.
        decoder: "decord" and "torchcodec" give the same frames of a whole file, but know less about damaged ones
            (`unival.data.video_decoders`).
        max_seconds: Refuse a longer video before decoding it.

    Raises:
        UserError: Names the file and says whether it is missing, no video, too long or large, or cut off, and
            then how many of how many frames can be read.
    """
    if num_frames < 1 or (sampling == "random" and rng is None):
        raise ValueError("num_frames must be at least 1, and sampling='random' needs rng")
    stream, name = open_media(source, "video")
    try:
        index = _read_index(stream, name, max_seconds)
        if decoder != "av" and not _is_mirrored(stream, name):  # others turn frames, but do not mirror them
            from unival.data.video_decoders import decode

            return decode(decoder, stream, name, lambda num: frame_indices(num, num_frames, sampling, rng))
        frames = _decode_spread(stream, name, index, num_frames, sampling, rng)
    finally:
        if isinstance(source, str | Path | bytes):
            stream.close()
    return np.stack(frames)


def frame_indices(
    num_available: int, num_frames: int, sampling: Sampling, rng: np.random.Generator | None = None
) -> np.ndarray:
    """Choose frames by intervals, int64 (num_frames,), as UnIVAL's loader does.

    `[0, n)` is cut into k = min(num_frames, n) parts at `linspace(0, n, k + 1)` rounded down. "middle" takes
    `(start + end - 1) // 2`; "random" draws from `[start, end - 1)`, so never a part's last frame, and where
    a part has one frame only it draws a sorted subset of all frames instead. If k < num_frames, the last is
    repeated.
    """
    num_parts = min(num_frames, num_available)
    bounds = np.linspace(0, num_available, num_parts + 1).astype(int)
    starts, ends = bounds[:-1], bounds[1:]
    if sampling == "middle":
        chosen = (starts + ends - 1) // 2
    elif rng is None:
        raise ValueError("sampling='random' needs rng")
    elif np.all(ends - starts > 1):
        chosen = rng.integers(starts, ends - 1)
    else:
        chosen = np.sort(rng.permutation(num_available)[:num_parts])
    return np.concatenate([chosen, np.repeat(chosen[-1:], num_frames - num_parts)])


@contextmanager
def _opened(stream: BinaryIO, name: str) -> Iterator[tuple[Any, Any]]:
    stream.seek(0)
    try:
        container = av.open(stream, mode="r", options={"format_whitelist": FORMATS}, metadata_errors="replace")
    except (FFmpegError, ValueError):
        _raise_unreadable(stream, name)
    with container:
        if not container.streams.video:
            if _is_cut(stream):
                _raise_unreadable(stream, name)
            raise UserError("the file has no picture track", where=name, fix="give a video with pictures")
        video = container.streams.video[0]
        if video.codec_context is None:
            raise UserError("no decoder knows this video's codec", where=name, fix="encode it as H.264 or VP9")
        video.codec_context.options = {"max_pixels": str(MAX_FRAME_PIXELS)}
        video.codec_context.thread_count = 1  # several would double the CPU time, and workers decode side by side
        yield container, video


def _raise_unreadable(stream: BinaryIO, name: str) -> NoReturn:
    if _is_cut(stream):
        raise UserError("the video is cut off: 0 frames can be read", where=name, fix="copy the file again")
    kind = "it holds text" if looks_like_text(stream) else "its content is no known video format, or damaged"
    raise UserError(f"not a video: {kind}", where=name, fix="give an MP4, MOV, WebM, MKV, AVI or GIF file")


def _is_cut(stream: BinaryIO) -> bool:
    declared = declared_num_bytes(stream)
    return declared is not None and declared > stream.seek(0, 2)


def _read_index(stream: BinaryIO, name: str, max_seconds: float) -> _Index:
    with _opened(stream, name) as (container, video):
        _check_declared(container, video, name, max_seconds)
        times, key_times, num_packets, end = [], [], 0, None
        try:
            for packet in container.demux(video):
                if not packet.size or packet.is_corrupt:
                    continue
                num_packets += 1
                if packet.pts is not None:
                    end = max(end or packet.pts, packet.pts + (packet.duration or 0))
                    _check_seconds((packet.pts - (video.start_time or 0)) * video.time_base, max_seconds, name)
                if not packet.is_discard:
                    times.append(packet.pts)
                    if packet.is_keyframe and packet.pts is not None:
                        key_times.append(packet.pts)
        except FFmpegError:
            pass  # what follows counts the frames that are left
        gap = (video.duration or 0) / max(video.frames, 1)
        is_short = bool(end and video.duration) and end < (video.start_time or 0) + video.duration - gap / 2
        if None not in times:
            times.sort()
        return _Index(times, sorted(key_times), num_packets, video.frames, is_short)


def _check_declared(container: Any, video: Any, name: str, max_seconds: float) -> None:
    if container.duration:
        _check_seconds(container.duration / av.time_base, max_seconds, name)
    if video.duration and video.time_base:
        _check_seconds(video.duration * video.time_base, max_seconds, name)
    width, height = video.codec_context.width, video.codec_context.height
    if width * height > MAX_FRAME_PIXELS:
        raise UserError(f"frames of {width} x {height} are larger than {MAX_FRAME_PIXELS:,} pixels", where=name)


def _check_seconds(seconds: Any, max_seconds: float, name: str) -> None:
    if seconds > max_seconds:
        what = f"the video lasts {float(seconds):,.0f} s, more than the {max_seconds:,.0f} s allowed"
        raise UserError(what, where=name, fix="cut it into shorter clips")


def _decode_spread(
    stream: BinaryIO,
    name: str,
    index: _Index,
    num_frames: int,
    sampling: Sampling,
    rng: np.random.Generator | None,
) -> list[np.ndarray]:
    num_visible = len(index.times)
    is_complete = not _is_cut(stream) and not (index.num_packets < index.num_declared and index.is_short)
    if is_complete and num_visible > MAX_IN_ORDER_FRAMES:
        wanted = frame_indices(num_visible, num_frames, sampling, rng)
        found = _decode_by_seeking(stream, name, index, sorted(set(wanted.tolist())))
        if found is not None:
            return [found[i] for i in wanted.tolist()]
    else:
        wanted = frame_indices(num_visible, num_frames, sampling, rng) if num_visible else np.zeros(0, int)
    found, num_decoded, is_whole = _decode_in_order(stream, name, set(wanted.tolist()))
    num_expected = max(index.num_declared if not is_complete else 0, num_visible)
    is_counted = index.num_declared > 0  # a WebM file may hold packets that show nothing (alternate references)
    is_missing = num_decoded < num_expected and (is_counted or not is_complete)
    if num_decoded == 0 or not is_whole or is_missing:
        _raise_cut(name, num_decoded, num_expected)
    if not is_complete and not is_counted:
        _raise_cut(name, num_decoded, 0)
    if num_decoded != num_visible:
        wanted = frame_indices(num_decoded, num_frames, sampling, rng)
        found, _, _ = _decode_in_order(stream, name, set(wanted.tolist()))
    return [found[i] for i in wanted.tolist()]


def _raise_cut(name: str, num_decoded: int, num_expected: int) -> NoReturn:
    of = f" of {num_expected}" if num_expected > num_decoded else ""
    what = f"the video is cut off or damaged: only {num_decoded}{of} frames can be read"
    raise UserError(what, where=name, fix="copy or encode the file again")


def _decode_in_order(stream: BinaryIO, name: str, wanted: set[int]) -> tuple[dict[int, np.ndarray], int, bool]:
    """Return the wanted frames by position, the number of frames decoded, and whether no packet failed."""
    found: dict[int, np.ndarray] = {}
    num_decoded = 0
    with _opened(stream, name) as (container, video):
        try:
            for packet in container.demux(video):
                if packet.is_corrupt:
                    return found, num_decoded, False
                for frame in packet.decode():
                    if num_decoded in wanted:
                        found[num_decoded] = _upright_rgb(frame, video)
                    num_decoded += 1
        except FFmpegError:
            return found, num_decoded, False
    return found, num_decoded, True


def _decode_by_seeking(stream: BinaryIO, name: str, index: _Index, wanted: list[int]) -> dict[int, np.ndarray] | None:
    """Return the wanted frames by position, or None where decoder and index disagree about the times."""
    if None in index.times or len(set(index.times)) < len(index.times) or not index.key_times:
        return None
    found: dict[int, np.ndarray] = {}
    times = {index.times[position] for position in wanted}
    last: int | None = None
    frames: Iterator[Any] = iter(())
    with _opened(stream, name) as (container, video):
        try:
            for position in wanted:
                time: int = index.times[position]  # pyright: ignore[reportAssignmentType]
                key = index.key_times[max(bisect_right(index.key_times, time) - 1, 0)]
                if last is None or key > last:
                    container.seek(key, stream=video)
                    frames = _decode_needed(container, video, times)
                frame = next((frame for frame in frames if frame.pts is None or frame.pts >= time), None)
                if frame is None or frame.pts != time:
                    return None
                last = time
                found[position] = _upright_rgb(frame, video)
        except FFmpegError:
            return None
    return found


def _decode_needed(container: Any, video: Any, times: set[int | None]) -> Iterator[Any]:
    """Yield the frames at these times and those that others are predicted from; the rest is passed over."""
    for packet in container.demux(video):
        is_wanted = packet.pts is None or packet.pts in times
        video.codec_context.skip_frame = "DEFAULT" if is_wanted else "NONREF"
        yield from packet.decode()


def _upright_rgb(frame: Any, video: Any) -> np.ndarray:
    """Convert to uint8 (H, W, 3) in the stream's size, which frames may leave, and turn it upright."""
    size = {"width": video.codec_context.width, "height": video.codec_context.height}
    # By default every frame starts as many threads as there are processors, which takes longer than the conversion.
    pixels = frame.reformat(format="rgb24", threads=1, **size).to_ndarray()
    return upright(pixels, frame)


def upright(pixels: np.ndarray, frame: Any) -> np.ndarray:
    """Turn and mirror pixels (H, W, 3) of a frame as its display matrix says, by whole quarters.

    The matrix puts the pixel at (x, y) to (ax + cy, bx + dy), ISO/IEC 14496-12, 6.2.2.
    """
    a, b, c, d = _display_matrix(frame)
    if abs(a) + abs(d) < abs(b) + abs(c):
        pixels, a, d = pixels.swapaxes(0, 1), c, b
    return np.ascontiguousarray(pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])


def _display_matrix(frame: Any) -> tuple[int, int, int, int]:
    """Return a, b, c and d of `upright`; 1, 0, 0, 1 without a matrix."""
    content = frame.side_data.get("DISPLAYMATRIX")
    if content is None:
        return 1, 0, 0, 1
    a, b, _, c, d = struct.unpack_from("=5i", bytes(content))
    return a, b, c, d


def _is_mirrored(stream: BinaryIO, name: str) -> bool:
    """Return whether the first frame is shown mirrored; False where it cannot be read."""
    with _opened(stream, name) as (container, video), suppress(FFmpegError, StopIteration):
        a, b, c, d = _display_matrix(next(container.decode(video)))
        return a * d - b * c < 0
    return False
