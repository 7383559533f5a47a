"""``volferry logs``: what happened, event by event."""

import time

import click

from volferry.cli.help import Manual, grouped
from volferry.cli.options import global_options, transfer_argument
from volferry.cli.settings import Settings
from volferry.model import Event
from volferry.report import records
from volferry.report.lines import logged

POLL_S = 0.5

EXAMPLES = (
    ("volferry logs tr-web-03-k4q7", "one line for each event, times in UTC"),
    ("volferry logs tr-web-03-k4q7 -f json --follow | jq .kind", "JSON lines, as they come"),
)


@click.command("logs", cls=Manual, synopsis=("ID [OPTIONS]",), examples=EXAMPLES)
@transfer_argument()
@grouped(
    "Output",
    "-f",
    "--format",
    "format_",
    type=click.Choice(["text", "json"]),
    default="text",
    help="Readable lines, or JSON lines with every fact. Default: text.",
)
@grouped("Output", "--follow", is_flag=True, help="Go on until the transfer stands still.")
@global_options
@click.pass_obj
def command(settings: Settings, id: str, format_: str, follow: bool) -> None:
    """Print what happened, event by event.

    The events are those of the journal, in the order in which they happened, with everything that
    was measured. They stay after the transfer has ended.
    """
    with settings.open_store() as store:
        transfer = store.transfer(id).id
        row = 0
        while True:
            alive = follow and store.running(transfer) is not None
            for numbered in store.events(transfer, after=row):
                row = numbered.row
                print(_line(numbered.event, format_), flush=follow)
            if not alive:
                return
            time.sleep(POLL_S)


def _line(event: Event, form: str) -> str:
    if form == "json":
        return records.of_event(event)
    return logged(event)
