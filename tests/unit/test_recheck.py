"""A reviewed plan is carried out only while it still fits the world."""

from typing import Any

import cli_world as world
import pytest

from volferry.errors import Refused
from volferry.methods.rsync import excluded
from volferry.model import Plan
from volferry.operations import recheck


def other(plan: Plan, number: int, **changes: Any) -> Plan:
    """The plan with another pair of that number."""
    pairs = list(plan.pairs)
    pairs[number] = pairs[number].model_copy(update=changes)
    return plan.model_copy(update={"pairs": tuple(pairs)})


def test_a_plan_that_still_fits_is_carried_out() -> None:
    recheck(world.plan_of_two(), world.plan_of_two().model_copy(update={"made_at": 1.0}))


def test_what_differs_is_named_with_both_figures() -> None:
    planned = world.plan_of_two()
    grown = planned.pairs[1].source.model_copy(update={"size_gib": 9})

    with pytest.raises(Refused) as wrong:
        recheck(planned, other(planned, 1, source=grown, target_type="gold"))

    assert "source sizes in GiB: planned [50, 8], now [50, 9]" in wrong.value.what
    assert "target types: planned ['cbs-premium', 'cbs-premium'], now" in wrong.value.what
    assert wrong.value.data == "nothing was changed"


def test_a_volume_fewer_is_another_plan() -> None:
    with pytest.raises(Refused, match="source volumes: planned"):
        recheck(world.plan_of_two(), world.plan())


def test_a_filesystem_that_went_to_another_volume_is_another_plan() -> None:
    planned = world.plan_of_two()
    moved = planned.guest.filesystems[1].model_copy(update={"volume_id": world.SOURCE})
    guest = planned.guest.model_copy(update={"filesystems": (planned.guest.filesystems[0], moved)})

    with pytest.raises(Refused, match="filesystems: planned"):
        recheck(planned, planned.model_copy(update={"guest": guest}))


def test_a_new_refusal_is_said_of_all_volumes_by_their_names() -> None:
    planned = world.plan_of_two()
    refused = planned.model_copy(update={"checks": world.refused().checks})

    with pytest.raises(Refused, match="sourcevol, log cannot be moved: quota"):
        recheck(planned, refused)


@pytest.mark.parametrize(
    ("path", "mount", "left_out"),
    [
        ("cache", "/srv/data", "cache"),
        ("/cache", "/srv/data", "cache"),
        ("/srv/data/cache", "/srv/data", "cache"),
        ("/srv/log/old/", "/srv/log", "old"),
        ("/srv/data/inner/tmp", "/srv/data/inner", "tmp"),
        ("/srv/database/tmp", "/srv/data", "srv/database/tmp"),
    ],
)
def test_a_path_is_left_out_of_the_mount_that_it_lies_in(
    path: str, mount: str, left_out: str
) -> None:
    mounts = ["/srv/data", "/srv/log", "/srv/data/inner"]
    assert excluded([path], mounts) == {mount: [left_out]}
