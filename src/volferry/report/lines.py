"""Events to lines, as ``run``, ``watch`` and ``logs`` print them.

A ``Line`` is text and a tone; colour is put on at the very end and carries no meaning of its own,
so that nothing is lost without it. ``Teller`` remembers only what a reader has already seen: which
phase is on, whether the head of the passes' table was printed.
"""

import dataclasses
import json
from collections.abc import Callable
from typing import Any, Literal, TypeAlias

from pydantic import ValidationError

from volferry.model import Event, Json, Pass, Progress
from volferry.report.phases import PHASES, phase_of
from volferry.report.words import duration, number, parts, plain, rate, size, when

Tone: TypeAlias = Literal["", "heading", "good", "warning", "bad", "dim", "key"]

_SGR: dict[Tone, str] = {
    "heading": "\x1b[1m",
    "good": "\x1b[32m",
    "warning": "\x1b[33m",
    "bad": "\x1b[1;31m",
    "dim": "\x1b[2m",
    "key": "\x1b[1;36m",
}
_RESET = "\x1b[0m"

QUIET, NORMAL, VERBOSE = -1, 0, 1
_MARK_WIDTH = 10


@dataclasses.dataclass(frozen=True)
class Line:
    text: str
    tone: Tone = ""
    mark: str = ""
    """The word in front; it alone is coloured when there is one."""

    def render(self, *, colour: bool) -> str:
        mark = f"  {self.mark:<{_MARK_WIDTH}}" if self.mark else ""
        sgr = _SGR.get(self.tone, "") if colour else ""
        if not sgr:
            return f"{mark}{self.text}"
        return f"{sgr}{mark}{_RESET}{self.text}" if mark else f"{sgr}{self.text}{_RESET}"


def failure(what: str, data: str = "", hint: str = "", *, label: str = "error") -> list[Line]:
    """An error as everybody prints it: what happened, what it means for the data, what to do."""
    lines = [_labelled(label, _clean(what)[0], "bad")]
    lines += [Line(f"  {text}") for text in _clean(what)[1:] + _clean(data)]
    for index, text in enumerate(_clean(hint)):
        lines.append(_labelled("hint", text, "key") if index == 0 else Line(f"      {text}"))
    return lines


@dataclasses.dataclass(frozen=True)
class _Labelled(Line):
    def render(self, *, colour: bool) -> str:
        sgr = _SGR[self.tone] if colour else ""
        return f"{sgr}{self.mark}:{_RESET if sgr else ''} {self.text}"


def _labelled(label: str, text: str, tone: Tone) -> Line:
    return _Labelled(text, tone, label)


def _clean(text: str) -> list[str]:
    """Lines without control characters; several spaces stay, they align commands."""
    return [plain(line).rstrip() for line in text.splitlines() if line.strip()] or (
        [""] if text else []
    )


