"""A witness as a process: it votes and keeps the tree, holds no content, and stays what it is."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pydi_node.errors import EXIT_FAILED, FileError
from pydi_node.ids import ROOT_INO
from pydi_node.wire.messages import BlobCreate, BlobPut, Lookup
from tests.harness.procs import NodeProcess, wait_until
from tests.node.test_cluster import create_until_done, start_cluster, status
from tests.node.test_life import assert_sentence, get_file, put_file, run_node
from tests.node.test_replication import holders, keep_in_files, save, set_setting, wait_storing

MakeNode = Callable[..., NodeProcess]


def cluster_with_witness(make_node: MakeNode) -> tuple[NodeProcess, NodeProcess, NodeProcess]:
    """Two nodes for content and a witness, all voters, the two ready to copy to each other."""
    first, second = start_cluster(make_node, 2)
    flags = ("--peer", first.address, "--token-file", str(first.data_dir / "token"))
    witness = make_node("w", *flags, "--witness")
    witness.start()
    wait_until(lambda: role_of(witness, 3) == "witness", "the witness votes", 60)
    for node in (first, second):
        wait_storing(node, 2)
    keep_in_files([first, second, witness])
    return first, second, witness


def role_of(node: NodeProcess, number: int) -> str:
    (role,) = [n["role"] for n in status(node)["nodes"] if n["number"] == number]
    return str(role)


def blob_files(node: NodeProcess) -> list[str]:
    blobs = node.data_dir / "blobs"
    return [path.name for path in blobs.glob("??/*")]


def test_two_nodes_and_a_witness_survive_the_loss_of_one(make_node: MakeNode) -> None:
    """Content goes to the two and never to the witness; one of the two is killed, the other and the
    witness accept a new file, and the witness passes on what it is asked for."""
    first, second, witness = cluster_with_witness(make_node)
    with first.connect() as client:
        for number in range(20):
            name = b"f%d" % number
            save(client, name, b"content %d" % number)
            assert holders(client, name) == (1, 2)
    assert blob_files(witness) == []
    with witness.connect() as client:
        assert get_file(client, client.call(Lookup(ROOT_INO, b"f7")).ino) == b"content 7"
    assert blob_files(witness) == []
    first.kill()
    with second.connect() as client:
        ino = save(client, b"after", b"more")
        assert holders(client, b"after") == (2,)
        assert get_file(client, ino) == b"more"
    assert blob_files(witness) == []


def test_witness_refuses_content_and_stays_a_witness(make_node: MakeNode) -> None:
    """Whoever brings content to a witness hears in a sentence to go elsewhere; also after a start
    without the flag."""
    first, _, witness = cluster_with_witness(make_node)
    for name in (b"first", b"second"):
        with witness.connect() as client:
            create_until_done(client, name)
            for request, payload in ((BlobCreate(), b""), (BlobPut(), b"content")):
                with pytest.raises(FileError, match="is a witness, which takes no content"):
                    client.call(request, payload)
        assert witness.stop() == 0
        if "--witness" in witness.flags:
            witness.flags.remove("--witness")
        witness.start()
        wait_until(lambda: role_of(first, 3) == "witness", "it votes again", 60)


def test_only_a_node_without_content_becomes_a_witness(make_node: MakeNode) -> None:
    """--witness on a node that holds content is one sentence and changes nothing; on a member that
    holds none it gets into the cluster's books."""
    first = make_node("n1")
    first.start()
    keep_in_files([first])
    with first.connect() as client:
        put_file(client, b"file", b"content")
    assert first.stop() == 0
    ended = run_node(first.data_dir, "--listen", "127.0.0.1:0", "--witness")
    assert_sentence(ended, EXIT_FAILED, "holds content", "without --witness")
    first.start()
    assert role_of(first, 1) == "voter"
    set_setting(first, "replicas", 1)  # or repair may give the second node a copy
    flags = ("--peer", first.address, "--token-file", str(first.data_dir / "token"))
    second = make_node("n2", *flags)
    second.start()
    wait_until(lambda: role_of(first, 2) == "voter", "the second votes", 60)
    assert second.stop() == 0
    second.flags.append("--witness")
    second.start()
    wait_until(lambda: role_of(first, 2) == "witness", "the books know it", 60)


def test_first_node_is_no_witness(make_node: MakeNode) -> None:
    """A cluster that could keep no content is not founded."""
    node = make_node()
    ended = run_node(node.data_dir, "--witness")
    assert_sentence(ended, EXIT_FAILED, "first node")
