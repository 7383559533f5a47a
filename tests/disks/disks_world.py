"""A guest with a source and a target, and what has to be true of them."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shlex
import signal
import stat
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from agent_rig import MIB, Disks, Guest, Json, Volume, shell

WRITER = Path(__file__).with_name("writer.py")
LEAST_MIB = {"xfs": 310, "btrfs": 130, "ext4": 64, "ext3": 64, "ext2": 64}
"""mkfs.xfs refuses less than 300 MiB, mkfs.btrfs less than 109."""


def probe(device: str) -> dict[str, str]:
    lines = shell("blkid", "-p", "-o", "export", device).splitlines()
    return dict(line.split("=", 1) for line in lines)


@dataclass
class World:
    guest: Guest
    disks: Disks
    fstype: str = ""
    table: str = ""
    keep_uuid: bool = True
    source: Volume = field(init=False)
    target: Volume = field(init=False)
    data: list[Path] = field(default_factory=list)
    side: Path = field(init=False)

    # ---- making it -------------------------------------------------------------------------------

    @property
    def partition(self) -> int | None:
        return 1 if self.table else None

    @property
    def numbers(self) -> list[int | None]:
        return [1, 2] if self.table and len(self.data) > 1 else [self.partition]

    def make(
        self, fstype: str, table: str = "", count: int = 1, size_mib: int = 0, seed: int = 1
    ) -> World:
        """A source with ``count`` filesystems, mounted and filled; no target yet."""
        self.fstype, self.table = fstype, table
        self.keep_uuid = fstype != "btrfs"
        each = size_mib or LEAST_MIB[fstype]
        self.source = self.disks.blank("source", each * count + (4 if table else 0))
        if table:
            script = f"label: {table}\n" + f"size={each}MiB, type=L\n" * (count - 1) + "type=L\n"
            subprocess.run(
                ["sfdisk", "-q", "--no-tell-kernel", self.source.loop],
                input=script.encode(),
                check=True,
            )
            self.source.reread()
        for index in range(count):
            device = self.source.device(index + 1 if table else None)
            shell(f"mkfs.{fstype}", "-q", "-L", f"data{index}", device)
            path = self.disks.mount(device, self.guest.root / f"data{index}", "noatime,nodev")
            self.data.append(path)
            fill(path, seed + index)
            shell("sync", "-f", path)
        self.guest.install(self.source.ref)
        self.side = self.guest.root / "etc" / "10-side.rules"
        self.side.write_text("source\n")
        return self

    def clone(self, size_mib: int | None = None) -> World:
        self.target = self.disks.clone(self.source, "target", size_mib)
        if self.table:
            self.target.reread()
        return self

    def blank(self, size_mib: int | None = None) -> World:
        size = self.source.image.stat().st_size // MIB
        self.target = self.disks.blank("target", size_mib or size)
        return self

    def ready(self) -> World:
        """With a target that a pass can begin with. A clone's log is replayed by any mount."""
        if self.fstype == "btrfs":
            self.blank()
            self.prepare()
        else:
            self.clone()
        return self

    # ---- requests --------------------------------------------------------------------------------

    @property
    def sources(self) -> list[Volume]:
        return [self.source]

    @property
    def targets(self) -> list[Volume]:
        return [self.target]

    @property
    def pairs(self) -> list[Json]:
        both = zip(self.sources, self.targets, strict=True)
        return [{"source": source.ref, "target": target.ref} for source, target in both]

    @property
    def filesystems(self) -> list[Json]:
        return [
            {
                "source": self.source.at(number),
                "target": self.target.at(number),
                "fstype": self.fstype,
                "uuid": probe(self.source.device(number))["UUID"],
                "label": f"data{index}",
                "keep_uuid": self.keep_uuid,
                "mount": str(path),
                "mounts": [{"target": str(path), "root": "/", "by": "hand", "unit": ""}],
            }
            for index, (number, path) in enumerate(zip(self.numbers, self.data, strict=True))
        ]

    def mounts(self) -> list[str]:
        """Of our disks and in our folder: others may use this machine."""
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
        disks, folder = {self.source.loop, self.target.loop}, str(self.guest.root)
        return [line for line in lines if folder in line or disks & set(line.split())]

    def prepare(self, **more: object) -> Json:
        dump = shell("sfdisk", "--dump", self.source.loop) if self.table else ""
        seed = "blank" if self.fstype == "btrfs" else "snapshot"
        request = {
            "seed": seed,
            "source": self.source.ref,
            "target": self.target.ref,
            "partition_dump": dump,
            "grow": False,
            "filesystems": self.filesystems,
        }
        return self.guest.do("prepare", {**request, **more})

    def pass_(self, last: Json | None = None, **more: object) -> Json:
        return self.guest.do("pass", self.pass_request(last, **more))

    def pass_request(self, last: Json | None = None, **more: object) -> Json:
        known = {key: (last or {}).get(key) for key in ("watermark", "clock_offset", "boot_id")}
        number = (last or {"number": 0})["number"] + 1
        return {"filesystems": self.filesystems, "number": number, **known, **more}

    def cutover_request(self, last: Json | None, **more: object) -> Json:
        return {
            **self.pass_request(last),
            "units": [],
            "stop": [self.stop_command],
            "start": [self.start_command],
            "sides": {
                "files": [
                    {
                        "path": str(self.side),
                        "source": "source\n",
                        "target": "target\n",
                        "mode": 420,
                    }
                ]
            },
            "deadline_s": 60,
            "settle_s": 0,
            "max_downtime_s": 30,
            **more,
        }

    @staticmethod
    def side_file(path: Path) -> Json:
        return {"path": str(path), "source": "source\n", "target": "target\n", "mode": 0o644}

    # ---- the service -----------------------------------------------------------------------------

    @property
    def pid_file(self) -> Path:
        return self.guest.root / "writer.pid"

    @property
    def start_command(self) -> str:
        words = [sys.executable, "-I", str(WRITER), str(self.data[0]), "7", str(self.pid_file)]
        return shlex.join(words) + " >/dev/null 2>&1 &"

    @property
    def stop_command(self) -> str:
        """Of whom the file names now: one that begins meanwhile writes its own pid there."""
        gone = "while kill -0 $p 2>/dev/null; do sleep 0.02; done"
        return f"p=$(cat {self.pid_file}); kill $p; {gone}"

    def start_writer(self) -> None:
        subprocess.run(["/bin/sh", "-c", self.start_command], check=True)
        self.wait_for_writer()

    def wait_for_writer(self) -> None:
        deadline = time.monotonic() + 20
        while not self.writer_is_up():
            assert time.monotonic() < deadline, "the writer did not come up"
            time.sleep(0.02)

    def writer_is_up(self) -> bool:
        with contextlib.suppress(OSError, ValueError):
            pid = int(self.pid_file.read_text())
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
            return state not in "ZX" and b"writer.py" in Path(f"/proc/{pid}/cmdline").read_bytes()
        return False

    def stop_writer(self) -> None:
        subprocess.run(["/bin/sh", "-c", self.stop_command], check=True, timeout=20)

    def target_is_taken(self) -> None:
        """By somebody who stopped the service before it."""
        self.stop_writer()
        for path in reversed(self.data):
            shell("umount", path)
        self.disks.unplug(self.target)

    def end_writer(self) -> None:
        """Every one: a cutover that was killed as it started the service starts it again, and the
        first one, which had not written its pid yet, has no pid file any more."""
        deadline = time.monotonic() + 20
        while left := self.writers():
            assert time.monotonic() < deadline, f"writers that do not end: {left}"
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)

    def writers(self) -> list[int]:
        """All of this world's, and the shells that are about to become one."""
        marks = (str(WRITER).encode(), str(self.guest.root).encode())
        found = []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdigit():
                    words = (entry / "cmdline").read_bytes()
                    if all(mark in words for mark in marks):
                        found.append(int(entry.name))
        return found

    # ---- what has to be true ---------------------------------------------------------------------

    def mounted(self, path: Path) -> str:
        """The device mounted at ``path``, empty when there is none."""
        return shell("findmnt", "-n", "-o", "SOURCE", "--mountpoint", path, check=False).strip()

    def live_side(self) -> str:
        """Which side is mounted: all of it, or ``mixed``."""
        found = set()
        for number, path in zip(self.numbers, self.data, strict=True):
            known = {
                self.source.device(number): "source",
                self.target.device(number): "target",
                "": "nothing",
            }
            found.add(known[self.mounted(path)])
        return found.pop() if len(found) == 1 else "mixed"

    def assert_live(self, side: str) -> None:
        """One side runs: mounted as it was, written by the service, named by the side file."""
        assert self.live_side() == side
        assert self.side.read_text() == f"{side}\n"
        self.wait_for_writer()
        for path in self.data:
            options = shell("findmnt", "-n", "-o", "VFS-OPTIONS", "--mountpoint", path).split()
            assert set(options[0].split(",")) == {"rw", "noatime", "nodev"}
            (path / "still-writable").write_text("yes")
        read_only = shell("blockdev", "--getro", self.source.loop).strip()
        assert read_only == ("1" if side == "target" else "0")

    def assert_same(self) -> None:
        """Source and target are equal for programs that are none of ours. Nothing may be mounted
        from the target yet; the source may be unmounted or not."""
        for index, number in enumerate(self.numbers):
            options = "ro,nouuid" if self.fstype == "xfs" else "ro"
            roots = []
            for volume, name in ((self.source, "source"), (self.target, "target")):
                device = volume.device(number)
                live = shell("findmnt", "-n", "-o", "TARGET", device, check=False).splitlines()
                where = self.guest.root / f"look-{name}-{index}"
                if live:
                    shell("mount", "--bind", live[0].strip(), self.made(where))
                else:
                    shell("mount", "-o", options, device, self.made(where))
                roots.append(where)
            assert_same_trees(*roots)
            for where in roots:
                shell("umount", where)

    @staticmethod
    def made(path: Path) -> Path:
        path.mkdir(exist_ok=True)
        return path


