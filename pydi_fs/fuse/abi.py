"""The FUSE kernel interface, version 7.45: struct layouts, opcodes and flags under kernel names.

Used by codec, negotiation and the tests. It holds facts, no behaviour: whatever is here stands in
Linux' include/uapi/linux/fuse.h under the same name. Sizes are asserted at import.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from struct import Struct

FUSE_KERNEL_VERSION = 7
FUSE_KERNEL_MINOR_VERSION = 45
FUSE_ROOT_ID = 1

# The oldest kernel interface that we answer: 7.31 is Linux 5.4, from 2019.
MINOR_MIN = 31
MINOR_INC_EPOCH = 44  # FUSE_NOTIFY_INC_EPOCH, Linux 6.16


class FuseOpcode(IntEnum):
    """enum fuse_opcode"""

    FUSE_LOOKUP = 1
    FUSE_FORGET = 2
    FUSE_GETATTR = 3
    FUSE_SETATTR = 4
    FUSE_READLINK = 5
    FUSE_SYMLINK = 6
    FUSE_MKNOD = 8
    FUSE_MKDIR = 9
    FUSE_UNLINK = 10
    FUSE_RMDIR = 11
    FUSE_RENAME = 12
    FUSE_LINK = 13
    FUSE_OPEN = 14
    FUSE_READ = 15
    FUSE_WRITE = 16
    FUSE_STATFS = 17
    FUSE_RELEASE = 18
    FUSE_FSYNC = 20
    FUSE_SETXATTR = 21
    FUSE_GETXATTR = 22
    FUSE_LISTXATTR = 23
    FUSE_REMOVEXATTR = 24
    FUSE_FLUSH = 25
    FUSE_INIT = 26
    FUSE_OPENDIR = 27
    FUSE_READDIR = 28
    FUSE_RELEASEDIR = 29
    FUSE_FSYNCDIR = 30
    FUSE_GETLK = 31
    FUSE_SETLK = 32
    FUSE_SETLKW = 33
    FUSE_ACCESS = 34
    FUSE_CREATE = 35
    FUSE_INTERRUPT = 36
    FUSE_BMAP = 37
    FUSE_DESTROY = 38
    FUSE_IOCTL = 39
    FUSE_POLL = 40
    FUSE_NOTIFY_REPLY = 41
    FUSE_BATCH_FORGET = 42
    FUSE_FALLOCATE = 43
    FUSE_READDIRPLUS = 44
    FUSE_RENAME2 = 45
    FUSE_LSEEK = 46
    FUSE_COPY_FILE_RANGE = 47
    FUSE_SETUPMAPPING = 48
    FUSE_REMOVEMAPPING = 49
    FUSE_SYNCFS = 50
    FUSE_TMPFILE = 51
    FUSE_STATX = 52
    FUSE_COPY_FILE_RANGE_64 = 53


class FuseNotify(IntEnum):
    """enum fuse_notify_code"""

    FUSE_NOTIFY_POLL = 1
    FUSE_NOTIFY_INVAL_INODE = 2
    FUSE_NOTIFY_INVAL_ENTRY = 3
    FUSE_NOTIFY_STORE = 4
    FUSE_NOTIFY_RETRIEVE = 5
    FUSE_NOTIFY_DELETE = 6
    FUSE_NOTIFY_RESEND = 7
    FUSE_NOTIFY_INC_EPOCH = 8
    FUSE_NOTIFY_PRUNE = 9


class InitFlag(IntFlag):
    """INIT flags; bits 32 and up travel in the field flags2."""

    FUSE_ASYNC_READ = 1 << 0
    FUSE_POSIX_LOCKS = 1 << 1
    FUSE_FILE_OPS = 1 << 2
    FUSE_ATOMIC_O_TRUNC = 1 << 3
    FUSE_EXPORT_SUPPORT = 1 << 4
    FUSE_BIG_WRITES = 1 << 5
    FUSE_DONT_MASK = 1 << 6
    FUSE_SPLICE_WRITE = 1 << 7
    FUSE_SPLICE_MOVE = 1 << 8
    FUSE_SPLICE_READ = 1 << 9
    FUSE_FLOCK_LOCKS = 1 << 10
    FUSE_HAS_IOCTL_DIR = 1 << 11
    FUSE_AUTO_INVAL_DATA = 1 << 12
    FUSE_DO_READDIRPLUS = 1 << 13
    FUSE_READDIRPLUS_AUTO = 1 << 14
    FUSE_ASYNC_DIO = 1 << 15
    FUSE_WRITEBACK_CACHE = 1 << 16
    FUSE_NO_OPEN_SUPPORT = 1 << 17
    FUSE_PARALLEL_DIROPS = 1 << 18
    FUSE_HANDLE_KILLPRIV = 1 << 19
    FUSE_POSIX_ACL = 1 << 20
    FUSE_ABORT_ERROR = 1 << 21
    FUSE_MAX_PAGES = 1 << 22
    FUSE_CACHE_SYMLINKS = 1 << 23
    FUSE_NO_OPENDIR_SUPPORT = 1 << 24
    FUSE_EXPLICIT_INVAL_DATA = 1 << 25
    FUSE_MAP_ALIGNMENT = 1 << 26
    FUSE_SUBMOUNTS = 1 << 27
    FUSE_HANDLE_KILLPRIV_V2 = 1 << 28
    FUSE_SETXATTR_EXT = 1 << 29
    FUSE_INIT_EXT = 1 << 30
    FUSE_SECURITY_CTX = 1 << 32
    FUSE_HAS_INODE_DAX = 1 << 33
    FUSE_CREATE_SUPP_GROUP = 1 << 34
    FUSE_HAS_EXPIRE_ONLY = 1 << 35
    FUSE_DIRECT_IO_ALLOW_MMAP = 1 << 36
    FUSE_PASSTHROUGH = 1 << 37
    FUSE_NO_EXPORT_SUPPORT = 1 << 38
    FUSE_HAS_RESEND = 1 << 39
    FUSE_ALLOW_IDMAP = 1 << 40
    FUSE_OVER_IO_URING = 1 << 41
    FUSE_REQUEST_TIMEOUT = 1 << 42


# fuse_setattr_in.valid
FATTR_MODE = 1 << 0
FATTR_UID = 1 << 1
FATTR_GID = 1 << 2
FATTR_SIZE = 1 << 3
FATTR_ATIME = 1 << 4
FATTR_MTIME = 1 << 5
FATTR_FH = 1 << 6
FATTR_ATIME_NOW = 1 << 7
FATTR_MTIME_NOW = 1 << 8
FATTR_LOCKOWNER = 1 << 9
FATTR_CTIME = 1 << 10
FATTR_KILL_SUIDGID = 1 << 11

# fuse_setxattr_in.setxattr_flags
FUSE_SETXATTR_ACL_KILL_SGID = 1 << 0

# fuse_open_out.open_flags
FOPEN_DIRECT_IO = 1 << 0
FOPEN_KEEP_CACHE = 1 << 1
FOPEN_NONSEEKABLE = 1 << 2
FOPEN_CACHE_DIR = 1 << 3
FOPEN_STREAM = 1 << 4
FOPEN_NOFLUSH = 1 << 5
FOPEN_PASSTHROUGH = 1 << 7

FUSE_RELEASE_FLOCK_UNLOCK = 1 << 1  # fuse_release_in.release_flags
FUSE_LK_FLOCK = 1 << 0  # fuse_lk_in.lk_flags
FUSE_WRITE_CACHE = 1 << 0  # fuse_write_in.write_flags: a page of mmap, the handle is guessed
FUSE_WRITE_KILL_SUIDGID = 1 << 2  # fuse_write_in.write_flags
FUSE_OPEN_KILL_SUIDGID = 1 << 0  # fuse_open_in.open_flags, fuse_create_in.open_flags
FUSE_FSYNC_FDATASYNC = 1 << 0  # fuse_fsync_in.fsync_flags

# statx(2) masks that fuse_statx uses
STATX_BASIC_STATS = 0x7FF
STATX_BTIME = 0x800

# "=": the kernel's byte order, no padding but what the header spells out.
fuse_in_header = Struct("=IIQQIIIHH")  # len opcode unique nodeid uid gid pid total_extlen padding
fuse_out_header = Struct("=IiQ")  # len error unique

_ATTR = "QQQqqqIIIIIIIIII"  # ino size blocks a m c-time, their nsec, mode nlink uid gid rdev
#                             blksize flags. Seconds are declared unsigned but are time64_t.
fuse_attr = Struct("=" + _ATTR)
fuse_entry_out = Struct("=QQQQII" + _ATTR)  # nodeid generation entry_valid attr_valid, nsec of both
fuse_attr_out = Struct("=QII" + _ATTR)  # attr_valid attr_valid_nsec dummy
fuse_open_out = Struct("=QIi")  # fh open_flags backing_id
fuse_write_out = Struct("=II")  # size padding
fuse_copy_file_range_out = Struct("=Q")  # bytes_copied
fuse_lseek_out = Struct("=Q")  # offset
fuse_getxattr_out = Struct("=II")  # size padding
fuse_statfs_out = Struct(
    "=QQQQQIIII24x"
)  # blocks bfree bavail files ffree bsize namelen frsize pad
fuse_lk_out = Struct("=QQII")  # start end type pid
fuse_dirent = Struct("=QQII")  # ino off namelen type, then the name padded to 8 bytes
_SX_TIME = "qI4x"  # tv_sec tv_nsec
# attr_valid attr_valid_nsec flags spare, then struct fuse_statx: mask blksize attributes nlink uid
# gid mode ino size blocks attributes_mask, a b c m-time, rdev_major rdev_minor dev_major dev_minor
fuse_statx_out = Struct("=QII16x" + "IIQIIIH2xQQQQ" + 4 * _SX_TIME + "IIII112x")
# major minor max_readahead flags max_background congestion_threshold max_write time_gran max_pages
# map_alignment flags2 max_stack_depth request_timeout
fuse_init_out = Struct("=IIIIHHIIHHIIH22x")

fuse_init_in = Struct("=IIII")  # major minor max_readahead flags
fuse_init_in_flags2 = Struct("=I")  # follows when FUSE_INIT_EXT is set
# valid pad fh size lock_owner a m c-time, their nsec, mode unused uid gid unused
fuse_setattr_in = Struct("=IIQQQqqqIIIIIIII")
fuse_mknod_in = Struct("=IIII")  # mode rdev umask padding
fuse_mkdir_in = Struct("=II")  # mode umask
fuse_rename_in = Struct("=Q")  # newdir
fuse_rename2_in = Struct("=QII")  # newdir flags padding
fuse_link_in = Struct("=Q")  # oldnodeid
fuse_open_in = Struct("=II")  # flags open_flags
fuse_create_in = Struct("=IIII")  # flags mode umask open_flags
fuse_read_in = Struct("=QQIIQII")  # fh offset size read_flags lock_owner flags padding
fuse_write_in = Struct("=QQIIQII")  # fh offset size write_flags lock_owner flags padding
fuse_release_in = Struct("=QIIQ")  # fh flags release_flags lock_owner
fuse_flush_in = Struct("=QIIQ")  # fh unused padding lock_owner
fuse_fsync_in = Struct("=QII")  # fh fsync_flags padding
fuse_setxattr_in = Struct("=II")  # size flags, and with FUSE_SETXATTR_EXT two more
fuse_setxattr_in_ext = Struct("=II")  # setxattr_flags padding
fuse_getxattr_in = Struct("=II")  # size padding
fuse_lk_in = Struct("=QQQQIIII")  # fh owner start end type pid lk_flags padding
fuse_access_in = Struct("=II")  # mask padding
fuse_interrupt_in = Struct("=Q")  # unique
fuse_ioctl_in = Struct("=QIIQII")  # fh flags cmd arg in_size out_size
fuse_fallocate_in = Struct("=QQQII")  # fh offset length mode padding
fuse_lseek_in = Struct("=QQII")  # fh offset whence padding
fuse_copy_file_range_in = Struct("=QQQQQQQ")  # fh_in off_in nodeid_out fh_out off_out len flags
fuse_statx_in = Struct("=IIQII")  # getattr_flags reserved fh sx_flags sx_mask

fuse_notify_inval_inode_out = Struct("=Qqq")  # ino off len
fuse_notify_inval_entry_out = Struct("=QII")  # parent namelen flags

_SIZES = {
    fuse_in_header: 40, fuse_out_header: 16, fuse_attr: 88, fuse_entry_out: 128, fuse_attr_out: 104,
    fuse_open_out: 16, fuse_write_out: 8, fuse_copy_file_range_out: 8, fuse_lseek_out: 8,
    fuse_getxattr_out: 8, fuse_statfs_out: 80, fuse_lk_out: 24, fuse_dirent: 24,
    fuse_statx_out: 288, fuse_init_out: 64, fuse_init_in: 16, fuse_init_in_flags2: 4,
    fuse_setattr_in: 88, fuse_mknod_in: 16, fuse_mkdir_in: 8, fuse_rename_in: 8,
    fuse_rename2_in: 16, fuse_link_in: 8, fuse_open_in: 8, fuse_create_in: 16, fuse_read_in: 40,
    fuse_write_in: 40, fuse_release_in: 24, fuse_flush_in: 24, fuse_fsync_in: 16,
    fuse_setxattr_in: 8, fuse_setxattr_in_ext: 8, fuse_getxattr_in: 8, fuse_lk_in: 48,
    fuse_access_in: 8, fuse_interrupt_in: 8, fuse_ioctl_in: 32, fuse_fallocate_in: 32,
    fuse_lseek_in: 24, fuse_copy_file_range_in: 56, fuse_statx_in: 24,
    fuse_notify_inval_inode_out: 24, fuse_notify_inval_entry_out: 16,
}  # fmt: skip
for _struct, _size in _SIZES.items():
    assert _struct.size == _size, (_struct.format, _struct.size, _size)
