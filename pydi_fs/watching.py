"""The process that makes a kernel forget in time what a worker does not take back: see `watch`.

`supervisor` forks it as soon as it holds /dev/fuse. It does next to nothing, so that nothing can
hold it up: it knows no loop, no network and no log, and looks at one page of memory. It goes on for
a moment after its supervisor was killed, to make the kernel forget everything.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import select
import signal
import time
from collections.abc import Iterable
from typing import NoReturn

from pydi_fs.watch import PAGE_BYTES, Page, Watch

NAME = "pydi-watch"  # of the process, for people and tests
PRIORITY = 1  # of real time: any
LAST_WAIT_S = 0.05  # between the last two drops

_PR_SET_NAME = 15
_TFD_TIMER_ABSTIME = 1
_NS_PER_S = 1_000_000_000


class Bell:
    """The page, and what wakes the watch. Made before the first fork, and shared by all."""

    def __init__(self) -> None:
        self.page = Page(memoryview(mmap.mmap(-1, PAGE_BYTES)))
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def ring(self) -> None:
        os.eventfd_write(self.fd, 1)


def now_ns() -> int:
    """Of the clock that leases are counted by: it goes on while the machine sleeps."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def forget_everything(device: int, nodeids: Iterable[int]) -> None:
    """The kernel asks for all names, and for the attributes of these. Never blocks."""
    # Loaded with the driver; not by commands, which import this module as well.
    from pydi_fs.fuse import codec

    with contextlib.suppress(OSError):  # it is gone, or older than that: then it keeps nothing
        os.write(device, codec.encode_inc_epoch())
    for nodeid in nodeids:
        with contextlib.suppress(OSError):  # the kernel has forgotten it already
            os.write(device, codec.encode_inval_inode(nodeid, pages=False))


def run(bell: Bell, device: int, supervisor: int) -> NoReturn:
    """What the forked process does until its supervisor is gone."""
    try:
        ctypes.CDLL(None).prctl(_PR_SET_NAME, NAME.encode(), 0, 0, 0)
        # Ctrl-Z at a terminal, and a shell's kill -STOP, stop all processes of a group.
        os.setsid()
        # A service is ended by telling all of its processes; this one is ended by its supervisor.
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        with contextlib.suppress(OSError):  # without the right to that it has to do without
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(PRIORITY))
        pidfd = os.pidfd_open(supervisor)
        if os.getppid() == supervisor:
            _watch(bell, device, pidfd)
        forget_everything(device, bell.page.nodeids())
        time.sleep(LAST_WAIT_S)
        forget_everything(device, bell.page.nodeids())
    finally:
        os._exit(0)


class _Alarm:
    """Becomes readable at a moment of the clock that leases are counted by.

    A time-out of poll(2) counts by a clock that stands still while the machine sleeps, so it would
    end that much too late. This one is due at once when the machine wakes up.
    """

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)  # os has it from Python 3.13 on
        flags = os.O_NONBLOCK | os.O_CLOEXEC  # TFD_NONBLOCK, TFD_CLOEXEC
        self.fd: int = self._libc.timerfd_create(time.CLOCK_BOOTTIME, flags)
        self._check(self.fd)

    def set(self, at_ns: int | None) -> None:
        """At that moment, or at once when it has passed; None: never."""
        # struct itimerspec: no repetition, then when. All zero would mean never.
        words = (0, 0, *divmod(max(1, at_ns), _NS_PER_S)) if at_ns is not None else (0, 0, 0, 0)
        when = (ctypes.c_long * 4)(*words)
        self._check(self._libc.timerfd_settime(self.fd, _TFD_TIMER_ABSTIME, when, None))

    @staticmethod
    def _check(result: int) -> None:
        if result < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))


def _watch(bell: Bell, device: int, pidfd: int) -> None:
    """Returns when the supervisor is gone."""
    watch = Watch(bell.page)
    alarm = _Alarm()
    poll = select.poll()
    for fd in (bell.fd, pidfd, alarm.fd):
        poll.register(fd, select.POLLIN)
    while True:
        if watch.is_due(now_ns()):
            forget_everything(device, bell.page.nodeids())
        looked_ns = now_ns()
        wait_ns = watch.looked(looked_ns)
        alarm.set(None if wait_ns is None else looked_ns + wait_ns)  # it is not readable any more
        ready = {fd for fd, _ in poll.poll()}
        if pidfd in ready:
            return
        if bell.fd in ready:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(bell.fd)
