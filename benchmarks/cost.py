"""What the mirror costs a service that writes 8 KiB at random places, past the page cache: fio.

Rounds without it, with tracking alone and with syncing alternate; the medians are compared.
"""

import json
import statistics
import time
from pathlib import Path

from benchmarks.rig import Json, Mirror, rig, say, shell

SIZE_MIB, FILE_MIB, ROUND_S, ROUNDS = 8192, 512, 4, 7
OTHER_MIB = 2048
"""Of the target that differ from the source when a round begins: more than a round copies."""
DD = "dd bs=1M iflag=fullblock oflag=direct status=none"
JOB = {
    "name": "service",
    "rw": "randwrite",
    "bs": "8k",
    "direct": "1",
    "ioengine": "psync",
    "numjobs": "8",
    "group_reporting": "1",
    "time_based": "1",
    "runtime": str(ROUND_S),
    "output-format": "json",
}


def measure() -> Json:
    copied: list[float] = []
    rates: dict[str, list[float]] = {"alone": [], "tracking": [], "syncing": []}
    with rig() as (guest, disks):
        source = disks.blank("source", SIZE_MIB)
        target = disks.blank("target", SIZE_MIB)
        shell("mkfs.ext4", "-q", source.loop)
        data = disks.mount(source.loop, guest.root / "data", "noatime")
        path = data / "database"
        shell("dd", "if=/dev/zero", f"of={path}", "bs=1M", f"count={FILE_MIB}", "conv=notrunc")
        shell("sync", "-f", data)
        mirror = Mirror(guest, source)
        _write(path)  # warm
        for _ in range(ROUNDS):
            rates["alone"].append(_write(path))
            mirror.track()
            rates["tracking"].append(_write(path))
            shell("sh", "-c", f"tr '\\0' x </dev/zero | {DD} of={target.loop} count={OTHER_MIB}")
            mirror.begin(target, blank=True)
            began = time.monotonic()
            rates["syncing"].append(_write(path))
            copied.append(mirror.progress_mib() / (time.monotonic() - began))
            mirror.stop()
            shell("rm", "-f", str(guest.state_dir / "mirror" / "orders.json"))
            say("writes/s " + ", ".join(f"{name} {each[-1]:.0f}" for name, each in rates.items()))
    medians = {name: statistics.median(each) for name, each in rates.items()}
    alone = rates["alone"]
    return {
        "writes_s": round(medians["alone"]),
        "writes_spread": round((max(alone) - min(alone)) / medians["alone"], 3),
        "cost_tracking": round(1 - medians["tracking"] / medians["alone"], 3),
        "cost_syncing": round(1 - medians["syncing"] / medians["alone"], 3),
        "copied_mib_s": round(statistics.median(copied), 1),
    }


def _write(path: Path) -> float:
    """Writes a second."""
    words = [f"--{name}={value}" for name, value in JOB.items()]
    answer = json.loads(shell("fio", f"--filename={path}", f"--size={FILE_MIB}m", *words))
    return float(answer["jobs"][0]["write"]["iops"])
