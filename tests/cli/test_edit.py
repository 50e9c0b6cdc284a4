"""``pydi edit`` with a program as editor, and with its own window on a screen of its own."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from pydi_node.errors import EXIT_FAILED, EXIT_OK, EXIT_USAGE
from tests.cli.conftest import Run
from tests.harness.procs import PYDI, environment, wait_until
from tests.harness.terminals import terminal

NO_WINDOW = (
    shutil.which("Xvfb") is None
    or shutil.which("xdotool") is None
    or importlib.util.find_spec("tkinter") is None
)


@pytest.fixture
def editor(tmp_path: Path, data_dir: Path) -> Callable[[str], Mapping[str, str]]:
    """An environment in which the editor is a shell script; $1 is the file it edits."""

    def make(script: str) -> Mapping[str, str]:
        path = tmp_path / "editor.sh"
        path.write_text(script)
        program = f'"{sys.executable}" -c "{PYDI}"'
        return environment(
            PYDI_DATA_DIR=str(data_dir), EDITOR=f"sh {path}", VISUAL="", PYDI=program, DISPLAY="",
            TMPDIR=str(tmp_path),
        )  # fmt: skip

    return make


MEANWHILE = 'echo theirs | eval "$PYDI put - {path}"; echo mine >"$1"'


def test_what_is_saved_is_one_version(pydi: Run, editor: Callable[..., Mapping[str, str]]) -> None:
    """The editor gets the file under its own name; what it saves is the next version of the same
    file; nothing saved makes no version; a new file is made."""
    pydi("put", "-", "/edited.txt", input=b"before\n")
    before = json.loads(pydi("stat", "--json", "/edited.txt").stdout)[0]
    variables = editor('case "$1" in */edited.txt) echo after >>"$1";; esac')
    run = pydi("edit", "/edited.txt", env=variables)
    assert (run.returncode, run.stdout, run.stderr) == (EXIT_OK, b"/edited.txt: saved\n", b"")
    assert pydi("cat", "/edited.txt").stdout == b"before\nafter\n"
    after = json.loads(pydi("stat", "--json", "/edited.txt").stdout)[0]
    assert (after["ino"], after["mode"]) == (before["ino"], before["mode"])
    assert pydi("edit", "/edited.txt", env=editor("true")).stdout == b""
    unchanged = json.loads(pydi("stat", "--json", "/edited.txt").stdout)[0]
    assert unchanged["version"] == after["version"]
    pydi("edit", "/made.txt", env=editor('echo new >"$1"'))
    assert pydi("cat", "/made.txt").stdout == b"new\n"


def test_conflict_without_a_person(
    pydi: Run, editor: Callable[..., Mapping[str, str]], tmp_path: Path
) -> None:
    """A script can't be asked: the other's text stays, and it is told where one's own is kept."""
    pydi("put", "-", "/raced.txt", input=b"before\n")
    run = pydi("edit", "/raced.txt", env=editor(MEANWHILE.format(path="/raced.txt")))
    assert run.returncode == EXIT_FAILED
    assert b"changed meanwhile" in run.stderr
    assert pydi("cat", "/raced.txt").stdout == b"theirs\n"
    (kept,) = tmp_path.glob("pydi-edit-*/raced.txt")
    assert os.fsencode(kept) in run.stderr
    assert kept.read_text() == "mine\n"


def test_the_same_text_stored_meanwhile_is_no_conflict(
    pydi: Run, editor: Callable[..., Mapping[str, str]]
) -> None:
    """A new version with the text that one began with: nothing of another's would be lost."""
    pydi("put", "-", "/touched.txt", input=b"before\n")
    script = 'echo before | eval "$PYDI put - /touched.txt"; echo mine >"$1"'
    run = pydi("edit", "/touched.txt", env=editor(script))
    assert (run.returncode, run.stdout) == (EXIT_OK, b"/touched.txt: saved\n"), run
    assert pydi("cat", "/touched.txt").stdout == b"mine\n"


