"""Which files a mount holds open, as its node knows it: no request for what is closed at once."""

from __future__ import annotations

import asyncio
import errno
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from pydi_fs.client import Client, node_on_this_machine
from pydi_fs.vfs import holds
from pydi_fs.vfs.core import VfsConfig
from pydi_fs.vfs.vfs import Vfs
from pydi_node.commands import RENAME_EXCHANGE, ROOT_CALLER, Batch
from pydi_node.ids import ROOT_INO, ClientId, Ino
from pydi_node.runtime.housekeeping import ORPHAN_DELAY_S
from pydi_node.wire.messages import Admin, Execute, ExecutePut, GetAttr, Lookup, Request, Role
from tests.harness.procs import NodeProcess
from tests.unit.tree.driver import file_error

DEADLINE_S = 60.0
END_WITHIN_S = 30.0


class WatchedClient(Client):
    """Knows the names of its requests, in the order in which they leave."""

    def __init__(self, node: NodeProcess, identity: tuple[ClientId, int] | None = None) -> None:
        endpoint = node_on_this_machine(node.data_dir)
        super().__init__([endpoint], role=Role.MOUNT, identity=identity)
        self.sent: list[str] = []
        self.commands: list[str] = []  # of them, likewise
        self.parts: list[list[str]] = []  # what each Batch consisted of

    async def call(self, request: Request, *arguments: Any, **options: Any) -> Any:
        self.sent.append(type(request).__name__)
        if isinstance(request, (Execute, ExecutePut)):
            self.commands.append(type(request.command).__name__)
            if isinstance(request.command, Batch):
                self.parts.append([type(part).__name__ for part in request.command.commands])
        return await super().call(request, *arguments, **options)


async def _cancel_all() -> None:
    """Until nothing is left in this loop: a publication waits on when it is cancelled once."""
    while others := asyncio.all_tasks() - {asyncio.current_task()}:
        for task in others:
            task.cancel()
        await asyncio.wait(others, timeout=0.1)


class Mount:
    """A Vfs on a node, and what the node says of it."""

    def __init__(self, node: NodeProcess, staging: Path) -> None:
        self.client = WatchedClient(node)
        self.asker = Client([node_on_this_machine(node.data_dir)])
        self.vfs = Vfs(self.client, self.config(staging))

    def config(self, staging: Path) -> VfsConfig:
        return VfsConfig(staging)

    async def __aenter__(self) -> Mount:
        await self.client.connect()
        await self.asker.connect()
        await self.vfs.start()
        self.client.sent.clear()
        return self

    async def __aexit__(self, *_: object) -> None:
        ending = asyncio.create_task(self._end())
        await asyncio.wait([ending], timeout=END_WITHIN_S)
        if not ending.done():
            await _cancel_all()
            raise TimeoutError("the mount does not end")
        await ending

    async def _end(self) -> None:
        await self.vfs.stop()
        await self.client.close()
        await self.asker.close()

    async def create(self, name: bytes) -> int:
        _, fh = await self.vfs.create(ROOT_CALLER, ROOT_INO, name, 0o644, os.O_WRONLY | os.O_EXCL)
        return fh

    async def opens(self) -> int:
        """Held by all mounts, as the node counts them."""
        mounts = (await self.asker.call(Admin("status")))["mounts"]
        return sum(int(mount["opens"]) for mount in mounts)

    async def wait_opens(self, count: int) -> None:
        async with asyncio.timeout(DEADLINE_S):
            # Another process counts: there is no event to wait for.
            while await self.opens() != count:  # noqa: ASYNC110
                await asyncio.sleep(0.01)


