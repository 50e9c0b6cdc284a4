"""Invalidations: their bytes, their order, and what happens when the kernel makes them wait."""

from __future__ import annotations

import asyncio
import errno
import os
import struct
import threading
from collections.abc import Callable, Iterator

import pytest

from pydi_fs.fuse import notify
from pydi_fs.fuse.notify import NAME_REMEMBERED_S, Notifier
from pydi_node.ids import Ino

DIRECTORY, OTHER, FILE = Ino(3), Ino(4), Ino(7)
WAIT_S = 10.0  # far more than anything here takes


def inval_inode(ino: int, offset: int) -> bytes:
    return struct.pack("=IiQQqq", 40, 2, 0, ino, offset, 0)


def inval_entry(parent: int, name: bytes) -> bytes:
    head = struct.pack("=IiQQII", 33 + len(name), 3, 0, parent, len(name), 0)
    return head + name + b"\0"


INC_EPOCH = struct.pack("=IiQ", 16, 8, 0)


class _Device:
    """Takes notifications; some are answered with an errno, some wait until ``go`` is set."""

    def __init__(self) -> None:
        self.messages: list[bytes] = []
        self.errors: dict[bytes, int] = {}
        self.blocks: set[bytes] = set()
        self.reached = threading.Event()
        self.go = threading.Event()

    def write(self, message: bytes) -> None:
        self.messages.append(message)
        if message in self.blocks:
            self.reached.set()
            assert self.go.wait(WAIT_S)
        if message in self.errors:
            number = self.errors[message]
            raise OSError(number, os.strerror(number))


@pytest.fixture
def device() -> _Device:
    return _Device()


@pytest.fixture
def make(device: _Device) -> Iterator[Callable[[bool], Notifier]]:
    made: list[Notifier] = []

    def start(has_epoch: bool = True) -> Notifier:
        notifier = Notifier(device.write, has_epoch)
        notifier.start()
        made.append(notifier)
        return notifier

    yield start
    device.go.set()
    for notifier in made:
        assert notifier.stop(WAIT_S)


def deliver(
    notifier: Notifier,
    inos: tuple[Ino, ...] = (),
    entries: tuple[tuple[Ino, bytes], ...] = (),
    everything: bool = False,
) -> None:
    """Hands in one change; returns when the thread is done with it."""

    async def main() -> None:
        notifier.invalidate(inos, entries, everything)

    asyncio.run(main())
    assert notifier.stop(WAIT_S)


def test_a_change_is_told_in_the_order_that_closes_the_races(
    device: _Device, make: Callable[..., Notifier]
) -> None:
    """Names first, then their directories, then the inodes with their content; exact bytes."""
    entries = ((DIRECTORY, b"new"), (DIRECTORY, b"old"), (OTHER, b"x"))
    deliver(make(), (FILE,), entries)
    assert device.messages == [
        inval_entry(DIRECTORY, b"new"),
        inval_entry(DIRECTORY, b"old"),
        inval_entry(OTHER, b"x"),
        inval_inode(DIRECTORY, 0),
        inval_inode(OTHER, 0),
        inval_inode(FILE, 0),
    ]


def test_an_unknown_name_does_not_stop_the_rest(
    device: _Device, make: Callable[..., Notifier]
) -> None:
    """ENOENT for a name leaves the cached listing, so the directory is told all the same."""
    device.errors[inval_entry(DIRECTORY, b"new")] = errno.ENOENT
    device.errors[inval_inode(FILE, 0)] = errno.ENOENT
    deliver(make(), (FILE,), ((DIRECTORY, b"new"),))
    assert device.messages == [
        inval_entry(DIRECTORY, b"new"),
        inval_inode(DIRECTORY, 0),
        inval_inode(FILE, 0),
    ]


def test_an_unknown_inode_that_was_just_handed_out_makes_all_names_stale(
    device: _Device, make: Callable[..., Notifier]
) -> None:
    """The answer with its old attributes may still be in flight; after the epoch it is not
    believed, so a second time needs no epoch."""
    device.errors[inval_inode(FILE, 0)] = errno.ENOENT
    notifier = make()
    notifier.handed_out(FILE)

    async def main() -> None:
        notifier.invalidate((FILE,), ())
        notifier.invalidate((FILE,), ())

    asyncio.run(main())
    assert notifier.stop(WAIT_S)
    assert device.messages == [inval_inode(FILE, 0), INC_EPOCH, inval_inode(FILE, 0)]


