"""What a kernel keeps for longer than a lease, and who takes it back in time. Pure: times come in.

A kernel that was told to keep names and attributes beyond a lease is right only as long as somebody
takes back what changes. The worker does while it lives; but it may be stopped, hang or be killed,
and when its lease is over the cluster goes on without it. So there is a second process, the watch
(`watching` runs it), which holds /dev/fuse, too, and makes the kernel forget everything a while
before a lease ends that was not renewed. The two share a page of memory and nothing else:

    worker (`Keeper`)  ── end of the lease, inodes kept ──►  page  ──►  watch (`Watch`)
                       ◄── when it last looked, drops ─────        ◄──

Each watches the other. The worker gives long time-outs only while the watch has looked a moment
ago, and drops everything when it stops looking; the watch drops everything when the worker does not
renew. A drop too many costs questions, one too few would show what is no longer true.

INC_EPOCH makes all names and listings stale at once. It leaves attributes alone, which an open
file, a working directory or a mount of its own leads to without any name: so each inode whose
attributes are kept is in the page, and is told to the kernel by itself. What does not fit there is
kept as long as the lease lasts, as is everything where there is no watch.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

MS = 1_000_000

# As many as the vfs remembers attributes of. To make a kernel forget takes 2.2 us for each.
INODES_MAX = 32768
DIRECTORIES_MAX = 32768  # in which the kernel keeps a name
# How long before the end of a lease all is dropped, and how much earlier for each inode. A lease
# lasts 0.7 to 0.9 s and is renewed every 0.2 s.
MARGIN_NS = 250 * MS
INODE_NS = 5_000
# The watch looks when a lease would be about to end, which is twice a second or oftener.
LOOKED_MAX_NS = 1_000 * MS
# The worker looks so often whether the watch does.
LOOK_NS = 250 * MS
# An answer that was on its way when its inode was dropped may be taken in by the kernel later: its
# program has to run for that. So what the kernel did not know is told to it again, after these.
AGAIN_NS = (20 * MS, 200 * MS, 1_000 * MS, 5_000 * MS)
# A full page of inodes is emptied so often: what is looked at changes. Without the names: an epoch
# makes Linux detach what is mounted inside.
FULL_NS = 60_000 * MS
# How long the kernel keeps what nobody takes back: all three processes were killed at once, or the
# container is frozen. What is in use costs a question so often.
KEPT_S = 60.0
# After that long the kernel has certainly forgotten a name: a late answer counts from when it came.
NAMES_NS = int(KEPT_S * 1000) * MS + AGAIN_NS[-1]

_UNTIL, _LOOKED, _DROPS, _USED, _INODES = range(5)
PAGE_BYTES = 8 * (_INODES + INODES_MAX)


class Page:
    """The shared memory: words of 64 bits, each written by one side.

    buffer  PAGE_BYTES, all zero at first.
    """

    def __init__(self, buffer: memoryview) -> None:
        self._words = buffer.cast("q")

    @property
    def until_ns(self) -> int:
        """The end of the worker's lease; 0: nothing is kept beyond a lease."""
        return self._words[_UNTIL]

    @until_ns.setter
    def until_ns(self, until_ns: int) -> None:
        self._words[_UNTIL] = until_ns

    @property
    def looked_ns(self) -> int:
        """When the watch last looked."""
        return self._words[_LOOKED]

    @looked_ns.setter
    def looked_ns(self, now_ns: int) -> None:
        self._words[_LOOKED] = now_ns

    @property
    def drops(self) -> int:
        """How often the watch dropped everything."""
        return self._words[_DROPS]

    def dropped(self) -> None:
        self._words[_DROPS] += 1

    @property
    def used(self) -> int:
        return self._words[_USED]

    def add(self, nodeid: int) -> None:
        """The caller has looked whether there is room."""
        used = self._words[_USED]
        self._words[_INODES + used] = nodeid
        self._words[_USED] = used + 1  # only now does the other side see it

    def nodeids(self) -> list[int]:
        return self._words[_INODES : _INODES + self._words[_USED]].tolist()

    def clear(self) -> None:
        self._words[_UNTIL] = 0
        self._words[_USED] = 0

    def clear_inodes(self) -> None:
        self._words[_USED] = 0


def dropped_from_ns(until_ns: int, used: int) -> int:
    """When all that is kept must begin to go, under a lease until then."""
    return until_ns - MARGIN_NS - used * INODE_NS


class Watch:
    """The watch's part: when to drop everything."""

    def __init__(self, page: Page) -> None:
        self._page = page
        self._dropped_ns = 0  # the end of the lease before which all was dropped
        self._again_ns: list[int] = []  # when that is to be done again

    def is_due(self, now_ns: int) -> bool:
        """Whether the kernel must forget all names and all inodes of the page, now."""
        page = self._page
        until_ns = page.until_ns
        if until_ns != self._dropped_ns:
            self._again_ns.clear()
            if until_ns and now_ns >= dropped_from_ns(until_ns, page.used):
                page.dropped()
                self._dropped_ns = until_ns
                self._again_ns = [now_ns + after_ns for after_ns in AGAIN_NS]
                return True
        if self._again_ns and now_ns >= self._again_ns[0]:
            del self._again_ns[0]
            return True
        return False

    def looked(self, now_ns: int) -> int | None:
        """What was due is done. How long until the next look; None: until somebody rings."""
        page = self._page
        page.looked_ns = now_ns
        until_ns = page.until_ns
        if until_ns and until_ns != self._dropped_ns:
            return max(0, dropped_from_ns(until_ns, page.used) - now_ns)
        if self._again_ns:
            return max(0, self._again_ns[0] - now_ns)
        return None


