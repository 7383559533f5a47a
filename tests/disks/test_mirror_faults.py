"""What goes wrong is noticed: lost events, changed bytes, a dead process, bad disks."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from agent_rig import MIB, Told, shell
from disks_world import World
from mirror_world import Direct, Mirrored, differing_bytes, hidden

pytestmark = pytest.mark.usefixtures("tracking")

SLOW = 24 * MIB
SKIPPING = """
def skipping(self, chunks, throttle, tick, copy=Pair.copy):
    write, skipped, one_at_a_time = self.target.write, [], threading.Lock()

    def all_but_one(offset, view):
        with one_at_a_time, aligned_memory() as there:
            self.target.read(offset, there[: len(view)])
            if skipped or same(view, there[: len(view)]):
                write(offset, view)
            else:
                skipped.append(offset)

    if {when}:
        self.target.write = all_but_one
    try:
        return copy(self, chunks, throttle, tick)
    finally:
        vars(self.target).pop("write", None)


Pair.copy = skipping
"""
# Which has no pace.
IN_THE_FINAL_COPY = 'not hasattr(throttle.share, "__self__")'


def everything(world: World) -> int:
    """But for what is withheld."""
    size: int = world.source.ref["size_bytes"]
    return size - 2 * MIB


# ---- events that the kernel told nobody ----------------------------------------------------------


def test_a_tracker_that_drops_one_write_in_a_thousand_fails_the_verification(world: World) -> None:
    mirror = Mirrored(
        world.make("ext4", size_mib=160), drop_every=1000, counters=False, in_flight_s=0.5
    )
    file = Direct(world, 96)
    mirror.track()
    world.clone()
    file.write(file.places[:3000])
    mirror.begin(bwlimit_bytes_s=64 * MIB)
    figures = mirror.until(lambda f: f["notes"], "find what was dropped")
    assert re.search(
        r"\d chunks of 4096 bytes .* differed though nothing told", figures["notes"][0]
    )
    assert "copied again and everything is compared once more" in figures["notes"][0]
    # Behind where the second comparison is now, and it comes to them before it has an end.
    file.write(reversed(file.places[3000:]))
    status = mirror.wait()
    assert status["state"] == "ended"
    assert "verification failed" in status["error"]["what"], status
    assert "the source stays the live side" in status["error"]["data"]
    assert status["error"]["hint"]
    assert hidden(world)


def test_the_disks_own_count_notices_a_dropped_write_too(world: World) -> None:
    mirror = Mirrored(world.make("ext4", size_mib=96), drop_every=1000)
    file = Direct(world, 32)
    mirror.track()
    world.clone()
    mirror.begin()
    mirror.until_compared()
    file.write(file.places[:1500])
    figures = mirror.until(lambda f: f["notes"], "notice")
    assert re.search(r"counted \d+ sectors more than were traced", figures["notes"][0])
    figures = mirror.until_compared()
    # One write: with blocks of 1 KiB, as this ext4 has, it may lie in two chunks of 4.
    assert 1 <= sum(one["differed_after_loss"] for one in figures["passes"]) <= 2
    assert sum(one["healed"] for one in figures["passes"]) == 0, "no fault was found"
    mirror.finish_by_hand(writer=False)
    assert differing_bytes(world) == ""


# ---- a target that is not what it was made to be -------------------------------------------------


def test_a_chunk_that_was_changed_behind_its_back_is_healed_and_told(world: World) -> None:
    mirror = Mirrored(world.make("ext4", size_mib=96), in_flight_s=0.5)
    mirror.track()
    world.clone()
    mirror.begin(bwlimit_bytes_s=SLOW)
    mirror.until(lambda f: f["phase"] == "comparing", "compare")
    at = 80 * MIB
    with world.target.image.open("r+b") as image:
        image.seek(at)
        image.write(b"flipped")
    figures = mirror.until(lambda f: f["notes"], "find it")
    assert f"1 chunks of 4096 bytes of {world.source.loop} differed" in figures["notes"][0]
    assert f"(at {at})" in figures["notes"][0]
    mirror.unlimited()
    figures = mirror.until_compared()
    assert sum(one["healed"] for one in figures["passes"]) == 1
    mirror.finish_by_hand(writer=False)
    assert differing_bytes(world) == ""


def test_a_copy_that_always_skips_a_chunk_fails_the_verification(world: World) -> None:
    mirror = Mirrored(world.make("ext4", size_mib=96), in_flight_s=0.2)
    file = Direct(world, 32)
    mirror.mutate(SKIPPING.format(when="True")).track()
    world.clone()
    file.write(file.places[:200])
    mirror.begin()
    status = mirror.wait()
    assert "verification failed" in status["error"]["what"], status
    assert hidden(world)


def test_a_final_copy_that_skips_a_chunk_switches_nothing(world: World) -> None:
    mirror = Mirrored(world.make("ext4", size_mib=96))
    file = Direct(world, 32)
    mirror.mutate(SKIPPING.format(when=IN_THE_FINAL_COPY)).track()
    world.clone()
    mirror.begin()
    mirror.until_compared()
    mirror.tell("ready")
    file.write(file.places[:200])
    with pytest.raises(Told, match=r"verification failed: .* differ after the final copy") as told:
        mirror.finish_by_hand(writer=False)
    assert "nothing was switched" in told.value.error["data"]
    with pytest.raises(Told, match="not proven"):
        mirror.tell("unmask")
    assert hidden(world)


# ---- the mirror's process is killed --------------------------------------------------------------


@pytest.mark.parametrize("phase", ["tracking", "copying", "comparing", "ready"])
def test_killed_in_a_phase_it_compares_everything_again(world: World, phase: str) -> None:
    mirror = Mirrored(world.make("ext4", size_mib=80)).track()
    world.start_writer()
    blank = phase == "copying"
    world.blank() if blank else world.clone()
    if phase != "tracking":
        mirror.begin(blank=blank, bwlimit_bytes_s=SLOW)
    if phase == "ready":
        mirror.unlimited()
        mirror.until_compared()
        mirror.tell("ready")
    else:
        mirror.until(lambda f: f["phase"] == phase, "get there")
    mirror.kill()
    figures = mirror.until_begun_again()
    assert "everything is compared again: the agent or the guest was restarted" in figures["notes"]
    assert figures["notes_count"] == len(figures["notes"])
    if phase == "tracking":
        mirror.begin()
    with pytest.raises(Told, match="not everything has been compared"):
        mirror.tell("ready")
    with pytest.raises(Told, match="not told to get ready"):
        mirror.tell("final", deadline_s=60, save=False)
    assert hidden(world)
    mirror.unlimited()
    figures = mirror.until_compared()
    assert sum(one["bytes_compared"] for one in figures["passes"]) >= everything(world)
    mirror.finish_by_hand()
    assert differing_bytes(world) == ""


def test_killed_by_a_power_cut_that_took_the_progress_it_compares_everything_again(
    world: World,
) -> None:
    """XFS: the new name of the file is there, and nothing in it."""
    mirror = Mirrored(world.make("ext4")).track()
    world.clone()
    mirror.begin()
    mirror.until_compared()
    mirror.cut()
    (mirror.folder / "status.json").write_text("")
    assert mirror.wait()["state"] == "died"
    world.guest.start("mirror", mirror.request, job_id="mirror-1")
    mirror.until_begun_again()
    figures = mirror.until_compared()
    assert sum(one["bytes_compared"] for one in figures["passes"]) >= everything(world)


def test_told_to_end_while_it_takes_what_was_written_it_ends(world: World) -> None:
    flag = world.guest.root / "ending"
    mirror = Mirrored(world.make("ext4"))
    mirror.mutate(
        f"""
