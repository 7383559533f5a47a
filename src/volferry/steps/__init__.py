"""The transfer, told in order. Read ``SEQUENCE`` first, then any step: one file each.

A step's file says what it does, how a crash in the middle of it is found out, and how it is taken
back. ``step.py`` has what they share.

Each step is done for every pair of the plan before the next one begins, so that going back is
free for all of them until the one cutover, and after it none is left behind.
"""

from volferry.steps.attach import Attach
from volferry.steps.cutover import Cutover
from volferry.steps.detach import Detach
from volferry.steps.install import Install
from volferry.steps.prepare import Prepare
from volferry.steps.protect import Protect
from volferry.steps.quarantine import Quarantine
from volferry.steps.retype import Retype
from volferry.steps.snapshot import TakeSnapshot
from volferry.steps.step import Context, Held, Phase, Step, Undo
from volferry.steps.sync import Sync
from volferry.steps.target import Target
from volferry.steps.tidy import Tidy
from volferry.steps.track import Track

SEQUENCE: tuple[Step, ...] = (
    Install(),      # the agent is in the guest and has claimed the sources
    Track(),        # before the snapshots, for a method that copies by what was written since
    TakeSnapshot(),
    Target(),       # from its snapshot, or blank
    Retype(),       # while it is detached, when its type has to change
    Quarantine(),   # before the guest can see it
    Attach(),
    Prepare(),      # a filesystem that can be mounted beside the source
    Sync(),         # passes while the service runs, until everything has been compared
    Cutover(),      # waits for its gate; the guest does it and takes it back by itself
    Detach(),
    Protect(),      # the sources, read-only
    Tidy(),         # nothing of ours stays
)  # fmt: skip

PHASES: tuple[Phase, ...] = ("plan", "seed", "attach", "sync", "cutover", "finish")

__all__ = ["PHASES", "SEQUENCE", "Context", "Held", "Phase", "Step", "Undo"]
