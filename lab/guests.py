"""How a server is entered: its record, and the ssh_config and known_hosts made of all records.

The Nova driver writes a record when a server is created and calls `write_ssh_files`; the
controller only reads. Host keys are made by the lab before the first boot, so that
`StrictHostKeyChecking yes` holds from the first connection on.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lab.layout import HOST, Layout, write_atomically

USER = "debian"


@dataclass(frozen=True)
class Guest:
    """What is known of a server's guest from outside."""

    id: str
    name: str
    suite: str
    ssh_port: int
    host_key: str
    """The public host key, as in a .pub file: type and base64."""


def folder(layout: Layout, server_id: str) -> Path:
    """Return the folder of a server: root disk, console log, QMP sockets, record."""
    return layout.servers / server_id


def record(layout: Layout, guest: Guest) -> None:
    """Write a server down."""
    text = json.dumps(asdict(guest), indent=2) + "\n"
    write_atomically(folder(layout, guest.id) / "guest.json", text)


def recorded(layout: Layout) -> list[Guest]:
    """Return all servers that have a guest, running or not."""
    found = []
    for path in sorted(layout.servers.glob("*/guest.json")):
        try:
            found.append(Guest(**json.loads(path.read_text())))
        except FileNotFoundError:
            continue  # deleted between the look and the read
    return found


def pid(layout: Layout, server_id: str) -> int | None:
    """Return the pid of a server's QEMU, or None when it does not run."""
    place = folder(layout, server_id)
    try:
        number = int((place / "qemu.pid").read_text())
        words = Path(f"/proc/{number}/cmdline").read_bytes().split(b"\0")
    except (FileNotFoundError, ProcessLookupError, ValueError):
        return None
    # The pid may be another process's by now.
    ours = b"qemu-system" in words[0] and str(place / "qemu.pid").encode() in words
    return number if ours else None


def press_power_button(layout: Layout, server_id: str) -> None:
    """Ask a guest to shut down."""
    qmp(layout, server_id, "system_powerdown")


def qmp(
    layout: Layout,
    server_id: str,
    command: str,
    arguments: Mapping[str, object] = {},
    timeout_s: float = 10,
) -> Any:
    """Run a QMP command on a server's monitor socket, behind Nova's back.

    For what a test does to a guest that no API offers: `stop` hangs it, `system_reset` is a reset
    button. Raises OSError when QEMU does not answer.
    """
    # The path of a socket has at most 107 characters, and the folder may be deep.
    place = os.open(folder(layout, server_id), os.O_PATH)
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(timeout_s)
            connection.connect(f"/proc/self/fd/{place}/monitor.sock")
            with connection.makefile("rw") as stream:
                stream.readline()  # the greeting
                for name, given in (("qmp_capabilities", {}), (command, arguments)):
                    stream.write(json.dumps({"execute": name, "arguments": given}) + "\n")
                    stream.flush()
                    while "event" in (answer := json.loads(stream.readline())):
                        continue
                return answer
    finally:
        os.close(place)


def write_ssh_files(layout: Layout) -> None:
    """Make ssh_config and known_hosts say what the records say."""
    with (layout.run / "ssh-files.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        guests = recorded(layout)
        names = Counter(guest.name for guest in guests)
        blocks = [
            "# Written by the lab's Nova driver at each creation and deletion of a server.\n",
            *(_block(layout, guest, names[guest.name] == 1) for guest in guests),
        ]
        write_atomically(layout.ssh_config, "\n".join(blocks))
        keys = [f"[{HOST}]:{guest.ssh_port} {guest.host_key}\n" for guest in guests]
        write_atomically(layout.known_hosts, "".join(keys))


def _block(layout: Layout, guest: Guest, name_is_unique: bool) -> str:
    # Two servers may have the same name; then neither is reached by it.
    aliases = f"{guest.name} {guest.id}" if name_is_unique else guest.id
    return f"""\
Host {aliases}
    HostName {HOST}
    Port {guest.ssh_port}
    User {USER}
    IdentityFile {layout.ssh_key}
    IdentitiesOnly yes
    UserKnownHostsFile {layout.known_hosts}
    GlobalKnownHostsFile /dev/null
    StrictHostKeyChecking yes
    CheckHostIP no
"""
