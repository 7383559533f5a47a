"""Events as JSON lines, for programs: one shape in ``--log-format json``, ``watch`` and ``logs``.

Each line is one object: ``at`` (seconds since the epoch), ``level``, ``transfer``, ``step``,
``kind``, and ``facts`` with everything that was measured. What people read as a sentence is there
too, as ``facts.text``. A reader that does not know a kind can still go by level and text.
"""

import json
import time
from typing import Any, Literal, TypeAlias

from volferry.model import Event, Json, Progress

Level: TypeAlias = Literal["info", "warning", "error"]

_ERRORS = ("error", "bug")
_WARNINGS = ("retry", "held")


def level(event: Event) -> Level:
    """``error`` stops a transfer; ``warning`` is what somebody may want to look at."""
    if event.kind in _ERRORS:
        return "error"
    shut = event.kind == "gate" and not event.facts.get("open")
    reverted = event.kind == "outcome" and event.facts.get("result") != "committed"
    return "warning" if event.kind in _WARNINGS or shut or reverted else "info"


def of_event(event: Event) -> str:
    """The line of an event."""
    return _line(level(event), event)


def of_progress(transfer: str, step: str, progress: Progress) -> str:
    """The line of a wait that goes on; such lines are not kept in the journal."""
    return of_word("info", transfer, step, "progress", progress.model_dump(mode="json"))


def of_word(grade: Level, transfer: str, step: str, kind: str, facts: Json) -> str:
    """The line of something said now that is no event of the journal."""
    return _line(grade, Event(at=time.time(), transfer=transfer, step=step, kind=kind, facts=facts))


def _line(grade: Level, event: Event) -> str:
    record: dict[str, Any] = {"at": round(event.at, 6), "level": grade}
    record |= event.model_dump(mode="json", exclude={"at"})
    return json.dumps(record, ensure_ascii=False)