class Teller:
    """Words for one transfer's events, in order.

    ``held`` and ``error`` end what a process does; one that prints them itself leaves them out.
    """

    def __init__(self, verbosity: int = NORMAL) -> None:
        self.verbosity = verbosity
        self.phase = ""
        self._passes_headed = False
        self._elapsed: dict[str, float] = {}

    def begin(self, phase: str) -> list[Line]:
        """The heading of a phase; nothing when it is on already."""
        if phase == self.phase or phase not in PHASES:
            return []
        self.phase = phase
        self._passes_headed = False
        if self.verbosity <= QUIET:
            return []
        return [Line(f"{PHASES.index(phase) + 1}/{len(PHASES)} {phase}", "heading")]

    def tell(self, event: Event) -> list[Line]:
        """The lines of one event; none for what the verbosity leaves out."""
        lines = self._event(event)
        if self.verbosity <= QUIET:
            return lines if event.kind == "error" else []
        if not lines or event.kind in ("phase", "error", "undone"):
            return lines
        return self.begin(phase_of(event)) + lines

    def _event(self, event: Event) -> list[Line]:
        words = _WORDS.get(event.kind)
        if words is not None:
            return words(self, event)
        text = _text(event.facts) or said(event.facts)
        return [Line(text, "dim", plain(event.kind))]

    def _phase(self, event: Event) -> list[Line]:
        return self.begin(phase_of(event))

    def _intent(self, event: Event) -> list[Line]:
        again = " again: it was interrupted" if event.facts.get("interrupted") else ""
        return self._if_verbose(Line(plain(event.step) + again, "dim", "begin"))

    def _receipt(self, event: Event) -> list[Line]:
        receipt = event.facts.get("receipt", event.facts)
        elapsed = receipt.get("elapsed_s") if isinstance(receipt, dict) else None
        if isinstance(elapsed, int | float):
            self._elapsed[event.step] = float(elapsed)
        return self._if_verbose(Line(said(receipt), "dim", "receipt"))

    def _calls(self, event: Event) -> list[Line]:
        return self._if_verbose(Line(said(event.facts), "dim", "calls"))

    def _promise(self, event: Event) -> list[Line]:
        took = self._elapsed.get(event.step)
        tail = f"  {duration(took)}" if took else ""
        return [Line(_text(event.facts) + tail, "good", "ok")]

    def _skipped(self, event: Event) -> list[Line]:
        why = _text(event.facts) or "this transfer does not need it"
        return self._if_verbose(Line(f"{plain(event.step)}: {why}", "dim", "skip"))

    def _pass(self, event: Event) -> list[Line]:
        try:
            one = Pass.model_validate(event.facts.get("pass", event.facts))
        except ValidationError:
            return [Line(said(event.facts), "dim", "pass")]
        head = [] if self._passes_headed else [Line(f"  {PASS_HEAD}", "dim")]
        self._passes_headed = True
        return [*head, Line(f"  {pass_row(one)}")]

    def _prediction(self, event: Event) -> list[Line]:
        return [Line(predicted(event.facts), "dim", "predict")]

    def _cutover(self, event: Event) -> list[Line]:
        return [Line("the guest cuts over by itself now", "warning", "go")]

    def _cutback(self, event: Event) -> list[Line]:
        return [Line("the guest goes back by itself now", "warning", "go")]

    def _outcome(self, event: Event) -> list[Line]:
        return [outcome(event.facts)]

    def _gate(self, event: Event) -> list[Line]:
        tone: Tone = "good" if event.facts.get("open") else "warning"
        return [Line(_text(event.facts), tone, "gate")]

    def _retry(self, event: Event) -> list[Line]:
        pause = event.facts.get("pause_s")
        again = f"; again in {duration(pause)}" if isinstance(pause, int | float) else ""
        return [Line(f"{plain(event.step)}: {_text(event.facts)}{again}", "warning", "retry")]

    def _held(self, event: Event) -> list[Line]:
        return failure(_text(event.facts), hint=str(event.facts.get("hint") or ""), label="held")

    def _error(self, event: Event) -> list[Line]:
        return failure(*(str(event.facts.get(key) or "") for key in ("what", "data", "hint")))

    def _bug(self, event: Event) -> list[Line]:
        trace = str(event.facts.get("traceback") or "").splitlines()
        return self._if_verbose(*(Line(plain(line), "dim") for line in trace))

    def _undone(self, event: Event) -> list[Line]:
        nothing = "" if event.facts.get("found", True) else ": nothing of it was there"
        return [Line(plain(event.step) + nothing, "good", "undone")]

    def _end(self, event: Event) -> list[Line]:
        return [Line(f"the transfer is {event.kind}", "good", "end")]

    def _progress(self, event: Event) -> list[Line]:
        return []  # a wait is shown by the live line, not told

    def _if_verbose(self, *lines: Line) -> list[Line]:
        return list(lines) if self.verbosity >= VERBOSE else []


_WORDS: dict[str, Callable[[Teller, Event], list[Line]]] = {
    "phase": Teller._phase,
    "intent": Teller._intent,
    "receipt": Teller._receipt,
    "calls": Teller._calls,
    "promise": Teller._promise,
    "skipped": Teller._skipped,
    "pass": Teller._pass,
    "prediction": Teller._prediction,
    "cutover": Teller._cutover,
    "cutback": Teller._cutback,
    "outcome": Teller._outcome,
    "gate": Teller._gate,
    "retry": Teller._retry,
    "held": Teller._held,
    "error": Teller._error,
    "bug": Teller._bug,
    "undone": Teller._undone,
    "done": Teller._end,
    "rolled back": Teller._end,
    "progress": Teller._progress,
}
"""What is said of each kind of event; a kind that is not here is told by its own text."""


