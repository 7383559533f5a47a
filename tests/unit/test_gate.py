"""When the cutover may begin."""

import datetime as dt

import pytest

from volferry.errors import Usage
from volferry.model import Prediction, Wanted
from volferry.steps.gate import decide, opens_at

NOW = dt.datetime(2026, 11, 23, 2, 0, tzinfo=dt.UTC)


def wanted(gate="auto", budget=10.0, **more):
    return Wanted(server="s", volumes=("v",), cutover=gate, max_downtime_s=budget, **more)


def prediction(total):
    return Prediction(total_s=total, parts={"stop": 0.1, "copy": total - 0.1})


def test_auto_goes_when_the_prediction_fits():
    assert decide(wanted(), prediction(9.9), gains=True, now=NOW).go


def test_auto_keeps_syncing_when_it_does_not_fit_and_names_the_longest_part():
    decision = decide(wanted(), prediction(14.2), gains=True, now=NOW)

    assert not decision.go
    assert decision.why == (
        "predicted downtime 14.2 s, --max-downtime 10 s: does not fit, of which copy 14.1 s; "
        "keeps syncing"
    )


LONG = "predicted downtime 14.2 s, --max-downtime 10 s: does not fit, of which copy 14.1 s"


@pytest.mark.parametrize(
    ("then", "goes", "what"),
    [
        ("hold", False, "holds"),
        ("throttle-sync", False, "copies without giving way to the service"),
        ("cutover", True, "cuts over all the same"),
    ],
)
def test_when_passes_gain_nothing_any_more_it_does_what_was_asked_for_then(then, goes, what):
    diverging = wanted(on_divergence=then)
    decision = decide(diverging, prediction(14.2), gains=False, now=NOW)

    assert decision.go is goes
    assert decision.why == (
        f"{LONG}, and passes gain nothing any more; {what} (--on-divergence {then})"
    )
    assert decide(diverging, prediction(9.9), gains=False, now=NOW).go, "it fits"


def test_a_cutover_all_the_same_waits_while_passes_gain_and_for_who_is_to_ask():
    all_the_same = wanted(on_divergence="cutover")
    assert not decide(all_the_same, prediction(14.2), gains=True, now=NOW).go

    manual = wanted("manual", on_divergence="cutover")
    assert not decide(manual, prediction(14.2), gains=False, now=NOW).go
    assert decide(manual, prediction(14.2), gains=False, now=NOW, asked=True).go


def test_manual_waits_however_short_it_would_be():
    assert not decide(wanted("manual"), prediction(0.2), gains=True, now=NOW).go


def test_asking_opens_a_manual_gate_but_not_the_budget():
    assert decide(wanted("manual"), prediction(1), gains=True, now=NOW, asked=True).go
    assert not decide(wanted("manual"), prediction(11), gains=True, now=NOW, asked=True).go


def test_asking_for_now_goes_whatever_is_predicted():
    manual = wanted("manual")
    assert decide(manual, prediction(99), gains=True, now=NOW, asked=True, asked_now=True).go


@pytest.mark.parametrize(("at", "goes"), [("02:00", True), ("02:01", False)])
def test_a_time_opens_when_it_has_come(at, goes):
    gate = f"at 2026-11-23T{at}+00:00"

    assert decide(wanted(gate), prediction(1), gains=True, now=NOW).go is goes


@pytest.mark.parametrize("gate", ["at noon", "at 2026-11-23T02:00", "soon", ""])
def test_a_time_without_a_zone_or_a_word_that_is_no_gate_is_refused(gate):
    with pytest.raises(Usage, match="is not a cutover gate"):
        opens_at(gate)
