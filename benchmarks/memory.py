"""The agent's memory for a pair of 2 TiB, everything of it waiting to be compared."""

import re
import subprocess
import time
from pathlib import Path

from benchmarks.rig import Json, Mirror, rig

SIZE_MIB = 2 * 1024 * 1024


def measure() -> Json:
    with rig() as (guest, disks):
        source, target = disks.blank("source", SIZE_MIB), disks.blank("target", SIZE_MIB)
        mirror = Mirror(guest, source)
        mirror.track()
        mirror.begin(target, verify="full")
        # Somebody writes meanwhile, all over the disk.
        for number in range(200):
            subprocess.run(
                ["dd", "if=/dev/urandom", f"of={source.loop}", "bs=4k", "count=1",
                 f"seek={number * 2_000_000}", "oflag=direct", "conv=notrunc"],
                check=True, stderr=subprocess.DEVNULL,
            )  # fmt: skip
        time.sleep(5.0)
        status = Path(f"/proc/{mirror.worker()}/status").read_text()
        peak_kib = int(re.findall(r"VmHWM:\s+(\d+)", status)[0])
        mirror.stop()
    return {"agent_mib": round(peak_kib / 1024)}
