"""A node's life as a process: start, serve, stop, be killed, be refused."""

from __future__ import annotations

import itertools
import json
import os
import socket
import sqlite3
import stat
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pydi_node.commands import ROOT_CALLER, Commit, Create, SetSetting
from pydi_node.errors import FileError
from pydi_node.ids import ROOT_INO, BlobId, Serial
from pydi_node.records import Extent
from pydi_node.tree import schema
from pydi_node.tree.check import check
from pydi_node.wire.messages import (
    PUT_BLOB,
    Admin,
    BlobCreate,
    BlobPut,
    BlobRead,
    BlobSeal,
    BlobWrite,
    Execute,
    ExecutePut,
    GetFile,
    Invalidate,
    Lease,
    Lookup,
    Nodes,
    ReadDir,
    Role,
    Subscribe,
)
from pydi_node.wire.trust import MountLimits, mount_token, parse_node_token
from tests.harness.procs import (
    ROOT,
    NodeProcess,
    Refused,
    WireClient,
    environment,
    node_command,
    wait_until,
)

MakeNode = Callable[..., NodeProcess]
STOP_PROMISE_S = 5.0  # DESIGN section 9


def run_node(*arguments: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
    """A node that is expected to end by itself."""
    return subprocess.run(
        node_command(*arguments), capture_output=True, text=True, timeout=60, cwd=ROOT,
        env=environment(**env), check=False,
    )  # fmt: skip


def assert_sentence(ended: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    """It ended with this code and one sentence that has these words, and no traceback."""
    assert ended.returncode == code, ended.stderr
    last = ended.stderr.strip().splitlines()[-1]
    assert last.startswith(("pydi-node: ", "pydi: ")), ended.stderr
    assert "Traceback" not in ended.stderr
    for word in words:
        assert word in last, last


def assert_tree_sound(node: NodeProcess) -> None:
    connection = sqlite3.connect(node.data_dir / "tree" / "tree.db", isolation_level=None)
    try:
        schema.prepare(connection)
        assert check(connection) == []
    finally:
        connection.close()


def put_file(client: WireClient, name: bytes, content: bytes) -> int:
    """Creates a file with this content in two round trips; its inode number."""
    attr, _ = client.create(name).value
    client.serial += 1
    commit = Commit(
        ROOT_CALLER, attr.ino, None, 0, len(content), False,
        (Extent(0, len(content), PUT_BLOB, 0),), (),
    )  # fmt: skip
    result = client.call(ExecutePut(client.client, Serial(client.serial), commit), content)
    assert result.errno == 0
    return int(attr.ino)


def get_file(client: WireClient, ino: int) -> bytes:
    version = client.call(GetFile(ino))  # type: ignore[arg-type]
    return b"".join(
        client.call(BlobRead(extent.blob, extent.blob_offset, extent.length))
        for extent in version.extents
    )


def test_serves_unix_and_tls_and_keeps_all_over_a_clean_stop(node: NodeProcess) -> None:
    """What was written over the unix socket is read over TLS, before and after a stop that takes
    less than promised and exits 0."""
    with node.connect() as client, node.connect_tls() as other:
        ino = put_file(client, b"file", b"content" * 1000)
        assert get_file(other, ino) == b"content" * 1000
    began = time.monotonic()
    assert node.stop() == 0
    assert time.monotonic() - began < STOP_PROMISE_S
    assert not (node.data_dir / "node.sock").exists()
    assert_tree_sound(node)
    node.start()
    with node.connect() as client:
        assert get_file(client, client.call(Lookup(ROOT_INO, b"file")).ino) == b"content" * 1000


def test_stop_under_load_loses_nothing_it_answered(node: NodeProcess) -> None:
    """SIGTERM with hundreds of commands under way: exit 0 in time; each command is either answered,
    and then there after a restart, or not."""
    answered: set[bytes] = set()
    with node.connect() as client:
        requests = {}
        for number in range(400):
            client.serial += 1
            command = Execute(client.client, Serial(client.serial), create_command(b"%d" % number))
            requests[client.send(command)] = b"%d" % number
        assert node.process is not None
        began = time.monotonic()
        node.process.terminate()
        try:
            while True:
                client.read()
        except ConnectionError:
            pass  # stopped
        assert node.process.wait(30) == 0
        assert time.monotonic() - began < STOP_PROMISE_S
        for request_id, answer in client.answers.items():
            if request_id in requests and not isinstance(answer, Exception):
                answered.add(requests[request_id])
        assert client.goodbye
    assert answered
    node.start()
    with node.connect() as client:
        assert answered <= {entry.name for entry in client.call(ReadDir(ROOT_INO, 0, 4096))}


def test_waiting_for_its_cluster_a_node_can_be_stopped(make_node: MakeNode) -> None:
    """The cluster to join is not there: the node waits, says for whom, and obeys SIGTERM."""
    (some := make_node("some")).start()
    waiting = make_node(
        "waiting", "--peer", "127.0.0.1:1", "--token-file", str(some.data_dir / "token")
    )
    waiting.launch()
    wait_until(lambda: "waiting for 127.0.0.1:1" in waiting.log_text(), "it says so")
    assert waiting.stop() == 0


def test_files_are_private(node: NodeProcess) -> None:
    """Token, socket and folder are nobody else's."""
    for name, mode in (("token", 0o600), ("node.sock", 0o600), (".", 0o700)):
        assert stat.S_IMODE(os.stat(node.data_dir / name).st_mode) == mode, name


@pytest.mark.parametrize("round_", range(2))
def test_acknowledged_survives_sigkill(node: NodeProcess, round_: int) -> None:
    """Killed in the middle of a stream of commands and blobs, a restarted node has every one that
    it acknowledged; the manifest is kept here, and an empty one is a failure."""
    manifest: dict[bytes, BlobId] = {}
    with node.connect() as client:
        window: dict[int, tuple[bytes, BlobId]] = {}
        for number in range(400 + 150 * round_):
            content = b"%d " % number * 50
            info = client.call(BlobPut(), content)
            client.serial += 1
            name = b"f%d" % number
            attr, _ = client.create(name).value
            client.serial += 1
            commit = Commit(
                ROOT_CALLER, attr.ino, None, 0, len(content), False,
                (Extent(0, len(content), info.blob, 0),), (info,),
            )  # fmt: skip
            request_id = client.send(Execute(client.client, Serial(client.serial), commit))
            window[request_id] = (name, info.blob)
            if number % 16 == 15:
                for waited, entry in window.items():
                    assert client.wait(waited).errno == 0
                    manifest[entry[0]] = entry[1]
                window.clear()
        node.kill()
    assert len(manifest) >= 384
    node.start()
    with node.connect() as client:
        for name, blob in manifest.items():
            attr = client.call(Lookup(ROOT_INO, name))
            version = client.call(GetFile(attr.ino))
            assert [extent.blob for extent in version.extents] == [blob]
            assert client.call(BlobRead(blob, 0, 10)) == (b"%d " % int(name[1:]) * 50)[:10]
        client.create(b"goes on")
    assert node.stop() == 0
    assert_tree_sound(node)


def test_repeated_command_gets_the_first_answer_over_a_kill(node: NodeProcess) -> None:
    """Exactly once: the same (client, serial) after a SIGKILL is not done again."""
    with node.connect() as client:
        first = client.create(b"once")
        again = Execute(client.client, Serial(client.serial), create_command(b"once"))
        assert client.call(again).kept == first.kept
    node.kill()
    node.start()
    with node.connect() as client:
        assert client.call(again).kept == first.kept
        assert len(client.call(ReadDir(ROOT_INO, 0, 10))) == 1


def test_second_node_is_refused(node: NodeProcess) -> None:
    """One DATA_DIR, one node: the second names the first's process id and changes nothing."""
    assert node.process is not None
    ended = run_node(node.data_dir, "--listen", "127.0.0.1:0")
    assert_sentence(ended, 1, "in use", str(node.process.pid))
    with node.connect() as client:
        assert client.create(b"alive").errno == 0


def test_corrupt_database_is_refused_and_kept(node: NodeProcess) -> None:
    """A damaged tree.db: one sentence with what to do, and not a byte of it changed."""
    assert node.stop() == 0
    path = node.data_dir / "tree" / "tree.db"
    path.write_bytes(b"garbage" * 1000)
    assert_sentence(run_node(node.data_dir), 1, "tree.db", "join again")
    assert path.read_bytes() == b"garbage" * 1000


def test_lost_log_is_refused(node: NodeProcess) -> None:
    """A node that forgot its votes must not go on as if it were new."""
    with node.connect() as client:
        client.create(b"a")
    assert node.stop() == 0
    for path in (node.data_dir / "log").iterdir():
        path.unlink()
    assert_sentence(run_node(node.data_dir), 1, "log", "lost")


def test_corrupt_log_is_refused_and_kept(node: NodeProcess) -> None:
    """A flipped byte in the middle of the log: refused, not a byte changed."""
    with node.connect() as client:
        for number in range(20):
            client.create(b"%d" % number)
    assert node.stop() == 0
    path = min((node.data_dir / "log").glob("*.log"))
    data = bytearray(path.read_bytes())
    data[200] ^= 1
    path.write_bytes(data)
    assert_sentence(run_node(node.data_dir), 1, path.name)
    assert path.read_bytes() == bytes(data)


@pytest.mark.parametrize("name", ["node.json", "token"])
def test_damaged_or_missing_identity_is_refused(node: NodeProcess, name: str) -> None:
    """node.json and token are never made up again for a folder that was used."""
    assert node.stop() == 0
    (node.data_dir / name).write_text("{ nonsense")
    assert_sentence(run_node(node.data_dir), 1 if name == "node.json" else 2, name)
    (node.data_dir / name).unlink()
    assert_sentence(run_node(node.data_dir), 1, name)


def test_newer_format_is_refused(node: NodeProcess) -> None:
    """A folder of a newer PyDi is left alone."""
    assert node.stop() == 0
    path = node.data_dir / "node.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"format": 99}))
    assert_sentence(run_node(node.data_dir), 1, "newer PyDi")


def test_token_readable_by_others_is_refused(node: NodeProcess) -> None:
    """A secret that is none any more: the sentence says which command helps."""
    assert node.stop() == 0
    (node.data_dir / "token").chmod(0o644)
    assert_sentence(run_node(node.data_dir), 1, "chmod 600")


def test_taken_port_moves_to_the_next(make_node: MakeNode) -> None:
    """The port asked for is taken: the node serves on another one and says which."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        node = make_node("n", "--listen", f"127.0.0.1:{port}")
        node.start()
        assert node.address != f"127.0.0.1:{port}"
        with node.connect_tls() as client:
            assert client.create(b"a").errno == 0
        assert f"port {port} is taken" in node.log_text()


def test_malformed_peer_disturbs_nobody(node: NodeProcess) -> None:
    """One peer sends garbage, another one half a frame, a third nothing: each is dealt with alone,
    the garbage logged once, and a fourth works on."""
    path = str(node.data_dir / "node.sock")
    with node.connect() as good:
        silent, half, bad = (socket.socket(socket.AF_UNIX) for _ in range(3))
        with silent, half, bad:
            for sock in (silent, half, bad):
                sock.connect(path)
            half.sendall(b"\0\0\0")
            bad.sendall(b"GET / HTTP/1.1\r\n\r\n" * 10)
            bad.settimeout(30)
            assert _hung_up(bad)
            for number in range(50):
                assert good.create(b"%d" % number).errno == 0
        with node.connect() as late:
            # After the welcome too: a frame that claims more than any frame may.
            late.sock.sendall(b"\xff" * 64)
            with pytest.raises(ConnectionError):
                late.read()
        assert good.create(b"last").errno == 0
    assert node.log_text().count("broke the protocol") == 2
    assert node.stop() == 0


def test_every_handshake_ends_in_a_welcome(node: NodeProcess) -> None:
    """Connections over TLS one after the other: a packet that comes right behind the accept is not
    lost, whenever it comes."""
    for _ in range(40):
        with node.connect_tls() as client:
            assert client.welcome is not None


def test_plain_text_on_the_tls_port_disturbs_nobody(node: NodeProcess) -> None:
    """A browser that finds the port gets nothing, and the node goes on."""
    host, _, port = node.address.rpartition(":")
    with socket.create_connection((host, int(port)), 30) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert _hung_up(sock)
    with node.connect_tls() as client:
        assert client.create(b"a").errno == 0


def test_other_clusters_token_is_refused(make_node: MakeNode) -> None:
    """Two clusters: the token of one opens nothing in the other."""
    one, two = make_node("one"), make_node("two")
    one.start()
    two.start()
    with pytest.raises((ConnectionError, OSError)):
        one.connect_tls(two.token)
    with one.connect_tls() as client:
        assert client.create(b"a").errno == 0


def test_mount_token_may_mount_and_nothing_else(node: NodeProcess) -> None:
    """A read-only mount token reads, gets EROFS for commands, and is no command line."""
    token = mount_token(parse_node_token(node.token), MountLimits(read_only=True)).text()
    with node.connect_tls(token, Role.MOUNT) as mount:
        assert mount.call(ReadDir(ROOT_INO, 0, 10)) == ()
        with pytest.raises(FileError) as refused:
            mount.create(b"a")
        assert refused.value.errno == 30
    with pytest.raises(Refused):
        node.connect_tls(token, Role.CLIENT)


def test_clients_can_not_do_house_keeping(node: NodeProcess) -> None:
    """Commands of the nodes themselves are EPERM for a client, who has ``set`` instead."""
    with node.connect() as client:
        with pytest.raises(FileError) as refused:
            client.execute(SetSetting("replicas", "3"))
        assert refused.value.errno == 1
        client.call(Admin("set", {"name": "replicas", "value": 3}))
        assert client.call(Admin("settings"))["replicas"]["value"] == 3


def test_pushes_tell_everybody_but_the_one_who_did_it(node: NodeProcess) -> None:
    """A subscriber learns what to drop, numbered without a gap, before it can be told of the change
    in any other way; whoever made the change has it in the answer instead."""
    with node.connect() as client, node.connect() as other:
        for subscriber in (client, other):
            subscriber.call(Subscribe())
        request = client.send_create(b"a")
        while not other.pushes:
            other.read()
        assert (ROOT_INO, b"a") in client.wait(request).touched.entries
        pushes = [push for push in other.pushes if isinstance(push, Invalidate)]
        assert [push.sequence for push in pushes] == list(range(1, len(pushes) + 1))
        assert (ROOT_INO, b"a") in [entry for push in pushes for entry in push.touched.entries]
        client.call(Lookup(ROOT_INO, b"a"))
        assert client.pushes == []


def test_a_change_is_answered_only_after_every_subscriber_dropped_it(node: NodeProcess) -> None:
    """Goal: one truth over caches. Method: a subscriber with a lease that is silent holds the
    answer up, and whatever shows the change; they come when it acknowledges, or when its lease is
    over."""
    with node.connect() as silent, node.connect() as writer, node.connect() as reader:
        silent.call(Subscribe())
        silent.acknowledges = False
        for number in itertools.count():  # until all was looked at within one lease
            asked_s = time.monotonic()
            lease_ms = silent.call(Lease())
            pushes = len(silent.pushes)
            request = writer.send_create(b"held %d" % number)
            while len(silent.pushes) == pushes:  # pushed when it is applied, and not before
                silent.read()
            # Answers leave in order: one to the command would have come first.
            writer.call(Nodes())
            looking = reader.send(Lookup(ROOT_INO, b"held %d" % number))
            reader.call(Nodes())
            seen = request in writer.answers, looking in reader.answers
            is_over = (time.monotonic() - asked_s) * 1000 >= lease_ms
            silent.acknowledge()
            assert writer.wait(request).errno == 0
            assert reader.wait(looking).is_regular
            if not is_over:
                assert seen == (False, False), "a cache may show the old state"
                break
        assert silent.call(Lease()) > 0
        assert writer.create(b"cut").errno == 0, "a silent mount holds nobody up for ever"
        assert silent.call(Lookup(ROOT_INO, b"cut")).is_regular, "and it may come back"


def test_unsealed_blob_goes_with_its_session(node: NodeProcess) -> None:
    """A writer whose session ends leaves nothing behind; a sealed blob stays."""
    with node.connect() as client:
        kept = client.call(BlobCreate())
        client.call(BlobWrite(kept, 0), b"kept")
        info = client.call(BlobSeal(kept, 4, None))
        dropped = client.call(BlobCreate())
        client.call(BlobWrite(dropped, 0), b"dropped")
        assert any((node.data_dir / "blobs" / "tmp").iterdir())
    temporary = node.data_dir / "blobs" / "tmp"
    wait_until(lambda: not any(temporary.iterdir()), "the unfinished blob is gone")
    with node.connect() as client:
        assert client.call(BlobRead(info.blob, 0, 100)) == b"kept"


def test_status_has_every_key(node: NodeProcess) -> None:
    """The object of DESIGN section 9."""
    with node.connect(Role.MOUNT) as mount, node.connect() as client:
        mount.create(b"a")
        status = client.call(Admin("status"))
    assert status["leader"] == 1
    assert status["quorum"] is True
    assert status.keys() >= {"cluster", "term", "nodes", "blobs", "mounts", "advice"}
    (entry,) = status["nodes"]
    assert entry.keys() >= {
        "number", "address", "state", "role", "applied_index", "stored_bytes", "free_bytes",
        "files", "reads", "read_bytes",
    }  # fmt: skip
    assert (entry["state"], entry["role"], entry["address"]) == ("up", "voter", node.address)
    assert status["blobs"].keys() >= {"total", "under_replicated", "endangered", "missing"}
    (shown,) = status["mounts"]
    assert (shown["driver"], shown["passthrough"]) == ("test", False)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--nonsense"], "--nonsense"),
        (["--number", "x"], "--number"),
        (["--number", "40000"], "--number"),
        (["--listen", "nowhere:x"], "--listen"),
        (["--log-level", "loud"], "--log-level"),
        (["--join", "rubbish"], "--join"),
        (["--join", "a", "--token-file", "b"], "--token-file"),
    ],
)
def test_usage_mistakes(tmp_path: Path, arguments: list[str], word: str) -> None:
    """Exit code 2 and a sentence that names the option; nothing is started."""
    ended = run_node(tmp_path / "d", *arguments)
    assert_sentence(ended, 2, word)
    assert not (tmp_path / "d" / "node.json").exists()


def create_command(name: bytes) -> Create:
    return Create(ROOT_CALLER, ROOT_INO, name, 0o644, True)


def _hung_up(sock: socket.socket) -> bool:
    """Whether the other side ends the connection, whatever it says before."""
    sock.settimeout(30)
    try:
        while sock.recv(4096):
            pass
    except ConnectionError:
        pass
    return True
