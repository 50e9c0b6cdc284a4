"""The secrets that a node has: one, or two while a new one takes the place of the old. Pure.

A change of the cluster's secret is two entries of the log (commands.SetSecret, RetireSecret). In
between, the *overlap*, nodes believe both, so that no two have to change at the same moment:

    only old ──SetSecret──► both ──RetireSecret──► only new

Between any two of these states that follow each other there is a secret that both sides have, so
nodes meet while one has applied an entry and the other has not. A node that connects tries the
newest first; one that accepts shows the certificate that the other side asks for (tls.py).

The secrets travel in the log, and rest in the tree, sealed under each other: whoever has either
token can open the other one, and a copy of a log or of a tree tells nothing. A node that was away
needs no more than its old token and the log, as long as it can still get the log: in the overlap.
"""

from __future__ import annotations

from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from pydi_node.records import SecretChange
from pydi_node.wire.trust import (
    SECRET_BYTES,
    Credentials,
    NodeToken,
    PeerIdentity,
    TrustError,
    credentials_of,
    derive,
    peer_identity,
)

SEAL_NONCE_BYTES: Final = 12
SEALED_BYTES: Final = SEAL_NONCE_BYTES + SECRET_BYTES + 16  # with Poly1305's tag


class Keyring:
    """What a node can prove and whom it believes now; changes only by ``replace``."""

    def __init__(self, token: NodeToken) -> None:
        self.replace((token,))

    def replace(self, tokens: tuple[NodeToken, ...]) -> None:
        """From now on these, newest first, count, and no others."""
        assert len({token.cluster for token in tokens}) == 1, len(tokens)
        self.tokens = tokens
        self.credentials: tuple[Credentials, ...] = tuple(map(credentials_of, tokens))

    @property
    def cluster(self) -> str:
        return self.tokens[0].cluster

    @property
    def newest(self) -> NodeToken:
        return self.tokens[0]

    def has(self, generation: int) -> bool:
        """Whether the secret of that generation is still believed."""
        return any(token.generation == generation for token in self.tokens)

    def identify(self, certificate_der: bytes, now_s: int) -> PeerIdentity:
        """As ``peer_identity``, under any of the secrets; TrustError as the newest one gives it."""
        first: TrustError | None = None
        for credentials in self.credentials:
            try:
                return peer_identity(certificate_der, credentials, now_s)
            except TrustError as exc:
                first = first or exc
        assert first is not None
        raise first


def seal(token: NodeToken, under: NodeToken, nonce: bytes) -> bytes:
    """``token``'s secret, for whoever has ``under``; SEALED_BYTES.

    nonce  SEAL_NONCE_BYTES random bytes.
    """
    assert len(nonce) == SEAL_NONCE_BYTES, len(nonce)
    return nonce + _cipher(under).encrypt(nonce, token.secret, _purpose(token))


def unseal(sealed: bytes, generation: int, under: NodeToken) -> NodeToken:
    """The token of that generation. ValueError: it was sealed under another one."""
    nonce, rest = sealed[:SEAL_NONCE_BYTES], sealed[SEAL_NONCE_BYTES:]
    token = NodeToken(under.cluster, bytes(SECRET_BYTES), generation)
    try:
        secret = _cipher(under).decrypt(nonce, rest, _purpose(token))
    except InvalidTag as exc:
        raise ValueError("sealed under another secret") from exc
    return NodeToken(under.cluster, secret, generation)


def tokens_now(own: NodeToken, change: SecretChange | None) -> tuple[NodeToken, ...]:
    """What counts for a node with this token and a tree that knows of this last change.

    Newest first; the first one is what the node should keep from now on. ValueError: the change is
    of another history of the cluster than the token.
    """
    if change is None or own.generation > change.generation:
        return (own,)  # the tree is behind: the log brings the rest
    if own.generation == change.generation:
        if not change.sealed_old:
            return (own,)
        return (own, unseal(change.sealed_old, change.generation - 1, own))
    if own.generation < change.generation - 1:
        raise ValueError("the secret was changed more than once since")
    new = unseal(change.sealed_new, change.generation, own)
    return (new, own) if change.sealed_old else (new,)


def _cipher(token: NodeToken) -> ChaCha20Poly1305:
    return ChaCha20Poly1305(derive(token.secret, token.cluster, "seal of a secret"))


def _purpose(token: NodeToken) -> bytes:
    """What the seal also covers: no secret can be passed off as one of another generation."""
    return b"%d" % token.generation
