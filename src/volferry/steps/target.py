"""The target volumes: each from its snapshot, or blank."""

import contextlib
import time
from typing import ClassVar

from volferry.cloud import TypeNotReachable
from volferry.errors import NotFound, Stop
from volferry.model import MARK, Json, Pair, Plan, Receipt, Volume
from volferry.steps.attach import ATTACHED, unplug
from volferry.steps.progress import follow, until_sure
from volferry.steps.step import Context, Phase, Step, Undo

# Metadata that belongs to the source alone. Cinder writes the first two itself.
_NOT_COPIED = ("readonly", "attached_mode", "volferry:")


class Target(Step):
    """A volume from a snapshot is pinned to the snapshot's back end. The wanted type is asked for
    first, because one on the same back end is had at once; when Cinder declines, the target gets
    the source's type and the next step retypes it.

    All are asked for before the first one is waited for: filling them takes the back end's time.
    """

    name = "target"
    phase: ClassVar[Phase] = "seed"
    promise = "target volume exists: {summary}"

    def foreseen(self, plan: Plan) -> Json:
        return {"summary": ", ".join(_words("…", pair, pair.target_type) for pair in plan.pairs)}

    async def find(self, ctx: Context) -> Receipt | None:
        found = await _find(ctx)
        whole = len(found) == len(ctx.plan.pairs)
        ready = all(volume.status == "available" for _, volume in found)
        return _receipt(found, 0.0) if whole and ready else None

    async def left_behind(self, ctx: Context) -> Receipt | None:
        found = await _find(ctx)
        return _receipt(found, 0.0) if found else None

    async def do(self, ctx: Context) -> Receipt:
        began = time.monotonic()
        asked = [(pair, await self._ask_again(ctx, pair)) for pair in ctx.plan.pairs]
        made = [(pair, await self._made(ctx, volume)) for pair, volume in asked]
        return _receipt(made, time.monotonic() - began)

    async def _made(self, ctx: Context, asked: Volume) -> Volume:
        made: Volume = await ctx.cloud.wait_volume(
            asked.id,
            until="available",
            deadline_s=ctx.plan.wanted.timeouts.create_s,
            progress=follow(ctx, f"volume {asked.id}"),
        )
        return made

    async def _ask_again(self, ctx: Context, pair: Pair) -> Volume:
        """An earlier attempt may have ended in error; that one never gets well."""
        asked = await self._ask(ctx, pair)
        if asked.status != "error":
            return asked
        await self.undo(ctx, _receipt([(pair, asked)], 0.0))
        return await self._ask(ctx, pair)

    async def _ask(self, ctx: Context, pair: Pair) -> Volume:
        try:
            return await self._create(ctx, pair, pair.target_type)
        except TypeNotReachable:
            if pair.target_type == pair.source.type:
                raise
            await ctx.tell(
                "note",
                text=f"the snapshot's back end does not serve type '{pair.target_type}': "
                f"the target of {pair.label} is made as '{pair.source.type}' and retyped",
            )
            return await self._create(ctx, pair, pair.source.type)

    async def _create(self, ctx: Context, pair: Pair, type_: str) -> Volume:
        source = pair.source
        snapshots = ctx.known.get("snapshot", {"snapshots": []})["snapshots"]
        made: Volume = await ctx.cloud.create_volume(
            pair.target_name,
            size_gib=pair.target_size_gib,
            type=type_,
            mark=ctx.transfer_id,
            source_id=source.id,
            snapshot_id=next(
                (s["snapshot_id"] for s in snapshots if s["source_id"] == source.id), None
            ),
            availability_zone=source.availability_zone or None,
            description=source.description,
            metadata={k: v for k, v in source.metadata.items() if not k.startswith(_NOT_COPIED)},
        )
        return made

    async def costs(self, ctx: Context, receipt: Receipt) -> Undo:
        deleted = [
            f"{source.label} ({source.id})"
            for source in ctx.plan.cloud.sources
            if not await _is_kept(ctx, source.id)
        ]
        if deleted:
            await ctx.tell("note", text=f"somebody deleted the source {', '.join(deleted)}")
        return Undo.LAST_COPY if deleted else Undo.FREE

    async def undo(self, ctx: Context, receipt: Receipt) -> None:
        timeouts = ctx.plan.wanted.timeouts
        every = [made["volume_id"] for made in receipt["targets"]]
        for volume_id in every:
            with contextlib.suppress(NotFound):
                volume = await ctx.cloud.volume(volume_id)
                # Cinder deletes nothing that is still being made, but what ended in error.
                if volume.status == "creating":
                    with contextlib.suppress(Stop):
                        await ctx.cloud.wait_volume(
                            volume_id,
                            deadline_s=timeouts.create_s,
                            progress=follow(ctx, f"volume {volume_id}, which is still being made"),
                        )
                # From compute 2.101 on an attach is accepted before anything can be seen of it, and
                # may come after it was taken back.
                elif volume.status in ATTACHED and volume.metadata.get(MARK) == ctx.transfer_id:
                    await unplug(ctx, volume_id)
            await ctx.cloud.delete_volume(volume_id, ctx.transfer_id)
        for volume_id in every:
            await ctx.cloud.wait_deleted("volume", volume_id, deadline_s=timeouts.delete_s)


async def _is_kept(ctx: Context, volume_id: str) -> bool:
    """Neither deleted nor on the way: a back end may take hours to wipe one, or fail at it."""
    now: Volume | None = await ctx.cloud.volume_if_any(volume_id)
    return now is not None and now.status not in ("deleting", "error_deleting")


async def _find(ctx: Context) -> list[tuple[Pair, Volume]]:
    found = await _look(ctx)
    if len(found) < len(ctx.plan.pairs):
        await until_sure(ctx)
        found = await _look(ctx)
    return found


async def _look(ctx: Context) -> list[tuple[Pair, Volume]]:
    every = [
        (pair, await ctx.cloud.find_volume(ctx.transfer_id, pair.source.id))
        for pair in ctx.plan.pairs
    ]
    return [(pair, volume) for pair, volume in every if volume]


def _words(volume_id: str, pair: Pair, type_: str) -> str:
    seed = "from its snapshot" if pair.seed.value == "snapshot" else "blank"
    return f"{volume_id} for {pair.label} ({pair.target_size_gib} GiB, {type_}, {seed})"


def _receipt(made: list[tuple[Pair, Volume]], elapsed_s: float) -> Receipt:
    return {
        "targets": [
            {
                "source_id": pair.source.id,
                "volume_id": volume.id,
                "name": volume.name,
                "type": volume.type,
                "size_gib": volume.size_gib,
                "seed": pair.seed.value,
            }
            for pair, volume in made
        ],
        "summary": ", ".join(_words(volume.id, pair, volume.type) for pair, volume in made),
        "elapsed_s": round(elapsed_s, 3),
    }
