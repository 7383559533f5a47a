"""A target that can be mounted, with an identity that was read back."""

import os
import re
from collections.abc import Callable

import pytest
from agent_rig import MIB, Told, shell
from disks_world import World, probe


@pytest.mark.parametrize(
    ("fstype", "table"), [("ext4", ""), ("ext4", "dos"), ("xfs", ""), ("xfs", "gpt")]
)
def test_a_dirty_clone_keeps_its_identity_and_can_be_mounted(
    world: World, fstype: str, table: str
) -> None:
    world.make(fstype, table).clone()
    result = world.prepare()["filesystems"][0]
    wanted = probe(world.source.device(world.partition))
    assert (result["uuid"], result["fstype"], result["label"]) == (wanted["UUID"], fstype, "data0")
    assert result["partuuid"] == wanted.get("PART_ENTRY_UUID", "")
    assert probe(world.target.device(world.partition))["UUID"] == wanted["UUID"]
    assert world.live_side() == "source"
    if fstype == "ext4":
        features = shell("dumpe2fs", "-h", world.target.device(world.partition))
        assert "needs_recovery" not in features


@pytest.mark.parametrize("fstype", ["ext4", "xfs"])
def test_a_dirty_clone_gets_a_new_identity_when_that_is_wanted(world: World, fstype: str) -> None:
    """xfs_admin exits 0 without doing anything while the log is dirty."""
    world.make(fstype).clone()
    world.keep_uuid = False
    before = probe(world.source.loop)["UUID"]
    first = world.prepare()["filesystems"][0]["uuid"]
    assert first != before
    assert probe(world.target.loop)["UUID"] == first
    assert world.prepare()["filesystems"][0]["uuid"] == first, "saying it twice is saying it once"
    assert world.pass_()["full"] is True


def test_a_btrfs_clone_is_never_used(world: World) -> None:
    world.make("btrfs").clone()
    with pytest.raises(Told, match="two devices with one fsid") as told:
        world.prepare(seed="snapshot")
    assert told.value.kind == "refused"


def test_a_clone_of_another_filesystem_is_a_doubt(world: World) -> None:
    world.make("ext4").blank()
    shell("mkfs.ext4", "-q", world.target.loop)
    with pytest.raises(Told, match="expected ext4") as told:
        world.prepare()
    assert told.value.kind == "doubt"


@pytest.mark.parametrize(
    ("fstype", "table"), [("ext4", ""), ("ext4", "gpt"), ("xfs", "dos"), ("btrfs", "gpt")]
)
def test_a_blank_target_becomes_a_filesystem_of_the_same_kind(
    world: World, fstype: str, table: str
) -> None:
    world.make(fstype, table).blank()
    result = world.prepare(seed="blank")["filesystems"][0]
    source, target = (
        probe(volume.device(world.partition)) for volume in (world.source, world.target)
    )
    assert target["TYPE"] == fstype
    assert target["LABEL"] == source["LABEL"] == "data0"
    assert (target["UUID"] == source["UUID"]) is world.keep_uuid
    assert result["uuid"] == target["UUID"]
    assert target.get("PART_ENTRY_UUID") == source.get("PART_ENTRY_UUID")
    assert target.get("PART_ENTRY_TYPE") == source.get("PART_ENTRY_TYPE")


@pytest.mark.parametrize("table", ["", "gpt"])
def test_making_it_twice_is_making_it_once(world: World, table: str) -> None:
    world.make("btrfs", table).blank()
    first = world.prepare()
    world.pass_()
    assert world.prepare()["filesystems"] == first["filesystems"]
    assert world.pass_()["files_copied"] == 0, "the second prepare has emptied the target"


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize(
    ("fstype", "table", "keep_uuid", "program"),
    [
        ("ext4", "", True, "mount"),
        ("ext4", "", False, "tune2fs"),
        ("xfs", "", False, "xfs_admin"),
        ("btrfs", "gpt", False, "sfdisk"),
        ("btrfs", "gpt", False, "mkfs.btrfs"),
    ],
)
def test_killed_inside_it_is_said_again(
    world: World,
    stand_in: Callable[[str, str], None],
    fstype: str,
    table: str,
    keep_uuid: bool,
    program: str,
    moment: str,
) -> None:
    """Around each program that changes the target."""
    world.make(fstype, table)
    world.blank() if fstype == "btrfs" else world.clone()
    world.keep_uuid = keep_uuid
    before = world.mounts()
    once = world.guest.root / "killed"
    real = "{real}" + ' "$@"'
    stand_in(
        program,
        f"[ -e {once} ] && exec {real}\ntouch {once}\n"
        + (f"{real}\n" if moment == "after" else "")
        + "kill -9 $PPID\nsleep 1\n",
    )
    with pytest.raises(Told, match="process died"):
        world.prepare()
    assert once.exists()
    assert world.mounts() == before
    result = world.prepare()
    assert world.prepare()["filesystems"] == result["filesystems"]
    assert world.pass_()["full"] is True


