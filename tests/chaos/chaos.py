"""Three nodes and a mount; a source tree is copied in while one node at a time is killed, damaged
and started again; in the end nothing may be missing, different, or short of copies.

Used by test_chaos.py, bounded, and by ``scripts/chaos`` for as long as one likes. What a program
sees meanwhile is part of it: `cp` must not fail, and a reader that compares what was copied, past
the kernel's cache, must never meet an error or a wrong byte.

One node at a time: before the next one is hurt, the last one must be whole again, for two copies
can't survive two disks that lose the same blob. A file is damaged only where another node has it.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydi_node.errors import EXIT_OK, FileError, PydiError
from pydi_node.ids import BlobId, parse_blob_name
from pydi_node.records import BlobInfo
from pydi_node.wire.messages import Admin
from tests.harness.mounts import MountProcess, run
from tests.harness.procs import NodeProcess, pydi, wait_until
from tests.node.test_cluster import start_cluster, status
from tests.node.test_replication import set_setting, wait_storing

DEADLINE_S = 240.0  # for the cluster to be whole again: minutes, on a busy machine
FILE_DEADLINE_S = 0.2  # more for each file of a tree that is copied or compared
MOUNT_DEADLINE_S = 120  # the mount's own, in which a killed node must have been replaced
DAMAGE_SHARE = 0.2  # of a victim's files, each way
DAMAGE_FILES_MAX = 200
GRACE_S = 10  # the least that the setting takes
# Short enough to be waited for, or long enough to be replaced, so that surplus copies come and go.
OUTAGES_S = (0.0, 1.0, GRACE_S + 2.0)

# Reads what is in SOURCE from TARGET, again and again, past the kernel's cache, until it is killed;
# any error or difference ends it. A file that is not there yet is none.
READER = """
import os, random, sys
source, target, seed = sys.argv[1:]
names = [os.path.relpath(os.path.join(d, n), source)
         for d, _, files in os.walk(source) for n in files]
