"""Locks while leadership moves: one node's part, with the others' messages made up."""

from __future__ import annotations

import asyncio
import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest

from pydi_node.errors import NotLeaderError
from pydi_node.ids import INT64_MAX, Ino, NodeNumber, Term
from pydi_node.locks import RIGHTS_OWNER
from pydi_node.runtime import locking as locking_module
from pydi_node.runtime.locking import Locking
from pydi_node.wire.messages import Admin, LockKind, SetLock

ONE, TWO, THREE = (NodeNumber(number) for number in (1, 2, 3))
DEADLINE_S = 60.0


class Others:
    """What node 1 sees of the other two: who leads, and its requests, which nobody answers."""

    members: frozenset[NodeNumber] = frozenset((TWO, THREE))

    def __init__(self) -> None:
        raft = SimpleNamespace(term=Term(1), leader=TWO)
        replica = SimpleNamespace(raft=raft, is_leader=False)
        self.driver = SimpleNamespace(replica=replica, role_changed=asyncio.Event())
        self.asked: asyncio.Queue[tuple[NodeNumber, Admin]] = asyncio.Queue()

    def lead(self, term: int, leader: NodeNumber | None) -> None:
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


RIGHT = SetLock(Ino(7), RIGHTS_OWNER, LockKind.EXCLUSIVE, 0, INT64_MAX, False, False, 0)


def shared(owner: int, wait: bool = False) -> SetLock:
    return SetLock(Ino(7), owner, LockKind.SHARED, 0, 10, False, wait, 0)


def leading() -> tuple[Locking, list[tuple[int, Ino]]]:
    """Node 1 leads alone; and whom it told that others want a file's locks."""
    others = Others()
    others.members = frozenset()
    others.lead(1, ONE)
    locking = Locking(others, ONE)  # type: ignore[arg-type]
    told: list[tuple[int, Ino]] = []
    locking.tell = lambda session, ino: told.append((session, ino))
    return locking, told


def test_a_right_is_a_lock_of_the_whole_file_until_it_is_given_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its session's own locks are not in its way, and are told before it goes."""
    monkeypatch.setattr(locking_module, "RECALL_S", 0.01)

    async def scenario() -> None:
        locking, told = leading()
        until_s = asyncio.get_running_loop().time() + DEADLINE_S
        assert await locking.set_lock(5, RIGHT, until_s, client=77)
        assert await locking.set_lock(5, shared(1), until_s, client=77)
        assert told == []
        assert not await locking.set_lock(6, shared(1), until_s, client=88)
        assert told == [(5, 7)]
        waiting = asyncio.create_task(locking.set_lock(6, shared(2, wait=True), until_s, 88))
        assert await locking.set_lock(5, unlocked(RIGHT), until_s, client=77)
        assert await waiting
        assert not await locking.set_lock(6, RIGHT, until_s, client=88), "another session's lock"

    asyncio.run(scenario())


def unlocked(lock: SetLock) -> SetLock:
    return dataclasses.replace(lock, kind=LockKind.UNLOCK)


@pytest.mark.expects_log("a mount does not answer: its locks of inode 7 are lost")
def test_a_mount_that_does_not_answer_loses_its_right(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is stopped, or worse: it keeps others out for RECALL_LOST_S, not for ever, and from then
    on what it did not tell is nobody's."""
    monkeypatch.setattr(locking_module, "RECALL_LOST_S", 0.1)

    async def scenario() -> None:
        locking, told = leading()
        until_s = asyncio.get_running_loop().time() + DEADLINE_S
        assert await locking.set_lock(5, RIGHT, until_s, client=77)
        assert await locking.set_lock(6, shared(1, wait=True), until_s, client=88)
        assert told == [(5, 7)]
        assert not locking.has_rights(5)
        assert not await locking.set_lock(5, exclusive_range(1), until_s, client=77)

    asyncio.run(scenario())


def exclusive_range(owner: int) -> SetLock:
    return SetLock(Ino(7), owner, LockKind.EXCLUSIVE, 0, 10, False, False, 0)


def test_a_mount_that_comes_through_another_session_has_no_right_by_the_old_one() -> None:
    """Its node died, or its connection: it would wait for itself."""

    async def scenario() -> None:
        locking, told = leading()
        until_s = asyncio.get_running_loop().time() + DEADLINE_S
        assert await locking.set_lock(5, RIGHT, until_s, client=77)
        assert await locking.set_lock(6, exclusive_range(1), until_s, client=77)
        assert told == []

    asyncio.run(scenario())


def test_who_waits_for_a_lock_comes_before_a_right() -> None:
    """A session that holds the last lock in the way of others can't take the file from them."""

    async def scenario() -> None:
        locking, _ = leading()
        until_s = asyncio.get_running_loop().time() + DEADLINE_S
        assert await locking.set_lock(5, exclusive_range(1), until_s, client=77)
        waiting = asyncio.create_task(locking.set_lock(6, shared(1, wait=True), until_s, 88))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not await locking.set_lock(5, RIGHT, until_s, client=77)
        assert await locking.set_lock(5, unlocked(exclusive_range(1)), until_s, client=77)
        assert await waiting

    asyncio.run(scenario())


def test_rights_are_given_back_when_leadership_moves() -> None:
    """The node may have been cut off for so long that its locks were lost, and the file is
    another's by now: its mount must not go on when it has a lease again."""

    async def scenario() -> None:
        locking, told = leading()
        watching = asyncio.create_task(locking._watch_leadership())
        until_s = asyncio.get_running_loop().time() + DEADLINE_S
        assert await locking.set_lock(5, RIGHT, until_s, client=77)
        assert await locking.set_lock(6, exclusive(1), until_s)
        others = locking._peers
        assert isinstance(others, Others)
        heard = asyncio.Event()
        locking.tell = lambda session, ino: (told.append((session, ino)), heard.set())[0]
        others.lead(1, None)
        await asyncio.wait_for(heard.wait(), DEADLINE_S)
        assert told == [(5, Ino(7))]
        watching.cancel()

    asyncio.run(scenario())
