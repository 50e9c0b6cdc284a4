"""What programs see on a mount whose token is limited; the nodes decide it, not the mount."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from pydi_node.wire.messages import Admin
from tests.harness.mounts import MountProcess, why_unusable
from tests.harness.procs import NodeProcess, wait_until
from tests.node.conftest import make_node, node
from tests.node.test_tokens import make_token

__all__ = ["make_node", "node"]  # fixtures

pytestmark = pytest.mark.mount


def test_read_only_and_below_a_directory(node: NodeProcess, tmp_path: Path) -> None:
    """The directory is the whole tree, every change is EROFS, and after a revocation programs get
    an error within the deadline. The mount was not told to be read-only."""
    if (reason := why_unusable("kernel")) is not None:
        pytest.skip(reason)
    owner = MountProcess(tmp_path / "owner", node.data_dir, "kernel")
    guest: MountProcess | None = None
    try:
        owner.start()
        (owner.path / "photos").mkdir()
        (owner.path / "photos" / "sea").write_bytes(b"blue")
        (owner.path / "diary").write_bytes(b"mine")
        (owner.path / "photos" / "away").symlink_to("../diary")
        token = make_token(node, read_only=True, directory=b"/photos")
        guest = MountProcess(
            tmp_path / "guest", None, "kernel",
            ["--node", node.address, "--token", token["token"], "--deadline", "2"],
        )  # fmt: skip
        guest.start()
        root = guest.path
        assert sorted(os.listdir(root)) == ["away", "sea"]
        assert (root / "sea").read_bytes() == b"blue"
        assert not (root / "diary").exists()
        assert not (root / "away").exists()  # leads out of the mount, where nothing is
        for change in (
            lambda: (root / "new").write_bytes(b"x"),
            lambda: (root / "sea").write_bytes(b"x"),
            lambda: (root / "sea").unlink(),
            lambda: (root / "sea").chmod(0o600),
            lambda: (root / "sea").rename(root / "lake"),
            lambda: (root / "d").mkdir(),
            lambda: os.link(root / "sea", root / "lake"),
            lambda: os.setxattr(root / "sea", "user.a", b"v"),
            lambda: os.truncate(root / "sea", 1),
        ):
            with pytest.raises(OSError) as raised:
                change()
            assert raised.value.errno == errno.EROFS
        assert (owner.path / "photos" / "sea").read_bytes() == b"blue"
        with node.connect() as client:
            client.call(Admin("token-revoke", {"id": token["token_id"]}))
        wait_until(lambda: fails(root / "sea"), "the revoked mount reads nothing", 60)
    finally:
        for each in (owner, guest):
            if each is not None:
                each.close()


def fails(path: Path) -> bool:
    try:
        path.read_bytes()
    except OSError:
        return True
    return False
