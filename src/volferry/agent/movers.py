"""What a method does inside the cutover: make the target equal the source, show it or hide it.

``check`` before anything is stopped, ``copy`` while nobody writes, ``show`` as the first part of
the commit, ``hide`` when that is taken back, ``end`` when it failed in the middle. ``put_away`` and
``show_again`` hide a target with no source there to show it from, and take that back. The cutover
itself knows no method.
"""

import contextlib
import os
import time
from typing import Any, Dict, List, Set

from volferry.agent.basics import (
    AgentError,
    Json,
    Limit,
    Log,
    clock_offset,
    read_bytes,
    read_json,
    set_by,
    told_limit,
)
from volferry.agent.blocks import DiskFile, Range, beyond_source, put_zeros
from volferry.agent.disks import (
    blkid,
    look_for,
    resolve,
    resolve_device,
    set_disk_read_only,
    wait_until_free,
)
from volferry.agent.inside import Inside
from volferry.agent.jobs import lane_dir, unlink_durably
from volferry.agent.listen import ask_listener
from volferry.agent.mirror import ORDERS, held_target, hide_again, keep_withheld, show_from_file
from volferry.agent.passes import full_reason
from volferry.agent.prepare import same_type
from volferry.agent.record import Recorded

LOOK_S = 3.0
PASS_REQUEST = (
    "method", "filesystems", "exclude", "watermark", "clock_offset", "boot_id", "slack_s"
)  # fmt: skip


class FilesMover:
    """rsync: the last pass over a source that is mounted read-only, in a namespace of its own."""

    holds_target = False

    def __init__(self, cutover: Recorded) -> None:
        self.cutover = cutover
        self.place, self.request = cutover.place, cutover.request
        self.inside = Inside(cutover.place, cutover.job.state_dir)

    def check(self) -> None:
        for filesystem in self.cutover.sides.filesystems:
            self.check_target(filesystem)
        if self.request.get("watermark") is not None:
            why = full_reason(self.request, self.place.boot_id, clock_offset())
            if why:
                raise AgentError(
                    "refused",
                    "the watermark is void: {}".format(why),
                    "nothing was stopped",
                    "run another pass: it compares everything and makes a new one",
                )
        self.inside.prepare()

    def check_target(self, filesystem: Json) -> None:
        target = resolve_device(self.place, filesystem["target"])
        if not wait_until_free(target.path, LOOK_S):
            raise AgentError(
                "doubt",
                "the target {} is in use by somebody, still after {}".format(
                    target.path, told_limit(LOOK_S)
                ),
            )
        found = blkid(target.path)
        wanted = filesystem["uuid"] if filesystem["keep_uuid"] else None
        if not same_type(found.get("TYPE", ""), filesystem["fstype"]) or (
            wanted and found.get("UUID") != wanted
        ):
            raise AgentError(
                "doubt",
                "the target {} holds {} {}".format(
                    target.path, found.get("TYPE"), found.get("UUID")
                ),
            )

    def copy(self) -> Json:
        cutover = self.cutover
        began = [time.monotonic()]

        def heard(said: Json) -> None:
            if said["phase"] == "comparing" and cutover.record["phase"] == "copying":
                cutover.add_part("copy", time.monotonic() - began[0])
                began[0] = time.monotonic()
                cutover.note("comparing")
            cutover.job.report(cutover.record["phase"], **said["progress"])

        request = {key: self.request.get(key) for key in PASS_REQUEST}
        request["deadline_s"] = cutover.left(cutover.deadline_s)
        request["number"] = self.request.get("number")
        result = self.inside.run(request, cutover.deadline, heard)
        cutover.add_part("compare", time.monotonic() - began[0])
        cutover.notes.extend(result.pop("notes"))
        return result

    def show(self) -> None:
        """A target of rsync's is always there to be seen: the side files keep it out."""

    def hide(self) -> None:
        """As it can always be seen, there is nothing to hide."""

    def put_away(self) -> None:
        raise AgentError("refused", "only the mirror can hide a target")

    def show_again(self) -> None:
        """Nothing was put away."""

    def stand_by(self) -> None:
        raise AgentError("refused", "only the mirror keeps a standby")

    def is_standby(self) -> bool:
        return False

    def show_source(self) -> None:
        """It was never hidden."""

    def copy_back(self) -> None:
        """Writes since the commit stay on the target."""

    def pids(self) -> Set[int]:
        """Processes of ours that have the disks open."""
        return set()

    def has(self, path: str) -> bool:
        """The last pass ends with the worker: nothing of it is left that holds a disk."""
        return False

    def end(self) -> None:
        self.inside.end()

    def leave(self) -> None:
        """Nothing of it outlives the cutover."""


