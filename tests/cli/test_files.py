"""The commands of ``pydi`` against a real node."""

from __future__ import annotations

import json
import os
import random
import signal
import stat
import subprocess
import sys
from pathlib import Path

from pydi_node.errors import EXIT_FAILED, EXIT_OK, EXIT_USAGE
from tests.cli.conftest import Run, running_node
from tests.harness.procs import PYDI


def make_tree(top: Path, rng: random.Random) -> None:
    """A directory with what copies get wrong: modes, times, links, odd names, empty and large."""
    (top / "sub/deeper").mkdir(parents=True)
    (top / "empty").mkdir()
    (top / "empty file").write_bytes(b"")
    (top / "sub/large").write_bytes(rng.randbytes(3 * (1 << 20) + 17))
    (top / "sub/deeper/script").write_text("#!/bin/sh\n")
    (top / "sub/deeper/script").chmod(0o755)
    (top / "secret").write_text("0600")
    (top / "secret").chmod(0o600)
    with open(os.fsencode(top) + b"/not utf-8 \xff\xfe", "wb") as file:
        file.write(b"name")
    (top / ("ä" * 127)).write_text("longest name")
    (top / "to nowhere").symlink_to("../missing")
    (top / "sub/up").symlink_to("..")
    for number in range(40):
        (top / "sub" / f"{number:03d}").write_text(str(number))
    (top / "sub/read only").mkdir()
    (top / "sub/read only/file").write_text("x")
    (top / "sub/read only").chmod(0o555)
    for path in sorted(top.rglob("*"), reverse=True):
        if not path.is_symlink():
            os.utime(path, ns=(10**18, 10**18 + path.stat().st_ino % 10**9))
    os.utime(top, ns=(10**18, 10**18))


def described(top: Path) -> dict[bytes, tuple[object, ...]]:
    """What a copy has to keep of everything below ``top``."""
    found = {}
    root = os.fsencode(top)
    for directory, directories, files in os.walk(root):
        for name in [*directories, *files, b"."]:
            path = os.path.join(directory, name)
            status = os.lstat(path)
            content: object = None
            if stat.S_ISLNK(status.st_mode):
                content = os.readlink(path)
            elif stat.S_ISREG(status.st_mode):
                with open(path, "rb") as file:
                    content = file.read()
            key = os.path.relpath(path, root)
            found[key] = (stat.filemode(status.st_mode), status.st_mtime_ns, content)
    return found


def test_tree_survives_the_round_trip(pydi: Run, tmp_path: Path, rng: random.Random) -> None:
    """put -r and get -r keep content, modes, times, symbolic links and names of any bytes."""
    make_tree(tmp_path / "source", rng)
    assert pydi("put", "-r", "source", "/round trip").stderr == b""
    run = pydi("get", "-r", "/round trip", "back")
    assert (run.returncode, run.stderr) == (EXIT_OK, b"")
    assert described(tmp_path / "back") == described(tmp_path / "source")
    # Into a directory that exists: below it, under its own name.
    (tmp_path / "into").mkdir()
    assert pydi("get", "-r", "/round trip/", "into").returncode == EXIT_OK
    assert described(tmp_path / "into/round trip") == described(tmp_path / "source")
    # Again over the copy: nothing changes, nothing is in the way.
    assert pydi("put", "-r", "source/sub", "/round trip").stderr == b""
    assert pydi("get", "-r", "/round trip", "into").stderr == b""
    assert described(tmp_path / "into/round trip") == described(tmp_path / "source")


def test_standard_input_and_output(pydi: Run, rng: random.Random) -> None:
    """The name "-" is standard input of put and standard output of get, byte for byte."""
    for size in (0, 1, 100_000, 5 << 20):
        content = rng.randbytes(size)
        assert pydi("put", "-", f"/stream {size}", input=content).returncode == EXIT_OK
        assert pydi("get", f"/stream {size}", "-").stdout == content
        assert pydi("cat", f"/stream {size}").stdout == content
    run = pydi("cat", "/stream 1", "/nothing", "/stream 1")
    assert run.returncode == EXIT_FAILED
    assert len(run.stdout) == 2
    assert run.stderr == b"pydi: /nothing: No such file or directory\n"


