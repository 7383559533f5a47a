"""What a job writes down of itself: records, which have to be there, and progress."""

import json
from pathlib import Path
from typing import Any

import pytest
from agent_rig import agent


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(agent.Log, "path", str(tmp_path / "log"))
    return agent.Job(agent.Place(), str(tmp_path / "state"))


def test_progress_that_cannot_be_written_is_gone_on_without_and_told_once(
    job: Any, tmp_path: Path
) -> None:
    for number in range(3):
        job.report("copying", force=True, done_bytes=number)
    (tmp_path / "state").mkdir()
    for number in range(3, 6):
        job.report("copying", force=True, done_bytes=number)
    kept = json.loads((tmp_path / "state" / "status.json").read_text())
    assert kept["progress"]["done_bytes"] == 5
    first, last = (tmp_path / "log").read_text().splitlines()
    assert "no progress can be written, the job goes on: [Errno 2]" in first
    assert "no progress was written for 0 s: [Errno 2]" in last


def test_a_record_that_cannot_be_written_is_a_failure(job: Any) -> None:
    with pytest.raises(FileNotFoundError):
        job.begin()
    with pytest.raises(FileNotFoundError):
        job.end({}, None)


def test_only_a_record_that_fits_gets_the_room_that_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The way back of a cutover needs it as well."""
    monkeypatch.setattr(agent.Room, "folder", str(tmp_path / "room"))

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(agent, "replace_file", full)
    for content, left in ((b"x" * (agent.Room.PIECE + 1), 16), (b"x", 0)):
        agent.Room.keep()
        with pytest.raises(OSError, match="No space left"):
            agent.write_atomically(str(tmp_path / "record"), content, 0o600)
        assert len(list((tmp_path / "room").iterdir())) == left
