"""``pytest tests/unit/consensus --rewrite`` puts the actual output into the scenario files."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    try:
        parser.addoption(
            "--rewrite",
            action="store_true",
            help="put the actual output into the scenario files; look at the difference",
        )
    except ValueError:
        pass  # another room with scenario files has added the same option


@pytest.fixture
def rewrite(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--rewrite", default=False))
