"""What a step is, and what a step may use.

A transfer is a short sequence of steps, and each step is one thing that can be done, looked for
and taken back. The engine records an *intent* before the first effect of a step and its *receipt*
after the last one, so that a crash leaves at most one intent without a receipt. That step alone is
asked to ``find`` what it left behind; all the others are known from the journal.

Nothing here touches a cloud, a guest or a disk, and importing it is cheap.
"""

import asyncio
import enum
import string
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, TypeAlias

from volferry import errors
from volferry.model import Event, Json, Pass, Plan, Progress, Receipt

if TYPE_CHECKING:
    from volferry.store import Request

Phase: TypeAlias = Literal["plan", "seed", "attach", "sync", "cutover", "finish"]


class Undo(enum.Enum):
    """What taking a step back would cost. The value of all but ``FREE`` is what would be lost."""

    FREE = "nothing is lost"
    LAST_COPY = "somebody deleted the source: what the target holds of it would be lost"
    UNKNOWN = "the deleted server alone knew how the cutover ended: the target may be all there is"
    CONSENT = "writes made since the cutover would be lost"


class _Partly(string.Formatter):
    def get_value(self, key: int | str, args: Sequence[object], kwargs: object) -> object:
        known = kwargs if isinstance(kwargs, Mapping) else {}
        return known.get(key, "…")


def fill(promise: str, facts: Mapping[str, object]) -> str:
    """A promise with its figures; what is not known (yet) is ``…``."""
    return _Partly().vformat(promise, (), facts)


class Held(Exception):
    """A step's word that the transfer waits for its operator: neither done nor failed.

    Raised by ``do``. No receipt is written and the state becomes ``HELD``; the next time the
    transfer is carried the same step is asked again, and goes on when it finds the operator's
    request among ``ctx.requests()``.
    """

    def __init__(self, what: str, *, hint: str = "") -> None:
        super().__init__(what)
        self.what, self.hint = what, hint


class Step(ABC):
    """One thing a transfer does, and how to take it back. A step holds no state of its own.

    ``find`` looks at the world, never at the journal: after a crash it is the only way to learn
    whether ``do`` got far enough to leave something behind. It answers with the receipt that ``do``
    would have returned, or None when nothing is there or when ``do`` can simply be repeated. When
    only a part is there, ``find`` answers None to going on (``do`` then completes it) and must
    still let ``undo`` remove it: see ``left_behind``.

    ``do`` returns what later steps and ``undo`` need to know: plain JSON, nothing secret. Doing it
    twice is doing it once. ``errors.Retry`` is tried again by the engine, after another ``find``;
    any other error stops the transfer where it is.

    ``undo`` can be repeated, and removes only what carries our mark.
    """

    name: ClassVar[str]
    phase: ClassVar[Phase]
    promise: ClassVar[str]
    """One sentence that is true once the step is done; ``{name}`` is a field of its receipt."""
    undo_costs: ClassVar[Undo] = Undo.FREE

    def applies(self, plan: Plan) -> bool:
        """Whether this transfer needs the step; one that does not apply is skipped and told so."""
        del plan
        return True

    def foreseen(self, plan: Plan) -> Json:
        """What the plan knows already of the figures in ``promise``."""
        del plan
        return {}

    @abstractmethod
    async def find(self, ctx: "Context") -> Receipt | None:
        """What an interrupted ``do`` left in the world, as its receipt."""

    @abstractmethod
    async def do(self, ctx: "Context") -> Receipt:
        """Do it, or finish doing it."""

    @abstractmethod
    async def undo(self, ctx: "Context", receipt: Receipt) -> None:
        """Take it back."""

    async def costs(self, ctx: "Context", receipt: Receipt) -> Undo:
        """What undoing this receipt costs, for a step where that depends on how it went.

        Raises ``Refused`` when it cannot be undone; asked of all steps before anything is.
        """
        del ctx, receipt
        return self.undo_costs

    async def left_behind(self, ctx: "Context") -> Receipt | None:
        """What an interrupted ``do`` left that ``undo`` has to remove, whole or in part."""
        return await self.find(ctx)


class Line(Protocol):
    """What stands between a step and whoever carries it: the engine, or nobody in a test."""

    async def event(self, event: Event) -> None: ...
    async def progress(self, progress: Progress) -> None: ...
    async def passed(self, one: Pass) -> None: ...
    def passes(self) -> Sequence[Pass]: ...
    def events(self) -> Sequence[Event]: ...
    def requests(self) -> "Sequence[Request]": ...
    def take(self, request: "Request") -> None: ...
    def stop_asked(self) -> bool: ...
    async def wait(self, seconds: float) -> None: ...


