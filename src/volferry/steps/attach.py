"""Plug the target into the server, and prove in the guest which disk it is."""

import time
from typing import ClassVar

from volferry.errors import Stop
from volferry.model import Disk, DiskRef, Receipt, Volume
from volferry.steps.progress import follow
from volferry.steps.step import Context, Phase, Step, Undo

POLL_S = 0.5


class Attach(Step):
    """Nova's word for the device (``/dev/vdc``) is not the guest's name. The disk is proven by the
    serial that the hypervisor gives it from the volume's id, and by its size.
    """

    name = "attach"
    phase: ClassVar[Phase] = "attach"
    promise = "the guest sees the target as {device}, proven by its serial {serial} and its size"
    undo_costs = Undo.FREE

    async def find(self, ctx: Context) -> Receipt | None:
        del ctx  # attaching what is attached asks nothing of the cloud
        return None

    async def left_behind(self, ctx: Context) -> Receipt | None:
        return {"volume_id": ctx.known["target"]["volume_id"]}

    async def do(self, ctx: Context) -> Receipt:
        began = time.monotonic()
        plan = ctx.plan
        server, source = plan.cloud.server, plan.cloud.source
        target: Volume = await ctx.cloud.volume(ctx.known["target"]["volume_id"])
        beside = next((v for v in plan.cloud.server_volumes if v.volume_id == source.id), None)
        await ctx.cloud.attach(
            server.id,
            target.id,
            # The user's word about what becomes of the data when the server goes.
            delete_on_termination=bool(beside and beside.delete_on_termination),
        )
        deadline_s = plan.wanted.timeouts.attach_s
        await ctx.cloud.wait_attached(
            server.id, target.id, deadline_s=deadline_s, progress=follow(ctx, "attach")
        )
        disk = await self._appears(ctx, target, deadline_s)
        return {
            "volume_id": target.id,
            "device": disk.path,
            "serial": disk.serial,
            "size_bytes": disk.size_bytes,
            "elapsed_s": round(time.monotonic() - began, 3),
        }

    async def _appears(self, ctx: Context, target: Volume, deadline_s: float) -> Disk:
        ref = DiskRef(volume_id=target.id, size_bytes=target.size_bytes)
        ends = time.monotonic() + deadline_s
        while True:
            disk: Disk | None = await ctx.guest.find(ref)
            if disk is not None:
                return disk
            if time.monotonic() >= ends:
                seen = ", ".join(
                    f"{d.path} {d.size_bytes} bytes serial {d.serial or '(none)'}"
                    for d in await ctx.guest.disks()
                )
                raise Stop(
                    f"volume '{target.id}' did not appear in server "
                    f"'{ctx.plan.cloud.server.name}' within {deadline_s:.0f} s (--attach-timeout)",
                    data="nothing was copied; the source is untouched and in use\n"
                    f"the guest reports: {seen}",
                )
            await ctx.sleep(POLL_S)

    async def undo(self, ctx: Context, receipt: Receipt) -> None:
        await unplug(ctx, receipt["volume_id"])


async def unplug(ctx: Context, volume_id: str) -> Volume:
    """Detach a volume from the server and see it gone; nothing when it is gone already."""
    server_id = ctx.plan.cloud.server.id
    await ctx.cloud.detach(server_id, volume_id)
    volume: Volume = await ctx.cloud.wait_detached(
        server_id,
        volume_id,
        deadline_s=ctx.plan.wanted.timeouts.detach_s,
        progress=follow(ctx, f"detach {volume_id}"),
    )
    return volume
