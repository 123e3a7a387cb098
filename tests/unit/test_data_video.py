"""Clips of every common kind give the right frames; cut ones are an error that counts."""

import io
import random
from contextlib import suppress
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from unival.data import video
from unival.data.video import frame_indices, load_video
from unival.errors import UserError

STEP = 12  # grey levels between two frames, so that brightness tells a frame's number, modulo PERIOD
PERIOD = 20


def clip(
    path: Path,
    num_frames: int = 20,
    codec: str = "libx264",
    size: tuple[int, int] = (48, 32),
    times: list[int] | None = None,
    rotation: int | None = None,
    hflip: bool = False,
    vflip: bool = False,
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
) -> Path:
    """Write a clip whose frame i is grey (i modulo PERIOD) * STEP, with a white square at the upper left."""
    width, height = size
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=10, options=options or {})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        if rotation is not None:
            stream.set_display_rotation(rotation, hflip, vflip)
        for i in range(num_frames):
            pixels = np.full((height, width, 3), i % PERIOD * STEP, np.uint8)
            pixels[:8, :8] = 255
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts = times[i] if times else i
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def frame_numbers(frames: np.ndarray) -> list[int]:
    height, width = frames.shape[1:3]
    center = frames[:, height // 2 - 2 : height // 2 + 2, width // 2 - 2 : width // 2 + 2]
    return np.round(center.mean(axis=(1, 2, 3)) / STEP).astype(int).tolist()


def test_middle_takes_the_middle_of_equal_parts() -> None:
    assert frame_indices(20, 4, "middle").tolist() == [2, 7, 12, 17]
    assert frame_indices(10, 3, "middle").tolist() == [1, 4, 7]
    assert frame_indices(4, 4, "middle").tolist() == [0, 1, 2, 3]


def test_a_short_clip_repeats_its_last_chosen_frame() -> None:
    assert frame_indices(3, 5, "middle").tolist() == [0, 1, 2, 2, 2]
    assert frame_indices(1, 3, "middle").tolist() == [0, 0, 0]


@given(st.integers(1, 200), st.integers(1, 40), st.integers(0, 1000))
def test_random_frames_lie_in_their_part_and_never_at_its_end(num_available: int, num_frames: int, seed: int) -> None:
    chosen = frame_indices(num_available, num_frames, "random", np.random.default_rng(seed))
    num_parts = min(num_available, num_frames)
    assert len(chosen) == num_frames
    assert set(chosen[num_parts:]) <= {chosen[num_parts - 1]}
    bounds = np.linspace(0, num_available, num_parts + 1).astype(int)
    if np.all(np.diff(bounds) > 1):
        assert np.all(chosen[:num_parts] >= bounds[:-1])
        assert np.all(chosen[:num_parts] < bounds[1:] - 1)
    else:
        assert np.all(np.diff(chosen[:num_parts]) > 0)
        assert 0 <= chosen.min() <= chosen.max() < num_available


def test_random_frames_reach_every_allowed_place() -> None:
    rng = np.random.default_rng(0)
    draws = np.stack([frame_indices(12, 3, "random", rng) for _ in range(200)])
    assert [sorted(set(column)) for column in draws.T.tolist()] == [[0, 1, 2], [4, 5, 6], [8, 9, 10]]


FORMATS = [
    ("clip.mp4", "libx264"),
    ("clip.mov", "mpeg4"),
    ("clip.webm", "libvpx"),
    ("clip.webm", "libvpx-vp9"),
    ("clip.mkv", "libx264"),
    ("clip.avi", "mpeg4"),
    ("clip.ts", "libx264"),
]


@pytest.mark.parametrize(("name", "codec"), FORMATS)
def test_every_format_gives_the_right_frames(name: str, codec: str, tmp_path: Path) -> None:
    frames = load_video(clip(tmp_path / name, codec=codec), 4)
    assert frames.shape == (4, 32, 48, 3)
    assert frames.dtype == np.uint8
    assert frame_numbers(frames) == [2, 7, 12, 17]


def test_path_text_bytes_and_file_give_the_same(tmp_path: Path) -> None:
    path = clip(tmp_path / "a.mp4")
    with path.open("rb") as file:
        results = [load_video(source, 3) for source in (path, str(path), path.read_bytes(), file)]
        assert not file.closed
    assert all(np.array_equal(result, results[0]) for result in results)


def test_random_sampling_is_the_generators(tmp_path: Path) -> None:
    path = clip(tmp_path / "a.mp4")
    first, second = (load_video(path, 4, "random", np.random.default_rng(5)) for _ in range(2))
    assert np.array_equal(first, second)
    assert frame_numbers(first) == frame_indices(20, 4, "random", np.random.default_rng(5)).tolist()


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_a_variable_frame_rate_counts_frames_not_seconds(name: str, tmp_path: Path) -> None:
    times = np.cumsum([1, 1, 9, 1, 30, 1, 1, 2, 1, 5] * 2).tolist()
    assert frame_numbers(load_video(clip(tmp_path / name, times=times), 20)) == list(range(20))


@pytest.mark.parametrize(("rotation", "corner"), [(90, (-4, 3)), (180, (-4, -4)), (-90, (3, -4)), (0, (3, 3))])
def test_rotation_is_undone(rotation: int, corner: tuple[int, int], tmp_path: Path) -> None:
    frames = load_video(clip(tmp_path / "a.mp4", rotation=rotation), 1)
    assert frames.shape == ((1, 48, 32, 3) if abs(rotation) == 90 else (1, 32, 48, 3))
    row, column = corner
    assert frames[0, row, column].min() > 200


# A white square at the upper left, and where ffmpeg shows it: row and column.
@pytest.mark.parametrize(
    ("rotation", "hflip", "vflip", "corner"),
    [
        (0, True, False, (3, -4)),
        (0, False, True, (-4, 3)),
        (90, True, False, (-4, -4)),
        (90, False, True, (3, 3)),
        (180, True, False, (-4, 3)),
    ],
)
@pytest.mark.parametrize("decoder", ["av", "decord"])
def test_mirroring_is_undone(
    rotation: int, hflip: bool, vflip: bool, corner: tuple[int, int], decoder: video.Decoder, tmp_path: Path
) -> None:
    pytest.importorskip(decoder)
    path = clip(tmp_path / "a.mp4", rotation=rotation, hflip=hflip, vflip=vflip)
    frames = load_video(path, 2, decoder=decoder)
    assert frames.shape == ((2, 48, 32, 3) if rotation == 90 else (2, 32, 48, 3))
    corners = {(row, column): frames[0, row, column].min() > 200 for row in (3, -4) for column in (3, -4)}
    assert [place for place, is_white in corners.items() if is_white] == [corner]


def test_odd_sizes_and_single_frames(tmp_path: Path) -> None:
    path = clip(tmp_path / "odd.mkv", num_frames=1, codec="libvpx-vp9", size=(35, 21))
    frames = load_video(path, 3)
    assert frames.shape == (3, 21, 35, 3)
    assert frame_numbers(frames) == [0, 0, 0]


def test_an_animated_gif_is_a_video() -> None:
    images = [Image.new("RGB", (32, 32), (i * STEP,) * 3) for i in range(10)]
    buffer = io.BytesIO()
    images[0].save(buffer, "GIF", save_all=True, append_images=images[1:], duration=100)
    assert frame_numbers(load_video(buffer.getvalue(), 5)) == [0, 2, 4, 6, 8]
    with pytest.raises(UserError, match=r"only \d of 10 frames"):
        load_video(buffer.getvalue()[:-60], 5)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.avi", "a.ts"])
def test_seeking_gives_the_same_frames_as_decoding_all(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    codec = "mpeg4" if name == "a.avi" else "libx264"
    path = clip(tmp_path / name, num_frames=120, codec=codec, options={"g": "15"})
    expected = load_video(path, 9)
    monkeypatch.setattr(video, "MAX_IN_ORDER_FRAMES", 50)
    assert np.array_equal(load_video(path, 9), expected)


def test_a_long_file_is_read_by_seeking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = clip(tmp_path / "a.mp4", num_frames=120, options={"g": "15", "bf": "2"})
    monkeypatch.setattr(video, "MAX_IN_ORDER_FRAMES", 50)
    monkeypatch.setattr(video, "_decode_in_order", None)
    assert frame_numbers(load_video(path, 5)) == [i % PERIOD for i in (11, 35, 59, 83, 107)]


def test_a_file_trimmed_by_an_edit_list_is_complete(tmp_path: Path) -> None:
    path = clip(tmp_path / "long.mp4", num_frames=40, options={"g": "10"})
    trimmed = tmp_path / "trimmed.mp4"
    with av.open(str(path)) as source, av.open(str(trimmed), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.pts -= 10240 * 15 // 10
                packet.dts -= 10240 * 15 // 10
                packet.stream = stream
                target.mux(packet)
    assert frame_numbers(load_video(trimmed, 5)) == [i % PERIOD for i in (17, 22, 27, 32, 37)]


@pytest.mark.parametrize("share", [0.99, 0.9, 0.5, 0.1])
@pytest.mark.parametrize("name", ["a.mp4", "fast.mp4", "a.webm", "a.mkv", "a.avi"])
def test_a_cut_file_is_an_error_or_complete(name: str, share: float, tmp_path: Path) -> None:
    codec = {"webm": "libvpx-vp9", "avi": "mpeg4"}.get(name[-4:].strip("."), "libx264")
    options = {"movflags": "faststart"} if name == "fast.mp4" else None
    data = clip(tmp_path / name, num_frames=20, codec=codec, container_options=options).read_bytes()
    data = data[: int(len(data) * share)]
    if share == 0.99 and name in {"a.mp4", "a.avi"}:  # the cut falls into tags at the end, or the index
        assert frame_numbers(load_video(data, 4)) == [2, 7, 12, 17]
        return
    with pytest.raises(UserError, match=r"frames can be read|not a video"):
        load_video(data, 4)


def test_the_error_counts_the_frames_that_are_left(tmp_path: Path) -> None:
    path = clip(tmp_path / "a.mp4", codec="mpeg4", options={"g": "1"}, container_options={"movflags": "faststart"})
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * 0.6)])
    with pytest.raises(UserError, match=r"only \d+ of 20 frames can be read \[.*a.mp4\] \(copy"):
        load_video(path, 4)


