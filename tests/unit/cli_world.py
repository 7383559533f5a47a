"""A plan, and stores with transfers planted in them, for the tests of words and command line."""

import functools
from pathlib import Path
from typing import Any

from volferry.model import (
    Attachment,
    Check,
    CloudFacts,
    Disk,
    Event,
    Filesystem,
    GuestFacts,
    Holder,
    MethodChoice,
    Mount,
    MountBy,
    Outcome,
    Pair,
    Pass,
    Plan,
    Prediction,
    Progress,
    Promise,
    Quota,
    Result,
    Seed,
    Server,
    State,
    Transfer,
    Unit,
    Volume,
    Wanted,
)
from volferry.store import Store

SERVER = "42049bba-3a48-4bc3-9940-bcaca120ec74"
SOURCE = "300e778a-fc56-490b-b76c-235ae4f16004"
TARGET = "1bd806c0-70ab-4a1a-827a-20921186c9c8"
SNAPSHOT = "172ebf59-8930-4879-851d-ee6a61f032ff"
ID = "tr-testsrv-k4q7"
BEGAN = 1_790_000_000.0
UUID = "0c3f7e0a-6d0b-4b0e-8a53-0a64f4bd3c11"
GIB = 1024**3

PREDICTION = Prediction(
    total_s=4.1,
    parts={"stop": 1.2, "unmount": 0.1, "copy": 1.4, "mount": 0.3, "start": 1.1},
    basis="last stop and start of postgresql.service; 21 MiB/s measured in pass 2",
)
FINAL = Pass(
    number=3,
    final=True,
    started_at=BEGAN + 300,
    copy_s=0.9,
    compare_s=0.3,
    files_total=10203,
    files_copied=14,
    bytes_copied=3 * 1024**2,
    files_compared=14,
    bytes_compared=3 * 1024**2,
)
PASSES = (
    Pass(
        number=1,
        started_at=BEGAN + 60,
        copy_s=95.0,
        files_total=10190,
        files_copied=10190,
        bytes_copied=12 * GIB,
        changed_meanwhile=212,
    ),
    Pass(
        number=2,
        started_at=BEGAN + 160,
        copy_s=3.1,
        compare_s=110.0,
        files_total=10203,
        files_copied=230,
        files_deleted=17,
        bytes_copied=48 * 1024**2,
        files_compared=10189,
        bytes_compared=12 * GIB,
        changed_meanwhile=14,
        healed=1,
        watermark=BEGAN + 270,
    ),
)
OUTCOME = Outcome(
    result="committed",
    live="target",
    downtime_s=3.84,
    parts={"stop": 1.1, "unmount": 0.08, "copy": 0.9, "verify": 0.3, "mount": 0.26, "start": 1.2},
    final_pass=FINAL,
    settled=True,
)


def plan(**changes: Any) -> Plan:
    source = Volume(
        id=SOURCE,
        name="sourcevol",
        size_gib=50,
        type="cbs-standard",
        status="in-use",
        availability_zone="az1",
        attachments=(Attachment(server_id=SERVER, volume_id=SOURCE, device="/dev/vdb"),),
    )
    filesystem = Filesystem(
        device="/dev/vdb1",
        volume_id=SOURCE,
        partition=1,
        fstype="xfs",
        uuid=UUID,
        size_bytes=49 * GIB,
        used_bytes=12 * GIB,
        inodes_used=10203,
        mounts=(
            Mount(
                target="/srv/data",
                source="/dev/vdb1",
                options="rw,noatime",
                by=MountBy.FSTAB,
                unit="srv-data.mount",
                fstab_line=4,
            ),
        ),
    )
    postgres = Unit(name="postgresql.service", enabled=True, start_s=1.1, stop_s=1.2)
    fields: dict[str, Any] = {
        "made_at": BEGAN,
        "wanted": Wanted(
            os_cloud="mycloud",
            server="testsrv",
            volumes=("sourcevol",),
            type="cbs-premium",
            units=("postgresql.service",),
        ),
        "cloud": CloudFacts(
            cloud="mycloud",
            region="az",
            server=Server(id=SERVER, name="testsrv", status="ACTIVE", addresses=("192.0.2.10",)),
            sources=(source,),
            quota=Quota(
                limits={"volumes": 20, "gigabytes": 1000, "snapshots": 10},
                used={"volumes": 3, "gigabytes": 150, "snapshots": 0},
            ),
        ),
        "guest": GuestFacts(
            family="linux",
            os_name="Debian GNU/Linux 12 (bookworm)",
            kernel="6.1.0-18-cloud-amd64",
            systemd=252,
            source_disks=(
                Disk(path="/dev/vdb", size_bytes=50 * GIB, serial=SOURCE[:20], volume_id=SOURCE),
            ),
            filesystems=(filesystem,),
            holders=(
                Holder(kind="process", name="postgres", pid=812, unit="postgresql.service"),
                Holder(kind="process", name="bash", pid=2201, path="/srv/data", stoppable=False),
            ),
            units=(postgres,),
            fstab="# /etc/fstab\nUUID=1 / ext4 defaults 0 1\n\n"
            f"UUID={UUID} /srv/data xfs noatime 0 2\n",
        ),
        "method": "rsync",
        "methods": (
            MethodChoice(name="rsync"),
            MethodChoice(name="mirror", declines="it needs LVM under the filesystem"),
        ),
        "pairs": (
            Pair(
                source=source,
                target_name="sourcevol",
                target_type="cbs-premium",
                target_size_gib=50,
                seed=Seed.SNAPSHOT,
            ),
        ),
        "units": (postgres,),
        "checks": (
            Check(name="server", result=Result.OK, found="ACTIVE, not locked"),
            Check(name="quota: gigabytes", result=Result.OK, found="100 needed, 850 free of 1000"),
            Check(
                name="holders",
                result=Result.WARNING,
                found="bash (pid 2201) stands in /srv/data",
                hint="end that session before the cutover",
            ),
        ),
        "quota_peak": {"volumes": 1, "snapshots": 1, "gigabytes": 100},
        "prediction": PREDICTION,
        "promises": (
            Promise(phase="plan", step="", text="nothing was changed", way_back="nothing to do"),
            Promise(
                phase="seed",
                step="snapshot",
                text="snapshot exists: … of sourcevol (50 GiB)",
                way_back="free: delete what carries our tag",
            ),
        ),
    }
    return Plan.model_validate({**fields, **changes})


