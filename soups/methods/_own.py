"""A merge method in a file of one's own: ``--method my_method.py``."""

from __future__ import annotations

import sys
from importlib.abc import Loader
from importlib.machinery import ModuleSpec
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import cast

from soups.digests import sha256
from soups.errors import UserError, did_you_mean

SUFFIX = ".py"
DIGEST = "__sha256__"  # of the file, kept with what was imported from it
NEEDED = ("BASE", "ELEMENTWISE", "check", "merge")
BASES = ("none", "optional", "required")
FIX = "write it like the files of soups/methods, see docs/merge_methods.md"


def is_own(name: str) -> bool:
    """Say whether a name is a file outside the package."""
    return name.endswith(SUFFIX)


def own_method(name: str) -> ModuleType:
    """Import a file, once for each content, under a name that no other module has.

    Raises:
        UserError: there is no such file, it imports what is not installed, or it defines no method.
    """
    path = Path(name).resolve()
    where = str(path)
    if not path.is_file():
        beside = sorted(file.name for file in path.parent.glob(f"*{SUFFIX}")) if path.parent.is_dir() else []
        raise UserError(f"method {name!r}: there is no such file", where=where, fix=did_you_mean(path.name, beside))
    digest = sha256(path)
    key = f"soups_own.{digest}.{path}"
    if key not in sys.modules:
        spec = cast(ModuleSpec, spec_from_file_location(key, path))
        sys.modules[key] = module_from_spec(spec)
        setattr(sys.modules[key], DIGEST, digest)
        try:
            cast(Loader, spec.loader).exec_module(sys.modules[key])
        except BaseException as error:
            del sys.modules[key]
            if not isinstance(error, ImportError):
                raise
            fix = "install what is missing, or mend the import"
            raise UserError(f"method {name!r} cannot be imported: {error}", where=where, fix=fix) from error
    module = sys.modules[key]
    lacking = [each for each in NEEDED if not hasattr(module, each)]
    if lacking:
        raise UserError(f"method {name!r} defines no {lacking[0]}", where=where, fix=FIX)
    if module.BASE not in BASES:
        raise UserError(f"BASE of method {name!r} is {module.BASE!r}", where=where, fix=f"one of {', '.join(BASES)}")
    return module
