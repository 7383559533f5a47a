"""The steps that speak to the cloud, on the fake that the contract suite proves."""

import pytest

from tests.fakes.cloud import FakeCloud
from volferry.errors import Doubt, Stop
from volferry.model import GuestFacts, Plan, Seed, Wanted
from volferry.steps import SEQUENCE, Context
from volferry.steps.protect import Protect
from volferry.steps.retype import Retype
from volferry.steps.snapshot import TakeSnapshot
from volferry.steps.target import Target


@pytest.fixture
def cloud():
    return FakeCloud()


async def context(cloud, type_="cbs-premium", seed=Seed.SNAPSHOT, **volume):
    server = cloud.add_server("web-03")
    source = cloud.add_volume("data", size_gib=2, server=server, **volume)
    plan = Plan(
        wanted=Wanted(server="web-03", volume="data", type=type_),
        cloud=await cloud.facts(server, source),
        guest=GuestFacts(family="linux"),
        target_name="data",
        target_type=type_,
        target_size_gib=2,
        seed=seed,
    )
    return Context("tr-web-03-test", plan, cloud=cloud, known={})


async def carry(ctx, *steps):
    for step in steps:
        if step.applies(ctx.plan):
            ctx.known = {**ctx.known, step.name: await step.do(ctx)}
    return ctx.known


async def test_a_type_on_the_same_back_end_is_had_at_once(cloud):
    ctx = await context(cloud, "cbs-standard-iops")

    known = await carry(ctx, TakeSnapshot(), Target(), Retype())

    assert known["target"]["type"] == "cbs-standard-iops"
    assert [c.verb for c in cloud.calls] == ["create_snapshot", "create_volume"]


async def test_another_back_end_gets_the_sources_type_first_and_is_retyped(cloud):
    ctx = await context(cloud)

    known = await carry(ctx, TakeSnapshot(), Target(), Retype())

    assert known["target"]["type"] == "cbs-standard"
    assert (known["retype"]["was"], known["retype"]["now"]) == ("cbs-standard", "cbs-premium")
    assert (await cloud.volume(known["target"]["volume_id"])).type == "cbs-premium"
    assert any("retyped" in e.facts["text"] for e in ctx.line.events if e.kind == "note")


async def test_a_retype_that_is_accepted_and_silently_not_done_stops(cloud):
    ctx = await context(cloud)
    await carry(ctx, TakeSnapshot(), Target())
    cloud.ignore("retype")

    with pytest.raises(Stop, match="cbs-premium"):
        await carry(ctx, Retype())


async def test_a_blank_target_takes_no_snapshot(cloud):
    ctx = await context(cloud, seed=Seed.BLANK)

    known = await carry(ctx, TakeSnapshot(), Target(), Retype())

    assert "snapshot" not in known
    assert known["target"]["seed"] == "blank"
    assert [c.verb for c in cloud.calls] == ["create_volume"]


async def test_the_target_takes_over_the_users_metadata_but_not_cinders(cloud):
    ctx = await context(cloud, metadata={"owner": "dba"})

    known = await carry(ctx, TakeSnapshot(), Target())

    made = await cloud.volume(known["target"]["volume_id"])
    assert made.metadata == {"owner": "dba", "volferry:transfer": "tr-web-03-test"}


async def test_what_was_made_is_found_again_after_a_crash_and_undone(cloud):
    ctx = await context(cloud)
    known = await carry(ctx, TakeSnapshot(), Target())

    assert (await TakeSnapshot().find(ctx))["snapshot_id"] == known["snapshot"]["snapshot_id"]
    assert (await Target().find(ctx))["volume_id"] == known["target"]["volume_id"]

    await Target().undo(ctx, known["target"])
    await TakeSnapshot().undo(ctx, known["snapshot"])
    await Target().undo(ctx, known["target"])  # again, as after a rollback that was cut short

    assert await Target().left_behind(ctx) is None
    assert await TakeSnapshot().left_behind(ctx) is None


async def test_nothing_without_our_mark_is_deleted(cloud):
    ctx = await context(cloud)

    with pytest.raises(Doubt):
        await Target().undo(ctx, {"volume_id": ctx.plan.cloud.source.id})

    assert (await cloud.volume(ctx.plan.cloud.source.id)).status == "in-use"


async def test_a_volume_that_ends_in_error_stops_and_is_still_undone(cloud):
    ctx = await context(cloud)
    await carry(ctx, TakeSnapshot())
    cloud.fail("create_volume")

    with pytest.raises(Stop, match="error"):
        await carry(ctx, Target())

    assert await Target().find(ctx) is None
    await Target().undo(ctx, await Target().left_behind(ctx))
    assert await Target().left_behind(ctx) is None


async def test_the_source_is_marked_read_only_only_when_it_is_wanted(cloud):
    ctx = await context(cloud)
    source = ctx.plan.cloud.source.id
    await cloud.detach(ctx.plan.cloud.server.id, source)
    await cloud.wait_detached(ctx.plan.cloud.server.id, source, deadline_s=60)

    await carry(ctx, Protect())

    assert (await cloud.volume(source)).read_only
    no = ctx.plan.model_copy(
        update={"wanted": ctx.plan.wanted.model_copy(update={"read_only": False})}
    )
    assert not Protect().applies(no)


def test_the_sequence_promises_the_phases_in_their_order():
    phases = [step.phase for step in SEQUENCE]

    assert phases == sorted(phases, key=["seed", "attach", "sync", "cutover", "finish"].index)
    assert len({step.name for step in SEQUENCE}) == len(SEQUENCE)
    assert all(step.promise for step in SEQUENCE)
