"""Jobs cutover and cutback: from the first service stopped to the last one started."""

import functools
import os
import signal
import time
from typing import Any, Callable, Dict, Iterable, List

from volferry.agent.basics import (
    FORWARD_PHASES,
    RELOAD_S,
    AgentError,
    Interrupt,
    Json,
    Log,
    Place,
    Room,
    Shutdown,
    Stopped,
    must,
    one_line,
    told_limit,
)
from volferry.agent.disks import Disk, set_disk_read_only, wait_until_free
from volferry.agent.holders import read_link
from volferry.agent.install import content_if_plain, current_content
from volferry.agent.jobs import Job, Supervisor, where
from volferry.agent.mounts import device_number, mount_table, mounts_of
from volferry.agent.movers import MOVER_OF
from volferry.agent.record import Recorded
from volferry.agent.services import (
    ending_s,
    is_up,
    show,
    start_unit,
    stop_unit,
    system_is_stopping,
    user_command,
)
from volferry.agent.sides import SIDES, side_content
from volferry.agent.stack import open_now, stack_problem

EARLY_LOOK_S = 5.0
"""How long a boot looks for a source before it is believed to be gone: buses may be slow."""
EARLY_S = 60.0
"""How long a boot waits for sources that were on their way into a guest that restarted."""
GO_BACK_S = 300.0
"""Deadline of each command while going back: generous, for there is nothing to go back to from
it."""
NAMESPACES_S = 20.0


