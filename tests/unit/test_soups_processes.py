"""Work in copies of this process: what comes back, and what stops it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from soups.engine import guard
from soups.engine.jobs import Job
from soups.engine.processes import run_forked
from soups.errors import UserError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="copies of a process are made on Linux only")


def nothing() -> None:
    """Do nothing meanwhile."""


def test_results_come_back_by_index_from_other_processes():
    jobs = [Job(lambda i=i: (i, os.getpid()) if i % 2 else None) for i in range(20)]
    found = run_forked(jobs, 2, 100, nothing)
    assert sorted(found) == list(range(1, 20, 2))
    assert all(value[0] == index for index, value in found.items())
    assert os.getpid() not in {pid for _, pid in found.values()}


def test_jobs_above_their_part_of_the_budget_run_here_and_last():
    jobs = [Job(os.getpid, 60), Job(os.getpid, 50)]
    found = run_forked(jobs, 2, 100, nothing)
    assert found[0] == os.getpid() != found[1]


def test_the_first_error_stops_the_others_and_keeps_its_words(tmp_path):
    def refuse() -> None:
        raise UserError("no such thing", where="here", fix="look elsewhere")

    jobs = [Job(refuse), *[Job((tmp_path / str(i)).touch) for i in range(20_000)]]
    with pytest.raises(UserError, match="no such thing") as caught:
        run_forked(jobs, 1, 100, nothing)
    assert (caught.value.where, caught.value.fix) == ("here", "look elsewhere")
    assert not list(tmp_path.iterdir())


def test_a_defect_brings_its_traceback():
    def fail() -> None:
        raise ZeroDivisionError("in the copy")

    with pytest.raises(ZeroDivisionError, match="in the copy") as caught:
        run_forked([Job(fail)], 2, 100, nothing)
    assert "in fail" in "".join(caught.value.__notes__)


def test_a_copy_that_was_killed_is_a_clear_error():
    with pytest.raises(UserError, match="killed by signal 9"):
        run_forked([Job(lambda: os.kill(os.getpid(), signal.SIGKILL))], 2, 100, nothing)


def test_an_interrupt_waits_for_the_copies(tmp_path):
    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_forked([Job((tmp_path / str(i)).touch) for i in range(50_000)], 2, 100, interrupt)
    seen = len(list(tmp_path.iterdir()))
    assert seen < 50_000
    assert len(list(Path(tmp_path).iterdir())) == seen  # nobody works any more


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT], ids=["term", "hup", "quit"])
def test_a_program_under_guard_gets_the_signals_of_a_terminal(number):
    words = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(60)"]
    child = subprocess.Popen(
        [sys.executable, guard.__file__, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "up\n"  # it runs, so the guard has its handlers
    child.send_signal(number)
    assert child.stdout.read() == ""  # which the program holds open as long as it lives
    assert child.wait(timeout=30) == 128 + number
    child.communicate()


def test_text_that_was_buffered_is_no_part_of_the_json():
    code = (
        "import ctypes, sys\n"
        "from soups.commands.output import reports_errors, show\n"
        "@reports_errors\n"
        "def command(as_json):\n"
        "    sys.__stdout__.write('kept')\n"
        "    ctypes.CDLL(None).printf(b'of a library')\n"
        "    show({'a': float('nan')}, [], as_json)\n"
        "command(as_json=True)\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == {"a": None}
    assert "kept" in done.stderr
    assert "of a library" in done.stderr
