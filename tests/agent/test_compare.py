"""The comparison sees every single thing that can be wrong with a copy, and nothing else."""

import fcntl
import os
import shutil
import socket
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from agent_rig import agent, shell

SAME_TIME_NS = 1_600_000_000_123_456_789


class Trees:
    """A source with one of everything, and a copy of it that was made by rsync."""

    def __init__(self, root: Path) -> None:
        self.source, self.target = root / "source", root / "target"
        self.source.mkdir()
        self.target.mkdir()
        file = self.source / "file"
        file.write_bytes(os.urandom(10_000))
        (self.source / "empty").touch()
        (self.source / "folder" / "deep").mkdir(parents=True)
        (self.source / "folder" / "deep" / "leaf").write_text("leaf")
        (self.source / "link").symlink_to("nowhere")
        os.mkfifo(self.source / "fifo")
        os.mknod(self.source / "device", 0o20600, os.makedev(1, 3))
        os.link(file, self.source / "folder" / "hard")
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(self.source / "socket"))
        (self.source / "big").write_bytes(os.urandom(3 * 1024 * 1024 + 17))
        with (self.source / "sparse").open("wb") as sparse:
            sparse.truncate(8 * 1024 * 1024)
            sparse.seek(5 * 1024 * 1024)
            sparse.write(b"island")
        for name in (b"not utf-8 \xff\xfe", b"new\nline", b"back\\#012slash", b" ", b"-n", b"*"):
            Path(os.fsdecode(bytes(self.source) + b"/" + name)).write_bytes(name)
        shell("setfattr", "-n", "user.note", "-v", "kept", file)
        shell("setfattr", "-n", "trusted.note", "-v", "kept", self.source / "folder")
        shell("setfacl", "-m", "u:1234:r", self.source / "empty")
        shell("setfacl", "-d", "-m", "u:1234:rwx", self.source / "folder")
        os.chown(self.source / "empty", 1000, 1001)
        os.utime(file, ns=(SAME_TIME_NS, SAME_TIME_NS))
        self.copy()

    def copy(self) -> None:
        mover = agent.RsyncMover(str(self.source), str(self.target), [])
        mover.copy(lambda *_args, **_more: None, 1e18, False, None)

    def compare(self, exclude: list[str] | None = None) -> agent.Comparison:
        found = agent.Comparison(str(self.source), str(self.target), exclude or [], True)
        found.all(lambda _files, _bytes: None)
        return found

    def touched_up(self, name: str) -> None:
        """Give an entry of the target (and its directory) the times of the source again."""
        for path in (Path(name), Path(name).parent):
            status = os.lstat(self.source / path)
            os.utime(
                self.target / path,
                ns=(status.st_atime_ns, status.st_mtime_ns),
                follow_symlinks=False,
            )


@pytest.fixture
def trees(tmp_path: Path) -> Iterator[Trees]:
    if not shutil.which("setfacl") or not shutil.which("setfattr"):
        pytest.skip("setfacl and setfattr (packages acl, attr) are needed to make such files")
    yield Trees(tmp_path)
    subprocess.run(["chattr", "-R", "-i", "-a", str(tmp_path)], capture_output=True, check=False)


def test_a_copy_by_our_rsync_is_equal_in_everything(trees: Trees) -> None:
    found = trees.compare()
    assert found.different == {}
    assert found.attributes == {}
    assert found.entries == sum(1 for _ in trees.source.rglob("*")) + 1
    assert found.files == sum(
        1 for path in trees.source.rglob("*") if path.is_file() and not path.is_symlink()
    )


def one_byte(trees: Trees) -> str:
    """Same size, same times, another content: what rsync's quick check does not see."""
    with (trees.target / "big").open("r+b") as file:
        file.seek(2 * 1024 * 1024 + 5)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))
    trees.touched_up("big")
    return "big"


def last_byte(trees: Trees) -> str:
    data = (trees.target / "big").read_bytes()
    (trees.target / "big").write_bytes(data[:-1] + bytes([data[-1] ^ 0x80]))
    trees.touched_up("big")
    return "big"


def byte_in_a_hole(trees: Trees) -> str:
    with (trees.target / "sparse").open("r+b") as file:
        file.seek(7 * 1024 * 1024)
        file.write(b"\1")
    trees.touched_up("sparse")
    return "sparse"


def island_lost(trees: Trees) -> str:
    with (trees.target / "sparse").open("wb") as file:
        file.truncate(8 * 1024 * 1024)
    trees.touched_up("sparse")
    return "sparse"


def longer(trees: Trees) -> str:
    with (trees.target / "empty").open("ab") as file:
        file.write(b"x")
    trees.touched_up("empty")
    return "empty"


def mode(trees: Trees) -> str:
    (trees.target / "folder" / "deep").chmod(0o700)
    return "folder/deep"


def setuid(trees: Trees) -> str:
    (trees.target / "big").chmod(0o4644)
    return "big"


def owner(trees: Trees) -> str:
    os.chown(trees.target / "big", 7, -1)
    return "big"


