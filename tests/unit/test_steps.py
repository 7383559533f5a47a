"""The steps that speak to the cloud, on the fake that the contract suite proves."""

import pytest

from tests.fakes.cloud import FakeCloud
from volferry.errors import Doubt, Refused, Stop
from volferry.methods import Method
from volferry.methods.mirror import Mirror
from volferry.methods.rsync import Rsync
from volferry.model import (
    Disk,
    Filesystem,
    GuestFacts,
    Layer,
    Member,
    Mount,
    Pair,
    Plan,
    Seed,
    Wanted,
)
from volferry.steps import SEQUENCE, Context, Held
from volferry.steps.attach import Attach
from volferry.steps.cutover import Cutover
from volferry.steps.detach import Detach
from volferry.steps.protect import Protect
from volferry.steps.retype import Retype
from volferry.steps.snapshot import TakeSnapshot
from volferry.steps.step import Undo
from volferry.steps.target import Target
from volferry.steps.tidy import Tidy
from volferry.steps.track import Track
from volferry.store import Request


class PowerCut(BaseException):
    pass


@pytest.fixture
def cloud():
    return FakeCloud()


async def context(cloud, type_="cbs-premium", seed=Seed.SNAPSHOT, names=("data",), **volume):
    server = cloud.add_server("web-03")
    ids = [cloud.add_volume(name, size_gib=2, server=server, **volume) for name in names]
    facts = await cloud.facts(server, ids)
    plan = Plan(
        wanted=Wanted(server="web-03", volumes=names, type=type_),
        cloud=facts,
        guest=GuestFacts(family="linux"),
        pairs=tuple(
            Pair(
                source=source,
                target_name=source.name,
                target_type=type_,
                target_size_gib=2,
                seed=seed,
            )
            for source in facts.sources
        ),
    )
    return Context("tr-web-03-test", plan, cloud=cloud, method=Rsync(), known={})


async def carry(ctx, *steps):
    for step in steps:
        if step.applies(ctx.plan):
            ctx.known = {**ctx.known, step.name: await step.do(ctx)}
    return ctx.known


def made(known):
    return [target["volume_id"] for target in known["target"]["targets"]]


async def test_a_type_on_the_same_back_end_is_had_at_once(cloud):
    ctx = await context(cloud, "cbs-standard-iops")

    known = await carry(ctx, TakeSnapshot(), Target(), Retype())

    assert known["target"]["targets"][0]["type"] == "cbs-standard-iops"
    assert [c.verb for c in cloud.calls] == ["create_snapshot", "create_volume"]


async def test_another_back_end_gets_the_sources_type_first_and_is_retyped(cloud):
    ctx = await context(cloud)

    known = await carry(ctx, TakeSnapshot(), Target(), Retype())

    assert known["target"]["targets"][0]["type"] == "cbs-standard"
    [moved] = known["retype"]["retypes"]
    assert (moved["was"], moved["now"]) == ("cbs-standard", "cbs-premium")
    assert (await cloud.volume(made(known)[0])).type == "cbs-premium"
    assert any("retyped" in e.facts["text"] for e in ctx.line.told if e.kind == "note")


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
    assert known["target"]["targets"][0]["seed"] == "blank"
    assert [c.verb for c in cloud.calls] == ["create_volume"]


async def test_the_target_takes_over_the_users_metadata_but_not_cinders(cloud):
    theirs = {"owner": "dba", "volferry:transfer": "tr-old", "volferry:source": "grandfather"}
    ctx = await context(cloud, metadata=theirs)

    known = await carry(ctx, TakeSnapshot(), Target())

    assert (await cloud.volume(made(known)[0])).metadata == {
        "owner": "dba",
        "volferry:transfer": "tr-web-03-test",
        "volferry:source": ctx.plan.cloud.sources[0].id,
    }


async def test_what_was_made_is_found_again_after_a_crash_and_undone(cloud):
    ctx = await context(cloud)
    known = await carry(ctx, TakeSnapshot(), Target())

    assert (await TakeSnapshot().find(ctx))["snapshots"] == known["snapshot"]["snapshots"]
    assert (await Target().find(ctx))["targets"] == known["target"]["targets"]

    await Target().undo(ctx, known["target"])
    await TakeSnapshot().undo(ctx, known["snapshot"])
    await Target().undo(ctx, known["target"])  # again, as after a rollback that was cut short

    assert await Target().left_behind(ctx) is None
    assert await TakeSnapshot().left_behind(ctx) is None


