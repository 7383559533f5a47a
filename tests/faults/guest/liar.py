"""Breaks one thing in a copy, between the copying and the comparing.

Usage: liar.py LIE SOURCE TARGET [IMAGE]. Times are put back, so that a look at size and mtime finds
nothing: neither of the entry nor of the folder that it lies in.
"""

import contextlib
import fcntl
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

FIBMAP, FIGETBSZ = 1, 2
MIB = 1024 * 1024


def make_tree(root: Path) -> None:
    """Something to lie about, below ``root``."""
    folder = root / "lies"
    (folder / "inner").mkdir(parents=True)
    (folder / "big").write_bytes(os.urandom(3 * MIB))
    with (folder / "sparse").open("wb") as file:
        file.truncate(8 * MIB)
        file.seek(5 * MIB)
        file.write(b"island")
    (folder / "file").write_bytes(b"content")
    os.setxattr(folder / "file", "user.note", b"kept")
    (folder / "inner" / "leaf").write_bytes(b"leaf")
    os.link(folder / "big", folder / "inner" / "hard")
    (folder / "link").symlink_to("file")
    subprocess.run(["setfacl", "-m", "u:1234:r", folder / "file"], check=True)
    os.mkfifo(folder / "pipe")


def skip_file(target: Path) -> None:
    (target / "inner" / "leaf").unlink(missing_ok=True)  # rsync runs twice to heal


def skip_chunk(target: Path) -> None:
    with (target / "big").open("r+b") as file:
        file.seek(MIB)
        file.write(bytes(64 * 1024))


def other_content(target: Path) -> None:
    (target / "file").write_bytes(b"CONTENT")


def island(target: Path) -> None:
    with (target / "sparse").open("r+b") as file:
        file.truncate(5 * MIB)
        file.truncate(8 * MIB)


def data_in_a_hole(target: Path) -> None:
    with (target / "sparse").open("r+b") as file:
        file.seek(2 * MIB)
        file.write(b"ghost")


def mode(target: Path) -> None:
    (target / "file").chmod(0o4755)


def owner(target: Path) -> None:
    os.chown(target / "file", 77, -1)


def group(target: Path) -> None:
    os.chown(target / "link", -1, 77, follow_symlinks=False)


def mtime(target: Path) -> None:
    os.utime(target / "pipe", (1, 1))


def xattr(target: Path) -> None:
    with contextlib.suppress(OSError):  # it has none any more
        os.removexattr(target / "file", "user.note")


def acl(target: Path) -> None:
    subprocess.run(["setfacl", "-b", target / "file"], check=True)


def hard_link(target: Path) -> None:
    path, copy = target / "inner" / "hard", target / "inner" / "copy"
    subprocess.run(["cp", "-a", path, copy], check=True)
    copy.rename(path)


def link_target(target: Path) -> None:
    (target / "link").unlink()
    (target / "link").symlink_to("elif")


def kind(target: Path) -> None:
    (target / "pipe").unlink()
    (target / "pipe").touch(0o644)


def resurrected(target: Path) -> None:
    (target / "inner" / "deleted long ago").touch()


LIES: dict[Callable[[Path], None], str] = {
    skip_file: "inner/leaf", skip_chunk: "big", other_content: "file", island: "sparse",
    data_in_a_hole: "sparse", mode: "file", owner: "file", group: "link", mtime: "pipe",
    xattr: "file", acl: "file", hard_link: "inner/hard", link_target: "link", kind: "pipe",
    resurrected: "inner/deleted long ago",
}  # fmt: skip
"""Each with the entry that has to be named."""


def lost_by_the_disk(target: Path, image: Path) -> None:
    """The disk acknowledged a write and kept something else. Page caches know nothing of it.

    On ext4, which tells by FIBMAP where a file's block lies.
    """
    with (target / "big").open("rb") as file:
        os.fsync(file)
        size = struct.unpack("i", fcntl.ioctl(file, FIGETBSZ, struct.pack("i", 0)))[0]
        [block] = struct.unpack("i", fcntl.ioctl(file, FIBMAP, struct.pack("i", 7)))
    with image.open("r+b") as disk:
        disk.seek(block * size)
        disk.write(bytes(size))
        os.fsync(disk)


def put_times_back(source: Path, target: Path) -> None:
    for path in [target, *target.rglob("*")]:
        there = source / path.relative_to(target)
        with contextlib.suppress(FileNotFoundError):
            status = there.lstat()
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns), follow_symlinks=False)


def main(name: str, source: Path, target: Path, image: str = "") -> None:
    if name == lost_by_the_disk.__name__:
        lost_by_the_disk(target, Path(image))
        return
    lie = next(one for one in LIES if one.__name__ == name)
    lie(target)
    if lie is not mtime:
        put_times_back(source, target)


if __name__ == "__main__":
    main(sys.argv[1], *(Path(word) / "lies" for word in sys.argv[2:4]), *sys.argv[4:])
