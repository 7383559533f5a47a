"""What a Linux guest is told of several volumes: pairs, filesystems, one preparation each."""

from collections.abc import Sequence
from typing import Any

import pytest

from volferry.errors import Doubt
from volferry.guests.linux import AWAITED_POLL_S, LinuxGuest
from volferry.methods.rsync import Rsync
from volferry.model import (
    CloudFacts,
    Filesystem,
    GuestFacts,
    Json,
    Mount,
    Pair,
    PartitionTable,
    Plan,
    Seed,
    Server,
    Volume,
    Wanted,
)
from volferry.steps import Context

DATA, LOG = (
    Volume(id=f"{c * 8}-source", name=name, size_gib=size_gib, type="t", status="in-use")
    for c, name, size_gib in (("a", "data", 2), ("b", "log", 1))
)
TARGETS = {DATA.id: "cccccccc-target", LOG.id: "dddddddd-target"}


def filesystem(volume: Volume, device: str, target: str, partition: int | None = None) -> Any:
    return Filesystem(
        device=device,
        volume_id=volume.id,
        partition=partition,
        fstype="xfs",
        uuid=f"uuid of {device}",
        mounts=(Mount(target=target, source=device),),
    )


PLAN = Plan(
    wanted=Wanted(server="web-03", volumes=("data", "log")),
    cloud=CloudFacts(server=Server(id="s", name="web-03", status="ACTIVE"), sources=(DATA, LOG)),
    guest=GuestFacts(
        family="linux",
        filesystems=(
            filesystem(LOG, "/dev/vdc1", "/srv/log", 1),
            filesystem(DATA, "/dev/vdb", "/srv/data"),
        ),
        partition_tables=(PartitionTable(volume_id=LOG.id, label="gpt", dump="the table"),),
    ),
    pairs=(
        Pair(source=DATA, target_name="d", target_type="t", target_size_gib=3, seed=Seed.SNAPSHOT),
        Pair(source=LOG, target_name="l", target_type="t", target_size_gib=1, seed=Seed.BLANK),
    ),
)
DISKS = [
    {"source_id": pair.source.id, "volume_id": TARGETS[pair.source.id], "size_bytes": 7}
    for pair in PLAN.pairs
]


class Table:
    """A way into the guest on which nothing but the mount table is asked for."""

    def __init__(self) -> None:
        self.text = ""

    async def run(self, argv: Sequence[str], **more: object) -> "Table":
        assert list(argv) == ["cat", "/proc/self/mountinfo"]
        return self


class Agent(LinuxGuest):
    """Answers in the agent's place: one job at a time, which ends after ``polls`` looks."""

    def __init__(self, running: str = "", polls: int = 2) -> None:
        self.mounted = Table()
        super().__init__(self.mounted, "tr-x")  # type: ignore[arg-type]
        self.disks_found: list[Json] = []
        self.job_id, self.left, self.polls = running, polls if running else 0, polls
        self.started: list[tuple[str, Json]] = []

    async def _ask(self, verb: str, request: Json, timeout_s: float = 0) -> Json:
        if verb == "start":
            assert self.left == 0, f"{self.job_id} is still running"
            self.job_id, self.left = request["job_id"], self.polls
            self.started.append((request["job_id"], request["request"]))
            return {}
        if verb == "find":
            return {"disks": self.disks_found}
        state = "running" if self.left else "ended" if self.job_id else "none"
        self.left = max(0, self.left - 1)
        made = [
            {"partition": fs["target"]["partition"], "device": "/x", "fstype": "xfs", "uuid": "u"}
            for fs in (self.started[-1][1]["filesystems"] if self.started else [])
        ]
        n = len(self.started)
        took = {"publish_s": n / 10, "mount_s": n / 5, "systemctl_s": n / 20}
        result = {"filesystems": made, "notes": [], **took}
        return {
            "job": self.job_id.partition("-")[0],
            "job_id": self.job_id,
            "state": state,
            "progress": None,
            "result": result if state == "ended" else None,
            "error": None,
        }


