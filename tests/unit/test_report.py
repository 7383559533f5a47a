"""The report says what was measured and nothing else, in every form."""

import itertools
from pathlib import Path
from typing import Any

import cli_world as world
import pytest

from volferry.model import Event, Layer, Member, Outcome, Pass, Result, State
from volferry.report import lines, page, planned, story, summary
from volferry.report.phases import PHASE_OF, PHASES
from volferry.steps import SEQUENCE


def told(
    state: State = State.DONE, until: str = "tidy", drop: tuple[str, ...] = (), **changes: Any
) -> story.Report:
    steps = list(world.RECEIPTS)
    reached = steps[: steps.index(until) + 1] if until else []
    receipts = {step: world.RECEIPTS[step] for step in reached if step not in drop}
    passes = world.PASSES if "sync" in reached else ()
    receipts |= changes.pop("receipts", {})
    step = "" if state is State.DONE else until
    transfer = world.transfer(state, step, **changes)
    return story.tell(transfer, world.events(until) if until else [], receipts, passes)


def text(report: story.Report) -> str:
    return "\n".join(line.render(colour=False) for line in summary.summary_lines(report))


def test_the_summary_of_a_finished_transfer_has_every_promised_figure() -> None:
    words = text(told())
    assert "downtime 3.8 s" in words.splitlines()[0]
    assert "stop 1.1 s, unmount 0.08 s, copy 0.90 s, verify 0.30 s" in words
    assert "10,189 files (12.0 GiB) were read from source and target" in words
    assert world.SOURCE in words and world.TARGET in words
    assert "detached, read-only" in words
    assert "remaining   nothing" in words


def test_terraform_gets_ids_in_the_form_that_its_provider_imports() -> None:
    words = text(told())
    assert f"import openstack_blockstorage_volume_v3.NAME {world.TARGET}" in words
    ids = f"{world.SERVER}/{world.TARGET}"
    assert f"import openstack_compute_volume_attach_v2.NAME {ids}" in words
    assert "tofu" in words


def test_a_volume_from_a_snapshot_must_not_be_replaced_by_the_next_apply() -> None:
    assert any("ignore_changes = [snapshot_id]" in line for line in told().configuration)
    assert 'volume_type = "cbs-premium"' in told().configuration


def test_terraform_is_not_mentioned_while_the_transfer_can_be_taken_back() -> None:
    assert not told(State.HELD, "cutover").infrastructure


def test_what_was_not_compared_is_not_called_verified() -> None:
    bare = Outcome.model_validate(
        world.OUTCOME.model_dump()
        | {"final_pass": world.FINAL.model_copy(update={"files_compared": 0}).model_dump()}
    )
    receipt = {**world.RECEIPTS["cutover"], "outcome": bare.model_dump(mode="json")}
    report = told(receipts={"cutover": receipt})
    assert report.not_verified == ("14 files of the final pass were copied but not compared",)
    assert not any("final pass" in line for line in report.verified)


def test_passes_without_comparison_say_that_nothing_was_compared() -> None:
    live = Pass(number=1, files_copied=3, bytes_copied=4)
    report = story.tell(world.transfer(step="sync"), world.events("prepare"), {}, [live])
    assert report.verified == ()
    assert report.not_verified == ("nothing was compared while the service ran",)


def noted(*texts: str) -> list[Event]:
    return [
        Event(at=world.BEGAN + 9, transfer=world.ID, kind="note", facts={"text": one, **extra})
        for one, extra in zip(texts, ({"note_id": "aa.1"}, {}), strict=True)
    ]


def test_what_the_guest_noted_is_in_every_form_of_the_report() -> None:
    lost, other = "mirror: everything is compared again: an overrun", "data is detached"
    events = [*world.events(), *noted(lost, other)]
    report = story.tell(world.transfer(State.DONE), events, world.RECEIPTS, world.PASSES)

    assert lost in text(report)
    assert lost in report.model_dump_json()
    assert lost in page.render(report)
    assert other not in text(report), "it is no word of the guest's"


def test_what_a_loss_left_different_is_no_fault() -> None:
    one = Pass(number=1, chunks_copied=9, chunks_compared=90, differed_after_loss=7)
    report = story.tell(world.transfer(), [], {}, [one])

    [_, said] = report.verified
    assert said.startswith("7 chunks differed when everything was compared once more")
    assert "untouched" not in said


