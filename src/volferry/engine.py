"""Carry a transfer forward, or take it back. Knows steps, knows no cloud.

The engine writes an intent before the first effect of a step and its receipt after the last one.
A crash therefore leaves at most one open intent, and only that step has to find what it left.
Whatever fails, a transfer ends standing still with all its receipts: ``Retry`` is tried again for
a while, everything else stops, and nothing is ever taken back because of an error. Taking back is
the operator's decision, and stops to ask where it would lose data.

**What DBOS is for.** This is the only file that knows DBOS Transact, the durable-execution library
underneath. A direction (forward, back) is one durable workflow and each of our steps one of its
steps: when the process is killed, the workflow is still pending, and the next process that carries
the transfer recovers it under its own id and goes on behind the last step that ended. An attempt
that *ended*, because it stopped or was held, is not revived; the next one is a new workflow,
``<transfer>.<n>`` or ``<transfer>.rollback.<n>``.

For one process and one SQLite file the journal alone could do that, and it stays the truth: a step
looks there first, and where DBOS remembers otherwise, its memory is dropped and a new attempt is
made. What DBOS brings is the same code on PostgreSQL with many workers, leases and queues, which
is later work.

Its database is one SQLite file per transfer. DBOS recovers what *its executor id* left pending, so
two processes with one id on one file would both run the live step; and one id per process needs a
lease to know the dead from the living. A file of its own, under the transfer's ``flock``, gives
every transfer exactly one engine process and lets two transfers run side by side. DBOS is also one
per process, and so is a transfer.
"""

import asyncio
import contextlib
import json
import os
import random
import sqlite3
import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from volferry import errors, scrub
from volferry.model import Event, Json, Pass, Progress, Receipt, State, Transfer
from volferry.steps.step import Context, Held, Step, Undo, fill
from volferry.store import Request, Store

FORMAT = "1"
"""DBOS's ``application_version``, by hand: the default hashes the code, and a changed one leaves
running transfers behind without a word. Raise it only if the workflow below changes its shape."""

_LISTEN_S = 0.25
_PROGRESS_S = 1.0
_OPEN = ("PENDING", "ENQUEUED", "DELAYED")

T = TypeVar("T")


class Bug(errors.Stop):
    """volferry itself is wrong. The transfer stands still; nothing is taken back because of it."""


@dataclass(frozen=True)
class Patience:
    """How ``Retry`` is tried again: after ``first_s``, twice as long each time up to ``most_s``.

    Until failures in a row have lasted ``budget_s`` (--retry-timeout); an attempt that ran for
    longer than that before it failed begins a new row, so that a step of several days has no fewer
    tries.
    """

    first_s: float = 1.0
    most_s: float = 60.0
    budget_s: float = 900.0


