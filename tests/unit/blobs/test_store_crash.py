"""Crashes and failing calls at every step of the blob store.

Method: run one story on a simulated disk, once for every call that it makes, and let the machine
stop, or the call fail, right there. Then recover and compare with what the story was promised. The
same search must find every classic mistake in the order of syncs, or it proves nothing.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from blake3 import blake3

from pydi_node.blobs import store as store_module
from pydi_node.blobs.store import BlobStore, Writer
from pydi_node.errors import BlobCorruptError, BlobMissingError, NoSpaceError
from pydi_node.ids import BlobId, NodeNumber, blob_id
from tests.harness.disk_sim import (
    Crash,
    NoDirectorySync,
    NoFdatasync,
    RenameBeforeFdatasync,
    SimulatedDisk,
)

NODE = NodeNumber(3)
FOREIGN = blob_id(NodeNumber(7), 5)
FOREIGN_CONTENT = bytes(range(256)) * 9
SEEDS = range(6)
ROOT = Path("/disk/blobs")


@pytest.fixture(autouse=True)
def small_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two fan-out directories and two names a reservation: each rare step comes up in a story."""
    monkeypatch.setattr(store_module, "_FANOUT_NAMES", ("00", "01"))
    monkeypatch.setattr(store_module, "FANOUT_COUNT", 2)
    monkeypatch.setattr(store_module, "NAMES_STRIDE", 2)


class Promises:
    """What the store said to its caller, collected while a story runs."""

    def __init__(self) -> None:
        self.given: list[BlobId] = []  # names given out
        self.sealed: dict[BlobId, bytes] = {}  # seal returned: must be there
        self.maybe: dict[BlobId, bytes] = {}  # under way, deleted or damaged: may be there, whole
        self.contents: set[bytes] = {FOREIGN_CONTENT}  # all that was ever sealed or about to be


Step = Callable[[BlobStore, Promises], None]


def put_one(store: BlobStore, promises: Promises) -> None:
    content = b"small %d" % len(promises.given)
    promises.contents.add(content)
    blob, _ = store.put(content)
    promises.given.append(blob)
    promises.sealed[blob] = content


def write_in_pieces(store: BlobStore, promises: Promises) -> None:
    with store.create() as writer:
        promises.given.append(writer.blob)
        content = b"a" * 700 + b"b" * 900
        promises.contents.add(content)
        writer.write(0, content[:700])
        writer.write(700, b"x" * 900)
        writer.write(700, content[700:])
        writer.truncate(len(content))
        seal(writer, content, promises)


def seal(writer: Writer, content: bytes, promises: Promises) -> None:
    promises.maybe[writer.blob] = content
    result = writer.seal(len(content), blake3(content).digest())
    assert result == (len(content), blake3(content).digest())
    promises.sealed[writer.blob] = promises.maybe.pop(writer.blob)


def abort_one(store: BlobStore, promises: Promises) -> None:
    with store.create() as writer:
        promises.given.append(writer.blob)
        writer.write(0, b"never to be seen")


def receive_one(store: BlobStore, promises: Promises) -> None:
    checksum = blake3(FOREIGN_CONTENT).digest()
    with store.receive(FOREIGN, len(FOREIGN_CONTENT), checksum) as writer:
        writer.write(0, FOREIGN_CONTENT)
        kept = promises.sealed.get(FOREIGN)
        seal(writer, FOREIGN_CONTENT, promises)
        assert kept in (None, FOREIGN_CONTENT)


def receive_wrong(store: BlobStore, promises: Promises) -> None:
    with store.receive(blob_id(NodeNumber(7), 6), 5, bytes(32)) as writer:
        writer.write(0, b"wrong")
        with pytest.raises(BlobCorruptError):
            writer.seal()


def delete_one(store: BlobStore, promises: Promises) -> None:
    blob = min(promises.sealed, default=None)
    if blob is not None:
        promises.maybe[blob] = promises.sealed.pop(blob)
        store.delete(blob)


STORY: tuple[Step, ...] = (
    put_one,
    receive_one,
    receive_one,
    write_in_pieces,
    abort_one,
    delete_one,
    receive_wrong,
    put_one,
    put_one,
)


def story(seed: int) -> tuple[Step, ...]:
    """Every seed begins with another step: what the first of a kind brings about moves around."""
    return STORY[seed % len(STORY) :] + STORY[: seed % len(STORY)]


def tell(disk: SimulatedDisk, promises: Promises, seed: int) -> None:
    store = BlobStore(ROOT, NODE, disk)
    store.recover()
    for step in story(seed):
        step(store, promises)


