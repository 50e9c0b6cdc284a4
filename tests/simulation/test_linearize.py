"""The search for an explanation: finds one where there is one, and none where there is none."""

from __future__ import annotations

import itertools
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.simulation.linearize import FOREVER, Operation, is_linearizable


def register(state: Any, action: Any) -> tuple[Any, Any]:
    return (action[1], None) if action[0] == "write" else (state, state)


def write(begin: int, end: int, value: int) -> Operation:
    return Operation(begin, end, ("write", value), None)


def read(begin: int, end: int, value: int) -> Operation:
    return Operation(begin, end, ("read",), value)


def test_operations_one_after_the_other() -> None:
    """Without overlap there is one order, and it must fit."""
    assert is_linearizable([write(0, 1, 5), read(2, 3, 5)], 0, register)
    assert not is_linearizable([write(0, 1, 5), read(2, 3, 0)], 0, register)


def test_overlapping_operations_may_go_either_way() -> None:
    """A read beside a write sees the old or the new value, but not first the new, then the old."""
    assert is_linearizable([write(0, 9, 5), read(1, 2, 0), read(3, 4, 5)], 0, register)
    assert not is_linearizable([write(0, 9, 5), read(1, 2, 5), read(3, 4, 0)], 0, register)


def test_an_unanswered_operation_may_take_effect_late() -> None:
    """Its end is not known, so it may explain a value that shows much later."""
    history = [write(0, FOREVER, 5), read(10, 11, 0), read(20, 21, 5)]
    assert is_linearizable(history, 0, register)
    assert not is_linearizable([*history, read(30, 31, 0)], 0, register)


@settings(deadline=None, max_examples=150)
@given(
    st.lists(
        st.tuples(st.integers(0, 8), st.integers(0, 4), st.booleans(), st.integers(0, 2)),
        max_size=6,
    )
)
def test_agrees_with_trying_every_order(plan: list[tuple[int, int, bool, int]]) -> None:
    """The search says the same as all permutations tried one by one."""
    history = [
        (write if writes else read)(begin, begin + length, value)
        for begin, length, writes, value in plan
    ]

    def explains(order: tuple[Operation, ...]) -> bool:
        for place, operation in enumerate(order):
            if any(later.end < operation.begin for later in order[place + 1 :]):
                return False
        state: Any = 0
        for operation in order:
            state, result = register(state, operation.action)
            if result != operation.result:
                return False
        return True

    expected = any(explains(order) for order in itertools.permutations(history))
    assert is_linearizable(history, 0, register) == expected
