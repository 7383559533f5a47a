"""The old volume as a standby: whatever dies while the roles are swapped, never are both hidden."""

from __future__ import annotations

import secrets
from pathlib import Path

import pytest
from agent_rig import Json, shell
from disks_world import World
from killing import armed, killed_at, taken_up
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
