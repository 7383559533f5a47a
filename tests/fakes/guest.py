"""A guest in memory: the agent's verbs, on disks that come and go with the fake cloud's volumes.

The contract suite runs on it and on the real agent with loop devices. ``LinuxGuest`` and the
methods speak to it unchanged, through a ``FakeChannel``; so what is faked is only what lies beyond
the channel. It lives on the cloud's clock: a job goes through its phases while time passes there,
also when no controller is alive.

    cloud = FakeCloud()
    server = cloud.add_server("web-03")
    source = cloud.add_volume("data", server=server)
    guest = FakeGuest(cloud, server)
    cloud.content[source] = {None: Filesystem("ext4", "0c3f…", files={"a": (b"1", 0.0)})}
    guest.put_into_fstab(source, "/srv/data")  # and mount it
    guest.serve("db.service", "/srv/data")     # a service that writes there all the time
    linux = LinuxGuest(FakeChannel(guest), "tr-1")

What a volume holds is a value: a change is a new one, so that snapshots are free. ``at_boot`` tells
which volumes a boot could mount; the lab proves that real guests agree.
"""

import base64
import dataclasses
import hashlib
import json
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TypeAlias

from tests.fakes.cloud import FakeCloud, When, nothing
from volferry.channels import Channel, Completed
from volferry.guests import fstab, linux
from volferry.model import Json

REQUEST_S = 0.05
PLUG_S = 0.3
"""From the cloud's word that a disk is attached to its being seen in the guest."""
PHASE_S = 0.4
SERVICE_S = 1.0
PREPARE = ("preparing",)
PASS = ("copying", "comparing")
CUTOVER = (
    "armed", "stopping", "unmounting", "copying", "comparing", "releasing", "awaiting",
    "committing", "mounting", "starting", "settling",
)  # fmt: skip
CUTBACK = ("armed", "hiding", "awaiting", "going back")
DETACHED_FIRST = ("hiding", "awaiting")
"""Phases that a job has only where its source has to be detached first."""
PHASES = {"prepare": PREPARE, "pass": PASS, "cutover": CUTOVER, "cutback": CUTBACK}
"""Another job of the agent is a line here, and a method ``_<job>`` below."""
CHUNK = 4096

Files: TypeAlias = Mapping[str, tuple[bytes, float]]
"""Content and ctime by name."""


@dataclasses.dataclass(frozen=True)
class Filesystem:
    fstype: str
    uuid: str
    label: str = ""
    files: Files = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Disk:
    kname: str
    dev: str
    read_only: bool = False

    @property
    def path(self) -> str:
        return f"/dev/{self.kname}"


@dataclasses.dataclass
class Mounted:
    volume_id: str
    partition: int | None


@dataclasses.dataclass
class Job:
    """The one job that a transfer has at a time. ``run`` counts its workers: a killed one's phases
    must not go on. ``record`` is what the agent would keep in ``cutover.json``."""

    name: str
    id: str
    request: Json
    state: str = "running"
    phase: str = ""
    result: Json | None = None
    error: Json | None = None
    run: int = 0
    record: Json = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Installed:
    """What lies in the state directory of a transfer."""

    agents: set[str]
    job: Job | None = None
    switch: Json | None = None
    mirror: "Mirror | None" = None
    prepared: set[str] = dataclasses.field(default_factory=set)


@dataclasses.dataclass
class Mirror:
    """The job in the lane of its own: notes writes, copies and compares, hides the targets.

    ``swapped``: the roles of its pairs are, because the old volume is a standby."""

    id: str
    sources: list[Json]
    state: str = "running"
    pairs: list[Json] = dataclasses.field(default_factory=list)
    swapped: bool = False
    held: bool = False
    passes: list[Json] = dataclasses.field(default_factory=list)
    process: int = 0
    """Another one each time that it is begun."""
    notes: list[str] = dataclasses.field(default_factory=list)


class Failed(Exception):
    """An error of the agent, as it would go over the wire."""

    def __init__(self, kind: str, what: str, data: str = "", hint: str = "") -> None:
        super().__init__(what)
        self.json: Json = {"kind": kind, "what": what, "data": data, "hint": hint}


