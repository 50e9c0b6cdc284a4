"""Datagrams of discovery, and what may be believed of one. Pure: times and chance are arguments.

Three kinds, each authenticated with a key that every token of the cluster gives (trust.py):

    BEACON     a node, every few seconds, to the group: here I am
    QUESTION   whoever looks for the cluster, to the group: who is here? with a nonce
    ANSWER     a node, to whoever asked: a beacon with the question's nonce

    "PyDi" | u8 format | u8 kind | cluster id, 16 bytes | msgpack array | HMAC-SHA256, 32 bytes

A beacon is believed for a time window around its sender's clock, and only if it is newer than the
last one of the same process. An answer proves by its nonce that it is of now, whatever the clocks
say; so it also tells how far they are apart. Whoever listens in without a token learns addresses
and can repeat a datagram, and that is all.

Ignored are, and counted by reason: other clusters' datagrams, what has a wrong HMAC, what is old,
what was heard before, and what no honest sender makes.
"""

from __future__ import annotations

import enum
import hmac
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

from pydi_node.ids import INT64_MAX, NODE_NUMBER_MAX
from pydi_node.wire import codec, fields

MAGIC: Final = b"PyDi"
FORMAT: Final = 1
CLUSTER_BYTES: Final = 16
HMAC_BYTES: Final = 32
NONCE_BYTES: Final = 16
INSTANCE_BYTES: Final = 8
# Fits the smallest IPv6 link without fragments, of which one that is lost loses all.
DATAGRAM_MAX_BYTES: Final = 1200
ADDRESSES_MAX: Final = 8
ADDRESS_MAX_CHARACTERS: Final = 128
VERSIONS_MAX: Final = 16
VERSION_MAX: Final = 1 << 16
# Clocks of machines that use NTP differ by milliseconds. What a beacon says is at most as old as
# this when it is believed; a machine further off is told so when it joins.
WINDOW_MS: Final = 120_000
SENDERS_MAX: Final = 1024  # processes, and questions, that a listener remembers against repetition

_HEAD_BYTES: Final = len(MAGIC) + 2 + CLUSTER_BYTES


class Kind(enum.IntEnum):
    BEACON = 1
    QUESTION = 2
    ANSWER = 3


class Ignored(enum.StrEnum):
    """Why a datagram counts for nothing."""

    FOREIGN = "foreign"  # of another cluster
    FORGED = "forged"  # says that it is of this cluster, and its HMAC is of another key
    OLD = "old"  # sent at a time that is too far from now
    REPEATED = "repeated"  # heard before: by another way, or somebody repeats it
    MALFORMED = "malformed"


class Beacon(NamedTuple):
    """What a node says of itself."""

    instance: bytes  # of the process, INSTANCE_BYTES: a restarted node counts anew
    time_ms: int  # its clock, since 1970; grows with every datagram of the instance
    number: int  # of the node
    addresses: tuple[str, ...]  # HOST:PORT; a wildcard host is where the datagram came from
    versions: tuple[int, ...]  # of the wire protocol that it speaks, ascending
    nonce: bytes = b""  # of the question that it answers; empty in a beacon


class Question(NamedTuple):
    """Somebody looks for the cluster."""

    nonce: bytes  # NONCE_BYTES, new for each process that asks
    time_ms: int  # its clock, since 1970


def pack_beacon(beacon: Beacon, cluster: str, key: bytes) -> bytes:
    """The datagram; an ANSWER when there is a nonce in it."""
    return _pack(Kind.ANSWER if beacon.nonce else Kind.BEACON, tuple(beacon), cluster, key)


def pack_question(question: Question, cluster: str, key: bytes) -> bytes:
    return _pack(Kind.QUESTION, tuple(question), cluster, key)


def sign(said: bytes, key: bytes) -> bytes:
    """The datagram that says this, with its HMAC."""
    return said + hmac.digest(key, said, "sha256")


