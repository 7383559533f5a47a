"""Capture what real guests say, for the tests of the parsers.

Run ``python -m tests.facts.capture [IMAGE …]``.
Makes a server for each release in the lab, lays out a volume in every way that the parsers have to
know, and keeps the agent's raw facts of each as a file beside this one. To be run again when the
agent asks for more, or a release says it differently.
"""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from lab.api import Lab
from volferry.channels.ssh import Ssh
from volferry.guests.linux import LinuxGuest

HERE = Path(__file__).parent
IMAGES = ("debian-12", "debian-13")

# What is laid out on the volume $d, and on $e where a layout names it: each begins with blank disks
# and ends with its own clean-up. Where both are named, both are asked about, unless it says "half".
LUKS = """
    mkdir -p /etc/keys /srv/stack; head -c 64 /dev/urandom > /etc/keys/secret
    cryptsetup -q luksFormat --pbkdf pbkdf2 --pbkdf-force-iterations 1000 $d /etc/keys/secret
    echo "secret $d /etc/keys/secret luks,nofail" >> /etc/crypttab
    systemctl daemon-reload; systemctl start systemd-cryptsetup@secret
    """
NO_LUKS = """
    systemctl stop systemd-cryptsetup@secret; sed -i /secret/d /etc/crypttab
    rm /etc/keys/secret; systemctl daemon-reload
    """
LAYOUTS = {
    "xfs-fstab-bind": (
        """
        mkfs.xfs -q -f $d; mkdir -p /srv/data "/srv/with space"
        echo "UUID=$(blkid -s UUID -o value $d) /srv/data xfs noatime,nofail 0 2" >> /etc/fstab
        printf '%s\\n' '/srv/data/sub /srv/with\\040space none bind,nofail 0 0' >> /etc/fstab
        systemctl daemon-reload; systemctl start srv-data.mount; mkdir /srv/data/sub
        systemctl start 'srv-with\\x20space.mount'
        systemd-run -q --unit=holder --collect sh -c 'cd /srv/data; exec sleep 1000'
        """,
        """
        systemctl stop holder; umount "/srv/with space" /srv/data; sed -i '/srv/d' /etc/fstab
        systemctl daemon-reload
        """,
    ),
    "gpt-ext4-and-lvm": (
        """
        printf 'label: gpt\\n,300M,L\\n,,E6D6D379-F507-44C2-A23C-238F2A3DF928\\n' | sfdisk -q $d
        udevadm settle; mkfs.ext4 -q -F -L files ${d}1; pvcreate -q ${d}2 >/dev/null
        mkdir -p /srv/files; mount ${d}1 /srv/files
        """,
        "umount /srv/files; pvremove -q -ff -y ${d}2",
    ),
    "luks": ("printf x | cryptsetup -q luksFormat --pbkdf pbkdf2 $d -", "true"),
    "btrfs-subvolume": (
        """
        mkfs.btrfs -q -f $d; mkdir -p /srv/tree; mount $d /srv/tree
        btrfs -q subvolume create /srv/tree/inner
        """,
        "umount /srv/tree",
    ),
    "luks-keyfile": (
        LUKS + "mkfs.ext4 -q -F /dev/mapper/secret; mount /dev/mapper/secret /srv/stack",
        "umount /srv/stack; " + NO_LUKS,
    ),
    "lvm-on-luks": (
        LUKS
        + """
        pvcreate -q /dev/mapper/secret; vgcreate -q my-vg /dev/mapper/secret
        lvcreate -q -y -L 300M -n lv-a my-vg; lvcreate -q -y -L 100M -n raw my-vg
        lvcreate -q -y -s -L 48M -n snap my-vg/raw
        mkfs.ext4 -q -F /dev/my-vg/lv-a; mount /dev/my-vg/lv-a /srv/stack
        systemd-run -q --unit=holder --collect sh -c 'exec 3<>/dev/my-vg/raw; exec sleep 1000'
        sleep 2
        """,
        "systemctl stop holder; umount /srv/stack; vgremove -q -ff -y my-vg; " + NO_LUKS,
    ),
    "lvm-half": (
        """
        pvcreate -q -y $d $e; vgcreate -q both $d $e; lvcreate -q -y -i 2 -L 400M -n data both
        mkfs.xfs -q -f /dev/both/data; mkdir -p /srv/stack; mount /dev/both/data /srv/stack
        """,
        "umount /srv/stack; vgremove -q -ff -y both; pvremove -q -ff -y $d $e",
    ),
    "lvm-devices-file": (
        """
        mkdir -p /etc/lvm/devices /srv/stack; cp /etc/lvm/lvm.conf /root/lvm.conf
        printf 'devices {\n\tuse_devicesfile=1\n}\n' > /etc/lvm/lvm.conf
        touch /etc/lvm/devices/system.devices; pvcreate -q -y $d; vgcreate -q listed $d
        lvcreate -q -y -L 200M -n data listed; mkfs.ext4 -q -F /dev/listed/data
        mount /dev/listed/data /srv/stack
        """,
        """
        umount /srv/stack; vgremove -q -ff -y listed; pvremove -q -ff -y $d
        rm -r /etc/lvm/devices; mv /root/lvm.conf /etc/lvm/lvm.conf
        """,
    ),
    "md-raid0": (
        """
        mdadm -q --create /dev/md0 --run --level=0 --raid-devices=2 $d $e
        mkfs.xfs -q -f /dev/md0 2>/dev/null; mkdir -p /srv/stack; mount /dev/md0 /srv/stack
        """,
        "umount /srv/stack; mdadm -q --stop /dev/md0; mdadm -q --zero-superblock $d $e",
    ),
    "md-degraded": (
        """
        printf 'label: gpt\n,500M,L\n' | sfdisk -q $d; udevadm settle
        mdadm -q --create /dev/md0 --run --level=1 --raid-devices=2 ${d}1 missing
        mkfs.ext4 -q -F /dev/md0; mkdir -p /srv/stack; mount /dev/md0 /srv/stack
        """,
        "umount /srv/stack; mdadm -q --stop /dev/md0; mdadm -q --zero-superblock ${d}1",
    ),
}


