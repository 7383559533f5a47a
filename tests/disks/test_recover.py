"""Killed with SIGKILL at every moment of the cutover, it ends on exactly one side all the same."""

import json
import os
import signal
from collections.abc import Callable

import pytest
from agent_rig import Json, agent
from disks_world import World
from killing import armed, killed_at, restarted, taken_up

PHASES = [phase for phase in agent.FORWARD_PHASES if phase != "awaiting"]
"""Where the source is not to be detached first."""
COMMIT = PHASES.index("committed")


def ready(world: World, fstype: str = "ext4") -> World:
    world.make(fstype)
    world.start_writer()
    return world.ready()


def arm(world: World, **more: object) -> str:
    first = world.guest.root / "etc" / "first"
    first.write_text("source\n")
    files = [World.side_file(first), World.side_file(world.side)]
    return armed(world, world.cutover_request(None, sides={"files": files}, **more))


def assert_ended(world: World, outcome: Json, side: str) -> None:
    result = "committed" if side == "target" else "reverted"
    assert (outcome["result"], outcome["live"]) == (result, side), outcome
    assert "while going back" not in outcome["reason"], outcome
    world.assert_live(side)
    assert (world.guest.root / "etc" / "first").read_text() == f"{side}\n"


MOMENTS = [
    *((phase, "target" if PHASES.index(phase) >= COMMIT else "source") for phase in PHASES[1:]),
    ("before:committing", "source"),
    ("side:1", "source"),
    ("side:2", "target"),
    ("before:committed", "target"),
    ("before:settling", "target"),
    ("done", "target"),
]


@pytest.mark.parametrize(("moment", "side"), MOMENTS, ids=[moment for moment, _ in MOMENTS])
def test_killed_at_a_moment_it_ends_on_one_side(world: World, moment: str, side: str) -> None:
    installed = arm(ready(world))
    killed_at(world, installed, moment)
    outcome = taken_up(world, installed)
    assert_ended(world, outcome, side)
    if side == "source":
        assert "the agent was killed" in outcome["reason"]


def test_killed_on_the_way_back_it_goes_on_back(world: World) -> None:
    """Also when the commit was made: what began to go back does not turn round."""
    installed = arm(ready(world), start=["test -e /nowhere", world.start_command])
    killed_at(world, installed, "back:1")
    # Only now would the start command work on the target.
    job = json.loads((world.guest.state_dir / "job.json").read_text())
    job["request"]["start"] = [world.start_command]
    (world.guest.state_dir / "job.json").write_text(json.dumps(job))
    assert_ended(world, taken_up(world, installed), "source")


def test_killed_twice_in_a_row(world: World) -> None:
    installed = arm(ready(world))
    killed_at(world, installed, "comparing")
    killed_at(world, installed, "going:back")
    assert_ended(world, taken_up(world, installed), "source")


def test_the_supervisor_takes_up_a_killed_worker_by_itself(
    world: World, stand_in: Callable[[str, str], None]
) -> None:
    ready(world)
    stand_in("rsync", '[ "$1" = --version ] && exec {real} --version\nexec sleep 600\n')
    world.guest.start("cutover", world.cutover_request(None))
    world.guest.until_phase("copying")
    worker = json.loads((world.guest.state_dir / "worker.json").read_text())["pid"]
    os.kill(worker, signal.SIGKILL)
    status = world.guest.wait()
    assert status["state"] == "ended"
    outcome = status["result"]["outcome"]
    assert (outcome["result"], outcome["live"]) == ("reverted", "source")
    assert "the agent was killed in phase 'copying'" in outcome["reason"]
    assert outcome["clock"] == "monotonic" and outcome["downtime_s"] > 0
    world.assert_live("source")


def test_a_dead_supervisor_is_replaced_when_the_job_is_started_again(
    world: World, stand_in: Callable[[str, str], None]
) -> None:
    ready(world)
    stand_in("rsync", '[ "$1" = --version ] && exec {real} --version\nexec sleep 600\n')
    request = world.cutover_request(None)
    job_id = world.guest.start("cutover", request)
    world.guest.until_phase("copying")
    for name in ("supervisor.json", "worker.json"):
        os.kill(json.loads((world.guest.state_dir / name).read_text())["pid"], signal.SIGKILL)
    assert world.guest.wait()["state"] == "died"
    assert world.live_side() == "nothing"
    with pytest.raises(Exception, match="has to be taken up first"):
        world.guest.start("pass", world.pass_request())
    world.guest.call("start", job="cutover", job_id=job_id, request={})
    assert world.guest.wait()["result"]["outcome"]["live"] == "source"
    world.assert_live("source")


