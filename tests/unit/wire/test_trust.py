"""Tokens and certificates: what a person copies is read or refused with a sentence, and nobody can
prove more than their token says."""

from __future__ import annotations

import dataclasses
import random

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from hypothesis import given, settings
from hypothesis import strategies as st

from pydi_node.errors import EXIT_USAGE, UserError
from pydi_node.wire import trust
from pydi_node.wire.messages import Role
from pydi_node.wire.trust import (
    LEAF_CLOCK_SKEW_S,
    LEAF_LIFETIME_S,
    LEAF_RENEW_AFTER_S,
    MountLimits,
    NodeToken,
    TokenError,
    TrustError,
    credentials_of,
    make_leaf,
    mount_token,
    parse_mount_token,
    parse_node_token,
    parse_token,
    peer_identity,
)

NOW_S = 1_800_000_000
NODE = NodeToken.new(bytes(range(48)))
OTHER_NODE = NodeToken.new(bytes(range(1, 49)))
LIMITS = MountLimits(read_only=True, directory="/home/jürgen".encode(), expires_s=NOW_S + 60)
MOUNT = mount_token(NODE, LIMITS)
SEED = bytes(range(32))
OLD_MOUNT = (
    "pydi1m-aaaqeayeaudaocajbifqydiob5urb5zhkjrvevmp6yhhgiw7y62lehjli6sszxwe2xvomtvw5"
    "zncofaa4je52xygjgvnxh6kz75qhy22hxxxo63nkjp2rr3iqaugej5uaeaaaaaanne5epaabuxwq33nm"
    "uxwvq54ojtwk3ufouwo22cmogntjrdlhiyudsdmb3ibmyixn5fhemg7pmlxrr75lrfomm3tsfjp7ngzj"
    "4ssddv2kbkod34ejkubvw37kw52kknaqwtarejmfhlq"
)


def der(pem: bytes) -> bytes:
    return x509.load_pem_x509_certificate(pem).public_bytes(serialization.Encoding.DER)


def leaf_of(credentials, number=0, now_s=NOW_S) -> bytes:
    return der(make_leaf(credentials, number, now_s, SEED).certificate_pem)


# --- tokens ---------------------------------------------------------------------------------------


def test_tokens_survive_being_copied():
    """Text and back, both kinds; tokens hold no capitals and nothing that a shell or URL quotes."""
    assert parse_node_token(NODE.text()) == NODE
    assert parse_mount_token(MOUNT.text(), NOW_S) == MOUNT
    assert parse_token(NODE.text(), NOW_S) == NODE
    assert parse_token(MOUNT.text(), NOW_S) == MOUNT
    for text, prefix in ((NODE.text(), "pydi1n-"), (MOUNT.text(), "pydi1m-")):
        assert text.startswith(prefix)
        assert text.replace("-", "").isalnum()
        assert text == text.lower()


def test_token_format_stays():
    """A token written by this version is read by the next ones."""
    assert NODE.text() == (
        "pydi1n-aaaqeayeaudaocajbifqydiob4ibceqtcqkrmfyydenbwha5"
        "dypsaijcemsckjrhfausukzmfuxc7gevtwoq"
    )


def test_tokens_of_later_secrets_carry_their_generation():
    """Their text is longer, and an older PyDi says so instead of taking it for another secret."""
    later = NODE.next(b"s" * 32)
    assert (later.generation, later.next(b"t" * 32).generation) == (1, 2)
    assert later.cluster == NODE.cluster
    assert parse_node_token(later.text()) == later
    assert parse_token(later.text(), NOW_S) == later
    for cut in range(8, len(later.text())):
        with pytest.raises(TokenError, match=r"cut off|wrong character"):
            parse_node_token(later.text()[:cut])
    with pytest.raises(TokenError, match="something follows"):
        parse_node_token(later.text() + "aa")
    first = trust._token_text("pydi1n-", bytes.fromhex(NODE.cluster) + NODE.secret + bytes(4))
    with pytest.raises(TokenError, match="not one that PyDi wrote"):
        parse_node_token(first)


def test_token_is_found_in_what_mail_made_of_it():
    """Line breaks, spaces and capitals don't matter."""
    text = NODE.text().upper()
    assert parse_node_token(f"  {text[:30]}\r\n {text[30:]}\n") == NODE


