"""Content on three real nodes: copied while it is written, read from anywhere, healed."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3

from pydi_node.commands import ROOT_CALLER, Commit
from pydi_node.errors import BlobMissingError, PydiError
from pydi_node.ids import ROOT_INO, Ino, Serial, blob_name
from pydi_node.records import BlobInfo, Extent, FileVersion
from pydi_node.wire.messages import (
    PUT_BLOB,
    Admin,
    BlobCreate,
    BlobPut,
    BlobRead,
    BlobSeal,
    BlobWrite,
    ExecutePut,
    GetFile,
    Lookup,
    Request,
)
from tests.harness.procs import NodeProcess, WireClient, wait_until
from tests.node.test_cluster import create_until_done, start_cluster

MakeNode = Callable[..., NodeProcess]

CHUNK_BYTES = 1 << 20
# A dead second node holds a writer up for 2 s, and the machine may be busy; without the bound it
# would be the deadline of the client.
QUICK_S = 12.0


def storing_cluster(make_node: MakeNode, count: int) -> list[NodeProcess]:
    """That many voters, each of which knows all others as places for copies."""
    nodes = start_cluster(make_node, count)
    for node in nodes:
        wait_storing(node, count - 1)
    return nodes


def wait_storing(node: NodeProcess, others: int) -> None:
    """Until the node has that many others to copy to."""

    def knows() -> bool:
        with node.connect() as client:
            return len(client.call(Admin("content-links"))) == others

    wait_until(knows, f"{node.data_dir} can copy to {others} nodes", 60)


def patiently(client: WireClient, request: Request, payload: bytes = b"") -> Any:
    """As a real client does: the same again while nobody leads."""
    answers = []

    def attempt() -> bool:
        try:
            answers.append(client.call(request, payload))
        except BlobMissingError:
            raise
        except PydiError:
            return False
        return True

    wait_until(attempt, f"{type(request).__name__} is answered", 60)
    return answers[0]


def save(client: WireClient, name: bytes, content: bytes) -> Ino:
    """A small file, as a mount closes it."""
    create_until_done(client, name)
    ino = Ino(client.call(Lookup(ROOT_INO, name)).ino)
    size = len(content)
    commit = Commit(ROOT_CALLER, ino, None, None, size, False, (Extent(0, size, PUT_BLOB, 0),), ())
    client.serial += 1
    put = ExecutePut(client.client, Serial(client.serial), commit)
    assert patiently(client, put, content).errno == 0
    return ino


def save_stream(client: WireClient, name: bytes, content: bytes) -> BlobInfo:
    """A large file, as a mount streams it."""
    create_until_done(client, name)
    ino = client.call(Lookup(ROOT_INO, name)).ino
    blob = client.call(BlobCreate())
    sent = [
        client.send(BlobWrite(blob, at), content[at : at + CHUNK_BYTES])
        for at in range(0, len(content), CHUNK_BYTES)
    ]
    for request_id in sent:
        client.wait(request_id)
    info: BlobInfo = client.call(BlobSeal(blob, len(content), blake3(content).digest()))
    extents = (Extent(0, len(content), info.blob, 0),)
    commit = Commit(ROOT_CALLER, ino, None, None, len(content), False, extents, (info,))
    assert client.execute(commit).errno == 0
    return info


def version(client: WireClient, name: bytes) -> FileVersion:
    found: FileVersion = client.call(GetFile(client.call(Lookup(ROOT_INO, name)).ino))
    return found


def holders(client: WireClient, name: bytes) -> tuple[int, ...]:
    (info,) = version(client, name).blobs
    return info.holders


def read(client: WireClient, name: bytes) -> bytes:
    """The whole content, as a mount reads it."""
    content = bytearray()
    for extent in version(client, name).extents:
        for at in range(0, extent.length, CHUNK_BYTES):
            length = min(CHUNK_BYTES, extent.length - at)
            content += client.call(BlobRead(extent.blob, extent.blob_offset + at, length))
    return bytes(content)


def blob_file(node: NodeProcess, info: BlobInfo) -> Path:
    return node.data_dir / "blobs" / f"{info.blob & 0xFF:02x}" / blob_name(info.blob)


def numbered(nodes: list[NodeProcess]) -> dict[int, NodeProcess]:
    return {node.run["number"]: node for node in nodes}


def set_setting(node: NodeProcess, name: str, value: int) -> None:
    with node.connect() as client:
        client.call(Admin("set", {"name": name, "value": value}))


def test_content_survives_the_node_that_took_it(make_node: MakeNode, seed: int) -> None:
    """Small and streamed files are on two nodes when they are acknowledged, and read through any of
    three; that node is killed, and everything acknowledged is read through each of the others."""
    nodes = storing_cluster(make_node, 3)
    manifest: dict[bytes, bytes] = {}
    source = random.Random(seed)
    with nodes[0].connect() as client:
        for number in range(20):
            name, content = b"small%d" % number, source.randbytes(1 + number * 700)
            save(client, name, content)
            manifest[name] = content
        for number in range(3):
            name, content = b"large%d" % number, source.randbytes(3 * CHUNK_BYTES + number)
            info = save_stream(client, name, content)
            assert len(info.holders) == 2
            manifest[name] = content
        assert all(len(holders(client, name)) == 2 for name in manifest)
    for node in nodes[1:]:
        with node.connect() as client:
            assert all(read(client, name) == content for name, content in manifest.items())
    nodes[0].kill()
    assert len(manifest) == 23
    for node in nodes[1:]:
        with node.connect() as client:
            assert all(read(client, name) == content for name, content in manifest.items())


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=lambda how: how.name)
def test_dead_second_node_stalls_nobody(
    make_node: MakeNode, seed: int, how: signal.Signals
) -> None:
    """With the other storing node dead or frozen, a put is answered soon, with fewer holders; a
    stream that was under way too. Both are healed when it is back."""
    nodes = storing_cluster(make_node, 3)
    set_setting(nodes[0], "replicas", 3)
    content = random.Random(seed).randbytes(4 * CHUNK_BYTES)
    victim = nodes[2].process
    assert victim is not None
    with nodes[0].connect() as client:
        save(client, b"before", b"content")
        assert len(holders(client, b"before")) == 3
        blob = client.call(BlobCreate())
        client.call(BlobWrite(blob, 0), content[:CHUNK_BYTES])
        victim.send_signal(how)
        started_s = time.monotonic()
        put: BlobInfo = client.call(BlobPut(), b"put while a node is gone")
        for at in range(CHUNK_BYTES, len(content), CHUNK_BYTES):
            client.call(BlobWrite(blob, at), content[at : at + CHUNK_BYTES])
        sealed = client.call(BlobSeal(blob, len(content), blake3(content).digest()))
        assert time.monotonic() - started_s < QUICK_S
        assert len(put.holders) == len(sealed.holders) == 2
    if how is signal.SIGSTOP:
        victim.send_signal(signal.SIGCONT)
    else:
        victim.wait()
