"""Comparing files: read back from both sides."""

import collections
import contextlib
import errno
import os
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Callable, Dict, Iterable, List, Optional, Tuple

from volferry.agent.attributes import Attributes, attributes_of
from volferry.agent.basics import MIB, AgentError, to_bytes, to_text

CHUNK = MIB
READERS = 4
"""Threads that read contents; the disk is the limit, the interpreter lets go of its lock to
read."""
MOST_DIFFERENCES = 100000
SURE_S = 0.1
"""ctime comes from a clock that ticks up to 10 ms behind; what is older than this before the copy
began was not written during it."""


class Comparison:
    """Compares two trees, entry by entry; everything that a program could see is looked at.

    Type, mode, owner, size, times of modification, link targets, device numbers, xattrs with ACLs,
    hard links, the names in each directory and the contents of files. chattr flags and project ids
    are collected on the way (``attributes``): no mover copies them, the agent sets them at the end.
    The target is read from its disk: its pages are dropped from the cache before, once it was
    synced. The source's pages never are: the service needs them."""

    def __init__(self, source: str, target: str, exclude: List[str], nanoseconds: bool) -> None:
        self.source, self.target = to_bytes(source), to_bytes(target)
        self.exclude = {to_bytes(path.strip("/")) for path in exclude}
        self.nanoseconds = nanoseconds
        self.different: "collections.OrderedDict[bytes, str]" = collections.OrderedDict()
        self.attributes: Dict[bytes, Attributes] = {}
        self.entries = self.files = self.bytes = 0
        self.device = os.lstat(self.source).st_dev
        self.links: Dict[int, int] = {}
        self.links_back: Dict[int, int] = {}
        self.names_of: Dict[int, List[bytes]] = {}
        self.lock = threading.Lock()
        self.slots = threading.BoundedSemaphore(READERS * 8)
        self.fault: Optional[BaseException] = None

    # -- what to compare

    def all(self, tick: Callable[[int, int], None]) -> None:
        """Everything in both trees."""
        with ThreadPoolExecutor(READERS) as pool:
            stack = [b""]
            self.entry(b"", pool)
            while stack:
                folder = stack.pop()
                for name in self.names(folder):
                    path = folder + b"/" + name if folder else name
                    if self.entry(path, pool):
                        stack.append(path)
                tick(self.files, self.bytes)
        self.finish()

    def some(self, paths: Iterable[bytes], tick: Callable[[int, int], None]) -> None:
        """These entries, and the names in those that are directories."""
        with ThreadPoolExecutor(READERS) as pool:
            for path in paths:
                if self.entry(path, pool):
                    self.names(path)
                tick(self.files, self.bytes)
        self.finish()

    def finish(self) -> None:
        if self.fault is not None:
            raise self.fault

    def differs(self, path: bytes, why: str) -> None:
        with self.lock:
            self.different.setdefault(path, why)
            if len(self.different) > MOST_DIFFERENCES:
                raise AgentError(
                    "failed", "more than {} entries differ".format(MOST_DIFFERENCES), "", ""
                )

    # -- one directory

    def names(self, folder: bytes) -> List[bytes]:
        """Compare the names in a directory. -> those that only the source or both have"""
        try:
            here = set(os.listdir(join(self.source, folder)))
        except (FileNotFoundError, NotADirectoryError):
            return []  # told by entry(), or gone since
        here = {
            name for name in here if (folder + b"/" + name if folder else name) not in self.exclude
        }
        try:
            there = set(os.listdir(join(self.target, folder)))
        except (FileNotFoundError, NotADirectoryError):
            there = set()
        for name in there - here:
            self.differs(folder + b"/" + name if folder else name, "only in the target")
        for name in here - there:
            self.differs(folder + b"/" + name if folder else name, "missing in the target")
        return sorted(here)

    # -- one entry

    def entry(self, path: bytes, pool: ThreadPoolExecutor) -> bool:
        """Compare one entry; contents later, by a thread of the pool. -> is it a directory"""
        if self.fault is not None:
            raise self.fault
        mine, theirs = lstat(join(self.source, path)), lstat(join(self.target, path))
        if mine is None:
            if theirs is not None:
                self.differs(path, "only in the target")
            return False
        self.entries += 1
        directory = stat.S_ISDIR(mine.st_mode)
        if directory and mine.st_dev != self.device:
            raise AgentError(
                "refused",
                "{} is a subvolume, which is not copied".format(to_text(path)),
                "the copy is incomplete",
            )
        if theirs is None:
            self.differs(path, "missing in the target")
            return directory
        try:
            why = self.metadata(path, mine, theirs)
        except OSError as error:
            why = replaced(error)
        if why:
            self.differs(path, why)
        if directory or (stat.S_ISREG(mine.st_mode) and stat.S_ISREG(theirs.st_mode)):
            self.slots.acquire()
            pool.submit(self.content, path, directory)
        return directory

    def metadata(self, path: bytes, mine: os.stat_result, theirs: os.stat_result) -> str:
        """The first thing that differs, in words with both values; empty when nothing does."""
        kind = stat.S_IFMT(mine.st_mode)
        if kind != stat.S_IFMT(theirs.st_mode):
            return "type {:o}, target {:o}".format(kind, stat.S_IFMT(theirs.st_mode))
        for name in ("st_mode", "st_uid", "st_gid"):
            if getattr(mine, name) != getattr(theirs, name):
                form = "{} {:o}, target {:o}" if name == "st_mode" else "{} {}, target {}"
                return form.format(name[3:], getattr(mine, name), getattr(theirs, name))
        if kind in (stat.S_IFREG, stat.S_IFLNK) and mine.st_size != theirs.st_size:
            return "size {}, target {}".format(mine.st_size, theirs.st_size)
        if kind in (stat.S_IFCHR, stat.S_IFBLK) and mine.st_rdev != theirs.st_rdev:
            return "device number {}, target {}".format(mine.st_rdev, theirs.st_rdev)
        unit = 1 if self.nanoseconds else 1000000000
        if mine.st_mtime_ns // unit != theirs.st_mtime_ns // unit:
            return "mtime {}, target {}".format(mine.st_mtime_ns, theirs.st_mtime_ns)
        here, there = join(self.source, path), join(self.target, path)
        if kind == stat.S_IFLNK and os.readlink(here) != os.readlink(there):
            return "it links elsewhere"
        if kind != stat.S_IFDIR and (mine.st_nlink > 1 or theirs.st_nlink > 1):
            why = self.hard_links(path, mine, theirs)
            if why:
                return why
        return compare_xattrs(here, there)

    def hard_links(self, path: bytes, mine: os.stat_result, theirs: os.stat_result) -> str:
        """Names that are one file in the source must be one file in the target, and the other
        way."""
        if mine.st_nlink > 1:
            self.names_of.setdefault(mine.st_ino, []).append(path)
        if mine.st_nlink != theirs.st_nlink:
            return "{} hard links, target {}".format(mine.st_nlink, theirs.st_nlink)
        there = self.links.setdefault(mine.st_ino, theirs.st_ino)
        back = self.links_back.setdefault(theirs.st_ino, mine.st_ino)
        if there != theirs.st_ino or back != mine.st_ino:
            return "it is a hard link to something else"
        return ""

    def content(self, path: bytes, directory: bool) -> None:
        """In a thread: contents and attributes. A fault is kept for the thread that waits."""
        try:
            if self.fault is None:
                self.open_and_compare(path, directory)
        except OSError as error:
            try:
                self.differs(path, replaced(error))
            except BaseException as fault:  # noqa: BLE001 - as below
                self.fault = fault
        except BaseException as error:  # noqa: BLE001 - raised again by finish()
            self.fault = error
        finally:
            self.slots.release()

    def open_and_compare(self, path: bytes, directory: bool) -> None:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        with contextlib.ExitStack() as stack:
            mine = os.open(join(self.source, path), flags)
            stack.callback(os.close, mine)
            theirs = os.open(join(self.target, path), flags)
            stack.callback(os.close, theirs)
            wanted = attributes_of(mine)
            if wanted != attributes_of(theirs):
                with self.lock:
                    self.attributes[path] = wanted
            if directory:
                return
            os.posix_fadvise(theirs, 0, 0, os.POSIX_FADV_DONTNEED)
            size, why = same_content(mine, theirs)
        with self.lock:
            self.files += 1
            self.bytes += size
        if why:
            self.differs(path, why)


