"""Disks by what the cloud put on them, never by the name that the guest gave them."""

import contextlib
import errno
import fcntl
import os
import re
import struct
import time
from typing import Dict, List, NamedTuple, Optional, Set, Tuple

from volferry.agent.basics import (
    AgentError,
    Json,
    Place,
    read_bytes,
    read_line,
    run,
    to_bytes,
    to_text,
)

BLKROSET, BLKROGET, BLKFLSBUF = 0x125D, 0x125E, 0x1261  # linux/fs.h


class Partition(NamedTuple):
    number: int
    path: str
    dev: str
    size_bytes: int


class Disk(NamedTuple):
    kname: str
    path: str
    dev: str
    size_bytes: int
    read_only: bool
    serial: str
    vpd_pg80: str
    wwid: str
    partitions: Tuple[Partition, ...]

    def answers_to(self, volume_id: str) -> bool:
        """virtio-blk cuts the serial at 20 characters, virtio-scsi has it whole in page 0x80, older
        QEMU cut that too; NVMe's has 20 characters. The wwid ends with what the device has."""
        names = {volume_id, volume_id[:20]}
        if self.serial in names or self.vpd_pg80 in names:
            return True
        return any(self.wwid == name or self.wwid.endswith(" " + name) for name in names)

    def told(self) -> str:
        serial = self.serial or self.vpd_pg80 or "(none)"
        return "{} {} bytes serial {}".format(self.kname, self.size_bytes, serial)


def read_disk(place: Place, kname: str) -> Disk:
    folder = os.path.join(place.sys, "block", kname)
    serial = read_line(folder + "/serial") or read_line(folder + "/device/serial")
    page = read_bytes(folder + "/device/vpd_pg80") or b""
    partitions = []
    # Partitions are named after their disk; to look into all else took most of the time.
    for name in sorted(name for name in os.listdir(folder) if name.startswith(kname)):
        number = read_line(os.path.join(folder, name, "partition"))
        if number:
            below = os.path.join(folder, name)
            partitions.append(
                Partition(
                    int(number),
                    "/dev/" + name.replace("!", "/"),
                    read_line(below + "/dev"),
                    512 * int(read_line(below + "/size") or 0),
                )
            )
    return Disk(
        kname,
        "/dev/" + kname.replace("!", "/"),
        read_line(folder + "/dev"),
        512 * int(read_line(folder + "/size") or 0),
        read_line(folder + "/ro") == "1",
        serial,
        to_text(page[4:]).strip().strip("\0").strip(),
        read_line(folder + "/wwid") or read_line(folder + "/device/wwid"),
        tuple(sorted(partitions)),
    )


def all_disks(place: Place) -> List[Disk]:
    """Every block device that has a size. One that vanishes while it is read is not there."""
    disks = []
    for kname in sorted(os.listdir(place.sys + "/block")):
        if kname.startswith(("ram", "zram", "dm-", "md", "fd", "sr")):
            continue
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            disk = read_disk(place, kname)
            if disk.size_bytes:
                disks.append(disk)
    return disks


def look_for(place: Place, ref: Json) -> Optional[Disk]:
    """The disk that ``ref`` means, None when there is none; two of them, or a size that is not the
    volume's, is a doubt."""
    disks = all_disks(place)
    found = those_of(disks, ref)
    name = ref.get("volume_id") or ref.get("path")
    if len(found) > 1:
        raise AgentError(
            "doubt",
            "{} disks answer to volume '{}', expected one: the guest has {}".format(
                len(found), name, listed(disks)
            ),
        )
    wanted = ref.get("size_bytes") or 0
    if found and wanted and found[0].size_bytes != wanted:
        raise AgentError(
            "doubt",
            "volume '{}' is {} in the guest with {} bytes, expected {}".format(
                name, found[0].kname, found[0].size_bytes, wanted
            ),
        )
    return found[0] if found else None


def those_of(disks: List[Disk], ref: Json) -> List[Disk]:
    """Which of them answer to ``ref``: one at most, but for a volume that is reached by several."""
    if ref.get("path"):
        try:
            number = os.stat(to_bytes(ref["path"])).st_rdev
        except OSError:
            return []
        dev = "{}:{}".format(os.major(number), os.minor(number))
        return [disk for disk in disks if disk.dev == dev]
    volume_id = ref.get("volume_id") or ""
    if len(volume_id) < 8:
        raise AgentError("usage", "a disk needs its volume id, got {!r}".format(volume_id))
    return [disk for disk in disks if disk.answers_to(volume_id)]


def resolve(place: Place, ref: Json) -> Disk:
    disk = look_for(place, ref)
    if disk is None:
        raise AgentError(
            "doubt",
            "no disk in the guest answers to volume '{}': it has {}".format(
                ref.get("volume_id") or ref.get("path"), listed(all_disks(place))
            ),
            hint="if somebody detached it, attach it to the server again",
        )
    return disk


def listed(disks: List[Disk]) -> str:
    return ", ".join(disk.told() for disk in disks) or "none"


class Device(NamedTuple):
    """A block device with a filesystem on it: a whole disk, one partition of it, or what stands on
    disks of ours."""

    path: str
    dev: str
    size_bytes: int
    disk: Optional[Disk]


