"""The poller alone: deadlines, failures, and an API that is away for a while."""

from collections.abc import Iterable, Iterator

import pytest

from volferry.cloud.poller import LONGEST_S, SUSPECT_S, Waits
from volferry.errors import Doubt, NotFound, Retry, Stop
from volferry.model import Attachment, Progress, Server, ServerVolume, Snapshot, Volume

SERVER = "server-1"


class Scripted(Waits):
    """A cloud that shows a volume's states one after the other; the last one stays."""

    def __init__(self, states: Iterable[Volume | Exception], lines: bool = True) -> None:
        self._states: Iterator[Volume | Exception] = iter(states)
        self._last: Volume | Exception = NotFound("nothing yet")
        self.clock, self.pauses, self.lines = 0.0, [0.0], lines
        self.reason, self.server_reason = "", ""
        self.listed: tuple[Volume, ...] = ()

    async def volume(self, volume_id: str) -> Volume:
        self._last = next(self._states, self._last)
        if isinstance(self._last, Exception):
            raise self._last
        return self._last

    async def snapshot(self, snapshot_id: str) -> Snapshot:
        seen = await self.volume(snapshot_id)
        return Snapshot(
            id=seen.id, name="", volume_id="v", size_gib=10, status=seen.status, progress="37%"
        )

    async def server(self, server_id: str) -> Server:
        raise NotFound(f"cannot read servers/{server_id}")

    async def volumes(self) -> tuple[Volume, ...]:
        return self.listed

    async def servers(self) -> tuple[Server, ...]:
        return ()

    async def server_volumes(self, server_id: str) -> tuple[ServerVolume, ...]:
        return (ServerVolume(volume_id="v"),) if self.lines else ()

    async def _reason(self, object_id: str) -> str:
        return self.reason

    async def _server_reason(self, server_id: str, action: str) -> str:
        return self.server_reason

    async def _sleep(self, seconds: float) -> None:
        self.clock += seconds
        self.pauses.append(seconds)

    def _now(self) -> float:
        return self.clock


def volume(status: str, type: str = "slow", migration: str = "", server: str = "") -> Volume:
    attached = (Attachment(server_id=server, volume_id="v"),) if server else ()
    return Volume(
        id="v",
        name="",
        size_gib=1,
        type=type,
        status=status,
        migration_status=migration,
        attachments=attached,
    )


async def test_pauses_grow_to_five_seconds_and_never_pass_the_deadline() -> None:
    cloud = Scripted([volume("creating")])
    with pytest.raises(Stop) as stop:
        await cloud.wait_volume("v", deadline_s=100, flag="--create-timeout")
    assert cloud.pauses[1] < 1
    assert LONGEST_S * 0.8 <= max(cloud.pauses) <= LONGEST_S * 1.2
    assert cloud.clock == pytest.approx(100)
    assert (
        "still 'creating' after 100 s (--create-timeout), expected 'available'" in stop.value.what
    )
    assert "--create-timeout" in stop.value.hint


@pytest.mark.parametrize(
    "status", ["error", "error_extending", "error_deleting", "error_restoring", "error_managing"]
)
async def test_every_error_status_stops_with_the_clouds_own_message(status: str) -> None:
    cloud = Scripted([volume("creating"), volume(status)])
    cloud.reason = "the cloud's message: no back end has room"
    with pytest.raises(Stop) as stop:
        await cloud.wait_volume("v", deadline_s=100)
    assert status in stop.value.what
    assert "no back end has room" in stop.value.data


async def test_an_api_that_is_away_for_a_while_does_not_end_a_wait() -> None:
    away = Retry("cloud cannot be reached")
    cloud = Scripted([volume("creating"), away, away, volume("available")])
    assert (await cloud.wait_volume("v", deadline_s=100)).status == "available"


async def test_a_deadline_tells_that_the_api_was_away() -> None:
    cloud = Scripted([volume("creating"), Retry("cloud 'x' cannot be reached")])
    with pytest.raises(Stop) as stop:
        await cloud.wait_volume("v", deadline_s=10)
    assert "was 'creating' after 10 s" in stop.value.what
    assert stop.value.data.count("cannot be reached") == 1


