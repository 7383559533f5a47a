"""What the controller makes of what the mirror in the guest says."""

from typing import Any

import cli_world as world
import pytest

from volferry.methods.mirror import Mirror
from volferry.model import Json, Pass
from volferry.steps.step import Context


def one_pass(id: str, started_at: float = 1000.0, **changes: Any) -> Json:
    number = int(id.rpartition(".")[2])
    return {"id": id, "number": number, "started_at": started_at, **changes}


class MirroringGuest:
    """Says what the test wants its mirror to say."""

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
            "verified": True,
            "verify": "full",
            "standby": False,
            "notes": [],
        }

    def says(self, **figures: Any) -> None:
        self.figures = {**self.figures, **figures}

    async def start_mirror(self, sources: Any) -> None: ...

    async def stop_mirror(self) -> None:
        self.state = "ended"

    async def mirror_status(self) -> Json:
        return {"state": self.state, "progress": {"figures": self.figures}}

    async def tell_mirror(self, message: Json) -> Json:
        self.told.append(message)
        return self.figures

    def pairs(self, scene: Any) -> list[Json]:
        return []


@pytest.fixture
def guest() -> MirroringGuest:
    return MirroringGuest()


def scene_of(guest: MirroringGuest, line: Any = None, **wanted: Any) -> Context:
    plan = world.plan()
    plan = plan.model_copy(update={"wanted": plan.wanted.model_copy(update=wanted)})
    return Context(world.ID, plan, guest=guest, method=Mirror(), line=line)


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
