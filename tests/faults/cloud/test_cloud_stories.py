"""What a cloud, and other people in it, do to a transfer in the middle; and that the way on works.

The engine, the journal and the steps are real, on the fake that the contract suite proves. Only the
steps that speak to the cloud are carried: what happens in the guest is told elsewhere.
"""

import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.cloud import REQUEST_ID, FakeCloud
from volferry.engine import Engine, Patience
from volferry.errors import NeedsConsent, Refused, Stop, VolferryError
from volferry.guests.deleted import DeletedGuest
from volferry.methods import Outlook
from volferry.methods.mirror import Mirror
from volferry.model import (
    MARK,
    Disk,
    DiskRef,
    Event,
    GuestFacts,
    Outcome,
    Pair,
    Plan,
    Prediction,
    Receipt,
    Seed,
    State,
    Timeouts,
    Transfer,
    Wanted,
)
from volferry.report import story as report
from volferry.steps.attach import Attach
from volferry.steps.cutover import Cutover
from volferry.steps.detach import Detach
from volferry.steps.protect import Protect
from volferry.steps.quarantine import Quarantine
from volferry.steps.retype import Retype
from volferry.steps.snapshot import TakeSnapshot
from volferry.steps.step import Context, Step
from volferry.steps.target import Target
from volferry.steps.tidy import Tidy
from volferry.store import Store

ID = "tr-web-03-test"
STEPS = (TakeSnapshot(), Target(), Retype(), Quarantine(), Attach(), Detach(), Protect())
WITH_CUTOVER = (*STEPS[:5], Cutover(), *STEPS[5:], Tidy())


class Onlooker:
    """A guest that sees the disks which the cloud really plugs in, and has its mounts right.

    It is the method as well, which here has nothing to let go of, and whose cutover is a word.
    """

    is_there = True
    committed = Outcome(result="committed", live="target", downtime_s=1.0)
    went_back = Outcome(
        result="committed", live="target", downtime_s=9.0, reason="the source did not come"
    )
    job = "cutover"

    def __init__(self, cloud: FakeCloud) -> None:
        self.seen: set[str] = set()
        cloud.on_attached.append(lambda server, volume: self.seen.add(volume))
        cloud.on_detached.append(lambda server, volume: self.seen.discard(volume))

    async def find(self, ref: DiskRef) -> Disk | None:
        if ref.volume_id not in self.seen:
            return None
        return Disk(path="/dev/vdc", size_bytes=ref.size_bytes, serial=ref.volume_id[:20])

    async def disks(self) -> list[Disk]:
        return [Disk(path="/dev/vdb", size_bytes=2**31, serial="of the source")]

    async def not_on_targets(self, scene: object) -> str:
        return ""

    async def quarantine(self, volume_ids: list[str]) -> Receipt:
        return {"rule": "/etc/udev/rules.d/x", "serials": [id[:20] for id in volume_ids]}

    async def release(self) -> None:
        pass

    async def leave(self, scene: object) -> None:
        pass

    def detaches_first(self, guest: GuestFacts) -> bool:
        return False

    async def last_job(self) -> str:
        return self.job

    async def stop_job(self) -> None:
        pass

    async def uninstall(self) -> Receipt:
        return {"removed": [], "left": []}

    async def catch_up(self, scene: object) -> Outlook:
        return Outlook(Prediction(total_s=0.0, parts={}, basis="a word"), gains=False)

    async def cutover(self, scene: object) -> Outcome:
        return self.committed

    async def cutback(self, scene: object) -> Outcome:
        raise Stop("the guest is not heard any more", data="it goes back by itself")

    async def outcome(self, scene: object, job: str = "cutover") -> Outcome | None:
        assert job == self.job
        return self.committed if job == "cutover" else self.went_back


