"""Installing, claiming a volume, and going without a trace."""

import base64
import contextlib
import json
import os
import signal
import stat
import subprocess
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from agent_rig import AGENT, Disks, Guest, Json, Told, agent, leave_out, shell

from volferry.store import new_id

SOURCE = {"volume_id": "3f0d4a5e-aaaa-bbbb-cccc-0123456789ab", "size_bytes": 1}


def test_installing_twice_is_installing_once(guest: Guest) -> None:
    first = guest.install(SOURCE)
    before = os.stat(first["agent"])
    assert guest.install(SOURCE) == first
    assert os.stat(first["agent"]).st_mtime_ns == before.st_mtime_ns
    assert Path(first["agent"]).read_bytes() == AGENT.read_bytes()


def test_a_compressed_program_is_the_same_program(guest: Guest) -> None:
    packed = base64.b64encode(zlib.compress(AGENT.read_bytes(), 9)).decode()
    result = guest.call("install", sources=[SOURCE], program_b64=packed)
    assert Path(result["agent"]).read_bytes() == AGENT.read_bytes()


def test_what_it_keeps_is_for_root_alone(guest: Guest) -> None:
    guest.install(SOURCE)
    for path in [guest.state_dir.parent, *guest.state_dir.parent.rglob("*")]:
        assert stat.S_IMODE(path.lstat().st_mode) & 0o077 == 0, path


def test_two_transfers_cannot_have_one_volume(guest: Guest) -> None:
    guest.install(SOURCE)
    other = Guest(guest.root, transfer="tr-other")
    with pytest.raises(Told, match=f"claimed by transfer '{guest.transfer}'") as told:
        other.install(SOURCE)
    assert told.value.kind == "refused"
    guest.call("uninstall", files=[])
    other.install(SOURCE)


def test_all_volumes_of_a_transfer_are_claimed_or_none(guest: Guest) -> None:
    other, log = Guest(guest.root, transfer="tr-other"), {**SOURCE, "volume_id": "log-volume"}
    guest.install(SOURCE)
    with pytest.raises(Told, match=f"claimed by transfer '{guest.transfer}'"):
        other.install(log, SOURCE)
    claims = guest.install(log, SOURCE)["claims"]
    assert [Path(path).read_text() for path in claims] == [guest.transfer] * 2


def test_a_claim_that_is_a_link_is_not_followed(guest: Guest, tmp_path: Path) -> None:
    guest.install({**SOURCE, "volume_id": "another-volume"})
    precious = tmp_path / "precious"
    precious.write_text(guest.transfer)
    claim = guest.root / "base" / "claims" / SOURCE["volume_id"]  # type: ignore[operator]
    claim.symlink_to(precious)
    with pytest.raises(Told):
        guest.install(SOURCE)
    assert precious.read_text() == guest.transfer


def test_a_base_directory_that_others_can_write_is_refused(guest: Guest) -> None:
    base = guest.root / "base"
    base.mkdir(mode=0o700)
    base.chmod(0o770)
    with pytest.raises(Told, match="not writable by others") as told:
        guest.install(SOURCE)
    assert told.value.kind == "refused"


def test_a_base_directory_of_somebody_else_is_refused(guest: Guest) -> None:
    base = guest.root / "base"
    base.mkdir(mode=0o700)
    os.chown(base, 12345, 12345)
    with pytest.raises(Told, match="uid 12345"):
        guest.install(SOURCE)


def test_a_base_directory_that_is_a_link_is_refused(guest: Guest, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (guest.root / "base").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Told, match="not a directory"):
        guest.install(SOURCE)
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_uninstall_leaves_nothing_of_ours_and_may_be_repeated(guest: Guest, tmp_path: Path) -> None:
    rule = tmp_path / "etc" / "rules"
    guest.install(SOURCE)
    rule.write_text("x")
    other = Guest(guest.root, transfer="tr-other")
    other.install({**SOURCE, "volume_id": "another-volume"})
    result = guest.call("uninstall", files=[str(rule)])
    assert result["left"] == []
    assert str(rule) in result["removed"] and str(guest.state_dir) in result["removed"]
    assert not guest.state_dir.exists() and not rule.exists()
    assert other.state_dir.exists(), "another transfer's state was removed"
    assert guest.call("uninstall", files=[str(rule)]) == {"removed": [], "left": []}
    other.call("uninstall", files=[])
    assert not (guest.root / "base").exists()


