"""A merge is complete or absent, whether killed, out of space or fed with damage; and the same however it is cut."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from soups.cli import app
from soups.engine import jobs, output, stream
from soups.engine.jobs import Job, run_jobs
from soups.engine.output import new_folder
from soups.errors import UserError
from soups.merge import Recipe, merge, plan
from soups.methods import get_method
from soups.recipes.policies import Policies
from soups.sources.info import TensorInfo
from soups.state import open_checkpoint


def tensors(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "big.weight": torch.randn(37, 29, generator=generator),
        "big.t": torch.randn(29, 37, generator=generator).t(),
        "small": torch.randn(3, generator=generator),
        "half": torch.randn(500, generator=generator).to(torch.bfloat16),
        "wide": torch.randn(10, generator=generator, dtype=torch.float64),
        "scalar": torch.randn((), generator=generator),
        "empty": torch.empty(0, 3),
        "steps": torch.tensor(3),
    }


def recipe(folder: Path, num_models: int = 2, method: str = "linear", **options: object) -> Recipe:
    """Save models, the last one as a file of torch, and return the recipe that merges them."""
    checkpoints = []
    for index in range(num_models):
        model = folder / f"m{index}"
        model.mkdir(exist_ok=True)
        if index == num_models - 1:
            torch.save({"model": tensors(index)}, model / "model.pt")
            checkpoints.append(open_checkpoint(model / "model.pt", f"m{index}"))
        else:
            contiguous = {name: tensor.contiguous() for name, tensor in tensors(index).items()}
            save_file(contiguous, model / "model.safetensors")
            (model / "config.json").write_text("{}")
            checkpoints.append(open_checkpoint(model))
    weights = [(index + 1) / sum(range(num_models + 1)) for index in range(num_models)]
    return Recipe(checkpoints, weights, get_method(method), **options)  # type: ignore[arg-type]


def mean(num_models: int = 2) -> dict[str, torch.Tensor]:
    """Return the soup of `recipe`, in float64."""
    weights = [(index + 1) / sum(range(num_models + 1)) for index in range(num_models)]
    models = [tensors(index) for index in range(num_models)]
    return {
        name: sum(model[name].double() * weight for model, weight in zip(models, weights, strict=True))
        if models[0][name].is_floating_point()
        else models[0][name]
        for name in models[0]
    }


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("num_models", [1, 2, 4])
def test_a_merge_of_mixed_formats_is_the_float64_mean_rounded_once(tmp_path, num_models):
    merge(recipe(tmp_path, num_models), tmp_path / "out")
    found = load_file(tmp_path / "out" / "model.safetensors")
    for name, expected in mean(num_models).items():
        assert found[name].dtype == tensors(0)[name].dtype
        # The order of a sum may change its last float64 bit, and so, rarely, the rounding.
        tolerance = {torch.bfloat16: 2**-8, torch.float64: 1e-15}.get(found[name].dtype, 2**-23)
        torch.testing.assert_close(found[name].double(), expected.double(), rtol=tolerance, atol=1e-12)


@pytest.mark.parametrize("method", ["linear", "slerp"])
@pytest.mark.parametrize(("piece", "threads", "budget"), [(7, 1, 1 << 20), (64, 3, 1), (1 << 20, 2, 1000)])
def test_pieces_threads_and_memory_change_no_byte(tmp_path, monkeypatch, method, piece, threads, budget):
    merge(recipe(tmp_path, method=method), tmp_path / "whole")
    monkeypatch.setattr(stream, "PIECE_ELEMENTS", piece)
    monkeypatch.setattr(stream, "BUDGET_BYTES", budget)
    monkeypatch.setattr(stream, "num_cores", lambda: threads)
    before = torch.get_num_threads()
    merge(recipe(tmp_path, method=method), tmp_path / "cut")
    assert torch.get_num_threads() == before
    whole, cut = ((tmp_path / out / "model.safetensors").read_bytes() for out in ("whole", "cut"))
    assert whole == cut


@pytest.mark.parametrize("chosen", [0, 1])
def test_all_the_weight_on_one_model_gives_its_bytes_from_every_format(tmp_path, chosen):
    given = recipe(tmp_path)
    merge(Recipe(given.checkpoints, (1.0 - chosen, float(chosen)), given.method), tmp_path / "out")
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors(chosen).items())


@pytest.mark.parametrize("shard_bytes", [1, 3000, 5000])
def test_shards_together_are_the_single_file(tmp_path, shard_bytes):
    given = recipe(tmp_path)
    merge(given, tmp_path / "one")
    merge(given, tmp_path / "many", shard_bytes=shard_bytes)
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())
    whole = load_file(tmp_path / "one" / "model.safetensors")
    assert index["metadata"]["total_size"] == sum(t.numel() * t.element_size() for t in whole.values())
    for name, file in index["weight_map"].items():
        assert torch.equal(load_file(tmp_path / "many" / file)[name], whole[name])
    for file in set(index["weight_map"].values()):
        sizes = [t.numel() * t.element_size() for t in load_file(tmp_path / "many" / file).values()]
        assert sum(sizes) <= shard_bytes or len(sizes) == 1
    assert open_checkpoint(tmp_path / "many").infos.keys() == whole.keys()


def test_the_result_may_have_another_dtype_and_the_models_too(tmp_path):
    given = recipe(tmp_path)
    save_file(
        {n: t.contiguous().half() if n == "small" else t.contiguous() for n, t in tensors(0).items()},
        tmp_path / "m0" / "model.safetensors",
    )
    with pytest.raises(UserError, match=r"dtype: small"):
        Recipe([open_checkpoint(tmp_path / "m0"), given.checkpoints[1]], (0.5, 0.5), given.method).check()
    mixed = Recipe(
        [open_checkpoint(tmp_path / "m0"), given.checkpoints[1]],
        given.weights,
        given.method,
        policies=Policies(dtype="F32"),
    )
    merge(mixed, tmp_path / "out")
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert {t.dtype for t in found.values()} == {torch.float32, torch.int64}
    expected = tensors(0)["small"].half().double() / 3 + tensors(1)["small"].double() * 2 / 3
    torch.testing.assert_close(found["small"], expected.float(), rtol=2**-23, atol=0)


def test_a_plan_needs_no_data_and_tells_memory_bytes_and_time(tmp_path):
    summary = plan(recipe(tmp_path))
    assert summary["bytes_written"] == sum(t.numel() * t.element_size() for t in tensors(0).values())
    assert summary["bytes_read"] == 2 * summary["bytes_written"]
    assert stream.TORCH_BYTES < summary["bytes_memory"] < stream.TORCH_BYTES + 1_000_000  # big.t is not contiguous
    assert summary["seconds"] >= stream.START_SECONDS


# --- killed, interrupted, out of space --------------------------------------------------------------------------------

KILLED = """
import os, signal, sys
from pathlib import Path
from soups.engine import output, stream
stream.PIECE_ELEMENTS, stream.JOB_PIECES, stream.num_cores = 100, 1, lambda: 2
real, count, command = os.pwrite, [0], os.getpid()
def pwrite(file, data, position):
    count[0] += 1
    if count[0] == {at}:
        if {whole}:
            os.kill(command, signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)
    return real(file, data, position)
