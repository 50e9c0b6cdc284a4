"""Error answers: the one table between our exceptions and their codes on the wire, both ways.

Used by session.py: ``failure_of`` on the side that answers, ``Failure.exception`` on the side that
asked, so that a caller sees the same class of exception as if the code had run beside it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from pydi_node.errors import (
    BlobCorruptError,
    BlobError,
    BlobMissingError,
    BusyError,
    CorruptionError,
    DeadlineError,
    DisconnectedError,
    FileError,
    NoQuorumError,
    NoSpaceError,
    NotLeaderError,
    PydiError,
    UnavailableError,
    UserError,
    errno_of,
)
from pydi_node.ids import NODE_NUMBER_MAX
from pydi_node.wire import errnos, fields

SENTENCE_MAX_CHARACTERS = 2000  # a log line, not a log
ERRNO_MAX = 4095  # the kernel's MAX_ERRNO


class Failure(NamedTuple):
    """An error answer."""

    code: int  # which exception, by the table below
    errno: int  # what a program sees, positive
    sentence: str  # for a person
    retry: bool  # the same request may be sent again
    leader: int | None  # the node to ask instead, when known

    def exception(self) -> PydiError:
        """The exception to raise for it; a code of a newer peer becomes a plain FileError."""
        build = _BUILDERS.get(self.code, _file_error)
        error = build(self)
        if isinstance(error, UnavailableError):
            error.retry = self.retry
        return error

    @classmethod
    def from_wire(cls, value: Any) -> Failure:
        """The failure in a peer's array; ValueError for anything malformed."""
        if type(value) is not tuple or len(value) != 5:
            raise ValueError("failure: not five fields")
        code, errno_, sentence, retry, leader = value
        return cls(
            _CODE(code),
            errnos.from_wire(_ERRNO(errno_)),
            _SENTENCE(sentence),
            fields.boolean(retry),
            _LEADER(leader),
        )


def failure_of(error: BaseException) -> Failure:
    """The error answer for ``error``: the code of its nearest listed class.

    What is not listed (a bug of ours) becomes "internal" without its text, which may hold anything;
    the node's own log has it.
    """
    for cls in type(error).__mro__:
        code = _CODES.get(cls)
        if code is not None:
            break
    else:
        return Failure(_INTERNAL, errno_of(error), "internal error of the node", False, None)
    leader = error.leader if isinstance(error, NotLeaderError) else None
    retry = isinstance(error, UnavailableError) and error.retry
    # Surrogates (from file names) can't be packed as text.
    sentence = str(error).encode(errors="replace").decode()[:SENTENCE_MAX_CHARACTERS]
    return Failure(code, errno_of(error), sentence, retry, leader)


def _file_error(failure: Failure) -> FileError:
    error = FileError(failure.errno)
    error.args = (failure.sentence,)
    return error


def _not_leader(failure: Failure) -> NotLeaderError:
    return NotLeaderError(failure.leader)


def _with_sentence(cls: type[PydiError]) -> Callable[[Failure], PydiError]:
    return lambda failure: cls(failure.sentence)


_INTERNAL = 1

# Codes are part of the protocol: never renumber, only add.
_TABLE: tuple[tuple[int, type[BaseException], Callable[[Failure], PydiError]], ...] = (
    (_INTERNAL, PydiError, _with_sentence(PydiError)),
    (2, FileError, _file_error),
    (2, OSError, _file_error),
    (3, UserError, _with_sentence(UserError)),
    (4, UnavailableError, _with_sentence(UnavailableError)),
    (5, NotLeaderError, _not_leader),
    (6, NoQuorumError, _with_sentence(NoQuorumError)),
    (7, DisconnectedError, _with_sentence(DisconnectedError)),
    (8, DeadlineError, _with_sentence(DeadlineError)),
    (9, BusyError, _with_sentence(BusyError)),
    (10, BlobError, _with_sentence(BlobError)),
    (11, BlobMissingError, _with_sentence(BlobMissingError)),
    (12, BlobCorruptError, _with_sentence(BlobCorruptError)),
    (13, NoSpaceError, _with_sentence(NoSpaceError)),
    (14, CorruptionError, _with_sentence(CorruptionError)),
)
_CODES = {cls: code for code, cls, _ in _TABLE}
_BUILDERS = {code: build for code, _, build in _TABLE}

_CODE = fields.integer(1, 255)
_ERRNO = fields.integer(1, ERRNO_MAX)
_SENTENCE = fields.text(SENTENCE_MAX_CHARACTERS)
_LEADER = fields.optional(fields.integer(1, NODE_NUMBER_MAX))


def table() -> list[tuple[int, str]]:
    """(code, class names) for the documentation, ascending."""
    names: dict[int, list[str]] = {}
    for code, cls, _ in _TABLE:
        names.setdefault(code, []).append(cls.__name__)
    return [(code, ", ".join(names[code])) for code in sorted(names)]
