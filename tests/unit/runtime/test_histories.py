"""Whose past is whose."""

from __future__ import annotations

import pytest

from pydi_node.runtime.histories import Relation, pack, relation, unpack


@pytest.mark.parametrize(
    ("other", "own", "expected"),
    [
        ((), (), Relation.SAME),
        (("a",), ("a",), Relation.SAME),
        ((), ("a",), Relation.OLDER),
        (("a",), ("a", "b"), Relation.OLDER),
        (("a", "b"), ("a",), Relation.NEWER),
        (("a",), (), Relation.NEWER),
        (("a",), ("b",), Relation.APART),
        (("a", "b"), ("a", "c"), Relation.APART),
    ],
)
def test_relation(other: tuple[str, ...], own: tuple[str, ...], expected: Relation) -> None:
    """A list that begins with the whole of another one is its future."""
    assert relation(other, own) is expected
    assert unpack(pack(other)) == other


def test_unpack_takes_nothing_for_never_recovered() -> None:
    """An older node says nothing of recoveries, and so does one that had none."""
    assert unpack(None) == unpack("") == ()