def group(trees: Trees) -> str:
    os.chown(trees.target / "link", -1, 7, follow_symlinks=False)
    return "link"


def mtime_by_a_nanosecond(trees: Trees) -> str:
    os.utime(trees.target / "file", ns=(SAME_TIME_NS, SAME_TIME_NS + 1))
    return "file|folder/hard"


def directory_mtime(trees: Trees) -> str:
    os.utime(trees.target / "folder", (1, 1))
    return "folder"


def root_mode(trees: Trees) -> str:
    trees.target.chmod(0o711)
    return ""


def link_target(trees: Trees) -> str:
    (trees.target / "link").unlink()
    (trees.target / "link").symlink_to("nowherf")
    trees.touched_up("link")
    return "link"


def missing(trees: Trees) -> str:
    (trees.target / "folder" / "deep" / "leaf").unlink()
    trees.touched_up("folder/deep")
    os.utime(
        trees.target / "folder" / "deep",
        ns=(0, os.lstat(trees.source / "folder" / "deep").st_mtime_ns),
    )
    return "folder/deep/leaf"


def extra(trees: Trees) -> str:
    (trees.target / "folder" / "resurrected").touch()
    trees.touched_up("folder")
    return "folder/resurrected"


def xattr_value(trees: Trees) -> str:
    shell("setfattr", "-n", "user.note", "-v", "lost", trees.target / "file")
    return "file|folder/hard"


def xattr_missing(trees: Trees) -> str:
    shell("setfattr", "-x", "trusted.note", trees.target / "folder")
    return "folder"


def xattr_extra(trees: Trees) -> str:
    shell("setfattr", "-n", "user.more", "-v", "x", trees.target / "big")
    return "big"


def acl(trees: Trees) -> str:
    shell("setfacl", "-m", "u:1234:rw", trees.target / "empty")
    return "empty"


def default_acl(trees: Trees) -> str:
    shell("setfacl", "-k", trees.target / "folder")
    return "folder"


def hard_link_broken(trees: Trees) -> str:
    path = trees.target / "folder" / "hard"
    copy = trees.target / "folder" / "copy"
    shell("cp", "-a", path, copy)
    path.unlink()
    copy.rename(path)
    trees.touched_up("folder/hard")
    return "file|folder/hard"


def hard_link_of_another(trees: Trees) -> str:
    """Two files of two names each, whose names were swapped in the copy."""
    for root in (trees.source, trees.target):
        for name in "abcd":
            (root / name).write_text("same")
        (root / "b").unlink()
        (root / "d").unlink()
    os.link(trees.source / "a", trees.source / "b")
    os.link(trees.source / "c", trees.source / "d")
    os.link(trees.target / "a", trees.target / "d")
    os.link(trees.target / "c", trees.target / "b")
    for root in (trees.source, trees.target):
        for name in "abcd":
            os.utime(root / name, ns=(1, 1))
    os.utime(trees.source, ns=(1, 1))
    os.utime(trees.target, ns=(1, 1))
    return "b|c|d"  # once b is wrong, its partner is taken by it


def device_number(trees: Trees) -> str:
    (trees.target / "device").unlink()
    os.mknod(trees.target / "device", 0o20600, os.makedev(1, 5))
    trees.touched_up("device")
    return "device"


def another_type(trees: Trees) -> str:
    (trees.target / "fifo").unlink()
    (trees.target / "fifo").touch(0o644)
    trees.touched_up("fifo")
    return "fifo"


def odd_name(trees: Trees) -> str:
    (trees.target / "new\nline").write_bytes(b"new\nlinf")
    trees.touched_up("new\nline")
    return "new\nline"


BREAKAGES = [
    one_byte, last_byte, byte_in_a_hole, island_lost, longer, mode, setuid, owner, group,
    mtime_by_a_nanosecond, directory_mtime, root_mode, link_target, missing, extra, xattr_value,
    xattr_missing, xattr_extra, acl, default_acl, hard_link_broken, hard_link_of_another,
    device_number, another_type, odd_name,
]  # fmt: skip


@pytest.mark.parametrize("broken", BREAKAGES, ids=lambda broken: broken.__name__)
def test_one_broken_thing_is_found_and_only_that(
    trees: Trees, broken: Callable[[Trees], str]
) -> None:
    wanted = set(broken(trees).split("|"))
    found = {os.fsdecode(path) for path in trees.compare().different}
    assert found == wanted


@pytest.mark.parametrize("broken", BREAKAGES, ids=lambda broken: broken.__name__)
def test_what_is_broken_is_healed_by_copying_just_that(
    trees: Trees, broken: Callable[[Trees], str]
) -> None:
    broken(trees)
    comparison = trees.compare()
    mover = agent.RsyncMover(str(trees.source), str(trees.target), [])
    company = agent.with_company(comparison, set(comparison.different))
    mover.heal(company, lambda *_args, **_more: None, 1e18)
    assert trees.compare().different == {}