os.pwrite = pwrite
if {at} < 0:
    Path.rename = lambda *args: os.kill(os.getpid(), signal.SIGKILL)
from soups.cli import main
sys.argv = ["soups", "merge", *{models}, "-o", {out}]
main()
"""


def run_killed(at: int, models: list[str], out: Path, *, whole: bool) -> subprocess.CompletedProcess[str]:
    """Merge in a process that works in copies of itself; kill it, or one copy, at a write."""
    code = KILLED.format(at=at, models=models, out=repr(str(out)), whole=whole)
    command, root = [sys.executable, "-c", code], Path(__file__).parents[2]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "at", [5, *(pytest.param(at, marks=pytest.mark.slow) for at in (1, 2, 7, -1))], ids=lambda at: f"write {at}"
)
def test_a_killed_merge_leaves_nothing_under_the_final_name_and_the_next_one_cleans_up(tmp_path, at):
    given = recipe(tmp_path)
    # Two safetensors folders: a process that needs no torch starts in half a second.
    given = replace(given, checkpoints=[given.checkpoints[0], open_checkpoint(given.checkpoints[0].path, "again")])
    models = [str(given.checkpoints[0].path)] * 2 + ["--name", "m0", "--name", "again"]
    (tmp_path / "results").mkdir()
    done = run_killed(at, models, tmp_path / "results" / "out", whole=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    (left,) = names_in(tmp_path / "results")
    assert left.startswith(".out.")
    merge(given, tmp_path / "results" / "out")
    assert names_in(tmp_path / "results") == ["out"]
    assert names_in(tmp_path / "results" / "out") == ["README.md", "config.json", "model.safetensors"]


def test_a_killed_copy_of_the_process_is_told_and_leaves_nothing(tmp_path):
    given = recipe(tmp_path)
    done = run_killed(
        5, [str(given.checkpoints[0].path)] * 2 + ["--name", "a", "--name", "b"], tmp_path / "out", whole=False
    )
    assert done.returncode == 2, done.stderr
    assert "killed by signal 9" in done.stderr
    assert names_in(tmp_path) == ["m0", "m1"]


def fail_at(monkeypatch: pytest.MonkeyPatch, call: str, number: int, error: BaseException) -> None:
    """Make one call of a function of ``os`` fail."""
    real, count = getattr(os, call), [0]

    def failing(*args: object) -> object:
        count[0] += 1
        if count[0] == number:
            raise error
        return real(*args)

    monkeypatch.setattr(os, call, failing)


FULL, BROKEN = OSError(errno.ENOSPC, "No space left on device"), OSError(errno.EIO, "Input/output error")


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(
    ("call", "number", "error"),
    [
        ("posix_fallocate", 1, FULL),
        *[("pwrite", number, error) for number in (1, 2, 5) for error in (FULL, BROKEN, KeyboardInterrupt())],
        *[("fsync", number, error) for number in (1, 2) for error in (FULL, BROKEN, KeyboardInterrupt())],
    ],
    ids=repr,
)
def test_a_failed_write_leaves_nothing_at_all(tmp_path, monkeypatch, threads, call, number, error):
    given = recipe(tmp_path)
    before = names_in(tmp_path)
    monkeypatch.setattr(stream, "num_cores", lambda: threads)
    fail_at(monkeypatch, call, number, error)
    expected = UserError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected) as caught:
        merge(given, tmp_path / "out")
    assert names_in(tmp_path) == before
    if error is FULL:
        assert "No space left on device" in str(caught.value)
        assert "free some space" in str(caught.value)


def test_an_error_of_the_disk_between_two_writes_is_not_lost(tmp_path, monkeypatch):
    monkeypatch.setattr(output, "SYNC_SECONDS", 0.0)
    fail_at(monkeypatch, "fdatasync", 1, BROKEN)
    shards = output.plan_shards({"a": TensorInfo("F32", (1,), tmp_path)}, {})

    def write() -> None:
        with output.WeightFiles(tmp_path, shards) as files:
            files.start_syncing()
            files._syncing.join()  # it ends at its first error

    with pytest.raises(OSError, match="Input/output error"):
        write()


def test_a_disk_without_room_is_refused_before_anything_is_read(tmp_path, monkeypatch):
    given = recipe(tmp_path)
    monkeypatch.setattr(output.shutil, "disk_usage", lambda path: _Usage(1000))
    monkeypatch.setattr(type(given.checkpoints[0]), "digest", property(lambda self: pytest.fail("data was read")))
    with pytest.raises(UserError, match=r"are needed, 0 MB are free"):
        merge(given, tmp_path / "out")
    assert "out" not in names_in(tmp_path)


class _Usage:
    def __init__(self, free: int) -> None:
        self.free = free


def test_the_space_that_counts_is_that_of_the_folder_that_is_written_to(tmp_path, monkeypatch):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "empty").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "other" / "empty")
    asked: list[Path] = []
    monkeypatch.setattr(output.shutil, "disk_usage", lambda path: asked.append(path) or _Usage(10**9))
    merge(recipe(tmp_path), tmp_path / "out")
    assert asked == [tmp_path / "other"]


@pytest.mark.parametrize("is_there", [True, False])
def test_a_link_to_an_empty_folder_or_to_none_is_followed(tmp_path, is_there):
    (tmp_path / "disk").mkdir()
    if is_there:
        (tmp_path / "disk" / "soup").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk" / "soup")
    merge(recipe(tmp_path), tmp_path / "out")
    assert (tmp_path / "out").is_symlink()
    assert names_in(tmp_path / "disk") == ["soup"]
    assert load_file(tmp_path / "disk" / "soup" / "model.safetensors").keys() == tensors(0).keys()


@pytest.mark.parametrize("is_mount", [True, False], ids=["mount", "current"])
def test_a_folder_that_cannot_be_replaced_is_refused_before_the_work(tmp_path, monkeypatch, is_mount):
    given = recipe(tmp_path)
    out = tmp_path / "volume"
    out.mkdir()
    if is_mount:
        monkeypatch.setattr(Path, "is_mount", lambda self: self == out)
    else:
        monkeypatch.chdir(out)
    with pytest.raises(UserError, match="cannot take the place of a mounted disk") as caught:
        merge(given, out)
    assert caught.value.fix == f"give a folder inside it: -o {out / 'soup'}"
    assert names_in(tmp_path) == ["m0", "m1", "volume"]
    merge(given, out / "soup")
    assert names_in(out) == ["soup"]


def test_a_folder_without_permission_is_a_persons_error(tmp_path, monkeypatch):
    def refuse(self: Path, *args: object, **kwargs: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    given = recipe(tmp_path)
    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(UserError, match="Permission denied"):
        merge(given, tmp_path / "out")


def test_a_merge_in_progress_is_not_cleaned_up_by_another(tmp_path):
    with new_folder(tmp_path / "out") as first:
        (first / "x").touch()
        with pytest.raises(RuntimeError, match="stop"), new_folder(tmp_path / "out"):
            raise RuntimeError("stop")
        assert names_in(first) == ["x"]
    assert names_in(tmp_path) == ["out"]


def test_a_file_that_shrinks_while_it_is_read_is_named(tmp_path):
    given = recipe(tmp_path)
    path = tmp_path / "m0" / "model.safetensors"
    raw = path.read_bytes()
    path.write_bytes(raw[: len(raw) // 2])
    with pytest.raises(UserError, match="it became shorter while it was read"):
        merge(given, tmp_path / "out")
    assert names_in(tmp_path) == ["m0", "m1"]


@pytest.mark.parametrize("threads", [1, 4])
def test_jobs_stop_at_the_first_error_and_keep_to_the_budget(threads):
    held, most, done = [0], [0], []

    def job(number: int) -> Job:
        def run() -> None:
            held[0] += 10
            most[0] = max(most[0], held[0])
            done.append(number)
            held[0] -= 10
            if number == 20:
                raise UserError("job 20")

        return Job(run, 10)

    with pytest.raises(UserError, match="job 20"):
        run_jobs((job(number) for number in range(100_000)), threads, budget=20)
    assert most[0] <= 20
    assert set(range(21)) <= set(done)
    assert len(done) < 100_000
    done.clear()
    run_jobs([Job(lambda: done.append(1), 1000)] * 5, threads, budget=20)  # a job above the budget runs alone
    assert len(done) == 5


def test_the_number_of_threads_follows_the_environment(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert jobs.num_cores() == 1
    monkeypatch.setenv("OMP_NUM_THREADS", "100000")
    assert jobs.num_cores() == len(os.sched_getaffinity(0))
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert jobs.num_cores() == len(os.sched_getaffinity(0))


# --- wrong input is refused before a byte is written ------------------------------------------------------------------


def different_shape(state: dict[str, torch.Tensor]) -> None:
    state["small"] = torch.zeros(4)


def missing_tensor(state: dict[str, torch.Tensor]) -> None:
    del state["half"]


def extra_tensor(state: dict[str, torch.Tensor]) -> None:
    state["more"] = torch.zeros(1)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (different_shape, "shape: small is F32 [4], expected F32 [3]"),
        (missing_tensor, "missing: half"),
        (extra_tensor, "extra: more"),
    ],
)
def test_models_that_do_not_fit_are_refused_with_names_and_a_hint(tmp_path, change, expected):
    given = recipe(tmp_path)
    state = tensors(1)
    change(state)
    torch.save(state, tmp_path / "odd.pt")
    args = ["merge", str(given.checkpoints[0].path), str(tmp_path / "odd.pt"), "-o", str(tmp_path / "out")]
    result = CliRunner().invoke(app, args)
    assert result.exit_code == 2
    assert expected in result.stderr
    assert "fix:" in result.stderr
    assert names_in(tmp_path) == ["m0", "m1", "odd.pt"]


@pytest.mark.parametrize("cut", [0.1, 0.5, 0.99])
@pytest.mark.parametrize("model", [0, 1])
def test_truncated_files_are_refused_before_a_byte_is_written(tmp_path, cut, model):
    given = recipe(tmp_path)
    path = given.checkpoints[model].weight_paths[0]
    raw = path.read_bytes()
    path.write_bytes(raw[: int(len(raw) * cut)])
    args = ["merge", *(str(c.path) for c in given.checkpoints), "-o", str(tmp_path / "out")]
    result = CliRunner().invoke(app, args)
    assert result.exit_code == 2
    assert "corrupt" in result.stderr
    assert str(path) in result.stderr
    assert names_in(tmp_path) == ["m0", "m1"]


INFINITE, NAN = float("inf"), float("nan")


def save_pair(folder: Path, dtype: torch.dtype, **names: tuple[list[float], list[float]]) -> list[Path]:
    for index in range(2):
        stored = {name: torch.tensor(values[index], dtype=dtype) for name, values in names.items()}
        save_file(stored, folder / f"n{index}.safetensors")
    return [folder / "n0.safetensors", folder / "n1.safetensors"]


# dtype, the entries of two models, flags; entries that overflow; those that a model has already, by its name
NOT_FINITE = {
    "stored": (torch.float32, {"w": ([1e6, 1.0, -7e4], [1e6, 2.0, -8e4])}, ["--dtype", "float16"], {"w": 2}, {}),
    "infinite": (torch.float32, {"w": ([INFINITE, 1e6], [1.0, 1e6])}, ["--dtype", "float16"], {}, {"n0": {"w": 1}}),
    "nan": (torch.float32, {"v": ([1.0], [1.0]), "w": ([1.0, 2.0], [NAN, NAN])}, [], {}, {"n1": {"w": 2}}),
    "in both": (torch.bfloat16, {"w": ([NAN, 2.0], [NAN, 1.0])}, [], {}, {"n0": {"w": 1}, "n1": {"w": 1}}),
    "without weight": (torch.float32, {"w": ([NAN, 2.0], [3.0, 1.0])}, ["--weights", "0,1"], {}, {}),
    "copied": (torch.float32, {"w": ([NAN, 2.0], [3.0, 1.0])}, ["--weights", "1,0"], {}, {"n0": {"w": 1}}),
    "copied float8": (torch.float8_e4m3fn, {"w": ([2, 1], [300, 2])}, ["--weights", "1,0"], {}, {}),
    "slerp": (torch.float16, {"w": ([NAN, 1.0], [1.0, 1.0])}, ["--method", "slerp"], {}, {"n0": {"w": 1}}),
    "held": (torch.float32, {"w": ([1e6, 1.0], [1e6, 2.0])}, ["--dtype", "bfloat16"], {}, {}),
    "sum": (torch.float16, {"w": ([4e4, 1.0], [4e4, 2.0])}, ["--extrapolate", "--weights", "1,1"], {"w": 1}, {}),
    "whole tensor": (torch.float16, {"v": ([6e4, -6e4], [6e4, -5e4])}, ["TIES"], {"v": 2}, {}),
    "float8": (torch.float8_e4m3fn, {"w": ([300, 1], [300, 2])}, ["--extrapolate", "--weights", "1,1"], {"w": 1}, {}),
    "bfloat16": (torch.bfloat16, {"w": ([3e38], [3e38])}, ["--extrapolate", "--weights", "1,1"], {"w": 1}, {}),
}
TIES = ["--method", "ties", "--weights", "1,2", "--param", "normalize=false", "--param", "density=1.0"]


@pytest.mark.parametrize("threads", ["1", "2"])
@pytest.mark.parametrize("case", NOT_FINITE)
def test_entries_that_are_not_finite_are_counted_by_what_made_them(tmp_path, monkeypatch, case, threads):
    dtype, names, flags, overflows, before = NOT_FINITE[case]
    paths = save_pair(tmp_path, dtype, **names)
    if flags == ["TIES"]:
        save_file({name: torch.zeros(2, dtype=dtype) for name in names}, tmp_path / "base.safetensors")
        flags = [*TIES, "--base", str(tmp_path / "base.safetensors")]
    monkeypatch.setenv("OMP_NUM_THREADS", threads)
    for number, as_json in enumerate((["--json"], [])):
        words = ["merge", *map(str, paths), *flags, *as_json, "-o", str(tmp_path / f"out{number}")]
        done = CliRunner().invoke(app, words)
        assert done.exit_code == 0, done.output
        if as_json:
            assert json.loads(done.stdout)["overflows"] == overflows
            assert json.loads(done.stdout)["not_finite_before"] == before
        else:
            assert done.stdout.count("warning: ") == len(before) + bool(overflows)


@pytest.mark.skipif(sys.platform != "linux", reason="copies of a process are made on Linux only")
def test_entries_that_overflow_in_copies_of_the_process_are_counted(tmp_path):
    paths = save_pair(tmp_path, torch.float32, **{f"w{i}": ([1e6, 1.0], [1e6, 2.0]) for i in range(4)})
    words = [sys.executable, "-m", "soups", "merge", *paths, "--dtype", "float16", "--json", "-o", tmp_path / "out"]
    environment = os.environ | {"OMP_NUM_THREADS": "2"}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["overflows"] == {f"w{i}": 1 for i in range(4)}
