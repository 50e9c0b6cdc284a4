"""The journal: what is read is what was written, and replaying it gives what its writer had."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pydi_fs.vfs.content import Content, FrozenContent
from pydi_fs.vfs.journal import (
    HEADER,
    Again,
    Closed,
    Committing,
    Cut,
    Forgotten,
    Frozen,
    Numbered,
    Opened,
    Published,
    Publishing,
    Punched,
    Rebased,
    Staged,
    State,
    Wrote,
    decode,
    encode,
    encode_write,
)
from pydi_fs.vfs.journalling import RESENT, KeptJournal, read_logs
from pydi_fs.vfs.open_file import OpenFile
from pydi_fs.vfs.resuming import restore_content, unknown
from pydi_fs.vfs.staging import StagingArea
from pydi_node.commands import ROOT_CALLER, Caller, Mkdir, SetAttr, Unlink
from pydi_node.ids import Ino, Serial, TimeNs
from pydi_node.records import FileVersion

INO = Ino(7)


class Writer:
    """A file as the mount has it, and the records that tell of it."""

    def __init__(self, size: int) -> None:
        self.content = Content.empty(size)
        self.stage = bytearray()
        self.publication: Any = None
        self.records: list[Any] = []
        self.unique = 0

    def write(self, offset: int, data: bytes, append: bool) -> None:
        size = self.content.size
        offset = size if append else offset
        at = len(self.stage)
        self.stage += data
        self.content.write(offset, len(data), -1, at, append)
        self.unique += 2
        piece = (offset, len(data), -1, at, data)
        self.records.append(
            Wrote(self.unique, INO, size, ROOT_CALLER, 5, append, len(data), (piece,))
        )

    def cut(self, to: int) -> None:
        self.records.append(Cut(INO, self.content.size, ROOT_CALLER, 5, to))
        self.content.truncate(to)

    def punch(self, offset: int, length: int, keep_size: bool) -> None:
        size = self.content.size
        self.records.append(Punched(INO, size, ROOT_CALLER, 5, offset, length, keep_size))
        self.content.punch(offset, length, keep_size)

    def rebase(self, size: int) -> None:
        if self.publication is None and self.content.dirty:
            self.records.append(Rebased(INO, size))
            self.content.rebase_empty(size)

    def publish(self) -> None:
        if self.publication is None and self.content.dirty:
            self.records += [Publishing(INO), Committing(INO, 3)]
            self.publication = self.content.take_changes()

    def published(self, success: bool) -> None:
        if self.publication is None:
            return
        self.records.append(Published(INO, success))
        if not success:
            self.content.restore(self.publication)
        self.publication = None

    def snapshot(self) -> None:
        """All that was told so far is told anew, in a few records."""
        self.records.clear()
        if self.content.dirty or self.publication is not None:
            sent = None
            if self.publication is not None:
                sent = (tuple(self.publication), tuple(ROOT_CALLER), 5, (3,))
            self.records += [
                Staged(-1, INO, len(self.stage), bytes(self.stage)),
                Frozen(INO, ROOT_CALLER, 5, self.content.freeze(), sent),
            ]


offsets = st.integers(0, 60)
operations = st.one_of(
    st.tuples(st.just("write"), offsets, st.binary(min_size=1, max_size=9), st.booleans()),
    st.tuples(st.just("cut"), offsets),
    st.tuples(st.just("punch"), offsets, st.integers(1, 20), st.booleans()),
    st.tuples(st.just("rebase"), offsets),
    st.tuples(st.just("publish")),
    st.tuples(st.just("published"), st.booleans()),
    st.tuples(st.just("snapshot")),
)


@given(st.integers(0, 40), st.lists(operations, max_size=25))
def test_replay_gives_what_the_writer_had(size: int, steps: list[tuple[Any, ...]]) -> None:
    """After any steps, the records give the same unpublished content, byte for byte, the same
    changes on their way, and the same commands for what comes next."""
    writer = Writer(size)
    for name, *arguments in steps:
        getattr(writer, name)(*arguments)
    state = State.of(decode(b"".join(map(encode, writer.records))))
    file = state.files.get(INO)
    if file is None:
        assert not writer.content.dirty
        assert writer.publication is None
        return
    assert file.content.freeze() == writer.content.freeze()
    sent = file.publication
    assert (None if sent is None else sent.changes) == writer.publication
    for segment in [*file.content.unpublished(), *(sent.changes.segments if sent else ())]:
        if segment.source < 0:
            data = state.stages[segment.source].data
            assert data is not None
            at = slice(segment.source_offset, segment.source_offset + segment.length)
            assert data[at] == writer.stage[at]
    if sent is not None:
        file.content.restore(sent.changes)
        writer.content.restore(writer.publication)
    assert file.content.take_changes() == writer.content.take_changes()


@given(st.lists(operations, max_size=12), st.data())
def test_what_was_cut_off_is_not_read(steps: list[tuple[Any, ...]], data: st.DataObject) -> None:
    """A log that ends anywhere gives the records that are whole, and no other."""
    writer = Writer(10)
    for name, *arguments in steps:
        getattr(writer, name)(*arguments)
    frames = [encode(record) for record in writer.records]
    log = b"".join(frames)
    end = data.draw(st.integers(0, len(log)))
    whole = 0
    while sum(map(len, frames[: whole + 1])) <= end and whole < len(frames):
        whole += 1
    assert [encode(record) for record in decode(log[:end])] == frames[:whole]


def test_a_damaged_record_ends_the_log() -> None:
    first, second = encode(Closed(1)), bytearray(encode(Closed(2)))
    second[-1] ^= 1
    assert list(decode(first + second)) == [Closed(1)]


def test_a_stage_goes_on_behind_bytes_that_nobody_needs() -> None:
    """A snapshot leaves out a stage of which nothing is needed; what is written to it later is
    found, in memory and in its file."""
    for data in (b"abc", None):
        piece = (0, 3, -5, 1000, data)
        state = State.of([Wrote(2, INO, 0, ROOT_CALLER, 5, False, 3, (piece,))])
        stage = state.stages[-5]
        assert stage.size == 1003
        assert stage.data is None if data is None else stage.data[1000:] == data
        assert state.last_source == -5


def test_what_was_given_up_is_forgotten() -> None:
    piece = (0, 3, -5, 0, b"abc")
    wrote = Wrote(2, INO, 0, ROOT_CALLER, 5, False, 3, (piece,))
    state = State.of([wrote, Forgotten(INO)])
    assert not state.files
    assert not state.stages


def test_a_publication_that_outlives_its_file_is_no_trouble() -> None:
    """A program is killed while its close publishes: its handle goes, the publication goes on, and
    a snapshot made then has nothing of the file. What comes of it later is read all the same."""
    state = State.of([Publishing(INO), Committing(INO, 3), Published(INO, False), Closed(1)])
    assert not state.files
    assert state.last_serial == 3


def test_a_stage_that_was_given_back_is_not_missed(tmp_path: Path) -> None:
    """Publishing a large file failed, all of it was written anew, and its first stage given back:
    the supervisor has that file no more, and a successor goes on without it."""
    large = (0, 5, -1, 0, None)
    anew = (0, 5, -2, 0, b"anew!")
    state = State.of(
        [
            Wrote(2, INO, 0, ROOT_CALLER, 5, False, 5, (large,)),
            Publishing(INO),
            Published(INO, False),
            Wrote(4, INO, 5, ROOT_CALLER, 5, False, 5, (anew,)),
        ]
    )
    nothing: Any = None
    area = StagingArea(nothing, tmp_path)
    file = OpenFile(nothing, area, nothing, lambda: 0, FileVersion(unknown(INO), (), ()))
    restore_content(file, state, {}, area)
    assert file.size == 5
    staged = [record for record in file.freeze() if isinstance(record, Staged)]
    assert staged == [Staged(-2, INO, 5, b"anew!")]


def test_frozen_content_is_plain() -> None:
    """It travels through msgpack, and comes back as it was."""
    content = Content.empty(5)
    content.write(5, 3, -1, 0, append=True)
    frozen = content.freeze()
    record = Frozen(INO, ROOT_CALLER, 1, frozen, None)
    (read,) = decode(encode(record))
    assert FrozenContent(*read.content) == frozen


# --- two logs -------------------------------------------------------------------------------------


@pytest.fixture
def logs() -> Iterator[tuple[int, int]]:
    fds = (os.memfd_create("a"), os.memfd_create("b"))
    yield fds
    for fd in fds:
        os.close(fd)


def journal(logs: tuple[int, int]) -> KeptJournal:
    kept = KeptJournal(logs, lambda name, fd: None, lambda name: None)
    kept.begin(lambda: ())
    if kept.state is None:
        kept.identify(9, bytes(16))
    return kept


def test_a_successor_reads_what_was_written(logs: tuple[int, int]) -> None:
    """Handles, serials and numbers, over several lives and snapshots."""
    first = journal(logs)
    first.opened(2, 1, INO, os.O_RDWR, ROOT_CALLER, second=False, passing=False)
    first.opened(4, 2, INO, os.O_RDONLY, ROOT_CALLER, second=True, passing=False)
    first.closed(1)
    first.compact()
    first.listed(Ino(1))
    first.listed(Ino(5))
    first.unlisted(Ino(1))
    second = journal(logs)
    assert second.state is not None
    assert set(second.state.handles) == {2}
    assert set(second.state.listed) == {5}
    third = journal(logs)
    assert third.state is not None
    assert third.state.last_fh == 2
    assert third.state.handles[2].second
    assert third.state.identity == (9, bytes(16))


def test_an_owner_that_gave_its_locks_back_is_forgotten(logs: tuple[int, int]) -> None:
    """Processes come and go that lock through a descriptor which they inherited: its handle stays
    open, and the kernel uses an owner's number again. A successor must not give back its locks."""
    first = journal(logs)
    first.opened(2, 1, INO, os.O_RDWR, ROOT_CALLER, second=False, passing=False)
    for owner in (100, 200):
        first.locked(INO, 1, owner)
    first.locked(Ino(8), 2, 100)
    first.unlocked(INO, 100)
    second = journal(logs)
    assert second.state is not None
    assert list(second.state.locks) == [(INO, 1, 200), (8, 2, 100)]
    assert list(journal(logs)._mirror.locks) == [(INO, 1, 200), (8, 2, 100)], "in a snapshot too"


