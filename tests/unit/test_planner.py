"""Every check of the plan, each way it can fail, with its figures."""

import pytest

from volferry import planner
from volferry.errors import Stop
from volferry.model import (
    GIB,
    Attachment,
    CloudFacts,
    Disk,
    Filesystem,
    GuestFacts,
    Holder,
    Mount,
    MountBy,
    Quota,
    Result,
    Seed,
    Server,
    ServerVolume,
    Tool,
    Unit,
    Volume,
    VolumeType,
    Wanted,
)

SERVER = Server(id="5e-1", name="testsrv", status="ACTIVE", availability_zone="nova")
SOURCE = Volume(
    id="50-1",
    name="sourcevol",
    size_gib=2,
    type="cbs-standard",
    status="in-use",
    availability_zone="nova",
    attachments=(Attachment(server_id="5e-1", volume_id="50-1", device="/dev/vdb"),),
)
TYPES = tuple(VolumeType(id=n, name=n) for n in ("cbs-standard", "cbs-premium"))
CLOUD = CloudFacts(
    cloud="lab",
    server=SERVER,
    source=SOURCE,
    server_volumes=(ServerVolume(volume_id="50-1", device="/dev/vdb"),),
    types=TYPES,
    quota=Quota(limits={"volumes": 10, "gigabytes": 100, "snapshots": 10}, used={}),
)
FS = Filesystem(
    device="/dev/vdb",
    fstype="xfs",
    uuid="u-1",
    size_bytes=2 * GIB,
    used_bytes=GIB,
    inodes_used=4000,
    mounts=(Mount(target="/srv/data", source="/dev/vdb", by=MountBy.FSTAB, fstab_line=3),),
)
TOOLS = tuple(
    Tool(name=n, path=f"/usr/bin/{n}", package=n)
    for n in (
        "rsync", "python3", "unshare", "mount", "umount", "blkid", "blockdev", "mkfs.xfs",
        "xfs_growfs", "mkfs.btrfs", "btrfs",
    )
)  # fmt: skip
GUEST = GuestFacts(
    family="linux",
    os_name="Debian GNU/Linux 12",
    kernel="6.1.0",
    dmi_uuid="5E-1",
    root=True,
    python="3.11.2",
    systemd=252,
    source_disk=Disk(path="/dev/vdb", size_bytes=2 * GIB, serial="50-1"),
    filesystems=(FS,),
    holders=(Holder(kind="process", name="postgres", pid=7, unit="pg.service"),),
    units=(Unit(name="pg.service", start_s=2.0, stop_s=0.5),),
    tools=TOOLS,
    walk_s=0.2,
    free_bytes=GIB,
)
WANTED = Wanted(server="testsrv", volume="sourcevol", type="cbs-premium", units=("pg",))


def change(noun, **fields):
    return noun.model_copy(update=fields)


def check(plan, name):
    [found] = [c for c in plan.checks if c.name == name]
    return found


def test_a_healthy_transfer_is_planned_without_a_refusal_or_a_warning():
    plan = planner.plan(WANTED, CLOUD, GUEST)

    assert [c for c in plan.checks if c.result is not Result.OK] == []
    assert (plan.method, plan.seed, plan.target_type) == ("rsync", Seed.SNAPSHOT, "cbs-premium")
    assert (plan.target_name, plan.target_size_gib) == ("sourcevol", 2)
    assert [u.name for u in plan.units] == ["pg.service"]


def source(**fields):
    return change(CLOUD, source=change(SOURCE, **fields))


def server(**fields):
    return change(CLOUD, server=change(SERVER, **fields))


ELSEWHERE = Attachment(server_id="other", volume_id="50-1", device="/dev/vdb")
CSI = {"cinder.csi.openstack.org/cluster": "k8s"}


