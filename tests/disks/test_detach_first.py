"""Where the source has to be out of the guest before the target may be seen, and the other way
round on the way back: killed, restarted, or left alone by the controller in between.

A loop device goes away with the last who has it open, so the mirror is ended before: it has told
the cutover all that it needs by then.
"""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
import time
from pathlib import Path

import pytest
from agent_rig import MIB, Json, shell
from disks_world import World
from killing import armed, killed_at, restarted, taken_up
from mirror_world import Mirrored, hidden

pytestmark = pytest.mark.usefixtures("tracking")

HIDING = ["going:back", "kept", "hidden", "back:1", "awaiting"]
"""Of the way back, up to the wait for the source."""
SHOWING = ["staying", "shown", "unkept", "side:1"]
"""Of the way to the target again when the source did not come."""


class Moved:
    """A world that was cut over with its source detached first. ``kept`` was written since."""

    def __init__(self, world: World, mutation: str = "EARLY_S = 1.0", **larger: int) -> None:
        self.world = world
        world.make("ext4")
        world.source.linked()
        world.start_writer()
        self.mirror = Mirrored(world).mutate(mutation).track()
        world.clone(**larger)
        self.mirror.begin()
        self.mirror.until_compared()
        self.request = self.mirror.cutover_request(detach_first=True)
        world.guest.start("cutover", self.request)
        self.awaiting()
        self.unplug()
        outcome = self.outcome()
        assert (outcome["live"], outcome["reason"]) == ("target", ""), outcome
        self.kept, self.content = world.data[0] / "kept", secrets.token_hex(5000)
        self.kept.write_text(self.content)

    def unplug(self) -> None:
        self.world.guest.call("stop", lane="mirror")
        self.mirror.wait()
        self.world.disks.unplug(self.world.source)

    def plug(self) -> None:
        self.world.disks.plug(self.world.source)

    def awaiting(self) -> Json:
        return self.world.guest.until_phase("awaiting")

    def outcome(self) -> Json:
        status = self.world.guest.wait()
        assert status["state"] == "ended", status
        outcome: Json = status["result"]["outcome"]
        return outcome

    def early(self, installed: str) -> None:
        """What the unit at early boot does."""
        argv = [sys.executable, "-I", installed, "early", str(self.world.guest.state_dir)]
        assert subprocess.run(argv, timeout=120, check=False).returncode == 0

    def assert_on_target(self, outcome: Json) -> None:
        assert (outcome["result"], outcome["live"]) == ("committed", "target"), outcome
        assert "going back was not possible: the source was not attached" in outcome["reason"]
        assert self.world.live_side() == "target"
        assert self.world.side.read_text() == "target\n"
        self.world.wait_for_writer()
        assert self.kept.read_text() == self.content

    def assert_on_source(self, outcome: Json) -> None:
        assert (outcome["result"], outcome["live"]) == ("reverted", "source"), outcome
        assert outcome["problems"] == [], outcome
        assert hidden(self.world)
        assert not self.kept.exists()
        self.world.assert_live("source")


def test_the_target_is_hidden_before_the_source_may_come(world: World) -> None:
    moved = Moved(world)
    world.guest.start("cutback", {})
    moved.awaiting()
    assert hidden(world)
    assert world.live_side() == "nothing" and world.side.read_text() == "source\n"
    moved.plug()
    moved.assert_on_source(moved.outcome())


def test_without_its_source_it_goes_on_with_all_that_was_written_since(world: World) -> None:
    moved = Moved(world)
    world.guest.start("cutback", {**moved.request, "deadline_s": 1})
    moved.assert_on_target(moved.outcome())

    moved.kept.write_text("again")
    world.guest.start("cutback", {})
    moved.awaiting()
    moved.plug()
    moved.assert_on_source(moved.outcome())


def test_what_is_at_the_end_of_a_larger_target_is_hidden_and_comes_back(world: World) -> None:
    moved = Moved(world, size_mib=96)
    at = f"of={world.target.loop} seek={96 * MIB - 512} oflag=seek_bytes conv=notrunc"
    shell("sh", "-c", f"printf 'EFI PART' | dd {at}")

    def end() -> bytes:
        with open(world.target.image, "rb") as file:
            file.seek(96 * MIB - 512)
            return file.read(8)

    world.guest.start("cutback", {**moved.request, "deadline_s": 3})
    moved.awaiting()
    assert end() == bytes(8)
    moved.assert_on_target(moved.outcome())
    assert end() == b"EFI PART"


def test_what_holds_the_target_keeps_the_service_on_it(world: World) -> None:
    moved = Moved(world)
    held = (world.data[0] / "held").open("w")
    with held:
        world.guest.start("cutback", {})
        outcome = moved.outcome()
    assert (outcome["result"], outcome["live"]) == ("committed", "target"), outcome
    assert "going back was not possible" in outcome["reason"]
    assert world.live_side() == "target" and world.side.read_text() == "target\n"
    world.wait_for_writer()


def test_with_one_of_two_sources_the_other_is_waited_for(world: World) -> None:
    """Beside one that is there the target may not be shown, whatever the deadline says."""
    moved = Moved(world)
    other, its_target = world.disks.blank("other", 8), world.disks.blank("its-target", 8)
    other.linked()
    pair = {"source": other.ref, "target": its_target.ref}
    world.disks.unplug(other)
    request = {**moved.request, "deadline_s": 5, "pairs": [*moved.request["pairs"], pair]}
    world.guest.start("cutback", request)
    moved.awaiting()
    moved.plug()
    time.sleep(6)
    assert moved.awaiting()["progress"]["left_s"] > 100
    assert hidden(world)
    world.disks.plug(other)
    moved.assert_on_source(moved.outcome())


