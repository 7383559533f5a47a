"""``volferry support-bundle``: all that is known of a transfer, without secrets."""

import os
from pathlib import Path
from typing import Any

import click

from volferry import errors, scrub
from volferry.cli.help import Manual, grouped
from volferry.cli.options import cloud_files, global_options, transfer_argument
from volferry.cli.output import say
from volferry.cli.settings import Settings
from volferry.report import bundle
from volferry.report.lines import Line

EXAMPLES = (
    ("volferry support-bundle tr-web-03-k4q7", "writes tr-web-03-k4q7.tar.gz"),
    ("tar -xOzf tr-web-03-k4q7.tar.gz tr-web-03-k4q7/events.txt", "what happened, to read"),
)


@click.command("support-bundle", cls=Manual, synopsis=("ID [OPTIONS]",), examples=EXAMPLES)
@transfer_argument()
@grouped("Output", "--output", metavar="FILE", default="", help="Default: ID.tar.gz.")
@global_options
@click.pass_obj
def command(settings: Settings, id: str, output: str) -> None:
    """Write all that is known of a transfer into one archive, without secrets.

    The journal, what happened, the figures, the report, versions and file modes. Passwords, tokens,
    keys and the values of metadata are taken out; names and ids stay, so read it before you send
    it. Only its owner may read the archive. Neither cloud nor guest is asked.
    """
    with settings.open_store() as store:
        transfer = store.transfer(id).id
        path = Path(output or f"{transfer}.tar.gz")
        try:
            names = bundle.write(store, transfer, path, _secrets())
        except OSError as fault:
            raise errors.Usage(
                f"cannot write {path}: {fault.strerror}",
                data="nothing was written",
                hint="--output FILE names another place",
            ) from fault
    say([Line(f"wrote {path}: {', '.join(names)}; look into it before you send it")])


def _secrets() -> frozenset[str]:
    """What must not be in it, as far as this machine knows: variables and clouds.yaml."""
    from ruamel.yaml import YAML  # noqa: PLC0415 - only here

    found: list[Any] = []
    for place in cloud_files():
        for path in (place, place.with_name("secure.yaml")):
            try:
                found.append(YAML(typ="safe", pure=True).load(path))
            except Exception:  # noqa: BLE001, S112 - not there, or not ours to judge
                continue
    return scrub.known(os.environ, found)
