"""What a user can do, each as one coroutine: the command line and the public API are thin on this.

Everything that a transfer needs is opened here (the cloud, the way into the guest, the engine) and
closed again; nothing below knows how it was opened.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias

from volferry import leftovers as leftovers_of
from volferry import planner
from volferry.channels import Channel, quote
from volferry.channels import ssh as openssh
from volferry.channels.local import Local
from volferry.cloud import Cloud
from volferry.engine import Engine
from volferry.errors import Doubt, NotFound, Refused, Retry, Stop, Usage, VolferryError
from volferry.guests import fstab
from volferry.guests.deleted import DeletedGuest
from volferry.guests.linux import LinuxGuest
from volferry.leftovers import History, Leftover, Verdict
from volferry.methods import method
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
    Wanted,
)
from volferry.steps import SEQUENCE
from volferry.steps.step import Context
from volferry.store import Store, new_id

PLAN_KEEPS_S = 120.0
"""A plan younger than this is carried out without being made again."""

NO_CHANGE: Mapping[str, float] = {}

HANDOVER_S = 60.0
"""How long a running transfer may take to its next safe point when it is to be taken back."""


class Listener(Protocol):
    """Who hears what happens while a transfer is carried."""

    def on_event(self, event: Event) -> None: ...
    def on_progress(self, progress: Progress) -> None: ...
    def on_engine(self, engine: Engine) -> None:
        """Called once before it starts: ``engine.request_stop()`` is for Ctrl-C."""


@dataclass(frozen=True)
class Status:
    """Where a transfer stands. ``process`` carries it now, on this machine; None: nobody does."""

    transfer: Transfer
    process: int | None
    receipts: dict[str, Receipt]
    passes: tuple[Pass, ...]
    progress: Progress | None


def _quiet(text: str) -> None:
    del text


# ---- planning ------------------------------------------------------------------------------------


async def plan(wanted: Wanted, *, notice: Callable[[str], None] = _quiet) -> Plan:
    """Look everything up and check it; changes nothing.

    Raises ``Usage`` for a name that does not exist or is not unique, ``Stop`` or ``Retry`` when the
    cloud cannot be reached. A guest that cannot be reached is a refusal in the plan, beside what
    the cloud said.
    """
    notice("asking the cloud")
    async with connected(wanted) as cloud:
        facts = await cloud.facts(wanted.server, wanted.volumes)
    notice("asking the guest")
    guest, trouble = await _guest_facts(wanted, facts)
    return planner.plan(wanted, facts, guest, trouble).model_copy(update={"made_at": time.time()})


async def _guest_facts(
    wanted: Wanted, facts: CloudFacts
) -> tuple[GuestFacts | None, VolferryError | None]:
    sources = [source.ref for source in facts.sources]
    try:
        async with await channel(wanted, facts.server) as way_in:
            guest = LinuxGuest(way_in, timeouts=wanted.timeouts)
            found = await guest.facts(sources, units=wanted.units)
            # A plan is kept, saved and sent around.
            table = fstab.without_secrets(found.fstab)
            return found.model_copy(update={"fstab": table}), None
    except (Stop, Retry) as error:
        return None, error


@asynccontextmanager
async def connected(wanted: Wanted) -> AsyncIterator[Cloud]:
    """The cloud that the user named, authenticated."""
    answer_s = wanted.timeouts.answer_s
    cloud = await Cloud.connect(wanted.os_cloud, wanted.os_region, answer_s=answer_s)
    try:
        yield cloud
    finally:
        await cloud.close()


async def channel(wanted: Wanted, server: Server) -> Channel:
    """The way into the server that the user named, or the one that is found. Not opened yet."""
    access = wanted.access
    if access.local:
        return Local()
    return await openssh.find(
        server.name,
        server.addresses,
        wanted=access.ssh,
        config=access.ssh_config,
        connect_s=wanted.timeouts.connect_s,
    )


def recheck(old: Plan, new: Plan) -> None:
    """Raise ``Refused`` when the world is no longer what a reviewed plan says of it."""

    def figures(one: Plan) -> dict[str, object]:
        return {
            "server": one.cloud.server.id,
            "source volumes": [p.source.id for p in one.pairs],
            "source sizes in GiB": [p.source.size_gib for p in one.pairs],
            "source types": [p.source.type for p in one.pairs],
            "target types": [p.target_type for p in one.pairs],
            "target sizes in GiB": [p.target_size_gib for p in one.pairs],
            "method": one.method,
            "seeds": [p.seed.value for p in one.pairs],
            "filesystems": [
                (fs.volume_id, fs.partition, fs.fstype, fs.uuid) for fs in one.guest.filesystems
            ],
            "mounts": [m.target for fs in one.guest.filesystems for m in fs.mounts],
            "units": [unit.name for unit in one.units],
        }

    before, now = figures(old), figures(new)
    changed = [f"{name}: planned {before[name]}, now {now[name]}" for name in before if
               before[name] != now[name]]  # fmt: skip
    if changed:
        raise Refused(
            "the plan no longer fits: " + "; ".join(changed),
            data="nothing was changed",
            hint="make and review a new plan: volferry plan … --save FILE",
        )
    refuse(new)


def refuse(one: Plan) -> None:
    """Raise ``Refused`` when a plan has refusals, with every one of them."""
    if one.refusals:
        raise Refused(
            f"{one.cloud.label} cannot be moved: "
            + "; ".join(f"{check.name}: {check.found}" for check in one.refusals),
            data="nothing was changed",
            hint="\n".join(check.hint for check in one.refusals if check.hint)
            or quote(["volferry", "plan", "--", one.wanted.server, *one.wanted.volumes]),
        )


# ---- carrying ------------------------------------------------------------------------------------


@asynccontextmanager
async def _surroundings(transfer: Transfer) -> AsyncIterator[Context]:
    """Cloud, guest and method of a transfer, opened for one carrying of it."""
    wanted, facts = transfer.plan.wanted, transfer.plan.cloud
    async with AsyncExitStack() as opened:
        cloud = await opened.enter_async_context(connected(wanted))
        if (facts.project_id, facts.region) != cloud.home:
            raise _elsewhere(
                (facts.project_id, facts.region),
                cloud.home,
                "the transfer was",
                f"let '{wanted.os_cloud}' in clouds.yaml name its project and region (--os-cloud)"
                if wanted.os_cloud
                else "let OS_CLOUD, the OS_* variables and clouds.yaml name them",
            )
        server = await cloud.server_if_any(facts.server.id)
        guest: LinuxGuest | DeletedGuest = DeletedGuest(facts.server, transfer.id)
        if server is not None:
            way_in = await opened.enter_async_context(await channel(wanted, server))
            guest = LinuxGuest(way_in, transfer.id, wanted.timeouts)
            await guest.probe()
        ctx = Context(
            transfer.id,
            transfer.plan,
            cloud=cloud,
            guest=guest,
            method=method(transfer.plan.method),
        )
        try:
            yield ctx
        finally:
            await ctx.tell("calls", api_calls=ctx.new_calls())


def _engine(store: Store, listen: Listener) -> Engine:
    def hear(event: Event) -> None:
        if event.kind == "progress":
            listen.on_progress(Progress.model_validate(event.facts))
        else:
            listen.on_event(event)

    engine = Engine(store, _surroundings, SEQUENCE)
    engine.on_event(hear)
    listen.on_engine(engine)
    return engine


async def run(one: Plan, store: Store, *, listen: Listener) -> Transfer:
    """Carry out a plan, after checking it again when it is not fresh.

    Raises ``Refused`` when it has refusals or no longer fits the world.
    """
    if time.time() - one.made_at > PLAN_KEEPS_S:
        recheck(one, await plan(one.wanted))
    refuse(one)
    transfer = Transfer(
        id=new_id(one.cloud.server.name),
        state=State.RUNNING,
        plan=one,
        created_at=time.time(),
    )
    store.create(transfer)
    return await _engine(store, listen).carry(transfer.id)


async def resume(
    id: str, store: Store, *, listen: Listener, deadlines: Mapping[str, float] = NO_CHANGE
) -> Transfer:
    """Go on with a transfer that was stopped, killed or cut off.

    ``deadlines``: fields of ``model.Timeouts`` that hold from now on.
    """
    transfer = store.transfer(id)
    _not_ended(transfer)
    _not_running(store, transfer.id)
    _wait_longer(store, transfer, deadlines)
    return await _engine(store, listen).carry(transfer.id)


async def cutover(id: str, store: Store, *, now: bool, listen: Listener) -> Transfer | None:
    """Open the gate of a transfer; ``now``: whatever is predicted.

    None when another process carries it and has been asked; else it is carried here.
    """
    return await _ask(id, store, "cutover", {"now": now}, listen)


async def finish(id: str, store: Store, *, listen: Listener) -> Transfer | None:
    """Detach the source of a transfer that was held after its cutover, and end it."""
    return await _ask(id, store, "finish", {}, listen)


async def _ask(
    id: str, store: Store, what: str, facts: dict[str, Any], listen: Listener
) -> Transfer | None:
    transfer = store.transfer(id)
    _not_ended(transfer)
    store.request(transfer.id, what, facts)
    if store.running(transfer.id) is not None:
        return None
    return await _engine(store, listen).carry(transfer.id)


async def set_pace(id: str, store: Store, wanted: dict[str, Any]) -> dict[str, Any]:
    """Change how fast the mirror of a transfer copies; what holds now.

    ``wanted``: ``bwlimit_bytes_s`` (None: no limit) and ``pace``, what is not in it stays. Raises
    ``Usage`` for a method whose passes cannot be told while they run, ``Stop`` when no mirror runs.
    """
    transfer = store.transfer(id)
    _not_ended(transfer)
    plan = transfer.plan
    if not method(plan.method).tracks(plan):
        raise Usage(
            f"'{transfer.id}' copies by {plan.method}, which takes its limit when a pass begins",
            data="nothing was changed",
            hint="--bwlimit of 'volferry run' is for it",
        )
    async with await channel(plan.wanted, plan.cloud.server) as way_in:
        guest = LinuxGuest(way_in, transfer.id, plan.wanted.timeouts)
        return await guest.tell_mirror({"do": "set", **wanted})


def _wait_longer(store: Store, transfer: Transfer, deadlines: Mapping[str, float]) -> None:
    if deadlines:
        plan = transfer.plan
        timeouts = plan.wanted.timeouts.model_copy(update=dict(deadlines))
        wanted = plan.wanted.model_copy(update={"timeouts": timeouts})
        store.set_plan(transfer.id, plan.model_copy(update={"wanted": wanted}))


async def rollback(
    id: str,
    store: Store,
    *,
    accept_loss: bool,
    listen: Listener,
    handover_s: float = HANDOVER_S,
    deadlines: Mapping[str, float] = NO_CHANGE,
) -> Transfer | None:
    """Remove exactly what was made; after the cutover, go back to the source.

    Raises ``NeedsConsent`` when writes made since the cutover would be lost.
    """
    transfer = store.transfer(id)
    _not_ended(transfer)
    if store.running(transfer.id) is not None:
        store.request(transfer.id, "stop", {})
        ends = time.monotonic() + handover_s
        while store.running(transfer.id) is not None:
            if time.monotonic() >= ends:
                raise Stop(
                    f"process {store.running(transfer.id)} still carries '{transfer.id}' after "
                    f"{handover_s:g} s (--handover-timeout)",
                    data="it was asked to stop at its next safe point; nothing else was changed",
                    hint=f"wait for it, then repeat: volferry rollback {transfer.id}",
                )
            await asyncio.sleep(0.2)
    _wait_longer(store, transfer, deadlines)
    return await _engine(store, listen).take_back(transfer.id, accept_loss=accept_loss)


def _not_ended(transfer: Transfer) -> None:
    if transfer.state in (State.DONE, State.ROLLED_BACK):
        raise Usage(
            f"transfer '{transfer.id}' has ended: {transfer.state.value}",
            data="nothing was changed",
            hint=f"volferry report {transfer.id}",
        )


def _not_running(store: Store, id: str) -> None:
    pid = store.running(id)
    if pid is not None:
        raise Usage(
            f"process {pid} carries '{id}' already",
            data="nothing was changed",
            hint=f"volferry watch {id}",
        )


# ---- cleaning up ---------------------------------------------------------------------------------

Home: TypeAlias = tuple[str, str]
"""Project and region: what a cloud is, whatever clouds.yaml or the environment call it."""


@dataclass(frozen=True)
class Litter:
    """What was found, beside the cloud that shows it; and where nobody could look, and why."""

    shown: tuple[tuple[Wanted, tuple[Leftover, ...]], ...]
    unseen: tuple[tuple[str, VolferryError], ...]

    @property
    def found(self) -> tuple[Leftover, ...]:
        return tuple(one for _, found in self.shown for one in found)

    @property
    def garbage(self) -> tuple[Leftover, ...]:
        return tuple(one for one in self.found if one.verdict is Verdict.GARBAGE)


async def leftovers(
    store: Store, wanted: Wanted, *, notice: Callable[[str], None] = _quiet
) -> Litter:
    """Look for what transfers left in the clouds and the guests that the journal names; or in the
    cloud of ``wanted`` and its guests alone, when it names one. Changes nothing.

    Raises what connecting raises for a cloud that was asked for; one of the journal is unseen then.
    """
    histories = _histories(store)
    shown: list[tuple[Wanted, tuple[Leftover, ...]]] = []
    unseen: list[tuple[str, VolferryError]] = []
    for home, place in _clouds(histories, wanted):
        name = place.os_cloud or "the cloud of OS_*"
        notice(f"asking {name}")
        try:
            async with connected(place) as cloud:
                if home not in (None, cloud.home):
                    raise _elsewhere(
                        home,
                        cloud.home,
                        "the journal's transfers were",
                        "volferry gc --os-cloud NAME --os-region-name REGION   looks where you say",
                    )
                volumes, snapshots = await cloud.volumes(), await cloud.snapshots()
                found = list(leftovers_of.in_cloud(name, volumes, snapshots, histories))
                for wishes, server in _guests(histories, cloud.home):
                    notice(f"asking {server.name}")
                    try:
                        found += await _in_guest(cloud, wishes, server, histories)
                    except VolferryError as error:
                        unseen.append((server.name, error))
                shown.append((place, tuple(found)))
        except VolferryError as error:
            if home is None:
                raise
            unseen.append((name, error))
    return Litter(tuple(shown), tuple(unseen))


def _elsewhere(home: Home, now: Home, what: str, hint: str) -> Doubt:
    (project, region), (project_now, region_now) = home, now
    return Doubt(
        f"it is project {project_now} in region {region_now} now; {what} in project {project}, "
        f"region {region}",
        data="nothing was looked for, and nothing changed",
        hint=hint,
    )


async def _in_guest(
    cloud: Cloud, wanted: Wanted, server: Server, histories: dict[str, History]
) -> list[Leftover]:
    try:
        now = await cloud.server(server.id)
    except NotFound:
        return []  # deleted, with all that was in it
    attached = await cloud.server_volumes(server.id)
    async with await channel(wanted, now) as way_in:
        files = await LinuxGuest(way_in, timeouts=wanted.timeouts).leftovers()
    return leftovers_of.in_guest(server.id, now.name, files, attached, histories)


async def remove(
    store: Store, litter: Litter, *, tell: Callable[[Leftover], None]
) -> list[VolferryError]:
    """Remove what ``leftovers`` called garbage; each removal looks at the mark once more.

    Answers with an error for each that could not be removed. Each removal becomes an event of its
    transfer.
    """
    histories = _histories(store)
    failed: list[VolferryError] = []
    for place, found in litter.shown:
        garbage = [one for one in found if one.verdict is Verdict.GARBAGE]
        if not garbage:
            continue
        async with AsyncExitStack() as opened:
            try:
                cloud = await opened.enter_async_context(connected(place))
            except VolferryError as error:
                failed += [error for _ in garbage]
                continue
            for one in garbage:
                try:
                    await _remove(cloud, histories[one.transfer].transfer, one)
                except VolferryError as error:
                    failed.append(error)
                    continue
                facts = {"text": f"removed {one.kind} {one.id}", "where": one.where}
                at, id = time.time(), one.transfer
                store.event(Event(at=at, transfer=id, kind="removed", facts=facts))
                tell(one)
    return failed


async def _remove(cloud: Cloud, transfer: Transfer, one: Leftover) -> None:
    wanted = transfer.plan.wanted
    if one.kind in ("volume", "snapshot"):
        kind: Literal["volume", "snapshot"] = "volume" if one.kind == "volume" else "snapshot"
        delete = cloud.delete_volume if kind == "volume" else cloud.delete_snapshot
        await delete(one.id, transfer.id)
        await cloud.wait_deleted(kind, one.id, deadline_s=wanted.timeouts.delete_s)
        return
    server = await cloud.server(transfer.plan.cloud.server.id)
    async with await channel(wanted, server) as way_in:
        guest = LinuxGuest(way_in, transfer.id, wanted.timeouts)
        left = (await guest.uninstall())["left"]  # all of one transfer; the next file is gone then
    if any(text.startswith(f"{one.id}: ") for text in left):
        raise Stop(
            f"{one.id} in {server.name} stays: {'; '.join(left)}",
            data="it does no harm",
            hint="mend it in the guest, then volferry gc again",
        )


def _histories(store: Store) -> dict[str, History]:
    return {
        one.id: History.of(one, store.journal(one.id), store.receipts(one.id))
        for one in store.transfers()
    }


def _home(history: History) -> Home:
    facts = history.transfer.plan.cloud
    return facts.project_id, facts.region


def _clouds(histories: dict[str, History], wanted: Wanted) -> list[tuple[Home | None, Wanted]]:
    """The one that was asked for; else each of the journal once, as its newest transfer called it,
    with what it has to be; and without any, the one of the environment."""
    newest: dict[Home | None, Wanted] = {}
    if not wanted.os_cloud:
        newest = {_home(one): one.transfer.plan.wanted for one in histories.values()}
    return [
        (home, wanted.model_copy(update={"os_cloud": one.os_cloud, "os_region": one.os_region}))
        for home, one in (newest or {None: wanted}).items()
    ]


def _guests(histories: dict[str, History], home: Home) -> list[tuple[Wanted, Server]]:
    """Each server of a cloud once, reached as its newest transfer reached it."""
    plans = [one.transfer.plan for one in histories.values() if _home(one) == home]
    newest = {plan.cloud.server.id: (plan.wanted, plan.cloud.server) for plan in plans}
    return list(newest.values())


# ---- looking -------------------------------------------------------------------------------------


def status(id: str, store: Store) -> Status:
    """Where a transfer stands, from what is on disk; asks neither the cloud nor the guest."""
    transfer = store.transfer(id)
    return Status(
        transfer=transfer,
        process=store.running(transfer.id),
        receipts=store.receipts(transfer.id),
        passes=tuple(store.passes(transfer.id)),
        progress=store.progress(transfer.id),
    )
