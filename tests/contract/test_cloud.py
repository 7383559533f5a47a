"""What every cloud must do, asked of the fake and of a real OpenStack in the same words.

The real one is asked as an ordinary member of its project. Each test makes its own volumes, marked
with a transfer id of its own, and removes them.
"""

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import pytest_asyncio

from tests.fakes.cloud import FakeCloud
from volferry.cloud import Cloud, CloudVerbs, TypeNotReachable
from volferry.errors import Doubt, NotFound, Stop, Usage, VolferryError
from volferry.model import MARK, SOURCE, Progress, Volume

STANDARD, IOPS, PREMIUM = "cbs-standard", "cbs-standard-iops", "cbs-premium"
ABSENT = "00000000-0000-4000-8000-000000000000"
DEADLINE_S = 60.0


class World:
    """A cloud under test with one running server, and a way to order faults."""

    def __init__(self, cloud: CloudVerbs, server_id: str, server_name: str) -> None:
        self.cloud = cloud
        self.server_id, self.server_name = server_id, server_name
        self.mark = f"tr-{uuid.uuid4().hex[:8]}"

    def order(self, operation: str, *, slow_s: float = 0, fail: int = 0, ignore: int = 0) -> None:
        raise NotImplementedError

    async def new_volume(self, name: str = "", *, attached: bool = False) -> Volume:
        name = name or f"contract-{uuid.uuid4().hex[:8]}"
        made = await self.cloud.create_volume(
            name, size_gib=1, type=STANDARD, mark=self.mark, source_id=f"source of {name}"
        )
        volume = await self.cloud.wait_volume(made.id, deadline_s=DEADLINE_S)
        if attached:
            await self.cloud.attach(self.server_id, volume.id)
            await self.cloud.wait_attached(self.server_id, volume.id, deadline_s=DEADLINE_S)
            volume = await self.cloud.volume(volume.id)
        return volume

    async def new_snapshot(self, volume: Volume) -> str:
        made = await self.cloud.create_snapshot(volume.id, "contract-snap", self.mark)
        await self.cloud.wait_snapshot(made.id, deadline_s=DEADLINE_S)
        return made.id

    async def clean(self) -> None:
        raise NotImplementedError


class FakeWorld(World):
    cloud: FakeCloud

    def __init__(self) -> None:
        fake = FakeCloud()
        super().__init__(fake, fake.add_server("web-03"), "web-03")

    def order(self, operation: str, *, slow_s: float = 0, fail: int = 0, ignore: int = 0) -> None:
        self.cloud.slow(operation, slow_s)
        self.cloud.fail(operation, fail)
        self.cloud.ignore(operation, ignore)

    async def clean(self) -> None:
        pass


class LabWorld(World):
    cloud: Cloud

    def __init__(self, cloud: Cloud, lab: Any, server_id: str, server_name: str) -> None:
        super().__init__(cloud, server_id, server_name)
        self.lab = lab

    def order(self, operation: str, *, slow_s: float = 0, fail: int = 0, ignore: int = 0) -> None:
        names = [operation]
        if operation == "create_volume":
            names.append("create_volume_from_snapshot")
        for name in names:
            self.lab.knobs.set(name, delay=slow_s, fail=fail, ignore=ignore)

    async def clean(self) -> None:
        self.lab.knobs.reset()
        await asyncio.gather(*map(self._clean_snapshot, await self._ours("snapshots")))
        await asyncio.gather(*map(self._clean_volume, await self._ours("volumes")))

    async def _ours(self, kind: str) -> list[dict[str, Any]]:
        every = await self.cloud._ask.list("block-storage", f"/{kind}/detail")
        return [one for one in every if one["metadata"].get(MARK) == self.mark]

    async def _clean_snapshot(self, one: dict[str, Any]) -> None:
        self._mend("snapshots", one)
        await self.cloud.delete_snapshot(one["id"], self.mark)
        await self.cloud.wait_deleted("snapshot", one["id"], deadline_s=DEADLINE_S)

    async def _clean_volume(self, one: dict[str, Any]) -> None:
        if one["status"] in ("reserved", "attaching", "in-use", "detaching"):
            if one["status"] in ("reserved", "attaching"):
                await self.cloud.wait_attached(self.server_id, one["id"], deadline_s=DEADLINE_S)
            await self.cloud.detach(self.server_id, one["id"])
            await self.cloud.wait_detached(self.server_id, one["id"], deadline_s=DEADLINE_S)
        self._mend("volumes", one)
        await self.cloud.delete_volume(one["id"], self.mark)
        await self.cloud.wait_deleted("volume", one["id"], deadline_s=DEADLINE_S)

    def _mend(self, kind: str, one: dict[str, Any]) -> None:
        if one["status"] == "error_deleting":
            # A member may delete what is in `error`, but not this.
            reset = {"os-reset_status": {"status": "error"}}
            self.lab.admin.post("block-storage", f"/{kind}/{one['id']}/action", reset)


