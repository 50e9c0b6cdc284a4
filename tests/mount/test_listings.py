"""Listings that the kernel keeps: no request while nobody changes a directory, never an old one.

On the in-memory vfs, whose attributes the kernel may keep for a minute: so what shows a change is
what is told of it, and no time-out.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.harness.mounts import why_unusable
from tests.mount.test_kernel_device import MemoryMount

_reason = why_unusable("kernel")
pytestmark = [pytest.mark.mount, pytest.mark.skipif(_reason is not None, reason=str(_reason))]

MANY = 3000  # entries: several answers, and several calls of getdents(2)


@pytest.fixture(params=[(), ("nodefault_permissions",)], ids=["kept", "not kept"])
def mount(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[MemoryMount]:
    mount = MemoryMount(tmp_path / "mnt", *request.param)
    assert mount.greeting == "mounted", mount.log.read_text()
    yield mount
    mount.close()


def names_in(directory: Path | int) -> set[str]:
    return set(os.listdir(directory))


def walk(top: Path) -> int:
    """As ls -lR: every name, and the attributes of each."""
    found = 0
    for folder, folders, files in os.walk(top):
        os.stat(folder)
        for name in folders + files:
            os.lstat(os.path.join(folder, name))
            found += 1
    return found


@pytest.mark.parametrize("mount", [()], ids=["kept"], indirect=True)
def test_a_warm_walk_asks_nothing(mount: MemoryMount) -> None:
    """Every directory, name and attribute out of the kernel. The second time it asks once for each
    directory: having been read, its time of access is unknown."""
    for number in range(5):
        folder = mount.path / f"folder{number}" / "below"
        folder.mkdir(parents=True)
        for name in range(20):
            (folder / f"{name}").touch()
    for _ in range(2):
        assert walk(mount.path) == 110
    asked = mount.requests(lambda: walk(mount.path))
    assert {name for name in asked if name not in ("calls", "lease_s", "pushes")} == set()


def test_changes_elsewhere_show_at_once(mount: MemoryMount) -> None:
    """New, replaced and removed names, by path and through a directory that stays open."""
    (mount.path / "kept").touch()
    fd = os.open(mount.path, os.O_RDONLY)
    try:
        expected = {"kept"}
        for number in range(20):
            name = f"name{number}"
            for change, content in (("replace", ("x",)), ("remove", ())):
                for _ in range(2):
                    assert names_in(mount.path) == names_in(fd) == expected
                mount.tell(change, name, *content)
                expected ^= {name}
                assert names_in(fd) == expected
                assert names_in(mount.path) == expected
    finally:
        os.close(fd)


def test_changes_here_show_at_once(mount: MemoryMount) -> None:
    """By all ways to make, move and remove a name."""
    folder = mount.path / "folder"
    folder.mkdir()
    changes: list[tuple[Callable[[], object], set[str]]] = [
        (lambda: (folder / "a").touch(), {"a"}),
        (lambda: os.link(folder / "a", folder / "b"), {"a", "b"}),
        (lambda: os.symlink("a", folder / "c"), {"a", "b", "c"}),
        (lambda: os.mkdir(folder / "d"), {"a", "b", "c", "d"}),
        (lambda: os.rename(folder / "a", folder / "e"), {"b", "c", "d", "e"}),
        (lambda: os.rename(folder / "e", mount.path / "e"), {"b", "c", "d"}),
        (lambda: os.unlink(folder / "b"), {"c", "d"}),
        (lambda: os.rmdir(folder / "d"), {"c"}),
    ]
    for change, expected in changes:
        names_in(folder)
        names_in(folder)
        change()
        assert names_in(folder) == expected


@pytest.mark.parametrize("here", [True, False], ids=["here", "elsewhere"])
def test_who_begins_after_a_change_does_not_read_what_began_before(
    mount: MemoryMount, here: bool
) -> None:
    """One program is in the middle of a large directory, a name is made, another program begins,
    and the first one comes to its end, which completes the kernel's listing. The second reads on
    behind that, and must find the name."""
    for number in range(MANY):
        os.mknod(mount.path / f"{number}")
    with ThreadPoolExecutor(1) as other_program, os.scandir(mount.path) as before:
        other_program.submit(next, before).result()
        if here:
            (mount.path / "new").touch()
        else:
            mount.tell("replace", "new", "content")
        with os.scandir(mount.path) as after:
            found = {next(after).name}
            assert other_program.submit(lambda: sum(1 for _ in before)).result() == MANY - 1
            found.update(entry.name for entry in after)
    assert "new" in found
    assert len(found) == MANY + 1
    assert names_in(mount.path) == found
