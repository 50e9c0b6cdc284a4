"""Sessions: every exchange through both sides, every wrong order blamed on whoever made it."""

from __future__ import annotations

import errno
import itertools
import random
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pydi_node.commands import ROOT_CALLER, Commit, PurgeOrphans
from pydi_node.errors import (
    DeadlineError,
    FileError,
    LocalProtocolError,
    NotLeaderError,
    RemoteProtocolError,
)
from pydi_node.ids import ClientId, Ino, Serial
from pydi_node.records import Extent
from pydi_node.wire import messages as m
from pydi_node.wire.events import (
    AcknowledgeReceived,
    AnswerReceived,
    CancelReceived,
    ConnectionEnded,
    ErrorReceived,
    GoodbyeReceived,
    Hello,
    HelloReceived,
    PeerReceived,
    PingReceived,
    PongReceived,
    PushReceived,
    Refusal,
    RefuseReceived,
    RequestNotUnderstood,
    Welcome,
    WelcomeReceived,
)
from pydi_node.wire.frames import LIMITS_AFTER_WELCOME, LIMITS_BEFORE_WELCOME, encode_frame
from pydi_node.wire.messages import Role
from pydi_node.wire.session import (
    DEADLINE_MAX_MS,
    KIND_RULES,
    MAGIC,
    PINGS_MAX,
    Kind,
    Limits,
    Session,
    State,
    choose_version,
)
from tests.unit.wire import samples
from tests.unit.wire.pair import ConnectionPair, join, single_bytes, whole
from tests.unit.wire.samples import ATTR, CLUSTER, SAMPLES, WELCOME, hello

GET = m.GetAttr(7)
FEW = Limits(requests_max=3)


def raw(*header, payload=b""):
    """A frame that no Session would send."""
    return join(encode_frame(header, payload, LIMITS_AFTER_WELCOME))


def take(session, data):
    """All events of what arrived."""
    session.receive_data(data)
    return list(session.events())


def error_repr(event):
    return (
        f"{type(event.error).__name__}({event.error})"
        if isinstance(event, ErrorReceived)
        else event
    )


# --- exchanges ------------------------------------------------------------------------------------


def scenario(chunks) -> list:
    """Everything a mount and a node can say to each other; the events of both sides, in order."""
    pair = ConnectionPair(chunks=chunks).open()
    for request, payload, value, content in SAMPLES:
        if m.REQUEST_OF_CLASS[type(request)].roles >= {Role.MOUNT}:
            pair.call(request, payload, value, content)
    first, second = pair.request(GET), pair.request(GET)
    pair.to_node(pair.mount.send_cancel(first))
    pair.to_mount(pair.node.send_error(second, NotLeaderError(5)))
    pair.to_mount(pair.node.send_error(first, FileError(errno.EINTR)))
    for push in samples.PUSHES:
        pair.to_mount(pair.node.send_push(push))
    pair.to_node(pair.mount.send_acknowledge(2))
    pair.to_node(pair.mount.send_ping(9))
    pair.to_mount(pair.node.send_pong(9))
    pair.to_mount(pair.node.send_goodbye("stopping"))
    pair.mount.receive_eof()
    pair.trace.extend(pair.mount.events())
    return [error_repr(event) for event in pair.trace]


def test_chunking_changes_no_event():
    """The whole conversation in whole chunks, in single bytes and in random ones: same events."""
    expected = scenario(whole)
    assert len(expected) > 60
    assert scenario(single_bytes) == expected
    for seed in range(3):
        rng = random.Random(seed)

        def cut(data, rng=rng):
            edges = sorted({0, len(data), *(rng.randrange(len(data)) for _ in range(4))})
            return [data[start:end] for start, end in itertools.pairwise(edges)]

        assert scenario(cut) == expected


def test_hello_and_welcome_open_the_session():
    """Each side learns who the other is, and the version both speak."""
    pair = ConnectionPair()
    assert pair.to_node(pair.mount.send_hello()) == [HelloReceived(hello())]
    assert (pair.mount.state, pair.node.state) == (State.HELLO_SENT, State.HELLO_RECEIVED)
    assert pair.to_mount(pair.node.send_welcome(WELCOME)) == [WelcomeReceived(WELCOME)]
    assert pair.mount.state is pair.node.state is State.OPEN
    assert (pair.mount.peer, pair.node.peer) == (WELCOME, hello())
    assert pair.mount.version == pair.node.version == 1


