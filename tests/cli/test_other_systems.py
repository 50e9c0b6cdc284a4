"""``pydi`` in a Python that lacks what only Unix has, against a real node over TCP with a token.

The process is that of `tests.harness.like_windows`; the node is an ordinary one. This shows that
nothing of Unix is needed and that Windows' rules for files and names are kept; it is no test on
Windows.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pydi_node.errors import EXIT_FAILED, EXIT_OK, EXIT_UNREACHABLE
from tests.cli.conftest import Run
from tests.cli.test_remote import address_of
from tests.harness.procs import PYDI, ROOT

PREAMBLE = "import tests.harness.like_windows; "


@pytest.fixture
def poor(data_dir: Path, tmp_path: Path) -> Run:
    """``pydi ARGUMENT...`` as on Windows, in ``tmp_path``."""

    def run(
        *arguments: str | bytes, encoding: str = "utf-8", **options: object
    ) -> subprocess.CompletedProcess[bytes]:
        environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith("PYDI_")},
            "PYTHONPATH": str(ROOT), "PYDI_NODE": address_of(data_dir),
            "PYDI_TOKEN_FILE": str(data_dir / "token"), "EDITOR": f"{sys.executable} editor.py",
            "PYTHONIOENCODING": encoding,
        }  # fmt: skip
        return subprocess.run(
            [sys.executable, "-c", PREAMBLE + PYDI, *arguments],
            **{"cwd": tmp_path, "env": environment, "capture_output": True, "timeout": 60,
               "check": False, **options},
        )  # type: ignore[call-overload]  # the caller's keywords  # fmt: skip

    return run


@pytest.fixture
def done(poor: Run) -> Callable[..., bytes]:
    """The same, for what must succeed: what it printed."""

    def run(*arguments: str | bytes, **options: object) -> bytes:
        finished = poor(*arguments, **options)
        assert (finished.returncode, finished.stderr) == (EXIT_OK, b""), finished
        output: bytes = finished.stdout
        return output

    return run


def test_a_file_there_and_back(done: Callable[..., bytes], tmp_path: Path) -> None:
    """put, ls, cat, stat, mv, cp, get, rm of content with every byte, small, large and empty."""
    contents = {"small": bytes(range(256)) * 4, "large": os.urandom(3 << 20), "empty": b""}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    done("mkdir", "-p", "/w/deep/er")
    done("put", *contents, "/w")
    assert done("ls", "/w").split() == [b"deep", b"empty", b"large", b"small"]
    script = "mv /w/large /w/deep/moved; cp /w/deep/moved /w/large; ls -l /w; get /w/[els]* back"
    (tmp_path / "back").mkdir()
    assert b" small\n" in done("shell", input=script.encode())
    for name, content in contents.items():
        assert (tmp_path / "back" / name).read_bytes() == content
    assert done("cat", "/w/deep/moved") == contents["large"]
    done("put", "-", "/w/piped", input=b"a\r\nb\n")
    assert done("get", "/w/piped", "-") == b"a\r\nb\n"
    assert done("rm", "-r", "/w") == b""


def test_directories(done: Callable[..., bytes], tmp_path: Path) -> None:
    """put -r and get -r; the second time nothing is copied; a read-only target is replaced."""
    (tmp_path / "t/a/b").mkdir(parents=True)
    for number in range(20):
        (tmp_path / f"t/a/{number}").write_text(str(number))
    (tmp_path / "t/a/b/deep").write_text("deep")
    script = "put -r t /trees; put --mirror --json t /trees; get -r /trees back"
    counts = {"files": 21, "bytes": 34, "unchanged": 21}
    assert json.loads(done("shell", input=script.encode())) == counts
    assert json.loads(done("get", "--mirror", "--json", "/trees", "back")) == counts
    assert (tmp_path / "back/a/b/deep").read_text() == "deep"
    (tmp_path / "back/a/7").chmod(0o400)
    done("put", "-", "/trees/a/7", input=b"seven")
    done("get", "/trees/a/7", "back/a/7")
    assert (tmp_path / "back/a/7").read_text() == "seven"
    # Windows has no modes: what it sends is neither everyone's to write nor for the owner alone.
    described = json.loads(done("stat", "--json", "/trees/a", "/trees/a/3"))
    assert [item["mode"] for item in described] == ["0755", "0644"]


def test_edit(done: Callable[..., bytes], tmp_path: Path) -> None:
    """The text goes through a program and back; one whose name Windows can't have, too."""
    (tmp_path / "editor.py").write_text(
        "import sys\nfile = open(sys.argv[1], 'r+b')\ntext = file.read()\n"
        "file.seek(0)\nfile.write(text.upper())\n"
    )
    for path in ("/note.txt", "/12:30.txt"):
        done("put", "-", path, input=b"one\r\ntwo\n")
        assert b"saved" in done("edit", path)
        assert done("cat", path) == b"ONE\r\nTWO\n"


