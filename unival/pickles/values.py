"""What a pickle may name, and what becomes of it: plain values, or inert `Instance`s of classes that we do not have.

A name in a pickle is only a string here. The lists below say which ones a checkpoint may use.
"""

import struct
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

MAX_KEY_DEPTH = 2
MAX_KEY_PARTS = 8
MAX_KEY_BITS = 64
MAX_PLAIN_DEPTH = 50
MAX_PLAIN_NODES = 200_000
CHARS_PER_NODE = 100  # of a text: a file may share a long one, JSON repeats it

Builder = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Name:
    """A class or function that a pickle names, `module.name`; nothing is imported."""

    path: str


@dataclass(slots=True, eq=False)
class Instance:
    """An object of a class that we know but do not have: what it was made with, its state, its items."""

    kind: str
    args: tuple[Any, ...] = ()
    state: Mapping[Any, Any] = field(default_factory=dict)
    items: list[Any] = field(default_factory=list)


class StateDict(OrderedDict[Any, Any]):
    """An ordered dictionary with the version numbers that `torch.nn.Module.state_dict` attaches to its own."""

    _metadata: dict[Any, Any] | None = None


def check_key(key: Any, depth: int = 0) -> None:
    """Accept scalars and small tuples as keys: hashing a deep tuple would overflow the C stack.

    Raises:
        ValueError: For anything else.
    """
    if isinstance(key, tuple) and depth < MAX_KEY_DEPTH and len(key) <= MAX_KEY_PARTS:
        for part in key:
            check_key(part, depth + 1)
    elif not isinstance(key, str | int | float | bytes | Name | None):
        raise ValueError(f"a {type(key).__name__} as a key")
    elif isinstance(key, int) and key.bit_length() > MAX_KEY_BITS:
        raise ValueError("a huge number as a key")


def as_set(items: Sequence[Any] = ()) -> set[Any]:
    """Make a set of checked members."""
    for item in items:
        check_key(item)
    return set(items)


def _pairs(items: Any = ()) -> list[tuple[Any, Any]]:
    pairs = [(key, value) for key, value in (items.items() if isinstance(items, dict) else items)]
    for key, _ in pairs:
        check_key(key)
    return pairs


def _encode(text: str, encoding: str = "utf-8") -> bytes:
    if encoding not in ("latin1", "latin-1", "utf-8", "ascii"):
        raise ValueError("an unknown encoding")
    return text.encode(encoding)


def _bytearray(data: Any = b"", encoding: str = "latin1") -> bytes:
    return data if isinstance(data, bytes) else _encode(data, encoding)


def _numpy_scalar(dtype: Instance, data: bytes) -> bool | int | float:
    formats = {"b1": "?", "f8": "d", "f4": "f", "f2": "e", "i8": "q", "i4": "i", "i2": "h", "i1": "b", "u1": "B"}
    return struct.unpack("<" + formats[_joined("", dtype.args[:1]).lstrip("<=|")], data)[0]


def _numpy_array(_kind: Any, _shape: Any, _code: Any) -> Instance:
    """Make the record of an array; its numbers (a history, a generator's state) are not kept: weights are tensors."""
    return Instance("numpy.ndarray")


def _get_item(generic: Any, _: Any) -> Name:
    """Subscribe a type hint: `typing.Optional[int]` is pickled as a call of `operator.getitem`."""
    if not (isinstance(generic, Name) and generic.path.startswith("typing.")):
        raise ValueError("operator.getitem of something else than a type hint")
    return generic


def _make(cls: Name) -> Any:
    """Make an empty object, as protocols 0 and 1 write the creation of any instance."""
    builder = builder_of(cls.path, {})
    if builder is None:
        raise ValueError(f"an object of {cls.path}")
    return builder()


def _type(value: None) -> Name:
    """Return the type of None, which type hints such as `Optional` hold; of nothing else."""
    if value is not None:
        raise ValueError("the type of an object")
    return Name("builtins.NoneType")


def _joined(separator: str, parts: Sequence[Any]) -> str:
    """Join texts and numbers; the text of anything nested can be of any length, whatever the size of the file."""
    wrong = [type(part).__name__ for part in parts if not isinstance(part, str | int)]
    if wrong:
        raise ValueError(f"a {wrong[0]} where a text should be")
    return separator.join(map(str, parts))