def test_a_header_that_promises_too_many_frames_is_an_error(tmp_path: Path) -> None:
    data = bytearray(clip(tmp_path / "a.avi", codec="mpeg4").read_bytes())
    header = data.index(b"strh") + 8
    data[header + 32 : header + 36] = (50).to_bytes(4, "little")  # dwLength of AVISTREAMHEADER
    with pytest.raises(UserError, match="only 20 of 50 frames"):
        load_video(bytes(data), 4)


def test_a_long_video_is_refused_before_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video, "_decode_spread", None)
    with pytest.raises(UserError, match=r"lasts 2 s, more than the 1 s allowed"):
        load_video(clip(tmp_path / "a.mp4"), 4, max_seconds=1)


def test_eight_hours_in_the_header_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"28,8\d\d s, more than the 600 s"):
        load_video(clip(tmp_path / "a.mkv", num_frames=3, times=[0, 1, 288_000]), 4)


def test_huge_frames_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video, "MAX_FRAME_PIXELS", 1000)
    with pytest.raises(UserError, match="frames of 48 x 32 are larger than 1,000 pixels"):
        load_video(clip(tmp_path / "a.mp4"), 1)


def test_a_sound_file_has_no_pictures(sound_in_mp4: Path) -> None:
    with pytest.raises(UserError, match="has no picture track"):
        load_video(sound_in_mp4, 4)


