"""Pages of the kernel's trace ring buffer, as ``per_cpu/cpuN/trace_pipe_raw`` gives them.

Pure parsing. Where the fields lie is read from the texts that the kernel gives beside the pages
(``rwbs`` is at 32 or at 34, by kernel). What does not fit these texts is an error, never skipped:
a misread page would be a write that nobody copies.
"""

import re
import struct
import sys
from collections import defaultdict
from typing import DefaultDict, Dict, List, NamedTuple, Optional, Tuple

PADDING, TIME_EXTEND, TIME_STAMP = 29, 30, 31  # type_len, include/linux/ring_buffer.h
MISSED, MISSED_STORED = 1 << 31, 1 << 30
"""RB_MISSED_EVENTS and RB_MISSED_STORED in a page's commit: events were lost before this page, and
their number lies behind its data. All below them is the length of the data."""
RWBS_MOST = 64
UNSIGNED = {2: "H", 4: "I", 8: "Q"}
"""By size, what ``memoryview.cast`` calls a number of this machine."""
FIELD = re.compile(
    r"field:\s*(?P<type>[^;]*?)\s*(?P<name>\w+)(\[\d*\])?;"
    r"\s*offset:(?P<offset>\d+);\s*size:(?P<size>\d+);"
)


class TraceUnreadable(ValueError):
    """The kernel's texts or pages are not as we know them."""


BlockEvent = Tuple[int, int, int, bytes]
"""(dev, sector, nr_sector, rwbs); dev in the kernel's own numbers: major << 20 | minor, rwbs as it
lies in the record: what follows its first NUL means nothing."""


def up_to_nul(rwbs: bytes) -> bytes:
    return rwbs.partition(b"\0")[0]


class ParsedPage(NamedTuple):
    events: List[BlockEvent]
    missed: int
    """Events that the kernel lost before this page; 1 where it did not say how many."""


