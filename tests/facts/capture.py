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

# What is laid out on the volume $d: each begins with a blank disk and ends with its own clean-up.
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
}


async def main() -> None:
    lab = Lab()
    lab.up()
    for image in sys.argv[1:] or IMAGES:
        name = f"facts-{image}"
        lab.ensure_server(name, image=image)
        volume_id = lab.ensure_volume(name, 1)
        lab.attach(name, volume_id)
        try:
            for layout, (lay_out, clean_up) in LAYOUTS.items():
                device = f"d=$(readlink -f /dev/disk/by-id/virtio-{volume_id[:20]}); "
                lab.ssh(name, f"set -e; {device} wipefs -qa $d; {lay_out}", root=True)
                raw = await ask(lab, name, volume_id)
                lab.ssh(name, f"{device}\n{clean_up}\nwipefs -qfa $d", root=True)
                file = HERE / f"{image}-{layout}.json"
                file.write_text(json.dumps(raw, indent=1, sort_keys=True) + "\n")
                print(file.name, file=sys.stderr)
        finally:
            lab.delete_server(name)
            lab.delete_volume(volume_id)


async def ask(lab: Lab, name: str, volume_id: str) -> dict[str, Any]:
    async with Ssh(name, str(lab.ssh_config)) as channel:
        guest = LinuxGuest(channel)
        refs = [{"volume_id": volume_id, "size_bytes": 1 << 30}]
        return {"volume_id": volume_id, **await guest.ask_facts(refs, ["holder.service"], 1.0)}


if __name__ == "__main__":
    asyncio.run(main())
