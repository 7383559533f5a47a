"""Mark the sources read-only, so that nobody changes the copy of last resort by accident."""

from typing import ClassVar

from volferry.errors import Retry
from volferry.model import Json, Plan, Receipt, Volume
from volferry.steps.cutover import is_standby
from volferry.steps.progress import until_sure
from volferry.steps.step import Context, Phase, Step, Undo

PROTECTED = "marked read-only"
DELETED = "not there any more; somebody deleted it"


class Protect(Step):
    name = "protect"
    phase: ClassVar[Phase] = "finish"
    promise = "the source is {state}"
    undo_costs = Undo.CONSENT

    def applies(self, plan: Plan) -> bool:
        return plan.wanted.read_only

    def foreseen(self, plan: Plan) -> Json:
        return {"state": PROTECTED}

    async def costs(self, ctx: Context, receipt: Receipt) -> Undo:
        return Undo.FREE if receipt.get("standby") else self.undo_costs

    async def find(self, ctx: Context) -> Receipt | None:
        receipt = await _look(ctx)
        return None if _writable(receipt) else receipt

    async def left_behind(self, ctx: Context) -> Receipt | None:
        receipt = await _look(ctx)
        if _writable(receipt):
            await until_sure(ctx)
        return receipt

    async def do(self, ctx: Context) -> Receipt:
        for source_id in _writable(await _look(ctx)):
            await ctx.cloud.set_read_only(source_id, True)
        seen = await _look(ctx)
        if _writable(seen):
            raise Retry(
                f"the cloud accepted that {', '.join(_writable(seen))} becomes read-only and does "
                "not show it so",
                data="the service runs on the target; the source is detached and unchanged",
                hint="it is looked at again",
            )
        return seen

    async def undo(self, ctx: Context, receipt: Receipt) -> None:
        for source in receipt["sources"]:
            if await ctx.cloud.volume_if_any(source["source_id"]) is not None:
                await ctx.cloud.set_read_only(source["source_id"], False)


async def _look(ctx: Context) -> Receipt:
    seen = [await _look_at(ctx, source) for source in ctx.plan.cloud.sources]
    deleted = [one["source_id"] for one in seen if one["deleted"]]
    state = f"{PROTECTED}, but for {', '.join(deleted)}: {DELETED}" if deleted else PROTECTED
    return {
        "sources": seen,
        "standby": is_standby(ctx),
        "state": DELETED if len(deleted) == len(seen) else state,
    }


async def _look_at(ctx: Context, source: Volume) -> Json:
    now: Volume | None = await ctx.cloud.volume_if_any(source.id)
    return {
        "source_id": source.id,
        "read_only": now is not None and now.read_only,
        "deleted": now is None,
    }


def _writable(seen: Receipt) -> list[str]:
    return [s["source_id"] for s in seen["sources"] if not (s["read_only"] or s["deleted"])]
