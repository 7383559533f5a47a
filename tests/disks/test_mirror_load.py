"""Whatever a service does to its filesystem meanwhile, the target is the source bit for bit."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator

import pytest
from agent_rig import shell
from disks_world import World
from load import Load
from mirror_world import Direct, Mirrored, differing_bytes, hidden

pytestmark = pytest.mark.usefixtures("tracking")


@contextlib.contextmanager
def loaded(world: World, seconds: float, seed: int) -> Iterator[None]:
    """Two services write: one to every kind of entry, one in every way that there is."""
    folder = world.data[0] / "load"
    folder.mkdir()
    load = Load(folder, seconds, seed, trimming=True)
    world.start_writer()
    load.start()
    try:
        yield
    finally:
        done = load.ended()
    assert set(done) == {"renames", "storms", "direct", "mapped", "truncates", "discards"}, done


@pytest.mark.parametrize(
    ("fstype", "table", "blank", "options"),
    [
        ("ext4", "", False, "discard"),
        ("xfs", "dos", True, ""),
        ("btrfs", "gpt", True, ""),
    ],
)
def test_bit_for_bit_under_every_kind_of_write(
    world: World, fstype: str, table: str, blank: bool, options: str
) -> None:
    world.make(fstype, table, size_mib={"ext4": 160}.get(fstype, 0))
    if options:
        shell("mount", "-o", f"remount,{options}", world.data[0])
    with loaded(world, 4, seed=len(fstype + table)):
        mirror = Mirrored(world).track()
        world.blank() if blank else world.clone()
        mirror.begin(blank=blank)
        figures = mirror.until_compared()
    final = mirror.finish_by_hand()
    assert differing_bytes(world) == ""
    assert figures["notes"] == [] and figures["events"] > 500
    assert final["verified"] is True
    assert final["chunks_compared"] >= final["chunks_copied"]


@pytest.mark.parametrize("when", ["comparing", "current"])
def test_a_buffer_that_ran_over_is_noticed_and_healed(world: World, when: str) -> None:
    mirror = Mirrored(world.make("ext4", size_mib=96), buffer_kib=16)
    file = Direct(world, 32)
    mirror.track()
    world.clone()
    mirror.begin(bwlimit_bytes_s=(8 << 20) if when == "comparing" else None)
    mirror.until(lambda f: f["phase"] == when, "get there")
    worker = mirror.worker()
    os.kill(worker, signal.SIGSTOP)  # so that the kernel has nobody to tell
    try:
        file.write(file.places)
    finally:
        os.kill(worker, signal.SIGCONT)
    figures = mirror.until(lambda f: f["notes"], "notice")
    assert "everything is compared again" in figures["notes"][0]
    assert "overrun" in figures["notes"][0] or "dropped" in figures["notes"][0]
    assert hidden(world)
    mirror.unlimited()
    figures = mirror.until_compared()
    everything = world.source.ref["size_bytes"] - 2 * (1 << 20)  # but for what is withheld
    healing = [one for one in figures["passes"] if one["bytes_compared"] >= everything]
    assert healing and sum(one["differed_after_loss"] for one in figures["passes"]) > 0
    mirror.finish_by_hand(writer=False)
    assert differing_bytes(world) == ""


def test_writes_from_before_the_snapshot_on_are_copied(world: World) -> None:
    """The target is a clone of a moment after tracking began; nothing is compared, so that only
    what was tracked can have made them equal."""
    mirror = Mirrored(world.make("ext4", size_mib=96))
    file = Direct(world, 32)
    mirror.track()
    file.write(file.places[::7])
    world.clone()
    file.write(file.places[::5])
    time.sleep(0.1)
    mirror.begin(verify="none")
    file.write(file.places[::3])
    mirror.until(lambda f: f["passes"], "pass over it")
    final = mirror.finish_by_hand(writer=False)
    assert final["verified"] == "none"
    assert differing_bytes(world) == ""


def test_what_was_written_is_all_that_is_compared_when_no_more_is_asked_for(world: World) -> None:
    mirror = Mirrored(world.make("ext4", size_mib=96))
    file = Direct(world, 32)
    mirror.track()
    world.clone()
    mirror.begin(verify="written")
    mirror.until(lambda f: f["verified"], "begin")
    file.write(file.places[::3])
    mirror.until(lambda f: f["passes"] and not f["dirty_bytes"], "pass over it")
    final = mirror.finish_by_hand(writer=False)
    passes = [one for one in mirror.tell("figures")["passes"] if not one["final"]]
    chunks = sum(one["chunks_compared"] for one in passes) + final["chunks_compared"]
    assert len(file.places[::3]) <= chunks < 2 * len(file.places)
    assert final["verified"] == "written"
    assert differing_bytes(world) == ""
