"""The blob store on a real directory: what each method promises, and what it refuses."""

from __future__ import annotations

import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from blake3 import blake3
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pydi_node.blobs import store as store_module
from pydi_node.blobs.files import Data, OsFiles, Space
from pydi_node.blobs.store import NAMES_JUMP, NAMES_STRIDE, BlobSeal, BlobStore
from pydi_node.errors import (
    BlobCorruptError,
    BlobMissingError,
    CorruptionError,
    NoSpaceError,
    UnavailableError,
)
from pydi_node.ids import BlobId, NodeNumber, blob_counter, blob_id, blob_name, blob_node
from tests.harness.disk_sim import SimulatedDisk

NODE = NodeNumber(3)
OTHER = NodeNumber(8)


def seal_of(content: bytes) -> BlobSeal:
    return BlobSeal(len(content), blake3(content).digest())


def new_store(root: Path) -> BlobStore:
    store = BlobStore(root, NODE)
    store.recover()
    return store


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    """A recovered store in tmp_path / "blobs"."""
    return new_store(tmp_path / "blobs")


def file_of(root: Path, blob: BlobId) -> Path:
    return root / "blobs" / f"{blob_counter(blob) & 255:02x}" / blob_name(blob)


def receive(store: BlobStore, blob: BlobId, content: bytes) -> BlobSeal:
    with store.receive(blob, *seal_of(content)) as writer:
        writer.write(0, content)
        return writer.seal()


def test_a_put_blob_is_a_plain_read_only_file(store: BlobStore, tmp_path: Path) -> None:
    """Named by this node, in the directory of its counter's low bits, mode 0400, nothing in tmp."""
    blob, seal = store.put(b"content")
    assert blob_node(blob) == NODE
    assert seal == seal_of(b"content")
    path = file_of(tmp_path, blob)
    assert path.read_bytes() == b"content"
    assert path.stat().st_mode & 0o777 == 0o400
    assert os.listdir(tmp_path / "blobs" / "tmp") == []


def test_reading_a_range_is_short_only_at_the_end(store: BlobStore) -> None:
    """read(2)'s rule; past the end there is nothing."""
    blob, _ = store.put(b"0123456789")
    assert store.read(blob, 2, 3) == b"234"
    assert store.read(blob, 8, 100) == b"89"
    assert store.read(blob, 10, 1) == store.read(blob, 99, 1) == b""
    assert store.size(blob) == 10


def test_an_absent_blob_is_missing_everywhere(store: BlobStore) -> None:
    """Each method that needs a copy says so; has and delete answer False."""
    blob = blob_id(OTHER, 1)
    for method in (store.open, store.size):
        with pytest.raises(BlobMissingError):
            method(blob)
    with pytest.raises(BlobMissingError):
        store.read(blob, 0, 1)
    with pytest.raises(BlobMissingError):
        store.verify(blob, 1, bytes(32))
    store.quarantine(blob, "checksum")
    assert not store.has(blob)
    assert not store.delete(blob)


def test_an_unsealed_blob_cannot_be_seen(store: BlobStore, tmp_path: Path) -> None:
    """Neither while it is written nor after it was aborted, by hand or by leaving the block."""
    with store.create() as writer:
        writer.write(0, b"secret")
        assert not store.has(writer.blob)
        assert list(store.names()) == []
    aborted = store.create()
    aborted.abort()
    aborted.abort()
    assert not store.has(writer.blob)
    assert os.listdir(tmp_path / "blobs" / "tmp") == []
    assert store.usage()[:2] == (0, 0)


def test_a_closed_writer_is_refused(store: BlobStore) -> None:
    """Using it after seal is a bug of the caller."""
    writer = store.create()
    writer.seal()
    for call in (writer.seal, writer.fileno, lambda: writer.write(0, b"x")):
        with pytest.raises(AssertionError):
            call()
    writer.abort()
    assert store.has(writer.blob)


@pytest.mark.parametrize("expected", [(4, None), (None, bytes(32)), (4, blake3(b"12345").digest())])
def test_a_seal_other_than_expected_stores_nothing(
    store: BlobStore, tmp_path: Path, expected: tuple[int | None, bytes | None]
) -> None:
    """Size and checksum are checked each on its own."""
    writer = store.create()
    writer.write(0, b"12345")
    with pytest.raises(BlobCorruptError):
        writer.seal(*expected)
    assert not store.has(writer.blob)
    assert os.listdir(tmp_path / "blobs" / "tmp") == []


