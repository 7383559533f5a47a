"""Put the agent into the guest and claim the source volumes there."""

from typing import ClassVar

from volferry.model import Receipt
from volferry.steps.step import Context, Phase, Step


class Install(Step):
    """The claim is a file that only one can create: the guest is the one place that two controllers
    on two machines share, so there one of two transfers of a volume is refused.
    """

    name = "install"
    phase: ClassVar[Phase] = "seed"
    promise = "our agent lies in the guest's {state_dir}; no service was touched"

    async def find(self, ctx: Context) -> Receipt | None:
        del ctx  # installing it again is the same as once
        return None

    async def left_behind(self, ctx: Context) -> Receipt | None:
        del ctx
        return {}

    async def do(self, ctx: Context) -> Receipt:
        receipt: Receipt = await ctx.guest.install([s.ref for s in ctx.plan.cloud.sources])
        return receipt

    async def undo(self, ctx: Context, receipt: Receipt) -> None:
        await ctx.guest.uninstall()