@pytest.fixture(scope="module")
def login() -> Iterator[list[Cloud]]:
    """Holds one login for all tests once there is one; a ``Cloud`` belongs to no event loop."""
    made: list[Cloud] = []
    yield made
    for cloud in made:
        cloud._wire.close()


@pytest_asyncio.fixture(params=["fake", pytest.param("lab", marks=pytest.mark.lab)])
async def world(request: pytest.FixtureRequest, login: list[Cloud]) -> AsyncIterator[World]:
    if request.param == "fake":
        yield FakeWorld()
        return
    lab, name = request.getfixturevalue("lab"), request.getfixturevalue("server")
    if not login:
        login.append(await Cloud.connect("volferry-lab", config_file=str(lab.clouds_yaml)))
    made = LabWorld(login[0], lab, lab.find_server(name)["id"], name)
    yield made
    await made.clean()


# ---- names and facts -----------------------------------------------------------------------------


async def test_facts_tell_all_about_a_volume_in_a_server_given_by_name(world: World) -> None:
    volume = await world.new_volume(attached=True)
    facts = await world.cloud.facts(world.server_name, [volume.name])
    assert facts.server.id == world.server_id
    assert facts.server.status == "ACTIVE"
    assert facts.server.boots_from_volume is False
    [source] = facts.sources
    assert source.id == volume.id
    assert source.attachments[0].server_id == world.server_id
    assert volume.id in [line.volume_id for line in facts.server_volumes]
    assert {STANDARD, IOPS, PREMIUM} <= {one.name for one in facts.types}
    assert facts.quota is not None
    assert facts.quota.used["volumes"] >= 1
    assert facts.quota.used[f"gigabytes_{STANDARD}"] >= 1
    assert "gigabytes" in facts.quota.limits
    assert facts.project_id
    assert facts.block_storage_version.startswith("3.")
    assert facts.compute_version.startswith("2.")
    by_id = await world.cloud.facts(world.server_id, [volume.id])
    assert by_id.sources == facts.sources


async def test_facts_tell_of_several_volumes_in_the_order_in_which_they_were_named(
    world: World,
) -> None:
    one, other = await world.new_volume(), await world.new_volume(attached=True)
    facts = await world.cloud.facts(world.server_name, [other.name, one.id])
    assert [source.id for source in facts.sources] == [other.id, one.id]


async def test_one_volume_that_is_named_twice_is_refused(world: World) -> None:
    volume = await world.new_volume()
    with pytest.raises(Usage) as wrong:
        await world.cloud.facts(world.server_name, [volume.name, volume.id])
    assert f"'{volume.name}' and '{volume.id}' are one volume" in wrong.value.what


async def test_an_unknown_name_is_answered_with_similar_ones(world: World) -> None:
    volume = await world.new_volume("contract-similar")
    with pytest.raises(Usage) as wrong:
        await world.cloud.facts(world.server_name, ["contract-simmilar"])
    assert "contract-simmilar" in wrong.value.what
    assert volume.name in wrong.value.hint


