"""Three nodes stopped in any order and started in any order: nothing acknowledged is lost.

One cluster lives through all cases, so each case starts from what the ones before left behind. By
default every start order runs twice, the second time with each node stopped the other way, and the
stop orders are dealt out by the seed; ``PYDI_ORDERS=all`` runs every combination (288 cases, half
an hour).
"""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from pydi_node.errors import PydiError
from pydi_node.ids import Serial
from pydi_node.wire.messages import Execute
from tests.harness.procs import NodeProcess, WireClient, wait_until
from tests.harness.trees import assert_stopped_tree_sound, wait_one_tree
from tests.node.test_cluster import create_until_done, names, start_cluster, voters
from tests.node.test_life import create_command

NODES = (1, 2, 3)
CLEAN, KILL = "clean", "kill"
CHANGES_PER_STEP = 3
# Long enough for a node that could accept a command on its own to do so.
REFUSED_AFTER_MS = 400
FAILED_TO_LEAVE = "stopping without leaving the voters"


class Case(NamedTuple):
    stop: tuple[int, ...]  # the order, by number
    how: tuple[str, ...]  # CLEAN or KILL, for the nodes in the order of their stop
    start: tuple[int, ...]

    def __str__(self) -> str:
        stops = " ".join(f"{how}{number}" for number, how in zip(self.stop, self.how, strict=True))
        return f"{stops} start{''.join(map(str, self.start))}"


def default_cases(seed: int) -> list[Case]:
    source = random.Random(seed)
    orders = list(itertools.permutations(NODES))
    stops = source.sample(orders, 6) + source.sample(orders, 6)
    cases = []
    for start in source.sample(orders, 6):
        kinds = {number: source.choice((CLEAN, KILL)) for number in NODES}
        for _ in range(2):
            stop = stops.pop()
            cases.append(Case(stop, tuple(kinds[number] for number in stop), start))
            kinds = {number: KILL if how == CLEAN else CLEAN for number, how in kinds.items()}
    return cases


def all_cases() -> list[Case]:
    orders = list(itertools.permutations(NODES))
    kinds = itertools.product((CLEAN, KILL), repeat=3)
    return [Case(*parts) for parts in itertools.product(orders, kinds, orders)]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" in metafunc.fixturenames:
        wants_all = os.environ.get("PYDI_ORDERS") == "all"
        cases = all_cases() if wants_all else default_cases(metafunc.config.option.seed)
        metafunc.parametrize("case", cases, ids=str)


class Cluster:
    """Three nodes, and what a client that watches them knows for certain.

    memberships  the sets of voters of which one is in force. There are two after a node could not
                 leave: the change may be in somebody's log and take effect later.
    """

    def __init__(self, directory: Path) -> None:
        self.nodes: dict[int, NodeProcess] = {}
        self._directory = directory
        self.up: set[int] = set()
        self.memberships: set[frozenset[int]] = {frozenset(NODES)}
        self.acknowledged: set[bytes] = set()
        self.is_sound = True  # no test failed in the middle
        self._made: list[NodeProcess] = []
        self._next = 0

    def found(self) -> None:
        made = start_cluster(self._make, len(NODES))
        self.nodes = {int(node.run["number"]): node for node in made}
        self.up = set(NODES)

    def _make(self, name: str, *flags: str) -> NodeProcess:
        node = NodeProcess(self._directory / name, *flags)
        self._made.append(node)
        return node

    def close(self) -> None:
        for node in self._made:
            node.kill()

    # --- what is certain --------------------------------------------------------------------------

    def must_accept(self) -> bool:
        return all(2 * len(self.up & voters) > len(voters) for voters in self.memberships)

    def must_refuse(self) -> bool:
        return all(2 * len(self.up & voters) <= len(voters) for voters in self.memberships)

    # --- steps ------------------------------------------------------------------------------------

    def stop(self, number: int, how: str) -> None:
        node = self.nodes[number]
        self.up.remove(number)
        if how == KILL:
            node.kill()
        else:
            failures_before = node.log_text().count(FAILED_TO_LEAVE)
            assert node.stop() == 0
            has_failed = node.log_text().count(FAILED_TO_LEAVE) > failures_before
            left = {v - {number} or v for v in self.memberships}
            self.memberships = self.memberships | left if has_failed else left
        assert_stopped_tree_sound(node)

    def start(self, number: int) -> None:
        self.nodes[number].start()
        self.up.add(number)

    def change(self, through: int) -> None:
        """Some changes, where they must be accepted; none is, where none may be."""
        if self.must_accept():
            with self.nodes[through].connect() as client:
                for _ in range(CHANGES_PER_STEP):
                    name = self._new_name()
                    create_until_done(client, name)
                    self.acknowledged.add(name)
        elif self.must_refuse():
            with self.nodes[through].connect() as client:
                assert_refused(client, self._new_name())

    def _new_name(self) -> bytes:
        self._next += 1
        return b"f%d" % self._next

    def wait_whole(self) -> None:
        """All three vote again and hold one tree, in which everything acknowledged is."""
        some = self.nodes[1]
        wait_until(lambda: set(voters(some)) == set(NODES), "all three are voters", 60)
        self.memberships = {frozenset(NODES)}
        wait_one_tree(list(self.nodes.values()))
        for node in self.nodes.values():
            with node.connect() as client:
                assert self.acknowledged <= names(client)


def assert_refused(client: WireClient, name: bytes) -> None:
    client.serial += 1
    command = Execute(client.client, Serial(client.serial), create_command(name))
    request_id, buffers = client.session.send_request(command, deadline_ms=REFUSED_AFTER_MS)
    client.sock.sendall(b"".join(buffers))
    with pytest.raises(PydiError):
        client.wait(request_id)


@pytest.fixture(scope="module")
def clusters(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Cluster]]:
    """The cluster of all cases; another one after a case that failed."""
    made: list[Cluster] = []
    yield made
    for cluster in made:
        cluster.close()


@pytest.fixture
def cluster(clusters: list[Cluster], tmp_path_factory: pytest.TempPathFactory) -> Cluster:
    if not clusters or not clusters[-1].is_sound:
        clusters.append(Cluster(tmp_path_factory.mktemp("orders")))
        clusters[-1].found()
    return clusters[-1]


@pytest.mark.slow
def test_any_order_of_stops_and_starts(cluster: Cluster, case: Case, rng: random.Random) -> None:
    """Between the steps changes are made wherever a majority is up, and nowhere else; when all
    three are back they hold one complete tree."""
    cluster.is_sound = False
    for number, how in zip(case.stop, case.how, strict=True):
        cluster.change(rng.choice(sorted(cluster.up)))
        cluster.stop(number, how)
    for number in case.start:
        cluster.start(number)
        cluster.change(rng.choice(sorted(cluster.up)))
    cluster.wait_whole()
    cluster.is_sound = True
