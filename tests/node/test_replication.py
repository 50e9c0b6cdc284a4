"""Content on three real nodes: copied while it is written, read from anywhere, healed."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3

from pydi_node.commands import ROOT_CALLER, Commit, Unlink
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
    Execute,
    ExecutePut,
    GetFile,
    Lookup,
    Request,
)
from tests.harness.procs import NodeProcess, WireClient, wait_until
from tests.node.test_cluster import create_until_done, start_cluster, status

MakeNode = Callable[..., NodeProcess]

CHUNK_BYTES = 1 << 20
# A dead second node holds a writer up for 2 s, and the machine may be busy; without the bound it
# would be the deadline of the client.
QUICK_S = 12.0
# A frozen node is noticed by its silence, no sooner than this after it froze.
NOTICED_DEAD_MS = 1900


def storing_cluster(make_node: MakeNode, count: int) -> list[NodeProcess]:
    """That many voters, each of which knows all others as places for copies."""
    nodes = start_cluster(make_node, count)
    for node in nodes:
        wait_storing(node, count - 1)
    keep_in_files(nodes)
    return nodes


def keep_in_files(nodes: Sequence[NodeProcess]) -> None:
    """From now on small content gets a file on its holders too."""
    with nodes[0].connect() as client:
        client.call(Admin("set", {"name": "inline_max_bytes", "value": 0}))

    def knows(node: NodeProcess) -> bool:
        with node.connect() as client:
            return bool(client.call(Admin("settings"))["inline_max_bytes"]["value"] == 0)

    for node in nodes:
        wait_until(lambda node=node: knows(node), f"{node.data_dir} knows the setting", 60)


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
    put(client, ino, content)
    return ino


def put(client: WireClient, ino: Ino, content: bytes) -> None:
    """Small content in the place of what the file had."""
    size = len(content)
    commit = Commit(ROOT_CALLER, ino, None, 0, size, False, (Extent(0, size, PUT_BLOB, 0),), ())
    client.serial += 1
    request = ExecutePut(client.client, Serial(client.serial), commit)
    assert patiently(client, request, content).errno == 0


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
    client.serial += 1
    execute = Execute(client.client, Serial(client.serial), commit)
    assert patiently(client, execute).errno == 0
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
        if how is signal.SIGKILL:
            nodes[2].kill()
        else:
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
        nodes[2].start()
    with nodes[0].connect() as client:
        commit_blob(client, b"put", put)
        commit_blob(client, b"sealed", sealed)
        wait_until(lambda: len(holders(client, b"put")) == 3, "the put blob is healed", 60)
        wait_until(lambda: len(holders(client, b"sealed")) == 3, "the stream is healed", 60)
    wait_healthy(nodes[0])
    for other in nodes[:2]:
        other.kill()
    with nodes[2].connect() as client:
        assert read(client, b"sealed") == content
        assert read(client, b"put") == b"put while a node is gone"


def test_lost_node_is_replaced_and_its_return_leaves_no_surplus(
    make_node: MakeNode, seed: int
) -> None:
    """Away longer than the grace time: everything it held is copied elsewhere. When it comes back,
    what is too many is removed, from the books and from the disks."""
    nodes = storing_cluster(make_node, 3)
    set_setting(nodes[0], "grace_s", 10)
    source = random.Random(seed)
    manifest = {b"f%d" % number: source.randbytes(5000) for number in range(12)}
    with nodes[0].connect() as client:
        for name, content in manifest.items():
            save(client, name, content)
        on_third = [name for name in manifest if nodes[2].run["number"] in holders(client, name)]
        assert 0 < len(on_third) < len(manifest)
    nodes[2].kill()
    wait_until(lambda: status(nodes[0])["blobs"]["under_replicated"] == len(on_third), "is told")
    wait_healthy(nodes[0])
    with nodes[1].connect() as client:
        assert all(len(holders(client, name)) == 3 for name in on_third)
        assert all(read(client, name) == content for name, content in manifest.items())
    nodes[2].start()
    with nodes[0].connect() as client:
        wait_until(
            lambda: all(len(holders(client, name)) == 2 for name in manifest), "no surplus", 60
        )
        infos = [version(client, name).blobs[0] for name in manifest]
        by_number = numbered(nodes)

        def files_fit() -> bool:
            return all(
                blob_file(node, info).exists() == (number in info.holders)
                for number, node in by_number.items()
                for info in infos
            )

        wait_until(files_fit, "each file is where the books say", 60)
        assert all(read(client, name) == content for name, content in manifest.items())


@pytest.mark.parametrize("damage", ["deleted", "flipped", "cut"])
def test_damaged_file_is_served_right_and_repaired(
    make_node: MakeNode, seed: int, damage: str
) -> None:
    """A blob's file is deleted, a bit of it flipped, or its end missing: the very next read through
    that node gives the right bytes, and soon the file is whole again."""
    nodes = storing_cluster(make_node, 2)
    contents = {
        b"small": random.Random(seed).randbytes(3000),
        b"large": random.Random(seed + 1).randbytes(3 * CHUNK_BYTES + 5),
    }
    with nodes[0].connect() as client:
        for name, content in contents.items():
            save_stream(client, name, content)
            assert read(client, name) == content
        infos = {name: version(client, name).blobs[0] for name in contents}
        for name, content in contents.items():
            path = blob_file(nodes[0], infos[name])
            if damage == "deleted":
                path.unlink()
            else:
                path.chmod(0o600)
                with open(path, "r+b") as file:
                    if damage == "cut":
                        file.truncate(len(content) - 1)
                    else:
                        file.seek(len(content) // 2)
                        file.write(bytes([content[len(content) // 2] ^ 1]))
            assert read(client, name) == content
            wait_until(
                lambda path=path, content=content: path.exists() and path.read_bytes() == content,
                f"{path} is whole again", 60,
            )  # fmt: skip
    nodes[1].kill()
    with nodes[0].connect() as client:
        assert all(read(client, name) == content for name, content in contents.items())


def test_files_deleted_while_stopped_come_back(make_node: MakeNode, seed: int) -> None:
    """All blob files of a stopped node are removed: it fetches them at its start, unasked."""
    nodes = storing_cluster(make_node, 2)
    source = random.Random(seed)
    manifest = {b"f%d" % number: source.randbytes(4000) for number in range(10)}
    with nodes[0].connect() as client:
        for name, content in manifest.items():
            save(client, name, content)
        infos = [version(client, name).blobs[0] for name in manifest]
    nodes[1].kill()
    paths = [blob_file(nodes[1], info) for info in infos]
    for path in paths:
        path.unlink()
    nodes[1].start()
    wait_until(lambda: all(path.exists() for path in paths), "all files are back", 60)
    wait_storing(nodes[1], 1)
    assert [path.read_bytes() for path in paths] == list(manifest.values())


def test_surplus_goes_only_when_the_others_really_have_it(make_node: MakeNode) -> None:
    """Three copies in the books, two of their files deleted by hand, then two are enough: the one
    good file is not the one that goes, and in the end both holders have theirs."""
    nodes = storing_cluster(make_node, 3)
    set_setting(nodes[0], "replicas", 3)
    with nodes[0].connect() as client:
        save(client, b"f", b"content")
        (info,) = version(client, b"f").blobs
        assert len(info.holders) == 3
        for node in nodes[1:]:
            blob_file(node, info).unlink()
        set_setting(nodes[0], "replicas", 2)
        wait_until(lambda: len(holders(client, b"f")) == 2, "one is removed from the books", 60)
        by_number = numbered(nodes)
        assert all(blob_file(by_number[n], info).exists() for n in holders(client, b"f"))
    wait_until(
        lambda: sum(blob_file(node, info).exists() for node in nodes) == 2, "its file goes, too"
    )


def test_nobody_left_to_ask_is_told_by_number(make_node: MakeNode) -> None:
    """With all holders down the error names them, within the deadline."""
    nodes = storing_cluster(make_node, 3)
    set_setting(nodes[0], "replicas", 1)
    with nodes[0].connect() as client:
        save(client, b"f", b"content")
        (holder,) = holders(client, b"f")
    nodes[0].kill()
    with nodes[1].connect() as client:
        started_s = time.monotonic()
        with pytest.raises(BlobMissingError, match=f"node {holder}: not reachable"):
            read(client, b"f")
        assert time.monotonic() - started_s < QUICK_S
    assert f"node {holder}: not reachable" in nodes[1].log_text()
    wait_until(lambda: status(nodes[1])["blobs"]["missing"] == 1, "status tells it")
    assert status(nodes[1])["blobs"]["missing_paths"] == ["/f"]
    nodes[0].start()
    with nodes[1].connect() as client:
        wait_until(lambda: read_or_none(client, b"f") == b"content", "it can be read again", 60)


def test_frozen_holder_is_not_waited_for(make_node: MakeNode, seed: int) -> None:
    """A reader whose node holds nothing gets the content from the other holder, soon, while the
    first one is frozen; whichever of the two that is."""
    nodes = storing_cluster(make_node, 3)
    content = random.Random(seed).randbytes(2 * CHUNK_BYTES)
    with nodes[0].connect() as client:
        info = save_stream(client, b"f", content)
        by_number = numbered(nodes)
        (reader,) = (node for number, node in by_number.items() if number not in info.holders)
    for number in info.holders:
        frozen = by_number[number].process
        assert frozen is not None
        frozen.send_signal(signal.SIGSTOP)
        with reader.connect() as client:
            request_id, buffers = client.session.send_request(
                BlobRead(info.blob, 5, CHUNK_BYTES), deadline_ms=NOTICED_DEAD_MS
            )
            client.sock.sendall(b"".join(buffers))
            assert client.wait(request_id) == content[5 : 5 + CHUNK_BYTES]
        frozen.send_signal(signal.SIGCONT)
        wait_storing(reader, 2)


def test_acknowledged_content_survives_churn(make_node: MakeNode, seed: int) -> None:
    """Files are saved through two nodes while the third is killed and started again and again.
    Healed in the end, everything acknowledged is there without any one of the nodes."""
    nodes = storing_cluster(make_node, 3)
    source = random.Random(seed)
    manifest: dict[bytes, bytes] = {}
    with nodes[0].connect() as a, nodes[1].connect() as b:
        for number in range(36):
            if number % 12 == 4:
                nodes[2].kill()
            if number % 12 == 8:
                nodes[2].start()
            name, content = b"f%d" % number, source.randbytes(1 + source.randrange(100_000))
            if number % 3:
                save((a, b)[number % 2], name, content)
            else:
                save_stream((a, b)[number % 2], name, content)
            manifest[name] = content
    wait_healthy(nodes[0])
    assert len(manifest) == 36
    for victim, reader in ((0, 1), (1, 2), (2, 0)):
        nodes[victim].kill()
        with nodes[reader].connect() as client:
            assert all(read(client, name) == content for name, content in manifest.items())
        nodes[victim].start()
        wait_healthy(nodes[reader])


def read_or_none(client: WireClient, name: bytes) -> bytes | None:
    try:
        return read(client, name)
    except PydiError:
        return None


def commit_blob(client: WireClient, name: bytes, info: BlobInfo) -> None:
    """A file whose content is that blob."""
    create_until_done(client, name)
    ino = client.call(Lookup(ROOT_INO, name)).ino
    extents = (Extent(0, info.size, info.blob, 0),)
    client.serial += 1
    commit = Commit(ROOT_CALLER, ino, None, None, info.size, False, extents, (info,))
    result = patiently(client, Execute(client.client, Serial(client.serial), commit))
    assert result.errno == 0


def wait_healthy(node: NodeProcess) -> None:
    """Until every blob has all its copies within reach."""

    def is_healthy() -> bool:
        blobs = status(node)["blobs"]
        return not (blobs["under_replicated"] or blobs["missing"])

    wait_until(is_healthy, "every blob has all its copies", 90)


def test_a_fetch_goes_on_from_another_holder_where_the_first_one_died(
    make_node: MakeNode,
) -> None:
    """A third copy of a large blob is on its way, slowly, when the node that sends it is killed:
    what has come is not fetched again, the file that grew becomes the copy."""
    nodes = storing_cluster(make_node, 3)
    content = random.Random(5).randbytes(12 * CHUNK_BYTES)
    with nodes[0].connect() as client:
        info = save_stream(client, b"large", content)
        (target,) = (node for number, node in numbered(nodes).items() if number not in info.holders)
        set_setting(nodes[0], "repair_bytes_per_s", 4 * CHUNK_BYTES)
        set_setting(nodes[0], "replicas", 3)

    def growing() -> Path | None:
        return next((target.data_dir / "blobs" / "tmp").glob(f"{blob_name(info.blob)}.*"), None)

    def has_begun() -> bool:
        path = growing()
        return path is not None and path.stat().st_size > CHUNK_BYTES

    wait_until(has_begun, "the third copy has begun", 30)
    path = growing()
    assert path is not None
    ino = path.stat().st_ino
    (source,) = (node for node in nodes if streams_of(node)["sending"])
    (other,) = (node for node in nodes if node not in (source, target))
    source.kill()
    copy = blob_file(target, info)
    wait_until(copy.exists, "the third copy is whole", 30)
    assert copy.stat().st_ino == ino
    assert copy.read_bytes() == content
    with other.connect() as client:
        wait_until(lambda: len(holders(client, b"large")) == 3, "the books name it", 30)


def test_garbage_goes_from_every_node(make_node: MakeNode) -> None:
    """A file is deleted and its history over: soon no node has its blob, the leader or another."""
    nodes = storing_cluster(make_node, 3)
    set_setting(nodes[0], "replicas", 3)
    with nodes[0].connect() as client:
        save(client, b"kept", b"content")
        save(client, b"gone", b"other content")
        (kept,), (gone,) = (version(client, name).blobs for name in (b"kept", b"gone"))
        client.serial += 1
        unlink = Unlink(ROOT_CALLER, ROOT_INO, b"gone")
        assert client.call(Execute(client.client, Serial(client.serial), unlink)).errno == 0
    wait_until(lambda: all(blob_file(node, gone).exists() for node in nodes), "each has it")
    set_setting(nodes[0], "retention_s", 0)
    wait_until(
        lambda: not any(blob_file(node, gone).exists() for node in nodes), "all deleted it", 60
    )
    assert all(blob_file(node, kept).exists() for node in nodes)


def streams_of(node: NodeProcess) -> dict[str, int]:
    with node.connect() as client:
        counts: dict[str, int] = client.call(Admin("content-streams"))
    return counts
