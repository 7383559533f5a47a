"""``volferry status``: where transfers stand."""

import click

from volferry.cli.help import Manual
from volferry.cli.list import COLUMNS, rows
from volferry.cli.options import global_options, transfer_argument
from volferry.cli.output import format_options, say, show, show_record, show_rows
from volferry.cli.settings import Settings
from volferry.report import story, summary
from volferry.report.lines import Line, progress
from volferry.store import ENDED, Store

EXAMPLES = (
    ("volferry status", "the transfers that have not ended; one alone with all its figures"),
    ("volferry status tr-web-03-k4q7 -f value -c state", "for a script"),
)


@click.command("status", cls=Manual, synopsis=("[ID] [OPTIONS]",), examples=EXAMPLES)
@transfer_argument(required=False)
@format_options()
@global_options
@click.pass_obj
def command(
    settings: Settings, id: str | None, format_: str | None, columns: tuple[str, ...]
) -> None:
    """Show where a transfer stands and what can be done with it.

    ID may be the beginning of an id. Without one, the transfers that have not ended are shown. The
    journal is read and nothing else: neither cloud nor guest is asked.
    """
    with settings.open_store() as store:
        if id:
            _one(store, id, format_, columns)
            return
        under_way = [one for one in store.transfers() if one.state not in ENDED]
        if format_ or columns:
            show_rows(rows(store, under_way), COLUMNS, format_ or "table", columns)
        elif len(under_way) == 1:
            _one(store, under_way[0].id, None, ())
        elif under_way:
            show_rows(rows(store, under_way), COLUMNS, "table", ())
        else:
            say([Line("no transfer is under way; volferry list   shows those that ended")])


def _one(store: Store, id: str, form: str | None, only: tuple[str, ...]) -> None:
    report = story.read(store, id)
    pid, last = store.running(report.id), store.progress(report.id)
    if form or only:
        record = {
            **report.model_dump(mode="json"),
            "carried_by": pid,
            "progress": last.model_dump(mode="json") if last and pid else None,
        }
        show_record(record, form or "table", only)
    else:
        show(summary.status_lines(report, progress(last) if last else "", pid))
