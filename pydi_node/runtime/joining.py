"""How a node gets into a cluster: finding it, being taken in, and leaving one that was a mistake.

Called by node.py before anything is served. Finding is by the addresses that a person named and by
multicast; only what a node of the cluster says over TLS is believed.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sqlite3
import time
from contextlib import closing
from typing import Any, NamedTuple

from pydi_node.config import Address, NodeConfig
from pydi_node.consensus.log import Log
from pydi_node.consensus.types import EntryKind
from pydi_node.discovery.finder import Finder
from pydi_node.envelopes import unpack_envelope
from pydi_node.errors import PydiError, RemoteProtocolError, UnavailableError, UserError
from pydi_node.ids import NodeNumber
from pydi_node.runtime.datadir import DataDir, Identity
from pydi_node.runtime.disklog import read_log
from pydi_node.runtime.histories import HISTORY_KEY, unpack
from pydi_node.runtime.peers import StrangerError, connect_to
from pydi_node.tree import schema
from pydi_node.tree.machine import Tree
from pydi_node.wire import session as wire
from pydi_node.wire import tls
from pydi_node.wire.events import Hello
from pydi_node.wire.messages import Admin, Role
from pydi_node.wire.trust import SEED_BYTES, NodeToken, credentials_of, make_leaf

_log = logging.getLogger(__name__)

JOIN_DEADLINE_S = 10.0
JOIN_RETRY_S = 1.0
FIND_S = 30.0  # for a person who waits; a service manager starts the node again


class Joined(NamedTuple):
    """What a cluster said when it took this node in."""

    number: NodeNumber
    histories: tuple[str, ...]  # the cluster's recoveries
    through: Address  # of the node that said so


async def join_cluster(token: NodeToken, config: NodeConfig) -> Joined:
    """The cluster has taken this node in.

    Waits for nodes that ``--peer`` names until one answers; without one, FIND_S for a node that is
    found by multicast.
    UserError  nobody was found, or the cluster doesn't want it (number in use, wrong token, clock).
    """
    credentials = credentials_of(token)
    loop = asyncio.get_running_loop()
    end_s = loop.time() + FIND_S
    told = False
    trouble: PydiError | OSError | None = None
    async with Finder(
        token.cluster, credentials.beacon_key, config.group, config.interfaces
    ) as finder:
        while True:
            found = [Address(*a) for node in finder.found.values() for a in node.addresses]
            for address in dict.fromkeys((*config.peers, *found)):
                try:
                    return await _join_through(address, token, config)
                except StrangerError as exc:
                    if address in config.peers:
                        raise
                    trouble = exc  # somebody sent a wrong beacon, or the address is another's now
                except (OSError, UnavailableError, RemoteProtocolError) as exc:
                    trouble = exc
                    _log.debug("join through %s: %s", address, exc)
                if not told and address in config.peers:
                    told = True
                    _log.warning("waiting for %s: %s", address, trouble)
            if not config.peers and loop.time() >= end_s:
                raise UserError(
                    finder.diagnosis() if not found or trouble is None
                    else f"no node of cluster {token.cluster[:8]} takes this one in: {trouble}"
                )  # fmt: skip
            if found or config.peers:
                await asyncio.sleep(JOIN_RETRY_S)
            else:
                await finder.wait_heard(JOIN_RETRY_S)


async def _join_through(address: Address, token: NodeToken, config: NodeConfig) -> Joined:
    credentials = credentials_of(token)
    leaf = make_leaf(credentials, 0, int(time.time()), os.urandom(SEED_BYTES))
    hello = Hello(wire.PROTOCOL_VERSIONS, Role.CLIENT, token.cluster, 0, socket.gethostname())
    link = await connect_to(address, hello, tls.client_context(leaf), credentials)
    try:
        await link.welcome()
        arguments: dict[str, Any] = {
            "witness": config.witness,
            "time_ms": time.time_ns() // 1_000_000,
        }
        if config.number is not None:
            arguments["number"] = config.number
        deadline_s = asyncio.get_running_loop().time() + JOIN_DEADLINE_S
        answer = await link.request(Admin("join", arguments), deadline_s)
    finally:
        link.close()
    return Joined(NodeNumber(int(answer["number"])), unpack(answer.get(HISTORY_KEY)), address)


def require_nothing_held(folder: DataDir, identity: Identity) -> None:
    """UserError unless the cluster in ``folder`` is this one node, and nobody kept anything there.

    Changes nothing. CorruptionError: it can't be told.
    """
    refused = UserError(
        f"{folder.path} belongs to cluster {identity.cluster}, the token to another, and it holds"
        " data or has other nodes: two clusters never merge; use an empty data directory"
    )
    if identity.phase == "founding":
        return
    if identity.phase != "member" or (folder.tree.parent / "installing.json").exists():
        raise refused
    state = read_log(folder.log)
    membership = Log(state.snapshot, state.entries).membership
    if [member.number for member in membership.members] != [identity.number]:
        raise refused
    with closing(sqlite3.connect(folder.tree, isolation_level=None)) as connection:
        with schema.translated_errors():
            schema.verify_header(connection)
        tree = Tree(connection)
        untouched = tree.is_untouched()
        applied_index = tree.applied_index
    # A crash may have left what was acknowledged in the log alone.
    for entry in state.entries:
        if entry.index > applied_index and entry.kind is EntryKind.COMMAND:
            untouched = untouched and unpack_envelope(entry.data).client == 0
    if not untouched:
        raise refused
