"""Waiting for the cloud: its plain callbacks become the transfer's progress, and a request that
nobody has heard the end of is waited for."""

import asyncio

from volferry.cloud import OnProgress
from volferry.model import Progress
from volferry.steps.step import Context


def follow(ctx: Context, what: str) -> OnProgress:
    """A callback for a wait of the cloud that passes its progress on, named ``what``.

    The callback must return at once, telling may write to disk: so each report is a task, and one
    that comes while the last one is still being told is dropped. Only the newest matters.
    """
    telling: asyncio.Task[None] | None = None

    def report(progress: Progress) -> None:
        nonlocal telling
        if telling is None or telling.done():
            telling = asyncio.ensure_future(
                ctx.progress(progress.model_copy(update={"what": what}))
            )

    return report


async def until_sure(ctx: Context) -> None:
    """Return once no request of a process that died can still be carried out by the cloud.

    A look before then tells nothing of what is not there: an API goes on with a request whose
    client is gone (seen: a volume that was made after its transfer had been rolled back).
    """
    left = ctx.cloud.sure_in_s()
    if left > 0:
        await ctx.tell(
            "note",
            text=f"a request that was under way when '{ctx.step}' was cut off may still be carried "
            f"out: it is looked at again in {left:.0f} s",
        )
    while (left := ctx.cloud.sure_in_s()) > 0:
        ctx.check_stop()
        await ctx.sleep(left)
