"""The command's own part: parsing, the config file, what is refused before anything is mounted."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import pytest

from pydi_fs import mount_cli
from pydi_fs.mount_cli import (
    Report,
    check_mountpoint,
    log_path,
    main,
    parse_config,
    with_allow_other,
)
from pydi_fs.mount_config import MountConfig
from pydi_fs.mount_options import MountOptions
from pydi_fs.supervisor import Link
from pydi_fs.vfs.journal import FORMAT
from pydi_fs.vfs.journalling import KeptJournal
from pydi_fs.watching import Bell
from pydi_node.errors import EXIT_FAILED, EXIT_OK, EXIT_UNREACHABLE, EXIT_USAGE, UserError


def config_for(mountpoint: Path, cache_dir: str = "/nowhere/cache") -> MountConfig:
    return MountConfig(str(mountpoint), "/nowhere/data", cache_dir=cache_dir)


def test_flags_reach_the_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Flags as documented, -o repeatable, relative paths made absolute."""
    monkeypatch.chdir(tmp_path)
    config, start = parse_config(
        ["mnt", "--data-dir", "data", "--driver", "fusepy", "--deadline", "3", "--read-only",
         "-o", "noatime", "-o", "fsname=x,allow_other", "--foreground", "--report-fd", "9"]
    )  # fmt: skip
    assert config.mountpoint == str(tmp_path / "mnt")
    assert config.data_dir == str(tmp_path / "data")
    assert (config.driver, config.deadline_s, config.foreground) == ("fusepy", 3, True)
    assert config.options == MountOptions(
        allow_other=True, read_only=True, noatime=True, fsname="x"
    )
    assert (start.report_fd, start.resume, start.upgrade) == (9, None, False)


