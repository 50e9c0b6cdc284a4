"""Trust: tokens that people copy, and the keys and certificates that follow from them.

For the node, the mount and the command line; tls.py turns the results into ssl.SSLContext. Pure:
random bytes (``seed``) and the time (``now_s``) are arguments, and nothing is read or written.

    cluster secret (32 bytes) ──HKDF──► node authority, mount authority      Ed25519 signing keys
    node token   = cluster id, secret                       everything: join, administer, mount
    mount token  = cluster id, seed of the mount authority, public key of the node authority,
                   limits, the node authority's signature of the limits      mount only

The secret can be changed (keyring.py): each has a generation, and its own authorities.

Each process signs itself a short-lived leaf certificate with the authority its token holds. The
leaf says who it is (role, number, cluster) and, for a mount, its signed limits. Whoever holds a
mount token can sign any mount leaf, but not other limits: those only a node token can sign.
A peer is believed after two checks that don't lean on each other: TLS verified its chain, and
``peer_identity`` verified the leaf's signature by the authority of the very role it claims.
"""

from __future__ import annotations

import base64
import datetime
import hashlib
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Self

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

from pydi_node.commands import TOKEN_ID_BYTES
from pydi_node.errors import EXIT_USAGE, PydiError, UserError
from pydi_node.ids import NODE_NUMBER_MAX
from pydi_node.wire import codec, fields
from pydi_node.wire.messages import Role

CLUSTER_ID_BYTES: Final = 16
SECRET_BYTES: Final = 32
SEED_BYTES: Final = 32
DIRECTORY_MAX_BYTES: Final = 4096  # PATH_MAX

# Clocks of machines that have just booted may be off by hours; a leaf is valid from a day before it
# was made. A week of life and a new one each day leave six days for a machine that sleeps.
LEAF_CLOCK_SKEW_S: Final = 24 * 3600
LEAF_LIFETIME_S: Final = 7 * 24 * 3600
LEAF_RENEW_AFTER_S: Final = 24 * 3600

_NODE_PREFIX: Final = "pydi1n-"
_MOUNT_PREFIX: Final = "pydi1m-"
_ANY_PREFIX: Final = re.compile(r"pydi[0-9]+[a-z]-")
_GENERATION: Final = struct.Struct(">I")  # behind the secret, unless it is the first one
GENERATION_MAX: Final = (1 << 32) - 1
_CHECKSUM_BYTES: Final = 4  # a typing mistake passes once in four billion
_SIGNATURE_BYTES: Final = 64
_TOKEN_MAX_CHARACTERS: Final = 8192  # more than the longest directory makes
# read only, expiry (s since 1970; 0: never), length of the directory that follows
_LIMITS: Final = struct.Struct(">BQH")
# The same with the token's id behind it, told by this bit beside "read only". Without an id, as
# tokens were before there was a list of them, a token can't be revoked.
_HAS_ID: Final = 2
_SERVER_NAME_BYTES: Final = 8
_LIMITS_DOMAIN: Final = b"pydi mount limits 1\0"  # no certificate's bytes begin like this

# Made from a random UUID (ITU-T X.667), so it needs no registration: what our leaves say.
_IDENTITY_OID: Final = ObjectIdentifier("2.25.206471137529480160517351269038519146057")
_IDENTITY_FORMAT: Final = 1


class TokenError(UserError, ValueError):
    """A token that can't be used; one sentence that says what is wrong with it."""

    def __init__(self, sentence: str) -> None:
        super().__init__(sentence, EXIT_USAGE)


class TrustError(PydiError):
    """A peer's certificate that does not prove what it must; one sentence for the log."""


@dataclass(frozen=True, slots=True)
class MountLimits:
    """What a mount token permits; nodes enforce it."""

    read_only: bool = False
    directory: bytes = b"/"  # absolute path in the tree; nothing outside of it is reachable
    expires_s: int = 0  # seconds since 1970; 0: never
    token_id: bytes = b""  # TOKEN_ID_BYTES, by which it is listed and revoked; empty: it has none


