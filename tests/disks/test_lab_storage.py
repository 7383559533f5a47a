"""The file system under the lab's volumes, on a loop device that somebody left behind."""

from __future__ import annotations

import os
from pathlib import Path

from agent_rig import Disks, shell

from lab import storage
from lab.layout import Layout


def test_a_loop_device_that_was_left_read_only_is_mounted_read_write(
    disks: Disks, tmp_path: Path
) -> None:
    layout = Layout(tmp_path / "lab")
    for folder in (layout.root, layout.logs):
        folder.mkdir()
    left = disks.blank("left", 8)
    shell("blockdev", "--setro", left.loop)
    shell("losetup", "--detach", left.loop)
    disks.volumes.remove(left)  # the device is anybody's from here on
    assert Path(f"/sys/block/{Path(left.loop).name}/ro").read_text() == "1\n"

    storage.mount(layout, print)
    try:
        (layout.volumes / "volume").write_bytes(b"written")
        assert "XFS with reflink" in storage.describe(layout)
        assert os.stat(layout.volumes).st_dev == os.makedev(*numbers(left.loop))
    finally:
        storage.unmount(layout)
    assert str(layout.volumes_image) not in shell("losetup", "--list")


def numbers(device: str) -> tuple[int, int]:
    major, minor = Path(f"/sys/block/{Path(device).name}/dev").read_text().split(":")
    return int(major), int(minor)
