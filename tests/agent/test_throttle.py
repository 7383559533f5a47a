"""The rate that a copy is held to, however low it is, and who need not wait for it."""

import threading
import time

import pytest

from volferry.agent.blocks import Throttle

KIB = 1 << 10


def paying(throttle: Throttle, kib: int) -> float:
    """Seconds that a transfer of so many KiB, which took no time, has to wait."""
    began = time.monotonic()
    throttle.pay(kib * KIB, 0.0)
    return time.monotonic() - began


def test_a_rate_far_below_one_transfer_a_second_is_kept() -> None:
    throttle = Throttle()
    throttle.bytes_s = 512 * KIB
    assert 1.9 < paying(throttle, 1024) < 3.0
    assert throttle.owed_s < 0.01


@pytest.mark.parametrize("limit", [None, 1 << 30])
def test_a_limit_that_is_raised_takes_effect_within_a_pause(limit: int | None) -> None:
    throttle = Throttle()
    throttle.bytes_s = KIB
    threading.Timer(0.3, lambda: setattr(throttle, "bytes_s", limit)).start()
    assert 0.2 < paying(throttle, 1024) < 2.0
    assert paying(throttle, 1) < 0.2


def test_who_waits_for_the_work_to_be_put_down_does_not_wait_for_a_pause() -> None:
    waits = threading.Event()
    throttle = Throttle(waits.is_set)
    throttle.bytes_s = KIB
    threading.Timer(0.3, waits.set).start()
    assert 0.2 < paying(throttle, 1024) < 2.0
    assert throttle.owed_s > 1000, "it is owed all the same"
