"""A node is emptied on demand, and says how far it is; `pydi why` and `pydi set` on real nodes."""

from __future__ import annotations

import json
import random
from collections.abc import Callable

from blake3 import blake3

from pydi_node.commands import (
    ROOT_CALLER,
    Commit,
    Create,
    Mkdir,
    RemoveXattr,
    Rename,
    SetXattr,
)
from pydi_node.errors import EXIT_FAILED, EXIT_OK
from pydi_node.ids import ROOT_INO, Ino
from pydi_node.records import FACTOR_XATTR, Extent
from pydi_node.wire.messages import (
    BlobCreate,
    BlobPut,
    BlobSeal,
    BlobWrite,
    GetFile,
    Lookup,
)
from tests.harness.procs import NodeProcess, wait_until
from tests.node.test_cluster import status
from tests.node.test_recover import assert_refused
from tests.node.test_replication import (
    CHUNK_BYTES,
    blob_file,
    holders,
    numbered,
    read,
    save,
    save_stream,
    storing_cluster,
    version,
)

MakeNode = Callable[..., NodeProcess]


def test_drained_node_is_empty_and_takes_nothing(make_node: MakeNode, seed: int) -> None:
    """With too few other nodes a drain is refused. Else the command returns when the node is empty,
    on its disk too; what is written through it meanwhile goes to the others; all is readable
    without it. --stop takes it into use again."""
    nodes = storing_cluster(make_node, 3)
    by_number = numbered(nodes)
    number = nodes[0].run["number"]

    def drain(*arguments: str) -> tuple[int, str]:
        run = nodes[1].pydi("drain", str(number), *arguments)
        return run.returncode, run.stdout + run.stderr

    def set_replicas(count: int) -> None:
        run = nodes[1].pydi("set", f"replicas={count}")
        assert run.returncode == EXIT_OK, run.stderr

    source = random.Random(seed)
    manifest = {b"f%d" % i: source.randbytes(1 + 997 * i) for i in range(12)}
    with nodes[0].connect() as client:
        for name, content in manifest.items():
            save(client, name, content)
        infos = [version(client, name).blobs[0] for name in manifest]
        assert all(number in info.holders for info in infos)
        set_replicas(3)
        code, told = drain()
        assert code == EXIT_FAILED
        assert "its content should have 3 copies" in told
        set_replicas(2)
        code, told = drain("--no-wait")
        assert code == EXIT_OK, told
        small, large = source.randbytes(5000), source.randbytes(2_500_000)
        save(client, b"small", small)
        save_stream(client, b"large", large)
        others = sorted(set(by_number) - {number})
        assert list(holders(client, b"small")) == list(holders(client, b"large")) == others
        manifest |= {b"small": small, b"large": large}
        code, told = drain()
        assert code == EXIT_OK, told
        assert f"node {number} is empty" in told
        assert all(list(holders(client, name)) == others for name in manifest)
        assert all(read(client, name) == content for name, content in manifest.items())
    wait_until(lambda: not any(blob_file(nodes[0], info).exists() for info in infos), "files go")
    state = status(nodes[1])
    assert {n["number"]: n["state"] for n in state["nodes"]}[number] == "draining"
    assert any(f"node {number} is empty" in sentence for sentence in state["advice"])
    code, told = drain("--stop")
    assert code == EXIT_OK, told
    with nodes[0].connect() as client:
        save(client, b"again", b"content")
        assert number in holders(client, b"again")
    assert_refused(nodes[1].pydi("drain", "9"), EXIT_FAILED, "node 9 is no member")


def test_why_tells_where_a_file_is(make_node: MakeNode) -> None:
    """Both holders, then one of them without its file, then none within reach: `pydi why` tells
    each, and `pydi status` the path of what can't be read."""
    nodes = storing_cluster(make_node, 3)
    through = nodes[2]

    def why() -> tuple[str, set[str]]:
        run = through.pydi("why", "/f", "--json")
        assert run.returncode == EXIT_OK, run.stderr
        report = json.loads(run.stdout)
        return report["protection"], {h["state"] for b in report["blobs"] for h in b["holders"]}

    with nodes[0].connect() as client:
        save(client, b"f", b"content")
        (info,) = version(client, b"f").blobs
    by_number = numbered(nodes)
    if through.run["number"] in info.holders:
        (through,) = (n for number, n in by_number.items() if number not in info.holders)
    sentence, states = why()
    assert "Any one of nodes" in sentence
    assert states == {"here"}
    for number in info.holders[1:]:
        by_number[number].kill()
    wait_until(lambda: why()[1] == {"here", "down"}, "one holder is down", 60)
    assert "The loss of node" in why()[0]
    with through.connect() as client:
        assert read(client, b"f") == b"content"
    by_number[info.holders[0]].kill()
    wait_until(lambda: status(through)["blobs"]["missing"] == 1, "both are down", 60)
    assert status(through)["blobs"]["missing_paths"] == ["/f"]
    assert "can't be read now" in why()[0]


def test_directory_asks_for_copies(make_node: MakeNode, seed: int) -> None:
    """An attribute on a directory: what is written below it has so many copies at once, small and
    streamed, and what was there before soon; taken away, the surplus goes."""
    nodes = storing_cluster(make_node, 3)
    content = random.Random(seed).randbytes(1_500_000)
    with nodes[0].connect() as client:
        save(client, b"before", b"content")
        directory = client.execute(Mkdir(ROOT_CALLER, ROOT_INO, b"d", 0o755)).value[0]
        rename = Rename(ROOT_CALLER, ROOT_INO, b"before", Ino(directory), b"before", 0)
        assert client.execute(rename).errno == 0
        ask = SetXattr(ROOT_CALLER, Ino(directory), FACTOR_XATTR, b"3", 0)
        assert client.execute(ask).errno == 0

        def copies(name: bytes) -> int:
            found = client.call(GetFile(client.call(Lookup(Ino(directory), name)).ino))
            return len(found.blobs[0].holders)

        for name, size in ((b"small", 1000), (b"large", len(content))):
            created = client.execute(Create(ROOT_CALLER, Ino(directory), name, 0o644, True))
            ino = Ino(created.value[0][0])
            if name == b"small":
                info = client.call(BlobPut(ino), content[:size])
            else:
                blob = client.call(BlobCreate(ino))
                for at in range(0, size, CHUNK_BYTES):
                    client.call(BlobWrite(blob, at), content[at : at + CHUNK_BYTES])
                info = client.call(BlobSeal(blob, size, blake3(content).digest()))
            assert len(info.holders) == 3
            extents = (Extent(0, size, info.blob, 0),)
            commit = Commit(ROOT_CALLER, ino, None, None, size, False, extents, (info,))
            assert client.execute(commit).errno == 0
        wait_until(lambda: copies(b"before") == 3, "what was there has its copies", 60)
        assert client.execute(RemoveXattr(ROOT_CALLER, Ino(directory), FACTOR_XATTR)).errno == 0
        for name in (b"before", b"small", b"large"):
            wait_until(lambda name=name: copies(name) == 2, f"the surplus of {name!r} goes", 60)
