"""Which answers the kernel may keep beyond the lease, and how they are taken back."""

from __future__ import annotations

import asyncio
import errno
import os
import struct
import threading
from collections.abc import Awaitable, Callable

import pytest

from pydi_fs.fuse import notify
from pydi_fs.fuse.keeping import KEPT, Keeping
from pydi_fs.fuse.nodeids import SECOND
from pydi_fs.fuse.notify import Notifier
from pydi_fs.watch import AGAIN_NS, PAGE_BYTES, Page
from pydi_node.ids import Ino
from pydi_node.records import Attr
from tests.harness.memory_vfs import MemoryVfs
from tests.unit.fuse import kernel as k
from tests.unit.fuse.kernel import ROOT, Answer, Kernel, settle
from tests.unit.fuse.test_notify import INC_EPOCH, inval_entry, inval_inode

WAIT_S = 10.0
FILE, OTHER, DIRECTORY = Ino(7), Ino(8), Ino(3)
LEASE_S = 0.75
NOW_NS = 10**12
_SHORT = (0, 750_000_000)
_LONG = tuple(KEPT)


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """No kernel here holds the thread: what is told is told by it, however busy the machine is."""
    monkeypatch.setattr(notify, "DEADLINE_S", WAIT_S)


class Vfs(MemoryVfs):
    """With a lease that ends, and inodes that are in change."""

    lease = LEASE_S

    def __init__(self) -> None:
        super().__init__()
        self.unsettled: set[Ino] = set()

    def is_settled(self, attr: Attr) -> bool:
        return attr.ino not in self.unsettled

    def is_absent(self, parent: Ino, name: bytes) -> bool:
        return parent not in self.unsettled


class Watched:
    """A Keeping whose watch looked just now, under a lease."""

    def __init__(self) -> None:
        self.page = Page(memoryview(bytearray(PAGE_BYTES)))
        self.page.looked_ns = self.now_ns = NOW_NS
        self.rings = 0
        self.dropped = asyncio.Event()
        self.keeping = Keeping(self.page, self._ring, self._drop, lambda: self.now_ns)
        self.keeping.renewed(NOW_NS / 1e9 + LEASE_S)

    def _ring(self) -> None:
        self.rings += 1

    def _drop(self, names: bool) -> None:
        self.dropped.set()


def entry_times(answer: Answer) -> tuple[tuple[int, int], tuple[int, int]]:
    """Time-outs of the name and of the attributes."""
    _, _, entry_s, attr_s, entry_ns, attr_ns = answer.unpack("QQQQII")
    return (entry_s, entry_ns), (attr_s, attr_ns)


def attr_time(answer: Answer) -> tuple[int, int]:
    seconds, nanoseconds = answer.unpack("QI")
    return seconds, nanoseconds


def run(test: Callable[[Kernel, Vfs, Watched], Awaitable[None]]) -> None:
    async def main() -> None:
        vfs = Vfs()
        kernel = Kernel(vfs)
        watched = Watched()
        kernel.dispatcher.keeping = watched.keeping
        await test(kernel, vfs, watched)
        watched.keeping.stop()

    asyncio.run(main())


def test_what_is_looked_at_is_kept_and_booked() -> None:
    """Names, absences, attributes; each inode is in the page before its answer leaves."""

    async def test(kernel: Kernel, vfs: Vfs, watched: Watched) -> None:
        ino = (await kernel.create(b"file")).nodeid
        assert entry_times(await kernel.ask(k.LOOKUP, ROOT, b"file\0")) == (_LONG, _LONG)
        assert watched.page.nodeids() == [ino]
        assert watched.keeping.knows(ino)
        assert watched.rings == 1, "the watch sleeps as long as nothing is kept"
        assert watched.page.until_ns
        assert entry_times(await kernel.ask(k.LOOKUP, ROOT, b"absent\0"))[0] == _LONG
        assert attr_time(await kernel.ask(k.GETATTR, ROOT, bytes(16))) == _LONG
        assert watched.page.nodeids() == [ino, ROOT]
        answer = await kernel.ask(k.READDIRPLUS, ROOT, k.read_in(0, 0, 4096))
        at = 2 * (k.ENTRY_BYTES + 32)  # behind the dots
        times = struct.unpack_from("=QQQQII", answer.payload, at)[2:]
        assert times == (_LONG[0], _LONG[0], _LONG[1], _LONG[1])
        assert kernel.dispatcher.listings.all() == (ROOT,)
        assert watched.keeping.listed_lately() == (ROOT,)

    run(test)


