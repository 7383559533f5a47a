"""``volferry schema``: the JSON Schema of plan files."""

import json

import click

from volferry import planfile
from volferry.cli.help import Manual
from volferry.cli.options import global_options

EXAMPLES = (
    ("volferry schema > plan.schema.json", "for an editor or a check in a repository"),
    ("check-jsonschema --schemafile plan.schema.json plan.yaml", "such a check"),
)


@click.command("schema", cls=Manual, synopsis=("",), examples=EXAMPLES)
@global_options
def command() -> None:
    """Print the JSON Schema of plan files.

    It is made from the models that read the file, so it accepts what volferry accepts. Two things
    only the program can check: that a cutover time has a zone, and that the plan still fits the
    world.
    """
    print(json.dumps(planfile.schema(), indent=2, ensure_ascii=False))
