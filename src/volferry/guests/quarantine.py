"""A udev rule that keeps one of each two look-alike disks out of every storage stack.

A clone carries its origin's filesystem UUID, label and partition GUIDs; without this,
``/dev/disk/by-uuid`` flips to the clone the moment it is plugged in, and the next boot or
``mount -a`` mounts the stale copy (seen on Debian 12, kernel 6.1, systemd 252).

Which of the two the rule names *is* the live side: replacing this one file is the commit, for all
volumes of a transfer at once.
"""

import re
from collections.abc import Iterable

FOLDER = "/etc/udev/rules.d"

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,127}")


def path(transfer_id: str) -> str:
    """Where the rule of a transfer lies. It must sort before 60-persistent-storage.rules."""
    return f"{FOLDER}/10-volferry-{transfer_id}.rules"


def rule(volume_ids: Iterable[str], transfer_id: str) -> str:
    """The rule that keeps the disks of volumes out; survives a reboot, removed by ``finish``.

    ``UDEV_DISABLE_PERSISTENT_STORAGE_RULES_FLAG`` leaves the disk without by-uuid, by-label and
    by-partuuid links and without a known filesystem type, so that neither LVM's autoactivation nor
    ``btrfs device scan`` by udev sees it; ``SYSTEMD_READY=0`` keeps systemd from it.
    """
    effects = ", ".join(
        (
            'ENV{UDEV_DISABLE_PERSISTENT_STORAGE_RULES_FLAG}="1"',
            'ENV{SYSTEMD_READY}="0"',
            'ENV{UDISKS_IGNORE}="1"',
        )
    )
    lines = [
        f"# volferry {transfer_id}: keeps volumes out of use during a transfer.",
        "# Removed by 'volferry finish' or 'volferry rollback'.",
    ]
    for volume_id in volume_ids:
        if not _ID.fullmatch(volume_id):
            # A quotation mark or a newline in a rule would be a rule of its own, run by root.
            raise ValueError(f"{volume_id!r} is not a volume's id")
        lines.append(f"# {volume_id}")
        lines += [
            f'ACTION!="remove", SUBSYSTEM=="block", {match}, {effects}'
            for match in (
                # virtio-blk shows the first 20 characters of the volume's id, NVMe may show all.
                f'ATTRS{{serial}}=="{volume_id[:20]}*"',
                # virtio-scsi has no serial attribute; its wwid ends with the whole id.
                f'ATTRS{{wwid}}=="*{volume_id}*"',
            )
        ]
    return "\n".join(lines) + "\n"
