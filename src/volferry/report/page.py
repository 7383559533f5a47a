"""The report as one page: nothing is loaded from elsewhere, nothing in it can run.

Light and dark by the reader's own choice, and fit for print, because it ends up in change records.
Every text passes through ``html.escape``: names come from clouds and guests. A policy in the head
forbids scripts and loads even to a browser that was tricked.
"""

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from volferry.model import Outcome, Prediction, State
from volferry.report.lines import pass_cells
from volferry.report.story import Report, Span, VolumeEnd, source_state, verdict
from volferry.report.summary import totals
from volferry.report.words import NOT_MEASURED, duration, number, plain, size, when

PASS_HEADS = ("pass", "copied", "pieces", "deleted", "compared", "pieces", "changed", "took")

_STYLE = Path(__file__).with_name("page.css")
_PARTS = 8
"""Colours for the parts of a downtime; more parts begin again."""


def render(report: Report) -> str:
    """The whole page."""
    sections = (
        _downtime(report),
        _timeline(report),
        _verified(report),
        _passes(report),
        _volumes(report),
        _remaining(report),
        _infrastructure(report),
    )
    title = f"{report.id}: {verdict(report)}"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta http-equiv="Content-Security-Policy"'
        " content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{_text(title)}</title>\n<style>\n{_STYLE.read_text('utf-8')}</style>\n</head>\n"
        f"<body>\n<main>\n{_head(report)}\n{''.join(sections)}</main>\n{_foot(report)}\n"
        "</body>\n</html>\n"
    )


# ---- sections ------------------------------------------------------------------------------------


def _head(report: Report) -> str:
    tone = {
        State.DONE: "good",
        State.ROLLED_BACK: "good",
        State.STOPPED: "bad",
    }.get(report.state, "wait")
    figures: list[tuple[str, str]] = [
        ("downtime", duration(report.cutover.downtime_s) if report.cutover else NOT_MEASURED),
        ("copied", size(report.bytes_copied)),
        ("passes", str(len(report.passes))),
        ("took", duration(report.elapsed_s)),
    ]
    cards = "".join(
        f'<div class="figure"><b class="{"absent" if value == NOT_MEASURED else ""}">'
        f"{_text(value)}</b><span>{_text(name)}</span></div>"
        for name, value in figures
    )
    what = ", ".join(
        dict.fromkeys(
            f"{move.source.type} to {move.target.type}"
            if move.target and move.target.type != move.source.type
            else move.source.type
            for move in report.moves
        )
    )
    return (
        f'<header><p class="kind">volferry report</p>'
        f"<h1>{_text(report.label)} in {_text(report.server_name)}</h1>"
        f'<p class="sub"><span class="state {tone}">{_text(report.state.value)}</span> '
        f"{_text(what)}, {_text(report.id)}, begun {_text(when(report.created_at))}</p>"
        f'<div class="figures">{cards}</div>{_error(report)}</header>'
    )


def _error(report: Report) -> str:
    if not report.error:
        return ""
    keys = ("what", "data", "hint")
    texts = [str(report.error.get(key) or "") for key in keys]
    body = "".join(
        f'<p class="{key}">{_lines(text)}</p>'
        for key, text in zip(keys, texts, strict=True)
        if text
    )
    return f'<div class="error">{body}</div>'


def _downtime(report: Report) -> str:
    done, said = report.cutover, report.predicted
    if done is None and said is None and not report.reverted:
        return ""
    longest = max(
        [done.downtime_s if done else 0.0, said.total_s if said else 0.0, report.max_downtime_s]
        + [gone.downtime_s for gone in report.reverted]
    )
    names = list(dict.fromkeys([*(done.parts if done else ()), *(said.parts if said else ())]))
    rows = []
    if done:
        rows.append(_bar("measured", done.downtime_s, done.parts, names, longest))
    if said:
        rows.append(_bar("predicted", said.total_s, said.parts, names, longest))
    rows += [
        _bar("reverted", gone.downtime_s, gone.parts, names, longest) for gone in report.reverted
    ]
    rows.append(_bar("allowed", report.max_downtime_s, {}, names, longest))
    return _section("Downtime", "".join(rows) + _legend(names, done, said) + _clock(report))


