"""``pydi shell`` in a real terminal, against a real node; and as a script."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from pydi_fs.shell.console import EXIT_TERMINATED
from pydi_node.errors import EXIT_FAILED, EXIT_OK, EXIT_USAGE
from tests.cli.conftest import Run, running_node
from tests.harness.procs import PYDI, environment
from tests.harness.terminals import Terminal, terminal

MIB = 1 << 20
CTRL_C, CTRL_D, TAB = "\x03", "\x04", "\t"


@contextmanager
def shell(data_dir: Path, home: Path, *arguments: str) -> Iterator[Terminal]:
    """A shell at its first prompt."""
    variables = environment(PYDI_DATA_DIR=str(data_dir), XDG_STATE_HOME=str(home / "state"))
    command: Sequence[str] = [sys.executable, "-c", PYDI, "shell", *arguments]
    with terminal(command, variables, home) as opened:
        opened.wait_for("^pydi:/>")
        yield opened


@pytest.fixture
def opened(data_dir: Path, tmp_path: Path) -> Iterator[Terminal]:
    with shell(data_dir, tmp_path) as found:
        yield found


def make_large(path: Path, mebibytes: int) -> Path:
    block = os.urandom(MIB)
    with open(path, "wb") as file:
        for number in range(mebibytes):
            file.write(number.to_bytes(4, "big") + block[4:])
    return path


PROMPT = r"\npydi:/>"


def test_session_with_completion(opened: Terminal, pydi: Run, tmp_path: Path) -> None:
    """Tab completes commands, paths with blanks in them and local files; cd, pwd and lcd know two
    sides; errors are one sentence and the shell goes on; the history is kept, for the user only."""
    (tmp_path / "local file.txt").write_text("content of the file\n")
    inside = r"\npydi:/my photos>"
    opened.type("mkdir 'my photos' other")
    opened.wait_for(PROMPT)
    opened.press(f"cd my{TAB}")
    opened.wait_for(r"cd my\\ photos/")
    opened.type("")
    opened.wait_for(inside)
    opened.press(f"put loc{TAB}")
    opened.wait_for(r"put local\\ file.txt")
    opened.press(f"../my{TAB}")
    opened.wait_for(r"\.\./my\\ photos/")
    opened.type("")
    opened.wait_for(inside)
    opened.type("cat *.txt")
    opened.wait_for(f"content of the file{inside}")
    opened.press(f"ca{TAB}")
    opened.wait_for("cancel")
    opened.press(CTRL_C)
    opened.type("cat nothing")
    opened.wait_for(f"\npydi: nothing: No such file or directory{inside}")
    opened.type("why nothing")
    opened.wait_for(f"\npydi: /my photos/nothing: No such file or directory{inside}")
    opened.type("fly")
    opened.wait_for(f"\npydi: fly: no such command.*{inside}")
    opened.type("cat 'open")
    opened.wait_for(f"\npydi: a ' is not closed{inside}")
    opened.type("cd ..; pwd")
    opened.wait_for(f"\n/{PROMPT}")
    opened.type("!echo from-$((40 + 2))")
    opened.wait_for(f"\nfrom-42{PROMPT}")
    opened.type("exit")
    assert opened.wait_ended() == EXIT_OK
    assert pydi("ls", "/my photos").stdout == b"local file.txt\n"
    history = tmp_path / "state/pydi/shell-history"
    assert "cat *.txt" in history.read_text()
    assert history.stat().st_mode & 0o777 == 0o600


def test_upload_in_the_background_while_listing(opened: Terminal, tmp_path: Path) -> None:
    """200 MB go on while one lists; wait waits; the content is the same when it is back."""
    large = make_large(tmp_path / "large", 200)
    opened.type("put large /uploaded &")
    opened.wait_for(rf"\n\[1\]{PROMPT}")
    opened.type("mkdir /meanwhile; ls /")
    opened.wait_for(rf"\nmeanwhile(.|\n)*{PROMPT}")
    opened.type("wait; jobs; pwd")
    opened.wait_for(rf"\n/{PROMPT}")
    opened.type("get --background /uploaded back; cancel 9")
    opened.wait_for("no job 9 is running")
    opened.type("wait; pwd")
    opened.wait_for(rf"\n/{PROMPT}")
    opened.type("quit")
    assert opened.wait_ended() == EXIT_OK
    assert (tmp_path / "back").read_bytes() == large.read_bytes()


def test_interrupt_ends_the_command_only(opened: Terminal, pydi: Run, tmp_path: Path) -> None:
    """Ctrl-C in the middle of a transfer: the target is as it was, the shell goes on, and
    --continue finishes it."""
    large = make_large(tmp_path / "large", 300)
    pydi("put", "-", "/stopped", input=b"old")
    with opened.slowed():
        opened.type("put large /stopped")
        opened.wait_for(r"MiB of 300.0 MiB")
        opened.press(CTRL_C)
    opened.wait_for(rf"put --continue goes on(.|\n)*{PROMPT}")
    assert pydi("cat", "/stopped").stdout == b"old"
    opened.type("put --continue large /stopped")
    opened.wait_for(PROMPT)
    opened.type("get /stopped back")
    opened.wait_for(PROMPT)
    assert (tmp_path / "back").read_bytes() == large.read_bytes()


def test_leaving_with_running_jobs_asks(tmp_path: Path) -> None:
    """No is the answer of who just presses Enter, and the job goes on; yes cancels it. (The node
    stands still meanwhile, so that the job can't end by itself.)"""
    (tmp_path / "file").write_text("content\n")
    with running_node(tmp_path / "d") as node, shell(tmp_path / "d", tmp_path) as opened:
        node.send_signal(signal.SIGSTOP)
        opened.type("put file /stays &")
        opened.wait_for(rf"\n\[1\]{PROMPT}")
        opened.press(CTRL_D)
        opened.wait_for("1 job is running. Leave and cancel")
        opened.type("")
        opened.wait_for(PROMPT)
        node.send_signal(signal.SIGCONT)
        opened.type("wait; cat /stays")
        opened.wait_for(rf"content{PROMPT}")
        node.send_signal(signal.SIGSTOP)
        opened.type("put file /goes &")
        opened.wait_for(rf"\n\[2\]{PROMPT}")
        opened.type("exit")
        opened.wait_for("Leave and cancel")
        opened.type("y")
        assert opened.wait_ended() == EXIT_OK
        node.send_signal(signal.SIGCONT)
        assert script(tmp_path / "d", tmp_path, "cat /goes\n").returncode == EXIT_FAILED


def test_a_terminal_that_goes_away(tmp_path: Path, data_dir: Path) -> None:
    """SIGHUP, as from a window that is closed: running uploads keep what they have sent."""
    make_large(tmp_path / "large", 200)
    with shell(data_dir, tmp_path) as opened:
        opened.type("mkdir /hung")
        opened.wait_for(PROMPT)
        with opened.slowed():
            opened.type("put large /hung/up")
            opened.wait_for(r"\d\d\.\d MiB of 200.0 MiB")
            opened.hang_up()
        assert opened.wait_ended() == EXIT_TERMINATED
    left = script(data_dir, tmp_path, "find /hung --larger 1M").stdout
    assert left.startswith("/hung/.pydi-part-")


def script(data_dir: Path, directory: Path, text: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PYDI, "shell"], input=text, text=True, capture_output=True,
        timeout=120, cwd=directory, env=environment(PYDI_DATA_DIR=str(data_dir)), check=False,
    )  # fmt: skip