# A write at an offset, or at the end for None (the usual way, which is hashed on the go); or a cut.
writes = st.tuples(st.none() | st.integers(0, 25), st.binary(max_size=12))
operations = st.lists(writes | st.integers(0, 30), max_size=10)


@settings(deadline=None, max_examples=150)
@given(operations, st.booleans())
@example([(None, b"hashed"), 3], False)
@example([(None, b"hashed"), 3, 9], False)
@example([(None, b"hashed"), (2, b"S"), (None, b"more")], False)
@example([(None, b"hashed"), (9, b"behind a gap"), (6, b"gap")], False)
@example([(None, b"hashed")], True)
def test_any_order_of_writes_seals_what_the_file_holds(
    steps: list[tuple[int | None, bytes] | int], shared: bool
) -> None:
    """Compared with a bytearray: sequential, overlapping, with gaps, cut, or past the writer."""
    disk = SimulatedDisk(1)
    store = BlobStore(disk.root / "blobs", NODE, disk)
    store.recover()
    model = bytearray()
    writer = store.create()
    for step in steps:
        if isinstance(step, int):
            writer.truncate(step)
            model[step:] = b""
            model.extend(bytes(step - len(model)))
            continue
        offset, data = step
        offset = len(model) if offset is None else offset
        writer.write(offset, data)
        if data:
            model.extend(bytes(max(0, offset - len(model))))
            model[offset : offset + len(data)] = data
        assert writer.size == len(model)
    if shared and model:
        disk.pwrite(writer.fileno(), b"!", 0)
        model[0:1] = b"!"
    assert writer.seal() == seal_of(bytes(model))
    assert store.read(writer.blob, 0, 1000) == model


def test_what_goes_past_the_writer_counts(store: BlobStore) -> None:
    """A descriptor handed out: size and checksum come from the file, not from what write saw."""
    writer = store.create()
    writer.write(0, b"aaaa")
    descriptor = os.dup(writer.fileno())
    os.pwrite(descriptor, b"bb", 1)
    os.pwrite(descriptor, b"c", 9)
    os.close(descriptor)
    assert writer.size == 10
    assert writer.seal() == seal_of(b"abba\0\0\0\0\0c")


def test_a_received_copy_is_verified_and_idempotent(store: BlobStore) -> None:
    """The wrong content is refused, the right one stored, once more changes nothing."""
    blob = blob_id(OTHER, 77)
    writer = store.receive(blob, *seal_of(b"right"))
    writer.write(0, b"wrong")
    with pytest.raises(BlobCorruptError):
        writer.seal()
    assert not store.has(blob)
    assert receive(store, blob, b"right") == receive(store, blob, b"right") == seal_of(b"right")
    assert store.usage()[:2] == (5, 1)
    assert list(store.names()) == [blob]


def test_two_copies_of_one_blob_may_arrive_at_once(store: BlobStore) -> None:
    """Repair and handshake can choose the same blob: both succeed, it is stored once."""
    blob = blob_id(OTHER, 77)
    first, second = (store.receive(blob, *seal_of(b"right")) for _ in range(2))
    first.write(0, b"right")
    second.write(0, b"right")
    assert first.seal() == second.seal()
    assert store.usage()[:2] == (5, 1)


@pytest.mark.expects_log("moved to quarantine")
def test_a_good_copy_replaces_a_damaged_one(store: BlobStore, tmp_path: Path) -> None:
    """The damaged file goes to quarantine, not away; the blob is whole again."""
    blob = blob_id(OTHER, 77)
    receive(store, blob, b"right")
    path = file_of(tmp_path, blob)
    path.chmod(0o600)
    path.write_bytes(b"rXght")
    receive(store, blob, b"right")
    store.verify(blob, *seal_of(b"right"))
    [kept] = (tmp_path / "blobs" / "quarantine").iterdir()
    assert kept.name == f"{blob_name(blob)}.checksum"
    assert kept.read_bytes() == b"rXght"
    assert store.usage()[:2] == (5, 1)