# ---- words for one thing -------------------------------------------------------------------------

_COLUMNS = (
    ("pass", 5),
    ("copied", 8),
    ("pieces", 9),
    ("deleted", 7),
    ("compared", 8),
    ("pieces", 9),
    ("changed", 7),
    ("took", 10),
)
PASS_HEAD = "  ".join(name.rjust(width) for name, width in _COLUMNS)


def pass_cells(one: Pass) -> tuple[str, ...]:
    return (
        "final" if one.final else str(one.number),
        size(one.bytes_copied),
        number(one.copied),
        number(one.files_deleted),
        size(one.bytes_compared) if one.compared else "-",
        number(one.compared) if one.compared else "-",
        number(one.changed_meanwhile),
        duration(one.copy_s + one.compare_s),
    )


def pass_row(one: Pass) -> str:
    """One pass under ``PASS_HEAD``."""
    cells = zip(pass_cells(one), _COLUMNS, strict=True)
    return "  ".join(cell.rjust(width) for cell, (_, width) in cells)


def predicted(facts: Json) -> str:
    """``downtime 4.1 s: stop 1.2 s, …``"""
    figures = facts.get("prediction", facts)
    total = figures.get("total_s")
    text = f"downtime {duration(total if isinstance(total, int | float) else None)}"
    named = figures.get("parts")
    return f"{text}: {parts(named)}" if isinstance(named, dict) and named else text


def outcome(facts: Json) -> Line:
    """How a cutover ended, in one line."""
    down = facts.get("downtime_s")
    measured = duration(float(down)) if isinstance(down, int | float) else duration(None)
    named = facts.get("parts")
    detail = f": {parts(named)}" if isinstance(named, dict) and named else ""
    clock = "" if facts.get("clock", "monotonic") == "monotonic" else " (by the wall clock)"
    if facts.get("result") == "committed":
        return Line(f"{measured}{clock}{detail}", "good", "downtime")
    reason = plain(facts.get("reason") or "no reason given")
    return Line(f"{reason}; down for {measured}{clock}", "warning", "reverted")


def progress(one: Progress) -> str:
    """One long wait: ``pass 1: 1.2 GiB of 4.0 GiB, 2 min 12 s left, 21 MiB/s, 3,120 files``.

    In the order of their worth, because a narrow terminal shows only the beginning.
    """
    figures = []
    if one.done_bytes is not None:
        of = f" of {size(one.total_bytes)}" if one.total_bytes else ""
        figures.append(size(one.done_bytes) + of)
    if one.eta_s is not None:
        figures.append(f"{duration(one.eta_s)} left")
    if one.rate_bytes_s is not None:
        figures.append(rate(one.rate_bytes_s))
    if one.done_files is not None:
        of = f" of {number(one.total_files)}" if one.total_files else ""
        figures.append(f"{number(one.done_files)}{of} {'file' if one.done_files == 1 else 'files'}")
    if one.note:
        figures.append(plain(one.note))
    if one.eta_s is None:
        figures.append(f"{duration(one.elapsed_s)} so far")
    return f"{plain(one.what)}: {', '.join(figures)}"


def said(facts: Json) -> str:
    """Facts without words of their own: ``name value`` pairs."""
    pairs = []
    for key, value in facts.items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        pairs.append(f"{plain(key)}={plain(text)}")
    return " ".join(pairs)


def logged(event: Event) -> str:
    """One line of ``volferry logs``: time, phase, step, kind, words."""
    teller = Teller(VERBOSE)
    teller.phase = phase_of(event)
    teller._passes_headed = True
    words = teller._event(event)
    text = " | ".join(line.text.strip() for line in words)
    if event.kind == "phase":
        text = phase_of(event)
    place = f"{plain(event.step) or '-':<10}  {plain(event.kind):<10}"
    return f"{when(event.at)}  {place}  {text}".rstrip()


def _text(facts: Json) -> str:
    for key in ("text", "what", "reason", "why"):
        value: Any = facts.get(key)
        if value:
            return plain(value)
    return ""
