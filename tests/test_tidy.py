"""The shape of the code base, read from its syntax trees: who imports whom, what a pure room may
touch, and the habits that reviews should not have to repeat."""

from __future__ import annotations

import ast
import functools
import io
import re
import tokenize
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
LINES_MAX = 900  # a longer file is more than one subject
# One state machine: its parts would share all of its state.
LINES_MAX_OF = {"pydi_node/consensus/raft.py": 1300}
PACKAGES = ("pydi_node", "pydi_fs")


class Room(NamedTuple):
    """One row of the table in docs/architecture.md."""

    paths: tuple[str, ...]  # patterns of files, relative to the checkout; "*" ends at a "/"
    may_import: tuple[str, ...]  # modules and packages of PyDi beside the room's own


_FOUNDATION = ("pydi_node.ids", "pydi_node.errors")
_SYSTEM = "pydi_node.portable"
_PACKING = "pydi_node.packing"
_VOCABULARY = (*_FOUNDATION, "pydi_node.records", "pydi_node.commands")
_CLIENT = (*_VOCABULARY, "pydi_node.wire")
_SEEKER = (*_CLIENT, _SYSTEM, "pydi_node.discovery")
# What a mount was asked for and what is mounted where: plain values, beside the bindings.
_MOUNT = ("pydi_fs.mount_options", "pydi_fs.mountpoints")
_BINDING = (*_VOCABULARY, "pydi_fs.vfs", *_MOUNT, "pydi_fs.watch")

# What every command works with, without what the commands mean.
_COMMANDS = (
    "pydi_fs.commands_session", "pydi_fs.commands_files", "pydi_fs.progress",
    "pydi_fs.same_content",
    "pydi_fs.standard_input",
)  # fmt: skip

# In order: the first row whose pattern fits a file is its room.
ROOMS = (
    Room(("pydi_node/ids.py", "pydi_node/errors.py"), ()),
    Room(("pydi_node/portable.py",), ()),
    Room(("pydi_node/packing.py",), ()),
    Room(("pydi_node/records.py", "pydi_node/commands.py"), ("pydi_node.ids",)),
    Room(("pydi_node/wire/*",), (*_VOCABULARY, _PACKING)),
    Room(("pydi_node/discovery/*",), (*_FOUNDATION, _SYSTEM, "pydi_node.wire")),
    Room(("pydi_node/consensus/*",), _FOUNDATION),
    Room(
        ("pydi_node/leases.py", "pydi_node/handover.py"),
        (*_FOUNDATION, "pydi_node.records", "pydi_node.consensus"),
    ),
    Room(("pydi_node/locks.py",), _FOUNDATION),
    Room(("pydi_node/tree/*",), (*_VOCABULARY, _PACKING)),
    Room(("pydi_node/blobs/*",), (*_FOUNDATION, "pydi_node.records")),
    Room(
        (
            "pydi_node/replica*.py",
            "pydi_node/reads.py",
            "pydi_node/recalls.py",
            "pydi_node/effects.py",
            "pydi_node/envelopes.py",
        ),
        (
            *_CLIENT,
            _PACKING,
            "pydi_node.consensus",
            "pydi_node.leases",
            "pydi_node.handover",
            "pydi_node.replica_config",
            "pydi_node.replica_waits",
            "pydi_node.tree",
            "pydi_node.blobs",
        ),
    ),
    Room(("pydi_node/runtime/*",), ("pydi_node",)),
    Room(
        (
            "pydi_node/cli.py",
            "pydi_node/config.py",
            "pydi_node/__main__.py",
            "pydi_node/__init__.py",
        ),
        ("pydi_node",),
    ),
    Room(("pydi_fs/client/*",), _SEEKER),
    Room(("pydi_fs/vfs/*",), (*_CLIENT, _SYSTEM, "pydi_node.locks", "pydi_fs.client")),
    Room(("pydi_fs/fuse/*",), _BINDING),
    Room(("pydi_fs/fusepy_binding.py",), (*_BINDING, "pydi_fs.hidden_names")),
    Room(("pydi_fs/hidden_names.py",), ("pydi_node.ids",)),
    Room(("pydi_fs/watch.py",), ()),
    Room(("pydi_fs/mount_options.py", "pydi_fs/mountpoints.py"), _FOUNDATION),
    # Works on a stopped node's files, so it shares the code that reads them.
    Room(("pydi_fs/commands_offline.py",), ("pydi_fs", "pydi_node")),
    Room(("pydi_fs/transfer/*",), (*_CLIENT, _SYSTEM, "pydi_fs.vfs", *_COMMANDS)),
    Room(("pydi_fs/shell/words.py", "pydi_fs/shell/wildcards.py"), ()),
    Room(("pydi_fs/shell/completion.py",), ("pydi_fs.shell.words",)),
    Room(("pydi_fs/shell/*",), (*_CLIENT, _SYSTEM, "pydi_fs.cli", *_COMMANDS)),
    Room(
        ("pydi_fs/*.py",),  # the commands, and what they share
        ("pydi_fs", "pydi_node.__version__", *_SEEKER),
    ),
)

