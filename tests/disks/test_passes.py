"""Passes under a service that writes: nothing is missed, nothing touched that is not ours."""

import mmap
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from agent_rig import Told, shell
from disks_world import World

StandIn = Callable[[str, str], None]
VERSION = '[ "$1" = --version ] && exec {real} --version\n'
AGE_S = 0.3
"""A change older than this cannot be taken for one that was made during the pass."""


@pytest.mark.parametrize("fstype", ["ext4", "xfs", "btrfs"])
def test_after_the_service_stopped_one_more_pass_makes_them_equal(
    world: World, fstype: str
) -> None:
    world.make(fstype)
    world.start_writer()
    world.ready()
    last = world.pass_()
    assert last["full"] is True
    for _ in range(3):
        time.sleep(0.3)
        last = world.pass_(last, slack_s=1)
        assert last["full"] is False
    world.stop_writer()
    time.sleep(AGE_S)
    last = world.pass_(last)
    assert last["changed_meanwhile"] == 0
    world.assert_same()


def test_all_filesystems_of_a_volume_move_in_one_pass(world: World) -> None:
    world.make("ext4", "dos", count=2).ready()
    result = world.pass_()
    assert result["files_total"] == sum(1 + sum(1 for _ in path.rglob("*")) for path in world.data)
    world.assert_same()


def test_what_the_quick_check_misses_is_healed(world: World) -> None:
    """Other bytes, the same size and the same time of modification: only the comparison sees it."""
    world.make("ext4").ready()
    last = world.pass_()
    path = world.data[0] / "disguised"
    path.write_bytes(b"a" * 5000)
    os.utime(path, (1, 1))
    last = world.pass_(last)
    path.write_bytes(b"b" * 5000)
    os.utime(path, (1, 1))
    time.sleep(AGE_S)
    result = world.pass_(last)
    assert (result["files_copied"], result["healed"]) == (0, 1)
    world.assert_same()


def test_a_store_to_a_page_that_was_dirty_already_is_not_missed(world: World) -> None:
    """ctime does not move for it; the sync before the copy makes it move at the next store."""
    world.make("ext4").ready()
    path = world.data[0] / "mapped"
    path.write_bytes(bytes(8192))
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 8192) as mapped:
        mapped[0] = 1
        last = world.pass_()
        mapped[1] = 2
        time.sleep(AGE_S)
        last = world.pass_(last, slack_s=1)
        mapped[2] = 3
        time.sleep(AGE_S)
        last = world.pass_(last, slack_s=1)
    world.assert_same()


def test_a_folder_that_was_moved_is_compared_though_its_files_are_old(world: World) -> None:
    world.make("ext4").ready()
    folder = world.data[0] / "folder"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "old").write_text("old")
    time.sleep(AGE_S)
    last = world.pass_()
    folder.rename(world.data[0] / "moved")
    result = world.pass_(last, slack_s=1)
    assert result["files_copied"] == 1
    assert result["files_compared"] >= 4
    world.assert_same()


def test_an_unmounted_source_is_not_taken_for_an_empty_one(world: World) -> None:
    """rsync would delete everything in the target."""
    world.make("ext4").ready()
    world.pass_()
    request = world.pass_request()
    shell("umount", world.data[0])
    with pytest.raises(Told, match="it has nothing") as told:
        world.guest.do("pass", request)
    assert told.value.kind == "doubt"
    shell("mount", "-o", "noatime,nodev", world.source.loop, world.data[0])
    world.assert_same()


def test_another_filesystem_over_the_source_is_a_doubt(world: World) -> None:
    world.make("ext4").ready()
    request = world.pass_request()
    shell("mount", "-t", "tmpfs", "none", world.data[0])
    with pytest.raises(Told, match="should have the root of") as told:
        world.guest.do("pass", request)
    assert told.value.kind == "doubt"


def test_what_is_mounted_below_the_source_stays_out(world: World) -> None:
    world.make("ext4").ready()
    nested = world.data[0] / "nested"
    nested.mkdir()
    (nested / "hidden").write_text("below the mount")
    shell("mount", "-t", "tmpfs", "none", nested)
    (nested / "not ours").write_text("x")
    world.pass_()
    look = world.disks.mount(world.target.loop, world.guest.root / "look", "ro")
    assert sorted(os.listdir(look / "nested")) == ["hidden"]


def test_a_target_that_somebody_mounted_is_a_doubt(world: World) -> None:
    world.make("ext4").ready()
    world.disks.mount(world.target.loop, world.guest.root / "somebody")
    with pytest.raises(Told, match="in use by somebody else") as told:
        world.pass_()
    assert told.value.kind == "doubt"


def test_a_subvolume_is_refused_rather_than_left_out(world: World) -> None:
    world.make("btrfs").ready()
    shell("btrfs", "subvolume", "create", world.data[0] / "sub" / "volume")
    with pytest.raises(Told, match="is a subvolume") as told:
        world.pass_()
    assert told.value.kind == "refused"