def test_what_was_removed_stays_away_after_a_power_cut(disks: Disks, tmp_path: Path) -> None:
    """Seen in a guest that was reset right after ``finish``: a claim that is there again refuses
    the next transfer of its volume."""
    volume = disks.blank("root", 32)
    shell("mkfs.ext4", "-q", volume.loop)
    root = disks.mount(volume.loop, tmp_path / "root", "commit=300")
    guest = Guest(root)
    guest.install(SOURCE)
    shell("sync", "-f", root)
    guest.call("uninstall", files=[])
    as_it_is_on_the_disk = disks.clone(volume, "cut")
    after = disks.mount(as_it_is_on_the_disk.loop, tmp_path / "after")
    assert (after / "etc").is_dir() and not (after / "base").exists()


@pytest.mark.parametrize("state", ["ended", "running"])
def test_a_process_whose_job_has_ended_is_waited_for_and_no_other(guest: Guest, state: str) -> None:
    """Seen in a slow guest: it told its end, and took a moment to leave."""
    guest.install(SOURCE)
    folder = guest.state_dir / "mirror"
    folder.mkdir()
    worker = subprocess.Popen(["sleep", "1.5"])
    place = agent.Place(guest.settings)
    identity = {
        "pid": worker.pid,
        "started": agent.process_started(place, worker.pid),
        "boot_id": place.boot_id,
    }
    files = {"job": {"job_id": "mirror-1"}, "status": {"state": state}, "worker": identity}
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    try:
        if state == "running":
            with pytest.raises(Told, match="still running"):
                guest.call("uninstall", files=[])
            assert guest.state_dir.exists()
        else:
            assert guest.call("uninstall", files=[])["left"] == []
            assert not guest.state_dir.exists()
            assert worker.poll() == 0
    finally:
        worker.kill()
        worker.wait()


def files_left(guest: Guest) -> list[Json]:
    """The kernel's traces are of the whole machine, on which other tests may run."""
    return [one for one in guest.call("leftovers")["left"] if one["kind"] != "trace"]


@pytest.mark.parametrize("lane", agent.LANES)
def test_a_job_that_runs_is_seen_in_whichever_lane(guest: Guest, lane: str) -> None:
    guest.install(SOURCE)
    [state] = [one for one in files_left(guest) if one["kind"] == "state"]
    assert state["alive"] is False
    (guest.state_dir / lane).mkdir(exist_ok=True)
    agent.Job(agent.Place(guest.settings), str(guest.state_dir / lane)).enter()
    [state] = [one for one in files_left(guest) if one["kind"] == "state"]
    assert state["alive"] is True


def test_what_transfers_left_is_listed_by_whose_it_is(guest: Guest) -> None:
    assert files_left(guest) == []
    guest.install(SOURCE)
    other = Guest(guest.root, transfer="tr-other")
    other.install({**SOURCE, "volume_id": "another-volume"})
    rules = guest.root / "etc" / "udev" / "rules.d"
    rules.mkdir(parents=True)
    rule = rules / f"10-volferry-{guest.transfer}.rules"
    rule.write_text("keeps a disk out")
    (rules / "70-of-somebody-else.rules").write_text("")
    (rules / "10-volferry-tr-link.rules").symlink_to(rule)
    left = files_left(guest)
    mine = {(one["kind"], one["path"]) for one in left if one["transfer"] == guest.transfer}
    claim = guest.root / "base" / "claims" / str(SOURCE["volume_id"])
    assert mine == {("state", str(guest.state_dir)), ("claim", str(claim)), ("rule", str(rule))}
    assert {one["transfer"] for one in left} == {guest.transfer, "tr-other"}
    assert [one["text"] for one in left if one["kind"] == "rule"] == ["keeps a disk out"]
    guest.call("uninstall", files=[str(rule)])
    assert {one["transfer"] for one in files_left(guest)} == {"tr-other"}


