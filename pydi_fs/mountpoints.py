"""What is mounted where on this machine, and taking it away: the mount table and umount.

Called by mount_cli.py and by bindings that do not unmount themselves. It must never touch a path
below a mount point that may belong to a dead daemon: it reads the kernel's table instead.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from typing import NamedTuple

UMOUNT_TIMEOUT_S = 10.0  # umount(8) of a FUSE file system asks nobody; only a stuck machine waits


class Mounted(NamedTuple):
    """One row of /proc/self/mountinfo."""

    mountpoint: bytes
    device: int  # st_dev of everything on it
    fstype: str
    source: str


def mounted_at(mountpoint: bytes) -> Mounted | None:
    """The topmost file system mounted exactly at this absolute path; None for none.

    Elsewhere than on Linux there is no such table: None; the binding's mount says what is wrong.
    """
    try:
        with open("/proc/self/mountinfo", "rb") as file:
            rows = file.read().splitlines()
    except OSError:
        return None
    for row in reversed(rows):
        mounted = parse_row(row)
        if mounted.mountpoint == mountpoint:
            return mounted
    return None


def parse_row(row: bytes) -> Mounted:
    """One line as proc(5) describes it: optional fields end at a lone dash."""
    fields = row.split(b" ")
    dash = fields.index(b"-", 6)
    major, minor = fields[2].split(b":")
    return Mounted(
        _unescape(fields[4]),
        os.makedev(int(major), int(minor)),
        fields[dash + 1].decode("ascii", "replace"),
        os.fsdecode(_unescape(fields[dash + 2])),
    )


def abort(device: int) -> bool:
    """Who waits for that mount's daemon gets an error at once, and whoever asks it from now on, no
    matter who still holds /dev/fuse open. False: this machine does not offer it, or not to us."""
    try:
        # Its device has the number of its connection: fuse_ctl_add_conn in fs/fuse/control.c.
        with open(f"/sys/fs/fuse/connections/{os.minor(device)}/abort", "wb", 0) as file:
            file.write(b"1")
    except OSError:
        return False
    return True


def unmount(mountpoint: bytes, *, lazy: bool, force: bool = False) -> str:
    """Takes the topmost mount away; the empty string, or the tool's sentence why it did not.

    lazy   detach now, let open files of a living daemon finish; the only way with a dead one.
    force  as `abort`, where that is root's to ask.
    """
    sentence = ""
    for command in _commands(lazy, force):
        try:
            done = subprocess.run(
                [*command, mountpoint],
                capture_output=True,
                timeout=UMOUNT_TIMEOUT_S,
                stdin=subprocess.DEVNULL,
                check=False,
            )
        except subprocess.TimeoutExpired:
            sentence = f"{command[0]} did not end"
            continue
        if done.returncode == 0:
            return ""
        sentence = done.stderr.decode("utf-8", "replace").strip() or f"{command[0]} failed"
    return sentence or "neither umount nor fusermount is installed"


def _commands(lazy: bool, force: bool) -> list[list[str]]:
    """Tools to try, in order: root unmounts itself, others ask the set-uid helper."""
    umount = ["umount", *(["-l"] if lazy else []), *(["-f"] if force else [])]
    helpers = [[name, "-uz" if lazy else "-u"] for name in ("fusermount3", "fusermount")]
    commands = [command for command in (umount, *helpers) if shutil.which(command[0])]
    return commands[:1] if os.geteuid() == 0 else commands[::-1]


def _unescape(field: bytes) -> bytes:
    r"""The kernel writes space, tab, newline and backslash as \ooo."""
    return re.sub(rb"\\([0-7]{3})", lambda match: bytes([int(match[1], 8)]), field)
