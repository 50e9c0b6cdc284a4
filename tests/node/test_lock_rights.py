"""Locks of files that one mount alone locks: it gives them out by itself, and nobody can tell.

Two mounts of one node, or of two, in this process. The oracle is a table of who holds which byte.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from pydi_fs.client import Client, node_on_this_machine
from pydi_fs.vfs import lock_rights
from pydi_fs.vfs.core import VfsConfig
from pydi_fs.vfs.journalling import KeptJournal
from pydi_fs.vfs.vfs import Vfs
from pydi_node.commands import ROOT_CALLER
from pydi_node.errors import DeadlineError, DisconnectedError, FileError
from pydi_node.ids import INT64_MAX, ROOT_INO, ClientId, Ino
from pydi_node.locks import RIGHTS_OWNER
from pydi_node.wire.messages import LockKind, Role, SetLock
from tests.harness.procs import NodeProcess
from tests.node.test_cluster import start_cluster
from tests.node.test_holds import Mount, WatchedClient
from tests.node.test_pending_creates import DelegatingMount
from tests.node.test_pending_creates import run as run_delegating

DEADLINE_S = 30.0
SHARED, EXCLUSIVE, UNLOCK = fcntl.F_RDLCK, fcntl.F_WRLCK, fcntl.F_UNLCK
PID = 4711


class LockingMount(Mount):
    """Gives out the locks of the file ``ino``, which it has open as ``fh``, where it can."""

    fh: int

    def config(self, staging: Path) -> VfsConfig:
        return VfsConfig(staging, delegates=True)

    async def open(self, ino: Ino) -> None:
        self.fh = await self.vfs.open(ROOT_CALLER, ino, 2)

    async def set(
        self, owner: int, kind: int, start: int = 0, end: int = 9, wait: bool = False
    ) -> bool:
        try:
            await self.vfs.setlk(self.fh, owner, kind, start, end, PID, wait)
        except FileError as exc:
            if exc.errno == errno.EAGAIN:
                return False
            raise
        return True

    async def work(self, owner: int) -> None:
        """As SQLite locks its file for one transaction."""
        for kind, start, end in (
            (SHARED, 5, 5), (SHARED, 10, 20), (UNLOCK, 5, 5), (EXCLUSIVE, 6, 6), (EXCLUSIVE, 5, 5),
            (EXCLUSIVE, 10, 20), (SHARED, 10, 20), (UNLOCK, 5, 6), (UNLOCK, 0, 100),
        ):  # fmt: skip
            assert await self.set(owner, kind, start, end)

    @property
    def is_local(self) -> bool:
        file = self.vfs._locks._files.get(self.vfs.ino_of(self.fh))
        return file is not None and file.is_local and file.turning is None

    async def become_local(self) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while not self.is_local:  # at once, where there is a lease
                await self.work(1)


async def eventually(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not holds():  # noqa: ASYNC110 - what is waited for happens in other processes
            await asyncio.sleep(0.01)


@asynccontextmanager
async def two_mounts(
    nodes: list[NodeProcess], staging: Path
) -> AsyncIterator[tuple[LockingMount, LockingMount]]:
    async with (
        LockingMount(nodes[0], staging / "a") as here,
        LockingMount(nodes[-1], staging / "b") as there,
    ):
        _, here.fh = await here.vfs.create(ROOT_CALLER, ROOT_INO, b"f", 0o600, 2)
        await here.vfs.flush(here.fh)
        await there.open((await there.vfs.lookup(ROOT_INO, b"f")).ino)
        yield here, there


def run(nodes: list[NodeProcess], staging: Path, scenario: Callable[..., Awaitable[None]]) -> None:
    async def all_of_it() -> None:
        async with two_mounts(nodes, staging) as (here, there):
            await scenario(here, there)

    asyncio.run(all_of_it())


def test_who_locks_a_file_alone_asks_nobody(node: NodeProcess, tmp_path: Path) -> None:
    """After its first transaction a database costs no request for a lock, however many there are;
    what is held here is shown, and refused, here."""

    async def scenario(here: LockingMount, there: LockingMount) -> None:
        await here.become_local()
        here.client.sent.clear()
        for _ in range(10):
            await here.work(1)
        assert await here.set(2, EXCLUSIVE, 3, 5)
        assert not await here.set(1, SHARED, 5, 7)
        assert await here.vfs.getlk(here.fh, 1, SHARED, 0, 9, 0) == (EXCLUSIVE, 3, 5, PID)
        assert await here.vfs.getlk(here.fh, 2, SHARED, 0, 9, 7) == (UNLOCK, 0, 9, 7)
        assert "SetLock" not in here.client.sent
        assert "GetLock" not in here.client.sent
        await here.vfs.setlk(here.fh, 3, EXCLUSIVE, 0, INT64_MAX, PID, wait=False, flock=True)
        assert here.client.sent.count("SetLock") == 1, "flock(2) is asked for as ever"

    run([node], tmp_path, scenario)


def test_without_a_lease_nothing_is_given_out(node: NodeProcess, tmp_path: Path) -> None:
    """A node may have taken the right away: the next lock is asked for, and those that are held
    are told first."""

    async def scenario(here: LockingMount, there: LockingMount) -> None:
        await here.become_local()
        assert await here.set(1, SHARED, 0, 4)
        here.client.sent.clear()
        lease_s = here.client.lease_s
        here.client.lease_s = lambda: 0.0  # type: ignore[method-assign]
        assert await here.set(1, SHARED, 5, 9)
        assert here.client.sent == ["SetLock"] * 3
        here.client.lease_s = lease_s  # type: ignore[method-assign]
        await here.set(1, UNLOCK)
        await here.become_local()
        assert await here.set(1, SHARED, 0, 9)
        here.client.lease_s = lambda: 0.0  # type: ignore[method-assign]
        assert await here.vfs.getlk(here.fh, 2, EXCLUSIVE, 0, 9, 0) == (SHARED, 0, 9, PID)
        assert not await there.set(1, EXCLUSIVE, 4, 4)

    run([node], tmp_path, scenario)


def test_somebody_else_sees_what_is_held(node: NodeProcess, tmp_path: Path) -> None:
    """The first question of another mount gets the right back: what a program holds is refused
    there, what nobody holds is granted; a waiter gets it as soon as it is free."""

    async def scenario(here: LockingMount, there: LockingMount) -> None:
        await here.become_local()
        assert await here.set(1, EXCLUSIVE, 0, 4)
        assert await here.set(2, SHARED, 6, 9)
        assert not await there.set(1, SHARED, 4, 5)
        assert not here.is_local
        assert await there.vfs.getlk(there.fh, 1, EXCLUSIVE, 5, 9, 0) == (SHARED, 6, 9, 0)
        assert await there.set(1, SHARED, 5, 9)
        waiting = asyncio.create_task(there.set(2, EXCLUSIVE, 0, 3, wait=True))
        assert not await here.set(2, EXCLUSIVE, 9, 9)
        assert await here.set(1, UNLOCK, 0, 9)
        assert await asyncio.wait_for(waiting, DEADLINE_S)
        assert not await here.set(1, SHARED, 0, 0)

    run([node], tmp_path, scenario)


def test_who_waits_is_served_and_deadlocks_are_told(node: NodeProcess, tmp_path: Path) -> None:
    """A program that has to wait for another one here, or for one there that waits for it."""

    async def scenario(here: LockingMount, there: LockingMount) -> None:
        await here.become_local()
        assert await here.set(1, EXCLUSIVE, 0, 0)
        waiting = asyncio.create_task(here.set(2, EXCLUSIVE, 0, 0, wait=True))
        await eventually(lambda: not here.is_local)
        assert await here.set(1, UNLOCK)
        assert await asyncio.wait_for(waiting, DEADLINE_S)
        await here.set(2, UNLOCK)

        _, other = await here.vfs.create(ROOT_CALLER, ROOT_INO, b"g", 0o600, 2)
        await here.vfs.flush(other)
        far = await there.vfs.open(ROOT_CALLER, here.vfs.ino_of(other), 2)
        here.fh, first = other, here.fh
        await here.become_local()
        assert await here.set(1, EXCLUSIVE)
        assert await there.set(1, EXCLUSIVE)  # of the first file
        here.fh = first
        waiting = asyncio.create_task(here.set(1, EXCLUSIVE, wait=True))
        await eventually(lambda: here.client.sent[-1] == "SetLock")
        await asyncio.sleep(0)
        with pytest.raises(FileError) as caught:
            await there.vfs.setlk(far, 1, EXCLUSIVE, 0, 9, PID, wait=True)
        assert caught.value.errno == errno.EDEADLK
        await there.set(1, UNLOCK)
        assert await asyncio.wait_for(waiting, DEADLINE_S)

    run([node], tmp_path, scenario)


@pytest.mark.parametrize("count", [1, 3])
def test_against_a_table_of_bytes(
    make_node: Callable[..., NodeProcess],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    count: int,
) -> None:
    """Programs of two mounts lock and unlock at random: each answer is that of one table, and both
    mounts have given out locks by themselves again and again. Connections break meanwhile."""
    monkeypatch.setattr(lock_rights, "AGAIN_MIN_S", 0.0)
    monkeypatch.setattr(lock_rights, "AGAIN_MAX_S", 0.0)
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    turned: list[bool] = []

    async def scenario(here: LockingMount, there: LockingMount) -> None:
        held: dict[tuple[int, int], dict[int, bool]] = {}  # who -> byte -> whether exclusively
        mounts = (here, there)
        rounds = 0
        # How soon a mount has its right depends on how busy the machine is.
        while rounds < 60 or min(turned.count(True), turned.count(False)) <= 50:
            rounds += 1
            assert rounds < 1000, turned.count(True)
            # One mount for a while, so that it can have the file for itself.
            which = chance.randrange(2)
            for _ in range(chance.choice((2, 12, 30))):
                who = (which, chance.randrange(1, 4))
                start = chance.randrange(10)
                wanted = range(start, chance.randrange(start, 10) + 1)
                kind = chance.choice((SHARED, EXCLUSIVE, UNLOCK, UNLOCK))
                if chance.random() < 0.3:
                    wanted, kind = range(10), UNLOCK
                in_the_way = kind != UNLOCK and any(
                    byte in wanted and (exclusive or kind == EXCLUSIVE)
                    for other, bytes_held in held.items() if other != who
                    for byte, exclusive in bytes_held.items()
                )  # fmt: skip
                if kind != UNLOCK and chance.random() < 0.3:
                    found = await mounts[which].vfs.getlk(
                        mounts[which].fh, who[1], kind, wanted[0], wanted[-1], 0
                    )
                    assert (found[0] != UNLOCK) == in_the_way
                done = await mounts[which].set(who[1], kind, wanted[0], wanted[-1])
                assert done != in_the_way, (who, kind, wanted, held)
                if done:
                    mine = held.setdefault(who, {})
                    for byte in wanted:
                        mine.pop(byte, None)
                        if kind != UNLOCK:
                            mine[byte] = kind == EXCLUSIVE
                turned.append(mounts[which].is_local)

    run(start_cluster(make_node, count), tmp_path, scenario)


def test_what_is_unlocked_while_the_cluster_is_away_is_not_told(
    node: NodeProcess, tmp_path: Path
) -> None:
    """A program ends while nobody answers for longer than its close waits: once there is an answer
    its lock is nobody's."""

    async def scenario(here: LockingMount, there: LockingMount) -> None:
        await here.become_local()
        assert await here.set(1, EXCLUSIVE, 0, 4)
        assert await here.set(2, EXCLUSIVE, 5, 9)
        file = here.vfs._locks._files[here.vfs.ino_of(here.fh)]
        call, lease_s, deadline_s = here.client.call, here.client.lease_s, here.client.deadline_s

        async def nobody(*_: Any, **__: Any) -> Any:
            raise DisconnectedError("nobody answers")

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(here.client, "call", nobody)
            patch.setattr(here.client, "lease_s", lambda: 0.0)
            here.client.deadline_s = 0.01
            with pytest.raises(DeadlineError):
                await here.set(1, UNLOCK)
            with pytest.raises(DeadlineError):
                await here.set(2, UNLOCK, 5, 6)
        assert (here.client.call, here.client.lease_s) == (call, lease_s)
        here.client.deadline_s = deadline_s
        await eventually(lambda: file.turning is None)
        assert await there.set(1, EXCLUSIVE, 0, 6)
        assert not await there.set(1, EXCLUSIVE, 7, 7)

    run([node], tmp_path, scenario)