def test_put_replaces_content_of_the_same_file(pydi: Run) -> None:
    """A second put makes a new version of the file: same inode, shorter content leaves no rest."""
    pydi("put", "-", "/replaced", input=b"long content")
    before = json.loads(pydi("ls", "--json", "-d", "/replaced").stdout)
    assert pydi("put", "-", "/replaced", input=b"short").returncode == EXIT_OK
    after = json.loads(pydi("ls", "--json", "-d", "/replaced").stdout)
    assert pydi("cat", "/replaced").stdout == b"short"
    assert before[0]["ino"] == after[0]["ino"]


def test_list(pydi: Run) -> None:
    """ls sorts by bytes, -l describes, --json is for programs, -d stays at the directory."""
    pydi("mkdir", "-p", "/list/b", "/list/a")
    pydi("put", "-", b"/list/\xff", input=b"12345")
    assert pydi("ls", "/list").stdout == b"a\nb\n\xff\n"
    lines = pydi("ls", "-l", "/list").stdout.splitlines()
    assert [line[:1] for line in lines] == [b"d", b"d", b"-"]
    assert lines[2].endswith(b" \xff")
    assert b" 5 " in lines[2]
    listed = json.loads(pydi("ls", "--json", "/list").stdout)
    assert [entry["type"] for entry in listed] == ["directory", "directory", "file"]
    assert os.fsencode(listed[2]["path"]) == b"/list/\xff"
    assert listed[2]["size"] == 5
    assert [e["name"] for e in json.loads(pydi("ls", "-d", "--json", "/list").stdout)] == ["/list"]
    assert pydi("ls", "/list/a", "/list/b").stdout == b"/list/a:\n\n/list/b:\n"


def test_tree(pydi: Run) -> None:
    """tree draws what is below, deeper levels indented, links shown and not followed."""
    pydi("mkdir", "-p", "/drawn/a/b")
    pydi("put", "-", "/drawn/a/f", input=b"")
    pydi("put", "-", "/drawn/z", input=b"")
    expected = "/drawn\n├── a\n│   ├── b\n│   └── f\n└── z\n\n2 directories, 2 files\n"
    assert pydi("tree", "/drawn").stdout.decode() == expected
    assert pydi("tree", "-L", "1", "/drawn").stdout.decode().count("\n") == 5


def test_make_move_remove(pydi: Run) -> None:
    """mkdir, mv and rm do what their coreutils namesakes do, and refuse likewise."""
    assert pydi("mkdir", "/moves/inside").returncode == EXIT_FAILED
    assert pydi("mkdir", "-p", "/moves/inside").returncode == EXIT_OK
    assert pydi("mkdir", "-p", "/moves/inside").returncode == EXIT_OK
    assert pydi("mkdir", "/moves/inside").stderr == b"pydi: /moves/inside: File exists\n"
    for name in "abc":
        pydi("put", "-", f"/moves/{name}", input=name.encode())
    assert pydi("mv", "/moves/a", "/moves/new").returncode == EXIT_OK
    assert pydi("mv", "/moves/b", "/moves/c", "/moves/inside").returncode == EXIT_OK
    assert pydi("mv", "/moves/new", "/moves/inside/c", "/moves/new").returncode == EXIT_USAGE
    assert pydi("ls", "/moves").stdout == b"inside\nnew\n"
    assert pydi("ls", "/moves/inside").stdout == b"b\nc\n"
    refused = pydi("rm", "/moves/inside")
    assert (refused.returncode, b"rm -r" in refused.stderr) == (EXIT_FAILED, True)
    assert pydi("rm", "/moves/missing").returncode == EXIT_FAILED
    assert pydi("rm", "-f", "/moves/missing").returncode == EXIT_OK
    assert pydi("rm", "-r", "/").returncode == EXIT_USAGE
    assert pydi("rm", "-r", "/moves").stderr == b""
    assert pydi("ls", "/moves").returncode == EXIT_FAILED


