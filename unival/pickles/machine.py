"""A stack machine for pickles that imports nothing and calls nothing of the file's choosing.

A pickle is a program. Python's own reader runs it: what a name in the file stands for is imported and called. Here a
name that is not on the list of `values` ends the reading, and there is no switch to turn that off. `pickletools` of the
standard library decodes single operations; limits keep a hostile file from costing more than its own bytes do.
"""

import pickletools
import struct
import warnings
from collections.abc import Callable, Mapping
from typing import IO, Any, BinaryIO, NoReturn, cast

from unival.errors import UserError
from unival.pickles.values import Builder, Instance, Name, StateDict, as_set, builder_of, check_key, is_allowed, path_of

MAX_OPERATIONS = 5_000_000  # a base model with EMA copy and optimizer state needs 300,000
MAX_ITEM_BYTES = 64 * 2**20
MAX_INTEGER_BITS = 128  # the largest in any torch file is the 80-bit mark of the old format
MAX_COPIES = 50_000_000  # elements that calls copy
_MARK = object()
_LITERALS = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_DICT": dict,
    "EMPTY_SET": set,
    "MARK": lambda: _MARK,
}


def refuse(name: str, where: str) -> NoReturn:
    """Raise the error for a name that is not on the list."""
    raise UserError(
        f"refused: the file asks for `{name}`, which no checkpoint needs; nothing of it was run",
        where=where,
        fix="it may be malicious; if you trust its maker, ask for a safetensors file instead",
    )


def corrupt(why: object, where: str) -> NoReturn:
    """Raise the error for a file that is not what it claims to be."""
    raise UserError(f"truncated or corrupt file: {why}", where=where, fix="copy or download it again") from None


