"""The two sides of a cutover: their disks, what of them is mounted where, and how one of them is
let go or brought up. When which of it is done is the cutover's story, which is not told here."""

import os
import time
from typing import Callable, Dict, List, NamedTuple, Optional, Set

from volferry.agent.basics import (
    RELOAD_S,
    AgentError,
    Json,
    Log,
    Place,
    must,
    run,
    to_bytes,
    told_limit,
)
from volferry.agent.disks import (
    Device,
    Disk,
    devices_above,
    flush_device,
    look_for,
    resolve,
    resolve_device,
    wait_until_free,
)
from volferry.agent.holders import find_holders, find_openers, name_holders
from volferry.agent.install import publish, put_file
from volferry.agent.mounts import device_number, mount_table, unmount, visible_mount
from volferry.agent.services import systemctl_start
from volferry.agent.stack import assemble_stack, release_stack

RELEASE_S = 2.0
OPENERS_S = 5.0
SIDES = ("source", "target")


class MountPlan(NamedTuple):
    """A mount as it was, and how it comes back."""

    target: str
    root: str
    options: str
    super_options: str
    propagation: str
    fstype: str
    unit: str
    filesystem: int
    """Which of the request's filesystems."""


def pairs_of(filesystems: List[Json]) -> List[Json]:
    """The disks that the filesystems lie on, each pair once."""
    found: Dict[str, Json] = {}
    for filesystem in filesystems:
        pair = {side: dict(filesystem[side], partition=None) for side in SIDES}
        found.setdefault(disk_named(pair["source"]), pair)
    return list(found.values())


def disk_named(ref: Json) -> str:
    return str(ref.get("volume_id") or ref.get("path"))


def other_side(side: str) -> str:
    return SIDES[1 - SIDES.index(side)]


