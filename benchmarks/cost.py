"""What the mirror costs a service that writes 8 KiB at random places, past the page cache: fio.

Rounds without it, with tracking alone and with syncing alternate; the medians are compared.
"""

import json
import statistics
from pathlib import Path

from benchmarks.rig import Json, Mirror, rig, say, shell

SIZE_MIB, FILE_MIB, ROUND_S, ROUNDS = 8192, 512, 4, 7
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
            mirror.begin(target)  # the comparison of 8 GiB lasts longer than the round
            rates["syncing"].append(_write(path))
            mirror.stop()
            shell("rm", "-f", str(guest.state_dir / "mirror" / "orders.json"))
            say("writes/s " + ", ".join(f"{name} {each[-1]:.0f}" for name, each in rates.items()))
    medians = {name: statistics.median(each) for name, each in rates.items()}
    return {
        "writes_s": round(medians["alone"]),
        "cost_tracking": round(max(0.0, 1 - medians["tracking"] / medians["alone"]), 3),
        "cost_syncing": round(max(0.0, 1 - medians["syncing"] / medians["alone"]), 3),
    }


def _write(path: Path) -> float:
    """Writes a second."""
    words = [f"--{name}={value}" for name, value in JOB.items()]
    answer = json.loads(shell("fio", f"--filename={path}", f"--size={FILE_MIB}m", *words))
    return float(answer["jobs"][0]["write"]["iops"])