async def test_nothing_without_our_mark_is_deleted(cloud):
    ctx = await context(cloud)
    source = ctx.plan.cloud.sources[0].id

    with pytest.raises(Doubt):
        await Target().undo(ctx, {"targets": [{"volume_id": source}]})

    assert (await cloud.volume(source)).status == "in-use"


async def test_a_volume_that_ends_in_error_stops_and_is_still_undone(cloud):
    ctx = await context(cloud)
    await carry(ctx, TakeSnapshot())
    cloud.fail("create_volume")

    with pytest.raises(Stop, match="error"):
        await carry(ctx, Target())

    assert await Target().find(ctx) is None
    await Target().undo(ctx, await Target().left_behind(ctx))
    assert await Target().left_behind(ctx) is None


async def unplugged(cloud, ctx):
    for source in ctx.plan.cloud.sources:
        await cloud.detach(ctx.plan.cloud.server.id, source.id)
        await cloud.wait_detached(ctx.plan.cloud.server.id, source.id, deadline_s=60)


async def test_the_source_is_marked_read_only_only_when_it_is_wanted(cloud):
    ctx = await context(cloud)
    await unplugged(cloud, ctx)

    await carry(ctx, Protect())

    assert (await cloud.volume(ctx.plan.cloud.sources[0].id)).read_only
    no = ctx.plan.model_copy(
        update={"wanted": ctx.plan.wanted.model_copy(update={"read_only": False})}
    )
    assert not Protect().applies(no)


# ---- several volumes -----------------------------------------------------------------------------

NAMES = ("data", "log", "data")
"""Names are no identity: two volumes may have the same one."""


async def test_each_volume_gets_a_target_from_its_own_snapshot(cloud):
    ctx = await context(cloud, names=NAMES)

    known = await carry(ctx, TakeSnapshot(), Target(), Retype())

    sources = [source.id for source in ctx.plan.cloud.sources]
    for receipts in (
        known["snapshot"]["snapshots"],
        known["target"]["targets"],
        known["retype"]["retypes"],
    ):
        assert [one["source_id"] for one in receipts] == sources
    assert len(set(made(known))) == 3
    for target, source in zip(made(known), sources, strict=True):
        volume = await cloud.volume(target)
        assert (await cloud.snapshot(volume.snapshot_id)).volume_id == source
        assert (volume.type, volume.metadata["volferry:source"]) == ("cbs-premium", source)


def power_fails(cloud, effect, times):
    """Cut the power after an effect has been there so many times."""
    left = times

    def cut(when, what):
        nonlocal left
        if (when, what) == ("after", effect):
            left -= 1
            if left == 0:
                raise PowerCut

    cloud.around_effect = cut


def power_is_back(cloud):
    cloud.around_effect = lambda when, what: None


MADE = [
    (TakeSnapshot(), "create_snapshot", "snapshots"),
    (Target(), "create_volume", "targets"),
]


@pytest.mark.parametrize("times", [1, 2, 3])
@pytest.mark.parametrize(("step", "effect", "entries"), MADE)
async def test_after_a_crash_between_two_volumes_each_is_still_made_once(
    cloud, step, effect, entries, times
):
    ctx = await context(cloud, "cbs-standard", names=NAMES)
    await carry(ctx, *([TakeSnapshot()] if step.name == "target" else []))
    power_fails(cloud, effect, times)
    with pytest.raises(PowerCut):
        await carry(ctx, step)
    power_is_back(cloud)

    # Whole is what is there for every volume, and at rest; the last one was only asked for.
    assert await step.find(ctx) is None
    known = await carry(ctx, step)

    assert [c.verb for c in cloud.calls].count(effect) == 3
    sources = [source.id for source in ctx.plan.cloud.sources]
    assert [one["source_id"] for one in known[step.name][entries]] == sources
    assert (await step.find(ctx))[entries] == known[step.name][entries]


