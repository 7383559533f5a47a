"""The set of chunks does what a set of numbers does, at the size of the largest disks."""

from __future__ import annotations

import time
import tracemalloc
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from volferry.agent.chunks import PAGE_CHUNKS, ChunkSet

SIZES = st.sampled_from([1, 7, 8, 9, 64, 1000, PAGE_CHUNKS, PAGE_CHUNKS + 1, 3 * PAGE_CHUNKS - 5])
HUGE = (2 << 40) // (16 << 10)


@st.composite
def ranges(draw: st.DrawFn, size: int) -> tuple[int, int]:
    """Short ones anywhere, long ones, and those that touch the edges of pages."""
    edges = [n for n in (0, PAGE_CHUNKS - 1, PAGE_CHUNKS, 2 * PAGE_CHUNKS, size - 1) if n < size]
    first = draw(st.integers(0, size - 1) | st.sampled_from(edges))
    length = draw(st.integers(1, 40) | st.integers(1, size))
    return first, min(first + length, size) - 1


@st.composite
def changes(draw: st.DrawFn) -> tuple[int, list[tuple[bool, tuple[int, int]]]]:
    size = draw(SIZES)
    return size, draw(st.lists(st.tuples(st.booleans(), ranges(size)), max_size=12))


def built(size: int, steps: list[tuple[bool, tuple[int, int]]]) -> tuple[ChunkSet, set[int]]:
    chunks, model = ChunkSet(size), set[int]()
    for adding, (first, last) in steps:
        if adding:
            chunks.add(first, last)
            model.update(range(first, last + 1))
        else:
            chunks.discard(first, last)
            model.difference_update(range(first, last + 1))
    return chunks, model


def numbers(chunks: ChunkSet) -> list[int]:
    return [n for first, count in chunks.runs(1 << 40) for n in range(first, first + count)]


@given(changes())
def test_it_holds_what_was_added_and_not_discarded(case: tuple) -> None:
    chunks, model = built(*case)
    assert numbers(chunks) == sorted(model)
    assert chunks.count == len(model)


