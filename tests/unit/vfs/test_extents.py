"""ExtentMap against a dictionary from byte to (source, source offset)."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from pydi_fs.vfs.extents import ExtentMap, Segment

SPAN = 40  # small, so that ranges meet often

ranges = st.tuples(st.integers(0, SPAN), st.integers(1, 12))
operations = st.lists(
    st.one_of(
        st.tuples(st.just("put"), ranges, st.sampled_from([1, 2, -1]), st.integers(0, 3)),
        st.tuples(st.just("carve"), ranges),
        st.tuples(st.just("cut"), st.integers(0, SPAN)),
        st.tuples(st.just("replace"), st.just(-1), st.just(2)),
    ),
    max_size=25,
)

Model = dict[int, tuple[int, int]]


def apply(extents: ExtentMap, model: Model, operation: tuple[object, ...]) -> None:
    match operation:
        case ("put", (int(offset), int(length)), int(source), int(shift)):
            # Source offsets follow file offsets with a few shifts: neighbours often continue.
            extents.put(Segment(offset, length, source, offset + shift))
            model.update({at: (source, at + shift) for at in range(offset, offset + length)})
        case ("carve", (int(offset), int(length))):
            extents.carve(offset, length)
            for at in range(offset, offset + length):
                model.pop(at, None)
        case ("cut", int(size)):
            extents.cut(size)
            for at in [at for at in model if at >= size]:
                del model[at]
        case ("replace", int(old), int(new)):
            extents.replace_source(old, new)
            for at, (source, offset) in model.items():
                if source == old:
                    model[at] = (new, offset)


@settings(max_examples=400, deadline=None)
@given(operations, ranges)
def test_every_byte_comes_from_where_it_was_last_put(
    steps: list[tuple[object, ...]], window: tuple[int, int]
) -> None:
    """Goal: put, carve, cut, replace_source and all queries. Method: byte-by-byte model."""
    extents, model = ExtentMap(), dict[int, tuple[int, int]]()
    for step in steps:
        apply(extents, model, step)
        expanded = {
            segment.offset + i: (segment.source, segment.source_offset + i)
            for segment in extents
            for i in range(segment.length)
        }
        assert expanded == model
        segments = list(extents)
        assert extents.mapped_bytes == len(model)
        assert extents.end == max(model, default=-1) + 1
        for before, after in pairwise(segments):
            assert before.end <= after.offset
            joined = before.source == after.source and before.end == after.offset
            assert not (joined and before.source_offset + before.length == after.source_offset), (
                "neighbours that continue each other are one segment"
            )
    offset, length = window
    inside = {at: where for at, where in model.items() if offset <= at < offset + length}
    assert {
        segment.offset + i: (segment.source, segment.source_offset + i)
        for segment in extents.slices(offset, length)
        for i in range(segment.length)
    } == inside
    whole = extents.inside(offset, length)
    assert (whole is not None) == any(
        segment.offset <= offset and offset + length <= segment.end for segment in extents
    )
    if whole is not None:
        assert whole in list(extents)
        assert whole.offset <= offset
        assert offset + length <= whole.end
    assert extents.next_data(offset) == min((at for at in model if at >= offset), default=None)
    hole = offset
    while hole in model:
        hole += 1
    assert extents.next_hole(offset) == hole
