"""What the controller makes of what the mirror in the guest says."""

from typing import Any

import cli_world as world
import pytest

from volferry.errors import Stop
from volferry.methods.mirror import Mirror
from volferry.model import Json, Pass, Timeouts
from volferry.steps.cutover import Cutover
from volferry.steps.step import Context

OVERRUN = "everything is compared again: 12 events were lost (overrun)"


def one_pass(id: str, started_at: float = 1000.0, **changes: Any) -> Json:
    number = int(id.rpartition(".")[2])
    return {"id": id, "number": number, "started_at": started_at, **changes}


class MirroringGuest:
    """Says what the test wants its mirror to say."""

    is_there = True

    def __init__(self) -> None:
        self.state = "running"
        self.told: list[Json] = []
        self.figures: Json = {
            "phase": "current",
            "passes": [],
            "dirty_bytes": 0,
            "dirty_bytes_s": 0.0,
            "unverified_bytes": 0,
            "copy_bytes_s": 100e6,
            "compare_bytes_s": 100e6,
            "mask_s": 0.01,
            "publish_s": 0.01,
            "systemctl_s": 0.01,
            "pace": 0.05,
            "verified": True,
            "verify": "full",
            "standby": False,
            "notes": [],
            "notes_id": "aa",
            "notes_count": 0,
        }
        self.results: dict[str, Json] = {}
        self.waits_s: list[float] = []

    def says(self, **figures: Any) -> None:
        self.figures = {**self.figures, **figures}

    async def start_mirror(self, sources: Any) -> None: ...

    async def last_job(self) -> str:
        return next(iter(self.results), "")

    async def stop_mirror(self) -> None:
        self.state = "ended"

    async def mirror_status(self) -> Json:
        return {"state": self.state, "progress": {"figures": self.figures}}

    async def tell_mirror(self, message: Json) -> Json:
        self.told.append(message)
        if message["do"] == "set":
            self.says(pace=message["pace"])
        return self.figures

    def pairs(self, scene: Any) -> list[Json]:
        return []

    async def sides(self, scene: Any) -> tuple[list[Json], list[str]]:
        return [], []

    def filesystems(self, scene: Any) -> list[Json]:
        return []

    def layers(self, scene: Any) -> list[Json]:
        return []

    async def result_of(self, scene: Any, job: str, **named: Any) -> Json | None:
        self.waits_s.append(named["deadline_s"] if named["wait"] else 0.0)
        return self.results.get(job)

    async def run_job(self, scene: Any, job: str, *more: Any, **named: Any) -> Json:
        self.waits_s.append(named["deadline_s"])
        return self.results[job]


@pytest.fixture
def guest() -> MirroringGuest:
    return MirroringGuest()


def scene_of(guest: MirroringGuest, line: Any = None, **wanted: Any) -> Context:
    plan = world.plan()
    plan = plan.model_copy(update={"wanted": plan.wanted.model_copy(update=wanted)})
    return Context(world.ID, plan, guest=guest, method=Mirror(), line=line)


def notes(scene: Any) -> list[str]:
    return [event.facts["text"] for event in scene.line.told if event.kind == "note"]


def switch(*texts: str, job_id: str = "cutover-2-ab") -> Json:
    outcome = {"result": "committed", "live": "target"}
    return {"outcome": outcome, "notes": list(texts), "job_id": job_id, "within_budget": True}


# ---- notes ---------------------------------------------------------------------------------------


async def test_what_the_mirror_noted_is_told_once_however_often_it_is_asked(
    guest: MirroringGuest,
) -> None:
    scene = scene_of(guest)
    guest.says(notes=[OVERRUN], notes_count=1)

    await Mirror().catch_up(scene)
    await Mirror().catch_up(scene)
    assert notes(scene) == [f"mirror: {OVERRUN}"]

    guest.says(notes=[OVERRUN, OVERRUN], notes_count=2)
    await Mirror().catch_up(scene)
    assert notes(scene) == [f"mirror: {OVERRUN}"] * 2, "it was lost twice"