LOG, LOG_TARGET = "300e778a-aaaa-490b-b76c-235ae4f16005", "1bd806c0-aaaa-4a1a-827a-20921186c9c9"


def plan_of_two() -> Plan:
    """The same with a second volume, ``log``, which has its target's type already."""
    one = plan()
    source = one.pairs[0].source.model_copy(
        update={"id": LOG, "name": "log", "size_gib": 8, "type": "cbs-premium"}
    )
    pair = one.pairs[0].model_copy(
        update={"source": source, "target_name": "log", "target_size_gib": 8, "seed": Seed.BLANK}
    )
    mount = Mount(target="/srv/log", source="/dev/vdd", by=MountBy.FSTAB, fstab_line=5)
    filesystem = Filesystem(
        device="/dev/vdd", volume_id=LOG, fstype="ext4", uuid="2d1f", mounts=(mount,)
    )
    return plan(
        cloud=one.cloud.model_copy(update={"sources": (one.pairs[0].source, source)}),
        pairs=(one.pairs[0], pair),
        guest=one.guest.model_copy(update={"filesystems": (*one.guest.filesystems, filesystem)}),
    )


def receipts_of_two() -> dict[str, dict[str, Any]]:
    """Those of ``plan_of_two``."""
    two = {step: dict(receipt) for step, receipt in RECEIPTS.items()}
    [target] = two["target"]["targets"]
    log = {"source_id": LOG, "volume_id": LOG_TARGET, "name": "log", "size_gib": 8, "seed": "blank"}
    two["target"]["targets"] = [target, {**target, **log}]
    two["detach"]["sources"] = [{"source_id": SOURCE}, {"source_id": LOG}]
    two["protect"]["sources"] = [
        {"source_id": SOURCE, "read_only": True},
        {"source_id": LOG, "read_only": False},
    ]
    return two


def refused() -> Plan:
    bad = Check(
        name="quota: snapshots",
        result=Result.REFUSAL,
        found="1 needed, 0 free of 10",
        hint="--seed blank needs no snapshot",
    )
    return plan(checks=(*plan().checks, bad))


def transfer(state: State = State.RUNNING, step: str = "", **changes: Any) -> Transfer:
    fields: dict[str, Any] = {"plan": plan(), "created_at": BEGAN, **changes}
    return Transfer(id=ID, state=state, step=step, **fields)


