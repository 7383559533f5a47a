"""The whole job, by the command, on real services and real guests.

Few tests, each a story: a transfer takes a minute under emulation. All look at the world with
their own eyes (ssh, the cloud's API), not at what volferry says of it.
"""

from collections.abc import Callable
from pathlib import Path

import pytest

from lab.api import Lab
from tests.lab.stacks import in_full
from tests.lab.volferry_command import UNIT, Command, Guest, marked, snapshots, tree, words

pytestmark = pytest.mark.lab


@pytest.mark.parametrize("fstype", ["xfs", pytest.param("btrfs", marks=in_full)])
def test_a_volume_moves_after_a_kill_is_held_then_finished_and_survives_a_reboot(
    lab: Lab, volferry: Command, in_use: Callable[..., Guest], fstype: str
) -> None:
    guest = in_use("debian-12", fstype)
    before, fstab = tree(guest), guest.sh("cat /etc/fstab")
    running = volferry.start("run", *words(lab, guest, "--type", "cbs-premium", "--hold"), "--yes")

    transfer = volferry.kill_when(running, "sync")
    assert lab.volume(guest.volume_id)["status"] == "in-use"
    volferry("resume", transfer)
    assert lab.volume(guest.volume_id)["status"] == "in-use"
    volferry("finish", transfer)

    report = volferry.report()
    target = report["moves"][0]["target"]["id"]
    assert report["not_verified"] == [] and report["verified"]
    assert 0 < report["cutover"]["downtime_s"] < 600
    assert lab.volume(target)["volume_type"] == "cbs-premium"
    source = lab.volume(guest.volume_id)
    assert (source["status"], source["attachments"]) == ("available", [])
    assert source["metadata"]["readonly"] == "True"
    assert snapshots(lab, guest) == []
    assert guest.mounted_serial() == target[:20]
    assert tree(guest) == before
    # Two of btrfs with one identity cannot be in one guest, so the target gets one of its own.
    uuid, now = guest.sh(f"findmnt -nro UUID {guest.mount}"), guest.sh("cat /etc/fstab")
    assert uuid in now and (now == fstab) == (fstype == "xfs")
    assert guest.leftovers() == ""
    assert guest.lost() == []

    guest.reboot()

    assert guest.mounted_serial() == target[:20]
    assert guest.sh(f"systemctl is-active {UNIT}") == "active"
    assert guest.lost() == [] and guest.acknowledged() > 0


def test_ext4_on_gpt_by_device_name_is_held_then_goes_back_and_leaves_nothing(
    lab: Lab, volferry: Command, in_use: Callable[..., Guest]
) -> None:
    guest = in_use("debian-13", "ext4", "gpt", "device")
    before, fstab = tree(guest), guest.sh("cat /etc/fstab")

    volferry("run", *words(lab, guest, "--type", "cbs-standard-iops", "--hold", "--yes"))
    transfer = volferry.transfer()
    target = volferry.data("status", transfer)
    held = guest.mounted_serial()
    assert held != guest.volume_id[:20]
    assert "UUID=" in guest.sh(f"grep {guest.mount} /etc/fstab")
    assert volferry.data("list")[0]["state"] == "held", target

    refused = volferry("rollback", transfer, code=3)
    assert "--accept-loss" in refused.stderr
    assert guest.mounted_serial() == held
    volferry("rollback", transfer, "--accept-loss")

    assert guest.mounted_serial() == guest.volume_id[:20]
    assert guest.sh(f"systemctl is-active {UNIT}") == "active"
    assert tree(guest) == before
    assert guest.sh("cat /etc/fstab") == fstab
    assert guest.leftovers() == ""
    assert snapshots(lab, guest) == []
    assert marked(lab, transfer) == []
    source = lab.volume(guest.volume_id)
    assert source["status"] == "in-use" and source["metadata"].get("readonly") != "True"