class Cutover(Recorded):
    """From the first service stopped to the last one started, and back again when anything fails.

    The record ``cutover.json`` is written before each phase. It is read by nobody but ``recover``,
    which believes the side files more than the phase.

    Units are stopped in the order given and started in the reverse one; units that could start them
    in the middle (sockets, timers, paths) are stopped before and started before.
    """

    def __init__(self, place: Place, job: Job, asked_for: Json) -> None:
        super().__init__(place, job, asked_for)
        self.supervisor = Supervisor(place, os.path.basename(job.state_dir))
        self.mover = MOVER_OF[self.request.get("method") or "rsync"](self)
        self.terminated = False

    def on_sigterm(self, number: int, frame: Any) -> None:
        """Before the commit: take it back. After it: finishing is the shorter way."""
        first, self.terminated = not self.terminated, True
        before = FORWARD_PHASES.index("committing")
        phase = self.record["phase"]
        if first and not self.record["going_back"] and phase in FORWARD_PHASES[:before]:
            Interrupt.arrived()

    # -- the story

    def run(self) -> int:
        """-> exit code for the supervisor: 0 when there is an outcome."""
        signal.signal(signal.SIGTERM, self.on_sigterm)
        self.record["runs"] += 1
        if self.record["outcome"] is not None and self.record["phase"] == "done":
            return self.finish()
        if self.record["runs"] > 20:
            live = "committed" if self.is_committed() else "reverted"
            return self.conclude(live, "the agent died 20 times in this cutover; look at the log")
        self.note()
        try:
            if self.back_only:
                return self.go_back_on_request()
            if self.found_record:
                return self.recover()
            return self.go_forward()
        except Shutdown:
            Log.say("the system is shutting down in phase {}".format(self.record["phase"]))
            return 75

    def go_forward(self) -> int:
        try:
            self.check()
        except Exception as error:  # noqa: BLE001 - nothing was touched yet, so any fault ends the same
            return self.conclude("reverted", self.words(error))
        try:
            self.stop_services()
            self.unmount_all("source")
            self.final_pass()
            self.await_detach()
            self.commit()
            self.mount_and_start()
        except Exception as error:  # noqa: BLE001 - whatever it is, services have to come back
            return self.take_back(self.words(error))
        return self.settle()

    def recover(self) -> int:
        """Somebody killed the worker, or the guest restarted. Which side is live is read from the
        files; before the commit everything is taken back, after it finished."""
        phase = self.record["phase"]
        restarted = self.record["boot_id"] != self.place.boot_id
        reason = "the guest restarted" if restarted else "the agent was killed"
        reason = "{} in phase '{}'".format(reason, phase)
        Log.say("recover: " + reason)
        if self.record["going_back"]:
            if self.is_live_since_boot() and self.record["live"] is None:
                self.note(live=time.time() - time.monotonic())
            return self.take_back(self.record["going_back"])
        if phase == "armed":
            self.tried([], self.mover.hide)
            return self.conclude("reverted", reason + ", before anything was stopped")
        if not self.is_committed():
            return self.take_back(reason)
        self.notes.append(reason)
        self.deadline = time.monotonic() + self.deadline_s
        if phase == "settling" and not restarted:
            return self.settle()
        try:
            self.wait_for_namespaces()
            if not restarted:
                self.sides.publish(10.0)
            self.end_stand_by(restarted)
            self.mount_and_start(lenient=restarted)
        except Exception as error:  # noqa: BLE001 - as in go_forward
            return self.take_back("{}; {}".format(reason, self.words(error)))
        return self.settle()

    def words(self, error: BaseException) -> str:
        """What an exception says. A shutdown is not a failure: the record is left for the next
        boot. It may end what we wait for before it ends us."""
        self.leave_if_stopping()
        if isinstance(error, AgentError):
            return one_line(error.what)
        if isinstance(error, Stopped):
            return "the cutover was stopped on request"
        return "{}: {} ({})".format(type(error).__name__, error, where(error))

    def leave_if_stopping(self) -> None:
        if system_is_stopping(self.place):
            raise Shutdown()

    # -- 1. look again, touch nothing

    def check(self) -> None:
        """Everything that could fail later and can be known now."""
        self.job.report("armed", force=True, what="checking")
        Room.keep()
        self.same_namespace()
        units = self.request.get("units", [])
        if units and not self.place.has_systemd:
            raise AgentError("refused", "units were named but pid 1 is not systemd")
        self.sides.check_devices()
        self.note(mounts=[plan._asdict() for plan in self.sides.plan_mounts("source")])
        for file in self.sides.files:
            if current_content(file["path"]) != side_content(file, "source"):
                raise AgentError(
                    "doubt",
                    "{} is not what it should be before the cutover".format(file["path"]),
                    "nothing was stopped",
                )
        problem = stack_problem(self.place, self.sides.layers) if self.sides.layers else ""
        if problem:
            raise AgentError("busy", problem, "nothing was stopped")
        self.remember_layers(SIDES)
        self.remember_units([unit["name"] for unit in units])
        self.nobody_is_bound()
        if self.place.has_systemd:
            self.supervisor.enable(early=self.detach_first)
        self.mover.check()

    def same_namespace(self) -> None:
        mine = read_link(self.place.proc + "/self/ns/mnt")
        host = read_link(self.place.proc + "/1/ns/mnt")
        if host and mine != host:
            raise AgentError("refused", "the agent is not in the guest's own mount namespace")

    def remember_units(self, names: List[str]) -> None:
        """Which were active, and what could start them again while they have to be down."""
        shown = show(names)
        for name, facts in shown.items():
            if facts.get("LoadState") != "loaded":
                raise AgentError("refused", "{} is {}".format(name, facts.get("LoadState")))
        active = [name for name in names if is_up(shown[name])]
        triggers = sorted(
            {word for name in names for word in shown[name].get("TriggeredBy", "").split()}
            - set(names)
        )
        states = show(triggers)
        self.note(units=active, triggers=[name for name in triggers if is_up(states[name])])

    def remember_layers(self, sides: Iterable[str]) -> None:
        """What of the layers is open, and so has to be opened again on these sides."""
        now = open_now(self.place, self.sides.layers)
        self.sides.opened = dict(self.sides.opened, **dict.fromkeys(sides, now))
        self.note(opened=self.sides.opened)

    def nobody_is_bound(self) -> None:
        """systemd stops what is bound to a mount (BindsTo=) when it is unmounted, and nobody would
        start it again."""
        ours = set(self.record["units"]) | set(self.record["triggers"])
        bound = set()
        for facts in show([plan.unit for plan in self.mounts if plan.unit]).values():
            bound.update(facts.get("BoundBy", "").split())
        bound = {name for name in bound - ours if not name.endswith((".mount", ".automount"))}
        up = [name for name, facts in show(sorted(bound)).items() if is_up(facts)]
        if up:
            raise AgentError(
                "refused",
                "{} would be stopped with the mount and is not among the units".format(
                    ", ".join(up)
                ),
                "nothing was stopped",
            )

    # -- 2. stop

    def stop_services(self) -> None:
        now = time.monotonic()
        self.deadline = now + self.deadline_s
        self.note("stopping", stopped={"monotonic": now, "wall": time.time()})
        with self.part("stop"):
            for command in self.request.get("stop", []):
                self.note(stop_commands=True)
                self.command(command, self.left(self.deadline_s))
            if self.record["triggers"]:
                must(["systemctl", "stop", "--"] + self.record["triggers"], self.left(60))
            for name in self.record["units"]:
                stop_unit(name, self.left(self.unit_time(name, "stop_timeout_s")))

    def unit_time(self, name: str, key: str) -> float:
        for unit in self.request.get("units", []):
            if unit["name"] == name:
                return float(unit.get(key) or 90.0)
        return 90.0

    def command(self, command: str, timeout_s: float) -> None:
        user_command(self.place, command, timeout_s, self.job.path("command.log"))

    # -- 3. to 5. unmount, prove it, forbid writing

    def unmount_all(self, side: str) -> None:
        """Every mount of that side, last first; then the proof that nobody has it in another mount
        namespace. umount itself is the check for holders: the scan for their names costs time and
        is made only when it fails."""
        self.note("unmounting")
        with self.part("unmount"):
            if self.sides.layers:  # a service may have removed a volume of its as it stopped
                self.remember_layers(SIDES)
            self.let_go(side, self.left)
            self.sides.flush(side)
            for disk in self.sides.disks(side):
                set_disk_read_only(disk, True)

    def let_go(self, side: str, time_for: Callable[[float], float]) -> None:
        self.sides.let_go(side, time_for, self.mover.has)
        self.sides.nobody_has_open(side, time_for, self.mover.pids)

    # -- 6. and 7. the final pass

    def final_pass(self) -> None:
        self.note("copying", final_pass_begun=True)
        result = self.mover.copy()
        withheld = result.pop("withheld", None)  # the mirror's alone
        self.note("releasing", final_pass=result, withheld=withheld)
        with self.part("release"):
            for side in SIDES[:1] if self.mover.holds_target else SIDES:
                for path in self.sides.paths(side):
                    most_s = self.left(10.0)
                    if not wait_until_free(path, most_s):
                        raise AgentError(
                            "busy",
                            "{} is still held {} after the final pass".format(
                                path, told_limit(most_s)
                            ),
                        )

    # -- 8. what an initramfs puts together by itself: the source has to go first

    @property
    def detach_first(self) -> bool:
        return bool(self.request.get("detach_first"))

    def await_detach(self) -> None:
        """LVM and md are put together before any rule of udev's is read (seen: three of four
        reboots came up on the wrong disk). So the target is shown only when the source is out of
        the server; taking it out is the controller's part. Once one of several sources is gone
        going back is its part as well, so that is waited for longer."""
        if not self.detach_first:
            return
        self.note("awaiting")
        with self.part("detach"):
            ends = self.deadline
            while True:
                left = [disk.kname for disk in self.sides.disks("source")]
                if not left:
                    return
                if len(left) < len(self.sides.pairs):
                    ends = max(ends, self.deadline + GO_BACK_S)
                if time.monotonic() >= ends:
                    raise AgentError(
                        "failed",
                        "the source ({}) was not detached within {}{}".format(
                            ", ".join(left),
                            told_limit(self.deadline_s),
                            ", nor in {} more".format(told_limit(GO_BACK_S))
                            if len(left) < len(self.sides.pairs)
                            else "",
                        ),
                    )
                self.job.report(
                    "awaiting", what="awaiting", left_s=round(ends - time.monotonic(), 1)
                )
                time.sleep(0.1)

    def may_go_on_without_source(self) -> bool:
        """The target is complete and the source is out of the server: there is only one way.

        After a restart it had to be gone before anything was mounted: one that went later was in
        use until then, and the target lacks what was written to it."""
        if self.record["boot_id"] != self.place.boot_id:
            if self.record["gone_at_boot"] != self.place.boot_id:
                return False
        phases = ("awaiting", "committing")
        return self.detach_first and self.record["phase"] in phases and self.sides.source_is_gone()

    def early(self) -> None:
        """At boot, before anything is mounted: the guest restarted while neither side could be
        recognised, so there is nothing yet that could be mounted. A boot that finds nothing to
        mount may end in an emergency shell, where nobody would go on."""
        if not self.found_record or self.record["phase"] == "done":
            return
        if not self.record["going_back"]:
            self.early_on_the_way()
        elif self.record["kept"] and not self.record["staying"]:
            self.early_on_the_way_back()

    def early_on_the_way(self) -> None:
        if not self.detach_first or self.record["phase"] not in ("awaiting", "committing"):
            return
        ends = time.monotonic() + EARLY_LOOK_S
        while self.sides.source_is_gone() and time.monotonic() < ends:
            time.sleep(0.2)
        if self.sides.source_is_gone():
            self.note(gone_at_boot=self.place.boot_id)
            self.commit()
        elif self.record["phase"] == "awaiting":
            # This boot goes on with the source. It may be taken out yet, but not be left behind.
            self.note(going_back="the guest restarted before the source was detached")

    def early_on_the_way_back(self) -> None:
        """The sources may be on their way; without them the boot goes on with the target. With some
        of them the time limit of the unit ends the wait."""
        try:
            if self.is_partly_committed():
                self.put_target_away()
            self.await_attach(EARLY_S)
        except Exception as error:  # noqa: BLE001 - as in go_forward
            self.show_again(self.words(error))

    # -- 9. the commit

    def is_committed(self) -> bool:
        """Read from the last side file. When that holds neither content (somebody else wrote it),
        or there is none, the phase has to tell."""
        if self.sides.files:
            last = self.sides.files[-1]
            now = content_if_plain(last["path"])
            contents = {side: side_content(last, side) for side in SIDES}
            if contents["source"] != contents["target"] and now in contents.values():
                return bool(now == contents["target"])
        return bool(FORWARD_PHASES.index(self.record["phase"]) >= FORWARD_PHASES.index("committed"))

    def commit(self) -> None:
        self.left(1)
        self.note("committing", shown=self.mover.holds_target)
        with self.part("commit"):
            self.mover.show()
            for file in self.sides.files:
                self.sides.put_side(file, "target")
            self.note("committed")
            self.sides.publish(self.left(10.0), self.left(RELOAD_S))
            if self.request.get("keep_standby"):
                self.stand_by()

    def stand_by(self) -> None:
        """The source is hidden from somewhere in here on; until it follows the target, what was
        kept of it brings it back."""
        self.note(source_hidden=True)
        self.mover.stand_by()
        self.note(standby=True)

    def end_stand_by(self, restarted: bool) -> None:
        """A swap of the roles that was cut is ended, if nobody has written to the target yet."""
        if not self.request.get("keep_standby") or self.record["standby"]:
            return
        if self.mover.is_standby():
            self.note(standby=True)
        elif not restarted and self.record["phase"] in ("committing", "committed"):
            self.stand_by()
        else:
            self.notes.append("the source is no standby: its mirror ended before it was one")
            if self.record["source_hidden"]:
                self.show_source()

    def show_source(self) -> None:
        """Not as the live side: as what it would be had no standby been asked for."""
        problems: List[str] = []
        if self.tried(problems, self.mover.show_source):
            self.note(source_hidden=False)
        for disk in self.disks_found(problems, "source"):
            self.tried(problems, functools.partial(set_disk_read_only, disk, True))
        self.notes += ["the source is hidden still: " + problem for problem in problems]

    # -- 9. and 10. mount and start

    def mount_and_start(self, lenient: bool = False) -> None:
        self.note("mounting")
        with self.part("mount"):
            self.bring_up("target", self.left)
        self.note("starting")
        with self.part("start"):
            self.start_services(self.left, lenient)
        now = {"monotonic": time.monotonic(), "wall": time.time()}
        self.note("settling", up_again=self.record["up_again"] or now)

    def bring_up(self, side: str, time_for: Callable[[float], float]) -> None:
        self.sides.bring_up(self.mounts, side, time_for)

    def start_services(self, time_for: Callable[[float], float], lenient: bool) -> None:
        """Sockets first: one cannot be started once its service runs. After a restart of the guest
        the user's command may find its service up already, so its failure is only told then."""
        for name in self.record["triggers"] + self.record["units"][::-1]:
            start_unit(name, time_for(self.unit_time(name, "start_timeout_s")))
            self.note_live()
        for command in self.request.get("start", []):
            self.note(start_commands=True)
            try:
                self.command(command, time_for(self.deadline_s))
                self.note_live()
            except AgentError as error:
                if not lenient:
                    raise
                self.notes.append(error.what)

    def note_live(self) -> None:
        """From here on somebody writes to the target alone."""
        if self.record["live"] is None:
            self.note(live=time.time())

    # -- 11. settle

    def settle(self) -> int:
        """Watch that what was started stays. The outcome is on disk already, as not settled."""
        self.note("settling", outcome=self.outcome("committed", ""))
        before = show(self.record["units"])
        moves: Dict[str, int] = {}
        settle_s = self.request.get("settle_s")
        ends = time.monotonic() + (60.0 if settle_s is None else float(settle_s))
        try:
            while True:
                self.look_after(before, moves)
                left = ends - time.monotonic()
                if left <= 0:
                    break
                self.job.report("settling", what="settling")
                time.sleep(min(1.0, left))
        except Exception as error:  # noqa: BLE001 - as in go_forward
            return self.take_back(self.words(error))
        return self.conclude("committed", "", settled=True)

    def look_after(self, before: Dict[str, Dict[str, str]], moves: Dict[str, int]) -> None:
        for plan in self.mounts:
            self.sides.verify_mount_stays(plan)
        for name, now in show(self.record["units"]).items():
            was = before[name]
            oneshot = now.get("Type") == "oneshot" and now.get("Result") == "success"
            if now.get("ActiveState") not in ("active", "reloading") and not oneshot:
                raise AgentError(
                    "failed", "{} became {} while settling".format(name, now.get("ActiveState"))
                )
            if now.get("NRestarts", "") != was.get("NRestarts", ""):
                raise AgentError("failed", "{} restarted by itself while settling".format(name))
            if now.get("MainPID") != was.get("MainPID"):
                moves[name] = moves.get(name, 0) + 1
                was["MainPID"] = now.get("MainPID", "")
                if moves[name] > 2:
                    raise AgentError("failed", "the main process of {} keeps changing".format(name))

    # -- going back

    def take_back(self, reason: str) -> int:
        """Everything in reverse, found by looking rather than by remembering. A step that fails is
        told, and the next one is tried all the same."""
        Log.say("going back: " + reason)
        problems: List[str] = []
        if self.detach_first and self.sides.source_is_gone() and not self.record["going_back"]:
            if self.may_go_on_without_source():
                return self.go_on(reason)
            if self.is_committed():
                return self.stay_forward(reason, ["the source was detached"])
        self.note(going_back=reason, outcome=None)
        self.mover.end()
        if self.record["final_pass_begun"] and not self.mover.holds_target:
            self.tried(problems, self.wait_for_namespaces)
        if self.is_partly_committed():
            self.tried(problems, self.stop_again)
            if not self.tried(problems, lambda: self.let_go("target", lambda most: GO_BACK_S)):
                return self.stay_forward(reason, problems)
            if self.record["source_hidden"] and not self.tried(problems, self.bring_back):
                return self.stay_forward(reason, problems)
            self.note_was_live()
            for file in reversed(self.sides.files):
                self.tried(problems, functools.partial(self.sides.put_side, file, "source"))
            if self.record["source_hidden"]:
                self.note(source_hidden=False, standby=False)
            self.tried(problems, self.mover.hide)
            self.tried(problems, lambda: self.sides.publish(30.0))
        else:
            self.tried(problems, self.mover.hide)
        return self.end_on_source(reason, problems)

    def end_on_source(self, reason: str, problems: List[str]) -> int:
        for disk in self.disks_found(problems, "source"):
            self.tried(problems, functools.partial(set_disk_read_only, disk, False))
        self.mount_and_start_what_was_up(problems, "source")
        if problems:
            reason += "; while going back: " + "; ".join(problems)
        up_again = {"monotonic": time.monotonic(), "wall": time.time()}
        self.note(up_again=up_again, problems=problems)
        return self.conclude("reverted", reason)

    def note_was_live(self) -> None:
        """For how long services could write to the target alone; nothing of that goes back."""
        since = self.record["live"]
        if since is None or (self.record["was_live_s"] and not self.is_live_since_boot()):
            return
        self.note(was_live_s=round(max(0.1, time.time() - since), 1))

    def is_live_since_boot(self) -> bool:
        """The guest restarted before the side files were put back: its boot went on with the
        target, and services were up on it before anybody of us."""
        return self.record["boot_id"] != self.place.boot_id and self.is_committed()

    def bring_back(self) -> None:
        """The source can be recognised again before the target is hidden, or is not hidden at all.
        What was written since the commit goes back too, if the source has followed the target."""
        self.deadline = time.monotonic() + self.deadline_s
        if not self.record["standby"] and self.mover.is_standby():
            self.note(standby=True)
        if not self.record["standby"]:
            self.mover.show_source()
            self.note(source_hidden=False)
            return
        try:
            if not self.is_brought_back():
                self.sides.flush("target")
                for disk in self.sides.disks("target"):
                    set_disk_read_only(disk, True)
                self.mover.copy_back()
        finally:
            for disk in self.sides.disks("target"):
                set_disk_read_only(disk, False)
        self.note(live=None)

    def is_brought_back(self) -> bool:
        """It was cut once the source could be recognised. What was kept of that is older than the
        rest of the source by now, and the target is no more followed: after a restart of the guest
        that goes on with the target it is the source that lacks writes."""
        shown = self.record["copied_back"] and not self.mover.is_standby()
        return bool(shown and not self.is_live_since_boot())

    def tried(self, problems: List[str], work: Callable[[], None]) -> bool:
        try:
            work()
        except Exception as error:  # noqa: BLE001 - going back goes on whatever happens
            problems.append(self.words(error))
            Log.say("problem: " + problems[-1])
            return False
        return True

    def disks_found(self, problems: List[str], side: str) -> List[Disk]:
        found: List[Disk] = []
        self.tried(problems, lambda: found.extend(self.sides.disks(side)))
        return found

    def wait_for_namespaces(self) -> None:
        """A final pass that was killed with its worker needs a moment to let go of both disks."""
        for number in range(len(self.sides.filesystems)):
            for side in SIDES:
                device = self.sides.device(number, side)
                if self.mover.has(device.path) or mounts_of(self.place, device.dev):
                    continue
                if not wait_until_free(device.path, NAMESPACES_S):
                    what = "{} is still held by somebody after {}"
                    raise AgentError("busy", what.format(device.path, told_limit(NAMESPACES_S)))

    def is_partly_committed(self) -> bool:
        """Some side file does not have the source's content, the target can be recognised, or
        something of it is mounted."""
        for file in self.sides.files:
            if content_if_plain(file["path"]) != side_content(file, "source"):
                return True
        if self.record.get("shown"):
            return True
        try:
            target = self.sides.numbers("target")
        except AgentError as error:
            # Of a disk that is not what it was nothing was shown. Going back must not end on it.
            Log.say("the target: {}".format(error.what))
            return False
        return any(device_number(entry) in target for entry in mount_table(self.place))

    def stop_again(self) -> None:
        if self.record["start_commands"]:
            for command in self.request.get("stop", []):
                self.command(command, GO_BACK_S)
        if self.record["triggers"]:
            must(["systemctl", "stop", "--"] + self.record["triggers"], GO_BACK_S)
        for name in self.record["units"]:
            stop_unit(name, GO_BACK_S)

    def mount_and_start_what_was_up(self, problems: List[str], side: str) -> None:
        """No service is started over an empty mount point: a database would begin anew there."""
        whole = self.tried(problems, lambda: self.bring_up(side, lambda most: GO_BACK_S))
        if whole or (self.mounts and self.sides.is_mounted(self.mounts, side)):
            if side == "target":
                # From here on it is written to, and what was kept of it is not what it holds.
                self.note(kept=False)
            self.start_what_was_up(problems)
        else:
            problems.append("services are left down, because their data is not mounted")

    def start_what_was_up(self, problems: List[str]) -> None:
        for name in self.record["triggers"] + self.record["units"][::-1]:
            self.tried(problems, functools.partial(self.start_again, name))
        if self.record["stop_commands"]:
            for command in self.request.get("start", []):
                self.tried(problems, functools.partial(self.command, command, GO_BACK_S))

    def start_again(self, name: str) -> None:
        """One that would not stop starts once systemd has ended it."""
        start_unit(name, GO_BACK_S + ending_s(name))

    def go_on(self, reason: str) -> int:
        self.notes.append(reason)
        self.deadline = time.monotonic() + self.deadline_s
        try:
            self.commit()
            self.mount_and_start(lenient=self.record["boot_id"] != self.place.boot_id)
        except Exception as error:  # noqa: BLE001 - as in go_forward
            return self.stay_forward(reason, [self.words(error), "the source was detached"])
        return self.settle()

    def stay_forward(self, reason: str, problems: List[str]) -> int:
        """The target stays the live side. Where it cannot be unmounted: switching the files beneath
        it would bring up the other side at the next restart."""
        self.mount_and_start_what_was_up(problems, "target")
        self.note(up_again={"monotonic": time.monotonic(), "wall": time.time()})
        if self.record["standby"]:
            self.mover.go_on()
        words = "{}; going back was not possible: {}".format(reason, "; ".join(problems))
        return self.conclude("committed", words)

    def go_back_on_request(self) -> int:
        """The job cutback: what the cutover did, undone; nothing is copied."""
        go_back = self.go_back_detached if self.detach_first else self.take_back
        if self.record["going_back"]:
            return go_back(self.record["going_back"])
        reason, live = "going back was asked for", "committed"
        try:
            self.same_namespace()
            if not self.is_partly_committed():
                live = "reverted"
                raise AgentError("refused", "the source is the live side already")
            if self.sides.is_whole("target"):
                self.note(mounts=[plan._asdict() for plan in self.sides.plan_mounts("target")])
                self.remember_units([unit["name"] for unit in self.request.get("units", [])])
            else:  # what was mounted and ran when it cut over is all that is known
                self.notes.append("somebody took the target out of the guest")
            # Without a standby the source has the volumes that it was left with.
            self.remember_layers(SIDES if self.record.get("standby") else ["target"])
            if self.record.get("standby"):
                self.mover.check()
            if self.place.has_systemd:
                self.supervisor.enable(early=self.detach_first)
        except Exception as error:  # noqa: BLE001 - nothing was touched yet
            if self.record.get("standby"):
                self.mover.go_on()
            return self.conclude(live, self.words(error))
        now = time.monotonic()
        self.deadline = now + self.deadline_s
        stopped = {"monotonic": now, "wall": time.time()}
        self.note("starting", stopped=stopped, stop_commands=True, start_commands=True)
        return go_back(reason)

    # -- going back to a source that was detached first

    def go_back_detached(self, reason: str) -> int:
        """The way there in the mirror: the target cannot be recognised any more when the source
        comes, so that no boot has a choice. Should it not come the target is shown again."""
        self.note(going_back=reason, outcome=None)
        if self.record["staying"]:
            return self.stay_on_target(self.record["staying"])
        problems: List[str] = []
        try:
            if self.is_partly_committed():
                self.tried(problems, self.stop_again)
                self.put_target_away()
            self.await_attach(self.deadline_s)
        except Exception as error:  # noqa: BLE001 - as in go_forward
            return self.stay_on_target(self.words(error))
        return self.end_on_source(reason, problems)

    def put_target_away(self) -> None:
        self.let_go("target", lambda most: GO_BACK_S)
        self.mover.put_away()
        for file in reversed(self.sides.files):
            self.sides.put_side(file, "source")
        self.sides.publish(30.0)

    def await_attach(self, most_s: float) -> None:
        """Putting the sources in is the controller's part. Beside one that is there the target may
        not be shown, so with some of them there the others are waited for without an end."""
        self.note("awaiting")
        with self.part("attach"):
            self.deadline = time.monotonic() + most_s
            while True:
                there = self.sides.disks("source")
                if len(there) == len(self.sides.pairs):
                    return
                left_s = GO_BACK_S if there else self.deadline - time.monotonic()
                if left_s <= 0:
                    raise AgentError(
                        "failed",
                        "the source was not attached within {}".format(told_limit(most_s)),
                    )
                if self.terminated:
                    self.leave_if_stopping()
                self.job.report("awaiting", what="awaiting", left_s=round(left_s, 1))
                time.sleep(0.1)

    def show_again(self, why: str) -> List[str]:
        """-> problems. From here on it is the target that everything goes on with."""
        problems: List[str] = []
        self.note(staying=why)
        self.tried(problems, self.mover.show_again)
        for file in self.sides.files:
            self.tried(problems, functools.partial(self.sides.put_side, file, "target"))
        self.tried(problems, lambda: self.sides.publish(30.0))
        return problems

    def stay_on_target(self, why: str) -> int:
        problems = self.show_again(why)
        return self.stay_forward(self.record["going_back"], [why, *problems])

    # -- the end

    def conclude(self, result: str, reason: str, settled: bool = False) -> int:
        if result == "committed" and settled:
            self.mover.leave()
        outcome = self.outcome(result, reason, settled)
        notes = self.record.get("notes", []) + self.notes
        self.note("done", outcome=outcome, notes=notes)
        return self.finish()

    def finish(self) -> int:
        """Tell the outcome of the record. Repeatable."""
        outcome = self.record["outcome"]
        Room.give_all()
        self.supervisor.disable()
        most_s = self.request.get("max_downtime_s")
        result = {
            "outcome": outcome,
            "notes": self.record.get("notes", []),
            "job_id": self.job_id,
            "within_budget": most_s is None or outcome["downtime_s"] <= float(most_s),
        }
        error = None
        if outcome["reason"] and not (self.back_only and outcome["result"] == "reverted"):
            error = AgentError(
                "failed",
                "the {} ended '{}': {}".format(
                    "cutback" if self.back_only else "cutover", outcome["result"], outcome["reason"]
                ),
                "the service's data is on the {}".format(outcome["live"]),
            ).as_json()
        self.job.end(result, error)
        return 0