def test_secrets_are_not_in_the_repr():
    """What ends in a log must not open the cluster."""
    for secret in (NODE, MOUNT, credentials_of(NODE), credentials_of(MOUNT),
                   make_leaf(credentials_of(NODE), 1, NOW_S, SEED)):  # fmt: skip
        text = repr(secret)
        assert "PRIVATE" not in text
        for hidden in (NODE.secret, MOUNT.mount_seed, credentials_of(NODE).beacon_key):
            assert repr(hidden)[2:-1] not in text


@settings(deadline=None, max_examples=50)
@given(
    st.booleans(), st.binary(max_size=50).filter(lambda path: b"\0" not in path),
    st.integers(NOW_S + 1, 1 << 63) | st.just(0), st.just(b"") | st.binary(min_size=8, max_size=8),
)  # fmt: skip
def test_any_limits_survive(read_only, path, expires_s, token_id):
    """Whatever can be limited comes back as it was, with an id or without one."""
    limits = MountLimits(read_only, b"/" + path, expires_s, token_id)
    assert parse_mount_token(mount_token(NODE, limits).text(), NOW_S).limits == limits


def test_tokens_of_before_the_list_are_read():
    """A token that was written down before tokens had ids."""
    assert parse_mount_token(OLD_MOUNT, NOW_S).limits == LIMITS
    assert credentials_of(parse_mount_token(OLD_MOUNT, NOW_S)).grant == credentials_of(MOUNT).grant


@pytest.mark.parametrize(
    "limits",
    [
        MountLimits(directory=b""), MountLimits(directory=b"relative"),
        MountLimits(directory=b"/a\0b"), MountLimits(directory=b"/" + b"x" * 4096),
        MountLimits(directory=b"/" * 70000), MountLimits(expires_s=-1),
        MountLimits(token_id=b"short"),
    ],
)  # fmt: skip
def test_limits_that_mean_nothing_are_refused(limits):
    """Before they are signed, not when somebody mounts with them."""
    with pytest.raises(ValueError):
        mount_token(NODE, limits)


def change(text: str, position: int) -> str:
    return text[:position] + ("a" if text[position] != "a" else "b") + text[position + 1 :]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "empty"),
        (" \n", "empty"),
        ("hello", "tokens begin with"),
        ("pydi1n", "tokens begin with"),
        ("x" * 10000, "10000 characters"),
        (NODE.text()[7:], "tokens begin with"),
        ("pydi2n-" + NODE.text()[7:], "another version"),
        ("pydi1x-" + NODE.text()[7:], "another version"),
        (MOUNT.text(), "this is a mount token"),
        (NODE.text()[:-1], "cut off"),
        (NODE.text()[:-2], "cut off"),
        (NODE.text()[:40], "cut off"),
        ("pydi1n-", "cut off"),
        (NODE.text() + "a", "something follows"),
        (NODE.text() * 2, "contains '1'"),
        (NODE.text() + NODE.text()[7:], "something follows"),
        (NODE.text()[:30] + "!" + NODE.text()[31:], "contains '!'"),
        (NODE.text()[:30] + "1" + NODE.text()[31:], "contains '1'"),
        (NODE.text()[:30] + "ä" + NODE.text()[31:], "contains 'ä'"),
        (change(NODE.text(), 8), "wrong character"),
        (change(NODE.text(), 40), "wrong character"),
        (NODE.text()[:50] + NODE.text()[51] + NODE.text()[50] + NODE.text()[52:], "wrong char"),
    ],
)
def test_bad_node_token_is_refused_with_one_sentence(text, sentence):
    """A person reads what is wrong with it; the exit code is that of wrong usage."""
    with pytest.raises(TokenError, match=sentence) as caught:
        parse_node_token(text)
    assert isinstance(caught.value, UserError)
    assert caught.value.exit_code == EXIT_USAGE
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "empty"),
        (NODE.text(), "this is a node token"),
        (MOUNT.text()[:-1], "cut off"),
        (MOUNT.text()[:150], "cut off"),
        (MOUNT.text()[:100], "cut off"),
        (MOUNT.text()[:10], "cut off"),
        (MOUNT.text() + "aaaa", "something follows"),
        (change(MOUNT.text(), 40), "wrong character"),
        (MOUNT.text()[:30] + "?" + MOUNT.text()[31:], "contains '\\?'"),
        (dataclasses.replace(MOUNT, limits=MountLimits()).text(), "not genuine"),
        (dataclasses.replace(MOUNT, node_public=b"\1" * 32).text(), "not genuine"),
        (dataclasses.replace(MOUNT, cluster="f" * 32).text(), "not genuine"),
    ],
)  # fmt: skip
def test_bad_mount_token_is_refused_with_one_sentence(text, sentence):
    """Forged limits too: a token is genuine or useless."""
    with pytest.raises(TokenError, match=sentence) as caught:
        parse_mount_token(text, NOW_S)
    assert "\n" not in str(caught.value)