async def test_a_name_that_two_volumes_have_is_refused_with_both_ids(world: World) -> None:
    one = await world.new_volume("contract-twin")
    mark, world.mark = world.mark, "tr-other"
    other = await world.cloud.create_volume(
        "contract-twin", size_gib=1, type=STANDARD, mark=world.mark, source_id="s"
    )
    await world.cloud.wait_volume(other.id, deadline_s=DEADLINE_S)
    try:
        with pytest.raises(Usage) as wrong:
            await world.cloud.facts(world.server_name, ["contract-twin"])
        assert one.id in wrong.value.data
        assert other.id in wrong.value.data
        assert "created" in wrong.value.data
        assert (await world.cloud.facts(world.server_name, [one.id])).sources[0].id == one.id
    finally:
        await world.cloud.delete_volume(other.id, "tr-other")
        await world.cloud.wait_deleted("volume", other.id, deadline_s=DEADLINE_S)
        world.mark = mark


async def test_what_does_not_exist_is_not_found(world: World) -> None:
    for look in (world.cloud.volume, world.cloud.snapshot, world.cloud.server):
        with pytest.raises(NotFound):
            await look(ABSENT)
    with pytest.raises(NotFound):
        await world.cloud.server_volumes(ABSENT)
    assert await world.cloud.find_volume("tr-nobody") is None
    assert await world.cloud.find_snapshot("tr-nobody") is None


# ---- snapshot, volume, type ----------------------------------------------------------------------


async def test_a_snapshot_of_a_volume_in_use_is_made_once(world: World) -> None:
    volume = await world.new_volume(attached=True)
    first = await world.cloud.create_snapshot(volume.id, "contract-snap", world.mark)
    second = await world.cloud.create_snapshot(volume.id, "contract-snap", world.mark)
    assert first.id == second.id
    ready = await world.cloud.wait_snapshot(first.id, deadline_s=DEADLINE_S)
    assert (ready.status, ready.volume_id, ready.size_gib) == ("available", volume.id, 1)
    found = await world.cloud.find_snapshot(world.mark)
    assert found is not None
    assert found.id == first.id


async def test_each_of_several_volumes_has_its_own_snapshot(world: World) -> None:
    volumes = [await world.new_volume(), await world.new_volume()]
    made = [await world.new_snapshot(volume) for volume in volumes]
    assert len(set(made)) == 2
    for volume, snapshot_id in zip(volumes, made, strict=True):
        found = await world.cloud.find_snapshot(world.mark, volume.id)
        assert found is not None
        assert (found.id, found.volume_id) == (snapshot_id, volume.id)
        assert found.metadata == {MARK: world.mark, SOURCE: volume.id}
    with pytest.raises(Doubt):
        await world.cloud.find_snapshot(world.mark)


async def test_a_volume_is_made_once_and_carries_the_mark(world: World) -> None:
    async def make() -> Volume:
        return await world.cloud.create_volume(
            "contract-once",
            size_gib=2,
            type=PREMIUM,
            mark=world.mark,
            source_id="the source",
            description="words",
            metadata={"owner": "me"},
        )

    first, second = await make(), await make()
    assert first.id == second.id
    ready = await world.cloud.wait_volume(first.id, deadline_s=DEADLINE_S)
    assert (ready.name, ready.size_gib, ready.type) == ("contract-once", 2, PREMIUM)
    assert ready.description == "words"
    assert ready.metadata == {"owner": "me", MARK: world.mark, SOURCE: "the source"}
    found = await world.cloud.find_volume(world.mark)
    assert found is not None
    assert found.id == first.id
    assert await world.cloud.find_volume(world.mark, "another source") is None


async def test_everything_of_the_project_can_be_listed(world: World) -> None:
    volume = await world.new_volume()
    snapshot_id = await world.new_snapshot(volume)
    assert volume.id in [one.id for one in await world.cloud.volumes()]
    marks = {one.id: one.metadata.get(MARK) for one in await world.cloud.snapshots()}
    assert marks[snapshot_id] == world.mark


async def test_two_volumes_with_our_mark_are_a_doubt(world: World) -> None:
    one = await world.new_volume("contract-a")
    other = await world.new_volume("contract-b")
    with pytest.raises(Doubt) as doubt:
        await world.cloud.find_volume(world.mark)
    assert one.id in doubt.value.data
    assert other.id in doubt.value.data
    for volume in (one, other):
        found = await world.cloud.find_volume(world.mark, volume.metadata[SOURCE])
        assert found is not None
        assert found.id == volume.id


