"""Values of options as people write them: durations, rates, the time of a cutover. Pure."""

import datetime as dt
import re
from typing import TYPE_CHECKING, Any

import click

from volferry.report.words import duration

if TYPE_CHECKING:
    _Type = click.ParamType[Any]
else:
    _Type = click.ParamType  # generic since click 8.4 only

_SECONDS = {"ms": 0.001, "s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|min|m|h|d)")
_BINARY = {"": 1, "k": 1024, "m": 1024**2, "g": 1024**3, "t": 1024**4}
_RATE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?(?:/s)?", re.IGNORECASE)


class Duration(_Type):
    """``500ms``, ``10s``, ``2m``, ``1h30m``; a plain number is seconds. Gives seconds."""

    name = "duration"

    def __init__(self, *, zero: bool = False) -> None:
        self.zero = zero

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        if isinstance(value, int | float):
            return float(value)
        seconds = seconds_of(str(value))
        if seconds is None:
            self.fail(f"'{value}' is not a duration such as 500ms, 10s, 2m or 1h30m", param, ctx)
        if seconds <= 0 and not (self.zero and seconds == 0):
            self.fail(f"'{value}' has to be longer than nothing", param, ctx)
        return seconds


class Rate(_Type):
    """``50M``: bytes per second in binary units. Gives bytes per second."""

    name = "rate"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        found = _RATE.fullmatch(str(value).strip())
        if not found:
            self.fail(f"'{value}' is not a rate such as 50M (MiB per second) or 800K", param, ctx)
        bytes_s = int(float(found[1]) * _BINARY[found[2].lower()])
        if bytes_s < 1024:
            self.fail(
                f"'{value}' is {bytes_s} bytes per second; write 50M for 50 MiB/s", param, ctx
            )
        return bytes_s


class Gate(_Type):
    """``auto``, ``manual``, ``at TIME``, ``at=TIME`` or a bare time; gives ISO 8601 with a zone.

    A time without a zone is of this machine's zone; a time of day is the next one.
    """

    name = "gate"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        text = str(value).strip()
        if text in ("auto", "manual"):
            return text
        try:
            return moment(text, dt.datetime.now().astimezone()).isoformat()
        except ValueError as fault:
            self.fail(str(fault), param, ctx)


def seconds_of(text: str) -> float | None:
    text = text.strip().lower()
    if re.fullmatch(r"\d+(\.\d+)?", text):
        return float(text)
    pieces = list(_DURATION.finditer(text))
    if not pieces or "".join(piece[0] for piece in pieces) != text:
        return None
    return sum(float(piece[1]) * _SECONDS[piece[2]] for piece in pieces)


def moment(text: str, now: dt.datetime) -> dt.datetime:
    """The time that ``text`` means at ``now``, which has a zone.

    Raises ``ValueError`` with a sentence for what is not a time, has passed, or does not exist
    because the clocks are put forward over it.
    """
    bare = re.sub(r"^at(=|\s+|$)", "", text).strip()
    if not bare:
        raise ValueError("'at' needs its time in the same word: --cutover 'at 02:00' or at=02:00")
    try:
        clock = dt.time.fromisoformat(bare)
    except ValueError:
        clock = None
    if clock is not None and clock.tzinfo is None and "-" not in bare:
        today = _local(dt.datetime.combine(now.date(), clock), text)
        if today > now:
            return today
        return _local(dt.datetime.combine(now.date() + dt.timedelta(days=1), clock), text)
    try:
        said = dt.datetime.fromisoformat(bare)
    except ValueError:
        raise ValueError(
            f"'{text}' is not auto, manual or a time such as 02:00 or 2026-11-23T02:00"
        ) from None
    when = said if said.tzinfo else _local(said, text)
    if when <= now:
        raise ValueError(f"'{text}' has passed: it is {now.isoformat(timespec='minutes')} now")
    return when


def _local(naive: dt.datetime, text: str) -> dt.datetime:
    """``naive`` in this machine's zone as it is on that day."""
    when = naive.astimezone()
    back = dt.datetime.fromtimestamp(when.timestamp())
    if back != naive:
        raise ValueError(f"'{text}' does not exist: the clocks are put forward over it")
    return when


def zone_note(gate: str, now: dt.datetime | None = None) -> str:
    """``at 2026-11-23T02:00:00+01:00 (CET), in 3 h 20 min``; empty for gates without a time."""
    if gate in ("auto", "manual"):
        return ""
    when = dt.datetime.fromisoformat(gate)
    local = when.astimezone()
    zone = local.tzname() if local.utcoffset() == when.utcoffset() else ""
    name = f" ({zone}, this machine's zone)" if zone else ""
    left = max(0.0, (when - (now or local.now(dt.UTC))).total_seconds())
    return f"cutover at {gate}{name}, in {duration(left)}"