def test_what_is_made_or_changed_is_not_kept() -> None:
    """The kernel takes these answers in although it was told of a change meanwhile."""

    async def test(kernel: Kernel, vfs: Vfs, watched: Watched) -> None:
        created = await kernel.create(b"file")
        assert entry_times(created) == (_SHORT, _SHORT)
        made = await kernel.ask(k.MKDIR, ROOT, struct.pack("=II", 0o755, 0) + b"d\0")
        assert entry_times(made) == (_SHORT, _SHORT)
        linked = await kernel.ask(k.LINK, ROOT, struct.pack("=Q", created.nodeid) + b"l\0")
        assert entry_times(linked) == (_SHORT, _SHORT)
        mode = struct.pack("=II8xQQQQQQIIIIIIII", 1, 0, *(0,) * 6, *(0,) * 3, 0o600, 0, 0, 0, 0)
        assert attr_time(await kernel.ask(k.SETATTR, created.nodeid, mode)) == _SHORT
        assert watched.page.nodeids() == []

    run(test)


def test_a_name_that_is_moved_is_kept_where_it_is() -> None:
    """The kernel moves it by itself: whoever takes that directory over makes it go."""

    async def test(kernel: Kernel, vfs: Vfs, watched: Watched) -> None:
        await kernel.create(b"file")
        made = await kernel.ask(k.MKDIR, ROOT, struct.pack("=II", 0o755, 0) + b"d\0")
        await kernel.ask(k.LOOKUP, ROOT, b"file\0")
        assert watched.keeping.may_know_names_in([ROOT])
        assert not watched.keeping.may_know_names_in([made.nodeid])
        move = struct.pack("=Q", made.nodeid) + b"file\0file\0"
        assert (await kernel.ask(k.RENAME, ROOT, move)).error == 0
        assert watched.keeping.may_know_names_in([made.nodeid])

    run(test)


@pytest.mark.parametrize("why", ["unsettled", "overtaken", "no lease", "watch asleep", "dropped"])
def test_what_is_uncertain_is_not_kept(why: str) -> None:
    """And without a watch that looked lately nothing is."""

    async def test(kernel: Kernel, vfs: Vfs, watched: Watched) -> None:
        ino = Ino((await kernel.create(b"file")).nodeid)
        expected = _SHORT
        match why:
            case "unsettled":
                vfs.unsettled.add(ino)
            case "overtaken":
                vfs.cached = False
                asked = kernel.send(k.LOOKUP, ROOT, b"file\0")
                vfs.pushes += 1
                await kernel.dispatcher.stop()
                answer = kernel.answer_to(asked)
                assert answer is not None
                assert entry_times(answer) == ((0, 0), (0, 0))
                return
            case "no lease":
                vfs.lease = 0.0
                expected = (0, 0)
            case "watch asleep":
                watched.page.looked_ns = 0
            case "dropped":
                watched.page.dropped()
        assert entry_times(await kernel.ask(k.LOOKUP, ROOT, b"file\0")) == (expected, expected)
        assert attr_time(await kernel.ask(k.GETATTR, ino, bytes(16))) == expected
        assert watched.rings == (why == "watch asleep") * 2
        assert watched.page.nodeids() == []

    run(test)


