"""The program itself: finds a verb, runs it, and turns whatever goes wrong into three lines.

Verbs are imported when they are called and not before, so that ``--help`` and a TAB are quick and
never load the cloud's libraries or the engine.
"""

import contextlib
import errno
import importlib
import os
import re
import sys
import traceback
from collections.abc import Sequence
from typing import Any

import click
from click.shell_completion import CompletionItem

from volferry import errors, scrub
from volferry.cli.help import WIDEST, closing, paragraphs, records_of, section
from volferry.cli.settings import Settings

VERBS = {
    "Plan and run": {
        "plan": "look everything up and check it; change nothing",
        "run": "carry out a plan, or plan and carry out",
    },
    "Follow": {
        "status": "where a transfer stands and what can be done",
        "watch": "follow a transfer that another process carries",
        "list": "all transfers",
        "logs": "what happened, event by event",
        "report": "what was measured and verified; also as a page",
    },
    "Decide": {
        "set": "change how fast a transfer copies",
        "cutover": "open the gate of a transfer that waits",
        "resume": "go on with a transfer that stopped",
        "rollback": "take back what was made",
        "finish": "end a transfer that was held after its cutover",
    },
    "Tools": {
        "schema": "the JSON Schema of plan files",
        "gc": "what ended transfers left behind; removes only what is surely ours",
        "support-bundle": "all that is known of a transfer, without secrets",
        "completion": "completion for a shell",
    },
}
EXAMPLES = (
    ("volferry plan web-03 data --type cbs-premium", "every check, the predicted downtime"),
    (
        "volferry run web-03 data --type cbs-premium --unit postgresql.service",
        "the same, and then do it",
    ),
    ("volferry report tr-web-03-k4q7 --html report.html", "a page for the change record"),
)
_BUG_HINT = "--debug shows the stack; please report it\nvolferry list   shows what is under way"


class Program(click.Group):
    """``volferry``."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [verb for verbs in VERBS.values() for verb in verbs]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.list_commands(ctx):
            return None
        module = importlib.import_module(f"volferry.cli.{cmd_name.replace('-', '_')}")
        command: click.Command = module.command
        return command

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        verbs = [(verb, about) for some in VERBS.values() for verb, about in some.items()]
        named = [CompletionItem(v, help=about) for v, about in verbs if v.startswith(incomplete)]
        return named + click.Command.shell_complete(self, ctx, incomplete)

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write(
            "volferry - move a live data volume to another OpenStack volume,"
            " with seconds of downtime\n"
        )
        section(formatter, "synopsis")
        formatter.write("  volferry [GLOBAL OPTIONS] VERB [OPTIONS] ...\n")
        section(formatter, "description")
        paragraphs(formatter, self.help or "")
        for heading, verbs in VERBS.items():
            section(formatter, heading)
            records_of(formatter, list(verbs.items()))
        section(formatter, "global options")
        records = [
            record
            for parameter in self.get_params(ctx)
            if isinstance(parameter, click.Option) and (record := parameter.get_help_record(ctx))
        ]
        records_of(formatter, records)
        section(formatter, "examples")
        for command, meaning in EXAMPLES:
            formatter.write(f"  {command}\n      {meaning}\n")
        closing(formatter)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError as fault:  # click would end the process with exit code 1
            raise _ReaderLeft from fault

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        settings = Settings()
        extra.setdefault("obj", settings)
        try:
            code = super().main(args, prog_name, complete_var, standalone_mode=False, **extra)
            sys.stdout.flush()
        except (KeyboardInterrupt, click.Abort):
            code = 130
        except _ReaderLeft:
            code = _broken_pipe()
        except OSError as fault:
            code = _broken_pipe() if fault.errno == errno.EPIPE else _fail(fault, settings)
        except Exception as fault:  # noqa: BLE001 - the last one who can say it in words
            code = _fail(fault, settings)
        if settings.hurry:
            with contextlib.suppress(OSError, ValueError):
                sys.stdout.flush()
            os._exit(code if isinstance(code, int) else 0)
        if not standalone_mode:
            return code
        sys.exit(code if isinstance(code, int) else 0)


class _ReaderLeft(Exception):
    """Whoever read our output has read enough."""


def _broken_pipe() -> int:
    """The exit code; without this Python complains once more while it exits."""
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, sys.stdout.fileno())
    return 128 + 13


def _fail(fault: Exception, settings: Settings) -> int:
    """Print an error in three lines; its exit code."""
    from volferry.cli.output import emit, say  # noqa: PLC0415 - help needs no model
    from volferry.report.lines import Line, failure  # noqa: PLC0415

    def tell(*said: str, label: str = "error") -> None:
        what, data, hint = map(scrub.exact, said)
        if settings.log_format != "json":
            say(failure(what, data, hint, label=label), settings)
            return
        from volferry.report import records  # noqa: PLC0415 - as above

        facts = {"kind": type(fault).__name__, "what": what, "data": data, "hint": hint}
        about = settings.transfer, settings.step
        emit(records.of_word("error", *about, label, facts))

    if settings.debug:
        trace = [scrub.text(block) for block in traceback.format_exception(fault)]
        said = [Line(text, "dim") for block in trace for text in block.rstrip().splitlines()]
        say(said, settings)
    if isinstance(fault, click.ClickException):
        what, hint = _usage(fault)
        tell(what, "nothing was changed", hint)
        return fault.exit_code
    if isinstance(fault, errors.VolferryError):
        label = "stopped" if isinstance(fault, errors.Paused) else "error"
        tell(fault.what, fault.data, fault.hint, label=label)
        return fault.exit_code
    what = f"unexpected {type(fault).__name__}: {fault}"
    tell(what, "what was done is in the journal and can be resumed", _BUG_HINT)
    return 1


def _usage(fault: click.ClickException) -> tuple[str, str]:
    """Click's words in ours: lower case, no full stop, what was meant, where to read."""
    if isinstance(fault, click.exceptions.NoSuchOption):
        what = f"there is no option '{fault.option_name}'"
    else:
        what = fault.format_message().strip()
        what = re.sub(r"^Invalid value for (.+?): ", r"\1: ", what)
        what = what[:1].lower() + what[1:]
    what = what.splitlines()[0].rstrip(".")
    possible = getattr(fault, "possibilities", None) or []
    hints = [f"did you mean {possible[0]}?"] if possible else []
    ctx = getattr(fault, "ctx", None)
    if ctx is not None:
        hints.append(f"{ctx.command_path} --help")
    return what, "\n".join(hints)


CONTEXT = {"max_content_width": WIDEST, "help_option_names": ["-h", "--help"]}
