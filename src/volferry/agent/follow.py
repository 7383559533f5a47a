"""Keeps targets equal to their sources: notes every write to a source, copies what was written
until little is left, and compares all of it. It obeys nobody; that is the mirror's part.

Why nothing is lost
-------------------
- The kernel tells a write at its completion, before the filesystem learns of it. So a chunk that is
  taken out of the dirty set and then read either has the write, or the write is told later.
- A chunk that differs and is not dirty once it had time to be told is a fault, not a race. One
  round of faults makes everything suspect and is compared again; a second one ends the job.
- Loss of events is noticed (see tracker.py); so is a restart of this process, because it begins
  anew: then everything is suspect, and nothing is called verified until it has been compared again.
"""

import secrets
import threading
import time
from itertools import islice
from typing import Callable, Dict, List, Optional

from volferry.agent.basics import AgentError, Json, Log, Place, Stopped, read_json, write_json
from volferry.agent.blocks import Pair, Throttle, chunk_bytes_for
from volferry.agent.chunks import ChunkSet
from volferry.agent.disks import Disk, resolve
from volferry.agent.jobs import Job
from volferry.agent.tracker import OF_TARGETS, TRACKER_PREFIX, Tracked, Tracker, tracefs_path

DRAIN_S = 0.1
"""A drain costs as much as noting some hundred writes. Who cannot wait for one drains himself."""
CHECK_EVERY = 5
IN_FLIGHT_S = 10.0
"""How long a write may take from its first byte on the disk to its completion."""
BUFFER_KIB = 8192
"""Of the kernel's ring buffer, for each processor: 100 000 writes between two drains."""
WATCH_KIB = 1024
"""The same for the targets: less, as all that a loss costs there is a comparison."""

NOTES = "notes.json"
NOTES_KEPT = 20


def tracker_name(transfer: str) -> str:
    return TRACKER_PREFIX + transfer


class Waiting(Exception):
    """Something else is wanted: put the work down, nothing of it is lost."""


class Side:
    """One source and its target, and what is known of the difference between the two."""

    def __init__(self, ref: Json, source: Disk) -> None:
        self.ref, self.source = ref, source
        self.chunk_bytes = chunk_bytes_for(source.size_bytes)
        count = (source.size_bytes + self.chunk_bytes - 1) // self.chunk_bytes
        self.dirty = ChunkSet(count)
        self.unverified = ChunkSet(count)
        self.target_ref: Json = {}
        self.pair: Optional[Pair] = None
        self.blank = False

    def close(self) -> None:
        """Let go of both disks. Repeatable."""
        pair, self.pair = self.pair, None
        if pair is not None:
            pair.close()

    @property
    def dirty_bytes(self) -> int:
        return self.dirty.count * self.chunk_bytes

    @property
    def unverified_bytes(self) -> int:
        return self.unverified.count * self.chunk_bytes


