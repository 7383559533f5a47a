"""Pages of the trace ring buffer: what kernels wrote, what our own encoder writes, rubbish."""

from __future__ import annotations

import base64
import contextlib
import json
import struct
import sys
import zlib
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from volferry.agent.ringbuffer import (
    EventLayout,
    ParsedPage,
    TraceUnreadable,
    parse_alike,
    parse_page,
    up_to_nul,
)

CAPTURED = sorted((Path(__file__).parents[1] / "facts" / "trace").glob("*.json"))

HEADER_64 = """\
	field: u64 timestamp;	offset:0;	size:8;	signed:0;
	field: local_t commit;	offset:8;	size:8;	signed:1;
	field: int overwrite;	offset:8;	size:1;	signed:1;
	field: char data;	offset:16;	size:4080;	signed:0;
"""
HEADER_32 = HEADER_64.replace("offset:8;	size:8", "offset:8;	size:4").replace(
    "offset:16;	size:4080", "offset:12;	size:4084"
)
FORMAT = """\
name: block_rq_complete
ID: {id}
format:
	field:unsigned short common_type;	offset:0;	size:2;	signed:0;
	field:unsigned char common_flags;	offset:2;	size:1;	signed:0;
	field:unsigned char common_preempt_count;	offset:3;	size:1;	signed:0;
	field:int common_pid;	offset:4;	size:4;	signed:1;

	field:dev_t dev;	offset:8;	size:4;	signed:0;
	field:sector_t sector;	offset:16;	size:8;	signed:0;
	field:unsigned int nr_sector;	offset:24;	size:4;	signed:0;
	field:int error;	offset:28;	size:4;	signed:1;
	field:char rwbs[8];	offset:{rwbs};	size:8;	signed:0;
	field:__data_loc char[] cmd;	offset:{cmd};	size:4;	signed:0;

print fmt: "%d,%d %s (%s) %llu + %u [%d]", ((unsigned int) ((REC->dev) >> 20)), REC->error
"""
EVENT_ID = 1234


class Kernel(NamedTuple):
    """A kernel as far as its pages differ from another's."""

    byteorder: str
    long_bytes: int
    rwbs_at: int

    @property
    def order(self) -> str:
        return "<" if self.byteorder == "little" else ">"

    @property
    def header(self) -> int:
        return 8 + self.long_bytes

    def layout(self) -> EventLayout:
        text = FORMAT.format(id=EVENT_ID, rwbs=self.rwbs_at, cmd=self.rwbs_at + 10)
        return EventLayout.read(
            text, HEADER_64 if self.long_bytes == 8 else HEADER_32, self.byteorder
        )

    def word(self, kind: int, delta: int) -> bytes:
        word = kind << 27 | delta if self.byteorder == "big" else delta << 5 | kind
        return struct.pack(self.order + "I", word)

    def record(self, body: bytes, delta: int, long: bool) -> bytes:
        """As rb_update_event() writes it: the length in the word, or in a word of its own."""
        body += bytes(-len(body) % 4)
        if long or len(body) > 28 * 4:
            length = struct.pack(self.order + "I", len(body) + 4)
            return self.word(0, delta) + length + body
        return self.word(len(body) // 4, delta) + body

    def event(self, event: tuple[int, int, int, bytes], event_id: int = EVENT_ID) -> bytes:
        dev, sector, nr_sector, rwbs = event
        head = struct.pack(self.order + "HBBiI4xQIi", event_id, 0, 0, -7, dev, sector, nr_sector, 0)
        return head + bytes(self.rwbs_at - 32) + rwbs.ljust(10, b"\0") + bytes(4)

    def page(self, records: list[bytes], missed: int | None = None, flags: int = 0) -> bytes:
        data = b"".join(records)
        commit = len(data)
        if missed is not None:
            commit |= 3 << 30
            data += missed.to_bytes(self.long_bytes, self.byteorder)  # type: ignore[arg-type]
        head = bytes(8) + (commit | flags).to_bytes(self.long_bytes, self.byteorder)  # type: ignore[arg-type]
        return (head + data).ljust(4096, b"\0")


LITTLE = Kernel("little", 8, 34)

kernels = st.builds(
    Kernel, st.sampled_from(["little", "big"]), st.sampled_from([4, 8]), st.sampled_from([32, 34])
)
deltas = st.integers(1, 2**27 - 1)
devs = st.integers(0, 2**32 - 1)
rwbs = st.sampled_from([b"W", b"WS", b"FWFSM", b"D", b"N", b"WZ", b"", b"R", b"12345678"])
wanted = st.tuples(devs, st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1), rwbs)


