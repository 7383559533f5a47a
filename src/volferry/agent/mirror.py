"""Job mirror: a live block copy. It notes every write to the source from before the snapshot on,
copies what was written until little is left, compares all of it, and answers on its socket.

Why nothing is lost
-------------------
- The kernel tells a write at its completion, before the filesystem learns of it. So a chunk that is
  taken out of the dirty set and then read either has the write, or the write is told later.
- A chunk that differs and is not dirty once it had time to be told is a fault, not a race. One
  round of faults makes everything suspect and is compared again; a second one ends the job.
- Loss of events is noticed (see tracker.py); so is a restart of this process, because it begins
  anew: then everything is suspect, and nothing is called verified until it has been compared again.

Orders (JSON lines on the socket; those marked * wait for the end of the transfer at hand)
------------------------------------------------------------------------------------------
``pairs``*    {pairs: [{source, target}], blank: bool, verify, luks: bool} begin: mask the targets
``set``       {bwlimit_bytes_s: int|null, pace: float?}
``figures``   what ``status`` has as progress.figures, as it is now
``ready``*    a cutover is about to begin: finish what is at hand, do nothing but note writes
``final``*    {deadline_s, save: bool} nobody writes any more: copy the rest and compare it
``unmask``*   write what was withheld, read it back, let go of the targets
``mask``*     the cutover was taken back: hide the targets and go on
``standby``*  the target is the live side: note its writes and keep the source current. After it
              ``ready``, ``final`` and ``unmask`` are for the way back
``stop``*     end
"""

import contextlib
import hashlib
import os
import queue
import threading
import time
from itertools import islice
from typing import Any, Callable, Dict, Iterator, List, Optional

from volferry.agent.basics import (
    AgentError,
    Json,
    Log,
    Place,
    Stopped,
    read_json,
    write_atomically,
    write_json,
)
from volferry.agent.blocks import (
    HEAD,
    HEAD_LUKS,
    NOTHING_COPIED,
    Activity,
    DiskFile,
    Pair,
    Throttle,
    chunk_bytes_for,
    get_withheld,
    put_withheld,
    put_zeros,
)
from volferry.agent.chunks import ChunkSet
from volferry.agent.disks import Disk, blkid, resolve, set_disk_read_only, wait_until_free
from volferry.agent.install import publish
from volferry.agent.jobs import Job, lower_priority, raise_priority, unlink_durably
from volferry.agent.listen import Listener
from volferry.agent.tracker import TRACKER_PREFIX, Tracked, Tracker, tracefs_path

ORDERS = "orders.json"
DRAIN_S = 0.025
CHECK_EVERY = 20
BREATH_S = 0.5
"""Between two passes: what is written over and over is then copied once."""
IN_FLIGHT_S = 10.0
"""How long a write may take from its first byte on the disk to its completion."""
DEFAULT_PACE = 0.05
BUFFER_KIB = 8192
"""Of the kernel's ring buffer, for each processor: 100 000 writes between two drains."""
WATCH_KIB = 1024
"""The same for the targets: less, as all that a loss costs there is a comparison."""


def tracker_name(transfer: str) -> str:
    return TRACKER_PREFIX + transfer


class Waiting(Exception):
    """An order waits: put the work down, nothing of it is lost."""


class Order:
    def __init__(self, message: Json) -> None:
        self.message = message
        self.done = threading.Event()
        self.result: Any = None
        self.error: Optional[BaseException] = None


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


