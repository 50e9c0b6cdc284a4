"""ssl.SSLContext out of a leaf, and the peer's identity out of a finished handshake.

For whoever opens or accepts a TCP connection. The one module of this room that does IO: Python's
ssl reads a private key only from a file, so for a moment there is one, in memory where possible.
TLS 1.3 only, both sides show a certificate; names of hosts mean nothing, certificates do.
"""

from __future__ import annotations

import contextlib
import os
import ssl
import tempfile
from collections.abc import Iterator

from pydi_node.wire.trust import Credentials, Leaf, PeerIdentity, TrustError, peer_identity


def server_context(*leaves: Leaf) -> ssl.SSLContext:
    """For the side that accepts: a node.

    leaves  one for each secret that it has, newest first. The peer names the authorities that it
            believes, and is shown theirs; who names none, or others, is shown the oldest.
    """
    contexts = {}
    for leaf in leaves:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.num_tickets = 0  # connections live long; a resumed session would skip our checks
        contexts[leaf.server_name] = _prepare(context, leaf)
    if len(contexts) > 1:

        def choose(
            connection: ssl.SSLSocket | ssl.SSLObject, name: str | None, _: ssl.SSLContext
        ) -> None:
            if name in contexts:
                connection.context = contexts[name]  # with its anchors, too

        context.sni_callback = choose
    return context


def client_context(leaf: Leaf) -> ssl.SSLContext:
    """For the side that connects: a node, a mount or a command."""
    return _prepare(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), leaf)


def identity_of(
    connection: ssl.SSLObject | ssl.SSLSocket, credentials: Credentials, now_s: int
) -> PeerIdentity:
    """Who the peer of a finished handshake is; TrustError: close the connection.

    connection  ``transport.get_extra_info("ssl_object")`` of an asyncio transport.
    """
    return peer_identity(certificate_of(connection), credentials, now_s)


def certificate_of(connection: ssl.SSLObject | ssl.SSLSocket) -> bytes:
    """The certificate, DER, that the peer of a finished handshake has shown; TrustError for none.
    Only ``trust`` tells what it is worth."""
    certificate = connection.getpeercert(binary_form=True)
    if certificate is None:
        raise TrustError("the peer shows no certificate")
    return certificate


def _prepare(context: ssl.SSLContext, leaf: Leaf) -> ssl.SSLContext:
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # our anchors are not self-signed
    context.load_verify_locations(cadata=leaf.anchors_pem.decode())
    with _file_of(leaf.certificate_pem + leaf.key_pem) as path:
        context.load_cert_chain(path)
    return context


@contextlib.contextmanager
def _file_of(content: bytes) -> Iterator[str]:
    """A path behind which ``content`` stands, for this process and for as long as the block."""
    if hasattr(os, "memfd_create") and os.path.isdir("/proc/self/fd"):
        fd = os.memfd_create("pydi-leaf", os.MFD_CLOEXEC)
        try:
            os.write(fd, content)
            yield f"/proc/self/fd/{fd}"
        finally:
            os.close(fd)
        return
    fd, path = tempfile.mkstemp(prefix="pydi-leaf-")  # with mode 0600
    try:
        with open(fd, "wb") as file:
            file.write(content)
        yield path  # closed: not every system opens a file twice
    finally:
        os.unlink(path)
