"""What a follower says of itself, and what of that outlives its process."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from volferry.agent import follow
from volferry.agent.basics import Place
from volferry.agent.follow import NOTES_KEPT, Follower
from volferry.agent.jobs import Job


def begun(folder: Path) -> Follower:
    """A process of a follower, which has no disk yet."""
    return Follower(Place(), Job(Place(), str(folder)), {"transfer": "tr-x"}, [])


def test_each_pass_has_a_name_of_its_own_however_many_there_were(tmp_path: Path) -> None:
    names = []
    for follower in (begun(tmp_path), begun(tmp_path)):
        for _ in range(120):
            follower.keep_pass(follower.new_pass())
            names.append(follower.figures()["passes"][-1]["id"])

    assert len(set(names)) == 240


def test_a_pass_that_was_put_down_leaves_its_number_to_the_next_one(tmp_path: Path) -> None:
    follower = begun(tmp_path)
    follower.new_pass()

    assert follower.new_pass()["number"] == 1


def test_notes_outlive_the_process_and_keep_their_count(tmp_path: Path) -> None:
    first = begun(tmp_path)
    for number in range(NOTES_KEPT + 5):
        first.note(f"note {number}")

    again = begun(tmp_path)
    again.note("the last one")

    said, before = again.figures(), first.figures()
    assert said["notes_id"] == before["notes_id"]
    assert (before["notes_count"], said["notes_count"]) == (NOTES_KEPT + 5, NOTES_KEPT + 6)
    assert said["notes"] == [*before["notes"][1:], "the last one"]
    assert len(said["notes"]) == NOTES_KEPT


def test_a_note_that_cannot_be_written_is_told_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: str, value: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(follow, "write_json", full)
    follower = begun(tmp_path)
    follower.note("12 events were lost")

    assert follower.figures()["notes"] == ["12 events were lost"]
    assert follower.figures()["notes_count"] == 1