@dataclass
class WithLog(World):
    """The world of one volume, and a log on another."""

    log: Volume = field(init=False)
    log_target: Volume = field(init=False)

    @property
    def sources(self) -> list[Volume]:
        return [self.source, self.log]

    @property
    def targets(self) -> list[Volume]:
        return [self.target, self.log_target]


def fill(path: Path, seed: int) -> None:
    """A tree with every kind of entry, the same for the same seed."""
    process = subprocess.Popen(
        [sys.executable, "-I", str(WRITER), str(path), str(seed), str(path.parent / "fill.pid")]
    )
    deadline = time.monotonic() + 20
    while len(os.listdir(path)) < 8 and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.15)
    process.terminate()
    process.wait(timeout=20)
    odd = Path(os.fsdecode(bytes(path) + b"/n\xff\xc3\x28\nline \\#012"))
    odd.write_bytes(b"odd")
    (path / "sub").mkdir()
    os.mkfifo(path / "sub" / "fifo")
    os.mknod(path / "sub" / "null", 0o20666, os.makedev(1, 3))
    shell("setfacl", "-m", "u:1234:rw", odd)
    shell("setfacl", "-d", "-m", "g:99:rx", path / "sub")
    os.setxattr(path, "trusted.root", b"of the root")
    path.chmod(0o1771)
    os.chown(path, 33, 44)