# Names that may be called, with what we make of the call; `torch_file` adds those of tensors.
BUILDERS: dict[str, Builder] = {
    "collections.OrderedDict": lambda items=(): StateDict(_pairs(items)),
    "collections.defaultdict": lambda _factory=None, items=(): dict(_pairs(items)),
    "collections.Counter": lambda items=(): dict(_pairs(items)),
    "builtins.dict": lambda items=(): dict(_pairs(items)),
    "builtins.list": lambda items=(): list(items),
    "builtins.tuple": lambda items=(): tuple(items),
    "builtins.set": as_set,
    "builtins.frozenset": lambda items=(): frozenset(as_set(items)),
    "builtins.complex": lambda real, imag: complex(real, imag),
    "builtins.bytearray": _bytearray,
    "builtins.bytes": lambda: b"",  # how protocol 2 writes the empty one
    "builtins.slice": lambda *bounds: tuple(bounds),
    "builtins.type": _type,
    "_codecs.encode": _encode,
    "copyreg._reconstructor": lambda cls, _base, _state: _make(cls),
    "_operator.getitem": _get_item,
    "operator.getitem": _get_item,
    "pathlib.PosixPath": lambda *parts: _joined("/", parts).replace("//", "/", 1),  # the first part is the root
    "pathlib.Path": lambda *parts: _joined("/", parts).replace("//", "/", 1),
    "torch.Size": lambda items=(): tuple(items),
    "torch.device": lambda *parts: _joined(":", parts),
    "numpy.core.multiarray.scalar": _numpy_scalar,
    "numpy._core.multiarray.scalar": _numpy_scalar,
    "numpy.core.multiarray._reconstruct": _numpy_array,
    "numpy._core.multiarray._reconstruct": _numpy_array,
}
# Names that are only mentioned (type hints, dtypes); a call of one is refused.
_MENTIONED = {f"builtins.{name}" for name in ("object", "int", "float", "str", "bool")}
_MENTIONED |= {f"torch.{kind}{bits}" for kind, bits in (("float", 16), ("float", 32), ("float", 64), ("bfloat", 16))}
_MENTIONED |= {"numpy.ndarray", "torch.int8", "torch.int16", "torch.int32", "torch.int64", "torch.uint8", "torch.bool"}
# Classes whose objects become `Instance`s. They are all options, dates or running averages: data.
_INERT = {"argparse.Namespace", "numpy.dtype", "datetime.datetime", "datetime.date", "datetime.timedelta"}
_INERT_PREFIXES = (
    "omegaconf.base.",
    "omegaconf.dictconfig.",
    "omegaconf.listconfig.",
    "omegaconf.tupleconfig.",
    "omegaconf.nodes.",
    "fairseq.dataclass.",
    "fairseq.meters.",
    "fairseq.logging.meters.",
)
# Option classes of the original's tasks, criterions and models, which `cfg` holds where it is an OmegaConf container.
_CONFIG_ROOTS = ("fairseq.", "tasks.", "criterions.", "models.", "unival_module.")
# Names as Python 2 had them, which Python 3 writes too in protocol 2.
_PYTHON_2 = {"__builtin__": "builtins", "copy_reg": "copyreg"}
_PYTHON_2_TYPES = {"builtins.unicode": "builtins.str", "builtins.long": "builtins.int"}


def path_of(module: str, name: str) -> str:
    """Return `module.name`, with what Python 3 renamed under its new name."""
    path = f"{_PYTHON_2.get(module, module)}.{name}"
    return _PYTHON_2_TYPES.get(path, path)


def is_allowed(path: str, builders: Mapping[str, Builder]) -> bool:
    """Tell whether a pickle may name `path`."""
    return path in builders or path in BUILDERS or _is_inert(path) or path in _MENTIONED or path.startswith("typing.")


def _is_inert(path: str) -> bool:
    is_config = path.startswith(_CONFIG_ROOTS) and path.endswith("Config")
    return is_config or path in _INERT or path.startswith(_INERT_PREFIXES)


def builder_of(path: str, builders: Mapping[str, Builder]) -> Builder | None:
    """Return our stand-in for a class or function; None for a name that may not be called."""
    if _is_inert(path):
        return lambda *args: Instance(path, args)
    return builders.get(path) or BUILDERS.get(path)


def plain(value: Any) -> Any:
    """Turn a tree with `Instance`s into dictionaries, lists and scalars, as for JSON.

    A Namespace or an option class becomes the dictionary of its attributes, an OmegaConf container its content, an
    enumeration member its value; what has no plain form (tensors, type hints) becomes None.

    Raises:
        ValueError: If the tree is deeper or larger than any configuration, as a shared or cyclic one may be.
    """
    budget = MAX_PLAIN_NODES

    def walk(node: Any, depth: int) -> Any:
        nonlocal budget
        budget -= 1 + (len(node) // CHARS_PER_NODE if isinstance(node, str) else 0)
        if budget < 0 or depth > MAX_PLAIN_DEPTH:
            raise ValueError("a configuration that is too deep or too large")
        if isinstance(node, str | int | float | None):
            return node
        if isinstance(node, Mapping):
            return {text(key, depth): walk(item, depth + 1) for key, item in node.items()}
        if isinstance(node, list | tuple):
            return [walk(item, depth + 1) for item in node]
        if isinstance(node, set | frozenset):
            return sorted((walk(item, depth + 1) for item in node), key=lambda item: text(item, depth))
        return walk(_content(node), depth + 1) if isinstance(node, Instance) else None

    def text(key: Any, depth: int) -> str:
        if not isinstance(key, str | int | float | None):
            raise ValueError(f"a configuration with a {type(key).__name__} as a key")
        return str(walk(key, depth + 1))

    return walk(value, 0)


def _content(instance: Instance) -> Any:
    if instance.kind.startswith("omegaconf."):  # a container has `_content`, a leaf `_val`
        return instance.state.get("_content", instance.state.get("_val"))
    if instance.state:
        return instance.state
    if len(instance.args) == 1 and isinstance(instance.args[0], str | int | float):
        return instance.args[0]  # an enumeration member is pickled as a call of its class
    return {}
