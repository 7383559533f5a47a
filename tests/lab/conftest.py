"""Fixtures over the real lab: brought up when needed, left up at the end.

A guest boots in 20 to 40 s under software emulation, so tests share one server and attach fresh
volumes to it. A test that hurts its server (reboots, hangs it) asks for `own_server`.
"""

from __future__ import annotations

import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

# The lab is not installed; it is run from the root of the repository.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from lab.api import Lab
from lab.cloud import Refused

SHARED_SERVER = "shared"


@pytest.fixture(scope="session")
def lab() -> Lab:
    """The lab that $VOLFERRY_LAB names, up. It stays up: the next run then starts at once."""
    found = Lab()
    found.up()
    return found


@pytest.fixture(autouse=True)
def _no_knobs(request: pytest.FixtureRequest) -> Iterator[None]:
    """A knob that one test left on must not fail another."""
    yield
    if "lab" in request.fixturenames:
        request.getfixturevalue("lab").knobs.reset()


@pytest.fixture(scope="session")
def server(lab: Lab) -> str:
    """The name of a running Debian 12 server that all tests share."""
    lab.ensure_server(SHARED_SERVER)
    return SHARED_SERVER


@pytest.fixture
def own_server(lab: Lab, new_volume: object) -> Iterator[Callable[..., str]]:
    """A function that makes a server for this test alone: own_server(image="debian-13").

    It is gone before the volumes of `new_volume` are: a guest in the middle of a boot lets no
    disk go.
    """
    made: list[str] = []

    def make(image: str = "debian-12", flavor: str = "m1.small") -> str:
        made.append(f"own-{uuid.uuid4().hex[:8]}")
        lab.ensure_server(made[-1], image=image, flavor=flavor)
        return made[-1]

    yield make
    for name in made:
        lab.delete_server(name)


@pytest.fixture
def new_volume(lab: Lab) -> Iterator[Callable[..., str]]:
    """A function that makes a volume for this test alone and returns its id."""
    made: list[str] = []

    def make(size_gib: int = 1, volume_type: str = "cbs-standard") -> str:
        name = f"test-{uuid.uuid4().hex[:8]}"
        made.append(lab.ensure_volume(name, size_gib, volume_type))
        return made[-1]

    yield make
    lab.knobs.reset()
    for volume_id in made:
        _remove(lab, volume_id)


def _remove(lab: Lab, volume_id: str) -> None:
    try:
        volume = lab.volume(volume_id)
    except Refused as refusal:
        assert refusal.code == 404
        return
    for attachment in volume["attachments"]:
        lab.detach(attachment["server_id"], volume_id)
    for snapshot in lab.member.get("block-storage", "/snapshots/detail")["snapshots"]:
        if snapshot["volume_id"] == volume_id:
            lab.admin_reset("snapshots", snapshot["id"])
            lab.delete_snapshot(snapshot["id"])
    if volume["status"].startswith("error"):
        # A member may delete a volume in `error`, but not one in `error_deleting`.
        lab.admin_reset("volumes", volume_id)
    lab.delete_volume(volume_id)
