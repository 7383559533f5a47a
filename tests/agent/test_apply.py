"""Files of the user's guest: written whole or not at all, and never over somebody else's edit."""

import os
import stat
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from agent_rig import AGENT, Guest, Told

SOURCE = {"volume_id": "3f0d4a5e-aaaa-bbbb-cccc-0123456789ab", "size_bytes": 1}


@pytest.fixture
def ready(guest: Guest) -> Guest:
    guest.install(SOURCE)
    return guest


def apply(guest: Guest, *files: Mapping[str, object]) -> dict[str, list[str]]:
    return guest.call("apply", files=list(files), udev=True, systemd=True, trigger=[])


def test_a_file_is_written_with_its_mode_and_the_same_again_is_no_change(ready: Guest) -> None:
    path = ready.root / "etc" / "udev" / "rules.d" / "10-x.rules"
    file = {"path": str(path), "content": "rule\n", "mode": 0o644}
    assert apply(ready, file)["written"] == [str(path)]
    assert path.read_text() == "rule\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    before = path.stat()
    assert apply(ready, file)["same"] == [str(path)]
    assert path.stat().st_ino == before.st_ino


def test_none_removes_and_removing_again_is_no_change(ready: Guest) -> None:
    path = ready.root / "etc" / "gone"
    path.write_text("x")
    file = {"path": str(path), "content": None}
    assert apply(ready, file)["removed"] == [str(path)]
    assert not path.exists()
    assert apply(ready, file)["same"] == [str(path)]


def test_where_udev_and_systemd_do_not_run_it_is_said(ready: Guest) -> None:
    skipped = apply(ready)["skipped"]
    assert any("udev" in text for text in skipped) and any("systemd" in text for text in skipped)


def test_an_edit_by_somebody_else_stops_all_of_it(ready: Guest) -> None:
    one, two = ready.root / "etc" / "one", ready.root / "etc" / "two"
    one.write_text("old\n")
    two.write_text("edited by hand\n")
    with pytest.raises(Told, match="changed by somebody else") as told:
        apply(
            ready,
            {"path": str(one), "content": "new\n", "expect": "old\n"},
            {"path": str(two), "content": "new\n", "expect": "old\n"},
        )
    assert told.value.kind == "doubt"
    assert (one.read_text(), two.read_text()) == ("old\n", "edited by hand\n")


def test_what_is_there_already_is_as_good_as_what_was_expected(ready: Guest) -> None:
    path = ready.root / "etc" / "one"
    path.write_text("new\n")
    result = apply(ready, {"path": str(path), "content": "new\n", "expect": "old\n"})
    assert result["same"] == [str(path)]


def test_expecting_nothing_refuses_a_file_that_is_there(ready: Guest) -> None:
    path = ready.root / "etc" / "one"
    path.write_text("somebody's\n")
    with pytest.raises(Told):
        apply(ready, {"path": str(path), "content": "ours\n", "expect": None})
    assert path.read_text() == "somebody's\n"


def test_owner_and_mode_of_a_user_s_file_stay(ready: Guest) -> None:
    path = ready.root / "etc" / "fstab"
    path.write_text("a\n")
    os.chown(path, 1234, 4321)
    path.chmod(0o640)
    apply(ready, {"path": str(path), "content": "b\n"})
    status = path.stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (1234, 4321, 0o640)


def test_a_link_in_the_place_of_a_file_is_left_alone(ready: Guest) -> None:
    real, link = ready.root / "etc" / "real", ready.root / "etc" / "fstab"
    real.write_text("x\n")
    link.symlink_to(real)
    with pytest.raises(Told, match="not a plain file"):
        apply(ready, {"path": str(link), "content": "y\n"})
    assert link.is_symlink() and real.read_text() == "x\n"


@pytest.mark.parametrize("path", ["relative", "/etc/../etc/fstab", "/etc//fstab", "/etc/fstab/"])
def test_a_path_that_is_not_plain_is_refused(ready: Guest, path: str) -> None:
    with pytest.raises(Told, match="absolute, plain path"):
        apply(ready, {"path": path, "content": "x"})


def test_the_first_content_ever_seen_is_kept(ready: Guest) -> None:
    path = ready.root / "etc" / "fstab"
    path.write_text("the user's\n")
    apply(ready, {"path": str(path), "content": "ours\n"})
    apply(ready, {"path": str(path), "content": "ours again\n"})
    backups = list((ready.state_dir / "backup").iterdir())
    assert [file.read_text() for file in backups] == ["the user's\n"]


def test_bytes_that_are_not_utf_8_survive(ready: Guest) -> None:
    path = ready.root / "etc" / "fstab"
    raw = "LABEL=caf\udce9 /srv ext4\n"
    apply(ready, {"path": str(path), "content": raw})
    assert path.read_bytes() == b"LABEL=caf\xe9 /srv ext4\n"


def test_a_killed_writer_leaves_the_old_file_or_the_new_one(tmp_path: Path) -> None:
    """Killed again and again while it writes: every reader saw one of the two whole contents."""
    path = tmp_path / "file"
    contents = ["a" * 300_000, "b" * 300_000]
    path.write_text(contents[0])
    program = (
        "import importlib.util as u, sys\n"
        f"s = u.spec_from_file_location('agent', {str(AGENT)!r}); m = u.module_from_spec(s)\n"
        "sys.modules['agent'] = m; s.loader.exec_module(m); print('up', flush=True)\n"
        "while True:\n  for c in (b'a', b'b'):\n"
        f"    m.write_atomically({str(path)!r}, c * 300000, 0o600)\n"
    )
    for round_ in range(6):
        process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        for _ in range(100):
            assert path.read_text() in contents
        process.kill()
        process.wait(timeout=10)
        process.stdout.close()
        assert path.read_text() in contents, round_