@pytest.mark.expects_log("moved to quarantine")
@pytest.mark.parametrize(
    ("damaged", "reason"), [(b"conTent", "checksum"), (b"conten", "size"), (b"", "size")]
)
def test_a_damaged_blob_is_found_and_quarantined(
    store: BlobStore, tmp_path: Path, damaged: bytes, reason: str
) -> None:
    """Bit flip and cut: corrupt once, then missing, the damaged bytes kept; never given out."""
    blob, seal = store.put(b"content")
    path = file_of(tmp_path, blob)
    path.chmod(0o600)
    for attempt in ("", ".2"):
        path.write_bytes(damaged)
        with pytest.raises(BlobCorruptError):
            store.verify(blob, *seal)
        with pytest.raises(BlobMissingError):
            store.verify(blob, *seal)
        kept = tmp_path / "blobs" / "quarantine" / f"{blob_name(blob)}.{reason}{attempt}"
        assert kept.read_bytes() == damaged


@pytest.mark.expects_log("moved to quarantine")
def test_an_unreadable_blob_is_quarantined() -> None:
    """A medium error is damage like any other, for read and for verify."""
    for name in ("read", "verify"):
        disk = SimulatedDisk(1)
        store = BlobStore(disk.root / "blobs", NODE, disk)
        store.recover()
        blob, seal = store.put(b"content")
        disk.fail(1, 5)  # call 0 opens, call 1 reads
        with pytest.raises(BlobCorruptError):
            store.read(blob, 0, 7) if name == "read" else store.verify(blob, *seal)
        assert not store.has(blob)
        assert disk.names(disk.root / "blobs" / "quarantine") == [f"{blob_name(blob)}.unreadable"]
        assert disk.open_count() == 0


def test_an_open_blob_outlives_its_deletion(store: BlobStore) -> None:
    """A reader that has the descriptor reads on; the usage is counted down at once."""
    blob, _ = store.put(b"content")
    descriptor = store.open(blob)
    assert store.delete(blob)
    assert os.pread(descriptor, 10, 0) == b"content"
    os.close(descriptor)
    assert store.usage()[:2] == (0, 0)
    assert not store.delete(blob)


def test_names_come_in_ascending_order_over_all_directories(store: BlobStore) -> None:
    """Own and foreign names; what is no blob, or lies in a wrong directory, does not show."""
    own = [store.put(b"")[0] for _ in range(20)]
    foreign = [blob_id(OTHER, counter) for counter in (1, 255, 256, 257, 1 << 40)]
    for blob in foreign:
        receive(store, blob, b"x")
    assert list(store.names()) == own + foreign


@pytest.mark.expects_log("not a blob")
def test_recovery_counts_what_is_there(tmp_path: Path) -> None:
    """Blobs and their bytes, leftovers removed, quarantined and strange files left alone."""
    root = tmp_path / "blobs"
    store = new_store(root)
    store.put(b"12345")
    store.put(b"678")
    unfinished = store.create()
    unfinished.write(0, b"half")
    os.close(unfinished.fileno())
    (root / "quarantine" / "0008000000000001.checksum").write_bytes(b"?")
    (root / "00" / "notes.txt").write_bytes(b"mine")
    (root / "00" / blob_name(blob_id(OTHER, 1))).write_bytes(b"wrong directory")
    again = BlobStore(root, NODE)
    assert again.recover() == (2, 8, 1, 1, 2)
    assert again.usage()[:2] == (8, 2)
    assert os.listdir(root / "tmp") == []
    assert (root / "00" / "notes.txt").exists()
    assert len(list(again.names())) == 2


def test_names_are_never_given_twice_over_restarts(tmp_path: Path) -> None:
    """Not even those of aborted and deleted blobs; a restart skips at most one reservation."""
    seen: list[BlobId] = []
    for _ in range(3):
        store = new_store(tmp_path / "blobs")
        for _ in range(3):
            blob, _ = store.put(b"")
            store.delete(blob)
            seen.append(blob)
    assert seen == sorted(set(seen))
    assert blob_counter(seen[-1]) <= 3 * NAMES_STRIDE


