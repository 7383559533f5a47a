"""Figures and names as people read them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from volferry.report import words


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.00 s"),
        (0.434, "0.43 s"),
        (8.44, "8.4 s"),
        (9.96, "10 s"),
        (41.2, "41 s"),
        (59.6, "1 min 00 s"),
        (60, "1 min"),
        (192, "3 min 12 s"),
        (3599.7, "1 h 00 min"),
        (7500, "2 h 05 min"),
        (3 * 86400 + 4 * 3600, "3 d 04 h"),
        (-2, "-2.0 s"),
        (None, "not measured"),
    ],
)
def test_a_duration_keeps_the_figures_that_mean_something(seconds: float, text: str) -> None:
    assert words.duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (50 * 1024**3, "50.0 GiB"),
     (512 * 1024**2, "512 MiB"), (None, "not measured")],
)  # fmt: skip
def test_a_size_is_binary_and_says_so(count: int, text: str) -> None:
    assert words.size(count) == text


@given(st.text())
def test_nothing_that_a_terminal_obeys_comes_through(text: str) -> None:
    shown = words.plain(text)
    assert "\x1b" not in shown and "\n" not in shown and "\r" not in shown
    assert "\u202e" not in shown  # would turn the rest of the line around


@given(st.floats(min_value=0, max_value=1e9))
def test_every_duration_has_words(seconds: float) -> None:
    assert words.duration(seconds).split()[-1] in ("s", "min", "h", "d")


def test_columns_of_wide_signs_are_aligned() -> None:
    rows = words.aligned([("数据", "x"), ("data", "x")])
    assert {words.width(row) for row in rows} == {7}


def test_a_time_is_utc_and_an_unknown_one_is_not_invented() -> None:
    assert words.when(1_790_000_000) == "2026-09-21T14:13:20Z"
    assert words.when(0) == "not measured"
