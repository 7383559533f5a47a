"""Clean-up: only what the mark and the journal both name is removed."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cli_world as world
import pytest
from command_world import SERVER, SNAPSHOT, SOURCE, TARGET, Command, wait_until

from tests.fakes.http_cloud import Reply
from volferry.leftovers import History, Verdict, in_cloud, in_guest
from volferry.model import MARK, Access, Attachment, ServerVolume, Snapshot, State, Volume
from volferry.store import Store

ID = world.ID


def volume(id: str = "v-1", mark: str = ID, **more: Any) -> Volume:
    fields = {"status": "available", "metadata": {MARK: mark} if mark else {}, **more}
    return Volume(id=id, name="data", size_gib=1, type="fast", **fields)


def snapshot(id: str = "s-1", mark: str = ID, **more: Any) -> Snapshot:
    fields = {"status": "available", "metadata": {MARK: mark} if mark else {}, **more}
    return Snapshot(id=id, name="s", volume_id="v-0", size_gib=1, **fields)


def history(state: State, made: str = "v-1", shot: str = "s-1", **changes: Any) -> History:
    target = {"targets": [{"source_id": "v-0", "volume_id": made}]}
    entries = [
        {"kind": "intent", "step": "target", "receipt": {}},
        {"kind": "receipt", "step": "snapshot", "receipt": {"snapshots": [{"snapshot_id": shot}]}},
        {"kind": "receipt", "step": "target", "receipt": target},
        {"kind": "receipt", "step": "detach", "receipt": {"volume_id": "v-0"}},
    ]
    stands = {} if state is State.ROLLED_BACK else {"target": target}
    return History.of(world.transfer(state, **changes), entries, stands)


def judged(one: Volume | Snapshot, *histories: History) -> Verdict | None:
    volumes = [one] if isinstance(one, Volume) else []
    snapshots = [one] if isinstance(one, Snapshot) else []
    found = list(in_cloud("c", volumes, snapshots, {h.transfer.id: h for h in histories}))
    return found[0].verdict if found else None


def test_what_an_ended_transfer_made_and_marked_is_garbage() -> None:
    assert judged(volume(), history(State.ROLLED_BACK)) is Verdict.GARBAGE
    assert judged(snapshot(), history(State.ROLLED_BACK)) is Verdict.GARBAGE
    assert judged(snapshot(), history(State.DONE)) is Verdict.GARBAGE


@pytest.mark.parametrize("state", [State.RUNNING, State.STOPPED, State.HELD, State.ROLLING_BACK])
def test_what_a_transfer_still_needs_is_no_garbage(state: State) -> None:
    assert judged(volume(), history(state)) is Verdict.IN_USE
    assert judged(snapshot(), history(state)) is Verdict.IN_USE


def test_one_witness_is_not_enough() -> None:
    assert judged(volume()) is Verdict.MARK_ONLY
    assert judged(volume("a-clone"), history(State.ROLLED_BACK)) is Verdict.MARK_ONLY
    assert judged(volume(mark=""), history(State.ROLLED_BACK)) is Verdict.JOURNAL_ONLY
    assert judged(volume(mark="tr-other-aaaa"), history(State.ROLLED_BACK)) is Verdict.MARK_ONLY
    assert judged(volume("x", mark=""), history(State.ROLLED_BACK)) is None


def test_the_target_of_a_transfer_that_is_done_is_the_users_volume() -> None:
    assert judged(volume(), history(State.DONE)) is None
    assert judged(volume(mark=""), history(State.DONE)) is None
    assert judged(volume("v-0", mark=""), history(State.DONE)) is None  # the source
    other = history(State.ROLLED_BACK, made="v-2")
    assert judged(volume(mark=ID), history(State.DONE), other) is not Verdict.GARBAGE


def test_a_snapshot_that_was_to_be_kept_is_kept() -> None:
    plan = world.plan()
    wanted = plan.wanted.model_copy(update={"keep_snapshot": True})
    kept = history(State.DONE, plan=plan.model_copy(update={"wanted": wanted}))
    assert judged(snapshot(), kept) is None


def test_what_is_attached_or_busy_is_not_touched() -> None:
    line = Attachment(server_id="x", volume_id="v-1")
    assert judged(volume(attachments=(line,)), history(State.ROLLED_BACK)) is Verdict.IN_USE
    assert judged(volume(status="deleting"), history(State.ROLLED_BACK)) is Verdict.IN_USE


def files(**more: Any) -> list[dict[str, Any]]:
    rule = {"transfer": ID, "kind": "rule", "path": "/etc/udev/rules.d/r", "text": "serial=='v-1*'"}
    return [{"transfer": ID, "kind": "state", "path": f"/var/lib/volferry/{ID}"}, {**rule, **more}]


def verdicts(listed: list[dict[str, Any]], *histories: History, plugged: str = "") -> set[Verdict]:
    attached = [ServerVolume(volume_id=plugged)] if plugged else []
    known = {h.transfer.id: h for h in histories}
    return {one.verdict for one in in_guest(world.SERVER, "s", listed, attached, known)}


def test_files_of_an_ended_transfer_are_garbage_all_or_none() -> None:
    ended = history(State.ROLLED_BACK)
    assert verdicts(files(), ended) == {Verdict.GARBAGE}
    assert verdicts(files(), history(State.STOPPED)) == {Verdict.IN_USE}
    assert verdicts(files()) == {Verdict.MARK_ONLY}
    # The rule stands between two look-alike disks as long as the other one is plugged in.
    assert verdicts(files(), ended, plugged="v-1") == {Verdict.IN_USE}
    alive = [{**files()[0], "alive": True}, files()[1]]
    assert verdicts(alive, ended) == {Verdict.IN_USE}


# ---- the command ---------------------------------------------------------------------------------


@pytest.fixture
def command(tmp_path: Path) -> Iterator[Command]:
    made = Command(tmp_path)
    yield made
    made.close()


def leave_behind(command: Command, id: str) -> None:
    """As if the rollback's deletions had come back from the dead, beside somebody else's."""
    cloud = command.cloud
    cloud.add(TARGET, "data", metadata={MARK: id})
    cloud.add("clone", "data", metadata={MARK: id})
    cloud.add("foreign", "data", metadata={MARK: "tr-of-another-machine"})
    cloud.snapshots[SNAPSHOT] = {
        "id": SNAPSHOT, "volume_id": SOURCE, "size": 1, "status": "available",
        "metadata": {MARK: id},
    }  # fmt: skip
    left = [
        {"transfer": id, "kind": "state", "path": f"/var/lib/volferry/{id}", "alive": False},
        {"transfer": "tr-x", "kind": "claim", "path": "/var/lib/volferry/claims/x"},
    ]
    (command.folder / "leftovers.json").write_text(json.dumps(left))


def test_gc_lists_asks_and_removes_only_garbage(command: Command) -> None:
    (command.folder / "hang").write_text("pass")
    process = command.start(*command.words())
    wait_until(lambda: command.state.exists() and "sync" in command("list").stdout)
    process.kill()
    (command.folder / "hang").unlink()
    running = json.loads(command("gc", "--yes", "-f", "json").stdout)
    assert {one["verdict"] for one in running} == {"in use"}  # it can be resumed
    id = command.transfer()
    command("rollback", id)
    assert set(command.cloud.volumes) == {SOURCE}
    leave_behind(command, id)

    looked = command("gc", "-f", "json")
    found = {one["id"]: one["verdict"] for one in json.loads(looked.stdout)}
    assert found == {
        TARGET: "garbage",
        SNAPSHOT: "garbage",
        f"/var/lib/volferry/{id}": "garbage",
        "clone": "mark only",
        "foreign": "mark only",
        "/var/lib/volferry/claims/x": "mark only",
    }
    assert "3 things to remove, 3 to be left alone" in looked.stderr
    assert TARGET in command.cloud.volumes  # a script that does not say yes removes nothing

    command("gc", "--yes")
    assert set(command.cloud.volumes) == {SOURCE, "clone", "foreign"}
    assert not command.cloud.snapshots
    assert [c["argv"][-1].split()[-1] for c in command.children()].count("uninstall") >= 2
    assert f"removed volume {TARGET}" in command("logs", id).stdout
    assert "0 things to remove, 2 to be left alone" in command("gc").stderr


def ended(
    command: Command, id: str = ID, *, made: str = TARGET, project: str = "p1",
    server: str = SERVER, **wanted: Any,
) -> None:  # fmt: skip
    """A transfer that was rolled back, as the journal tells it."""
    one = world.plan()
    here = {
        "project_id": project,
        "region": "RegionOne",
        "server": one.cloud.server.model_copy(update={"id": server}),
    }
    wishes = {"os_cloud": "", "access": Access(ssh="root@web-03"), **wanted}
    plan = world.plan(
        cloud=one.cloud.model_copy(update=here), wanted=one.wanted.model_copy(update=wishes)
    )
    with Store(command.state) as store:
        transfer = world.transfer(State.ROLLED_BACK, plan=plan, created_at=time.time())
        store.create(transfer.model_copy(update={"id": id}))
        store.receipt(id, "target", {"targets": [{"volume_id": made}]})
        store.undone(id, "target")


def files_in_the_guest(command: Command, **paths: str) -> None:
    left = [{"transfer": ID, "kind": kind, "path": path} for kind, path in paths.items()]
    (command.folder / "leftovers.json").write_text(json.dumps(left))


UNIT = f"/etc/systemd/system/volferry-{ID}-mirror.service"
TRACE = f"/sys/kernel/tracing/instances/volferry-{ID}"


@pytest.fixture
def littered(command: Command) -> Command:
    """A transfer has ended, and its target is back from the dead."""
    ended(command)
    command.cloud.add(TARGET, "data", metadata={MARK: ID})
    return command


@pytest.mark.parametrize("region", [(), ("--os-region-name", "RegionOne")])
def test_what_another_name_of_its_cloud_shows_is_removed(
    littered: Command, region: tuple[str, ...]
) -> None:
    files_in_the_guest(littered, unit=UNIT, trace=TRACE)
    said = littered("gc", "--yes", "--os-cloud", "envvars", *region).stderr
    assert TARGET not in littered.cloud.volumes
    for removed in (f"volume {TARGET}", f"unit {UNIT}", f"trace {TRACE}"):
        assert f"removed {removed}" in " ".join(said.split())
    assert json.loads(littered("gc", "-f", "json").stdout) == []


def test_a_cloud_that_has_two_names_is_asked_once(littered: Command) -> None:
    ended(littered, "tr-newer-aaaa", made="another", os_cloud="envvars")
    assert "1 thing to remove" in littered("gc").stderr


def test_a_cloud_that_is_no_more_is_told_and_the_others_are_cleaned(littered: Command) -> None:
    ended(littered, "tr-older-aaaa", made="elsewhere", project="p2", os_cloud="gone")
    looked = littered("gc", "-f", "json", code=4)
    assert [one["id"] for one in json.loads(looked.stdout)] == [TARGET]
    assert "unseen: gone: cloud 'gone' is not configured" in looked.stderr
    assert "1 place could not be looked at" in looked.stderr
    littered("gc", "--yes", code=4)
    assert TARGET not in littered.cloud.volumes
    assert "nothing was found\n" in littered("gc", code=4).stderr


def test_a_cloud_that_was_asked_for_has_to_be_there(littered: Command) -> None:
    said = littered("gc", "--os-cloud", "gone", code=2)
    assert "error: cloud 'gone' is not configured" in said.stderr


def test_a_cloud_that_is_of_another_project_by_now_is_not_taken_for_the_same(
    littered: Command,
) -> None:
    ended(littered, "tr-older-aaaa", made="elsewhere", project="p2")
    said = littered("gc", "--yes", code=4).stderr
    assert "unseen: the cloud of OS_*: it is project p1" in said
    assert TARGET not in littered.cloud.volumes


def test_a_guest_that_cannot_be_reached_is_told_and_the_cloud_is_cleaned(littered: Command) -> None:
    (littered.folder / "bin" / "ssh").write_text("#!/bin/sh\nexit 255\n")
    said = littered("gc", "--yes", code=4).stderr
    assert "unseen: testsrv: " in said and "1 place could not be looked at" in said
    assert TARGET not in littered.cloud.volumes


def test_a_way_into_the_guest_that_is_no_more_is_told(littered: Command) -> None:
    ended(littered, "tr-newer-aaaa", access=Access(ssh="web-03", ssh_config="/nowhere/config"))
    said = littered("gc", code=4)
    assert TARGET in said.stdout and "unseen: testsrv: " in said.stderr


def test_a_server_that_was_deleted_has_nothing_to_be_looked_for(littered: Command) -> None:
    ended(littered, "tr-older-aaaa", made="another", server="deleted")
    assert "unseen" not in littered("gc").stderr


def test_what_could_not_be_removed_is_told_by_reason_and_exit_code(littered: Command) -> None:
    files_in_the_guest(littered, trace=TRACE, unit=UNIT)
    stays = [f"{TRACE}-targets: Device or resource busy", f"{UNIT}: Read-only file system"]
    (littered.folder / "stays.json").write_text(json.dumps(stays))
    answer = littered.cloud.reply

    def refuse(method: str, path: str, body: Any) -> Reply:
        busy = Reply(400, {"badRequest": {"code": 400, "message": "it has a snapshot"}})
        return busy if method == "DELETE" else answer(method, path, body)

    littered.cloud.reply = refuse  # type: ignore[method-assign]
    said = littered("gc", "--yes", code=4).stderr
    assert "2 of 3 could not be removed" in said
    assert "it has a snapshot" in said and "Read-only file system" in said
    assert f"removed trace {TRACE}" in " ".join(said.split())
    assert TARGET in littered.cloud.volumes


@pytest.mark.parametrize(("answer", "code"), [("y\n", 0), ("n\n", 3), ("\n", 3)])
def test_a_terminal_is_asked_and_only_a_yes_removes(
    littered: Command, answer: str, code: int
) -> None:
    said, ended_with = littered.on_terminal("gc", answer=answer)
    assert said.count("remove 1 thing called garbage above, for good? [y/N]") == 1
    assert ended_with == code, said
    assert TARGET in said.partition("[y/N]")[0]
    assert (TARGET in littered.cloud.volumes) is bool(code)
