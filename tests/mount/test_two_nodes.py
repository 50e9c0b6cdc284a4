"""Two mounts through two nodes of one cluster: what one was told is done, the other shows at once.

No test waits for anything between a call on one mount and a look at the other. PYDI_COHERENCE=N
does N random operations instead of the default.
"""

from __future__ import annotations

import mmap
import os
import random
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.harness.mounts import COMMAND_DEADLINE_S, MountProcess, why_unusable
from tests.harness.procs import NodeProcess, wait_until
from tests.node.test_cluster import start_cluster

OPERATIONS = int(os.environ.get("PYDI_COHERENCE", "400"))


class Pair(NamedTuple):
    nodes: list[NodeProcess]
    mounts: tuple[MountProcess, MountProcess]

    @property
    def paths(self) -> tuple[Path, Path]:
        return self.mounts[0].path, self.mounts[1].path


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Three nodes, and a mount through each of the first two."""
    reason = why_unusable("kernel")
    if reason is not None:
        pytest.skip(reason)
    directory = tmp_path_factory.mktemp("pair")
    nodes: list[NodeProcess] = []
    mounts: list[MountProcess] = []

    def make(name: str, *flags: str) -> NodeProcess:
        nodes.append(NodeProcess(directory / name, *flags))
        return nodes[-1]

    try:
        start_cluster(make, 3)
        for number in (0, 1):
            mounts.append(MountProcess(directory / f"m{number}", nodes[number].data_dir, "kernel"))
            mounts[-1].start()
        yield Pair(nodes, (mounts[0], mounts[1]))
    finally:
        for node in nodes:
            if node.process is not None:
                with suppress(ProcessLookupError):
                    node.process.send_signal(signal.SIGCONT)
        for mount in mounts:
            mount.close()
        for node in nodes:
            node.kill()


@pytest.fixture
def two(pair: Pair, request: pytest.FixtureRequest) -> tuple[Path, Path]:
    """One empty directory as both mounts show it."""
    name = request.node.name.replace("/", "_")
    (pair.paths[0] / name).mkdir()
    return pair.paths[0] / name, pair.paths[1] / name


def waits_for_a_daemon(pid: int) -> bool:
    """Whether this program is inside a FUSE request."""
    try:
        return "request_wait_answer" in Path(f"/proc/{pid}/stack").read_text()
    except FileNotFoundError:
        return False


def both_ways(two: tuple[Path, Path]) -> Iterator[tuple[Path, Path, str]]:
    """(where it is done, where it is looked at, a fresh name), a few times."""
    here, there = two
    for number in range(8):
        yield here, there, f"name{number}"
        here, there = there, here


def test_names(two: tuple[Path, Path]) -> None:
    """Made, renamed and removed names: by stat, open and listing, absence known before too."""
    for here, there, name in both_ways(two):
        assert not (there / name).exists()
        (here / name).touch()
        assert (there / name).stat().st_size == 0
        assert name in os.listdir(there)
        os.rename(here / name, here / "moved")
        assert not (there / name).exists()
        with (there / "moved").open() as file:
            assert file.read() == ""
        assert os.listdir(there) == ["moved"]
        (here / "moved").unlink()
        with pytest.raises(FileNotFoundError):
            (there / "moved").open()
        assert os.listdir(there) == []
        (here / name).mkdir()
        assert (there / name).is_dir()
        (here / name).rmdir()
        assert not (there / name).exists()


def test_attributes_and_content(two: tuple[Path, Path]) -> None:
    """chmod, utime, truncate, append and rewrite, of what the other mount has just looked at."""
    for here, there, name in both_ways(two):
        (here / name).write_bytes(b"x" * 5000)
        assert (there / name).read_bytes() == b"x" * 5000
        (here / name).chmod(0o640)
        assert (there / name).stat().st_mode & 0o7777 == 0o640
        os.utime(here / name, ns=(5, 7))
        assert (there / name).stat().st_mtime_ns == 7
        os.truncate(here / name, 100)
        assert (there / name).stat().st_size == 100
        assert (there / name).read_bytes() == b"x" * 100
        with (here / name).open("ab") as file:
            file.write(b"more")
        assert (there / name).read_bytes() == b"x" * 100 + b"more"
        os.setxattr(here / name, "user.mark", name.encode())
        assert os.getxattr(there / name, "user.mark") == name.encode()


def test_open_files_and_mappings(two: tuple[Path, Path]) -> None:
    """A file that is open and mapped on one mount shows what the other one closed."""
    for here, there, name in both_ways(two):
        (here / name).write_bytes(b"a" * 8192)
        with (there / name).open("rb", buffering=0) as file:
            with mmap.mmap(file.fileno(), 8192, prot=mmap.PROT_READ) as mapping:
                assert mapping[:2] == file.read(2) == b"aa"
                (here / name).write_bytes(b"b" * 8192)
                assert os.fstat(file.fileno()).st_size == 8192
                assert os.pread(file.fileno(), 2, 4096) == b"bb"
                assert mapping[4096:4098] == b"bb"
            (here / name).unlink()
            assert os.fstat(file.fileno()).st_nlink == 0
            assert os.pread(file.fileno(), 2, 0) == b"bb"


def test_random_operations_against_one_model(two: tuple[Path, Path], seed: int) -> None:
    """After each random operation on either mount both show what a dict says."""
    rng = random.Random(f"two nodes {seed}")
    model: dict[str, bytes] = {}
    names = [f"n{number}" for number in range(6)]

    def write(at: Path, name: str) -> None:
        model[name] = rng.randbytes(rng.choice((0, 10, 9000)))
        (at / name).write_bytes(model[name])

    def append(at: Path, name: str) -> None:
        with (at / name).open("ab") as file:
            file.write(b"+")
        model[name] = model.get(name, b"") + b"+"

    def unlink(at: Path, name: str) -> None:
        assert ((at / name).unlink(missing_ok=True) is None) or name in model
        model.pop(name, None)

    def rename(at: Path, name: str) -> None:
        if name in model:
            to = rng.choice(names)
            os.rename(at / name, at / to)
            model[to] = model.pop(name)

    def truncate(at: Path, name: str) -> None:
        if name in model:
            os.truncate(at / name, 5)
            model[name] = model[name][:5].ljust(5, b"\0")

    actions: list[Callable[[Path, str], None]] = [write, append, unlink, rename, truncate]
    for _ in range(OPERATIONS):
        action, name = rng.choice(actions), rng.choice(names)
        action(rng.choice(two), name)
        for at in two:
            look = rng.choice(names)
            expected = model.get(look)
            if expected is None:
                assert not (at / look).exists(), (action, name, look)
            else:
                assert (at / look).stat().st_size == len(expected), (action, name, look)
                assert (at / look).read_bytes() == expected, (action, name, look)
    for at in two:
        assert sorted(os.listdir(at)) == sorted(model)


def test_no_open_shows_less_than_a_close_that_returned(two: tuple[Path, Path], seed: int) -> None:
    """Writers and readers of a few files on both mounts at a time, warm all along. Whoever opens a
    file reads at least the number whose close(2) had returned, wherever that was, and whether the
    file was written in place or replaced; and what its stat(2) says is as new."""
    names = ["a", "b", "c"]
    writing = {name: threading.Lock() for name in names}
    begun = dict.fromkeys(names, 0)
    closed = dict.fromkeys(names, 0)
    over = threading.Event()
    for name in names:
        (two[0] / name).write_bytes(b"%015d\n" % 0)

    def write(at: Path, number: int) -> None:
        rng = random.Random(f"writer {seed} {number}")
        for _ in range(OPERATIONS // 4):
            name = rng.choice(names)
            with writing[name]:
                begun[name] += 1
                # Its number is its size, too.
                content = b"%015d\n" % begun[name] + bytes(begun[name])
                if rng.random() < 0.5:
                    (at / f"new {name}").write_bytes(content)
                    os.rename(at / f"new {name}", at / name)
                else:
                    fd = os.open(at / name, os.O_WRONLY)
                    try:
                        os.write(fd, content)
                    finally:
                        os.close(fd)
                closed[name] = begun[name]

    def read(at: Path, number: int) -> int:
        rng = random.Random(f"reader {seed} {number}")
        reads = 0
        while not over.is_set():
            name = rng.choice(names)
            least = closed[name]
            fd = os.open(at / name, os.O_RDONLY)
            try:
                found = int(os.read(fd, 16))
            finally:
                os.close(fd)
            assert least <= found <= begun[name], (name, least, found, begun[name])
            least = closed[name]
            assert least <= os.stat(at / name).st_size - 16 <= begun[name], (name, least)
            reads += 1
        return reads

    with ThreadPoolExecutor(6) as pool:
        readers = [pool.submit(read, two[number % 2], number) for number in range(4)]
        writers = [pool.submit(write, two[number % 2], number) for number in range(2)]
        try:
            for writer in writers:
                writer.result()
        finally:
            over.set()
        assert sum(reader.result() for reader in readers) > OPERATIONS


@pytest.mark.parametrize("stopped", ["mount", "node"])
@pytest.mark.expects_log("has not answered for .* connection dropped")
def test_a_stopped_holder_shows_nothing_old(
    pair: Pair, two: tuple[Path, Path], stopped: str
) -> None:
    """The daemon of a mount, or its node, is stopped (SIGSTOP) while caches are warm. A rename
    elsewhere goes on all the same; and once it has, nobody is shown the old name."""
    here, there = two
    (here / "old").touch()
    assert (there / "old").stat().st_size == 0
    process = pair.nodes[1].process
    assert process is not None
    # With its supervisor, which would see to it that the mount goes on; but not with its watch,
    # which sees to it that the kernel keeps nothing old.
    mount = pair.mounts[1]
    pids = sorted({*mount.pids()} - {mount.watch}) if stopped == "mount" else [process.pid]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        os.rename(here / "old", here / "new")
        # It may wait for the stopped one, or for the mount to find another node.
        looking = subprocess.Popen(
            ["stat", there / "old"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        wait_until(
            lambda: looking.poll() is not None or waits_for_a_daemon(looking.pid),
            "the answer came out of a cache, or is waited for",
            COMMAND_DEADLINE_S,
        )
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
    _, errors = looking.communicate(timeout=COMMAND_DEADLINE_S)
    assert b"No such file" in errors
    assert looking.returncode == 1
    assert (there / "new").stat().st_size == 0
