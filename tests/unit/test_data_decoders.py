"""Other decoders, and the other way to resize, give what the default gives."""

import io

import av
import numpy as np
import pytest

from unival.data.video import load_video
from unival.errors import UserError
from unival.model.processing import fast_resize, generator_of, resize


def clip(num_frames: int = 40) -> bytes:
    stream = io.BytesIO()
    rng = np.random.default_rng(0)
    with av.open(stream, "w", format="mp4") as container:
        track = container.add_stream("libx264", rate=10)
        track.width, track.height, track.pix_fmt = 64, 48, "yuv420p"
        for _ in range(num_frames):
            frame = av.VideoFrame.from_ndarray(
                np.kron(rng.integers(0, 255, (6, 8, 3)), np.ones((8, 8, 1))).astype(np.uint8)
            )
            container.mux(track.encode(frame))
        container.mux(track.encode(None))
    return stream.getvalue()


def test_decord_gives_the_same_frames() -> None:
    pytest.importorskip("decord")
    content = clip()
    assert np.array_equal(load_video(content, 8), load_video(content, 8, decoder="decord"))
    draws = [load_video(content, 4, "random", np.random.default_rng(1), decoder=name) for name in ("av", "decord")]
    assert np.array_equal(*draws)


def test_a_damaged_file_is_refused_by_decord_too() -> None:
    pytest.importorskip("decord")
    with pytest.raises(UserError):
        load_video(clip()[:900], 8, decoder="decord")


def test_a_decoder_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torchcodec.decoders", None)
    monkeypatch.setitem(__import__("sys").modules, "torchcodec", None)
    with pytest.raises(UserError, match=r"'torchcodec' is not installed.*unival\[video-gpu\]"):
        load_video(clip(), 8, decoder="torchcodec")


@pytest.mark.parametrize("size", [(48, 64), (200, 90), (37, 41)])
def test_the_fast_resize_differs_by_one_at_most(size: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3)).astype(np.uint8)
    difference = np.abs(resize(pixels, 56).astype(int) - fast_resize(pixels, 56))
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.02


def test_draws_depend_on_the_medium_alone() -> None:
    first, again, other = (int(generator_of(name).integers(2**31)) for name in ("a.mp4", "a.mp4", "b.mp4"))
    assert first == again != other
