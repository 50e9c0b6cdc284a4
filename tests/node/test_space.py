"""A full disk: commands that need space are ENOSPC, the node stays up, nothing acknowledged is
lost, and it goes on when there is room. On a tmpfs, so it needs the permission to mount."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pydi_node.errors import NoSpaceError
from pydi_node.ids import ROOT_INO, Serial
from pydi_node.wire.messages import BlobPut, Execute, ReadDir
from tests.harness.procs import NodeProcess, WireClient, wait_until
from tests.node.test_life import assert_tree_sound, create_command

NOTICE_DEADLINE_S = 60.0
SIZE_MIB = 64  # two log segments, the tree and little more


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of SIZE_MIB MiB."""
    path = tmp_path / "disk"
    path.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={SIZE_MIB}m,mode=0700", "pydi-test", path],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if made.returncode:
        pytest.skip(f"can't mount a tmpfs here: {made.stderr.strip()}")
    yield path
    subprocess.run(["umount", "--lazy", path], check=True)


@pytest.fixture
def full_node(small_disk: Path) -> Iterator[NodeProcess]:
    node = NodeProcess(small_disk)
    node.start()
    yield node
    node.kill()


def fill(path: Path) -> None:
    """Whatever is free on that disk is gone."""
    with open(path, "wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            try:
                while True:
                    file.write(b"x" * size)
            except OSError:
                pass  # full for pieces of this size


def attempt(client: WireClient, serial: int, name: bytes) -> bool:
    """Whether it is done; ENOSPC is the only other outcome."""
    request_id, buffers = client.session.send_request(
        Execute(client.client, Serial(serial), create_command(name)), deadline_ms=3000
    )
    client.sock.sendall(b"".join(buffers))
    try:
        return bool(client.wait(request_id).errno == 0)
    except NoSpaceError:
        return False


def test_full_disk_refuses_and_recovers(full_node: NodeProcess, small_disk: Path) -> None:
    """Filled by somebody else under a stream of creates: refused, alive, and well again after."""
    node = full_node
    with node.connect() as client:
        manifest = set()
        for number in range(50):
            assert client.create(b"before%d" % number).errno == 0
            manifest.add(b"before%d" % number)
        filler = small_disk / "filler"
        fill(filler)
        serial = 1000
        refused: list[tuple[int, bytes]] = []
        end = time.monotonic() + NOTICE_DEADLINE_S
        while len(refused) < 3:  # the node looks at its disk twice a second
            assert time.monotonic() < end, "nobody noticed that the disk is full"
            serial += 1
            name = b"during%d" % serial
            if attempt(client, serial, name):
                manifest.add(name)
            else:
                refused.append((serial, name))
        with pytest.raises(NoSpaceError):
            client.call(BlobPut(), b"x" * 100_000)
        assert {entry.name for entry in client.call(ReadDir(ROOT_INO, 0, 4096))} >= manifest
        os.truncate(filler, 0)
        filler.unlink()
        # A refused command sent again under its serial is done once, now or when it was tried.
        wait_until(lambda: attempt(client, *refused[0]), "there is room again")
        for again in refused[1:]:
            assert attempt(client, *again)
        manifest |= {name for _, name in refused}
        client.serial = serial + 1
        assert client.create(b"after").errno == 0
        client.call(BlobPut(), b"x" * 100_000)
    node.kill()
    node.start()
    with node.connect() as client:
        names = {entry.name for entry in client.call(ReadDir(ROOT_INO, 0, 4096))}
    assert names == manifest | {b"after"}
    assert node.stop() == 0
    assert_tree_sound(node)


def test_killed_while_full_starts_again(full_node: NodeProcess, small_disk: Path) -> None:
    """SIGKILL on a full disk: after room was made everything acknowledged is there."""
    node = full_node
    manifest = set()
    with node.connect() as client:
        for number in range(200):
            if number == 100:
                fill(small_disk / "filler")
            if attempt(client, number + 1, b"f%d" % number):
                manifest.add(b"f%d" % number)
            elif number > 110:
                break
        node.kill()
    assert len(manifest) >= 100
    (small_disk / "filler").unlink()
    node.start()
    with node.connect() as client:
        assert manifest <= {entry.name for entry in client.call(ReadDir(ROOT_INO, 0, 4096))}
        assert client.create(b"after").errno == 0
    assert node.stop() == 0
    assert_tree_sound(node)
