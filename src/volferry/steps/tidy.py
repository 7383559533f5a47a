"""Remove what we put into the cloud and the guest, and say what stays."""

from typing import ClassVar

from volferry.errors import NoWayBack, Stop
from volferry.model import Json, Receipt
from volferry.steps.snapshot import delete
from volferry.steps.step import Context, Phase, Step, Undo


class Tidy(Step):
    name = "tidy"
    phase: ClassVar[Phase] = "finish"
    promise = "nothing of ours is left in the guest or the cloud but what the report names"
    undo_costs = Undo.CONSENT

    async def find(self, ctx: Context) -> Receipt | None:
        del ctx  # removing what is gone is nothing
        return None

    async def do(self, ctx: Context) -> Receipt:
        gone: Receipt = await ctx.guest.uninstall()
        snapshots = ctx.known.get("snapshot", {}).get("snapshots", [])
        wanted = bool(snapshots) and not ctx.plan.wanted.keep_snapshot
        stay = [await self._stays(ctx, one) for one in snapshots] if wanted else []
        return {
            "removed": gone["removed"],
            "left": gone["left"],
            "snapshot_deleted": wanted and not any(stay),
            "snapshots_stay": [why for why in stay if why],
        }

    async def _stays(self, ctx: Context, snapshot: Json) -> str:
        """Why a snapshot cannot be deleted; empty when it is. Some back ends keep one for as long
        as a volume that was made from it lives, here the target: to wait for that would be to wait
        for ever."""
        try:
            await delete(ctx, {"snapshots": [snapshot]})
        except Stop as stays:  # also the doubt whether it is ours: it is left alone and named
            return stays.what
        return ""

    async def left_behind(self, ctx: Context) -> Receipt | None:
        """The way back is in the agent's record: once that is gone there is only the way forward.

        Asked before anything is taken back, so that a transfer never stands where neither goes.
        """
        if not await ctx.guest.last_job():
            here = "the service runs on the target; the source is unchanged since the cutover"
            raise NoWayBack(
                f"transfer '{ctx.transfer_id}' was all but finished: the guest has forgotten the "
                "way back, or was deleted",
                data=here if ctx.guest.is_there else "no volume is touched by ending it",
                hint=f"volferry resume {ctx.transfer_id}   ends it",
            )
        return None

    async def costs(self, ctx: Context, receipt: Receipt) -> Undo:
        raise NoWayBack(
            "the transfer has ended; there is nothing left to go back with",
            data="the source volume is unchanged since the cutover",
            hint="to go back, stop the service, detach the target, attach the source "
            "(volume set --read-write first) and mount it",
        )

    async def undo(self, ctx: Context, receipt: Receipt) -> None:
        await self.costs(ctx, receipt)
