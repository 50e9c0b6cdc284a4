"""``pydi recover`` and ``pydi check`` on the directories of real nodes."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

from pydi_node.errors import EXIT_FAILED, EXIT_OK, EXIT_USAGE
from pydi_node.ids import ROOT_INO
from pydi_node.wire.messages import Lookup
from tests.harness.procs import NodeProcess, pydi, wait_until
from tests.node.test_cluster import create_until_done, names, start_cluster, status
from tests.node.test_life import assert_tree_sound, get_file, put_file
from tests.node.test_replication import keep_in_files, save

MakeNode = Callable[..., NodeProcess]


def assert_refused(run: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    """One sentence on standard error that has these words."""
    assert run.returncode == code, run
    assert run.stderr.startswith("pydi: "), run.stderr
    assert run.stderr.count("\n") == 1, run.stderr
    for word in words:
        assert word in run.stderr, run.stderr


def cluster_id(node: NodeProcess) -> str:
    return str(json.loads((node.data_dir / "node.json").read_text())["cluster"])


def recover(node: NodeProcess, *more: str) -> subprocess.CompletedProcess[str]:
    return pydi("recover", "--accept-loss", node.data_dir, *more)


def assert_left_behind(node: NodeProcess, words: str) -> None:
    """It ends by itself with exit code 1 and a sentence that has these words, no traceback."""
    assert node.process is not None
    assert node.process.wait(60) == EXIT_FAILED
    last = node.log_text().strip().splitlines()[-1]
    assert last.startswith("pydi-node: "), last
    assert words in last
    assert "Traceback" not in node.log_text()


def test_recovered_node_goes_on_and_its_past_can_not_fork_it(make_node: MakeNode) -> None:
    """Two of three are killed for ever; the third, recovered, has what it had and accepts writes.
    The two come back, a majority of the old cluster: they end with a sentence, nothing of theirs
    gets in, and an empty directory joins under a new number."""
    nodes = start_cluster(make_node, 3)
    survivor, *lost = nodes
    with survivor.connect() as client:
        ino = save(client, b"before", b"content")
        wait_until(lambda: status(survivor)["quorum"], "there is a leader")
    for node in nodes:
        node.kill()
    flags = ("--yes", cluster_id(survivor)[:8])
    assert_refused(recover(survivor), EXIT_USAGE, "confirm with --yes", flags[1])
    assert_refused(recover(survivor, "--yes", "c0ffee"), EXIT_FAILED, "not this cluster")
    assert_refused(pydi("recover", survivor.data_dir), EXIT_USAGE, "--accept-loss")
    told = recover(survivor, *flags)
    assert told.returncode == EXIT_OK, told.stderr
    assert "node 2" in told.stdout
    assert "is missing" in told.stdout
    survivor.start()
    with survivor.connect() as client:
        create_until_done(client, b"after")
        assert get_file(client, ino) == b"content"
    assert [node["number"] for node in status(survivor)["nodes"]] == [1]
    for node in lost:
        node.flags = [f if f != lost[0].flags[1] else survivor.address for f in node.flags]
        node.launch()
    for node in lost:
        assert_left_behind(node, "recovered without")
    with survivor.connect() as client:
        create_until_done(client, b"later")
        assert names(client) == {b"before", b"after", b"later"}
    flags = ("--peer", survivor.address, "--token-file", str(survivor.data_dir / "token"))
    fresh = make_node("fresh", *flags)
    fresh.start()
    wait_until(
        lambda: [n["role"] for n in status(survivor)["nodes"]] == ["voter", "voter"],
        "the new node votes", 60,
    )  # fmt: skip
    assert fresh.run["number"] == 4
    with fresh.connect() as client:
        assert client.call(Lookup(ROOT_INO, b"after")).ino > 0
    for node in (fresh, survivor):
        assert node.stop() == EXIT_OK
        assert_tree_sound(node)


def test_recovery_is_refused_where_nothing_is_lost(make_node: MakeNode, tmp_path: Path) -> None:
    """Not while the node runs, not while a majority is there, not where no node ever was, not on a
    damaged tree; nothing is changed by any of them."""
    nodes = start_cluster(make_node, 3)
    cluster = cluster_id(nodes[2])
    assert_refused(recover(nodes[2], "--yes", cluster), EXIT_FAILED, "is in use by the node")
    nodes[2].kill()
    before = (nodes[2].data_dir / "node.json").read_bytes()
    assert_refused(recover(nodes[2], "--yes", cluster), EXIT_FAILED, "3 of 3 voters are there")
    nodes[0].kill()
    assert_refused(recover(nodes[2], "--yes", cluster), EXIT_FAILED, "2 of 3 voters are there")
    nodes[1].kill()
    assert_refused(
        pydi("recover", "--accept-loss", tmp_path), EXIT_FAILED, "not the data directory"
    )
    tree = nodes[2].data_dir / "tree" / "tree.db"
    tree.write_bytes(b"x" * 100_000)
    for leftover in tree.parent.glob("tree.db-*"):
        leftover.unlink()
    assert_refused(recover(nodes[2], "--yes", cluster), EXIT_FAILED, "damaged")
    assert (nodes[2].data_dir / "node.json").read_bytes() == before


def test_check_finds_what_is_wrong(node: NodeProcess) -> None:
    """A sound node has no findings, after a crash too; a damaged file, a missing one and a log that
    lost its middle are a line each. Nothing is moved away."""
    keep_in_files([node])
    with node.connect() as client:
        for number in range(3):
            put_file(client, b"f%d" % number, b"content %d" % number)
    assert_refused(pydi("check", node.data_dir), EXIT_FAILED, "is in use by the node")
    node.kill()
    sound = pydi("check", "--blobs", node.data_dir)
    assert (sound.returncode, sound.stderr) == (EXIT_OK, "")
    node.start()
    assert node.stop() == EXIT_OK
    files = sorted((node.data_dir / "blobs").glob("??/*"))
    files[0].chmod(0o600)
    files[0].write_bytes(b"CONTENT 0")
    files[1].unlink()
    quick = pydi("check", node.data_dir)
    assert quick.returncode == EXIT_FAILED
    assert quick.stdout == f"blob {files[1].name}: its file is missing (the only copy)\n"
    found = json.loads(pydi("check", "--blobs", "--json", node.data_dir).stdout)["findings"]
    assert len(found) == 2
    assert any(files[0].name in line and "damaged" in line for line in found)
    assert files[0].exists()
    (log,) = sorted((node.data_dir / "log").glob("*.log"))
    data = bytearray(log.read_bytes())
    data[200] ^= 1
    log.write_bytes(data)
    damaged = pydi("check", node.data_dir)
    assert damaged.returncode == EXIT_FAILED
    assert damaged.stdout.count("\n") == 1
    assert log.name in damaged.stdout