def units_of(guest: Guest) -> list[Path]:
    """All units that a transfer can have, as the agent itself writes them."""
    guest.install(SOURCE)
    place, made = agent.Place(guest.settings), []
    (guest.root / "etc/systemd/system").mkdir(parents=True)
    for lane in agent.LANES:
        supervisor = agent.Supervisor(place, guest.transfer, lane)
        Path(supervisor.unit_path).write_text("[Unit]\n")
        supervisor.enable(early=True)
        made += [Path(supervisor.unit_path), Path(supervisor.early_path)]
    return made


def test_a_unit_of_any_lane_is_listed_as_its_transfers(guest: Guest) -> None:
    guest.transfer = new_id("web-03")
    made = units_of(guest)
    left = files_left(guest)
    units = {one["path"] for one in left if one["kind"] == "unit"}
    assert units == {str(path) for path in made} and len(units) == 4
    assert {one["transfer"] for one in left} == {guest.transfer}


@pytest.mark.parametrize("kept", range(4))
def test_a_unit_that_is_left_alone_is_removed(guest: Guest, kept: int) -> None:
    made = units_of(guest)
    left = made.pop(kept)
    for path in made:
        path.unlink()
    assert str(left) in guest.call("uninstall", files=[])["removed"]
    assert [path for path in (guest.root / "etc").rglob("*") if not path.is_dir()] == []


@pytest.fixture
def traces(guest: Guest) -> Iterator[list[Path]]:
    """Instances in this kernel, as the mirrors of two transfers of which one's id begins with the
    other's have left them: two of the guest's, one of the other's."""
    found = agent.mounted_tracefs(agent.Place())
    if not found:
        leave_out("tracefs is not mounted")
    names = [guest.transfer, f"{guest.transfer}-targets", f"{guest.transfer}-wxyz"]
    made = [Path(found, "instances", f"volferry-{name}") for name in names]
    for path in made:
        path.mkdir()
    yield made
    for path in made:
        with contextlib.suppress(FileNotFoundError):
            path.rmdir()


def traces_left(guest: Guest) -> dict[str, str]:
    left = guest.call("leftovers")["left"]
    ours = [one for one in left if one["transfer"].startswith(guest.transfer)]
    return {one["path"]: one["transfer"] for one in ours if one["kind"] == "trace"}


def test_traces_of_agents_that_died_are_listed_and_removed(
    guest: Guest, traces: list[Path]
) -> None:
    ours, of_targets, others = map(str, traces)
    of_another = {others: f"{guest.transfer}-wxyz"}
    both = {ours: guest.transfer, of_targets: guest.transfer}
    assert traces_left(guest) == {**both, **of_another}
    assert guest.call("uninstall", files=[]) == {"removed": [ours, of_targets], "left": []}
    assert traces_left(guest) == of_another


def test_a_trace_that_somebody_reads_stays_and_is_told(guest: Guest, traces: list[Path]) -> None:
    ours, of_targets, _ = traces
    with (ours / "per_cpu/cpu0/trace_pipe_raw").open("rb", buffering=0):
        told = guest.call("uninstall", files=[])
    assert told == {"removed": [str(of_targets)], "left": [f"{ours}: Device or resource busy"]}
    assert str(ours) in traces_left(guest)


def test_looking_for_traces_mounts_nothing(
    guest: Guest, tmp_path: Path, stand_in: Callable[[str, str], str]
) -> None:
    (tmp_path / "sys/kernel/tracing").mkdir(parents=True)
    guest.path = stand_in("mount", f"#!/bin/sh\ntouch {tmp_path}/mounted\n")
    settings = {**guest.settings, "sys": str(tmp_path / "sys")}
    assert guest.call("leftovers", settings=settings) == {"left": []}
    assert guest.call("uninstall", files=[], settings=settings) == {"removed": [], "left": []}
    assert not (tmp_path / "mounted").exists()


# ---- killed inside -------------------------------------------------------------------------------

CALLS = ("mkdir", "open", "write", "fsync", "close", "rename", "link", "unlink", "rmdir")


