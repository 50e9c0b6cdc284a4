"""One file has the content of another, or of its own past, without a copy of a byte.

Called by the commands that copy, restore, upload and edit. A commit names the blobs that the source
has; so it costs the same for a gigabyte as for nothing, and happens as a whole.
"""

from __future__ import annotations

from pydi_fs.commands_session import Session
from pydi_node.commands import EXTENTS_PER_COMMAND_MAX, Commit
from pydi_node.ids import Ino, LogIndex, TimeNs
from pydi_node.records import Attr, FileVersion
from pydi_node.wire.messages import GetFile

EXTENTS_PER_COMMIT = EXTENTS_PER_COMMAND_MAX // 4  # a command near 1 MiB


async def commit_same(
    session: Session,
    target: Ino,
    source: Ino,
    at: LogIndex | None = None,
    *,
    base: LogIndex | None = None,
    mtime_ns: int | None = None,
) -> Attr:
    """``target`` has the content that ``source`` has: all of it with the first commit, except for
    files of more extents than one command can name. The target's new attributes.

    Permissions are the caller's business: a commit is what a descriptor that is open may do.

    at        the source's content as of then; None: now.
    base      the version that the target must have, else FileError(ESTALE) and nothing changed.
    mtime_ns  of the target; None: now.
    """
    version: FileVersion = await session.client.call(GetFile(source, at))
    extents = version.extents
    attr = version.attr
    for start in range(0, max(len(extents), 1), EXTENTS_PER_COMMIT):
        attr = await session.vfs.commit(
            Commit(
                caller=session.caller,
                ino=target,
                base_version=base if start == 0 else None,
                cut=0 if start == 0 else None,
                size=version.attr.size,
                append=False,
                extents=extents[start : start + EXTENTS_PER_COMMIT],
                blobs=(),
                mtime_ns=None if mtime_ns is None else TimeNs(mtime_ns),
            )
        )
    return attr
