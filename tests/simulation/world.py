"""Virtual time, chance and the network: everything outside of the nodes.

One ``World`` per simulated life. All randomness comes out of its one generator, in the order of the
events, and equal times are told apart by a sequence number: the same seed is the same life.
"""

from __future__ import annotations

import hashlib
import heapq
import random
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import msgpack  # type: ignore[import-untyped]  # it has none

from pydi_node.effects import PeerMessage, decode_peer_message, encode_peer_message

MS = 1_000  # all times in here are whole microseconds
SECOND = 1_000 * MS
AROUND_MAX = 6

T = TypeVar("T")
Action = Callable[[], None]


class Violation(AssertionError):
    """A promise of the cluster does not hold."""


class Dice:
    """Random choices out of one seed."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def below(self, bound: int) -> int:
        return self._random.randrange(bound)

    def between(self, low: int, high: int) -> int:
        return low + self._random.randrange(high - low + 1)

    def percent(self, chance: int) -> bool:
        return self._random.randrange(100) < chance

    def pick(self, items: Sequence[T]) -> T:
        return items[self._random.randrange(len(items))]

    def around(self, mean: int) -> int:
        """A waiting time: mostly below the mean, now and then up to AROUND_MAX times as long."""
        return 1 + int(min(self._random.expovariate(1.0), AROUND_MAX) * mean)

    def bits(self, count: int) -> int:
        return self._random.getrandbits(count)


class Owner:
    """Whatever stops doing things when it ends, or for a while (as under SIGSTOP)."""

    ended = False
    paused_until_us = 0


class _Event(NamedTuple):
    time_us: int
    sequence: int  # unique, so that nothing behind it is ever compared
    owner: Owner
    label: str
    action: Action


class World:
    """The queue of what happens next.

    trace  gets a line for each event; ``fingerprint`` covers them all in any case.
    """

    def __init__(self, seed: int, trace: Callable[[str], None] | None = None) -> None:
        self.dice = Dice(seed)
        self.now_us = 0
        self.steps = 0
        self.forever = Owner()  # of what nothing ends
        self._trace = trace
        self._queue: list[_Event] = []
        self._sequence = 0
        self._hash = hashlib.blake2b(digest_size=16)

    def after(self, delay_us: int, owner: Owner, label: str, action: Action) -> None:
        """``action`` happens then, unless ``owner`` has ended."""
        self._sequence += 1
        event = _Event(self.now_us + delay_us, self._sequence, owner, label, action)
        heapq.heappush(self._queue, event)

    def step(self) -> None:
        """The next event happens."""
        while True:
            event = heapq.heappop(self._queue)
            self.now_us = max(self.now_us, event.time_us)
            owner = event.owner
            if owner.ended:
                continue
            if owner.paused_until_us > self.now_us:
                self.after(owner.paused_until_us - self.now_us, owner, event.label, event.action)
                continue
            break
        self.steps += 1
        self.note(event.label)
        event.action()

    def run_until(self, time_us: int) -> None:
        """All events up to that time happen."""
        while self._queue and self._queue[0].time_us <= time_us:
            self.step()
        self.now_us = max(self.now_us, time_us)

    def note(self, text: str) -> None:
        """A line of the trace."""
        self._hash.update(b"%d %s\n" % (self.now_us, text.encode()))
        if self._trace is not None:
            self._trace(f"{self.now_us / SECOND:12.6f} {text}")

    @property
    def fingerprint(self) -> str:
        """Equal for equal lives."""
        return self._hash.hexdigest()


class Network:
    """Links between nodes that lose, delay, reorder and repeat, and that can be cut one way.

    ``deliver(to, message)`` is called with what arrives. A message that arrives late may well come
    from, or reach, another run of its node's program.
    """

    def __init__(
        self,
        world: World,
        deliver: Callable[[int, PeerMessage], None],
        hang_up: Callable[[int], None],
    ) -> None:
        """hang_up: is called with a node whose program has ended."""
        self._world = world
        self._deliver = deliver
        self.hang_up = hang_up
        self.loss = 0  # percent
        self.repeat = 0  # percent of messages that arrive a second time, up to seconds later
        self.reorder = 0  # percent of messages that may overtake and be overtaken
        self.latency_us = 1 * MS
        self.cut: set[tuple[int, int]] = set()  # (from, to): nothing gets through
        self._last_us: dict[tuple[int, int], int] = {}
        self._owner = Owner()

    def send(self, messages: Sequence[PeerMessage]) -> None:
        dice = self._world.dice
        for message in messages:
            link = (message.sender, message.to)
            # In the form of the wire: nothing may be shared between two nodes by reference.
            data: bytes = msgpack.packb(encode_peer_message(message))
            if link in self.cut or dice.percent(self.loss):
                continue
            arrival_us = self._world.now_us + dice.around(self.latency_us)
            if not dice.percent(self.reorder):
                arrival_us = max(arrival_us, self._last_us.get(link, 0))
                self._last_us[link] = arrival_us
            self._put(link, data, type(message).__name__, arrival_us)
            if dice.percent(self.repeat):
                late_us = dice.around(dice.pick((10 * MS, 1 * SECOND)))
                self._put(link, data, type(message).__name__, arrival_us + late_us)

    def _put(self, link: tuple[int, int], data: bytes, name: str, arrival_us: int) -> None:
        def arrive() -> None:
            if link not in self.cut:
                self._deliver(link[1], decode_peer_message(msgpack.unpackb(data, use_list=False)))

        content = hashlib.blake2b(data, digest_size=4).hexdigest()
        label = f"{link[0]} -> {link[1]} {name} {content}"
        self._world.after(arrival_us - self._world.now_us, self._owner, label, arrive)
