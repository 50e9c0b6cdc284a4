"""What is made from the table of commands: help, the manual page, completion in three shells; and
what a command needs to start."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from pydi_fs import cli, manual
from pydi_node.errors import EXIT_OK
from tests.cli.conftest import Run
from tests.harness.procs import PYDI
from tests.harness.terminals import terminal

ROOT = Path(__file__).parent.parent.parent
PARSERS = manual.subcommands(cli.build_parser())
SLOW_TO_LOAD = ("prompt_toolkit", "rich", "tkinter", "cryptography", "uvloop")


@pytest.mark.parametrize("name", sorted(PARSERS))
def test_examples(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """--help shows at least one example; each is a line that the parser takes."""
    with pytest.raises(SystemExit) as stopped:
        cli.main([name, "--help"])
    assert stopped.value.code == EXIT_OK
    examples = manual.examples_of(PARSERS[name])
    assert examples
    shown = capsys.readouterr().out
    assert shown.count("SOURCE... TARGET") <= 2, "once in the usage, once below it"
    for example in examples:
        assert f"\n  {example}\n" in shown
        words = shlex.split(example.replace("<(", "< ").replace(")", ""))
        start = words.index("pydi")
        end = next((i for i in range(start, len(words)) if words[i] == "|"), len(words))
        cli.require_target(cli.build_parser().parse_args(words[start + 1 : end]))


def test_manual_is_what_the_table_says() -> None:
    """docs/pydi.1 is up to date: python -m pydi_fs.manual > docs/pydi.1"""
    assert (ROOT / "docs/pydi.1").read_text() == manual.manual()
    for name in PARSERS:
        assert f".SS {name}" in manual.manual()


@pytest.mark.skipif(shutil.which("groff") is None, reason="groff is not installed")
def test_manual_is_a_manual() -> None:
    """man's formatter has nothing to complain about."""
    run = subprocess.run(
        ["groff", "-man", "-ww", "-T", "utf8", ROOT / "docs/pydi.1"],
        capture_output=True, check=True, timeout=60,
    )  # fmt: skip
    assert run.stderr == b""
    assert b"completion SHELL" in re.sub(rb".\x08", b"", run.stdout)  # bold is written twice


# --- completion ----------------------------------------------------------------------------------


@pytest.fixture
def variables(data_dir: Path, tmp_path: Path, pydi: Run) -> Mapping[str, str]:
    """An environment in which ``pydi`` is this checkout's, with something to complete."""
    program = tmp_path / "bin/pydi"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -c "{PYDI}" "$@"\n')
    program.chmod(0o755)
    pydi("mkdir", "-p", "/shown/with blank")
    pydi("put", "-", "/shown/file", input=b"x")
    (tmp_path / "local").write_text("x")
    return {**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}",
            "PYDI_DATA_DIR": str(data_dir), "HOME": str(tmp_path)}  # fmt: skip


