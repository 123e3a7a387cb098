"""Tasks and objectives by name: a file of the package (`caption`), or one of your own (`my/haiku.py`)."""

import importlib
import sys
import zlib
from importlib.abc import Loader
from importlib.machinery import ModuleSpec
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from unival.errors import UserError, did_you_mean

OWN_SUFFIX = ".py"
IMPORT_FIX = "install what is missing, or mend the import"
SHARED = ("base",)  # files of a folder that are no member of it, besides those that start with an underscore


def member_names(package: str) -> list[str]:
    """List the members of a package: its files, without those that only hold shared code."""
    folders = importlib.import_module(package).__path__
    return sorted(path.stem for folder in folders for path in Path(folder).glob("[a-z]*.py") if path.stem not in SHARED)


def is_own(name: str) -> bool:
    """Say whether a name is a file outside the package."""
    return name.endswith(OWN_SUFFIX)


def member(package: str, name: str, kind: str) -> Any:
    """Return the class that a member of a package defines.

    Args:
        package: Such as `unival.tasks`.
        name: A file of the package without its suffix; or the path of a Python file, from the current folder.
        kind: Name of the class, such as `Task`; in lower case it is what messages call a member.

    Raises:
        UserError: If there is no such file, or it does not define the class.
    """
    if is_own(name):
        module = _import_file(name, kind.lower())
    elif name in member_names(package):
        module = importlib.import_module(f"{package}.{name}")
    else:
        fix = f"{did_you_mean(name, member_names(package))}; or a file of your own: {name or 'my'}{OWN_SUFFIX}"
        raise UserError(f"unknown {kind.lower()} {name!r}", fix=fix)
    found = getattr(module, kind, None)
    if not isinstance(found, type):
        raise UserError(f"{name} defines no class {kind}", fix=f"name it as those of {package} do: class {kind}")
    return found


def _import_file(name: str, what: str) -> ModuleType:
    """Import a file, once for each content, under a name that no other module has."""
    path = Path(name).resolve()
    if not path.is_file():
        folder = path.parent
        beside = sorted(file.name for file in folder.glob(f"*{OWN_SUFFIX}")) if folder.is_dir() else []
        raise UserError(f"{what} {name!r}: there is no file {path}", fix=did_you_mean(path.name, beside))
    key = f"unival_own.{zlib.crc32(path.read_bytes()):08x}.{path}"
    if key in sys.modules:
        return sys.modules[key]
    spec = cast(ModuleSpec, spec_from_file_location(key, path))
    loader = cast(Loader, spec.loader)  # the suffix gives it one
    module = sys.modules[key] = module_from_spec(spec)  # before it runs: annotations are looked up by module
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))  # for what lies beside it; last, so that it hides nothing
    try:
        loader.exec_module(module)
    except ImportError as error:
        del sys.modules[key]
        raise UserError(f"{what} {name!r} cannot be imported: {error}", where=str(path), fix=IMPORT_FIX) from error
    except BaseException:
        del sys.modules[key]
        raise
    return module
