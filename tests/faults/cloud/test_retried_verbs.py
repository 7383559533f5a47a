"""Every verb that changes something meets every kind of fault, and takes effect exactly once.

The client is the real one, its requests go through the fault-injecting proxy to services that do
not forgive a second time. Only the pauses between two tries are not slept.
"""

import os
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.http_cloud import Pauses, clouds_yaml, password
from tests.faults.cloud.proxy import FAULTS, Proxy
from tests.faults.cloud.services import SERVER_ID, OpenStack
from volferry.cloud import Cloud
from volferry.cloud.session import Session
from volferry.errors import Retry, VolferryError
from volferry.model import MARK

TIMEOUT_S = 0.3
JUST_ENOUGH_S = FAULTS["slow"].seconds + 0.2
"""What is left over is for a machine that is busy."""
OURS = {MARK: "tr-1"}


@dataclass
class World:
    services: OpenStack
    proxy: Proxy
    wire: Session
    pauses: Pauses
    cloud: Cloud


@pytest.fixture(scope="module")
def connected(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[OpenStack, Proxy, Any]]:
    """One way to the cloud for all tests here: getting in is not what is tested."""
    with pytest.MonkeyPatch.context() as patch, Proxy() as proxy:
        for name in [n for n in os.environ if n.startswith("OS_")]:
            patch.delenv(name)
        for name, value in proxy.environment.items():
            patch.setenv(name, value)
            patch.delenv(name.upper(), raising=False)
        services = OpenStack()
        folder: Path = tmp_path_factory.mktemp("clouds")
        file = clouds_yaml(folder, here=password(services.url))
        wire = Session.connect("here", "", file, TIMEOUT_S)
        yield services, proxy, wire
        wire.close()
        services.close()


@pytest.fixture
def world(connected: tuple[OpenStack, Proxy, Session]) -> Iterator[World]:
    services, proxy, wire = connected
    services.begin()
    pauses = Pauses()
    proxy.now = lambda: pauses.clock
    proxy.met.clear()
    proxy.request_ids.clear()
    yield World(services, proxy, wire, pauses, Cloud(wire, pauses.patience))
    pauses.clock += 3600  # whoever waits for a late effect
    proxy.reset()


@dataclass(frozen=True)
class Verb:
    """A change: how it is made, by which request, and what has to be true of the services then."""

    method: str
    path: str
    begin: Callable[[OpenStack], str]
    do: Callable[[Cloud, str], Awaitable[object]]
    done: Callable[[OpenStack, str], bool]
    effect: str
    repeatable: bool = False
    """Saying it twice is the same to the services, so it may take effect twice."""


def _one(things: dict[str, Any]) -> bool:
    return len([t for t in things.values() if t["metadata"].get(MARK) == "tr-1"]) == 1


