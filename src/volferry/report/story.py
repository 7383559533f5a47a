"""One transfer as it can be proven from the journal: the facts under every form of the report.

``Report`` holds what was measured and nothing else. A field without a measurement is None or
empty, and the forms (text, JSON, page) say "not measured" for it; none of them computes facts of
its own, so no form can claim more than another. Statements about verification and about remaining
work are made here, from passes and receipts, and are part of the JSON as well.
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from pydantic import Field, ValidationError

from volferry.methods import method
from volferry.model import (
    Event,
    Json,
    MountBy,
    Noun,
    Outcome,
    Pair,
    Pass,
    Plan,
    Prediction,
    Receipt,
    State,
    Transfer,
)
from volferry.report import infra
from volferry.report.phases import PHASE_OF, PHASES, phase_of
from volferry.report.words import counted, duration, listed, plain, size, when
from volferry.steps.switch import heard

if TYPE_CHECKING:
    from volferry.store import Store


class VolumeEnd(Noun):
    """One of the two volumes of a pair; empty where nothing is known."""

    id: str = ""
    name: str = ""
    type: str = ""
    size_gib: int = 0


class Move(Noun):
    """What became of one source."""

    source: VolumeEnd
    target: VolumeEnd | None = None
    """None while none was made, or when it was removed again."""
    mounts: tuple[str, ...] = ()
    source_detached: bool | None = None
    source_read_only: bool | None = None
    source_deleted: bool = False
    """By somebody else, as was seen after the commit."""
    snapshot_id: str = ""


SpanState: TypeAlias = Literal["done", "under way", "stopped", "held", "not reached", "taken back"]


class Span(Noun):
    """A phase on the time line, seconds since the epoch."""

    name: str
    state: SpanState
    started_at: float | None = None
    ended_at: float | None = None

    @property
    def elapsed_s(self) -> float | None:
        if self.started_at is None or self.ended_at is None:
            return None
        return max(0.0, self.ended_at - self.started_at)


class Report(Noun):
    id: str
    state: State
    step: str = ""
    created_at: float
    ended_at: float | None = None
    server_id: str
    server_name: str
    method: str
    moves: tuple[Move, ...]
    """One for each volume, in the order in which they were named."""
    cutover: Outcome | None = None
    """The cutover that was committed."""
    side_unknown: bool = False
    """Of a transfer that has ended: the deleted server alone knew how its last switch had."""
    reverted: tuple[Outcome, ...] = ()
    """Cutovers that the guest took back; each had a downtime of its own."""
    predicted: Prediction | None = None
    max_downtime_s: float
    passes: tuple[Pass, ...] = ()
    """Live passes and, last, the final one of the cutover."""
    bytes_copied: int | None = None
    pieces_copied: int | None = None
    piece: str = "file"
    """What the passes count: files, or chunks of the disk."""
    verified: tuple[str, ...] = ()
    not_verified: tuple[str, ...] = ()
    phases: tuple[Span, ...] = ()
    snapshot_deleted: bool | None = None
    removed: tuple[str, ...] = ()
    left: tuple[str, ...] = ()
    fstab_changes: tuple[str, ...] = ()
    api_calls: int | None = None
    remaining: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    infrastructure: tuple[str, ...] = ()
    """Commands that put the new ids into the state of Terraform or OpenTofu."""
    configuration: tuple[str, ...] = ()
    """What the resource has to say in its configuration."""
    error: Json = Field(default_factory=dict)

    @property
    def elapsed_s(self) -> float | None:
        return None if self.ended_at is None else max(0.0, self.ended_at - self.created_at)

    @property
    def label(self) -> str:
        """The volumes, as people call them."""
        return ", ".join(move.source.name or move.source.id for move in self.moves)


def read(store: "Store", id: str) -> Report:
    """The report of one transfer, by id or by the beginning of one. Raises ``Usage``."""
    transfer = store.transfer(id)
    events = [numbered.event for numbered in store.events(transfer.id)]
    return tell(transfer, events, store.receipts(transfer.id), store.passes(transfer.id))


def tell(
    transfer: Transfer,
    events: Sequence[Event],
    receipts: dict[str, Receipt],
    passes: Sequence[Pass],
) -> Report:
    """The same, from what the store holds."""
    plan = transfer.plan
    outcomes = _outcomes(events)
    committed = _outcome(receipts.get("cutover", {}).get("outcome"))
    switch = heard(events)
    side_unknown = bool(
        receipts.get("detach", {}).get("server_deleted") and switch and not switch.live
    )
    final = committed.final_pass if committed else None
    live = [one for one in passes if not one.final]
    every = (*live, final) if final else (*passes,)
    moves = tuple(_move(plan, pair, receipts) for pair in plan.pairs)
    verified, not_verified = _verification(live, committed, final)
    ended = transfer.state is State.DONE
    moved = [
        (pair, move.target)
        for pair, move in zip(plan.pairs, moves, strict=True)
        if move.target and ended and not side_unknown
    ]
    tidy = receipts.get("tidy", {})
    return Report(
        id=transfer.id,
        state=transfer.state,
        step=transfer.step,
        created_at=transfer.created_at,
        ended_at=_ended_at(transfer, events),
        server_id=plan.cloud.server.id,
        server_name=plan.cloud.server.name,
        method=plan.method,
        moves=moves,
        cutover=committed,
        side_unknown=side_unknown,
        reverted=tuple(o for o in outcomes if o.result == "reverted"),
        predicted=_prediction(receipts),
        max_downtime_s=plan.wanted.max_downtime_s,
        passes=tuple(every),
        bytes_copied=sum(p.bytes_copied for p in every) if every else None,
        pieces_copied=sum(p.copied for p in every) if every else None,
        piece=every[0].piece if every else "file",
        verified=verified,
        not_verified=not_verified,
        phases=_spans(transfer, events, receipts),
        snapshot_deleted=tidy.get("snapshot_deleted"),
        removed=_texts(tidy.get("removed")),
        left=_texts(tidy.get("left")),
        fstab_changes=_texts(receipts.get("cutover", {}).get("fstab_changes")),
        api_calls=_api_calls(events),
        remaining=_remaining(transfer, receipts),
        notes=(*_noted(events), *_notes(transfer, receipts)),
        infrastructure=_of_each(
            [(pair, infra.commands(plan.cloud.server.id, target.id)) for pair, target in moved]
        ),
        configuration=_of_each(
            [
                (pair, infra.configuration(target.name, target.type, target.size_gib, pair.seed))
                for pair, target in moved
            ]
        ),
        error=transfer.error,
    )


# ---- parts ---------------------------------------------------------------------------------------


def _outcome(json: Any) -> Outcome | None:
    try:
        return Outcome.model_validate(json) if json else None
    except ValidationError:  # written by another version: then nothing is claimed from it
        return None


def _outcomes(events: Iterable[Event]) -> list[Outcome]:
    told = [_outcome(event.facts) for event in events if event.kind == "outcome"]
    return [outcome for outcome in told if outcome]


def _api_calls(events: Iterable[Event]) -> int | None:
    """Of all processes that carried it; those after the last receipt of a killed one are lost."""
    told = [event.facts["api_calls"] for event in events if "api_calls" in event.facts]
    return sum(told) if told else None


def _prediction(receipts: dict[str, Receipt]) -> Prediction | None:
    """What was predicted just before the cutover, else at the end of the passes."""
    for step in ("cutover", "sync"):
        said = receipts.get(step, {}).get("predicted")
        if said:
            try:
                return Prediction.model_validate(said)
            except ValidationError:
                continue
    return None


def _of(receipts: dict[str, Receipt], step: str, entries: str, pair: Pair) -> Json:
    """What a step's receipt says of one pair; nothing when it says nothing."""
    every = receipts.get(step, {}).get(entries, [])
    return next((one for one in every if one.get("source_id") == pair.source.id), {})


