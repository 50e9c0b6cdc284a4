"""The exception tree, and the one table from our errors to errno.

    PydiError
    ├── UserError              a person's mistake or a machine's refusal: one sentence, an exit code
    ├── FileError              outcome of a file operation, errno decided by the tree
    ├── UnavailableError       expected trouble; ``retry``: may the same request be sent again
    │   ├── NotLeaderError     another node leads (or nobody does)
    │   ├── BusyError          too much under way: nothing was accepted, try a little later
    │   ├── NoQuorumError      too few voters reachable: writes refused, reads go on
    │   ├── DisconnectedError  the peer went away; the request may or may not have been executed
    │   └── DeadlineError      the deadline passed
    ├── BlobError
    │   ├── BlobMissingError   no copy here: ask the next holder
    │   └── BlobCorruptError   checksum mismatch: already quarantined, repair is queued
    ├── NoSpaceError           the store's reserve would be touched
    ├── CorruptionError        log or database damaged: refuse to start, never overwrite
    └── ProtocolError
        ├── LocalProtocolError   we misused a protocol object: a bug of ours
        └── RemoteProtocolError  the peer broke the protocol: drop that connection, not the node

Imports nothing of PyDi.
"""

from __future__ import annotations

import errno
import os

# Exit codes of every command, a contract with scripts that call us.
EXIT_OK = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_UNREACHABLE = 3


class PydiError(Exception):
    """Root of all errors that PyDi raises on purpose."""


class UserError(PydiError):
    """One sentence for a person and the exit code of the command; never shown with a traceback."""

    def __init__(self, sentence: str, exit_code: int = EXIT_FAILED) -> None:
        super().__init__(sentence)
        self.exit_code = exit_code


class FileError(PydiError):
    """A file operation's outcome other than success.

    errno  positive errno value, the same on every replica.
    """

    def __init__(self, errno_: int, detail: str = "") -> None:
        super().__init__(f"{os.strerror(errno_)}{': ' + detail if detail else ''}")
        self.errno = errno_


class UnavailableError(PydiError):
    """Expected trouble: the cluster can't serve this now."""

    retry = True


class NotLeaderError(UnavailableError):
    """This node does not lead; ``leader`` is the node that does, None when nobody is known."""

    def __init__(self, leader: int | None) -> None:
        super().__init__(f"not the leader; leader is {leader if leader is not None else 'unknown'}")
        self.leader = leader


class BusyError(UnavailableError):
    """Too much waits for the disk or the majority; nothing was accepted, try a little later."""


class NoQuorumError(UnavailableError):
    """A majority of the voters is not reachable; nothing was acknowledged."""


class DisconnectedError(UnavailableError):
    """The connection ended before the answer; retry only under the same (client id, serial)."""


class DeadlineError(UnavailableError):
    """The deadline passed before an answer; the outcome is unknown."""

    retry = False


class BlobError(PydiError):
    """Trouble with one blob."""


class BlobMissingError(BlobError):
    """This node has no copy: ask the next holder."""


class BlobCorruptError(BlobError):
    """The stored bytes fail their checksum; already quarantined, repair is queued."""


class NoSpaceError(PydiError):
    """The disk's reserve would be touched; nothing was stored."""


class CorruptionError(PydiError):
    """Log or database damaged; the message names the file and what to do; nothing was changed."""


class ProtocolError(PydiError):
    """Someone broke the wire protocol."""


class LocalProtocolError(ProtocolError):
    """We did: a bug, not the peer's fault."""


class RemoteProtocolError(ProtocolError):
    """The peer did: drop that connection and keep serving the others."""


# Most specific class first: the first match along an exception's MRO decides.
_ERRNO_OF: dict[type[BaseException], int] = {
    NoQuorumError: errno.EROFS,
    NotLeaderError: errno.EROFS,
    BusyError: errno.EAGAIN,
    DisconnectedError: errno.EIO,
    DeadlineError: errno.EIO,
    BlobError: errno.EIO,
    NoSpaceError: errno.ENOSPC,
    ProtocolError: errno.EPROTO,
    CorruptionError: errno.EIO,
}


def errno_of(error: BaseException) -> int:
    """The errno a program sees for ``error``; EIO for whatever has no entry of its own."""
    if isinstance(error, FileError):
        return error.errno
    for cls in type(error).__mro__:
        if cls in _ERRNO_OF:
            return _ERRNO_OF[cls]
    if isinstance(error, OSError) and error.errno:
        return error.errno
    return errno.EIO