def test_script(data_dir: Path, tmp_path: Path) -> None:
    """Lines on standard input are run one after the other; jobs are waited for; the exit code is
    the last command's, or a failed job's."""
    (tmp_path / "a file").write_text("a")
    (tmp_path / "b file").write_text("b")
    run = script(data_dir, tmp_path, "mkdir /s; cd /s\nput *file . # both\nls\ncat [ab]*\n")
    assert (run.returncode, run.stdout, run.stderr) == (EXIT_OK, "a file\nb file\nab", "")
    run = script(data_dir, tmp_path, "put 'no such' /s &\n")
    assert run.returncode == EXIT_FAILED
    assert "no such: No such file or directory" in run.stderr
    assert "failed" in run.stdout
    run = script(data_dir, tmp_path, "cat /missing\npwd\n")
    assert (run.returncode, run.stdout) == (EXIT_OK, "/\n")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("ls /s &", "go on in the background"),
        ("shell", "no such command"),
        ("mv one", "SOURCE and TARGET are needed"),
        ("ls --node a:1", "the shell is connected"),
        ("put - /x", "standard input belongs to the shell"),
        ("cd a b", "one argument too many"),
        ("cancel x", "jobs have numbers"),
        ("help fly", "no such command"),
        ("ls | cat", "is not known here"),
    ],
)
def test_refusals(data_dir: Path, tmp_path: Path, line: str, words: str) -> None:
    """One sentence, exit code 2, and the next line runs."""
    run = script(data_dir, tmp_path, f"pwd\n{line}\n")
    assert (run.returncode, run.stdout) == (EXIT_USAGE, "/\n")
    assert run.stderr.count("\n") == 1
    assert words in run.stderr