def test_a_standby_that_was_let_go_is_said_to_stay_hidden() -> None:
    outcome = {**world.RECEIPTS["cutover"]["outcome"], "standby": True}
    receipts = {"cutover": {**world.RECEIPTS["cutover"], "outcome": outcome}}
    assert any("head and tail stay zero" in note for note in told(receipts=receipts).notes)
    assert not any("head and tail" in note for note in told().notes)
    held = told(State.HELD, "cutover", receipts=receipts)
    assert not any("head and tail" in note for note in held.notes)


def test_a_missing_outcome_is_not_measured_instead_of_nought() -> None:
    report = told(drop=("cutover",))
    assert report.cutover is None
    assert "downtime    not measured" in text(report)


def test_an_outcome_that_cannot_be_read_claims_nothing() -> None:
    report = told(receipts={"cutover": {"outcome": {"result": "committed", "odd": 1}}})
    assert report.cutover is None


def test_a_source_that_is_not_read_only_is_work_that_remains() -> None:
    report = told(drop=("protect",))
    assert report.moves[0].source_read_only is None
    assert any(f"set --read-only {world.SOURCE}" in item for item in report.remaining)


def test_what_could_not_be_removed_is_named_for_a_person() -> None:
    tidy = {**world.RECEIPTS["tidy"], "left": ["/var/lib/volferry/log"]}
    assert told(receipts={"tidy": tidy}).remaining == ("remove by hand: /var/lib/volferry/log",)


def test_a_kept_snapshot_is_named_because_the_source_depends_on_it() -> None:
    tidy = {**world.RECEIPTS["tidy"], "snapshot_deleted": False}
    assert any(world.SNAPSHOT in note for note in told(receipts={"tidy": tidy}).notes)


def test_the_calls_of_every_process_that_carried_it_count() -> None:
    killed = [Event(at=1, transfer=world.ID, kind="receipt", facts={"api_calls": 7})]
    resumed = [Event(at=2, transfer=world.ID, kind="calls", facts={"api_calls": 5})]
    done = world.transfer(State.DONE)
    assert story.tell(done, killed + resumed, world.RECEIPTS, world.PASSES).api_calls == 12
    assert story.tell(done, [], world.RECEIPTS, world.PASSES).api_calls is None


def test_each_state_says_what_comes_next() -> None:
    assert "volferry finish" in told(State.HELD, "cutover").remaining[0]
    assert "volferry cutover" in told(State.HELD, "sync").remaining[0]
    assert "volferry resume" in told(State.STOPPED, "attach").remaining[0]


def test_a_source_that_is_detached_already_is_not_said_to_be_detached_by_finish() -> None:
    assert "detaches the source" in told(State.HELD, "cutover").remaining[0]
    members = (Member(path="/dev/vdb", volume_id=world.SOURCE),)
    array = Layer(kind="md", name="/dev/md0", members=members, above=("/dev/md0",))
    plan = world.plan()
    guest = plan.guest.model_copy(update={"layers": (array,)})
    plan = plan.model_copy(update={"guest": guest, "method": "mirror"})
    held = world.transfer(State.HELD, "cutover", plan=plan)
    [first, _] = story.tell(held, [], {"cutover": world.RECEIPTS["cutover"]}, []).remaining
    assert "the source is detached already; removes what was put in" in first


def test_a_reverted_cutover_had_a_downtime_too() -> None:
    gone = {"result": "reverted", "live": "source", "downtime_s": 6.5, "reason": "unit failed"}
    events = [
        *world.events("sync"),
        Event(at=world.BEGAN + 400, transfer=world.ID, step="cutover", kind="outcome", facts=gone),
    ]
    report = story.tell(world.transfer(State.STOPPED, "cutover"), events, {}, world.PASSES)
    assert "6.5 s down, back on the source: unit failed" in text(report)
    assert "on the target alone" not in text(report)


def test_a_guest_that_could_not_go_back_is_told_of_with_the_reason() -> None:
    known = world.RECEIPTS["cutover"]
    stayed = {**known, "outcome": {**known["outcome"], "reason": "unit failed"}}
    transfer = world.transfer(State.HELD, "cutover")
    for receipt, told in ((stayed, True), (known, False)):
        report = story.tell(transfer, [], {"cutover": receipt}, world.PASSES)
        assert ("the guest stayed on the target: unit failed" in text(report)) is told


