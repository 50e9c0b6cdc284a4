"""The lock table: ranges, owners, waiters in order, deadlocks; and against a dumb model."""

from __future__ import annotations

import errno

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pydi_node.errors import FileError
from pydi_node.ids import INT64_MAX, Ino
from pydi_node.locks import Lock, LockTable, Owner

INO = Ino(5)


def owner(number: int) -> Owner:
    return Owner((1, number), 0)


def lock(number: int, exclusive: bool = True, start: int = 0, end: int = INT64_MAX) -> Lock:
    return Lock(owner(number), exclusive, start, end, 0)


def test_readers_share_writers_exclude() -> None:
    """Two shared locks stand together, an exclusive one with nobody."""
    table = LockTable()
    assert table.set(INO, False, lock(1, exclusive=False))
    assert table.set(INO, False, lock(2, exclusive=False))
    assert not table.set(INO, False, lock(3))
    assert table.blocker(INO, False, lock(3)) in (lock(1, False), lock(2, False))


def test_fcntl_and_flock_do_not_meet() -> None:
    """flock(2): the two kinds are independent on Linux."""
    table = LockTable()
    assert table.set(INO, False, lock(1))
    assert table.set(INO, True, lock(2))


def test_unlock_in_the_middle_splits() -> None:
    """fcntl(2): a range is cut out of a lock, both ends stay."""
    table = LockTable()
    table.set(INO, False, lock(1, start=0, end=99))
    table.unlock(INO, False, owner(1), 40, 59)
    assert table.set(INO, False, lock(2, start=40, end=59))
    for start in (39, 60):
        assert not table.set(INO, False, lock(3, start=start, end=start))


def test_waiters_are_served_in_order_and_writers_do_not_starve() -> None:
    """A reader that came after a waiting writer waits behind it."""
    table = LockTable()
    granted: list[int] = []
    table.set(INO, True, lock(1, exclusive=False))
    table.set(INO, True, lock(4, exclusive=False))
    table.wait(INO, True, lock(2), lambda: granted.append(2))
    table.wait(INO, True, lock(3, exclusive=False), lambda: granted.append(3))
    table.unlock(INO, True, owner(4), 0, INT64_MAX)
    assert granted == []
    table.unlock(INO, True, owner(1), 0, INT64_MAX)
    assert granted == [2]
    table.unlock(INO, True, owner(2), 0, INT64_MAX)
    assert granted == [2, 3]


def test_a_wait_taken_back_is_never_granted() -> None:
    """And whoever waited behind it goes on."""
    table = LockTable()
    granted: list[int] = []
    table.set(INO, True, lock(1))
    cancel = table.wait(INO, True, lock(2), lambda: granted.append(2))
    table.wait(INO, True, lock(3), lambda: granted.append(3))
    cancel()
    table.unlock(INO, True, owner(1), 0, INT64_MAX)
    assert granted == [3]


def test_end_of_a_session_frees_everything_of_it() -> None:
    """Its locks on all files, its waits, and nothing of anybody else's."""
    table = LockTable()
    granted: list[int] = []
    table.set(INO, False, lock(1))
    table.set(Ino(6), True, lock(1))
    table.set(Ino(7), True, lock(2))
    table.wait(INO, False, lock(2), lambda: granted.append(2))
    table.wait(Ino(7), True, lock(1), lambda: granted.append(1))
    table.end_session((1, 1))
    assert granted == [2]
    table.unlock(Ino(7), True, owner(2), 0, INT64_MAX)
    assert granted == [2]
    assert table.set(Ino(6), True, lock(3))


def test_deadlock_is_told_to_the_one_who_would_close_the_circle() -> None:
    """fcntl(2) EDEADLK: 1 waits for 2, 2 would wait for 1."""
    table = LockTable()
    table.set(Ino(1), False, lock(1))
    table.set(Ino(2), False, lock(2))
    table.wait(Ino(2), False, lock(1), lambda: None)
    with pytest.raises(FileError) as error:
        table.wait(Ino(1), False, lock(2), lambda: None)
    assert error.value.errno == errno.EDEADLK


STEPS = st.lists(
    st.tuples(
        st.integers(1, 3),  # owner
        st.sampled_from(["shared", "exclusive", "unlock"]),
        st.integers(0, 9),
        st.integers(0, 9),
    ),
    max_size=30,
)


@settings(deadline=None, max_examples=200)
@given(STEPS)
def test_against_a_byte_by_byte_model(steps: list[tuple[int, str, int, int]]) -> None:
    """Ten bytes, each with its holders in a dict: the same answers after any steps."""
    table = LockTable()
    model: list[dict[int, str]] = [{} for _ in range(10)]
    for number, kind, a, b in steps:
        start, end = min(a, b), max(a, b)
        cells = model[start : end + 1]
        if kind == "unlock":
            table.unlock(INO, False, owner(number), start, end)
            for cell in cells:
                cell.pop(number, None)
            continue
        free = all(
            holder == number or (kind == "shared" and held == "shared")
            for cell in cells
            for holder, held in cell.items()
        )
        exclusive = kind == "exclusive"
        assert table.set(INO, False, lock(number, exclusive, start, end)) == free
        if free:
            for cell in cells:
                cell[number] = kind
    held = {
        (byte, found.owner.session[1], "exclusive" if found.exclusive else "shared")
        for _, found in table.held_by(lambda session: True)
        for byte in range(found.start, found.end + 1)
    }
    assert held == {(i, n, k) for i, cell in enumerate(model) for n, k in cell.items()}
