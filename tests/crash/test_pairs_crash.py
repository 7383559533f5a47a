"""Power fails at every effect on the cloud while several volumes move: resuming moves all of them,
rolling back leaves none moved, and at no moment has a part of them switched sides.

The engine is proven by ``test_engine_crash``; here its journal is a dictionary and its rules are
those of ``Step``, so that every moment of the real steps can be tried in a second.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest

from tests.fakes.cloud import FakeCloud, When
from volferry.methods import Outlook
from volferry.model import (
    MARK,
    Disk,
    DiskRef,
    GuestFacts,
    Outcome,
    Pair,
    Plan,
    Prediction,
    Receipt,
    Seed,
    Volume,
    Wanted,
)
from volferry.steps import SEQUENCE, Context

ID = "tr-web-03-abcd"
NAMES = ("data", "log")
MOMENTS = 28
"""Before and after each of the 14 effects that moving two volumes to another back end has."""


class PowerCut(BaseException):
    pass


class Guest:
    """Shows the disks that are plugged in; on which side its service runs is one word."""

    is_there = True

    def __init__(self, cloud: FakeCloud, server_id: str) -> None:
        self.cloud, self.server_id = cloud, server_id
        self.live, self.rule, self.job = "source", False, "pass"

    async def install(self, sources: Sequence[DiskRef]) -> Receipt:
        return {"state_dir": "/var/lib/volferry/" + ID}

    async def uninstall(self) -> Receipt:
        self.rule = False
        return {"removed": [], "left": []}

    async def quarantine(self, volume_ids: Sequence[str]) -> Receipt:
        self.rule = True
        return {"rule": "10-volferry.rules", "serials": [id[:20] for id in volume_ids]}

    async def release(self) -> None:
        self.rule = False

    async def find(self, ref: DiskRef) -> Disk | None:
        lines = await self.cloud.server_volumes(self.server_id)
        if not any(line.volume_id == ref.volume_id for line in lines):
            return None
        return Disk(path="/dev/vdx", size_bytes=ref.size_bytes, serial=ref.volume_id[:20])

    async def last_job(self) -> str:
        return self.job

    async def not_on(self, scene: Any, side: str, but: Sequence[str] = ()) -> str:
        return "" if self.live == side else f"the {self.live} is mounted"

    async def stop_job(self) -> None:
        pass


class Method:
    """One cutover for all volumes."""

    async def prepare(self, scene: Context) -> Receipt:
        return {"summary": "x"}

    async def sync(self, scene: Context) -> Receipt:
        return {"passes": 2, "files_compared": 1}

    async def catch_up(self, scene: Context) -> Outlook:
        return Outlook(Prediction(total_s=0.1), gains=False)

    async def cutover(self, scene: Context) -> Outcome:
        scene.guest.live, scene.guest.job = "target", "cutover"
        return Outcome(result="committed", live="target", downtime_s=1.0)

    async def leave(self, scene: Context) -> None:
        pass

    def detaches_first(self, guest: GuestFacts) -> bool:
        return False

    async def cutback(self, scene: Context) -> Outcome:
        scene.guest.live, scene.guest.job = "source", "cutback"
        return Outcome(result="reverted", live="source")

    async def outcome(self, scene: Context, job: str, *, forward: bool) -> Outcome | None:
        if job == "cutover":
            return Outcome(result="committed", live="target")
        return Outcome(result="reverted", live="source", job_id="back")


@dataclasses.dataclass
class Transfer:
    """What outlives a power cut: the world and the journal."""

    cloud: FakeCloud
    guest: Guest
    plan: Plan
    known: dict[str, Receipt] = dataclasses.field(default_factory=dict)
    begun: str = ""

    @property
    def ctx(self) -> Context:
        return Context(
            ID,
            self.plan,
            cloud=self.cloud,
            guest=self.guest,
            method=Method(),
            known=dict(self.known),
        )

    async def carry(self) -> None:
        for step in SEQUENCE:
            if step.name in self.known or not step.applies(self.plan):
                continue
            found = await step.find(self.ctx) if self.begun == step.name else None
            self.begun = step.name
            self.known[step.name] = found or await step.do(self.ctx)
            self.begun = ""

    async def take_back(self) -> None:
        for step in reversed(SEQUENCE):
            receipt = self.known.get(step.name)
            if receipt is None and self.begun == step.name:
                receipt = await step.left_behind(self.ctx)
            if receipt is not None:
                await step.undo(self.ctx, receipt)
            self.known.pop(step.name, None)

    async def volumes(self, mine: bool) -> list[Volume]:
        """Our targets, or the sources, in the order in which they were made."""
        every = [await self.cloud.volume(id) for id in list(self.cloud._volumes)]
        return [volume for volume in every if (MARK in volume.metadata) is mine]


async def begin() -> Transfer:
    cloud = FakeCloud()
    server = cloud.add_server("web-03")
    sources = [cloud.add_volume(name, size_gib=2, server=server) for name in NAMES]
    facts = await cloud.facts(server, sources)
    plan = Plan(
        wanted=Wanted(server="web-03", volumes=NAMES, type="cbs-premium"),
        cloud=facts,
        guest=GuestFacts(family="linux"),
        pairs=tuple(
            Pair(
                source=source,
                target_name=source.name,
                target_type="cbs-premium",
                target_size_gib=2,
                seed=Seed.SNAPSHOT,
            )
            for source in facts.sources
        ),
    )
    return Transfer(cloud, Guest(cloud, server), plan)


class Power:
    """Fails at one moment, and sees at each whether volumes ever stand on different sides."""

    def __init__(self, transfer: Transfer, fails_at: int) -> None:
        self.transfer, self.fails_at, self.moments = transfer, fails_at, 0
        transfer.cloud.around_effect = self

    def __call__(self, when: When, effect: str) -> None:
        self.moments += 1
        if self.transfer.guest.live == "source":
            for pair in self.transfer.plan.pairs:
                assert self.transfer.cloud._volume(pair.source.id).status == "in-use", effect
        if self.moments == self.fails_at:
            raise PowerCut(f"{when} {effect}")


async def cut(at: int) -> Transfer:
    transfer = await begin()
    power = Power(transfer, at)
    with pytest.raises(PowerCut):
        await transfer.carry()
    power.fails_at = 0
    return transfer


async def test_these_are_all_moments_that_there_are() -> None:
    transfer = await begin()
    power = Power(transfer, 0)

    await transfer.carry()

    assert power.moments == MOMENTS


@pytest.mark.parametrize("at", range(1, MOMENTS + 1))
async def test_resuming_after_a_power_cut_moves_all_volumes_and_makes_nothing_twice(
    at: int,
) -> None:
    transfer = await cut(at)

    await transfer.carry()

    targets, sources = await transfer.volumes(True), await transfer.volumes(False)
    assert [target.name for target in targets] == list(NAMES)
    assert {(t.status, t.type) for t in targets} == {("in-use", "cbs-premium")}
    assert [source.name for source in sources] == list(NAMES)
    assert {(s.status, s.read_only) for s in sources} == {("available", True)}
    assert transfer.cloud._snapshots == {}
    assert transfer.guest.live == "target" and not transfer.guest.rule


@pytest.mark.parametrize("at", range(1, MOMENTS + 1))
async def test_taking_back_after_a_power_cut_leaves_no_volume_moved_and_nothing_of_ours(
    at: int,
) -> None:
    transfer = await cut(at)

    await transfer.take_back()

    assert await transfer.volumes(True) == []
    sources = await transfer.volumes(False)
    assert [source.name for source in sources] == list(NAMES)
    assert {(s.status, s.read_only) for s in sources} == {("in-use", False)}
    assert transfer.cloud._snapshots == {}
    assert transfer.guest.live == "source" and not transfer.guest.rule
