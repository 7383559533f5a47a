"""``volferry completion``: what a shell has to load."""

import click
from click.shell_completion import get_completion_class

from volferry.cli.help import Manual
from volferry.cli.options import global_options

EXAMPLES = (
    ('eval "$(volferry completion bash)"', "in ~/.bashrc"),
    ('eval "$(volferry completion zsh)"', "in ~/.zshrc"),
    ("volferry completion fish > ~/.config/fish/completions/volferry.fish", "once"),
)


@click.command("completion", cls=Manual, synopsis=("bash|zsh|fish",), examples=EXAMPLES)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@global_options
@click.pass_context
def command(ctx: click.Context, shell: str) -> None:
    """Print the completion script of a shell.

    Verbs, options, their values, ids of transfers and names of clouds are completed.
    """
    found = get_completion_class(shell)
    assert found is not None
    root = ctx.find_root()
    print(found(root.command, {}, "volferry", "_VOLFERRY_COMPLETE").source())
