"""Orders to the mirror: those it refuses, those that are none, and who may give them."""

from __future__ import annotations

import json
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from agent_rig import MIB, Told, shell
from disks_world import World
from mirror_world import Mirrored, hidden

pytestmark = pytest.mark.usefixtures("tracking")

HOSTILE = [
    b" \n",
    b"{}\n",
    b"[]\n",
    b"null\n",
    b'"stop"\n',
    b"\xff\xfe\x00{\n",
    b"[" * 200_000 + b"\n",
    b'{"do": ["stop"]}\n',
    b'{"do": "pairs"}\n',
    b'{"do": "pairs", "pairs": [{"source": {"volume_id": "other"}, "target": {}}]}\n',
    b'{"do": "set", "bwlimit_bytes_s": "all"}\n',
    b'{"do": "set", "bwlimit_bytes_s": NaN}\n',
    b'{"do": "set", "bwlimit_bytes_s": -1}\n',
    b'{"do": "set", "pace": 0}\n',
    b'{"do": "set", "pace": [1]}\n',
    b'{"do": "final"}\n',
    b'{"do": "unmask"}\n',
]


def refused(mirror: Mirrored, what: str) -> None:
    with pytest.raises(Told, match=what) as told:
        mirror.begin()
    assert "nothing was copied; the source is untouched" in told.value.error["data"]
    assert told.value.error["hint"]


def test_it_does_not_get_ready_before_everything_was_compared(world: World) -> None:
    mirror = Mirrored(world.make("ext4")).track()
    with pytest.raises(Told, match="no targets yet"):
        mirror.tell("ready")
    world.clone()
    mirror.begin(bwlimit_bytes_s=8 * MIB)
    with pytest.raises(Told, match=r"not everything has been compared: \d+ bytes are left") as told:
        mirror.tell("ready")
    assert told.value.error["data"] == "nothing was stopped"
    assert told.value.error["hint"] == "wait until it has been"
    mirror.unlimited()
    mirror.until_compared()
    assert mirror.tell("ready")["verified"]


def test_a_target_that_cannot_be_one_is_refused_and_a_right_one_taken_afterwards(
    world: World, stand_in: Callable[[str, str], None]
) -> None:
    looks = world.guest.root / "looks"
    stand_in("blkid", f'[ -e {looks} ] && echo TYPE=xfs && exit 0\nexec {{real}} "$@"\n')
    mirror = Mirrored(world.make("ext4")).track()
    world.target = world.disks.blank("small", 63)
    refused(mirror, f"the target {world.target.loop} has {63 * MIB} bytes, less than the source's")

    world.blank()
    shell("blockdev", "--setro", world.target.loop)
    refused(mirror, f"the target {world.target.loop} is read-only")

    shell("blockdev", "--setrw", world.target.loop)
    shell("mkfs.ext4", "-q", world.target.loop)
    used = world.disks.mount(world.target.loop, world.guest.root / "used")
    (used / "precious").write_text("precious")
    refused(mirror, f"the target {world.target.loop} is in use by somebody")
    assert (used / "precious").read_text() == "precious"
    shell("umount", used)

    looks.touch()
    refused(mirror, f"the target {world.target.loop} is still recognised as xfs")

    looks.unlink()
    mirror.begin(blank=True)
    mirror.until_compared()
    assert hidden(world)


def test_one_that_could_not_begin_again_is_told_by_its_own_error(world: World) -> None:
    """Its target went away while it was down: what it has to say is why, not that it is gone."""
    mirror = Mirrored(world.make("ext4")).track()
    world.clone()
    mirror.begin()
    world.guest.call("stop", lane="mirror")
    gone = {**world.target.ref, "path": str(world.guest.root / "gone")}
    orders = json.loads((mirror.folder / "orders.json").read_text())
    orders["pairs"][0]["target"] = gone
    (mirror.folder / "orders.json").write_text(json.dumps(orders))
    world.guest.start("mirror", mirror.request, job_id="mirror-2")
    with pytest.raises(Told, match=r"no disk in the guest answers to volume .*: it has ") as told:
        mirror.begin()
    assert told.value.kind == "doubt"
    assert told.value.error["data"].endswith("the live side is untouched")
    assert told.value.error["hint"] == "if somebody detached it, attach it to the server again"


def test_pairs_that_failed_behind_their_opening_can_be_said_again(world: World) -> None:
    flag = world.guest.root / "udev-is-busy"
    mirror = Mirrored(world.make("ext4"))
    mirror.mutate(
        f"""
publish_at_once = publish


def publish(*more):
    if os.path.exists({str(flag)!r}):
        raise AgentError("failed", "udev is busy")
    return publish_at_once(*more)
"""
    ).track()
    world.clone()
    flag.touch()
    for _ in range(2):
        with pytest.raises(Told, match="udev is busy"):
            mirror.begin()
        assert not (mirror.folder / "orders.json").exists()
    flag.unlink()
    mirror.begin()
    mirror.until_compared()


