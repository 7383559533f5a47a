"""The file system under the volumes: XFS with reflink in a sparse file, mounted over a loop device.

With reflink a snapshot of a live volume takes milliseconds and is a point in time. Without it
(`cp` on ext4) the copy runs while the guest writes, so the snapshot is torn: that is no basis for
tests, but enough to look around, hence the fall-back.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from lab import processes
from lab.errors import LabError
from lab.install import as_root
from lab.layout import Layout

SIZE_GIB = 64


def is_mounted(layout: Layout) -> bool:
    """Say whether the volumes' file system is mounted."""
    return os.path.ismount(layout.volumes)


def is_ready(layout: Layout) -> bool:
    """Say whether volumes have their place: mounted, or the plain folder of the fall-back."""
    return is_mounted(layout) or (layout.volumes.exists() and not layout.volumes_image.exists())


def describe(layout: Layout) -> str:
    """Return what the volumes lie on, for a person."""
    if is_mounted(layout):
        free = os.statvfs(layout.volumes)
        return f"XFS with reflink, {free.f_bavail * free.f_frsize >> 30} GiB free"
    return "plain folder: snapshots of attached volumes are not a point in time"


def mount(layout: Layout, say: Callable[[str], None]) -> None:
    """Mount the volumes' file system; make it first, or warn and use a plain folder.

    Raises LabError when it was made before and cannot be mounted now: the volumes are in there.
    """
    layout.volumes.mkdir(exist_ok=True)
    if is_mounted(layout) or (is_ready(layout) and layout.prepared.exists()):
        return  # the plain folder of a lab with volumes stays what it is
    if layout.volumes_image.exists():
        _mount(layout)
        return
    try:
        draft = layout.volumes_image.with_suffix(".part")
        with draft.open("wb") as disk:
            disk.truncate(SIZE_GIB << 30)
        processes.run(layout, ["mkfs.xfs", "-q", "-f", "-m", "reflink=1", draft], timeout_s=60)
        draft.replace(layout.volumes_image)
        _mount(layout)
    except LabError as failure:
        layout.volumes_image.unlink(missing_ok=True)
        say(
            f"warning: no XFS over a loop device here ({failure.happened})\n"
            "  volumes go into a plain folder: a snapshot of an attached volume is a slow copy of"
            " a live file and not a point in time\n"
            f"hint: {failure.hint}; a container needs the right to mount"
        )


def _mount(layout: Layout) -> None:
    attach = as_root("losetup", "--find", "--show", layout.volumes_image)
    disk = processes.run(layout, attach, timeout_s=30).strip()
    try:
        # A read-only flag that somebody gave a loop device outlives its detachment, and `mount`
        # would only warn and mount read-only.
        processes.run(layout, as_root("blockdev", "--setrw", disk), timeout_s=30)
        # discard: a deleted volume gives its blocks back to the disk of the host.
        mount_it = as_root("mount", "-t", "xfs", "-o", "discard,noatime", disk, layout.volumes)
        processes.run(layout, mount_it, timeout_s=60)
    finally:
        # A mounted one goes away with its file system, any other at once.
        processes.run(layout, as_root("losetup", "--detach", disk), timeout_s=30)
    processes.run(layout, as_root("chown", f"{os.getuid()}", layout.volumes), timeout_s=10)


def unmount(layout: Layout) -> None:
    """Unmount the volumes' file system; its file stays."""
    if is_mounted(layout):
        processes.run(layout, as_root("umount", layout.volumes), timeout_s=60)
