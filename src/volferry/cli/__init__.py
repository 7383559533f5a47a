"""The command line, one verb per file. ``main`` is the program.

``group`` finds the verbs and prints errors, ``options`` and ``values`` read what was typed,
``output`` knows the formats, ``listen`` shows a running transfer and ``carry`` runs one under
Ctrl-C. Words for people are made in ``volferry.report``.
"""

import sys

import click

from volferry.cli.group import CONTEXT, Program
from volferry.cli.options import global_options


@click.group(cls=Program, context_settings=CONTEXT)
@global_options
@click.version_option(package_name="volferry", message="%(prog)s %(version)s")
def program() -> None:
    """Moves the data of an attached volume to a new one, which may have another type or size,
    while the service runs. Before anything is changed everything that could fail is checked and
    the downtime is predicted; the cutover itself is done by the guest, which takes it back on any
    failure. The source is never written to and never deleted. Nothing is called verified that was
    not read back from both sides and compared.
    """


def main() -> None:
    """Entry point of ``volferry``."""
    for stream in (sys.stdout, sys.stderr):
        # A name that the locale cannot show must not end the program.
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")
    program.main(prog_name="volferry")
