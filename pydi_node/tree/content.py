"""Commands on the content of a regular file: a new version by changes, and cloned ranges.

Same contract as names.py. Mode bits are not looked at: whoever commits has the file open, and the
check was made when it was opened, as for write(2).
"""

from __future__ import annotations

import errno
from collections.abc import Sequence

from blake3 import blake3

from pydi_node.commands import CloneRange, Commit, Compact, PutFile
from pydi_node.errors import FileError
from pydi_node.records import FILE_SIZE_MAX, HOLE, IN_TREE, Extent, Result, Touched
from pydi_node.tree import extents
from pydi_node.tree.inodes import drop_set_id_bits, require_regular, time_or_now
from pydi_node.tree.permissions import require_inode
from pydi_node.tree.store import Inode, Store, StoredExtent


def commit(store: Store, command: Commit) -> Result:
    inode = require_inode(store, command.ino)
    require_regular(inode)
    if command.base_version is not None and command.base_version != inode.version:
        raise FileError(errno.ESTALE)
    changes, size = _placed(inode, command)
    check_blobs(store, command)

    take_blobs(store, inode, command)
    store.amend(inode)
    cut = command.cut if command.cut is not None and command.cut < inode.size else None
    rewrite(store, inode, changes, cut)
    inode.size = size
    inode.version = store.index
    inode.ctime_ns = store.now_ns
    inode.mtime_ns = (
        store.now_ns if command.mtime_ns is None else time_or_now(command.mtime_ns, store.now_ns)
    )
    drop_set_id_bits(inode, command.caller)
    return Result(0, inode.attr(), Touched((inode.ino,)))


def compact(store: Store, command: Compact) -> Result:
    inode = require_inode(store, command.ino)
    require_regular(inode)
    if command.version != inode.version:
        raise FileError(errno.ESTALE)
    if any(e.blob == HOLE or e.offset + e.length > inode.size for e in command.extents):
        raise FileError(errno.EINVAL)
    check_blobs(store, command)
    take_blobs(store, inode, command)
    store.amend(inode)
    rewrite(store, inode, command.extents, None)
    return Result(0, inode.attr(), Touched((inode.ino,)))


def clone_range(store: Store, command: CloneRange) -> Result:
    source = require_inode(store, command.source)
    target = require_inode(store, command.target)
    require_regular(source)
    require_regular(target)
    length = max(0, min(command.length, source.size - command.source_offset))
    distance = command.target_offset - command.source_offset
    if source is target and length > 0 and abs(distance) < length:
        raise FileError(errno.EINVAL)  # copy_file_range(2): overlapping ranges
    end = command.target_offset + length
    if end > FILE_SIZE_MAX:
        raise FileError(errno.EFBIG)
    if length == 0:
        return Result(0, (target.attr(), 0))

    first, last = command.source_offset, command.source_offset + length
    stored = store.extents(source.ino, first, last)
    copied = extents.clip([s.extent for s in stored], first, last)
    store.require_countable(copied, ())
    changes = extents.shift(extents.fill(copied, first, last), distance)
    factor = store.factor_of(target)
    for blob in sorted({extent.blob for extent in copied}):
        known = store.blob(blob)
        assert known is not None, blob
        store.share_blob(known, factor)
    store.amend(target)
    rewrite(store, target, changes, None)
    target.size = max(target.size, end)
    target.version = store.index
    target.ctime_ns = target.mtime_ns = store.now_ns
    drop_set_id_bits(target, command.caller)
    return Result(0, (target.attr(), length), Touched((target.ino,)))


def _placed(inode: Inode, command: Commit) -> tuple[Sequence[Extent], int]:
    """The changes at their offsets in the file, and its size after them.

    FileError(EINVAL) for a change past that size or a cut past it, FileError(EFBIG) for an append
    that would pass FILE_SIZE_MAX.
    """
    cut = command.cut
    if cut is not None and cut > command.size:
        raise FileError(errno.EINVAL)
    present = inode.size if cut is None else min(inode.size, cut)
    changes: Sequence[Extent] = command.extents
    added_end = max((e.offset + e.length for e in changes), default=0)
    base = present if command.append else 0
    if cut is not None:
        size = command.size
    elif command.append:
        size = present + command.size
    else:
        size = max(present, command.size)
    if size > FILE_SIZE_MAX or base + added_end > FILE_SIZE_MAX:
        raise FileError(errno.EFBIG)
    if base + added_end > size:
        raise FileError(errno.EINVAL)
    return (extents.shift(changes, base) if base else changes), size


def take_blobs(store: Store, inode: Inode, command: Commit | Compact | PutFile) -> None:
    """The tree knows the blobs that the command names, and how many copies the file asks for."""
    factor = store.factor_of(inode)
    described = {info.blob: info for info in command.blobs}
    for blob in sorted({extent.blob for extent in command.extents if extent.blob != HOLE}):
        known = store.blob(blob)
        if known is None:
            store.add_blob(described[blob], factor, command.content)
        else:
            store.share_blob(known, factor)


def check_blobs(store: Store, command: Commit | Compact | PutFile) -> None:
    """FileError(EINVAL) unless every blob is known or described, alike, and long enough, and the
    content that is given is that of the one that it is given for; FileError(ENOSPC)."""
    in_tree = [info for info in command.blobs if info.is_in_tree]
    content = command.content
    if len(in_tree) != (content is not None):
        raise FileError(errno.EINVAL)
    if content is not None and (in_tree[0].size, in_tree[0].checksum) != (
        len(content),
        blake3(content).digest(),
    ):
        raise FileError(errno.EINVAL)
    described = {info.blob: info for info in command.blobs}
    named = {extent.blob for extent in command.extents if extent.blob != HOLE}
    if len(described) != len(command.blobs) or not described.keys() <= named:
        raise FileError(errno.EINVAL)
    size_of: dict[int, int] = {}
    uncounted: list[int] = []
    for blob in sorted(named):
        known = store.blob(blob)
        info = described.get(blob)
        if known is None:
            if info is None or not info.holders:
                raise FileError(errno.EINVAL)
            size_of[blob] = info.size
        else:
            # The holders of a known blob are repair's to change: a late client could name one
            # that has given its copy away since.
            if info is not None and (info.size, info.checksum) != (known.size, known.checksum):
                raise FileError(errno.EINVAL)
            # Content under a name that somebody took before: it would be answered for and not kept.
            if info is not None and info.is_in_tree and known.holders != IN_TREE:
                raise FileError(errno.EINVAL)
            size_of[blob] = known.size
        if known is None or not known.refs:
            uncounted.append(size_of[blob])
    for extent in command.extents:
        if extent.blob != HOLE and extent.blob_offset + extent.length > size_of[extent.blob]:
            raise FileError(errno.EINVAL)
    store.require_countable(command.extents, uncounted)


def rewrite(store: Store, inode: Inode, changes: Sequence[Extent], cut: int | None) -> None:
    """The amended file's rows after the cut, if any, and the changes. Reads and writes only rows
    that these can meet or join, so that a small change of a long file stays small."""
    if not changes and cut is None:
        return
    first = min((e.offset for e in changes), default=FILE_SIZE_MAX)
    last = max((e.offset + e.length for e in changes), default=0)
    old: Sequence[StoredExtent]
    if cut is not None:
        old = store.extents(inode.ino, min(first, cut))
        base = extents.cut([stored.extent for stored in old], cut)
    else:
        old = store.extents(inode.ino, first, last)
        base = [stored.extent for stored in old]
    store.replace_extents(inode, old, extents.splice(base, changes))
