"""What becomes of the way back when somebody deletes what it needs, at its worst moments."""

import pytest

from tests.faults.cloud.story import ID, WITH_CUTOVER, Onlooker, Story, server_is_deleted
from volferry.errors import NeedsConsent, Refused, Retry, Stop, VolferryError
from volferry.methods import Outlook
from volferry.model import Event, Outcome, State
from volferry.report import story as report


async def begun_to_go_back(one: Story, fails: str, **words: bool) -> None:
    one.cloud.fail(fails)
    with pytest.raises(VolferryError):
        await one.engine.take_back(ID, **words)
    assert one.store.transfer(ID).state is State.ROLLING_BACK


async def goes_back_unheard(one: Story) -> None:
    one.guest.unheard = ["cutback"]
    with pytest.raises(VolferryError, match="not heard any more"):
        await one.engine.take_back(ID, accept_loss=True)
    assert one.store.transfer(ID).state is State.ROLLING_BACK


@pytest.fixture(params=["receipt", "intent"])
async def committed(whole: Story, request: pytest.FixtureRequest) -> Story:
    """Stopped behind the commit: with the receipt of the cutover, or with its intent alone, because
    the guest stayed on the target for a reason that somebody has to look at first."""
    if request.param == "receipt":
        whole.cloud.fail("detach")
        await whole.stops()
    else:
        outcome = whole.guest.committed.model_copy(update={"reason": "db.service died"})
        whole.guest.committed = outcome
        assert "db.service died" in (await whole.stops()).what
    return whole


GONE_BACK = Outcome(result="reverted", live="source", job_id="back")


async def no_way_back(one: Story, what: str) -> Refused:
    with pytest.raises(Refused, match=f"no way back: somebody deleted {what}") as refused:
        await one.engine.take_back(ID, accept_loss=True)
    assert one.store.transfer(ID).state is State.STOPPED
    return refused.value


async def ends_with_both_sides(one: Story) -> report.Report:
    assert (await one.engine.carry(ID)).state is State.DONE
    assert (await one.target()).status == "available"
    assert (await one.cloud.volume(one.source)).read_only
    return report.read(one.store, ID)


async def test_a_source_that_somebody_deleted_is_no_way_back_but_one_to_the_end(
    whole: Story,
) -> None:
    """After the commit the target is all there is: going back is refused before it is begun, so
    that going on is not."""
    whole.cloud.fail("detach")
    await whole.stops()
    whole.cloud.forget(whole.source)
    for accept_loss in (False, True):
        with pytest.raises(Refused, match="no way back: somebody deleted source data") as refused:
            await whole.engine.take_back(ID, accept_loss=accept_loss)
        assert refused.value.hint == f"volferry finish {ID}   ends the transfer"
        assert whole.store.transfer(ID).state is State.STOPPED
    assert (await whole.target()).status == "in-use"

    assert (await whole.engine.carry(ID)).state is State.DONE
    assert (await whole.target()).status == "in-use"
    assert await whole.cloud.find_snapshot(ID) is None
    told = report.read(whole.store, ID)
    assert report.source_state(told.moves[0]) == "deleted by somebody"
    assert not [line for line in (*told.remaining, *told.notes) if whole.source in line]


async def test_a_source_deleted_before_it_was_protected_is_not_waited_for(whole: Story) -> None:
    whole.after["detach"] = lambda: whole.cloud.forget(whole.source)
    assert (await whole.engine.carry(ID)).state is State.DONE
    said = whole.store.receipts(ID)["protect"]
    assert said["state"] == "not there any more; somebody deleted it"


async def test_the_only_copy_of_a_deleted_source_is_not_deleted_without_a_word(
    whole: Story,
) -> None:
    whole.cloud.fail("attach")
    await whole.stops()
    whole.cloud.set_status(whole.source, "deleting")  # a back end may wipe it for hours
    with pytest.raises(NeedsConsent, match="somebody deleted the source"):
        await whole.engine.take_back(ID)
    whole.cloud.forget(whole.source)
    with pytest.raises(NeedsConsent, match="somebody deleted the source"):
        await whole.engine.take_back(ID)
    assert (await whole.target()).status == "available"
    assert (await whole.engine.take_back(ID, accept_loss=True)).state is State.ROLLED_BACK
    assert await whole.cloud.find_volume(ID) is None


