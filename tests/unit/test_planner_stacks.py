"""The plan's checks of stacks and of devices without a filesystem, each way they can fail."""

import pytest

from volferry import planner
from volferry.methods.mirror import ASSUMED_DETACH_S, ASSUMED_LAYER_S, Mirror
from volferry.model import (
    GIB,
    Attachment,
    CloudFacts,
    Disk,
    Filesystem,
    GuestFacts,
    Holder,
    Layer,
    Member,
    Mount,
    MountBy,
    Plan,
    Result,
    Server,
    ServerVolume,
    Tool,
    Unit,
    Volume,
    VolumeType,
    Wanted,
)

IDS = ("aaaa0000-1111-2222-3333-444455556666", "bbbb0000-1111-2222-3333-444455556666")
CLOUD = CloudFacts(
    server=Server(id="5e-1", name="web", status="ACTIVE"),
    sources=(
        Volume(
            id=IDS[0],
            name="data",
            size_gib=2,
            type="t",
            status="in-use",
            attachments=(Attachment(server_id="5e-1", volume_id=IDS[0], device="/dev/vdb"),),
        ),
    ),
    server_volumes=tuple(ServerVolume(volume_id=volume_id) for volume_id in IDS),
    types=(VolumeType(id="t", name="t"),),
)
LUKS = Layer(
    kind="luks",
    name="secret",
    members=(Member(path="/dev/vdb", volume_id=IDS[0]),),
    above=("/dev/mapper/secret",),
    detail="luks2",
    key="/etc/keys/secret",
    open_s=1.25,
)
GROUP = Layer(
    kind="lvm",
    name="vg",
    members=(Member(path="/dev/mapper/secret"),),
    above=("/dev/mapper/vg-lv",),
    detail="1 logical volume",
)
GUEST = GuestFacts(
    family="linux",
    root=True,
    systemd=252,
    source_disks=(Disk(path="/dev/vdb", size_bytes=2 * GIB, volume_id=IDS[0]),),
    disks=(
        Disk(path="/dev/vdb", size_bytes=2 * GIB, serial=IDS[0][:20]),
        Disk(path="/dev/vdc", size_bytes=2 * GIB, serial=IDS[1][:20]),
    ),
    other_content=("/dev/vdb is LUKS encryption",),
    filesystems=(
        Filesystem(
            device="/dev/mapper/vg-lv",
            volume_id=IDS[0],
            fstype="ext4",
            uuid="u",
            layers=("secret", "vg"),
            mounts=(Mount(target="/srv", source="/dev/mapper/vg-lv", by=MountBy.FSTAB),),
        ),
    ),
    layers=(LUKS, GROUP),
    tools=tuple(
        Tool(name=n, path=f"/sbin/{n}", package=n)
        for n in (
            "python3", "mount", "umount", "blkid", "cryptsetup", "lvs",
        )
    ),
    free_bytes=GIB,
)  # fmt: skip
WANTED = Wanted(server="web", volumes=("data",))
BARE = GUEST.model_copy(
    update={
        "filesystems": (),
        "layers": (),
        "other_content": ("/dev/vdb has no known content",),
    }
)


def stacked(*layers: Layer, **fields: object) -> GuestFacts:
    return GUEST.model_copy(update={"layers": layers, **fields})


def found(plan: Plan, name: str) -> tuple[Result, str, str]:
    [check] = [check for check in plan.checks if check.name == name]
    return check.result, check.found, check.hint


def test_a_healthy_stack_is_told_layer_by_layer_with_its_figures():
    plan = planner.plan(WANTED, CLOUD, GUEST)

    assert found(plan, "stack disks")[:2] == (
        Result.OK,
        "encryption secret on /dev/vdb; volume group vg on /dev/mapper/secret",
    )
    assert found(plan, "stack state")[:2] == (
        Result.OK,
        "encryption secret: luks2; volume group vg: 1 logical volume",
    )
    assert found(plan, "encryption keys")[:2] == (
        Result.OK,
        "/etc/keys/secret opens secret in 1.2 s",
    )


SOURCES = tuple(
    Disk(path=path, size_bytes=2 * GIB, volume_id=volume_id)
    for path, volume_id in zip(("/dev/vdb", "/dev/vdc"), IDS, strict=True)
)
FIGURES = {
    "dirty_bytes": 0,
    "dirty_bytes_s": 0.0,
    "unverified_bytes": 0,
    "copy_bytes_s": 1e8,
    "compare_bytes_s": 1e8,
    "mask_s": 0.1,
    "publish_s": 0.1,
}


def test_the_mirror_takes_a_healthy_stack_and_counts_its_layers_into_the_downtime():
    mirror = Mirror()

    assert mirror.declines(WANTED, CLOUD, GUEST) == ""
    assert {"lvs", "cryptsetup"} <= {tool.name for tool in mirror.tools(GUEST)}
    stacked_s, plain_s = (mirror.predict(guest, ()).parts for guest in (GUEST, stacked()))
    assert stacked_s["mount"] == plain_s["mount"] + 2 * ASSUMED_LAYER_S + LUKS.open_s
    assert stacked_s["unmount"] == plain_s["unmount"] + 2 * ASSUMED_LAYER_S


