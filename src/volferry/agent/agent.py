"""volferry's agent: the part that works inside the guest, as root, next to the user's data.

One file, standard library only, Python 3.6 and later, imports nothing of ours: it is pushed to the
guest as it is. It has to do its work without the controller: from the first service stopped to the
last one started everything below happens in one supervised process in the guest, which takes it
back by itself on any failure, and which finds out from its own record where it was when somebody
killed it or the guest restarted. Correctness comes before speed, speed before comfort.

What it promises
----------------
- The source is never written to before the commit. In passes it is seen through a read-only bind
  mount in a private mount namespace; in the cutover its disk is set read-only in the kernel before
  it is read for the last time.
- Nothing counts as verified that was not read back from both sides and compared.
- The commit is the rename of one file (the last of ``sides``). Before it a dead cutover is taken
  back, after it finished forward; which of the two is read from that file, not from memory.
- Every external command has a deadline, no shell runs but for the user's own stop and start
  commands, nobody is killed, nothing is unmounted lazily.

Protocol
--------
``python3 agent.py VERB`` reads one JSON object from stdin and writes JSON lines to stdout, of which
the last is ``{"ok": true, "result": {...}}`` or ``{"ok": false, "error": ERROR}``; the exit code is
0 for both. When the program itself comes over stdin the request is an argument:
``python3 - VERB JSON``. Strings that came from the guest (paths, names, raw files) are decoded with
surrogateescape, so bytes that are not UTF-8 arrive as lone surrogates (``\\udcff``) in JSON.

::

    ERROR   {"kind": "busy|refused|failed|missing|doubt|usage", "what": str, "data": str,
             "hint": str}
    REQUEST {"transfer": "tr-…", "settings": SETTINGS?, …the verb's own…}
    SETTINGS{"base": "/var/lib/volferry", "etc": "/etc", "run": "/run", "proc": "/proc",
             "sys": "/sys"}          all optional; tests redirect what is written
    REF     {"volume_id": str, "size_bytes": int, "partition": int|null, "path": str?}
            a disk by what the cloud put on it, resolved anew each time; "path" (a block device)
            goes round the serial for disks without one. Where a disk is meant, "partition" is
            ignored; where a filesystem is meant, null is the whole disk.

Verbs
-----
``facts``      {refs: [REF], units: [str]?, walk_s: float?}            -> see ``verb_facts``
``install``    {transfer, source: REF, program_b64: str}               -> {state_dir, agent, claim}
               the program's text in base64, as it is or compressed by zlib: Linux takes no argument
               of a command beyond 128 KiB, and over stdin the request is one
``apply``      {transfer, files: [FILE], udev: bool, trigger: [REF], systemd: bool}
               FILE {path, content: str|null, mode: int?, expect: str|null ?}
                                   -> {written: [path], removed: [path], same: [path],
                                       skipped: [str]}
``find``       {refs: [REF]}       -> {disks: [{volume_id, state: "present|absent", path, kname,
                                       dev, size_bytes, read_only, serial, links: [path],
                                       partitions: [{number, path, dev, size_bytes}]}]}
               a doubt (two disks of one serial, a wrong size) is an error, absence is not
``start``      {transfer, job_id, job: "prepare|pass|cutover|cutback", request: {…}}
                                   -> {job_id, state, supervisor: "systemd|daemon"}
``status``     {transfer}          -> {job, job_id, state: "none|running|ended|died", phase,
                                       progress: {what, done_bytes, total_bytes, done_files,
                                                  total_files, rate_bytes_s, elapsed_s},
                                       result: {…}|null, error: ERROR|null, log_tail: [str]}
``stop``       {transfer, grace_s?}                                    -> {stopped: bool, state}
``uninstall``  {transfer, files: [path], sources: [REF]?}              -> {removed: [], left: []}
``work``       STATE_DIR, not for the controller: what the supervisor runs
``inside``     not for the controller: the final pass' process in its private mount namespace

Jobs
----
A filesystem is named the same way in every job; several of them (partitions of one volume, or
several volumes) move together, all or none::

    FS {"source": REF, "target": REF, "fstype": "xfs|ext4|ext3|ext2|btrfs", "uuid": str,
        "label": str, "keep_uuid": bool, "mount": "/srv/data", "mounts": [MOUNT]}
    MOUNT {"target": path, "root": "/", "options": str, "super_options": str,
           "by": "fstab|unit|autofs|hand", "unit": str, "propagation": str}     as in model.Mount

``uuid`` and ``label`` are those of the source. ``mount`` is where the source is mounted live, with
its root at the filesystem's root.

**prepare** makes the target ready to be mounted and proves its identity::

    {"seed": "snapshot|blank", "target": REF, "source": REF, "partition_dump": str, "grow": bool,
     "filesystems": [FS]}            several volumes: one prepare job for each pair
    -> {"filesystems": [{"partition", "device", "fstype", "uuid", "label", "size_bytes",
                         "grown": bool}], "notes": [str],
        "publish_s": float, "mount_s": float}     what udev and one mount take on this guest

**pass** copies what differs, then compares::

    {"method": "rsync", "filesystems": [FS], "number": int, "exclude": [path], "slack_s": 30.0,
     "watermark": float|null, "clock_offset": float|null, "boot_id": str|null,
     "bwlimit_bytes_s": int|null}
    -> model.Pass's fields, and "clock_offset": float, "boot_id": str, "full": bool,
       "itemized_counts": {str: int}, "notes": [str]

``watermark``, ``clock_offset`` and ``boot_id`` are those of the last pass' result; null (or a clock
that was set, or a restart since) means that everything is compared. ``exclude`` are paths below
``mount`` of the first filesystem, literal, relative; ``{"exclude": {mount: [path]}}`` for several.

**cutover**::

    {"method": "rsync", "filesystems": [FS], "units": [UNIT], "stop": [cmd], "start": [cmd],
     "sides": {"files": [{"path", "source": str|null, "target": str|null, "mode": int}]},
     "exclude", "watermark", "clock_offset", "boot_id", "slack_s",
     "deadline_s": 120, "settle_s": 60, "max_downtime_s": 10}
    UNIT {"name": str, "stop_timeout_s": float, "start_timeout_s": float}
    -> {"outcome": model.Outcome's fields, "notes": [str], "within_budget": bool}

A side file's content null means that the file does not exist on that side. They are written in the
order given when the target becomes the live side and in reverse when the source does; the last is
the commit. Parts of the downtime: stop, unmount, copy, compare, release, commit, mount, start.
A cutover that took itself back is an ended job with outcome ``reverted`` and ``error`` set as well.

**cutback** takes the cutover's request (an empty one: as the agent kept it) and goes back to the
source after a commit; same result, and the outcome is ``reverted``. What was written on the target
since the commit stays there and is not copied back.
"""

import base64
import collections
import contextlib
import ctypes
import errno
import fcntl
import functools
import hashlib
import json
import os
import re
import select
import shutil
import signal
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Callable, Dict, Iterable, Iterator, List, NamedTuple, Optional, Set, Tuple

Json = Dict[str, Any]
Process = Any  # subprocess.Popen[bytes], which 3.6 cannot subscribe

MIB = 1024 * 1024
SLACK_S = 30.0
"""Default reach before the watermark. ctime is taken when a write begins and the kernel's clock for
it is coarse, so a long write of the past may land after the copy; it has to end within this
time."""
CLOCK_TOLERANCE_S = 1.0
COMMAND_S = 30.0
"""Deadline of a command that only asks or sets something small."""
FORWARD_PHASES = (
    "armed",
    "stopping",
    "unmounting",
    "copying",
    "comparing",
    "releasing",
    "committing",
    "committed",
    "mounting",
    "starting",
    "settling",
)
TOOLS = (
    "rsync", "mkfs.ext4", "mkfs.ext3", "mkfs.ext2", "mkfs.xfs", "mkfs.btrfs", "tune2fs",
    "resize2fs", "e2fsck", "xfs_admin", "xfs_info", "xfs_growfs", "btrfs", "btrfstune", "blkid",
    "lsblk", "sfdisk", "wipefs", "findmnt", "mount", "umount", "unshare", "udevadm",
    "systemctl", "systemd-run", "systemd-escape", "exportfs", "ionice", "sync", "python3",
    "lvs", "cryptsetup", "mdadm",
)  # fmt: skip
ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LC_ALL": "C",
    "HOME": "/root",
}


# ---- what can go wrong ---------------------------------------------------------------------------


class AgentError(Exception):
    """Told to the controller as it is: ``kind`` is how it maps on the tool's own errors."""

    def __init__(self, kind: str, what: str, data: str = "", hint: str = "") -> None:
        super().__init__(what)
        self.kind, self.what, self.data, self.hint = kind, what, data, hint

    def as_json(self) -> Json:
        return {
            "kind": self.kind,
            "what": one_line(self.what),
            "data": one_line(self.data),
            "hint": self.hint,
        }


class Stopped(Exception):
    """SIGTERM arrived: somebody wants this process to end."""


class Shutdown(BaseException):
    """The system is going down: leave everything as the record says, the next boot goes on."""


def one_line(text: str) -> str:
    return " ".join(text.split())


# ---- bytes, files, commands ----------------------------------------------------------------------
# Paths travel as UTF-8 with surrogateescape whatever the locale says: Python 3.6 in a systemd unit
# has the C locale, and os.fsencode() would then refuse every letter that is not ASCII.


def to_bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def to_text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")


def read_bytes(path: str) -> Optional[bytes]:
    """The file's content, or None when it is not there or cannot be read.

    In pieces: /proc/sys answers a read of 4 MiB and more with ENOMEM.
    """
    try:
        with open(to_bytes(path), "rb", buffering=0) as file:
            return b"".join(iter(lambda: file.read(65536), b""))
    except OSError:
        return None


def read_text(path: str) -> str:
    return to_text(read_bytes(path) or b"")


def read_line(path: str) -> str:
    return read_text(path).strip()


def fsync_directory(path: bytes) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_atomically(path: str, content: bytes, mode: int, durable: bool = True) -> None:
    """Replace ``path``: a reader (or a power cut) sees the old content or the new, nothing else.

    Owner and SELinux label of a file that is replaced stay what they were.
    """
    raw = to_bytes(path)
    folder, name = os.path.split(raw)
    temporary = os.path.join(folder, b"." + name + b".volferry-tmp")
    with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(temporary, flags, 0o600)
    try:
        with contextlib.suppress(FileNotFoundError):
            before = os.lstat(raw)
            os.fchown(fd, before.st_uid, before.st_gid)
            with contextlib.suppress(OSError):  # no SELinux, or a filesystem without xattrs
                label = os.getxattr(raw, b"security.selinux", follow_symlinks=False)
                os.setxattr(fd, b"security.selinux", label)
        os.fchmod(fd, mode)
        view = memoryview(content)
        while view:
            view = view[os.write(fd, view) :]
        if durable:
            os.fsync(fd)
    finally:
        os.close(fd)
    os.rename(temporary, raw)
    if durable:
        fsync_directory(folder)


def write_json(path: str, value: Any, durable: bool = True) -> None:
    write_atomically(path, json.dumps(value).encode("ascii"), 0o600, durable)


def read_json(path: str) -> Any:
    """The value in the file, None when there is no such file."""
    raw = read_bytes(path)
    return None if raw is None else json.loads(to_text(raw))


