"""Content of an open file: two mounts and a cluster, all modelled as plain bytes."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from pydi_fs.vfs.content import Changes, Content
from pydi_fs.vfs.extents import ExtentMap, Segment
from pydi_node.ids import BlobId, Ino, LogIndex, TimeNs
from pydi_node.records import HOLE, Attr, Extent, FileVersion

SPAN = 24


@dataclass
class Cluster:
    """The tree's side of Commit, as commands.py describes it, on an ExtentMap and on bytes."""

    map: ExtentMap = field(default_factory=ExtentMap)
    size: int = 0
    blobs: dict[int, bytes] = field(default_factory=dict)

    def version(self) -> FileVersion:
        zero = TimeNs(0)
        attr = Attr(
            Ino(2), 0o100644, 1, 0, 0, 0, self.size, 0, zero, zero, zero, zero,
            LogIndex(1), LogIndex(1),
        )  # fmt: skip
        extents = tuple(
            Extent(s.offset, s.length, BlobId(s.source), s.source_offset) for s in self.map
        )
        return FileVersion(attr, extents, ())

    def commit(self, changes: Changes, blob_of: dict[int, BlobId]) -> None:
        if changes.cut is not None:
            self.map.cut(changes.cut)
        shift = self.size if changes.append_start is not None else 0
        for extent in changes.extents(blob_of):
            self.map.carve(extent.offset + shift, extent.length)
            if extent.blob != HOLE:
                self.map.put(
                    Segment(extent.offset + shift, extent.length, extent.blob, extent.blob_offset)
                )
        if changes.append_start is not None:
            self.size += changes.size
        elif changes.cut is not None:
            self.size = changes.size
        else:
            self.size = max(self.size, changes.size)
        self.map.cut(self.size)

    def content(self) -> bytes:
        return render(self.map, self.size, self.blobs)


@dataclass
class Mount:
    """One Content with the bytes of its staging files."""

    cluster: Cluster
    number: int
    content: Content
    stages: dict[int, bytearray] = field(default_factory=dict)
    stage: int = 0
    blobs_made: int = 0
    stages_made: int = 0

    def write(self, offset: int, data: bytes, append: bool) -> None:
        if not self.stage:
            self.stages_made += 1
            self.stage = -(self.stages_made * 10 + self.number)
            self.stages[self.stage] = bytearray()
        at = self.content.size if append else offset
        start = len(self.stages[self.stage])
        self.stages[self.stage] += data
        self.content.write(at, len(data), self.stage, start, append)

    def seal(self, changes: Changes) -> dict[int, BlobId]:
        named = {}
        for source in sorted({s.source for s in changes.segments if s.source < 0}):
            self.blobs_made += 1
            blob = BlobId(self.blobs_made * 10 + self.number)
            self.cluster.blobs[blob] = bytes(self.stages[source])
            named[source] = blob
        self.stage = 0
        return named

    def publish(self) -> None:
        changes = self.content.take_changes()
        named = self.seal(changes)
        self.cluster.commit(changes, named)
        for source, blob in named.items():
            self.content.sealed(source, blob)
        self.content.rebase(self.cluster.version())

    def seen(self) -> bytes:
        return render(self.content.map, self.content.size, {**self.cluster.blobs, **self.stages})


def render(extents: ExtentMap, size: int, sources: dict[int, bytes]) -> bytes:
    data = bytearray(size)
    for segment in extents:
        assert segment.end <= size
        end = segment.source_offset + segment.length
        data[segment.offset : segment.end] = sources[segment.source][segment.source_offset : end]
    return bytes(data)


def new_mounts(count: int) -> tuple[Cluster, list[Mount]]:
    cluster = Cluster()
    return cluster, [Mount(cluster, n, Content(cluster.version())) for n in range(1, count + 1)]


writes = st.tuples(
    st.just("write"), st.integers(0, SPAN), st.binary(min_size=1, max_size=8), st.booleans()
)
steps = st.one_of(
    writes,
    st.tuples(st.just("truncate"), st.integers(0, SPAN)),
    st.tuples(st.just("punch"), st.integers(0, SPAN), st.integers(1, 8), st.booleans()),
    st.tuples(st.just("publish")),
    st.tuples(st.just("fail"), st.lists(writes, max_size=2)),
)


def act(mount: Mount, model: bytearray, step: tuple[object, ...]) -> bytearray:
    match step:
        case ("write", int(offset), bytes(data), bool(append)):
            at = len(model) if append else offset
            model.extend(bytes(max(at + len(data) - len(model), 0)))
            model[at : at + len(data)] = data
            mount.write(offset, data, append)
        case ("truncate", int(size)):
            model = bytearray(model[:size].ljust(size, b"\0"))
            mount.content.truncate(size)
        case ("punch", int(offset), int(length), bool(keep)):
            end = offset + length
            if not keep:
                model.extend(bytes(max(end - len(model), 0)))
            for at in range(offset, min(end, len(model))):
                model[at] = 0
            mount.content.punch(offset, length, keep)
    return model


