"""Files of `torch.save`, zip (since 1.6) and legacy: the pickled tree as plain data, tensors read when asked for.

A tensor's bytes are mapped from the file, so reading a checkpoint costs memory for what is used of it only. In the zip
format the checksum of each storage is verified before its first use; the legacy format has none.
"""

import io
import math
import mmap
import struct
import weakref
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from unival.errors import UserError
from unival.pickles.machine import Machine, corrupt
from unival.pickles.values import Name

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001
MAX_PICKLE_BYTES = 64 * 2**20
MAX_EXPANSION = 64  # logical bytes of all tensors per byte of the file: views may overlap, but not for ever
_DTYPES = {
    "Double": torch.float64,
    "Float": torch.float32,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
}
_STORAGES = {f"{module}.{name}Storage": dtype for name, dtype in _DTYPES.items() for module in ("torch", "torch.cuda")}
_STORAGES |= {"torch.storage.UntypedStorage": torch.uint8, "torch.UntypedStorage": torch.uint8}


@dataclass(slots=True, eq=False)
class Storage:
    """Where a run of elements lies in the file."""

    path: Path
    key: str
    dtype: torch.dtype
    num_elements: int
    start: int = -1  # byte in the file; the legacy format tells it after the tensors
    crc: int | None = None
    _flat: Any = field(default=None, repr=False)

    @property
    def num_bytes(self) -> int:
        """Return its size in the file."""
        return self.num_elements * self.dtype.itemsize

    def flat(self) -> Tensor:
        """Return all elements (num_elements,), mapped; tensors that share the storage share this memory.

        Raises:
            UserError: If the bytes do not have the checksum that the file gives.
        """
        shared = self._flat() if self._flat is not None else None
        if shared is not None:
            return shared
        if self.num_elements == 0:
            return torch.empty(0, dtype=self.dtype)
        data, lead = self._bytes()
        if self.crc is not None and zlib.crc32(memoryview(data)[lead:]) != self.crc:
            corrupt(f"the checksum of tensor data {self.key!r} is wrong", str(self.path))
        self.crc = None
        tensor = torch.frombuffer(data, dtype=self.dtype, count=self.num_elements, offset=lead)
        self._flat = weakref.ref(tensor)
        return tensor

    def _bytes(self) -> tuple[mmap.mmap | bytearray, int]:
        """Return a buffer and where in it the elements begin: mapped pages, or a copy of what is not aligned."""
        with self.path.open("rb") as file:
            if self.start % self.dtype.itemsize:  # only the legacy format does not align
                data = bytearray(self.num_bytes)
                file.seek(self.start)
                if file.readinto(data) != self.num_bytes:
                    corrupt(f"tensor data {self.key!r} end too early", str(self.path))
                return data, 0
            lead = self.start % mmap.ALLOCATIONGRANULARITY
            length = lead + self.num_bytes
            return mmap.mmap(file.fileno(), length, access=mmap.ACCESS_COPY, offset=self.start - lead), lead


@dataclass(frozen=True, slots=True, eq=False)
class StoredTensor:
    """A tensor in the file: a strided view of a storage."""

    storage: Storage
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int

    @property
    def num_bytes(self) -> int:
        """Return the size of a contiguous copy."""
        return math.prod(self.shape) * self.dtype.itemsize

    def load(self) -> Tensor:
        """Return the tensor, mapped from the file; changes to it stay in memory."""
        flat = self.storage.flat()
        flat = flat if flat.dtype == self.dtype else flat.view(self.dtype)
        return flat.as_strided(self.shape, self.stride, self.offset)


@dataclass(frozen=True, slots=True)
class TorchFile:
    """A file of `torch.save`: its format ("zip" or "legacy") and the pickled tree with `StoredTensor` leaves."""

    path: Path
    kind: str
    tree: Any