class Sides:
    """Source and target, looked for anew each time: a disk comes and goes."""

    def __init__(self, place: Place, request: Json, state_dir: str, notes: List[str]) -> None:
        self.place, self.state_dir, self.notes = place, state_dir, notes
        self.filesystems: List[Json] = request["filesystems"]
        self.pairs: List[Json] = request.get("pairs") or pairs_of(self.filesystems)
        self.layers: List[Json] = request.get("layers") or []
        self.opened: Dict[str, List[Json]] = {}
        """The same with what of them is to be opened on either side, once that was looked at."""
        self.files: List[Json] = request.get("sides", {}).get("files", [])
        """Whose content says which side is live."""

    # -- what is there

    def device(self, number: int, side: str) -> Device:
        return resolve_device(self.place, self.filesystems[number][side])

    def disks(self, side: str) -> List[Disk]:
        """Those that are there: a source may have been detached."""
        found = [look_for(self.place, pair[side]) for pair in self.pairs]
        return [disk for disk in found if disk is not None]

    def paths(self, side: str) -> List[str]:
        """Each disk of that side and, before it, its partitions."""
        found: List[str] = []
        for disk in self.disks(side):
            found += [partition.path for partition in disk.partitions] + [disk.path]
        return found

    def numbers(self, side: str) -> Set[str]:
        """``major:minor`` of all that stands on the disks of that side."""
        found: Set[str] = set()
        for disk in self.disks(side):
            found |= devices_above(self.place, disk)
        return found

    def source_is_gone(self) -> bool:
        return not self.disks("source")

    def is_whole(self, side: str) -> bool:
        return len(self.disks(side)) == len(self.pairs)

    def check_devices(self) -> None:
        for pair in self.pairs:
            source, target = (
                resolve(self.place, pair["source"]),
                resolve(self.place, pair["target"]),
            )
            if source.dev == target.dev:
                raise AgentError("doubt", "source and target are both {}".format(source.path))
            if target.read_only:
                raise AgentError("refused", "the target {} is read-only".format(target.path))

    def plan_mounts(self, side: str) -> List[MountPlan]:
        """The mounts as they are now, in mount order; they must be those that were planned for."""
        plans = []
        table = mount_table(self.place)
        owners = {}
        for number, filesystem in enumerate(self.filesystems):
            owners[resolve_device(self.place, filesystem[side]).dev] = number
        wanted = {m["target"]: m for fs in self.filesystems for m in fs.get("mounts", [])}
        on_disks = self.numbers(side)  # all of them are unmounted
        for entry in table:
            number = owners.get(device_number(entry), -1)
            if number < 0 and device_number(entry) not in on_disks:
                continue
            planned = wanted.pop(entry.target, None) if number >= 0 else None
            if planned is None:
                raise AgentError(
                    "doubt",
                    "{} is mounted at {} too, which was not planned for".format(
                        entry.source, entry.target
                    ),
                )
            if planned.get("by") == "autofs":
                raise AgentError("refused", "{} is an automount".format(entry.target))
            if (planned.get("root") or "/") != entry.root:
                raise AgentError(
                    "doubt",
                    "{} shows {} of its filesystem, expected {}".format(
                        entry.target, entry.root, planned.get("root")
                    ),
                )
            plans.append(
                MountPlan(
                    entry.target,
                    entry.root,
                    entry.options,
                    entry.super_options,
                    entry.propagation,
                    entry.fstype,
                    (planned.get("unit") or "") if self.place.has_systemd else "",
                    number,
                )
            )
        if wanted:
            raise AgentError("doubt", "not mounted any more: {}".format(", ".join(sorted(wanted))))
        return plans

    # -- letting go

    def let_go(
        self, side: str, time_for: Callable[[float], float], ours: Callable[[str], bool]
    ) -> None:
        """Unmount and close all of it. ``ours``: whether it is we who hold a path."""
        numbers = self.numbers(side)
        mounted = [entry for entry in mount_table(self.place) if device_number(entry) in numbers]
        try:
            for entry in reversed(mounted):
                unmount(entry.target, time_for(60.0))
            if self.layers:
                release_stack(self.place, self.layers, time.monotonic() + time_for(60.0))
            for path in self.paths(side):
                if not wait_until_free(path, RELEASE_S) and not ours(path):
                    what = "{} is still held by somebody after {}"
                    raise AgentError("busy", what.format(path, told_limit(RELEASE_S)))
        except AgentError as error:
            if error.kind != "busy":
                raise
            paths = [entry.target for entry in mounted]
            holders, _ = find_holders(self.place, numbers, paths, 10.0)
            holders = [found for found in holders if found["pid"] != os.getpid()]
            raise AgentError(
                "busy", "{}; held by {}".format(error.what, name_holders(holders) or "nobody known")
            )

    def bare_nodes(self, side: str) -> Dict[str, str]:
        """``major:minor`` to path of the disks and partitions that no filesystem and no layer of
        ours lies on: what a program uses as such (--raw)."""
        taken = {
            (disk_named(filesystem["source"]), filesystem["source"].get("partition"))
            for filesystem in self.filesystems
            if filesystem.get("mounts") and not filesystem["source"].get("mapped")
        }
        taken |= {
            (member["volume_id"], member["partition"])
            for layer in self.layers
            if layer["above"]
            for member in layer["members"]
        }
        nodes: Dict[str, str] = {}
        for pair in self.pairs:
            disk = look_for(self.place, pair[side])
            if disk is None:
                continue
            name = disk_named(pair["source"])
            if all(other != name for other, _ in taken):
                nodes[disk.dev] = disk.path
            for partition in disk.partitions:
                if (name, partition.number) not in taken:
                    nodes[partition.dev] = partition.path
        return nodes

    def nobody_has_open(
        self, side: str, time_for: Callable[[float], float], our_pids: Callable[[], Set[int]]
    ) -> None:
        """Of what is used as a device. An exclusive open, which proves that nothing is mounted or
        stacked, is granted beside a process that has it open."""
        nodes = self.bare_nodes(side)
        if not nodes:
            return
        most_s = min(time_for(OPENERS_S), OPENERS_S)
        ends = time.monotonic() + most_s
        while True:
            found = find_openers(self.place, nodes, time_for(10.0))
            found = [one for one in found if one["pid"] not in our_pids()]
            if not found:
                return
            if time.monotonic() >= ends:  # udev probes what was closed by a writer
                what = "the device is still open after {}: {}"
                raise AgentError("busy", what.format(told_limit(most_s), name_holders(found)))
            time.sleep(0.1)

    def flush(self, side: str) -> None:
        """What was written without O_DIRECT lies in the page cache as long as anybody has the disk
        open, as the mirror has: it is written out here, so that it is told of."""
        for path in self.paths(side):
            flush_device(path)

    # -- which one is live

    def put_side(self, file: Json, side: str) -> None:
        put_file(self.state_dir, file["path"], file[side], file.get("mode"))

    def publish(self, settle_s: float, reload_s: float = RELOAD_S) -> None:
        disks = self.disks("source") + self.disks("target")
        # Reading all units anew takes systemd longer than all the rest; it is of use only when
        # it is something of systemd's that changed, which udev's rules are not.
        for_systemd = any(
            "/udev/rules.d/" not in file["path"]
            and side_content(file, "source") != side_content(file, "target")
            for file in self.files
        )
        skipped = publish(self.place, disks, bool(self.files), for_systemd, settle_s, reload_s)
        self.notes.extend(text for text in skipped if "settle" in text)

    # -- bringing up

    def bring_up(
        self, plans: List[MountPlan], side: str, time_for: Callable[[float], float]
    ) -> None:
        """Open what lies on it, mount it as planned, and prove both."""
        if self.layers:
            refs = {pair["source"]["volume_id"]: pair[side] for pair in self.pairs}
            layers = self.opened.get(side, self.layers)
            assemble_stack(self.place, layers, refs, time.monotonic() + time_for(90.0))
        for plan in plans:
            device = self.device(plan.filesystem, side)
            entry = visible_mount(self.place, plan.target)
            if entry is not None and device_number(entry) in self.numbers(other_side(side)):
                unmount(entry.target, time_for(60.0))
                entry = visible_mount(self.place, plan.target)
            if entry is None or device_number(entry) != device.dev:
                self.mount_one(plan, plans, device, time_for)
                self.restore_propagation(plan)
            self.verify_mount(plan, device)

    def restore_propagation(self, plan: MountPlan) -> None:
        made = visible_mount(self.place, plan.target)
        if made is not None and made.propagation != plan.propagation:
            must(["mount", "--make-" + plan.propagation.split(",")[-1], plan.target])

    def mount_one(
        self,
        plan: MountPlan,
        plans: List[MountPlan],
        device: Device,
        time_for: Callable[[float], float],
    ) -> None:
        if plan.unit:
            ran = systemctl_start(plan.unit, time_for(90.0))
            if ran.code != 0:
                raise AgentError("failed", "{} did not start: {}".format(plan.unit, ran.complaint))
            return
        subvolume = "subvol=" + plan.root in plan.super_options.split(",")
        if plan.root != "/" and not subvolume:
            main = next(
                (
                    other
                    for other in plans
                    if (other.filesystem, other.root) == (plan.filesystem, "/")
                ),
                None,
            )
            if main is None:
                raise AgentError("failed", "nothing to bind {} from".format(plan.target))
            must(["mount", "--bind", main.target + plan.root, plan.target], time_for(60.0))
            flags = ",".join(word for word in plan.options.split(",") if word != "rw")
            must(["mount", "-o", "remount,bind," + (flags or "rw"), plan.target], time_for(60.0))
        else:
            argv = ["mount", "-t", plan.fstype, "-o"]
            tail = [device.path, plan.target]
            ran = run([*argv, options_to_mount(plan), *tail], time_for(120.0))
            if ran.code != 0:
                self.notes.append(
                    "{} is mounted with {} only, the kernel refused the rest: {}".format(
                        plan.target, plan.options, ran.complaint
                    )
                )
                must([*argv, plan.options, *tail], time_for(120.0))

    def verify_mount(self, plan: MountPlan, device: Device) -> None:
        """The right device, at the right place, the flags that were there before. Options that
        follow from the device (stripe=, ssd) may differ and are told."""
        entry = visible_mount(self.place, plan.target)
        if entry is None or device_number(entry) != device.dev or entry.root != plan.root:
            raise AgentError(
                "failed",
                "{} has {} mounted, expected {} ({})".format(
                    plan.target,
                    "nothing"
                    if entry is None
                    else "{} ({})".format(entry.source, device_number(entry)),
                    device.path,
                    device.dev,
                ),
            )
        was, now = set(plan.options.split(",")), set(entry.options.split(","))
        if was != now:
            raise AgentError(
                "failed",
                "{} is mounted with {}, expected {}".format(
                    plan.target, entry.options, plan.options
                ),
            )
        if "ro" in entry.super_options.split(",") and "ro" not in plan.super_options.split(","):
            raise AgentError("failed", "{} came up read-only".format(plan.target))
        differ = set(plan.super_options.split(",")) ^ set(entry.super_options.split(","))
        differ = {word for word in differ if not word.startswith("subvolid=")}
        if differ:
            self.notes.append(
                "{}: options differ in {}".format(plan.target, ", ".join(sorted(differ)))
            )

    def is_mounted(self, plans: List[MountPlan], side: str) -> bool:
        """Whether all is mounted from that side, with whatever options."""
        try:
            for plan in plans:
                entry = visible_mount(self.place, plan.target)
                device = self.device(plan.filesystem, side)
                if entry is None or device_number(entry) != device.dev or entry.root != plan.root:
                    return False
        except AgentError as error:
            Log.say("the {}: {}".format(side, error.what))
            return False
        return True

    def verify_mount_stays(self, plan: MountPlan) -> None:
        entry = visible_mount(self.place, plan.target)
        device = self.device(plan.filesystem, "target")
        if entry is None or device_number(entry) != device.dev:
            raise AgentError("failed", "{} lost its mount while settling".format(plan.target))


NOT_TO_MOUNT = ("seclabel", "subvolid", "sunit", "swidth", "stripe")


def options_to_mount(plan: MountPlan) -> str:
    """The options of a mounted filesystem as they can be given to mount(8): what only the kernel
    can say, or what follows from the old device, is left out."""
    words = plan.options.split(",")
    for word in plan.super_options.split(","):
        key = word.split("=")[0]
        if word not in ("rw", "ro") and key not in NOT_TO_MOUNT:
            words.append(word)
    return ",".join(words)


def side_content(file: Json, side: str) -> Optional[bytes]:
    text = file[side]
    return None if text is None else to_bytes(text)