class Engine:
    """Carries one transfer at a time; see ``carry`` and ``take_back``.

    ``context_for`` opens what steps use (cloud, guest, method) and closes it again.
    """

    def __init__(
        self,
        store: Store,
        context_for: Callable[[Transfer], AbstractAsyncContextManager[Context]],
        sequence: Sequence[Step],
        *,
        patience: Patience | None = None,
    ) -> None:
        self.store = store
        self._given = patience
        self._context_for = context_for
        self._steps = {step.name: step for step in sequence}
        if len(self._steps) != len(sequence):
            raise ValueError("two steps have the same name")
        self._listeners: list[Callable[[Event], None]] = []
        self._stop = False
        self._phase = ""

    def on_event(self, callback: Callable[[Event], None]) -> None:
        """Call ``callback`` with each event of this process, after it has been stored.

        Progress comes this way too, as events of the kind ``progress`` that are not kept.
        """
        self._listeners.append(callback)

    def request_stop(self) -> None:
        """Ask the running step to end at its next safe point; may be called by a signal handler."""
        self._stop = True

    async def carry(self, id: str) -> Transfer:
        """Run every step that has no receipt yet; answers with the transfer, done or held.

        Saying it again after any end, a kill included, goes on from there. Whatever a step raises
        is stored as the transfer's error and raised here with its type and its three parts.

        Raises ``Refused`` while another process carries it, when it was rolled back, and when a
        rollback has begun: half undone steps cannot be built upon.
        """
        with self.store.hold(id), _alone(id):
            transfer = self.store.transfer(id)
            if transfer.state is State.DONE:
                return transfer
            if transfer.state in (State.ROLLING_BACK, State.ROLLED_BACK):
                self._forget_old_requests(id, "cutover", "finish")
                raise errors.Refused(
                    f"transfer '{id}' is {transfer.state.value} and cannot go forward any more",
                    data="nothing was changed",
                    hint=f"volferry rollback {id}   finishes taking it back"
                    if transfer.state is State.ROLLING_BACK
                    else "volferry run   begins another transfer",
                )
            self._forget_old_requests(id, "stop", "rollback")
            async with self._failing_into(id, State.STOPPED):
                self._check_journal(id)
                self.store.set_state(id, State.RUNNING)
                async with self._context(transfer) as ctx:
                    names = list(self._steps)
                    held = await self._durably(id, "carry", names, self._forward(ctx))
                    if held:
                        await ctx.tell("held", **held)
                        self.store.set_state(id, State.HELD)
                    else:
                        ctx.step = ""
                        self.store.set_state(id, State.DONE, step="")
                        await ctx.tell("done")
        return self.store.transfer(id)

    async def take_back(self, id: str, accept_loss: bool = False) -> Transfer:
        """Undo what stands, newest first; answers with the transfer, rolled back.

        Raises ``NeedsConsent`` before anything is undone when undoing would lose data and
        ``accept_loss`` was not said. One that was cut short is finished by saying it again, and
        until then the transfer does not go forward; unless there is no way back any more.
        """
        with self.store.hold(id), _alone(id):
            transfer = self.store.transfer(id)
            if transfer.state is State.ROLLED_BACK:
                return transfer
            begun = transfer.state is State.ROLLING_BACK
            self._forget_old_requests(id, "stop", "rollback")
            before = transfer.state if transfer.state is not State.RUNNING else State.STOPPED
            async with self._failing_into(id, before) as fails:
                self._check_journal(id)
                async with self._context(transfer) as ctx:
                    try:
                        accepted = await self._ask(ctx, accept_loss, begun=begun)
                        fails.state = State.ROLLING_BACK
                        self.store.set_state(id, State.ROLLING_BACK)
                        names = list(reversed(self._steps))
                        await self._durably(id, "rollback", names, self._backward(ctx, accepted))
                    except errors.NoWayBack:
                        # Of a transfer that was on its way back: all before the step that says so
                        # stands, and all behind it is done again.
                        if fails.state is State.ROLLING_BACK:
                            fails.state = State.STOPPED
                        raise
                    ctx.step = ""
                    self.store.set_state(id, State.ROLLED_BACK, step="")
                    await ctx.tell("rolled back")
        return self.store.transfer(id)

    # ---- one step --------------------------------------------------------------------------------

    def _forward(self, ctx: Context) -> "_Work":
        async def one(name: str) -> Json:
            step, id = self._enter(ctx, name), ctx.transfer_id
            if name in ctx.known:
                return {}
            if not step.applies(ctx.plan):
                await ctx.tell("skipped")
                return {}
            ctx.check_stop()
            self.store.set_state(id, State.RUNNING, step=name)
            if step.phase != self._phase:
                self._phase = step.phase
                await ctx.tell("phase", phase=step.phase)
            interrupted = self.store.open_intent(id) == name
            if not interrupted:
                self.store.intent(id, name)
            await ctx.tell("intent", interrupted=interrupted)

            async def attempt() -> Receipt:
                nonlocal interrupted
                found = await step.find(ctx) if interrupted else None
                interrupted = True  # a failed attempt may have left something as well
                return await step.do(ctx) if found is None else found

            try:
                receipt = await self._patiently(ctx, attempt)
            except Held as word:
                return {"what": word.what, "hint": word.hint}
            self.store.receipt(id, name, receipt)
            await ctx.tell("receipt", receipt=receipt, api_calls=ctx.new_calls())
            await ctx.tell("promise", text=fill(step.promise, receipt))
            return {}

        def stands(name: str) -> bool:
            known = self.store.receipts(ctx.transfer_id)
            return name in known or not self._steps[name].applies(ctx.plan)

        return _Work(one, stands)

    def _backward(self, ctx: Context, accepted: set[Undo]) -> "_Work":
        async def one(name: str) -> Json:
            step, id = self._enter(ctx, name), ctx.transfer_id
            receipt = await self._left(ctx, step)
            if receipt is not None:
                ctx.check_stop()
                # Asked again: what it costs may have become another thing meanwhile.
                _need_consent(ctx, {await self._costs(ctx, step, receipt)} - accepted)
                self.store.set_state(id, State.ROLLING_BACK, step=name)
                there = receipt
                await self._patiently(ctx, lambda: step.undo(ctx, there))
            if receipt is not None or self.store.open_intent(id) == name:
                self.store.undone(id, name)
                await ctx.tell("undone", found=receipt is not None)
            return {}

        def gone(name: str) -> bool:
            id = ctx.transfer_id
            return name not in self.store.receipts(id) and self.store.open_intent(id) != name

        return _Work(one, gone)

    def _enter(self, ctx: Context, name: str) -> Step:
        ctx.step, ctx.known = name, self.store.receipts(ctx.transfer_id)
        return self._steps[name]

    async def _left(self, ctx: Context, step: Step) -> Receipt | None:
        """What stands of a step: known from the journal, or found after a crash."""
        receipt = ctx.known.get(step.name)
        if receipt is None and self.store.open_intent(ctx.transfer_id) == step.name:
            return await self._patiently(ctx, lambda: step.left_behind(ctx))
        return receipt

    async def _costs(self, ctx: Context, step: Step, receipt: Receipt) -> Undo:
        return await self._patiently(ctx, lambda: step.costs(ctx, receipt))

    async def _ask(self, ctx: Context, accept_loss: bool, *, begun: bool) -> set[Undo]:
        """Look for what undoing would cost, and whether there is a way at all; what is accepted.

        That there is none is said before anybody is asked for a word that would not help. A word
        holds for what it was given for, and for this rollback: a later cost is asked for anew.
        """
        costs = {Undo.FREE}
        for name in reversed(self._steps):
            step = self._enter(ctx, name)
            receipt = await self._left(ctx, step)
            if receipt is not None:
                costs.add(await self._costs(ctx, step, receipt))
        ctx.step = ""
        events = ctx.line.events() if begun else ()
        told = [e.facts["costs"] for e in events if e.kind == "accepted"]
        accepted = {Undo.FREE, *(Undo[name] for names in told for name in names)}
        if costs <= accepted:
            return accepted
        if not accept_loss:
            _need_consent(ctx, costs - accepted)
        await ctx.tell("accepted", costs=sorted(cost.name for cost in costs - {Undo.FREE}))
        return accepted | costs

    async def _patiently(self, ctx: Context, attempt: Callable[[], Awaitable[T]]) -> T:
        patience = self._given or Patience(budget_s=ctx.plan.wanted.timeouts.retry_s)
        row_began, tries = time.monotonic(), 0
        while True:
            began = time.monotonic()
            try:
                return await attempt()
            except errors.Retry as fault:
                now = time.monotonic()
                if now - began > patience.budget_s:
                    row_began, tries = now, 0
                pause = min(patience.most_s, patience.first_s * 2**tries)
                pause *= random.uniform(0.5, 1.0)  # noqa: S311 - spreads load, guards nothing
                if now + pause - row_began > patience.budget_s:
                    tried = f"tried {tries + 1} times within {patience.budget_s:g} s"
                    fault.what += f"; {tried} (--retry-timeout)"
                    raise
                tries += 1
                await ctx.tell("retry", **_parts(fault), tries=tries, pause_s=round(pause, 3))
                ctx.check_stop()
                await ctx.sleep(pause)
                ctx.check_stop()

    # ---- one transfer ----------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def _context(self, transfer: Transfer) -> AsyncIterator[Context]:
        async with self._context_for(transfer) as ctx:
            ctx.line, self._phase = _EngineLine(self, transfer.id), ""
            yield ctx

    @contextlib.asynccontextmanager
    async def _failing_into(self, id: str, state: State) -> "AsyncIterator[_Fails]":
        """Write down what goes wrong inside, and how the transfer stands then.

        A cancellation is no error: it leaves what a kill leaves. One that follows a request to stop
        is how the operator is obeyed where no safe point is near.
        """
        fails = _Fails(state)
        try:
            yield fails
        except asyncio.CancelledError:
            if not self._stop:
                raise
            left = errors.Paused(
                f"left in the middle of '{self.store.transfer(id).step}' as you asked",
                data="what was done is kept; what the guest or the cloud is doing, they end by "
                "themselves\nthe service runs, or will run, on exactly one side",
                hint=f"volferry resume {id}",
            )
            await self._stand_still(id, fails.state, left)
            raise left from None
        except errors.VolferryError as error:
            await self._stand_still(id, fails.state, error)
            raise
        except Exception as fault:
            # Not ours, so nobody foresaw it. It must neither lose its traceback nor become a
            # reason to undo anything.
            log = self.store.directory(id) / "bug.log"
            trace = scrub.text("".join(traceback.format_exception(fault)))
            await asyncio.to_thread(_append, log, trace)
            bug = Bug(
                scrub.text(f"this is a bug in volferry: {type(fault).__name__}: {fault}"),
                data="the transfer stands still where it was; nothing was taken back",
                hint=f"the traceback is in {log}; please report it",
            )
            await self._tell(id, "bug", traceback=trace)
            await self._stand_still(id, fails.state, bug)
            raise bug from fault

    async def _stand_still(self, id: str, state: State, error: errors.VolferryError) -> None:
        back = state is State.ROLLING_BACK
        if isinstance(error, errors.Paused):
            self._stop = False
            self._forget_old_requests(id, "stop")
            if back:
                error.hint = ""  # it advises to resume
        # Such as the cloud's word that an object is not there any more.
        error.data = error.data or "the transfer stands still where it is; what was done is kept"
        asks = isinstance(error, errors.NeedsConsent)
        if not asks and not any(
            f"volferry {verb}" in error.hint for verb in ("resume", "rollback", "finish")
        ):
            ways = [f"volferry rollback {id}   takes back what was done"]
            if not back:
                ways.insert(0, f"volferry resume {id}     continues from here")
            error.hint = "\n".join([error.hint, *ways]).lstrip()
        if not asks or state is not self.store.transfer(id).state:
            # A question about a transfer that stands does not replace why it stands.
            self.store.set_state(id, state, error=_parts(error))
        await self._tell(id, "error", **_parts(error))

    def _check_journal(self, id: str) -> None:
        """The journal must be one that this sequence could have written; a doubt stops."""
        standing, begun = self.store.receipts(id), self.store.open_intent(id)
        strange = [name for name in [*standing, begun] if name and name not in self._steps]
        plan, state = self.store.transfer(id).plan, self.store.transfer(id).state
        gap = ""
        for name, step in self._steps.items():
            if name in standing and gap and state is not State.ROLLING_BACK:
                strange.append(f"{name} without {gap}")
            elif name not in standing and step.applies(plan):
                gap = gap or name
        if strange:
            raise errors.Doubt(
                f"the journal of '{id}' has what this volferry never writes: {', '.join(strange)}",
                data="nothing was changed",
                hint="go on with the volferry that began this transfer",
            )

    def _forget_old_requests(self, id: str, *what: str) -> None:
        for request in self.store.pending(id):
            if request.what in what:
                self.store.taken(request)

    async def _tell(self, id: str, kind: str, /, **facts: Any) -> None:
        step = self.store.transfer(id).step
        event = Event(at=time.time(), transfer=id, step=step, kind=kind, facts=facts)
        await _EngineLine(self, id).event(event)

    def _hear(self, event: Event) -> None:
        for callback in tuple(self._listeners):
            try:
                callback(event)
            except Exception:  # noqa: BLE001 - a transfer does not end because a pipe was closed
                self._listeners.remove(callback)

    # ---- durable execution: all that DBOS is asked for -------------------------------------------

    async def _durably(self, id: str, direction: str, names: list[str], work: "_Work") -> Json:
        """Do ``work`` on each name as one durable workflow; answers with a step's last word.

        A workflow that was cut off is recovered. What it then only repeats from its memory, an
        error or a held step, is an old answer to a new question: it is asked again.
        """
        async with _launched(self.store.directory(id), work) as durable:
            for again in (True, False):
                try:
                    said = await durable.run(id, direction, names)
                except Exception:  # whatever it was: told now, or remembered and asked again
                    if work.lived or not again:
                        raise
                else:
                    if work.lived or not said:
                        return said
        raise AssertionError("a new attempt is always lived")


