"""The guest of a server that somebody deleted: with it went all that was ever in it."""

from typing import NoReturn

from volferry.errors import Stop
from volferry.model import Json, Receipt, Server


class DeletedGuest:
    """Nothing is left in it to take back, and nothing can be asked of it any more.

    So that a transfer whose target was committed can be ended, and one that had not come so far be
    taken back; any other verb of a guest raises ``Stop``.
    """

    is_there = False

    def __init__(self, server: Server, transfer_id: str) -> None:
        self._server, self._transfer = server, transfer_id

    async def not_on(self, scene: object, side: str, but: object = ()) -> str:
        del scene, side, but  # where nothing is mounted nothing is mounted wrongly
        return ""

    async def last_job(self) -> str:
        return ""

    async def mirror_status(self) -> Json:
        return {"state": "absent", "progress": None}

    async def stop_mirror(self) -> None:
        """It ended with its server."""

    async def stop_job(self) -> None:
        """It ended with its server."""

    async def uninstall(self) -> Receipt:
        return {"removed": [], "left": []}

    def __getattr__(self, verb: str) -> NoReturn:
        if verb.startswith("_"):
            raise AttributeError(verb)
        raise Stop(
            f"server '{self._server.name}' ({self._server.id}) was deleted: its guest cannot be "
            f"asked for '{verb}'",
            data="no volume was touched by this; nothing of ours is left in the guest",
            hint=f"volferry rollback {self._transfer}   removes what was made",
        )