def test_killed_on_the_way_back_it_goes_on_with_it(world: World) -> None:
    moved = Moved(world)
    for moment in HIDING:
        installed = armed(world, moved.request, f"back-{moment.replace(':', '-')}", "cutback")
        killed_at(world, installed, moment)
        assert (world.live_side(), moment) in (("target", "going:back"), ("nothing", moment))
        request = {**moved.request, "deadline_s": 1}
        job = json.loads((world.guest.state_dir / "job.json").read_text())
        (world.guest.state_dir / "job.json").write_text(json.dumps({**job, "request": request}))
        moved.assert_on_target(taken_up(world, installed))
    installed = armed(world, moved.request, "back-at-last", "cutback")
    killed_at(world, installed, "awaiting")
    moved.plug()
    moved.assert_on_source(taken_up(world, installed))


def test_killed_as_it_shows_its_target_again_it_goes_on_with_that(world: World) -> None:
    moved = Moved(world)
    for moment in SHOWING:
        request = {**moved.request, "deadline_s": 1}
        installed = armed(world, request, f"back-{moment.replace(':', '-')}", "cutback")
        killed_at(world, installed, moment)
        moved.assert_on_target(taken_up(world, installed))


@pytest.mark.parametrize("moment", ["kept", "awaiting"])
def test_a_boot_in_between_that_finds_no_source_goes_on_with_the_target(
    world: World, moment: str
) -> None:
    moved = Moved(world)
    installed = armed(world, moved.request, "back-boot", "cutback")
    killed_at(world, installed, moment)
    moved.early(installed)
    assert not hidden(world) and world.side.read_text() == "target\n"
    moved.assert_on_target(taken_up(world, installed))


@pytest.mark.parametrize("moment", ["kept", "awaiting"])
def test_a_boot_in_between_that_finds_the_source_goes_on_with_it(world: World, moment: str) -> None:
    moved = Moved(world)
    installed = armed(world, moved.request, "back-boot", "cutback")
    killed_at(world, installed, moment)
    moved.plug()
    moved.early(installed)
    assert hidden(world) and world.side.read_text() == "source\n"
    moved.assert_on_source(taken_up(world, installed))


def test_an_early_boot_before_anything_was_hidden_touches_nothing(world: World) -> None:
    moved = Moved(world)
    installed = armed(world, moved.request, "back-boot", "cutback")
    killed_at(world, installed, "going:back")
    moved.early(installed)
    assert not hidden(world) and world.side.read_text() == "target\n"
    assert Path(world.mounted(world.data[0])) == Path(world.target.loop)


# ---- the way there -------------------------------------------------------------------------------


class Moving(Moved):
    """One whose worker was killed as it waited for the source to be detached."""

    def __init__(self, world: World) -> None:
        self.world = world
        world.make("ext4")
        world.source.linked()
        world.start_writer()
        self.mirror = Mirrored(world).mutate("EARLY_LOOK_S = 0.5").track()
        world.clone()
        self.mirror.begin()
        self.mirror.until_compared()
        self.request = self.mirror.cutover_request(detach_first=True)
        self.kept, self.content = world.data[0] / "kept", secrets.token_hex(5000)
        self.kept.write_text(self.content)
        self.installed = armed(world, self.request, "there")
        killed_at(world, self.installed, "awaiting")


def test_a_boot_that_finds_the_source_gone_shows_the_target(world: World) -> None:
    moving = Moving(world)
    moving.unplug()
    restarted(world)
    moving.early(moving.installed)
    assert not hidden(world) and world.side.read_text() == "target\n"
    outcome = taken_up(world, moving.installed)
    assert (outcome["result"], outcome["live"]) == ("committed", "target"), outcome
    assert moving.kept.read_text() == moving.content
    world.wait_for_writer()


def test_a_target_that_was_shown_and_is_in_use_already_is_committed(world: World) -> None:
    """A hard reset after the last write and before the rule: the initramfs had it all."""
    moving = Moving(world)
    moving.unplug()
    restarted(world)
    moving.early(moving.installed)
    restarted(world, phase="committing")
    world.side.write_text("source\n")
    used = world.guest.root / "used"
    used.mkdir()
    shell("mount", world.target.loop, used)
    outcome = taken_up(world, moving.installed)
    assert (outcome["result"], outcome["live"]) == ("committed", "target"), outcome
    assert world.side.read_text() == "target\n"
    world.wait_for_writer()
    assert moving.kept.read_text() == moving.content
    shell("umount", used)


def test_a_boot_that_finds_the_source_does_not_leave_it_when_it_goes_later(world: World) -> None:
    """Its service wrote to it since the boot, and the target does not have that."""
    moving = Moving(world)
    restarted(world)
    moving.early(moving.installed)
    moving.unplug()
    outcome = taken_up(world, moving.installed)
    assert outcome["live"] == "source", outcome
    assert any("left down" in problem for problem in outcome["problems"])
    assert hidden(world) and world.side.read_text() == "source\n"


def test_without_the_unit_of_the_early_boot_a_source_that_went_is_not_left(world: World) -> None:
    moving = Moving(world)
    restarted(world)
    moving.unplug()
    outcome = taken_up(world, moving.installed)
    assert outcome["live"] == "source", outcome
    assert hidden(world)
