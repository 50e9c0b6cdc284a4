"""What is fed: each reader of strangers' and peers' bytes, with honest input to begin from.

A target's ``feed`` returns whether the input was well-formed, and raises only for a bug.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from pydi_node.commands import PurgeOrphans
from pydi_node.consensus.types import (
    AppendRequest,
    AppendResponse,
    Entry,
    EntryKind,
    HeartbeatRequest,
    HeartbeatResponse,
    ReadRequest,
    ReadResponse,
    VoteRequest,
    VoteResponse,
)
from pydi_node.discovery.beacon import (
    HMAC_BYTES,
    Beacon,
    Ear,
    Question,
    pack_beacon,
    pack_question,
    sign,
)
from pydi_node.effects import (
    Enlist,
    Forward,
    PeerMessage,
    Refuse,
    RefuseReason,
    decode_peer_message,
    encode_peer_message,
)
from pydi_node.errors import RemoteProtocolError
from pydi_node.ids import ClientId, Ino, LogIndex, NodeNumber, Serial, Term
from pydi_node.leases import Grant, Renew
from pydi_node.wire import codec
from pydi_node.wire import messages as m
from pydi_node.wire.session import Session
from pydi_node.wire.trust import (
    MountLimits,
    NodeToken,
    TokenError,
    TrustError,
    credentials_of,
    make_leaf,
    mount_token,
    parse_token,
    peer_identity,
)
from tests.unit.wire.pair import join
from tests.unit.wire.samples import COMMANDS, SAMPLES, hello
from tests.unit.wire.test_session import Kind, accepting, node_of_mount, node_of_node, raw

NOW_S = 1_800_000_000
NOW_MS = NOW_S * 1000
NODE_TOKEN = NodeToken.new(bytes(range(48)))
MOUNT_TOKEN = mount_token(NODE_TOKEN, MountLimits(True, b"/photos", NOW_S + 9, b"12345678"))
CREDENTIALS = credentials_of(NODE_TOKEN)
MUTATIONS_MAX = 6
INSERTED_MAX_BYTES = 9


class Target(NamedTuple):
    name: str
    feed: Callable[[bytes], bool]
    seeds: Sequence[bytes]


def mutate(rng: random.Random, data: bytes) -> bytes:
    """The input with some bits flipped, bytes put in, cut out, or said again."""
    mutated = bytearray(data)
    for _ in range(rng.randint(1, MUTATIONS_MAX)):
        at = rng.randrange(len(mutated) + 1)
        match rng.randrange(5):
            case 0 if at < len(mutated):
                mutated[at] ^= 1 << rng.randrange(8)
            case 1:
                mutated[at:at] = rng.randbytes(rng.randint(1, INSERTED_MAX_BYTES))
            case 2:
                del mutated[at : at + rng.randint(1, INSERTED_MAX_BYTES)]
            case 3:
                mutated[at:at] = mutated[at : at + rng.randint(1, 99)]
            case 4 if at < len(mutated):
                mutated[at] = rng.choice((0, 0x7F, 0x80, 0x90, 0xC0, 0xC6, 0xDD, 0xDF, 0xFF))
    return bytes(mutated)


def _feed_session(make: Callable[[], Session]) -> Callable[[bytes], bool]:
    def feed(data: bytes) -> bool:
        session = make()
        try:
            session.receive_data(data)
            return bool(list(session.events()))
        except RemoteProtocolError:
            return False

    return feed


def _feed_beacon(data: bytes) -> bool:
    ear = Ear(NODE_TOKEN.cluster, (CREDENTIALS.beacon_key,), b"o" * 8, b"q" * 16)
    assert ear.hear(data, NOW_MS) is None or data in BEACONS
    # As from somebody who has a token, so that what is behind the HMAC is reached.
    return ear.hear(sign(data[:-HMAC_BYTES], CREDENTIALS.beacon_key), NOW_MS) is not None


def _feed_token(data: bytes) -> bool:
    try:
        parse_token(data.decode("latin-1"), NOW_S)
    except TokenError:
        return False
    return True


def _feed_certificate(data: bytes) -> bool:
    try:
        peer_identity(data, CREDENTIALS, NOW_S)
    except TrustError:
        return False
    return True


def _feed_peer_message(data: bytes) -> bool:
    try:
        decode_peer_message(codec.unpack_header(data))
    except (RemoteProtocolError, ValueError):
        return False
    return True


def _certificate(token: NodeToken, number: int) -> bytes:
    leaf = make_leaf(credentials_of(token), number, NOW_S, bytes(32))
    return x509.load_pem_x509_certificate(leaf.certificate_pem).public_bytes(Encoding.DER)


_BEACON = Beacon(b"n" * 8, NOW_MS, 3, ("h:1", "[::]:2"), (1,))
_BEACON_KEY = (NODE_TOKEN.cluster, CREDENTIALS.beacon_key)
BEACONS = [
    pack_beacon(_BEACON, *_BEACON_KEY),
    pack_beacon(_BEACON._replace(nonce=b"q" * 16), *_BEACON_KEY),
    pack_question(Question(b"x" * 16, NOW_MS), *_BEACON_KEY),
]
_HELLO = join(Session.connecting(hello()).send_hello())
_REQUESTS = [
    raw(Kind.REQUEST, 3, 1000, m.encode_request(request), payload=payload)
    for request, payload, _, _ in SAMPLES
] + [
    raw(Kind.REQUEST, 3, 1000, m.encode_request(m.Execute(ClientId(5), Serial(1), command)))
    for command in COMMANDS.values()
]
_ONE, _TWO, _TERM, _AT = NodeNumber(1), NodeNumber(2), Term(3), LogIndex(4)
PEER_MESSAGES: list[PeerMessage] = [
    VoteRequest(_ONE, _TWO, _TERM, _AT, _TERM, pre=True),
    VoteResponse(_ONE, _TWO, _TERM, granted=True),
    AppendRequest(
        _ONE, _TWO, _TERM, _AT, _AT, _TERM, _AT,
        (Entry(LogIndex(5), _TERM, EntryKind.COMMAND, b"data"),),
    ),
    AppendResponse(_ONE, _TWO, _TERM, _AT, _AT, rejected=True),
    HeartbeatRequest(_ONE, _TWO, _TERM, _AT, _AT, 7),
    HeartbeatResponse(_ONE, _TWO, _TERM, _AT, 7),
    ReadRequest(_ONE, _TWO, _TERM, 8),
    ReadResponse(_ONE, _TWO, _TERM, 8, _AT),
    Forward(_ONE, _TWO, ((ClientId(3), Serial(4), PurgeOrphans((Ino(5),))),)),
    Refuse(_ONE, _TWO, RefuseReason.NO_SPACE, ((ClientId(3), Serial(4)),)),
    Enlist(_ONE, _TWO),
    Renew(_ONE, _TWO, _TERM, 9, 10, 11, 8, _AT, True),
    Grant(_ONE, _TWO, _TERM, 9, 10, 11, 12, _AT),
]  # fmt: skip
TARGETS = {
    target.name: target
    for target in (
        Target("beacons", _feed_beacon, BEACONS),
        Target("hellos", _feed_session(accepting), [_HELLO]),
        Target("frames", _feed_session(node_of_mount), _REQUESTS),
        Target("frames-of-nodes", _feed_session(node_of_node), _REQUESTS),
        Target("tokens", _feed_token, [NODE_TOKEN.text().encode(), MOUNT_TOKEN.text().encode()]),
        Target("certificates", _feed_certificate, [_certificate(NODE_TOKEN, 3)]),
        Target(
            "peer-messages",
            _feed_peer_message,
            [codec.pack(encode_peer_message(message)) for message in PEER_MESSAGES],
        ),
    )
}