def test_config_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """mount.toml of the data directory is read unasked; --config and PYDI_CONFIG name another."""
    (tmp_path / "mount.toml").write_text('deadline = 4\ndriver = "fusepy"\n')
    other = tmp_path / "other.toml"
    other.write_text("deadline = 6\n")
    arguments = ["/mnt", "--data-dir", str(tmp_path)]
    assert parse_config(arguments)[0].deadline_s == 4
    assert parse_config([*arguments, "--config", str(other)])[0].deadline_s == 6
    monkeypatch.setenv("PYDI_CONFIG", str(other))
    assert parse_config(arguments)[0].deadline_s == 6
    assert parse_config([*arguments, "--deadline", "8"])[0].deadline_s == 8


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "MOUNTPOINT"),
        (["/mnt", "--driver", "x"], "--driver x: expected one of auto, kernel, fusepy"),
        (["/mnt", "--dead", "3"], "--dead"),
        (["/mnt", "extra"], "extra"),
        (["/mnt", "--config", "/nowhere/f"], "no such file"),
        (["/mnt", "-o", "sideways"], "unknown mount option 'sideways'"),
        (["/mnt", "--data-dir", "/d", "--node", "h:1"], "exclude each other"),
    ],
)
def test_usage_error_is_one_sentence(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 2 and one line on stderr that names what is wrong."""
    assert main(arguments) == EXIT_USAGE
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("pydi-mount: ")
    assert sentence in printed.err
    assert printed.err.count("\n") == 1


@pytest.mark.parametrize("text", ["deadline = ", "unknown = 1", "driver = ['a']"])
def test_damaged_config_file_is_named(
    tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file that can't be understood is a usage error with its path."""
    (tmp_path / "mount.toml").write_text(text)
    assert main(["/mnt", "--data-dir", str(tmp_path)]) == EXIT_USAGE
    assert str(tmp_path / "mount.toml") in capsys.readouterr().err


def test_help_says_what_every_option_is_for(capsys: pytest.CaptureFixture[str]) -> None:
    """--help lists the documented flags; the pipe between our two processes stays hidden."""
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    for flag in ("--data-dir", "--node", "--token-file", "--driver", "--cache-dir", "--cache-size",
                 "--deadline", "--read-only", "--foreground", "-o ", "--debug"):  # fmt: skip
        assert flag in text
    assert "--report-fd" not in text


def test_libfuse_is_not_loaded_before_it_is_needed() -> None:
    """Importing the command loads neither fusepy nor a driver: --driver kernel needs no libfuse."""
    code = (
        "import sys, pydi_fs.mount_cli\n"
        "print([m for m in ('fuse', 'pydi_fs.fuse', 'pydi_fs.fusepy_binding') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


def test_missing_libfuse_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without libfuse 2 the sentence says what to install."""
    if not os.path.exists(mount_cli.FUSE_DEVICE):
        pytest.skip("there is no /dev/fuse")
    monkeypatch.setitem(sys.modules, "fuse", None)
    monkeypatch.delitem(sys.modules, "pydi_fs.fusepy_binding", raising=False)
    with pytest.raises(UserError, match="pip install fusepy"):
        mount_cli.load_driver("fusepy")
    monkeypatch.delitem(sys.modules, "fuse")
    # What fusepy raises when it finds no library.
    monkeypatch.setattr("ctypes.util.find_library", lambda name: None)
    monkeypatch.delenv("FUSE_LIBRARY_PATH", raising=False)
    with pytest.raises(UserError, match="apt install libfuse2"):
        mount_cli.load_driver("fusepy")


def test_missing_device_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without /dev/fuse the sentence says how to get it."""
    monkeypatch.setattr(mount_cli, "FUSE_DEVICE", "/nowhere/fuse")
    with pytest.raises(UserError, match="modprobe fuse"):
        mount_cli.load_driver("auto")


def test_mountpoint_must_be_a_directory(tmp_path: Path) -> None:
    """Missing, a file, a dangling link: each with its path; a link to a directory is followed."""
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "directory").mkdir()
    (tmp_path / "link").symlink_to("directory")
    for name, sentence in (("missing", "mkdir -p"), ("file", "not a directory"),
                           ("dangling", "no such directory")):  # fmt: skip
        with pytest.raises(UserError, match=sentence) as caught:
            check_mountpoint(config_for(tmp_path / name))
        assert str(tmp_path / name) in str(caught.value)
        assert caught.value.exit_code == EXIT_FAILED
    resolved = check_mountpoint(config_for(tmp_path / "link"))
    assert resolved.mountpoint == os.path.realpath(tmp_path / "directory")


@pytest.mark.parametrize(
    ("place", "where"),
    [("cache_dir", "real"), ("cache_dir", "alias"), ("data_dir", "real"), ("data_dir", "alias"),
     ("token_file", "real"), ("token_file", "alias")],
)  # fmt: skip
def test_what_the_mount_would_hide_is_refused(tmp_path: Path, place: str, where: str) -> None:
    """A mount that kept its content in itself, or got it from a node that does, would wait for
    itself. Links do not hide it."""
    (tmp_path / "real/below").mkdir(parents=True)
    (tmp_path / "alias").symlink_to("real")
    (tmp_path / "mnt").symlink_to("real")
    config = config_for(tmp_path / "mnt")
    more = {place: str(tmp_path / where / "below")}
    with pytest.raises(UserError, match="lies below the mount point") as caught:
        check_mountpoint(replace(config, **more))
    assert caught.value.exit_code == EXIT_USAGE
    assert more[place] in str(caught.value)


def test_the_data_directory_of_no_node_may_be_hidden(tmp_path: Path) -> None:
    """Who mounts over a home directory, from a node elsewhere, has the usual one below it."""
    config = replace(config_for(tmp_path), data_dir=str(tmp_path / ".local"))
    for more in ({"node": "far:1"}, {"token": "T"}):
        assert check_mountpoint(replace(config, **more)).data_dir == config.data_dir
    assert mount_cli._node_files(replace(config, token="T")) is None


def test_a_configuration_that_the_mount_would_hide_is_refused(tmp_path: Path) -> None:
    """After an upgrade its file would be looked for in the mount, which waits for just that."""
    (tmp_path / "mount.toml").write_text("deadline = 4\n")
    arguments = [str(tmp_path), "--data-dir", str(tmp_path)]
    with pytest.raises(UserError, match="configuration"):
        parse_config(arguments)
    resume = json.dumps({"mountpoint": str(tmp_path)})
    assert parse_config([*arguments, "--resume", resume])[0].deadline_s != 4


def test_paths_are_meant_in_the_directory_of_the_first_start(tmp_path: Path) -> None:
    """An upgrade names it, and does not go there: it may be covered by the mount."""
    (tmp_path / "other.toml").write_text("deadline = 4\n")
    arguments = ["mnt", "--directory", str(tmp_path), "--config", "other.toml", "--data-dir", "d"]
    config, start = parse_config(arguments)
    assert config.mountpoint == str(tmp_path / "mnt")
    assert config.data_dir == str(tmp_path / "d")
    assert config.deadline_s == 4
    assert start.directory == str(tmp_path)
    resume = json.dumps({"mountpoint": str(tmp_path / "mnt")})
    for_the_next = ["--directory", str(tmp_path / "mnt"), "--resume", resume]
    above, _ = parse_config([".", *for_the_next, "--config", "../other.toml"])
    assert above.deadline_s == 4, "a path out of the mount does not lie in it"


def test_another_file_system_in_the_way_is_named() -> None:
    """A directory on which something is mounted already is refused."""
    with pytest.raises(UserError, match="already a mount point"):
        check_mountpoint(config_for(Path("/proc")))


def test_the_working_directory_is_no_place_for_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Whoever starts a mount in a directory of somebody else runs nothing that lies there."""
    (tmp_path / "file").touch()
    (tmp_path / "msgpack.py").write_text("open('was-run', 'w')")
    monkeypatch.chdir(tmp_path)
    assert main(["file", "--data-dir", "data", "--cache-dir", "cache"]) == EXIT_FAILED
    assert not (tmp_path / "was-run").exists()
    assert "ended before" not in capfd.readouterr().err


@pytest.fixture
def successor() -> Iterator[Link]:
    """A worker that follows another one, which had open files."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    logs = (os.memfd_create("a"), os.memfd_create("b"))
    with ours, theirs:
        before = KeptJournal(logs, lambda name, fd: None, lambda name: None)
        before.begin(lambda: ())
        before.identify(9, bytes(16))
        yield Link(theirs, logs, {}, follows=True, bell=Bell(), nodeids=())
    for fd in logs:
        os.close(fd)


class Served(Exception):
    """It got so far."""


def serving(vfs: object, *arguments: object, **more: object) -> NoReturn:
    raise Served


def test_a_successor_begins_without_a_node(tmp_path: Path, successor: Link) -> None:
    """The node of this machine is gone too, and will be back: open files wait for it."""
    config = MountConfig(str(tmp_path), str(tmp_path / "data"), cache_dir=str(tmp_path / "cache"))
    with pytest.raises(Served):
        mount_cli._work(config, serving, Report(None), None, successor)


def test_a_successor_that_can_not_begin_is_not_the_end(tmp_path: Path, successor: Link) -> None:
    """Its token is just missing. The mount must not be left without anybody behind it."""
    config = replace(
        MountConfig(str(tmp_path), str(tmp_path / "data"), cache_dir=str(tmp_path / "cache")),
        node="127.0.0.1:1", token_file=str(tmp_path / "token"),
    )  # fmt: skip
    with pytest.raises(UserError, match="token"):
        mount_cli._work(config, serving, Report(None), None, successor)


def test_an_upgrade_is_refused_while_the_mount_lives(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The new code is asked whether it can go on, with the arguments and the configuration that it
    will get: afterwards it is too late."""
    if not os.path.exists(mount_cli.FUSE_DEVICE):
        pytest.skip("there is no /dev/fuse")
    arguments = ["--journal-format", "/mnt", "--foreground", "--data-dir", str(tmp_path)]
    assert main(arguments) == EXIT_OK
    assert capfd.readouterr().out == f"{FORMAT}\n"
    for line in ("deadline = 'soon'", "driver = 'fusepy'", "no toml"):
        (tmp_path / "mount.toml").write_text(line)
        assert main(arguments) != EXIT_OK
        printed = capfd.readouterr()
        assert printed.out == ""
        assert printed.err.startswith("pydi-mount: ")


def test_no_node_is_exit_code_3(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Nobody in the data directory: one sentence, exit code 3, through the background process."""
    if not os.path.exists(mount_cli.FUSE_DEVICE):
        pytest.skip("there is no /dev/fuse")
    (tmp_path / "mnt").mkdir()
    code = main(
        [str(tmp_path / "mnt"), "--data-dir", str(tmp_path / "data"),
         "--cache-dir", str(tmp_path / "cache")]
    )  # fmt: skip
    assert code == EXIT_UNREACHABLE
    err = capfd.readouterr().err
    assert err.startswith("pydi-mount: no node runs in")
    assert err.count("\n") == 1


def test_unusable_cache_directory_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A cache directory that can't be made is one sentence with its path."""
    (tmp_path / "file").touch()
    assert main([str(tmp_path), "--cache-dir", str(tmp_path / "file/cache")]) == EXIT_FAILED
    assert str(tmp_path / "file/cache") in capsys.readouterr().err


def test_each_mountpoint_has_its_log() -> None:
    """The log's name tells the mount point, and fits a file name however deep that is."""
    assert log_path(config_for(Path("/mnt/pydi"), "/c")) == Path("/c/mount-mnt-pydi.log")
    assert log_path(config_for(Path("/"), "/c")) == Path("/c/mount-root.log")
    assert len(log_path(config_for(Path("/" + "d/" * 500), "/c")).name) < 255


@pytest.mark.parametrize(
    ("line", "permitted"), [("user_allow_other", True), ("#user_allow_other", False), ("", False)]
)
def test_allow_other_where_permitted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, permitted: bool
) -> None:
    """Root lets others in, a user where /etc/fuse.conf says so; what -o says is kept."""
    conf = tmp_path / "fuse.conf"
    conf.write_text(f"# comment\n{line}\n")
    monkeypatch.setattr(mount_cli, "FUSE_CONF", str(conf))
    config = config_for(tmp_path)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert with_allow_other(config).allow_other is permitted
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert with_allow_other(config).allow_other
    refused, _ = parse_config([str(tmp_path), "-o", "noallow_other"])
    assert not with_allow_other(refused).allow_other


def test_refuses_to_run_without_assertions(tmp_path: Path) -> None:
    """python -O would take away the checks that PyDi makes of itself."""
    done = subprocess.run(
        [sys.executable, "-O", "-m", "pydi_fs", str(tmp_path)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == EXIT_FAILED
    assert "without python -O" in done.stderr
