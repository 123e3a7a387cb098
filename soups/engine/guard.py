"""Run a program, and end it with all that it started when whoever asked for it dies, however it dies.

Started as a file with the program as arguments. The asker holds the other end of our standard input: when that
closes, it is gone. Without this, a study that was killed would leave a training behind, and the next one would start
a second training in the same folder; and a program that scores for too long would leave its own programs behind.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading


def main(words: list[str]) -> int:
    """Run the program in a group of its own; return its exit code, negative for a signal."""
    child = subprocess.Popen(words, stdin=subprocess.DEVNULL, start_new_session=True)

    def end(number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, number)

    def wait_for_asker() -> None:
        sys.stdin.buffer.read()
        end(signal.SIGKILL)
        os._exit(1)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):  # of a terminal too
        signal.signal(number, lambda given, frame: end(given))
    threading.Thread(target=wait_for_asker, daemon=True).start()
    code = child.wait()
    end(signal.SIGKILL)  # what it left behind
    return code


if __name__ == "__main__":
    code = main(sys.argv[1:])
    os._exit(code if code >= 0 else 128 - code)
