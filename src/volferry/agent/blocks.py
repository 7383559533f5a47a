"""Copying and comparing blocks: one source disk, one target disk, O_DIRECT on both.

What makes the target recognisable is withheld until the commit: a head and a tail of the disk, with
the partition table, superblocks, LVM labels, LUKS headers, md and ZFS labels, are kept zero there
and out of every pass. Writing them (``unmask``) is the commit on the target's side.
"""

import contextlib
import errno
import fcntl
import io
import mmap
import os
import stat
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Tuple

try:
    import ctypes
except ImportError:  # a minimal Python has none; comparing is slower then
    ctypes = None  # type: ignore[assignment]

from volferry.agent.basics import MIB, AgentError, to_bytes, told_limit
from volferry.agent.chunks import ChunkSet
from volferry.agent.disks import Disk

BLKRRPART = 0x125F  # linux/fs.h
REREAD_S = 10.0
"""Programs of udev have a partition open for moments."""
LEAST_CHUNK = 4 * 1024
"""What filesystems allocate by. A page of a database is 8 or 16 KiB but lies anywhere: 1024 of
16 KiB lay in 2144 chunks of 16 KiB, 34 MiB to be copied, and in 4528 of 4 KiB, 18 MiB."""
MOST_CHUNKS = 1 << 27
"""A set of that many is 16 MiB: 512 GiB in chunks of 4 KiB. A larger disk has larger chunks."""
TRANSFER = MIB
"""Bytes of one read or write, at most."""
HANDS = 16
"""Transfers under way at once where nobody else needs the disk: a volume behind a network answers
each after its latency, so one at a time leaves most of its rate unused. 1024 scattered chunks took
176 ms one after the other, 109 by four, 40 by eight and 47 by 16, on loop devices and two cores,
where there is no latency to speak of."""
FEW_HANDS = 4
"""The same where somebody else needs the disk, and so many whole transfers are in a batch."""
BATCH = 256
"""Runs of chunks that the hands share before anybody is told of them, at most."""

KEPT = 16 * MIB
"""Of what is copied last, for its comparison."""

NOTHING_COPIED = "nothing was copied; the source is untouched and stays the live side"

HEAD = TAIL = MIB
HEAD_LUKS = 8 * MIB
"""LUKS2 keeps a second header behind its first, 4 MiB into the disk at most (LUKS2 specification,
2.1); everything else that identifies a disk lies in the first and last MiB: GPT in 34 sectors at
either end, LVM in the first 4, md 0.90 in the last 128 KiB, btrfs at 64 KiB, ZFS in 512 KiB."""


def chunk_bytes_for(size_bytes: int) -> int:
    chunk = LEAST_CHUNK
    while (size_bytes + chunk - 1) // chunk > MOST_CHUNKS:
        chunk *= 2
    return chunk


