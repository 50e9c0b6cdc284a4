"""Programs that people use every day, on a real mount. Each leaves what it would leave locally."""

from __future__ import annotations

import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from tests.harness.mounts import run
from tests.harness.procs import ROOT

SOURCE = Path("/usr/share/doc")
SOURCE_PACKAGES = 60  # of some hundred: enough for links, empty and compressed files


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree of other people's files, with what a copy may get wrong added."""
    target = tmp_path_factory.mktemp("source") / "documents"
    target.mkdir()
    if SOURCE.is_dir():
        for package in sorted(SOURCE.iterdir())[:SOURCE_PACKAGES]:
            if package.is_dir() and not package.is_symlink():
                run("cp", "-a", package, target)
    odd = target / "odd"
    odd.mkdir(mode=0o750)
    (odd / "empty").touch()
    (odd / "secret").write_bytes(b"s")
    (odd / "secret").chmod(0o400)
    (odd / "link").symlink_to("empty")
    (odd / "dangling").symlink_to("nowhere/at/all")
    os.link(odd / "secret", odd / "second name")
    (odd / "mebibyte").write_bytes(os.urandom(1 << 20))
    os.utime(odd / "mebibyte", ns=(10**18 + 1, 10**18 + 123456789))
    (odd / os.fsdecode(b"latin-1 \xe4\xf6\xfc")).write_text("bytes, not text")
    return target


def listing(directory: Path) -> str:
    """Kind, mode, owner, size of files, time and target of everything below, as find prints it."""
    shown = r"%P %y %m %U %G %l"
    lines = run("find", directory, "(", "-type", "d", "-printf", shown + r"\n", ")",
                "-o", "-printf", shown + r" %s %n %T@\n")  # fmt: skip
    return "".join(sorted(lines.splitlines(keepends=True)))


def test_cp_a_copies_everything(folder: Path, documents: Path) -> None:
    """cp -a into the mount: content, modes, owners, times, links are the source's."""
    run("cp", "-a", documents, folder / "copy")
    run("diff", "-r", "--no-dereference", documents, folder / "copy")
    assert listing(folder / "copy") == listing(documents)


def test_cp_a_copies_out_again(folder: Path, documents: Path, tmp_path: Path) -> None:
    """What went in comes out: a second copy from the mount to a local disk is the same tree."""
    run("cp", "-a", documents, folder / "copy")
    run("cp", "-a", folder / "copy", tmp_path / "out")
    run("diff", "-r", "--no-dereference", documents, tmp_path / "out")
    assert listing(tmp_path / "out") == listing(documents)


def test_tar_extracts(folder: Path, documents: Path, tmp_path: Path) -> None:
    """tar x on the mount gives the tree that was packed, hard links as hard links."""
    # GNU tar's own format has whole seconds only.
    run("tar", "-C", documents, "--format=posix", "-cf", tmp_path / "all.tar", ".")
    target = folder / "extracted"
    target.mkdir()
    run("tar", "-C", target, "-xpf", tmp_path / "all.tar")
    run("diff", "-r", "--no-dereference", documents, target)
    assert listing(target) == listing(documents)


def test_rsync_copies_and_finds_nothing_left(folder: Path, documents: Path) -> None:
    """rsync -aH onto the mount copies all; a second run has nothing to do."""
    if shutil.which("rsync") is None:
        pytest.skip("rsync is not installed")
    run("rsync", "-aH", f"{documents}/", folder / "synced")
    assert listing(folder / "synced") == listing(documents)
    again = run("rsync", "-aHi", "--checksum", f"{documents}/", folder / "synced")
    assert again == ""


def git(directory: Path, *arguments: str) -> str:
    return run("git", "-c", "user.name=n", "-c", "user.email=e@x", "-c", "gc.auto=0",
               "-c", "safe.directory=*", "-C", directory, *arguments)  # fmt: skip


