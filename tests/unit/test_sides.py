"""Which files say what the live side is, and in which order they are written."""

from volferry.guests.linux import sides
from volferry.model import Filesystem, GuestFacts, Mount

SOURCE, TARGET = "5" * 8 + "-aaaa-bbbb-cccc-000000000001", "7" * 8 + "-aaaa-bbbb-cccc-000000000002"
RULE = "/etc/udev/rules.d/10-volferry-tr-x.rules"


def facts(fstab, fstype="xfs"):
    fs = Filesystem(
        device="/dev/vdb",
        volume_id=SOURCE,
        fstype=fstype,
        uuid="u-1",
        names=("/dev/vdb", "UUID=u-1", f"/dev/disk/by-id/virtio-{SOURCE[:20]}"),
        mounts=(Mount(target="/srv/data", source="/dev/vdb"),),
    )
    return GuestFacts(family="linux", filesystems=(fs,), fstab=fstab)


def decide(fstab, made="u-1"):
    return sides(facts(fstab), "tr-x", {SOURCE: TARGET}, {(SOURCE, None): made})


def test_with_one_identity_the_rule_alone_is_the_commit():
    [rule], changes = decide("UUID=u-1 /srv/data xfs\n")

    assert rule["path"] == RULE
    assert f'"{TARGET[:20]}*"' in rule["source"] and SOURCE[:20] not in rule["source"]
    assert f'"{SOURCE[:20]}*"' in rule["target"] and TARGET[:20] not in rule["target"]
    assert changes == []


def test_an_entry_that_names_the_disk_is_put_right_before_the_commit():
    [table, rule], [change] = decide("/dev/vdb /srv/data xfs\n")

    assert table["source"] == "/dev/vdb /srv/data xfs\n"
    assert table["target"] == "UUID=u-1 /srv/data xfs\n"
    assert rule["path"] == RULE
    assert change == "/etc/fstab line 1: /dev/vdb becomes UUID=u-1"


def test_a_by_id_entry_is_put_right_as_well():
    files, _ = decide(f"/dev/disk/by-id/virtio-{SOURCE[:20]} /srv/data xfs\n")

    assert files[0]["target"] == "UUID=u-1 /srv/data xfs\n"


def test_with_two_identities_the_fstab_is_the_commit_and_the_target_is_let_out_before():
    [rule, table], [change] = decide("UUID=u-1 /srv/data btrfs\n", made="u-2")

    assert rule["target"] is None
    assert f'"{TARGET[:20]}*"' in rule["source"]
    assert (table["source"], table["target"]) == (
        "UUID=u-1 /srv/data btrfs\n",
        "UUID=u-2 /srv/data btrfs\n",
    )
    assert change == "/etc/fstab line 1: UUID=u-1 becomes UUID=u-2"


def test_entries_of_other_devices_stay_as_they_are():
    files, _ = decide("/dev/vdb1 /a xfs\n# /dev/vdb /b xfs\n/dev/vdb /srv/data xfs\n")

    assert files[0]["target"] == "/dev/vdb1 /a xfs\n# /dev/vdb /b xfs\nUUID=u-1 /srv/data xfs\n"


# ---- several volumes -----------------------------------------------------------------------------

LOG, LOG_TARGET = (c * 8 + "-aaaa-bbbb-cccc-00000000000" + c for c in "69")


def both(fstab, log_fstype="xfs"):
    log = Filesystem(
        device="/dev/vdc1",
        volume_id=LOG,
        partition=1,
        fstype=log_fstype,
        uuid="u-9",
        names=("/dev/vdc1", "UUID=u-9"),
        mounts=(Mount(target="/srv/log", source="/dev/vdc1"),),
    )
    return GuestFacts(family="linux", filesystems=(*facts(fstab).filesystems, log), fstab=fstab)


TARGETS = {SOURCE: TARGET, LOG: LOG_TARGET}


def test_one_rule_names_all_targets_or_all_sources_so_that_the_commit_is_one_file():
    made = {(SOURCE, None): "u-1", (LOG, 1): "u-9"}

    [rule], _ = sides(
        both("UUID=u-1 /srv/data xfs\nUUID=u-9 /srv/log xfs\n"), "tr-x", TARGETS, made
    )

    for volume in (TARGET, LOG_TARGET):
        assert f'"{volume[:20]}*"' in rule["source"] and volume[:20] not in rule["target"]
    for volume in (SOURCE, LOG):
        assert f'"{volume[:20]}*"' in rule["target"] and volume[:20] not in rule["source"]


def test_with_one_btrfs_among_them_all_entries_change_in_one_fstab():
    fstab = "UUID=u-1 /srv/data xfs\nUUID=u-9 /srv/log btrfs\n"
    made = {(SOURCE, None): "u-2", (LOG, 1): "u-8"}

    [rule, table], changes = sides(both(fstab, "btrfs"), "tr-x", TARGETS, made)

    assert rule["target"] is None
    assert table["target"] == "UUID=u-2 /srv/data xfs\nUUID=u-8 /srv/log btrfs\n"
    assert len(changes) == 2
