"""A world whose target is mirrored block by block, and what the mirror says of it."""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import signal
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from agent_rig import Guest, Json, shell
from disks_world import World

from volferry.agent.tracker import Tracker

AnyWorld = TypeVar("AnyWorld", bound=World)
TRACING = Path("/sys/kernel/tracing")
APART = 16 * 1024
"""Further than a chunk: blocks of 1 KiB, as a small ext4 has, do not lie at the chunks' edges."""


def why_no_mirror() -> str:
    """Empty where writes can be tracked; mounts tracefs where it can be."""
    if not TRACING.is_dir():
        return "the kernel has no tracefs"
    if not (TRACING / "instances").is_dir():
        shell("mount", "-t", "tracefs", "nodev", TRACING, check=False)
    return "" if (TRACING / "instances").is_dir() else "tracefs cannot be mounted"


def end_mirror(guest: Guest) -> None:
    """The one of that guest, if it has one, and what one that was killed left in the kernel."""
    if (guest.state_dir / "mirror").exists():
        guest.call("stop", lane="mirror")
        Tracker.remove_stale(str(TRACING), guest.transfer)


@contextlib.contextmanager
def ended(world: AnyWorld) -> Iterator[AnyWorld]:
    """Nothing of it runs any more afterwards, however far its making came."""
    try:
        yield world
    finally:
        end_mirror(world.guest)
        world.guest.kill_everything()
        world.end_writer()


class Mirrored:
    """The lane ``mirror`` of a world's guest."""

    def __init__(self, world: World, **request: Any) -> None:
        self.world, self.guest = world, world.guest
        self.request = {
            "sources": [source.ref for source in world.sources],
            "transfer": self.guest.transfer,
            "buffer_kib": 4096,
            **request,
        }

    def mutate(self, text: str) -> Mirrored:
        """Before it is started: make the guest's agent do something else than it should."""
        program = next(self.guest.state_dir.glob("agent-*.py"))
        end = '\nif __name__ == "__main__":'
        program.write_text(program.read_text().replace(end, f"\n{text}\n{end}"))
        return self

    def track(self) -> Mirrored:
        self.guest.start("mirror", self.request, job_id="mirror-1")
        self.until(lambda figures: True, "begin to track")
        return self

    def begin(self, blank: bool = False, **more: Any) -> Json:
        return self.tell("pairs", pairs=self.world.pairs, blank=blank, **more)

    def tell(self, what: str, **more: Any) -> Json:
        return self.guest.call("tell", message={"do": what, **more}, timeout_s=60)

    def status(self) -> Json:
        return self.guest.call("status", lane="mirror")

    def until(self, good: Any, what: str, timeout_s: float = 60.0) -> Json:
        """The figures once they are ``good``."""
        deadline = time.monotonic() + timeout_s
        while True:
            status = self.status()
            assert status["state"] == "running", status
            figures: Json = (status["progress"] or {}).get("figures") or {}
            if figures and good(figures):
                return figures
            assert time.monotonic() < deadline, (what, status)
            time.sleep(0.05)

    def until_compared(self, timeout_s: float = 60.0) -> Json:
        return self.until(lambda f: f["verified"] and f["passes"], "be compared", timeout_s)

    def worker(self) -> int:
        pid: int = json.loads((self.folder / "worker.json").read_text())["pid"]
        return pid

    @property
    def folder(self) -> Path:
        return self.guest.state_dir / "mirror"

    def kill(self) -> None:
        os.kill(self.worker(), signal.SIGKILL)

    def cut(self) -> None:
        """As a power cut does: nobody begins it again."""
        for name in ("supervisor.json", "worker.json"):
            os.kill(json.loads((self.folder / name).read_text())["pid"], signal.SIGKILL)

    def until_begun_again(self) -> Json:
        return self.until(lambda f: any("restarted" in note for note in f["notes"]), "begin again")

    def unlimited(self) -> None:
        self.tell("set", bwlimit_bytes_s=None)

    def wait(self) -> Json:
        deadline = time.monotonic() + 30
        while self.status()["state"] == "running":
            assert time.monotonic() < deadline
            time.sleep(0.05)
        return self.status()

    def finish_by_hand(self, writer: bool = True) -> Json:
        """What the cutover does with the disks, and no mount afterwards, which would write."""
        self.tell("ready")
        if writer:
            self.world.stop_writer()
        shell("umount", *self.world.data)
        final = self.tell("final", deadline_s=60, save=False)
        self.tell("unmask")
        return final

    def cutover_request(self, **more: Any) -> Json:
        return {
            **self.world.cutover_request(None),
            "method": "mirror",
            "pairs": self.world.pairs,
            **more,
        }

    def cut_over(self, **more: Any) -> tuple[Json, Json]:
        """-> (outcome, status)"""
        self.guest.start("cutover", self.cutover_request(**more))
        status = self.guest.wait()
        assert status["state"] == "ended", status
        return status["result"]["outcome"], status


def differing_bytes(world: World) -> str:
    """What ``cmp`` says of the two disks, over the source's size; empty for the same."""
    size = world.source.ref["size_bytes"]
    for volume in (world.source, world.target):
        shell("blockdev", "--flushbufs", volume.loop)
    return shell("cmp", "-n", str(size), world.source.loop, world.target.loop, check=False)


class Direct:
    """A file in a world's filesystem whose places are each in chunks of their own."""

    def __init__(self, world: World, size_mib: int) -> None:
        self.path = world.data[0] / "direct"
        self.path.write_bytes(os.urandom(size_mib << 20))
        shell("sync", "-f", self.path)
        self.places = range((size_mib << 20) // APART)

    def write(self, places: Iterable[int]) -> None:
        """4 KiB in each of these."""
        buffer = mmap.mmap(-1, 4096)
        buffer.write(os.urandom(4096))
        fd = os.open(self.path, os.O_RDWR | os.O_DIRECT)
        try:
            for place in places:
                assert os.pwrite(fd, buffer, place * APART) == 4096
        finally:
            os.close(fd)


def hidden(world: World) -> bool:
    """Nothing recognises the target."""
    return shell("blkid", "-p", world.target.loop, check=False) == ""
