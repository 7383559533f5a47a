"""Give each detached target its wanted type."""

import contextlib
import time
from typing import ClassVar

from volferry.errors import NotFound
from volferry.model import Json, Pair, Plan, Receipt, Volume
from volferry.steps.progress import follow, until_sure
from volferry.steps.step import Context, Phase, Step


class Retype(Step):
    """A retype that has to move data can fail after it was accepted: the status then just returns
    and the type is unchanged. So the type is compared, here and again by the cloud's wait.
    """

    name = "retype"
    phase: ClassVar[Phase] = "seed"
    promise = "the target has the type {now}"

    def foreseen(self, plan: Plan) -> Json:
        return {"now": ", ".join(dict.fromkeys(pair.target_type for pair in plan.pairs))}

    async def find(self, ctx: Context) -> Receipt | None:
        await _until_begun(ctx)
        seen = [await ctx.cloud.volume(made["volume_id"]) for _, made in _made(ctx)]
        done = all(
            volume.type == pair.target_type and volume.status == "available"
            for (pair, _), volume in zip(_made(ctx), seen, strict=True)
        )
        return _receipt(ctx, seen, 0.0) if done else None

    async def left_behind(self, ctx: Context) -> Receipt | None:
        # A retype that still runs cannot be cancelled; deleting the target waits for it.
        await _until_begun(ctx)
        return {}

    async def do(self, ctx: Context) -> Receipt:
        began = time.monotonic()
        for pair, made in _made(ctx):
            if made["type"] != pair.target_type:
                await ctx.cloud.retype(made["volume_id"], pair.target_type)
        moved = [
            await ctx.cloud.wait_retyped(
                made["volume_id"],
                pair.target_type,
                deadline_s=ctx.plan.wanted.timeouts.retype_s,
                progress=follow(ctx, f"retype to {pair.target_type}"),
            )
            for pair, made in _made(ctx)
        ]
        return _receipt(ctx, moved, time.monotonic() - began)

    async def undo(self, ctx: Context, receipt: Receipt) -> None:
        """Nothing to go back to: the targets are deleted next. Only a retype that runs must end."""
        for _, made in _made(ctx):
            try:
                volume = await ctx.cloud.volume(made["volume_id"])
            except NotFound:
                continue  # somebody else deleted it
            if volume.status == "retyping":
                await ctx.cloud.wait_volume(
                    volume.id,
                    until="available",
                    deadline_s=ctx.plan.wanted.timeouts.retype_s,
                    flag="--retype-timeout",
                )


async def _until_begun(ctx: Context) -> None:
    """Of a retype that was cut off: until it shows, or never will."""
    for pair, made in _made(ctx):
        with contextlib.suppress(NotFound):
            volume = await ctx.cloud.volume(made["volume_id"])
            if volume.type != pair.target_type and volume.status != "retyping":
                await until_sure(ctx)


def _made(ctx: Context) -> list[tuple[Pair, Json]]:
    """Each pair with what the target step has made for it."""
    return list(zip(ctx.plan.pairs, ctx.known["target"]["targets"], strict=True))


def _receipt(ctx: Context, moved: list[Volume], elapsed_s: float) -> Receipt:
    return {
        "retypes": [
            {
                "source_id": pair.source.id,
                "volume_id": volume.id,
                "was": made["type"],
                "now": volume.type,
            }
            for (pair, made), volume in zip(_made(ctx), moved, strict=True)
        ],
        "now": ", ".join(dict.fromkeys(volume.type for volume in moved)),
        "elapsed_s": round(elapsed_s, 3),
    }
