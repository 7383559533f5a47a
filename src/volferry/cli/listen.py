"""Show a transfer while it is carried, in plain lines; ``live`` adds one that moves.

Whoever listens must never hurt what it listens to: a terminal that went away, a full disk under a
redirected stderr or a pipe whose reader left only silence the words.
"""

import sys
import time
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from volferry.cli.output import emit, log, say
from volferry.cli.settings import Settings, is_terminal
from volferry.model import Event, Progress
from volferry.report import lines as words
from volferry.report import records
from volferry.report.lines import Line, Teller
from volferry.report.words import plain

PACE_S = 5.0
"""Without a terminal: at most one line of progress in so many seconds for each wait."""


class Stoppable(Protocol):
    def request_stop(self) -> None: ...


class Listener:
    """Plain lines on stderr: for pipes, logs and dumb terminals."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.teller = Teller(settings.verbosity)
        self.quiet = settings.verbosity < 0
        self.engine: Stoppable | None = None
        self.transfer_id = ""
        self.hearers: list[Callable[[Event], None]] = []
        """Who else hears each event, progress included."""
        self._stop_asked = False
        self._last: tuple[str, float] = ("", 0.0)

    # what operations call

    def on_event(self, event: Event) -> None:
        if event.transfer != self.transfer_id:
            self.transfer_id = event.transfer
            self._introduce()
        if event.kind == "error":
            return  # it is raised as well, and then printed last, where one looks
        self.tell(self.teller.tell(event))

    def _introduce(self) -> None:
        """Its name, before anything is made: whoever is cut off now can still ask for it."""
        if not self.quiet:
            text = f"{plain(self.transfer_id)}; volferry watch and status take this name"
            self.tell([Line(text, "key", "transfer")])

    def on_progress(self, progress: Progress) -> None:
        if self.quiet:
            return
        what, at = self._last
        now = time.monotonic()
        if progress.what == what and now - at < PACE_S:
            return
        self._last = (progress.what, now)
        self.tell([Line(words.progress(progress), "dim", "...")])

    def on_engine(self, engine: Any) -> None:
        self.engine = engine
        for hear in self.hearers:
            engine.on_event(hear)
        if self._stop_asked:
            engine.request_stop()

    # what the verbs call

    def notice(self, text: str) -> None:
        """A short word about something that is not an event, such as looking things up."""
        if not self.quiet:
            self.tell([Line(plain(text), "dim", "...")])

    def begin(self, phase: str) -> None:
        self.tell(self.teller.begin(phase))

    def tell(self, lines: Iterable[Line]) -> None:
        say(lines)

    def request_stop(self) -> None:
        """Now, or as soon as there is an engine."""
        self._stop_asked = True
        if self.engine is not None:
            self.engine.request_stop()

    def close(self) -> None:
        """Give the terminal back."""


class JsonListener(Listener):
    """Records for a program on stderr; ``sink`` writes one somewhere else."""

    def __init__(self, settings: Settings, sink: Callable[[str], None] = emit) -> None:
        super().__init__(settings)
        self._sink = sink
        self.quiet = self.quiet and sink is emit  # a stream that was asked for is the answer

    def on_event(self, event: Event) -> None:
        self.transfer_id = self.settings.transfer = event.transfer
        self.settings.step = event.step
        printed_last = event.kind == "error" and self._sink is emit  # see Listener.on_event
        if not printed_last and not (self.quiet and records.level(event) != "error"):
            self._sink(records.of_event(event))

    def on_progress(self, progress: Progress) -> None:
        if not self.quiet:
            about = self.settings.transfer or self.transfer_id, self.settings.step
            self._sink(records.of_progress(*about, progress))

    def begin(self, phase: str) -> None:
        """A heading is for people; the events have the phase."""

    def tell(self, lines: Iterable[Line]) -> None:
        log(self.settings, lines)


def make(settings: Settings) -> Listener:
    """The listener for this stderr."""
    if settings.log_format == "json":
        return JsonListener(settings)
    if not is_terminal(sys.stderr):
        return Listener(settings)
    from volferry.cli.live import LiveListener  # noqa: PLC0415 - rich is for terminals

    return LiveListener(settings)