def _bar(
    name: str, total: float, parts: dict[str, float], names: Sequence[str], longest: float
) -> str:
    """One bar; its length is to the scale of the longest one, its parts to each other."""
    share = 100 * total / longest if longest else 0
    pieces = "".join(
        f'<i class="p{names.index(part) % _PARTS}" style="flex-grow:{max(seconds, 0):.4f}"'
        f' title="{_text(part)} {_text(duration(seconds))}"></i>'
        for part, seconds in parts.items()
    )
    inner = pieces or '<i class="whole" style="flex-grow:1"></i>'
    return (
        f'<div class="bar {name}"><span class="name">{_text(name)}</span>'
        f'<span class="track"><span class="fill" style="width:{share:.2f}%">{inner}</span></span>'
        f'<span class="value">{_text(duration(total))}</span></div>'
    )


def _legend(names: Sequence[str], done: Outcome | None, said: Prediction | None) -> str:
    if not names:
        return ""
    rows = []
    for index, name in enumerate(names):
        measured = done.parts.get(name) if done else None
        expected = said.parts.get(name) if said else None
        rows.append(
            (
                f'<i class="dot p{index % _PARTS}"></i>{_text(name)}',
                _text(duration(measured)),
                _text(duration(expected)) if expected is not None else "-",
            )
        )
    return _table(("part", "measured", "predicted"), rows, "parts")


def _clock(report: Report) -> str:
    texts = []
    if report.cutover:
        clock = (
            "the guest's monotonic clock"
            if report.cutover.clock == "monotonic"
            else "the guest's wall clock, because it restarted in the middle"
        )
        texts.append(f"From the first service stopped to the last one started, by {clock}.")
        if not report.cutover.settled:
            texts.append("The services were not watched to the end of --settle.")
        if report.cutover.reason:
            texts.append(f"The guest stayed on the target: {report.cutover.reason}.")
    if report.predicted and report.predicted.basis:
        texts.append(f"Predicted from: {report.predicted.basis}.")
    texts += [
        f"Taken back by the guest after {duration(gone.downtime_s)}: {gone.reason or 'no reason'}."
        for gone in report.reverted
    ]
    return f'<p class="note">{" ".join(_text(text) for text in texts)}</p>' if texts else ""


def _timeline(report: Report) -> str:
    timed = [s for s in report.phases if s.started_at is not None and s.ended_at is not None]
    begin = min((s.started_at for s in timed if s.started_at), default=0.0)
    end = max((s.ended_at for s in timed if s.ended_at), default=0.0)
    whole = end - begin
    rows = [_span(index + 1, span, begin, whole) for index, span in enumerate(report.phases)]
    return _section("Phases", f'<div class="timeline">{"".join(rows)}</div>')


def _span(place: int, span: Span, begin: float, whole: float) -> str:
    mark = ""
    if span.started_at is not None and span.elapsed_s is not None and whole > 0:
        left = 100 * (span.started_at - begin) / whole
        mark = f'<i style="left:{left:.2f}%;width:{100 * span.elapsed_s / whole:.2f}%"></i>'
    elapsed = duration(span.elapsed_s) if span.elapsed_s is not None else ""
    state = span.state if span.state != "done" else ""
    kind = span.state.replace(" ", "-")
    return (
        f'<div class="span {kind}"><span class="name">{place} {_text(span.name)}</span>'
        f'<span class="track">{mark}</span>'
        f'<span class="value">{_text(elapsed or state)}'
        f"{f' <em>{_text(state)}</em>' if elapsed and state else ''}</span></div>"
    )


