"""POSIX rules on inode numbers: one implementation under every binding (kernel, fusepy, shell).

Who calls it: `pydi_fs.fuse`, `pydi_fs.fusepy_binding`, `pydi_fs.cli`. It knows no FUSE, no path
walk (a binding that thinks in paths uses `resolve`), and no node but through `pydi_fs.client`.
One asyncio loop owns a Vfs; nothing here is called from another thread, except the `*_nowait`
twins: they only read dictionaries of immutable records, which is safe from any thread.

How a binding uses it::

    vfs = Vfs(client, VfsConfig(staging_dir=...))
    await vfs.start()
    attr = vfs.lookup_nowait(parent, name) or await vfs.lookup(parent, name)
    attr, fh = await vfs.create(caller, parent, name, mode, flags)
    await vfs.write(fh, offset, data)
    await vfs.flush(fh)            # close(2) of one descriptor: publishes, raises its error
    await vfs.release(fh)          # last close
    await vfs.stop()               # publishes what is left, gives everything back

Errors: every operation raises FileError (its errno is the answer) or another PydiError, which
`errors.errno_of` turns into an errno. Attr is `pydi_node.records.Attr`; a directory entry is
`records.DirEntry`; `Caller` is `commands.Caller` (groups None when the kernel checked permissions).

Names and attributes
    lookup(parent, name) -> Attr                     "." is answered too
    lookup_nowait(parent, name) -> Attr | None       None: not cached, ask; ENOENT if known absent
    getattr(ino) -> Attr                             with what was written here, published or not
    getattr_nowait(ino) -> Attr | None
    setattr(caller, ino, *, mode, uid, gid, size, atime_ns, mtime_ns, fh) -> Attr    TIME_NOW works
    access(caller, ino, mask) -> None                EACCES
    readlink(ino) -> bytes
    mkdir(caller, parent, name, mode) -> Attr        the umask is applied by the binding
    mknod(caller, parent, name, mode, rdev) -> Attr
    symlink(caller, parent, name, target) -> Attr
    link(caller, ino, new_parent, new_name) -> Attr
    unlink(caller, parent, name) / rmdir(caller, parent, name)
    rename(caller, parent, name, new_parent, new_name, flags)
    getxattr(ino, name) -> bytes                     ENODATA
    listxattr(caller, ino) -> list[bytes]            trusted. only for root
    setxattr(caller, ino, name, value, flags) / removexattr(caller, ino, name)
    statfs() -> records.Statfs
    resolve(path: bytes, follow=True) -> Attr        path walk from the root, for path-based users

Directories
    opendir(ino) -> fh
    readdir(fh, cookie, limit) -> list[DirEntry]     entries after ``cookie`` (0: from the start),
                                                     without "." and ".."; an empty list is the
                                                     end; cookies stay valid while entries come
                                                     and go
    releasedir(fh)
    fsyncdir(ino)

Files (``fh`` is a small integer, never reused within a mount)
    open(caller, ino, flags) -> fh                   flags as open(2): O_ACCMODE, O_TRUNC, O_APPEND
    open_version(caller, ino) -> (fh, FileVersion)   for reading
    create(caller, parent, name, mode, flags) -> (Attr, fh)      O_EXCL is honoured
    tmpfile(caller, parent, mode, flags) -> (Attr, fh)
    local_file(fh) -> LocalBlob | None               a file of this machine with its whole content
    read(fh, offset, size) -> bytes                  short only at the end of the file
    write(fh, offset, data) -> int                   O_APPEND handles ignore ``offset``
    truncate: setattr(size=...)
    flush(fh) / fsync(fh, datasync) / release(fh)
    stamp(fh, mtime_ns)                              of what the next flush publishes
    drain(fh) / abandon(fh)                          wait until it is sent / close, unpublished
    fallocate(fh, mode, offset, length)
    lseek(fh, offset, whence) -> int                 SEEK_DATA, SEEK_HOLE
    commit(commands.Commit) -> Attr                  of blobs that the cluster has
    copy_file_range(fh_in, offset_in, fh_out, offset_out, length) -> int
    getlk(fh, owner, kind, start, end, pid) -> (kind, start, end, pid)
    setlk(fh, owner, kind, start, end, pid, wait, flock) ; kind F_RDLCK | F_WRLCK | F_UNLCK
    ino_of(fh) -> Ino
    blobs_of(fh) -> collection of records.BlobInfo

Changes made elsewhere: `vfs.on_invalidate = callback(inos, entries, everything: bool)` is called in
the loop after the vfs has dropped its own caches; the binding then tells the kernel, and gives back
a future that is done when it has, for whoever acknowledges the change.
"""
