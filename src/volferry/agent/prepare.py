"""Job prepare: a target that can be mounted, with a proven identity."""

import collections
import os
import re
import time
from typing import Any, Dict, List, NamedTuple, Optional, Set

from volferry.agent.basics import (
    MIB,
    AgentError,
    Json,
    Place,
    must,
    read_json,
    read_line,
    run,
    to_bytes,
    told_limit,
    write_json,
)
from volferry.agent.disks import Device, Disk, blkid, resolve, resolve_device, wait_until_free
from volferry.agent.install import publish
from volferry.agent.jobs import Job
from volferry.agent.mounts import PROBED_S, mount_device, unmount
from volferry.agent.services import time_systemctl

PARTITIONS_S = 15.0
NOTHING_WRITTEN = "the source is untouched and in use; nothing more was written to the target"


class Preparation:
    def __init__(self, place: Place, job: Job, request: Json) -> None:
        self.place, self.job, self.request = place, job, request
        self.filesystems: List[Json] = request["filesystems"]
        self.notes: List[str] = []
        self.record_path = job.path("prepared.json")
        self.record: Json = read_json(self.record_path) or {}

    def run(self) -> Json:
        target = resolve(self.place, self.request["target"])
        source = resolve(self.place, self.request["source"])
        if target.dev == source.dev:
            raise AgentError(
                "doubt",
                "source and target are the same disk {}".format(target.path),
                NOTHING_WRITTEN,
                "look at 'lsblk -o NAME,SERIAL,SIZE' in the guest",
            )
        whole_copy = self.request["seed"] == "snapshot" or self.request.get("partition_dump")
        if whole_copy and target.size_bytes < source.size_bytes:
            raise AgentError(
                "refused",
                "target {} has {} bytes, less than the source's {}".format(
                    target.path, target.size_bytes, source.size_bytes
                ),
                NOTHING_WRITTEN,
                "a target has to be as large as the source at least (--size)",
            )
        for path in [target.path] + [partition.path for partition in target.partitions]:
            if not wait_until_free(path, PROBED_S):
                raise AgentError(
                    "doubt",
                    "the target {} is in use by somebody, still after {}".format(
                        path, told_limit(PROBED_S)
                    ),
                    NOTHING_WRITTEN,
                    "lsblk {} shows what stands on it or where it is mounted".format(path),
                )
        self.job.report("preparing", force=True, what="checking the target")
        results = (
            self.from_snapshot(target) if self.request["seed"] == "snapshot" else self.blank(target)
        )
        return {"filesystems": results, "notes": self.notes, **self.measure()}

    def measure(self) -> Json:
        """What switching the live side will cost on this guest, in seconds: udev asked to look
        again at its rules and at the target, one mount with its unmount, and one systemctl."""
        target = resolve(self.place, self.request["target"])
        began = time.monotonic()
        publish(self.place, [target], True, False, 30.0)
        published = time.monotonic()
        at = os.path.join(self.job.state_dir, "mnt", "prepare")
        filesystem = self.filesystems[0]
        mount_device(self.place, filesystem, filesystem["target"], at, "ro,noatime")
        unmount(at, 600, busy_s=30)
        return {
            "publish_s": round(published - began, 4),
            "mount_s": round(time.monotonic() - published, 4),
            "systemctl_s": time_systemctl(self.place),
        }

    def remember(self, key: str, **facts: Any) -> None:
        """Written before the target is: a second run has to know its own work from a stranger's."""
        self.record[key] = dict(self.record.get(key, {}), **facts)
        write_json(self.record_path, self.record)

    def key(self, filesystem: Json) -> str:
        return "{}/{}".format(
            self.request["target"]["volume_id"], filesystem["target"].get("partition")
        )

    # -- a clone of the source

    def from_snapshot(self, target: Disk) -> List[Json]:
        for filesystem in self.filesystems:
            if filesystem["fstype"] == "btrfs":
                raise AgentError(
                    "refused",
                    "a btrfs clone must not be seen beside its source: two devices with one fsid "
                    "can switch under a mount",
                    "nothing was changed",
                    "seed a blank target",
                )
        last = self.grow_last_partition(target) if self.request.get("grow") else None
        results = []
        for filesystem in self.filesystems:
            device = resolve_device(self.place, filesystem["target"])
            ours = self.identity(filesystem)
            found = self.expect_identity(device, filesystem, {filesystem["uuid"], ours})
            number = filesystem["target"].get("partition")
            grow = bool(self.request.get("grow")) and number in (None, last)
            grown = self.replay(filesystem, grow)
            if found["UUID"] != ours:
                self.renew_identity(device, filesystem["fstype"], ours)
            results.append(self.read_back(filesystem, grown))
        return results

    def replay(self, filesystem: Json, grow: bool) -> bool:
        """Mount once: the log of a filesystem that was cloned while mounted is replayed by its own
        code. Never xfs_repair -L. Growing needs the mount anyway."""
        at = os.path.join(self.job.state_dir, "mnt", "prepare")
        self.job.report("preparing", force=True, what="replaying the log")
        device = mount_device(self.place, filesystem, filesystem["target"], at, "rw,noatime")
        try:
            before = size_of(at)
            if grow:
                self.job.report("preparing", force=True, what="growing the filesystem")
                grow_mounted(filesystem["fstype"], device.path, at)
            after = size_of(at)
        finally:
            unmount(at, 600, busy_s=30)
        if grow and after == before and filesystem["fstype"].startswith("ext"):
            # ext2, and an ext4 without room for larger group descriptors, grow only unmounted
            check_ext(device.path)
            must(["resize2fs", device.path], 4 * 3600)
            mount_device(self.place, filesystem, filesystem["target"], at, "rw,noatime")
            after = size_of(at)
            unmount(at, 600, busy_s=30)
        return after > before

    def expect_identity(self, device: Device, filesystem: Json, uuids: Set[str]) -> Dict[str, str]:
        found = blkid(device.path)
        if same_type(found.get("TYPE", ""), filesystem["fstype"]) and found.get("UUID") in uuids:
            return found
        raise AgentError(
            "doubt",
            "{} holds {} {}, expected {} {}".format(
                device.path,
                found.get("TYPE", "nothing known"),
                found.get("UUID", ""),
                filesystem["fstype"],
                " or ".join(sorted(uuids)),
            ),
            "the source is untouched; the target is not what was made for it",
            "look at 'blkid -p {}' in the guest".format(device.path),
        )

    def identity(self, filesystem: Json) -> str:
        """The UUID that the clone is to have. A new one is chosen here and not by the tool that
        sets it: after a death in between nobody could tell it from a stranger's."""
        if filesystem["keep_uuid"]:
            return str(filesystem["uuid"])
        key = self.key(filesystem)
        if "uuid" not in self.record.get(key, {}):
            self.remember(key, uuid=read_line(self.place.proc + "/sys/kernel/random/uuid"))
        return str(self.record[key]["uuid"])

    def renew_identity(self, device: Device, fstype: str, wanted: str) -> None:
        """xfs_admin exits 0 without doing anything while the log is dirty, so the exit code proves
        nothing; tune2fs wants a filesystem that was checked when its checksums carry the UUID."""
        if fstype == "xfs":
            must(["xfs_admin", "-U", wanted, device.path], 600)
        else:
            check_ext(device.path)
            must(["tune2fs", "-U", wanted, device.path], 3600, b"y\n")
        found = blkid(device.path)
        if found.get("UUID") != wanted:
            raise AgentError(
                "failed",
                "{} still has UUID {} after it was told to take {}".format(
                    device.path, found.get("UUID"), wanted
                ),
            )

    def grow_last_partition(self, target: Disk) -> Optional[int]:
        """Give the space behind the last partition to it. -> its number, None when nothing
        changed"""
        if not target.partitions:
            return None
        dump = parse_dump(must(["sfdisk", "--dump", target.path]))
        last = dump.last()
        if last is None or last.number not in [
            fs["target"].get("partition") for fs in self.filesystems
        ]:
            self.notes.append("the last partition is none of ours, so the new space stays unused")
            return None
        if dump.label == "dos" and last.number > 4:
            self.notes.append("the last partition is a logical one, so the new space stays unused")
            return None
        before = next(part for part in target.partitions if part.number == last.number)
        write_table(target, dump, grow=True)
        after = self.wait_for_partitions([last.number])[0]
        if after.size_bytes < before.size_bytes:
            raise AgentError("failed", "{} shrank while it was grown".format(after.path))
        return last.number

    # -- a blank target

    def blank(self, target: Disk) -> List[Json]:
        key = self.request["target"]["volume_id"]
        for filesystem in self.filesystems:
            if filesystem["fstype"] == "btrfs" and filesystem["keep_uuid"]:
                raise AgentError("refused", "btrfs on both disks must not have one UUID")
        if self.record.get(key, {}).get("stage") != "making":
            refuse_unless_blank(target)
            self.remember(key, stage="making")
        dump = parse_dump(self.request.get("partition_dump") or "")
        if dump.partitions and not self.record[key].get("table"):
            self.job.report("preparing", force=True, what="writing the partition table")
            write_table(target, dump, grow=bool(self.request.get("grow")))
            self.wait_for_partitions([partition.number for partition in dump.partitions])
            self.remember(key, table=True)
        results = []
        for filesystem in self.filesystems:
            device = resolve_device(self.place, filesystem["target"])
            made = self.record.get(self.key(filesystem), {}).get("uuid")
            if made is None:
                self.job.report("preparing", force=True, what="making " + filesystem["fstype"])
                source = resolve_device(self.place, filesystem["source"])
                make_filesystem(filesystem, source, device, self.notes)
                self.remember(self.key(filesystem), uuid=blkid(device.path).get("UUID"))
            elif made != blkid(device.path).get("UUID"):
                raise AgentError(
                    "doubt",
                    "{} has lost the filesystem {} that we made".format(device.path, made),
                    "the source is untouched; somebody else has written to the target",
                    "roll back, and begin again with a new target",
                )
            results.append(
                self.read_back(filesystem, device.size_bytes > self.source_size(filesystem))
            )
        return results

    def source_size(self, filesystem: Json) -> int:
        return resolve_device(self.place, filesystem["source"]).size_bytes

    def wait_for_partitions(self, numbers: List[int]) -> List[Device]:
        """The kernel announces partitions a moment after the table was written."""
        deadline = time.monotonic() + PARTITIONS_S
        while True:
            try:
                refs = [dict(self.request["target"], partition=number) for number in numbers]
                devices = [resolve_device(self.place, ref) for ref in refs]
                if all(os.path.exists(device.path) for device in devices):
                    return devices
            except AgentError:
                if time.monotonic() >= deadline:
                    raise
            if time.monotonic() >= deadline:
                raise AgentError(
                    "failed",
                    "the target's partitions did not appear within {}".format(
                        told_limit(PARTITIONS_S)
                    ),
                )
            time.sleep(0.05)

    def read_back(self, filesystem: Json, grown: bool) -> Json:
        """What the target really is now, read from the device and compared with what was wanted."""
        device = resolve_device(self.place, filesystem["target"])
        found = blkid(device.path)
        same = found.get("UUID") == filesystem["uuid"]
        label = filesystem.get("label") or ""
        if (
            not same_type(found.get("TYPE", ""), filesystem["fstype"])
            or same != bool(filesystem["keep_uuid"])
            or found.get("LABEL", "") != label
        ):
            raise AgentError(
                "doubt",
                "{} reads back as {} UUID {} label {!r}, expected {} {} {} label {!r}".format(
                    device.path,
                    found.get("TYPE"),
                    found.get("UUID"),
                    found.get("LABEL", ""),
                    filesystem["fstype"],
                    "UUID" if filesystem["keep_uuid"] else "any UUID but",
                    filesystem["uuid"],
                    label,
                ),
            )
        return {
            "partition": filesystem["target"].get("partition"),
            "device": device.path,
            "fstype": found["TYPE"],
            "uuid": found["UUID"],
            "label": found.get("LABEL", ""),
            "partuuid": found.get("PART_ENTRY_UUID", ""),
            "size_bytes": device.size_bytes,
            "grown": grown,
        }


