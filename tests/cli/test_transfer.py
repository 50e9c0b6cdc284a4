"""put and get of what copies get wrong: interruptions, mirrors, holes, several names of a file."""

from __future__ import annotations

import asyncio
import json
import os
import random
import stat
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from pydi_fs import cli, commands_copy
from pydi_fs.commands_connect import connected
from pydi_fs.commands_session import Session
from pydi_fs.progress import Progress
from pydi_fs.transfer import plan
from pydi_node.errors import EXIT_FAILED, EXIT_OK, EXIT_USAGE
from tests.cli.test_files import described

MIB = 1 << 20


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


Pydi = Callable[..., Outcome]


@pytest.fixture
def here(
    data_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Pydi:
    """``pydi ARGUMENT...`` in this process, for its start would take longer than what it does."""
    monkeypatch.setenv("PYDI_DATA_DIR", str(data_dir))
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> Outcome:
        code = cli.main(arguments)
        return Outcome(code, *capsys.readouterr())

    return run


def run_session(arguments: list[str], progress: Progress) -> None:
    """One put or get whose progress the test listens to."""
    parsed = cli.build_parser().parse_args(arguments)

    async def scenario() -> None:
        config = cli.connection_config(vars(parsed), os.environ)
        async with connected(config, progress) as session:
            await cli.COMMANDS[parsed.command].run(session, parsed)

    asyncio.run(scenario())


class Interrupts(Progress):
    """A person's Ctrl-C when so many bytes have been copied."""

    def __init__(self, after_bytes: int) -> None:
        super().__init__(enabled=False)
        self.after_bytes = after_bytes

    def add(self, files: int = 0, bytes_: int = 0) -> None:
        super().add(files, bytes_)
        if bytes_ and self.bytes >= self.after_bytes:
            self.after_bytes = 1 << 60
            task = asyncio.current_task()
            assert task is not None
            task.cancel()


def listed(here: Pydi, path: str) -> list[str]:
    return here("ls", path).out.splitlines()


@pytest.fixture
def large(tmp_path: Path, rng: random.Random) -> Path:
    """A file that is worth going on with."""
    path = tmp_path / "large"
    path.write_bytes(rng.randbytes(40 * MIB + 5))
    return path


def test_interrupted_put_goes_on(here: Pydi, large: Path) -> None:
    """After Ctrl-C the target is as it was; --continue sends only what is missing; the result is
    the file, and no part is left."""
    (large.parent / "old").write_bytes(b"old")
    assert here("put", "old", "/up").code == EXIT_OK
    ino = json.loads(here("stat", "--json", "/up").out)[0]["ino"]
    with pytest.raises(asyncio.CancelledError):
        run_session(["put", "large", "/up"], Interrupts(24 * MIB))
    assert here("cat", "/up").out == "old"
    assert any(name.startswith(".pydi-part-") for name in listed(here, "/"))
    progress = Progress(enabled=False)
    run_session(["put", "--continue", "large", "/up"], progress)
    assert progress.bytes == large.stat().st_size
    assert progress._moved_bytes <= 20 * MIB
    assert not any(name.startswith(".pydi-part-") for name in listed(here, "/"))
    assert here("get", "/up", "back").code == EXIT_OK
    assert (large.parent / "back").read_bytes() == large.read_bytes()
    assert json.loads(here("stat", "--json", "/up").out)[0]["ino"] == ino


def test_damaged_part_of_a_put_is_not_trusted(here: Pydi, large: Path) -> None:
    """A part whose bytes are not those of the local file is sent again from where they differ."""
    with pytest.raises(asyncio.CancelledError):
        run_session(["put", "large", "/wrong"], Interrupts(8 * MIB))
    (part,) = [name for name in listed(here, "/") if name.startswith(".pydi-part-")]
    (large.parent / "other").write_bytes(b"x" * (8 * MIB))
    assert here("put", "other", f"/{part}").code == EXIT_OK
    assert here("put", "--continue", "large", "/wrong").code == EXIT_OK
    assert here("get", "/wrong", "back").code == EXIT_OK
    assert (large.parent / "back").read_bytes() == large.read_bytes()


def test_interrupted_get_goes_on(here: Pydi, large: Path) -> None:
    """A get that was interrupted left the old file; --continue fetches the rest and verifies what
    was there, so a damaged part does not get through."""
    assert here("put", "large", "/down").code == EXIT_OK
    back = large.parent / "back"
    for damaged in (False, True):
        back.write_bytes(b"old")
        with pytest.raises(asyncio.CancelledError):
            run_session(["get", "/down", "back"], Interrupts(24 * MIB))
        assert back.read_bytes() == b"old"
        (part,) = large.parent.glob(".pydi-part-*")
        if damaged:
            with open(part, "r+b") as file:
                file.write(b"damaged")
        progress = Progress(enabled=False)
        run_session(["get", "--continue", "/down", "back"], progress)
        assert progress._moved_bytes <= (60 if damaged else 20) * MIB
        assert back.read_bytes() == large.read_bytes()
        assert not list(large.parent.glob(".pydi-part-*"))


def test_checkpoints(here: Pydi, large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that is killed without a word loses what came after its last checkpoint."""
    monkeypatch.setattr(plan, "CHECKPOINT_BYTES", 8 * MIB)

    class Killed(BaseException):
        pass

    class Kills(Interrupts):
        def add(self, files: int = 0, bytes_: int = 0) -> None:
            Progress.add(self, files, bytes_)
            if self.bytes >= self.after_bytes:
                raise Killed

    with pytest.raises(Killed):
        run_session(["put", "large", "/killed"], Kills(20 * MIB))
    progress = Progress(enabled=False)
    run_session(["put", "--continue", "large", "/killed"], progress)
    assert progress._moved_bytes == large.stat().st_size - 16 * MIB
    assert here("get", "/killed", "back").code == EXIT_OK
    assert (large.parent / "back").read_bytes() == large.read_bytes()


def make_source(top: Path) -> None:
    (top / "kept/below").mkdir(parents=True)
    (top / "kept/same").write_text("same")
    (top / "kept/below/changes").write_text("before")
    (top / "kept/goes").write_text("goes")
    (top / "gone/deep").mkdir(parents=True)
    (top / "gone/deep/file").write_text("x")
    (top / "turns").write_text("from a file to a directory")
    (top / "link").symlink_to("kept")


def change_source(top: Path) -> None:
    (top / "kept/below/changes").write_text("after!")
    (top / "kept/goes").unlink()
    (top / "gone/deep/file").unlink()
    (top / "gone/deep").rmdir()
    (top / "gone").rmdir()
    (top / "turns").unlink()
    (top / "turns").mkdir()
    (top / "turns/new").write_text("new")
    (top / "link").unlink()
    (top / "link").symlink_to("turns")


def test_mirror_into_the_tree_and_out(here: Pydi, tmp_path: Path) -> None:
    """--mirror makes the target like the source in both directions: what is gone goes, what is the
    same is not copied, and the second time means the same as the first."""
    source = tmp_path / "source"
    make_source(source)
    for _ in range(2):
        assert here("put", "--mirror", "source", "/mirror") == (EXIT_OK, "", "")
        assert here("get", "--mirror", "/mirror", "back") == (EXIT_OK, "", "")
        assert described(tmp_path / "back") == described(source)
    change_source(source)
    versions = json.loads(here("stat", "--json", "/mirror/kept/same").out)[0]["version"]
    inode = (tmp_path / "back/kept/same").stat().st_ino
    assert here("put", "--mirror", "source", "/mirror") == (EXIT_OK, "", "")
    assert here("get", "--mirror", "/mirror", "back") == (EXIT_OK, "", "")
    assert described(tmp_path / "back") == described(source)
    assert json.loads(here("stat", "--json", "/mirror/kept/same").out)[0]["version"] == versions
    assert (tmp_path / "back/kept/same").stat().st_ino == inode


def test_mirror_does_not_follow_links(here: Pydi, tmp_path: Path) -> None:
    """A local link in the place of a directory is replaced, and nothing behind it is touched."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/precious").write_text("precious")
    here("mkdir", "-p", "/plain/dir")
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy/dir").symlink_to(tmp_path / "outside")
    assert here("get", "--mirror", "/plain", "copy").code == EXIT_OK
    assert not (tmp_path / "copy/dir").is_symlink()
    assert (tmp_path / "outside/precious").read_text() == "precious"
    refused = here("get", "--mirror", "/plain", "/plain", "copy")
    assert refused.code == EXIT_USAGE


def test_holes_are_kept(here: Pydi, tmp_path: Path) -> None:
    """A sparse file takes no more space in the tree than its data, and none on the way back."""
    for name, size in (("sparse", 64 * MIB), ("small", MIB)):
        with open(tmp_path / name, "wb") as file:
            file.write(b"begin")
            file.seek(size // 2)
            file.write(b"middle")
            file.truncate(size)
        assert here("put", name, f"/{name}").code == EXIT_OK
        status = json.loads(here("stat", "--json", f"/{name}").out)[0]
        assert status["size"] == size
        assert status["allocated"] < size // 2
        assert here("get", f"/{name}", "back").code == EXIT_OK
        assert (tmp_path / "back").read_bytes() == (tmp_path / name).read_bytes()
        assert (tmp_path / "back").stat().st_blocks * 512 < size // 2


def test_names_of_one_file_stay_names_of_one_file(here: Pydi, tmp_path: Path) -> None:
    """Hard links inside what is copied are links in the copy, in both directions."""
    source = tmp_path / "linked"
    source.mkdir()
    (source / "a").write_text("shared")
    for name in ("b", "c"):
        os.link(source / "a", source / name)
    (source / "alone").write_text("shared")
    assert here("put", "-r", "linked", "/linked") == (EXIT_OK, "", "")
    inodes = {e["name"]: e["ino"] for e in json.loads(here("ls", "--json", "/linked").out)}
    assert inodes["a"] == inodes["b"] == inodes["c"] != inodes["alone"]
    assert here("get", "-r", "/linked", "back") == (EXIT_OK, "", "")
    back = {path.name: path.stat().st_ino for path in (tmp_path / "back").iterdir()}
    assert back["a"] == back["b"] == back["c"] != back["alone"]


def test_unchanged_files_are_skipped(here: Pydi, tmp_path: Path) -> None:
    """Same size and time is not sent again, but gets a changed mode; --all sends it."""
    file = tmp_path / "file"
    file.write_text("first")
    assert here("put", "file", "/skipped").code == EXIT_OK
    times = file.stat()
    file.write_text("other")
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    file.chmod(0o751)
    assert here("put", "file", "/skipped").code == EXIT_OK
    assert here("cat", "/skipped").out == "first"
    assert json.loads(here("stat", "--json", "/skipped").out)[0]["mode"] == "0751"
    counts = json.loads(here("put", "--json", "file", "/skipped").out)
    assert counts == {"files": 1, "bytes": 5, "unchanged": 1}
    counts = json.loads(here("put", "--all", "--json", "file", "/skipped").out)
    assert counts == {"files": 1, "bytes": 5, "unchanged": 0}
    assert json.loads(here("get", "--json", "/skipped", "back").out)["files"] == 1
    assert here("cat", "/skipped").out == "other"


def test_two_puts_to_one_name(here: Pydi, tmp_path: Path, rng: random.Random) -> None:
    """Copies to one name at one time are one after the other, never a mixture."""
    contents = [rng.randbytes(size) for size in (3 * MIB, 2 * MIB, 1000, 0)]
    for number, content in enumerate(contents):
        (tmp_path / f"{number}").write_bytes(content)
    parser = cli.build_parser()

    async def scenario() -> None:
        config = cli.connection_config({}, os.environ)
        async with connected(config, Progress(enabled=False)) as session:

            async def put(number: int) -> None:
                parsed = parser.parse_args(["put", f"{number}", "/contended"])
                await commands_copy.put(session, parsed)

            for _ in range(3):
                await asyncio.gather(*(put(number) for number in range(4)))
                got: list[bytes] = []
                attr = await session.resolve(b"/contended")
                await session.read_into(attr.ino, got.append)
                assert b"".join(got) in contents

    asyncio.run(scenario())


# --- commands on trees ---------------------------------------------------------------------------


@pytest.fixture
def photos(here: Pydi, tmp_path: Path) -> str:
    """A small tree to look at."""
    top = tmp_path / "photos"
    (top / "2025").mkdir(parents=True)
    (top / "a.jpg").write_bytes(b"a" * 3000)
    (top / "2025/b.jpg").write_bytes(b"b" * 100)
    (top / "2025/notes.txt").write_bytes(b"n")
    (top / "newest").symlink_to("2025")
    name = f"/photos-{random.getrandbits(40):x}"
    assert here("put", "-r", "photos", name).code == EXIT_OK
    return name


def test_find(here: Pydi, photos: str) -> None:
    """By name, type and size; --json describes."""
    found = here("find", photos, "--name", "*.jpg").out.splitlines()
    assert found == [f"{photos}/2025/b.jpg", f"{photos}/a.jpg"]
    assert here("find", photos, "--larger", "1K").out == f"{photos}/a.jpg\n"
    assert here("find", photos, "--type", "d").out.split() == [photos, f"{photos}/2025"]
    assert here("find", photos, "--type", "l").out.split() == [f"{photos}/newest"]
    described = json.loads(here("find", photos, "--json", "--name", "notes*").out)
    assert [(row["path"], row["size"]) for row in described] == [(f"{photos}/2025/notes.txt", 1)]
    assert here("find", photos, "--larger", "much").code == EXIT_USAGE
    assert here("find", "/missing").err == "pydi: /missing: No such file or directory\n"


def test_disk_usage(here: Pydi, photos: str) -> None:
    """Each directory with all below it; what has several names counts once."""
    rows = json.loads(here("du", "--json", photos).out)
    assert rows == [{"path": photos, "bytes": 3101}, {"path": f"{photos}/2025", "bytes": 101}]
    assert here("du", "-s", f"{photos}/").out.split() == ["3.0", "KiB", photos]
    assert here("du", "-s", "/").code == EXIT_OK
    free = json.loads(here("df", "--json").out)
    assert 0 < free["free_bytes"] <= free["total_bytes"]
    assert "free" in here("df").out


def test_copy_inside_the_tree(here: Pydi, photos: str, tmp_path: Path) -> None:
    """cp shares content, keeps modes, and with -p times; a tree can be copied into itself once."""
    (tmp_path / "photos/a.jpg").chmod(0o640)
    here("put", "-r", "photos/a.jpg", photos)
    assert here("cp", f"{photos}/a.jpg", f"{photos}/copy").code == EXIT_OK
    assert here("cat", f"{photos}/copy").out == "a" * 3000
    assert here("cp", f"{photos}/2025/b.jpg", f"{photos}/copy").code == EXIT_OK
    assert here("cat", f"{photos}/copy").out == "b" * 100
    refused = here("cp", photos, f"{photos}-2")
    assert (refused.code, "cp -r" in refused.err) == (EXIT_FAILED, True)
    assert here("cp", "-r", "-p", photos, f"{photos}-2") == (EXIT_OK, "", "")
    assert here("get", "-r", f"{photos}-2", "one").code == EXIT_OK
    assert here("get", "-r", photos, "two").code == EXIT_OK
    assert described(tmp_path / "one") == described(tmp_path / "two")
    assert stat.S_IMODE((tmp_path / "one/a.jpg").stat().st_mode) == 0o640
    assert here("cp", "-r", photos, f"{photos}/2025") == (EXIT_OK, "", "")
    name = photos.rpartition("/")[2]
    assert here("find", photos, "--name", name).out.split() == [photos, f"{photos}/2025/{name}"]
    same = here("cp", f"{photos}/a.jpg", f"{photos}/a.jpg")
    assert (same.code, "same file" in same.err) == (EXIT_FAILED, True)


def test_stat_and_rmdir(here: Pydi, photos: str) -> None:
    """stat tells everything, of a link itself; rmdir refuses what is not empty."""
    text = here("stat", f"{photos}/newest").out
    assert "symlink to 2025" in text
    assert "modified" in text
    refused = here("rmdir", f"{photos}/2025")
    assert (refused.code, "not empty" in refused.err) == (EXIT_FAILED, True)
    here("mkdir", f"{photos}/empty")
    assert here("rmdir", f"{photos}/empty") == (EXIT_OK, "", "")


def test_paths_begin_in_the_directory_of_the_session(here: Pydi, photos: str) -> None:
    """What a shell's cd sets is where paths without a leading slash begin."""

    async def scenario() -> None:
        config = cli.connection_config({}, os.environ)
        async with connected(config, Progress(enabled=False)) as session:
            session.cwd = os.fsencode(photos)
            for path in (b"2025/b.jpg", b"newest/../2025/b.jpg"):
                assert (await session.resolve(path)).size == 100
            assert (await session.parent_of(b"2025/new"))[1] == b"new"
            assert isinstance(session, Session)

    asyncio.run(scenario())


def test_root_of_a_disk_has_no_name(here: Pydi) -> None:
    """It can't be put under its own name, and a sentence says what to name instead."""
    refused = here("put", "-r", "/", "/")
    assert refused.code == EXIT_USAGE
    assert "name the TARGET" in refused.err
