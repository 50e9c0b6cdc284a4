"""Directories that are delegated to a mount: what it does by itself, and that nobody can tell.

Two mounts of one node, in this process; tests/mount/test_two_nodes.py has two on two nodes.
"""

from __future__ import annotations

import asyncio
import errno
import os
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, TypeVar

import pytest

from pydi_fs.vfs import delegations as delegations_module
from pydi_fs.vfs import holds
from pydi_fs.vfs.core import VfsConfig
from pydi_fs.vfs.journalling import RESENT, KeptJournal
from pydi_fs.vfs.occasions import Occasions
from pydi_fs.vfs.vfs import Vfs
from pydi_node import portable
from pydi_node.commands import (
    INODES_RESERVED,
    ROOT_CALLER,
    TIME_NOW,
    XATTR_CREATE,
    Caller,
    Command,
)
from pydi_node.errors import FileError, PydiError
from pydi_node.ids import ROOT_INO, ClientId, Ino
from pydi_node.records import ACCESS_ACL_XATTR, Attr, Result
from pydi_node.tree import acl
from pydi_node.wire.messages import GetAttr, GetFile, GetXattr, IndexAt, Lookup
from tests.harness.procs import NodeProcess
from tests.node.test_holds import Mount, WatchedClient
from tests.unit.tree.driver import file_error

DEADLINE_S = 30.0
NEVER_S = 3600.0


class DelegatingMount(Mount):
    """Has directories delegated to itself. ``at`` is one of them, new and empty."""

    at: Ino

    def config(self, staging: Path) -> VfsConfig:
        return VfsConfig(staging, delegates=True)

    async def __aenter__(self) -> Self:
        await super().__aenter__()
        await eventually(lambda: self.client.lease_s() > 0)  # without one it asks for nothing
        return self

    async def wait_delegated(self, directory: Ino) -> None:
        await eventually(lambda: self.vfs._delegations.is_complete(directory))
        await self.vfs.getattr(directory)  # the kernel asks for it before each create
        self.client.sent.clear()

    def changed_nothing_lately(self) -> None:
        """So that the next change of a name asks for no directory."""
        self.vfs._delegations.occasions = Occasions()

    async def begin(self, name: bytes, flags: int = 0, mode: int = 0o644) -> tuple[Ino, int]:
        """A new file that stays open, pending here."""
        flags |= os.O_RDWR | os.O_EXCL
        attr, fh = await self.vfs.create(ROOT_CALLER, self.at, name, mode, flags)
        assert attr.ino in self.vfs._delegations.pending
        return attr.ino, fh

    async def end(self, fh: int) -> None:
        """close(2)."""
        try:
            await self.vfs.flush(fh)
        finally:
            await self.vfs.release(fh)

    async def names(self, directory: Ino) -> list[bytes]:
        fh = await self.vfs.opendir(directory)
        try:
            return [entry.name for entry in await self.vfs.readdir(fh, 0, 1000)]
        finally:
            await self.vfs.releasedir(fh)

    async def content(self, ino: Ino) -> bytes:
        fh = await self.vfs.open(ROOT_CALLER, ino, os.O_RDONLY)
        try:
            return await self.vfs.read(fh, 0, 10_000)
        finally:
            await self.vfs.release(fh)

    def is_pending(self, ino: Ino) -> bool:
        return ino in self.vfs._delegations.pending

    @contextmanager
    def failing(self, kind: type[Command], error: PydiError) -> Iterator[None]:
        """Commands of this kind do not leave, and end with the error."""
        execute = self.client.execute

        async def fails(command: Command, *arguments: Any, **options: Any) -> Any:
            if isinstance(command, kind):
                raise error
            return await execute(command, *arguments, **options)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(self.client, "execute", fails)
            yield