VERBS = {
    "create_snapshot": Verb(
        "POST", r"/snapshots$",
        lambda api: api.add_volume(),
        lambda cloud, id: cloud.create_snapshot(id, "s", "tr-1"),
        lambda api, id: _one(api.snapshots), "create snapshot",
    ),
    "create_volume": Verb(
        "POST", r"/volumes$",
        lambda api: "",
        lambda cloud, id: cloud.create_volume(
            "t", size_gib=1, type="fast", mark="tr-1", source_id="s"
        ),
        lambda api, id: _one(api.volumes), "create volume",
    ),
    "create_volume_from_snapshot": Verb(
        "POST", r"/volumes$",
        lambda api: api.add_snapshot(api.add_volume()),
        lambda cloud, id: cloud.create_volume(
            "t", size_gib=1, type="fast", mark="tr-1", source_id="s", snapshot_id=id
        ),
        lambda api, id: _one(api.volumes), "create volume",
    ),
    "retype": Verb(
        "POST", r"/action$",
        lambda api: api.add_volume(),
        lambda cloud, id: cloud.retype(id, "fast"),
        lambda api, id: (
            api.volumes[id]["status"] == "retyping" or api.volumes[id]["volume_type"] == "fast"
        ), "retype",
    ),
    "attach": Verb(
        "POST", r"/os-volume_attachments$",
        lambda api: api.add_volume(),
        lambda cloud, id: cloud.attach(SERVER_ID, id),
        lambda api, id: api.volumes[id]["status"] in ("reserved", "in-use"), "attach",
    ),
    "detach": Verb(
        "DELETE", r"/os-volume_attachments/",
        lambda api: api.add_volume(attached=True),
        lambda cloud, id: cloud.detach(SERVER_ID, id),
        lambda api, id: api.volumes[id]["status"] in ("detaching", "available"), "detach",
    ),
    "delete_snapshot": Verb(
        "DELETE", r"/snapshots/",
        lambda api: api.add_snapshot(api.add_volume(), metadata=OURS),
        lambda cloud, id: cloud.delete_snapshot(id, "tr-1"),
        lambda api, id: api.snapshots.get(id, {"status": "deleting"})["status"] == "deleting",
        "delete snapshot",
    ),
    "delete_volume": Verb(
        "DELETE", r"/volumes/",
        lambda api: api.add_volume(metadata=OURS),
        lambda cloud, id: cloud.delete_volume(id, "tr-1"),
        lambda api, id: api.volumes.get(id, {"status": "deleting"})["status"] == "deleting",
        "delete volume",
    ),
    "set_read_only": Verb(
        "POST", r"/action$",
        lambda api: api.add_volume(),
        lambda cloud, id: cloud.set_read_only(id, True),
        lambda api, id: api.volumes[id]["metadata"]["readonly"] == "True",
        "set read-only", repeatable=True,
    ),
    "update_volume": Verb(
        "PUT", r"/volumes/",
        lambda api: api.add_volume(),
        lambda cloud, id: cloud.update_volume(id, name="new"),
        lambda api, id: api.volumes[id]["name"] == "new", "update volume", repeatable=True,
    ),
    "add_metadata": Verb(
        "POST", r"/metadata$",
        lambda api: api.add_volume(),
        lambda cloud, id: cloud.update_volume(id, metadata={"k": "v"}),
        lambda api, id: api.volumes[id]["metadata"] == {"k": "v"}, "add metadata", repeatable=True,
    ),
}  # fmt: skip


def happened_once(world: World, verb: Verb, id: str) -> None:
    times = world.services.effects.pop(verb.effect)
    assert times == 1 or (verb.repeatable and times == 2)
    assert not world.services.effects
    assert verb.done(world.services, id)


TWICE = [
    (name, ended)
    for name, fault in FAULTS.items()
    for ended in (False, fault.after)
    if fault.what != "slow"
]


@pytest.mark.parametrize(("fault", "ended"), dict.fromkeys(TWICE))
@pytest.mark.parametrize("verb", VERBS.values(), ids=VERBS)
async def test_a_change_takes_effect_once_whatever_becomes_of_its_request(
    world: World, verb: Verb, fault: str, ended: bool
) -> None:
    """What is found afterwards is an operation in the middle, or one that has ended."""
    world.services.at_once = ended
    id = verb.begin(world.services)
    world.proxy.order(fault, verb.method, verb.path)

    await verb.do(world.cloud, id)

    assert world.proxy.met[fault] == 1
    happened_once(world, verb, id)


