"""Fixtures of the mount tests: every test runs over each binding, with daemons of its own kind.

``world`` is a node and a mount that a test may stop and kill. ``folder`` is an empty directory on
a mount that is shared by the tests of a binding, because starting both takes a second.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest

from tests.harness.mounts import World, why_unusable

DRIVERS = ("fusepy", "kernel")
_worlds = pytest.StashKey[list[World]]()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "driver" in metafunc.fixturenames:
        metafunc.parametrize("driver", DRIVERS, scope="session")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.mount)


@pytest.fixture(scope="session")
def usable_driver(driver: str) -> str:
    """The binding under test; the test is skipped where it can't work."""
    reason = why_unusable(driver)
    if reason is not None:
        pytest.skip(reason)
    return driver


@pytest.fixture(scope="session")
def make_world(
    usable_driver: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., World]]:
    """Makes started worlds; all are taken down at the end."""
    made: list[World] = []

    def make(*flags: str) -> World:
        world = World(tmp_path_factory.mktemp("w"), usable_driver, flags)
        made.append(world)
        world.start()
        return world

    yield make
    for world in made:
        world.close()


@pytest.fixture
def world(request: pytest.FixtureRequest, make_world: Callable[..., World]) -> Iterator[World]:
    """A node and a mount of this test alone."""
    world = make_world()
    _show_logs(request, world)
    yield world
    world.close()


@pytest.fixture(scope="session")
def shared_worlds() -> dict[str, World]:
    """The living shared world of each binding."""
    return {}


_folders = itertools.count(1)


@pytest.fixture
def folder(
    request: pytest.FixtureRequest,
    usable_driver: str,
    make_world: Callable[..., World],
    shared_worlds: dict[str, World],
) -> Path:
    """An empty directory on a mount. A mount that an earlier test broke is replaced."""
    world = shared_worlds.get(usable_driver)
    if world is None or not world.is_sound():
        world = shared_worlds[usable_driver] = make_world()
    _show_logs(request, world)
    path = world.path / f"folder{next(_folders)}"
    path.mkdir()
    return path


def _show_logs(request: pytest.FixtureRequest, world: World) -> None:
    request.node.stash.setdefault(_worlds, []).append(world)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failed test shows what the daemons had to say."""
    report = yield
    if report.failed:
        for world in item.stash.get(_worlds, []):
            report.sections.append(("daemons", world.logs()))
    return report