def test_answers_that_come_the_other_way_round(node: NodeProcess, tmp_path: Path) -> None:
    """A lock is heard of before the unlocking that made room for it: it is held nevertheless."""

    async def scenario(here: LockingMount, there: LockingMount) -> None:
        locked = asyncio.Event()
        call = here.client.call

        async def late(request: Any, **options: Any) -> Any:
            arrived = options.pop("arrived", lambda answer: answer)
            answer = await call(request, **options)
            if isinstance(request, SetLock) and request.kind is LockKind.UNLOCK:
                unlocked.set()
                await locked.wait()
            else:
                locked.set()
            return arrived(answer)

        unlocked = asyncio.Event()
        assert await here.set(1, EXCLUSIVE, 0, 0)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(here.client, "call", late)
            unlocking = asyncio.create_task(here.set(1, UNLOCK))
            await unlocked.wait()
            assert await here.set(2, EXCLUSIVE, 0, 0)
            assert await unlocking
        for _ in range(2 * lock_rights.ASK_AFTER):
            assert await here.set(1, EXCLUSIVE, 1, 1)
            assert await here.set(1, UNLOCK, 1, 1)
        assert not await here.set(1, EXCLUSIVE, 0, 0)

    run([node], tmp_path, scenario)


def test_a_file_that_is_closed_is_given_back(node: NodeProcess, tmp_path: Path) -> None:
    """Nothing is left at the node: the next mount need not wait."""

    async def scenario(here: LockingMount, there: LockingMount) -> None:
        await here.become_local()
        await here.vfs.release(here.fh)
        await eventually(lambda: not here.vfs._locks._files)
        there.client.sent.clear()
        assert await there.set(1, EXCLUSIVE)
        assert here.client.sent[-1] == "SetLock"

    run([node], tmp_path, scenario)