def test_shell(poor: Run, tmp_path: Path) -> None:
    """A script of the shell: both sides' directories, wildcards, jobs; backslashes stay."""
    for name in ("1.txt", "2.txt"):
        (tmp_path / name).write_text(name)
    # Here a drive is a folder of that name; what is seen is how its paths are read.
    (tmp_path / "C:/sub").mkdir(parents=True)
    (tmp_path / "C:/sub/deep.txt").write_text("deep")
    script = (
        "mkdir /s\ncd /s\nput *.txt . &\nwait\nls *.txt\nlcd .\nget 1.txt copy.txt\n"
        "put - x\nput C:\\no\\such /s\nmkdir /c\nput C:\\sub\\*.txt /c\nls /c\nexit\n"
    )
    finished = poor("shell", input=script.encode())
    assert b"1.txt\n2.txt\n" in finished.stdout, finished
    assert (tmp_path / "copy.txt").read_text() == "1.txt"
    assert finished.stdout.endswith(b"deep.txt\n")
    assert b"C:/no/such: No such file" in finished.stderr


def test_a_console_that_lacks_characters(poor: Run, tmp_path: Path) -> None:
    """What its code page does not have is spelled out, and costs nothing else."""
    (tmp_path / "日本").mkdir()
    (tmp_path / "日本/file").write_text("x")
    script = "lcd 日本; put -r ../日本 / & wait; cat /日本/file"
    finished = poor("shell", input=script.encode(), encoding="cp1252")
    assert finished.returncode == EXIT_OK, finished
    assert b"\\u65e5" in finished.stdout
    assert finished.stdout.endswith(b"x")


def test_names_that_windows_cannot_have(pydi: Run, poor: Run, tmp_path: Path) -> None:
    """get -r leaves them out, says which and why, takes the others, and ends with 1; nothing is
    written under another name."""
    wrong = [b"a:b", b"..\\up", b"dot.", b"blank ", b"nul.txt", b"what?", b"raw\xff", b"line\nend"]
    for name in (*wrong, b"README", b"readme"):
        (tmp_path / "made").mkdir(exist_ok=True)
        (tmp_path / "made" / os.fsdecode(name)).write_text("x")
    assert pydi("put", "-r", "made", "/names").returncode == EXIT_OK
    finished = poor("get", "-r", "/names", "names")
    assert finished.returncode == EXIT_FAILED
    assert finished.stderr.count(b"left out") == len(wrong) + 1, finished.stderr
    assert b"readme: left out: this disk takes it for README" in finished.stderr
    assert os.listdir(tmp_path / "names") == ["README"]
    assert poor("ls", "/names").stdout.count(b"\n") == len(wrong) + 3
    finished = poor("get", "/names/a:b", ".")
    assert (finished.returncode, finished.stderr.count(b"\n")) == (EXIT_FAILED, 1)
    assert poor("get", "/names/a:b", "other").returncode == EXIT_OK


def test_no_node_on_this_machine(poor: Run, data_dir: Path) -> None:
    """Without an address it says what to give, instead of looking for a socket of Unix."""
    finished = poor("ls", env={"PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"]})
    assert finished.returncode == EXIT_UNREACHABLE
    assert b"--node" in finished.stderr
    assert finished.stderr.count(b"\n") == 1


def test_files_of_a_node_are_on_its_machine(poor: Run) -> None:
    """Commands that need a node's own code are refused in a sentence."""
    finished = poor("check", "somewhere")
    assert finished.returncode == EXIT_FAILED
    assert finished.stderr.count(b"\n") == 1
    assert b"run it on its machine" in finished.stderr


def test_errors_keep_their_meaning(poor: Run) -> None:
    """What a node refuses is told in the same words."""
    assert poor("mkdir", "-p", "/full/x").returncode == EXIT_OK
    finished = poor("rmdir", "/full")
    assert (finished.returncode, b"not empty" in finished.stderr) == (EXIT_FAILED, True)
