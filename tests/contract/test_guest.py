"""What every guest must do, asked of the fake and of the real agent in the same words.

The real one works on loop devices below one directory, without systemd and udev: what needs a boot
is proven in the lab. Both are asked the agent's verbs, which is all that ``LinuxGuest`` can say.
"""

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "agent"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "disks"))

from agent_rig import Disks, Guest, Told, disks_in, leave_out, shell, why_no_loop_devices
from mirror_world import why_no_mirror

from tests.fakes.cloud import FakeCloud
from tests.fakes.guest import FakeGuest, Filesystem
from volferry.guests import linux_facts
from volferry.model import DiskRef, Outcome, Pass

Json = dict[str, Any]
UUID = "0c3f7e0a-6d0b-4b0e-8a53-0a64f4bd3c11"
FILES = {"kept": b"always", "changed": b"before", "gone": b"soon"}
OF_THE_MIRROR = {"id", "chunks_copied", "chunks_compared", "differed_after_loss"}
PASS_FIELDS = set(Pass.model_fields) - {"kept_at", *OF_THE_MIRROR}


class World:
    """A guest with the agent in it, a source in use and, later, a target."""

    transfer: str
    mount: str
    side: str
    """A file of the guest whose content says which side is live."""

    def call(self, verb: str, **request: Any) -> Json:
        raise NotImplementedError

    def install(self) -> Json:
        raise NotImplementedError

    def ref(self, side: str) -> Json:
        raise NotImplementedError

    def make_target(self, *, clone: bool) -> None:
        raise NotImplementedError

    def write(self, name: str, data: bytes | None) -> None:
        """As the service does, on whatever is mounted; None removes."""
        raise NotImplementedError

    def holds(self, side: str) -> dict[str, bytes]:
        raise NotImplementedError

    def mounted(self) -> str:
        raise NotImplementedError

    def read_only(self, side: str) -> bool:
        raise NotImplementedError

    def read(self, path: str) -> str | None:
        """A file of the guest."""
        raise NotImplementedError

    def put(self, path: str, content: str) -> None:
        raise NotImplementedError

    def recognised(self, side: str) -> bool:
        raise NotImplementedError

    def unplug_source(self) -> None:
        """As the hypervisor does, whoever has it open."""
        raise NotImplementedError

    def plug_source(self) -> None:
        raise NotImplementedError

    def kill_agent(self) -> None:
        raise NotImplementedError

    def pause(self) -> None:
        raise NotImplementedError

    # ---- the same for both -----------------------------------------------------------------------

    @property
    def filesystem(self) -> Json:
        return {
            "source": {**self.ref("source"), "partition": None},
            "target": {**self.ref("target"), "partition": None},
            "fstype": "ext4",
            "uuid": UUID,
            "label": "data",
            "keep_uuid": True,
            "mount": self.mount,
            "mounts": [{"target": self.mount, "root": "/", "by": "hand", "unit": ""}],
        }

    def status(self) -> Json:
        return self.call("status")

    def start(self, job: str, request: Json, job_id: str = "") -> str:
        job_id = job_id or f"{job}-{uuid.uuid4().hex[:6]}"
        self.call("start", job=job, job_id=job_id, request=request)
        return job_id

    def wait(self, *, until: str = "") -> Json:
        """The status once the job is over, or in a phase."""
        ends = time.monotonic() + 60
        while True:
            status = self.status()
            if status["state"] in ("ended", "died") or (until and status["phase"] == until):
                return status
            assert time.monotonic() < ends, status
            self.pause()

    def do(self, job: str, request: Json) -> Json:
        self.start(job, request)
        status = self.wait()
        assert status["state"] == "ended", status
        if status["error"]:
            raise Told(status["error"])
        return status["result"]

    def outcome(self, job: str, request: Json) -> Outcome:
        self.start(job, request)
        return Outcome.model_validate(self.wait()["result"]["outcome"])

    # ---- the mirror's lane -----------------------------------------------------------------------

    def mirror(self) -> Json:
        return self.call("status", lane="mirror")

    def track(self, job_id: str = "mirror-1", **more: Any) -> None:
        request = {"transfer": self.transfer, "sources": [self.ref("source")], **more}
        self.call("start", job="mirror", job_id=job_id, request=request)

    def begin_again(self) -> None:
        """A mirror that has ended: what it was told to copy is kept."""
        self.track("mirror-2", suspect="the mirror was begun again")

    def tell(self, do: str, **more: Any) -> Json:
        return self.call("tell", message={"do": do, **more}, timeout_s=60)

    def begin(self) -> Json:
        pair = {"source": self.ref("source"), "target": self.ref("target")}
        return self.tell("pairs", pairs=[pair], blank=False)

    def until_verified(self) -> Json:
        ends = time.monotonic() + 60
        while True:
            figures = (self.mirror()["progress"] or {}).get("figures") or {}
            if figures.get("verified") and figures["passes"]:
                return figures
            assert time.monotonic() < ends, self.mirror()
            self.pause()

    def mirror_request(self, **more: Any) -> Json:
        pair = {"source": self.ref("source"), "target": self.ref("target")}
        return {**self.cutover_request(**more), "method": "mirror", "pairs": [pair]}

    def detached_request(self, **more: Any) -> Json:
        """Where the source has to be out of the guest before the target may be seen."""
        return {**self.mirror_request(**more), "detach_first": True}

    def awaiting(self) -> float:
        """Seconds that the job still waits for its source, once it does."""
        ends = time.monotonic() + 60
        while True:
            status = self.wait(until="awaiting")
            if (status["progress"] or {}).get("left_s"):
                return float(status["progress"]["left_s"])
            assert status["state"] == "running" and time.monotonic() < ends, status
            self.pause()

    def cut_over_detached(self, request: Json) -> Outcome:
        self.start("cutover", request)
        self.awaiting()
        self.unplug_source()
        return Outcome.model_validate(self.wait()["result"]["outcome"])

    # ---- requests --------------------------------------------------------------------------------

    def prepare(self, seed: str = "snapshot") -> Json:
        return self.do(
            "prepare",
            {
                "seed": seed,
                "source": self.ref("source"),
                "target": self.ref("target"),
                "partition_dump": "",
                "grow": False,
                "filesystems": [self.filesystem],
            },
        )

    def pass_request(self, last: Json | None = None) -> Json:
        known = {key: (last or {}).get(key) for key in ("watermark", "clock_offset", "boot_id")}
        number = (last or {"number": 0})["number"] + 1
        return {"method": "rsync", "filesystems": [self.filesystem], "number": number,
                "slack_s": 0.01, **known}  # fmt: skip

    def cutover_request(self, **more: Any) -> Json:
        files = [{"path": self.side, "source": "source\n", "target": "target\n", "mode": 0o644}]
        return {
            **self.pass_request(),
            "units": [],
            "stop": ["true"],
            "start": ["true"],
            "sides": {"files": files},
            "deadline_s": 60,
            "settle_s": 0,
            **more,
        }