def same_type(found: str, wanted: str) -> bool:
    return found == wanted


def size_of(path: str) -> int:
    space = os.statvfs(path)
    return space.f_blocks * space.f_frsize


def check_ext(device: str) -> None:
    """What tune2fs and resize2fs ask for before they touch an unmounted filesystem."""
    ran = run(["e2fsck", "-f", "-p", device], 4 * 3600)
    if ran.code not in (0, 1):
        raise AgentError("failed", "e2fsck of {} failed: {}".format(device, ran.complaint))


def grow_mounted(fstype: str, device: str, at: str) -> None:
    if fstype == "xfs":
        must(["xfs_growfs", at], 3600)
    elif fstype == "btrfs":
        must(["btrfs", "filesystem", "resize", "max", at], 3600)
    else:
        run(["resize2fs", device], 3600)  # whether it worked is read from the size


def refuse_unless_blank(disk: Disk) -> None:
    """No signature, no partition, zeros at both ends: nothing can be lost by formatting it."""
    found = blkid(disk.path)
    ends = []
    with open(disk.path, "rb") as file:
        for offset in (0, max(0, disk.size_bytes - MIB)):
            file.seek(offset)
            if file.read(MIB).strip(b"\0"):
                ends.append("{} MiB".format(offset // MIB))
    if found or disk.partitions or ends:
        raise AgentError(
            "refused",
            "{} is not blank: signatures {}, {} partitions, data at {}".format(
                disk.path, found or "none", len(disk.partitions), ", ".join(ends) or "no end"
            ),
            "nothing was written to it",
        )


class DumpedPartition(NamedTuple):
    number: int
    fields: "collections.OrderedDict[str, str]"

    @property
    def start(self) -> int:
        return int(self.fields["start"])


class Dump(NamedTuple):
    """``sfdisk --dump``, parsed."""

    header: "collections.OrderedDict[str, str]"
    partitions: List[DumpedPartition]

    @property
    def label(self) -> str:
        return self.header.get("label", "")

    def last(self) -> Optional[DumpedPartition]:
        return max(self.partitions, key=lambda part: part.start) if self.partitions else None


def parse_dump(text: str) -> Dump:
    header: "collections.OrderedDict[str, str]" = collections.OrderedDict()
    partitions = []
    for line in text.splitlines():
        match = re.match(r"^(\S*?)(\d+)\s+:\s+(.*)$", line)
        if match:
            fields: "collections.OrderedDict[str, str]" = collections.OrderedDict()
            for part in re.findall(r'(?:[^,"]|"[^"]*")+', match.group(3)):
                key, sep, value = part.strip().partition("=")
                fields[key.strip()] = value.strip() if sep else ""
            partitions.append(DumpedPartition(int(match.group(2)), fields))
        elif ":" in line:
            key, _, value = line.partition(":")
            header[key.strip()] = value.strip()
    return Dump(header, partitions)


def write_table(target: Disk, dump: Dump, grow: bool) -> None:
    """Write the table, GUIDs and all. ``last-lba`` and ``device`` are the old disk's; a size left
    out reaches to the end of the disk."""
    lines = [
        "{}: {}".format(k, v) for k, v in dump.header.items() if k not in ("device", "last-lba")
    ]
    lines.append("")
    stem = target.path + ("p" if target.path[-1].isdigit() else "")
    last = dump.last()
    for partition in dump.partitions:
        fields = [
            "{}={}".format(key, value) if value else key
            for key, value in partition.fields.items()
            if not (grow and partition == last and partition.number <= 128 and key == "size")
        ]
        lines.append("{}{} : {}".format(stem, partition.number, ", ".join(fields)))
    script = "\n".join(lines) + "\n"
    argv = ["sfdisk", "--force", "--no-reread", "--no-tell-kernel", "--wipe=never", target.path]
    must(argv, 120, to_bytes(script))
    ran = run(["partx", "--update", target.path], 60)  # BLKPG: one by one, whatever else is in use
    if ran.code != 0:
        must(["blockdev", "--rereadpt", target.path], 60)


def make_filesystem(filesystem: Json, source: Device, target: Device, notes: List[str]) -> None:
    """mkfs with the source's identity (unless a new one is wanted) and its essential geometry, so
    that a kernel that mounts the source also mounts the target."""
    fstype = filesystem["fstype"]
    label = filesystem.get("label") or ""
    uuid = filesystem["uuid"] if filesystem["keep_uuid"] else ""
    if fstype == "xfs":
        make_xfs(filesystem.get("mount") or source.path, target.path, uuid, label, notes)
    elif fstype in ("ext2", "ext3", "ext4"):
        make_ext(fstype, source, target, uuid, label)
    elif fstype == "btrfs":
        make_btrfs(source.path, target.path, label)
    else:
        raise AgentError("refused", "a {} filesystem cannot be made by this agent".format(fstype))


MKFS_S = 4 * 3600.0
"""mkfs discards the whole device first, which takes its time on some back ends."""


def make_ext(fstype: str, source: Device, target: Device, uuid: str, label: str) -> None:
    text = must(["tune2fs", "-l", source.path])
    facts = {
        key.strip(): value.strip()
        for key, _, value in (line.partition(":") for line in text.splitlines())
    }
    transient = {"needs_recovery", "orphan_present"}
    features = [name for name in facts["Filesystem features"].split() if name not in transient]
    blocks, inodes = int(facts["Block count"]), int(facts["Inode count"])
    inodes = max(inodes, inodes * target.size_bytes // max(source.size_bytes, 1))
    reserved = 100.0 * int(facts["Reserved block count"]) / max(blocks, 1)
    argv = [
        "mke2fs",
        "-q",
        "-F",
        "-t",
        fstype,
        "-b",
        facts["Block size"],
        "-I",
        facts["Inode size"],
    ]
    argv += [
        "-N",
        str(inodes),
        "-m",
        "{:.2f}".format(reserved),
        "-O",
        ",".join(["none", *features]),
    ]
    argv += ["-L", label] if label else []
    argv += ["-U", uuid] if uuid else []
    must([*argv, target.path], MKFS_S)
    behaviour = {"Continue": "continue", "Remount read-only": "remount-ro", "Panic": "panic"}
    argv = ["tune2fs", "-e", behaviour.get(facts.get("Errors behavior", ""), "continue")]
    defaults = facts.get("Default mount options", "(none)")
    if defaults != "(none)":
        argv += ["-o", defaults.replace(" ", ",")]
    must([*argv, target.path])


def make_xfs(source: str, target: str, uuid: str, label: str, notes: List[str]) -> None:
    """What ``xfs_info`` prints, given back to mkfs.xfs; a feature it does not know is left out,
    which can only make the filesystem simpler."""
    text = must(["xfs_info", source])
    facts: Dict[str, str] = {}
    section = ""
    for line in text.splitlines():
        head = re.match(r"^([a-z-]+)\s*=", line)
        section = head.group(1) if head else section
        for key, value in re.findall(r"([a-z0-9-]+)=([0-9]+)", line):
            facts.setdefault("{}.{}".format(section, key), value)
    crc = facts.get("meta-data.crc", "0")
    options = [("-b", "size", facts["data.bsize"]), ("-s", "size", facts["meta-data.sectsz"])]
    options += [("-i", "size", facts["meta-data.isize"]), ("-m", "crc", crc)]
    for switch, names in (
        ("-m", ("finobt", "rmapbt", "reflink", "bigtime", "inobtcount")),
        ("-i", ("sparse", "nrext64", "exchange")),
    ):
        for name in names:
            value = facts.get("meta-data." + name)
            if value is not None and (crc == "1" or value == "1"):
                options.append((switch, name, value))
    if facts.get("naming.bsize"):
        options.append(("-n", "size", facts["naming.bsize"]))
    if crc == "0":
        options.append(("-n", "ftype", facts.get("naming.ftype", "0")))
    if facts.get("naming.ascii-ci") == "1":
        options.append(("-n", "version", "ci"))
    if facts.get("naming.parent") == "1":
        options.append(("-n", "parent", "1"))
    if uuid:
        options.append(("-m", "uuid", uuid))
    while True:
        argv = ["mkfs.xfs", "-q", "-f"]
        for switch, key, value in options:
            argv += [switch, "{}={}".format(key, value)]
        ran = run(argv + (["-L", label] if label else []) + [target], MKFS_S)
        if ran.code == 0:
            return
        unknown = re.search(r"unknown option -(\w) (\w+)", ran.err)
        keep = [
            option
            for option in options
            if not unknown or option[:2] != ("-" + unknown.group(1), unknown.group(2))
        ]
        if len(keep) == len(options):
            raise AgentError("failed", "mkfs.xfs {} failed: {}".format(target, ran.complaint))
        notes.append("mkfs.xfs here does not know {}".format(sorted(set(options) - set(keep))))
        options = keep


def make_btrfs(source: str, target: str, label: str) -> None:
    text = must(["btrfs", "inspect-internal", "dump-super", source])
    facts = dict(re.findall(r"^(\w+)\s+(\S.*)$", text, re.M))
    argv = ["mkfs.btrfs", "-q", "-f", "-n", facts["nodesize"], "-s", facts["sectorsize"]]
    checksum = re.search(r"\((\w+)\)", facts.get("csum_type", ""))
    if checksum and checksum.group(1) != "crc32c":
        argv += ["--csum", checksum.group(1)]
    if "MIXED_GROUPS" in text:
        argv.append("--mixed")
    must(argv + (["-L", label] if label else []) + [target], MKFS_S)
