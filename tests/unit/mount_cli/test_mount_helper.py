"""mount(8)'s way of saying it becomes a command line of pydi-mount."""

from __future__ import annotations

import os
import shutil
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


def stand_ins(programs: Path) -> None:
    """Programs that only say what they were asked."""
    programs.mkdir()
    for name in ("pydi-node", "mount.pydi"):
        (programs / name).write_text(f'#!/bin/sh\necho {name} "$@"\n')
        (programs / name).chmod(0o755)


FOLDERS = ["bin", "bin with space", "100%own $HOME"]


@pytest.mark.parametrize("folder", FOLDERS)
def test_systemd_understands_the_unit(tmp_path: Path, folder: str) -> None:
    """systemd-analyze finds nothing to say, and the program where it is, whatever its path."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("there is no systemd-analyze command (Debian: package systemd)")
    programs = tmp_path / folder
    stand_ins(programs)
    subprocess.run(
        [ROOT / "scripts/install-service", "--root", tmp_path / "root"],
        check=True, env={**os.environ, "BIN": str(programs)}, timeout=60, capture_output=True,
    )  # fmt: skip
    unit = tmp_path / "root/etc/systemd/system/pydi-node.service"
    command = ["systemd-analyze", "verify", "--man=no", str(unit)]
    verified = subprocess.run(command, check=False, timeout=60, capture_output=True, text=True)
    assert (verified.returncode, verified.stdout, verified.stderr) == (0, "", "")
    # And so it would have told of a program that is not there, and of a word that it does not know.
    (programs / "pydi-node").unlink()
    unit.write_text(unit.read_text().replace("PrivateTmp=", "PrivateTemp="))
    verified = subprocess.run(command, check=False, timeout=60, capture_output=True, text=True)
    assert "PrivateTemp" in verified.stderr
    assert "pydi-node is not executable" in verified.stderr


@pytest.mark.parametrize("folder", FOLDERS)
def test_install_and_remove(tmp_path: Path, folder: str) -> None:
    """Below another root: a unit that starts the node by its full path, and both helpers; removed,
    nothing is left."""
    programs = tmp_path / folder
    stand_ins(programs)
    script = [ROOT / "scripts/install-service", "--root", tmp_path / "root"]
    environment = {**os.environ, "BIN": str(programs)}
    subprocess.run(script, check=True, env=environment, timeout=60, capture_output=True)
    unit = (tmp_path / "root/etc/systemd/system/pydi-node.service").read_text()
    if folder == "bin with space":  # the others are systemd's matter, above
        assert f'ExecStart="{programs}/pydi-node" /var/lib/pydi\n' in unit
    for name in ("mount.pydi", "mount.fuse.pydi"):
        helper = tmp_path / "root/sbin" / name
        ran = subprocess.run([helper, "pydi", "/m m"], check=True, capture_output=True, timeout=60)
        assert ran.stdout == b"mount.pydi pydi /m m\n"
    subprocess.run(
        [*script, "--remove"], check=True, env=environment, timeout=60, capture_output=True
    )
    assert [p for p in (tmp_path / "root").rglob("*") if p.is_file()] == []


@pytest.mark.parametrize("folder", ["it's", 'the "one"', "back\\slash"])
def test_what_systemd_would_not_start_is_refused(tmp_path: Path, folder: str) -> None:
    """One sentence, and no half unit."""
    stand_ins(tmp_path / folder)
    ran = subprocess.run(
        [ROOT / "scripts/install-service", "--root", tmp_path / "root"], check=False, timeout=60,
        env={**os.environ, "BIN": str(tmp_path / folder)}, capture_output=True, text=True,
    )  # fmt: skip
    assert ran.returncode == 1
    assert "quotes or backslashes" in ran.stderr
    assert not (tmp_path / "root").exists()