class FakeWorld(World):
    def __init__(self) -> None:
        self.cloud = FakeCloud()
        server = self.cloud.add_server("web-03")
        self.ids = {"source": self.cloud.add_volume("data", server=server)}
        self.cloud.content[self.ids["source"]] = {None: Filesystem("ext4", UUID, "data")}
        self.guest = FakeGuest(self.cloud, server)
        self.transfer, self.mount, self.side = "tr-web-03-k4q7", "/srv/data", "/etc/10-side.rules"
        self.guest.put_into_fstab(self.ids["source"], self.mount)
        self.put(self.side, "source\n")

    def call(self, verb: str, **request: Any) -> Json:
        self.cloud.pass_time(0.05)
        whole = {"transfer": self.transfer, **request}
        said = self.guest.answer(verb, json.loads(json.dumps(whole)))
        if not said["ok"]:
            raise Told(said["error"])
        return said["result"]

    def install(self) -> Json:
        return self.call("install", sources=[self.ref("source")], program_b64="YQ==")

    def ref(self, side: str) -> Json:
        volume_id = self.ids[side]
        return {"volume_id": volume_id, "size_bytes": self.cloud._volume(volume_id).size_bytes}

    def make_target(self, *, clone: bool) -> None:
        server = self.guest.server_id
        self.ids["target"] = self.cloud.add_volume("data", server=server)
        if clone:
            self.cloud.content[self.ids["target"]] = self.cloud.content[self.ids["source"]]
        self.cloud.pass_time(5)

    def write(self, name: str, data: bytes | None) -> None:
        self.guest.write(self.mount, name, data)
        self.pause()

    def holds(self, side: str) -> dict[str, bytes]:
        files = self.guest.content(self.ids[side])[None].files
        return {name: data for name, (data, _) in files.items()}

    def mounted(self) -> str:
        where = self.guest.mounts.get(self.mount)
        return next((s for s, v in self.ids.items() if where and where.volume_id == v), "")

    def read_only(self, side: str) -> bool:
        return self.guest.disks[self.ids[side]].read_only

    def read(self, path: str) -> str | None:
        return self.guest.files.get(path)

    def put(self, path: str, content: str) -> None:
        self.guest.files[path] = content

    def recognised(self, side: str) -> bool:
        return bool(self.guest.content(self.ids[side])[None].fstype)

    def unplug_source(self) -> None:
        asyncio.run(self.cloud.detach(self.guest.server_id, self.ids["source"]))
        self.cloud.pass_time(5)

    def plug_source(self) -> None:
        asyncio.run(self.cloud.attach(self.guest.server_id, self.ids["source"]))
        self.cloud.pass_time(5)

    def kill_agent(self) -> None:
        self.guest.kill_agent(self.transfer)

    def pause(self) -> None:
        self.cloud.pass_time(0.1)


