"""Which chunks of a disk were written: every completed request, from the kernel's own trace.

A private tracefs instance with ``block:block_rq_complete``, filtered in the kernel to our disks and
to what is not a read, each CPU's ring buffer read in binary. The event is emitted before the
filesystem learns that its write is done, so whoever takes a chunk out of the set and then reads it
sees the write, or finds the chunk in the next set.

Whatever may have been lost is told by ``lost()``, and stays told: the kernel's own counts of
dropped events, marks in the pages, an instance that somebody changed, requests that the trace
cannot place, and, for losses that the kernel does not own up to, the disk's own counters (an eBPF
program on the same event lost some silently, which is how this came to be checked).

Only a disk at the bottom is tracked, of which sectors count from the begin of the whole disk: those
made of other disks (dm, md, zram) complete no requests of their own. Not for several threads.
"""

import errno
import os
import re
import time
from typing import Dict, Iterable, Iterator, List, NamedTuple, Optional, Tuple

from volferry.agent.basics import (
    AgentError,
    Place,
    must,
    names_in,
    one_line,
    read_line,
    read_text,
    to_bytes,
    told_limit,
)
from volferry.agent.chunks import ChunkSet
from volferry.agent.ringbuffer import (
    Alike,
    BlockEvent,
    EventLayout,
    TraceUnreadable,
    parse_alike,
    parse_page,
    up_to_nul,
)

SECTOR = 512
READ = ord("R")
BLOCK_EVENT = "events/block/block_rq_complete"
TRACKER_PREFIX = "volferry-"
OF_TARGETS = "-targets"
TRACKER_NAME = re.compile(r"^{}(.+?)(?:{})?\Z".format(TRACKER_PREFIX, OF_TARGETS))
LOSSES = ("overrun", "commit overrun", "dropped events")
REMOVE_S = 2.0
"""Somebody who only looks into an instance keeps it from being removed as long as he looks."""


class Tracked(NamedTuple):
    size_bytes: int
    chunk_bytes: int


class Drained(NamedTuple):
    events: int
    sectors: Dict[str, int]
    """Written, discarded or zeroed, by ``major:minor``."""


class Written(NamedTuple):
    """What a page tells of one disk."""

    events: int
    sectors: int
    starts: Dict[int, List[int]]
    """By length in sectors, of what lies on the disk."""


