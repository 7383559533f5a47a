"""Mark the source read-only, so that nobody changes the copy of last resort by accident."""

from typing import ClassVar

from volferry.model import Plan, Receipt
from volferry.steps.step import Context, Phase, Step, Undo


class Protect(Step):
    name = "protect"
    phase: ClassVar[Phase] = "finish"
    promise = "the source is marked read-only"
    undo_costs = Undo.CONSENT

    def applies(self, plan: Plan) -> bool:
        return plan.wanted.read_only

    async def find(self, ctx: Context) -> Receipt | None:
        volume = await ctx.cloud.volume(ctx.plan.cloud.source.id)
        return {"read_only": True} if volume.read_only else None

    async def left_behind(self, ctx: Context) -> Receipt | None:
        del ctx
        return {"read_only": True}

    async def do(self, ctx: Context) -> Receipt:
        await ctx.cloud.set_read_only(ctx.plan.cloud.source.id, True)
        volume = await ctx.cloud.volume(ctx.plan.cloud.source.id)
        return {"read_only": volume.read_only}

    async def undo(self, ctx: Context, receipt: Receipt) -> None:
        await ctx.cloud.set_read_only(ctx.plan.cloud.source.id, False)
