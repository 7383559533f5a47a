"""Real filesystems on loop devices, and a service that writes to them."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "agent"))

from agent_rig import Disks, Guest, disks_in, leave_out, why_no_loop_devices
from disks_world import World
from mirror_world import ended, why_no_mirror

HERE = Path(__file__).resolve().parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.disks)


@pytest.fixture(autouse=True, scope="session")
def loop_devices() -> None:
    why = why_no_loop_devices()
    if why:
        leave_out(why)


@pytest.fixture(scope="session")
def tracking() -> None:
    """For tests of the mirror: the kernel has to tell of writes."""
    why = why_no_mirror()
    if why:
        leave_out(why)


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[Guest]:
    found = Guest(tmp_path)
    yield found
    found.kill_everything()


@pytest.fixture
def disks(tmp_path: Path) -> Iterator[Disks]:
    with disks_in(tmp_path) as found:
        yield found


@pytest.fixture
def world(guest: Guest, disks: Disks) -> Iterator[World]:
    """Made by the test itself: ``world.make("xfs")``."""
    with ended(World(guest, disks)) as found:
        yield found


@pytest.fixture
def stand_in(guest: Guest, tmp_path: Path) -> Callable[[str, str], None]:
    """Puts a program of a given name in front of the guest's PATH; ``{real}`` is the real one."""

    def make(name: str, text: str) -> None:
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        program = folder / name
        real = shutil.which(name, path=guest.path)
        program.write_text("#!/bin/sh\n" + text.replace("{real}", str(real)))
        program.chmod(0o755)
        if not guest.path.startswith(str(folder)):
            guest.path = f"{folder}:{guest.path}"

    return make