def test_an_unfinished_snapshot_counts_for_nothing(logs: tuple[int, int]) -> None:
    """A worker that is killed while it writes one leaves the log before it."""
    first = journal(logs)
    first.opened(2, 1, INO, os.O_RDWR, ROOT_CALLER, second=False, passing=False)
    for fd in logs:
        if os.fstat(fd).st_size == 0:
            os.pwrite(fd, HEADER.pack(0) + encode(Closed(1)), 0)
    _, _, state = read_logs(logs)
    assert set(state.handles) == {1}


def test_a_command_sent_again_has_its_first_serial(logs: tuple[int, int]) -> None:
    """The request comes again, marked: the same kind of command has the serial that it had, once;
    other requests, and the second command of that kind, have new ones."""
    serials = iter(map(Serial, range(1, 100)))
    mkdir = Mkdir(ROOT_CALLER, Ino(1), b"d", 0o700)
    setattr_ = SetAttr(ROOT_CALLER, Ino(1), 0o700, None, None, None, None, None)

    def number(kept: KeptJournal, unique: int, command: Any) -> tuple[int, bool]:
        kept.enter(unique)
        return kept.number(command, lambda: next(serials))

    first = journal(logs)
    assert number(first, 10, mkdir) == (1, False)
    assert number(first, 12, mkdir) == (2, False)
    first.answered(12)
    second = journal(logs)
    assert number(second, 10 | RESENT, setattr_) == (3, False)
    assert number(second, 10 | RESENT, mkdir) == (1, True)
    assert number(second, 10 | RESENT, mkdir) == (4, False)
    # It dies as well, before it has answered.
    third = journal(logs)
    assert number(third, 10 | RESENT, mkdir) == (1, True)
    third.resends_over([])
    third.compact()
    fourth = journal(logs)
    assert number(fourth, 10 | RESENT, mkdir)[1] is False


