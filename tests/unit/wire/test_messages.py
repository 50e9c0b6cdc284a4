"""Messages: every one encodes and decodes to itself, and every field refuses what is wrong."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pydi_node import commands
from pydi_node.ids import BLOB_ID_MAX, INT64_MAX, BlobId, NodeNumber, blob_id, parse_blob_name
from pydi_node.records import IN_TREE, BlobInfo, Extent, FileVersion, Result
from pydi_node.wire import codec, fields
from pydi_node.wire import messages as m
from pydi_node.wire.messages import MessageError, Payload, UnknownRequestError
from tests.unit.wire import samples
from tests.unit.wire.samples import BLOB, COMMANDS, RESULT_VALUES, SAMPLES


def over_the_wire(value):
    return codec.unpack_header(codec.pack(value))


# --- round trips ----------------------------------------------------------------------------------


def test_every_request_has_a_sample():
    """The other tests here run over SAMPLES: nothing may be missing from it."""
    assert {type(request) for request, *_ in SAMPLES} == set(m.REQUEST_OF_CLASS)


def test_codes_are_unique_and_stay():
    """Codes are part of the protocol: this list only grows."""
    assert [(spec.code, spec.name) for spec in m.REQUESTS] == list(
        enumerate(
            [
                "Lookup", "GetAttr", "ReadDir", "ReadLink", "GetXattr", "ListXattr", "GetFile",
                "Versions", "PathVersions", "PathOf", "Statfs", "IndexAt", "Open", "Release",
                "Execute", "ExecutePut", "Forward", "BlobCreate", "BlobWrite", "BlobTruncate",
                "BlobSeal", "BlobAbort", "BlobPut", "BlobRead", "BlobVerify", "BlobCopy",
                "SetLock", "GetLock", "Admin", "Subscribe", "Nodes", "ReplicaPut",
                "ReplicaCreate", "Lease", "BlobStream", "BlobAdopt", "BlobGrown",
            ],
            start=1,
        )
    )  # fmt: skip


@pytest.mark.parametrize("request_", [request for request, *_ in SAMPLES], ids=repr)
def test_request_survives_the_wire(request_):
    """decode(encode(x)) is x, types of its fields included."""
    decoded = m.decode_request(over_the_wire(m.encode_request(request_)))
    assert decoded == request_
    for field in dataclasses.fields(request_):
        assert type(getattr(decoded, field.name)) is type(getattr(request_, field.name))


@settings(deadline=None)
@given(samples.requests)
def test_random_request_survives_the_wire(request):
    """The same for random values of every field."""
    assert m.decode_request(over_the_wire(m.encode_request(request))) == request


@pytest.mark.parametrize(("request_", "_payload", "value", "_content"), SAMPLES, ids=repr)
def test_answer_survives_the_wire(request_, _payload, value, _content):
    """Answers come back as the records they were, not as bare tuples."""
    decoded = m.decode_answer(request_, over_the_wire(m.encode_answer(request_, value)))
    assert decoded == value
    assert type(decoded) is type(value)


@pytest.mark.parametrize("cls", list(COMMANDS), ids=lambda cls: cls.__name__)
def test_result_of_every_command_survives_the_wire(cls):
    """A Result's value is decoded by its command, as commands.py documents it."""
    request = m.Execute(1, 1, COMMANDS[cls])
    assert m.decode_request(over_the_wire(m.encode_request(request))) == request
    result = Result(0, RESULT_VALUES[cls])
    decoded = m.decode_answer(request, over_the_wire(m.encode_answer(request, result)))
    assert decoded == result
    assert type(decoded.value) is type(result.value)


def test_every_command_has_a_result_type():
    """A new command without an entry would make every client drop the connection."""
    assert set(m.RESULT_VALUES) == set(commands.COMMAND_CODES) == set(COMMANDS)


def test_failed_result_has_no_value():
    """With an errno the value is not looked at: nothing changed."""
    value = over_the_wire((2, ["anything"], ((), ())))
    assert m.decode_answer(m.Execute(1, 1, samples.CREATE), value) == Result(2)


@settings(deadline=None)
@given(samples.attrs, st.integers(1, INT64_MAX))
def test_random_attr_survives_the_wire(attr, ino):
    """Attributes with any 64 bit values, times before 1970 included."""
    assert m.decode_answer(m.GetAttr(ino), over_the_wire(attr)) == attr


@pytest.mark.parametrize("push", samples.PUSHES, ids=repr)
def test_push_survives_the_wire(push):
    """decode(encode(x)) is x."""
    assert m.decode_push(over_the_wire(m.encode_push(push))) == push