async def test_a_server_that_was_deleted_before_the_cutover(whole: Story) -> None:
    whole.cloud.fail("attach")
    await whole.stops()
    server_is_deleted(whole)
    await whole.stops()
    assert (await whole.engine.take_back(ID)).state is State.ROLLED_BACK
    assert await whole.cloud.find_volume(ID) is None
    assert await whole.cloud.find_snapshot(ID) is None
    assert (await whole.cloud.volume(whole.source)).status == "available"


async def test_a_server_that_was_deleted_after_the_commit(whole: Story) -> None:
    """There is nothing to go back in; to end it deletes neither volume."""
    whole.cloud.fail("detach")
    await whole.stops()
    server_is_deleted(whole)
    with pytest.raises(Refused, match="no way back: somebody deleted server 'web-03'"):
        await whole.engine.take_back(ID, accept_loss=True)
    assert (await whole.engine.carry(ID)).state is State.DONE
    assert "somebody deleted its server" in whole.store.receipts(ID)["detach"]["state"]
    assert (await whole.target()).status == "available"
    assert (await whole.cloud.volume(whole.source)).read_only


@pytest.fixture
async def deleted_inside(whole: Story) -> Story:
    """The guest alone knew whether it had committed."""
    whole.guest.unheard = ["cutover"]
    await whole.stops()
    server_is_deleted(whole)
    error = await whole.stops()
    assert "alone knew which side" in error.what
    assert error.hint.startswith(f"volferry finish {ID}     ends it, and keeps both")
    return whole


async def test_a_server_that_was_deleted_inside_the_cutover_asks_before_the_target_goes(
    deleted_inside: Story,
) -> None:
    with pytest.raises(NeedsConsent, match="the deleted server alone knew"):
        await deleted_inside.engine.take_back(ID)
    assert (await deleted_inside.target()).status == "available"
    await deleted_inside.goes_back(accept_loss=True)


async def test_a_server_that_was_deleted_inside_the_cutover_is_ended_by_a_word_and_keeps_both_sides(
    deleted_inside: Story,
) -> None:
    deleted_inside.store.request(ID, "finish", {})
    told = await ends_with_both_sides(deleted_inside)
    assert report.verdict(told) == (
        "ended the move of data: with web-03 went which side it ran on last"
    )
    assert not [note for note in told.notes if "volume delete" in note]
    assert [note for note in told.notes if "look at source and target" in note]
    assert not told.infrastructure
    said = [
        e.event.facts["text"] for e in deleted_inside.store.events(ID) if e.event.kind == "promise"
    ]
    assert not [text for text in said if "runs on the target" in text]


async def test_a_word_from_before_the_cutover_is_none_for_what_became_of_it(
    whole: Story,
) -> None:
    whole.store.request(ID, "finish", {})
    whole.guest.unheard = ["cutover"]
    await whole.stops()
    server_is_deleted(whole)
    assert "alone knew which side" in (await whole.stops()).what


async def test_what_was_ended_by_a_word_can_still_be_taken_back(deleted_inside: Story) -> None:
    deleted_inside.store.request(ID, "finish", {})
    deleted_inside.cloud.refuse("set_read_only", Stop("not now", data="nothing was changed"))
    with pytest.raises(Stop, match="not now"):
        await deleted_inside.engine.carry(ID)
    await deleted_inside.goes_back(accept_loss=True)


async def test_an_outcome_that_a_rollback_heard_is_known_after_its_server_was_deleted(
    whole: Story,
) -> None:
    whole.guest.unheard = ["cutover"]
    await whole.stops()
    with pytest.raises(NeedsConsent, match="writes made since"):
        await whole.engine.take_back(ID)
    server_is_deleted(whole)
    await no_way_back(whole, "server")
    told = await ends_with_both_sides(whole)
    assert report.verdict(told) == "moved data in web-03: downtime 1.0 s"


# ---- while a rollback is under way ---------------------------------------------------------------


async def test_a_rollback_that_was_free_asks_when_the_target_has_become_the_only_copy(
    whole: Story,
) -> None:
    """To have begun is no word for what it costs by now; nor is the question itself."""
    whole.cloud.ignore("attach")
    await whole.stops()
    await begun_to_go_back(whole, "detach")
    whole.cloud.forget(whole.source)
    for _ in range(2):
        with pytest.raises(NeedsConsent, match="somebody deleted the source"):
            await whole.engine.take_back(ID)
        assert (await whole.target()).id
    assert (await whole.engine.take_back(ID, accept_loss=True)).state is State.ROLLED_BACK


