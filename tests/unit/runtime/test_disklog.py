"""The log on disk: round trips, crashes and failing calls at every step, damage of every kind.

Method of the crash tests: a seeded story of appends, syncs, cuts, resets and restarts runs beside a
deliberately dumb model. Each batch boundary of the model is a view. What is loaded after a crash
must be one of the views, exactly, and not one older than the last that was acknowledged.
"""

from __future__ import annotations

import errno
import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pydi_node.consensus.types import Entry, EntryKind, HardState, Membership, SnapshotMeta
from pydi_node.errors import CorruptionError, NoSpaceError, UserError
from pydi_node.ids import LogIndex, NodeNumber, Term
from pydi_node.runtime import disklog
from pydi_node.runtime.disklog import DiskLog, LoadedState
from tests.harness.disk_sim import (
    Crash,
    NoDirectorySync,
    NoFdatasync,
    RenameBeforeFdatasync,
    SimulatedDisk,
)

LOG = Path("/disk/log")
SEGMENT_BYTES = 1200  # a few batches, so that every story rolls and drops segments
SEEDS = range(12)
EMPTY = LoadedState(HardState(), SnapshotMeta(), [])

Opener = Callable[[SimulatedDisk], tuple[DiskLog, LoadedState]]


def entry(index: int, term: int = 1, data: bytes = b"data") -> Entry:
    return Entry(LogIndex(index), Term(term), EntryKind.COMMAND, data)


def entries(first: int, last: int, term: int = 1) -> list[Entry]:
    return [entry(index, term, b"%d" % index) for index in range(first, last + 1)]


def meta(index: int, term: int = 1, *voters: int) -> SnapshotMeta:
    return SnapshotMeta(LogIndex(index), Term(term), Membership.founding(*voters))


def hard(term: int, vote: int | None = None, commit: int = 0) -> HardState:
    return HardState(Term(term), NodeNumber(vote) if vote else None, LogIndex(commit))


def open_log(
    disk: SimulatedDisk, log_class: type[DiskLog] = DiskLog
) -> tuple[DiskLog, LoadedState]:
    return log_class.open(LOG, disk, segment_bytes=SEGMENT_BYTES)


def load(disk: SimulatedDisk) -> LoadedState:
    """What a restart finds. Leaves the log closed."""
    log, loaded = open_log(disk)
    log.close()
    return loaded


# --- behaviour ------------------------------------------------------------------------------------


def test_a_new_log_is_empty(tmp_path: Path) -> None:
    """Also the second time it is opened, and on real files."""
    for _ in range(2):
        log, loaded = DiskLog.open(tmp_path / "log")
        assert loaded == EMPTY
        log.close()
        log.close()


def test_what_was_appended_is_loaded(tmp_path: Path) -> None:
    """Hard state, kinds, terms and bytes of entries, over a restart, on real files."""
    log, _ = DiskLog.open(tmp_path / "log")
    written = [
        entry(1, 1, b""),
        Entry(LogIndex(2), Term(3), EntryKind.MEMBERSHIP, bytes(range(256))),
        Entry(LogIndex(3), Term(3), EntryKind.EMPTY, b""),
    ]
    log.append(hard(3, 2, 1), written[:1])
    log.append(None, written[1:])
    log.close()
    log, loaded = DiskLog.open(tmp_path / "log")
    log.close()
    assert loaded == LoadedState(hard(3, 2, 1), SnapshotMeta(), written)


def test_only_synced_batches_are_on_disk() -> None:
    """append alone writes nothing; one sync covers everything before it, with one fdatasync."""
    disk = SimulatedDisk(1)
    log, _ = open_log(disk)
    before = disk.calls
    for index in range(1, 6):
        log.append(hard(index), [entry(index)])
    assert disk.calls == before
    log.sync()
    log.sync()
    assert disk.trace[before:] == ["pwrite", "fdatasync"]
    log.append(hard(9), [entry(6)])
    assert load(disk.crashed()) == LoadedState(
        hard(5), SnapshotMeta(), [entry(i) for i in range(1, 6)]
    )