def test_refusal_ends_the_session_with_a_sentence():
    """The sentence reaches the person; after it nothing is read or sent."""
    pair = ConnectionPair()
    pair.to_node(pair.mount.send_hello())
    refused = pair.to_mount(pair.node.send_refuse(Refusal.NUMBER_IN_USE, "number 2 is in use"))
    assert refused == [RefuseReceived(Refusal.NUMBER_IN_USE, "number 2 is in use")]
    assert pair.mount.state is pair.node.state is State.ENDED
    pair.node.receive_data(b"whatever")
    assert list(pair.node.events()) == []


def test_unknown_refusal_of_a_newer_node_is_still_one():
    """Its number is not known here, its sentence is."""
    session = Session.connecting(hello())
    session.send_hello()
    session.receive_data(raw(Kind.REFUSE, 200, "full moon"))
    assert list(session.events()) == [RefuseReceived(Refusal.OTHER, "full moon")]


def test_version_is_the_newest_in_common():
    """Versions rule: each side lists what it speaks, the accepting side chooses."""
    assert choose_version(hello()) == 1
    assert choose_version(Hello((1, 2, 7), Role.MOUNT, CLUSTER, 0, "h")) == 1
    assert choose_version(Hello((2, 7), Role.MOUNT, CLUSTER, 0, "h")) is None


def test_hello_of_a_later_version_may_carry_more():
    """What a later version adds stands at the end and is ignored; after the hello nothing is."""
    session = Session.accepting()
    about = b"\x80"
    session.receive_data(raw(1, MAGIC, (1, 2), "mount", CLUSTER, 0, "host", about, "more", 5))
    assert list(session.events()) == [
        HelloReceived(Hello((1, 2), Role.MOUNT, CLUSTER, 0, "host", {}))
    ]


def test_answers_come_in_any_order():
    """Many requests under way; each answer finds its own, with its own type."""
    pair = ConnectionPair().open()
    first, second, third = pair.request(GET), pair.request(m.Statfs()), pair.request(m.ReadLink(7))
    assert pair.mount.requests_outstanding == pair.node.unanswered == 3
    (event,) = pair.to_mount(pair.node.send_answer(third, b"target"))
    assert event == AnswerReceived(third, m.ReadLink(7), b"target", b"")
    (event,) = pair.to_mount(pair.node.send_answer(first, ATTR))
    assert event == AnswerReceived(first, GET, ATTR, b"")
    assert pair.mount.outstanding_ids == [second]
    assert pair.node.unanswered == 1


def test_deadline_travels_with_the_request():
    """As milliseconds that are left, because clocks of machines differ."""
    pair = ConnectionPair().open()
    _, buffers = pair.mount.send_request(GET, deadline_ms=1234)
    (event,) = pair.to_node(buffers)
    assert event.deadline_ms == 1234


def test_error_answer_is_raised_as_the_same_exception():
    """The node's exception comes out on the mount's side with its details."""
    pair = ConnectionPair().open()
    (event,) = pair.to_mount(pair.node.send_error(pair.request(GET), NotLeaderError(5)))
    assert isinstance(event.error, NotLeaderError)
    assert (event.error.leader, event.error.retry, event.request) == (5, True, GET)
    (event,) = pair.to_mount(pair.node.send_error(pair.request(GET), DeadlineError("too slow")))
    assert (type(event.error), event.error.retry, str(event.error)) == (
        DeadlineError, False, "too slow",
    )  # fmt: skip


def test_cancelled_request_still_gets_one_answer():
    """Cancelling is a wish: the answer tells what became of it, EINTR or the real one."""
    pair = ConnectionPair().open()
    request_id = pair.request(GET)
    assert pair.to_node(pair.mount.send_cancel(request_id)) == [CancelReceived(request_id)]
    (event,) = pair.to_mount(pair.node.send_error(request_id, FileError(errno.EINTR)))
    assert (event.request_id, event.error.errno) == (request_id, errno.EINTR)
    assert pair.mount.send_cancel(request_id) == []


def test_cancel_that_crosses_the_answer_is_no_mistake():
    """The answer left before the cancel arrived; neither side is to blame."""
    pair = ConnectionPair().open()
    request_id = pair.request(GET)
    answer = pair.node.send_answer(request_id, ATTR)
    assert pair.to_node(pair.mount.send_cancel(request_id)) == []
    assert [type(event) for event in pair.to_mount(answer)] == [AnswerReceived]