@pytest.mark.parametrize(
    ("answer", "content", "beside"),
    [("b", "theirs\n", "mine\n"), ("m", "mine\n", None), ("t", "theirs\n", None)],
)
def test_conflict_at_a_terminal(
    pydi: Run, editor: Callable[..., Mapping[str, str]], tmp_path: Path,
    answer: str, content: str, beside: str | None,
) -> None:  # fmt: skip
    """Both are shown; keeping both stores mine beside, and the other answers take one."""
    path = f"/asked-{answer}.txt"
    pydi("put", "-", path, input=b"before\n")
    variables = editor(MEANWHILE.format(path=path))
    with terminal([sys.executable, "-c", PYDI, "edit", path], variables, tmp_path) as opened:
        shown = opened.wait_for(r"Keep \[b\]oth")
        assert "-theirs" in shown
        assert "+mine" in shown
        opened.type(answer)
        assert opened.wait_ended() == EXIT_OK
    assert pydi("cat", path).stdout.decode() == content
    kept = pydi("cat", f"{path}.conflict-1")
    assert (kept.stdout.decode() if kept.returncode == EXIT_OK else None) == beside


def test_a_file_that_was_replaced_is_a_conflict(
    pydi: Run, editor: Callable[..., Mapping[str, str]]
) -> None:
    """Another program saved by renaming: the name is another file, and that is not lost either."""
    pydi("put", "-", "/renamed.txt", input=b"before\n")
    script = (
        'echo theirs | eval "$PYDI put - /other.txt"; eval "$PYDI mv /other.txt /renamed.txt";'
        'echo mine >"$1"'
    )
    assert pydi("edit", "/renamed.txt", env=editor(script)).returncode == EXIT_FAILED
    assert pydi("cat", "/renamed.txt").stdout == b"theirs\n"


def test_refusals(pydi: Run, editor: Callable[..., Mapping[str, str]]) -> None:
    """What is no text, a directory, no editor, an editor that fails: one sentence each."""
    pydi("put", "-", "/binary", input=b"\xff\0")
    pydi("mkdir", "/directory")
    for path, script, code, words in (
        ("/binary", "true", EXIT_FAILED, b"--binary"),
        ("/directory", "true", EXIT_FAILED, b"Is a directory"),
        ("/new", "exit 3", EXIT_FAILED, b"exit code 3"),
        ("/", "true", EXIT_FAILED, b"Is a directory"),
    ):
        run = pydi("edit", path, env=editor(script))
        assert run.returncode == code
        assert words in run.stderr
        assert run.stderr.count(b"\n") == 1
        assert run.stderr.count(b"/binary") <= 1
    variables = {**editor("true"), "EDITOR": ""}
    run = pydi("edit", "/new", env=variables)
    assert (run.returncode, b"set VISUAL or EDITOR" in run.stderr) == (EXIT_USAGE, True)
    assert pydi("edit", "--binary", "/binary", env=editor('printf x >>"$1"')).returncode == EXIT_OK
    assert pydi("cat", "/binary").stdout == b"\xff\0x"


# --- the window ----------------------------------------------------------------------------------


class Screen:
    """A screen without a monitor, and a keyboard for it."""

    def __init__(self, display: str) -> None:
        self.display = display

    def xdotool(self, *arguments: str) -> str:
        return subprocess.run(
            ["xdotool", *arguments], env={**os.environ, "DISPLAY": self.display}, text=True,
            capture_output=True, timeout=60, check=False,
        ).stdout.strip()  # fmt: skip

    def windows(self, title: str) -> list[str]:
        """Numbers of those that can be seen."""
        return self.xdotool("search", "--onlyvisible", "--name", title).splitlines()

    def wait_for_window(self, title: str) -> str:
        """Its number, once it is there and has the keyboard."""
        found: list[str] = []

        def is_there() -> bool:
            found[:] = self.windows(title)
            if not found:
                return False
            self.xdotool("windowfocus", found[0])
            return self.xdotool("getwindowfocus") != ""

        wait_until(is_there, f"a window named {title}", 60)
        return found[0]


