"""When the cutover may begin."""

import datetime as dt

import pytest

from volferry.errors import Usage
from volferry.model import Prediction, Wanted
from volferry.steps.gate import decide, opens_at

NOW = dt.datetime(2026, 11, 23, 2, 0, tzinfo=dt.UTC)


def wanted(gate="auto", budget=10.0):
    return Wanted(server="s", volumes=("v",), cutover=gate, max_downtime_s=budget)


def prediction(total):
    return Prediction(total_s=total, parts={"stop": 0.1, "copy": total - 0.1})


def test_auto_goes_when_the_prediction_fits():
    assert decide(wanted(), prediction(9.9), now=NOW).go


def test_auto_keeps_syncing_when_it_does_not_fit_and_names_the_longest_part():
    decision = decide(wanted(), prediction(14.2), now=NOW)

    assert not decision.go
    assert decision.why == (
        "predicted downtime 14.2 s, --max-downtime 10 s: does not fit, of which copy 14.1 s; "
        "keeps syncing"
    )


def test_manual_waits_however_short_it_would_be():
    assert not decide(wanted("manual"), prediction(0.2), now=NOW).go


def test_asking_opens_a_manual_gate_but_not_the_budget():
    assert decide(wanted("manual"), prediction(1), now=NOW, asked=True).go
    assert not decide(wanted("manual"), prediction(11), now=NOW, asked=True).go


def test_asking_for_now_goes_whatever_is_predicted():
    assert decide(wanted("manual"), prediction(99), now=NOW, asked=True, asked_now=True).go


@pytest.mark.parametrize(("at", "goes"), [("02:00", True), ("02:01", False)])
def test_a_time_opens_when_it_has_come(at, goes):
    gate = f"at 2026-11-23T{at}+00:00"

    assert decide(wanted(gate), prediction(1), now=NOW).go is goes


@pytest.mark.parametrize("gate", ["at noon", "at 2026-11-23T02:00", "soon", ""])
def test_a_time_without_a_zone_or_a_word_that_is_no_gate_is_refused(gate):
    with pytest.raises(Usage, match="is not a cutover gate"):
        opens_at(gate)
