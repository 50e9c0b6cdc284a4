"""``pydi`` before it reaches a node: usage, unreachable clusters, exit codes, no tracebacks."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from pydi_fs import cli
from pydi_fs.commands_status import format_status
from pydi_fs.progress import format_bytes
from pydi_node.errors import EXIT_OK, EXIT_UNREACHABLE, EXIT_USAGE


@pytest.mark.parametrize(
    "arguments",
    [[], ["fly"], ["ls", "--colour"], ["put", "one"], ["mv", "one"], ["cat"], ["tree", "-L", "x"],
     ["ls", "--deadline", "soon"], ["ls", "--node", "nowhere"],
     ["ls", "--data-dir", "/x", "--node", "h:1"]],
)  # fmt: skip
def test_wrong_usage_is_one_sentence(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """A mistyped command prints one line that names the program, and exits with 2."""
    assert cli.main(arguments) == EXIT_USAGE
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("pydi: ")
    assert captured.err.count("\n") == 1


def test_no_node_is_unreachable(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a node in the data directory every command says so and exits with 3."""
    for command in (["ls"], ["status", "--json"], ["put", "a", "b"]):
        assert cli.main([*command, "--data-dir", str(tmp_path)]) == EXIT_UNREACHABLE
        captured = capsys.readouterr()
        assert str(tmp_path) in captured.err
        assert captured.err.count("\n") == 1


def test_dead_socket_is_unreachable(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A socket that a dead node left behind is no node: one sentence, exit code 3."""
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(tmp_path / "node.sock"))
    assert cli.main(["ls", "--data-dir", str(tmp_path)]) == EXIT_UNREACHABLE
    assert capsys.readouterr().err.count("\n") == 1


def test_connection_flags_before_or_behind_the_command(tmp_path: Path) -> None:
    """Flags of the connection mean the same on either side, and win over the environment."""
    parser = cli.build_parser()
    for line in (
        ["--data-dir", "/d", "--json", "ls", "/x"],
        ["ls", "/x", "--data-dir", "/d", "--json"],
    ):
        parsed = parser.parse_args(line)
        assert (parsed.data_dir, parsed.json, parsed.path) == ("/d", True, ["/x"])
        config = cli.connection_config(vars(parsed), {"PYDI_DATA_DIR": "/e", "PYDI_DEADLINE": "7"})
        assert (config.data_dir, config.deadline_s) == ("/d", 7.0)
    config = cli.connection_config({}, {"PYDI_DATA_DIR": "/e", "PYDI_DRIVER": "nonsense"})
    assert config.data_dir == "/e"


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    """--help lists all commands and exits with 0."""
    with pytest.raises(SystemExit) as stopped:
        cli.main(["--help"])
    assert stopped.value.code == EXIT_OK
    text = capsys.readouterr().out
    assert all(f" {name} " in text for name in cli.COMMANDS)


def test_refuses_to_run_without_assertions() -> None:
    """python -O would switch off our own checks: refused in one sentence."""
    run = subprocess.run(
        [sys.executable, "-O", "-c", "import sys; from pydi_fs.cli import main; sys.exit(main())"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert run.returncode == 1
    assert run.stderr == "pydi: PyDi checks itself with assertions: start it without python -O\n"


STATUS = {
    "cluster": "c0ffee", "leader": 1, "term": 3, "quorum": True,
    "nodes": [
        {"number": 1, "address": "127.0.0.1:7420", "state": "up", "role": "voter",
         "applied_index": 120, "stored_bytes": 3 << 30, "free_bytes": 5 << 20, "files": 17},
        {"number": 2, "address": "10.0.0.2:7420", "state": "down"},
    ],
    "blobs": {"total": 40, "under_replicated": 2, "endangered": 0, "missing": 1},
    "mounts": [{"id": 1, "host": "here", "driver": "kernel", "passthrough": False}],
    "advice": ["node 2 is down"],
}  # fmt: skip


def test_status_text() -> None:
    """The text shows all that a person asks first, and troubles only where there are any."""
    text = format_status(STATUS)
    assert "node 1, term 3" in text
    assert "quorum   yes" in text
    assert "40, 2 under replicated, 1 missing" in text
    assert "endangered" not in text
    assert "3.0 GiB" in text
    assert "here (kernel)" in text
    assert "* node 2 is down" in text
    assert "10.0.0.2:7420" in text


def test_status_text_of_a_lost_quorum() -> None:
    """Without leader and quorum the text says what that means; missing keys are no error."""
    text = format_status({**STATUS, "leader": None, "quorum": False})
    assert "leader   none" in text
    assert "writes are refused" in text
    assert "unknown" in format_status({})


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1536, "1.5 KiB"), (1 << 50, "1.0 PiB")],
)
def test_format_bytes(count: int, text: str) -> None:
    """Sizes for people have one decimal and binary units."""
    assert format_bytes(count) == text
