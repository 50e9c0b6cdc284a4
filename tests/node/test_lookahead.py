"""Names that are looked up one after the other come in together, and are as fresh as any."""

from __future__ import annotations

import asyncio
import errno
from collections import Counter
from pathlib import Path

import pytest

from pydi_fs.vfs import lookahead
from pydi_node.commands import ROOT_CALLER
from pydi_node.ids import ROOT_INO, Ino
from tests.harness.procs import NodeProcess
from tests.node.test_holds import Mount
from tests.unit.tree.driver import file_error


async def folder(mount: Mount, count: int) -> Ino:
    """A directory with files 0, 1, 2 ..."""
    top = await mount.vfs.mkdir(ROOT_CALLER, ROOT_INO, b"folder", 0o755)
    for number in range(count):
        await mount.vfs.put_file(ROOT_CALLER, top.ino, b"%d" % number, 0o644, b"", 1)
    return top.ino


def test_after_a_few_names_all_come_in_one_answer(node: NodeProcess, tmp_path: Path) -> None:
    """One after the other, and many at once; what is changed or removed meanwhile is seen, and a
    name that is not there is absent."""

    async def scenario() -> None:
        async with Mount(node, tmp_path / "a") as here, Mount(node, tmp_path / "b") as there:
            count = 100
            top = await folder(there, count)
            names = [b"%d" % number for number in range(count)]
            here.client.sent.clear()
            attrs = [await here.vfs.lookup(top, name) for name in names]
            assert Counter(here.client.sent) == {"Lookup": lookahead.ASKED_MIN, "ReadDir": 1}
            assert attrs == [await there.vfs.lookup(top, name) for name in names]

            await there.vfs.setattr(ROOT_CALLER, attrs[50].ino, mode=0o600)
            await there.vfs.unlink(ROOT_CALLER, top, b"51")
            assert (await here.vfs.lookup(top, b"50")).mode & 0o777 == 0o600
            for name in (b"51", b"absent"):
                with file_error(errno.ENOENT):
                    await here.vfs.lookup(top, name)

            here.vfs._cache.clear()
            here.client.sent.clear()
            await asyncio.gather(*(here.vfs.lookup(top, name) for name in names[:40]))
            found = [(await here.vfs.lookup(top, name)).ino for name in names[:50]]
            assert found == [attr.ino for attr in attrs[:50]]
            assert Counter(here.client.sent)["Lookup"] <= 40

    asyncio.run(scenario())


def test_a_large_directory_comes_in_pages(
    node: NodeProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page each time that as many questions were asked as it is worth."""
    monkeypatch.setattr(lookahead, "FIRST_ENTRIES", 16)
    monkeypatch.setattr(lookahead, "NEXT_ENTRIES", 32)
    monkeypatch.setattr(lookahead, "WITHIN_S", 60.0)

    async def scenario() -> None:
        async with Mount(node, tmp_path / "a") as here, Mount(node, tmp_path / "b") as there:
            top = await folder(there, 60)
            here.client.sent.clear()
            for number in range(60):
                await here.vfs.lookup(top, b"%d" % number)
            assert Counter(here.client.sent) == {"Lookup": 3 * lookahead.ASKED_MIN, "ReadDir": 3}

    asyncio.run(scenario())


def test_slow_looks_and_looks_without_a_lease_read_nothing_ahead(
    node: NodeProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would not be used, or not be kept."""

    async def scenario() -> None:
        async with Mount(node, tmp_path / "a") as here, Mount(node, tmp_path / "b") as there:
            top = await folder(there, 20)
            here.client.sent.clear()
            monkeypatch.setattr(lookahead, "WITHIN_S", -1.0)
            for number in range(10):
                await here.vfs.lookup(top, b"%d" % number)
            monkeypatch.setattr(lookahead, "WITHIN_S", 60.0)
            here.client.lease_s = lambda: 0.0  # type: ignore[method-assign]
            for number in range(10, 20):
                await here.vfs.lookup(top, b"%d" % number)
            assert Counter(here.client.sent) == {"Lookup": 20}

    asyncio.run(scenario())
