"""Every check of the plan, each way it can fail, with its figures."""

import pytest

from volferry import planner
from volferry.errors import Stop
from volferry.methods.mirror import Mirror
from volferry.methods.rsync import Rsync
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
    Pair,
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
    sources=(SOURCE,),
    server_volumes=(ServerVolume(volume_id="50-1", device="/dev/vdb"),),
    types=TYPES,
    quota=Quota(limits={"volumes": 10, "gigabytes": 100, "snapshots": 10}, used={}),
)
FS = Filesystem(
    device="/dev/vdb",
    volume_id="50-1",
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
    source_disks=(Disk(path="/dev/vdb", size_bytes=2 * GIB, serial="50-1", volume_id="50-1"),),
    filesystems=(FS,),
    holders=(Holder(kind="process", name="postgres", pid=7, unit="pg.service"),),
    units=(Unit(name="pg.service", start_s=2.0, stop_s=0.5),),
    tools=TOOLS,
    walk_s=0.2,
    free_bytes=GIB,
)
MIRRORED = Wanted(server="testsrv", volumes=("sourcevol",), type="cbs-premium", units=("pg",))
WANTED = MIRRORED.model_copy(update={"method": "rsync"})


def change(noun, **fields):
    return noun.model_copy(update=fields)


def check(plan, name):
    [found] = [c for c in plan.checks if c.name == name]
    return found


def test_a_healthy_transfer_is_planned_without_a_refusal_or_a_warning():
    plan = planner.plan(WANTED, CLOUD, GUEST)

    assert [c for c in plan.checks if c.result is not Result.OK] == []
    assert (plan.method, plan.pairs) == ("rsync", (pair(SOURCE),))
    assert [u.name for u in plan.units] == ["pg.service"]


def pair(source, type_="cbs-premium", size_gib=2, seed=Seed.SNAPSHOT):
    return Pair(
        source=source,
        target_name=source.name,
        target_type=type_,
        target_size_gib=size_gib,
        seed=seed,
    )


def source(**fields):
    return change(CLOUD, sources=(change(SOURCE, **fields),))


def server(**fields):
    return change(CLOUD, server=change(SERVER, **fields))


def attached(count):
    return tuple(ServerVolume(volume_id=str(n)) for n in range(count))


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
            change(CLOUD, server_volumes=attached(25)),
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
        (change(GUEST, source_disks=()), "source disk", "50-1"),
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


def by_unit(unit_names, **fields):
    mount = Mount(
        target="/srv/data",
        source="/dev/vdb",
        by=MountBy.UNIT,
        unit="srv-data.mount",
        unit_names=unit_names,
    )
    return fs(mounts=(mount,), **fields)


def by_name(spec):
    text = f"# comment\n{spec} /srv/data xfs defaults 0 0\n"
    return change(fs(names=(spec,)), fstab=text)


def test_a_name_that_the_next_boot_may_give_to_the_other_disk_is_told_of():
    found = check(planner.plan(MIRRORED, CLOUD, by_name("/dev/vdb")), "disk names")

    assert found.result is Result.WARNING
    assert found.found.startswith("fstab line 2 mounts /srv/data by /dev/vdb: ")
    assert "UUID=" in found.hint


def test_an_encrypted_disk_that_crypttab_opens_by_such_a_name_is_told_of():
    guest = change(GUEST, layers=(BY_HAND,), crypttab="data /dev/vdb none luks\n")

    found = check(planner.plan(MIRRORED, CLOUD, guest), "disk names")

    assert found.found.startswith("crypttab line 1 opens data by /dev/vdb: ")


@pytest.mark.parametrize("spec", ["UUID=u-1", "LABEL=data", "/dev/disk/by-id/virtio-50-1"])
def test_a_name_that_every_boot_gives_to_the_source_is_fine(spec):
    plan = planner.plan(MIRRORED, CLOUD, by_name(spec))

    assert "disk names" not in {one.name for one in plan.checks}


@pytest.mark.parametrize("wanted", [WANTED, MIRRORED])
@pytest.mark.parametrize(
    "spec", ["/dev/vdb", "/dev/disk/by-id/virtio-50-1", "/dev/disk/by-path/pci-0000:00:05.0"]
)
def test_a_mount_unit_that_names_the_disk_is_refused_because_it_would_mount_the_old_one(
    wanted, spec
):
    found = check(planner.plan(wanted, CLOUD, by_unit(spec)), "mount units")

    assert found.result is Result.REFUSAL
    assert found.found == f"srv-data.mount mounts {spec}, which names the disk"
    assert "What=/dev/disk/by-uuid/" in found.hint


