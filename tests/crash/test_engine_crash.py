"""Power fails at every moment of a transfer: resuming ends as if nothing had happened, rolling
back leaves nothing, and no effect happens twice.

The processes are real and die of SIGKILL. They are forked from one that has already imported
everything, and all moments run side by side before the first test looks at one.
"""

import multiprocessing
import shutil
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.connection import wait
from pathlib import Path
from threading import Lock
from typing import Any

import engine_world as w
import pytest

from volferry import errors
from volferry.model import State
from volferry.store import Store

processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(
    ["pytest", "volferry.engine", "sqlalchemy.dialects.sqlite", "dbos"]
)
FORWARD = range(1, w.FORWARD + 1)
BACK = range(1, w.BACK + 1)
FEW = range(1, w.FORWARD + 1, 3)


ONE_AT_A_TIME = Lock()
"""Starting a process also reaps those of other threads: one that is reaped twice ended with 255."""


def run(target: Any, *args: Any) -> int | None:
    process = processes.Process(target=target, args=args)
    with ONE_AT_A_TIME:
        process.start()
    wait([process.sentinel], 300)
    with ONE_AT_A_TIME:
        process.join(0)
        code = process.exitcode
        process.close()
    return code


def killed_then(root: Path, first: str, moment: int, *then: str) -> dict[str, Path]:
    """A process that is killed at ``moment``; then, in copies of what it left, another process."""
    assert run(w.process, str(root), first, moment, "kill") == -9
    ends = {}
    for verb in then:
        ends[verb] = root.with_name(f"{root.name}-{verb}")
        shutil.copytree(root, ends[verb])
        assert run(w.process, str(ends[verb]), verb, 0, "kill") == 0
    return ends


def cut_then(root: Path, first: str, moment: int, then: str) -> dict[str, Path]:
    assert run(w.cut_and_go_on, str(root), first, moment, then) == 0
    return {then: root}


Runs = dict[tuple[str, str, int], "Future[dict[str, Path]]"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    base = tmp_path_factory.mktemp("crash")
    fresh, done = base / "fresh", base / "done"
    w.begin(fresh)
    w.begin(done)
    assert run(w.process, str(done), "carry", 0, "kill") == 0

    def copy(source: Path, name: str) -> Path:
        shutil.copytree(source, base / name)
        return base / name

    with ThreadPoolExecutor(8) as pool:
        found: Runs = {}
        for m in FORWARD:
            found["kill", "carry", m] = pool.submit(
                killed_then, copy(fresh, f"kill-{m}"), "carry", m, "carry", "take_back"
            )
        for m in BACK:
            found["kill", "take_back", m] = pool.submit(
                killed_then, copy(done, f"kill-back-{m}"), "take_back", m, "take_back"
            )
        for m in FEW:
            found["cut", "carry", m] = pool.submit(
                cut_then, copy(fresh, f"cut-{m}"), "carry", m, "carry"
            )
            found["cut", "mixed", m] = pool.submit(
                cut_then, copy(fresh, f"mixed-{m}"), "carry", m, "take_back"
            )
        yield found


def look(root: Path) -> tuple[list[str], State, list[str], str | None]:
    with Store(root / "state") as store:
        transfer = store.transfer(w.ID)
        receipts, begun = list(store.receipts(w.ID)), store.open_intent(w.ID)
    return w.World(root).things(), transfer.state, receipts, begun


AS_IF_NOTHING_HAD_HAPPENED = (w.THINGS, State.DONE, [s.name for s in w.STEPS], None)
NOTHING_IS_LEFT: tuple[list[str], State, list[str], None] = ([], State.ROLLED_BACK, [], None)


@pytest.mark.parametrize("moment", FORWARD)
def test_a_transfer_killed_at_any_moment_and_resumed_ends_the_same(runs: Runs, moment: int) -> None:
    ends = runs["kill", "carry", moment].result()

    assert look(ends["carry"]) == AS_IF_NOTHING_HAD_HAPPENED


@pytest.mark.parametrize("moment", FORWARD)
def test_a_transfer_killed_at_any_moment_and_rolled_back_leaves_nothing(
    runs: Runs, moment: int
) -> None:
    ends = runs["kill", "carry", moment].result()

    assert look(ends["take_back"]) == NOTHING_IS_LEFT


@pytest.mark.parametrize("moment", BACK)
def test_a_rollback_killed_at_any_moment_and_repeated_leaves_nothing(
    runs: Runs, moment: int
) -> None:
    ends = runs["kill", "take_back", moment].result()

    assert look(ends["take_back"]) == NOTHING_IS_LEFT


@pytest.mark.parametrize("moment", FEW)
def test_a_power_cut_and_the_next_engine_of_the_same_process_goes_on(
    runs: Runs, moment: int
) -> None:
    ends = runs["cut", "carry", moment].result()

    assert look(ends["carry"]) == AS_IF_NOTHING_HAD_HAPPENED


@pytest.mark.parametrize("moment", FEW)
def test_a_power_cut_and_the_next_engine_of_the_same_process_takes_it_back(
    runs: Runs, moment: int
) -> None:
    ends = runs["cut", "mixed", moment].result()

    assert look(ends["take_back"]) == NOTHING_IS_LEFT


def test_every_effect_happened_once_although_the_process_was_killed(runs: Runs) -> None:
    for moment in FORWARD:
        root = runs["kill", "carry", moment].result()["carry"]
        said = [line.split(" ", 2)[2] for line in (root / "moments").read_text().splitlines()]
        made = [line for line in said if line.startswith("after create")]
        killed_inside = said[moment - 1].startswith("before create")
        begun = [line for line in said if line.startswith("before create")]

        assert len(made) == len(set(made)) <= len(w.THINGS)
        assert len(begun) == len(w.THINGS) + killed_inside


async def test_a_killed_forward_run_is_not_revived_by_a_rollback_and_then_forgotten(
    tmp_path: Path,
) -> None:
    """What DBOS remembers of steps that were undone since must not count as done."""
    root = tmp_path / "t"
    w.begin(root)
    assert run(w.process, str(root), "carry", w.FORWARD - 2, "kill") == -9
    assert run(w.process, str(root), "take_back", 3, "kill") == -9

    with pytest.raises(errors.Refused, match="cannot go forward any more"):
        await w.live(root, "carry")

    assert (await w.live(root, "take_back")).state is State.ROLLED_BACK
    assert w.World(root).things() == []


async def test_a_second_process_on_one_transfer_is_refused(tmp_path: Path) -> None:
    root = tmp_path / "t"
    w.begin(root)
    first = processes.Process(target=w.meeting, args=(str(root), w.ID, "first", "second"))
    first.start()
    while not w.World(root).has("first"):
        first.join(0.05)

    with pytest.raises(errors.Refused, match=f"being carried by process {first.pid}"):
        await w.live(root, "carry")
    with Store(root / "state") as store:
        assert store.running(w.ID) == first.pid
        assert store.transfer(w.ID).state is State.RUNNING

    w.World(root).create("second")
    first.join(300)
    assert first.exitcode == 0
    first.close()


async def test_two_different_transfers_run_at_once(tmp_path: Path) -> None:
    root = tmp_path / "t"
    names = [("tr-a", "here", "there"), ("tr-b", "there", "here")]
    for id, source, _ in names:
        w.begin(root, id, source)
    both = [processes.Process(target=w.meeting, args=(str(root), *name)) for name in names]
    for one in both:
        one.start()
    for one in both:
        one.join(300)
        assert one.exitcode == 0
        one.close()

    with Store(root / "state") as store:
        assert [t.state for t in store.transfers()] == [State.DONE, State.DONE]
