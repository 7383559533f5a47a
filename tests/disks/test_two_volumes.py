"""Two volumes in one transfer: both switch sides in one cutover, or neither."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from agent_rig import Disks, Guest, Json, shell
from disks_world import WithLog, assert_same_trees, fill, probe
from mirror_world import Mirrored, ended

StandIn = Callable[[str, str], None]


@dataclass
class Two(WithLog):
    log_path: Path = field(init=False)
    mirror: Mirrored | None = None

    def make_both(self, method: str) -> "Two":
        self.make("ext4")
        self.log = self.disks.blank("log", 64)
        shell("mkfs.ext4", "-q", "-L", "log", self.log.loop)
        self.log_path = self.disks.mount(self.log.loop, self.guest.root / "log", "noatime,nodev")
        fill(self.log_path, 9)
        shell("sync", "-f", self.log_path)
        self.guest.install(self.source.ref, self.log.ref)
        self.start_writer()
        if method == "mirror":
            self.mirror = Mirrored(self).track()
        self.clone()
        self.log_target = self.disks.clone(self.log, "log-target")
        self.prepare_both()
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

    def prepare_both(self) -> None:
        if self.mirror:
            self.mirror.begin()
            self.mirror.until_compared()
            return
        data = self.prepare(filesystems=super().filesystems)
        log = self.prepare(
            source=self.log.ref, target=self.log_target.ref, filesystems=[self.log_filesystem]
        )
        made = [*data["filesystems"], *log["filesystems"]]
        assert [fs["uuid"] for fs in made] == [fs["uuid"] for fs in self.filesystems]

    def cut_over(self) -> Json:
        if self.mirror:
            return self.mirror.cut_over()[0]
        self.guest.start("cutover", self.cutover_request(self.pass_()))
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


@pytest.fixture(params=["rsync", "mirror"])
def two(guest: Guest, disks: Disks, request: pytest.FixtureRequest) -> Iterator[Two]:
    if request.param == "mirror":
        request.getfixturevalue("tracking")
    with ended(Two(guest, disks)) as found:
        yield found.make_both(request.param)


def test_both_switch_sides_in_one_cutover_and_go_back_in_one(two: Two) -> None:
    before = two.log_path / "written after the clone"
    before.write_text("once")

    outcome = two.cut_over()

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
    fails = f'*"{two.log_target.loop} "*) echo "mount: injected" >&2; exit 32;;'
    stand_in("mount", f'case "$*" in */mnt/*) ;; {fails} esac\nexec {{real}} "$@"\n')

    outcome = two.cut_over()

    assert (outcome["result"], outcome["live"]) == ("reverted", "source")
    assert "injected" in outcome["reason"]
    two.assert_both("source")
    if two.mirror:
        assert all(shell("blkid", "-p", one.loop, check=False) == "" for one in two.targets)