def test_a_write_and_an_open_are_known_when_they_come_again(logs: tuple[int, int]) -> None:
    first = journal(logs)
    first.enter(20)
    first.wrote(INO, 0, ROOT_CALLER, 5, True, 3, [(0, 3, -1, 0, b"abc")])
    first.opened(22, 1, INO, os.O_RDWR, ROOT_CALLER, second=False, passing=False)
    second = journal(logs)
    assert second.written_before(20) is None, "not marked: another request"
    assert second.written_before(20 | RESENT) == 3
    assert second.written_before(24 | RESENT) is None
    second.resends_over([20 | RESENT])
    assert second.written_before(20 | RESENT) == 3, "it is still under way"
    assert second.handed_before(22 | RESENT) is None, "the kernel had that answer"


handles = st.builds(
    Opened, st.just(0), st.integers(1, 1 << 63), st.integers(1, 1 << 63),
    st.integers(0, 1 << 31), st.integers(0, (1 << 32) - 1), st.integers(0, (1 << 32) - 1),
    st.none(), st.booleans(), st.booleans(),
)  # fmt: skip


@given(handles, st.integers(0, (1 << 64) - 1))
def test_a_handle_that_is_opened_again_is_written_as_any_other(opened: Opened, unique: int) -> None:
    again = Again(opened)
    assert list(decode(again.opened(unique))) == [opened._replace(unique=unique)]
    assert list(decode(again.closed)) == [Closed(opened.fh)]