@pytest.mark.parametrize("times", [1, 2, 3])
@pytest.mark.parametrize(("step", "effect", "entries"), MADE)
async def test_a_crash_between_two_volumes_is_taken_back_as_far_as_it_came(
    cloud, step, effect, entries, times
):
    ctx = await context(cloud, "cbs-standard", names=NAMES)
    before = await carry(ctx, *([TakeSnapshot()] if step.name == "target" else []))
    power_fails(cloud, effect, times)
    with pytest.raises(PowerCut):
        await carry(ctx, step)
    power_is_back(cloud)

    left = await step.left_behind(ctx)
    assert len(left[entries]) == times
    await step.undo(ctx, left)

    assert await step.left_behind(ctx) is None
    ctx.known = before
    for source in ctx.plan.cloud.sources:
        assert (await cloud.volume(source.id)).status == "in-use"


async def test_a_crash_between_two_retypes_moves_the_other_one_and_this_one_once(cloud):
    ctx = await context(cloud, names=("data", "log"))
    await carry(ctx, TakeSnapshot(), Target())
    power_fails(cloud, "retype", 1)
    with pytest.raises(PowerCut):
        await carry(ctx, Retype())
    power_is_back(cloud)

    assert await Retype().find(ctx) is None
    known = await carry(ctx, Retype())

    assert [c.verb for c in cloud.calls].count("retype") == 2
    assert {(await cloud.volume(target)).type for target in made(known)} == {"cbs-premium"}


class Shown:
    """A guest that shows everything on the targets, until it is told otherwise."""

    is_there = True

    def __init__(self):
        self.wrong = ""
        self.job = "cutover"
        self.heard = []
        self.outcome = {}

    async def run_job(self, scene, job, key, request, **more):
        return {"outcome": self.outcome, "notes": [], "job_id": job}

    async def last_job(self):
        return self.job

    async def result_of(self, scene, job, **more):
        return None  # it runs

    async def not_on(self, scene, side, but=()):
        self.heard.append(f"look at all but {' '.join(but)}" if but else "look")
        return self.wrong

    async def uninstall(self):
        return {"removed": [], "left": []}

    async def quarantine(self, volume_ids):
        self.heard.append(f"hide {' '.join(volume_ids)}")
        return {}

    async def find(self, ref):
        self.heard.append(f"find {ref.volume_id}")
        return Disk(path="/dev/vdb", size_bytes=ref.size_bytes)


async def test_a_volume_is_attached_as_the_user_had_it(cloud):
    """What becomes of it with its server, and its role; the target's way in and the source's way
    back."""
    ctx = await context(cloud)
    ctx.guest = Shown()
    server, source = ctx.plan.cloud.server.id, ctx.plan.cloud.sources[0].id
    [line] = ctx.plan.cloud.server_volumes
    line = line.model_copy(update={"delete_on_termination": True, "tag": "database"})
    facts = ctx.plan.cloud.model_copy(update={"server_volumes": (line,)})
    ctx.plan = ctx.plan.model_copy(update={"cloud": facts})

    known = await carry(ctx, TakeSnapshot(), Target(), Attach(), Detach())
    [target] = await cloud.server_volumes(server)
    assert (target.volume_id, target.delete_on_termination) == (made(known)[0], True)
    assert target.tag == "database"

    await Detach().undo(ctx, known["detach"])
    lines = {line.volume_id: line for line in await cloud.server_volumes(server)}
    assert (lines[source].delete_on_termination, lines[source].tag) == (True, "database")


async def test_a_crash_between_two_detaches_goes_on_with_the_other_source(cloud):
    ctx = await context(cloud, names=("data", "log"))
    ctx.guest = Shown()
    power_fails(cloud, "detach", 1)
    with pytest.raises(PowerCut):
        await carry(ctx, Detach())
    power_is_back(cloud)

    known = await carry(ctx, Detach())

    sources = [source.id for source in ctx.plan.cloud.sources]
    assert [one["source_id"] for one in known["detach"]["sources"]] == sources
    assert {(await cloud.volume(source)).status for source in sources} == {"available"}
    await Detach().undo(ctx, known["detach"])
    assert {(await cloud.volume(source)).status for source in sources} == {"in-use"}