@pytest.mark.parametrize(
    "guest",
    [
        by_unit("/dev/disk/by-uuid/u-1"),
        by_unit("UUID=u-1"),
        by_unit("/srv/elsewhere/sub"),  # a bind mount
        by_unit("/dev/vg/data", layers=("vg",)),
    ],
)
def test_a_mount_unit_that_follows_its_filesystem_is_fine(guest):
    assert planner.plan(MIRRORED, CLOUD, guest).refusals == ()


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


def test_a_holder_without_a_unit_is_not_answered_with_a_unit_that_was_named_already():
    guest = change(GUEST, holders=(*GUEST.holders, LOGIN))
    found = check(planner.plan(WANTED, CLOUD, guest), "holders")

    assert found.result is Result.REFUSAL
    assert "--unit" not in found.hint and "(bash in session-1.scope (pid 9))" in found.hint
    assert "--stop CMD --start CMD" in found.hint


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
    peak = planner.quota_peak([pair(SOURCE, size_gib=3)])

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
    assert planner.quota_peak([pair(SOURCE, size_gib=3, seed=Seed.BLANK)]) == {
        "volumes": 1,
        "gigabytes": 3,
        "volumes_cbs-premium": 1,
        "gigabytes_cbs-premium": 3,
    }


def test_a_smaller_target_starts_blank():
    assert planner.plan(change(WANTED, size_gib=1), CLOUD, GUEST).pairs[0].seed is Seed.BLANK


def test_btrfs_starts_blank_because_a_clone_must_not_meet_its_origin():
    assert planner.plan(WANTED, CLOUD, fs(fstype="btrfs")).pairs[0].seed is Seed.BLANK


# ---- several volumes -----------------------------------------------------------------------------

LOG = change(
    SOURCE,
    id="50-2",
    name="log",
    size_gib=1,
    type="cbs-premium",
    attachments=(Attachment(server_id="5e-1", volume_id="50-2", device="/dev/vdc"),),
)
LOG_FS = change(
    FS,
    device="/dev/vdc",
    volume_id="50-2",
    uuid="u-2",
    used_bytes=GIB // 2,
    mounts=(Mount(target="/srv/log", source="/dev/vdc", by=MountBy.FSTAB, fstab_line=4),),
)
BOTH = change(WANTED, volumes=("sourcevol", "log"))
CLOUD_2 = change(
    CLOUD,
    sources=(SOURCE, LOG),
    server_volumes=(*CLOUD.server_volumes, ServerVolume(volume_id="50-2", device="/dev/vdc")),
)
GUEST_2 = change(
    GUEST,
    source_disks=(
        *GUEST.source_disks,
        Disk(path="/dev/vdc", size_bytes=GIB, serial="50-2", volume_id="50-2"),
    ),
    filesystems=(FS, LOG_FS),
)


def test_each_volume_has_its_pair_in_the_order_in_which_it_was_named():
    plan = planner.plan(BOTH, CLOUD_2, GUEST_2)

    assert plan.refusals == ()
    assert plan.pairs == (pair(SOURCE), pair(LOG, size_gib=1))


def test_without_a_type_each_target_has_its_own_sources():
    plan = planner.plan(change(BOTH, type=""), CLOUD_2, GUEST_2)

    assert [p.target_type for p in plan.pairs] == ["cbs-standard", "cbs-premium"]
    assert check(plan, "target type").found == "cbs-standard, cbs-premium"


def test_the_peak_is_summed_over_the_volumes_for_each_type():
    assert planner.plan(BOTH, CLOUD_2, GUEST_2).quota_peak == {
        "volumes": 2,
        "gigabytes": 2 + 2 + 1 + 1,
        "snapshots": 2,
        "volumes_cbs-standard": 1,
        "gigabytes_cbs-standard": 2 + 2,
        "snapshots_cbs-standard": 1,
        "volumes_cbs-premium": 2,
        "gigabytes_cbs-premium": 2 + 1 + 1,
        "snapshots_cbs-premium": 1,
    }


def test_the_largest_target_has_to_fit_the_limit_of_one_volume():
    quota = Quota(limits={"per_volume_gigabytes": 1})

    found = check(planner.plan(BOTH, change(CLOUD_2, quota=quota), GUEST_2), "quota")

    assert found.result is Result.REFUSAL
    assert found.found == "per_volume_gigabytes: limit 1, 2 needed"


