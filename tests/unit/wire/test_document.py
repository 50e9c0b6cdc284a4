"""docs/protocol.md says what the code does."""

from __future__ import annotations

from pathlib import Path

import pytest

from pydi_node.wire.document import TABLES, updated

DOCUMENT = Path(__file__).parents[3] / "docs" / "protocol.md"


def test_tables_of_the_document_are_those_of_the_code():
    """After adding a message: the command in pydi_node/wire/document.py brings it up to date."""
    text = DOCUMENT.read_text()
    assert text == updated(text)


def test_document_has_every_table():
    """A table that is not marked in the document would never be compared."""
    text = DOCUMENT.read_text()
    for name in TABLES:
        assert f"<!-- table: {name} -->" in text


def test_changed_table_is_noticed():
    """A number changed by hand is put right; an unknown mark is a mistake."""
    text = DOCUMENT.read_text()
    changed = text.replace("| 1 | Lookup |", "| 99 | Lookup |")
    assert changed != text
    assert updated(changed) == text
    with pytest.raises(KeyError):
        updated("<!-- table: moon -->\n<!-- end -->")
