"""The rig of the tests on real disks, for tests that break what runs on it."""

import importlib.util
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
_DISKS = HERE.parents[1] / "disks"
sys.path.insert(0, str(_DISKS))

_spec = importlib.util.spec_from_file_location("volferry_disks_fixtures", _DISKS / "conftest.py")
assert _spec is not None
assert _spec.loader is not None
_fixtures = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_fixtures)

guest, disks, world, stand_in = (
    _fixtures.guest, _fixtures.disks, _fixtures.world, _fixtures.stand_in,
)  # fmt: skip
loop_devices, tracking = _fixtures.loop_devices, _fixtures.tracking


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.disks)
