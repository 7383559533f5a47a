"""LVM, LUKS and md under filesystems, as real guests showed them (``tests/facts``)."""

import json
from pathlib import Path
from typing import Any

import pytest

from volferry.guests import linux_facts, lvm_devices, stacks
from volferry.methods.rsync import Rsync
from volferry.model import CloudFacts, DiskRef, GuestFacts, Layer, Member, Server, Volume, Wanted

FACTS = Path(__file__).parents[1] / "facts"
SOURCE, OTHER, TARGET = (f"{letter * 4}0000-1111-2222-3333-444455556666" for letter in "abc")


def raw_facts(layout: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FACTS / f"debian-12-{layout}.json").read_text())
    return found


def read(raw: dict[str, Any]) -> GuestFacts:
    refs = [DiskRef(volume_id=volume_id, size_bytes=1 << 30) for volume_id in raw["sources"]]
    return linux_facts.read(raw, refs)


def ids(raw: dict[str, Any]) -> dict[str, str]:
    return {f"/dev/{kname}": volume_id for volume_id, kname in raw["sources"].items()}


# ---- what is read --------------------------------------------------------------------------------


def test_an_encrypted_disk_is_one_layer_whose_key_was_tried():
    raw = raw_facts("luks-keyfile")
    facts = read(raw)

    [layer] = facts.layers
    assert (layer.kind, layer.name, layer.detail) == ("luks", "secret", "luks2")
    assert layer.members == (Member(path="/dev/vdb", volume_id=ids(raw)["/dev/vdb"]),)
    assert (layer.above, layer.key) == (("/dev/mapper/secret",), "/etc/keys/secret")
    assert 0 < layer.open_s < 60
    assert layer.uuid == raw["blkid"]["/dev/vdb"]["UUID"]
    [fs] = facts.filesystems
    assert (fs.device, fs.layers) == ("/dev/mapper/secret", ("secret",))
    assert (fs.volume_id, fs.partition) == (raw["volume_id"], None)
    assert list(stacks.reasons(facts)) == []


def test_a_volume_group_on_an_encryption_comes_after_it():
    raw = raw_facts("lvm-on-luks")
    facts = read(raw)

    luks, group = facts.layers
    assert (luks.kind, group.kind, group.name) == ("luks", "lvm", "my-vg")
    assert group.members == (Member(path="/dev/mapper/secret"),)
    assert (luks.volume_ids, group.volume_ids) == ((raw["volume_id"],), ())
    assert group.all_on_source
    assert group.detail == "3 logical volumes (1 snapshot)"
    assert set(group.above) == {f"/dev/mapper/my--vg-{lv}" for lv in ("lv--a", "raw", "snap")}
    [fs] = facts.filesystems
    assert fs.layers == ("secret", "my-vg")
    assert {"/dev/my-vg/lv-a", f"UUID={fs.uuid}"} <= set(fs.names)


def test_who_has_a_logical_volume_without_a_filesystem_open_is_a_holder():
    facts = read(raw_facts("lvm-on-luks"))

    [holder] = [h for h in facts.holders if h.path == "/dev/mapper/my--vg-raw"]
    assert (holder.kind, holder.unit, holder.stoppable) == ("process", "holder.service", True)


def test_a_group_that_reaches_to_another_disk_names_it():
    facts = read(raw_facts("lvm-half"))

    [group] = facts.layers
    assert (group.devices, group.elsewhere) == (("/dev/vdb", "/dev/vdc"), ("/dev/vdc",))
    assert not group.all_on_source
    [reason] = stacks.reasons(facts)
    assert reason == "volume group both lies on /dev/vdc as well, which is not moved"
    assert facts.filesystems[0].volume_id == ""


def test_an_array_over_both_volumes_lies_on_them_only():
    raw = raw_facts("md-raid0")
    facts = read(raw)

    [array] = facts.layers
    assert (array.kind, array.name, array.detail) == ("md", "/dev/md0", "raid0")
    assert not array.at_end  # metadata 1.2
    assert {m.path: m.volume_id for m in array.members} == ids(raw)
    assert array.above == ("/dev/md0",)
    assert array.uuid.count(":") == 3  # as mdadm wants it
    assert list(stacks.reasons(facts)) == []
    [fs] = facts.filesystems
    assert (fs.device, fs.layers, fs.volume_id) == ("/dev/md0", ("/dev/md0",), "")


def test_an_array_asked_about_by_one_of_its_volumes_lies_elsewhere_too():
    raw = raw_facts("md-raid0")
    half = {**raw, "sources": dict([next(iter(raw["sources"].items()))])}

    [array] = read(half).layers

    [moved] = half["sources"].values()
    assert set(array.elsewhere) == {"/dev/vdb", "/dev/vdc"} - {f"/dev/{moved}"}


