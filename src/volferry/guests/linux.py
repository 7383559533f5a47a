"""A Linux guest: asks the agent in it, and says to it what is to be done.

The decisions are here (which disk, which side, which lines of fstab); the agent carries them out,
also when nobody listens any more. What the guest says is read by the pure functions of
``linux_facts``.
"""

import base64
import contextlib
import hashlib
import json
import secrets
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any, Protocol

from volferry.agent import program
from volferry.channels import Channel
from volferry.errors import Doubt, Refused, Retry, Stop, VolferryError
from volferry.guests import fstab, linux_facts, mounts, quarantine, stacks
from volferry.model import (
    Disk,
    DiskRef,
    Filesystem,
    GuestFacts,
    Json,
    Plan,
    Progress,
    Receipt,
    Side,
    Timeouts,
)

BASE = "/var/lib/volferry"
FSTAB = "/etc/fstab"
WALK_S = 3.0
"""How long the plan's walk of the tree may take; it is extrapolated when it was cut short."""

POLL_S = (1.0, 5.0)
AWAITED_POLL_S = 0.5
"""While services are down and the guest may wait for what is done from outside. Each poll costs the
guest a start of Python."""
MIRROR_S = 50.0
"""For an order to the mirror: less than the channel gives a verb."""

_PYTHONS = ("python3", "/usr/libexec/platform-python", "/usr/bin/python3")
_OLDEST_PYTHON = (3, 6)

# Program and request both come over stdin: one argument may have no more than 128 KiB (execve(2),
# MAX_ARG_STRLEN), and arguments are seen by everybody in the guest.
# With -I: a module that somebody has left in the folder that we are run in is not imported as root.
_RECEIVER = (
    "import sys; stdin = sys.stdin.buffer; size = int(stdin.readline()); "
    "exec(compile(stdin.read(size), 'volferry-agent', 'exec'))"
)

# As a module, because Python keeps the byte code of modules only: compiling the agent for every
# poll would cost the guest more than what it answers.
_RUNNER = (
    "import sys; sys.path.insert(0, sys.argv[1]); agent = __import__(sys.argv[2]); "
    "sys.exit(agent.main(['agent'] + sys.argv[3:]))"
)

_KINDS: dict[str, type[VolferryError]] = {"refused": Refused, "doubt": Doubt}

_MEND = "mend it in the guest, then say the same again"
_MEANS: dict[str, tuple[str, str]] = {
    "facts": ("nothing was changed", _MEND),
    "find": ("nothing was changed", _MEND),
    "install": ("the source is untouched and in use", _MEND),
    "apply": ("no data was touched, and the live side is the same", _MEND),
    "start": ("it was not begun; no data was touched", _MEND),
    "status": ("what runs in the guest goes on", _MEND),
    "stop": ("what runs in the guest goes on", _MEND),
    "tell": (
        "the service's data was not touched",
        "volferry watch ID   shows what it does; say it again while it runs",
    ),
    "uninstall": ("no data was touched; what is left in the guest does no harm", _MEND),
    "leftovers": ("nothing was removed", _MEND),
    "job prepare": ("the source is untouched; the target is not ready", ""),
    "job pass": ("the source is untouched; what was copied is kept", ""),
    "job mirror": ("the source is untouched; all is compared when the mirror begins anew", ""),
    "job cutover": ("one side is live, and only one", "volferry logs ID   says which, and why"),
    "job cutback": ("one side is live, and only one", "volferry logs ID   says which, and why"),
}
"""What a failure means for the data and what to do, by the verb or the job that failed: for what
the agent says of it where it knows no better. The engine adds how its transfer goes on."""


class Scene(Protocol):
    """What of a transfer is needed to say to the guest what is to be done."""

    plan: Plan
    known: Any

    async def progress(self, progress: Progress) -> None: ...
    async def tell(self, kind: str, **facts: Any) -> None: ...
    def check_stop(self) -> None: ...
    async def sleep(self, seconds: float) -> None: ...


