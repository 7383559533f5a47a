"""``volferry watch``: follow a transfer that another process carries."""

import time

import click

from volferry import errors
from volferry.cli import carry, listen
from volferry.cli.help import Manual
from volferry.cli.options import global_options, transfer_argument
from volferry.cli.output import format_options, say
from volferry.cli.settings import Settings
from volferry.model import Progress, State
from volferry.report.lines import Line
from volferry.store import Store

POLL_S = 0.5

EXAMPLES = (
    ("volferry watch tr-web-03-k4q7", "from its beginning until it ends or stops"),
    ("volferry watch tr-web-03-k4q7 -f json", "a stream of events and progress, as JSON lines"),
)


@click.command("watch", cls=Manual, synopsis=("ID [OPTIONS]",), examples=EXAMPLES)
@transfer_argument()
@format_options()
@global_options
@click.pass_obj
def command(settings: Settings, id: str, format_: str | None, columns: tuple[str, ...]) -> None:
    """Follow a transfer that another process carries.

    Prints what has happened so far and what happens from now on, and ends with the transfer: with
    its report, and with its exit code. Ctrl-C ends the watching and leaves the transfer alone.

    With -f json stdout is a stream of JSON lines instead: every event of the journal and, while it
    runs, its progress. 'volferry report -f json' has the report.
    """
    streams = format_ == "json"
    if streams and columns:
        raise errors.Usage(
            "-c chooses columns of a report, and -f json is a stream of events",
            hint="volferry watch ID -f json | jq .kind",
        )
    with settings.open_store() as store:
        transfer = store.transfer(id)
        listener = listen.JsonListener(settings, _print) if streams else listen.make(settings)
        listener.transfer_id = settings.transfer = transfer.id
        try:
            _follow(store, transfer.id, listener)
        except KeyboardInterrupt:
            listener.close()
            say([Line(f"the transfer goes on; volferry watch {transfer.id}   follows it again")])
            raise
        finally:
            listener.close()
        ended = store.transfer(transfer.id)
        if ended.state in (State.RUNNING, State.ROLLING_BACK):
            verb = "resume" if ended.state is State.RUNNING else "rollback"
            say([Line(f"nobody carries it: volferry {verb} {ended.id}   goes on", "warning")])
            raise click.exceptions.Exit(1)
        if not streams:
            carry.conclude(store, ended, form=format_, only=columns)
        elif not carry.ended_well(ended):
            raise click.exceptions.Exit(1)


def _print(record: str) -> None:
    print(record, flush=True)


def _follow(store: Store, id: str, listener: listen.Listener) -> None:
    """Until the transfer stands still. One more look after the last process has gone."""
    row = 0
    told: Progress | None = None
    while True:
        alive = store.running(id) is not None
        for numbered in store.events(id, after=row):
            row = numbered.row
            listener.on_event(numbered.event)
        now = store.progress(id)
        if alive and now is not None and now != told:
            told = now
            listener.on_progress(now)
        if not alive:
            return
        time.sleep(POLL_S)
