"""``pydi forget`` against real nodes: who goes, who must not, and who does not come back."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

from pydi_node.errors import EXIT_FAILED, EXIT_OK
from tests.harness.procs import NodeProcess, wait_until
from tests.node.test_cluster import create_until_done, start_cluster, status
from tests.node.test_recover import assert_left_behind, assert_refused
from tests.node.test_replication import holders, keep_in_files, numbered, save, set_setting

MakeNode = Callable[..., NodeProcess]


def forget(through: NodeProcess, *arguments: str) -> subprocess.CompletedProcess[str]:
    return through.pydi("forget", *arguments)


def test_forgotten_nodes_are_gone_for_good(make_node: MakeNode) -> None:
    """A running node is refused, and so is the holder of last copies; with --force or when it is
    gone it is no member any more, a running one stops, and none comes back."""
    nodes = start_cluster(make_node, 3)
    by_number = numbered(nodes)
    leader = status(nodes[0])["leader"]
    lost, kept = sorted(set(by_number) - {leader})
    through = by_number[kept]
    assert_refused(forget(through, str(lost)), EXIT_FAILED, f"node {lost} is running", "--force")
    assert_refused(forget(through, "9"), EXIT_FAILED, "node 9 is no member")
    assert_refused(forget(through, str(leader), "--force"), EXIT_FAILED, "leads the cluster")
    set_setting(through, "replicas", 1)
    keep_in_files(nodes)
    with by_number[lost].connect() as client:
        save(client, b"only there", b"content")
        assert holders(client, b"only there") == (lost,)
    by_number[lost].kill()
    wait_until(lambda: "the only copy of 1 blob:" in forget(through, str(lost)).stderr,
               "the leader knows that it is gone", 60)  # fmt: skip
    assert any("pydi forget" in sentence for sentence in status(through)["advice"])
    assert forget(through, str(lost), "--force").returncode == EXIT_OK
    state = status(through)
    assert sorted(node["number"] for node in state["nodes"]) == sorted([leader, kept])
    assert any("--witness" in sentence for sentence in state["advice"])
    assert_refused(forget(through, str(lost)), EXIT_FAILED, "is no member")
    by_number[lost].launch()
    assert_left_behind(by_number[lost], "was forgotten")
    done = forget(by_number[leader], str(kept), "--force")
    assert done.returncode == EXIT_OK, done.stderr
    assert_left_behind(through, "was forgotten")
    with by_number[leader].connect() as client:
        create_until_done(client, b"alone")
    assert [node["number"] for node in status(by_number[leader])["nodes"]] == [leader]
