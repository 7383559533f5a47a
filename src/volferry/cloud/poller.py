"""Waiting for the cloud: one poller for everything that takes its time.

openstacksdk's ``wait_for_status`` looks at the object that it is handed before it asks the cloud:
after a retype it returned "available" after no request at all. It also knows no status that went
back, and its deadline does not say which option would have been longer. So all waits are here, on
top of the looking verbs, and the tests' fake cloud runs the very same ones.

Nothing is kept between two polls but the time: a process that was killed in a wait polls on.
"""

import asyncio
import random
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Literal, TypeVar

from volferry.cloud.verbs import OnProgress
from volferry.errors import Doubt, NotFound, Retry, Stop
from volferry.model import GIB, Progress, Server, ServerVolume, Snapshot, Volume

FIRST_S, LONGEST_S, GROWTH, JITTER = 0.5, 5.0, 1.3, 0.2
SUSPECT_S, SUSPECT_EVERY_S = 10.0, 2.0
"""A status that went back, or an object that is not there, is believed when it stays so for this
time: a database replica may show what was before the request, and Cinder writes status, type and
attachments one after the other."""

_IN_MIGRATION = ("starting", "migrating", "completing")

T = TypeVar("T")
Found = TypeVar("Found", Volume, Server)


@dataclass(frozen=True)
class Done:
    """What was waited for is true."""


@dataclass(frozen=True)
class Going:
    """Not yet. ``seen`` is the status in the cloud's own words."""

    seen: str
    done_bytes: int | None = None
    total_bytes: int | None = None


@dataclass(frozen=True)
class Failed:
    """It will not become true; not ``certain`` when it may be what was before the request."""

    why: str
    certain: bool = True
    gone: NotFound | None = None


@dataclass(frozen=True)
class Wait:
    """The words and limits of one wait."""

    what: str
    wanted: str
    data: str
    deadline_s: float
    flag: str
    progress: OnProgress | None


