"""Every test that the promises name is there."""

import re
from pathlib import Path

from volferry.steps import SEQUENCE

ROOT = Path(__file__).resolve().parents[2]
PROMISES = ROOT / "docs" / "promises.md"


def test_every_test_that_a_promise_names_exists() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", PROMISES.read_text())

    assert len(named) > 30
    missing = [
        f"{file}::{name}"
        for file, name in named
        if not (ROOT / file).is_file()
        or not re.search(rf"^(async )?def {name}\(", (ROOT / file).read_text(), re.MULTILINE)
    ]
    assert missing == []


def test_every_step_says_what_a_crash_in_it_leaves() -> None:
    rows = re.findall(r"^\| (\w+)[^|]*\|", PROMISES.read_text(), re.MULTILINE)

    assert [row for row in rows if row != "step"] == [step.name for step in SEQUENCE]
