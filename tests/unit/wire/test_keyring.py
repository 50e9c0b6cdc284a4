"""Two secrets at a time: what a node believes while one replaces the other, and what is sealed."""

from __future__ import annotations

import itertools

import pytest

from pydi_node.records import SecretChange
from pydi_node.wire.keyring import (
    SEAL_NONCE_BYTES,
    SEALED_BYTES,
    Keyring,
    seal,
    tokens_now,
    unseal,
)
from pydi_node.wire.messages import Role
from pydi_node.wire.trust import (
    MountLimits,
    MountToken,
    NodeToken,
    TrustError,
    credentials_of,
    make_leaf,
    mount_token,
)
from tests.unit.wire.test_trust import der

NOW_S = 1_800_000_000
OLD = NodeToken.new(bytes(range(48)))
NEW = OLD.next(b"n" * 32)
NEWER = NEW.next(b"m" * 32)
NONCE = b"once" * 3
BEGUN = SecretChange(1, seal(NEW, OLD, NONCE), seal(OLD, NEW, NONCE[::-1]), NOW_S)
DONE = BEGUN._replace(sealed_old=b"")


def certificate_of(token: NodeToken | MountToken, number: int = 0) -> bytes:
    """DER, as it travels."""
    return der(make_leaf(credentials_of(token), number, NOW_S, b"s" * 32).certificate_pem)


def test_a_seal_opens_for_the_other_token_alone() -> None:
    """Nothing of the secret is in it; another secret, another generation, a changed byte: no."""
    sealed = seal(NEW, OLD, NONCE)
    assert len(sealed) == SEALED_BYTES
    assert NEW.secret not in sealed
    assert unseal(sealed, 1, OLD) == NEW
    flipped = bytes([*sealed[:-1], sealed[-1] ^ 1])
    other = NodeToken("f" * 32, OLD.secret)
    for wrong in ((sealed, 1, NEW), (sealed, 2, OLD), (flipped, 1, OLD), (sealed, 1, other)):
        with pytest.raises(ValueError, match="sealed under another secret"):
            unseal(*wrong)
    assert len(NONCE) == SEAL_NONCE_BYTES


@pytest.mark.parametrize(
    ("own", "change", "tokens"),
    [
        (OLD, None, (OLD,)),
        (OLD, BEGUN, (NEW, OLD)),
        (OLD, DONE, (NEW,)),  # it stopped in the overlap, and its log knows the rest
        (NEW, None, (NEW,)),  # it joined just now, and has no log yet
        (NEW, BEGUN, (NEW, OLD)),
        (NEW, DONE, (NEW,)),
        (NEWER, BEGUN, (NEWER,)),
        (NEWER, DONE, (NEWER,)),
    ],
)
def test_what_counts_follows_from_token_and_tree(
    own: NodeToken, change: SecretChange | None, tokens: tuple[NodeToken, ...]
) -> None:
    """Whenever a node stopped, and whichever of the two tokens it kept."""
    assert tokens_now(own, change) == tokens


def test_another_history_is_noticed() -> None:
    """A secret that was changed on the other side of a recovery, or twice since, does not fit."""
    other = OLD.next(b"o" * 32)
    with pytest.raises(ValueError, match="another secret"):
        tokens_now(other, BEGUN)
    with pytest.raises(ValueError, match="more than once"):
        tokens_now(OLD, SecretChange(2, seal(NEWER, NEW, NONCE), b"", 0))


def test_neighbours_in_a_change_always_have_a_secret_in_common() -> None:
    """The picture in keyring.py: a node that applied one entry more than another one meets it, by
    the names that TLS carries, the certificates, and the key of beacons."""
    states = [tokens_now(OLD, change) for change in (None, BEGUN, DONE)]
    for one, other in itertools.pairwise(states):
        shared = set(one) & set(other)
        assert shared
        for token in shared:
            certificate = certificate_of(token, 2)
            for tokens in (one, other):
                ring = Keyring(tokens[0])
                ring.replace(tokens)
                identity = ring.identify(certificate, NOW_S)
                assert (identity.number, identity.generation) == (2, token.generation)
                assert ring.has(token.generation)
    keys = {credentials_of(token).beacon_key for token in (OLD, NEW, NEWER)}
    names = {credentials_of(token).server_name for token in (OLD, NEW, NEWER)}
    assert len(keys) == len(names) == 3


def test_the_old_secret_is_refused_when_it_is_retired() -> None:
    """Of nodes and of mounts; and a mount token of it speaks of no generation of its own."""
    old_mount = mount_token(OLD, MountLimits(read_only=True))
    new_mount = mount_token(NEW, MountLimits())
    ring = Keyring(NEW)
    ring.replace(tokens_now(OLD, BEGUN))
    for token, generation in ((old_mount, 0), (new_mount, 1)):
        certificate = certificate_of(token)
        identity = ring.identify(certificate, NOW_S)
        assert (identity.role, identity.generation) == (Role.MOUNT, generation)
    ring.replace(tokens_now(OLD, DONE))
    assert not ring.has(0)
    for refused in (OLD, old_mount):
        certificate = certificate_of(refused)
        with pytest.raises(TrustError, match="not signed by the"):
            ring.identify(certificate, NOW_S)


def test_a_mount_knows_its_nodes_by_name() -> None:
    """A mount token gives the same name for TLS as the node token that it was made from."""
    of_mount = credentials_of(mount_token(NEW, MountLimits()))
    assert of_mount.server_name == credentials_of(NEW).server_name