async def test_a_type_on_the_snapshots_back_end_is_reached_at_once(world: World) -> None:
    source = await world.new_volume()
    snapshot_id = await world.new_snapshot(source)
    made = await world.cloud.create_volume(
        "contract-target",
        size_gib=1,
        type=IOPS,
        mark=world.mark,
        source_id=source.id,
        snapshot_id=snapshot_id,
    )
    target = await world.cloud.wait_volume(made.id, deadline_s=DEADLINE_S)
    assert (target.type, target.snapshot_id) == (IOPS, snapshot_id)


async def test_a_type_that_does_not_exist_is_not_found(world: World) -> None:
    with pytest.raises(NotFound) as wrong:
        await world.cloud.create_volume(
            "contract-x", size_gib=1, type="gold", mark=world.mark, source_id="s"
        )
    assert "gold" in wrong.value.what
    volume = await world.new_volume()
    with pytest.raises(NotFound):
        await world.cloud.retype(volume.id, "gold")


async def test_a_volume_from_a_snapshot_then_another_type(world: World) -> None:
    source = await world.new_volume()
    snapshot_id = await world.new_snapshot(source)
    with pytest.raises(TypeNotReachable):
        await world.cloud.create_volume(
            "contract-target",
            size_gib=1,
            type=PREMIUM,
            mark=world.mark,
            source_id=source.id,
            snapshot_id=snapshot_id,
        )
    made = await world.cloud.create_volume(
        "contract-target",
        size_gib=2,
        type=STANDARD,
        mark=world.mark,
        source_id=source.id,
        snapshot_id=snapshot_id,
    )
    target = await world.cloud.wait_volume(made.id, deadline_s=DEADLINE_S)
    assert (target.size_gib, target.snapshot_id) == (2, snapshot_id)
    await world.cloud.retype(target.id, PREMIUM)
    await world.cloud.retype(target.id, PREMIUM)
    moved = await world.cloud.wait_retyped(target.id, PREMIUM, deadline_s=DEADLINE_S)
    assert (moved.type, moved.status) == (PREMIUM, "available")
    assert moved.metadata[MARK] == world.mark
    await world.cloud.retype(target.id, PREMIUM)
    again = await world.cloud.wait_retyped(target.id, PREMIUM, deadline_s=DEADLINE_S)
    assert again.type == PREMIUM


@pytest.mark.parametrize("how", ["fail", "ignore"])
async def test_a_retype_that_is_silently_not_done_stops(world: World, how: str) -> None:
    volume = await world.new_volume()
    world.order("retype", **{how: 1})
    await world.cloud.retype(volume.id, PREMIUM)
    with pytest.raises(Stop) as stop:
        await world.cloud.wait_retyped(volume.id, PREMIUM, deadline_s=DEADLINE_S)
    assert PREMIUM in stop.value.what
    assert STANDARD in stop.value.what


async def test_a_snapshot_that_ends_in_error_stops_with_the_reason(world: World) -> None:
    volume = await world.new_volume()
    world.order("create_snapshot", fail=1)
    made = await world.cloud.create_snapshot(volume.id, "contract-snap", world.mark)
    with pytest.raises(Stop) as stop:
        await world.cloud.wait_snapshot(made.id, deadline_s=DEADLINE_S)
    assert "'error'" in stop.value.what
    assert made.id in stop.value.what


async def test_a_volume_that_ends_in_error_stops_and_can_be_deleted(world: World) -> None:
    world.order("create_volume", fail=-1)
    made = await world.cloud.create_volume(
        "contract-x", size_gib=1, type=PREMIUM, mark=world.mark, source_id="s"
    )
    with pytest.raises(Stop) as stop:
        await world.cloud.wait_volume(made.id, deadline_s=DEADLINE_S)
    assert "'error'" in stop.value.what
    world.order("create_volume")
    await world.cloud.delete_volume(made.id, world.mark)
    await world.cloud.wait_deleted("volume", made.id, deadline_s=DEADLINE_S)


