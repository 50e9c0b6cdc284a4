"""What operating systems do differently: their rules, checked on the one that is there."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from pathlib import Path

import pytest

from pydi_node import portable
from pydi_node.wire import errnos
from tests.harness.procs import wait_until


@pytest.mark.parametrize(
    "name",
    [b"a:b", b"a\\b", b"a?", b"tab\t", b"dot.", b"blank ", b"CON", b"con.txt", b"COM1", b"nul .x",
     b"\xff", b".."],
)  # fmt: skip
def test_names_that_mean_something_else_on_windows(name: bytes) -> None:
    """Each is refused there, with a reason, and none on Unix."""
    assert portable.name_refusal(name, is_windows=True)
    assert portable.name_refusal(name, is_windows=False) is None


@pytest.mark.parametrize(
    "name", [b"a.txt", b".hidden", "ü".encode(), b"console", b"com", b"com10", b"a b"]
)
def test_names_that_windows_takes(name: bytes) -> None:
    """Like a reserved one is not reserved."""
    assert portable.name_refusal(name, is_windows=True) is None


def test_folders_by_system() -> None:
    """As DESIGN section 9 says on Linux, and as each system's users expect on theirs."""
    home = {"HOME": "/h"}
    for uid, environ, system, data, cache in (
        (0, home, "linux", "/var/lib/pydi", "/var/cache/pydi"),
        (1, home, "linux", "/h/.local/share/pydi", "/h/.cache/pydi"),
        (1, {**home, "XDG_DATA_HOME": "/x", "XDG_CACHE_HOME": "/y"}, "linux", "/x/pydi", "/y/pydi"),
        (1, home, "darwin", "/h/Library/Application Support/pydi", "/h/Library/Caches/pydi"),
        (0, {"LOCALAPPDATA": "C:/U/a"}, "win32", "C:/U/a/pydi", "C:/U/a/pydi/cache"),
        (0, {"USERPROFILE": "C:/U"}, "win32", "C:/U/AppData/Local/pydi",
         "C:/U/AppData/Local/pydi/cache"),
    ):  # fmt: skip
        assert portable.data_dir(environ, uid, system) == Path(data)
        assert portable.cache_dir(environ, uid, system) == Path(cache)
    assert portable.state_dir(home, "linux") == Path("/h/.local/state/pydi")


def test_reading_and_writing_without_pread(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The fall-backs give the same bytes, in a file that has no name."""
    for name in ("pread", "pwrite", "O_TMPFILE"):
        monkeypatch.delattr(os, name)
    fd = portable.nameless_file(tmp_path)
    try:
        assert not list(tmp_path.iterdir())
        portable.pwrite_all(fd, b"world", 6)
        portable.pwrite_all(fd, memoryview(b"hello "), 0)
        assert portable.pread(fd, 5, 6) == b"world"
        assert portable.pread(fd, 100, 0) == b"hello world"
        assert portable.pread(fd, 1, 11) == b""
    finally:
        os.close(fd)


def test_device_numbers_are_the_trees() -> None:
    """Linux's encoding, whatever the system's own is."""
    for pair in ((8, 1), (0, 0), (259, 70_000), (4095, 255), (5000, 1 << 20)):
        assert portable.device_numbers(os.makedev(*pair)) == pair


def test_a_disk_that_tells_names_apart(tmp_path: Path) -> None:
    """Linux' disks do, and the question leaves nothing behind."""
    assert not portable.folds_names(os.fsencode(tmp_path))
    assert not list(tmp_path.iterdir())


def test_numbers_of_errors_on_the_wire_are_those_of_linux() -> None:
    """Here they are the system's own; elsewhere each becomes the one of its name, or EIO."""
    assert all(getattr(errno, name) == number for name, number in errnos.ON_WIRE.items())
    assert errnos.from_wire(errno.ENOTEMPTY) == errno.ENOTEMPTY
    macos = errnos.differing({"EIO": 5, "ENOENT": 2, "ENOTEMPTY": 66, "ESTALE": 70})
    assert macos[39] == 66
    assert macos[116] == 70
    assert macos[61] == 5
    assert 2 not in macos


def test_what_the_other_side_has_not_taken_is_counted() -> None:
    """Nobody reads: all that its machine has no room for stays here. Then it is read, and gone."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        sender = socket.create_connection(server.getsockname())
        reader, _ = server.accept()
    with sender, reader:
        sender.setblocking(False)
        sent = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                sent += sender.send(bytes(1 << 20))
        assert 0 < portable.unacknowledged(sender) < sent
        while sent:
            sent -= len(reader.recv(1 << 20))
        wait_until(lambda: portable.unacknowledged(sender) == 0, "all is confirmed")
