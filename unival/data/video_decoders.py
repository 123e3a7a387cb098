"""Other decoders of videos: decord, for the frames that the original saw, and torchcodec.

decord knows no AV1, is unreleased since 2021, and can loop for ever on damaged files: decode in `Workers`.
"""

from collections.abc import Callable
from typing import Any, BinaryIO

import numpy as np

from unival.errors import UserError

Choose = Callable[[int], np.ndarray]


def decode(decoder: str, stream: BinaryIO, name: str, choose: Choose) -> np.ndarray:
    """Return the chosen frames of a file, uint8 (F, H, W, 3).

    Args:
        decoder: "decord" or "torchcodec".
        stream: The file.
        name: What errors call it.
        choose: Returns the positions of the wanted frames among so many.

    Raises:
        UserError: The package is not installed, or cannot read the file.
    """
    stream.seek(0)
    read = {"decord": _decord, "torchcodec": _torchcodec}[decoder]
    try:
        return read(stream, name, choose)
    except ImportError:
        fix = 'pip install "unival[video-gpu]"' if decoder == "torchcodec" else "pip install decord==0.6.0"
        raise UserError(f"the decoder {decoder!r} is not installed", fix=f"{fix}, or take the default, `av`") from None
    except UserError:
        raise
    except Exception as error:  # both raise classes of their own that derive from nothing in common
        first = str(error).strip().split("\n")[0][:200]
        raise UserError(f"{decoder} cannot read the video: {first}", where=name, fix="try the default, `av`") from None


def _decord(stream: BinaryIO, name: str, choose: Choose) -> np.ndarray:
    import decord

    reader: Any = decord.VideoReader(stream, num_threads=1)
    if len(reader) == 0:
        raise UserError("the video has no frames", where=name)
    return reader.get_batch(choose(len(reader)).tolist()).asnumpy()


def _torchcodec(stream: BinaryIO, name: str, choose: Choose) -> np.ndarray:
    from torchcodec.decoders import VideoDecoder  # pyright: ignore[reportMissingImports] - an extra

    reader = VideoDecoder(stream.read(), seek_mode="exact", num_ffmpeg_threads=1, dimension_order="NHWC")
    if not reader.metadata.num_frames:
        raise UserError("the video has no frames", where=name)
    return reader.get_frames_at(choose(reader.metadata.num_frames).tolist()).data.numpy()