async def eventually(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not is_so():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


@pytest.fixture(autouse=True)
def _nothing_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is pending is settled because somebody needs it, or not at all."""
    monkeypatch.setattr(delegations_module, "SETTLE_AFTER_S", NEVER_S)
    monkeypatch.setattr(holds, "TELL_AFTER_S", NEVER_S)


Holder = TypeVar("Holder", bound=DelegatingMount)
Scenario = Callable[[DelegatingMount, DelegatingMount], Awaitable[None]]


def run(node: NodeProcess, tmp_path: Path, scenario: Scenario) -> None:
    run_with(DelegatingMount, node, tmp_path, scenario)


def run_with(
    holder_class: type[Holder],
    node: NodeProcess,
    tmp_path: Path,
    scenario: Callable[[Holder, DelegatingMount], Awaitable[None]],
) -> None:
    """The first of two mounts is of that class, and has a directory of its own."""

    async def main() -> None:
        async with (
            holder_class(node, tmp_path / "a") as holder,
            DelegatingMount(node, tmp_path / "b") as other,
        ):
            holder.at = (await holder.vfs.mkdir(ROOT_CALLER, ROOT_INO, b"d", 0o755)).ino
            await holder.wait_delegated(holder.at)
            other.at = holder.at
            await scenario(holder, other)

    asyncio.run(main())


def test_a_new_file_is_one_request(node: NodeProcess, tmp_path: Path) -> None:
    """lookup, create, write, close in a directory that this mount made: its content's command."""

    async def scenario(mount: DelegatingMount, _: DelegatingMount) -> None:
        inos = []
        for number in range(20):
            name = b"%d" % number
            with file_error(errno.ENOENT):
                await mount.vfs.lookup(mount.at, name)
            ino, fh = await mount.begin(name)
            await mount.vfs.write(fh, 0, b"content")
            await mount.end(fh)
            inos.append(ino)
        assert Counter(mount.client.sent) == {"ExecutePut": 20}
        for number, ino in enumerate(inos):
            known = await mount.vfs.getattr(ino)
            assert await mount.asker.call(Lookup(mount.at, b"%d" % number)) == known
            assert (await mount.asker.call(GetFile(ino))).contents[0][1] == b"content"

    run(node, tmp_path, scenario)


def test_reserved_numbers_do_not_run_out(node: NodeProcess, tmp_path: Path) -> None:
    """More files than one reservation has numbers, all different, and all made here."""

    async def scenario(mount: DelegatingMount, _: DelegatingMount) -> None:
        inos = set()
        for number in range(200):
            ino, fh = await mount.begin(b"%d" % number)
            inos.add(ino)
            await mount.end(fh)
        assert len(inos) == 200
        assert Counter(mount.client.sent)["Execute"] <= 200 + 8

    run(node, tmp_path, scenario)


def test_what_is_pending_has_its_attributes(node: NodeProcess, tmp_path: Path) -> None:
    """Owner, group, mode and size as the cluster will have them, and the directory's times move."""

    async def scenario(mount: DelegatingMount, _: DelegatingMount) -> None:
        await mount.vfs.setattr(ROOT_CALLER, mount.at, mode=0o2775, gid=77)
        before = await mount.vfs.getattr(mount.at)
        mount.client.sent.clear()
        caller = Caller(1000, 1000)
        attr, fh = await mount.vfs.create(caller, mount.at, b"f", 0o640, os.O_WRONLY | os.O_EXCL)
        assert mount.is_pending(attr.ino)
        await mount.vfs.write(fh, 0, b"content")
        assert (await mount.vfs.lookup(mount.at, b"f")).ino == attr.ino
        shown = await mount.vfs.getattr(attr.ino)
        parent = await mount.vfs.getattr(mount.at)
        assert not mount.client.sent
        assert parent.mtime_ns > before.mtime_ns
        assert parent.ctime_ns > before.ctime_ns
        await mount.end(fh)
        kept = await mount.asker.call(GetAttr(attr.ino))
        same = ("ino", "mode", "nlink", "uid", "gid", "rdev", "size", "allocated", "mtime_ns")
        assert [getattr(shown, name) for name in same] == [getattr(kept, name) for name in same]
        assert (kept.uid, kept.gid, kept.mode & 0o7777) == (1000, 77, 0o640)

    run(node, tmp_path, scenario)


def test_mode_and_times_are_part_of_the_one_command(node: NodeProcess, tmp_path: Path) -> None:
    """tar and cp -p: write, fchmod, futimens, close. touch: create, utimensat of now, close."""

    async def scenario(mount: DelegatingMount, _: DelegatingMount) -> None:
        ino, fh = await mount.begin(b"tar")
        await mount.vfs.write(fh, 0, b"content")
        await mount.vfs.setattr(ROOT_CALLER, ino, atime_ns=54321, mtime_ns=12345, fh=fh)
        await mount.vfs.setattr(ROOT_CALLER, ino, uid=0, gid=0, fh=fh)
        await mount.vfs.setattr(ROOT_CALLER, ino, mode=0o600, fh=fh)
        await mount.end(fh)
        touched, fh = await mount.begin(b"touch")
        now = TIME_NOW
        shown = await mount.vfs.setattr(ROOT_CALLER, touched, atime_ns=now, mtime_ns=now, fh=fh)
        await mount.end(fh)
        assert Counter(mount.client.sent) == {"ExecutePut": 1, "Execute": 1}
        kept = await mount.asker.call(GetAttr(ino))
        assert (kept.atime_ns, kept.mtime_ns) == (54321, 12345)
        assert (kept.mode & 0o7777, kept.size) == (0o600, 7)
        assert (await mount.asker.call(GetAttr(touched))).mtime_ns == shown.mtime_ns

    run(node, tmp_path, scenario)


def test_an_access_list_that_is_a_mode_is_part_of_the_one_command(
    node: NodeProcess, tmp_path: Path
) -> None:
    """cp -a: a list of owner, group and others for each file. One that says more is a list."""

    async def scenario(mount: DelegatingMount, _: DelegatingMount) -> None:
        plain = acl.pack(tuple(acl.AclEntry(*entry, 0) for entry in ((1, 7), (4, 4), (32, 1))))
        named = acl.pack(
            tuple(acl.AclEntry(*entry) for entry in (
                (1, 7, 0), (2, 6, 1000), (4, 4, 0), (16, 6, 0), (32, 1, 0)
            ))
        )  # fmt: skip
        ino, fh = await mount.begin(b"plain")
        await mount.vfs.write(fh, 0, b"content")
        with file_error(errno.EPERM):
            await mount.vfs.setxattr(Caller(1000, 1000, ()), ino, ACCESS_ACL_XATTR, plain, 0)
        assert not mount.is_pending(ino)  # the cluster says so
        await mount.end(fh)
        mount.client.sent.clear()
        ino, fh = await mount.begin(b"copy", mode=0o600)
        await mount.vfs.write(fh, 0, b"content")
        await mount.vfs.setxattr(ROOT_CALLER, ino, ACCESS_ACL_XATTR, plain, 0)
        assert (await mount.vfs.getattr(ino)).mode & 0o7777 == 0o741
        assert await mount.vfs.listxattr(ROOT_CALLER, ino) == []
        await mount.end(fh)
        assert Counter(mount.client.sent) == {"ExecutePut": 1}
        assert (await mount.asker.call(GetAttr(ino))).mode & 0o7777 == 0o741
        ino, fh = await mount.begin(b"list")
        await mount.vfs.setxattr(ROOT_CALLER, ino, ACCESS_ACL_XATTR, named, 0)
        await mount.end(fh)
        assert await mount.asker.call(GetXattr(ino, ACCESS_ACL_XATTR)) == named

    run(node, tmp_path, scenario)


def test_large_content_is_told_as_ever(node: NodeProcess, tmp_path: Path) -> None:
    """More than one command takes: the file is made first, then its content published."""

    async def scenario(mount: DelegatingMount, _: DelegatingMount) -> None:
        content = os.urandom(3 << 20)
        ino, fh = await mount.begin(b"large")
        for start in range(0, len(content), 1 << 20):
            await mount.vfs.write(fh, start, content[start : start + (1 << 20)])
        await mount.end(fh)
        fh = await mount.vfs.open(ROOT_CALLER, ino, os.O_RDONLY)
        assert await mount.vfs.read(fh, 0, len(content)) == content
        await mount.vfs.release(fh)

    run(node, tmp_path, scenario)


def test_what_is_written_after_fsync_is_published_as_ever(
    node: NodeProcess, tmp_path: Path
) -> None:
    async def scenario(mount: DelegatingMount, _: DelegatingMount) -> None:
        ino, fh = await mount.begin(b"f", os.O_APPEND)
        await mount.vfs.write(fh, 0, b"one ")
        await mount.vfs.fsync(fh)
        await mount.vfs.write(fh, 0, b"two")
        await mount.end(fh)
        assert Counter(mount.client.sent) == {"ExecutePut": 2}
        fh = await mount.vfs.open(ROOT_CALLER, ino, os.O_RDONLY)
        assert await mount.vfs.read(fh, 0, 100) == b"one two"
        await mount.vfs.release(fh)

    run(node, tmp_path, scenario)


@dataclass
class Step:
    """Something that is done with a pending file, or beside it."""

    vfs: Vfs
    at: Ino
    ino: Ino
    fh: int
    other: Ino = field(default=Ino(0))


async def _open(s: Step) -> None:
    await s.vfs.release(await s.vfs.open(ROOT_CALLER, s.ino, os.O_RDONLY))


async def _open_by_name(s: Step) -> None:
    attr, fh = await s.vfs.create(ROOT_CALLER, s.at, b"f", 0o644, os.O_RDWR)
    assert attr.ino == s.ino
    await s.vfs.release(fh)


async def _create_again(s: Step) -> None:
    with file_error(errno.EEXIST):
        await s.vfs.create(ROOT_CALLER, s.at, b"f", 0o644, os.O_RDWR | os.O_EXCL)


async def _mkdir_again(s: Step) -> None:
    with file_error(errno.EEXIST):
        await s.vfs.mkdir(ROOT_CALLER, s.at, b"f", 0o755)


async def _rmdir(s: Step) -> None:
    with file_error(errno.ENOTEMPTY):
        await s.vfs.rmdir(ROOT_CALLER, ROOT_INO, b"d")


async def _list(s: Step) -> None:
    fh = await s.vfs.opendir(s.at)
    assert [entry.name for entry in await s.vfs.readdir(fh, 0, 10)] == [b"f"]
    await s.vfs.releasedir(fh)


async def _lock(s: Step) -> None:
    await s.vfs.setlk(s.fh, 1, portable.F_WRLCK, 0, 10, 1, wait=False)


async def _clone(s: Step) -> None:
    _, fh = await s.vfs.create(ROOT_CALLER, s.at, b"copy", 0o644, os.O_RDWR | os.O_EXCL)
    await s.vfs.write(s.fh, 0, b"content")
    assert await s.vfs.copy_file_range(s.fh, 0, fh, 0, 7) == 7
    assert await s.vfs.read(fh, 0, 10) == b"content"
    await s.vfs.release(fh)


STEPS: dict[str, Callable[[Step], Awaitable[Any]]] = {
    "open": _open,
    "open by name": _open_by_name,
    "create again": _create_again,
    "mkdir of its name": _mkdir_again,
    "rmdir of its directory": _rmdir,
    "readdir": _list,
    "lock": _lock,
    "copy_file_range": _clone,
    "link": lambda s: s.vfs.link(ROOT_CALLER, s.ino, s.at, b"g"),
    "unlink": lambda s: s.vfs.unlink(ROOT_CALLER, s.at, b"f"),
    "rename": lambda s: s.vfs.rename(ROOT_CALLER, s.at, b"f", ROOT_INO, b"g", 0),
    "rename of its directory": lambda s: s.vfs.rename(
        ROOT_CALLER, ROOT_INO, b"d", ROOT_INO, b"e", 0
    ),
    "chmod with set-user-id": lambda s: s.vfs.setattr(ROOT_CALLER, s.ino, mode=0o4755),
    "chown": lambda s: s.vfs.setattr(ROOT_CALLER, s.ino, uid=5),
    "truncate": lambda s: s.vfs.setattr(ROOT_CALLER, s.ino, size=100),
    "setxattr": lambda s: s.vfs.setxattr(ROOT_CALLER, s.ino, b"user.a", b"b", XATTR_CREATE),
    "chmod of its directory": lambda s: s.vfs.setattr(ROOT_CALLER, s.at, mode=0o700),
    "setxattr of its directory": lambda s: s.vfs.setxattr(ROOT_CALLER, s.at, b"user.a", b"b", 0),
    "fsync of its directory": lambda s: s.vfs.fsyncdir(s.at),
    "fsync": lambda s: s.vfs.fsync(s.fh),
}


@pytest.mark.parametrize("name", STEPS)
def test_what_needs_a_pending_file_in_the_cluster_finds_it_there(
    node: NodeProcess, tmp_path: Path, name: str
) -> None:
    """Each kind of request about it, its name or its directory: settled first, with its number."""

    async def scenario(mount: DelegatingMount, _: DelegatingMount) -> None:
        ino, fh = await mount.begin(b"f")
        mount.changed_nothing_lately()
        await STEPS[name](Step(mount.vfs, mount.at, ino, fh))
        assert not mount.is_pending(ino)
        attr: Attr = await mount.asker.call(GetAttr(ino))
        assert attr.is_regular
        await mount.vfs.write(fh, 0, b"CONTENT")
        await mount.end(fh)
        assert (await mount.asker.call(GetFile(ino))).contents[0][1][:7] == b"CONTENT"

    run(node, tmp_path, scenario)


def test_a_rename_publishes_first_what_was_written(node: NodeProcess, tmp_path: Path) -> None:
    """Save-by-rename without fsync: the new name never shows less than was written."""

    async def scenario(holder: DelegatingMount, other: DelegatingMount) -> None:
        ino, fh = await holder.begin(b"f.tmp")
        await holder.vfs.write(fh, 0, b"content")
        await holder.vfs.rename(ROOT_CALLER, holder.at, b"f.tmp", holder.at, b"f", 0)
        assert (await other.vfs.lookup(other.at, b"f")).ino == ino
        assert await other.content(ino) == b"content"
        await holder.end(fh)

    run(node, tmp_path, scenario)


async def _sees_it_by_lookup(other: DelegatingMount, ino: Ino) -> None:
    assert (await other.vfs.lookup(other.at, b"f")).ino == ino


async def _sees_it_by_readdir(other: DelegatingMount, ino: Ino) -> None:
    assert await other.names(other.at) == [b"f"]


async def _sees_it_by_create(other: DelegatingMount, ino: Ino) -> None:
    with file_error(errno.EEXIST):
        await other.vfs.create(ROOT_CALLER, other.at, b"f", 0o644, os.O_WRONLY | os.O_EXCL)


async def _sees_it_by_open(other: DelegatingMount, ino: Ino) -> None:
    attr, fh = await other.vfs.create(ROOT_CALLER, other.at, b"f", 0o644, os.O_RDWR)
    assert attr.ino == ino
    await other.vfs.release(fh)


async def _sees_it_by_rmdir(other: DelegatingMount, ino: Ino) -> None:
    with file_error(errno.ENOTEMPTY):
        await other.vfs.rmdir(ROOT_CALLER, ROOT_INO, b"d")


@pytest.mark.parametrize(
    "sees_it",
    [_sees_it_by_lookup, _sees_it_by_readdir, _sees_it_by_create, _sees_it_by_open,
     _sees_it_by_rmdir],
)  # fmt: skip
@pytest.mark.parametrize("knew", [False, True], ids=["never seen", "known to be empty"])
def test_another_mount_sees_at_once_what_is_pending_here(
    node: NodeProcess,
    tmp_path: Path,
    sees_it: Callable[[DelegatingMount, Ino], Awaitable[None]],
    knew: bool,
) -> None:
    """The file is open and unwritten. What the other mount knew of the directory is no excuse."""

    async def scenario(holder: DelegatingMount, other: DelegatingMount) -> None:
        if knew:
            # It looks, which takes the directory away; and then it is delegated again.
            with file_error(errno.ENOENT):
                await other.vfs.lookup(other.at, b"f")
            holder.vfs._delegations.occasions.not_before.clear()
            for number in range(3):
                name = b"tmp%d" % number
                _, fh = await holder.vfs.create(ROOT_CALLER, holder.at, name, 0o644, os.O_WRONLY)
                await holder.end(fh)
                await holder.vfs.unlink(ROOT_CALLER, holder.at, name)
            await holder.wait_delegated(holder.at)
        ino, fh = await holder.begin(b"f")
        await sees_it(other, ino)
        assert not holder.is_pending(ino)
        await holder.vfs.write(fh, 0, b"content")
        await holder.end(fh)
        assert (await other.vfs.getattr(ino)).size == 7
        # And now the directory is everybody's.
        await other.vfs.unlink(ROOT_CALLER, other.at, b"f")
        with file_error(errno.ENOENT):
            await holder.vfs.lookup(holder.at, b"f")

    run(node, tmp_path, scenario)


def test_a_directory_is_given_back_when_all_has_been_answered(
    node: NodeProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Commands of one connection may swap places in the log: one that gives the directory back must
    not come before one that makes a file in it, for then somebody would look in between."""
    events: list[str] = []

    async def scenario(holder: DelegatingMount, other: DelegatingMount) -> None:
        execute = holder.client.execute

        async def watched(
            command: Command, *arguments: Any, arrived: Callable[[Result], Any], **options: Any
        ) -> Any:
            def has_arrived(result: Result) -> Any:
                events.append(f"{type(command).__name__} answered")
                return arrived(result)

            events.append(f"{type(command).__name__} sent")
            return await execute(command, *arguments, arrived=has_arrived, **options)

        monkeypatch.setattr(holder.client, "execute", watched)
        _, fh = await holder.begin(b"f")
        _, closing = await holder.begin(b"g")
        await holder.vfs.write(closing, 0, b"content")
        looking = other.vfs.lookup(other.at, b"f")
        await asyncio.gather(looking, holder.vfs.flush(closing))
        await eventually(lambda: "Undelegate answered" in events)
        given_back = events.index("Undelegate sent")
        assert events[:given_back].count("PutFile answered") == 2
        await holder.vfs.release(closing)
        await holder.end(fh)

    run(node, tmp_path, scenario)


def test_a_directory_that_somebody_else_uses_is_left_alone(
    node: NodeProcess, tmp_path: Path
) -> None:
    """Recalled once, it is not asked for again at the next creates."""

    async def scenario(holder: DelegatingMount, other: DelegatingMount) -> None:
        assert await other.names(other.at) == []
        holder.client.sent.clear()
        for number in range(10):
            _, fh = await holder.vfs.create(
                ROOT_CALLER, holder.at, b"%d" % number, 0o644, os.O_WRONLY | os.O_EXCL
            )
            await holder.end(fh)
        assert holder.client.sent == ["Execute"] * 10

    run(node, tmp_path, scenario)


def test_a_broken_connection_ends_what_was_delegated(node: NodeProcess, tmp_path: Path) -> None:
    """What was pending is told over the next connection, with content that is written meanwhile."""

    async def scenario(holder: DelegatingMount, other: DelegatingMount) -> None:
        ino, fh = await holder.begin(b"f")
        written, fh_written = await holder.begin(b"g")
        await holder.vfs.write(fh_written, 0, b"content")
        assert holder.client._connection is not None
        holder.client._connection.close()
        await eventually(lambda: not holder.vfs._delegations._held)
        assert (await other.vfs.lookup(other.at, b"f")).ino == ino
        await holder.end(fh)
        await holder.end(fh_written)
        assert await other.names(other.at) == [b"f", b"g"]
        assert (await other.asker.call(GetFile(written))).contents[0][1] == b"content"

    run(node, tmp_path, scenario)


@pytest.mark.expects_log(
    r"ino=\d+: not created, its directory was taken back",
    r"ino=\d+: not published at close: Stale file handle",
    r"ino=\d+: content lost, close\(\) had reported the error",
)
def test_a_mount_that_is_silent_loses_the_directory_and_what_was_pending(
    node: NodeProcess, tmp_path: Path
) -> None:
    """Others get their answer without it, and it tells its programs, at close, that it lost."""

    async def scenario(holder: DelegatingMount, other: DelegatingMount) -> None:
        ino, fh = await holder.begin(b"f")
        await holder.vfs.write(fh, 0, b"lost")
        connection = holder.client._connection
        assert connection is not None
        assert connection._transport is not None
        assert connection._watchdog is not None
        connection._watchdog.cancel()  # as if it were stopped
        connection._transport.pause_reading()
        began_s = asyncio.get_running_loop().time()
        attr, mine = await other.vfs.create(
            ROOT_CALLER, other.at, b"f", 0o644, os.O_WRONLY | os.O_EXCL
        )
        assert asyncio.get_running_loop().time() - began_s < 6.0
        assert attr.ino != ino
        await other.vfs.write(mine, 0, b"content")
        await other.end(mine)
        connection._transport.resume_reading()
        with file_error(errno.ESTALE):
            await holder.end(fh)
        assert (await holder.vfs.lookup(holder.at, b"f")).ino == attr.ino

    run(node, tmp_path, scenario)


@pytest.mark.parametrize("way", ["getattr", "lookup"])
def test_attributes_of_a_directory_are_what_its_holder_made_of_them(
    node: NodeProcess, tmp_path: Path, way: str
) -> None:
    """Times and link count, where nobody looks at a name in it: stat(2), fstat(2) of what is open.
    Those of the past are what was told, and take nothing from its holder."""

    async def scenario(holder: DelegatingMount, other: DelegatingMount) -> None:
        before = await holder.vfs.getattr(holder.at)
        await holder.vfs.mkdir(ROOT_CALLER, holder.at, b"sub", 0o755)
        shown = await holder.vfs.getattr(holder.at)
        assert (shown.nlink, shown.mtime_ns) != (before.nlink, before.mtime_ns)
        index = await other.asker.call(IndexAt(time.time_ns()))
        past: Attr = await other.asker.call(GetAttr(holder.at, index))
        assert past.nlink == before.nlink
        assert holder.vfs._delegations.is_complete(holder.at)
        if way == "getattr":
            seen = await other.vfs.getattr(holder.at)
        else:
            seen = await other.vfs.lookup(ROOT_INO, b"d")
        assert (seen.nlink, seen.mtime_ns) == (shown.nlink, shown.mtime_ns)

    run(node, tmp_path, scenario)


def test_of_all_who_create_a_name_exclusively_one_wins(node: NodeProcess, tmp_path: Path) -> None:
    """Both mounts at once, whoever has the directory."""

    async def scenario(holder: DelegatingMount, other: DelegatingMount) -> None:
        holder.vfs._delegations.occasions.not_before = _Forgetful()
        other.vfs._delegations.occasions.not_before = _Forgetful()

        async def take(mount: DelegatingMount, name: bytes) -> int:
            flags = os.O_WRONLY | os.O_EXCL
            try:
                _, fh = await mount.vfs.create(ROOT_CALLER, mount.at, name, 0o644, flags)
            except FileError as exc:
                if exc.errno != errno.EEXIST:
                    raise
                return 0
            await mount.end(fh)
            return 1

        async def take_all(mount: DelegatingMount) -> list[int]:
            return [await take(mount, b"%d" % number) for number in range(60)]

        wins = await asyncio.gather(take_all(holder), take_all(other))
        assert [a + b for a, b in zip(*wins, strict=True)] == [1] * 60

    run(node, tmp_path, scenario)


class _Forgetful(dict[Ino, tuple[float, float]]):
    """Directories are asked for again at once after a recall."""

    def __setitem__(self, key: Ino, value: tuple[float, float]) -> None:
        pass


OPERATIONS = int(os.environ.get("PYDI_DELEGATIONS", "300"))


def test_random_operations_of_both_against_one_model(
    node: NodeProcess, tmp_path: Path, seed: int
) -> None:
    """Files are made, kept open unwritten, closed, renamed and removed by either mount; both show
    after each step what a dict says. The directory goes to and fro between them."""
    rng = random.Random(f"delegations {seed}")
    model: dict[bytes, bytes] = {}
    names = [b"n%d" % number for number in range(5)]
    held: list[tuple[DelegatingMount, int, bytes, bytes]] = []  # open, with what close publishes
    pending = 0

    async def make(mount: DelegatingMount, name: bytes) -> None:
        nonlocal pending
        flags = os.O_RDWR | os.O_EXCL
        if name in model:
            with file_error(errno.EEXIST):
                await mount.vfs.create(ROOT_CALLER, mount.at, name, 0o644, flags)
            return
        attr, fh = await mount.vfs.create(ROOT_CALLER, mount.at, name, 0o644, flags)
        pending += mount.is_pending(attr.ino)
        model[name] = b""
        held.append((mount, fh, name, rng.randbytes(rng.choice((0, 20)))))
        if rng.random() < 0.6:
            await close(mount, name)

    async def close(_: DelegatingMount, name: bytes) -> None:
        for mount, fh, of, content in [entry for entry in held if entry[2] == name]:
            held.remove((mount, fh, of, content))
            if content:
                await mount.vfs.write(fh, 0, content)
                model[name] = content
            await mount.end(fh)

    async def remove(mount: DelegatingMount, name: bytes) -> None:
        await close(mount, name)
        if name not in model:
            with file_error(errno.ENOENT):
                await mount.vfs.unlink(ROOT_CALLER, mount.at, name)
            return
        await mount.vfs.unlink(ROOT_CALLER, mount.at, name)
        del model[name]

    async def rename(mount: DelegatingMount, name: bytes) -> None:
        to = rng.choice(names)
        await close(mount, to)
        if name not in model or name == to:
            return
        if rng.random() < 0.5:
            await close(mount, name)
        await mount.vfs.rename(ROOT_CALLER, mount.at, name, mount.at, to, 0)
        model[to] = model.pop(name)
        held[:] = [(m, fh, to if of == name else of, content) for m, fh, of, content in held]

    async def look(mount: DelegatingMount, name: bytes) -> None:
        if name not in model:
            with file_error(errno.ENOENT):
                await mount.vfs.lookup(mount.at, name)
            return
        attr = await mount.vfs.lookup(mount.at, name)
        assert attr.size == len(model[name])
        assert await mount.content(attr.ino) == model[name]

    async def scenario(holder: DelegatingMount, other: DelegatingMount) -> None:
        for mount in (holder, other):
            mount.vfs._delegations.occasions.not_before = _Forgetful()
        # One mount is at work for a while, and then the other one looks.
        mount = holder
        for _ in range(OPERATIONS):
            mount = rng.choice((holder, other)) if rng.random() < 0.1 else mount
            action = rng.choice((make, make, close, remove, rename))
            await action(mount, rng.choice(names))
            await look(mount, rng.choice(names))
            if rng.random() < 0.05:
                await look(rng.choice((holder, other)), rng.choice(names))
                assert sorted(await other.names(other.at)) == sorted(model)
        for name in names:
            await close(holder, name)
            await look(holder, name)
            await look(other, name)
        assert pending, "nothing was ever made by a mount alone"

    run(node, tmp_path, scenario)


# --- a worker dies, another goes on ---------------------------------------------------------------


class Worker(DelegatingMount):
    """A mount with a journal, or the one that goes on from what an earlier one left there."""

    def __init__(self, node: NodeProcess, staging: Path, logs: tuple[int, int]) -> None:
        self.journal = KeptJournal(logs, lambda name, fd: None, lambda name: None)
        self.before = self.journal.state
        super().__init__(node, staging)
        if self.before is not None and self.before.identity is not None:
            identity = (ClientId(self.before.identity.client), self.before.last_serial)
            self.client = WatchedClient(node, identity)
            self.vfs = Vfs(self.client, self.config(staging))
            self.vfs.restore(self.before, self.stage_files())
        self.client.number = lambda command: self.journal.number(command, self.client.new_serial)
        self.journal.begin(self.vfs.freeze)
        if self.before is None:
            self.journal.identify(self.client.client_id, bytes(16))

    def config(self, staging: Path) -> VfsConfig:
        return VfsConfig(staging, delegates=True, journal=self.journal)

    def stage_files(self) -> dict[int, int]:
        """What the supervisor has of the worker before."""
        return {}

    async def die(self) -> None:
        """As SIGKILL: nothing is said, nothing is written any more."""
        await self.asker.close()
        self.journal._write = lambda record: None  # type: ignore[method-assign]
        self.client._closed = True
        assert self.client._connection is not None
        self.client._connection.close()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        await asyncio.sleep(0.01)


@pytest.fixture
def logs() -> Iterator[tuple[int, int]]:
    fds = (os.memfd_create("a"), os.memfd_create("b"))
    yield fds
    for fd in fds:
        os.close(fd)


@pytest.mark.parametrize("when", ["open", "being closed", "being told of", "compacted"])
def test_a_successor_tells_what_was_pending_and_gives_back_what_was_delegated(
    node: NodeProcess, tmp_path: Path, logs: tuple[int, int], when: str
) -> None:
    """The worker dies with files that only it knows of, or while it tells the node of them: its
    successor finishes them, once, and their handles go on."""
    handles: dict[bytes, tuple[Ino, int]] = {}
    closing: list[asyncio.Task[None]] = []

    async def first() -> None:
        worker = Worker(node, tmp_path / "a", logs)
        await worker.__aenter__()
        worker.at = (await worker.vfs.mkdir(ROOT_CALLER, ROOT_INO, b"d", 0o755)).ino
        await worker.wait_delegated(worker.at)
        for number in range(5):
            name = b"%d" % number
            ino, fh = await worker.begin(name, os.O_APPEND)
            worker.journal.opened(0, fh, ino, os.O_RDWR | os.O_APPEND, ROOT_CALLER, False, False)
            await worker.vfs.write(fh, 0, name * 10)
            handles[name] = (ino, fh)
            if when == "being closed":
                closing.append(asyncio.create_task(worker.vfs.flush(fh)))
            elif when == "being told of":
                worker.vfs._delegations.pending[ino].start()
            elif when == "compacted":
                worker.journal.compact()
        if when.startswith("being"):
            last = worker.vfs._delegations.pending[ino]
            await eventually(lambda: last.sent is not None and last.sent.done())
        await worker.die()

    async def second() -> None:
        worker = Worker(node, tmp_path / "b", logs)
        async with worker, DelegatingMount(node, tmp_path / "c") as other:
            other.at = (await other.vfs.lookup(ROOT_INO, b"d")).ino
            began_s = asyncio.get_running_loop().time()
            assert sorted(await other.names(other.at)) == sorted(handles)
            assert asyncio.get_running_loop().time() - began_s < 2.0, "nobody gave it back"
            for name, (ino, fh) in handles.items():
                assert (await other.vfs.lookup(other.at, name)).ino == ino
                await worker.vfs.write(fh, 0, b"more")
                await worker.end(fh)
                assert await other.content(ino) == name * 10 + b"more"
            assert not worker.vfs._delegations.pending
            # What was reserved and is not used yet is used now.
            left = worker.vfs._delegations.numbers.left
            assert sum(map(len, left)) == INODES_RESERVED - 5

    asyncio.run(first())
    asyncio.run(second())


def test_a_create_that_comes_again_opens_what_it_had_made(
    node: NodeProcess, tmp_path: Path, logs: tuple[int, int]
) -> None:
    """The kernel sends a request again that was not answered: O_EXCL finds no file but its own."""
    made: list[Ino] = []

    async def first() -> None:
        worker = Worker(node, tmp_path / "a", logs)
        await worker.__aenter__()
        worker.at = (await worker.vfs.mkdir(ROOT_CALLER, ROOT_INO, b"d", 0o755)).ino
        await worker.wait_delegated(worker.at)
        worker.journal.enter(4)
        ino, _ = await worker.begin(b"f")
        made.append(ino)
        await worker.die()

    async def second() -> None:
        async with Worker(node, tmp_path / "b", logs) as worker:
            at = (await worker.vfs.lookup(ROOT_INO, b"d")).ino
            worker.journal.enter(4 | RESENT)
            flags = os.O_WRONLY | os.O_EXCL
            attr, fh = await worker.vfs.create(ROOT_CALLER, at, b"f", 0o644, flags)
            assert [attr.ino] == made
            await worker.vfs.write(fh, 0, b"content")
            await worker.end(fh)
            worker.journal.answered(4 | RESENT)
            with file_error(errno.EEXIST):
                await worker.vfs.create(ROOT_CALLER, at, b"f", 0o644, flags)

    asyncio.run(first())
    asyncio.run(second())