@st.composite
def pages(draw: st.DrawFn) -> tuple[Kernel, bytes, list, int]:
    """A kernel, a page of its, and what is to be read from it."""
    kernel = draw(kernels)
    records: list[bytes] = []
    expected = []
    for _ in range(draw(st.integers(0, 30))):
        what = draw(st.sampled_from(["event"] * 4 + ["other", "extend", "stamp", "discarded"]))
        if what == "event":
            event = draw(wanted)
            expected.append(event)
            records.append(kernel.record(kernel.event(event), draw(deltas), draw(st.booleans())))
        elif what == "other":
            body = kernel.event((1, 2, 3, b"W"), EVENT_ID + 1) + draw(st.binary(max_size=200))
            records.append(kernel.record(body, draw(deltas), draw(st.booleans())))
        elif what == "discarded":  # rb_event_discard(): any content, its length in array[0]
            rest = bytes(4 * draw(st.integers(0, 20)))
            length = struct.pack(kernel.order + "I", len(rest) + 4)
            records.append(kernel.word(29, draw(deltas)) + length + rest)
        else:
            kind = 30 if what == "extend" else 31
            records.append(
                kernel.word(kind, draw(deltas)) + draw(st.binary(min_size=4, max_size=4))
            )
    if draw(st.booleans()):  # rb_reset_tail(): the rest of the page was too short for an event
        records.append(kernel.word(29, 0) + draw(st.binary(max_size=60)))
    missed = draw(st.none() | st.integers(1, 2**31))
    return kernel, kernel.page(records, missed), expected, missed or 0


def as_tuples(parsed: ParsedPage) -> list[tuple[int, int, int, bytes]]:
    return [(*event, up_to_nul(rwbs)) for *event, rwbs in parsed.events]


@given(pages())
def test_what_was_encoded_is_read(case: tuple) -> None:
    kernel, page, expected, missed = case
    parsed = parse_page(page, kernel.layout())
    assert as_tuples(parsed) == expected
    assert parsed.missed == missed


@given(pages(), st.integers(0, 4096))
def test_a_page_that_is_cut_off_gives_all_its_events_or_an_error(case: tuple, length: int) -> None:
    kernel, page, expected, _ = case
    try:
        parsed = parse_page(page[:length], kernel.layout())
    except TraceUnreadable:
        return
    assert as_tuples(parsed) == expected


@given(kernels, st.binary(max_size=4096))
def test_rubbish_ends_in_events_or_an_error(kernel: Kernel, rubbish: bytes) -> None:
    with contextlib.suppress(TraceUnreadable):
        parse_page(rubbish, kernel.layout())


@given(pages(), st.lists(st.tuples(st.integers(0, 4095), st.integers(0, 255)), max_size=8))
def test_a_damaged_page_ends_in_events_or_an_error(case: tuple, damage: list) -> None:
    kernel, page, _, _ = case
    raw = bytearray(page)
    for at, value in damage:
        raw[at] = value
    with contextlib.suppress(TraceUnreadable):
        parse_page(bytes(raw), kernel.layout())


# ---- pages of records that are alike -------------------------------------------------------------


@st.composite
def alike_pages(draw: st.DrawFn) -> tuple[Kernel, list[bytes]]:
    """A kernel and the records of such a page, of a length that is a multiple of 8."""
    kernel = draw(kernels)
    disks = draw(st.lists(devs, min_size=1, max_size=3))
    lengths = draw(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=3))
    event = st.tuples(
        st.sampled_from(disks), st.integers(0, 2**64 - 1), st.sampled_from(lengths), rwbs
    )
    filled = draw(st.sampled_from([52, 60, 68]))
    return kernel, [
        kernel.record(kernel.event(event).ljust(filled, b"\xd7"), draw(deltas), False)
        for event in draw(st.lists(event, min_size=1, max_size=55))
    ]