def output(
    command: list[str], variables: Mapping[str, str], directory: Path, script: str = ""
) -> list[str]:
    run = subprocess.run(
        command, input=script, text=True, capture_output=True, timeout=120, check=False,
        env=dict(variables), cwd=directory,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""
    return [line for line in run.stdout.splitlines() if line]


TYPED: tuple[tuple[list[str], list[str]], ...] = (
    (["pydi", "st"], ["stat", "status"]),
    (["pydi", "--data-dir", "/x", "mk"], ["mkdir"]),
    (["pydi", "put", "--mi"], ["--mirror"]),
    (["pydi", "ls", "/sho"], ["/shown/"]),
    (["pydi", "cat", "/shown/"], ["/shown/file", "/shown/with blank/"]),
    (["pydi", "put", "lo"], ["local"]),
)


def test_bash(variables: Mapping[str, str], tmp_path: Path) -> None:
    """Commands, flags, paths of the tree with what they need as quotes, local files."""
    script = "source <(pydi completion bash); compopt() { :; }\n"
    for line, _ in TYPED:
        words = " ".join(map(shlex.quote, line))
        script += f"COMP_WORDS=({words}); COMP_CWORD={len(line) - 1}; _pydi\n"
        script += "printf '%s|' \"${COMPREPLY[@]}\"; echo\n"
    found = output(["bash"], variables, tmp_path, script)
    quoted = [[word.replace(" ", "\\ ") for word in words] for _, words in TYPED]
    assert found == ["".join(f"{word}|" for word in words) for words in quoted]


@pytest.mark.skipif(shutil.which("fish") is None, reason="fish is not installed")
def test_fish(variables: Mapping[str, str], tmp_path: Path) -> None:
    """The same in fish."""
    script = "pydi completion fish | source\n"
    for line, _ in TYPED:
        script += f"complete -C {shlex.quote(' '.join(line))} | string split -f1 \\t; echo end\n"
    found = output(["fish", "--no-config", "-c", script], variables, tmp_path)
    for _, words in TYPED:
        end = found.index("end")
        assert sorted(found[:end]) == words
        del found[: end + 1]


@pytest.mark.skipif(shutil.which("zsh") is None, reason="zsh is not installed")
def test_zsh(variables: Mapping[str, str], tmp_path: Path) -> None:
    """The same in zsh, whose completion only works at a terminal: Tab is pressed."""
    with terminal(["zsh", "-f", "-i"], dict(variables), tmp_path) as opened:
        opened.type("PS1='ready> '; autoload -U compinit; compinit -u")
        opened.wait_for(r"\nready>")
        opened.type("source <(pydi completion zsh); echo sour''ced")
        opened.wait_for(r"\nsourced\nready>")
        opened.press("pydi undel\t")
        opened.wait_for("ready> pydi undelete")
        opened.press("/shown/fi\t")
        opened.wait_for("ready> pydi undelete /shown/file")
        opened.press("\x15exit\r")
        opened.wait_ended()


# --- what it needs -------------------------------------------------------------------------------

WITHOUT = """
import builtins, os, sys
real_import, real_open = builtins.__import__, os.open
def guarded(name, *rest, **more):
    assert name.split(".")[0] not in ("fuse", "fusepy"), f"imports {name}"
    assert not name.startswith("pydi_fs.fuse"), f"imports {name}"
    return real_import(name, *rest, **more)
def opened(path, *rest, **more):
    assert "/dev/fuse" not in str(path), "opens /dev/fuse"
    return real_open(path, *rest, **more)
builtins.__import__, os.open = guarded, opened
from pydi_fs.cli import main
sys.exit(main())
"""


def test_works_without_fuse(data_dir: Path, tmp_path: Path) -> None:
    """Neither libfuse nor /dev/fuse nor a binding is touched, by single commands or the shell."""
    script = (
        "mkdir /nofuse\nput file /nofuse\nls /nofuse\ncat /nofuse/file\nget /nofuse/file back\n"
    )
    (tmp_path / "file").write_text("content")
    run = subprocess.run(
        [sys.executable, "-c", WITHOUT, "shell"], input=script, text=True, capture_output=True,
        timeout=60, cwd=tmp_path, env={**os.environ, "PYDI_DATA_DIR": str(data_dir)}, check=False,
    )  # fmt: skip
    assert (run.returncode, run.stdout, run.stderr) == (EXIT_OK, "file\ncontent", "")
    assert (tmp_path / "back").read_text() == "content"


def test_single_commands_load_little(data_dir: Path) -> None:
    """`pydi ls` starts fast: no terminal, no window and no cryptography is loaded for it."""
    code = (
        "import sys; from pydi_fs.cli import main; main(['ls']);"
        "print([m for m in sys.modules if m.split('.')[0] in sys.argv[1:]])"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, *SLOW_TO_LOAD], text=True, capture_output=True, timeout=60,
        env={**os.environ, "PYDI_DATA_DIR": str(data_dir)}, check=True,
    )  # fmt: skip
    assert run.stdout.splitlines()[-1] == "[]"
