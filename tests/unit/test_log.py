"""Means over steps and processes, rows of a resumed log, TensorBoard that is not there."""

import builtins
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from unival.errors import UserError
from unival.log import Means, Meter, MetricsLog


def test_means_are_over_what_had_the_number_and_start_anew() -> None:
    means = Means()
    means.add({"loss": 1.0, "loss/a": 4.0})
    means.add({"loss": 3.0})
    assert means.take() == {"loss": 2.0, "loss/a": 4.0}
    assert means.take() == {}


def test_means_are_over_all_processes() -> None:
    means = Means()
    means.add({"loss": 1.0})
    assert means.take(lambda sums: [sums, {"loss": (5.0, 1), "reward": (6.0, 2)}]) == {"loss": 3.0, "reward": 3.0}


def test_rows_behind_the_resumed_step_and_cut_lines_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"ste')
    log = MetricsLog(path, from_step=3)
    log.write(3, loss=0.5, grad_norm=float("nan"), other=float("inf"), stage="a")
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"step": 1},
        {"step": 2},
        {"step": 3, "loss": 0.5, "grad_norm": None, "other": None, "stage": "a"},
    ]


def test_a_kill_while_a_log_is_continued_loses_no_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n')

    def killed(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.fsync", killed)
    with pytest.raises(KeyboardInterrupt):
        MetricsLog(path, from_step=3)
    monkeypatch.undo()
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'
    MetricsLog(path, from_step=2)
    assert path.read_text() == '{"step": 1}\n'
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_another_process_writes_nothing(tmp_path: Path) -> None:
    MetricsLog(tmp_path / "metrics.jsonl", is_active=False).write(1, loss=1.0)
    assert list(tmp_path.iterdir()) == []


def test_tensorboard_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def missing(name: str, *args: Any) -> Any:
        if name.startswith(("tensorboard", "torch.utils.tensorboard")):
            raise ImportError(name)
        return real(name, *args)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(UserError, match=r"TensorBoard is not installed.*unival\[logging\]"):
        MetricsLog(tmp_path / "metrics.jsonl", tensorboard=True)


@pytest.mark.filterwarnings("default")  # those of TensorBoard's own parts
def test_tensorboard_shows_the_rows_and_hides_those_behind_the_resumed_step(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="needs the extra `logging`")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    path = tmp_path / "metrics.jsonl"
    first = MetricsLog(path, tensorboard=True)
    for step in range(3):
        first.write(step, loss=step + 0.5, stage="image")
    again = MetricsLog(path, from_step=2, tensorboard=True)
    again.write(2, loss=9.5)
    shown = EventAccumulator(str(tmp_path / "tensorboard"))
    shown.Reload()
    assert shown.Tags()["scalars"] == ["loss"]  # words are not drawn
    assert [(event.step, event.value) for event in shown.Scalars("loss")] == [(0, 0.5), (1, 1.5), (2, 9.5)]


def test_a_meter_counts_examples_of_all_processes_and_memory() -> None:
    meter = Meter()
    meter.examples = 10
    one = meter.take(2)
    assert set(one) == {"samples_per_second", "data_wait", "memory_gb"}
    assert one["samples_per_second"] > 0
    assert one["memory_gb"] > 0.05
    assert meter.examples == 0


def test_memory_is_that_of_the_process_and_not_of_its_parent() -> None:
    content = bytearray(b"1" * 300_000_000)  # every page is touched: the parent's maximum is above the limit below
    code = "from unival.log import peak_resident; print(peak_resident())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert len(content) > int(done.stdout) > 10_000_000


def test_a_row_that_does_not_fit_the_disk_leaves_the_log_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(io.FileIO):
        def write(self, data: Any) -> int:
            if self.tell() > len('{"step": 1}\n'):
                raise OSError(28, "No space left on device")
            return super().write(data[:5])

    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    log.write(1)
    monkeypatch.setattr(Path, "open", lambda self, mode, **_: Full(self, "a"))
    with pytest.raises(OSError, match="No space left"):
        log.write(2, loss=0.5)
    monkeypatch.undo()
    assert path.read_text() == '{"step": 1}\n'


def test_time_beside_training_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 1.0, 101.0, 102.0, 102.0])
    monkeypatch.setattr("unival.log.time.monotonic", lambda: next(clock))
    meter = Meter()
    meter.examples = 10
    with meter.paused():
        pass  # from 1 to 101
    assert meter.take(1)["samples_per_second"] == 5.0
