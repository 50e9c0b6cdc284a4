"""What goes into a Replica and what comes out: events, effects, and messages between replicas.

Used by replica.py, by the runtime that turns effects into IO, and by the simulator. Plain records;
nothing here decides anything. Times are handed in: ``Now`` with every step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any, NamedTuple

from pydi_node.commands import Command, CommandError, decode, encode
from pydi_node.consensus import codec
from pydi_node.consensus.types import (
    Entry,
    HardState,
    Membership,
    Message,
    Role,
    SnapshotInstall,
    SnapshotMeta,
    SnapshotRead,
    SnapshotWrite,
)
from pydi_node.errors import PydiError, RemoteProtocolError
from pydi_node.ids import (
    INT64_MAX,
    NODE_NUMBER_MAX,
    ClientId,
    Ino,
    LogIndex,
    NodeNumber,
    Serial,
    Term,
    TimeNs,
)
from pydi_node.leases import HOLDER_S, Grant, Renew
from pydi_node.records import Result, Touched

FORWARDS_PER_MESSAGE_MAX = 1024  # with the byte bound below; bounds what one frame can claim
LEASE_MAX_US = int(HOLDER_S * 1_000_000)
FORWARD_BYTES_MAX = 1 << 20  # of commands in one message; one larger command goes alone


class Now(NamedTuple):
    """The moment of a step."""

    mono_s: float  # monotonic seconds, any origin; deadlines count in it
    time_ns: TimeNs  # wall clock; what commands are stamped with
    # Seconds since the machine started, its sleep included; leases count in it.
    uptime_s: float


# --- events -------------------------------------------------------------------------------------


class Tick(NamedTuple):
    """One tick of the consensus clock passed (``ReplicaConfig.tick_s``)."""


class FromPeer(NamedTuple):
    """A message came from another node; its ``sender`` was checked against the connection."""

    message: PeerMessage


class Gone(NamedTuple):
    """The other side ended the connection to this node, as happens when its program ends."""

    number: NodeNumber


class Propose(NamedTuple):
    """Do this command; the outcome is a Reply to ``request`` once it is applied on this node.

    The same (client, serial) may be given again, here or on another node, and gets the first
    outcome; client 0 is the cluster's own housekeeping, where only the node's serial must be new.
    """

    request: int
    client: ClientId
    serial: Serial
    command: Command
    deadline_s: float  # in Now.mono_s


class Read(NamedTuple):
    """Reply to ``request`` when this node's tree is at least as new as now, anywhere."""

    request: int
    deadline_s: float


class Reclaim(NamedTuple):
    """Reply to ``request`` when this tree, which is current, shows that the directory is delegated
    to nobody but ``client``; whoever else holds it is asked for it."""

    request: int
    directory: Ino
    client: ClientId  # 0: whoever asks holds nothing
    deadline_s: float


class Settle(NamedTuple):
    """Reply to ``request`` when everybody who may answer from a cache has dropped what the entries
    up to ``index`` changed: what a read here has seen of them, no other one misses any more."""

    request: int
    # applied here
    index: LogIndex  # type: ignore[assignment]  # hides tuple.index, as in Entry
    deadline_s: float


class Dropped(NamedTuple):
    """Nobody who relies on this node answers out of a state older than ``index`` any more."""

    index: LogIndex  # type: ignore[assignment]  # as above


class Persisted(NamedTuple):
    """The Persist effect ``number``, and all before it, are on disk."""

    number: int


class Overdue(NamedTuple):
    """``Replica.overdue_s`` has come."""


class DiskFull(NamedTuple):
    """Whether the log has no room (True) or has room again (False)."""

    full: bool


class AddMember(NamedTuple):
    """Make ``number`` a member that becomes a voter when it has caught up and there is room.

    Reply: Result() once that is committed; NotLeaderError elsewhere than on the leader.
    """

    request: int
    number: NodeNumber
    deadline_s: float


class RemoveMember(NamedTuple):
    """Take ``number`` out of the cluster for good. Reply as for AddMember."""

    request: int
    number: NodeNumber
    deadline_s: float


class Leave(NamedTuple):
    """This node is about to stop: hand over the leadership, leave the voters.

    Reply: Result() when the others go on without this node, NoQuorumError if they can't.
    """

    request: int
    deadline_s: float


class SnapshotTaken(NamedTuple):
    """Answer to TakeSnapshot: the file is complete; ``applied_index`` is the one inside it."""

    snapshot_id: bytes
    applied_index: LogIndex
    size: int  # bytes


