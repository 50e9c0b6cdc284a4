"""What holds for every request: one answer whatever happens, interrupts, nothing leaked."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import logging
import os
import struct
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pydi_fs.fuse import dispatch
from pydi_node.commands import Caller
from pydi_node.errors import DeadlineError, FileError, NoQuorumError, NoSpaceError
from pydi_node.ids import Ino
from pydi_node.records import Attr
from tests.harness.memory_vfs import MemoryVfs
from tests.unit.fuse import kernel as k
from tests.unit.fuse.kernel import ROOT, Kernel, lock_in, read_in, settle
from tests.unit.fuse.test_opcodes import run

NO_GRACE = 0.0


@pytest.fixture(autouse=True)
def _no_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "INTERRUPT_GRACE_S", NO_GRACE)


# --- outcomes and crashes -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (FileError(errno.ENOTEMPTY), errno.ENOTEMPTY),
        (NoQuorumError("two of five"), errno.EROFS),
        (DeadlineError("5 s"), errno.EIO),
        (NoSpaceError("full"), errno.ENOSPC),
        (OSError(errno.EDQUOT, "quota"), errno.EDQUOT),
        (FileError(5000), errno.EIO),
    ],
)
def test_errors_of_the_vfs_are_errnos(error: Exception, expected: int) -> None:
    """Each kind of error is the errno that the table says, and never one that hangs the request."""

    async def scenario(kernel: Kernel) -> None:
        async def statfs() -> Any:
            raise error

        kernel.vfs.statfs = statfs  # type: ignore[method-assign]
        assert (await kernel.ask(k.STATFS)).error == expected

    run(scenario)


def test_what_others_changed_is_told_before_a_directory_is_shown() -> None:
    """Else whoever waited for its attributes could go on to the kernel's listing of before."""
    untold: list[asyncio.Future[None]] = []

    async def scenario(kernel: Kernel) -> None:
        told: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        untold.append(told)
        waiting = kernel.send(k.GETATTR, ROOT, bytes(16))
        for _ in range(10):
            await asyncio.sleep(0)
        assert kernel.answer_to(waiting) is None
        told.set_result(None)
        untold.clear()
        assert (await kernel.ask(k.GETATTR, ROOT, bytes(16))).error == 0
        assert kernel.answer_to(waiting) is not None

    run(scenario, cached=False, telling=lambda: untold[0] if untold else None)


@pytest.mark.expects_log("crashed")
@pytest.mark.parametrize("cached", [True, False], ids=["nowait", "task"])
def test_a_crash_is_eio_and_a_traceback(caplog: pytest.LogCaptureFixture, cached: bool) -> None:
    """A bug in a handler costs that request alone, and the log says where it is."""

    async def scenario(kernel: Kernel) -> None:
        def broken(*_: object) -> Attr:
            raise ZeroDivisionError("a bug")

        kernel.vfs._attr = broken  # type: ignore[method-assign]
        assert (await kernel.ask(k.GETATTR, ROOT, bytes(16))).error == errno.EIO
        del kernel.vfs._attr  # type: ignore[method-assign]
        assert (await kernel.ask(k.GETATTR, ROOT, bytes(16))).error == 0

    run(scenario, cached=cached)
    assert "ZeroDivisionError: a bug" in caplog.text
    assert "Traceback" in caplog.text


@pytest.mark.expects_log("refused an answer")
def test_an_answer_that_the_kernel_refuses_becomes_eio() -> None:
    """Were a refused answer dropped, the program would hang for ever."""

    async def scenario(kernel: Kernel) -> None:
        kernel.refuses = 1
        assert (await kernel.ask(k.STATFS)).error == errno.EIO

    run(scenario)


@pytest.mark.expects_log("refused a request")
@pytest.mark.parametrize(
    ("opcode", "body"),
    [
        (k.LOOKUP, b"no terminator"),
        (k.LOOKUP, b"one\0two\0"),
        (k.SYMLINK, b"name\0"),
        (k.RENAME, struct.pack("=Q", ROOT) + b"old\0new"),
        (k.MKDIR, b"\0\0"),
        (k.WRITE, struct.pack("=QQIIQII", 1, 0, 10, 0, 0, 0, 0) + b"short"),
        (k.SETXATTR, struct.pack("=II", 100, 0) + b"user.a\0x"),
        (k.SETLK, lock_in(1, 1, fcntl.F_RDLCK, 5, 4)),
    ],
)
def test_a_malformed_body_is_einval(opcode: int, body: bytes) -> None:
    """Names without an end, too many or too few of them, lengths that do not fit."""

    async def scenario(kernel: Kernel) -> None:
        assert (await kernel.ask(opcode, ROOT, body)).error == errno.EINVAL

    run(scenario)


