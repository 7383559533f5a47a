"""A world on disk that can lose power at any moment, and the processes that work in it.

Things are files: creating one that exists fails, so a duplicate effect is never overlooked. Power
fails before and after every effect, and after every line of the journal.
"""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from volferry.engine import Engine, Patience
from volferry.model import (
    CloudFacts,
    GuestFacts,
    Plan,
    Receipt,
    Server,
    State,
    Transfer,
    Volume,
    Wanted,
)
from volferry.steps.step import Context, Step
from volferry.store import Store

ID = "tr-web-03-abcd"


class PowerCut(BaseException):
    pass


def raise_power_cut() -> None:
    raise PowerCut


def kill_this_process() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


CUTS: dict[str, Callable[[], None]] = {"exception": raise_power_cut, "kill": kill_this_process}


class World:
    def __init__(self, root: Path, cut_at: int = 0, cut: str = "exception") -> None:
        self.folder, self.moments = root / "world", root / "moments"
        self.folder.mkdir(exist_ok=True)
        self.count, self.cut_at, self.cut = 0, cut_at, CUTS[cut]

    def tick(self, what: str) -> None:
        self.count += 1
        with self.moments.open("a") as report:
            report.write(f"{os.getpid()} {self.count} {what}\n")
        if self.count == self.cut_at:
            self.cut()

    def create(self, name: str) -> None:
        self.tick(f"before create {name}")
        (self.folder / name).touch(exist_ok=False)
        self.tick(f"after create {name}")

    def delete(self, name: str) -> None:
        self.tick(f"before delete {name}")
        (self.folder / name).unlink(missing_ok=True)
        self.tick(f"after delete {name}")

    def has(self, name: str) -> bool:
        return (self.folder / name).exists()

    def things(self) -> list[str]:
        return sorted(p.name for p in self.folder.iterdir())


class JournalLosesPower(Store):
    """The store, with power failing after each line of the journal."""

    def __init__(self, where: Path, world: World) -> None:
        super().__init__(where)
        self.world = world

    def intent(self, id: str, step: str) -> None:
        super().intent(id, step)
        self.world.tick(f"after intent {step}")

    def receipt(self, id: str, step: str, receipt: Receipt) -> None:
        super().receipt(id, step, receipt)
        self.world.tick(f"after receipt {step}")

    def undone(self, id: str, step: str) -> None:
        super().undone(id, step)
        self.world.tick(f"after undone {step}")


class Make(Step):
    """Makes its things one after the other, so that a crash can leave a part of them."""

    phase = "seed"
    promise = "{made} exist"

    def __init__(self, name: str, *things: str) -> None:
        self.name, self.things = name, things  # type: ignore[misc]

    async def find(self, ctx: Context) -> Receipt | None:
        whole = all(ctx.cloud.has(t) for t in self.things)
        return {"made": list(self.things)} if whole else None

    async def left_behind(self, ctx: Context) -> Receipt | None:
        made = [t for t in self.things if ctx.cloud.has(t)]
        return {"made": made} if made else None

    async def do(self, ctx: Context) -> Receipt:
        for thing in self.things:
            # Only what has parts looks for itself: of the others ``find`` must have been asked.
            if len(self.things) == 1 or not ctx.cloud.has(thing):
                ctx.cloud.create(thing)
        return {"made": list(self.things)}

    async def undo(self, ctx: Context, receipt: Receipt) -> None:
        for thing in reversed(receipt["made"]):
            if ctx.cloud.has(thing):
                ctx.cloud.delete(thing)


STEPS = [
    Make("snapshot", "snapshot"),
    Make("target", "volume", "mark"),
    Make("attach", "attachment"),
    Make("sync", "data"),
]
THINGS = sorted(thing for step in STEPS for thing in step.things)
FORWARD = 2 * len(THINGS) + 2 * len(STEPS)
BACK = 2 * len(THINGS) + len(STEPS)


class Meet(Step):
    """Ends when everybody else is in the middle of theirs as well."""

    phase = "sync"
    name = "meet"
    promise = "all were there at one time"

    def __init__(self, here: str, there: str) -> None:
        self.here, self.there = here, there

    async def find(self, ctx: Context) -> Receipt | None:
        return None

    async def do(self, ctx: Context) -> Receipt:
        ctx.cloud.create(self.here)
        for _ in range(300):
            if ctx.cloud.has(self.there):
                return {}
            await ctx.sleep(0.1)
        raise AssertionError(f"{self.there} never came")

    async def undo(self, ctx: Context, receipt: Receipt) -> None:
        ctx.cloud.delete(self.here)


def plan(source: str = "vol-1") -> Plan:
    return Plan(
        wanted=Wanted(server="web-03", volumes=("data",)),
        cloud=CloudFacts(
            server=Server(id="srv-1", name="web-03", status="ACTIVE"),
            sources=(Volume(id=source, name="data", size_gib=1, type="old", status="in-use"),),
        ),
        guest=GuestFacts(family="linux"),
    )


def begin(root: Path, id: str = ID, source: str = "vol-1") -> None:
    root.mkdir(exist_ok=True)
    with Store(root / "state") as store:
        store.create(Transfer(id=id, state=State.RUNNING, plan=plan(source), created_at=0.0))


async def live(
    root: Path,
    verb: str,
    cut_at: int = 0,
    cut: str = "exception",
    *,
    id: str = ID,
    steps: list[Step] | None = None,
) -> Transfer:
    """One process's work on the transfer in ``root``: ``carry`` or ``take_back``."""
    world = World(root, cut_at, cut)

    @contextlib.asynccontextmanager
    async def context(transfer: Transfer) -> AsyncIterator[Context]:
        yield Context(transfer.id, transfer.plan, cloud=world)

    with JournalLosesPower(root / "state", world) as store:
        engine = Engine(store, context, steps or STEPS, patience=Patience(first_s=0.01))
        return await (engine.carry(id) if verb == "carry" else engine.take_back(id))


def process(root: str, verb: str, cut_at: int, cut: str) -> None:
    asyncio.run(live(Path(root), verb, cut_at, cut))


def cut_and_go_on(root: str, first: str, cut_at: int, then: str) -> None:
    """The same without a new process: power fails as an exception, and the next engine goes on."""

    async def both() -> None:
        with contextlib.suppress(PowerCut):
            await live(Path(root), first, cut_at)
            raise AssertionError(f"moment {cut_at} never came")
        await live(Path(root), then)

    asyncio.run(both())


def meeting(root: str, id: str, here: str, there: str) -> None:
    asyncio.run(live(Path(root), "carry", id=id, steps=[Meet(here, there)]))
