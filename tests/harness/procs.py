"""Real nodes for tests: started, watched with deadlines, always taken down; and a bare client.

Used by tests/node and by whoever needs a node as a process of its own. ``WireClient`` speaks the
wire protocol over a blocking socket and nothing more: no retry, no reconnect, so that a test sees
exactly what the node does.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pydi_node.commands import ROOT_CALLER, Command, Create
from pydi_node.ids import ROOT_INO, ClientId, Serial
from pydi_node.records import Result
from pydi_node.wire import session as wire
from pydi_node.wire import tls
from pydi_node.wire.events import (
    AnswerReceived,
    ConnectionEnded,
    ErrorReceived,
    GoodbyeReceived,
    Hello,
    PushReceived,
    RefuseReceived,
    Welcome,
    WelcomeReceived,
)
from pydi_node.wire.messages import Execute, Push, Request, Role
from pydi_node.wire.trust import SEED_BYTES, credentials_of, make_leaf, parse_token

ROOT = Path(__file__).parent.parent.parent
START_DEADLINE_S = 60.0  # the cores are shared with other tests
STOP_DEADLINE_S = 30.0
CALL_DEADLINE_S = 30.0
COMMAND_DEADLINE_S = 60.0
PYDI = "import sys; from pydi_fs.cli import main; sys.exit(main())"
POLL_S = 0.02
LOG_LINES_SHOWN = 40


def wait_until(condition: Callable[[], bool], what: str, deadline_s: float = 30.0) -> None:
    """Returns when ``condition`` holds; AssertionError naming ``what`` when it does not in time."""
    end = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end, f"not within {deadline_s:g} s: {what}"
        time.sleep(POLL_S)


def node_command(*arguments: str | Path) -> list[str]:
    """The command line of a node of this checkout."""
    return [sys.executable, "-m", "pydi_node", *map(str, arguments)]


def environment(*, machine: bool = False, **more: str) -> dict[str, str]:
    """What nodes run with: this checkout, and no option from outside.

    machine  it runs on a machine of its own, and may speak to the others; else multicast stays on
             loopback, for no test speaks to the networks of the machine that it runs on.
    """
    kept = {k: v for k, v in os.environ.items() if not k.startswith("PYDI_") or "TEST" in k}
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    quiet = {} if machine else {"PYDI_INTERFACE": "127.0.0.1"}
    return {**kept, "PYTHONPATH": path, **quiet, **more}


def pydi(*arguments: str | Path, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """One command of this checkout, to its end."""
    return subprocess.run(
        [sys.executable, "-c", PYDI, *map(str, arguments)], stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=COMMAND_DEADLINE_S, cwd=cwd, env=environment(),
        check=False,
    )  # fmt: skip


class NodeProcess:
    """One node in a directory of its own; start it again as often as you like."""

    def __init__(self, directory: Path, *flags: str, inside: Sequence[str] = ()) -> None:
        """flags: more of the command line; ``--listen`` is any free port unless given.
        inside: what stands before the command line, to run it in another namespace."""
        directory.mkdir(parents=True, exist_ok=True)
        self.data_dir = directory / "node"
        self.log = directory / "node.log"
        self.flags = list(flags)
        self.inside = list(inside)
        self.process: subprocess.Popen[bytes] | None = None

    def launch(self) -> None:
        """Starts it; returns at once."""
        flags = self.flags if "--listen" in self.flags else ["--listen", "127.0.0.1:0", *self.flags]
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                [*self.inside, *node_command(self.data_dir, *flags)], stdin=subprocess.DEVNULL,
                stdout=log, stderr=log, cwd=ROOT, env=environment(machine=bool(self.inside)),
            )  # fmt: skip

    def start(self) -> None:
        """Returns when it accepts connections."""
        self.launch()
        self.wait_ready()

    def wait_ready(self) -> None:
        wait_until(self._accepts, f"{self.data_dir} accepts connections", START_DEADLINE_S)

    def stop(self) -> int:
        """SIGTERM; its exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(STOP_DEADLINE_S)

    def kill(self) -> None:
        """SIGKILL: no goodbye, nothing flushed. Does nothing to one that has ended."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait(STOP_DEADLINE_S)

    @property
    def run(self) -> dict[str, Any]:
        """What it wrote of itself when it became ready."""
        record: dict[str, Any] = json.loads((self.data_dir / "run.json").read_text())
        return record

    @property
    def address(self) -> str:
        return str(self.run["address"])

    @property
    def token(self) -> str:
        return (self.data_dir / "token").read_text().strip()

    def pydi(
        self, command: str, *arguments: str | Path, cwd: Path = ROOT
    ) -> subprocess.CompletedProcess[str]:
        """A command through this node, on its machine."""
        return pydi(command, "--data-dir", self.data_dir, *arguments, cwd=cwd)

    def log_text(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def connect(self, role: Role = Role.CLIENT) -> WireClient:
        """A welcomed session over the unix socket."""
        return WireClient.unix(self.data_dir / "node.sock", role)

    def connect_tls(self, token: str | None = None, role: Role = Role.CLIENT) -> WireClient:
        """A welcomed session over TCP and TLS, with this cluster's token unless given."""
        return WireClient.tls(self.address, token or self.token, role)

    def _accepts(self) -> bool:
        assert self.process is not None
        code = self.process.poll()
        tail = "\n".join(self.log_text().splitlines()[-LOG_LINES_SHOWN:])
        assert code is None, f"the node ended with exit code {code}\n{tail}"
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(str(self.data_dir / "node.sock"))
            except OSError:
                return False
        return True


