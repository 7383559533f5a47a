"""Which disk is meant: by what the cloud put on it, and never by guessing."""

from pathlib import Path
from typing import Any

import pytest
from agent_rig import Guest, Told, agent

VOLUME = "7f3c2a10-9b41-4c0e-8d57-0c2f6a1be001"
OTHER = "00000000-1111-2222-3333-444444444444"
SIZE = 10 * 1024**3


class Sys:
    """A /sys with the files that the kernel shows for a disk."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "block").mkdir(parents=True)
        self.count = 0

    def disk(self, name: str, size: int = SIZE, ro: bool = False, **files: Any) -> Path:
        folder = self.root / "block" / name
        (folder / "device").mkdir(parents=True)
        self.count += 1
        facts = {"size": str(size // 512), "dev": f"252:{self.count * 16}", "ro": str(int(ro))}
        for key, value in {**facts, **files}.items():
            path = folder / key.replace("__", "/")
            path.write_bytes(value if isinstance(value, bytes) else f"{value}\n".encode())
        return folder

    def partition(self, disk: str, name: str, number: int, size: int = SIZE // 2) -> None:
        folder = self.root / "block" / disk / name
        folder.mkdir()
        (folder / "partition").write_text(f"{number}\n")
        (folder / "size").write_text(f"{size // 512}\n")
        (folder / "dev").write_text(f"259:{number}\n")


@pytest.fixture
def sys(tmp_path: Path) -> Sys:
    return Sys(tmp_path / "sys")


def look(sys: Sys, volume_id: str = VOLUME, size: int = SIZE) -> agent.Disk | None:
    place = agent.Place({"sys": str(sys.root)})
    return agent.look_for(place, {"volume_id": volume_id, "size_bytes": size})


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("vdb", {"serial": VOLUME[:20]}),  # virtio-blk
        ("sdb", {"device__vpd_pg80": b"\x00\x80\x00\x24" + VOLUME.encode()}),  # virtio-scsi
        ("sdb", {"device__vpd_pg80": b"\x00\x80\x00\x14" + VOLUME[:20].encode()}),  # old QEMU
        ("sdb", {"device__wwid": f"t10.ATA     QEMU HARDDISK   {VOLUME}"}),
        ("nvme0n1", {"device__serial": VOLUME[:20]}),
        ("nvme0n1", {"device__serial": VOLUME}),
    ],
)
def test_each_bus_shows_the_volume_id_in_its_own_way(
    sys: Sys, name: str, files: dict[str, Any]
) -> None:
    sys.disk("vda", serial=OTHER[:20])
    sys.disk(name, **files)
    found = look(sys)
    assert found is not None
    assert found.path == f"/dev/{name}"


def test_no_disk_is_absence_for_find_and_a_doubt_for_a_job(sys: Sys, guest: Guest) -> None:
    sys.disk("vda", serial=OTHER[:20])
    assert look(sys) is None
    settings = {**guest.settings, "sys": str(sys.root)}
    ref = {"volume_id": VOLUME, "size_bytes": SIZE}
    assert guest.call("find", settings=settings, refs=[ref])["disks"] == [
        {"volume_id": VOLUME, "state": "absent"}
    ]
    with pytest.raises(agent.AgentError) as told:
        agent.resolve(agent.Place(settings), ref)
    assert told.value.kind == "doubt"
    assert told.value.what.endswith(f"it has vda {SIZE} bytes serial {OTHER[:20]}")
    assert told.value.data == "", "what it means is said where it is known what was being done"


def test_two_disks_of_one_serial_are_a_doubt_that_lists_every_disk(sys: Sys, guest: Guest) -> None:
    sys.disk("vdb", serial=VOLUME[:20])
    sys.disk("vdc", serial=VOLUME[:20])
    settings = {**guest.settings, "sys": str(sys.root)}
    with pytest.raises(Told, match=r"2 disks answer.* the guest has .*vdb.*vdc") as told:
        guest.call("find", settings=settings, refs=[{"volume_id": VOLUME, "size_bytes": SIZE}])
    assert told.value.kind == "doubt"


def test_facts_tell_of_a_volume_with_two_disks_beside_all_else(sys: Sys, guest: Guest) -> None:
    """A plan that says why is of more use than none; only looking goes on past the doubt."""
    sys.disk("sda", device__vpd_pg80=b"\x00\x80\x00\x24" + VOLUME.encode())
    sys.disk("sdb", device__vpd_pg80=b"\x00\x80\x00\x24" + VOLUME.encode())
    sys.disk("sdc", serial=OTHER, size=SIZE + 512)
    refs = [{"volume_id": volume, "size_bytes": SIZE} for volume in (VOLUME, OTHER)]
    facts = guest.call("facts", settings={**guest.settings, "sys": str(sys.root)}, refs=refs)
    assert facts["sources"] == {} and facts["uname"]["release"]
    assert facts["unclear"] == {
        VOLUME: "it is reached by 2 disks (sda, sdb), as with multipath",
        OTHER: f"volume '{OTHER}' is sdc in the guest with {SIZE + 512} bytes, expected {SIZE}",
    }


def test_a_disk_of_another_size_is_a_doubt(sys: Sys) -> None:
    sys.disk("vdb", serial=VOLUME[:20], size=SIZE + 512)
    with pytest.raises(agent.AgentError, match=f"{SIZE + 512} bytes, expected {SIZE}") as told:
        look(sys)
    assert told.value.kind == "doubt"


def test_a_part_of_the_id_is_not_the_id(sys: Sys) -> None:
    sys.disk("vdb", serial=VOLUME[:19])
    sys.disk("vdc", serial=VOLUME[:20] + "x")
    sys.disk("sda", device__wwid=f"t10.QEMU QEMU HARDDISK {VOLUME}0")
    sys.disk("sdb")
    assert look(sys) is None


def test_a_disk_without_a_serial_is_not_every_disk(sys: Sys) -> None:
    sys.disk("vdb", serial="")
    with pytest.raises(agent.AgentError) as told:
        look(sys, volume_id="")
    assert told.value.kind == "usage"


def test_the_device_of_a_stack_is_never_the_disk(sys: Sys) -> None:
    sys.disk("dm-0", serial=VOLUME[:20])
    sys.disk("md0", serial=VOLUME[:20])
    assert look(sys) is None


@pytest.mark.parametrize(
    ("disk", "names"), [("vdb", ("vdb1", "vdb12")), ("nvme0n1", ("nvme0n1p1", "nvme0n1p12"))]
)
def test_a_partition_is_known_by_its_number(sys: Sys, disk: str, names: tuple[str, str]) -> None:
    sys.disk(disk, serial=VOLUME[:20])
    for name, number in zip(names, (1, 12), strict=True):
        sys.partition(disk, name, number)
    place = agent.Place({"sys": str(sys.root)})
    ref = {"volume_id": VOLUME, "size_bytes": SIZE, "partition": 12}
    assert agent.resolve_device(place, ref).path == f"/dev/{names[1]}"
    with pytest.raises(agent.AgentError, match=r"has no partition 2, it has \[1, 12\]"):
        agent.resolve_device(place, {**ref, "partition": 2})
    assert agent.resolve_device(place, {**ref, "partition": None}).path == f"/dev/{disk}"


def test_mountinfo_is_read_with_every_escape_and_tag() -> None:
    text = (
        "36 35 98:0 /mnt1 /mnt\\0402\\134x rw,noatime master:1 - ext3 /dev/root rw\n"
        "37 35 0:45 / /srv/a\\012b rw,relatime shared:7 master:2 - btrfs /dev/vdb rw,subvol=/\n"
        "broken line\n"
        "38 35 98:1 / /p rw unbindable - xfs /dev/vdc rw\n"
    )
    one, two, three = agent.parse_mountinfo(text)
    assert (one.target, one.root, one.dev, one.propagation) == (
        "/mnt 2\\x",
        "/mnt1",
        "98:0",
        "private,slave",
    )
    assert (two.target, two.propagation, two.fstype) == ("/srv/a\nb", "shared,slave", "btrfs")
    assert three.propagation == "unbindable"