class AgentWorld(World):
    def __init__(self, root: Path, disks: Disks) -> None:
        self.root, self.disks, self.guest = root, disks, Guest(root)
        self.transfer, self.mount = self.guest.transfer, str(root / "data")
        (root / "etc").mkdir()
        self.side = str(root / "etc" / "10-side.rules")
        self.volumes = {"source": disks.blank("source", 64)}
        self.volumes["source"].linked()
        source = self.volumes["source"].loop
        shell("mkfs.ext4", "-q", "-U", UUID, "-L", "data", source)
        disks.mount(source, Path(self.mount), "noatime")
        (Path(self.mount) / "lost+found").rmdir()
        self.put(self.side, "source\n")

    def call(self, verb: str, **request: Any) -> Json:
        return self.guest.call(verb, **request)

    def install(self) -> Json:
        return self.guest.install(self.ref("source"))

    def ref(self, side: str) -> Json:
        return self.volumes[side].ref

    def make_target(self, *, clone: bool) -> None:
        shell("sync", "-f", self.mount)
        source = self.volumes["source"]
        made = self.disks.clone(source, "target") if clone else self.disks.blank("target", 64)
        self.volumes["target"] = made

    def write(self, name: str, data: bytes | None) -> None:
        path = Path(self.mount) / name
        if data is None:
            path.unlink()
        else:
            path.write_bytes(data)
        time.sleep(0.02)  # a tick of the file system's clock

    def holds(self, side: str) -> dict[str, bytes]:
        device, look = self.volumes[side].loop, self.root / f"look-{side}"
        live = shell("findmnt", "-n", "-o", "TARGET", device, check=False).splitlines()
        look.mkdir(exist_ok=True)
        shell("mount", *(["--bind", live[0].strip()] if live else ["-o", "ro", device]), look)
        try:
            return {path.name: path.read_bytes() for path in look.iterdir() if path.is_file()}
        finally:
            shell("umount", look)

    def mounted(self) -> str:
        found = shell("findmnt", "-n", "-o", "SOURCE", "--mountpoint", self.mount, check=False)
        return next((s for s, v in self.volumes.items() if v.loop == found.strip()), "")

    def read_only(self, side: str) -> bool:
        return shell("blockdev", "--getro", self.volumes[side].loop).strip() == "1"

    def read(self, path: str) -> str | None:
        return Path(path).read_text() if Path(path).exists() else None

    def put(self, path: str, content: str) -> None:
        Path(path).write_text(content)

    def recognised(self, side: str) -> bool:
        return shell("blkid", "-p", self.volumes[side].loop, check=False) != ""

    def unplug_source(self) -> None:
        with contextlib.suppress(Told):  # a loop device stays as long as somebody has it open
            self.call("stop", lane="mirror")
        self.disks.unplug(self.volumes["source"])

    def plug_source(self) -> None:
        self.disks.plug(self.volumes["source"])

    def kill_agent(self) -> None:
        for name in ("supervisor.json", "worker.json"):
            pid = json.loads((self.guest.state_dir / name).read_text())["pid"]
            os.killpg(os.getpgid(pid), signal.SIGKILL)
        time.sleep(0.1)

    def pause(self) -> None:
        time.sleep(0.02)