def test_an_absence_that_nobody_would_end_is_not_kept() -> None:
    async def test(kernel: Kernel, vfs: Vfs, watched: Watched) -> None:
        vfs.unsettled.add(Ino(ROOT))
        assert entry_times(await kernel.ask(k.LOOKUP, ROOT, b"absent\0"))[0] == _SHORT
        assert not watched.keeping.may_know_names_in([ROOT])

    run(test)


def test_a_second_node_id_is_not_kept() -> None:
    """What it stands for may be forgotten here while the kernel goes on using it."""

    async def test(kernel: Kernel, vfs: Vfs, watched: Watched) -> None:
        ino = Ino((await kernel.create(b"file")).nodeid)
        kernel.dispatcher.nodeids.restore(ino, True, 99, passing=False)
        assert kernel.dispatcher.nodeids.of(ino) == ino | SECOND
        assert entry_times(await kernel.ask(k.LOOKUP, ROOT, b"file\0")) == (_SHORT, _SHORT)
        assert attr_time(await kernel.ask(k.GETATTR, ino | SECOND, bytes(16))) == _SHORT
        assert watched.page.nodeids() == []

    run(test)


class Device:
    """Takes notifications; does not know the inodes in ``unknown``."""

    def __init__(self) -> None:
        self.messages: list[bytes] = []
        self.unknown: set[bytes] = set()
        self.awaited = 0  # so many messages
        self.came = asyncio.Event()
        self.held = b""  # waits until ``go``
        self.go = threading.Event()

    def write(self, message: bytes) -> None:
        self.messages.append(message)
        if len(self.messages) == self.awaited:
            self.came.set()
        if message == self.held:
            assert self.go.wait(WAIT_S)
        if message in self.unknown:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))


def told(test: Callable[[Notifier, Device, Watched], Awaitable[None]]) -> None:
    async def main() -> None:
        device, watched = Device(), Watched()
        notifier = Notifier(device.write, has_epoch=True)
        notifier.keeping = watched.keeping
        notifier.start()
        await test(notifier, device, watched)
        watched.keeping.stop()
        assert notifier.stop(WAIT_S)

    asyncio.run(main())


def test_everything_is_all_that_was_kept() -> None:
    """Names, and attributes of all in the book; until it is done nothing more is kept."""

    async def test(notifier: Notifier, device: Device, watched: Watched) -> None:
        assert watched.keeping.keeps_entry(DIRECTORY, FILE)
        assert watched.keeping.keeps(OTHER)
        assert watched.keeping.may_know_names_in([DIRECTORY])
        done = notifier.invalidate((), (), everything=True, attributes=())
        assert not watched.keeping.keeps(FILE)
        await asyncio.wait_for(done, WAIT_S)
        await settle()
        assert device.messages[0] == INC_EPOCH
        assert set(device.messages[1:]) == {inval_inode(FILE, -1), inval_inode(OTHER, -1)}
        assert watched.page.nodeids() == []
        assert not watched.keeping.may_know_names_in([DIRECTORY])
        assert watched.keeping.keeps(FILE)

    told(test)


def test_all_names_of_a_directory_are_an_epoch_and_leave_attributes() -> None:
    """Once: after that the kernel knows none of them."""

    async def test(notifier: Notifier, device: Device, watched: Watched) -> None:
        assert watched.keeping.keeps_entry(DIRECTORY, FILE)
        assert notifier.may_know_names_in([DIRECTORY])
        await asyncio.wait_for(notifier.invalidate((), (), everything=True), WAIT_S)
        assert device.messages == [INC_EPOCH]
        assert not notifier.may_know_names_in([DIRECTORY])
        assert watched.keeping.knows(FILE)

    told(test)