class Ran(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def complaint(self) -> str:
        """The last words of a command that failed."""
        lines = (self.err.strip() or self.out.strip()).splitlines()
        return one_line(" / ".join(lines[-3:])) or "exit code {}".format(self.code)


def find_program(name: str) -> Optional[str]:
    return shutil.which(name, path=environment()["PATH"])


def environment() -> Dict[str, str]:
    """Ours, with the caller's PATH in front; nothing else of the caller's gets in."""
    mine = dict(ENVIRONMENT)
    given = os.environ.get("PATH", "")
    if given:
        mine["PATH"] = given + ":" + mine["PATH"]
    return mine


class Interrupt:
    """SIGTERM as an exception, but never between the start of a program and our knowing of it."""

    held = 0
    pending = False

    @classmethod
    def arrived(cls) -> None:
        if cls.held:
            cls.pending = True
        else:
            raise Stopped()


def launch(argv: List[str], env: Optional[Dict[str, str]] = None, **more: Any) -> Process:
    """Start a program with a clean environment, in the root directory."""
    Interrupt.held += 1
    try:
        words = [to_bytes(word) for word in argv]
        process = subprocess.Popen(words, env=env or environment(), cwd="/", **more)
    finally:
        Interrupt.held -= 1
    if Interrupt.pending:
        Interrupt.pending = False
        end_process(process)
        raise Stopped()
    return process


def run(argv: List[str], timeout_s: float = COMMAND_S, stdin: bytes = b"") -> Ran:
    """Run a program to its end. A missing program, or one past its deadline, is an AgentError."""
    what = os.path.basename(argv[0])
    try:
        process = launch(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
    except OSError as error:
        if error.errno == errno.ENOENT:
            raise AgentError("missing", "{} is not installed in the guest".format(what))
        raise AgentError("failed", "{} cannot be run: {}".format(what, error.strerror))
    try:
        out, err = process.communicate(stdin, timeout=max(timeout_s, 0.05))
    except subprocess.TimeoutExpired:
        end_process(process)
        raise AgentError(
            "failed", "{} did not end within {:.0f} s".format(" ".join(argv[:6]), timeout_s)
        )
    except BaseException:
        end_process(process)
        raise
    return Ran(process.returncode, to_text(out), to_text(err))


def end_process(process: Process) -> None:
    """Kill our own child; one stuck in the kernel is left behind rather than waited for."""
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=5)


def must(argv: List[str], timeout_s: float = COMMAND_S, stdin: bytes = b"") -> str:
    """Run a program that has to succeed; its output."""
    ran = run(argv, timeout_s, stdin)
    if ran.code != 0:
        raise AgentError(
            "failed", "{} failed ({}): {}".format(" ".join(argv), ran.code, ran.complaint)
        )
    return ran.out


def sync_filesystem(path: str, timeout_s: float) -> None:
    """syncfs(2) on the filesystem of ``path``: in a process of its own, because it cannot be
    interrupted. ``sync -f`` is coreutils 8.24; before that the whole machine has to be synced."""
    ran = run(["sync", "-f", path], timeout_s)
    if ran.code != 0 and "invalid option" in ran.err:
        ran = run(["sync"], timeout_s)
    if ran.code != 0:
        raise AgentError("failed", "sync of {} failed: {}".format(path, ran.complaint))


class Log:
    """Lines in ``state_dir/log``; the last ones travel with ``status``."""

    path = ""

    @classmethod
    def say(cls, text: str) -> None:
        if not cls.path:
            return
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        line = "{} {} {}\n".format(stamp, os.getpid(), one_line(text))
        fd = os.open(cls.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
        try:
            os.write(fd, to_bytes(line))
        finally:
            os.close(fd)

    @classmethod
    def tail(cls, path: str, lines: int = 20) -> List[str]:
        raw = read_bytes(path) or b""
        # a power cut leaves zeros where lines were not on the disk yet
        return [to_text(line.strip(b"\0")) for line in raw.splitlines()[-lines:]]


# ---- where things lie ----------------------------------------------------------------------------


class Place:
    """The base paths, and the facts that are read at them."""

    def __init__(self, settings: Optional[Json] = None) -> None:
        given = settings or {}
        self.settings = given
        self.base: str = given.get("base", "/var/lib/volferry")
        self.etc: str = given.get("etc", "/etc")
        self.run: str = given.get("run", "/run")
        self.proc: str = given.get("proc", "/proc")
        self.sys: str = given.get("sys", "/sys")

    @property
    def has_systemd(self) -> bool:
        """As sd_booted(3) tells it."""
        return os.path.isdir(self.run + "/systemd/system")

    @property
    def has_udev(self) -> bool:
        return os.path.exists(self.run + "/udev/control")

    @property
    def boot_id(self) -> str:
        return read_line(self.proc + "/sys/kernel/random/boot_id")

    def state_dir(self, transfer: str) -> str:
        return os.path.join(self.base, safe_name(transfer, "transfer id"))


def clock_offset() -> float:
    """Wall clock minus monotonic clock: constant until somebody sets the wall clock."""
    return time.time() - time.monotonic()


def safe_name(name: Any, what: str) -> str:
    """A name that can be part of a path without leading anywhere else."""
    if not isinstance(name, str) or not re.match(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}\Z", name):
        raise AgentError(
            "usage", "{} {!r} has characters that a file name cannot".format(what, name)
        )
    if name == "claims":
        raise AgentError("usage", "{} may not be 'claims'".format(what))
    return name


# ---- disks ---------------------------------------------------------------------------------------

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
    for name in sorted(os.listdir(folder)):
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
    if ref.get("path"):
        try:
            number = os.stat(to_bytes(ref["path"])).st_rdev
        except OSError:
            return None
        dev = "{}:{}".format(os.major(number), os.minor(number))
        found = [disk for disk in disks if disk.dev == dev]
    else:
        volume_id = ref.get("volume_id") or ""
        if len(volume_id) < 8:
            raise AgentError("usage", "a disk needs its volume id, got {!r}".format(volume_id))
        found = [disk for disk in disks if disk.answers_to(volume_id)]
    everything = "the guest has: " + ("; ".join(disk.told() for disk in disks) or "no disk")
    name = ref.get("volume_id") or ref.get("path")
    if len(found) > 1:
        raise AgentError(
            "doubt",
            "{} disks answer to volume '{}', expected one".format(len(found), name),
            everything,
        )
    wanted = ref.get("size_bytes") or 0
    if found and wanted and found[0].size_bytes != wanted:
        raise AgentError(
            "doubt",
            "volume '{}' is {} in the guest with {} bytes, expected {}".format(
                name, found[0].kname, found[0].size_bytes, wanted
            ),
            everything,
        )
    return found[0] if found else None


def resolve(place: Place, ref: Json) -> Disk:
    disk = look_for(place, ref)
    if disk is None:
        raise AgentError(
            "doubt",
            "no disk in the guest answers to volume '{}'".format(
                ref.get("volume_id") or ref.get("path")
            ),
            "the guest has: " + "; ".join(other.told() for other in all_disks(place)),
        )
    return disk


class Device(NamedTuple):
    """A block device with a filesystem on it: a whole disk or one partition of it."""

    path: str
    dev: str
    size_bytes: int
    disk: Disk


def resolve_device(place: Place, ref: Json) -> Device:
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
    """Names below /dev/disk that lead to the device: none for one in quarantine."""
    links = []
    for folder, _, names in os.walk("/dev/disk"):
        for name in names:
            link = os.path.join(folder, name)
            if os.path.islink(link) and os.path.realpath(link) == path:
                links.append(link)
    return sorted(links)


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


# ---- mounts --------------------------------------------------------------------------------------


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
    if not wait_until_free(device.path, 5):
        raise AgentError("doubt", "{} is in use by somebody else".format(device.path))
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
            raise AgentError(kind, "umount {} failed: {}".format(path, ran.complaint))
        time.sleep(0.05)


# ---- facts ---------------------------------------------------------------------------------------

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

    ``refs`` are the sources; those that are absent are told in ``problems``. A tool that is missing
    and a command that fails are facts as well: the value is then null and ``problems`` says why.

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
        links {device path: [path]}                     names below /dev/disk that lead to it
        blkid {device path: {TYPE, UUID, LABEL, …}}     of each source disk and its partitions
        sfdisk {disk path: text}                        of each source disk with a table
        tools {name: {path, version}}                   only those that exist
        mount_units [{target, unit, show: text}]        systemctl show of each mount's unit
        units: text of ``systemctl show``, blocks divided by blank lines
        statvfs {mount: {size_bytes, used_bytes, free_bytes, inodes_used, inodes_free}}
        btrfs_subvolumes {mount: int}
        nested_mounts [path]
        holders [{kind: process|mount|loop|swap|nfs, pid, comm, cgroup, how, path, mount}]
        holders_complete: bool
        walk {mount: {entries, seconds, finished: bool, bytes, largest_bytes, excluded_dirs: 0}}
        problems [str]
    """
    problems: List[str] = []
    wanted: List[Disk] = []
    sources: Dict[str, str] = {}
    for ref in request.get("refs", []):
        disk = look_for(place, ref)
        if disk is None:
            problems.append("no disk answers to volume '{}'".format(ref.get("volume_id")))
        else:
            wanted.append(disk)
            sources[ref.get("volume_id") or disk.path] = disk.kname
    table = mount_table(place, "1") or mount_table(place)
    devices = {disk.dev: disk.path for disk in wanted}
    for disk in wanted:
        devices.update({partition.dev: partition.path for partition in disk.partitions})
    ours = [entry for entry in table if device_number(entry) in devices]
    paths = list(collections.OrderedDict.fromkeys(entry.target for entry in ours))
    nested = [
        entry.target
        for entry in table
        if entry not in ours and any(is_below(entry.target, path) for path in paths if path != "/")
    ]
    holders, complete = find_holders(place, set(devices), paths, 20.0)
    units = list(request.get("units", [])) + units_of(holders)
    uname = os.uname()
    walk_s = float(request.get("walk_s", 5.0))
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
        "links": {path: links_to(path) for path in devices.values()},
        "blkid": {path: blkid_or_nothing(problems, path) for path in devices.values()},
        "sfdisk": partition_tables(problems, wanted),
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
        "problems": problems,
    }


def is_below(path: str, folder: str) -> bool:
    return path != folder and path.startswith(folder.rstrip("/") + "/")


def asked(problems: List[str], argv: List[str], first_line: bool = False) -> Optional[str]:
    """What a command said, None (and the reason in ``problems``) when it could not."""
    try:
        ran = run(argv)
    except AgentError as error:
        problems.append(error.what)
        return None
    if ran.code != 0:
        problems.append("{} failed ({}): {}".format(" ".join(argv), ran.code, ran.complaint))
        return None
    return (ran.out.splitlines() or [""])[0] if first_line else ran.out


def asked_json(problems: List[str], argv: List[str]) -> Any:
    text = asked(problems, argv)
    try:
        return json.loads(text) if text else None
    except ValueError as error:
        problems.append("{} printed no JSON: {}".format(argv[0], error))
        return None


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
            shown = asked(problems, ["systemctl", "show", "-p", UNIT_PROPERTIES, name])
            units.append({"target": path, "unit": name, "show": shown or ""})
    return units


def show_units(place: Place, problems: List[str], names: Iterable[str]) -> str:
    unique = list(collections.OrderedDict.fromkeys(names))
    if not place.has_systemd or not unique:
        return ""
    return asked(problems, ["systemctl", "show", "-p", UNIT_PROPERTIES, "--", *unique]) or ""


def units_of(holders: List[Json]) -> List[str]:
    """Units in the processes' cgroup paths: the last part that looks like a service."""
    names: List[str] = []
    for holder in holders:
        found = re.findall(r"/([^/\n]+\.(?:service|scope))(?=/|\n|$)", holder.get("cgroup", ""))
        names.extend(name for name in found[-1:] if not name.startswith(("session-", "init.scope")))
    return names


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


def in_child(
    work: Callable[[Callable[[Json], None]], None], timeout_s: float
) -> Tuple[List[Json], bool]:
    """Run ``work`` in a forked child, which may hang in the kernel (a dead NFS server under some
    process' directory); what it told until the deadline counts. -> (told, finished)"""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:  # the child: never returns into the caller's code
        code = 1
        try:
            os.close(reader)
            with os.fdopen(writer, "w") as file:

                def tell(value: Json) -> None:
                    file.write(json.dumps(value) + "\n")
                    file.flush()

                work(tell)
            code = 0
        finally:
            os._exit(code)
    os.close(writer)
    raw, finished = b"", False
    deadline = time.monotonic() + timeout_s
    try:
        while True:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([reader], [], [], left)[0]:
                break
            chunk = os.read(reader, 65536)
            if not chunk:
                finished = True
                break
            raw += chunk
    finally:
        os.close(reader)
        if not finished:
            os.kill(pid, signal.SIGKILL)
        reap(pid, 5.0)
    lines = raw.split(b"\n")[:-1]
    return [json.loads(to_text(line)) for line in lines], finished


def reap(pid: int, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        with contextlib.suppress(ChildProcessError):
            if os.waitpid(pid, os.WNOHANG)[0] == 0:
                time.sleep(0.005)
                continue
        return


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


# ---- holders: who would make an unmount fail -----------------------------------------------------


def find_holders(
    place: Place, devices: Set[str], paths: List[str], timeout_s: float
) -> Tuple[List[Json], bool]:
    """Everybody who holds a filesystem on ``devices`` ("major:minor"); only names are read of other
    people's processes, never arguments.

    File descriptors are known by the mount id in /proc/<pid>/fdinfo, which is the same in every
    mount namespace, needs no access to the file (a dead NFS server cannot stop us) and is right for
    btrfs, whose subvolumes each have a device number of their own.
    -> (holders, False when the scan was cut off by its deadline)
    """
    told, complete = in_child(lambda tell: scan(place, devices, paths, tell), timeout_s)
    return told, complete


def scan(place: Place, devices: Set[str], paths: List[str], tell: Callable[[Json], None]) -> None:
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
        if how:
            tell(holder(place, pid, "process", how, path, mount))
    for found in kernel_holders(place, paths):
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


def kernel_holders(place: Place, paths: List[str]) -> List[Json]:
    """Holders that are no process: loop devices, swap files, exported directories."""

    def on_ours(path: str) -> str:
        return next((mount for mount in paths if path == mount or is_below(path, mount)), "")

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


# ---- install, apply, uninstall -------------------------------------------------------------------


def trusted_directory(path: str) -> None:
    """Make a directory of ours, 0700, and refuse one that somebody else could have prepared."""
    if not os.path.lexists(path):
        os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            os.mkdir(path, 0o700)
        fsync_directory(to_bytes(os.path.dirname(path)))
    status = os.lstat(path)
    if not stat.S_ISDIR(status.st_mode):
        raise AgentError("refused", "{} is not a directory".format(path))
    if status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise AgentError(
            "refused",
            "{} is of uid {} with mode {:o}, expected uid {} and not writable by others".format(
                path, status.st_uid, stat.S_IMODE(status.st_mode), os.getuid()
            ),
        )


def verb_install(place: Place, request: Json) -> Json:
    """Make the state directory, put the program there under its hash, claim the source volume."""
    transfer = safe_name(request["transfer"], "transfer id")
    program = base64.b64decode(request["program_b64"])
    if program[:1] == b"\x78":  # no Python program begins with a zlib header
        program = zlib.decompress(program)
    state_dir = place.state_dir(transfer)
    for folder in (place.base, place.base + "/claims", state_dir):
        trusted_directory(folder)
    claim = claim_volume(place, request["source"], transfer)
    name = "agent-{}.py".format(hashlib.sha256(program).hexdigest()[:12])
    agent = os.path.join(state_dir, name)
    if read_bytes(agent) != program:
        write_atomically(agent, program, 0o700)
    write_json(os.path.join(state_dir, "settings.json"), place.settings)
    return {"state_dir": state_dir, "agent": agent, "claim": claim}


def claim_volume(place: Place, source: Json, transfer: str) -> str:
    """O_EXCL decides between two transfers of one volume, whoever controls them."""
    volume = safe_name(source.get("volume_id"), "volume id")
    path = os.path.join(place.base, "claims", volume)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        fd = os.open(path, flags, 0o600)
    except FileExistsError:
        holder_of_it = claimed_by(path)
        if holder_of_it != transfer:
            raise AgentError(
                "refused",
                "volume '{}' is claimed by transfer '{}'".format(volume, holder_of_it),
                "nothing was changed",
                "end that transfer first, or remove {} when it is gone for good".format(path),
            )
        return path
    try:
        os.write(fd, transfer.encode("ascii"))
        os.fsync(fd)
    finally:
        os.close(fd)
    fsync_directory(to_bytes(os.path.dirname(path)))
    return path


def claimed_by(path: str) -> str:
    """Who holds a claim; read without following a link. An empty one (a crash between making and
    writing it) cannot be told apart from another's, so a person decides."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        return to_text(os.read(fd, 256)) or "(unknown)"
    finally:
        os.close(fd)


def current_content(path: str) -> Optional[bytes]:
    """The content of a user's file, None when there is none; anything but a plain file is a
    doubt."""
    raw = to_bytes(path)
    try:
        status = os.lstat(raw)
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(status.st_mode):
        raise AgentError("doubt", "{} is not a plain file, it was left alone".format(path))
    with open(raw, "rb") as file:
        return file.read()


def content_if_plain(path: str) -> Any:
    """The content as ``current_content``, or something that equals no content."""
    try:
        return current_content(path)
    except (AgentError, OSError):
        return NotImplemented


def put_file(state_dir: str, path: str, content: Optional[str], mode: Optional[int]) -> bool:
    """Bring a file of the user's guest to ``content`` (None: away). False when it was so already.

    The first content we ever saw of it is kept in ``backup/``.
    """
    if not path.startswith("/") or os.path.normpath(path) != path:
        raise AgentError("usage", "{!r} is not an absolute, plain path".format(path))
    before = current_content(path)
    wanted = None if content is None else to_bytes(content)
    if before == wanted:
        return False
    keep_backup(state_dir, path, before)
    raw = to_bytes(path)
    if wanted is None:
        os.unlink(raw)
        fsync_directory(os.path.dirname(raw))
        return True
    if mode is None:
        mode = 0o644 if before is None else stat.S_IMODE(os.lstat(raw).st_mode)
    os.makedirs(os.path.dirname(raw), mode=0o755, exist_ok=True)
    write_atomically(path, wanted, mode)
    return True


def keep_backup(state_dir: str, path: str, content: Optional[bytes]) -> None:
    folder = os.path.join(state_dir, "backup")
    make_directory(folder)
    name = re.sub(r"[^A-Za-z0-9._-]", "_", path.strip("/"))[:200]
    copy = os.path.join(folder, name)
    if content is not None and not os.path.lexists(copy):
        write_atomically(copy, content, 0o600)


def verb_apply(place: Place, request: Json) -> Json:
    """Write and remove files of the guest, then let udev and systemd see it.

    All ``expect`` are looked at before anything is written; a file that has the wanted content
    already is left alone whatever was expected, so that saying it twice is saying it once.
    """
    state_dir = place.state_dir(request["transfer"])
    files = request.get("files", [])
    for file in files:
        if "expect" not in file:
            continue
        now = current_content(file["path"])
        allowed = [
            None if text is None else to_bytes(text) for text in (file["expect"], file["content"])
        ]
        if now not in allowed:
            raise AgentError(
                "doubt",
                "{} is not what it was: it was changed by somebody else".format(file["path"]),
                "nothing was written",
            )
    result: Json = {"written": [], "removed": [], "same": [], "skipped": []}
    for file in files:
        changed = put_file(state_dir, file["path"], file["content"], file.get("mode"))
        what = "same" if not changed else "removed" if file["content"] is None else "written"
        result[what].append(file["path"])
    result["skipped"] = publish(
        place,
        [disk for disk in (look_for(place, ref) for ref in request.get("trigger", [])) if disk],
        bool(request.get("udev")),
        bool(request.get("systemd")),
        60.0,
    )
    return result


def publish(
    place: Place, disks: List[Disk], udev: bool, systemd: bool, settle_s: float
) -> List[str]:
    """Make udev and systemd look again at their files and at these disks. -> what was skipped

    "change" is written to the devices' own uevent files, which is what ``udevadm trigger`` does;
    unlike it this works the same with every version.
    """
    skipped = []
    if (udev or disks) and not place.has_udev:
        skipped.append("udev: it does not run here")
    elif udev or disks:
        if udev:
            must(["udevadm", "control", "--reload"])
        for disk in disks:
            for path in [disk.path] + [partition.path for partition in disk.partitions]:
                name = os.path.basename(path)
                with open("{}/class/block/{}/uevent".format(place.sys, name), "w") as file:
                    file.write("change\n")
        ran = run(["udevadm", "settle", "--timeout={:.0f}".format(settle_s)], settle_s + 5)
        if ran.code != 0:
            skipped.append(
                "udevadm settle: the queue was not empty after {:.0f} s".format(settle_s)
            )
    if systemd and not place.has_systemd:
        skipped.append("systemd: pid 1 is something else")
    elif systemd:
        must(["systemctl", "daemon-reload"], 90)
    return skipped


def verb_uninstall(place: Place, request: Json) -> Json:
    """Remove everything of ours from the guest. Repeatable; what stays is told with the reason."""
    transfer = safe_name(request["transfer"], "transfer id")
    state_dir = place.state_dir(transfer)
    removed: List[str] = []
    left: List[str] = []
    if os.path.isdir(state_dir) and Job(place, state_dir).is_alive():
        raise AgentError("busy", "a job of transfer '{}' is still running".format(transfer))
    unit = Supervisor(place, transfer).unit_path
    if os.path.lexists(unit):
        Supervisor(place, transfer).remove_unit()
        removed.append(unit)
    for path in request.get("files", []):
        try:
            if current_content(path) is not None:
                os.unlink(to_bytes(path))
                fsync_directory(to_bytes(os.path.dirname(path)))
                removed.append(path)
        except (AgentError, OSError) as error:
            left.append("{}: {}".format(path, error))
    if request.get("files") and place.has_udev:
        must(["udevadm", "control", "--reload"])
    claims = os.path.join(place.base, "claims")
    for name in os.listdir(claims) if os.path.isdir(claims) else []:
        path = os.path.join(claims, name)
        if os.path.isfile(path) and not os.path.islink(path) and claimed_by(path) == transfer:
            os.unlink(path)
            removed.append(path)
    below = [entry.target for entry in mount_table(place) if is_below(entry.target, state_dir)]
    if below:  # never walk into somebody's data with rmtree
        left.append("{}: {} is mounted in it".format(state_dir, ", ".join(below)))
    elif os.path.isdir(state_dir) and not os.path.islink(state_dir):
        try:
            shutil.rmtree(state_dir)
            removed.append(state_dir)
        except OSError as error:
            left.append("{}: {}".format(state_dir, error))
    for folder in (claims, place.base):
        with contextlib.suppress(OSError):  # not empty: another transfer's
            os.rmdir(folder)
    return {"removed": removed, "left": left}


# ---- jobs: what the supervisor runs, and how the controller sees it ------------------------------

JOBS = ("prepare", "pass", "cutover", "cutback")


class Job:
    """The files of the one job a transfer has at a time.

    ``job.json`` what was asked; ``status.json`` how it goes; ``worker.json`` which process does it.
    """

    def __init__(self, place: Place, state_dir: str) -> None:
        self.place, self.state_dir = place, state_dir
        self.began = time.monotonic()
        self.last_report = 0.0
        self.status: Json = {}

    def path(self, name: str) -> str:
        return os.path.join(self.state_dir, name)

    def read(self) -> Optional[Json]:
        job: Optional[Json] = read_json(self.path("job.json"))
        return job

    def read_status(self) -> Json:
        status: Json = read_json(self.path("status.json")) or {}
        return status

    # -- written by the worker

    def enter(self) -> None:
        pid = os.getpid()
        identity = {
            "pid": pid,
            "started": process_started(self.place, pid),
            "boot_id": self.place.boot_id,
        }
        write_json(self.path("worker.json"), identity)

    def report(self, phase: str, force: bool = False, **progress: Any) -> None:
        """Progress, at most twice a second, and not fsynced: nothing is decided by it."""
        now = time.monotonic()
        if not force and phase == self.status.get("phase") and now - self.last_report < 0.5:
            return
        self.last_report = now
        progress["elapsed_s"] = round(now - self.began, 3)
        self.status = {"state": "running", "phase": phase, "progress": progress}
        write_json(self.path("status.json"), self.status, durable=False)

    def end(self, result: Optional[Json], error: Optional[Json]) -> None:
        self.status = {
            "state": "ended",
            "phase": "done",
            "progress": {"elapsed_s": round(time.monotonic() - self.began, 3)},
            "result": result,
            "error": error,
        }
        write_json(self.path("status.json"), self.status)
        Log.say("ended: {}".format("ok" if error is None else error["what"]))

    # -- read by the controller's verbs

    def is_alive(self) -> bool:
        """A worker or its supervisor is there (by pid, start time and boot)."""
        return any(self.lives(name) for name in ("worker.json", "supervisor.json"))

    def lives(self, name: str) -> bool:
        identity = read_json(self.path(name))
        if not identity or identity["boot_id"] != self.place.boot_id:
            return False
        started = process_started(self.place, identity["pid"])
        return bool(started) and started == identity["started"]

    def state(self) -> str:
        if self.read() is None:
            return "none"
        if self.read_status().get("state") == "ended":
            return "ended"
        supervisor = Supervisor(self.place, os.path.basename(self.state_dir))
        return "running" if self.is_alive() or supervisor.unit_is_alive() else "died"


def process_started(place: Place, pid: int) -> str:
    """Field 22 of /proc/<pid>/stat: with the boot it makes a pid unique. Empty for no process, and
    for a zombie, which does nothing any more."""
    text = read_text("{}/{}/stat".format(place.proc, pid))
    fields = text.rpartition(")")[2].split()
    return fields[19] if len(fields) > 19 and fields[0] not in "ZX" else ""


@contextlib.contextmanager
def locked(path: str, wait_s: float) -> Iterator[bool]:
    """An exclusive flock; False when somebody else keeps it for longer than ``wait_s``."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        deadline = time.monotonic() + wait_s
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                got = True
                break
            except OSError as error:
                if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                    raise
            if time.monotonic() >= deadline:
                got = False
                break
            time.sleep(0.02)
        yield got
    finally:
        os.close(fd)


UNIT_FILE = """\
# Written by volferry for transfer {transfer}; removed when it ends.
[Unit]
Description=volferry transfer {transfer}
After=local-fs.target
StartLimitIntervalSec=0

[Service]
Type=simple
ExecStart="{python}" -I "{agent}" work "{state_dir}"
Restart=on-failure
RestartSec=300ms
StartLimitInterval=0
KillMode=mixed
TimeoutStopSec=600
OOMScoreAdjust=-900
WorkingDirectory=/

[Install]
WantedBy=multi-user.target
"""


class Supervisor:
    """Who starts the worker again when it is killed: systemd, or a small parent of our own.

    The unit is a file, not a transient one, and is enabled while a cutover is under way: a guest
    that restarts in the middle runs the same worker, which reads the same record.
    """

    def __init__(self, place: Place, transfer: str) -> None:
        self.place, self.transfer = place, transfer
        self.unit = "volferry-{}.service".format(transfer)
        folder = place.etc + "/systemd/system"
        self.unit_path = "{}/{}".format(folder, self.unit)
        self.wants_path = "{}/multi-user.target.wants/{}".format(folder, self.unit)

    def start(self, agent: str, state_dir: str, survive_reboot: bool) -> str:
        if self.place.has_systemd:
            self.start_unit(agent, state_dir, survive_reboot)
            return "systemd"
        spawn_orphan([sys.executable, "-I", agent, "supervise", state_dir])
        return "daemon"

    def start_unit(self, agent: str, state_dir: str, survive_reboot: bool) -> None:
        text = UNIT_FILE.format(
            transfer=self.transfer, python=sys.executable, agent=agent, state_dir=state_dir
        )
        if read_text(self.unit_path) != text:
            write_atomically(self.unit_path, text.encode("utf-8"), 0o644)
            must(["systemctl", "daemon-reload"], 90)
        if survive_reboot:
            self.enable()
        deadline = time.monotonic() + 10
        while self.unit_is_alive() and time.monotonic() < deadline:
            time.sleep(0.05)  # the last worker has told its end and is about to go
        run(["systemctl", "reset-failed", self.unit])
        must(["systemctl", "start", self.unit], 60)

    def enable(self) -> None:
        """The link ``systemctl enable`` makes, without asking a systemd that may be shutting
        down."""
        folder = os.path.dirname(self.wants_path)
        os.makedirs(folder, mode=0o755, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            os.symlink(self.unit_path, self.wants_path)
        fsync_directory(to_bytes(folder))

    def disable(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.wants_path)
            fsync_directory(to_bytes(os.path.dirname(self.wants_path)))

    def unit_is_alive(self) -> bool:
        if not self.place.has_systemd or not os.path.exists(self.unit_path):
            return False
        state = run(["systemctl", "is-active", self.unit]).out.strip()
        return state in ("active", "activating", "deactivating", "reloading")

    def remove_unit(self) -> None:
        self.disable()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.unit_path)
            fsync_directory(to_bytes(os.path.dirname(self.unit_path)))
        if self.place.has_systemd:
            must(["systemctl", "daemon-reload"], 90)


def spawn_orphan(argv: List[str]) -> None:
    """Start a program that nobody waits for, in a session of its own: the controller's ssh may go
    away."""
    pid = os.fork()
    if pid == 0:  # the child: never returns into the caller's code
        try:
            os.setsid()
            if os.fork() > 0:
                os._exit(0)
            null = os.open(os.devnull, os.O_RDWR)
            for fd in (0, 1, 2):
                os.dup2(null, fd)
            os.chdir("/")
            os.execve(argv[0], argv, environment())
        finally:
            os._exit(127)
    reap(pid, 10.0)


def supervise(state_dir: str) -> None:
    """The parent where there is no systemd: runs ``work`` again when it died, a bounded number of
    times; what such a worker left running in its process group is ended first."""
    place = place_of(state_dir)
    Log.path = os.path.join(state_dir, "log")
    pid = os.getpid()
    write_json(
        os.path.join(state_dir, "supervisor.json"),
        {"pid": pid, "started": process_started(place, pid), "boot_id": place.boot_id},
    )
    for attempt in range(10):
        child = launch(
            [sys.executable, "-I", os.path.abspath(__file__), "work", state_dir],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        code = child.wait()
        if code == 0:
            return
        end_group(child.pid)
        Log.say("the worker ended with {}, run {}".format(code, attempt + 1))
        time.sleep(0.1 + 0.2 * attempt)


def place_of(state_dir: str) -> Place:
    return Place(read_json(os.path.join(state_dir, "settings.json")))


def verb_start(place: Place, request: Json) -> Json:
    """Hand a job to the supervisor and return at once. The same job id again is the same as once; a
    job that died (worker and supervisor gone) is taken up again where its record says."""
    transfer = safe_name(request["transfer"], "transfer id")
    state_dir = place.state_dir(transfer)
    if not os.path.isdir(state_dir):
        raise AgentError("refused", "transfer '{}' is not installed in this guest".format(transfer))
    name, job_id = request["job"], safe_name(request["job_id"], "job id")
    if name not in JOBS:
        raise AgentError("usage", "there is no job '{}'".format(name))
    supervisor = Supervisor(place, transfer)
    with locked(os.path.join(state_dir, "start.lock"), 20) as got:
        if not got:
            raise AgentError("busy", "another start of transfer '{}' is under way".format(transfer))
        job = Job(place, state_dir)
        before, state = job.read(), job.state()
        kind = "systemd" if place.has_systemd else "daemon"
        if before and before["job_id"] == job_id and state in ("running", "ended"):
            return {"job_id": job_id, "state": state, "supervisor": kind}
        if before and before["job_id"] != job_id:
            if state == "running":
                raise AgentError("busy", "job '{}' is still running".format(before["job_id"]))
            if state == "died" and before["job"] in ("cutover", "cutback"):
                raise AgentError(
                    "refused",
                    "{} '{}' died and has to be taken up first".format(
                        before["job"], before["job_id"]
                    ),
                    "services may be down",
                    "start the same job id again: it goes on from its own record",
                )
        if not before or before["job_id"] != job_id:
            job_request = remembered_request(job, name, request.get("request") or {})
            forget(job.path("status.json"))
            asked_for = {"job": name, "job_id": job_id, "request": job_request}
            write_json(job.path("job.json"), asked_for)
        forget(job.path("worker.json"))
        kind = supervisor.start(
            installed_agent(state_dir), state_dir, name in ("cutover", "cutback")
        )
        deadline = time.monotonic() + 20
        while not os.path.exists(job.path("worker.json")) and time.monotonic() < deadline:
            time.sleep(0.02)
    return {"job_id": job_id, "state": job.state(), "supervisor": kind}


def forget(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def remembered_request(job: Job, name: str, request: Json) -> Json:
    """A cutover's request is kept, so that a cutback need not bring it again."""
    path = job.path("switch.json")
    if name == "cutover":
        write_json(path, request)
    elif name == "cutback" and not request:
        kept: Optional[Json] = read_json(path)
        if kept is None:
            raise AgentError("refused", "there was no cutover to go back from")
        return kept
    return request


def installed_agent(state_dir: str) -> str:
    """The agent that was installed last."""
    found = [name for name in os.listdir(state_dir) if re.match(r"^agent-[0-9a-f]{12}\.py$", name)]
    if not found:
        raise AgentError("refused", "no agent is installed in {}".format(state_dir))
    paths = [os.path.join(state_dir, name) for name in found]
    return max(paths, key=lambda path: os.lstat(path).st_mtime)


def verb_status(place: Place, request: Json) -> Json:
    state_dir = place.state_dir(request["transfer"])
    job = Job(place, state_dir)
    asked_for, state, status = job.read() or {}, job.state(), job.read_status()
    if job.read_status().get("state") == "ended":  # it may have ended between the two looks
        state, status = "ended", job.read_status()
    return {
        "job": asked_for.get("job", ""),
        "job_id": asked_for.get("job_id", ""),
        "state": state,
        "phase": status.get("phase", ""),
        "progress": status.get("progress", {}),
        "result": status.get("result"),
        "error": status.get("error"),
        "log_tail": Log.tail(os.path.join(state_dir, "log")),
    }


def verb_stop(place: Place, request: Json) -> Json:
    """End the job: asked to at first, killed after ``grace_s``. Not once a cutover stopped
    something: it takes itself back when it has to, and better than anybody from outside."""
    transfer = safe_name(request["transfer"], "transfer id")
    state_dir = place.state_dir(transfer)
    job = Job(place, state_dir)
    if job.state() != "running":
        return {"stopped": False, "state": job.state()}
    record = read_json(job.path("cutover.json")) or {}
    asked_for = job.read() or {}
    if record.get("job_id") == asked_for.get("job_id") and record.get("phase") not in (
        None,
        "armed",
    ):
        raise AgentError(
            "refused",
            "the {} is in phase '{}' and ends by itself".format(asked_for["job"], record["phase"]),
            "services are down or coming up on exactly one side",
        )
    worker = read_json(job.path("worker.json")) or {}
    supervisor = Supervisor(place, transfer)
    if supervisor.unit_is_alive():
        must(["systemctl", "stop", "--no-block", supervisor.unit])
    elif worker and job.lives("worker.json"):
        os.kill(worker["pid"], signal.SIGTERM)
    deadline = time.monotonic() + float(request.get("grace_s", 15.0))
    while job.state() == "running" and time.monotonic() < deadline:
        time.sleep(0.05)
    if job.state() == "running":
        if supervisor.unit_is_alive():
            must(["systemctl", "kill", "--signal=KILL", supervisor.unit])
        elif job.lives("worker.json"):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(worker["pid"], signal.SIGKILL)
        deadline = time.monotonic() + 10
        while job.state() == "running" and time.monotonic() < deadline:
            time.sleep(0.05)
    return {"stopped": True, "state": job.state()}


def on_sigterm(number: int, frame: Any) -> None:
    signal.signal(signal.SIGTERM, lambda *_: None)  # once is enough: clean-up is not disturbed
    Interrupt.arrived()


def work(state_dir: str) -> int:
    """Do the job of ``job.json``, or take up what a killed worker left. -> exit code: 0 tells the
    supervisor that there is nothing more to do."""
    place = place_of(state_dir)
    Log.path = os.path.join(state_dir, "log")
    job = Job(place, state_dir)
    with locked(os.path.join(state_dir, "work.lock"), 5.0) as got:
        if not got:
            Log.say("another worker is at it")
            return 0
        asked_for = job.read()
        if asked_for is None or job.read_status().get("state") == "ended":
            return 0
        signal.signal(signal.SIGTERM, on_sigterm)
        job.enter()
        if asked_for["job"] in ("cutover", "cutback"):
            return Cutover(place, job, asked_for).run()
        if job.read_status():
            gone = AgentError("failed", "the job's process died", "nothing is mounted any more")
            job.end(None, gone.as_json())
            return 0
        job.report("starting", force=True)
        lower_priority()
        result, error = attempt(lambda: run_job(place, job, asked_for))
        job.end(result, error)
    return 0


def end_group(pid: int) -> None:
    """Kill what is left of a process group that was made for a child of ours."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def run_job(place: Place, job: Job, asked_for: Json) -> Json:
    needed = [job.state_dir] + [fs["mount"] for fs in asked_for["request"]["filesystems"]]
    own_namespace(place, needed)
    if asked_for["job"] == "prepare":
        return Preparation(place, job, asked_for["request"]).run()
    return LivePass(place, job.state_dir, asked_for["request"], job.report).run()


def attempt(work: Callable[[], Json]) -> Tuple[Optional[Json], Optional[Json]]:
    """The border between code that raises and files that tell. -> (result, error)"""
    try:
        return work(), None
    except AgentError as error:
        return None, error.as_json()
    except Stopped:
        return None, AgentError("failed", "the job was stopped on request").as_json()
    except Exception as error:  # noqa: BLE001 - a fault of ours has to be told as well, not lost
        Log.say("{}: {} at {}".format(type(error).__name__, error, where(error)))
        what = "{}: {} ({})".format(type(error).__name__, error, where(error))
        return None, AgentError("failed", what).as_json()


def where(error: BaseException) -> str:
    trace = error.__traceback__
    places = []
    while trace is not None:
        places.append("{}:{}".format(trace.tb_frame.f_code.co_name, trace.tb_lineno))
        trace = trace.tb_next
    return " ".join(places[-4:])


def lower_priority() -> None:
    """A pass gives way to the service. The idle class needs a scheduler that knows it; where ionice
    is missing the pass runs as everybody."""
    os.nice(10)
    if find_program("ionice"):
        run(["ionice", "-c", "3", "-p", str(os.getpid())])


CLONE_NEWNS = 0x00020000  # linux/sched.h


SYSTEM = (
    "/",
    "/usr",
    "/bin",
    "/sbin",
    "/lib",
    "/etc",
    "/var",
    "/tmp",
    "/run",
    "/proc",
    "/sys",
    "/dev",
)


def own_namespace(place: Place, needed: List[str]) -> None:
    """Go on in a mount namespace of our own: what is mounted here is seen by nobody else and
    vanishes with us, while an unmount in the guest still reaches it (slave).

    In a guest whose mounts are private (one without systemd) it does not, and our copy of another
    volume's mount would keep that volume busy for as long as we run. So what is not ``needed`` is
    unmounted here, where nobody else sees it.
    """
    unshare = getattr(os, "unshare", None)  # Python 3.12
    if unshare is not None:
        unshare(CLONE_NEWNS)
    elif ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNS) != 0:
        number = ctypes.get_errno()
        raise AgentError("failed", "unshare of the mount namespace: " + os.strerror(number))
    must(["mount", "--make-rslave", "/"])
    needed = [*needed, sys.executable, os.path.abspath(__file__), *SYSTEM]
    for entry in reversed(mount_table(place)):
        device_backed = not device_number(entry).startswith("0:")
        used = any(path == entry.target or is_below(path, entry.target) for path in needed)
        if entry.propagation == "private" and device_backed and not used:
            run(["umount", entry.target])  # one that is busy with another's mount stays


# ---- job prepare: a target that can be mounted, with a proven identity ---------------------------


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
            raise AgentError("doubt", "source and target are the same disk {}".format(target.path))
        whole_copy = self.request["seed"] == "snapshot" or self.request.get("partition_dump")
        if whole_copy and target.size_bytes < source.size_bytes:
            raise AgentError(
                "refused",
                "target {} has {} bytes, less than the source's {}".format(
                    target.path, target.size_bytes, source.size_bytes
                ),
            )
        for path in [target.path] + [partition.path for partition in target.partitions]:
            if not wait_until_free(path, 5):
                raise AgentError("doubt", "the target {} is in use by somebody".format(path))
        self.job.report("preparing", force=True, what="checking the target")
        results = (
            self.from_snapshot(target) if self.request["seed"] == "snapshot" else self.blank(target)
        )
        return {"filesystems": results, "notes": self.notes, **self.measure()}

    def measure(self) -> Json:
        """What switching the live side will cost on this guest, in seconds: udev asked to look
        again at its rules and at the target, and one mount with its unmount."""
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
            ours = self.record.get(self.key(filesystem), {}).get("uuid")
            self.expect_identity(device, filesystem, {filesystem["uuid"], ours} - {None})
            number = filesystem["target"].get("partition")
            grow = bool(self.request.get("grow")) and number in (None, last)
            grown = self.replay(filesystem, grow)
            if not filesystem["keep_uuid"] and not ours:
                self.renew_identity(device, filesystem)
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
        )

    def renew_identity(self, device: Device, filesystem: Json) -> None:
        """xfs_admin exits 0 without doing anything while the log is dirty, so the exit code proves
        nothing; tune2fs wants a filesystem that was checked when its checksums carry the UUID."""
        if filesystem["fstype"] == "xfs":
            must(["xfs_admin", "-U", "generate", device.path], 600)
        else:
            check_ext(device.path)
            must(["tune2fs", "-U", "random", device.path], 3600, b"y\n")
        found = blkid(device.path)
        if not found.get("UUID") or found["UUID"] == filesystem["uuid"]:
            raise AgentError(
                "failed",
                "{} still has UUID {} after it was told to take a new one".format(
                    device.path, found.get("UUID")
                ),
            )
        self.remember(self.key(filesystem), uuid=found["UUID"])

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
                    "doubt", "{} has lost the filesystem {} that we made".format(device.path, made)
                )
            results.append(
                self.read_back(filesystem, device.size_bytes > self.source_size(filesystem))
            )
        return results

    def source_size(self, filesystem: Json) -> int:
        return resolve_device(self.place, filesystem["source"]).size_bytes

    def wait_for_partitions(self, numbers: List[int]) -> List[Device]:
        """The kernel announces partitions a moment after the table was written."""
        deadline = time.monotonic() + 15
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
                raise AgentError("failed", "the target's partitions did not appear within 15 s")
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


# ---- copying: rsync ------------------------------------------------------------------------------

RSYNC_EXIT = {  # quoted from rsync(1)
    1: "Syntax or usage error",
    2: "Protocol incompatibility",
    3: "Errors selecting input/output files, directories",
    4: "Requested action not supported",
    5: "Error starting client-server protocol",
    10: "Error in socket I/O",
    11: "Error in file I/O",
    12: "Error in rsync protocol data stream",
    13: "Errors with program diagnostics",
    14: "Error in IPC code",
    15: "Sibling process crashed (e.g. core dumped).",
    16: "Sibling process was killed by a signal.",
    19: "Received SIGUSR1.",
    20: "Received SIGINT, SIGTERM, or SIGHUP.",
    21: "Some error returned by waitpid()",
    22: "Error allocating core memory buffers",
    23: "Partial transfer due to error",
    24: "Partial transfer due to vanished source files",
    25: "The --max-delete limit stopped deletions",
    30: "Timeout in data send/receive",
    35: "Timeout waiting for daemon connection",
}

RACE = re.compile(
    r"file has vanished|No data available \(61\)|failed verification -- update discarded"
    r"|some files(/attrs)? (vanished|were not transferred)"
)
"""Complaints of a file that was removed or cut short while rsync read it: normal while the service
runs, and told by exit code 23 when it was cut short. The comparison sees what came of it."""

Report = Callable[..., None]
"""report(phase, force=False, **progress)"""


class Itemized(NamedTuple):
    """One line of rsync's ``--out-format='%i %l %n'``."""

    flags: str
    size: int
    name: bytes

    @property
    def deleted(self) -> bool:
        return self.flags.startswith("*deleting")

    @property
    def copied(self) -> bool:
        return self.flags[0] in "<>" and self.flags[1] == "f"


def parse_itemized(line: bytes) -> Optional[Itemized]:
    """None for a line that is something else. The flags are 11 characters wide, a name may hold
    anything; rsync writes what cannot be printed as ``\\#ooo``, a backslash in front of such as
    well."""
    match = re.match(rb"^([<>ch.*][fdLDSe][^ ]{9}|\*deleting  ) ([0-9,]+) (.*)$", line, re.S)
    if match is None:
        return None
    name = re.sub(rb"\\#([0-7]{3})", lambda m: bytes([int(m.group(1), 8) & 0xFF]), match.group(3))
    size = int(match.group(2).replace(b",", b""))
    return Itemized(match.group(1).decode("ascii", "replace"), size, name)


def relative(name: bytes) -> bytes:
    """``./`` and ``dir/`` of rsync's listing as paths below the root; the root itself is empty."""
    return b"" if name in (b"./", b".") else name.rstrip(b"/")


def exclude_pattern(path: str) -> str:
    """A literal path as an anchored rsync pattern. rsync takes a backslash as an escape only in a
    pattern that holds a wildcard, so it is doubled only there."""
    plain = "/" + path.strip("/")
    if not re.search(r"[*?\[]", plain):
        return plain
    return re.sub(r"([\\*?\[])", r"\\\1", plain)


class Copied:
    """What one run of a mover did."""

    def __init__(self) -> None:
        self.counts: Dict[str, int] = {}
        self.files = self.deleted = self.bytes = 0
        self.touched: Optional[Set[bytes]] = set()
        """Paths whose content or attributes it wrote; None when it was too many to remember."""
        self.vanished = False

    def add(self, item: Itemized) -> None:
        key = "deleted" if item.deleted else item.flags[:2]
        self.counts[key] = self.counts.get(key, 0) + 1
        if item.deleted:
            self.deleted += 1
            return
        if item.copied:
            self.files += 1
            self.bytes += item.size
        if self.touched is not None:
            self.touched.add(relative(item.name))
            if len(self.touched) > 1000000:
                self.touched = None


class RsyncMover:
    """Brings the target's tree to the source's with rsync.

    A mover has ``copy`` (make equal by its own quick means) and ``heal`` (make these paths equal
    whatever they look like); what it did is compared by somebody else.
    """

    name = "rsync"

    def __init__(self, source: str, target: str, exclude: List[str]) -> None:
        self.source, self.target, self.exclude = source, target, exclude
        words = run(["rsync", "--version"]).out.split()
        version = words[2].lstrip("v") if len(words) > 2 else "0"
        numbers = [int(word) for word in re.findall(r"\d+", version)[:3]]
        self.nanoseconds = numbers >= [3, 1, 3]
        """``--modify-window=-1`` came with 3.1.3; before, times are compared and kept by the second
        for everything but a copied file."""
        self.complaints: List[str] = []
        """What the last run said on stderr."""

    def options(self) -> List[str]:
        options = ["-aHAXS", "--numeric-ids", "-x", "--out-format=%i %l %n"]
        return options + (["--modify-window=-1"] if self.nanoseconds else [])

    def copy(
        self,
        report: Report,
        deadline: float,
        vanishing_is_fine: bool,
        bwlimit_bytes_s: Optional[int],
    ) -> Copied:
        argv = ["rsync", *self.options(), "--delete", "--delete-excluded"]
        argv += ["--exclude=" + exclude_pattern(path) for path in self.exclude]
        if bwlimit_bytes_s:
            argv.append("--bwlimit={}".format(max(1, bwlimit_bytes_s // 1024)))
        tail = ["--", self.source + "/", self.target + "/"]
        copied = Copied()
        code, words = self.run(argv + tail, b"", copied, report, deadline)
        if code in (11, 23) and "No space left on device" in words:
            # a changed file is written beside the old one at first: too much for a full target
            Log.say("the target is full, again in place: {}".format(words))
            argv += ["--inplace", "--delete-before"]
            code, words = self.run(argv + tail, b"", copied, report, deadline)
        elif code == 23 and "Operation not permitted" in words and clear_locked(self.target):
            Log.say("again after immutable flags were cleared on the target: {}".format(words))
            code, words = self.run(argv + tail, b"", copied, report, deadline)
        copied.vanished = code == 24 or (code == 23 and all(map(RACE.search, self.complaints)))
        if code != 0 and not (copied.vanished and vanishing_is_fine):
            raise rsync_error(code, words)
        return copied

    def heal(self, paths: Iterable[bytes], report: Report, deadline: float) -> None:
        """Copy these again by content and remove those that the source does not have.

        The root goes last, by a listing that leaves out all in it: named among the others, rsync
        takes it for "everything in here".
        """
        names = [path for path in sorted(set(paths)) if path]
        ends = ["--", self.source + "/", self.target + "/"]
        argv = ["rsync", *self.options(), "--ignore-times", "--from0", "--files-from=-"]
        argv += ["--delete-missing-args", "--force", *ends]
        listing = b"".join(path + b"\0" for path in names)
        code, words = self.run(argv, listing, Copied(), report, deadline) if names else (0, "")
        if code in (0, 24):
            argv = ["rsync", *self.options(), "--no-recursive", "--dirs", "--exclude=/*", *ends]
            code, words = self.run(argv, b"", Copied(), report, deadline)
        if code not in (0, 24):
            raise rsync_error(code, words)

    def run(
        self, argv: List[str], stdin: bytes, copied: Copied, report: Report, deadline: float
    ) -> Tuple[int, str]:
        """-> (exit code, its last words). Reads the listing while it comes."""
        began = time.monotonic()
        with tempfile.TemporaryFile() as complaints, tempfile.TemporaryFile() as names:
            names.write(stdin)
            names.seek(0)
            try:
                process = launch(argv, stdin=names, stdout=subprocess.PIPE, stderr=complaints)
            except FileNotFoundError:
                raise AgentError(
                    "missing",
                    "rsync is not installed in the guest",
                    "",
                    "install the package rsync",
                )
            try:
                self.follow(process, copied, report, deadline, began)
                code = process.wait(timeout=max(1.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                raise AgentError("failed", "rsync did not end by its deadline")
            finally:
                if process.poll() is None:
                    process.terminate()  # it ends its two helpers itself
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(timeout=5)
                end_process(process)
            complaints.seek(0, os.SEEK_END)
            complaints.seek(max(0, complaints.tell() - 16 * MIB))
            said = to_text(complaints.read()).splitlines()
        self.complaints = [line for line in said if line.strip()] or ["it said nothing"]
        return code, one_line(" / ".join(said[-6:]))

    def follow(
        self,
        process: Process,
        copied: Copied,
        report: Report,
        deadline: float,
        began: float,
    ) -> None:
        assert process.stdout is not None
        fd = process.stdout.fileno()
        rest = b""
        while True:
            left = deadline - time.monotonic()
            if left <= 0:
                raise subprocess.TimeoutExpired("rsync", 0)
            if select.select([fd], [], [], min(0.5, left))[0]:
                chunk = os.read(fd, 65536)
                if not chunk:
                    return
                lines = (rest + chunk).split(b"\n")
                rest = lines.pop()
                for line in lines:
                    item = parse_itemized(line)
                    if item is not None:
                        copied.add(item)
            done = copied.bytes
            report(
                "copying",
                what="copying",
                done_bytes=done,
                done_files=copied.files,
                rate_bytes_s=round(done / max(time.monotonic() - began, 0.001)),
            )


def rsync_error(code: int, words: str) -> AgentError:
    meaning = RSYNC_EXIT.get(
        code, "killed by signal {}".format(-code) if code < 0 else "no documented code"
    )
    return AgentError(
        "failed",
        "rsync ended with {} ({}): {}".format(code, meaning, words or "it said nothing"),
        "the source was only read",
    )


MOVERS: Dict[str, Callable[[str, str, List[str]], RsyncMover]] = {"rsync": RsyncMover}


# ---- chattr flags and project ids, which no mover copies -----------------------------------------

FS_IOC_GETFLAGS, FS_IOC_SETFLAGS = 0x80086601, 0x40086602  # linux/fs.h on 64-bit machines
FS_IOC_FSGETXATTR, FS_IOC_FSSETXATTR = 0x801C581F, 0x401C5820
FS_SYNC, FS_IMMUTABLE, FS_APPEND, FS_NODUMP, FS_NOATIME, FS_DIRSYNC = (
    0x8,
    0x10,
    0x20,
    0x40,
    0x80,
    0x10000,
)
KEPT_FLAGS = FS_SYNC | FS_IMMUTABLE | FS_APPEND | FS_NODUMP | FS_NOATIME | FS_DIRSYNC
LOCKS = FS_IMMUTABLE | FS_APPEND
FSXATTR = struct.Struct("=5I8x")

Attributes = Tuple[int, int]
"""(chattr flags that are kept, project id)"""


def all_flags(fd: int) -> int:
    """The ioctl's number says long, the kernel writes an int."""
    answer = fcntl.ioctl(fd, FS_IOC_GETFLAGS, bytes(8))
    return int(struct.unpack_from("=I", answer)[0])


def attributes_of(fd: int) -> Attributes:
    """A filesystem without them has none."""
    flags = project = 0
    try:
        flags = all_flags(fd) & KEPT_FLAGS
        project = FSXATTR.unpack(fcntl.ioctl(fd, FS_IOC_FSGETXATTR, bytes(FSXATTR.size)))[3]
    except OSError as error:
        if error.errno not in (errno.ENOTTY, errno.EOPNOTSUPP, errno.EINVAL):
            raise
    return flags, project


def set_attributes(path: bytes, wanted: Attributes) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if attributes_of(fd)[1] != wanted[1]:
            now = list(FSXATTR.unpack(fcntl.ioctl(fd, FS_IOC_FSGETXATTR, bytes(FSXATTR.size))))
            now[3] = wanted[1]
            fcntl.ioctl(fd, FS_IOC_FSSETXATTR, FSXATTR.pack(*now))
        raw = all_flags(fd)
        flags = (raw & ~KEPT_FLAGS & 0xFFFFFFFF) | wanted[0]
        if flags != raw:
            fcntl.ioctl(fd, FS_IOC_SETFLAGS, struct.pack("=I4x", flags))
    finally:
        os.close(fd)


def clear_locked(root: str) -> int:
    """Take immutable and append-only off everything below ``root`` (the target): rsync can neither
    replace nor remove such a file. -> how many had them"""
    cleared = 0
    stack = [to_bytes(root)]
    while stack:
        path = stack.pop()
        status = os.lstat(path)
        if not (stat.S_ISDIR(status.st_mode) or stat.S_ISREG(status.st_mode)):
            continue
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            flags, project = attributes_of(fd)
        finally:
            os.close(fd)
        if flags & LOCKS:
            set_attributes(path, (flags & ~LOCKS, project))
            cleared += 1
        if stat.S_ISDIR(status.st_mode):
            stack.extend(os.path.join(path, name) for name in os.listdir(path))
    return cleared


# ---- comparing: read back from both sides --------------------------------------------------------

CHUNK = MIB
READERS = 4
"""Threads that read contents; the disk is the limit, the interpreter lets go of its lock to
read."""
MOST_DIFFERENCES = 100000
SURE_S = 0.1
"""ctime comes from a clock that ticks up to 10 ms behind; what is older than this before the copy
began was not written during it."""


class Comparison:
    """Compares two trees, entry by entry; everything that a program could see is looked at.

    Type, mode, owner, size, times of modification, link targets, device numbers, xattrs with ACLs,
    hard links, the names in each directory and the contents of files. chattr flags and project ids
    are collected on the way (``attributes``): no mover copies them, the agent sets them at the end.
    The target is read from its disk: its pages are dropped from the cache before, once it was
    synced. The source's pages never are: the service needs them."""

    def __init__(self, source: str, target: str, exclude: List[str], nanoseconds: bool) -> None:
        self.source, self.target = to_bytes(source), to_bytes(target)
        self.exclude = {to_bytes(path.strip("/")) for path in exclude}
        self.nanoseconds = nanoseconds
        self.different: "collections.OrderedDict[bytes, str]" = collections.OrderedDict()
        self.attributes: Dict[bytes, Attributes] = {}
        self.entries = self.files = self.bytes = 0
        self.device = os.lstat(self.source).st_dev
        self.links: Dict[int, int] = {}
        self.links_back: Dict[int, int] = {}
        self.names_of: Dict[int, List[bytes]] = {}
        self.lock = threading.Lock()
        self.slots = threading.BoundedSemaphore(READERS * 8)
        self.fault: Optional[BaseException] = None

    # -- what to compare

    def all(self, tick: Callable[[int, int], None]) -> None:
        """Everything in both trees."""
        with ThreadPoolExecutor(READERS) as pool:
            stack = [b""]
            self.entry(b"", pool)
            while stack:
                folder = stack.pop()
                for name in self.names(folder):
                    path = folder + b"/" + name if folder else name
                    if self.entry(path, pool):
                        stack.append(path)
                tick(self.files, self.bytes)
        self.finish()

    def some(self, paths: Iterable[bytes], tick: Callable[[int, int], None]) -> None:
        """These entries, and the names in those that are directories."""
        with ThreadPoolExecutor(READERS) as pool:
            for path in paths:
                if self.entry(path, pool):
                    self.names(path)
                tick(self.files, self.bytes)
        self.finish()

    def finish(self) -> None:
        if self.fault is not None:
            raise self.fault

    def differs(self, path: bytes, why: str) -> None:
        with self.lock:
            self.different.setdefault(path, why)
            if len(self.different) > MOST_DIFFERENCES:
                raise AgentError(
                    "failed", "more than {} entries differ".format(MOST_DIFFERENCES), "", ""
                )

    # -- one directory

    def names(self, folder: bytes) -> List[bytes]:
        """Compare the names in a directory. -> those that only the source or both have"""
        try:
            here = set(os.listdir(join(self.source, folder)))
        except (FileNotFoundError, NotADirectoryError):
            return []  # told by entry(), or gone since
        here = {
            name for name in here if (folder + b"/" + name if folder else name) not in self.exclude
        }
        try:
            there = set(os.listdir(join(self.target, folder)))
        except (FileNotFoundError, NotADirectoryError):
            there = set()
        for name in there - here:
            self.differs(folder + b"/" + name if folder else name, "only in the target")
        for name in here - there:
            self.differs(folder + b"/" + name if folder else name, "missing in the target")
        return sorted(here)

    # -- one entry

    def entry(self, path: bytes, pool: ThreadPoolExecutor) -> bool:
        """Compare one entry; contents later, by a thread of the pool. -> is it a directory"""
        if self.fault is not None:
            raise self.fault
        mine, theirs = lstat(join(self.source, path)), lstat(join(self.target, path))
        if mine is None:
            if theirs is not None:
                self.differs(path, "only in the target")
            return False
        self.entries += 1
        directory = stat.S_ISDIR(mine.st_mode)
        if directory and mine.st_dev != self.device:
            raise AgentError(
                "refused",
                "{} is a subvolume, which is not copied".format(to_text(path)),
                "the copy is incomplete",
            )
        if theirs is None:
            self.differs(path, "missing in the target")
            return directory
        try:
            why = self.metadata(path, mine, theirs)
        except OSError as error:
            why = replaced(error)
        if why:
            self.differs(path, why)
        if directory or (stat.S_ISREG(mine.st_mode) and stat.S_ISREG(theirs.st_mode)):
            self.slots.acquire()
            pool.submit(self.content, path, directory)
        return directory

    def metadata(self, path: bytes, mine: os.stat_result, theirs: os.stat_result) -> str:
        """The first thing that differs, in words with both values; empty when nothing does."""
        kind = stat.S_IFMT(mine.st_mode)
        if kind != stat.S_IFMT(theirs.st_mode):
            return "type {:o}, target {:o}".format(kind, stat.S_IFMT(theirs.st_mode))
        for name in ("st_mode", "st_uid", "st_gid"):
            if getattr(mine, name) != getattr(theirs, name):
                form = "{} {:o}, target {:o}" if name == "st_mode" else "{} {}, target {}"
                return form.format(name[3:], getattr(mine, name), getattr(theirs, name))
        if kind in (stat.S_IFREG, stat.S_IFLNK) and mine.st_size != theirs.st_size:
            return "size {}, target {}".format(mine.st_size, theirs.st_size)
        if kind in (stat.S_IFCHR, stat.S_IFBLK) and mine.st_rdev != theirs.st_rdev:
            return "device number {}, target {}".format(mine.st_rdev, theirs.st_rdev)
        unit = 1 if self.nanoseconds else 1000000000
        if mine.st_mtime_ns // unit != theirs.st_mtime_ns // unit:
            return "mtime {}, target {}".format(mine.st_mtime_ns, theirs.st_mtime_ns)
        here, there = join(self.source, path), join(self.target, path)
        if kind == stat.S_IFLNK and os.readlink(here) != os.readlink(there):
            return "it links elsewhere"
        if kind != stat.S_IFDIR and (mine.st_nlink > 1 or theirs.st_nlink > 1):
            why = self.hard_links(path, mine, theirs)
            if why:
                return why
        return compare_xattrs(here, there)

    def hard_links(self, path: bytes, mine: os.stat_result, theirs: os.stat_result) -> str:
        """Names that are one file in the source must be one file in the target, and the other
        way."""
        if mine.st_nlink > 1:
            self.names_of.setdefault(mine.st_ino, []).append(path)
        if mine.st_nlink != theirs.st_nlink:
            return "{} hard links, target {}".format(mine.st_nlink, theirs.st_nlink)
        there = self.links.setdefault(mine.st_ino, theirs.st_ino)
        back = self.links_back.setdefault(theirs.st_ino, mine.st_ino)
        if there != theirs.st_ino or back != mine.st_ino:
            return "it is a hard link to something else"
        return ""

    def content(self, path: bytes, directory: bool) -> None:
        """In a thread: contents and attributes. A fault is kept for the thread that waits."""
        try:
            if self.fault is None:
                self.open_and_compare(path, directory)
        except OSError as error:
            try:
                self.differs(path, replaced(error))
            except BaseException as fault:  # noqa: BLE001 - as below
                self.fault = fault
        except BaseException as error:  # noqa: BLE001 - raised again by finish()
            self.fault = error
        finally:
            self.slots.release()

    def open_and_compare(self, path: bytes, directory: bool) -> None:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        with contextlib.ExitStack() as stack:
            mine = os.open(join(self.source, path), flags)
            stack.callback(os.close, mine)
            theirs = os.open(join(self.target, path), flags)
            stack.callback(os.close, theirs)
            wanted = attributes_of(mine)
            if wanted != attributes_of(theirs):
                with self.lock:
                    self.attributes[path] = wanted
            if directory:
                return
            os.posix_fadvise(theirs, 0, 0, os.POSIX_FADV_DONTNEED)
            size, why = same_content(mine, theirs)
        with self.lock:
            self.files += 1
            self.bytes += size
        if why:
            self.differs(path, why)


REPLACED = {
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ELOOP,
    errno.ENXIO,
    errno.ESPIPE,
    errno.EINVAL,
}


def replaced(error: OSError) -> str:
    """An entry that became another (or none) between two looks is a difference, to be judged as any
    other; every other fault of reading is no difference but a fault."""
    if error.errno not in REPLACED:
        raise error
    return "it was replaced while it was looked at"


def join(root: bytes, path: bytes) -> bytes:
    return root + b"/" + path if path else root


def lstat(path: bytes) -> Optional[os.stat_result]:
    try:
        return os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None


def xattrs(path: bytes) -> Dict[str, bytes]:
    try:
        names = os.listxattr(path, follow_symlinks=False)
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP:
            return {}
        raise
    found = {}
    for name in names:
        try:
            found[name] = os.getxattr(path, name, follow_symlinks=False)
        except OSError as error:
            if error.errno != errno.ENODATA:  # gone since it was listed
                raise
    return found


def compare_xattrs(here: bytes, there: bytes) -> str:
    mine, theirs = xattrs(here), xattrs(there)
    if mine == theirs:
        return ""
    names = sorted(name for name in set(mine) | set(theirs) if mine.get(name) != theirs.get(name))
    return "xattr {}".format(", ".join(names))


def same_content(mine: int, theirs: int) -> Tuple[int, str]:
    """-> (bytes read from the source, what differs or an empty string). Where both files have a
    hole nothing is read; where only one has, it reads as zeros."""
    here, there = os.fstat(mine), os.fstat(theirs)
    holes = here.st_blocks * 512 < here.st_size and there.st_blocks * 512 < there.st_size
    position = done = 0
    while True:
        if holes:
            data = min(next_data(mine, position), next_data(theirs, position))
            if data >= max(here.st_size, there.st_size):
                break
            position = max(position, data)
        one, other = os.pread(mine, CHUNK, position), os.pread(theirs, CHUNK, position)
        done += len(one)
        if one != other:
            return done, "content near byte {}".format(position)
        position += len(one)
        if len(one) < CHUNK:
            break
    ends = os.fstat(mine).st_size, os.fstat(theirs).st_size
    return done, "" if ends[0] == ends[1] else "size {}, target {}".format(*ends)


def next_data(fd: int, position: int) -> int:
    try:
        return os.lseek(fd, position, os.SEEK_DATA)
    except OSError as error:
        if error.errno == errno.ENXIO:  # only a hole until the end
            return 1 << 62
        if error.errno == errno.EINVAL:
            return position
        raise


def changed_since(source: str, exclude: List[str], since: float) -> List[bytes]:
    """Every entry of the source whose inode changed at or after ``since`` (wall clock, seconds)."""
    root, found = to_bytes(source), []
    left_out = {to_bytes(path.strip("/")) for path in exclude}
    since_ns = int(since * 1000000000)
    stack = [b""]
    while stack:
        path = stack.pop()
        status = lstat(join(root, path))
        if status is None:
            continue
        if status.st_ctime_ns >= since_ns:
            found.append(path)
        if not stat.S_ISDIR(status.st_mode):
            continue
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            with os.scandir(join(root, path)) as entries:
                for entry in entries:
                    below = path + b"/" + entry.name if path else entry.name
                    if below in left_out:
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        stack.append(below)
                    else:
                        with contextlib.suppress(FileNotFoundError):
                            if entry.stat(follow_symlinks=False).st_ctime_ns >= since_ns:
                                found.append(below)
    return found


# ---- a pass: copy, then compare ------------------------------------------------------------------


def full_reason(request: Json, boot_id: str, offset: float) -> str:
    """Why everything has to be compared; empty when the watermark of the last pass can be trusted.

    The watermark is a wall clock time, compared with times that the kernel took from the same
    clock: once that clock was set, or belongs to another boot, they do not compare any more."""
    if request.get("watermark") is None:
        return "there is no watermark"
    if request.get("clock_offset") is None or not request.get("boot_id"):
        return "the watermark came without its clock"
    if request["boot_id"] != boot_id:
        return "the guest restarted since the last pass"
    moved = offset - float(request["clock_offset"])
    if abs(moved) > CLOCK_TOLERANCE_S:
        return "the wall clock was moved by {:+.3f} s since the last pass".format(moved)
    return ""


def excluded(request: Json, filesystem: Json) -> List[str]:
    """The paths to leave out of one filesystem: a plain list belongs to the first."""
    given = request.get("exclude") or []
    if isinstance(given, dict):
        paths = given.get(filesystem["mount"], [])
    else:
        paths = given if filesystem is request["filesystems"][0] else []
    for path in paths:
        if not path.strip("/") or ".." in path.split("/"):
            raise AgentError("usage", "cannot exclude {!r}".format(path))
    return [os.path.normpath(path.strip("/")) for path in paths]


class Tree:
    """One filesystem of a pass, both sides mounted."""

    def __init__(self, filesystem: Json, source: str, target: str, mover: RsyncMover) -> None:
        self.filesystem, self.source, self.target = filesystem, source, target
        self.mover = mover
        self.exclude = mover.exclude
        self.copied = Copied()
        self.changed: List[bytes] = []


class Pass:
    """What the live pass and the final one have in common; they differ in how the source is seen
    and in what a difference means."""

    final = False

    def __init__(self, place: Place, state_dir: str, request: Json, report: Report) -> None:
        self.place, self.state_dir, self.request = place, state_dir, request
        self.report = report
        self.slack_s = float(request.get("slack_s") or SLACK_S)
        self.deadline = time.monotonic() + float(request.get("deadline_s") or 7 * 86400)
        self.result: Json = {
            "number": int(request.get("number") or 0),
            "final": self.final,
            "files_total": 0,
            "files_compared": 0,
            "bytes_compared": 0,
            "changed_meanwhile": 0,
            "healed": 0,
            "notes": [],
        }
        self.full = ""
        self.copy_start = 0.0
        self.locked_paths: List[str] = []

    def run(self) -> Json:
        began = time.monotonic()
        self.copy_start = time.time()
        offset, boot_id = clock_offset(), self.place.boot_id
        self.full = full_reason(self.request, boot_id, offset)
        if self.full:
            self.result["notes"].append("everything is compared: " + self.full)
        trees = self.stage()
        self.report("copying", force=True, what="copying")
        for tree in trees:
            self.unlock(tree)
            self.copy(tree)
        copied = time.monotonic()
        self.report("comparing", force=True, what="comparing")
        for tree in trees:
            sync_filesystem(tree.target, self.left(3600))
        for tree in trees:
            self.compare(tree)
        self.leave(trees)
        counts: Dict[str, int] = {}
        for tree in trees:
            for key, value in tree.copied.counts.items():
                counts[key] = counts.get(key, 0) + value
        self.result.update(
            started_at=self.copy_start,
            copy_s=round(copied - began, 3),
            compare_s=round(time.monotonic() - copied, 3),
            files_copied=sum(tree.copied.files for tree in trees),
            files_deleted=sum(tree.copied.deleted for tree in trees),
            bytes_copied=sum(tree.copied.bytes for tree in trees),
            watermark=self.copy_start,
            clock_offset=offset,
            boot_id=boot_id,
            full=bool(self.full),
            itemized_counts=counts,
        )
        return self.result

    def left(self, most_s: float) -> float:
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise AgentError("failed", "the pass did not end by its deadline")
        return min(most_s, left)

    # -- mounting

    def stage(self) -> List[Tree]:
        trees = []
        method = self.request.get("method") or "rsync"
        if method not in MOVERS:
            raise AgentError("usage", "there is no method '{}'".format(method))
        for number, filesystem in enumerate(self.request["filesystems"]):
            folder = os.path.join(self.state_dir, "mnt", str(number))
            source, target = folder + "/source", folder + "/target"
            self.mount_source(filesystem, source)
            mount_device(self.place, filesystem, filesystem["target"], target, "rw,noatime")
            mover = MOVERS[method](source, target, excluded(self.request, filesystem))
            trees.append(Tree(filesystem, source, target, mover))
        return trees

    def mount_source(self, filesystem: Json, at: str) -> None:
        raise NotImplementedError

    def leave(self, trees: List[Tree]) -> None:
        """Unmount by name rather than by exit: the target's last writes must not fail unseen."""
        for tree in reversed(trees):
            unmount(tree.target, self.left(600), busy_s=10)
            unmount(tree.source, self.left(600), busy_s=10)

    # -- copying

    def copy(self, tree: Tree) -> None:
        raise NotImplementedError

    # -- comparing

    def tick(self, files: int, size: int) -> None:
        self.report("comparing", what="comparing", done_files=files, done_bytes=size)

    def compare(self, tree: Tree) -> None:
        first = self.comparison(tree)
        touched = tree.copied.touched
        if self.full or touched is None:
            first.all(self.tick)
        else:
            first.some(sorted(set(tree.changed) | touched), self.tick)
        self.count(first, tree)
        attributes = first.attributes
        heal, meanwhile = self.judge(tree, first, SURE_S)
        if heal:
            Log.say("healing {} entries, such as {}".format(len(heal), self.sample(first, heal)))
            self.report("comparing", force=True, what="healing", done_files=len(heal))
            paths = with_company(first, heal)
            tree.mover.heal(paths, self.report, self.deadline)
            sync_filesystem(tree.target, self.left(3600))
            again = self.comparison(tree)
            again.some(sorted(paths), self.tick)
            attributes = dict(attributes)
            attributes.update(again.attributes)
            faults, later = self.judge(tree, again, self.slack_s)
            if faults:
                raise AgentError(
                    "failed",
                    "{} entries differ after they were copied twice: {}".format(
                        len(faults), self.sample(again, faults)
                    ),
                    "the source is untouched; the target is not a copy of it",
                )
            meanwhile |= later
            self.result["healed"] += len(heal - later)
        self.result["changed_meanwhile"] += len(meanwhile)
        self.set_attributes(tree, attributes)

    def comparison(self, tree: Tree) -> Comparison:
        return Comparison(tree.source, tree.target, tree.exclude, tree.mover.nanoseconds)

    def count(self, comparison: Comparison, tree: Tree) -> None:
        self.result["files_compared"] += comparison.entries
        self.result["bytes_compared"] += comparison.bytes
        if self.full:
            self.result["files_total"] += comparison.entries

    def judge(
        self, tree: Tree, comparison: Comparison, room_s: float
    ) -> Tuple[Set[bytes], Set[bytes]]:
        """Tell apart what the copy missed from what was written meanwhile. -> (missed,
        meanwhile)"""
        missed: Set[bytes] = set()
        meanwhile: Set[bytes] = set()
        for path in comparison.different:
            late = not self.final and self.changed_after(tree, path, self.copy_start - room_s)
            (meanwhile if late else missed).add(path)
        return missed, meanwhile

    def changed_after(self, tree: Tree, path: bytes, when: float) -> bool:
        """By the inode change times of the entry and of the directory it lies in, looked up now.
        One that is gone, whose directories are gone, changed."""
        root, when_ns = to_bytes(tree.source), int(when * 1000000000)
        status = lstat(join(root, path))
        if status is not None and status.st_ctime_ns >= when_ns:
            return True
        folder = path
        while folder:
            folder = os.path.dirname(folder)
            status = lstat(join(root, folder))
            if status is not None:
                return status.st_ctime_ns >= when_ns
        return False

    def sample(self, comparison: Comparison, paths: Set[bytes]) -> str:
        told = [
            "{} ({})".format(to_text(path) or ".", comparison.different[path])
            for path in comparison.different
            if path in paths
        ]
        more = len(told) - 20
        return "; ".join(told[:20]) + (" and {} more".format(more) if more > 0 else "")

    # -- flags

    def locks_path(self) -> str:
        return os.path.join(self.state_dir, "locked.json")

    def unlock(self, tree: Tree) -> None:
        """Take our own immutable and append-only flags off again, or rsync could not write."""
        known = read_json(self.locks_path()) or {}
        for name in known.get(tree.filesystem["mount"], []):
            path = join(to_bytes(tree.target), to_bytes(name))
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                set_attributes(path, (0, 0))

    def set_attributes(self, tree: Tree, wanted: Dict[bytes, Attributes]) -> None:
        """Set and read back. Deepest first: nothing can be done below an immutable directory."""
        locks = []
        for path in sorted(wanted, key=lambda name: (-name.count(b"/"), name)):
            full = join(to_bytes(tree.target), path)
            if lstat(full) is None:
                continue
            if wanted[path][0] & LOCKS:
                locks.append(to_text(path))
        known = read_json(self.locks_path()) or {}
        mount = tree.filesystem["mount"]
        if locks:  # before they are set: a crash in between must not leave flags that nobody knows
            known[mount] = sorted(set(known.get(mount, [])) | set(locks))
            write_json(self.locks_path(), known)
        for path in sorted(wanted, key=lambda name: (-name.count(b"/"), name)):
            full = join(to_bytes(tree.target), path)
            if lstat(full) is None:
                continue
            set_attributes(full, wanted[path])
            fd = os.open(full, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                now = attributes_of(fd)
            finally:
                os.close(fd)
            if now != wanted[path]:
                raise AgentError(
                    "failed",
                    "flags and project of {} are {} in the target, expected {}".format(
                        to_text(path), now, wanted[path]
                    ),
                )


def with_company(comparison: Comparison, paths: Set[bytes]) -> Set[bytes]:
    """Heal with each entry its directory (whose time the healing moves) and the other names of
    the same file (a hard link can only be made between files of one transfer)."""
    more = set(paths)
    by_path = {name: names for names in comparison.names_of.values() for name in names}
    for path in paths:
        more.update(by_path.get(path, ()))
    for path in list(more):
        while path:
            path = os.path.dirname(path)
            more.add(path)
    return more


class LivePass(Pass):
    """While the service runs: a difference may be its doing."""

    def mount_source(self, filesystem: Json, at: str) -> None:
        mount_source_live(self.place, filesystem, at)
        entry = visible_mount(self.place, filesystem["mount"])
        if entry is not None and entry.propagation == "private":
            run(["umount", entry.target])  # only here, see own_namespace

    def copy(self, tree: Tree) -> None:
        """The source is synced between the watermark and the copy. A store through a shared mapping
        moves ctime only when it dirties a clean page; without this sync a page that stays dirty
        could be written after the copy with a ctime from before the watermark, and no later pass
        would look."""
        sync_filesystem(tree.source, self.left(3600))
        tree.copied = tree.mover.copy(
            self.report, self.deadline, True, self.request.get("bwlimit_bytes_s")
        )
        if not self.full:
            tree.changed = changed_since(
                tree.source, tree.exclude, float(self.request["watermark"]) - self.slack_s
            )


class FinalPass(Pass):
    """In the cutover: the source is unmounted everywhere and read-only in the kernel, so any
    difference that is left is a fault."""

    final = True

    def mount_source(self, filesystem: Json, at: str) -> None:
        mount_device(self.place, filesystem, filesystem["source"], at, "ro,noatime")

    def copy(self, tree: Tree) -> None:
        found: List[List[bytes]] = []
        faults: List[BaseException] = []

        def look() -> None:
            try:
                since = float(self.request["watermark"]) - self.slack_s
                found.append(changed_since(tree.source, tree.exclude, since))
            except BaseException as error:  # noqa: BLE001 - raised again below
                faults.append(error)

        walker = None if self.full else threading.Thread(target=look, daemon=True)
        if walker:
            walker.start()
        tree.copied = tree.mover.copy(self.report, self.deadline, False, None)
        if walker:
            walker.join(self.left(3600))
            if faults:
                raise faults[0]
            if not found:
                raise AgentError("failed", "the walk for changed entries did not end")
            tree.changed = found[0]


# ---- services: systemd units and the user's own commands -----------------------------------------


def show(names: List[str]) -> Dict[str, Dict[str, str]]:
    """``systemctl show`` of these units, by the name that was asked for."""
    if not names:
        return {}
    text = must(["systemctl", "show", "-p", UNIT_PROPERTIES, "--", *names])
    blocks = [block for block in text.split("\n\n") if block.strip()]
    if len(blocks) != len(names):
        raise AgentError(
            "failed", "systemctl show told {} of {} units".format(len(blocks), len(names))
        )
    shown = {}
    for name, block in zip(names, blocks):  # noqa: B905 - strict= came with 3.10
        pairs = (line.partition("=") for line in block.splitlines())
        shown[name] = {key: value for key, _, value in pairs}
    return shown


def is_up(facts: Dict[str, str]) -> bool:
    return facts.get("ActiveState") in ("active", "reloading", "activating")


def system_is_stopping(place: Place) -> bool:
    if not place.has_systemd:
        return False
    try:
        return run(["systemctl", "is-system-running"], 5).out.strip() == "stopping"
    except AgentError:
        return False


def stop_unit(name: str, timeout_s: float) -> None:
    ran = run(["systemctl", "stop", name], timeout_s)
    facts = show([name])[name]
    if is_up(facts) or facts.get("ActiveState") == "deactivating":
        raise AgentError(
            "failed", "{} is {} after it was told to stop: {}".format(
                name, facts.get("ActiveState"), ran.complaint
            )
        )  # fmt: skip


def start_unit(name: str, timeout_s: float) -> None:
    """Start and look: a oneshot that ran well is inactive again, which is fine."""
    run(["systemctl", "reset-failed", name])
    ran = run(["systemctl", "start", name], timeout_s)
    facts = show([name])[name]
    done = facts.get("Type") == "oneshot" and facts.get("Result") == "success" and ran.code == 0
    if facts.get("ActiveState") not in ("active", "reloading") and not done:
        raise AgentError(
            "failed",
            "{} did not start: it is {} ({}), {}".format(
                name, facts.get("ActiveState"), facts.get("Result"), ran.complaint
            ),
        )


def user_command(place: Place, command: str, timeout_s: float, output: str) -> None:
    """Run a command of the user's, by a shell: the only place where there is one.

    What it leaves running must outlive us. Under systemd it gets a scope of its own, because ours
    ends with our unit; its output goes to a file, because a daemon would keep a pipe open for ever.
    """
    argv = ["/bin/sh", "-c", command]
    if place.has_systemd and find_program("systemd-run"):
        argv = ["systemd-run", "--scope", "--quiet", "--slice=system.slice", "--", *argv]
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
    mine = {key: value for key, value in environment().items() if key != "LC_ALL"}
    fd = os.open(output, flags, 0o600)
    try:
        process = launch(
            argv, mine, stdin=subprocess.DEVNULL, stdout=fd, stderr=fd, start_new_session=True
        )
    finally:
        os.close(fd)
    try:
        code = process.wait(timeout=max(timeout_s, 0.05))
    except subprocess.TimeoutExpired:
        end_process(process)
        raise AgentError("failed", "'{}' did not end within {:.0f} s".format(command, timeout_s))
    except BaseException:
        end_process(process)
        raise
    if code != 0:
        last = one_line(" / ".join(read_text(output).splitlines()[-3:]))
        raise AgentError("failed", "'{}' ended with {}: {}".format(command, code, last))


# ---- the final pass in a process of its own ------------------------------------------------------


class Inside:
    """Runs the final pass in a private mount namespace, made after the source was unmounted: one
    made before would keep it mounted. The child ends itself when we are gone (its stdin closes).

    It is started before anything is stopped, because an interpreter takes its time to come up, and
    takes its namespace when it is told to begin.
    """

    def __init__(self, place: Place, state_dir: str) -> None:
        self.place, self.state_dir = place, state_dir
        self.process: Optional[Process] = None

    def prepare(self) -> None:
        with open(os.path.join(self.state_dir, "inside.log"), "ab") as complaints:
            self.process = launch(
                [sys.executable, "-I", os.path.abspath(__file__), "inside"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=complaints,
                start_new_session=True,
            )
        assert self.process.stdout is not None
        ready = select.select([self.process.stdout], [], [], COMMAND_S)[0]
        if not ready or not os.read(self.process.stdout.fileno(), 64).startswith(b"{"):
            self.end()
            raise AgentError("failed", "the process for the final pass did not come up")

    def run(self, request: Json, deadline: float, heard: Callable[[Json], None]) -> Json:
        assert self.process is not None
        try:
            return self.listen(self.process, request, deadline, heard)
        finally:
            self.end()

    def listen(
        self,
        process: Process,
        request: Json,
        deadline: float,
        heard: Callable[[Json], None],
    ) -> Json:
        assert process.stdin is not None and process.stdout is not None
        spec = {"settings": self.place.settings, "state_dir": self.state_dir, "request": request}
        process.stdin.write(json.dumps(spec).encode("ascii") + b"\n")
        process.stdin.flush()  # and left open: its end tells the child that we are gone
        fd, raw = process.stdout.fileno(), b""
        while True:
            left = deadline - time.monotonic()
            if left <= 0:
                raise AgentError("failed", "the final pass did not end by the cutover's deadline")
            if not select.select([fd], [], [], left)[0]:
                continue
            chunk = os.read(fd, 65536)
            if not chunk:
                raise AgentError("failed", "the final pass' process ended without a word")
            lines = (raw + chunk).split(b"\n")
            raw = lines.pop()
            for line in lines:
                said = json.loads(to_text(line))
                if "ok" not in said:
                    heard(said)
                elif said["ok"]:
                    process.wait(timeout=max(1.0, deadline - time.monotonic()))
                    result: Json = said["result"]
                    return result
                else:
                    raise AgentError(**said["error"])

    def end(self) -> None:
        if self.process is None:
            return
        end_group(self.process.pid)
        end_process(self.process)
        self.process = None


def inside() -> int:
    """The child's side. One thread waits for the end of stdin, which means that the worker died."""
    say({"ready": True})
    line = sys.stdin.buffer.readline()
    if not line:
        return 0
    spec = json.loads(to_text(line))
    place = Place(spec["settings"])
    own_namespace(place, [spec["state_dir"]])  # before any thread: a namespace belongs to a thread

    def watch() -> None:
        sys.stdin.buffer.read()
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()
    last: List[Any] = [0.0, ""]
    Log.path = os.path.join(spec["state_dir"], "log")

    def report(phase: str, force: bool = False, **progress: Any) -> None:
        now = time.monotonic()
        if force or phase != last[1] or now - last[0] > 0.5:
            last[:] = [now, phase]
            say({"phase": phase, "progress": progress})

    final = FinalPass(place, spec["state_dir"], spec["request"], report)
    result, error = attempt(final.run)
    say({"ok": True, "result": result} if error is None else {"ok": False, "error": error})
    sys.stdout.flush()
    os._exit(0)  # the watching thread sits in a read


# ---- jobs cutover and cutback --------------------------------------------------------------------

GO_BACK_S = 300.0
"""Deadline of each command while going back: generous, for there is nothing to go back to from
it."""
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


class Cutover:
    """From the first service stopped to the last one started, and back again when anything fails.

    The record ``cutover.json`` is written before each phase. It is read by nobody but ``recover``,
    which believes the side files more than the phase.

    Units are stopped in the order given and started in the reverse one; units that could start them
    in the middle (sockets, timers, paths) are stopped before and started before.
    """

    def __init__(self, place: Place, job: Job, asked_for: Json) -> None:
        self.place, self.job = place, job
        self.job_id: str = asked_for["job_id"]
        self.back_only = asked_for["job"] == "cutback"
        self.request: Json = asked_for["request"]
        self.filesystems: List[Json] = self.request["filesystems"]
        self.side_files: List[Json] = self.request.get("sides", {}).get("files", [])
        self.supervisor = Supervisor(place, os.path.basename(job.state_dir))
        self.inside = Inside(place, job.state_dir)
        self.deadline = time.monotonic() + 3600
        self.notes: List[str] = []
        self.current_part = ""
        self.part_began = 0.0
        self.terminated = False
        stored: Json = read_json(job.path("cutover.json")) or {}
        self.found_record = stored.get("job_id") == self.job_id
        self.record: Json = stored if self.found_record else self.new_record()

    def new_record(self) -> Json:
        return {
            "job_id": self.job_id,
            "phase": "armed",
            "boot_id": self.place.boot_id,
            "wall": time.time(),
            "runs": 0,
            "stopped": None,
            "up_again": None,
            "units": [],
            "triggers": [],
            "mounts": [],
            "stop_commands": False,
            "start_commands": False,
            "parts": {},
            "going_back": "",
            "final_pass_begun": False,
            "final_pass": None,
            "outcome": None,
        }

    # -- the record

    def note(self, phase: str = "", **facts: Any) -> None:
        if phase:
            self.record["phase"] = phase
        self.record.update(facts)
        write_json(self.job.path("cutover.json"), self.record)
        if phase:
            Log.say("phase {}".format(phase))
            self.job.report(phase, force=True, what=phase)

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Measure a part of the downtime on the monotonic clock."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.add_part(name, time.monotonic() - began)

    def add_part(self, name: str, seconds: float) -> None:
        parts = self.record["parts"]
        parts[name] = round(parts.get(name, 0.0) + seconds, 4)

    def left(self, most_s: float) -> float:
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise AgentError(
                "failed",
                "the cutover did not end within its deadline of {:.0f} s (in phase '{}')".format(
                    self.deadline_s, self.record["phase"]
                ),
            )
        return min(most_s, left)

    @property
    def deadline_s(self) -> float:
        return float(self.request.get("deadline_s") or 120.0)

    def on_sigterm(self, number: int, frame: Any) -> None:
        """Before the commit: take it back. After it: finishing is the shorter way."""
        first, self.terminated = not self.terminated, True
        before = FORWARD_PHASES.index("committing")
        phase = self.record["phase"]
        if first and not self.record["going_back"] and phase in FORWARD_PHASES[:before]:
            Interrupt.arrived()

    # -- the story

    def run(self) -> int:
        """-> exit code for the supervisor: 0 when there is an outcome."""
        signal.signal(signal.SIGTERM, self.on_sigterm)
        self.record["runs"] += 1
        if self.record["outcome"] is not None and self.record["phase"] == "done":
            return self.finish()
        if self.record["runs"] > 20:
            return self.conclude(
                "reverted", "the agent died 20 times in this cutover; look at the log"
            )
        self.note()
        try:
            if self.back_only:
                return self.go_back_on_request()
            if self.found_record:
                return self.recover()
            return self.go_forward()
        except Shutdown:
            Log.say("the system is shutting down in phase {}".format(self.record["phase"]))
            return 75

    def go_forward(self) -> int:
        try:
            self.check()
        except Exception as error:  # noqa: BLE001 - nothing was touched yet, so any fault ends the same
            return self.conclude("reverted", self.words(error))
        try:
            self.stop_services()
            self.unmount_all("source")
            self.final_pass()
            self.commit()
            self.mount_and_start()
        except Exception as error:  # noqa: BLE001 - whatever it is, services have to come back
            return self.take_back(self.words(error))
        return self.settle()

    def recover(self) -> int:
        """Somebody killed the worker, or the guest restarted. Which side is live is read from the
        files; before the commit everything is taken back, after it finished."""
        phase = self.record["phase"]
        restarted = self.record["boot_id"] != self.place.boot_id
        reason = "the guest restarted" if restarted else "the agent was killed"
        reason = "{} in phase '{}'".format(reason, phase)
        Log.say("recover: " + reason)
        if self.record["going_back"]:
            return self.take_back(self.record["going_back"])
        if phase == "armed":
            return self.conclude("reverted", reason + ", before anything was stopped")
        if not self.is_committed():
            return self.take_back(reason)
        self.notes.append(reason)
        self.deadline = time.monotonic() + self.deadline_s
        if phase == "settling":
            return self.settle()
        try:
            self.wait_for_namespaces()
            if not restarted:
                self.publish(10.0)
            self.mount_and_start(lenient=restarted)
        except Exception as error:  # noqa: BLE001 - as in go_forward
            return self.take_back("{}; {}".format(reason, self.words(error)))
        return self.settle()

    def words(self, error: BaseException) -> str:
        """What an exception says. A shutdown is not a failure: the record is left for the next
        boot."""
        if (self.terminated or isinstance(error, Stopped)) and system_is_stopping(self.place):
            raise Shutdown()
        if isinstance(error, AgentError):
            return one_line(error.what)
        if isinstance(error, Stopped):
            return "the cutover was stopped on request"
        return "{}: {} ({})".format(type(error).__name__, error, where(error))

    # -- 1. look again, touch nothing

    def check(self) -> None:
        """Everything that could fail later and can be known now."""
        self.job.report("armed", force=True, what="checking")
        self.same_namespace()
        units = self.request.get("units", [])
        if units and not self.place.has_systemd:
            raise AgentError("refused", "units were named but pid 1 is not systemd")
        self.check_devices()
        self.note(mounts=[plan._asdict() for plan in self.plan_mounts("source")])
        if self.request.get("watermark") is not None:
            why = full_reason(self.request, self.place.boot_id, clock_offset())
            if why:
                raise AgentError(
                    "refused",
                    "the watermark is void: {}".format(why),
                    "nothing was stopped",
                    "run another pass: it compares everything and makes a new one",
                )
        for file in self.side_files:
            if current_content(file["path"]) != side_content(file, "source"):
                raise AgentError(
                    "doubt",
                    "{} is not what it should be before the cutover".format(file["path"]),
                    "nothing was stopped",
                )
        self.remember_units([unit["name"] for unit in units])
        self.nobody_is_bound()
        if self.place.has_systemd:
            self.supervisor.enable()
        self.inside.prepare()

    def same_namespace(self) -> None:
        mine = read_link(self.place.proc + "/self/ns/mnt")
        host = read_link(self.place.proc + "/1/ns/mnt")
        if host and mine != host:
            raise AgentError("refused", "the agent is not in the guest's own mount namespace")

    def check_devices(self) -> None:
        for filesystem in self.filesystems:
            source = resolve_device(self.place, filesystem["source"])
            target = resolve_device(self.place, filesystem["target"])
            if source.dev == target.dev:
                raise AgentError("doubt", "source and target are both {}".format(source.path))
            if target.disk.read_only:
                raise AgentError("refused", "the target {} is read-only".format(target.path))
            if not wait_until_free(target.path, 3):
                raise AgentError("doubt", "the target {} is in use by somebody".format(target.path))
            found = blkid(target.path)
            wanted = filesystem["uuid"] if filesystem["keep_uuid"] else None
            if not same_type(found.get("TYPE", ""), filesystem["fstype"]) or (
                wanted and found.get("UUID") != wanted
            ):
                raise AgentError(
                    "doubt",
                    "the target {} holds {} {}".format(
                        target.path, found.get("TYPE"), found.get("UUID")
                    ),
                )

    def plan_mounts(self, side: str) -> List[MountPlan]:
        """The mounts as they are now, in mount order; they must be those that were planned for."""
        plans = []
        table = mount_table(self.place)
        owners = {}
        for number, filesystem in enumerate(self.filesystems):
            owners[resolve_device(self.place, filesystem[side]).dev] = number
        wanted = {m["target"]: m for fs in self.filesystems for m in fs.get("mounts", [])}
        for entry in table:
            number = owners.get(device_number(entry), -1)
            if number < 0:
                continue
            planned = wanted.pop(entry.target, None)
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

    def remember_units(self, names: List[str]) -> None:
        """Which were active, and what could start them again while they have to be down."""
        shown = show(names)
        for name, facts in shown.items():
            if facts.get("LoadState") != "loaded":
                raise AgentError("refused", "{} is {}".format(name, facts.get("LoadState")))
        active = [name for name in names if is_up(shown[name])]
        triggers = sorted(
            {word for name in names for word in shown[name].get("TriggeredBy", "").split()}
            - set(names)
        )
        states = show(triggers)
        self.note(units=active, triggers=[name for name in triggers if is_up(states[name])])

    def nobody_is_bound(self) -> None:
        """systemd stops what is bound to a mount (BindsTo=) when it is unmounted, and nobody would
        start it again."""
        ours = set(self.record["units"]) | set(self.record["triggers"])
        bound = set()
        for facts in show([plan.unit for plan in self.mounts if plan.unit]).values():
            bound.update(facts.get("BoundBy", "").split())
        bound = {name for name in bound - ours if not name.endswith((".mount", ".automount"))}
        up = [name for name, facts in show(sorted(bound)).items() if is_up(facts)]
        if up:
            raise AgentError(
                "refused",
                "{} would be stopped with the mount and is not among the units".format(
                    ", ".join(up)
                ),
                "nothing was stopped",
            )

    # -- 2. stop

    def stop_services(self) -> None:
        now = time.monotonic()
        self.deadline = now + self.deadline_s
        self.note("stopping", stopped={"monotonic": now, "wall": time.time()})
        with self.part("stop"):
            for command in self.request.get("stop", []):
                self.note(stop_commands=True)
                self.command(command, self.left(self.deadline_s))
            if self.record["triggers"]:
                must(["systemctl", "stop", "--"] + self.record["triggers"], self.left(60))
            for name in self.record["units"]:
                stop_unit(name, self.left(self.unit_time(name, "stop_timeout_s")))

    def unit_time(self, name: str, key: str) -> float:
        for unit in self.request.get("units", []):
            if unit["name"] == name:
                return float(unit.get(key) or 90.0)
        return 90.0

    def command(self, command: str, timeout_s: float) -> None:
        user_command(self.place, command, timeout_s, self.job.path("command.log"))

    # -- 3. to 5. unmount, prove it, forbid writing

    def device(self, number: int, side: str) -> Device:
        return resolve_device(self.place, self.filesystems[number][side])

    def disks(self, side: str) -> List[Disk]:
        found = {}
        for filesystem in self.filesystems:
            disk = resolve(self.place, filesystem[side])
            found[disk.dev] = disk
        return list(found.values())

    @property
    def mounts(self) -> List[MountPlan]:
        return [MountPlan(**plan) for plan in self.record["mounts"]]

    def unmount_all(self, side: str) -> None:
        """Every mount of that side, last first; then the proof that nobody has it in another mount
        namespace. umount itself is the check for holders: the scan for their names costs time and
        is made only when it fails."""
        self.note("unmounting")
        with self.part("unmount"):
            self.let_go(side, self.left)
            for disk in self.disks(side):
                set_disk_read_only(disk, True)

    def let_go(self, side: str, time_for: Callable[[float], float]) -> None:
        devices = [self.device(number, side) for number in range(len(self.filesystems))]
        numbers = {device.dev for device in devices}
        mounted = [entry for entry in mount_table(self.place) if device_number(entry) in numbers]
        try:
            for entry in reversed(mounted):
                unmount(entry.target, time_for(60.0))
            for device in devices:
                if not wait_until_free(device.path, 2.0):
                    raise AgentError("busy", "{} is still held by somebody".format(device.path))
        except AgentError as error:
            if error.kind != "busy":
                raise
            paths = [entry.target for entry in mounted]
            holders, _ = find_holders(self.place, numbers, paths, 10.0)
            holders = [found for found in holders if found["pid"] != os.getpid()]
            raise AgentError(
                "busy", "{}; held by {}".format(error.what, name_holders(holders) or "nobody known")
            )

    # -- 6. and 7. the final pass

    def final_pass(self) -> None:
        self.note("copying", final_pass_begun=True)
        began = [time.monotonic()]

        def heard(said: Json) -> None:
            if said["phase"] == "comparing" and self.record["phase"] == "copying":
                self.add_part("copy", time.monotonic() - began[0])
                began[0] = time.monotonic()
                self.note("comparing")
            self.job.report(self.record["phase"], **said["progress"])

        request = {
            key: self.request.get(key)
            for key in (
                "method",
                "filesystems",
                "exclude",
                "watermark",
                "clock_offset",
                "boot_id",
                "slack_s",
            )
        }
        request["deadline_s"] = self.left(self.deadline_s)
        request["number"] = self.request.get("number")
        result = self.inside.run(request, self.deadline, heard)
        self.add_part("compare", time.monotonic() - began[0])
        self.notes.extend(result.pop("notes"))
        self.note("releasing", final_pass=result)
        with self.part("release"):
            for number in range(len(self.filesystems)):
                for side in SIDES:
                    path = self.device(number, side).path
                    if not wait_until_free(path, self.left(10.0)):
                        raise AgentError(
                            "busy", "{} is still held after the final pass".format(path)
                        )

    # -- 8. the commit

    def is_committed(self) -> bool:
        """Read from the last side file. When that holds neither content (somebody else wrote it),
        or there is none, the phase has to tell."""
        if self.side_files:
            last = self.side_files[-1]
            now = content_if_plain(last["path"])
            contents = {side: side_content(last, side) for side in SIDES}
            if contents["source"] != contents["target"] and now in contents.values():
                return bool(now == contents["target"])
        return bool(FORWARD_PHASES.index(self.record["phase"]) >= FORWARD_PHASES.index("committed"))

    def commit(self) -> None:
        self.left(1)
        self.note("committing")
        with self.part("commit"):
            for file in self.side_files:
                self.put_side(file, "target")
            self.note("committed")
            self.publish(self.left(10.0))

    def put_side(self, file: Json, side: str) -> None:
        put_file(self.job.state_dir, file["path"], file[side], file.get("mode"))

    def publish(self, settle_s: float) -> None:
        disks = self.disks("source") + self.disks("target")
        # Reading all units anew takes systemd longer than all the rest; it is of use only when
        # it is something of systemd's that changed, which udev's rules are not.
        for_systemd = any(
            "/udev/rules.d/" not in file["path"]
            and side_content(file, "source") != side_content(file, "target")
            for file in self.side_files
        )
        skipped = publish(self.place, disks, bool(self.side_files), for_systemd, settle_s)
        self.notes.extend(text for text in skipped if "settle" in text)

    # -- 9. and 10. mount and start

    def mount_and_start(self, lenient: bool = False) -> None:
        self.note("mounting")
        with self.part("mount"):
            self.mount_side("target", self.left)
        self.note("starting")
        with self.part("start"):
            self.start_services(self.left, lenient)
        self.note("settling", up_again={"monotonic": time.monotonic(), "wall": time.time()})

    def mount_side(self, side: str, time_for: Callable[[float], float]) -> None:
        for plan in self.mounts:
            device = self.device(plan.filesystem, side)
            entry = visible_mount(self.place, plan.target)
            if entry is not None and device_number(entry) in self.other_devices(side):
                unmount(entry.target, time_for(60.0))
                entry = visible_mount(self.place, plan.target)
            if entry is None or device_number(entry) != device.dev:
                self.mount_one(plan, device, time_for)
                self.restore_propagation(plan)
            self.verify_mount(plan, device)

    def restore_propagation(self, plan: MountPlan) -> None:
        made = visible_mount(self.place, plan.target)
        if made is not None and made.propagation != plan.propagation:
            must(["mount", "--make-" + plan.propagation.split(",")[-1], plan.target])

    def other_devices(self, side: str) -> Set[str]:
        other = SIDES[1 - SIDES.index(side)]
        return {self.device(number, other).dev for number in range(len(self.filesystems))}

    def mount_one(
        self, plan: MountPlan, device: Device, time_for: Callable[[float], float]
    ) -> None:
        if plan.unit:
            run(["systemctl", "reset-failed", plan.unit])
            ran = run(["systemctl", "start", plan.unit], time_for(90.0))
            if ran.code != 0:
                raise AgentError("failed", "{} did not start: {}".format(plan.unit, ran.complaint))
            return
        subvolume = "subvol=" + plan.root in plan.super_options.split(",")
        if plan.root != "/" and not subvolume:
            main = next(
                (
                    other
                    for other in self.mounts
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

    def start_services(self, time_for: Callable[[float], float], lenient: bool) -> None:
        """Sockets first: one cannot be started once its service runs. After a restart of the guest
        the user's command may find its service up already, so its failure is only told then."""
        for name in self.record["triggers"] + self.record["units"][::-1]:
            start_unit(name, time_for(self.unit_time(name, "start_timeout_s")))
        for command in self.request.get("start", []):
            self.note(start_commands=True)
            try:
                self.command(command, time_for(self.deadline_s))
            except AgentError as error:
                if not lenient:
                    raise
                self.notes.append(error.what)

    # -- 11. settle

    def settle(self) -> int:
        """Watch that what was started stays. The outcome is on disk already, as not settled."""
        self.note("settling", outcome=self.outcome("committed", ""))
        before = show(self.record["units"])
        moves: Dict[str, int] = {}
        settle_s = self.request.get("settle_s")
        ends = time.monotonic() + (60.0 if settle_s is None else float(settle_s))
        try:
            while True:
                self.look_after(before, moves)
                left = ends - time.monotonic()
                if left <= 0:
                    break
                self.job.report("settling", what="settling")
                time.sleep(min(1.0, left))
        except Exception as error:  # noqa: BLE001 - as in go_forward
            return self.take_back(self.words(error))
        return self.conclude("committed", "", settled=True)

    def look_after(self, before: Dict[str, Dict[str, str]], moves: Dict[str, int]) -> None:
        for plan in self.mounts:
            self.verify_mount_stays(plan)
        for name, now in show(self.record["units"]).items():
            was = before[name]
            oneshot = now.get("Type") == "oneshot" and now.get("Result") == "success"
            if now.get("ActiveState") not in ("active", "reloading") and not oneshot:
                raise AgentError(
                    "failed", "{} became {} while settling".format(name, now.get("ActiveState"))
                )
            if now.get("NRestarts", "") != was.get("NRestarts", ""):
                raise AgentError("failed", "{} restarted by itself while settling".format(name))
            if now.get("MainPID") != was.get("MainPID"):
                moves[name] = moves.get(name, 0) + 1
                was["MainPID"] = now.get("MainPID", "")
                if moves[name] > 2:
                    raise AgentError("failed", "the main process of {} keeps changing".format(name))

    def verify_mount_stays(self, plan: MountPlan) -> None:
        entry = visible_mount(self.place, plan.target)
        device = self.device(plan.filesystem, "target")
        if entry is None or device_number(entry) != device.dev:
            raise AgentError("failed", "{} lost its mount while settling".format(plan.target))

    # -- going back

    def take_back(self, reason: str) -> int:
        """Everything in reverse, found by looking rather than by remembering. A step that fails is
        told, and the next one is tried all the same."""
        Log.say("going back: " + reason)
        self.note(going_back=reason, outcome=None)
        problems: List[str] = []
        self.inside.end()
        if self.record["final_pass_begun"]:
            self.tried(problems, self.wait_for_namespaces)
        if self.is_partly_committed():
            self.tried(problems, self.stop_again)
            if not self.tried(problems, lambda: self.let_go("target", lambda most: GO_BACK_S)):
                return self.stay_forward(reason, problems)
            for file in reversed(self.side_files):
                self.tried(problems, functools.partial(self.put_side, file, "source"))
            self.tried(problems, lambda: self.publish(30.0))
        for disk in self.disks_found(problems, "source"):
            self.tried(problems, functools.partial(set_disk_read_only, disk, False))
        self.tried(problems, lambda: self.mount_side("source", lambda most: GO_BACK_S))
        restarted = self.record["boot_id"] != self.place.boot_id
        self.start_what_was_up(problems, restarted)
        if problems:
            reason += "; while going back: " + "; ".join(problems)
        up_again = {"monotonic": time.monotonic(), "wall": time.time()}
        self.note(up_again=up_again, problems=problems)
        return self.conclude("reverted", reason)

    def tried(self, problems: List[str], work: Callable[[], None]) -> bool:
        try:
            work()
        except Exception as error:  # noqa: BLE001 - going back goes on whatever happens
            problems.append(self.words(error))
            Log.say("problem: " + problems[-1])
            return False
        return True

    def disks_found(self, problems: List[str], side: str) -> List[Disk]:
        found: List[Disk] = []
        self.tried(problems, lambda: found.extend(self.disks(side)))
        return found

    def wait_for_namespaces(self) -> None:
        """A final pass that was killed with its worker needs a moment to let go of both disks."""
        for number in range(len(self.filesystems)):
            for side in SIDES:
                device = self.device(number, side)
                if not mounts_of(self.place, device.dev) and not wait_until_free(device.path, 20.0):
                    raise AgentError("busy", "{} is held by somebody".format(device.path))

    def is_partly_committed(self) -> bool:
        """Some side file does not have the source's content, or something of the target is
        mounted."""
        for file in self.side_files:
            if content_if_plain(file["path"]) != side_content(file, "source"):
                return True
        target = {self.device(number, "target").dev for number in range(len(self.filesystems))}
        return any(device_number(entry) in target for entry in mount_table(self.place))

    def stop_again(self) -> None:
        if self.record["start_commands"]:
            for command in self.request.get("stop", []):
                self.command(command, GO_BACK_S)
        if self.record["triggers"]:
            must(["systemctl", "stop", "--"] + self.record["triggers"], GO_BACK_S)
        for name in self.record["units"]:
            stop_unit(name, GO_BACK_S)

    def start_what_was_up(self, problems: List[str], restarted: bool) -> None:
        for name in self.record["triggers"] + self.record["units"][::-1]:
            self.tried(problems, functools.partial(start_unit, name, GO_BACK_S))
        if self.record["stop_commands"]:
            for command in self.request.get("start", []):
                self.tried(problems, functools.partial(self.command, command, GO_BACK_S))

    def stay_forward(self, reason: str, problems: List[str]) -> int:
        """The target cannot be unmounted, so it stays the live side: switching the files beneath a
        mounted target would bring up the other side at the next restart."""
        self.start_what_was_up(problems, False)
        self.note(up_again={"monotonic": time.monotonic(), "wall": time.time()})
        words = "{}; going back was not possible: {}".format(reason, "; ".join(problems))
        return self.conclude("committed", words)

    def go_back_on_request(self) -> int:
        """The job cutback: what the cutover did, undone; nothing is copied."""
        if self.record["going_back"]:
            return self.take_back(self.record["going_back"])
        reason = "going back was asked for"
        try:
            self.same_namespace()
            if not self.is_partly_committed():
                raise AgentError("refused", "the source is the live side already")
            self.note(mounts=[plan._asdict() for plan in self.plan_mounts("target")])
            self.remember_units([unit["name"] for unit in self.request.get("units", [])])
            if self.place.has_systemd:
                self.supervisor.enable()
        except Exception as error:  # noqa: BLE001 - nothing was touched yet
            live = "reverted" if not self.is_partly_committed() else "committed"
            return self.conclude(live, self.words(error))
        now = time.monotonic()
        stopped = {"monotonic": now, "wall": time.time()}
        self.note("starting", stopped=stopped, stop_commands=True, start_commands=True)
        return self.take_back(reason)

    # -- the end

    def outcome(self, result: str, reason: str, settled: bool = False) -> Json:
        """model.Outcome. Downtime: from the first service stopped to the last one started."""
        stopped, up = self.record["stopped"], self.record["up_again"]
        same_boot = self.record["boot_id"] == self.place.boot_id
        clock = "monotonic" if same_boot else "wall"
        downtime_s = max(0.0, up[clock] - stopped[clock]) if stopped and up else 0.0
        final = self.record["final_pass"]
        return {
            "result": result,
            "live": "target" if result == "committed" else "source",
            "reason": reason,
            "downtime_s": round(downtime_s, 3),
            "parts": self.record["parts"],
            "clock": clock,
            "final_pass": None if final is None else {key: final[key] for key in PASS_FIELDS},
            "settled": settled,
            "problems": self.record.get("problems", []),
        }

    def conclude(self, result: str, reason: str, settled: bool = False) -> int:
        outcome = self.outcome(result, reason, settled)
        notes = self.record.get("notes", []) + self.notes
        self.note("done", outcome=outcome, notes=notes)
        return self.finish()

    def finish(self) -> int:
        """Tell the outcome of the record. Repeatable."""
        outcome = self.record["outcome"]
        self.supervisor.disable()
        most_s = self.request.get("max_downtime_s")
        result = {
            "outcome": outcome,
            "notes": self.record.get("notes", []),
            "within_budget": most_s is None or outcome["downtime_s"] <= float(most_s),
        }
        error = None
        if outcome["reason"] and not (self.back_only and outcome["result"] == "reverted"):
            error = AgentError(
                "failed",
                "the {} ended '{}': {}".format(
                    "cutback" if self.back_only else "cutover", outcome["result"], outcome["reason"]
                ),
                "the service's data is on the {}".format(outcome["live"]),
            ).as_json()
        self.job.end(result, error)
        return 0


NOT_TO_MOUNT = ("seclabel", "subvolid", "sunit", "swidth", "stripe")


def options_to_mount(plan: MountPlan) -> str:
    """The options of a mounted filesystem as they can be given to mount(8): what only the kernel
    can say, or what follows from the old device, is left out."""
    words = plan.options.split(",")
    for word in plan.super_options.split(","):
        key = word.split("=")[0]
        if word not in ("rw", "ro") and key not in (
            "seclabel",
            "subvolid",
            "sunit",
            "swidth",
            "stripe",
        ):
            words.append(word)
    return ",".join(words)


PASS_FIELDS = (
    "number", "final", "started_at", "copy_s", "compare_s", "files_total", "files_copied",
    "files_deleted", "bytes_copied", "files_compared", "bytes_compared", "changed_meanwhile",
    "healed", "watermark", "clock_offset", "boot_id",
)  # fmt: skip


def side_content(file: Json, side: str) -> Optional[bytes]:
    text = file[side]
    return None if text is None else to_bytes(text)


# ---- the wire ------------------------------------------------------------------------------------

VERBS: Dict[str, Callable[[Place, Json], Json]] = {
    "facts": verb_facts,
    "find": verb_find,
    "install": verb_install,
    "apply": verb_apply,
    "start": verb_start,
    "status": verb_status,
    "stop": verb_stop,
    "uninstall": verb_uninstall,
}


def say(value: Json) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


def answer(verb: str, raw: bytes) -> Json:
    """One request, one answer."""

    def do() -> Json:
        try:
            request = json.loads(to_text(raw))
        except ValueError as error:
            raise AgentError("usage", "the request is no JSON: {}".format(error))
        if verb not in VERBS or not isinstance(request, dict):
            raise AgentError("usage", "there is no verb '{}'".format(verb))
        try:
            return VERBS[verb](Place(request.get("settings")), request)
        except KeyError as error:
            raise AgentError("usage", "the request lacks {} ({})".format(error, where(error)))

    result, error = attempt(do)
    return {"ok": True, "result": result} if error is None else {"ok": False, "error": error}


def main(argv: List[str]) -> int:
    os.umask(0o077)
    verb = argv[1] if len(argv) > 1 else ""
    if verb == "work":
        return work(argv[2])
    if verb == "supervise":
        supervise(argv[2])
        return 0
    if verb == "inside":
        return inside()
    raw = os.fsencode(argv[2]) if len(argv) > 2 else sys.stdin.buffer.read()
    say(answer(verb, raw))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
