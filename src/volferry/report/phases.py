"""The six phases, and which of them an event belongs to."""

from volferry.model import Event

PHASES = ("plan", "seed", "attach", "sync", "cutover", "finish")

PHASE_OF = {
    "install": "seed",
    "track": "seed",
    "snapshot": "seed",
    "target": "seed",
    "retype": "seed",
    "quarantine": "attach",
    "attach": "attach",
    "prepare": "attach",
    "sync": "sync",
    "cutover": "cutover",
    "detach": "finish",
    "protect": "finish",
    "tidy": "finish",
}
"""Kept here too: importing the steps would load the program that carries them."""


def phase_of(event: Event) -> str:
    """The phase an event belongs to, by what it says of itself, else by its step."""
    said = event.facts.get("phase") or (event.facts.get("name") if event.kind == "phase" else "")
    return str(said or PHASE_OF.get(event.step, ""))