@given(changes(), st.sampled_from([1, 3, 8, 32, 2048]), st.data())
def test_a_span_is_every_chunk_that_it_touches(case: tuple, unit: int, data: st.DataObject) -> None:
    """Several of one length, into what is there, more than once and around other changes."""
    chunks, model = built(*case)
    edges = st.sampled_from([n * unit for n in (0, PAGE_CHUNKS - 1, PAGE_CHUNKS - 7, case[0] - 1)])
    for _ in range(data.draw(st.integers(1, 3))):
        length = data.draw(st.integers(1, 20 * unit).map(lambda n: min(n, case[0] * unit)))
        most = case[0] * unit - length
        start = (st.integers(0, most) | edges).map(lambda n, most=most: min(n, most))  # type: ignore[misc]
        starts = data.draw(st.lists(start, min_size=1, max_size=30))
        chunks.add_spans(starts, length, unit)
        for first in starts:
            model.update(range(first // unit, (first + length - 1) // unit + 1))
        assert (numbers(chunks), chunks.count) == (sorted(model), len(model))
        first, last = data.draw(ranges(case[0]))
        chunks.discard(first, last)
        model.difference_update(range(first, last + 1))
    taken = chunks.take()
    chunks.add_spans([0], 1, unit)
    assert (numbers(taken), taken.count) == (sorted(model), len(model))
    assert numbers(chunks) == [0]


@given(changes(), st.data())
def test_a_range_is_held_wholly_partly_or_not(case: tuple, data: st.DataObject) -> None:
    chunks, model = built(*case)
    first, last = data.draw(ranges(case[0]))
    held = [n in model for n in range(first, last + 1)]
    assert chunks.has_any(first, last) == any(held)
    assert chunks.has_all(first, last) == all(held)


@given(changes(), st.integers(1, 50) | st.integers(1, 4 * PAGE_CHUNKS))
def test_runs_are_in_order_and_as_long_as_they_may_be(case: tuple, most: int) -> None:
    chunks, model = built(*case)
    runs = list(chunks.runs(most))
    assert [n for first, count in runs for n in range(first, first + count)] == sorted(model)
    assert all(1 <= count <= most for _, count in runs)
    for (first, count), (following, _) in pairwise(runs):
        assert count == most or following > first + count


@given(changes())
def test_what_is_taken_is_gone(case: tuple) -> None:
    chunks, model = built(*case)
    taken = chunks.take()
    assert (numbers(taken), taken.count) == (sorted(model), len(model))
    assert (numbers(chunks), chunks.count) == ([], 0)
    chunks.add(0, 0)
    assert taken.count == len(model), "the two share nothing"


@given(changes(), st.data())
def test_a_union_counts_nothing_twice(case: tuple, data: st.DataObject) -> None:
    size, steps = case
    chunks, model = built(size, steps)
    more = data.draw(st.lists(st.tuples(st.booleans(), ranges(size)), max_size=6))
    others, other_model = built(size, more)
    chunks.update(others)
    assert (numbers(chunks), chunks.count) == (
        sorted(model | other_model),
        len(model | other_model),
    )
    assert numbers(others) == sorted(other_model)


@given(changes(), st.data())
def test_a_difference_has_what_only_the_first_has(case: tuple, data: st.DataObject) -> None:
    chunks, model = built(*case)
    others, other_model = built(case[0], [(True, r) for r in data.draw(st.lists(ranges(case[0])))])
    chunks.subtract(others)
    assert numbers(chunks) == sorted(model - other_model)
    assert chunks.count == len(model - other_model)
    assert numbers(others) == sorted(other_model)


@given(changes())
def test_it_survives_a_state_file(case: tuple) -> None:
    chunks, model = built(*case)
    read = ChunkSet.from_bytes(chunks.to_bytes())
    assert read == chunks
    assert read.count == len(model)


@given(st.binary(max_size=100))
def test_what_is_not_a_set_is_refused(raw: bytes) -> None:
    with pytest.raises(ValueError, match="not a set of chunks"):
        ChunkSet.from_bytes(raw)


def test_a_torn_state_file_is_refused() -> None:
    chunks = ChunkSet(100_000)
    chunks.add(5, 70_000)
    raw = chunks.to_bytes()
    for broken in (raw[:-1], raw[: len(raw) // 2], raw[:20] + b"\0" + raw[21:]):
        with pytest.raises(ValueError, match="not a set of chunks"):
            ChunkSet.from_bytes(broken)


@pytest.mark.parametrize("wrong", [(-1, 3), (3, 2), (0, 10), (10, 10)])
def test_chunks_that_the_disk_has_not_are_refused(wrong: tuple[int, int]) -> None:
    chunks = ChunkSet(10)
    for method in (chunks.add, chunks.discard, chunks.has_any, chunks.has_all):
        with pytest.raises(ValueError, match=r"chunks .* of 10"):
            method(*wrong)
    with pytest.raises(ValueError, match=r"chunks 9 to 10 of 10"):
        chunks.add_spans([9 * 8 + 7, 9 * 8], 2, 8)
    with pytest.raises(ValueError, match="11"):
        chunks.update(ChunkSet(11))
    with pytest.raises(ValueError):
        chunks.subtract(ChunkSet(11))


def test_an_empty_disk_has_no_chunks() -> None:
    nothing = ChunkSet(0)
    nothing.add_all()
    assert (nothing.count, list(nothing.runs(1))) == (0, [])


def test_two_tebibytes_cost_sixteen_mebibytes_and_no_time() -> None:
    tracemalloc.start()
    try:
        chunks = ChunkSet(HUGE)
        began = time.process_time()
        for n in range(0, HUGE, HUGE // 1000):
            chunks.add(n, n + 3)
        assert sum(count for _, count in chunks.runs(64)) == chunks.count == 1001 * 4
        sparse_s = time.process_time() - began
        chunks.add_all()
        assert list(chunks.runs(HUGE)) == [(0, HUGE)]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 20 << 20
    assert sparse_s < 2