def test_expired_mount_token_is_refused_with_its_date():
    """The last second is the one before."""
    assert parse_mount_token(MOUNT.text(), LIMITS.expires_s - 1) == MOUNT
    with pytest.raises(TokenError, match="expired at 2027-01-15 08:01 UTC"):
        parse_mount_token(MOUNT.text(), LIMITS.expires_s)


@pytest.mark.parametrize("token", [NODE, MOUNT], ids=["node", "mount"])
def test_every_single_wrong_character_is_noticed(token):
    """Each position, replaced by another letter of the alphabet."""
    text = token.text()
    for position in range(7, len(text)):
        with pytest.raises(TokenError):
            parse_token(change(text, position), NOW_S)


@pytest.mark.parametrize("token", [NODE, MOUNT], ids=["node", "mount"])
def test_each_token_has_one_spelling(token):
    """The last character has bits that mean nothing: they are zero, or it is mistyped."""
    text = token.text()
    for letter in "abcdefghijklmnopqrstuvwxyz234567".replace(text[-1], ""):
        with pytest.raises(TokenError):
            parse_token(text[:-1] + letter, NOW_S)


@settings(deadline=None)
@given(st.text(max_size=200), st.sampled_from(["", "pydi1n-", "pydi1m-"]))
def test_any_text_is_a_token_error(text, prefix):
    """Whatever is pasted ends in a sentence, not in a traceback."""
    with pytest.raises(TokenError):
        parse_token(prefix + text, NOW_S)


# --- certificates ---------------------------------------------------------------------------------


def test_node_proves_role_number_and_cluster():
    """To nodes and to mounts of its cluster."""
    leaf = leaf_of(credentials_of(NODE), 3)
    for credentials in (credentials_of(NODE), credentials_of(MOUNT)):
        identity = peer_identity(leaf, credentials, NOW_S)
        assert identity == trust.PeerIdentity(Role.NODE, NODE.cluster, 3, None)


def test_mount_proves_its_limits():
    """They come out of the certificate as the token's maker signed them."""
    identity = peer_identity(leaf_of(credentials_of(MOUNT)), credentials_of(NODE), NOW_S)
    assert identity == trust.PeerIdentity(Role.MOUNT, NODE.cluster, 0, LIMITS)


def test_mounts_do_not_believe_mounts():
    """Only nodes serve."""
    with pytest.raises(TrustError, match="not accepted"):
        peer_identity(leaf_of(credentials_of(MOUNT)), credentials_of(MOUNT), NOW_S)


def test_another_cluster_is_refused():
    """By its id; and with a copied id, by its signature."""
    leaf = leaf_of(credentials_of(OTHER_NODE), 3)
    with pytest.raises(TrustError, match="another cluster"):
        peer_identity(leaf, credentials_of(NODE), NOW_S)
    liar = dataclasses.replace(credentials_of(OTHER_NODE), cluster=NODE.cluster)
    with pytest.raises(TrustError, match="not signed by the node authority"):
        peer_identity(leaf_of(liar, 3), credentials_of(NODE), NOW_S)


def test_mount_cannot_pose_as_node():
    """A mount's key signs what it likes, but not in the node authority's name."""
    liar = dataclasses.replace(credentials_of(MOUNT), role=Role.NODE)
    for credentials in (credentials_of(NODE), credentials_of(MOUNT)):
        with pytest.raises(TrustError, match="not signed by the node authority"):
            peer_identity(leaf_of(liar, 1), credentials, NOW_S)


def test_mount_cannot_widen_its_limits():
    """Neither with limits of its own, nor without any, nor with those of another cluster."""
    own = credentials_of(MOUNT)
    wide = trust._pack_limits(MountLimits())
    signed_elsewhere = credentials_of(mount_token(OTHER_NODE, MountLimits())).grant
    for grant in (b"", wide, wide + bytes(64), wide + MOUNT.signature,
                  wide + own.key.sign(trust._LIMITS_DOMAIN + bytes.fromhex(NODE.cluster) + wide),
                  signed_elsewhere, own.grant + b"x", own.grant[:-1]):  # fmt: skip
        liar = dataclasses.replace(own, grant=grant)
        with pytest.raises(TrustError):
            peer_identity(leaf_of(liar), credentials_of(NODE), NOW_S)


