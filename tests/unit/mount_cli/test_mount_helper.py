"""mount(8)'s way of saying it becomes a command line of pydi-mount."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from pydi_fs.mount_config import OPTIONS
from pydi_fs.mount_helper import pydi_mount_arguments
from pydi_node.errors import EXIT_USAGE, UserError

ROOT = Path(__file__).parents[3]


def is_directory(path: str) -> bool:
    return path.startswith("/d")


@pytest.mark.parametrize(
    ("arguments", "command"),
    [
        ("pydi /m", "/m"),
        ("pydi# /m -o ro", "/m -o ro"),
        ("pydi#/t /m -o rw,_netdev,nofail", "/m --token-file /t -o rw,_netdev,nofail,bg"),
        ("pydi#/d /m -n -s -v", "/m --data-dir /d"),
        ("pydi#h:1 /m -t fuse.pydi -o token_file=/t", "/m --node h:1 --token-file /t"),
        ("-o bg pydi /m", "/m -o bg"),
        ("pydi /m -o deadline=5,cache-dir=/c", "/m --deadline 5 --cache-dir /c"),
    ],
)  # fmt: skip
def test_translation(arguments: str, command: str) -> None:
    """The source says where, options that pydi-mount has become its flags, the rest its ``-o``."""
    assert pydi_mount_arguments(arguments.split(), is_directory) == command.split()


def test_fake_does_nothing() -> None:
    """``mount --fake`` and ``mount -a -f`` only pretend."""
    assert pydi_mount_arguments(["pydi", "/m", "-f"], is_directory) is None


@pytest.mark.parametrize(
    "arguments", ["", "pydi", "pydi /m /n", "pydi /m -o", "pydi /m -o remount"]
)
def test_refusals(arguments: str) -> None:
    """A wrong number of places, and what only a kernel's file system can do: usage."""
    with pytest.raises(UserError) as refused:
        pydi_mount_arguments(arguments.split(), is_directory)
    assert refused.value.exit_code == EXIT_USAGE


def test_options_that_take_a_value_are_those_of_pydi_mount() -> None:
    """An option of the table can be written in fstab without a change here."""
    for option in OPTIONS:
        if option.metavar is not None and not option.flag:
            command = pydi_mount_arguments(["pydi", "/m", "-o", f"{option.name}=1"], is_directory)
            assert command == ["/m", f"--{option.name}", "1"]


def test_install_and_remove(tmp_path: Path) -> None:
    """Below another root: a unit that starts the node by its full path, and both helpers; removed,
    nothing is left."""
    programs = tmp_path / "bin with space"
    programs.mkdir()
    for name in ("pydi-node", "mount.pydi"):
        (programs / name).write_text(f'#!/bin/sh\necho {name} "$@"\n')
        (programs / name).chmod(0o755)
    script = [ROOT / "scripts/install-service", "--root", tmp_path / "root"]
    environment = {**os.environ, "BIN": str(programs)}
    subprocess.run(script, check=True, env=environment, timeout=60, capture_output=True)
    unit = (tmp_path / "root/etc/systemd/system/pydi-node.service").read_text()
    assert f'ExecStart="{programs}/pydi-node" /var/lib/pydi\n' in unit
    for name in ("mount.pydi", "mount.fuse.pydi"):
        helper = tmp_path / "root/sbin" / name
        ran = subprocess.run([helper, "pydi", "/m m"], check=True, capture_output=True, timeout=60)
        assert ran.stdout == b"mount.pydi pydi /m m\n"
    subprocess.run(
        [*script, "--remove"], check=True, env=environment, timeout=60, capture_output=True
    )
    assert [p for p in (tmp_path / "root").rglob("*") if p.is_file()] == []
