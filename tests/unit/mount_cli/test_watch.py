"""What a kernel keeps beyond a lease: the worker's part, the watch's, and the two together."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pydi_fs import watch
from pydi_fs.watch import (
    AGAIN_NS,
    FULL_NS,
    LOOK_NS,
    LOOKED_MAX_NS,
    MARGIN_NS,
    MS,
    NAMES_NS,
    PAGE_BYTES,
    Keeper,
    Page,
    Watch,
    dropped_from_ns,
)

LEASE_NS = 800 * MS
START_NS = 1_000_000 * MS


def new_page() -> Page:
    return Page(memoryview(bytearray(PAGE_BYTES)))


@dataclass
class Cluster:
    """A kernel, the two processes and their lease, in steps of time.

    The kernel believes a name or an inode from the moment at which it was told to keep it until it
    is dropped. It must believe nothing when the lease of its mount is over.
    """

    now_ns: int = START_NS
    page: Page = field(default_factory=new_page)
    names: set[int] = field(default_factory=set)  # directories of which the kernel keeps one
    inodes: set[int] = field(default_factory=set)
    until_ns: int = 0  # end of the lease, as the cluster has it
    worker_runs: bool = True
    watch_runs: bool = True
    connected: bool = True
    look_ns: int = 0  # when the worker's timer is due
    wake_ns: int | None = None  # when the watch wakes up
    renew_ns: int = START_NS
    drops: int = 0

    def __post_init__(self) -> None:
        self.keeper = Keeper(self.page)
        self.watch = Watch(self.page)
        self.wake_ns = self.now_ns

    def forget(self) -> None:
        self.names.clear()
        self.inodes.difference_update(self.page.nodeids())
        self.drops += 1

    def step(self, ns: int) -> None:
        """Time passes; whoever runs does what is due."""
        end_ns = self.now_ns + ns
        while self.now_ns < end_ns:
            self.now_ns = min(end_ns, self.now_ns + 10 * MS)
            if self.watch_runs and self.wake_ns is not None and self.now_ns >= self.wake_ns:
                if self.watch.is_due(self.now_ns):
                    self.forget()
                wait_ns = self.watch.looked(self.now_ns)
                self.wake_ns = None if wait_ns is None else self.now_ns + wait_ns
            if self.worker_runs:
                self._work()
            self.check()

    def _work(self) -> None:
        if self.connected and self.now_ns >= self.renew_ns:
            self.until_ns = self.now_ns + LEASE_NS
            self.keeper.renewed(self.until_ns)
            self.renew_ns = self.now_ns + 200 * MS
        if self.keeper.is_out and self.now_ns >= self.look_ns:
            if self.keeper.must_drop(self.now_ns):
                assert set(self.keeper.begin_drop()) == set(self.page.nodeids())
                self.forget()
                self.keeper.end_drop()
            elif self.keeper.must_make_room(self.now_ns):
                assert set(self.keeper.begin_drop()) == set(self.page.nodeids())
                self.inodes.clear()
                self.keeper.end_drop(names=False)
            self.look_ns = self.now_ns + self.keeper.wait_ns(self.now_ns)

    def answer(self, number: int) -> bool:
        """A look-up; whether the kernel may keep what it is told."""
        if not self.worker_runs or self.now_ns >= self.until_ns:
            return False
        kept = self.keeper.keep(number, self.now_ns)
        if kept:
            assert number in self.page.nodeids()
            self.inodes.add(number)
        named = self.keeper.keep_name(number, self.now_ns)
        if named:
            assert self.keeper.may_know_names_in([number])
            self.names.add(number)
        if self.keeper.rings:
            self.keeper.rings = False
            self.wake_ns = self.now_ns
        self.look_ns = min(self.look_ns, self.now_ns + self.keeper.wait_ns(self.now_ns))
        return kept and named

    def check(self) -> None:
        if self.now_ns >= self.until_ns:
            assert not self.names
            assert not self.inodes

    def wait_kept(self, number: int) -> None:
        for _ in range(100):
            if self.answer(number):
                return
            self.step(10 * MS)
        raise AssertionError("nothing is ever kept")


def test_what_is_kept_stays_as_long_as_the_lease_is_renewed() -> None:
    cluster = Cluster()
    cluster.wait_kept(5)
    drops = cluster.drops
    cluster.step(100_000 * MS)
    assert cluster.drops == drops
    assert cluster.inodes == {5}


@pytest.mark.parametrize("disconnected", [False, True])
@pytest.mark.parametrize("stopped", ["worker", "watch", "neither"])
def test_one_that_stops_is_enough(stopped: str, disconnected: bool) -> None:
    """Also when the lease can't be renewed from the same moment on, in each phase of it."""
    for phase in range(25):
        cluster = Cluster()
        cluster.wait_kept(5)
        cluster.step(phase * 10 * MS)
        cluster.worker_runs = stopped != "worker"
        cluster.watch_runs = stopped != "watch"
        cluster.connected = not disconnected
        cluster.step(3000 * MS)  # checks at each step
        if stopped != "neither" or disconnected:
            assert not cluster.inodes
            assert not cluster.names


