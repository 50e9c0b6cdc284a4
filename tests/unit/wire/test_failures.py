"""Error answers: every exception of ours arrives as itself."""

from __future__ import annotations

import errno

import pytest
from hypothesis import given, settings

from pydi_node import errors
from pydi_node.errors import (
    FileError,
    NotLeaderError,
    PydiError,
    UnavailableError,
    UserError,
    errno_of,
)
from pydi_node.wire import codec
from pydi_node.wire.failures import SENTENCE_MAX_CHARACTERS, Failure, failure_of
from tests.unit.wire import samples


def over_the_wire(error: BaseException) -> PydiError:
    return Failure.from_wire(codec.unpack_header(codec.pack(failure_of(error)))).exception()


def all_errors():
    """One of each class of errors.py that an answer may carry."""
    for cls in vars(errors).values():
        if not isinstance(cls, type) or not issubclass(cls, PydiError):
            continue
        if issubclass(cls, errors.ProtocolError):
            continue  # ends the connection instead
        if cls is FileError:
            yield FileError(errno.ENOTEMPTY, "detail")
        elif cls is NotLeaderError:
            yield NotLeaderError(5)
        else:
            yield cls("one sentence")


@pytest.mark.parametrize("error", list(all_errors()), ids=lambda error: type(error).__name__)
def test_exception_arrives_as_itself(error):
    """Class, sentence, errno and whether to retry are the same on both sides."""
    arrived = over_the_wire(error)
    assert type(arrived) is type(error)
    assert str(arrived) == str(error)
    assert errno_of(arrived) == errno_of(error)
    assert getattr(arrived, "retry", None) == getattr(error, "retry", None)
    assert getattr(arrived, "leader", None) == getattr(error, "leader", None)


def test_unknown_leader_stays_unknown():
    """No hint is also an answer."""
    assert over_the_wire(NotLeaderError(None)).leader is None  # type: ignore[attr-defined]


def test_retry_of_one_error_is_kept():
    """An instance may say otherwise than its class."""
    error = UnavailableError("starting")
    error.retry = False
    assert over_the_wire(error).retry is False  # type: ignore[attr-defined]


def test_os_error_keeps_its_errno():
    """A full disk is ENOSPC for the program, wherever the disk is."""
    arrived = over_the_wire(OSError(errno.ENOSPC, "No space left on device"))
    assert isinstance(arrived, FileError)
    assert errno_of(arrived) == errno.ENOSPC


def test_bug_of_the_node_does_not_tell_its_text():
    """An unexpected exception may hold anything; it becomes EIO without its text."""
    arrived = over_the_wire(ValueError("secret"))
    assert type(arrived) is PydiError
    assert errno_of(arrived) == errno.EIO
    assert "secret" not in str(arrived)


def test_unlisted_error_of_ours_arrives_as_its_parent():
    """A new class without a code is still an error of its kind."""

    class FullMoonError(UnavailableError):
        pass

    assert type(over_the_wire(FullMoonError("tonight"))) is UnavailableError


def test_sentence_is_cut_and_always_text():
    """File names need not be UTF-8, and sentences are bounded."""
    arrived = over_the_wire(UserError("\udcff" + "x" * 5000))
    assert str(arrived) == "?" + "x" * (SENTENCE_MAX_CHARACTERS - 1)


def test_code_of_a_newer_node_is_an_errno_at_least():
    """What is not known is a plain file error with the node's errno and sentence."""
    arrived = Failure(200, errno.EDQUOT, "quota", False, None).exception()
    assert type(arrived) is FileError
    assert (arrived.errno, str(arrived)) == (errno.EDQUOT, "quota")


@settings(deadline=None)
@given(samples.plain_values)
def test_any_failure_decodes_or_is_a_value_error(value):
    """Nothing else comes out of a peer's array."""
    try:
        Failure.from_wire(value)
    except ValueError:
        return
