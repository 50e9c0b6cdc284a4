"""What somebody sees who records the wire: neither a file's name nor its content."""

from __future__ import annotations

import secrets
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pydi_node.ids import ROOT_INO
from pydi_node.wire.messages import GetFile, Lookup
from tests.harness.procs import NodeProcess, WireClient, wait_until
from tests.node.test_cluster import voters
from tests.node.test_life import put_file

MakeNode = Callable[..., NodeProcess]


class Tap:
    """A cable with a recorder in it: a port that passes everything on to another one."""

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []
        self.recorded = bytearray()
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._listener.getsockname()[1]}"

    def close(self) -> None:
        with self._lock:
            for sock in (self._listener, *self._sockets):
                try:
                    sock.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass  # it was not connected, or the other side was faster
                sock.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
                far = socket.create_connection(self._target)
            except OSError:
                return  # closed
            with self._lock:
                self._sockets += [near, far]
            for one, other in ((near, far), (far, near)):
                threading.Thread(target=self._pass_on, args=(one, other), daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(1 << 16):
                with self._lock:
                    self.recorded += data
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            return  # one side is gone


@contextmanager
def tap(target: str) -> Iterator[Tap]:
    made = Tap(target)
    try:
        yield made
    finally:
        made.close()


def test_a_recording_holds_no_name_and_no_content(make_node: MakeNode) -> None:
    """All that goes between a client and a node, and between two nodes that meet through the tap,
    is recorded while a file is written, copied and read. The token's secret is not in it either."""
    name, content = b"holiday-plans-%s" % secrets.token_hex(8).encode(), b"burn after reading " * 99
    first = make_node("n1")
    first.start()
    with tap(first.address) as wire:
        second = make_node("n2", "--peer", wire.address, "--join", first.token)
        second.start()
        wait_until(lambda: len(voters(second)) == 2, "both are voters", 60)
        with second.connect_tls() as client:
            put_file(client, name, content)
        with WireClient.tls(wire.address, first.token) as client:
            ino = client.call(Lookup(ROOT_INO, name)).ino
            assert client.call(GetFile(ino)).attr.size == len(content)
            put_file(client, name + b"2", content)
        recorded = bytes(wire.recorded)
    assert len(recorded) > len(content)
    for secret in (name, content[:19], first.token.encode(), bytes.fromhex(first.run["cluster"])):
        assert secret not in recorded
