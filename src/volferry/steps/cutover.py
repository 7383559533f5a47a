"""The cutover: waits for its gate, then the guest does it by itself."""

import contextlib
import datetime as dt
import time
from typing import ClassVar

from volferry.errors import Doubt, NotFound, NoWayBack, Stop
from volferry.methods import Outlook
from volferry.model import Json, Outcome, Plan, Prediction, Receipt
from volferry.steps.attach import unplug
from volferry.steps.gate import Decision, decide
from volferry.steps.step import Context, Phase, Step, Undo
from volferry.steps.switch import Switch, heard, last_switch
from volferry.steps.volumes import deleted_sources, deleted_targets, target_ids

# Between two passes while a gate is closed: the service has the disk for most of the time.
PACE_S = (2.0, 30.0)


class Cutover(Step):
    """From the first service stopped to the last one started one supervised process in the guest
    does everything, and takes it back by itself on any failure or when its deadline passes. Its
    outcome is a file on the guest's disk; here it is only read.
    """

    name = "cutover"
    phase: ClassVar[Phase] = "cutover"
    promise = "the service {state}"
    undo_costs = Undo.CONSENT

    def foreseen(self, plan: Plan) -> Json:
        return {"state": _state("…")}

    async def costs(self, ctx: Context, receipt: Receipt) -> Undo:
        last = await last_switch(ctx)
        if last and last.live == "source":
            # What was written to the target meanwhile is asked for once: when it is gone back from,
            # or when the guest left it by itself.
            return Undo.CONSENT if last.begun == "cutover" else Undo.FREE
        if last and last.begun == "cutover" and not (last.live or ctx.guest.is_there):
            return Undo.UNKNOWN
        await _refuse_without_a_way_back(ctx, last)
        return Undo.FREE if receipt["outcome"].get("standby") else self.undo_costs

    async def find(self, ctx: Context) -> Receipt | None:
        last = await last_switch(ctx, forward=True)
        if last is None:
            return None
        if last.begun == "cutback":
            return self._receipt(ctx, await committed_still(ctx, last), seen=bool(last.live))
        if not last.live:
            self._needs_a_word(ctx, last)
            return self._receipt(ctx, None, seen=False)
        if last.live == "source":
            return None
        outcome = Outcome.model_validate(last.outcome)
        await _stop_for_the_reason(ctx, outcome)
        return self._receipt(ctx, outcome)

    async def left_behind(self, ctx: Context) -> Receipt | None:
        last = await last_switch(ctx)
        if last is None:
            return None
        taken_back = last.begun == "cutover" and last.live == "source"
        if taken_back and not (last.outcome or {}).get("was_live_s"):
            return None
        return {"outcome": last.cutover or {}}

    def _needs_a_word(self, ctx: Context, last: Switch) -> None:
        """Of a guest that was deleted in the middle of its cutover."""
        if any(request.at > last.at for request in ctx.requests("finish")):
            return
        server = ctx.plan.cloud.server
        raise Stop(
            f"server '{server.name}' ({server.id}) was deleted in the middle of the cutover, and "
            "alone knew which side it had ended on",
            data="no volume was deleted: one of source and target has all that the service wrote\n"
            "attach both to another server to see which",
            hint=f"volferry finish {ctx.transfer_id}     ends it, and keeps both\n"
            f"volferry rollback {ctx.transfer_id} --accept-loss   deletes the target",
        )

    async def do(self, ctx: Context) -> Receipt:
        prediction = await self._gate(ctx)
        await ctx.tell("cutover", predicted=prediction.model_dump(mode="json"))
        outcome: Outcome = await ctx.method.cutover(ctx)
        await ctx.tell("outcome", **outcome.model_dump(mode="json"))
        if outcome.result != "committed":
            raise Stop(
                f"the guest took the cutover back: {outcome.reason}",
                data=_left_with(ctx, outcome),
                hint=_ways_on(ctx, outcome),
            )
        await _stop_for_the_reason(ctx, outcome)
        return {
            **self._receipt(ctx, outcome),
            "predicted": prediction.model_dump(mode="json"),
        }

    def _receipt(self, ctx: Context, outcome: Outcome | None, *, seen: bool = True) -> Receipt:
        """``seen``: on which side the service ran last."""
        downtime_s = round(outcome.downtime_s, 3) if outcome else None
        return {
            "outcome": outcome.model_dump(mode="json") if outcome else {},
            "state": _state("…" if downtime_s is None else downtime_s) if seen else _UNSEEN,
            "downtime_s": downtime_s,
            "volume_ids": target_ids(ctx),
            "fstab_changes": list(outcome.fstab_changes) if outcome else [],
        }

    async def _gate(self, ctx: Context) -> Prediction:
        """Keep the target current until the cutover may begin; the prediction it begins with."""
        wanted = ctx.plan.wanted
        ends = time.monotonic() + wanted.timeouts.sync_s
        said = ""
        while True:
            began = time.monotonic()
            outlook: Outlook = await ctx.method.catch_up(ctx)
            decision = self._decide(ctx, outlook)
            if decision.why != said:
                await ctx.tell("gate", open=decision.go, text=decision.why)
                said = decision.why
            if decision.go:
                for request in ctx.requests("cutover"):
                    ctx.take(request)
                return outlook.prediction
            ctx.check_stop()
            if time.monotonic() >= ends:
                raise Stop(
                    f"the cutover's gate did not open within {wanted.timeouts.sync_s:.0f} s "
                    f"(--sync-timeout): {decision.why}",
                    data="the service runs on the source as before; the target is kept",
                    hint=f"volferry cutover {ctx.transfer_id} --now, or a larger --max-downtime",
                )
            low, high = PACE_S
            await ctx.sleep(min(max(time.monotonic() - began, low), high))
            ctx.check_stop()

    def _decide(self, ctx: Context, outlook: Outlook) -> Decision:
        asked = ctx.requests("cutover")
        return decide(
            ctx.plan.wanted,
            outlook.prediction,
            gains=outlook.gains,
            now=dt.datetime.now(dt.UTC),
            asked=bool(asked),
            asked_now=any(request.facts.get("now") for request in asked),
        )

    async def undo(self, ctx: Context, receipt: Receipt) -> None:
        if receipt["outcome"].get("result") == "reverted" or not ctx.guest.is_there:
            return  # it has gone back by itself, or is gone itself
        if await self._brought_back_by_hand(ctx):
            return
        outcome = await self._unheard(ctx)
        if outcome is None:
            # First, so that it is known of a guest which is not heard again.
            await ctx.tell("cutback", cutover=receipt["outcome"])
            outcome = await ctx.method.cutback(ctx)
        wrong = await self._judge(ctx, outcome)
        # Last, and at once before it is said: until it is told it is judged again.
        await ctx.tell("outcome", **outcome.model_dump(mode="json"))
        if wrong:
            raise wrong

    async def _judge(self, ctx: Context, outcome: Outcome) -> Stop | None:
        """What stands against taking the target away after such a way back."""
        again = f"volferry rollback {ctx.transfer_id} --accept-loss"
        if outcome.live != "source":
            await self._keep_away(ctx)
            what = f"the guest could not go back to the source: {outcome.reason}"
            if lost := await deleted_targets(ctx):
                return Stop(
                    what,
                    data=f"somebody deleted the target ({', '.join(lost)}); the source is kept, "
                    "and is not mounted",
                    hint=f"mount it in the guest and start the services, then repeat {again}",
                )
            return Stop(
                what,
                data="the service was left on the target, which is complete",
                hint=f"volferry logs {ctx.transfer_id}; mend what it names, then repeat {again}",
            )
        deleted = await deleted_sources(ctx)
        but = [one.id for one in deleted]
        wrong = "; ".join(outcome.problems) or await ctx.guest.not_on(ctx, "source", but)
        if not wrong:
            return None
        data = "the source is the live side and as it was at the cutover"
        if deleted:
            data = f"somebody deleted {', '.join(one.label for one in deleted)} since"
        return Stop(
            f"back on the source, but not everything came back: {wrong}",
            data=f"{data}; the target, with what was written since, is kept until this is mended",
            hint=f"mend it in the guest, then repeat: {again}",
        )

    async def _brought_back_by_hand(self, ctx: Context) -> bool:
        """Where somebody deleted the target the guest may not find its way back by itself."""
        mounted = any(fs.mounts for fs in ctx.plan.guest.filesystems)
        if not mounted or not await deleted_targets(ctx):
            return False
        return not await ctx.guest.not_on(ctx, "source")

    async def _unheard(self, ctx: Context) -> Outcome | None:
        """How a way back ended on the source whose end nobody was told: what it could not bring
        back another one would not say again."""
        told = heard(ctx.line.events())
        if told is None or told.begun != "cutback" or told.live:
            return None
        last = await last_switch(ctx)
        if last is None or last.begun != "cutback" or last.live != "source":
            return None
        return Outcome.model_validate(last.outcome)

    async def _keep_away(self, ctx: Context) -> None:
        """Sources that came too late for a guest which has shown its targets again: no rule of ours
        keeps the two apart."""
        if ctx.method.detaches_first(ctx.plan.guest):
            for source in ctx.plan.cloud.sources:
                with contextlib.suppress(NotFound):  # deleted, which is away as well
                    await unplug(ctx, source.id)


