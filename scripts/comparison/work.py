"""One row of the comparison in one directory: ``python work.py ROW DIR SOURCES SCALE``.

Called by `rounds` once for each row and system, as a program of its own; prints one JSON line with
what it took. It knows nothing of what is mounted there, and imports nothing of PyDi, so that all
systems meet the same program. Rows build on each other: what one creates, later ones look at,
rename and remove.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

KIB = 1 << 10
MIB = 1 << 20
PAGE_BYTES = 4 * KIB
CHUNK_BYTES = MIB
PROGRAMS = 16  # of a row with many at once
START_TIMEOUT_S = 60.0


class Sizes(NamedTuple):
    """How much each row does."""

    files: int  # small files of one program
    files_each: int  # small files of each of PROGRAMS
    file_bytes: int  # of the sequential file
    page_file_bytes: int  # of the file with random accesses
    pages: int  # random accesses
    appends: int
    archive_files: int  # in the archive; a quarter of it is in the repository and in the wheel
    inserts: int

    @classmethod
    def of(cls, scale: float) -> Sizes:
        def scaled(amount: int, least: int) -> int:
            return max(least, round(amount * scale))

        return cls(
            files=scaled(1000, 5),
            files_each=scaled(100, 2),
            file_bytes=scaled(256, 2) * MIB,
            page_file_bytes=scaled(64, 1) * MIB,
            pages=scaled(2000, 10),
            appends=scaled(2000, 10),
            archive_files=scaled(5000, 20),
            inserts=scaled(200, 5),
        )


class Place(NamedTuple):
    """Where a row works."""

    directory: Path  # on the system that is measured
    sources: Path  # made by `sources`, on a plain disk
    sizes: Sizes


class Figure(NamedTuple):
    amount: int  # operations, or bytes where the unit of the row is MiB/s
    seconds: float


class Row(NamedTuple):
    key: str
    phase: str
    title: str
    unit: str  # "ops/s", "MiB/s" or "s"
    run: Callable[[Place], Figure]
    needs: str = ""  # key of the row that leaves the files as this one expects them


def timed(amount: int, action: Callable[[], object]) -> Figure:
    start = time.perf_counter()
    action()
    return Figure(amount, time.perf_counter() - start)


# --- small files ---------------------------------------------------------------------------------

Each = Callable[[str, list[str]], None]  # (folder, full paths of its files)
CONTENT = bytes(range(256)) * 4


def create(folder: str, paths: list[str]) -> None:
    for path in paths:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        os.write(fd, CONTENT)
        os.close(fd)


def create_and_sync(folder: str, paths: list[str]) -> None:
    for path in paths:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        os.write(fd, CONTENT)
        os.fsync(fd)
        os.close(fd)


def look(folder: str, paths: list[str]) -> None:
    for path in paths:
        if os.stat(path).st_size != KIB:
            raise SystemExit(f"{path}: not the size that was written")


def read(folder: str, paths: list[str]) -> None:
    for path in paths:
        fd = os.open(path, os.O_RDONLY)
        if os.read(fd, 2 * KIB) != CONTENT:
            raise SystemExit(f"{path}: not what was written")
        os.close(fd)


def scan(folder: str, paths: list[str]) -> None:
    with os.scandir(folder) as entries:
        found = sum(entry.stat().st_size == KIB for entry in entries)
    if found != len(paths):
        raise SystemExit(f"{folder}: {found} files instead of {len(paths)}")


def rename(folder: str, paths: list[str]) -> None:
    for path in paths:
        os.rename(path, f"{path}.new")


def unlink(folder: str, paths: list[str]) -> None:
    for path in paths:
        os.unlink(f"{path}.new")


def alone(set_name: str, each: Each) -> Callable[[Place], Figure]:
    """One program on the files of one folder."""

    def run(place: Place) -> Figure:
        folder = place.directory / set_name
        folder.mkdir(exist_ok=True)
        paths = [f"{folder}/{number:06d}" for number in range(place.sizes.files)]
        return timed(len(paths), lambda: each(str(folder), paths))

    return run


def many(set_name: str, each: Each) -> Callable[[Place], Figure]:
    """PROGRAMS at once, each in a folder of its own; from the first's start to the last's end."""

    def run(place: Place) -> Figure:
        context = multiprocessing.get_context("fork")
        barrier = context.Barrier(PROGRAMS)
        spans = context.SimpleQueue()

        def program(number: int) -> None:
            folder = place.directory / f"{set_name}{number}"
            folder.mkdir(exist_ok=True)
            paths = [f"{folder}/{index:06d}" for index in range(place.sizes.files_each)]
            barrier.wait(START_TIMEOUT_S)
            start = time.perf_counter()
            each(str(folder), paths)
            spans.put((start, time.perf_counter()))

        programs = [context.Process(target=program, args=(n,)) for n in range(PROGRAMS)]
        for process in programs:
            process.start()
        for process in programs:
            process.join()
        if any(process.exitcode for process in programs):
            raise SystemExit("one of the programs failed")
        starts, ends = zip(*(spans.get() for _ in programs), strict=True)
        return Figure(PROGRAMS * place.sizes.files_each, max(ends) - min(starts))

    return run


# --- large files ---------------------------------------------------------------------------------


def write_sequential(place: Place) -> Figure:
    chunk = random.Random(1).randbytes(CHUNK_BYTES)
    path = place.directory / "sequential"

    def action() -> None:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        for _ in range(place.sizes.file_bytes // CHUNK_BYTES):
            write_all(fd, chunk)
        os.fsync(fd)
        os.close(fd)

    return timed(place.sizes.file_bytes, action)


def read_sequential(place: Place) -> Figure:
    path = place.directory / "sequential"
    buffer = bytearray(CHUNK_BYTES)

    def action() -> None:
        fd = os.open(path, os.O_RDONLY)
        total = 0
        while count := os.readv(fd, [buffer]):
            total += count
        os.close(fd)
        if total != place.sizes.file_bytes:
            raise SystemExit(f"{path}: {total} bytes instead of {place.sizes.file_bytes}")

    return timed(place.sizes.file_bytes, action)


def write_pages(place: Place) -> Figure:
    """4 KiB at seeded places; the file is written, and synced, before the clock starts."""
    path = place.directory / "pages"
    chunk = random.Random(2).randbytes(CHUNK_BYTES)
    with path.open("wb") as file:
        for _ in range(place.sizes.page_file_bytes // CHUNK_BYTES):
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())

    def action() -> None:
        fd = os.open(path, os.O_WRONLY)
        for offset in page_offsets(place.sizes, seed=3):
            os.pwrite(fd, chunk[:PAGE_BYTES], offset)
        os.fsync(fd)
        os.close(fd)

    return timed(place.sizes.pages, action)


def read_pages(place: Place) -> Figure:
    path = place.directory / "pages"

    def action() -> None:
        fd = os.open(path, os.O_RDONLY)
        for offset in page_offsets(place.sizes, seed=4):
            if len(os.pread(fd, PAGE_BYTES, offset)) != PAGE_BYTES:
                raise SystemExit(f"{path}: nothing at {offset}")
        os.close(fd)

    return timed(place.sizes.pages, action)


def append(place: Place) -> Figure:
    """4 KiB at a time to one open file, as a log is written, and one fsync."""
    block = random.Random(5).randbytes(PAGE_BYTES)

    def action() -> None:
        fd = os.open(place.directory / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        for _ in range(place.sizes.appends):
            write_all(fd, block)
        os.fsync(fd)
        os.close(fd)

    return timed(place.sizes.appends, action)


def page_offsets(sizes: Sizes, seed: int) -> Iterator[int]:
    chance = random.Random(seed)
    pages = sizes.page_file_bytes // PAGE_BYTES
    return (chance.randrange(pages) * PAGE_BYTES for _ in range(sizes.pages))


def write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


# --- programs ------------------------------------------------------------------------------------

# Neither a developer's settings nor a folder that belongs to a repository further up matter.
GIT_ENVIRONMENT = {
    "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_SYSTEM": "/dev/null", "GIT_AUTHOR_NAME": "x",
    "GIT_AUTHOR_EMAIL": "x@example.org", "GIT_COMMITTER_NAME": "x",
    "GIT_COMMITTER_EMAIL": "x@example.org", "GIT_TERMINAL_PROMPT": "0",
}  # fmt: skip


def command(*arguments: str | Path) -> None:
    environment = {**os.environ, **GIT_ENVIRONMENT}
    done = subprocess.run(
        list(map(str, arguments)), stdin=subprocess.DEVNULL, capture_output=True, text=True,
        env=environment, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, arguments))}: {(done.stderr or done.stdout).strip()}")


def unpack(place: Place) -> Figure:
    folder = place.directory / "unpacked"
    folder.mkdir()
    archive = place.sources / "archive.tar"
    return timed(1, lambda: command("tar", "-xf", archive, "-C", folder))


def remove_tree(place: Place) -> Figure:
    return timed(1, lambda: shutil.rmtree(place.directory / "unpacked"))


def git_clone(place: Place) -> Figure:
    origin, clone = place.sources / "repository.git", place.directory / "clone"
    return timed(1, lambda: command("git", "clone", "-q", "--no-hardlinks", origin, clone))


def git_status(place: Place) -> Figure:
    return timed(1, lambda: command("git", "-C", place.directory / "clone", "status", "-s"))


def git_checkout(place: Place) -> Figure:
    clone = place.directory / "clone"
    return timed(1, lambda: command("git", "-C", clone, "checkout", "-q", "changed"))


def pip_install(place: Place) -> Figure:
    (wheel,) = place.sources.glob("*.whl")
    return timed(
        1,
        lambda: command(
            sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps",
            "--no-compile", "--no-cache-dir", "--ignore-installed", "--disable-pip-version-check",
            "--root-user-action=ignore", "--prefix", place.directory / "installed", wheel,
        ),
    )  # fmt: skip


def insert(place: Place) -> Figure:
    """One row for each transaction, as SQLite does it unless told otherwise: fsync each time."""
    connection = sqlite3.connect(place.directory / "database", isolation_level=None)
    connection.execute("CREATE TABLE t (number INTEGER PRIMARY KEY, text TEXT)")

    def action() -> None:
        for number in range(place.sizes.inserts):
            connection.execute("INSERT INTO t VALUES (?, ?)", (number, "x" * 100))

    figure = timed(place.sizes.inserts, action)
    connection.close()
    return figure


# --- the table -----------------------------------------------------------------------------------

SIXTEEN = f", {PROGRAMS} programs"

# Between "write" and "cold" everything is restarted and all caches are dropped. Rows of "warm" are
# done twice, one right after the other, and only the second time counts.
PHASES = ("write", "cold", "warm", "change")

ROWS = (
    Row("create", "write", "create+write 1 KiB+close", "ops/s", alone("plain", create)),
    Row("create16", "write", f"create+write 1 KiB+close{SIXTEEN}", "ops/s", many("many", create)),
    Row("createsync", "write", "create+write 1 KiB+fsync+close", "ops/s",
        alone("synced", create_and_sync)),
    Row("createsync16", "write", f"create+write 1 KiB+fsync+close{SIXTEEN}", "ops/s",
        many("synced", create_and_sync)),
    Row("append", "write", "append 4 KiB, one fsync", "ops/s", append),
    Row("sequential", "write", "sequential write, fsync", "MiB/s", write_sequential),
    Row("pages", "write", "random write 4 KiB, one fsync", "ops/s", write_pages),
    Row("unpack", "write", "unpack an archive", "s", unpack),
    Row("clone", "write", "git clone", "s", git_clone),
    Row("checkout", "write", "git checkout", "s", git_checkout, "clone"),
    Row("pip", "write", "pip install", "s", pip_install),
    Row("sqlite", "write", "SQLite insert, one transaction each", "ops/s", insert),
    Row("statcold", "cold", "stat, cold", "ops/s", alone("plain", look), "create"),
    Row("readcold", "cold", "open+read 1 KiB+close, cold", "ops/s",
        alone("synced", read), "createsync"),
    Row("scancold16", "cold", f"scandir+stat, cold{SIXTEEN}", "ops/s",
        many("many", scan), "create16"),
    Row("readcold16", "cold", f"open+read 1 KiB+close, cold{SIXTEEN}", "ops/s",
        many("synced", read), "createsync16"),
    Row("seqcold", "cold", "sequential read, cold", "MiB/s", read_sequential, "sequential"),
    Row("pagescold", "cold", "random read 4 KiB, cold", "ops/s", read_pages, "pages"),
    Row("stat", "warm", "stat, warm", "ops/s", alone("plain", look), "create"),
    Row("stat16", "warm", f"stat, warm{SIXTEEN}", "ops/s", many("many", look), "create16"),
    Row("read", "warm", "open+read 1 KiB+close, warm", "ops/s",
        alone("synced", read), "createsync"),
    Row("read16", "warm", f"open+read 1 KiB+close, warm{SIXTEEN}", "ops/s",
        many("synced", read), "createsync16"),
    Row("scan", "warm", "scandir+stat, warm", "ops/s", alone("plain", scan), "create"),
    Row("seqwarm", "warm", "sequential read, warm", "MiB/s",
        read_sequential, "sequential"),
    Row("status", "warm", "git status", "s", git_status, "clone"),
    Row("rename", "change", "rename", "ops/s", alone("plain", rename), "create"),
    Row("rename16", "change", f"rename{SIXTEEN}", "ops/s", many("many", rename), "create16"),
    Row("unlink", "change", "unlink", "ops/s", alone("plain", unlink), "rename"),
    Row("unlink16", "change", f"unlink{SIXTEEN}", "ops/s", many("many", unlink), "rename16"),
    Row("remove", "change", "remove the unpacked archive", "s", remove_tree, "unpack"),
)  # fmt: skip


def parse_scale(text: str) -> float:
    """The argument of ``--scale``, for argparse."""
    value = float(text)
    if not 0 < value <= 100:
        raise argparse.ArgumentTypeError("more than 0, at most 100")
    return value


def command_line(row: Row, directory: Path, sources: Path, scale: float) -> list[str]:
    """Runs this file for one row; ``-I`` keeps this checkout's modules out of it."""
    place = (str(directory), str(sources), str(scale))
    return [sys.executable, "-I", __file__, row.key, *place]


def with_needed(keys: Sequence[str]) -> list[Row]:
    """These rows and those that make their files, in the order of the table."""
    by_key = {row.key: row for row in ROWS}
    wanted = set(keys)
    while missing := {by_key[key].needs for key in wanted} - wanted - {""}:
        wanted |= missing
    return [row for row in ROWS if row.key in wanted]


def main() -> None:
    parser = argparse.ArgumentParser(description="One row of the comparison in one directory.")
    parser.add_argument("row", choices=[row.key for row in ROWS])
    parser.add_argument("directory", type=Path)
    parser.add_argument("sources", type=Path)
    parser.add_argument("scale", type=float)
    arguments = parser.parse_args()
    place = Place(arguments.directory, arguments.sources, Sizes.of(arguments.scale))
    (row,) = (row for row in ROWS if row.key == arguments.row)
    print(json.dumps(row.run(place)._asdict()))


if __name__ == "__main__":
    main()
