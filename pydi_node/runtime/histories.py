"""Which nodes share one history: what keeps members of before a recovery from forking it.

``pydi recover`` makes one node the only voter although the others may hold, or even decide, what it
never heard of. From then on there are two clusters under one id. Each recovery therefore gets a
random name, and a node keeps the names of all recoveries in its past. Two nodes belong together
when these lists are equal. Where one list begins with the whole of the other, the shorter one is
the past of the longer one: its node stops, for the operator has decided that the cluster goes on
without it. Two lists that part were recovered apart; neither gives way by itself.

Every node says its list when it connects, and admission.py compares. Pure.
"""

from __future__ import annotations

from enum import Enum

NAME_BYTES = 8  # random; a cluster is recovered a few times in its life
HISTORY_KEY = "histories"  # in Hello.about
_SEPARATOR = ","


class Relation(Enum):
    """Of another node's history to this one's."""

    SAME = "same"
    OLDER = "older"  # it stayed behind at a recovery
    NEWER = "newer"  # this node did
    APART = "apart"  # recovered twice, in different places


def relation(other: tuple[str, ...], own: tuple[str, ...]) -> Relation:
    """How ``other`` stands to ``own``."""
    if other == own:
        return Relation.SAME
    if own[: len(other)] == other:
        return Relation.OLDER
    if other[: len(own)] == own:
        return Relation.NEWER
    return Relation.APART


def pack(histories: tuple[str, ...]) -> str:
    """As a hello carries it."""
    return _SEPARATOR.join(histories)


def unpack(text: object) -> tuple[str, ...]:
    """The list in a hello or an answer; empty for a node that never heard of recoveries."""
    return tuple(text.split(_SEPARATOR)) if isinstance(text, str) and text else ()
