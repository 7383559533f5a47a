"""``volferry finish``: end a transfer that was held after its cutover."""

import click

from volferry.cli import carry
from volferry.cli.help import Manual
from volferry.cli.options import global_options, metrics_option, transfer_argument
from volferry.cli.output import format_options
from volferry.cli.settings import Settings

EXAMPLES = (("volferry finish tr-web-03-k4q7", "detach and protect the source, tidy up"),)


@click.command("finish", cls=Manual, synopsis=("ID [OPTIONS]",), examples=EXAMPLES)
@transfer_argument()
@metrics_option
@format_options()
@global_options
@click.pass_obj
def command(
    settings: Settings, id: str, metrics: str, format_: str | None, columns: tuple[str, ...]
) -> None:
    """End a transfer that was held after its cutover.

    Detaches the source, marks it read-only, deletes the snapshot and removes what was put into the
    guest. The source volume itself is never deleted. After this, going back is by hand; not to a
    source that was a standby (--keep-standby), whose hidden head and tail stay zero: it followed
    the target while the service ran, so it is no point in time, and nothing can mount it.

    It also ends a transfer whose server or source somebody deleted after the cutover was begun, and
    keeps every volume that is left.
    """
    from volferry import operations  # noqa: PLC0415 - loads the clouds' libraries

    with settings.open_store() as store:
        transfer = store.transfer(id).id
        carry.carry(
            settings,
            store,
            lambda hears: operations.finish(transfer, store, listen=hears),
            id=transfer,
            form=format_,
            only=columns,
            metrics=metrics,
        )