def test_help_in_the_shell(data_dir: Path, tmp_path: Path) -> None:
    """help lists everything, help COMMAND tells of one."""
    run = script(data_dir, tmp_path, "help\nhelp cd put\nls --help\n")
    assert run.returncode == EXIT_OK
    for name in ("lcd", "cancel", "undelete", "stat", "!COMMAND", "--mirror", "examples:"):
        assert name in run.stdout


def test_top(pydi: Run) -> None:
    """Rates from two looks, as JSON for programs and as lines where nothing can move."""
    lines = pydi("top", "--json", "--count", "2", "--interval", "0.2").stdout.splitlines()
    states = [json.loads(line) for line in lines]
    assert [state["rates"] is None for state in states] == [True, False]
    assert set(states[1]["rates"]) == {
        "changes", "stored_bytes", "repaired_blobs", "reads", "read_bytes"
    }  # fmt: skip
    text = pydi("top", "--count", "2", "--interval", "0.2").stdout.decode()
    assert re.search(r"changes \d+/s .* reads \d+/s", text)
    assert "lack copies" in text or "all copies" in text
    assert pydi("top", "--interval", "0").returncode == EXIT_USAGE


def test_reads_are_counted(pydi: Run) -> None:
    """What top's rates are made of: bytes that clients fetched, and how often they asked."""
    pydi("put", "-", "/read often", input=bytes(1 << 20))

    def counts() -> tuple[int, int]:
        (node,) = json.loads(pydi("status", "--json").stdout)["nodes"]
        return node["reads"], node["read_bytes"]

    reads, read_bytes = counts()
    assert pydi("get", "/read often", "-").stdout == bytes(1 << 20)
    reads_after, read_bytes_after = counts()
    assert read_bytes_after - read_bytes == 1 << 20
    assert 1 <= reads_after - reads <= 4


def test_top_in_a_terminal(data_dir: Path, tmp_path: Path) -> None:
    """A screen of its own with a row for each node; Ctrl-C leaves it."""
    variables = environment(PYDI_DATA_DIR=str(data_dir))
    with terminal([sys.executable, "-c", PYDI, "top"], variables, tmp_path) as opened:
        opened.wait_for("stored/s")
        opened.wait_for("voter")
        opened.press(CTRL_C)
        assert opened.wait_ended() == 130
    command = [sys.executable, "-c", PYDI, "top", "--count", "2", "--interval", "0.2"]
    with terminal(command, variables, tmp_path) as opened:
        assert opened.wait_ended() == EXIT_OK
        assert re.search(r"changes \d+/s(.|\n)*voter", opened.text()), "the last look stays"
