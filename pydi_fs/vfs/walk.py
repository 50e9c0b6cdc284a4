"""Walking a path, for users who think in paths; kernels walk by themselves. Called by `vfs.Vfs`."""

from __future__ import annotations

import errno
from typing import Protocol

from pydi_node.errors import FileError
from pydi_node.ids import ROOT_INO, Ino
from pydi_node.records import Attr

SYMLINKS_FOLLOWED_MAX = 40  # as Linux: path_resolution(7)


class Tree(Protocol):
    """What a walk asks."""

    async def getattr(self, ino: Ino) -> Attr: ...
    async def lookup(self, parent: Ino, name: bytes) -> Attr: ...
    async def readlink(self, ino: Ino) -> bytes: ...


async def walk(tree: Tree, path: bytes, follow: bool) -> Attr:
    """The inode at a path from the root; ``follow`` a link at its end. ENOENT, ENOTDIR, ELOOP."""
    attr = await tree.getattr(ROOT_INO)
    above: list[Attr] = []
    parts = [part for part in reversed(path.split(b"/")) if part not in (b"", b".")]
    links = 0
    while parts:
        part = parts.pop()
        if part == b"..":
            attr = above.pop() if above else attr
            continue
        if not attr.is_dir:
            raise FileError(errno.ENOTDIR)
        found = await tree.lookup(attr.ino, part)
        if found.is_symlink and (parts or follow):
            links += 1
            if links > SYMLINKS_FOLLOWED_MAX:
                raise FileError(errno.ELOOP)
            target = await tree.readlink(found.ino)
            if target.startswith(b"/"):
                attr, above = await tree.getattr(ROOT_INO), []
            parts += [p for p in reversed(target.split(b"/")) if p not in (b"", b".")]
            continue
        above.append(attr)
        attr = found
    return attr
