"""The downtime of one volume, moved three ways: by hand, by rsync, by the mirror.

A database's file of 1 GiB and small files beside it, on XFS. While the service stops it writes
16 MiB in scattered pages, so that all three have the same left to copy; that time is the service's
own and is not counted. By hand is the how-to to the letter: `rsync -av` while the service runs, the
same again when it is stopped, then the mounts are swapped.
"""

import shlex
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.rig import MIB, Disks, Guest, Json, Limit, Mirror, Volume, dd, rig, say, shell

FILES, FILE_MIB, DIRTY_MIB = 300_000, 1024, 16
PAGE = 16 * 1024

TREE = """
import os, sys
root, files, mib = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
content = os.urandom(1 << 20)
with open(root + "/database", "wb") as file:
    for number in range(min(mib, 1024)):
        file.write(content[number:] + content[:number])
    file.truncate(mib << 20)
for number in range(files):
    folder = f"{root}/tree/{number // 1000:04d}"
    if number % 1000 == 0:
        os.makedirs(folder)
    fd = os.open(f"{folder}/{number:07d}", os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    os.write(fd, content[number % 4096 : number % 4096 + 512])
    os.close(fd)
os.sync()
"""

CHANGE = """
import os, random, sys
path, count, page = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
fd = os.open(path, os.O_RDWR)
pages = os.fstat(fd).st_size // page
for number in random.Random(sys.argv[4]).sample(range(pages), count):
    os.pwrite(fd, os.urandom(page), number * page)
os.fsync(fd)
os.close(fd)
"""