def test_an_unknown_opcode_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    """A newer kernel's question is ENOSYS each time and one line in the log."""

    async def scenario(kernel: Kernel) -> None:
        for _ in range(3):
            assert (await kernel.ask(99)).error == errno.ENOSYS

    with caplog.at_level(logging.INFO):
        run(scenario)
    assert caplog.text.count("opcode 99") == 1


def test_an_open_that_nobody_got_is_closed_again() -> None:
    """The program died before the answer: no RELEASE will come, so the handle goes at once."""

    async def scenario(kernel: Kernel) -> None:
        await kernel.create(b"file")
        opened = kernel.vfs.open_handles
        kernel.takes = False
        ino = (await kernel.vfs.lookup(Ino(ROOT), b"file")).ino
        kernel.send(k.OPEN, ino, struct.pack("=II", os.O_RDONLY, 0))
        kernel.send(k.CREATE, ROOT, struct.pack("=IIII", os.O_RDWR, 0o644, 0, 0) + b"new\0")
        await kernel.dispatcher.stop()
        assert kernel.vfs.open_handles == opened
        new = (await kernel.vfs.lookup(Ino(ROOT), b"new")).ino
        assert kernel.dispatcher.pages._files[new].handles == {}

    run(scenario)


# --- interrupts -----------------------------------------------------------------------------------


def test_an_interrupted_reader_gets_eintr() -> None:
    """FUSE_INTERRUPT ends a READ that waits, with EINTR to the READ itself."""

    async def scenario(kernel: Kernel) -> None:
        created = await kernel.create(b"file")
        kernel.vfs.block_reads = asyncio.Event()
        unique = kernel.send(k.READ, created.nodeid, read_in(created.fh, 0, 10))
        kernel.interrupt(unique)  # in the same wake-up, before the task has run at all
        await kernel.dispatcher.stop()
        answer = kernel.answer_to(unique)
        assert answer is not None
        assert answer.error == errno.EINTR

    run(scenario)


