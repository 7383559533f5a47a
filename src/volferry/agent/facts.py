"""What a guest says of itself, without being changed."""

import collections
import contextlib
import os
import re
import socket
import stat
import sys
import time
from typing import Any, Callable, Dict, Iterable, List, Optional

from volferry.agent.basics import (
    TOOLS,
    AgentError,
    Json,
    Place,
    asked,
    asked_json,
    clock_offset,
    find_program,
    in_child,
    is_below,
    one_line,
    read_line,
    read_text,
    run,
    to_bytes,
)
from volferry.agent.disks import Disk, all_disks, blkid, links_to, look_for, those_of
from volferry.agent.holders import find_holders, units_of
from volferry.agent.layers import blocks_above, lain_upon, stack_facts
from volferry.agent.mounts import device_number, mount_table
from volferry.agent.tracker import why_no_tracking

UNIT_PROPERTIES = (
    "Id,Names,LoadState,ActiveState,SubState,UnitFileState,FragmentPath,SourcePath,Type,Restart,"
    "MainPID,NRestarts,Result,RemainAfterExit,ExecMainStartTimestampMonotonic,"
    "ExecMainExitTimestampMonotonic,InactiveExitTimestampMonotonic,ActiveEnterTimestampMonotonic,"
    "ActiveExitTimestampMonotonic,InactiveEnterTimestampMonotonic,StateChangeTimestampMonotonic,"
    "TriggeredBy,Triggers,RequiresMountsFor,Requires,BindsTo,RequiredBy,BoundBy,WantedBy,PartOf,"
    "ConsistsOf,TimeoutStartUSec,TimeoutStopUSec,CanStop,RefuseManualStop,What,Where"
)
LSBLK_COLUMNS = (
    "NAME,KNAME,PATH,PKNAME,TYPE,SIZE,RO,MAJ:MIN,FSTYPE,UUID,LABEL,PARTUUID,PTTYPE,PARTN,"
    "MOUNTPOINT,SERIAL"
)


