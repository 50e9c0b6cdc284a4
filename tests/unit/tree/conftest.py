from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.unit.tree.driver import Driver


@pytest.fixture
def fs() -> Iterator[Driver]:
    """A driver on an empty tree in memory; the tree is checked when the test ends."""
    driver = Driver()
    yield driver
    driver.close()