class Story:
    """One transfer, carried and taken back as often as it takes."""

    def __init__(self, folder: Path) -> None:
        self.cloud = FakeCloud()
        self.server = self.cloud.add_server("web-03")
        self.source = self.cloud.add_volume("data", size_gib=2, server=self.server)
        self.guest: Any = Onlooker(self.cloud)
        self.guest.seen.add(self.source)
        self.method = self.guest
        self.store = Store(folder)
        self.after: dict[str, Callable[[], object]] = {}
        """What somebody does once a step has ended, or one was ``undone``."""
        self.steps: Sequence[Step] = STEPS

    async def plan(self) -> None:
        facts = await self.cloud.facts(self.server, [self.source])
        plan = Plan(
            wanted=Wanted(
                server="web-03",
                volumes=("data",),
                type="cbs-premium",
                timeouts=Timeouts(attach_s=1),
            ),
            cloud=facts,
            guest=GuestFacts(family="linux"),
            pairs=(
                Pair(
                    source=facts.sources[0],
                    target_name="data",
                    target_type="cbs-premium",
                    target_size_gib=2,
                    seed=Seed.SNAPSHOT,
                ),
            ),
        )
        self.store.create(Transfer(id=ID, state=State.RUNNING, plan=plan, created_at=0.0))

    @contextlib.asynccontextmanager
    async def surroundings(self, transfer: Transfer) -> AsyncIterator[Context]:
        yield Context(
            transfer.id, transfer.plan, cloud=self.cloud, guest=self.guest, method=self.method
        )

    @property
    def engine(self) -> Engine:
        engine = Engine(
            self.store,
            self.surroundings,
            self.steps,
            patience=Patience(first_s=0.01, most_s=0.01, budget_s=0.02),
        )

        def hear(event: Event) -> None:
            if event.kind in ("receipt", "undone"):
                what = event.step if event.kind == "receipt" else f"undone {event.step}"
                self.after.pop(what, lambda: None)()

        engine.on_event(hear)
        return engine

    async def stops(self) -> VolferryError:
        """Carry it until it stops; the error, which has to have all its parts."""
        with pytest.raises(VolferryError) as stopped:
            await self.engine.carry(ID)
        error = stopped.value
        assert error.what == error.what.strip() and "\n" not in error.what
        assert error.data
        assert f"volferry rollback {ID}" in error.hint
        assert f"volferry resume {ID}" in error.hint or not self.guest.is_there
        assert self.store.transfer(ID).state is State.STOPPED
        return error

    async def goes_on(self) -> None:
        assert (await self.engine.carry(ID)).state is State.DONE
        target = await self.target()
        assert (target.type, target.status) == ("cbs-premium", "in-use")
        assert len([c for c in self.cloud.calls if c.verb == "attach"]) == 1
        assert (await self.cloud.volume(self.source)).read_only

    async def target(self):  # type: ignore[no-untyped-def]
        found = await self.cloud.find_volume(ID)
        assert found is not None
        return found

    async def goes_back(self) -> None:
        """Nothing that carries our mark is left, and the source is as it was."""
        assert (await self.engine.take_back(ID)).state is State.ROLLED_BACK
        assert await self.cloud.find_volume(ID) is None
        assert await self.cloud.find_snapshot(ID) is None
        source = await self.cloud.volume(self.source)
        assert source.status == "in-use" and MARK not in source.metadata


@pytest.fixture
async def story(tmp_path: Path) -> AsyncIterator[Story]:
    one = Story(tmp_path)
    await one.plan()
    yield one
    one.store.close()


ON = pytest.mark.parametrize("back", [False, True], ids=["resume", "rollback"])


async def way_on(story: Story, back: bool) -> None:
    await (story.goes_back() if back else story.goes_on())


@ON
@pytest.mark.parametrize("what", ["create_snapshot", "create_volume"])
async def test_what_ends_in_error_is_removed_and_made_again(
    story: Story, what: str, back: bool
) -> None:
    story.cloud.fail(what)
    error = await story.stops()
    assert "'error'" in error.what
    assert REQUEST_ID in error.data
    await way_on(story, back)
    made = [c.verb for c in story.cloud.calls].count(what)
    assert made == (1 if back else 2)