@dataclass
class _Fails:
    state: State


@dataclass
class _Work:
    """What is done on each name, and how to know from the journal that it has been."""

    one: Callable[[str], Awaitable[Json]]
    stands: Callable[[str], bool]
    lived: bool = False
    """Whether this process did any of it, or only heard what DBOS remembered."""
    error: Exception | None = None
    dead: "asyncio.Future[Json] | None" = None
    chosen: str = ""
    choice: asyncio.Event = field(default_factory=asyncio.Event)
    tasks: "set[asyncio.Task[Any]]" = field(default_factory=set)

    async def live(self, name: str) -> Json:
        self.lived = True
        try:
            return await self.one(name)
        except Exception as error:
            self.error = error
            raise
        except BaseException as end:
            # Nothing is recorded of it, and a recovered workflow has nobody else who would hear.
            if self.dead is not None and not self.dead.done():
                self.dead.set_exception(end)
            raise


class _Astray(Exception):
    """DBOS remembers a step as done of which the journal knows nothing."""


@dataclass
class _Durable:
    """DBOS, launched in this process for one transfer."""

    dbos: Any
    workflow: Any
    work: _Work

    async def run(self, id: str, direction: str, names: list[str]) -> Json:
        from dbos import SetWorkflowID  # noqa: PLC0415 - 0.6 s that only carrying has to pay

        prefix = f"{id}.rollback." if direction == "rollback" else f"{id}."
        runs = await self.dbos.list_workflows_async(load_input=True, load_output=False)
        unfinished = [r for r in runs if r.status in _OPEN]
        same = [r for r in unfinished if r.input and list(r.input["args"]) == [direction, names]]
        recovered = same[-1].workflow_id if same else ""
        # Another direction, or the steps of another version: their memory would mislead.
        left = [r.workflow_id for r in unfinished if r.workflow_id != recovered]
        if left:
            await self.dbos.cancel_workflows_async(left)
        numbers = (r.workflow_id.removeprefix(prefix) for r in runs)
        number = 1 + max((int(n) for n in numbers if n.isdigit()), default=0)
        self.work.chosen = recovered or f"{prefix}{number}"
        self.work.choice.set()
        if recovered:
            handle = await self.dbos.retrieve_workflow_async(recovered)
        else:
            with SetWorkflowID(self.work.chosen):
                handle = await self.dbos.start_workflow_async(self.workflow, direction, names)
        self.work.dead = asyncio.get_running_loop().create_future()
        result = asyncio.ensure_future(handle.get_result(polling_interval_sec=_LISTEN_S))
        try:
            await asyncio.wait({result, self.work.dead}, return_when=asyncio.FIRST_COMPLETED)
            if self.work.error is not None:
                raise self.work.error
            return await (self.work.dead if self.work.dead.done() else result)
        finally:
            result.cancel()
            self.work.dead.cancel()
            await asyncio.gather(result, return_exceptions=True)


