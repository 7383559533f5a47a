"""What this transfer was told of its switches, for when the guest cannot be asked any more."""

from dataclasses import dataclass
from typing import Literal

from volferry.model import Json
from volferry.steps.step import Context


@dataclass(frozen=True)
class Heard:
    """The last switch that was begun, a cutover or a way back, as far as it was heard of."""

    begun: Literal["cutover", "cutback"]
    live: str
    """The side that it ended on; empty when its end was never heard."""
    cutover: Json
    """The outcome of the cutover, of the one that a way back undoes too; empty as ``live``."""


def heard(ctx: Context) -> Heard | None:
    """None when no cutover was begun."""
    last: Heard | None = None
    for event in ctx.line.events():
        if event.kind == "cutover":
            last = Heard("cutover", "", {})
        elif event.kind == "cutback":
            last = Heard("cutback", "", event.facts["cutover"])
        elif event.kind == "outcome" and last:
            cutover = event.facts if last.begun == "cutover" else last.cutover
            last = Heard(last.begun, event.facts["live"], cutover)
    return last
