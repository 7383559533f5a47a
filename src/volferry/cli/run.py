"""``volferry run``: carry out a plan, from a file or made now."""

import re
import sys
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from volferry import errors, planfile
from volferry.cli import carry, listen
from volferry.cli.help import Manual, grouped
from volferry.cli.options import (
    access,
    access_options,
    cloud_of,
    deadline_options,
    global_options,
    metrics_option,
    said,
    wanted,
    wanted_options,
)
from volferry.cli.output import format_options, say
from volferry.cli.plan import make, refuse
from volferry.cli.settings import Settings, is_terminal
from volferry.model import Plan
from volferry.report.lines import Line
from volferry.report.planned import essentials
from volferry.report.words import plain

EXAMPLES = (
    (
        "volferry run web-03 data --type cbs-premium --unit postgresql.service",
        "plan, ask once, move",
    ),
    ("volferry run web-03 data wal --units auto", "two volumes in one cutover, all or none"),
    ("volferry run plan.yaml", "carry out a reviewed plan; it is checked again first"),
    (
        "volferry run web-03 data --units auto --cutover 'at 02:00' --max-downtime 5s --yes",
        "copy now, cut over at night, and only if it takes at most 5 s",
    ),
    ("volferry run web-03 data --units auto --hold", "stop after the cutover, before 'finish'"),
)
_TIME = re.compile(r"(\d{4}-\d\d-\d\dT)?\d{1,2}:\d\d")
_OF_ACCESS = ("ssh", "ssh_config", "local")


def _files(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    return [CompletionItem(incomplete, type="file")]


@click.command(
    "run",
    cls=Manual,
    synopsis=("SERVER VOLUME [VOLUME…] [OPTIONS]", "PLAN.yaml [--yes]"),
    examples=EXAMPLES,
)
@click.argument("what", nargs=-1, metavar="SERVER VOLUME… | PLAN.yaml", shell_complete=_files)
@wanted_options
@deadline_options()
@access_options
@metrics_option
@grouped("Confirmation", "-y", "--yes", is_flag=True, help="Do not ask before it starts.")
@format_options()
@global_options
@click.pass_obj
def command(
    settings: Settings,
    /,
    *,
    what: tuple[str, ...],
    yes: bool,
    metrics: str,
    format_: str | None,
    columns: tuple[str, ...],
    **options: Any,
) -> None:
    """Carry out a plan, or plan and carry out.

    SERVER and VOLUME are names or ids; several volumes move together, in one cutover, all or none.
    Six phases: plan, seed, attach, sync, cutover, finish. Each promise is printed as it comes true,
    with its figures. On a terminal the plan's essentials are shown and one question is asked before
    anything is changed; a script is not asked.

    The copy runs beside the service. The cutover begins when the predicted downtime fits
    --max-downtime (or by 'volferry cutover'), is done by the guest alone, and is taken back by it
    on any failure. Then the units are watched for --settle, the source is detached and marked
    read-only, and what was put into guest and cloud is removed. The source is never written to.

    Ctrl-C stops at the next safe point, and 'volferry resume' goes on from there; Ctrl-C again
    leaves at once. Progress goes to stderr, the report at the end to stdout.
    """
    listener = listen.make(settings)
    plan = _plan(settings, what, options, listener)
    _consent(plan, yes)
    from volferry import operations  # noqa: PLC0415 - loads the clouds' libraries

    with settings.open_store() as store:
        carry.carry(
            settings,
            store,
            lambda hears: operations.run(plan, store, listen=hears),
            form=format_,
            only=columns,
            listener=listener,
            metrics=metrics,
        )


def _plan(
    settings: Settings, what: tuple[str, ...], options: dict[str, Any], listener: listen.Listener
) -> Plan:
    if len(what) == 1:
        plan = _from_file(settings, what[0], options)
        listener.begin("plan")
        listener.tell(essentials(plan))
        return plan
    if len(what) > 1 and not any(map(_TIME.match, what[2:])):
        wishes = wanted(settings, what[0], what[1:], options)
        listener.begin("plan")
        plan = make(settings, wishes, listener)
        listener.tell(essentials(plan))
        refuse(plan)
        checked = "every check that could fail later was made; nothing was changed"
        listener.tell([Line(checked, "good", "ok")])
        return plan
    if what:
        raise errors.Usage(
            f"'{next(filter(_TIME.match, what[2:]))}' is a time, not a volume",
            data="nothing was changed",
            hint="--cutover 'at 02:00' is one word",
        )
    raise errors.Usage(
        "run takes SERVER VOLUME… or a plan file, not 0 names",
        data="nothing was changed",
        hint="volferry run --help",
    )


def _from_file(settings: Settings, name: str, options: dict[str, Any]) -> Plan:
    """The plan of a file. What it says is not said again; how to get there may differ here."""
    if not Path(name).exists() and not name.endswith((".yaml", ".yml")):
        raise errors.Usage(
            f"there is no plan file '{name}', and a server needs its volume beside it",
            data="nothing was changed",
            hint="volferry run SERVER VOLUME",
        )
    double = sorted(set(said(options)) - set(_OF_ACCESS))
    if double:
        flag = "--" + double[0].removesuffix("_s").removesuffix("_bytes").replace("_", "-")
        raise errors.Usage(
            f"{flag} cannot be given together with a plan file",
            data="nothing was changed",
            hint=f"change 'wanted' in {name}, or make a new plan",
        )
    plan = planfile.load(Path(name))
    cloud, region = cloud_of(settings)
    changes: dict[str, Any] = {
        "os_cloud": cloud or plan.wanted.os_cloud,
        "os_region": region or plan.wanted.os_region,
    }
    if said(options):
        changes["access"] = access(options)
    # A file may have been edited: however young it is, it is checked again.
    return plan.model_copy(
        update={"wanted": plan.wanted.model_copy(update=changes), "made_at": 0.0}
    )


def _consent(plan: Plan, yes: bool) -> None:
    """Ask once, where there is somebody to ask."""
    if yes or not (is_terminal(sys.stdin) and is_terminal(sys.stderr)):
        return
    say([Line("")])
    try:
        agreed = click.confirm(f"move '{plain(plan.cloud.label)}' now?", default=False, err=True)
    except click.Abort:
        raise carry.Interrupted("interrupted", data="nothing was changed") from None
    if not agreed:
        raise errors.NeedsConsent(
            "not started: you did not say yes",
            data="nothing was changed",
            hint="--yes starts without the question",
        )