def killed_before_call(number: int, work: Callable[[], object]) -> bool:
    """Do it in a process that is killed before its ``number``-th call of os. False: it ended."""
    pid = os.fork()
    if pid == 0:  # the child: never returns into the test's code
        code = 1
        try:
            left = [number]

            def counted(call: Callable[..., Any]) -> Callable[..., Any]:
                def counting(*args: Any, **more: Any) -> Any:
                    left[0] -= 1
                    if left[0] == 0:
                        os.kill(os.getpid(), signal.SIGKILL)
                    return call(*args, **more)

                return counting

            for name in CALLS:
                setattr(os, name, counted(getattr(os, name)))
            work()
            code = 0
        finally:
            os._exit(code)
    status = os.waitpid(pid, 0)[1]
    assert status in (0, signal.SIGKILL)
    return status != 0


@pytest.mark.parametrize("then", ["resume", "rollback"])
def test_an_install_that_is_killed_at_any_moment(guest: Guest, then: str) -> None:
    sources = [SOURCE, {**SOURCE, "volume_id": "log-volume"}]
    whole = {str(source["volume_id"]): guest.transfer for source in sources}
    claims = guest.root / "base" / "claims"
    for number in range(1, 200):
        killed = killed_before_call(number, lambda: guest.install(*sources))
        made = {path.name: path.read_text() for path in claims.glob("*")}
        assert made.items() <= whole.items(), number
        assert {one["transfer"] for one in files_left(guest)} <= {guest.transfer}
        if then == "resume":
            guest.install(*sources)
            assert {path.name: path.read_text() for path in claims.iterdir()} == whole
        assert guest.call("uninstall", files=[])["left"] == []
        assert not (guest.root / "base").exists(), number
        if not killed:
            break
    assert 30 < number < 199


def test_an_uninstall_that_is_killed_at_any_moment_is_said_again(guest: Guest) -> None:
    for number in range(1, 200):
        guest.install(SOURCE)
        killed = killed_before_call(number, lambda: guest.call("uninstall", files=[]))
        assert guest.call("uninstall", files=[])["left"] == []
        assert not (guest.root / "base").exists(), number
        if not killed:
            break
    assert 10 < number < 199


@pytest.mark.parametrize("then", ["said again", "taken back", "uninstalled"])
def test_files_of_the_guest_that_are_killed_while_they_are_written(guest: Guest, then: str) -> None:
    """Nothing is left beside them: a rule of ours, and the user's own file."""
    guest.install(SOURCE)
    rule = guest.root / "etc" / "udev" / "rules.d" / "10-x.rules"
    fstab = guest.root / "etc" / "fstab"

    def apply(**files: str | None) -> None:
        contents = {"rule": rule, "fstab": fstab}
        guest.call("apply", files=[{"path": str(contents[name]), "content": content}
                                   for name, content in files.items()])  # fmt: skip

    for number in range(1, 200):
        fstab.write_text("old\n")
        killed = killed_before_call(number, lambda: apply(rule="rule\n", fstab="new\n"))
        assert fstab.read_text() in ("old\n", "new\n")
        if then == "said again":
            apply(rule="rule\n", fstab="new\n")
        elif then == "taken back":
            apply(rule=None, fstab="old\n")
        else:
            apply(fstab="old\n")
            assert guest.call("uninstall", files=[str(rule)])["left"] == []
            guest.install(SOURCE)
        names = {path.name for path in (guest.root / "etc").rglob("*") if path.is_file()}
        assert names == ({fstab.name, rule.name} if then == "said again" else {fstab.name}), number
        if not killed:
            break
        rule.unlink(missing_ok=True)
    assert 15 < number < 199


def test_a_claim_that_names_nobody_is_left_to_a_person(guest: Guest) -> None:
    """What an older agent left that died between making and writing it."""
    guest.install({**SOURCE, "volume_id": "another-volume"})
    (guest.root / "base" / "claims" / str(SOURCE["volume_id"])).touch()
    with pytest.raises(Told, match=r"claimed by transfer '\(unknown\)'"):
        guest.install(SOURCE)
    assert "(unknown)" in {one["transfer"] for one in files_left(guest)}
