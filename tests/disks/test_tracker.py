"""What the tracker calls written, against what really changed on a disk under load."""

from __future__ import annotations

import mmap
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from agent_rig import Disks, Volume, leave_out, shell
from load import Load

from volferry.agent.basics import AgentError, Place
from volferry.agent.chunks import ChunkSet
from volferry.agent.tracker import (
    OF_TARGETS,
    TRACKER_PREFIX,
    Tracked,
    Tracker,
    tracefs_path,
    why_no_tracking,
)

KIB, MIB = 1 << 10, 1 << 20
CHUNK = 16 * KIB
OURS = f"test-{os.getpid()}"
NAME = TRACKER_PREFIX + OURS


@pytest.fixture
def tracefs(tmp_path: Path) -> Iterator[str]:
    """All mounts of tracefs show the same instances, so this machine's own is left alone."""
    path = tmp_path / "tracefs"
    path.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tracefs", "nodev", path], capture_output=True, text=True, check=False
    )
    if made.returncode or not (path / "events/block").is_dir():
        leave_out(f"this kernel traces no block events: {made.stderr.strip()}")
    try:
        yield str(path)
        ours = left(str(path))
    finally:
        Tracker.remove_stale(str(path), OURS)
        shell("umount", path)
    assert ours == [], "a test left its instance"


def left(tracefs: str) -> list[str]:
    return [Path(path).name for whose, path in Tracker.leftovers(tracefs) if whose == OURS]


def number(volume: Volume) -> str:
    found = os.stat(volume.loop).st_rdev
    return f"{os.major(found)}:{os.minor(found)}"


@pytest.fixture
def track(tracefs: str) -> Callable[..., Tracker]:
    def make(*volumes: Volume, chunk: int = CHUNK, **more: int) -> Tracker:
        devices = {number(v): Tracked(v.ref["size_bytes"], chunk) for v in volumes}
        tracker = Tracker(Place(), tracefs, NAME, devices, **more)
        tracker.open()
        return tracker

    return make


def write(volume: Volume, offset: int, length: int, count: int = 1, apart: int = 0) -> None:
    """Each write is one request, past the page cache."""
    buffer = mmap.mmap(-1, length)
    buffer.write(os.urandom(length))
    fd = os.open(volume.loop, os.O_RDWR | os.O_DIRECT)
    try:
        for n in range(count):
            assert os.pwrite(fd, buffer, offset + n * apart) == length
    finally:
        os.close(fd)


def runs(chunks: ChunkSet) -> list[tuple[int, int]]:
    return list(chunks.runs(1 << 30))


