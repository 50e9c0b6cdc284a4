"""Changes of names that a mount makes by itself in directories that are delegated to it: what they
cost, that they are told in order, and that nobody else can tell.

Two mounts of one node, in this process, as in test_pending_creates.py.
"""

from __future__ import annotations

import asyncio
import errno
import os
import random
import stat
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from pydi_fs.vfs import delegations as delegations_module
from pydi_fs.vfs import holds, queued
from pydi_fs.vfs.journalling import RESENT
from pydi_node.commands import (
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    ROOT_CALLER,
    Batch,
    Caller,
)
from pydi_node.errors import FileError, NoQuorumError
from pydi_node.ids import ROOT_INO, Ino
from pydi_node.records import ACCESS_ACL_XATTR, DEFAULT_ACL_XATTR, Attr, DirEntry
from pydi_node.wire.messages import GetAttr, IndexAt, Lookup, ReadDir
from tests.harness.procs import NodeProcess
from tests.node.test_pending_creates import (
    NEVER_S,
    DelegatingMount,
    Worker,
    _Forgetful,
    eventually,
    logs,
    run,
)
from tests.unit.tree.driver import file_error

__all__ = ["logs"]

OPERATIONS = int(os.environ.get("PYDI_DELEGATIONS", "300"))
USER = Caller(1000, 1000)


