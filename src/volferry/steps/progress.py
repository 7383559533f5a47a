"""From the cloud's plain callbacks to the transfer's progress."""

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
