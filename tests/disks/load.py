"""What services do to a filesystem or a device, by a seed, until the time is up: renames,
truncates, storms of fsync, O_DIRECT, stores through a mapping, discards.

It is pushed into guests as it is, so it needs nothing but the standard library.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import random
import struct
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

KIB = 1 << 10
MIB = 1 << 20
BLKDISCARD = 0x1277  # linux/fs.h


class Load(threading.Thread):
    def __init__(self, root: Path, seconds: float, seed: int, trimming: bool) -> None:
        super().__init__(daemon=True)
        self.root, self.random = root, random.Random(seed)
        self.until = time.monotonic() + seconds
        self.pause_s = 0.0
        self.deeds = self.weighted() | ({self.trim: 1} if trimming else {})
        self.done: Counter[str] = Counter()
        self.fault: Exception | None = None

    def weighted(self) -> dict[Callable[[], object], int]:
        often = dict.fromkeys((self.create, self.rewrite, self.direct, self.mapped), 10)
        return often | {self.remove: 7, self.truncate: 3}

    def run(self) -> None:
        """Each deed once, then any."""
        deeds = list(self.deeds)
        try:
            for deed in deeds:
                deed()
            while time.monotonic() < self.until:
                time.sleep(self.pause_s)
                self.random.choices(deeds, [*self.deeds.values()])[0]()
        except Exception as fault:  # noqa: BLE001 - else the load is over and nobody knows
            self.fault = fault

    def stop(self) -> None:
        """After what it is at, before the time is up."""
        self.until = 0.0

    def ended(self) -> Counter[str]:
        """Wait for its end. -> how often it did what. Raises what it ended of before the time."""
        self.join()
        if self.fault:
            raise self.fault
        return self.done

    def any_file(self) -> Path:
        files = sorted(self.root.glob("file*"))
        return self.random.choice(files) if files else self.create()

    def create(self) -> Path:
        path = self.root / f"file{self.random.randrange(60)}"
        new = self.root / "new"
        new.write_bytes(self.random.randbytes(self.random.randrange(1, 400 * KIB)))
        if self.random.random() < 0.5:
            with new.open("rb") as file:
                os.fsync(file)
        new.rename(path)
        self.done["renames"] += 1
        return path

    def rewrite(self) -> None:
        with self.any_file().open("r+b") as file:
            self.storm(file.fileno(), 0)

    def storm(self, fd: int, start: int) -> None:
        for _ in range(20):
            content = self.random.randbytes(self.random.randrange(1, 9000))
            os.pwrite(fd, content, start + self.random.randrange(400 * KIB))
            os.fdatasync(fd)
        self.done["storms"] += 1

    def direct(self) -> None:
        fd = os.open(self.root / "direct", os.O_RDWR | os.O_DIRECT | os.O_CREAT)
        try:
            self.write_direct(fd, 0)
        finally:
            os.close(fd)

    def write_direct(self, fd: int, start: int) -> None:
        buffer = mmap.mmap(-1, 8 * KIB)
        buffer.write(self.random.randbytes(8 * KIB))
        for _ in range(50):
            os.pwrite(fd, buffer, start + self.random.randrange(500) * 8 * KIB)
        self.done["direct"] += 1

    def mapped(self) -> None:
        with self.any_file().open("r+b") as file:
            file.truncate(64 * KIB)
            self.store(file.fileno(), 0)

    def store(self, fd: int, start: int) -> None:
        with mmap.mmap(fd, 64 * KIB, offset=start) as memory:
            for _ in range(8):
                memory[self.random.randrange(64 * KIB)] = self.random.randrange(256)
        self.done["mapped"] += 1

    def remove(self) -> None:
        self.any_file().unlink()

    def truncate(self) -> None:
        path = self.any_file()
        os.truncate(path, path.stat().st_size // 2)
        self.done["truncates"] += 1

    def trim(self) -> None:
        subprocess.run(["fstrim", self.root], check=True, capture_output=True, timeout=120)
        self.done["discards"] += 1


class DeviceLoad(Load):
    """The same on a device without a filesystem: ``root`` is its node. Each deed at any place.

    It is opened once: udev looks at a device anew whenever one who could write closes it.
    """

    def weighted(self) -> dict[Callable[[], object], int]:
        return dict.fromkeys((self.rewrite, self.direct, self.mapped), 10)

    def run(self) -> None:
        self.cached = os.open(self.root, os.O_RDWR)
        self.uncached = os.open(self.root, os.O_RDWR | os.O_DIRECT)
        try:
            super().run()
        finally:
            os.close(self.uncached)
            os.close(self.cached)

    def anywhere(self) -> int:
        size = os.lseek(self.cached, 0, os.SEEK_END)
        return self.random.randrange((size - 8 * MIB) // MIB) * MIB

    def rewrite(self) -> None:
        self.storm(self.cached, self.anywhere())

    def direct(self) -> None:
        self.write_direct(self.uncached, self.anywhere())

    def mapped(self) -> None:
        self.store(self.cached, self.anywhere())

    def trim(self) -> None:
        fcntl.ioctl(self.cached, BLKDISCARD, struct.pack("QQ", self.anywhere(), 2 * MIB))
        self.done["discards"] += 1