@pytest.mark.expects_log("reservation of blob names lost")
@pytest.mark.parametrize("damaged", [None, b"", b"pydi-names 1 1 00000000\n"])
def test_a_lost_reservation_jumps_far_ahead(tmp_path: Path, damaged: bytes | None) -> None:
    """Names beyond the highest one left may be in use on other nodes."""
    store = new_store(tmp_path / "blobs")
    blob, _ = store.put(b"content")
    names = tmp_path / "blobs" / "names"
    names.unlink() if damaged is None else names.write_bytes(damaged)
    again, _ = new_store(tmp_path / "blobs").put(b"")
    assert blob_counter(again) == blob_counter(blob) + NAMES_JUMP


@pytest.mark.expects_log("reservation of blob names lost")
def test_an_emptied_directory_does_not_repeat_names(tmp_path: Path) -> None:
    """The tree remembers the highest counter when the whole directory is gone."""
    new_store(tmp_path / "blobs").put(b"")
    shutil.rmtree(tmp_path / "blobs")
    store = BlobStore(tmp_path / "blobs", NODE)
    store.recover(counter_floor=5)
    assert blob_counter(store.put(b"")[0]) > 5


@pytest.mark.expects_log("reservation of blob names lost")
def test_an_older_reservation_does_not_repeat_names(tmp_path: Path) -> None:
    """Restored from a backup: the files or the tree know of higher names."""
    store = new_store(tmp_path / "blobs")
    old = (tmp_path / "blobs" / "names").read_bytes()
    blob, _ = store.put(b"")
    (tmp_path / "blobs" / "names").write_bytes(old)
    assert new_store(tmp_path / "blobs").put(b"")[0] > blob
    ahead = 1 << 40
    store = BlobStore(tmp_path / "blobs", NODE)
    store.recover(counter_floor=ahead)
    assert blob_counter(store.put(b"")[0]) > ahead


def test_a_name_in_use_is_never_overwritten(store: BlobStore, tmp_path: Path) -> None:
    """Should a counter ever go back, the older content wins and the node says so."""
    writer = store.create()
    writer.write(0, b"new")
    path = file_of(tmp_path, writer.blob)
    path.write_bytes(b"old")
    with pytest.raises(CorruptionError):
        writer.seal()
    assert path.read_bytes() == b"old"


def test_a_directory_removed_by_hand_comes_back(store: BlobStore, tmp_path: Path) -> None:
    """The next blob that belongs there makes it again."""
    blob, _ = store.put(b"content")
    for directory in (tmp_path / "blobs").iterdir():
        if len(directory.name) == 2:
            shutil.rmtree(directory)
    assert list(store.names()) == []
    assert not store.has(blob)
    assert receive(store, blob, b"content") == seal_of(b"content")
    assert store.read(blob, 0, 7) == b"content"


class SmallDisk(OsFiles):
    """Real files, but statvfs reports what the test says."""

    free = 1 << 40
    total = 1 << 40

    def space(self, path: Path) -> Space:
        return Space(self.free, self.total)


def test_the_reserve_is_never_touched(tmp_path: Path) -> None:
    """A write, or a copy whose size is known, that would touch it stores nothing."""
    files = SmallDisk()
    store = BlobStore(tmp_path / "blobs", NODE, files, reserve_bytes=1000, reserve_percent=50)
    store.recover()
    files.free = 1100
    assert store.usage().free == 100
    with pytest.raises(NoSpaceError):
        store.put(bytes(101))
    with pytest.raises(NoSpaceError):
        store.receive(blob_id(OTHER, 1), 101, bytes(32))
    assert os.listdir(tmp_path / "blobs" / "tmp") == []
    assert store.usage()[:2] == (0, 0)
    store.put(bytes(100))
    files.free = 900
    assert store.usage().free == 0
    with pytest.raises(NoSpaceError):
        store.put(b"x" * 100)


def test_the_reserve_of_a_small_disk_is_a_share_of_it(tmp_path: Path) -> None:
    """The smaller of the two settings counts."""
    files = SmallDisk()
    files.free = files.total = 1000
    store = BlobStore(tmp_path / "blobs", NODE, files, reserve_bytes=900, reserve_percent=5)
    store.recover()
    assert store.usage().free == 950