def verb_facts(place: Place, request: Json) -> Json:
    """All that the tool's pure parsers need, raw, read without changing anything.

    ``refs`` are the sources; those that are absent are told in ``problems``, and those of which it
    cannot be told which disk they are in ``unclear`` as well: a plan has to say why. A tool that is
    missing and a command that fails are facts as well: the value is then null and ``problems`` says
    why.

    ::

        os_release, mountinfo, fstab, swaps, findmnt, units: text as the guest has it
        uname {sysname, nodename, release, version, machine}; uid; python; hostname; dmi_uuid;
        boot_id; pid1 (comm); systemd_version (first line); udev: bool;
        clock {wall, monotonic, offset}; var_free (bytes)
        lsblk, findmnt: parsed JSON of the command, null where it cannot
        lsblk_columns: the columns this util-linux knows
        sysblock [{path, kname, dev, size_bytes, ro, serial, vpd_pg80, wwid,
                   partitions: [{number, path, dev, size_bytes}]}]
        sources {volume_id: kname}
        unclear {volume_id: str}                        why it is in doubt which disk it is
        links {device path: [path]}                     names below /dev/disk that lead to it
        blkid {device path: {TYPE, UUID, LABEL, …}}     of each source disk, its partitions, and
                                                        what lies on them
        sfdisk {disk path: text}                        of each source disk with a table
        stack: see ``stack_facts``
        tools {name: {path, version}}                   only those that exist
        mount_units [{target, unit, show: text, file: text}]   of each mount's unit: systemctl show,
                                                        and cat where a file of its own makes it
        units: text of ``systemctl show``, blocks divided by blank lines
        statvfs {mount: {size_bytes, used_bytes, free_bytes, inodes_used, inodes_free}}
        btrfs_subvolumes {mount: int}
        nested_mounts [path]
        holders [{kind: process|mount|loop|swap|nfs, pid, comm, cgroup, how, path, mount}]
        holders_complete: bool
        walk {mount: {entries, seconds, finished: bool, bytes, largest_bytes, excluded_dirs: 0}}
        no_tracking: str                                why a mirror cannot note writes, or empty
        problems [str]
    """
    problems: List[str] = []
    wanted: List[Disk] = []
    sources: Dict[str, str] = {}
    unclear: Dict[str, str] = {}
    for ref in request.get("refs", []):
        try:
            disk = look_for(place, ref)
        except AgentError as error:
            if error.kind != "doubt":
                raise
            problems.append(error.what)
            unclear[ref.get("volume_id") or ref["path"]] = by_several(place, ref) or error.what
            continue
        if disk is None:
            problems.append("no disk answers to volume '{}'".format(ref.get("volume_id")))
        else:
            wanted.append(disk)
            sources[ref.get("volume_id") or disk.path] = disk.kname
    table = mount_table(place, "1") or mount_table(place)
    devices = {disk.dev: disk.path for disk in wanted}
    for disk in wanted:
        devices.update({partition.dev: partition.path for partition in disk.partitions})
    stacked = blocks_above(place, wanted)
    devices.update({block["dev"]: block["path"] for block in stacked})
    ours = [entry for entry in table if device_number(entry) in devices]
    paths = list(collections.OrderedDict.fromkeys(entry.target for entry in ours))
    nested = [
        entry.target
        for entry in table
        if entry not in ours and any(is_below(entry.target, path) for path in paths if path != "/")
    ]
    below = {device_number(entry) for entry in ours} | lain_upon(place, devices.values())
    nodes = {dev: path for dev, path in devices.items() if dev not in below}
    holders, complete = find_holders(place, set(devices), paths, 20.0, nodes)
    units = list(request.get("units", [])) + units_of(holders)
    uname = os.uname()
    walk_s = float(request.get("walk_s", 5.0))
    probes = {path: blkid_or_nothing(problems, path) for path in devices.values()}
    return {
        "os_release": read_text(place.etc + "/os-release") or read_text("/usr/lib/os-release"),
        "uname": {
            "sysname": uname.sysname,
            "nodename": uname.nodename,
            "release": uname.release,
            "version": uname.version,
            "machine": uname.machine,
        },
        "uid": os.getuid(),
        "python": "{}.{}.{}".format(*sys.version_info[:3]),
        "python_path": sys.executable,
        "hostname": socket.gethostname(),
        "dmi_uuid": read_line(place.sys + "/class/dmi/id/product_uuid"),
        "boot_id": place.boot_id,
        "clock": {
            "wall": time.time(),
            "monotonic": time.monotonic(),
            "offset": clock_offset(),
        },
        "pid1": read_line(place.proc + "/1/comm"),
        "udev": place.has_udev,
        "systemd_version": asked(problems, ["systemctl", "--version"], first_line=True)
        if place.has_systemd
        else "",
        "mountinfo": read_text(place.proc + "/1/mountinfo") or read_text("/proc/self/mountinfo"),
        "fstab": read_text(place.etc + "/fstab"),
        "swaps": read_text(place.proc + "/swaps"),
        "lsblk": lsblk(problems),
        "findmnt": asked_json(problems, ["findmnt", "--json", "--bytes", "--list"])
        or asked_json(problems, ["findmnt", "--json"]),
        "sysblock": [disk_as_json(disk) for disk in all_disks(place)],
        "sources": sources,
        "unclear": unclear,
        "links": {path: links_to(path) for path in devices.values()},
        "blkid": probes,
        "sfdisk": partition_tables(problems, wanted),
        "stack": stack_facts(place, problems, wanted, stacked, probes, try_keys=walk_s > 0),
        "tools": find_tools(),
        "mount_units": mount_units(place, problems, paths),
        "units": show_units(place, problems, units),
        "statvfs": {path: space_of(path) for path in paths},
        "btrfs_subvolumes": {
            entry.target: subvolumes(problems, entry.target)
            for entry in ours
            if entry.fstype == "btrfs"
        },
        "nested_mounts": nested,
        "holders": holders,
        "holders_complete": complete,
        "walk": {
            entry.target: timed_walk(entry.target, walk_s)
            for entry in ours
            if walk_s > 0 and entry.root == "/"
        },
        "var_free": free_space(place.base),
        "no_tracking": why_no_tracking(place, [disk.path for disk in wanted]),
        "problems": problems,
    }


def by_several(place: Place, ref: Json) -> str:
    """That a volume is reached by more than one disk, in words; empty when it is not."""
    found = those_of(all_disks(place), ref)
    if len(found) < 2:
        return ""
    names = ", ".join(disk.kname for disk in found)
    return "it is reached by {} disks ({}), as with multipath".format(len(found), names)


def lsblk(problems: List[str]) -> Any:
    """lsblk refuses the whole list for one unknown column (PARTN came with util-linux 2.38, PATH
    with 2.33), so it is asked for those it names: in its help, or since 2.41 in a list of their
    own, for which an older one has no option."""
    listed = ""
    with contextlib.suppress(AgentError):
        listed = run(["lsblk", "--list-columns"]).out
    listed += asked(problems, ["lsblk", "--help"]) or ""
    known = set(re.findall(r"^\s*([A-Z][A-Z:-]+)\b", listed, re.M))
    columns = [column for column in LSBLK_COLUMNS.split(",") if column in known]
    if not columns:
        return None
    return asked_json(problems, ["lsblk", "--json", "--bytes", "--output", ",".join(columns)])