class Machine:
    """Reads one pickle.

    Args:
        where: File name for messages.
        persistent: Called with each persistent id (how torch refers to tensor data); None refuses them.
        builders: Names that may be called, beside the common ones.
        max_operations: How long the pickle may be, by default as long as any checkpoint.
    """

    def __init__(
        self,
        where: str,
        persistent: Callable[[Any], Any] | None = None,
        builders: Mapping[str, Builder] | None = None,
        max_operations: int | None = None,
    ) -> None:
        self.where = where
        self.max_operations = MAX_OPERATIONS if max_operations is None else max_operations
        self.persistent = persistent
        self.builders = builders or {}
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.num_copied = 0

    def load(self, source: BinaryIO) -> Any:
        """Read a pickle from the current position of `source` and return its value as plain data.

        Raises:
            UserError: If a name is not on the list, or the pickle is truncated, corrupt or beyond the limits.
        """
        try:
            bounded = cast(IO[bytes], _Bounded(source))  # it has the three methods that `genops` calls
            with warnings.catch_warnings():  # of `pickletools`, about a name with a backslash
                warnings.simplefilter("ignore", DeprecationWarning)
                return self._run(bounded)
        except UserError:
            raise
        except MemoryError:
            corrupt("it needs more memory than there is", self.where)
        except RecursionError:
            corrupt("it is nested too deeply", self.where)
        except (ValueError, TypeError, LookupError, AttributeError, OverflowError, struct.error) as error:
            corrupt(f"{type(error).__name__}: {error}", self.where)

    def _run(self, bounded: IO[bytes]) -> Any:
        for count, (operation, argument, _) in enumerate(pickletools.genops(bounded)):
            if count > self.max_operations:
                raise ValueError(f"more than {self.max_operations} operations")
            if operation.name == "STOP":
                return self._pop()
            self._step(operation.name, argument)
        raise ValueError("it ends too early")

    def _step(self, name: str, argument: Any) -> None:
        if name in _LITERALS:
            if isinstance(argument, int) and argument.bit_length() > MAX_INTEGER_BITS:
                raise ValueError(f"a number of {argument.bit_length()} bits")
            self.stack.append(argument)
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name]())
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            self.memo[argument] = self.stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            self.stack.append(self.memo[argument])
        elif name not in ("PROTO", "FRAME"):
            handler = getattr(self, f"_on_{name.lower()}", None)
            if handler is None:  # INST, OBJ, EXT1, EXT2, EXT4, PERSID and out-of-band buffers: no checkpoint has them
                refuse(" ".join([name, str(argument or "").replace(" ", ".", 1)]).strip(), self.where)
            handler(argument)

    def _pop(self) -> Any:
        value = self.stack.pop()
        if value is _MARK:
            raise ValueError("a mark where a value should be")
        return value

    def _pop_mark(self) -> list[Any]:
        for index in range(len(self.stack) - 1, -1, -1):
            if self.stack[index] is _MARK:
                items = self.stack[index + 1 :]
                del self.stack[index:]
                return items
        raise ValueError("a mark is missing")

    def _top(self, *kinds: type) -> Any:
        if not isinstance(self.stack[-1], kinds):
            raise ValueError(f"a {type(self.stack[-1]).__name__} cannot be filled")
        return self.stack[-1]

    def _on_memoize(self, _: Any) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def _on_pop(self, _: Any) -> None:
        self.stack.pop()

    def _on_pop_mark(self, _: Any) -> None:
        self._pop_mark()

    def _on_dup(self, _: Any) -> None:
        self.stack.append(self.stack[-1])

    def _on_tuple(self, _: Any) -> None:
        self.stack.append(tuple(self._pop_mark()))

    def _on_tuple1(self, _: Any) -> None:
        self.stack.append((self._pop(),))

    def _on_tuple2(self, _: Any) -> None:
        last = self._pop()
        self.stack.append((self._pop(), last))

    def _on_tuple3(self, _: Any) -> None:
        last, middle = self._pop(), self._pop()
        self.stack.append((self._pop(), middle, last))

    def _on_list(self, _: Any) -> None:
        self.stack.append(self._pop_mark())

    def _on_dict(self, _: Any) -> None:
        items = self._pop_mark()
        self.stack.append({})
        self._fill(items)

    def _on_frozenset(self, _: Any) -> None:
        self.stack.append(frozenset(as_set(self._pop_mark())))

    def _on_append(self, _: Any) -> None:
        self._extend([self._pop()])

    def _on_appends(self, _: Any) -> None:
        self._extend(self._pop_mark())

    def _extend(self, items: list[Any]) -> None:
        target = self._top(list, Instance)
        (target.items if isinstance(target, Instance) else target).extend(items)

    def _on_additems(self, _: Any) -> None:
        items = as_set(self._pop_mark())
        self._top(set).update(items)

    def _on_setitem(self, _: Any) -> None:
        value = self._pop()
        self._fill([self._pop(), value])

    def _on_setitems(self, _: Any) -> None:
        self._fill(self._pop_mark())

    def _fill(self, items: list[Any]) -> None:
        target = self._top(dict, Instance)
        for key, value in zip(items[::2], items[1::2], strict=True):
            check_key(key)
            if isinstance(target, Instance):
                target.items.append((key, value))
            else:
                target[key] = value

    def _on_global(self, argument: str) -> None:
        self._push_name(*argument.split(" ", 1))

    def _on_stack_global(self, _: Any) -> None:
        name, module = self._pop(), self._pop()
        if not (isinstance(name, str) and isinstance(module, str)):
            raise ValueError("a name that is not text")
        self._push_name(module, name)

    def _push_name(self, module: str, name: str) -> None:
        path = path_of(module, name)
        if not is_allowed(path, self.builders):
            refuse(path, self.where)
        self.stack.append(Name(path))

    def _on_reduce(self, _: Any) -> None:
        args, called = self._pop(), self._pop()
        if not (isinstance(called, Name) and isinstance(args, tuple)):
            raise ValueError(f"a call of a {type(called).__name__}")
        self.num_copied += sum(len(arg) for arg in args if isinstance(arg, str | bytes | list | tuple | dict | set))
        if self.num_copied > MAX_COPIES:
            raise ValueError(f"more than {MAX_COPIES} copied elements")
        builder = builder_of(called.path, self.builders)
        if builder is None:
            refuse(f"{called.path}()", self.where)
        self.stack.append(builder(*args))

    def _on_newobj(self, _: Any) -> None:
        self._on_reduce(None)

    def _on_newobj_ex(self, _: Any) -> None:
        if self._pop():
            raise ValueError("keyword arguments of a class")
        self._on_reduce(None)

    def _on_build(self, _: Any) -> None:
        state = self._pop()
        target = self._top(Instance, StateDict)
        attributes, slots = state if isinstance(state, tuple) and len(state) == 2 else (state, None)
        if isinstance(target, StateDict):
            metadata = attributes.get("_metadata") if isinstance(attributes, dict) else None
            target._metadata = metadata if isinstance(metadata, dict) else None
        elif target.state:
            raise ValueError("a second state of one object")
        else:
            target.state = next((part for part in (attributes, slots) if isinstance(part, dict)), {})

    def _on_binpersid(self, _: Any) -> None:
        if self.persistent is None:
            raise ValueError("a persistent id")
        self.stack.append(self.persistent(self._pop()))


class _Bounded:
    """Refuses items beyond the limit before memory is taken for them."""

    def __init__(self, source: BinaryIO) -> None:
        self.source = source
        self.tell = source.tell

    def read(self, size: int) -> bytes:
        if not 0 <= size <= MAX_ITEM_BYTES:
            raise ValueError(f"an item of {size} bytes")
        return self.source.read(size)

    def readline(self) -> bytes:
        return self.source.readline(MAX_ITEM_BYTES)
