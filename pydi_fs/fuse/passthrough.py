"""Backing files: which local files the kernel reads by itself, without a request. Linux 6.9 on.

`binding` makes it when the kernel agreed, `dispatch` asks it at each OPEN. A backing id belongs to
the connection; it stays registered as long as the file stays open in `vfs.local_blobs`, because
registering costs twice as much as the rest of an open.

The kernel opens the backing file with the flags of the program's open(2) and our rights. So only
opens for reading may ever be answered with an id: a write would change an immutable blob.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
from collections.abc import Iterable
from struct import Struct

from pydi_fs.vfs.journalling import Journal
from pydi_fs.vfs.local_blobs import LocalBlob

log = logging.getLogger("pydi.fuse")

FUSE_DEV_IOC_BACKING_OPEN = 0x4010E501
FUSE_DEV_IOC_BACKING_CLOSE = 0x4004E502
_BACKING_MAP = Struct("=iIQ")  # struct fuse_backing_map: fd flags padding
_BACKING_ID = Struct("=I")


class Passthrough:
    """One object per mount."""

    def __init__(self, device: int, journal: Journal | None = None) -> None:
        self._device = device  # -1 once stopped
        self._journal = journal or Journal()
        self._ids: dict[LocalBlob, int] = {}

    def why_not(self) -> str | None:
        """Why this process can't use it, None when it can. The kernel asks for CAP_SYS_ADMIN."""
        fd = os.memfd_create("probe")
        try:
            self._unregister(self._register(fd))
        except OSError as exc:
            return exc.strerror or str(exc)
        finally:
            os.close(fd)
        return None

    def backing_id(self, local: LocalBlob) -> int | None:
        """The id under which the kernel knows the file, None if it refuses this one."""
        known = self._ids.get(local)
        if known is not None or self._device < 0:
            return known
        try:
            number = self._register(local.fd)
        except OSError as exc:
            # Also ELOOP: the blobs lie on a file system that is stacked itself, such as overlayfs.
            log.info("no passthrough to a file: %s", exc.strerror)
            return None
        self._ids[local] = number
        local.on_close = lambda: self._forget(local)
        return number

    def close_all(self, numbers: Iterable[int]) -> None:
        """Registered by the worker before this one. Files that are open under them stay so."""
        for number in numbers:
            self._close(number)

    def stop(self) -> None:
        """The device is about to be closed, which ends all registrations."""
        self._device = -1
        self._ids.clear()

    def _forget(self, local: LocalBlob) -> None:
        number = self._ids.pop(local, None)
        if number is not None:
            self._close(number)

    def _close(self, number: int) -> None:
        try:
            self._unregister(number)
        except OSError as exc:
            if exc.errno not in (errno.ENODEV, errno.ENOTCONN):  # unmounted meanwhile
                log.warning("backing id %d could not be closed: %s", number, exc)

    def _register(self, fd: int) -> int:
        # With a mutable argument ioctl(2)'s result is given, which is the id.
        argument = bytearray(_BACKING_MAP.pack(fd, 0, 0))
        number: int = fcntl.ioctl(self._device, FUSE_DEV_IOC_BACKING_OPEN, argument)
        self._journal.backing(number, True)
        return number

    def _unregister(self, number: int) -> None:
        self._journal.backing(number, False)
        fcntl.ioctl(self._device, FUSE_DEV_IOC_BACKING_CLOSE, _BACKING_ID.pack(number))
