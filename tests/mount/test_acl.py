"""POSIX access control lists on real mounts: set by setfacl, obeyed by the kernel, on every mount.

The kernel driver has them; over libfuse 2 they can't be seen or set, and nobody gets more there
than they give. Source: acl(5).
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.mounts import COMMAND_DEADLINE_S, MountProcess, World, run
from tests.mount.test_past import moment_after_now
from tests.node.test_life import assert_tree_sound

ACCESS = "system.posix_acl_access"
# A named user, a member of a named group, of the owning group, and somebody else.
NAMED, IN_NAMED_GROUP, IN_GROUP, OTHER = (4001, 4001), (4002, 4600), (4003, 4500), (4004, 4004)
NAMED_GROUP, GROUP = IN_NAMED_GROUP[1], IN_GROUP[1]

BECOME = "import os, sys; os.setgroups([]); os.setgid({gid}); os.setuid({uid})\n"
# Exit code: 4 if it can be read, and 2 if it can be written.
TRY = """
code = 0
for flag, worth in ((os.O_RDONLY, 4), (os.O_WRONLY, 2)):
    try: os.close(os.open(sys.argv[1], flag))
    except PermissionError: continue
    code |= worth
sys.exit(code)
"""


def as_user(who: tuple[int, int], code: str, path: Path, *arguments: str) -> int:
    """Exit code of a program of that user with the path's name; it works in the path's folder, for
    those above may be closed to him."""
    become = BECOME.format(uid=who[0], gid=who[1])
    done = subprocess.run(
        [sys.executable, "-c", become + code, path.name, *arguments],
        check=False, cwd=path.parent, timeout=COMMAND_DEADLINE_S,
    )  # fmt: skip
    return done.returncode


def rights(path: Path, who: tuple[int, int]) -> int:
    return as_user(who, TRY, path)


def getfacl(path: Path) -> list[str]:
    return run("getfacl", "-cnpE", path).split()


@pytest.fixture
def shared(world: World, usable_driver: str) -> World:
    """A mount that obeys lists, for every user."""
    if usable_driver != "kernel":
        pytest.skip("libfuse 2 knows no access control lists")
    if os.geteuid() != 0 or shutil.which("setfacl") is None:
        pytest.skip("needs root, and the package acl")
    world.mount.close()
    world.mount = MountProcess(
        world.mount.path.parent, world.node.data_dir, "kernel", ["-o", "allow_other"]
    )
    world.mount.start()
    return world


@pytest.fixture
def second(shared: World, tmp_path: Path) -> Iterator[MountProcess]:
    """Another mount of the same node."""
    flags = ["-o", "allow_other"]
    mount = MountProcess(tmp_path / "second", shared.node.data_dir, "kernel", flags)
    try:
        mount.start()
        yield mount
    finally:
        mount.close()


def make_file(path: Path, mode: int = 0o640) -> Path:
    path.write_bytes(b"content")
    os.chown(path, -1, GROUP)
    path.chmod(mode)
    return path


def test_lists_are_obeyed_on_every_mount(shared: World, second: MountProcess) -> None:
    """setfacl on one mount counts on the other at once: for a named user, a named group, the owning
    group and others; chmod changes the mask; without the list the mode counts again."""
    file = make_file(shared.path / "f")
    there = second.path / "f"
    everybody = (NAMED, IN_NAMED_GROUP, IN_GROUP, OTHER)
    for path in (file, there):
        assert [rights(path, who) for who in everybody] == [0, 0, 4, 0]
    run("setfacl", "-m", f"u:{NAMED[0]}:rw,g:{NAMED_GROUP}:r,g::-", file)
    for path in (there, file):
        assert [rights(path, who) for who in everybody] == [6, 4, 0, 0]
        assert stat.S_IMODE(path.stat().st_mode) == 0o660, "the group's bits are the mask"
        assert getfacl(path) == [
            "user::rw-", f"user:{NAMED[0]}:rw-", "group::---", f"group:{NAMED_GROUP}:r--",
            "mask::rw-", "other::---",
        ]  # fmt: skip
    there.chmod(0o624)
    for path in (file, there):
        assert [rights(path, who) for who in everybody] == [2, 0, 0, 4]
        assert "mask::-w-" in getfacl(path)
    run("setfacl", "-b", there)
    for path in (file, there):
        assert getfacl(path) == ["user::rw-", "group::---", "other::r--"]
        assert [rights(path, who) for who in everybody] == [4, 4, 0, 4]
        with pytest.raises(OSError) as caught:
            os.getxattr(path, ACCESS)
        assert caught.value.errno == errno.ENODATA


def test_what_is_made_in_a_directory_gets_its_default_list(
    shared: World, second: MountProcess
) -> None:
    """Whatever the umask is: files, directories and below them, links' targets, what `cp` and `tar`
    make; where no default list is, the umask counts as ever."""
    top = shared.path / "d"
    top.mkdir()
    run("setfacl", "-d", "-m", f"u::rwx,u:{NAMED[0]}:rwx,g::r-x,o::-", top)
    there = second.path / "d"
    code = """
