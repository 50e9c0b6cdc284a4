"""The scrub on real nodes: finds what nobody read, and goes on where it was."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

from pydi_node.errors import EXIT_FAILED, EXIT_OK
from pydi_node.wire.messages import Admin
from tests.harness.procs import NodeProcess, wait_until
from tests.node.test_replication import (
    CHUNK_BYTES,
    blob_file,
    read,
    save,
    save_stream,
    set_setting,
    storing_cluster,
    version,
)

MakeNode = Callable[..., NodeProcess]


def scrub(through: NodeProcess, *arguments: str) -> tuple[int, dict[int, dict[str, Any]]]:
    run = through.pydi("scrub", "--json", *arguments)
    assert run.stdout, run.stderr
    return run.returncode, {report["node"]: report for report in json.loads(run.stdout)}


def test_scrub_finds_what_nobody_reads(make_node: MakeNode, seed: int) -> None:
    """A flipped bit in one copy and a deleted other: `scrub --now` counts both, and both files are
    whole again soon; the next one finds nothing. A node that is down is named."""
    nodes = storing_cluster(make_node, 2)
    source = random.Random(seed)
    manifest = {b"f%d" % i: source.randbytes(1 + 3001 * i) for i in range(8)}
    with nodes[0].connect() as client:
        for name, content in manifest.items():
            save(client, name, content)
        infos = [version(client, name).blobs[0] for name in manifest]
    flipped, deleted = blob_file(nodes[0], infos[5]), blob_file(nodes[1], infos[6])
    flipped.chmod(0o600)
    damaged = bytearray(flipped.read_bytes())
    damaged[-1] ^= 1
    flipped.write_bytes(damaged)
    deleted.unlink()
    code, reports = scrub(nodes[0], "--now")
    assert code == EXIT_OK
    found = {number: report["last"]["found"] for number, report in reports.items()}
    # What is deleted may have been missed before, by a comparison of the files with the books.
    assert found[nodes[0].run["number"]] == 1
    assert found[nodes[1].run["number"]] <= 1
    assert {report["last"]["blobs"] for report in reports.values()} == {8}
    contents = list(manifest.values())
    for path, content in ((flipped, contents[5]), (deleted, contents[6])):
        wait_until(
            lambda path=path, content=content: path.exists() and path.read_bytes() == content,
            f"{path} is whole again", 60,
        )  # fmt: skip
    code, reports = scrub(nodes[1], "--now")
    assert code == EXIT_OK
    assert [report["last"]["found"] for report in reports.values()] == [0, 0]
    nodes[1].kill()
    run = nodes[0].pydi("scrub")
    assert run.returncode == EXIT_FAILED
    assert f"node {reports[2]['node']} can't be asked" in run.stderr
    assert "8 blobs" in run.stdout


def test_scrub_goes_on_after_a_restart(make_node: MakeNode, seed: int) -> None:
    """Slowed down so that it is caught in the middle, stopped and started: it reads what is left,
    not everything again, and ends."""
    (node,) = storing_cluster(make_node, 1)
    set_setting(node, "replicas", 1)
    with node.connect() as client:
        contents = [random.Random(seed + i).randbytes(CHUNK_BYTES // 4) for i in range(8)]
        for number, content in enumerate(contents):
            save_stream(client, b"f%d" % number, content)
        set_setting(node, "scrub_bytes_per_s", CHUNK_BYTES // 4)

    def report() -> dict[str, Any]:
        with node.connect() as client:
            (answer,) = client.call(Admin("scrub"))
            return dict(answer)

    with node.connect() as client:
        (begun,) = client.call(Admin("scrub", {"now": True}))
    started_ns = begun["current"]["started_ns"]
    wait_until(lambda: report()["current"]["blobs"] >= 2, "some were read", 60)
    assert node.stop() == 0
    kept = json.loads((node.data_dir / "scrub.json").read_text())["current"]
    assert kept[0] == started_ns
    assert kept[3][0] >= 2
    node.start()
    again = report()["current"]
    assert again is None or (again["started_ns"] == started_ns and again["blobs"] >= 2)
    set_setting(node, "scrub_bytes_per_s", 1 << 30)
    wait_until(lambda: report()["current"] is None, "it ends", 60)
    last = report()["last"]
    assert (last["started_ns"], last["blobs"], last["found"]) == (started_ns, 8, 0)
    with node.connect() as client:
        assert read(client, b"f3") == contents[3]