class Alike(NamedTuple):
    """The events of a page without what tells one of a kind from the next."""

    sectors: Dict[Tuple[int, int], List[int]]
    """By (dev, nr_sector)."""
    operations: bytes
    """The first letter of each rwbs."""


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
    record: struct.Struct
    """(its head, its event's id, dev, sector, nr_sector, rwbs) of a record with a short head."""
    records: Dict[int, struct.Struct]
    """The same, as long as a whole record, by the kind of record that is so long."""
    word: struct.Struct
    missed_count: struct.Struct
    kind_shift: int
    """A record's kind is the first bit field of its head: the lowest bits, or the highest."""
    heads: Dict[int, bytes]
    """By kind, all that the first byte of its head may be."""
    fields: Dict[str, Field]
    byteorder: str

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
        form, at = order + "IH", 2
        for field, code in places:
            if field.offset < at or not 0 < field.size <= RWBS_MOST:
                raise TraceUnreadable("the event's fields lie otherwise: {}".format(fields))
            form += "{}x{}".format(field.offset - at, code or "{}s".format(field.size))
            at = field.offset + field.size
        if not commit.offset + commit.size <= data.offset < data.offset + data.size <= 1 << 20:
            raise TraceUnreadable("the page's fields lie otherwise: {}".format(page))
        size_code = "I" if commit.size == 4 else "Q"
        record = struct.Struct(form)
        shift = 0 if byteorder == "little" else 27
        lengths = {kind: 4 + 4 * kind for kind in range(1, PADDING)}
        return cls(
            event_id=int(event_id.group(1)),
            page_bytes=data.offset + data.size,
            data_offset=data.offset,
            commit=struct.Struct("{}{}x{}".format(order, commit.offset, size_code)),
            record=record,
            records={
                kind: struct.Struct("{}{}x".format(form, length - record.size))
                for kind, length in lengths.items()
                if length >= record.size
            },
            word=struct.Struct(order + "I"),
            missed_count=struct.Struct(order + size_code),
            kind_shift=shift,
            heads={
                kind: bytes(byte for byte in range(256) if byte >> shift % 8 & 31 == kind)
                for kind in lengths
            },
            fields=fields,
            byteorder=byteorder,
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
    unpack, size, wanted_id, shift = (
        layout.record.unpack_from,
        layout.record.size,
        layout.event_id,
        layout.kind_shift,
    )
    page += bytes(size + 4)  # so that a record's fields may be looked at before its kind
    view = memoryview(page)
    while at < end:
        word, event_id, dev, sector, nr_sector, rwbs = unpack(page, at)
        kind = word >> shift & 31
        if event_id == wanted_id and kind in layout.records:
            # Nearly all of them, one like the other: each tells where the next one begins.
            alike = layout.records[kind]
            before = len(events)
            for word, event_id, dev, sector, nr_sector, rwbs in alike.iter_unpack(
                view[at : end - (end - at) % alike.size]
            ):
                if event_id != wanted_id or word >> shift & 31 != kind:
                    break
                events.append((dev, sector, nr_sector, rwbs))
            if len(events) > before:
                at += (len(events) - before) * alike.size
                continue
        head, following = 4, at + 4 + 4 * kind
        if kind in (TIME_EXTEND, TIME_STAMP):
            following = at + 8  # the rest of the time; none of it is needed here
        elif kind in (0, PADDING):
            if kind == PADDING and word == PADDING << shift:
                break  # nothing follows: rb_null_event() in kernel/trace/ring_buffer.c
            # The length is in a word of its own, which it counts as well.
            length = layout.word.unpack_from(page, at + 4)[0]
            if length % 4 or (kind == 0 and length < 4):
                raise TraceUnreadable("a record at {} has {} bytes".format(at, length))
            head, following = 8, at + 4 + length
            _, event_id, dev, sector, nr_sector, rwbs = unpack(page, at + 4)
        if following > end:
            raise TraceUnreadable(
                "a record at {} ends at {}, the page's data at {}".format(at, following, end)
            )
        if kind < PADDING and event_id == wanted_id and following - at - head >= 2:
            if following - at - head < size - 4:
                raise TraceUnreadable("an event of {} bytes at {}".format(following - at, at))
            events.append((dev, sector, nr_sector, rwbs))
        at = following
    return ParsedPage(events, missed)


def parse_alike(page: bytes, layout: EventLayout) -> Optional[Alike]:
    """The events of a page that holds nothing else, in records of one length; None for any other.

    Nearly every page of a busy disk is one, and this takes half of what ``parse_page`` does: a
    field of all records is one slice. That each lies where it is looked for is told by the heads of
    those before it.
    """
    if layout.byteorder != sys.byteorder or len(page) < layout.data_offset + 4:
        return None
    at = layout.data_offset
    length = layout.commit.unpack_from(page)[0] & 0xFFFFFFFF  # beyond any page if some were missed
    kind = layout.word.unpack_from(page, at)[0] >> layout.kind_shift & 31
    record = layout.records.get(kind)
    if record is None or not 0 < length <= min(len(page), layout.page_bytes) - at:
        return None
    count, rest = divmod(length, record.size)
    if rest or record.size % 8:  # a slice of what is 8 bytes long has whole steps of that
        return None
    records, stride = memoryview(page)[at : at + length], record.size

    def column(field: Field) -> memoryview:
        first = 4 + field.offset
        values = records[first : length - stride + first + field.size]
        return values.cast(UNSIGNED[field.size])[:: stride // field.size]  # type: ignore[call-overload,no-any-return]

    heads, fields = records[::stride].tobytes(), layout.fields
    event_ids = column(fields["common_type"]).tobytes()
    if (
        heads.translate(None, layout.heads[kind])
        or event_ids != layout.event_id.to_bytes(2, sys.byteorder) * count
    ):
        return None
    devs, lengths = column(fields["dev"]), column(fields["nr_sector"])
    sectors = column(fields["sector"]).tolist()
    operations = records[4 + fields["rwbs"].offset :: stride].tobytes()
    if is_constant(devs) and is_constant(lengths):
        return Alike({(devs[0], lengths[0]): sectors}, operations)
    found: DefaultDict[Tuple[int, int], List[int]] = defaultdict(list)
    for dev, sector, nr_sector in zip(devs.tolist(), sectors, lengths.tolist()):
        found[dev, nr_sector].append(sector)
    return Alike(found, operations)


def is_constant(values: memoryview) -> bool:
    raw = values.tobytes()
    return raw == raw[: values.itemsize] * len(values)


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