def scene(guest: LinuxGuest) -> Context:
    ctx = Context("tr-x", PLAN, guest=guest, known={"attach": {"disks": DISKS}})

    async def soon(seconds: float) -> None:
        pass

    ctx.sleep = soon  # type: ignore[method-assign]
    return ctx


def test_pairs_are_in_the_plans_order_and_each_has_its_own_filesystems() -> None:
    guest = Agent()
    ctx = scene(guest)

    pairs = guest.pairs(ctx)
    told = guest.filesystems(ctx)

    assert [(p["source"]["volume_id"], p["target"]["volume_id"]) for p in pairs] == [
        (DATA.id, TARGETS[DATA.id]),
        (LOG.id, TARGETS[LOG.id]),
    ]
    assert [(f["mount"], f["source"]["volume_id"], f["source"]["partition"]) for f in told] == [
        ("/srv/data", DATA.id, None),
        ("/srv/log", LOG.id, 1),
    ]
    assert [f["target"]["volume_id"] for f in told] == list(TARGETS.values())


async def test_each_target_is_prepared_by_a_job_of_its_own_with_its_own_table() -> None:
    guest = Agent()

    receipt = await Rsync().prepare(scene(guest))

    (first, data), (second, log) = guest.started
    assert first.startswith("prepare-cccccccc-") and second.startswith("prepare-dddddddd-")
    assert (data["seed"], data["partition_dump"], data["grow"]) == ("snapshot", "", True)
    assert (log["seed"], log["partition_dump"], log["grow"]) == ("blank", "the table", False)
    assert [fs["mount"] for fs in (*data["filesystems"], *log["filesystems"])] == [
        "/srv/data",
        "/srv/log",
    ]
    assert [(fs["source_id"], fs["partition"]) for fs in receipt["filesystems"]] == [
        (DATA.id, None),
        (LOG.id, 1),
    ]
    took = tuple(receipt[name] for name in ("publish_s", "mount_s", "systemctl_s"))
    assert took == (0.2, 0.4, 0.1)


async def test_after_a_crash_the_other_targets_running_job_ends_before_one_is_started() -> None:
    guest = Agent(running="prepare-dddddddd-0123ab", polls=3)

    await Rsync().prepare(scene(guest))

    assert [job.rpartition("-")[0] for job, _ in guest.started] == [
        "prepare-cccccccc",
        "prepare-dddddddd",
    ]


def found(device: str, dev: str, *partitions: Json) -> Json:
    return {"state": "present", "path": device, "dev": dev, "partitions": list(partitions)}


DISK_D = found("/dev/vdd", "254:48")
DISK_E = found("/dev/vde", "254:64", {"path": "/dev/vde1", "dev": "254:65"})
LINE = "40 1 {} / {} rw - xfs {} rw\n"
ON_D = LINE.format("254:48", "/srv/data", "/dev/vdd")
ON_E1 = LINE.format("254:65", "/srv/log", "/dev/vde1")


@pytest.mark.parametrize(
    ("disks", "table", "wrong"),
    [
        ([DISK_D, DISK_E], ON_D + ON_E1, ""),
        ([DISK_D, DISK_E], ON_D, "nothing is mounted on /srv/log"),
        (
            [DISK_D, DISK_E],
            ON_D + LINE.format("254:33", "/srv/log", "/dev/vdc1"),
            "/srv/log shows /dev/vdc1, not /dev/vde",
        ),
        (
            # Each on the other's: both are targets of ours, and still each is wrong.
            [DISK_E, DISK_D],
            ON_D + ON_E1,
            "/srv/data shows /dev/vdd, not /dev/vde",
        ),
        ([DISK_D, {"state": "absent"}], ON_D + ON_E1, "volume dddddddd-target is not in the guest"),
    ],
)
async def test_every_mount_has_to_show_the_target_of_its_own_volume(
    disks: list[Json], table: str, wrong: str
) -> None:
    guest = Agent()
    guest.disks_found, guest.mounted.text = disks, table

    assert await guest.not_on(scene(guest), "target") == wrong