class FakeGuest:
    def __init__(self, cloud: FakeCloud, server_id: str) -> None:
        self.cloud, self.server_id = cloud, server_id
        self.around_effect: Callable[[When, str], None] = nothing
        self.calls: list[str] = []
        """Every verb that changes something, in order."""
        self.disks: dict[str, Disk] = {}
        self.files: dict[str, str] = {"/etc/fstab": "# the user's\n"}
        self.mounts: dict[str, Mounted] = {}
        self.units: dict[str, bool] = {}
        self.serving: dict[str, str] = {}
        """Unit to mount point."""
        self.acknowledged: dict[str, int] = {}
        """Writes that a service was told are on its disk."""
        self.installed: dict[str, Installed] = {}
        self.claims: dict[str, str] = {}
        self.boot_id = "boot-1"
        self.reads_rules = True
        """Not where an initramfs puts together what lies on the disks."""
        cloud.on_attached.append(self._attached)
        cloud.on_detached.append(self._detached)
        for line in cloud._lines[server_id]:
            self._appear(line.volume_id)

    # ---- disks and mounts, as a test and the kernel see them -------------------------------------

    def _attached(self, server_id: str, volume_id: str) -> None:
        if server_id == self.server_id:
            self.cloud.after(PLUG_S, partial(self._appear, volume_id))

    def _appear(self, volume_id: str) -> None:
        if any(line.volume_id == volume_id for line in self.cloud._lines[self.server_id]):
            # The lowest that is free, as virtio_blk takes it.
            taken = {disk.kname for disk in self.disks.values()}
            number, kname = next(
                (number, f"vd{letter}")
                for number, letter in enumerate("bcdefghijklmnopqrstuvwxyz", 1)
                if f"vd{letter}" not in taken
            )
            self.disks[volume_id] = Disk(kname, f"252:{16 * number}")

    def _detached(self, server_id: str, volume_id: str) -> None:
        if server_id == self.server_id:
            self.disks.pop(volume_id, None)
            # systemd unmounts what is bound to a device that went away.
            self.mounts = {at: m for at, m in self.mounts.items() if m.volume_id != volume_id}

    def content(self, volume_id: str) -> dict[int | None, Filesystem]:
        return dict(self.cloud.content.get(volume_id) or {})

    def put(self, volume_id: str, partition: int | None, filesystem: Filesystem) -> None:
        if self.disks[volume_id].read_only:
            raise AssertionError(f"{volume_id} was written to while it was read-only")
        self.cloud.content[volume_id] = {**self.content(volume_id), partition: filesystem}

    def write(self, at: str, name: str, data: bytes | None) -> None:
        """Through a mount, as a service does; None removes."""
        where = self.mounts[at]
        here = self.content(where.volume_id)[where.partition]
        files = {n: file for n, file in here.files.items() if n != name}
        if data is not None:
            files[name] = (data, self.cloud.clock)
        self.put(where.volume_id, where.partition, dataclasses.replace(here, files=files))

    def seen(self, at: str) -> dict[str, bytes]:
        """What a mount point shows; nothing when nothing is mounted there."""
        where = self.mounts.get(at)
        if where is None:
            return {}
        files = self.content(where.volume_id)[where.partition].files
        return {name: data for name, (data, _) in files.items()}

    def put_into_fstab(self, volume_id: str, at: str, partition: int | None = None) -> None:
        """Mounted now and at every boot."""
        uuid, fstype = self._identity(volume_id, partition)
        self.files["/etc/fstab"] += f"UUID={uuid} {at} {fstype} defaults 0 2\n"
        self.mounts[at] = Mounted(volume_id, partition)

    def _identity(self, volume_id: str, partition: int | None) -> tuple[str, str]:
        filesystem = self.content(volume_id)[partition]
        return filesystem.uuid, filesystem.fstype

    def at_boot(self) -> dict[str, list[str]]:
        """Which volumes a boot could mount at each place of fstab. One, or it is a gamble."""
        rules = "".join(t for path, t in self.files.items() if path.startswith("/etc/udev/rules.d"))
        hidden = re.findall(r'ATTRS\{serial\}=="([^"*]+)\*"', rules) if self.reads_rules else []
        found: dict[str, list[str]] = {}
        for entry in fstab.parse(self.files["/etc/fstab"]):
            found[entry.target] = [
                volume_id
                for volume_id in self.disks
                if not volume_id.startswith(tuple(hidden))
                for partition, fs in self.content(volume_id).items()
                if fstab.names_device(entry.spec, self._names(volume_id, partition, fs))
            ]
        return found

    def _names(self, volume_id: str, partition: int | None, fs: Filesystem) -> list[str]:
        return [self._path(volume_id, partition), f"UUID={fs.uuid}", f"LABEL={fs.label}"]

    def _path(self, volume_id: str, partition: int | None) -> str:
        return self.disks[volume_id].path + ("" if partition is None else str(partition))

    # ---- services --------------------------------------------------------------------------------

    def serve(self, unit: str, at: str) -> None:
        self.units[unit], self.serving[unit], self.acknowledged[unit] = True, at, 0
        self.cloud.after(SERVICE_S, partial(self._served, unit))

    def _served(self, unit: str) -> None:
        """One more write that must never be lost, while the service is up."""
        if self.units[unit]:
            self.acknowledged[unit] += 1
            self.write(self.serving[unit], "written", b"%d" % self.acknowledged[unit])
        self.cloud.after(SERVICE_S, partial(self._served, unit))

    # ---- the wire --------------------------------------------------------------------------------

    def ran(self, argv: Sequence[str], stdin: bytes) -> tuple[int, str, str]:
        """A command that arrives. -> (exit code, output, complaint)"""
        if list(argv) == ["true"]:
            return 0, "", ""
        if argv[0] == "cat":
            return 0, self._mountinfo(), ""
        if argv[1:4] == ["-I", "-c", linux._RECEIVER]:
            size, _, rest = stdin.partition(b"\n")
            return 0, json.dumps(self.answer(argv[4], json.loads(rest[int(size) :]))) + "\n", ""
        if argv[1:4] == ["-I", "-c", linux._RUNNER]:
            transfer, module = argv[4].removeprefix(f"{linux.BASE}/"), argv[5]
            if transfer not in self.installed or module not in self.installed[transfer].agents:
                return 1, "", f"ModuleNotFoundError: No module named '{module}'"
            return 0, json.dumps(self.answer(argv[6], json.loads(stdin))) + "\n", ""
        if argv[1:3] == ["-I", "-c"]:
            return 0, "3.11\n", ""
        raise AssertionError(f"the fake guest has no program {argv}")

    def answer(self, verb: str, request: Json) -> Json:
        """One verb of the agent, with the power failing around those that change something."""
        said_to = request.get("message", {}).get("do", "")
        effect = f"{verb} {request.get('job') or said_to}".strip()
        changes = verb not in ("facts", "find", "status") and said_to != "figures"
        if changes:
            self.around_effect("before", effect)
            self.calls.append(effect)
        try:
            said: Json = {"ok": True, "result": getattr(self, f"_verb_{verb}")(request)}
        except Failed as failed:
            said = {"ok": False, "error": failed.json}
        if changes:
            self.around_effect("after", effect)
        return said

    def _transfer(self, request: Json) -> Installed:
        transfer = request["transfer"]
        if transfer not in self.installed:
            raise Failed("refused", f"transfer '{transfer}' is not installed in this guest")
        return self.installed[transfer]

    def _disk(self, ref: Json) -> Disk:
        disk = self._look_for(ref)
        if disk is None:
            raise Failed("missing", f"no disk answers to volume '{ref['volume_id']}'")
        return disk

    def _look_for(self, ref: Json) -> Disk | None:
        disk = self.disks.get(ref["volume_id"])
        size = self._size(ref["volume_id"]) if disk else 0
        if disk and size != ref["size_bytes"]:
            raise Failed(
                "doubt",
                f"{disk.path} answers to volume '{ref['volume_id']}' but has {size} bytes, "
                f"expected {ref['size_bytes']}",
            )
        return disk

    def _size(self, volume_id: str) -> int:
        return self.cloud._volume(volume_id).size_bytes

    # ---- looking ---------------------------------------------------------------------------------

    def _verb_find(self, request: Json) -> Json:
        return {"disks": [self._found(ref) for ref in request["refs"]]}

    def _found(self, ref: Json) -> Json:
        volume_id = ref["volume_id"]
        if self._look_for(ref) is None:
            return {"volume_id": volume_id, "state": "absent"}
        return {"volume_id": volume_id, "state": "present", "links": [], **self._shown(volume_id)}

    def _shown(self, volume_id: str) -> Json:
        disk, size = self.disks[volume_id], self._size(volume_id)
        numbers = [number for number in self.content(volume_id) if number]
        return {
            "path": disk.path,
            "kname": disk.kname,
            "dev": disk.dev,
            "size_bytes": size,
            "read_only": disk.read_only,
            "serial": volume_id[:20],
            "partitions": [
                {
                    "number": number,
                    "path": f"{disk.path}{number}",
                    "dev": self._dev(volume_id, number),
                    "size_bytes": size // len(numbers),
                }
                for number in numbers
            ],
        }

    def _dev(self, volume_id: str, partition: int | None) -> str:
        major, _, minor = self.disks[volume_id].dev.partition(":")
        return f"{major}:{int(minor) + (partition or 0)}"

    def _mountinfo(self) -> str:
        lines = ["1 0 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw"]
        for number, (at, where) in enumerate(self.mounts.items(), 2):
            _, fstype = self._identity(where.volume_id, where.partition)
            lines.append(
                f"{number} 1 {self._dev(where.volume_id, where.partition)} / {at} rw,relatime "
                f"shared:{number} - {fstype} {self._path(where.volume_id, where.partition)} rw"
            )
        return "\n".join(lines) + "\n"

    def _verb_facts(self, request: Json) -> Json:
        """As the agent's, without what ``linux_facts`` does not read."""
        wanted = [ref["volume_id"] for ref in request["refs"] if self._look_for(ref)]
        places = [(v, number) for v in wanted for number in self.content(v)]
        ours = {at: m for at, m in self.mounts.items() if m.volume_id in wanted}
        units = [unit for unit, at in self.serving.items() if at in ours] + request.get("units", [])
        return {
            "os_release": 'ID=debian\nPRETTY_NAME="Debian GNU/Linux 12 (fake)"\n',
            "uname": {"release": "6.1.0-fake"},
            "uid": 0,
            "python": "3.11.2",
            "hostname": "fake",
            "systemd_version": "systemd 252 (252)",
            "mountinfo": self._mountinfo(),
            "fstab": self.files["/etc/fstab"],
            "sysblock": [{**self._shown(v), "ro": d.read_only} for v, d in self.disks.items()],
            "sources": {v: self.disks[v].kname for v in wanted},
            "blkid": {self._path(v, n): self._blkid(v, n) for v, n in places},
            "sfdisk": {
                self.disks[v].path: "label: gpt\n" for v in wanted if None not in self.content(v)
            },
            "tools": {name: {"path": f"/usr/bin/{name}"} for name in linux_tools()},
            "mount_units": [
                {"target": at, "show": f"Id={at[1:].replace('/', '-')}.mount\n"
                 "SourcePath=/etc/fstab\n"} for at in ours
            ],
            "units": "\n\n".join(
                f"Id={unit}\nLoadState=loaded\nActiveState="
                f"{'active' if self.units[unit] else 'inactive'}\nUnitFileState=enabled"
                for unit in dict.fromkeys(units)
                if unit in self.units
            ),
            "statvfs": {at: {"used_bytes": 1 << 20, "inodes_used": 10} for at in ours},
            "holders": [
                {"kind": "process", "pid": 100, "comm": unit.partition(".")[0], "path": at,
                 "cgroup": f"0::/system.slice/{unit}"}
                for unit, at in self.serving.items()
                if at in ours and self.units[unit]
            ],
            "walk": {at: {"entries": 10, "seconds": 0.01, "finished": True} for at in ours},
            "var_free": 1 << 30,
        }  # fmt: skip

    def _blkid(self, volume_id: str, partition: int | None) -> Json:
        filesystem = self.content(volume_id)[partition]
        found = {"TYPE": filesystem.fstype, "UUID": filesystem.uuid, "LABEL": filesystem.label}
        return {key: value for key, value in found.items() if value}

    # ---- putting in and taking out ---------------------------------------------------------------

    def _verb_install(self, request: Json) -> Json:
        transfer, volumes = request["transfer"], [s["volume_id"] for s in request["sources"]]
        for volume_id in volumes:
            holder = self.claims.get(volume_id, transfer)
            if holder != transfer:
                raise Failed("refused", f"volume '{volume_id}' is claimed by transfer '{holder}'")
        self.claims |= dict.fromkeys(volumes, transfer)
        program = base64.b64decode(request["program_b64"])
        if program[:1] == b"\x78":
            program = zlib.decompress(program)
        agent = f"agent-{hashlib.sha256(program).hexdigest()[:12]}"
        self.installed.setdefault(transfer, Installed(set())).agents.add(agent)
        state_dir = f"{linux.BASE}/{transfer}"
        claims = [f"{linux.BASE}/claims/{volume_id}" for volume_id in volumes]
        return {"state_dir": state_dir, "agent": f"{state_dir}/{agent}.py", "claims": claims}

    def _verb_apply(self, request: Json) -> Json:
        for file in request["files"]:
            now = self.files.get(file["path"])
            if "expect" in file and now not in (file["expect"], file["content"]):
                raise Failed(
                    "doubt",
                    f"{file['path']} is not what it was: it was changed by somebody else",
                    "nothing was written",
                )
        result: Json = {"written": [], "removed": [], "same": [], "skipped": []}
        for file in request["files"]:
            changed = self._put_file(file["path"], file["content"])
            what = "same" if not changed else "removed" if file["content"] is None else "written"
            result[what].append(file["path"])
        return result

    def _put_file(self, path: str, content: str | None) -> bool:
        if self.files.get(path) == content:
            return False
        if content is None:
            del self.files[path]
        else:
            self.files[path] = content
        return True

    def _verb_uninstall(self, request: Json) -> Json:
        transfer = request["transfer"]
        job = self.installed[transfer].job if transfer in self.installed else None
        mirror = self.installed[transfer].mirror if transfer in self.installed else None
        if (job and job.state == "running") or (mirror and mirror.state == "running"):
            raise Failed("busy", f"a job of transfer '{transfer}' is still running")
        removed = [path for path in request["files"] if self._put_file(path, None)]
        for volume_id in [v for v, holder in self.claims.items() if holder == transfer]:
            del self.claims[volume_id]
            removed.append(f"{linux.BASE}/claims/{volume_id}")
        if self.installed.pop(transfer, None):
            removed.append(f"{linux.BASE}/{transfer}")
        return {"removed": removed, "left": []}

    # ---- jobs ------------------------------------------------------------------------------------

    def _verb_start(self, request: Json) -> Json:
        here, name, job_id = self._transfer(request), request["job"], request["job_id"]
        if name == "mirror":
            return self._start_mirror(here, job_id, request["request"])
        if name not in PHASES:
            raise Failed("usage", f"there is no job '{name}'")
        before = here.job
        if before and before.id == job_id:
            if before.state == "died":
                before.state = "running"
                self._take_up(here, before)
            return {"job_id": job_id, "state": before.state, "supervisor": "systemd"}
        if before and before.state == "running":
            raise Failed("busy", f"job '{before.id}' is still running")
        if before and before.state == "died" and before.name in ("cutover", "cutback"):
            raise Failed(
                "refused",
                f"{before.name} '{before.id}' died and has to be taken up first",
                "services may be down",
                "start the same job id again: it goes on from its own record",
            )
        asked: Json = request.get("request") or {}
        if name == "cutover":
            here.switch = asked
        elif name == "cutback" and not asked:
            if here.switch is None:
                raise Failed("refused", "there was no cutover to go back from")
            asked = here.switch
        here.job = Job(name, job_id, asked)
        if name == "cutback" and before:
            here.job.record["standby"] = before.record.get("standby", False)
        self._enter(here, here.job, 0)
        return {"job_id": job_id, "state": "running", "supervisor": "systemd"}

    def _verb_status(self, request: Json) -> Json:
        here = self.installed.get(request["transfer"])
        if request.get("lane") == "mirror":
            return self._mirror_status(here.mirror if here else None)
        job = here.job if here else None
        if job is None:
            return {"job": "", "job_id": "", "state": "none", "phase": "", "progress": {},
                    "result": None, "error": None, "log_tail": []}  # fmt: skip
        return {
            "job": job.name,
            "job_id": job.id,
            "state": job.state,
            "phase": job.phase,
            "progress": {"elapsed_s": 0.0, **self._left(job)},
            "result": job.result,
            "error": job.error,
            "log_tail": [],
        }

    def _verb_stop(self, request: Json) -> Json:
        here = self.installed.get(request["transfer"])
        if request.get("lane") == "mirror":
            mirror = here.mirror if here else None
            stopped = bool(mirror and mirror.state == "running")
            if mirror and stopped:
                mirror.state = "ended"
            return {"stopped": stopped, "state": mirror.state if mirror else "none"}
        job = here.job if here else None
        if job is None or job.state != "running":
            return {"stopped": False, "state": job.state if job else "none"}
        if job.name in ("cutover", "cutback") and job.phase != "armed":
            raise Failed(
                "refused",
                f"the {job.name} is in phase '{job.phase}' and ends by itself",
                "services are down or coming up on exactly one side",
            )
        if job.name in ("cutover", "cutback"):
            self._conclude(job, "reverted", "the cutover was stopped on request")
        else:
            self._end(job, None, Failed("failed", "the job was stopped on request"))
        return {"stopped": True, "state": job.state}

    def kill_agent(self, transfer: str) -> None:
        """The worker and whoever would start it again are gone."""
        job = self.installed[transfer].job
        if job and job.state == "running":
            job.run, job.state = job.run + 1, "died"

    def _enter(self, here: Installed, job: Job, number: int) -> None:
        """Begin a phase; what it does happens when its time has passed."""
        job.phase = _phases(job)[number]
        if job.phase == "awaiting":
            deadline_s = float(job.request.get("deadline_s") or 120.0)
            job.record.setdefault("ends", self.cloud.clock + deadline_s)
        seconds = PHASE_S + self._takes(job)
        self.cloud.after(seconds, partial(self._pass_phase, here, job, job.run, number))

    def _takes(self, job: Job) -> float:
        """What a phase costs beyond the usual: the user's ``sleep N``, and the settling."""
        if job.phase == "settling":
            return float(job.request.get("settle_s") or 0)
        commands = {"stopping": "stop", "starting": "start"}.get(job.phase, "")
        words = [command.split() for command in job.request.get(commands, [])]
        return sum(float(word[1]) for word in words if word[0] == "sleep")

    def _pass_phase(self, here: Installed, job: Job, run: int, number: int) -> None:
        if job.run != run or job.state != "running":
            return
        try:
            if job.phase == "awaiting" and self._waits(job):
                self._enter(here, job, number)
                return
            result: Json | None = getattr(self, f"_{job.name}")(here, job)
        except Failed as failed:
            if job.name == "cutover":
                self._take_back(here, job, failed.json["what"])
            elif job.name == "cutback" and job.phase == "armed":
                self._conclude(job, "committed", failed.json["what"])
            elif job.name == "cutback" and job.request.get("detach_first"):
                self._stay_on_target(job, failed.json["what"])
            else:
                self._end(job, None, failed)
            return
        last = number + 1 == len(_phases(job))
        if last and job.state == "running":
            self._end(job, result, None)
        elif job.state == "running":
            self._enter(here, job, number + 1)

    def _end(self, job: Job, result: Json | None, error: Failed | None) -> None:
        job.state, job.phase = "ended", "done"
        job.result, job.error = result, error.json if error else None

    def _take_up(self, here: Installed, job: Job) -> None:
        """Of a job whose worker died; only a cutover goes on from where it was."""
        if job.name not in ("cutover", "cutback"):
            self._end(job, None, Failed("failed", "the job's process died"))
        elif job.name == "cutback":
            self._enter(here, job, _phases(job).index(job.phase))
        elif CUTOVER.index(job.phase) > CUTOVER.index("committing"):
            self._enter(here, job, _phases(job).index("mounting"))
        elif job.phase in ("awaiting", "committing") and not any(self._sources(job)):
            self._enter(here, job, _phases(job).index("committing"))
        elif job.phase == "armed":
            self._conclude(job, "reverted", "the agent was killed in phase 'armed'")
        else:
            self._take_back(here, job, f"the agent was killed in phase '{job.phase}'")

    # -- prepare

    def _prepare(self, here: Installed, job: Job) -> Json:
        asked = job.request
        target_id = asked["target"]["volume_id"]
        self._disk(asked["source"])
        self._disk(asked["target"])
        if any(where.volume_id == target_id for where in self.mounts.values()):
            raise Failed("doubt", f"the target {self.disks[target_id].path} is in use by somebody")
        if asked["seed"] == "blank" and self.content(target_id) and target_id not in here.prepared:
            raise Failed("refused", f"{self.disks[target_id].path} is not blank")
        here.prepared.add(target_id)
        made = []
        for number, fs in enumerate(asked["filesystems"]):
            partition, keep = fs["target"]["partition"], fs["keep_uuid"]
            uuid = fs["uuid"] if keep else f"{number:08x}-{target_id[9:]}"
            was = self.content(target_id).get(partition) or Filesystem("", "")
            new = dataclasses.replace(was, fstype=fs["fstype"], uuid=uuid, label=fs["label"])
            self.put(target_id, partition, new)
            made.append(
                {
                    "partition": partition,
                    "device": self._path(target_id, partition),
                    "fstype": fs["fstype"],
                    "uuid": uuid,
                    "label": fs["label"],
                    "partuuid": "",
                    "size_bytes": self._size(target_id),
                    "grown": bool(asked["grow"]),
                }
            )
        return {
            "filesystems": made,
            "notes": [],
            "publish_s": 0.01,
            "mount_s": 0.01,
            "systemctl_s": 0.01,
        }

    # -- pass

    def _pass(self, here: Installed, job: Job) -> Json | None:
        del here
        if job.phase == "copying":
            self._copy(job)
            return None
        return self._compare(job, final=False)

    def _copy(self, job: Job) -> None:
        counts = {"files_copied": 0, "files_deleted": 0, "bytes_copied": 0}
        for fs in job.request["filesystems"]:
            self._disk(fs["source"])
            self._disk(fs["target"])
            mine, theirs = self._of(fs["source"]), self._of(fs["target"])
            new = {n: f for n, f in mine.files.items() if theirs.files.get(n, (None,))[0] != f[0]}
            counts["files_copied"] += len(new)
            counts["bytes_copied"] += sum(len(data) for data, _ in new.values())
            counts["files_deleted"] += len(theirs.files.keys() - mine.files.keys())
            copied = dataclasses.replace(theirs, files=mine.files)
            self.put(fs["target"]["volume_id"], fs["target"]["partition"], copied)
        job.record |= {"began": self.cloud.clock, "counts": counts}

    def _of(self, ref: Json) -> Filesystem:
        return self.content(ref["volume_id"])[ref["partition"]]

    def _compare(self, job: Job, *, final: bool) -> Json:
        """Every file that may have changed since the watermark, read from both sides."""
        asked, began = job.request, job.record["began"]
        known = asked.get("watermark") if asked.get("boot_id") == self.boot_id else None
        compared, differ, size = 0, 0, 0
        for fs in asked["filesystems"]:
            mine, theirs = self._of(fs["source"]).files, self._of(fs["target"]).files
            for name, (data, changed) in mine.items():
                if known is not None and changed < known:
                    continue
                compared, size = compared + 1, size + len(data)
                differ += theirs.get(name, (None,))[0] != data
        return {
            "number": int(asked.get("number") or 0),
            "final": final,
            "started_at": began,
            "copy_s": PHASE_S,
            "compare_s": PHASE_S,
            "files_total": sum(len(self._of(fs["source"]).files) for fs in asked["filesystems"]),
            **job.record["counts"],
            "files_compared": compared,
            "bytes_compared": size,
            "changed_meanwhile": differ,
            "healed": 0,
            "watermark": began,
            "clock_offset": 0.0,
            "boot_id": self.boot_id,
            "full": known is None,
            "itemized_counts": {},
            "notes": [],
        }

    # -- the mirror

    def _start_mirror(self, here: Installed, job_id: str, asked: Json) -> Json:
        before = here.mirror
        if before is None or before.state != "running":
            for ref in asked["sources"]:
                self._disk(ref)
            here.mirror = Mirror(job_id, asked["sources"])
            if before:
                here.mirror.pairs, here.mirror.swapped = before.pairs, before.swapped
                here.mirror.process = before.process + 1
                why = asked.get("suspect", "the agent or the guest was restarted")
                here.mirror.notes = [*before.notes, f"everything is compared again: {why}"]
            self.cloud.after(PHASE_S, partial(self._mirror_turn, here.mirror))
        return {"job_id": job_id, "state": "running", "supervisor": "systemd"}

    def _mirror_status(self, mirror: Mirror | None) -> Json:
        running = mirror is not None and mirror.state == "running"
        return {
            "job": "mirror" if mirror else "",
            "job_id": mirror.id if mirror else "",
            "state": mirror.state if mirror else "none",
            "phase": "current" if running else "done",
            "progress": {"figures": self._figures(mirror), "elapsed_s": 0.0} if mirror else {},
            "result": None,
            "error": None,
            "log_tail": [],
        }

    def _figures(self, mirror: Mirror) -> Json:
        return {
            "phase": "current",
            "passes": mirror.passes,
            "dirty_bytes": 0,
            "dirty_bytes_s": 0.0,
            "unverified_bytes": 0,
            "copy_bytes_s": 1e9,
            "compare_bytes_s": 1e9,
            "mask_s": 0.01,
            "publish_s": 0.01,
            "systemctl_s": 0.01,
            "pace": 0.05,
            "verified": bool(mirror.passes),
            "verify": "full",
            "standby": mirror.swapped,
            "notes": mirror.notes[-20:],
            "notes_id": "mirror",
            "notes_count": len(mirror.notes),
        }

    def _verb_tell(self, request: Json) -> Json:
        here = self._transfer(request)
        if here.mirror is None or here.mirror.state != "running":
            raise Failed("missing", "the mirror is not running")
        return self._obey(here.mirror, request["message"])

    def _obey(self, mirror: Mirror, message: Json) -> Json:
        do = message["do"]
        if do == "pairs" and not mirror.pairs:
            for pair in message["pairs"]:
                self._disk(pair["source"])
                self._disk(pair["target"])
            mirror.pairs = message["pairs"]
            self._hide(mirror.pairs)
        elif do == "ready":
            mirror.held = True
        elif do == "mask":
            mirror.held = False
            self._hide(mirror.pairs)
        elif do == "stop":
            mirror.state = "ended"
        return self._figures(mirror)

    def _mirror_turn(self, mirror: Mirror) -> None:
        """A pass, and the next one after a breath."""
        gone = any(pair["target"]["volume_id"] not in self.disks for pair in mirror.pairs)
        if mirror.state == "running" and gone:
            mirror.state = "ended"  # it has the disk open, and reads and writes fail now
        if mirror.state != "running":
            return
        if mirror.pairs and not mirror.held:
            self._mirror_pass(mirror)
        self.cloud.after(2 * PHASE_S, partial(self._mirror_turn, mirror))

    def _mirror_pass(self, mirror: Mirror, *, final: bool = False) -> Json:
        changed = [self._mirror_pair(pair) for pair in mirror.pairs]
        number = len(mirror.passes) + 1
        one = {
            "id": f"{mirror.process}.{number}",
            "number": number,
            "final": final,
            "started_at": self.cloud.clock,
            "bytes_copied": sum(changed) * CHUNK,
            "chunks_copied": sum(changed),
            "bytes_compared": CHUNK,
            "chunks_compared": 1,
            "changed_meanwhile": 0,
            "healed": 0,
            "differed_after_loss": 0,
            "copy_s": PHASE_S,
            "compare_s": PHASE_S,
            "boot_id": self.boot_id,
        }
        mirror.passes = [*mirror.passes, one][-50:]
        return one

    def _mirror_pair(self, pair: Json) -> int:
        """Every filesystem, without what it is known by. -> how many files changed"""
        source, target = (self.content(pair[side]["volume_id"]) for side in ("source", "target"))
        changed = 0
        for partition, mine in source.items():
            theirs = target.get(partition) or Filesystem("", "")
            changed += mine.files != theirs.files
            copied = dataclasses.replace(theirs, files=mine.files)
            self.put(pair["target"]["volume_id"], partition, copied)
        return changed

    def _hide(self, pairs: list[Json]) -> None:
        for pair in pairs:
            for partition, fs in self.content(pair["target"]["volume_id"]).items():
                hidden = dataclasses.replace(fs, fstype="", uuid="", label="")
                self.put(pair["target"]["volume_id"], partition, hidden)

    def _show(self, pairs: list[Json]) -> None:
        """The commit on the target's side."""
        for pair in pairs:
            for partition, mine in self.content(pair["source"]["volume_id"]).items():
                theirs = self.content(pair["target"]["volume_id"])[partition]
                shown = dataclasses.replace(mine, files=theirs.files)
                self.put(pair["target"]["volume_id"], partition, shown)

    def _stand_by(self, mirror: Mirror) -> None:
        """The source is hidden, and follows the target from here on."""
        mirror.pairs = [
            {"source": pair["target"], "target": pair["source"]} for pair in mirror.pairs
        ]
        mirror.swapped, mirror.held = True, False
        for pair in mirror.pairs:
            self._disk(pair["target"]).read_only = False
        self._hide(mirror.pairs)

    def _get_ready(self, here: Installed) -> Mirror:
        """The mirror of a standby that has to be gone back to."""
        if here.mirror is None or here.mirror.state != "running":
            raise Failed("missing", "nobody listens")
        if not (here.mirror.swapped and here.mirror.passes):
            raise Failed("refused", "not everything has been compared")
        here.mirror.held = True
        return here.mirror

    def _bring_back(self, here: Installed, job: Job) -> None:
        """The source gets the last writes, and can be recognised; then its mirror ends."""
        mirror = self._get_ready(here)
        job.record["final_pass"] = self._mirror_pass(mirror, final=True)
        self._show(mirror.pairs)
        mirror.state, mirror.pairs, mirror.swapped = "ended", [], False
        job.record["standby"] = False

    def _mirror_of(self, here: Installed, job: Job) -> Mirror | None:
        """The mirror that a cutover asks, None for another method."""
        if job.request.get("method") != "mirror":
            return None
        if here.mirror is None or (here.mirror.state != "running" and job.name == "cutover"):
            raise Failed("missing", "the mirror is not running")
        return here.mirror

    # -- cutover and cutback

    def _cutover(self, here: Installed, job: Job) -> None:
        mirror = self._mirror_of(here, job)
        if mirror and job.phase in ("copying", "comparing"):
            for pair in mirror.pairs:
                self._disk(pair["source"]).read_only = True
            job.record["final_pass"] = self._mirror_pass(mirror, final=True)
        else:
            getattr(self, f"_cutover_{job.phase}")(job)
        if mirror and job.phase == "armed":
            mirror.held = True
        elif mirror and job.phase == "committing":
            self._show(mirror.pairs)
            if job.request.get("keep_standby"):
                self._stand_by(mirror)
                job.record["standby"] = True
        elif mirror and job.phase == "settling" and not mirror.swapped:
            mirror.state = "ended"
        if job.phase == "settling":
            self._conclude(job, "committed", "", settled=True)

    def _cutover_armed(self, job: Job) -> None:
        asked = job.request
        for fs in asked["filesystems"]:
            self._disk(fs["source"])
            if self._disk(fs["target"]).read_only:
                raise Failed("refused", "the target is read-only")
        if asked.get("watermark") is not None and asked.get("boot_id") != self.boot_id:
            raise Failed("refused", "the watermark is void: the guest was restarted")
        for file in asked["sides"]["files"]:
            if self.files.get(file["path"]) != file["source"]:
                raise Failed("doubt", f"{file['path']} is not what it should be before the cutover")
        for fs in asked["filesystems"]:
            for mount in fs["mounts"]:
                where = self.mounts.get(mount["target"])
                if where is None or where.volume_id != fs["source"]["volume_id"]:
                    raise Failed("doubt", f"{mount['target']} is not mounted from the source")

    def _cutover_stopping(self, job: Job) -> None:
        job.record["stopped"] = self.cloud.clock - PHASE_S
        self._services(job, up=False)

    def _cutover_unmounting(self, job: Job) -> None:
        self._unmount(job)

    def _cutover_copying(self, job: Job) -> None:
        for fs in job.request["filesystems"]:
            self._disk(fs["source"]).read_only = True
        self._copy(job)

    def _cutover_comparing(self, job: Job) -> None:
        job.record["final_pass"] = self._compare(job, final=True)
        if job.record["final_pass"]["changed_meanwhile"]:
            raise Failed("failed", "source and target differ after the final pass")

    def _cutover_releasing(self, job: Job) -> None:
        """The final pass lets go of both disks."""

    def _cutover_awaiting(self, job: Job) -> None:
        """The source is gone: only the target may be recognised now."""

    def _cutover_committing(self, job: Job) -> None:
        for file in job.request["sides"]["files"]:
            self._put_file(file["path"], file["target"])

    def _cutover_mounting(self, job: Job) -> None:
        self._mount(job, "target")

    def _cutover_starting(self, job: Job) -> None:
        self._services(job, up=True)
        job.record["up_again"] = self.cloud.clock

    def _cutover_settling(self, job: Job) -> None:
        """The service is still up."""

    def _cutback(self, here: Installed, job: Job) -> None:
        if job.phase == "armed":
            files = job.request["sides"]["files"]
            if all(self.files.get(file["path"]) == file["source"] for file in files):
                self._conclude(job, "reverted", "the source is the live side already")
            elif job.record.get("standby"):
                self._get_ready(here)
            return
        if job.phase == "awaiting":
            return
        job.record.setdefault("stopped", self.cloud.clock - PHASE_S)
        self._services(job, up=False)
        if job.phase == "hiding":
            self._put_away(here, job)
        else:
            self._take_back(here, job, "going back was asked for")

    def _sources(self, job: Job) -> list[bool]:
        """Of each whether it is there."""
        return [self._look_for(fs["source"]) is not None for fs in job.request["filesystems"]]

    def _left(self, job: Job) -> Json:
        if job.phase != "awaiting":
            return {}
        there = self._sources(job)
        moving = any(there) and not all(there)
        return {"left_s": 300.0 if moving else job.record["ends"] - self.cloud.clock}

    def _waits(self, job: Job) -> bool:
        """For the controller to take the sources out, or to put them in."""
        there, back = self._sources(job), job.name == "cutback"
        if all(there) if back else not any(there):
            return False
        if self._left(job)["left_s"] <= 0:
            raise Failed("failed", f"the source was not {'at' if back else 'de'}tached in time")
        return True

    def _put_away(self, here: Installed, job: Job) -> None:
        self._unmount(job)
        if job.record.get("standby"):
            self._bring_back(here, job)
        if job.request.get("method") == "mirror" and here.mirror:
            self._hide(job.request["pairs"])
        for file in reversed(job.request["sides"]["files"]):
            self._put_file(file["path"], file["source"])

    def _stay_on_target(self, job: Job, why: str) -> None:
        """Its sources did not come."""
        self._show(job.request["pairs"])
        for file in job.request["sides"]["files"]:
            self._put_file(file["path"], file["target"])
        self._stay_forward(job, "going back was asked for", why)

    def _stay_forward(self, job: Job, reason: str, why: str) -> None:
        self._mount(job, "target")
        self._services(job, up=True)
        job.record["up_again"] = self.cloud.clock
        self._conclude(job, "committed", f"{reason}; going back was not possible: {why}")

    def _take_back(self, here: Installed, job: Job, reason: str) -> None:
        """All in reverse. What fails is told, and the next is tried all the same."""
        if job.phase != "armed":
            problems = []
            try:
                self._put_away(here, job)
            except Failed as failed:
                self._stay_forward(job, reason, failed.json["what"])
                return
            try:
                for fs in job.request["filesystems"]:
                    self._disk(fs["source"]).read_only = False
                self._mount(job, "source")
                self._services(job, up=True)
            except Failed as failed:
                problems.append(failed.json["what"])
            job.record |= {"up_again": self.cloud.clock, "problems": problems}
        if here.mirror:
            here.mirror.held = False
        self._conclude(job, "reverted", reason)

    def _conclude(self, job: Job, result: str, reason: str, settled: bool = False) -> None:
        stopped, up = job.record.get("stopped"), job.record.get("up_again")
        final = job.record.get("final_pass")
        outcome = {
            "result": result,
            "live": "target" if result == "committed" else "source",
            "reason": reason,
            "downtime_s": round(up - stopped, 3) if stopped and up else 0.0,
            "parts": {},
            "clock": "monotonic",
            "final_pass": final and {key: final[key] for key in _PASS_FIELDS if key in final},
            "settled": settled,
            "problems": job.record.get("problems", []),
            "standby": job.record.get("standby", False),
        }
        error = None
        if reason and not (job.name == "cutback" and result == "reverted"):
            error = Failed("failed", f"the {job.name} ended '{result}': {reason}")
        result = {"outcome": outcome, "notes": [], "job_id": job.id, "within_budget": True}
        self._end(job, result, error)

    def _services(self, job: Job, *, up: bool) -> None:
        units = [unit["name"] for unit in job.request.get("units", [])]
        for unit in reversed(units) if up else units:
            self.units[unit] = up
        for command in job.request.get("start" if up else "stop", []):
            if command == "false":
                raise Failed("failed", f"'{command}' ended with 1")

    def _unmount(self, job: Job) -> None:
        targets = [m["target"] for fs in job.request["filesystems"] for m in fs["mounts"]]
        self.mounts = {at: m for at, m in self.mounts.items() if at not in targets}

    def _mount(self, job: Job, side: str) -> None:
        for fs in job.request["filesystems"]:
            disk = self._disk(fs[side])
            if not self._of(fs[side]).fstype:
                raise Failed("failed", f"{disk.path} holds nothing that could be mounted")
            for mount in fs["mounts"]:
                place = Mounted(fs[side]["volume_id"], fs[side]["partition"])
                self.mounts[mount["target"]] = place


