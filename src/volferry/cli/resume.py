"""``volferry resume``: go on with a transfer that stopped."""

from typing import Any

import click

from volferry.cli import carry
from volferry.cli.help import Manual
from volferry.cli.options import (
    deadline_options,
    deadlines,
    global_options,
    metrics_option,
    transfer_argument,
)
from volferry.cli.output import format_options
from volferry.cli.settings import Settings

EXAMPLES = (("volferry resume tr-web-03-k4q7", "from the step that did not end"),)


@click.command("resume", cls=Manual, synopsis=("ID [OPTIONS]",), examples=EXAMPLES)
@transfer_argument()
@metrics_option
@deadline_options("as before")
@format_options()
@global_options
@click.pass_obj
def command(
    settings: Settings,
    /,
    *,
    id: str,
    metrics: str,
    format_: str | None,
    columns: tuple[str, ...],
    **options: Any,
) -> None:
    """Go on with a transfer that stopped.

    After an error, a Ctrl-C, a killed process or a power cut. Steps that have a receipt are not
    done again; the one that was interrupted first looks for what it left behind. A deadline that
    was too short is replaced by the one that is given here.
    """
    from volferry import operations  # noqa: PLC0415 - loads the clouds' libraries

    with settings.open_store() as store:
        transfer = store.transfer(id).id
        carry.carry(
            settings,
            store,
            lambda hears: operations.resume(
                transfer, store, listen=hears, deadlines=deadlines(options)
            ),
            id=transfer,
            form=format_,
            only=columns,
            metrics=metrics,
        )
