"""What services do to a filesystem, by a seed, until the time is up: renames, truncates, fsyncs,
O_DIRECT, stores through a mapping, discards."""

from __future__ import annotations

import mmap
import os
import random
import threading
import time
from pathlib import Path

from agent_rig import shell

KIB = 1 << 10


class Load(threading.Thread):
    def __init__(self, root: Path, seconds: float, seed: int, trimming: bool) -> None:
        super().__init__()
        self.root, self.random = root, random.Random(seed)
        self.until = time.monotonic() + seconds
        self.deeds = [self.create, self.rewrite, self.direct, self.mapped, self.remove]
        self.deeds += [self.trim] if trimming else []

    def run(self) -> None:
        while time.monotonic() < self.until:
            self.random.choice(self.deeds)()

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
        return path

    def rewrite(self) -> None:
        with self.any_file().open("r+b") as file:
            for _ in range(20):
                file.seek(self.random.randrange(400 * KIB))
                file.write(self.random.randbytes(self.random.randrange(1, 9000)))
                os.fdatasync(file.fileno())

    def direct(self) -> None:
        fd = os.open(self.root / "direct", os.O_RDWR | os.O_DIRECT | os.O_CREAT)
        try:
            buffer = mmap.mmap(-1, 8 * KIB)
            buffer.write(self.random.randbytes(8 * KIB))
            for _ in range(50):
                os.pwrite(fd, buffer, self.random.randrange(500) * 8 * KIB)
        finally:
            os.close(fd)

    def mapped(self) -> None:
        with self.any_file().open("r+b") as file:
            file.truncate(64 * KIB)
            with mmap.mmap(file.fileno(), 64 * KIB) as memory:
                for _ in range(8):
                    memory[self.random.randrange(64 * KIB)] = self.random.randrange(256)

    def remove(self) -> None:
        path = self.any_file()
        if self.random.random() < 0.3:
            os.truncate(path, path.stat().st_size // 2)
        else:
            path.unlink()

    def trim(self) -> None:
        if self.random.random() < 0.1:
            shell("fstrim", self.root)
