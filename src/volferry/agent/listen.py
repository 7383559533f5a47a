"""The socket of a job that lives long: one JSON line in, one JSON line out.

It lies in the transfer's folder, which is root's alone, has mode 0600, and answers nobody whose
kernel-given uid (SO_PEERCRED) is not ours.
"""

import contextlib
import json
import os
import socket
import struct
import threading
import time
from typing import Any, Callable, Iterator

from volferry.agent.basics import AgentError, Json, Log, to_bytes, to_text, told_limit

LONGEST_LINE = 1 << 20
SOCKET = "socket"


@contextlib.contextmanager
def short_path(folder: str) -> Iterator[str]:
    """A path of the socket below 108 bytes, which is all that sun_path holds (unix(7))."""
    fd = os.open(to_bytes(folder), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield "/proc/self/fd/{}/{}".format(fd, SOCKET)
    finally:
        os.close(fd)


class Listener:
    """Answers each line by ``obey``, one thread a caller."""

    def __init__(self, folder: str, obey: Callable[[Json], Json]) -> None:
        self.folder, self.obey, self.closed = folder, obey, False
        with contextlib.suppress(FileNotFoundError):
            os.unlink(to_bytes(os.path.join(folder, SOCKET)))
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        before = os.umask(0o177)
        try:
            with short_path(folder) as path:
                self.socket.bind(path)
        finally:
            os.umask(before)
        self.socket.listen(64)
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self) -> None:
        while True:
            try:
                caller, _ = self.socket.accept()
            except OSError as error:
                if self.closed:
                    return
                Log.say("the socket: {}".format(error))  # too many callers have files open
                time.sleep(0.5)
                continue
            threading.Thread(target=self.serve, args=(caller,), daemon=True).start()

    def serve(self, caller: socket.socket) -> None:
        with contextlib.closing(caller):
            raw = caller.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
            uid = struct.unpack("3i", raw)[1]
            if uid != os.geteuid():
                Log.say("uid {} knocked at the socket and was not answered".format(uid))
                return
            caller.settimeout(10.0)
            try:
                line = read_a_line(caller)
                if not line:
                    return
                answer = self.answer(line)
                caller.settimeout(None)
                caller.sendall(json.dumps(answer).encode("ascii") + b"\n")
            except OSError as error:
                Log.say("a caller went away: {}".format(error))

    def answer(self, line: bytes) -> Json:
        try:
            return {"ok": True, "result": self.obey(json.loads(to_text(line)))}
        except AgentError as error:
            return {"ok": False, "error": error.as_json()}
        except Exception as error:  # noqa: BLE001 - a fault of ours is told to whoever asked
            Log.say("{}: {}".format(type(error).__name__, error))
            what = "{}: {}".format(type(error).__name__, error)
            return {"ok": False, "error": AgentError("failed", what).as_json()}

    def close(self) -> None:
        self.closed = True
        self.socket.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(to_bytes(os.path.join(self.folder, SOCKET)))


def read_a_line(stream: socket.socket) -> bytes:
    """Without its end; empty when the other side said nothing."""
    raw = b""
    while not raw.endswith(b"\n"):
        piece = stream.recv(65536)
        if not piece:
            return b""
        raw += piece
        if len(raw) > LONGEST_LINE:
            raise OSError("a line of more than {} bytes".format(LONGEST_LINE))
    return raw[:-1]


def ask_listener(folder: str, message: Json, timeout_s: float) -> Any:
    """Say one thing to the job that listens in ``folder``; its answer.

    AgentError: its own, ``missing`` when nobody listens, ``failed`` when it said nothing in time or
    died in the middle.
    """
    deadline = time.monotonic() + timeout_s
    stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    what = message.get("do", "")
    with contextlib.closing(stream):
        stream.settimeout(max(0.1, timeout_s))
        try:
            with short_path(folder) as path:
                stream.connect(path)
        except OSError as error:
            raise AgentError("missing", "nobody listens in {}: {}".format(folder, error.strerror))
        try:
            stream.sendall(json.dumps(message).encode("ascii") + b"\n")
            stream.settimeout(max(0.1, deadline - time.monotonic()))
            line = read_a_line(stream)
        except socket.timeout:
            raise AgentError(
                "failed", "'{}' was not answered within {}".format(what, told_limit(timeout_s))
            )
        except OSError as error:
            raise AgentError("failed", "'{}' was cut off: {}".format(what, error))
    if not line:
        raise AgentError("failed", "'{}' was cut off: the job ended".format(what))
    answer = json.loads(to_text(line))
    if not answer["ok"]:
        raise AgentError(**answer["error"])
    return answer["result"]
