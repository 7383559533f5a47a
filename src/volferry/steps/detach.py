"""Take the sources out of the server. From here on going back is by hand."""

import contextlib
import time
from collections.abc import Sequence
from typing import ClassVar

from volferry.errors import Doubt, NotFound, Stop
from volferry.model import Json, Pair, Plan, Receipt, Volume
from volferry.steps.attach import appears, unplug
from volferry.steps.cutover import committed_still, is_standby
from volferry.steps.progress import follow, until_sure
from volferry.steps.step import Context, Held, Phase, Step, Undo
from volferry.steps.switch import Switch, heard, last_switch
from volferry.steps.volumes import deleted_targets, lost_pairs

_SERVED = "the service still has its data on the target"
DETACHED = f"detached; {_SERVED}"


class Detach(Step):
    """The mount is looked at before and after: systemd unmounts what is still bound to a device
    that goes away (systemd issues 3568 and 8596), and then the service would lose its data.
    """

    name = "detach"
    phase: ClassVar[Phase] = "finish"
    promise = "the source is {state}"
    undo_costs = Undo.CONSENT

    def foreseen(self, plan: Plan) -> Json:
        return {"state": DETACHED}

    async def costs(self, ctx: Context, receipt: Receipt) -> Undo:
        return Undo.FREE if receipt.get("standby") else self.undo_costs

    async def find(self, ctx: Context) -> Receipt | None:
        del ctx  # detaching what is detached, or twice, asks nothing of the cloud
        return None

    async def left_behind(self, ctx: Context) -> Receipt | None:
        gone_back = await _way_back(ctx)
        if gone_back and gone_back.live == "source":
            return None  # going forward from there has changed nothing
        sources = ctx.plan.cloud.sources
        in_use = [source for source in sources if await _is_in_use(ctx, source)]
        if _is_held(ctx) and len(in_use) == len(sources):
            # Nothing was begun, so what going back costs is for the cutover to say; unless all was
            # done, and the message to finish was taken, when it was cut before its receipt.
            return None
        if in_use:
            # Going back to a disk that leaves a moment later would take it from the service.
            await until_sure(ctx)
        return _receipt(ctx)

    async def do(self, ctx: Context) -> Receipt:
        if begun := await _way_back(ctx, forward=True):
            await committed_still(ctx, begun)
        if _is_held(ctx):
            state, finish = _as_held(ctx)
            raise Held(
                f"the service runs on the target; the source {state}",
                hint=f"volferry finish {ctx.transfer_id}     {finish}\n"
                f"volferry rollback {ctx.transfer_id}   goes back to the source",
            )
        began = time.monotonic()
        sources = ctx.plan.cloud.sources
        await self._look(ctx, "before the source is detached")
        await ctx.method.leave(ctx)
        deleted = []
        for source in sources:
            try:
                await unplug(ctx, source.id)
            except (NotFound, Doubt):
                if await ctx.cloud.volume_if_any(source.id) is not None:
                    raise
                deleted.append(source.id)
            await self._look(ctx, f"after the source {source.label} was detached")
        # Only now: after a crash in between the operator need not ask again.
        for request in ctx.requests("finish"):
            ctx.take(request)
        return {
            **_receipt(ctx, deleted),
            "server_deleted": not ctx.guest.is_there,
            "state": await _state(ctx, deleted),
            "elapsed_s": round(time.monotonic() - began, 3),
        }

    async def _look(self, ctx: Context, when: str) -> None:
        wrong = await ctx.guest.not_on(ctx, "target")
        lost = await lost_pairs(ctx) if wrong else []
        if lost:
            # What cannot be mounted any more is nothing to wait for.
            await ctx.tell("note", text=f"{when}: {wrong}; {_no_copy(lost)}")
            wrong = await ctx.guest.not_on(ctx, "target", [pair.source.id for pair in lost])
        if not wrong:
            return
        target, hint = "the target holds the service's data", ""
        if deleted := await deleted_targets(ctx):
            target = f"somebody deleted the target ({', '.join(deleted)})"
        else:
            hint = "look at 'findmnt' and 'journalctl -b' in the guest, mount the target; then\n"
            hint += f"volferry resume {ctx.transfer_id}     goes on\n"
        back = f"volferry rollback {ctx.transfer_id} --accept-loss   goes back to the source"
        source = "has followed it" if is_standby(ctx) else "is unchanged since the cutover"
        raise Doubt(
            f"{when} the target is not mounted where it should be: {wrong}",
            data=f"{target}; the source {source}",
            hint=hint + back,
        )

    async def undo(self, ctx: Context, receipt: Receipt) -> None:
        if not ctx.guest.is_there:
            return  # to be attached to nothing, and seen by nobody
        if ctx.method.detaches_first(ctx.plan.guest):
            # Its way back asks for the sources by itself, once the targets are hidden: until then
            # no rule of ours would keep both sides apart.
            return
        server_id, timeouts = ctx.plan.cloud.server.id, ctx.plan.wanted.timeouts
        # They come back as the look-alikes. The commit has hidden them already, unless tidying up
        # was cut short between the rule and our record.
        await ctx.guest.quarantine([source.id for source in ctx.plan.cloud.sources])
        for source in ctx.plan.cloud.sources:
            now: Volume | None = await ctx.cloud.volume_if_any(source.id)
            if now is None:
                continue  # the cutover says what that means
            if now.status == "detaching":
                # It is still in the server's list, so that attaching it now would do nothing.
                with contextlib.suppress(Stop):  # the guest may keep it, which is as good
                    await ctx.cloud.wait_detached(
                        server_id, source.id, deadline_s=timeouts.detach_s
                    )
            await ctx.cloud.attach(server_id, source.id, **ctx.plan.cloud.attached_as(source.id))
            await ctx.cloud.wait_attached(
                server_id,
                source.id,
                deadline_s=timeouts.attach_s,
                progress=follow(ctx, "attach the source again"),
            )
            # The guest goes back by itself; to a disk that it does not see yet it could not.
            await appears(ctx, source, "the service runs on the target, which is complete")