@pytest.fixture(params=["fake", pytest.param("agent", marks=pytest.mark.disks)])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    """Filled and in use; the agent is in the guest."""
    if request.param == "fake":
        fake = FakeWorld()
        ready(fake)
        yield fake
        return
    if why_no_loop_devices():
        leave_out(why_no_loop_devices())
    with disks_in(tmp_path) as disks:
        real = AgentWorld(tmp_path, disks)
        try:
            ready(real)
            yield real
        finally:
            with contextlib.suppress(Told):
                real.call("stop", lane="mirror")
            real.guest.kill_everything()


def ready(world: World) -> None:
    for name, data in FILES.items():
        world.write(name, data)
    world.install()


def moving(world: World) -> World:
    """With a target that a pass has brought near."""
    world.make_target(clone=True)
    world.prepare()
    world.do("pass", world.pass_request())
    return world


# ---- putting in, looking, taking out -------------------------------------------------------------


def test_installing_twice_is_installing_once(world: World) -> None:
    again = world.install()

    assert world.install() == again
    assert again["state_dir"].endswith(world.transfer)


def test_another_transfer_of_the_same_volume_is_refused(world: World) -> None:
    with pytest.raises(Told, match=f"is claimed by transfer '{world.transfer}'") as told:
        world.call(
            "install", transfer="tr-other", sources=[world.ref("source")], program_b64="YQ=="
        )

    assert told.value.kind == "refused"


def test_a_disk_is_found_by_the_volume_it_is(world: World) -> None:
    [found] = world.call("find", refs=[world.ref("source")])["disks"]

    assert found["state"] == "present"
    assert found["size_bytes"] == world.ref("source")["size_bytes"]
    assert found["path"].startswith("/dev/") and ":" in found["dev"]
    assert found["partitions"] == [] and found["read_only"] is False


def test_an_absent_disk_is_absent_and_no_error(world: World) -> None:
    ref = {"volume_id": "5f0d4a5e-aaaa-4bbb-8ccc-0123456789ab", "size_bytes": 1}

    assert world.call("find", refs=[ref])["disks"] == [
        {"volume_id": ref["volume_id"], "state": "absent"}
    ]


def test_a_disk_of_the_wrong_size_is_a_doubt(world: World) -> None:
    with pytest.raises(Told) as told:
        world.call("find", refs=[{**world.ref("source"), "size_bytes": 4096}])

    assert told.value.kind == "doubt"


def test_the_facts_say_what_is_mounted_where(world: World) -> None:
    ref = world.ref("source")
    raw = world.call("facts", refs=[ref], units=[], walk_s=0.0)
    facts = linux_facts.read(raw, [DiskRef(volume_id=ref["volume_id"], size_bytes=0)])

    [fs] = facts.filesystems
    assert (fs.fstype, fs.uuid, fs.label, fs.partition) == ("ext4", UUID, "data", None)
    assert [m.target for m in fs.mounts] == [world.mount]
    assert [disk.path for disk in facts.source_disks] == [fs.device]
    assert facts.root and not facts.other_content


def test_files_are_written_once_and_never_over_somebody_elses_edit(world: World) -> None:
    path = world.side.replace("10-side", "10-other")
    file = {"path": path, "content": "rule\n", "mode": 0o644}

    def apply(**more: Any) -> Json:
        return world.call("apply", files=[{**file, **more}], udev=True, trigger=[], systemd=False)

    assert apply()["written"] == [path] and world.read(path) == "rule\n"
    assert apply()["same"] == [path]
    with pytest.raises(Told, match="changed by somebody else"):
        apply(content="new\n", expect="another\n")
    assert apply(content=None)["removed"] == [path] and world.read(path) is None


def test_uninstalling_leaves_nothing_and_may_be_repeated(world: World) -> None:
    first = world.call("uninstall", files=[world.side])

    assert world.side in first["removed"] and first["left"] == []
    assert world.read(world.side) is None
    assert world.call("uninstall", files=[world.side]) == {"removed": [], "left": []}
    with pytest.raises(Told, match="not installed"):
        world.start("pass", {})
    world.call("install", transfer="tr-other", sources=[world.ref("source")], program_b64="YQ==")


