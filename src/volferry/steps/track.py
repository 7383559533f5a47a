"""Note every write to the sources, from before anything is copied."""

from typing import ClassVar

from volferry.methods import method
from volferry.model import Plan, Receipt
from volferry.steps.step import Context, Phase, Step


class Track(Step):
    """What a snapshot lacks is then in the notes, however long it took to take it. Only for a
    method that copies by such notes.
    """

    name = "track"
    phase: ClassVar[Phase] = "seed"
    promise = "every write to the source is noted from before the snapshot on"

    def applies(self, plan: Plan) -> bool:
        return bool(plan.method) and method(plan.method).tracks(plan)

    async def find(self, ctx: Context) -> Receipt | None:
        del ctx  # to begin what has begun is nothing
        return None

    async def left_behind(self, ctx: Context) -> Receipt | None:
        del ctx
        return {}

    async def do(self, ctx: Context) -> Receipt:
        receipt: Receipt = await ctx.method.track(ctx)
        return receipt

    async def undo(self, ctx: Context, receipt: Receipt) -> None:
        await ctx.method.untrack(ctx)
