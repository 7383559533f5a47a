"""The target volume: from the snapshot, or blank."""

import time
from typing import ClassVar

from volferry.cloud import TypeNotReachable
from volferry.model import Plan, Receipt, Seed, Volume
from volferry.steps.progress import follow
from volferry.steps.step import Context, Phase, Step

# Metadata that belongs to the source alone. Cinder writes the first two itself.
_NOT_COPIED = ("readonly", "attached_mode", "volferry:")


class Target(Step):
    """A volume from a snapshot is pinned to the snapshot's back end. The wanted type is asked for
    first, because one on the same back end is had at once; when Cinder declines, the target gets
    the source's type and the next step retypes it.
    """

    name = "target"
    phase: ClassVar[Phase] = "seed"
    promise = "target volume {volume_id} exists ({size_gib} GiB, {type}), filled from: {seed}"

    async def find(self, ctx: Context) -> Receipt | None:
        found = await ctx.cloud.find_volume(ctx.transfer_id)
        if found is None or found.status != "available":
            return None
        return _receipt(ctx.plan, found, 0.0)

    async def left_behind(self, ctx: Context) -> Receipt | None:
        found = await ctx.cloud.find_volume(ctx.transfer_id)
        return _receipt(ctx.plan, found, 0.0) if found else None

    async def do(self, ctx: Context) -> Receipt:
        began = time.monotonic()
        plan = ctx.plan
        try:
            asked = await self._create(ctx, plan.target_type)
        except TypeNotReachable:
            if plan.target_type == plan.cloud.source.type:
                raise
            await ctx.tell(
                "note",
                text=f"the snapshot's back end does not serve type '{plan.target_type}': "
                f"the target is made as '{plan.cloud.source.type}' and retyped",
            )
            asked = await self._create(ctx, plan.cloud.source.type)
        made = await ctx.cloud.wait_volume(
            asked.id,
            until="available",
            deadline_s=plan.wanted.timeouts.create_s,
            progress=follow(ctx, f"volume {asked.id}"),
        )
        return _receipt(plan, made, time.monotonic() - began)

    async def _create(self, ctx: Context, type_: str) -> Volume:
        plan, source = ctx.plan, ctx.plan.cloud.source
        snapshot = ctx.known.get("snapshot")
        made: Volume = await ctx.cloud.create_volume(
            plan.target_name,
            size_gib=plan.target_size_gib,
            type=type_,
            mark=ctx.transfer_id,
            snapshot_id=snapshot["snapshot_id"] if snapshot else None,
            availability_zone=source.availability_zone or None,
            description=source.description,
            metadata={k: v for k, v in source.metadata.items() if not k.startswith(_NOT_COPIED)},
        )
        return made

    async def undo(self, ctx: Context, receipt: Receipt) -> None:
        volume_id = receipt["volume_id"]
        await ctx.cloud.delete_volume(volume_id, ctx.transfer_id)
        await ctx.cloud.wait_deleted(
            "volume", volume_id, deadline_s=ctx.plan.wanted.timeouts.delete_s
        )


def _receipt(plan: Plan, volume: Volume, elapsed_s: float) -> Receipt:
    return {
        "volume_id": volume.id,
        "name": volume.name,
        "type": volume.type,
        "size_gib": volume.size_gib,
        "seed": "snapshot" if plan.seed is Seed.SNAPSHOT else "blank",
        "elapsed_s": round(elapsed_s, 3),
    }
