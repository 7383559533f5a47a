"""``volferry rollback``: take back what was made."""

from typing import Any

import click

from volferry.cli import carry
from volferry.cli.help import Manual, grouped
from volferry.cli.options import (
    deadline_options,
    deadlines,
    global_options,
    metrics_option,
    transfer_argument,
)
from volferry.cli.output import format_options
from volferry.cli.settings import Settings
from volferry.cli.values import Duration

EXAMPLES = (
    ("volferry rollback tr-web-03-k4q7", "before the cutover: nothing is lost"),
    (
        "volferry rollback tr-web-03-k4q7 --accept-loss",
        "after the cutover: what was written since is lost",
    ),
)


@click.command("rollback", cls=Manual, synopsis=("ID [--accept-loss]",), examples=EXAMPLES)
@transfer_argument()
@metrics_option
@grouped(
    "Options",
    "--accept-loss",
    is_flag=True,
    help="Consent to losing what the question names: what the service wrote since the cutover, or"
    " the only copy of a source that somebody deleted.",
)
@deadline_options("as before")
@grouped(
    "Deadlines",
    "--handover-timeout",
    "handover_s",
    metavar="TIME",
    type=Duration(),
    default="1m",
    help="For a process that carries it to reach its next safe point. Default: 1m.",
)
@format_options()
@global_options
@click.pass_obj
def command(
    settings: Settings,
    /,
    *,
    id: str,
    accept_loss: bool,
    handover_s: float,
    metrics: str,
    format_: str | None,
    columns: tuple[str, ...],
    **options: Any,
) -> None:
    """Take back what was made, newest first.

    Before the cutover nothing is lost: the service runs on the source all the time, and only what
    carries the mark of this transfer is removed. After the cutover the service goes back to the
    source and what was written since would be lost: exit code 3 unless --accept-loss is given, or
    the old volume was kept current (--keep-standby).
    """
    from volferry import operations  # noqa: PLC0415 - loads the clouds' libraries

    with settings.open_store() as store:
        transfer = store.transfer(id).id
        carry.carry(
            settings,
            store,
            lambda hears: operations.rollback(
                transfer,
                store,
                accept_loss=accept_loss,
                listen=hears,
                handover_s=handover_s,
                deadlines=deadlines(options),
            ),
            id=transfer,
            form=format_,
            only=columns,
            metrics=metrics,
        )