@pytest.mark.parametrize("measured", [{}, FIGURES], ids=["planned", "measured"])
def test_a_detach_before_the_commit_is_part_of_the_downtime_for_each_source(measured):
    on_disks = GROUP.model_copy(
        update={"members": tuple(Member(path=d.path, volume_id=d.volume_id) for d in SOURCES)}
    )
    detached = Mirror().predict(
        stacked(on_disks).model_copy(update={"source_disks": SOURCES}), (), (), measured
    )
    switched = Mirror().predict(GUEST, (), (), measured)

    assert detached.parts["detach"] == 2 * ASSUMED_DETACH_S
    assert detached.total_s == pytest.approx(sum(detached.parts.values()))
    assert "8 s assumed for the detach" in detached.basis
    assert "detach" not in switched.parts and "detach" not in switched.basis


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"elsewhere": ("/dev/vdc",)}, "lies on /dev/vdc as well"),
        ({"problem": "a resync runs"}, "a resync runs"),
        ({"key": ""}, "does not open without a person"),
    ],
)
def test_the_mirror_declines_a_stack_that_it_cannot_switch(change, reason):
    guest = stacked(LUKS.model_copy(update=change), GROUP)

    assert reason in Mirror().declines(WANTED, CLOUD, guest)


def test_nothing_is_said_of_stacks_where_there_are_none():
    names = {check.name for check in planner.plan(WANTED, CLOUD, BARE).checks}

    assert not names & {"stack disks", "stack state", "encryption keys", "LVM devices file"}


def test_a_layer_that_reaches_to_another_volume_names_it():
    group = GROUP.model_copy(update={"elsewhere": ("/dev/vdc",)})

    result, problem, hint = found(planner.plan(WANTED, CLOUD, stacked(group)), "stack disks")

    assert result is Result.REFUSAL
    assert problem == "volume group vg lies on /dev/vdc as well, which is not moved"
    assert IDS[1] in hint


def test_a_degraded_array_is_refused_with_what_is_missing():
    array = Layer(kind="md", name="/dev/md0", problem="1 of 2 members are missing: degraded")

    result, problem, _ = found(planner.plan(WANTED, CLOUD, stacked(array)), "stack state")

    assert (result, problem) == (Result.REFUSAL, "1 of 2 members are missing: degraded")


def test_an_encryption_that_asks_a_person_is_refused():
    luks = LUKS.model_copy(update={"key": "", "key_problem": "it is not in /etc/crypttab"})

    result, problem, _ = found(planner.plan(WANTED, CLOUD, stacked(luks)), "encryption keys")

    assert (result, problem) == (Result.REFUSAL, "encryption secret: it is not in /etc/crypttab")


def test_an_encryption_that_is_not_open_needs_no_key():
    luks = LUKS.model_copy(update={"key": "", "above": ()})

    names = {check.name for check in planner.plan(WANTED, CLOUD, stacked(luks)).checks}

    assert "encryption keys" not in names


@pytest.mark.parametrize(
    ("entry", "result"),
    [
        (f"IDTYPE=sys_serial IDNAME={IDS[0][:20]} DEVNAME=/dev/vdb PVID=p", Result.OK),
        ("IDTYPE=sys_wwid IDNAME=naa.1 DEVNAME=/dev/vdb PVID=p", Result.REFUSAL),
    ],
)
def test_lvms_list_of_devices_has_to_be_able_to_follow(entry, result):
    group = GROUP.model_copy(update={"members": LUKS.members})
    guest = stacked(group, lvm_devices=entry, lvm_devices_path="/etc/lvm/devices/system.devices")

    assert found(planner.plan(WANTED, CLOUD, guest), "LVM devices file")[0] is result


def test_every_volume_below_a_mounted_stack_counts_as_mounted():
    group = GROUP.model_copy(
        update={"members": tuple(Member(path=f"/dev/vd{n}", volume_id=IDS[n]) for n in (0, 1))}
    )
    guest = stacked(group)

    assert all(guest.is_mounted(volume_id) for volume_id in IDS)
    assert not stacked(group.model_copy(update={"name": "other"})).is_mounted(IDS[1])


# ---- no filesystem at all ------------------------------------------------------------------------


def test_a_bare_device_needs_raw_to_be_said():
    result, problem, hint = found(planner.plan(WANTED, CLOUD, BARE), "mounts")

    assert (result, problem) == (Result.REFUSAL, "nothing on the source is mounted")
    assert "--raw" in hint


def test_with_raw_nothing_has_to_be_mounted_and_rsync_does_not_fit():
    plan = planner.plan(WANTED.model_copy(update={"raw": True}), CLOUD, BARE)

    assert found(plan, "mounts")[0] is Result.OK
    declined = {choice.name: choice.declines for choice in plan.methods}
    assert "--raw" in declined["rsync"]


def test_raw_for_a_mounted_filesystem_is_a_mistake():
    result, problem, _ = found(
        planner.plan(WANTED.model_copy(update={"raw": True}), CLOUD, GUEST), "mounts"
    )

    assert (result, problem) == (Result.REFUSAL, "/dev/mapper/vg-lv ext4 on /srv")


def test_who_has_a_bare_device_open_is_to_be_stopped_first():
    holder = Holder(kind="process", name="dbserver", pid=7, unit="db.service", path="/dev/vdb")
    guest = BARE.model_copy(update={"holders": (holder,), "units": (Unit(name="db.service"),)})
    wanted = WANTED.model_copy(update={"raw": True})

    assert found(planner.plan(wanted, CLOUD, guest), "holders")[0] is Result.REFUSAL
    stopped = wanted.model_copy(update={"units": ("db",)})
    assert found(planner.plan(stopped, CLOUD, guest), "holders")[0] is Result.OK