def test_a_service_that_does_not_start_on_the_target_is_taken_back_by_the_guest(
    lab: Lab, volferry: Command, in_use: Callable[..., Guest]
) -> None:
    guest = in_use("debian-12", "xfs")
    guest.sh(
        # It starts on the source alone: the disk below the mount is compared.
        f"mkdir -p /etc/systemd/system/{UNIT}.d; printf '%s\\n' '[Service]' "
        f"\"ExecStartPre=/bin/sh -c 'findmnt -nro SOURCE {guest.mount} | cmp - /var/tmp/source'\" "
        f"> /etc/systemd/system/{UNIT}.d/x.conf; "
        f"findmnt -nro SOURCE {guest.mount} > /var/tmp/source; systemctl daemon-reload"
    )
    try:
        failed = volferry(
            "run", *words(lab, guest, "--type", "cbs-premium", "--seed", "blank", "--yes"), code=1
        )
        assert "took the cutover back" in failed.stderr and UNIT in failed.stderr
        assert guest.mounted_serial() == guest.volume_id[:20]
        assert guest.sh(f"systemctl is-active {UNIT}") == "active"
        volferry("rollback", volferry.transfer())
    finally:
        guest.sh(f"rm -r /etc/systemd/system/{UNIT}.d; systemctl daemon-reload")

    assert guest.leftovers() == ""
    assert guest.lost() == []


def test_bad_input_is_three_lines_and_changes_nothing(
    lab: Lab, volferry: Command, in_use: Callable[..., Guest], tmp_path: Path
) -> None:
    guest = in_use("debian-12", "xfs")
    ssh_config = ["--ssh-config", str(lab.ssh_config)]
    wrong_key = tmp_path / "wrong_key"
    other = tmp_path / "known_hosts"
    lines = (lab.layout.root / "known_hosts").read_text().splitlines()
    other.write_text("\n".join(f"{line.split()[0]} {NOBODYS_KEY}" for line in lines) + "\n")
    wrong_key.write_text(
        f"Host {guest.name}\n  UserKnownHostsFile {other}\n"
        f"  StrictHostKeyChecking yes\nInclude {lab.ssh_config}\n"
    )
    volume = ["--type", "cbs-premium", "--unit", UNIT]
    cases = {
        "unknown volume": (2, "nosuchvol", [guest.name, "nosuchvol", *volume, *ssh_config]),
        "unknown server": (2, "nosuchsrv", ["nosuchsrv", guest.volume_id, *volume, *ssh_config]),
        "unknown type": (
            1, "no volume type 'gold'",
            [guest.name, guest.volume_id, "--type", "gold", "--unit", UNIT, *ssh_config],
        ),
        "wrong host key": (
            1, "host key",
            [guest.name, guest.volume_id, *volume, "--ssh-config", str(wrong_key)],
        ),
        "no sudo": (
            1, "allows no root",
            [guest.name, guest.volume_id, *volume, *ssh_config, "--ssh", f"nosudo@{guest.name}"],
        ),
        "no unit named": (
            1, f"--unit {UNIT}",
            [guest.name, guest.volume_id, "--type", "cbs-premium", *ssh_config],
        ),
    }  # fmt: skip
    for name, (code, said, argv) in cases.items():
        done = volferry("run", *argv, "--yes", code=code)
        assert done.stderr.count("error: ") == 1, name
        assert said in done.stderr, name
        assert "hint: " in done.stderr, name
        assert "Traceback" not in done.stderr, name
    assert volferry.data("list") == []
    assert guest.leftovers() == ""
    assert lab.volume(guest.volume_id)["status"] == "in-use"


def test_a_volume_that_ends_in_error_stops_with_the_reason_and_is_rolled_back(
    lab: Lab, volferry: Command, in_use: Callable[..., Guest]
) -> None:
    guest = in_use("debian-12", "xfs")
    lab.knobs.set("create_volume_from_snapshot", fail=1)

    failed = volferry("run", *words(lab, guest, "--type", "cbs-standard", "--yes"), code=1)

    assert "error" in failed.stderr and "volferry rollback" in failed.stderr
    volferry("rollback", volferry.transfer())
    assert snapshots(lab, guest) == []
    assert marked(lab, volferry.transfer()) == []
    assert guest.leftovers() == ""
    assert guest.mounted_serial() == guest.volume_id[:20]


NOBODYS_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIB2tZ0FBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFB"
