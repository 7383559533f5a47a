"""The first copy of a blank target and the live comparison, against dd on the same disks.

Who goes first alternates: it finds the source less in the machine's cache, and what was written
before still on its way to the disk.
"""

import statistics
import subprocess

from benchmarks.rig import MIB, Guest, Json, Mirror, Volume, dd, rig, say

SIZE_MIB = 1024
ROUNDS = 6


def measure() -> Json:
    copies: list[float] = []
    compares: list[float] = []
    dds: list[float] = []
    reads: list[float] = []
    with rig() as (guest, disks):
        source = disks.blank("source", SIZE_MIB)
        with source.image.open("r+b") as image:
            subprocess.run(
                ["dd", "if=/dev/urandom", "bs=1M", f"count={SIZE_MIB}", "conv=notrunc,fsync"],
                stdout=image, stderr=subprocess.DEVNULL, check=True,
            )  # fmt: skip
        for number in range(ROUNDS):
            for mirrored in (number % 2 == 1, number % 2 == 0):
                target = disks.blank(f"target{number}{'m' if mirrored else 'd'}", SIZE_MIB)
                copy, compare = (_mirror if mirrored else _dd)(guest, source, target)
                (copies if mirrored else dds).append(copy)
                (compares if mirrored else reads).append(compare)
                target.image.unlink()
            say(f"round {number + 1}: dd {dds[-1]:.2f} s, first copy {copies[-1]:.2f} s, "
                f"reading both {reads[-1]:.2f} s, comparing {compares[-1]:.2f} s")  # fmt: skip
    return {
        "dd_mib_s": round(SIZE_MIB / statistics.median(dds)),
        "first_copy_over_dd": _speed(dds, copies),
        "verification_over_dd": _speed(reads, compares),
    }


def _speed(of_dd: list[float], ours: list[float]) -> float:
    """Round by round: the disk's own speed drifts by more than the two differ."""
    return round(statistics.median(a / b for a, b in zip(of_dd, ours, strict=True)), 2)


def _dd(guest: Guest, source: Volume, target: Volume) -> tuple[float, float]:
    """Seconds of copying, and of reading both."""
    copy = dd(source.loop, target.loop, SIZE_MIB)
    both = [dd(side.loop, "/dev/null", SIZE_MIB) for side in (source, target)]
    return copy, sum(both)


def _mirror(guest: Guest, source: Volume, target: Volume) -> tuple[float, float]:
    """Seconds of the first copy, and of comparing both, each as if it had been of the whole."""
    mirror = Mirror(guest, source)
    mirror.track()
    mirror.begin(target, blank=True, pace=1.0)
    first = mirror.until_compared()["passes"][0]
    mirror.stop()
    return (
        first["copy_s"] * SIZE_MIB * MIB / first["bytes_copied"],
        first["compare_s"] * SIZE_MIB * MIB / first["bytes_compared"],
    )
