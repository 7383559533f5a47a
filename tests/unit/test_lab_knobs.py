"""The lab's knobs: what the drivers are told to do."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from lab.knobs import ALWAYS, OPERATIONS, Knob, Knobs, OrderedFault


@pytest.fixture
def knobs(tmp_path: Path) -> Knobs:
    return Knobs(tmp_path / "knobs.json")


def test_without_knobs_every_operation_does_its_work(knobs: Knobs) -> None:
    assert all(knobs.obey(operation) for operation in OPERATIONS)
    assert not knobs.path.exists()


def test_a_fault_happens_as_often_as_ordered(knobs: Knobs) -> None:
    knobs.set("create_volume", fail=2)
    for _ in range(2):
        with pytest.raises(OrderedFault):
            knobs.obey("create_volume")
    assert knobs.obey("create_volume")


def test_always_does_not_wear_off(knobs: Knobs) -> None:
    knobs.set("detach", fail=ALWAYS)
    for _ in range(5):
        with pytest.raises(OrderedFault):
            knobs.obey("detach")
    assert knobs.get("detach") == Knob(fail=ALWAYS)


def test_an_ignored_operation_is_told_not_to_work(knobs: Knobs) -> None:
    knobs.set("attach", ignore=1)
    assert [knobs.obey("attach"), knobs.obey("attach")] == [False, True]


def test_fail_comes_before_ignore(knobs: Knobs) -> None:
    knobs.set("retype", fail=1, ignore=1)
    with pytest.raises(OrderedFault):
        knobs.obey("retype")
    assert knobs.obey("retype") is False
    assert knobs.obey("retype") is True


def test_the_delay_holds_nobody_else_up(knobs: Knobs) -> None:
    knobs.set("create_snapshot", delay=0.5)
    slow = threading.Thread(target=knobs.obey, args=("create_snapshot",))
    began = time.monotonic()
    slow.start()
    knobs.obey("create_volume")
    assert time.monotonic() - began < 0.4
    slow.join()
    assert time.monotonic() - began >= 0.5


def test_counts_are_right_under_many_threads(knobs: Knobs) -> None:
    knobs.set("create_volume", fail=10)
    faults = []

    def work() -> None:
        try:
            knobs.obey("create_volume")
        except OrderedFault:
            faults.append(1)

    threads = [threading.Thread(target=work) for _ in range(25)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(faults) == 10


@pytest.mark.parametrize(
    ("operation", "settings"),
    [
        ("no_such", {"fail": 1}),
        ("create_volume", {"ignore": 1}),
        ("detach", {"fail": -2}),
        ("detach", {"delay": -1.0}),
    ],
)
def test_what_no_driver_would_obey_is_refused(
    knobs: Knobs, operation: str, settings: dict[str, int]
) -> None:
    with pytest.raises(ValueError, match=r"."):
        knobs.set(operation, **settings)
    assert knobs.all() == {}


def test_reset_turns_all_off(knobs: Knobs) -> None:
    knobs.set("attach", fail=1)
    knobs.reset()
    assert knobs.all() == {}