# ---- jobs ----------------------------------------------------------------------------------------


def test_there_is_no_job_at_first(world: World) -> None:
    status = world.status()

    assert (status["state"], status["job"], status["job_id"]) == ("none", "", "")
    assert world.call("stop") == {"stopped": False, "state": "none"}


def test_a_clone_is_prepared_and_keeps_the_sources_identity(world: World) -> None:
    world.make_target(clone=True)

    first = world.prepare()

    [made] = first["filesystems"]
    assert (made["fstype"], made["uuid"], made["label"]) == ("ext4", UUID, "data")
    assert first["publish_s"] >= 0 and first["mount_s"] >= 0
    assert world.prepare()["filesystems"] == first["filesystems"]


def test_a_blank_disk_gets_a_filesystem_and_only_a_blank_one(world: World) -> None:
    world.make_target(clone=False)

    [made] = world.prepare("blank")["filesystems"]

    assert (made["fstype"], made["uuid"]) == ("ext4", UUID)
    assert world.prepare("blank")["filesystems"] == [made], "its own work is no stranger's"


def test_what_is_not_blank_is_not_made_blank(world: World) -> None:
    world.make_target(clone=True)

    with pytest.raises(Told):
        world.prepare("blank")

    assert world.holds("target") == FILES


def test_a_pass_copies_what_differs_and_compares_all(world: World) -> None:
    world.make_target(clone=True)
    world.prepare()
    world.write("changed", b"after")
    world.write("gone", None)
    world.write("new", b"!")

    result = world.do("pass", world.pass_request())

    assert world.holds("target") == {"kept": b"always", "changed": b"after", "new": b"!"}
    assert world.holds("source") == world.holds("target")
    assert result.keys() >= PASS_FIELDS
    assert (result["number"], result["final"], result["full"]) == (1, False, True)
    assert (result["files_copied"], result["files_deleted"]) == (2, 1)
    assert result["files_compared"] >= 3 and result["changed_meanwhile"] == 0


def test_a_later_pass_compares_what_changed_since(world: World) -> None:
    world.make_target(clone=True)
    world.prepare()
    world.pause()
    first = world.do("pass", world.pass_request())
    world.write("changed", b"after")

    second = world.do("pass", world.pass_request(first))

    assert second["full"] is False
    assert 0 < second["files_compared"] < first["files_compared"]
    assert second["watermark"] > first["watermark"]
    assert world.do("pass", world.pass_request({**second, "boot_id": "another"}))["full"] is True


def test_the_same_job_again_is_the_same_job_and_another_has_to_wait(world: World) -> None:
    moving(world)
    request = world.cutover_request(stop=["sleep 1"])

    job_id = world.start("cutover", request)
    world.start("cutover", request, job_id)
    with pytest.raises(Told) as told:
        world.start("pass", world.pass_request())
    assert told.value.kind == "busy"
    ended = world.wait()
    world.start("cutover", request, job_id)

    assert world.status() == ended and ended["state"] == "ended"


def test_a_pass_that_died_is_told_so_and_another_may_begin(world: World) -> None:
    moving(world)
    world.start("pass", world.pass_request(), "pass-2-a")
    world.kill_agent()

    assert world.status()["state"] == "died"
    world.do("pass", world.pass_request())


# ---- the cutover ---------------------------------------------------------------------------------


def test_a_cutover_moves_the_live_side(world: World) -> None:
    moving(world)
    world.write("changed", b"last")

    outcome = world.outcome("cutover", world.cutover_request())

    assert (outcome.result, outcome.live, outcome.reason) == ("committed", "target", "")
    assert outcome.settled and outcome.final_pass is not None and outcome.final_pass.final
    assert outcome.downtime_s > 0 and outcome.problems == ()
    assert world.mounted() == "target" and world.read(world.side) == "target\n"
    assert world.holds("target") == {**FILES, "changed": b"last"} == world.holds("source")
    assert world.read_only("source") and world.status()["error"] is None


def test_a_side_file_that_was_edited_stops_it_before_anything_is_touched(world: World) -> None:
    moving(world)
    world.put(world.side, "somebody's\n")

    outcome = world.outcome("cutover", world.cutover_request())

    assert (outcome.result, outcome.live, outcome.downtime_s) == ("reverted", "source", 0.0)
    assert "is not what it should be" in outcome.reason
    assert world.mounted() == "source" and world.read(world.side) == "somebody's\n"
    assert world.status()["error"]["kind"] == "failed"


