"""The lab keeps its promises: a cloud as volferry meets it, with knobs that do what they say."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Callable

import pytest

from lab.api import Lab
from lab.cloud import Refused, wait_for
from lab.errors import LabError
from lab.knobs import ALWAYS
from tests.lab.naming import named

pytestmark = pytest.mark.lab

NewVolume = Callable[..., str]


def disk(volume_id: str) -> str:
    return f"/dev/disk/by-id/virtio-{volume_id[:20]}"


def until_seen(path: str, seconds: int = 120) -> str:
    """A script that waits for a device; udev needs a moment after the plug."""
    return f"for i in $(seq {seconds}0); do [ -e {path} ] && exit; sleep 0.1; done; exit 1"


def test_a_member_may_not_do_what_admins_do(lab: Lab) -> None:
    with pytest.raises(Refused) as refusal:
        lab.member.get("compute", "/os-services")
    assert refusal.value.code == 403
    with pytest.raises(Refused) as refusal:
        lab.member.post("block-storage", "/types", {"volume_type": {"name": "mine"}})
    assert refusal.value.code == 403


def test_clouds_yaml_names_the_member_alone(lab: Lab) -> None:
    text = lab.clouds_yaml.read_text()
    assert "username: demo" in text
    assert "admin" not in text
    assert lab.clouds_yaml.stat().st_mode & 0o077 == 0


def test_a_snapshot_is_a_point_in_time(lab: Lab, server: str, new_volume: NewVolume) -> None:
    volume = new_volume()
    lab.attach(server, volume)
    lab.ssh(server, until_seen(disk(volume)), root=True)
    lab.ssh(server, f"echo before > {disk(volume)} && sync {disk(volume)}", root=True)
    snapshot = lab.create_snapshot(volume)
    lab.ssh(server, f"echo after. > {disk(volume)} && sync {disk(volume)}", root=True)
    clone = lab.ensure_volume(named("clone"), snapshot_id=snapshot)
    try:
        lab.attach(server, clone)
        lab.ssh(server, until_seen(disk(clone)), root=True)
        assert lab.ssh(server, f"head -n1 {disk(clone)}", root=True) == "before\n"
        assert lab.ssh(server, f"head -n1 {disk(volume)}", root=True) == "after.\n"
        lab.detach(server, clone)
    finally:
        lab.delete_volume(clone)


def test_a_member_can_move_a_volume_to_another_back_end(
    lab: Lab, server: str, new_volume: NewVolume
) -> None:
    volume = new_volume()
    lab.attach(server, volume)
    lab.ssh(server, until_seen(disk(volume)), root=True)
    lab.ssh(server, f"echo cargo > {disk(volume)} && sync {disk(volume)}", root=True)
    lab.detach(server, volume)
    lab.change_volume(volume, "os-retype", new_type="cbs-premium", migration_policy="on-demand")
    assert wait_for_retype(lab, volume)["volume_type"] == "cbs-premium"
    back_end = lab.admin.get("block-storage", f"/volumes/{volume}")["volume"]
    assert back_end["os-vol-host-attr:host"] == "lab@premium#premium"
    lab.attach(server, volume)
    lab.ssh(server, until_seen(disk(volume)), root=True)
    assert lab.ssh(server, f"head -n1 {disk(volume)}", root=True) == "cargo\n"


def test_a_member_can_move_a_volume_that_is_in_use(
    lab: Lab, server: str, new_volume: NewVolume
) -> None:
    volume = new_volume()
    lab.attach(server, volume)
    lab.ssh(server, until_seen(disk(volume)), root=True)
    lab.ssh(server, f"echo cargo > {disk(volume)} && sync {disk(volume)}", root=True)
    lab.change_volume(volume, "os-retype", new_type="cbs-premium", migration_policy="on-demand")
    after = wait_for_retype(lab, volume)
    assert (after["status"], after["volume_type"]) == ("in-use", "cbs-premium")
    lab.ssh(server, f"echo more. > {disk(volume)} && sync {disk(volume)}", root=True)
    lab.detach(server, volume)
    lab.attach(server, volume)
    lab.ssh(server, until_seen(disk(volume)), root=True)
    assert lab.ssh(server, f"head -n1 {disk(volume)}", root=True) == "more.\n"


def test_a_retype_within_a_back_end_moves_nothing(lab: Lab, new_volume: NewVolume) -> None:
    volume = new_volume()
    lab.change_volume(volume, "os-retype", new_type="cbs-standard-iops", migration_policy="never")
    assert wait_for_retype(lab, volume)["volume_type"] == "cbs-standard-iops"
    back_end = lab.admin.get("block-storage", f"/volumes/{volume}")["volume"]
    assert back_end["os-vol-host-attr:host"] == "lab@standard#standard"


def wait_for_retype(lab: Lab, volume: str) -> dict[str, object]:
    found: dict[str, object] = wait_for(
        f"the retype of {volume} has ended",
        lambda: lab.volume(volume),
        lambda seen: seen["status"] in ("available", "in-use"),
        300,
        "read cinder.log",
    )
    return found


def test_what_a_killed_run_left_is_put_back(lab: Lab, new_volume: NewVolume) -> None:
    """A run was killed in `quota`, and every test of the next one that made a snapshot failed."""
    volume = new_volume()
    with lab.quota(snapshots=0):
        with pytest.raises(Refused) as refusal:
            lab.create_snapshot(volume)
        assert refusal.value.code == 413
        lab.knobs.set("create_snapshot", fail=ALWAYS)
        lab.reset()
        lab.delete_snapshot(lab.create_snapshot(volume))


def test_a_read_only_volume_that_an_admin_attached_is_read_only_in_the_guest(
    lab: Lab, server: str, new_volume: NewVolume
) -> None:
    volume = new_volume()
    lab.change_volume(volume, "os-update_readonly_flag", readonly=True)
    path = f"/servers/{server_id(lab, server)}/os-volume_attachments"
    lab.admin.post("compute", path, {"volumeAttachment": {"volumeId": volume}})
    lab.wait_for_volume(volume, "in-use")
    lab.ssh(server, until_seen(disk(volume)), root=True)
    assert lab.ssh(server, f"blockdev --getro {disk(volume)}", root=True) == "1\n"
    write = lab.run(server, f"dd if=/dev/zero of={disk(volume)} count=1 conv=fsync", root=True)
    assert write.returncode != 0


def test_a_read_only_volume_that_a_member_attached_can_be_written(
    lab: Lab, server: str, new_volume: NewVolume
) -> None:
    """Cinder's own: it keeps the flag in the admin metadata, and reads that as an admin only.

    The attachment says `ro`, its connection_info says `rw`; see lab/README.md.
    """
    volume = new_volume()
    lab.change_volume(volume, "os-update_readonly_flag", readonly=True)
    lab.attach(server, volume)
    lab.ssh(server, until_seen(disk(volume)), root=True)
    assert lab.ssh(server, f"blockdev --getro {disk(volume)}", root=True) == "0\n"
    attachment = lab.volume(volume)["attachments"][0]["attachment_id"]
    shown = lab.member.get("block-storage", f"/attachments/{attachment}")["attachment"]
    assert (shown["attach_mode"], shown["connection_info"]["access_mode"]) == ("ro", "rw")


def test_a_wrong_host_key_is_refused(lab: Lab, server: str, tmp_path: object) -> None:
    known = f"{tmp_path}/known_hosts"
    port = next(
        line.split()[1]
        for line in subprocess.check_output(
            ["ssh", "-G", "-F", lab.ssh_config, server], text=True
        ).splitlines()
        if line.startswith("port ")
    )
    key = lab.layout.ssh_key.with_suffix(".pub").read_text().split()
    with open(known, "w") as file:
        file.write(f"[127.0.0.1]:{port} {key[0]} {key[1]}\n")
    command = ["ssh", "-F", str(lab.ssh_config), "-o", f"UserKnownHostsFile={known}"]
    tried = subprocess.run(
        [*command, server, "true"], capture_output=True, text=True, timeout=300, check=False
    )
    assert tried.returncode == 255
    assert "Host key verification failed" in tried.stderr


def test_the_guest_knows_its_server_by_its_smbios_uuid(lab: Lab, server: str) -> None:
    seen = lab.ssh(server, "cat /sys/class/dmi/id/product_uuid", root=True).strip()
    found = lab.find_server(server)
    assert found
    assert seen == found["id"]


def test_sudo_is_for_debian_and_not_for_nosudo(lab: Lab, server: str) -> None:
    assert lab.ssh(server, "sudo -n id -u") == "0\n"
    assert lab.run(f"nosudo@{server}", "sudo -n id -u").returncode != 0


def test_a_guest_has_what_a_migration_needs(lab: Lab, server: str) -> None:
    programs = (
        "rsync python3 sfdisk parted sgdisk mkfs.xfs mkfs.btrfs mkfs.ext4 lvm cryptsetup mdadm"
        " getfacl getfattr lsof pg_createcluster udevadm"
    )
    missing = lab.ssh(
        server, f"for p in {programs}; do command -v $p >/dev/null || echo $p; done", root=True
    )
    assert missing == ""
    lab.ssh(server, "python3 -c 'import json, ctypes, socket, hashlib, subprocess'")


def test_reboots_and_a_stop_keep_volumes_and_the_journal(
    lab: Lab, own_server: Callable[..., str], new_volume: NewVolume
) -> None:
    name, volume = own_server(), new_volume()
    lab.attach(name, volume)
    lab.ssh(name, until_seen(disk(volume)), root=True)
    before = boot_id(lab, name)
    lab.run(name, "systemctl reboot", root=True)
    wait_for_another_boot(lab, name, before)
    lab.ssh(name, f"test -b {disk(volume)}", root=True)
    assert int(lab.ssh(name, "journalctl --list-boots --no-pager -q | wc -l", root=True)) == 2

    before = boot_id(lab, name)
    # In the background: nobody closes a connection to a machine that is gone.
    lab.run(name, "(sleep 1; reboot -f) >/dev/null 2>&1 </dev/null &", root=True)
    wait_for_another_boot(lab, name, before)
    lab.ssh(name, f"test -b {disk(volume)}", root=True)

    before = boot_id(lab, name)
    action = f"/servers/{server_id(lab, name)}/action"
    lab.member.post("compute", action, {"reboot": {"type": "HARD"}})
    wait_for_another_boot(lab, name, before)
    lab.ssh(name, until_seen(disk(volume)), root=True)

    before = boot_id(lab, name)
    lab.member.post("compute", action, {"os-stop": None})
    lab.wait_for_server(name, "SHUTOFF")
    lab.member.post("compute", action, {"os-start": None})
    lab.wait_for_server(name, "ACTIVE")
    wait_for_another_boot(lab, name, before)
    lab.ssh(name, until_seen(disk(volume)), root=True)


def test_a_scsi_image_gives_disks_with_the_whole_volume_id(
    lab: Lab, own_server: Callable[..., str], new_volume: NewVolume
) -> None:
    name, volume = own_server(image="debian-12-scsi"), new_volume()
    lab.attach(name, volume)
    lab.ssh(name, until_seen(f"/dev/disk/by-id/scsi-0QEMU_QEMU_HARDDISK_{volume}"), root=True)
    assert volume in lab.ssh(name, "lsblk -dno SERIAL", root=True)
    lab.detach(name, volume)


def test_a_hung_guest_keeps_its_disk(
    lab: Lab, own_server: Callable[..., str], new_volume: NewVolume
) -> None:
    name, volume = own_server(), new_volume()
    lab.attach(name, volume)
    lab.ssh(name, until_seen(disk(volume)), root=True)
    lab.qmp(name, "stop")
    path = f"/servers/{server_id(lab, name)}/os-volume_attachments/{volume}"
    lab.member.request("DELETE", "compute", path)
    assert lab.wait_for_volume(volume, "available", "in-use") == "in-use"
    lab.qmp(name, "cont")
    # The guest answers the request that it slept through; the next detach then finds no disk.
    lab.detach(name, volume)


def server_id(lab: Lab, name: str) -> str:
    found = lab.find_server(name)
    assert found
    return str(found["id"])


def boot_id(lab: Lab, name: str) -> str:
    return lab.ssh(name, "cat /proc/sys/kernel/random/boot_id")


def wait_for_another_boot(lab: Lab, name: str, before: str, timeout_s: float = 600) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        lab.wait_for_ssh(name, timeout_s)
        # A guest that is about to go may answer the first command and lose the second.
        with contextlib.suppress(subprocess.TimeoutExpired):
            tried = lab.run(name, "cat /proc/sys/kernel/random/boot_id", timeout_s=60)
            if tried.returncode == 0 and tried.stdout != before:
                return
        time.sleep(1)
    pytest.fail(f"{name} did not boot again within {timeout_s} s")


def test_a_sweep_deletes_what_is_stuck_and_nothing_else(
    lab: Lab, server: str, new_volume: NewVolume
) -> None:
    name, kept = named("stuck"), new_volume()
    volume = lab.ensure_volume(name)
    snapshot = lab.create_snapshot(volume)
    lab.admin_reset("snapshots", snapshot, "deleting")
    lab.admin_reset("volumes", volume, "detaching")
    assert lab.sweep(name) == [f"snapshot {snapshot}", f"volume {name}"]
    assert lab.find_volume(name) is None
    assert lab.volume(kept)["status"] == "available"
    assert lab.find_server(server)


# --- knobs
def test_a_delay_shows_the_state_in_between(lab: Lab, new_volume: NewVolume) -> None:
    lab.knobs.set("create_volume", delay=5)
    body = {"name": named("slow"), "size": 1}
    volume = lab.member.post("block-storage", "/volumes", {"volume": body})["volume"]["id"]
    try:
        assert lab.volume(volume)["status"] == "creating"
        lab.wait_for_volume(volume, "available")
    finally:
        lab.delete_volume(volume)


def test_an_ordered_fault_ends_in_error_and_the_next_one_works(
    lab: Lab, new_volume: NewVolume
) -> None:
    volume = new_volume()
    lab.knobs.set("create_snapshot", fail=1)
    with pytest.raises(LabError):
        lab.create_snapshot(volume)
    lab.delete_snapshot(lab.create_snapshot(volume))


def test_a_failed_volume_ends_in_error(lab: Lab, new_volume: NewVolume) -> None:
    lab.knobs.set("create_volume", fail=ALWAYS)
    name = named("unlucky")
    with pytest.raises(LabError):
        lab.ensure_volume(name)
    found = lab.find_volume(name)
    assert found
    assert found["status"] == "error"
    lab.delete_volume(found["id"])


@pytest.mark.parametrize(("effect", "migration_status"), [("fail", "error"), ("ignore", None)])
def test_a_retype_can_fail_or_be_dropped(
    lab: Lab, new_volume: NewVolume, effect: str, migration_status: str | None
) -> None:
    volume = new_volume()
    lab.knobs.set("retype", **{effect: 1})
    lab.change_volume(volume, "os-retype", new_type="cbs-premium", migration_policy="on-demand")
    after = wait_for_retype(lab, volume)
    assert (after["status"], after["volume_type"]) == ("available", "cbs-standard")
    seen = lab.admin.get("block-storage", f"/volumes/{volume}")["volume"]["migration_status"]
    assert seen == migration_status


def test_an_attached_volume_can_stay_away_from_the_guest(
    lab: Lab, server: str, new_volume: NewVolume
) -> None:
    volume = new_volume()
    lab.knobs.set("attach", ignore=1)
    lab.attach(server, volume)
    time.sleep(3)
    assert lab.run(server, f"test -e {disk(volume)}", root=True).returncode == 1
    lab.detach(server, volume)


def test_an_attach_can_fail(lab: Lab, server: str, new_volume: NewVolume) -> None:
    volume = new_volume()
    lab.knobs.set("attach", fail=1)
    with pytest.raises(LabError):
        lab.attach(server, volume)
    lab.attach(server, volume)


def test_a_detach_can_be_refused(lab: Lab, server: str, new_volume: NewVolume) -> None:
    volume = new_volume()
    lab.attach(server, volume)
    lab.knobs.set("detach", fail=1, delay=5)
    path = f"/servers/{server_id(lab, server)}/os-volume_attachments/{volume}"
    lab.member.request("DELETE", "compute", path)
    wait_for(
        "the volume is detaching",
        lambda: lab.volume(volume)["status"],
        lambda status: status == "detaching",
        60,
        "read nova.log",
    )
    assert lab.wait_for_volume(volume, "available", "in-use") == "in-use"
    lab.ssh(server, f"test -b {disk(volume)}", root=True)
    lab.detach(server, volume)
