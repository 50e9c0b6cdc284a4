"""How much a copy will be in all, counted beside it, so that progress can tell what is left.

Called by `pydi_fs.commands_copy`. Counting never holds the copy up, and nobody needs it where
nobody looks; what can't be counted the copy itself will complain about.
"""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager

from pydi_fs.commands_session import FILE_ERRORS, Session
from pydi_fs.progress import Progress
from pydi_node.errors import UnavailableError

COUNT_STEP = 256  # local files between two turns of the loop


@contextmanager
def local(progress: Progress, sources: Sequence[bytes]) -> Iterator[None]:
    """While this is open, the totals of local files and directories are found out."""
    if not progress.watched or not sources:
        yield
        return
    task = asyncio.ensure_future(_count_local(progress, sources))
    try:
        yield
    finally:
        task.cancel()


async def _count_local(progress: Progress, sources: Sequence[bytes]) -> None:
    pending = list(sources)
    files = size = steps = 0
    while pending:
        path = pending.pop()
        try:
            status = os.lstat(path)
            if stat.S_ISDIR(status.st_mode):
                pending += [os.path.join(path, name) for name in os.listdir(path)]
                continue
        except OSError:
            continue
        files += 1
        size += status.st_size if stat.S_ISREG(status.st_mode) else 0
        steps += 1
        if steps % COUNT_STEP == 0:
            await asyncio.sleep(0)
    progress.expect(files, size)


@asynccontextmanager
async def remote(session: Session, sources: Sequence[bytes]) -> AsyncIterator[None]:
    """While this is open, the totals of files and directories of the tree are found out."""
    if not session.progress.watched or not sources:
        yield
        return
    task = asyncio.ensure_future(_count_remote(session, sources))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


async def _count_remote(session: Session, sources: Sequence[bytes]) -> None:
    files = size = 0
    try:
        pending = [await session.resolve(source, follow=False) for source in sources]
        while pending:
            attr = pending.pop()
            if attr.is_dir:
                pending += [entry.attr for entry in await session.entries(attr.ino)]
                continue
            files += 1
            size += attr.size if attr.is_regular else 0
    except (*FILE_ERRORS, UnavailableError):
        return
    session.progress.expect(files, size)