@pytest.fixture(autouse=True)
def _nothing_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is queued is told because somebody needs it, or not at all."""
    monkeypatch.setattr(delegations_module, "SETTLE_AFTER_S", NEVER_S)
    monkeypatch.setattr(queued, "TELL_AFTER_S", NEVER_S)
    monkeypatch.setattr(holds, "TELL_AFTER_S", NEVER_S)


async def make(mount: DelegatingMount, name: bytes, at: Ino | None = None) -> Ino:
    """A file with its name for content, closed."""
    flags = os.O_WRONLY | os.O_EXCL
    attr, fh = await mount.vfs.create(ROOT_CALLER, at or mount.at, name, 0o644, flags)
    await mount.vfs.write(fh, 0, name)
    await mount.end(fh)
    return attr.ino


def asked(mount: DelegatingMount) -> list[str]:
    """Requests since the last call, but for numbers: commands by their kind."""
    others = [name for name in mount.client.sent if not name.startswith("Execute")]
    commands = [name for name in mount.client.commands if name != "ReserveInodes"]
    mount.client.sent.clear()
    mount.client.commands.clear()
    return others + commands


def queue(mount: DelegatingMount) -> list[str]:
    return [type(change.command).__name__ for change in mount.vfs._queue._changes]


async def in_cluster(mount: DelegatingMount, directory: Ino) -> dict[bytes, Ino]:
    """Asked by the holder itself, past everything that it knows: nothing is recalled."""
    connection = mount.client._connection
    assert connection is not None
    request = ReadDir(directory, 0, 1000)
    entries: list[DirEntry] = await connection.request(request, b"", 10.0, None, None)
    return {entry.name: entry.attr.ino for entry in entries}


async def do_all(mount: DelegatingMount) -> dict[str, Ino]:
    """One of each kind."""
    vfs, at = mount.vfs, mount.at
    made = {name: await make(mount, name.encode()) for name in ("gone", "old", "replaced")}
    asked(mount)
    await vfs.unlink(ROOT_CALLER, at, b"gone")
    await vfs.rename(ROOT_CALLER, at, b"old", at, b"replaced", 0)
    made["dir"] = (await vfs.mkdir(ROOT_CALLER, at, b"dir", 0o750)).ino
    await vfs.rename(ROOT_CALLER, at, b"replaced", made["dir"], b"new", RENAME_NOREPLACE)
    made["link"] = (await vfs.symlink(ROOT_CALLER, made["dir"], b"link", b"to")).ino
    made["short"] = (await vfs.mkdir(ROOT_CALLER, made["dir"], b"short", 0o755)).ino
    await vfs.rmdir(ROOT_CALLER, made["dir"], b"short")
    await vfs.setattr(ROOT_CALLER, made["link"], mtime_ns=12345)
    return made


def test_changes_are_told_together(node: NodeProcess, tmp_path: Path) -> None:
    """No request for any of them; one command when the directory is synced, and it is all so."""

    async def scenario(mount: DelegatingMount, _: DelegatingMount) -> None:
        made = await do_all(mount)
        assert asked(mount) == []
        before = await in_cluster(mount, mount.at)
        assert before.keys() == {b"gone", b"old", b"replaced"}
        await mount.vfs.fsyncdir(mount.at)
        assert asked(mount) == ["Batch"]
        assert not queue(mount)
        assert await in_cluster(mount, mount.at) == {b"dir": made["dir"]}
        assert await in_cluster(mount, made["dir"]) == {b"new": made["old"], b"link": made["link"]}

    run(node, tmp_path, scenario)


def test_they_are_shown_as_the_cluster_will_have_them(node: NodeProcess, tmp_path: Path) -> None:
    """Before and after: names, kinds, owners, links, sizes; times of directories move."""

    async def shown(mount: DelegatingMount, inos: list[Ino]) -> list[Any]:
        same = ("ino", "mode", "nlink", "uid", "gid", "rdev", "size")
        attrs = [await mount.vfs.getattr(ino) for ino in inos]
        return [[getattr(attr, name) for name in same] for attr in attrs]

    async def scenario(mount: DelegatingMount, _: DelegatingMount) -> None:
        await mount.vfs.setattr(ROOT_CALLER, mount.at, mode=0o2775, gid=77)
        old = await mount.vfs.getattr(mount.at)
        made = await do_all(mount)
        inos = [mount.at, *made.values()]
        before = await shown(mount, inos)
        newest = await mount.vfs.getattr(mount.at)
        assert newest.mtime_ns > old.mtime_ns
        assert newest.ctime_ns > old.ctime_ns
        for name in (b"gone", b"old", b"replaced"):
            with file_error(errno.ENOENT):
                await mount.vfs.lookup(mount.at, name)
        assert (await mount.vfs.lookup(made["dir"], b"new")).ino == made["old"]
        assert asked(mount) == []
        await mount.vfs.fsyncdir(mount.at)
        assert await shown(mount, inos) == before
        kept: list[Attr] = [await mount.asker.call(GetAttr(ino)) for ino in inos]
        assert [[a.ino, a.mode, a.nlink, a.uid, a.gid, a.rdev, a.size] for a in kept] == before
        assert kept[4].gid == 77
        assert stat.S_IMODE(kept[4].mode) == 0o2750

    run(node, tmp_path, scenario)


PLAIN_LIST = bytes.fromhex("0200000001000700ffffffff04000500ffffffff20000000ffffffff")  # 0750


async def in_log(mount: DelegatingMount, ino: Ino) -> Attr:
    """What all that was told has made of it. To ask how it is now would have it given back."""
    index = await mount.asker.call(IndexAt(time.time_ns()))
    attr: Attr = await mount.asker.call(GetAttr(ino, index))
    return attr


async def shape_all(mount: DelegatingMount) -> dict[str, Ino]:
    """rsync: a temporary name, its attributes, its own name. tar, cp -a: also directories' and
    links'."""
    vfs, at = mount.vfs, mount.at
    made = {"file": await make(mount, b".f")}
    asked(mount)
    await vfs.setattr(ROOT_CALLER, made["file"], atime_ns=12, mtime_ns=34)
    await vfs.setattr(ROOT_CALLER, made["file"], uid=1000, gid=100)
    await vfs.setattr(USER, made["file"], mode=0o640)
    await vfs.rename(ROOT_CALLER, at, b".f", at, b"f", 0)
    await vfs.setattr(ROOT_CALLER, made["file"], mode=0o600)
    made["link"] = (await vfs.symlink(ROOT_CALLER, at, b"link", b"to")).ino
    await vfs.setattr(ROOT_CALLER, made["link"], uid=1000, mtime_ns=56)
    made["dir"] = (await vfs.mkdir(ROOT_CALLER, at, b"dir", 0o700)).ino
    await vfs.setattr(ROOT_CALLER, made["dir"], mtime_ns=78)
    await vfs.setxattr(ROOT_CALLER, made["dir"], ACCESS_ACL_XATTR, PLAIN_LIST, 0)
    await vfs.removexattr(ROOT_CALLER, made["dir"], DEFAULT_ACL_XATTR)
    return made


def shapes(attrs: list[Attr]) -> list[tuple[int, ...]]:
    return [(a.uid, a.gid, stat.S_IMODE(a.mode), a.mtime_ns) for a in attrs]


SHAPED = [(1000, 100, 0o600, 34), (1000, 0, 0o777, 56), (0, 0, 0o750, 78)]


def test_attributes_of_what_was_made_here_are_told_together(
    node: NodeProcess, tmp_path: Path
) -> None:
    """No request, shown at once, one command in the end; what is done next builds on it."""

    async def scenario(mount: DelegatingMount, _: DelegatingMount) -> None:
        made = await shape_all(mount)
        assert asked(mount) == []
        shown = [await mount.vfs.getattr(ino) for ino in made.values()]
        assert shapes(shown) == SHAPED
        await mount.vfs.fsyncdir(mount.at)
        assert asked(mount) == ["Batch"]
        assert shapes([await in_log(mount, ino) for ino in made.values()]) == SHAPED
        told = [await mount.vfs.getattr(ino) for ino in made.values()]
        assert [(a.atime_ns, a.ctime_ns) for a in told] == [(a.atime_ns, a.ctime_ns) for a in shown]
        with file_error(errno.EACCES):
            await mount.vfs.mkdir(Caller(1000, 1000, ()), made["dir"], b"x", 0o755)
        await mount.vfs.setattr(ROOT_CALLER, made["dir"], mode=0o777)
        asked(mount)
        await mount.vfs.mkdir(Caller(1000, 1000, ()), made["dir"], b"x", 0o755)
        assert asked(mount) == []

    run(node, tmp_path, scenario)


