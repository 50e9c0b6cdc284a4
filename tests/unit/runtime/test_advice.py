"""For each thing that is missing, a sentence that says what to do."""

from __future__ import annotations

from typing import Any

import pytest

from pydi_node.runtime.advice import advise

SOUND = {"total": 9, "under_replicated": 0, "endangered": 0, "missing": 0}


def node(number: int, **more: Any) -> dict[str, Any]:
    return {
        "number": number, "state": "up", "role": "voter", "witness": False,
        "total_bytes": 1000, "free_bytes": 500, **more,
    }  # fmt: skip


WITNESS = {"role": "witness", "witness": True}


@pytest.mark.parametrize(
    ("nodes", "blobs", "quorum", "expected"),
    [
        ([node(1), node(2), node(3)], {}, True, []),
        ([node(1), node(2), node(3, **WITNESS)], {}, True, []),
        ([node(1), node(2)], {}, True, ["--witness"]),
        ([node(1), node(2), node(3, role="learner")], {}, True, ["--witness"]),
        ([node(1)], {}, True, ["there is one node for content: add nodes"]),
        ([node(1), node(2, **WITNESS)], {}, True, ["--witness", "there is one node for content"]),
        (
            [node(1), node(2, state="down"), node(3, state="down")],
            {"under_replicated": 4},
            False,
            ["1 of 3 voters are reachable: writes are refused until node 2 or node 3",
             "forget 2", "forget 3", "4 blobs have fewer copies within reach than there should"],
        ),
        ([node(1), node(2), node(3, state="down")], {}, True, ["node 3 is down: start it"]),
        ([node(n) for n in (1, 2, 3)], {"under_replicated": 1}, True, ["copied by themselves"]),
        ([node(n) for n in (1, 2, 3)], {"missing": 2}, True, ["2 blobs have no copy within reach"]),
        ([node(1), node(2), node(3, free_bytes=49)], {}, True, ["node 3 is nearly full"]),
        ([node(1), node(2), node(3, free_bytes=0, **WITNESS)], {}, True, []),
        ([node(n) for n in (1, 2, 3)], {}, False, ["until a leader is back"]),
    ],
)  # fmt: skip
def test_each_trouble_has_its_sentence(
    nodes: list[dict[str, Any]], blobs: dict[str, int], quorum: bool, expected: list[str]
) -> None:
    """One sentence for each trouble, in order of urgency, and none without one."""
    sentences = advise(nodes, {**SOUND, **blobs}, quorum, 2)
    assert len(sentences) == len(expected), sentences
    for sentence, words in zip(sentences, expected, strict=True):
        assert words in sentence
