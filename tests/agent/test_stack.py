"""Stacks by a /sys of our own, because this machine may have no device-mapper: what lies on what,
what is in the way, and that closing goes from top to bottom and believes /sys rather than a tool.

That real stacks are closed and opened is shown in guests (``tests/lab``).
"""

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from agent_rig import Disks, Json, agent

VG = "Dh5iU1-unKm-uHU5-dx9i-2UGq-GMPH-TIVI1o"


class Sys:
    """/sys/class/block and /sys/block with devices that lie on each other."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for folder in ("class/block", "block"):
            (root / folder).mkdir(parents=True)
        self.place = agent.Place({"sys": str(root), "run": str(root), "etc": str(root)})

    def disk(self, kname: str, *partitions: int, **files: str) -> None:
        home = self.root / "block" / kname
        for folder in ("slaves", "holders"):
            (home / folder).mkdir(parents=True)
        write(home, dev=f"254:{len(os.listdir(self.root / 'block'))}", size="2048", **files)
        (self.root / "class/block" / kname).symlink_to(home)
        for number in partitions:
            part = home / f"{kname}{number}"
            (part / "holders").mkdir(parents=True)
            write(part, dev=f"259:{number}", size="1024", partition=str(number))
            (self.root / "class/block" / part.name).symlink_to(part)

    def over(self, kname: str, *below: str, dm: tuple[str, str] = ("", ""), **md: str) -> None:
        self.disk(kname)
        for name in below:
            (self.root / "class/block" / kname / "slaves" / name).mkdir()
            (self.root / "class/block" / name / "holders" / kname).mkdir()
        if dm[0]:
            (self.root / "block" / kname / "dm").mkdir()
            write(self.root / "block" / kname / "dm", name=dm[0], uuid=dm[1])
        if md:
            (self.root / "block" / kname / "md").mkdir()
            write(self.root / "block" / kname / "md", **md)

    def remove(self, kname: str) -> None:
        (self.root / "class/block" / kname).unlink()
        shutil.rmtree(self.root / "block" / kname)
        for holder in self.root.glob(f"block/*/holders/{kname}"):
            holder.rmdir()


def write(folder: Path, **files: str) -> None:
    for name, text in files.items():
        (folder / name).write_text(text + "\n")


@pytest.fixture
def sys_tree(tmp_path: Path) -> Sys:
    """vdb with an encryption, on which is a volume group with a volume and its snapshot."""
    tree = Sys(tmp_path / "sys")
    tree.disk("vdb")
    tree.disk("vdc", 1)
    tree.over("dm-0", "vdb", dm=("secret", "CRYPT-LUKS2-0011-secret"))
    prefix = "LVM-" + VG.replace("-", "")
    tree.over("dm-1", "dm-0", dm=("vg-a-real", prefix + "a" * 32 + "-real"))
    tree.over("dm-2", "dm-1", dm=("vg-a", prefix + "a" * 32))
    tree.over("dm-3", "dm-1", "dm-0", dm=("vg-snap", prefix + "b" * 32))
    return tree


LAYERS: list[Json] = [
    {"kind": "luks", "name": "secret", "uuid": "0011", "above": ["/dev/mapper/secret"]},
    {"kind": "lvm", "name": "vg", "uuid": VG, "above": ["/dev/mapper/vg-a", "/dev/mapper/vg-snap"]},
]
ARRAY: Json = {"kind": "md", "name": "/dev/md0", "uuid": "1:2:3:4", "above": ["/dev/md0"]}


def knames(blocks: list[Json]) -> list[str]:
    return [block["kname"] for block in blocks]


def disk(kname: str) -> object:
    return agent.Disk(kname, f"/dev/{kname}", "254:1", 1, False, "", "", "", ())


# ---- looking -------------------------------------------------------------------------------------


def test_what_lies_on_a_disk_comes_after_all_that_it_lies_on(sys_tree: Sys) -> None:
    found = knames(agent.blocks_above(sys_tree.place, [disk("vdb")]))

    assert sorted(found) == ["dm-0", "dm-1", "dm-2", "dm-3"]
    assert found.index("dm-0") < found.index("dm-1") < min(map(found.index, ("dm-2", "dm-3")))


def test_partitions_of_the_disk_itself_are_none_of_them(sys_tree: Sys) -> None:
    assert agent.blocks_above(sys_tree.place, [disk("vdc")]) == []


def test_the_other_disks_of_an_array_are_below_it(sys_tree: Sys) -> None:
    sys_tree.disk("vdd")
    sys_tree.over("md0", "vdc1", "vdd", level="raid0")
    above = agent.blocks_above(sys_tree.place, [disk("vdd")])

    assert knames(above) == ["md0"]
    assert sorted(knames(agent.blocks_below(sys_tree.place, above))) == ["vdc", "vdc1", "vdd"]
    assert agent.bottom_disks(sys_tree.place, "md0") == {"vdc", "vdd"}


def test_only_tops_without_anything_on_them_count_as_bare(sys_tree: Sys) -> None:
    """A disk with a partition, and a device below another, are not opened by their users."""
    upon = agent.lain_upon(sys_tree.place, ["/x/vdb", "/x/vdc", "/x/vdc1", "/x/dm-2"])

    assert upon == {agent.read_block(sys_tree.place, name)["dev"] for name in ("vdb", "vdc")}


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("other UUID=1 /k luks", "it is not in /etc/crypttab"),
        ("secret UUID=1 none luks", "crypttab names no key file: somebody types the passphrase"),
        ("secret UUID=1", "crypttab names no key file: somebody types the passphrase"),
        ("secret UUID=1 /nowhere/key", "its key /nowhere/key is not a file"),
        ("secret UUID=1 /k luks,keyscript=/bin/x", "crypttab asks for keyscript"),
        ("secret UUID=1 - tpm2-device=auto", "crypttab asks for tpm2-device"),
    ],
)
def test_a_key_that_needs_a_person_is_told_with_the_reason(
    sys_tree: Sys, line: str, problem: str
) -> None:
    block = agent.read_block(sys_tree.place, "dm-0")

    told = agent.tried_key(sys_tree.place, f"# comment\n{line}\n", block)

    assert not told["opens"] and told["problem"].startswith(problem)


def test_a_name_is_escaped_as_systemd_does() -> None:
    assert agent.escaped("data-crypt_1.x") == r"data\x2dcrypt_1.x"
    assert agent.escaped(".ä") == r"\x2e\xc3\xa4"


def test_who_has_a_device_without_a_filesystem_open_is_found(disks: Disks) -> None:
    device = disks.blank("bare", 16).loop
    number = os.stat(device).st_rdev
    nodes = {f"{os.major(number)}:{os.minor(number)}": str(device)}
    assert agent.find_openers(agent.Place(), nodes, 30.0) == []

    with open(device, "rb"):
        pid = os.fork()  # whoever asks is not told of itself
        if pid == 0:
            time.sleep(60)
            os._exit(0)
        try:
            [found] = agent.find_openers(agent.Place(), nodes, 30.0)
        finally:
            os.kill(pid, 9)
            os.waitpid(pid, 0)

    assert (found["pid"], found["how"], found["path"]) == (pid, "device", str(device))


# ---- what is in the way --------------------------------------------------------------------------


def test_a_stack_with_nothing_else_on_it_is_no_problem(sys_tree: Sys) -> None:
    assert agent.stack_problem(sys_tree.place, LAYERS) == ""


def test_what_somebody_put_on_a_layer_is_a_problem(sys_tree: Sys) -> None:
    sys_tree.over("dm-9", "dm-2", dm=("mine", "CRYPT-PLAIN-mine"))

    problem = agent.stack_problem(sys_tree.place, LAYERS)

    assert problem == "/dev/mapper/mine lies on /dev/mapper/vg-a, and is none of the layers"


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        ({"degraded": "1", "raid_disks": "2"}, "/dev/md0: 1 of its 2 members are missing"),
        ({"degraded": "0", "sync_action": "resync"}, "/dev/md0: a resync runs"),
        ({"degraded": "0", "sync_action": "idle"}, ""),
        ({"level": "raid0"}, ""),
    ],
)
def test_an_array_in_motion_is_a_problem(
    sys_tree: Sys, files: dict[str, str], problem: str
) -> None:
    sys_tree.over("md0", "vdc1", **files)

    assert agent.stack_problem(sys_tree.place, [ARRAY]) == problem


# ---- volumes that came or went since the plan ----------------------------------------------------


def test_what_is_open_now_is_what_will_be_opened_again(sys_tree: Sys) -> None:
    sys_tree.over("dm-4", "dm-0", dm=("vg-new", "LVM-" + VG.replace("-", "") + "c" * 32))
    sys_tree.remove("dm-3")

    encryption, group = agent.open_now(sys_tree.place, LAYERS)

    assert encryption == LAYERS[0]
    assert group == {**LAYERS[1], "above": ["/dev/mapper/vg-a", "/dev/mapper/vg-new"]}


def cutover(tree: Sys, job: str = "cutover", **request: object) -> Any:
    """One of a target that is vdc, with the layers as they were when it was planned."""
    refs = [{"volume_id": name * 20, "size_bytes": 2048 * 512} for name in "st"]
    for kname, ref in zip(("vdb", "vdc"), refs, strict=True):
        write(tree.root / "block" / kname, serial=ref["volume_id"], ro="0")
    told = {
        "filesystems": [],
        "pairs": [dict(zip(("source", "target"), refs, strict=True))],
        "layers": [dict(layer, members=[{"path": "", "volume_id": ""}]) for layer in LAYERS],
        "deadline_s": 20,
        **request,
    }
    asked = {"job": job, "job_id": job, "request": told}
    return agent.Cutover(tree.place, agent.Job(tree.place, str(tree.root)), asked)


@pytest.fixture
def opened(
    sys_tree: Sys,
    monkeypatch: pytest.MonkeyPatch,
    stand_in: Callable[[str, str], Callable[[], list[str]]],
) -> Callable[[], list[str]]:
    """What is opened where nothing can be found below /dev nor be held there."""
    knames = {
        "/dev/mapper/vg-a": "dm-2",
        "/dev/mapper/vg-snap": "dm-3",
        LAYERS[0]["above"][0]: "dm-0",
    }
    monkeypatch.setattr(agent, "kname_of", lambda path: knames[path])
    monkeypatch.setattr(agent, "wait_for_paths", lambda *_: None)
    monkeypatch.setattr(agent, "set_disk_read_only", lambda *_: None)
    monkeypatch.setattr(agent.Room, "keep", lambda *_: None)
    monkeypatch.setattr(agent.Room, "give_all", lambda *_: None)
    monkeypatch.setattr(agent.Cutover, "same_namespace", lambda *_: None)
    monkeypatch.setattr(agent.FilesMover, "check", lambda *_: None)
    return stand_in("lvchange", 'case "$*" in *vg-snap*) echo "not found" >&2; exit 5;; esac')


def test_a_volume_that_was_removed_since_the_plan_leaves_no_service_down(
    sys_tree: Sys, opened: Callable[[], list[str]]
) -> None:
    sys_tree.remove("dm-3")
    one = cutover(sys_tree, stop=["exit 1"])

    one.go_forward()

    outcome = one.record["outcome"]
    assert outcome["problems"] == [] and "exit 1" in outcome["reason"], outcome
    assert opened() == ["lvchange --yes -ay /dev/mapper/vg-a"]


def test_a_volume_that_goes_as_its_service_stops_is_not_opened_again(
    sys_tree: Sys, opened: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = cutover(sys_tree, stop=[gone(sys_tree, "dm-3")])
    monkeypatch.setattr(one, "let_go", lambda *_: (_ for _ in ()).throw(OSError("held")))

    one.go_forward()

    outcome = one.record["outcome"]
    assert outcome["problems"] == [] and "held" in outcome["reason"], outcome
    assert opened() == ["lvchange --yes -ay /dev/mapper/vg-a"]


@pytest.mark.parametrize("standby", [False, True])
def test_on_the_way_back_a_source_that_did_not_follow_has_the_volumes_it_was_left_with(
    sys_tree: Sys,
    opened: Callable[[], list[str]],
    monkeypatch: pytest.MonkeyPatch,
    standby: bool,
) -> None:
    there = cutover(sys_tree)
    there.remember_layers(agent.SIDES)
    there.note(standby=standby, shown=True)
    sys_tree.remove("dm-3")

    back = cutover(sys_tree, job="cutback")
    monkeypatch.setattr(back, "take_back", lambda reason: 0)
    back.go_back_on_request()

    left, now = ["/dev/mapper/vg-a", "/dev/mapper/vg-snap"], ["/dev/mapper/vg-a"]
    again = agent.Cutover(
        sys_tree.place, back.job, {"job": "cutback", "job_id": "cutback", "request": back.request}
    )
    assert again.sides.opened["target"][1]["above"] == now
    assert again.sides.opened["source"][1]["above"] == (now if standby else left)


# ---- closing -------------------------------------------------------------------------------------


@pytest.fixture
def stand_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str, str], Callable[[], list[str]]]:
    """A function that puts a script in a tool's place; what it returns tells all calls so far."""
    folder = tmp_path / "bin"
    folder.mkdir()
    calls = tmp_path / "calls"
    calls.touch()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    def put(name: str, script: str) -> Callable[[], list[str]]:
        program = folder / name
        program.write_text(f'#!/bin/sh\necho "{name} $*" >> {calls}\n{script}\n')
        program.chmod(0o755)
        return lambda: calls.read_text().splitlines()

    return put


