"""What a mount may be asked for, the same for every binding.

`pydi_fs.mount_cli` fills it from ``-o`` and flags; the kernel binding and the fusepy binding read
it. It knows no binding and does nothing: a plain value.
"""

from __future__ import annotations

from dataclasses import dataclass

from pydi_node.errors import EXIT_USAGE, UserError

KIB = 1 << 10
MIB = 1 << 20

# The kernel splits at max_pages = 256 pages of 4 KiB anyway; fewer bytes only cost requests.
MAX_READ_BYTES = 1 * MIB
# A file that was just written may well be written again while others read it (a log, a file that is
# still being put together); after a few seconds it hardly ever is.
PASSTHROUGH_AFTER_S = 5.0
# The kernel rounds smaller values up to a page.
MIN_READ_BYTES = 4 * KIB


@dataclass(frozen=True, slots=True)
class MountOptions:
    """Options of one mount. Defaults suit a person trying it out; `validate` refuses nonsense."""

    allow_other: bool = False
    """Other users may enter the mount. Off as in libfuse: root should turn it on for a shared
    folder; a plain user needs ``user_allow_other`` in /etc/fuse.conf."""

    default_permissions: bool = True
    """The kernel checks modes and owners itself. Without it the tree checks every command, but
    nothing checks reads of what the kernel has cached: turn it off only for a single user."""

    read_only: bool = False
    """Every change is refused with EROFS by the kernel already."""

    fsname: str = "pydi"
    """The first column of /proc/mounts and df(1)."""

    debug: bool = False
    """Log one line per request and per reply."""

    noatime: bool = False
    """The mount flag of this name. FUSE leaves access times to the daemon in any case, so it only
    tells programs that look at /proc/mounts not to expect new ones."""

    max_read: int = MAX_READ_BYTES
    """Largest READ in bytes, 4 KiB .. 1 MiB."""

    passthrough_after_s: float | None = PASSTHROUGH_AFTER_S
    """Seconds without a change, by its time of modification, after which a local file may be read
    by the kernel itself. Programs that have such a file open don't see a later change until they
    open it again. None: never."""

    delegations: bool = True
    """Make files in directories that nobody else uses without a question, and tell the cluster at
    close. False: the cluster knows of each when open(2) returns."""

    closes_behind: bool = False
    """close(2) of a file that was made in such a directory returns at once, and the cluster hears
    of it a moment later; fsync(2) waits. False: when close(2) returns, it is on disk."""

    def validate(self) -> None:
        """Returns if the values make sense together; UserError with one sentence otherwise."""
        if not MIN_READ_BYTES <= self.max_read <= MAX_READ_BYTES:
            raise UserError(
                f"max_read is {self.max_read}, but must be {MIN_READ_BYTES} to {MAX_READ_BYTES}"
                " bytes",
                EXIT_USAGE,
            )
        if not self.fsname or any(ord(c) < 32 for c in self.fsname):
            raise UserError("fsname must be non-empty printable text", EXIT_USAGE)
