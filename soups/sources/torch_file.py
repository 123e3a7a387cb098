"""The headers of a file of ``torch.save``: where each tensor lies in it, without reading any, or running its pickle.

Two containers exist. Since torch 1.6 a file is an uncompressed zip: ``NAME/data.pkl`` describes the tensors,
``NAME/data/KEY`` holds the bytes of one storage. Before, and still on request, it is a sequence of pickles (magic
number, version, system, the object, the keys of the storages), then each storage after its length.

Checkpoints nest the weights under many names; see `WEIGHTS` and `AVERAGES`. fairseq (UnIVAL, OFA) writes
``{"args": None, "cfg": {...}, "model": weights, "extra_state": {"ema": weights, ...}, ...}``.
"""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from soups.errors import UserError
from soups.sources.info import DTYPES, ITEM_BYTES, TensorInfo, corrupt, packed_strides, wrapped
from soups.sources.unpickle import DAMAGE, Call, Name, PersistentId, PickleError, RefusedName, parse

# Where training programs put the weights, and where they put the exponential moving average of the weights.
WEIGHTS = (("model",), ("state_dict",), ("model_state_dict",), ("module",), ("net",), ("params",), ("weights",))
AVERAGES = (
    ("extra_state", "ema_fp32_params"),  # fairseq: the average itself; "ema" is a copy of it in the model's dtype
    ("extra_state", "ema"),
    ("ema",),
    ("model_ema",),
    ("ema_model",),
    ("state_dict_ema",),
    ("ema_state_dict",),
    ("params_ema",),
)

STORAGES = {
    **{f"torch.{torch}Storage": name for torch, name in {"Bool": "BOOL", "Byte": "U8", "Char": "I8"}.items()},
    **{f"torch.{torch}Storage": name for torch, name in {"Short": "I16", "Half": "F16", "BFloat16": "BF16"}.items()},
    **{f"torch.{torch}Storage": name for torch, name in {"Int": "I32", "Float": "F32"}.items()},
    **{f"torch.{torch}Storage": name for torch, name in {"Long": "I64", "Double": "F64"}.items()},
    "torch.storage.UntypedStorage": "U8",
    "torch.UntypedStorage": "U8",
}
TORCH_DTYPES = {f"torch.{torch}": name for name, (torch, _) in DTYPES.items()}
PARAMETERS = {"torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state"}
# What a file may name besides tensors: never imported, never called, only skipped over.
INERT = {
    "argparse.Namespace",
    "builtins.bytearray",
    "builtins.complex",
    "builtins.dict",
    "builtins.float",
    "builtins.frozenset",
    "builtins.getattr",  # how some versions of Python spell a member of an Enum
    "builtins.int",
    "builtins.list",
    "builtins.range",
    "builtins.set",
    "builtins.slice",
    "builtins.str",
    "builtins.tuple",
    "_codecs.encode",
    "collections.Counter",
    "collections.OrderedDict",
    "collections.defaultdict",
    "collections.deque",
    "datetime.datetime",
    "datetime.timedelta",
    "numpy.dtype",
    "numpy.ndarray",
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
    *(f"pathlib.{kind}Path" for kind in ("", "Posix", "Windows", "PurePosix", "PureWindows")),
    "torch.Size",
    "torch.Tensor",
    "torch.device",
    "torch.nn.parameter.Parameter",
    "torch.serialization._get_layout",
    "torch.torch_version.TorchVersion",
    "typing.Any",
    *TORCH_DTYPES,
    *STORAGES,
    *(f"torch.{kind}Storage" for kind in ("ComplexFloat", "ComplexDouble", "QInt8", "QUInt8", "QInt32")),
    "torch.complex64",
    "torch.complex128",
}
INERT_PREFIXES = (  # records of settings and progress, of the programs that write checkpoints
    "torch._utils._rebuild_",
    "torch._tensor._rebuild_",
    "fairseq.",
    "omegaconf.",
    "hydra.",
    "pytorch_lightning.",
    "lightning.",
    "lightning_fabric.",
    "transformers.",
    "accelerate.",
)
CONFIG_PREFIXES = ("tasks.", "criterions.", "models.", "unival_module.")  # option classes of UnIVAL and OFA
MAGIC = 0x1950A86A20F9469CFC6C
MAX_PICKLE_BYTES = 100_000_000
MAX_EXPANDED_BYTES = 8 << 30  # a stride of zero makes a huge tensor out of a small file
MAX_AXES = 64
MAX_LISTED = 5
MAX_WRAPPED = 5  # calls around the one that rebuilds a tensor


class _OtherNumbers(PickleError):
    """The file is sound, and holds numbers that are not understood here."""


@dataclass(frozen=True)
class _Stored:
    """A tensor and its place in a storage; legacy files tell only at their end where the storages are."""

    key: str
    dtype: str
    start: int  # its first entry, in entries from the start of the storage
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def is_packed(self) -> bool:
        """Say whether the entries follow one another; the stride of an axis of one entry means nothing."""
        pairs = zip(self.shape, self.strides, packed_strides(self.shape), strict=True)
        return 0 in self.shape or all(size == 1 or stride == packed for size, stride, packed in pairs)