def read_torch_file(path: str | Path) -> TorchFile:
    """Read the pickled part of a file of `torch.save`; tensor data are read by `StoredTensor.load`.

    Raises:
        UserError: If the file is not one, is truncated or corrupt, or asks for a class or function that no checkpoint
            needs: nothing of the file is ever run.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            start = file.read(4)
            file.seek(0)
            if start == b"PK\x03\x04":
                return TorchFile(path, "zip", _read_zip(path, file))
            if start[:1] != b"\x80":
                raise UserError("not a file of torch.save", where=str(path), fix="give a .pt, .pth or .th file")
            return TorchFile(path, "legacy", _read_legacy(path, file))
    except OSError as error:
        raise UserError(f"cannot read the file: {error.strerror or error}", where=str(path)) from None


class _Tensors:
    """Makes `StoredTensor`s for a `Machine`, checking that every view lies within its storage."""

    def __init__(self, path: Path, storage_of: Any) -> None:
        self.path, self.storage_of = path, storage_of
        self.storages: dict[str, Storage] = {}
        self.limit = max(MAX_EXPANSION * path.stat().st_size, 2**20)
        self.builders = {
            "torch._utils._rebuild_tensor": self.rebuild,
            "torch._utils._rebuild_tensor_v2": self.rebuild,
            "torch._utils._rebuild_parameter": lambda data, *_: data,
            "torch._utils._rebuild_parameter_with_state": lambda data, *_: data,
            "torch.nn.parameter.Parameter": lambda data, *_: data,
            **dict.fromkeys(_STORAGES, _no_call),
        }

    def persistent(self, identifier: Any) -> Storage:
        """Return the storage of a persistent id ("storage", type, key, device, number of elements)."""
        if not isinstance(identifier, tuple) or len(identifier) not in (5, 6):
            raise ValueError("a persistent id that names no tensor data")
        tag, kind, key, _, num_elements, *view = identifier
        if tag != "storage" or not isinstance(kind, Name) or any(view):
            raise ValueError("tensor data of a kind that torch has not written since 0.4")
        if not isinstance(key, str) or not isinstance(num_elements, int) or num_elements < 0:
            raise ValueError("tensor data without a name or with an impossible number of elements")
        dtype = _STORAGES[kind.path]
        if key not in self.storages:
            self.storages[key] = self.storage_of(key, dtype, num_elements)
        storage = self.storages[key]
        if (storage.dtype, storage.num_elements) != (dtype, num_elements):
            raise ValueError(f"two descriptions of tensor data {key!r}")
        return storage

    def rebuild(self, storage: Any, offset: Any, shape: Any, stride: Any, *rest: Any) -> StoredTensor:
        """Return a view of a storage; `rest` is whether it needs gradients, hooks, and bits such as "negative"."""
        if len(rest) > 2 and rest[2]:
            what = "a tensor is not what is stored, but its negative or conjugate"
            raise UserError(what, where=str(self.path), fix="save a clone() of it")
        numbers = (offset, *shape, *stride)
        if not isinstance(storage, Storage) or len(shape) != len(stride) or len(shape) > 16:
            raise ValueError("a tensor without data")
        if any(not isinstance(number, int) or number < 0 for number in numbers):
            raise ValueError("a tensor with impossible sizes")
        count = math.prod(shape)
        last = offset + sum((size - 1) * step for size, step in zip(shape, stride, strict=True)) if count else offset
        if last >= storage.num_elements + (count == 0):
            raise ValueError(f"a tensor beyond the end of its data: element {last} of {storage.num_elements}")
        self.limit -= count * storage.dtype.itemsize
        if self.limit < 0:
            raise ValueError(f"tensors of more than {MAX_EXPANSION} times the size of the file")
        return StoredTensor(storage, storage.dtype, tuple(shape), tuple(stride), offset)


def _no_call(*_: Any) -> None:
    raise ValueError("a storage without data")


def _read_zip(path: Path, file: BinaryIO) -> Any:
    where, size = str(path), path.stat().st_size
    try:
        data, folder = _read_archive(file, where)

        def storage_of(key: str, dtype: torch.dtype, num_elements: int) -> Storage:
            entry = folder[f"data/{key}"]
            if entry.file_size != num_elements * dtype.itemsize or entry.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"tensor data {key!r} have {entry.file_size} bytes, not {num_elements} {dtype}")
            start = _data_start(file, entry.header_offset)
            if start + entry.file_size > size:
                raise ValueError(f"tensor data {key!r} go beyond the end of the file")
            return Storage(path, key, dtype, num_elements, start, entry.CRC)

        tensors = _Tensors(path, storage_of)
        return Machine(where, tensors.persistent, tensors.builders).load(io.BytesIO(data))
    except UserError:
        raise
    except (zipfile.BadZipFile, ValueError, NotImplementedError, LookupError, RuntimeError, OverflowError) as error:
        corrupt(error, where)
    except (EOFError, struct.error, zlib.error) as error:
        corrupt(error, where)


def _read_archive(file: BinaryIO, where: str) -> tuple[bytes, dict[str, zipfile.ZipInfo]]:
    """Return data.pkl, its checksum verified, and the entries of its folder by name."""
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
        roots = [name.removesuffix("data.pkl") for name in names if name.rpartition("/")[2] == "data.pkl"]
        if len(roots) != 1 or len(set(names)) != len(names):
            raise UserError(f"{len(roots)} entries data.pkl in the archive, or one name twice", where=where)
        folder = {entry.filename.removeprefix(roots[0]): entry for entry in archive.infolist()}
        pickled = folder["data.pkl"]
        if pickled.file_size > MAX_PICKLE_BYTES or pickled.compress_type != zipfile.ZIP_STORED:
            raise ValueError(f"a compressed or huge data.pkl ({pickled.file_size} bytes)")
        order = folder.get("byteorder")
        if order is not None and (order.file_size != 6 or archive.read(order) != b"little"):
            raise UserError("the file was written on a big-endian machine", where=where, fix="save it again")
        return archive.read(pickled), folder


def _data_start(file: BinaryIO, header: int) -> int:
    """Return where the bytes of an entry begin: behind its local header, whose padding aligns them."""
    file.seek(header)
    fields = file.read(30)
    if len(fields) < 30 or fields[:4] != b"PK\x03\x04":
        raise ValueError("an entry without a header")
    name_length, extra_length = struct.unpack("<HH", fields[26:30])
    return header + 30 + name_length + extra_length


def _read_legacy(path: Path, file: BinaryIO) -> Any:
    where = str(path)
    size = path.stat().st_size
    if Machine(where).load(file) != LEGACY_MAGIC:
        raise UserError("a pickle, but not a file of torch.save", where=where)
    protocol, system = Machine(where).load(file), Machine(where).load(file)
    if protocol != LEGACY_PROTOCOL or not isinstance(system, dict) or system.get("little_endian") is not True:
        corrupt("its header is not that of torch.save", where)
    tensors = _Tensors(path, lambda key, dtype, num_elements: Storage(path, key, dtype, num_elements))
    tree = Machine(where, tensors.persistent, tensors.builders).load(file)
    keys = Machine(where).load(file)
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys) or {*keys} != {*tensors.storages}:
        corrupt("the list of tensor data does not fit", where)
    position = file.tell()
    for key in keys:
        storage = tensors.storages[key]
        file.seek(position)
        announced = int.from_bytes(file.read(8), "little")
        storage.start = position + 8
        position = storage.start + storage.num_bytes
        if announced != storage.num_elements or position > size:
            corrupt(f"tensor data {key!r}: {announced} elements, expected {storage.num_elements}", where)
    if position != size:
        corrupt(f"{size - position} bytes behind the end", where)
    return tree


def tensors_of(state: Mapping[Any, Any]) -> dict[str, StoredTensor]:
    """Return the tensors of a state dictionary that have a name, in order; other entries are dropped."""
    return {name: value for name, value in state.items() if isinstance(name, str) and isinstance(value, StoredTensor)}