@pytest.mark.parametrize("verb", VERBS.values(), ids=VERBS)
async def test_an_answer_that_comes_just_in_time_is_waited_for(
    world: World, verb: Verb, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(world.wire._session, "timeout", JUST_ENOUGH_S)
    id = verb.begin(world.services)
    world.proxy.order("slow", verb.method, verb.path)

    await verb.do(world.cloud, id)

    assert world.proxy.met["slow"] == 1
    assert world.pauses.slept == [], "it was asked for again"
    assert world.services.effects == {verb.effect: 1}
    assert verb.done(world.services, id)


BLIND = ["429", "503", "cut before", "silence before", "expired token", "stale reads"]


@pytest.mark.parametrize("fault", BLIND)
@pytest.mark.parametrize("verb", VERBS.values(), ids=VERBS)
async def test_a_change_takes_effect_once_when_looking_at_it_fails_as_well(
    world: World, verb: Verb, fault: str
) -> None:
    id = verb.begin(world.services)
    world.proxy.order("502 after", verb.method, verb.path)
    # A token that is refused twice in a row is no passing fault.
    world.proxy.order(fault, "GET", times=1 if fault == "expired token" else 2)

    await verb.do(world.cloud, id)

    happened_once(world, verb, id)


@pytest.mark.parametrize("fault", ["429", "500", "503 after", "cut before", "cut after"])
@pytest.mark.parametrize("verb", VERBS.values(), ids=VERBS)
async def test_a_fault_that_stays_ends_in_an_error_and_in_at_most_one_effect(
    world: World, verb: Verb, fault: str
) -> None:
    """Patience ends and the engine decides. Once the cloud is well, saying it again is enough."""
    id = verb.begin(world.services)
    world.proxy.order(fault, verb.method, verb.path, times=-1)

    error = None
    try:
        await verb.do(world.cloud, id)
    except Retry as stayed:
        error = stayed
    assert (error is None) == (FAULTS[fault].after and not verb.repeatable)
    if error is not None:
        assert error.what and error.hint
        if world.proxy.request_ids:
            assert world.proxy.request_ids[-1] in error.data
    assert world.services.effects[verb.effect] <= 1 or verb.repeatable

    world.proxy.reset()
    await verb.do(world.cloud, id)

    assert world.services.effects[verb.effect] == 1 or verb.repeatable
    assert verb.done(world.services, id)


WAITS: dict[str, Callable[[Cloud, Any, str], Awaitable[object]]] = {
    "create_snapshot": lambda cloud, made, id: cloud.wait_snapshot(made.id, deadline_s=60),
    "create_volume": lambda cloud, made, id: cloud.wait_volume(made.id, deadline_s=60),
    "retype": lambda cloud, made, id: cloud.wait_retyped(id, "fast", deadline_s=60),
    "attach": lambda cloud, made, id: cloud.wait_attached(SERVER_ID, id, deadline_s=60),
    "detach": lambda cloud, made, id: cloud.wait_detached(SERVER_ID, id, deadline_s=60),
    "delete_snapshot": lambda cloud, made, id: cloud.wait_deleted("snapshot", id, deadline_s=60),
    "delete_volume": lambda cloud, made, id: cloud.wait_deleted("volume", id, deadline_s=60),
}


@pytest.mark.parametrize("fault", ["stale reads", "cut after, then stale reads"])
@pytest.mark.parametrize("name", WAITS)
async def test_a_wait_believes_nothing_that_was_read_from_before_its_request(
    world: World, monkeypatch: pytest.MonkeyPatch, name: str, fault: str
) -> None:
    verb, services = VERBS[name], world.services
    services.at_once = True
    monkeypatch.setattr(world.cloud, "_sleep", world.pauses.patience.sleep)
    monkeypatch.setattr(world.cloud, "_now", world.pauses.patience.now)
    id = verb.begin(services)
    if id in services.volumes:  # what was seen before is what stale reads show
        await world.cloud.volume(id)
    elif id in services.snapshots:
        await world.cloud.snapshot(id)
    await world.cloud.server_volumes(SERVER_ID)
    world.proxy.order(fault, verb.method, verb.path)

    made = await verb.do(world.cloud, id)
    await WAITS[name](world.cloud, made, id)

    happened_once(world, verb, id)


async def test_a_token_that_stays_refused_is_the_person_s_to_mend(world: World) -> None:
    id = world.services.add_volume()
    world.proxy.order("expired token", "POST", r"/snapshots$", times=-1)

    with pytest.raises(VolferryError, match="refused the credentials") as refused:
        await world.cloud.create_snapshot(id, "s", "tr-1")

    assert "token issue" in refused.value.hint
    assert world.services.effects == {}