async def test_a_wait_ends_at_its_deadline_and_can_be_taken_up_again(world: World) -> None:
    world.order("create_volume", slow_s=4)
    seen: list[Progress] = []
    made = await world.cloud.create_volume(
        "contract-slow", size_gib=1, type=PREMIUM, mark=world.mark, source_id="s"
    )
    with pytest.raises(Stop) as stop:
        await world.cloud.wait_volume(made.id, deadline_s=1, flag="--fast", progress=seen.append)
    assert "--fast" in stop.value.what
    assert "'creating'" in stop.value.what
    assert seen
    assert seen[0].note == "creating"
    assert seen[-1].elapsed_s <= 2
    ready = await world.cloud.wait_volume(made.id, deadline_s=DEADLINE_S)
    assert ready.status == "available"


async def test_a_wait_can_be_cancelled(world: World) -> None:
    volume = await world.new_volume()
    # It never comes; the wait only ends because it is told to.
    waiting = asyncio.create_task(
        world.cloud.wait_attached(world.server_id, volume.id, deadline_s=1e12)
    )
    await asyncio.sleep(0.2)
    waiting.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await waiting
    assert waiting.cancelled()


# ---- attach, detach ------------------------------------------------------------------------------


async def test_attaching_twice_is_attaching_once(world: World) -> None:
    volume = await world.new_volume()
    as_before: dict[str, Any] = {"delete_on_termination": True, "tag": "database"}
    before = await world.cloud.server_volumes(world.server_id)
    await world.cloud.attach(world.server_id, volume.id, **as_before)
    await world.cloud.attach(world.server_id, volume.id, **as_before)
    line = await world.cloud.wait_attached(world.server_id, volume.id, deadline_s=DEADLINE_S)
    assert line.volume_id == volume.id
    assert (line.delete_on_termination, line.tag) == (True, "database")
    await world.cloud.attach(world.server_id, volume.id)
    after = await world.cloud.server_volumes(world.server_id)
    assert len(after) == len(before) + 1
    seen = await world.cloud.volume(volume.id)
    assert (seen.status, seen.attachments[0].server_id) == ("in-use", world.server_id)
    assert seen.attachments[0].attachment_id


async def test_an_attach_that_fails_stops(world: World) -> None:
    volume = await world.new_volume()
    world.order("attach", fail=1)
    with pytest.raises(Stop) as stop:
        # Up to compute 2.100 the request itself may tell; from then on only the wait does.
        await world.cloud.attach(world.server_id, volume.id)
        await world.cloud.wait_attached(world.server_id, volume.id, deadline_s=DEADLINE_S)
    assert volume.id in stop.value.what
    assert (await world.cloud.volume(volume.id)).status == "available"
    await world.cloud.attach(world.server_id, volume.id)
    await world.cloud.wait_attached(world.server_id, volume.id, deadline_s=DEADLINE_S)


async def test_detaching_twice_is_detaching_once(world: World) -> None:
    volume = await world.new_volume(attached=True)
    world.order("detach", slow_s=1)
    await world.cloud.detach(world.server_id, volume.id)
    await world.cloud.detach(world.server_id, volume.id)
    free = await world.cloud.wait_detached(world.server_id, volume.id, deadline_s=DEADLINE_S)
    assert (free.status, free.attachments) == ("available", ())
    await world.cloud.detach(world.server_id, volume.id)
    assert await world.cloud.wait_detached(world.server_id, volume.id, deadline_s=DEADLINE_S)


async def test_a_server_that_is_not_there_has_let_go_of_all(world: World) -> None:
    volume = await world.new_volume()
    await world.cloud.detach(ABSENT, volume.id)
    free = await world.cloud.wait_detached(ABSENT, volume.id, deadline_s=DEADLINE_S)
    assert (free.status, free.attachments) == ("available", ())
    assert await world.cloud.server_if_any(ABSENT) is None
    assert await world.cloud.volume_if_any(ABSENT) is None
    there = await world.cloud.server_if_any(world.server_id)
    assert there is not None and there.id == world.server_id
    assert await world.cloud.volume_if_any(volume.id) == free


async def test_a_guest_that_does_not_let_go_stops(world: World) -> None:
    volume = await world.new_volume(attached=True)
    world.order("detach", slow_s=1, fail=1)
    await world.cloud.detach(world.server_id, volume.id)
    with pytest.raises(Stop) as stop:
        await world.cloud.wait_detached(world.server_id, volume.id, deadline_s=DEADLINE_S)
    assert "in-use" in stop.value.what
    world.order("detach")
    await world.cloud.detach(world.server_id, volume.id)
    await world.cloud.wait_detached(world.server_id, volume.id, deadline_s=DEADLINE_S)


