"""What a node forgets unasked, and what it must keep; and that a broken disk ends it."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from pydi_node.commands import ROOT_CALLER, ForgetBlobs, SetSetting, TrimHistory, Unlink
from pydi_node.errors import FileError, NoSpaceError
from pydi_node.ids import ROOT_INO, BlobId
from pydi_node.runtime import housekeeping
from pydi_node.tree import machine
from pydi_node.wire.messages import Open, Release
from tests.unit.runtime.inner import Inner
from tests.unit.tree.driver import blob, put


def run(path: Path, test: Callable[[Inner], Awaitable[None]]) -> None:
    """Runs ``test`` with a node's inner parts on ``path``."""

    async def main() -> None:
        async with Inner(path) as inner:
            await asyncio.wait_for(test(inner), 60)

    asyncio.run(main())


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """No delays: what is due is due now."""
    monkeypatch.setattr(housekeeping, "ORPHAN_DELAY_S", 0.0)


async def no_history(inner: Inner) -> None:
    assert (await inner.execute(SetSetting("retention_s", "0"))).errno == 0


def test_held_orphan_stays_readable_and_goes_after_its_release(tmp_path: Path) -> None:
    """Unlinked while open: kept as long as a session holds it, then purged with its blob."""

    async def scenario(inner: Inner) -> None:
        ino, info = await inner.file(b"a", b"content")
        await inner.handle(Open(ino))
        await inner.execute(Unlink(ROOT_CALLER, ROOT_INO, b"a"))
        for _ in range(3):
            await inner.housekeeping.round()
        assert inner.service.tree.orphans(10) == [ino]
        assert inner.store.read(info.blob, 0, 100) == b"content"
        await inner.handle(Release(ino, 1))
        await inner.housekeeping.round()
        assert inner.service.tree.orphans(10) == []

    run(tmp_path, scenario)


def test_end_of_a_session_releases_what_it_held(tmp_path: Path) -> None:
    """A mount that dies holds nothing for ever."""

    async def scenario(inner: Inner) -> None:
        ino, _ = await inner.file(b"a", b"content")
        await inner.handle(Open(ino))
        await inner.handle(Open(ino))
        await inner.execute(Unlink(ROOT_CALLER, ROOT_INO, b"a"))
        inner.service.end(inner.session)
        assert inner.service.holds == {}
        await inner.housekeeping.round()
        assert inner.service.tree.orphans(10) == []

    run(tmp_path, scenario)


def test_garbage_goes_from_the_disk_after_the_tree_forgot_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without history a deleted file's blob is garbage: first the row goes, then the file; a blob
    that is still named stays."""
    monkeypatch.setattr(housekeeping, "GARBAGE_DELAY_S", 0.0)

    async def scenario(inner: Inner) -> None:
        await no_history(inner)
        _, kept = await inner.file(b"kept", b"kept")
        _, gone = await inner.file(b"gone", b"gone")
        await inner.execute(Unlink(ROOT_CALLER, ROOT_INO, b"gone"))
        # Ticks of the tree are a second apart, so the trim reaches the deletion only then.
        for _ in range(300):
            await inner.housekeeping.round()
            if not inner.store.has(gone.blob):
                break
            await asyncio.sleep(0.02)
        assert not inner.store.has(gone.blob)
        with pytest.raises(FileError):
            inner.service.tree.blob(gone.blob)
        assert inner.store.read(kept.blob, 0, 10) == b"kept"
        assert inner.service.tree.blob(kept.blob) == kept

    run(tmp_path, scenario)


def test_small_content_goes_with_the_last_version_that_names_it(tmp_path: Path) -> None:
    """As long as history keeps a version its content is there; then it is nowhere, and no file was
    looked for."""

    async def scenario(inner: Inner) -> None:
        tree = inner.service.tree
        ino, _ = await inner.file(b"f", b"a file")
        for counter, content in ((1001, b"first"), (1002, b"second")):
            assert (await inner.execute(put(ino, counter, content))).errno == 0
        for _ in range(3):
            await inner.housekeeping.round()
        assert (tree.content(blob(1001)), tree.content(blob(1002))) == (b"first", b"second")
        await no_history(inner)
        for _ in range(300):
            await inner.housekeeping.round()
            if not any(info.blob == blob(1001) for info in tree.blobs(BlobId(0), 10)):
                break
            await asyncio.sleep(0.02)
        with pytest.raises(FileError):
            tree.content(blob(1001))
        assert tree.file_version(ino).contents == ((blob(1002), b"second"),)
        assert tree.content(blob(1002)) == b"second"

    run(tmp_path, scenario)


def test_garbage_that_the_tree_still_knows_keeps_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until the row is gone a command may name the blob again: the file waits for that."""

    async def scenario(inner: Inner) -> None:
        propose = inner.housekeeping._propose

        async def not_yet(command: object) -> object:
            return 0 if isinstance(command, ForgetBlobs) else await propose(command)

        monkeypatch.setattr(inner.housekeeping, "_propose", not_yet)
        monkeypatch.setattr(housekeeping, "GARBAGE_DELAY_S", 0.0)
        await no_history(inner)
        _, gone = await inner.file(b"gone", b"gone")
        await inner.execute(Unlink(ROOT_CALLER, ROOT_INO, b"gone"))
        while not inner.service.tree.garbage_blobs(10):
            await inner.housekeeping.round()
            await asyncio.sleep(0.02)
        for _ in range(3):
            await inner.housekeeping.round()
        assert inner.store.has(gone.blob)
        monkeypatch.undo()

    run(tmp_path, scenario)