_carried: list[str] = []


@contextlib.contextmanager
def _alone(id: str) -> Iterator[None]:
    """DBOS is one per process, and so is what it is launched for."""
    if _carried:
        raise errors.Refused(
            f"this process carries transfer '{_carried[0]}' already",
            data="nothing was changed",
            hint="carry each transfer in a process of its own",
        )
    _carried.append(id)
    try:
        yield
    finally:
        _carried.remove(id)


@contextlib.asynccontextmanager
async def _launched(directory: Path, work: _Work) -> AsyncIterator[_Durable]:
    """Launch DBOS on the file of one transfer, and leave nothing of it behind in this process."""
    from dbos import DBOS  # noqa: PLC0415 - see above

    file = directory / "engine.sqlite"
    os.close(os.open(file, os.O_CREAT | os.O_CLOEXEC, 0o600))
    with contextlib.closing(sqlite3.connect(file)) as db:
        db.execute("PRAGMA journal_mode = WAL")

    async def steps(direction: str, names: list[str]) -> Json:
        task = asyncio.current_task()
        assert task is not None
        work.tasks.add(task)
        await work.choice.wait()
        if DBOS.workflow_id != work.chosen:
            return {}  # recovered at launch, but not what this process is for
        for name in names:
            said: Json = await DBOS.run_step_async({"name": f"{direction} {name}"}, live, name)
            if said:
                return said
            if not work.stands(name):
                raise _Astray(name)
        return {}

    async def live(name: str) -> Json:
        return await work.live(name)

    loop = asyncio.get_running_loop()
    try:
        DBOS(
            config={
                "name": "volferry",
                "system_database_url": f"sqlite:///{file}",
                "application_version": FORMAT,
                "executor_id": "volferry",
                "serializer": _serializer(),
                "log_level": "CRITICAL",
                "enable_otlp": False,
                # Nothing of ours waits for DBOS's notifications, but its end waits for this one.
                "notification_listener_polling_interval_sec": 0.1,
            }
        )
        # None: a transfer may be killed as often as it likes and is still recovered.
        workflow = DBOS.workflow(name="volferry", max_recovery_attempts=None)(steps)
        DBOS.launch()
        yield _Durable(DBOS, workflow, work)
    finally:
        for task in work.tasks:
            task.cancel()
        await asyncio.gather(*work.tasks, return_exceptions=True)
        # It made its own thread pool the loop's, and takes it along when it goes.
        loop.set_default_executor(ThreadPoolExecutor(thread_name_prefix="volferry"))
        await asyncio.to_thread(DBOS.destroy, destroy_registry=True)
        await asyncio.gather(*work.tasks, return_exceptions=True)


