"""What is refused, and what is taken back: the service goes on where it was, and nothing is left.

All of it with one volume in use. Each test has to leave it as it was, which is looked at then.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.api import Lab
from tests.lab.kept import Kept
from tests.lab.volferry_command import UNIT, Command, Guest, marked, words

pytestmark = pytest.mark.lab


@pytest.fixture
def guest(kept: Kept, volferry: Command) -> Iterator[Guest]:
    with kept.in_use(volferry) as one:
        yield one


NOBODYS_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIB2tZ0FBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFB"


@contextlib.contextmanager
def spoiled(guest: Guest, spoil: str, mend: str) -> Iterator[None]:
    guest.sh(spoil)
    try:
        yield
    finally:
        guest.sh(mend)


def test_bad_input_is_three_lines_and_changes_nothing(
    lab: Lab, volferry: Command, guest: Guest, tmp_path: Path
) -> None:
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


def test_what_a_guest_or_a_cloud_lacks_is_refused_before_anything_is_made(
    lab: Lab, volferry: Command, guest: Guest
) -> None:
    wishes = words(lab, guest, "--type", "cbs-premium", "--yes")

    def refused(*said: str, more: tuple[str, ...] = ()) -> None:
        done = volferry("run", *wishes, *more, code=1)
        assert done.stderr.count("error: ") == 1, done.stderr
        for text in (*said, "nothing was changed", "hint: "):
            assert text in done.stderr, done.stderr
        assert "Traceback" not in done.stderr

    with spoiled(guest, "mv /usr/bin/rsync /root/", "mv /root/rsync /usr/bin/"):
        refused("missing: rsync (package rsync)")
    sleeper = f"cd {guest.mount}; nohup sleep 600 >/dev/null 2>&1 & echo $!"
    pid = guest.sh(sleeper)
    try:
        refused(f"(pid {pid})), or --stop CMD")
    finally:
        guest.sh(f"kill {pid}")
    guest.sh("id noshell 2>/dev/null || useradd -p '*' -s /usr/sbin/nologin noshell")
    refused("runs no commands", more=("--ssh", f"noshell@{guest.name}"))
    refused("refused the login", more=("--ssh", f"nosuchuser@{guest.name}"))
    with lab.quota(snapshots=0):
        refused("snapshots: ", " 1 more needed")
    assert volferry.data("list") == []


def test_a_volume_that_ends_in_error_stops_with_the_reason_and_is_rolled_back(
    lab: Lab, volferry: Command, guest: Guest
) -> None:
    lab.knobs.set("create_volume_from_snapshot", fail=1)

    failed = volferry("run", *words(lab, guest, "--type", "cbs-standard", "--yes"), code=1)

    assert "error" in failed.stderr and "volferry rollback" in failed.stderr
    volferry("rollback", volferry.transfer())
    assert marked(lab, volferry.transfer()) == []


def test_a_service_that_does_not_start_on_the_target_is_taken_back_by_the_guest(
    lab: Lab, volferry: Command, guest: Guest
) -> None:
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