@dataclass(frozen=True, slots=True)
class NodeToken:
    """Whoever has it is a full member of the cluster."""

    cluster: str  # 32 hex digits
    secret: bytes = field(repr=False)
    generation: int = 0  # how often the cluster's secret was changed before this one

    @classmethod
    def new(cls, random_bytes: bytes) -> Self:
        """A new cluster's token out of CLUSTER_ID_BYTES + SECRET_BYTES random bytes."""
        assert len(random_bytes) == CLUSTER_ID_BYTES + SECRET_BYTES, len(random_bytes)
        return cls(random_bytes[:CLUSTER_ID_BYTES].hex(), random_bytes[CLUSTER_ID_BYTES:])

    def next(self, secret: bytes) -> Self:
        """The token of the same cluster with its next secret, SECRET_BYTES random bytes."""
        assert len(secret) == SECRET_BYTES, len(secret)
        return type(self)(self.cluster, secret, self.generation + 1)

    def text(self) -> str:
        """The form that people copy; ``parse_node_token`` reads it."""
        generation = _GENERATION.pack(self.generation) if self.generation else b""
        return _token_text(_NODE_PREFIX, bytes.fromhex(self.cluster) + self.secret + generation)


@dataclass(frozen=True, slots=True)
class MountToken:
    """Whoever has it can mount within ``limits``, and nothing else."""

    cluster: str  # 32 hex digits
    mount_seed: bytes = field(repr=False)  # of the mount authority
    node_public: bytes  # raw public key of the node authority
    limits: MountLimits
    signature: bytes  # by the node authority, over cluster and limits

    def text(self) -> str:
        """The form that people copy; ``parse_mount_token`` reads it."""
        body = bytes.fromhex(self.cluster) + self.mount_seed + self.node_public
        return _token_text(_MOUNT_PREFIX, body + _pack_limits(self.limits) + self.signature)


@dataclass(frozen=True, slots=True)
class Credentials:
    """What one process can prove, and whom it believes."""

    role: Role  # NODE or MOUNT: which authority ``key`` is
    cluster: str
    key: Ed25519PrivateKey = field(repr=False)
    authorities: dict[Role, Ed25519PublicKey]  # whose leaves are believed, by their role
    grant: bytes  # a mount's limits and their signature; empty for a node
    beacon_key: bytes = field(repr=False)  # HMAC key of beacons; every token's holder has it
    # Which authorities: in the TLS handshake a peer names those that it believes, and a node that
    # has two secrets shows the certificate that fits. Tells strangers nothing.
    server_name: str
    generation: int = 0  # of the secret, where it is known: a node's


@dataclass(frozen=True, slots=True)
class Leaf:
    """A process's own certificate and key, as PEM."""

    certificate_pem: bytes
    key_pem: bytes = field(repr=False)
    anchors_pem: bytes  # the authorities it believes
    server_name: str  # of those authorities
    renew_at_s: int  # make a new one from here on


@dataclass(frozen=True, slots=True)
class PeerIdentity:
    """Who the other side has proved to be."""

    role: Role  # NODE or MOUNT
    cluster: str
    number: int  # of a node; 0 for a mount, and for a process that only holds a node token
    limits: MountLimits | None  # of a mount; None for a node
    generation: int = 0  # of the secret that proved it

    def may_be(self, role: Role, number: int) -> bool:
        """Whether a hello with this role and number is covered by the certificate.

        A node token permits everything, so `pydi` and a mount that hold one may say so.
        """
        if self.role is Role.MOUNT:
            return role is Role.MOUNT and number == 0
        return number == (self.number if role is Role.NODE else 0)


# --- tokens ---------------------------------------------------------------------------------------


