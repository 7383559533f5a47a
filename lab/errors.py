"""The one error of the lab: three lines, for a person."""

from __future__ import annotations


class LabError(Exception):
    """Something the lab needs is not so.

    `happened` has the measured values, `meaning` what follows from it, `hint` what to do.
    """

    def __init__(self, happened: str, meaning: str, hint: str) -> None:
        super().__init__(happened)
        self.happened = happened
        self.meaning = meaning
        self.hint = hint

    def __str__(self) -> str:
        return f"error: {self.happened}\n  {self.meaning}\nhint: {self.hint}"
