"""The whole job, by the command, on real services and real guests.

Few tests, each a story: a transfer takes a minute under emulation. All look at the world with
their own eyes (ssh, the cloud's API), not at what volferry says of it.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lab.api import Lab
from tests.lab import least
from tests.lab.stacks import in_full
from tests.lab.volferry_command import UNIT, Command, Guest, marked, snapshots, tree, words

pytestmark = pytest.mark.lab


@pytest.fixture
def volferry(lab: Lab, tmp_path: Path) -> Iterator[Command]:
    """With no more rights than it needs."""
    with least.application_credential(lab, tmp_path) as clouds:
        command = Command(lab, tmp_path, OS_CLIENT_CONFIG_FILE=str(clouds))
        yield command
        command.end()


@pytest.mark.parametrize("fstype", ["xfs", pytest.param("btrfs", marks=in_full)])
def test_a_volume_moves_after_a_kill_is_held_then_finished_and_survives_a_reboot(
    lab: Lab, volferry: Command, in_use: Callable[..., Guest], fstype: str
) -> None:
    guest = in_use("debian-12", fstype)
    before, fstab = tree(guest), guest.sh("cat /etc/fstab")
    options = ("--type", "cbs-premium", "--hold", "--ssh", least.login(guest), "--yes")
    running = volferry.start("run", *words(lab, guest, *options))

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

    options = ("--type", "cbs-standard-iops", "--hold", "--ssh", least.login(guest), "--yes")
    volferry("run", *words(lab, guest, *options))
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