def test_unknown_request_is_answered_not_dropped():
    """A newer mount asks what this node does not know: ENOSYS, and the connection goes on."""
    pair = ConnectionPair().open()
    request_id, _ = pair.mount.send_request(GET, deadline_ms=1)
    pair.node.receive_data(raw(Kind.REQUEST, request_id, 1000, (999, "x"), payload=b"abc"))
    (event,) = pair.node.events()
    assert isinstance(event, RequestNotUnderstood)
    assert pair.node.unanswered_bytes == 3
    with pytest.raises(LocalProtocolError):
        pair.node.send_answer(request_id, None)
    (answer,) = pair.to_mount(pair.node.send_error(event.request_id, event.error))
    assert isinstance(answer.error, FileError)
    assert answer.error.errno == errno.ENOSYS
    assert "unknown request 999" in str(answer.error)
    assert pair.call(GET, b"", ATTR).value == ATTR
    assert pair.node.unanswered_bytes == 0


def test_content_that_waits_is_counted():
    """The driver stops reading by this number, so that a peer can't fill the memory."""
    pair = ConnectionPair().open()
    first = pair.request(m.BlobWrite(samples.BLOB, 0), b"x" * 1000)
    second = pair.request(m.BlobWrite(samples.BLOB, 1000), b"x" * 10)
    assert pair.node.unanswered_bytes == 1010
    pair.node.send_answer(first, None)
    assert pair.node.unanswered_bytes == 10
    pair.node.send_error(second, FileError(errno.EIO))
    assert pair.node.unanswered_bytes == 0


def test_a_large_command_that_waits_is_counted():
    """By what it takes in memory: 1024 of the largest would be 14 GB."""
    pair = ConnectionPair().open()
    small = pair.request(m.Execute(ClientId(1), Serial(1), PurgeOrphans((Ino(7),) * 100)))
    assert pair.node.unanswered_bytes == 0
    extents = tuple(Extent(at << 20, 1 << 20, samples.BLOB, 0) for at in range(2000))
    commit = Commit(ROOT_CALLER, Ino(7), None, None, 2000 << 20, False, extents, ())
    tracemalloc.start()
    large = pair.request(m.Execute(ClientId(1), Serial(2), commit))
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert pair.node.unanswered_bytes > held / 2
    for request_id in (small, large):
        pair.node.send_error(request_id, FileError(errno.EIO))
    assert pair.node.unanswered_bytes == 0


def test_pushes_come_in_order_and_are_acknowledged():
    """One stream over both kinds of push; an acknowledgement covers all up to its number."""
    pair = ConnectionPair().open()
    pair.call(m.Subscribe(), b"", None)
    for push in samples.PUSHES:
        assert push.sequence == pair.node.push_sequence + 1
        assert pair.to_mount(pair.node.send_push(push)) == [PushReceived(push)]
    assert pair.to_node(pair.mount.send_acknowledge(2)) == [AcknowledgeReceived(2)]


def test_nodes_ask_each_other_both_ways():
    """Between nodes both sides send requests and peer messages over one connection."""
    pair = ConnectionPair(Role.NODE).open()
    pair.call(m.Forward(1, 1, samples.CREATE), b"", samples.RESULT)
    request_id, buffers = pair.node.send_request(m.BlobCopy(samples.INFO), deadline_ms=5)
    (event,) = pair.to_mount(buffers)
    assert event.request == m.BlobCopy(samples.INFO)
    (event,) = pair.to_node(pair.mount.send_answer(request_id, None))
    assert event.request_id == request_id
    message = (3, 7, (1, b"x", None))
    assert pair.to_node(pair.mount.send_peer(message, b"log")) == [PeerReceived(message, b"log")]
    assert pair.to_mount(pair.node.send_peer(message)) == [PeerReceived(message, b"")]


def test_goodbye_finishes_what_is_under_way():
    """After it no new requests, neither way; answers, pushes and pings go on."""
    pair = ConnectionPair().open()
    request_id = pair.request(GET)
    _, crossing = pair.mount.send_request(GET, deadline_ms=5)
    assert pair.to_mount(pair.node.send_goodbye("stopping")) == [GoodbyeReceived("stopping")]
    assert pair.mount.goodbye_received
    with pytest.raises(LocalProtocolError):
        pair.mount.send_request(GET, deadline_ms=5)
    assert len(pair.to_node(crossing)) == 1
    (event,) = pair.to_mount(pair.node.send_answer(request_id, ATTR))
    assert event.value == ATTR


