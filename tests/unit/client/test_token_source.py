"""The token of a process that lives long: what its file says now."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pydi_fs.client.endpoints import TokenSource
from pydi_node.errors import UserError


def test_the_file_is_read_for_each_connection(tmp_path: Path) -> None:
    """Replaced, it counts; while it is away or empty, the last one does."""
    file = tmp_path / "token"
    file.write_text("first\n")
    source = TokenSource(None, str(file))
    assert source.text() == "first"
    (tmp_path / "next").write_text("second\n")
    os.replace(tmp_path / "next", file)
    assert source.text() == "second"
    file.write_text("")
    assert source.text() == "second"
    file.unlink()
    assert source.text() == "second"
    with pytest.raises(UserError, match="No such file"):
        TokenSource(None, str(file))


def test_a_token_that_was_given_stays(tmp_path: Path) -> None:
    """On the command line or in the environment nobody can change it."""
    assert TokenSource(" given ", None).text() == "given"
