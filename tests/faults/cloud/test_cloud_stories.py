"""What a cloud, and other people in it, do to a transfer; and that the way on works."""

import pytest

from tests.fakes.cloud import REQUEST_ID
from tests.faults.cloud.story import ID, Story
from volferry.errors import VolferryError
from volferry.model import MARK, State
from volferry.report import story as report

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