def test_a_service_that_does_not_start_on_the_target_brings_the_source_back(world: World) -> None:
    moving(world)

    outcome = world.outcome("cutover", world.cutover_request(start=["false"]))

    assert (outcome.result, outcome.live) == ("reverted", "source")
    assert outcome.downtime_s > 0 and outcome.problems, "it does not start on the source either"
    assert world.mounted() == "source" and world.read(world.side) == "source\n"
    assert not world.read_only("source")


def test_a_cutover_that_stopped_something_is_not_stopped_from_outside(world: World) -> None:
    moving(world)
    world.start("cutover", world.cutover_request(stop=["sleep 1"]))
    world.wait(until="stopping")

    with pytest.raises(Told, match="ends by itself"):
        world.call("stop")

    assert world.wait()["result"]["outcome"]["result"] == "committed"


def test_a_killed_cutover_is_taken_up_under_its_own_name_only(world: World) -> None:
    moving(world)
    job_id = world.start("cutover", world.cutover_request(stop=["sleep 2"]))
    world.wait(until="stopping")
    world.kill_agent()

    assert world.status()["state"] == "died"
    with pytest.raises(Told, match="has to be taken up first"):
        world.start("pass", world.pass_request())
    world.start("cutover", {}, job_id)
    outcome = Outcome.model_validate(world.wait()["result"]["outcome"])

    assert (outcome.result, outcome.live) == ("reverted", "source")
    assert "killed in phase 'stopping'" in outcome.reason
    assert world.mounted() == "source" and world.read(world.side) == "source\n"


def test_a_cutover_that_is_killed_after_the_commit_goes_forward(world: World) -> None:
    moving(world)
    job_id = world.start("cutover", world.cutover_request(start=["sleep 2"]))
    world.wait(until="starting")
    world.kill_agent()

    world.start("cutover", {}, job_id)
    outcome = Outcome.model_validate(world.wait()["result"]["outcome"])

    assert (outcome.result, outcome.live) == ("committed", "target")
    assert world.mounted() == "target" and world.read(world.side) == "target\n"


def test_going_back_loses_what_was_written_since_and_may_be_repeated(world: World) -> None:
    moving(world)
    world.outcome("cutover", world.cutover_request())
    world.write("later", b"on the target")

    outcome = world.outcome("cutback", {})

    assert (outcome.result, outcome.live, outcome.problems) == ("reverted", "source", ())
    assert world.mounted() == "source" and world.read(world.side) == "source\n"
    assert world.holds("source") == FILES and not world.read_only("source")
    assert world.holds("target")["later"] == b"on the target"

    again = world.outcome("cutback", {})

    assert (again.result, again.live) == ("reverted", "source")
    assert again.reason == "the source is the live side already" and again.problems == ()
    assert world.status()["error"] is None


def test_without_a_cutover_there_is_no_way_back(world: World) -> None:
    with pytest.raises(Told, match="there was no cutover") as told:
        world.start("cutback", {})

    assert told.value.kind == "refused"


def test_nothing_is_uninstalled_below_a_job(world: World) -> None:
    moving(world)
    world.start("cutover", world.cutover_request(stop=["sleep 1"]))

    with pytest.raises(Told) as told:
        world.call("uninstall", files=[])

    assert told.value.kind == "busy"
    assert world.wait()["result"]["outcome"]["result"] == "committed"


# ---- the mirror ----------------------------------------------------------------------------------


@pytest.fixture
def mirrored(world: World) -> World:
    """With a mirror that has compared everything once."""
    if isinstance(world, AgentWorld) and why_no_mirror():
        leave_out(why_no_mirror())
    world.track()
    world.make_target(clone=True)
    world.begin()
    world.until_verified()
    return world


def test_there_is_no_mirror_until_one_is_begun(world: World) -> None:
    assert world.mirror()["state"] == "none"
    with pytest.raises(Told):
        world.tell("figures")
    assert world.call("stop", lane="mirror") == {"stopped": False, "state": "none"}