# --- refusals -------------------------------------------------------------------------------------

NOT_INTEGERS = [None, True, 1.0, "1", b"1", (), (1,)]
NOT_INT64 = [*NOT_INTEGERS, -1, INT64_MAX + 1, (1 << 64) - 1]
NOT_BYTES = [None, True, 1, "text", (), (b"a",)]
DEEP: tuple = ()
for _ in range(900):
    DEEP = (DEEP,)

# What no request may carry in a field of this name.
BAD_VALUES = {
    "parent": [*NOT_INT64, 0],
    "ino": [*NOT_INT64, 0],
    "name": [*NOT_BYTES, b"a/b", b"/", b"a\0b", b"\0", b"", b".", b"..", b"x" * 4097],
    "at": NOT_INT64[1:],
    "path": [*NOT_BYTES, b"", b"a\0", b"x" * 65537],
    "after_cookie": NOT_INT64,
    "limit": [*NOT_INT64, 0, 4097],
    "time_ns": NOT_INT64,
    "count": [*NOT_INT64, 0],
    "client": [*NOT_INT64, 0],
    "serial": [*NOT_INT64, 0],
    "command": [None, 1, "mkdir", (), (None,), ("1",), (True,), (2,), (2, 1, 1), (DEEP,),
                (2, DEEP)],
    "blob": [*NOT_INT64, 0],
    "offset": NOT_INT64,
    "size": NOT_INT64,
    "length": [*NOT_INT64, 0, m.CHUNK_MAX_BYTES + 1],
    "checksum": [1, "x" * 32, b"", b"x" * 31, b"x" * 33, ()],
    "ticket": [None, "x" * 16, b"", b"x" * 15, b"x" * 17],
    "info": [None, 1, (), (0, 5, b"x" * 32, ()), (1, -1, b"x" * 32, ()), (1, 1, b"", ()),
             (1, 1, b"x" * 32, (2, 1)), (1, 1, b"x" * 32, (1,) * 65), DEEP],
    "owner": [*NOT_INTEGERS, -1],
    "kind": [None, 0, True, b"shared", "SHARED", "other", ()],
    "start": NOT_INT64,
    "end": NOT_INT64,
    "flock": [None, 0, 1, "", ()],
    "wait": [None, 0, 1, "", ()],
    "pid": [*NOT_INT64, 1 << 32],
    "verb": [None, 1, b"status", "x" * 65],
    "arguments": [None, 1, (), b"", b"\x01", b"\x80\x80", b"\x81\x01\x01", b"\xc7\x00\x05",
                  codec.pack([[]]), b"\x81\xa1a" + b"\x91" * 20 + b"\x01", b"\x91" * 5000,
                  b"\x80" * ((1 << 20) + 1)],
}  # fmt: skip
# Where one request gives a name another meaning.
BAD_VALUES_OF = {
    ("GetXattr", "name"): [*NOT_BYTES, b"a\0b", b"x" * 8193],
    ("BlobCreate", "ino"): [*NOT_INT64[1:], 0],
    ("BlobPut", "ino"): [*NOT_INT64[1:], 0],
    ("BlobAdopt", "ino"): [*NOT_INT64[1:], 0],
}


def bad_fields():
    for request, *_ in SAMPLES:
        encoded = over_the_wire(m.encode_request(request))
        m.decode_request(encoded)  # only the field replaced below is wrong
        for position, field in enumerate(dataclasses.fields(request), start=1):
            key = (type(request).__name__, field.name)
            for number, bad in enumerate(BAD_VALUES_OF.get(key) or BAD_VALUES[field.name]):
                wrong = (*encoded[:position], bad, *encoded[position + 1 :])
                yield pytest.param(wrong, id=f"{'.'.join(key)}-{number}")


@pytest.mark.parametrize("encoded", list(bad_fields()))
def test_wrong_field_is_refused(encoded):
    """Each field of each request refuses wrong types and ranges with a short sentence."""
    with pytest.raises(MessageError) as caught:
        m.decode_request(encoded)
    assert not isinstance(caught.value, UnknownRequestError)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("request_", [request for request, *_ in SAMPLES], ids=repr)
def test_wrong_number_of_fields_is_refused(request_):
    """One field too many or too few is no request of this version."""
    encoded = over_the_wire(m.encode_request(request_))
    for wrong in ((*encoded, None), encoded[:-1]):
        with pytest.raises(MessageError):
            m.decode_request(wrong)