class Waits(ABC):
    """The waiting verbs of ``CloudVerbs``, made of its looking ones."""

    @abstractmethod
    async def volume(self, volume_id: str) -> Volume: ...

    @abstractmethod
    async def snapshot(self, snapshot_id: str) -> Snapshot: ...

    @abstractmethod
    async def server(self, server_id: str) -> Server: ...

    @abstractmethod
    async def volumes(self) -> tuple[Volume, ...]: ...

    @abstractmethod
    async def servers(self) -> tuple[Server, ...]: ...

    @abstractmethod
    async def server_volumes(self, server_id: str) -> tuple[ServerVolume, ...]: ...

    @abstractmethod
    async def _reason(self, object_id: str) -> str:
        """What Cinder tells its users about this object's last failure; empty when nothing."""

    @abstractmethod
    async def _server_reason(self, server_id: str, action: str) -> str:
        """How the server's last ``action`` failed, in Nova's words; empty when it did not."""

    async def _sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def _now(self) -> float:
        return time.monotonic()

    def _jitter(self) -> float:
        return random.uniform(1 - JITTER, 1 + JITTER)  # noqa: S311 - spreads load, guards nothing

    # ---- what may have been deleted ----------------------------------------------------------

    async def volume_if_any(self, volume_id: str) -> Volume | None:
        """See ``CloudVerbs.volume_if_any``."""
        return await self._if_any(volume_id, self.volume, self.volumes)

    async def server_if_any(self, server_id: str) -> Server | None:
        """See ``CloudVerbs.server_if_any``."""
        return await self._if_any(server_id, self.server, self.servers)

    async def _if_any(
        self,
        id: str,
        look: Callable[[str], Awaitable[Found]],
        every: Callable[[], Awaitable[tuple[Found, ...]]],
    ) -> Found | None:
        began = self._now()
        while True:
            try:
                return await look(id)
            except NotFound:
                if self._now() - began < SUSPECT_S:
                    await self._sleep(SUSPECT_EVERY_S)
                    continue
            # A load balancer without a way to the service says 404 as well, but has no list.
            return next((one for one in await every() if one.id == id), None)

    # ---- the waiting verbs -------------------------------------------------------------------

    async def wait_snapshot(
        self,
        snapshot_id: str,
        *,
        deadline_s: float,
        flag: str = "--snapshot-timeout",
        progress: OnProgress | None = None,
    ) -> Snapshot:
        def judge(seen: Snapshot) -> Done | Going | Failed:
            if seen.status == "available":
                return Done()
            if _broken(seen.status) or seen.status in ("deleting", "deleted"):
                return Failed(f"its status is '{seen.status}'")
            return Going(seen.status, *_share(seen.progress, seen.size_gib))

        wait = Wait(
            f"snapshot '{snapshot_id}'",
            "'available'",
            "the source is untouched; nothing depends on the snapshot yet",
            deadline_s,
            flag,
            progress,
        )
        return await self._poll(
            wait, lambda: self.snapshot(snapshot_id), judge, lambda: self._reason(snapshot_id)
        )

    async def wait_volume(
        self,
        volume_id: str,
        *,
        until: Literal["available", "in-use"] = "available",
        deadline_s: float,
        flag: str = "--create-timeout",
        progress: OnProgress | None = None,
    ) -> Volume:
        def judge(seen: Volume) -> Done | Going | Failed:
            if seen.status == until:
                return Done()
            if _broken(seen.status) or seen.status in ("deleting", "deleted"):
                return Failed(f"its status is '{seen.status}'")
            if seen.status in ("available", "in-use"):
                return Failed(f"its status is '{seen.status}', not '{until}'", certain=False)
            return Going(seen.status)

        wait = Wait(
            f"volume '{volume_id}'",
            f"'{until}'",
            "nothing was written to any volume that is in use",
            deadline_s,
            flag,
            progress,
        )
        return await self._poll(
            wait, lambda: self.volume(volume_id), judge, lambda: self._reason(volume_id)
        )

    async def wait_retyped(
        self,
        volume_id: str,
        type: str,
        *,
        deadline_s: float,
        flag: str = "--retype-timeout",
        progress: OnProgress | None = None,
    ) -> Volume:
        def judge(seen: Volume) -> Done | Going | Failed:
            if _broken(seen.status) or seen.migration_status == "error":
                return Failed(f"its status is '{seen.status}', its type '{seen.type}'")
            moving = seen.migration_status in _IN_MIGRATION
            if seen.status not in ("available", "in-use") or moving:
                return Going(f"{seen.status} {seen.migration_status}".strip())
            if seen.type == type:
                return Done()
            # Seen on a real cloud: the status returns and nothing else tells that it failed.
            return Failed(
                f"the cloud accepted the retype and did not do it: its status is back to "
                f"'{seen.status}' and its type is '{seen.type}', expected '{type}'",
                certain=False,
            )

        wait = Wait(
            f"volume '{volume_id}'",
            f"of type '{type}'",
            "a failed retype leaves the volume's type and content as they were",
            deadline_s,
            flag,
            progress,
        )
        return await self._poll(
            wait, lambda: self.volume(volume_id), judge, lambda: self._reason(volume_id)
        )

    async def wait_attached(
        self,
        server_id: str,
        volume_id: str,
        *,
        deadline_s: float,
        flag: str = "--attach-timeout",
        progress: OnProgress | None = None,
    ) -> ServerVolume:
        def judge(seen: "_Both") -> Done | Going | Failed:
            status = seen.volume.status
            if seen.in_volume and seen.line and status == "in-use":
                return Done()
            if _broken(status):
                return Failed(f"its status is '{status}'")
            if status == "in-use" and not seen.in_volume and not seen.volume.multiattach:
                where = ", ".join(a.server_id for a in seen.volume.attachments)
                return Failed(f"it is attached to another server ({where})", certain=False)
            if status == "available" and not seen.line and seen.failure:
                # Below compute 2.101 Cinder's reservation is there before the request is answered;
                # from then on only the server's action tells that nothing will come any more.
                return Failed(f"its status is 'available' again: {seen.failure}", certain=False)
            return Going(status)

        async def look() -> "_Both":
            both = await self._both(server_id, volume_id)
            if both.volume.status == "available" and not both.line:
                reason = await self._server_reason(server_id, "attach_volume")
                return _Both(both.volume, both.line, both.in_volume, reason)
            return both

        wait = Wait(
            f"volume '{volume_id}'",
            f"attached to server '{server_id}'",
            "nothing was copied; no volume was changed",
            deadline_s,
            flag,
            progress,
        )
        seen = await self._poll(wait, look, judge, lambda: self._reason(volume_id))
        assert seen.line is not None
        return seen.line

    async def wait_detached(
        self,
        server_id: str,
        volume_id: str,
        *,
        deadline_s: float,
        flag: str = "--detach-timeout",
        progress: OnProgress | None = None,
    ) -> Volume:
        def judge(seen: "_Both") -> Done | Going | Failed:
            status = seen.volume.status
            if not seen.line and not seen.in_volume and status in ("available", "in-use"):
                return Done()
            if _broken(status):
                return Failed(f"its status is '{status}'")
            if status == "in-use" and seen.line:
                # libvirt asks the guest 8 times in 160 s; then Nova rolls the detach back.
                return Failed(
                    "it is 'in-use' again: the guest did not let go of the disk", certain=False
                )
            return Going(status)

        wait = Wait(
            f"volume '{volume_id}'",
            f"detached from server '{server_id}'",
            "the volume is still attached and keeps its data",
            deadline_s,
            flag,
            progress,
        )
        reason = self._server_reason
        seen = await self._poll(
            wait,
            lambda: self._both(server_id, volume_id, server_may_go=True),
            judge,
            lambda: reason(server_id, "detach_volume"),
        )
        return seen.volume

    async def wait_deleted(
        self,
        kind: Literal["volume", "snapshot"],
        id: str,
        *,
        deadline_s: float,
        flag: str = "--delete-timeout",
        progress: OnProgress | None = None,
    ) -> None:
        async def look() -> str:
            try:
                seen = await (self.volume(id) if kind == "volume" else self.snapshot(id))
            except NotFound:
                return ""
            return seen.status

        def judge(status: str) -> Done | Going | Failed:
            if status in ("", "deleted"):
                return Done()
            if _broken(status):
                return Failed(f"its status is '{status}'")
            if status in ("available", "in-use"):
                # A busy snapshot goes back to 'available' (cinder's SnapshotIsBusy).
                return Failed(f"its status is '{status}' again: it was not deleted", certain=False)
            return Going(status)

        wait = Wait(
            f"{kind} '{id}'",
            "deleted",
            "it still exists and counts against the quota",
            deadline_s,
            flag,
            progress,
        )
        await self._poll(wait, look, judge, lambda: self._reason(id))

    # ---- the poller --------------------------------------------------------------------------

    async def _both(
        self, server_id: str, volume_id: str, *, server_may_go: bool = False
    ) -> "_Both":
        volume = await self.volume(volume_id)
        lines: tuple[ServerVolume, ...] = ()
        try:
            lines = await self.server_volumes(server_id)
        except NotFound:
            if not server_may_go:
                raise
        line = next((v for v in lines if v.volume_id == volume_id), None)
        return _Both(volume, line, any(a.server_id == server_id for a in volume.attachments))

    async def _poll(
        self,
        wait: Wait,
        look: Callable[[], Awaitable[T]],
        judge: Callable[[T], Done | Going | Failed],
        reason: Callable[[], Awaitable[str]],
    ) -> T:
        began, interval = self._now(), FIRST_S
        last, away = "not seen", ""
        suspected_at: float | None = None
        while True:
            try:
                seen = await look()
            except Retry as unreachable:
                # An API that is away for a while must not end a wait of hours: the deadline does.
                verdict: Done | Going | Failed = Going(last)
                away = unreachable.what
            except NotFound as gone:
                verdict, away = Failed("it is not there", certain=False, gone=gone), ""
            else:
                verdict, away = judge(seen), ""
            if isinstance(verdict, Done):
                return seen
            now = self._now()
            elapsed = now - began
            if isinstance(verdict, Going):
                suspected_at, last = None, verdict.seen
                self._tell(wait, verdict, away, elapsed)
            else:
                suspected_at = now if suspected_at is None else suspected_at
                believed_at = min(suspected_at + SUSPECT_S, began + wait.deadline_s)
                if verdict.certain or now >= believed_at:
                    await self._fail(wait, verdict, reason)
                await self._sleep(min(SUSPECT_EVERY_S, believed_at - now))
                continue
            left = wait.deadline_s - elapsed
            if left <= 0:
                await self._too_late(wait, last, away, reason)
            await self._sleep(min(interval * self._jitter(), left))
            interval = min(interval * GROWTH, LONGEST_S)

    def _tell(self, wait: Wait, going: Going, away: str, elapsed: float) -> None:
        if wait.progress is not None:
            wait.progress(
                Progress(
                    what=f"{wait.what} {wait.wanted}",
                    note=away or going.seen,
                    elapsed_s=round(elapsed, 3),
                    done_bytes=going.done_bytes,
                    total_bytes=going.total_bytes,
                )
            )

    async def _fail(
        self, wait: Wait, verdict: Failed, reason: Callable[[], Awaitable[str]]
    ) -> None:
        if verdict.gone:
            raise Doubt(
                f"{wait.what} disappeared while it was expected to be {wait.wanted}",
                data=wait.data,
                hint="somebody else deleted it, or the project's quota clean-up did",
            ) from verdict.gone
        told = await self._told(reason)
        raise Stop(
            f"{wait.what} did not become {wait.wanted}: {verdict.why}",
            data=_lines(wait.data, told),
            hint="ask the cloud's operator with the id above when the reason does not help",
        )

    async def _too_late(
        self, wait: Wait, last: str, away: str, reason: Callable[[], Awaitable[str]]
    ) -> None:
        told = f"its last state is not known: {away}" if away else await self._told(reason)
        raise Stop(
            f"{wait.what} {'was' if away else 'is still'} '{last}' after {wait.deadline_s:g} s "
            f"({wait.flag}), expected {wait.wanted}",
            data=_lines(wait.data, told),
            hint=f"it may still get there: resume with a longer {wait.flag}",
        )

    @staticmethod
    async def _told(reason: Callable[[], Awaitable[str]]) -> str:
        try:
            return await reason()
        except (Retry, Stop, NotFound):
            # The failure itself is what has to be told; its explanation is an extra.
            return ""


@dataclass(frozen=True)
class _Both:
    """A volume as Cinder and its server as Nova show them."""

    volume: Volume
    line: ServerVolume | None
    in_volume: bool
    failure: str = ""


def _broken(status: str) -> bool:
    """``error`` and its kin: error_deleting, error_extending, error_restoring, error_managing."""
    return status.startswith("error")


def _share(percent: str, size_gib: int) -> tuple[int | None, int | None]:
    """Done and total bytes of ``37%``; Cinder tells nothing finer."""
    if not percent.endswith("%") or not percent[:-1].isdigit() or not size_gib:
        return None, None
    return size_gib * GIB * int(percent[:-1]) // 100, size_gib * GIB


def _lines(*parts: str) -> str:
    return "\n".join(part for part in parts if part)