def test_links_do_not_lead_outside(pydi: Run, tmp_path: Path) -> None:
    """get -r over a local link in the place of a directory refuses instead of writing behind it."""
    pydi("mkdir", "-p", "/outside/d")
    pydi("put", "-", "/outside/d/file", input=b"x")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/d").symlink_to(tmp_path / "elsewhere")
    assert pydi("get", "-r", "/outside", ".").returncode == EXIT_FAILED
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_directory_needs_recursive(pydi: Run, tmp_path: Path) -> None:
    """put and get of a directory without -r say how it is done, and exit with 1."""
    (tmp_path / "dir").mkdir()
    for arguments in (["put", "dir", "/needs"], ["get", "/", "there"]):
        run = pydi(*arguments)
        assert run.returncode == EXIT_FAILED
        assert b"-r copies it" in run.stderr


def test_special_files_are_left_out(pydi: Run, tmp_path: Path) -> None:
    """A fifo is not opened (that would wait for ever): it is named, the rest is copied, exit 1."""
    (tmp_path / "special").mkdir()
    os.mkfifo(tmp_path / "special/fifo")
    (tmp_path / "special/file").write_text("x")
    run = pydi("put", "-r", "special", "/special")
    assert run.returncode == EXIT_FAILED
    assert b"special/fifo" in run.stderr
    assert pydi("ls", "/special").stdout == b"file\n"


def test_status(pydi: Run) -> None:
    """status --json has the keys that the design fixes; the text form shows node and quorum."""
    state = json.loads(pydi("status", "--json").stdout)
    assert state["quorum"] is True
    assert state["leader"] == state["nodes"][0]["number"]
    assert {"cluster", "term", "blobs", "mounts", "advice"} <= state.keys()
    assert {"total", "under_replicated", "endangered", "missing"} <= state["blobs"].keys()
    node = state["nodes"][0]
    assert (node["state"], node["role"]) == ("up", "voter")
    assert {"address", "applied_index", "stored_bytes", "free_bytes", "files"} <= node.keys()
    assert b"quorum   yes" in pydi("status").stdout


def test_closed_pipe_is_no_traceback(pydi: Run, data_dir: Path) -> None:
    """A reader that has seen enough ends the command without a word."""
    pydi("put", "-", "/piped", input=b"x" * (4 << 20))
    script = f'"{sys.executable}" -c "{PYDI}" cat /piped | head -c 1'
    run = subprocess.run(
        ["bash", "-c", f"{script}; exit ${{PIPESTATUS[0]}}"], capture_output=True, timeout=60,
        env={**os.environ, "PYDI_DATA_DIR": str(data_dir)}, check=False,
    )  # fmt: skip
    assert (run.returncode, run.stdout, run.stderr) == (EXIT_FAILED, b"x", b"")


def test_interrupted_put_leaves_the_old_content(pydi: Run, data_dir: Path) -> None:
    """Ctrl-C in the middle of a put publishes nothing, and ends at once though input is open."""
    pydi("put", "-", "/interrupted", input=b"old")
    process = subprocess.Popen(
        [sys.executable, "-c", PYDI, "put", "-", "/interrupted"], stdin=subprocess.PIPE,
        stderr=subprocess.PIPE, env={**os.environ, "PYDI_DATA_DIR": str(data_dir)},
    )  # fmt: skip
    with process:
        assert process.stdin is not None
        assert process.stderr is not None
        # More than a pipe holds: once it is written, the command has read from it.
        process.stdin.write(b"new" * (1 << 20))
        process.stdin.flush()
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
        assert process.stderr.read() == b""
    assert pydi("cat", "/interrupted").stdout == b"old"


def test_content_is_there_after_a_restart(tmp_path: Path, rng: random.Random) -> None:
    """What put returned for is read after the node was killed, and again after a clean stop."""
    data = tmp_path / "d"
    content = rng.randbytes(200_000)
    environment = {**os.environ, "PYDI_DATA_DIR": str(data)}

    def pydi_here(*arguments: str, stdin: bytes = b"") -> bytes:
        return subprocess.run(
            [sys.executable, "-c", PYDI, *arguments], env=environment, input=stdin,
            capture_output=True, timeout=60, check=True,
        ).stdout  # fmt: skip

    with running_node(data) as process:
        pydi_here("put", "-", "/kept", stdin=content)
        process.kill()
        process.wait()
    for _ in range(2):
        with running_node(data):
            assert pydi_here("cat", "/kept") == content
