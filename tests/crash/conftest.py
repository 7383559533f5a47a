"""One tally for all sweeps of a run."""

from collections.abc import Iterator

import pytest

from tests.crash.tally import Tally


@pytest.fixture(scope="session")
def tally() -> Iterator[Tally]:
    found = Tally()
    yield found
    found.write()