class Follower:
    tracker: Tracker

    def __init__(self, place: Place, job: Job, request: Json, refs: List[Json]) -> None:
        """``refs``: the disks that are followed."""
        self.place, self.job, self.request = place, job, request
        self.sides = [Side(ref, resolve(place, ref)) for ref in refs]
        self.lock = threading.Lock()
        """Over the trackers and their sets: a thread of its own keeps draining."""
        self.watch: Optional[Tracker] = None
        self.watched: Dict[str, ChunkSet] = {}
        """What is written to the targets while a cutover may show them: should they be hidden again
        they differ there from the sources, which nobody wrote to."""
        self.loss = request.get("suspect") or ""
        self.suspect = False
        self.verify = "full"
        self.compared_all = False
        self.round = 0
        """Grows whenever everything has to be compared from the beginning."""
        self.faults = False
        self.noted: Json = read_json(job.path(NOTES)) or {
            "id": secrets.token_hex(4),
            "count": 0,
            "texts": [],
        }
        """On the disk, because nobody may have asked before this process ends; ``count`` tells
        those who ask which of them they know."""
        self.process_id = secrets.token_hex(4)
        self.passes_made = 0
        self.passes: List[Json] = []
        self.phase = "tracking"
        self.throttle = Throttle(self.puts_down)
        self.events = 0
        self.copy_bytes_s = 0.0
        self.compare_bytes_s = 0.0
        self.dirty_bytes_s = 0.0
        self.ending = False
        self.in_flight_s = float(request.get("in_flight_s") or IN_FLIGHT_S)
        self.progress: Json = {}

    def is_wanted(self) -> bool:
        """Whether somebody waits for the work to be put down."""
        return False

    def puts_down(self) -> bool:
        return bool(self.is_wanted() or self.ending or self.loss)

    # -- what the kernel tells

    def new_tracker(self) -> Tracker:
        return Tracker(
            self.place,
            tracefs_path(self.place),
            tracker_name(self.request["transfer"]),
            {
                side.source.dev: Tracked(side.source.size_bytes, side.chunk_bytes)
                for side in self.sides
            },
            int(self.request.get("buffer_kib") or BUFFER_KIB),
            drop_every=int(self.request.get("drop_every") or 0),
            counters=self.request.get("counters") is not False,
        )

    def keep_draining(self) -> None:
        number = 0
        while not self.ending:
            self.drain(check=number % CHECK_EVERY == 0)
            number += 1
            time.sleep(DRAIN_S)

    def drain(self, check: bool = True) -> int:
        """Everything that has been told so far is in the dirty sets. -> events

        ``check``: whether anything was lost is asked too, which costs a read of some files for each
        processor.
        """
        with self.lock:
            if self.loss:
                return 0
            try:
                drained = self.tracker.drain({side.source.dev: side.dirty for side in self.sides})
                if check:
                    self.loss = self.tracker.lost()
                if self.watch is not None:
                    self.watch.drain(self.watched)
            except Stopped:
                raise
            except Exception as error:  # noqa: BLE001 - whatever it was, events may be gone
                self.loss = "{}: {}".format(type(error).__name__, error)
                return 0
            self.events += drained.events
            return int(drained.events)

    def begin_watch(self) -> None:
        targets = [(side, resolve(self.place, side.target_ref)) for side in self.sides]
        watch = Tracker(
            self.place,
            tracefs_path(self.place),
            tracker_name(self.request["transfer"]) + OF_TARGETS,
            {disk.dev: Tracked(disk.size_bytes, side.chunk_bytes) for side, disk in targets},
            WATCH_KIB,
        )
        watch.open()
        with self.lock:
            self.watch, self.watched = watch, watch.new_sets()

    def end_watch(self) -> None:
        with self.lock:
            watch, self.watch = self.watch, None
        if watch is not None:
            try:
                watch.close()
            except AgentError as error:
                Log.say(error.what)

    def take_watched(self) -> None:
        """Nobody writes to the targets any more: what was written there is to be copied again."""
        with self.lock:
            if self.watch is None:
                self.loss = self.loss or "what was written to the target was not noted"
                return
            while self.watch.drain(self.watched).events:
                pass
            lost = self.watch.lost()
            if lost:
                self.loss = self.loss or "what was written to the target: {}".format(lost)
            for side in self.sides:
                written = self.watched[resolve(self.place, side.target_ref).dev]
                for first, count in written.runs(written.size):
                    last = min(first + count, side.dirty.size) - 1  # the target may be larger
                    if first <= last:
                        side.dirty.add(first, last)

    def check_sources(self) -> None:
        """What answers to their names is still what is tracked. All of sysfs is read for it."""
        for side in self.sides:
            now = resolve(self.place, side.ref)
            if now.size_bytes != side.source.size_bytes or now.dev != side.source.dev:
                raise AgentError(
                    "doubt",
                    "the source is now {} with {} bytes, it was {} with {}".format(
                        now.path, now.size_bytes, side.source.path, side.source.size_bytes
                    ),
                    "the source stays the live side; the target is not complete",
                )

    def take_loss(self) -> None:
        """Events were lost: begin to track anew, then everything may differ. A source that has gone
        or has another size is a loss as well."""
        if not self.loss:
            return
        self.check_sources()
        with self.lock:
            why, self.loss = self.loss, ""
            self.tracker.close()
            self.tracker = self.new_tracker()
            self.tracker.open()
        self.note("everything is compared again: {}".format(why))
        self.suspect = True
        self.compare_everything()

    def compare_everything(self) -> None:
        self.compared_all = False
        self.round += 1
        for side in self.sides:
            everything = ChunkSet(side.dirty.size)
            everything.add_all()
            side.unverified = side.pair.free(everything) if side.pair is not None else everything

    @property
    def notes(self) -> List[str]:
        texts: List[str] = self.noted["texts"]
        return texts

    def note(self, text: str) -> None:
        Log.say(text)
        self.noted = {
            "id": self.noted["id"],
            "count": self.noted["count"] + 1,
            "texts": [*self.notes, text][-NOTES_KEPT:],
        }
        try:
            write_json(self.job.path(NOTES), self.noted)
        except OSError as error:  # a full root disk is no reason to lose what is tracked
            Log.say("the note could not be kept: {}".format(error))

    # -- passes

    def tick(self, first: int, count: int, length: int) -> None:
        if self.puts_down():
            raise Waiting()
        self.progress["done_bytes"] += length
        self.job.report(self.phase, **self.told())

    def one_pass(self, throttle: Throttle) -> None:
        result = self.new_pass()
        began = time.monotonic()
        for side in self.sides:
            with self.lock:
                work = side.pair.free(side.dirty.take())  # type: ignore[union-attr]
            result["dirty_bytes"] += work.count * side.chunk_bytes
            self.copy(side, work, result, throttle, self.tick)
        copied = time.monotonic()
        result["copy_s"] = round(copied - began, 3)
        round_before = self.round
        self.compare_all(result, throttle, self.tick)
        self.drain()
        ended = time.monotonic()
        result["compare_s"] = round(ended - copied, 3)
        with self.lock:
            dirty = sum(side.dirty_bytes for side in self.sides)
        self.dirty_bytes_s = dirty / max(ended - began, 0.001)
        if self.round == round_before and not self.loss:
            self.compared_all, self.suspect = True, False
        self.keep_pass(result)

    def keep_pass(self, result: Json) -> None:
        self.passes_made = result["number"]
        self.passes = [*self.passes, result][-50:]

    def new_pass(self) -> Json:
        number = self.passes_made + 1
        return {
            "id": "{}.{}".format(self.process_id, number),
            "number": number,
            "final": False,
            "started_at": time.time(),
            "dirty_bytes": 0,
            "bytes_copied": 0,
            "chunks_copied": 0,
            "bytes_compared": 0,
            "chunks_compared": 0,
            "changed_meanwhile": 0,
            "healed": 0,
            "differed_after_loss": 0,
            "copy_s": 0.0,
            "compare_s": 0.0,
            "boot_id": self.place.boot_id,
        }

    def copy(
        self,
        side: Side,
        work: ChunkSet,
        result: Json,
        throttle: Throttle,
        tick: Callable[[int, int, int], None],
    ) -> None:
        assert side.pair is not None
        self.phase = "copying"
        self.progress = {"done_bytes": 0, "total_bytes": work.count * side.chunk_bytes}
        began, spent = time.monotonic(), throttle.spent_s

        def done(first: int, count: int, length: int) -> None:
            work.discard(first, first + count - 1)
            if self.verify != "none":
                side.unverified.add(first, first + count - 1)
            result["chunks_copied"] += count
            tick(first, count, length)

        total = work.count * side.chunk_bytes
        try:
            mover = side.pair.fill if side.blank else side.pair.copy
            result["bytes_copied"] += mover(work, throttle, done)
            side.blank = False
            side.pair.target.flush()
        finally:
            with self.lock:
                side.dirty.update(work)  # what an order kept from being done
        if total >= 64 * side.chunk_bytes:
            spent = throttle.spent_s - spent or time.monotonic() - began
            self.copy_bytes_s = total / max(spent, 1e-6)

    def compare_all(
        self, result: Json, throttle: Throttle, tick: Callable[[int, int, int], None]
    ) -> None:
        """Compare what has not been compared since its last write; what differs is judged."""
        for side in self.sides:
            assert side.pair is not None
            self.phase = "comparing"
            total = side.unverified_bytes
            self.progress = {"done_bytes": 0, "total_bytes": total}
            differing = ChunkSet(side.unverified.size)
            spent = throttle.spent_s

            def done(first: int, count: int, length: int, side: Side = side) -> None:
                side.unverified.discard(first, first + count - 1)
                result["chunks_compared"] += count
                result["bytes_compared"] += length
                tick(first, count, length)

            try:
                side.pair.compare(side.unverified, throttle, done, differing.add_one)
            finally:
                side.unverified.update(differing)
            if total >= 64 * side.chunk_bytes:
                self.compare_bytes_s = total / max(throttle.spent_s - spent, 1e-6)
            self.judge(side, differing, result)

    def judge(self, side: Side, differing: ChunkSet, result: Json) -> None:
        """What is dirty differs because it was written meanwhile, and is copied by the next pass.
        A write may be under way still: it gets time to be told."""
        assert side.pair is not None
        if self.suspect:
            with self.lock:
                side.dirty.update(differing)
            result["differed_after_loss"] += differing.count
            return
        ends = time.monotonic() + self.in_flight_s
        left = differing
        while left.count:
            if self.is_wanted():
                raise Waiting()
            self.drain()
            left = self.still_differing(side, left)
            if not left.count or time.monotonic() >= ends or self.loss:
                break
            time.sleep(0.1)
        result["changed_meanwhile"] += differing.count - left.count
        if not left.count or self.loss:
            return
        where = ", ".join(str(first * side.chunk_bytes) for first, _ in islice(left.runs(1), 5))
        what = "{} chunks of {} bytes of {} differed though nothing told of a write (at {})".format(
            left.count, side.chunk_bytes, side.source.path, where
        )
        if self.faults:
            raise AgentError(
                "failed",
                "verification failed: " + what,
                "the source stays the live side and is complete; the target cannot be trusted",
                "roll back, and use --method rsync",
            )
        result["healed"] += left.count
        with self.lock:
            side.dirty.update(left)
        self.note(what + "; they are copied again and everything is compared once more")
        self.faults = True
        self.compare_everything()

    def still_differing(self, side: Side, chunks: ChunkSet) -> ChunkSet:
        """Those that differ now and of which no write was told."""
        assert side.pair is not None
        untold, found = ChunkSet(chunks.size), ChunkSet(chunks.size)
        untold.update(chunks)
        with self.lock:
            untold.subtract(side.dirty)
        for chunk, _ in untold.runs(1):
            if side.pair.differs(chunk):
                found.add_one(chunk)
        return found

    # -- what is said of it

    def figures(self) -> Json:
        with self.lock:
            dirty = sum(side.dirty_bytes for side in self.sides)
        noted = self.noted
        return {
            "phase": self.phase,
            "passes": self.passes[-5:],
            "dirty_bytes": dirty,
            "dirty_bytes_s": round(self.dirty_bytes_s, 1),
            "unverified_bytes": sum(side.unverified_bytes for side in self.sides),
            "copy_bytes_s": round(self.copy_bytes_s, 1),
            "compare_bytes_s": round(self.compare_bytes_s, 1),
            "holds": [side.pair.target.path for side in self.sides if side.pair is not None],
            "verified": self.is_verified,
            "verify": self.verify,
            "events": self.events,
            "notes": noted["texts"],
            "notes_id": noted["id"],
            "notes_count": noted["count"],
            "chunk_bytes": [side.chunk_bytes for side in self.sides],
        }

    @property
    def is_verified(self) -> bool:
        """Every chunk has been compared since its last write, but for what is dirty or waits for
        its comparison."""
        return self.compared_all and not self.suspect and not self.loss

    def told(self) -> Json:
        return {"what": self.phase, **self.progress, "figures": self.figures()}

    def tell(self) -> None:
        self.progress = {}
        self.job.report(self.phase, **self.told())
