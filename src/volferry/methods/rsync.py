"""Files, by rsync: passes while the service runs, a last one while it is stopped.

Works for any filesystem that can be mounted beside its copy, and is the only way to a smaller
volume. Its price is the walk: the final pass looks at every file, and a file that changed is read
whole, so the downtime grows with the tree (see the mirror for one that does not).

What is compared, and when: the first pass reads every file from both sides. Each later one compares
what changed since the one before, by ctime, which no program can set back; the final pass compares
the last of these with the source read-only. So after the cutover every file has been read from both
sides since its last change.
"""

import time
from collections.abc import Iterator, Sequence
from typing import ClassVar

from volferry.methods import Method, Outlook, Scene, mount_units_s, predicted, unclear, units_s
from volferry.model import (
    CloudFacts,
    Filesystem,
    GuestFacts,
    Json,
    MountBy,
    Pair,
    Pass,
    Prediction,
    Receipt,
    Tool,
    Unit,
    Wanted,
)

FILESYSTEMS = ("ext4", "ext3", "ext2", "xfs", "btrfs")

# Until it has been measured on this guest: seconds for a unit that systemd has not seen start or
# stop since the boot, and for an unmount, a mount and the switch of the live side.
ASSUMED_MOUNT_S = 0.5
ASSUMED_COMMIT_S = 1.0

GAIN = 0.8
"""A pass that takes more than this part of the one before no longer gains anything."""

FRESH_S = 5.0
"""A pass that ended less than this ago need not be repeated before the cutover."""

MIN_PASSES = 2
"""The first compares everything, the second shows what one pass of changes costs."""


class Rsync(Method):
    preference: ClassVar[int] = 50

    # ---- for the plan ----------------------------------------------------------------------------

    def declines(self, wanted: Wanted, cloud: CloudFacts, guest: GuestFacts) -> str:
        return next(filter(None, self._reasons(wanted, cloud, guest)), "")

    def _reasons(self, wanted: Wanted, cloud: CloudFacts, guest: GuestFacts) -> Iterator[str]:
        """Each thing that would make it decline; empty where it does not."""
        mounted = [fs for fs in guest.filesystems if fs.mounts]
        yield "" if guest.family == "linux" else "it is for Linux guests"
        yield unclear(cloud, guest)
        yield "it copies files, and --raw says that there are none" if wanted.raw else ""
        other = "; ".join(guest.other_content)
        yield f"files are not all that the volume holds: {other}" if other else ""
        yield "" if mounted else "no filesystem of the volume is mounted"
        yield "it copies one way only (--keep-standby)" if wanted.keep_standby else ""
        if guest.subvolumes:
            yield f"{guest.subvolumes} btrfs subvolumes, which rsync -x would skip"
        renewed = self.needs_blank(guest)
        yield from (_declines(fs, renewed=renewed) for fs in mounted)

    def needs_blank(self, guest: GuestFacts) -> bool:
        # Two devices with one btrfs fsid can switch the mounted path (kernel commit a9261d4125c9):
        # a clone of a mounted btrfs must never be plugged into its guest.
        return any(fs.fstype == "btrfs" for fs in guest.filesystems)

    def tools(self, guest: GuestFacts) -> Sequence[Tool]:
        names = ["rsync", "python3", "unshare", "mount", "umount", "blkid"]
        for fs in guest.filesystems:
            names.append(f"mkfs.{fs.fstype}")
            names.append({"xfs": "xfs_growfs", "btrfs": "btrfs"}.get(fs.fstype, "resize2fs"))
        if guest.partition_tables:
            names.append("sfdisk")
        known = {tool.name: tool for tool in guest.tools}
        return [known.get(name, Tool(name=name)) for name in dict.fromkeys(names)]

    def predict(
        self,
        guest: GuestFacts,
        units: Sequence[Unit],
        passes: Sequence[Pass] = (),
        prepared: Receipt | None = None,
    ) -> Prediction:
        known = prepared or {}
        mounts = sum(len(fs.mounts) for fs in guest.filesystems)
        mounting_s = mounts * known.get("mount_s", ASSUMED_MOUNT_S)
        parts = {
            "stop": units_s([unit.stop_s for unit in units], known),
            "unmount": mounting_s,
            "copy": guest.walk_s,
            "compare": guest.walk_s,
            "commit": known.get("publish_s", ASSUMED_COMMIT_S),
            "mount": mounting_s + mount_units_s(guest, known),
            "start": units_s([unit.start_s for unit in units], known),
        }
        basis = "one measured walk of the tree"
        if passes:
            # The copy walks the whole tree however little changed: the last pass has paid for that
            # and for what the service writes in as long as a pass takes.
            parts["copy"], parts["compare"] = passes[-1].copy_s, passes[-1].compare_s
            basis = f"pass {passes[-1].number}"
        return predicted(parts, basis, units)

    # ---- for the steps ---------------------------------------------------------------------------

    async def prepare(self, scene: Scene) -> Receipt:
        disks = scene.guest.pairs(scene)
        results = [
            await self._prepare(scene, pair, refs)
            for pair, refs in zip(scene.plan.pairs, disks, strict=True)
        ]
        made = [
            {"source_id": pair.source.id, **fs}
            for pair, result in zip(scene.plan.pairs, results, strict=True)
            for fs in result["filesystems"]
        ]
        return {
            "filesystems": made,
            "notes": [note for result in results for note in result["notes"]],
            **{
                measured: max(result[measured] for result in results)
                for measured in ("publish_s", "mount_s", "systemctl_s")
            },
            "summary": ", ".join(f"{fs['device']} {fs['fstype']} {fs['uuid']}" for fs in made),
        }

    async def _prepare(self, scene: Scene, pair: Pair, refs: Json) -> Json:
        guest, plan = scene.guest, scene.plan
        table = plan.guest.partition_table(pair.source.id)
        result: Json = await guest.run_job(
            scene,
            "prepare",
            refs["target"]["volume_id"][:8],
            {
                "seed": pair.seed.value,
                **refs,
                "partition_dump": table.dump if table else "",
                "grow": pair.grows,
                "filesystems": guest.filesystems_of(scene, refs),
            },
            deadline_s=plan.wanted.timeouts.create_s,
            what=f"preparing the target of {pair.label}",
            flag="--create-timeout",
        )
        return result

    async def sync(self, scene: Scene) -> Receipt:
        ends = time.monotonic() + scene.plan.wanted.timeouts.sync_s
        while True:
            await self._pass(scene, ends - time.monotonic())
            prediction = await self._tell_prediction(scene)
            passes = scene.passes()
            fits = prediction.total_s <= scene.plan.wanted.max_downtime_s
            if len(passes) >= MIN_PASSES and (fits or not _gains(passes)):
                break
            scene.check_stop()
        return {
            "passes": len(passes),
            "watermark": passes[-1].watermark,
            "compared": f"{sum(p.files_compared for p in passes)} files",
            "bytes_compared": sum(p.bytes_compared for p in passes),
            "predicted": prediction.model_dump(mode="json"),
        }

    async def catch_up(self, scene: Scene) -> Outlook:
        passes = scene.passes()
        age_s = time.time() - passes[-1].kept_at if passes else FRESH_S
        if not 0 <= age_s < FRESH_S:
            await self._pass(scene, scene.plan.wanted.timeouts.sync_s)
            prediction = await self._tell_prediction(scene)
        else:
            prediction = self._predict(scene)
        return Outlook(prediction, gains=_gains(scene.passes()))

    def _predict(self, scene: Scene) -> Prediction:
        plan = scene.plan
        return self.predict(plan.guest, plan.units, scene.passes(), scene.known.get("prepare"))

    async def _tell_prediction(self, scene: Scene) -> Prediction:
        prediction = self._predict(scene)
        await scene.tell("prediction", **prediction.model_dump(mode="json"))
        return prediction

    async def _pass(self, scene: Scene, deadline_s: float) -> None:
        wanted, number = scene.plan.wanted, len(scene.passes()) + 1
        result: Json = await scene.guest.run_job(
            scene,
            "pass",
            str(number),
            {
                **self.content(scene),
                "number": number,
                "bwlimit_bytes_s": wanted.bwlimit_bytes_s,
                "deadline_s": deadline_s,
            },
            deadline_s=deadline_s,
            what=f"pass {number}",
            flag="--sync-timeout",
        )
        if number > 1:  # the first has nothing to rely on, and says so
            for index, text in enumerate(result["notes"], start=1):
                await scene.tell_note(f"pass-{number}.{index}", f"pass {number}: {text}")
        await scene.passed(_as_pass(result))

    def content(self, scene: Scene) -> Json:
        """What is copied, and what of it has been compared already."""
        passes = scene.passes()
        last = passes[-1] if passes else None
        filesystems = scene.guest.filesystems(scene)
        return {
            "method": self.name,
            "filesystems": filesystems,
            "exclude": excluded(scene.plan.wanted.exclude, [fs["mount"] for fs in filesystems]),
            "watermark": last.watermark if last else None,
            "clock_offset": last.clock_offset if last else None,
            "boot_id": last.boot_id if last else None,
        }


