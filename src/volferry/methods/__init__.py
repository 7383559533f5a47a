"""Ways to make the target equal the source. One file each.

A new file in this folder is a new method: importing the package imports its siblings, and
subclassing ``Method`` registers the class under its file's name, which is what a user types after
``--method``. A method that does not fit declines with a reason, in the plan, before anything is
touched; that is not a failure.
"""

import abc
import importlib
import pkgutil
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, TypeAlias

from volferry.model import (
    CloudFacts,
    GuestFacts,
    Json,
    Outcome,
    Pass,
    Plan,
    Prediction,
    Progress,
    Receipt,
    Tool,
    Unit,
    Wanted,
)

Job: TypeAlias = Literal["cutover", "cutback"]
"""A switch of the services from one side to the other, as the guest calls it."""

ASSUMED_UNIT_S = 1.0
UNIT_CALLS = 2
"""One systemctl that stops or starts a unit, and one that looks at what came of it."""


def units_s(last_s: Sequence[float | None], known: Mapping[str, Any]) -> float:
    """What the units' last stops, or starts, took (seconds), and what asking for it takes on this
    guest."""
    took = sum(ASSUMED_UNIT_S if one is None else one for one in last_s)
    return took + UNIT_CALLS * len(last_s) * float(known.get("systemctl_s", 0.0))


def mount_units_s(guest: GuestFacts, known: Mapping[str, Any]) -> float:
    """What asking systemd for its mount units takes on this guest, without the mounts."""
    units = [mount for fs in guest.filesystems for mount in fs.mounts if mount.unit]
    return len(units) * float(known.get("systemctl_s", 0.0))


def predicted(parts: Mapping[str, float], basis: str, units: Sequence[Unit]) -> Prediction:
    """``parts`` in seconds; ``basis``: what all but the units' times come from."""
    basis += ", the units' last stop and start"
    unmeasured = [unit.name for unit in units if unit.stop_s is None or unit.start_s is None]
    if unmeasured:
        basis += f" ({ASSUMED_UNIT_S:g} s assumed for {', '.join(unmeasured)})"
    rounded = {name: round(seconds, 3) for name, seconds in parts.items()}
    return Prediction(total_s=round(sum(rounded.values()), 3), parts=rounded, basis=basis)


def unclear(cloud: CloudFacts, guest: GuestFacts) -> str:
    """Which volumes are no single disk of the guest, and why; empty when each is."""
    of = {source.id: source.label for source in cloud.sources}
    return "; ".join(f"{of.get(known, known)}: {why}" for known, why in guest.unclear.items())


@dataclass(frozen=True)
class Outlook:
    """What the last pass promises of a cutover."""

    prediction: Prediction
    gains: bool
    """Further passes would make the downtime shorter."""


class Scene(Protocol):
    """What a method may use of the transfer that it works for."""

    transfer_id: str
    plan: Plan
    cloud: Any
    guest: Any
    known: Mapping[str, Receipt]

    async def tell(self, kind: str, **facts: Any) -> None: ...
    async def tell_note(self, note_id: str, text: str) -> None: ...
    async def passed(self, one: Pass) -> None: ...
    async def progress(self, progress: Progress) -> None: ...
    def passes(self) -> Sequence[Pass]: ...
    def check_stop(self) -> None: ...
    async def sleep(self, seconds: float) -> None: ...


