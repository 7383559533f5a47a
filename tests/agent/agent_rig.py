"""The agent run as it is run in a guest: a separate process, JSON in, JSON lines out.

Everything it writes is redirected below one temporary directory, except the devices and mounts,
which are real loop devices.
"""

from __future__ import annotations

import atexit
import base64
import contextlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import pytest

from volferry.agent import program

Json = dict[str, Any]


def _joined() -> tuple[Path, Any]:
    """The agent as it is pushed to a guest: its one file, and that file as a module."""
    folder = Path(tempfile.mkdtemp(prefix="volferry-agent-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    path = folder / "agent.py"
    path.write_bytes(program())
    spec = importlib.util.spec_from_file_location("agent", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["agent"] = module
    spec.loader.exec_module(module)
    return path, module


AGENT, agent = _joined()
MIB = 1024 * 1024


class Told(Exception):
    """The agent reported an error."""

    def __init__(self, error: Json) -> None:
        super().__init__(f"{error['kind']}: {error['what']} ({error['data']})")
        self.error = error
        self.kind: str = error["kind"]
        self.what: str = error["what"]


def shell(*argv: str | os.PathLike[str], check: bool = True) -> str:
    words = [os.fspath(word) for word in argv]
    done = subprocess.run(
        words, capture_output=True, errors="surrogateescape", check=False, timeout=120
    )
    if check and done.returncode != 0:
        raise AssertionError(f"{argv} ended with {done.returncode}: {done.stderr}{done.stdout}")
    return done.stdout


@dataclass
class Guest:
    """One installed agent in a guest of its own directories."""

    root: Path
    transfer: str = field(default_factory=lambda: f"tr-{uuid.uuid4().hex[:8]}")
    path: str = field(default_factory=lambda: os.environ["PATH"])

    @property
    def settings(self) -> Json:
        return {
            "base": str(self.root / "base"),
            "etc": str(self.root / "etc"),
            "run": str(self.root / "run"),
        }

    @property
    def state_dir(self) -> Path:
        return self.root / "base" / self.transfer

    def call(self, verb: str, **request: Any) -> Json:
        """One verb, by the code that also answers over the wire (see ``test_protocol``)."""
        whole = {"transfer": self.transfer, "settings": self.settings, **request}
        before = os.environ["PATH"]
        os.environ["PATH"] = self.path
        try:
            answer = json.loads(json.dumps(agent.answer(verb, json.dumps(whole).encode())))
        finally:
            os.environ["PATH"] = before
        if not answer["ok"]:
            raise Told(answer["error"])
        result: Json = answer["result"]
        return result

    def install(self, *sources: Json) -> Json:
        (self.root / "etc").mkdir(exist_ok=True)
        (self.root / "run").mkdir(exist_ok=True)
        program = base64.b64encode(AGENT.read_bytes()).decode()
        return self.call("install", sources=sources, program_b64=program)

    def start(self, job: str, request: Json, job_id: str = "") -> str:
        job_id = job_id or f"{job}-{uuid.uuid4().hex[:6]}"
        self.call("start", job=job, job_id=job_id, request=request)
        return job_id

    def status(self) -> Json:
        return self.call("status")

    def wait(self, timeout_s: float = 60.0) -> Json:
        """The status once the job has ended or died."""
        deadline = time.monotonic() + timeout_s
        while True:
            status = self.status()
            if status["state"] in ("ended", "died"):
                return status
            assert time.monotonic() < deadline, status
            time.sleep(0.05)

    def until_phase(self, phase: str, timeout_s: float = 60.0) -> Json:
        """The status once the job, which has to run until then, is in this phase."""
        deadline = time.monotonic() + timeout_s
        while True:
            status = self.status()
            if status["phase"] == phase:
                return status
            assert status["state"] == "running", status
            assert time.monotonic() < deadline, status
            time.sleep(0.02)

    def do(self, job: str, request: Json, timeout_s: float = 60.0) -> Json:
        """Run a job to its end; its result, or its error raised."""
        self.start(job, request)
        status = self.wait(timeout_s)
        assert status["state"] == "ended", status
        if status["error"]:
            raise Told(status["error"])
        result: Json = status["result"]
        return result

    def kill_everything(self) -> None:
        """End what a test left behind: only processes that name this guest's directory."""
        for name in ("supervisor.json", "worker.json"):
            with contextlib.suppress(OSError, ValueError, KeyError):
                pid = json.loads((self.state_dir / name).read_text())["pid"]
                command = Path(f"/proc/{pid}/cmdline").read_bytes()
                if str(self.root).encode() in command:
                    os.kill(pid, signal.SIGKILL)
                    os.killpg(pid, signal.SIGKILL)


@dataclass
class Volume:
    """A backing file and its loop device: a Cinder volume as far as the agent can see."""

    image: Path
    loop: str
    volume_id: str
    link: Path | None = None
    """What refs say instead of the loop device, which is another one after it was plugged again:
    its number may be somebody else's by then."""

    @property
    def ref(self) -> Json:
        size, path = self.image.stat().st_size, str(self.link or self.loop)
        return {"volume_id": self.volume_id, "size_bytes": size, "path": path}

    def linked(self) -> None:
        self.link = self.link or self.image.with_suffix(".disk")
        self.link.unlink(missing_ok=True)
        self.link.symlink_to(self.loop)

    def at(self, partition: int | None = None) -> Json:
        return {**self.ref, "partition": partition}

    def device(self, partition: int | None = None) -> str:
        return self.loop if partition is None else f"{self.loop}p{partition}"

    def reread(self) -> None:
        shell("partx", "--update", self.loop)


class Disks:
    """Makes volumes, and gives every loop device back at the end."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.volumes: list[Volume] = []
        self.mounted: list[Path] = []

    def blank(self, name: str, size_mib: int = 400) -> Volume:
        image = self.root / f"{name}.img"
        with image.open("wb") as file:
            file.truncate(size_mib * MIB)
        return self.attach(image, name)

    def clone(self, source: Volume, name: str, size_mib: int | None = None) -> Volume:
        """A snapshot of a mounted volume: its log is dirty."""
        image = self.root / f"{name}.img"
        shell("cp", "--sparse=always", source.image, image)
        if size_mib is not None:
            with image.open("r+b") as file:
                file.truncate(size_mib * MIB)
        return self.attach(image, name)

    def attach(self, image: Path, name: str) -> Volume:
        loop = shell("losetup", "--find", "--show", image).strip()
        shell("blockdev", "--setrw", loop)  # a killed test may have left the device read-only
        volume = Volume(image, loop, f"{name}-{uuid.uuid4()}")
        self.volumes.append(volume)
        return volume

    def unplug(self, volume: Volume) -> None:
        """Nobody may have it open: the device of a file goes away with the last who has."""
        shell("blockdev", "--setrw", volume.loop)
        shell("losetup", "--detach", volume.loop)
        deadline = time.monotonic() + 10
        while volume.loop in loops_of(self.root):
            assert time.monotonic() < deadline, f"{volume.loop} is held by somebody"
            time.sleep(0.05)
        assert volume.link is not None
        volume.link.unlink()

    def plug(self, volume: Volume) -> None:
        volume.loop = shell("losetup", "--find", "--show", volume.image).strip()
        volume.linked()

    def mount(self, device: str, at: Path, options: str = "defaults") -> Path:
        at.mkdir(parents=True, exist_ok=True)
        shell("mount", "-o", options, device, at)
        self.mounted.append(at)
        return at

    def close(self) -> None:
        ours = {volume.loop for volume in self.volumes}
        for _ in range(3):
            for line in reversed(Path("/proc/self/mountinfo").read_text().splitlines()):
                target = line.split()[4].replace("\\040", " ")
                if target.startswith(str(self.root) + "/"):
                    subprocess.run(["umount", target], capture_output=True, check=False)
        for volume in self.volumes:
            subprocess.run(["blockdev", "--setrw", volume.loop], capture_output=True, check=False)
            subprocess.run(["partx", "-d", volume.loop], capture_output=True, check=False)
            shell("losetup", "--detach", volume.loop, check=False)
        deadline = time.monotonic() + 5  # somebody who only probes it may have it open
        while not ours.isdisjoint(loops_of(self.root)):
            assert time.monotonic() < deadline, "loop devices are left"
            time.sleep(0.05)
        for image in self.root.glob("*.img"):
            image.unlink()


def loops_of(root: Path) -> set[str]:
    lines = shell("losetup", "--noheadings", "--output", "NAME,BACK-FILE").splitlines()
    return {line.split()[0] for line in lines if str(root) in line}


def why_no_loop_devices() -> str:
    """Empty where loop devices can be made."""
    if os.geteuid() != 0:
        return "not root"
    if not shutil.which("losetup"):
        return "losetup is missing"
    found = subprocess.run(["losetup", "--find"], capture_output=True, text=True, check=False)
    return "" if found.returncode == 0 else f"no loop device: {found.stderr.strip()}"


MAY_SKIP = "VOLFERRY_MAY_SKIP"
"""Set by a developer whose machine cannot do everything that the tests need."""


def leave_out(why: str) -> NoReturn:
    """End a test that cannot run here. It fails, unless somebody has said that it may be skipped: a
    run that left out the mirror must not pass for one that tested it."""
    if os.environ.get(MAY_SKIP):
        pytest.skip(why)
    pytest.fail(f"{why}; {MAY_SKIP}=1 skips what this machine cannot do", pytrace=False)


@contextlib.contextmanager
def disks_in(root: Path) -> Iterator[Disks]:
    disks = Disks(root)
    try:
        yield disks
    finally:
        disks.close()