def _declines(fs: Filesystem, *, renewed: bool) -> str:
    """``renewed``: the targets get identities of their own, which only an fstab can be told."""
    if fs.fstype not in FILESYSTEMS:
        return f"{fs.device} is {fs.fstype}; it knows {', '.join(FILESYSTEMS)}"
    for mount in fs.mounts:
        if mount.by is MountBy.AUTOFS:
            return f"{mount.target} is mounted by autofs, which would mount it in between"
        if mount.by is MountBy.UNIT and renewed:
            return (
                f"{mount.unit} names {fs.device} by its UUID, and with a btrfs every copy gets a "
                "new one; put it into fstab instead"
            )
    return ""


def excluded(paths: Sequence[str], mounts: Sequence[str]) -> dict[str, list[str]]:
    """What to leave out of which mount: a whole path belongs to the innermost one that it is in."""
    left_out: dict[str, list[str]] = {}
    for path in paths:
        within = [mount for mount in mounts if path.startswith(mount.rstrip("/") + "/")]
        mount = max(within, key=len, default=mounts[0])
        relative = path[len(mount) :] if within else path
        left_out.setdefault(mount, []).append(relative.strip("/"))
    return left_out


def _as_pass(result: Json) -> Pass:
    figures = {name: value for name, value in result.items() if name in Pass.model_fields}
    return Pass.model_validate({**figures, "kept_at": time.time()})


def _gains(passes: Sequence[Pass]) -> bool:
    """Whether the last pass was clearly shorter than the one before."""
    if len(passes) < MIN_PASSES:
        return True
    before, last = (p.copy_s + p.compare_s for p in passes[-2:])
    return last < before * GAIN