def parse_node_token(text: str) -> NodeToken:
    """The token in what a person pasted; TokenError says in one sentence what is wrong with it."""
    fixed = CLUSTER_ID_BYTES + SECRET_BYTES

    def length(data: bytes) -> int:
        is_first = data[fixed:].startswith(_checksum(_NODE_PREFIX, data[:fixed]))
        is_longer = len(data) > fixed + _CHECKSUM_BYTES
        return fixed + (_GENERATION.size if is_longer and not is_first else 0)

    body = _token_body(text, _NODE_PREFIX, length)
    generation = 0
    if len(body) > fixed:
        (generation,) = _GENERATION.unpack(body[fixed:])
        if generation == 0:
            raise TokenError("the token is not one that PyDi wrote")
    return NodeToken(body[:CLUSTER_ID_BYTES].hex(), body[CLUSTER_ID_BYTES:fixed], generation)


def parse_mount_token(text: str, now_s: int) -> MountToken:
    """The token in what a person pasted; TokenError, also when it expired before ``now_s``."""
    fixed = CLUSTER_ID_BYTES + SEED_BYTES + 32

    def length(data: bytes) -> int:
        limits = data[fixed : fixed + _LIMITS.size]
        more = 0
        if len(limits) == _LIMITS.size:
            flags, _, directory_bytes = _LIMITS.unpack(limits)
            more = directory_bytes + (TOKEN_ID_BYTES if flags & _HAS_ID else 0)
        return fixed + _LIMITS.size + more + _SIGNATURE_BYTES

    body = _token_body(text, _MOUNT_PREFIX, length)
    cluster = body[:CLUSTER_ID_BYTES].hex()
    seed = body[CLUSTER_ID_BYTES : CLUSTER_ID_BYTES + SEED_BYTES]
    public = body[CLUSTER_ID_BYTES + SEED_BYTES : fixed]
    try:
        limits = _unpack_limits(body[fixed:-_SIGNATURE_BYTES])
        _verify_limits(Ed25519PublicKey.from_public_bytes(public), cluster, body[fixed:])
    except (ValueError, TrustError) as exc:
        raise TokenError(f"the mount token is not genuine: {exc}") from exc
    if 0 < limits.expires_s <= now_s:
        raise TokenError(f"the mount token expired at {_utc(limits.expires_s):%Y-%m-%d %H:%M} UTC")
    return MountToken(cluster, seed, public, limits, body[-_SIGNATURE_BYTES:])


def parse_token(text: str, now_s: int) -> NodeToken | MountToken:
    """Either kind of token, for commands that take both."""
    if _squeeze(text).startswith(_MOUNT_PREFIX):
        return parse_mount_token(text, now_s)
    return parse_node_token(text)


def mount_token(token: NodeToken, limits: MountLimits) -> MountToken:
    """A mount token of ``token``'s cluster; ValueError when a limit can't be expressed."""
    packed = _pack_limits(limits)
    _unpack_limits(packed)
    node_key = _authority(token, Role.NODE)
    return MountToken(
        token.cluster,
        _authority_seed(token, Role.MOUNT),
        node_key.public_key().public_bytes_raw(),
        limits,
        node_key.sign(_LIMITS_DOMAIN + bytes.fromhex(token.cluster) + packed),
    )


def credentials_of(token: NodeToken | MountToken) -> Credentials:
    """What the holder of ``token`` can prove, and whom it believes: a mount believes nodes only."""
    if isinstance(token, NodeToken):
        node_key = _authority(token, Role.NODE)
        mount_key = _authority(token, Role.MOUNT)
        node_public = node_key.public_key()
        return Credentials(
            Role.NODE,
            token.cluster,
            node_key,
            {Role.NODE: node_public, Role.MOUNT: mount_key.public_key()},
            b"",
            *_public_names(node_public.public_bytes_raw(), token.cluster),
            token.generation,
        )
    return Credentials(
        Role.MOUNT,
        token.cluster,
        Ed25519PrivateKey.from_private_bytes(token.mount_seed),
        {Role.NODE: Ed25519PublicKey.from_public_bytes(token.node_public)},
        _pack_limits(token.limits) + token.signature,
        *_public_names(token.node_public, token.cluster),
    )