@pytest.mark.parametrize("attributes", [None, ()], ids=["names", "everything"])
def test_all_names_go_again_behind_what_was_listed(attributes: tuple[int, ...] | None) -> None:
    """An answer to READDIRPLUS makes names that count as new when it is taken in. Not one of long
    ago."""

    async def test(notifier: Notifier, device: Device, watched: Watched) -> None:
        watched.keeping.listed(DIRECTORY)
        watched.now_ns += AGAIN_NS[-1]
        watched.keeping.listed(OTHER)
        done = notifier.invalidate((), (), everything=True, attributes=attributes)
        await asyncio.wait_for(done, WAIT_S)
        assert device.messages == [
            INC_EPOCH, inval_entry(DIRECTORY, b"any"), inval_entry(OTHER, b"any"), INC_EPOCH,
        ]  # fmt: skip
        device.messages.clear()
        watched.now_ns += 1
        done = notifier.invalidate((), (), everything=True, attributes=attributes)
        await asyncio.wait_for(done, WAIT_S)
        assert device.messages == [INC_EPOCH, inval_entry(OTHER, b"any"), INC_EPOCH]

    told(test)


def test_who_cannot_wait_for_what_was_listed_makes_more_epochs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(notify, "AGAIN_NS", (0, 0))

    async def test(notifier: Notifier, device: Device, watched: Watched) -> None:
        notifier.forget_names()
        await settle()
        assert device.messages == [INC_EPOCH]
        watched.keeping.listed(DIRECTORY)
        device.awaited = 4
        notifier.forget_names()
        await asyncio.wait_for(device.came.wait(), WAIT_S)
        assert device.messages == [INC_EPOCH] * 4

    told(test)


def test_so_does_who_is_behind_a_local_operation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notify, "DEADLINE_S", 0.0)
    monkeypatch.setattr(notify, "AGAIN_NS", (0,))

    async def test(notifier: Notifier, device: Device, watched: Watched) -> None:
        watched.keeping.listed(DIRECTORY)
        device.held = inval_entry(DIRECTORY, b"new")
        try:
            await asyncio.wait_for(notifier.invalidate((), [(DIRECTORY, b"new")]), WAIT_S)
            async with asyncio.timeout(WAIT_S):
                while len(device.messages) < 3:
                    await settle()
            assert sorted(device.messages) == sorted([device.held, INC_EPOCH, INC_EPOCH])
        finally:
            device.go.set()

    told(test)


def test_a_full_book_takes_attributes_and_no_name() -> None:
    async def test(notifier: Notifier, device: Device, watched: Watched) -> None:
        assert watched.keeping.keeps_entry(DIRECTORY, FILE)
        until_ns = watched.page.until_ns
        await asyncio.wait_for(notifier.invalidate((), (), attributes=()), WAIT_S)
        await settle()
        assert device.messages == [inval_inode(FILE, -1)]
        assert watched.page.nodeids() == []
        assert watched.page.until_ns == until_ns, "the watch has names to take back"
        assert watched.keeping.may_know_names_in([DIRECTORY])
        assert watched.keeping.keeps(OTHER)

    told(test)


def test_what_goes_for_room_does_not_hide_that_all_goes() -> None:
    async def test(notifier: Notifier, device: Device, watched: Watched) -> None:
        assert watched.keeping.keeps_entry(DIRECTORY, FILE)
        notifier.invalidate((), (), everything=True, attributes=())
        await asyncio.wait_for(notifier.invalidate((), (), attributes=()), WAIT_S)
        await settle()
        assert watched.page.until_ns == 0
        assert not watched.keeping.may_know_names_in([DIRECTORY])

    told(test)


def test_names_are_known_until_the_kernel_was_told_that_they_go() -> None:
    """Who takes the same directory over meanwhile is not told too early."""

    async def test(notifier: Notifier, device: Device, watched: Watched) -> None:
        assert watched.keeping.keeps_entry(DIRECTORY, FILE)
        done = [notifier.invalidate((), (), everything=True) for _ in range(2)]
        assert notifier.may_know_names_in([DIRECTORY])
        await asyncio.wait_for(done[0], WAIT_S)
        assert not notifier.may_know_names_in([DIRECTORY])
        assert watched.keeping.keeps_entry(DIRECTORY, FILE)
        await asyncio.wait_for(done[1], WAIT_S)
        await settle()
        assert notifier.may_know_names_in([DIRECTORY]), "kept since"

    told(test)


