"""Blocks, by the kernel's notes of every write: a live copy with a final pass of the last of them.

Whatever the volume holds, the downtime is that of the chunks written last, not of the tree. The
target is an exact copy that cannot be recognised until the commit, so that one side alone can be
brought up at any instant.

What is compared: by default every chunk of both disks, while the service runs; a chunk that is
written later is compared again after it was copied, the last ones inside the cutover.
"""

import contextlib
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import ClassVar

from volferry.errors import NotFound, Retry, Stop
from volferry.guests import stacks
from volferry.methods import Job, Method, Outlook, Scene, mount_units_s, predicted, unclear, units_s
from volferry.methods.rsync import ASSUMED_COMMIT_S, ASSUMED_MOUNT_S, GAIN
from volferry.model import (
    CloudFacts,
    GuestFacts,
    Json,
    MountBy,
    Outcome,
    Pass,
    Plan,
    Prediction,
    Progress,
    Receipt,
    Seed,
    Tool,
    Unit,
    Wanted,
)

ASSUMED_RATE = 50e6
ASSUMED_COPY_S = 0.5
"""Of the last chunks, before anything has been measured."""

ASSUMED_LAYER_S = 0.5
"""To close a layer, and to open it but for the trying of its key, which was measured."""

ASSUMED_DETACH_S = 4.0
"""For each source, as Nova takes one after the other out of a server: from when the guest waits
until it sees it gone. It cannot be measured before; in the README's run a detach took 3.8 s."""

_LAYER_TOOLS = {"lvm": "lvs", "luks": "cryptsetup", "md": "mdadm"}
"""One of each package's programs; the others come with it."""

POLL_S = 0.5
SWITCH_NEEDS_S = 20.0
"""Time that the guest must still have when the source is asked out of it, or into it again: seconds
are usual."""
UNPACED = 1.0
"""All of the disks' time is the copy's."""
MIN_PASSES = 2
"""The first copies and compares everything, the second shows what is written meanwhile."""