class SnapshotFailed(NamedTuple):
    """Answer to TakeSnapshot or SnapshotRead: it can't be taken or read."""

    snapshot_id: bytes  # b"" when it wasn't taken


class SnapshotBytes(NamedTuple):
    """Answer to a SnapshotRead effect."""

    read: SnapshotRead
    data: bytes


class SnapshotWritten(NamedTuple):
    """Answer to a SnapshotWrite effect."""

    write: SnapshotWrite


class SnapshotInstalled(NamedTuple):
    """Answer to a SnapshotInstall effect: file in place, log reset, both durable; ``tree`` is a new
    Tree on it."""

    install: SnapshotInstall
    tree: Any  # Tree; Any because this module stays below the tree room


class SnapshotRefused(NamedTuple):
    """Answer to a SnapshotInstall effect: the file is not what its id says; to a SnapshotWrite: the
    disk is full."""

    snapshot_id: bytes


class SnapshotPartial(NamedTuple):
    """At start: ``offset`` bytes of this snapshot came in before the restart."""

    snapshot_id: bytes
    offset: int


Event = (
    Tick | FromPeer | Gone | Propose | Read | Reclaim | Settle | Dropped | Persisted | Overdue
    | DiskFull | AddMember | RemoveMember | Leave | SnapshotTaken | SnapshotFailed | SnapshotBytes
    | SnapshotWritten | SnapshotInstalled | SnapshotRefused | SnapshotPartial
)  # fmt: skip


# --- effects ------------------------------------------------------------------------------------


class Persist(NamedTuple):
    """Append to the log in the order given, sync, answer Persisted. Several may be joined into one
    sync; the answer to the last stands for all."""

    number: int
    truncate_from: LogIndex | None
    entries: Sequence[Entry]
    hard_state: HardState | None


class Send(NamedTuple):
    """Messages that may leave now, in order; losing them is allowed."""

    messages: Sequence[PeerMessage]


class Reply(NamedTuple):
    """The outcome of the event that carried ``request``."""

    request: int
    outcome: Result | PydiError


class Push(NamedTuple):
    """Caches drop these before anyone relies on the change; Dropped says that they have."""

    # (client, serial) of the command with each: whoever gets its answer needs no push.
    touched: Sequence[tuple[LogIndex, ClientId, Serial, Touched]]


class Cut(NamedTuple):
    """The log may forget what is behind ``meta``; the tree on disk has it."""

    meta: SnapshotMeta


class TakeSnapshot(NamedTuple):
    """Copy the tree into a file, name it by its checksum; SnapshotTaken or SnapshotFailed."""


class DropSnapshot(NamedTuple):
    """Nobody needs this own snapshot any more."""

    snapshot_id: bytes


class RoleChanged(NamedTuple):
    """For the log and for whoever follows the leader."""

    role: Role
    term: Term
    leader: NodeNumber | None


class MembersChanged(NamedTuple):
    """The newest membership in the log."""

    membership: Membership


class PeerBroke(NamedTuple):
    """This node sent what no correct node sends: drop its connection."""

    number: NodeNumber
    error: RemoteProtocolError


class TreeStalled(NamedTuple):
    """The tree's disk is full (True) or has room again (False); applying waits."""

    full: bool


Effect = (
    Persist | Send | Reply | Push | Cut | TakeSnapshot | SnapshotRead | SnapshotWrite
    | SnapshotInstall | DropSnapshot | RoleChanged | MembersChanged | TreeStalled
    | PeerBroke
)  # fmt: skip


# --- messages between replicas --------------------------------------------------------------------


class Forward(NamedTuple):
    """Commands for the leader, each (client, serial, command). May be sent again: applying counts
    each (client, serial) once."""

    sender: NodeNumber
    to: NodeNumber
    items: tuple[tuple[ClientId, Serial, Command], ...]


class RefuseReason(Enum):
    """Why a leader will not take a forwarded command."""

    NO_SPACE = 1


class Refuse(NamedTuple):
    """The leader did not take these forwarded commands."""

    sender: NodeNumber
    to: NodeNumber
    reason: RefuseReason
    keys: tuple[tuple[ClientId, Serial], ...]


class Enlist(NamedTuple):
    """A running learner asks to count as a voter again."""

    sender: NodeNumber
    to: NodeNumber


class Resign(NamedTuple):
    """A node that is about to stop asks not to count as a voter."""

    sender: NodeNumber
    to: NodeNumber


PeerMessage = Message | Forward | Refuse | Enlist | Resign | Renew | Grant

# Codes of our own messages on the wire; consensus' codec keeps 1 .. 63 for its own.
_FORWARD, _REFUSE, _ENLIST, _RESIGN, _RENEW, _GRANT = 64, 65, 66, 67, 68, 69