def test_garbage_is_seen_by_all_before_it_is_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What other nodes have of it they delete when it goes from the tree, if they knew it before:
    so it stays known for longer than the time between two looks of each of them."""
    assert housekeeping.GARBAGE_DELAY_S >= 2 * housekeeping.PERIOD_S

    async def scenario(inner: Inner) -> None:
        await no_history(inner)
        _, gone = await inner.file(b"gone", b"gone")
        await inner.execute(Unlink(ROOT_CALLER, ROOT_INO, b"gone"))
        while not inner.service.tree.garbage_blobs(10):
            await inner.housekeeping.round()
            await asyncio.sleep(0.02)
        for _ in range(3):
            await inner.housekeeping.round()
        assert inner.service.tree.blob(gone.blob)
        monkeypatch.setattr(housekeeping, "GARBAGE_DELAY_S", 0.0)
        await inner.housekeeping.round()
        assert inner.service.tree.garbage_blobs(10) == []
        assert not inner.store.has(gone.blob)

    run(tmp_path, scenario)


def test_history_within_retention_is_kept(tmp_path: Path) -> None:
    """Every version is kept for a retention time: a deleted file's blob stays."""

    async def scenario(inner: Inner) -> None:
        ino, info = await inner.file(b"a", b"content")
        before = inner.service.tree.applied_index
        await inner.execute(Unlink(ROOT_CALLER, ROOT_INO, b"a"))
        for _ in range(3):
            await inner.housekeeping.round()
        assert inner.store.has(info.blob)
        assert inner.service.tree.lookup(ROOT_INO, b"a", before).ino == ino

    run(tmp_path, scenario)


def test_history_makes_room_before_its_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When space runs out the oldest history goes first, whatever its age, until its content is
    deleted; what is present stays, and nothing goes while there is room."""
    monkeypatch.setattr(housekeeping, "GARBAGE_DELAY_S", 0.0)

    async def scenario(inner: Inner) -> None:
        _, old = await inner.file(b"old", b"old")
        kept_from = inner.service.tree.applied_index
        await inner.execute(Unlink(ROOT_CALLER, ROOT_INO, b"old"))
        _, kept = await inner.file(b"kept", b"kept")
        for _ in range(3):
            await inner.housekeeping.round()
        assert inner.service.tree.history_floor < kept_from
        inner.free_percent = 1
        floors = []
        for _ in range(400):
            await inner.housekeeping.round()
            floors.append(inner.service.tree.history_floor)
            if not inner.store.has(old.blob):
                break
            await asyncio.sleep(0.01)
        assert not inner.store.has(old.blob)
        assert inner.store.read(kept.blob, 0, 10) == b"kept"
        assert floors == sorted(floors)
        # The room that this makes is waited for before more history goes.
        await inner.housekeeping.round()
        await inner.housekeeping.round()
        assert inner.service.tree.history_floor == floors[-1]

    run(tmp_path, scenario)


def test_small_content_is_forgotten_as_fast_as_it_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More garbage in the tree than one command takes, behind that of files, which waits until each
    node has seen it: all that is in the tree goes in one round."""
    monkeypatch.setattr(housekeeping, "GARBAGE_PER_ROUND", 5)
    monkeypatch.setattr(housekeeping, "GARBAGE_SEEN_MAX", 20)
    monkeypatch.setattr(housekeeping, "FORGETS_PER_ROUND", 10)

    async def scenario(inner: Inner) -> None:
        files = []
        for number in range(10):
            ino, info = await inner.file(b"%d" % number, b"content")
            files.append(info.blob)
            await inner.execute(put(ino, 1000 + number, b"new"))
        for counter in range(2000, 2030):
            await inner.execute(put(ino, counter, b"newer %d" % counter))
        await inner.execute(TrimHistory(inner.service.tree.applied_index, 1000))
        await inner.housekeeping.round()
        assert [info.blob for info in inner.service.tree.garbage_blobs(100)] == files

    run(tmp_path, scenario)