def _move(plan: Plan, pair: Pair, receipts: dict[str, Receipt]) -> Move:
    source = pair.source
    detached = _of(receipts, "detach", "sources", pair)
    protected = _of(receipts, "protect", "sources", pair)
    return Move(
        source=VolumeEnd(
            id=source.id, name=source.name, type=source.type, size_gib=source.size_gib
        ),
        target=_target(pair, receipts),
        mounts=tuple(
            m.target for f in plan.guest.filesystems if f.volume_id == source.id for m in f.mounts
        ),
        source_detached=True if detached else None,
        source_read_only=protected.get("read_only"),
        source_deleted=bool(detached.get("deleted") or protected.get("deleted")),
        snapshot_id=str(_of(receipts, "snapshot", "snapshots", pair).get("snapshot_id", "")),
    )


def _target(pair: Pair, receipts: dict[str, Receipt]) -> VolumeEnd | None:
    made = _of(receipts, "target", "targets", pair)
    if not made:
        return None
    retyped = _of(receipts, "retype", "retypes", pair).get("now")
    return VolumeEnd(
        id=str(made.get("volume_id", "")),
        name=str(made.get("name") or pair.target_name),
        type=str(retyped or made.get("type", "")),
        size_gib=int(made.get("size_gib") or 0),
    )


