"""Signals that ask a run for something: to stop after its checkpoint, or only to write one."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

STOP = (signal.SIGINT, signal.SIGTERM)


class Interrupted(Exception):
    """The run was asked to stop; its state is on disk.

    Attributes:
        code: Exit code, 128 + the signal's number.
    """

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.code = 128 + number


class StoppedAtOnce(KeyboardInterrupt):
    """A second signal came before the run had stopped; `code` is 128 + its number."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.code = 128 + number


@contextmanager
def interruptible() -> Iterator[None]:
    """Say in one line that what runs was stopped and goes on later; the exit code is 128 + the signal's number.

    Raises:
        SystemExit: It was stopped.
    """
    try:
        yield
    except (Interrupted, KeyboardInterrupt) as stop:
        print(str(stop) or "interrupted; the same command continues", file=sys.stderr)
        raise SystemExit(getattr(stop, "code", 128 + signal.SIGINT)) from None


@contextmanager
def ignored(number: signal.Signals) -> Iterator[None]:
    """Let a signal pass while the block runs: without a handler, SIGUSR1 ends a process."""
    previous = signal.signal(number, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(number, previous)


class StopSignal:
    """Note signals until the current step is over, or the current batch of a validation.

    SIGINT (Ctrl-C) and SIGTERM ask to stop; a second one stops at once. SIGUSR1, which Slurm can send before the time
    limit, asks for a checkpoint; where there is none to write, as in evaluations, `ignored` lets it pass.

    Attributes:
        number: Of the signal that asked to stop, 0 if none did.
        wants_checkpoint: SIGUSR1 came.
    """

    def __enter__(self) -> "StopSignal":
        self.number, self.wants_checkpoint = 0, False
        self.previous = {number: signal.signal(number, self._handle) for number in (*STOP, signal.SIGUSR1)}
        return self

    def _handle(self, number: int, frame: object) -> None:
        if number == signal.SIGUSR1:
            self.wants_checkpoint = True
        elif self.number:
            raise StoppedAtOnce(number)
        else:
            self.number = number

    @property
    def is_asked(self) -> bool:
        """Whether a signal waits for an answer."""
        return self.number != 0 or self.wants_checkpoint

    def __exit__(self, *_: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)