async def test_a_source_comes_back_as_the_look_alike_and_is_seen_before_the_guest_goes_back(cloud):
    ctx = await context(cloud)
    ctx.guest = Shown()
    known = await carry(ctx, Detach())
    cloud.around_effect = lambda when, effect: ctx.guest.heard.append(effect)

    await Detach().undo(ctx, known["detach"])

    source = ctx.plan.cloud.sources[0].id
    assert ctx.guest.heard[-4:] == [f"hide {source}", "attach", "attach", f"find {source}"]


async def on_an_array(cloud, **wanted):
    """A context whose volume is a member of an array, after the cutover has detached it."""
    ctx = await context(cloud)
    members = tuple(Member(path="/dev/vdb", volume_id=v.id) for v in ctx.plan.cloud.sources)
    layers = (Layer(kind="md", name="/dev/md0", members=members, above=("/dev/md0",)),)
    changes = {
        "guest": ctx.plan.guest.model_copy(update={"layers": layers}),
        "wanted": ctx.plan.wanted.model_copy(update=wanted),
    }
    ctx.plan, ctx.method, ctx.guest = ctx.plan.model_copy(update=changes), Mirror(), Shown()
    await unplugged(cloud, ctx)
    return ctx


async def test_a_source_that_no_rule_can_hide_is_left_out_until_the_target_is_hidden(cloud):
    ctx = await on_an_array(cloud)

    await Detach().undo(ctx, {"sources": [{"source_id": ctx.plan.cloud.sources[0].id}]})

    assert (await cloud.volume(ctx.plan.cloud.sources[0].id)).status == "available"
    assert ctx.guest.heard == []


async def test_a_guest_that_waits_for_its_source_gets_it_unless_it_is_about_to_give_up(cloud):
    ctx = await on_an_array(cloud)
    source = ctx.plan.cloud.sources[0].id
    hear = Mirror().meanwhile(ctx, "cutback", plug=True)

    for job, phase, left_s in (
        ("cutback", "starting", None), ("cutover", "awaiting", 100.0), ("cutback", "awaiting", 5.0),
    ):  # fmt: skip
        await hear({"job": job, "phase": phase, "progress": {"left_s": left_s}})
    assert (await cloud.volume(source)).status == "available"

    awaiting = {"job": "cutback", "phase": "awaiting", "progress": {"left_s": 100.0}}
    await hear(awaiting)
    await hear(awaiting)
    assert (await cloud.volume(source)).status in ("attaching", "in-use")
    assert [call.verb for call in cloud.calls].count("attach") == 1


async def test_a_way_back_that_lost_a_source_gets_none_of_the_others(cloud):
    """Beside one that is there the guest may not show its target: it would wait without an end."""
    ctx = await on_an_array(cloud)
    source, server = ctx.plan.cloud.sources[0], ctx.plan.cloud.server.id
    lost = source.model_copy(update={"id": "deleted by somebody"})
    facts = ctx.plan.cloud.model_copy(update={"sources": (lost, source)})
    ctx.plan = ctx.plan.model_copy(update={"cloud": facts})
    await cloud.attach(server, source.id)
    await cloud.wait_attached(server, source.id, deadline_s=60)
    hear = Mirror().meanwhile(ctx, "cutback", plug=False)

    await hear({"job": "cutback", "phase": "awaiting", "progress": {"left_s": 100.0}})

    await cloud.wait_detached(server, source.id, deadline_s=60)
    assert (await cloud.volume(source.id)).status == "available"