def test_truncation_replaces_the_end_of_the_log() -> None:
    """truncate_from goes too; new entries take the places."""
    disk = SimulatedDisk(1)
    log, _ = open_log(disk)
    log.append(None, entries(1, 5))
    log.sync()
    log.append(hard(2), entries(3, 4, term=2), truncate_from=LogIndex(3))
    log.sync()
    log.append(truncate_from=LogIndex(4))
    log.close()
    assert load(disk).entries == entries(1, 2) + entries(3, 3, term=2)


def test_a_cut_moves_the_start_and_deletes_segments() -> None:
    """Entries up to it are not loaded; files without newer ones are gone; the meta is kept."""
    disk = SimulatedDisk(1)
    log, _ = open_log(disk)
    for index in range(1, 60):
        log.append(hard(1, 3, index - 1), [entry(index)])
        log.sync()
    many = len(disk.paths())
    log.cut(meta(50, 1, 1, 2, 3))
    assert many > 3
    assert len(disk.paths()) < many / 2
    log.append(hard(2), [entry(60, 2)])
    log.close()
    loaded = load(disk)
    assert loaded.snapshot == meta(50, 1, 1, 2, 3)
    assert loaded.hard_state == hard(2)
    assert loaded.entries == [entry(i) for i in range(51, 60)] + [entry(60, 2)]


def test_a_reset_leaves_nothing_but_the_snapshot_and_the_hard_state() -> None:
    """Entries beyond the snapshot's index go as well, and all older files; it goes on behind it."""
    disk = SimulatedDisk(1)
    log, _ = open_log(disk)
    for index in range(1, 41):
        log.append(hard(4, 2, 7), [entry(index)])
        log.sync()
    assert len(disk.paths()) > 2
    log.append(None, entries(41, 50))
    log.reset(meta(10, 3, 1, 2))
    assert len(disk.paths()) == 1
    log.append(None, [entry(11, 4)])
    log.close()
    assert load(disk) == LoadedState(hard(4, 2, 7), meta(10, 3, 1, 2), [entry(11, 4)])


def test_an_interrupted_deletion_is_finished_by_the_next_start() -> None:
    """After a reset and after a cut: the marker is there, the old segments still are, too."""
    for replace in (lambda log: log.reset(meta(10)), lambda log: log.cut(meta(40))):
        disk = SimulatedDisk(1)
        log, _ = open_log(disk)
        for index in range(1, 41):
            log.append(None, [entry(index)])
            log.sync()
        twin = SimulatedDisk(1)
        twin_log, _ = open_log(twin)
        for index in range(1, 41):
            twin_log.append(None, [entry(index)])
            twin_log.sync()
        begin = twin.calls
        replace(twin_log)
        disk.crash(twin.trace.index("unlink", begin) - begin)
        with pytest.raises(Crash):
            replace(log)
        assert len(disk.paths()) > 1
        load(disk.killed())
        assert len(disk.paths()) == 1


class FullWhileAppending(SimulatedDisk):
    """The disk is full once, and something else happens at that moment."""

    meanwhile: Callable[[], None] | None = None

    def create(self, path: Path) -> int:
        meanwhile, self.meanwhile = self.meanwhile, None
        if meanwhile is not None:
            meanwhile()
            raise OSError(errno.ENOSPC, "full")
        return super().create(path)


def test_a_batch_that_found_no_room_goes_before_what_was_appended_meanwhile() -> None:
    """The loop appends while a worker meets the full disk; the next sync writes both in order."""
    disk = FullWhileAppending(1)
    log, _ = open_log(disk)
    log.append(hard(1), [entry(1, 1, bytes(2 * SEGMENT_BYTES))])
    disk.meanwhile = lambda: log.append(hard(2), [entry(2)])
    with pytest.raises(NoSpaceError):
        log.sync()
    log.sync()
    log.close()
    loaded = load(disk)
    assert [e.index for e in loaded.entries] == [1, 2]
    assert loaded.hard_state == hard(2)


