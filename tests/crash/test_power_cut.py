"""Power fails at every moment of a whole transfer, of the real steps on fakes that are proven.

From each moment a resumed transfer ends as if nothing had happened, and one that is rolled back
leaves nothing (after the commit only when the loss was accepted; to a standby unasked, and it loses
nothing); a rollback that is cut itself, at each of its own moments, ends when it is said again. At
every moment a boot could mount one volume and no other: the live one.
"""

import multiprocessing
import os
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
import sweep_world as w

from tests.crash.cut_command import CLOUD
from tests.crash.effects import first_of_each, moments
from tests.crash.tally import Tally
from volferry.model import Seed

SCENARIOS: tuple[w.Scenario, ...] = (
    w.Scenario("a snapshot and a retype"),
    w.Scenario("the mirror", method="mirror", away_s=(2.0,)),
    w.Scenario("an array", method="mirror", array=True, seed=Seed.BLANK, away_s=(2.0,)),
    w.Scenario("a standby", method="mirror", seed=Seed.BLANK, away_s=(2.0,),
               wanted={"keep_standby": True}),
    w.Scenario("a blank target", seed=Seed.BLANK, unseen_s=4.0),
    w.Scenario("a type at once, fstab by device", type="cbs-standard-iops", by_device=True,
               away_s=(900.0,)),
)  # fmt: skip
EVERY = bool(os.environ.get("VOLFERRY_EVERY_CUT"))
if EVERY:  # longer than all others together; test_pairs_crash.py cuts two volumes in every run
    SCENARIOS += (
        w.Scenario("two btrfs volumes, held", fstype="btrfs", volumes=("data", "log"),
                   away_s=(3.0,), wanted={"hold": True, "cutover": "manual"}, asked=("cutover",)),
    )  # fmt: skip
BY_NAME = {scenario.name: scenario for scenario in SCENARIOS}
STANDBY = BY_NAME["a standby"]
KILLED = BY_NAME["a blank target"]
"""The one whose every moment is the SIGKILL of a real process."""

LATE_S = 6.0
"""How long after the controller is back the cloud carries out what it was asked for before."""

WORKERS = 12
"""A life waits most of its time, for polls of engine and steps (seen: 15 % of a core)."""

processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["sweep_world", "sqlalchemy.dialects.sqlite", "dbos"])


@dataclass(frozen=True)
class Cut:
    """What became of one moment."""

    number: int
    what: str
    live: str
    """The live side at that moment."""
    ours: bool
    """Whether our agent was still in the guest."""
    resumed: tuple[w.End, ...]
    late: tuple[w.End, ...]
    """Resumed, and rolled back, while the cloud still carries out what it was asked for then."""
    asked: w.End
    """After a rollback that accepts no loss."""
    back: w.End
    """After one that does; the same before the commit, when there is nothing to lose."""
    repeated: tuple[w.End, ...]
    """After it was cut at each of its moments and said again."""

    def __str__(self) -> str:
        return f"{self.number} {self.what}"

    @property
    def committed(self) -> bool:
        """Also when the guest was about to and had it done by the time it was asked."""
        return self.asked.ended.startswith("NeedsConsent")

    @property
    def forgotten(self) -> bool:
        return self.live == "target" and not self.ours

    @property
    def moved(self) -> bool:
        """Committed at that moment, and the way back is known."""
        return self.live == "target" and self.ours


@dataclass(frozen=True)
class Swept:
    scenario: w.Scenario
    before: w.End
    whole: w.End
    said: list[str]
    cuts: "list[Future[Cut]]"

    def every(self) -> Iterator[Cut]:
        for future in self.cuts:
            yield future.result()

    def is_as_before(self, end: w.End, loss: bool = False) -> bool:
        """Rolled back, and nothing tells that there ever was a transfer but the writes it cost."""
        picture = {**end.picture, "lost": 0} if loss else end.picture
        nothing = (picture, end.receipts, end.begun) == (self.before.picture, (), None)
        return nothing and end.ended == "rolled back"


def record(root: Path, scenario: w.Scenario) -> tuple[w.End, w.End, list[str]]:
    before = w.begin(root, scenario)
    whole, said = w.recorded(root, "carry")
    return before, whole, said