class Refused(Exception):
    """The node answered the hello with a refusal."""


class WireClient:
    """One session over a blocking socket."""

    def __init__(self, sock: socket.socket, role: Role) -> None:
        self.sock = sock
        self.sock.settimeout(CALL_DEADLINE_S)
        self.client = ClientId(secrets.randbits(62) + 1)
        about = {"driver": "test"} | ({"client": self.client} if role is Role.MOUNT else {})
        self.session = wire.Session.connecting(
            Hello(wire.PROTOCOL_VERSIONS, role, "", 0, "test", about)
        )
        self.answers: dict[int, Any] = {}  # value, (value, payload) or exception, by request id
        self.pushes: list[Push] = []
        self.acknowledges = True  # False: as a mount that hangs
        self.welcome: Welcome | None = None
        self.goodbye = False
        self.serial = 0
        self._write(self.session.send_hello())
        while self.welcome is None:
            self.read()

    @classmethod
    def unix(cls, path: Path, role: Role = Role.CLIENT) -> WireClient:
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.connect(str(path))
            return cls(sock, role)
        except BaseException:
            sock.close()
            raise

    @classmethod
    def tls(cls, address: str, token: str, role: Role = Role.CLIENT) -> WireClient:
        host, _, port = address.rpartition(":")
        now_s = int(time.time())
        credentials = credentials_of(parse_token(token, now_s))
        leaf = make_leaf(credentials, 0, now_s, secrets.token_bytes(SEED_BYTES))
        sock = socket.create_connection((host, int(port)), CALL_DEADLINE_S)
        try:
            sock = tls.client_context(leaf).wrap_socket(
                sock, server_hostname=credentials.server_name
            )
            return cls(sock, role)
        except BaseException:
            sock.close()
            raise

    def __enter__(self) -> WireClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.sock.close()

    def send(
        self, request: Request, payload: bytes = b"", deadline_s: float = CALL_DEADLINE_S
    ) -> int:
        """Sends without waiting; the request's id."""
        request_id, buffers = self.session.send_request(
            request, payload, deadline_ms=int(deadline_s * 1000)
        )
        self._write(buffers)
        return request_id

    def wait(self, request_id: int) -> Any:
        """The answer to that request, its payload where there is one; raises its error."""
        while request_id not in self.answers:
            self.read()
        answer = self.answers.pop(request_id)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def call(self, request: Request, payload: bytes = b"") -> Any:
        return self.wait(self.send(request, payload))

    def execute(self, command: Command) -> Result:
        """The outcome of a new command of this client."""
        self.serial += 1
        result: Result = self.call(Execute(self.client, Serial(self.serial), command))
        return result

    def create(self, name: bytes) -> Result:
        """An empty file in the root."""
        result: Result = self.wait(self.send_create(name))
        return result

    def send_create(self, name: bytes) -> int:
        """As `create`, without waiting; the request's id."""
        self.serial += 1
        command = Create(ROOT_CALLER, ROOT_INO, name, 0o644, True)
        return self.send(Execute(self.client, Serial(self.serial), command))

    def acknowledge(self) -> None:
        """All pushes so far have taken effect."""
        self._write(self.session.send_acknowledge(self.pushes[-1].sequence))

    def read(self) -> None:
        """Waits for bytes and sorts what they bring. ConnectionError when the node hung up."""
        try:
            data = self.sock.recv(1 << 20)
        except ssl.SSLEOFError as exc:
            raise ConnectionError("the node hung up") from exc
        if data:
            self.session.receive_data(data)
        else:
            self.session.receive_eof()
        for event in self.session.events():
            match event:
                case AnswerReceived(request_id, _, value, payload):
                    self.answers[request_id] = payload if value is None and payload else value
                case ErrorReceived(request_id, _, error):
                    self.answers[request_id] = error
                case WelcomeReceived(welcome):
                    self.welcome = welcome
                case RefuseReceived(_, sentence):
                    raise Refused(sentence)
                case PushReceived(push):
                    self.pushes.append(push)
                    if self.acknowledges:
                        self._write(self.session.send_acknowledge(push.sequence))
                case GoodbyeReceived():
                    self.goodbye = True
                case ConnectionEnded():
                    raise ConnectionError("the node hung up")
        if not data:
            raise ConnectionError("the node hung up")

    def _write(self, buffers: Sequence[bytes | bytearray | memoryview]) -> None:
        self.sock.sendall(b"".join(buffers))