async def test_a_deleted_target_is_not_gone_back_from_once_somebody_has(cloud):
    """The guest may not find the way without it; the source's mounts are what counts."""
    ctx = await context(cloud)
    ctx.known, ctx.guest = await carry(ctx, TakeSnapshot(), Target()), Shown()
    mount = Mount(target="/srv/data", source="/dev/vdb")
    filesystem = Filesystem(device="/dev/vdb", fstype="ext4", uuid="u", mounts=(mount,))
    facts = ctx.plan.guest.model_copy(update={"filesystems": (filesystem,)})
    ctx.plan = ctx.plan.model_copy(update={"guest": facts})
    cloud.forget(made(ctx.known)[0])
    ctx.guest.outcome = {"result": "committed", "live": "target", "reason": "there is no target"}
    ctx.guest.wrong = "nothing is mounted on /srv/data"
    with pytest.raises(Stop, match="could not go back to the source") as stopped:
        await Cutover().undo(ctx, {"outcome": {}})
    assert "somebody deleted the target" in stopped.value.data
    assert "mount it in the guest" in stopped.value.hint

    ctx.guest.wrong = ""
    await Cutover().undo(ctx, {"outcome": {}})


async def test_a_source_that_came_too_late_is_taken_out_again(cloud):
    ctx = await on_an_array(cloud)
    source, server = ctx.plan.cloud.sources[0].id, ctx.plan.cloud.server.id
    ctx.guest.outcome = {"result": "committed", "live": "target", "reason": "it was not attached"}
    ctx.known = {"target": {"targets": []}}
    await cloud.attach(server, source)

    with pytest.raises(Stop, match="could not go back to the source: it was not attached"):
        await Cutover().undo(ctx, {"outcome": {}})

    assert (await cloud.volume(source)).status == "available"


async def test_what_is_held_is_told_as_it_is(cloud):
    ctx = await on_an_array(cloud, hold=True)
    with pytest.raises(Held) as held:
        await Detach().do(ctx)
    assert "the source was detached before the commit and is unchanged (--hold)" in held.value.what
    assert "finish tr-web-03-test     ends\n" in held.value.hint

    ctx.method = Rsync()
    with pytest.raises(Held) as held:
        await Detach().do(ctx)
    assert "the source is attached and unchanged (--hold)" in held.value.what
    assert "detaches the source and ends" in held.value.hint


async def test_detaching_that_was_held_before_it_began_costs_nothing_to_take_back(cloud):
    """Else going back to a standby, which loses nothing, would ask for a word as well."""
    ctx = await context(cloud)
    wanted = ctx.plan.wanted.model_copy(update={"keep_standby": True})
    ctx.plan = ctx.plan.model_copy(update={"wanted": wanted})
    assert await Detach().left_behind(ctx) is None
    ctx.line.asked.append(Request(id=1, transfer=ctx.transfer_id, what="finish", facts={}, at=0.0))
    left = await Detach().left_behind(ctx)
    assert [one["source_id"] for one in left["sources"]] == [v.id for v in ctx.plan.cloud.sources]
    assert await Detach().costs(ctx, left) is Undo.CONSENT

    ctx.known = {**ctx.known, "cutover": {"outcome": {"standby": True}}}
    left_by_a_standby = await Detach().left_behind(ctx)
    assert await Detach().costs(ctx, left_by_a_standby) is Undo.FREE, "it follows again first"
    assert await Protect().costs(ctx, await Protect().left_behind(ctx)) is Undo.FREE
    ctx.known = {**ctx.known, "cutover": {"outcome": {"standby": False}}}

    ctx.line.asked.clear()
    await unplugged(cloud, ctx)
    assert await Detach().left_behind(ctx) == left, "it was cut between its end and its receipt"


async def test_without_the_agents_record_there_is_no_way_back_from_tidying_up(cloud):
    ctx = await context(cloud)
    ctx.guest = Shown()
    assert await Tidy().left_behind(ctx) is None
    ctx.guest.job = ""

    with pytest.raises(Refused, match="forgotten the way back"):
        await Tidy().left_behind(ctx)


async def test_a_way_back_that_was_begun_is_gone_to_its_end_though_the_outcome_is_gone(cloud):
    ctx = await context(cloud)
    ctx.guest = Shown()
    ctx.guest.job = "cutback"

    assert await Cutover().left_behind(ctx) is not None


async def test_no_source_is_detached_while_one_target_is_not_where_it_should_be(cloud):
    ctx = await context(cloud, names=("data", "log"))
    known = await carry(ctx, TakeSnapshot(), Target())
    ctx.known, ctx.guest = known, Shown()
    ctx.guest.wrong = "nothing is mounted on /srv/log"

    with pytest.raises(Doubt, match="/srv/log"):
        await carry(ctx, Detach())

    assert {(await cloud.volume(s.id)).status for s in ctx.plan.cloud.sources} == {"in-use"}