def read_torch_file(path: Path, *, average: bool = False) -> dict[str, TensorInfo]:
    """Return the headers of the weights in a file of ``torch.save``.

    Args:
        path: the file.
        average: take the moving average of the weights that was stored beside them, instead of them.

    Raises:
        UserError: truncated, corrupt, not a file of tensors, or it names a class that weights do not need.
    """
    try:
        with path.open("rb") as file:
            is_zip = file.read(4) == b"PK\x03\x04"
            value, places = _read_zip(path) if is_zip else _read_legacy(file, path)
        state = find_weights(value, path, average=average)
        return {name: _info(name, stored, places, path) for name, stored in _stored(state, path).items()}
    except UserError:
        raise
    except RefusedName as error:
        raise UserError(
            f"this file asks to run {error.name}, which weights do not need; nothing of it was run",
            where=str(path),
            fix="where you trust it, save the weights alone: torch.save(model.state_dict(), ...)",
        ) from error
    except _OtherNumbers as error:
        what = f"{error.args[0]}, which are not supported"
        raise UserError(what, where=str(path), fix="save the weights without them, or as float32") from error
    except (*DAMAGE, zipfile.BadZipFile, struct.error) as error:
        raise corrupt(path, str(error)) from error


def is_allowed(name: str) -> bool:
    """Say whether a file of weights may name this class or function."""
    is_config = name.startswith(CONFIG_PREFIXES) and name.endswith("Config")
    return is_config or name in INERT or name.startswith(INERT_PREFIXES)


def _read_zip(path: Path) -> tuple[Any, dict[str, tuple[int, int]]]:
    """Return the object, and by storage key its offset and size in bytes."""
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        entries = archive.infolist()
        roots = [entry.filename.removesuffix("/data.pkl") for entry in entries if entry.filename.endswith("/data.pkl")]
        if len(roots) != 1 or len({entry.filename for entry in entries}) != len(entries):
            raise PickleError("not one data.pkl, but " + str(len(roots)))
        root = roots[0]
        if any(entry.filename == f"{root}/constants.pkl" for entry in entries):
            raise UserError("this is a TorchScript program", where=str(path), fix="save model.state_dict()")
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise PickleError("its entries are compressed; torch.save never does that")
        names = {entry.filename: entry for entry in entries}
        if f"{root}/byteorder" in names and archive.read(f"{root}/byteorder") != b"little":
            raise UserError("its numbers are big-endian", where=str(path), fix="save it again on this machine")
        if names[f"{root}/data.pkl"].file_size > MAX_PICKLE_BYTES:
            raise PickleError(f"data.pkl is larger than {MAX_PICKLE_BYTES} bytes")
        value = parse(io.BytesIO(archive.read(f"{root}/data.pkl")), is_allowed)  # read() checks its CRC
        places = {
            name.removeprefix(f"{root}/data/"): (_data_offset(file, entry), entry.file_size)
            for name, entry in names.items()
            if name.startswith(f"{root}/data/")
        }
    return value, places


def _data_offset(file: IO[bytes], entry: zipfile.ZipInfo) -> int:
    """Return where the bytes of an entry start: after its local header, whose length differs from the listed one."""
    file.seek(entry.header_offset)
    header = file.read(30)
    if len(header) != 30 or header[:4] != b"PK\x03\x04":
        raise PickleError(f"no local header for {entry.filename}")
    return entry.header_offset + 30 + int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")


def _read_legacy(file: IO[bytes], path: Path) -> tuple[Any, dict[str, tuple[int, int]]]:
    file.seek(0)
    try:
        magic = parse(file, is_allowed)
    except RefusedName:
        raise
    except PickleError:
        magic = None
    if magic != MAGIC:
        raise UserError(
            "not a file of torch.save", where=str(path), fix="give safetensors, or what torch.save(state_dict) wrote"
        )
    parse(file, is_allowed)  # the version of the protocol
    if not parse(file, is_allowed).get("little_endian", True):
        raise UserError("its numbers are big-endian", where=str(path), fix="save it again on this machine")
    references: list[Any] = []
    value = parse(file, is_allowed, references)
    sizes = {key: ITEM_BYTES[dtype] for key, dtype, _ in map(_storage, references)}
    places: dict[str, tuple[int, int]] = {}
    position = None
    for key in parse(file, is_allowed):
        if not isinstance(key, str):
            raise PickleError("a storage without a name")
        position = file.tell() if position is None else position
        file.seek(position)
        num_bytes = int.from_bytes(file.read(8), "little") * sizes.get(key, 1)
        places[key] = (position + 8, num_bytes)
        position += 8 + num_bytes
    return value, places