RECEIPTS: dict[str, dict[str, Any]] = {
    "install": {"agent": "agent-1.py", "found_at": "/var/lib/volferry", "elapsed_s": 1.2},
    "snapshot": {
        "snapshots": [{"source_id": SOURCE, "snapshot_id": SNAPSHOT, "name": "s", "size_gib": 50}],
        "elapsed_s": 3.2,
    },
    "target": {
        "targets": [
            {
                "source_id": SOURCE,
                "volume_id": TARGET,
                "name": "sourcevol",
                "type": "cbs-premium",
                "size_gib": 50,
                "seed": "snapshot",
            }
        ],
        "elapsed_s": 41.0,
    },
    "quarantine": {"rule": "/etc/udev/rules.d/60-volferry.rules", "serials": [TARGET[:20]]},
    "attach": {
        "disks": [
            {
                "source_id": SOURCE,
                "volume_id": TARGET,
                "device": "/dev/vdc",
                "serial": TARGET[:20],
                "size_bytes": 50 * GIB,
            }
        ],
        "elapsed_s": 4.0,
    },
    "prepare": {
        "filesystems": [{"source_id": SOURCE, "device": "/dev/vdc1", "fstype": "xfs"}],
        "elapsed_s": 0.9,
    },
    "sync": {
        "passes": 2,
        "watermark": BEGAN + 270,
        "predicted": PREDICTION.model_dump(mode="json"),
    },
    "cutover": {
        "outcome": OUTCOME.model_dump(mode="json"),
        "predicted": PREDICTION.model_dump(mode="json"),
        "volume_ids": [TARGET],
        "downtime_s": 3.84,
    },
    "detach": {"sources": [{"source_id": SOURCE}], "elapsed_s": 6.0},
    "protect": {"sources": [{"source_id": SOURCE, "read_only": True}]},
    "tidy": {
        "removed": ["/etc/udev/rules.d/60-volferry.rules", "/var/lib/volferry"],
        "left": [],
        "snapshot_deleted": True,
    },
}
PROMISES = {
    "install": "our agent lies in the guest's /var/lib/volferry; no service was touched",
    "snapshot": f"snapshot exists: {SNAPSHOT} of sourcevol (50 GiB)",
    "target": f"target volume exists: {TARGET} for sourcevol (50 GiB, cbs-premium, from its "
    "snapshot)",
    "quarantine": "a udev rule keeps the target out of use, also after a reboot",
    "attach": "the guest sees the target, proven by its serial and its size: /dev/vdc "
    + TARGET[:20],
    "prepare": "the target's filesystem was read back: xfs",
    "sync": "after 2 passes source and target differ only by what is written now",
    "cutover": "the service runs on the target; it was down for 3.84 s",
    "detach": "the source is detached; the service still has its data on the target",
    "protect": "the source is marked read-only",
    "tidy": "nothing of ours is left in the guest or the cloud but what the report names",
}
PHASE_OF = {
    "install": "seed", "snapshot": "seed", "target": "seed", "quarantine": "attach",
    "attach": "attach", "prepare": "attach", "sync": "sync", "cutover": "cutover",
    "detach": "finish", "protect": "finish", "tidy": "finish",
}  # fmt: skip
TAKES = {
    "install": 2.0, "snapshot": 4.0, "target": 42.0, "quarantine": 1.0, "attach": 5.0,
    "prepare": 2.0, "sync": 240.0, "cutover": 68.0, "detach": 7.0, "protect": 1.0, "tidy": 4.0,
}  # fmt: skip


def events(until: str = "tidy", id: str = ID) -> list[Event]:
    """What the engine tells, up to the end of step ``until``."""
    said: list[Event] = []
    at, phase = BEGAN + 5, ""
    for step, receipt in RECEIPTS.items():
        tell = functools.partial(Event, transfer=id, step=step)
        if PHASE_OF[step] != phase:
            phase = PHASE_OF[step]
            said.append(tell(at=at, kind="phase", facts={"phase": phase}))
        said.append(tell(at=at, kind="intent", facts={"interrupted": False}))
        if step == "sync":
            for one in PASSES:
                said.append(tell(at=at + 100, kind="pass", facts=one.model_dump(mode="json")))
            facts = PREDICTION.model_dump(mode="json")
            said.append(tell(at=at + 230, kind="prediction", facts=facts))
        if step == "cutover":
            gate = {"open": True, "text": "predicted downtime 4.1 s, --max-downtime 10 s: fits"}
            said.append(tell(at=at + 1, kind="gate", facts=gate))
            said.append(tell(at=at + 8, kind="outcome", facts=OUTCOME.model_dump(mode="json")))
        at += TAKES[step]
        calls = 61 if step == "tidy" else 0
        said.append(tell(at=at, kind="receipt", facts={"receipt": receipt, "api_calls": calls}))
        said.append(tell(at=at, kind="promise", facts={"text": PROMISES[step]}))
        if step == until:
            break
    return said


def plant(
    where: Path, state: State = State.DONE, until: str = "tidy", *more: Event, **changes: Any
) -> Store:
    """A store with one transfer that got as far as ``until``."""
    store = Store(where)
    steps = list(RECEIPTS)
    reached = steps[: steps.index(until) + 1] if until else []
    last = "" if state in (State.DONE, State.ROLLED_BACK) else (reached or [""])[-1]
    store.create(transfer(state, last, **changes))
    for step in reached:
        store.intent(ID, step)
        store.receipt(ID, step, RECEIPTS[step])
    for event in (*(events(until) if until else ()), *more):
        store.event(event)
    if "sync" in reached:
        for one in PASSES:
            store.add_pass(ID, one)
    return store


PROGRESS = Progress(
    what="pass 1",
    done_bytes=3 * GIB,
    total_bytes=12 * GIB,
    done_files=2_345,
    total_files=10_190,
    rate_bytes_s=21.4 * 1024**2,
    eta_s=431.0,
    elapsed_s=147.0,
)