@pytest.mark.parametrize(
    ("cloud", "name", "figures"),
    [
        (server(status="SHUTOFF"), "server state", "SHUTOFF"),
        (server(locked=True), "server free", "locked"),
        (server(task_state="rebooting"), "server free", "rebooting"),
        (source(status="available", attachments=()), "source attached", "'available'"),
        (source(attachments=(ELSEWHERE,)), "source attached", "server other"),
        (server(root_device="/dev/vdb"), "not a boot volume", "/dev/vdb"),
        (source(multiattach=True), "source kind", "1 attachments"),
        (source(group_id="g-9"), "source kind", "g-9"),
        (source(migration_status="migrating"), "source kind", "migrating"),
        (source(metadata=CSI), "source kind", "cinder.csi.openstack.org/cluster"),
        (source(read_only=True), "source read-write", "read-only"),
        (change(CLOUD, types=TYPES[:1]), "target type", "'cbs-premium'"),
        (
            change(CLOUD, server_volumes=tuple(ServerVolume(volume_id=str(n)) for n in range(25))),
            "attach slot",
            "25 volumes are attached, 25 fit",
        ),
        (
            change(CLOUD, quota=Quota(limits={"gigabytes": 103}, used={"gigabytes": 100})),
            "quota",
            "gigabytes: 100 used of 103, 4 more needed",
        ),
        (
            change(CLOUD, quota=Quota(limits={"volumes_cbs-premium": 0})),
            "quota",
            "volumes_cbs-premium: 0 used of 0, 1 more needed",
        ),
        (
            change(CLOUD, quota=Quota(limits={"snapshots": 10}, used={"snapshots": 10})),
            "quota",
            "snapshots: 10 used of 10, 1 more needed",
        ),
    ],
)
def test_what_the_cloud_would_refuse_later_is_refused_with_its_figures(cloud, name, figures):
    found = check(planner.plan(WANTED, cloud, GUEST), name)

    assert found.result is Result.REFUSAL
    assert figures in found.found


def test_a_bootable_image_on_a_data_volume_is_still_a_data_volume():
    found = check(planner.plan(WANTED, source(bootable=True), GUEST), "not a boot volume")

    assert found.result is Result.OK


def test_a_quota_that_cannot_be_read_is_a_warning():
    cloud = change(CLOUD, quota=None, quota_error="403")

    found = check(planner.plan(WANTED, cloud, GUEST), "quota")

    assert found.result is Result.WARNING and "403" in found.found


def fs(**fields):
    return change(GUEST, filesystems=(change(FS, **fields),))


LOGIN = Holder(kind="process", name="bash in session-1.scope", pid=9, stoppable=False)
SWAP = Holder(kind="swap", name="/srv/data/swapfile", stoppable=False)


@pytest.mark.parametrize(
    ("guest", "name", "figures"),
    [
        (change(GUEST, dmi_uuid="another"), "guest", "another"),
        (change(GUEST, root=False), "root", "no root"),
        (change(GUEST, source_disk=None), "source disk", "50-1"),
        (change(GUEST, other_content=("/dev/vdb1 is LUKS encryption",)), "method", "LUKS"),
        (fs(fstype="ntfs"), "method", "ntfs"),
        (fs(mounts=()), "mounts", "nothing on the source is mounted"),
        (change(GUEST, subvolumes=2), "method", "2 btrfs subvolumes"),
        (change(GUEST, tools=TOOLS[1:]), "tools", "rsync"),
        (fs(used_bytes=2 * GIB), "space", str(2 * GIB)),
        (change(GUEST, free_bytes=1000), "guest's own space", "1000 bytes free"),
        (change(GUEST, nested_mounts=("/srv/data/x",)), "nested mounts", "/srv/data/x"),
        (change(GUEST, holders=(*GUEST.holders, LOGIN)), "holders", "bash in session-1.scope"),
        (change(GUEST, holders=(*GUEST.holders, SWAP)), "holders", "/srv/data/swapfile"),
    ],
)
def test_what_the_guest_would_fail_at_later_is_refused_with_its_figures(guest, name, figures):
    found = check(planner.plan(WANTED, CLOUD, guest), name)

    assert found.result is Result.REFUSAL
    assert figures in found.found


