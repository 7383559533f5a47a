"""A network between ssh and a guest that can fail.

with Relay(22) as relay:
    config = relay.ssh_config(folder, lab, "web")    # for --ssh-config
    relay.cut(60)          # connections break, and none is had for a minute
    relay.cut()            # for good, until heal()
"""

import asyncio
import contextlib
import re
import subprocess
import time
from pathlib import Path

from lab.api import Lab
from tests.faults.loopback import Loopback

FOR_GOOD = float("inf")


class Relay(Loopback):
    def __init__(self, port: int) -> None:
        super().__init__()
        self._to = port
        self._down_until = 0.0
        self._open: set[asyncio.StreamWriter] = set()

    @classmethod
    def to(cls, lab: Lab, server: str) -> "Relay":
        argv = ["ssh", "-G", "-F", str(lab.ssh_config), server]
        found = re.search(r"^port (\d+)$", subprocess.check_output(argv, text=True), re.M)
        assert found
        return cls(int(found[1]))

    def ssh_config(self, folder: Path, lab: Lab, server: str) -> Path:
        """The lab's own, with the way to this server through the relay."""
        path = folder / "ssh_config"
        path.write_text(
            f"Host {server}\n  Port {self.port}\n  HostKeyAlias [127.0.0.1]:{self._to}\n"
            f"Match all\nInclude {lab.ssh_config}\n"
        )
        return path

    def cut(self, seconds: float = FOR_GOOD) -> None:
        self._down_until = time.monotonic() + seconds
        self._do(self._break())

    def heal(self) -> None:
        self._down_until = 0.0

    async def _break(self) -> None:
        for writer in list(self._open):
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if time.monotonic() < self._down_until:
            writer.transport.abort()
            return
        with contextlib.suppress(OSError):
            there, back = await asyncio.open_connection("127.0.0.1", self._to)
            self._open |= {writer, back}
            try:
                await asyncio.gather(_pump(reader, back), _pump(there, writer))
            finally:
                self._open -= {writer, back}
                back.close()
                writer.close()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    finally:
        writer.close()