def encode_peer_message(message: PeerMessage) -> tuple[Any, ...]:
    """The message as a tuple of plain values, its code first."""
    match message:
        case Forward(sender, to, items):
            return (_FORWARD, sender, to, [(c, s, encode(command)) for c, s, command in items])
        case Refuse(sender, to, reason, keys):
            return (_REFUSE, sender, to, reason.value, list(keys))
        case Enlist(sender, to):
            return (_ENLIST, sender, to)
        case Resign(sender, to):
            return (_RESIGN, sender, to)
        case Renew():
            return (_RENEW, *message)
        case Grant():
            return (_GRANT, *message)
        case _:
            return codec.encode(message)


def decode_peer_message(value: Any) -> PeerMessage:
    """The message in a peer's array; RemoteProtocolError for anything malformed."""
    if not isinstance(value, (list, tuple)) or not value:
        raise RemoteProtocolError("replica: a message is a non-empty array")
    own = _OWN.get(value[0]) if type(value[0]) is int else None
    if own is None:
        return codec.decode(value)
    read, length = own
    if len(value) != length:
        raise RemoteProtocolError(f"replica: message {value[0]} with {len(value) - 1} fields")
    sender, to = _integer(value[1], NODE_NUMBER_MAX), _integer(value[2], NODE_NUMBER_MAX)
    return read(NodeNumber(sender), NodeNumber(to), value[3:])


def _read_forward(sender: NodeNumber, to: NodeNumber, rest: Sequence[Any]) -> Forward:
    items = []
    for item in _array(rest[0]):
        if not isinstance(item, (list, tuple)) or len(item) != 3:
            raise RemoteProtocolError("replica: a forwarded command is a triple")
        try:
            command = decode(item[2])
        except CommandError as exc:
            raise RemoteProtocolError(f"replica: forwarded {exc}") from exc
        items.append((*_key(item[:2]), command))
    return Forward(sender, to, tuple(items))


def _read_refuse(sender: NodeNumber, to: NodeNumber, rest: Sequence[Any]) -> Refuse:
    try:
        reason = RefuseReason(rest[0])
    except ValueError as exc:
        raise RemoteProtocolError("replica: unknown reason") from exc
    return Refuse(sender, to, reason, tuple(_key(key) for key in _array(rest[1])))


def _read_renew(sender: NodeNumber, to: NodeNumber, rest: Sequence[Any]) -> Renew:
    term, session, asked_us, heard_us, followed_us, dropped = (
        _integer(field, INT64_MAX, 0) for field in rest[:6]
    )
    if type(rest[6]) is not bool or not session:
        raise RemoteProtocolError("replica: not a boolean, or no session")
    return Renew(
        sender, to, Term(term), session, asked_us, heard_us, followed_us, LogIndex(dropped),
        rest[6],
    )  # fmt: skip


def _read_grant(sender: NodeNumber, to: NodeNumber, rest: Sequence[Any]) -> Grant:
    term, session, asked_us, stamp_us, valid_us, released = (
        _integer(field, INT64_MAX, 0) for field in rest
    )
    if valid_us > LEASE_MAX_US:
        raise RemoteProtocolError("replica: a lease that never ends")
    return Grant(
        sender, to, Term(term), session, asked_us, stamp_us, valid_us, LogIndex(released)
    )  # fmt: skip


_OWN: dict[int, tuple[Callable[[NodeNumber, NodeNumber, Sequence[Any]], PeerMessage], int]] = {
    _FORWARD: (_read_forward, 4),
    _REFUSE: (_read_refuse, 5),
    _ENLIST: (lambda sender, to, rest: Enlist(sender, to), 3),
    _RESIGN: (lambda sender, to, rest: Resign(sender, to), 3),
    _RENEW: (_read_renew, 10),
    _GRANT: (_read_grant, 9),
}


def _array(value: Any) -> Sequence[Any]:
    if not isinstance(value, (list, tuple)) or len(value) > FORWARDS_PER_MESSAGE_MAX:
        raise RemoteProtocolError("replica: not a bounded array")
    return value


def _key(value: Any) -> tuple[ClientId, Serial]:
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        raise RemoteProtocolError("replica: not (client, serial)")
    client, serial = (_integer(field, INT64_MAX, 0) for field in value)
    return ClientId(client), Serial(serial)


def _integer(value: Any, high: int, low: int = 1) -> int:
    if type(value) is not int or not low <= value <= high:
        raise RemoteProtocolError("replica: number out of range")
    return value