def _serializer() -> Any:
    """JSON instead of DBOS's pickle, with our errors in it as what they are."""
    from dbos import Serializer  # noqa: PLC0415 - see above

    class Plain(Serializer):
        def serialize(self, data: Any) -> str:
            return json.dumps(data, default=_error_to_json)

        def deserialize(self, serialized_data: str) -> Any:
            return json.loads(serialized_data, object_hook=_error_from_json)

        def name(self) -> str:
            return "volferry_json"

    return Plain()


def _error_to_json(thing: object) -> Json:
    if isinstance(thing, errors.VolferryError):
        return {"$error": _parts(thing)}
    if isinstance(thing, BaseException):
        return {"$error": {"kind": type(thing).__name__, "what": str(thing)}}
    raise TypeError(f"{type(thing).__name__} is not plain JSON")


def _error_from_json(found: Json) -> Any:
    if found.keys() != {"$error"}:
        return found
    parts = found["$error"]
    kinds = [errors.VolferryError]
    for kind in kinds:
        if kind.__name__ == parts["kind"]:
            error = kind.__new__(kind)
            errors.VolferryError.__init__(
                error, parts["what"], data=parts["data"], hint=parts["hint"]
            )
            return error
        kinds += kind.__subclasses__()
    return RuntimeError(f"{parts['kind']}: {parts['what']}")