def gone(tree: Sys, *knames: str) -> str:
    names = " ".join(f"{tree.root}/block/{k} {tree.root}/class/block/{k}" for k in knames)
    return f"rm -rf {names} {tree.root}/block/*/holders/dm-*"


def test_closing_goes_from_top_to_bottom_and_twice_is_once(
    sys_tree: Sys, stand_in: Callable[[str, str], Callable[[], list[str]]]
) -> None:
    stand_in("vgchange", gone(sys_tree, "dm-1", "dm-2", "dm-3"))
    calls = stand_in("cryptsetup", gone(sys_tree, "dm-0"))

    agent.release_stack(sys_tree.place, LAYERS, time.monotonic() + 20)
    agent.release_stack(sys_tree.place, LAYERS, time.monotonic() + 20)

    assert calls() == ["vgchange -an vg", "cryptsetup close -- secret"]


def test_a_tool_that_says_done_and_was_not_is_not_believed(
    sys_tree: Sys,
    stand_in: Callable[[str, str], Callable[[], list[str]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(agent, "MOMENT_S", 0.3)
    calls = stand_in("vgchange", "echo it is in use >&2")

    with pytest.raises(agent.AgentError) as error:
        agent.release_stack(sys_tree.place, LAYERS, time.monotonic() + 20)

    assert error.value.kind == "busy"
    said = "vg cannot be closed: it is in use (no process is seen to hold it), still after "
    assert error.value.what.startswith(said)
    assert "cryptsetup close -- secret" not in calls()


def test_a_layer_that_was_not_open_is_not_touched(
    sys_tree: Sys, stand_in: Callable[[str, str], Callable[[], list[str]]]
) -> None:
    calls = stand_in("mdadm", "exit 1")

    agent.release_stack(sys_tree.place, [dict(ARRAY, above=[])], time.monotonic() + 20)

    assert calls() == []


def test_what_comes_back_after_it_was_closed_is_an_error(
    sys_tree: Sys,
    stand_in: Callable[[str, str], Callable[[], list[str]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As udev does with an array whose member somebody closes after writing."""
    sys_tree.over("md0", "vdc1", level="raid1")
    stand_in("mdadm", f"mv {sys_tree.root}/block/md0 {sys_tree.root}/away")
    settled = iter(
        [lambda: None, lambda: (sys_tree.root / "away").rename(sys_tree.root / "block/md0")]
    )
    monkeypatch.setattr(agent, "settle_events", lambda place, deadline: next(settled)())

    with pytest.raises(agent.AgentError) as error:
        agent.release_stack(sys_tree.place, [ARRAY], time.monotonic() + 20)

    assert error.value.what == "/dev/md0 came back after it was closed"


def test_a_kind_that_nobody_knows_is_refused(sys_tree: Sys) -> None:
    layer = {"kind": "other", "name": "/dev/mapper/x", "uuid": "", "above": ["/dev/mapper/x"]}

    with pytest.raises(agent.AgentError) as error:
        agent.release_stack(sys_tree.place, [layer], time.monotonic() + 5)

    assert error.value.kind == "refused"
