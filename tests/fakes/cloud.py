"""An OpenStack in memory: the verbs of ``CloudVerbs`` with time, faults and power cuts.

The contract suite runs on it and on a real cloud, so what it does is what real services did.

Time is its own: every request takes ``REQUEST_S``, a wait's pauses pass at once, and an operation
goes through its intermediate states on that clock. The same calls therefore always see the same.

    cloud = FakeCloud()
    server = cloud.add_server("web-03")
    source = cloud.add_volume("data", size_gib=1, server=server)
    cloud.fail("create_volume")               # the next one ends in status 'error'
    cloud.ignore("retype")                    # accepted, and silently not done
    cloud.slow("detach", 30)                  # takes that long
    cloud.around_effect = cut_power           # called before and after every effect; may raise
    cloud.opened_again(late_s=3)              # by another process, after such a cut before an
                                              # effect, of which the request had been sent already

It can be pickled in the middle of anything, as a world that is kept for a later process.
"""

import asyncio
import contextlib
import dataclasses
import uuid
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from volferry.cloud import CloudVerbs, TypeNotReachable, lookup, nouns
from volferry.cloud.poller import Waits
from volferry.cloud.tenant import must_carry, only
from volferry.errors import Doubt, NotFound, Stop
from volferry.model import (
    MARK,
    SOURCE,
    Attachment,
    CloudFacts,
    Quota,
    Server,
    ServerVolume,
    Snapshot,
    Volume,
    VolumeType,
)

REQUEST_S = 0.05
REQUEST_ID = "req-fa4e0000-0000-4000-8000-000000000000"
"""What both services say that a failed operation was asked for with."""
OPERATION_S = 1.0
SURE_S = 15.0
"""``Patience.sure_s`` of the real one."""
DISKS_MAX = 26
"""``disk_device_limit`` of virtio in Nova's libvirt driver, the root disk included."""

When = Literal["before", "after"]
Outcome = Literal["done", "failed", "ignored"]


@dataclasses.dataclass(frozen=True)
class Call:
    """One verb that changes something, as it was asked for, in order."""

    verb: str
    object_id: str
    details: Mapping[str, Any]


def nothing(when: When, effect: str) -> None:
    """The power holds."""


@dataclasses.dataclass
class Orders:
    """What a test ordered for one operation. A count of -1 is for ever."""

    delay_s: float = OPERATION_S
    unseen_s: float = 0.0
    fail: int = 0
    ignore: int = 0
    refuse: Exception | None = None


@dataclasses.dataclass(frozen=True)
class Type:
    id: str
    name: str
    back_end: str
    encrypted: bool


