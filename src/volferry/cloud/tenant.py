"""A real OpenStack behind the verbs of ``CloudVerbs``.

Every verb looks before it acts, and after a lost answer looks again, by our own mark, before it
asks a second time.

Blocking requests run in threads, so that waiting for one transfer never holds up another. A thread
cannot be interrupted: a cancelled verb may still be carried out, which is what the mark is for.
"""

import asyncio
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from volferry.cloud import lookup, nouns
from volferry.cloud.asking import Asking, Service, Wire, made, url_id
from volferry.cloud.poller import Waits
from volferry.cloud.retries import Patience
from volferry.cloud.threads import within
from volferry.cloud.verbs import CloudVerbs
from volferry.errors import Doubt, NotFound, Retry, Stop
from volferry.model import (
    MARK,
    SOURCE,
    CloudFacts,
    Server,
    ServerVolume,
    Snapshot,
    Volume,
    VolumeType,
)

SNAPSHOT_IN_USE = (3, 66)
"""From here on ``force`` is not needed for a volume in use, and ``force: false`` is an error."""
MESSAGES = (3, 5)
DELETE_ON_TERMINATION = (2, 79)
TAGGED_ATTACH = (2, 49)
CONNECTS = 5
"""Requests to connect with, and so many --answer-timeout for all of them."""