async def _is_in_use(ctx: Context, source: Volume) -> bool:
    now: Volume | None = await ctx.cloud.volume_if_any(source.id)
    return now is not None and now.status == "in-use"


async def _way_back(ctx: Context, *, forward: bool = False) -> Switch | None:
    """The way back that was begun, if one was."""
    told = heard(ctx.line.events())
    if told is None or told.begun != "cutback":
        return None
    return await last_switch(ctx, forward=forward)


def _no_copy(lost: list[Pair]) -> str:
    labels = ", ".join(pair.label for pair in lost)
    return f"somebody deleted the target of {labels}, and there is no way back"


async def _state(ctx: Context, deleted: list[str]) -> str:
    if ctx.guest.is_there:
        if lost := await lost_pairs(ctx):
            return f"detached; {_no_copy(lost)}"
        gone = f", and somebody deleted {', '.join(deleted)}" if deleted else ""
        return f"detached{gone}; {_SERVED}"
    # They may have had the word to go with their server.
    gone_too = [*deleted, *await deleted_targets(ctx)]
    beside = f", and with it {', '.join(gone_too)}" if gone_too else ""
    return f"detached: somebody deleted its server ({ctx.plan.cloud.server.id}){beside}"


def _receipt(ctx: Context, deleted: Sequence[str] = ()) -> Receipt:
    ids = [source.id for source in ctx.plan.cloud.sources]
    sources = [{"source_id": id, "deleted": id in deleted} for id in ids]
    return {"sources": sources, "standby": is_standby(ctx)}


def _is_held(ctx: Context) -> bool:
    wanted = ctx.plan.wanted
    return (wanted.hold or wanted.keep_standby) and not ctx.requests("finish")


def _as_held(ctx: Context) -> tuple[str, str]:
    """What is true of the source while the transfer is held, and what ``finish`` does then."""
    if ctx.method.detaches_first(ctx.plan.guest):
        return "was detached before the commit and is unchanged (--hold)", "ends"
    if ctx.plan.wanted.keep_standby:
        finish = "detaches the source, which stays hidden and cannot be mounted, and ends"
        return "is attached and kept current (--keep-standby)", finish
    return "is attached and unchanged (--hold)", "detaches the source and ends"
