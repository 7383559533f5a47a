"""A snapshot of the source, to seed the target from."""

import time
from typing import ClassVar

from volferry.model import MARK, Plan, Receipt, Seed, Snapshot
from volferry.steps.progress import follow
from volferry.steps.step import Context, Phase, Step


class TakeSnapshot(Step):
    name = "snapshot"
    phase: ClassVar[Phase] = "seed"
    promise = "snapshot {snapshot_id} of the source exists ({size_gib} GiB)"

    def applies(self, plan: Plan) -> bool:
        return plan.seed is Seed.SNAPSHOT

    async def find(self, ctx: Context) -> Receipt | None:
        found = await ctx.cloud.find_snapshot(ctx.transfer_id)
        if found is None or found.status != "available":
            return None
        return _receipt(found, 0.0)

    async def left_behind(self, ctx: Context) -> Receipt | None:
        found = await ctx.cloud.find_snapshot(ctx.transfer_id)
        return _receipt(found, 0.0) if found else None

    async def do(self, ctx: Context) -> Receipt:
        began = time.monotonic()
        source = ctx.plan.cloud.source
        asked = await ctx.cloud.create_snapshot(
            source.id, f"volferry-{ctx.transfer_id}", ctx.transfer_id
        )
        made = await ctx.cloud.wait_snapshot(
            asked.id,
            deadline_s=ctx.plan.wanted.timeouts.snapshot_s,
            progress=follow(ctx, f"snapshot {asked.id}"),
        )
        return _receipt(made, time.monotonic() - began)

    async def undo(self, ctx: Context, receipt: Receipt) -> None:
        await delete(ctx, receipt["snapshot_id"])


async def delete(ctx: Context, snapshot_id: str) -> None:
    """Delete our snapshot and see it gone; nothing when it is gone already."""
    await ctx.cloud.delete_snapshot(snapshot_id, ctx.transfer_id)
    await ctx.cloud.wait_deleted(
        "snapshot", snapshot_id, deadline_s=ctx.plan.wanted.timeouts.delete_s
    )


def _receipt(snapshot: Snapshot, elapsed_s: float) -> Receipt:
    return {
        "snapshot_id": snapshot.id,
        "name": snapshot.name,
        "size_gib": snapshot.size_gib,
        "mark": snapshot.metadata.get(MARK, ""),
        "elapsed_s": round(elapsed_s, 3),
    }
