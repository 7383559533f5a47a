"""How transfers stand still, go on, wait and go back, with the real DBOS underneath."""

import asyncio
import contextlib
import itertools
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from volferry import errors
from volferry.engine import Bug, Engine, Patience
from volferry.model import (
    CloudFacts,
    Event,
    GuestFacts,
    Pass,
    Plan,
    Progress,
    Receipt,
    Server,
    State,
    Transfer,
    Volume,
    Wanted,
)
from volferry.steps.step import Context, Held, Step, Undo
from volferry.store import Store

ID = "tr-web-03-abcd"
QUICK = Patience(first_s=0.001, most_s=0.002, budget_s=5.0)


class Do(Step):
    """Makes one thing in a set; ``first`` may fail, wait or look around before it does."""

    phase = "seed"

    def __init__(
        self, name: str, first: Any = None, *, costs: Undo = Undo.FREE, applies: bool = True
    ) -> None:
        self.name, self.first = name, first  # type: ignore[misc]
        self.promise = f"{name} is there: {{id}}"  # type: ignore[misc]
        self.cost, self.does_apply = costs, applies
        self.undo_first: Any = None

    def applies(self, plan: Plan) -> bool:
        return self.does_apply

    async def costs(self, ctx: Context, receipt: Receipt) -> Undo:
        return self.cost

    async def find(self, ctx: Context) -> Receipt | None:
        return {"id": f"found-{self.name}"} if self.name in ctx.cloud else None

    async def do(self, ctx: Context) -> Receipt:
        await self._call(self.first, ctx)
        assert self.name not in ctx.cloud, "made twice"
        ctx.cloud.add(self.name)
        return {"id": f"id-{self.name}"}

    async def undo(self, ctx: Context, receipt: Receipt) -> None:
        await self._call(self.undo_first, ctx)
        ctx.cloud.discard(self.name)

    async def _call(self, first: Any, ctx: Context) -> None:
        if first is not None and asyncio.iscoroutine(waits := first(ctx)):
            await waits