REPLACED = {
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ELOOP,
    errno.ENXIO,
    errno.ESPIPE,
    errno.EINVAL,
}


def replaced(error: OSError) -> str:
    """An entry that became another (or none) between two looks is a difference, to be judged as any
    other; every other fault of reading is no difference but a fault."""
    if error.errno not in REPLACED:
        raise error
    return "it was replaced while it was looked at"


def join(root: bytes, path: bytes) -> bytes:
    return root + b"/" + path if path else root


def lstat(path: bytes) -> Optional[os.stat_result]:
    try:
        return os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None


def xattrs(path: bytes) -> Dict[str, bytes]:
    try:
        names = os.listxattr(path, follow_symlinks=False)
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP:
            return {}
        raise
    found = {}
    for name in names:
        try:
            found[name] = os.getxattr(path, name, follow_symlinks=False)
        except OSError as error:
            if error.errno != errno.ENODATA:  # gone since it was listed
                raise
    return found


def compare_xattrs(here: bytes, there: bytes) -> str:
    mine, theirs = xattrs(here), xattrs(there)
    if mine == theirs:
        return ""
    names = sorted(name for name in set(mine) | set(theirs) if mine.get(name) != theirs.get(name))
    return "xattr {}".format(", ".join(names))


def same_content(mine: int, theirs: int) -> Tuple[int, str]:
    """-> (bytes read from the source, what differs or an empty string). Where both files have a
    hole nothing is read; where only one has, it reads as zeros."""
    here, there = os.fstat(mine), os.fstat(theirs)
    holes = here.st_blocks * 512 < here.st_size and there.st_blocks * 512 < there.st_size
    position = done = 0
    while True:
        if holes:
            data = min(next_data(mine, position), next_data(theirs, position))
            if data >= max(here.st_size, there.st_size):
                break
            position = max(position, data)
        one, other = os.pread(mine, CHUNK, position), os.pread(theirs, CHUNK, position)
        done += len(one)
        if one != other:
            return done, "content near byte {}".format(position)
        position += len(one)
        if len(one) < CHUNK:
            break
    ends = os.fstat(mine).st_size, os.fstat(theirs).st_size
    return done, "" if ends[0] == ends[1] else "size {}, target {}".format(*ends)


def next_data(fd: int, position: int) -> int:
    try:
        return os.lseek(fd, position, os.SEEK_DATA)
    except OSError as error:
        if error.errno == errno.ENXIO:  # only a hole until the end
            return 1 << 62
        if error.errno == errno.EINVAL:
            return position
        raise


def changed_since(source: str, exclude: List[str], since: float) -> List[bytes]:
    """Every entry of the source whose inode changed at or after ``since`` (wall clock, seconds)."""
    root, found = to_bytes(source), []
    left_out = {to_bytes(path.strip("/")) for path in exclude}
    since_ns = int(since * 1000000000)
    stack = [b""]
    while stack:
        path = stack.pop()
        status = lstat(join(root, path))
        if status is None:
            continue
        if status.st_ctime_ns >= since_ns:
            found.append(path)
        if not stat.S_ISDIR(status.st_mode):
            continue
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            with os.scandir(join(root, path)) as entries:
                for entry in entries:
                    below = path + b"/" + entry.name if path else entry.name
                    if below in left_out:
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        stack.append(below)
                    else:
                        with contextlib.suppress(FileNotFoundError):
                            if entry.stat(follow_symlinks=False).st_ctime_ns >= since_ns:
                                found.append(below)
    return found