def test_attributes_are_seen_elsewhere_at_once(node: NodeProcess, tmp_path: Path) -> None:
    """Whoever looks a name up sees what was done here; from then on each change is a command."""

    async def scenario(holder: DelegatingMount, other: DelegatingMount) -> None:
        made = await shape_all(holder)
        assert (await other.vfs.lookup(other.at, b"dir")).ino == made["dir"]
        names = (b"f", b"link", b"dir")
        assert shapes([await other.vfs.lookup(other.at, name) for name in names]) == SHAPED
        for ino in made.values():
            await holder.vfs.setattr(ROOT_CALLER, ino, mtime_ns=90)
            assert (await other.vfs.getattr(ino)).mtime_ns == 90
        assert not queue(holder)

    run(node, tmp_path, scenario)


@pytest.mark.parametrize(
    "by", ["old", "linked", "unlinked", "exchanged", "set-id", "dirty", "not allowed"]
)
def test_attributes_of_what_others_may_know_are_told_at_once(
    node: NodeProcess, tmp_path: Path, by: str
) -> None:
    """What was there before, or has a name elsewhere; and what is not certainly allowed."""

    async def scenario(mount: DelegatingMount, other: DelegatingMount) -> None:
        vfs, at = mount.vfs, mount.at
        caller, outcome = ROOT_CALLER, 0
        ino = await make(mount, b"f")
        fh = await vfs.open(ROOT_CALLER, ino, os.O_RDWR)
        if by == "old":
            await other.vfs.lookup(at, b"f")
            mount.vfs._delegations.occasions.not_before = _Forgetful()
            await make(mount, b"again")
            await make(mount, b"and again")
            await mount.wait_delegated(at)
        elif by == "linked":
            await vfs.link(ROOT_CALLER, ino, ROOT_INO, b"other")
        elif by == "unlinked":
            await vfs.unlink(ROOT_CALLER, at, b"f")
        elif by == "exchanged":
            await make(mount, b"g")
            await vfs.rename(ROOT_CALLER, at, b"f", at, b"g", RENAME_EXCHANGE)
        elif by == "set-id":
            await vfs.setattr(ROOT_CALLER, ino, mode=0o4755)
        elif by == "dirty":
            await vfs.write(fh, 0, b"more")
        else:
            caller, outcome = Caller(1000, 1000, ()), errno.EPERM
        with file_error(outcome) if outcome else nullcontext():
            await vfs.setattr(caller, ino, mode=0o711)
        assert not queue(mount)
        mode = (await mount.asker.call(GetAttr(ino))).mode
        assert stat.S_IMODE(mode) == (0o644 if outcome else 0o711)
        await mount.end(fh)
        if by == "linked":
            await vfs.unlink(ROOT_CALLER, ROOT_INO, b"other")

    run(node, tmp_path, scenario)


def test_a_new_file_comes_after_the_attributes_of_its_neighbours(
    node: NodeProcess, tmp_path: Path
) -> None:
    """What is in the cluster of one directory is a beginning of what was done there."""

    async def scenario(mount: DelegatingMount, _: DelegatingMount) -> None:
        ino = await make(mount, b"secret")
        asked(mount)
        await mount.vfs.setattr(ROOT_CALLER, ino, mode=0o600)
        later = await make(mount, b"announced")
        assert asked(mount) == ["Batch"]
        assert mount.client.parts[-1] == ["SetAttr", "PutFile"]
        assert await in_cluster(mount, mount.at) == {b"secret": ino, b"announced": later}

    run(node, tmp_path, scenario)


def test_what_was_moved_is_read_as_ever(node: NodeProcess, tmp_path: Path) -> None:
    """Under its new name, without that being told first; a link is, and a listing."""

    async def scenario(mount: DelegatingMount, _: DelegatingMount) -> None:
        made = await do_all(mount)
        assert await mount.content(made["old"]) == b"old"
        assert queue(mount)
        assert await mount.vfs.readlink(made["link"]) == b"to"
        assert not queue(mount)
        await mount.vfs.unlink(ROOT_CALLER, made["dir"], b"link")
        assert await mount.names(made["dir"]) == [b"new"]

    run(node, tmp_path, scenario)