def cut(root: Path, number: int, what: str, scenario: w.Scenario, deep: bool) -> Cut:
    """All that can follow a kill at a moment, each in a copy of what it left."""
    world = w.World.kept(root)
    resumed, late = [], []
    for away_s in scenario.away_s:
        resumed.append(life(root, "carry", away_s))
    away_s = scenario.away_s[0]
    if what.startswith("before ") and what.split()[1] in CLOUD:
        late = [life(root, verb, away_s, LATE_S) for verb in ("carry", "take back anyway")]
    asked = back = life(root, "take back", away_s)
    repeated = []
    if deep:
        there = Path(shutil.copytree(root, f"{root}-back"))
        back, said = w.recorded(there, "take back anyway", away_s=away_s)
        # One after the other, and so the longest of all lives: `make test` lives a third of them.
        step = 1 if EVERY else 3
        for moment in range(1 + number % step, len(said) + 1, step):
            again = there.with_name(f"{there.name}-{moment}")
            repeated.append(w.live(again, "take back anyway", late_s=LATE_S)[0])
            shutil.rmtree(again)
        shutil.rmtree(there)
    elif asked.ended.startswith("NeedsConsent"):
        back = life(root, "take back anyway", away_s)
    shutil.rmtree(root)
    ours = w.ID in world.guest.installed
    return Cut(
        number, what, world.live(), ours, tuple(resumed), tuple(late), asked, back, tuple(repeated)
    )


def life(root: Path, verb: str, away_s: float, late_s: float = 0.0) -> w.End:
    there = Path(shutil.copytree(root, f"{root}-life"))
    end, _ = w.live(there, verb, away_s=away_s, late_s=late_s)
    shutil.rmtree(there)
    return end


def killed(root: Path, moment: int) -> None:
    """From the beginning, by a process of its own that dies at the moment."""
    shutil.rmtree(root)
    w.begin(root, KILLED)
    process = processes.Process(target=w.killed, args=(str(root), "carry", moment))
    process.start()
    process.join(300)
    assert process.exitcode == -9, f"moment {moment} ended with {process.exitcode}"
    process.close()


def is_deep(scenario: w.Scenario, what: str) -> bool:
    """Whether the rollback from here is cut as well: where the way back is longest, which passes
    all others on its way, and for one scenario in the middle of steps too."""
    middle = ("before receipt attach", "before receipt sync", "before receipt cutover")
    return what == "after receipt protect" or (scenario is SCENARIOS[0] and what in middle)


def memory() -> str | None:
    """Where files are written without waiting for a disk: a kill loses nothing of them either."""
    shm = "/dev/shm"
    roomy = os.path.isdir(shm) and shutil.disk_usage(shm).free > 2 << 30
    return shm if roomy else None


@pytest.fixture(scope="module")
def swept() -> Iterator[dict[str, Swept]]:
    """Everything is lived side by side while the tests look."""
    found: dict[str, Swept] = {}
    with (
        tempfile.TemporaryDirectory(prefix="volferry-sweep-", dir=memory()) as base,
        # Beside it a guest is emulated, and nothing in here looks at a clock.
        ProcessPoolExecutor(WORKERS, processes, os.nice, (10,)) as pool,
        ThreadPoolExecutor(WORKERS) as threads,
    ):

        def killed_then_cut(root: Path, number: int, what: str) -> Cut:
            killed(root, number)
            return pool.submit(cut, root, number, what, KILLED, is_deep(KILLED, what)).result()

        roots = [Path(base) / f"scenario{number}" for number in range(len(SCENARIOS))]
        recorded = [pool.submit(record, *each) for each in zip(roots, SCENARIOS, strict=True)]
        for scenario, root, recording in zip(SCENARIOS, roots, recorded, strict=True):
            before, whole, said = recording.result()
            cuts = []
            for number, what in enumerate(said, 1):
                here = root.with_name(f"{root.name}-{number}")
                if scenario is KILLED:
                    cuts.append(threads.submit(killed_then_cut, here, number, what))
                else:
                    deep = is_deep(scenario, what)
                    cuts.append(pool.submit(cut, here, number, what, scenario, deep))
            found[scenario.name] = Swept(scenario, before, whole, said, cuts)
        yield found
        pool.shutdown(cancel_futures=True)