class DiskFile:
    """A disk opened past the page cache. Reads and writes are whole or an AgentError."""

    def __init__(self, path: str, size_bytes: int, write: bool = False) -> None:
        self.path, self.size_bytes = path, size_bytes
        flags = os.O_DIRECT | os.O_CLOEXEC | (os.O_RDWR if write else os.O_RDONLY)
        if write and stat.S_ISBLK(os.stat(to_bytes(path)).st_mode):
            # Held by us: nobody can mount it, or put a device on top of it, while we write to it.
            flags |= os.O_EXCL
        try:
            fd = os.open(to_bytes(path), flags)
        except OSError as error:
            if error.errno == errno.EBUSY:
                raise AgentError(
                    "doubt",
                    "the target {} is in use by somebody".format(path),
                    NOTHING_COPIED,
                    "lsblk {} shows what stands on it or where it is mounted".format(path),
                )
            raise
        self.file = io.FileIO(fd, "r+" if write else "r")
        self.position = threading.Lock()
        """Held by whoever has moved the file's position."""

    def read(self, offset: int, into: memoryview) -> None:
        self.whole("read", self.read_some, offset, into)

    def write(self, offset: int, content: memoryview) -> None:
        self.whole("write", self.write_some, offset, content)

    if hasattr(os, "preadv"):  # since Python 3.7

        def read_some(self, offset: int, into: memoryview) -> int:
            return os.preadv(self.file.fileno(), [into], offset)

        def write_some(self, offset: int, content: memoryview) -> int:
            return os.pwritev(self.file.fileno(), [content], offset)

    else:

        def read_some(self, offset: int, into: memoryview) -> int:
            with self.position:
                self.file.seek(offset)
                return self.file.readinto(into)

        def write_some(self, offset: int, content: memoryview) -> int:
            with self.position:
                self.file.seek(offset)
                return self.file.write(content) or 0

    def whole(
        self, verb: str, work: Callable[[int, memoryview], int], offset: int, view: memoryview
    ) -> None:
        try:
            done = 0
            while done < len(view):
                step = work(offset + done, view[done:])
                if not step:
                    raise OSError(errno.EIO, "the disk ended")
                done += step
        except OSError as error:
            raise AgentError(
                "failed",
                "cannot {} {} bytes at offset {} of {}: {}".format(
                    verb, len(view), offset, self.path, error.strerror
                ),
                "nothing of the source was changed and it stays the live side",
                "look at the guest's kernel log for that disk",
            )

    def flush(self) -> None:
        """On the disk, not only in its cache."""
        try:
            os.fsync(self.file.fileno())
        except OSError as error:
            raise AgentError(
                "failed",
                "{} could not flush what was written to it: {}".format(self.path, error.strerror),
                "nothing of the source was changed and it stays the live side",
            )

    def reread_partitions(self) -> None:
        """Let the kernel read the partition table again. A disk without is no fault."""
        deadline = time.monotonic() + REREAD_S
        while True:
            try:
                fcntl.ioctl(self.file.fileno(), BLKRRPART)
                return
            except OSError as error:
                if error.errno in (errno.EINVAL, errno.ENOTTY):
                    return
                if error.errno != errno.EBUSY or time.monotonic() > deadline:
                    busy = error.errno == errno.EBUSY
                    raise AgentError(
                        "failed",
                        "the kernel does not read the partitions of {} again: {}{}".format(
                            self.path,
                            error.strerror,
                            ", still after " + told_limit(REREAD_S) if busy else "",
                        ),
                    )
            time.sleep(0.02)  # a probing program has a partition open

    def close(self) -> None:
        self.file.close()


class Throttle:
    """Holds work down to a rate, and lets the guest's own writes go first."""

    def __init__(self, hurries: Callable[[], bool] = lambda: False) -> None:
        self.hurries = hurries
        """Whether somebody waits: then a pause is left for later."""
        self.bytes_s: Optional[int] = None
        self.share: Callable[[], float] = lambda: 1.0
        """Part of the time that work may take now, above 0."""
        self.owed_s = 0.0
        self.spent_s = 0.0
        """What the transfers took, without the pauses."""
        self.alone = True
        """Nobody else needs the disk, and the rate has no limit."""

    def pay(self, size: int, took_s: float) -> None:
        """Sleep for what ``size`` bytes in ``took_s`` seconds were too fast."""
        self.spent_s += took_s
        share = self.share()
        self.alone = share > ALONE and not self.bytes_s
        pause = took_s * (1.0 / share - 1.0)
        # Never below 4 MiB/s because of the guest's writes: a disk that is always busy would never
        # be done (DRBD's c-min-rate is 250 KiB/s to 4 MiB/s for the same reason).
        pause = min(pause, max(0.0, size / float(LEAST_BYTES_S) - took_s))
        if self.bytes_s:
            pause = max(pause, size / float(self.bytes_s) - took_s)
        self.owed_s += pause
        limit = self.bytes_s
        while self.owed_s > 0.002 and not self.hurries():
            began = time.monotonic()
            time.sleep(min(self.owed_s, PAUSE_S))
            self.owed_s -= time.monotonic() - began
            if self.bytes_s != limit:  # what was owed by another limit is owed no more
                self.owed_s = 0.0


PAUSE_S = 0.2
LEAST_BYTES_S = 4 * MIB
ALONE = 0.9


Tick = Callable[[int, int, int], None]
"""Hears of each transfer that is done: first chunk, chunks, bytes. It may raise."""


class Range(NamedTuple):
    offset: int
    length: int


class Compared(NamedTuple):
    bytes: int
    chunks: int