@ON
@pytest.mark.parametrize("how", ["fail", "ignore"])
async def test_a_retype_that_is_accepted_and_not_done(story: Story, how: str, back: bool) -> None:
    getattr(story.cloud, how)("retype")
    error = await story.stops()
    assert "accepted the retype and did not do it" in error.what
    assert "'cbs-standard', expected 'cbs-premium'" in error.what
    await way_on(story, back)


@ON
async def test_a_retype_that_breaks_the_volume(story: Story, back: bool) -> None:
    story.cloud.fail("retype")
    story.cloud.slow("retype", 5)
    real = story.cloud.wait_retyped

    async def broken(volume_id: str, *args: object, **more: object) -> object:
        story.cloud.set_status(volume_id, "error")
        return await real(volume_id, *args, **more)  # type: ignore[arg-type]

    story.cloud.wait_retyped = broken  # type: ignore[method-assign,assignment]
    assert "'error'" in (await story.stops()).what
    story.cloud.wait_retyped = real  # type: ignore[method-assign]
    story.cloud.pass_time(10)
    story.cloud.set_status((await story.target()).id, "available")  # by an operator
    await way_on(story, back)


@ON
async def test_quota_that_somebody_else_took_in_between(story: Story, back: bool) -> None:
    story.after["snapshot"] = lambda: story.cloud.quota_limits.update(volumes=1)
    error = await story.stops()
    assert "quota" in error.what
    assert "volumes: 1 of 1 used" in error.data
    story.cloud.quota_limits["volumes"] = 10
    await way_on(story, back)


@ON
async def test_a_disk_that_never_shows_in_the_guest(story: Story, back: bool) -> None:
    story.cloud.ignore("attach")
    error = await story.stops()
    assert "did not appear in server 'web-03' within 1 s (--attach-timeout)" in error.what
    assert "the guest reports: /dev/vdb" in error.data
    assert "did not appear" in (await story.stops()).what  # once more is not enough
    if not back:
        story.guest.seen.add((await story.target()).id)  # after a rescan of the bus, or a reboot
    await way_on(story, back)


@ON
async def test_an_attach_that_comes_to_nothing(story: Story, back: bool) -> None:
    story.cloud.fail("attach")
    error = await story.stops()
    assert "'available' again" in error.what and REQUEST_ID in error.what + error.data
    if back:
        await story.goes_back()
    else:
        assert (await story.engine.carry(ID)).state is State.DONE


async def test_a_guest_that_does_not_let_go_of_the_source(story: Story) -> None:
    story.cloud.fail("detach")
    error = await story.stops()
    assert "the guest did not let go of the disk" in error.what
    assert REQUEST_ID in error.data
    assert (await story.cloud.volume(story.source)).status == "in-use"
    await story.goes_on()


async def test_a_guest_that_does_not_let_go_of_the_target_in_a_rollback(story: Story) -> None:
    story.cloud.ignore("attach")
    await story.stops()
    story.cloud.fail("detach")
    with pytest.raises(VolferryError, match="did not let go of the disk") as stopped:
        await story.engine.take_back(ID)
    assert f"volferry rollback {ID}" in stopped.value.hint
    assert (await story.target()).status == "in-use"
    await story.goes_back()


@pytest.mark.parametrize("step", ["target", "retype", "quarantine"])
async def test_a_target_that_somebody_deleted_is_a_doubt_and_can_be_taken_back(
    story: Story, step: str
) -> None:
    async def gone() -> str:
        return (await story.target()).id

    def delete() -> None:
        [found] = [v.id for v in story.cloud._volumes.values() if v.metadata.get(MARK) == ID]
        story.cloud.forget(found)

    story.after[step] = delete
    error = await story.stops()
    assert "could not be found" in error.what or "disappeared" in error.what
    await story.goes_back()


