"""Runs independent file system suites in a folder of a mount, and holds them against one list.

    scripts/posix-suites FOLDER --sources DIR [SUITE[:CASE]...]

Called by a person, as root, with a mounted PyDi. The suites are not part of this repository:
DIR holds their sources under the names in SUITES below, and what is not built yet is built there.
`stress-ng` is taken from the PATH. A suite whose sources are missing is reported and skipped.

Every case runs in a folder of its own below FOLDER, with a deadline. Exit code 0: all cases that
ran passed or stand in posix_expected.toml; 1: another one failed, or one of these passed; 2: usage.
It changes nothing outside FOLDER, the sources, and the folder of its logs.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

EXPECTED = Path(__file__).with_name("posix_expected.toml")
BUILD_DEADLINE_S = 1800.0
CASE_DEADLINE_S = 280.0
SKIPPED = 32  # LTP's exit code for what this machine has not got
COMMON_LIMIT_FILES = 1024  # some cases open as many files as they may

FSX_OPERATIONS = 5000
# With and without mapped reads and writes, copies, closing, syncing, dropping caches, direct IO.
FSX_STYLES = {
    "all": "",
    "no-copy": "-E",
    "no-mmap": "-R -W",
    "no-mapped-writes": "-W",
    "sync": "-y",
    "flush": "-f",
    "reopen": "-c 20",
    "large": "-O -o 9000 -l 3000000",
    "direct": "-Z -R -W -r 4096 -w 4096 -t 4096",
    "aio": "-A -c 5",
}
FSSTRESS_SEEDS = (1, 2, 3)

# Folders of LTP's system call tests that are about files.
LTP_CALLS = (
    "access chmod chown copy_file_range creat dup faccessat fallocate fchmod fchmodat fchown"
    " fchownat fdatasync fgetxattr flock fsetxattr fstat fstatat fsync ftruncate futimesat"
    " getdents getxattr lchown lgetxattr link linkat listxattr lseek lstat mkdir mkdirat mknod"
    " mknodat mmap msync open openat posix_fadvise pread preadv pwrite pwritev read readahead"
    " readlink readlinkat readv removexattr rename renameat renameat2 rmdir sendfile setxattr"
    " splice stat statfs statx symlink symlinkat sync syncfs sync_file_range truncate unlink"
    " unlinkat utime utimensat utimes write writev"
)
# What of its file system tests does not fill the disk or last for minutes.
LTP_FS = (
    "gf02 gf03 gf04 gf05 gf19 gf27 gf28 fs_inod01 linker01 openfile01 inode01 stream01"
    " stream02 stream03 stream04 stream05 ftest01 ftest02 ftest03 ftest04 ftest05 ftest06"
    " ftest07 ftest08 lftest01 writetest01 fs_racer"
)
# Marks of tests that make file systems of their own, which says nothing of the mount.
LTP_FOREIGN = re.compile(
    rb"\.(needs_device|all_filesystems|mount_device|format_device|needs_devfs|needs_rofs"
    rb"|dev_min_size)\b|\btst_acquire_device\b"
)

STRESSORS = (
    "access chattr chdir chmod chown copy-file dentry dir dirdeep dup fallocate fcntl fiemap"
    " file-ioctl filename flock fpunch fstat getdent hdd inode-flags io lease link locka lockf"
    " lockofd mmap mmapaddr mknod open readahead rename seek sendfile splice symlink"
    " sync-file tee touch unlink utime verity xattr"
)
STRESS_SECONDS = 5


@dataclass(frozen=True, slots=True)
class Case:
    """One program run of a suite. ``command`` runs in a fresh folder on the mount."""

    name: str
    command: str  # for sh; $HERE is that folder
    directory: Path | None = None  # where it runs, when not in $HERE


@dataclass(frozen=True, slots=True)
class Suite:
    """Where its sources are, how they are built, and what is run of them."""

    cases: Callable[[Path], Iterator[Case]]
    source: str = ""  # folder in --sources; "": no sources
    built: str = ""  # is there when it is built
    build: str = ""  # for sh, in the folder of the sources
    program: str = ""  # must be on the PATH


def pjdfstest(source: Path) -> Iterator[Case]:
    for folder in sorted((source / "tests").iterdir()):
        if folder.is_dir():
            yield Case(folder.name, f"prove -r {folder}")


def fsx(source: Path) -> Iterator[Case]:
    for name, options in FSX_STYLES.items():
        yield Case(name, f"{source}/ltp/fsx -q -S 1 -N {FSX_OPERATIONS} {options} file")


def fsstress(source: Path) -> Iterator[Case]:
    for seed in FSSTRESS_SEEDS:
        yield Case(f"seed-{seed}", f"{source}/ltp/fsstress -d . -p 4 -n 500 -s {seed}")


def connectathon(source: Path) -> Iterator[Case]:
    for name in ("basic", "general", "special", "lock"):
        # It removes and makes its folder by itself.
        command = f'NFSTESTDIR="$HERE/t" sh ./runtests -{name[0]} -f "$HERE/t"'
        yield Case(name, command, directory=source)


def ltp(source: Path) -> Iterator[Case]:
    programs = {
        path.name: path
        for part in ("kernel/fs", "kernel/syscalls")
        for path in sorted((source / "testcases" / part).rglob("*"))
        if path.is_file() and os.access(path, os.X_OK)
    }
    prefix = f'export TMPDIR="$HERE" LTPROOT={source} LTP_TIMEOUT_MUL=4;'
    calls = LTP_CALLS.split()
    for table, wanted in (("fs", set(LTP_FS.split())), ("syscalls", None)):
        for line in (source / "runtest" / table).read_text().splitlines():
            name, _, command = line.partition(" ")
            program = programs.get(command.split(" ")[0]) if command else None
            if program is None or name.startswith("#"):
                continue
            code = program.with_name(program.name.removesuffix("_64") + ".c")
            if wanted is None:
                if program.parent.name not in calls or not code.exists():
                    continue
            elif name not in wanted:
                continue
            if code.exists() and LTP_FOREIGN.search(code.read_bytes()):
                continue
            path = f"PATH={program.parent}:{source}/testcases/lib:$PATH"
            # The system calls' tests go to $TMPDIR by themselves, with helpers from where they are.
            directory = program.parent if wanted is None else None
            yield Case(name, f"{prefix} {path}; {command}", directory)


def stress_ng(_source: Path) -> Iterator[Case]:
    known = subprocess.check_output(["stress-ng", "--stressors"], text=True).split()
    for name in STRESSORS.split():
        if name not in known:
            continue  # it came with a later version
        options = f"--{name} 2 --timeout {STRESS_SECONDS}s --verify --oomable --temp-path ."
        # Some want room: bounded, so that a small disk will do.
        yield Case(name, f"stress-ng {options} --hdd-bytes 32M --fallocate-bytes 32M")


BUILD_XFSTESTS = (
    "make configure && ./configure && make include/builddefs && make -C lib && make -C ltp"
)
SUITES = {
    "pjdfstest": Suite(
        pjdfstest, "pjdfstest", "pjdfstest", "autoreconf -ifs && ./configure && make", "prove"
    ),
    "fsx": Suite(fsx, "xfstests", "ltp/fsx", BUILD_XFSTESTS),
    "fsstress": Suite(fsstress, "xfstests", "ltp/fsstress", BUILD_XFSTESTS),
    "connectathon": Suite(
        connectathon, "cthon04", "lock/tlocklfs", "make -k; make -C lock tlocklfs tlock64"
    ),
    "ltp": Suite(
        ltp, "ltp", "testcases/kernel/fs/ftest/ftest01",
        "make autotools && ./configure && make -C lib && make -C libs;"
        " cd testcases; for d in lib kernel/fs kernel/syscalls; do make -k -C $d; done",
    ),
    "stress-ng": Suite(stress_ng, program="stress-ng"),
}  # fmt: skip


class Termination:
    """SIGTERM ends this script, but not while a process is being started: that would be left."""

    def __init__(self) -> None:
        self._wanted = self._held = False
        signal.signal(signal.SIGTERM, self._on_signal)

    def hold(self) -> None:
        self._held = True

    def let(self) -> None:
        self._held = False
        if self._wanted:
            sys.exit(128 + signal.SIGTERM)

    def _on_signal(self, *_: object) -> None:
        self._wanted = True
        if not self._held:
            self.let()


class Runner:
    """One run: where it works, what it was told, what came of it."""

    def __init__(self, folder: Path, sources: Path | None, logs: Path, expected: Path) -> None:
        self._termination = Termination()
        self._folder = folder
        self._sources = sources
        self._logs = logs
        self._expected = tomllib.loads(expected.read_text())
        self.surprises: list[str] = []

    def run(self, name: str, only: set[str]) -> None:
        suite = SUITES[name]
        source = (self._sources or Path()) / suite.source
        if suite.program and shutil.which(suite.program) is None:
            print(f"{name}: skipped, {suite.program} is not installed")
            return
        if suite.source and (self._sources is None or not source.is_dir()):
            print(f"{name}: skipped, there is no {suite.source} below --sources")
            return
        if suite.source and not (source / suite.built).exists():
            print(f"{name}: building {source}", flush=True)
            self._shell(suite.build, source, self._logs / f"{name}.build.log", BUILD_DEADLINE_S)
            if not (source / suite.built).exists():
                sys.exit(f"{name}: not built; see {self._logs / f'{name}.build.log'}")
        counts = {"passed": 0, "skipped": 0, "failed": 0, "expected": 0}
        for case in suite.cases(source):
            if not only or case.name in only:
                counts[self._case(name, case)] += 1
        print(f"{name}: " + ", ".join(f"{n} {what}" for what, n in counts.items()), flush=True)

    def _case(self, suite: str, case: Case) -> str:
        """Runs one; "passed", "skipped", "failed" or "expected"."""
        here = Path(tempfile.mkdtemp(prefix=f"{suite}-", dir=self._folder))
        here.chmod(0o777)  # the suites become other users
        log = self._logs / f"{suite}.{case.name}.log"
        code = self._shell(case.command, case.directory or here, log, CASE_DEADLINE_S, here)
        shutil.rmtree(here, ignore_errors=True)
        reason = self._expected.get(suite, {}).get(case.name)
        if code == 0 and reason is None:
            return "passed"
        if code == SKIPPED and suite == "ltp":
            return "skipped"
        what = "passed, though it is expected to fail" if code == 0 else f"failed ({code})"
        if code != 0 and reason is not None:
            return "expected"
        self.surprises.append(f"{suite}:{case.name} {what}; see {log}")
        print(self.surprises[-1], flush=True)
        return "failed"

    def _shell(
        self, command: str, directory: Path, log: Path, deadline_s: float, here: Path | None = None
    ) -> int | str:
        """Exit code of a shell's command, or what ended it."""
        limit = f"ulimit -n {COMMON_LIMIT_FILES}; " if here else ""
        with open(log, "wb") as output:
            self._termination.hold()
            process = subprocess.Popen(
                ["sh", "-c", limit + command], cwd=directory, stdin=subprocess.DEVNULL,
                stdout=output, stderr=output, start_new_session=True,
                env={**os.environ, "HERE": str(here or ""), "LC_ALL": "C"},
            )  # fmt: skip
            try:
                self._termination.let()
                return process.wait(deadline_s)
            except subprocess.TimeoutExpired:
                return f"not within {deadline_s:.0f} s"
            finally:
                # Also what it left behind, and when this script itself is ended. A session of its
                # own: nobody else's processes.
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="posix-suites", description="independent POSIX suites in a folder of a mount"
    )
    parser.add_argument("folder", type=Path, help="an existing folder on the mount")
    parser.add_argument("suites", nargs="*", metavar="SUITE[:CASE]", help=", ".join(SUITES))
    parser.add_argument("--sources", type=Path, metavar="DIR", help="where the suites' sources are")
    parser.add_argument("--expected", type=Path, metavar="FILE", default=EXPECTED,
                        help="the list of expected failures (%(default)s)")  # fmt: skip
    parser.add_argument("--logs", type=Path, metavar="DIR", help="for what they print (a new one)")
    arguments = parser.parse_intermixed_args()
    if not arguments.folder.is_dir():
        parser.error(f"{arguments.folder} is not a folder")
    wanted: dict[str, set[str]] = {}
    for word in arguments.suites or SUITES:
        name, _, case = word.partition(":")
        if name not in SUITES:
            parser.error(f"there is no suite {name!r}: expected one of {', '.join(SUITES)}")
        wanted.setdefault(name, set())
        if case:
            wanted[name].add(case)
    logs = arguments.logs or Path(tempfile.mkdtemp(prefix="posix-suites-"))
    logs.mkdir(parents=True, exist_ok=True)
    sources = arguments.sources.resolve() if arguments.sources else None
    runner = Runner(arguments.folder.resolve(), sources, logs.resolve(), arguments.expected)
    for name, only in wanted.items():
        runner.run(name, only)
    print(f"{len(runner.surprises)} surprises; what the suites printed is in {logs}")
    return 1 if runner.surprises else 0


if __name__ == "__main__":
    sys.exit(main())
