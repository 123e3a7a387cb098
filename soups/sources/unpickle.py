"""Read a pickle without running it: the program is interpreted here, and nothing in it can be called.

``torch.save`` writes a pickle. A pickle is a program for a stack machine, and unpickling executes it: that is
how a checkpoint can run any code. Here the opcodes only build plain data (dicts, lists, numbers, text). A class or
function that the program names stays a name; a call of it becomes a `Call` record, and no module is imported. Names
outside a short list are refused all the same, because a file of weights has no use for them.

Opcodes: https://docs.python.org/3/library/pickletools.html
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import IO, Any

DAMAGE = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError, EOFError)
MAX_OPCODES = 10_000_000  # a checkpoint of 100,000 tensors with its optimizer has about 7 million


class PickleError(ValueError):
    """Say why a pickle is not read; the caller knows the file."""


class RefusedName(PickleError):
    """The pickle names a class or function that weights do not need."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


@dataclass(frozen=True)
class Name:
    """A class or function, by its full name; never imported."""

    full: str


@dataclass(eq=False)
class Call:
    """An object that unpickling would have made: what was called, with what, and the state set afterwards."""

    name: str
    args: tuple[Any, ...]
    state: Any = None
    items: dict[Any, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class PersistentId:
    """A reference to something stored outside the pickle: for ``torch.save``, the bytes of tensors."""

    value: Any


class _Mark:
    """The place on the stack where a list of items starts."""


MARK = _Mark()
DICTS = {"collections.OrderedDict", "collections.defaultdict", "collections.Counter", "builtins.dict"}


def parse(file: IO[bytes], is_allowed: Callable[[str], bool], references: list[Any] | None = None) -> Any:
    """Interpret one pickle, from the position of the file to just after its end.

    Args:
        file: where the pickle starts.
        is_allowed: says of a full name, such as ``collections.OrderedDict``, whether it may stand in the file.
        references: receives every persistent id, in order.

    Raises:
        RefusedName: a name is not allowed.
        PickleError: not a pickle, cut off, or an opcode that no checkpoint needs.
    """
    machine = _Machine(is_allowed, [] if references is None else references)
    try:
        for number, (opcode, argument, _) in enumerate(pickletools.genops(file)):
            if number > MAX_OPCODES:
                raise PickleError(f"more than {MAX_OPCODES} opcodes")
            machine.step(opcode.name, argument)
        (value,) = machine.stack
    except PickleError:
        raise
    except (*DAMAGE, MemoryError) as error:
        raise PickleError(f"the pickle is not readable ({error})") from error
    return value


class _Machine:
    def __init__(self, is_allowed: Callable[[str], bool], references: list[Any]) -> None:
        self.stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        self._is_allowed = is_allowed
        self._references = references
        self._copied = 0

    def step(self, opcode: str, argument: Any) -> None:
        """Do one instruction."""
        if opcode in LITERALS:
            self.stack.append(argument)
        elif opcode in MAKERS:
            self.stack.append(MAKERS[opcode]())
        elif opcode in TUPLES:
            values = [self.stack.pop() for _ in range(TUPLES[opcode])]
            self.stack.append(tuple(reversed(values)))
        elif opcode in PUTS:
            self._memo[len(self._memo) if opcode == "MEMOIZE" else argument] = self.stack[-1]
        elif opcode in GETS:
            self.stack.append(self._memo[argument])
        elif opcode not in ("PROTO", "FRAME", "STOP"):
            method = getattr(self, f"_{opcode.lower()}", None)
            if method is None:
                raise PickleError(f"opcode {opcode}")
            method(argument)

    def _to_mark(self) -> list[Any]:
        start = len(self.stack) - 1
        while self.stack[start] is not MARK:
            start -= 1
            if start < 0:
                raise PickleError("a mark is missing")
        values = self.stack[start + 1 :]
        del self.stack[start:]
        return values

    def _push_name(self, full: str) -> None:
        if not self._is_allowed(full):
            raise RefusedName(full)
        self.stack.append(Name(full))

    def _global(self, argument: str) -> None:
        self._push_name(".".join(_python3(*argument.split(" ", 1))))

    def _stack_global(self, _: None) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise PickleError("a name that is not text")
        self._push_name(f"{module}.{name}")

    def _reduce(self, _: None) -> None:
        args, function = self.stack.pop(), self.stack.pop()
        if not isinstance(function, Name) or not isinstance(args, tuple):
            raise PickleError("a call of what is no name")
        if function.full in DICTS:
            pairs = args[0] if args and isinstance(args[0], list) else []  # Python 2 gives the items at once
            self._copied += len(pairs)  # a list may be shared, our copies of it are not
            if self._copied > MAX_OPCODES:
                raise PickleError(f"more than {MAX_OPCODES} copied items")
            self.stack.append({})
            self._set([part for key, value in pairs for part in (key, value)])
        else:
            self.stack.append(Call(function.full, args))

    _newobj = _reduce

    def _inst(self, argument: str) -> None:
        args = tuple(self._to_mark())
        self._global(argument)
        self.stack.append(args)
        self._reduce(None)

    def _obj(self, _: None) -> None:
        function, *args = self._to_mark()
        self.stack += [function, tuple(args)]
        self._reduce(None)

    def _newobj_ex(self, _: None) -> None:
        self.stack.pop()
        self._reduce(None)

    def _build(self, _: None) -> None:
        state = self.stack.pop()
        if isinstance(self.stack[-1], Call):
            self.stack[-1].state = state
        elif not isinstance(self.stack[-1], dict):  # the state of a dict is the _metadata of a state dict
            raise PickleError("a state for what is no object")

    def _mark(self, _: None) -> None:
        self.stack.append(MARK)

    def _pop(self, _: None) -> None:
        self.stack.pop()

    def _pop_mark(self, _: None) -> None:
        self._to_mark()

    def _dup(self, _: None) -> None:
        self.stack.append(self.stack[-1])

    def _tuple(self, _: None) -> None:
        values = tuple(self._to_mark())
        self.stack.append(values)

    def _list(self, _: None) -> None:
        values = self._to_mark()
        self.stack.append(values)

    def _dict(self, _: None) -> None:
        values = self._to_mark()
        self.stack.append({})
        self._set(values)

    def _frozenset(self, _: None) -> None:
        values = self._to_mark()
        self.stack.append(values)  # hashes of records are not those of the objects: a list will do

    def _append(self, _: None) -> None:
        self._extend([self.stack.pop()])

    def _appends(self, _: None) -> None:
        self._extend(self._to_mark())

    _additems = _appends

    def _extend(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, list):
            target.extend(values)
        elif not isinstance(target, Call):
            raise PickleError("an item for what is no list")

    def _setitem(self, _: None) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set([key, value])

    def _setitems(self, _: None) -> None:
        self._set(self._to_mark())

    def _set(self, pairs: list[Any]) -> None:
        target = self.stack[-1]
        items = target.items if isinstance(target, Call) else target
        if not isinstance(items, dict):
            raise PickleError("a key for what is no dict")
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            items[key if _is_plain(key) else f"key {len(items)}"] = value

    def _binpersid(self, _: None) -> None:
        self.stack[-1] = PersistentId(self.stack[-1])
        self._references.append(self.stack[-1].value)


LITERALS = frozenset(
    {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"}
    | {"STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"}
    | {"BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"}
)
MAKERS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_SET": list,
}
TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
PUTS = frozenset({"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"})
GETS = frozenset({"GET", "BINGET", "LONG_BINGET"})


def _python3(module: str, name: str) -> tuple[str, str]:
    """Spell the few modules that Python 2 called otherwise, as protocol 2 writes them."""
    return {"__builtin__": "builtins", "copy_reg": "copyreg"}.get(module, module), name


def _is_plain(key: Any) -> bool:
    """Say whether a key is a scalar: the hash and the text of nested tuples can take for ever."""
    return isinstance(key, str | int | float | bytes | None)