class Rig:
    """A store, a world that outlives engines, and an engine for each time something is said."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.store = Store(root)
        self.world: set[str] = set()
        self.events: list[Event] = []
        self.engine: Engine | None = None
        source = Volume(id="vol-1", name="d", size_gib=1, type="old", status="in-use")
        server = Server(id="srv-1", name="web-03", status="ACTIVE")
        plan = Plan(
            wanted=Wanted(server="web-03", volumes=("d",)),
            cloud=CloudFacts(server=server, sources=(source,)),
            guest=GuestFacts(family="linux"),
        )
        self.store.create(Transfer(id=ID, state=State.RUNNING, plan=plan, created_at=0.0))

    @contextlib.asynccontextmanager
    async def context(self, transfer: Transfer) -> AsyncIterator[Context]:
        yield Context(transfer.id, transfer.plan, cloud=self.world)

    def new(self, *steps: Step, patience: Patience = QUICK) -> Engine:
        self.engine = Engine(self.store, self.context, steps, patience=patience)
        self.engine.on_event(self.events.append)
        return self.engine

    async def carry(self, *steps: Step, patience: Patience = QUICK) -> Transfer:
        return await self.new(*steps, patience=patience).carry(ID)

    async def take_back(self, *steps: Step, accept_loss: bool = False) -> Transfer:
        return await self.new(*steps).take_back(ID, accept_loss)

    def stop(self) -> None:
        assert self.engine is not None
        self.engine.request_stop()

    def kinds(self) -> list[str]:
        return [e.kind for e in self.events]

    def workflows(self) -> list[tuple[str, str]]:
        """What DBOS has on disk: workflow ids and how each ended."""
        file = self.store.directory(ID) / "engine.sqlite"
        with contextlib.closing(sqlite3.connect(file)) as db:
            query = "select workflow_uuid, status from workflow_status order by created_at"
            return list(db.execute(query))


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path / "state")
    yield made
    made.store.close()


def fails(*faults: BaseException) -> Callable[[Context], None]:
    """Raises each in turn, and then nothing any more."""
    rest = iter(faults)

    def first(_: Context) -> None:
        for fault in rest:
            raise fault

    return first


# ---- forward -------------------------------------------------------------------------------------


async def test_steps_run_in_order_and_see_the_receipts_of_earlier_ones(rig: Rig) -> None:
    seen: list[dict[str, Any]] = []

    done = await rig.carry(Do("a"), Do("b"), Do("c", lambda ctx: seen.append(dict(ctx.known))))

    assert done.state is State.DONE
    assert seen == [{"a": {"id": "id-a"}, "b": {"id": "id-b"}}]
    assert list(rig.store.receipts(ID)) == ["a", "b", "c"]


async def test_a_promise_is_told_with_the_figures_of_its_receipt(rig: Rig) -> None:
    await rig.carry(Do("a"))

    assert rig.kinds() == ["phase", "intent", "receipt", "promise", "done"]
    assert rig.events[3].facts == {"text": "a is there: id-a"}


async def test_an_event_is_stored_before_anybody_hears_it(rig: Rig) -> None:
    heard: list[tuple[Event, Event]] = []
    engine = rig.new(Do("a"))
    engine.on_event(lambda e: heard.append((e, rig.store.events(ID)[-1].event)))

    await engine.carry(ID)

    assert heard
    assert all(told == stored for told, stored in heard)


async def test_a_listener_that_fails_is_dropped_and_the_transfer_goes_on(rig: Rig) -> None:
    calls = itertools.count()

    def broken(_: Event) -> None:
        next(calls)
        raise BrokenPipeError

    engine = rig.new(Do("a"), Do("b"))
    engine.on_event(broken)

    assert (await engine.carry(ID)).state is State.DONE
    assert next(calls) == 1


async def test_progress_is_heard_and_only_the_last_is_kept(rig: Rig) -> None:
    async def report(ctx: Context) -> None:
        await ctx.progress(Progress(what="copying", done_bytes=1))

    await rig.carry(Do("a", report))

    assert "progress" in rig.kinds()
    assert "progress" not in [n.event.kind for n in rig.store.events(ID)]
    assert rig.store.progress(ID) == Progress(what="copying", done_bytes=1)


async def test_passes_are_kept_for_later_runs(rig: Rig) -> None:
    async def work(ctx: Context) -> None:
        await ctx.passed(Pass(number=1 + len(ctx.passes())))

    await rig.carry(Do("a", work), Do("b", work))

    assert [p.number for p in rig.store.passes(ID)] == [1, 2]


async def test_a_step_that_does_not_apply_is_skipped_and_told(rig: Rig) -> None:
    await rig.carry(Do("a"), Do("b", applies=False), Do("c"))

    assert rig.world == {"a", "c"}
    assert [e.step for e in rig.events if e.kind == "skipped"] == ["b"]
    assert "b" not in rig.store.receipts(ID)


async def test_carrying_a_transfer_that_is_done_changes_nothing(rig: Rig) -> None:
    await rig.carry(Do("a"))
    told = len(rig.events)

    assert (await rig.carry(Do("a"))).state is State.DONE
    assert len(rig.events) == told


async def test_what_the_loop_runs_in_threads_still_works_afterwards(rig: Rig) -> None:
    await rig.carry(Do("a"))

    assert await asyncio.to_thread(lambda: "works") == "works"


async def test_one_process_carries_one_transfer_at_a_time(rig: Rig) -> None:
    source = Volume(id="vol-2", name="d", size_gib=1, type="old", status="in-use")
    plan = rig.store.transfer(ID).plan
    plan = plan.model_copy(update={"cloud": plan.cloud.model_copy(update={"sources": (source,)})})
    rig.store.create(Transfer(id="tr-2", state=State.RUNNING, plan=plan, created_at=1.0))

    async def nested(ctx: Context) -> None:
        await Engine(rig.store, rig.context, [Do("b")]).carry("tr-2")

    with pytest.raises(errors.Refused, match=f"carries transfer '{ID}' already"):
        await rig.carry(Do("a", nested))
    assert rig.store.transfer("tr-2").state is State.RUNNING


async def test_a_transfer_that_is_being_carried_is_refused(rig: Rig) -> None:
    with (
        Store(rig.root) as other,
        other.hold(ID),
        pytest.raises(errors.Refused, match="being carried by process"),
    ):
        await rig.carry(Do("a"))

    assert rig.store.transfer(ID).error == {}


# ---- failing -------------------------------------------------------------------------------------

KINDS = [errors.Stop, errors.Doubt, errors.Refused, errors.NotFound, errors.NeedsConsent]


@pytest.mark.parametrize("kind", KINDS)
async def test_an_error_keeps_its_type_and_its_parts(
    rig: Rig, kind: type[errors.VolferryError]
) -> None:
    fault = kind("disk 'x' is 3 GiB, wanted 4", data="nothing was copied", hint="volferry resume x")

    with pytest.raises(kind) as caught:
        await rig.carry(Do("a"), Do("b", fails(fault)), Do("c"))

    assert caught.value is fault
    assert (fault.what, fault.data) == ("disk 'x' is 3 GiB, wanted 4", "nothing was copied")
    stands = rig.store.transfer(ID)
    assert (stands.state, stands.step) == (State.STOPPED, "b")
    assert stands.error == {
        "kind": kind.__name__,
        "what": "disk 'x' is 3 GiB, wanted 4",
        "data": "nothing was copied",
        "hint": fault.hint,
    }
    assert list(rig.store.receipts(ID)) == ["a"]
    assert rig.events[-1].kind == "error"


async def test_an_error_without_a_hint_says_how_to_go_on(rig: Rig) -> None:
    with pytest.raises(errors.Stop) as caught:
        await rig.carry(Do("a", fails(errors.Stop("no"))))

    assert f"volferry resume {ID}" in caught.value.hint
    assert f"volferry rollback {ID}" in caught.value.hint


async def test_a_stopped_transfer_goes_on_as_a_new_attempt(rig: Rig) -> None:
    stop = errors.Stop("not yet")
    a, b = Do("a"), Do("b", fails(stop, stop))
    for _ in range(2):
        with pytest.raises(errors.Stop):
            await rig.carry(a, b)

    done = await rig.carry(a, b)

    assert (done.state, done.error) == (State.DONE, {})
    assert rig.workflows() == [(f"{ID}.1", "ERROR"), (f"{ID}.2", "ERROR"), (f"{ID}.3", "SUCCESS")]


async def test_a_run_that_was_cut_off_is_recovered_under_its_own_id(rig: Rig) -> None:
    class PowerCut(BaseException):
        pass

    a, b = Do("a"), Do("b", fails(PowerCut(), PowerCut()))
    for _ in range(2):
        with pytest.raises(PowerCut):
            await rig.carry(a, b)
        assert rig.store.transfer(ID).state is State.RUNNING

    assert (await rig.carry(a, b)).state is State.DONE
    assert rig.workflows() == [(f"{ID}.1", "SUCCESS")]


async def test_an_error_of_a_recovered_run_keeps_its_type_and_its_parts(rig: Rig) -> None:
    class PowerCut(BaseException):
        pass

    fault = errors.Doubt("two disks fit", data="both are untouched", hint="volferry resume x")
    a, b = Do("a"), Do("b", fails(PowerCut(), fault))
    with pytest.raises(PowerCut):
        await rig.carry(a, b)

    with pytest.raises(errors.Doubt) as caught:
        await rig.carry(a, b)

    assert caught.value is fault
    assert rig.workflows() == [(f"{ID}.1", "ERROR")]


async def test_other_steps_than_the_run_that_was_cut_off_had_begin_a_new_attempt(rig: Rig) -> None:
    class PowerCut(BaseException):
        pass

    a, b = Do("a"), Do("b", fails(PowerCut()))
    with pytest.raises(PowerCut):
        await rig.carry(a, b)

    assert (await rig.carry(a, b, Do("new"))).state is State.DONE
    assert rig.world == {"a", "b", "new"}
    assert rig.workflows() == [(f"{ID}.1", "CANCELLED"), (f"{ID}.2", "SUCCESS")]


async def test_where_the_engine_remembers_otherwise_the_journal_is_right(rig: Rig) -> None:
    class PowerCut(BaseException):
        pass

    a, b = Do("a"), Do("b", fails(PowerCut()))
    with pytest.raises(PowerCut):
        await rig.carry(a, b)
    rig.world.discard("a")
    rig.store.undone(ID, "a")

    assert (await rig.carry(a, b)).state is State.DONE
    assert rig.world == {"a", "b"}
    assert rig.workflows() == [(f"{ID}.1", "ERROR"), (f"{ID}.2", "SUCCESS")]


@pytest.mark.parametrize("fault", [errors.Stop("no"), Held("wait")])
async def test_an_old_answer_that_was_only_remembered_is_asked_again(
    rig: Rig, fault: Exception
) -> None:
    """The process was killed after a step's failure was recorded, but not the run's."""
    a, b = Do("a"), Do("b", fails(fault))
    with contextlib.suppress(errors.Stop):
        await rig.carry(a, b)
    file = rig.store.directory(ID) / "engine.sqlite"
    with contextlib.closing(sqlite3.connect(file)) as db, db:
        db.execute("update workflow_status set status = 'PENDING', error = null, output = null")

    assert (await rig.carry(a, b)).state is State.DONE
    assert [id for id, _ in rig.workflows()] == [f"{ID}.1", f"{ID}.2"]


async def test_an_attempt_that_was_cancelled_leaves_what_a_kill_leaves(rig: Rig) -> None:
    begun = asyncio.Event()

    async def forever(ctx: Context) -> None:
        begun.set()
        await asyncio.sleep(3600)

    carrying = asyncio.create_task(rig.carry(Do("a"), Do("b", forever)))
    await begun.wait()
    carrying.cancel()
    with pytest.raises(asyncio.CancelledError):
        await carrying

    assert rig.store.open_intent(ID) == "b"
    assert rig.store.running(ID) is None
    assert (await rig.carry(Do("a"), Do("b"))).state is State.DONE


async def test_not_now_is_tried_again_and_told(rig: Rig) -> None:
    conflict = errors.Retry("409: volume is busy")

    done = await rig.carry(Do("a", fails(conflict, conflict)))

    assert done.state is State.DONE
    retries = [e.facts for e in rig.events if e.kind == "retry"]
    assert [(r["what"], r["tries"]) for r in retries] == [
        ("409: volume is busy", 1),
        ("409: volume is busy", 2),
    ]


async def test_what_a_failed_attempt_left_is_found_by_the_next(rig: Rig) -> None:
    """The answer to a POST was lost: the volume is there all the same."""

    def lost(ctx: Context) -> None:
        ctx.cloud.add("a")
        raise errors.Retry("connection reset")

    await rig.carry(Do("a", lost))

    assert rig.store.receipts(ID) == {"a": {"id": "found-a"}}


async def test_patience_ends_and_the_transfer_can_be_resumed(rig: Rig) -> None:
    busy = fails(*[errors.Retry("503: try later")] * 1000)
    short = Patience(first_s=0.01, most_s=0.02, budget_s=0.1)

    with pytest.raises(errors.Retry, match="503"):
        await rig.carry(Do("a", busy), patience=short)

    assert rig.store.transfer(ID).state is State.STOPPED
    assert (await rig.carry(Do("a"))).state is State.DONE


async def test_a_bug_takes_nothing_back_and_keeps_its_traceback(rig: Rig) -> None:
    a, b = Do("a"), Do("b", fails(KeyError("volume_id")))

    with pytest.raises(Bug, match="KeyError: 'volume_id'") as caught:
        await rig.carry(a, b)

    assert isinstance(caught.value.__cause__, KeyError)
    assert rig.world == {"a"}
    assert rig.store.transfer(ID).state is State.STOPPED
    told = next(e for e in rig.events if e.kind == "bug")
    assert "raise fault" in told.facts["traceback"]
    log = rig.store.directory(ID) / "bug.log"
    assert str(log) in caught.value.hint
    assert "KeyError" in log.read_text()
    assert (await rig.carry(a, b)).state is State.DONE


async def test_a_receipt_that_is_not_plain_json_is_a_bug(rig: Rig) -> None:
    class Odd(Do):
        async def do(self, ctx: Context) -> Receipt:
            return {"id": object()}

    with pytest.raises(Bug):
        await rig.carry(Odd("a"))

    assert rig.store.open_intent(ID) == "a"


async def test_a_context_that_cannot_be_opened_stops_the_transfer(rig: Rig) -> None:
    def refuse(_: Transfer) -> Any:
        raise errors.Refused("the cloud does not know you (401)")

    with pytest.raises(errors.Refused):
        await Engine(rig.store, refuse, [Do("a")]).carry(ID)

    assert rig.store.transfer(ID).error["what"] == "the cloud does not know you (401)"


@pytest.mark.parametrize("later", [["b"], ["a", "new", "b"], []])
async def test_a_journal_of_another_sequence_is_a_doubt(rig: Rig, later: list[str]) -> None:
    with pytest.raises(errors.Stop):
        await rig.carry(Do("a"), Do("b"), Do("c", fails(errors.Stop("no"))))

    with pytest.raises(errors.Doubt, match="this volferry never writes"):
        await rig.carry(*map(Do, later), Do("c"))


# ---- waiting -------------------------------------------------------------------------------------


async def test_a_held_transfer_waits_for_its_operator_and_then_goes_on(rig: Rig) -> None:
    def gate(ctx: Context) -> None:
        asked = ctx.requests("finish")
        if not asked:
            raise Held("the service runs on the target", hint="volferry finish")
        ctx.take(asked[0])

    steps = [Do("a"), Do("hold", gate), Do("b")]
    for _ in range(2):
        held = await rig.carry(*steps)
        assert (held.state, held.step, held.error) == (State.HELD, "hold", {})
    rig.store.request(ID, "finish")

    assert (await rig.carry(*steps)).state is State.DONE
    assert rig.store.pending(ID) == []
    told = [e.facts for e in rig.events if e.kind == "held"]
    assert told == [{"what": "the service runs on the target", "hint": "volferry finish"}] * 2


async def test_a_stop_takes_effect_at_the_next_safe_point(rig: Rig) -> None:
    async def passes(ctx: Context) -> None:
        for n in itertools.count():
            ctx.check_stop()
            if n == 1:
                rig.stop()
            await ctx.sleep(60)  # wakes up when something is asked

    rig.store.request(ID, "set")
    with pytest.raises(errors.Paused, match="as you asked"):
        await asyncio.wait_for(rig.carry(Do("a"), Do("sync", passes)), 20)

    assert rig.store.transfer(ID).state is State.STOPPED
    assert (await rig.carry(Do("a"), Do("sync"))).state is State.DONE


async def test_another_process_can_ask_to_stop(rig: Rig) -> None:
    async def asked(ctx: Context) -> None:
        with Store(rig.root) as other:
            other.request(ID, "stop")
        ctx.check_stop()

    with pytest.raises(errors.Paused):
        await rig.carry(Do("a", asked))

    assert rig.store.pending(ID) == []


async def test_a_stop_asked_while_nobody_listened_does_not_stop_the_next_run(rig: Rig) -> None:
    rig.store.request(ID, "stop")

    assert (await rig.carry(Do("a"))).state is State.DONE


async def test_a_stop_ends_the_wait_between_two_tries(rig: Rig) -> None:
    engine = rig.new(
        Do("a", fails(*[errors.Retry("busy")] * 9)), patience=Patience(first_s=600, budget_s=9000)
    )
    engine.on_event(lambda e: engine.request_stop() if e.kind == "retry" else None)

    with pytest.raises(errors.Paused):
        await asyncio.wait_for(engine.carry(ID), 20)


async def test_a_request_wakes_a_sleeping_step_once(rig: Rig) -> None:
    slept: list[float] = []

    async def work(ctx: Context) -> None:
        clock = asyncio.get_running_loop().time
        rig.store.request(ID, "cutover")
        for seconds in (60.0, 0.3):
            began = clock()
            await ctx.sleep(seconds)
            slept.append(clock() - began)

    await rig.carry(Do("a", work))

    assert slept[0] < 10
    assert slept[1] >= 0.29


# ---- back ----------------------------------------------------------------------------------------


async def test_a_rollback_undoes_the_newest_first_and_leaves_nothing(rig: Rig) -> None:
    steps = [Do("a"), Do("b"), Do("c")]
    await rig.carry(*steps)
    order: list[str] = []
    for step in steps:
        step.undo_first = lambda ctx: order.append(ctx.step)

    back = await rig.take_back(*steps)

    assert (back.state, back.error) == (State.ROLLED_BACK, {})
    assert order == ["c", "b", "a"]
    assert rig.world == set()
    assert rig.store.receipts(ID) == {}
    assert (f"{ID}.rollback.1", "SUCCESS") in rig.workflows()


async def test_a_rollback_finds_what_an_interrupted_step_left(rig: Rig) -> None:
    def half(ctx: Context) -> None:
        ctx.cloud.add("b")
        raise errors.Stop("the quota is used up")

    steps = [Do("a"), Do("b", half)]
    with pytest.raises(errors.Stop):
        await rig.carry(*steps)

    await rig.take_back(*steps)

    assert rig.world == set()
    assert rig.store.open_intent(ID) is None


async def test_rolling_back_what_never_began_needs_nothing(rig: Rig) -> None:
    assert (await rig.take_back(Do("a"))).state is State.ROLLED_BACK
    assert (await rig.take_back(Do("a"))).state is State.ROLLED_BACK


async def test_a_rollback_asks_before_anything_is_undone(rig: Rig) -> None:
    steps = [Do("a"), Do("cutover", costs=Undo.CONSENT), Do("later")]
    await rig.carry(*steps)

    with pytest.raises(errors.NeedsConsent, match="writes made since the cutover would be lost"):
        await rig.take_back(*steps)

    assert rig.world == {"a", "cutover", "later"}
    assert rig.store.transfer(ID).state is State.DONE
    assert (await rig.take_back(*steps, accept_loss=True)).state is State.ROLLED_BACK
    assert rig.world == set()


async def test_after_a_rollback_was_refused_a_stopped_transfer_can_still_go_on(rig: Rig) -> None:
    steps = [Do("cutover", costs=Undo.CONSENT), Do("b", fails(errors.Stop("no")))]
    with pytest.raises(errors.Stop):
        await rig.carry(*steps)
    with pytest.raises(errors.NeedsConsent):
        await rig.take_back(*steps)

    stands = rig.store.transfer(ID)
    assert (stands.state, stands.error["what"]) == (State.STOPPED, "no")
    assert (await rig.carry(*steps)).state is State.DONE


async def test_what_cannot_be_taken_back_is_refused_before_anything_is(rig: Rig) -> None:
    """With the loss accepted as well, or the transfer would stand where it goes neither way."""

    class Last(Do):
        async def costs(self, ctx: Context, receipt: Receipt) -> Undo:
            raise errors.Refused("there is no way back any more")

    steps = [Do("a"), Last("tidy"), Do("b", fails(errors.Stop("no")))]
    with pytest.raises(errors.Stop):
        await rig.carry(*steps)

    with pytest.raises(errors.Refused, match="no way back"):
        await rig.take_back(*steps, accept_loss=True)

    assert rig.world == {"a", "tidy"}
    assert rig.store.transfer(ID).state is State.STOPPED
    assert (await rig.carry(*steps)).state is State.DONE


async def test_what_an_interrupted_step_left_needs_consent_too(rig: Rig) -> None:
    def half(ctx: Context) -> None:
        ctx.cloud.add("cutover")
        raise errors.Stop("the answer was lost")

    steps = [Do("a"), Do("cutover", half, costs=Undo.CONSENT)]
    with pytest.raises(errors.Stop):
        await rig.carry(*steps)

    with pytest.raises(errors.NeedsConsent):
        await rig.take_back(*steps)

    assert rig.world == {"a", "cutover"}


async def test_a_rollback_cut_short_finishes_when_it_is_repeated(rig: Rig) -> None:
    steps = [Do("a"), Do("cutover", costs=Undo.CONSENT), Do("c")]
    await rig.carry(*steps)
    steps[1].undo_first = fails(errors.Stop("the cloud is away"))
    with pytest.raises(errors.Stop) as caught:
        await rig.take_back(*steps, accept_loss=True)
    assert "resume" not in caught.value.hint
    assert rig.store.transfer(ID).state is State.ROLLING_BACK

    with pytest.raises(errors.Refused, match="cannot go forward any more"):
        await rig.carry(*steps)
    back = await rig.take_back(*steps)  # consent was given when it began

    assert back.state is State.ROLLED_BACK
    assert rig.world == set()


async def test_a_rollback_can_be_stopped_and_finished_later(rig: Rig) -> None:
    steps = [Do("a"), Do("b")]
    await rig.carry(*steps)
    steps[1].undo_first = lambda _: rig.stop()

    with pytest.raises(errors.Paused) as caught:
        await rig.take_back(*steps)

    assert "resume" not in caught.value.hint
    assert rig.world == {"a"}
    assert (await rig.take_back(*steps)).state is State.ROLLED_BACK


async def test_undoing_is_tried_again_as_well(rig: Rig) -> None:
    step = Do("a")
    await rig.carry(step)
    step.undo_first = fails(errors.Retry("409"))

    assert (await rig.take_back(step)).state is State.ROLLED_BACK


async def test_a_bug_in_undo_leaves_the_rollback_to_be_repeated(rig: Rig) -> None:
    step = Do("a")
    await rig.carry(step)
    step.undo_first = fails(ValueError("oops"))
    with pytest.raises(Bug):
        await rig.take_back(step)

    assert rig.store.transfer(ID).state is State.ROLLING_BACK
    assert (await rig.take_back(step)).state is State.ROLLED_BACK


async def test_a_transfer_that_was_rolled_back_is_over(rig: Rig) -> None:
    await rig.take_back(Do("a"))

    with pytest.raises(errors.Refused, match="rolled back"):
        await rig.carry(Do("a"))


def test_two_steps_cannot_share_a_name(rig: Rig) -> None:
    with pytest.raises(ValueError, match="same name"):
        rig.new(Do("a"), Do("a"))