os.umask(0o077)
os.makedirs("a/b")
for path in ("f", "a/b/f"): os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o666))
os.mkfifo("p")
os.symlink("f", "l")
os.close(os.open("x", os.O_CREAT | os.O_WRONLY, 0o777))
fd = os.open(".", os.O_TMPFILE | os.O_WRONLY, 0o666)
os.link(f"/proc/self/fd/{fd}", "t", dst_dir_fd=os.open(".", os.O_RDONLY))
"""
    subprocess.run(
        [sys.executable, "-c", "import os\n" + code], check=True, cwd=there,
        timeout=COMMAND_DEADLINE_S,
    )  # fmt: skip
    inherited = ["user::rw-", f"user:{NAMED[0]}:rwx", "group::r-x", "mask::rw-", "other::---"]
    for name in ("f", "a/b/f", "p", "t"):
        assert getfacl(top / name) == inherited, name
        assert stat.S_IMODE((top / name).stat().st_mode) == 0o660
    assert "mask::rwx" in getfacl(top / "x")
    assert f"default:user:{NAMED[0]}:rwx" in getfacl(top / "a" / "b")
    assert rights(top / "a" / "b" / "f", NAMED) == 6
    assert rights(top / "a" / "b" / "f", OTHER) == 0
    assert stat.S_IMODE(os.lstat(top / "l").st_mode) == 0o777
    run("setfacl", "-k", top)
    subprocess.run(["sh", "-c", "umask 027; touch g; mkdir e"], check=True, cwd=there)
    assert getfacl(top / "g") == ["user::rw-", "group::r--", "other::---"]
    assert getfacl(top / "e") == ["user::rwx", "group::r-x", "other::---"]


def test_a_successor_obeys_them_too(shared: World) -> None:
    """What INIT agreed on holds for the process that goes on with the mount: lists are shown and
    set, and the umask is taken off where it counts, once."""
    worker = shared.mount.worker
    if worker is None:
        pytest.skip("restart under open files needs Linux 6.9")
    file = make_file(shared.path / "f")
    run("setfacl", "-m", f"u:{NAMED[0]}:rw", file)
    (shared.path / "d").mkdir()
    run("setfacl", "-d", "-m", f"u:{NAMED[0]}:rwx", shared.path / "d")
    os.kill(worker, signal.SIGKILL)
    assert rights(file, NAMED) == 6
    assert stat.S_IMODE(file.stat().st_mode) == 0o660
    run("setfacl", "-m", f"u:{OTHER[0]}:r", file)
    assert rights(file, OTHER) == 4
    subprocess.run(["sh", "-c", "umask 027; touch g d/f"], check=True, cwd=shared.path)
    assert stat.S_IMODE((shared.path / "g").stat().st_mode) == 0o640
    assert f"user:{NAMED[0]}:rwx" in getfacl(shared.path / "d" / "f")
    assert rights(shared.path / "d" / "f", NAMED) == 6


def test_only_the_owner_sets_lists(shared: World) -> None:
    """setfacl by somebody else is EPERM; a default list is for directories."""
    file = make_file(shared.path / "f", 0o666)
    shared.path.chmod(0o755)
    code = f"""
