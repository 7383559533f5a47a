"""volferry: move a live data volume to another OpenStack volume, with seconds of downtime.

The names below are the public API; everything else may change between versions. They are looked up
when they are first used, because ``volferry --help`` must not wait for a cloud's client library.

>>> import asyncio, volferry
>>> wanted = volferry.Wanted(server="testsrv", volume="sourcevol", type="cbs-premium")
>>> plan = asyncio.run(volferry.plan(wanted))  # doctest: +SKIP
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from volferry.model import Plan, Transfer, Wanted
    from volferry.operations import Listener, cutover, finish, plan, resume, rollback, run, status
    from volferry.store import Store

_HOMES = {
    **dict.fromkeys(("Plan", "Transfer", "Wanted"), "volferry.model"),
    **dict.fromkeys(
        ("Listener", "cutover", "finish", "plan", "resume", "rollback", "run", "status"),
        "volferry.operations",
    ),
    "Store": "volferry.store",
}

__all__ = [
    "Listener",
    "Plan",
    "Store",
    "Transfer",
    "Wanted",
    "cutover",
    "finish",
    "plan",
    "resume",
    "rollback",
    "run",
    "status",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'volferry' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)