@pytest.mark.parametrize(
    ("method", "fate"), [("rsync", "is on the target alone"), ("mirror", "is lost")]
)
def test_what_was_written_to_a_target_that_was_left_is_told(method: str, fate: str) -> None:
    plan = world.plan().model_copy(update={"method": method})
    gone = {"result": "reverted", "live": "source", "reason": "died", "was_live_s": 12.0}
    events = [Event(at=1.0, transfer=world.ID, step="cutover", kind="outcome", facts=gone)]
    stopped = world.transfer(State.STOPPED, "cutover", plan=plan)
    said = text(story.tell(stopped, events, {}, world.PASSES))
    assert "services had run on the target for 12 s: what they wrote then" in said
    assert fate in said


def test_the_downtime_is_held_against_what_was_asked() -> None:
    report = told()
    assert report.cutover is not None
    taken = report.cutover.downtime_s
    assert "within --max-downtime" in text(report.model_copy(update={"max_downtime_s": taken + 1}))
    assert "over --max-downtime" in text(report.model_copy(update={"max_downtime_s": taken - 0.1}))


def test_every_step_has_its_phase_here_too() -> None:
    assert {step.name: step.phase for step in SEQUENCE} == PHASE_OF


def test_phases_lie_one_after_the_other_on_the_time_line() -> None:
    spans = told().phases
    assert [span.name for span in spans] == list(PHASES)
    assert all(span.state == "done" for span in spans)
    for before, after in itertools.pairwise(spans):
        assert before.ended_at == after.started_at


def test_a_stopped_transfer_shows_where_and_what_it_did_not_reach() -> None:
    states = {span.name: span.state for span in told(State.STOPPED, "attach").phases}
    assert states["attach"] == "stopped" and states["sync"] == "not reached"


def test_a_report_is_read_from_the_store(tmp_path: Path) -> None:
    with world.plant(tmp_path) as store:
        report = story.read(store, "tr-")
    assert report == told()


# ---- several volumes -----------------------------------------------------------------------------


def told_of_two(state: State = State.DONE) -> story.Report:
    transfer = world.transfer(state, plan=world.plan_of_two())
    return story.tell(transfer, world.events(), world.receipts_of_two(), world.PASSES)


def test_each_volume_has_its_two_rows_with_what_became_of_it() -> None:
    words = text(told_of_two())
    assert words.splitlines()[0].startswith("moved sourcevol, log in testsrv: downtime")
    rows = [line.split() for line in words.splitlines() if " volume " in line[:12]]
    assert [(row[0], row[2]) for row in rows] == [
        ("old", world.SOURCE),
        ("new", world.TARGET),
        ("old", world.LOG),
        ("new", world.LOG_TARGET),
    ]
    assert rows[0][-2:] == ["detached,", "read-only"]
    assert rows[1][-1] == "/srv/data" and rows[3][-1] == "/srv/log"
    assert rows[2][-3:] == ["detached,", "not", "read-only"]


def test_work_remains_for_the_one_that_is_not_protected_and_both_may_be_deleted_later() -> None:
    report = told_of_two()
    assert report.remaining == (
        f"openstack volume set --read-only {world.LOG}: the source is not marked read-only",
    )
    assert f"openstack volume delete {world.SOURCE} {world.LOG}" in report.notes[0]


def test_terraform_is_told_of_each_volume_under_its_name() -> None:
    report = told_of_two()
    names = [line for line in report.infrastructure if line.startswith("#")]
    assert names == ["# sourcevol", "# log"]
    assert any(
        line.endswith(f"{world.SERVER}/{world.LOG_TARGET}") for line in report.infrastructure
    )
    # Only the one that came from a snapshot has something to ignore.
    assert [line for line in report.configuration if "#" in line[:1] or "ignore" in line] == [
        "# sourcevol",
        "lifecycle { ignore_changes = [snapshot_id] }  # or apply replaces the volume",
        "# log",
    ]


def test_a_plan_shows_each_source_with_its_filesystems_and_its_target() -> None:
    shown = planned.plan_lines(world.plan_of_two())
    lines = [line.render(colour=False) for line in shown]
    assert "volume sourcevol, log of server testsrv" in lines[0]
    order = [
        next(number for number, line in enumerate(lines) if all(word in line for word in words))
        for words in (
            ("source", world.SOURCE),
            ("on /srv/data",),
            ("target", "sourcevol", "50 GiB", "filled from a snapshot"),
            ("source", world.LOG, "8 GiB"),
            ("on /srv/log",),
            ("target", "log", "blank"),
        )
    ]
    assert order == sorted(order) and len(set(order)) == 6