Meanwhile = Callable[[Json], Awaitable[None]]
"""What is done while a job runs, told each of its statuses."""


class LinuxGuest:
    """``transfer_id`` is empty for a guest that is only asked for facts."""

    is_there = True
    """False: see ``deleted.DeletedGuest``."""

    def __init__(
        self, channel: Channel, transfer_id: str = "", timeouts: Timeouts | None = None
    ) -> None:
        self._channel = channel
        self._timeouts = timeouts or Timeouts()
        self._transfer = transfer_id
        self._program = program()
        self._python = ""

    @property
    def state_dir(self) -> str:
        return f"{BASE}/{self._transfer}"

    @property
    def _module(self) -> str:
        return f"agent-{hashlib.sha256(self._program).hexdigest()[:12]}"

    # ---- speaking to the agent -------------------------------------------------------------------

    async def probe(self) -> None:
        """Find Python and root's rights. Raises ``Stop`` naming what is missing."""
        ask = "import sys; print('%d.%d' % sys.version_info[:2])"
        for python in _PYTHONS:
            done = await self._channel.run(
                [python, "-I", "-c", ask], timeout_s=self._timeouts.answer_s
            )
            if done.code == 0:
                break
        else:
            raise Stop(
                f"{self._channel.where} has no Python 3",
                data="nothing was changed",
                hint="install python3 in the guest (its standard library is enough)",
            )
        version = tuple(int(part) for part in done.text.strip().split("."))
        if version < _OLDEST_PYTHON:
            raise Stop(
                f"{self._channel.where} has Python {done.text.strip()}, 3.6 or later is needed",
                data="nothing was changed",
                hint="install python3 in the guest",
            )
        allowed = await self._channel.run(["true"], timeout_s=self._timeouts.answer_s, root=True)
        if allowed.code != 0:
            raise Stop(
                f"{self._channel.where} allows no root: {allowed.complaint}",
                data="nothing was changed",
                hint="allow the ssh user 'sudo -n' without a password, or log in as root",
            )
        self._python = python

    async def _ask(self, verb: str, request: Json) -> Json:
        """One verb of the agent, by the copy that is installed or, failing that, over stdin."""
        if not self._python:
            await self.probe()
        request = {"transfer": self._transfer, **request}
        text = json.dumps(request)
        if self._transfer and verb not in ("facts", "install"):
            done = await self._channel.run(
                [self._python, "-I", "-c", _RUNNER, self.state_dir, self._module, verb],
                stdin=text.encode(),
                timeout_s=self._timeouts.answer_s,
                root=True,
            )
            # Python's own complaint when there is no such file: not installed, or another version.
            if done.out or b"ModuleNotFoundError" not in done.err:
                return _answer(verb, done.out, done.complaint)
        done = await self._channel.run(
            [self._python, "-I", "-c", _RECEIVER, verb],
            stdin=b"%d\n" % len(self._program) + self._program + text.encode(),
            timeout_s=self._timeouts.answer_s,
            root=True,
        )
        return _answer(verb, done.out, done.complaint)

    # ---- looking ---------------------------------------------------------------------------------

    async def facts(
        self, sources: Sequence[DiskRef], *, units: Sequence[str] = (), walk_s: float = WALK_S
    ) -> GuestFacts:
        """All that the plan needs to know; changes nothing and leaves nothing behind."""
        refs = [source.model_dump() for source in sources]
        return linux_facts.read(await self.ask_facts(refs, units, walk_s), sources)

    async def ask_facts(self, refs: Sequence[Json], units: Sequence[str], walk_s: float) -> Json:
        """The same, raw: what ``linux_facts`` reads and ``tests/facts`` keeps."""
        named = [unit for unit in units if unit != "auto"]
        request = {"refs": list(refs), "units": named, "walk_s": walk_s}
        return await self._ask("facts", request)

    async def find(self, ref: DiskRef) -> Disk | None:
        """Where a volume's disk is now, or None; ``Doubt`` when it cannot be told for certain."""
        [found] = (await self._ask("find", {"refs": [ref.model_dump()]}))["disks"]
        if found["state"] == "absent":
            return None
        return Disk(
            path=found["path"],
            size_bytes=found["size_bytes"],
            serial=found["serial"],
            read_only=found["read_only"],
            dev=found["dev"],
            volume_id=ref.volume_id,
        )

    async def disks(self) -> Sequence[Disk]:
        """Every disk that the guest shows."""
        return linux_facts.disks(await self.ask_facts([], [], 0.0))

    async def not_on(self, scene: Scene, side: Side, but: Collection[str] = ()) -> str:
        """What is wrong when a planned mount point does not show this side; empty when all do.

        ``but``: ids of sources whose mounts are not looked at."""
        pairs = [one for one in self.pairs(scene) if one["source"]["volume_id"] not in but]
        found = (await self._ask("find", {"refs": [pair[side] for pair in pairs]}))["disks"]
        table = await self._channel.run(
            ["cat", "/proc/self/mountinfo"], timeout_s=self._timeouts.answer_s
        )
        entries = mounts.parse(table.text)
        for pair, disk in zip(pairs, found, strict=True):
            if disk["state"] == "absent":
                return f"volume {pair[side]['volume_id']} is not in the guest"
            moving = _moving(scene.plan.guest, pair["source"]["volume_id"])
            wrong = _not_shown(disk, moving, entries)
            if wrong:
                return wrong
        facts = scene.plan.guest
        stacked = [fs for fs in _stacked(facts) if facts.below(fs).isdisjoint(but)]
        return await self._not_below(stacked, found, entries)

    async def _not_below(
        self,
        filesystems: Sequence[Filesystem],
        disks: Sequence[Json],
        entries: Sequence[mounts.Entry],
    ) -> str:
        """What is wrong when filesystems on layers are not mounted or do not lie on these disks."""
        wanted = {disk["path"] for disk in disks}
        for fs in filesystems:
            for target in (m.target for m in fs.mounts):
                if all(entry.target != target for entry in entries):
                    return f"nothing is mounted on {target}"
            done = await self._channel.run(
                ["lsblk", "-nrspo", "NAME,TYPE", fs.device], timeout_s=self._timeouts.answer_s
            )
            below = {line.split()[0] for line in done.text.splitlines() if line.endswith(" disk")}
            if not below or below - wanted:
                where = ", ".join(sorted(below)) or "nothing that lsblk knows"
                return f"{fs.device} lies on {where}, not on {', '.join(sorted(wanted))}"
        return ""

    # ---- putting in and taking out ---------------------------------------------------------------

    async def install(self, sources: Sequence[DiskRef]) -> Receipt:
        """Leave the agent in the guest and claim the sources for this transfer, all or none.

        Raises ``Refused`` when another transfer has claimed one of them.
        """
        return await self._ask(
            "install",
            {
                "sources": [source.model_dump() for source in sources],
                "program_b64": base64.b64encode(self._program).decode("ascii"),
            },
        )

    async def quarantine(self, volume_ids: Sequence[str]) -> Receipt:
        """Keep the disks of volumes out of use from the moment they will appear."""
        path = quarantine.path(self._transfer)
        rule = quarantine.rule(volume_ids, self._transfer)
        file = {"path": path, "content": rule, "mode": 0o644}
        await self._ask("apply", {"files": [file], "udev": True, "trigger": [], "systemd": False})
        return {"rule": path, "serials": [volume_id[:20] for volume_id in volume_ids]}

    async def uninstall(self) -> Receipt:
        """Remove all that we put into the guest; what is left is named."""
        return await self._ask("uninstall", {"files": [quarantine.path(self._transfer)]})

    async def leftovers(self) -> list[Json]:
        """Every file that any transfer has put into the guest and that is there now."""
        left: list[Json] = (await self._ask("leftovers", {}))["left"]
        return left

    # ---- what the jobs are told ------------------------------------------------------------------

    def pairs(self, scene: Scene) -> list[Json]:
        """Source and target disk of each pair, in the plan's order."""
        return [
            {
                "source": pair.source.ref.model_dump(),
                "target": {"volume_id": disk["volume_id"], "size_bytes": disk["size_bytes"]},
            }
            for pair, disk in zip(scene.plan.pairs, scene.known["attach"]["disks"], strict=True)
        ]

    def filesystems(self, scene: Scene) -> list[Json]:
        """The filesystems that move, in the shape that every job of the agent takes."""
        return [
            *(fs for pair in self.pairs(scene) for fs in self.filesystems_of(scene, pair)),
            *(
                # It lies on both sides alike: which one is told by the disks below its layers.
                _told(fs, {"mapped": fs.device}, {"mapped": fs.device}, keep_uuid=True)
                for fs in _stacked(scene.plan.guest)
            ),
        ]

    def layers(self, scene: Scene) -> list[Json]:
        """What lies between the disks and those filesystems, bottom to top."""
        return [layer.model_dump(mode="json") for layer in scene.plan.guest.layers]

    def filesystems_of(self, scene: Scene, pair: Json) -> list[Json]:
        """Those of one pair that lie on its disk or on a partition of it."""
        keep_uuid = scene.plan.method == "mirror" or keeps_identity(scene.plan.guest)
        return [
            _told(
                fs,
                {**pair["source"], "partition": fs.partition},
                {**pair["target"], "partition": fs.partition},
                keep_uuid=keep_uuid,
            )
            for fs in _moving(scene.plan.guest, pair["source"]["volume_id"])
        ]

    async def sides(self, scene: Scene) -> tuple[list[Json], list[str]]:
        """The files whose content says which volumes are the live ones, and what changes, in words.

        They are written in this order; the last one is the commit, and all before it are harmless
        in between. Read fresh, so that an fstab that was edited meanwhile is not overwritten.
        """
        now = await self.facts([s.ref for s in scene.plan.cloud.sources], walk_s=0.0)
        _unmoved(scene.plan.guest, now)
        targets = {p["source"]["volume_id"]: p["target"]["volume_id"] for p in self.pairs(scene)}
        made = {
            (fs["source_id"], fs["partition"]): fs["uuid"]
            for fs in scene.known["prepare"]["filesystems"]
        }
        return sides(now, self._transfer, targets, made)

    # ---- the mirror ------------------------------------------------------------------------------

    async def start_mirror(self, sources: Sequence[DiskRef]) -> None:
        """Begin to note writes to these disks, unless that has begun. One that died, or that ended
        with an error, begins anew: it then compares everything."""
        status = await self.mirror_status()
        if status["state"] == "running":
            return
        known = status["job_id"] if status["state"] == "died" else ""
        request: Json = {
            "transfer": self._transfer,
            "sources": [ref.model_dump() for ref in sources],
        }
        if status["state"] == "ended":
            request["suspect"] = "the mirror was begun again"
        job_id = known or f"mirror-{secrets.token_hex(3)}"
        await self._ask("start", {"job": "mirror", "job_id": job_id, "request": request})

    async def mirror_status(self) -> Json:
        return await self._ask("status", {"lane": "mirror"})

    async def tell_mirror(self, message: Json, timeout_s: float = MIRROR_S) -> Json:
        """Give the mirror an order; its answer."""
        return await self._ask("tell", {"message": message, "timeout_s": timeout_s})

    async def stop_mirror(self) -> None:
        """End it; nothing where none runs."""
        await self._ask("stop", {"lane": "mirror"})

    @staticmethod
    def mirror_error(said: Json) -> VolferryError:
        """What a mirror ended with, as an error of ours."""
        return _error("job mirror", said)

    # ---- jobs ------------------------------------------------------------------------------------

    async def run_job(
        self,
        scene: Scene,
        job: str,
        key: str,
        request: Json,
        *,
        deadline_s: float,
        what: str,
        flag: str,
        uninterrupted: bool = False,
        meanwhile: Meanwhile | None = None,
    ) -> Json:
        """Start a job in the guest and wait for its result.

        ``meanwhile`` hears of every status of the job, and may have something to do for it.

        One of the same ``job`` and ``key`` that runs already is waited for instead: it was begun
        before a crash of this program. ``uninterrupted``: it is not ours to stop.

        Raises ``Stop`` for what the job ended with, or at the deadline of ``flag``; ``Retry`` when
        the guest lost it (a reboot in the middle of a pass).
        """
        status = await self._ask("status", {})
        same = status["job_id"].startswith(f"{job}-{key}-")
        # A cutover that died goes on from its own record when it is started under its own name.
        taken_up = same and status["state"] == "died" and uninterrupted
        if status["state"] == "running" and not same:
            # That of another volume, begun before a crash of this program; two at once are refused.
            status = await self._ended(
                scene, deadline_s, what, uninterrupted, flag=flag, meanwhile=meanwhile
            )
        if not (same and status["state"] == "running"):
            new_id = f"{job}-{key}-{secrets.token_hex(3)}"
            job_id = status["job_id"] if taken_up else new_id
            await self._ask("start", {"job": job, "job_id": job_id, "request": request})
        status = await self._ended(
            scene, deadline_s, what, uninterrupted, flag=flag, meanwhile=meanwhile
        )
        return _result(job, status)

    async def _ended(
        self,
        scene: Scene,
        deadline_s: float,
        what: str,
        uninterrupted: bool,
        *,
        flag: str,
        meanwhile: Meanwhile | None = None,
    ) -> Json:
        """The status of the job that runs, once it does not run any more."""
        ends = time.monotonic() + deadline_s
        heard = time.monotonic()
        pause = POLL_S[0]
        while True:
            try:
                status = await self._ask("status", {})
                heard = time.monotonic()
            except Retry as lost:
                away_s = time.monotonic() - heard
                if away_s > self._timeouts.retry_s:
                    lost.what += f"; the guest was away for {away_s:.0f} s (--retry-timeout)"
                    raise
                await scene.tell("note", text=f"{lost.what}; {what} goes on in the guest")
                status = {"state": "running", "progress": None}
            if status["state"] != "running":
                return status
            if meanwhile is not None:
                await meanwhile(status)
            if status["progress"]:
                await scene.progress(_progress(status["progress"], what))
            if time.monotonic() > ends:
                if not uninterrupted:
                    await self.stop_job()
                raise Stop(
                    f"{what} did not end within {deadline_s:.0f} s ({flag})",
                    data="the guest goes on with it by itself; one side is live, and only one"
                    if uninterrupted
                    else "the source is untouched; what was copied is kept",
                    hint=f"a larger {flag}, or volferry logs for what it was doing",
                )
            if not uninterrupted:
                try:
                    scene.check_stop()
                except Stop:
                    await self.stop_job()
                    raise
            if meanwhile is not None and _may_wait_for_us(status):
                await scene.sleep(AWAITED_POLL_S)
                continue
            await scene.sleep(pause)
            pause = min(pause * 1.3, POLL_S[1])

    async def last_job(self) -> str:
        """Which job was begun last in the guest; empty when it knows of none."""
        return str((await self._ask("status", {}))["job"])

    async def result_of(
        self,
        scene: Scene,
        job: str,
        *,
        wait: bool,
        deadline_s: float,
        flag: str,
        meanwhile: Meanwhile | None = None,
    ) -> Json | None:
        """The result of the job that was begun last; None when that was of another kind.

        ``wait``: for the end of one that has not ended; else it has none either."""
        status = await self._ask("status", {})
        if status["job"] != job or not (wait or status["state"] == "ended"):
            return None
        if status["state"] == "died":
            await self._ask("start", {"job": job, "job_id": status["job_id"], "request": {}})
        if status["state"] in ("running", "died"):
            status = await self._ended(scene, deadline_s, job, True, flag=flag, meanwhile=meanwhile)
            return _result(job, status)
        return status["result"]  # type: ignore[no-any-return]

    async def stop_job(self) -> None:
        """End a job that runs, unless it is past the point where only it can end itself."""
        with contextlib.suppress(Refused):
            await self._ask("stop", {})


