"""What the mirror costs a service that writes 8 KiB at random places, past the page cache.

Rounds without it, with tracking alone and with syncing alternate; the medians are compared.
"""

import statistics
import subprocess
import sys

from benchmarks.rig import Json, Mirror, rig, say, shell

SIZE_MIB, ROUND_S, ROUNDS = 8192, 4.0, 7

WRITER = """
import mmap, os, random, sys, threading, time
path, seconds, threads = sys.argv[1], float(sys.argv[2]), int(sys.argv[3])
size = os.path.getsize(path)
done = [0] * threads
ends = time.monotonic() + seconds
def work(number):
    fd = os.open(path, os.O_RDWR | os.O_DIRECT)
    page = mmap.mmap(-1, 8192)
    page.write(os.urandom(8192))
    places = random.Random(number)
    while time.monotonic() < ends:
        os.pwritev(fd, [page], places.randrange(size // 8192) * 8192)
        done[number] += 1
ones = [threading.Thread(target=work, args=(n,)) for n in range(threads)]
[one.start() for one in ones]
[one.join() for one in ones]
print(sum(done) / seconds)
"""
THREADS = 8


def measure() -> Json:
    rates: dict[str, list[float]] = {"alone": [], "tracking": [], "syncing": []}
    with rig() as (guest, disks):
        source = disks.blank("source", SIZE_MIB)
        target = disks.blank("target", SIZE_MIB)
        shell("mkfs.ext4", "-q", source.loop)
        data = disks.mount(source.loop, guest.root / "data", "noatime")
        path = data / "database"
        with path.open("wb") as file:
            for _ in range(512):
                file.write(bytes(1 << 20))
        shell("sync", "-f", data)
        mirror = Mirror(guest, source)
        _write(str(path))  # warm
        for _ in range(ROUNDS):
            rates["alone"].append(_write(str(path)))
            mirror.track()
            rates["tracking"].append(_write(str(path)))
            mirror.begin(target)  # the comparison of 8 GiB lasts longer than the round
            rates["syncing"].append(_write(str(path)))
            mirror.stop()
            shell("rm", "-f", str(guest.state_dir / "mirror" / "orders.json"))
            say("writes/s " + ", ".join(f"{name} {each[-1]:.0f}" for name, each in rates.items()))
    medians = {name: statistics.median(each) for name, each in rates.items()}
    return {
        "writes_s": round(medians["alone"]),
        "cost_tracking": round(max(0.0, 1 - medians["tracking"] / medians["alone"]), 3),
        "cost_syncing": round(max(0.0, 1 - medians["syncing"] / medians["alone"]), 3),
    }


def _write(path: str) -> float:
    words = [sys.executable, "-c", WRITER, path, str(ROUND_S), str(THREADS)]
    return float(subprocess.check_output(words))