# ---- read-only, words ----------------------------------------------------------------------------


async def test_read_only_needs_a_free_volume_and_can_be_said_twice(world: World) -> None:
    volume = await world.new_volume(attached=True)
    with pytest.raises(Stop) as stop:
        await world.cloud.set_read_only(volume.id, True)
    assert "in-use" in stop.value.what
    await world.cloud.detach(world.server_id, volume.id)
    await world.cloud.wait_detached(world.server_id, volume.id, deadline_s=DEADLINE_S)
    await world.cloud.set_read_only(volume.id, True)
    await world.cloud.set_read_only(volume.id, True)
    assert (await world.cloud.volume(volume.id)).read_only is True
    await world.cloud.set_read_only(volume.id, False)
    assert (await world.cloud.volume(volume.id)).read_only is False


async def test_updating_keeps_the_users_other_metadata(world: World) -> None:
    volume = await world.new_volume()
    await world.cloud.update_volume(volume.id, metadata={"owner": "me"})
    changed = await world.cloud.update_volume(
        volume.id, name="contract-new", description="words", metadata={"more": "1"}
    )
    assert (changed.name, changed.description) == ("contract-new", "words")
    assert changed.metadata == {**volume.metadata, "owner": "me", "more": "1"}


# ---- deleting ------------------------------------------------------------------------------------


async def test_nothing_is_deleted_that_does_not_carry_the_mark(world: World) -> None:
    volume = await world.new_volume()
    snapshot_id = await world.new_snapshot(volume)
    for mark in ("tr-somebody-else", ""):
        with pytest.raises(Doubt):
            await world.cloud.delete_volume(volume.id, mark)
        with pytest.raises(Doubt):
            await world.cloud.delete_snapshot(snapshot_id, mark)
    assert (await world.cloud.volume(volume.id)).status == "available"
    assert (await world.cloud.snapshot(snapshot_id)).status == "available"


async def test_deleting_twice_is_deleting_once(world: World) -> None:
    volume = await world.new_volume()
    snapshot_id = await world.new_snapshot(volume)
    world.order("delete_snapshot", slow_s=1)
    for _ in range(2):
        await world.cloud.delete_snapshot(snapshot_id, world.mark)
    await world.cloud.wait_deleted("snapshot", snapshot_id, deadline_s=DEADLINE_S)
    await world.cloud.delete_snapshot(snapshot_id, world.mark)
    for _ in range(2):
        await world.cloud.delete_volume(volume.id, world.mark)
    await world.cloud.wait_deleted("volume", volume.id, deadline_s=DEADLINE_S)
    await world.cloud.delete_volume(volume.id, world.mark)
    with pytest.raises(NotFound):
        await world.cloud.volume(volume.id)


async def test_a_volume_in_use_is_not_deleted(world: World) -> None:
    volume = await world.new_volume(attached=True)
    with pytest.raises(Stop):
        await world.cloud.delete_volume(volume.id, world.mark)
    assert (await world.cloud.volume(volume.id)).status == "in-use"


async def test_a_deletion_that_fails_stops(world: World) -> None:
    volume = await world.new_volume()
    world.order("delete_volume", fail=1)
    await world.cloud.delete_volume(volume.id, world.mark)
    with pytest.raises(Stop) as stop:
        await world.cloud.wait_deleted("volume", volume.id, deadline_s=DEADLINE_S)
    assert "error_deleting" in stop.value.what


async def test_a_volume_that_vanishes_during_a_wait_is_a_doubt(world: World) -> None:
    volume = await world.new_volume()
    await world.cloud.delete_volume(volume.id, world.mark)
    await world.cloud.wait_deleted("volume", volume.id, deadline_s=DEADLINE_S)
    with pytest.raises(Doubt):
        await world.cloud.wait_retyped(volume.id, PREMIUM, deadline_s=DEADLINE_S)


async def test_every_request_is_counted(world: World) -> None:
    before = world.cloud.api_calls
    with pytest.raises(VolferryError):
        await world.cloud.volume(ABSENT)
    assert world.cloud.api_calls == before + 1