try: os.setxattr(sys.argv[1], "{ACCESS}", bytes.fromhex(sys.argv[2]))
except PermissionError: sys.exit(7)
"""
    run("setfacl", "-m", f"u:{NAMED[0]}:rw", file)
    value = os.getxattr(file, ACCESS).hex()
    assert as_user(NAMED, code, file, value) == 7
    os.chown(file, NAMED[0], -1)
    assert as_user(NAMED, code, file, value) == 0
    done = subprocess.run(["setfacl", "-d", "-m", "u:1:r", file], check=False, capture_output=True)
    assert done.returncode != 0


def test_a_set_group_id_bit_is_not_kept_by_a_stranger_to_the_group(shared: World) -> None:
    """chmod(2) and setfacl: an owner that is not in the file's group can't leave the bit there."""
    file = make_file(shared.path / "f")
    os.chown(file, NAMED[0], GROUP)
    file.chmod(0o2770)
    code = f"""
value = os.getxattr(sys.argv[1], "{ACCESS}")
os.setxattr(sys.argv[1], "{ACCESS}", value)
"""
    run("setfacl", "-m", f"u:{OTHER[0]}:r", file)
    assert file.stat().st_mode & stat.S_ISGID
    assert as_user(NAMED, code, file) == 0
    assert not file.stat().st_mode & stat.S_ISGID


def test_copies_archives_and_the_past_have_the_lists(shared: World, tmp_path: Path) -> None:
    """cp -a, tar --acls and the tree as it was; a restart of mount and node changes nothing."""
    source = shared.path / "source"
    (source / "sub").mkdir(parents=True)
    run("setfacl", "-R", "-m", f"u:{NAMED[0]}:rwX,d:u:{NAMED[0]}:rwX", source)
    make_file(source / "sub" / "f")
    run("setfacl", "-m", f"g:{NAMED_GROUP}:r", source / "sub" / "f")
    expected = run("getfacl", "-Rcn", ".", cwd=source)
    run("cp", "-a", source, shared.path / "copy")
    run("tar", "--acls", "-cf", tmp_path / "a.tar", "-C", shared.path, "source")
    (shared.path / "unpacked").mkdir()
    run("tar", "--acls", "-xpf", tmp_path / "a.tar", "-C", shared.path / "unpacked")
    for copy in (shared.path / "copy", shared.path / "unpacked" / "source"):
        assert run("getfacl", "-Rcn", ".", cwd=copy) == expected
    moment = moment_after_now(shared.path)
    run("setfacl", "-R", "-b", source)
    (source / "sub" / "f").unlink()
    then = shared.path / ".pydi" / "at" / moment / "source"
    assert run("getfacl", "-Rcn", ".", cwd=then) == expected
    assert rights(then / "sub" / "f", IN_NAMED_GROUP) == 4
    assert rights(then / "sub" / "f", OTHER) == 0
    restored = shared.node.pydi("restore", "--at", moment, "/source/sub/f")
    assert restored.returncode == 0, restored.stderr
    shared.mount.unmount()
    assert shared.node.stop() == 0
    shared.start()
    assert run("getfacl", "-cn", source / "sub" / "f") in expected
    shared.mount.unmount()
    assert shared.node.stop() == 0
    assert_tree_sound(shared.node)


def test_nobody_gets_more_where_lists_are_not_known(shared: World, tmp_path: Path) -> None:
    """The fusepy driver shows a mode that gives nobody more than the list, and says that it has no
    lists."""
    file = make_file(shared.path / "f")
    run("setfacl", "-m", f"u:{NAMED[0]}:-,g:{NAMED_GROUP}:rw,o::rw", file)
    other = MountProcess(tmp_path / "other", shared.node.data_dir, "fusepy", ["-o", "allow_other"])
    try:
        other.start()
        there = other.path / "f"
        assert stat.S_IMODE(there.stat().st_mode) == 0o600
        assert [rights(there, who) for who in (NAMED, IN_NAMED_GROUP, OTHER)] == [0, 0, 0]
        assert [rights(file, who) for who in (NAMED, IN_NAMED_GROUP, OTHER)] == [0, 6, 6]
        assert os.listxattr(there) == []
        value = os.getxattr(file, ACCESS)
        for call in (
            lambda: os.getxattr(there, ACCESS),
            lambda: os.setxattr(there, ACCESS, value),
            lambda: os.removexattr(there, ACCESS),
        ):
            with pytest.raises(OSError) as caught:
                call()
            assert caught.value.errno == errno.EOPNOTSUPP
        run("cp", "-p", there, other.path / "copy")
    finally:
        other.close()
