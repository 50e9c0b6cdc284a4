"""Who may open a session: what the transport proves against what the hello says.

Called by server.py for each hello. On the unix socket the file's mode is the proof, and whoever can
open it is the owner. On TCP the certificate is: its role, number and limits, signed by the cluster.
"""

from __future__ import annotations

import itertools
import time

from pydi_node.errors import FileError
from pydi_node.ids import NodeNumber
from pydi_node.runtime.bounds import Bounds
from pydi_node.runtime.histories import HISTORY_KEY, Relation, relation, unpack
from pydi_node.runtime.peers import Peers
from pydi_node.runtime.server import PeerIdentity, make_session
from pydi_node.runtime.service import Service, Session
from pydi_node.runtime.tokens import trouble_with
from pydi_node.wire import tls
from pydi_node.wire.events import Hello, Refusal
from pydi_node.wire.keyring import Keyring
from pydi_node.wire.messages import Role
from pydi_node.wire.trust import MountLimits, TrustError

REJOIN = (
    "Let it join again as a new node with an empty data directory; docs/operating.md says how to"
    " take its content along"
)


class Admission:
    """See the module's text."""

    def __init__(self, keyring: Keyring, node: NodeNumber, service: Service, peers: Peers) -> None:
        self._keyring = keyring
        self._node = node
        self._service = service
        self._peers = peers
        self._numbers = itertools.count(1)

    def admit(self, hello: Hello, peer: PeerIdentity) -> Session | tuple[Refusal, str]:
        """A session for the peer, or why not."""
        cluster = self._service.cluster
        limits: MountLimits | None = None
        generation: int | None = None
        if peer.certificate is None:
            if hello.role is Role.NODE:
                return Refusal.ROLE, "another node doesn't come through the unix socket"
        else:
            try:
                identity = self._keyring.identify(
                    tls.certificate_of(peer.certificate), int(time.time())
                )
            except TrustError as exc:
                return Refusal.ROLE, str(exc)
            if not identity.may_be(hello.role, hello.number):
                return Refusal.ROLE, f"its certificate is not that of {hello.role} {hello.number}"
            limits, generation = identity.limits, identity.generation
        if hello.cluster not in ("", cluster):
            return Refusal.CLUSTER, f"this is cluster {cluster}"
        if hello.role is Role.NODE:
            if hello.number == self._node:
                return Refusal.NUMBER_IN_USE, f"this is node {self._node} already"
            refused = self._check_past(hello)
            if refused is not None:
                return refused
        trouble = trouble_with(limits, self._service.tree, time.time())
        if trouble is not None:
            return Refusal.ROLE, trouble
        return self._welcome(hello, peer, limits, generation)

    def _check_past(self, hello: Hello) -> tuple[Refusal, str] | None:
        """Whether the cluster has gone on without that node; its certificate is a node's."""
        number = hello.number
        match relation(unpack(hello.about.get(HISTORY_KEY)), self._peers.histories):
            case Relation.SAME:
                pass
            case Relation.OLDER:
                return Refusal.LEFT_BEHIND, (
                    f"the cluster was recovered without node {number}: what it holds is of before"
                    f" that. {REJOIN}"
                )
            case Relation.NEWER:
                self._peers.on_left_behind(
                    f"node {number} says that the cluster was recovered without this node. {REJOIN}"
                )
                return Refusal.OTHER, f"node {self._node} is of before the recovery"
            case Relation.APART:
                return Refusal.OTHER, (
                    f"node {number} and node {self._node} were recovered apart: empty the data"
                    " directory of the one whose changes may go, and let it join the other"
                )
        books = {info.number: info for info in self._service.tree.nodes()}
        if number in books and books[NodeNumber(number)].state == "forgotten":
            return Refusal.LEFT_BEHIND, (
                f"node {number} was forgotten (pydi forget) and does not come back. {REJOIN}"
            )
        return None

    def _welcome(
        self,
        hello: Hello,
        peer: PeerIdentity,
        limits: MountLimits | None,
        generation: int | None,
    ) -> Session | tuple[Refusal, str]:
        session = make_session(next(self._numbers), hello)
        session.limits = limits
        session.generation = generation
        if limits is not None and limits.directory != b"/":
            # By number from here on: whoever renames the directory takes the session along.
            try:
                root = self._service.tree.resolve(limits.directory)
                root_is_dir = root.is_dir
            except FileError:
                root_is_dir = False
            if not root_is_dir:
                shown = limits.directory.decode(errors="replace")
                return Refusal.OTHER, f"{shown}, which the mount token is for, is no directory"
            session.bounds = Bounds(
                lambda: self._service.tree, root.ino, lambda ino: ino in session.opens
            )
        if session.node is not None:
            self._peers.on_hello(session.node, hello.about, peer.host)
        return session