def test_a_file_closed_at_once_costs_two_requests(
    node: NodeProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """create, write, close: one command each for the name and for the content, nothing more."""
    monkeypatch.setattr(holds, "TELL_AFTER_S", DEADLINE_S)

    async def scenario() -> None:
        async with Mount(node, tmp_path) as mount:
            for number in range(10):
                fh = await mount.create(b"%d" % number)
                await mount.vfs.write(fh, 0, b"content")
                await mount.vfs.flush(fh)
                await mount.vfs.release(fh)
            assert Counter(mount.client.sent) == {"Execute": 10, "ExecutePut": 10}
            assert await mount.opens() == 0

    asyncio.run(scenario())


def test_a_file_whose_content_is_known_is_one_request(node: NodeProcess, tmp_path: Path) -> None:
    """`pydi put` of a new small file: one command, one round of the log; a name that is there is
    EEXIST and stays as it is."""

    async def scenario() -> None:
        async with Mount(node, tmp_path) as mount:
            vfs, sent = mount.vfs, mount.client.sent
            for name, content in ((b"small", b"content"), (b"empty", b""), (b"large", b"x" * 9000)):
                sent.clear()
                attr = await vfs.put_file(ROOT_CALLER, ROOT_INO, name, 0o640, content, 5)
                told = [name for name in sent if name != "Release"]  # of the file before
                assert told == ["ExecutePut" if content else "Execute"]
                assert (attr.size, attr.mtime_ns, attr.mode & 0o7777) == (len(content), 5, 0o640)
                assert await mount.asker.call(Lookup(ROOT_INO, name)) == attr
                fh = await vfs.open(ROOT_CALLER, attr.ino, os.O_RDONLY)
                assert await vfs.read(fh, 0, 10_000) == content
                await vfs.release(fh)
            with file_error(errno.EEXIST):
                await vfs.put_file(ROOT_CALLER, ROOT_INO, b"small", 0o640, b"other", 5)
            assert (await mount.asker.call(Lookup(ROOT_INO, b"small"))).size == 7

    asyncio.run(scenario())


def test_a_change_of_a_directory_brings_its_attributes_along(
    node: NodeProcess, tmp_path: Path
) -> None:
    """The kernel asks for a directory's attributes before each change in it, and the change before
    made them stale: no change costs a second request for them, and they are the right ones."""
    requests = {
        "mkdir": lambda vfs, at: vfs.mkdir(ROOT_CALLER, at, b"sub", 0o755),
        "symlink": lambda vfs, at: vfs.symlink(ROOT_CALLER, at, b"s", b"target"),
        "mknod": lambda vfs, at: vfs.mknod(ROOT_CALLER, at, b"a", 0o100644, 0),
        "link": lambda vfs, at: _link(vfs, at, b"a", b"b"),
        "rename": lambda vfs, at: vfs.rename(ROOT_CALLER, at, b"a", at, b"c", 0),
        "rename over": lambda vfs, at: vfs.rename(ROOT_CALLER, at, b"s", at, b"c", 0),
        "exchange": lambda vfs, at: vfs.rename(ROOT_CALLER, at, b"b", at, b"c", RENAME_EXCHANGE),
        "unlink": lambda vfs, at: vfs.unlink(ROOT_CALLER, at, b"c"),
        "rmdir": lambda vfs, at: vfs.rmdir(ROOT_CALLER, at, b"sub"),
    }

    async def scenario() -> None:
        async with Mount(node, tmp_path) as mount:
            at = (await mount.vfs.mkdir(ROOT_CALLER, ROOT_INO, b"d", 0o755)).ino
            for name, request in requests.items():
                mount.client.sent.clear()
                await request(mount.vfs, at)
                known = await mount.vfs.getattr(at)
                assert mount.client.sent == ["Execute"], name
                assert known == await mount.asker.call(GetAttr(at)), name
            # Two directories at once.
            other = (await mount.vfs.mkdir(ROOT_CALLER, ROOT_INO, b"e", 0o755)).ino
            mount.client.sent.clear()
            await mount.vfs.rename(ROOT_CALLER, at, b"b", other, b"b", 0)
            for directory in (at, other):
                known = await mount.vfs.getattr(directory)
                assert known == await mount.asker.call(GetAttr(directory))
            assert mount.client.sent == ["Execute"]

    asyncio.run(scenario())


async def _link(vfs: Vfs, at: Ino, name: bytes, new_name: bytes) -> None:
    await vfs.link(ROOT_CALLER, (await vfs.lookup(at, name)).ino, at, new_name)


def test_a_file_that_stays_open_is_held(
    node: NodeProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The node hears of it a moment later, and of its end; another open of it has its own hold."""
    monkeypatch.setattr(holds, "TELL_AFTER_S", 0.01)

    async def scenario() -> None:
        async with Mount(node, tmp_path) as mount:
            fh = await mount.create(b"a")
            await mount.wait_opens(1)
            again = await mount.vfs.open(ROOT_CALLER, mount.vfs.ino_of(fh), os.O_RDONLY)
            await mount.wait_opens(2)
            await mount.vfs.release(fh)
            await mount.wait_opens(1)
            await mount.vfs.release(again)
            await mount.wait_opens(0)

    asyncio.run(scenario())


def test_a_hold_passes_to_the_handle_that_is_left(
    node: NodeProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file without a name is opened again through /proc/self/fd and its first handle closed: at
    no moment does the node believe that nobody holds it, for it may be due to be purged."""
    monkeypatch.setattr(holds, "TELL_AFTER_S", DEADLINE_S)

    async def scenario() -> None:
        async with Mount(node, tmp_path) as mount:
            fh = await mount.create(b"a")
            ino = mount.vfs.ino_of(fh)
            await mount.vfs.unlink(ROOT_CALLER, ROOT_INO, b"a")
            mount.client.sent.clear()
            again = await mount.vfs.open(ROOT_CALLER, ino, os.O_RDONLY)
            await mount.vfs.release(fh)
            await asyncio.sleep(0)
            assert mount.client.sent == []
            assert await mount.opens() == 1
            await mount.vfs.release(again)
            await mount.wait_opens(0)
            assert mount.client.sent == ["Release"]

    asyncio.run(scenario())


def test_an_open_of_what_is_known_asks_nobody(
    node: NodeProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """open, read, close of a file that was looked at before, however large: no request, also when
    several have it open; the first read of what was only listed is one."""
    monkeypatch.setattr(holds, "TELL_AFTER_S", DEADLINE_S)
    contents = {b"small": b"content", b"empty": b"", b"large": bytes(100_000)}

    async def scenario() -> None:
        async with Mount(node, tmp_path / "a") as other, Mount(node, tmp_path / "b") as mount:
            for name, content in contents.items():
                fh = await other.create(name)
                await other.vfs.write(fh, 0, content)
                await other.vfs.flush(fh)
                await other.vfs.release(fh)
            vfs, sent = mount.vfs, mount.client.sent
            for name, content in contents.items():
                ino = (await vfs.lookup(ROOT_INO, name)).ino
                sent.clear()
                assert await _content(vfs, ino) == content
                assert sent == ["GetFile"] + ["BlobRead"] * (name == b"large")
                for _ in range(3):
                    sent.clear()
                    assert await _content(vfs, ino) == content
                    assert sent == []
                handles = [await vfs.open(ROOT_CALLER, ino, flags) for flags in (0, os.O_RDWR)]
                assert await vfs.read(handles[1], 0, 10) == content[:10]
                for handle in handles:
                    await vfs.release(handle)
                assert sent == []
            assert await mount.opens() == 0

    asyncio.run(scenario())


async def _content(vfs: Vfs, ino: Ino) -> bytes:
    fh = await vfs.open(ROOT_CALLER, ino, os.O_RDONLY)
    try:
        return await vfs.read(fh, 0, 1 << 20)
    finally:
        await vfs.release(fh)


def test_what_was_changed_since_is_asked_for(node: NodeProcess, tmp_path: Path) -> None:
    """Content, attributes or the whole file, changed by another mount, by this one, or through no
    mount: the next open shows it, though this one knew the file."""

    async def scenario() -> None:
        async with Mount(node, tmp_path / "a") as here, Mount(node, tmp_path / "b") as there:
            await here.vfs.release(await here.create(b"f"))
            ino = (await there.vfs.lookup(ROOT_INO, b"f")).ino
            content = b""
            for number, writer in enumerate((here, there, here, there)):
                assert await _content(here.vfs, ino) == await _content(there.vfs, ino) == content
                fh = await writer.vfs.open(ROOT_CALLER, ino, os.O_WRONLY | os.O_APPEND)
                await writer.vfs.write(fh, 0, b"%d" % number)
                await writer.vfs.flush(fh)
                content += b"%d" % number
                assert await _content(here.vfs, ino) == await _content(there.vfs, ino) == content
                await writer.vfs.release(fh)
                assert await _content(here.vfs, ino) == await _content(there.vfs, ino) == content
                await writer.vfs.setattr(ROOT_CALLER, ino, size=len(content) + 1)
                content += b"\0"
            await there.vfs.unlink(ROOT_CALLER, ROOT_INO, b"f")
            with file_error(errno.ENOENT):
                await here.vfs.lookup(ROOT_INO, b"f")

    asyncio.run(scenario())


def test_a_parked_handle_is_held_by_nobody_and_good_until_something_changes(
    node: NodeProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The node hears of it only while it is open; attributes or content, changed by another mount
    or this one, and the loss of the lease, end it."""
    monkeypatch.setattr(holds, "TELL_AFTER_S", 0.02)

    async def scenario() -> None:
        async with Mount(node, tmp_path / "a") as here, Mount(node, tmp_path / "b") as there:
            await here.vfs.release(await here.create(b"f"))
            await here.wait_opens(0)
            ino = (await here.vfs.lookup(ROOT_INO, b"f")).ino

            async def written(mount: Mount) -> None:
                fh = await mount.vfs.open(ROOT_CALLER, ino, os.O_WRONLY)
                await mount.vfs.write(fh, 0, b"x")
                await mount.vfs.release(fh)

            async def cut_off(mount: Mount) -> None:
                mount.client.lease_s = lambda: 0.0  # type: ignore[method-assign]

            for change in (
                lambda: here.vfs.setattr(ROOT_CALLER, ino, mode=0o600),
                lambda: there.vfs.setattr(ROOT_CALLER, ino, mode=0o640),
                lambda: written(here),
                lambda: written(there),
                lambda: cut_off(here),
            ):
                attr = await here.vfs.getattr(ino)
                fh = await here.vfs.open(ROOT_CALLER, ino, os.O_RDONLY)
                for _ in range(2):
                    attr = here.vfs.getattr_nowait(ino)
                    assert attr is not None
                    await here.wait_opens(1)
                    assert here.vfs.park(fh)
                    await here.wait_opens(0)
                    assert here.vfs.unpark(fh, attr)
                assert here.vfs.park(fh)
                await change()
                assert not here.vfs.unpark(fh, attr)
                await here.vfs.release(fh)
                await here.wait_opens(0)

    asyncio.run(scenario())


def test_without_a_lease_every_open_asks(node: NodeProcess, tmp_path: Path) -> None:
    """What is known may be old then."""

    async def scenario() -> None:
        async with Mount(node, tmp_path) as mount:
            fh = await mount.create(b"f")
            ino = mount.vfs.ino_of(fh)
            await mount.vfs.release(fh)
            mount.client.lease_s = lambda: 0.0  # type: ignore[method-assign]
            mount.client.sent.clear()
            assert await _content(mount.vfs, ino) == b""
            assert mount.client.sent[0] == "Open"

    asyncio.run(scenario())


def test_a_file_removed_elsewhere_is_held_in_time(
    node: NodeProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another mount takes the name of a file before the node knows that it is open here: it hears
    of it long before such a file may be purged, and the content stays."""
    assert holds.TELL_AFTER_S * 10 < ORPHAN_DELAY_S
    monkeypatch.setattr(holds, "TELL_AFTER_S", 0.05)

    async def scenario() -> None:
        async with Mount(node, tmp_path / "a") as here, Mount(node, tmp_path / "b") as there:
            fh = await there.create(b"f")
            await there.vfs.write(fh, 0, b"content")
            await there.vfs.flush(fh)
            await there.vfs.release(fh)
            ino = (await here.vfs.lookup(ROOT_INO, b"f")).ino
            here.client.sent.clear()
            fh = await here.vfs.open(ROOT_CALLER, ino, os.O_RDONLY)
            assert here.client.sent == []
            await there.vfs.unlink(ROOT_CALLER, ROOT_INO, b"f")
            async with asyncio.timeout(DEADLINE_S):
                while "Open" not in here.client.sent:  # noqa: ASYNC110 told by a timer
                    await asyncio.sleep(0.01)
            assert await here.vfs.read(fh, 0, 100) == b"content"
            assert (await here.vfs.getattr(ino)).nlink == 0
            here.client.sent.clear()
            await here.vfs.release(fh)
            await asyncio.sleep(0)
            assert here.client.sent == ["Release"]

    asyncio.run(scenario())


@pytest.mark.parametrize("how", ["unlink", "rename over it"])
def test_a_name_is_taken_only_after_its_open_is_told(
    node: NodeProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """When a file loses its name while it is open here, the node knows who needs it."""
    monkeypatch.setattr(holds, "TELL_AFTER_S", DEADLINE_S)

    async def scenario() -> None:
        async with Mount(node, tmp_path) as mount:
            other = await mount.create(b"b")
            await mount.vfs.release(other)
            fh = await mount.create(b"a")
            if how == "unlink":
                await mount.vfs.unlink(ROOT_CALLER, ROOT_INO, b"a")
            else:
                await mount.vfs.rename(ROOT_CALLER, ROOT_INO, b"b", ROOT_INO, b"a", 0)
            assert mount.client.sent[-2:] == ["Open", "Execute"]
            assert await mount.opens() == 1
            await mount.vfs.write(fh, 0, b"content")
            await mount.vfs.flush(fh)
            await mount.vfs.release(fh)
            await mount.wait_opens(0)

    asyncio.run(scenario())
