"""The cutover: waits for its gate, then the guest does it by itself."""

import datetime as dt
import time
from typing import ClassVar, Literal

from volferry.errors import NoWayBack, Stop
from volferry.methods import Outlook
from volferry.model import Json, Outcome, Plan, Prediction, Receipt
from volferry.steps.attach import unplug
from volferry.steps.gate import Decision, decide
from volferry.steps.heard import Heard, heard
from volferry.steps.step import Context, Phase, Step, Undo

UNKNOWN = "unknown"
"""How a cutover ended of which the guest alone knew, and the guest is not there any more."""

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
        outcome, told = receipt["outcome"], heard(ctx)
        if outcome.get("result") == UNKNOWN:
            return Undo.UNKNOWN
        if outcome.get("result") != "reverted":
            if told and told.live == "source":
                return Undo.FREE  # it has gone back; only that was not written down
            await _refuse_without_a_way_back(ctx, told)
        return Undo.FREE if outcome.get("standby") else self.undo_costs

    async def find(self, ctx: Context) -> Receipt | None:
        told = heard(ctx)
        if not ctx.guest.is_there:
            return self._of_a_deleted_guest(ctx, told)
        job: Literal["cutover", "cutback"] = "cutover"
        if await ctx.guest.last_job() == "cutback":
            # Nobody goes forward from there but where somebody took the way back away. The guest
            # ends by itself what it has begun, and the target is all that it can end on.
            job = "cutback"
        outcome: Outcome | None = await ctx.method.outcome(ctx, job)
        if outcome and not (told and told.begun == job and told.live):
            await ctx.tell("outcome", **outcome.model_dump(mode="json"))
        if job == "cutback" and told and told.cutover:
            outcome = Outcome.model_validate(told.cutover)
        return self._receipt(ctx, outcome) if outcome and outcome.result == "committed" else None

    async def left_behind(self, ctx: Context) -> Receipt | None:
        told = heard(ctx)
        if not ctx.guest.is_there:
            if told is None:
                return None
            outcome = told.cutover or {"result": UNKNOWN}
            free = outcome["result"] == "reverted" and not outcome["was_live_s"]
            return None if free else {"outcome": outcome}
        # Going back has begun: what the guest said of the cutover is gone by then, and to take that
        # for "there was none" would delete the target below a service that still runs on it.
        if await ctx.guest.last_job() == "cutback":
            return {"outcome": told.cutover if told else {}}
        found: Outcome | None = await ctx.method.outcome(ctx)
        if found and (found.result == "committed" or found.was_live_s):
            return self._receipt(ctx, found)
        return None

    def _of_a_deleted_guest(self, ctx: Context, told: Heard | None) -> Receipt | None:
        if told is None:
            return None
        if told.cutover:
            outcome = Outcome.model_validate(told.cutover)
            return self._receipt(ctx, outcome) if outcome.result == "committed" else None
        server = ctx.plan.cloud.server
        if not ctx.requests("finish"):
            raise Stop(
                f"server '{server.name}' ({server.id}) was deleted in the middle of the cutover, "
                "and alone knew which side it had ended on",
                data="no volume was deleted: one of source and target has all that the service "
                "wrote\nattach both to another server to see which",
                hint=f"volferry finish {ctx.transfer_id}     ends it, and keeps both\n"
                f"volferry rollback {ctx.transfer_id} --accept-loss   deletes the target",
            )
        return {
            "outcome": {"result": UNKNOWN},
            "state": "went with its server, which alone knew where it ran last",
            "volume_ids": target_ids(ctx),
            "fstab_changes": [],
        }

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
        if outcome.reason:
            # It could not go back: the source of a stack is detached before the commit. To go on is
            # to protect the only other side, so somebody has to look at the service first.
            raise Stop(
                f"the guest stayed on the target, and something is wrong there: {outcome.reason}",
                data="the target is the live side, with all that was written to the source; "
                "services may be down there",
                hint="mend it in the guest, then\n"
                f"volferry resume {ctx.transfer_id}     goes on to detach and protect the source\n"
                f"volferry rollback {ctx.transfer_id} --accept-loss   goes back to it",
            )
        return {
            **self._receipt(ctx, outcome),
            "predicted": prediction.model_dump(mode="json"),
        }

    def _receipt(self, ctx: Context, outcome: Outcome) -> Receipt:
        downtime_s = round(outcome.downtime_s, 3)
        return {
            "outcome": outcome.model_dump(mode="json"),
            "state": _state(downtime_s),
            "downtime_s": downtime_s,
            "volume_ids": target_ids(ctx),
            "fstab_changes": list(outcome.fstab_changes),
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
        # First, so that it is known of a guest which is not heard again.
        await ctx.tell("cutback", cutover=receipt["outcome"])
        outcome: Outcome = await ctx.method.cutback(ctx)
        await ctx.tell("outcome", **outcome.model_dump(mode="json"))
        if outcome.live != "source":
            await self._keep_away(ctx)
            raise Stop(
                f"the guest could not go back to the source: {outcome.reason}",
                data="the service was left on the target, which is complete",
                hint=f"volferry logs {ctx.transfer_id}; mend what it names, then repeat "
                f"volferry rollback {ctx.transfer_id} --accept-loss",
            )
        if outcome.problems:
            raise Stop(
                f"back on the source, but not everything came back: {'; '.join(outcome.problems)}",
                data="the source is the live side and as it was at the cutover; the target, with "
                "what was written since, is kept until this is mended",
                hint="mend it in the guest, then repeat: "
                f"volferry rollback {ctx.transfer_id} --accept-loss",
            )

    async def _keep_away(self, ctx: Context) -> None:
        """Sources that came too late for a guest which has shown its targets again: no rule of ours
        keeps the two apart."""
        if ctx.method.detaches_first(ctx.plan.guest):
            for source in ctx.plan.cloud.sources:
                await unplug(ctx, source.id)


async def _refuse_without_a_way_back(ctx: Context, told: Heard | None) -> None:
    """Of a cutover that was committed: no guest, or no source, is no way back."""
    facts = ctx.plan.cloud
    missing = [] if ctx.guest.is_there else [f"server '{facts.server.name}' ({facts.server.id})"]
    for source in facts.sources:
        if await ctx.cloud.volume_if_any(source.id) is None:
            missing.append(f"source {source.label} ({source.id})")
    if not missing:
        return
    data = "the target holds the service's data, and is kept"
    if not ctx.guest.is_there and told and not told.live:
        data = (
            "the guest alone knew how far it had gone back: either side may have what was written "
            "last, and both are kept"
        )
    if lost := await deleted_targets(ctx):
        data = f"the target was deleted as well: {', '.join(lost)}"
    raise NoWayBack(
        f"there is no way back: somebody deleted {', '.join(missing)}",
        data=data,
        hint=f"volferry finish {ctx.transfer_id}   ends the transfer",
    )


def _state(downtime_s: float | str) -> str:
    return f"runs on the target; it was down for {downtime_s} s"


def target_ids(ctx: Context) -> list[str]:
    """In the order of the pairs."""
    return [made["volume_id"] for made in ctx.known["target"]["targets"]]


async def deleted_targets(ctx: Context) -> list[str]:
    """Ids of the targets that are not there any more."""
    return [one for one in target_ids(ctx) if await ctx.cloud.volume_if_any(one) is None]


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
