"""The command, killed just before or just after one effect: ``cut_command.py MOMENT WORDS…``.

A moment is ``before`` or ``after``, and an effect: a verb of the cloud (``create_volume``), one of
the agent (``start cutover``), or a line of the journal (``intent attach``); the first of its name.
$VOLFERRY_MOMENTS names a file that all moments are written to as they come.
"""

import functools
import os
import runpy
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

CLOUD = (
    "create_snapshot", "create_volume", "retype", "attach", "detach", "set_read_only",
    "delete_snapshot", "delete_volume",
)  # fmt: skip
GUEST = ("install", "apply", "start", "stop", "tell", "uninstall")
JOURNAL = ("intent", "receipt", "undone")


MOMENT = sys.argv[1] if len(sys.argv) > 1 else ""


def tick(moment: str) -> None:
    if "VOLFERRY_MOMENTS" in os.environ:
        with open(os.environ["VOLFERRY_MOMENTS"], "a") as said:
            said.write(moment + "\n")
    if moment == MOMENT:
        os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)


def around(effect: str, work: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    @functools.wraps(work)
    async def cut(*args: Any, **more: Any) -> Any:
        tick(f"before {effect}")
        done = await work(*args, **more)
        tick(f"after {effect}")
        return done

    return cut


def cut_cloud() -> None:
    from volferry.cloud import Cloud  # noqa: PLC0415 - after the arguments were looked at

    for verb in CLOUD:
        setattr(Cloud, verb, around(verb, getattr(Cloud, verb)))


def cut_guest() -> None:
    from volferry.guests.linux import LinuxGuest  # noqa: PLC0415

    ask = LinuxGuest._ask

    async def cut(self: LinuxGuest, verb: str, request: Any, *args: Any, **more: Any) -> Any:
        if verb not in GUEST:
            return await ask(self, verb, request, *args, **more)
        said_to = request.get("message", {}).get("do", "")
        effect = f"{verb} {request.get('job') or said_to}".strip()
        return await around(effect, ask)(self, verb, request, *args, **more)

    setattr(LinuxGuest, "_ask", cut)  # noqa: B010 - mypy knows it as a method


def cut_journal() -> None:
    from volferry.store import Store  # noqa: PLC0415

    def cut(kind: str, write: Callable[..., None]) -> Callable[..., None]:
        def done(self: Store, id: str, step: str, *args: Any) -> None:
            tick(f"before {kind} {step}")
            write(self, id, step, *args)
            tick(f"after {kind} {step}")

        return done

    for kind in JOURNAL:
        setattr(Store, kind, cut(kind, getattr(Store, kind)))


if __name__ == "__main__":
    cut_cloud()
    cut_guest()
    cut_journal()
    del sys.argv[1]
    runpy.run_module("volferry", run_name="__main__")