# Rooms that get time, chance and input as arguments.
PURE = (
    "pydi_node/ids.py",
    "pydi_node/errors.py",
    "pydi_node/records.py",
    "pydi_node/commands.py",
    "pydi_node/wire/*",
    "pydi_node/discovery/beacon.py",
    "pydi_node/discovery/group.py",
    "pydi_node/consensus/*",
    "pydi_node/tree/*",
    "pydi_node/leases.py",
    "pydi_node/handover.py",
    "pydi_node/locks.py",
    "pydi_node/replica*.py",
    "pydi_node/reads.py",
    "pydi_node/recalls.py",
    "pydi_node/effects.py",
    "pydi_node/envelopes.py",
    "pydi_node/blobs/placement*.py",
    "pydi_node/blobs/repair.py",
    "pydi_node/blobs/scrub.py",
    "pydi_node/blobs/compaction.py",
    "pydi_fs/vfs/extents.py",
    "pydi_fs/vfs/cache.py",
    "pydi_fs/vfs/content.py",
    "pydi_fs/vfs/journal.py",
    "pydi_fs/restart_policy.py",
    "pydi_fs/watch.py",
    "pydi_fs/transfer/plan.py",
    "pydi_fs/shell/words.py",
    "pydi_fs/shell/wildcards.py",
    "pydi_fs/shell/completion.py",
    "pydi_fs/fuse/abi.py",
    "pydi_fs/fuse/codec.py",
    "pydi_fs/fuse/nodeids.py",
)
# tls.py makes certificates and contexts, trust.py makes keys: chance is their subject.
NOT_PURE = ("pydi_node/wire/tls.py",)
MAY_DRAW_KEYS = ("pydi_node/wire/trust.py",)
IMPURE_MODULES = {
    "asyncio", "concurrent", "fcntl", "glob", "mmap", "multiprocessing", "pathlib", "random",
    "secrets", "select", "selectors", "shutil", "signal", "socket", "ssl", "subprocess",
    "tempfile", "threading", "time", "uuid", "uvloop",
}  # fmt: skip
KEY_MODULES = {"secrets"}
PURE_OS_NAMES = {"fsencode", "fsdecode", "strerror", "major", "minor", "makedev"}


def sources(*directories: str) -> list[Path]:
    return sorted(path for name in directories for path in (ROOT / name).rglob("*.py"))


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def fits(path: Path, patterns: Iterable[str]) -> bool:
    return any(PurePosixPath(relative(path)).match(pattern) for pattern in patterns)


@functools.cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def module_name(path: Path) -> str:
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """(line, full module name) of each import; ``from a import b`` counts as ``a.b`` if that is a
    module or a name in a package's ``__init__``, else as ``a``."""
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = module_name(path).split(".")
                keep = len(package) - node.level + (path.name == "__init__.py")
                base = ".".join([*package[:keep], *([base] if base else [])])
            for alias in node.names:
                is_package = (ROOT / base.replace(".", "/")).is_dir()
                yield node.lineno, f"{base}.{alias.name}" if is_package else base


def room_of(path: Path) -> Room:
    for room in ROOMS:
        if fits(path, room.paths):
            return room
    pytest.fail(f"{relative(path)} is in no room: add it to docs/architecture.md and to ROOMS")


