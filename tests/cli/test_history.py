"""``pydi log``, ``restore`` and ``undelete`` against a real node."""

from __future__ import annotations

import json
import os
import re
import time
from pathlib import Path

import pytest

from pydi_fs.vfs.moments import parse_moment
from pydi_node.errors import EXIT_FAILED, EXIT_OK, EXIT_USAGE
from tests.cli.conftest import Run

NOW_NS = 1_700_000_000 * 10**9
HOUR_NS = 3600 * 10**9


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("17", 17),
        ("2h ago", (NOW_NS - 2 * HOUR_NS,)),
        ("2 hours ago", (NOW_NS - 2 * HOUR_NS,)),
        ("90min", (NOW_NS - 90 * 60 * 10**9,)),
        ("3d", (NOW_NS - 72 * HOUR_NS,)),
        ("30s ago", (NOW_NS - 30 * 10**9,)),
        ("1970-01-02T00:00:00Z", (24 * HOUR_NS,)),
        ("1970-01-02T02:00+02:00", (24 * HOUR_NS,)),
    ],
)
def test_moments(text: str, moment: object) -> None:
    """An index, a time with its zone, or how long ago."""
    assert parse_moment(text, NOW_NS) == moment


@pytest.mark.parametrize("text", ["", "soon", "2 moons ago", "2026-13-01", "-5", "9" * 30])
def test_no_moments(text: str) -> None:
    """Anything else is none."""
    assert parse_moment(text, NOW_NS) is None


def test_local_time_unless_it_says_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """A time without a zone is the person's own."""
    monkeypatch.setenv("TZ", "Etc/GMT-3")
    time.tzset()
    try:
        assert parse_moment("1970-01-02 03:00", NOW_NS) == (24 * HOUR_NS,)
    finally:
        monkeypatch.undo()
        time.tzset()


def versions(pydi: Run, path: str) -> list[dict[str, int]]:
    run = pydi("log", path, "--json")
    assert run.returncode == EXIT_OK, run.stderr
    found: list[dict[str, int]] = json.loads(run.stdout)
    return found


def test_log_and_restore(pydi: Run, data_dir: Path) -> None:
    """log lists each version; restore makes an old one the present one, in a new version and
    without copying; what was there before it can be restored in turn."""
    for content in (b"first", b"the second"):
        pydi("put", "-", "/kept", input=content)
    first = next(v for v in versions(pydi, "/kept") if v["size"] == len(b"first"))
    assert versions(pydi, "/kept")[-1]["until"] is None
    assert first["since_ns"] > 0
    blobs = sorted(p.name for p in (data_dir / "blobs").glob("??/*"))
    before = versions(pydi, "/kept")[-1]["since"]
    done = pydi("restore", "/kept", "--at", str(first["since"]), "--json")
    assert done.returncode == EXIT_OK, done.stderr
    assert json.loads(done.stdout)["size"] == len(b"first")
    assert pydi("cat", "/kept").stdout == b"first"
    assert sorted(p.name for p in (data_dir / "blobs").glob("??/*")) == blobs
    assert pydi("restore", "kept", "--at", str(before)).returncode == EXIT_OK
    assert pydi("cat", "/kept").stdout == b"the second"
    text = pydi("log", "/kept").stdout.decode().splitlines()
    assert text[0].split() == ["index", "from", "until", "mode", "size"]
    assert "now" in text[-1]


def test_restore_by_time(pydi: Run) -> None:
    """A time means the state at the end of its second."""
    pydi("put", "-", "/timed", input=b"old")
    shown = versions(pydi, "/timed")[-1]["since_ns"]
    while time.time_ns() // 10**9 <= shown // 10**9 + 1:
        time.sleep(0.05)  # the next version belongs to another second
    pydi("put", "-", "/timed", input=b"newer")
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(shown // 10**9 + 1))
    assert pydi("restore", "/timed", "--at", stamp).returncode == EXIT_OK
    assert pydi("cat", "/timed").stdout == b"old"


def test_undelete(pydi: Run, tmp_path: Path) -> None:
    """A removed file is back; a directory that rm -r emptied is refused with the way out: restore
    brings back all that was below it, with modes, times and links."""
    source = tmp_path / "dir"
    (source / "below").mkdir(parents=True)
    (source / "below/file").write_bytes(b"content")
    (source / "below/file").chmod(0o640)
    os.utime(source / "below/file", ns=(5 * 10**9, 7 * 10**9))
    (source / "link").symlink_to("below/file")
    pydi("put", "-r", "dir", "/gone")
    pydi("put", "-", "/lone", input=b"alone")
    index = versions(pydi, "/lone")[-1]["since"]
    pydi("mkdir", "/empty")
    assert pydi("rm", "-r", "/gone", "/lone", "/empty").returncode == EXIT_OK
    assert pydi("undelete", "/lone").returncode == EXIT_OK
    assert pydi("cat", "/lone").stdout == b"alone"
    refused = pydi("undelete", "/gone/below/file")
    assert (refused.returncode, b"bring that back" in refused.stderr) == (EXIT_FAILED, True)
    refused = pydi("undelete", "/gone")
    assert (refused.returncode, b"restore /gone --at" in refused.stderr) == (EXIT_FAILED, True)
    assert re.search(rb"removed at 20\d\d-\d\d-\d\d \d\d:\d\d:\d\d, as rm -r", refused.stderr)
    assert pydi("undelete", "/empty").returncode == EXIT_OK
    done = pydi("restore", "/gone", "--at", str(index))
    assert (done.returncode, done.stderr) == (EXIT_OK, b"")
    assert pydi("get", "-r", "/gone", "back").returncode == EXIT_OK
    file = tmp_path / "back/below/file"
    assert file.read_bytes() == b"content"
    assert file.stat().st_mode & 0o7777 == 0o640
    assert file.stat().st_mtime_ns == 7 * 10**9
    assert os.readlink(tmp_path / "back/link") == "below/file"
    refused = pydi("undelete", "/gone")
    assert (refused.returncode, b"is not deleted" in refused.stderr) == (EXIT_FAILED, True)


def test_restore_of_what_was_removed(pydi: Run) -> None:
    """restore finds by index what has gone since, also when it was removed more than once."""
    pydi("put", "-", "/twice", input=b"one")
    index = versions(pydi, "/twice")[-1]["since"]
    pydi("rm", "/twice")
    pydi("put", "-", "/twice", input=b"two")
    pydi("rm", "/twice")
    assert pydi("restore", "/twice", "--at", str(index)).returncode == EXIT_OK
    assert pydi("cat", "/twice").stdout == b"one"


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["log", "/never"], EXIT_FAILED, "nothing of that name"),
        (["log", "/never/below"], EXIT_FAILED, "the directory it was in"),
        (["undelete", "/never"], EXIT_FAILED, "nothing of that name"),
        (["restore", "/never", "--at", "1"], EXIT_FAILED, "was not there then"),
        (["restore", "/never", "--at", "999999999"], EXIT_FAILED, "in the future"),
        (["restore", "/never", "--at", "soon"], EXIT_USAGE, "no moment"),
        (["restore", "/never"], EXIT_USAGE, "--at"),
        (["restore", "/", "--at", "1"], EXIT_USAGE, "name a file"),
    ],
)
def test_refusals(pydi: Run, arguments: list[str], code: int, words: str) -> None:
    """One sentence for each."""
    run = pydi(*arguments)
    assert (run.returncode, run.stdout) == (code, b"")
    assert run.stderr.count(b"\n") == 1
    assert words in run.stderr.decode()
