"""The whole job, by the command, on real services and real guests.

Few tests, each a story: a transfer takes a minute under emulation. All look at the world with
their own eyes (ssh, the cloud's API), not at what volferry says of it.
"""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lab.api import Lab
from tests.lab.volferry_command import Command, Guest

pytestmark = pytest.mark.lab

HERE = Path(__file__).parent
UNIT = "writer.service"


@pytest.fixture
def volferry(lab: Lab, tmp_path: Path) -> Command:
    return Command(lab, tmp_path)


@pytest.fixture(scope="module")
def servers(lab: Lab) -> Iterator[Callable[[str], str]]:
    """One server an image for all of this module."""
    made: dict[str, str] = {}

    def get(image: str) -> str:
        if image not in made:
            made[image] = f"transfer-{image}"
            lab.delete_server(made[image])  # what a run that was cut short left in it
            lab.ensure_server(made[image], image=image)
        return made[image]

    yield get
    for name in made.values():
        lab.delete_server(name)


@pytest.fixture
def in_use(
    lab: Lab, servers: Callable[[str], str], new_volume: Callable[..., str]
) -> Iterator[Callable[..., Guest]]:
    """A volume in a server with a filesystem, a tree and a service that writes to it."""
    script = (HERE / "in_use.sh").read_text()
    guests: list[Guest] = []

    def make(image: str, fstype: str, table: str = "whole", fstab: str = "uuid") -> Guest:
        server = servers(image)
        guest = Guest(lab, server, new_volume(), "/srv/data")
        guests.append(guest)
        lab.attach(server, guest.volume_id)
        words = f"{guest.disk} {guest.mount} {fstype} {table} {fstab} {UNIT}"
        guest.sh(f"sh -s {words} <<'SCRIPT'\n{script}\nSCRIPT")
        return guest

    yield make
    for guest in guests:
        guest.sh(
            f"systemctl disable -q --now {UNIT}; umount {guest.mount}; "
            f"sed -i '\\|{guest.mount}|d' /etc/fstab; systemctl daemon-reload; "
            "systemctl reset-failed; true"
        )
        for volume in lab.member.get("block-storage", "/volumes/detail")["volumes"]:
            here = [a["server_id"] for a in volume["attachments"]]
            if volume["id"] != guest.volume_id and lab._server_id(guest.name) in here:
                lab.detach(guest.name, volume["id"])
                lab.delete_volume(volume["id"])


def words(lab: Lab, guest: Guest, *more: str) -> tuple[str, ...]:
    return (
        guest.name, guest.volume_id, "--unit", UNIT, "--ssh-config", str(lab.ssh_config),
        "--max-downtime", "60s", "--settle", "2s", "--cutover-timeout", "180s", *more,
    )  # fmt: skip


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
    assert 0 < report["cutover"]["downtime_s"] < 60
    assert lab.volume(target)["volume_type"] == "cbs-premium"
    source = lab.volume(guest.volume_id)
    assert (source["status"], source["attachments"]) == ("available", [])
    assert source["metadata"]["readonly"] == "True"
    assert lab.member.get("block-storage", "/snapshots")["snapshots"] == []
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
    assert lab.member.get("block-storage", "/snapshots")["snapshots"] == []
    volumes = lab.member.get("block-storage", "/volumes/detail")["volumes"]
    assert not [v["id"] for v in volumes if "volferry:transfer" in v["metadata"]]
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
    time.sleep(1)
    assert lab.member.get("block-storage", "/snapshots")["snapshots"] == []
    assert guest.leftovers() == ""
    assert guest.mounted_serial() == guest.volume_id[:20]


NOBODYS_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIB2tZ0FBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFB"
