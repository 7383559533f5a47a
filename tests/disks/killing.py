"""A cutover whose worker is killed at a moment (see ``killing_agent.py``), and taken up again."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

from agent_rig import Json
from disks_world import World

KILLING = Path(__file__).with_name("killing_agent.py")


def armed(world: World, request: Json, job_id: str = "killed", name: str = "cutover") -> str:
    """What ``start`` leaves on the disk, without its supervisor. -> the installed agent"""
    job = {"job": name, "job_id": job_id, "request": request}
    (world.guest.state_dir / "status.json").unlink(missing_ok=True)
    (world.guest.state_dir / "job.json").write_text(json.dumps(job))
    (world.guest.state_dir / "switch.json").write_text(json.dumps(request))
    return str(next(world.guest.state_dir.glob("agent-*.py")))


def killed_at(world: World, installed: str, moment: str) -> None:
    argv = [sys.executable, "-I", str(KILLING), installed, str(world.guest.state_dir), moment]
    done = subprocess.run(argv, timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL, f"it was not killed at {moment}"


def restarted(world: World, **more: str) -> Json:
    """The record now tells of another boot than this one. -> it"""
    path = world.guest.state_dir / "cutover.json"
    record: Json = {**json.loads(path.read_text()), "boot_id": "the boot before", **more}
    path.write_text(json.dumps(record))
    return record


def taken_up(world: World, installed: str) -> Json:
    argv = [sys.executable, "-I", installed, "work", str(world.guest.state_dir)]
    assert subprocess.run(argv, timeout=120, check=False).returncode == 0
    status = world.guest.status()
    assert status["state"] == "ended"
    outcome: Json = status["result"]["outcome"]
    return outcome