def _parts(error: errors.VolferryError) -> Json:
    return {
        "kind": type(error).__name__,
        "what": scrub.exact(error.what),
        "data": scrub.exact(error.data),
        "hint": scrub.exact(error.hint),
    }


def _need_consent(ctx: Context, costs: set[Undo]) -> None:
    if costs:
        what = "; ".join(cost.value for cost in Undo if cost in costs)
        where = f"'{ctx.step}'" if ctx.step else "this transfer"
        raise errors.NeedsConsent(
            f"taking back {where} needs your word: {what}",
            data=f"nothing more of {where} was taken back",
            hint=f"volferry rollback {ctx.transfer_id} --accept-loss",
        )


def _append(path: Path, text: str) -> None:
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    with os.fdopen(log, "a", encoding="utf-8", errors="backslashreplace") as file:
        file.write(text)


class _EngineLine:
    """A step's line to the store, to whoever listens in this process, and to the operator."""

    def __init__(self, engine: Engine, id: str) -> None:
        self._engine, self._store, self._id = engine, engine.store, id
        self._heard: tuple[bool, int] = (False, 0)
        self._reported = 0.0

    async def event(self, event: Event) -> None:
        self._store.event(event)
        self._engine._hear(event)

    async def progress(self, progress: Progress) -> None:
        now = time.monotonic()
        if now - self._reported >= _PROGRESS_S:
            self._reported = now
            self._store.put_progress(self._id, progress)
        facts = progress.model_dump(mode="json")
        step = self._store.transfer(self._id).step
        self._engine._hear(
            Event(at=time.time(), transfer=self._id, step=step, kind="progress", facts=facts)
        )

    async def passed(self, one: Pass) -> None:
        self._store.add_pass(self._id, one)

    def passes(self) -> Sequence[Pass]:
        return self._store.passes(self._id)

    def events(self) -> Sequence[Event]:
        return [numbered.event for numbered in self._store.events(self._id)]

    def requests(self) -> Sequence[Request]:
        return self._store.pending(self._id)

    def take(self, request: Request) -> None:
        self._store.taken(request)

    def stop_asked(self) -> bool:
        return self._engine._stop or any(r.what in ("stop", "rollback") for r in self.requests())

    async def wait(self, seconds: float) -> None:
        # Polls, because the operator's process is another one. Wakes for each news once: a step
        # between two safe points sleeps on although it has been asked to stop.
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            news = (self._engine._stop, max((r.id for r in self.requests()), default=0))
            if news > self._heard:
                self._heard = news
                return
            await asyncio.sleep(min(left, _LISTEN_S))
