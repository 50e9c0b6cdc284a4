"""Reading the kernel's mount table."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from pydi_fs.mountpoints import mounted_at, parse_row, unmount


def test_row_with_optional_fields() -> None:
    """A line of mountinfo, with and without the optional fields of proc(5)."""
    row = b"36 35 98:5 /mnt1 /mnt2 rw,noatime master:1 shared:2 - ext3 /dev/root rw,errors=continue"
    mounted = parse_row(row)
    assert mounted.mountpoint == b"/mnt2"
    assert mounted.device == os.makedev(98, 5)
    assert (mounted.fstype, mounted.source) == ("ext3", "/dev/root")
    bare = parse_row(b"36 35 0:40 / /mnt rw - fuse.pydi pydi rw")
    assert (bare.mountpoint, bare.fstype) == (b"/mnt", "fuse.pydi")


def test_escapes_are_undone() -> None:
    """The kernel's octal escapes of space, tab, newline and backslash; other bytes as they are."""
    row = rb"36 35 0:40 / /a\040b\011c\012d\134e" + b"\xff - fuse.pydi py\\040di rw"
    row = row.replace(b" - ", b" rw - ")
    assert parse_row(row).mountpoint == b"/a b\tc\nd\\e\xff"
    assert parse_row(row).source == "py di"


@pytest.mark.skipif(not os.path.exists("/proc/self/mountinfo"), reason="no /proc")
def test_live_table() -> None:
    """The root is mounted; a directory that is not a mount point is not in the table."""
    root = mounted_at(b"/")
    assert root is not None
    assert root.device == os.stat("/").st_dev or root.fstype == "overlay"
    assert mounted_at(b"/nowhere") is None


def test_unmounting_what_is_not_mounted(tmp_path: Path) -> None:
    """The tool's reason is returned, not raised."""
    if shutil.which("umount") is None:
        pytest.skip("umount is not installed")
    assert "not mounted" in unmount(os.fsencode(tmp_path), lazy=False)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a tmpfs")
def test_topmost_of_two_mounts(tmp_path: Path) -> None:
    """Of two file systems on one directory the upper one is reported, then the lower one."""
    point = tmp_path / "with space"
    point.mkdir()
    for name in ("lower", "upper"):
        done = subprocess.run(["mount", "-t", "tmpfs", name, point], check=False)
        if done.returncode != 0:
            pytest.skip("mounting is not permitted here")
    seen = []
    while (mounted := mounted_at(os.fsencode(point))) is not None:
        seen.append(mounted.source)
        assert unmount(os.fsencode(point), lazy=True) == ""
    assert seen == ["upper", "lower"]
