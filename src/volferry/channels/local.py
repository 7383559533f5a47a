"""For use on the server itself (``--local``): the same agent, without a network in between."""

import os
from collections.abc import Sequence

from volferry.channels import Channel


class Local(Channel):
    where = "this machine"

    def __init__(self) -> None:
        self.is_root = os.geteuid() == 0

    async def open(self) -> None:
        """Nothing to connect."""

    async def close(self) -> None:
        """Nothing to disconnect."""

    def _command(self, argv: Sequence[str]) -> list[str]:
        return list(argv)