def keeps_identity(facts: GuestFacts) -> bool:
    """Whether the target may carry the source's UUIDs. Two btrfs with one fsid are dangerous."""
    return all(fs.fstype != "btrfs" for fs in _moving(facts))


def _moving(facts: GuestFacts, source_id: str = "") -> list[Filesystem]:
    """The filesystems that move and lie on a disk or a partition, of one source or of all."""
    return [
        fs
        for fs in facts.filesystems
        if fs.mounts and not fs.layers and source_id in ("", fs.volume_id)
    ]


def _stacked(facts: GuestFacts) -> list[Filesystem]:
    """Those that lie on layers."""
    return [fs for fs in facts.filesystems if fs.mounts and fs.layers]


def _told(fs: Filesystem, source: Json, target: Json, *, keep_uuid: bool) -> Json:
    """A filesystem in the shape that every job of the agent takes."""
    return {
        "source": source,
        "target": target,
        "fstype": fs.fstype,
        "uuid": fs.uuid,
        "label": fs.label,
        "keep_uuid": keep_uuid,
        "mount": next((m.target for m in fs.mounts if m.root == "/"), fs.mounts[0].target),
        "mounts": [
            {
                "target": m.target,
                "root": m.root,
                "options": m.options,
                "super_options": m.super_options,
                "by": m.by.value,
                "unit": m.unit,
                "propagation": m.propagation,
            }
            for m in fs.mounts
        ],
    }


