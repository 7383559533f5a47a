"""Where words go: data to stdout in the formats of the OpenStack client, the rest to stderr."""

import contextlib
import difflib
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import click

from volferry import errors
from volferry.cli.help import grouped
from volferry.cli.settings import Settings, colourful
from volferry.report.lines import Line
from volferry.report.words import padded, plain, width

FORMATS = ("table", "json", "yaml", "value")

F = TypeVar("F", bound=Callable[..., Any])
Record = Mapping[str, Any]


def format_options(default: str = "") -> Callable[[F], F]:
    """``-f`` and ``-c``. Without ``-f`` and without a default the verb prints its own text."""
    otherwise = default or "text for people"

    def decorate(function: F) -> F:
        function = grouped(
            "Output",
            "-c",
            "--column",
            "columns",
            multiple=True,
            metavar="COLUMN",
            help="Only this column; repeatable.",
        )(function)
        return grouped(
            "Output",
            "-f",
            "--format",
            "format_",
            type=click.Choice(FORMATS),
            default=default or None,
            help=f"How to print the data on stdout. Default: {otherwise}.",
        )(function)

    return decorate


def say(lines: Iterable[Line], settings: Settings | None = None) -> None:
    """Text for people, on stderr. A stderr that is gone must not end a transfer."""
    ctx = click.get_current_context(silent=True)
    settings = settings or (ctx.find_object(Settings) if ctx else None) or Settings()
    if settings.log_format == "json":
        log(settings, lines)
        return
    colour = colourful(sys.stderr)
    with contextlib.suppress(OSError, ValueError):
        for line in lines:
            print(line.render(colour=colour), file=sys.stderr)
        sys.stderr.flush()


def log(settings: Settings, lines: Iterable[Line]) -> None:
    """The same words as records of a JSON log."""
    from volferry.report import records  # noqa: PLC0415 - help needs no model

    levels: dict[str, records.Level] = {"warning": "warning", "bad": "error"}
    for line in lines:
        if line.text.strip():
            grade = levels.get(line.tone, "info")
            facts = {"text": line.text.strip()}
            emit(records.of_word(grade, settings.transfer, settings.step, "word", facts))


def emit(record: str) -> None:
    """One line of a JSON log, on stderr."""
    with contextlib.suppress(OSError, ValueError):
        print(record, file=sys.stderr, flush=True)


def show(lines: Iterable[Line]) -> None:
    """The answer as text, on stdout."""
    colour = colourful(sys.stdout)
    for line in lines:
        print(line.render(colour=colour))


def show_rows(rows: Sequence[Record], names: Sequence[str], form: str, only: Sequence[str]) -> None:
    """Several records. ``names`` are the columns there are, in their order."""
    chosen = _choose(names, only)
    picked = [{name: row.get(name) for name in chosen} for row in rows]
    if form == "json":
        _json(picked)
    elif form == "yaml":
        _yaml(picked)
    elif form == "value":
        for row in picked:
            print(" ".join(_cell(row[name]) for name in chosen))
    else:
        _table(chosen, [[_cell(row[name]) for name in chosen] for row in picked])


def show_record(record: Record, form: str, only: Sequence[str]) -> None:
    """One record, as ``openstack … show`` does: fields become lines."""
    chosen = _choose(list(record), only)
    picked = {name: record[name] for name in chosen}
    if form == "json":
        _json(picked)
    elif form == "yaml":
        _yaml(picked)
    elif form == "value":
        for value in picked.values():
            print(_cell(value))
    else:
        _table(("Field", "Value"), [[name, _cell(value)] for name, value in picked.items()])


# ---- below ---------------------------------------------------------------------------------------


def _choose(names: Sequence[str], only: Sequence[str]) -> list[str]:
    """Columns in the order asked for; case, spaces and dashes do not matter."""
    known = {_folded(name): name for name in names}
    unknown = [name for name in only if _folded(name) not in known]
    if unknown:
        close = difflib.get_close_matches(_folded(unknown[0]), known, n=1)
        meant = f"; did you mean '{known[close[0]]}'?" if close else ""
        raise errors.Usage(
            f"there is no column '{unknown[0]}'{meant}",
            hint="columns: " + ", ".join(names),
        )
    return [known[_folded(name)] for name in only] if only else list(names)


def _folded(name: str) -> str:
    return name.lower().replace(" ", "_").replace("-", "_")


def _json(data: Any) -> None:
    print(json.dumps(data, indent=2, ensure_ascii=False))


def _yaml(data: Any) -> None:
    from ruamel.yaml import YAML  # noqa: PLC0415 - only here

    yaml = YAML()
    yaml.width = 10_000
    yaml.dump(data, sys.stdout)


def _cell(value: Any) -> str:
    if isinstance(value, str):
        return plain(value)
    if isinstance(value, dict | list | tuple):
        return json.dumps(value, ensure_ascii=False)
    return str(value)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    widths = [max(width(row[i]) for row in (head, *rows)) for i in range(len(head))]
    rule = "+" + "+".join("-" * (size + 2) for size in widths) + "+"
    print(rule)
    for index, row in enumerate((head, *rows)):
        cells = (padded(cell, size) for cell, size in zip(row, widths, strict=True))
        print("| " + " | ".join(cells) + " |")
        if index == 0:
            print(rule)
    if rows:
        print(rule)