def test_an_overtaken_cut_changes_nothing() -> None:
    """A snapshot from elsewhere came in between: the log stays where that put it."""
    disk = SimulatedDisk(1)
    log, _ = open_log(disk)
    log.append(None, entries(1, 9))
    log.reset(meta(20, 2, 1, 2))
    log.cut(meta(5))
    log.close()
    assert load(disk) == EMPTY._replace(snapshot=meta(20, 2, 1, 2))


def test_a_new_log_can_be_founded() -> None:
    """A reset to index 0 with a membership: the first start of a cluster."""
    disk = SimulatedDisk(1)
    log, _ = open_log(disk)
    log.reset(meta(0, 0, 1))
    log.close()
    assert load(disk) == EMPTY._replace(snapshot=meta(0, 0, 1))


def test_a_batch_larger_than_a_segment_fits() -> None:
    """The segment grows; nothing is split."""
    disk = SimulatedDisk(1)
    log, _ = open_log(disk)
    log.append(None, [entry(1, 1, bytes(10 * SEGMENT_BYTES)), entry(2)])
    log.sync()
    log.append(None, [entry(3)])
    log.close()
    assert [len(e.data) for e in load(disk).entries] == [10 * SEGMENT_BYTES, 4, 4]


def test_appending_goes_on_while_another_thread_syncs(tmp_path: Path) -> None:
    """The loop appends, workers sync, one cuts: at the end all is there in order."""
    log, _ = DiskLog.open(tmp_path / "log", segment_bytes=20_000)
    with ThreadPoolExecutor(3) as pool:
        waits = []
        for index in range(1, 2001):
            log.append(hard(index), [entry(index)])
            if index % 5 == 0:
                waits.append(pool.submit(log.sync))
            if index % 500 == 0:
                waits.append(pool.submit(log.cut, meta(index - 100)))
        for wait in waits:
            wait.result()
    log.sync()
    log.close()
    log, loaded = DiskLog.open(tmp_path / "log")
    log.close()
    assert loaded == LoadedState(hard(2000), meta(1900), [entry(i) for i in range(1901, 2001)])


def test_wrong_calls_are_refused() -> None:
    """Gaps, truncation behind the cut, terms that go back: bugs of the caller."""
    disk = SimulatedDisk(1)
    log, _ = open_log(disk)
    log.append(hard(5), entries(1, 9))
    log.cut(meta(4))
    for call in (
        lambda: log.append(None, [entry(11)]),
        lambda: log.append(None, [entry(10), entry(12)]),
        lambda: log.append(None, [], LogIndex(4)),
        lambda: log.append(None, [], LogIndex(11)),
        lambda: log.append(hard(4)),
        lambda: log.cut(meta(10)),
        lambda: log.reset(meta(3)),
    ):
        with pytest.raises(AssertionError):
            call()


# --- crashes --------------------------------------------------------------------------------------


class Model:
    """What the log should hold, kept in the simplest way, and every view it went through."""

    def __init__(self) -> None:
        self.hard_state = HardState()
        self.meta = SnapshotMeta()
        self.log: dict[int, Entry] = {}
        self.views = [EMPTY]
        self.acknowledged = 0  # the newest view that was promised to be durable

    def last_index(self) -> int:
        return max(self.log, default=self.meta.index)

    def remember(self) -> None:
        kept = [self.log[i] for i in sorted(self.log) if i > self.meta.index]
        self.views.append(LoadedState(self.hard_state, self.meta, kept))

    def acknowledge(self) -> None:
        self.acknowledged = len(self.views) - 1

    def check(self, loaded: LoadedState) -> None:
        possible = self.views[self.acknowledged :]
        assert loaded in possible, f"{loaded} is none of the {len(possible)} possible views"


def tell(disk: SimulatedDisk, model: Model, seed: int, opener: Opener = open_log) -> None:
    """A story of 40 steps, the same for the same seed; errors are for the caller."""
    log, loaded = opener(disk)
    model.check(loaded)
    for step in steps(model, seed):
        log = step(log, disk, opener)
    model.remember()
    log.close()
    model.acknowledge()


Step = Callable[[DiskLog, SimulatedDisk, Opener], DiskLog]