@pytest.fixture(scope="module")
def screen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Screen]:
    read_fd, write_fd = os.pipe()
    with subprocess.Popen(
        ["Xvfb", "-displayfd", str(write_fd), "-screen", "0", "1024x768x24", "-nolisten", "tcp"],
        pass_fds=[write_fd], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:  # fmt: skip
        os.close(write_fd)
        try:
            with os.fdopen(read_fd) as pipe:
                number = pipe.readline().strip()
            assert number, "Xvfb did not start"
            yield Screen(f":{number}")
        finally:
            process.terminate()
            process.wait(60)


@contextmanager
def window(screen: Screen, data_dir: Path, path: str) -> Iterator[subprocess.Popen[str]]:
    """``pydi edit`` whose window is open."""
    variables = environment(
        PYDI_DATA_DIR=str(data_dir), VISUAL="", EDITOR="", DISPLAY=screen.display
    )
    with subprocess.Popen(
        [sys.executable, "-c", PYDI, "edit", path], env=variables, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL,
    ) as process:  # fmt: skip
        try:
            screen.wait_for_window(path)
            yield process
        finally:
            process.terminate()
            process.wait(60)


def replaced_by(text: str, key: str) -> list[str]:
    """Keys that select everything, type a text in its place, and then one more; so they may be
    pressed again when a slow window lost them."""
    return ["key", "ctrl+slash", "type", "--args", "1", text, "key", key]


def press_until(screen: Screen, keys: list[str], condition: Callable[[], bool], what: str) -> None:
    """Types, then waits for what it does; again when a slow window lost it."""
    end = time.monotonic() + 60
    while True:
        screen.xdotool(*keys)
        again = time.monotonic() + 10
        while time.monotonic() < again:
            if condition():
                return
        assert time.monotonic() < end, what


@pytest.mark.skipif(NO_WINDOW, reason="Xvfb, xdotool or tkinter is not installed")
def test_window_saves(pydi: Run, screen: Screen, data_dir: Path) -> None:
    """Open, type, Save: the content changed and the window is still there. Type, OK: it closes."""
    pydi("put", "-", "/window.txt", input=b"text\n")
    with window(screen, data_dir, "/window.txt") as process:
        press_until(
            screen, replaced_by("first text", "ctrl+s"),
            lambda: pydi("cat", "/window.txt").stdout == b"first text", "Save saves",
        )  # fmt: skip
        assert process.poll() is None
        press_until(
            screen, replaced_by("second text", "ctrl+Return"),
            lambda: process.poll() is not None, "OK closes",
        )  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.read() == "/window.txt: saved\n"
    assert process.returncode == EXIT_OK
    assert pydi("cat", "/window.txt").stdout == b"second text"


@pytest.mark.skipif(NO_WINDOW, reason="Xvfb, xdotool or tkinter is not installed")
def test_window_with_a_conflict(pydi: Run, screen: Screen, data_dir: Path) -> None:
    """The file changed while the window was open: both texts and three buttons; keeping both
    leaves the other's and stores one's own beside it."""
    pydi("put", "-", "/window-2.txt", input=b"text\n")
    with window(screen, data_dir, "/window-2.txt") as process:
        pydi("put", "-", "/window-2.txt", input=b"theirs\n")
        press_until(
            screen, replaced_by("my text", "ctrl+Return"),
            lambda: bool(screen.windows("Changed meanwhile")), "it asks",
        )  # fmt: skip
        screen.wait_for_window("Changed meanwhile")
        assert pydi("cat", "/window-2.txt").stdout == b"theirs\n"
        press_until(
            screen, ["key", "b"], lambda: process.poll() is not None, "the answer ends it"
        )  # fmt: skip
        assert process.returncode == EXIT_OK
    assert pydi("cat", "/window-2.txt").stdout == b"theirs\n"
    assert pydi("cat", "/window-2.txt.conflict-1").stdout == b"my text"


def test_no_tkinter_is_a_sentence(pydi: Run, data_dir: Path, tmp_path: Path) -> None:
    """A Python without Tk, as some distributions have it: what to install, in a sentence."""
    (tmp_path / "tkinter.py").write_text("raise ImportError('No module named _tkinter')")
    variables = dict(environment(PYDI_DATA_DIR=str(data_dir), VISUAL="", EDITOR="", DISPLAY=":0"))
    variables["PYTHONPATH"] = f"{tmp_path}{os.pathsep}{variables['PYTHONPATH']}"
    run = pydi("edit", "/none.txt", env=variables)
    assert (run.returncode, run.stderr.count(b"\n")) == (EXIT_FAILED, 1)
    assert b"python3-tk" in run.stderr


def test_no_display_is_a_sentence(pydi: Run, data_dir: Path) -> None:
    """A display that nobody serves: what is missing, in a sentence."""
    variables = environment(PYDI_DATA_DIR=str(data_dir), VISUAL="", EDITOR="", DISPLAY=":987")
    run = pydi("edit", "/none.txt", env=variables)
    assert run.returncode == EXIT_FAILED
    assert run.stderr.count(b"\n") == 1
    assert b"no window" in run.stderr
