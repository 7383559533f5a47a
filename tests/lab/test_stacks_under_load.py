"""Each stack is mirrored in a real guest under every kind of write: the disks are then the same
byte for byte.

The machine that the tests run on may have neither device-mapper nor md: guests have both. `make
test` carries one stack, `make test-stacks` all, each with all filesystems, and a mirror that loses
writes.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from lab.api import Lab
from tests.lab.naming import named
from tests.lab.stacks import in_full, links
from volferry import agent
from volferry.channels.ssh import Ssh
from volferry.guests import linux_facts, quarantine
from volferry.guests.linux import LinuxGuest
from volferry.model import DiskRef, GuestFacts

pytestmark = pytest.mark.lab

HERE = Path(__file__).parent
LOAD = HERE.parent / "disks" / "load.py"
MOUNT = "/srv/load"
SIZE = 384 << 20
"""Of a stack's volumes together: mkfs.xfs refuses less than 300 MiB, and all is read five times by
an emulated processor."""
SECONDS = 6.0
DEEDS = {"renames", "storms", "direct", "mapped", "truncates", "discards"}
ON_A_DEVICE = {"storms", "direct", "mapped", "discards"}


class Stack(NamedTuple):
    name: str
    fstype: str
    volumes: int = 1

    def __str__(self) -> str:
        return "-".join(filter(None, (self.name, self.fstype)))


STACKS = [
    *(
        Stack(name, fstype, volumes)
        for name, volumes in (
            ("lvm", 1), ("luks", 1), ("lvm-on-luks", 1), ("md", 2), ("lvm-two", 2)
        )
        for fstype in ("ext4", "xfs", "btrfs")
    ),
    Stack("partition", ""),
]  # fmt: skip
CARRIED = Stack("md", "xfs", 2)

LAY_OUT = f"""
set -e
for link in $SOURCES $TARGETS; do
  for i in $(seq 600); do [ -e $link ] && break; sleep 0.1; done
done
device=$(sh -s $STACK $SOURCES <<'SCRIPT' | tail -n 1 | cut -d ' ' -f 1
$SCRIPT
SCRIPT
)
if [ -n "$FSTYPE" ]; then
  force=-f; [ "$FSTYPE" = ext4 ] && force=-F
  mkfs.$FSTYPE -q $force $device >&2
  mkdir -p {MOUNT}; mount -o noatime $device {MOUNT}
