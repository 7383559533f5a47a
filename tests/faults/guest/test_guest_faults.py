"""What a guest does to the agent in it; afterwards the service runs on exactly one side.

Loop devices and real filesystems. What needs a whole guest (a reset, a lost way in, systemd's
units) is in ``tests/faults/lab``; every kill within a cutover is in ``tests/disks``.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from agent_rig import MIB, Guest, Json, Told, shell
from disks_world import World
from mirror_world import Mirrored, end_mirror

StandIn = Callable[[str, str], None]
VERSION = '[ "$1" = --version ] && exec {real} --version\n'
JUMPING = Path(__file__).with_name("jumping_agent.py")


def cut_over(world: World, **more: object) -> Json:
    world.guest.start("cutover", world.cutover_request(None, **more))
    status = world.guest.wait(120)
    assert status["state"] == "ended", status
    outcome: Json = status["result"]["outcome"]
    return outcome


def goes_back(world: World, match: str, **more: object) -> Json:
    outcome = cut_over(world, **more)
    assert (outcome["result"], outcome["live"]) == ("reverted", "source")
    assert match in outcome["reason"], outcome["reason"]
    assert "while going back" not in outcome["reason"], outcome["reason"]
    world.assert_live("source")
    return outcome


def goes_on(world: World) -> None:
    """The way on: the next attempt works, with nothing mended by hand."""
    outcome = cut_over(world)
    assert outcome["result"] == "committed", outcome
    world.assert_live("target")


@pytest.fixture
def armed(world: World) -> World:
    world.make("ext4")
    world.start_writer()
    return world.ready()


# ---- killed in a pass ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("program", "phase"),
    [("mount", "armed"), ("rsync", "copying"), ("sync", "comparing"), ("umount", "comparing")],
)
def test_a_pass_whose_agent_is_killed_is_made_again(
    armed: World, stand_in: StandIn, program: str, phase: str
) -> None:
    """At its beginning, in the copy, before the comparison and at the very end."""
    once = armed.guest.root / "killed"
    stand_in(
        program,
        (VERSION if program == "rsync" else "")
        + f'[ -e {once} ] && exec {{real}} "$@"\ntouch {once}\nkill -9 $PPID\nsleep 1\n',
    )
    before = armed.mounts()
    armed.guest.start("pass", armed.pass_request())
    status = armed.guest.wait()
    assert "process died" in status["error"]["what"]
    assert once.exists()
    assert armed.mounts() == before
    armed.assert_live("source")
    armed.stop_writer()
    time.sleep(0.3)
    armed.pass_()
    armed.assert_same()


# ---- no room -------------------------------------------------------------------------------------


@pytest.fixture
def cramped(world: World) -> Iterator[World]:
    """A guest whose root disk has next to no room: here the folder that the agent keeps."""
    base = world.guest.root / "base"
    base.mkdir()
    shell("mount", "-t", "tmpfs", "-o", "size=2m,mode=700", "none", base)
    world.make("ext4")
    world.start_writer()
    yield world
    (base / "full").unlink(missing_ok=True)
    end_mirror(world.guest)
    world.guest.kill_everything()


@pytest.fixture
def small(cramped: World) -> World:
    return cramped.ready()


def fill(small: World) -> str:
    """A command that leaves not one byte in the folder of the agent."""
    return f"cat /dev/zero > {small.guest.root / 'base' / 'full'} 2>/dev/null; true"


def test_nothing_is_begun_on_a_root_disk_that_is_full(small: World) -> None:
    pid = small.pid_file.read_text()
    shell("sh", "-c", fill(small))
    with pytest.raises(Told, match="No space left on device"):
        small.guest.start("pass", small.pass_request())
    with pytest.raises(Told, match="No space left on device"):
        small.guest.start("cutover", small.cutover_request(None))
    assert small.pid_file.read_text() == pid
    small.assert_live("source")
    (small.guest.root / "base" / "full").unlink()
    goes_on(small)


def test_a_root_disk_that_fills_up_in_the_cutover_does_not_end_it_half_way(small: World) -> None:
    outcome = cut_over(small, stop=[fill(small), small.stop_command])
    assert outcome["live"] == small.live_side()
    small.assert_live(outcome["live"])
    if outcome["live"] == "source":
        assert "No space left on device" in outcome["reason"]


def test_a_root_disk_that_fills_up_after_the_commit_does_not_end_it_half_way(small: World) -> None:
    outcome = cut_over(small, start=[fill(small), small.start_command])
    assert outcome["live"] == small.live_side()
    small.assert_live(outcome["live"])


@pytest.fixture
def mirrored(cramped: World, tracking: None) -> Mirrored:
    mirrored = Mirrored(cramped).track()
    cramped.clone()
    mirrored.begin()
    mirrored.until_compared()
    return mirrored


def emptied(small: World) -> None:
    (small.guest.root / "base" / "full").unlink()


def test_a_root_disk_that_is_full_does_not_end_the_mirror(mirrored: Mirrored) -> None:
    world, worker = mirrored.world, mirrored.worker()
    shell("sh", "-c", fill(world))
    passes = mirrored.tell("figures")["passes"][-1]["number"]
    deadline = time.monotonic() + 30
    while mirrored.tell("figures")["passes"][-1]["number"] < passes + 4:  # the service writes
        assert time.monotonic() < deadline, mirrored.status()
        time.sleep(0.2)
    emptied(world)
    log: list[str] = []
    while not any("no progress was written for" in line for line in log):
        assert time.monotonic() < deadline, log
        time.sleep(0.1)
        log = mirrored.status()["log_tail"]
    # Of the first line there may be nothing: the log lies on that disk as well.
    assert sum("No space left on device" in line for line in log) <= 2, log
    mirrored.until_compared()
    assert mirrored.worker() == worker
    outcome, _ = mirrored.cut_over()
    assert outcome["result"] == "committed", outcome
    world.assert_live("target")


def test_pairs_that_cannot_be_written_down_are_not_begun(cramped: World, tracking: None) -> None:
    """By them a mirror that is begun again finds its targets."""
    mirrored = Mirrored(cramped).track()
    cramped.clone()
    shell("sh", "-c", fill(cramped))
    for _ in range(2):
        with pytest.raises(Told, match="No space left on device"):
            mirrored.begin()
        assert mirrored.tell("figures")["holds"] == []
    cramped.assert_live("source")
    emptied(cramped)
    mirrored.begin()
    mirrored.until_compared()


def test_a_root_disk_that_fills_up_in_a_cutover_with_the_mirror(mirrored: Mirrored) -> None:
    world = mirrored.world
    outcome, _ = mirrored.cut_over(stop=[fill(world), world.stop_command])
    assert outcome["result"] == "committed", outcome
    world.assert_live("target")


def test_a_root_disk_that_fills_up_and_a_target_that_cannot_be_used(mirrored: Mirrored) -> None:
    """There is room for the way back, and for what the mirror has to write down on it."""
    world, worker = mirrored.world, mirrored.worker()
    dies = f'test "$(cat {world.side})" = source || exit 1; {world.start_command}'
    stop = [fill(world), f"{world.stop_command} || true"]
    outcome, _ = mirrored.cut_over(stop=stop, start=[dies])
    assert (outcome["result"], outcome["live"]) == ("reverted", "source"), outcome
    assert "while going back" not in outcome["reason"], outcome["reason"]
    world.assert_live("source")
    assert mirrored.worker() == worker
    emptied(world)
    mirrored.until_compared()
    outcome, _ = mirrored.cut_over()
    assert outcome["result"] == "committed", outcome
    world.assert_live("target")


def test_a_target_that_is_too_small_fails_the_pass_and_the_cutover(world: World) -> None:
    world.make("ext4", size_mib=96)
    world.start_writer()
    uuid = shell("blkid", "-s", "UUID", "-o", "value", world.source.loop).strip()
    world.blank()
    shell("mkfs.ext4", "-q", "-U", uuid, "-L", "data0", world.target.loop, f"{40 * 1024}k")
    (world.data[0] / "big").write_bytes(os.urandom(44 * MIB))
    shell("sync", "-f", world.data[0])
    with pytest.raises(Told, match="No space left on device") as told:
        world.pass_()
    assert told.value.error["data"] == "the source was only read"
    goes_back(world, "No space left on device")


# ---- services ------------------------------------------------------------------------------------


def test_a_service_that_stops_slowly_is_waited_for(armed: World) -> None:
    outcome = cut_over(armed, stop=[f"sleep 2; {armed.stop_command}"])
    assert outcome["result"] == "committed"
    assert outcome["parts"]["stop"] >= 2
    armed.assert_live("target")


def test_a_service_that_does_not_stop_keeps_running_where_it_is(armed: World) -> None:
    pid = armed.pid_file.read_text()
    goes_back(armed, "did not end within", stop=["sleep 600"], start=["true"], deadline_s=2)
    assert armed.pid_file.read_text() == pid
    goes_on(armed)


def test_a_service_that_starts_on_the_target_and_dies_at_once(armed: World) -> None:
    """Its start command tells: a service of systemd is watched while it settles (lab)."""
    dies = (
        f'test "$(cat {armed.side})" = source || {{ {armed.start_command} '
        f"sleep 0.3; kill $(cat {armed.pid_file}); sleep 0.2; echo died at once >&2; exit 1; }}; "
        + armed.start_command
    )
    goes_back(armed, "died at once", start=[dies], stop=[f"{armed.stop_command} || true"])
    goes_on(armed)


def test_somebody_who_opens_the_mount_again_and_again(armed: World) -> None:
    """It is there before the unmount, in the moment of it, and after the target is mounted."""
    code = (
        f"import os, time\nwhile True:\n try: fd = os.open({str(armed.data[0] / 'sub')!r}, 0)\n"
        " except OSError: continue\n time.sleep(0.02); os.close(fd); time.sleep(0.02)"
    )
    restless = subprocess.Popen([sys.executable, "-c", code], cwd="/")
    try:
        outcome = cut_over(armed)
        armed.assert_live(outcome["live"])
        if outcome["live"] == "source":
            assert f"{restless.pid} (" in outcome["reason"]
    finally:
        restless.kill()
        restless.wait(10)
    if outcome["live"] == "source":
        goes_on(armed)


def test_somebody_who_mounts_the_source_again_in_the_middle(armed: World) -> None:
    """As an automounter would. Either it comes too late, or the cutover is taken back for it."""
    command = f"mount -o noatime,nodev {armed.source.loop} {armed.data[0]} 2>/dev/null"
    nosy = subprocess.Popen(
        ["sh", "-c", f"while :; do mountpoint -q {armed.data[0]} || {command}; done"], cwd="/"
    )
    try:
        outcome = cut_over(armed)
    finally:
        nosy.kill()
        nosy.wait(10)
    assert armed.live_side() == outcome["live"], outcome
    armed.assert_live(outcome["live"])


# ---- clocks --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("phase", "seconds"),
    [("stopping", -7200), ("copying", 86400), ("committing", -7200), ("starting", 86400)],
)
def test_a_clock_that_is_set_in_the_middle_of_the_cutover(
    armed: World, phase: str, seconds: int
) -> None:
    request = armed.cutover_request(None)
    job = {"job": "cutover", "job_id": "jumps", "request": request}
    state = armed.guest.state_dir
    for name, content in (("job.json", job), ("switch.json", request)):
        (state / name).write_text(json.dumps(content))
    installed = str(next(state.glob("agent-*.py")))
    argv = [sys.executable, "-I", str(JUMPING), installed, str(state), phase, str(seconds)]
    assert subprocess.run(argv, timeout=120, check=False).returncode == 0
    outcome = armed.guest.status()["result"]["outcome"]
    assert outcome["result"] == "committed", outcome
    assert outcome["clock"] == "monotonic" and 0 < outcome["downtime_s"] < 60
    assert outcome["final_pass"]["files_compared"] > 0
    armed.assert_live("target")


@pytest.mark.parametrize("seconds", [-3600.0, 3600.0])
def test_a_clock_that_was_set_between_two_passes_voids_what_was_known(
    armed: World, seconds: float
) -> None:
    last = armed.pass_()
    last["clock_offset"] += seconds
    again = armed.pass_(last)
    assert again["full"] is True
    assert "the wall clock was moved" in " ".join(again["notes"])


# ---- two at once ---------------------------------------------------------------------------------


def test_of_two_transfers_that_claim_a_volume_at_once_one_is_refused(
    guest: Guest, world: World
) -> None:
    """Two machines share nothing but the guest. Eight try, all in the same moment, five times."""
    world.make("ext4")
    world.guest.call("uninstall", files=[])
    program = (
        "import sys, time; sys.path[:0] = {path!r}\n"
        "from pathlib import Path\n"
        "from agent_rig import Guest, Told\n"
        "guest = Guest(Path({root!r}), {transfer!r})\n"
        "time.sleep(max(0, {when!r} - time.time()))\n"
        "try: guest.install({source!r})\n"
        "except Told as told: print(told.kind, told.what)\n"
        "else: print('claimed')\n"
    )
    for attempt in range(5):
        when = time.time() + 2
        several = [
            subprocess.Popen(
                [
                    sys.executable,
                    "-c",
                    program.format(
                        path=sys.path,
                        root=str(guest.root),
                        transfer=f"tr-{attempt}-{number}",
                        when=when,
                        source=world.source.ref,
                    ),
                ],
                stdout=subprocess.PIPE,
                text=True,
            )
            for number in range(8)
        ]
        said = [one.communicate(timeout=60)[0].strip() for one in several]
        assert said.count("claimed") == 1, said
        winner = said.index("claimed")
        for words in said[:winner] + said[winner + 1 :]:
            assert words.startswith("refused ") and f"tr-{attempt}-{winner}" in words
        Guest(guest.root, f"tr-{attempt}-{winner}").call("uninstall", files=[])
