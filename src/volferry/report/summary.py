"""A report as text: the end of ``run``, and ``volferry report``."""

import textwrap

from volferry.methods import method
from volferry.model import State
from volferry.report.lines import PASS_HEAD, Line, failure, pass_row
from volferry.report.story import Move, Report, VolumeEnd, source_state, verdict
from volferry.report.words import (
    NOT_MEASURED,
    aligned,
    counted,
    duration,
    number,
    parts,
    plain,
    size,
    when,
)

_KEY = 12
_PROSE = 84


def summary_lines(report: Report) -> list[Line]:
    """Everything that was measured about one transfer, most important first."""
    good = report.state in (State.DONE, State.ROLLED_BACK)
    lines = [Line(verdict(report), "good" if good else "warning"), Line("")]
    lines += _downtime(report)
    lines += _copied(report)
    lines += _verified(report)
    lines += _volumes(report)
    lines += _left(report)
    lines += _infrastructure(report)
    lines += _remaining(report)
    if report.error:
        lines += [
            Line(""),
            *failure(*(str(report.error.get(k) or "") for k in ("what", "data", "hint"))),
        ]
    return lines


def status_lines(report: Report, progress: str = "", carried_by: int | None = None) -> list[Line]:
    """Where a transfer stands now, and what can be done with it."""
    lines = [Line(verdict(report), "heading")]
    who = f"process {carried_by} of this machine" if carried_by else "no process of this machine"
    lines += [
        _key("transfer", plain(report.id)),
        _key("state", report.state.value + (f", step {plain(report.step)}" if report.step else "")),
        _key("carried by", who),
        _key("since", when(report.created_at)),
    ]
    if progress and carried_by:
        lines.append(_key("now", progress))
    if report.passes:
        lines += [Line(f"  {PASS_HEAD}", "dim"), Line(f"  {pass_row(report.passes[-1])}")]
    if report.cutover or report.predicted:
        lines += _downtime(report)
    lines += _volumes(report)
    if not carried_by and report.state in (State.RUNNING, State.ROLLING_BACK):
        again = "resume" if report.state is State.RUNNING else "rollback"
        lines.append(_key("next", f"volferry {again} {plain(report.id)}: nobody carries it"))
    else:
        lines += _remaining(report)
    if report.error:
        lines += failure(*(str(report.error.get(k) or "") for k in ("what", "data", "hint")))
    return lines


# ---- parts ---------------------------------------------------------------------------------------


def _key(name: str, text: str) -> Line:
    return Line(f"{name:<{_KEY}}{text}")


def _prose(name: str, text: str) -> list[Line]:
    """A sentence, wrapped; what follows on lines of its own (a command) stays whole."""
    first, *rest = text.splitlines()
    wrapped = textwrap.wrap(plain(first), _PROSE, break_on_hyphens=False, break_long_words=False)
    texts = [*wrapped, *(f"  {plain(line)}" for line in rest)]
    return [_key(name if index == 0 else "", line) for index, line in enumerate(texts)]


def _downtime(report: Report) -> list[Line]:
    lines = []
    if report.cutover:
        done = report.cutover
        clock = (
            "guest's monotonic clock" if done.clock == "monotonic" else "wall clock: it restarted"
        )
        held = "within" if done.downtime_s <= report.max_downtime_s else "over"
        budget = f"{held} --max-downtime {duration(report.max_downtime_s)}"
        lines.append(_key("downtime", f"{duration(done.downtime_s)} ({clock}), {budget}"))
        if done.parts:
            lines.append(_key("", parts(done.parts)))
        if not done.settled:
            lines.append(_key("", "the services were not watched to the end of --settle"))
        if done.reason:
            lines += _prose("", f"the guest stayed on the target: {plain(done.reason)}")
    elif report.state is State.DONE:
        lines.append(_key("downtime", NOT_MEASURED))
    if report.predicted:
        basis = f" from {plain(report.predicted.basis)}" if report.predicted.basis else ""
        lines.append(_key("predicted", duration(report.predicted.total_s) + basis))
    for gone in report.reverted:
        why = plain(gone.reason) or "no reason given"
        lines.append(
            _key("reverted", f"{duration(gone.downtime_s)} down, back on the source: {why}")
        )
        if gone.was_live_s:
            lines += _prose(
                "",
                f"services had run on the target for {duration(gone.was_live_s)}: what they wrote "
                f"then {method(report.method).fate_of_late_writes()}",
            )
    return lines


def _copied(report: Report) -> list[Line]:
    if not report.passes:
        return []
    lines = [_key("passes", f"{len(report.passes)}, {totals(report)}")]
    lines.append(Line(f"  {PASS_HEAD}", "dim"))
    lines += [Line(f"  {pass_row(one)}") for one in report.passes]
    return lines


def totals(report: Report) -> str:
    pieces = counted(report.pieces_copied or 0, report.piece)
    return f"{size(report.bytes_copied)} in {pieces} copied"


def _verified(report: Report) -> list[Line]:
    lines = [
        line
        for index, text in enumerate(report.verified)
        for line in _prose("verified" if index == 0 else "", text)
    ]
    return lines + [line for text in report.not_verified for line in _prose("NOT", text)]


def _volumes(report: Report) -> list[Line]:
    rows = [
        row
        for move in report.moves
        for row in (
            _volume("old volume", move.source, source_state(move)),
            *([_volume("new volume", move.target, _mounted(report, move))] if move.target else []),
        )
    ]
    rows.append(
        (f"{'server':<{_KEY - 2}}", report.server_id, plain(report.server_name), "", "", "")
    )
    return [Line(text) for text in aligned(rows, right=frozenset({3}))]


def _mounted(report: Report, move: Move) -> str:
    return "on " + ", ".join(map(plain, move.mounts)) if report.cutover and move.mounts else ""


def _volume(key: str, one: VolumeEnd, state: str) -> tuple[str, ...]:
    gib = f"{one.size_gib} GiB" if one.size_gib else ""
    return (f"{key:<{_KEY - 2}}", one.id, plain(one.name), gib, plain(one.type), state)


def _left(report: Report) -> list[Line]:
    lines = []
    if report.snapshot_deleted is not None:
        what = "deleted" if report.snapshot_deleted else "kept"
        lines += [
            _key("snapshot", f"{move.snapshot_id} {what}")
            for move in report.moves
            if move.snapshot_id
        ]
    if report.fstab_changes:
        lines += [_key("fstab", plain(change)) for change in report.fstab_changes]
    if report.api_calls is not None:
        lines.append(_key("API calls", number(report.api_calls)))
    if report.elapsed_s is not None:
        lines.append(_key("took", duration(report.elapsed_s)))
    return lines


def _infrastructure(report: Report) -> list[Line]:
    if not report.infrastructure:
        return []
    return [
        Line(""),
        Line("with Terraform (OpenTofu: 'tofu' in place of 'terraform'; NAME is yours)", "dim"),
        *(Line(f"  {plain(text)}") for text in report.infrastructure),
        Line("and in the configuration of the volume", "dim"),
        *(Line(f"  {plain(text)}") for text in report.configuration),
    ]


def _remaining(report: Report) -> list[Line]:
    lines = [Line("")]
    if report.remaining:
        lines += [
            _key("remaining" if index == 0 else "", plain(text))
            for index, text in enumerate(report.remaining)
        ]
    else:
        lines.append(_key("remaining", "nothing"))
    return lines + [line for text in report.notes for line in _prose("note", text)]
