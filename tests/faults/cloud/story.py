"""One transfer, for what a cloud and other people in it do to it in the middle.

The engine, the journal and the steps are real, on the fake that the contract suite proves. Only the
steps that speak to the cloud are carried: what happens in the guest is told elsewhere.
"""

import contextlib
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.cloud import FakeCloud
from volferry.engine import Engine, Patience
from volferry.errors import Retry, Stop, VolferryError
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
    committed = Outcome(result="committed", live="target", downtime_s=1.0, job_id="over")
    back: Outcome | None = Outcome(
        result="committed", live="target", reason="the source did not come", job_id="back"
    )
    """How it goes back."""
    job = "pass"
    unheard: Collection[str] = ()
    """Switches that go on in the guest when nobody hears it any more."""
    away = ""
    """Which side is not mounted where it should be."""

    def __init__(self, cloud: FakeCloud) -> None:
        self.seen: set[str] = set()
        self.hidden: list[str] = []
        self.breaks: dict[str, bool] = {}
        """Sides that no answer comes about, once."""
        cloud.on_attached.append(lambda server, volume: self.seen.add(volume))
        cloud.on_detached.append(lambda server, volume: self.seen.discard(volume))

    async def find(self, ref: DiskRef) -> Disk | None:
        if ref.volume_id not in self.seen:
            return None
        return Disk(path="/dev/vdc", size_bytes=ref.size_bytes, serial=ref.volume_id[:20])

    async def disks(self) -> list[Disk]:
        return [Disk(path="/dev/vdb", size_bytes=2**31, serial="of the source")]

    async def not_on(self, scene: object, side: str, but: Sequence[str] = ()) -> str:
        if self.breaks.pop(side, False):
            raise Retry("no answer", data="it is asked again")
        wrong = side == self.away and not but  # there is one volume
        return f"nothing is mounted on /srv/{side}" if wrong else ""

    async def quarantine(self, volume_ids: list[str]) -> Receipt:
        self.hidden += volume_ids
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
        self._begin("cutover")
        return self.committed

    async def cutback(self, scene: object) -> Outcome:
        again = self.job == "cutback" and self.back is not None and self.back.live == "source"
        self._begin("cutback")
        if again:  # what the first one could not bring back the agent does not say again
            self.back = Outcome(
                result="reverted",
                live="source",
                reason="the source is the live side already",
                job_id="again",
            )
        assert self.back is not None
        return self.back

    def _begin(self, job: str) -> None:
        self.job = job
        if job in self.unheard:
            raise Stop("the guest is not heard any more", data="it does it by itself")

    async def outcome(self, scene: object, job: str, *, forward: bool) -> Outcome | None:
        assert job == self.job
        return self.committed if job == "cutover" else self.back


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

    async def stops(self, *, forward: bool = True) -> VolferryError:
        """Carry it until it stops; the error, which has to have all its parts. ``forward``: whether
        it advises to go on."""
        with pytest.raises(VolferryError) as stopped:
            await self.engine.carry(ID)
        error = stopped.value
        assert error.what == error.what.strip() and "\n" not in error.what
        assert error.data
        assert f"volferry rollback {ID}" in error.hint
        assert (f"volferry resume {ID}" in error.hint) == forward or not self.guest.is_there
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

    async def goes_back(self, *, accept_loss: bool = False) -> None:
        """Nothing that carries our mark is left, and the source is as it was."""
        transfer = await self.engine.take_back(ID, accept_loss=accept_loss)
        assert transfer.state is State.ROLLED_BACK
        assert await self.cloud.find_volume(ID) is None
        assert await self.cloud.find_snapshot(ID) is None
        source = await self.cloud.volume(self.source)
        assert source.status == ("in-use" if self.guest.is_there else "available")
        assert MARK not in source.metadata


def server_is_deleted(one: Story) -> None:
    one.cloud.delete_server(one.server)
    facts = one.store.transfer(ID).plan.cloud
    one.guest, one.method = DeletedGuest(facts.server, ID), Mirror()