@pytest.fixture(params=[scenario.name for scenario in SCENARIOS])
def one(request: pytest.FixtureRequest, swept: dict[str, Swept]) -> Swept:
    return swept[request.param]


def test_a_transfer_cut_at_any_moment_and_resumed_ends_the_same(one: Swept, tally: Tally) -> None:
    wrong = {}
    for done in one.every():
        tally.points += 1
        for end in done.resumed:
            if end == one.whole:
                tally.resumed += 1
            else:
                wrong[str(done)] = end
    assert one.whole.ended == "done"
    assert not wrong, places(wrong)


def test_what_the_cloud_carries_out_after_its_asker_died_is_neither_lost_nor_doubled(
    one: Swept, tally: Tally
) -> None:
    wrong, requests = {}, 0
    for done in one.every():
        if not done.late:
            continue
        requests += 1
        on, back = done.late
        if on == one.whole:
            tally.resumed += 1
        else:
            wrong[f"{done}, resumed"] = on
        if done.forgotten or one.is_as_before(back, loss=True):
            tally.rolled_back += not done.forgotten
        else:
            wrong[f"{done}, rolled back"] = back
    tally.points += requests
    assert requests >= 4
    assert not wrong, places(wrong)


def test_a_transfer_cut_before_the_commit_and_rolled_back_leaves_nothing(
    one: Swept, tally: Tally
) -> None:
    wrong = {}
    for done in one.every():
        if done.moved and one.scenario.standby:
            continue
        if not done.committed and not done.forgotten:
            if one.is_as_before(done.asked) and done.live == "source":
                tally.rolled_back += 1
            else:
                wrong[str(done)] = done.asked
    assert not wrong, places(wrong)


def test_a_transfer_cut_after_the_commit_goes_back_only_when_the_loss_is_accepted(
    one: Swept, tally: Tally
) -> None:
    wrong, asked = {}, False
    for done in one.every():
        if done.committed:
            asked, asks = True, done.asked.picture["at boot"].values()
            on_target = all(role.startswith("target") for [role] in asks)
            if on_target and one.is_as_before(done.back, loss=True):
                tally.rolled_back += 1
            else:
                wrong[str(done)] = (done.asked, done.back)
    assert asked is not one.scenario.standby
    assert not wrong, places(wrong)


def test_a_transfer_cut_after_the_commit_goes_back_to_its_standby_unasked_and_loses_nothing(
    swept: dict[str, Swept], tally: Tally
) -> None:
    one, wrong, moved = swept[STANDBY.name], {}, 0
    for done in one.every():
        moved += done.moved
        if done.committed or (done.moved and not one.is_as_before(done.asked)):
            wrong[str(done)] = done.asked
    tally.rolled_back += moved - len(wrong)
    assert moved > 10
    assert not wrong, places(wrong)


def test_once_the_guest_has_forgotten_the_way_back_there_is_only_the_way_forward(
    one: Swept,
) -> None:
    gone = [done for done in one.every() if done.forgotten]

    assert gone
    for done in gone:
        assert done.live == "target" and done.back == done.asked
        assert done.asked.ended.startswith("NoWayBack") or done.asked.ended == "done", done.asked


def test_a_rollback_that_is_cut_at_any_moment_and_said_again_leaves_nothing(
    one: Swept, tally: Tally
) -> None:
    wrong, moments = {}, 0
    for done in one.every():
        moments += len(done.repeated)
        for moment, end in enumerate(done.repeated, 1):
            if one.is_as_before(end, loss=done.committed):
                tally.rolled_back += 1
            else:
                wrong[f"{done}, moment {moment}"] = end
    tally.points += moments
    assert moments > 10
    assert not wrong, places(wrong)


@pytest.mark.parametrize(
    ("name", "scenario"), [("rsync", "a snapshot and a retype"), ("mirror", "the mirror")]
)
def test_the_lab_cuts_at_every_effect_that_was_recorded(
    swept: dict[str, Swept], name: str, scenario: str
) -> None:
    assert [moment for _, _, moment in moments(name)] == first_of_each(swept[scenario].said)


def places(wrong: dict[str, object]) -> str:
    return f"{len(wrong)} moments:\n" + "\n".join(f"{at}: {end}" for at, end in wrong.items())
