"""Keep the targets out of every storage stack of the guest, before the guest can see them."""

from typing import ClassVar

from volferry.model import Receipt
from volferry.steps.step import Context, Phase, Step
from volferry.steps.volumes import target_ids


class Quarantine(Step):
    name = "quarantine"
    phase: ClassVar[Phase] = "attach"
    promise = "a udev rule keeps the target out of use, also after a reboot ({rule})"

    async def find(self, ctx: Context) -> Receipt | None:
        del ctx  # writing the rule again is the same as once
        return None

    async def left_behind(self, ctx: Context) -> Receipt | None:
        del ctx
        return {}

    async def do(self, ctx: Context) -> Receipt:
        receipt: Receipt = await ctx.guest.quarantine(target_ids(ctx))
        return receipt

    async def undo(self, ctx: Context, receipt: Receipt) -> None:
        """The rule goes with all else of ours, once the targets are deleted: an attach that the
        cloud is still carrying out would show one to a guest without it."""
