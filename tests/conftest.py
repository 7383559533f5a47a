"""Fixtures over the real lab: brought up when needed, one run at a time, left up at the end.

They are here, above all folders that use them: a lab that is held twice waits for itself.

All that a run makes is named `test-<run>-…`. Whoever has the lab to itself may then delete every
`test-*` before it begins: a run that was killed left it, in whatever state. And no test may expect
an empty project: other things than ours may live in it.

A guest boots in 20 to 40 s under software emulation, so tests share one server and attach fresh
volumes to it. A test that hurts its server (reboots, hangs it) asks for `own_server`.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from xdist.scheduler import LoadScopeScheduling

# The lab is not installed; it is run from the root of the repository.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lab.api import Lab
from lab.cloud import Refused
from lab.errors import LabError
from tests.lab.kept import Kept
from tests.lab.naming import RUN, named
from tests.lab.volferry_command import Command, Guest, clean

# How long an example takes says something of the machine, and nothing of the code.
settings.register_profile(
    "patient",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("patient")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell starts its background jobs so, and every program of the tests would inherit it.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    """The lab that $VOLFERRY_LAB names, up. It stays up: the next run then starts at once."""
    found = Lab()
    with found.held("tests"):
        found.up()
        found.reset()
        swept = found.sweep("test-*")
        if swept:
            print(f"swept what an earlier run left: {', '.join(swept)}", file=sys.stderr)
        yield found
        found.sweep(f"{RUN}-*")


@pytest.fixture(autouse=True)
def _no_knobs(request: pytest.FixtureRequest) -> Iterator[None]:
    """A knob that one test left on must not fail another."""
    yield
    if "lab" in request.fixturenames:
        request.getfixturevalue("lab").knobs.reset()


@pytest.fixture(scope="session")
def server(lab: Lab) -> str:
    """The name of a running Debian 12 server that all tests share."""
    name = named("shared")
    lab.ensure_server(name)
    return name


@pytest.fixture
def own_server(lab: Lab, new_volume: object) -> Iterator[Callable[..., str]]:
    """A function that makes a server for this test alone: own_server(image="debian-13").

    It is gone before the volumes of `new_volume` are: a guest in the middle of a boot lets no
    disk go.
    """
    made: list[str] = []

    def make(image: str = "debian-12", flavor: str = "m1.small") -> str:
        made.append(named("own"))
        lab.ensure_server(made[-1], image=image, flavor=flavor)
        return made[-1]

    yield make
    for name in made:
        lab.delete_server(name)


@pytest.fixture
def new_volume(lab: Lab) -> Iterator[Callable[..., str]]:
    """A function that makes a volume for this test alone and returns its id."""
    made: dict[str, str] = {}

    def make(size_gib: int = 1, volume_type: str = "cbs-standard") -> str:
        name = named("volume")
        made[name] = lab.ensure_volume(name, size_gib, volume_type)
        return made[name]

    yield make
    lab.knobs.reset()
    for name, volume_id in made.items():
        with contextlib.suppress(Refused):  # a test may have deleted it
            for attachment in lab.volume(volume_id)["attachments"]:
                lab.detach(attachment["server_id"], volume_id)
        lab.sweep(name)  # its snapshots, and the target that volferry named after it, as well


@pytest.fixture
def volferry(lab: Lab, tmp_path: Path) -> Iterator[Command]:
    command = Command(lab, tmp_path)
    yield command
    command.end()


class Servers:
    """One server an image, for all tests that put it back as it was."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._made: dict[str, str] = {}

    def get(self, image: str) -> str:
        if image not in self._made:
            self._made[image] = named(image)
            self._lab.ensure_server(self._made[image], image=image)
        return self._made[image]

    def give_back(self, guest: Guest) -> None:
        """Put a guest's server back as it was, or delete it where that cannot be had."""
        try:
            clean(self._lab, guest)
        except (subprocess.SubprocessError, LabError):
            self.drop(guest.name)

    def drop(self, name: str) -> None:
        """Delete one that a test left in a state that the next one must not find."""
        self._lab.delete_server(name)
        self._made = {image: one for image, one in self._made.items() if one != name}

    def drop_all(self) -> None:
        for name in list(self._made.values()):
            self.drop(name)


@pytest.fixture(scope="session")
def servers(lab: Lab) -> Iterator[Servers]:
    made = Servers(lab)
    yield made
    made.drop_all()


@pytest.fixture(scope="module")
def kept(lab: Lab, servers: Servers) -> Iterator[Kept]:
    """A volume in use that all tests of a file share."""
    one = Kept(lab, servers)
    yield one
    one.drop()


@pytest.fixture
def in_use(
    lab: Lab, servers: Servers, volferry: Command, new_volume: Callable[..., str]
) -> Iterator[Callable[..., Guest]]:
    """A volume in a server with a filesystem, a tree and a service that writes to it."""
    guests: list[Guest] = []

    def make(image: str, fstype: str, table: str = "whole", fstab: str = "uuid") -> Guest:
        server = servers.get(image)
        guest = Guest(lab, server, new_volume(), "/srv/data")
        guests.append(guest)
        lab.attach(server, guest.volume_id)
        guest.put_in_use(fstype, table, fstab)
        return guest

    yield make
    volferry.end()
    for guest in guests:
        servers.give_back(guest)


SECOND_RUN = (
    "tests/unit/test_interrupt.py",  # its measure is the clock: the two seconds of a Ctrl-C
    # Not yet seen to pass three times in a row, the first time each, on a machine that is busy.
    "tests/contract/test_guest.py",
    "tests/crash/",
    "tests/disks/",
    "tests/faults/guest/",
)
"""What is told twice before it is a failure, beside the lab. Take out what is steady."""


BESIDE_THE_LAB = 4
"""Niceness. Little, for much of what runs beside the lab waits with a limit."""


def kind_of(nodeid: str) -> str:
    """What of the machine a test needs for itself: ``lab``, ``disks`` (and clocks), or nothing."""
    path, _, name = nodeid.partition("::")
    if path.startswith("tests/unit/"):
        return ""
    words = re.split(r"[^a-z]+", f"{path} {name.partition('[')[2]}")
    return "lab" if "lab" in words else "disks"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """With ``-n 2`` one process has the lab, where most of the time is waiting, and another one
    the disks; what needs neither fills up, a file at a time.

    By name, and not by xdist's own groups: what a worker adds to an item's name is lost with
    pytest 9.2 (seen with xdist 3.8).
    """

    class Apart(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return kind_of(nodeid) or str(super()._split_scope(nodeid))

    return Apart(config, log)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Of two processes the lab's goes first: it is the longer way, and its guests are emulated.

    Only root may take it back, so for others all is left as it is.
    """
    if "PYTEST_XDIST_WORKER" in os.environ and os.geteuid() == 0:
        nice = 0 if kind_of(item.nodeid) == "lab" else BESIDE_THE_LAB
        os.setpriority(os.PRIO_PROCESS, 0, nice)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The lab, and what ``SECOND_RUN`` names, is told twice before it is a failure.

    A machine of two cores that emulates its guests stalls for seconds at times. The summary names
    each test that needed a second run, so one that needs it often is seen. All others have to pass
    the first time: a second run would hide a race that one run in ten loses.
    """
    for item in items:
        kind = kind_of(item.nodeid)
        if item.get_closest_marker("lab") or "lab" in getattr(item, "fixturenames", ()):
            assert kind == "lab", f"{item.nodeid} needs the lab, which its name does not tell"
        if kind == "lab" or item.nodeid.startswith(SECOND_RUN):
            item.add_marker(pytest.mark.flaky(reruns=1, reruns_delay=5))