def test_writers_in_many_threads_do_not_disturb_each_other(
    store: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight threads put, read, verify and delete; every result and the usage come out right."""
    monkeypatch.setattr(store_module, "NAMES_STRIDE", 5)

    def work(number: int) -> BlobId | None:
        content = b"%d" % number * (number % 50)
        blob, seal = store.put(content)
        assert store.read(blob, 0, 1000) == content
        store.verify(blob, *seal)
        receive(store, blob_id(OTHER, number % 7 + 1), b"the same")
        if number % 3 == 0:
            assert store.delete(blob)
            return None
        return blob

    with ThreadPoolExecutor(8) as pool:
        kept = [blob for blob in pool.map(work, range(200)) if blob is not None]
    foreign = [blob_id(OTHER, counter) for counter in range(1, 8)]
    names = list(store.names())
    assert names == sorted(kept) + foreign
    assert store.usage()[:2] == (sum(map(store.size, names)), len(names))


def test_a_stopping_store_checks_nothing_more(store: BlobStore) -> None:
    """A node that stops can't wait for a large file to be hashed; nothing is said against it."""
    blob, seal = store.put(b"content")
    store.stop()
    with pytest.raises(UnavailableError):
        store.verify(blob, *seal)
    assert store.read(blob, 0, 9) == b"content"


def test_a_followed_blob_is_sealed_as_what_it_should_be(store: BlobStore) -> None:
    """A copy that was written while the original was: the right content is stored, and once more
    changes nothing; other content is refused and leaves nothing behind."""
    blob = blob_id(OTHER, 5)
    for _ in range(2):
        with store.follow(blob) as writer:
            writer.write(0, b"cont")
            writer.write(4, b"ent")
            assert writer.seal(*seal_of(b"content")) == seal_of(b"content")
    other = blob_id(OTHER, 6)
    with store.follow(other) as writer:
        writer.write(0, b"Content")
        with pytest.raises(BlobCorruptError):
            writer.seal(*seal_of(b"content"))
    assert (store.read(blob, 0, 9), store.has(other), store.usage().files) == (b"content", False, 1)


@pytest.mark.parametrize("order", [(1, 0, 3, 2, 4), (3, 2, 1, 0, 4), (0, 2, 1, 4, 3)])
def test_pieces_that_overtake_each_other_are_hashed_on_their_way(
    tmp_path: Path, order: tuple[int, ...]
) -> None:
    """Sealing reads nothing again, whatever order the pieces came in: its writer waits for that."""
    reads: list[int] = []

    class Counting(OsFiles):
        def pread(self, fd: int, length: int, offset: int) -> bytes:
            data = super().pread(fd, length, offset)
            reads.append(len(data))
            return data

    store = BlobStore(tmp_path / "blobs", NODE, Counting())
    store.recover()
    content = os.urandom(50)
    with store.create() as writer:
        for piece in order:
            writer.write(10 * piece, content[10 * piece : 10 * piece + 10])
        reads.clear()
        assert writer.seal() == seal_of(content)
    assert sum(reads) == 0


@pytest.mark.parametrize("borrowed", [False, True])
def test_a_writer_is_not_closed_under_who_still_writes(tmp_path: Path, borrowed: bool) -> None:
    """A session ends while a thread writes for it: the descriptor, whose number the next file gets,
    is closed when that thread has done with it."""
    aborts: list[threading.Thread] = []

    is_writing = False

    class Slow(OsFiles):
        def pwrite(self, fd: int, data: Data, offset: int) -> None:
            self._end_meanwhile()
            super().pwrite(fd, data, offset)

        def pread(self, fd: int, length: int, offset: int) -> bytes:
            self._end_meanwhile()
            return super().pread(fd, length, offset)

        def _end_meanwhile(self) -> None:
            if is_writing and not aborts:
                aborts.append(threading.Thread(target=writer.abort))
                aborts[0].start()
                aborts[0].join(0.05)  # it waits, or has closed the file long before
                assert writer.is_open

    store = BlobStore(tmp_path / "blobs", NODE, Slow())
    store.recover()
    writer = store.create()
    is_writing = True
    if borrowed:
        os.write(writer.lend(), b"content")
        assert writer.grown(0, 7) == b"content"
    else:
        writer.write(0, b"content")
    aborts[0].join()
    assert not writer.is_open
    assert not list((tmp_path / "blobs" / "tmp").iterdir())