@pytest.mark.parametrize("code", [0, -1, 254, 255, 1 << 63])
def test_unknown_request_is_told_from_a_malformed_one(code):
    """A newer peer's request is refused by itself; it does not cost the connection."""
    with pytest.raises(UnknownRequestError, match="unknown request"):
        m.decode_request((code, 1, 2))
    with pytest.raises(UnknownRequestError, match="unknown command"):
        m.decode_request((m.REQUEST_OF_CLASS[m.Execute].code, 1, 1, (1 + 10**6,)))


@pytest.mark.parametrize("code", [None, True, 1.0, "1", b"1", (), DEEP])
def test_code_that_is_no_integer_is_malformed(code):
    """True equals 1, but is no code."""
    with pytest.raises(MessageError) as caught:
        m.decode_request((code, 1, 2))
    assert not isinstance(caught.value, UnknownRequestError)


@pytest.mark.parametrize("request_", [request for request, *_ in SAMPLES], ids=repr)
def test_wrong_answer_is_refused(request_):
    """An answer that is nothing its request promises is the peer's fault."""
    for wrong in (1.5, "text", (1, 2, 3, 4, 5, 6), -1, b"a\0b", DEEP, (DEEP,), (0, DEEP, ((), ()))):
        if isinstance(request_, m.GetXattr) and wrong == b"a\0b":
            continue  # any bytes are an xattr
        with pytest.raises(MessageError):
            m.decode_answer(request_, wrong)


@settings(deadline=None, max_examples=300)
@given(st.sampled_from(list(COMMANDS.values())), st.integers(0, 12), samples.plain_values)
def test_any_command_decodes_or_is_refused(command, at, value):
    """With whatever in one of its fields, or behind them: a command that is written as it was read,
    or CommandError."""
    fields = list(commands.encode(command))
    fields[at : at + 1] = [value]
    try:
        decoded = commands.decode(fields)
    except commands.CommandError:
        return
    assert commands.decode(over_the_wire(commands.encode(decoded))) == decoded


@settings(deadline=None, max_examples=300)
@given(st.sampled_from(SAMPLES), samples.plain_values)
def test_any_answer_decodes_or_is_refused(sample, value):
    """Whatever a peer answers: a value or MessageError, nothing else."""
    try:
        m.decode_answer(sample[0], value)
    except MessageError:
        return


@pytest.mark.parametrize(
    "value",
    [
        (), (1,), (3, 1), (True, 1), (1, 1), (1, 0, ((), ())), (2, 0), (2, -1), (2, None),
        (2, 1, 1),
        (1, 1, None), (1, 1, ((0,), ())), (1, 1, ((-1,), ())), (1, 1, ((), ((1, b"a/b"),))),
        (1, 1, ((), ((0, b"a"),))), (1, 1, ((), ((1, ""),))), (1, 1, ((), (1,))),
    ],
)  # fmt: skip
def test_wrong_push_is_refused(value):
    """A push names inodes and names, or the subscriber drops the connection, and so its caches."""
    with pytest.raises(MessageError):
        m.decode_push(value)


def test_lock_that_ends_before_it_starts_is_refused():
    """start and end are both inclusive."""
    good = m.GetLock(7, 1, m.LockKind.SHARED, 5, 5)
    assert m.decode_request(over_the_wire(m.encode_request(good))) == good
    bad = dataclasses.replace(good, end=4)
    with pytest.raises(MessageError, match="before start"):
        m.decode_request(over_the_wire(m.encode_request(bad)))


# --- payloads and ExecutePut ----------------------------------------------------------------------


@pytest.mark.parametrize("spec", m.REQUESTS, ids=lambda spec: spec.name)
def test_payload_only_where_the_table_has_one(spec):
    """Content beside a request that carries none is refused."""
    (request,) = [request for request, *_ in SAMPLES if type(request) is spec.cls]
    if spec.payload is Payload.NONE:
        m.check_payload(request, 0)
        with pytest.raises(MessageError):
            m.check_payload(request, 1)
    else:
        m.check_payload(request, 5)


def test_write_past_the_largest_file_is_refused():
    """offset and length are each in range, their sum is not."""
    with pytest.raises(MessageError):
        m.check_payload(m.BlobWrite(BLOB, INT64_MAX), 1)
    m.check_payload(m.BlobWrite(BLOB, INT64_MAX - 1), 1)


def test_placeholder_is_no_name_of_a_blob():
    """PUT_BLOB can't be mistaken: node numbers start at 1, and blob 0 is a hole."""
    assert 0 < m.PUT_BLOB < blob_id(NodeNumber(1), 1) <= BLOB_ID_MAX
    assert parse_blob_name(f"{m.PUT_BLOB:016x}") is None


