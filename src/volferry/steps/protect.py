"""Mark the sources read-only, so that nobody changes the copy of last resort by accident."""

from typing import ClassVar

from volferry.errors import Retry
from volferry.model import Plan, Receipt
from volferry.steps.cutover import is_standby
from volferry.steps.progress import until_sure
from volferry.steps.step import Context, Phase, Step, Undo


class Protect(Step):
    name = "protect"
    phase: ClassVar[Phase] = "finish"
    promise = "the source is marked read-only"
    undo_costs = Undo.CONSENT

    def applies(self, plan: Plan) -> bool:
        return plan.wanted.read_only

    def costs(self, receipt: Receipt) -> Undo:
        return Undo.FREE if receipt.get("standby") else self.undo_costs

    async def find(self, ctx: Context) -> Receipt | None:
        receipt = await _look(ctx)
        return receipt if all(source["read_only"] for source in receipt["sources"]) else None

    async def left_behind(self, ctx: Context) -> Receipt | None:
        receipt = await _look(ctx)
        if not all(source["read_only"] for source in receipt["sources"]):
            await until_sure(ctx)
        return receipt

    async def do(self, ctx: Context) -> Receipt:
        for source in ctx.plan.cloud.sources:
            await ctx.cloud.set_read_only(source.id, True)
        seen = await _look(ctx)
        writable = [one["source_id"] for one in seen["sources"] if not one["read_only"]]
        if writable:
            raise Retry(
                f"the cloud accepted that {', '.join(writable)} becomes read-only and does not "
                "show it so",
                data="the service runs on the target; the source is detached and unchanged",
                hint="it is looked at again",
            )
        return seen

    async def undo(self, ctx: Context, receipt: Receipt) -> None:
        for source in receipt["sources"]:
            await ctx.cloud.set_read_only(source["source_id"], False)


async def _look(ctx: Context) -> Receipt:
    seen = [await ctx.cloud.volume(source.id) for source in ctx.plan.cloud.sources]
    return {
        "sources": [{"source_id": one.id, "read_only": one.read_only} for one in seen],
        "standby": is_standby(ctx),
    }