@pytest.mark.parametrize(
    ("cloud", "guest", "name", "found"),
    [
        (
            change(CLOUD_2, sources=(SOURCE, change(LOG, group_id="g-9"))),
            GUEST_2,
            "source kind",
            "log: it belongs to group g-9, whose snapshots are taken together",
        ),
        (
            change(CLOUD_2, sources=(change(SOURCE, read_only=True), change(LOG, read_only=True))),
            GUEST_2,
            "source read-write",
            "sourcevol: the volume is attached read-only; log: the volume is attached read-only",
        ),
        (
            change(
                CLOUD_2, server_volumes=tuple(ServerVolume(volume_id=str(n)) for n in range(24))
            ),
            GUEST_2,
            "attach slot",
            "24 volumes are attached, 25 fit, 2 more needed",
        ),
        (
            CLOUD_2,
            change(GUEST_2, source_disks=GUEST.source_disks),
            "source disk",
            "log: no disk of the guest carries the id 50-2",
        ),
        (
            CLOUD_2,
            change(GUEST_2, filesystems=(FS, change(LOG_FS, used_bytes=GIB))),
            "space",
            f"log: {GIB} bytes are used, the target has {GIB}",
        ),
    ],
)
def test_a_refusal_names_the_volume_that_it_is_about(cloud, guest, name, found):
    refusal = check(planner.plan(BOTH, cloud, guest), name)

    assert refusal.result is Result.REFUSAL
    assert refusal.found == found


def test_a_volume_that_is_reached_by_several_disks_is_declined_by_both_methods_with_the_reason():
    why = "it is reached by 2 disks (sda, sdb), as with multipath"
    guest = change(
        GUEST_2,
        source_disks=GUEST.source_disks,
        filesystems=(FS,),
        unclear={"50-2": why},
    )

    plan = planner.plan(BOTH, CLOUD_2, guest)

    assert {choice.declines for choice in plan.methods} == {f"log: {why}"}
    assert check(plan, "source disk").result is Result.REFUSAL
    assert check(plan, "source disk").found == f"log: {why}"
    assert check(plan, "mounts").result is Result.OK, "nothing is known of it"


RAW_LOG = change(
    GUEST_2, filesystems=(FS,), other_content=("/dev/vdc has no known content",), tools=TOOLS
)


def test_each_volume_without_a_mounted_filesystem_needs_raw_to_be_said():
    both = change(BOTH, method="")
    found = check(planner.plan(both, CLOUD_2, RAW_LOG), "mounts")

    assert (found.result, found.found) == (
        Result.REFUSAL,
        "log: nothing on the source is mounted",
    )
    assert "no filesystem of log is mounted (--raw" in Mirror().declines(both, CLOUD_2, RAW_LOG)


def test_with_raw_one_volume_may_be_mounted_beside_one_that_is_not():
    plan = planner.plan(change(BOTH, method="", raw=True), CLOUD_2, RAW_LOG)

    assert (plan.method, plan.refusals) == ("mirror", ())
    assert check(plan, "mounts").found == "/dev/vdb xfs on /srv/data; log: none, as --raw says"
    mounted = check(planner.plan(change(BOTH, raw=True), CLOUD_2, GUEST_2), "mounts")
    assert mounted.result is Result.REFUSAL


def test_beside_a_btrfs_every_copy_gets_a_new_identity_which_a_mount_unit_cannot_know():
    btrfs = change(FS, fstype="btrfs")
    by_unit = Mount(target="/srv/log", source="/dev/vdc", by=MountBy.UNIT, unit="srv-log.mount")

    by_fstab = planner.plan(BOTH, CLOUD_2, change(GUEST_2, filesystems=(btrfs, LOG_FS)))
    other = (btrfs, change(LOG_FS, mounts=(by_unit,)))

    assert [p.seed for p in by_fstab.pairs] == [Seed.BLANK, Seed.BLANK]
    found = check(planner.plan(BOTH, CLOUD_2, change(GUEST_2, filesystems=other)), "method").found
    assert "srv-log.mount names /dev/vdc by its UUID" in found


def test_the_prediction_adds_up_and_says_what_it_rests_on():
    prediction = planner.plan(WANTED, CLOUD, GUEST).prediction

    assert prediction.total_s == pytest.approx(sum(prediction.parts.values()))
    assert (prediction.parts["stop"], prediction.parts["start"]) == (0.5, 2.0)
    assert prediction.parts["copy"] == 0.2
    assert "walk of the tree" in prediction.basis


