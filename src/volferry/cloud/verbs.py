"""What a step may ask of the cloud: the few verbs, their promises and their errors.

Steps are written against ``CloudVerbs``; ``Cloud`` (a real OpenStack) and the tests' ``FakeCloud``
both satisfy it, and one contract suite proves it on both. Every verb can be said twice: it looks at
the cloud before it acts. None needs more than an ordinary member's rights.

Any verb may raise ``Retry`` when the cloud could not be asked or stayed busy longer than the verb's
own patience, and ``NotFound`` when the object that it was given does not exist.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, Protocol, TypeAlias

from volferry.errors import Stop
from volferry.model import (
    CloudFacts,
    Progress,
    Server,
    ServerVolume,
    Snapshot,
    Volume,
)

OnProgress: TypeAlias = Callable[[Progress], None]
"""Called after every poll of a wait; it must return at once and never raises."""


class TypeNotReachable(Stop):
    """The cloud cannot make a volume of this type from that snapshot in one go.

    Cinder pins a volume to its snapshot's back end. The way on: create it with the source's type
    and ``retype`` it before it is attached, or start from a blank volume.
    """


class CloudVerbs(Protocol):
    @property
    def api_calls(self) -> int:
        """HTTP requests sent so far, those for authentication and discovery included."""

    def sure_in_s(self) -> float:
        """Seconds until no request that was sent before, by a process that died too, can still be
        carried out. What is not there by then will not come."""

    # ---- looking -----------------------------------------------------------------------------

    async def facts(self, server: str, volumes: Sequence[str]) -> CloudFacts:
        """All that the cloud says about volumes in a server, each given by id or by name.

        Changes nothing. An id wins over a name. Raises ``Usage`` when a name is unknown (with
        similar names) or carried by two objects (with both ids, their status and creation date),
        and when one volume is named twice.
        """

    async def volume(self, volume_id: str) -> Volume: ...

    async def snapshot(self, snapshot_id: str) -> Snapshot: ...

    async def server(self, server_id: str) -> Server: ...

    async def server_volumes(self, server_id: str) -> tuple[ServerVolume, ...]: ...

    async def volume_if_any(self, volume_id: str) -> Volume | None:
        """The volume; None when it was deleted. That is believed of one that stays unknown for
        ``poller.SUSPECT_S`` and is not in the list of all.
        """

    async def server_if_any(self, server_id: str) -> Server | None:
        """The server; None when it was deleted, as for ``volume_if_any``."""

    async def servers(self) -> tuple[Server, ...]:
        """All servers of the project."""

    async def volumes(self) -> tuple[Volume, ...]:
        """All volumes of the project."""

    async def snapshots(self) -> tuple[Snapshot, ...]:
        """All snapshots of the project's volumes."""

    async def find_volume(self, mark: str, source_id: str = "") -> Volume | None:
        """The volume whose metadata carries ``mark`` under ``model.MARK``, or None.

        ``source_id``: the one that carries that as well, under ``model.SOURCE``. Raises ``Doubt``
        naming them when there are several.
        """

    async def find_snapshot(self, mark: str, source_id: str = "") -> Snapshot | None:
        """The snapshot that carries ``mark``, or None; the rest as for ``find_volume``."""

    # ---- making ------------------------------------------------------------------------------

    async def create_snapshot(self, volume_id: str, name: str, mark: str) -> Snapshot:
        """Ask for a snapshot of a volume, in use or not; an own one of it is returned instead.

        Returns at once, usually with status ``creating``: see ``wait_snapshot``. It carries
        ``mark`` under ``model.MARK`` and the volume's id under ``model.SOURCE``. Raises ``Stop``
        with the figures when a quota is exceeded.
        """

    async def create_volume(
        self,
        name: str,
        *,
        size_gib: int,
        type: str,
        mark: str,
        source_id: str,
        snapshot_id: str | None = None,
        availability_zone: str | None = None,
        description: str = "",
        metadata: Mapping[str, str] | None = None,
    ) -> Volume:
        """Ask for a volume, blank or from a snapshot; an own one for this source is returned.

        Returns at once, usually with status ``creating``: see ``wait_volume``. ``mark`` and
        ``source_id`` are added to ``metadata`` under ``model.MARK`` and ``model.SOURCE``. Raises
        ``TypeNotReachable`` when the snapshot's back end does not serve ``type``, ``Stop`` with the
        figures when a quota is exceeded.
        """

    async def retype(self, volume_id: str, type: str) -> None:
        """Ask for another type, moving the data when needed; nothing when it has it already.

        That the cloud accepts it says nothing: only ``wait_retyped`` does.
        """

    async def attach(
        self,
        server_id: str,
        volume_id: str,
        *,
        delete_on_termination: bool = False,
        tag: str = "",
    ) -> None:
        """Ask for a volume in a server, without a device name; nothing when it is there already.

        Raises ``Doubt`` when it is attached to another server. Then: ``wait_attached``.
        """

    async def detach(self, server_id: str, volume_id: str) -> None:
        """Ask the guest to let go of a volume; nothing when it is gone or going already, or when
        the server is not there any more.

        Accepted is not done: only ``wait_detached`` says so.
        """

    async def set_read_only(self, volume_id: str, read_only: bool) -> None:
        """Let Cinder show the volume read-only from its next attachment on, or no longer.

        Raises ``Stop`` when the volume is not ``available``: Cinder refuses it then (400).
        """

    async def update_volume(
        self,
        volume_id: str,
        *,
        name: str | None = None,
        description: str | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> Volume:
        """Set what is given; metadata keys that are not given stay as they are."""

    async def delete_snapshot(self, snapshot_id: str, mark: str) -> None:
        """Ask for its deletion; nothing when it is gone. ``Doubt`` when it lacks ``mark``."""

    async def delete_volume(self, volume_id: str, mark: str) -> None:
        """Ask for its deletion; nothing when it is gone. ``Doubt`` when it lacks ``mark``.

        Raises ``Stop`` when it is attached.
        """

    # ---- waiting -----------------------------------------------------------------------------
    # All wait with one poller: no state is kept between polls, so a resumed process just polls on.
    # They raise ``Stop`` when ``deadline_s`` has passed (naming ``flag``), or when the status says
    # that it failed or went back, with the reason that the cloud itself gives.

    async def wait_snapshot(
        self,
        snapshot_id: str,
        *,
        deadline_s: float,
        flag: str = "--snapshot-timeout",
        progress: OnProgress | None = None,
    ) -> Snapshot:
        """The snapshot, once it is ``available``."""

    async def wait_volume(
        self,
        volume_id: str,
        *,
        until: Literal["available", "in-use"] = "available",
        deadline_s: float,
        flag: str = "--create-timeout",
        progress: OnProgress | None = None,
    ) -> Volume:
        """The volume, once it has the status ``until``."""

    async def wait_retyped(
        self,
        volume_id: str,
        type: str,
        *,
        deadline_s: float,
        flag: str = "--retype-timeout",
        progress: OnProgress | None = None,
    ) -> Volume:
        """The volume, once it has the type ``type`` and is at rest.

        Raises ``Stop`` when the status came back and the type is the old one: a retype that has to
        move data fails after it was accepted, and Cinder then just returns the status.
        """

    async def wait_attached(
        self,
        server_id: str,
        volume_id: str,
        *,
        deadline_s: float,
        flag: str = "--attach-timeout",
        progress: OnProgress | None = None,
    ) -> ServerVolume:
        """Its line in the server's list, once both Cinder and Nova say that it is attached."""

    async def wait_detached(
        self,
        server_id: str,
        volume_id: str,
        *,
        deadline_s: float,
        flag: str = "--detach-timeout",
        progress: OnProgress | None = None,
    ) -> Volume:
        """The volume, once it is ``available`` and no longer in the server's list.

        Raises ``Stop`` when it is ``in-use`` again: the guest refused to let go.
        """

    async def wait_deleted(
        self,
        kind: Literal["volume", "snapshot"],
        id: str,
        *,
        deadline_s: float,
        flag: str = "--delete-timeout",
        progress: OnProgress | None = None,
    ) -> None:
        """Return once the cloud no longer knows it; ``Stop`` at ``error_deleting``."""

    async def close(self) -> None:
        """Let go of the connections; the credentials stay valid."""
