"""The virtual tree: a deterministic state machine in SQLite, the same on every node.

For replica.py (applies the log, answers queries), the server behind it, and the tests. The caller
owns the connection, its thread and its file; this room opens no file, reads no clock and draws no
random number, so the same log gives the same rows and the same Results on every node.

    schema.prepare(connection)       pragmas, then the schema is made or checked; CorruptionError
                                     for a damaged or foreign database (nothing is changed then)
    tree = Tree(connection)          ``sqlite3.connect(path, isolation_level=None)``, prepared;
                                     one Tree is the only writer of its database

Applying. What is applied is seen by every query of the Tree, and written to the database's files in
larger pieces: ``committer.Committer`` says when. Each commit is one SQLite transaction together
with ``applied_index``, so a restart finds a whole tree and goes on from there in the log. Whatever
fails undoes its own call alone and raises. A raised exception is never an outcome of a command:
outcomes are Results.

    tree.advance(entries: Sequence[tuple[LogIndex, Term, Envelope | None]]) -> list[Result]
        Indexes go on where ``applied_index`` ended, without a gap. None is a log entry without a
        command and gives Result(). A repeated (client, serial) gives its first Result again; one
        so old that it left the window of SESSION_WINDOW serials gives EIO and changes nothing.
    tree.advance_membership(index: LogIndex, term: Term, data: bytes) -> None
        Applies the log entry ``index`` that carries consensus' membership (opaque here); with
        ``index == applied_index`` it only records (the first membership of a new cluster).
    tree.commit() -> None                                 tree.uncommitted: int
    tree.apply_batch(entries) -> list[Result]             advance and commit
    tree.apply(index: LogIndex, term: Term, envelope: Envelope | None) -> Result
    tree.set_membership(index: LogIndex, term: Term, data: bytes) -> None
    tree.checkpoint() -> LogIndex
        Commits; then everything applied up to the returned index is on disk: the log may be cut
        up to there.
        Never waits; while a snapshot is read it returns what an earlier call returned, or 0.
    tree.give_back() -> None                              tree.spare_bytes: int
        Commits; then the file system gets a part of what is free inside the database's file.

State (properties, no query):

    tree.applied_index: LogIndex      tree.applied_term: Term
    tree.membership: tuple[LogIndex, bytes]     (0, b"") before the first
    tree.history_floor: LogIndex      oldest index that ``at`` may name
    tree.delegation(ino: int) -> Delegation | None        who alone may change names in a directory
    tree.is_held(ino: int, client: ClientId) -> bool      whether that is somebody else

Queries. ``at`` None means now; else the tree as it was after that log index, from ``history_floor``
to ``applied_index``; FileError(ESTALE) outside. FileError carries the errno a program sees (ENOENT,
ENOTDIR, ENODATA, EINVAL). Permissions are not checked here. Directory times, and access times with
the change time they bring along, are kept as of now only: ``at`` shows their latest value.

    tree.lookup(parent: Ino, name: bytes, at: LogIndex | None = None) -> Attr
    tree.resolve(path: bytes, at=None) -> Attr            from the root, symlinks not followed
    tree.getattr(ino: Ino, at=None) -> Attr
    tree.readdir(ino: Ino, after_cookie: int, limit: int, at=None) -> list[DirEntry]
        In order of cookies; start with 0, go on after the last one, [] at the end.
    tree.readlink(ino: Ino, at=None) -> bytes
    tree.getxattr(ino: Ino, name: bytes, at=None) -> bytes
    tree.listxattr(ino: Ino, at=None) -> list[bytes]
    tree.file_version(ino: Ino, at=None) -> FileVersion
    tree.names_of(ino: Ino, at=None) -> list[tuple[Ino, bytes]]      (parent, name), by cookie
    tree.path_of(ino: Ino, at=None) -> bytes | None       absolute; None without a name
    tree.versions_of(ino: Ino) -> list[Version]           content versions kept, oldest first
    tree.versions_of_path(path: bytes, at=None) -> list[Version]
        What that name showed over time; ``at`` only tells where its directory is looked up.
    tree.index_at(time_ns: TimeNs) -> LogIndex            last index of that second or before
    tree.time_of(index: LogIndex) -> TimeNs               when, exact to a second

House-keeping queries, always of now:

    tree.orphans(limit: int, after: Ino = Ino(0)) -> list[Ino]       inodes without a name
    tree.blob(blob: BlobId) -> BlobInfo                   FileError(ENOENT) when unknown
    tree.content(blob: BlobId) -> bytes                   of a blob in the tree; FileError(ENOENT)
    tree.mend_content(info: BlobInfo, content: bytes) -> bool        it was damaged; it is this
    tree.blobs(after: BlobId, limit: int) -> list[BlobInfo]          all, ascending
    tree.blobs_of_node(node: NodeNumber, after: BlobId, limit: int) -> list[BlobInfo]
    tree.last_counter_of(node: NodeNumber) -> int         of the blobs that node named; 0: none
    tree.garbage_blobs(limit: int, after: BlobId = BlobId(0)) -> list[BlobInfo]
        No row of present or history names them: ForgetBlobs may drop them.
    tree.blob_totals() -> list[BlobTotal]                 holders, blobs, bytes, factor; named only
    tree.blobs_held_by(holders: tuple[NodeNumber, ...], factor: int, limit: int,
                       after: BlobId = BlobId(0)) -> list[BlobInfo]
        Named blobs with exactly these holders and this factor, ascending: with ``blob_totals``, how
        repair finds what lacks copies without looking at every blob.
    tree.copies_of(ino: Ino) -> int                       that new content of a file should have
    tree.copies_of_blob(blob: BlobId) -> int              that it should have; FileError(ENOENT)
    tree.has_refactor() -> bool                           whether SpreadFactors has something to do
    tree.fragmented(after: Ino, rows: int, extents_min: int) -> tuple[list[Ino], Ino | None]
        Files in many pieces among the next rows, and where to go on.
    tree.settings() -> dict[str, int]                     every known name, default or set
    tree.nodes() -> list[NodeInfo]                        ascending by number
    tree.counters() -> Counters                           (files, bytes) for statfs
    tree.session_result(client: ClientId, serial: Serial) -> Result | None
    tree.digest() -> bytes                                32 bytes, equal on equal replicas

Other modules: ``schema.prepare``; ``snapshot.copy_to(source, target)``, ``snapshot.adopt``;
``check.check(connection) -> list[str]`` (a complete fsck); ``settings.SETTINGS`` (the table).

Promise to caches: ``Result.touched`` names every inode and every (parent, name) whose cached answer
a command made stale, nothing else. A new inode is not named (nobody can have it), its directory
and its name are (negative entries). Change of a blob's holders touches nothing: a reader that finds
a holder without the blob asks the tree again.
"""

from pydi_node.tree.machine import Tree
from pydi_node.tree.sessions import SESSION_WINDOW

__all__ = ["SESSION_WINDOW", "Tree"]
