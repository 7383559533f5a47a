"""What is known of a cutover: what was asked for, how far it came, what it took and by when it has
to be through. What it does is the cutover's story, which is not told here."""

import contextlib
import time
from typing import Any, Iterator, List

from volferry.agent.basics import (
    AgentError,
    Json,
    Limit,
    Log,
    Place,
    read_json,
    told_limit,
    write_json,
)
from volferry.agent.jobs import Job
from volferry.agent.sides import MountPlan, Sides

PASS_FIELDS = (
    "number", "final", "started_at", "copy_s", "compare_s", "files_total", "files_copied",
    "files_deleted", "bytes_copied", "files_compared", "bytes_compared", "changed_meanwhile",
    "healed", "differed_after_loss", "watermark", "clock_offset", "boot_id",
    "chunks_copied", "chunks_compared",
)  # fmt: skip


class Recorded:
    """A job cutover or cutback as far as it is on the disk."""

    def __init__(self, place: Place, job: Job, asked_for: Json) -> None:
        self.place, self.job = place, job
        self.job_id: str = asked_for["job_id"]
        self.back_only = asked_for["job"] == "cutback"
        self.request: Json = asked_for["request"]
        self.notes: List[str] = []
        self.sides = Sides(place, self.request, job.state_dir, self.notes)
        self.deadline = time.monotonic() + 3600
        stored: Json = read_json(job.path("cutover.json")) or {}
        self.found_record = stored.get("job_id") == self.job_id
        # A record that an older agent began lacks what came to it since.
        self.record: Json = dict(self.new_record(), **(stored if self.found_record else {}))
        if self.back_only and not self.found_record:
            # What the cutover has shown has to be hidden again.
            known = ("shown", "withheld", "standby", "source_hidden", "live", "kept", "opened")
            self.record.update({key: stored.get(key) for key in known})
            self.record.update(
                {key: stored.get(key, []) for key in ("mounts", "units", "triggers")}
            )
        self.sides.opened = self.record["opened"] or {}

    def new_record(self) -> Json:
        return {
            "job_id": self.job_id,
            "phase": "armed",
            "boot_id": self.place.boot_id,
            "wall": time.time(),
            "runs": 0,
            "stopped": None,
            "up_again": None,
            "units": [],
            "triggers": [],
            "mounts": [],
            "opened": {},
            "stop_commands": False,
            "start_commands": False,
            "parts": {},
            "going_back": "",
            "final_pass_begun": False,
            "final_pass": None,
            "withheld": None,
            "shown": False,
            "kept": False,
            "staying": "",
            "standby": False,
            "source_hidden": False,
            "copied_back": False,
            "live": None,
            "was_live_s": 0.0,
            "gone_at_boot": "",
            "outcome": None,
        }

    @property
    def mounts(self) -> List[MountPlan]:
        return [MountPlan(**plan) for plan in self.record["mounts"]]

    def note(self, phase: str = "", **facts: Any) -> None:
        if phase:
            self.record["phase"] = phase
        self.record.update(facts)
        write_json(self.job.path("cutover.json"), self.record)
        if phase:
            Log.say("phase {}".format(phase))
            self.job.report(phase, force=True, what=phase)

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Measure a part of the downtime on the monotonic clock."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.add_part(name, time.monotonic() - began)

    def add_part(self, name: str, seconds: float) -> None:
        parts = self.record["parts"]
        parts[name] = round(parts.get(name, 0.0) + seconds, 4)

    def left(self, most_s: float) -> float:
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise AgentError(
                "failed",
                "the cutover did not end within {}, it was in phase '{}'".format(
                    told_limit(self.deadline_s), self.record["phase"]
                ),
            )
        return min(most_s, Limit(left, "what was left of --cutover-timeout"))

    @property
    def deadline_s(self) -> float:
        return Limit(float(self.request.get("deadline_s") or 120.0), "--cutover-timeout")

    def outcome(self, result: str, reason: str, settled: bool = False) -> Json:
        """model.Outcome. Downtime: from the first service stopped to the last one started."""
        stopped, up = self.record["stopped"], self.record["up_again"]
        same_boot = self.record["boot_id"] == self.place.boot_id
        clock = "monotonic" if same_boot else "wall"
        downtime_s = max(0.0, up[clock] - stopped[clock]) if stopped and up else 0.0
        final = self.record["final_pass"]
        return {
            "result": result,
            "live": "target" if result == "committed" else "source",
            "reason": reason,
            "downtime_s": round(downtime_s, 3),
            "parts": self.record["parts"],
            "clock": clock,
            "final_pass": None
            if final is None
            else {key: final[key] for key in PASS_FIELDS if key in final},
            "settled": settled,
            "problems": self.record.get("problems", []),
            "standby": bool(self.record.get("standby")),
            "was_live_s": self.record["was_live_s"] if result == "reverted" else 0.0,
        }
