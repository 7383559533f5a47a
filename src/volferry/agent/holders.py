"""Who uses a mount, and would make an unmount fail."""

import contextlib
import os
import re
import stat
from typing import Callable, Dict, List, Optional, Set, Tuple

from volferry.agent.basics import (
    Json,
    Place,
    in_child,
    is_below,
    read_line,
    read_text,
    to_bytes,
    to_text,
)
from volferry.agent.mounts import MountEntry, device_number, mount_table, unescape


def units_of(holders: List[Json]) -> List[str]:
    """Units in the processes' cgroup paths: the last part that looks like a service."""
    names: List[str] = []
    for holder in holders:
        found = re.findall(r"/([^/\n]+\.(?:service|scope))(?=/|\n|$)", holder.get("cgroup", ""))
        names.extend(name for name in found[-1:] if not name.startswith(("session-", "init.scope")))
    return names


def find_holders(
    place: Place,
    devices: Set[str],
    paths: List[str],
    timeout_s: float,
    nodes: Optional[Dict[str, str]] = None,
) -> Tuple[List[Json], bool]:
    """Everybody who holds a filesystem on ``devices`` ("major:minor"); only names are read of other
    people's processes, never arguments.

    File descriptors are known by the mount id in /proc/<pid>/fdinfo, which is the same in every
    mount namespace, needs no access to the file (a dead NFS server cannot stop us) and is right for
    btrfs, whose subvolumes each have a device number of their own. ``nodes`` ("major:minor" to
    path) are devices that nothing is mounted from: whoever has one of them open holds it as well.
    -> (holders, False when the scan was cut off by its deadline)
    """
    told, complete = in_child(
        lambda tell: scan(place, devices, paths, nodes or {}, tell), timeout_s
    )
    return told, complete


def find_openers(place: Place, nodes: Dict[str, str], timeout_s: float) -> List[Json]:
    """Who holds these devices themselves, rather than a filesystem on them."""
    return find_holders(place, set(), [], timeout_s, nodes)[0]


def scan(
    place: Place,
    devices: Set[str],
    paths: List[str],
    nodes: Dict[str, str],
    tell: Callable[[Json], None],
) -> None:
    pids = sorted(int(name) for name in os.listdir(place.proc) if name.isdigit())
    mine = read_link("{}/self/ns/mnt".format(place.proc))
    host = read_link("{}/1/ns/mnt".format(place.proc)) or mine
    namespaces: Dict[str, List[MountEntry]] = {}
    for pid in pids:
        name = read_link("{}/{}/ns/mnt".format(place.proc, pid))
        # A table is read once for each namespace: hundreds of processes share a few of them.
        if not name or name in namespaces:
            continue
        namespaces[name] = [
            entry for entry in mount_table(place, str(pid)) if device_number(entry) in devices
        ]
        hosts = namespaces.get(host, [])
        holding = [entry for entry in namespaces[name] if not follows(entry, hosts)]
        if name not in (mine, host) and holding:
            tell(holder(place, pid, "mount", "namespace", holding[0].target, holding[0].target))
    mount_ids = {entry.id: entry.target for known in namespaces.values() for entry in known}
    # maps shows btrfs by the filesystem's anonymous number, stat by that of the subvolume
    anonymous = devices | {entry.dev for known in namespaces.values() for entry in known}
    for entry in namespaces.get(
        mine, []
    ):  # only what is mounted here: a bare mount point is another's
        with contextlib.suppress(OSError):
            number = os.stat(to_bytes(entry.target)).st_dev
            anonymous.add("{}:{}".format(os.major(number), os.minor(number)))
    for pid in pids:
        if pid == os.getpid() or pid == os.getppid():
            continue
        how, path, mount = process_holds(place, pid, mount_ids, anonymous)
        if not how and nodes:
            path = opened_node(place, pid, nodes)
            how = "device" if path else ""
        if how:
            tell(holder(place, pid, "process", how, path, mount))
    for found in kernel_holders(place, paths, nodes):
        tell(found)


def follows(entry: MountEntry, hosts: List[MountEntry]) -> bool:
    """Whether an unmount in the guest's own namespace takes this mount along: most services of
    systemd have a namespace of their own whose mounts follow (mount_namespaces(7), slaves)."""
    groups = {mark for host in hosts for mark in host.peers.split() if mark.startswith("shared:")}
    mine = {mark.replace("master:", "shared:") for mark in entry.peers.split()}
    return bool(groups & mine)


def read_link(path: str) -> str:
    try:
        return to_text(os.readlink(to_bytes(path)))
    except OSError:
        return ""


def holder(place: Place, pid: int, kind: str, how: str, path: str, mount: str) -> Json:
    return {
        "kind": kind,
        "pid": pid,
        "comm": read_line("{}/{}/comm".format(place.proc, pid)) if pid else "",
        "cgroup": read_text("{}/{}/cgroup".format(place.proc, pid)) if pid else "",
        "how": how,
        "path": path,
        "mount": mount,
    }


