"""Passes while the service runs, until all of it has been copied and compared."""

from typing import ClassVar

from volferry.model import Receipt
from volferry.steps.step import Context, Phase, Step


class Sync(Step):
    name = "sync"
    phase: ClassVar[Phase] = "sync"
    promise = (
        "after {passes} passes source and target differ only by what is written now: "
        "{compared} were read from both and compared"
    )

    async def find(self, ctx: Context) -> Receipt | None:
        del ctx  # a pass that was cut short is made again; what runs in the guest is waited for
        return None

    async def left_behind(self, ctx: Context) -> Receipt | None:
        del ctx
        return {}

    async def do(self, ctx: Context) -> Receipt:
        receipt: Receipt = await ctx.method.sync(ctx)
        return receipt

    async def undo(self, ctx: Context, receipt: Receipt) -> None:
        """What it wrote lies on the target, which is deleted; only a pass that runs must end."""
        await ctx.guest.stop_job()
