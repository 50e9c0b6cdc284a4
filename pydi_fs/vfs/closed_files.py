"""Files that were open here a moment ago, as the cluster still has them. Called by `vfs.Vfs` only.

Who opens one again need not ask what it consists of. What is in here is the newest version, for as
long as the caches of names and attributes are: it leaves with the same words.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from pydi_fs.vfs.open_file import OpenFile
from pydi_node.ids import Ino
from pydi_node.records import Attr

FILES_MAX = 2048  # some 2 KiB each, without content
CONTENT_MAX_BYTES = 8 << 20  # of small files, which came with their version or were written here


class ClosedFiles:
    """Least recently closed first out."""

    def __init__(
        self, files_max: int = FILES_MAX, content_max_bytes: int = CONTENT_MAX_BYTES
    ) -> None:
        self._files: OrderedDict[Ino, OpenFile] = OrderedDict()
        self._files_max = files_max
        self._content_max_bytes = content_max_bytes
        self._content_bytes = 0

    def put(self, file: OpenFile) -> None:
        """``file`` was closed, and is the cluster's newest version: `OpenFile.is_published`."""
        self.drop((file.ino,))
        self._files[file.ino] = file
        self._content_bytes += file.content_bytes
        while len(self._files) > self._files_max or self._content_bytes > self._content_max_bytes:
            self.drop((next(iter(self._files)),))

    def take(self, attr: Attr) -> OpenFile | None:
        """The file with these attributes, which is open from now on."""
        file = self._files.get(attr.ino)
        if file is None:
            return None
        self.drop((attr.ino,))
        if file.attr.version != attr.version:
            return None
        file.attr = attr
        return file

    def drop(self, inos: Iterable[Ino]) -> None:
        """These changed."""
        if self._files:
            for ino in inos:
                file = self._files.pop(ino, None)
                if file is not None:
                    self._content_bytes -= file.content_bytes

    def clear(self) -> None:
        self._files.clear()
        self._content_bytes = 0
