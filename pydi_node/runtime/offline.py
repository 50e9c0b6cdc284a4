"""Work on the files of a node that does not run: ``pydi recover`` and ``pydi check``.

Called by pydi_fs/commands_offline.py. Both hold the data directory's lock meanwhile, so no node can
start on it. ``check`` changes nothing that a start would not change; ``recover`` changes nothing
before ``Recovery.carry_out``. What can't be read is never written to.

Recovery. The node gets one more batch of log entries behind all that it has, applied or not: each
other node is forgotten, and a membership follows of which this node is the only voter, in a term of
its own. It then starts as after any crash, elects itself and commits all of it. So nothing that
reached this log is dropped, whoever may have acknowledged it, and there is no other way into the
log than the one that every start checks. Before that batch node.json gets the name of the
recovery (histories.py), which keeps the old members away. A crash in between leaves a node that
speaks to nobody and leads nothing: recover again.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NamedTuple

from blake3 import blake3

from pydi_node.blobs.store import BlobStore
from pydi_node.commands import Envelope, ForgetBlobs, SetHolders, SetNode
from pydi_node.config import parse_address
from pydi_node.consensus.codec import pack_membership
from pydi_node.consensus.log import Log
from pydi_node.consensus.quorum import majority
from pydi_node.consensus.types import Entry, EntryKind, HardState, Member, Membership
from pydi_node.envelopes import pack_envelope, unpack_envelope
from pydi_node.errors import BlobMissingError, CorruptionError, UserError
from pydi_node.ids import BlobId, ClientId, LogIndex, NodeNumber, Serial, Term, TimeNs, blob_name
from pydi_node.records import HOLE, BlobInfo, NodeInfo
from pydi_node.runtime import peers
from pydi_node.runtime.datadir import DataDir, Identity
from pydi_node.runtime.disklog import DiskLog, LoadedState, read_log
from pydi_node.runtime.histories import NAME_BYTES
from pydi_node.tree import schema
from pydi_node.tree.check import check as check_tree
from pydi_node.tree.machine import Tree
from pydi_node.wire.trust import NodeToken, TokenError, parse_node_token

SHORT_ID_CHARACTERS = 8  # what a person types to confirm; the whole id has 32
BLOBS_PER_QUERY = 1000
HASH_CHUNK_BYTES = 1 << 20


class Opened(NamedTuple):
    """A stopped node's data directory, locked."""

    folder: DataDir
    identity: Identity
    log: LoadedState
    connection: sqlite3.Connection  # to the tree

    @property
    def last_index(self) -> LogIndex:
        return self.log.entries[-1].index if self.log.entries else self.log.snapshot.index


class Recovery:
    """What a recovery of this node means, and the way to do it. Made by ``recovery``."""

    def __init__(self, opened: Opened) -> None:
        """UserError: there is nothing to recover. CorruptionError: it can't be trusted."""
        self._opened = opened
        identity = opened.identity
        damage = check_tree(opened.connection)
        if damage:
            raise CorruptionError(f"the tree is damaged ({damage[0]}): see pydi check")
        self.tree = Tree(opened.connection)
        _require_fit(opened, self.tree)
        self.cluster = identity.cluster
        self.number = identity.number
        self.membership: Membership = Log(opened.log.snapshot, opened.log.entries).membership
        if self.membership.member(self.number) is None:
            raise UserError(f"node {self.number} is no member of its cluster: nothing to recover")
        self.applied_index = self.tree.applied_index
        self.applied_ns = self.tree.time_of(self.applied_index)
        self.last_index = opened.last_index
        books = {info.number: info for info in self.tree.nodes() if info.state != "forgotten"}
        for member in self.membership.members:
            books.setdefault(member.number, NodeInfo(member.number, "", "up", False))
        books.pop(self.number, None)
        self.others: list[NodeInfo] = [books[number] for number in sorted(books)]

    @property
    def short_id(self) -> str:
        return self.cluster[:SHORT_ID_CHARACTERS]

    def answering(self) -> list[NodeNumber]:
        """Those of the others that can be reached at the address in the books."""
        token = _token(self._opened.folder)

        async def ask(info: NodeInfo) -> bool:
            try:
                address = parse_address(info.address)
            except ValueError:
                return False  # it never said where it is
            return await peers.who_answers(address, token) == info.number

        async def ask_all() -> list[bool]:
            return await asyncio.gather(*[ask(info) for info in self.others])

        answers = asyncio.run(ask_all())
        return [info.number for info, up in zip(self.others, answers, strict=True) if up]

    def require_no_majority(self, answering: list[NodeNumber]) -> None:
        """UserError when the cluster can go on, or could with this node started."""
        voters = self.membership.voters
        there = [n for n in voters if n in answering or n == self.number]
        if answering and len(there) >= majority(len(voters)):
            raise UserError(
                f"{len(there)} of {len(voters)} voters are there (nodes"
                f" {', '.join(map(str, there))}): start this node, nothing needs to be lost"
            )

    def carry_out(self) -> None:
        """This node is the only voter, durably, when it starts the next time."""
        opened, identity = self._opened, self._opened.identity
        name = os.urandom(NAME_BYTES).hex()
        opened.folder.save_identity(identity._replace(histories=(*identity.histories, name)))
        log, state = DiskLog.open(opened.folder.log)
        with closing(log):
            last_term = state.entries[-1].term if state.entries else state.snapshot.term
            term = Term(max(state.hard_state.term, last_term) + 1)
            hard_state = HardState(term, self.number, state.hard_state.commit)
            log.append(hard_state, self._entries(term))
            log.sync()

    def _entries(self, term: Term) -> list[Entry]:
        now_ns = TimeNs(time.time_ns())
        datas = [
            pack_envelope(
                Envelope(
                    ClientId(0), Serial(0), now_ns,
                    SetNode(info.number, info.address, "forgotten", info.witness),
                )
            )
            for info in self.others
        ]  # fmt: skip
        entries = [
            Entry(LogIndex(index), term, EntryKind.COMMAND, data)
            for index, data in enumerate(datas, self.last_index + 1)
        ]
        own = self.membership.member(self.number)
        assert own is not None
        alone = Membership((Member(self.number, voter=True, session=own.session),))
        index = LogIndex(self.last_index + len(entries) + 1)
        return [*entries, Entry(index, term, EntryKind.MEMBERSHIP, pack_membership(alone))]