def test_times_of_a_directory_are_set_after_the_files_in_it(
    node: NodeProcess, tmp_path: Path
) -> None:
    """A file that was made before, and is told of later, would set them once more."""

    async def scenario(mount: DelegatingMount, _: DelegatingMount) -> None:
        directory = (await mount.vfs.mkdir(ROOT_CALLER, mount.at, b"a", 0o755)).ino
        flags = os.O_WRONLY | os.O_EXCL
        _, fh = await mount.vfs.create(ROOT_CALLER, directory, b"f", 0o644, flags)
        await mount.vfs.write(fh, 0, b"content")
        shown = await mount.vfs.setattr(ROOT_CALLER, directory, mtime_ns=12345)
        assert shown.mtime_ns == 12345
        await mount.end(fh)
        await mount.vfs.fsyncdir(directory)
        for attr in (
            await mount.vfs.getattr(directory),
            await mount.asker.call(GetAttr(directory)),
        ):
            assert attr.mtime_ns == 12345

    run(node, tmp_path, scenario)


def test_a_file_in_a_new_directory_comes_after_it(node: NodeProcess, tmp_path: Path) -> None:
    """tar x: directories and files in them; each file's close is one command, with what is needed
    before it in front."""

    async def scenario(mount: DelegatingMount, _: DelegatingMount) -> None:
        directory = (await mount.vfs.mkdir(ROOT_CALLER, mount.at, b"a", 0o755)).ino
        directory = (await mount.vfs.mkdir(ROOT_CALLER, directory, b"b", 0o755)).ino
        asked(mount)
        ino = await make(mount, b"f", directory)
        assert asked(mount) == ["Batch"]
        assert mount.client.parts[-1] == ["Mkdir", "Mkdir", "PutFile"]
        assert await in_cluster(mount, directory) == {b"f": ino}
        asked(mount)
        await make(mount, b"g", directory)
        assert asked(mount) == ["PutFile"]

    run(node, tmp_path, scenario)


