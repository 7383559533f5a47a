"""Ctrl-C at any point: within two seconds the command has ended, and what it leaves can go on."""

import contextlib
import os
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_world import SNAPSHOT, SOURCE, TARGET, Command, interrupt, wait_until

from volferry.store import Store

LIMIT_S = 2.0 + 1.0  # a second for a busy machine to notice


@pytest.fixture
def command(tmp_path: Path) -> Iterator[Command]:
    made = Command(tmp_path)
    yield made
    made.close()


def hang(command: Command, what: str) -> None:
    (command.folder / "hang").write_text(what)


def heal(command: Command) -> None:
    command.cloud.release.set()
    command.cloud.held = command.cloud.stuck_status = ""
    if TARGET in command.cloud.volumes:
        command.cloud.volumes[TARGET]["status"] = "available"
    (command.folder / "hang").unlink(missing_ok=True)


def masters(command: Command) -> list[str]:
    """The ssh connections that still stand."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            line = (entry / "cmdline").read_bytes() if entry.name.isdigit() else b""
        except OSError:
            continue
        if str(command.folder).encode() in line and b"stand_in_ssh" in line:
            found.append(entry.name)
    return found


def reached(command: Command, step: str) -> bool:
    with Store(command.state) as store:
        return any(one.step == step for one in store.transfers())


def interrupted_in_a_pass(command: Command) -> None:
    """A transfer that stands there, in a world in which nothing hangs any more."""
    hang(command, "pass")
    process = command.start(*command.words())
    wait_until(lambda: command.state.exists() and reached(command, "sync"))
    interrupt(process)
    heal(command)


# Where it is when Ctrl-C comes: what makes it stay there, and the step that is then under way.
POINTS = {
    "a request that the cloud does not answer": ("request", "snapshot"),
    "a wait for the cloud": ("wait", "target"),
    "a verb that the guest does not answer": ("install", "install"),
    "a job in the guest that prepares": ("prepare", "prepare"),
    "a pass": ("pass", "sync"),
    "the guest's own cutover": ("cutover", "cutover"),
}


@pytest.mark.parametrize("point", POINTS)
def test_ctrl_c_ends_within_two_seconds_and_resume_goes_on(point: str, command: Command) -> None:
    what, step = POINTS[point]
    if what == "request":
        command.cloud.held = r"POST /volume/v3/snapshots"
    elif what == "wait":
        command.cloud.stuck_status = "creating"
    else:
        hang(command, what)
    process = command.start(*command.words("--log-format", "json"))
    wait_until(lambda: command.state.exists() and reached(command, step))
    if what == "request":
        wait_until(command.cloud.reached.is_set)
    took_s, said = interrupt(process)
    assert took_s <= LIMIT_S, said
    assert process.returncode in (1, 130)
    assert "volferry resume" in said
    wait_until(lambda: not masters(command), 5.0)
    heal(command)
    command("resume", command.transfer())
    assert command.cloud.plugged == ["root", TARGET]
    assert set(command.cloud.volumes) == {SOURCE, TARGET} and not command.cloud.snapshots


def test_ctrl_c_is_heard_while_another_program_has_locked_the_journal(command: Command) -> None:
    hang(command, "pass")
    process = command.start(*command.words())
    wait_until(lambda: command.state.exists() and reached(command, "sync"))
    with contextlib.closing(sqlite3.connect(command.state / "store.sqlite")) as other:
        other.isolation_level = None
        other.execute("BEGIN IMMEDIATE")
        time.sleep(1.0)  # its progress is written down more often than that
        took_s, said = interrupt(process)
    assert took_s <= LIMIT_S, said
    assert process.returncode == 130 and "volferry resume" in said
    heal(command)
    command("resume", command.transfer())


def test_ctrl_c_while_a_rollback_waits_leaves_one_that_can_be_finished(command: Command) -> None:
    command.cloud.stuck_status = "creating"
    process = command.start(*command.words())
    wait_until(lambda: command.state.exists() and reached(command, "target"))
    interrupt(process)
    # What is still being made is waited for before it is deleted.
    command.cloud.stuck_status, command.cloud.volumes[TARGET]["status"] = "", "available"
    command.cloud.held = r"DELETE /volume/v3/volumes/.*"
    back = command.start("rollback", command.transfer())
    wait_until(command.cloud.reached.is_set)
    took_s, said = interrupt(back)
    assert took_s <= LIMIT_S, said
    heal(command)
    command("rollback", command.transfer())
    assert set(command.cloud.volumes) == {SOURCE} and not command.cloud.snapshots


def test_ctrl_c_while_planning_does_not_wait_for_the_cloud(command: Command) -> None:
    command.cloud.held = r"GET /volume/v3/types"
    process = command.start(*command.words())
    wait_until(command.cloud.reached.is_set)
    took_s, said = interrupt(process)
    assert took_s <= LIMIT_S and process.returncode == 130
    assert said.splitlines()[-2:] == ["error: interrupted", "  nothing was changed"]
    assert not os.path.exists(command.state / "transfers")


def test_ctrl_c_while_gc_removes_leaves_the_rest_to_the_next(command: Command) -> None:
    command(*command.words("--seed", "snapshot"))
    kept = {"id": SNAPSHOT, "name": "left", "volume_id": SOURCE, "size": 1, "status": "available"}
    mark = {"volferry:transfer": command.transfer()}
    command.cloud.snapshots[SNAPSHOT] = {**kept, "metadata": mark}
    command.cloud.held = r"DELETE /volume/v3/snapshots/.*"
    process = command.start("gc", "--yes")
    wait_until(command.cloud.reached.is_set)
    took_s, said = interrupt(process)
    assert took_s <= LIMIT_S, said
    heal(command)
    command("gc", "--yes")
    assert not command.cloud.snapshots


def test_a_server_that_somebody_deleted_is_believed_and_the_transfer_taken_back(
    command: Command,
) -> None:
    interrupted_in_a_pass(command)
    command.cloud.delete_server()
    id = command.transfer()
    assert "was deleted: its guest cannot be asked for" in command("resume", id, code=1).stderr
    command("rollback", id)
    assert set(command.cloud.volumes) == {SOURCE} and not command.cloud.snapshots


def test_with_the_credentials_of_another_project_nothing_is_taken_for_deleted(
    command: Command,
) -> None:
    interrupted_in_a_pass(command)
    volumes, command.cloud.volumes = command.cloud.volumes, {}
    command.cloud.project = "another"
    for verb in ("resume", "rollback"):
        refused = command(verb, command.transfer(), code=1).stderr
        assert "it is project another in region RegionOne now; the transfer was in" in refused
    command.cloud.volumes, command.cloud.project = volumes, "p1"
    command("resume", command.transfer())


def test_a_connection_does_not_outlive_a_killed_command(command: Command) -> None:
    hang(command, "pass")
    process = command.start(*command.words())
    wait_until(lambda: command.state.exists() and reached(command, "sync"))
    assert masters(command)
    process.kill()
    process.communicate(timeout=10)
    wait_until(lambda: not masters(command), 5.0)
