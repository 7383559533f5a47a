"""``volferry list``: all transfers, oldest first."""

from collections.abc import Iterable
from typing import Any

import click

from volferry.cli.help import Manual
from volferry.cli.options import global_options
from volferry.cli.output import format_options, show_rows
from volferry.cli.settings import Settings
from volferry.model import State, Transfer
from volferry.report.words import when
from volferry.store import Store

COLUMNS = (
    "id",
    "server",
    "volume",
    "type",
    "state",
    "step",
    "downtime_s",
    "created_at",
)
"""The same names in every format: what the head shows is what ``-c`` takes."""

EXAMPLES = (
    ("volferry list", "all of them"),
    ("volferry list -f json", "for a program"),
    ("volferry list -f value -c id -c state", "for a shell"),
)


@click.command("list", cls=Manual, synopsis=("[OPTIONS]",), examples=EXAMPLES)
@format_options("table")
@global_options
@click.pass_obj
def command(settings: Settings, format_: str, columns: tuple[str, ...]) -> None:
    """List all transfers, oldest first.

    The journal is read and nothing else: neither cloud nor guest is asked.
    """
    with settings.open_store() as store:
        show_rows(rows(store, store.transfers()), COLUMNS, format_, columns)


def rows(store: Store, transfers: Iterable[Transfer]) -> list[dict[str, Any]]:
    """The columns of each transfer. A transfer whose process died says so."""
    return [_row(store, one) for one in transfers]


def _row(store: Store, one: Transfer) -> dict[str, Any]:
    moves = dict.fromkeys((pair.source.type, pair.target_type) for pair in one.plan.pairs)
    busy = one.state in (State.RUNNING, State.ROLLING_BACK)
    dead = busy and store.running(one.id) is None
    outcome = store.receipts(one.id).get("cutover", {}).get("outcome", {})
    return {
        "id": one.id,
        "server": one.plan.cloud.server.name,
        "volume": one.plan.cloud.label,
        "type": ", ".join(old if old == new else f"{old} -> {new}" for old, new in moves),
        "state": f"{one.state.value} (nobody carries it)" if dead else one.state.value,
        "step": one.step,
        "downtime_s": outcome.get("downtime_s"),
        "created_at": when(one.created_at),
    }
