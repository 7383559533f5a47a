"""A plan as text: what would be done, what was checked, what it promises, what it would cost."""

from volferry.model import Check, Filesystem, Mount, Pair, Plan, Result, Seed, Unit
from volferry.report.lines import Line, Tone
from volferry.report.phases import PHASES
from volferry.report.words import aligned, counted, duration, parts, plain, rate, short, size

_TONES: dict[Result, Tone] = {
    Result.OK: "good",
    Result.WARNING: "warning",
    Result.REFUSAL: "bad",
}
_KEY = 12


def plan_lines(plan: Plan) -> list[Line]:
    """The whole plan, in the order in which a reviewer asks."""
    return [
        *_headline(plan),
        Line(""),
        *_what(plan),
        Line(""),
        Line("checks", "heading"),
        *check_lines(plan.checks),
        Line(""),
        Line("quota at the peak", "heading"),
        *_quota(plan),
        Line(""),
        Line("downtime", "heading"),
        *_downtime(plan),
        Line(""),
        Line("promises", "heading"),
        *_promises(plan),
    ]


def essentials(plan: Plan) -> list[Line]:
    """What somebody has to know before saying yes: for ``run`` on a terminal."""
    odd = [check for check in plan.checks if check.result is not Result.OK]
    return [*_what(plan), *_tally(plan), *check_lines(odd), *_downtime(plan)]


def check_lines(checks: tuple[Check, ...] | list[Check]) -> list[Line]:
    """A table of checks; the hint of what is not right stands below it."""
    width = max((len(plain(check.name)) for check in checks), default=0)
    lines = []
    for check in checks:
        text = f"{plain(check.name):<{width}}  {plain(check.found)}"
        lines.append(Line(text, _TONES[check.result], check.result.value))
        if check.hint and check.result is not Result.OK:
            lines += [
                Line(" " * (_KEY + width + 2) + "hint: " + plain(hint), "dim")
                for hint in check.hint.splitlines()
            ]
    return lines


def tally(plan: Plan) -> str:
    """``23 checks: 21 ok, 2 warnings, 0 refusals``."""
    of = {result: sum(c.result is result for c in plan.checks) for result in Result}
    return (
        f"{counted(len(plan.checks), 'check')}: {of[Result.OK]} ok,"
        f" {counted(of[Result.WARNING], 'warning')}, {counted(of[Result.REFUSAL], 'refusal')}"
    )


# ---- parts ---------------------------------------------------------------------------------------


def _key(name: str, text: str, tone: Tone = "") -> Line:
    return Line(f"  {name:<{_KEY - 2}}{text}", tone)


def _headline(plan: Plan) -> list[Line]:
    verb = "would move" if not plan.refusals else "cannot move"
    text = (
        f"volferry {verb} volume {plain(plan.cloud.label)} of server"
        f" {plain(plan.cloud.server.name)} to a new volume of type {_types(plan)}"
    )
    return [Line(text, "heading"), Line(f"  {tally(plan)}; nothing was changed")]


def _tally(plan: Plan) -> list[Line]:
    return [_key("checks", tally(plan))]


def _what(plan: Plan) -> list[Line]:
    guest, server = plan.guest, plan.cloud.server
    system = guest.os_name or guest.family
    kernel = f"kernel {guest.kernel}" if guest.kernel else ""
    lines = [
        _key("server", _words(plain(server.name), server.id, server.status)),
        _key("guest", _words(plain(system), plain(kernel))),
    ]
    for pair in plan.pairs:
        lines += _pair(pair, [fs for fs in guest.filesystems if fs.volume_id == pair.source.id])
    lines += _filesystems([fs for fs in guest.filesystems if not fs.volume_id])
    lines += [_key("", plain(other)) for other in guest.other_content]
    lines.append(_key("method", plain(plan.method) or "none fits"))
    lines += [
        _key("", f"not {plain(choice.name)}: {plain(choice.declines)}")
        for choice in plan.methods
        if choice.declines
    ]
    lines += _services(plan)
    lines.append(_key("cutover", _gate(plan)))
    return lines


def _pair(pair: Pair, filesystems: list[Filesystem]) -> list[Line]:
    source, bulk = pair.source, f"{pair.target_size_gib} GiB"
    seed = "filled from a snapshot" if pair.seed is Seed.SNAPSHOT else "blank"
    origin = _words(_name(source.name), source.id, f"{source.size_gib} GiB", plain(source.type))
    return [
        _key("source", origin),
        *_filesystems(filesystems),
        _key("target", _words(_name(pair.target_name), bulk, plain(pair.target_type), seed)),
    ]


def _filesystems(filesystems: list[Filesystem]) -> list[Line]:
    lines = []
    for filesystem in filesystems:
        lines.append(_key("", _filesystem(filesystem)))
        lines += [_key("", f"  {_mount(mount)}") for mount in filesystem.mounts]
    return lines


def _types(plan: Plan) -> str:
    return ", ".join(dict.fromkeys(plain(pair.target_type) for pair in plan.pairs))


def _name(name: str) -> str:
    return plain(name) or "(no name)"


