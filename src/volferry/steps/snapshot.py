"""A snapshot of each source, to seed its target from."""

import contextlib
import time
from typing import ClassVar

from volferry.errors import NotFound, Stop
from volferry.model import MARK, Json, Pair, Plan, Receipt, Seed, Snapshot
from volferry.steps.progress import follow, until_sure
from volferry.steps.step import Context, Phase, Step


class TakeSnapshot(Step):
    """One after the other: they need not be of one moment, because what was written meanwhile is
    copied by the passes like everything else that a snapshot lacks.
    """

    name = "snapshot"
    phase: ClassVar[Phase] = "seed"
    promise = "snapshot exists: {summary}"

    def applies(self, plan: Plan) -> bool:
        return bool(_seeded(plan))

    def foreseen(self, plan: Plan) -> Json:
        return {"summary": ", ".join(_words("…", pair) for pair in _seeded(plan))}

    async def find(self, ctx: Context) -> Receipt | None:
        found = await _find(ctx)
        whole = len(found) == len(_seeded(ctx.plan))
        ready = all(snapshot.status == "available" for _, snapshot in found)
        return _receipt(found, 0.0) if whole and ready else None

    async def left_behind(self, ctx: Context) -> Receipt | None:
        found = await _find(ctx)
        return _receipt(found, 0.0) if found else None

    async def do(self, ctx: Context) -> Receipt:
        began = time.monotonic()
        made = [(pair, await self._take(ctx, pair)) for pair in _seeded(ctx.plan)]
        return _receipt(made, time.monotonic() - began)

    async def _take(self, ctx: Context, pair: Pair) -> Snapshot:
        asked = await self._ask(ctx, pair)
        if asked.status == "error":  # an earlier attempt ended so, and it never gets well
            await delete(ctx, _receipt([(pair, asked)], 0.0))
            asked = await self._ask(ctx, pair)
        made: Snapshot = await ctx.cloud.wait_snapshot(
            asked.id,
            deadline_s=ctx.plan.wanted.timeouts.snapshot_s,
            progress=follow(ctx, f"snapshot {asked.id}"),
        )
        return made

    async def _ask(self, ctx: Context, pair: Pair) -> Snapshot:
        asked: Snapshot = await ctx.cloud.create_snapshot(
            pair.source.id, f"volferry-{ctx.transfer_id}", ctx.transfer_id
        )
        return asked

    async def undo(self, ctx: Context, receipt: Receipt) -> None:
        await delete(ctx, receipt)


async def delete(ctx: Context, receipt: Receipt) -> None:
    """Delete our snapshots and see them gone; nothing for those that are gone already."""
    timeouts, every = ctx.plan.wanted.timeouts, [s["snapshot_id"] for s in receipt["snapshots"]]
    for snapshot_id in every:
        # Cinder deletes nothing that is still being made, but what ended in error.
        with contextlib.suppress(NotFound, Stop):
            if (await ctx.cloud.snapshot(snapshot_id)).status == "creating":
                await ctx.cloud.wait_snapshot(
                    snapshot_id,
                    deadline_s=timeouts.snapshot_s,
                    progress=follow(ctx, f"snapshot {snapshot_id}, which is still being made"),
                )
        await ctx.cloud.delete_snapshot(snapshot_id, ctx.transfer_id)
    for snapshot_id in every:
        await ctx.cloud.wait_deleted("snapshot", snapshot_id, deadline_s=timeouts.delete_s)


def _seeded(plan: Plan) -> list[Pair]:
    return [pair for pair in plan.pairs if pair.seed is Seed.SNAPSHOT]


async def _find(ctx: Context) -> list[tuple[Pair, Snapshot]]:
    found = await _look(ctx)
    if len(found) < len(_seeded(ctx.plan)):
        await until_sure(ctx)
        found = await _look(ctx)
    return found


async def _look(ctx: Context) -> list[tuple[Pair, Snapshot]]:
    every = [
        (pair, await ctx.cloud.find_snapshot(ctx.transfer_id, pair.source.id))
        for pair in _seeded(ctx.plan)
    ]
    return [(pair, snapshot) for pair, snapshot in every if snapshot]


def _words(snapshot_id: str, pair: Pair) -> str:
    return f"{snapshot_id} of {pair.label} ({pair.source.size_gib} GiB)"


def _receipt(made: list[tuple[Pair, Snapshot]], elapsed_s: float) -> Receipt:
    return {
        "snapshots": [
            {
                "source_id": pair.source.id,
                "snapshot_id": snapshot.id,
                "name": snapshot.name,
                "size_gib": snapshot.size_gib,
                "mark": snapshot.metadata.get(MARK, ""),
            }
            for pair, snapshot in made
        ],
        "summary": ", ".join(_words(snapshot.id, pair) for pair, snapshot in made),
        "elapsed_s": round(elapsed_s, 3),
    }
