"""``volferry report``: what was measured, as text, data or a page."""

import os
import tempfile
from pathlib import Path

import click

from volferry import errors
from volferry.cli.help import Manual, grouped
from volferry.cli.options import global_options, transfer_argument
from volferry.cli.output import format_options, say, show, show_record
from volferry.cli.settings import Settings
from volferry.report import page, story, summary
from volferry.report.lines import Line

EXAMPLES = (
    ("volferry report tr-web-03-k4q7", "as text"),
    ("volferry report tr-web-03-k4q7 --html report.html", "one page, for the change record"),
    ("volferry report tr-web-03-k4q7 -f json | jq .cutover.downtime_s", "one figure"),
)


@click.command("report", cls=Manual, synopsis=("ID [OPTIONS]",), examples=EXAMPLES)
@transfer_argument()
@grouped("Output", "--html", metavar="FILE", help="Write one self-contained page.")
@format_options()
@global_options
@click.pass_obj
def command(
    settings: Settings, id: str, html: str | None, format_: str | None, columns: tuple[str, ...]
) -> None:
    """Report what was measured and verified.

    Downtime and its parts, passes, what was read back from both sides and compared, the volumes,
    what was removed, what remains to be done by hand. What was not measured is called so.

    The page of --html loads nothing from elsewhere, and only its owner may read it.
    """
    with settings.open_store() as store:
        report = story.read(store, id)
    if html:
        write(Path(html), page.render(report))
        say([Line(f"wrote {html}")])
        if not (format_ or columns):
            return
    if format_ or columns:
        show_record(report.model_dump(mode="json"), format_ or "table", columns)
    else:
        show(summary.summary_lines(report))


def write(path: Path, text: str) -> None:
    """Write a file whole or not at all; only its owner may read it. Raises ``Usage``."""
    half = None
    try:
        # A temporary file is 0600 from its beginning.
        with tempfile.NamedTemporaryFile(
            "w", dir=path.parent, prefix=f".{path.name}.", delete=False, encoding="utf-8"
        ) as file:
            half = Path(file.name)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        half.replace(path)
    except OSError as fault:
        if half is not None:
            half.unlink(missing_ok=True)
        raise errors.Usage(
            f"cannot write {path}: {fault.strerror}", data="nothing was changed"
        ) from fault