def _filesystem(one: Filesystem) -> str:
    used = f"{size(one.used_bytes)} of {size(one.size_bytes)} used" if one.size_bytes else ""
    inodes = counted(one.inodes_used, "inode") if one.inodes_used else ""
    label = f"label {plain(one.label)}" if one.label else ""
    return _words(
        plain(one.device), plain(one.fstype), f"uuid {plain(one.uuid)}", label, used, inodes
    )


def _mount(one: Mount) -> str:
    by = f"{one.by.value} line {one.fstab_line}" if one.fstab_line else f"by {one.by.value}"
    inside = f"{plain(one.root)} of it" if one.root not in ("/", "") else ""
    return _words(f"on {plain(one.target)}", inside, f"({by})", plain(one.options))


def _services(plan: Plan) -> list[Line]:
    lines = [
        _key("units" if index == 0 else "", _unit(unit)) for index, unit in enumerate(plan.units)
    ]
    wanted = plan.wanted
    lines += [_key("stop", plain(command)) for command in wanted.stop]
    lines += [_key("start", plain(command)) for command in wanted.start]
    if not lines:
        lines.append(_key("units", "none: nothing is stopped at the cutover"))
    chosen = {unit.name for unit in plan.units}
    for holder in plan.guest.holders:
        if holder.unit in chosen:
            continue
        where = _words(
            f"pid {holder.pid}" if holder.pid else "",
            holder.unit and "of " + plain(holder.unit),
            holder.container and "in container " + plain(holder.container),
            plain(holder.path),
        )
        lines.append(
            _key("in use", _words(f"by {holder.kind} {plain(holder.name)}", where), "warning")
        )
    return lines


def _unit(unit: Unit) -> str:
    if unit.stop_s is None and unit.start_s is None:
        return f"{plain(unit.name)}: stop and start not measured yet"
    return (
        f"{plain(unit.name)}: last stop took {duration(unit.stop_s)},"
        f" last start {duration(unit.start_s)}"
    )


def _gate(plan: Plan) -> str:
    wanted = plan.wanted
    when = {
        "auto": "by itself, when the prediction fits",
        "manual": "when 'volferry cutover' says so and the prediction fits",
    }.get(wanted.cutover, f"at {plain(wanted.cutover)}, when the prediction fits")
    after = "then holds" if wanted.hold else f"then watches for {duration(wanted.settle_s)}"
    limit = f"; at most {rate(wanted.bwlimit_bytes_s)}" if wanted.bwlimit_bytes_s else ""
    return f"{when} --max-downtime {duration(wanted.max_downtime_s)}; {after}{limit}"


def _quota(plan: Plan) -> list[Line]:
    if not plan.quota_peak:
        return [Line("  nothing")]
    quota = plan.cloud.quota
    rows = []
    for name, more in sorted(plan.quota_peak.items()):
        used = quota.used.get(name) if quota else None
        limit = quota.limits.get(name) if quota else None
        have = "in use not known" if used is None else f"{used} in use"
        bound = (
            "limit not known" if limit is None else "no limit" if limit < 0 else f"limit {limit}"
        )
        rows.append((plain(name), f"+{more}", have, bound))
    lines = [Line(f"  {text}") for text in aligned(rows, right=frozenset({1, 2}))]
    if plan.cloud.quota_error:
        lines.append(Line(f"  {plain(plan.cloud.quota_error)}", "warning"))
    return lines


def _downtime(plan: Plan) -> list[Line]:
    prediction = plan.prediction
    if prediction is None:
        return [_key("predicted", "not measured: no method fits", "warning")]
    fits = prediction.total_s <= plan.wanted.max_downtime_s
    budget = f"--max-downtime {duration(plan.wanted.max_downtime_s)}"
    verdict = f"fits {budget}" if fits else f"does not fit {budget} yet"
    lines = [
        _key("predicted", f"{duration(prediction.total_s)}, {verdict}", "" if fits else "warning")
    ]
    if prediction.parts:
        lines.append(_key("", parts(prediction.parts)))
    if prediction.basis:
        lines.append(_key("", f"from: {plain(prediction.basis)}"))
    return lines


def _promises(plan: Plan) -> list[Line]:
    lines: list[Line] = []
    last = ""
    for promise in plan.promises:
        if promise.phase != last:
            known = promise.phase in PHASES
            place = f"{PHASES.index(promise.phase) + 1} " if known else ""
            lines.append(Line(f"  {place}{plain(promise.phase)}"))
            last = promise.phase
        lines.append(Line(f"    {plain(promise.text)}"))
        if promise.way_back:
            lines.append(Line(f"      way back: {plain(promise.way_back)}", "dim"))
    return lines


def _words(*texts: str) -> str:
    return "  ".join(text for text in texts if text)


def one_line(plan: Plan) -> str:
    """``sourcevol (300e778a) 50 GiB cbs-standard -> cbs-premium in testsrv, by rsync``."""
    moves = "; ".join(
        f"{_name(pair.source.name)} ({short(pair.source.id)}) {pair.source.size_gib} GiB"
        f" {plain(pair.source.type)} -> {pair.target_size_gib} GiB {plain(pair.target_type)}"
        for pair in plan.pairs
    )
    return f"{moves} in {plain(plan.cloud.server.name)}, by {plain(plan.method) or 'no method'}"
