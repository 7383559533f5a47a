"""Each stack that the mirror moves, in a guest of its own, restarted at the three worst moments.

A story takes some minutes under emulation, so `make test` tells one and `make test-stacks` all.
"""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Callable
from typing import NamedTuple

import pytest

from lab.api import Lab
from tests.lab.stacks import in_full, links
from tests.lab.volferry_command import UNIT, Command, Guest, snapshots, tree, words

pytestmark = pytest.mark.lab

STREWN_KIB = 256


class Stack(NamedTuple):
    name: str
    fstype: str
    table: str = "whole"
    volumes: int = 1
    image: str = "debian-12"
    fstab: str = ""

    def __str__(self) -> str:
        kind = self.name if self.table == "whole" else self.table
        return f"{kind}-{self.fstype}"


STACKS = (
    Stack("bare", "xfs"),
    Stack("bare", "ext4", table="gpt", image="debian-13"),
    Stack("bare", "xfs", table="dos"),
    Stack("btrfs", "btrfs", image="debian-13"),
    Stack("lvm", "ext4"),
    Stack("lvm", "xfs", image="debian-13"),
    Stack("lvm-two", "xfs", volumes=2),
    Stack("md", "xfs", volumes=2, image="debian-13"),
    Stack("luks", "ext4", image="debian-13"),
    Stack("lvm-on-luks", "xfs"),
    Stack("raw", ""),
)


class Stacked(Guest):
    """A guest with a service on a stack over one volume or several."""

    def __init__(self, lab: Lab, name: str, volume_ids: list[str]) -> None:
        super().__init__(lab, name, volume_ids[0], "/srv/data")
        self.volume_ids = volume_ids

    def lay_out(self, stack: Stack) -> None:
        self.put_in_use(
            stack.fstype,
            stack.table,
            stack.fstab,
            stack=stack.name,
            more_disks=links(self.volume_ids[1:]),
            strewn_kib=STREWN_KIB,
        )

    def disks_below(self) -> set[str]:
        """Serials of all disks below the mount, by the kernel's word."""
        return set(self.mounted_serial().split())

    def state(self) -> str:
        """What must not change, whatever the service writes."""
        return tree(self)

    def reset(self) -> None:
        """Its power is cut and comes back: the worse of the two ways to restart. And an orderly
        reboot stood still in the guest (seen once, on a busy machine, after a long transfer: five
        minutes later its kernel was still moving itself to where it unpacks; why is not known)."""
        boot = "cat /proc/sys/kernel/random/boot_id"
        before = self.sh(boot)
        server = self.lab.find_server(self.name)
        assert server
        action = {"reboot": {"type": "HARD"}}
        self.lab.member.post("compute", f"/servers/{server['id']}/action", action)
        ends = time.monotonic() + 600
        while True:
            with contextlib.suppress(subprocess.SubprocessError):
                if self.lab.run(self.name, boot, root=True, timeout_s=60).stdout.strip() not in (
                    "",
                    before,
                ):
                    break
            assert time.monotonic() < ends, f"{self.name} did not come back"
            time.sleep(1)
        # A session over ssh comes before the last mounts of a boot under emulation.
        self.sh("systemctl is-system-running --wait >/dev/null || true")

    def in_order_on(self, volume_ids: list[str]) -> None:
        """These volumes are below the mount and no others, the service is up and writes, and all
        that it ever acknowledged is there."""
        assert self.disks_below() == {volume_id[:20] for volume_id in volume_ids}
        assert self.sh(f"systemctl is-active {UNIT}") == "active"
        count = "wc -l < /var/tmp/acknowledged"
        self.sh(f"n=$({count}); until [ $({count}) != $n ]; do sleep 0.2; done", timeout_s=120)
        assert self.lost() == []


class Raw(Stacked):
    """A guest with a service on a device that has no filesystem."""

    def lay_out(self, stack: Stack) -> None:
        self.run_script("raw.sh", f"{self.disk} {UNIT}")

    def disks_below(self) -> set[str]:
        disk = "$(lsblk -ndo PKNAME /dev/disk/by-partlabel/records)"
        return {self.sh(f"cat /sys/class/block/{disk}/serial")}

    def lost(self) -> list[str]:
        """Or the words of why it cannot be told."""
        return self.sh("python3 /usr/local/lib/records.py lost 2>&1 || true").split()

    def state(self) -> str:
        """What must not change: nothing but the records, which are looked at one by one."""
        return ""


@pytest.fixture
def stacked(
    lab: Lab, own_server: Callable[..., str], new_volume: Callable[..., str]
) -> Callable[[Stack], Stacked]:
    def make(stack: Stack) -> Stacked:
        kind = Raw if stack.name == "raw" else Stacked
        volume_ids = [new_volume() for _ in range(stack.volumes)]
        guest = kind(lab, own_server(image=stack.image), volume_ids)
        for volume_id in guest.volume_ids:
            lab.attach(guest.name, volume_id)
        guest.lay_out(stack)
        return guest

    return make


def wishes(lab: Lab, guest: Stacked, *more: str) -> tuple[str, ...]:
    """The words of a run of the mirror over all volumes of the guest."""
    first, _, *rest = words(lab, guest)
    rest[rest.index("--method") + 1] = "mirror"
    if isinstance(guest, Raw):
        at = rest.index("--unit")
        stop, start = f"systemctl stop {UNIT}", f"systemctl start {UNIT}"
        rest[at : at + 2] = ["--raw", "--stop", stop, "--start", start]
    return (
        # The whole pace: at the default one a guest under emulation takes a quarter of an hour.
        first, *guest.volume_ids, *rest, "--max-downtime", "120s", "--pace", "1.0",
        "--type", "cbs-premium", "--hold", "--yes", *more,
    )  # fmt: skip