async def test_a_later_process_does_not_tell_again_what_is_in_the_journal(
    guest: MirroringGuest,
) -> None:
    scene = scene_of(guest)
    guest.says(notes=[OVERRUN], notes_count=1)
    await Mirror().catch_up(scene)

    resumed = scene_of(guest, line=scene.line)
    guest.says(notes=[OVERRUN, "1 chunks differed"], notes_count=2)
    await Mirror().catch_up(resumed)

    assert notes(resumed) == [f"mirror: {OVERRUN}", "mirror: 1 chunks differed"]


async def test_notes_that_were_pushed_out_of_the_last_ones_do_not_move_the_others(
    guest: MirroringGuest,
) -> None:
    scene = scene_of(guest)
    guest.says(notes=["one", "two"], notes_count=2)
    await Mirror().catch_up(scene)

    guest.says(notes=["two", "three"], notes_count=3)
    await Mirror().catch_up(scene)

    assert notes(scene) == ["mirror: one", "mirror: two", "mirror: three"]


async def test_a_mirror_that_is_ended_is_asked_for_its_last_words(guest: MirroringGuest) -> None:
    scene = scene_of(guest)
    guest.says(notes=[OVERRUN], notes_count=1)

    await Mirror().leave(scene)

    assert notes(scene) == [f"mirror: {OVERRUN}"]
    assert guest.state == "ended"


async def test_what_a_cutover_noted_is_told_once_and_that_of_the_next_one_too(
    guest: MirroringGuest,
) -> None:
    scene = scene_of(guest)
    gone = "the source is no standby: its mirror ended before it was one"
    guest.results["cutover"] = switch(gone)

    await Mirror().outcome(scene, "cutover", forward=True)
    await Mirror().outcome(scene_of(guest, line=scene.line), "cutover", forward=True)
    assert notes(scene) == [f"cutover: {gone}"]

    guest.results["cutover"] = switch(gone, job_id="cutover-3-cd")
    await Mirror().outcome(scene, "cutover", forward=True)
    assert notes(scene) == [f"cutover: {gone}"] * 2


async def test_a_way_back_is_waited_for_by_who_goes_forward_alone(guest: MirroringGuest) -> None:
    """Else it is joined, and its source put in: to wait would be to let it fail."""
    scene = scene_of(guest)
    for forward, waits in ((False, False), (True, True)):
        await Mirror().outcome(scene, "cutback", forward=forward)
        assert (guest.waits_s[-1] > 0) is waits
    await Mirror().outcome(scene, "cutover", forward=False)
    assert guest.waits_s[-1] > 0, "how a cutover ends is to be known before anything is asked"


async def test_what_the_way_back_noted_is_told(guest: MirroringGuest) -> None:
    scene = scene_of(guest)
    guest.results["cutback"] = switch("command 'x' failed", job_id="cutback--ef")

    await Mirror().cutback(scene)

    assert notes(scene) == ["going back: command 'x' failed"]


# ---- passes --------------------------------------------------------------------------------------


async def test_a_pass_counts_though_the_guests_clock_was_set_back(guest: MirroringGuest) -> None:
    scene = scene_of(guest)
    guest.says(passes=[one_pass("aa.1", started_at=5000.0)])
    await Mirror().catch_up(scene)

    guest.says(passes=[one_pass("aa.1", started_at=5000.0), one_pass("aa.2", started_at=1400.0)])
    await Mirror().catch_up(scene)
    await Mirror().catch_up(scene)

    assert [(one.id, one.number) for one in scene.passes()] == [("aa.1", 1), ("aa.2", 2)]


async def test_the_first_pass_of_a_process_that_began_again_is_not_the_first_pass(
    guest: MirroringGuest,
) -> None:
    scene = scene_of(guest)
    guest.says(passes=[one_pass("aa.1"), one_pass("aa.2", final=True)])
    await Mirror().catch_up(scene)

    resumed = scene_of(guest, line=scene.line)
    guest.says(passes=[one_pass("bb.1")])
    await Mirror().catch_up(resumed)

    kept: list[Pass] = list(resumed.passes())
    assert [(one.id, one.number, one.final) for one in kept] == [
        ("aa.1", 1, False),
        ("aa.2", 2, True),
        ("bb.1", 3, False),
    ]


# ---- when passes gain nothing any more -----------------------------------------------------------

