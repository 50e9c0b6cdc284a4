"""Nodes as processes of their own, ended whatever happens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.harness.procs import NodeProcess


@pytest.fixture
def make_node(tmp_path: Path) -> Iterator[Callable[..., NodeProcess]]:
    """Makes nodes, each in ``tmp_path`` / name; kills those still running at the end."""
    nodes: list[NodeProcess] = []

    def make(name: str = "n", *flags: str) -> NodeProcess:
        node = NodeProcess(tmp_path / name, *flags)
        nodes.append(node)
        return node

    yield make
    for node in nodes:
        node.kill()


@pytest.fixture
def node(make_node: Callable[..., NodeProcess]) -> NodeProcess:
    """One running node."""
    made = make_node()
    made.start()
    return made