def steps(model: Model, seed: int) -> Iterator[Step]:
    rng = random.Random(seed)

    def append(log: DiskLog, disk: SimulatedDisk, opener: Opener) -> DiskLog:
        truncate_from = None
        if rng.random() < 0.3 and model.last_index() > model.meta.index:
            truncate_from = LogIndex(rng.randint(model.meta.index + 1, model.last_index()))
            for index in range(truncate_from, model.last_index() + 1):
                del model.log[index]
        first = model.last_index() + 1
        term = model.hard_state.term + rng.randint(0, 1)
        new = [
            entry(first + i, term, rng.randbytes(rng.randint(0, 90)))
            for i in range(rng.randint(0, 4))
        ]
        state = (
            hard(term, rng.choice((None, 1, 2)), rng.randint(0, first))
            if rng.random() < 0.7
            else None
        )
        model.log.update({e.index: e for e in new})
        model.hard_state = state or model.hard_state
        log.append(state, new, truncate_from)
        return log

    def sync(log: DiskLog, disk: SimulatedDisk, opener: Opener) -> DiskLog:
        model.remember()
        log.sync()
        model.acknowledge()
        return log

    def cut(log: DiskLog, disk: SimulatedDisk, opener: Opener) -> DiskLog:
        index = rng.randint(model.meta.index, model.last_index())
        if index > model.meta.index:
            model.meta = meta(index, 1, 1, 2)
        model.remember()
        log.cut(model.meta)
        model.acknowledge()
        return log

    def reset(log: DiskLog, disk: SimulatedDisk, opener: Opener) -> DiskLog:
        model.meta = meta(model.meta.index + rng.randint(0, 12), 2, 3)
        model.log.clear()
        model.remember()
        log.reset(model.meta)
        model.acknowledge()
        return log

    def restart(log: DiskLog, disk: SimulatedDisk, opener: Opener) -> DiskLog:
        model.remember()
        log.close()
        model.acknowledge()
        log, loaded = opener(disk)
        model.check(loaded)
        return log

    for _ in range(40):
        yield rng.choices((append, sync, cut, reset, restart), (10, 8, 2, 1, 1))[0]


def crashes(make_disk: Callable[[int], SimulatedDisk], opener: Opener = open_log) -> Iterator[str]:
    """A sentence for each crash after which the log was not what it should be."""
    for seed in SEEDS:
        whole = make_disk(seed)
        tell(whole, Model(), seed, opener)
        for at in range(whole.calls):
            disk, model = make_disk(seed * 10_000 + at), Model()
            disk.crash(at)
            with pytest.raises(Crash):
                tell(disk, model, seed, opener)
            after = disk.crashed()
            where = f"seed {seed}, crash at call {at} ({disk.trace[at]})"
            try:
                if at % 3 == 0:
                    # The machine stops again while the log is opened.
                    after.crash(at % 11)
                    try:
                        opener(after)
                    except Crash:
                        pass  # it may also have been fast enough
                    after = after.crashed()
                loaded = load(after)
                model.check(loaded)
                assert load(after) == loaded, "a second start finds something else"
                go_on(after, loaded)
                # The process alone dies; what the next one finds may not be lost any more.
                loaded = opener(disk.killed())[1]
                model.check(loaded)
                assert load(disk.crashed()) == loaded, "found by the next process, then lost"
            except (AssertionError, CorruptionError) as exc:
                yield f"{where}: {exc}"


def go_on(disk: SimulatedDisk, loaded: LoadedState) -> None:
    """The recovered log takes entries and keeps them over the next crash."""
    log, _ = open_log(disk)
    last = loaded.entries[-1].index if loaded.entries else loaded.snapshot.index
    log.append(None, entries(last + 1, last + 3, 99))
    log.sync()
    again = load(disk.crashed())
    assert again == loaded._replace(entries=loaded.entries + entries(last + 1, last + 3, 99))


@pytest.mark.expects_log("cut short by a crash")
def test_no_crash_loses_or_changes_what_was_synced() -> None:
    """Synced entries in order and without a gap, hard state never older, nothing half."""
    assert list(crashes(SimulatedDisk)) == []


