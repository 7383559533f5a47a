"""Loop devices, the real agent on them, and dd beside it: as the tests of the disks, but timed."""

import contextlib
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(HERE / "tests" / "agent"), str(HERE / "tests" / "disks")]

from agent_rig import MIB, Disks, Guest, Volume, disks_in, shell  # type: ignore[import-not-found] # noqa: E402
from mirror_world import why_no_mirror  # type: ignore[import-not-found] # noqa: E402

Json = dict[str, Any]

__all__ = [
    "MIB",
    "Disks",
    "Guest",
    "Json",
    "Limit",
    "Mirror",
    "Volume",
    "dd",
    "rig",
    "say",
    "shell",
]


@contextlib.contextmanager
def rig() -> Iterator[tuple[Guest, Disks]]:
    why = why_no_mirror()
    if why:
        raise SystemExit(f"the mirror cannot be measured here: {why}")
    with tempfile.TemporaryDirectory(prefix="volferry-bench-", dir="/var/tmp") as folder:
        root = Path(folder)
        guest = Guest(root)
        with disks_in(root) as disks:
            try:
                yield guest, disks
            finally:
                guest.call("stop", lane="mirror")
                guest.kill_everything()


class Mirror:
    """The mirror of one pair, told what to do."""

    def __init__(self, guest: Guest, source: Volume) -> None:
        self.guest, self.source = guest, source
        guest.install(source.ref)

    def track(self, **more: Any) -> None:
        request = {"sources": [self.source.ref], "transfer": self.guest.transfer, **more}
        self.guest.start("mirror", request)
        deadline = time.monotonic() + 60
        while self.guest.call("status", lane="mirror")["phase"] in ("", "starting"):
            if time.monotonic() > deadline:
                raise SystemExit("the mirror did not begin to track within 60 s")
            time.sleep(0.02)

    def begin(self, target: Volume, **more: Any) -> None:
        pair = {"source": self.source.ref, "target": target.ref}
        self.tell("pairs", pairs=[pair], **more)

    def tell(self, what: str, **more: Any) -> Json:
        answer: Json = self.guest.call("tell", message={"do": what, **more}, timeout_s=600)
        return answer

    def figures(self) -> Json:
        return self.tell("figures")

    def until_compared(self, timeout_s: float = 900.0) -> Json:
        deadline = time.monotonic() + timeout_s
        while True:
            figures = self.figures()
            if figures["verified"] and figures["passes"] and not figures["dirty_bytes"]:
                return figures
            if time.monotonic() > deadline:
                raise SystemExit(f"the mirror did not compare everything: {figures}")
            time.sleep(0.2)

    def progress_mib(self) -> float:
        """Done of the pass that is under way, as it was last told."""
        said = self.guest.call("status", lane="mirror")["progress"]
        done_bytes: int = said.get("done_bytes") or 0
        return done_bytes / (1 << 20)

    def stop(self) -> None:
        """Without its orders: the next one would go on with this one's target."""
        self.guest.call("stop", lane="mirror")
        (self.guest.state_dir / "mirror" / "orders.json").unlink(missing_ok=True)

    def worker(self) -> int:
        text = (self.guest.state_dir / "mirror" / "worker.json").read_text()
        return int(re.findall(r'"pid": (\d+)', text)[0])

    def cpu_s(self) -> float:
        """Of the processor that its process has used (utime and stime of proc(5))."""
        fields = Path(f"/proc/{self.worker()}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def dd(source: str, target: str, count_mib: int, block: int = MIB) -> float:
    """Seconds of dd past the page cache, in blocks of so many bytes."""
    flags = ["iflag=direct"] + ([] if target == "/dev/null" else ["oflag=direct", "conv=fsync"])
    count = count_mib * MIB // block
    began = time.monotonic()
    subprocess.run(
        ["dd", f"if={source}", f"of={target}", f"bs={block}", f"count={count}", *flags],
        check=True,
        stderr=subprocess.DEVNULL,
    )
    return time.monotonic() - began


class Limit:
    """Each disk that is added has the speed of a volume in a cloud, a tenth of a loop device's.

    By blk-throttle (cgroup v1, blkio), for this process and all that it starts from here on.
    """

    bytes_s = 150_000_000
    """To read, and as much to write."""
    group = Path("/sys/fs/cgroup/blkio") / f"volferry-bench-{os.getpid()}"

    @classmethod
    def works(cls) -> bool:
        return (cls.group.parent / "blkio.throttle.read_bps_device").exists()

    def __enter__(self) -> "Limit":
        self.group.mkdir()
        (self.group / "cgroup.procs").write_text(str(os.getpid()))
        return self

    def add(self, device: str) -> None:
        number = Path(f"/sys/class/block/{Path(device).name}/dev").read_text().strip()
        for verb in ("read", "write"):
            limit = self.group / f"blkio.throttle.{verb}_bps_device"
            limit.write_text(f"{number} {self.bytes_s}")

    def __exit__(self, *exc: object) -> None:
        for pid in (self.group / "cgroup.procs").read_text().split():
            with contextlib.suppress(ProcessLookupError):
                (self.group.parent / "cgroup.procs").write_text(pid)
        self.group.rmdir()


def say(text: str) -> None:
    print(f"bench: {text}, load {os.getloadavg()[0]:.1f}", file=sys.stderr, flush=True)