def test_excluded_paths_are_neither_copied_nor_left_from_the_clone(world: World) -> None:
    world.make("ext4")
    for name in ("cache", "we*ird", "cache2"):
        (world.data[0] / name).mkdir()
        (world.data[0] / name / "file").write_text("x")
    shell("sync", "-f", world.data[0])
    world.ready()
    result = world.pass_(exclude=["cache", "we*ird"])
    assert result["files_deleted"] == 4
    (world.data[0] / "cache" / "more").write_text("y")
    again = world.pass_(result, exclude=["cache", "we*ird"], slack_s=0.001)
    assert (again["files_copied"], again["healed"]) == (0, 0)
    look = world.disks.mount(world.target.loop, world.guest.root / "look", "ro")
    assert not (look / "cache").exists() and not (look / "we*ird").exists()
    assert (look / "cache2" / "file").exists()


def test_locked_files_are_copied_with_their_locks_again_and_again(world: World) -> None:
    """rsync copies no chattr flag, and cannot replace a file that has one."""
    world.make("ext4")
    log, fixed = world.data[0] / "log", world.data[0] / "fixed"
    log.write_text("one\n")
    fixed.write_text("fixed")
    shell("chattr", "+a", log)
    shell("chattr", "+i", fixed)
    try:
        world.ready()
        last = world.pass_()
        for line in ("two\n", "three\n"):
            with log.open("a") as file:
                file.write(line)
            last = world.pass_(last)
        look = world.disks.mount(world.target.loop, world.guest.root / "look", "ro")
        lines = shell("lsattr", look / "log", look / "fixed").splitlines()
        flags = {Path(line.split()[1]).name: line.split()[0] for line in lines}
        assert "a" in flags["log"] and "i" in flags["fixed"]
        assert (look / "log").read_text() == "one\ntwo\nthree\n"
    finally:
        shell("chattr", "-a", log)
        shell("chattr", "-i", fixed)


def test_a_target_without_room_for_a_second_copy_is_written_in_place(world: World) -> None:
    world.make("ext4", size_mib=128)
    big = world.data[0] / "big"
    big.write_bytes(os.urandom(70 * 1024 * 1024))
    world.ready()
    last = world.pass_()
    with big.open("r+b") as file:
        file.seek(33 * 1024 * 1024)
        file.write(os.urandom(1000))
    result = world.pass_(last)
    assert result["files_copied"] >= 1
    world.assert_same()


def test_a_mover_that_lies_is_found_out(world: World, stand_in: StandIn) -> None:
    """It ends with 0 and has copied nothing: the comparison fails the pass with the paths."""
    world.make("ext4").ready()
    for number in range(30):
        (world.data[0] / "sub" / f"new{number:02}").write_text("x")
    time.sleep(AGE_S)
    stand_in("rsync", VERSION + "exit 0\n")
    with pytest.raises(Told, match="differ after they were copied twice") as told:
        world.pass_(slack_s=0.001)
    assert told.value.what.startswith("31 entries differ")
    assert told.value.what.count("missing in the target") >= 19
    assert told.value.what.endswith("and 11 more")


def test_a_pass_is_seen_by_nobody(world: World, stand_in: StandIn) -> None:
    world.make("ext4").ready()
    stand_in("rsync", VERSION + 'sleep 1.5\nexec {real} "$@"\n')
    before = world.mounts()
    assert before
    world.guest.start("pass", world.pass_request())
    world.guest.until_phase("copying")
    assert world.mounts() == before
    status = world.guest.wait()
    assert status["error"] is None
    assert world.mounts() == before


def test_the_source_is_not_written_by_passes(world: World) -> None:
    """Not even its access times."""
    world.make("ext4")
    shell("mount", "-o", "remount,strictatime,nodev", world.data[0])
    world.ready()
    shell("sync", "-f", world.data[0])
    paths = list(world.data[0].rglob("*"))
    before = [os.lstat(path).st_atime_ns for path in paths]
    image = world.source.image.read_bytes()
    last = world.pass_()
    world.pass_(last)
    assert [os.lstat(path).st_atime_ns for path in paths] == before
    shell("sync", "-f", world.data[0])
    changed = sum(a != b for a, b in zip(image, world.source.image.read_bytes(), strict=True))
    assert changed < 4096, "more than a superblock's worth was written to the source"


def test_a_pass_that_is_stopped_lets_go_of_everything(world: World, stand_in: StandIn) -> None:
    world.make("ext4").ready()
    stand_in("rsync", VERSION + "exec sleep 600\n")
    world.guest.start("pass", world.pass_request())
    world.guest.until_phase("copying")
    assert world.guest.call("stop") == {"stopped": True, "state": "ended"}
    assert "stopped on request" in world.guest.status()["error"]["what"]
    shell("umount", world.data[0])
    shell("mount", "-o", "noatime,nodev", world.source.loop, world.data[0])


def test_one_file_that_cannot_be_copied_fails_the_pass_with_rsync_s_words(
    world: World, stand_in: StandIn
) -> None:
    world.make("ext4").ready()
    stand_in("rsync", VERSION + "echo 'rsync: read errors: Input/output error (5)' >&2\nexit 23\n")
    with pytest.raises(Told, match="Partial transfer due to error") as told:
        world.pass_()
    assert "Input/output error" in told.value.what


def test_bandwidth_is_limited_when_it_is_asked_for(world: World) -> None:
    world.make("ext4").ready()
    (world.data[0] / "big").write_bytes(os.urandom(3_000_000))
    began = time.monotonic()
    world.pass_(bwlimit_bytes_s=1_500_000)
    assert time.monotonic() - began > 1.2
