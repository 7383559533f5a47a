"""What the mirror costs a service that writes 8 KiB at random places, past the page cache: fio.

The machine's own speed drifts by more than what is looked for. So each round with the mirror lies
between two without it and is held against these; and each one without it as well, against the two
without it that are next to it, which is what chance alone makes of such a figure.
"""

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.rig import Json, Limit, Mirror, rig, say, shell

SIZE_MIB, FILE_MIB, ROUND_S, ROUNDS = 8192, 512, 3, 16
OTHER_MIB = 2048
"""Of the target that differ from the source when a round begins: more than a round copies."""
LIMITED_ROUNDS, LIMITED_OTHER_MIB = 6, 512
# Forced to disk: what this machine still had to write back would be counted as the mirror's cost.
DD = "dd bs=1M iflag=fullblock oflag=direct conv=fsync status=none"
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
    found = _measure(ROUNDS, OTHER_MIB)
    if Limit.works():
        with Limit() as limit:
            say(f"the same at {Limit.bytes_s} bytes a second")
            limited = _measure(LIMITED_ROUNDS, LIMITED_OTHER_MIB, limit.add)
        wanted = ("writes_s", "cost_tracking", "cost_syncing", "cost_by_chance", "copied_mib_s")
        found.update({f"limited_{name}": limited[name] for name in wanted})
    return found


def _measure(
    rounds: int, other_mib: int, made: Callable[[str], None] = lambda device: None
) -> Json:
    """``made`` hears of each device."""
    copied: list[float] = []
    alone: list[float] = []
    cpu_us: list[float] = []
    cost: dict[str, list[float]] = {"tracking": [], "syncing": []}
    with rig() as (guest, disks):
        source = disks.blank("source", SIZE_MIB)
        target = disks.blank("target", SIZE_MIB)
        shell("mkfs.ext4", "-q", source.loop)
        data = disks.mount(source.loop, guest.root / "data", "noatime")
        path = data / "database"
        shell("dd", "if=/dev/zero", f"of={path}", "bs=1M", f"count={FILE_MIB}", "conv=notrunc")
        shell("sync", "-f", data)
        for disk in (source, target):
            made(disk.loop)
        mirror = Mirror(guest, source)
        _write(path)  # warm
        alone.append(_write(path))
        for _ in range(rounds):
            for name, costs in cost.items():
                mirror.track()
                if name == "syncing":
                    shell(
                        "sh",
                        "-c",
                        f"tr '\\0' x </dev/zero | {DD} of={target.loop} count={other_mib}",
                    )
                    mirror.begin(target, blank=True)
                began, cpu_s = time.monotonic(), mirror.cpu_s()
                rate = _write(path)
                if name == "tracking":
                    cpu_us.append((mirror.cpu_s() - cpu_s) / (rate * ROUND_S) * 1e6)
                else:
                    copied.append(mirror.progress_mib() / (time.monotonic() - began))
                mirror.stop()
                alone.append(_write(path))
                costs.append(1 - rate / statistics.mean(alone[-2:]))
                say(f"{name} {rate:.0f} writes/s, {alone[-2]:.0f} before and {alone[-1]:.0f} after")
    return {
        "writes_s": round(statistics.median(alone)),
        # + 0.0: one of less than nothing is 0, not -0
        "cost_tracking": round(statistics.median(cost["tracking"]), 3) + 0.0,
        "cost_syncing": round(statistics.median(cost["syncing"]), 3) + 0.0,
        "cost_by_chance": round(_by_chance(alone), 3),
        "tracking_us_a_write": round(statistics.median(cpu_us), 2),
        "copied_mib_s": round(statistics.median(copied), 1),
    }


def _by_chance(alone: list[float]) -> float:
    """How far from 0 the same median is that as many rounds without the mirror give, at a time."""
    apart = [
        1 - here / statistics.mean((before, after))
        for before, here, after in zip(alone, alone[1:], alone[2:], strict=False)
    ]
    halves = [statistics.median(apart[0::2]), statistics.median(apart[1::2])]
    return max(abs(half) for half in halves)


def _write(path: Path) -> float:
    """Writes a second."""
    words = [f"--{name}={value}" for name, value in JOB.items()]
    answer = json.loads(shell("fio", f"--filename={path}", f"--size={FILE_MIB}m", *words))
    return float(answer["jobs"][0]["write"]["iops"])
