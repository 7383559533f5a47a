"""A whole transfer, with the real steps, engine and store, that can lose power at any moment.

Cloud and guest are the fakes that the contract suites prove; they live on one clock and go on while
no controller is alive. A *moment* is the instant just before or just after an effect: a call that
changes the cloud, the guest or the journal. A life runs in ``root``, which holds the world and the
state directory; what a kill leaves at a moment is a copy of both, as they are on disk then.
"""

import asyncio
import contextlib
import dataclasses
import os
import pickle
import shutil
import signal
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from tests.fakes.cloud import FakeCloud, When, nothing
from tests.fakes.guest import FakeChannel, FakeGuest, Filesystem
from volferry import errors, planner
from volferry.agent import program
from volferry.engine import Engine, Patience
from volferry.guests.linux import LinuxGuest
from volferry.methods import method, rsync
from volferry.model import Json, Layer, Member, Pass, Receipt, Seed, State, Transfer, Wanted
from volferry.steps import SEQUENCE, Context
from volferry.store import Request, Store

program()
"""Parsed once, before threads begin a world each: where two of them parse at once CPython 3.11 may
end with "AST constructor recursion depth mismatch" (seen; python/cpython issue 106905)."""

ID, UNIT = "tr-web-03-k4q7", "db.service"
UUID = "0c3f7e0a-6d0b-4b0e-8a53-0a64f4bd3c11"


@dataclasses.dataclass(frozen=True)
class Scenario:
    """One kind of transfer. ``away_s``: how long nobody carries it after a kill."""

    name: str
    type: str = "cbs-premium"
    seed: Seed = Seed.AUTO
    fstype: str = "ext4"
    partitions: tuple[int | None, ...] = (None,)
    volumes: tuple[str, ...] = ("data",)
    by_device: bool = False
    away_s: tuple[float, ...] = (0.0,)
    wanted: Json = dataclasses.field(default_factory=dict)
    asked: tuple[str, ...] = ()
    """What the operator has asked for already."""
    method: str = "rsync"
    unseen_s: float = 0.0
    """How long an attach is accepted before anything of it can be seen."""
    array: bool = False
    """An array lies on the volume, which an initramfs puts together by itself."""

    @property
    def standby(self) -> bool:
        """The old volume is kept current after the commit, so that going back loses nothing."""
        return bool(self.wanted.get("keep_standby"))

    def __str__(self) -> str:
        return self.name