def test_a_mirror_is_begun_once_and_ends_when_it_is_told(mirrored: World) -> None:
    mirrored.track()
    known = mirrored.begin()

    assert known["verified"] and known["passes"]
    assert mirrored.mirror()["job_id"] == "mirror-1"
    assert mirrored.status()["state"] == "none", "its lane is not the jobs' one"
    with pytest.raises(Told) as told:
        mirrored.call("uninstall", files=[])
    assert told.value.kind == "busy"

    assert mirrored.call("stop", lane="mirror")["stopped"]
    assert mirrored.mirror()["state"] == "ended"


def test_a_mirror_that_is_begun_again_says_so_and_repeats_no_pass(mirrored: World) -> None:
    before = mirrored.mirror()["progress"]["figures"]
    assert (before["notes"], before["notes_count"]) == ([], 0)
    assert len({one["id"] for one in before["passes"]}) == len(before["passes"]) > 0

    noted = []
    for job_id in ("mirror-2", "mirror-3"):
        assert mirrored.call("stop", lane="mirror")["stopped"]
        mirrored.track(job_id, suspect="the mirror was begun again")
        mirrored.until_verified()
        after = mirrored.mirror()["progress"]["figures"]
        noted.append((after["notes_id"], after["notes_count"]))

    assert after["notes"] == 2 * ["everything is compared again: the mirror was begun again"]
    assert noted == [(after["notes_id"], 1), (after["notes_id"], 2)]
    assert not {one["id"] for one in before["passes"]} & {one["id"] for one in after["passes"]}


def test_a_mirrored_cutover_moves_the_live_side_and_ends_the_mirror(mirrored: World) -> None:
    mirrored.write("changed", b"last")

    outcome = mirrored.outcome("cutover", mirrored.mirror_request())

    assert (outcome.result, outcome.live, outcome.reason) == ("committed", "target", "")
    assert outcome.final_pass is not None and outcome.final_pass.final
    assert mirrored.mounted() == "target" and mirrored.read(mirrored.side) == "target\n"
    assert mirrored.holds("target") == {**FILES, "changed": b"last"}
    assert mirrored.read_only("source")
    ends = time.monotonic() + 20  # it has answered the order to end, and takes a moment to do it
    while mirrored.mirror()["state"] == "running":
        assert time.monotonic() < ends, mirrored.mirror()
        time.sleep(0.05)
    assert mirrored.mirror()["state"] == "ended"


def test_a_mirrored_cutover_that_was_taken_back_is_mirrored_on(mirrored: World) -> None:
    outcome = mirrored.outcome("cutover", mirrored.mirror_request(start=["false"]))

    assert (outcome.result, outcome.live) == ("reverted", "source")
    assert mirrored.mounted() == "source" and not mirrored.read_only("source")
    mirrored.write("changed", b"later")
    mirrored.until_verified()
    assert mirrored.mirror()["state"] == "running"


def test_going_back_from_a_mirrored_target_hides_it(mirrored: World) -> None:
    mirrored.outcome("cutover", mirrored.mirror_request())
    mirrored.write("later", b"on the target")

    outcome = mirrored.outcome("cutback", {})

    assert (outcome.result, outcome.live, outcome.problems) == ("reverted", "source", ())
    assert mirrored.mounted() == "source" and mirrored.read(mirrored.side) == "source\n"
    assert mirrored.holds("source") == FILES and not mirrored.read_only("source")


def test_a_source_that_has_to_be_detached_first_is_waited_for(mirrored: World) -> None:
    mirrored.write("changed", b"last")
    mirrored.start("cutover", mirrored.detached_request())

    assert 0 < mirrored.awaiting() <= 60
    assert mirrored.mounted() == "" and not mirrored.recognised("target")
    mirrored.unplug_source()
    outcome = Outcome.model_validate(mirrored.wait()["result"]["outcome"])
    assert (outcome.result, outcome.live, outcome.reason) == ("committed", "target", "")
    assert mirrored.mounted() == "target" and mirrored.read(mirrored.side) == "target\n"
    assert mirrored.holds("target") == {**FILES, "changed": b"last"}


def test_a_source_that_is_not_detached_in_time_stays_the_live_side(mirrored: World) -> None:
    outcome = mirrored.outcome("cutover", mirrored.detached_request(deadline_s=4))

    assert (outcome.result, outcome.live) == ("reverted", "source")
    assert mirrored.mounted() == "source" and not mirrored.read_only("source")
    assert not mirrored.recognised("target")


