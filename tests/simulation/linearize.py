"""Is there an order of these operations that explains what every client saw?

Wing and Gong's search with Lowe's memory of states already tried ("Testing for linearizability",
2017). Operations on different objects are independent (Herlihy and Wing, locality), so each object
has a history of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple, TypeVar

State = TypeVar("State", bound=Hashable)

FOREVER = 1 << 62  # the end of an operation that took effect but whose answer nobody got


class Operation(NamedTuple):
    """One operation on one object as its client saw it."""

    begin: int  # when it was sent for the first time
    end: int  # when its answer was there
    action: Any
    result: Any


def is_linearizable(
    history: Sequence[Operation],
    initial: State,
    apply: Callable[[State, Any], tuple[State, Any]],
) -> bool:
    """Whether some order that respects real time gives every operation the result it had.

    apply  (state, action) -> (state afterwards, result), the sequential object.
    """
    operations = sorted(history, key=lambda operation: (operation.begin, operation.end))
    everything = (1 << len(operations)) - 1
    tried: set[tuple[int, State]] = set()
    # Depth first: (operations done, state); an entry stands for all ways that lead there.
    stack: list[tuple[int, State]] = [(0, initial)]
    while stack:
        done, state = stack.pop()
        if done == everything:
            return True
        if (done, state) in tried:
            continue
        tried.add((done, state))
        # Next may be whatever began before the first end of those that are left.
        first_end = min(o.end for n, o in enumerate(operations) if not done >> n & 1)
        for number, operation in enumerate(operations):
            if operation.begin > first_end:
                break
            if not done >> number & 1:
                after, result = apply(state, operation.action)
                if result == operation.result:
                    stack.append((done | 1 << number, after))
    return False