def _not_shown(
    disk: Json, filesystems: Sequence[Filesystem], entries: Sequence[mounts.Entry]
) -> str:
    """What is wrong when the mount points of these filesystems do not show this disk."""
    devices = {disk["path"], *(part["path"] for part in disk["partitions"])}
    numbers = {disk["dev"], *(part["dev"] for part in disk["partitions"])}
    for target in (m.target for fs in filesystems for m in fs.mounts):
        seen = [entry for entry in entries if entry.target == target]
        if not seen:
            return f"nothing is mounted on {target}"
        # btrfs mounts have a device number of their own: the source's path tells.
        if seen[-1].dev not in numbers and seen[-1].source not in devices:
            return f"{target} shows {seen[-1].source}, not {disk['path']}"
    return ""


def sides(
    facts: GuestFacts,
    transfer_id: str,
    targets: Mapping[str, str],
    made: Mapping[tuple[str, int | None], str],
) -> tuple[list[Json], list[str]]:
    """The side files, and what changes in fstab in words. Pure.

    ``targets`` are the target's volume ids by their source's, ``made`` the UUIDs on the targets by
    source and partition.

    With one identity on both disks the udev rule decides, and the commit is its replacement; an
    fstab entry that names the disk (``/dev/vdb``) rather than the filesystem is put right before,
    which is harmless while the rule still names the target. With two identities (``made`` differs)
    the fstab decides, and the target is let out of quarantine before.
    """
    text, changes = facts.fstab, []
    one_identity = all(made[fs.volume_id, fs.partition] == fs.uuid for fs in _moving(facts))
    for fs in _moving(facts):
        for entry in fstab.parse(facts.fstab):
            if not fstab.names_device(entry.spec, fs.names):
                continue
            if one_identity and fstab.is_stable(entry.spec):
                continue
            spec = f"UUID={made[fs.volume_id, fs.partition]}"
            text = fstab.with_spec(text, entry.line, spec)
            changes.append(f"{FSTAB} line {entry.line}: {entry.spec} becomes {spec}")
    stack_files, stack_changes = stacks.sides(facts, targets)
    table: Json = {"path": FSTAB, "source": facts.fstab, "target": text}
    rule: Json = {
        "path": quarantine.path(transfer_id),
        "source": quarantine.rule(targets.values(), transfer_id),
        "target": quarantine.rule(targets, transfer_id) if one_identity else None,
        "mode": 0o644,
    }
    if not changes:
        return [*stack_files, rule], stack_changes
    files = [table, rule] if one_identity else [rule, table]
    return [*stack_files, *files], [*stack_changes, *changes]