class DropsBeforeMarker(DiskLog):
    """Deletes segments before the cut that allows it is on disk."""

    def cut(self, meta: SnapshotMeta) -> None:
        state = self._state
        self._state = state._replace(meta=meta)
        self._drop_dead([])
        self._state = state
        super().cut(meta)


@pytest.mark.expects_log("cut short by a crash")
@pytest.mark.parametrize("mistake", [NoFdatasync, NoDirectorySync, RenameBeforeFdatasync])
def test_the_search_finds_each_classic_mistake(mistake: Callable[[int], SimulatedDisk]) -> None:
    """With one kind of sync left out or late, some crash loses something."""
    assert next(crashes(mistake), None) is not None


@pytest.mark.expects_log("cut short by a crash")
def test_the_search_finds_segments_deleted_too_early() -> None:
    """The marker has to be on disk first."""
    found = crashes(SimulatedDisk, lambda disk: open_log(disk, DropsBeforeMarker))
    assert next(found, None) is not None


@pytest.mark.expects_log("cut short by a crash")
@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO])
def test_no_failing_call_breaks_a_promise(error: int) -> None:
    """A full disk is told and can be retried; a failing one stops the log for good.

    Then the process restarts on the same machine, and after that the machine crashes.
    """
    told: set[type[Exception]] = set()
    for seed in SEEDS:
        whole = SimulatedDisk(seed)
        tell(whole, Model(), seed)
        for at in range(whole.calls):
            disk, model = SimulatedDisk(seed), Model()
            disk.fail(at, error)
            try:
                log, _ = open_log(disk)
            except (OSError, NoSpaceError, CorruptionError) as exc:
                told.add(type(exc))
                log, _ = open_log(disk.killed())
            stopped = False
            for step in steps(model, seed):
                try:
                    log = step(log, disk, open_log)
                except NoSpaceError:
                    told.add(NoSpaceError)
                    if log._fd < 0:
                        break  # it was a close: what waited for room is gone
                except (OSError, CorruptionError) as exc:
                    told.add(type(exc))
                    stopped = True
                    break
            where = f"seed {seed}, call {at}: {whole.trace[at]}"
            if stopped:
                syncs = disk.trace.count("fdatasync")
                with pytest.raises((OSError, AssertionError)):
                    log.sync()  # refused: failed before, or closed by a failing restart
                assert disk.trace.count("fdatasync") == syncs, where
            loaded = load(disk.killed())
            model.check(loaded)
            assert load(disk.crashed()) == loaded, where
    assert told == (
        {NoSpaceError, OSError} if error == errno.ENOSPC else {OSError, CorruptionError}
    )


# --- damage ---------------------------------------------------------------------------------------


def filled_entry(index: int) -> Entry:
    return entry(index, index, bytes([index]) * 60)


def filled() -> SimulatedDisk:
    """A closed log of several segments: entries 1 .. 30, cut at 3, hard state by the index."""
    disk = SimulatedDisk(7)
    log, _ = open_log(disk)
    for index in range(1, 31):
        log.append(hard(index), [filled_entry(index)])
        log.sync()
    log.cut(meta(3, 3, 1))
    log.close()
    return disk


FILLED = filled()
WHOLE = load(FILLED)


def check_damaged(disk: SimulatedDisk, flipped: bool) -> None:
    """Refused, or the true log, or (a torn tail) the true log less its last batches."""
    before = {path: disk.content(path) for path in disk.paths()}
    try:
        loaded = load(disk)
    except CorruptionError:
        assert {path: disk.content(path) for path in disk.paths()} == before, "changed a file"
        return
    if flipped:
        assert loaded == WHOLE, "one flipped byte lost something"
    first = loaded.snapshot.index + 1
    assert loaded.snapshot in (SnapshotMeta(), WHOLE.snapshot)
    assert loaded.entries == [filled_entry(first + i) for i in range(len(loaded.entries))]
    # Each batch had one entry and the hard state of the same number.
    assert loaded.hard_state.term == (loaded.entries[-1].index if loaded.entries else 0)


