"""All verbs of a transfer on the fake, with the power cut at every effect."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # for `tests.fakes`

from tests.fakes.cloud import FakeCloud, When
from volferry.cloud import TypeNotReachable

MARK, PREMIUM, STANDARD = "tr-1", "cbs-premium", "cbs-standard"


class PowerCut(BaseException):
    pass


class Cut:
    """Cuts the power at the nth moment, counted from 1; 0 never."""

    def __init__(self, at: int) -> None:
        self.at, self.moments = at, 0

    def __call__(self, when: When, effect: str) -> None:
        self.moments += 1
        if self.moments == self.at:
            raise PowerCut(f"{when} {effect}")


async def transfer(cloud: FakeCloud, server: str, source: str) -> str:
    """What the steps do, said again from the start after each cut."""
    snapshot = await cloud.create_snapshot(source, "s", MARK)
    await cloud.wait_snapshot(snapshot.id, deadline_s=60)
    wanted = {"size_gib": 1, "mark": MARK, "source_id": source, "snapshot_id": snapshot.id}
    try:
        target = await cloud.create_volume("t", type=PREMIUM, **wanted)  # type: ignore[arg-type]
    except TypeNotReachable:
        target = await cloud.create_volume("t", type=STANDARD, **wanted)  # type: ignore[arg-type]
    if target.status == "creating":
        await cloud.wait_volume(target.id, deadline_s=60)
    if target.type != PREMIUM:
        await cloud.delete_snapshot(snapshot.id, MARK)
        await cloud.wait_deleted("snapshot", snapshot.id, deadline_s=60)
        await cloud.retype(target.id, PREMIUM)
        await cloud.wait_retyped(target.id, PREMIUM, deadline_s=60)
    await cloud.attach(server, target.id)
    await cloud.wait_attached(server, target.id, deadline_s=60)
    await cloud.detach(server, source)
    await cloud.wait_detached(server, source, deadline_s=60)
    await cloud.set_read_only(source, True)
    return target.id


def world() -> tuple[FakeCloud, str, str]:
    cloud = FakeCloud()
    server = cloud.add_server("web-03")
    source = cloud.add_volume("data", server=server)
    cloud.content[source] = "precious"
    return cloud, server, source


async def test_a_whole_transfer_on_the_fake_keeps_content_and_takes_time() -> None:
    cloud, server, source = world()
    began = cloud.clock
    target = await transfer(cloud, server, source)
    assert cloud.content[target] == "precious"
    assert (await cloud.volume(source)).read_only is True
    assert [line.volume_id for line in await cloud.server_volumes(server)] == [target]
    assert cloud.clock - began > 6
    assert [call.verb for call in cloud.calls] == [
        "create_snapshot",
        "create_volume",
        "delete_snapshot",
        "retype",
        "attach",
        "detach",
        "set_read_only",
    ]


@pytest.mark.parametrize("at", range(1, 5))
async def test_power_cut_at_a_creation_makes_nothing_twice(at: int) -> None:
    cloud, server, source = world()
    cloud.around_effect = Cut(at)
    with pytest.raises(PowerCut):
        await transfer(cloud, server, source)
    target = await transfer(cloud, server, source)
    assert cloud.content[target] == "precious"
    found = await cloud.find_volume(MARK)
    assert found is not None
    assert found.id == target
    assert [line.volume_id for line in await cloud.server_volumes(server)] == [target]


async def test_the_same_calls_see_the_same() -> None:
    async def once() -> tuple[str, float, int]:
        cloud, server, source = world()
        return await transfer(cloud, server, source), cloud.clock, cloud.api_calls

    assert await once() == await once()
