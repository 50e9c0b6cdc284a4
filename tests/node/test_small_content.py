"""Small files on real nodes: their content goes with its command, and is wherever the names are."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from blake3 import blake3

from pydi_node.commands import ROOT_CALLER, Commit
from pydi_node.errors import BlobError, FileError
from pydi_node.ids import INT64_MAX, ROOT_INO, Ino, NodeNumber, Serial, TimeNs, blob_id
from pydi_node.records import IN_TREE, BlobInfo, Extent, FileVersion
from pydi_node.wire.messages import Admin, BlobRead, Execute, GetFile, IndexAt, Open
from tests.harness.procs import NodeProcess, wait_until
from tests.node.test_cluster import start_cluster, status
from tests.node.test_holds import Mount
from tests.node.test_life import assert_tree_sound
from tests.node.test_recover import pydi
from tests.node.test_replication import blob_file, put, save, version

MakeNode = Callable[..., NodeProcess]

LIMIT = 32 * 1024  # the setting's default
ALWAYS = 4096  # likewise, once the tree is large


def files_of(nodes: list[NodeProcess]) -> list[Path]:
    return [path for node in nodes for path in (node.data_dir / "blobs").glob("??/*")]


def test_small_content_is_on_every_node_without_a_file(make_node: MakeNode) -> None:
    """Written through one node of three, it is in the answer of each, as new as any; all of it
    comes through a kill of all nodes at once. What is larger gets files, and so does a file that
    grows, in its new part. Every older version is still there."""
    nodes = start_cluster(make_node, 3)
    small, limit, large = b"content", bytes(LIMIT), bytes(LIMIT + 1)
    with nodes[0].connect() as client:
        for name, content in ((b"small", small), (b"limit", limit)):
            save(client, name, content)
            assert files_of(nodes) == []
        before = client.call(IndexAt(TimeNs(INT64_MAX)))
        save(client, b"large", large)
        (info,) = version(client, b"large").blobs
        assert blob_file(nodes[0], info).exists()
        put(client, version(client, b"small").attr.ino, b"other")
    for node in nodes:
        node.kill()
    for node in nodes:
        node.start()
    for node in nodes:
        with node.connect() as client:

            def content(found: FileVersion) -> list[bytes]:
                assert [i.holders for i in found.blobs] == [IN_TREE]
                return [data for _, data in found.contents]

            shown = {name: version(client, name) for name in (b"small", b"limit")}
            assert {name: content(found) for name, found in shown.items()} == {
                b"small": [b"other"],
                b"limit": [limit],
            }
            ino = shown[b"small"].attr.ino
            past = client.call(GetFile(ino, before))
            assert content(past) == [small]
            # By its name too: what does not fit into an answer is read like any blob.
            assert client.call(BlobRead(past.blobs[0].blob, 3, 100)) == small[3:]
            assert client.call(Open(ino)) == shown[b"small"]
    health = status(nodes[1])["blobs"]
    assert (health["total"], health["full"], health["missing"]) == (4, 4, 0)
    told = pydi("why", "--data-dir", nodes[2].data_dir, "/small")
    assert "every node keeps its content with its name" in told.stdout, told
    for node in nodes:
        assert node.stop() == 0
        assert_tree_sound(node)


def test_a_large_tree_takes_only_the_smallest_content(make_node: MakeNode) -> None:
    """Every node has all of it, so what files of their own hold as cheaply goes into files."""
    (node,) = start_cluster(make_node, 1)
    with node.connect() as client:
        ino = save(client, b"f", b"x")

        def in_tree(size: int) -> bool:
            """Whether a new version of that size goes there."""
            put(client, ino, bytes(size))
            return version(client, b"f").blobs[0].is_in_tree

        for name, limit in (("large", 1), ("small", 1 << 30)):
            client.call(Admin("set", {"name": "inline_tree_bytes", "value": limit}))
            # The node looks at it once a second.
            wait_until(
                lambda limit=limit: in_tree(ALWAYS + 1) == (limit > 1),
                f"what becomes of more than the smallest, the tree being {name}",
            )
            assert in_tree(ALWAYS)
            assert not in_tree(LIMIT + 1)


def damage(node: NodeProcess, info: BlobInfo, *, vanishes: bool = False) -> None:
    """One bit of it flips in a stopped node's tree, or its row goes."""
    with contextlib.closing(sqlite3.connect(tree_file(node))) as connection, connection:
        if vanishes:
            connection.execute("DELETE FROM content WHERE blob = ?", (info.blob,))
            return
        (kept,) = connection.execute(
            "SELECT bytes FROM content WHERE blob = ?", (info.blob,)
        ).fetchone()
        wrong = bytes([kept[0] ^ 1]) + kept[1:]
        connection.execute("UPDATE content SET bytes = ? WHERE blob = ?", (wrong, info.blob))


def tree_file(node: NodeProcess) -> Path:
    return node.data_dir / "tree" / "tree.db"


