"""The command is killed around its effects on real services and a real guest. A few moments by
chance in every run, all with ``VOLFERRY_EVERY_CUT=1``; ``VOLFERRY_CUT_SEED`` chooses others.

A transfer takes a minute or two here, and has 154 moments. So one transfer is killed at all of
them, one after another, each life beginning with what the one before has left. A way back begins at
every second moment: from one that is after an effect to the next one, before another effect,
nothing happens.

All of it with one volume, which each transfer moves on or leaves as it was.
"""

import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.api import Lab
from tests.crash.effects import first_of_each, moments
from tests.crash.tally import Tally
from tests.lab.kept import Kept
from tests.lab.volferry_command import UNIT, Command, Guest, marked, snapshots, tree, words

pytestmark = pytest.mark.lab

SEED = int(os.environ.get("VOLFERRY_CUT_SEED", "4"))
EVERY = os.environ.get("VOLFERRY_EVERY_CUT") == "1"
METHODS = ("rsync", "mirror")
SAMPLE = 6
"""Moments of the one transfer that goes on, where not all are cut."""

CHANCE = random.Random(SEED)
MOMENTS = {name: [moment for *_, moment in moments(name)] for name in METHODS}
ON = {name: MOMENTS[name] for name in METHODS}
BACK = [(name, moment) for name in METHODS for moment in MOMENTS[name][SEED % 2 :: 2]]
AGAIN = list(METHODS)
if not EVERY:
    one = CHANCE.choice(METHODS)
    ON = {one: sorted(CHANCE.sample(ON[one], SAMPLE), key=ON[one].index)}
    BACK = [CHANCE.choice([cut for cut in BACK if cut[0] != one])]
    AGAIN = []


@pytest.fixture
def guest(kept: Kept, volferry: Command) -> Iterator[Guest]:
    with kept.in_use(volferry) as one:
        before = tree(one)
        yield one
        assert tree(one) == before


@pytest.mark.parametrize("name", ON)
def test_a_command_killed_at_every_moment_goes_on_to_the_end(
    lab: Lab, volferry: Command, guest: Guest, tally: Tally, name: str
) -> None:
    options = new_type(lab, guest, name)
    first, *others = ON[name]
    killed(volferry, first, "run", *options)
    transfer = volferry.transfer()
    for moment in others:
        killed(volferry, moment, "resume", transfer)
    volferry("resume", transfer)

    ends_moved(lab, volferry, guest)
    tally.points += len(ON[name])
    tally.resumed += len(ON[name])


@pytest.mark.parametrize(("name", "moment"), BACK, ids=[" ".join(cut) for cut in BACK])
def test_a_command_killed_at_a_moment_goes_back(
    lab: Lab, volferry: Command, guest: Guest, tally: Tally, name: str, moment: str
) -> None:
    killed(volferry, moment, "run", *new_type(lab, guest, name))
    transfer = volferry.transfer()
    if goes_back(volferry, guest, transfer):
        assert marked(lab, transfer) == []
        assert lab.volume(guest.volume_id)["metadata"].get("readonly") != "True"
        tally.rolled_back += 1
    else:
        ends_moved(lab, volferry, guest)
        tally.resumed += 1
    tally.points += 1


@pytest.mark.parametrize("name", AGAIN)
def test_a_rollback_killed_at_every_moment_ends_when_it_is_said_again(
    lab: Lab, volferry: Command, guest: Guest, tally: Tally, name: str, tmp_path: Path
) -> None:
    def all_is_made(state: str) -> Command:
        (tmp_path / state).mkdir()
        command = Command(lab, tmp_path / state)
        killed(command, "before intent cutover", "run", *new_type(lab, guest, name))
        return command

    whole = all_is_made("whole")
    said = tmp_path / "said"
    told = Command(lab, whole.state, VOLFERRY_MOMENTS=str(said))
    assert under_cuts(told, "never", "rollback", whole.transfer()) == 0, told.log.read_text()
    assert marked(lab, whole.transfer()) == []

    again = all_is_made("again")
    transfer = again.transfer()
    every = first_of_each(said.read_text().splitlines())
    made = {step for _, step, _ in moments(name)[: MOMENTS[name].index("before intent cutover")]}
    assert {f"after undone {step}" for step in made} <= set(every)
    for moment in every:
        killed(again, moment, "rollback", transfer)
    again("rollback", transfer)
    assert marked(lab, transfer) == []
    tally.points += len(every)
    tally.rolled_back += len(every)


def new_type(lab: Lab, guest: Guest, name: str) -> tuple[str, ...]:
    """The words of a transfer to a type that the volume does not have, so that it has a retype."""
    has = lab.volume(guest.volume_id)["volume_type"]
    other = "cbs-standard" if has == "cbs-premium" else "cbs-premium"
    return words(lab, guest, "--type", other, "--method", name, "--yes")


def under_cuts(volferry: Command, moment: str, *argv: str) -> int:
    program = [sys.executable, str(Path(__file__).with_name("cut_command.py")), moment]
    return volferry.start(*argv, program=program).wait(1800)


def killed(volferry: Command, moment: str, *argv: str) -> None:
    ended = under_cuts(volferry, moment, *argv)
    assert ended == -9, f"not killed {moment}:\n{volferry.log.read_text()}"


def goes_back(volferry: Command, guest: Guest, transfer: str) -> bool:
    """Whether it went back; else the guest had forgotten the way, and it has been ended."""
    done = volferry("rollback", transfer, code=None)
    if done.returncode == 3:
        assert guest.mounted_serial() != guest.volume_id[:20]
        done = volferry("rollback", transfer, "--accept-loss", code=None)
        # What the service wrote to the target has been given up, as said.
        guest.sh(f"systemctl stop {UNIT}; : > /var/tmp/acknowledged; systemctl start {UNIT}")
    if done.returncode == 1:
        assert "all but finished" in done.stderr or "has ended" in done.stderr, done.stderr
        volferry("resume", transfer)
        return False
    assert done.returncode == 0, done.stderr
    return True


def ends_moved(lab: Lab, volferry: Command, guest: Guest) -> None:
    report = volferry.report()
    target = report["moves"][0]["target"]["id"]
    source = lab.volume(guest.volume_id)
    assert report["not_verified"] == [] and report["verified"]
    assert (source["status"], source["attachments"]) == ("available", [])
    assert source["metadata"]["readonly"] == "True"
    assert lab.volume(target)["volume_type"] != source["volume_type"]
    assert snapshots(lab, guest) == []
    guest.volume_id = target
