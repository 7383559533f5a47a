"""What the sweeps have seen: ``python tests/crash/tally.py`` says it in one line.

With ``-n 2`` each process has sweeps of its own, so what one has seen is added to what others of
the same run have written before it.
"""

import dataclasses
import fcntl
import json
import os
from pathlib import Path

FILE = Path(__file__).resolve().parents[2] / "build" / "crash.json"


@dataclasses.dataclass
class Tally:
    points: int = 0
    """Moments at which the controller died."""
    resumed: int = 0
    """Lives after one that ended as if nothing had happened."""
    rolled_back: int = 0
    """Lives after one that left nothing."""

    def __str__(self) -> str:
        return f"{self.points} crash points, {self.resumed} resumed, {self.rolled_back} rolled back"

    def add_to(self, path: Path, run: str) -> None:
        """``run`` names the run: the tally of another one is replaced."""
        path.parent.mkdir(exist_ok=True)
        with path.open("a+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # a sum, which takes no time
            file.seek(0)
            text = file.read()
            before = json.loads(text) if text else {}
            mine = dataclasses.asdict(self)
            if before.get("run") == run:
                mine = {name: count + before[name] for name, count in mine.items()}
            file.truncate(0)
            file.write(json.dumps({"run": run, **mine}, indent=2) + "\n")

    @classmethod
    def of(cls, path: Path) -> "Tally":
        found = json.loads(path.read_text())
        return cls(**{field.name: found[field.name] for field in dataclasses.fields(cls)})


def this_run() -> str:
    """The same in all processes of one run of pytest."""
    return os.environ.get("PYTEST_XDIST_TESTRUNUID") or f"alone-{os.getpid()}-{os.urandom(4).hex()}"


if __name__ == "__main__":
    print(Tally.of(FILE))
