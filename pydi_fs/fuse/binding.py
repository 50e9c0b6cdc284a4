"""One mount by the kernel's own protocol: device, dispatcher and notifier joined to a vfs.

Called by `pydi_fs.mount_cli`. Life of a mount::

    binding = KernelBinding(vfs, mountpoint, options)
    await binding.mount()            # returns when programs can use it
    await binding.wait_unmounted()   # umount(8), or the last user of a lazy unmount left
    await binding.unmount()          # or by ourselves; harmless after the other

Where a supervisor holds the device (`pydi_fs.supervisor`), another process can go on with the mount
of one that died: ``binding.take_over(fd)`` instead of ``mount``.

The vfs is started before and stopped after. This process must never touch its own mount: the loop
would wait for an answer that only the loop can give.
"""

from __future__ import annotations

import asyncio
import errno
import io
import logging
import os
import re
import time
from collections.abc import Callable, Iterable, Sequence

from pydi_fs.fuse import codec, device
from pydi_fs.fuse.abi import InitFlag
from pydi_fs.fuse.dispatch import CACHE_TIMEOUT_S, Dispatcher
from pydi_fs.fuse.filesystem import Entries, FileSystem
from pydi_fs.fuse.keeping import Keeping
from pydi_fs.fuse.negotiation import REQUEST_MAX_BYTES, Negotiated
from pydi_fs.fuse.notify import Notifier
from pydi_fs.fuse.passthrough import Passthrough
from pydi_fs.fuse.printer import describe_invalidation
from pydi_fs.mount_options import MountOptions
from pydi_fs.vfs.journalling import Journal, KeptJournal
from pydi_fs.watch import Page
from pydi_node.errors import UserError
from pydi_node.ids import Ino
from pydi_node.records import EVERY_NAME

log = logging.getLogger("pydi.fuse")

# Requests read per wake-up. While an answer is written its program often runs at once and asks
# again, so the next request is already there (measured: 20-29 us a request without, 12-17 with);
# the limit keeps timers and the network from starving.
DRAIN_MAX = 64

PASSTHROUGH_LINUX = (6, 9)
CAP_SYS_ADMIN = 1 << 21

INIT_TIMEOUT_S = 10.0
# After a lazy unmount, for programs to close their files; what is left then is cut off. DESIGN
# allows 5 s for a clean end, publishing included.
DETACHED_WAIT_S = 1.0
UNMOUNT_WAIT_S = 2.0
NOTIFIER_STOP_S = 1.0

# The kernel's answers on the device that mean that the mount has ended.
_ENDED = frozenset((errno.ENODEV, errno.ECONNABORTED, errno.ENOTCONN, errno.EBADF, errno.EPERM))


