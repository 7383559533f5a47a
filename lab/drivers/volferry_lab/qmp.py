"""QEMU's machine protocol, as far as the driver needs it. QEMU serves one client at a time."""

import json
import socket
import time


class QMPError(Exception):
    """QEMU refused a command."""

    def __init__(self, command, error):
        self.kind = error["class"]
        super().__init__(f"{command}: {self.kind}: {error['desc']}")


class QMP:
    """A short-lived connection: `with QMP(path) as qmp: qmp("stop")`."""

    def __init__(self, path, timeout_s=30):
        self.timeout_s = timeout_s
        self.events = []
        self.buffer = b""
        self.socket = socket.socket(socket.AF_UNIX)
        try:
            self.socket.settimeout(timeout_s)
            self.socket.connect(str(path))
            self._read(time.monotonic() + timeout_s)
            self("qmp_capabilities")
        except BaseException:  # a signal's too: nobody else has the socket
            self.socket.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def __call__(self, command, arguments=None):
        """Run a command and return its answer. Raises QMPError."""
        message = {"execute": command, "arguments": arguments or {}}
        self.socket.settimeout(self.timeout_s)
        self.socket.sendall(json.dumps(message).encode() + b"\n")
        deadline = time.monotonic() + self.timeout_s
        while True:
            answer = self._read(deadline)
            if "event" in answer:
                self.events.append(answer)
            elif "error" in answer:
                raise QMPError(command, answer["error"])
            else:
                return answer["return"]

    def wait_for(self, name, timeout_s, **data):
        """Return the next event of that name whose data has these values, or None."""
        deadline = time.monotonic() + timeout_s
        while True:
            while self.events:
                event = self.events.pop(0)
                about = event.get("data", {})
                if event["event"] == name and all(about.get(k) == v for k, v in data.items()):
                    return event
            try:
                self.events.append(self._read(deadline))
            except TimeoutError:
                return None

    def _read(self, deadline):
        while b"\n" not in self.buffer:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError("QEMU did not answer in time")
            self.socket.settimeout(left)
            chunk = self.socket.recv(65536)
            if not chunk:
                raise ConnectionError("QEMU closed the connection")
            self.buffer += chunk
        line, _, self.buffer = self.buffer.partition(b"\n")
        return json.loads(line)
