"""Start, find and end processes; only those that this lab started are ever ended.

A process of the lab is told by two facts that must both hold: its pid was written down when it
was started, and its command line in /proc names the lab's folder. A pid alone may have been given
to somebody else since.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from lab.errors import LabError
from lab.layout import REPOSITORY, Layout, write_atomically


@dataclass(frozen=True)
class Process:
    """A running process of the lab, with the children that it started."""

    name: str
    pid: int
    members: tuple[int, ...]

    def memory_mib(self) -> int:
        """Return the proportional set size of the process and its children."""
        return sum(_pss_kib(pid) for pid in self.members) // 1024


def environment(layout: Layout, more: Mapping[str, str | Path]) -> dict[str, str]:
    """Return the environment of the services: nothing of the caller's shell leaks into it."""
    package_folders = [Path(__file__).resolve().parent / "drivers", REPOSITORY]
    return {
        "HOME": str(layout.root),
        "LANG": "C.UTF-8",
        "PATH": f"{layout.helpers}:{layout.venv / 'bin'}:/usr/sbin:/usr/bin:/sbin:/bin",
        "PYTHONPATH": ":".join(str(folder) for folder in package_folders),
        "PYTHONWARNINGS": "ignore",
        "VOLFERRY_LAB": str(layout.root),
        **{name: str(value) for name, value in more.items()},
    }


def run(
    layout: Layout,
    command: Sequence[str | Path],
    variables: Mapping[str, str | Path] = {},
    timeout_s: float = 600,
) -> str:
    """Run a command of the services' world to its end and return its output.

    Output and command go to `logs/setup.log`. Raises LabError when it fails.
    """
    words = [str(word) for word in command]
    began = time.monotonic()
    try:
        done = subprocess.run(
            words,
            env=environment(layout, variables),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired as late:
        raise LabError(
            f"`{' '.join(words)}` did not end within {timeout_s:.0f} s",
            "the lab is half prepared; the next `up` cleans that and begins again",
            f"read {layout.logs / 'setup.log'}",
        ) from late
    log = layout.logs / "setup.log"
    with log.open("a") as stream:
        stream.write(f"$ {' '.join(words)}\n{done.stdout}# {time.monotonic() - began:.1f} s\n")
    if done.returncode:
        raise LabError(
            f"`{' '.join(words)}` ended with {done.returncode}: {_last_line(done.stdout)}",
            "the lab is half prepared; the next `up` cleans that and begins again",
            f"read the end of {log}",
        )
    return done.stdout


def start(
    layout: Layout, name: str, command: Sequence[str | Path], variables: Mapping[str, str | Path]
) -> None:
    """Start a service in a session of its own and write its pid down."""
    with (layout.logs / f"{name}.out").open("ab") as output:
        child = subprocess.Popen(
            [str(word) for word in command],
            env=environment(layout, variables),
            cwd=layout.root,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    child.returncode = 0  # Python warns of a Popen that is dropped while its process runs: it shall
    write_atomically(_record(layout, name), json.dumps({"pid": child.pid}) + "\n")


def find(layout: Layout, name: str) -> Process | None:
    """Return the running process that was started as `name`, or None."""
    record = _record(layout, name)
    if not record.exists():
        return None
    pid = int(json.loads(record.read_text())["pid"])
    members = tuple(_session_members(layout, pid))
    return Process(name, pid, members) if pid in members else None


def recorded(layout: Layout) -> list[Process]:
    """Return the running services."""
    found = (find(layout, record.stem) for record in sorted(layout.run.glob("*.json")))
    return [process for process in found if process]


def stop(layout: Layout, names: Iterable[str], grace_s: float = 8) -> None:
    """End the named services and their children: SIGTERM, and SIGKILL after `grace_s`."""
    records = {name: _record(layout, name) for name in names}
    sessions = {
        name: int(json.loads(record.read_text())["pid"])
        for name, record in records.items()
        if record.exists()
    }

    def left() -> list[int]:
        return [pid for session in sessions.values() for pid in _session_members(layout, session)]

    send(left(), signal.SIGTERM)
    if not wait_until(lambda: not left(), grace_s):
        send(left(), signal.SIGKILL)
        wait_until(lambda: not left(), grace_s)
    for record in records.values():
        record.unlink(missing_ok=True)


def send(pids: Iterable[int], number: signal.Signals) -> None:
    """Send a signal to each process that is still there."""
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue  # it ended by itself between the look and the signal


def wait_until(condition: Callable[[], object], timeout_s: float, pause_s: float = 0.1) -> bool:
    """Return whether `condition` became true within `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(pause_s)
    return True


def in_parallel(*jobs: Callable[[], object]) -> None:
    """Run the jobs side by side; raise the first error when all have ended."""
    with ThreadPoolExecutor(max_workers=max(1, len(jobs))) as pool:
        futures = [pool.submit(job) for job in jobs]
    for future in futures:
        future.result()


def is_ours(layout: Layout, pid: int) -> bool:
    """Say whether the process lives and its command line names this lab's folder."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except (FileNotFoundError, ProcessLookupError):
        return False
    # A dead process that nobody waited for has an empty command line.
    return any(f"{layout.root}/".encode() in word for word in words)


def memory_mib(pid: int) -> int:
    """Return the proportional set size of one process."""
    return _pss_kib(pid) // 1024


def _record(layout: Layout, name: str) -> Path:
    return layout.run / f"{name}.json"


def _session_members(layout: Layout, session: int) -> list[int]:
    """Return the lab's processes in a session: a service, and what it started (privsep)."""
    members = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[3]) == session and is_ours(layout, int(entry.name)):
            members.append(int(entry.name))
    return members


def _pss_kib(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "(it said nothing)"
