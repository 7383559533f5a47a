"""The final pass in a process of its own, in its private mount namespace."""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from typing import Any, Callable, List, Optional

from volferry.agent.basics import (
    COMMAND_S,
    AgentError,
    Json,
    Log,
    Place,
    Process,
    end_process,
    launch,
    say,
    set_by,
    to_text,
    told_limit,
)
from volferry.agent.jobs import attempt, end_group, own_namespace
from volferry.agent.passes import FinalPass


class Inside:
    """Runs the final pass in a private mount namespace, made after the source was unmounted: one
    made before would keep it mounted. The child ends itself when we are gone (its stdin closes).

    It is started before anything is stopped, because an interpreter takes its time to come up, and
    takes its namespace when it is told to begin.
    """

    def __init__(self, place: Place, state_dir: str) -> None:
        self.place, self.state_dir = place, state_dir
        self.process: Optional[Process] = None

    def prepare(self) -> None:
        with open(os.path.join(self.state_dir, "inside.log"), "ab") as complaints:
            self.process = launch(
                [sys.executable, "-I", os.path.abspath(__file__), "inside"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=complaints,
                start_new_session=True,
            )
        assert self.process.stdout is not None
        ready = select.select([self.process.stdout], [], [], COMMAND_S)[0]
        if not ready or not os.read(self.process.stdout.fileno(), 64).startswith(b"{"):
            self.end()
            raise AgentError(
                "failed",
                "the process for the final pass did not come up within {}".format(
                    told_limit(COMMAND_S)
                ),
            )

    def run(self, request: Json, deadline: float, heard: Callable[[Json], None]) -> Json:
        assert self.process is not None
        try:
            return self.listen(self.process, request, deadline, heard)
        finally:
            self.end()

    def listen(
        self,
        process: Process,
        request: Json,
        deadline: float,
        heard: Callable[[Json], None],
    ) -> Json:
        assert process.stdin is not None and process.stdout is not None
        spec = {"settings": self.place.settings, "state_dir": self.state_dir, "request": request}
        process.stdin.write(json.dumps(spec).encode("ascii") + b"\n")
        process.stdin.flush()  # and left open: its end tells the child that we are gone
        fd, raw = process.stdout.fileno(), b""
        while True:
            left = deadline - time.monotonic()
            if left <= 0:
                raise AgentError(
                    "failed",
                    "the final pass did not end by the cutover's deadline ({})".format(
                        set_by(deadline)
                    ),
                )
            if not select.select([fd], [], [], left)[0]:
                continue
            chunk = os.read(fd, 65536)
            if not chunk:
                raise AgentError("failed", "the final pass' process ended without a word")
            lines = (raw + chunk).split(b"\n")
            raw = lines.pop()
            for line in lines:
                said = json.loads(to_text(line))
                if "ok" not in said:
                    heard(said)
                elif said["ok"]:
                    with contextlib.suppress(subprocess.TimeoutExpired):  # ``end`` kills it
                        process.wait(timeout=max(1.0, deadline - time.monotonic()))
                    result: Json = said["result"]
                    return result
                else:
                    raise AgentError(**said["error"])

    def end(self) -> None:
        if self.process is None:
            return
        end_group(self.process.pid)
        end_process(self.process)
        self.process = None


def inside() -> int:
    """The child's side. One thread waits for the end of stdin, which means that the worker died."""
    say({"ready": True})
    line = sys.stdin.buffer.readline()
    if not line:
        return 0
    spec = json.loads(to_text(line))
    place = Place(spec["settings"])
    own_namespace(place, [spec["state_dir"]])  # before any thread: a namespace belongs to a thread

    def watch() -> None:
        sys.stdin.buffer.read()
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()
    last: List[Any] = [0.0, ""]
    Log.path = os.path.join(spec["state_dir"], "log")

    def report(phase: str, force: bool = False, **progress: Any) -> None:
        now = time.monotonic()
        if force or phase != last[1] or now - last[0] > 0.5:
            last[:] = [now, phase]
            say({"phase": phase, "progress": progress})

    final = FinalPass(place, spec["state_dir"], spec["request"], report)
    result, error = attempt(final.run)
    say({"ok": True, "result": result} if error is None else {"ok": False, "error": error})
    sys.stdout.flush()
    os._exit(0)  # the watching thread sits in a read
