"""What the guest says of a failure reaches the user with all its lines, whichever it left out."""

import json

import pytest

from volferry.agent.jobs import JOBS
from volferry.agent.wire import VERBS
from volferry.errors import VolferryError
from volferry.guests import linux

BARE = {"kind": "failed", "what": "umount failed", "data": "", "hint": ""}
CARRIED = {"job prepare", "job pass", "job mirror"}
"""The engine carries them: it says how the transfer goes on (see its tests)."""


def told(failed: str, **more: str) -> VolferryError:
    error = {**BARE, **more}
    with pytest.raises(VolferryError) as raised:
        if failed.startswith("job "):
            status = {"state": "ended", "result": None, "error": error}
            linux._result(failed.removeprefix("job "), status)
        else:
            linux._answer(failed, json.dumps({"ok": False, "error": error}).encode(), "")
    return raised.value


def test_every_verb_and_every_job_has_its_lines() -> None:
    assert sorted(linux._MEANS) == sorted([*VERBS, *(f"job {job}" for job in JOBS)])


@pytest.mark.parametrize("failed", linux._MEANS)
def test_a_bare_error_gets_them(failed: str) -> None:
    error = told(failed)
    assert error.what == "umount failed" and error.data
    assert error.hint or failed in CARRIED


def test_what_the_agent_knows_better_stays() -> None:
    error = told("install", data="nothing was installed", hint="remove it")
    assert (error.data, error.hint) == ("nothing was installed", "remove it")


def test_a_mirror_that_ended_says_what_that_means() -> None:
    assert "compared" in linux.LinuxGuest.mirror_error(BARE).data