def test_settings_bring_no_orders_back_once_the_target_is_shown(world: World) -> None:
    """A mirror that is begun again by them would hide what is the live side by now."""
    mirror = Mirrored(world.make("ext4")).track()
    world.clone()
    mirror.begin()
    mirror.until_compared()
    mirror.tell("set", pace=1.0)
    orders = mirror.folder / "orders.json"
    assert json.loads(orders.read_text())["pace"] == 1.0
    mirror.finish_by_hand(writer=False)
    mirror.tell("set", bwlimit_bytes_s=5 * MIB)
    assert not orders.exists()
    mirror.tell("mask")
    assert json.loads(orders.read_text())["bwlimit_bytes_s"] == 5 * MIB


def test_the_source_itself_is_no_target(world: World) -> None:
    mirror = Mirrored(world.make("ext4")).track()
    world.target = world.source
    with pytest.raises(Told, match="same disk"):
        mirror.begin()
    assert world.mounted(world.data[0]) == world.source.loop


def test_hostile_lines_do_not_hurt_it(world: World) -> None:
    mirror = Mirrored(world.make("ext4")).track()
    world.clone()
    mirror.begin()

    def connected() -> socket.socket:
        stream = socket.socket(socket.AF_UNIX)
        stream.connect(str(mirror.folder / "socket"))
        stream.settimeout(20)
        return stream

    silent = [connected() for _ in range(40)]
    silent[0].sendall(b'{"do": "st')
    for line in HOSTILE:
        with connected() as stream:
            stream.sendall(line)
            answer = stream.makefile().readline()
        assert (json.loads(answer)["ok"] is False) == (b"pairs" not in line), (line[:80], answer)
    with connected() as stream, pytest.raises(OSError):
        for _ in range(40):
            stream.sendall(b"x" * (1 << 16))
        raise OSError(stream.recv(1))
    for stream in silent:
        stream.close()
    mirror.until_compared()
    assert hidden(world)
    assert mirror.tell("set", bwlimit_bytes_s=5 * MIB)["bwlimit_bytes_s"] == 5 * MIB


CALLER = """
import os, socket, sys
os.chdir(sys.argv[1])
os.setgid(65534)
os.setuid(65534)
stream = socket.socket(socket.AF_UNIX)
try:
    stream.connect("socket")
except PermissionError:
    print("no permission")
else:
    try:
        stream.sendall(b'{"do": "figures"}\\n')
        print(stream.recv(100) or "no answer")
    except ConnectionError:
        print("no answer")
"""


def test_only_root_is_answered(world: World) -> None:
    mirror = Mirrored(world.make("ext4")).track()
    path = mirror.folder / "socket"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(mirror.folder.stat().st_mode) == 0o700

    def other_uid() -> str:
        argv = [sys.executable, "-I", "-c", CALLER, str(mirror.folder)]
        return subprocess.run(argv, capture_output=True, text=True, check=True).stdout.strip()

    assert other_uid() == "no permission"
    mirror.folder.chmod(0o711)
    assert other_uid() == "no permission"
    path.chmod(0o666)
    assert other_uid() == "no answer"
    assert "uid 65534 knocked at the socket" in (mirror.folder / "log").read_text()
    assert mirror.tell("figures")["phase"] == "tracking"


def peak_kib(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def test_a_disk_of_2_tib_takes_less_than_100_mib_of_memory(world: World) -> None:
    """With every chunk of it to be copied, and after a restart every one to be compared."""
    world.source = world.disks.blank("source", 2 << 20)
    world.guest.install(world.source.ref)
    mirror = Mirrored(world).track()
    world.blank(2 << 20)
    assert mirror.begin(blank=True)["chunk_bytes"] == [16 * 1024]
    mirror.until(lambda f: f["phase"] == "copying", "copy")
    peaks = [peak_kib(mirror.worker())]
    mirror.kill()
    mirror.until(lambda f: f["notes"] and f["phase"] == "comparing", "compare everything")
    peaks.append(peak_kib(mirror.worker()))
    assert max(peaks) < 100 * 1024


STOPPED_AS_IT_ENDS = """
def ends(self, result, error, end=Job.end):
    os.kill(os.getpid(), signal.SIGTERM)
    end(self, result, error)


Job.end = ends
"""


def test_one_that_is_stopped_as_it_ends_has_an_end(world: World) -> None:
    mirror = Mirrored(world.make("ext4")).mutate(STOPPED_AS_IT_ENDS).track()
    mirror.tell("stop")
    ended = mirror.wait()
    assert (ended["state"], ended["error"]) == ("ended", None), ended


def test_one_whose_source_is_another_disk_says_so(world: World) -> None:
    mirror = Mirrored(world.make("ext4"))
    mirror.request["sources"] = [dict(world.source.ref, size_bytes=1)]
    mirror.guest.start("mirror", mirror.request, job_id="mirror-1")
    ended = mirror.wait()
    assert (ended["state"], ended["error"]["kind"]) == ("ended", "doubt"), ended