BY_HAND = Layer(
    kind="luks",
    name="data",
    members=(Member(path="/dev/vdb", volume_id="50-1"),),
    above=("/dev/mapper/data",),
    key_problem="crypttab names no key file",
)


ARRAY = Layer(
    kind="md",
    name="/dev/md0",
    members=(Member(path="/dev/vdb", volume_id="50-1"),),
    above=("/dev/md0",),
    at_end=True,
)


@pytest.mark.parametrize(
    ("wanted", "guest", "reason"),
    [
        ({}, {"no_tracking": "the kernel is locked down"}, "the kernel is locked down"),
        ({}, {"root": False}, "it needs root in the guest"),
        ({}, {"family": "bsd"}, "it is for Linux guests"),
        ({}, {"filesystems": ()}, "no filesystem of the volume is mounted (--raw"),
        ({}, {"layers": (BY_HAND,)}, "encryption data does not open without a person"),
        ({"size_gib": 1}, {}, "the target is smaller (1 of 2 GiB)"),
        ({"size_gib": 3}, {"layers": (ARRAY,)}, "the superblock of /dev/md0 lies at the end"),
        ({"exclude": ("tmp",)}, {}, "it copies blocks and can leave out no files (--exclude)"),
    ],
)
def test_the_mirror_declines_with_its_reason_and_the_next_method_is_offered(wanted, guest, reason):
    plan = planner.plan(change(MIRRORED, **wanted), CLOUD, change(GUEST, **guest))

    assert [c.name for c in plan.methods] == ["mirror", "rsync"]
    assert reason in plan.methods[0].declines
    assert plan.method != "mirror"


def test_the_mirror_is_the_first_choice_and_tracks_before_the_snapshot():
    plan = planner.plan(MIRRORED, CLOUD, GUEST)

    assert (plan.method, plan.methods[0].declines) == ("mirror", "")
    assert [p.step for p in plan.promises][:3] == ["install", "track", "snapshot"]
    assert [p.step for p in planner.plan(WANTED, CLOUD, GUEST).promises][:2] == [
        "install",
        "snapshot",
    ]


def test_the_mirrors_prediction_follows_what_was_measured():
    measured = {
        "copy_bytes_s": 100e6,
        "compare_bytes_s": 200e6,
        "dirty_bytes": 10_000_000,
        "dirty_bytes_s": 20e6,
        "unverified_bytes": 0,
        "mask_s": 0.02,
        "publish_s": 0.1,
        "systemctl_s": 0.05,
    }
    prediction = Mirror().predict(GUEST, GUEST.units, (), measured)

    # 0.5 s to stop the unit and two calls of systemctl, in which 12 MB more are written.
    assert prediction.parts["stop"] == pytest.approx(0.6)
    assert prediction.parts["copy"] == pytest.approx(0.22)
    assert prediction.parts["compare"] == pytest.approx(0.11)
    assert prediction.parts["commit"] == pytest.approx(0.14)
    assert prediction.parts["start"] == pytest.approx(2.1)
    assert prediction.total_s == pytest.approx(sum(prediction.parts.values()))


@pytest.mark.parametrize("method", [Mirror(), Rsync()])
def test_a_mount_that_is_a_unit_of_systemds_costs_one_call_of_systemctl_more(method):
    known = {
        "copy_bytes_s": 100e6,
        "compare_bytes_s": 200e6,
        "dirty_bytes": 0,
        "dirty_bytes_s": 0.0,
        "unverified_bytes": 0,
        "mask_s": 0.02,
        "publish_s": 0.1,
        "mount_s": 0.3,
        "systemctl_s": 0.05,
    }
    guest = fs(mounts=(change(FS.mounts[0], unit="srv-data.mount"),))
    by_unit = method.predict(guest, (), (), known).parts["mount"]
    assert by_unit - method.predict(GUEST, (), (), known).parts["mount"] == pytest.approx(0.05)


def test_every_step_promises_something_and_says_what_the_way_back_costs():
    promises = planner.plan(WANTED, CLOUD, GUEST).promises

    assert [p.step for p in promises][:3] == ["install", "snapshot", "target"]
    assert {p.phase for p in promises} == {"seed", "attach", "sync", "cutover", "finish"}
    assert all(p.text and p.way_back for p in promises)
    assert next(p for p in promises if p.step == "attach").way_back == "free"
    assert "lost" in next(p for p in promises if p.step == "cutover").way_back
