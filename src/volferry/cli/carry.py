"""Run one coroutine of ``operations`` under Ctrl-C, and say how a transfer ended.

The signal handlers are ordinary ones, not those of the event loop: a second Ctrl-C has to work even
when the loop is stuck. What they ask for is done inside the loop, where nothing is half done.
"""

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Sequence
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeVar

import click

from volferry import errors
from volferry.cli import listen
from volferry.cli.output import say, show, show_record
from volferry.cli.settings import Settings, is_terminal
from volferry.model import State, Transfer
from volferry.report import story, summary
from volferry.report.lines import Line

if TYPE_CHECKING:
    from volferry.store import Store

T = TypeVar("T")

LEFT = 130
_SHOW_CURSOR = "\x1b[?25h"


class Interrupted(errors.VolferryError):
    """Ctrl-C before anything was begun."""

    exit_code = LEFT


class _Signals:
    """Ctrl-C or SIGTERM once: stop at the next safe point. Ctrl-C after that: leave at once."""

    def __init__(self, listener: listen.Listener, *, plans: bool) -> None:
        self._listener = listener
        self._plans = plans
        self._asked = False
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "_Signals":
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._heard)
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _heard(self, number: int, frame: FrameType | None) -> None:
        if self._asked and number == signal.SIGINT:
            _leave(self._listener.transfer_id)
        if not self._asked:
            self._asked = True
            self._loop.call_soon_threadsafe(self._ask)

    def _ask(self) -> None:
        if self._plans:
            assert self._task is not None
            self._task.cancel()
            return
        id = self._listener.transfer_id or "ID"
        self._listener.tell(
            [
                Line("stopping at the next safe point", "warning", "stop"),
                Line(f"volferry resume {id} goes on; Ctrl-C again leaves now", "", "stop"),
            ]
        )
        self._listener.request_stop()


def _leave(id: str) -> None:
    """End this process now. Only ``os.write``: a handler may have interrupted any other one."""
    text = (
        "\nleft at once; the guest keeps its promises: the service runs, or will run, on exactly"
        f" one side\nhint: volferry status {id or '[ID]'}   says how it stands\n"
        f"      volferry resume {id or 'ID'}     goes on\n"
    )
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
        raise Interrupted("interrupted", data="nothing was changed") from None
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
) -> None:
    """Carry a transfer and print its report, or say who does."""
    hears = listener or listen.make(settings)
    hears.transfer_id = id
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
    if ended.state not in (State.DONE, State.HELD, State.ROLLED_BACK):
        raise click.exceptions.Exit(1)
