"""A program in a real terminal, for tests: typed at, and what a person would see waited for.

Nothing here knows what is tested.
"""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pexpect
import pyte

DEADLINE_S = 60.0  # the cores are shared with other tests
COLUMNS, LINES = 160, 40
HISTORY_LINES = 5000
POLL_S = 0.05
SLOWED_STOP_S, SLOWED_RUN_S = 0.045, 0.005


class _Screen(pyte.HistoryScreen):
    def __init__(self, child: pexpect.spawn[Any]) -> None:
        super().__init__(COLUMNS, LINES, history=HISTORY_LINES, ratio=0.5)
        self._child = child

    def write_process_input(self, data: str) -> None:
        """Answers to "where is the cursor?"."""
        self._child.send(data)


class Terminal:
    """One program with a keyboard and a screen.

    What is waited for is looked for below the place where the last line was typed.
    """

    def __init__(self, child: pexpect.spawn[Any]) -> None:
        self._child = child
        self._screen = _Screen(child)
        self._stream = pyte.ByteStream(self._screen)
        self._mark = 0

    def type(self, text: str) -> None:
        """A line and Enter."""
        self.mark()
        self._child.send(text + "\r")

    def press(self, keys: str) -> None:
        self._child.send(keys)

    def hang_up(self) -> None:
        """SIGHUP, as when the window is closed."""
        self._child.kill(signal.SIGHUP)

    @contextmanager
    def slowed(self) -> Iterator[None]:
        """Inside, the program runs a tenth of the time: what it does lasts long enough to be seen
        and interrupted, however fast the machine is. It must not end in here."""
        pid = self._child.pid
        assert pid is not None
        over = threading.Event()

        def pace() -> None:
            while not over.is_set():
                os.kill(pid, signal.SIGSTOP)
                over.wait(SLOWED_STOP_S)
                os.kill(pid, signal.SIGCONT)
                over.wait(SLOWED_RUN_S)

        pacer = threading.Thread(target=pace)
        pacer.start()
        try:
            yield
        finally:
            over.set()
            pacer.join()

    def mark(self) -> None:
        """What is above the cursor now is not looked at any more."""
        self._read(0)
        self._mark = len(self._screen.history.top) + self._screen.cursor.y

    def text(self) -> str:
        """Everything below the mark, scrolled away or on the screen."""
        above = [
            "".join(line[column].data for column in range(COLUMNS))
            for line in self._screen.history.top
        ]
        lines = [line.rstrip() for line in (*above, *self._screen.display)]
        return "\n".join(lines[self._mark :]).rstrip()

    def wait_for(self, pattern: str) -> str:
        """Until the regular expression fits somewhere; the text. AssertionError when it does not
        in time."""
        end = time.monotonic() + DEADLINE_S
        while re.search(pattern, self.text()) is None:
            is_open = self._read(POLL_S)
            if re.search(pattern, self.text()):
                break
            assert is_open, f"the program ended before {pattern!r} appeared:\n{self.text()}"
            assert time.monotonic() < end, f"{pattern!r} did not appear:\n{self.text()}"
        return self.text()

    def wait_ended(self) -> int:
        """Its exit code."""
        end = time.monotonic() + DEADLINE_S
        while self._read(POLL_S):
            assert time.monotonic() < end, f"it did not end:\n{self.text()}"
        self._child.close()
        assert self._child.exitstatus is not None, f"ended by signal {self._child.signalstatus}"
        return int(self._child.exitstatus)

    def _read(self, timeout_s: float) -> bool:
        """Shows what the program wrote; False when it has ended."""
        try:
            while True:
                self._stream.feed(self._child.read_nonblocking(1 << 16, timeout_s))
                timeout_s = 0
        except pexpect.TIMEOUT:
            return True
        except pexpect.EOF:
            return False


@contextmanager
def terminal(
    command: Sequence[str], environment: Mapping[str, str], directory: Path
) -> Iterator[Terminal]:
    """The program while this is open; then it is ended, whatever it does."""
    child = pexpect.spawn(
        command[0], list(command[1:]), cwd=str(directory), dimensions=(LINES, COLUMNS),
        env={**environment, "TERM": "xterm"},
    )  # fmt: skip
    try:
        yield Terminal(child)
    finally:
        child.close(force=True)
