"""Jobs: what the supervisor runs, and how the controller sees it."""

import contextlib
import ctypes
import errno
import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import time
from typing import Any, Callable, Iterator, List, Optional, Set, Tuple

from volferry.agent.basics import (
    RELOAD_S,
    AgentError,
    Interrupt,
    Json,
    Log,
    Place,
    Stopped,
    environment,
    find_program,
    fsync_directory,
    is_below,
    launch,
    must,
    read_json,
    read_text,
    reap,
    replace_file,
    run,
    safe_name,
    to_bytes,
    told_limit,
    unfinished,
    write_atomically,
    write_json,
)
from volferry.agent.mounts import device_number, mount_table

JOBS = ("prepare", "pass", "cutover", "cutback", "mirror")

START_S = 20.0
LANES = ("", "mirror")
"""A transfer does one job at a time, and beside it the mirror, which lives from before the snapshot
until the end. Each lane has a folder of its own, and a unit of its own."""


def lane_of(request: Json) -> str:
    lane = "mirror" if request.get("job") == "mirror" else request.get("lane") or ""
    if lane not in LANES:
        raise AgentError("usage", "there is no lane '{}'".format(lane))
    return lane


def transfer_dir(state_dir: str) -> str:
    """The transfer's own folder, of that of any of its lanes."""
    above, name = os.path.split(state_dir)
    return above if name in LANES else state_dir


def lane_dir(place: Place, transfer: str, lane: str) -> str:
    folder = place.state_dir(transfer)
    return os.path.join(folder, lane) if lane else folder


class Job:
    """The files of the job in one lane of a transfer.

    ``job.json`` what was asked; ``status.json`` how it goes; ``worker.json`` which process does it.
    """

    def __init__(self, place: Place, state_dir: str) -> None:
        self.place, self.state_dir = place, state_dir
        self.began = time.monotonic()
        self.last_report = 0.0
        self.unwritten: Optional[Tuple[float, str]] = None
        """Since when no progress could be written, and why."""
        self.status: Json = {}

    def path(self, name: str) -> str:
        return os.path.join(self.state_dir, name)

    def read(self) -> Optional[Json]:
        job: Optional[Json] = read_json(self.path("job.json"))
        return job

    def read_status(self) -> Json:
        """Empty for a job that never began. Progress is not forced to disk: after a power cut XFS
        has the file's new name without its content. Such a job has begun, and did not end."""
        try:
            status: Json = read_json(self.path("status.json")) or {}
        except ValueError:
            return {"state": "running"}
        return status

    # -- written by the worker

    def enter(self) -> None:
        pid = os.getpid()
        identity = {
            "pid": pid,
            "started": process_started(self.place, pid),
            "boot_id": self.place.boot_id,
        }
        write_json(self.path("worker.json"), identity)

    def begin(self) -> None:
        """The first status is a record: by it a process that is begun again knows that it is."""
        self.status = {"state": "running", "phase": "starting", "progress": {"elapsed_s": 0.0}}
        write_json(self.path("status.json"), self.status)

    def report(self, phase: str, force: bool = False, **progress: Any) -> None:
        """Progress, at most twice a second. Nothing is decided by it: it is not fsynced, and the
        job goes on where it cannot be written."""
        now = time.monotonic()
        if not force and phase == self.status.get("phase") and now - self.last_report < 0.5:
            return
        self.last_report = now
        progress["elapsed_s"] = round(now - self.began, 3)
        self.status = {"state": "running", "phase": phase, "at": now, "progress": progress}
        content = json.dumps(self.status).encode("ascii")
        try:  # without the room that is kept for records
            replace_file(self.path("status.json"), content, 0o600, durable=False)
        except OSError as error:
            if self.unwritten is None:
                self.unwritten = (now, str(error))
                Log.say("no progress can be written, the job goes on: {}".format(error))
            return
        if self.unwritten is not None:  # the disk may have had no room for the first line either
            since, why = self.unwritten
            self.unwritten = None
            Log.say("no progress was written for {:.0f} s: {}".format(now - since, why))

    def end(self, result: Optional[Json], error: Optional[Json]) -> None:
        self.status = {
            "state": "ended",
            "phase": "done",
            "progress": {"elapsed_s": round(time.monotonic() - self.began, 3)},
            "result": result,
            "error": error,
        }
        write_json(self.path("status.json"), self.status)
        Log.say("ended: {}".format("ok" if error is None else error["what"]))

    # -- read by the controller's verbs

    def is_alive(self) -> bool:
        """A worker or its supervisor is there (by pid, start time and boot)."""
        return any(self.lives(name) for name in ("worker.json", "supervisor.json"))

    def lives(self, name: str) -> bool:
        identity = read_json(self.path(name))
        if not identity or identity["boot_id"] != self.place.boot_id:
            return False
        started = process_started(self.place, identity["pid"])
        return bool(started) and started == identity["started"]

    def state(self) -> str:
        if self.read() is None:
            return "none"
        if self.read_status().get("state") == "ended":
            return "ended"
        supervisor = Supervisor.of(self.place, self.state_dir)
        return "running" if self.is_alive() or supervisor.unit_is_alive() else "died"