class Pair:
    """A source disk and its target. Chunks are numbered from the start of the source."""

    def __init__(self, source: Disk, target: Disk, head_bytes: int = HEAD) -> None:
        if target.size_bytes < source.size_bytes:
            raise AgentError(
                "refused",
                "the target {} has {} bytes, less than the source's {}".format(
                    target.path, target.size_bytes, source.size_bytes
                ),
                NOTHING_COPIED,
                "a target has to be as large as the source at least (--size)",
            )
        if target.dev == source.dev:
            raise AgentError("doubt", "source and target are the same disk {}".format(source.path))
        self.source_disk, self.target_disk = source, target
        self.size_bytes = source.size_bytes
        self.chunk_bytes = chunk_bytes_for(self.size_bytes)
        self.count = (self.size_bytes + self.chunk_bytes - 1) // self.chunk_bytes
        self.withheld = self.withheld_ranges(head_bytes)
        self.source = DiskFile(source.path, source.size_bytes)
        try:
            self.target = DiskFile(target.path, target.size_bytes, write=True)
        except BaseException:  # a signal's too: nobody else knows of the open disk
            self.source.close()
            raise
        self.hands = [Hand() for _ in range(HANDS)]
        self.zeros = Hand()
        self.workers = ThreadPoolExecutor(HANDS - 1)
        self.kept: Optional[Dict[int, bytes]] = None
        """By offset, what was read from a source that nobody writes to: with it a comparison reads
        the target alone."""
        self.kept_bytes = 0

    def new_workers(self) -> None:
        """A thread keeps the priority that its maker had when it was made."""
        self.workers.shutdown()
        self.workers = ThreadPoolExecutor(HANDS - 1)

    def close(self) -> None:
        self.workers.shutdown()
        self.source.close()
        self.target.close()
        for hand in [*self.hands, self.zeros]:
            hand.close()

    # -- what is withheld

    def withheld_ranges(self, head_bytes: int) -> List[Range]:
        """The head and the tail, in whole chunks; tail first, as they are written at the commit."""
        head = min(head_bytes, self.size_bytes)
        start = max(head, (self.size_bytes - TAIL) // self.chunk_bytes * self.chunk_bytes)
        tail = self.size_bytes - start
        return ([Range(start, tail)] if tail > 0 else []) + [Range(0, head)]

    def free(self, chunks: ChunkSet) -> ChunkSet:
        """Without what is withheld, which no pass touches."""
        for part in self.withheld:
            chunks.discard(
                part.offset // self.chunk_bytes,
                (part.offset + part.length - 1) // self.chunk_bytes,
            )
        return chunks

    def everything(self) -> ChunkSet:
        chunks = ChunkSet(self.count)
        chunks.add_all()
        return self.free(chunks)

    def hidden_ranges(self) -> List[Range]:
        """What is zero on a masked target: what is withheld, and the end of a larger target."""
        return self.withheld + beyond_source(self.size_bytes, self.target_disk.size_bytes)

    def mask(self) -> None:
        put_zeros(self.target, self.hidden_ranges())

    def unmask(self, content: bytes) -> None:
        put_withheld(self.target, self.withheld, content)

    def read_withheld(self) -> bytes:
        """What was withheld as it is on the source now, in the order in which it is written."""
        return get_withheld(self.source, self.withheld)

    # -- passes

    def extent(self, first: int, count: int) -> Tuple[int, int]:
        offset = first * self.chunk_bytes
        return offset, min(count * self.chunk_bytes, self.size_bytes - offset)

    @property
    def most(self) -> int:
        return TRANSFER // self.chunk_bytes

    def copy(self, chunks: ChunkSet, throttle: Throttle, tick: Tick) -> int:
        """Source to target. -> bytes written."""
        return sum(self.passing(chunks, throttle, tick, self.copy_run))

    def fill(self, chunks: ChunkSet, throttle: Throttle, tick: Tick) -> int:
        """Like ``copy`` for a target that was made blank: zeros are written only where it does not
        have them, so that a back end which is sparse stays so. -> bytes written."""
        return sum(self.passing(chunks, throttle, tick, self.fill_run))

    def keep_what_is_copied(self, value: bool) -> None:
        self.kept, self.kept_bytes = {} if value else None, 0

    def compare(
        self,
        chunks: ChunkSet,
        throttle: Throttle,
        tick: Tick,
        differ: Callable[[int], None],
    ) -> Compared:
        """Read both sides. ``differ`` hears of each chunk that is not the same, before ``tick``."""
        size = number = 0

        def told(first: int, count: int, length: int) -> None:
            nonlocal size, number
            size, number = size + length, number + count
            tick(first, count, length)

        for differing in self.passing(chunks, throttle, told, self.compare_run):
            for chunk in differing:
                differ(chunk)
        return Compared(size, number)

    def passing(
        self,
        chunks: ChunkSet,
        throttle: Throttle,
        tick: Tick,
        work: "Callable[[Hand, int, int], Any]",
    ) -> Iterator[Any]:
        """What ``work`` gave for each run of neighbours, of which ``tick`` then hears.

        A batch is shared among the hands and ended by all before anybody hears of it. One that
        fails is not told of at all: what it did is done again."""
        for runs in self.batches(chunks, throttle):
            began = time.monotonic()
            extents = [self.extent(first, count) for first, count in runs]
            hands = min(len(runs), HANDS if throttle.alone else FEW_HANDS)
            waiting = [
                self.workers.submit(self.share_of, work, hand, runs[hand::hands])
                for hand in range(1, hands)
            ]
            try:
                shares = [self.share_of(work, 0, runs[0::hands])]
            finally:
                for one in waiting:
                    one.exception()  # waits: the memory is used until then
            shares += [one.result() for one in waiting]
            for number in range(len(runs)):
                yield shares[number % hands][number // hands]
            for (first, count), (_, length) in zip(runs, extents):
                tick(first, count, length)
            throttle.pay(sum(length for _, length in extents), time.monotonic() - began)

    def share_of(
        self, work: "Callable[[Hand, int, int], Any]", hand: int, runs: List[Tuple[int, int]]
    ) -> List[Any]:
        return [work(self.hands[hand], first, count) for first, count in runs]

    def batches(self, chunks: ChunkSet, throttle: Throttle) -> Iterator[List[Tuple[int, int]]]:
        """Runs that are worked on at once: a few TRANSFERs in all at most, or one."""
        batch: List[Tuple[int, int]] = []
        size = 0
        for first, count in chunks.runs(self.most):
            most = FEW_HANDS * self.most if throttle.alone else self.most
            if batch and (size + count > most or len(batch) == BATCH):
                yield batch
                batch, size = [], 0
            batch.append((first, count))
            size += count
        if batch:
            yield batch

    def copy_run(self, hand: "Hand", first: int, count: int) -> int:
        offset, length = self.extent(first, count)
        self.source.read(offset, hand.mine[:length])
        if self.kept is not None and self.kept_bytes + length <= KEPT:
            self.kept_bytes += length
            self.kept[offset] = bytes(hand.mine[:length])
        self.target.write(offset, hand.mine[:length])
        return length

    def fill_run(self, hand: "Hand", first: int, count: int) -> int:
        offset, length = self.extent(first, count)
        self.source.read(offset, hand.mine[:length])
        if same(hand.mine[:length], self.zeros.mine[:length]):
            self.target.read(offset, hand.theirs[:length])
            if same(hand.theirs[:length], self.zeros.mine[:length]):
                return 0
        self.target.write(offset, hand.mine[:length])
        return length

    def compare_run(self, hand: "Hand", first: int, count: int) -> List[int]:
        """-> the chunks that are not the same."""
        offset, length = self.extent(first, count)
        kept = self.kept.get(offset, b"") if self.kept is not None else b""
        if len(kept) == length:
            hand.mine[:length] = kept
        else:
            self.source.read(offset, hand.mine[:length])
        self.target.read(offset, hand.theirs[:length])
        if hand.same(0, length):
            return []
        step = self.chunk_bytes
        return [
            first + at // step
            for at in range(0, length, step)
            if not hand.same(at, min(step, length - at))
        ]

    def differs(self, chunk: int) -> bool:
        return bool(self.compare_run(self.hands[0], chunk, 1))


class Hand:
    """Memory for one transfer from each side, placed as O_DIRECT wants it; zeros at first."""

    def __init__(self) -> None:
        self.buffers = [mmap.mmap(-1, TRANSFER), mmap.mmap(-1, TRANSFER)]
        self.mine, self.theirs = [memoryview(buffer) for buffer in self.buffers]

    def same(self, at: int, length: int) -> bool:
        return same(self.mine[at : at + length], self.theirs[at : at + length])

    def close(self) -> None:
        for view, buffer in zip((self.mine, self.theirs), self.buffers):
            free_memory(view, buffer)


if ctypes is not None:
    memcmp = ctypes.CDLL(None).memcmp
    memcmp.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]

    def same(mine: memoryview, theirs: memoryview) -> bool:
        """1 MiB takes this 0.03 ms, copies 1.6 ms, and memoryviews, which Python compares byte by
        byte, 3.0 ms."""
        one = (ctypes.c_char * len(mine)).from_buffer(mine)
        other = (ctypes.c_char * len(theirs)).from_buffer(theirs)
        return len(mine) == len(theirs) and memcmp(one, other, len(mine)) == 0

else:

    def same(mine: memoryview, theirs: memoryview) -> bool:
        return bytes(mine) == bytes(theirs)


@contextlib.contextmanager
def aligned_memory() -> Iterator[memoryview]:
    """For one transfer past the page cache; zeros at first."""
    buffer = mmap.mmap(-1, TRANSFER)
    view = memoryview(buffer)
    try:
        yield view
    finally:
        free_memory(view, buffer)


def free_memory(view: memoryview, buffer: mmap.mmap) -> None:
    """A transfer that failed still refers to its part, by the error that is on its way up: then it
    is freed with the error, which is what has to be told."""
    view.release()
    with contextlib.suppress(BufferError):
        buffer.close()


def beyond_source(size_bytes: int, target_bytes: int) -> List[Range]:
    """The last MiB of a target that is larger than its source: a snapshot of a larger disk may have
    left something there that is recognised, or somebody may have moved a partition table to it."""
    if target_bytes <= size_bytes:
        return []
    start = max(size_bytes, target_bytes - TAIL)
    return [Range(start, target_bytes - start)]


def get_withheld(disk: DiskFile, ranges: List[Range]) -> bytes:
    """What ``put_withheld`` writes, in the same order."""
    parts = []
    with aligned_memory() as view:
        for offset, length in pieces(ranges):
            disk.read(offset, view[:length])
            parts.append(bytes(view[:length]))
    return b"".join(parts)


def put_zeros(target: DiskFile, ranges: List[Range]) -> None:
    """Nothing recognises the target any more: the head goes first. Repeatable."""
    with aligned_memory() as zeros:
        for offset, length in pieces(reversed(ranges)):
            target.write(offset, zeros[:length])
    target.flush()
    target.reread_partitions()


def put_withheld(target: DiskFile, ranges: List[Range], content: bytes) -> None:
    """Write what was withheld and read it back, the start of the disk last: before it is there
    nothing is recognised. Repeatable."""
    parts: List[Tuple[int, int, int]] = []
    at = 0
    for offset, length in pieces(ranges):
        parts.append((offset, length, at))
        at += length
    with aligned_memory() as view:
        for offset, length, at in sorted(parts, reverse=True):
            view[:length] = content[at : at + length]
            target.write(offset, view[:length])
        target.flush()
        for offset, length, at in parts:
            target.read(offset, view[:length])
            if bytes(view[:length]) != content[at : at + length]:
                raise AgentError(
                    "failed",
                    "verification failed: {} bytes at offset {} of the target {} are not what was "
                    "written".format(length, offset, target.path),
                    "the source is complete and untouched",
                )
    target.reread_partitions()


def pieces(ranges: Any) -> Iterator[Tuple[int, int]]:
    """(offset, length) of transfers that make up the ranges."""
    for part in ranges:
        for offset in range(part.offset, part.offset + part.length, TRANSFER):
            yield offset, min(TRANSFER, part.offset + part.length - offset)


DEEP = 4.0
"""Writes under way at once on a disk that has nothing to spare."""


class Activity:
    """How much of the time the copy may take, by what else the guest does on the source disk.

    The kernel adds the milliseconds of every write to ``stat`` (fields 7 and 11 of
    Documentation/block/stat.rst), so their growth over time is how many writes were under way at
    once. We write nothing to the source: all of them are somebody else's.
    """

    def __init__(self, stat_paths: List[str], pace: float) -> None:
        self.paths, self.pace = stat_paths, pace
        self.last = (time.monotonic(), self.write_ms())
        self.depth = 0.0

    def write_ms(self) -> int:
        total = 0
        for path in self.paths:
            with contextlib.suppress(OSError), open(path) as file:
                fields = file.read().split()
                total += int(fields[7]) + (int(fields[16]) if len(fields) > 16 else 0)
        return total

    def share(self) -> float:
        """1 on an idle disk, ``pace`` where ``DEEP`` writes are always under way.

        One that is always under way is a service that waits for its own disk and leaves room beside
        it (a database's log): it is given half of the time, not all but 5 %."""
        now, ms = time.monotonic(), self.last[1]
        if now - self.last[0] >= 0.1:
            ms = self.write_ms()
            depth = (ms - self.last[1]) / 1000.0 / (now - self.last[0])
            self.depth = 0.5 * self.depth + 0.5 * max(0.0, depth)
            self.last = (now, ms)
        return float(self.pace ** min(1.0, self.depth / DEEP))
