"""Ways to run a program where the volume is. One file each.

A channel runs one program and gives back what it said; it knows nothing of agents or volumes.
Ending a channel's command from here does not end it over there (measured with OpenSSH: killing the
local client leaves the remote command running), so long work is started by the agent as a unit of
its own and polled; a channel carries only short commands, each with a deadline.
"""

import abc
import asyncio
import os
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from volferry import scrub
from volferry.errors import Retry


@dataclass(frozen=True)
class Completed:
    """What a finished command said. ``code`` is its exit status."""

    code: int
    out: bytes
    err: bytes
    elapsed_s: float

    @property
    def text(self) -> str:
        return self.out.decode(errors="surrogateescape")

    @property
    def complaint(self) -> str:
        """The last line on standard error, for an error message."""
        lines = self.err.decode(errors="replace").strip().splitlines()
        return lines[-1].strip() if lines else f"exit status {self.code}"


def quote(argv: Sequence[str]) -> str:
    """One line that a POSIX shell splits into exactly ``argv``. The only quoting there is."""
    return shlex.join(argv)


class Channel(abc.ABC):
    """A place where programs can be run. Use as an asynchronous context manager."""

    where: str
    """For people: ``debian@10.0.0.7`` or ``this machine``."""

    is_root: bool = False
    """Whether the user is root already; otherwise ``root=True`` goes through ``sudo -n``."""

    @abc.abstractmethod
    async def open(self) -> None:
        """Connect, or raise ``Retry`` (not now) or ``Stop`` (a person has to act)."""

    @abc.abstractmethod
    async def close(self) -> None: ...

    @abc.abstractmethod
    def _command(self, argv: Sequence[str]) -> list[str]:
        """The local command that runs ``argv`` there."""

    async def run(
        self, argv: Sequence[str], *, stdin: bytes = b"", timeout_s: float, root: bool = False
    ) -> Completed:
        """Run ``argv`` there, giving it ``stdin``; any exit status is an answer, not an error.

        Raises ``Retry`` when it has not ended within ``timeout_s`` seconds (--answer-timeout).
        """
        if root and not self.is_root:
            argv = ["sudo", "-n", "--", *argv]
        return await run_here(self._command(argv), stdin=stdin, timeout_s=timeout_s)

    async def __aenter__(self) -> Self:
        try:
            await self.open()
        except BaseException:  # a Ctrl-C's too: a half-open one has a process and a folder already
            await self.close()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()


def environment() -> dict[str, str]:
    """What programs that we start may know: nothing that is known to authenticate at a cloud or a
    database.

    ssh hands variables on where a configuration says so (``SendEnv *``), and everybody who may
    look into ``/proc`` as this user reads those of every child. All others are handed on: a
    ``ProxyCommand`` or a ``Match exec`` of the user's may need any of them.
    """
    kept = scrub.without_secrets(os.environ)
    return {k: v for k, v in kept.items() if not k.startswith(("OS_", "VOLFERRY_"))}


async def run_here(
    argv: Sequence[str], *, stdin: bytes = b"", timeout_s: float, flag: str = "--answer-timeout"
) -> Completed:
    """Run a program on this machine with a deadline; it is killed when that has passed."""
    began = time.monotonic()
    process = await asyncio.create_subprocess_exec(
        *argv,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=environment(),
        # Its own session: Ctrl-C at the terminal is for volferry, which stops at a safe point.
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(timeout_s):
            out, err = await process.communicate(stdin)
    except TimeoutError:
        raise Retry(
            f"'{argv[0]}' gave no answer within {timeout_s:.0f} s ({flag})",
            data="nothing was lost: what runs in the guest goes on by itself",
        ) from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode is not None
    return Completed(process.returncode, out, err, time.monotonic() - began)
