"""What a tracker tells of pages: at once or event by event it is the same, and exact."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_ringbuffer import EVENT_ID, LITTLE, Kernel, deltas

import volferry.agent.tracker
from volferry.agent.basics import Place
from volferry.agent.tracker import Tracked, Tracker

DISKS = {"8:16": Tracked(1000 * 512, 4096), "8:32": Tracked(90_001 * 512, 16384)}
DEVS = [8 << 20 | 16, 8 << 20 | 32, 8 << 20 | 48]


@st.composite
def pages(draw: st.DrawFn) -> list[tuple[Kernel, bytes, list]]:
    """Of one kernel, nearly all records of one length; with what is told in them."""
    kernel = draw(st.sampled_from([LITTLE, Kernel("little", 8, 32), Kernel("big", 8, 34)]))
    found = []
    for _ in range(draw(st.integers(1, 3))):
        devs = draw(st.lists(st.sampled_from(DEVS), min_size=1, max_size=2))
        lengths = draw(st.lists(st.sampled_from([0, 1, 8, 16, 24, 600]), min_size=1, max_size=3))
        letters = draw(
            st.sampled_from([[b"W", b"WS"], [b"WSM", b"FWFS", b"N"], [b"D", b"W", b"R"]])
        )
        most = draw(st.sampled_from([300, 1000, 2**33]))
        event = st.tuples(
            st.sampled_from(devs),
            st.integers(0, most),
            st.sampled_from(lengths),
            st.sampled_from(letters),
        )
        events = draw(st.lists(event, max_size=20))
        records = [
            kernel.record(kernel.event(e).ljust(52, b"\0"), draw(deltas), False) for e in events
        ]
        if draw(st.integers(0, 3)) == 0:
            other = kernel.event((DEVS[0], 0, 8, b"W"), EVENT_ID + 1).ljust(52, b"\0")
            records.insert(draw(st.integers(0, len(records))), kernel.record(other, 1, False))
        found.append((kernel, kernel.page(records), events))
    return found


class Fed(Tracker):
    """A tracker that is given its pages; of ``one_by_one`` each event is looked at."""

    def __init__(self, found: list, one_by_one: bool = False, ranges: int = 1) -> None:
        never = 1 << 60  # so that none is left out
        place = Place({"sys": "/nowhere"})
        super().__init__(place, "", "volferry-fed", DISKS, drop_every=never if one_by_one else 0)
        self.given = [page for _, page, _ in found]
        self.layout = found[0][0].layout()
        self._pipes = {"cpu0": -1}
        for disk in self.disks:
            disk.discards_in_one = ranges

    def _read_cpu(self, cpu: str) -> Iterator[bytes]:
        return iter(self.given)


def told(tracker: Tracker) -> tuple:
    sets = tracker.new_sets()
    drained = tracker.drain(sets)
    chunks = {dev: {chunk for chunk, _ in held.runs(1)} for dev, held in sets.items()}
    assert {dev: held.count for dev, held in sets.items()} == {d: len(c) for d, c in chunks.items()}
    return drained.events, drained.sectors, chunks, tracker._reasons


@given(pages(), st.sampled_from([1, 256]))
def test_at_once_and_one_by_one_tell_the_same(found: list, ranges: int) -> None:
    assert told(Fed(found, ranges=ranges)) == told(Fed(found, one_by_one=True, ranges=ranges))


@given(pages())
def test_exactly_the_chunks_that_were_written_are_told(found: list) -> None:
    events, sectors, chunks, _ = told(Fed(found))
    written = [
        (f"{dev >> 20}:{dev & 0xFFFFF}", start, length)
        for _, _, told_of in found
        for dev, start, length, rwbs in told_of
        if dev in DEVS[:2] and length and not rwbs.startswith(b"R")
    ]
    assert events == len(written)
    for name, disk in DISKS.items():
        mine = [(start, length) for dev, start, length in written if dev == name]
        end, unit = disk.size_bytes // 512, disk.chunk_bytes // 512
        assert sectors[name] == sum(length for _, length in mine)
        assert chunks[name] == {
            sector // unit
            for start, length in mine
            for sector in range(start, min(start + length, end))
        }


def test_a_page_of_short_writes_to_one_disk_is_placed_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Which is what makes noting a write cheap; the kernel's own pages are in test_ringbuffer."""
    monkeypatch.setattr(volferry.agent.tracker, "parse_page", None)
    kernel = LITTLE._replace(byteorder=sys.byteorder)
    events = [(DEVS[0], 8 * n, 16, b"WS") for n in range(72)]
    records = [kernel.record(kernel.event(e) + bytes(4), 9, False) for e in events]
    tracker = Fed([(kernel, kernel.page(records), events)])
    assert told(tracker) == (
        72,
        {"8:16": 72 * 16, "8:32": 0},
        {"8:16": set(range(73)), "8:32": set()},
        {},
    )
