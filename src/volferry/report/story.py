"""One transfer as it can be proven from the journal: the facts under every form of the report.

``Report`` holds what was measured and nothing else. A field without a measurement is None or
empty, and the forms (text, JSON, page) say "not measured" for it; none of them computes facts of
its own, so no form can claim more than another. Statements about verification and about remaining
work are made here, from passes and receipts, and are part of the JSON as well.
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from pydantic import Field, ValidationError

from volferry.model import (
    Event,
    Json,
    MountBy,
    Noun,
    Outcome,
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

if TYPE_CHECKING:
    from volferry.store import Store


class VolumeEnd(Noun):
    """One of the two volumes; empty where nothing is known."""

    id: str = ""
    name: str = ""
    type: str = ""
    size_gib: int = 0


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
    source: VolumeEnd
    target: VolumeEnd | None = None
    mounts: tuple[str, ...] = ()
    cutover: Outcome | None = None
    """The cutover that was committed."""
    reverted: tuple[Outcome, ...] = ()
    """Cutovers that the guest took back; each had a downtime of its own."""
    predicted: Prediction | None = None
    max_downtime_s: float
    passes: tuple[Pass, ...] = ()
    """Live passes and, last, the final one of the cutover."""
    bytes_copied: int | None = None
    files_copied: int | None = None
    verified: tuple[str, ...] = ()
    not_verified: tuple[str, ...] = ()
    phases: tuple[Span, ...] = ()
    source_detached: bool | None = None
    source_read_only: bool | None = None
    snapshot_id: str = ""
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
    final = committed.final_pass if committed else None
    live = [one for one in passes if not one.final]
    every = (*live, final) if final else (*passes,)
    target = _target(plan, receipts)
    verified, not_verified = _verification(live, committed, final)
    ended = transfer.state is State.DONE
    tidy = receipts.get("tidy", {})
    protect, detach = receipts.get("protect", {}), receipts.get("detach")
    return Report(
        id=transfer.id,
        state=transfer.state,
        step=transfer.step,
        created_at=transfer.created_at,
        ended_at=_ended_at(transfer, events),
        server_id=plan.cloud.server.id,
        server_name=plan.cloud.server.name,
        method=plan.method,
        source=VolumeEnd(
            id=plan.cloud.source.id,
            name=plan.cloud.source.name,
            type=plan.cloud.source.type,
            size_gib=plan.cloud.source.size_gib,
        ),
        target=target,
        mounts=tuple(m.target for f in plan.guest.filesystems for m in f.mounts),
        cutover=committed,
        reverted=tuple(o for o in outcomes if o.result == "reverted"),
        predicted=_prediction(receipts),
        max_downtime_s=plan.wanted.max_downtime_s,
        passes=tuple(every),
        bytes_copied=sum(p.bytes_copied for p in every) if every else None,
        files_copied=sum(p.files_copied for p in every) if every else None,
        verified=verified,
        not_verified=not_verified,
        phases=_spans(transfer, events, receipts),
        source_detached=True if detach is not None else None,
        source_read_only=protect.get("read_only"),
        snapshot_id=str(receipts.get("snapshot", {}).get("snapshot_id", "")),
        snapshot_deleted=tidy.get("snapshot_deleted"),
        removed=_texts(tidy.get("removed")),
        left=_texts(tidy.get("left")),
        fstab_changes=_texts(receipts.get("cutover", {}).get("fstab_changes")),
        api_calls=tidy.get("api_calls"),
        remaining=_remaining(transfer, receipts),
        notes=_notes(transfer, receipts),
        infrastructure=infra.commands(plan, target.id) if target and ended else (),
        configuration=infra.configuration(target.name, target.type, target.size_gib, plan.seed)
        if target and ended
        else (),
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


def _target(plan: Plan, receipts: dict[str, Receipt]) -> VolumeEnd | None:
    made = receipts.get("target")
    if not made:
        return None
    retyped = receipts.get("retype", {}).get("now")
    return VolumeEnd(
        id=str(made.get("volume_id", "")),
        name=str(made.get("name") or plan.target_name),
        type=str(retyped or made.get("type", "")),
        size_gib=int(made.get("size_gib") or 0),
    )


def _texts(value: Any) -> tuple[str, ...]:
    return tuple(str(item) for item in value) if isinstance(value, list | tuple) else ()


def _verification(
    live: Sequence[Pass], committed: Outcome | None, final: Pass | None
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What was read back from both sides and compared, and what was copied but was not."""
    done: list[str] = []
    lacking: list[str] = []
    compared = [one for one in live if one.files_compared]
    if compared:
        last = compared[-1]
        files = sum(one.files_compared for one in compared)
        volume = sum(one.bytes_compared for one in compared)
        done.append(
            f"while the service ran, {counted(files, 'file')} ({size(volume)}) were read from"
            f" source and target and compared by content, in {_numbers(compared)}"
        )
        if last.watermark:
            done.append(
                f"all that did not change after {when(last.watermark)} (guest clock)"
                " is part of that"
            )
        healed = sum(one.healed for one in live)
        if healed:
            done.append(
                f"{counted(healed, 'file')} differed though untouched since the copy:"
                " copied again by content and compared again"
            )
    elif live:
        lacking.append("nothing was compared while the service ran")
    if final is not None:
        copied = f"{counted(final.files_copied, 'file')} ({size(final.bytes_copied)})"
        if final.files_compared:
            done.append(
                f"in the downtime, with the source read-only, the final pass copied {copied} and"
                f" compared {counted(final.files_compared, 'file')}"
                f" ({size(final.bytes_compared)}) by content"
            )
        if final.files_copied > final.files_compared:
            missing = final.files_copied - final.files_compared
            lacking.append(
                f"{counted(missing, 'file')} of the final pass were copied but not compared"
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
        return (
            f"volferry finish {id}: detaches the source and removes what was put in",
            f"or volferry rollback {id}: goes back to the source",
        )
    if transfer.state is State.HELD:
        return (f"volferry cutover {id}: lets the cutover begin",)
    if transfer.state is State.STOPPED:
        return (f"volferry resume {id}: goes on from step '{transfer.step}'",)
    if transfer.state is not State.DONE:
        return ("the transfer is still under way",)
    todo = [f"remove by hand: {text}" for text in _left(receipts)]
    protected = receipts.get("protect", {}).get("read_only")
    if plan.wanted.read_only and not protected:
        todo.append(
            f"openstack volume set --read-only {plan.cloud.source.id}:"
            " the source is not marked read-only"
        )
    return tuple(todo)


def _left(receipts: dict[str, Receipt]) -> tuple[str, ...]:
    return _texts(receipts.get("tidy", {}).get("left"))


def _notes(transfer: Transfer, receipts: dict[str, Receipt]) -> tuple[str, ...]:
    plan, notes = transfer.plan, []
    if transfer.state is State.DONE:
        notes.append(
            "the source volume is kept; when it is not needed any more:"
            f"\nopenstack volume delete {plan.cloud.source.id}"
        )
        snapshot = receipts.get("snapshot", {}).get("snapshot_id")
        if snapshot and not receipts.get("tidy", {}).get("snapshot_deleted"):
            notes.append(
                "the snapshot is kept; the source cannot be deleted before it:"
                f"\nopenstack volume snapshot delete {snapshot}"
            )
    for filesystem in plan.guest.filesystems:
        for mount in filesystem.mounts:
            if mount.by is MountBy.HAND:
                notes.append(
                    f"{plain(mount.target)} was mounted by hand before and still is: nothing"
                    " mounts it after a reboot of the guest"
                )
    return tuple(notes)


def verdict(report: Report) -> str:
    """The first line of every form of the report."""
    source, server = plain(report.source.name or report.source.id), plain(report.server_name)
    down = f"downtime {duration(report.cutover.downtime_s)}" if report.cutover else ""
    if report.state is State.DONE:
        return f"moved {source} in {server}: {down or 'downtime not measured'}"
    if report.state is State.ROLLED_BACK:
        return f"took back the move of {source} in {server}"
    if report.state is State.HELD:
        where = "after the cutover" if report.cutover else "before the cutover"
        return f"{source} in {server} waits {where}" + (f": {down}" if down else "")
    if report.state is State.STOPPED:
        return f"the move of {source} in {server} stopped in '{plain(report.step)}'"
    return f"{source} in {server}: {report.state.value}, step '{plain(report.step)}'"
