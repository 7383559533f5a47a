"""What stands around a transfer, by the command: a reviewed plan, its time, Ctrl-C, bad input."""

from __future__ import annotations

import datetime as dt
import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from lab.api import Lab
from tests.lab.volferry_command import UNIT, Command, Guest, snapshots, words

pytestmark = pytest.mark.lab

InUse = Callable[..., Guest]


def test_a_reviewed_plan_waits_for_its_time_is_stopped_by_ctrl_c_resumed_watched_and_let_through(
    lab: Lab, volferry: Command, in_use: InUse, tmp_path: Path
) -> None:
    guest = in_use("debian-12", "xfs")
    file, page = tmp_path / "plan.yaml", tmp_path / "report.html"
    opens = dt.datetime.now(dt.UTC) + dt.timedelta(hours=6)
    wishes = words(lab, guest, "--type", "cbs-premium", "--cutover", f"at {opens.isoformat()}")
    volferry("plan", *wishes, "--save", str(file))
    five_faults(volferry, file, tmp_path / "broken.yaml")

    running = volferry.start("run", str(file), "--yes")
    transfer = volferry.in_step(running, "cutover")
    watching = volferry.start("watch", transfer)
    volferry.until_said(f"waits until {opens:%Y-%m-%dT%H:%M}")
    running.send_signal(signal.SIGINT)

    assert running.wait(600) == 1
    assert watching.wait(60) == 1
    said = volferry.log.read_text()
    assert f"hint: volferry resume {transfer}" in said and "Traceback" not in said
    assert guest.sh(f"systemctl is-active {UNIT}") == "active"
    assert guest.mounted_serial() == guest.volume_id[:20]

    resumed = volferry.start("resume", transfer)
    # It stood in that step already: who asks before somebody carries it has to carry it.
    volferry.until_said("waits until", after=said)
    assert "has been asked" in volferry("cutover", transfer).stderr
    watched = volferry("watch", transfer)
    assert resumed.wait(600) == 0
    report = volferry.report()
    assert report["moves"][0]["target"]["id"][:20] == guest.mounted_serial()
    assert "detached, read-only" in watched.stdout
    assert guest.lost() == []

    volferry("report", transfer, "--html", str(page))
    html = page.read_text()
    assert report["moves"][0]["target"]["id"] in html and page.stat().st_mode & 0o077 == 0
    assert "has ended: done" in volferry("rollback", transfer, code=2).stderr
    assert snapshots(lab, guest) == [] and guest.leftovers() == ""


def five_faults(volferry: Command, file: Path, copy: Path) -> None:
    """A plan file that was edited badly: every fault is said, with its line, and nothing is run."""
    text = file.read_text()
    for right, wrong in (
        (r"^version: .*\n", ""),
        (r"\bsettle_s:", "settel_s:"),
        (r"\bmax_downtime_s: .*", "max_downtime_s: -1"),
        (r"\bkeep_snapshot: .*", "keep_snapshot: perhaps"),
        (r"\bcutover: .*", "cutover: soon"),
    ):
        text, found = re.subn(right, wrong, text, count=1, flags=re.MULTILINE)
        assert found, right
    copy.write_text(text)
    done = volferry("run", str(copy), "--yes", code=2)
    assert "5 faults" in done.stderr and "did you mean 'settle_s'" in done.stderr, done.stderr
    assert volferry.data("list") == []