def changed(before: Path, after: Path, chunk: int) -> list[int]:
    with before.open("rb") as old, after.open("rb") as new:
        count = -(-after.stat().st_size // chunk)
        return [n for n in range(count) if old.read(chunk) != new.read(chunk)]


@pytest.mark.parametrize(("chunk", "trimming"), [(4 * KIB, False), (64 * KIB, True)])
def test_every_chunk_that_changed_under_load_was_tracked(
    disks: Disks, track: Callable[..., Tracker], tmp_path: Path, chunk: int, trimming: bool
) -> None:
    volume = disks.blank("data", 96)
    shell("mkfs.ext4", "-q", volume.loop)
    root = disks.mount(volume.loop, tmp_path / "mounted")
    with closing(track(volume, chunk=chunk)) as tracker:
        dirty = tracker.new_sets()
        before = tmp_path / "before"
        shutil.copyfile(volume.image, before)
        load = Load(root, 5, chunk, trimming)
        load.start()
        events = 0
        while load.is_alive():
            events += tracker.drain(dirty).events
            assert tracker.lost() == ""
            time.sleep(0.05)
        load.ended()
        shell("umount", root)
        events += tracker.drain(dirty).events
        assert tracker.drain(dirty).events == 0, "nobody writes any more"
        assert tracker.lost() == ""
    different = changed(before, volume.image, chunk)
    tracked = dirty[number(volume)]
    assert [n for n in different if not tracked.has_any(n, n)] == []
    assert len(different) > 50
    if not trimming:  # fstrim gives back all that is free
        assert tracked.count < tracked.size / 2, "far more than what was written is called dirty"
    assert events > 200


def test_exactly_the_written_chunks_are_tracked(
    disks: Disks, track: Callable[..., Tracker]
) -> None:
    one, other, unseen = disks.blank("one", 8), disks.blank("other", 8), disks.blank("unseen", 8)
    with closing(track(one, other)) as tracker:
        dirty = tracker.new_sets()
        write(one, 3 * CHUNK + 512, 512)
        write(one, 5 * CHUNK - 4096, 8192)
        write(other, 0, CHUNK)
        write(unseen, 0, CHUNK)
        with open(one.loop, "rb") as file:
            file.read(64 * KIB)
        drained = tracker.drain(dirty)
        assert tracker.lost() == ""
    assert runs(dirty[number(one)]) == [(3, 3)]
    assert runs(dirty[number(other)]) == [(0, 1)]
    assert drained.sectors == {number(one): 17, number(other): 32}
    assert drained.events == 3


def test_the_last_chunk_may_be_shorter(disks: Disks, track: Callable[..., Tracker]) -> None:
    volume = disks.blank("odd", 1)
    with closing(track(volume, chunk=384 * KIB)) as tracker:
        dirty = tracker.new_sets()
        write(volume, MIB - 512, 512)
        tracker.drain(dirty)
        assert (runs(dirty[number(volume)]), tracker.lost()) == ([(2, 1)], "")


def test_discards_and_zeroes_are_changes(disks: Disks, track: Callable[..., Tracker]) -> None:
    volume = disks.blank("data", 16)
    with closing(track(volume)) as tracker:
        dirty = tracker.new_sets()
        shell("blkdiscard", "-o", str(2 * MIB), "-l", str(MIB), volume.loop)
        shell("blkdiscard", "--zeroout", "-o", str(8 * MIB), "-l", str(MIB), volume.loop)
        tracker.drain(dirty)
        tracker.drain(dirty)
        assert tracker.lost() == ""
    assert runs(dirty[number(volume)]) == [(2 * 64, 64), (8 * 64, 64)]


def test_what_fstrim_gives_back_is_tracked(
    disks: Disks, track: Callable[..., Tracker], tmp_path: Path
) -> None:
    volume = disks.blank("data", 64)
    shell("mkfs.ext4", "-q", "-E", "nodiscard", volume.loop)
    root = disks.mount(volume.loop, tmp_path / "mounted")
    (root / "big").write_bytes(os.urandom(20 * MIB))
    shell("sync", "-f", root)
    (root / "big").unlink()
    shell("sync", "-f", root)
    with closing(track(volume)) as tracker:
        dirty = tracker.new_sets()
        told = shell("fstrim", "-v", root)
        drained = tracker.drain(dirty)
        tracker.drain(dirty)
        assert tracker.lost() == ""
    trimmed = int(re.search(r"\((\d+) bytes\)", told)[1])  # type: ignore[index]
    assert trimmed > 20 * MIB
    assert drained.sectors[number(volume)] * 512 >= trimmed
    assert dirty[number(volume)].count * CHUNK >= trimmed


def test_a_buffer_that_ran_over_is_told(disks: Disks, track: Callable[..., Tracker]) -> None:
    volume = disks.blank("data", 64)
    with closing(track(volume, buffer_kib=8)) as tracker:
        dirty = tracker.new_sets()
        write(volume, 0, 4096, count=3000, apart=4 * KIB)
        events = tracker.drain(dirty).events
        assert "dropped events" in tracker.lost()
        assert "sectors more than were traced" in tracker.lost()
        assert 0 < events < 3000
        write(volume, 0, 4096)
        tracker.drain(dirty)
        assert "dropped events" in tracker.lost(), "it stays said"


def test_one_request_that_the_kernel_lost_silently_is_told(
    disks: Disks, track: Callable[..., Tracker]
) -> None:
    volume = disks.blank("data", 8)
    with closing(track(volume, drop_every=15)) as tracker:
        dirty = tracker.new_sets()
        write(volume, 0, 4096, count=14, apart=CHUNK)
        for _ in range(2):
            tracker.drain(dirty)
        assert tracker.lost() == ""
        write(volume, 100 * CHUNK, 4096, count=10, apart=CHUNK)
        for _ in range(2):
            tracker.drain(dirty)
        assert tracker.lost() == f"{number(volume)} counted 8 sectors more than were traced"
        assert dirty[number(volume)].count == 23


def test_a_disk_that_counts_nothing_is_no_loss(disks: Disks, track: Callable[..., Tracker]) -> None:
    volume = disks.blank("data", 8)
    counting = Path("/sys/block", Path(volume.loop).name, "queue/iostats")
    with closing(track(volume)) as tracker:
        dirty = tracker.new_sets()
        for value in ("0", "1"):
            counting.write_text(value)
            write(volume, 0, 4096, count=10, apart=CHUNK)
            for _ in range(2):
                tracker.drain(dirty)
            assert tracker.lost() == ""


def test_without_the_counters_a_dropped_event_goes_unnoticed(
    disks: Disks, track: Callable[..., Tracker]
) -> None:
    """What the live verification has to catch."""
    volume = disks.blank("data", 8)
    with closing(track(volume, drop_every=2, counters=False)) as tracker:
        dirty = tracker.new_sets()
        write(volume, 0, 4096, count=10, apart=CHUNK)
        tracker.drain(dirty)
        assert tracker.lost() == ""
    # Which five is not said: a disk may complete writes in another order than they were sent.
    assert dirty[number(volume)].count == 5


@pytest.mark.parametrize(
    ("file", "value", "says"),
    [
        ("tracing_on", "0", "tracing_on is '0', not '1'"),
        ("events/block/block_rq_complete/enable", "0", "enable is '0'"),
        ("events/block/block_rq_complete/filter", "0", "filter is 'none'"),
        ("options/overwrite", "1", "overwrite is '1'"),
    ],
)
def test_an_instance_that_somebody_changed_is_told(
    disks: Disks, track: Callable[..., Tracker], file: str, value: str, says: str
) -> None:
    with closing(track(disks.blank("data", 8))) as tracker:
        assert tracker.lost() == ""
        Path(tracker.path, file).write_text(value)
        assert says in tracker.lost()


def test_a_disk_that_grew_is_told(disks: Disks, track: Callable[..., Tracker]) -> None:
    volume = disks.blank("data", 8)
    with closing(track(volume)) as tracker:
        dirty = tracker.new_sets()
        os.truncate(volume.image, 16 * MIB)
        shell("losetup", "--set-capacity", volume.loop)
        assert f"{number(volume)} has 32768 sectors, not 16384" in tracker.lost()
        write(volume, 8 * MIB - 4096, 8192)
        tracker.drain(dirty)
        assert "outside the 16384 sectors" in tracker.lost()
    assert runs(dirty[number(volume)]) == [(511, 1)]


def test_the_instance_of_a_dead_agent_is_removed_and_that_of_a_living_one_is_not(
    disks: Disks, track: Callable[..., Tracker], tracefs: str
) -> None:
    volume = disks.blank("data", 8)
    dead = Path(tracefs, "instances", NAME + OF_TARGETS)
    dead.mkdir()
    with closing(track(volume)) as tracker:
        assert left(tracefs) == [NAME, dead.name]
        living = f"{dead.parent}/{NAME}: Device or resource busy"
        assert Tracker.remove_stale(tracefs, OURS) == ([str(dead)], [living])
        assert left(tracefs) == [NAME]
        with pytest.raises(AgentError) as raised:
            track(volume)
        assert raised.value.kind == "busy"
        dirty = tracker.new_sets()
        write(volume, 0, 4096)
        assert tracker.drain(dirty).events == 1
    Path(tracefs, "instances", NAME).mkdir()
    with closing(track(volume)):
        pass
    assert left(tracefs) == []


def test_a_filter_that_the_kernel_refuses_is_told_and_leaves_nothing(
    disks: Disks, track: Callable[..., Tracker], tracefs: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Tracker, "filter", property(lambda self: 'rwbs !~ "R*"'))
    with pytest.raises(AgentError, match=r"refuses the filter .*Invalid"):
        track(disks.blank("data", 8))
    assert left(tracefs) == []


# ---- declining -----------------------------------------------------------------------------------


def test_a_disk_at_the_bottom_can_be_tracked(disks: Disks, tracefs: str) -> None:
    assert why_no_tracking(Place(), [disks.blank("data", 8).loop]) == ""


def test_what_cannot_be_tracked_is_declined_with_the_reason(
    disks: Disks, tracefs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = disks.blank("data", 16)
    subprocess.run(["sfdisk", "-q", volume.loop], input=b"label: gpt\n,\n", check=True)
    volume.reread()
    place = Place()
    assert "is a partition" in why_no_tracking(place, [volume.device(1)])
    assert "No such file" in why_no_tracking(place, ["/dev/not-there"])
    assert "no block device" in why_no_tracking(place, ["/dev/null"])
    locked = tmp_path / "locked/kernel/security"
    locked.mkdir(parents=True)
    (locked / "lockdown").write_text("none integrity [confidentiality]\n")
    why = why_no_tracking(Place({"sys": str(tmp_path / "locked")}), [volume.loop])
    assert "locked down" in why
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert why_no_tracking(place, [volume.loop]) == "only root can trace"


def test_disks_without_requests_of_their_own_are_declined(tmp_path: Path) -> None:
    def sysfs(name: str, *folders: str, scheduler: str = "none") -> Place:
        number = os.stat("/dev/null").st_rdev
        disk = tmp_path / name / f"dev/block/{os.major(number)}:{os.minor(number)}"
        for folder in ("queue", *folders):
            (disk / folder).mkdir(parents=True)
        (disk / "queue/scheduler").write_text(scheduler + "\n")
        return Place({"sys": str(tmp_path / name)})

    for name, folders, says in (
        ("dm", ["slaves/vdb", "slaves/vdc"], "made of other disks (vdb, vdc)"),
        ("multipath", ["slaves/sda", "mq"], "made of other disks (sda)"),
        ("zram", ["slaves"], "completes no requests"),
    ):
        assert says in why_no_tracking(sysfs(name, *folders), ["/dev/null"])


def test_tracefs_is_mounted_where_it_is_not(tracefs: str, tmp_path: Path) -> None:
    (tmp_path / "sys/kernel/tracing").mkdir(parents=True)
    place = Place({"sys": str(tmp_path / "sys")})
    found = tracefs_path(place)
    try:
        assert Path(found, "instances").is_dir()
        assert tracefs_path(place) == found, "and not mounted again"
    finally:
        shell("umount", found)