def test_many_are_told_by_themselves(
    node: NodeProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So many at a time, and none is left behind for longer than a moment."""

    async def scenario(mount: DelegatingMount, _: DelegatingMount) -> None:
        for number in range(40):
            await make(mount, b"%d" % number)
        asked(mount)
        for number in range(40):
            await mount.vfs.rename(
                ROOT_CALLER, mount.at, b"%d" % number, mount.at, b"to%d" % number, 0
            )
        for number in range(queued.TOLD_AT_ONCE - 40):
            await mount.vfs.unlink(ROOT_CALLER, mount.at, b"to%d" % number)
        await eventually(lambda: not queue(mount))
        assert asked(mount) == ["Batch"]
        monkeypatch.setattr(queued, "TELL_AFTER_S", 0.01)
        await mount.vfs.unlink(ROOT_CALLER, mount.at, b"to39")
        await eventually(lambda: not queue(mount))
        assert asked(mount) == ["Batch"]

    run(node, tmp_path, scenario)


async def _close(mount: DelegatingMount, fh: int) -> None:
    await mount.vfs.write(fh, 0, b"written")
    await mount.vfs.flush(fh)


async def _fsync(mount: DelegatingMount, fh: int) -> None:
    await mount.vfs.fsync(fh)


@pytest.mark.parametrize("sync", [_close, _fsync])
def test_what_is_synced_takes_along_what_was_done_before(
    node: NodeProcess,
    tmp_path: Path,
    sync: Callable[[DelegatingMount, int], Awaitable[None]],
) -> None:
    """close(2) of a written file, fsync(2) of any file, here one in another directory."""

    async def scenario(mount: DelegatingMount, _: DelegatingMount) -> None:
        await make(mount, b"a")
        _, fh = await mount.vfs.create(ROOT_CALLER, ROOT_INO, b"elsewhere", 0o644, os.O_RDWR)
        await mount.vfs.rename(ROOT_CALLER, mount.at, b"a", mount.at, b"b", 0)
        assert queue(mount) == ["Rename"]
        await sync(mount, fh)
        assert not queue(mount)
        assert (await in_cluster(mount, mount.at)).keys() == {b"b"}
        await mount.vfs.release(fh)
        await mount.vfs.unlink(ROOT_CALLER, ROOT_INO, b"elsewhere")

    run(node, tmp_path, scenario)


def test_a_written_file_is_shown_as_it_is_though_what_came_before_is_not_told(
    node: NodeProcess, tmp_path: Path
) -> None:
    """close(2) says that the cluster does not answer; the content is there all the same."""

    async def scenario(mount: DelegatingMount, _: DelegatingMount) -> None:
        await make(mount, b"a")
        attr, fh = await mount.vfs.create(ROOT_CALLER, ROOT_INO, b"elsewhere", 0o644, os.O_RDWR)
        with mount.failing(Batch, NoQuorumError("too few voters")):
            await mount.vfs.unlink(ROOT_CALLER, mount.at, b"a")
            await mount.vfs.write(fh, 0, b"written")
            with pytest.raises(NoQuorumError):
                await mount.vfs.flush(fh)
            assert (await mount.vfs.getattr(attr.ino)).size == 7
        await mount.vfs.release(fh)
        await mount.vfs.fsyncdir(mount.at)
        await mount.vfs.unlink(ROOT_CALLER, ROOT_INO, b"elsewhere")

    run(node, tmp_path, scenario)


def test_what_is_told_as_ever_comes_after_what_was_done_before(
    node: NodeProcess, tmp_path: Path
) -> None:
    """A command that this mount can't answer by itself finds what it builds on."""

    async def scenario(mount: DelegatingMount, _: DelegatingMount) -> None:
        await make(mount, b"a")
        await make(mount, b"b")
        vfs, at = mount.vfs, mount.at
        await vfs.rename(ROOT_CALLER, at, b"a", at, b"c", 0)
        await vfs.rename(ROOT_CALLER, at, b"b", at, b"c", RENAME_EXCHANGE)
        assert not queue(mount)
        await vfs.unlink(ROOT_CALLER, at, b"b")
        await vfs.mknod(ROOT_CALLER, at, b"b", stat.S_IFIFO | 0o644, 0)
        with file_error(errno.EEXIST):
            await vfs.mkdir(ROOT_CALLER, at, b"b", 0o755)
        with file_error(errno.EISDIR):
            directory = (await vfs.mkdir(ROOT_CALLER, at, b"d", 0o755)).ino
            await vfs.rename(ROOT_CALLER, at, b"c", at, b"d", 0)
        with file_error(errno.ENOTEMPTY):
            await make(mount, b"f", directory)
            await vfs.rmdir(ROOT_CALLER, at, b"d")
        with file_error(errno.ENOENT):
            await vfs.unlink(ROOT_CALLER, at, b"nothing")

    run(node, tmp_path, scenario)


@pytest.mark.parametrize("by", ["sticky", "open", "linked", "list"])
def test_where_more_must_be_known_the_cluster_is_asked(
    node: NodeProcess, tmp_path: Path, by: str
) -> None:
    """A sticky directory and somebody else's file, a file that is open or has another name, a
    directory with a default list: as ever, and with the same outcome."""

    async def scenario(mount: DelegatingMount, _: DelegatingMount) -> None:
        vfs, at = mount.vfs, mount.at
        ino = await make(mount, b"f")
        if by == "sticky":
            await vfs.setattr(ROOT_CALLER, at, mode=0o1777)
            with file_error(errno.EPERM):
                await vfs.unlink(USER, at, b"f")
            with file_error(errno.EPERM):
                await vfs.rename(USER, at, b"f", at, b"g", 0)
        elif by == "open":
            fh = await vfs.open(ROOT_CALLER, ino, os.O_RDONLY)
            await vfs.unlink(ROOT_CALLER, at, b"f")
            assert await vfs.read(fh, 0, 9) == b"f"
            await vfs.release(fh)
        elif by == "linked":
            await vfs.link(ROOT_CALLER, ino, ROOT_INO, b"other")
            await vfs.unlink(ROOT_CALLER, at, b"f")
            assert (await mount.asker.call(Lookup(ROOT_INO, b"other"))).nlink == 1
        else:
            await vfs.setxattr(ROOT_CALLER, at, DEFAULT_ACL_XATTR, PLAIN_LIST, 0)
            attr = await vfs.mkdir(ROOT_CALLER, at, b"d", 0o777, 0o022)
            assert stat.S_IMODE(attr.mode) == 0o750
        assert not queue(mount)

    run(node, tmp_path, scenario)


LOOKS: dict[str, Callable[[DelegatingMount], Awaitable[set[bytes]]]] = {}


def _looks(function: Callable[[DelegatingMount], Awaitable[set[bytes]]]) -> Any:
    LOOKS[function.__name__.strip("_")] = function
    return function


@_looks
async def _lookup(other: DelegatingMount) -> set[bytes]:
    found = set()
    for name in (b"gone", b"old", b"replaced", b"dir"):
        try:
            await other.vfs.lookup(other.at, name)
        except FileError:
            continue
        found.add(name)
    return found


@_looks
async def _readdir(other: DelegatingMount) -> set[bytes]:
    return set(await other.names(other.at))


@_looks
async def _create(other: DelegatingMount) -> set[bytes]:
    _, fh = await other.vfs.create(ROOT_CALLER, other.at, b"gone", 0o644, os.O_WRONLY | os.O_EXCL)
    await other.end(fh)
    await other.vfs.unlink(ROOT_CALLER, other.at, b"gone")
    return set(await other.names(other.at))


@_looks
async def _mkdir(other: DelegatingMount) -> set[bytes]:
    with file_error(errno.EEXIST):
        await other.vfs.mkdir(ROOT_CALLER, other.at, b"dir", 0o755)
    return set(await other.names(other.at))


@pytest.mark.parametrize("look", LOOKS)
def test_another_mount_sees_at_once_what_was_done_here(
    node: NodeProcess, tmp_path: Path, look: str
) -> None:
    """It had seen the directory as it was before; inside the new directory likewise."""

    async def scenario(holder: DelegatingMount, other: DelegatingMount) -> None:
        assert await other.names(ROOT_INO)
        made = await do_all(holder)
        assert await LOOKS[look](other) == {b"dir"}
        assert set(await other.names(made["dir"])) == {b"new", b"link"}
        assert (await other.vfs.lookup(made["dir"], b"new")).ino == made["old"]
        assert await other.content(made["old"]) == b"old"
        await other.vfs.unlink(ROOT_CALLER, made["dir"], b"new")
        with file_error(errno.ENOENT):
            await holder.vfs.lookup(made["dir"], b"new")

    run(node, tmp_path, scenario)


def test_a_recall_amid_many_changes_holds_nobody_up(node: NodeProcess, tmp_path: Path) -> None:
    """The directory is wanted back while one Batch is under way and more is queued behind it: that
    waits for the answer, which waits until the recall is acknowledged, which waits for neither."""

    async def scenario(holder: DelegatingMount, other: DelegatingMount) -> None:
        for number in range(100):
            await make(holder, b"%d" % number)

        async def look() -> float:
            began_s = asyncio.get_running_loop().time()
            await other.vfs.lookup(other.at, b"99")
            return asyncio.get_running_loop().time() - began_s

        looking = asyncio.create_task(look())
        for number in range(99):
            await holder.vfs.unlink(ROOT_CALLER, holder.at, b"%d" % number)
            await asyncio.sleep(0)
        assert await looking < 2.0, "it was revoked, or a lease ran out"
        assert await other.names(other.at) == [b"99"]

    run(node, tmp_path, scenario)


def silence(mount: DelegatingMount) -> Callable[[], None]:
    """As if it were stopped. What is returned lets it go on."""
    connection = mount.client._connection
    assert connection is not None
    assert connection._transport is not None
    assert connection._watchdog is not None
    connection._watchdog.cancel()
    connection._transport.pause_reading()
    return connection._transport.resume_reading


@pytest.mark.expects_log(
    r"unlink of 'f' in ino=\d+ was answered, and is lost: Stale file handle",
    r"mkdir of 'g' in ino=\d+ was answered, and is lost: Stale file handle",
)
def test_a_late_unlink_never_removes_somebody_elses_file(node: NodeProcess, tmp_path: Path) -> None:
    """A mount that is silent for too long loses its directory and what it had not told. What others
    made there since stays, and the mount says what it lost, once."""

    async def scenario(holder: DelegatingMount, other: DelegatingMount) -> None:
        await make(holder, b"f")
        await holder.vfs.unlink(ROOT_CALLER, holder.at, b"f")
        await holder.vfs.mkdir(ROOT_CALLER, holder.at, b"g", 0o755)
        go_on = silence(holder)
        await other.vfs.rename(ROOT_CALLER, other.at, b"f", other.at, b"h", 0)
        theirs = await make(other, b"f")
        go_on()
        with file_error(errno.ESTALE):
            await holder.vfs.fsyncdir(holder.at)
        await holder.vfs.fsyncdir(holder.at)
        for mount in (holder, other):
            assert set(await mount.names(mount.at)) == {b"f", b"h"}
            assert (await mount.vfs.lookup(mount.at, b"f")).ino == theirs
            with file_error(errno.ENOENT):
                await mount.vfs.lookup(mount.at, b"g")

    run(node, tmp_path, scenario)


def test_without_an_answer_nothing_more_is_promised(
    node: NodeProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No quorum: the queue does not grow any more, fsync says why, and later it is all told."""
    monkeypatch.setattr(queued, "RETRY_S", 0.01)

    async def scenario(mount: DelegatingMount, _: DelegatingMount) -> None:
        await make(mount, b"a")
        await make(mount, b"b")
        with mount.failing(Batch, NoQuorumError("too few voters")):
            await mount.vfs.unlink(ROOT_CALLER, mount.at, b"a")
            with pytest.raises(NoQuorumError):
                await mount.vfs.fsyncdir(mount.at)
            with pytest.raises(NoQuorumError):
                await mount.vfs.unlink(ROOT_CALLER, mount.at, b"b")
            assert queue(mount) == ["Unlink"]
        await mount.vfs.unlink(ROOT_CALLER, mount.at, b"b")
        assert not queue(mount)
        assert await in_cluster(mount, mount.at) == {}

    run(node, tmp_path, scenario)


def test_a_directory_where_names_change_is_asked_for(node: NodeProcess, tmp_path: Path) -> None:
    """One that others made: at the second rename or unlink in it, and then they cost nothing."""

    async def main() -> None:
        async with DelegatingMount(node, tmp_path / "a") as mount:
            async with DelegatingMount(node, tmp_path / "b") as maker:
                at = (await maker.vfs.mkdir(ROOT_CALLER, ROOT_INO, b"d", 0o755)).ino
                for number in range(10):
                    await make(maker, b"%d" % number, at)
            for number in range(2):
                await mount.vfs.lookup(at, b"%d" % number)
                await mount.vfs.unlink(ROOT_CALLER, at, b"%d" % number)
            await mount.wait_delegated(at)
            asked(mount)
            for number in range(2, 10):
                await mount.vfs.unlink(ROOT_CALLER, at, b"%d" % number)
            assert asked(mount) == []

    asyncio.run(main())


# --- one model for both ---------------------------------------------------------------------------


class Model:
    """Directories as dicts: a name leads to a dict, to the content of a file, or to a link's."""

    def __init__(self) -> None:
        self.root: dict[bytes, Any] = {}

    def at(self, path: tuple[bytes, ...]) -> dict[bytes, Any]:
        here = self.root
        for name in path:
            here = here[name]
        return here

    def directories(self, below: tuple[bytes, ...] = ()) -> list[tuple[bytes, ...]]:
        found = [below]
        for name, value in self.at(below).items():
            if isinstance(value, dict):
                found += self.directories((*below, name))
        return found


KINDS = ["make", "make", "unlink", "rename", "rename", "mkdir", "mkdir", "rmdir", "rmdir", "link"]


async def directory_at(mount: DelegatingMount, path: tuple[bytes, ...]) -> Ino:
    ino = mount.at
    for name in path:
        ino = (await mount.vfs.lookup(ino, name)).ino
    return ino


async def compare(mount: DelegatingMount, at: Ino, here: dict[bytes, Any]) -> None:
    """All that there is, by listing and by name."""
    assert sorted(await mount.names(at)) == sorted(here)
    subdirectories = 0
    for name, value in here.items():
        attr = await mount.vfs.lookup(at, name)
        if isinstance(value, dict):
            subdirectories += 1
            await compare(mount, attr.ino, value)
        elif isinstance(value, str):
            assert await mount.vfs.readlink(attr.ino) == value.encode()
        else:
            assert attr.nlink == 1
            assert await mount.content(attr.ino) == value
    assert (await mount.vfs.getattr(at)).nlink == 2 + subdirectories


def test_random_changes_of_both_against_one_model(
    node: NodeProcess, tmp_path: Path, seed: int
) -> None:
    """Files, links and directories are made, moved and removed by either mount; both show what
    nested dicts say, errors included. Directories go to and fro between them."""
    rng = random.Random(f"queued {seed}")
    model = Model()
    names = [b"a", b"b", b"c"]
    alone: Counter[str] = Counter()  # made without asking

    async def step(mount: DelegatingMount) -> None:
        path, to_path = rng.choice(model.directories()), rng.choice(model.directories())
        name, to_name = rng.choice(names), rng.choice(names)
        here, there = model.at(path), model.at(to_path)
        at, to = await directory_at(mount, path), await directory_at(mount, to_path)
        kind = rng.choice(KINDS)
        if kind == "rmdir":  # not one that has something in it, mostly
            name = next((name for name, value in here.items() if value == {}), name)
        vfs, known = mount.vfs, here.get(name)
        expected = 0
        value: Any = None
        before = mount.vfs._queue._last
        try:
            match kind:
                case "make":
                    expected = errno.EEXIST if name in here else 0
                    value = name * rng.choice((1, 3))
                    flags = os.O_WRONLY | os.O_EXCL
                    _, fh = await vfs.create(ROOT_CALLER, at, name, 0o644, flags)
                    await vfs.write(fh, 0, value)
                    await mount.end(fh)
                case "mkdir":
                    expected, value = errno.EEXIST if name in here else 0, {}
                    await vfs.mkdir(ROOT_CALLER, at, name, 0o755)
                case "link":
                    expected, value = errno.EEXIST if name in here else 0, "to"
                    await vfs.symlink(ROOT_CALLER, at, name, b"to")
                case "unlink":
                    expected = errno.ENOENT if known is None else 0
                    expected = errno.EISDIR if isinstance(known, dict) else expected
                    await vfs.unlink(ROOT_CALLER, at, name)
                case "rmdir":
                    expected = errno.ENOENT if known is None else 0
                    if known is not None and not isinstance(known, dict):
                        expected = errno.ENOTDIR
                    elif known:
                        expected = errno.ENOTEMPTY
                    await vfs.rmdir(ROOT_CALLER, at, name)
                case "rename":
                    if isinstance(known, dict) or isinstance(there.get(to_name), dict):
                        return  # rules of its own, which the tree's tests know
                    if known is None:
                        expected = errno.ENOENT
                    await vfs.rename(ROOT_CALLER, at, name, to, to_name, 0)
            assert expected == 0, (kind, path, name)
        except FileError as exc:
            if exc.errno != expected:
                raise
            return
        if mount.vfs._queue._last > before:
            alone[kind] += 1
        if kind == "rename":
            del here[name]
            there[to_name] = known
        elif kind in ("unlink", "rmdir"):
            del here[name]
        else:
            here[name] = value

    async def scenario(holder: DelegatingMount, other: DelegatingMount) -> None:
        for mount in (holder, other):
            mount.vfs._delegations.occasions.not_before = _Forgetful()
        mount = holder
        for _ in range(OPERATIONS):
            mount = rng.choice((holder, other)) if rng.random() < 0.02 else mount
            await step(mount)
            if rng.random() < 0.02:
                await compare(rng.choice((holder, other)), holder.at, model.root)
        await compare(holder, holder.at, model.root)
        await compare(other, other.at, model.root)
        assert alone.keys() >= {"unlink", "rename", "mkdir"}, alone

    run(node, tmp_path, scenario)


# --- a worker dies, another goes on ---------------------------------------------------------------


@pytest.mark.parametrize("when", ["queued", "being told", "compacted"])
def test_a_successor_tells_what_was_queued_once(
    node: NodeProcess, tmp_path: Path, logs: tuple[int, int], when: str
) -> None:
    """Also what was on its way: then others have changed the same names since, and that stays."""
    made: dict[str, Ino] = {}

    async def first() -> None:
        worker = Worker(node, tmp_path / "a", logs)
        await worker.__aenter__()
        worker.at = (await worker.vfs.mkdir(ROOT_CALLER, ROOT_INO, b"d", 0o755)).ino
        await worker.wait_delegated(worker.at)
        made.update(await do_all(worker))
        made["at"] = worker.at
        if when == "compacted":
            worker.journal.compact()
        if when == "being told":
            # It dies before it has noted the answer.
            worker.journal.told = lambda *told: None  # type: ignore[method-assign]
            await worker.vfs.fsyncdir(worker.at)
        await worker.die()

    async def second() -> None:
        worker = Worker(node, tmp_path / "b", logs)
        async with worker, DelegatingMount(node, tmp_path / "c") as other:
            other.at = worker.at = made["at"]
            assert set(await other.names(other.at)) == {b"dir"}
            assert set(await other.names(made["dir"])) == {b"new", b"link"}
            assert set(await worker.names(worker.at)) == {b"dir"}
            assert (await worker.vfs.lookup(made["dir"], b"new")).ino == made["old"]
            assert not queue(worker)
            # Nothing is delegated any more: others need not wait.
            await other.vfs.unlink(ROOT_CALLER, made["dir"], b"new")
            await other.vfs.unlink(ROOT_CALLER, made["dir"], b"link")
            await other.vfs.rmdir(ROOT_CALLER, other.at, b"dir")

    asyncio.run(first())
    asyncio.run(second())


def test_requests_that_come_again_were_done(
    node: NodeProcess, tmp_path: Path, logs: tuple[int, int]
) -> None:
    """The kernel sends a request again that was not answered: it gets the first outcome."""

    async def first() -> None:
        worker = Worker(node, tmp_path / "a", logs)
        await worker.__aenter__()
        worker.at = (await worker.vfs.mkdir(ROOT_CALLER, ROOT_INO, b"d", 0o755)).ino
        await worker.wait_delegated(worker.at)
        await make(worker, b"a")
        await make(worker, b"b")
        for unique, step in enumerate(_steps(worker, worker.at), 1):
            worker.journal.enter(2 * unique)
            made.append(await step)
        await worker.die()

    async def second() -> None:
        async with Worker(node, tmp_path / "b", logs) as worker:
            at = (await worker.vfs.lookup(ROOT_INO, b"d")).ino
            for unique, step in enumerate(_steps(worker, at), 1):
                worker.journal.enter(2 * unique | RESENT)
                again = await step
                worker.journal.answered(2 * unique | RESENT)
                assert (again and again.ino) == (made[unique - 1] and made[unique - 1].ino)
            assert set(await worker.names(at)) == {b"c", b"d", b"l"}
            worker.journal.enter(100)
            with file_error(errno.ENOENT):
                await worker.vfs.unlink(ROOT_CALLER, at, b"a")

    made: list[Any] = []
    asyncio.run(first())
    asyncio.run(second())


def _steps(mount: DelegatingMount, at: Ino) -> list[Awaitable[Any]]:
    vfs = mount.vfs
    return [
        vfs.unlink(ROOT_CALLER, at, b"a"),
        vfs.rename(ROOT_CALLER, at, b"b", at, b"c", 0),
        vfs.mkdir(ROOT_CALLER, at, b"d", 0o755),
        vfs.mkdir(ROOT_CALLER, at, b"e", 0o755),
        vfs.rmdir(ROOT_CALLER, at, b"e"),
        vfs.symlink(ROOT_CALLER, at, b"l", b"to"),
    ]