def _unmoved(planned: GuestFacts, now: GuestFacts) -> None:
    def where(facts: GuestFacts) -> list[object]:
        return [
            (fs.volume_id, fs.partition, fs.uuid, m.target)
            for fs in (*_moving(facts), *_stacked(facts))
            for m in fs.mounts
        ]

    if now.unclear:
        raise Doubt(
            "; ".join(f"volume {known}: {why}" for known, why in now.unclear.items()),
            data="the source is untouched; the cutover was not begun",
            hint="leave one way to it, or roll back and plan again",
        )
    if where(planned) != where(now):
        raise Doubt(
            f"the mounts are no longer as planned: {where(planned)} became {where(now)}",
            data="the source is untouched; the cutover was not begun",
            hint="put the mounts back, or roll back and plan again",
        )


def _answer(verb: str, out: bytes, complaint: str) -> Json:
    """The agent's last line; its error as one of ours."""
    lines = out.decode(errors="surrogateescape").strip().splitlines()
    try:
        said: Json = json.loads(lines[-1])
        ok = said["ok"]
    except (IndexError, KeyError, TypeError, json.JSONDecodeError):
        raise Stop(
            f"the agent's '{verb}' gave no answer: {complaint}",
            data="what was done before stands",
            hint="volferry … --debug shows what it said",
        ) from None
    if not ok:
        raise _error(verb, said["error"])
    return said["result"]  # type: ignore[no-any-return]