@pytest.mark.parametrize("target", [0, 1], ids=["altogether", "of another volume"])
async def test_a_target_without_a_way_back_hides_no_other_that_is_mounted_wrongly(cloud, target):
    """All go back or none: once a source is gone, a target that cannot be mounted any more is not
    waited for."""
    ctx = await context(cloud, names=("data", "log"))
    ctx.known, ctx.guest = await carry(ctx, TakeSnapshot(), Target()), Shown()
    ctx.guest.wrong = "something else is mounted wrongly"
    sources = ctx.plan.cloud.sources
    for lost in (sources[0].id, made(ctx.known)[target]):
        cloud.forget(lost)

    with pytest.raises(Doubt, match="something else is mounted wrongly"):
        await carry(ctx, Detach())

    assert ctx.guest.heard == ["look", f"look at all but {sources[target].id}"]
    assert (await cloud.volume(sources[1].id)).status == "in-use"


async def test_what_somebody_deleted_is_not_taken_back_for(cloud):
    ctx = await context(cloud, names=("data", "log"))
    ctx.guest = Shown()
    known = await carry(ctx, Detach(), Protect())
    data, log = ctx.plan.cloud.sources
    cloud.forget(data.id)

    await Protect().undo(ctx, known["protect"])
    await Detach().undo(ctx, known["detach"])

    assert not (await cloud.volume(log.id)).read_only
    assert (await cloud.volume(log.id)).status == "in-use"


async def test_all_sources_are_marked_read_only_and_a_half_is_not_taken_for_all(cloud):
    ctx = await context(cloud, names=("data", "log"))
    await unplugged(cloud, ctx)
    first, second = (source.id for source in ctx.plan.cloud.sources)
    await cloud.set_read_only(first, True)

    assert await Protect().find(ctx) is None
    await Protect().undo(ctx, await Protect().left_behind(ctx))
    assert not (await cloud.volume(first)).read_only

    known = await carry(ctx, Protect())
    assert [one["read_only"] for one in known["protect"]["sources"]] == [True, True]
    assert (await cloud.volume(second)).read_only


async def test_tidying_deletes_every_snapshot(cloud):
    ctx = await context(cloud, "cbs-standard", names=NAMES)
    ctx.guest = Shown()
    known = await carry(ctx, TakeSnapshot(), Tidy())

    assert known["tidy"]["snapshot_deleted"]
    assert await TakeSnapshot().left_behind(ctx) is None


# ---- noting every write --------------------------------------------------------------------------


@pytest.fixture
def tracker(monkeypatch):
    class Tracker:
        running = 0

        def tracks(self, plan):
            return True

        async def track(self, scene):
            self.running += 1
            return {"chunks": 7}

        async def untrack(self, scene):
            self.running = 0

    monkeypatch.setitem(Method.registry, "tracker", Tracker)
    return Tracker()


async def test_writes_are_noted_before_the_snapshot_by_a_method_that_needs_it(cloud, tracker):
    ctx = await context(cloud)
    assert not Track().applies(ctx.plan)
    assert not Track().applies(ctx.plan.model_copy(update={"method": "rsync"}))
    ctx.plan = ctx.plan.model_copy(update={"method": "tracker"})
    ctx.method = tracker
    names = [step.name for step in SEQUENCE]
    assert names.index("install") < names.index("track") < names.index("snapshot")

    assert await carry(ctx, Track()) == {"track": {"chunks": 7}}
    assert await Track().find(ctx) is None
    await Track().undo(ctx, await Track().left_behind(ctx))

    assert tracker.running == 0


def test_the_sequence_promises_the_phases_in_their_order():
    phases = [step.phase for step in SEQUENCE]

    assert phases == sorted(phases, key=["seed", "attach", "sync", "cutover", "finish"].index)
    assert len({step.name for step in SEQUENCE}) == len(SEQUENCE)
    assert all(step.promise for step in SEQUENCE)
