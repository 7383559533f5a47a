"""The cutover with a service that really stops and starts: it ends on exactly one side."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from agent_rig import Json, Told, shell
from disks_world import World, assert_same_trees

StandIn = Callable[[str, str], None]
VERSION = '[ "$1" = --version ] && exec {real} --version\n'


def cut_over(world: World, last: Json | None, **more: object) -> tuple[Json, Json]:
    """-> (outcome, status)"""
    world.guest.start("cutover", world.cutover_request(last, **more))
    status = world.guest.wait()
    assert status["state"] == "ended", status
    outcome: Json = status["result"]["outcome"]
    return outcome, status


def running(world: World, fstype: str = "ext4", table: str = "", count: int = 1) -> Json:
    """A world with a service, and a target that a pass has brought near."""
    armed(world, fstype, table, count)
    return world.pass_()


def armed(world: World, fstype: str = "ext4", table: str = "", count: int = 1) -> None:
    """The same without a pass: the final one then compares everything."""
    world.make(fstype, table, count)
    world.start_writer()
    world.ready()


@pytest.mark.parametrize(
    ("fstype", "table"), [("ext4", ""), ("ext4", "dos"), ("xfs", "gpt"), ("xfs", ""), ("btrfs", "")]
)
def test_the_service_runs_on_the_target_afterwards(world: World, fstype: str, table: str) -> None:
    last = running(world, fstype, table=table)
    outcome, status = cut_over(world, world.pass_(last), settle_s=1)
    assert (outcome["result"], outcome["live"], outcome["reason"]) == ("committed", "target", "")
    assert outcome["settled"] is True and outcome["clock"] == "monotonic"
    assert status["error"] is None and status["result"]["within_budget"] is True
    parts = outcome["parts"]
    assert set(parts) == {
        "stop", "unmount", "copy", "compare", "release", "commit", "mount", "start",
    }  # fmt: skip
    assert 0 < sum(parts.values()) <= outcome["downtime_s"] + 0.01
    assert outcome["final_pass"]["final"] is True
    world.assert_live("target")


def test_a_mount_of_the_disk_that_was_not_planned_for_is_not_taken_away(world: World) -> None:
    """It would be unmounted with the rest, and nobody would mount it again."""
    armed(world, "ext4", "gpt", count=2)
    outcome, _ = cut_over(world, None, filesystems=world.filesystems[:1])
    assert (outcome["result"], outcome["downtime_s"]) == ("reverted", 0.0), outcome
    assert f"mounted at {world.data[1]} too, which was not planned for" in outcome["reason"]
    world.assert_live("source")


@pytest.mark.parametrize("fstype", ["ext4", "xfs", "btrfs"])
def test_nothing_is_lost(world: World, fstype: str) -> None:
    """The service is not started again, so both sides can be compared by programs of others."""
    last = running(world, fstype)
    outcome, _ = cut_over(world, last, start=["true"])
    assert outcome["result"] == "committed", outcome["reason"]
    assert not world.writer_is_up()
    options = "ro,nouuid" if fstype == "xfs" else "ro"
    old = world.disks.mount(world.source.loop, world.guest.root / "old", options)
    assert_same_trees(old, world.data[0])


def test_going_back_brings_the_source_up_again(world: World) -> None:
    last = running(world)
    cut_over(world, last)
    world.assert_live("target")
    (world.data[0] / "later").write_text("written on the target")
    world.guest.start("cutback", {})
    status = world.guest.wait()
    assert status["error"] is None
    assert status["result"]["outcome"]["result"] == "reverted"
    assert status["result"]["outcome"]["downtime_s"] > 0
    world.assert_live("source")
    assert not (world.data[0] / "later").exists()


def test_going_back_from_a_target_that_somebody_took_out(world: World) -> None:
    last = running(world)
    world.target.linked()
    cut_over(world, last)
    world.target_is_taken()
    world.guest.start("cutback", {})
    outcome = world.guest.wait()["result"]["outcome"]
    assert (outcome["result"], outcome["live"], outcome["problems"]) == ("reverted", "source", [])
    world.assert_live("source")


def test_going_back_twice_is_refused_and_harmless(world: World) -> None:
    running(world)
    with pytest.raises(Told, match="there was no cutover"):
        world.guest.start("cutback", {})
    world.guest.start("cutback", world.cutover_request(None))
    status = world.guest.wait()
    assert status["result"]["outcome"]["live"] == "source"
    assert "the source is the live side already" in status["result"]["outcome"]["reason"]
    world.assert_live("source")


def test_going_back_ends_with_a_reason_though_the_target_is_not_what_it_was(world: World) -> None:
    running(world)
    request = world.cutover_request(None)
    for filesystem in request["filesystems"]:
        filesystem["target"] = {**filesystem["target"], "size_bytes": 4096}
    world.guest.start("cutback", request)
    status = world.guest.wait()
    assert status["result"]["outcome"]["live"] == "source"
    assert "the source is the live side already" in status["result"]["outcome"]["reason"]
    world.assert_live("source")


def test_every_filesystem_of_the_volume_moves_or_none(world: World, stand_in: StandIn) -> None:
    last = running(world, table="gpt", count=2)
    # The second mount of the target fails: the first has to come back as well.
    second = world.target.device(2)
    fails = f'*"{second} "*) echo "mount: injected" >&2; exit 32;;'
    stand_in("mount", f'case "$*" in */mnt/*) ;; {fails} esac\nexec {{real}} "$@"\n')
    outcome, status = cut_over(world, last)
    assert outcome["result"] == "reverted" and "injected" in outcome["reason"]
    assert status["error"]["kind"] == "failed"
    world.assert_live("source")
    (world.guest.root / "bin" / "mount").unlink()
    outcome, _ = cut_over(world, world.pass_(last))
    assert outcome["result"] == "committed", outcome
    world.assert_live("target")


def test_mounts_on_top_of_mounts_and_binds_come_back_in_order(world: World) -> None:
    """The second filesystem lies below the first, and a part of the first is seen elsewhere."""
    world.make("ext4", "gpt", count=2)
    first, second = world.data
    shell("umount", second)
    inner = first / "inner"
    inner.mkdir()
    world.data[1] = world.disks.mount(world.source.device(2), inner, "noatime,nodev")
    bind = world.guest.root / "bound"
    bind.mkdir()
    shell("mount", "--bind", first / "sub", bind)
    shell("mount", "-o", "remount,bind,ro,nosuid", bind)
    world.disks.mounted.append(bind)
    world.ready()
    request = world.cutover_request(world.pass_(), stop=["true"], start=["true"])
    request["filesystems"][0]["mounts"].append({"target": str(bind), "root": "/sub", "by": "hand"})
    world.guest.start("cutover", request)
    status = world.guest.wait()
    assert status["error"] is None, status
    assert world.live_side() == "target"
    options = shell("findmnt", "-n", "-o", "VFS-OPTIONS,FSROOT", "--mountpoint", bind).split()
    assert set(options[0].split(",")) >= {"ro", "nosuid"} and options[1] == "/sub"
    world.guest.start("cutback", {})
    assert world.guest.wait()["error"] is None
    assert world.live_side() == "source"


# ---- what stops it before anything is touched ----------------------------------------------------


def refused(world: World, last: Json | None, match: str, **more: object) -> None:
    """Nothing was stopped: the service has not noticed."""
    pid = world.pid_file.read_text()
    outcome, _ = cut_over(world, last, **more)
    assert (outcome["result"], outcome["downtime_s"]) == ("reverted", 0.0)
    assert match in outcome["reason"]
    assert world.pid_file.read_text() == pid
    world.assert_live("source")


def test_a_void_watermark_is_noticed_before_anything_is_stopped(world: World) -> None:
    last = running(world)
    refused(world, {**last, "clock_offset": last["clock_offset"] - 5}, "the wall clock was moved")
    refused(world, {**last, "boot_id": "another"}, "the guest restarted")


def test_a_side_file_that_was_edited_stops_it(world: World) -> None:
    last = running(world)
    world.side.write_text("edited by hand\n")
    outcome, _ = cut_over(world, last)
    assert "is not what it should be" in outcome["reason"]
    assert world.side.read_text() == "edited by hand\n"
    assert world.live_side() == "source"


def test_a_mount_that_was_not_planned_for_stops_it(world: World) -> None:
    last = running(world)
    elsewhere = world.disks.mount(world.source.loop, world.guest.root / "elsewhere")
    refused(world, last, "is mounted at", match_nothing=None)
    shell("umount", elsewhere)


def test_a_target_that_is_another_filesystem_stops_it(world: World) -> None:
    last = running(world)
    shell("tune2fs", "-U", "random", world.target.loop, check=False)
    shell("mkfs.ext4", "-q", "-F", world.target.loop)
    refused(world, last, "the target")


# ---- what makes it go back -----------------------------------------------------------------------


def goes_back(world: World, last: Json | None, match: str, **more: object) -> Json:
    outcome, status = cut_over(world, last, **more)
    assert (outcome["result"], outcome["live"]) == ("reverted", "source")
    assert match in outcome["reason"], outcome["reason"]
    assert "while going back" not in outcome["reason"]
    assert status["error"]["what"].startswith("the cutover ended 'reverted'")
    assert outcome["downtime_s"] > 0
    world.assert_live("source")
    return outcome


def test_a_stop_command_that_fails(world: World) -> None:
    armed(world)
    goes_back(world, None, "'exit 3' ended with 3", stop=[world.stop_command, "exit 3"])


def test_a_stop_command_that_hangs_is_cut_off_by_the_deadline(world: World) -> None:
    armed(world)
    outcome = goes_back(
        world, None, "did not end within", stop=[world.stop_command, "sleep 600"], deadline_s=1.5
    )
    assert 1.4 < outcome["downtime_s"] < 15


@pytest.mark.parametrize("how", ["cwd", "fd"])
def test_somebody_else_on_the_mount_is_named(world: World, how: str) -> None:
    armed(world)
    code = "import os,time; os.chdir(p)" if how == "cwd" else "import os,time; f = open(p + '/sub')"
    if how == "fd":
        (world.data[0] / "held").touch()
        code = "import os,time; f = open(p + '/held')"
    program = f"p = {str(world.data[0])!r}; {code}; os.write(1, b'x'); time.sleep(600)"
    holder = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, cwd="/")
    try:
        assert holder.stdout is not None and holder.stdout.read(1)
        outcome = goes_back(world, None, f"{holder.pid} ({how}")
        assert "held by process python" in outcome["reason"]
    finally:
        holder.kill()
        holder.wait(timeout=10)
        holder.stdout.close()  # type: ignore[union-attr]


def test_a_mount_in_another_namespace_is_found_by_the_exclusive_open(world: World) -> None:
    """umount succeeds here, the filesystem lives on there: only O_EXCL sees it."""
    armed(world)
    program = (
        "import ctypes, subprocess, os, time; ctypes.CDLL(None).unshare(0x20000);"
        "subprocess.run(['mount', '--make-rprivate', '/'], check=True);"
        "os.write(1, b'x'); time.sleep(600)"
    )
    holder = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, cwd="/")
    try:
        assert holder.stdout is not None and holder.stdout.read(1)
        outcome = goes_back(world, None, "is still held by somebody")
        assert f"{holder.pid} (namespace" in outcome["reason"]
    finally:
        holder.kill()
        holder.wait(timeout=10)
        holder.stdout.close()  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("program", "text", "match"),
    [
        ("umount", 'echo "umount: injected" >&2; exit 32\n', "umount"),
        ("rsync", VERSION + "echo 'rsync: injected' >&2; exit 23\n", "rsync: injected"),
        (
            "rsync",
            VERSION + 'exec {real} --exclude="file1*" "$@"\n',
            "differ after they were copied",
        ),
        ("rsync", VERSION + "kill -9 $PPID\n", "ended without a word"),
        ("sync", "exit 5\n", "sync of"),
    ],
)
def test_a_fault_in_the_final_pass(
    world: World, stand_in: StandIn, program: str, text: str, match: str
) -> None:
    armed(world)
    if program == "umount":
        text = f'case "$*" in {world.data[0]}) {text.strip()};; esac\nexec {{real}} "$@"\n'
    time.sleep(0.3)
    stand_in(program, text)
    goes_back(world, None, match)


def test_a_final_copy_past_the_deadline_is_taken_back(world: World, stand_in: StandIn) -> None:
    armed(world)
    stand_in("rsync", VERSION + "exec sleep 600\n")
    outcome = goes_back(world, None, "--cutover-timeout", deadline_s=2)
    assert outcome["downtime_s"] < 20


def test_a_start_command_that_fails_after_the_commit(world: World) -> None:
    """It fails on the target and works on the source, as a service does that dislikes its data."""
    armed(world)
    picky = f'test "$(cat {world.side})" = source || {{ echo "will not" >&2; exit 1; }}'
    goes_back(world, None, "will not", start=[f"{picky}; {world.start_command}"])


def test_a_service_that_dies_while_settling(world: World) -> None:
    """The mount is lost a moment after the start."""
    armed(world)
    late = f'test "$(cat {world.side})" = source || (sleep 1; umount -l {world.data[0]}) &'
    outcome, _ = cut_over(
        world,
        None,
        start=[f"{late} true"],
        stop=[world.stop_command + "; true"],
        settle_s=20,
    )
    assert outcome["result"] == "reverted" and "while settling" in outcome["reason"]
    assert world.live_side() == "source" and world.side.read_text() == "source\n"


def test_the_target_is_never_half_live(world: World, stand_in: StandIn) -> None:
    """Two side files; the write of the last fails: the first is brought back."""
    armed(world)
    first = world.guest.root / "etc" / "fstab"
    first.write_text("source\n")
    blocked = world.guest.root / "etc" / "blocked"
    files = [World.side_file(first), World.side_file(world.side)]
    in_the_way = f"mkdir {world.side}"
    outcome, _ = cut_over(
        world,
        None,
        sides={"files": files},
        stop=[
            world.stop_command,
            f"mkdir {blocked}; mv {world.side} {blocked}/x; {in_the_way}",
        ],
        start=[f"rmdir {world.side}; mv {blocked}/x {world.side}; true", world.start_command],
    )
    assert outcome["result"] == "reverted"
    assert first.read_text() == "source\n" and world.side.read_text() == "source\n"
    assert world.live_side() == "source"
    world.wait_for_writer()


def test_a_stop_is_refused_once_something_was_stopped(world: World, stand_in: StandIn) -> None:
    armed(world)
    stand_in("rsync", VERSION + 'sleep 2\nexec {real} "$@"\n')
    world.guest.start("cutover", world.cutover_request(None))
    world.guest.until_phase("copying")
    with pytest.raises(Told, match="in phase 'copying' and ends by itself") as told:
        world.guest.call("stop")
    assert told.value.kind == "refused"
    assert world.guest.wait()["result"]["outcome"]["result"] == "committed"
    world.assert_live("target")


def test_starting_the_same_cutover_again_is_the_same_as_once(world: World) -> None:
    armed(world)
    request = world.cutover_request(None)
    job_id = world.guest.start("cutover", request)
    world.guest.start("cutover", request, job_id)
    first = world.guest.wait()
    again = world.guest.call("start", job="cutover", job_id=job_id, request=request)
    assert again["state"] == "ended"
    assert world.guest.status()["result"] == first["result"]
    world.assert_live("target")


def test_what_the_service_left_running_outlives_the_cutover(world: World) -> None:
    armed(world)
    cut_over(world, None)
    supervisor = json.loads((world.guest.state_dir / "supervisor.json").read_text())["pid"]
    deadline = time.monotonic() + 20
    while Path(f"/proc/{supervisor}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    world.assert_live("target")
