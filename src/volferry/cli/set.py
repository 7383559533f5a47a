"""``volferry set``: change how fast a transfer copies while it runs."""

import click

from volferry import errors
from volferry.cli import carry, listen
from volferry.cli.help import Manual, grouped
from volferry.cli.options import global_options, transfer_argument
from volferry.cli.output import say
from volferry.cli.settings import Settings
from volferry.cli.values import Rate
from volferry.report.lines import Line
from volferry.report.words import rate

EXAMPLES = (
    ("volferry set tr-web-03-k4q7 --bwlimit 50M", "at most 50 MiB/s from now on"),
    ("volferry set tr-web-03-k4q7 --no-bwlimit --pace 0.5", "half of a busy disk's time"),
)


@click.command(
    "set", cls=Manual, synopsis=("ID [--bwlimit RATE] [--pace PART]",), examples=EXAMPLES
)
@transfer_argument()
@grouped(
    "Copying",
    "--bwlimit",
    "bwlimit_bytes_s",
    metavar="RATE",
    type=Rate(),
    help="At most so many bytes per second; 50M is 50 MiB/s.",
)
@grouped("Copying", "--no-bwlimit", is_flag=True, help="As fast as the pace allows.")
@grouped(
    "Copying",
    "--pace",
    metavar="PART",
    type=click.FloatRange(0.01, 1.0),
    help="Part of the disks' time beside a service that writes all the time: 0.05 is 5 %.",
)
@global_options
@click.pass_obj
def command(
    settings: Settings,
    id: str,
    bwlimit_bytes_s: int | None,
    no_bwlimit: bool,
    pace: float | None,
) -> None:  # fmt: skip
    """Change how fast a transfer copies. The mirror in the guest takes it at once.

    The guest is told, whoever carries the transfer, and keeps it until the transfer ends.
    """
    from volferry import operations  # noqa: PLC0415 - loads the clouds' libraries

    if bwlimit_bytes_s and no_bwlimit:
        raise errors.Usage("--bwlimit and --no-bwlimit exclude each other")
    wanted: dict[str, float | int | None] = {}
    if bwlimit_bytes_s or no_bwlimit:
        wanted["bwlimit_bytes_s"] = bwlimit_bytes_s
    if pace is not None:
        wanted["pace"] = pace
    if not wanted:
        raise errors.Usage(
            "nothing to set",
            data="nothing was changed",
            hint="--bwlimit 50M, --no-bwlimit or --pace 0.2",
        )
    hears = listen.make(settings)
    with settings.open_store() as store:
        now = carry.run(hears, lambda: operations.set_pace(id, store, wanted))
    limit = f"at most {rate(now['bwlimit_bytes_s'])}" if now["bwlimit_bytes_s"] else "no limit"
    say([Line(f"the mirror copies with {limit}, pace {now['pace']:g}")], settings)