def _phases(job: Job) -> tuple[str, ...]:
    every = PHASES[job.name]
    if job.request.get("detach_first"):
        return every
    return tuple(phase for phase in every if phase not in DETACHED_FIRST)


_PASS_FIELDS = (
    "number", "final", "started_at", "copy_s", "compare_s", "files_total", "files_copied",
    "files_deleted", "bytes_copied", "files_compared", "bytes_compared", "changed_meanwhile",
    "healed", "differed_after_loss", "watermark", "clock_offset", "boot_id",
    "chunks_copied", "chunks_compared",
)  # fmt: skip


def linux_tools() -> list[str]:
    from volferry.guests.linux_facts import _PACKAGES  # noqa: PLC0415 - the names it asks for

    return list(_PACKAGES)


class FakeChannel(Channel):
    """A way into a fake guest, for ``LinuxGuest``."""

    where = "the fake guest"
    is_root = True

    def __init__(self, guest: FakeGuest) -> None:
        self._guest = guest

    async def open(self) -> None:
        """Nothing to connect."""

    async def close(self) -> None:
        """Nothing to disconnect."""

    def _command(self, argv: Sequence[str]) -> list[str]:
        raise AssertionError("it runs no programs of this machine")

    async def run(
        self, argv: Sequence[str], *, stdin: bytes = b"", timeout_s: float, root: bool = False
    ) -> Completed:
        self._guest.cloud.pass_time(REQUEST_S)
        code, out, err = self._guest.ran(argv, stdin)
        return Completed(code, out.encode(), err.encode(), REQUEST_S)