def test_history_stays_while_the_trees_file_gets_smaller(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forgotten small content is free inside the tree's file before it is on the disk: as long as
    there is any, more history would go for nothing. Then it goes, if there is still no room."""
    monkeypatch.setattr(housekeeping, "ROOM_COMES_S", 0.0)
    monkeypatch.setattr(housekeeping, "GIVE_BACKS_PER_ROUND", 0)
    monkeypatch.setattr(machine, "FREE_PAGES_KEPT", 0)

    async def scenario(inner: Inner) -> None:
        ino, _ = await inner.file(b"a", b"content")
        for counter in range(1000, 1050):
            await inner.execute(put(ino, counter, b"%4096d" % counter))
        tree = inner.service.tree
        await inner.execute(TrimHistory(tree.applied_index, 1000))
        await inner.execute(ForgetBlobs(tuple(info.blob for info in tree.garbage_blobs(1000))))
        floor = tree.history_floor
        inner.free_percent = 1
        for _ in range(3):
            await inner.housekeeping.round()
        assert tree.spare_bytes > 0
        assert tree.history_floor == floor
        monkeypatch.setattr(housekeeping, "GIVE_BACKS_PER_ROUND", 16)
        await inner.housekeeping.round()
        assert tree.spare_bytes == 0
        await inner.housekeeping.round()
        assert tree.history_floor > floor

    run(tmp_path, scenario)


def test_the_reserve_is_a_setting(tmp_path: Path) -> None:
    """More of the disk is kept free as soon as somebody says so."""

    async def scenario(inner: Inner) -> None:
        await inner.housekeeping.round()
        before = inner.store.usage()
        await inner.execute(SetSetting("reserve_max_bytes", str(1 << 50)))
        await inner.execute(SetSetting("reserve_percent", "50"))
        await inner.housekeeping.round()
        after = inner.store.usage()
        kept = before.total // 2 - min(512 << 20, before.total * 5 // 100)
        assert after.free <= max(0, before.free - kept) + (64 << 20)

    run(tmp_path, scenario)


def test_strays_are_deleted_only_when_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sealed blob that no commit names: kept while a commit may be on its way, then deleted; a
    named one of any age stays."""

    async def scenario(inner: Inner) -> None:
        _, named = await inner.file(b"a", b"named")
        stray, _ = inner.store.put(b"stray")
        await inner.housekeeping._collect_strays()
        assert inner.store.has(stray)
        monkeypatch.setattr(housekeeping, "STRAY_AGE_S", -1.0)
        await inner.housekeeping._collect_strays()
        assert not inner.store.has(stray)
        assert inner.store.has(named.blob)

    run(tmp_path, scenario)


def test_a_failing_disk_ends_the_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """fdatasync fails once: nothing is acknowledged and the driver says so; it is never retried."""

    async def scenario(inner: Inner) -> None:
        calls = 0

        def broken() -> None:
            nonlocal calls
            calls += 1
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        monkeypatch.setattr(inner.log, "sync", broken)
        command = asyncio.ensure_future(inner.file(b"a", b"x"))
        await asyncio.wait([inner.driver.failed])
        error = inner.driver.failed.exception()
        assert isinstance(error, OSError)
        assert error.errno == errno.EIO
        assert calls == 1
        assert not command.done()
        command.cancel()
        monkeypatch.undo()

    run(tmp_path, scenario)


@pytest.mark.expects_log("disk full")
def test_a_full_log_is_tried_again_until_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NoSpaceError from the log: nothing acknowledged meanwhile, everything after."""

    async def scenario(inner: Inner) -> None:
        sync = inner.log.sync
        tries = 0

        def full() -> None:
            nonlocal tries
            tries += 1
            if tries < 3:
                raise NoSpaceError("full")
            sync()

        monkeypatch.setattr(inner.log, "sync", full)
        await inner.file(b"a", b"x")
        assert tries >= 3
        monkeypatch.undo()

    run(tmp_path, scenario)