async def test_a_target_that_somebody_detached_and_deleted_can_be_taken_back(story: Story) -> None:
    story.cloud.ignore("attach")
    await story.stops()
    target = (await story.target()).id
    await story.cloud.detach(story.server, target)
    await story.cloud.wait_detached(story.server, target, deadline_s=60)
    story.cloud.forget(target)
    await story.goes_back()


@ON
async def test_a_target_that_somebody_detached(story: Story, back: bool) -> None:
    """Before the source is detached nothing depends on it; in the guest the pass would stop."""
    story.cloud.ignore("attach")
    await story.stops()
    target = (await story.target()).id
    await story.cloud.detach(story.server, target)
    await story.cloud.wait_detached(story.server, target, deadline_s=60)
    if back:
        await story.goes_back()
    else:
        assert (await story.engine.carry(ID)).state is State.DONE


async def test_a_snapshot_that_somebody_deleted(story: Story) -> None:
    def delete() -> None:
        [found] = list(story.cloud._snapshots)
        story.cloud.forget(found)

    story.after["snapshot"] = delete
    error = await story.stops()
    assert "could not be found" in error.what
    await story.goes_back()


async def test_a_source_that_somebody_detached_is_finished_all_the_same(story: Story) -> None:
    story.cloud.fail("detach")
    await story.stops()
    await story.cloud.detach(story.server, story.source)
    await story.cloud.wait_detached(story.server, story.source, deadline_s=60)
    await story.goes_on()


@pytest.fixture
def whole(story: Story) -> Story:
    story.steps = WITH_CUTOVER
    return story


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


async def server_is_deleted(one: Story) -> None:
    one.cloud.delete_server(one.server)
    facts = one.store.transfer(ID).plan.cloud
    one.guest, one.method = DeletedGuest(facts.server, ID), Mirror()


async def test_a_server_that_was_deleted_before_the_cutover(whole: Story) -> None:
    whole.cloud.fail("attach")
    await whole.stops()
    await server_is_deleted(whole)
    await whole.stops()
    assert (await whole.engine.take_back(ID)).state is State.ROLLED_BACK
    assert await whole.cloud.find_volume(ID) is None
    assert await whole.cloud.find_snapshot(ID) is None
    assert (await whole.cloud.volume(whole.source)).status == "available"


async def test_a_server_that_was_deleted_after_the_commit(whole: Story) -> None:
    """There is nothing to go back in; to end it deletes neither volume."""
    whole.cloud.fail("detach")
    await whole.stops()
    await server_is_deleted(whole)
    with pytest.raises(Refused, match="no way back: somebody deleted server 'web-03'"):
        await whole.engine.take_back(ID, accept_loss=True)
    assert (await whole.engine.carry(ID)).state is State.DONE
    assert "somebody deleted its server" in whole.store.receipts(ID)["detach"]["state"]
    assert (await whole.target()).status == "available"
    assert (await whole.cloud.volume(whole.source)).read_only