@pytest.mark.expects_log("cut short by a crash")
@settings(deadline=None, max_examples=400)
@given(st.data())
def test_one_damaged_byte_is_noticed_or_harmless(data: st.DataObject) -> None:
    """Of a log that was closed: anywhere in any segment, the log is whole or refused."""
    disk = FILLED.crashed()
    path = data.draw(st.sampled_from(disk.paths()))
    size = len(disk.content(path))
    disk.flip(path, data.draw(st.integers(0, size - 1)), data.draw(st.integers(1, 255)))
    check_damaged(disk, flipped=True)


@pytest.mark.expects_log("cut short by a crash")
@settings(deadline=None, max_examples=300)
@given(st.data())
def test_no_damage_makes_a_wrong_entry(data: st.DataObject) -> None:
    """Cut, filled with junk, a piece of one file in another: never an entry that was not there."""
    disk = FILLED.crashed()
    for _ in range(data.draw(st.integers(1, 3))):
        path = data.draw(st.sampled_from(disk.paths()))
        content = bytearray(disk.content(path))
        at = data.draw(st.integers(0, len(content)))
        kind = data.draw(st.sampled_from(("cut", "junk", "zeros", "copy")))
        if kind == "cut":
            del content[at:]
        elif kind == "junk":
            junk = data.draw(st.binary(min_size=1, max_size=50))
            content[at : at + len(junk)] = junk
        elif kind == "zeros":
            length = data.draw(st.integers(1, 600))
            content[at : at + length] = bytes(len(content[at : at + length]))
        else:
            other = disk.content(data.draw(st.sampled_from(disk.paths())))
            begin = data.draw(st.integers(0, len(other)))
            content[at:] = other[begin : begin + len(content) - at]
        disk.put_content(path, bytes(content))
    check_damaged(disk, flipped=False)


def test_damage_in_the_middle_names_the_file_and_what_to_do() -> None:
    """And changes nothing, so that a person can still look."""
    disk = FILLED.crashed()
    path = disk.paths()[1]
    disk.flip(path, 200, 1)
    before = disk.content(path)
    with pytest.raises(
        CorruptionError, match=rf"{path} is damaged at byte \d+\. Nothing was chang"
    ):
        open_log(disk)
    assert disk.content(path) == before
    assert disk.open_count() == 0


def test_a_lost_segment_that_is_needed_is_noticed() -> None:
    """Whichever it is; the last one can't be told from a crash before it was begun."""
    for number in range(len(FILLED.paths()) - 1):
        disk = FILLED.crashed()
        disk.unlink(disk.paths()[number])
        if number == 0:
            assert WHOLE.snapshot.index < 4
        with pytest.raises(CorruptionError):
            open_log(disk)


@pytest.mark.expects_log("cut short by a crash")
def test_a_torn_tail_is_cut_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    """At any length of what is left of the last batch; all before it stays."""
    disk = SimulatedDisk(1)
    log, _ = open_log(disk)
    log.append(hard(1), entries(1, 3))
    log.sync()
    [path] = disk.paths()
    end = log._offset
    log.append(hard(2), entries(4, 6))
    log.sync()
    content = disk.content(path)
    for cut in range(end + 1, log._offset):
        torn = disk.crashed()
        torn.put_content(path, content[:cut] + bytes(len(content) - cut))
        caplog.clear()
        loaded = load(torn)
        # A batch may end in zeros of its own: then nothing of it is missing.
        if loaded.entries != entries(1, 6):
            assert loaded == LoadedState(hard(1), SnapshotMeta(), entries(1, 3))
            assert "cut short" in caplog.text
        caplog.clear()
        assert load(torn) == loaded
        assert caplog.text == ""


def test_a_newer_format_is_refused_with_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """An older PyDi does not touch it."""
    disk = SimulatedDisk(1)
    monkeypatch.setattr(disklog, "FORMAT_VERSION", 2)
    load(disk)
    monkeypatch.setattr(disklog, "FORMAT_VERSION", 1)
    with pytest.raises(UserError, match="newer PyDi"):
        open_log(disk)