places = st.integers(0, (1 << 63) - 1)


@given(
    st.integers(0, (1 << 63) - 1), st.integers(1, (1 << 63) - 1), places, places, st.booleans(),
    places, places, st.integers(-(1 << 40), -1), places,
    st.sampled_from((None, (), (4, 5), tuple(range(1000, 1040)))),
)  # fmt: skip
def test_a_write_into_a_file_is_written_as_any_other(
    unique: int, ino: int, size: int, mtime_ns: int, append: bool, length: int, offset: int,
    source: int, source_offset: int, groups: tuple[int, ...] | None,
) -> None:  # fmt: skip
    caller = Caller(1000, 100_000, groups)
    pieces = ((offset, length, source, source_offset, None),)
    record = Wrote(unique, ino, size, caller, mtime_ns, append, length, pieces)
    written = encode_write(
        unique, ino, size, caller, mtime_ns, append, length, offset, source, source_offset
    )
    assert list(decode(written)) == list(decode(encode(record))) == [record]


@pytest.mark.parametrize("in_file", [False, True])
def test_a_successor_hears_of_a_write_wherever_its_bytes_are(
    logs: tuple[int, int], in_file: bool
) -> None:
    first = journal(logs)
    first.enter(20)
    first.wrote(INO, 0, ROOT_CALLER, 5, True, 3, [(0, 3, -1, 0, None if in_file else b"abc")])
    second = journal(logs)
    assert second.written_before(20 | RESENT) == 3


def test_an_open_again_is_known_when_it_comes_again(logs: tuple[int, int]) -> None:
    """Its answer is lost with the worker. What was answered counts no more, nor does a new log."""
    first = journal(logs)
    again = Again(Opened(0, 1, INO, os.O_RDONLY, 1000, 1000, None, False, True))
    for unique in (20, 22):
        first.opened_again(unique, again)
        first.compact()  # that request has its answer
        assert [*read_logs(logs)[2].handles] == [1]
        first.closed_again(again)
        assert not read_logs(logs)[2].handles
    first.opened_again(24, again)
    assert read_logs(logs)[2].handles == {1: again.record._replace(unique=24)}
    second = journal(logs)
    assert second.handed_before(24 | RESENT) == 1


def test_a_log_that_grows_is_replaced(logs: tuple[int, int]) -> None:
    """Closed handles take no room: the log stays bounded, and nothing that counts is lost."""

    async def run() -> None:
        kept = journal(logs)
        kept.opened(2, 1, INO, os.O_RDWR, ROOT_CALLER, second=False, passing=False)
        for number in range(200):
            kept.wrote(INO, 0, ROOT_CALLER, 5, False, 1 << 18, [(0, 1, -1, 0, bytes(1 << 18))])
            if number % 10 == 0:
                await asyncio.sleep(0)
        assert sum(os.fstat(fd).st_size for fd in logs) < 30 << 20
        _, _, state = read_logs(logs)
        assert set(state.handles) == {1}

    asyncio.run(run())