def assert_same_trees(one: Path, other: Path) -> None:
    for source, target in ((one, other), (other, one)):
        said = shell(
            "rsync", "-naHAXSi", "--modify-window=-1", "--numeric-ids", "--checksum", "--delete",
            f"{source}/", f"{target}/",
        )  # fmt: skip
        assert said == "", said
    assert sums(one) == sums(other)


def sums(root: Path) -> dict[bytes, object]:
    """Every path with its metadata and, for a file, its SHA-256; hard links by their group."""
    paths = [
        os.path.join(folder, name)
        for folder, folders, files in os.walk(bytes(root))
        for name in folders + files
    ]
    groups: dict[int, set[bytes]] = {}
    for path in paths:
        groups.setdefault(os.lstat(path).st_ino, set()).add(os.path.relpath(path, bytes(root)))
    found: dict[bytes, object] = {}
    for path in paths:
        status = os.lstat(path)
        digest = link = b""
        if stat.S_ISREG(status.st_mode):
            with open(path, "rb") as file:
                digest = hashlib.sha256(file.read()).digest()
        elif stat.S_ISLNK(status.st_mode):
            link = os.readlink(path)
        found[os.path.relpath(path, bytes(root))] = (
            status.st_mode, status.st_uid, status.st_gid, status.st_mtime_ns, status.st_rdev,
            digest, link, frozenset(groups[status.st_ino]),
        )  # fmt: skip
    return found