@pytest.mark.parametrize("vanishes", [False, True])
def test_damaged_content_comes_out_of_another_nodes_tree(
    make_node: MakeNode, vanishes: bool
) -> None:
    """A reader through the node whose tree is damaged gets what was written, and the tree has it
    again when that node has stopped."""
    nodes = start_cluster(make_node, 3)
    with nodes[0].connect() as client:
        save(client, b"f", b"content")
        (info,) = version(client, b"f").blobs
    assert nodes[2].stop() == 0
    damage(nodes[2], info, vanishes=vanishes)
    nodes[2].start()
    with nodes[2].connect() as client:
        assert client.call(BlobRead(info.blob, 3, 100)) == b"tent"
    assert "mended out of another node's tree" in nodes[2].log_text()
    assert nodes[2].stop() == 0
    assert_tree_sound(nodes[2])


def test_the_scrub_mends_content(make_node: MakeNode) -> None:
    """What nobody reads is found by the scrub, and comes out of another node's tree."""
    nodes = start_cluster(make_node, 2)
    with nodes[0].connect() as client:
        save(client, b"f", b"content")
        (info,) = version(client, b"f").blobs
    assert nodes[1].stop() == 0
    damage(nodes[1], info)
    nodes[1].start()
    assert nodes[1].pydi("scrub", "--now").returncode == 0
    wait_until(
        lambda: "mended out of another node's tree" in nodes[1].log_text(), "it is mended", 60
    )
    assert nodes[1].stop() == 0
    assert_tree_sound(nodes[1])


def test_damaged_content_without_another_tree_is_told_as_what_it_is(make_node: MakeNode) -> None:
    """The error names the node, and says that its tree is wrong."""
    (node,) = start_cluster(make_node, 1)
    with node.connect() as client:
        save(client, b"f", b"content")
        (info,) = version(client, b"f").blobs
    assert node.stop() == 0
    damage(node, info)
    node.start()
    with node.connect() as client:
        number = node.run["number"]
        with pytest.raises(BlobError, match=rf"\(node {number}: .*in the tree is wrong\)"):
            client.call(BlobRead(info.blob, 0, 100))


def test_a_mount_brings_content_beside_its_command_only(make_node: MakeNode) -> None:
    """Names of blobs are the nodes' to give: a command that has content already is refused."""
    (node,) = start_cluster(make_node, 1)
    with node.connect() as client:
        ino = save(client, b"f", b"content")
        info = BlobInfo(blob_id(NodeNumber(9), 1), 3, blake3(b"own").digest(), IN_TREE)
        extents = (Extent(0, 3, info.blob, 0),)
        commit = Commit(ROOT_CALLER, ino, None, 0, 3, False, extents, (info,), None, b"own")
        client.serial += 1
        with pytest.raises(FileError, match="beside its command"):
            client.call(Execute(client.client, Serial(client.serial), commit))


def test_opening_a_small_file_brings_its_content(node: NodeProcess, tmp_path: Path) -> None:
    """Another mount wrote it: open asks nobody, and all reads are one request; what is written on
    top of it reads right, too."""

    async def scenario() -> None:
        async with Mount(node, tmp_path / "a") as mount, Mount(node, tmp_path / "b") as writer:
            vfs, sent = mount.vfs, mount.client.sent
            fh = await writer.create(b"f")
            await writer.vfs.write(fh, 0, b"some content")
            await writer.vfs.flush(fh)
            await writer.vfs.release(fh)
            ino = (await vfs.lookup(ROOT_INO, b"f")).ino
            sent.clear()
            fh = await vfs.open(ROOT_CALLER, ino, os.O_RDWR)
            assert await vfs.read(fh, 0, 100) == b"some content"
            assert await vfs.read(fh, 5, 3) == b"con"
            assert sent == ["GetFile"]
            assert await vfs.local_file(fh) is None
            await vfs.write(fh, 5, b"C")
            assert await vfs.read(fh, 0, 100) == b"some Content"
            await vfs.flush(fh)
            await vfs.release(fh)
            fh = await vfs.open(ROOT_CALLER, ino, os.O_RDONLY)
            assert await vfs.read(fh, 0, 100) == b"some Content"
            await vfs.release(fh)

    asyncio.run(scenario())


def test_many_small_pieces_are_read_though_they_do_not_fit_into_an_answer(
    make_node: MakeNode, tmp_path: Path
) -> None:
    """More content in the tree than an open brings along: the rest is read by its blobs' names.
    And a file that grows over the limit has both."""
    (node,) = start_cluster(make_node, 1)

    async def scenario() -> None:
        async with Mount(node, tmp_path) as mount:
            vfs = mount.vfs
            _, fh = await vfs.create(ROOT_CALLER, ROOT_INO, b"log", 0o644, os.O_WRONLY)
            ino: Ino = vfs.ino_of(fh)
            whole = b""
            for number in range(20):
                piece = b"%04d" % number * (ALWAYS // 4)
                await vfs.write(fh, len(whole), piece)
                await vfs.fsync(fh)
                whole += piece
            piece = os.urandom(3 * LIMIT)
            await vfs.write(fh, len(whole), piece)
            await vfs.fsync(fh)
            whole += piece
            await vfs.release(fh)
            fh = await vfs.open(ROOT_CALLER, ino, os.O_RDONLY)
            assert await vfs.read(fh, 0, 1 << 20) == whole
            blobs = vfs.blobs_of(fh)
            assert sorted(info.is_in_tree for info in blobs) == [False] + [True] * 20
            await vfs.release(fh)

    asyncio.run(scenario())
    with node.connect() as client:
        found = version(client, b"log")
        assert sum(len(data) for _, data in found.contents) == 16 * ALWAYS
