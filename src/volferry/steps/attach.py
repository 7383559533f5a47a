"""Plug the targets into the server, and prove in the guest which disk each of them is."""

import contextlib
import time
from typing import ClassVar

from volferry.errors import Doubt, NotFound, Stop
from volferry.model import Disk, Json, Pair, Receipt, Volume
from volferry.steps.progress import follow, until_sure
from volferry.steps.step import Context, Phase, Step, Undo
from volferry.steps.volumes import target_ids

POLL_S = 0.5
ATTACHED = ("reserved", "attaching", "in-use", "detaching")
"""What a volume's status is from the request to attach it on until it is detached."""


class Attach(Step):
    """Nova's word for the device (``/dev/vdc``) is not the guest's name. The disk is proven by the
    serial that the hypervisor gives it from the volume's id, and by its size.
    """

    name = "attach"
    phase: ClassVar[Phase] = "attach"
    promise = "the guest sees the target, proven by its serial and its size: {summary}"
    undo_costs = Undo.FREE

    async def find(self, ctx: Context) -> Receipt | None:
        # Attaching what is attached asks nothing of the cloud; asked for twice it is refused.
        await self._until_begun(ctx)
        return None

    async def left_behind(self, ctx: Context) -> Receipt | None:
        await self._until_begun(ctx)
        return {"disks": [{"volume_id": id} for id in target_ids(ctx)]}

    async def _until_begun(self, ctx: Context) -> None:
        """Of an attach that was cut off: until it shows, or never will."""
        for id in target_ids(ctx):
            with contextlib.suppress(NotFound):
                if (await ctx.cloud.volume(id)).status not in ATTACHED:
                    await until_sure(ctx)

    async def do(self, ctx: Context) -> Receipt:
        began = time.monotonic()
        disks = [
            await self._plug(ctx, pair, target)
            for pair, target in zip(ctx.plan.pairs, target_ids(ctx), strict=True)
        ]
        return {
            "disks": disks,
            "summary": ", ".join(f"{d['device']} {d['serial']}" for d in disks),
            "elapsed_s": round(time.monotonic() - began, 3),
        }

    async def _plug(self, ctx: Context, pair: Pair, target_id: str) -> Json:
        """One at a time: a hypervisor plugs one disk into a guest after the other as well."""
        server, deadline_s = ctx.plan.cloud.server, ctx.plan.wanted.timeouts.attach_s
        target: Volume = await ctx.cloud.volume(target_id)
        await ctx.cloud.attach(server.id, target.id, **ctx.plan.cloud.attached_as(pair.source.id))
        await ctx.cloud.wait_attached(
            server.id, target.id, deadline_s=deadline_s, progress=follow(ctx, "attach")
        )
        disk = await appears(ctx, target)
        return {
            "source_id": pair.source.id,
            "volume_id": target.id,
            "device": disk.path,
            "serial": disk.serial,
            "size_bytes": disk.size_bytes,
        }

    async def undo(self, ctx: Context, receipt: Receipt) -> None:
        # Whatever the journal says of the cutover: a service may have its data there.
        mounted = any(fs.mounts for fs in ctx.plan.guest.filesystems)
        standing = self.name in ctx.known and ctx.guest.is_there
        if mounted and standing and not await ctx.guest.not_on(ctx, "target"):
            raise Doubt(
                "the target is mounted where the service has its data",
                data="nothing was taken away: the target may be the live side",
                hint="look at 'findmnt' in the guest; with the source mounted there instead: "
                f"volferry rollback {ctx.transfer_id}",
            )
        for disk in receipt["disks"]:
            # Somebody else may have deleted it: then it is in no server.
            with contextlib.suppress(NotFound):
                await unplug(ctx, disk["volume_id"])


async def appears(
    ctx: Context,
    volume: Volume,
    meaning: str = "nothing was copied; the source is untouched and in use",
) -> Disk:
    """The disk of a volume that the cloud calls attached, as soon as the guest shows it."""
    deadline_s = ctx.plan.wanted.timeouts.attach_s
    ends = time.monotonic() + deadline_s
    while True:
        disk: Disk | None = await ctx.guest.find(volume.ref)
        if disk is not None:
            return disk
        if time.monotonic() >= ends:
            seen = ", ".join(
                f"{d.path} {d.size_bytes} bytes serial {d.serial or '(none)'}"
                for d in await ctx.guest.disks()
            )
            raise Stop(
                f"volume '{volume.id}' did not appear in server "
                f"'{ctx.plan.cloud.server.name}' within {deadline_s:.0f} s (--attach-timeout)",
                data=f"{meaning}\nthe guest reports: {seen}",
            )
        await ctx.sleep(POLL_S)


async def unplug(ctx: Context, volume_id: str) -> Volume:
    """Detach a volume from the server and see it gone; nothing when it is gone already."""
    server_id, timeouts = ctx.plan.cloud.server.id, ctx.plan.wanted.timeouts
    if (await ctx.cloud.volume(volume_id)).status in ("reserved", "attaching"):
        # Nova refuses to detach what it is still attaching, and an attach may yet fail by itself.
        with contextlib.suppress(Stop):
            await ctx.cloud.wait_attached(server_id, volume_id, deadline_s=timeouts.attach_s)
    await ctx.cloud.detach(server_id, volume_id)
    volume: Volume = await ctx.cloud.wait_detached(
        server_id,
        volume_id,
        deadline_s=timeouts.detach_s,
        progress=follow(ctx, f"detach {volume_id}"),
    )
    return volume