async def _stop_for_the_reason(ctx: Context, outcome: Outcome) -> None:
    """Of a guest that could not go back, as the source of a stack is detached before the commit. To
    go on is to protect the only other side, so somebody has to look at the service first; once, for
    going on after that is somebody's word."""
    stayed = [e.facts["job_id"] for e in ctx.line.events() if e.kind == "stayed"]
    if not outcome.reason or outcome.job_id in stayed:
        return
    await ctx.tell("stayed", job_id=outcome.job_id, text="the guest stayed on the target")
    raise Stop(
        f"the guest stayed on the target, and something is wrong there: {outcome.reason}",
        data="the target is the live side, with all that was written to the source; services may "
        "be down there",
        hint="mend it in the guest, then\n"
        f"volferry resume {ctx.transfer_id}     goes on to detach and protect the source\n"
        f"volferry rollback {ctx.transfer_id} --accept-loss   goes back to it",
    )


async def _refuse_without_a_way_back(ctx: Context, last: Switch | None) -> None:
    """Of a cutover that was committed: no guest, or no source, is no way back."""
    facts = ctx.plan.cloud
    missing = [] if ctx.guest.is_there else [f"server '{facts.server.name}' ({facts.server.id})"]
    missing += [f"source {one.label} ({one.id})" for one in await deleted_sources(ctx)]
    if not missing:
        return
    data = "the target holds the service's data, and is kept"
    if last and not last.live:
        data = (
            "the guest had begun to go back, and its end was not heard: either side may have what "
            "was written last, and both are kept"
        )
    if lost := await deleted_targets(ctx):
        data = f"the target was deleted as well: {', '.join(lost)}"
    raise NoWayBack(
        f"there is no way back: somebody deleted {', '.join(missing)}",
        data=data,
        hint=f"volferry finish {ctx.transfer_id}   ends the transfer",
    )