class Counters:
    """The sectors that the disk itself has counted, against those that the trace told.

    The kernel emits the event just before it counts the same bytes (blk_update_request()), at
    completion in both cases. So counters that are read before the trace is drained can never be
    ahead of it: if they are, events were lost. A drain in which nothing happened on the disk
    shows their exact distance; it is a few requests at most (those between the first drain and the
    first look at the counters), and never shrinks but by a loss. It grows by what the trace tells
    and the disk does not count, or by all where /sys/block/X/queue/iostats is off.

    Writes, discards and zeroes are counted apart on newer kernels only, so the sum is held.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.base = self.read()
        self.traced = 0
        self.ahead = 0
        self.before = self.base

    def read(self) -> int:
        fields = read_line(self.path).split()
        if len(fields) < 11:
            raise AgentError("doubt", "a tracked disk is gone ({}: {!r})".format(self.path, fields))
        return int(fields[6]) + (int(fields[13]) if len(fields) > 13 else 0)

    def look(self) -> None:
        self.before = self.read()

    def missing(self, sectors: int) -> int:
        """How many sectors the trace lacks, once ``sectors`` more were drained since ``look()``."""
        self.traced += sectors
        ahead = self.traced - (self.before - self.base)
        if ahead < self.ahead:
            return self.ahead - ahead
        if sectors == 0 and self.read() == self.before:
            self.ahead = ahead
        return 0


class TrackedDisk:
    """One of the disks: what the kernel calls it, and how its sectors fall into chunks."""

    def __init__(self, dev: str, tracked: Tracked, sys_path: str) -> None:
        if tracked.chunk_bytes % SECTOR or tracked.chunk_bytes <= 0 or tracked.size_bytes <= 0:
            raise AgentError("usage", "{} cannot be tracked as {}".format(dev, tracked))
        self.dev = dev
        major, _, minor = dev.partition(":")
        self.kernel_dev = int(major) << 20 | int(minor)  # MKDEV(), not the dev_t of user space
        self.folder = "{}/dev/block/{}".format(sys_path, dev)
        self.sectors = tracked.size_bytes // SECTOR
        self.chunk_sectors = tracked.chunk_bytes // SECTOR
        self.chunks = -(-tracked.size_bytes // tracked.chunk_bytes)
        # NVMe takes many ranges in one request. The event then tells the first range's begin and
        # the sum of all lengths, and nothing tells where the others were.
        self.discards_in_one = int(read_line(self.folder + "/queue/max_discard_segments") or 1)

    def written(self, alike: Alike) -> Optional[Written]:
        """What they tell of the disk; None if one has to be looked at by itself."""
        others = alike.operations.strip(b"W")
        if READ in others or (others and self.discards_in_one > 1):
            return None
        starts = {}
        events = sectors = 0
        for (dev, length), found in alike.sectors.items():
            if dev != self.kernel_dev:
                continue
            if not length or max(found) + length > self.sectors:
                return None
            starts[length] = found
            events += len(found)
            sectors += len(found) * length
        return Written(events, sectors, starts)


class Tracker:
    """The instance ``name``; ``devices`` by ``major:minor``, ``buffer_kib`` for each CPU.

    ``drop_every`` leaves out each Nth event as a kernel would that loses some; ``counters`` false
    leaves out the check that would notice it. Both are for tests of what comes after.
    """

    def __init__(
        self,
        place: Place,
        tracefs: str,
        name: str,
        devices: Dict[str, Tracked],
        buffer_kib: int = 4096,
        drop_every: int = 0,
        counters: bool = True,
    ) -> None:
        if not name.startswith(TRACKER_PREFIX) or "/" in name:
            raise AgentError("usage", "an instance is not named '{}'".format(name))
        self.path = "{}/instances/{}".format(tracefs, name)
        self.disks = [
            TrackedDisk(dev, Tracked(*tracked), place.sys)
            for dev, tracked in sorted(devices.items())
        ]
        self.buffer_kib = buffer_kib
        self.drop_every = drop_every
        self.seen = 0
        self._counting = counters
        self._counters: Dict[str, Counters] = {}
        self._pipes: Dict[str, int] = {}
        self._reasons: Dict[str, str] = {}

    @property
    def filter(self) -> str:
        """``rwbs !~ "R*"`` would be refused: the kernel knows only the negation of a whole."""
        which = " || ".join("dev == {}".format(disk.kernel_dev) for disk in self.disks)
        return '({}) && nr_sector > 0 && !(rwbs ~ "R*")'.format(which)

    def new_sets(self) -> Dict[str, ChunkSet]:
        return {disk.dev: ChunkSet(disk.chunks) for disk in self.disks}

    def open(self) -> None:
        """From here on every write is seen. Raises AgentError, and leaves nothing behind then."""
        self._make()
        try:
            self._write("buffer_size_kb", str(self.buffer_kib))
            # A full buffer shall drop what is new and count it, not what was to be read next.
            self._write("options/overwrite", "0")
            self.layout = EventLayout.read(
                self._read(BLOCK_EVENT + "/format"), self._read("events/header_page")
            )
            self._set_filter()
            for cpu in sorted(os.listdir(self.path + "/per_cpu")):  # all that may ever be online
                pipe = "{}/per_cpu/{}/trace_pipe_raw".format(self.path, cpu)
                self._pipes[cpu] = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            self._write(BLOCK_EVENT + "/enable", "1")
            self._check_untouched()
            if self._reasons:
                raise ValueError(self.lost())
            if self._counting:
                self._begin_to_count()
        except (OSError, ValueError) as error:
            self.close()
            raise AgentError(
                "failed", "writes cannot be tracked: {}: {}".format(self.path, error)
            ) from error
        except BaseException:  # a signal's too: the instance would outlive us
            self.close()
            raise

    def drain(self, sets: Dict[str, ChunkSet]) -> Drained:
        """Add all that was written since the last time to the sets, and leave the buffers empty.

        To be called before a buffer is full: one of 4 MiB holds about 80 000 requests. Whether
        anything is missing from the sets is what ``lost()`` says afterwards. The counters can tell
        a single lost request only in a drain without any: at the very end drain twice.
        """
        for counters in self._counters.values():
            counters.look()
        sectors = {disk.dev: 0 for disk in self.disks}
        events = 0
        for cpu in self._pipes:
            for page in self._read_cpu(cpu):
                for disk, written in zip(self.disks, self._written(cpu, page)):
                    events += written.events
                    sectors[disk.dev] += written.sectors
                    for length, starts in written.starts.items():
                        sets[disk.dev].add_spans(starts, length, disk.chunk_sectors)
        for dev, counters in self._counters.items():
            missing = counters.missing(sectors[dev])
            if missing:
                self._lose(
                    "counted " + dev,
                    "{} counted {} sectors more than were traced".format(dev, missing),
                )
        return Drained(events, sectors)

    def lost(self) -> str:
        """Why the sets may lack something; empty when they do not. Said once, it stays."""
        if self._pipes:
            self._check_untouched()
        for cpu in self._pipes:
            self._check_stats(cpu)
        return "; ".join(self._reasons.values())

    def close(self) -> None:
        """Remove the instance. Raises AgentError where somebody keeps it."""
        for fd in self._pipes.values():
            os.close(fd)
        self._pipes = {}
        deadline = time.monotonic() + REMOVE_S
        while True:
            try:
                os.rmdir(self.path)  # which switches its events off
            except FileNotFoundError:
                return
            except OSError as error:
                if time.monotonic() > deadline:
                    raise AgentError(
                        "failed",
                        "the trace {} cannot be removed: {}, still after {}".format(
                            self.path, error.strerror, told_limit(REMOVE_S)
                        ),
                        hint="rmdir {} once nobody reads in it".format(self.path),
                    ) from error
                time.sleep(0.05)
            else:
                return

    @staticmethod
    def leftovers(tracefs: str) -> List[Tuple[str, str]]:
        """The instances that are ours, of living and of dead agents. -> whose, and the path

        ``tracefs`` is empty where none is mounted.
        """
        names = names_in(tracefs + "/instances") if tracefs else []
        found = [match for match in map(TRACKER_NAME.match, names) if match]
        return [(one.group(1), "{}/instances/{}".format(tracefs, one.group())) for one in found]

    @staticmethod
    def remove_stale(tracefs: str, transfer: str) -> Tuple[List[str], List[str]]:
        """Remove the instances of a transfer's dead agents. -> those removed, why others stay

        The kernel keeps an instance as long as one of its pipes is open, so that of a living agent
        is not removed by this.
        """
        removed: List[str] = []
        left: List[str] = []
        for path in [path for whose, path in Tracker.leftovers(tracefs) if whose == transfer]:
            try:
                os.rmdir(path)
                removed.append(path)
            except OSError as error:
                left.append("{}: {}".format(path, error.strerror))
        return removed, left

    # ---- making it -------------------------------------------------------------------------------

    def _make(self) -> None:
        try:
            if os.path.isdir(self.path):
                os.rmdir(self.path)  # of an agent that died
            os.mkdir(self.path)
        except OSError as error:
            raise AgentError(
                "busy" if os.path.isdir(self.path) else "failed",
                "writes cannot be tracked: {}: {}".format(self.path, error.strerror),
            ) from error

    def _set_filter(self) -> None:
        file = BLOCK_EVENT + "/filter"
        try:
            self._write(file, self.filter)
        except OSError as error:
            said = one_line(self._read(file))
            raise AgentError(
                "failed",
                "the kernel refuses the filter of the trace: {} ({})".format(said, error),
            ) from error

    def _begin_to_count(self) -> None:
        """What was traced until here is in nobody's set: who opens a tracker reads afterwards."""
        for cpu in self._pipes:
            for page in self._read_cpu(cpu):
                self._events(cpu, page)
        self._counters = {disk.dev: Counters(disk.folder + "/stat") for disk in self.disks}

    # ---- reading it ------------------------------------------------------------------------------

    def _read_cpu(self, cpu: str) -> Iterator[bytes]:
        """No more pages than the buffer has: on a disk that is faster than we are there would be no
        end."""
        for _ in range(self.buffer_kib * 1024 // self.layout.page_bytes + 2):
            try:
                page = os.read(self._pipes[cpu], self.layout.page_bytes)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno == errno.ENODEV:  # never online so far: it has no buffer yet
                    return
                raise AgentError(
                    "doubt", "the trace of {} cannot be read: {}".format(cpu, error.strerror)
                ) from error
            if not page:
                return
            yield page

    def _written(self, cpu: str, page: bytes) -> List[Written]:
        """For each of the disks; every page but the odd one at once."""
        alike = None if self.drop_every else parse_alike(page, self.layout)
        if alike is not None:
            written = [disk.written(alike) for disk in self.disks]
            if None not in written:
                return written  # type: ignore[return-value]
        events = self._kept(self._events(cpu, page))
        return [self._written_to(disk, events) for disk in self.disks]

    def _events(self, cpu: str, page: bytes) -> List[BlockEvent]:
        try:
            parsed = parse_page(page, self.layout)
        except TraceUnreadable as error:
            self._lose("unreadable", "{}: {}".format(cpu, error))
            return []
        if parsed.missed:
            self._lose("missed " + cpu, "{}: {} events were missed".format(cpu, parsed.missed))
        return parsed.events

    def _kept(self, events: List[BlockEvent]) -> List[BlockEvent]:
        if not self.drop_every:
            return events
        before, self.seen = self.seen, self.seen + len(events)
        return [e for n, e in enumerate(events, before + 1) if n % self.drop_every]

    def _written_to(self, disk: TrackedDisk, events: List[BlockEvent]) -> Written:
        number, end = disk.kernel_dev, disk.sectors
        blurred = disk.discards_in_one > 1
        starts: Dict[int, List[int]] = {}
        found = sectors = 0
        for of, sector, nr_sector, rwbs in events:
            # Checked again: a filter that the kernel did not take lets every disk in.
            if of != number or not nr_sector or rwbs[0] == READ:
                continue
            found += 1
            sectors += nr_sector
            if sector + nr_sector > end or (blurred and b"D" in up_to_nul(rwbs)):
                self._lose_place(disk, sector, nr_sector, up_to_nul(rwbs))
                nr_sector = min(nr_sector, end - sector)
                if nr_sector <= 0:
                    continue
            starts.setdefault(nr_sector, []).append(sector)
        return Written(found, sectors, starts)

    # ---- what may have been lost -----------------------------------------------------------------

    def _lose(self, kind: str, reason: str) -> None:
        self._reasons.setdefault(kind, reason)

    def _lose_place(self, disk: TrackedDisk, sector: int, nr_sector: int, rwbs: bytes) -> None:
        """A command that is passed through (SG_IO) has no sector, and may have written anywhere; a
        disk that has grown has sectors that no chunk stands for."""
        if sector + nr_sector > disk.sectors:
            said = (
                "a request ({}) outside the {} sectors of {}: passed through, or the disk has grown"
            )
            said = said.format(rwbs.decode("ascii", "replace"), disk.sectors, disk.dev)
            self._lose("outside " + disk.dev, said)
        else:
            said = "{} takes discards of several ranges, of which only one is told".format(disk.dev)
            self._lose("discards " + disk.dev, said)

    def _check_stats(self, cpu: str) -> None:
        text = self._read("per_cpu/{}/stats".format(cpu))
        counts = dict(re.findall(r"^([a-z ]+): (\d+)$", text, re.MULTILINE))
        for name in LOSSES:
            if counts.get(name) != "0":
                said = "{}: {}: {}".format(cpu, name, counts.get(name, "not told by this kernel"))
                self._lose(name + cpu, said)

    def _check_untouched(self) -> None:
        """``trace-cmd reset`` and others switch off or clear what they did not make."""
        for file, expected in (
            ("tracing_on", "1"),
            (BLOCK_EVENT + "/enable", "1"),
            (BLOCK_EVENT + "/filter", self.filter),
            ("options/overwrite", "0"),
        ):
            found = self._read(file).strip()
            if found != expected:
                self._lose(file, "{} is '{}', not '{}'".format(file, one_line(found), expected))
        for disk in self.disks:
            sectors = read_line(disk.folder + "/size")
            if sectors != str(disk.sectors):
                said = "{} has {} sectors, not {}".format(disk.dev, sectors or "no", disk.sectors)
                self._lose("size " + disk.dev, said)

    def _read(self, file: str) -> str:
        with open("{}/{}".format(self.path, file)) as opened:
            return opened.read()

    def _write(self, file: str, value: str) -> None:
        with open("{}/{}".format(self.path, file), "w") as opened:
            opened.write(value)


def mounted_tracefs(place: Place) -> str:
    """Where tracefs is mounted; empty where it is not."""
    for folder in ("kernel/tracing", "kernel/debug/tracing"):
        path = "{}/{}".format(place.sys, folder)
        if os.path.isdir(path + "/instances"):
            return path
    return ""


def tracefs_path(place: Place) -> str:
    """Where tracefs is mounted; mounted where it belongs if it is not. Raises AgentError."""
    found = mounted_tracefs(place)
    if found:
        return found
    where_it_belongs = place.sys + "/kernel/tracing"
    must(["mount", "-t", "tracefs", "-o", "nosuid,nodev,noexec", "tracefs", where_it_belongs])
    return where_it_belongs


def why_no_tracking(place: Place, paths: Iterable[str]) -> str:
    """Why the writes to these disks cannot be tracked here; empty when they can.

    Found out by doing it: an instance with the smallest buffers is made for a moment.
    """
    if os.geteuid() != 0:
        return "only root can trace"
    if "[confidentiality]" in read_text(place.sys + "/kernel/security/lockdown"):
        return "the kernel is locked down (confidentiality) and shows no traces"
    devices = {}
    for path in paths:
        try:
            number = os.stat(to_bytes(path)).st_rdev
        except OSError as error:
            return "{}: {}".format(path, error.strerror)
        dev = "{}:{}".format(os.major(number), os.minor(number))
        why = why_not_at_the_bottom(place, path, dev)
        if why:
            return why
        sectors = read_line("{}/dev/block/{}/size".format(place.sys, dev))
        devices[dev] = Tracked(int(sectors or 0) * SECTOR, SECTOR)
    try:
        tracefs = tracefs_path(place)
        for needed in ("instances", BLOCK_EVENT):
            if not os.path.isdir("{}/{}".format(tracefs, needed)):
                return "this kernel's traces have no {}".format(needed)
        trial = Tracker(
            place, tracefs, "{}trial-{}".format(TRACKER_PREFIX, os.getpid()), devices, 8
        )
        trial.open()
        trial.close()
    except AgentError as error:
        return one_line(error.what)
    return ""


def why_not_at_the_bottom(place: Place, path: str, dev: str) -> str:
    """Requests are completed by the disk at the bottom alone; what is made of other disks passes
    them on (dm, md), and what is memory (zram) has none."""
    folder = "{}/dev/block/{}".format(place.sys, dev)
    if not os.path.isdir(folder):
        return "{} is no block device".format(path)
    if os.path.exists(folder + "/partition"):
        return "{} is a partition, and only whole disks are traced".format(path)
    below = os.listdir(folder + "/slaves") if os.path.isdir(folder + "/slaves") else []
    if below:
        return "{} is made of other disks ({})".format(path, ", ".join(sorted(below)))
    scheduler = read_line(folder + "/queue/scheduler")
    if not os.path.isdir(folder + "/mq") and scheduler in ("", "none"):
        return "{} completes no requests, so none are traced".format(path)
    return ""