def process_holds(
    place: Place, pid: int, mount_ids: Dict[int, str], devices: Set[str]
) -> Tuple[str, str, str]:
    """How a process holds one of the mounts: (how, a sample path, the mount), or three blanks."""
    folder = "{}/{}".format(place.proc, pid)
    for name in ("cwd", "root"):
        mount_id = mount_id_of("{}/{}".format(folder, name))
        if mount_id in mount_ids:
            return name, read_link("{}/{}".format(folder, name)), mount_ids[mount_id]
    try:
        numbers = os.listdir(folder + "/fd")
    except OSError:
        numbers = []
    for number in numbers:
        match = re.search(
            r"^mnt_id:\s*(\d+)", read_text("{}/fdinfo/{}".format(folder, number)), re.M
        )
        if match and int(match.group(1)) in mount_ids:
            path = read_link("{}/fd/{}".format(folder, number))
            return "fd", path, mount_ids[int(match.group(1))]
    for line in read_text(folder + "/maps").splitlines():
        fields = line.split(None, 5)
        if len(fields) < 6 or fields[4] == "0":
            continue
        major, _, minor = fields[3].partition(":")
        if "{}:{}".format(int(major, 16), int(minor, 16)) in devices:
            executable = read_link(folder + "/exe")
            path = unescape(fields[5])
            return ("exe" if executable == path else "mmap"), path, ""
    return "", "", ""


def opened_node(place: Place, pid: int, nodes: Dict[str, str]) -> str:
    """The device of ``nodes`` that a process has open, or mapped; empty when it has none."""
    folder = "{}/{}".format(place.proc, pid)
    links = []
    with contextlib.suppress(OSError):
        links = ["{}/fd/{}".format(folder, number) for number in os.listdir(folder + "/fd")]
    # Only what is named as a device is looked at: a stat of a file may hang.
    opened = [link for link in links if read_link(link).startswith("/dev/")]
    mapped = [line.split(None, 5) for line in read_text(folder + "/maps").splitlines()]
    opened += [unescape(part[5]) for part in mapped if part[5:] and part[5].startswith("/dev/")]
    return next((nodes[dev] for dev in map(node_number, opened) if dev in nodes), "")


def node_number(path: str) -> str:
    """``major:minor`` that a block device's node stands for; empty for anything else."""
    try:
        status = os.stat(to_bytes(path))
    except OSError:
        return ""
    if not stat.S_ISBLK(status.st_mode):
        return ""
    return "{}:{}".format(os.major(status.st_rdev), os.minor(status.st_rdev))


def mount_id_of(path: str) -> int:
    """The mount that a magic link leads to; -1 when it cannot be told (a kernel thread)."""
    try:
        fd = os.open(path, getattr(os, "O_PATH", 0o10000000) | os.O_CLOEXEC)
    except OSError:
        return -1
    try:
        match = re.search(r"^mnt_id:\s*(\d+)", read_text("/proc/self/fdinfo/{}".format(fd)), re.M)
        return int(match.group(1)) if match else -1
    finally:
        os.close(fd)


def kernel_holders(place: Place, paths: List[str], nodes: Dict[str, str]) -> List[Json]:
    """Holders that are no process: loop devices, swap, exported directories."""

    def on_ours(path: str) -> str:
        mount = next((mount for mount in paths if path == mount or is_below(path, mount)), "")
        return mount or (nodes.get(node_number(path), "") if nodes else "")

    found = []
    for name in os.listdir(place.sys + "/block"):
        backing = read_line("{}/block/{}/loop/backing_file".format(place.sys, name))
        mount = on_ours(backing) if backing else ""
        if mount:
            found.append(holder(place, 0, "loop", name, backing, mount))
    for line in read_text(place.proc + "/swaps").splitlines()[1:]:
        path = unescape(line.split()[0]) if line.split() else ""
        mount = on_ours(path) if path else ""
        if mount:
            found.append(holder(place, 0, "swap", "swap", path, mount))
    exports = read_text(place.proc + "/fs/nfsd/exports") or read_text(
        place.proc + "/fs/nfs/exports"
    )
    for source, text in (("nfsd", exports), ("exports", read_text(place.etc + "/exports"))):
        for line in text.splitlines():
            path = unescape(line.split()[0]) if line.split() and line[0] == "/" else ""
            mount = on_ours(path) if path else ""
            if mount and (source == "nfsd" or exports):
                found.append(holder(place, 0, "nfs", source, path, mount))
    return found


def name_holders(holders: List[Json]) -> str:
    """The first few of them in words, for an error."""
    words = []
    for found in holders[:8]:
        unit = (units_of([found]) or [""])[0]
        words.append(
            "{} {}{} ({} {})".format(
                found["kind"],
                "{} {}".format(found["comm"], found["pid"]) if found["pid"] else "",
                " of {}".format(unit) if unit else "",
                found["how"],
                found["path"],
            )
        )
    more = len(holders) - 8
    return "; ".join(words) + (" and {} more".format(more) if more > 0 else "")