def says_the_same(page: bytes, layout: EventLayout) -> bool:
    """Whether the page is one of such records; what it says is what ``parse_page`` says."""
    alike = parse_alike(page, layout)
    if alike is None:
        return False
    parsed = parse_page(page, layout)
    found = [(dev, at, nr) for (dev, nr), sectors in alike.sectors.items() for at in sectors]
    assert Counter(found) == Counter((dev, at, nr) for dev, at, nr, _ in parsed.events)
    assert alike.operations == bytes(rwbs[0] for *_, rwbs in parsed.events)
    assert parsed.missed == 0
    return True


@given(alike_pages(), st.none() | st.integers(1, 2**31))
def test_records_that_are_alike_say_the_same_at_once(case: tuple, missed: int | None) -> None:
    kernel, records = case
    found = says_the_same(kernel.page(records, missed), kernel.layout())
    assert found == (kernel.byteorder == sys.byteorder and missed is None)


@given(pages())
def test_a_page_of_anything_says_the_same_at_once_or_is_not_one(case: tuple) -> None:
    kernel, page, _, _ = case
    says_the_same(page, kernel.layout())


@given(alike_pages(), st.data())
def test_a_page_that_is_no_longer_alike_says_the_same_or_is_not_one(
    case: tuple, data: st.DataObject
) -> None:
    """A head or an id is another one: a record would be looked for where there is none."""
    kernel, records = case
    raw = bytearray(kernel.page(records))
    which = data.draw(st.integers(0, len(records) - 1))
    at = kernel.header + which * len(records[0]) + data.draw(st.integers(0, 5))
    raw[at] ^= data.draw(st.integers(1, 255))
    says_the_same(bytes(raw), kernel.layout())
    says_the_same(bytes(raw[: data.draw(st.integers(0, 4096))]), kernel.layout())


def test_what_looks_like_a_record_inside_of_another_is_none() -> None:
    record = LITTLE.record(LITTLE.event((1, 2, 3, b"W")) + bytes(4), 1, False)
    other = LITTLE.record(record[4:] + record, 1, False)
    assert len(other) == 2 * len(record)
    page = LITTLE.page([record, other])
    assert len(parse_page(page, LITTLE.layout()).events) == 2
    assert parse_alike(page, LITTLE.layout()) is None


@given(kernels, st.binary(max_size=4096))
def test_rubbish_is_no_page_of_records_that_are_alike(kernel: Kernel, rubbish: bytes) -> None:
    says_the_same(rubbish, kernel.layout())


@given(kernels, st.integers(1, 28), st.integers(0, 2**27 - 1))
def test_the_kind_of_a_record_is_in_the_first_byte_of_its_head(
    kernel: Kernel, kind: int, delta: int
) -> None:
    first = kernel.word(kind, delta)[0]
    assert [k for k, heads in kernel.layout().heads.items() if first in heads] == [kind]


@given(kernels)
def test_lost_events_are_noticed_without_their_number(kernel: Kernel) -> None:
    assert parse_page(kernel.page([], flags=1 << 31), kernel.layout()).missed == 1
    assert parse_page(kernel.page([]), kernel.layout()).missed == 0


K = LITTLE
EVENT = K.record(K.event((1, 2, 3, b"W")), 1, False)