# --- certificates ---------------------------------------------------------------------------------


def make_leaf(credentials: Credentials, number: int, now_s: int, seed: bytes) -> Leaf:
    """A new short-lived certificate of this process.

    number  the node's number; 0 for a mount and for a command.
    seed    SEED_BYTES fresh random bytes: they become the private key, use them once.
    """
    assert len(seed) == SEED_BYTES, len(seed)
    assert 0 <= number <= NODE_NUMBER_MAX, number
    key = Ed25519PrivateKey.from_private_bytes(seed)
    identity = (
        _IDENTITY_FORMAT,
        credentials.role,
        credentials.cluster,
        number,
        credentials.grant,
    )
    usages = [ExtendedKeyUsageOID.CLIENT_AUTH]
    if credentials.role is Role.NODE:
        usages.append(ExtendedKeyUsageOID.SERVER_AUTH)
    builder = (
        _certificate(key.public_key(), _name(f"{credentials.role} {number}"), now_s)
        .issuer_name(_authority_name(credentials.role))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=True)
        .add_extension(
            # OpenSSL refuses critical extensions it does not know; peer_identity insists on it.
            x509.UnrecognizedExtension(_IDENTITY_OID, codec.pack(identity)),
            critical=False,
        )
    )
    anchors = [
        _anchor(role, public, now_s, seed) for role, public in credentials.authorities.items()
    ]
    return Leaf(
        _pem(builder.sign(credentials.key, None)),
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ),
        b"".join(_pem(anchor) for anchor in anchors),
        credentials.server_name,
        now_s + LEAF_RENEW_AFTER_S,
    )


def peer_identity(certificate_der: bytes, credentials: Credentials, now_s: int) -> PeerIdentity:
    """Who the peer is, out of the certificate that TLS has verified; TrustError if it won't do.

    Checked again here, independently of TLS: the signature by the authority of the claimed role
    (so a mount's key can't sign a node), the cluster, the time, and a mount's signed limits.
    """
    try:
        certificate = x509.load_der_x509_certificate(certificate_der)
        role, cluster, number, grant = _claims(certificate)
        valid = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    except Exception as exc:
        # The peer's bytes choose among the exceptions of the X.509 parser, which share no parent
        # (InvalidVersion, ExtensionNotFound, ...); all of them mean this, and nothing changed.
        raise TrustError(f"the certificate is not a PyDi certificate: {exc}") from exc
    if cluster != credentials.cluster:
        raise TrustError(f"the certificate is of another cluster: {cluster}")
    authority = credentials.authorities.get(role)
    if authority is None:
        raise TrustError(f"the certificate is of a {role}, which is not accepted here")
    try:
        authority.verify(certificate.signature, certificate.tbs_certificate_bytes)
    except InvalidSignature:
        raise TrustError(f"the certificate is not signed by the {role} authority") from None
    now = _utc(now_s)
    if not valid[0] <= now <= valid[1]:
        raise TrustError(
            f"the certificate is valid from {valid[0]:%Y-%m-%d %H:%M} to "
            f"{valid[1]:%Y-%m-%d %H:%M} UTC, here it is {now:%Y-%m-%d %H:%M}: compare the clocks"
        )
    if role is Role.NODE:
        return PeerIdentity(role, cluster, number, None, credentials.generation)
    if number != 0:
        raise TrustError("the certificate of a mount has a node number")
    _verify_limits(credentials.authorities[Role.NODE], cluster, grant)
    try:
        limits = _unpack_limits(grant[:-_SIGNATURE_BYTES])
    except ValueError as exc:
        raise TrustError(f"the certificate's limits: {exc}") from exc
    if 0 < limits.expires_s <= now_s:
        raise TrustError("the mount token behind the certificate has expired")
    return PeerIdentity(role, cluster, number, limits, credentials.generation)


# --- helpers --------------------------------------------------------------------------------------


def _token_text(prefix: str, body: bytes) -> str:
    encoded = base64.b32encode(body + _checksum(prefix, body))
    return prefix + encoded.decode().rstrip("=").lower()