def is_allowed(module: str, room: Room) -> bool:
    if module.split(".")[0] not in PACKAGES:
        return True
    own = [
        pattern.removesuffix(".py").removesuffix("/*").replace("/", ".") for pattern in room.paths
    ]
    return any(module == name or module.startswith(f"{name}.") for name in (*own, *room.may_import))


@pytest.mark.parametrize("path", sources(*PACKAGES), ids=relative)
def test_imports_follow_the_rooms(path: Path) -> None:
    """A file imports only its own room and the rooms that its row of the table names."""
    room = room_of(path)
    wrong = {
        f"{relative(path)}:{line}: imports {module}"
        for line, module in imported(path)
        if not is_allowed(module, room)
    }
    assert not wrong, "\n".join(sorted(wrong))


def test_nothing_imports_the_tests() -> None:
    """The packages do not depend on their tests."""
    wrong = [
        f"{relative(path)}:{line}"
        for path in sources(*PACKAGES)
        for line, module in imported(path)
        if module.split(".")[0] in ("tests", "pytest", "hypothesis")
    ]
    assert not wrong


def test_table_of_rooms_is_the_documented_one() -> None:
    """Each room in the table of docs/architecture.md is checked here."""
    text = (ROOT / "docs/architecture.md").read_text()
    table = text.split("## Rooms", 1)[1].split("\n## ", 1)[0]
    documented = set()
    for row in re.findall(r"^\| (`[^|]+) \|", table, re.MULTILINE):
        folder = ""
        for name in re.findall(r"[\w*./]+", row):
            folder = name.rpartition("/")[0] or folder
            documented.add(name if "/" in name else f"{folder}/{name}")
    assert len(documented) > 10
    for name in documented:
        assert any(
            fnmatchcase(name.rstrip("/"), pattern.removesuffix("/*"))
            or fnmatchcase(name.replace("*", "pydi_fs"), pattern)
            for room in ROOMS
            for pattern in room.paths
        ), f"{name} is documented as a room and has no row in ROOMS"


def impurities(path: Path) -> Iterator[str]:
    forbidden = IMPURE_MODULES - (KEY_MODULES if fits(path, MAY_DRAW_KEYS) else set())
    for line, module in imported(path):
        if module.split(".")[0] in forbidden:
            yield f"{relative(path)}:{line}: imports {module}"
    for node in ast.walk(parsed(path)):
        where = f"{relative(path)}:{getattr(node, 'lineno', 0)}"
        match node:
            case ast.Call(func=ast.Name(id="open" | "print" | "input" as name)):
                yield f"{where}: calls {name}()"
            case ast.Attribute(value=ast.Name(id="os"), attr=attr) if not (
                attr.isupper() or attr in PURE_OS_NAMES
            ):
                if not (attr == "urandom" and fits(path, MAY_DRAW_KEYS)):
                    yield f"{where}: uses os.{attr}"
            case ast.Attribute(value=ast.Name(id="sqlite3"), attr="connect"):
                yield f"{where}: opens a database"
            case ast.Attribute(attr="now" | "utcnow" | "today" as attr, value=ast.Name(id=name)):
                if name in ("datetime", "date"):
                    yield f"{where}: reads the clock with {name}.{attr}"
            case _:
                pass
    for line, module in imported(path):
        if module in ("os.path", "os"):
            continue
        if module.startswith("os."):
            yield f"{relative(path)}:{line}: import os itself, so that its use can be seen"


@pytest.mark.parametrize(
    "path", [p for p in sources(*PACKAGES) if fits(p, PURE) and not fits(p, NOT_PURE)], ids=relative
)
def test_pure_rooms_touch_nothing(path: Path) -> None:
    """No clock, chance, socket, file, thread or event loop in the rooms that the simulator runs."""
    wrong = list(impurities(path))
    assert not wrong, "\n".join(wrong)


def test_sql_of_the_tree_is_deterministic() -> None:
    """No statement of the tree asks SQLite for the time or for chance."""
    own_time = re.compile(r"\bCURRENT_(TIME|DATE)|\brandom(blob)?\s*\(|'now'", re.IGNORECASE)
    wrong = [
        f"{relative(path)}:{node.lineno}"
        for path in sources("pydi_node/tree")
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and own_time.search(node.value)
    ]
    assert not wrong, "\n".join(wrong)