Event = tuple[str, int]
_events = st.lists(
    st.one_of(
        st.tuples(st.just("answer"), st.integers(1, 6)),
        st.tuples(st.just("pass"), st.integers(1, 150)),
        st.tuples(st.sampled_from(["stop worker", "stop watch", "cut"]), st.integers(1, 300)),
        st.tuples(st.just("successor"), st.just(0)),
    ),
    max_size=40,
)


@settings(max_examples=300)
@given(_events)
def test_nothing_is_kept_behind_the_lease(events: list[Event]) -> None:
    """Worker or watch stopped for a while, never both, connections lost, workers that follow dead
    ones, in any order: when the lease is over the kernel keeps nothing."""
    cluster = Cluster()
    cluster.step(100 * MS)
    for what, number in events:
        match what:
            case "answer":
                cluster.answer(number)
            case "pass":
                cluster.step(number * 10 * MS)
            case "stop worker":
                cluster.worker_runs = False
                cluster.step(number * 10 * MS)
                cluster.worker_runs = True
            case "stop watch":
                cluster.watch_runs = False
                cluster.step(number * 10 * MS)
                cluster.watch_runs = True
                # Till the worker knows of it, or the watch has looked: else both would have been
                # stopped within the same second.
                cluster.step(LOOKED_MAX_NS + LOOK_NS)
            case "cut":
                cluster.connected = False
                cluster.step(number * 10 * MS)
                cluster.connected = True
            case "successor":
                cluster.forget()  # the supervisor's part
                cluster.page.clear()
                cluster.keeper = Keeper(cluster.page)


def test_who_follows_goes_on_under_the_same_page() -> None:
    """Its own lease, and no word of the watch that was meant for the one before."""
    cluster = Cluster()
    cluster.wait_kept(5)
    cluster.worker_runs = False
    cluster.step(2000 * MS)
    cluster.page.clear()
    cluster.keeper = Keeper(cluster.page)
    cluster.worker_runs = True
    cluster.wait_kept(6)
    cluster.step(10_000 * MS)
    assert cluster.inodes == {6}


def test_a_watch_that_fired_is_heeded_by_a_worker_that_was_late() -> None:
    """What it told the kernel in between may have been taken in later: all goes once more."""
    cluster = Cluster()
    cluster.wait_kept(5)
    cluster.worker_runs = False
    cluster.step(LEASE_NS - MARGIN_NS + 50 * MS)
    assert not cluster.inodes
    cluster.inodes.add(5)  # an answer that was written before and is taken in now
    cluster.worker_runs = True
    drops = cluster.drops
    assert not cluster.answer(7)
    cluster.step(60 * MS)
    assert cluster.drops > drops
    assert not cluster.inodes
    cluster.wait_kept(8)