class Mirror(Method):
    preference: ClassVar[int] = 10
    keeps_a_left_target: ClassVar[bool] = False

    # ---- for the plan ----------------------------------------------------------------------------

    def declines(self, wanted: Wanted, cloud: CloudFacts, guest: GuestFacts) -> str:
        return next(filter(None, _reasons(wanted, cloud, guest)), "")

    def needs_blank(self, guest: GuestFacts) -> bool:
        # Two devices with one btrfs fsid can switch the mounted path (kernel commit a9261d4125c9),
        # and a clone would have it for the moment until it is masked.
        return any(fs.fstype == "btrfs" for fs in guest.filesystems)

    def tools(self, guest: GuestFacts) -> Sequence[Tool]:
        known = {tool.name: tool for tool in guest.tools}
        layers = {_LAYER_TOOLS[layer.kind] for layer in guest.layers if layer.kind in _LAYER_TOOLS}
        names = ("python3", "mount", "umount", "blkid", *sorted(layers))
        return [known.get(name, Tool(name=name)) for name in names]

    def tracks(self, plan: Plan) -> bool:
        del plan
        return True

    def predict(
        self,
        guest: GuestFacts,
        units: Sequence[Unit],
        passes: Sequence[Pass] = (),
        prepared: Receipt | None = None,
    ) -> Prediction:
        """``prepared``: the agent's figures, once there are some (see its mirror)."""
        known = prepared or {}
        stop_s = units_s([unit.stop_s for unit in units], known)
        mounting_s = sum(len(fs.mounts) for fs in guest.filesystems) * ASSUMED_MOUNT_S
        opened = [layer for layer in guest.layers if layer.above]
        opening_s = sum(ASSUMED_LAYER_S + layer.open_s for layer in opened)
        detach_s = 0.0
        if self.detaches_first(guest):
            detach_s = ASSUMED_DETACH_S * max(1, len(guest.source_disks))
        parts = {
            "stop": stop_s,
            "unmount": mounting_s + len(opened) * ASSUMED_LAYER_S,
            "copy": ASSUMED_COPY_S,
            "compare": ASSUMED_COPY_S,
            **({"detach": detach_s} if detach_s else {}),
            "commit": ASSUMED_COMMIT_S,
            "mount": mounting_s + mount_units_s(guest, known) + opening_s,
            "start": units_s([unit.start_s for unit in units], known),
        }
        basis = "nothing measured yet"
        if known:
            # What is dirty now, and what will be written until the units have stopped.
            dirty = known["dirty_bytes"] + known["dirty_bytes_s"] * stop_s
            rest = dirty + known["unverified_bytes"]
            # A service that wrote little gave no figure for copying.
            rate = known["copy_bytes_s"] or known["compare_bytes_s"] or ASSUMED_RATE
            parts["copy"] = dirty / rate
            parts["compare"] = rest / (known["compare_bytes_s"] or rate)
            parts["commit"] = 2 * known["mask_s"] + known["publish_s"]
            basis = (
                f"{dirty / 2**20:.1f} MiB to copy at {rate / 2**20:.0f} MiB/s, "
                f"{rest / 2**20:.1f} MiB to compare"
            )
        if detach_s:
            basis += f", {detach_s:g} s assumed for the detach"
        return predicted(parts, basis, units)

    def detaches_first(self, guest: GuestFacts) -> bool:
        """An initramfs puts arrays and volume groups together that lie on disks, and reads no rule
        of ours (seen: three of four reboots came up on the wrong disk). Encryptions it leaves to
        the system, and what lies inside them."""
        return any(layer.kind in ("lvm", "md") and layer.volume_ids for layer in guest.layers)

    # ---- for the steps ---------------------------------------------------------------------------

    async def track(self, scene: Scene) -> Receipt:
        await self._begin(scene)
        # A started process is not yet one that tracks (seen: 20 s later in a busy guest), and what
        # is written before it does is not in the snapshot that is taken next.
        await self._figures(scene)
        return {"since": time.time()}

    async def untrack(self, scene: Scene) -> None:
        await self._end(scene)

    async def leave(self, scene: Scene) -> None:
        await self._end(scene)

    async def _end(self, scene: Scene) -> None:
        """With its last words: a standby follows for days while nobody asks."""
        status = await scene.guest.mirror_status()
        figures = (status["progress"] or {}).get("figures")
        if figures:
            await _tell_notes(scene, figures)
        await scene.guest.stop_mirror()

    async def _begin(self, scene: Scene) -> None:
        await scene.guest.start_mirror([pair.source.ref for pair in scene.plan.pairs])

    async def prepare(self, scene: Scene) -> Receipt:
        figures = await self._pairs(scene)
        made = [
            {
                "source_id": fs.volume_id,
                "partition": fs.partition,
                "device": fs.device,
                "fstype": fs.fstype,
                "uuid": fs.uuid,
            }
            for fs in scene.plan.guest.filesystems
            if not fs.layers
        ]
        return {
            "filesystems": made,
            "mask_s": figures["mask_s"],
            "publish_s": figures["publish_s"],
            "systemctl_s": figures["systemctl_s"],
            "summary": "it cannot be recognised until the commit",
        }

    async def _pairs(self, scene: Scene) -> Json:
        """Begin to copy, or make sure that it was begun."""
        wanted = scene.plan.wanted
        await self._begin(scene)
        figures: Json = await scene.guest.tell_mirror(
            {
                "do": "pairs",
                "pairs": scene.guest.pairs(scene),
                "blank": all(pair.seed is Seed.BLANK for pair in scene.plan.pairs),
                "luks": any(layer.kind == "luks" for layer in scene.plan.guest.layers),
                "verify": wanted.verify,
                "pace": wanted.pace,
                "bwlimit_bytes_s": wanted.bwlimit_bytes_s,
            }
        )
        return figures

    async def sync(self, scene: Scene) -> Receipt:
        ends = time.monotonic() + scene.plan.wanted.timeouts.sync_s
        await self._pairs(scene)
        while True:
            figures = await self._figures(scene)
            passes = scene.passes()
            if figures["verified"]:
                prediction = self._predict(scene, figures)
                fits = prediction.total_s <= scene.plan.wanted.max_downtime_s
                enough = len(passes) >= MIN_PASSES and (fits or not _gains(passes))
                if enough or _is_idle(figures):
                    break
            scene.check_stop()
            if time.monotonic() >= ends:
                raise Stop(
                    f"the mirror did not end within {scene.plan.wanted.timeouts.sync_s:.0f} s "
                    "(--sync-timeout)",
                    data="the source is untouched; what was copied is kept, and the guest goes on",
                    hint=f"volferry resume {scene.transfer_id} --sync-timeout with more",
                )
            await scene.sleep(POLL_S)
        await scene.tell("prediction", **prediction.model_dump(mode="json"))
        return {
            "passes": len(passes),
            "compared": f"{sum(p.chunks_compared for p in passes)} chunks",
            "bytes_compared": sum(p.bytes_compared for p in passes),
            "healed": sum(p.healed for p in passes),
            "differed_after_loss": sum(p.differed_after_loss for p in passes),
            "verify": figures["verify"],
            "predicted": prediction.model_dump(mode="json"),
        }

    async def catch_up(self, scene: Scene) -> Outlook:
        await self._pairs(scene)
        ends = time.monotonic() + scene.plan.wanted.timeouts.sync_s
        figures = await self._figures(scene)
        while not figures["verified"]:
            scene.check_stop()
            if time.monotonic() >= ends:
                break
            await scene.sleep(POLL_S)
            figures = await self._figures(scene)
        prediction = self._predict(scene, figures)
        await scene.tell("prediction", **prediction.model_dump(mode="json"))
        gains = not figures["verified"] or (not _is_idle(figures) and _gains(scene.passes()))
        wanted = scene.plan.wanted
        fits = prediction.total_s <= wanted.max_downtime_s
        gives_way = figures["pace"] < UNPACED
        if wanted.on_divergence == "throttle-sync" and gives_way and not (fits or gains):
            await scene.guest.tell_mirror({"do": "set", "pace": UNPACED})
            await scene.tell("note", text="from now on copying does not give way to the service")
        return Outlook(prediction, gains)

    def _predict(self, scene: Scene, figures: Json) -> Prediction:
        plan = scene.plan
        return self.predict(plan.guest, plan.units, scene.passes(), figures)

    async def cutback(self, scene: Scene) -> Outcome:
        """The guest touches nothing while its standby does not follow the target: it is made to."""
        outcome = await super().cutback(scene)
        if outcome.standby and outcome.live != "source" and await self._follows_again(scene):
            outcome = await super().cutback(scene)
        return outcome

    async def _follows_again(self, scene: Scene) -> bool:
        """Whether a standby that did not follow the target does so now. Its mirror ends before the
        source is detached; one that is begun again compares everything first."""
        status = await scene.guest.mirror_status()
        known = (status["progress"] or {}).get("figures") or {}
        if status["state"] == "running" and known.get("verified"):
            return False
        await scene.tell("note", text="the old volume is compared with the new one, to follow it")
        await self._begin(scene)
        ends = time.monotonic() + scene.plan.wanted.timeouts.sync_s
        while True:
            figures = await self._look(scene)
            if not figures["standby"]:
                await scene.guest.stop_mirror()  # it has no orders: the source was shown again
                return False
            if figures["verified"]:
                return True
            scene.check_stop()
            if time.monotonic() >= ends:
                raise Stop(
                    "the old volume did not become a standby again within "
                    f"{scene.plan.wanted.timeouts.sync_s:.0f} s (--sync-timeout)",
                    data="the service runs on the target, which is complete",
                    hint=f"volferry rollback {scene.transfer_id}   goes on with it",
                )
            await scene.sleep(POLL_S)

    async def _figures(self, scene: Scene) -> Json:
        """What the mirror says of itself; new passes are kept."""
        figures = await self._look(scene)
        kept = scene.passes()
        new = [one for one in figures["passes"] if one["id"] not in {p.id for p in kept}]
        for number, one in enumerate(new, start=len(kept) + 1):
            await scene.passed(_as_pass(one, number))
        return figures

    async def _look(self, scene: Scene) -> Json:
        """What the mirror says of itself. One that ended is told."""
        status = await scene.guest.mirror_status()
        if status["state"] != "running":
            error = status.get("error")
            if error:
                raise scene.guest.mirror_error(error)
            raise Retry(
                f"the mirror in the guest is not running ({status['state']})",
                data="the source is untouched",
                hint="it is begun again, and compares everything",
            )
        said = status["progress"] or {}
        figures: Json = said.get("figures") or {}
        if not figures:
            figures = await scene.guest.tell_mirror({"do": "figures"})
        await _tell_notes(scene, figures)
        await scene.progress(
            Progress(
                what=figures["phase"],
                done_bytes=said.get("done_bytes"),
                total_bytes=said.get("total_bytes"),
                rate_bytes_s=figures["copy_bytes_s"] or None,
                elapsed_s=said.get("elapsed_s") or 0.0,
                note=f"{figures['dirty_bytes'] / 2**20:.1f} MiB written meanwhile",
            )
        )
        return figures

    def content(self, scene: Scene) -> Json:
        return {
            "method": self.name,
            "filesystems": scene.guest.filesystems(scene),
            "pairs": scene.guest.pairs(scene),
            "layers": scene.guest.layers(scene),
            "detach_first": self.detaches_first(scene.plan.guest),
            "keep_standby": scene.plan.wanted.keep_standby,
        }

    def meanwhile(
        self, scene: Scene, job: Job, *, plug: bool
    ) -> Callable[[Json], Awaitable[None]] | None:
        if not self.detaches_first(scene.plan.guest):
            return None
        server, sources = scene.plan.cloud.server.id, scene.plan.cloud.sources
        what = "attached again" if plug else "detached before the commit"
        if job == "cutback" and not plug:
            what = "taken out again: another one is not there, and the target may not be beside it"
        asked = False

        async def when_awaited(status: Json) -> None:
            nonlocal asked
            if not _is_awaited(status, job):
                return
            for source in sources:
                if not asked:
                    await scene.tell("note", text=f"{source.label} is {what}")
                if plug:
                    # Each time: as long as it is still on its way out it is in the server's list,
                    # and attaching it does nothing.
                    as_before = scene.plan.cloud.attached_as(source.id)
                    await scene.cloud.attach(server, source.id, **as_before)
                elif not asked:
                    with contextlib.suppress(NotFound):  # deleted, which is out as well
                        await scene.cloud.detach(server, source.id)
            asked = True

        return when_awaited


