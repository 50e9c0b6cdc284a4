"""A supervisor and its worker as processes, without a mount: what one hears of the other."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pydi_fs.supervisor import door_of, hand_over, handed_over
from pydi_fs.vfs.journal import FORMAT

DEADLINE_S = 20.0

# Run where something is mounted at the first argument that nobody misses. The worker says what it
# did for each line that comes in; the installed PyDi is the program of the second. When the worker
# says that the mount is usable its supervisor has not heard it yet: it is stopped.
SUPERVISOR = """
import os, signal, sys
mountpoint, installed = sys.argv[1:]
sys.executable = installed
from pydi_fs.mountpoints import mounted_at
from pydi_fs.supervisor import DEVICE, Supervisor
from pydi_node.errors import UserError

def work(link):
    if link.follows:
        print("follows", flush=True)
    null = os.open(os.devnull, os.O_RDWR)
    link.keep(DEVICE, null)
    os.kill(os.getppid(), signal.SIGSTOP)
    link.usable(mountpoint)
    mounted = mounted_at(os.fsencode(mountpoint))
    signal.signal(signal.SIGTERM, lambda *_: print("told", flush=True))
    print("usable", mounted.device, flush=True)
    for line in sys.stdin:
        if line == "end\\n":
            return 0
        for number in range(int(line)):
            link.keep(f"stage {number}", null)
            link.drop(f"stage {number}")
        print("kept", flush=True)
    return 0

sys.exit(Supervisor(mountpoint, [mountpoint], work).run())
"""


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """What it takes for the installed PyDi says that it was started in the pipe "asked", and does
    what it reads in "go"."""
    unshare = ["unshare", "--mount", "--map-root-user"]
    if (
        shutil.which("unshare") is None
        or subprocess.run([*unshare, "true"], check=False).returncode
    ):
        pytest.skip("needs a mount namespace of its own")
    (tmp_path / "mnt").mkdir()
    os.mkfifo(tmp_path / "asked")
    os.mkfifo(tmp_path / "go")
    installed = tmp_path / "installed"
    installed.write_text('#!/bin/sh\necho > asked\nread line < go\neval "$line"\n')
    installed.chmod(0o700)
    mounting = 'mount -t tmpfs tmpfs "$1" && exec "$0" -c "$3" "$1" "$2"'
    process = subprocess.Popen(
        [*unshare, "sh", "-c", mounting, sys.executable, tmp_path / "mnt", installed, SUPERVISOR],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=tmp_path,
    )  # fmt: skip
    with process:
        yield process
        process.kill()


def says(process: subprocess.Popen[str], word: str) -> list[str]:
    assert process.stdout is not None
    said, *more = process.stdout.readline().split()
    assert said == word
    return more


def tell(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdin is not None
    process.stdin.write(line + "\n")
    process.stdin.flush()


@contextmanager
def upgrading(process: subprocess.Popen[str], path: Path) -> Iterator[socket.socket]:
    """Who asks for an upgrade; the installed PyDi is being asked."""
    (device,) = says(process, "usable")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as asker:
        asker.settimeout(DEADLINE_S)
        asker.connect(door_of(int(device)))
        process.send_signal(signal.SIGCONT)
        (path / "asked").read_text()
        yield asker


def sentence_of(asker: socket.socket) -> str:
    sentence: str = json.loads(asker.recv(4096))["sentence"]
    return sentence


def test_a_worker_is_heard_while_an_upgrade_is_considered(
    supervisor: subprocess.Popen[str], tmp_path: Path
) -> None:
    """The installed version takes its time to start. Meanwhile programs write large files, for each
    of which the supervisor keeps a descriptor: none of them gets an error."""
    with upgrading(supervisor, tmp_path) as asker:
        tell(supervisor, "1000")
        says(supervisor, "kept")
        (tmp_path / "go").write_text("echo no >&2; exit 1\n")
        assert sentence_of(asker) == "the installed pydi-mount does not start: no"
    tell(supervisor, "end")
    assert supervisor.wait(DEADLINE_S) == 0


def test_a_mount_that_is_told_to_end_is_not_upgraded(
    supervisor: subprocess.Popen[str], tmp_path: Path
) -> None:
    """SIGTERM while the installed version is asked: the worker that publishes what is open is not
    killed for another one that knows nothing of the signal."""
    with upgrading(supervisor, tmp_path) as asker:
        supervisor.send_signal(signal.SIGTERM)
        says(supervisor, "told")
        (tmp_path / "go").write_text(f"echo {FORMAT}\n")
        assert sentence_of(asker) == "the mount is about to end"
    tell(supervisor, "end")
    assert supervisor.wait(DEADLINE_S) == 0


def test_node_ids_go_to_the_code_that_comes() -> None:
    """However many the kernel was told to keep, and the file goes when it has been read."""
    for nodeids in ((), (1, 2**64 - 1), tuple(range(1, 32_769))):
        fd = hand_over(nodeids)
        assert handed_over(fd) == nodeids
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)
