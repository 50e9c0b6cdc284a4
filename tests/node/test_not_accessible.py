"""All holders of a file are down: commands say which and since when, and do what else they can."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from pydi_node.errors import EXIT_FAILED, EXIT_OK, EXIT_UNREACHABLE
from tests.harness.procs import NodeProcess, wait_until
from tests.node.test_cluster import status
from tests.node.test_replication import holders, numbered, save, storing_cluster

MakeNode = Callable[..., NodeProcess]


def test_single_commands_name_the_holders(make_node: MakeNode, tmp_path: Path) -> None:
    """cat and get -r of a file whose two holders were killed: exit code 1 and one sentence; what
    the third node holds is copied. A change is refused for want of a quorum, and the sentence says
    that. When they are back the same command succeeds."""
    by_number = numbered(storing_cluster(make_node, 3))
    with by_number[1].connect() as client:
        save(client, b"lost", b"lost" * 1000)
        first, second = sorted(holders(client, b"lost"))
    (other,) = set(by_number) - {first, second}
    through = by_number[other]
    with through.connect() as client:
        save(client, b"kept", b"kept" * 1000)
    for number in (first, second):
        by_number[number].kill()

    def are_seen_down() -> bool:
        states = {node["number"]: node["state"] for node in status(through)["nodes"]}
        return states[first] == states[second] == "down"

    wait_until(are_seen_down, "both are seen as down", 60)
    sentence = rf"pydi: /lost: not accessible: holders {first}, {second} are down since [0-9:]+\n"
    run = through.pydi("cat", "/lost")
    assert run.returncode == EXIT_FAILED, run
    assert re.fullmatch(sentence, run.stderr), run.stderr
    run = through.pydi("get", "-r", "/", "all", cwd=tmp_path)
    assert run.returncode == EXIT_FAILED, run
    assert run.stderr.count("\n") == 1
    assert "lost: not accessible: holders" in run.stderr
    assert [path.name for path in (tmp_path / "all").iterdir()] == ["kept"]
    assert (tmp_path / "all/kept").read_bytes() == b"kept" * 1000
    run = through.pydi("mkdir", "/new", "--deadline", "3")
    assert run.returncode == EXIT_UNREACHABLE, run
    assert run.stderr.count("\n") == 1
    assert "too few voters are reachable" in run.stderr
    for number in (first, second):
        by_number[number].start()
    run = through.pydi("get", "/lost", "copy", cwd=tmp_path)
    assert run.returncode == EXIT_OK, run
    assert (tmp_path / "copy").read_bytes() == b"lost" * 1000