def test_a_degraded_array_on_a_partition_says_what_is_missing():
    facts = read(raw_facts("md-degraded"))

    [array] = facts.layers
    assert (array.members[0].path, array.members[0].partition) == ("/dev/vdb1", 1)
    assert "1 of 2 members are missing" in array.problem
    assert list(stacks.reasons(facts)) == [array.problem]


@pytest.mark.parametrize("layout", ["luks-keyfile", "lvm-on-luks", "lvm-half", "md-raid0"])
def test_rsync_leaves_stacks_alone(layout):
    facts = read(raw_facts(layout))
    source = Volume(id="v", name="v", size_gib=1, type="t", status="in-use")
    cloud = CloudFacts(server=Server(id="s", name="s", status="ACTIVE"), sources=(source,))

    why = Rsync().declines(Wanted(server="s", volumes=("v",)), cloud, facts)

    assert why.startswith("files are")


def test_an_encryption_that_is_not_open_is_a_layer_without_devices():
    raw = raw_facts("luks")

    [layer] = read(raw).layers

    assert (layer.kind, layer.name, layer.above) == ("luks", "", ())
    assert list(stacks.reasons(read(raw))) == []


# ---- what is in motion or missing ----------------------------------------------------------------


def changed(layout: str, report: str, **fields: str) -> Layer:
    """The volume group of a layout when LVM had said something else of it."""
    raw = raw_facts(layout)
    for line in raw["stack"]["lvm"][report]:
        line.update(fields)
    return next(layer for layer in read(raw).layers if layer.kind == "lvm")


@pytest.mark.parametrize(
    ("report", "fields", "problem"),
    [
        ("vgs", {"vg_missing_pv_count": "1"}, "misses 1 of its physical volumes"),
        ("vgs", {"vg_lock_type": "sanlock"}, "shared with other hosts (lock type sanlock)"),
        ("vgs", {"vg_attr": "wzx-n-"}, "is exported"),
        ("lvs", {"move_pv": "/dev/vdb"}, "pvmove is at work"),
        ("lvs", {"lv_merging": "merging"}, "is being merged or converted"),
        ("lvs", {"lv_health_status": "partial"}, "partial"),
        ("lvs", {"segtype": "raid1", "sync_percent": "41.30"}, "is 41.30 % in sync"),
    ],
)
def test_a_volume_group_in_motion_or_in_parts_has_a_problem(report, fields, problem):
    assert problem in changed("lvm-half", report, **fields).problem


@pytest.mark.parametrize(
    "fields",
    [
        {"segtype": "raid1", "sync_percent": "100.00"},
        {"segtype": "thin", "sync_percent": ""},
        {"segtype": "cache", "sync_percent": "3.10"},
    ],
)
def test_what_is_at_rest_has_none(fields):
    assert changed("lvm-half", "lvs", **fields).problem == ""


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        ({"sync_action": "resync", "degraded": "0"}, "a resync runs"),
        ({"array_state": "inactive"}, "its state is inactive"),
    ],
)
def test_an_array_at_work_has_a_problem(files, problem):
    raw = raw_facts("md-raid0")
    next(b for b in raw["stack"]["blocks"] if b["md"])["md"].update(files)

    assert read(raw).layers[0].problem == problem


@pytest.mark.parametrize(
    ("conf", "problem"),
    [
        ("DEVICE partitions containers\nARRAY /dev/md0 UUID=1:2:3:4\n", ""),
        ("# DEVICE /dev/vdb\nHOMEHOST <system>\n", ""),
        ("DEVICE /dev/vd[bc]\n", "mdadm.conf names disks: DEVICE /dev/vd[bc]"),
        ("ARRAY /dev/md0\n  devices=/dev/vdb,/dev/vdc\n", "devices=/dev/vdb,/dev/vdc"),
    ],
)
def test_an_array_that_mdadm_finds_by_the_names_of_its_disks_cannot_move(conf, problem):
    raw = raw_facts("md-raid0")
    raw["stack"]["mdadm_conf"] = conf

    found = read(raw).layers[0].problem

    assert problem in found and bool(problem) == bool(found)


def test_a_mapping_of_a_strange_kind_is_a_layer_that_cannot_be_moved():
    raw = raw_facts("luks-keyfile")
    mapping = next(b for b in raw["stack"]["blocks"] if b["dm"])
    mapping["dm"]["uuid"] = "CRYPT-PLAIN-secret"
    raw["blkid"]["/dev/vdb"] = {}

    [layer] = read(raw).layers

    assert layer.kind == "other" and "encryption without LUKS" in layer.problem


def test_a_pool_of_zfs_is_a_layer_that_cannot_be_moved():
    raw = raw_facts("luks")
    raw["blkid"]["/dev/vdb"] = {"TYPE": "zfs_member"}

    [layer] = read(raw).layers

    assert layer.problem.startswith("/dev/vdb is a member of a ZFS pool, which volferry")


def test_a_key_that_was_not_seen_to_open_it_needs_a_person():
    raw = raw_facts("luks-keyfile")
    raw["stack"]["keys"]["secret"].update(opens=False, problem="No key available")

    [reason] = stacks.reasons(read(raw))

    assert reason == "encryption secret does not open without a person: No key available"