def disk_as_json(disk: Disk) -> Json:
    return {
        "path": disk.path,
        "kname": disk.kname,
        "dev": disk.dev,
        "size_bytes": disk.size_bytes,
        "ro": disk.read_only,
        "serial": disk.serial,
        "vpd_pg80": disk.vpd_pg80,
        "wwid": disk.wwid,
        "partitions": [partition._asdict() for partition in disk.partitions],
    }


def blkid_or_nothing(problems: List[str], path: str) -> Optional[Dict[str, str]]:
    try:
        return blkid(path)
    except AgentError as error:
        problems.append(error.what)
        return None


def partition_tables(problems: List[str], disks: List[Disk]) -> Dict[str, str]:
    tables = {}
    for disk in disks:
        if not disk.partitions and not (blkid_or_nothing([], disk.path) or {}).get("PTTYPE"):
            continue
        text = asked(problems, ["sfdisk", "--dump", disk.path])
        if text:
            tables[disk.path] = text
    return tables


def find_tools() -> Json:
    """Path and version of each tool that is there. ``mount --version`` and the like print at once;
    one that does not end is told without a version."""
    tools = {}
    for name in TOOLS:
        path = find_program(name)
        if path is None:
            continue
        option = (
            "-V"
            if name.startswith(("mkfs.", "xfs_", "tune2fs", "resize2fs", "e2fsck"))
            else "--version"
        )
        try:
            ran = run([path, option], 5)
            version = next((line for line in (ran.out + ran.err).splitlines() if line.strip()), "")
        except AgentError:
            version = ""
        tools[name] = {"path": path, "version": one_line(version)}
    return tools


def mount_units(place: Place, problems: List[str], paths: List[str]) -> List[Json]:
    if not place.has_systemd:
        return []
    units = []
    for path in paths:
        name = asked(problems, ["systemd-escape", "-p", "--suffix=mount", path], first_line=True)
        if name:
            shown = asked(problems, ["systemctl", "show", "-p", UNIT_PROPERTIES, "--", name]) or ""
            lines = shown.splitlines()
            by_file = any(line.startswith("FragmentPath=/") for line in lines)
            if by_file and "SourcePath=/etc/fstab" not in lines:
                # What "show" has as What= is the kernel's word while it is mounted.
                file = asked(problems, ["systemctl", "cat", "--", name]) or ""
            else:
                file = ""
            units.append({"target": path, "unit": name, "show": shown, "file": file})
    return units


def show_units(place: Place, problems: List[str], names: Iterable[str]) -> str:
    unique = list(collections.OrderedDict.fromkeys(names))
    if not place.has_systemd or not unique:
        return ""
    return asked(problems, ["systemctl", "show", "-p", UNIT_PROPERTIES, "--", *unique]) or ""


def space_of(path: str) -> Optional[Json]:
    try:
        space = os.statvfs(to_bytes(path))
    except OSError:
        return None
    return {
        "size_bytes": space.f_blocks * space.f_frsize,
        "used_bytes": (space.f_blocks - space.f_bfree) * space.f_frsize,
        "free_bytes": space.f_bavail * space.f_frsize,
        "inodes_used": space.f_files - space.f_ffree,
        "inodes_free": space.f_ffree,
    }


def free_space(path: str) -> int:
    """Bytes free where ``path`` is or will be."""
    while not os.path.isdir(path):
        path = os.path.dirname(path)
    space = os.statvfs(path)
    return space.f_bavail * space.f_frsize


def subvolumes(problems: List[str], path: str) -> Optional[int]:
    text = asked(problems, ["btrfs", "subvolume", "list", path])
    return None if text is None else len(text.splitlines())


def timed_walk(path: str, seconds: float) -> Json:
    """lstat everything below ``path`` on its filesystem, as a pass will, for at most
    ``seconds``."""

    def work(tell: Callable[[Json], None]) -> None:
        began = time.monotonic()
        entries = total = largest = 0
        finished = True
        device = os.lstat(to_bytes(path)).st_dev
        stack = [to_bytes(path)]
        while stack and finished:
            folder = stack.pop()
            try:
                names = os.listdir(folder)
            except OSError:
                continue
            for name in names:
                if time.monotonic() - began > seconds:
                    finished = False
                    break
                try:
                    status = os.lstat(os.path.join(folder, name))
                except OSError:
                    continue
                entries += 1
                if stat.S_ISREG(status.st_mode):
                    total += status.st_size
                    largest = max(largest, status.st_size)
                if stat.S_ISDIR(status.st_mode) and status.st_dev == device:
                    stack.append(os.path.join(folder, name))
        tell(
            {
                "entries": entries,
                "seconds": time.monotonic() - began,
                "finished": finished,
                "bytes": total,
                "largest_bytes": largest,
            }
        )

    told, _ = in_child(work, seconds + 10)
    return told[0] if told else {"entries": 0, "seconds": seconds, "finished": False, "bytes": 0}