def test_end_of_stream_is_the_last_event():
    """Between frames or in the middle of one: a crash of the peer is not a broken protocol."""
    for rest, truncated in ((b"", False), (b"\0\0\0\x05", True), (b"\0\0\0\x05\0\0\0\0\x91", True)):
        pair = ConnectionPair().open()
        request_id = pair.request(GET)
        pair.mount.receive_data(rest)
        pair.mount.receive_eof()
        assert list(pair.mount.events()) == [ConnectionEnded(truncated)]
        assert pair.mount.next_event() is None
        assert pair.mount.outstanding_ids == [request_id]
        with pytest.raises(LocalProtocolError):
            pair.mount.send_request(GET, deadline_ms=5)
        with pytest.raises(LocalProtocolError):
            pair.mount.receive_data(b"more")


# --- the peer's mistakes --------------------------------------------------------------------------


def accepting() -> Session:
    return Session.accepting(FEW)


def hello_received() -> Session:
    session = accepting()
    session.receive_data(join(Session.connecting(hello(), FEW).send_hello()))
    assert len(list(session.events())) == 1
    return session


def node_of_mount(role: Role = Role.MOUNT) -> Session:
    """A node with an open session, to which a mount (or other role) speaks."""
    pair = ConnectionPair(role, limits=FEW).open()
    pair.call(m.Subscribe(), b"", None)  # request 1 is answered
    pair.to_mount(pair.node.send_push(m.DropAll(1)))
    pair.request(GET)  # request 2 is not
    return pair.node


def node_of_node() -> Session:
    return node_of_mount(Role.NODE)


def node_after_goodbye() -> Session:
    session = node_of_mount()
    session.receive_data(raw(Kind.GOODBYE, "bye"))
    list(session.events())
    return session


def hello_sent() -> Session:
    session = Session.connecting(hello(), FEW)
    session.send_hello()
    return session


def mount() -> Session:
    """A mount with an open session and a subscription; its request 2 waits for an answer."""
    pair = ConnectionPair(limits=FEW).open()
    pair.call(m.Subscribe(), b"", None)
    pair.request(GET)
    return pair.mount


def mount_without_subscription() -> Session:
    return ConnectionPair(limits=FEW).open().mount


ABOUT = b"\x80"
GET_CODED = (2, 7, None)
HELLO = (1, MAGIC, (1,), "mount", CLUSTER, 0, "host", ABOUT)


def hello_with(position: int, value) -> bytes:
    return raw(*HELLO[:position], value, *HELLO[position + 1 :])


