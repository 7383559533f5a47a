"""Remove what we put into the cloud and the guest, and say what stays."""

from typing import ClassVar

from volferry.errors import Refused
from volferry.model import Receipt
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
        snapshot = ctx.known.get("snapshot")
        deleted = False
        if snapshot and not ctx.plan.wanted.keep_snapshot:
            await delete(ctx, snapshot)
            deleted = True
        gone: Receipt = await ctx.guest.uninstall()
        return {
            "removed": gone["removed"],
            "left": gone["left"],
            "snapshot_deleted": deleted,
        }

    async def undo(self, ctx: Context, receipt: Receipt) -> None:
        raise Refused(
            f"transfer '{ctx.transfer_id}' has ended; there is nothing left to go back with",
            data="unchanged since the cutover: the source volume "
            + ", ".join(source.id for source in ctx.plan.cloud.sources),
            hint="to go back, stop the service, detach the target, attach the source "
            "(volume set --read-write first) and mount it",
        )