class Drop(NamedTuple):
    """All that was kept, on its way out."""

    nodeids: tuple[int, ...]
    drops: int  # of the watch, before it began


class _Names:
    """In which directories the kernel keeps a name, of those that it was told of in some time."""

    __slots__ = ("_directories", "_has_others")

    def __init__(self) -> None:
        self._directories: set[int] = set()
        self._has_others = False  # than these, for want of room

    def add(self, directory: int) -> None:
        if directory in self._directories:
            return
        if len(self._directories) < DIRECTORIES_MAX:
            self._directories.add(directory)
        else:
            self._has_others = True

    def may_be_in(self, directories: Iterable[int]) -> bool:
        return self._has_others or not self._directories.isdisjoint(directories)


NamesGoing = tuple[_Names, ...]


class Keeper:
    """The worker's part: what the kernel may keep beyond the lease."""

    def __init__(self, page: Page) -> None:
        self._page = page
        self._drops = page.drops  # that this side has done as well
        self._until_ns = 0
        self._nodeids: set[int] = set()
        # What was kept before the older of these two was begun, its time-out has ended.
        self._names: NamesGoing = (_Names(), _Names())  # the newer one first
        self._names_since_ns = 0  # the newer one was begun
        self._going: list[NamesGoing] = []  # on their way out
        self._drop: Drop | None = None
        self._is_full = False  # of inodes
        self._inodes_since_ns = 0
        self.is_out = False  # something is kept
        self.rings = False  # the watch is to be woken; the caller does, and sets it back

    def renewed(self, until_ns: int) -> None:
        """The lease lasts until then; 0: there is none."""
        self._until_ns = until_ns
        if self.is_out and until_ns:
            self._page.until_ns = until_ns

    def knows(self, nodeid: int) -> bool:
        """Whether the kernel may keep its attributes."""
        return nodeid in self._nodeids

    def may_know_names_in(self, directories: Iterable[int]) -> bool:
        """Whether the kernel may keep a name, or an absence, in one of them."""
        asked = tuple(directories)
        known = (self._names, *self._going)
        return any(some.may_be_in(asked) for pair in known for some in pair)

    def moved(self, directory: int) -> None:
        """The kernel moves a name that it may keep into there by itself."""
        if self.is_out:
            self._names[0].add(directory)

    def names_go(self) -> NamesGoing:
        """The kernel is about to forget all names. What to call `names_went` with when it has."""
        going = self._names
        self._going.append(going)
        self._names = (_Names(), _Names())
        return going

    def names_went(self, going: NamesGoing) -> None:
        self._going = [pair for pair in self._going if pair is not going]

    def keep(self, nodeid: int, now_ns: int) -> bool:
        """Whether the attributes that are about to be sent may be kept. They are booked."""
        if not self._may_keep(now_ns):
            return False
        if nodeid not in self._nodeids:
            if len(self._nodeids) >= INODES_MAX:
                self._is_full = True
                return False
            if not self._nodeids:
                self._inodes_since_ns = now_ns
            self._nodeids.add(nodeid)
            self._page.add(nodeid)
        self._is_kept(now_ns)
        return True

    def keep_name(self, directory: int, now_ns: int) -> bool:
        """Whether a name, or an absence, in there may be kept. It is booked."""
        if not self._may_keep(now_ns):
            return False
        if now_ns - self._names_since_ns >= NAMES_NS:
            self._names = (_Names(), self._names[0])
            self._names_since_ns = now_ns
        self._names[0].add(directory)
        self._is_kept(now_ns)
        return True

    def _is_kept(self, now_ns: int) -> None:
        if not self.is_out:
            self.is_out = self.rings = True
            self._page.until_ns = self._until_ns

    def _may_keep(self, now_ns: int) -> bool:
        if self._drop is not None or self._is_overdue(now_ns):
            return False
        if now_ns - self._page.looked_ns > LOOKED_MAX_NS:
            self.rings = not self.is_out
            return False
        return True

    def _is_overdue(self, now_ns: int) -> bool:
        page = self._page
        return page.drops != self._drops or now_ns >= dropped_from_ns(self._until_ns, page.used)

    def must_drop(self, now_ns: int) -> bool:
        """Whether all that is kept must go now: `begin_drop`."""
        if not self.is_out or self._drop is not None:
            return False
        return self._is_overdue(now_ns) or now_ns - self._page.looked_ns > LOOKED_MAX_NS

    def must_make_room(self, now_ns: int) -> bool:
        """Whether all attributes must go, and no name; asked when nothing must drop."""
        return self._is_full and self._drop is None and now_ns - self._inodes_since_ns >= FULL_NS

    def wait_ns(self, now_ns: int) -> int:
        """Until when `must_drop` needs to be asked again."""
        return max(0, min(LOOK_NS, dropped_from_ns(self._until_ns, self._page.used) - now_ns))

    def begin_drop(self) -> tuple[int, ...]:
        """Everything is about to be taken back: all names, if they go, then attributes of these.
        Nothing more is kept before `end_drop`."""
        if self._drop is None:
            self._drop = Drop(tuple(self._nodeids), self._page.drops)
        return self._drop.nodeids

    def end_drop(self, names: bool = True) -> None:
        """It is done. Without ``names`` it was for attributes alone: a drop of the watch since it
        began, and a lease that ended, are still to be followed by one of everything."""
        drop = self._drop
        if drop is None:
            return
        self._drop = None
        self._is_full = False
        self._nodeids = set()
        if not names:
            self._page.clear_inodes()
            return
        self._drops = drop.drops
        self._names = (_Names(), _Names())
        self._page.clear()
        # Did the watch drop everything meanwhile, a late answer of before may lie between the two.
        self.is_out = self._page.drops != drop.drops
