"""The command is killed around an effect on real services and a real guest; then it is resumed or
rolled back. A few moments by chance in every run, all with ``VOLFERRY_EVERY_CUT=1``.

``VOLFERRY_CUT_SEED`` chooses others. Of each pair around an effect one is resumed and the other
rolled back; with an odd seed it is the other way round.
"""

import os
import random
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lab.api import Lab
from tests.crash.effects import moments
from tests.crash.tally import Tally
from tests.lab.volferry_command import UNIT, Command, Guest, marked, snapshots, tree, words

pytestmark = pytest.mark.lab

SEED = int(os.environ.get("VOLFERRY_CUT_SEED", "4"))
EVERY = os.environ.get("VOLFERRY_EVERY_CUT") == "1"
SAMPLE = 2
METHODS = ("rsync", "mirror")

ALL = [one for name in METHODS for one in moments(name)]
CHOSEN = ALL if EVERY else sorted(random.Random(SEED).sample(ALL, SAMPLE), key=ALL.index)


@pytest.mark.parametrize(("name", "step", "moment"), CHOSEN, ids=[" ".join(c) for c in CHOSEN])
def test_a_command_killed_around_an_effect_goes_on_or_back(
    lab: Lab,
    volferry: Command,
    in_use: Callable[..., Guest],
    tally: Tally,
    name: str,
    step: str,
    moment: str,
) -> None:
    guest = in_use("debian-12", "xfs")
    before, fstab = tree(guest), guest.sh("cat /etc/fstab")
    options = words(lab, guest, "--type", "cbs-premium", "--method", name, "--yes")
    program = [sys.executable, str(Path(__file__).with_name("cut_command.py")), moment]
    killed = volferry.start("run", *options, program=program)
    assert killed.wait(1800) == -9, volferry.log.read_text()
    tally.points += 1
    transfer = volferry.transfer()
    forward = (ALL.index((name, step, moment)) + SEED) % 2 == 0

    if forward:
        volferry("resume", transfer)
        ends_moved(lab, volferry, guest)
        tally.resumed += 1
    elif goes_back(volferry, guest, transfer):
        ends_as_it_was(lab, guest, transfer)
        tally.rolled_back += 1
    assert guest.sh(f"systemctl is-active {UNIT}") == "active"
    assert tree(guest) == before
    assert guest.sh("cat /etc/fstab") == fstab
    assert guest.leftovers() == ""


def goes_back(volferry: Command, guest: Guest, transfer: str) -> bool:
    """Whether it went back; else the guest had forgotten the way, and it has been ended."""
    done = volferry("rollback", transfer, code=None)
    if done.returncode == 3:
        assert guest.mounted_serial() != guest.volume_id[:20]
        done = volferry("rollback", transfer, "--accept-loss", code=None)
    if done.returncode == 1:
        assert "all but finished" in done.stderr or "has ended" in done.stderr, done.stderr
        volferry("resume", transfer)
        return False
    assert done.returncode == 0, done.stderr
    return True


def ends_moved(lab: Lab, volferry: Command, guest: Guest) -> None:
    report = volferry.report()
    target = report["moves"][0]["target"]["id"]
    assert report["not_verified"] == [] and report["verified"]
    assert guest.mounted_serial() == target[:20]
    assert guest.lost() == []
    source = lab.volume(guest.volume_id)
    assert (source["status"], source["attachments"]) == ("available", [])
    assert source["metadata"]["readonly"] == "True"
    assert lab.volume(target)["volume_type"] == "cbs-premium"
    assert snapshots(lab, guest) == []


def ends_as_it_was(lab: Lab, guest: Guest, transfer: str) -> None:
    assert guest.mounted_serial() == guest.volume_id[:20]
    assert snapshots(lab, guest) == [] and marked(lab, transfer) == []
    source = lab.volume(guest.volume_id)
    assert source["status"] == "in-use" and source["metadata"].get("readonly") != "True"