class World:
    """The cloud and the guest; everything of them survives the controller."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario, self.cloud = scenario, FakeCloud()
        self.cloud.unseen("attach", scenario.unseen_s)
        self.server = self.cloud.add_server("web-03")
        self.sources = {
            self.cloud.add_volume(name, server=self.server, metadata={"owner": "dba"}): name
            for name in scenario.volumes
        }
        self.other = self.cloud.add_volume("other", server=self.server)
        places = [(v, number) for v in self.sources for number in scenario.partitions]
        self.cloud.content |= {volume_id: {} for volume_id in self.sources}
        self.guest = FakeGuest(self.cloud, self.server)
        self.guest.reads_rules = not scenario.array
        for count, (volume_id, number) in enumerate(places):
            uuid, label = f"{UUID[:-1]}{count}", f"{self.sources[volume_id]}{number or ''}"
            files = {"kept": (b"always", 0.0)}
            self.guest.put(volume_id, number, Filesystem(scenario.fstype, uuid, label, files))
            self.guest.put_into_fstab(volume_id, f"/srv/{label}", number)
            if scenario.by_device:
                table, path = self.guest.files["/etc/fstab"], self.guest.disks[volume_id].path
                self.guest.files["/etc/fstab"] = table.replace(f"UUID={uuid}", path)
        self.guest.serve(UNIT, next(iter(self.guest.mounts)))
        self.cloud.pass_time(2.5)

    # ---- on disk ---------------------------------------------------------------------------------

    def keep(self, root: Path) -> None:
        """As the power leaves it."""
        hooks = self.cloud.around_effect, self.guest.around_effect
        self.cloud.around_effect = self.guest.around_effect = nothing
        (root / "world").write_bytes(pickle.dumps(self))
        self.cloud.around_effect, self.guest.around_effect = hooks

    @staticmethod
    def kept(root: Path) -> "World":
        world: World = pickle.loads((root / "world").read_bytes())
        return world

    # ---- looking at it ---------------------------------------------------------------------------

    def live(self) -> str:
        """Which side the service's data is mounted from, and would be after a boot: all of it.

        With an array it may be neither for as long as the guest waits for its source to move."""
        boot = self.guest.at_boot()
        if self.scenario.array and self.waits():
            assert not self.guest.mounts and sum(map(len, boot.values())) <= 1, boot
            return "neither"
        assert all(len(volumes) == 1 for volumes in boot.values()), f"a boot could mount {boot}"
        sides = {self.side(volumes[0]) for volumes in boot.values()}
        mounted = {self.side(m.volume_id) for m in self.guest.mounts.values()}
        assert len(sides) == 1, f"a boot would mount some of both sides: {boot}"
        assert mounted <= sides, f"mounted is the {mounted}, a boot would mount the {sides}"
        return sides.pop()

    def waits(self) -> bool:
        here = self.guest.installed.get(ID)
        return bool(here and here.job and here.job.phase in ("awaiting", "committing"))

    def side(self, volume_id: str) -> str:
        return "source" if volume_id in self.sources else "target"

    def role(self, volume_id: str) -> str:
        if volume_id == self.other:
            return "other"
        return f"{self.side(volume_id)} {self.cloud._volume(volume_id).name}"

    def written(self) -> int:
        """The service's last write, as its mount shows it."""
        seen = self.guest.seen(self.guest.serving[UNIT])
        return int(seen.get("written", b"0"))

    def picture(self) -> Json:
        """All that is true of the world, but for ids and times. Two worlds can be compared."""
        self.cloud.pass_time(60)
        guest, cloud = self.guest, self.cloud
        names = {id: self.role(id) for id in cloud._volumes}

        def plain(text: str) -> str:
            for id, role in names.items():
                text = text.replace(id, role).replace(id[:20], role).replace(id[9:], role)
            return text

        return {
            "volumes": sorted(
                (
                    names[v.id], v.name, v.type, v.status, v.read_only, len(v.attachments),
                    sorted(v.metadata.items()),
                )
                for v in cloud._volumes.values()
            ),
            "snapshots": [snapshot.name for snapshot in cloud._snapshots.values()],
            "attached": sorted(names[line.volume_id] for line in cloud._lines[self.server]),
            "files": {plain(path): plain(text) for path, text in sorted(guest.files.items())},
            "mounts": {at: (names[m.volume_id], m.partition) for at, m in guest.mounts.items()},
            "read_only": sorted(names[v] for v, disk in guest.disks.items() if disk.read_only),
            "at boot": {at: [names[v] for v in found] for at, found in guest.at_boot().items()},
            "up": guest.units,
            "claims": guest.claims,
            "installed": sorted(guest.installed),
            "lost": guest.acknowledged[UNIT] - self.written(),
            "data": {at: sorted(guest.seen(at).keys() - {"written"}) for at in guest.mounts},
        }  # fmt: skip


class Power:
    """Counts the moments; ``act`` is called at each and may end everything."""

    def __init__(self, act: Callable[[int, str], None]) -> None:
        self.said: list[str] = []
        self._act = act

    def tick(self, what: str) -> None:
        self.said.append(what)
        self._act(len(self.said), what)

    def around(self, when: When, effect: str) -> None:
        self.tick(f"{when} {effect}")

    @contextlib.contextmanager
    def effect(self, what: str) -> Iterator[None]:
        self.tick(f"before {what}")
        yield
        self.tick(f"after {what}")


class Journal(Store):
    """The store, with power failing around everything it says."""

    def __init__(self, where: Path, power: Power) -> None:
        super().__init__(where)
        self._power = power

    def intent(self, id: str, step: str) -> None:
        with self._power.effect(f"intent {step}"):
            super().intent(id, step)

    def receipt(self, id: str, step: str, receipt: Receipt) -> None:
        with self._power.effect(f"receipt {step}"):
            super().receipt(id, step, receipt)

    def undone(self, id: str, step: str) -> None:
        with self._power.effect(f"undone {step}"):
            super().undone(id, step)

    def set_state(self, id: str, state: State, **more: Any) -> None:
        with self._power.effect(f"state {state.value} {more.get('step', '')}".strip()):
            super().set_state(id, state, **more)

    def add_pass(self, id: str, one: Pass) -> None:
        with self._power.effect(f"pass {one.number}"):
            super().add_pass(id, one)

    def taken(self, request: Request) -> None:
        with self._power.effect(f"request {request.what}"):
            super().taken(request)


class Hurried(Context):
    """Its pauses pass on the clock of the fakes."""

    async def sleep(self, seconds: float) -> None:
        await self.cloud._sleep(seconds)


# ---- lives ---------------------------------------------------------------------------------------


def begin(root: Path, scenario: Scenario) -> "End":
    """A transfer that nobody has carried yet, planned by the real planner."""
    root.mkdir(parents=True)
    world = World(scenario)
    plan = asyncio.run(_plan(world))
    assert not plan.refusals, plan.refusals
    with Store(root / "state") as store:
        store.create(Transfer(id=ID, state=State.RUNNING, plan=plan, created_at=0.0))
        for what in scenario.asked:
            store.request(ID, what)
        world.keep(root)
        return look(world, store)


