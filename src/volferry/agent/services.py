"""Services: systemd units and the user's own commands."""

import os
import re
import subprocess
import time
from typing import Dict, List

from volferry.agent.basics import (
    AgentError,
    Log,
    Place,
    Ran,
    end_process,
    environment,
    find_program,
    launch,
    must,
    one_line,
    read_text,
    run,
    told_limit,
)
from volferry.agent.facts import UNIT_PROPERTIES


def show(names: List[str]) -> Dict[str, Dict[str, str]]:
    """``systemctl show`` of these units, by the name that was asked for."""
    if not names:
        return {}
    text = must(["systemctl", "show", "-p", UNIT_PROPERTIES, "--", *names])
    blocks = [block for block in text.split("\n\n") if block.strip()]
    if len(blocks) != len(names):
        raise AgentError(
            "failed", "systemctl show told {} of {} units".format(len(blocks), len(names))
        )
    shown = {}
    for name, block in zip(names, blocks):
        pairs = (line.partition("=") for line in block.splitlines())
        shown[name] = {key: value for key, _, value in pairs}
    return shown


def is_up(facts: Dict[str, str]) -> bool:
    return facts.get("ActiveState") in ("active", "reloading", "activating")


def system_is_stopping(place: Place) -> bool:
    if not place.has_systemd:
        return False
    try:
        return run(["systemctl", "is-system-running"], 5).out.strip() == "stopping"
    except AgentError:
        return False


def stop_unit(name: str, timeout_s: float) -> None:
    ran = run(["systemctl", "stop", "--", name], timeout_s)
    facts = show([name])[name]
    if is_up(facts) or facts.get("ActiveState") == "deactivating":
        raise AgentError(
            "failed", "{} is {} after it was told to stop: {}".format(
                name, facts.get("ActiveState"), ran.complaint
            )
        )  # fmt: skip


SPAN_S = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}


def ending_s(name: str) -> float:
    """How long systemd may take yet to end a unit that is stopping: its TimeoutStopSec, an hour at
    most. 0 for any other one, for one that may take for ever, and where systemd does not tell."""
    try:
        facts = show([name])[name]
    except AgentError as error:
        Log.say("{}: {}".format(name, error.what))
        return 0.0
    if facts.get("ActiveState") != "deactivating":
        return 0.0
    parts = re.findall(r"([0-9.]+)([a-z]+)", facts.get("TimeoutStopUSec", ""))
    return min(sum(float(count) * SPAN_S.get(unit, 0.0) for count, unit in parts), 3600.0)


START_LIMIT = "start-limit-hit"  # Result=, systemd.service(5)


def systemctl_start(name: str, timeout_s: float) -> Ran:
    """Also where it was started too often before, which is asked for only when it fails: each call
    of systemctl is downtime (0.1 s in an emulated guest)."""
    ran = run(["systemctl", "start", "--", name], timeout_s)
    if ran.code != 0 and show([name])[name].get("Result") == START_LIMIT:
        run(["systemctl", "reset-failed", "--", name])
        ran = run(["systemctl", "start", "--", name], timeout_s)
    return ran


def start_unit(name: str, timeout_s: float) -> None:
    """Start and look: a oneshot that ran well is inactive again, which is fine."""
    ran = systemctl_start(name, timeout_s)
    facts = show([name])[name]
    done = facts.get("Type") == "oneshot" and facts.get("Result") == "success" and ran.code == 0
    if facts.get("ActiveState") not in ("active", "reloading") and not done:
        raise AgentError(
            "failed",
            "{} did not start: it is {} ({}), {}".format(
                name, facts.get("ActiveState"), facts.get("Result"), ran.complaint
            ),
        )


def time_systemctl(place: Place) -> float:
    """What asking systemd for something takes on this guest, in seconds."""
    if not place.has_systemd:
        return 0.0
    began = time.monotonic()
    must(["systemctl", "show", "-p", "Version"])
    return round(time.monotonic() - began, 4)


def user_command(place: Place, command: str, timeout_s: float, output: str) -> None:
    """Run a command of the user's, by a shell: the only place where there is one.

    What it leaves running must outlive us. Under systemd it gets a scope of its own, because ours
    ends with our unit; its output goes to a file, because a daemon would keep a pipe open for ever.
    """
    argv = ["/bin/sh", "-c", command]
    if place.has_systemd and find_program("systemd-run"):
        argv = ["systemd-run", "--scope", "--quiet", "--slice=system.slice", "--", *argv]
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
    mine = {key: value for key, value in environment().items() if key != "LC_ALL"}
    fd = os.open(output, flags, 0o600)
    try:
        process = launch(
            argv, mine, stdin=subprocess.DEVNULL, stdout=fd, stderr=fd, start_new_session=True
        )
    finally:
        os.close(fd)
    try:
        code = process.wait(timeout=max(timeout_s, 0.05))
    except subprocess.TimeoutExpired:
        end_process(process)
        raise AgentError(
            "failed", "'{}' did not end within {}".format(command, told_limit(timeout_s))
        )
    except BaseException:  # a signal's too: nobody else knows of it
        end_process(process)
        raise
    if code != 0:
        last = one_line(" / ".join(read_text(output).splitlines()[-3:]))
        raise AgentError("failed", "'{}' ended with {}: {}".format(command, code, last))
