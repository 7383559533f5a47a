"""A service that writes: everything a program can do to a tree, at random, from a seed.

Usage: writer.py FOLDER SEED PIDFILE. Ends at SIGTERM after the operation it is in.
"""

import contextlib
import mmap
import os
import random
import signal
import sys
import time
from pathlib import Path

FILES, FOLDERS = 150, 12


class Writer:
    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.random = folder, random.Random(seed)
        self.going = True
        signal.signal(signal.SIGTERM, self.stop)

    def stop(self, *_args: object) -> None:
        self.going = False

    def run(self) -> None:
        operations = [
            self.create, self.create, self.append, self.overwrite, self.overwrite, self.in_disguise,
            self.truncate, self.rename, self.move_folder, self.delete, self.link, self.symlink,
            self.chmod, self.chown, self.xattr, self.store, self.sparse,
        ]  # fmt: skip
        while self.going:
            # Somebody else (another operation) may have removed what was picked.
            with contextlib.suppress(
                FileNotFoundError, FileExistsError, NotADirectoryError, OSError
            ):
                self.random.choice(operations)()
            time.sleep(0.002)

    def name(self) -> Path:
        folder = self.folder / f"dir{self.random.randrange(FOLDERS)}"
        folder.mkdir(exist_ok=True)
        return folder / f"file{self.random.randrange(FILES)}"

    def data(self, most: int = 60_000) -> bytes:
        return self.random.randbytes(self.random.randrange(1, most))

    def create(self) -> None:
        self.name().write_bytes(self.data())

    def append(self) -> None:
        with self.name().open("ab") as file:
            file.write(self.data(5000))

    def overwrite(self) -> None:
        with self.name().open("r+b") as file:
            file.seek(self.random.randrange(10_000))
            file.write(self.data(3000))

    def in_disguise(self) -> None:
        """Another content, the same size and mtime: rsync's quick check is blind to it."""
        path = self.name()
        before = path.stat()
        with path.open("r+b") as file:
            file.write(self.random.randbytes(min(before.st_size, 500)))
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))

    def truncate(self) -> None:
        path = self.name()
        os.truncate(path, self.random.randrange(path.stat().st_size + 1))

    def rename(self) -> None:
        self.name().rename(self.name())

    def move_folder(self) -> None:
        """What lies below keeps its old ctimes."""
        number = self.random.randrange(FOLDERS)
        old, new = self.folder / f"dir{number}", self.folder / f"moved{number}"
        old.rename(new) if old.exists() else new.rename(old)

    def delete(self) -> None:
        self.name().unlink()

    def link(self) -> None:
        os.link(self.name(), self.name())

    def symlink(self) -> None:
        self.name().symlink_to(self.name())

    def chmod(self) -> None:
        self.name().chmod(self.random.choice((0o600, 0o644, 0o755, 0o4711)))

    def chown(self) -> None:
        os.chown(self.name(), self.random.randrange(2000), self.random.randrange(2000))

    def xattr(self) -> None:
        os.setxattr(self.name(), f"user.n{self.random.randrange(3)}", self.data(50))

    def store(self) -> None:
        """Through a mapping, which moves the times only now and then."""
        with self.name().open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
            mapped[self.random.randrange(len(mapped))] = self.random.randrange(256)

    def sparse(self) -> None:
        with self.name().open("r+b") as file:
            file.seek(self.random.randrange(2_000_000))
            file.write(b"island")


if __name__ == "__main__":
    Path(sys.argv[3]).write_text(str(os.getpid()))
    Writer(Path(sys.argv[1]), int(sys.argv[2])).run()
