"""``volferry gc``: what ended transfers left behind; removes only what is surely ours."""

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from volferry import errors
from volferry.cli import carry, listen
from volferry.cli.help import Manual, grouped
from volferry.cli.options import cloud_of, global_options
from volferry.cli.output import format_options, say, show_rows
from volferry.cli.settings import Settings, is_terminal
from volferry.model import Wanted
from volferry.report.lines import Line, failure
from volferry.report.words import counted

if TYPE_CHECKING:
    from volferry.operations import Litter

COLUMNS = ("verdict", "kind", "id", "name", "where", "transfer", "why")

EXAMPLES = (
    ("volferry gc", "look, list, and ask before anything is removed"),
    ("volferry gc --yes", "remove without the question"),
    ("volferry gc -f json", "what there is, for a program; removes nothing"),
)


@click.command("gc", cls=Manual, synopsis=("[--yes] [OPTIONS]",), examples=EXAMPLES)
@grouped("Confirmation", "-y", "--yes", is_flag=True, help="Remove garbage without asking.")
@format_options("table")
@global_options
@click.pass_obj
def command(settings: Settings, yes: bool, format_: str, columns: tuple[str, ...]) -> None:
    """List what transfers left behind, and remove what is surely garbage.

    Garbage carries the mark of a transfer (in the metadata of a volume or snapshot, in the name of
    a file in the guest), is in this journal as made by that transfer, and that transfer has ended.
    What has only one of the two is listed and never touched: a mark is copied along with metadata,
    and a journal may be of another machine. What a running, held or stopped transfer needs is no
    garbage.

    Asks every cloud and every server that the journal names, or the cloud of --os-cloud and the
    servers in it. Without a terminal and without --yes nothing is removed. Exit code 4 when a cloud
    or a server could not be asked, or something could not be removed.
    """
    from volferry import operations  # noqa: PLC0415 - loads the clouds' libraries

    hears = listen.make(settings)
    cloud, region = cloud_of(settings)
    wanted = Wanted(os_cloud=cloud, os_region=region, server="-", volumes=("-",))
    with settings.open_store() as store:
        litter = carry.run(
            hears, lambda: operations.leftovers(store, wanted, notice=hears.notice), plans=True
        )
        rows = [one.model_dump(mode="json") for one in litter.found]
        if rows or format_ != "table":
            show_rows(rows, COLUMNS, format_, columns)
        _sum_up(litter)
        failed = []
        if litter.garbage and _agreed(litter, yes):
            failed = carry.run(
                hears,
                lambda: operations.remove(
                    store,
                    litter,
                    tell=lambda one: say([Line(f"{one.kind} {one.id}", "good", "removed")]),
                ),
            )
    for error in dict.fromkeys(failed):
        say(failure(error.what, error.data, error.hint))
    if failed or litter.unseen:
        raise errors.SomeFailed(
            "; ".join(_shortfalls(litter, len(failed))),
            data="whatever was removed is in 'volferry logs' of its transfer",
            hint="volferry gc   looks again",
        )


def _shortfalls(litter: "Litter", failed: int) -> Iterator[str]:
    if litter.unseen:
        yield counted(len(litter.unseen), "place") + " could not be looked at"
    if failed:
        yield f"{failed} of {len(litter.garbage)} could not be removed"


def _sum_up(litter: "Litter") -> None:
    for where, error in litter.unseen:
        say(failure(f"{where}: {error.what}", error.data, error.hint, label="unseen"))
    others = len(litter.found) - len(litter.garbage)
    words = [counted(len(litter.garbage), "thing") + " to remove"]
    if others:
        words.append(f"{others} to be left alone")
    nothing = "nothing was found" if litter.unseen else "no transfer left anything behind"
    say([Line(", ".join(words) if litter.found else nothing)])


def _agreed(litter: "Litter", yes: bool) -> bool:
    if yes:
        return True
    if not (is_terminal(sys.stdin) and is_terminal(sys.stderr)):
        say([Line("volferry gc --yes   removes it")])
        return False
    what = counted(len(litter.garbage), "thing")
    if click.confirm(f"remove {what} called garbage above, for good?", default=False, err=True):
        return True
    raise errors.NeedsConsent("not removed: you did not say yes", data="nothing was changed")
