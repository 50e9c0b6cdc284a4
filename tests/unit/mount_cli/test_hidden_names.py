"""Names that libfuse makes up for open files without one: how long each of them is taken."""

from __future__ import annotations

from pydi_fs.hidden_names import HiddenNames
from pydi_node.ids import Ino

INO, OTHER = Ino(7), Ino(8)


def test_name_lasts_until_the_last_close() -> None:
    """Two handles, two names, another file's name: only the last close ends the file's own."""
    names = HiddenNames()
    for ino in (INO, INO, OTHER):
        names.opened(ino)
    names.hide(b"first", INO)
    names.hide(b"second", INO)
    names.hide(b"other", OTHER)
    names.closed(INO)
    assert [names.get(name) for name in (b"first", b"second", b"third")] == [INO, INO, None]
    names.closed(INO)
    assert [names.get(name) for name in (b"first", b"second", b"other")] == [None, None, OTHER]


def test_name_that_comes_after_the_last_close_is_nobodys() -> None:
    """Else it would be taken for as long as the mount lives: nothing is left that could end it."""
    names = HiddenNames()
    names.opened(INO)
    names.closed(INO)
    names.hide(b"late", INO)
    assert names.get(b"late") is None
