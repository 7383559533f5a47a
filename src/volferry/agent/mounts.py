"""The mount table, mounting and unmounting."""

import os
import re
import time
from typing import List, NamedTuple, Optional

from volferry.agent.basics import (
    AgentError,
    Json,
    Place,
    must,
    read_text,
    run,
    to_bytes,
    told_limit,
)
from volferry.agent.disks import Device, resolve_device, wait_until_free

PROBED_S = 5.0
"""How long programs that only look, such as those of udev, may have a device."""


class MountEntry(NamedTuple):
    """A line of /proc/<pid>/mountinfo, proc(5)."""

    id: int
    dev: str
    root: str
    target: str
    options: str
    propagation: str
    fstype: str
    source: str
    super_options: str
    peers: str
    """``shared:N`` and ``master:N`` as the line has them: mounts of one group follow each other."""


def unescape(text: str) -> str:
    """mountinfo writes blanks, newlines and backslashes as three octal digits."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match.group(1), 8)), text)


def parse_mountinfo(text: str) -> List[MountEntry]:
    entries = []
    for line in text.splitlines():
        head, _, tail = line.partition(" - ")
        left, right = head.split(" "), tail.split(" ")
        if len(left) < 6 or len(right) < 3:
            continue
        marks = {mark.split(":")[0] for mark in left[6:]}
        words = ["shared"] if "shared" in marks else ["private"]
        if "master" in marks:
            words.append("slave")
        if "unbindable" in marks:
            words = ["unbindable"]
        entries.append(
            MountEntry(
                int(left[0]),
                left[2],
                unescape(left[3]),
                unescape(left[4]),
                left[5],
                ",".join(words),
                right[0],
                unescape(right[1]),
                unescape(right[2]),
                " ".join(left[6:]),
            )
        )
    return entries


def mount_table(place: Place, pid: str = "self") -> List[MountEntry]:
    return parse_mountinfo(read_text("{}/{}/mountinfo".format(place.proc, pid)))


def device_number(entry: MountEntry) -> str:
    """``major:minor`` of the block device below a mount. btrfs shows an anonymous device number
    (major 0) there, so the source's own has to be asked."""
    if not entry.dev.startswith("0:") or not entry.source.startswith("/"):
        return entry.dev
    try:
        number = os.stat(to_bytes(entry.source)).st_rdev
    except OSError:
        return entry.dev
    return "{}:{}".format(os.major(number), os.minor(number))


def mounts_of(place: Place, dev: str, pid: str = "self") -> List[MountEntry]:
    return [entry for entry in mount_table(place, pid) if device_number(entry) == dev]


def visible_mount(place: Place, target: str) -> Optional[MountEntry]:
    """What is mounted at ``target``; of several on top of each other, the last."""
    found = [entry for entry in mount_table(place) if entry.target == target]
    return found[-1] if found else None


def make_directory(path: str) -> None:
    os.makedirs(path, mode=0o700, exist_ok=True)


def mount_source_live(place: Place, filesystem: Json, at: str) -> None:
    """A read-only look at the mounted source that leaves no traces (noatime), nested mounts left
    out.

    Looked at twice: before, so that a missing mount is told as such; after, because only the bind
    mount that was made cannot change any more.
    """
    device = resolve_device(place, filesystem["source"])
    path = filesystem["mount"]
    entry = visible_mount(place, path)
    if entry is None or device_number(entry) != device.dev or entry.root != "/":
        raise AgentError(
            "doubt",
            "{} should have the root of {} ({}) mounted, it has {}".format(
                path,
                device.path,
                device.dev,
                "nothing" if entry is None else entry.source + " root " + entry.root,
            ),
            "nothing was copied: an unmounted source looks like an empty one",
        )
    make_directory(at)
    must(["mount", "--bind", path, at])
    must(["mount", "-o", "remount,bind,ro,noatime", at])
    made = visible_mount(place, at)
    if made is None or device_number(made) != device.dev or "ro" not in made.options.split(","):
        raise AgentError(
            "doubt", "the look at {} is not the read-only {}".format(path, device.path)
        )


QUOTA = re.compile(r"^((usr|grp|prj|u|g|p)(quota|qnoenforce)|quota)$")


def mount_options(filesystem: Json, flags: str) -> str:
    """XFS refuses a second filesystem of the same UUID, hence nouuid. Mounted without its quota
    options it forgets that its quotas were counted, and would count again while services wait."""
    words = [flags]
    if filesystem["fstype"] == "xfs":
        words.append("nouuid")
    if flags.startswith("rw"):
        given = {
            word
            for mount in filesystem.get("mounts", [])
            for word in (mount.get("super_options") or "").split(",")
        }
        words += sorted(word for word in given if QUOTA.match(word))
    return ",".join(words)


def mount_device(place: Place, filesystem: Json, ref: Json, at: str, flags: str) -> Device:
    """Mount a side by its device in our own namespace. Nobody else may have it mounted."""
    device = resolve_device(place, ref)
    if not wait_until_free(device.path, PROBED_S):
        raise AgentError(
            "doubt",
            "{} is in use by somebody else, still after {}".format(
                device.path, told_limit(PROBED_S)
            ),
            "nothing was mounted, nothing copied",
            "lsblk {} shows what stands on it or where it is mounted".format(device.path),
        )
    make_directory(at)
    fstype = filesystem["fstype"]
    must(["mount", "-t", fstype, "-o", mount_options(filesystem, flags), device.path, at], 120)
    made = visible_mount(place, at)
    if made is None or device_number(made) != device.dev:
        raise AgentError("doubt", "{} did not get mounted at {}".format(device.path, at))
    return device


def unmount(path: str, timeout_s: float, busy_s: float = 2.0) -> None:
    """A plain umount, repeated for a moment while it is busy; never a lazy one."""
    deadline = time.monotonic() + busy_s
    while True:
        ran = run(["umount", path], timeout_s)
        if ran.code == 0:
            return
        if "not mounted" in ran.err:
            return
        if "busy" not in ran.err or time.monotonic() >= deadline:
            kind = "busy" if "busy" in ran.err else "failed"
            what = "umount {} failed: {}".format(path, ran.complaint)
            if kind == "busy":
                what += ", still after {}".format(told_limit(busy_s))
            raise AgentError(kind, what)
        time.sleep(0.05)
