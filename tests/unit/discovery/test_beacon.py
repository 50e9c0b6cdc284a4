"""Datagrams of discovery: what is believed, what is ignored, and that nothing breaks the ear."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pydi_node.discovery.beacon import (
    DATAGRAM_MAX_BYTES,
    FORMAT,
    HMAC_BYTES,
    MAGIC,
    SENDERS_MAX,
    WINDOW_MS,
    Beacon,
    Ear,
    Ignored,
    Question,
    pack_beacon,
    pack_question,
    sign,
)
from pydi_node.discovery.finder import addresses_of
from pydi_node.discovery.group import parse_group
from pydi_node.wire import codec

CLUSTER = "0123456789abcdef" * 2
KEY = b"k" * 32
NOW_MS = 1_800_000_000_000
OWN = b"o" * 8
NODE = b"n" * 8
NONCE = b"q" * 16


def beacon(time_ms: int = NOW_MS, instance: bytes = NODE, nonce: bytes = b"") -> Beacon:
    return Beacon(instance, time_ms, 3, ("0.0.0.0:7420",), (1,), nonce)


def ear() -> Ear:
    return Ear(CLUSTER, (KEY,), OWN, NONCE)


def signed(kind: int, value: object, key: bytes = KEY, magic: bytes = MAGIC) -> bytes:
    return sign(magic + bytes((FORMAT, kind)) + bytes.fromhex(CLUSTER) + codec.pack(value), key)


def test_all_kinds_are_heard() -> None:
    """A beacon, an answer to this process's question, and a question come back as they were."""
    listener = ear()
    assert listener.hear(pack_beacon(beacon(), CLUSTER, KEY), NOW_MS) == beacon()
    answer = beacon(nonce=NONCE)
    assert listener.hear(pack_beacon(answer, CLUSTER, KEY), NOW_MS) == answer
    question = Question(b"x" * 16, NOW_MS)
    assert listener.hear(pack_question(question, CLUSTER, KEY), NOW_MS) == question
    assert not listener.counts


def test_an_answer_counts_whatever_the_clocks_say() -> None:
    """Its nonce proves that it is of now, so it tells how far the clocks are apart."""
    late = beacon(NOW_MS + 3 * WINDOW_MS, nonce=NONCE)
    assert ear().hear(pack_beacon(late, CLUSTER, KEY), NOW_MS) == late


@pytest.mark.parametrize(
    ("datagram", "reason"),
    [
        (pack_beacon(beacon(), "f" * 32, KEY), Ignored.FOREIGN),
        (pack_beacon(beacon(), CLUSTER, b"x" * 32), Ignored.FORGED),
        (pack_beacon(beacon(NOW_MS - WINDOW_MS - 1), CLUSTER, KEY), Ignored.OLD),
        (pack_beacon(beacon(NOW_MS + WINDOW_MS + 1), CLUSTER, KEY), Ignored.OLD),
        (pack_beacon(beacon(nonce=b"y" * 16), CLUSTER, KEY), Ignored.REPEATED),
        (b"", Ignored.MALFORMED),
        (bytes(DATAGRAM_MAX_BYTES + 1), Ignored.MALFORMED),
        (signed(1, (), magic=b"Pydi"), Ignored.MALFORMED),
        (signed(9, ()), Ignored.MALFORMED),
        (signed(1, ()), Ignored.MALFORMED),
        (signed(1, 7), Ignored.MALFORMED),
        (signed(1, (NODE, NOW_MS, 0, (), (), b"")), Ignored.MALFORMED),
        (signed(1, (NODE, NOW_MS, True, (), (), b"")), Ignored.MALFORMED),
        (signed(1, (NODE, NOW_MS, 3, ("a",) * 9, (), b"")), Ignored.MALFORMED),
        (signed(1, (NODE, NOW_MS, 3, ("a" * 129,), (), b"")), Ignored.MALFORMED),
        (signed(1, (NODE, NOW_MS, 3, (), (), NONCE)), Ignored.MALFORMED),
        (signed(3, (NODE, NOW_MS, 3, (), (), b"")), Ignored.MALFORMED),
        (signed(2, (b"short", NOW_MS)), Ignored.MALFORMED),
    ],
)  # fmt: skip
def test_ignored_and_counted(datagram: bytes, reason: Ignored) -> None:
    """Each for its own reason, and nothing else is."""
    listener = ear()
    assert listener.hear(datagram, NOW_MS) is None
    assert listener.counts == {reason: 1}


def test_a_repeated_beacon_is_ignored() -> None:
    """Also one that was overtaken by a newer one; a restarted process counts anew."""
    listener = ear()
    first = pack_beacon(beacon(NOW_MS), CLUSTER, KEY)
    second = pack_beacon(beacon(NOW_MS + 1), CLUSTER, KEY)
    assert listener.hear(first, NOW_MS) is not None
    assert listener.hear(first, NOW_MS) is None
    assert listener.hear(second, NOW_MS) is not None
    assert listener.hear(first, NOW_MS) is None
    assert listener.counts == {Ignored.REPEATED: 2}
    restarted = pack_beacon(beacon(NOW_MS, b"r" * 8), CLUSTER, KEY)
    assert listener.hear(restarted, NOW_MS) is not None


def test_a_repeated_question_is_ignored() -> None:
    """So somebody who recorded one can't have it answered again and again."""
    listener = ear()
    datagram = pack_question(Question(b"x" * 16, NOW_MS), CLUSTER, KEY)
    assert listener.hear(datagram, NOW_MS) is not None
    assert listener.hear(datagram, NOW_MS) is None
    assert listener.hear(pack_question(Question(b"x" * 16, NOW_MS + 1), CLUSTER, KEY), NOW_MS)