def test_locks_move_to_another_node_with_their_mount(
    make_node: Callable[..., NodeProcess], tmp_path: Path
) -> None:
    """The node that a mount is connected to is killed: what programs held is held through the next
    one, and the mount gives out locks again."""
    nodes = start_cluster(make_node, 3)
    survivor = next(n for n in nodes if n is not nodes[1])

    async def scenario() -> None:
        async with LockingMount(survivor, tmp_path / "b") as there:
            endpoints = [node_on_this_machine(n.data_dir) for n in (nodes[1], survivor)]
            here = LockingMount(nodes[1], tmp_path / "a")
            Client.__init__(here.client, endpoints, role=Role.MOUNT)
            async with here:
                _, here.fh = await here.vfs.create(ROOT_CALLER, ROOT_INO, b"f", 0o600, 2)
                await here.vfs.flush(here.fh)
                await there.open((await there.vfs.lookup(ROOT_INO, b"f")).ino)
                await here.become_local()
                assert await here.set(1, EXCLUSIVE, 0, 4)
                nodes[1].kill()
                await eventually(lambda: here.client.epoch > 1 and not here.is_local)
                file = here.vfs._locks._files[here.vfs.ino_of(here.fh)]
                await eventually(lambda: file.turning is None)
                assert not await there.set(1, SHARED, 0, 9)
                assert await there.set(1, SHARED, 5, 9)
                assert await here.set(1, UNLOCK)
                assert await there.set(1, EXCLUSIVE, 0, 9)

    asyncio.run(scenario())