@contextmanager
def recovery(path: Path) -> Iterator[Recovery]:
    """What recovering the node in ``path`` means; its directory is locked meanwhile.

    UserError  a node runs there, or there is nothing to recover. CorruptionError.
    """
    with _opened(path) as opened:
        yield Recovery(opened)


def check(
    path: Path, blobs: bool, progress: Callable[[int, int], None] | None = None
) -> Iterator[str]:
    """One sentence for each thing that is wrong with a stopped node's files.

    blobs     hash every blob, instead of only looking whether it is there with its size.
    progress  called now and then with (files, bytes) that were looked at.
    UserError  it can't be looked at: a node runs there, or none ever did.
    """
    try:
        with _opened(path) as opened:
            yield from check_tree(opened.connection)
            tree = Tree(opened.connection)
            try:
                _require_fit(opened, tree)
                for entry in opened.log.entries:
                    if entry.kind is EntryKind.COMMAND:
                        unpack_envelope(entry.data)
            except CorruptionError as exc:
                yield str(exc)
            yield from _check_blobs(opened, tree, blobs, progress or (lambda *_: None))
    except CorruptionError as exc:
        yield str(exc)


def _check_blobs(
    opened: Opened, tree: Tree, hashed: bool, progress: Callable[[int, int], None]
) -> Iterator[str]:
    number = opened.identity.number
    store = BlobStore(opened.folder.blobs, number)
    unsettled = _unsettled(opened, tree)
    files = size = 0
    after = HOLE
    while page := tree.blobs_of_node(number, after, BLOBS_PER_QUERY):
        for info in page:
            after = info.blob
            if info.blob in unsettled:
                continue
            problem = _problem(store, info, hashed)
            if problem is not None:
                elsewhere = [str(n) for n in info.holders if n != number]
                copies = f"also on node {', '.join(elsewhere)}" if elsewhere else "the only copy"
                yield f"blob {blob_name(info.blob)}: {problem} ({copies})"
            files += 1
            size += info.size if hashed else 0
            progress(files, size)


def _problem(store: BlobStore, info: BlobInfo, hashed: bool) -> str | None:
    """What is wrong with this node's file; nothing is moved to quarantine."""
    try:
        fd = store.open(info.blob)
    except BlobMissingError:
        return "its file is missing"
    with open(fd, "rb", buffering=0) as file:
        size = os.fstat(fd).st_size
        if size != info.size:
            return f"its file has {size} bytes instead of {info.size}"
        if hashed:
            hasher = blake3()
            try:
                while data := file.read(HASH_CHUNK_BYTES):
                    hasher.update(data)
            except OSError as exc:
                return f"its file can't be read: {exc.strerror}"
            if hasher.digest() != info.checksum:
                return "its content is damaged"
    return None


def _unsettled(opened: Opened, tree: Tree) -> set[BlobId]:
    """Blobs of which the log knows something newer than the tree, which a crash left behind it."""
    found: set[BlobId] = set()
    for entry in opened.log.entries:
        if entry.index > tree.applied_index and entry.kind is EntryKind.COMMAND:
            match unpack_envelope(entry.data).command:
                case SetHolders(blob=blob):
                    found.add(blob)
                case ForgetBlobs(blobs=blobs):
                    found.update(blobs)
    return found


def _require_fit(opened: Opened, tree: Tree) -> None:
    """CorruptionError unless the log goes on where the tree ends."""
    first, last = opened.log.snapshot.index, opened.last_index
    if not first <= tree.applied_index <= last:
        raise CorruptionError(
            f"log and tree don't fit: the log holds entries {first + 1} .. {last}, the tree ends at"
            f" {tree.applied_index}"
        )


@contextmanager
def _opened(path: Path) -> Iterator[Opened]:
    """The directory of a node that was a member once, locked and read."""
    if not (path / "node.json").exists() and not (path / "tree" / "tree.db").exists():
        raise UserError(f"{path} is not the data directory of a node")
    with DataDir(path) as folder:
        identity = folder.load_identity()
        if identity is None or identity.phase != "member":
            raise UserError(f"the node in {path} has never been a member of a cluster")
        if (folder.tree.parent / "installing.json").exists():
            raise UserError(
                f"the node in {path} was stopped while it took over another node's tree: start it"
                " once and stop it again"
            )
        state = read_log(folder.log)
        if not folder.tree.exists():
            raise CorruptionError(f"{folder.tree} is missing")
        connection = sqlite3.connect(folder.tree, isolation_level=None)
        with closing(connection):
            try:
                with schema.translated_errors():
                    schema.verify_header(connection)
            except CorruptionError as exc:
                raise CorruptionError(f"{folder.tree}: {exc}") from exc
            yield Opened(folder, identity, state, connection)


def _token(folder: DataDir) -> NodeToken:
    text = folder.load_token()
    if text is None:
        raise UserError(f"{folder.path / 'token'} is missing: restore it from another node")
    try:
        return parse_node_token(text)
    except TokenError as exc:
        raise UserError(f"{folder.path / 'token'}: {exc}") from exc