def test_mount_has_no_number():
    """A number belongs to a node."""
    with pytest.raises(TrustError, match="number"):
        peer_identity(leaf_of(credentials_of(MOUNT), 4), credentials_of(NODE), NOW_S)


def test_certificate_counts_only_in_its_time():
    """From a day before it was made to a week after; the sentence names both clocks."""
    leaf = leaf_of(credentials_of(NODE), 3)
    for now_s in (NOW_S - LEAF_CLOCK_SKEW_S, NOW_S + LEAF_LIFETIME_S):
        peer_identity(leaf, credentials_of(NODE), now_s)
    for now_s in (NOW_S - LEAF_CLOCK_SKEW_S - 1, NOW_S + LEAF_LIFETIME_S + 1):
        with pytest.raises(TrustError, match="compare the clocks"):
            peer_identity(leaf, credentials_of(NODE), now_s)


def test_mount_is_refused_once_its_token_expired():
    """The certificate would last longer, the token does not."""
    leaf = leaf_of(credentials_of(MOUNT))
    peer_identity(leaf, credentials_of(NODE), LIMITS.expires_s - 1)
    with pytest.raises(TrustError, match="expired"):
        peer_identity(leaf, credentials_of(NODE), LIMITS.expires_s)


def test_leaf_is_renewed_long_before_it_ends():
    """A machine that sleeps over a weekend is still believed when it wakes."""
    assert make_leaf(credentials_of(NODE), 1, NOW_S, SEED).renew_at_s == NOW_S + LEAF_RENEW_AFTER_S
    assert LEAF_RENEW_AFTER_S + 3 * 24 * 3600 < LEAF_LIFETIME_S


def test_leaf_can_be_made_by_a_machine_whose_clock_starts_at_zero():
    """No battery-backed clock: the certificate won't be believed, but making it does not fail."""
    leaf = leaf_of(credentials_of(NODE), 1, now_s=5)
    with pytest.raises(TrustError, match="compare the clocks"):
        peer_identity(leaf, credentials_of(NODE), NOW_S)


def test_flipped_bits_never_make_another_identity():
    """Every byte of a certificate, damaged: refused, or (in what is not signed) the same."""
    leaf = leaf_of(credentials_of(MOUNT))
    expected = peer_identity(leaf, credentials_of(NODE), NOW_S)
    rng = random.Random(1)
    for position in range(len(leaf)):
        damaged = bytearray(leaf)
        damaged[position] ^= 1 << rng.randrange(8)
        try:
            assert peer_identity(bytes(damaged), credentials_of(NODE), NOW_S) == expected
        except TrustError:
            pass


@settings(deadline=None)
@given(st.binary(max_size=100))
def test_any_bytes_are_no_certificate(data):
    """Garbage is refused as TrustError."""
    with pytest.raises(TrustError):
        peer_identity(data, credentials_of(NODE), NOW_S)


@pytest.mark.parametrize(
    ("identity", "role", "number", "allowed"),
    [
        (trust.PeerIdentity(Role.NODE, "", 3, None), Role.NODE, 3, True),
        (trust.PeerIdentity(Role.NODE, "", 3, None), Role.NODE, 4, False),
        (trust.PeerIdentity(Role.NODE, "", 0, None), Role.CLIENT, 0, True),
        (trust.PeerIdentity(Role.NODE, "", 0, None), Role.MOUNT, 0, True),
        (trust.PeerIdentity(Role.NODE, "", 0, None), Role.NODE, 3, False),
        (trust.PeerIdentity(Role.MOUNT, "", 0, LIMITS), Role.MOUNT, 0, True),
        (trust.PeerIdentity(Role.MOUNT, "", 0, LIMITS), Role.CLIENT, 0, False),
        (trust.PeerIdentity(Role.MOUNT, "", 0, LIMITS), Role.NODE, 0, False),
        (trust.PeerIdentity(Role.MOUNT, "", 0, LIMITS), Role.NODE, 3, False),
    ],
)
def test_hello_is_covered_by_the_certificate(identity, role, number, allowed):
    """A mount token only mounts; a node token may do all, but as nobody else's number."""
    assert identity.may_be(role, number) is allowed


def test_beacon_key_is_shared_by_all_tokens_of_a_cluster():
    """Mounts check the beacons of nodes; other clusters' beacons don't pass."""
    assert credentials_of(NODE).beacon_key == credentials_of(MOUNT).beacon_key
    assert credentials_of(NODE).beacon_key != credentials_of(OTHER_NODE).beacon_key