class FakeCloud(Waits):
    def __init__(self, *, back_ends: Mapping[str, str] | None = None) -> None:
        self.clock = 1_000_000.0
        self.calls: list[Call] = []
        self.around_effect: Callable[[When, str], None] = nothing
        self.on_attached: list[Callable[[str, str], None]] = []
        self.on_detached: list[Callable[[str, str], None]] = []
        self.content: dict[str, Any] = {}
        """By volume or snapshot id: whatever a test wants to see copied with the data."""
        self.quota_limits: dict[str, int] = {"volumes": 10, "snapshots": 10, "gigabytes": 1000}
        self.quota_error = ""
        self._sent = 0
        self._sure_at = self.clock
        self._under_way: Callable[[], Any] | None = None
        self._ids = 0
        self._orders: dict[str, Orders] = {}
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._volumes: dict[str, Volume] = {}
        self._snapshots: dict[str, Snapshot] = {}
        self._servers: dict[str, Server] = {}
        self._lines: dict[str, list[ServerVolume]] = {}
        self._created: dict[str, str] = {}
        self._messages: dict[str, str] = {}
        self._failed_actions: dict[tuple[str, str], str] = {}
        self._types: dict[str, Type] = {}
        names = back_ends or {
            "cbs-standard": "standard",
            "cbs-standard-iops": "standard",
            "cbs-premium": "premium",
        }
        for name, back_end in names.items():
            self.add_type(name, back_end)

    # ---- what a test orders ------------------------------------------------------------------

    def add_type(self, name: str, back_end: str, *, encrypted: bool = False) -> str:
        self._types[name] = Type(self._new_id(), name, back_end, encrypted)
        return self._types[name].id

    def add_server(self, name: str, **fields: Any) -> str:
        server_id = self._new_id()
        fields = {"status": "ACTIVE", "boots_from_volume": False, **fields}
        self._servers[server_id] = Server(id=server_id, name=name, **fields)
        self._lines[server_id] = []
        return server_id

    def add_volume(
        self,
        name: str,
        *,
        size_gib: int = 1,
        type: str = "cbs-standard",
        server: str = "",
        delete_on_termination: bool = False,
        **fields: Any,
    ) -> str:
        volume_id = self._new_id()
        fields = {"status": "available", "availability_zone": "nova", **fields}
        encrypted = self._types[type].encrypted
        self._volumes[volume_id] = Volume(
            id=volume_id, name=name, size_gib=size_gib, type=type, encrypted=encrypted, **fields
        )
        self.content[volume_id] = None
        if server:
            self._line_up(server, volume_id, delete_on_termination, "")
            self._attached(server, volume_id)
        return volume_id

    def set_status(self, object_id: str, status: str) -> None:
        """As an operator's reset-state would."""
        if object_id in self._volumes:
            self._change(object_id, status=status)
        else:
            old = self._snapshots[object_id]
            self._snapshots[object_id] = old.model_copy(update={"status": status})

    def forget(self, object_id: str) -> None:
        """As if somebody else had deleted it."""
        self._volumes.pop(object_id, None)
        self._snapshots.pop(object_id, None)

    def delete_server(self, server_id: str) -> None:
        """As if somebody had deleted it: its volumes are let go of, or go with it."""
        for line in self._lines.pop(server_id):
            if line.delete_on_termination:
                self.forget(line.volume_id)
            else:
                self._detached(server_id, line.volume_id)
        del self._servers[server_id]

    def slow(self, operation: str, seconds: float) -> None:
        self._order(operation).delay_s = seconds

    def unseen(self, operation: str, seconds: float) -> None:
        """The operation is accepted that long before anything of it can be seen, as an attach is
        from compute 2.101 on."""
        self._order(operation).unseen_s = seconds

    def fail(self, operation: str, times: int = 1) -> None:
        """The operation is accepted and ends as a fault of the back end, or of the guest."""
        self._order(operation).fail = times

    def ignore(self, operation: str, times: int = 1) -> None:
        """The operation is accepted and the status says it is done, but it is not.

        A retype leaves the type; an attach or a detach never reaches the guest.
        """
        self._order(operation).ignore = times

    def refuse(self, operation: str, error: Exception) -> None:
        """The next one is refused with ``error`` before anything happened."""
        self._order(operation).refuse = error

    def opened_again(self, late_s: float = 0.0) -> None:
        """By a process that knows nothing of the one before. With ``late_s`` what that one had
        asked for when it was cut off is carried out so much later."""
        self._sure_at = self.clock + SURE_S
        if late_s and self._under_way is not None:
            self.after(late_s, partial(self._late, self._under_way))
        self._under_way = None

    @staticmethod
    def _late(effect: Callable[[], Any]) -> None:
        with contextlib.suppress(Doubt, NotFound, Stop):  # nobody hears the answer
            effect()

    # ---- looking -----------------------------------------------------------------------------

    def sure_in_s(self) -> float:
        return max(0.0, self._sure_at - self.clock)

    @property
    def api_calls(self) -> int:
        return self._sent

    async def volume(self, volume_id: str) -> Volume:
        await self._request()
        return self._volume(volume_id)

    async def snapshot(self, snapshot_id: str) -> Snapshot:
        await self._request()
        return self._snapshot(snapshot_id)

    async def server(self, server_id: str) -> Server:
        await self._request()
        return self._server(server_id)

    async def server_volumes(self, server_id: str) -> tuple[ServerVolume, ...]:
        await self._request()
        self._server(server_id)
        return tuple(self._lines[server_id])

    async def facts(self, server: str, volumes: Sequence[str]) -> CloudFacts:
        await self._request()
        found = self._server(self._named("server", server, self._servers))
        ids = [self._named("volume", volume, self._volumes) for volume in volumes]
        lookup.distinct(volumes, ids)
        lines = tuple(self._lines[found.id])
        types = (VolumeType(id=t.id, name=t.name) for t in self._types.values())
        return CloudFacts(
            cloud="fake",
            region="RegionOne",
            project_id="fa4e" * 8,
            block_storage_version="3.71",
            compute_version="2.96",
            server=found.model_copy(update={"root_device": nouns.root_device(found, lines)}),
            sources=tuple(map(self._volume, ids)),
            server_volumes=lines,
            types=tuple(types),
            quota=None if self.quota_error else self._quota(),
            quota_error=self.quota_error,
        )

    async def servers(self) -> tuple[Server, ...]:
        await self._request()
        return tuple(self._servers.values())

    async def volumes(self) -> tuple[Volume, ...]:
        await self._request()
        return tuple(self._volumes.values())

    async def snapshots(self) -> tuple[Snapshot, ...]:
        await self._request()
        return tuple(self._snapshots.values())

    async def find_volume(self, mark: str, source_id: str = "") -> Volume | None:
        await self._request()
        return only(self._volumes.values(), mark, source_id)

    async def find_snapshot(self, mark: str, source_id: str = "") -> Snapshot | None:
        await self._request()
        return only(self._snapshots.values(), mark, source_id)

    # ---- making ------------------------------------------------------------------------------

    async def create_snapshot(self, volume_id: str, name: str, mark: str) -> Snapshot:
        found = await self.find_snapshot(mark, volume_id)
        if found is not None:
            return found
        await self._request()
        source = self._volume(volume_id)
        if source.status not in ("available", "in-use"):
            raise Stop(f"cannot create a snapshot of volume '{volume_id}': it is {source.status}")
        self._within_quota("snapshots", source.type, 1, source.size_gib)
        orders = self._ordered("create_snapshot", f"volume {volume_id}", mark=mark, name=name)
        made = Snapshot(
            id=self._new_id(),
            name=name,
            volume_id=volume_id,
            size_gib=source.size_gib,
            status="creating",
            progress="0%",
            metadata={MARK: mark, SOURCE: volume_id},
        )
        self._carry_out("create_snapshot", partial(self._make_snapshot, made, orders))
        return made

    def _make_snapshot(self, made: Snapshot, orders: Orders) -> None:
        self._snapshots[made.id] = made
        self.content[made.id] = self.content.get(made.volume_id)
        self._later(orders, partial(self._snapshot_made, made.id))

    def _snapshot_made(self, snapshot_id: str, end: Outcome) -> None:
        old = self._snapshots.get(snapshot_id)
        if old is None:
            return
        status, progress = ("error", old.progress) if end == "failed" else ("available", "100%")
        self._snapshots[snapshot_id] = old.model_copy(
            update={"status": status, "progress": progress}
        )
        if end == "failed":
            self._messages[snapshot_id] = "create snapshot:An unknown error occurred."

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
        found = await self.find_volume(mark, source_id)
        if found is not None:
            return found
        await self._request()
        if type not in self._types:
            raise NotFound(f"cannot create volume '{name}': there is no type '{type}'")
        origin = self._snapshot(snapshot_id) if snapshot_id else None
        if origin is not None:
            if origin.status != "available":
                raise Stop(f"cannot create volume '{name}': the snapshot is {origin.status}")
            if size_gib < origin.size_gib:
                raise Stop(f"cannot create volume '{name}': smaller than its snapshot")
            self._reachable(self._volume(origin.volume_id).type, type)
        self._within_quota("volumes", type, 1, size_gib)
        orders = self._ordered(
            "create_volume", name, mark=mark, type=type, size_gib=size_gib, snapshot_id=snapshot_id
        )
        made = Volume(
            id=self._new_id(),
            name=name,
            size_gib=size_gib,
            type=type,
            status="creating",
            availability_zone=availability_zone or "nova",
            encrypted=self._types[type].encrypted,
            snapshot_id=snapshot_id or "",
            description=description,
            metadata={**(metadata or {}), MARK: mark, SOURCE: source_id},
        )
        self._carry_out("create_volume", partial(self._make_volume, made, orders))
        return made

    def _make_volume(self, made: Volume, orders: Orders) -> None:
        if made.snapshot_id:
            self._snapshot(made.snapshot_id)
        self._volumes[made.id] = made
        self.content[made.id] = self.content.get(made.snapshot_id)
        self._later(orders, partial(self._volume_made, made.id))

    def _reachable(self, from_type: str, to_type: str) -> None:
        here, there = self._types[from_type], self._types[to_type]
        if here.back_end != there.back_end or here.encrypted != there.encrypted:
            raise TypeNotReachable(
                f"Invalid volume_type provided: {there.id} (requested type is not compatible; "
                "recommend omitting the type argument)."
            )

    def _volume_made(self, volume_id: str, end: Outcome) -> None:
        if end == "failed":
            self._messages[volume_id] = (
                "schedule allocate volume:Could not find any available weighted backend."
            )
        self._change(volume_id, status="error" if end == "failed" else "available")

    async def retype(self, volume_id: str, type: str) -> None:
        await self._request()
        seen = self._volume(volume_id)
        if seen.type == type or seen.status == "retyping":
            return
        if type not in self._types:
            raise NotFound(f"cannot retype volume '{volume_id}': there is no type '{type}'")
        self._may_be("retype", volume_id, "available", "in-use")
        orders = self._ordered("retype", volume_id, type=type)
        self._carry_out("retype", partial(self._begin_retype, volume_id, type, orders))

    def _begin_retype(self, volume_id: str, type: str, orders: Orders) -> None:
        seen = self._may_be("retype", volume_id, "available", "in-use")
        self._change(volume_id, status="retyping")
        moves = self._types[seen.type].back_end != self._types[type].back_end
        stays = self._types[seen.type].encrypted != self._types[type].encrypted or (
            moves and any(s.volume_id == volume_id for s in self._snapshots.values())
        )
        ends_as = seen.type if stays else type
        self._later(orders, partial(self._retyped, volume_id, seen.status, seen.type, ends_as))

    def _retyped(self, volume_id: str, status: str, was: str, type: str, end: Outcome) -> None:
        self._change(volume_id, status=status, type=type if end == "done" else was)

    async def attach(
        self,
        server_id: str,
        volume_id: str,
        *,
        delete_on_termination: bool = False,
        tag: str = "",
    ) -> None:
        await self._request()
        self._server(server_id)
        seen = self._volume(volume_id)
        elsewhere = [a.server_id for a in seen.attachments if a.server_id != server_id]
        if elsewhere and not seen.multiattach:
            raise Doubt(
                f"volume '{volume_id}' is attached to server '{elsewhere[0]}', "
                f"expected it free for server '{server_id}'"
            )
        listed = any(v.volume_id == volume_id for v in self._lines[server_id])
        if listed or seen.status in ("reserved", "attaching"):
            return
        if not seen.multiattach:
            self._may_be("attach", volume_id, "available")
        if len(self._lines[server_id]) + 1 >= DISKS_MAX:
            raise Stop(
                f"cannot attach volume '{volume_id}' to server '{server_id}': The maximum allowed "
                f"number of disk devices ({DISKS_MAX}) to attach to a single instance has been "
                "exceeded (HTTP 403)"
            )
        orders = self._ordered("attach", volume_id, server_id=server_id)
        begin = partial(
            self._begin_attach, server_id, volume_id, delete_on_termination, tag, orders
        )
        if orders.unseen_s:
            begin = partial(self.after, orders.unseen_s, partial(self._late, begin))
        self._carry_out("attach", begin)

    def _begin_attach(
        self, server_id: str, volume_id: str, delete: bool, tag: str, orders: Orders
    ) -> None:
        if not self._volume(volume_id).multiattach:
            self._may_be("attach", volume_id, "available")
        self._line_up(server_id, volume_id, delete, tag)
        self._change(volume_id, status="attaching")
        self._failed_actions.pop((server_id, "attach_volume"), None)
        self._later(orders, partial(self._attach_ended, server_id, volume_id))

    def _attach_ended(self, server_id: str, volume_id: str, end: Outcome) -> None:
        if end == "failed":
            self._failed_actions[server_id, "attach_volume"] = "Error"
            self._unline(server_id, volume_id)
            self._change(volume_id, status="available")
        else:
            self._attached(server_id, volume_id, tell=end == "done")

    async def detach(self, server_id: str, volume_id: str) -> None:
        await self._request()
        seen = self._volume(volume_id)
        listed = any(v.volume_id == volume_id for v in self._lines.get(server_id, ()))
        if seen.status == "detaching" or not listed:
            return
        self._may_be("detach", volume_id, "in-use")
        orders = self._ordered("detach", volume_id, server_id=server_id)
        self._carry_out("detach", partial(self._begin_detach, server_id, volume_id, orders))

    def _begin_detach(self, server_id: str, volume_id: str, orders: Orders) -> None:
        self._may_be("detach", volume_id, "in-use")
        self._change(volume_id, status="detaching")
        self._later(orders, partial(self._detach_ended, server_id, volume_id))

    def _detach_ended(self, server_id: str, volume_id: str, end: Outcome) -> None:
        if end == "failed":
            self._failed_actions[server_id, "detach_volume"] = "Error"
            self._change(volume_id, status="in-use")
        else:
            self._unline(server_id, volume_id)
            self._detached(server_id, volume_id, tell=end == "done")

    async def set_read_only(self, volume_id: str, read_only: bool) -> None:
        await self._request()
        self._may_be("set the readonly flag of", volume_id, "available")
        self._ordered("set_read_only", volume_id, read_only=read_only)
        self._carry_out("set_read_only", partial(self._set_read_only, volume_id, read_only))

    def _set_read_only(self, volume_id: str, read_only: bool) -> None:
        self._may_be("set the readonly flag of", volume_id, "available")
        self._change(volume_id, read_only=read_only)

    async def update_volume(
        self,
        volume_id: str,
        *,
        name: str | None = None,
        description: str | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> Volume:
        await self._request()
        seen = self._volume(volume_id)
        texts = {"name": name, "description": description}
        given: dict[str, Any] = {k: v for k, v in texts.items() if v is not None}
        if metadata:
            given["metadata"] = {**seen.metadata, **metadata}
        self._ordered("update_volume", volume_id, **given)
        self._carry_out("update_volume", partial(self._change, volume_id, **given))
        return self._volume(volume_id)

    async def delete_snapshot(self, snapshot_id: str, mark: str) -> None:
        await self._request()
        seen = self._snapshots.get(snapshot_id)
        if seen is None:
            return
        must_carry(mark, seen)
        if seen.status == "deleting":
            return
        if seen.status not in ("available", "error"):
            raise Stop(f"cannot delete snapshot '{snapshot_id}': it is {seen.status}")
        orders = self._ordered("delete_snapshot", snapshot_id)
        delete = partial(self._begin_to_delete, self._snapshots, snapshot_id, orders)
        self._carry_out("delete_snapshot", delete)

    async def delete_volume(self, volume_id: str, mark: str) -> None:
        await self._request()
        seen = self._volumes.get(volume_id)
        if seen is None:
            return
        must_carry(mark, seen)
        if seen.status == "deleting":
            return
        busy = seen.attachments or any(s.volume_id == volume_id for s in self._snapshots.values())
        if busy or seen.status not in ("available", "error"):
            raise Stop(
                f"cannot delete volume '{volume_id}': it must not be attached or have snapshots, "
                f"and its status is {seen.status}"
            )
        orders = self._ordered("delete_volume", volume_id)
        delete = partial(self._begin_to_delete, self._volumes, volume_id, orders)
        self._carry_out("delete_volume", delete)

    def _begin_to_delete(self, where: dict[str, Any], object_id: str, orders: Orders) -> None:
        if object_id not in where or where[object_id].status not in ("available", "error"):
            raise Stop(f"cannot delete '{object_id}'")
        self.set_status(object_id, "deleting")
        self._later(orders, partial(self._deleted, where, object_id))

    def _deleted(self, where: dict[str, Any], object_id: str, end: Outcome) -> None:
        if end == "failed":
            self.set_status(object_id, "error_deleting")
        else:
            where.pop(object_id, None)

    async def close(self) -> None:
        """Nothing to let go of."""

    # ---- time --------------------------------------------------------------------------------

    def _now(self) -> float:
        return self.clock

    def _jitter(self) -> float:
        return 1.0

    async def _sleep(self, seconds: float) -> None:
        self.pass_time(seconds)
        await asyncio.sleep(0)

    def pass_time(self, seconds: float) -> None:
        """Let what is due happen, in order and each at its time: it may make more due."""
        until = self.clock + seconds
        while self._due:
            first = min(self._due, key=lambda entry: entry[:2])
            if first[0] > until:
                break
            self._due.remove(first)
            self.clock = first[0]
            first[2]()
        self.clock = until

    def after(self, seconds: float, call: Callable[[], None]) -> None:
        """Let something else happen on this clock; what can be pickled, please."""
        self._due.append((self.clock + seconds, len(self.calls), call))

    async def _request(self) -> None:
        self._sent += 1
        await self._sleep(REQUEST_S)

    def _carry_out(self, verb: str, effect: Callable[[], Any]) -> None:
        """The request has arrived. What may be refused is looked at in ``effect`` once more, for it
        may be called late."""
        self._under_way = effect
        self.around_effect("before", verb)
        self._under_way = None
        effect()
        self.around_effect("after", verb)

    def _later(self, orders: Orders, done: Callable[[Outcome], None]) -> None:
        outcome: Outcome = "failed" if orders.fail else "ignored" if orders.ignore else "done"
        if outcome == "failed" and orders.fail > 0:
            orders.fail -= 1
        elif outcome == "ignored" and orders.ignore > 0:
            orders.ignore -= 1
        self.after(orders.delay_s, partial(done, outcome))

    # ---- reasons -----------------------------------------------------------------------------

    async def _reason(self, object_id: str) -> str:
        await self._request()
        message = self._messages.get(object_id)
        told = f"the cloud's message of 2026-01-01T00:00:00: {message} ({REQUEST_ID})"
        return told if message else ""

    async def _server_reason(self, server_id: str, action: str) -> str:
        await self._request()
        result = self._failed_actions.get((server_id, action))
        return f"the server's last '{action}' ended in: {result} ({REQUEST_ID})" if result else ""

    # ---- state -------------------------------------------------------------------------------

    def _order(self, operation: str) -> Orders:
        return self._orders.setdefault(operation, Orders())

    def _ordered(self, verb: str, object_id: str, **details: Any) -> Orders:
        orders = self._order(verb)
        if orders.refuse is not None:
            error, orders.refuse = orders.refuse, None
            raise error
        self.calls.append(Call(verb, object_id, details))
        return orders

    def _volume(self, volume_id: str) -> Volume:
        if volume_id not in self._volumes:
            raise NotFound(f"cannot read volumes/{volume_id}: it could not be found (HTTP 404)")
        return self._volumes[volume_id]

    def _may_be(self, verb: str, volume_id: str, *statuses: str) -> Volume:
        """As Cinder's conditional updates are: what is not in such a status is refused."""
        seen = self._volume(volume_id)
        if seen.status not in statuses:
            raise Stop(
                f"cannot {verb} volume '{volume_id}': its status must be {' or '.join(statuses)}, "
                f"but it is {seen.status}"
            )
        return seen

    def _snapshot(self, snapshot_id: str) -> Snapshot:
        if snapshot_id not in self._snapshots:
            raise NotFound(f"cannot read snapshots/{snapshot_id}: it could not be found (HTTP 404)")
        return self._snapshots[snapshot_id]

    def _server(self, server_id: str) -> Server:
        if server_id not in self._servers:
            raise NotFound(f"cannot read servers/{server_id}: it could not be found (HTTP 404)")
        return self._servers[server_id]

    def _change(self, volume_id: str, **fields: Any) -> None:
        if volume_id in self._volumes:
            self._volumes[volume_id] = self._volumes[volume_id].model_copy(update=fields)

    def _line_up(self, server_id: str, volume_id: str, delete: bool, tag: str) -> None:
        lines = self._lines[server_id]
        taken = {line.device for line in lines}
        device = next(
            d for d in (f"/dev/vd{c}" for c in "bcdefghijklmnopqrstuvwxyz") if d not in taken
        )
        lines.append(
            ServerVolume(volume_id=volume_id, device=device, delete_on_termination=delete, tag=tag)
        )

    def _unline(self, server_id: str, volume_id: str) -> None:
        self._lines[server_id] = [v for v in self._lines[server_id] if v.volume_id != volume_id]

    def _attached(self, server_id: str, volume_id: str, tell: bool = True) -> None:
        device = next(v.device for v in self._lines[server_id] if v.volume_id == volume_id)
        new = Attachment(
            server_id=server_id, volume_id=volume_id, attachment_id=self._new_id(), device=device
        )
        others = self._volumes[volume_id].attachments
        self._change(volume_id, status="in-use", attachments=(*others, new))
        for listener in self.on_attached if tell else ():
            listener(server_id, volume_id)

    def _detached(self, server_id: str, volume_id: str, tell: bool = True) -> None:
        left = tuple(a for a in self._volumes[volume_id].attachments if a.server_id != server_id)
        self._change(volume_id, status="in-use" if left else "available", attachments=left)
        for listener in self.on_detached if tell else ():
            listener(server_id, volume_id)

    def _named(self, kind: lookup.Kind, wanted: str, known: Mapping[str, Any]) -> str:
        if wanted in known:
            return wanted
        every = [
            {"id": o.id, "name": o.name, "status": o.status, "created_at": self._created[o.id]}
            for o in known.values()
        ]
        return str(lookup.choose(kind, wanted, every)["id"])

    def _quota(self) -> Quota:
        used: dict[str, int] = dict.fromkeys(self.quota_limits, 0)

        def add(what: str, type_name: str, size_gib: int) -> None:
            for key, amount in ((what, 1), ("gigabytes", size_gib)):
                for each in (key, f"{key}_{type_name}"):
                    used[each] = used.get(each, 0) + amount

        for v in self._volumes.values():
            add("volumes", v.type, v.size_gib)
        for s in self._snapshots.values():
            origin = self._volumes.get(s.volume_id)
            add("snapshots", origin.type if origin else "", s.size_gib)
        return Quota(limits={k: self.quota_limits.get(k, -1) for k in used}, used=used)

    def _within_quota(self, what: str, type_name: str, count: int, size_gib: int) -> None:
        quota = self._quota()
        for key, more in (
            (what, count),
            (f"{what}_{type_name}", count),
            ("gigabytes", size_gib),
            (f"gigabytes_{type_name}", size_gib),
        ):
            limit, used = self.quota_limits.get(key, -1), quota.used.get(key, 0)
            if limit >= 0 and used + more > limit:
                raise Stop(
                    f"cannot make one more: the quota of '{key}' is exceeded (HTTP 413)",
                    data=f"nothing was created\nquota {key}: {used} of {limit} used",
                )

    def _new_id(self) -> str:
        self._ids += 1
        new = str(uuid.UUID(int=0xFA4E_0000_0000_4000_8000_0000_0000_0000 + self._ids))
        # The first 20 characters are all that virtio-blk shows of an id: let them differ as well.
        new = f"{self._ids:08x}{new[8:]}"
        self._created[new] = f"2026-01-01T00:00:{self._ids % 60:02d}"
        return new


if TYPE_CHECKING:

    def _proof(fake: FakeCloud) -> CloudVerbs:
        return fake
