"""Blocking calls of the cloud's client, each in a thread that can be left behind.

The threads are daemons: one that never ends keeps neither the loop nor the process.
"""

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


async def within(limit_s: float, call: Callable[[], T]) -> T:
    """What ``call`` returns or raises. Raises ``TimeoutError`` when it takes longer.

    A socket's own time-out bounds each read, so that an answer which comes byte by byte would be
    waited for without end.
    """
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[T] = loop.create_future()

    def tell(outcome: Callable[[], None]) -> None:
        with contextlib.suppress(RuntimeError):  # nobody waits any more: the loop is closed
            loop.call_soon_threadsafe(lambda: None if ended.done() else outcome())

    def work() -> None:
        try:
            made = call()
        except BaseException as error:  # noqa: BLE001 - raised again where it is awaited
            fault = error
            tell(lambda: ended.set_exception(fault))
        else:
            tell(lambda: ended.set_result(made))

    threading.Thread(target=work, name="volferry-cloud", daemon=True).start()
    async with asyncio.timeout(limit_s):
        return await ended