def test_numbers_and_records_of_each_kind_survive() -> None:
    for record in (
        Opened(1, 2, 3, os.O_RDWR, 1000, 1000, (4, 5), True, False),
        Opened(1, 2, 3, os.O_RDWR, 1000, 1000, None, False, True),
        Numbered(1 << 62, 1 << 40, "Mkdir"),
    ):
        (read,) = decode(encode(record))
        assert read == record
        assert type(read) is type(record)


def test_a_log_is_read_to_its_end_while_it_grows(logs: tuple[int, int]) -> None:
    """Records that go over several steps of its length, the last of them cut off by a kill."""
    journal = KeptJournal(logs, lambda name, fd: None, lambda name: None)
    journal.begin(lambda: ())
    content = os.urandom(700_000)
    for source in range(-1, -6, -1):
        pieces = [(0, len(content), source, 0, content)]
        journal.wrote(INO, 0, ROOT_CALLER, 7, False, len(content), pieces)
        assert journal._end._size > journal._end.at
    _, log, state = read_logs(logs)
    assert sorted(state.stages) == [-5, -4, -3, -2, -1]
    assert all(stage.data == content for stage in state.stages.values())
    os.pwrite(logs[log], bytes(5), journal._end.at - 5)
    assert sorted(read_logs(logs)[2].stages) == [-4, -3, -2, -1]


def test_what_only_this_mount_knows_of_is_told_to_its_successor(logs: tuple[int, int]) -> None:
    """Pending creates, directories that are delegated, numbers that are left: what is settled or
    given back is forgotten. The same after a snapshot."""
    journal = KeptJournal(logs, lambda name, fd: None, lambda name: None)
    journal.begin(lambda: ())
    journal.identify(5, bytes(16))
    parent = Ino(2)
    for directory in (parent, Ino(3)):
        journal.delegated(directory)
    for first in (100, 200, 300):
        journal.reserved(Ino(first), first / 2)
    for unique, ino in ((2, 200), (4, 201), (6, 202)):
        journal.enter(unique)
        journal.created(Ino(ino), parent, b"%d" % ino, ROOT_CALLER, 0o600, 7)
    journal.enter(0)
    journal.creating(Ino(201), Serial(90))
    journal.shaped(Ino(202), parent, b"202", ROOT_CALLER, 0o640, 8, 9)
    journal.settled(Ino(200))
    journal.undelegated([Ino(3)])
    journal.spent(Serial(99))
    journal.answered(4)
    for _ in range(2):
        _, _, state = read_logs(logs)
        assert [*state.pending] == [201, 202]
        assert state.pending[Ino(202)][-3:] == (0o640, 8, 9)
        assert state.creating == {201: 90}
        assert state.last_serial == 99
        assert [*state.delegated] == [parent]
        assert [*state.reserved.values()] == [(203, 262, 100.0), (300, 362, 150.0)]
        assert state.made.items() >= {2: 200, 6: 202}.items()
        journal.compact()
    assert 4 not in read_logs(logs)[2].made
    successor = KeptJournal(logs, lambda name, fd: None, lambda name: None)
    successor.enter(6 | RESENT)
    assert successor.made_before() == 202
    successor.enter(8)
    assert successor.made_before() is None


@pytest.mark.parametrize("answered", ["no", "in part", "refused", "yes"])
@pytest.mark.parametrize("compacted", [False, True])
def test_changes_and_the_file_that_is_told_with_them_have_one_fate(
    logs: tuple[int, int], answered: str, compacted: bool
) -> None:
    """Whoever follows sends both under the one serial, or neither. The file, with its content as
    long as that counts as under way."""
    journal = KeptJournal(logs, lambda name, fd: None, lambda name: None)
    journal.begin(lambda: ())
    journal.identify(5, bytes(16))
    file, serial = Ino(200), Serial(90)
    journal.created(file, Ino(2), b"f", ROOT_CALLER, 0o600, 7)
    journal.wrote(file, 0, ROOT_CALLER, 8, False, 3, [(0, 3, -1, 0, b"abc")])
    for number in (1, 2):
        unlink = Unlink(ROOT_CALLER, Ino(2), b"%d" % number)
        journal.queued(number, unlink, [Ino(2)], [], [], None, TimeNs(9))
    journal.publishing(file)
    journal.committing(file, serial)
    journal.telling(serial, [1, 2], file)
    if answered != "no":
        journal.published(file, answered != "refused")
    if answered in ("refused", "yes"):
        journal.told([1, 2], file if answered == "yes" else None)
    if compacted:
        frozen = read_logs(logs)[2]
        journal._frozen = lambda: _frozen(frozen)
        journal.compact()
    state = read_logs(logs)[2]
    is_there = answered == "yes"
    assert [*state.pending] == ([] if is_there else [file])
    under_way = answered in ("no", "in part")
    assert [*state.queued] == ([1, 2] if under_way else [])
    assert (None if state.telling is None else state.telling[:]) == (
        (serial, (1, 2), file) if under_way else None
    )
    image = state.files.get(file)
    sent = None if image is None else image.publication
    assert (sent is not None and sent.serials == [serial]) == (answered == "no")
    assert (image is not None and image.content.dirty) == (answered == "refused")
    assert state.serial_of_create(file) == (serial if answered == "in part" else None)
    # Given up meanwhile, it is still part of what is sent again.
    journal.settled(file)
    assert (file in read_logs(logs)[2].pending) == under_way