def test_text_a_playlist_a_picture_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_text("hello " * 100)
    with pytest.raises(UserError, match=r"not a video: it holds text \[.*a.mp4\]"):
        load_video(tmp_path / "a.mp4", 4)
    secret = clip(tmp_path / "secret.mp4")
    (tmp_path / "list.mp4").write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{secret}\n#EXT-X-ENDLIST\n")
    with pytest.raises(UserError, match="not a video"):
        load_video(tmp_path / "list.mp4", 4)
    Image.new("RGB", (8, 8)).save(tmp_path / "p.png")
    with pytest.raises(UserError, match="not a video"):
        load_video(tmp_path / "p.png", 4)
    with pytest.raises(UserError, match=r"does not exist .*did you mean 'secret.mp4'"):
        load_video(tmp_path / "secrt.mp4", 4)


def test_a_caller_who_forgets_the_generator_is_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs rng"):
        load_video(tmp_path / "a.mp4", 4, "random")
    with pytest.raises(ValueError, match="at least 1"):
        load_video(tmp_path / "a.mp4", 0)


def test_damaged_files_raise_nothing_else(tmp_path: Path) -> None:
    rng = random.Random(0)
    seeds = [
        clip(tmp_path / name, num_frames=6, codec=codec).read_bytes()
        for name, codec in [("a.mp4", "libx264"), ("a.webm", "libvpx"), ("a.avi", "mpeg4")]
    ]
    for trial in range(60):
        data = bytearray(seeds[trial % len(seeds)])
        for _ in range(rng.choice([1, 5, 20])):
            data[rng.randrange(len(data))] = rng.randrange(256)
        with suppress(UserError):
            assert load_video(bytes(data), 3).shape[0] == 3
