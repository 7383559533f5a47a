"""Run one coroutine of ``operations`` under Ctrl-C, and say how a transfer ended.

The signal handlers are ordinary ones, not those of the event loop: they have to work even when the
loop is stuck. What they ask for is done inside the loop, where nothing is half done.

A Ctrl-C is obeyed within two seconds whatever goes on. First a step is asked to end at its next
safe point; then the work is cancelled, which closes connections and writes down where it stands; at
last the process just ends. All of that is safe, because a kill at any point is: the journal has the
intent, the guest its own record.
"""

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeVar

import click

from volferry import errors
from volferry.cli import listen
from volferry.cli.output import say, show, show_record
from volferry.cli.settings import Settings, is_terminal
from volferry.model import State, Transfer
from volferry.report import records, story, summary
from volferry.report.lines import Line, failure

if TYPE_CHECKING:
    from volferry.store import Store

T = TypeVar("T")

LEFT = 130
POLITE_S, ORDERLY_S = 0.8, 1.8
"""After a Ctrl-C: how long for a safe point, and until when for an orderly end."""
_SHOW_CURSOR = "\x1b[?25h"


class Interrupted(errors.VolferryError):
    """Ctrl-C before anything was begun."""

    exit_code = LEFT


class _Signals:
    """Ctrl-C or SIGTERM once: stop within two seconds. Ctrl-C after that: leave at once."""

    def __init__(self, listener: listen.Listener, *, plans: bool) -> None:
        self._listener = listener
        self._json = isinstance(listener, listen.JsonListener)
        self._plans = plans
        self._asked = False
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "_Signals":
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM):
            self._before[number] = signal.signal(number, self._heard)
        return self

    def __exit__(self, *exc: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._asked:
            # All is written down. A thread that ends a connection, or DBOS, cannot be interrupted,
            # and both the loop and Python would wait for it before they end.
            self._loop.set_default_executor(ThreadPoolExecutor())
            self._listener.settings.hurry = True

    def _heard(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGALRM or (self._asked and number == signal.SIGINT):
            _leave(self._listener.transfer_id, plans=self._plans, as_json=self._json)
        if not self._asked:
            self._asked = True
            signal.setitimer(signal.ITIMER_REAL, ORDERLY_S)
            self._loop.call_soon_threadsafe(self._ask)

    def _ask(self) -> None:
        assert self._task is not None
        if self._plans:
            self._task.cancel()
            return
        self._loop.call_later(POLITE_S, self._task.cancel)
        id = self._listener.transfer_id
        way = f"volferry resume {id} goes on; " if id else ""
        self._listener.tell(
            [
                Line("stopping at the next safe point, or in 2 s", "warning", "stop"),
                Line(f"{way}Ctrl-C again leaves now", "", "stop"),
            ]
        )
        self._listener.request_stop()


def _leave(id: str, *, plans: bool, as_json: bool) -> None:
    """End this process now. Only ``os.write``: a handler may have interrupted any other one."""
    what, data, hint = "interrupted", "nothing was changed", ""
    if not plans:
        what = "left at once"
        data = "the guest keeps its promises: the service runs, or will run, on exactly one side"
        hint = f"volferry status {id or '[ID]'}   says how it stands\n"
        hint += f"volferry resume {id or 'ID'}     goes on"
    if as_json:
        facts = {"kind": "Interrupted", "what": what, "data": data, "hint": hint}
        text = records.of_word("error", id, "", "stopped", facts) + "\n"
    else:
        said = failure(what, data, hint, label="error" if plans else "stopped")
        text = "\n" + "".join(line.render(colour=False) + "\n" for line in said)
    shown = _SHOW_CURSOR if is_terminal(sys.stderr) else ""
    try:
        os.write(2, (shown + text).encode())
    finally:
        os._exit(LEFT)


def run(
    listener: listen.Listener, work: Callable[[], Coroutine[Any, Any, T]], *, plans: bool = False
) -> T:
    """Run ``work``. ``plans``: it changes nothing, so that Ctrl-C simply ends it."""

    async def inside() -> T:
        with _Signals(listener, plans=plans):
            return await work()

    try:
        return asyncio.run(inside())
    except asyncio.CancelledError:
        done = "nothing was changed" if plans else "what was done is kept"
        raise Interrupted("interrupted", data=done) from None
    finally:
        listener.close()


def carry(
    settings: Settings,
    store: "Store",
    work: Callable[[listen.Listener], Coroutine[Any, Any, Transfer | None]],
    *,
    id: str = "",
    form: str | None = None,
    only: Sequence[str] = (),
    listener: listen.Listener | None = None,
    metrics: str = "",
) -> None:
    """Carry a transfer and print its report, or say who does."""
    hears = listener or listen.make(settings)
    hears.transfer_id = settings.transfer = id
    if metrics:
        _serve(hears, store, id, metrics)
    ended = run(hears, lambda: work(hears))
    if ended is None:
        pid = store.running(id)
        by = f"process {pid}" if pid else "the process that carries it"
        say(
            [
                Line(f"{by} has been asked; it does so at its next safe point", "good", "asked"),
                Line(f"volferry watch {id}   follows it"),
            ]
        )
        return
    conclude(store, ended, form=form, only=only)


def _serve(hears: listen.Listener, store: "Store", id: str, address: str) -> None:
    """Answer Prometheus with what this process hears, and what earlier ones have told."""
    from volferry.report.metrics import Metrics  # noqa: PLC0415 - only where it was asked for

    metrics = Metrics(id)
    if id:
        metrics.hear_all(numbered.event for numbered in store.events(id))
    where = metrics.serve(address)
    hears.hearers.append(metrics.hear)
    hears.notice(f"metrics on http://{where}/metrics")


def conclude(
    store: "Store", ended: Transfer, *, form: str | None = None, only: Sequence[str] = ()
) -> None:
    """The report on stdout, and an exit code of 1 where the transfer stands in the middle."""
    report = story.read(store, ended.id)
    if form or only:
        show_record(report.model_dump(mode="json"), form or "table", only)
    else:
        say([Line("")])
        show(summary.summary_lines(report))
    if not ended_well(ended):
        raise click.exceptions.Exit(1)


def ended_well(ended: Transfer) -> bool:
    """False where it stands in the middle."""
    return ended.state in (State.DONE, State.HELD, State.ROLLED_BACK)