class BlocksMover:
    """The mirror: another process of ours has tracked the source all the time and is asked."""

    holds_target = True
    """It has the target open exclusively until ``show``."""

    def __init__(self, cutover: Recorded) -> None:
        self.cutover = cutover
        self.place, self.request = cutover.place, cutover.request
        self.folder = lane_dir(cutover.place, os.path.basename(cutover.job.state_dir), "mirror")

    def ask(self, what: str, timeout_s: float, **more: Any) -> Json:
        result: Json = ask_listener(self.folder, dict(more, do=what), timeout_s)
        return result

    def check(self) -> None:
        # What is at hand there is put down at once, but a comparison in doubt takes its time.
        try:
            self.ask("ready", 30.0, swapped=bool(self.cutover.record["standby"]))
        except AgentError as error:
            if error.kind == "failed":  # it did not answer, and may get ready all the same
                self.go_on()
            raise

    def copy(self) -> Json:
        cutover = self.cutover
        left = cutover.left(cutover.deadline_s)
        save = bool(self.request.get("detach_first") or self.request.get("keep_standby"))
        result = self.ask("final", grace(left), deadline_s=left, save=save)
        cutover.add_part("copy", result["copy_s"])
        cutover.add_part("compare", result["compare_s"])
        return result

    def show(self) -> None:
        kept = self.cutover.record["withheld"]
        if self.cutover.sides.source_is_gone():
            self.show_from_files(kept)
            return
        try:
            self.ask("unmask", self.cutover.left(60.0))
        except AgentError as error:
            if error.kind != "missing":
                raise
            raise AgentError("failed", "the mirror is gone: {}".format(error.what))

    def show_from_files(self, kept: List[Json]) -> None:
        """The mirror holds a source that is gone; it has told us all that is needed."""
        self.end_mirror()
        for one in kept:
            try:
                show_from_file(self.place, one, ranges_of(one), self.kept_in(one))
            except AgentError as error:
                if error.kind != "doubt":
                    raise
                # A boot after the last write of an earlier try has put something together on it,
                # which it cannot before: the start of the disk is written last.
                Log.say("it is shown already: {}".format(error.what))

    def end_mirror(self) -> None:
        """Nobody may hide what is about to be shown."""
        try:
            self.ask("stop", 30.0)
        except AgentError as error:
            Log.say("the mirror: {}".format(error.what))
        unlink_durably(os.path.join(self.folder, ORDERS))

    def kept_in(self, one: Json) -> bytes:
        content = read_bytes(one["path"])
        if content is None:
            raise AgentError("failed", "{} is not there".format(one["path"]))
        return content

    def hide(self) -> None:
        """Its process may be gone: then it is done here, and the mirror begins anew later."""
        if self.cutover.record["source_hidden"]:
            raise AgentError(
                "doubt", "the source may be hidden: the target is not, to lose nothing"
            )
        if not self.cutover.record.get("shown"):
            self.go_on()
            return
        try:
            if self.cutover.back_only:
                raise AgentError("missing", "its roles are swapped, or it has ended")
            self.ask("mask", 60.0)
        except AgentError as error:
            Log.say("the mirror cannot hide the target: {}".format(error.what))
            for one in self.cutover.record["withheld"] or []:
                if look_for(self.place, one["target"]) is not None:  # else nobody can see it
                    hide_again(self.place, one["target"], ranges_of(one))
        self.cutover.note(shown=False)

    def put_away(self) -> None:
        """Heads and tails have changed since the commit, so they are kept first, and those of all
        targets before one is hidden.

        The targets are open exclusively all the time: an array that was stopped is put together
        again as soon as one of its members is closed after it could have been written to."""
        record = self.cutover.record
        with contextlib.ExitStack() as stack:
            files = [
                stack.enter_context(held_target(self.place, one["target"]))
                for one in record["withheld"]
            ]
            if not record.get("kept"):  # after it they may be zero
                kept = [self.keep(number, file) for number, file in enumerate(files)]
                self.cutover.note(withheld=kept, kept=True)
            for file, one in zip(files, record["withheld"]):
                put_zeros(file, ranges_of(one))
        self.cutover.note(shown=False)

    def keep(self, number: int, file: DiskFile) -> Json:
        one = self.cutover.record["withheld"][number]
        sizes = {
            pair["target"]["volume_id"]: pair["source"]["size_bytes"]
            for pair in self.cutover.sides.pairs
        }
        known = ranges_of(one)
        beyond = beyond_source(sizes[one["target"]["volume_id"]], file.size_bytes)
        ranges = [part for part in beyond if part not in known] + known
        path = self.cutover.job.path("withheld-back-{}".format(number))
        return dict(keep_withheld(file, path, ranges), target=one["target"])

    def show_again(self) -> None:
        """What ``put_away`` hid. Before it has kept everything nothing is hidden."""
        if self.cutover.record.get("kept"):
            self.cutover.note(shown=True)
            self.show_from_files(self.cutover.record["withheld"])
            self.cutover.note(kept=False)

    def go_on(self) -> None:
        """It noted the writes all the time, and may copy again."""
        try:
            self.ask("mask", 60.0, swapped=bool(self.cutover.record["standby"]))
        except AgentError as error:
            Log.say("the mirror: {}".format(error.what))

    def stand_by(self) -> None:
        """From here on the source follows the target. Repeatable."""
        self.ask("standby", self.cutover.left(60.0))

    def is_standby(self) -> bool:
        """By the orders on the disk, which whoever mirrors follows: an answer may be lost."""
        orders: Json = read_json(os.path.join(self.folder, ORDERS)) or {}
        return bool(orders.get("swapped"))

    def show_source(self) -> None:
        """From what was kept of it before it was hidden. It was not written to since."""
        self.end_mirror()
        for number, one in enumerate(self.cutover.record["withheld"] or []):
            source = self.cutover.sides.pairs[number]["source"]
            set_disk_read_only(resolve(self.place, source), False)
            show_from_file(self.place, dict(one, target=source), ranges_of(one), self.kept_in(one))

    def copy_back(self) -> None:
        """The way back of a standby: the source gets the last writes, and can be recognised."""
        cutover = self.cutover
        self.ask("ready", 30.0, swapped=True)
        left = cutover.left(cutover.deadline_s)
        result = self.ask("final", grace(left), deadline_s=left, save=False)
        cutover.add_part("copy", result["copy_s"])
        cutover.add_part("compare", result["compare_s"])
        result.pop("withheld")
        cutover.note(final_pass=result, copied_back=True)
        try:
            self.ask("unmask", cutover.left(60.0))
        except AgentError:
            if self.is_standby():
                raise  # else it was done, and only the answer was lost

    def pids(self) -> Set[int]:
        """Processes of ours that have the disks open."""
        worker: Json = read_json(os.path.join(self.folder, "worker.json")) or {}
        return {worker["pid"]} if worker else set()

    def has(self, path: str) -> bool:
        """Whether nobody but the mirror can have it open: it was not shown yet."""
        try:
            return path in self.ask("figures", 10.0)["holds"]
        except AgentError:
            return False

    def end(self) -> None:
        """It ends what it does by itself: its deadline is ours."""

    def leave(self) -> None:
        """The target is the live side: there is nothing left to mirror, unless the source is kept
        as a standby."""
        if self.cutover.record.get("standby"):
            return
        try:
            self.ask("stop", 30.0)
        except AgentError as error:
            Log.say("the mirror: {}".format(error.what))


def grace(left: float) -> float:
    """The mirror knows the deadline too, and its own word of it says more."""
    return Limit(left + 1.0, set_by(left))


def ranges_of(kept: Json) -> List[Range]:
    return [Range(*part) for part in kept["ranges"]]


MOVER_OF: Dict[str, Any] = {"rsync": FilesMover, "mirror": BlocksMover}