async def test_a_word_that_was_given_for_one_loss_is_none_for_another(whole: Story) -> None:
    whole.cloud.ignore("attach")
    await whole.stops()
    whole.store.event(
        Event(at=1.0, transfer=ID, step="cutover", kind="accepted", facts={"costs": ["CONSENT"]})
    )
    whole.store.set_state(ID, State.ROLLING_BACK)
    whole.cloud.forget(whole.source)
    with pytest.raises(NeedsConsent, match="the source: what the target holds"):
        await whole.engine.take_back(ID)


@pytest.mark.parametrize("gone", ["source", "server"])
async def test_what_was_on_its_way_back_goes_on_to_its_end_when_the_way_is_gone(
    whole: Story, gone: str
) -> None:
    whole.steps = WITH_CUTOVER[:-1]
    assert (await whole.engine.carry(ID)).state is State.DONE
    whole.store.set_state(ID, State.HELD)
    await begun_to_go_back(whole, "attach", accept_loss=True)
    whole.cloud.fail("attach", 0)
    if gone == "server":
        server_is_deleted(whole)
    else:
        whole.cloud.forget(whole.source)
    with pytest.raises(Refused, match=f"no way back: somebody deleted {gone}"):
        await whole.engine.take_back(ID)
    assert whole.store.transfer(ID).state is State.STOPPED
    assert (await whole.engine.carry(ID)).state is State.DONE
    assert (await whole.target()).id