# --- habits --------------------------------------------------------------------------------------

CATCH_ALL = ("Exception", "BaseException")
EVERY_FILE = sources(*PACKAGES, "tests")


def comments(path: Path) -> Iterator[tuple[int, str]]:
    for token in tokenize.generate_tokens(io.StringIO(path.read_text()).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


@pytest.mark.parametrize("path", EVERY_FILE, ids=relative)
def test_nothing_is_left_for_later(path: Path) -> None:
    """No to-do marks; an ignored type or lint finding names its code."""
    later = re.compile(r"\b(TO" "DO|FIX" "ME|X" r"XX)\b")
    wrong = [
        f"{relative(path)}:{line}: {text}"
        for line, text in comments(path)
        if later.search(text)
        or re.search(r"type: ignore(?!\[)", text)
        or re.search(r"noqa(?!: ?[A-Z])", text)
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("path", EVERY_FILE, ids=relative)
def test_file_is_one_subject(path: Path) -> None:
    """No file is longer than one subject needs."""
    lines = len(path.read_text().splitlines())
    assert lines <= LINES_MAX_OF.get(relative(path), LINES_MAX), f"{relative(path)}: {lines} lines"


@pytest.mark.parametrize("path", EVERY_FILE, ids=relative)
def test_handlers_name_what_they_catch(path: Path) -> None:
    """No bare ``except``, and no handler for everything that drops it without a word."""
    wrong = []
    for node in ast.walk(parsed(path)):
        if not isinstance(node, ast.ExceptHandler):
            continue
        catches_all = isinstance(node.type, ast.Name) and node.type.id in CATCH_ALL
        if node.type is None:
            wrong.append(f"{relative(path)}:{node.lineno}: bare except")
        elif catches_all and all(isinstance(step, ast.Pass) for step in node.body):
            wrong.append(f"{relative(path)}:{node.lineno}: drops every exception")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("path", sources(*PACKAGES), ids=relative)
def test_module_says_what_it_is_for(path: Path) -> None:
    """Every module with code opens with a docstring."""
    module = parsed(path)
    assert not module.body or ast.get_docstring(module), f"{relative(path)} has no docstring"


def test_asserts_are_never_compiled_away() -> None:
    """Own invariants are asserts, so every command refuses to run under ``python -O``."""
    for command in ("pydi_node/cli.py", "pydi_fs/cli.py", "pydi_fs/mount_cli.py"):
        path = ROOT / command
        if path.exists():
            names = {n.attr for n in ast.walk(parsed(path)) if isinstance(n, ast.Attribute)}
            debug = {n.id for n in ast.walk(parsed(path)) if isinstance(n, ast.Name)}
            assert "optimize" in names or "__debug__" in debug, f"{command} runs under -O"


def test_checks_of_this_file_can_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each kind of wrong import and impurity is found in a file that has it."""
    monkeypatch.setattr("tests.test_tidy.ROOT", tmp_path)
    (tmp_path / "pydi_node/consensus").mkdir(parents=True)
    bad = tmp_path / "pydi_node/consensus/bad.py"
    bad.write_text(
        "import time\nimport os\nimport sqlite3\nfrom datetime import datetime\n"
        "from pydi_node.runtime import clock\nfrom ..runtime import disk\n"
        "os.stat('.')\nos.O_RDONLY\nos.fsencode('')\nopen('x')\nsqlite3.connect('x')\n"
        "datetime.now()\n"
    )
    found = "\n".join(impurities(bad))
    for expected in ("imports time", "os.stat", "open()", "database", "the clock"):
        assert expected in found
    assert "O_RDONLY" not in found
    assert "fsencode" not in found
    (tmp_path / "pydi_node/runtime").mkdir()
    modules = {module for _, module in imported(bad)}
    assert {"pydi_node.runtime.clock", "pydi_node.runtime.disk"} <= modules
    assert not is_allowed("pydi_node.runtime.clock", room_of(bad))
    assert is_allowed("pydi_node.ids", room_of(bad))
    assert is_allowed("pydi_node.consensus.raft", room_of(bad))
    assert is_allowed("sqlite3", room_of(bad))
