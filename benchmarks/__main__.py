"""``make bench``: what the README's figures come from. ``python -m benchmarks [PART…]`` for some.

Each part measures side by side in one run and gives a flat dictionary; ``build/bench.json`` holds
what was measured last, over all parts. Machines are noisy: quote ratios, and from one run.
"""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import copying, cost, downtime, in_lab, memory

RESULT = Path("build/bench.json")
PARTS: dict[str, Callable[[], dict[str, Any]]] = {
    "downtime": downtime.measure,
    "copy": copying.measure,
    "cost": cost.measure,
    "memory": memory.measure,
    "lab": in_lab.main,
}
WANTED = {
    "by_hand_over_mirror": ("at least", 30.0),
    "ten_times_files": ("at most", 1.5),
    "ten_times_file": ("at most", 1.5),
    "mirror_over_limit": ("at most", 1.5),
    "limited_mirror_over_limit": ("at most", 1.5),
    "first_copy_over_dd": ("at least", 0.85),
    "verification_over_dd": ("at least", 0.70),
    "cost_tracking": ("at most", 0.01),
    "cost_syncing": ("at most", 0.05),
    "limited_cost_tracking": ("at most", 0.01),
    "limited_cost_syncing": ("at most", 0.05),
    "agent_mib": ("at most", 100.0),
    "controller_mib": ("at most", 150.0),
}
"""What issue and README ask of a figure; a miss is shown, and fails nothing."""


def main() -> int:
    names = sys.argv[1:] or list(PARTS)
    unknown = [name for name in names if name not in PARTS]
    if unknown:
        print(f"there is no part {', '.join(unknown)}, only {', '.join(PARTS)}", file=sys.stderr)
        return 2
    figures: dict[str, Any] = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    for name in names:
        print(f"bench: {name}, load {os.getloadavg()[0]:.1f}", file=sys.stderr, flush=True)
        figures.update(PARTS[name]())
        RESULT.parent.mkdir(exist_ok=True)
        RESULT.write_text(json.dumps(figures, indent=2) + "\n")
    show(figures)
    return 0


def show(figures: dict[str, Any]) -> None:
    table = Table("figure", "measured", "wanted")
    for name, value in figures.items():
        if isinstance(value, dict | list):
            continue
        how, bound = WANTED.get(name, ("", 0.0))
        fine = not how or (value >= bound if how == "at least" else value <= bound)
        table.add_row(
            name, f"{value}{'' if fine else '  MISSED'}", f"{how} {bound:g}" if how else ""
        )
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
