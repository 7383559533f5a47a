"""A terminal of its own for a program that a test runs, and somebody who answers its question."""

import contextlib
import fcntl
import os
import select
import struct
import subprocess
import termios
import time
from collections.abc import Mapping, Sequence


def run(
    argv: Sequence[str], environment: Mapping[str, str], answer: str = "", *, width: int = 100
) -> tuple[str, int]:
    """Everything that the program writes to it, and its exit code."""
    master, slave = os.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, width, 0, 0))
    process = subprocess.Popen(
        argv, env=environment, stdin=slave, stdout=slave, stderr=slave, start_new_session=True
    )
    os.close(slave)
    text, deadline = b"", time.monotonic() + 60
    while time.monotonic() < deadline:
        ready, _, _ = select.select([master], [], [], 0.5)
        chunk = b""
        if ready:
            with contextlib.suppress(OSError):  # EIO: the other end is closed
                chunk = os.read(master, 65536)
            if not chunk:
                break
        text += chunk
        if answer and b"[y/N]" in text:
            os.write(master, answer.encode())
            answer = ""
    os.close(master)
    return text.decode(), process.wait(timeout=10)