# ---- files that name the disk --------------------------------------------------------------------


def test_a_crypttab_entry_by_the_disk_becomes_one_by_what_is_on_it():
    raw = raw_facts("luks-keyfile")
    facts = read(raw)

    [file], [change] = stacks.sides(facts, {raw["volume_id"]: TARGET})

    uuid = facts.layers[0].uuid
    assert file["path"] == "/etc/crypttab" and file["source"] == facts.crypttab
    assert file["target"] == facts.crypttab.replace("secret /dev/vdb", f"secret UUID={uuid}")
    assert change.endswith(f"/dev/vdb becomes UUID={uuid}")


def test_a_crypttab_entry_by_uuid_stays():
    raw = raw_facts("luks-keyfile")
    stack = raw["stack"]
    stack["crypttab"] = stack["crypttab"].replace("/dev/vdb", "UUID=1234-5678")

    assert stacks.sides(read(raw), {raw["volume_id"]: TARGET}) == ([], [])


def test_a_devices_file_that_goes_by_names_needs_nothing():
    """As LVM 2.03.16 makes it for a virtio disk; LVM then looks for the PVID on every disk."""
    raw = raw_facts("lvm-devices-file")
    facts = read(raw)
    assert "IDTYPE=devname IDNAME=/dev/vdb" in facts.lvm_devices

    assert stacks.sides(facts, {raw["volume_id"]: TARGET}) == ([], [])
    assert list(stacks.reasons(facts)) == []


def test_a_devices_file_that_goes_by_serials_follows_the_volume():
    raw = raw_facts("lvm-devices-file")
    source = raw["volume_id"]
    listed = raw["stack"]["lvm_devices"]
    by_name = "IDTYPE=devname IDNAME=/dev/vdb"
    listed["text"] = listed["text"].replace(by_name, f"IDTYPE=sys_serial IDNAME={source[:20]}")
    facts = read(raw)

    [file], _ = stacks.sides(facts, {source: TARGET})

    assert file["path"] == "/etc/lvm/devices/system.devices"
    assert file["source"] == facts.lvm_devices
    assert file["target"] == facts.lvm_devices.replace(source[:20], TARGET[:20])
    assert list(stacks.reasons(facts)) == []


LISTED = f"""# LVM uses devices listed in this file.
VERSION=1.1.2
IDTYPE=sys_serial IDNAME={SOURCE[:20]} DEVNAME=/dev/vdb PVID=x
IDTYPE=sys_wwid IDNAME=t10.QEMU_QEMU_HARDDISK_{OTHER} DEVNAME=/dev/sda PVID=y PART=1
IDTYPE=devname IDNAME=/dev/vdd DEVNAME=/dev/vdd PVID=z
IDTYPE=sys_wwid IDNAME=naa.5000c500a0b1c2d3 DEVNAME=/dev/sde PVID=w
"""


def test_ids_in_the_devices_file_are_cut_or_whole():
    found = lvm_devices.on_targets(LISTED, {SOURCE: TARGET, OTHER: TARGET})

    assert found == LISTED.replace(SOURCE[:20], TARGET[:20]).replace(OTHER, TARGET)


@pytest.mark.parametrize(
    ("path", "left"),
    [
        ("/dev/vdb", ""),
        ("/dev/vdd", ""),
        ("/dev/vdz", ""),
        ("/dev/sde", "sys_wwid naa.5000c500a0b1c2d3"),
    ],
)
def test_an_entry_without_the_volumes_id_cannot_follow(path, left):
    assert lvm_devices.stays_behind(LISTED, path, SOURCE) == left


@pytest.mark.parametrize(
    ("filters", "pattern"),
    [
        ('filter=["a|.*|"]\nglobal_filter=["a|.*|"]', ""),
        ('filter=["a|/dev/vd.|","r|.*|"]', ""),
        ('filter=["a|^/dev/vdb|","r|.*|"]', "r|.*|"),
        ('filter=["a|.*|"]\nglobal_filter=["r/vdq/"]', "r/vdq/"),
        ('filter=["a(by-id/virtio-)","r(.*)"]', ""),
        ('filter=["r|/dev/cdrom|"]', ""),
        ("", ""),
    ],
)
def test_a_filter_by_name_that_would_refuse_another_disk_is_found(filters, pattern):
    assert lvm_devices.refusing_filter(filters, "/dev/vdb") == pattern
    assert lvm_devices.refusing_filter(filters, "/dev/mapper/secret") == ""


def test_a_group_behind_such_a_filter_cannot_move():
    raw = raw_facts("lvm-half")
    raw["stack"]["lvm_filters"] = 'filter=["a|^/dev/vd[bc]$|","r|.*|"]'

    assert read(raw).layers[0].problem == ('a filter of lvm.conf, "r|.*|", would refuse the target')
