"""Job mirror: a live block copy. It notes every write to the source from before the snapshot on,
copies and compares what was written (see follow.py), and answers on its socket.

Orders (JSON lines on the socket; those marked * wait for the end of the transfer at hand)
------------------------------------------------------------------------------------------
``pairs``*    {pairs: [{source, target}], blank: bool, verify, luks: bool} begin: mask the targets
``set``       {bwlimit_bytes_s: int|null, pace: float?}
``figures``   what ``status`` has as progress.figures, as it is now
``ready``*    a cutover is about to begin: copy and compare without a pause while services stop
``final``*    {deadline_s, save: bool} nobody writes any more: copy the rest and compare it
``unmask``*   write what was withheld, read it back, let go of the targets
``mask``*     {swapped: bool} the cutover, or the way back, was given up: hide the targets, go on
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
from typing import Any, Iterator, List, Optional

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
    get_withheld,
    put_withheld,
    put_zeros,
)
from volferry.agent.chunks import ChunkSet
from volferry.agent.disks import Disk, blkid, resolve, set_disk_read_only, wait_until_free
from volferry.agent.follow import Follower, Side, Waiting
from volferry.agent.install import publish
from volferry.agent.jobs import Job, lower_priority, raise_priority, unlink_durably
from volferry.agent.listen import Listener
from volferry.agent.services import time_systemctl

ORDERS = "orders.json"
BREATH_S = 0.5
"""Between two passes: what is written over and over is then copied once."""
HURRIED_BREATH_S = 0.005
DEFAULT_PACE = 0.05


class Order:
    def __init__(self, message: Json) -> None:
        self.message = message
        self.done = threading.Event()
        self.result: Any = None
        self.error: Optional[BaseException] = None


class Mirror(Follower):
    def __init__(self, place: Place, job: Job, request: Json) -> None:
        self.kept: Optional[Json] = read_json(job.path(ORDERS))
        """The order ``pairs``, which a restarted process has to find again."""
        refs = request["sources"]
        if self.kept is not None:  # the roles may have been swapped since
            refs = [pair["source"] for pair in self.kept["pairs"]]
        super().__init__(place, job, request, refs)
        self.keeping = threading.Lock()
        """Over the orders on the disk: settings change them from a thread of their own."""
        self.orders: "queue.Queue[Order]" = queue.Queue()
        self.began_pairs = False
        self.pace = DEFAULT_PACE
        self.mask_s = 0.0
        self.publish_s = 0.0
        self.systemctl_s = 0.0
        self.ready = False
        """A cutover has begun: it waits for us."""
        self.held = False
        """Nobody writes any more: no pass is begun."""
        self.proven = False
        """Nobody writes, and source and target are the same."""
        self.shown = False
        self.head_bytes = HEAD

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
        hurried = self.ready and not self.held
        try:
            order = self.orders.get(timeout=HURRIED_BREATH_S if hurried else BREATH_S)
        except queue.Empty:
            order = None
        if order is not None:
            self.carry_out(order)
            return
        self.take_loss()
        if self.held or not self.began_pairs or any(side.pair is None for side in self.sides):
            self.tell()
            return
        if hurried:
            self.drain()
        try:
            with self.lock:
                work = any(side.dirty.count for side in self.sides)
            if work or any(side.unverified.count for side in self.sides):
                self.one_pass(Throttle() if hurried else self.throttle)
            elif not self.compared_all:  # nothing was written, and nothing is to be compared
                self.compared_all, self.suspect = True, False
            self.phase = "current"
            self.tell()
        except Waiting:
            self.phase = "interrupted"

    def figures(self) -> Json:
        return dict(
            super().figures(),
            mask_s=round(self.mask_s, 4),
            publish_s=round(self.publish_s, 4),
            systemctl_s=self.systemctl_s,
            pace=self.pace,
            standby=self.is_swapped,
        )

    @property
    def is_swapped(self) -> bool:
        """The target is the live side, and the source follows it."""
        return bool(self.kept and self.kept.get("swapped"))

    # -- orders

    def is_wanted(self) -> bool:
        return not self.orders.empty()

    def forget_orders(self) -> None:
        with self.keeping:
            unlink_durably(self.job.path(ORDERS))

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
                raise AgentError("missing", "the mirror ended before '{}'".format(do))
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
            order.error = AgentError("missing", "the mirror has ended")
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
        with self.keeping:
            if self.kept is not None and self.began_pairs:
                self.kept.update(now)
                if not self.shown:  # a process that finds orders hides the targets that they name
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
            disks = [side.pair.target_disk for side in self.sides if side.pair is not None]
            before = time.monotonic()
            publish(self.place, disks, True, False, 30.0)
            self.publish_s = time.monotonic() - before
            self.systemctl_s = time_systemctl(self.place)
            if message is not self.kept:
                write_json(self.job.path(ORDERS), message)
        except BaseException:  # a signal's too: no target stays held
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
        self.began_pairs, self.kept = True, message
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
        """Services are stopped next: from here on we are what they wait for. What they write while
        they stop is followed at full speed, so that little is left when they have."""
        if bool(message.get("swapped")) != self.is_swapped:
            raise AgentError("refused", "the mirror's roles are not those of this order")
        self.take_loss()
        self.check_sources()
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
        self.ready, self.held, self.proven = True, False, False
        self.end_watch()
        try:
            self.begin_watch()
        except AgentError as error:
            Log.say("the targets: {}".format(error.what))
        raise_priority()
        for side in self.sides:
            assert side.pair is not None
            side.pair.new_workers()
        return self.figures()

    def final(self, message: Json) -> Json:
        """Nobody writes to the source: make the target equal to it and prove it. -> the pass, with
        ``withheld``: what hides the target, and shows it, without this process or the source."""
        deadline = time.monotonic() + float(message["deadline_s"])
        if not self.ready:
            raise AgentError("refused", "the mirror was not told to get ready")
        self.held = True
        hurry = Throttle()

        def tick(first: int, count: int, length: int) -> None:
            if time.monotonic() > deadline:
                raise AgentError(
                    "failed",
                    "the final copy did not end within the {:.0f} s that were left "
                    "(--cutover-timeout)".format(message["deadline_s"]),
                )

        while self.drain():
            pass
        if self.loss or not self.compared_all:
            raise AgentError(
                "failed",
                "the last writes are not known: {}".format(self.loss or self.notes[-1]),
                "the source is complete; nothing was switched",
                "everything is compared again, then the cutover can be tried again",
            )
        result = self.new_pass()
        result["final"] = True
        began = time.monotonic()
        for side in self.sides:
            assert side.pair is not None
            with self.lock:
                work = side.pair.free(side.dirty.take())
            result["dirty_bytes"] += work.count * side.chunk_bytes
            side.pair.keep_what_is_copied(True)
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
            side.pair.keep_what_is_copied(False)
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
        self.keep_pass(result)
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
        swapped = self.is_swapped
        if not swapped:
            self.forget_orders()  # first: nobody may hide a target that is the live side
        for side in self.sides:
            assert side.pair is not None
            side.pair.unmask(side.pair.read_withheld())
        if swapped:  # last: the source is not the live side yet, and half shown it is no standby
            self.forget_orders()
            self.kept, self.ending = None, True
        for side in self.sides:
            side.close()
        return {}

    def mask(self, message: Json) -> Json:
        """Hide the targets again. Writes to either side were noted all the time. A standby that is
        not gone back to after all goes on to follow."""
        if self.kept is None:
            raise AgentError("refused", "the mirror does not know its targets any more")
        if bool(message.get("swapped")) != self.is_swapped:
            raise AgentError("refused", "the mirror's roles are not those of this order")
        if self.is_swapped:
            return self.follow_on()
        try:
            for side in self.sides:
                side.close()
            if self.shown:
                self.take_watched()
            self.end_watch()
            for side in self.sides:
                self.open_pair(side, self.head_bytes)
            if self.shown:  # else they are there still
                write_json(self.job.path(ORDERS), self.kept)
        except BaseException:  # a signal's too: it may be between the two states
            self.ending = True  # one that is begun again compares everything
            raise
        self.phase, self.ready, self.held = "tracking", False, False
        self.proven, self.shown = False, False
        lower_priority()
        return {}

    def follow_on(self) -> Json:
        self.end_watch()
        lower_priority()
        for side in self.sides:
            assert side.pair is not None
            if self.shown:  # in part: the whole of it ends the mirror
                side.pair.mask()
            side.pair.keep_what_is_copied(False)
            side.pair.new_workers()
        self.phase, self.ready, self.held = "standby", False, False
        self.proven, self.shown = False, False
        return {}

    def stand_by(self, message: Json) -> Json:
        """Swap the roles: both are the same now, the target is about to be written to and the
        source is hidden. Has to be done before the target is mounted."""
        if self.is_swapped:
            return {}  # said twice
        if self.kept is None or any(side.pair is not None for side in self.sides):
            raise AgentError("refused", "the target was not shown yet")
        try:
            self.swap(self.kept)
        except BaseException:  # a signal's too
            self.ending = True  # neither role is whole
            raise
        self.end_watch()
        self.phase, self.ready, self.held, self.shown = "standby", False, False, False
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