def test_on_the_way_back_the_target_is_hidden_before_the_source_may_come(mirrored: World) -> None:
    mirrored.cut_over_detached(mirrored.detached_request())
    mirrored.write("later", b"on the target")
    mirrored.start("cutback", {})

    assert 0 < mirrored.awaiting() <= 60
    assert mirrored.mounted() == "" and not mirrored.recognised("target")
    assert mirrored.read(mirrored.side) == "source\n"
    mirrored.plug_source()
    outcome = Outcome.model_validate(mirrored.wait()["result"]["outcome"])
    assert (outcome.result, outcome.live, outcome.problems) == ("reverted", "source", ())
    assert mirrored.mounted() == "source" and not mirrored.read_only("source")
    assert mirrored.holds("source") == FILES and not mirrored.recognised("target")


def test_without_its_source_a_guest_goes_on_with_its_target(mirrored: World) -> None:
    request = mirrored.detached_request()
    mirrored.cut_over_detached(request)
    mirrored.write("later", b"on the target")

    outcome = mirrored.outcome("cutback", {**request, "deadline_s": 2})

    assert (outcome.result, outcome.live) == ("committed", "target")
    assert "going back was not possible" in outcome.reason and "attached" in outcome.reason
    assert mirrored.mounted() == "target" and mirrored.read(mirrored.side) == "target\n"
    assert mirrored.holds("target") == {**FILES, "later": b"on the target"}


def test_a_way_back_that_is_killed_as_it_waits_is_taken_up(mirrored: World) -> None:
    mirrored.cut_over_detached(mirrored.detached_request())
    job_id = mirrored.start("cutback", {})
    mirrored.awaiting()
    mirrored.kill_agent()
    mirrored.plug_source()

    mirrored.start("cutback", {}, job_id)
    outcome = Outcome.model_validate(mirrored.wait()["result"]["outcome"])

    assert (outcome.result, outcome.live, outcome.problems) == ("reverted", "source", ())
    assert mirrored.mounted() == "source" and not mirrored.recognised("target")


# ---- the standby ---------------------------------------------------------------------------------


def test_a_standby_follows_the_target_so_that_going_back_loses_nothing(mirrored: World) -> None:
    outcome = mirrored.outcome("cutover", mirrored.mirror_request(keep_standby=True))

    assert (outcome.result, outcome.live, outcome.standby) == ("committed", "target", True)
    assert mirrored.mounted() == "target" and mirrored.recognised("target")
    assert not mirrored.recognised("source") and not mirrored.read_only("source")
    mirrored.write("later", b"on the target")
    assert mirrored.tell("figures")["standby"] and mirrored.mirror()["state"] == "running"

    outcome = mirrored.outcome("cutback", {})

    assert (outcome.result, outcome.live, outcome.problems) == ("reverted", "source", ())
    assert not outcome.standby and outcome.final_pass is not None and outcome.final_pass.final
    assert mirrored.mounted() == "source" and mirrored.read(mirrored.side) == "source\n"
    assert mirrored.holds("source") == {**FILES, "later": b"on the target"}
    assert not mirrored.recognised("target") and not mirrored.read_only("source")
    mirrored.outcome("cutback", {})
    assert mirrored.holds("source")["later"] == b"on the target"


def test_a_standby_that_follows_no_more_is_gone_back_to_when_it_does_again(mirrored: World) -> None:
    mirrored.outcome("cutover", mirrored.mirror_request(keep_standby=True))
    mirrored.call("stop", lane="mirror")
    mirrored.unplug_source()
    mirrored.write("later", b"on the target")
    mirrored.plug_source()

    outcome = mirrored.outcome("cutback", {})

    assert (outcome.result, outcome.live, outcome.standby) == ("committed", "target", True)
    assert "nobody listens" in outcome.reason
    assert mirrored.mounted() == "target" and not mirrored.recognised("source")

    mirrored.begin_again()
    assert mirrored.until_verified()["standby"]
    outcome = mirrored.outcome("cutback", {})

    assert (outcome.result, outcome.live, outcome.problems) == ("reverted", "source", ())
    assert mirrored.holds("source") == {**FILES, "later": b"on the target"}