def targets(volferry: Command) -> list[str]:
    return [move["target"]["id"] for move in volferry.report()["moves"]]


@in_full
@pytest.mark.parametrize("stack", STACKS, ids=str)
def test_it_moves_under_load_and_every_restart_brings_up_the_right_side(
    lab: Lab, volferry: Command, stacked: Callable[[Stack], Stacked], stack: Stack
) -> None:
    move_with_three_restarts(lab, volferry, stacked(stack))


def move_with_three_restarts(lab: Lab, volferry: Command, guest: Stacked) -> None:
    before = guest.state()
    running = volferry.start("run", *wishes(lab, guest, "--bwlimit", "30M"))
    volferry.in_step(running, "sync")
    guest.reset()
    guest.in_order_on(guest.volume_ids)

    assert running.wait(1800) == 0, volferry.log.read_text()
    transfer = volferry.transfer()
    made = targets(volferry)
    guest.in_order_on(made)
    guest.reset()
    guest.in_order_on(made)

    volferry("finish", transfer)
    assert volferry.report()["verified"]
    guest.reset()
    guest.in_order_on(made)
    assert guest.state() == before
    for volume_id in guest.volume_ids:
        source = lab.volume(volume_id)
        assert (source["status"], source["metadata"]["readonly"]) == ("available", "True")
    assert guest.leftovers() == "" and snapshots(lab, guest) == []


def test_a_volume_group_moves_and_a_restart_after_the_commit_brings_up_the_target(
    lab: Lab, volferry: Command, stacked: Callable[[Stack], Stacked]
) -> None:
    guest = stacked(Stack("lvm", "ext4"))
    before = guest.state()
    volferry("run", *wishes(lab, guest))
    made = targets(volferry)
    guest.reset()
    guest.in_order_on(made)
    volferry("finish", volferry.transfer())
    guest.in_order_on(made)
    assert guest.state() == before
    assert guest.leftovers() == ""


@in_full
def test_an_entry_by_the_name_of_the_disk_is_warned_of_and_put_right(
    lab: Lab, volferry: Command, stacked: Callable[[Stack], Stacked]
) -> None:
    """The restarts come after it: before, the guest may call the two disks the other way round."""
    guest = stacked(Stack("bare", "ext4", table="dos", fstab="device"))
    before = guest.state()
    assert "/dev/vdb1 " in guest.sh(f"grep {guest.mount} /etc/fstab")
    ran = volferry("run", *wishes(lab, guest))
    assert "mounts /srv/data by /dev/vdb1" in ran.stdout + ran.stderr
    made = targets(volferry)
    guest.reset()
    guest.in_order_on(made)
    volferry("finish", volferry.transfer())
    guest.reset()
    guest.in_order_on(made)
    assert "UUID=" in guest.sh(f"grep {guest.mount} /etc/fstab")
    assert guest.state() == before


@in_full
@pytest.mark.parametrize("restarted", [False, True], ids=["", "restarted"])
def test_a_standby_goes_back_and_loses_nothing(
    lab: Lab, volferry: Command, stacked: Callable[[Stack], Stacked], restarted: bool
) -> None:
    guest = stacked(Stack("bare", "xfs"))
    before = guest.state()
    volferry("run", *wishes(lab, guest, "--keep-standby"))
    guest.in_order_on(targets(volferry))
    if restarted:
        guest.reset()
        guest.in_order_on(targets(volferry))
    goes_back(lab, volferry, guest)
    guest.in_order_on(guest.volume_ids)
    assert guest.state() == before


@in_full
@pytest.mark.parametrize("stack", [Stack("lvm", "ext4"), Stack("md", "xfs", volumes=2)], ids=str)
def test_a_stack_whose_source_was_detached_goes_back(
    lab: Lab, volferry: Command, stacked: Callable[[Stack], Stacked], stack: Stack
) -> None:
    guest = stacked(stack)
    before = guest.state()
    guest.sh("cp /var/tmp/acknowledged /var/tmp/by-then")
    volferry("run", *wishes(lab, guest))
    guest.in_order_on(targets(volferry))
    goes_back(lab, volferry, guest, "--accept-loss")
    # What was written since the commit is given up, by that word; all before it is there.
    guest.sh(f"systemctl stop {UNIT}; mv /var/tmp/by-then /var/tmp/acknowledged")
    assert guest.lost() == []
    guest.sh(f"systemctl start {UNIT}")
    guest.in_order_on(guest.volume_ids)
    assert guest.state() == before
    guest.reset()
    guest.in_order_on(guest.volume_ids)


def goes_back(lab: Lab, volferry: Command, guest: Stacked, *more: str) -> None:
    """The source is below the mount again, and nothing of ours is left."""
    made = targets(volferry)
    volferry("rollback", volferry.transfer(), *more)
    assert guest.disks_below() == {volume_id[:20] for volume_id in guest.volume_ids}
    assert guest.leftovers() == "" and snapshots(lab, guest) == []
    left = lab.member.get("block-storage", "/volumes/detail")["volumes"]
    assert not {volume["id"] for volume in left} & set(made)