def test_execute_put_names_the_stored_blob():
    """The payload's blob takes the placeholder's place, in the extents and in the list of blobs."""
    other = Extent(5, 3, BlobId(BLOB + 1), 0)
    command = dataclasses.replace(
        samples.COMMIT_PUT, extents=(*samples.COMMIT_PUT.extents, other), blobs=()
    )
    resolved = m.with_put_blob(command, samples.INFO)
    assert resolved.extents == (Extent(0, 5, BLOB, 0), other)
    assert resolved.blobs == (samples.INFO,)
    assert commands.decode(commands.encode(resolved)) == resolved


@pytest.mark.parametrize("kind", [commands.Commit, commands.Compact])
def test_content_in_a_command_is_a_field_that_older_logs_lack(kind):
    """Without content a command is written as it ever was; with it, it comes back; a larger one, or
    one of another type, is nothing that an honest client sends."""
    plain = COMMANDS[kind]
    old = commands.encode(plain)
    assert len(old) == len(dataclasses.fields(kind))  # the code, and all fields but the last
    assert commands.decode(old) == plain
    for content in (b"", b"x" * commands.INLINE_WIRE_MAX_BYTES):
        small = dataclasses.replace(plain, content=content)
        assert commands.decode(commands.encode(small)) == small
    for wrong in (b"x" * (commands.INLINE_WIRE_MAX_BYTES + 1), "text", 5, [b"x"]):
        with pytest.raises(commands.CommandError):
            commands.decode((*old, wrong))


def test_execute_put_takes_small_content_along():
    """The blob has no holder, and the command its bytes."""
    info = samples.INFO._replace(holders=IN_TREE)
    resolved = m.with_put_blob(samples.COMMIT_PUT, info, b"hello")
    assert (resolved.blobs, resolved.content) == ((info,), b"hello")
    assert commands.decode(commands.encode(resolved)) == resolved


def test_contents_belong_to_blobs_of_the_version():
    """A file version with content of another blob, or of another length, is refused; one of a node
    that knows no contents is not."""
    info = samples.INFO._replace(holders=IN_TREE)
    extents = (Extent(0, 5, BLOB, 0),)
    right = FileVersion(samples.ATTR, extents, (info,), ((BLOB, b"hello"),))
    assert FileVersion.from_wire(right) == right
    assert FileVersion.from_wire(right[:3]) == right._replace(contents=())
    for contents in ([(BLOB, b"hell")], [(BLOB + 1, b"hello")], [(BLOB, "hello")], [b"hello"], 5):
        with pytest.raises(ValueError, match=r"content|types"):
            FileVersion.from_wire((*right[:3], contents))
    with pytest.raises(ValueError, match="holders"):
        BlobInfo.from_wire(info._replace(holders=(NodeNumber(0), NodeNumber(1))))


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(samples.CREATE, id="not a commit"),
        pytest.param(COMMANDS[commands.Commit], id="payload not named"),
    ],
)
def test_execute_put_without_use_for_its_payload_is_refused(command):
    """The payload must become part of the version."""
    with pytest.raises(MessageError):
        m.decode_request(m.encode_request(m.ExecutePut(1, 1, command)))


def test_execute_put_extent_past_the_payload_is_refused():
    """A version must not name bytes that its blob won't have."""
    request = m.ExecutePut(1, 1, samples.COMMIT_PUT)
    m.check_payload(request, 5)
    with pytest.raises(MessageError):
        m.check_payload(request, 4)


# --- plain values ---------------------------------------------------------------------------------


@settings(deadline=None)
@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-(1 << 63), (1 << 64) - 1)
        | st.text()
        | st.binary(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=20,
    )
)
def test_plain_values_survive_the_wire(value):
    """What JSON could say, and bytes; `pydi status` travels like this."""
    try:
        packed = fields.pack_plain(value)
    except ValueError:
        return  # nested too deep
    assert fields.plain(packed) == value


@pytest.mark.parametrize(
    "value", [{1: 2}, {b"a": 1}, object(), {"a": {1}}, 1 << 70, [b"x" * 2**20]]
)
def test_what_is_not_plain_is_refused(value):
    """Keys are text, and there are bounds."""
    with pytest.raises(ValueError):
        fields.pack_plain(value)


def test_depth_of_plain_values_is_bounded():
    """Sixteen levels pass, seventeen don't, in both directions."""
    value: object = 1
    for _ in range(fields.PLAIN_DEPTH_MAX):
        value = [value]
    assert fields.plain(fields.pack_plain(value)) == value
    with pytest.raises(ValueError):
        fields.pack_plain([value])
    with pytest.raises(ValueError):
        fields.plain(codec.pack([value]))
