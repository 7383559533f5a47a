"""What a cloud, and other people in it, do to a transfer in the middle; and that the way on works.

The engine, the journal and the steps are real, on the fake that the contract suite proves. Only the
steps that speak to the cloud are carried: what happens in the guest is told elsewhere.
"""

import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from tests.fakes.cloud import REQUEST_ID, FakeCloud
from volferry.engine import Engine, Patience
from volferry.errors import VolferryError
from volferry.model import (
    MARK,
    Disk,
    DiskRef,
    GuestFacts,
    Pair,
    Plan,
    Receipt,
    Seed,
    State,
    Timeouts,
    Transfer,
    Wanted,
)
from volferry.steps.attach import Attach
from volferry.steps.detach import Detach
from volferry.steps.protect import Protect
from volferry.steps.quarantine import Quarantine
from volferry.steps.retype import Retype
from volferry.steps.snapshot import TakeSnapshot
from volferry.steps.step import Context
from volferry.steps.target import Target
from volferry.store import Store

ID = "tr-web-03-test"
STEPS = (TakeSnapshot(), Target(), Retype(), Quarantine(), Attach(), Detach(), Protect())


class Onlooker:
    """A guest that sees the disks which the cloud really plugs in, and has its mounts right.

    It is the method as well, which here has nothing to let go of.
    """

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


class Story:
    """One transfer, carried and taken back as often as it takes."""

    def __init__(self, folder: Path) -> None:
        self.cloud = FakeCloud()
        self.server = self.cloud.add_server("web-03")
        self.source = self.cloud.add_volume("data", size_gib=2, server=self.server)
        self.guest = Onlooker(self.cloud)
        self.guest.seen.add(self.source)
        self.store = Store(folder)
        self.after: dict[str, Callable[[], object]] = {}
        """What somebody does once a step has ended."""

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
            transfer.id, transfer.plan, cloud=self.cloud, guest=self.guest, method=self.guest
        )

    @property
    def engine(self) -> Engine:
        engine = Engine(
            self.store,
            self.surroundings,
            STEPS,
            patience=Patience(first_s=0.01, most_s=0.01, budget_s=0.02),
        )

        def hear(event: object) -> None:
            if getattr(event, "kind", "") == "receipt":
                self.after.pop(getattr(event, "step", ""), lambda: None)()

        engine.on_event(hear)
        return engine

    async def stops(self) -> VolferryError:
        """Carry it until it stops; the error, which has to have all its parts."""
        with pytest.raises(VolferryError) as stopped:
            await self.engine.carry(ID)
        error = stopped.value
        assert error.what == error.what.strip() and "\n" not in error.what
        assert error.data
        assert f"volferry resume {ID}" in error.hint and f"volferry rollback {ID}" in error.hint
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


async def test_a_source_that_somebody_deleted_is_no_way_back(story: Story) -> None:
    """After the cutover the target is all there is: rolling back stops before it is touched."""
    await story.goes_on()
    assert story.store.transfer(ID).state is State.DONE
    story.store.set_state(ID, State.HELD)
    story.cloud.forget(story.source)
    with pytest.raises(VolferryError):
        await story.engine.take_back(ID, accept_loss=True)
    assert (await story.target()).status == "in-use"
