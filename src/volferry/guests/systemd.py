"""What systemd says: units behind processes, and how long they took to start and stop.

Pure functions on captured text; the agent runs the commands.
"""

import re
from dataclasses import dataclass

from volferry.model import Unit

_CONTAINER = re.compile(r"(?:^|[/-])(docker|libpod|crio|cri-containerd)[-/:]([0-9a-f]{12,64})")
_PODS = re.compile(r"kubepods.*?([0-9a-f]{64})")


@dataclass(frozen=True)
class Membership:
    """Where a process belongs. ``unit`` is a system unit that can be stopped by its name."""

    unit: str = ""
    container: str = ""
    session: str = ""
    """A login (``session-3.scope``) or a user's own manager: no unit of the system to stop."""


def membership(cgroup: str) -> Membership:
    """Of a process, from its ``/proc/<pid>/cgroup`` (cgroups(7)), v1 or v2."""
    path = _systemd_path(cgroup)
    container = ""
    for pattern in (_CONTAINER, _PODS):
        match = pattern.search(path)
        if match:
            container = match[match.lastindex or 0][:12]
            break
    parts = [part for part in path.split("/") if part]
    session = next((p for p in parts if p.startswith("session-") and p.endswith(".scope")), "")
    if parts[:1] == ["user.slice"]:
        manager = next((p for p in parts if p.startswith("user@")), "")
        return Membership(container=container, session=session or manager or "user.slice")
    # The outermost one: cgroups below a service were delegated to it and end with it.
    unit = next((p for p in parts if p.endswith((".service", ".scope"))), "")
    if unit == "init.scope":
        unit = ""
    return Membership(unit=unit, container=container, session=session)


def _systemd_path(cgroup: str) -> str:
    unified = named = ""
    for line in cgroup.splitlines():
        fields = line.split(":", 2)
        if len(fields) != 3:
            continue
        if fields[0] == "0" and not fields[1]:
            unified = fields[2]
        elif "name=systemd" in fields[1].split(","):
            named = fields[2]
    # On a hybrid hierarchy the unified tree may be empty of processes ("/").
    return unified if unified.strip("/") else named


def show(text: str) -> list[dict[str, str]]:
    """``systemctl show`` of several units: one dictionary a unit, blank lines between them."""
    blocks: list[dict[str, str]] = []
    for block in re.split(r"\n\s*\n", text.strip()):
        pairs = [line.partition("=") for line in block.splitlines()]
        properties = {key: value for key, equals, value in pairs if equals}
        if properties:
            blocks.append(properties)
    return blocks


def what_of(text: str) -> str:
    """What a mount unit mounts (systemd.mount(5)), from ``systemctl cat``: later files override."""
    section, what = "", ""
    for line in text.splitlines():
        key, equals, value = line.strip().partition("=")
        if line.startswith("["):
            section = line.strip()
        elif section == "[Mount]" and equals and key.strip() == "What":
            what = value.strip()
    return what


def unit(properties: dict[str, str]) -> Unit:
    """A unit and the durations of its last start and stop, from systemd's own time stamps."""
    return Unit(
        name=properties.get("Id", ""),
        active=properties.get("ActiveState") in ("active", "reloading", "activating"),
        enabled=properties.get("UnitFileState", "").startswith("enabled"),
        start_s=_between(properties, "InactiveExit", "ActiveEnter"),
        stop_s=_between(properties, "ActiveExit", "InactiveEnter"),
    )


def _between(properties: dict[str, str], began: str, ended: str) -> float | None:
    # Microseconds of CLOCK_MONOTONIC; 0 when it never happened since the boot.
    a, b = (int(properties.get(f"{name}TimestampMonotonic") or 0) for name in (began, ended))
    return (b - a) / 1e6 if 0 < a <= b else None
