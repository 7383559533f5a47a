"""What real guests said (``tests/facts``, captured from Debian 12 and 13), read as nouns."""

import json
from pathlib import Path

import pytest

from volferry.guests import linux_facts
from volferry.model import DiskRef, GuestFacts, Json, MountBy

FACTS = Path(__file__).parents[1] / "facts"
RELEASES = {"debian-12": (252, "bookworm"), "debian-13": (257, "trixie")}


def read(name: str) -> GuestFacts:
    raw = json.loads((FACTS / f"{name}.json").read_text())
    return linux_facts.read(raw, [DiskRef(volume_id=raw["volume_id"], size_bytes=1 << 30)])


ANOTHER = "0a1b2c3d-9999-4444-8888-0123456789ab"


def as_another(raw: Json) -> Json:
    """The same guest, its source being another volume with another name and device number."""
    [kname] = raw["sources"].values()
    [dev] = [disk["dev"] for disk in raw["sysblock"] if disk["path"] == f"/dev/{kname}"]
    text = json.dumps(raw)
    for old, new in (
        (raw["volume_id"], ANOTHER),
        (raw["volume_id"][:20], ANOTHER[:20]),
        (kname, "vdx"),
        (f'"{dev}"', '"77:0"'),
        (f" {dev} ", " 77:0 "),
    ):
        text = text.replace(old, new)
    other: Json = json.loads(text)
    return other