async def test_a_server_that_was_deleted_inside_the_cutover_asks_before_the_target_goes(
    whole: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The guest alone knew whether it had committed."""

    async def cut(scene: object) -> Outcome:
        raise Stop("the guest is not heard any more", data="it does it by itself")

    monkeypatch.setattr(whole.guest, "cutover", cut)
    await whole.stops()
    await server_is_deleted(whole)
    await whole.stops()
    with pytest.raises(NeedsConsent, match="the deleted server alone knew"):
        await whole.engine.take_back(ID)
    assert (await whole.target()).status == "available"
    assert (await whole.engine.take_back(ID, accept_loss=True)).state is State.ROLLED_BACK
    assert await whole.cloud.find_volume(ID) is None


async def test_a_server_that_was_deleted_inside_the_cutover_is_ended_by_a_word_and_keeps_both_sides(
    whole: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def cut(scene: object) -> Outcome:
        raise Stop("the guest is not heard any more", data="it does it by itself")

    monkeypatch.setattr(whole.guest, "cutover", cut)
    await whole.stops()
    await server_is_deleted(whole)
    error = await whole.stops()
    assert "alone knew which side" in error.what
    assert error.hint.startswith(f"volferry finish {ID}     ends it, and keeps both")
    assert report.read(whole.store, ID).cutover is None

    whole.store.request(ID, "finish", {})
    assert (await whole.engine.carry(ID)).state is State.DONE
    assert (await whole.target()).status == "available"
    assert (await whole.cloud.volume(whole.source)).read_only
    told = report.read(whole.store, ID)
    assert report.verdict(told) == (
        "ended the move of data: with web-03 went which side it ran on last"
    )
    assert not [note for note in told.notes if "volume delete" in note]
    assert [note for note in told.notes if "look at source and target" in note]


async def test_a_snapshot_that_the_back_end_keeps_is_named_and_waited_for_no_longer(
    whole: Story,
) -> None:
    whole.cloud.fail("delete_snapshot")
    assert (await whole.engine.carry(ID)).state is State.DONE
    told = report.read(whole.store, ID)
    snapshot = await whole.cloud.find_snapshot(ID)
    assert snapshot is not None
    [line] = [line for line in told.remaining if snapshot.id in line]
    assert line.startswith("volferry gc: ") and told.snapshot_deleted is False


# ---- while a rollback is under way ---------------------------------------------------------------


async def begun_to_go_back(one: Story, fails: str, **words: bool) -> None:
    one.cloud.fail(fails)
    with pytest.raises(VolferryError):
        await one.engine.take_back(ID, **words)
    assert one.store.transfer(ID).state is State.ROLLING_BACK


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
        await server_is_deleted(whole)
    else:
        whole.cloud.forget(whole.source)
    with pytest.raises(Refused, match=f"no way back: somebody deleted {gone}"):
        await whole.engine.take_back(ID)
    assert whole.store.transfer(ID).state is State.STOPPED
    assert (await whole.engine.carry(ID)).state is State.DONE
    assert (await whole.target()).id


async def stays_on_the_target_with_a_reason(one: Story, patch: pytest.MonkeyPatch) -> None:
    """A cutover that is committed and has an intent alone: somebody has to look first."""
    wrong = one.guest.committed.model_copy(update={"reason": "db.service died"})
    patch.setattr(one.guest, "committed", wrong)
    assert "db.service died" in (await one.stops()).what


async def goes_back_without_being_heard(one: Story) -> None:
    with pytest.raises(VolferryError, match="not heard any more"):
        await one.engine.take_back(ID, accept_loss=True)
    assert one.store.transfer(ID).state is State.ROLLING_BACK


async def test_a_way_back_that_ended_on_the_target_leaves_the_cutover_standing(
    whole: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To cut over again would copy a source that is not there to the only side there is."""
    await stays_on_the_target_with_a_reason(whole, monkeypatch)
    await goes_back_without_being_heard(whole)
    whole.guest.job = "cutback"
    whole.cloud.forget(whole.source)
    with pytest.raises(Refused, match="no way back: somebody deleted source"):
        await whole.engine.take_back(ID)
    assert whole.store.transfer(ID).state is State.STOPPED

    monkeypatch.delattr(Onlooker, "cutover")
    monkeypatch.delattr(Onlooker, "catch_up")
    assert (await whole.engine.carry(ID)).state is State.DONE
    receipt = whole.store.receipts(ID)["cutover"]
    assert receipt["outcome"]["reason"] == "db.service died"
    assert receipt["downtime_s"] == 1.0


@pytest.mark.parametrize("standing", [True, False], ids=["receipt", "intent"])
async def test_a_guest_that_was_heard_to_have_gone_back_before_its_server_was_deleted(
    whole: Story, monkeypatch: pytest.MonkeyPatch, standing: bool
) -> None:
    """The source is the live side; that this was not written down makes the target no other."""
    if standing:
        whole.cloud.fail("detach")
        await whole.stops()
    else:
        await stays_on_the_target_with_a_reason(whole, monkeypatch)

    async def back(scene: object) -> Outcome:
        return Outcome(result="reverted", live="source", problems=("app.service is down",))

    monkeypatch.setattr(whole.guest, "cutback", back)
    with pytest.raises(Stop, match="not everything came back"):
        await whole.engine.take_back(ID, accept_loss=True)
    await server_is_deleted(whole)
    assert (await whole.engine.take_back(ID)).state is State.ROLLED_BACK
    assert await whole.cloud.find_volume(ID) is None
    assert (await whole.cloud.volume(whole.source)).status == "available"


@pytest.mark.parametrize("standing", [True, False], ids=["receipt", "intent"])
async def test_a_server_that_was_deleted_on_the_way_back_leaves_both_sides(
    whole: Story, monkeypatch: pytest.MonkeyPatch, standing: bool
) -> None:
    if standing:
        whole.cloud.fail("detach")
        await whole.stops()
    else:
        await stays_on_the_target_with_a_reason(whole, monkeypatch)
    await goes_back_without_being_heard(whole)
    await server_is_deleted(whole)
    with pytest.raises(Refused, match="no way back: somebody deleted server") as refused:
        await whole.engine.take_back(ID, accept_loss=True)
    assert "either side may have what was written last, and both are kept" in refused.value.data
    assert (await whole.engine.carry(ID)).state is State.DONE
    assert (await whole.target()).status == "available"
    assert (await whole.cloud.volume(whole.source)).read_only
    told = report.read(whole.store, ID)
    assert not [note for note in told.notes if "volume delete" in note]


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
    monkeypatch.setattr(target, "undo", refuses)
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


async def test_when_both_sides_were_deleted_nothing_is_waited_for(
    whole: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def nothing_there(scene: object) -> str:
        return "nothing is mounted on /srv/data"

    whole.cloud.fail("detach")
    await whole.stops()
    target = (await whole.target()).id
    monkeypatch.setattr(whole.guest, "not_on_targets", nothing_there)
    whole.cloud.forget(target)
    assert "the target is not mounted where it should be" in (await whole.stops()).what
    whole.cloud.forget(whole.source)
    with pytest.raises(Refused, match="no way back"):
        await whole.engine.take_back(ID, accept_loss=True)
    assert (await whole.engine.carry(ID)).state is State.DONE
    state = whole.store.receipts(ID)["detach"]["state"]
    assert state == "detached, and somebody deleted source and target of data"


# ---- a deleted server, and what was heard of its cutover -----------------------------------------


async def test_a_cutover_that_was_never_begun_is_known_to_have_changed_nothing(
    whole: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def catch_up(scene: object) -> Outlook:
        raise Stop("the gate is closed", data="the service runs on the source")

    monkeypatch.setattr(whole.guest, "catch_up", catch_up)
    await whole.stops()
    await server_is_deleted(whole)
    assert (await whole.engine.take_back(ID)).state is State.ROLLED_BACK
    assert await whole.cloud.find_volume(ID) is None


async def test_an_outcome_that_was_told_outlives_its_server(
    whole: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The guest stayed on the target, and something was wrong there; then the server goes."""
    await stays_on_the_target_with_a_reason(whole, monkeypatch)
    await server_is_deleted(whole)
    with pytest.raises(Refused, match="no way back: somebody deleted server"):
        await whole.engine.take_back(ID, accept_loss=True)
    assert (await whole.engine.carry(ID)).state is State.DONE
    assert (await whole.target()).status == "available"


async def test_a_target_that_went_with_its_server_is_told(whole: Story) -> None:
    whole.cloud.fail("detach")
    await whole.stops()
    target = (await whole.target()).id
    await server_is_deleted(whole)
    whole.cloud.forget(target)
    with pytest.raises(Refused) as refused:
        await whole.engine.take_back(ID, accept_loss=True)
    assert refused.value.data == f"the target was deleted as well: {target}"
    assert (await whole.engine.carry(ID)).state is State.DONE
    assert f"and with it {target}" in whole.store.receipts(ID)["detach"]["state"]
