"""``volferry cutover``: open the gate of a transfer that waits."""

import click

from volferry.cli import carry
from volferry.cli.help import Manual, grouped
from volferry.cli.options import global_options, metrics_option, transfer_argument
from volferry.cli.output import format_options
from volferry.cli.settings import Settings

EXAMPLES = (
    ("volferry cutover tr-web-03-k4q7", "as soon as the prediction fits --max-downtime"),
    ("volferry cutover tr-web-03-k4q7 --now", "whatever is predicted"),
)


@click.command("cutover", cls=Manual, synopsis=("ID [--now]",), examples=EXAMPLES)
@transfer_argument()
@metrics_option
@grouped("Options", "--now", is_flag=True, help="Also when the prediction does not fit.")
@format_options()
@global_options
@click.pass_obj
def command(
    settings: Settings,
    /,
    *,
    id: str,
    now: bool,
    metrics: str,
    format_: str | None,
    columns: tuple[str, ...],
) -> None:
    """Open the gate of a transfer that waits for its cutover.

    For a transfer with --cutover manual, with a time that is not to be waited for, or, with --now,
    one whose predicted downtime does not fit its budget. When another process carries the transfer
    it is asked; otherwise it is carried here.
    """
    from volferry import operations  # noqa: PLC0415 - loads the clouds' libraries

    with settings.open_store() as store:
        transfer = store.transfer(id).id
        carry.carry(
            settings,
            store,
            lambda hears: operations.cutover(transfer, store, now=now, listen=hears),
            id=transfer,
            form=format_,
            only=columns,
            metrics=metrics,
        )