class KernelBinding:
    """Serves ``vfs`` on ``mountpoint``; see the module."""

    def __init__(
        self,
        vfs: FileSystem,
        mountpoint: str,
        options: MountOptions,
        cache_timeout_s: float = CACHE_TIMEOUT_S,
        journal: Journal | None = None,
        keep: Callable[[int], None] = lambda fd: None,
        watch: tuple[Page, Callable[[], None]] | None = None,
    ) -> None:
        """keep: called with the device once mounted, if the kernel lets another process go on.

        watch  what is shared with the process that takes back what the kernel may keep beyond a
               lease, and what wakes it; None: nothing may.
        """
        self._vfs = vfs
        self._mountpoint = mountpoint  # absolute once mounted
        self._options = options
        self._journal = journal or Journal()
        self._keep = keep
        self._watch = watch
        self._fd = -1
        self._read: Callable[[bytearray], int | None] | None = None  # from the device
        self._buffer = bytearray(REQUEST_MAX_BYTES)
        self._view = memoryview(self._buffer)
        self._dispatcher = Dispatcher(
            vfs,
            self._write,
            on_ready=self._on_ready,
            forget_attributes=self._forget_attributes,
            drop_listings=self._drop_listings,
            handed_out=self._on_handed_out,
            telling=lambda: self._notifier.telling() if self._notifier is not None else None,
            named=self._on_named,
            remembered_s=self._remembered_s,
            unheard=self._forget_names,
            cache_timeout_s=cache_timeout_s,
            kernel_checks=options.default_permissions,
            passthrough_after_s=options.passthrough_after_s if self.may_pass(options) else None,
            journal=self._journal,
            debug=options.debug,
        )
        self._notifier: Notifier | None = None  # from INIT on
        self._has_passthrough = False  # likewise
        self._has_resend = False  # likewise
        self._resends_come = False
        self._ready = asyncio.Event()
        self._ended = asyncio.Event()
        self._closing: asyncio.Task[None] | None = None
        self._device = 0  # st_dev of the mount, known once mounted

    @staticmethod
    def may_pass(options: MountOptions) -> bool:
        """Shall files be passed through, and are system and process such that they can be?"""
        return options.passthrough_after_s is not None and _may_pass_through()

    async def mount(self) -> None:
        """Returns when programs can use the mount. UserError with one sentence if that fails."""
        self._options.validate()
        # Before the kernel can remember anything.
        self._vfs.on_invalidate = self._on_invalidate
        fd, self._mountpoint = await device.mount(self._mountpoint, self._options)
        self._own(fd)
        asyncio.get_running_loop().add_reader(fd, self._on_readable)
        try:
            await asyncio.wait_for(self._ready.wait(), INIT_TIMEOUT_S)
        except TimeoutError:
            await self.unmount()
            raise UserError(f"the kernel did not begin to use {self._mountpoint}") from None
        self._begin_passthrough()
        self._device = device.device_number(self._mountpoint)
        device.raise_read_ahead(self._device)
        if self._has_resend:
            self._keep(self._fd)
        if self._journal.keeps:
            survives = "on" if self._has_resend else "off (this kernel has none)"
            log.info("restart under open files: %s", survives)
        log.info("mounted on %s", self._mountpoint)

    def take_over(self, fd: int, kept: Sequence[int] = ()) -> None:
        """Go on with the mount of a worker that died. The vfs is restored and started.

        fd    the device, which this binding owns from here on.
        kept  node ids whose attributes the kernel was told to keep.
        """
        state = self._journal.state
        assert state is not None
        assert state.agreed is not None
        self._vfs.on_invalidate = self._on_invalidate
        self._own(fd)
        self._device = device.device_number(self._mountpoint)
        agreed = state.agreed
        self._on_agreed(Negotiated(agreed.minor, InitFlag(agreed.flags), b""))
        nodeids = self._dispatcher.restore(state)
        self._begin_passthrough(state.backings)
        # Nobody told the kernel of changes meanwhile.
        assert self._notifier is not None
        self._notifier.invalidate(nodeids, (), everything=True, attributes=kept)
        self._resends_come = True
        try:
            self._notify(codec.encode_resend())
        except OSError as exc:
            if exc.errno not in _ENDED:
                raise
        asyncio.get_running_loop().add_reader(fd, self._on_readable)
        log.info("took over the mount on %s with %d open files", self._mountpoint, len(nodeids))

    def _own(self, fd: int) -> None:
        self._fd = fd
        # Takes less than readv(2) does in Python, and a look in vain is no exception.
        self._read = io.FileIO(fd, closefd=False).readinto

    async def wait_unmounted(self) -> None:
        """Returns when the mount has ended, by whomever, and every change of it has run."""
        await self._ended.wait()
        await self._close()

    async def unmount(self) -> None:
        """Unmount if still mounted; open files of programs are cut off after a moment."""
        if self._fd < 0:
            return
        if not self._ended.is_set():
            clean = await device.unmount(self._mountpoint)
            if not clean:
                log.warning("%s is in use; its programs lose it", self._mountpoint)
            try:
                await asyncio.wait_for(
                    self._ended.wait(), UNMOUNT_WAIT_S if clean else DETACHED_WAIT_S
                )
            except TimeoutError:
                pass  # closing the device ends what is left
        await self._close()

    async def _close(self) -> None:
        """Once, whoever asks; the second waits for the first."""
        if self._closing is None:
            self._closing = asyncio.create_task(self._close_once())
        await asyncio.shield(self._closing)

    async def _close_once(self) -> None:
        asyncio.get_running_loop().remove_reader(self._fd)
        # RELEASE is answered to nobody in the end, but what it publishes must still run.
        await self._dispatcher.stop()
        if self._dispatcher.keeping is not None:
            self._dispatcher.keeping.stop()
        notifier = self._notifier
        if notifier is not None and not await asyncio.to_thread(notifier.stop, NOTIFIER_STOP_S):
            # Its thread waits in the kernel for a request that will not be answered any more.
            log.warning("aborting the FUSE connection of %s", self._mountpoint)
            if device.abort_connection(self._device):
                await asyncio.to_thread(notifier.stop, NOTIFIER_STOP_S)
        if self._dispatcher.passthrough is not None:
            self._dispatcher.passthrough.stop()
        os.close(self._fd)
        self._fd = -1
        self._ended.set()

    # --- device -----------------------------------------------------------------------------------

    def _on_readable(self) -> None:
        assert self._read is not None
        read, buffer, handle = self._read, self._buffer, self._dispatcher.handle
        for _ in range(DRAIN_MAX):
            try:
                length = read(buffer)
            except FileNotFoundError:
                continue  # its program was killed while the request was being read
            except OSError as exc:
                self._on_end(exc)
                return
            if length is None:  # nothing more is there now
                if self._resends_come:
                    # They stood before all others.
                    self._resends_come = False
                    if isinstance(self._journal, KeptJournal):
                        self._journal.resends_over(self._dispatcher.running)
                return
            handle(self._view[:length])

    def _on_end(self, exc: OSError) -> None:
        asyncio.get_running_loop().remove_reader(self._fd)
        if exc.errno == errno.ENODEV:
            log.info("unmounted from %s", self._mountpoint)
        else:
            log.warning("the mount on %s ended: %s", self._mountpoint, exc.strerror)
        self._ended.set()

    def _write(self, message: Sequence[bytes]) -> bool:
        try:
            if len(message) == 1:
                os.write(self._fd, message[0])  # a third of the time of writev with one buffer
            else:
                os.writev(self._fd, message)
        except OSError as exc:
            # ENOENT: nobody waits for the answer, the request was aborted.
            if exc.errno == errno.ENOENT or exc.errno in _ENDED:
                return False
            raise
        return True

    def _on_ready(self, agreed: Negotiated) -> None:
        log.info("FUSE 7.%d, %s", agreed.minor, "epochs" if agreed.has_epoch else "no epochs")
        if isinstance(self._journal, KeptJournal):
            self._journal.agreed(agreed.minor, agreed.flags)
        self._on_agreed(agreed)

    def _on_agreed(self, agreed: Negotiated) -> None:
        if self._notifier is None:
            self._notifier = Notifier(self._notify, agreed.has_epoch)
            self._notifier.start()
            if self._watch is not None and agreed.has_epoch and agreed.has_resend:
                self._begin_keeping(self._notifier, *self._watch)
        self._has_passthrough = agreed.has_passthrough
        self._has_resend = agreed.has_resend
        self._ready.set()

    def _begin_passthrough(self, of_before: Iterable[int] = ()) -> None:
        """Not before the kernel has the answer to its INIT. of_before: ids that are not ours."""
        reason: str | None = "this kernel has none"
        if self._options.passthrough_after_s is None:
            reason = "as the options say"
        elif not self.may_pass(self._options):
            reason = "it needs Linux 6.9 and CAP_SYS_ADMIN"
        elif self._has_passthrough:
            passthrough = Passthrough(self._fd, self._journal)
            passthrough.close_all(tuple(of_before))
            reason = passthrough.why_not()
            if reason is None:
                self._dispatcher.passthrough = passthrough
        log.info("passthrough: %s", "on" if reason is None else f"off ({reason})")

    # --- caches of the kernel ---------------------------------------------------------------------

    def _notify(self, message: bytes) -> None:
        os.write(self._fd, message)

    def _on_handed_out(self, nodeid: int) -> None:
        if self._notifier is not None:
            self._notifier.handed_out(nodeid)

    def _on_named(self, directory: int) -> None:
        if self._notifier is not None:
            self._notifier.named(directory)

    def _remembered_s(self, timeout_s: float) -> float:
        return 0.0 if self._notifier is None else self._notifier.remembered_s(timeout_s)

    def _begin_keeping(self, notifier: Notifier, page: Page, ring: Callable[[], None]) -> None:
        keeping = Keeping(page, ring, self._forget_all, _lease_clock_ns)
        notifier.keeping = self._dispatcher.keeping = keeping
        self._vfs.on_lease = keeping.renewed

        def changed(ino: Ino) -> None:
            if keeping.knows(ino):  # only first node ids are kept
                notifier.forget_attributes(ino)

        self._vfs.on_changed = changed

    def _forget_all(self, names: bool) -> None:
        """Nothing that the kernel keeps may be used any more; of attributes, if not of names."""
        assert self._notifier is not None
        log.debug("the kernel forgets all that it was told to keep, names: %s", names)
        self._notifier.invalidate((), (), everything=names, attributes=())

    def _forget_names(self) -> None:
        if self._notifier is not None:
            self._notifier.forget_names()

    def _forget_attributes(self, nodeid: int) -> None:
        if self._notifier is not None:
            self._notifier.forget_attributes(nodeid)

    def _drop_listings(self, inos: tuple[Ino, ...]) -> asyncio.Future[None] | None:
        if self._notifier is None or self._ended.is_set():
            return None
        return self._notifier.invalidate((), (), listings=inos)

    def _on_invalidate(
        self, inos: tuple[Ino, ...], entries: Entries, everything: bool
    ) -> asyncio.Future[None] | None:
        if self._notifier is None or self._ended.is_set():
            return None
        if self._options.debug:
            log.debug("%s", describe_invalidation(inos, entries, everything))
        if everything:
            inos = tuple(dict.fromkeys((*inos, *self._dispatcher.pages.changed_all())))
        else:
            for ino in inos:
                self._dispatcher.pages.changed(ino)
        listings = self._dispatcher.listings.all() if everything else ()
        attributes = () if everything else None
        nodeids = tuple(self._dispatcher.nodeids.of(ino) for ino in inos)
        emptied = [parent for parent, name in entries if name == EVERY_NAME]
        if emptied:
            entries = tuple(entry for entry in entries if entry[1] != EVERY_NAME)
            everything = everything or self._notifier.may_know_names_in(emptied)
        return self._notifier.invalidate(nodeids, entries, everything, listings, attributes)


def _lease_clock_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def _may_pass_through() -> bool:
    """Is this system new enough, and this process privileged enough?

    CAP_SYS_ADMIN counts only in the first user namespace: there all ids are mapped to themselves.
    """
    if _linux_version(os.uname().release) < PASSTHROUGH_LINUX:
        return False
    try:
        with open("/proc/self/status", "rb") as status, open("/proc/self/uid_map", "rb") as uids:
            effective = next(line for line in status if line.startswith(b"CapEff:"))
            return bool(int(effective.split()[1], 16) & CAP_SYS_ADMIN) and (
                uids.read().split() == [b"0", b"0", b"4294967295"]
            )
    except (OSError, StopIteration):
        return False


def _linux_version(release: str) -> tuple[int, int]:
    """(6, 9) of "6.9.1-arch1"; (0, 0) if it is written otherwise."""
    match = re.match(r"(\d+)\.(\d+)", release)
    return (int(match[1]), int(match[2])) if match else (0, 0)
