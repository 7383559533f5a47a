"""Everything that can go wrong, in the words the operator reads.

An error is three things: what happened (measured and expected values), what it means for the data,
and what to do. They are kept apart so that every output format can show all of them and none can
forget one. Secrets never enter an error.

Failing is of two kinds: ``Retry`` (not now: a transport fault, a conflict, a busy service) is tried
again by the engine until the step's deadline; everything else stops the transfer where it is, with
all its receipts, and can be resumed. Errors of libraries are translated where they enter.
"""

from typing import ClassVar


class VolferryError(Exception):
    """A failure that an operator can act on; shown without a traceback.

    ``what`` is one line in lower case without a full stop; ``data`` says what it means for the
    data; ``hint`` holds the commands or actions that go on from here, one per line.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, what: str, *, data: str = "", hint: str = "") -> None:
        super().__init__(what)
        self.what, self.data, self.hint = what, data, hint

    def with_hint(self, hint: str) -> "VolferryError":
        """The same error with ``hint`` in front of what it already advises."""
        self.hint = "\n".join(part for part in (hint, self.hint) if part)
        return self


class Retry(VolferryError):
    """Not now, but trying again is likely to work."""


class Stop(VolferryError):
    """The transfer cannot go on by itself; what was done is kept and can be resumed."""


class Paused(Stop):
    """The operator asked for it; the transfer stands at a safe point."""


class Doubt(Stop):
    """The world is not what the journal says: never guess, never continue past it."""


class Refused(VolferryError):
    """Asked for something that must not or cannot be done; nothing was changed."""


class NoWayBack(Refused):
    """Somebody took away what going back needs. Going forward ends the transfer."""


class Usage(VolferryError):
    """The command line, a name or a plan file is wrong; nothing was changed."""

    exit_code = 2


class NeedsConsent(VolferryError):
    """Going on would lose data, so a person has to say yes."""

    exit_code = 3


class SomeFailed(VolferryError):
    """Some of several transfers failed."""

    exit_code = 4


class NotFound(VolferryError):
    """The cloud does not know this object (any more)."""

    exit_code = 2
