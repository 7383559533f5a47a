"""Durations, rates and times as people write them."""

import datetime as dt
import os
import time
from collections.abc import Iterator

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from volferry.cli import values
from volferry.cli.options import TIMEOUTS
from volferry.cli.values import Duration, Gate, Rate
from volferry.model import Timeouts
from volferry.report.words import duration


@pytest.fixture
def berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(os.environ, "TZ", "Europe/Berlin")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("500ms", 0.5), ("10s", 10), ("2m", 120), ("1h30m", 5400), ("1d", 86400), ("15", 15),
     ("1.5s", 1.5), ("2 m", 120), ("90min", 5400)],
)  # fmt: skip
def test_durations_are_read(text: str, seconds: float) -> None:
    assert Duration().convert(text, None, None) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "ten", "10x", "-5s", "0s", "1h-", "s", "nan", "10s later"])
def test_what_is_not_a_duration_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter):
        Duration().convert(text, None, None)


def test_settle_may_be_nothing() -> None:
    assert Duration(zero=True).convert("0", None, None) == 0


@given(st.text(max_size=12))
def test_any_text_is_a_duration_or_none(text: str) -> None:
    seconds = values.seconds_of(text)
    assert seconds is None or seconds >= 0


@pytest.mark.parametrize(
    ("text", "bytes_s"),
    [("50M", 50 * 1024**2), ("800K", 800 * 1024), ("1.5G", 1610612736), ("50MiB/s", 50 * 1024**2),
     ("50mb", 50 * 1024**2), ("4096", 4096)],
)  # fmt: skip
def test_rates_are_bytes_per_second_in_binary_units(text: str, bytes_s: int) -> None:
    assert Rate().convert(text, None, None) == bytes_s


@pytest.mark.parametrize("text", ["50", "fast", "-1M", "0", "1M2"])
def test_a_rate_that_is_nonsense_or_surely_a_slip_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter):
        Rate().convert(text, None, None)


@pytest.mark.usefixtures("berlin")
def test_a_time_of_day_is_the_next_one_in_this_machines_zone() -> None:
    now = dt.datetime(2026, 11, 22, 22, 0).astimezone()
    for text in ("at 02:00", "at=02:00", "02:00"):
        assert values.moment(text, now).isoformat() == "2026-11-23T02:00:00+01:00"
    assert values.moment("23:30", now).isoformat() == "2026-11-22T23:30:00+01:00"


@pytest.mark.usefixtures("berlin")
def test_a_date_without_a_zone_takes_the_zone_of_that_day() -> None:
    now = dt.datetime(2026, 3, 1).astimezone()
    assert values.moment("at 2026-07-01T02:00", now).isoformat() == "2026-07-01T02:00:00+02:00"
    given = "2026-07-01T02:00:00+05:30"
    assert values.moment(given, now).isoformat() == given


@pytest.mark.usefixtures("berlin")
def test_a_time_that_the_clocks_skip_does_not_exist() -> None:
    now = dt.datetime(2026, 3, 1).astimezone()
    with pytest.raises(ValueError, match="put forward"):
        values.moment("2026-03-29T02:30", now)


@pytest.mark.parametrize(
    ("text", "word"),
    [("at", "same word"), ("tonight", "not auto"), ("2020-01-01T00:00+00:00", "has passed")],
)
def test_a_gate_that_cannot_be_meant_is_refused(text: str, word: str) -> None:
    with pytest.raises(click.BadParameter, match=word):
        Gate().convert(text, None, None)


@pytest.mark.usefixtures("berlin")
def test_the_zone_is_said() -> None:
    now = dt.datetime(2026, 11, 22, 22, 0).astimezone()
    note = values.zone_note("2026-11-23T02:00:00+01:00", now)
    assert "CET, this machine's zone" in note and "in 4 h" in note
    assert values.zone_note("auto", now) == ""


def test_every_deadline_of_the_model_has_its_flag_and_says_its_default() -> None:
    flags = {f"{word}_s": default for word, _, default in TIMEOUTS}
    assert set(flags) == set(Timeouts.model_fields)
    for field, default in flags.items():
        told = values.seconds_of(default)
        assert told == getattr(Timeouts(), field), duration(told)