def process_started(place: Place, pid: int) -> str:
    """Field 22 of /proc/<pid>/stat: with the boot it makes a pid unique. Empty for no process, and
    for a zombie, which does nothing any more."""
    text = read_text("{}/{}/stat".format(place.proc, pid))
    fields = text.rpartition(")")[2].split()
    return fields[19] if len(fields) > 19 and fields[0] not in "ZX" else ""


@contextlib.contextmanager
def locked(path: str, wait_s: float) -> Iterator[bool]:
    """An exclusive flock; False when somebody else keeps it for longer than ``wait_s``."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        deadline = time.monotonic() + wait_s
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                got = True
                break
            except OSError as error:
                if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                    raise
            if time.monotonic() >= deadline:
                got = False
                break
            time.sleep(0.02)
        yield got
    finally:
        os.close(fd)


UNIT_FILE = """\
# Written by volferry for transfer {transfer}; removed when it ends.
[Unit]
Description=volferry transfer {transfer}
After=local-fs.target
StartLimitIntervalSec=0

[Service]
Type=simple
ExecStart="{python}" -I "{agent}" work "{state_dir}"
Restart=on-failure
RestartSec=300ms
StartLimitInterval=0
KillMode=mixed
TimeoutStopSec=600
OOMScoreAdjust=-900
WorkingDirectory=/

[Install]
WantedBy=multi-user.target
"""


EARLY_UNIT_FILE = """\
# Written by volferry for transfer {transfer}; removed when its cutover ends.
[Unit]
Description=volferry transfer {transfer}, before local file systems
DefaultDependencies=no
RequiresMountsFor="{state_dir}"
After=systemd-remount-fs.service systemd-udev-settle.service
Wants=systemd-udev-settle.service
Before=local-fs.target
StartLimitIntervalSec=0

[Service]
Type=oneshot
ExecStart="{python}" -I "{agent}" early "{state_dir}"
TimeoutStartSec=120

[Install]
WantedBy=local-fs.target
"""


UNIT_NAME = re.compile(
    r"^volferry-(.+?)(?:-(?:{}))?(?:-early)?\.service\Z".format("|".join(filter(None, LANES)))
)
"""Whose a unit is. The last word of a transfer's id has four characters, so none ends so."""