@settings(max_examples=400, deadline=None)
@given(st.lists(steps, max_size=20))
def test_one_mount_sees_its_own_writes_and_publishes_them_exactly(
    sequence: list[tuple[object, ...]],
) -> None:
    """Goal: local view and published content equal plain bytes. Method: model after each step."""
    cluster, (mount,) = new_mounts(1)
    model = bytearray()
    for step in sequence:
        match step:
            case ("publish",):
                mount.publish()
                assert cluster.content() == bytes(model)
                assert not mount.content.dirty
            case ("fail", list(meanwhile)):
                changes = mount.content.take_changes()
                mount.stage = 0
                for write in meanwhile:
                    model = act(mount, model, write)
                mount.content.restore(changes)
            case _:
                model = act(mount, model, step)
        assert mount.seen() == bytes(model)
    mount.publish()
    assert cluster.content() == bytes(model)


@settings(max_examples=300, deadline=None)
@given(
    st.binary(min_size=16, max_size=16),
    st.lists(st.tuples(st.integers(0, 7), st.binary(min_size=1, max_size=1)), max_size=6),
    st.lists(st.tuples(st.integers(8, 15), st.binary(min_size=1, max_size=1)), max_size=6),
)
def test_two_mounts_writing_disjoint_ranges_both_keep_their_bytes(
    start: bytes, left: list[tuple[int, bytes]], right: list[tuple[int, bytes]]
) -> None:
    """Goal: a Commit carries changes, not the file. Method: both open one version, both publish."""
    cluster, mounts = new_mounts(2)
    mounts[0].write(0, start, append=False)
    mounts[0].publish()
    mounts[1].content.rebase(cluster.version())
    model = bytearray(start)
    for mount, changes in zip(mounts, (left, right), strict=True):
        for offset, data in changes:
            mount.write(offset, data, append=False)
            model[offset : offset + 1] = data
    for mount in mounts:
        mount.publish()
    assert cluster.content() == bytes(model)
    mounts[0].content.rebase(cluster.version())
    assert mounts[0].seen() == mounts[1].seen() == bytes(model)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1), st.binary(min_size=1, max_size=5)), max_size=10))
def test_appends_of_two_mounts_land_whole_in_the_order_of_publication(
    appends: list[tuple[int, bytes]],
) -> None:
    """Goal: O_APPEND across mounts. Method: interleaved appends, published, none rebased first."""
    cluster, mounts = new_mounts(2)
    model = b""
    for which, data in appends:
        mounts[which].write(0, data, append=True)
        mounts[which].publish()
        model += data
    assert cluster.content() == model


def test_a_newer_version_goes_below_what_is_dirty_here() -> None:
    """Goal: rebase keeps unpublished writes on top. Method: foreign change under a local one."""
    cluster, (here, there) = new_mounts(2)
    there.write(0, b"aaaaaaaa", append=False)
    there.publish()
    here.content.rebase(cluster.version())
    here.write(2, b"XX", append=False)
    there.write(0, b"bbbbbbbb", append=False)
    there.publish()
    here.content.rebase(cluster.version())
    assert here.seen() == b"bbXXbbbb"
    here.publish()
    assert cluster.content() == b"bbXXbbbb"


def test_an_unpublished_append_moves_behind_what_others_appended() -> None:
    """Goal: a reader here sees the order that publishing gives. Method: rebase a dirty append."""
    cluster, (here, there) = new_mounts(2)
    here.write(0, b"mine", append=True)
    there.write(0, b"theirs", append=True)
    there.publish()
    here.content.rebase(cluster.version())
    assert here.seen() == b"theirsmine"
    here.publish()
    assert cluster.content() == b"theirsmine"


def test_a_hole_made_here_stays_above_a_newer_version() -> None:
    """Goal: zeros are a change too. Method: punch here, write there, rebase."""
    cluster, (here, there) = new_mounts(2)
    there.write(0, b"aaaaaaaa", append=False)
    there.publish()
    here.content.rebase(cluster.version())
    here.content.punch(2, 3, keep_size=True)
    there.write(0, b"bbbbbbbb", append=False)
    there.publish()
    here.content.rebase(cluster.version())
    assert here.seen() == b"bb\0\0\0bbb"
    here.publish()
    assert cluster.content() == b"bb\0\0\0bbb"