fi
udevadm settle
echo $device
"""

# The disks are taken out afterwards, so that what is on them does not matter.
CLEAN_UP = f"""
systemctl stop 'volferry-*'; umount {MOUNT}
vgchange -an moved; cryptsetup close secret; systemctl stop systemd-cryptsetup@secret
mdadm --stop /dev/md0
sed -i '/^secret /d' /etc/crypttab; sed -i '/^ARRAY /d' /etc/mdadm/mdadm.conf
rm -rf /etc/keys; systemctl daemon-reload; udevadm settle
true
"""


class Mirrored:
    """Fresh volumes in the shared guest, and a stack that is laid out on half of them."""

    def __init__(
        self, lab: Lab, server: str, stack: Stack, sources: list[str], targets: list[str]
    ) -> None:
        self.lab, self.server, self.stack = lab, server, stack
        self.sources, self.targets = sources, targets
        self.size_bytes = SIZE // stack.volumes
        self.device = self.attached()

    def attached(self) -> str:
        """-> the device on top of the stack."""
        for volume_id in self.sources + self.targets:
            cut_short(self.lab, volume_id, self.size_bytes)
            self.lab.attach(self.server, volume_id)
        words = {
            "$SCRIPT": (HERE / "stacks.sh").read_text(),
            "$SOURCES": links(self.sources),
            "$TARGETS": links(self.targets),
            "$STACK": self.stack.name,
            "$FSTYPE": self.stack.fstype,
        }
        script = re.sub(r"\$[A-Z]+", lambda found: words[found.group()], LAY_OUT)
        return self.lab.ssh(self.server, script, root=True).split()[-1]

    def ref(self, volume_id: str) -> dict[str, Any]:
        return {"volume_id": volume_id, "size_bytes": self.size_bytes}

    def drive(self, **more: Any) -> dict[str, Any]:
        """Mirror it under load to the end, and compare; see ``drive_load.py``."""
        return asyncio.run(self.run_driver(more))

    async def run_driver(self, more: dict[str, Any]) -> dict[str, Any]:
        driver = ["python3", "-c", (HERE / "drive_load.py").read_text()]
        async with Ssh(self.server, str(self.lab.ssh_config)) as channel:
            facts = await self.facts(channel)
            request = json.dumps({**self.request(facts), **more})
            done = await channel.run(driver, stdin=request.encode(), timeout_s=900, root=True)
        print(done.err.decode(errors="replace"))
        assert done.code == 0, done.complaint
        told: dict[str, Any] = json.loads(done.text)
        return told

    async def facts(self, channel: Ssh) -> GuestFacts:
        refs = [self.ref(volume_id) for volume_id in self.sources]
        raw = await LinuxGuest(channel).ask_facts(refs, [], 0.0)
        return linux_facts.read(raw, [DiskRef(**ref) for ref in refs])

    def request(self, facts: GuestFacts) -> dict[str, Any]:
        transfer = named("load")
        return {
            "transfer": transfer,
            "program": agent.program().decode(),
            "load": LOAD.read_text(),
            "seed": sum(str(self.stack).encode()),
            "seconds": SECONDS,
            "mount": MOUNT if self.stack.fstype else "",
            "device": self.device,
            "layers": [layer.model_dump(mode="json") for layer in facts.layers],
            "sources": [self.ref(volume_id) for volume_id in self.sources],
            "targets": [self.ref(volume_id) for volume_id in self.targets],
            "rule": quarantine.path(transfer),
            "rules": {
                "targets": quarantine.rule(self.targets, transfer),
                "all": quarantine.rule(self.targets + self.sources, transfer),
            },
            "mirror": {},
            "verify": "full",
            "overwrite": 0,
        }


def cut_short(lab: Lab, volume_id: str, size_bytes: int) -> None:
    """Behind Cinder's back, whose smallest volume has a GiB: nobody has it open yet."""
    [file] = lab.layout.volumes.glob(f"*/volume-{volume_id}")
    os.truncate(file, size_bytes)


@pytest.fixture
def mirrored(
    lab: Lab, server: str, new_volume: Callable[..., str]
) -> Iterator[Callable[[Stack], Mirrored]]:
    def make(stack: Stack) -> Mirrored:
        volumes = [new_volume() for _ in range(2 * stack.volumes)]
        sources, targets = volumes[: stack.volumes], volumes[stack.volumes :]
        return Mirrored(lab, server, stack, sources, targets)

    yield make
    lab.ssh(server, CLEAN_UP, root=True)


@pytest.mark.parametrize(
    "stack",
    [pytest.param(one, marks=[] if one == CARRIED else in_full, id=str(one)) for one in STACKS],
)
def test_byte_for_byte_under_every_kind_of_write(
    mirrored: Callable[[Stack], Mirrored], stack: Stack
) -> None:
    at = 20 << 20
    guest = mirrored(stack)
    told = guest.drive(overwrite=at)
    assert told["differing"] == [[]] * stack.volumes
    assert set(told["load"]) == (DEEDS if stack.fstype else ON_A_DEVICE)
    assert told["notes"] == [] and told["events"] > 200
    assert told["final"]["verified"] is True
    assert told["late_events"] > 0, "it had come to rest before the load ended"
    # Else nobody knows whether this comparison could tell anything.
    assert told["overwritten"] == [[]] * (stack.volumes - 1) + [[at]]


@in_full
def test_a_mirror_that_loses_writes_is_not_the_same(
    mirrored: Callable[[Stack], Mirrored],
) -> None:
    """Every third write is not told of, and nobody looks for what was lost."""
    guest = mirrored(Stack("lvm", "ext4"))
    told = guest.drive(mirror={"drop_every": 3, "counters": False}, verify="none")
    assert told["final"]["verified"] == "none"
    assert told["differing"][0]