class Supervisor:
    """Who starts the worker again when it is killed: systemd, or a small parent of our own.

    The unit is a file, not a transient one, and is enabled while a cutover is under way: a guest
    that restarts in the middle runs the same worker, which reads the same record.
    """

    def __init__(self, place: Place, transfer: str, lane: str = "") -> None:
        self.place, self.transfer = place, transfer
        name = "{}-{}".format(transfer, lane) if lane else transfer
        self.unit = "volferry-{}.service".format(name)
        folder = place.etc + "/systemd/system"
        self.unit_path = "{}/{}".format(folder, self.unit)
        self.wants_path = "{}/multi-user.target.wants/{}".format(folder, self.unit)
        self.early_path = "{}/volferry-{}-early.service".format(folder, name)
        self.early_wants_path = "{}/local-fs.target.wants/{}".format(
            folder, os.path.basename(self.early_path)
        )

    @classmethod
    def of(cls, place: Place, state_dir: str) -> "Supervisor":
        """The one whose worker works in that folder."""
        above, name = os.path.split(state_dir)
        if name in LANES:
            return cls(place, os.path.basename(above), name)
        return cls(place, name)

    def start(self, agent: str, state_dir: str, survive_reboot: bool) -> str:
        if self.place.has_systemd:
            self.start_unit(agent, state_dir, survive_reboot)
            return "systemd"
        spawn_orphan([sys.executable, "-I", agent, "supervise", state_dir])
        return "daemon"

    def start_unit(self, agent: str, state_dir: str, survive_reboot: bool) -> None:
        text = UNIT_FILE.format(
            transfer=self.transfer, python=sys.executable, agent=agent, state_dir=state_dir
        )
        if read_text(self.unit_path) != text:
            write_atomically(self.unit_path, text.encode("utf-8"), 0o644)
            must(["systemctl", "daemon-reload"], RELOAD_S)
        if survive_reboot:
            self.enable()
        deadline = time.monotonic() + 10
        while self.unit_is_alive() and time.monotonic() < deadline:
            time.sleep(0.05)  # the last worker has told its end and is about to go
        run(["systemctl", "reset-failed", "--", self.unit])
        must(["systemctl", "start", "--", self.unit], RELOAD_S)

    def enable(self, early: bool = False) -> None:
        """The link ``systemctl enable`` makes, without asking a systemd that may be shutting
        down. ``early``: also a unit that looks before file systems are mounted."""
        link(self.unit_path, self.wants_path)
        if early:
            transfer_dir = self.place.state_dir(self.transfer)
            text = EARLY_UNIT_FILE.format(
                transfer=self.transfer,
                python=sys.executable,
                agent=installed_agent(transfer_dir),
                state_dir=transfer_dir,
            )
            write_atomically(self.early_path, text.encode("utf-8"), 0o644)
            link(self.early_path, self.early_wants_path)

    def disable(self) -> None:
        unlink_durably(self.wants_path)
        unlink_durably(self.early_wants_path)
        unlink_durably(self.early_path)

    def unit_is_alive(self) -> bool:
        if not self.place.has_systemd or not os.path.exists(self.unit_path):
            return False
        state = run(["systemctl", "is-active", "--", self.unit]).out.strip()
        return state in ("active", "activating", "deactivating", "reloading")

    def remove_units(self) -> List[str]:
        """Whichever of them is there, the one of early boot too. -> those removed"""
        there = [path for path in (self.early_path, self.unit_path) if os.path.lexists(path)]
        self.disable()
        unlink_durably(self.unit_path)
        if there and self.place.has_systemd:
            must(["systemctl", "daemon-reload"], RELOAD_S)
        return there


