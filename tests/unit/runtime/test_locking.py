"""Locks while leadership moves: one node's part, with the others' messages made up."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from pydi_node.errors import NotLeaderError
from pydi_node.ids import Ino, NodeNumber, Term
from pydi_node.runtime.locking import Locking
from pydi_node.wire.messages import Admin, LockKind, SetLock

ONE, TWO, THREE = (NodeNumber(number) for number in (1, 2, 3))
DEADLINE_S = 60.0


class Others:
    """What node 1 sees of the other two: who leads, and its requests, which nobody answers."""

    members = frozenset((TWO, THREE))

    def __init__(self) -> None:
        raft = SimpleNamespace(term=Term(1), leader=TWO)
        replica = SimpleNamespace(raft=raft, is_leader=False)
        self.driver = SimpleNamespace(replica=replica, role_changed=asyncio.Event())
        self.asked: asyncio.Queue[tuple[NodeNumber, Admin]] = asyncio.Queue()

    def lead(self, term: int, leader: NodeNumber) -> None:
        """Node 1 hears of it."""
        self.driver.replica.raft.term, self.driver.replica.raft.leader = Term(term), leader
        self.driver.replica.is_leader = leader == ONE
        self.driver.role_changed.set()

    def is_connected(self, _: NodeNumber) -> bool:
        return True

    async def request(self, number: NodeNumber, request: Admin, _: float) -> Any:
        self.asked.put_nowait((number, request))
        await asyncio.Event().wait()


def exclusive(owner: int) -> SetLock:
    return SetLock(Ino(7), owner, LockKind.EXCLUSIVE, 0, 10, True, True, 0)


@pytest.mark.parametrize("verb", ["lock", "locks"])
def test_nobody_waits_for_a_leader_that_is_none_any_more(verb: str) -> None:
    """One that hangs is asked for a lock, or told what is held; a new one is asked, or told, at
    once: it gives out what it was not told of within GRACE_S."""

    async def scenario() -> None:
        others = Others()
        locking = Locking(others, ONE)  # type: ignore[arg-type]
        tasks = [asyncio.create_task(locking.run())]
        if verb == "lock":
            deadline_s = asyncio.get_running_loop().time() + DEADLINE_S
            tasks.append(asyncio.create_task(locking.set_lock(5, exclusive(1), deadline_s)))

        async def wait_asked(number: NodeNumber) -> dict[str, Any]:
            while True:
                to, request = await others.asked.get()
                if (to, request.verb) == (number, verb):
                    return request.arguments

        async with asyncio.timeout(DEADLINE_S):
            await wait_asked(TWO)
            others.lead(2, THREE)
            arguments = await wait_asked(THREE)
        assert arguments.get("term", 2) == 2
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(scenario())


def test_what_was_told_of_an_earlier_leadership_does_not_count() -> None:
    """It comes late, and names a lock that is another node's by now."""

    async def scenario() -> None:
        others = Others()
        locking = Locking(others, ONE)  # type: ignore[arg-type]
        deadline_s = asyncio.get_running_loop().time() + DEADLINE_S

        def told(node: NodeNumber, term: int, *held: dict[str, Any]) -> dict[str, Any]:
            return {"node": node, "term": term, "held": list(held), "asking": []}

        def of(node: NodeNumber) -> dict[str, Any]:
            return {
                "ino": 7, "flock": True, "owner": [node, 5, 1], "exclusive": True,
                "start": 0, "end": 10, "pid": 0,
            }  # fmt: skip

        others.lead(3, ONE)
        with pytest.raises(NotLeaderError):
            await locking.answer("locks", told(TWO, 1, of(TWO)), deadline_s)
        await locking.answer("locks", told(THREE, 3, of(THREE)), deadline_s)
        await locking.answer("locks", told(TWO, 3), deadline_s)
        await locking.answer("locks", told(ONE, 3), deadline_s)
        assert await locking.answer("lock", of(TWO), deadline_s) is False

    asyncio.run(scenario())