def test_directories_that_others_take_over_are_no_locks(node: NodeProcess, tmp_path: Path) -> None:
    """That is told in the same way, and costs every other mount nothing."""

    async def scenario(mount: DelegatingMount, other: DelegatingMount) -> None:
        for name in (b"x", b"y"):
            directory = await mount.vfs.mkdir(ROOT_CALLER, ROOT_INO, name, 0o755)
            await mount.wait_delegated(directory.ino)
            await other.vfs.lookup(ROOT_INO, name)
        assert "SetLock" not in other.client.sent

    run_delegating(node, tmp_path, scenario)


def test_a_killed_mount_gives_back_what_it_had(node: NodeProcess, tmp_path: Path) -> None:
    """A right ends with its session, but not before the lease of a mount that is only cut off."""

    async def scenario(here: LockingMount, there: LockingMount) -> None:
        ino = there.vfs.ino_of(there.fh)
        mute = Client([node_on_this_machine(node.data_dir)], role=Role.MOUNT)
        await mute.connect()
        right = SetLock(ino, RIGHTS_OWNER, LockKind.EXCLUSIVE, 0, INT64_MAX, False, False, 0)
        assert await mute.call(right)
        assert not await there.set(1, SHARED), "it does not answer, and may have given it out"
        began_s = asyncio.get_running_loop().time()
        assert mute._connection is not None
        mute._connection._transport.abort()
        assert await there.set(1, SHARED, wait=True)
        assert asyncio.get_running_loop().time() - began_s > 0.5
        await mute.close()

    run([node], tmp_path, scenario)


