"""Reading rsync's listing, and taking its exit codes for what they mean."""

import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from agent_rig import agent, shell
from hypothesis import given, settings
from hypothesis import strategies as st


def escape(name: bytes) -> bytes:
    """As rsync(1) says of --8-bit-output: what cannot be printed in the C locale as ``\\#ooo``."""
    out = b""
    for index, byte in enumerate(name):
        ahead = name[index + 1 : index + 5]
        literal = byte == 0x5C and len(ahead) == 4 and ahead[:1] == b"#" and ahead[1:].isdigit()
        if byte < 0x20 or byte > 0x7E or literal:
            out += b"\\#%03o" % byte
        else:
            out += bytes([byte])
    return out


names = st.lists(st.integers(1, 255).filter(lambda b: b != 0x2F), min_size=1, max_size=40).map(
    bytes
)


@given(
    name=names, size=st.integers(0, 1 << 50), flags=st.sampled_from([">f+++++++++", ".d..t......"])
)
def test_any_name_survives_the_listing(name: bytes, size: int, flags: str) -> None:
    item = agent.parse_itemized(f"{flags} {size} ".encode() + escape(name))
    assert item is not None
    assert (item.flags, item.size, item.name) == (flags, size, name)


@given(line=st.binary(max_size=80))
def test_any_line_is_read_without_failing(line: bytes) -> None:
    agent.parse_itemized(line)


@settings(max_examples=25, deadline=None)
@given(name=names.filter(lambda name: name not in (b".", b"..")))
def test_what_the_real_rsync_prints_is_what_we_read(
    tmp_path_factory: pytest.TempPathFactory, name: bytes
) -> None:
    root = tmp_path_factory.mktemp("rsync")
    source, target = root / "source", root / "target"
    source.mkdir()
    target.mkdir()
    with open(bytes(source) + b"/" + name, "wb") as file:
        file.write(b"xyz")
    mover = agent.RsyncMover(str(source), str(target), [])
    copied = mover.copy(lambda *_args, **_more: None, 1e18, False, None)
    shutil.rmtree(root)
    assert copied.touched is not None and name in copied.touched
    assert (copied.files, copied.bytes) == (1, 3)


@pytest.mark.parametrize("line", [
    b"sending incremental file list", b"", b"cannot delete non-empty directory: x",
    b">f+++++++++ x name", b"total size is 5  speedup is 1",
])  # fmt: skip
def test_a_line_that_is_no_item_is_none(line: bytes) -> None:
    assert agent.parse_itemized(line) is None


def test_deletions_and_transfers_are_told_apart() -> None:
    deleted = agent.parse_itemized(b"*deleting   0 folder/")
    assert deleted is not None and deleted.deleted and not deleted.copied
    linked = agent.parse_itemized(b"hf+++++++++ 5 other")
    assert linked is not None and not linked.copied
    copied = agent.parse_itemized(b">f.st...... 1,234,567 file")
    assert copied is not None and copied.copied and copied.size == 1234567


PATHS = [
    "plain",
    "a b",
    "*",
    "a*b",
    "[x]",
    "a?b",
    "back\\slash",
    "back\\*star",
    "deep/er",
    "-n",
    "#x",
]


@pytest.mark.parametrize("path", PATHS)
def test_an_exclusion_means_that_path_alone(tmp_path: Path, path: str) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    every = [*PATHS, "axb", "x", "plainer", "sub/plain", "a--b"]
    for name in every:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(name)
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).write_text("left from the snapshot")
    mover = agent.RsyncMover(str(source), str(target), [path])
    mover.copy(lambda *_args, **_more: None, 1e18, False, None)
    left = {str(p.relative_to(target)) for p in target.rglob("*") if p.is_file()}
    assert left == set(every) - {path}


def run_stand_in(path: str, monkeypatch: pytest.MonkeyPatch, final: bool = False) -> agent.Copied:
    monkeypatch.setenv("PATH", path)
    mover = agent.RsyncMover("/source", "/target", [])
    return mover.copy(lambda *_args, **_more: None, 1e18, not final, None)


def rsync_that(ends_with: int, says: str = "") -> str:
    return (
        '#!/bin/sh\n[ "$1" = --version ] && { echo "rsync  version 3.2.7"; exit 0; }\n'
        f"echo '{says}' >&2\nexit {ends_with}\n"
    )


Maker = Callable[[str, str], str]