def resolve_device(place: Place, ref: Json) -> Device:
    if ref.get("mapped"):
        return mapped_device(ref["mapped"])
    disk = resolve(place, ref)
    number = ref.get("partition")
    if number is None:
        return Device(disk.path, disk.dev, disk.size_bytes, disk)
    for partition in disk.partitions:
        if partition.number == number:
            return Device(partition.path, partition.dev, partition.size_bytes, disk)
    raise AgentError(
        "doubt",
        "{} has no partition {}, it has {}".format(
            disk.path, number, [partition.number for partition in disk.partitions] or "none"
        ),
    )


def devices_above(place: Place, disk: Disk) -> Set[str]:
    """``major:minor`` of the disk, its partitions and everything that stands on them (dm, md)."""
    found: Set[str] = set()
    names = [disk.kname] + [os.path.basename(partition.path) for partition in disk.partitions]
    while names:
        folder = "{}/class/block/{}".format(place.sys, names.pop())
        dev = read_line(folder + "/dev")
        if not dev or dev in found:
            continue
        found.add(dev)
        with contextlib.suppress(OSError):
            names += os.listdir(folder + "/holders")
    return found


def mapped_device(path: str) -> Device:
    """A device that stands on disks of ours (an LV, an open LUKS, an md), by its path."""
    try:
        number = os.stat(to_bytes(path)).st_rdev
        size = size_of_device(path)
    except OSError as error:
        raise AgentError("failed", "{} is not there: {}".format(path, error.strerror))
    dev = "{}:{}".format(os.major(number), os.minor(number))
    return Device(path, dev, size, None)


def size_of_device(path: str) -> int:
    fd = os.open(to_bytes(path), os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.lseek(fd, 0, os.SEEK_END)
    finally:
        os.close(fd)


def verb_find(place: Place, request: Json) -> Json:
    """Where each disk is now; used to wait for a hot-plug."""
    found = []
    for ref in request["refs"]:
        disk = look_for(place, ref)
        if disk is None:
            found.append({"volume_id": ref.get("volume_id", ""), "state": "absent"})
            continue
        found.append(
            {
                "volume_id": ref.get("volume_id", ""),
                "state": "present",
                "path": disk.path,
                "kname": disk.kname,
                "dev": disk.dev,
                "size_bytes": disk.size_bytes,
                "read_only": disk.read_only,
                "serial": disk.serial or disk.vpd_pg80,
                "links": links_to(disk.path),
                "partitions": [partition._asdict() for partition in disk.partitions],
            }
        )
    return {"disks": found}


def links_to(path: str) -> List[str]:
    """Names below /dev/disk, /dev/mapper and /dev/md that lead to the device: none for one in
    quarantine."""
    device = os.path.realpath(path)
    links = []
    for top in ("/dev/disk", "/dev/mapper", "/dev/md"):
        for folder, _, names in os.walk(top):
            for name in names:
                link = os.path.join(folder, name)
                if link != path and os.path.islink(link) and os.path.realpath(link) == device:
                    links.append(link)
    return sorted(links)


def flush_device(path: str) -> None:
    """Write out what the page cache holds of a device: neither closing it nor setting it read-only
    does while somebody else has it open."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def set_read_only(path: str, value: bool) -> None:
    """``blockdev --setro``/``--setrw``; nothing can write to the disk while it is set."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, BLKROSET, struct.pack("i", int(value)))
        answer = struct.unpack("i", fcntl.ioctl(fd, BLKROGET, struct.pack("i", 0)))[0]
    finally:
        os.close(fd)
    if bool(answer) != value:
        raise AgentError(
            "failed", "{} is {} after it was set {}".format(
                path, "ro" if answer else "rw", "ro" if value else "rw"
            )
        )  # fmt: skip


def set_disk_read_only(disk: Disk, value: bool) -> None:
    """The disk and its partitions: the flag of the disk alone does not reach them everywhere, and
    a partition of a read-only disk stays read-only whatever it is told (seen on Linux 6.12)."""
    for path in [disk.path] + [partition.path for partition in disk.partitions]:
        set_read_only(path, value)


def wait_until_free(path: str, timeout_s: float) -> bool:
    """Open with O_EXCL: succeeds only when nobody has the device mounted, in any mount namespace,
    nor holds it for a device on top of it. Probing programs hold it for moments, hence the wait."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            os.close(os.open(path, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC))
            return True
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.02)


def blkid(path: str) -> Dict[str, str]:
    """What lies on the device as read from the device itself, never from a cache: TYPE, UUID, …"""
    ran = run(["blkid", "-p", "-o", "export", path], 60)
    if ran.code == 8:
        raise AgentError("doubt", "blkid finds several signatures on {}".format(path))
    if ran.code not in (0, 2):
        raise AgentError("failed", "blkid cannot read {}: {}".format(path, ran.complaint))
    pairs = (line.split("=", 1) for line in ran.out.splitlines() if "=" in line)
    return {key: re.sub(r"\\(.)", r"\1", value) for key, value in pairs}
