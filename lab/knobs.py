"""Delays and faults that a test orders and the Cinder and Nova drivers carry out.

A knob belongs to one operation and has up to three settings:

    delay    seconds before the operation does its work, so that the states in between are seen
    fail     how many of the next operations end as a fault of the back end (ALWAYS: all)
    ignore   how many of the next operations say that they are done and do nothing

They lie in `knobs.json` and are read at each operation: no service is started anew. What `fail`
and `ignore` lead to is in OPERATIONS; not every operation can do both.
"""

from __future__ import annotations

import fcntl
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from lab.layout import write_atomically

ALWAYS = -1

# Operation → what the faults that it knows lead to.
OPERATIONS: dict[str, dict[str, str]] = {
    "create_volume": {"fail": "the volume ends in error"},
    "create_volume_from_snapshot": {"fail": "the volume ends in error"},
    "clone_volume": {"fail": "the volume ends in error"},
    "create_snapshot": {"fail": "the snapshot ends in error"},
    "delete_volume": {"fail": "the volume ends in error_deleting"},
    "delete_snapshot": {"fail": "the snapshot ends in error_deleting"},
    "extend_volume": {"fail": "the volume ends in error_extending"},
    "retype": {
        "fail": "the old type stays, migration_status is error",
        "ignore": "the old type stays, nothing tells why",
    },
    "attach": {
        "fail": "the volume goes back to available",
        "ignore": "the volume is in-use, the guest never sees it",
    },
    "detach": {
        "fail": "the guest does not let go, the volume goes back to in-use",
        "ignore": "the volume is available, the guest still has it",
    },
}


class OrderedFault(Exception):
    """A fault that somebody ordered with a knob."""


@dataclass(frozen=True)
class Knob:
    """The settings of one operation; counts may be ALWAYS."""

    delay: float = 0.0
    fail: int = 0
    ignore: int = 0


class Knobs:
    """The knobs of the lab whose knobs.json is `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def all(self) -> dict[str, Knob]:
        """Return the knobs that are set."""
        try:
            text = self.path.read_text()
        except FileNotFoundError:
            return {}
        return {operation: Knob(**settings) for operation, settings in json.loads(text).items()}

    def get(self, operation: str) -> Knob:
        """Return the settings of one operation."""
        return self.all().get(operation, Knob())

    def set(self, operation: str, *, delay: float = 0.0, fail: int = 0, ignore: int = 0) -> None:
        """Set the knob of an operation; what is not named is off. Raises ValueError."""
        if operation not in OPERATIONS:
            raise ValueError(f"no operation '{operation}'; there are: {', '.join(OPERATIONS)}")
        for effect, count in (("fail", fail), ("ignore", ignore)):
            if count and effect not in OPERATIONS[operation]:
                raise ValueError(f"'{operation}' has no '{effect}'")
            if count < ALWAYS:
                raise ValueError(f"'{effect}' is a count or ALWAYS, not {count}")
        if delay < 0:
            raise ValueError(f"'delay' is a number of seconds, not {delay}")
        with self._changing() as knobs:
            knobs[operation] = Knob(delay, fail, ignore)

    def reset(self) -> None:
        """Turn all knobs off."""
        with self._changing() as knobs:
            knobs.clear()

    def obey(self, operation: str) -> bool:
        """Wait as ordered; return whether the operation shall do its work.

        Raises OrderedFault when it shall fail. Called by the drivers, once per operation.
        """
        with self._changing() as knobs:
            knob = knobs.get(operation, Knob())
            if knob.fail > 0:
                knobs[operation] = replace(knob, fail=knob.fail - 1)
            elif knob.ignore > 0 and not knob.fail:
                knobs[operation] = replace(knob, ignore=knob.ignore - 1)
        time.sleep(knob.delay)
        if knob.fail:
            raise OrderedFault(f"{operation} fails as ordered in {self.path}")
        return not knob.ignore

    @contextmanager
    def _changing(self) -> Iterator[dict[str, Knob]]:
        with self.path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            before = self.all()
            knobs = dict(before)
            yield knobs
            if knobs != before:
                settings = {operation: asdict(knob) for operation, knob in knobs.items()}
                write_atomically(self.path, json.dumps(settings, indent=2) + "\n")
