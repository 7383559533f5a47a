"""``volferry plan``: look everything up, check it, promise; change nothing."""

from pathlib import Path
from typing import Any

import click

from volferry import errors, planfile
from volferry.channels import quote
from volferry.cli import carry, listen
from volferry.cli.help import Manual, grouped
from volferry.cli.options import (
    access_options,
    deadline_options,
    global_options,
    wanted,
    wanted_options,
)
from volferry.cli.output import format_options, say, show, show_record
from volferry.cli.settings import Settings
from volferry.cli.values import zone_note
from volferry.model import Plan, Wanted
from volferry.report.lines import Line
from volferry.report.planned import plan_lines

EXAMPLES = (
    ("volferry plan web-03 data --type cbs-premium", "what a change of type would take"),
    (
        "volferry plan web-03 data --type cbs-premium --units auto --save plan.yaml",
        "a file to review and keep; 'volferry run plan.yaml' carries it out",
    ),
    ("volferry plan web-03 data wal --units auto", "two volumes in one transfer"),
    ("volferry plan web-03 data -f json -c checks", "the checks, for a script"),
)


@click.command(
    "plan",
    cls=Manual,
    synopsis=("SERVER VOLUME [VOLUME…] [OPTIONS]",),
    examples=EXAMPLES,
)
@click.argument("server")
@click.argument("volumes", nargs=-1, required=True, metavar="VOLUME…")
@wanted_options
@deadline_options()
@access_options
@grouped("Output", "--save", metavar="FILE", help="Write the plan as YAML, for 'volferry run'.")
@format_options()
@global_options
@click.pass_obj
def command(
    settings: Settings,
    /,
    *,
    server: str,
    volumes: tuple[str, ...],
    save: str | None,
    format_: str | None,
    columns: tuple[str, ...],
    **options: Any,
) -> None:
    """Look everything up and check it; change nothing.

    SERVER and VOLUME are names or ids; several volumes move together, in one cutover, all or none.
    Cloud and guest are asked for everything that could make the transfer fail later; each check is
    ok, a warning or a refusal, with its figures. Then come the quota that is needed at the peak,
    the predicted downtime and where it comes from, and what is promised at the end of each phase
    with the way back.

    With refusals the exit code is 1. --save writes the plan all the same, for whoever has to mend
    what it names.
    """
    wishes = wanted(settings, server, volumes, options)
    plan = make(settings, wishes, listen.make(settings))
    if format_ or columns:
        show_record(plan.model_dump(mode="json"), format_ or "table", columns)
    else:
        show(plan_lines(plan))
    if save:
        planfile.save(plan, Path(save))
        run = quote(["volferry", "run", save])
        say([Line(f"saved {save}; {run}   carries it out")])
    refuse(plan)


def make(settings: Settings, wishes: Wanted, listener: listen.Listener) -> Plan:
    """Ask ``operations`` for a plan, under Ctrl-C."""
    from volferry import operations  # noqa: PLC0415 - loads the clouds' libraries

    note = zone_note(wishes.cutover)
    if note:
        say([Line(note)])
    return carry.run(listener, lambda: operations.plan(wishes, notice=listener.notice), plans=True)


def refuse(plan: Plan) -> None:
    """Raise ``Refused`` when the plan was printed and has refusals: said once more, last."""
    refusals = plan.refusals
    if not refusals:
        return
    names = ", ".join(check.name for check in refusals)
    raise errors.Refused(
        f"volume '{plan.cloud.label}' cannot be moved: "
        f"{len(refusals)} {'refusal' if len(refusals) == 1 else 'refusals'} ({names})",
        data="nothing was changed",
        hint="\n".join(check.hint for check in refusals if check.hint),
    )