def test_what_was_handed_out_lately_is_bounded_and_outlives_one_generation(
    device: _Device, make: Callable[..., Notifier], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full table goes only when the next is full too."""
    monkeypatch.setattr(notify, "HANDED_OUT_MAX", 10)
    device.errors[inval_inode(FILE, 0)] = errno.ENOENT
    notifier = make()
    notifier.handed_out(FILE)
    for number in range(100, 115):
        notifier.handed_out(Ino(number))
    deliver(notifier, (FILE,))
    assert INC_EPOCH in device.messages
    for number in range(100, 200):
        notifier.handed_out(Ino(number))
    assert len(notifier._handed_out) + len(notifier._handed_out_before) <= 22


def test_everything_is_one_epoch_and_the_files_with_content(
    device: _Device, make: Callable[..., Notifier]
) -> None:
    """The epoch does not reach pages of open files, so each of them is told."""
    deliver(make(), (FILE,), (), everything=True)
    assert device.messages == [INC_EPOCH, inval_inode(FILE, 0)]


def test_a_kernel_without_epochs_is_never_asked_for_one(
    device: _Device, make: Callable[..., Notifier]
) -> None:
    """Before 7.44 the message would be refused; the time-outs are left."""
    device.errors[inval_inode(FILE, 0)] = errno.ENOENT
    notifier = make(False)
    notifier.handed_out(FILE)
    deliver(notifier, (FILE,), (), everything=True)
    assert device.messages == [inval_inode(FILE, 0)]


def test_a_name_that_waits_for_a_local_operation_becomes_an_epoch(
    device: _Device, make: Callable[..., Notifier]
) -> None:
    """Past the deadline the loop, which never waits, makes all names stale and has attributes
    asked for again; the thread goes on when it can."""
    device.blocks.add(inval_entry(DIRECTORY, b"new"))
    notifier = make()

    async def main() -> None:
        await asyncio.wait_for(notifier.invalidate((FILE,), ((DIRECTORY, b"new"),)), WAIT_S)

    asyncio.run(main())
    assert device.reached.wait(WAIT_S)
    assert device.messages == [
        inval_entry(DIRECTORY, b"new"),
        INC_EPOCH,
        inval_inode(FILE, -1),
    ]
    device.go.set()
    assert notifier.stop(WAIT_S)
    assert device.messages[-1] == inval_inode(FILE, 0)


def test_what_waits_behind_a_held_name_is_forgotten_before_anybody_is_told(
    device: _Device, make: Callable[..., Notifier]
) -> None:
    """The thread is busy with another change. An inode without a name loses its attributes, and
    "everything" all names, before the mount says that it uses them no more."""
    device.blocks.add(inval_entry(DIRECTORY, b"held"))
    notifier = make()

    async def main() -> None:
        await asyncio.wait_for(notifier.invalidate((), ((DIRECTORY, b"held"),)), WAIT_S)
        assert await asyncio.to_thread(device.reached.wait, WAIT_S)
        device.messages.clear()
        await asyncio.wait_for(notifier.invalidate((FILE,), ()), WAIT_S)
        assert device.messages == [inval_inode(FILE, -1)]
        device.messages.clear()
        await asyncio.wait_for(notifier.invalidate((FILE,), (), everything=True), WAIT_S)
        assert device.messages == [INC_EPOCH, inval_inode(FILE, -1)]

    asyncio.run(main())


def test_attributes_in_flight_are_not_believed_either_behind_a_held_name(
    device: _Device, make: Callable[..., Notifier]
) -> None:
    """The kernel does not know the inode yet, but was just sent its attributes: an epoch."""
    device.blocks.add(inval_entry(DIRECTORY, b"held"))
    device.errors[inval_inode(FILE, -1)] = errno.ENOENT
    notifier = make()

    async def main() -> None:
        await asyncio.wait_for(notifier.invalidate((), ((DIRECTORY, b"held"),)), WAIT_S)
        assert await asyncio.to_thread(device.reached.wait, WAIT_S)
        device.messages.clear()
        notifier.handed_out(FILE)
        await asyncio.wait_for(notifier.invalidate((FILE,), ()), WAIT_S)
        assert device.messages == [inval_inode(FILE, -1), INC_EPOCH]

    asyncio.run(main())


def test_without_epochs_nobody_is_told_of_a_name_that_the_kernel_goes_on_using(
    device: _Device, make: Callable[..., Notifier], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not before the thread is through. Inodes alone do not need epochs."""
    monkeypatch.setattr(notify, "DEADLINE_S", 0.0)
    device.blocks.add(inval_entry(DIRECTORY, b"held"))
    notifier = make(False)

    async def main() -> None:
        assert notifier.remembered_s(3600.0) == 3600.0
        held = notifier.invalidate((), ((DIRECTORY, b"held"),))
        names = notifier.invalidate((FILE,), ((OTHER, b"x"),))
        await asyncio.wait_for(notifier.invalidate((OTHER,), ()), WAIT_S)  # overdue after those
        assert inval_inode(FILE, -1) in device.messages
        assert not held.done()
        assert not names.done()
        device.go.set()
        await asyncio.wait_for(asyncio.gather(held, names), WAIT_S)

    asyncio.run(main())


@pytest.mark.parametrize("everything", [False, True])
def test_without_epochs_a_time_out_is_waited_for_once(
    device: _Device, make: Callable[..., Notifier], everything: bool
) -> None:
    """The kernel's last time-out ends the wait. Then it remembers nothing for a while, and the next
    change is told after the deadline, however long the thread waits."""
    device.blocks.add(inval_entry(DIRECTORY, b"held"))
    notifier = make(False)
    entries = () if everything else ((DIRECTORY, b"held"),)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        given_s = loop.time()
        assert notifier.remembered_s(0.1) == 0.1
        await asyncio.wait_for(notifier.invalidate((), entries, everything), WAIT_S)
        assert loop.time() >= given_s + 0.1
        assert notifier.remembered_s(3600.0) == 0.0
        await asyncio.wait_for(notifier.invalidate((), entries, everything), WAIT_S)

    asyncio.run(main())


def test_with_epochs_the_kernel_always_remembers(
    device: _Device, make: Callable[..., Notifier]
) -> None:
    """A name behind a local operation, and everything, cost it nothing but what it knew."""
    device.blocks.add(inval_entry(DIRECTORY, b"held"))
    notifier = make()

    async def main() -> None:
        assert notifier.remembered_s(3600.0) == 3600.0
        held = notifier.invalidate((), ((DIRECTORY, b"held"),))
        everything = notifier.invalidate((), (), everything=True)
        await asyncio.wait_for(asyncio.gather(held, everything), WAIT_S)
        assert notifier.remembered_s(3600.0) == 3600.0

    asyncio.run(main())


def test_after_the_end_of_the_thread_nobody_waits(
    device: _Device, make: Callable[..., Notifier]
) -> None:
    """The mount is gone; a change that comes in still has nobody to tell."""
    notifier = make(False)
    assert notifier.stop(WAIT_S)

    async def main() -> None:
        await asyncio.wait_for(notifier.invalidate((FILE,), ((DIRECTORY, b"x"),)), WAIT_S)

    asyncio.run(main())


def test_a_thread_that_the_kernel_holds_is_reported(
    device: _Device, make: Callable[..., Notifier]
) -> None:
    """Stopping never waits for ever: the caller learns that it must abort the connection."""
    device.blocks.add(inval_inode(FILE, 0))
    notifier = make()

    async def main() -> None:
        notifier.invalidate((FILE,), ())

    asyncio.run(main())
    assert device.reached.wait(WAIT_S)
    assert not notifier.stop(0.0)


@pytest.mark.parametrize("number", [errno.ENODEV, errno.ENOTCONN, errno.EBADF])
def test_a_mount_that_is_gone_is_no_trouble(
    device: _Device, make: Callable[..., Notifier], number: int
) -> None:
    """Changes may still arrive while the mount ends; nothing is logged."""
    device.errors[inval_inode(FILE, 0)] = number
    deliver(make(), (FILE,))


@pytest.mark.expects_log("refused a notification")
def test_a_refusal_is_logged_and_the_rest_goes_on(
    device: _Device, make: Callable[..., Notifier], caplog: pytest.LogCaptureFixture
) -> None:
    """An errno that should not be says so once per message."""
    device.errors[inval_entry(DIRECTORY, b"x")] = errno.EINVAL
    deliver(make(), (FILE,), ((DIRECTORY, b"x"),))
    assert device.messages[-1] == inval_inode(FILE, 0)
    assert "refused a notification" in caplog.text


def test_forgetting_attributes_keeps_pages(device: _Device, make: Callable[..., Notifier]) -> None:
    """A negative offset leaves pages alone, which is why this one never blocks."""
    make().forget_attributes(FILE)
    assert device.messages == [inval_inode(FILE, -1)]


def test_names_are_believed_to_be_known_for_as_long_as_the_kernel_may_believe_them(
    make: Callable[..., Notifier], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever takes a directory over need not make every name stale where none was told lately."""

    async def main() -> None:
        notifier = make()
        loop = asyncio.get_running_loop()
        now_s = loop.time()
        monkeypatch.setattr(loop, "time", lambda: now_s)
        assert not notifier.may_know_names_in([DIRECTORY])
        notifier.named(DIRECTORY)
        for _ in range(10):
            assert notifier.may_know_names_in([OTHER, DIRECTORY])
            now_s += NAME_REMEMBERED_S / 10
        now_s += NAME_REMEMBERED_S * 1.01
        assert not notifier.may_know_names_in([OTHER, DIRECTORY])

    asyncio.run(main())
