"""The vfs over a real node against a local directory: same calls, same errno, same tree."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import random
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from pydi_fs.client import Client, node_on_this_machine
from pydi_fs.vfs.core import VfsConfig
from pydi_fs.vfs.vfs import FALLOC_KEEP_SIZE as KEEP_SIZE
from pydi_fs.vfs.vfs import FALLOC_PUNCH_HOLE as PUNCH_HOLE
from pydi_fs.vfs.vfs import FALLOC_ZERO_RANGE as ZERO_RANGE
from pydi_fs.vfs.vfs import Vfs
from pydi_node.commands import RENAME_EXCHANGE, RENAME_NOREPLACE, ROOT_CALLER, Commit
from pydi_node.errors import FileError
from pydi_node.ids import ROOT_INO, Ino
from tests.harness.procs import NodeProcess

NAMES = [b"a", b"b", b"c", b"\xff\xfe", b"n" * 255]
SIZES = [0, 1, 100, 4096, 70_000, 300_000, 1_200_000]  # in memory, in a file, streamed


class Pair:
    """One operation on both sides: a local directory, and the same tree in PyDi."""

    def __init__(self, root: Path, vfs: Vfs, rng: random.Random) -> None:
        self.root = os.fsencode(root)
        self.vfs = vfs
        self.rng = rng
        self.handles: list[tuple[int, int]] = []  # (local fd, fh)

    def path(self) -> bytes:
        depth = self.rng.choice([1, 1, 2, 3])
        return b"/".join(self.rng.choice(NAMES) for _ in range(depth))

    async def both(
        self, what: str, local: Callable[[], Any], remote: Callable[[], Awaitable[Any]]
    ) -> tuple[Any, Any] | None:
        """Results of both, or None when both failed with the same errno."""
        expected: Any = None
        error = 0
        try:
            expected = local()
        except OSError as exc:
            error = exc.errno or 0
        answer: Any = None
        got = 0
        try:
            answer = await remote()
        except FileError as exc:
            got = exc.errno
        assert os.strerror(got) == os.strerror(error), what
        return None if error else (expected, answer)

    async def parent(self, path: bytes) -> tuple[Ino, bytes]:
        head, _, name = path.rpartition(b"/")
        attr = await self.vfs.resolve(head)
        if not attr.is_dir:
            raise FileError(20)
        return attr.ino, name

    def local(self, path: bytes) -> bytes:
        return os.path.join(self.root, path)

    async def step(self) -> None:
        action = self.rng.choices(list(ACTIONS), weights=list(ACTIONS.values()))[0]
        await action(self)

    async def mkdir(self) -> None:
        path, mode = self.path(), self.rng.choice([0o755, 0o2775, 0o1777])

        async def remote() -> None:
            parent, name = await self.parent(path)
            await self.vfs.mkdir(ROOT_CALLER, parent, name, mode)

        def local() -> None:
            os.mkdir(self.local(path))
            os.chmod(self.local(path), mode | (os.stat(self.local(path)).st_mode & 0o2000))

        await self.both(f"mkdir {path!r}", local, remote)

    async def create(self) -> None:
        path = self.path()
        flags = os.O_RDWR | os.O_CREAT | self.rng.choice([0, os.O_EXCL, os.O_TRUNC, os.O_APPEND])

        async def remote() -> int:
            parent, name = await self.parent(path)
            return (await self.vfs.create(ROOT_CALLER, parent, name, 0o644, flags))[1]

        found = await self.both(
            f"create {path!r} {flags:o}",
            lambda: os.open(self.local(path), flags | os.O_NOFOLLOW, 0o644),
            remote,
        )
        if found:
            self.handles.append(found)

    async def open(self) -> None:
        path = self.path()
        flags = self.rng.choice([os.O_RDONLY, os.O_RDWR, os.O_RDWR | os.O_APPEND])

        def local() -> int | None:
            if not stat.S_ISREG(os.lstat(self.local(path)).st_mode):
                return None
            return os.open(self.local(path), flags)

        async def remote() -> int | None:
            parent, name = await self.parent(path)
            attr = await self.vfs.lookup(parent, name)
            return await self.vfs.open(ROOT_CALLER, attr.ino, flags) if attr.is_regular else None

        found = await self.both(f"open {path!r}", local, remote)
        if found and found[0] is not None:
            self.handles.append(found)

    async def write(self) -> None:
        if not self.handles:
            return
        fd, fh = self.rng.choice(self.handles)
        offset = self.rng.choice([0, 10, 4096, 100_000, 2_000_000])
        data = self.rng.randbytes(self.rng.choice(SIZES))

        def local() -> int:
            # pwrite(2) on Linux appends with O_APPEND, whatever the offset says.
            return os.pwrite(fd, data, offset)

        await self.both(
            f"write {offset}+{len(data)}", local, lambda: self.vfs.write(fh, offset, data)
        )

    async def read(self) -> None:
        if not self.handles:
            return
        fd, fh = self.rng.choice(self.handles)
        offset, size = self.rng.choice([0, 5, 4096, 99_000]), self.rng.choice([1, 4096, 3_000_000])
        half = size // 2

        async def remote() -> bytes:
            # Two at a time, as the kernel fills its pages.
            return b"".join(
                await asyncio.gather(
                    self.vfs.read(fh, offset, half), self.vfs.read(fh, offset + half, size - half)
                )
            )

        found = await self.both(f"read {offset}+{size}", lambda: os.pread(fd, size, offset), remote)
        if found:
            assert found[0] == found[1], f"read {offset}+{size}"

    async def truncate(self) -> None:
        if not self.handles:
            return
        fd, fh = self.rng.choice(self.handles)
        if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY:
            size = self.rng.choice([0, 3, 5000, 500_000])
            ino = self.vfs.ino_of(fh)
            await self.both(
                f"ftruncate {size}",
                lambda: os.ftruncate(fd, size),
                lambda: self.vfs.setattr(ROOT_CALLER, ino, size=size, fh=fh),
            )

    async def cut(self) -> None:
        """truncate(2): by name, so that it is not part of what an open descriptor writes."""
        if not self.handles:
            return
        fd, fh = self.rng.choice(self.handles)
        size = self.rng.choice([0, 7, 6000, 400_000])
        ino = self.vfs.ino_of(fh)
        await self.both(
            f"truncate {size}",
            lambda: os.truncate(f"/proc/self/fd/{fd}", size),
            lambda: self.vfs.setattr(ROOT_CALLER, ino, size=size),
        )

    async def copy(self) -> None:
        """copy_file_range(2); what the kernel refuses by itself is not tried."""
        if not self.handles:
            return
        source, target = self.rng.choice(self.handles), self.rng.choice(self.handles)
        same = self.vfs.ino_of(source[1]) == self.vfs.ino_of(target[1])
        if same or not _is_writable(target[0]):
            return
        start, to = self.rng.choice([0, 100, 5000]), self.rng.choice([0, 50, 4096, 90_000])
        length = self.rng.choice([1, 4096, 200_000])
        found = await self.both(
            f"copy {length} from {start} to {to}",
            lambda: os.copy_file_range(source[0], target[0], length, start, to),
            lambda: self.vfs.copy_file_range(source[1], start, target[1], to, length),
        )
        if found:
            assert found[0] == found[1], f"copy {length} from {start} to {to}"

    async def punch(self) -> None:
        """A hole within the file, or zeros that may make it longer: fallocate(2)."""
        if not self.handles:
            return
        fd, fh = self.rng.choice(self.handles)
        if not _is_writable(fd):
            return
        offset, length = self.rng.choice([0, 50, 80_000]), self.rng.choice([1, 5000, 100_000])
        mode = self.rng.choice([PUNCH_HOLE | KEEP_SIZE, ZERO_RANGE, ZERO_RANGE | KEEP_SIZE])

        def local() -> None:
            # Not every file system under a test has these modes; zeros are what they come to.
            size = os.fstat(fd).st_size
            end = min(offset + length, size) if mode & KEEP_SIZE else offset + length
            if end > offset:
                os.pwrite(fd, bytes(end - offset), offset)

        await self.both(
            f"fallocate {mode} {offset}+{length}",
            local,
            lambda: self.vfs.fallocate(fh, mode, offset, length),
        )

    async def describe(self) -> None:
        if self.handles:
            fd, fh = self.rng.choice(self.handles)
            attr = await self.vfs.getattr(self.vfs.ino_of(fh))
            assert os.fstat(fd).st_size == attr.size
            assert os.fstat(fd).st_nlink == attr.nlink

    async def sync(self) -> None:
        if self.handles:
            await self.vfs.fsync(self.rng.choice(self.handles)[1])

    async def close(self) -> None:
        if self.handles:
            fd, fh = self.handles.pop(self.rng.randrange(len(self.handles)))
            os.close(fd)
            await self.vfs.flush(fh)
            await self.vfs.release(fh)

    async def unlink(self) -> None:
        path = self.path()

        async def remote() -> None:
            parent, name = await self.parent(path)
            await self.vfs.unlink(ROOT_CALLER, parent, name)

        await self.both(f"unlink {path!r}", lambda: os.unlink(self.local(path)), remote)

    async def rmdir(self) -> None:
        path = self.path()

        async def remote() -> None:
            parent, name = await self.parent(path)
            await self.vfs.rmdir(ROOT_CALLER, parent, name)

        await self.both(f"rmdir {path!r}", lambda: os.rmdir(self.local(path)), remote)

    async def rename(self) -> None:
        source, target = self.path(), self.path()

        async def remote() -> None:
            parent, name = await self.parent(source)
            new_parent, new_name = await self.parent(target)
            await self.vfs.rename(ROOT_CALLER, parent, name, new_parent, new_name, 0)

        await self.both(
            f"rename {source!r} {target!r}",
            lambda: os.rename(self.local(source), self.local(target)),
            remote,
        )

    async def link(self) -> None:
        source, target = self.path(), self.path()

        async def remote() -> None:
            attr = await self.vfs.resolve(source, follow=False)
            parent, name = await self.parent(target)
            await self.vfs.link(ROOT_CALLER, attr.ino, parent, name)

        await self.both(
            f"link {source!r} {target!r}",
            lambda: os.link(self.local(source), self.local(target), follow_symlinks=False),
            remote,
        )

    async def symlink(self) -> None:
        path, target = self.path(), self.path()

        async def remote() -> None:
            parent, name = await self.parent(path)
            await self.vfs.symlink(ROOT_CALLER, parent, name, target)

        await self.both(f"symlink {path!r}", lambda: os.symlink(target, self.local(path)), remote)

    async def stat(self) -> None:
        path = self.path()
        found = await self.both(
            f"lstat {path!r}",
            lambda: os.lstat(self.local(path)),
            lambda: self.vfs.resolve(path, follow=False),
        )
        if found:
            expected, attr = found
            assert (expected.st_mode, expected.st_nlink) == (attr.mode, attr.nlink), path
            if not attr.is_dir:
                assert expected.st_size == attr.size, path


ACTIONS: dict[Callable[[Pair], Awaitable[None]], int] = {
    Pair.mkdir: 4, Pair.create: 6, Pair.open: 4, Pair.write: 10, Pair.read: 8, Pair.truncate: 3,
    Pair.cut: 2, Pair.copy: 5, Pair.punch: 3, Pair.describe: 6, Pair.sync: 2, Pair.close: 5,
    Pair.unlink: 2, Pair.rmdir: 1, Pair.rename: 5, Pair.link: 3, Pair.symlink: 1, Pair.stat: 6,
}  # fmt: skip


def _is_writable(fd: int) -> bool:
    """For any offset: neither O_RDONLY nor O_APPEND."""
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    return flags & os.O_ACCMODE != os.O_RDONLY and not flags & os.O_APPEND


async def whole_tree(vfs: Vfs, ino: Ino, prefix: bytes = b"") -> dict[bytes, Any]:
    """Every path with its type and content."""
    found: dict[bytes, Any] = {}
    fh = await vfs.opendir(ino)
    cookie = 0
    while page := await vfs.readdir(fh, cookie, 3):
        cookie = page[-1].cookie
        for entry in page:
            path = prefix + entry.name
            if entry.attr.is_dir:
                found[path] = "directory"
                found.update(await whole_tree(vfs, entry.attr.ino, path + b"/"))
            elif entry.attr.is_symlink:
                found[path] = await vfs.readlink(entry.attr.ino)
            else:
                file = await vfs.open(ROOT_CALLER, entry.attr.ino, os.O_RDONLY)
                found[path] = await vfs.read(file, 0, 1 << 24)
                assert len(found[path]) == entry.attr.size
                await vfs.release(file)
    await vfs.releasedir(fh)
    return found


def local_tree(root: bytes) -> dict[bytes, Any]:
    found: dict[bytes, Any] = {}
    for folder, folders, files in os.walk(root):
        for name in folders + files:
            path = os.path.join(folder, name)
            relative = os.path.relpath(path, root)
            if os.path.islink(path):
                found[relative] = os.readlink(path)
            elif os.path.isdir(path):
                found[relative] = "directory"
            else:
                with open(path, "rb") as file:
                    found[relative] = file.read()
    return found


async def connect(data_dir: Path, staging: Path) -> Vfs:
    client = Client([node_on_this_machine(data_dir)])
    await client.connect()
    vfs = Vfs(client, VfsConfig(staging))
    await vfs.start()
    return vfs


@pytest.mark.parametrize("round_", range(3))
def test_random_operations_end_in_the_same_tree_as_on_a_local_directory(
    tmp_path: Path, node: NodeProcess, seed: int, round_: int
) -> None:
    """Goal: POSIX results of the vfs, open files included. Method: each call on both, compared; at
    the end a second client must see exactly what the local directory holds."""

    async def run() -> None:
        local = tmp_path / "local"
        local.mkdir()
        vfs = await connect(node.data_dir, tmp_path / "staging")
        pair = Pair(local, vfs, random.Random(seed * 1000 + round_))
        for _ in range(400):
            await pair.step()
        while pair.handles:
            await pair.close()
        expected = local_tree(os.fsencode(local))
        assert await whole_tree(vfs, ROOT_INO) == expected
        other = await connect(node.data_dir, tmp_path / "staging2")
        assert await whole_tree(other, ROOT_INO) == expected
        for each in (vfs, other):
            await each.stop()
            await each.client.close()

    asyncio.run(run())


def test_rename_flags(tmp_path: Path, node: NodeProcess) -> None:
    """RENAME_NOREPLACE refuses an existing target; RENAME_EXCHANGE swaps."""

    async def run() -> None:
        vfs = await connect(node.data_dir, tmp_path / "staging")
        for name in (b"one", b"two"):
            _, fh = await vfs.create(ROOT_CALLER, ROOT_INO, name, 0o644, os.O_RDWR)
            await vfs.write(fh, 0, name)
            await vfs.flush(fh)
            await vfs.release(fh)
        with pytest.raises(FileError) as refused:
            await vfs.rename(ROOT_CALLER, ROOT_INO, b"one", ROOT_INO, b"two", RENAME_NOREPLACE)
        assert refused.value.errno == 17
        await vfs.rename(ROOT_CALLER, ROOT_INO, b"one", ROOT_INO, b"two", RENAME_EXCHANGE)
        assert await whole_tree(vfs, ROOT_INO) == {b"one": b"two", b"two": b"one"}
        await vfs.stop()
        await vfs.client.close()

    asyncio.run(run())


def test_a_read_goes_on_while_a_newer_version_arrives(tmp_path: Path, node: NodeProcess) -> None:
    """Goal: a long read ends with bytes, though the file it began with is replaced meanwhile.
    Method: a file of many blobs is read, cut by another client, and opened again."""

    async def run() -> None:
        one = await connect(node.data_dir, tmp_path / "one")
        two = await connect(node.data_dir, tmp_path / "two")
        attr, fh = await one.create(ROOT_CALLER, ROOT_INO, b"file", 0o644, os.O_RDWR)
        for number in range(60):
            await one.write(fh, number * 100, b"%100d" % number)
            await one.flush(fh)
        await one.flush(fh)
        await one.release(fh)
        fh = await one.open(ROOT_CALLER, attr.ino, os.O_RDONLY)
        expected = b"".join(b"%100d" % number for number in range(60))
        changing = asyncio.create_task(two.setattr(ROOT_CALLER, attr.ino, size=0))
        reading = asyncio.create_task(one.read(fh, 0, 6000))
        await changing
        again = await one.open(ROOT_CALLER, attr.ino, os.O_RDONLY)
        assert await reading == expected
        assert await one.read(again, 0, 6000) == b""
        for each in (one, two):
            await each.stop()
            await each.client.close()

    asyncio.run(run())


def test_a_commit_beside_an_open_file_shows_in_it(tmp_path: Path, node: NodeProcess) -> None:
    """Content that is committed without the open file, as ``pydi put`` does, is read through it."""

    async def run() -> None:
        vfs = await connect(node.data_dir, tmp_path / "staging")
        attr, fh = await vfs.create(ROOT_CALLER, ROOT_INO, b"file", 0o644, os.O_RDWR)
        await vfs.write(fh, 0, b"content")
        await vfs.flush(fh)
        await vfs.commit(Commit(ROOT_CALLER, attr.ino, None, 3, 3, False, (), ()))
        assert await vfs.read(fh, 0, 100) == b"con"
        await vfs.write(fh, 3, b"!")
        assert (await vfs.getattr(attr.ino)).size == 4
        await vfs.flush(fh)
        await vfs.release(fh)
        await vfs.stop()
        await vfs.client.close()

    asyncio.run(run())


def test_a_listing_ends_though_each_entry_is_renamed(tmp_path: Path, node: NodeProcess) -> None:
    """Goal: readdir(3) ends, with every name that was there all the time exactly once, also when
    more than a page goes meanwhile. Method: each entry is renamed there and back as it is read."""

    async def run() -> None:
        vfs = await connect(node.data_dir, tmp_path / "staging")
        kept = [b"kept%02d" % number for number in range(20)]
        gone = [b"gone%02d" % number for number in range(20)]
        for name in (*kept[:10], *gone, *kept[10:]):
            _, file = await vfs.create(ROOT_CALLER, ROOT_INO, name, 0o644, os.O_WRONLY)
            await vfs.release(file)
        fh = await vfs.opendir(ROOT_INO)
        for mode in (0o600, 0o640):  # rewinddir(3) between the rounds
            seen: list[bytes] = []
            cookie = 0
            while page := await vfs.readdir(fh, cookie, 3):
                cookie = page[-1].cookie
                seen += [entry.name for entry in page]
                assert len(seen) <= 40, seen
                for name in gone:
                    await vfs.unlink(ROOT_CALLER, ROOT_INO, name)
                gone.clear()
                # Changed, but there from the beginning.
                last = await vfs.lookup(ROOT_INO, kept[-1])
                await vfs.setattr(ROOT_CALLER, last.ino, mode=mode)
                for name in {entry.name for entry in page} - {kept[-1]}:
                    for old, new in ((name, b"moved"), (b"moved", name)):
                        await vfs.rename(ROOT_CALLER, ROOT_INO, old, ROOT_INO, new, 0)
            assert sorted(seen) == kept
        await vfs.releasedir(fh)
        await vfs.stop()
        await vfs.client.close()

    asyncio.run(run())


def test_allocation_of_more_than_there_is(tmp_path: Path, node: NodeProcess) -> None:
    """fallocate(2): ENOSPC for holes that all the free space could not fill; what is there counts
    for nothing, and the file stays as it was."""

    async def run() -> None:
        vfs = await connect(node.data_dir, tmp_path / "staging")
        attr, fh = await vfs.create(ROOT_CALLER, ROOT_INO, b"file", 0o644, os.O_RDWR)
        await vfs.write(fh, 0, b"x" * 100)
        free = (await vfs.statfs()).free_bytes
        with pytest.raises(FileError) as refused:
            await vfs.fallocate(fh, 0, 0, free * 2)
        assert refused.value.errno == errno.ENOSPC
        with pytest.raises(FileError):
            await vfs.fallocate(fh, KEEP_SIZE, 0, free * 2)
        assert (await vfs.getattr(attr.ino)).size == 100
        await vfs.fallocate(fh, 0, 0, 1000)
        assert (await vfs.getattr(attr.ino)).size == 1000
        await vfs.release(fh)
        await vfs.stop()
        await vfs.client.close()

    asyncio.run(run())