def test_a_request_that_ends_within_the_grace_is_not_disturbed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Signals that a program handles itself must not make its calls fail."""
    monkeypatch.setattr(dispatch, "INTERRUPT_GRACE_S", 3600.0)

    async def scenario(kernel: Kernel) -> None:
        created = await kernel.create(b"file")
        await kernel.write(created.nodeid, created.fh, 0, b"content")
        kernel.vfs.block_reads = asyncio.Event()
        unique = kernel.send(k.READ, created.nodeid, read_in(created.fh, 0, 10))
        kernel.interrupt(unique)
        await settle()
        assert kernel.answer_to(unique) is None
        kernel.vfs.block_reads.set()
        await settle()
        answer = kernel.answer_to(unique)
        assert answer is not None
        assert answer.payload == b"content"

    run(scenario)


def test_an_interrupted_lock_waiter_gets_eintr_at_once_and_no_lock(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """SETLKW may wait for hours: Ctrl-C needs no grace, and the lock is free afterwards."""
    monkeypatch.setattr(dispatch, "INTERRUPT_GRACE_S", 3600.0)

    async def scenario(kernel: Kernel) -> None:
        created = await kernel.create(b"file")
        ino, fh = created.nodeid, created.fh
        await kernel.ask(k.SETLK, ino, lock_in(fh, 1, fcntl.F_WRLCK))
        unique = kernel.send(k.SETLKW, ino, lock_in(fh, 2, fcntl.F_WRLCK))
        await settle()
        assert kernel.answer_to(unique) is None
        kernel.interrupt(unique)
        await settle()
        answer = kernel.answer_to(unique)
        assert answer is not None
        assert answer.error == errno.EINTR
        await kernel.ask(k.SETLK, ino, lock_in(fh, 1, fcntl.F_UNLCK))
        free = await kernel.ask(k.GETLK, ino, lock_in(fh, 3, fcntl.F_WRLCK))
        assert free.unpack("QQII")[2] == fcntl.F_UNLCK

    run(scenario)


def test_an_interrupted_unlock_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """flock(2) gives a lock back by SETLKW, too: it goes, whatever signals the program gets
    meanwhile."""
    monkeypatch.setattr(dispatch, "INTERRUPT_GRACE_S", 3600.0)

    class SlowUnlock(MemoryVfs):
        go = asyncio.Event()

        async def setlk(self, fh: int, owner: int, kind: int, *rest: Any, **more: Any) -> None:
            if kind == fcntl.F_UNLCK:
                await self.go.wait()
            await super().setlk(fh, owner, kind, *rest, **more)

    async def main() -> None:
        vfs = SlowUnlock()
        kernel = Kernel(vfs)
        created = await kernel.create(b"file")
        ino, fh = created.nodeid, created.fh
        await kernel.ask(k.SETLKW, ino, lock_in(fh, 1, fcntl.F_WRLCK, flags=1))
        unique = kernel.send(k.SETLKW, ino, lock_in(fh, 1, fcntl.F_UNLCK, flags=1))
        await settle()
        kernel.interrupt(unique)
        await settle()
        assert kernel.answer_to(unique) is None
        vfs.go.set()
        await settle()
        answer = kernel.answer_to(unique)
        assert answer is not None
        assert answer.error == 0
        await kernel.ask(k.SETLK, ino, lock_in(fh, 2, fcntl.F_WRLCK, flags=1))

    asyncio.run(main())


def test_a_waiting_lock_is_granted_when_the_other_goes() -> None:
    """SETLKW answers once the lock is free, and other requests are served meanwhile."""

    async def scenario(kernel: Kernel) -> None:
        created = await kernel.create(b"file")
        ino, fh = created.nodeid, created.fh
        await kernel.ask(k.SETLK, ino, lock_in(fh, 1, fcntl.F_WRLCK))
        waiting = kernel.send(k.SETLKW, ino, lock_in(fh, 2, fcntl.F_WRLCK))
        unlock = kernel.send(k.SETLK, ino, lock_in(fh, 1, fcntl.F_UNLCK))
        await settle()
        for unique in (waiting, unlock):
            answer = kernel.answer_to(unique)
            assert answer is not None
            assert answer.error == 0

    run(scenario)


class _SlowVfs(MemoryVfs):
    """Opening and flushing wait for ``go``; ``finished`` counts those that ran to their end."""

    def __init__(self) -> None:
        super().__init__()
        self.go = asyncio.Event()
        self.finished = 0

    def open_nowait(self, caller: Any, ino: Ino, flags: int) -> int | None:
        return None

    async def open(self, caller: Any, ino: Ino, flags: int) -> int:
        await self.go.wait()
        self.finished += 1
        return await super().open(caller, ino, flags)

    def flush_nowait(self, fh: int) -> bool:
        return False

    async def flush(self, fh: int) -> None:
        await self.go.wait()
        self.finished += 1
        await super().flush(fh)


class _AskingVfs(MemoryVfs):
    """Knows nothing by itself, and waits for ``go`` with each name."""

    def __init__(self) -> None:
        super().__init__()
        self.cached = False
        self.go = asyncio.Event()

    async def lookup(self, parent: Ino, name: bytes) -> Attr:
        await self.go.wait()
        return await super().lookup(parent, name)


def test_the_kernel_keeps_an_answer_for_the_rest_of_the_lease() -> None:
    """Counted when the answer leaves; nothing is kept without a lease, or when a change elsewhere
    overtook the answer, which may be older."""

    async def main() -> None:
        vfs = _AskingVfs()
        kernel = Kernel(vfs)
        await kernel.create(b"file")
        for lease_s, pushes, kept in (
            (0.75, 0, (0, 750_000_000)),
            (0.0, 0, (0, 0)),
            (9.0, 1, (0, 0)),
        ):
            vfs.go.clear()
            vfs.lease = 5.0
            asked = [kernel.send(k.LOOKUP, ROOT, name) for name in (b"file\0", b"absent\0")]
            await settle()
            vfs.lease = lease_s
            vfs.pushes += pushes
            vfs.go.set()
            await kernel.dispatcher.stop()
            for unique in asked:
                answer = kernel.answer_to(unique)
                assert answer is not None
                _, _, entry_s, _, entry_ns, _ = answer.unpack("QQQQII")
                assert (entry_s, entry_ns) == kept

    asyncio.run(main())


def test_the_kernel_keeps_an_answer_for_no_longer_than_the_notifier_says() -> None:
    """It is asked with the longest time that the lease allows."""
    longest: list[float] = []

    def remembered_s(timeout_s: float) -> float:
        longest.append(timeout_s)
        return 0.0

    async def main() -> None:
        kernel = Kernel(remembered_s=remembered_s)
        await kernel.create(b"file")
        kernel.vfs.lease = 0.75
        answer = await kernel.ask(k.LOOKUP, ROOT, b"file\0")
        assert longest[-1] == 0.75
        _, _, entry_s, attr_s, entry_ns, attr_ns = answer.unpack("QQQQII")
        assert (entry_s, attr_s, entry_ns, attr_ns) == (0, 0, 0, 0)

    asyncio.run(main())


def test_an_interrupted_change_runs_to_its_end_unseen() -> None:
    """The program gets EINTR, the publication goes on, and what nobody got is closed again. What
    the kernel knows of names may be wrong then, and is forgotten."""

    async def main() -> None:
        vfs = _SlowVfs()
        unheard: list[None] = []
        kernel = Kernel(vfs, unheard=lambda: unheard.append(None))
        created = await kernel.create(b"file")
        before = vfs.open_handles
        flush = kernel.send(k.FLUSH, created.nodeid, struct.pack("=QIIQ", created.fh, 0, 0, 0))
        opening = kernel.send(k.OPEN, created.nodeid, struct.pack("=II", os.O_RDONLY, 0))
        await settle()
        for unique in (flush, opening):
            kernel.interrupt(unique)
        await kernel.wait_answers(3)
        assert [a.error for a in kernel.answers[1:]] == [errno.EINTR, errno.EINTR]
        vfs.go.set()
        await kernel.dispatcher.stop()
        assert vfs.finished == 2
        assert len(unheard) == 2
        assert vfs.open_handles == before
        assert len(kernel.answers) == 3

    asyncio.run(main())


def test_stop_ends_waiters_and_lets_changes_finish() -> None:
    """At the end of a mount no lock waiter holds it up, and no publication is cut short."""

    async def main() -> None:
        vfs = _SlowVfs()
        kernel = Kernel(vfs)
        created = await kernel.create(b"file")
        ino, fh = created.nodeid, created.fh
        await kernel.ask(k.SETLK, ino, lock_in(fh, 1, fcntl.F_WRLCK))
        waiting = kernel.send(k.SETLKW, ino, lock_in(fh, 2, fcntl.F_WRLCK))
        flush = kernel.send(k.FLUSH, ino, struct.pack("=QIIQ", fh, 0, 0, 0))
        stopping = asyncio.create_task(kernel.dispatcher.stop())
        await settle()
        assert not stopping.done()
        vfs.go.set()
        await stopping
        assert [getattr(kernel.answer_to(u), "error", None) for u in (waiting, flush)] == [
            errno.EINTR,
            0,
        ]

    asyncio.run(main())


# --- what the kernel may keep ---------------------------------------------------------------------

KEEP_CACHE, NOFLUSH = 2, 32


def test_pages_are_kept_only_if_they_show_the_opened_version() -> None:
    """The first open drops pages, the next of the same version keeps them, a change drops them."""

    async def scenario(kernel: Kernel) -> None:
        created = await kernel.create(b"file")
        ino = created.nodeid
        await kernel.write(ino, created.fh, 0, b"one")
        await kernel.flush(ino, created.fh)
        await kernel.release(ino, created.fh)

        async def keeps() -> bool:
            opened = await kernel.open(ino)
            await kernel.release(ino, opened.fh)
            return bool(opened.open_flags & KEEP_CACHE)

        assert await keeps()  # what was written went through the pages
        kernel.vfs.change_elsewhere(b"file", b"two")
        kernel.dispatcher.pages.changed(Ino(ino))
        assert not await keeps()
        assert await keeps()

    run(scenario)


def test_flush_is_asked_of_writers_only() -> None:
    """close(2) of a writer must publish before it returns; a reader has nothing to publish."""

    async def scenario(kernel: Kernel) -> None:
        created = await kernel.create(b"file")
        assert not created.open_flags & NOFLUSH
        for flags in (os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_APPEND):
            assert not (await kernel.open(created.nodeid, flags)).open_flags & NOFLUSH
        assert (await kernel.open(created.nodeid, os.O_RDONLY)).open_flags & NOFLUSH

    run(scenario)


class _ForgetfulVfs(MemoryVfs):
    """Knows an old attribute until a file is opened, as a vfs that missed a push does."""

    def __init__(self) -> None:
        super().__init__()
        self.old: Attr | None = None

    def getattr_nowait(self, ino: Ino) -> Attr | None:
        return self.old if self.old is not None else super().getattr_nowait(ino)

    def open_nowait(self, caller: Any, ino: Ino, flags: int) -> int | None:
        return None

    async def open(self, caller: Any, ino: Ino, flags: int) -> int:
        self.old = None
        return await super().open(caller, ino, flags)


def test_an_open_that_finds_a_newer_file_makes_the_kernel_ask_for_its_size() -> None:
    """Without it, reads of the new version would end at the size of the old one."""

    async def main() -> None:
        vfs = _ForgetfulVfs()
        kernel = Kernel(vfs)
        created = await kernel.create(b"file")
        await kernel.open(created.nodeid)
        assert kernel.forgotten == []
        vfs.old = await vfs.getattr(Ino(created.nodeid))
        vfs.change_elsewhere(b"file", b"longer than before")
        await kernel.open(created.nodeid)
        assert kernel.forgotten == [created.nodeid]

    asyncio.run(main())


@pytest.mark.parametrize("cached", [True, False], ids=["known", "asked for"])
def test_an_open_that_nobody_waits_for_is_closed(cached: bool) -> None:
    """Its program was killed meanwhile: no handle is left, whichever way the answer was found."""

    async def main() -> None:
        kernel = Kernel()
        created = await kernel.create(b"file")
        kernel.vfs.cached = cached
        before = kernel.vfs.open_handles
        kernel.takes = False
        kernel.send(k.OPEN, created.nodeid, struct.pack("=II", os.O_RDONLY, 0))
        await kernel.dispatcher.stop()
        assert kernel.vfs.open_handles == before

    asyncio.run(main())


class _QuickVfs(MemoryVfs):
    def unlink_nowait(self, caller: Caller, parent: Ino, name: bytes) -> bool:
        return True


@pytest.mark.parametrize("vfs", [MemoryVfs, _QuickVfs], ids=["asked for", "at once"])
def test_of_a_change_that_nobody_waits_for_the_kernel_does_not_know(vfs: type[MemoryVfs]) -> None:
    async def main() -> None:
        unheard: list[None] = []
        kernel = Kernel(vfs(), unheard=lambda: unheard.append(None))
        for name in (b"seen", b"unseen"):
            await kernel.create(name)
        assert (await kernel.ask(k.UNLINK, ROOT, b"seen\0")).error == 0
        assert not unheard
        kernel.takes = False
        kernel.send(k.UNLINK, ROOT, b"unseen\0")
        await kernel.dispatcher.stop()
        assert len(unheard) == 1

    asyncio.run(main())


# --- anything at all ------------------------------------------------------------------------------

OPCODES = [*sorted(dispatch.Dispatcher.OPERATIONS), k.FORGET, k.BATCH_FORGET, k.INTERRUPT, 99]


async def _swallow(requests: Sequence[bytes]) -> None:
    kernel = Kernel()
    created = await kernel.create(b"f")
    await kernel.ask(k.MKDIR, ROOT, struct.pack("=II", 0o755, 0) + b"d\0")
    assert created.nodeid == 2
    kernel.answers.clear()
    uniques = []
    for request in requests:
        kernel.deliver(request)
        uniques.append(struct.unpack_from("=Q", request, 8)[0] if len(request) >= 40 else None)
    await kernel.dispatcher.stop()
    answered = [answer.unique for answer in kernel.answers]
    for unique, request in zip(uniques, requests, strict=True):
        if unique is None or struct.unpack_from("=I", request)[0] != len(request):
            continue
        opcode = struct.unpack_from("=I", request, 4)[0]
        silent = opcode in (k.FORGET, k.BATCH_FORGET, k.INTERRUPT)
        if uniques.count(unique) == 1:
            assert answered.count(unique) == (0 if silent else 1), opcode


@pytest.mark.expects_log("dropped a message")
@settings(deadline=None, max_examples=200)
@given(st.lists(st.binary(max_size=200), max_size=5))
def test_garbage_is_dropped(requests: list[bytes]) -> None:
    """Bytes that are no request at all raise nothing."""
    asyncio.run(_swallow(requests))


_INO = st.one_of(st.integers(0, 4), st.integers(0, (1 << 64) - 1))
_BODY = st.one_of(
    st.binary(max_size=120),
    # Small numbers in every field, so that handles, offsets and names are often valid.
    st.tuples(
        st.lists(st.integers(0, 70), max_size=14), st.sampled_from([b"", b"f\0", b"f\0d\0", b"d"])
    ).map(lambda t: b"".join(struct.pack("=I", n) for n in t[0]) + t[1]),
)


@pytest.mark.expects_log("refused a request")
@settings(deadline=None, max_examples=600)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(OPCODES), _INO, st.integers(1, 1 << 40), _BODY, st.integers(0, 3)
        ),
        min_size=1,
        max_size=6,
    )
)
def test_every_well_framed_request_is_answered_once(
    requests: list[tuple[int, int, int, bytes, int]],
) -> None:
    """Any body under any opcode gets one answer, an error or not, and crashes no handler."""
    asyncio.run(
        _swallow(
            [
                struct.pack(
                    "=IIQQIIIHH", 40 + len(body), opcode, unique * 2, ino, 0, 0, 1, extensions, 0
                )
                + body
                for opcode, ino, unique, body, extensions in requests
            ]
        )
    )