def test_a_missing_tool_is_named_with_its_package():
    tools = (Tool(name="rsync", package="rsync"), *TOOLS[1:])

    found = check(planner.plan(WANTED, CLOUD, change(GUEST, tools=tools)), "tools")

    assert found.found == "missing: rsync (package rsync)"
    assert "installs nothing" in found.hint


def test_a_holder_that_no_unit_covers_is_refused_and_the_right_words_are_given():
    found = check(planner.plan(change(WANTED, units=()), CLOUD, GUEST), "holders")

    assert found.result is Result.REFUSAL
    assert "postgres (pid 7) of pg.service" in found.found
    assert found.hint == "--unit pg.service, or --units auto"


def test_auto_takes_the_units_that_were_found():
    plan = planner.plan(change(WANTED, units=("auto",)), CLOUD, GUEST)

    assert [u.name for u in plan.units] == ["pg.service"]
    assert plan.refusals == ()


def test_a_stop_command_makes_a_left_over_process_a_warning():
    wanted = change(WANTED, units=(), stop=("pg_ctl stop",), start=("pg_ctl start",))

    assert check(planner.plan(wanted, CLOUD, GUEST), "holders").result is Result.WARNING


def test_a_unit_that_the_guest_does_not_know_is_refused():
    plan = planner.plan(change(WANTED, units=("pg", "typo")), CLOUD, GUEST)

    assert "typo.service" in check(plan, "unit names").found


def test_a_guest_that_cannot_be_reached_is_a_refusal_beside_what_the_cloud_said():
    plan = planner.plan(WANTED, CLOUD, None, Stop("h refused the login", hint="try ssh h"))

    assert check(plan, "guest").found == "h refused the login"
    assert check(plan, "quota").result is Result.OK
    assert [c.name for c in plan.refusals] == ["guest"]


def test_the_peak_counts_the_snapshot_in_its_own_type_and_the_target_in_both():
    peak = planner.quota_peak(SOURCE, "cbs-premium", 3, Seed.SNAPSHOT)

    assert peak == {
        "volumes": 1,
        "gigabytes": 5,
        "snapshots": 1,
        "volumes_cbs-standard": 1,
        "gigabytes_cbs-standard": 5,
        "snapshots_cbs-standard": 1,
        "volumes_cbs-premium": 1,
        "gigabytes_cbs-premium": 3,
    }


def test_a_blank_target_needs_no_snapshot_and_nothing_of_the_old_type():
    assert planner.quota_peak(SOURCE, "cbs-premium", 3, Seed.BLANK) == {
        "volumes": 1,
        "gigabytes": 3,
        "volumes_cbs-premium": 1,
        "gigabytes_cbs-premium": 3,
    }


def test_a_smaller_target_starts_blank():
    assert planner.plan(change(WANTED, size_gib=1), CLOUD, GUEST).seed is Seed.BLANK


def test_btrfs_starts_blank_because_a_clone_must_not_meet_its_origin():
    assert planner.plan(WANTED, CLOUD, fs(fstype="btrfs")).seed is Seed.BLANK


def test_the_prediction_adds_up_and_says_what_it_rests_on():
    prediction = planner.plan(WANTED, CLOUD, GUEST).prediction

    assert prediction.total_s == pytest.approx(sum(prediction.parts.values()))
    assert (prediction.parts["stop"], prediction.parts["start"]) == (0.5, 2.0)
    assert prediction.parts["copy"] == 0.2
    assert "walk of the tree" in prediction.basis


def test_every_step_promises_something_and_says_what_the_way_back_costs():
    promises = planner.plan(WANTED, CLOUD, GUEST).promises

    assert [p.step for p in promises][:3] == ["install", "snapshot", "target"]
    assert {p.phase for p in promises} == {"seed", "attach", "sync", "cutover", "finish"}
    assert all(p.text and p.way_back for p in promises)
    assert next(p for p in promises if p.step == "attach").way_back == "free"
    assert "lost" in next(p for p in promises if p.step == "cutover").way_back