async def test_a_moment_between_two_writes_is_no_failure() -> None:
    cloud = Scripted(
        [
            volume("retyping"),
            volume("available"),
            volume("available", type="fast"),
        ]
    )
    assert (await cloud.wait_retyped("v", "fast", deadline_s=100)).type == "fast"


async def test_a_retype_is_not_done_while_it_migrates() -> None:
    cloud = Scripted(
        [
            volume("available", migration="migrating"),
            volume("available", type="fast", migration="completing"),
            volume("available", type="fast", migration="success"),
        ]
    )
    done = await cloud.wait_retyped("v", "fast", deadline_s=100)
    assert done.migration_status == "success"


async def test_a_refused_detach_says_that_the_guest_holds_the_disk() -> None:
    cloud = Scripted([volume("detaching", server=SERVER), volume("in-use", server=SERVER)])
    with pytest.raises(Stop) as stop:
        await cloud.wait_detached(SERVER, "v", deadline_s=300)
    assert "did not let go" in stop.value.what
    assert "still attached" in stop.value.data


async def test_an_attach_without_an_answer_is_awaited_while_nothing_failed() -> None:
    # Compute 2.101: the volume is still available for a while after the request was accepted.
    cloud = Scripted([volume("available"), volume("available"), volume("attaching")], lines=False)
    with pytest.raises(Stop) as stop:
        await cloud.wait_attached(SERVER, "v", deadline_s=120)
    assert "--attach-timeout" in stop.value.what
    cloud = Scripted([volume("available")], lines=False)
    cloud.server_reason = "the server's last 'attach_volume' ended in: Error (req-1)"
    with pytest.raises(Stop) as stop:
        await cloud.wait_attached(SERVER, "v", deadline_s=120)
    assert "req-1" in stop.value.what
    assert cloud.clock < 20


async def test_a_busy_snapshot_that_goes_back_to_available_was_not_deleted() -> None:
    cloud = Scripted([volume("deleting"), volume("available")])
    with pytest.raises(Stop) as stop:
        await cloud.wait_deleted("snapshot", "v", deadline_s=100)
    assert "not deleted" in stop.value.what


async def test_what_vanishes_in_a_wait_is_a_doubt() -> None:
    cloud = Scripted([volume("creating"), NotFound("gone")])
    with pytest.raises(Doubt):
        await cloud.wait_volume("v", deadline_s=100)


async def test_progress_tells_status_time_and_share() -> None:
    cloud = Scripted([volume("creating"), volume("creating"), volume("available")])
    seen: list[Progress] = []
    await cloud.wait_snapshot("v", deadline_s=100, progress=seen.append)
    assert [p.note for p in seen] == ["creating", "creating"]
    assert seen[0].elapsed_s == 0
    assert seen[1].elapsed_s > 0
    assert (seen[0].done_bytes, seen[0].total_bytes) == (37 * 10 * 1024**3 // 100, 10 * 1024**3)


async def test_an_explanation_that_cannot_be_had_does_not_hide_the_failure() -> None:
    class Mute(Scripted):
        async def _reason(self, object_id: str) -> str:
            raise Stop("messages are forbidden")

    with pytest.raises(Stop) as stop:
        await Mute([volume("error")]).wait_volume("v", deadline_s=100)
    assert "'error'" in stop.value.what


async def test_what_stays_unknown_is_believed_to_be_deleted() -> None:
    """And nothing else: a replica that lags, or a load balancer that has lost its way, deleted
    nothing."""
    gone = NotFound("cannot read volumes/v")
    cloud = Scripted([gone, gone, volume("available")])
    assert await cloud.volume_if_any("v") == volume("available")
    cloud = Scripted([gone])
    assert await cloud.volume_if_any("v") is None
    assert cloud.clock >= SUSPECT_S
    assert await cloud.server_if_any("s") is None
    cloud = Scripted([gone])
    cloud.listed = (volume("available"),)
    assert await cloud.volume_if_any("v") == volume("available")