def test_vanished_files_are_normal_while_the_service_runs(
    stand_in: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = stand_in("rsync", rsync_that(24, "file has vanished"))
    assert run_stand_in(path, monkeypatch).vanished


def test_vanished_files_are_an_error_in_the_final_pass(
    stand_in: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = stand_in("rsync", rsync_that(24, "file has vanished"))
    with pytest.raises(agent.AgentError, match="Partial transfer due to vanished source files"):
        run_stand_in(path, monkeypatch, final=True)


CUT_SHORT = (
    "file has vanished: /a\n"
    "rsync: [sender] read errors mapping /b: No data available (61)\n"
    "WARNING: b failed verification -- update discarded (will try again).\n"
    "rsync error: some files/attrs were not transferred (see previous errors) (code 23) at main.c"
)


def test_a_file_that_is_cut_short_while_it_is_read_is_normal_while_the_service_runs(
    stand_in: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = stand_in("rsync", rsync_that(23, CUT_SHORT))
    assert run_stand_in(path, monkeypatch).vanished
    with pytest.raises(agent.AgentError, match="Partial transfer due to error"):
        run_stand_in(path, monkeypatch, final=True)


def test_one_real_fault_among_them_is_a_failure(
    stand_in: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault = "rsync: read errors mapping /c: Input/output error (5)\n"
    path = stand_in("rsync", rsync_that(23, fault + CUT_SHORT))
    with pytest.raises(agent.AgentError, match="Input/output error"):
        run_stand_in(path, monkeypatch)


@pytest.mark.parametrize("code", [1, 2, 3, 4, 5, 10, 11, 12, 13, 14, 20, 21, 22, 23, 25, 30, 35])
def test_every_other_code_is_a_failure_told_with_its_meaning(
    stand_in: Maker, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    path = stand_in("rsync", rsync_that(code, "rsync: something (5)"))
    with pytest.raises(agent.AgentError) as told:
        run_stand_in(path, monkeypatch)
    assert agent.RSYNC_EXIT[code] in told.value.what
    assert "rsync: something (5)" in told.value.what


def test_an_unknown_code_gets_no_invented_meaning(
    stand_in: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = stand_in("rsync", rsync_that(77))
    with pytest.raises(agent.AgentError, match=r"77 \(no documented code\)"):
        run_stand_in(path, monkeypatch)


def test_the_meanings_are_those_of_the_man_page() -> None:
    done = subprocess.run(
        ["man", "-P", "cat", "rsync"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "MANWIDTH": "500"},
    )
    if done.returncode != 0 or "EXIT VALUES" not in done.stdout:
        pytest.skip("the man page of rsync is not installed")
    page = " ".join(done.stdout.split())
    for meaning in agent.RSYNC_EXIT.values():
        assert meaning in page, meaning


def test_a_missing_rsync_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent, "environment", lambda: {"PATH": "/nowhere"})
    with pytest.raises(agent.AgentError, match="rsync is not installed") as told:
        agent.RsyncMover("/source", "/target", [])
    assert told.value.kind == "missing"


def test_one_that_never_ends_is_ended_at_the_deadline(
    stand_in: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = rsync_that(0).replace("exit 0\n", "exec sleep 600\n")
    monkeypatch.setenv("PATH", stand_in("rsync", text.replace("echo '' >&2\n", "exec sleep 600\n")))
    mover = agent.RsyncMover("/source", "/target", [])
    began = time.monotonic()
    with pytest.raises(agent.AgentError, match=r"did not end within \d+ s \(a fixed limit\)"):
        mover.copy(lambda *_args, **_more: None, began + 0.5, True, None)
    assert time.monotonic() - began < 5


def test_an_old_rsync_is_not_asked_for_nanoseconds(
    stand_in: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = '#!/bin/sh\necho "rsync  version 3.1.2  protocol version 31"\n'
    monkeypatch.setenv("PATH", stand_in("rsync", old))
    mover = agent.RsyncMover("/source", "/target", [])
    assert not mover.nanoseconds
    assert "--modify-window=-1" not in mover.options()


def test_a_full_target_is_tried_again_in_place(
    stand_in: Maker, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    text = (
        '#!/bin/sh\n[ "$1" = --version ] && { echo "rsync  version 3.2.7"; exit 0; }\n'
        f'case "$*" in *--inplace*) touch {tmp_path}/in-place; exit 0;; esac\n'
        "echo 'rsync: write failed: No space left on device (28)' >&2\nexit 11\n"
    )
    run_stand_in(stand_in("rsync", text), monkeypatch)
    assert (tmp_path / "in-place").exists()


def test_a_target_that_is_too_small_is_told_with_the_way_out(
    stand_in: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (
        '#!/bin/sh\n[ "$1" = --version ] && { echo "rsync  version 3.2.7"; exit 0; }\n'
        "echo 'rsync: write failed: No space left on device (28)' >&2\nexit 11\n"
    )
    with pytest.raises(agent.AgentError, match="the target is full: rsync ended with 11") as full:
        run_stand_in(stand_in("rsync", text), monkeypatch)
    assert "larger --size" in full.value.hint


def test_locked_files_in_the_target_are_unlocked_when_rsync_cannot_replace_them(
    tmp_path: Path,
) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    (target / "gone").mkdir(parents=True)
    (source / "log").write_text("new")
    (target / "log").write_text("old content")
    (target / "gone" / "file").write_text("x")
    locked = [target / "log", target / "gone" / "file", target / "gone"]
    try:
        for path in locked:
            shell("chattr", "+i", path)
        mover = agent.RsyncMover(str(source), str(target), [])
        mover.copy(lambda *_args, **_more: None, 1e18, True, None)
        assert sorted(os.listdir(target)) == ["log"]
        assert (target / "log").read_text() == "new"
    finally:
        subprocess.run(["chattr", "-R", "-i", str(target)], capture_output=True, check=False)
