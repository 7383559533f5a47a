"""The tally of the crash tests is that of one run, however many processes it had."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.crash.tally import Tally, this_run


def test_processes_of_one_run_are_added_up(tmp_path: Path) -> None:
    path = tmp_path / "build" / "crash.json"
    with ThreadPoolExecutor(8) as pool:
        each = [pool.submit(Tally(3, 2, 1).add_to, path, "this run") for _ in range(20)]
        for one in each:
            one.result()

    assert str(Tally.of(path)) == "60 crash points, 40 resumed, 20 rolled back"


def test_another_run_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "crash.json"
    Tally(300, 200, 100).add_to(path, "before")
    path.write_text(path.read_text().replace("before", "x" * 200))
    Tally(3, 2, 1).add_to(path, "this run")

    assert Tally.of(path) == Tally(3, 2, 1)


def test_without_processes_every_run_is_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTEST_XDIST_TESTRUNUID", raising=False)
    assert this_run() != this_run()
    monkeypatch.setenv("PYTEST_XDIST_TESTRUNUID", "4f1a")
    assert this_run() == "4f1a"
