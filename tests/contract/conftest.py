"""Makes the lab's fixtures known here, where one suite runs on a fake and on the real thing."""

import importlib.util
import sys
from pathlib import Path

_HERE = Path(__file__).resolve()
sys.path.insert(0, str(_HERE.parents[2]))  # for `tests.fakes`, which is not installed

_spec = importlib.util.spec_from_file_location(
    "volferry_lab_fixtures", _HERE.parents[1] / "lab" / "conftest.py"
)
assert _spec is not None
assert _spec.loader is not None
_fixtures = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_fixtures)

lab = _fixtures.lab
server = _fixtures.server