def _verified(report: Report) -> str:
    done = "".join(f"<li>{_text(text)}</li>" for text in report.verified)
    lacking = "".join(f"<li>{_text(text)}</li>" for text in report.not_verified)
    body = f'<ul class="verified">{done}</ul>' if done else ""
    if lacking:
        body += f'<h3>Not verified</h3><ul class="lacking">{lacking}</ul>'
    if not body:
        body = '<p class="note">Nothing was compared.</p>'
    return _section("Verified by reading both sides", body)


def _passes(report: Report) -> str:
    if not report.passes:
        return ""
    rows = [tuple(_text(cell) for cell in pass_cells(one)) for one in report.passes]
    total = f"{totals(report)}."
    return _section("Passes", _table(PASS_HEADS, rows, "passes") + f'<p class="note">{total}</p>')


def _volumes(report: Report) -> str:
    rows = []
    for move in report.moves:
        rows.append(_volume("old", move.source, source_state(move) or "-"))
        if move.target:
            mounted = ", ".join(move.mounts) if report.cutover else ""
            rows.append(_volume("new", move.target, f"on {mounted}" if mounted else "-"))
    table = _table(("volume", "id", "name", "size", "type", "now"), rows, "volumes")
    facts = [("server", f"{plain(report.server_name)} {report.server_id}")]
    facts.append(("method", report.method or NOT_MEASURED))
    gone = {True: "deleted", False: "kept", None: "not decided yet"}[report.snapshot_deleted]
    facts += [("snapshot", f"{m.snapshot_id} {gone}") for m in report.moves if m.snapshot_id]
    facts += [("fstab", change) for change in report.fstab_changes]
    if report.api_calls is not None:
        facts.append(("API calls", number(report.api_calls)))
    listed = "".join(f"<dt>{_text(name)}</dt><dd>{_text(value)}</dd>" for name, value in facts)
    return _section("Volumes", f"{table}<dl>{listed}</dl>")


def _volume(which: str, one: VolumeEnd, now: str) -> tuple[str, ...]:
    gib = f"{one.size_gib} GiB" if one.size_gib else "-"
    cells = (which, one.id, one.name or "-", gib, one.type, now)
    return tuple(
        f"<code>{_text(cell)}</code>" if index == 1 else _text(cell)
        for index, cell in enumerate(cells)
    )


def _remaining(report: Report) -> str:
    if report.remaining:
        items = "".join(f"<li>{_text(text)}</li>" for text in report.remaining)
        body = f'<ul class="remaining">{items}</ul>'
    else:
        body = '<p class="nothing">Nothing.</p>'
    body += "".join(f'<p class="note">{_lines(text)}</p>' for text in report.notes)
    return _section("What remains to be done by hand", body)


def _infrastructure(report: Report) -> str:
    if not report.infrastructure:
        return ""
    commands = "\n".join(_text(text) for text in report.infrastructure)
    settings = "\n".join(_text(text) for text in report.configuration)
    return _section(
        "Terraform and OpenTofu",
        '<p class="note">The volume has a new id. NAME is yours; with OpenTofu write <code>tofu'
        f"</code> for <code>terraform</code>.</p><pre>{commands}</pre>"
        f'<p class="note">In the configuration of the volume:</p><pre>{settings}</pre>',
    )


def _foot(report: Report) -> str:
    ended = f", ended {when(report.ended_at)}" if report.ended_at else ""
    return (
        f"<footer>{_text(report.id)}, begun {_text(when(report.created_at))}{_text(ended)}."
        " Every figure was measured; what was not is called not measured.</footer>"
    )


# ---- below ---------------------------------------------------------------------------------------


def _section(title: str, body: str) -> str:
    return f"<section><h2>{_text(title)}</h2>\n{body}</section>\n"


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]], kind: str) -> str:
    """``rows`` are HTML already."""
    head = "".join(f"<th>{_text(name)}</th>" for name in heads)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return (
        f'<div class="scroll"><table class="{kind}"><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _text(text: object) -> str:
    return escape(plain(text))


def _lines(text: str) -> str:
    return "<br>".join(_text(line) for line in text.splitlines())