async def _plan(world: World) -> Any:
    scenario = world.scenario
    words = {
        "server": "web-03",
        "volumes": tuple(world.sources),
        "type": scenario.type,
        "seed": scenario.seed,
        "units": ("auto",),
        "settle_s": 1.0,
        "method": scenario.method,
        **scenario.wanted,
    }
    wanted = Wanted.model_validate(words)
    cloud = await world.cloud.facts(wanted.server, wanted.volumes)
    refs = [source.ref for source in cloud.sources]
    guest = await LinuxGuest(FakeChannel(world.guest)).facts(refs, units=wanted.units)
    made = planner.plan(wanted, cloud, guest)
    if scenario.array:
        # The fake guest knows of filesystems only; which disks they lie on is all that matters.
        members = tuple(
            Member(path="/dev/vdb", volume_id=source.id) for source in made.cloud.sources
        )
        array = Layer(kind="md", name="/dev/md0", members=members, above=("/dev/md0",))
        made = made.model_copy(update={"guest": made.guest.model_copy(update={"layers": (array,)})})
    return made


def live(
    root: Path,
    verb: str,
    act: Callable[[World, int, str], None] = lambda world, number, what: None,
    away_s: float = 0.0,
    late_s: float = 0.0,
) -> tuple["End", list[str]]:
    """One process's work on the transfer in ``root``.

    ``verb``: ``carry``, ``take back``, or ``take back anyway``. ``late_s``: what the process before
    had asked the cloud for when it died is carried out so long after this one began. -> (how it
    ended; its moments)
    """
    world = World.kept(root)
    world.cloud.pass_time(away_s)
    world.cloud.opened_again(late_s)
    power = Power(lambda number, what: act(world, number, what))
    world.cloud.around_effect = world.guest.around_effect = power.around

    @contextlib.asynccontextmanager
    async def surroundings(transfer: Transfer) -> AsyncIterator[Context]:
        guest = LinuxGuest(FakeChannel(world.guest), transfer.id)
        await guest.probe()
        yield Hurried(
            transfer.id,
            transfer.plan,
            cloud=world.cloud,
            guest=guest,
            method=method(transfer.plan.method),
        )

    async def carry(engine: Engine, store: Store) -> Transfer:
        if verb != "carry":
            return await engine.take_back(ID, accept_loss=verb == "take back anyway")
        transfer = await engine.carry(ID)
        if transfer.state is State.HELD:
            store.request(ID, "finish")
            transfer = await engine.carry(ID)
        return transfer

    with Journal(root / "state", power) as store:
        # The clock that patience looks at does not move here: only the pauses grow.
        patience = Patience(most_s=1000.0, budget_s=1000.0)
        engine = Engine(store, surroundings, SEQUENCE, patience=patience)
        try:
            # How many passes a transfer makes must not depend on how busy this machine is.
            with mock.patch.object(rsync, "FRESH_S", 0.0):
                ended = asyncio.run(carry(engine, store)).state.value
        except errors.VolferryError as error:
            ended = f"{type(error).__name__}: {error.what}"
        world.keep(root)
        return look(world, store, ended), power.said


def copy_of(root: Path, name: str) -> Path:
    """What a process that is killed now leaves, in a folder of its own."""
    there = root.parent / name
    (there / "state").mkdir(parents=True)
    shutil.copy(root / "world", there / "world")
    for path in (root / "state").rglob("*"):
        to = there / path.relative_to(root)
        if path.is_dir():
            to.mkdir(exist_ok=True)
        elif path.suffix == ".sqlite":
            # Others of this process may be writing: SQLite knows what has been committed.
            with (
                contextlib.closing(sqlite3.connect(path)) as mine,
                contextlib.closing(sqlite3.connect(to)) as copy,
            ):
                mine.backup(copy)
    return there


@dataclasses.dataclass(frozen=True)
class End:
    """How a world stands when nobody works on it."""

    ended: str
    picture: Json
    receipts: tuple[str, ...]
    begun: str | None


def look(world: World, store: Store, ended: str = "") -> End:
    world.live()
    return End(ended, world.picture(), tuple(store.receipts(ID)), store.open_intent(ID))


def recorded(root: Path, verb: str, away_s: float = 0.0) -> tuple[End, list[str]]:
    """A life that leaves at each of its moments, in ``<root>-<number>``, what a kill would."""

    def keep(world: World, number: int, what: str) -> None:
        world.live()
        world.keep(root)
        copy_of(root, f"{root.name}-{number}")

    return live(root, verb, keep, away_s)


def killed(root: str, verb: str, moment: int) -> None:
    """A process that dies of SIGKILL at a moment; run it in one that may."""

    def kill(world: World, number: int, what: str) -> None:
        if number == moment:
            world.keep(Path(root))
            os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(60)

    live(Path(root), verb, kill)
