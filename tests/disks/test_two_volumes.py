"""Two volumes in one transfer: both switch sides in one cutover, or neither."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from agent_rig import Disks, Guest, Json, Volume, shell
from disks_world import World, assert_same_trees, fill, probe

StandIn = Callable[[str, str], None]


@dataclass
class Two(World):
    """The world of one volume, and a log on another."""

    log: Volume = field(init=False)
    log_target: Volume = field(init=False)
    log_path: Path = field(init=False)

    def make_both(self) -> "Two":
        self.make("ext4")
        self.log = self.disks.blank("log", 64)
        shell("mkfs.ext4", "-q", "-L", "log", self.log.loop)
        self.log_path = self.disks.mount(self.log.loop, self.guest.root / "log", "noatime,nodev")
        fill(self.log_path, 9)
        shell("sync", "-f", self.log_path)
        self.guest.install(self.source.ref, self.log.ref)
        self.start_writer()
        self.clone()
        self.log_target = self.disks.clone(self.log, "log-target")
        return self

    @property
    def log_filesystem(self) -> Json:
        return {
            "source": self.log.at(None),
            "target": self.log_target.at(None),
            "fstype": "ext4",
            "uuid": probe(self.log.loop)["UUID"],
            "label": "log",
            "keep_uuid": True,
            "mount": str(self.log_path),
            "mounts": [{"target": str(self.log_path), "root": "/", "by": "hand", "unit": ""}],
        }

    @property
    def filesystems(self) -> list[Json]:
        return [*super().filesystems, self.log_filesystem]

    def prepare_both(self) -> list[Json]:
        data = self.prepare(filesystems=super().filesystems)
        log = self.prepare(
            source=self.log.ref, target=self.log_target.ref, filesystems=[self.log_filesystem]
        )
        return [*data["filesystems"], *log["filesystems"]]

    def cut_over(self, last: Json, **more: object) -> Json:
        self.guest.start("cutover", self.cutover_request(last, **more))
        status = self.guest.wait()
        assert status["state"] == "ended", status
        outcome: Json = status["result"]["outcome"]
        return outcome

    def assert_both(self, side: str) -> None:
        self.assert_live(side)
        live, other = (self.log, self.log_target)[:: 1 if side == "source" else -1]
        assert self.mounted(self.log_path) == live.loop
        assert not shell("findmnt", "-n", other.loop, check=False).strip()
        read_only = shell("blockdev", "--getro", self.log.loop).strip()
        assert read_only == ("1" if side == "target" else "0")


@pytest.fixture
def two(guest: Guest, disks: Disks) -> Iterator[Two]:
    found = Two(guest, disks)
    yield found.make_both()
    guest.kill_everything()
    found.end_writer()


def test_both_switch_sides_in_one_cutover_and_go_back_in_one(two: Two) -> None:
    made = two.prepare_both()
    assert [fs["uuid"] for fs in made] == [fs["uuid"] for fs in two.filesystems]
    before = two.log_path / "written after the clone"
    before.write_text("once")

    outcome = two.cut_over(two.pass_())

    assert outcome["result"] == "committed", outcome["reason"]
    two.assert_both("target")
    assert before.read_text() == "once"
    old = two.disks.mount(two.log.loop, two.guest.root / "old-log", "ro")
    assert_same_trees(old, two.log_path)
    shell("umount", old)

    two.guest.start("cutback", {})
    assert two.guest.wait()["result"]["outcome"]["live"] == "source"
    two.assert_both("source")


def test_one_that_cannot_be_mounted_takes_both_back(two: Two, stand_in: StandIn) -> None:
    two.prepare_both()
    last = two.pass_()
    fails = f'*"{two.log_target.loop} "*) echo "mount: injected" >&2; exit 32;;'
    stand_in("mount", f'case "$*" in */mnt/*) ;; {fails} esac\nexec {{real}} "$@"\n')

    outcome = two.cut_over(last)

    assert (outcome["result"], outcome["live"]) == ("reverted", "source")
    assert "injected" in outcome["reason"]
    two.assert_both("source")