async def test_either_side_is_looked_for_and_what_is_lost_is_left_out() -> None:
    guest = Agent()
    guest.disks_found, guest.mounted.text = [DISK_D, DISK_E], ON_D + ON_E1
    looked_for: list[str] = []
    ask = guest._ask

    async def note(verb: str, request: Json, timeout_s: float = 0) -> Json:
        looked_for.extend(ref["volume_id"] for ref in request["refs"])
        return await ask(verb, request)

    guest._ask = note  # type: ignore[method-assign]
    assert await guest.not_on(scene(guest), "source") == ""
    assert looked_for == [DATA.id, LOG.id]
    guest.disks_found, guest.mounted.text = [DISK_E], ON_E1
    assert await guest.not_on(scene(guest), "target", [DATA.id]) == ""
    assert looked_for[2:] == [TARGETS[LOG.id]]


async def test_a_source_that_is_reached_by_two_disks_meanwhile_is_not_cut_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    guest = Agent()
    facts = PLAN.guest.model_copy(update={"unclear": {DATA.id: "it is reached by 2 disks"}})

    async def looked(*_: object, **__: object) -> GuestFacts:
        return facts

    monkeypatch.setattr(guest, "facts", looked)
    with pytest.raises(Doubt, match=f"volume {DATA.id}: it is reached by 2 disks"):
        await guest.sides(scene(guest))


class Switching(LinuxGuest):
    """A guest whose cutover is in one phase for each look."""

    def __init__(self, phases: Sequence[str]) -> None:
        super().__init__(Table(), "tr-x")  # type: ignore[arg-type]
        self.phases = list(phases)

    async def _ask(self, verb: str, request: Json, timeout_s: float = 0) -> Json:
        known = {"job": "cutover", "job_id": "cutover-2-ab", "progress": None, "error": None}
        if not self.phases:
            return {**known, "state": "ended", "phase": "done", "result": {}}
        return {**known, "state": "running", "phase": self.phases.pop(0), "result": None}


@pytest.mark.parametrize("awaits", [True, False])
async def test_a_guest_that_may_wait_for_us_is_asked_quickly_while_its_services_are_down(
    awaits: bool,
) -> None:
    phases = ["stopping", *["awaiting"] * 20, "starting", *["settling"] * 10]
    guest, heard, slept = Switching(phases), [], []
    ctx = scene(guest)

    async def note_pause(seconds: float) -> None:
        slept.append(seconds)

    async def hear(status: Json) -> None:
        heard.append(status["phase"])

    ctx.sleep = note_pause  # type: ignore[method-assign]
    told = {"deadline_s": 60.0, "flag": "--cutover-timeout", "meanwhile": hear if awaits else None}
    await guest.result_of(ctx, "cutover", wait=True, **told)

    down = phases.index("settling") - 1  # the first look was the one for whether it runs
    assert heard == (phases[1:] if awaits else [])
    if awaits:
        assert set(slept[:down]) == {AWAITED_POLL_S}
    else:
        assert min(slept[1:down]) > AWAITED_POLL_S
    assert slept[-1] > max(slept[:down]) or not awaits, "a service that settles has time"


async def test_what_runs_has_no_result_for_who_does_not_wait() -> None:
    guest = Switching(["awaiting"])
    never = {"deadline_s": 60.0, "flag": "--cutover-timeout"}

    assert await guest.result_of(scene(guest), "cutover", wait=False, **never) is None
    assert await guest.result_of(scene(guest), "cutover", wait=False, **never) == {}


class Restarted(Agent):
    """Its passes say why they compared everything."""

    async def run_job(self, scene: Any, job: str, key: str, request: Json, **more: Any) -> Json:
        why = "the guest restarted since the last pass" if key != "1" else "there is no watermark"
        return {"number": request["number"], "notes": [f"everything is compared: {why}"]}


async def test_why_a_later_pass_compared_everything_is_told() -> None:
    guest = Restarted()
    ctx = scene(guest)

    await Rsync()._pass(ctx, 60.0)
    await Rsync()._pass(ctx, 60.0)

    told = [event.facts["text"] for event in ctx.line.told if event.kind == "note"]  # type: ignore[attr-defined]
    assert told == ["pass 2: everything is compared: the guest restarted since the last pass"]
