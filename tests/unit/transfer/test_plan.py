"""What a copy has to do, decided from attributes alone; and what progress says of it."""

from __future__ import annotations

import stat

import pytest

from pydi_fs.accessibility import sentence
from pydi_fs.progress import Progress, format_duration
from pydi_fs.transfer import plan
from pydi_fs.transfer.plan import LocalState, Piece
from pydi_node.ids import BlobId, Ino, LogIndex, NodeNumber, TimeNs
from pydi_node.records import Attr, BlobInfo, Extent, FileVersion

SUM = b"\x01" * 32


def attr(mode: int = stat.S_IFREG | 0o644, size: int = 10, mtime_ns: int = 7) -> Attr:
    t = TimeNs(0)
    return Attr(Ino(5), mode, 1, 0, 0, 0, size, size, t, TimeNs(mtime_ns), t, t,
                LogIndex(3), LogIndex(4))  # fmt: skip


@pytest.mark.parametrize(
    ("state", "unchanged"),
    [
        (LocalState(stat.S_IFREG | 0o600, 10, 7), True),
        (LocalState(stat.S_IFREG | 0o644, 11, 7), False),
        (LocalState(stat.S_IFREG | 0o644, 10, 8), False),
        (LocalState(stat.S_IFLNK | 0o777, 10, 7), False),
    ],
)
def test_unchanged(state: LocalState, unchanged: bool) -> None:
    """A regular file of the same size and time is unchanged, whatever its mode."""
    assert plan.is_unchanged(state, attr()) is unchanged
    assert not plan.is_unchanged(state, attr(mode=stat.S_IFIFO | 0o644))


def test_names_of_parts() -> None:
    """Another state of the source or another target has another part; all are known as parts."""
    state = LocalState(stat.S_IFREG, 10, 7)
    names = {
        plan.part_of_local(1, 2, state, b"a"), plan.part_of_local(1, 3, state, b"a"),
        plan.part_of_local(1, 2, state._replace(size=11), b"a"),
        plan.part_of_local(1, 2, state, b"b"), plan.part_of_version(attr(), b"a"),
        plan.part_of_version(attr()._replace(version=LogIndex(9)), b"a"),
        plan.part_of_version(attr(), b"b"),
    }  # fmt: skip
    assert len(names) == 7
    assert all(plan.is_part(name) and len(name) < 64 for name in names)
    assert not plan.is_part(b"part")


def test_pieces_are_whole_blobs() -> None:
    """Only a range that is exactly one blob has a checksum to hold it against."""
    blobs = tuple(BlobInfo(BlobId(n), 10, SUM, (NodeNumber(1),)) for n in (1, 2))
    extents = (
        Extent(0, 10, BlobId(1), 0),
        Extent(10, 5, BlobId(2), 0),
        Extent(20, 5, BlobId(2), 5),
    )
    assert plan.pieces(FileVersion(attr(), extents, blobs)) == [Piece(0, 10, SUM)]


@pytest.mark.parametrize(
    ("ranges", "holes", "size", "end"),
    [
        ([], [], 100, 0),
        ([(0, 10), (10, 10)], [], 100, 20),
        ([(0, 10), (20, 10)], [], 100, 10),
        ([(0, 10), (20, 10)], [(10, 10)], 100, 30),
        ([(0, 10)], [(10, 90)], 50, 50),
    ],
)
def test_covered(
    ranges: list[tuple[int, int]], holes: list[tuple[int, int]], size: int, end: int
) -> None:
    """An upload goes on at the first byte that is neither verified nor a hole."""
    assert plan.covered_up_to([Piece(o, n, SUM) for o, n in ranges], holes, size) == end


def test_progress_tells_rate_and_what_is_left() -> None:
    """The rate is that of what moved in the last seconds; what was skipped counts as done only."""
    now = [0.0]
    progress = Progress(enabled=False, watched=True, clock=lambda: now[0])
    progress.expect(4, 100 << 20)
    progress.skip(20 << 20)
    for _ in range(40):
        now[0] += 0.5
        progress.add(bytes_=1 << 20)
    assert progress.rate() == pytest.approx(2 << 20)
    assert progress.left_s() == pytest.approx(20)
    text = progress.text()
    assert text == "1 of 4 files, 60.0 MiB of 100.0 MiB, 1 unchanged, 2.0 MiB/s, 0:20 left"
    assert Progress(enabled=False).left_s() is None


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (7.4, "0:07"), (3 * 3600, "3:00:00")])
def test_durations(seconds: float, text: str) -> None:
    """Minutes and seconds, hours where there are any."""
    assert format_duration(seconds) == text


NOW_NS = 1_700_000_000 * 10**9


def holders(*numbers: int) -> BlobInfo:
    return BlobInfo(BlobId(1), 10, SUM, tuple(NodeNumber(n) for n in numbers))


def node(number: int, state: str, since_s: int | None = None) -> dict[str, object]:
    since = None if since_s is None else NOW_NS - since_s * 10**9
    return {"number": number, "state": state, "down_since_ns": since}


def test_sentence_of_what_is_not_accessible() -> None:
    """It names all holders, and the time from which on no copy was left."""
    nodes = [node(1, "up"), node(2, "down", 600), node(3, "down", 60)]
    text = sentence([holders(2, 3)], nodes, NOW_NS)
    assert text is not None
    assert text.startswith("not accessible: holders 2, 3 are down since ")
    assert text == sentence([holders(1), holders(2, 3)], nodes, NOW_NS)
    single = sentence([holders(2)], nodes, NOW_NS)
    assert single is not None
    assert single.startswith("not accessible: holder 2 is down since ")
    assert single != text.replace("holders 2, 3 are", "holder 2 is")
    assert sentence([holders(1, 2)], nodes, NOW_NS) is None
    assert sentence([holders(9)], nodes, NOW_NS) == "not accessible: holder 9 is down"
    assert sentence([holders()], nodes, NOW_NS) == "not accessible: no node holds it any more"


def test_names_that_some_disks_take_for_one() -> None:
    """Case and the composition of accents; the first by bytes stays."""
    names = [b"readme", b"README", b"other", "é".encode(), "e\u0301".encode(), b"raw\xff"]
    assert plan.alike(names) == {b"readme": b"README", "é".encode(): "e\u0301".encode()}
    assert plan.alike([b"a", b"b"]) == {}


def test_times_are_compared_as_the_disk_keeps_them() -> None:
    """NTFS counts 100 ns: what it made of a time is no other time."""
    assert not plan.is_same_time(1_234_567_890, 1_234_567_800, step_ns=1)
    assert plan.is_same_time(1_234_567_890, 1_234_567_800, step_ns=100)
    assert not plan.is_same_time(1_234_567_900, 1_234_567_800, step_ns=100)