class Worker(LockingMount):
    """A mount with a journal, or the one that goes on from what an earlier one left there."""

    def __init__(self, node: NodeProcess, staging: Path, logs: tuple[int, int]) -> None:
        self.journal = KeptJournal(logs, lambda name, fd: None, lambda name: None)
        before = self.journal.state
        super().__init__(node, staging)
        if before is not None and before.identity is not None:
            identity = (ClientId(before.identity.client), before.last_serial)
            self.client = WatchedClient(node, identity)
            self.vfs = Vfs(self.client, self.config(staging))
            self.vfs.restore(before, {})
        self.client.number = lambda command: self.journal.number(command, self.client.new_serial)
        self.journal.begin(self.vfs.freeze)
        if before is None:
            self.journal.identify(self.client.client_id, bytes(16))

    def config(self, staging: Path) -> VfsConfig:
        return VfsConfig(staging, delegates=True, journal=self.journal)


@pytest.mark.parametrize("compacted", [False, True])
def test_a_successor_tells_what_its_worker_gave_out(
    node: NodeProcess, tmp_path: Path, compacted: bool
) -> None:
    """The journal has each lock before its program hears of it, and gives it out no more."""
    logs = (os.memfd_create("a"), os.memfd_create("b"))

    async def first() -> None:
        worker = Worker(node, tmp_path / "a", logs)
        await worker.__aenter__()
        attr, worker.fh = await worker.vfs.create(ROOT_CALLER, ROOT_INO, b"f", 0o600, 2)
        worker.journal.opened(0, worker.fh, attr.ino, 2, ROOT_CALLER, False, False)
        await worker.vfs.flush(worker.fh)
        await worker.become_local()
        assert await worker.set(1, EXCLUSIVE, 0, 4)
        assert await worker.set(1, UNLOCK, 0, 1)
        assert await worker.set(2, SHARED, 6, 6)
        if compacted:
            worker.journal.compact()
        await worker.asker.close()
        worker.journal._write = lambda record: None  # type: ignore[method-assign]
        worker.client._closed = True
        assert worker.client._connection is not None
        worker.client._connection.close()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        await asyncio.sleep(0)

    async def second() -> None:
        async with (
            Worker(node, tmp_path / "b", logs) as worker,
            LockingMount(node, tmp_path / "c") as other,
        ):
            await other.open((await other.vfs.lookup(ROOT_INO, b"f")).ino)
            worker.fh = 1
            (file,) = worker.vfs._locks._files.values()
            await eventually(lambda: file.turning is None)
            assert await other.set(1, EXCLUSIVE, 0, 1)
            for byte in (2, 4, 6):
                assert not await other.set(1, EXCLUSIVE, byte, byte)
            assert await other.set(1, SHARED, 5, 9)
            assert await worker.set(1, UNLOCK)
            assert await other.set(1, EXCLUSIVE, 0, 5)

    asyncio.run(first())
    asyncio.run(second())
    for fd in logs:
        os.close(fd)
