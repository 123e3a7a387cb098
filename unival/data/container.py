"""How many bytes a media file says it has, from its outermost boxes: the only sure sign of a cut-off file.

Decoders return the frames or samples that are left of a cut file and report no error.
"""

import struct
from typing import BinaryIO

MAX_BOXES = 100_000


def declared_num_bytes(stream: BinaryIO) -> int | None:
    """Return the size that the container declares, or None where the format or the writer declares none.

    Knows ISO base media (MP4, MOV, M4A: ISO/IEC 14496-12, 4.2), RIFF (AVI, WAV), Matroska/WebM (RFC 9559),
    MPEG-TS (whole packets of 188 bytes) and GIF (a trailer). A size that a streaming writer left open is not
    declared.
    """
    stream.seek(0)
    head = stream.read(189)
    if head[:4] == b"RIFF":
        return _riff_size(stream)
    if head[:4] == b"\x1a\x45\xdf\xa3":
        return _matroska_size(stream)
    if head[4:8] in {b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"}:
        return _iso_size(stream)
    if len(head) == 189 and head[0] == head[188] == 0x47:
        return -(-stream.seek(0, 2) // 188) * 188
    if head[:4] == b"GIF8":
        num_bytes = stream.seek(0, 2)
        stream.seek(max(num_bytes - 4, 0))
        return num_bytes if b";" in stream.read() else num_bytes + 1
    return None


def _iso_size(stream: BinaryIO) -> int | None:
    """Walk the top-level boxes: 32-bit size and name; size 1: a 64-bit size follows, 0: to the end."""
    position = 0
    for _ in range(MAX_BOXES):
        stream.seek(position)
        head = stream.read(16)
        if len(head) == 0:
            return position
        if len(head) < 8:
            return position + 8
        size = int.from_bytes(head[:4], "big")
        if size == 1 and len(head) == 16:
            size = int.from_bytes(head[8:], "big")
        if size == 0:
            return None
        if size < 8:
            return None  # no box: what follows the last box is padding
        position += size
    return None


def _riff_size(stream: BinaryIO) -> int | None:
    """Return the end of the last chunk that a reader needs: `data` of a WAV, the whole list of an AVI."""
    stream.seek(0)
    _, riff_size, form = struct.unpack("<4sI4s", stream.read(12).ljust(12, b"\0"))
    if form != b"WAVE":
        return None if riff_size in {0, 0xFFFFFFFF} else 8 + riff_size
    position = 12
    for _ in range(MAX_BOXES):
        stream.seek(position)
        head = stream.read(8)
        if len(head) < 8:
            return None
        size = int.from_bytes(head[4:], "little")
        if head[:4] == b"data":
            return None if size in {0, 0xFFFFFFFF} else position + 8 + size
        position += 8 + size + size % 2
    return None


def _matroska_size(stream: BinaryIO) -> int | None:
    """Skip the EBML header and return the end of the Segment, of unknown size in a live recording."""
    stream.seek(4)
    header_size = _ebml_number(stream)
    if header_size is None:
        return None
    stream.seek(header_size, 1)
    if stream.read(4) != b"\x18\x53\x80\x67":
        return None
    segment_size = _ebml_number(stream)
    return None if segment_size is None else stream.tell() + segment_size


def _ebml_number(stream: BinaryIO) -> int | None:
    """Read a variable-length number; all ones stands for unknown."""
    first = stream.read(1)
    if not first or first[0] == 0:
        return None
    length = 9 - first[0].bit_length()
    value = int.from_bytes(first + stream.read(length - 1), "big") & ((1 << 7 * length) - 1)
    return None if value == (1 << 7 * length) - 1 else value