def check(disk: SimulatedDisk, promises: Promises) -> None:
    """Every promise holds in a store that recovered from this disk; AssertionError otherwise."""
    store = BlobStore(ROOT, NODE, disk)
    report = store.recover()
    for blob, content in promises.sealed.items():
        assert store.has(blob), f"sealed blob {blob:x} is lost"
        assert store.read(blob, 0, 1 << 20) == content, f"sealed blob {blob:x} is damaged"
        store.verify(blob, len(content), blake3(content).digest())
    check_nothing_half(disk, store, promises)
    assert (report.files, report.size_bytes) == store.usage()[1::-1]
    assert disk.names(ROOT / "tmp") == []
    given = set(promises.given)
    for _ in range(5):
        blob, _ = store.put(b"after")
        assert blob not in given, f"name {blob:x} was given twice"
        given.add(blob)


def check_killed(disk: SimulatedDisk, promises: Promises) -> None:
    """What the next process finds on a machine that lived on survives a crash right after that."""
    store = BlobStore(ROOT, NODE, disk)
    store.recover()
    found = {blob: store.read(blob, 0, 1 << 20) for blob in store.names()}
    promises.given.append(store.create().blob)
    assert found.items() >= promises.sealed.items()
    promises.sealed = found
    check(disk.crashed(), promises)


def check_nothing_half(disk: SimulatedDisk, store: BlobStore, promises: Promises) -> None:
    names = list(store.names())
    assert names == sorted(set(names))
    size = 0
    for blob in names:
        content = store.read(blob, 0, 1 << 20)
        size += len(content)
        whole = promises.sealed.get(blob, promises.maybe.get(blob))
        if whole is not None:
            assert content == whole, f"blob {blob:x} is half there"
        else:
            assert content in promises.contents, f"blob {blob:x} was never to be seen"
    assert store.usage()[:2] == (size, len(names))


def crashes(make_disk: Callable[[int], SimulatedDisk]) -> Iterator[str]:
    """A sentence for each crash after which a promise was broken."""
    for seed in SEEDS:
        whole = make_disk(seed)
        tell(whole, Promises(), seed)
        for at in range(whole.calls):
            disk, promises = make_disk(seed * 1000 + at), Promises()
            disk.crash(at)
            with pytest.raises(Crash):
                tell(disk, promises, seed)
            after = disk.crashed()
            # Every other time the machine stops again while it recovers.
            if at % 2:
                after.crash(at % 23)
                try:
                    BlobStore(ROOT, NODE, after).recover()
                except Crash:
                    pass  # it may also have been fast enough
                after = after.crashed()
            try:
                check(after, promises)
                check_killed(disk.killed(), promises)
            except (AssertionError, BlobCorruptError, BlobMissingError) as exc:
                yield f"seed {seed}, crash at call {at} ({disk.trace[at]}): {exc}"


def test_no_crash_breaks_a_promise() -> None:
    """Sealed blobs are whole, unsealed ones leave nothing half, names are never given twice."""
    assert list(crashes(SimulatedDisk)) == []


class NoFanoutSync(SimulatedDisk):
    def sync_directory(self, path: Path) -> None:
        if path.parent == ROOT:
            self._call("sync_directory")
        else:
            super().sync_directory(path)


class NoRootSync(SimulatedDisk):
    def sync_directory(self, path: Path) -> None:
        if path == ROOT:
            self._call("sync_directory")
        else:
            super().sync_directory(path)


@pytest.mark.expects_log("reservation of blob names lost")
@pytest.mark.parametrize(
    "mistake", [NoFdatasync, NoDirectorySync, NoFanoutSync, NoRootSync, RenameBeforeFdatasync]
)
def test_the_search_finds_each_classic_mistake(mistake: Callable[[int], SimulatedDisk]) -> None:
    """With one sync left out or late, some crash breaks a promise."""
    assert next(crashes(mistake), None) is not None


@pytest.mark.expects_log("moved to quarantine")
@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO])
def test_no_failing_call_breaks_a_promise(error: int) -> None:
    """At each call, once: an error is told, nothing is half there, all else goes on; then a crash.

    A full disk is NoSpaceError wherever something is written.
    """
    for seed in SEEDS:
        whole = SimulatedDisk(seed)
        store = BlobStore(ROOT, NODE, whole)
        store.recover()
        start = whole.calls
        for step in story(seed):
            step(store, Promises())
        for at in range(whole.calls - start):
            disk, promises = SimulatedDisk(seed), Promises()
            store = BlobStore(ROOT, NODE, disk)
            store.recover()
            disk.fail(at, error)
            errors: list[Exception] = []
            for step in story(seed):
                try:
                    step(store, promises)
                except (OSError, NoSpaceError, BlobCorruptError) as exc:
                    errors.append(exc)
            failed = disk.trace[start + at]
            where = f"seed {seed}, call {at}: {failed}, errors {errors!r}"
            assert len(errors) <= 1, where
            if failed in ("create", "pwrite", "fdatasync", "rename", "sync_directory"):
                expected = NoSpaceError if error == errno.ENOSPC else OSError
                assert [type(e) for e in errors] == [expected], where
            assert disk.open_count() == 0, where
            check_nothing_half(disk, store, promises)
            if failed not in ("unlink", "close"):
                assert disk.names(ROOT / "tmp") == [], where
            check(disk.crashed(), promises)


