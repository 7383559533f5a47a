"""When the watermark of the last pass may be trusted, and what a difference then means."""

import mmap
import os
import time
from pathlib import Path
from typing import Any

import pytest
from agent_rig import agent
from hypothesis import given
from hypothesis import strategies as st

seconds = st.floats(-1e9, 1e9, allow_nan=False)
two_texts = st.lists(st.text(), min_size=2, max_size=2, unique=True)


@given(offset=seconds, moved=st.floats(-0.99, 0.99), watermark=seconds)
def test_a_clock_that_was_slewed_keeps_the_watermark(
    offset: float, moved: float, watermark: float
) -> None:
    request = {"watermark": watermark, "clock_offset": offset, "boot_id": "b"}
    assert agent.full_reason(request, "b", offset + moved) == ""


@given(offset=seconds, moved=st.floats(1.01, 1e8) | st.floats(-1e8, -1.01), watermark=seconds)
def test_a_clock_that_was_set_voids_it(offset: float, moved: float, watermark: float) -> None:
    request = {"watermark": watermark, "clock_offset": offset, "boot_id": "b"}
    assert "was moved" in agent.full_reason(request, "b", offset + moved)


@given(
    offset=seconds,
    watermark=seconds,
    boots=st.lists(st.text(), min_size=2, max_size=2, unique=True),
)
def test_another_boot_voids_it(offset: float, watermark: float, boots: list[str]) -> None:
    request = {"watermark": watermark, "clock_offset": offset, "boot_id": boots[0]}
    assert agent.full_reason(request, boots[1], offset) != ""


@pytest.mark.parametrize(
    "request_",
    [
        {},
        {"watermark": None, "clock_offset": 1.0, "boot_id": "b"},
        {"watermark": 5.0},
        {"watermark": 5.0, "clock_offset": None, "boot_id": "b"},
        {"watermark": 5.0, "clock_offset": 1.0, "boot_id": ""},
    ],
)
def test_anything_that_is_missing_means_comparing_everything(request_: dict[str, Any]) -> None:
    assert agent.full_reason(request_, "b", 1.0) != ""


def test_a_watermark_of_zero_is_one(tmp_path: Path) -> None:
    request = {"watermark": 0.0, "clock_offset": 1.0, "boot_id": "b"}
    assert agent.full_reason(request, "b", 1.0) == ""


class Look:
    """A pass that looks at a tree of the test's own."""

    def __init__(self, root: Path, final: bool) -> None:
        kind = agent.FinalPass if final else agent.LivePass
        request = {"filesystems": [{"mount": str(root)}], "slack_s": 2}
        self.pass_ = kind(agent.Place(), str(root), request, lambda *_args, **_more: None)
        self.pass_.copy_start = time.time()
        mover = agent.RsyncMover(str(root), str(root), [])
        self.tree = agent.Tree({"mount": str(root)}, str(root), str(root), mover)

    def judge(self, *paths: bytes) -> tuple[set[bytes], set[bytes]]:
        comparison = agent.Comparison(self.tree.source, self.tree.target, [], True)
        comparison.different.update(dict.fromkeys(paths, "differs"))
        return self.pass_.judge(self.tree, comparison, 2.0)


def set_back(look: Look, by_s: float) -> None:
    """As if the copy had begun later: what was written until now is older than it."""
    look.pass_.copy_start += by_s


def test_what_was_written_after_the_copy_began_is_the_service_s_doing(tmp_path: Path) -> None:
    look = Look(tmp_path, final=False)
    (tmp_path / "new").write_text("x")
    assert look.judge(b"new") == (set(), {b"new"})


def test_what_is_older_than_the_copy_was_missed_by_it(tmp_path: Path) -> None:
    (tmp_path / "old").write_text("x")
    look = Look(tmp_path, final=False)
    set_back(look, 10)
    assert look.judge(b"old") == ({b"old"}, set())


def test_setting_mtime_back_does_not_hide_a_change(tmp_path: Path) -> None:
    look = Look(tmp_path, final=False)
    (tmp_path / "old").write_text("x")
    os.utime(tmp_path / "old", (1, 1))
    assert look.judge(b"old") == (set(), {b"old"})


def test_a_file_that_was_deleted_meanwhile_is_known_by_its_directory(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    look = Look(tmp_path, final=False)
    assert look.judge(b"folder/gone", b"folder/gone/below") == (
        set(),
        {b"folder/gone", b"folder/gone/below"},
    )
    set_back(look, 10)
    assert look.judge(b"folder/gone") == ({b"folder/gone"}, set())


def test_in_the_final_pass_nothing_is_the_service_s_doing(tmp_path: Path) -> None:
    look = Look(tmp_path, final=True)
    (tmp_path / "new").write_text("x")
    assert look.judge(b"new") == ({b"new"}, set())


def test_a_store_through_a_mapping_moves_ctime_once_its_page_was_synced(tmp_path: Path) -> None:
    """The fact that the sync before each copy rests on, asked of this kernel."""
    path = tmp_path / "mapped"
    path.write_bytes(bytes(4096))
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 4096) as mapped:
        mapped[0] = 1
        first = os.stat(path).st_ctime_ns
        time.sleep(0.05)
        mapped[1] = 2
        assert os.stat(path).st_ctime_ns == first, "a dirty page hides its next stores from ctime"
        agent.sync_filesystem(str(tmp_path), 60)
        mapped[2] = 3
        assert os.stat(path).st_ctime_ns > first
