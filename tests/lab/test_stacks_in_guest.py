"""The agent closes and opens stacks in a real guest, and sees which disk they lie on."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from lab.api import Lab
from tests.facts.capture import LAYOUTS, ask
from volferry import agent
from volferry.channels.ssh import Ssh
from volferry.guests import linux_facts
from volferry.model import DiskRef, GuestFacts

pytestmark = pytest.mark.lab

# Each thing is asked for twice: saying it twice is saying it once.
DRIVER = """
import json, subprocess, sys, time
asked = json.load(sys.stdin)
agent = {"__name__": "agent"}
exec(compile(asked["program"], "agent", "exec"), agent)
place, layers, refs = agent["Place"](), asked["layers"], asked["refs"]

def attempt(name, *arguments):
    began = time.monotonic()
    try:
        agent[name](place, layers, *arguments, began + asked["seconds"])
    except agent["AgentError"] as error:
        return error.kind
    return "done"

def left():
    return [b["path"] for layer in layers for b in agent["open_blocks"](place, layer)]

told = {"problem": agent["stack_problem"](place, layers), "mounted": attempt("release_stack")}
told["still there"] = sorted(left())
subprocess.check_call(["umount", "/srv/stack"])
told["released"] = [attempt("release_stack"), attempt("release_stack")]
told["left"] = left()
told["assembled"] = [attempt("assemble_stack", refs), attempt("assemble_stack", refs)]
told["back"] = sorted(left())
told["on another disk"] = attempt("assemble_stack", asked["wrong"]) if asked["wrong"] else "doubt"
print(json.dumps(told))
"""


@pytest.fixture(params=["lvm-on-luks", "md-raid0"])
def stacked(
    request: pytest.FixtureRequest, lab: Lab, server: str, new_volume: Callable[..., str]
) -> Iterator[tuple[list[str], int]]:
    """Volumes with a layout of the captured facts on them, and how many of them it takes."""
    volumes = [new_volume(), new_volume()]
    for volume_id in volumes:
        lab.attach(server, volume_id)
    links = [f"/dev/disk/by-id/virtio-{volume_id[:20]}" for volume_id in volumes]
    devices = "set -e; for i in $(seq 600); do [ -e {0} ] && [ -e {1} ] && break; sleep 0.1; done\n"
    devices = devices.format(*links) + "d=$(readlink -f {}); e=$(readlink -f {})\n".format(*links)
    lay_out, clean_up = LAYOUTS[request.param]
    lab.ssh(server, f"{devices}{lay_out}\necho kept > /srv/stack/kept; sync", root=True)
    yield volumes, 2 if "$e" in lay_out else 1
    lab.ssh(server, f"{devices} set +e\n{clean_up}\ntrue", root=True)


async def drive(lab: Lab, server: str, request: dict[str, Any]) -> dict[str, Any]:
    async with Ssh(server, str(lab.ssh_config)) as channel:
        done = await channel.run(
            ["python3", "-c", DRIVER], stdin=json.dumps(request).encode(), timeout_s=240, root=True
        )
    assert done.code == 0, done.complaint
    told: dict[str, Any] = json.loads(done.text)
    return told


def facts(lab: Lab, server: str, volumes: list[str]) -> GuestFacts:
    raw = asyncio.run(ask(lab, server, volumes))
    return linux_facts.read(raw, [DiskRef(volume_id=v, size_bytes=1 << 30) for v in volumes])


def test_a_stack_is_closed_and_opened_on_the_side_that_is_live(
    lab: Lab, server: str, stacked: tuple[list[str], int]
) -> None:
    volumes, taken = stacked
    found = facts(lab, server, volumes[:taken])
    assert all(layer.all_on_source and not layer.problem for layer in found.layers)
    refs = {v: {"volume_id": v, "size_bytes": 1 << 30} for v in volumes}
    lab.run(server, "systemctl stop holder", root=True)

    told = asyncio.run(
        drive(
            lab,
            server,
            {
                "program": agent.program().decode(),
                "layers": [layer.model_dump(mode="json") for layer in found.layers],
                "refs": {v: refs[v] for v in volumes[:taken]},
                "wrong": {volumes[0]: refs[volumes[1]]} if taken == 1 else {},
                "seconds": 60.0,
            },
        )
    )

    assert told["problem"] == ""
    assert told["mounted"] == "busy", "a stack in use is left alone"
    assert told["released"] == told["assembled"] == ["done", "done"]
    assert told["left"] == []
    assert told["back"] == told["still there"]
    assert told["on another disk"] == "doubt"
    again = f"mount {found.filesystems[0].device} /srv/stack && cat /srv/stack/kept"
    assert lab.ssh(server, again, root=True) == "kept\n"
