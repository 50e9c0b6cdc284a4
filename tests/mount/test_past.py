"""The tree as it was, below ``.pydi/at`` on the mount: read-only, not listed, for every tool."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

import pytest

from tests.harness.mounts import run
from tests.harness.procs import wait_until


def root_of(folder: Path) -> Path:
    """The mount point above it."""
    return next(path for path in (folder, *folder.parents) if os.path.ismount(path))


def moment_after_now(root: Path) -> str:
    """A name of a moment, exact to the second, that everything done so far on the mount belongs to:
    what it has not told its node yet would get the time at which it does."""
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
    second = int(time.time())
    wait_until(lambda: time.time() >= second + 1, "the second is over")
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(second))


def test_what_was_is_read_by_ordinary_tools(folder: Path, tmp_path: Path) -> None:
    """A directory of files, links and attributes is changed and removed: at the moment before, it
    is as it was, for cp, diff and find; the newest version is untouched by all that."""
    root = root_of(folder)
    tree = folder / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "a").write_bytes(b"first" * 100)
    (tree / "sub" / "large").write_bytes(os.urandom(1_500_000))
    os.symlink("a", tree / "link")
    os.setxattr(tree / "a", "user.colour", b"blue")
    saved = tmp_path / "saved"
    run("cp", "-a", tree, saved)
    moment = moment_after_now(root)
    (tree / "a").write_bytes(b"second")
    os.setxattr(tree / "a", "user.colour", b"red")
    (tree / "sub" / "large").unlink()
    (tree / "link").unlink()
    (tree / "new").write_bytes(b"")

    then = root / ".pydi" / "at" / moment / tree.relative_to(root)
    assert (then / "a").read_bytes() == b"first" * 100
    assert os.getxattr(then / "a", "user.colour") == b"blue"
    assert os.readlink(then / "link") == "a"
    assert sorted(os.listdir(then)) == ["a", "link", "sub"]
    run("diff", "-r", saved, then)
    run("cp", "-a", then, folder / "back")
    run("diff", "-r", saved, folder / "back")
    assert run("find", then, "-type", "f").count("\n") == 2
    assert (tree / "a").read_bytes() == b"second"
    assert os.stat(then / "a").st_size == 500
    assert os.stat(then / "a").st_ino != os.stat(tree / "a").st_ino

    assert ".pydi" not in os.listdir(root)
    assert os.listdir(root / ".pydi") == ["at"]
    assert os.listdir(root / ".pydi" / "at") == []


def test_nothing_there_can_be_changed(folder: Path) -> None:
    """Writing, making, renaming, removing, attributes: EROFS. What is no moment, or not kept, is
    not there."""
    root = root_of(folder)
    (folder / "f").write_bytes(b"content")
    os.mkdir(folder / "d")
    moment = moment_after_now(root)
    then = root / ".pydi" / "at" / moment / folder.relative_to(root)
    calls = [
        lambda: os.open(then / "f", os.O_WRONLY),
        lambda: os.open(then / "f", os.O_RDONLY | os.O_TRUNC),
        lambda: os.open(then / "new", os.O_WRONLY | os.O_CREAT),
        lambda: os.mkdir(then / "new"),
        lambda: os.unlink(then / "f"),
        lambda: os.rmdir(then / "d"),
        lambda: os.rename(then / "f", folder / "g"),
        lambda: os.rename(folder / "f", then / "g"),
        lambda: os.link(then / "f", folder / "g"),
        lambda: os.symlink("x", then / "s"),
        lambda: os.chmod(then / "f", 0o600),
        lambda: os.truncate(then / "f", 0),
        lambda: os.setxattr(then / "f", "user.a", b"b"),
        lambda: os.mkdir(root / ".pydi" / "new"),
        lambda: os.mkdir(root / ".pydi" / "at" / "new"),
        lambda: os.rename(folder / "d", root / ".pydi"),
    ]
    for number, call in enumerate(calls):
        with pytest.raises(OSError) as refused:
            call()
        allowed = {errno.EROFS, errno.EXDEV, errno.ENOTEMPTY, errno.EEXIST}
        assert refused.value.errno in allowed, (number, refused.value)
    assert (then / "f").read_bytes() == b"content"
    assert (folder / "f").read_bytes() == b"content"
    for name in ("soon", "9999999999", "2026-13-01"):
        assert not (root / ".pydi" / "at" / name).exists()
