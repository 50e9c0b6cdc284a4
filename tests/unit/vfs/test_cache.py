"""What a mount remembers, and what it must not: answers that come in after a change they lack."""

from __future__ import annotations

from pydi_fs.vfs.cache import ABSENT, DROPPED_MAX, NameCache
from pydi_node.ids import Ino, LogIndex
from pydi_node.records import EVERY_NAME
from tests.unit.wire.samples import ATTR

FILE = ATTR._replace(ino=Ino(7))
PARENT, NAME = Ino(1), b"name"


def asked_now(cache: NameCache) -> int:
    """A request leaves; what its answer is handed over with."""
    return cache.moment


def test_an_answer_that_a_change_overtook_does_not_enter() -> None:
    """The node holds answers until everybody knows; the push of a later change may be first."""
    cache = NameCache()
    asked = asked_now(cache)
    cache.drop([FILE.ino], [(PARENT, NAME)])
    cache.answers(asked)
    cache.put_attr(FILE)
    cache.put_name(PARENT, NAME, FILE.ino)
    cache.put_xattr_names(FILE.ino, [])
    assert cache.attr(FILE.ino) is None
    assert cache.name(PARENT, NAME) is None
    assert cache.xattr_names(FILE.ino) is None


def test_an_answer_to_a_later_question_enters() -> None:
    """And one that speaks of something else, whenever it was asked."""
    cache = NameCache()
    asked = asked_now(cache)
    cache.drop([FILE.ino], [(PARENT, NAME)])
    cache.answers(asked)
    cache.put_name(PARENT, b"other", ABSENT)
    cache.answers(asked_now(cache))
    cache.put_attr(FILE)
    assert cache.name(PARENT, b"other") == ABSENT
    assert cache.attr(FILE.ino) == FILE


def test_the_answer_to_an_own_change_enters_and_older_ones_do_not() -> None:
    """What a command touched leaves, its own answer enters; what was asked before it knew less."""
    cache = NameCache()
    before = asked_now(cache)
    cache.answers(asked_now(cache))
    cache.forget([FILE.ino], [])
    newer = FILE._replace(changed=LogIndex(FILE.changed + 1))
    cache.put_attr(newer)
    cache.note([FILE.ino], [])
    assert cache.attr(FILE.ino) == newer
    cache.forget([FILE.ino], [])
    cache.answers(before)
    cache.put_attr(FILE)
    assert cache.attr(FILE.ino) is None


def test_after_a_reset_and_after_many_changes_old_answers_stay_out() -> None:
    """Memory for drops is bounded: in doubt an answer does not enter."""
    cache = NameCache()
    asked = asked_now(cache)
    cache.clear()
    cache.answers(asked)
    cache.put_attr(FILE)
    assert cache.attr(FILE.ino) is None
    asked = asked_now(cache)
    for number in range(DROPPED_MAX + 2):
        cache.drop([Ino(100 + number)], [])
    cache.answers(asked)
    cache.put_attr(FILE)
    assert cache.attr(FILE.ino) is None


def test_a_directory_that_somebody_takes_over_is_forgotten_with_all_its_names() -> None:
    """Names and absences, those that are still on their way too; other directories stay."""
    cache = NameCache()
    asked = asked_now(cache)
    cache.answers(asked)
    cache.put_name(PARENT, NAME, FILE.ino)
    cache.put_name(PARENT, b"absent", ABSENT)
    cache.put_name(Ino(2), NAME, FILE.ino)
    cache.drop([PARENT], [(PARENT, EVERY_NAME)])
    cache.answers(asked)
    cache.put_name(PARENT, b"late", FILE.ino)
    assert [cache.name(PARENT, name) for name in (NAME, b"absent", b"late")] == [None] * 3
    assert cache.name(Ino(2), NAME) == FILE.ino
    cache.answers(asked_now(cache))
    cache.put_name(PARENT, NAME, FILE.ino)
    assert cache.name(PARENT, NAME) == FILE.ino


def test_all_names_of_a_directory_go_also_after_others_had_to_make_room() -> None:
    cache = NameCache(names_max=16)
    for number in range(40):
        cache.put_name(Ino(1 + number % 2), b"%d" % number, FILE.ino)
    cache.drop([], [(Ino(1), EVERY_NAME)])
    assert all(cache.name(Ino(1), b"%d" % number) is None for number in range(0, 40, 2))
    assert cache.name(Ino(2), b"39") == FILE.ino


def test_whoever_asks_hears_of_attributes_that_are_others_now() -> None:
    """By an answer, a change made here or elsewhere, known before or not; the same again is none,
    nor is what goes for want of room."""
    cache = NameCache(attrs_max=1)
    changed: list[Ino] = []
    cache.on_changed = changed.append
    cache.put_attr(FILE)
    assert changed == [FILE.ino], "the kernel may have what was forgotten here"
    cache.put_attr(FILE._replace())
    assert changed == [FILE.ino]
    newer = FILE._replace(changed=LogIndex(FILE.changed + 1), nlink=9)
    cache.put_attr(newer)
    assert changed == [FILE.ino] * 2
    cache.put_attr(FILE._replace(ino=Ino(8)))
    assert changed == [FILE.ino, FILE.ino, 8]
    cache.forget([FILE.ino], [])
    assert changed == [FILE.ino, FILE.ino, 8, FILE.ino]
    cache.drop([Ino(9)], [])
    assert changed[-1] == 9