def test_a_restart_of_the_guest_in_the_middle(world: World) -> None:
    """As far as it can be played here: another boot id, the source mounted by the boot."""
    installed = arm(ready(world))
    killed_at(world, installed, "copying")
    restarted(world)
    outcome = taken_up(world, installed)
    assert_ended(world, outcome, "source")
    assert "the guest restarted in phase 'copying'" in outcome["reason"]
    assert outcome["clock"] == "wall"


def test_a_restart_while_settling_starts_the_services_again(world: World) -> None:
    """A boot starts them later than us; to find them down is no reason to go back."""
    installed = arm(ready(world))
    killed_at(world, installed, "settling")
    record = restarted(world)
    world.wait_for_writer()
    world.stop_writer()
    outcome = taken_up(world, installed)
    assert_ended(world, outcome, "target")
    assert outcome["downtime_s"] < record["up_again"]["wall"] - record["stopped"]["wall"] + 1


def test_no_service_is_started_over_an_empty_mount_point(
    world: World, stand_in: Callable[[str, str], None]
) -> None:
    ready(world)
    stand_in("mount", f'case "$*" in *"{world.data[0]}"*) exit 32;; esac\nexec {{real}} "$@"\n')
    world.guest.start("cutover", world.cutover_request(None))
    outcome = world.guest.wait()["result"]["outcome"]
    assert (outcome["result"], outcome["live"]) == ("reverted", "source"), outcome
    assert "services are left down, because their data is not mounted" in outcome["problems"]
    assert world.live_side() == "nothing" and not world.writer_is_up()
    assert list(world.data[0].iterdir()) == []


def test_a_service_that_ran_on_the_target_is_told_when_it_is_taken_back(world: World) -> None:
    ready(world)
    start = [
        world.start_command,
        f"[ $(findmnt -no SOURCE {world.data[0]}) = {world.source.loop} ]",
    ]
    world.guest.start("cutover", world.cutover_request(None, start=start))
    outcome = world.guest.wait()["result"]["outcome"]
    assert outcome["live"] == "source" and outcome["was_live_s"] > 0, outcome


def test_a_boot_that_went_on_with_the_target_is_told_when_it_is_taken_back(world: World) -> None:
    """The guest restarted on the way back, before the side files: the service came up by itself."""
    installed = arm(ready(world), start=["test -e /nowhere", world.start_command])
    killed_at(world, installed, "going:back")
    restarted(world)
    world.start_writer()
    outcome = taken_up(world, installed)
    assert outcome["live"] == "source" and outcome["was_live_s"] > 0, outcome


def test_sigterm_before_the_commit_takes_it_back(
    world: World, stand_in: Callable[[str, str], None]
) -> None:
    ready(world)
    stand_in("rsync", '[ "$1" = --version ] && exec {real} --version\nexec sleep 600\n')
    world.guest.start("cutover", world.cutover_request(None))
    world.guest.until_phase("copying")
    os.kill(json.loads((world.guest.state_dir / "worker.json").read_text())["pid"], signal.SIGTERM)
    outcome = world.guest.wait()["result"]["outcome"]
    assert (outcome["live"], outcome["reason"]) == ("source", "the cutover was stopped on request")
    world.assert_live("source")


def test_a_pass_whose_worker_was_killed_says_that_it_died(
    world: World, stand_in: Callable[[str, str], None]
) -> None:
    ready(world)
    stand_in("rsync", '[ "$1" = --version ] && exec {real} --version\nexec sleep 600\n')
    world.guest.start("pass", world.pass_request())
    world.guest.until_phase("copying")
    os.kill(json.loads((world.guest.state_dir / "worker.json").read_text())["pid"], signal.SIGKILL)
    status = world.guest.wait()
    assert status["state"] == "ended" and "process died" in status["error"]["what"]
