"""Every guest of a test gets directories of its own, and takes its processes with it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

from agent_rig import Disks, Guest, disks_in, leave_out, why_no_loop_devices

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="the agent runs as root")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = str(Path(__file__).resolve().parent)
    for item in items:
        if str(item.path).startswith(here):
            item.add_marker(needs_root)


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[Guest]:
    found = Guest(tmp_path)
    yield found
    found.kill_everything()


@pytest.fixture
def disks(tmp_path: Path) -> Iterator[Disks]:
    why = why_no_loop_devices()
    if why:
        leave_out(why)
    with disks_in(tmp_path) as found:
        yield found


@pytest.fixture
def stand_in(tmp_path: Path) -> Callable[[str, str], str]:
    """Puts a program of a given name and text in front of the PATH; gives that PATH."""

    def make(name: str, text: str) -> str:
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        program = folder / name
        program.write_text(text)
        program.chmod(0o755)
        return f"{folder}:{os.environ['PATH']}"

    return make
