"""The mirror on real disks: bit for bit, under load, and what happens when it is disturbed."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from agent_rig import shell
from disks_world import World, probe
from mirror_world import Mirrored, differing_bytes

pytestmark = pytest.mark.usefixtures("tracking")

Make = Callable[..., Mirrored]


@pytest.fixture
def mirrored(world: World) -> Iterator[Make]:
    """Makes a source with a service that writes, a clone or a blank target, and tracks it."""
    made: list[Mirrored] = []

    def make(
        fstype: str = "ext4", table: str = "", blank: bool = False, **more: object
    ) -> Mirrored:
        world.make(fstype, table)
        world.start_writer()
        mirror = Mirrored(world, **more)
        made.append(mirror)
        mirror.track()
        if blank:
            world.blank()
        else:
            world.clone()
        return mirror

    yield make
    for _ in made:
        world.guest.call("stop", lane="mirror")


@pytest.mark.parametrize(
    ("fstype", "table", "blank"),
    [
        ("ext4", "", False),
        ("xfs", "", False),
        ("btrfs", "", True),
        ("ext4", "gpt", False),
        ("xfs", "dos", True),
    ],
)
def test_the_target_is_the_source_bit_for_bit(
    mirrored: Make, world: World, fstype: str, table: str, blank: bool
) -> None:
    mirror = mirrored(fstype, table, blank)
    mirror.begin(blank=blank)
    mirror.until_compared()
    final = mirror.finish_by_hand()
    assert final["verified"] is True
    assert differing_bytes(world) == ""


@pytest.mark.parametrize(("fstype", "table"), [("xfs", ""), ("ext4", "dos")])
def test_the_service_runs_on_the_mirrored_target(
    mirrored: Make, world: World, fstype: str, table: str
) -> None:
    mirror = mirrored(fstype, table)
    mirror.begin()
    mirror.until_compared()
    outcome, status = mirror.cut_over(settle_s=1)
    assert (outcome["result"], outcome["reason"]) == ("committed", ""), status
    assert outcome["final_pass"]["chunks_compared"] >= outcome["final_pass"]["chunks_copied"]
    assert set(outcome["parts"]) >= {"stop", "unmount", "copy", "compare", "commit", "mount"}
    world.assert_live("target")
    assert mirror.wait()["error"] is None


def test_a_target_that_is_mirrored_is_not_recognised(mirrored: Make, world: World) -> None:
    mirror = mirrored("ext4", "gpt")
    assert "PTTYPE" in probe(world.target.loop)
    mirror.begin()
    assert shell("blkid", "-p", world.target.loop, check=False) == ""
    mirror.until_compared()
    assert shell("blkid", "-p", world.target.loop, check=False) == ""


@pytest.mark.parametrize("fstype", ["ext4", "xfs"])
def test_going_back_to_a_standby_loses_nothing(mirrored: Make, world: World, fstype: str) -> None:
    mirror = mirrored(fstype)
    mirror.begin()
    mirror.until_compared()
    outcome, status = mirror.cut_over(keep_standby=True)
    assert (outcome["result"], outcome["standby"]) == ("committed", True), status
    world.wait_for_writer()
    later = world.data[0] / "later"
    later.write_text("written on the target")
    shell("sync", "-f", later)
    assert shell("blkid", "-p", world.source.loop, check=False) == "", "the standby is hidden"
    mirror.until(lambda f: f["standby"] and f["passes"] and not f["dirty_bytes"], "follow")

    world.guest.start("cutback", {})
    status = world.guest.wait()

    back = status["result"]["outcome"]
    assert (back["result"], back["live"], back["problems"]) == ("reverted", "source", []), status
    assert back["final_pass"]["final"] is True
    world.assert_live("source")
    assert later.read_text() == "written on the target"
    assert shell("blkid", "-p", world.target.loop, check=False) == "", "the target is hidden"


def test_a_standby_that_cannot_follow_is_not_gone_back_to(mirrored: Make, world: World) -> None:
    mirror = mirrored("ext4")
    mirror.begin()
    mirror.until_compared()
    mirror.cut_over(keep_standby=True)
    world.wait_for_writer()
    world.guest.call("stop", lane="mirror")

    world.guest.start("cutback", {})
    status = world.guest.wait()

    assert status["result"]["outcome"]["live"] == "target", status
    assert "nobody listens" in status["error"]["what"]
    assert world.live_side() == "target" and world.writer_is_up()


def test_a_cutover_that_is_taken_back_hides_the_target_and_goes_on(
    mirrored: Make, world: World
) -> None:
    mirror = mirrored("ext4")
    mirror.begin()
    before = mirror.until_compared()
    outcome, status = mirror.cut_over(start=["false"])
    assert (outcome["result"], outcome["live"]) == ("reverted", "source"), status
    assert shell("blkid", "-p", world.target.loop, check=False) == ""
    world.start_writer()

    after = mirror.until_compared()
    assert after["notes"] == before["notes"], "nothing was lost, so nothing is compared again"
    outcome, status = mirror.cut_over()
    assert outcome["result"] == "committed", status
    world.assert_live("target")