def _of_each(texts: Sequence[tuple[Pair, tuple[str, ...]]]) -> tuple[str, ...]:
    """Lines for one volume after the other; under its name when there are several."""
    return tuple(
        line
        for pair, lines in texts
        for line in ((f"# {pair.label}", *lines) if len(texts) > 1 else lines)
    )


def _texts(value: Any) -> tuple[str, ...]:
    return tuple(str(item) for item in value) if isinstance(value, list | tuple) else ()


def _verification(
    live: Sequence[Pass], committed: Outcome | None, final: Pass | None
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What was read back from both sides and compared, and what was copied but was not."""
    done: list[str] = []
    lacking: list[str] = []
    compared = [one for one in live if one.compared]
    if compared:
        last = compared[-1]
        files = sum(one.compared for one in compared)
        volume = sum(one.bytes_compared for one in compared)
        done.append(
            f"while the service ran, {counted(files, compared[0].piece)} ({size(volume)}) were read"
            f" from source and target and compared by content, in {_numbers(compared)}"
        )
        if last.watermark:
            done.append(
                f"all that did not change after {when(last.watermark)} (guest clock)"
                " is part of that"
            )
        healed = sum(one.healed for one in live)
        if healed:
            done.append(
                f"{counted(healed, live[0].piece)} differed though untouched since the copy:"
                " copied again by content and compared again"
            )
        lost = sum(one.differed_after_loss for one in live)
        if lost:
            done.append(
                f"{counted(lost, live[0].piece)} differed when everything was compared once more,"
                " because it was not known any more what had been written: copied again and"
                " compared again"
            )
    elif live:
        lacking.append("nothing was compared while the service ran")
    if final is not None:
        copied = f"{counted(final.copied, final.piece)} ({size(final.bytes_copied)})"
        if final.compared:
            done.append(
                f"in the downtime, with the source read-only, the final pass copied {copied} and"
                f" compared {counted(final.compared, final.piece)}"
                f" ({size(final.bytes_compared)}) by content"
            )
        if final.copied > final.compared:
            missing = final.copied - final.compared
            lacking.append(
                f"{counted(missing, final.piece)} of the final pass were copied but not compared"
            )
    elif committed is not None:
        lacking.append("the final pass left no figures: what it copied was not compared")
    return tuple(done), tuple(lacking)


def _numbers(passes: Sequence[Pass]) -> str:
    names = [str(one.number) for one in passes]
    return f"pass {names[0]}" if len(names) == 1 else "passes " + listed(names)


def _ended_at(transfer: Transfer, events: Sequence[Event]) -> float | None:
    if transfer.state in (State.RUNNING, State.ROLLING_BACK) or not events:
        return None
    return events[-1].at


def _spans(
    transfer: Transfer, events: Sequence[Event], receipts: dict[str, Receipt]
) -> tuple[Span, ...]:
    began: dict[str, float] = {"plan": transfer.created_at}
    ended: dict[str, float] = {}
    for event in events:
        name = phase_of(event)
        if name not in PHASES or event.kind in ("undone", "error"):
            continue
        began.setdefault(name, event.at)
        ended[name] = event.at
    reached = [name for name in PHASES if name in began]
    standing = {PHASE_OF.get(step, "") for step in receipts} | {"plan"}
    back = transfer.state in (State.ROLLED_BACK, State.ROLLING_BACK)
    spans = []
    for name in PHASES:
        if name not in began:
            spans.append(Span(name=name, state="not reached"))
            continue
        state: SpanState = "done"
        if back and name != "plan" and name not in standing:
            state = "taken back"
        elif name == reached[-1]:
            state = _HERE.get(transfer.state, "done")
        later = [began[other] for other in reached if began[other] > began[name]]
        end = min(later, default=ended.get(name))
        spans.append(Span(name=name, state=state, started_at=began[name], ended_at=end))
    return tuple(spans)


_HERE: dict[State, SpanState] = {
    State.RUNNING: "under way",
    State.ROLLING_BACK: "under way",
    State.STOPPED: "stopped",
    State.HELD: "held",
}


def _remaining(transfer: Transfer, receipts: dict[str, Receipt]) -> tuple[str, ...]:
    """What a person still has to do; empty means nothing."""
    id, plan = transfer.id, transfer.plan
    if transfer.state is State.ROLLED_BACK:
        return tuple(f"remove by hand: {text}" for text in _left(receipts))
    if transfer.state is State.HELD and "cutover" in receipts:
        away = method(plan.method).detaches_first(plan.guest)
        first = "the source is detached already;" if away else "detaches the source and"
        return (
            f"volferry finish {id}: {first} removes what was put in",
            f"or volferry rollback {id}: goes back to the source",
        )
    if transfer.state is State.HELD:
        return (f"volferry cutover {id}: lets the cutover begin",)
    if transfer.state is State.STOPPED:
        return (f"volferry resume {id}: goes on from step '{transfer.step}'",)
    if transfer.state is not State.DONE:
        return ("the transfer is still under way",)
    todo = [f"remove by hand: {text}" for text in _left(receipts)]
    todo += [
        f"volferry gc: {text}; it tries again"
        for text in _texts(receipts.get("tidy", {}).get("snapshots_stay"))
    ]
    if plan.wanted.read_only:
        todo += [
            f"openstack volume set --read-only {pair.source.id}: the source is not marked read-only"
            for pair in _kept(plan, receipts)
            if not _of(receipts, "protect", "sources", pair).get("read_only")
        ]
    return tuple(todo)


def _left(receipts: dict[str, Receipt]) -> tuple[str, ...]:
    return _texts(receipts.get("tidy", {}).get("left"))


def _noted(events: Iterable[Event]) -> tuple[str, ...]:
    """What the guest noted, in its words."""
    return tuple(
        plain(event.facts.get("text") or "") for event in events if "note_id" in event.facts
    )


def _notes(transfer: Transfer, receipts: dict[str, Receipt]) -> tuple[str, ...]:
    plan, notes = transfer.plan, []
    kept = _kept(plan, receipts)
    if receipts.get("detach", {}).get("server_deleted"):
        notes.append(
            "somebody deleted the server before the end was seen in it: look at source and target,"
            " attached to another, before either is deleted"
        )
    elif transfer.state is State.DONE and kept:
        notes.append(
            "the source volume is kept; when it is not needed any more:"
            f"\nopenstack volume delete {' '.join(pair.source.id for pair in kept)}"
        )
    if transfer.state is State.DONE:
        if receipts.get("cutover", {}).get("outcome", {}).get("standby"):
            notes.append(
                "the source was a standby: it followed the target while the service ran, so it is"
                " no point in time, and its head and tail stay zero, so that nothing can mount it"
            )
        snapshots = receipts.get("snapshot", {}).get("snapshots", [])
        if snapshots and kept and not receipts.get("tidy", {}).get("snapshot_deleted"):
            notes.append(
                "the snapshot is kept; the source cannot be deleted before it:"
                "\nopenstack volume snapshot delete "
                + " ".join(str(one["snapshot_id"]) for one in snapshots)
            )
    for filesystem in plan.guest.filesystems:
        for mount in filesystem.mounts:
            if mount.by is MountBy.HAND:
                notes.append(
                    f"{plain(mount.target)} was mounted by hand before and still is: nothing"
                    " mounts it after a reboot of the guest"
                )
    return tuple(notes)


def _kept(plan: Plan, receipts: dict[str, Receipt]) -> list[Pair]:
    return [pair for pair in plan.pairs if not _move(plan, pair, receipts).source_deleted]


def source_state(move: Move) -> str:
    """What was done to the source after the cutover, as far as it was seen."""
    if move.source_deleted:
        return "deleted by somebody"
    state = ["detached"] if move.source_detached else []
    if move.source_read_only is not None:
        state.append("read-only" if move.source_read_only else "not read-only")
    return ", ".join(state)


def verdict(report: Report) -> str:
    """The first line of every form of the report."""
    source, server = plain(report.label), plain(report.server_name)
    down = f"downtime {duration(report.cutover.downtime_s)}" if report.cutover else ""
    if report.state is State.DONE:
        if report.side_unknown:
            return f"ended the move of {source}: with {server} went which side it ran on last"
        return f"moved {source} in {server}: {down or 'downtime not measured'}"
    if report.state is State.ROLLED_BACK:
        return f"took back the move of {source} in {server}"
    if report.state is State.HELD:
        where = "after the cutover" if report.cutover else "before the cutover"
        return f"{source} in {server} waits {where}" + (f": {down}" if down else "")
    if report.state is State.STOPPED:
        return f"the move of {source} in {server} stopped in '{plain(report.step)}'"
    return f"{source} in {server}: {report.state.value}, step '{plain(report.step)}'"