# 2 GiB at 100 MB/s take longer than the ten seconds that are allowed.
DIVERGED: Json = {
    "dirty_bytes": 2 << 30,
    "passes": [one_pass("aa.1", bytes_copied=2 << 30), one_pass("aa.2", bytes_copied=2 << 30)],
}
GAINING: Json = {
    **DIVERGED,
    "passes": [one_pass("aa.1", bytes_copied=9 << 30), one_pass("aa.2", bytes_copied=2 << 30)],
}
FITTING: Json = {**DIVERGED, "dirty_bytes": 1 << 20}


@pytest.mark.parametrize("then", ["hold", "throttle-sync", "cutover"])
async def test_only_throttle_sync_takes_the_giving_way_from_a_copy_that_gains_nothing(
    guest: MirroringGuest, then: str
) -> None:
    scene = scene_of(guest, on_divergence=then)
    guest.says(**DIVERGED)

    assert not (await Mirror().catch_up(scene)).gains
    await Mirror().catch_up(scene)

    throttled = then == "throttle-sync"
    orders = [message for message in guest.told if message["do"] == "set"]
    assert orders == ([{"do": "set", "pace": 1.0}] if throttled else [])
    said = "from now on copying does not give way to the service"
    assert notes(scene) == ([said] if throttled else [])


@pytest.mark.parametrize(("figures", "gains"), [(GAINING, True), (FITTING, False)])
async def test_a_copy_gives_way_while_it_gains_and_when_it_fits(
    guest: MirroringGuest, figures: Json, gains: bool
) -> None:
    guest.says(**figures)
    outlook = await Mirror().catch_up(scene_of(guest, on_divergence="throttle-sync"))

    assert outlook.gains is gains
    assert not [message for message in guest.told if message["do"] == "set"]


async def test_a_service_that_writes_nothing_leaves_nothing_to_gain(guest: MirroringGuest) -> None:
    guest.says(passes=[one_pass("aa.1", bytes_copied=2 << 30)])
    assert not (await Mirror().catch_up(scene_of(guest))).gains

    guest.says(verified=False)
    ended = scene_of(guest, timeouts=Timeouts(sync_s=0.0))
    assert (await Mirror().catch_up(ended)).gains, "what was not compared is not cut over"


@pytest.mark.parametrize(("then", "goes"), [("hold", False), ("cutover", True)])
async def test_the_gate_hears_that_passes_gain_nothing(
    guest: MirroringGuest, then: str, goes: bool
) -> None:
    scene = scene_of(guest, on_divergence=then, timeouts=Timeouts(sync_s=0.0), cutover="auto")
    guest.says(**DIVERGED)
    guest.results["cutover"] = switch()
    scene.known = {"target": {"targets": []}}

    if goes:
        receipt = await Cutover().do(scene)
        assert receipt["outcome"]["result"] == "committed"
    else:
        with pytest.raises(Stop, match="passes gain nothing any more; holds"):
            await Cutover().do(scene)


async def test_a_guest_that_could_not_go_back_is_not_taken_for_one_that_moved(
    guest: MirroringGuest,
) -> None:
    """A stack's source is detached before the commit, so a service that dies on the target stays
    down there: to go on would make the only other side read-only behind its back."""
    scene = scene_of(guest, cutover="auto")
    guest.results["cutover"] = switch()
    guest.results["cutover"]["outcome"]["reason"] = "db.service became failed while settling"
    scene.known = {"target": {"targets": []}}

    with pytest.raises(Stop, match=r"stayed on the target.*db\.service became failed") as stopped:
        await Cutover().do(scene)

    assert "resume" in stopped.value.hint
    assert "--accept-loss" in stopped.value.hint
    found = await Cutover().find(scene)
    assert found, "with the user's word it goes on"
    assert found["outcome"]["live"] == "target"


async def test_a_cutover_that_settles_for_long_is_waited_for_as_long_after_a_kill(
    guest: MirroringGuest,
) -> None:
    scene = scene_of(guest, settle_s=3600.0)
    guest.results["cutover"] = switch()

    await Mirror().cutover(scene)
    began = list(guest.waits_s)
    await Mirror().outcome(scene, "cutover", forward=True)

    assert min(began) > 3600.0
    assert set(guest.waits_s) == set(began)