def _error(failed: str, error: Json) -> VolferryError:
    """An error of the agent as one of ours, with all its lines."""
    kind = _KINDS.get(error["kind"], Stop)
    data, hint = _MEANS[failed]
    return kind(error["what"], data=error.get("data") or data, hint=error.get("hint") or hint)


def _result(job: str, status: Json) -> Json:
    result: Json | None = status["result"]
    if result is not None and (status["error"] is None or "outcome" in result):
        return result
    if status["error"] is not None:
        raise _error(f"job {job}", status["error"])
    tail = "; ".join(status.get("log_tail") or [])[-300:]
    raise Retry(
        f"the guest lost the job '{job}' ({status['state']}): {tail or 'it says nothing of it'}",
        data="the source is untouched; what was copied is kept",
        hint="it is begun again",
    )


def _may_wait_for_us(status: Json) -> bool:
    """Whether it waits for what is done from outside, or is on its way there. Services that settle
    are up, and a guest that does not answer is not asked more often."""
    return (status.get("phase") or "") not in ("", "settling", "done")


def _progress(said: Json, what: str) -> Progress:
    """The agent's figures, with the time that is left when it can be told."""
    done, total, rate = said.get("done_bytes"), said.get("total_bytes"), said.get("rate_bytes_s")
    left = max(0, total - done) if done is not None and total else None
    return Progress(
        what=what,
        done_bytes=done,
        total_bytes=total,
        done_files=said.get("done_files"),
        total_files=said.get("total_files"),
        rate_bytes_s=rate,
        eta_s=left / rate if left is not None and rate else None,
        elapsed_s=said.get("elapsed_s") or 0.0,
        note=said.get("what") or "",
    )