class Mirror:
    def __init__(self, place: Place, job: Job, request: Json) -> None:
        self.place, self.job, self.request = place, job, request
        self.kept: Optional[Json] = read_json(job.path(ORDERS))
        """The order ``pairs``, which a restarted process has to find again."""
        refs = request["sources"]
        if self.kept is not None:  # the roles may have been swapped since
            refs = [pair["source"] for pair in self.kept["pairs"]]
        self.sides = [Side(ref, resolve(place, ref)) for ref in refs]
        self.lock = threading.Lock()
        """Over the trackers and their sets: a thread of its own keeps draining."""
        self.watch: Optional[Tracker] = None
        self.watched: Dict[str, ChunkSet] = {}
        """What is written to the targets while a cutover may show them: should they be hidden again
        they differ there from the sources, which nobody wrote to."""
        self.orders: "queue.Queue[Order]" = queue.Queue()
        self.loss = request.get("suspect") or ""
        self.suspect = False
        self.verify = "full"
        self.began_pairs = False
        self.compared_all = False
        self.round = 0
        """Grows whenever everything has to be compared from the beginning."""
        self.faults = False
        self.notes: List[str] = []
        self.passes: List[Json] = []
        self.phase = "tracking"
        self.throttle = Throttle()
        self.pace = DEFAULT_PACE
        self.events = 0
        self.copy_bytes_s = 0.0
        self.compare_bytes_s = 0.0
        self.dirty_bytes_s = 0.0
        self.mask_s = 0.0
        self.publish_s = 0.0
        self.ending = False
        self.held = False
        self.proven = False
        """Nobody writes, and source and target are the same."""
        self.shown = False
        self.in_flight_s = float(request.get("in_flight_s") or IN_FLIGHT_S)
        self.head_bytes = HEAD
        self.progress: Json = {}

    # -- the story

    def run(self) -> Json:
        self.tracker = self.new_tracker()
        self.tracker.open()
        drainer = threading.Thread(target=self.keep_draining, daemon=True)
        drainer.start()
        listener = Listener(self.job.state_dir, self.obey)
        try:
            self.take_loss()
            if self.kept is not None:
                self.begin(self.kept)
            self.tell()
            while not self.ending:
                self.turn()
        finally:
            self.ending = True
            listener.close()
            drainer.join(timeout=5.0)
            for side in self.sides:
                side.close()
            self.end_watch()
            self.tracker.close()
            self.refuse_orders()
        return self.figures()

    def turn(self) -> None:
        try:
            order = self.orders.get(timeout=BREATH_S)
        except queue.Empty:
            order = None
        if order is not None:
            self.carry_out(order)
            return
        self.take_loss()
        if self.held or not self.began_pairs or any(side.pair is None for side in self.sides):
            self.tell()
            return
        try:
            with self.lock:
                work = any(side.dirty.count for side in self.sides)
            if work or any(side.unverified.count for side in self.sides):
                self.one_pass()
            elif not self.compared_all:  # nothing was written, and nothing is to be compared
                self.compared_all, self.suspect = True, False
            self.phase = "current"
            self.tell()
        except Waiting:
            self.phase = "interrupted"

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
            tracker_name(self.request["transfer"]) + "-targets",
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
                Log.say("{}: {}".format(error.what, error.data))

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

    def take_loss(self) -> None:
        """Events were lost: begin to track anew, then everything may differ."""
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
        if not self.loss:
            return
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

    def note(self, text: str) -> None:
        Log.say(text)
        self.notes.append(text)

    # -- passes

    def tick(self, first: int, count: int, length: int) -> None:
        if not self.orders.empty() or self.ending:
            raise Waiting()
        if self.loss:
            raise Waiting()
        self.progress["done_bytes"] += length
        self.job.report(self.phase, **self.told())

    def one_pass(self) -> None:
        number = len(self.passes) + 1
        result = self.new_pass(number)
        began = time.monotonic()
        for side in self.sides:
            with self.lock:
                work = side.pair.free(side.dirty.take())  # type: ignore[union-attr]
            result["dirty_bytes"] += work.count * side.chunk_bytes
            self.copy(side, work, result, self.throttle, self.tick)
        copied = time.monotonic()
        result["copy_s"] = round(copied - began, 3)
        round_before = self.round
        self.compare_all(result, self.throttle, self.tick)
        self.drain()
        ended = time.monotonic()
        result["compare_s"] = round(ended - copied, 3)
        with self.lock:
            dirty = sum(side.dirty_bytes for side in self.sides)
        self.dirty_bytes_s = dirty / max(ended - began, 0.001)
        if self.round == round_before and not self.loss:
            self.compared_all, self.suspect = True, False
        self.passes.append(result)
        self.passes = self.passes[-50:]

    def new_pass(self, number: int) -> Json:
        return {
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
            result["healed"] += differing.count
            return
        ends = time.monotonic() + self.in_flight_s
        left = differing
        while left.count:
            if not self.orders.empty():
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

    def forget_orders(self) -> None:
        unlink_durably(self.job.path(ORDERS))

    # -- what is said of it

    def figures(self) -> Json:
        with self.lock:
            dirty = sum(side.dirty_bytes for side in self.sides)
        return {
            "phase": self.phase,
            "passes": self.passes[-5:],
            "dirty_bytes": dirty,
            "dirty_bytes_s": round(self.dirty_bytes_s, 1),
            "unverified_bytes": sum(side.unverified_bytes for side in self.sides),
            "copy_bytes_s": round(self.copy_bytes_s, 1),
            "compare_bytes_s": round(self.compare_bytes_s, 1),
            "mask_s": round(self.mask_s, 4),
            "publish_s": round(self.publish_s, 4),
            "standby": bool(self.kept and self.kept.get("swapped")),
            "holds": [side.pair.target.path for side in self.sides if side.pair is not None],
            "verified": self.is_verified,
            "verify": self.verify,
            "events": self.events,
            "notes": self.notes[-20:],
            "chunk_bytes": [side.chunk_bytes for side in self.sides],
        }

    @property
    def is_verified(self) -> bool:
        """Every chunk has been compared since its last write, but for what is dirty or waits for
        its comparison."""
        return self.compared_all and not self.suspect

    def told(self) -> Json:
        return {"what": self.phase, **self.progress, "figures": self.figures()}

    def tell(self) -> None:
        self.progress = {}
        self.job.report(self.phase, **self.told())

    # -- orders

    def obey(self, message: Json) -> Json:
        """In the listener's thread."""
        do = message.get("do")
        if do == "figures":
            self.drain()
            return self.figures()
        if do == "set":
            return self.settings(message)
        if do not in ("pairs", "ready", "final", "unmask", "mask", "standby", "stop"):
            raise AgentError("usage", "the mirror knows no '{}'".format(do))
        order = Order(message)
        self.orders.put(order)
        while not order.done.wait(timeout=1.0):
            if self.ending and not order.done.wait(timeout=5.0):
                raise AgentError("failed", "the mirror ended before '{}'".format(do))
        if order.error is not None:
            raise order.error
        result: Json = order.result
        return result

    def carry_out(self, order: Order) -> None:
        verbs = {
            "pairs": self.begin,
            "ready": self.get_ready,
            "final": self.final,
            "unmask": self.unmask,
            "mask": self.mask,
            "standby": self.stand_by,
            "stop": self.stop,
        }
        try:
            order.result = verbs[order.message["do"]](order.message)
        except Stopped:
            what = "the mirror was stopped in the middle of '{}'".format(order.message["do"])
            order.error = AgentError("failed", what)
            raise
        except Exception as error:  # noqa: BLE001 - it is raised where the order was given
            Log.say("'{}': {}".format(order.message["do"], error))
            order.error = error
        finally:
            order.done.set()

    def refuse_orders(self) -> None:
        while not self.orders.empty():
            order = self.orders.get()
            order.error = AgentError("failed", "the mirror has ended")
            order.done.set()

    def settings(self, message: Json) -> Json:
        """Takes effect at once, and is kept for a process that is begun again."""
        limit, pace = message.get("bwlimit_bytes_s"), message.get("pace")
        if limit is not None and not is_number(limit, 1, 1 << 60):
            raise AgentError("usage", "{!r} is no limit in bytes per second".format(limit))
        if pace is not None and not is_number(pace, 0.001, 1):
            raise AgentError("usage", "{!r} is no pace between 0.001 and 1".format(pace))
        if "bwlimit_bytes_s" in message:
            self.throttle.bytes_s = limit
        if pace is not None:
            self.set_pace(float(pace))
        now = {"bwlimit_bytes_s": self.throttle.bytes_s, "pace": self.pace}
        if self.kept is not None and self.began_pairs:
            self.kept.update(now)
            write_json(self.job.path(ORDERS), self.kept)
        return now

    def set_pace(self, pace: float) -> None:
        self.pace = pace
        paths = ["{}/class/block/{}/stat".format(self.place.sys, side.source.kname)
                 for side in self.sides]  # fmt: skip
        self.throttle.share = Activity(paths, pace).share

    def begin(self, message: Json) -> Json:
        """Hide the targets and begin. The same pairs again change nothing but the settings."""
        if self.began_pairs:
            return self.figures()
        self.settings({"bwlimit_bytes_s": message.get("bwlimit_bytes_s")})
        self.set_pace(float(message.get("pace") or DEFAULT_PACE))
        self.verify = message.get("verify") or "full"
        self.head_bytes = HEAD_LUKS if message.get("luks") else HEAD
        by_source = {pair["source"]["volume_id"]: pair["target"] for pair in message["pairs"]}
        began = time.monotonic()
        try:
            for side in self.sides:
                side.target_ref = by_source[side.ref["volume_id"]]
                side.blank = bool(message.get("blank"))
                self.open_pair(side, self.head_bytes)
            self.mask_s = time.monotonic() - began
            for side in self.sides:
                assert side.pair is not None
                self.refuse_if_recognised(side.pair.target_disk)
        except BaseException:
            for side in self.sides:
                side.close()
            raise
        for side in self.sides:
            assert side.pair is not None
            if self.suspect or (self.verify == "full" and not side.blank):
                side.unverified = side.pair.everything()
            elif side.blank:
                with self.lock:
                    side.dirty.add_all()
        disks = [side.pair.target_disk for side in self.sides if side.pair is not None]
        before = time.monotonic()
        publish(self.place, disks, True, False, 30.0)
        self.publish_s = time.monotonic() - before
        self.began_pairs, self.kept = True, message
        write_json(self.job.path(ORDERS), message)
        return self.figures()

    def open_pair(self, side: Side, head_bytes: int) -> None:
        target = resolve(self.place, side.target_ref)
        if target.read_only:
            raise AgentError(
                "refused",
                "the target {} is read-only".format(target.path),
                NOTHING_COPIED,
                "openstack volume set --read-write, and attach it again",
            )
        wait_until_free(target.path, 5.0)  # who probes it may have it for a moment
        side.pair = Pair(side.source, target, head_bytes)
        side.pair.mask()

    def refuse_if_recognised(self, target: Disk) -> None:
        found = blkid(target.path)
        if found:
            raise AgentError(
                "doubt",
                "the target {} is still recognised as {} after it was hidden".format(
                    target.path, found.get("TYPE") or found.get("PTTYPE") or found
                ),
                NOTHING_COPIED,
                "use --method rsync",
            )

    def get_ready(self, message: Json) -> Json:
        """Services are stopped next: from here on we are what they wait for."""
        if bool(message.get("swapped")) != bool(self.kept and self.kept.get("swapped")):
            raise AgentError("refused", "the mirror's roles are not those of this order")
        self.take_loss()
        if not self.began_pairs or any(side.pair is None for side in self.sides):
            raise AgentError("refused", "the mirror has no targets yet", "nothing was stopped")
        if not self.compared_all:
            raise AgentError(
                "refused",
                "not everything has been compared: {} bytes are left".format(
                    sum(side.unverified_bytes for side in self.sides)
                ),
                "nothing was stopped",
                "wait until it has been",
            )
        self.held, self.proven = True, False
        self.end_watch()
        try:
            self.begin_watch()
        except AgentError as error:
            Log.say("the targets: {}: {}".format(error.what, error.data))
        raise_priority()
        for side in self.sides:
            assert side.pair is not None
            side.pair.new_workers()
        return self.figures()

    def final(self, message: Json) -> Json:
        """Nobody writes to the source: make the target equal to it and prove it. -> the pass, with
        ``withheld``: what hides the target, and shows it, without this process or the source."""
        deadline = time.monotonic() + float(message["deadline_s"])
        if not self.held:
            raise AgentError("refused", "the mirror was not told to get ready")
        hurry = Throttle()

        def tick(first: int, count: int, length: int) -> None:
            if time.monotonic() > deadline:
                raise AgentError("failed", "the final copy did not end by the cutover's deadline")

        while self.drain():
            pass
        if self.loss:
            raise AgentError(
                "failed",
                "the last writes are not known: {}".format(self.loss),
                "the source is complete; nothing was switched",
                "everything is compared again, then the cutover can be tried again",
            )
        result = self.new_pass(len(self.passes) + 1)
        result["final"] = True
        began = time.monotonic()
        for side in self.sides:
            assert side.pair is not None
            with self.lock:
                work = side.pair.free(side.dirty.take())
            result["dirty_bytes"] += work.count * side.chunk_bytes
            self.copy(side, work, result, hurry, tick)
        copied = time.monotonic()
        for side in self.sides:
            assert side.pair is not None
            differing = ChunkSet(side.unverified.size)
            before = side.unverified.count

            def done(first: int, count: int, length: int) -> None:
                result["chunks_compared"] += count
                result["bytes_compared"] += length
                tick(first, count, length)

            side.pair.compare(side.unverified, hurry, done, differing.add_one)
            if differing.count:
                raise AgentError(
                    "failed",
                    "verification failed: {} of {} chunks of {} bytes differ after the final copy, "
                    "the first at offset {}".format(
                        differing.count,
                        before,
                        side.chunk_bytes,
                        next(differing.runs(1))[0] * side.chunk_bytes,
                    ),
                    "the source is complete; nothing was switched",
                )
            side.unverified = ChunkSet(side.unverified.size)
        result["copy_s"] = round(copied - began, 4)
        result["compare_s"] = round(time.monotonic() - copied, 4)
        result["verified"] = self.is_verified if self.verify == "full" else self.verify
        result["withheld"] = [self.keep(side, bool(message.get("save"))) for side in self.sides]
        self.passes.append(result)
        self.proven = True
        return result

    def keep(self, side: Side, save: bool) -> Json:
        """What is withheld where; with ``save`` its content too, in a file of our folder."""
        assert side.pair is not None
        kept: Json = {
            "target": side.target_ref,
            "ranges": [list(r) for r in side.pair.hidden_ranges()],
        }
        if save:
            content = side.pair.read_withheld()
            kept["path"] = os.path.join(self.job.state_dir, "withheld-" + side.source.kname)
            kept["sha256"] = hashlib.sha256(content).hexdigest()
            kept["ranges"] = [list(part) for part in side.pair.withheld]
            write_atomically(kept["path"], content, 0o600)
        return kept

    def unmask(self, message: Json) -> Json:
        """The target can be recognised from here on, and is let go of so that it can be mounted."""
        if not self.proven or any(side.pair is None for side in self.sides):
            raise AgentError("refused", "the target was not proven to be the same", "it is hidden")
        self.phase, self.proven, self.shown = "switched", False, True
        self.forget_orders()  # first: nobody may hide a target that is the live side
        for side in self.sides:
            assert side.pair is not None
            side.pair.unmask(side.pair.read_withheld())
        for side in self.sides:
            side.close()
        if self.kept is not None and self.kept.get("swapped"):
            self.kept, self.ending = None, True  # the source is the live side again
        return {}

    def mask(self, message: Json) -> Json:
        """Hide the targets again. Writes to either side were noted all the time."""
        if self.kept is None:
            raise AgentError("refused", "the mirror does not know its targets any more")
        if self.kept.get("swapped"):
            raise AgentError("refused", "the roles are swapped: it would hide the source")
        try:
            for side in self.sides:
                side.close()
            if self.shown:
                self.take_watched()
            self.end_watch()
            for side in self.sides:
                self.open_pair(side, self.head_bytes)
        except BaseException:
            self.ending = True  # one that is begun again compares everything
            raise
        write_json(self.job.path(ORDERS), self.kept)
        self.phase, self.held, self.proven, self.shown = "tracking", False, False, False
        lower_priority()
        return {}

    def stand_by(self, message: Json) -> Json:
        """Swap the roles: both are the same now, the target is about to be written to and the
        source is hidden. Has to be done before the target is mounted."""
        if self.kept is not None and self.kept.get("swapped"):
            return {}  # said twice
        if self.kept is None or any(side.pair is not None for side in self.sides):
            raise AgentError("refused", "the target was not shown yet")
        try:
            self.swap(self.kept)
        except BaseException:
            self.ending = True  # neither role is whole
            raise
        self.end_watch()
        self.phase, self.held, self.shown = "standby", False, False
        lower_priority()
        return {}

    def swap(self, kept: Json) -> None:
        pairs = [{"source": side.target_ref, "target": side.ref} for side in self.sides]
        sides = [Side(pair["source"], resolve(self.place, pair["source"])) for pair in pairs]
        with self.lock:
            self.tracker.close()
            self.sides = sides
            self.tracker = self.new_tracker()
            self.tracker.open()
        for side, pair in zip(self.sides, pairs):
            set_disk_read_only(resolve(self.place, pair["target"]), False)
            side.target_ref = pair["target"]
            self.open_pair(side, self.head_bytes)
        self.kept = dict(kept, pairs=pairs, blank=False, swapped=True)
        write_json(self.job.path(ORDERS), self.kept)
        self.set_pace(self.pace)

    def stop(self, message: Json) -> Json:
        self.ending = True
        return {}


def is_number(value: Any, least: float, most: float) -> bool:
    """Not so for NaN, nor for what JSON calls true."""
    return type(value) in (int, float) and bool(least <= value <= most)


def hide_again(place: Place, ref: Json, ranges: List[Any]) -> None:
    """``mask`` without a mirror: its process or the guest was restarted in the middle."""
    with held_target(place, ref) as file:
        put_zeros(file, ranges)


def keep_withheld(file: DiskFile, path: str, ranges: List[Any]) -> Json:
    """Like the mirror's ``save``, of a target that was in use: what is there now. -> what
    ``show_from_file`` needs, but for the target"""
    content = get_withheld(file, ranges)
    write_atomically(path, content, 0o600)
    return {
        "path": path,
        "sha256": hashlib.sha256(content).hexdigest(),
        "ranges": [list(part) for part in ranges],
    }


def show_from_file(place: Place, kept: Json, ranges: List[Any], content: bytes) -> None:
    """``unmask`` when the source is gone: from what was kept by ``save`` or ``keep_withheld``."""
    if hashlib.sha256(content).hexdigest() != kept["sha256"]:
        raise AgentError(
            "failed",
            "{} is not what was kept in it".format(kept["path"]),
            "the data is complete on the source and, but for its head and tail, on the target",
            "attach the source again",
        )
    with held_target(place, kept["target"]) as file:
        put_withheld(file, ranges, content)


@contextlib.contextmanager
def held_target(place: Place, ref: Json) -> Iterator[DiskFile]:
    """Open exclusively: nobody can mount it or put anything together on it meanwhile."""
    target = resolve(place, ref)
    wait_until_free(target.path, 10.0)  # a mirror that is about to end may hold it
    file = DiskFile(target.path, target.size_bytes, write=True)
    try:
        yield file
    finally:
        file.close()