async def main() -> None:
    lab = Lab()
    lab.up()
    for image in sys.argv[1:] or IMAGES:
        name = f"facts-{image}"
        lab.ensure_server(name, image=image)
        volume_ids = [lab.ensure_volume(f"{name}-{letter}", 1) for letter in "de"]
        for volume_id in volume_ids:
            lab.attach(name, volume_id)
        try:
            for layout, (lay_out, clean_up) in LAYOUTS.items():
                asked = volume_ids if "$e" in lay_out and "half" not in layout else volume_ids[:1]
                devices = "".join(
                    f"{letter}=$(readlink -f /dev/disk/by-id/virtio-{volume_id[:20]}); "
                    for letter, volume_id in zip("de", volume_ids, strict=True)
                )
                lab.ssh(name, f"set -e; {devices} wipefs -qa $d $e; {lay_out}", root=True)
                raw = await ask(lab, name, asked)
                lab.ssh(name, f"{devices}\n{clean_up}\nwipefs -qfa $d $e", root=True)
                file = HERE / f"{image}-{layout}.json"
                file.write_text(json.dumps(raw, indent=1, sort_keys=True) + "\n")
                print(file.name, file=sys.stderr)
        finally:
            lab.delete_server(name)
            for volume_id in volume_ids:
                lab.delete_volume(volume_id)


async def ask(lab: Lab, name: str, volume_ids: list[str]) -> dict[str, Any]:
    """The agent's facts. ``volume_id`` is the first volume asked about, as the tests know it."""
    async with Ssh(name, str(lab.ssh_config)) as channel:
        guest = LinuxGuest(channel)
        refs = [{"volume_id": volume_id, "size_bytes": 1 << 30} for volume_id in volume_ids]
        return {"volume_id": volume_ids[0], **await guest.ask_facts(refs, ["holder.service"], 1.0)}


if __name__ == "__main__":
    asyncio.run(main())