def _storage(reference: Any, name: str = "the file") -> tuple[str, str, int]:
    """Return key, dtype and first item of the storage that a persistent id names."""
    if not isinstance(reference, tuple) or len(reference) not in (5, 6):
        raise PickleError("a reference that names no storage")
    kind, storage, key, _, _, *view = reference
    if kind != "storage" or not isinstance(storage, Name) or not isinstance(key, str):
        raise PickleError("a reference that names no storage")
    if storage.full not in STORAGES:
        kind = "complex numbers" if "Complex" in storage.full else f"numbers of the kind {storage.full}"
        raise _OtherNumbers(f"{name} holds {kind}")
    return key, STORAGES[storage.full], view[0][1] if view and view[0] else 0


def find_weights(value: Any, path: Path, *, average: bool = False) -> Mapping[str, Any]:
    """Return the dict of tensors inside what a training program saved.

    Raises:
        UserError: there is none, or several; names what the file holds.
    """
    if not isinstance(value, dict):
        what = value.name if isinstance(value, Call) else type(value).__name__
        raise UserError(f"holds {what}, not a dict of tensors", where=str(path), fix="save model.state_dict()")
    found = {".".join(keys): state for keys in (AVERAGES if average else WEIGHTS) if (state := _at(value, keys))}
    # Not before: beside the weights, programs put tensors of their own, such as the best accuracy and random states.
    if not found and not average and _has_tensors(value):
        return value
    if average:
        found = dict(list(found.items())[:1])  # the list is in order of preference
    if len(found) != 1:
        what = "moving average" if average else "weights"
        listed = ", ".join(repr(key) for key in list(value)[:MAX_LISTED])
        raise UserError(
            f"{'several' if found else 'no'} {what} in this file: {', '.join(found) or 'it holds ' + listed}",
            where=str(path),
            fix="leave --ema out" if average else "save the weights alone: torch.save(model.state_dict(), ...)",
        )
    return next(iter(found.values()))


def _at(value: Any, keys: tuple[str, ...]) -> dict[str, Any] | None:
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value if isinstance(value, dict) and _has_tensors(value) else None


def _has_tensors(state: dict[Any, Any]) -> bool:
    return any(_tensor_call(value) for value in state.values())


def _tensor_call(value: Any) -> Call | None:
    """Return the call that would rebuild a tensor, without what makes it a parameter or a subclass."""
    for _ in range(MAX_WRAPPED):
        if not isinstance(value, Call):
            return None
        if value.name in PARAMETERS and value.args:
            value = value.args[0]
        elif value.name == "torch._tensor._rebuild_from_type_v2":
            function, _, args, *_ = value.args
            value = Call(function.full, args)
        else:
            return value if value.name.startswith("torch._utils._rebuild_") else None
    return None


def _stored(state: Mapping[Any, Any], path: Path) -> dict[str, _Stored]:
    cut = wrapped([str(name) for name in state])
    stored: dict[str, _Stored] = {}
    for name, value in state.items():
        call = _tensor_call(value)
        if call is None:
            what = value.name if isinstance(value, Call) else type(value).__name__
            raise UserError(
                f"{name!r} is no tensor, but {what}",
                where=str(path),
                fix="save tensors only: torch.save(model.state_dict(), ...)",
            )
        stored[str(name)[cut:]] = _rebuilt(str(name), call, path)
    return stored


def _rebuilt(name: str, call: Call, path: Path) -> _Stored:
    kind = call.name.removeprefix("torch._utils._rebuild_")
    if kind not in ("tensor", "tensor_v2", "tensor_v3") or not isinstance(call.args[0], PersistentId):
        raise UserError(f"{name!r} is not a plain tensor ({kind})", where=str(path), fix="save dense tensors")
    reference, start, shape, strides = call.args[:4]
    key, dtype, first = _storage(reference.value, repr(name))
    if kind == "tensor_v3":
        dtype = TORCH_DTYPES[call.args[6].full]
    if any(call.args[7 if kind == "tensor_v3" else 6 :]):  # bits of torch, such as "negative"
        raise UserError(
            f"{name!r} is not what is stored, but its negative or conjugate", where=str(path), fix="save a clone()"
        )
    numbers = (start, first, *shape, *strides)
    if len(shape) != len(strides) or len(shape) > MAX_AXES or any(type(n) is not int or n < 0 for n in numbers):
        raise PickleError(f"{name!r} has no possible shape")
    return _Stored(key, dtype, start + first, tuple(shape), tuple(strides))


def _info(name: str, stored: _Stored, places: Mapping[str, tuple[int, int]], path: Path) -> TensorInfo:
    """Place a tensor in the file and check that its bytes are there."""
    if stored.key not in places:
        raise PickleError(f"the bytes of {name!r} are missing")
    offset, num_bytes = places[stored.key]
    start = stored.start * ITEM_BYTES[stored.dtype]
    strides = None if stored.is_packed else stored.strides
    info = TensorInfo(stored.dtype, stored.shape, path, offset + start, strides)
    if offset + num_bytes > path.stat().st_size or start + info.extent > num_bytes:
        raise PickleError(f"the bytes of {name!r} are missing")
    if info.num_bytes > max(info.extent, MAX_EXPANDED_BYTES):
        raise PickleError(f"{name!r} repeats its entries to {info.num_bytes} bytes")
    return info
