"""The real program with a stand-in for the clouds, for tests that need a process of its own.

``python cli_driver.py SCENARIO ARGUMENTS…``: ``smooth`` carries a transfer to its end, ``slow``
waits for a request to stop and honours it, ``stuck`` blocks the event loop and honours nothing,
``alive`` carries until the file ``end`` appears in the state directory.
"""

import asyncio
import sys
import time
import types
from typing import Any

import cli_world as world

import volferry
from volferry import errors
from volferry.model import Event, Plan, Progress, State, Transfer, Wanted
from volferry.store import Store

SCENARIO = sys.argv[1] if len(sys.argv) > 1 else ""


class Engine:
    def __init__(self) -> None:
        self.stop = asyncio.Event()

    def request_stop(self) -> None:
        self.stop.set()


async def plan(wanted: Wanted, *, notice: Any) -> Plan:
    notice("asking the cloud")
    await asyncio.sleep(0.05)
    if SCENARIO == "planning":
        print("planning", file=sys.stderr, flush=True)
        await asyncio.sleep(60)
    return world.plan(wanted=wanted)


async def run(one: Plan, store: Store, *, listen: Any) -> Transfer:
    engine = Engine()
    listen.on_engine(engine)
    store.create(world.transfer())
    with store.hold(world.ID):
        if SCENARIO == "smooth":
            await smooth(store, listen)
        elif SCENARIO == "alive":
            await alive(store, listen)
        else:
            tell(store, listen, world.events("snapshot"))
            listen.on_progress(world.PROGRESS)
            print("waiting", file=sys.stderr, flush=True)
            if SCENARIO == "stuck":
                time.sleep(60)
            await engine.stop.wait()
            store.set_state(world.ID, State.STOPPED, step="sync")
            raise errors.Paused(
                "stopped at a safe point in 'sync' as you asked",
                data="what was done is kept; the source is untouched by stopping",
                hint=f"volferry resume {world.ID}",
            )
    return store.transfer(world.ID)


async def smooth(store: Store, listen: Any) -> None:
    for event in world.events():
        tell(store, listen, [event])
        if event.kind == "intent" and event.step == "sync":
            for percent in range(0, 101, 20):
                done = 12 * world.GIB * percent // 100
                report: Progress = world.PROGRESS.model_copy(update={"done_bytes": done})
                store.put_progress(world.ID, report)
                listen.on_progress(report)
                await asyncio.sleep(0.15)
    finish(store)


async def alive(store: Store, listen: Any) -> None:
    tell(store, listen, world.events("sync"))
    print("waiting", file=sys.stderr, flush=True)
    while not (store.root / "end").exists():
        await asyncio.sleep(0.05)
    tell(store, listen, world.events()[len(world.events("sync")) :])
    finish(store)


def finish(store: Store) -> None:
    for step, receipt in world.RECEIPTS.items():
        store.receipt(world.ID, step, receipt)
    for one in world.PASSES:
        store.add_pass(world.ID, one)
    store.set_state(world.ID, State.DONE, step="")


def tell(store: Store, listen: Any, events: list[Event]) -> None:
    for event in events:
        store.event(event)
        listen.on_event(event)


fake = types.ModuleType("volferry.operations")
fake.__dict__.update(plan=plan, run=run)
sys.modules["volferry.operations"] = fake
volferry.__dict__["operations"] = fake

if __name__ == "__main__":
    from volferry.cli import main

    sys.argv = ["volferry", *sys.argv[2:]]
    main()