class Unheard:
    """The line of a context that no engine carries: keeps what is told, and nobody answers."""

    def __init__(self) -> None:
        self.told: list[Event] = []
        self.reports: list[Progress] = []
        self.made: list[Pass] = []
        self.asked: list[Request] = []
        self.stop = False

    async def event(self, event: Event) -> None:
        self.told.append(event)

    async def progress(self, progress: Progress) -> None:
        self.reports.append(progress)

    async def passed(self, one: Pass) -> None:
        self.made.append(one)

    def passes(self) -> Sequence[Pass]:
        return tuple(self.made)

    def events(self) -> Sequence[Event]:
        return tuple(self.told)

    def requests(self) -> "Sequence[Request]":
        return tuple(self.asked)

    def take(self, request: "Request") -> None:
        self.asked.remove(request)

    def stop_asked(self) -> bool:
        return self.stop

    async def wait(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class Context:
    """All that a step may use. Steps keep nothing between calls; what they need is here.

    Whoever opens the cloud and the guest makes it; the engine then puts its own ``line`` in and
    keeps ``step`` and ``known`` right. Without an engine, as in a step's own test, what is told
    lands in ``ctx.line.told`` of an ``Unheard`` line.
    """

    def __init__(
        self,
        transfer_id: str,
        plan: Plan,
        *,
        cloud: Any = None,
        guest: Any = None,
        method: Any = None,
        known: Mapping[str, Receipt] | None = None,
        line: Line | None = None,
    ) -> None:
        self.transfer_id = transfer_id
        self.plan = plan
        self.cloud = cloud
        self.guest = guest
        self.method = method
        self.known: Mapping[str, Receipt] = known if known is not None else {}
        """Receipts of the steps that stand, by step name."""
        self.step = ""
        """Name of the step that is being carried."""
        self.line: Line = line if line is not None else Unheard()
        self._calls_told = 0
        self._notes_told: set[str] | None = None

    async def tell(self, kind: str, /, **facts: Any) -> None:
        """Tell an event: it is on disk, and every listener has heard it, when this returns."""
        await self.line.event(self._event(kind, facts))

    async def tell_note(self, note_id: str, text: str) -> None:
        """Tell what the guest noted, unless this transfer has told it already: guests are asked for
        the same notes again and again, by later processes too."""
        if self._notes_told is None:
            told = self.line.events()
            self._notes_told = {e.facts["note_id"] for e in told if "note_id" in e.facts}
        if note_id not in self._notes_told:
            await self.tell("note", text=text, note_id=note_id)
            self._notes_told.add(note_id)

    async def progress(self, progress: Progress) -> None:
        """Say how far a long wait is. Only the last one is kept."""
        await self.line.progress(progress)

    async def passed(self, one: Pass) -> None:
        """Keep a pass that has ended, and tell it."""
        await self.line.passed(one)
        await self.tell("pass", **one.model_dump(mode="json"))

    def new_calls(self) -> int:
        """API calls since this was asked last.

        Told with each receipt rather than once at the end: a process that is killed has no end.
        """
        before, self._calls_told = self._calls_told, getattr(self.cloud, "api_calls", 0)
        return self._calls_told - before

    def passes(self) -> Sequence[Pass]:
        """The passes of this transfer, oldest first, those of earlier runs included."""
        return self.line.passes()

    def requests(self, what: str = "") -> "Sequence[Request]":
        """The operator's messages that nobody has taken yet, oldest first; ``what`` selects."""
        return tuple(r for r in self.line.requests() if not what or r.what == what)

    def take(self, request: "Request") -> None:
        """Say that a request has been acted on, so that it is not answered twice."""
        self.line.take(request)

    def check_stop(self) -> None:
        """Call at a safe point: raises ``errors.Paused`` when the operator asked to stop."""
        if self.line.stop_asked():
            raise errors.Paused(
                f"stopped at a safe point in '{self.step}' as you asked",
                data="what was done is kept; the source is untouched by stopping",
                hint=f"volferry resume {self.transfer_id}",
            )

    async def sleep(self, seconds: float) -> None:
        """Sleep, but return early when the operator asks for something."""
        await self.line.wait(seconds)

    def _event(self, kind: str, facts: Json) -> Event:
        return Event(
            at=time.time(), transfer=self.transfer_id, step=self.step, kind=kind, facts=facts
        )