@pytest.mark.parametrize(
    "spoil",
    [
        ["mkfs.ext4", "-q", "-F", "{}"],
        ["mkswap", "{}"],
        ["dd", "if=/dev/urandom", "of={}", "bs=1", "count=1", "seek=777777", "conv=notrunc"],
        ["dd", "if=/dev/urandom", "of={}", "bs=1", "count=1", "seek=67000000", "conv=notrunc"],
    ],
)
def test_a_target_that_is_not_blank_is_refused_and_left_alone(
    world: World, spoil: list[str]
) -> None:
    world.make("ext4").blank()
    shell(*[word.format(world.target.loop) for word in spoil])
    before = world.target.image.read_bytes()
    with pytest.raises(Told, match="is not blank") as told:
        world.prepare(seed="blank")
    assert told.value.kind == "refused"
    assert world.target.image.read_bytes() == before


def test_the_same_disk_twice_is_a_doubt(world: World) -> None:
    world.make("ext4")
    world.target = world.source
    with pytest.raises(Told, match="the same disk") as told:
        world.prepare(seed="blank")
    assert told.value.kind == "doubt"


def test_a_target_that_somebody_uses_is_a_doubt(world: World) -> None:
    world.make("ext4").blank()
    shell("mkfs.ext4", "-q", world.target.loop)
    world.disks.mount(world.target.loop, world.guest.root / "somebody")
    with pytest.raises(Told, match="in use by somebody") as told:
        world.prepare(seed="blank")
    assert told.value.kind == "doubt"


def test_a_table_of_a_larger_disk_is_refused(world: World) -> None:
    world.make("ext4", "gpt").blank(size_mib=60)
    with pytest.raises(Told, match="less than the source's") as told:
        world.prepare(seed="blank")
    assert told.value.kind == "refused"


@pytest.mark.parametrize(
    ("fstype", "table"), [("ext4", ""), ("ext4", "dos"), ("xfs", ""), ("xfs", "gpt")]
)
def test_a_larger_clone_is_grown_to_the_end_of_its_disk(
    world: World, fstype: str, table: str
) -> None:
    world.make(fstype, table)
    size_mib = world.source.image.stat().st_size // MIB
    world.clone(size_mib=size_mib + 64)
    before = size_in_mib(world, "source")
    assert world.prepare(grow=True)["filesystems"][0]["grown"] is True
    assert size_in_mib(world, "target") >= before + 60
    assert world.pass_()["full"] is True


@pytest.mark.parametrize("table", ["", "gpt"])
def test_a_larger_blank_target_is_used_to_its_end(world: World, table: str) -> None:
    world.make("ext4", table)
    size_mib = world.source.image.stat().st_size // MIB
    world.blank(size_mib=size_mib + 64)
    world.prepare(grow=True, seed="blank")
    assert size_in_mib(world, "target") >= size_in_mib(world, "source") + 60


def size_in_mib(world: World, side: str) -> int:
    """Of the filesystem, not of its device."""
    path = world.data[0]
    if side == "target":
        options = "ro,nouuid" if world.fstype == "xfs" else "ro"
        device = world.target.device(world.partition)
        path = world.disks.mount(device, world.guest.root / "look", options)
    space = os.statvfs(path)
    size = space.f_blocks * space.f_frsize // MIB
    if side == "target":
        shell("umount", path)
    return size


def test_an_ext4_gets_the_source_s_features_and_inodes(world: World) -> None:
    """So that the kernel that mounts the one also mounts the other."""
    world.make("ext4")
    shell("umount", world.data[0])
    odd = ["-O", "^metadata_csum,^64bit", "-I", "128", "-N", "5000", "-b", "1024", "-m", "3"]
    shell("mkfs.ext4", "-q", "-F", "-L", "data0", *odd, world.source.loop)
    shell("tune2fs", "-e", "remount-ro", world.source.loop)
    world.disks.mount(world.source.loop, world.data[0], "noatime,nodev")
    world.blank()
    world.prepare(seed="blank")
    facts = []
    for volume in (world.source, world.target):
        text = shell("tune2fs", "-l", volume.loop)
        found = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
        facts.append({key: " ".join(value.split()) for key, value in found.items()})
    source, target = facts
    source_features = set(source["Filesystem features"].split()) - {"needs_recovery"}
    assert source_features == set(target["Filesystem features"].split())
    assert int(target["Inode count"]) >= int(source["Inode count"])
    for key in ("Inode size", "Block size", "Errors behavior", "Default mount options"):
        assert source[key] == target[key]
    assert abs(int(source["Reserved block count"]) - int(target["Reserved block count"])) < 10


def test_an_xfs_gets_the_source_s_features(world: World) -> None:
    world.make("xfs")
    shell("umount", world.data[0])
    shell(
        "mkfs.xfs",
        "-q",
        "-f",
        "-L",
        "data0",
        "-m",
        "reflink=0,bigtime=0",
        "-i",
        "size=1024",
        "-n",
        "size=8192",
        world.source.loop,
    )
    world.disks.mount(world.source.loop, world.data[0], "noatime,nodev")
    world.blank()
    world.prepare(seed="blank")
    target = world.disks.mount(world.target.loop, world.guest.root / "look", "nouuid")

    def features(path: object) -> list[str]:
        text = shell("xfs_info", str(path))
        return re.findall(
            r"(?:crc|finobt|sparse|rmapbt|reflink|bigtime|inobtcount|nrext64|isize|ftype)=\d", text
        )

    assert features(target) == features(world.data[0])
    assert "reflink=0" in features(target)
