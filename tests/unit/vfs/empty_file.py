"""A node that has one empty file, for tests of what a mount makes of its answers."""

from __future__ import annotations

import stat

from pydi_node.ids import Ino, LogIndex, TimeNs
from pydi_node.records import Attr, FileVersion
from pydi_node.wire.events import PingReceived, RequestReceived
from pydi_node.wire.messages import GetAttr, GetFile, Lease, Nodes, Open
from tests.unit.client.stand_ins import Buffers, Node

INO = Ino(7)
_NOW, _AT = TimeNs(0), LogIndex(10)
ATTR = Attr(INO, stat.S_IFREG | 0o644, 1, 0, 0, 0, 0, 0, _NOW, _NOW, _NOW, _NOW, _AT, _AT)


def answer_plainly(node: Node, event: object) -> Buffers:
    """Queries about the file, pings, and leases; what asks for no value gets none."""
    if isinstance(event, PingReceived):
        return [*node.session.send_pong(event.token)]
    if not isinstance(event, RequestReceived):
        return []
    value: object = None
    match event.request:
        case Open() | GetFile():
            value = FileVersion(ATTR, (), ())
        case GetAttr():
            value = ATTR
        case Lease():
            value = 900
        case Nodes():
            value = ()
    return [*node.session.send_answer(event.request_id, value)]