drain_all = Tracker.drain


def drain(self, sets):
    if threading.current_thread() is threading.main_thread() and os.path.exists({str(flag)!r}):
        os.unlink({str(flag)!r})
        os.kill(os.getpid(), signal.SIGTERM)
    return drain_all(self, sets)


Tracker.drain = drain
"""
    ).track()
    world.start_writer()
    world.clone()
    flag.touch()
    mirror.begin()
    assert mirror.wait()["error"]["what"] == "the job was stopped on request"
    assert not flag.exists()


# ---- bad disks -----------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", ["source", "target"])
def test_a_disk_that_cannot_be_read_ends_it_with_the_offset(world: World, bad: str) -> None:
    mirror = Mirrored(world.make("ext4", size_mib=64)).track()
    shell("umount", world.data[0])
    world.clone()
    disk = getattr(world, bad)
    # Behind the end of its file a loop device reads zeros through the cache, and EIO past it.
    shell("losetup", "--direct-io=on", disk.loop)
    mirror.begin(bwlimit_bytes_s=SLOW)
    mirror.until(lambda f: f["phase"] == "comparing", "compare")
    with disk.image.open("r+b") as image:
        image.truncate(40 * MIB)
    mirror.unlimited()
    status = mirror.wait()
    said = f"cannot read 1048576 bytes at offset {40 * MIB} of {disk.loop}: Input/output error"
    assert status["error"]["what"] == said
    assert "it stays the live side" in status["error"]["data"] and status["error"]["hint"]
    assert hidden(world)


@contextlib.contextmanager
def too_small(tmp_path: Path) -> Iterator[Path]:
    """A sparse file of 64 MiB where 8 MiB fit."""
    folder = tmp_path / "small"
    folder.mkdir()
    shell("mount", "-t", "tmpfs", "-o", "size=8M", "tmpfs", folder)
    try:
        with (folder / "image").open("wb") as sparse:
            sparse.truncate(64 * MIB)
        yield folder / "image"
    finally:
        shell("umount", "--lazy", folder)


def test_a_target_that_cannot_be_written_ends_it_with_the_offset(
    world: World, tmp_path: Path
) -> None:
    mirror = Mirrored(world.make("ext4", size_mib=64)).track()
    file = Direct(world, 32)
    with too_small(tmp_path) as image:
        world.target = world.disks.attach(image, "target")
        mirror.begin(blank=True)
        status = mirror.wait()
        shell("losetup", "--detach", world.target.loop)
    assert re.match(
        rf"cannot write 1048576 bytes at offset \d+ of {world.target.loop}: "
        "(No space left on device|Input/output error)",
        status["error"]["what"],
    ), status
    assert "nothing of the source was changed" in status["error"]["data"]
    file.write(file.places[:10])
    assert world.mounted(world.data[0]) == world.source.loop


def test_a_source_that_grows_ends_it(world: World) -> None:
    mirror = Mirrored(world.make("ext4", size_mib=64)).track()
    world.clone()
    mirror.begin()
    mirror.until_compared()
    with world.source.image.open("r+b") as image:
        image.truncate(80 * MIB)
    shell("losetup", "--set-capacity", world.source.loop)
    status = mirror.wait()
    assert status["error"]["kind"] == "doubt"
    assert str(80 * MIB) in status["error"]["what"]
    assert hidden(world)
