"""What the sweeps have seen: ``python tests/crash/tally.py`` says it in one line."""

import dataclasses
import json
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

    def write(self) -> None:
        FILE.parent.mkdir(exist_ok=True)
        FILE.write_text(json.dumps(dataclasses.asdict(self), indent=2) + "\n")


if __name__ == "__main__":
    print(Tally(**json.loads(FILE.read_text())))