class Ear:
    """What one process has heard, and so what it still believes."""

    def __init__(
        self, cluster: str, keys: Sequence[bytes], instance: bytes, nonce: bytes = b""
    ) -> None:
        """keys, cluster  of the token, or tokens: see wire/keyring.py.
        instance  of this process, which does not hear itself.
        nonce     of this process's questions; empty: it asks none."""
        self._cluster = bytes.fromhex(cluster)
        self.keys = tuple(keys)
        self.key = self.keys[0]  # of the last datagram that was authentic
        self._instance = instance
        self._nonce = nonce
        self._last: OrderedDict[tuple[Kind, bytes], int] = OrderedDict()
        self.counts: Counter[Ignored] = Counter()
        self.others: OrderedDict[str, None] = OrderedDict()  # ids of other clusters, the last few

    def hear(self, datagram: bytes, now_ms: int) -> Beacon | Question | None:
        """What it says, None when it is to be ignored (and is counted, unless it is our own).

        A Question may be old: its sender's clock is off, which the answer will tell it.
        """
        try:
            said = self._said(datagram, now_ms)
        except _Ignore as exc:
            self.counts[exc.reason] += 1
            return None
        if isinstance(said, Beacon) and said.instance == self._instance:
            return None
        return said

    def _said(self, datagram: bytes, now_ms: int) -> Beacon | Question:
        kind = self._authentic(datagram)
        try:
            value = codec.unpack_header(datagram[_HEAD_BYTES:-HMAC_BYTES])
            said = _question(value) if kind is Kind.QUESTION else _beacon(value, kind)
        except ValueError as exc:
            raise _Ignore(Ignored.MALFORMED) from exc
        if isinstance(said, Question):
            self._remember(kind, said.nonce, said.time_ms)
        elif kind is Kind.BEACON:
            if abs(said.time_ms - now_ms) > WINDOW_MS:
                raise _Ignore(Ignored.OLD)
            self._remember(kind, said.instance, said.time_ms)
        elif said.nonce != self._nonce:
            raise _Ignore(Ignored.REPEATED)  # of a question that was not ours, or long ago
        return said

    def _authentic(self, datagram: bytes) -> Kind:
        if not (
            _HEAD_BYTES + HMAC_BYTES < len(datagram) <= DATAGRAM_MAX_BYTES
            and datagram.startswith(MAGIC)
            and datagram[4] == FORMAT
        ):
            raise _Ignore(Ignored.MALFORMED)
        cluster = datagram[6:_HEAD_BYTES]
        if cluster != self._cluster:
            self.others[cluster.hex()] = None
            while len(self.others) > ADDRESSES_MAX:
                self.others.popitem(last=False)
            raise _Ignore(Ignored.FOREIGN)
        for key in self.keys:
            expected = hmac.digest(key, datagram[:-HMAC_BYTES], "sha256")
            if hmac.compare_digest(expected, datagram[-HMAC_BYTES:]):
                self.key = key
                break
        else:
            raise _Ignore(Ignored.FORGED)
        try:
            return Kind(datagram[5])
        except ValueError as exc:
            raise _Ignore(Ignored.MALFORMED) from exc

    def _remember(self, kind: Kind, sender: bytes, time_ms: int) -> None:
        """The sender's newest datagram so far; _Ignore when it is none."""
        last = self._last.pop((kind, sender), None)
        # Forgotten first is who was silent the longest; repeating that one's last beacon then works
        # for as long as the window is open, and tells where the node was a moment ago.
        self._last[kind, sender] = time_ms if last is None else max(time_ms, last)
        if len(self._last) > SENDERS_MAX:
            self._last.popitem(last=False)
        if last is not None and time_ms <= last:
            raise _Ignore(Ignored.REPEATED)


class _Ignore(Exception):
    def __init__(self, reason: Ignored) -> None:
        super().__init__(reason)
        self.reason = reason


def _pack(kind: Kind, value: tuple[Any, ...], cluster: str, key: bytes) -> bytes:
    head = MAGIC + bytes((FORMAT, kind)) + bytes.fromhex(cluster)
    datagram = sign(head + codec.pack(value), key)
    assert len(datagram) <= DATAGRAM_MAX_BYTES, len(datagram)
    return datagram


def _fields(value: Any, checks: tuple[Callable[[Any], Any], ...]) -> list[Any]:
    """The checked fields; more behind them are a later version's."""
    if type(value) is not tuple or len(value) < len(checks):
        raise ValueError("too few fields")
    return [check(field) for check, field in zip(checks, value, strict=False)]


def _beacon(value: Any, kind: Kind) -> Beacon:
    beacon = Beacon(*_fields(value, _BEACON_FIELDS))
    if len(beacon.nonce) != (NONCE_BYTES if kind is Kind.ANSWER else 0):
        raise ValueError("the nonce does not fit the kind")
    return beacon


def _question(value: Any) -> Question:
    return Question(*_fields(value, _QUESTION_FIELDS))


_TIME = fields.integer(0, INT64_MAX)
_BEACON_FIELDS: Final = (
    fields.data(INSTANCE_BYTES, INSTANCE_BYTES),
    _TIME,
    fields.integer(1, NODE_NUMBER_MAX),
    fields.array(fields.text(ADDRESS_MAX_CHARACTERS), ADDRESSES_MAX),
    fields.array(fields.integer(0, VERSION_MAX), VERSIONS_MAX),
    fields.data(NONCE_BYTES),
)
_QUESTION_FIELDS: Final = (fields.data(NONCE_BYTES, NONCE_BYTES), _TIME)