async def committed_still(ctx: Context, last: Switch) -> Outcome | None:
    """The cutover that a way back did not undo. Raises ``Doubt`` when it did: nobody goes forward
    from there but where somebody deleted the source since."""
    if last.live == "source":
        raise Doubt(
            "the guest had gone back to the source",
            data="the target holds what was written until then, and is not mounted anywhere",
            hint=f"volferry rollback {ctx.transfer_id}   ends it, and asks before the target goes",
        )
    said = last.outcome or {}
    if said.get("reason"):
        await ctx.tell_note(f"{said['job_id']}.reason", f"going back: {said['reason']}")
    return Outcome.model_validate(last.cutover) if last.cutover else None


_UNSEEN = "went with its server, which alone knew where it ran last"


def _state(downtime_s: float | str) -> str:
    return f"runs on the target; it was down for {downtime_s} s"


def is_standby(ctx: Context) -> bool:
    """Whether the source has followed the target. Where it was let go it follows again before the
    guest goes back to it, so that nothing is lost then either."""
    return bool(ctx.known.get("cutover", {}).get("outcome", {}).get("standby"))


def _ways_on(ctx: Context, outcome: Outcome) -> str:
    transfer_id = ctx.transfer_id
    if not outcome.was_live_s:
        return (
            f"volferry resume {transfer_id}     syncs again and tries once more\n"
            f"volferry rollback {transfer_id}   removes what was made"
        )
    if not ctx.method.keeps_a_left_target:
        return (
            f"volferry resume {transfer_id}     syncs again and tries once more\n"
            f"volferry rollback {transfer_id} --accept-loss   removes what was made"
        )
    return (
        "copy from the target what you need of it; then\n"
        f"volferry resume {transfer_id}     overwrites it, syncs again and tries once more\n"
        f"volferry rollback {transfer_id} --accept-loss   deletes it with what was made"
    )


def _left_with(ctx: Context, outcome: Outcome) -> str:
    """What a cutover that was taken back means for the data and the service."""
    lost = "nothing was lost"
    if outcome.was_live_s:
        lost = (
            f"services had run on the target for {outcome.was_live_s:.1f} s: what they wrote then "
            + ctx.method.fate_of_late_writes()
        )
    if outcome.problems:
        return (
            f"the source is the live side, complete up to the cutover; {lost}\n"
            f"but the service is not up: {'; '.join(outcome.problems)}"
        )
    return (
        "the service runs on the source, complete up to the cutover; it was down for "
        f"{outcome.downtime_s:.1f} s; {lost}"
    )
