"""The store of a sweep: ``results.jsonl``, append-only, a line per point, and ``sweep.json``, what was swept.

A line of ``results.jsonl``::

    {"key": "4be0...", "coefficients": {"bleu": 0.3, "cider": 0.7}, "metrics": {"CIDEr": 1.37},
     "num_samples": 2, "scores": {"CIDEr": [1.3, 1.44]}, "samples": [], "seconds": 2.5}

``metrics`` are the means of ``scores``; ``samples`` are examples to show; ``modules``, where it is, holds the
coefficients of tensors that have their own, by pattern. A line counts once it ends with a
line feed, so that a process killed while writing loses one point and nothing else.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from soups.errors import UserError
from soups.methods import Method, get_method
from soups.methods._weights import one_hot

if TYPE_CHECKING:
    from soups.state import Checkpoint

RESULTS_NAME = "results.jsonl"
SWEEP_NAME = "sweep.json"
OWN_METHOD = "method_file"


@dataclass(frozen=True)
class Result:
    """The scores of one point.

    ``is_exact``, which is not stored with the point, says whether all the weight on one model is that model.
    """

    key: str
    coefficients: Mapping[str, float]
    metrics: Mapping[str, float]
    num_samples: int
    scores: Mapping[str, Sequence[float]]
    samples: Sequence[Mapping[str, str]] = field(default_factory=list)
    seconds: float = 0.0
    modules: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    is_exact: bool = True

    @property
    def every_coefficient(self) -> dict[str, float]:
        """Return every coefficient under one name: those of a module are named ``model @ pattern``."""
        modules = {f"{name} @ {label}": w for label, part in self.modules.items() for name, w in part.items()}
        return {**self.coefficients, **modules}

    @property
    def is_plain(self) -> bool:
        """Say whether one set of coefficients holds for all tensors."""
        return all(dict(part) == dict(self.coefficients) for part in self.modules.values())

    @property
    def alone(self) -> str | None:
        """Return the name of the model that this point is, or None for a mixture."""
        index = one_hot(list(self.coefficients.values())) if self.is_exact and self.is_plain else None
        return None if index is None else list(self.coefficients)[index]


def read_results(out_dir: Path) -> list[Result]:
    """Read the complete lines; a torn last line is ignored.

    Raises:
        UserError: no such file, or a complete line that is not a result.
    """
    path = out_dir / RESULTS_NAME
    if not path.is_file():
        raise UserError(
            f"no {RESULTS_NAME} in this folder",
            where=str(out_dir),
            fix="give the output folder of soups sweep",
        )
    with path.open("rb") as file:
        results = _parse(file, path)[0]
    manifest = read_manifest(out_dir)
    if manifest is None:
        return results
    own = manifest.get(OWN_METHOD)  # its file need not be here
    is_exact = own["is_exact"] if own else method_of(manifest).is_exact
    return marked(results, is_exact, manifest.get("rules", ()))


def marked(results: Sequence[Result], is_exact: bool, rules: Sequence[Any]) -> list[Result]:
    """Return the results with what the sweep says about them: rules and trimming change a model that is alone."""
    return [replace(result, is_exact=is_exact and not rules) for result in results]


def described_method(method: Method) -> dict[str, Any]:
    """Return how a sweep records its method, for `method_of`."""
    found: dict[str, Any] = {"method": method.name, "params": method.described_params}
    if method.file_sha256:
        found[OWN_METHOD] = {"sha256": method.file_sha256, "is_exact": method.is_exact}
    return found


def method_of(manifest: Mapping[str, Any], extras: Sequence[tuple[Checkpoint, Checkpoint]] = ()) -> Method:
    """Return the method of a sweep.

    Raises:
        UserError: it is a file of one's own that is gone, or that has changed.
    """
    method = get_method(manifest["method"], manifest["params"], extras)
    if method.file_sha256 != manifest.get(OWN_METHOD, {}).get("sha256"):
        what = "the file of the method has changed since the sweep"
        raise UserError(what, where=method.name, fix="bring the old one back, or sweep into another -o")
    return method


@contextmanager
def new_or_old(out_dir: Path, *, is_shared: bool = False) -> Iterator[None]:
    """Make the folder of a sweep; where its first point is refused nothing of it is left, unless others share it."""
    is_old = out_dir.exists()
    out_dir.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except UserError:
        path = out_dir / RESULTS_NAME
        if not is_old and not is_shared and path.is_file() and path.stat().st_size == 0:
            shutil.rmtree(out_dir)
        raise


@contextmanager
def open_results(out_dir: Path, *, is_shared: bool = False) -> Iterator[tuple[list[Result], BinaryIO]]:
    """Open the store for appending: yield the results already there and the file.

    A torn last line is cut off. The file is locked, so that two sweeps cannot write into one folder; if it is shared
    by the processes of one sweep, only while something is written.
    """
    path = out_dir / RESULTS_NAME
    with path.open("a+b") as file, _locked(file, out_dir, waits=is_shared) as unlock:
        results = _cut_torn_line(file, path)
        if is_shared:
            unlock()
        yield results, file


def append_shared(file: BinaryIO, result: Result, out_dir: Path) -> None:
    """Write one line to a store that other processes write to; not if they have written this point."""
    with _locked(file, out_dir, waits=True):
        if all(other.key != result.key for other in _cut_torn_line(file, out_dir / RESULTS_NAME)):
            append_result(file, result)


def _cut_torn_line(file: BinaryIO, path: Path) -> list[Result]:
    file.seek(0)
    results, end = _parse(file, path)
    file.truncate(end)
    file.seek(end)
    return results


def append_result(file: BinaryIO, result: Result) -> None:
    """Write one line and sync it to disk."""
    content = asdict(result)
    del content["is_exact"]
    if not content["modules"]:
        del content["modules"]
    file.write(json.dumps(content, allow_nan=False, ensure_ascii=False).encode() + b"\n")
    file.flush()
    os.fsync(file.fileno())


def _parse(file: BinaryIO, path: Path) -> tuple[list[Result], int]:
    """Return the results and the offset after the last complete line."""
    results: list[Result] = []
    end = 0
    for number, line in enumerate(file, start=1):
        if not line.endswith(b"\n"):
            break  # torn: the process that wrote it was killed
        try:
            results.append(Result(**json.loads(line)))
        except (ValueError, TypeError) as error:
            raise UserError(
                "this line is not a result of a sweep", where=f"{path}, line {number}", fix="delete the line"
            ) from error
        end += len(line)
    return results, end


@contextmanager
def _locked(file: BinaryIO, out_dir: Path, *, waits: bool) -> Iterator[Callable[[], None]]:
    """Hold the lock of a file; yield what gives it up early."""
    try:
        import fcntl
    except ImportError:  # not on Windows; two sweeps in one folder are then not noticed
        yield lambda: None
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if waits else fcntl.LOCK_NB))
    except BlockingIOError as error:
        raise UserError(
            "another sweep is writing here", where=str(out_dir), fix="wait for it, or give another -o"
        ) from error
    try:
        yield lambda: fcntl.flock(file, fcntl.LOCK_UN)
    finally:
        fcntl.flock(file, fcntl.LOCK_UN)


def read_manifest(out_dir: Path) -> dict[str, Any] | None:
    """Return the content of ``sweep.json``, or None if there is none."""
    path = out_dir / SWEEP_NAME
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError("not readable as JSON", where=str(path), fix="delete it to start over") from error
