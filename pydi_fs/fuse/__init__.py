"""The kernel binding: a vfs as a mount, by the FUSE protocol on /dev/fuse itself. Linux only.

Why not libfuse: its Python bindings can neither invalidate what the kernel caches nor answer
without a thread, and both are what makes a distributed file system fast and right.

    abi          kernel structs and constants, under kernel names
    codec        bytes <-> requests and answers (pure)
    negotiation  the INIT handshake (pure)
    page_cache   which version the kernel's pages show (pure)
    lock_owners  which locks a close gives back (pure)
    printer      requests and answers for people (pure)
    dispatch     requests to operations on a FileSystem
    notify       invalidations, from a thread of their own
    device       /dev/fuse, mount(2), fusermount3, umount
    binding      KernelBinding: all of it joined

Node ids are inode numbers and handles are the vfs's own, so the kernel's FORGET means nothing here
and no table grows with what it remembers.
"""

from pydi_fs.fuse.binding import KernelBinding

__all__ = ["KernelBinding"]
