"""chattr flags and project ids, which no mover copies."""

import errno
import fcntl
import os
import stat
import struct
from typing import Tuple

from volferry.agent.basics import to_bytes

FS_IOC_GETFLAGS, FS_IOC_SETFLAGS = 0x80086601, 0x40086602  # linux/fs.h on 64-bit machines
FS_IOC_FSGETXATTR, FS_IOC_FSSETXATTR = 0x801C581F, 0x401C5820
FS_SYNC, FS_IMMUTABLE, FS_APPEND, FS_NODUMP, FS_NOATIME, FS_DIRSYNC = (
    0x8,
    0x10,
    0x20,
    0x40,
    0x80,
    0x10000,
)
KEPT_FLAGS = FS_SYNC | FS_IMMUTABLE | FS_APPEND | FS_NODUMP | FS_NOATIME | FS_DIRSYNC
LOCKS = FS_IMMUTABLE | FS_APPEND
FSXATTR = struct.Struct("=5I8x")

Attributes = Tuple[int, int]
"""(chattr flags that are kept, project id)"""


def all_flags(fd: int) -> int:
    """The ioctl's number says long, the kernel writes an int."""
    answer = fcntl.ioctl(fd, FS_IOC_GETFLAGS, bytes(8))
    return int(struct.unpack_from("=I", answer)[0])


def attributes_of(fd: int) -> Attributes:
    """A filesystem without them has none."""
    flags = project = 0
    try:
        flags = all_flags(fd) & KEPT_FLAGS
        project = FSXATTR.unpack(fcntl.ioctl(fd, FS_IOC_FSGETXATTR, bytes(FSXATTR.size)))[3]
    except OSError as error:
        if error.errno not in (errno.ENOTTY, errno.EOPNOTSUPP, errno.EINVAL):
            raise
    return flags, project


def set_attributes(path: bytes, wanted: Attributes) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if attributes_of(fd)[1] != wanted[1]:
            now = list(FSXATTR.unpack(fcntl.ioctl(fd, FS_IOC_FSGETXATTR, bytes(FSXATTR.size))))
            now[3] = wanted[1]
            fcntl.ioctl(fd, FS_IOC_FSSETXATTR, FSXATTR.pack(*now))
        raw = all_flags(fd)
        flags = (raw & ~KEPT_FLAGS & 0xFFFFFFFF) | wanted[0]
        if flags != raw:
            fcntl.ioctl(fd, FS_IOC_SETFLAGS, struct.pack("=I4x", flags))
    finally:
        os.close(fd)


def clear_locked(root: str) -> int:
    """Take immutable and append-only off everything below ``root`` (the target): rsync can neither
    replace nor remove such a file. -> how many had them"""
    cleared = 0
    stack = [to_bytes(root)]
    while stack:
        path = stack.pop()
        status = os.lstat(path)
        if not (stat.S_ISDIR(status.st_mode) or stat.S_ISREG(status.st_mode)):
            continue
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            flags, project = attributes_of(fd)
        finally:
            os.close(fd)
        if flags & LOCKS:
            set_attributes(path, (flags & ~LOCKS, project))
            cleared += 1
        if stat.S_ISDIR(status.st_mode):
            stack.extend(os.path.join(path, name) for name in os.listdir(path))
    return cleared
