"""Devices that a program uses as such (--raw): also what it did not sync goes along."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from agent_rig import MIB, Disks, Guest, shell
from disks_world import WithLog, World
from mirror_world import Mirrored, ended, hidden

pytestmark = pytest.mark.usefixtures("tracking")

PLACE = 20 * MIB
"""Where a program writes: what is withheld from a target lies before and behind it."""


def mirrored(world: World) -> Mirrored:
    world.make("ext4")
    mirror = Mirrored(world).track()
    world.clone()
    mirror.begin()
    mirror.until_compared()
    shell("umount", world.data[0])
    return mirror


def written_to(device: str) -> bytes:
    """What a program wrote there without a sync, and closed."""
    content = secrets.token_bytes(8192)
    with open(device, "r+b") as file:
        file.seek(PLACE)
        file.write(content)
    return content


def read_from(path: str | Path) -> bytes:
    with open(path, "rb") as file:
        file.seek(PLACE)
        return file.read(8192)


def test_a_raw_device_that_is_still_open_is_not_left(world: World) -> None:
    mirror = mirrored(world)
    with open(world.source.loop, "rb"):
        outcome, _ = mirror.cut_over(filesystems=[], stop=[], start=[])
    assert outcome["result"] == "reverted"
    assert "the device is still open" in outcome["reason"]
    assert hidden(world)


def test_what_a_raw_device_has_in_the_page_cache_alone_goes_along(world: World) -> None:
    mirror = mirrored(world)
    content = written_to(world.source.loop)
    outcome, _ = mirror.cut_over(filesystems=[], stop=[], start=[])
    assert (outcome["result"], outcome["reason"]) == ("committed", ""), outcome
    assert read_from(world.target.image) == content


def moved_with_a_standby(world: World) -> Mirrored:
    mirror = mirrored(world)
    outcome, status = mirror.cut_over(filesystems=[], stop=[], start=[], keep_standby=True)
    assert outcome["standby"], status
    mirror.until(lambda f: f["standby"] and f["verified"], "follow")
    return mirror


def test_what_the_target_has_in_the_page_cache_alone_goes_back_to_a_standby(world: World) -> None:
    moved_with_a_standby(world)
    content = written_to(world.target.loop)
    world.guest.start("cutback", {})
    outcome = world.guest.wait()["result"]["outcome"]
    assert (outcome["live"], outcome["problems"]) == ("source", []), outcome
    assert read_from(world.source.image) == content


def test_a_raw_target_that_is_still_open_stays_the_live_side(world: World) -> None:
    mirror = moved_with_a_standby(world)
    with open(world.target.loop, "rb"):
        world.guest.start("cutback", {})
        outcome = world.guest.wait()["result"]["outcome"]
    assert outcome["live"] == "target", outcome
    assert "the device is still open" in outcome["reason"]
    assert mirror.tell("figures")["standby"]


# ---- beside a volume that is mounted -------------------------------------------------------------


@dataclass
class WithRawLog(WithLog):
    """Which a program uses without a filesystem."""

    def mirrored(self) -> Mirrored:
        self.make("ext4")
        self.log = self.disks.blank("log", 64)
        self.guest.install(self.source.ref, self.log.ref)
        self.start_writer()
        mirror = Mirrored(self).track()
        self.clone()
        self.log_target = self.disks.clone(self.log, "log-target")
        mirror.begin()
        mirror.until_compared()
        return mirror


@pytest.fixture
def both(guest: Guest, disks: Disks) -> Iterator[WithRawLog]:
    with ended(WithRawLog(guest, disks)) as found:
        yield found


def test_beside_a_mounted_volume_a_raw_one_is_written_out_as_well(both: WithRawLog) -> None:
    mirror = both.mirrored()
    content = written_to(both.log.loop)
    outcome, status = mirror.cut_over()
    assert (outcome["result"], outcome["reason"]) == ("committed", ""), status
    both.assert_live("target")
    assert read_from(both.log_target.image) == content


def test_beside_a_mounted_volume_a_raw_one_that_is_still_open_is_not_left(both: WithRawLog) -> None:
    mirror = both.mirrored()
    with open(both.log.loop, "rb"):
        outcome, _ = mirror.cut_over()
    assert (outcome["result"], outcome["live"]) == ("reverted", "source"), outcome
    assert "the device is still open" in outcome["reason"]
    both.assert_live("source")
