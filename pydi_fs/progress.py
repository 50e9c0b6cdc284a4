"""Progress of long work: how much is done, how fast, what is left, and a bar on a terminal.

Filled by the commands through `Session.progress`, shown on standard error, or by the shell in its
lines about jobs. It must never slow the work down: the bar is drawn some times a second, and
nothing is loaded for work that is over before a person looks.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import rich.progress

DRAW_INTERVAL_S = 0.1  # a person sees ten changes a second as motion
PATIENCE_S = 0.5  # work that ends sooner needs no bar
WINDOW_S = 5.0  # the rate is that of the last seconds, not of the whole
SAMPLE_S = 0.25


class Progress:
    """Counters of one command.

    enabled  draw a bar on standard error.
    watched  somebody looks, here or in the shell: finding out the totals is worth the effort.
    """

    def __init__(
        self,
        enabled: bool,
        watched: bool | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.enabled = enabled
        self.watched = enabled if watched is None else watched
        self.files = 0  # done, also what needed nothing
        self.bytes = 0
        self.skipped_files = 0  # of them: unchanged
        self.files_total: int | None = None
        self.bytes_total: int | None = None
        self._clock = clock
        self._began_s = clock()
        self._drawn_s = self._began_s
        self._moved_bytes = 0  # without what needed no transfer
        self._samples: deque[tuple[float, int]] = deque([(self._began_s, 0)])
        self._bar: rich.progress.Progress | None = None

    def add(self, files: int = 0, bytes_: int = 0) -> None:
        """So much more was done."""
        self.files += files
        self.bytes += bytes_
        self._moved_bytes += bytes_
        now_s = self._clock()
        if now_s - self._samples[-1][0] >= SAMPLE_S:
            self._samples.append((now_s, self._moved_bytes))
            while len(self._samples) > 2 and now_s - self._samples[1][0] >= WINDOW_S:
                self._samples.popleft()
        since_s = self._began_s if self._bar is None else self._drawn_s
        wait_s = PATIENCE_S if self._bar is None else DRAW_INTERVAL_S
        if self.enabled and now_s - since_s >= wait_s:
            self._drawn_s = now_s
            self._draw()

    def skip(self, bytes_: int = 0, files: int = 1) -> None:
        """So much was there already."""
        self.skipped_files += files
        self.bytes += bytes_
        self.add(files=files)

    def expect(self, files: int, bytes_: int) -> None:
        """So much it is in all."""
        self.files_total, self.bytes_total = files, bytes_

    def rate(self) -> float:
        """Bytes a second, lately."""
        begin_s, begin = self._samples[0]
        elapsed_s = self._clock() - begin_s
        return (self._moved_bytes - begin) / elapsed_s if elapsed_s > 0 else 0.0

    def left_s(self) -> float | None:
        """Seconds until it is done at this rate; None when that can't be said."""
        rate = self.rate()
        if self.bytes_total is None or rate <= 0:
            return None
        return max(self.bytes_total - self.bytes, 0) / rate

    def text(self) -> str:
        """ "3 files, 45.0 MiB of 200.0 MiB, 12.1 MiB/s, 0:13 left"."""
        done = format_bytes(self.bytes)
        if self.bytes_total is not None:
            done += f" of {format_bytes(self.bytes_total)}"
        count = f"{self.files}"
        if self.files_total is not None and self.files_total > 1:
            count += f" of {self.files_total}"
        parts = [f"{count} file{'' if count == '1' else 's'}", done]
        if self.skipped_files:
            parts.append(f"{self.skipped_files} unchanged")
        if self._moved_bytes:
            parts.append(f"{format_bytes(int(self.rate()))}/s")
        left_s = self.left_s()
        if left_s:
            parts.append(f"{format_duration(left_s)} left")
        return ", ".join(parts)

    def finish(self) -> None:
        """The command is over: what stays on the terminal is the last state."""
        if self._bar is not None:
            self._draw()
            self._bar.stop()
            self._bar = None

    def _draw(self) -> None:
        if self._bar is None:
            self._bar = _new_bar()
            self._bar.start()
        (task,) = self._bar.task_ids
        self._bar.update(
            task, completed=self.bytes, total=self.bytes_total, description=self.text()
        )
        self._bar.refresh()


def _new_bar() -> rich.progress.Progress:
    from rich.console import Console  # only now: it is slow to load
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bar

    bar = Bar(
        BarColumn(bar_width=24),
        TextColumn("{task.description}", markup=False),
        console=Console(stderr=True),
        auto_refresh=False,
        redirect_stdout=False,  # content may go there
    )
    bar.add_task("", total=None)
    return bar


def format_bytes(count: int) -> str:
    """ "17 B", "4.2 KiB", "3.0 GiB"."""
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if size < 1024:
            return f"{count} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} PiB"


def format_duration(seconds: float) -> str:
    """ "0:07", "12:30", "3:05:00"."""
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