def link(path: str, at: str) -> None:
    """A symbolic link that outlives a power cut."""
    folder = os.path.dirname(at)
    os.makedirs(folder, mode=0o755, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        os.symlink(path, at)
    fsync_directory(to_bytes(folder))


def unlink_durably(path: str) -> None:
    """The file, and what a killed writer of it left."""
    for one in (unfinished(path), to_bytes(path)):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(one)
            fsync_directory(os.path.dirname(one))


def spawn_orphan(argv: List[str]) -> None:
    """Start a program that nobody waits for, in a session of its own: the controller's ssh may go
    away."""
    pid = os.fork()
    if pid == 0:  # the child: never returns into the caller's code
        try:
            os.setsid()
            if os.fork() > 0:
                os._exit(0)
            null = os.open(os.devnull, os.O_RDWR)
            for fd in (0, 1, 2):
                os.dup2(null, fd)
            os.chdir("/")
            os.execve(argv[0], argv, environment())
        finally:
            os._exit(127)
    reap(pid, 10.0)


def supervise(state_dir: str) -> None:
    """The parent where there is no systemd: runs ``work`` again when it died, a bounded number of
    times; what such a worker left running in its process group is ended first."""
    place = place_of(state_dir)
    Log.path = os.path.join(state_dir, "log")
    pid = os.getpid()
    write_json(
        os.path.join(state_dir, "supervisor.json"),
        {"pid": pid, "started": process_started(place, pid), "boot_id": place.boot_id},
    )
    for attempt in range(10):
        child = launch(
            [sys.executable, "-I", os.path.abspath(__file__), "work", state_dir],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        code = child.wait()
        if code == 0:
            return
        end_group(child.pid)
        Log.say("the worker ended with {}, run {}".format(code, attempt + 1))
        time.sleep(0.1 + 0.2 * attempt)


def place_of(state_dir: str) -> Place:
    return Place(read_json(os.path.join(state_dir, "settings.json")))


def verb_start(place: Place, request: Json) -> Json:
    """Hand a job to the supervisor and return at once. The same job id again is the same as once; a
    job that died (worker and supervisor gone) is taken up again where its record says."""
    transfer = safe_name(request["transfer"], "transfer id")
    installed = place.state_dir(transfer)
    if not os.path.isdir(installed):
        raise AgentError("refused", "transfer '{}' is not installed in this guest".format(transfer))
    lane = lane_of(request)
    state_dir = lane_dir(place, transfer, lane)
    if lane:
        with contextlib.suppress(FileExistsError):
            os.mkdir(state_dir, 0o700)
        write_json(os.path.join(state_dir, "settings.json"), place.settings)
    name, job_id = request["job"], safe_name(request["job_id"], "job id")
    if name not in JOBS:
        raise AgentError("usage", "there is no job '{}'".format(name))
    supervisor = Supervisor(place, transfer, lane)
    with locked(os.path.join(state_dir, "start.lock"), START_S) as got:
        if not got:
            raise AgentError(
                "busy",
                "another start of transfer '{}' is still under way after {}".format(
                    transfer, told_limit(START_S)
                ),
            )
        job = Job(place, state_dir)
        before, state = job.read(), job.state()
        kind = "systemd" if place.has_systemd else "daemon"
        if before and before["job_id"] == job_id and state in ("running", "ended"):
            return {"job_id": job_id, "state": state, "supervisor": kind}
        if before and before["job_id"] != job_id:
            if state == "running":
                raise AgentError("busy", "job '{}' is still running".format(before["job_id"]))
            if state == "died" and before["job"] in ("cutover", "cutback"):
                raise AgentError(
                    "refused",
                    "{} '{}' died and has to be taken up first".format(
                        before["job"], before["job_id"]
                    ),
                    "services may be down",
                    "start the same job id again: it goes on from its own record",
                )
        if not before or before["job_id"] != job_id:
            job_request = remembered_request(job, name, request.get("request") or {})
            forget(job.path("status.json"))
            asked_for = {"job": name, "job_id": job_id, "request": job_request}
            write_json(job.path("job.json"), asked_for)
        forget(job.path("worker.json"))
        kind = supervisor.start(
            installed_agent(installed), state_dir, name in ("cutover", "cutback", "mirror")
        )
        deadline = time.monotonic() + 20
        while not os.path.exists(job.path("worker.json")) and time.monotonic() < deadline:
            time.sleep(0.02)
    return {"job_id": job_id, "state": job.state(), "supervisor": kind}


def forget(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def remembered_request(job: Job, name: str, request: Json) -> Json:
    """A cutover's request is kept, so that a cutback need not bring it again."""
    path = job.path("switch.json")
    if name == "cutover":
        write_json(path, request)
    elif name == "cutback" and not request:
        kept: Optional[Json] = read_json(path)
        if kept is None:
            raise AgentError("refused", "there was no cutover to go back from")
        return kept
    return request


def installed_agent(state_dir: str) -> str:
    """The agent that was installed last."""
    found = [name for name in os.listdir(state_dir) if re.match(r"^agent-[0-9a-f]{12}\.py$", name)]
    if not found:
        raise AgentError("refused", "no agent is installed in {}".format(state_dir))
    paths = [os.path.join(state_dir, name) for name in found]
    return max(paths, key=lambda path: os.lstat(path).st_mtime)


def verb_status(place: Place, request: Json) -> Json:
    state_dir = lane_dir(place, request["transfer"], lane_of(request))
    job = Job(place, state_dir)
    asked_for, state, status = job.read() or {}, job.state(), job.read_status()
    if job.read_status().get("state") == "ended":  # it may have ended between the two looks
        state, status = "ended", job.read_status()
    progress = status.get("progress", {})
    if state == "running" and "at" in status:  # it may be waiting for a service since it told it
        progress["elapsed_s"] = round(progress["elapsed_s"] + time.monotonic() - status["at"], 3)
    return {
        "job": asked_for.get("job", ""),
        "job_id": asked_for.get("job_id", ""),
        "state": state,
        "phase": status.get("phase", ""),
        "progress": progress,
        "result": status.get("result"),
        "error": status.get("error"),
        "log_tail": Log.tail(os.path.join(state_dir, "log")),
    }


def verb_stop(place: Place, request: Json) -> Json:
    """End the job: asked to at first, killed after ``grace_s``. Not once a cutover stopped
    something: it takes itself back when it has to, and better than anybody from outside."""
    transfer = safe_name(request["transfer"], "transfer id")
    lane = lane_of(request)
    state_dir = lane_dir(place, transfer, lane)
    job = Job(place, state_dir)
    if job.state() != "running":
        return {"stopped": False, "state": job.state()}
    record = read_json(job.path("cutover.json")) or {}
    asked_for = job.read() or {}
    if record.get("job_id") == asked_for.get("job_id") and record.get("phase") not in (
        None,
        "armed",
    ):
        raise AgentError(
            "refused",
            "the {} is in phase '{}' and ends by itself".format(asked_for["job"], record["phase"]),
            "services are down or coming up on exactly one side",
        )
    supervisor = Supervisor(place, transfer, lane)
    if lane:
        supervisor.disable()
    has_unit = supervisor.unit_is_alive()
    if has_unit:
        must(["systemctl", "stop", "--no-block", "--", supervisor.unit])
    told: Set[int] = set()
    deadline = time.monotonic() + float(request.get("grace_s", 15.0))
    while job.state() == "running" and time.monotonic() < deadline:
        # One that died is begun again by its supervisor, just now perhaps.
        worker = read_json(job.path("worker.json")) or {}
        if not has_unit and worker and worker["pid"] not in told and job.lives("worker.json"):
            told.add(worker["pid"])
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker["pid"], signal.SIGTERM)
        time.sleep(0.05)
    if job.state() == "running":
        worker = read_json(job.path("worker.json")) or {}
        if has_unit:
            must(["systemctl", "kill", "--signal=KILL", "--", supervisor.unit])
        elif worker and job.lives("worker.json"):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(worker["pid"], signal.SIGKILL)
        deadline = time.monotonic() + 10
        while job.state() == "running" and time.monotonic() < deadline:
            time.sleep(0.05)
    return {"stopped": True, "state": job.state()}


def on_sigterm(number: int, frame: Any) -> None:
    signal.signal(signal.SIGTERM, lambda *_: None)  # once is enough: clean-up is not disturbed
    Interrupt.arrived()


def end_group(pid: int) -> None:
    """Kill what is left of a process group that was made for a child of ours."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def attempt(work: Callable[[], Json]) -> Tuple[Optional[Json], Optional[Json]]:
    """The border between code that raises and files that tell. -> (result, error)"""
    try:
        return work(), None
    except AgentError as error:
        return None, error.as_json()
    except Stopped:
        return None, stopped().as_json()
    except Exception as error:  # noqa: BLE001 - a fault of ours has to be told as well, not lost
        Log.say("{}: {} at {}".format(type(error).__name__, error, where(error)))
        what = "{}: {} ({})".format(type(error).__name__, error, where(error))
        return None, AgentError("failed", what).as_json()


def stopped() -> AgentError:
    return AgentError("failed", "the job was stopped on request")


def where(error: BaseException) -> str:
    trace = error.__traceback__
    places = []
    while trace is not None:
        places.append("{}:{}".format(trace.tb_frame.f_code.co_name, trace.tb_lineno))
        trace = trace.tb_next
    return " ".join(places[-4:])


def raise_priority() -> None:
    """Undo ``lower_priority``: services are down and wait for us."""
    os.setpriority(os.PRIO_PROCESS, 0, 0)
    if find_program("ionice"):
        run(["ionice", "-c", "2", "-n", "0", "-p", str(os.getpid())])


def lower_priority() -> None:
    """A pass gives way to the service. The idle class needs a scheduler that knows it; where ionice
    is missing the pass runs as everybody."""
    os.setpriority(os.PRIO_PROCESS, 0, 10)
    if find_program("ionice"):
        run(["ionice", "-c", "3", "-p", str(os.getpid())])


CLONE_NEWNS = 0x00020000  # linux/sched.h

SYSTEM = (
    "/",
    "/usr",
    "/bin",
    "/sbin",
    "/lib",
    "/etc",
    "/var",
    "/tmp",
    "/run",
    "/proc",
    "/sys",
    "/dev",
)


def own_namespace(place: Place, needed: List[str]) -> None:
    """Go on in a mount namespace of our own: what is mounted here is seen by nobody else and
    vanishes with us, while an unmount in the guest still reaches it (slave).

    In a guest whose mounts are private (one without systemd) it does not, and our copy of another
    volume's mount would keep that volume busy for as long as we run. So what is not ``needed`` is
    unmounted here, where nobody else sees it.
    """
    unshare = getattr(os, "unshare", None)  # Python 3.12
    if unshare is not None:
        unshare(CLONE_NEWNS)
    elif ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNS) != 0:
        number = ctypes.get_errno()
        raise AgentError("failed", "unshare of the mount namespace: " + os.strerror(number))
    must(["mount", "--make-rslave", "/"])
    needed = [*needed, sys.executable, os.path.abspath(__file__), *SYSTEM]
    for entry in reversed(mount_table(place)):
        device_backed = not device_number(entry).startswith("0:")
        used = any(path == entry.target or is_below(path, entry.target) for path in needed)
        if entry.propagation == "private" and device_backed and not used:
            run(["umount", entry.target])  # one that is busy with another's mount stays