dice = random.Random(int(seed))
while True:
    name = dice.choice(names)
    with open(os.path.join(source, name), "rb") as file:
        expected = file.read()
    with open(os.path.join(target, name), "rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        found = file.read()
    if found != expected:
        sys.exit(f"{name}: {len(found)} bytes read, which are not the {len(expected)} written")
    print(flush=True)
"""


class Outcome(NamedTuple):
    """What was done until the end, for whoever wants to see that it was much."""

    trees: int
    kills: int
    deleted: int
    flipped: int
    reads: int


class Chaos:
    """One run; ``close`` it whatever happens."""

    def __init__(
        self,
        directory: Path,
        source: Path,
        seed: int,
        say: Callable[[str], None] = print,
        outages_s: Sequence[float] = OUTAGES_S,
    ) -> None:
        """directory: for everything that is made. source: the tree to copy, at least one file."""
        self._directory = directory
        self._source = source
        self._seed = seed
        self._dice = random.Random(seed)
        self._say = say
        self._outages_s = outages_s
        self._made: list[NodeProcess] = []
        self._mounts: list[MountProcess] = []
        self._reader: subprocess.Popen[bytes] | None = None
        self._reads = directory / "reads"
        files = sum(len(names) for _, _, names in os.walk(source))
        self._tree_deadline_s = DEADLINE_S + files * FILE_DEADLINE_S
        self._trees = self._kills = self._deleted = self._flipped = 0

    def live(self, events: int, until_s: float = 0.0) -> Outcome:
        """Everything. events: nodes hurt, at least. until_s: of time.monotonic(), at least."""
        self._start()
        copying: subprocess.Popen[bytes] | None = None
        done = 0
        while done < events or time.monotonic() < until_s:
            if copying is None or self._is_copied(copying):
                copying = self._copy_again()
            self._hurt(self._nodes[done % len(self._nodes)])
            done += 1
            self._require_reader()
        assert copying is not None
        wait_until(
            lambda: self._is_copied(copying), "the last tree is copied", self._tree_deadline_s
        )
        self._require_reader()
        self._end_reader()
        reads = self._reads.stat().st_size
        self._require_whole()
        return Outcome(self._trees, self._kills, self._deleted, self._flipped, reads)

    def close(self) -> None:
        self._end_reader()
        for mount in self._mounts:
            mount.close()
        for node in self._made:
            node.kill()

    # --- the world --------------------------------------------------------------------------------

    def _start(self) -> None:
        def make(name: str, *flags: str) -> NodeProcess:
            self._made.append(NodeProcess(self._directory / name, *flags))
            return self._made[-1]

        self._nodes = start_cluster(make, 3)
        for node in self._nodes:
            wait_storing(node, 2)
        set_setting(self._nodes[0], "grace_s", GRACE_S)
        set_setting(self._nodes[0], "scrub_bytes_per_s", 1 << 30)
        # Most content as files, which can be damaged, and some in the tree.
        set_setting(self._nodes[0], "inline_max_bytes", 512)
        self._mount = self._mount_through(self._nodes[0], "m")
        self._copy_to(self._mount.path / "tree-0")
        self._trees = 1
        with open(self._reads, "wb") as reads:
            self._reader = subprocess.Popen(
                [sys.executable, "-c", READER, self._source, self._mount.path / "tree-0",
                 str(self._seed)],
                stdin=subprocess.DEVNULL, stdout=reads, stderr=subprocess.PIPE,
            )  # fmt: skip

    def _mount_through(self, node: NodeProcess, name: str) -> MountProcess:
        flags = ("--deadline", str(MOUNT_DEADLINE_S))
        mount = MountProcess(self._directory / name, node.data_dir, "kernel", flags)
        self._mounts.append(mount)
        mount.start()
        return mount

    def _copy_to(self, target: Path) -> None:
        run("cp", "-r", self._source, target, deadline_s=self._tree_deadline_s)

    def _copy_again(self) -> subprocess.Popen[bytes]:
        target = self._mount.path / f"tree-{self._trees}"
        self._trees += 1
        return subprocess.Popen(
            ["cp", "-r", self._source, target], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE
        )

    def _is_copied(self, copying: subprocess.Popen[bytes]) -> bool:
        if copying.poll() is None:
            return False
        assert copying.stderr is not None
        if not copying.stderr.closed:
            _, errors = copying.communicate()
            assert copying.returncode == 0, f"cp failed: {errors.decode(errors='replace')[:2000]}"
        return True

    def _require_reader(self) -> None:
        assert self._reader is not None
        if self._reader.poll() is not None:
            assert self._reader.stderr is not None
            raise AssertionError(f"the reader met: {self._reader.stderr.read().decode()[-2000:]}")

    def _end_reader(self) -> None:
        if self._reader is not None:
            self._reader.kill()
            self._reader.wait()
            assert self._reader.stderr is not None
            self._reader.stderr.close()

    # --- one event --------------------------------------------------------------------------------

    def _hurt(self, victim: NodeProcess) -> None:
        """Killed, damaged, started, whole again."""
        number = int(victim.run["number"])
        helper = next(node for node in self._nodes if node is not victim)
        victim.kill()
        self._kills += 1
        pause_s = self._dice.choice(self._outages_s)
        end_s = time.monotonic() + pause_s
        wait_until(lambda: time.monotonic() >= end_s, "the outage is over", pause_s + 60)
        deleted, flipped = self._damage(victim, number, helper)
        self._say(
            f"node {number}: killed, away {pause_s:g} s,"
            f" {len(deleted)} files deleted, {len(flipped)} flipped"
        )
        victim.launch()
        victim.wait_ready()
        wait_storing(victim, 2)
        self._deleted += len(deleted)
        self._flipped += len(flipped)
        # The bits that nobody read: only the scrub finds them.
        scrub(victim)
        for path, content in {**deleted, **flipped}.items():
            wait_until(
                lambda path=path, content=content: self._is_right(victim, number, path, content),
                f"{path} is as it was, or not needed there any more", DEADLINE_S,
            )  # fmt: skip
        wait_until(lambda: is_whole(helper), "every blob has its copies", DEADLINE_S)

    def _damage(
        self, victim: NodeProcess, number: int, helper: NodeProcess
    ) -> tuple[dict[Path, bytes], dict[Path, bytes]]:
        """Files deleted and files with a flipped bit, each with what it was."""
        files = sorted((victim.data_dir / "blobs").glob("[0-9a-f][0-9a-f]/*"))
        self._dice.shuffle(files)
        count = min(DAMAGE_FILES_MAX, 1 + int(len(files) * DAMAGE_SHARE))
        hurt: list[dict[Path, bytes]] = [{}, {}]
        safe = self._safe(files[: 4 * count], number, helper)
        for at, path in enumerate(safe[: 2 * count]):
            content = path.read_bytes()
            hurt[at % 2][path] = content
            if at % 2 == 0:
                path.unlink()
            elif content:
                damaged = bytearray(content)
                damaged[self._dice.randrange(len(content))] ^= 1 << self._dice.randrange(8)
                # Another file in its place: whoever has the good one open, or mapped into the
                # kernel, goes on reading that, as nobody could protect it from its own disk.
                fresh = path.with_name(f".{path.name}")
                fresh.write_bytes(damaged)
                fresh.chmod(0o400)
                fresh.replace(path)
        return hurt[0], hurt[1]

    def _safe(self, files: Sequence[Path], number: int, helper: NodeProcess) -> list[Path]:
        """Those that another node really has, too."""
        others = {int(n.run["number"]): n for n in self._nodes if int(n.run["number"]) != number}
        found = []
        for path, info in self._infos(helper, files):
            copies = [
                blob_path(others[holder], info.blob) for holder in info.holders if holder in others
            ]
            if any(c.exists() and c.stat().st_size == info.size for c in copies):
                found.append(path)
        return found

    def _infos(self, helper: NodeProcess, files: Sequence[Path]) -> Iterator[tuple[Path, BlobInfo]]:
        """What the books say of these files' blobs."""
        blobs = {blob: path for path in files if (blob := parse_blob_name(path.name)) is not None}
        names = list(blobs)
        with helper.connect() as client:
            for start in range(0, len(names), 500):
                some = names[start : start + 500]
                for entry in client.call(Admin("whereabouts", {"blobs": some})):
                    blob = parse_blob_name(entry["blob"])
                    assert blob is not None
                    holders = tuple(h["node"] for h in entry["holders"])
                    yield blobs[blob], BlobInfo(blob, entry["size"], b"\0" * 32, holders)

    def _is_right(self, victim: NodeProcess, number: int, path: Path, content: bytes) -> bool:
        if path.exists() and path.read_bytes() == content:
            return True
        try:
            return all(number not in info.holders for _, info in self._infos(victim, [path]))
        except (PydiError, FileError, OSError):
            return False  # it is still busy with its start

    # --- the end ----------------------------------------------------------------------------------

    def _require_whole(self) -> None:
        wait_until(lambda: is_whole(self._nodes[0]), "every blob has its copies", DEADLINE_S)
        found = sum(report["last"]["found"] for report in scrub(self._nodes[0]))
        assert found == 0, f"the scrub at the end found {found}"
        fresh = self._mount_through(self._nodes[1], "fresh")  # none of its caches know anything
        for number in range(self._trees):
            tree = fresh.path / f"tree-{number}"
            run("diff", "-r", self._source, tree, deadline_s=self._tree_deadline_s)
        totals = {node["number"]: node["files"] for node in status(self._nodes[0])["nodes"]}
        self._say(f"blobs on each node: {totals}")
        for node in self._nodes:
            assert node.stop() == 0
        for node in self._nodes:
            check = pydi("check", "--blobs", node.data_dir)
            assert check.returncode == EXIT_OK, check.stdout + check.stderr


def scrub(through: NodeProcess) -> list[dict[str, Any]]:
    """The reports of a whole reading, now."""
    done = through.pydi("scrub", "--now", "--json")
    assert done.returncode == EXIT_OK, done.stderr
    reports: list[dict[str, Any]] = json.loads(done.stdout)
    return reports


def is_whole(node: NodeProcess) -> bool:
    """All nodes are up, and every blob has its copies within reach."""
    try:
        state = status(node)
    except (PydiError, OSError):
        return False
    blobs = state["blobs"]
    is_up = all(entry["state"] == "up" for entry in state["nodes"])
    return is_up and not blobs["under_replicated"] and not blobs["missing"]


def blob_path(node: NodeProcess, blob: BlobId) -> Path:
    return node.data_dir / "blobs" / f"{blob & 0xFF:02x}" / f"{blob:016x}"


def collect(sources: Sequence[Path], target: Path, files: int) -> int:
    """Copies real files out of ``sources`` into ``target``, up to that many; how many."""
    count = 0
    for at, source in enumerate(sources):
        for path in sorted(source.rglob("*")):
            if count == files:
                return count
            if path.is_symlink() or not path.is_file() or "__pycache__" in path.parts:
                continue
            copy = target / f"{at}-{source.name}" / path.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
            count += 1
    return count