def test_the_watch_repeats_what_it_did_and_then_rests() -> None:
    page = new_page()
    watcher = Watch(page)
    assert watcher.looked(START_NS) is None, "nothing is kept: it sleeps until somebody rings"
    page.until_ns = START_NS + LEASE_NS
    page.add(5)
    wait_ns = watcher.looked(START_NS)
    assert wait_ns == dropped_from_ns(page.until_ns, 1) - START_NS
    now_ns = START_NS + wait_ns
    assert not watcher.is_due(now_ns - 1)
    assert watcher.is_due(now_ns)
    assert page.drops == 1
    for after_ns in AGAIN_NS:
        wait_ns = watcher.looked(now_ns)
        assert wait_ns is not None
        assert not watcher.is_due(now_ns + wait_ns - 1)
        now_ns += wait_ns
        assert watcher.is_due(now_ns), after_ns
    assert page.drops == 1, "the worker need not hear of the same again"
    assert watcher.looked(now_ns) is None
    page.until_ns += LEASE_NS * 10
    assert watcher.looked(now_ns), "a lease that was renewed is watched again"


def test_what_does_not_fit_is_kept_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    """The book is bounded; a full one is emptied when it is old, and names stay."""
    monkeypatch.setattr(watch, "INODES_MAX", 3)
    cluster = Cluster()
    for number in (1, 2, 3):
        cluster.wait_kept(number)
    assert not cluster.keeper.keep(4, cluster.now_ns)
    assert cluster.keeper.keep(3, cluster.now_ns)
    drops = cluster.drops
    cluster.step(FULL_NS - 1000 * MS)
    assert cluster.drops == drops
    names = set(cluster.names)
    cluster.step(2000 * MS)
    assert cluster.drops == drops
    assert cluster.inodes == set()
    assert cluster.names == names != set()
    cluster.wait_kept(4)


def test_names_are_kept_in_any_number_of_directories(monkeypatch: pytest.MonkeyPatch) -> None:
    """A book that is full of directories takes no name back. Who asks of one that is not in it is
    told of as well, until all time-outs of then have ended."""
    monkeypatch.setattr(watch, "DIRECTORIES_MAX", 2)
    cluster = Cluster()
    for number in (1, 2):
        cluster.wait_kept(number)
    assert not cluster.keeper.may_know_names_in([3, 4])
    cluster.wait_kept(3)
    assert cluster.keeper.may_know_names_in([4])
    drops, began_ns = cluster.drops, cluster.now_ns
    while cluster.now_ns < began_ns + NAMES_NS:
        cluster.step(1000 * MS)
        assert cluster.answer(1)
        assert cluster.keeper.may_know_names_in([3])
    cluster.step(NAMES_NS)
    assert cluster.answer(1)
    assert cluster.drops == drops
    assert cluster.keeper.may_know_names_in([1])
    assert not cluster.keeper.may_know_names_in([3, 4])


def test_names_that_go_are_known_until_they_went(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "DIRECTORIES_MAX", 1)
    cluster = Cluster()
    for number in (1, 2):
        cluster.wait_kept(number)
    going = cluster.keeper.names_go()
    assert cluster.keeper.may_know_names_in([1])
    assert cluster.keeper.may_know_names_in([2])
    cluster.keeper.names_went(going)
    assert not cluster.keeper.may_know_names_in([1, 2])


def test_nothing_is_kept_while_all_goes() -> None:
    cluster = Cluster()
    cluster.wait_kept(5)
    assert cluster.keeper.begin_drop() == (5,)
    assert not cluster.answer(6)
    cluster.keeper.end_drop()
    assert cluster.page.nodeids() == []
    assert cluster.page.until_ns == 0
    cluster.wait_kept(6)


def test_a_drop_of_the_watch_during_one_of_the_worker_is_done_once_more() -> None:
    cluster = Cluster()
    cluster.wait_kept(5)
    cluster.keeper.begin_drop()
    cluster.page.dropped()
    cluster.keeper.end_drop()
    assert cluster.keeper.must_drop(cluster.now_ns)
    cluster.keeper.begin_drop()
    cluster.keeper.end_drop()
    cluster.wait_kept(5)