# ---- events --------------------------------------------------------------------------------------


def spoken(events: list[Event], verbosity: int = lines.NORMAL) -> list[str]:
    teller = lines.Teller(verbosity)
    return [line.render(colour=False) for event in events for line in teller.tell(event)]


def test_the_phases_are_numbered_and_each_promise_has_its_figures() -> None:
    words = spoken(world.events())
    heads = [line for line in words if line[:1].isdigit()]
    assert heads == ["2/6 seed", "3/6 attach", "4/6 sync", "5/6 cutover", "6/6 finish"]
    assert f"  ok        {world.PROMISES['snapshot']}  3.2 s" in words


def test_passes_are_rows_of_one_table_that_fits_a_terminal() -> None:
    words = spoken(world.events())
    heads = [line for line in words if "copied" in line and "compared" in line]
    assert len(heads) == 1
    rows = words[words.index(heads[0]) : words.index(heads[0]) + 3]
    assert len({len(row) for row in rows}) == 1 and len(rows[0]) <= 80


def test_a_quiet_listener_hears_errors_only() -> None:
    assert spoken(world.events(), lines.QUIET) == []
    gone = Event(at=1, transfer=world.ID, kind="error", facts={"what": "x", "data": "y"})
    assert spoken([gone], lines.QUIET) == ["error: x", "  y"]


def test_an_event_of_an_unknown_kind_is_shown_and_not_lost() -> None:
    odd = Event(at=1, transfer=world.ID, step="sync", kind="weather", facts={"rain": True})
    assert any("weather" in line and "rain=true" in line for line in spoken([odd]))


def test_escape_sequences_in_events_are_made_visible() -> None:
    odd = Event(at=1, transfer=world.ID, step="sync", kind="note", facts={"text": "\x1b[2Jx"})
    assert spoken([odd])[-1].endswith("\\x1b[2Jx")


def test_an_error_is_what_happened_then_the_data_then_what_to_do() -> None:
    shown = [line.render(colour=False) for line in lines.failure("a", "b\nc", "d   e\nf   g")]
    assert shown == ["error: a", "  b", "  c", "hint: d   e", "      f   g"]


def test_colour_carries_nothing_that_the_text_does_not() -> None:
    line = lines.Line("text", "good", "ok")
    bare = line.render(colour=True).replace("\x1b[32m", "").replace("\x1b[0m", "")
    assert bare == line.render(colour=False)


def test_progress_tells_bytes_files_rate_and_what_is_left() -> None:
    said = lines.progress(world.PROGRESS)
    for part in ("pass 1", "3.0 GiB of 12.0 GiB", "2,345 of 10,190 files", "21.4 MiB/s"):
        assert part in said
    assert "7 min 11 s left" in said


def test_every_event_has_one_log_line() -> None:
    for event in world.events():
        assert "\n" not in lines.logged(event) and event.kind in lines.logged(event)


# ---- the plan ------------------------------------------------------------------------------------


def plan_text(**changes: Any) -> str:
    shown = planned.plan_lines(world.plan(**changes))
    return "\n".join(line.render(colour=False) for line in shown)


def test_a_plan_shows_everything_that_a_reviewer_asks_for() -> None:
    words = plan_text()
    for part in (
        "3 checks: 2 ok, 1 warning, 0 refusals; nothing was changed",
        world.SERVER,
        world.SOURCE,
        "/srv/data  (fstab line 4)",
        "not mirror: it needs LVM",
        "postgresql.service: last stop took 1.2 s",
        "by process bash",
        "hint: end that session",
        "+100  150 in use  limit 1000",
        "predicted 4.1 s, fits --max-downtime 10 s",
        "way back: free",
    ):
        assert part in words


def test_a_prediction_over_the_budget_says_so() -> None:
    slow = world.PREDICTION.model_copy(update={"total_s": 31.0})
    assert "31 s, does not fit --max-downtime 10 s yet" in plan_text(prediction=slow)


def test_a_plan_without_a_method_predicts_nothing() -> None:
    words = plan_text(prediction=None, method="")
    assert "not measured: no method fits" in words and "none fits" in words


@pytest.mark.parametrize("result", list(Result))
def test_each_result_of_a_check_is_a_word(result: Result) -> None:
    check = world.plan().checks[0].model_copy(update={"result": result})
    assert planned.check_lines([check])[0].render(colour=False).strip().startswith(result.value)
