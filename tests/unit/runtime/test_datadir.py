"""DATA_DIR: locked, private, and never overwritten when it isn't understood."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pydi_node.errors import UserError
from pydi_node.ids import NodeNumber
from pydi_node.runtime.datadir import DataDir, Identity, read_run

IDENTITY = Identity(NodeNumber(3), "ab" * 16, "member")


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[DataDir]:
    with DataDir(tmp_path / "d") as made:
        yield made


def test_identity_and_token_come_back(folder: DataDir) -> None:
    """As they were saved; None before."""
    assert folder.load_identity() is None
    assert folder.load_token() is None
    folder.save_identity(IDENTITY)
    folder.save_token("secret")
    assert folder.load_identity() == IDENTITY
    assert folder.load_token() == "secret"
    assert (folder.path / "token").stat().st_mode & 0o777 == 0o600


def test_only_one_at_a_time(folder: DataDir) -> None:
    """The second is refused while the first lives, and not after."""
    with pytest.raises(UserError, match="in use"):
        DataDir(folder.path)
    folder.close()
    DataDir(folder.path).close()


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", "{", '{"format": 1}', "\0" * 100_000,
     '{"format": 1, "number": 0, "cluster": "x", "phase": "member"}',
     '{"format": 1, "number": 1, "cluster": "", "phase": "member"}',
     '{"format": 1, "number": 1, "cluster": "x", "phase": "other"}'],
)  # fmt: skip
def test_damaged_identity_is_refused_and_kept(folder: DataDir, text: str) -> None:
    """One sentence that names the file; its bytes stay."""
    path = folder.path / "node.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"node\.json"):
        folder.load_identity()
    assert path.read_text() == text


def test_identity_missing_beside_a_tree_is_refused(folder: DataDir) -> None:
    """A used folder without its identity must not become a new node."""
    folder.tree.write_bytes(b"")
    with pytest.raises(UserError, match=r"node\.json is missing"):
        folder.load_identity()


def test_folder_that_others_may_write_is_refused(tmp_path: Path) -> None:
    """Somebody else could put a tree there."""
    (tmp_path / "d").mkdir()
    (tmp_path / "d").chmod(0o777)
    with pytest.raises(UserError, match="chmod go-w"):
        DataDir(tmp_path / "d")


def test_file_in_the_way_is_refused(tmp_path: Path) -> None:
    """Neither replaced nor a traceback."""
    (tmp_path / "d").write_text("mine")
    with pytest.raises(UserError, match="data directory"):
        DataDir(tmp_path / "d")
    assert (tmp_path / "d").read_text() == "mine"


def test_run_file_lives_from_ready_to_stop(folder: DataDir) -> None:
    """Commands on this machine find the address in it."""
    assert read_run(folder.path) is None
    folder.save_run({"address": "h:1"})
    assert read_run(folder.path) == {"address": "h:1"}
    folder.remove_run()
    assert read_run(folder.path) is None