def test_in_an_overlap_both_keys_count_and_then_the_new_one() -> None:
    """The ear knows under which key it was asked, and so has to answer."""
    listener = ear()
    listener.keys = (b"n" * 32, KEY)
    for number, key in enumerate((b"n" * 32, KEY, b"n" * 32)):
        datagram = pack_beacon(beacon(NOW_MS + number), CLUSTER, key)
        assert listener.hear(datagram, NOW_MS) == beacon(NOW_MS + number)
        assert listener.key == key
    assert listener.hear(pack_beacon(beacon(NOW_MS + 9), CLUSTER, b"o" * 32), NOW_MS) is None
    listener.keys = (b"n" * 32,)
    assert listener.hear(pack_beacon(beacon(NOW_MS + 9), CLUSTER, KEY), NOW_MS) is None
    assert listener.counts == {Ignored.FORGED: 2}


def test_own_beacons_are_not_heard() -> None:
    """The group gives everybody's datagrams back to the sender too."""
    listener = ear()
    assert listener.hear(pack_beacon(beacon(instance=OWN), CLUSTER, KEY), NOW_MS) is None
    assert not listener.counts


def test_memory_is_bounded() -> None:
    """However many processes and clusters there are, or somebody invents."""
    listener = ear()
    for number in range(SENDERS_MAX + 50):
        datagram = pack_beacon(beacon(instance=number.to_bytes(8, "big")), CLUSTER, KEY)
        assert listener.hear(datagram, NOW_MS) is not None
        listener.hear(pack_beacon(beacon(), f"{number + 1:032x}", KEY), NOW_MS)
    assert len(listener._last) == SENDERS_MAX
    assert len(listener.others) < 20


@given(st.binary(max_size=DATAGRAM_MAX_BYTES + 50))
def test_any_bytes_are_ignored(datagram: bytes) -> None:
    """Whatever a stranger sends: nothing is believed, and nothing raises."""
    assert ear().hear(datagram, NOW_MS) is None


_PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text()
    | st.binary(max_size=20) | st.sampled_from([NODE, NONCE, NOW_MS, 3]),
    lambda inner: st.lists(inner, max_size=8) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=12,
)  # fmt: skip


@given(st.integers(0, 255), st.lists(_PLAIN, max_size=8))
def test_any_value_under_a_true_key_is_checked(kind: int, value: list[object]) -> None:
    """What somebody with a token invents is well-formed when it is heard, or ignored."""
    datagram = signed(kind, value)
    heard = ear().hear(datagram, NOW_MS)
    if isinstance(heard, Beacon):
        assert addresses_of(heard, "10.0.0.1") is not None
        assert all(isinstance(address, str) for address in heard.addresses)
    elif heard is not None:
        assert len(heard.nonce) == 16


@given(st.data())
def test_no_changed_datagram_is_believed(data: st.DataObject) -> None:
    """One bit flipped anywhere, or the end cut off: the HMAC does not fit any more."""
    datagram = bytearray(pack_beacon(beacon(), CLUSTER, KEY))
    bit = data.draw(st.integers(0, len(datagram) * 8 - 1))
    datagram[bit // 8] ^= 1 << bit % 8
    assert ear().hear(bytes(datagram), NOW_MS) is None
    whole = pack_beacon(beacon(), CLUSTER, KEY)
    assert ear().hear(whole[: data.draw(st.integers(0, len(whole) - 1))], NOW_MS) is None


def test_what_a_later_version_adds_is_skipped() -> None:
    """Fields behind the known ones do not make a beacon malformed."""
    value = (NODE, NOW_MS, 3, ("h:1",), (1, 2), b"", "more")
    assert ear().hear(signed(1, value), NOW_MS) == Beacon(*value[:6])


def test_the_largest_beacon_fits_a_datagram() -> None:
    """The limits of the fields and that of the datagram agree."""
    largest = Beacon(
        NODE, NOW_MS, 1 << 14, ("[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535",) * 8, (9,) * 16,
        NONCE,
    )  # fmt: skip
    assert len(pack_beacon(largest, CLUSTER, KEY)) <= DATAGRAM_MAX_BYTES - HMAC_BYTES


def test_addresses_of_a_beacon() -> None:
    """A wildcard is where the datagram came from; what is no address is left out."""
    said = beacon()._replace(
        addresses=("0.0.0.0:1", "[::]:2", "[fd00::1]:3", "h:4", "h:0", "h:x", "", "h:70000")
    )
    assert addresses_of(said, "10.0.0.9") == (
        ("10.0.0.9", 1), ("10.0.0.9", 2), ("fd00::1", 3), ("h", 4),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "group"),
    [
        ("239.1.2.3:99", ("239.1.2.3", "", 99)),
        ("239.1.2.3", ("239.1.2.3", "", 7420)),
        ("[ff12::5]:99", ("", "ff12::5", 99)),
        ("ff12::5", ("", "ff12::5", 7420)),
    ],
)
def test_group(text: str, group: tuple[str, str, int]) -> None:
    """An address of either family, with a port or without."""
    assert parse_group(text) == group


@pytest.mark.parametrize("text", ["", "10.0.0.1:1", "239.1.1.1:", "[ff12::1", "[ff12::1]x", "h"])
def test_no_group(text: str) -> None:
    """Whatever is no multicast group is refused."""
    with pytest.raises(ValueError, match=r"multicast|port|written"):
        parse_group(text)