@pytest.mark.parametrize("by", ["an answer", "the next command"])
def test_an_empty_file_that_was_refused_with_others_is_told_of_under_another_serial(
    logs: tuple[int, int], by: str
) -> None:
    """By itself under the old one it would get the answer of all."""
    journal = KeptJournal(logs, lambda name, fd: None, lambda name: None)
    journal.begin(lambda: ())
    file, serial = Ino(200), Serial(90)
    journal.created(file, Ino(2), b"f", ROOT_CALLER, 0o600, 7)
    unlink = Unlink(ROOT_CALLER, Ino(2), b"gone")
    journal.queued(1, unlink, [Ino(2)], [], [], None, TimeNs(9))
    journal.creating(file, serial)
    journal.telling(serial, [1], file)
    assert read_logs(logs)[2].serial_of_create(file) == serial
    if by == "an answer":
        journal.told([1])
    else:
        journal.telling(Serial(91), [1], None)
    state = read_logs(logs)[2]
    assert [*state.pending] == [file]
    assert state.serial_of_create(file) is None


@pytest.mark.parametrize("compacted", [False, True])
def test_a_file_that_was_given_up_while_it_was_told_of_is_not_made_later(
    logs: tuple[int, int], compacted: bool
) -> None:
    """It was refused then: nobody who follows knows of it."""
    journal = KeptJournal(logs, lambda name, fd: None, lambda name: None)
    journal.begin(lambda: ())
    file = Ino(200)
    journal.created(file, Ino(2), b"f", ROOT_CALLER, 0o600, 7)
    unlink = Unlink(ROOT_CALLER, Ino(2), b"gone")
    journal.queued(1, unlink, [Ino(2)], [], [], None, TimeNs(9))
    journal.telling(Serial(90), [1], file)
    journal.settled(file)
    if compacted:
        journal.compact()
    assert [*read_logs(logs)[2].pending] == [file]
    journal.told([1])
    assert not read_logs(logs)[2].pending


def test_a_file_that_was_refused_with_others_keeps_its_next_serial(logs: tuple[int, int]) -> None:
    """There was no room: before the others are told without it, it is told of by itself."""
    journal = KeptJournal(logs, lambda name, fd: None, lambda name: None)
    journal.begin(lambda: ())
    file = Ino(200)
    journal.created(file, Ino(2), b"f", ROOT_CALLER, 0o600, 7)
    unlink = Unlink(ROOT_CALLER, Ino(2), b"gone")
    journal.queued(1, unlink, [Ino(2)], [], [], None, TimeNs(9))
    journal.creating(file, Serial(90))
    journal.telling(Serial(90), [1], file)
    journal.creating(file, Serial(91))
    journal.telling(Serial(92), [1], None)
    assert read_logs(logs)[2].serial_of_create(file) == Serial(91)


def _frozen(state: State) -> Iterator[Any]:
    for source, stage in state.stages.items():
        yield Staged(
            source, stage.ino, stage.size, None if stage.data is None else bytes(stage.data)
        )
    for ino, image in state.files.items():
        sent = None if image.publication is None else image.publication.pack()
        yield Frozen(ino, image.caller, image.mtime_ns, image.content.freeze(), sent)
