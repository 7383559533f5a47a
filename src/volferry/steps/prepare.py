"""Make each target a filesystem that can be mounted beside its source."""

import time
from typing import ClassVar

from volferry.model import Receipt
from volferry.steps.step import Context, Phase, Step


class Prepare(Step):
    """A clone is brought to rest (its log is replayed); a blank disk gets the source's partition
    table and filesystems. What the guest reads back from the disk is the receipt.
    """

    name = "prepare"
    phase: ClassVar[Phase] = "attach"
    promise = "the target is ready to be copied to: {summary}"

    async def find(self, ctx: Context) -> Receipt | None:
        del ctx  # the agent knows by its own record what it has made of the disk
        return None

    async def left_behind(self, ctx: Context) -> Receipt | None:
        del ctx
        return {}

    async def do(self, ctx: Context) -> Receipt:
        began = time.monotonic()
        receipt: Receipt = await ctx.method.prepare(ctx)
        return {**receipt, "elapsed_s": round(time.monotonic() - began, 3)}

    async def undo(self, ctx: Context, receipt: Receipt) -> None:
        """What it made lies on the target, which is deleted; only what works on it must end."""
        await ctx.guest.stop_job()
        await ctx.method.leave(ctx)
