"""The old volume as a standby: whatever dies while the roles are swapped, never are both hidden."""

from __future__ import annotations

import contextlib
import json
import secrets
import time
from pathlib import Path

import pytest
from agent_rig import Json, Told, shell
from disks_world import World
from killing import armed, killed_at, restarted, taken_up
from mirror_world import Mirrored

pytestmark = pytest.mark.usefixtures("tracking")

DYING = """
def dying(self, *more, work={work}):
    if os.path.exists({flag!r}) and {swapped}:
        {first}
        os.unlink({flag!r})
        os.kill(os.getpid(), signal.SIGKILL)
    return work(self, *more)


{work} = dying
"""
HIDDEN = {
    "work": "Pair.mask",
    "swapped": "self.source_disk.path == read_text({flag!r})",
    "first": "work(self)",
}
"""After the source is hidden, and before anything says that it follows the target."""
FOLLOWING = {"work": "Mirror.set_pace", "swapped": "self.kept.get('swapped')", "first": "pass"}
"""After that is on the disk, and before it is answered."""
SHOWN = {**HIDDEN, "work": "Pair.unmask", "first": "work(self, *more)"}
"""After the source can be recognised again, and before the disk says that it follows no more."""
LOSING = {
    "work": "Mirror.final",
    "swapped": "self.is_swapped",
    "first": "self.loss = 'made up'; return work(self, *more)",
}
"""Once it was told to get ready."""


class Swapping:
    def __init__(self, world: World, **dying: str) -> None:
        self.world, self.flag = world, world.guest.root / "dying"
        flag = str(self.flag)
        words = {key: text.replace("{flag!r}", repr(flag)) for key, text in dying.items()}
        mutation = DYING.format(flag=flag, **words) if dying else ""
        world.make("ext4")
        world.start_writer()
        self.mirror = Mirrored(world).mutate(mutation).track()
        world.clone()
        self.mirror.begin()
        self.mirror.until_compared()
        self.flag.write_text(world.target.loop)
        self.kept, self.content = world.data[0] / "kept", secrets.token_hex(5000)
        self.kept.write_text(self.content)

    def moved(self) -> Path:
        """To the target, where something was written to a file that it answers with."""
        outcome, status = self.mirror.cut_over(keep_standby=True)
        assert outcome["standby"], status
        later = self.world.data[0] / "later"
        later.write_text("written on the target")
        shell("sync", "-f", later)
        self.mirror.until(lambda f: f["standby"] and f["verified"], "follow")
        return later

    def going_back(self) -> str:
        """The way back, about to begin. -> the installed agent"""
        request = json.loads((self.world.guest.state_dir / "switch.json").read_text())
        self.installed = armed(self.world, request, "back", "cutback")
        return self.installed

    def follows_again(self) -> None:
        """Asked of the process itself: what a killed one has last said is still its status."""
        deadline = time.monotonic() + 60
        while True:
            with contextlib.suppress(Told):
                figures = self.mirror.tell("figures")
                if figures["standby"] and figures["verified"]:
                    return
            assert time.monotonic() < deadline, self.mirror.status()
            time.sleep(0.05)

    def end(self) -> None:
        """The mirror that was begun again for one that died."""
        self.world.guest.call("stop", lane="mirror")
        self.mirror.wait()

    def assert_live(self, side: str, outcome: Json) -> None:
        assert outcome["live"] == side, outcome
        assert self.world.live_side() == side
        self.world.wait_for_writer()
        assert self.kept.read_text() == self.content


def recognised(path: str) -> bool:
    return bool(shell("blkid", "-p", path, check=False))


@pytest.mark.parametrize("moment", ["hiding", "unnoted", "standing"])
def test_a_cutover_killed_around_the_swap_ends_it(world: World, moment: str) -> None:
    swapping = Swapping(world)
    request = swapping.mirror.cutover_request(keep_standby=True)
    installed = armed(world, request)
    killed_at(world, installed, moment)
    outcome = taken_up(world, installed)
    assert (outcome["result"], outcome["standby"]) == ("committed", True), outcome
    swapping.assert_live("target", outcome)
    assert not recognised(world.source.loop)
    later = world.data[0] / "later"
    later.write_text("written on the target")
    shell("sync", "-f", later)
    swapping.mirror.until(lambda f: f["standby"] and f["verified"], "follow")
    world.guest.start("cutback", {})
    outcome = world.guest.wait()["result"]["outcome"]
    swapping.assert_live("source", outcome)
    assert later.read_text() == "written on the target"
    assert outcome["was_live_s"] == 0.0


def test_a_guest_that_restarts_with_the_source_hidden_shows_it_again(world: World) -> None:
    """It follows nobody, and without what was kept of it nobody could mount it any more."""
    swapping = Swapping(world)
    request = swapping.mirror.cutover_request(keep_standby=True)
    installed = armed(world, request)
    killed_at(world, installed, "hiding")
    swapping.end()
    shell("blockdev", "--setrw", world.source.loop)
    shell("wipefs", "-a", world.source.loop)
    restarted(world)
    shell("mount", "-o", "nodev,noatime", world.target.loop, world.data[0])
    outcome = taken_up(world, installed)
    swapping.assert_live("target", outcome)
    assert not outcome["standby"]
    notes = world.guest.status()["result"]["notes"]
    assert "the source is no standby: its mirror ended before it was one" in notes
    assert recognised(world.source.loop)
    assert shell("blockdev", "--getro", world.source.loop).strip() == "1"