MISTAKES = [
    # (state, what arrives, name)
    (accepting, raw(Kind.PING, 1), "ping before hello"),
    (accepting, raw(Kind.REQUEST, 1, 1000, GET_CODED), "request before hello"),
    (accepting, raw(Kind.WELCOME, 1, CLUSTER, 3, "h"), "welcome to the accepting side"),
    (accepting, raw(*HELLO[:-1]), "hello with too few fields"),
    (accepting, raw(*HELLO, payload=b"x"), "hello with a payload"),
    (accepting, hello_with(1, b"Http"), "wrong magic"),
    (accepting, hello_with(1, "PyDi"), "magic as text"),
    (accepting, hello_with(2, ()), "no versions"),
    (accepting, hello_with(2, (2, 1)), "versions not ascending"),
    (accepting, hello_with(2, (1, 1)), "version twice"),
    (accepting, hello_with(2, (0,)), "version 0"),
    (accepting, hello_with(2, tuple(range(1, 66))), "too many versions"),
    (accepting, hello_with(3, "admin"), "unknown role"),
    (accepting, hello_with(3, 1), "role as number"),
    (accepting, hello_with(4, CLUSTER.upper()), "cluster in capitals"),
    (accepting, hello_with(4, CLUSTER + "\n"), "cluster with a line break"),
    (accepting, hello_with(4, None), "cluster missing"),
    (accepting, hello_with(5, 1), "mount with a number"),
    (accepting, hello_with(5, -1), "negative number"),
    (accepting, hello_with(5, 1 << 15), "number too large"),
    (accepting, raw(1, MAGIC, (1,), "node", CLUSTER, 0, "h", ABOUT), "node without a number"),
    (accepting, hello_with(6, "h" * 256), "host too long"),
    (accepting, hello_with(7, b"\x90"), "about is no map"),
    (accepting, raw(*HELLO) + raw(Kind.PING, 1), "ping before welcome, at once"),
    (accepting, raw(*HELLO) + b"\0", "half a frame before welcome"),
    (hello_received, raw(Kind.PING, 1), "ping before welcome"),
    (hello_received, raw(*HELLO), "second hello before welcome"),
    (hello_received, b"\0", "any byte before welcome"),
    (hello_sent, raw(*HELLO), "hello from the accepting side"),
    (hello_sent, raw(Kind.ANSWER, 1, None), "answer before welcome"),
    (hello_sent, raw(Kind.WELCOME, 2, CLUSTER, 3, "h"), "version not offered"),
    (hello_sent, raw(Kind.WELCOME, 1, "f" * 32, 3, "h"), "another cluster"),
    (hello_sent, raw(Kind.WELCOME, 1, CLUSTER, 0, "h"), "node number 0"),
    (hello_sent, raw(Kind.WELCOME, 1, CLUSTER, 3, "h", payload=b"x"), "welcome with a payload"),
    (hello_sent, raw(Kind.REFUSE, -1, "s"), "negative refusal"),
    (hello_sent, raw(Kind.REFUSE, 1, b"s"), "refusal in bytes"),
    (node_of_mount, raw(*HELLO), "hello when open"),
    (node_of_mount, raw(), "empty header"),
    (node_of_mount, raw(0), "kind 0"),
    (node_of_mount, raw(14), "unknown kind"),
    (node_of_mount, raw(True), "kind True"),
    (node_of_mount, raw("REQUEST", 3, 1000, GET_CODED), "kind as text"),
    (node_of_mount, raw((4,), 3), "kind as array"),
    (node_of_mount, raw(Kind.REQUEST, 3, 1000), "request with too few fields"),
    (node_of_mount, raw(Kind.REQUEST, 3, 1000, GET_CODED, 1), "request with too many fields"),
    (node_of_mount, raw(Kind.REQUEST, 2, 1000, GET_CODED), "duplicate id"),
    (node_of_mount, raw(Kind.REQUEST, 1, 1000, GET_CODED), "id of an answered request"),
    (node_of_mount, raw(Kind.REQUEST, 0, 1000, GET_CODED), "id 0"),
    (node_of_mount, raw(Kind.REQUEST, "3", 1000, GET_CODED), "id as text"),
    (node_of_mount, raw(Kind.REQUEST, 3, 0, GET_CODED), "no time left"),
    (node_of_mount, raw(Kind.REQUEST, 3, DEADLINE_MAX_MS + 1, GET_CODED), "deadline too long"),
    (node_of_mount, raw(Kind.REQUEST, 3, None, GET_CODED), "no deadline"),
    (node_of_mount, raw(Kind.REQUEST, 3, 1000, None), "request that is no array"),
    (node_of_mount, raw(Kind.REQUEST, 3, 1000, ()), "request without a code"),
    (node_of_mount, raw(Kind.REQUEST, 3, 1000, (2, 0, None)), "ino 0"),
    (node_of_mount, raw(Kind.REQUEST, 3, 1000, (1, 1, b"a/b", None)), "name with a slash"),
    (node_of_mount, raw(Kind.REQUEST, 3, 1000, (1, 1, b"a\0", None)), "name with NUL"),
    (node_of_mount, raw(Kind.REQUEST, 3, 1000, (20, 1 << 48, -1)), "negative size"),
    (node_of_mount, raw(Kind.REQUEST, 3, 1000, GET_CODED, payload=b"x"), "unexpected payload"),
    (node_of_mount, raw(Kind.REQUEST, 3, 1000, m.encode_request(m.BlobCopy(samples.INFO))),
     "request that only nodes may send"),
    (node_of_mount, raw(Kind.REQUEST, 3, 1000, m.encode_request(m.Admin("status"))),
     "administration by a mount"),
    (node_of_mount, b"".join(raw(Kind.REQUEST, i, 9, GET_CODED) for i in (3, 4, 5)),
     "too many requests"),
    (node_after_goodbye, raw(Kind.REQUEST, 3, 1000, GET_CODED), "request after its goodbye"),
    (node_after_goodbye, raw(Kind.GOODBYE, "again"), "second goodbye"),
    (node_of_mount, raw(Kind.ANSWER, 1, None), "answer by a mount"),
    (node_of_mount, raw(Kind.ERROR, 1, (1, 5, "s", False, None)), "error by a mount"),
    (node_of_mount, raw(Kind.PUSH, (2, 1)), "push by a mount"),
    (node_of_mount, raw(Kind.PEER, (1,)), "peer message by a mount"),
    (node_of_mount, raw(Kind.CANCEL, 3), "cancel of a request never made"),
    (node_of_mount, raw(Kind.CANCEL, None), "cancel without an id"),
    (node_of_mount, raw(Kind.CANCEL, 2, payload=b"x"), "cancel with a payload"),
    (node_of_mount, raw(Kind.ACKNOWLEDGE, 0), "acknowledges nothing"),
    (node_of_mount, raw(Kind.ACKNOWLEDGE, 2), "acknowledges what was not sent"),
    (node_of_mount, raw(Kind.ACKNOWLEDGE, 1) * 2, "acknowledges twice"),
    (node_of_mount, raw(Kind.PONG, 1), "pong without a ping"),
    (node_of_mount, raw(Kind.PING, -1), "negative token"),
    (node_of_mount, raw(Kind.PING, 1) * (PINGS_MAX + 1), "flood of pings"),
    (node_of_mount, raw(Kind.GOODBYE, "x" * 2001), "goodbye too long"),
    (node_of_node, raw(Kind.PEER, 1), "peer message that is no array"),
    (node_of_node, raw(Kind.ANSWER, 1, None), "node answers what was not asked"),
    (node_of_node, raw(Kind.PUSH, (2, 1)), "node pushes to who has not subscribed"),
    (mount, raw(Kind.REQUEST, 1, 1000, GET_CODED), "request to a mount"),
    (mount, raw(Kind.CANCEL, 1), "cancel to a mount"),
    (mount, raw(Kind.ACKNOWLEDGE, 1), "acknowledgement to a mount"),
    (mount, raw(Kind.PEER, (1,)), "peer message to a mount"),
    (mount, raw(Kind.ANSWER, 3, ATTR), "answer to an unknown id"),
    (mount, raw(Kind.ANSWER, 1, None), "second answer"),
    (mount, raw(Kind.ANSWER, 2, ATTR[:-1]), "answer with a field missing"),
    (mount, raw(Kind.ANSWER, 2, ATTR, payload=b"x"), "answer with a payload"),
    (mount, raw(Kind.ERROR, 3, (1, 5, "s", False, None)), "error to an unknown id"),
    (mount, raw(Kind.ERROR, 2, (1, 0, "s", False, None)), "error without an errno"),
    (mount, raw(Kind.ERROR, 2, (1, 5, "s", 0, None)), "retry that is no boolean"),
    (mount, raw(Kind.ERROR, 2, (1, 5, "s", False, 0)), "leader 0"),
    (mount, raw(Kind.ERROR, 2, (1, 5, "s" * 2001, False, None)), "sentence too long"),
    (mount, raw(Kind.ERROR, 2, (1, 5, "s", False)), "error with a field missing"),
    (mount, raw(Kind.ERROR, 2, None), "error that is no array"),
    (mount, raw(Kind.PUSH, (2, 2)), "gap in the pushes"),
    (mount, raw(Kind.PUSH, (2, 1)) * 2, "push twice"),
    (mount, raw(Kind.PUSH, (3, 1)), "unknown push"),
    (mount, raw(Kind.PUSH, None), "push that is no array"),
    (mount_without_subscription, raw(Kind.PUSH, (2, 1)), "push without a subscription"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("make", "data"), [pytest.param(make, data, id=name) for make, data, name in MISTAKES]
)
def test_peers_mistake_breaks_the_session(make, data):
    """Each (state, input) that must not be: RemoteProtocolError, at once, and again ever after."""
    session = make()
    with pytest.raises(RemoteProtocolError) as caught:
        take(session, data)
    assert 0 < len(str(caught.value)) < 300
    assert session.state is State.BROKEN
    with pytest.raises(RemoteProtocolError):
        session.next_event()
    with pytest.raises(RemoteProtocolError):
        session.receive_data(b"x")
    with pytest.raises(LocalProtocolError):
        session.send_ping(1)


OPEN_SESSIONS = {"node": node_of_mount, "node of node": node_of_node, "mount": mount}


@pytest.mark.parametrize("make", [accepting, hello_sent, *OPEN_SESSIONS.values()])
@pytest.mark.parametrize("kind", list(Kind), ids=lambda kind: kind.name)
def test_kind_is_taken_only_in_its_state(make, kind):
    """The table is the rule: in any other state, from or to anybody else, the frame is refused
    before its fields are looked at."""
    session = make()
    rule = KIND_RULES[kind]
    node, peer_node = make is not mount and make is not hello_sent, make is not node_of_mount
    fits = session.state is rule.state and (
        rule.state is not State.OPEN
        or ((not rule.sender_is_node or peer_node) and (not rule.receiver_is_node or node))
    )  # fmt: skip
    with pytest.raises(RemoteProtocolError) as caught:
        take(session, raw(kind))  # without a single field
    assert str(caught.value).endswith("with 0 fields") == fits


def test_lengths_are_small_before_the_welcome():
    """Before a peer is known it gets 64 KiB of header and no payload."""
    too_long = LIMITS_BEFORE_WELCOME.header_max_bytes + 1
    with pytest.raises(RemoteProtocolError):
        take(accepting(), too_long.to_bytes(4, "big") + bytes(4))


def test_answer_to_a_read_is_not_longer_than_asked():
    """A reader's buffer is as large as it asked."""
    pair = ConnectionPair().open()
    request_id = pair.request(m.BlobRead(samples.BLOB, 0, 5))
    answer = pair.node.send_answer(request_id, None, b"123456")
    with pytest.raises(RemoteProtocolError):
        pair.to_mount(answer)


# --- our own mistakes -----------------------------------------------------------------------------


def fails_locally(session: Session, call) -> None:
    before = (
        session.state,
        session.requests_outstanding,
        session.unanswered,
        session.push_sequence,
    )
    with pytest.raises(LocalProtocolError):
        call(session)
    assert before == (
        session.state, session.requests_outstanding, session.unanswered, session.push_sequence,
    )  # fmt: skip


def too_many_requests(session: Session) -> None:
    for _ in range(FEW.requests_max + 1):
        session.send_request(GET, deadline_ms=1)


OUR_MISTAKES = [
    (accepting, lambda s: s.send_hello(), "hello from the accepting side"),
    (accepting, lambda s: s.send_welcome(WELCOME), "welcome before hello"),
    (accepting, lambda s: s.send_refuse(Refusal.BUSY, ""), "refusal before hello"),
    (accepting, lambda s: s.send_ping(1), "ping before hello"),
    (hello_received, lambda s: s.send_request(GET, deadline_ms=1), "request before welcome"),
    (hello_received, lambda s: s.send_goodbye(""), "goodbye before welcome"),
    (hello_received, lambda s: s.send_welcome(Welcome(2, CLUSTER, 3, "h")), "version not offered"),
    (hello_sent, lambda s: s.send_hello(), "second hello"),
    (hello_sent, lambda s: s.send_request(GET, deadline_ms=1), "request before welcome arrived"),
    (mount, lambda s: s.send_welcome(WELCOME), "welcome from the connecting side"),
    (mount, lambda s: s.send_request(GET, deadline_ms=0), "no time left"),
    (mount, lambda s: s.send_request(GET, deadline_ms=DEADLINE_MAX_MS + 1), "deadline too long"),
    (mount, lambda s: s.send_request(GET, b"x", deadline_ms=1), "payload that is not wanted"),
    (mount, lambda s: s.send_request(m.BlobPut(), bytes(5 << 20), deadline_ms=1), "oversize"),
    (mount, lambda s: s.send_request(m.Admin("status"), deadline_ms=1), "not for a mount"),
    (mount, lambda s: s.send_cancel(3), "cancel of what was never sent"),
    (mount, lambda s: s.send_answer(1, None), "answer by a mount"),
    (mount, lambda s: s.send_error(1, ValueError()), "error by a mount"),
    (mount, lambda s: s.send_push(m.DropAll(1)), "push by a mount"),
    (mount, lambda s: s.send_peer((1,)), "peer message by a mount"),
    (mount, lambda s: s.send_acknowledge(1), "acknowledges what has not come"),
    (mount, lambda s: s.send_pong(1), "pong without a ping"),
    (mount, lambda s: s.send_ping(-1), "negative token"),
    (node_of_mount, lambda s: s.send_request(GET, deadline_ms=1), "request to a mount"),
    (node_of_mount, lambda s: s.send_peer((1,)), "peer message to a mount"),
    (node_of_mount, lambda s: s.send_answer(1, None), "second answer"),
    (node_of_mount, lambda s: s.send_answer(3, None), "answer to an unknown id"),
    (node_of_mount, lambda s: s.send_error(3, ValueError()), "error to an unknown id"),
    (node_of_mount, lambda s: s.send_answer(2, ATTR, b"x"), "answer with a payload"),
    (node_of_mount, lambda s: s.send_answer(2, object()), "answer that can't travel"),
    (node_of_mount, lambda s: s.send_answer(2, b"x" * (5 << 20)), "oversize answer"),
    (node_of_mount, lambda s: s.send_push(m.DropAll(3)), "gap in the pushes"),
    (node_of_mount, lambda s: s.send_push(m.DropAll(1)), "push twice"),
    (node_of_node, lambda s: s.send_peer((object(),)), "peer message that can't travel"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("make", "call"), [pytest.param(make, call, id=name) for make, call, name in OUR_MISTAKES]
)
def test_our_mistake_changes_nothing(make, call):
    """LocalProtocolError, and the session is as it was: the peer saw nothing of it."""
    fails_locally(make(), call)


def test_too_many_requests_of_ours_are_our_mistake():
    """The bound holds before the peer would drop us for it; an answer makes room again."""
    pair = ConnectionPair(limits=FEW).open()
    ids = [pair.request(GET) for _ in range(FEW.requests_max)]
    fails_locally(pair.mount, lambda session: session.send_request(GET, deadline_ms=1))
    pair.to_mount(pair.node.send_answer(ids[1], ATTR))
    pair.request(GET)


def test_too_many_pings_of_ours_are_our_mistake():
    """Sixteen pings without a pong: the peer is gone, another ping won't help."""
    session = mount()
    for token in range(PINGS_MAX):
        session.send_ping(token)
    fails_locally(session, lambda session: session.send_ping(99))


def test_second_goodbye_is_our_mistake():
    """Goodbye is said once; requests after it are refused too."""
    session = mount()
    session.send_goodbye("bye")
    fails_locally(session, lambda session: session.send_goodbye("bye"))
    fails_locally(session, lambda session: session.send_request(GET, deadline_ms=1))


def test_push_before_subscription_is_our_mistake():
    """Nobody asked for it."""
    pair = ConnectionPair().open()
    fails_locally(pair.node, lambda session: session.send_push(m.DropAll(1)))


# --- any input at all -----------------------------------------------------------------------------

SESSIONS = [accepting, hello_received, hello_sent, mount, node_of_mount, node_of_node]


def feed(session: Session, data: bytes) -> None:
    """Events or RemoteProtocolError; anything else fails the test."""
    try:
        session.receive_data(data)
        for event in session.events():
            if isinstance(event, PingReceived):
                session.send_pong(event.token)
            assert not isinstance(event, PongReceived)
    except RemoteProtocolError:
        assert session.state is State.BROKEN


@settings(deadline=None, max_examples=150)
@given(st.sampled_from(SESSIONS), st.binary(max_size=100))
def test_any_bytes_are_events_or_the_peers_fault(make, data):
    """Garbage in any state."""
    feed(make(), data)


@settings(deadline=None, max_examples=400)
@given(
    st.sampled_from(SESSIONS),
    st.integers(0, 15),
    st.lists(samples.plain_values, max_size=8),
    st.binary(max_size=4),
)
def test_any_header_is_an_event_or_the_peers_fault(make, kind, fields, payload):
    """Well-framed headers of every kind with anything in their fields."""
    feed(make(), raw(kind, *fields, payload=payload))


@settings(deadline=None, max_examples=400)
@given(
    st.sampled_from([node_of_mount, node_of_node]),
    st.sampled_from([m.encode_request(request) for request, *_ in SAMPLES]),
    st.integers(0, 20),
    samples.plain_values,
)
def test_any_field_of_a_request_is_an_event_or_the_peers_fault(make, encoded, position, value):
    """Honest requests with one field replaced by anything."""
    position %= len(encoded)
    encoded = (*encoded[:position], value, *encoded[position + 1 :])
    feed(make(), raw(Kind.REQUEST, 3, 1000, encoded))


@settings(deadline=None, max_examples=400)
@given(st.data())
def test_mutated_frames_are_events_or_the_peers_fault(data):
    """An honest conversation with bits flipped, bytes cut out or put in."""
    stream = bytearray(
        b"".join(
            raw(Kind.REQUEST, request_id, 1000, m.encode_request(request), payload=payload)
            for request_id, (request, payload, _, _) in enumerate(
                data.draw(st.lists(st.sampled_from(SAMPLES), min_size=1, max_size=3)), start=3
            )
        )
    )
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(stream) - 1))
        match data.draw(st.sampled_from(["flip", "cut", "insert"])):
            case "flip":
                stream[position] ^= 1 << data.draw(st.integers(0, 7))
            case "cut":
                if len(stream) > 1:
                    del stream[position]
            case "insert":
                stream.insert(position, data.draw(st.integers(0, 255)))
    feed(data.draw(st.sampled_from([node_of_mount, node_of_node]))(), bytes(stream))