def test_a_failed_sync_is_never_repeated() -> None:
    """After EIO the content may be gone although a second fdatasync succeeds: no blob."""
    disk = SimulatedDisk(1)
    store = BlobStore(ROOT, NODE, disk)
    store.recover()
    writer = store.create()
    writer.write(0, b"content")
    at = len(disk.trace)
    disk.fail(1, errno.EIO)  # call 0 reads on to the end for the checksum
    with pytest.raises(OSError, match="Input/output"):
        writer.seal()
    assert disk.trace[at:].count("fdatasync") == 1
    assert list(store.names()) == []
    assert disk.names(ROOT / "tmp") == []


def test_a_blob_whose_name_was_not_synced_is_withdrawn() -> None:
    """EIO from the directory's sync, after the renaming: nobody sees it, nothing is counted."""
    disk = SimulatedDisk(1)
    store = BlobStore(ROOT, NODE, disk)
    store.recover()
    writer = store.create()
    writer.write(0, b"content")
    whole = SimulatedDisk(1)
    twin = BlobStore(ROOT, NODE, whole)
    twin.recover()
    with twin.create() as other:
        other.write(0, b"content")
        begin = whole.calls
        other.seal()
    disk.fail(len(whole.trace) - 1 - begin, errno.EIO)
    assert whole.trace[-1] == "sync_directory"
    with pytest.raises(OSError, match="Input/output"):
        writer.seal()
    assert list(store.names()) == []
    assert store.usage()[:2] == (0, 0)


class Overtaken(SimulatedDisk):
    """Something else happens just before a directory is synced."""

    meanwhile: Callable[[], None] | None = None

    def sync_directory(self, path: Path) -> None:
        meanwhile, self.meanwhile = self.meanwhile, None
        if meanwhile is not None:
            meanwhile()
        super().sync_directory(path)


def test_a_second_copy_relies_only_on_what_is_on_disk() -> None:
    """It finds the first one renamed but not yet synced; when it returns, a crash loses neither."""
    checksum = blake3(FOREIGN_CONTENT).digest()
    for seed in range(20):
        disk = Overtaken(seed)
        store = BlobStore(ROOT, NODE, disk)
        store.recover()
        first, second = (store.receive(FOREIGN, len(FOREIGN_CONTENT), checksum) for _ in range(2))
        first.write(0, FOREIGN_CONTENT)
        second.write(0, FOREIGN_CONTENT)

        def crash_after_second(second: Writer = second, disk: SimulatedDisk = disk) -> None:
            second.seal()
            disk.crash(0)

        disk.meanwhile = crash_after_second
        with pytest.raises(Crash):
            first.seal()
        after = BlobStore(ROOT, NODE, disk.crashed())
        after.recover()
        after.verify(FOREIGN, len(FOREIGN_CONTENT), checksum)


@pytest.mark.expects_log("moved to quarantine")
def test_a_quarantined_blob_does_not_come_back() -> None:
    """Reads are not verified, so damage once found must not be served after a crash."""
    for seed in range(20):
        disk = SimulatedDisk(seed)
        store = BlobStore(ROOT, NODE, disk)
        store.recover()
        blob, _ = store.put(b"content")
        store.quarantine(blob, "checksum")
        disk = disk.crashed()
        store = BlobStore(ROOT, NODE, disk)
        assert store.recover().quarantined == 1
        assert not store.has(blob)
        assert len(disk.names(ROOT / "quarantine")) == 1


def test_recovery_is_safe_to_repeat_after_a_crash_at_any_call() -> None:
    """A store with everything in it survives any number of interrupted recoveries."""
    for seed in SEEDS:
        disk, promises = SimulatedDisk(seed), Promises()
        tell(disk, promises, seed)
        at = 0
        while True:
            disk.crash(at)
            try:
                BlobStore(ROOT, NODE, disk).recover()
            except Crash:
                disk = disk.crashed()
                at += 1
                continue
            break
        assert at >= 8
        check(disk.crashed(), promises)