def test_git_works_inside(folder: Path, tmp_path: Path) -> None:
    """clone, commit, branch, repack and fsck of a repository on the mount."""
    origin = tmp_path / "origin"
    origin.mkdir()
    git(origin, "init", "-q", "-b", "main")
    run("cp", "-a", ROOT / "pydi_node", origin / "code")
    git(origin, "add", ".")
    git(origin, "commit", "-qm", "first")
    run("git", "-c", "safe.directory=*", "clone", "-q", "--no-local", origin, folder / "clone")
    clone = folder / "clone"
    assert git(clone, "status", "--porcelain") == ""
    (clone / "new file").write_text("new\n")
    git(clone, "add", ".")
    git(clone, "commit", "-qm", "second")
    git(clone, "checkout", "-qb", "side", "HEAD~1")
    (clone / "other").write_text("other\n")
    git(clone, "add", ".")
    git(clone, "commit", "-qm", "third")
    git(clone, "merge", "-q", "-m", "merge", "main")
    git(clone, "repack", "-adq")
    git(clone, "fsck", "--full", "--strict")
    assert git(clone, "status", "--porcelain") == ""
    assert git(clone, "rev-list", "--count", "HEAD").strip() == "4"


@pytest.mark.parametrize("journal_mode", ["delete", "wal"])
def test_sqlite_database_lives_inside(folder: Path, journal_mode: str) -> None:
    """Transactions, a rollback, reopening and the integrity check of a database on the mount.

    WAL needs shared memory by mmap(2); where the binding cannot give it SQLite stays in the mode it
    had and says so, which is right too.
    """
    path = folder / "data.db"
    with closing(sqlite3.connect(path)) as database:
        (mode,) = database.execute(f"PRAGMA journal_mode={journal_mode}").fetchone()
        assert mode in (journal_mode, "delete")
        database.execute("CREATE TABLE t (k INTEGER PRIMARY KEY, v BLOB)")
        for batch in range(10):
            with database:
                database.executemany(
                    "INSERT INTO t VALUES (?, ?)",
                    [(batch * 100 + i, bytes([i]) * 500) for i in range(100)],
                )
        database.execute("DELETE FROM t WHERE k % 2")
        database.rollback()
        # More than the page cache holds is sorted in a temporary file, unlinked while open.
        database.execute("PRAGMA temp_store=FILE")
        database.execute("CREATE INDEX i ON t (v)")
        database.commit()
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert database.execute("SELECT count(*), sum(k) FROM t").fetchone() == (1000, 499500)
    assert [name for name in os.listdir(folder) if name != "data.db"] == []


def test_two_sqlite_connections_exclude_each_other(folder: Path) -> None:
    """While one program holds the write lock of a database, another one is told "locked"."""
    path = folder / "data.db"
    with (
        closing(sqlite3.connect(path, isolation_level=None)) as first,
        closing(sqlite3.connect(path, isolation_level=None, timeout=0)) as second,
    ):
        first.execute("CREATE TABLE t (k)")
        first.execute("BEGIN IMMEDIATE")
        first.execute("INSERT INTO t VALUES (1)")
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            second.execute("BEGIN IMMEDIATE")
        first.execute("COMMIT")
        second.execute("INSERT INTO t VALUES (2)")
        assert second.execute("SELECT count(*) FROM t").fetchone() == (2,)


def test_editor_saves_by_rename(folder: Path) -> None:
    """Write a temporary file, fsync it, rename it over: the name always has one whole version."""
    target = folder / "text"
    target.write_text("version 0\n")
    for version in range(1, 21):
        temporary = folder / ".text.swp"
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        os.write(fd, f"version {version}\n".encode())
        os.fsync(fd)
        os.close(fd)
        os.rename(temporary, target)
        assert target.read_text() == f"version {version}\n"
    assert os.listdir(folder) == ["text"]


def test_vim_saves(folder: Path) -> None:
    """vim itself, with backup files switched on, changes a file."""
    if shutil.which("vim") is None:
        pytest.skip("vim is not installed")
    target = folder / "text"
    target.write_text("one\ntwo\n")
    run("vim", "-es", "-u", "NONE", "-i", "NONE", "-c", "set backup writebackup",
        "-c", "%s/two/three/", "-c", "wq", target)  # fmt: skip
    assert target.read_text() == "one\nthree\n"


def test_program_in_the_mount_runs(folder: Path) -> None:
    """A binary copied into the mount is executed from there."""
    shutil.copy("/bin/ls", folder / "ls")
    assert run(folder / "ls", folder) == "ls\n"


def test_find_du_and_rm_agree(folder: Path, documents: Path) -> None:
    """find sees as many entries as the source has, rm -rf leaves nothing."""
    run("cp", "-a", documents, folder / "copy")
    assert len(run("find", folder / "copy").splitlines()) == len(
        run("find", documents).splitlines()
    )
    assert int(run("du", "-s", folder / "copy").split()[0]) > 0
    run("rm", "-rf", folder / "copy")
    assert os.listdir(folder) == []
