"""Help like a manual page: synopsis, description, options by what they are about, examples,
exit codes, files, environment. Printed by ``--help``; nothing heavy is imported for it.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

WIDEST = 100

EXIT_CODES = (
    ("0", "done; also: held at the point that was asked for"),
    ("1", "failed or stopped; nothing is lost and the transfer can be resumed, or refused"),
    ("2", "the command line, a name or a plan file is wrong; nothing was changed"),
    ("3", "going on needs a consent that was not given"),
    ("4", "some of several transfers failed"),
    ("130", "left at once by a second Ctrl-C; the guest keeps its promises"),
)
FILES = (
    ("~/.local/state/volferry/", "the journal of all transfers (--state, VOLFERRY_STATE)"),
    ("clouds.yaml", "clouds and how to authenticate; looked for as every OpenStack client does"),
    ("~/.ssh/config", "how guests are reached; read by the ssh program itself"),
)
ENVIRONMENT = (
    ("OS_CLOUD, OS_*", "as for the OpenStack client; see clouds.yaml"),
    ("OS_CLIENT_CONFIG_FILE", "another clouds.yaml"),
    ("VOLFERRY_STATE", "another state directory"),
    ("NO_COLOR", "no colours; without a terminal there are none anyway"),
)


class GroupedOption(click.Option):
    """An option that knows under which heading of the help it stands."""

    def __init__(self, *args: Any, heading: str = "Options", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.heading = heading


def grouped(heading: str, *names: str, **kwargs: Any) -> Callable[[F], F]:
    """``click.option`` with a heading."""
    return click.option(*names, cls=GroupedOption, heading=heading, **kwargs)


class Manual(click.Command):
    """A verb whose ``--help`` reads like a page of the manual."""

    def __init__(
        self,
        *args: Any,
        synopsis: Sequence[str] = (),
        examples: Sequence[tuple[str, str]] = (),
        **kwargs: Any,
    ) -> None:
        kwargs["context_settings"] = {"max_content_width": WIDEST} | kwargs.get(
            "context_settings", {}
        )
        super().__init__(*args, **kwargs)
        self.synopsis = synopsis
        self.examples = examples

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        first, _, rest = inspect.cleandoc(self.help or "").partition("\n\n")
        formatter.write(f"{ctx.command_path} - {_flat(first)}\n")
        section(formatter, "synopsis")
        for line in self.synopsis or (self._usage(ctx),):
            formatter.write(f"  {ctx.command_path} {line}".rstrip() + "\n")
        if rest:
            section(formatter, "description")
            paragraphs(formatter, rest)
        self._options(ctx, formatter)
        if self.examples:
            section(formatter, "examples")
            for command, meaning in self.examples:
                formatter.write(f"  {command}\n      {meaning}\n")
        closing(formatter)

    def _usage(self, ctx: click.Context) -> str:
        return " ".join(self.collect_usage_pieces(ctx))

    def _options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        headings: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if isinstance(parameter, click.Option) and record:
                heading = getattr(parameter, "heading", "Other options")
                headings.setdefault(heading, []).append(record)
        for last in ("Output", "Global options", "Other options"):
            if last in headings:
                headings[last] = headings.pop(last)
        for heading, records in headings.items():
            section(formatter, heading)
            records_of(formatter, records)


def section(formatter: click.HelpFormatter, name: str) -> None:
    formatter.write(f"\n{name.upper()}\n")


def paragraphs(formatter: click.HelpFormatter, text: str) -> None:
    formatter.indent()
    for index, paragraph in enumerate(text.split("\n\n")):
        if index:
            formatter.write("\n")
        formatter.write_text(_flat(paragraph))
    formatter.dedent()


def records_of(formatter: click.HelpFormatter, records: Sequence[tuple[str, str]]) -> None:
    formatter.indent()
    formatter.write_dl(records, col_max=30)
    formatter.dedent()


def closing(formatter: click.HelpFormatter) -> None:
    """The sections that are the same on every page."""
    for name, records in (
        ("exit codes", EXIT_CODES),
        ("files", FILES),
        ("environment", ENVIRONMENT),
    ):
        section(formatter, name)
        records_of(formatter, records)


def _flat(text: str) -> str:
    return " ".join(text.split())
