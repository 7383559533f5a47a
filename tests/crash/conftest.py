"""One tally for all sweeps of a process; those of a run are added up."""

from collections.abc import Iterator

import pytest

from tests.crash.tally import FILE, Tally, this_run


@pytest.fixture(scope="session")
def tally() -> Iterator[Tally]:
    found = Tally()
    yield found
    found.add_to(FILE, this_run())
