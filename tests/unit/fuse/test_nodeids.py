"""Which node id an inode has, and how it may be opened: against the rules of the kernel."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest

from pydi_fs.fuse.nodeids import SECOND, NodeIds, Verdict
from pydi_node.ids import Ino

INO = Ino(7)
FILE, OTHER = object(), object()  # backing files of two versions


@dataclass
class KernelInode:
    """What Linux allows on one inode (fs/fuse/iomode.c): the cache or one backing file."""

    cached: int = 0
    passing: int = 0
    backing: object = None


@dataclass
class Kernel:
    """Opens files as the kernel does, and fails where it would give EIO or ESTALE to a program."""

    forgotten: list[int] = field(default_factory=list)
    inodes: dict[int, KernelInode] = field(default_factory=dict)
    open_files: dict[int, tuple[int, object]] = field(default_factory=dict)  # fh: node id, backing
    last_fh: int = 0

    def __post_init__(self) -> None:
        self.ids = NodeIds(self.forgotten.append, restless_max=2)

    def open(self, ino: Ino, backing: object, writes: bool, known: int | None = None) -> int:
        """open(2) by a name that the kernel knows as node id ``known``; the handle."""
        for nodeid in (known if known is not None else self.ids.of(ino), None):
            if nodeid is None:
                nodeid = self.ids.of(ino)  # after ESTALE it looks the name up again, once
            self.last_fh += 1
            second = bool(nodeid & SECOND)
            if not self.ids.may_open(ino, second, writes):
                continue
            # Also where `may_pass` says no: that may change while the file is looked for.
            wanted = None if writes else backing
            verdict = self.ids.opened(ino, second, self.last_fh, wanted)
            if verdict is Verdict.STALE:
                continue
            passed = wanted if verdict is Verdict.PASSTHROUGH else None
            self._opened(nodeid, passed)
            self.open_files[self.last_fh] = nodeid, passed
            return self.last_fh
        pytest.fail("ESTALE reached the program")

    def create(self, ino: Ino) -> int:
        self.last_fh += 1
        self.ids.created(ino, self.last_fh)
        self._opened(self.ids.of(ino), None)
        self.open_files[self.last_fh] = self.ids.of(ino), None
        return self.last_fh

    def _opened(self, nodeid: int, backing: object) -> None:
        inode = self.inodes.setdefault(nodeid, KernelInode())
        if backing is None:
            assert not inode.passing, "EIO: cached while passed through"
            inode.cached += 1
        else:
            assert not inode.cached, "EIO: passed through while cached"
            assert not inode.passing or inode.backing is backing, "EIO: another backing file"
            inode.passing += 1
            inode.backing = backing

    def close(self, fh: int) -> None:
        nodeid, backing = self.open_files.pop(fh)
        inode = self.inodes[nodeid]
        if backing is None:
            inode.cached -= 1
        else:
            inode.passing -= 1
        assert self.ids.closed(Ino(nodeid & ~SECOND), fh) == (backing is not None)


@pytest.fixture
def kernel() -> Kernel:
    return Kernel()


def way(kernel: Kernel, fh: int) -> tuple[bool, bool]:
    """(second node id, passed through)"""
    nodeid, backing = kernel.open_files[fh]
    return bool(nodeid & SECOND), backing is not None


def test_readers_share_one_backing_file(kernel: Kernel) -> None:
    """Several opens of one version are passed through, again after all closed."""
    for _ in range(2):
        opened = [kernel.open(INO, FILE, writes=False) for _ in range(3)]
        assert [way(kernel, fh) for fh in opened] == [(False, True)] * 3
        for fh in opened:
            kernel.close(fh)
    assert not kernel.forgotten


def test_readers_beside_a_writer_use_the_cache(kernel: Kernel) -> None:
    """As long as the file is open for writing, everybody sees the writes; later it is passed
    through again."""
    writer = kernel.open(INO, None, writes=True)
    reader = kernel.open(INO, FILE, writes=False)
    assert way(kernel, reader) == (False, False)
    kernel.close(writer)
    assert way(kernel, kernel.open(INO, FILE, writes=False)) == (False, False)
    for fh in list(kernel.open_files):
        kernel.close(fh)
    assert way(kernel, kernel.open(INO, FILE, writes=False)) == (False, True)


@pytest.mark.parametrize("known", [None, INO])
def test_a_writer_makes_it_restless(kernel: Kernel, known: int | None) -> None:
    """A file that is open in passthrough gets another node id for the writer and all after it; the
    kernel forgets what it believed of the first."""
    reader = kernel.open(INO, FILE, writes=False)
    writer = kernel.open(INO, None, writes=True, known=known)
    assert way(kernel, writer) == (True, False)
    assert kernel.forgotten == [INO]
    assert kernel.ids.is_outdated(INO, second=False)
    assert not kernel.ids.is_outdated(INO, second=True)
    kernel.close(writer)
    assert way(kernel, kernel.open(INO, OTHER, writes=False, known=known)) == (True, False)
    assert way(kernel, reader) == (False, True)


def test_a_newer_version_makes_it_restless(kernel: Kernel) -> None:
    """Changed elsewhere while it is open in passthrough."""
    kernel.open(INO, FILE, writes=False)
    assert way(kernel, kernel.open(INO, OTHER, writes=False)) == (True, False)


def test_a_create_of_an_existing_file_makes_it_restless(kernel: Kernel) -> None:
    """open(2) with O_CREAT of a name that another mount just made: the answer names the node id."""
    kernel.open(INO, FILE, writes=False)
    assert way(kernel, kernel.create(INO)) == (True, False)


def test_restless_files_are_forgotten_when_there_are_many(kernel: Kernel) -> None:
    """The longest unused first, and never one that is open; then it begins anew, except where the
    kernel still knows it."""
    for number in range(1, 5):
        ino = Ino(number)
        reader = kernel.open(ino, FILE, writes=False)
        kernel.close(kernel.open(ino, None, writes=True))
        if number > 1:
            kernel.close(reader)
    restless = [number for number in range(1, 5) if kernel.ids.of(Ino(number)) & SECOND]
    assert restless == [1, 3, 4]
    assert kernel.forgotten[-1] == 2 | SECOND
    reader = kernel.open(Ino(2), FILE, writes=False)
    assert way(kernel, reader) == (False, True)
    again = kernel.open(Ino(2), FILE, writes=False, known=2 | SECOND)
    assert way(kernel, again) == (True, False)


def test_random_opens_never_break_the_kernels_rules(rng: random.Random) -> None:
    """Goal: no EIO, no ESTALE for a program, no leak. Method: random opens, closes and versions of
    a few inodes, by node ids that may be old, against the kernel's rules."""
    kernel = Kernel()
    versions = {Ino(number): object() for number in range(1, 5)}
    for _ in range(5000):
        ino = rng.choice(list(versions))
        action = rng.randrange(10)
        if action < 5 and kernel.open_files:
            kernel.close(rng.choice(list(kernel.open_files)))
        elif action == 5:
            versions[ino] = object()
        elif action == 6:
            kernel.create(ino)
        else:
            backing = rng.choice((versions[ino], versions[ino], None))
            known = rng.choice((None, ino, ino | SECOND))
            kernel.open(ino, backing, writes=rng.random() < 0.2, known=known)
    for fh in list(kernel.open_files):
        kernel.close(fh)
    assert len(kernel.ids._states) <= 2
