"""Give the detached target its wanted type."""

import time
from typing import ClassVar

from volferry.model import Receipt
from volferry.steps.progress import follow
from volferry.steps.step import Context, Phase, Step


class Retype(Step):
    """A retype that has to move data can fail after it was accepted: the status then just returns
    and the type is unchanged. So the type is compared, here and again by the cloud's wait.
    """

    name = "retype"
    phase: ClassVar[Phase] = "seed"
    promise = "the target has the type {now}"

    async def find(self, ctx: Context) -> Receipt | None:
        volume = await ctx.cloud.volume(ctx.known["target"]["volume_id"])
        if volume.type != ctx.plan.target_type or volume.status != "available":
            return None
        return {"was": ctx.known["target"]["type"], "now": volume.type, "elapsed_s": 0.0}

    async def left_behind(self, ctx: Context) -> Receipt | None:
        # A retype that still runs cannot be cancelled; deleting the target waits for it.
        return {"was": ctx.known["target"]["type"]}

    async def do(self, ctx: Context) -> Receipt:
        began = time.monotonic()
        target = ctx.known["target"]
        if target["type"] != ctx.plan.target_type:
            await ctx.cloud.retype(target["volume_id"], ctx.plan.target_type)
        volume = await ctx.cloud.wait_retyped(
            target["volume_id"],
            ctx.plan.target_type,
            deadline_s=ctx.plan.wanted.timeouts.retype_s,
            progress=follow(ctx, f"retype to {ctx.plan.target_type}"),
        )
        return {
            "was": target["type"],
            "now": volume.type,
            "elapsed_s": round(time.monotonic() - began, 3),
        }

    async def undo(self, ctx: Context, receipt: Receipt) -> None:
        """Nothing to go back to: the target is deleted next. Only a retype that runs must end."""
        volume_id = ctx.known["target"]["volume_id"]
        volume = await ctx.cloud.volume(volume_id)
        if volume.status == "retyping":
            await ctx.cloud.wait_volume(
                volume_id,
                until="available",
                deadline_s=ctx.plan.wanted.timeouts.retype_s,
                flag="--retype-timeout",
            )
