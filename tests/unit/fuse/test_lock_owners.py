"""Which closes give back which POSIX locks."""

from __future__ import annotations

from pydi_fs.fuse.lock_owners import LockOwners
from pydi_node.ids import Ino

INO, OTHER = Ino(5), Ino(6)


def test_any_close_of_the_owner_on_the_file_counts() -> None:
    """POSIX: closing any descriptor of the file drops the process' locks on it, once."""
    owners = LockOwners()
    owners.locked(INO, 1, 77)
    owners.locked(INO, 2, 77)
    assert not owners.flushed(INO, 78)
    assert not owners.flushed(OTHER, 77)
    assert owners.flushed(INO, 77)
    assert not owners.flushed(INO, 77)
    assert owners.released(INO, 1) == []


def test_release_names_those_who_locked_through_the_handle() -> None:
    """Several processes may share an open file; each gives back its own."""
    owners = LockOwners()
    owners.locked(INO, 1, 9)
    owners.locked(INO, 1, 3)
    owners.locked(INO, 2, 4)
    assert owners.released(INO, 1) == [3, 9]
    assert owners.released(INO, 1) == []
    assert owners.flushed(INO, 4)


def test_nothing_is_kept_of_files_without_locks() -> None:
    """The table does not grow with what was locked once."""
    owners = LockOwners()
    for number in range(100):
        owners.locked(Ino(number), number, 1)
        owners.locked(Ino(number), number, 2)
        owners.flushed(Ino(number), 1)
        owners.released(Ino(number), number)
    assert owners._owners == {}
