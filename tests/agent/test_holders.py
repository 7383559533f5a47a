"""Everybody who would make an unmount fail is named, and nobody else."""

import ctypes
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from agent_rig import Disks, Json, agent, shell

HOLDERS = {
    "cwd": "os.chdir(path)",
    "fd": "held = open(path + '/held', 'w')",
    "mmap": (  # not the module of that name, which keeps the descriptor open
        "import ctypes; file = open(path + '/mapped', 'w+b'); file.truncate(4096);"
        "place = ctypes.CDLL(None).mmap(None, ctypes.c_size_t(4096), 3, 1, file.fileno(), 0);"
        "assert place != -1; file.close()"
    ),
    "root": "os.chroot(path)",
    "fd of a deleted file": "held = open(path + '/gone', 'w'); os.unlink(path + '/gone')",
}


@contextmanager
def process(code: str, path: Path) -> Iterator[int]:
    program = f"import os, time; path = {str(path)!r}; {code}; os.write(1, b'x'); time.sleep(600)"
    running = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, cwd="/")
    try:
        assert running.stdout is not None
        assert running.stdout.read(1) == b"x"
        yield running.pid
    finally:
        running.kill()
        running.wait(timeout=10)
        running.stdout.close()  # type: ignore[union-attr]


@pytest.fixture(params=["ext4", "btrfs"])
def mounted(request: pytest.FixtureRequest, disks: Disks, tmp_path: Path) -> tuple[Path, str]:
    volume = disks.blank("source", 200)
    shell(f"mkfs.{request.param}", "-q", volume.loop)
    path = disks.mount(volume.loop, tmp_path / "data")
    number = os.stat(volume.loop).st_rdev
    return path, f"{os.major(number)}:{os.minor(number)}"


def holders(mounted: tuple[Path, str]) -> list[Json]:
    found, complete = agent.find_holders(agent.Place(), {mounted[1]}, [str(mounted[0])], 60)
    assert complete
    return found


@pytest.mark.parametrize("how", HOLDERS)
def test_a_process_is_named_with_how_it_holds_the_mount(
    mounted: tuple[Path, str], how: str
) -> None:
    assert holders(mounted) == []
    with process(HOLDERS[how], mounted[0]) as pid:
        found = holders(mounted)
    assert [h["pid"] for h in found] == [pid]
    assert found[0]["kind"] == "process"
    assert found[0]["how"] == how.split(maxsplit=1)[0]
    assert found[0]["comm"]
    assert set(found[0]) == {"kind", "pid", "comm", "cgroup", "how", "path", "mount"}


def test_no_argument_of_a_process_is_ever_read(mounted: tuple[Path, str]) -> None:
    with process("os.chdir(path); 'secret'", mounted[0]):
        assert "secret" not in str(holders(mounted))


def test_a_process_in_a_btrfs_subvolume_holds_its_filesystem(disks: Disks, tmp_path: Path) -> None:
    """A subvolume has a device number of its own, so comparing those would miss it."""
    volume = disks.blank("source", 200)
    shell("mkfs.btrfs", "-q", volume.loop)
    path = disks.mount(volume.loop, tmp_path / "data")
    shell("btrfs", "subvolume", "create", path / "sub")
    number = os.stat(volume.loop).st_rdev
    where = (path, f"{os.major(number)}:{os.minor(number)}")
    for how in ("cwd", "fd", "mmap"):
        with process(HOLDERS[how], path / "sub") as pid:
            assert [h["pid"] for h in holders(where)] == [pid], how


def test_a_loop_device_on_a_file_of_the_mount_is_named(
    mounted: tuple[Path, str], disks: Disks
) -> None:
    image = mounted[0] / "image"
    with image.open("wb") as file:
        file.truncate(1 << 20)
    inner = disks.attach(image, "inner")
    found = holders(mounted)
    assert [(h["kind"], h["path"]) for h in found] == [("loop", str(image))]
    shell("losetup", "--detach", inner.loop)


def test_a_mount_in_another_namespace_is_named(mounted: tuple[Path, str]) -> None:
    """Made private, so that an unmount here does not reach it."""
    code = (
        "import ctypes, subprocess; ctypes.CDLL(None).unshare(0x20000);"
        "subprocess.run(['mount', '--make-rprivate', '/'], check=True)"
    )
    with process(code, mounted[0]) as pid:
        found = holders(mounted)
    assert [(h["kind"], h["pid"], h["how"]) for h in found] == [("mount", pid, "namespace")]


def test_a_process_elsewhere_is_not_named(mounted: tuple[Path, str], tmp_path: Path) -> None:
    with process(HOLDERS["fd"], tmp_path), process(HOLDERS["cwd"], tmp_path):
        assert holders(mounted) == []


def test_a_mount_point_without_its_mount_is_nobody_s_holder(
    mounted: tuple[Path, str], tmp_path: Path
) -> None:
    """It then lies on the root's filesystem, which everybody uses."""
    shell("umount", mounted[0])
    with process(HOLDERS["cwd"], tmp_path):
        assert holders(mounted) == []


def test_a_scan_that_hangs_is_cut_off_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(*args: object) -> None:
        tell = args[-1]
        assert callable(tell)
        tell({"kind": "process", "pid": 1})
        time.sleep(600)

    monkeypatch.setattr(agent, "scan", hang)
    began = time.monotonic()
    found, complete = agent.find_holders(agent.Place(), set(), [], 0.5)
    assert time.monotonic() - began < 10
    assert (found, complete) == ([{"kind": "process", "pid": 1}], False)


def test_the_proof_that_nobody_holds_the_disk_sees_into_every_namespace(
    disks: Disks, tmp_path: Path
) -> None:
    volume = disks.blank("source", 200)
    shell("mkfs.ext4", "-q", volume.loop)
    path = disks.mount(volume.loop, tmp_path / "data")
    code = (
        "import ctypes, subprocess; ctypes.CDLL(None).unshare(0x20000);"
        "subprocess.run(['mount', '--make-rprivate', '/'], check=True)"
    )
    assert agent.wait_until_free(volume.loop, 0) is False
    with ExitStack() as stack:
        stack.enter_context(process(code, path))
        shell("umount", path)
        assert agent.wait_until_free(volume.loop, 0.2) is False
    assert agent.wait_until_free(volume.loop, 10) is True


def test_units_are_read_from_the_cgroups_of_any_version() -> None:
    def units(cgroup: str) -> list[str]:
        return agent.units_of([{"cgroup": cgroup}])

    assert units("0::/system.slice/postgresql@15-main.service\n") == ["postgresql@15-main.service"]
    assert units("1:name=systemd:/system.slice/a.service\n0::/system.slice/a.service\n") == [
        "a.service"
    ]
    assert units("0::/user.slice/user-0.slice/session-3.scope\n") == []
    assert units("0::/\n") == []


def test_ctypes_is_there_for_the_namespace() -> None:
    assert ctypes.CDLL(None).unshare
