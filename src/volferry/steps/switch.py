"""Which side a transfer's services were switched to last.

The guest knows. What it said is told, so that it is known of a guest that somebody deleted; and a
switch is told before it begins, so that one which was not heard to end is known as such.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from volferry.methods import Job
from volferry.model import Event, Json, Outcome
from volferry.steps.step import Context

JOBS: tuple[Job, ...] = ("cutover", "cutback")


@dataclass(frozen=True)
class Switch:
    """The last one that was begun: a cutover, or the way back from one."""

    begun: Job
    at: float
    """When, in seconds since the epoch."""
    live: str = ""
    """The side that it ended on; empty while it runs, or when its end was never heard."""
    outcome: Json | None = None
    """How it ended, as ``model.Outcome``."""
    cutover: Json | None = None
    """How the cutover ended, also of one that is gone back from."""


def heard(events: Iterable[Event]) -> Switch | None:
    """As far as it was told; None when none was begun."""
    last: Switch | None = None
    for event in events:
        if event.kind == "cutover":
            last = Switch("cutover", event.at)
        elif event.kind == "cutback":
            # To go back from the source changes nothing.
            live = last.live if last and last.live == "source" else ""
            last = Switch("cutback", event.at, live, cutover=event.facts["cutover"])
        elif event.kind == "outcome" and last:
            last = _ended(last, event.facts)
    return last


async def last_switch(ctx: Context, *, forward: bool = False) -> Switch | None:
    """As the guest says, where it is there. None when none was begun, or nothing came of it.

    A cutover that runs is waited for. A way back is when it goes ``forward``: somebody took it
    away, and what the guest has begun it ends by itself. Going back it is left to who joins it.
    """
    told = heard(ctx.line.events())
    if not ctx.guest.is_there:
        return told
    job = await ctx.guest.last_job()
    if not job and told and told.cutover:
        return told  # our agent is gone from there; it knew of one
    if job not in JOBS:
        return None  # what was told did not begin there
    last = told or Switch(job, 0.0)
    if last.begun != job:
        last = Switch(job, 0.0, cutover=last.cutover)
    outcome: Outcome | None = await ctx.method.outcome(ctx, job, forward=forward)
    if outcome is None:
        return replace(last, live="", outcome=None)
    if (job == "cutover" or forward) and not _was_told(ctx, outcome):
        await ctx.tell("outcome", **outcome.model_dump(mode="json"))
    return _ended(last, outcome.model_dump(mode="json"))


def _ended(switch: Switch, outcome: Json) -> Switch:
    cutover = outcome if switch.begun == "cutover" else switch.cutover
    return replace(switch, live=outcome["live"], outcome=outcome, cutover=cutover)


def _was_told(ctx: Context, outcome: Outcome) -> bool:
    told = [e.facts.get("job_id") for e in ctx.line.events() if e.kind == "outcome"]
    return outcome.job_id in told