async def test_a_way_back_that_ended_on_the_target_leaves_the_cutover_standing(
    committed: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To cut over again would copy a source that is not there to the only side there is."""
    await goes_back_unheard(committed)
    committed.cloud.forget(committed.source)
    await no_way_back(committed, "source")

    monkeypatch.delattr(Onlooker, "cutover")
    monkeypatch.delattr(Onlooker, "catch_up")
    assert (await committed.engine.carry(ID)).state is State.DONE
    receipt = committed.store.receipts(ID)["cutover"]
    assert receipt["outcome"]["reason"] == committed.guest.committed.reason
    assert receipt["downtime_s"] == 1.0


async def test_what_is_wrong_on_the_target_is_said_before_anybody_goes_on(whole: Story) -> None:
    """Also when whoever heard it was killed before."""
    whole.guest.committed = whole.guest.committed.model_copy(update={"reason": "db.service died"})
    whole.guest.unheard = ["cutover"]
    await whole.stops()
    assert "something is wrong there: db.service died" in (await whole.stops()).what
    assert (await whole.engine.carry(ID)).state is State.DONE


async def test_what_is_wrong_on_the_target_is_said_though_a_rollback_was_declined(
    whole: Story,
) -> None:
    whole.guest.committed = whole.guest.committed.model_copy(update={"reason": "db.service died"})
    whole.guest.unheard = ["cutover"]
    await whole.stops()
    with pytest.raises(NeedsConsent):
        await whole.engine.take_back(ID)
    assert "something is wrong there: db.service died" in (await whole.stops()).what


async def test_what_was_written_to_a_target_that_the_guest_left_is_asked_for(whole: Story) -> None:
    whole.guest.committed = Outcome(
        result="reverted", live="source", reason="x", was_live_s=3.0, job_id="over"
    )
    await whole.stops()
    with pytest.raises(NeedsConsent, match="writes made since"):
        await whole.engine.take_back(ID)
    await whole.goes_back(accept_loss=True)


@pytest.mark.parametrize("silent", ["cloud", "guest"])
async def test_a_way_back_is_judged_again_when_the_judgement_was_cut_short(
    committed: Story, monkeypatch: pytest.MonkeyPatch, silent: str
) -> None:
    """The answer that was lost is asked for again; the way back does not begin anew."""
    look = committed.cloud.volume_if_any
    lost: list[str] = []

    async def once_without_an_answer(volume_id: str) -> object:
        if committed.guest.job == "cutback" and volume_id == committed.source and not lost:
            lost.append(volume_id)
            raise Retry("no answer", data="it is asked again")
        return await look(volume_id)

    if silent == "cloud":
        problems = ("db.service is down",)
        committed.guest.back = GONE_BACK.model_copy(update={"problems": problems})
        monkeypatch.setattr(committed.cloud, "volume_if_any", once_without_an_answer)
    else:
        committed.guest.back, committed.guest.away = GONE_BACK, "source"
        committed.guest.breaks = {"source": True}
    with pytest.raises(Stop, match="not everything came back"):
        await committed.engine.take_back(ID, accept_loss=True)
    assert lost or not committed.guest.breaks
    assert (await committed.target()).id
    begun = [one.event for one in committed.store.events(ID) if one.event.kind == "cutback"]
    assert len(begun) == 1


async def test_a_way_back_whose_end_was_not_heard_is_judged_before_the_target_goes(
    committed: Story,
) -> None:
    """Another one would find the source live already, and have nothing to say of it."""
    committed.guest.back = GONE_BACK.model_copy(update={"problems": ("db.service is down",)})
    await goes_back_unheard(committed)
    committed.guest.unheard = []
    for why in ("db.service is down", "nothing is mounted on /srv/source"):
        with pytest.raises(Stop, match=f"not everything came back: {why}"):
            await committed.engine.take_back(ID)
        assert (await committed.target()).id
        committed.guest.back, committed.guest.away = GONE_BACK, "source"
    committed.guest.away = ""
    await committed.goes_back()


async def test_a_guest_that_was_heard_to_have_gone_back_before_its_server_was_deleted(
    committed: Story,
) -> None:
    """The source is the live side; that this was not written down makes the target no other."""
    committed.guest.back = GONE_BACK.model_copy(update={"problems": ("app.service is down",)})
    with pytest.raises(Stop, match="not everything came back"):
        await committed.engine.take_back(ID, accept_loss=True)
    with pytest.raises(VolferryError, match="not heard any more"):
        committed.guest.unheard = ["cutback"]  # once more changes nothing
        await committed.engine.take_back(ID)
    server_is_deleted(committed)
    await committed.goes_back()


async def test_a_server_that_was_deleted_on_the_way_back_leaves_both_sides(
    committed: Story,
) -> None:
    await goes_back_unheard(committed)
    server_is_deleted(committed)
    refused = await no_way_back(committed, "server")
    assert "either side may have what was written last, and both are kept" in refused.data
    told = await ends_with_both_sides(committed)
    assert report.verdict(told).startswith("ended the move of data: with web-03 went")
    receipt = committed.store.receipts(ID)["cutover"]
    standing = receipt["outcome"]["reason"] == ""
    assert standing or receipt["state"].startswith("went with its server")
    assert not [note for note in told.notes if "volume delete" in note]


@pytest.mark.parametrize("ended", ["before", "after"])
async def test_a_source_that_was_deleted_when_the_guest_went_back_to_it(
    committed: Story, ended: str
) -> None:
    """The target is not mounted any more, so there is nothing to finish; and all that is left."""
    committed.guest.back = GONE_BACK if ended == "before" else None
    committed.guest.away = "source"
    await goes_back_unheard(committed)
    committed.guest.hidden.clear()
    committed.cloud.forget(committed.source)
    if ended == "after":
        refused = await no_way_back(committed, "source")
        assert "either side may have" in refused.data
        committed.guest.back, committed.guest.unheard = GONE_BACK, []
        error = await committed.stops(forward=False)
        assert error.what == "the guest had gone back to the source"
    with pytest.raises(NeedsConsent, match="somebody deleted the source"):
        await committed.engine.take_back(ID)
    assert (await committed.target()).id
    assert (await committed.engine.take_back(ID, accept_loss=True)).state is State.ROLLED_BACK
    assert committed.source not in committed.guest.hidden, "the service runs on it"


async def test_what_tidying_up_has_forgotten_turns_a_rollback_round(whole: Story) -> None:
    whole.after["protect"] = lambda: setattr(whole.guest, "uninstall", None)
    with pytest.raises(VolferryError, match="bug"):
        await whole.engine.carry(ID)
    whole.store.set_state(ID, State.ROLLING_BACK)  # the agent was still there when it began
    whole.guest.job = ""
    with pytest.raises(Refused, match="forgotten the way back"):
        await whole.engine.take_back(ID, accept_loss=True)
    del whole.guest.uninstall
    assert (await whole.engine.carry(ID)).state is State.DONE


async def test_a_way_that_goes_between_the_question_and_the_step_is_told_the_same(
    whole: Story,
) -> None:
    whole.steps = WITH_CUTOVER[:-1]
    assert (await whole.engine.carry(ID)).state is State.DONE
    whole.store.set_state(ID, State.HELD)
    whole.after["undone detach"] = lambda: whole.cloud.forget(whole.source)
    with pytest.raises(Refused, match="no way back: somebody deleted source"):
        await whole.engine.take_back(ID, accept_loss=True)
    assert whole.store.transfer(ID).state is State.STOPPED
    assert (await whole.engine.carry(ID)).state is State.DONE


async def test_a_refusal_of_another_kind_does_not_turn_a_transfer_round(
    whole: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole.cloud.fail("attach")
    await whole.stops()
    await begun_to_go_back(whole, "delete_volume")

    async def refuses(ctx: object, receipt: object) -> None:
        raise Refused("somebody says no", data="nothing was changed")

    [target] = [step for step in whole.steps if step.name == "target"]
    monkeypatch.setattr(target, "costs", refuses)
    with pytest.raises(Refused, match="somebody says no"):
        await whole.engine.take_back(ID)
    assert whole.store.transfer(ID).state is State.ROLLING_BACK


async def test_to_finish_is_not_remembered_of_a_transfer_that_goes_back(whole: Story) -> None:
    whole.cloud.fail("attach")
    await whole.stops()
    await begun_to_go_back(whole, "delete_volume")
    whole.store.request(ID, "finish", {})
    with pytest.raises(Refused, match="cannot go forward"):
        await whole.engine.carry(ID)
    assert not whole.store.pending(ID)


async def test_when_both_sides_were_deleted_nothing_is_waited_for(committed: Story) -> None:
    target = (await committed.target()).id
    committed.guest.away = "target"
    error = await committed.stops()
    assert "nothing is mounted on /srv/target" in error.what
    assert "mount the target; then" in error.hint
    committed.cloud.forget(target)
    error = await committed.stops(forward=False)
    assert error.data.startswith(f"somebody deleted the target ({target})")
    committed.cloud.forget(committed.source)
    await no_way_back(committed, "source")
    assert (await committed.engine.carry(ID)).state is State.DONE
    state = committed.store.receipts(ID)["detach"]["state"]
    assert state == "detached; somebody deleted the target of data, and there is no way back"


# ---- a deleted server, and what was heard of its cutover -----------------------------------------


async def test_a_cutover_that_was_never_begun_is_known_to_have_changed_nothing(
    whole: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def catch_up(scene: object) -> Outlook:
        raise Stop("the gate is closed", data="the service runs on the source")

    monkeypatch.setattr(whole.guest, "catch_up", catch_up)
    await whole.stops()
    server_is_deleted(whole)
    assert (await whole.engine.take_back(ID)).state is State.ROLLED_BACK
    assert await whole.cloud.find_volume(ID) is None


async def test_an_outcome_that_was_told_outlives_its_server(committed: Story) -> None:
    server_is_deleted(committed)
    await no_way_back(committed, "server")
    await ends_with_both_sides(committed)


async def test_the_outcome_of_an_earlier_cutover_is_told_once(
    whole: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    reverted = Outcome(result="reverted", live="source", reason="x", job_id="first")
    whole.guest.committed = reverted
    await whole.stops()

    async def doubt(scene: object) -> Outcome:
        raise Stop("fstab was edited", data="nothing was stopped")

    monkeypatch.setattr(whole.guest, "cutover", doubt)
    for _ in range(3):
        await whole.stops()
    assert len(report.read(whole.store, ID).reverted) == 1


async def test_a_target_that_went_with_its_server_is_told(whole: Story) -> None:
    whole.cloud.fail("detach")
    await whole.stops()
    target = (await whole.target()).id
    server_is_deleted(whole)
    whole.cloud.forget(target)
    with pytest.raises(Refused) as refused:
        await whole.engine.take_back(ID, accept_loss=True)
    assert refused.value.data == f"the target was deleted as well: {target}"
    assert (await whole.engine.carry(ID)).state is State.DONE
    assert f"and with it {target}" in whole.store.receipts(ID)["detach"]["state"]
