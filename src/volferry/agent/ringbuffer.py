"""Pages of the kernel's trace ring buffer, as ``per_cpu/cpuN/trace_pipe_raw`` gives them.

Pure parsing. Where the fields lie is read from the texts that the kernel gives beside the pages
(``rwbs`` is at 32 or at 34, by kernel). What does not fit these texts is an error, never skipped:
a misread page would be a write that nobody copies.
"""

import re
import struct
import sys
from typing import Dict, List, NamedTuple, Tuple

PADDING, TIME_EXTEND, TIME_STAMP = 29, 30, 31  # type_len, include/linux/ring_buffer.h
MISSED, MISSED_STORED = 1 << 31, 1 << 30
"""RB_MISSED_EVENTS and RB_MISSED_STORED in a page's commit: events were lost before this page, and
their number lies behind its data. All below them is the length of the data."""
RWBS_MOST = 64
FIELD = re.compile(
    r"field:\s*(?P<type>[^;]*?)\s*(?P<name>\w+)(\[\d*\])?;"
    r"\s*offset:(?P<offset>\d+);\s*size:(?P<size>\d+);"
)


class TraceUnreadable(ValueError):
    """The kernel's texts or pages are not as we know them."""


class BlockEvent(NamedTuple):
    dev: int
    """In the kernel's own numbers: major << 20 | minor."""
    sector: int
    nr_sector: int
    rwbs: bytes


class ParsedPage(NamedTuple):
    events: List[BlockEvent]
    missed: int
    """Events that the kernel lost before this page; 1 where it did not say how many."""


class Field(NamedTuple):
    offset: int
    size: int


def parse_fields(text: str) -> Dict[str, Field]:
    return {
        match.group("name"): Field(int(match.group("offset")), int(match.group("size")))
        for match in FIELD.finditer(text)
    }


class EventLayout(NamedTuple):
    """Where things lie in a page and in the one event that is wanted."""

    event_id: int
    page_bytes: int
    data_offset: int
    commit: struct.Struct
    """From the page's begin; its lowest 32 bits are all that is used."""
    event: struct.Struct
    """(dev, sector, nr_sector, rwbs) from the event's begin."""
    word: struct.Struct
    id_of: struct.Struct
    missed_count: struct.Struct
    big_endian: bool

    @classmethod
    def read(
        cls, event_format: str, header_page: str, byteorder: str = sys.byteorder
    ) -> "EventLayout":
        """From ``events/block/block_rq_complete/format`` and ``events/header_page``."""
        order = "<" if byteorder == "little" else ">"
        page, fields = parse_fields(header_page), parse_fields(event_format)
        event_id = re.search(r"^ID:\s*(\d+)$", event_format, re.MULTILINE)
        if event_id is None:
            raise TraceUnreadable("the event's format has no ID: {!r}".format(event_format[:200]))
        commit, data = wanted(page, "commit", (4, 8)), wanted(page, "data")
        wanted(fields, "common_type", (2,), at=0)
        places = [
            (wanted(fields, "dev", (4,)), "I"),
            (wanted(fields, "sector", (8,)), "Q"),
            (wanted(fields, "nr_sector", (4,)), "I"),
            (wanted(fields, "rwbs"), None),
        ]
        form, at = order, 0
        for field, code in places:
            if field.offset < at or field.size > RWBS_MOST:
                raise TraceUnreadable("the event's fields lie otherwise: {}".format(fields))
            form += "{}x{}".format(field.offset - at, code or "{}s".format(field.size))
            at = field.offset + field.size
        if not commit.offset + commit.size <= data.offset < data.offset + data.size <= 1 << 20:
            raise TraceUnreadable("the page's fields lie otherwise: {}".format(page))
        size_code = "I" if commit.size == 4 else "Q"
        return cls(
            event_id=int(event_id.group(1)),
            page_bytes=data.offset + data.size,
            data_offset=data.offset,
            commit=struct.Struct("{}{}x{}".format(order, commit.offset, size_code)),
            event=struct.Struct(form),
            word=struct.Struct(order + "I"),
            id_of=struct.Struct(order + "H"),
            missed_count=struct.Struct(order + size_code),
            big_endian=byteorder != "little",
        )


def wanted(fields: Dict[str, Field], name: str, sizes: Tuple[int, ...] = (), at: int = -1) -> Field:
    field = fields.get(name)
    if field is None or (sizes and field.size not in sizes) or at not in (-1, field.offset):
        raise TraceUnreadable("the kernel's field '{}' is not as known: {}".format(name, field))
    return field


def parse_page(page: bytes, layout: EventLayout) -> ParsedPage:
    """The wanted events of one page, as one read of ``trace_pipe_raw`` gave it.

    Raises ``TraceUnreadable`` for whatever no kernel writes.
    """
    if len(page) < layout.data_offset:
        raise TraceUnreadable("a page of {} bytes has no header".format(len(page)))
    commit = layout.commit.unpack_from(page)[0] & 0xFFFFFFFF
    at = layout.data_offset
    end = at + (commit & (MISSED_STORED - 1))
    if end > min(len(page), layout.page_bytes):
        raise TraceUnreadable(
            "a page of {} bytes says that its data ends at {}".format(len(page), end)
        )
    missed = missed_before(page, commit, end, layout)
    events: List[BlockEvent] = []
    word_at, id_at, event_at = layout.word.unpack_from, layout.id_of.unpack_from, layout.event
    while at < end:
        if end - at < 4:
            raise TraceUnreadable("{} bytes are left at {} of a page".format(end - at, at))
        word = word_at(page, at)[0]
        kind, delta = (
            (word >> 27, word & 0x7FFFFFF) if layout.big_endian else (word & 31, word >> 5)
        )
        body = at + 4
        if kind in (TIME_EXTEND, TIME_STAMP):
            at += 8  # the time's upper bits are a second word; none of it is needed here
        elif kind == PADDING and delta == 0:
            break  # nothing follows: rb_null_event() in kernel/trace/ring_buffer.c
        elif kind in (0, PADDING):  # array[0] is the length, its own four bytes among it
            if body + 4 > end:
                raise TraceUnreadable("the length of the record at {} is cut off".format(at))
            length = word_at(page, body)[0]
            if length % 4 or length > end - body or (kind == 0 and length < 4):
                raise TraceUnreadable("a record at {} has {} bytes".format(at, length))
            at = body + length
            body += 4
        else:
            at = body + 4 * kind
        if at > end:
            raise TraceUnreadable("a record ends at {}, the page's data at {}".format(at, end))
        if kind >= PADDING or at - body < 2 or id_at(page, body)[0] != layout.event_id:
            continue
        if at - body < event_at.size:
            raise TraceUnreadable("an event of {} bytes at {}".format(at - body, body))
        dev, sector, nr_sector, rwbs = event_at.unpack_from(page, body)
        events.append(BlockEvent(dev, sector, nr_sector, rwbs.partition(b"\0")[0]))
    return ParsedPage(events, missed)


def missed_before(page: bytes, commit: int, end: int, layout: EventLayout) -> int:
    """The kernel stores the count only where there is room for it behind the data."""
    if not commit & (MISSED | MISSED_STORED):
        return 0
    if not commit & MISSED_STORED:
        return 1
    if end + layout.missed_count.size > len(page):
        raise TraceUnreadable("the count of missed events is cut off at {}".format(end))
    count: int = layout.missed_count.unpack_from(page, end)[0]
    return max(count, 1)
