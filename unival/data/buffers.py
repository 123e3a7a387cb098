"""Memory in which worker processes hand over tensors, used again and again.

PyTorch's own way makes a shared file per tensor. Its pages are new every time, and taking a new page costs several
times as much as writing to it, so that a batch of pictures can cost more to hand over than to decode. Here the main
process lends a buffer with every key and gets it back when nobody looks at its tensors any more.
"""

import io
import math
import mmap
import threading
import weakref
from collections.abc import Sequence
from multiprocessing.reduction import ForkingPickler
from typing import Any

import torch
from torch import Tensor

BUFFER_BYTES = 1 << 29
"""Address space of one buffer; only what is written to takes memory."""
_ALIGNMENT = 64

_current: "Filling | None" = None  # of this process, if it is a worker that works on a key
_reading = threading.local()  # `view`: the buffer whose answer this thread is reading


def empty(shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
    """Return an uninitialised tensor that reaches the main process without a copy; elsewhere an ordinary one.

    Only for what a worker returns: with its next key, the memory is somebody else's.
    """
    found = None if _current is None else _current.reserve(shape, dtype)
    return torch.empty(tuple(shape), dtype=dtype) if found is None else found[1]


class Buffers:
    """Buffers of the main process and of the workers that it forks after making them.

    Args:
        count: How many; where the system gives no memory, there are none, and PyTorch's own way remains.
    """

    def __init__(self, count: int) -> None:
        self.maps: list[mmap.mmap] = []
        try:
            self.maps += [mmap.mmap(-1, BUFFER_BYTES) for _ in range(count)]
        except (OSError, ValueError):
            self.maps.clear()
        self.free = list(range(len(self.maps)))

    def take(self) -> int | None:
        """Return the number of a free buffer, rather one whose pages are there; None when all are in use."""
        return self.free.pop() if self.free else None

    def give_back(self, number: int | None) -> None:
        """Free a buffer that no answer came in."""
        if number is not None:
            self.free.append(number)

    def load(self, content: bytes, number: int | None) -> Any:
        """Return an answer; when the last tensor in its buffer is gone, the buffer is free."""
        if number is None:
            return ForkingPickler.loads(content)  # pyright: ignore[reportAttributeAccessIssue]
        view = _reading.view = memoryview(self.maps[number])  # every tensor of the answer keeps this one object
        try:
            answer = ForkingPickler.loads(content)  # pyright: ignore[reportAttributeAccessIssue]
        finally:
            del _reading.view
        weakref.finalize(view, self.free.append, number).atexit = False
        return answer


class Filling:
    """One buffer while a worker writes its answer; sets where `empty` takes its memory.

    Args:
        buffers: Those of the main process, inherited.
        number: Which one is lent; None for none.
    """

    def __init__(self, buffers: Buffers, number: int | None) -> None:
        global _current
        self.view = None if number is None else memoryview(buffers.maps[number])
        self.start = 0 if self.view is None else torch.frombuffer(self.view, dtype=torch.uint8).data_ptr()
        self.used = 0
        _current = self

    def reserve(self, shape: Sequence[int], dtype: torch.dtype) -> tuple[int, Tensor] | None:
        """Return a part of the buffer and where it starts; None for an empty tensor or where no room is left."""
        size = math.prod(shape)
        end = self.used + size * dtype.itemsize
        if self.view is None or size == 0 or end > len(self.view):
            return None
        offset, self.used = self.used, -(-end // _ALIGNMENT) * _ALIGNMENT
        return offset, torch.frombuffer(self.view, dtype=dtype, count=size, offset=offset).view(tuple(shape))

    def dump(self, answer: Any) -> bytes:
        """Return an answer as bytes, without the content of the tensors that have room in the buffer."""
        stream = io.BytesIO()
        _Pickler(stream, self).dump(answer)
        return stream.getvalue()

    def place(self, tensor: Tensor) -> int | None:
        """Return where in the buffer a tensor stands, after copying it there if need be."""
        offset = tensor.data_ptr() - self.start
        if self.view is not None and 0 <= offset < self.used:
            return offset
        found = self.reserve(tensor.shape, tensor.dtype)
        if found is None:
            return None
        found[1].copy_(tensor)
        return found[0]


class _Pickler(ForkingPickler):  # knows PyTorch's own way, for what has no room
    def __init__(self, stream: io.BytesIO, filling: Filling) -> None:
        super().__init__(stream)
        self.filling = filling

    def reducer_override(self, obj: Any) -> Any:
        if type(obj) is not Tensor or obj.layout != torch.strided or obj.device.type != "cpu" or obj.requires_grad:
            return NotImplemented
        tensor = obj.contiguous()
        offset = self.filling.place(tensor)
        return NotImplemented if offset is None else (_tensor_at, (offset, tuple(tensor.shape), tensor.dtype))


def _tensor_at(offset: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.frombuffer(_reading.view, dtype=dtype, count=math.prod(shape), offset=offset).view(shape)