def test_a_hole_that_was_filled_with_zeros_is_the_same_content(trees: Trees) -> None:
    shell("cp", "-a", "--sparse=never", trees.source / "sparse", trees.target / "sparse")
    trees.touched_up("sparse")
    assert trees.compare().different == {}


def test_holes_are_not_read(trees: Trees) -> None:
    with (trees.source / "huge").open("wb") as file:
        file.truncate(1 << 40)
        file.seek(1 << 39)
        file.write(b"island")
    # Not by rsync, which reads a hole from its beginning to its end.
    shell("cp", "-a", trees.source / "huge", trees.target / "huge")
    trees.touched_up("huge")
    found = trees.compare()
    assert found.different == {}
    assert found.bytes < 32 * 1024 * 1024


def test_an_excluded_path_is_not_looked_at_but_must_be_absent_in_the_target(trees: Trees) -> None:
    assert set(trees.compare(["folder/deep"]).different) == {b"folder/deep"}
    shutil.rmtree(trees.target / "folder" / "deep")
    os.utime(trees.target / "folder", ns=(0, os.lstat(trees.source / "folder").st_mtime_ns))
    assert trees.compare(["folder/deep"]).different == {}


def test_flags_that_no_mover_copies_are_collected(trees: Trees) -> None:
    shell("chattr", "+a", trees.source / "big")
    shell("chattr", "+d", trees.source / "folder")
    found = trees.compare()
    assert found.different == {}
    assert {path: flags for path, (flags, _project) in found.attributes.items()} == {
        b"big": agent.FS_APPEND,
        b"folder": agent.FS_NODUMP,
    }
    agent.set_attributes(bytes(trees.target / "big"), found.attributes[b"big"])
    agent.set_attributes(bytes(trees.target / "folder"), found.attributes[b"folder"])
    assert trees.compare().attributes == {}


def test_only_what_was_asked_for_is_compared(trees: Trees) -> None:
    one_byte(trees)
    mode(trees)
    found = agent.Comparison(str(trees.source), str(trees.target), [], True)
    found.some([b"folder", b"file"], lambda _files, _bytes: None)
    assert found.different == {}
    assert found.entries == 2
    found.some([b"big"], lambda _files, _bytes: None)
    assert set(found.different) == {b"big"}


def test_a_changed_directory_tells_of_every_name_that_is_wrong(trees: Trees) -> None:
    missing(trees)
    extra(trees)
    found = agent.Comparison(str(trees.source), str(trees.target), [], True)
    found.some([b"folder", b"folder/deep"], lambda _files, _bytes: None)
    assert found.different == {
        b"folder/resurrected": "only in the target",
        b"folder/deep/leaf": "missing in the target",
    }


def test_a_read_error_is_not_taken_for_equality(
    trees: Trees, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_args: object) -> bytes:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "pread", failing)
    with pytest.raises(OSError, match="Input/output error"):
        trees.compare()


def test_the_target_is_read_from_its_disk_and_the_source_s_cache_is_kept(
    trees: Trees, monkeypatch: pytest.MonkeyPatch
) -> None:
    dropped = []
    real = os.posix_fadvise

    def noted(fd: int, offset: int, size: int, advice: int) -> None:
        dropped.append(os.readlink(f"/proc/self/fd/{fd}"))
        real(fd, offset, size, advice)

    monkeypatch.setattr(os, "posix_fadvise", noted)
    trees.compare()
    assert str(trees.target / "big") in dropped
    assert not [path for path in dropped if path.startswith(str(trees.source))]


def test_the_walk_for_changes_finds_what_changed_since_and_nothing_older(trees: Trees) -> None:
    since = os.lstat(trees.source / "sparse").st_ctime
    every = agent.changed_since(str(trees.source), [], 0.0)
    assert len(every) == sum(1 for _ in trees.source.rglob("*")) + 1
    assert len(set(every)) == len(every)
    later = max(os.lstat(path).st_ctime for path in trees.source.rglob("*")) + 0.01
    while True:  # ctime is taken from a clock that ticks every few milliseconds
        (trees.source / "folder" / "deep" / "leaf").write_text("new")
        if os.lstat(trees.source / "folder" / "deep" / "leaf").st_ctime > later:
            break
    assert agent.changed_since(str(trees.source), [], later) == [b"folder/deep/leaf"]
    assert agent.changed_since(str(trees.source), ["folder/deep"], later) == []
    assert b"sparse" in agent.changed_since(str(trees.source), [], since - 0.001)


def test_the_ioctl_numbers_are_those_of_this_kernel(tmp_path: Path) -> None:
    """lsattr asks by the same ioctl; a wrong number would be told as "no flags"."""
    path = tmp_path / "file"
    path.touch()
    shell("chattr", "+A", path)
    with path.open("rb") as file:
        answer = fcntl.ioctl(file, agent.FS_IOC_GETFLAGS, bytes(8))
    assert struct.unpack_from("=I", answer)[0] & agent.FS_NOATIME