@pytest.mark.parametrize(
    ("page", "says"),
    [
        (b"", "no header"),
        (K.page([EVENT])[:60], "data ends at"),
        (K.page([], flags=4081), "data ends at"),
        (K.page([EVENT, b"\1\0"]), "a record at 68 ends at 76, the page's data at 70"),
        (K.page([K.word(0, 1) + struct.pack("<I", 8)])[:24], "ends at"),
        (K.page([K.word(0, 1) + struct.pack("<I", 0) + bytes(40)]), "has 0 bytes"),
        (K.page([K.word(0, 1) + struct.pack("<I", 41) + bytes(40)]), "has 41 bytes"),
        (K.page([K.word(0, 1) + struct.pack("<I", 2**32 - 4) + bytes(40)]), "ends at 42949673"),
        (K.page([K.word(28, 1) + bytes(40)]), "a record at 16 ends at 132"),
        (K.page([K.record(struct.pack("<H", EVENT_ID) + bytes(20), 1, False)]), "an event of 28"),
        ((bytes(8) + (4080 | 3 << 30).to_bytes(8, "little")).ljust(4096, b"\0"), "count of missed"),
    ],
)
def test_what_no_kernel_writes_is_an_error(page: bytes, says: str) -> None:
    with pytest.raises(TraceUnreadable, match=says):
        parse_page(page, K.layout())


GOOD = FORMAT.format(id=7, rwbs=32, cmd=40)


@pytest.mark.parametrize(
    ("event_format", "header"),
    [
        ("", HEADER_64),
        (GOOD, ""),
        (GOOD.replace("ID: 7", "ID: "), HEADER_64),
        (GOOD.replace("sector_t sector", "sector_t place"), HEADER_64),
        (GOOD.replace("offset:16;\tsize:8", "offset:16;\tsize:4"), HEADER_64),
        (GOOD.replace("nr_sector;\toffset:24", "nr_sector;\toffset:12"), HEADER_64),
        (GOOD.replace("rwbs[8];\toffset:32;\tsize:8", "rwbs[8];\toffset:32;\tsize:0"), HEADER_64),
        (GOOD.replace("common_type;\toffset:0", "common_type;\toffset:2"), HEADER_64),
        (GOOD, HEADER_64.replace("commit", "other")),
        (GOOD, HEADER_64.replace("offset:16", "offset:4")),
        (GOOD, HEADER_64.replace("size:4080", "size:0")),
        (GOOD, HEADER_64.replace("size:4080", "size:99999999")),
    ],
)
def test_a_layout_that_is_not_known_is_refused(event_format: str, header: str) -> None:
    assert EventLayout.read(GOOD, HEADER_64).event_id == 7
    with pytest.raises(TraceUnreadable):
        EventLayout.read(event_format, header)


# ---- what kernels wrote --------------------------------------------------------------------------


@pytest.fixture(params=CAPTURED, ids=lambda path: path.stem)
def captured(request: pytest.FixtureRequest) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(request.param.read_text())
    return found


def layout_of(captured: dict[str, Any]) -> EventLayout:
    return EventLayout.read(
        captured["format"], captured["header_page"], byteorder=captured["byteorder"]
    )


def unpacked(text: str) -> bytes:
    return zlib.decompress(base64.b64decode(text))


def read(captured: dict[str, Any], pages: dict[str, list[str]]) -> list[ParsedPage]:
    layout = layout_of(captured)
    return [parse_page(unpacked(text), layout) for texts in pages.values() for text in texts]


def test_a_kernels_pages_say_what_the_kernel_says_in_words(captured: dict[str, Any]) -> None:
    found = [
        [dev, sector, nr_sector, up_to_nul(rwbs).decode()]
        for page in read(captured, captured["pages"])
        for dev, sector, nr_sector, rwbs in page.events
    ]
    assert sorted(found) == sorted(captured["events"])
    assert len(found) > 100
    kinds = {rwbs[0] for _, _, _, rwbs in found}
    assert {"R", "W", "D"} <= kinds


def test_a_kernels_pages_say_the_same_at_once(captured: dict[str, Any]) -> None:
    layout = layout_of(captured)
    pages = [page for texts in captured["pages"].values() for page in map(unpacked, texts)]
    at_once = [says_the_same(page, layout) for page in pages]
    assert any(at_once)


def test_a_kernels_pages_tell_what_they_lost(captured: dict[str, Any]) -> None:
    missed = sum(page.missed for page in read(captured, captured["overrun"]["pages"]))
    assert missed == captured["overrun"]["lost"] > 0


def test_something_was_captured() -> None:
    assert CAPTURED