class Cloud(Waits):
    """One project in one region of one cloud."""

    def __init__(self, wire: Wire, patience: Patience | None = None) -> None:
        self._wire = wire
        self._ask = Asking(wire, patience or Patience())

    @classmethod
    async def connect(
        cls,
        os_cloud: str = "",
        region: str = "",
        config_file: str = "",
        *,
        answer_s: float = Patience.budget_s,
    ) -> "Cloud":
        """Authenticate as every OpenStack user does: clouds.yaml, OS_CLOUD or OS_* variables.

        Sends 4 or 5 requests. ``answer_s``: how long one answer may take, and how long a verb asks
        again by itself. Raises ``Usage`` for what is wrong with the credentials, the cloud's
        or the region's name (saying which exist), ``Stop`` for TLS, ``Retry`` when nobody answers.
        """
        # Here, because importing openstacksdk takes 0.65 s and most commands never need it.
        from volferry.cloud.session import Session  # noqa: PLC0415

        limit_s = CONNECTS * answer_s
        connect = partial(Session.connect, os_cloud, region, config_file, answer_s)
        try:
            wire = await within(limit_s, connect)
        except TimeoutError:
            raise Retry(
                f"the cloud gave no whole answers within {limit_s:g} s while its services were "
                f"looked up, {CONNECTS} times what each read has (--answer-timeout)",
                data="nothing was asked of the cloud",
                hint="check the network, and what lies between here and the cloud",
            ) from None
        return cls(wire, Patience(budget_s=answer_s))

    async def close(self) -> None:
        await asyncio.to_thread(self._wire.close)

    @property
    def api_calls(self) -> int:
        return self._wire.api_calls

    def sure_in_s(self) -> float:
        return self._ask.sure_in_s()

    @property
    def home(self) -> tuple[str, str]:
        """The project and the region, whatever they are called here."""
        return self._wire.project_id, self._wire.region

    # ---- looking -----------------------------------------------------------------------------

    async def volume(self, volume_id: str) -> Volume:
        raw = await self._ask.get("block-storage", f"/volumes/{url_id(volume_id)}", "volume")
        return nouns.volume(raw)

    async def snapshot(self, snapshot_id: str) -> Snapshot:
        raw = await self._ask.get("block-storage", f"/snapshots/{url_id(snapshot_id)}", "snapshot")
        return nouns.snapshot(raw)

    async def server(self, server_id: str) -> Server:
        return nouns.server(
            await self._ask.get("compute", f"/servers/{url_id(server_id)}", "server")
        )

    async def server_volumes(self, server_id: str) -> tuple[ServerVolume, ...]:
        path = f"/servers/{url_id(server_id)}/os-volume_attachments"
        return tuple(
            map(nouns.server_volume, await self._ask.get("compute", path, "volumeAttachments"))
        )

    async def facts(self, server: str, volumes: Sequence[str]) -> CloudFacts:
        found_server, *found_volumes = await asyncio.gather(
            self._named("compute", "server", server),
            *(self._named("block-storage", "volume", volume) for volume in volumes),
        )
        lookup.distinct(volumes, [found["id"] for found in found_volumes])
        lines, types, (quota, quota_error) = await asyncio.gather(
            self.server_volumes(found_server["id"]), self._types(), self._ask.quota()
        )
        known = nouns.server(found_server)
        return CloudFacts(
            cloud=self._wire.cloud,
            region=self._wire.region,
            project_id=self._wire.project_id,
            block_storage_version=self._wire.version("block-storage"),
            compute_version=self._wire.version("compute"),
            server=known.model_copy(update={"root_device": nouns.root_device(known, lines)}),
            sources=tuple(map(nouns.volume, found_volumes)),
            server_volumes=lines,
            types=types,
            quota=quota,
            quota_error=quota_error,
        )

    async def servers(self) -> tuple[Server, ...]:
        return tuple(map(nouns.server, await self._ask.list("compute", "/servers/detail")))

    async def volumes(self) -> tuple[Volume, ...]:
        found = await self._ask.list("block-storage", "/volumes/detail")
        return tuple(map(nouns.volume, found))

    async def snapshots(self) -> tuple[Snapshot, ...]:
        found = await self._ask.list("block-storage", "/snapshots/detail")
        return tuple(map(nouns.snapshot, found))

    async def find_volume(self, mark: str, source_id: str = "") -> Volume | None:
        return only(await self.volumes(), mark, source_id)

    async def find_snapshot(self, mark: str, source_id: str = "") -> Snapshot | None:
        return only(await self.snapshots(), mark, source_id)

    # ---- making ------------------------------------------------------------------------------

    async def create_snapshot(self, volume_id: str, name: str, mark: str) -> Snapshot:
        wanted: dict[str, Any] = {
            "volume_id": volume_id,
            "name": name,
            "metadata": {MARK: mark, SOURCE: volume_id},
        }
        if not self._wire.supports("block-storage", SNAPSHOT_IN_USE):
            wanted["force"] = True

        async def post() -> Snapshot:
            answer = await self._ask.send(
                "block-storage",
                "POST",
                "/snapshots",
                body={"snapshot": wanted},
                what=f"create a snapshot of volume '{volume_id}'",
            )
            return nouns.snapshot(made(answer, "snapshot", "block-storage"))

        return await self._ask.once(lambda: self.find_snapshot(mark, volume_id), post)

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
        wanted: dict[str, Any] = {
            "name": name,
            "size": size_gib,
            "volume_type": type,
            "description": description,
            "metadata": {**(metadata or {}), MARK: mark, SOURCE: source_id},
        }
        if snapshot_id:
            wanted["snapshot_id"] = snapshot_id
        if availability_zone:
            wanted["availability_zone"] = availability_zone

        async def post() -> Volume:
            answer = await self._ask.send(
                "block-storage",
                "POST",
                "/volumes",
                body={"volume": wanted},
                what=f"create volume '{name}' of {size_gib} GiB and type '{type}'",
            )
            return nouns.volume(made(answer, "volume", "block-storage"))

        return await self._ask.once(lambda: self.find_volume(mark, source_id), post)

    async def retype(self, volume_id: str, type: str) -> None:
        async def done() -> bool | None:
            seen = await self.volume(volume_id)
            return True if seen.type == type or seen.status == "retyping" else None

        async def post() -> bool:
            await self._action(
                volume_id,
                # openstacksdk's default is ``never``: then nothing but an in-place retype works.
                {"os-retype": {"new_type": type, "migration_policy": "on-demand"}},
                what=f"retype volume '{volume_id}' to '{type}'",
            )
            return True

        await self._ask.once(done, post)

    async def attach(
        self,
        server_id: str,
        volume_id: str,
        *,
        delete_on_termination: bool = False,
        tag: str = "",
    ) -> None:
        wanted: dict[str, Any] = {"volumeId": volume_id}
        if self._wire.supports("compute", DELETE_ON_TERMINATION):
            wanted["delete_on_termination"] = delete_on_termination
        elif delete_on_termination:
            raise Stop(
                f"compute {self._wire.version('compute') or '2.1'} cannot attach a volume that is "
                "deleted with its server: needs 2.79",
                data="nothing was attached",
                hint="clear delete_on_termination of the source's attachment first",
            )
        if tag and self._wire.supports("compute", TAGGED_ATTACH):
            wanted["tag"] = tag

        async def there() -> bool | None:
            seen = await self.volume(volume_id)
            elsewhere = [a.server_id for a in seen.attachments if a.server_id != server_id]
            if elsewhere and not seen.multiattach:
                raise Doubt(
                    f"volume '{volume_id}' is attached to server '{elsewhere[0]}', "
                    f"expected it free for server '{server_id}'",
                    data="nothing was attached",
                )
            if seen.status in ("reserved", "attaching"):
                # Somebody asked already. From compute 2.101 on the server's list shows it only
                # later; whether it is for this server is what wait_attached finds out.
                return True
            lines = await self.server_volumes(server_id)
            return True if any(v.volume_id == volume_id for v in lines) else None

        async def post() -> bool:
            try:
                await self._ask.send(
                    "compute",
                    "POST",
                    f"/servers/{url_id(server_id)}/os-volume_attachments",
                    body={"volumeAttachment": wanted},
                    what=f"attach volume '{volume_id}' to server '{server_id}'",
                )
            except Stop as refused:
                # The first of two requests can become visible between the look and the second.
                if "already attached" not in refused.what or not await there():
                    raise
            return True  # from 2.101 on the answer has no body; wait_attached asks anyway

        await self._ask.once(there, post)

    async def detach(self, server_id: str, volume_id: str) -> None:
        async def leaving() -> bool | None:
            if (await self.volume(volume_id)).status == "detaching":
                return True
            try:
                lines = await self.server_volumes(server_id)
            except NotFound:
                if await self.server_if_any(server_id) is None:
                    return True  # it was deleted, and let go of all that it had
                lines = await self.server_volumes(server_id)
            return None if any(v.volume_id == volume_id for v in lines) else True

        await self._ask.delete(
            "compute",
            f"/servers/{url_id(server_id)}/os-volume_attachments/{url_id(volume_id)}",
            find=leaving,
            what=f"detach volume '{volume_id}' from server '{server_id}'",
        )

    async def set_read_only(self, volume_id: str, read_only: bool) -> None:
        await self._action(
            volume_id,
            {"os-update_readonly_flag": {"readonly": read_only}},
            what=f"set volume '{volume_id}' {'read-only' if read_only else 'read-write'}",
            repeatable=True,
        )

    async def update_volume(
        self,
        volume_id: str,
        *,
        name: str | None = None,
        description: str | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> Volume:
        texts = {"name": name, "description": description}
        change = {k: v for k, v in texts.items() if v is not None}
        path, what = f"/volumes/{url_id(volume_id)}", f"update volume '{volume_id}'"
        if change:
            await self._ask.send("block-storage", "PUT", path, body={"volume": change}, what=what)
        if metadata:
            # POST merges, PUT would remove the user's other keys.
            body = {"metadata": dict(metadata)}
            await self._ask.send(
                "block-storage",
                "POST",
                f"{path}/metadata",
                body=body,
                what=what,
                repeatable=True,
            )
        return await self.volume(volume_id)

    async def delete_snapshot(self, snapshot_id: str, mark: str) -> None:
        await self._ask.delete(
            "block-storage",
            f"/snapshots/{url_id(snapshot_id)}",
            find=lambda: self._going(self.snapshot(snapshot_id), mark),
            what=f"delete snapshot '{snapshot_id}'",
        )

    async def delete_volume(self, volume_id: str, mark: str) -> None:
        await self._ask.delete(
            "block-storage",
            f"/volumes/{url_id(volume_id)}",
            find=lambda: self._going(self.volume(volume_id), mark),
            what=f"delete volume '{volume_id}'",
        )

    @staticmethod
    async def _going(look: Awaitable[Volume | Snapshot], mark: str) -> bool | None:
        """True when it is gone or being deleted; ``Doubt`` when it is not ours."""
        try:
            seen = await look
        except NotFound:
            return True
        must_carry(mark, seen)
        return True if seen.status == "deleting" else None

    # ---- reasons, quota, names ---------------------------------------------------------------

    async def _reason(self, object_id: str) -> str:
        if not self._wire.supports("block-storage", MESSAGES):
            return ""
        found = await self._ask.get(
            "block-storage", "/messages", "messages", params={"resource_uuid": object_id}
        )
        ours = [m for m in found if m.get("resource_uuid") == object_id]
        newest = max(ours, key=lambda m: m.get("created_at") or "", default=None)
        if newest is None:
            return ""
        told = f"the cloud's message of {newest['created_at']}: {newest['user_message']}"
        return told + (f" ({newest['request_id']})" if newest.get("request_id") else "")

    async def _server_reason(self, server_id: str, action: str) -> str:
        path = f"/servers/{url_id(server_id)}/os-instance-actions"
        actions = await self._ask.get("compute", path, "instanceActions")
        those = [a for a in actions if a.get("action") == action]
        newest = max(those, key=lambda a: a.get("start_time") or "", default=None)
        if newest is None or not newest.get("message"):
            return ""
        # Nova tells members no more than "Error"; the request id is what an operator asks for.
        return (
            f"the server's last '{action}' of {newest.get('start_time')} ended in: "
            f"{newest['message']} ({newest.get('request_id')})"
        )

    async def _action(
        self, volume_id: str, body: Mapping[str, Any], *, what: str, repeatable: bool = False
    ) -> None:
        path = f"/volumes/{url_id(volume_id)}/action"
        await self._ask.send(
            "block-storage", "POST", path, body=body, what=what, repeatable=repeatable
        )

    async def _types(self) -> tuple[VolumeType, ...]:
        found = await self._ask.list("block-storage", "/types", key="volume_types")
        return tuple(map(nouns.volume_type, found))

    async def _named(self, service: Service, kind: lookup.Kind, wanted: str) -> dict[str, Any]:
        """The server or volume of this id or name, in the service's own JSON."""
        if lookup.may_be_id(wanted):
            try:
                found: dict[str, Any] = await self._ask.get(
                    service, f"/{kind}s/{url_id(wanted)}", kind
                )
            except NotFound:
                pass  # then it is a name that looks like an id
            else:
                return found
        every = await self._ask.list(service, f"/{kind}s/detail")
        return lookup.choose(kind, wanted, every)


def must_carry(mark: str, seen: Volume | Snapshot) -> None:
    """Raise ``Doubt`` when it is not ours to delete."""
    carried = seen.metadata.get(MARK, "")
    kind = "volume" if isinstance(seen, Volume) else "snapshot"
    if not mark or carried != mark:
        raise Doubt(
            f"{kind} '{seen.id}' is not ours to delete: it carries {MARK}='{carried}', "
            f"expected '{mark}'",
            data="nothing was deleted",
            hint="look at its metadata: who made it, and is it still needed?",
        )


M = TypeVar("M", Volume, Snapshot)


def only(every: Iterable[M], mark: str, source_id: str = "") -> M | None:
    """The one that carries the mark (and the source's id), or None; ``Doubt`` for several."""
    found = [
        one
        for one in every
        if one.metadata.get(MARK) == mark and source_id in ("", one.metadata.get(SOURCE))
    ]
    if len(found) > 1:
        listed = ", ".join(f"{one.id} ({one.name}, {one.status})" for one in found)
        raise Doubt(
            f"{len(found)} {type(found[0]).__name__.lower()}s carry {MARK}='{mark}', expected one",
            data=f"they are: {listed}; none was touched",
            hint="delete the one that is not used, after a look at its attachments",
        )
    return found[0] if found else None


if TYPE_CHECKING:

    def _proof(real: Cloud) -> CloudVerbs:
        return real
