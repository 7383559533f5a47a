"""The cutover of a mirrored volume, killed or failing: one side is live and the other is hidden."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from pathlib import Path

import pytest
from agent_rig import Json, Told, agent, shell
from disks_world import World
from killing import armed, killed_at, taken_up
from mirror_world import Mirrored, differing_bytes, hidden

pytestmark = pytest.mark.usefixtures("tracking")

PHASES = [name for name in agent.FORWARD_PHASES if name not in ("comparing", "awaiting")]
"""The mirror compares in its own process; and the source is not to be detached first."""
BEFORE = [
    "before:stopping",
    *PHASES[1 : PHASES.index("committed")],
    "before:committing",
    "shown",
    "side:1",
]
AFTER = ["side:2", "committed", "starting", "done"]


DYING = """
def dying(self, content, unmask=Pair.unmask):
    unmask(self, content)
    if not os.path.exists("{flag}"):
        os.close(os.open("{flag}", os.O_CREAT))
        os.kill(os.getpid(), signal.SIGKILL)


Pair.unmask = dying
"""


def mirrored(world: World, fstype: str = "ext4", mutation: str = "") -> Mirrored:
    world.make(fstype)
    world.start_writer()
    mirror = Mirrored(world).mutate(mutation).track()
    world.clone()
    world.target.linked()
    mirror.begin()
    mirror.until_compared()
    return mirror


def arm(world: World, mirror: Mirrored, moment: str, **more: object) -> tuple[str, Path, str]:
    """-> the installed agent, and a file that the service wrote last and what is in it"""
    first = world.guest.root / "etc" / "first"
    first.write_text("source\n")
    files = [World.side_file(first), World.side_file(world.side)]
    request = mirror.cutover_request(sides={"files": files}, **more)
    kept, content = world.data[0] / "kept", secrets.token_hex(5000)
    kept.write_text(content)
    return armed(world, request, job_id="killed-" + moment.replace(":", "-")), kept, content


def assert_ended(world: World, outcome: Json, side: str) -> None:
    result = "committed" if side == "target" else "reverted"
    assert (outcome["result"], outcome["live"]) == (result, side), outcome
    assert "while going back" not in outcome["reason"], outcome
    assert "going back was not possible" not in outcome["reason"], outcome
    world.assert_live(side)
    assert (world.guest.root / "etc" / "first").read_text() == f"{side}\n"
    assert hidden(world) == (side == "source")


def compared_meanwhile(mirror: Mirrored, before: Json) -> int:
    """Bytes, in the passes since those figures."""
    known = {one["started_at"] for one in before["passes"]}
    now = mirror.tell("figures")
    return sum(one["bytes_compared"] for one in now["passes"] if one["started_at"] not in known)


def test_killed_at_any_moment_before_the_commit_the_source_is_live(world: World) -> None:
    """One mirror for all of them: it knows all the time what was written, to either side."""
    mirror = mirrored(world)
    for moment in BEFORE:
        installed, kept, content = arm(world, mirror, moment)
        killed_at(world, installed, moment)
        if moment not in ("shown", "side:1"):
            assert hidden(world), moment
        outcome = taken_up(world, installed)
        assert "the agent was killed" in outcome["reason"], (moment, outcome)
        assert_ended(world, outcome, "source")
        assert kept.read_text() == content
        # It goes on by itself: nothing holds it back any more.
        mirror.until(lambda f: f["phase"] == "current" and f["verified"], f"go on after {moment}")
    assert mirror.tell("figures")["notes"] == []
    mirror.finish_by_hand()
    assert differing_bytes(world) == ""


@pytest.mark.parametrize("moment", AFTER)
def test_killed_at_a_moment_after_the_commit_the_target_is_live(world: World, moment: str) -> None:
    mirror = mirrored(world)
    installed, kept, content = arm(world, mirror, moment)
    killed_at(world, installed, moment)
    assert_ended(world, taken_up(world, installed), "target")
    assert kept.read_text() == content
    assert mirror.wait()["error"] is None


def test_killed_on_the_way_back_the_source_is_live(world: World) -> None:
    mirror = mirrored(world)
    start = ["test -e /nowhere", world.start_command]
    for moment in ("going:back", "back:1", "hidden"):
        installed, kept, content = arm(world, mirror, moment, start=start)
        killed_at(world, installed, moment)
        outcome = taken_up(world, installed)
        assert (outcome["live"], world.live_side(), hidden(world)) == ("source", "source", True)
        assert kept.read_text() == content
        world.wait_for_writer()
        mirror.until(lambda f: f["phase"] == "current" and f["verified"], "go on")
    assert mirror.tell("figures")["notes"] == []
    mirror.finish_by_hand()
    assert differing_bytes(world) == ""


def test_a_cutover_that_is_taken_back_costs_no_second_comparison(
    world: World, stand_in: Callable[[str, str], None]
) -> None:
    """Though the service wrote to the target before its start failed: that is noted as well."""
    mirror = mirrored(world, "xfs")
    size = world.source.ref["size_bytes"]
    on_the_source = f'[ "$(findmnt -n -o SOURCE {world.data[0]})" = {world.source.loop} ]'
    wrote = f"head -c 3000000 /dev/urandom >{world.data[0]}/by-the-service && sync"
    start = [f"{on_the_source} || {{ {wrote}; exit 1; }}", world.start_command]
    outcome, _ = mirror.cut_over(start=start)
    assert (outcome["result"], outcome["live"]) == ("reverted", "source"), outcome
    assert not (world.data[0] / "by-the-service").exists()
    world.assert_live("source")
    assert hidden(world)
    before = mirror.tell("figures")
    mirror.until(lambda f: f["phase"] == "current", "go on")
    assert compared_meanwhile(mirror, before) < size / 4

    broken = world.guest.root / "broken"
    broken.touch()
    stand_in(
        "mount",
        f'case "$*" in *"{world.target.loop} "*) [ -e {broken} ] && exit 32;; esac\n'
        'exec {real} "$@"\n',
    )
    before = mirror.tell("figures")
    outcome, _ = mirror.cut_over()
    assert (outcome["result"], outcome["live"]) == ("reverted", "source"), outcome
    world.assert_live("source")
    assert hidden(world)
    figures = mirror.until(lambda f: f["phase"] == "current" and f["verified"], "go on")
    assert compared_meanwhile(mirror, before) < size / 4
    assert figures["notes"] == []
    mirror.finish_by_hand()
    assert differing_bytes(world) == ""


def test_after_one_that_was_taken_back_a_second_cutover_succeeds(world: World) -> None:
    mirror = mirrored(world)
    outcome, _ = mirror.cut_over(start=["test -e /nowhere", world.start_command])
    assert outcome["live"] == "source"
    world.assert_live("source")
    mirror.until(lambda f: f["phase"] == "current" and f["verified"], "go on")
    kept = world.data[0] / "kept"
    kept.write_text("kept")
    outcome, status = mirror.cut_over()
    assert (outcome["result"], outcome["reason"]) == ("committed", ""), status
    world.assert_live("target")
    assert kept.read_text() == "kept"
    assert mirror.wait()["error"] is None

    world.guest.start("cutback", {})
    outcome = world.guest.wait()["result"]["outcome"]
    assert (outcome["result"], outcome["live"]) == ("reverted", "source"), outcome
    world.assert_live("source")
    assert hidden(world)


def test_going_back_from_a_target_that_somebody_took_out(world: World) -> None:
    mirror = mirrored(world)
    mirror.cut_over()
    assert mirror.wait()["error"] is None
    world.target_is_taken()
    world.guest.start("cutback", {})
    outcome = world.guest.wait()["result"]["outcome"]
    assert (outcome["result"], outcome["live"], outcome["problems"]) == ("reverted", "source", [])
    world.assert_live("source")


def test_what_a_service_writes_while_it_stops_is_followed_meanwhile(world: World) -> None:
    """A database writes its last checkpoint then, and nobody waits for the copy of it twice."""
    mirror = mirrored(world)
    flushed, size = world.data[0] / "flushed", 12 << 20
    writes = f"head -c {size} /dev/urandom >{flushed} && sync {flushed} && sleep 2"
    outcome, status = mirror.cut_over(stop=[world.stop_command, writes])
    assert outcome["result"] == "committed", status
    assert outcome["final_pass"]["bytes_copied"] < size / 4
    assert outcome["final_pass"]["bytes_compared"] < size / 4
    world.assert_live("target")
    assert flushed.stat().st_size == size
    source = world.disks.mount(world.source.loop, world.guest.root / "was", "ro,noload")
    assert shell("cmp", str(flushed), str(source / "flushed"), check=False) == ""


def test_a_cutover_whose_mirror_dies_switches_nothing(world: World) -> None:
    mirror = mirrored(world)
    outcome, _ = mirror.cut_over(stop=[world.stop_command, f"kill -9 {mirror.worker()}"])
    assert outcome["live"] == "source"
    world.assert_live("source")
    assert hidden(world)
    mirror.until_begun_again()
    mirror.until_compared()
    outcome, status = mirror.cut_over()
    assert outcome["result"] == "committed", status
    world.assert_live("target")


def test_a_mirror_that_dies_right_after_it_showed_the_target_hides_it_again(world: World) -> None:
    """The one that is begun again knows no target: it may be the live side. The cutover does it."""
    flag = world.guest.root / "died"
    mirror = mirrored(world, mutation=DYING.format(flag=flag))
    outcome, _ = mirror.cut_over()
    assert flag.exists()
    assert (outcome["result"], outcome["live"]) == ("reverted", "source"), outcome
    assert "while going back" not in outcome["reason"], outcome
    world.assert_live("source")
    assert hidden(world)
    mirror.until_begun_again()
    with pytest.raises(Told, match="no targets yet"):
        mirror.tell("ready")
    mirror.begin()
    mirror.until_compared()
    mirror.finish_by_hand()
    assert differing_bytes(world) == ""


def test_without_its_mirror_a_cutover_stops_nothing(world: World) -> None:
    mirror = mirrored(world)
    world.guest.call("stop", lane="mirror")
    outcome, _ = mirror.cut_over()
    assert outcome["live"] == "source"
    assert "nobody listens" in outcome["reason"]
    world.assert_live("source")
    assert hidden(world) and shell("findmnt", world.target.loop, check=False) == ""
