"""The first copy of a blank target and the live comparison, against dd on the same disks."""

import statistics
import subprocess

from benchmarks.rig import MIB, Json, Mirror, dd, rig, say

SIZE_MIB = 1024
ROUNDS = 3


def measure() -> Json:
    copies, compares, dds, reads = [], [], [], []
    with rig() as (guest, disks):
        source = disks.blank("source", SIZE_MIB)
        with source.image.open("r+b") as image:
            subprocess.run(
                ["dd", "if=/dev/urandom", "bs=1M", f"count={SIZE_MIB}", "conv=notrunc"],
                stdout=image, stderr=subprocess.DEVNULL, check=True,
            )  # fmt: skip
        for number in range(ROUNDS):
            plain = disks.blank(f"plain{number}", SIZE_MIB)
            dds.append(dd(source.loop, plain.loop, SIZE_MIB))
            reads.append(
                dd(source.loop, "/dev/null", SIZE_MIB) + dd(plain.loop, "/dev/null", SIZE_MIB)
            )
            target = disks.blank(f"target{number}", SIZE_MIB)
            mirror = Mirror(guest, source)
            mirror.track()
            mirror.begin(target, blank=True, pace=1.0)
            figures = mirror.until_compared()
            mirror.stop()
            first = figures["passes"][0]
            copies.append(first["copy_s"] * SIZE_MIB * MIB / first["bytes_copied"])
            compares.append(first["compare_s"] * SIZE_MIB * MIB / first["bytes_compared"])
            say(f"round {number + 1}: dd {dds[-1]:.2f} s, first copy {copies[-1]:.2f} s, "
                f"reading both {reads[-1]:.2f} s, comparing {compares[-1]:.2f} s")  # fmt: skip
            target.image.unlink()
            plain.image.unlink()
    return {
        "dd_mib_s": round(SIZE_MIB / statistics.median(dds)),
        "first_copy_over_dd": round(statistics.median(dds) / statistics.median(copies), 2),
        "verification_over_dd": round(statistics.median(reads) / statistics.median(compares), 2),
    }