class Method(abc.ABC):
    """The difference that a method makes. Instances hold no state."""

    registry: ClassVar[dict[str, type["Method"]]] = {}
    name: ClassVar[str] = ""
    preference: ClassVar[int]
    """The one with the lowest that does not decline is taken."""
    keeps_a_left_target: ClassVar[bool] = True
    """What services wrote to a target that was then left stays there until the transfer goes on."""

    def __init_subclass__(cls) -> None:
        cls.name = cls.__module__.rpartition(".")[2]
        cls.registry[cls.name] = cls

    def fate_of_late_writes(self) -> str:
        """What becomes of these, for a sentence."""
        if self.keeps_a_left_target:
            return "is on the target alone"
        return "is lost: the target follows the source again"

    # ---- for the plan: pure ----------------------------------------------------------------------

    @abc.abstractmethod
    def declines(self, wanted: Wanted, cloud: CloudFacts, guest: GuestFacts) -> str:
        """Why this method does not fit, in a few words; empty when it does."""

    @abc.abstractmethod
    def needs_blank(self, guest: GuestFacts) -> bool:
        """Whether a clone of the source is of no use to it."""

    @abc.abstractmethod
    def tools(self, guest: GuestFacts) -> Sequence[Tool]:
        """The programs that it will run in the guest."""

    @abc.abstractmethod
    def predict(
        self,
        guest: GuestFacts,
        units: Sequence[Unit],
        passes: Sequence[Pass] = (),
        prepared: Receipt | None = None,
    ) -> Prediction:
        """The downtime that a cutover would cost now, from what was measured so far."""

    def tracks(self, plan: Plan) -> bool:
        """Whether it notes every write to the sources from before the snapshot on."""
        del plan
        return False

    def detaches_first(self, guest: GuestFacts) -> bool:
        """Whether the source has to be out of the server before the target may be recognised, and
        the target hidden before the source may come back."""
        del guest
        return False

    def missing_tools(self, guest: GuestFacts) -> Sequence[Tool]:
        return [tool for tool in self.tools(guest) if not tool.path]

    # ---- for the steps ---------------------------------------------------------------------------

    async def track(self, scene: Scene) -> Receipt:
        """Begin to note every write to the sources, where it ``tracks``; again is nothing."""
        raise NotImplementedError

    async def untrack(self, scene: Scene) -> None:
        """End that; nothing where it never began."""
        raise NotImplementedError

    async def leave(self, scene: Scene) -> None:
        """A disk is about to leave the server: nothing of the method may need it any more."""
        del scene

    @abc.abstractmethod
    async def prepare(self, scene: Scene) -> Receipt:
        """Bring the target's content into a state that passes can work on."""

    @abc.abstractmethod
    async def sync(self, scene: Scene) -> Receipt:
        """Passes until everything was copied and compared, and further ones gain nothing."""

    @abc.abstractmethod
    async def catch_up(self, scene: Scene) -> Outlook:
        """One more pass, unless the last one has only just ended; what it promises."""

    @abc.abstractmethod
    def content(self, scene: Scene) -> Json:
        """What is copied, in the shape that the agent's cutover takes."""

    def meanwhile(
        self, scene: Scene, job: Job, *, plug: bool
    ) -> Callable[[Json], Awaitable[None]] | None:
        """What a switch in the guest needs done from outside, told each status: its sources put in
        (``plug``), or taken out."""
        del scene, job, plug
        return None

    # ---- the cutover, which is the same for all but for its content ------------------------------

    def _switch(self, scene: Scene, sides: list[Json]) -> Json:
        wanted = scene.plan.wanted
        return {
            **self.content(scene),
            "units": [
                {
                    "name": unit.name,
                    "stop_timeout_s": wanted.timeouts.cutover_s,
                    "start_timeout_s": wanted.timeouts.cutover_s,
                }
                for unit in scene.plan.units
            ],
            "stop": list(wanted.stop),
            "start": list(wanted.start),
            "sides": {"files": sides},
            "deadline_s": wanted.timeouts.cutover_s,
            "settle_s": wanted.settle_s,
            "max_downtime_s": wanted.max_downtime_s,
        }

    async def cutover(self, scene: Scene) -> Outcome:
        """Let the guest cut over, and wait for what it says of it."""
        sides, changes = await scene.guest.sides(scene)
        for change in changes:
            await scene.tell("note", text=change)
        await scene.guest.run_job(
            scene,
            "cutover",
            str(len(scene.passes())),
            self._switch(scene, sides),
            deadline_s=_hears_within(scene),
            what="cutover",
            meanwhile=self.meanwhile(scene, "cutover", plug=False),
            flag="--cutover-timeout",
            uninterrupted=True,
        )
        outcome = await self.outcome(scene, "cutover", forward=True)
        assert outcome is not None
        return outcome.model_copy(update={"fstab_changes": tuple(changes)})

    async def cutback(self, scene: Scene) -> Outcome:
        """Let the guest go back to the source."""
        timeouts = scene.plan.wanted.timeouts
        result: Json = await scene.guest.run_job(
            scene,
            "cutback",
            "",
            {},  # the guest has kept what the cutover was told
            deadline_s=3 * timeouts.cutover_s + timeouts.attach_s,
            what="going back to the source",
            meanwhile=self.meanwhile(scene, "cutback", plug=True),
            flag="--cutover-timeout",
            uninterrupted=True,
        )
        return await _heard(scene, "cutback", result)

    async def outcome(self, scene: Scene, job: Job, *, forward: bool) -> Outcome | None:
        """How the switch that the guest began last has ended; None when that was another job.

        A cutover that runs is waited for. So is a way back going ``forward``, where it has lost its
        sources: those that are there are taken out, as beside one the target may not be shown. Else
        one that runs is None: ``cutback`` joins it.
        """
        on_target = job == "cutover" or forward
        result: Json | None = await scene.guest.result_of(
            scene,
            job,
            wait=on_target,
            deadline_s=_hears_within(scene),
            flag="--cutover-timeout",
            meanwhile=self.meanwhile(scene, job, plug=False) if on_target else None,
        )
        return await _heard(scene, job, result) if result else None


def _hears_within(scene: Scene) -> float:
    """Seconds until a cutover's end is heard of, whoever began it. Its deadline is the guest's,
    which takes it back by itself, and that may take as long again."""
    wanted = scene.plan.wanted
    return 3 * wanted.timeouts.cutover_s + wanted.settle_s + wanted.timeouts.attach_s


async def _heard(scene: Scene, job: Job, result: Json) -> Outcome:
    """The outcome in what a switch ended with; what the guest noted on the way is told."""
    what = "going back" if job == "cutback" else job
    for number, text in enumerate(result["notes"], start=1):
        await scene.tell_note(f"{result['job_id']}.{number}", f"{what}: {text}")
    return Outcome.model_validate({**result["outcome"], "job_id": result["job_id"]})


def all_methods() -> list[Method]:
    """One of each, the preferred first."""
    return sorted((cls() for cls in Method.registry.values()), key=lambda method: method.preference)


def method(name: str) -> Method:
    """The method of that name; ``KeyError`` when there is none."""
    return Method.registry[name]()


for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
