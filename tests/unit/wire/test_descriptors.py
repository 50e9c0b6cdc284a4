"""The two messages about files of blobs: whole or refused."""

from __future__ import annotations

import pytest

from pydi_node.ids import BLOB_ID_MAX, INT64_MAX, BlobId
from pydi_node.wire.descriptors import (
    ANSWER_BYTES,
    LOAN_BYTES,
    REQUEST_BYTES,
    FileAnswer,
    FileLoan,
    FileRequest,
    parse_answer,
    parse_request,
)

REQUEST = FileRequest(0xFFFFFFFF, BlobId(BLOB_ID_MAX), INT64_MAX, bytes(range(32)))
LOAN = FileLoan(0xFFFFFFFF, bytes(range(16)))
ANSWER = FileAnswer(7, 2)


def test_what_is_packed_is_parsed() -> None:
    """All survive the way, at their largest values too."""
    assert parse_request(LOAN.pack()) == LOAN
    assert len(LOAN.pack()) == LOAN_BYTES
    assert parse_request(REQUEST.pack()) == REQUEST
    assert parse_answer(ANSWER.pack()) == ANSWER
    assert len(REQUEST.pack()) == REQUEST_BYTES
    assert len(ANSWER.pack()) == ANSWER_BYTES


@pytest.mark.parametrize(
    "packet",
    [
        b"",
        REQUEST.pack()[:-1],
        LOAN.pack()[:-1],
        LOAN.pack() + b"\0",
        REQUEST.pack() + b"\0",
        REQUEST._replace(blob=BlobId(0)).pack(),
        REQUEST._replace(blob=BlobId(BLOB_ID_MAX + 1)).pack(),
        REQUEST._replace(size=INT64_MAX + 1).pack(),
    ],
)
def test_anything_else_is_no_request(packet: bytes) -> None:
    """Wrong lengths and values out of range are refused."""
    with pytest.raises(ValueError):
        parse_request(packet)


@pytest.mark.parametrize("packet", [b"", ANSWER.pack()[:-1], ANSWER.pack() + b"\0"])
def test_anything_else_is_no_answer(packet: bytes) -> None:
    """Wrong lengths are refused."""
    with pytest.raises(ValueError):
        parse_answer(packet)