@pytest.mark.parametrize("fails", ["somebody has a file open", "writes were lost"])
def test_a_way_back_that_fails_leaves_a_standby_that_follows(world: World, fails: str) -> None:
    swapping = Swapping(world, **LOSING)
    later = swapping.moved()
    with contextlib.ExitStack() as held:
        if fails == "somebody has a file open":
            swapping.flag.unlink()
            held.enter_context((world.data[0] / "held").open("w"))
        world.guest.start("cutback", {})
        outcome = world.guest.wait()["result"]["outcome"]
    swapping.flag.unlink(missing_ok=True)
    swapping.assert_live("target", outcome)
    assert "going back was not possible" in outcome["reason"]
    later.write_text("written since")
    shell("sync", "-f", later)
    swapping.follows_again()
    world.guest.start("cutback", {}, "back-again")
    outcome = world.guest.wait()["result"]["outcome"]
    swapping.assert_live("source", outcome)
    assert later.read_text() == "written since" and outcome["problems"] == []


@pytest.mark.parametrize("moment", ["copied", "brought", "back:1", "unstood"])
def test_a_way_back_killed_at_a_moment_goes_on_and_loses_nothing(world: World, moment: str) -> None:
    swapping = Swapping(world)
    later = swapping.moved()
    killed_at(world, swapping.going_back(), moment)
    outcome = taken_up(world, swapping.installed)
    swapping.assert_live("source", outcome)
    assert later.read_text() == "written on the target"
    world.stop_writer()
    shell("umount", *world.data)
    shell("e2fsck", "-fn", world.source.loop)
    assert outcome["problems"] == [] and not outcome["standby"]
    assert not recognised(world.target.loop)


def test_a_way_back_that_restarts_before_the_side_files_stays_on_the_target(world: World) -> None:
    """There the boot has gone on with it, and the standby has not followed since."""
    swapping = Swapping(world)
    later = swapping.moved()
    killed_at(world, swapping.going_back(), "brought")
    restarted(world)
    shell("mount", world.target.loop, world.data[0])
    later.write_text("written after the boot")
    outcome = taken_up(world, swapping.installed)
    swapping.assert_live("target", outcome)
    assert "going back was not possible" in outcome["reason"]
    assert later.read_text() == "written after the boot"


def test_a_way_back_that_restarts_behind_the_side_files_ends_on_the_source(world: World) -> None:
    swapping = Swapping(world)
    later = swapping.moved()
    killed_at(world, swapping.going_back(), "back:1")
    restarted(world)
    shell("mount", world.source.loop, world.data[0])
    later.write_text("written after the boot")
    outcome = taken_up(world, swapping.installed)
    swapping.assert_live("source", outcome)
    assert later.read_text() == "written after the boot"
    assert not recognised(world.target.loop)


def test_a_mirror_that_dies_when_the_source_is_hidden_leaves_it_whole(world: World) -> None:
    swapping = Swapping(world, **HIDDEN)
    outcome, status = swapping.mirror.cut_over(keep_standby=True)
    assert not swapping.flag.exists(), status
    assert outcome["result"] == "reverted", status
    assert outcome["problems"] == [] and outcome["was_live_s"] == 0.0
    assert not recognised(world.target.loop)
    swapping.assert_live("source", outcome)
    swapping.end()


def test_a_mirror_that_dies_as_it_begins_to_follow_leaves_the_target_live(world: World) -> None:
    """Which of the two could be trusted is not known, but for the target."""
    swapping = Swapping(world, **FOLLOWING)
    outcome, status = swapping.mirror.cut_over(keep_standby=True)
    assert not swapping.flag.exists(), status
    swapping.assert_live("target", outcome)
    assert "going back was not possible" in outcome["reason"]
    swapping.end()


def test_a_mirror_that_dies_as_it_shows_the_source_keeps_it_as_a_standby(world: World) -> None:
    swapping = Swapping(world, **SHOWN)
    later = swapping.moved()
    world.guest.start("cutback", {})
    outcome = world.guest.wait()["result"]["outcome"]
    assert not swapping.flag.exists()
    swapping.assert_live("target", outcome)
    swapping.follows_again()
    assert not recognised(world.source.loop)
    world.guest.start("cutback", {}, "back-again")
    outcome = world.guest.wait()["result"]["outcome"]
    swapping.assert_live("source", outcome)
    assert later.read_text() == "written on the target" and outcome["problems"] == []


def test_what_is_kept_of_the_source_is_whole_and_roots_alone(world: World) -> None:
    swapping = Swapping(world)
    head = Path(world.source.image).read_bytes()[: 1 << 20]
    outcome, _ = swapping.mirror.cut_over(keep_standby=True)
    assert outcome["standby"]
    kept = next(swapping.mirror.folder.glob("withheld-*"))
    assert kept.stat().st_mode & 0o777 == 0o600
    assert len(kept.read_bytes()) == 2 << 20
    # The superblock says when it was unmounted; the magic and the UUID are the source's.
    assert kept.read_bytes()[-(1 << 20) :][0x438:0x43A] == head[0x438:0x43A] == b"\x53\xef"