async def _tell_notes(scene: Scene, figures: Json) -> None:
    texts = figures["notes"]
    for number, text in enumerate(texts, start=figures["notes_count"] - len(texts) + 1):
        await scene.tell_note(f"{figures['notes_id']}.{number}", f"mirror: {text}")


def _is_awaited(status: Json, job: str) -> bool:
    """Whether the guest waits for its sources, and will when they have moved: with less time left
    they would meet a guest that has gone the other way meanwhile."""
    left_s = (status["progress"] or {}).get("left_s") or 0.0
    return (status.get("job"), status.get("phase")) == (job, "awaiting") and (
        left_s >= SWITCH_NEEDS_S
    )


def _reasons(wanted: Wanted, cloud: CloudFacts, guest: GuestFacts) -> Iterator[str]:
    """Each thing that would make it decline; empty where it does not."""
    yield "" if guest.family == "linux" else "it is for Linux guests"
    yield "" if guest.root else "it needs root in the guest"
    yield unclear(cloud, guest)
    yield guest.no_tracking
    yield from stacks.reasons(guest)
    mounts = [mount for fs in guest.filesystems for mount in fs.mounts]
    bare = [source.label for source in cloud.sources if not guest.is_mounted(source.id)]
    if bare and not wanted.raw:
        which = ", ".join(bare) if len(cloud.sources) > 1 else "the volume"
        yield f"no filesystem of {which} is mounted (--raw for a device without one)"
    largest = max(source.size_gib for source in cloud.sources)
    smaller = wanted.size_gib is not None and wanted.size_gib < largest
    yield f"the target is smaller ({wanted.size_gib} of {largest} GiB)" if smaller else ""
    larger = wanted.size_gib is not None and any(
        wanted.size_gib > source.size_gib for source in cloud.sources
    )
    for layer in guest.layers:
        if larger and layer.at_end and layer.volume_ids:
            yield f"the superblock of {layer.name} lies at the end of its disks, which may not grow"
    yield "it copies blocks and can leave out no files (--exclude)" if wanted.exclude else ""
    if wanted.keep_standby:
        yield from _no_standby(wanted, cloud, Mirror().detaches_first(guest))
    automatic = ", ".join(mount.target for mount in mounts if mount.by is MountBy.AUTOFS)
    yield f"{automatic} is mounted by autofs, which would mount it in between" if automatic else ""


def _no_standby(wanted: Wanted, cloud: CloudFacts, detached: bool) -> Iterator[str]:
    """Why the old volume could not follow the new one."""
    if detached:
        yield "its source is detached before the commit and cannot be a standby (--keep-standby)"
    if wanted.size_gib and any(wanted.size_gib > source.size_gib for source in cloud.sources):
        yield "a larger target does not fit on the old volume (--keep-standby)"


def _is_idle(figures: Json) -> bool:
    """Nothing is left to copy."""
    return not figures["dirty_bytes"]


def _gains(passes: Sequence[Pass]) -> bool:
    """Whether the last pass had clearly less to copy than the one before."""
    if len(passes) < MIN_PASSES:
        return True
    before, last = passes[-2], passes[-1]
    return last.bytes_copied < GAIN * before.bytes_copied


def _as_pass(said: Json, number: int) -> Pass:
    known = {key: value for key, value in said.items() if key in Pass.model_fields}
    return Pass.model_validate({**known, "number": number, "kept_at": time.time()})
