"""Figures and names as people read them. Pure, and cheap to import.

Sizes are binary and say so (GiB), durations keep two figures that mean something, times are UTC
in ISO 8601 so that two people in two zones read the same. Every name that came from a cloud or a
guest passes through ``plain``: a volume may be called anything, also an escape sequence.
"""

import datetime
import unicodedata
from collections.abc import Sequence
from typing import Any

NOT_MEASURED = "not measured"

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_MINUTE, _HOUR, _DAY = 60, 3600, 86400
_CLOCK = ((_DAY, _HOUR, "d", "h"), (_HOUR, _MINUTE, "h", "min"), (_MINUTE, 1, "min", "s"))
_SHORT_ID = 8


def size(count: float | None) -> str:
    """``1.2 GiB``; bytes."""
    if count is None:
        return NOT_MEASURED
    value = float(count)
    for unit in _UNITS:
        if abs(value) < 1024 or unit == _UNITS[-1]:
            break
        value /= 1024
    if unit == "B":
        return f"{value:.0f} B"
    return f"{value:.1f} {unit}" if value < 100 else f"{value:.0f} {unit}"


def rate(bytes_s: float | None) -> str:
    """``21.4 MiB/s``; bytes per second."""
    return NOT_MEASURED if bytes_s is None else f"{size(bytes_s)}/s"


def duration(seconds: float | None) -> str:
    """``0.43 s``, ``8.4 s``, ``41 s``, ``3 min 12 s``, ``2 h 05 min``, ``3 d 04 h``."""
    if seconds is None:
        return NOT_MEASURED
    if seconds < 0:
        return "-" + duration(-seconds)
    if round(seconds) < _MINUTE:
        digits = 2 if seconds < 1 else 1 if round(seconds, 1) < 10 else 0
        return f"{seconds:.{digits}f} s"
    whole = round(seconds)
    length, part, name, part_name = next(row for row in _CLOCK if whole >= row[0])
    if whole == seconds and whole % length == 0:
        return f"{whole // length} {name}"
    return f"{whole // length} {name} {whole % length // part:02d} {part_name}"


def number(count: int | None) -> str:
    return NOT_MEASURED if count is None else f"{count:,}"


def counted(count: int, one: str, many: str = "") -> str:
    """``1 file``, ``10,203 files``."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def when(epoch: float | None) -> str:
    """``2026-11-23T02:00:00Z``; seconds since the epoch."""
    if not epoch:
        return NOT_MEASURED
    moment = datetime.datetime.fromtimestamp(epoch, datetime.UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def short(id: str) -> str:
    """The first figures of a UUID; anything else stays whole."""
    looks_like_uuid = len(id) == 36 and id.count("-") == 4
    return id[:_SHORT_ID] if looks_like_uuid else id


def plain(text: Any) -> str:
    """One line without anything that a terminal would obey."""
    out = []
    for sign in str(text):
        category = unicodedata.category(sign)
        if category in ("Cc", "Cf", "Cs", "Zl", "Zp"):
            out.append(" " if sign in "\t\n" else f"\\x{ord(sign):02x}")
        else:
            out.append(sign)
    return "".join(out)


def width(text: str) -> int:
    """Columns of a terminal: East Asian wide signs take two, combining ones none."""
    return sum(
        0 if unicodedata.combining(sign) else 2 if unicodedata.east_asian_width(sign) in "WF" else 1
        for sign in text
    )


def padded(text: str, columns: int, *, right: bool = False) -> str:
    space = " " * max(0, columns - width(text))
    return space + text if right else text + space


def listed(words: list[str]) -> str:
    """``a, b and c``."""
    if len(words) < 2:
        return "".join(words)
    return ", ".join(words[:-1]) + " and " + words[-1]


def parts(figures: dict[str, float]) -> str:
    """``stop 1.2 s, unmount 0.10 s``: the parts of a downtime in their order."""
    return ", ".join(f"{plain(name)} {duration(value)}" for name, value in figures.items())


def aligned(rows: Sequence[tuple[str, ...]], *, right: frozenset[int] = frozenset()) -> list[str]:
    """Columns two spaces apart; the last one is not padded. ``right`` are aligned to the right."""
    if not rows:
        return []
    widths = [max(width(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [padded(row[i], widths[i], right=i in right) for i in range(len(row))]
        lines.append("  ".join(cells).rstrip())
    return lines