def test_what_the_kernel_does_not_know_yet_is_told_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer on its way would be kept for long. Not what was never kept, and not for ever."""
    monkeypatch.setattr(notify, "AGAIN_NS", (0, 0, 0))

    async def test(notifier: Notifier, device: Device, watched: Watched) -> None:
        assert watched.keeping.keeps(FILE)
        device.awaited = 5
        device.unknown |= {inval_inode(FILE, 0), inval_inode(FILE, -1), inval_inode(OTHER, 0)}
        await asyncio.wait_for(notifier.invalidate((FILE, OTHER), ()), WAIT_S)
        again = [inval_inode(FILE, 0), inval_inode(OTHER, 0), *[inval_inode(FILE, -1)] * 3]
        await asyncio.wait_for(device.came.wait(), WAIT_S)
        await settle()
        assert sorted(device.messages) == sorted(again)
        device.messages.clear()
        device.unknown -= {inval_inode(FILE, -1)}
        notifier.forget_attributes(FILE)
        await settle()
        assert device.messages == [inval_inode(FILE, -1)]

    told(test)


def test_what_is_not_known_is_told_again_behind_what_was_listed() -> None:
    """An answer to READDIRPLUS may bring it as late as there is memory to read into. Nobody waits
    for that where the kernel knows all, or keeps nothing of what it does not know."""

    async def test(notifier: Notifier, device: Device, watched: Watched) -> None:
        watched.keeping.listed(DIRECTORY)
        assert watched.keeping.keeps(FILE)
        await asyncio.wait_for(notifier.invalidate((FILE,), ()), WAIT_S)
        assert device.messages == [inval_inode(FILE, 0)]
        device.messages.clear()
        device.unknown |= {inval_inode(FILE, 0), inval_inode(OTHER, 0)}
        await asyncio.wait_for(notifier.invalidate((OTHER,), ()), WAIT_S)
        assert device.messages == [inval_inode(OTHER, 0)]
        device.messages.clear()
        device.held = inval_entry(DIRECTORY, b"any")
        done = notifier.invalidate((FILE, OTHER), ())
        device.awaited = 3
        await asyncio.wait_for(device.came.wait(), WAIT_S)
        assert not done.done()
        device.go.set()
        await asyncio.wait_for(done, WAIT_S)
        assert device.messages == [
            inval_inode(FILE, 0), inval_inode(OTHER, 0), inval_entry(DIRECTORY, b"any"),
            inval_inode(FILE, -1),
        ]  # fmt: skip

    told(test)


def test_all_that_goes_is_told_again_where_it_is_not_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(notify, "AGAIN_NS", (0, 0))

    async def test(notifier: Notifier, device: Device, watched: Watched) -> None:
        assert watched.keeping.keeps(FILE)
        device.unknown.add(inval_inode(FILE, -1))
        done = notifier.invalidate((), (), everything=True, attributes=())
        await asyncio.wait_for(done, WAIT_S)
        async with asyncio.timeout(WAIT_S):
            while len(device.messages) < 4:
                await settle()
        assert device.messages == [INC_EPOCH, *[inval_inode(FILE, -1)] * 3]

    told(test)


def test_a_lapse_drops_all() -> None:
    """The worker looks by itself, with the first that is kept."""

    async def test(kernel: Kernel, vfs: Vfs, watched: Watched) -> None:
        assert watched.keeping.keeps(FILE)
        watched.page.dropped()
        await asyncio.wait_for(watched.dropped.wait(), WAIT_S)

    run(test)
