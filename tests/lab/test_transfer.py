"""The whole job, by the command, on real services and real guests.

Few tests, each a story: a transfer takes a minute under emulation. All look at the world with
their own eyes (ssh, the cloud's API), not at what volferry says of it.
"""

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lab.api import Lab
from lab.errors import LabError
from tests.lab.naming import named
from tests.lab.volferry_command import Command, Guest

pytestmark = pytest.mark.lab

HERE = Path(__file__).parent
UNIT = "writer.service"


@pytest.fixture
def volferry(lab: Lab, tmp_path: Path) -> Iterator[Command]:
    command = Command(lab, tmp_path)
    yield command
    command.end()


class Servers:
    """One server an image, for all tests of the module."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._made: dict[str, str] = {}

    def get(self, image: str) -> str:
        if image not in self._made:
            self._made[image] = named(image)
            self._lab.ensure_server(self._made[image], image=image)
        return self._made[image]

    def drop(self, name: str) -> None:
        """Delete one that a test left in a state that the next one must not find."""
        self._lab.delete_server(name)
        self._made = {image: one for image, one in self._made.items() if one != name}

    def drop_all(self) -> None:
        for name in list(self._made.values()):
            self.drop(name)


@pytest.fixture(scope="module")
def servers(lab: Lab) -> Iterator[Servers]:
    made = Servers(lab)
    yield made
    made.drop_all()


@pytest.fixture
def in_use(
    lab: Lab, servers: Servers, volferry: Command, new_volume: Callable[..., str]
) -> Iterator[Callable[..., Guest]]:
    """A volume in a server with a filesystem, a tree and a service that writes to it."""
    script = (HERE / "in_use.sh").read_text()
    guests: list[Guest] = []

    def make(image: str, fstype: str, table: str = "whole", fstab: str = "uuid") -> Guest:
        server = servers.get(image)
        guest = Guest(lab, server, new_volume(), "/srv/data")
        guests.append(guest)
        lab.attach(server, guest.volume_id)
        words = f"{guest.disk} {guest.mount} {fstype} {table} {fstab} {UNIT}"
        guest.sh(f"sh -s {words} <<'SCRIPT'\n{script}\nSCRIPT")
        return guest

    yield make
    volferry.end()
    for guest in guests:
        try:
            clean(lab, guest)
        except (subprocess.SubprocessError, LabError):
            servers.drop(guest.name)


def clean(lab: Lab, guest: Guest) -> None:
    """Give the server back as it was; raises where that cannot be had."""
    guest.sh(
        f"systemctl disable -q --now {UNIT}; umount {guest.mount}; "
        f"sed -i '\\|{guest.mount}|d' /etc/fstab; systemctl daemon-reload; "
        "systemctl reset-failed; true"
    )
    if guest.leftovers():
        raise LabError(
            f"a transfer left in {guest.name}: {guest.leftovers()}",
            "the next test would find it",
            "the server is deleted",
        )
    server = lab.find_server(guest.name)
    assert server
    for volume in lab.member.get("block-storage", "/volumes/detail")["volumes"]:
        if server["id"] in [one["server_id"] for one in volume["attachments"]]:
            lab.detach(guest.name, volume["id"])


def words(lab: Lab, guest: Guest, *more: str) -> tuple[str, ...]:
    # On a busy machine a guest's `systemctl daemon-reload` alone may take a minute and a half.
    return (
        guest.name, guest.volume_id, "--unit", UNIT, "--ssh-config", str(lab.ssh_config),
        "--max-downtime", "600s", "--settle", "2s", "--cutover-timeout", "900s",
        "--attach-timeout", "600s", "--detach-timeout", "600s", *more,
    )  # fmt: skip


def snapshots(lab: Lab, guest: Guest) -> list[str]:
    """Those of the source that are there; other things may live in this project."""
    every = lab.member.get("block-storage", "/snapshots")["snapshots"]
    return [one["id"] for one in every if one["volume_id"] == guest.volume_id]


def marked(lab: Lab, transfer: str) -> list[str]:
    """The volumes that carry the mark of a transfer."""
    volumes = lab.member.get("block-storage", "/volumes/detail")["volumes"]
    return [v["id"] for v in volumes if v["metadata"].get("volferry:transfer") == transfer]


def tree(guest: Guest) -> str:
    return guest.sh(
        f"cd {guest.mount} && stat -c '%a %u %g' . && find tree | sort | xargs stat -c "
        "'%n %f %u %g %s %h %Y' && find tree ! -type l | sort | xargs getfacl && "
        "find tree -type f | sort | xargs getfattr -d -m- && "
        "find tree -type f | sort | xargs sha256sum"
    )


def test_xfs_by_uuid_moves_to_another_back_end_after_a_kill_and_survives_a_reboot(
    lab: Lab, volferry: Command, in_use: Callable[..., Guest]
) -> None:
    guest = in_use("debian-12", "xfs")
    before, fstab = tree(guest), guest.sh("cat /etc/fstab")
    running = volferry.start("run", *words(lab, guest, "--type", "cbs-premium"), "--yes")

    transfer = volferry.kill_when(running, "sync")
    assert lab.volume(guest.volume_id)["status"] == "in-use"
    volferry("resume", transfer)

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
    assert guest.sh("cat /etc/fstab") == fstab
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


def test_btrfs_gets_an_identity_of_its_own_and_fstab_names_it(
    lab: Lab, volferry: Command, in_use: Callable[..., Guest]
) -> None:
    guest = in_use("debian-13", "btrfs")
    before = tree(guest)

    volferry("run", *words(lab, guest, "--type", "cbs-premium", "--yes"))

    target = volferry.report()["moves"][0]["target"]["id"]
    assert guest.mounted_serial() == target[:20]
    assert tree(guest) == before
    assert guest.lost() == []
    assert guest.sh(f"findmnt -nro UUID {guest.mount}") in guest.sh("cat /etc/fstab")


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