@pytest.fixture(params=sorted(RELEASES))
def release(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_the_guest_itself(release):
    facts = read(f"{release}-xfs-fstab-bind")

    systemd, codename = RELEASES[release]
    assert facts.family == "linux" and facts.root
    assert codename in facts.os_name
    assert facts.systemd == systemd
    assert len(facts.dmi_uuid) == 36
    assert facts.free_bytes > 1 << 30


def test_the_source_is_found_by_its_serial_and_has_the_volumes_size(release):
    facts = read(f"{release}-xfs-fstab-bind")

    [disk] = facts.source_disks
    assert disk.size_bytes == 1 << 30
    assert len(disk.serial) == 20 and disk.volume_id.startswith(disk.serial)
    assert facts.source_disk(disk.volume_id) == disk
    assert any(d.serial == "root" for d in facts.disks)


def test_a_whole_disk_xfs_with_a_bind_mount_whose_name_has_a_space(release):
    facts = read(f"{release}-xfs-fstab-bind")

    [fs] = facts.filesystems
    assert (fs.partition, fs.fstype, facts.other_content) == (None, "xfs", ())
    assert f"UUID={fs.uuid}" in fs.names and fs.device in fs.names
    assert any(name.startswith("/dev/disk/by-id/virtio-") for name in fs.names)
    assert [(m.target, m.root, m.by, m.unit) for m in fs.mounts] == [
        ("/srv/data", "/", MountBy.FSTAB, "srv-data.mount"),
        ("/srv/with space", "/sub", MountBy.FSTAB, "srv-with\\x20space.mount"),
    ]
    assert all(m.fstab_line for m in fs.mounts)
    assert "noatime" in fs.mounts[0].options
    assert fs.used_bytes > 0 and fs.inodes_used > 0


def test_who_holds_it_is_told_with_the_unit_and_nobody_else_is(release):
    facts = read(f"{release}-xfs-fstab-bind")

    assert {(h.kind, h.unit, h.stoppable) for h in facts.holders} == {
        ("process", "holder.service", True)
    }
    assert [u.name for u in facts.units] == ["holder.service"]


def test_partitions_and_what_files_cannot_carry(release):
    facts = read(f"{release}-gpt-ext4-and-lvm")

    [fs] = facts.filesystems
    table = facts.partition_table(fs.volume_id)
    assert table and table.label == "gpt" and "label-id:" in table.dump
    assert (fs.partition, fs.fstype, fs.label) == (1, "ext4", "files")
    assert any(name.startswith("PARTUUID=") for name in fs.names)
    assert fs.mounts[0].by is MountBy.HAND
    [other] = facts.other_content
    assert "LVM physical volume" in other


def test_several_volumes_of_one_guest_are_told_apart(release):
    """Of two captures, one guest that has both disks."""
    parted, whole = (
        json.loads((FACTS / f"{release}-{name}.json").read_text())
        for name in ("gpt-ext4-and-lvm", "xfs-fstab-bind")
    )
    whole = as_another(whole)
    both = {
        key: parted[key] + whole[key]
        if key in ("sysblock", "mountinfo")
        else {**parted[key], **whole[key]}
        if isinstance(parted[key], dict)
        else parted[key]
        for key in parted
    }
    ids = (parted["volume_id"], "nowhere", ANOTHER)

    facts = linux_facts.read(both, [DiskRef(volume_id=id, size_bytes=1 << 30) for id in ids])

    assert [disk.volume_id for disk in facts.source_disks] == [ids[0], ANOTHER]
    assert [(fs.volume_id, fs.fstype) for fs in facts.filesystems] == [
        (ids[0], "ext4"),
        (ANOTHER, "xfs"),
    ]
    assert [table.volume_id for table in facts.partition_tables] == [ids[0]]
    assert len(facts.other_content) == 1


def test_a_luks_disk_is_named_as_such(release):
    facts = read(f"{release}-luks")

    assert facts.filesystems == ()
    assert [text.partition(" ")[2] for text in facts.other_content] == ["is LUKS encryption"]


def test_btrfs_subvolumes_are_counted_though_its_mounts_have_no_block_device_number(release):
    facts = read(f"{release}-btrfs-subvolume")

    [fs] = facts.filesystems
    assert fs.fstype == "btrfs" and fs.mounts[0].target == "/srv/tree"
    assert facts.subvolumes == 1


def test_tools_are_told_with_their_versions_and_packages(release):
    facts = read(f"{release}-luks")

    rsync = facts.tool("rsync")
    assert rsync and rsync.version.startswith("3.")
    assert {t.package for t in facts.tools if t.name == "sfdisk"} == {"fdisk"}


@pytest.mark.parametrize(
    ("line", "column"), [('ID=rocky\nID_LIKE="rhel fedora"', "util-linux"), ("ID=debian", "mount")]
)
def test_packages_go_by_the_family_of_distributions(line, column):
    raw = json.loads((FACTS / "debian-12-luks.json").read_text())

    facts = linux_facts.read(
        {**raw, "os_release": line, "tools": {}}, [DiskRef(volume_id="x", size_bytes=1)]
    )

    assert next(t.package for t in facts.tools if t.name == "mount") == column


def test_of_a_mount_unit_its_own_file_says_what_it_names_and_not_the_kernel():
    raw = json.loads((FACTS / "debian-12-xfs-fstab-bind.json").read_text())
    unit = raw["mount_units"][0]
    unit["show"] = unit["show"].replace("SourcePath=/etc/fstab", "SourcePath=")
    unit["show"] = unit["show"].replace("/run/systemd/generator/", "/etc/systemd/system/")
    unit["file"] = (
        "# /etc/systemd/system/srv-data.mount\n[Unit]\nDescription=What=/dev/no\n"
        "[Mount]\nWhat=/dev/vdb\nWhere=/srv/data\n\n"
        "# /etc/systemd/system/srv-data.mount.d/disk.conf\n[Mount]\nWhat = /dev/disk/by-path/x\n"
    )

    ref = DiskRef(volume_id=raw["volume_id"], size_bytes=1 << 30)
    [fs] = linux_facts.read(raw, [ref]).filesystems

    assert [(m.by, m.unit_names) for m in fs.mounts] == [
        (MountBy.UNIT, "/dev/disk/by-path/x"),
        (MountBy.FSTAB, ""),
    ]


def test_a_source_that_is_no_single_disk_is_told_with_the_reason():
    raw = json.loads((FACTS / "debian-12-xfs-fstab-bind.json").read_text())
    raw["sources"], raw["unclear"] = {}, {raw["volume_id"]: "it is reached by 2 disks"}

    facts = linux_facts.read(raw, [DiskRef(volume_id=raw["volume_id"], size_bytes=1 << 30)])

    assert facts.unclear == {raw["volume_id"]: "it is reached by 2 disks"}
    assert facts.source_disks == () and facts.filesystems == ()