def _token_body(text: str, prefix: str, length: Callable[[bytes], int]) -> bytes:
    """The checked body of a token.

    length  its length, told from its beginning, of which there may be less than enough.
    """
    squeezed = _squeeze(text)
    _check_prefix(squeezed, prefix)
    encoded = squeezed[len(prefix) :]
    strange = re.search(r"[^a-z2-7]", encoded)
    if strange is not None:
        raise TokenError(f"the token contains {strange.group()!r}, which no token has: copy again")
    # Down to a whole number of bytes, so that a token cut anywhere is told from a mistyped one.
    count = len(encoded) * 5 // 8
    padded = encoded[: (count * 8 + 4) // 5]
    data = base64.b32decode(padded.upper() + "=" * (-len(padded) % 8))[:count]
    expected = length(data) + _CHECKSUM_BYTES
    characters = (expected * 8 + 4) // 5
    body, checksum = data[: expected - _CHECKSUM_BYTES], data[expected - _CHECKSUM_BYTES : expected]
    sound = checksum == _checksum(prefix, body)
    if len(encoded) < characters:
        raise TokenError(f"the token is cut off: {len(encoded)} of {characters} characters")
    if len(encoded) > characters and sound:
        raise TokenError("the token is complete, but something follows it: copy again")
    # The last character has unused bits, so compare the text and not only the bytes.
    if not sound or _token_text(prefix, body) != squeezed:
        raise TokenError("the token has a wrong character (its checksum does not fit): copy again")
    return body


def _check_prefix(squeezed: str, prefix: str) -> None:
    if not squeezed:
        raise TokenError("the token is empty")
    if len(squeezed) > _TOKEN_MAX_CHARACTERS:
        raise TokenError(f"this is not a token: it has {len(squeezed)} characters")
    if squeezed.startswith(prefix):
        return
    if squeezed.startswith(_MOUNT_PREFIX):
        raise TokenError("this is a mount token, which can only mount: a node token is needed here")
    if squeezed.startswith(_NODE_PREFIX):
        raise TokenError("this is a node token: a mount token is needed here")
    if _ANY_PREFIX.match(squeezed):
        raise TokenError("the token is of another version of PyDi: update this machine")
    raise TokenError(f"this is not a token: tokens begin with {_NODE_PREFIX} or {_MOUNT_PREFIX}")


def _squeeze(text: str) -> str:
    """Without the spaces, line breaks and capitals that mail and terminals put in."""
    return "".join(text.split()).lower()


def _checksum(prefix: str, body: bytes) -> bytes:
    return hashlib.sha256(prefix.encode() + body).digest()[:_CHECKSUM_BYTES]


def _pack_limits(limits: MountLimits) -> bytes:
    if len(limits.token_id) not in (0, TOKEN_ID_BYTES):
        raise ValueError("limits: a token's id of another length")
    flags = int(limits.read_only) | (_HAS_ID if limits.token_id else 0)
    try:
        fixed = _LIMITS.pack(flags, limits.expires_s, len(limits.directory))
    except struct.error as exc:
        raise ValueError(f"limits: {exc}") from exc
    return fixed + limits.directory + limits.token_id


def _unpack_limits(packed: bytes) -> MountLimits:
    if len(packed) < _LIMITS.size:
        raise ValueError("limits are cut off")
    flags, expires_s, length = _LIMITS.unpack_from(packed)
    if flags > 1 | _HAS_ID:
        raise ValueError("limits of a later version")
    end = len(packed) - (TOKEN_ID_BYTES if flags & _HAS_ID else 0)
    directory = packed[_LIMITS.size : end]
    if len(directory) != length or length > DIRECTORY_MAX_BYTES:
        raise ValueError("limits have a directory of another length")
    if not directory.startswith(b"/") or b"\0" in directory:
        raise ValueError("limits have a directory that is not an absolute path")
    return MountLimits(bool(flags & 1), directory, expires_s, packed[end:])


def _verify_limits(node_authority: Ed25519PublicKey, cluster: str, grant: bytes) -> None:
    """``grant`` is packed limits and their signature; TrustError when that does not fit."""
    packed, signature = grant[:-_SIGNATURE_BYTES], grant[-_SIGNATURE_BYTES:]
    try:
        node_authority.verify(signature, _LIMITS_DOMAIN + bytes.fromhex(cluster) + packed)
    except InvalidSignature:
        raise TrustError("its limits are not signed by the node authority") from None


def _claims(certificate: x509.Certificate) -> tuple[Role, str, int, bytes]:
    """(role, cluster, number, grant) that a leaf claims; nothing of it is proved yet."""
    extension = certificate.extensions.get_extension_for_oid(_IDENTITY_OID).value
    if not isinstance(extension, x509.UnrecognizedExtension):
        raise ValueError("unknown form of identity")
    identity = codec.unpack_header(extension.value)
    if type(identity) is not tuple or len(identity) != 5 or identity[0] != _IDENTITY_FORMAT:
        raise ValueError("unknown form of identity")
    return (
        Role(_ROLE(identity[1])),
        _CLUSTER(identity[2]),
        _NUMBER(identity[3]),
        _GRANT(identity[4]),
    )


_ROLE = fields.one_of(Role.NODE.value, Role.MOUNT.value)
_CLUSTER = fields.text(2 * CLUSTER_ID_BYTES)
_NUMBER = fields.integer(0, NODE_NUMBER_MAX)
_GRANT = fields.data(_LIMITS.size + DIRECTORY_MAX_BYTES + TOKEN_ID_BYTES + _SIGNATURE_BYTES)


def derive(secret: bytes, cluster: str, purpose: str) -> bytes:
    """32 bytes that follow from the secret, another 32 for each purpose."""
    hkdf = HKDF(hashes.SHA256(), 32, bytes.fromhex(cluster), f"pydi 1 {purpose}".encode())
    return hkdf.derive(secret)


def _public_names(node_public: bytes, cluster: str) -> tuple[bytes, str]:
    """(beacon key, server name) that every token's holder can compute."""
    server_name = derive(node_public, cluster, "server name")[:_SERVER_NAME_BYTES].hex()
    return derive(node_public, cluster, "beacon"), f"k{server_name}"


def _authority_seed(token: NodeToken, role: Role) -> bytes:
    return derive(token.secret, token.cluster, f"{role} authority")


def _authority(token: NodeToken, role: Role) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(_authority_seed(token, role))


def _anchor(role: Role, public: Ed25519PublicKey, now_s: int, seed: bytes) -> x509.Certificate:
    """A certificate of an authority's key, for OpenSSL, which trusts certificates and not keys.

    It never travels, so it needs no signature that means anything; and a mount could make none, for
    it has only the node authority's public key. So it is signed with a key thrown away at once, and
    trusted by VERIFY_X509_PARTIAL_CHAIN.
    """
    throwaway = Ed25519PrivateKey.from_private_bytes(hashlib.sha256(b"anchor" + seed).digest())
    return (
        _certificate(public, _authority_name(role), now_s)
        .issuer_name(_name("this process"))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(throwaway, None)
    )


def _certificate(
    public: Ed25519PublicKey, subject: x509.Name, now_s: int
) -> x509.CertificateBuilder:
    # RFC 5280 wants at most 20 octets and a positive number; a hash of the key is unique enough.
    serial = int.from_bytes(hashlib.sha256(public.public_bytes_raw()).digest()[:16], "big") | 1
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .public_key(public)
        .serial_number(serial)
        .not_valid_before(_utc(max(now_s - LEAF_CLOCK_SKEW_S, 0)))
        .not_valid_after(_utc(now_s + LEAF_LIFETIME_S))
    )


def _authority_name(role: Role) -> x509.Name:
    return _name(f"{role} authority")


def _name(common_name: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "PyDi"),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
        ]
    )


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _utc(seconds: int) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC)
