"""What the documents tell a person to type: it exists, and the README's walk by hand works."""

from __future__ import annotations

import functools
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCUMENTS = (
    "README.md", "CONTRIBUTING.md", "docs/operating.md", "docs/performance.md",
    "docs/benchmarks/README.md",
)  # fmt: skip
# Python's argparse behind a shell script that would set a machine up.
BEHIND = {
    "scripts/bench": "scripts/bench.py",
    "scripts/compare": "scripts/comparison/__main__.py",
    "scripts/profile": "scripts/comparison/profiling.py",
}
MAINS = {"pydi": "pydi_fs.cli", "pydi-mount": "pydi_fs.mount_cli", "pydi-node": "pydi_node.cli"}
WALK_TIMEOUT_S = 240.0
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z-]*")


def blocks(document: str, heading: str = "") -> list[str]:
    """The shell blocks of a document, or of one section of it."""
    text = (ROOT / document).read_text()
    if heading:
        text = text.split(f"\n{heading}\n", 1)[1].split("\n## ", 1)[0]
    return re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


@functools.cache
def help_text(*words: str) -> str:
    """What ``PROGRAM [COMMAND] --help`` prints."""
    program, *command = words
    if program.startswith("scripts/"):
        return (ROOT / BEHIND.get(program, program)).read_text()
    code = f"import sys; from {MAINS[program]} import main; sys.exit(main())"
    run = subprocess.run(
        [sys.executable, "-c", code, *command, "--help"],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert run.returncode == 0, (words, run.stderr)
    return run.stdout


def typed_commands() -> list[tuple[str, list[str]]]:
    """(document, words) of every command of ours in the shell blocks."""
    found = []
    for document in DOCUMENTS:
        for block in blocks(document):
            for line in block.splitlines():
                words = shlex.split(line, comments=True)
                for start, word in enumerate(words):
                    if word in MAINS or word.startswith("scripts/"):
                        end = next(
                            (i for i in range(start, len(words)) if words[i] in ("|", "&")),
                            len(words),
                        )
                        found.append((document, words[start:end]))
    return found


@pytest.mark.parametrize(("document", "words"), typed_commands())
def test_command_in_a_block_exists(document: str, words: list[str]) -> None:
    """Each command in a shell block is there, with its subcommand and its flags."""
    program = words[0]
    if program in MAINS:
        is_tool = program == "pydi"
        text = help_text(*words[: 2 if is_tool else 1])
    else:
        assert os.access(ROOT / program, os.X_OK), f"{document}: no {program}"
        text = help_text(program)
    for flag in FLAG.findall(" ".join(words[1:])):
        assert flag in FLAG.findall(text), f"{document}: {program} has no {flag}"


def test_flags_in_the_text_exist() -> None:
    """A flag that a document mentions belongs to one of the commands or scripts."""
    known = {"--seed"}  # of the tests
    for program in MAINS:
        known |= set(FLAG.findall(help_text(program)))
    for program in ("scripts/demo", "scripts/test", "scripts/install-service", *BEHIND):
        known |= set(FLAG.findall(help_text(program)))
    for command in re.findall(r"^    ([a-z]+) ", help_text("pydi"), re.MULTILINE):
        known |= set(FLAG.findall(help_text("pydi", command)))
    for document in (*DOCUMENTS, "docs/durability.md"):
        wrong = set(FLAG.findall((ROOT / document).read_text())) - known
        assert not wrong, f"{document}: {', '.join(sorted(wrong))}"


def test_links_lead_somewhere() -> None:
    """Every file that a document links to is there."""
    for document in (ROOT / name for name in (*DOCUMENTS, "docs/durability.md", "CHANGELOG.md")):
        for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name}: {target}"


def can_mount() -> bool:
    tools = os.geteuid() == 0 or shutil.which("fusermount3") is not None
    return os.access("/dev/fuse", os.R_OK | os.W_OK) and tools


@pytest.mark.mount
@pytest.mark.slow
@pytest.mark.skipif(not can_mount(), reason="needs /dev/fuse and permission to mount")
def test_walk_by_hand(tmp_path: Path) -> None:
    """The blocks of "By hand", typed one after the other into a fresh copy, do what they say."""
    copy, home = tmp_path / "c", tmp_path / "h"
    home.mkdir()
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, check=True, timeout=60,
    ).stdout  # fmt: skip
    for name in filter(None, os.fsdecode(listed).split("\0")):
        if (ROOT / name).exists():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name)
    install, *walk = blocks("README.md", "## By hand")
    # pip finds its settings in the real home; everything of PyDi belongs into the other one.
    script = "\n".join([install, f"export HOME={shlex.quote(str(home))}", *walk, "wait"])
    environment = {k: v for k, v in os.environ.items() if not k.startswith("XDG_")}
    environment["PYDI_CACHE_DIR"] = str(home / "cache")  # root's would be the machine's
    environment["PYDI_LISTEN"] = "127.0.0.1:7420"  # no test speaks to the machine's network
    mount = home / "pydi/mnt"
    process = subprocess.Popen(
        ["bash", "-e", "-u", "-o", "pipefail"], cwd=copy, env=environment, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        start_new_session=True,
    )  # fmt: skip
    try:
        output, _ = process.communicate(script, timeout=WALK_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGTERM)
        output, _ = process.communicate(timeout=30)
        pytest.fail(f"the walk did not end:\n{output}")
    finally:
        if os.path.ismount(mount):
            subprocess.run(["umount", "-l", mount], check=False, timeout=30)
        if process.returncode:
            try:
                os.killpg(process.pid, signal.SIGTERM)
            except ProcessLookupError:
                pass  # nothing of it was left
    assert process.returncode == 0, output
    assert re.search(r"^-.* README\.md$", output, re.MULTILINE), output  # ls -l of the mount
    assert re.search(r"^-.* first$", output, re.MULTILINE), output  # pydi ls -l
    assert re.search(r"^5$", output, re.MULTILINE), output  # wc -c of "kept"
    assert "quorum   yes" in output, output
    assert not os.path.ismount(mount)
    assert (home / "pydi/node/node.json").exists()
