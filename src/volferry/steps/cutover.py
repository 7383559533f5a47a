"""The cutover: waits for its gate, then the guest does it by itself."""

import datetime as dt
import time
from typing import ClassVar

from volferry.errors import Refused, Stop
from volferry.methods import Outlook
from volferry.model import Json, Outcome, Prediction, Receipt
from volferry.steps.attach import unplug
from volferry.steps.gate import Decision, decide
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
    promise = "the service runs on the target; it was down for {downtime_s} s"
    undo_costs = Undo.CONSENT

    async def costs(self, ctx: Context, receipt: Receipt) -> Undo:
        outcome = receipt["outcome"]
        if outcome.get("result") == UNKNOWN:
            return Undo.UNKNOWN
        if outcome.get("result") != "reverted":
            await _refuse_without_a_source(ctx)
        if not outcome:
            return Undo.FREE  # it was asked for when going back began
        return Undo.FREE if outcome.get("standby") else self.undo_costs

    async def find(self, ctx: Context) -> Receipt | None:
        outcome: Outcome | None
        if ctx.guest.is_there:
            outcome = await ctx.method.outcome(ctx)
        else:
            told = _told(ctx)
            outcome = Outcome.model_validate(told) if told and "live" in told else None
        return self._receipt(ctx, outcome) if outcome and outcome.result == "committed" else None

    async def left_behind(self, ctx: Context) -> Receipt | None:
        if not ctx.guest.is_there:
            told = _told(ctx)
            free = told and told.get("result") == "reverted" and not told.get("was_live_s")
            return None if told is None or free else {"outcome": told}
        # Going back has begun: what the guest said of the cutover is gone by then, and to take that
        # for "there was none" would delete the target below a service that still runs on it.
        if await ctx.guest.last_job() == "cutback":
            return {"outcome": {}}
        outcome: Outcome | None = await ctx.method.outcome(ctx)
        if outcome and (outcome.result == "committed" or outcome.was_live_s):
            return self._receipt(ctx, outcome)
        return None

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
        return {
            "outcome": outcome.model_dump(mode="json"),
            "downtime_s": round(outcome.downtime_s, 3),
            "volume_ids": [made["volume_id"] for made in ctx.known["target"]["targets"]],
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
        if receipt["outcome"].get("result") in ("reverted", UNKNOWN):
            return  # the guest has gone back by itself, or has gone
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


def _told(ctx: Context) -> Json | None:
    """How the last cutover of a guest that is not there any more ended, as far as it was heard.

    None when none was begun."""
    heard = [e for e in ctx.line.events() if e.kind in ("cutover", "outcome")]
    if not heard:
        return None
    return heard[-1].facts if heard[-1].kind == "outcome" else {"result": UNKNOWN}


async def _refuse_without_a_source(ctx: Context) -> None:
    """Of a cutover that was committed: no guest, or no source, is no way back."""
    facts = ctx.plan.cloud
    missing = [] if ctx.guest.is_there else [f"server '{facts.server.name}' ({facts.server.id})"]
    for source in facts.sources:
        if await ctx.cloud.volume_if_any(source.id) is None:
            missing.append(f"source {source.label} ({source.id})")
    if missing:
        lost = await deleted_targets(ctx)
        raise Refused(
            f"there is no way back: somebody deleted {', '.join(missing)}",
            data=f"the target was deleted as well: {', '.join(lost)}"
            if lost
            else "the target holds the service's data, and is kept",
            hint=f"volferry finish {ctx.transfer_id}   ends the transfer",
        )


async def deleted_targets(ctx: Context) -> list[str]:
    """Ids of the targets that are not there any more."""
    every = [made["volume_id"] for made in ctx.known["target"]["targets"]]
    return [one for one in every if await ctx.cloud.volume_if_any(one) is None]


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
