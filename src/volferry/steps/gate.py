"""When the cutover may begin. Pure: what is wanted, what is predicted, what time it is."""

import datetime as dt
from dataclasses import dataclass

from volferry.errors import Usage
from volferry.model import Prediction, Wanted


@dataclass(frozen=True)
class Decision:
    go: bool
    why: str
    """For the operator: what is waited for, or why it goes."""


def opens_at(gate: str) -> dt.datetime | None:
    """The time of ``at 2026-11-23T02:00+01:00``; None for ``auto`` and ``manual``.

    Raises ``Usage`` for anything else, and for a time without a zone: it was resolved when the plan
    was made, on a machine whose zone may differ from that of the one that carries it out.
    """
    if gate in ("auto", "manual"):
        return None
    text = gate.removeprefix("at ").removeprefix("at=").strip()
    try:
        moment = dt.datetime.fromisoformat(text)
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise Usage(
            f"'{gate}' is not a cutover gate",
            hint="auto, manual, or a time with its zone: --cutover 'at 2026-11-23T02:00+01:00'",
        )
    return moment


_DIVERGED = {
    "hold": (False, "holds"),
    "throttle-sync": (False, "copies without giving way to the service"),
    "cutover": (True, "cuts over all the same"),
}
"""Whether to go, and what is done."""


def decide(
    wanted: Wanted,
    prediction: Prediction,
    *,
    gains: bool,
    now: dt.datetime,
    asked: bool = False,
    asked_now: bool = False,
) -> Decision:
    """Whether to cut over. ``asked`` opens a manual or timed gate, ``asked_now`` every gate.

    ``gains``: further passes would still make the downtime shorter.
    """
    figures = f"predicted downtime {prediction.total_s:.1f} s, --max-downtime "
    figures += f"{wanted.max_downtime_s:g} s"
    if asked_now:
        return Decision(True, f"{figures}: goes now as asked")
    at = opens_at(wanted.cutover)
    if not asked and wanted.cutover == "manual":
        return Decision(False, f"{figures}: waits for 'volferry cutover'")
    if not asked and at is not None and now < at:
        return Decision(False, f"{figures}: waits until {at.isoformat(timespec='minutes')}")
    if prediction.total_s > wanted.max_downtime_s:
        longest = max(prediction.parts, key=lambda part: prediction.parts[part], default="")
        part = f", of which {longest} {prediction.parts[longest]:.1f} s" if longest else ""
        if gains:
            return Decision(False, f"{figures}: does not fit{part}; keeps syncing")
        go, then = _DIVERGED[wanted.on_divergence]
        why = f"{figures}: does not fit{part}, and passes gain nothing any more; {then}"
        return Decision(go, f"{why} (--on-divergence {wanted.on_divergence})")
    return Decision(True, f"{figures}: fits")
