"""The lab's folder, processes and ssh files, without any cloud."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from lab import control, guests, images, processes, storage
from lab.__main__ import main
from lab.api import Lab
from lab.errors import LabError
from lab.guests import Guest
from lab.layout import REPOSITORY, Layout, file_hash, port_is_free, write_atomically


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    found = Layout(tmp_path / "lab")
    for folder in (found.root, found.run, found.logs, found.servers):
        folder.mkdir()
    return found


# --- layout
def test_a_lab_may_be_asked_for_before_it_was_ever_made(tmp_path: Path) -> None:
    """On a machine that has none, every test of the lab ended here."""
    root = tmp_path / "not" / "there"
    assert Lab(root).layout.secret("demo") == Lab(root).layout.secret("demo")


def test_ports_are_chosen_once_and_written_down(layout: Layout) -> None:
    ports = layout.ports()
    assert len(set(ports.values())) == len(ports)
    assert Layout(layout.root).ports() == ports
    assert json.loads(layout.ports_json.read_text()) == ports


def test_two_labs_have_different_ports(tmp_path: Path) -> None:
    with socket.socket() as taken:
        first = Layout(tmp_path / "a")
        first.root.mkdir()
        # Somebody else has a port of the place that the folder's name leads to.
        port = first.port("cinder")
        taken.bind(("127.0.0.1", port))
        taken.listen()
        first.ports_json.unlink()
        assert not port_is_free(port)
        assert first.port("cinder") != port


def test_passwords_are_readable_by_the_owner_alone(layout: Layout) -> None:
    assert layout.secret("admin") == layout.secret("admin")
    assert layout.secret("admin") != layout.secret("demo")
    assert stat.S_IMODE(layout.secrets_json.stat().st_mode) == 0o600


def test_the_hash_changes_with_what_made_it(tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("one")
    before = file_hash(script)
    assert file_hash(script) == before
    assert file_hash(script, extra="more") != before
    script.write_text("two")
    assert file_hash(script) != before


def test_a_write_that_fails_leaves_the_old_text(tmp_path: Path) -> None:
    target = tmp_path / "file"
    write_atomically(target, "old")
    with pytest.raises(TypeError):
        write_atomically(target, 3)  # type: ignore[arg-type]
    assert target.read_text() == "old"


def test_each_suite_has_an_image_of_its_own(layout: Layout) -> None:
    folders = {images.image(layout, suite).folder for suite in images.SUITES.values()}
    assert len(folders) == len(images.SUITES)


# --- processes
@pytest.fixture
def sleeper(layout: Layout) -> Iterator[None]:
    """A service of the lab that starts a child, as cinder starts its privsep daemon."""
    script = layout.root / "service.sh"
    script.write_text("sh -c 'sleep 60; true' \"$1/child\" & sleep 60; true\n")
    processes.start(layout, "sleeper", ["sh", script, layout.root], {})
    assert processes.wait_until(lambda: _members(layout) >= 2, 5)
    yield
    processes.stop(layout, ["sleeper"])


def _members(layout: Layout) -> int:
    found = processes.find(layout, "sleeper")
    return len(found.members) if found else 0


@pytest.mark.usefixtures("sleeper")
def test_a_service_ends_with_its_children(layout: Layout) -> None:
    found = processes.find(layout, "sleeper")
    assert found
    processes.stop(layout, ["sleeper"])
    assert processes.find(layout, "sleeper") is None
    assert not any(processes.is_ours(layout, pid) for pid in found.members)


def test_a_pid_that_went_to_somebody_else_is_left_alone(layout: Layout) -> None:
    stranger = subprocess.Popen(["sleep", "60"], start_new_session=True)
    try:
        (layout.run / "keystone.json").write_text(json.dumps({"pid": stranger.pid}))
        assert processes.find(layout, "keystone") is None
        processes.stop(layout, ["keystone"])
        time.sleep(0.3)
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_the_services_see_nothing_of_the_callers_shell(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OS_CLOUD", "somebody-elses-cloud")
    assert "OS_CLOUD" not in processes.run(layout, ["env"])


def test_a_failed_command_says_its_last_line_and_where_the_rest_is(layout: Layout) -> None:
    with pytest.raises(LabError) as error:
        processes.run(layout, ["sh", "-c", "echo first; echo last words; exit 3"])
    lines = str(error.value).splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("error: ")
    assert lines[0].endswith("ended with 3: last words")
    assert str(layout.logs / "setup.log") in lines[2]


def test_a_command_that_hangs_is_given_up(layout: Layout) -> None:
    with pytest.raises(LabError, match="did not end within 0 s"):
        processes.run(layout, ["sleep", "60"], timeout_s=0.2)


# --- storage
def test_without_mounts_volumes_go_into_a_plain_folder_with_a_warning(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage.processes, "run", fail)
    said: list[str] = []
    storage.mount(layout, said.append)
    assert storage.is_ready(layout)
    assert "not a point in time" in said[0]
    assert "plain folder" in storage.describe(layout)


def test_a_file_system_with_volumes_is_never_given_up(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage.processes, "run", fail)
    layout.volumes_image.write_text("somebody's volumes")
    with pytest.raises(LabError):
        storage.mount(layout, print)
    assert layout.volumes_image.read_text() == "somebody's volumes"
    assert not storage.is_ready(layout)


def fail(layout: Layout, command: list[str], timeout_s: float) -> str:
    raise LabError("mount failed: no loop device", "nothing was mounted", f"read {layout.logs}")


# --- guests
def guest(number: int, name: str) -> Guest:
    return Guest(f"id-{number}", name, "bookworm", 20000 + number, f"ssh-ed25519 KEY{number}")


def write(layout: Layout, *all_guests: Guest) -> None:
    for one in all_guests:
        guests.folder(layout, one.id).mkdir()
        guests.record(layout, one)
    guests.write_ssh_files(layout)


def ssh_says(layout: Layout, name: str) -> dict[str, str]:
    """What ssh itself makes of the file."""
    told = subprocess.check_output(["ssh", "-G", "-F", layout.ssh_config, name], text=True)
    return dict(line.split(" ", 1) for line in told.splitlines() if " " in line)


def test_ssh_finds_each_server_by_name_and_id(layout: Layout) -> None:
    write(layout, guest(1, "web"), guest(2, "db"))
    for name in ("web", "id-1"):
        told = ssh_says(layout, name)
        assert (told["hostname"], told["port"], told["user"]) == ("127.0.0.1", "20001", "debian")
        assert told["stricthostkeychecking"] == "true"
        assert told["userknownhostsfile"] == str(layout.known_hosts)
    assert layout.known_hosts.read_text().splitlines() == [
        "[127.0.0.1]:20001 ssh-ed25519 KEY1",
        "[127.0.0.1]:20002 ssh-ed25519 KEY2",
    ]


def test_a_name_that_two_servers_have_leads_to_neither(layout: Layout) -> None:
    write(layout, guest(1, "web"), guest(2, "web"))
    assert ssh_says(layout, "web")["hostname"] == "web"
    assert ssh_says(layout, "id-2")["port"] == "20002"


def test_a_deleted_server_is_forgotten(layout: Layout) -> None:
    write(layout, guest(1, "web"), guest(2, "db"))
    (guests.folder(layout, "id-1") / "guest.json").unlink()
    guests.write_ssh_files(layout)
    assert ssh_says(layout, "web")["hostname"] == "web"
    assert "20001" not in layout.known_hosts.read_text()


def test_a_pid_file_without_its_qemu_is_no_running_guest(layout: Layout) -> None:
    write(layout, guest(1, "web"))
    assert guests.pid(layout, "id-1") is None
    (guests.folder(layout, "id-1") / "qemu.pid").write_text(f"{os.getpid()}\n")
    assert guests.pid(layout, "id-1") is None


# --- verbs
def test_status_of_no_lab_says_how_to_make_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VOLFERRY_LAB", str(tmp_path / "none"))
    assert main(["status"]) == 1
    assert "python3 -m lab up" in capsys.readouterr().out
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("verb", ["down", "wipe"])
def test_ending_no_lab_makes_none(
    verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VOLFERRY_LAB", str(tmp_path / "none"))
    assert main([verb]) == 0
    assert not (tmp_path / "none").exists()


def test_a_lab_is_held_by_one_run_at_a_time_and_let_go_when_that_is_killed(
    layout: Layout, capsys: pytest.CaptureFixture[str]
) -> None:
    hold = (
        "import sys, time; from pathlib import Path; from lab.api import Lab\n"
        "with Lab(Path(sys.argv[1])).held('the first'): print('held', flush=True); time.sleep(60)"
    )
    first = subprocess.Popen(
        [sys.executable, "-c", hold, layout.root], stdout=subprocess.PIPE, cwd=REPOSITORY
    )
    assert first.stdout
    assert first.stdout.readline() == b"held\n"
    killer = threading.Timer(1, first.kill)
    killer.start()
    with Lab(layout.root).held("the second"):
        assert first.wait(10) != 0
        assert layout.user.read_text() == f"the second, process {os.getpid()}\n"
    killer.join()
    first.stdout.close()
    assert f"the first, process {first.pid}" in capsys.readouterr().err


def test_wipe_keeps_the_cache(layout: Layout) -> None:
    kept = layout.venv / "bin"
    kept.mkdir(parents=True)
    (layout.root / "prepared").write_text("x")
    layout.databases.mkdir()
    control.wipe(layout, print)
    assert kept.is_dir()
    assert {entry.name for entry in layout.root.iterdir()} == {"cache", "lock"}


def test_state_of_other_versions_is_refused_in_three_lines(layout: Layout) -> None:
    layout.prepared.write_text("venv-of-last-year\n")
    with pytest.raises(LabError) as error:
        control.up(layout, print)
    assert len(str(error.value).splitlines()) == 3
    assert "venv-of-last-year" in str(error.value)
    assert "wipe" in error.value.hint


@pytest.mark.parametrize(
    "words", [["no_such", "fail=1"], ["attach", "speed=3"], ["attach", "fail=x"]]
)
def test_a_knob_that_is_none_is_explained(
    words: list[str],
    layout: Layout,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("VOLFERRY_LAB", str(layout.root))
    assert main(["knob", *words]) == 1
    assert "hint: python3 -m lab knob OPERATION" in capsys.readouterr().err