def measure() -> Json:
    full = _scenario(FILES, FILE_MIB, ("by hand", "rsync", "mirror"))
    fewer = _scenario(FILES // 10, FILE_MIB, ("mirror",))
    larger = _scenario(FILES // 10, FILE_MIB * 10, ("mirror",))
    limited = _limited(FILES // 10, FILE_MIB) if Limit.works() else {}
    by_hand, rsync, mirror = full["by hand"], full["rsync"], full["mirror"]
    return {
        "by_hand_s": round(by_hand, 3),
        "rsync_s": round(rsync, 3),
        "mirror_s": round(mirror, 4),
        "mirror_parts": full["mirror parts"],
        "limit_s": round(full["limit"], 4),
        "by_hand_over_mirror": round(by_hand / mirror, 1),
        "by_hand_over_rsync": round(by_hand / rsync, 2),
        "ten_times_files": round(mirror / fewer["mirror"], 2),
        "ten_times_file": round(larger["mirror"] / fewer["mirror"], 2),
        "mirror_over_limit": round(mirror / full["limit"], 2),
        "mirror_over_limit_in_pages": round(mirror / full["limit in pages"], 2),
        **limited,
    }


def _scenario(files: int, file_mib: int, methods: tuple[str, ...]) -> Json:
    found: Json = {}
    with rig() as (guest, disks):
        say(f"{files} files beside one of {file_mib} MiB")
        source, data = _tree(guest, disks, files, file_mib)
        if "by hand" in methods:
            found["by hand"] = _by_hand(guest, disks, source, data)
            source.loop  # noqa: B018 - the source is live again
        if "rsync" in methods:
            found["rsync"], _ = _rsync(guest, disks, source, data)
        found["mirror"], found["mirror parts"] = _median_mirror(guest, disks, source, data)
        found["limit"], found["limit in pages"] = _limits(source, disks.blank("scratch", 300), data)
    return found


def _tree(guest: Guest, disks: Disks, files: int, file_mib: int) -> tuple[Volume, Path]:
    # A small file is a block and an inode; rsync by hand writes the large one anew, beside it.
    source = disks.blank("source", 2 * file_mib + files // 170 + 700)
    shell("mkfs.xfs", "-q", source.loop)
    data = disks.mount(source.loop, guest.root / "data", "noatime")
    shell(sys.executable, "-c", TREE, str(data), str(files), str(file_mib))
    return source, data


def _limited(files: int, file_mib: int) -> Json:
    """The mirror and its limit where the disks are as fast as a volume in a cloud."""
    with rig() as (guest, disks), Limit() as limit:
        say(f"the same at {Limit.bytes_s} bytes a second")
        source, data = _tree(guest, disks, files, file_mib)
        limit.add(source.loop)
        took, parts = _median_mirror(guest, disks, source, data, limit.add)
        scratch = disks.blank("scratch", 300)
        limit.add(scratch.loop)
        bound, _ = _limits(source, scratch, data)
        return {
            "limited_bytes_s": Limit.bytes_s,
            "limited_mirror_s": round(took, 4),
            "limited_mirror_parts": parts,
            "limited_limit_s": round(bound, 4),
            "limited_mirror_over_limit": round(took / bound, 2),
        }


def _change(data: Path, seed: str) -> list[str]:
    count = DIRTY_MIB * MIB // PAGE
    return [sys.executable, "-c", CHANGE, str(data / "database"), str(count), str(PAGE), seed]


def _by_hand(guest: Guest, disks: Disks, source: Volume, data: Path) -> float:
    shell("sync", "-f", data)
    target = disks.clone(source, "by-hand")
    at = disks.mount(target.loop, guest.root / "mnt", "nouuid,noatime")
    shell("rsync", "-av", f"{data}/", f"{at}/")
    shell(*_change(data, "hand"))
    began = time.monotonic()
    shell("rsync", "-av", f"{data}/", f"{at}/")
    shell("umount", at)
    shell("umount", data)
    shell("mount", "-o", "nouuid,noatime", target.loop, data)
    took = time.monotonic() - began
    shell("umount", data)
    shell("mount", "-o", "noatime", source.loop, data)
    target.image.unlink()
    say(f"by hand {took:.2f} s")
    return took


def _filesystem(source: Volume, target: Volume, data: Path) -> Json:
    uuid = shell("blkid", "-p", "-s", "UUID", "-o", "value", source.loop).strip()
    return {
        "source": source.at(None), "target": target.at(None), "fstype": "xfs", "uuid": uuid,
        "label": "", "keep_uuid": True, "mount": str(data),
        "mounts": [{"target": str(data), "root": "/", "by": "hand", "unit": ""}],
    }  # fmt: skip


def _cut_over(guest: Guest, data: Path, seed: str, request: Json) -> tuple[float, Json]:
    side = guest.root / "etc" / "side.rules"
    side.write_text("source\n")
    files = [{"path": str(side), "source": "source\n", "target": "target\n", "mode": 0o644}]
    result = guest.do(
        "cutover",
        {
            "units": [], "stop": [shlex.join(_change(data, seed))], "start": ["true"],
            "sides": {"files": files}, "deadline_s": 600, "settle_s": 0, **request,
        },
        timeout_s=900,
    )  # fmt: skip
    outcome: Json = result["outcome"]
    assert outcome["result"] == "committed", outcome
    parts = outcome["parts"]
    return outcome["downtime_s"] - parts["stop"] - parts["start"], parts


def _again(source: Volume, target: Volume, data: Path) -> None:
    """The source is live again, as before."""
    shell("umount", data)
    target.image.unlink()
    shell("blockdev", "--setrw", source.loop)
    shell("mount", "-o", "noatime", source.loop, data)


def _rsync(guest: Guest, disks: Disks, source: Volume, data: Path) -> tuple[float, Json]:
    shell("sync", "-f", data)
    target = disks.clone(source, "rsync")
    guest.install(source.ref)
    filesystems = [_filesystem(source, target, data)]
    guest.do(
        "prepare",
        {
            "seed": "snapshot", "source": source.ref, "target": target.ref,
            "partition_dump": "", "grow": False, "filesystems": filesystems,
        },
        timeout_s=600,
    )  # fmt: skip
    last = guest.do("pass", {"filesystems": filesystems, "number": 1}, timeout_s=900)
    known = {key: last[key] for key in ("watermark", "clock_offset", "boot_id")}
    request = {"method": "rsync", "filesystems": filesystems, "number": 2, **known}
    took, parts = _cut_over(guest, data, "rsync", request)
    _again(source, target, data)
    say(f"rsync {took:.2f} s {parts}")
    return took, parts


def _median_mirror(
    guest: Guest,
    disks: Disks,
    source: Volume,
    data: Path,
    made: Callable[[str], None] = lambda device: None,
) -> tuple[float, Json]:
    """Of three, as the limit is of five: an unmount takes 0.01 s or, with a large cache to drop,
    0.2 s. ``made`` hears of each target's device."""
    tries = [_mirror(guest, disks, source, data, made) for _ in range(3)]
    return sorted(tries, key=lambda one: one[0])[1]


def _mirror(
    guest: Guest,
    disks: Disks,
    source: Volume,
    data: Path,
    made: Callable[[str], None],
) -> tuple[float, Json]:
    mirror = Mirror(guest, source)
    mirror.track()
    shell("sync", "-f", data)
    target = disks.clone(source, "mirror")
    made(target.loop)
    mirror.begin(target, pace=1.0)
    mirror.until_compared()
    request = {
        "method": "mirror",
        "filesystems": [_filesystem(source, target, data)],
        "pairs": [{"source": source.ref, "target": target.ref}],
    }
    took, parts = _cut_over(guest, data, "mirror", request)
    mirror.stop()
    _again(source, target, data)
    say(f"mirror {took:.4f} s {parts}")
    return took, parts


def _limits(source: Volume, scratch: Volume, data: Path) -> tuple[float, float]:
    """What cannot be gone below: an unmount after the same writes, a mount, and the dirty bytes by
    dd. In blocks of 1 MiB and in those in which they were written, though one after the other on
    the disk."""
    swaps = []
    for number in range(5):
        shell(*_change(data, f"limit {number}"))
        began = time.monotonic()
        shell("umount", data)
        shell("mount", "-o", "noatime", source.loop, data)
        swaps.append(time.monotonic() - began)
    swap = statistics.median(swaps)
    whole = statistics.median(dd(source.loop, scratch.loop, 256) for _ in range(3)) / 256
    pages = statistics.median(dd(source.loop, scratch.loop, 64, PAGE) for _ in range(3)) / 64
    return swap + DIRTY_MIB * whole, swap + DIRTY_MIB * pages
