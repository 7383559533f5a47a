"""What may have become of a request, and how long to go on asking.

A request that changes something is never sent a second time before looking whether the first one
was carried out: an answer that got lost is not a request that got lost. So three outcomes are kept
apart: it was refused as a whole (409, 429: send it again), it surely never arrived (``Unsent``: the
same), and nobody knows (``Unanswered``: look first).
"""

import asyncio
import email.utils
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from volferry.errors import Retry


@dataclass(frozen=True)
class Answer:
    """An HTTP answer of a service, whatever its status."""

    status: int
    body: Any = None
    fault: str = ""
    """The service's own words about what is wrong, on one line; empty below 400."""
    fault_name: str = ""
    """Such as ``overLimit``, the key around the words."""
    retry_after_s: float | None = None
    request_id: str = ""


class Unsent(Retry):
    """The service surely never saw the request: no connection, no name, refused."""


class Unanswered(Retry):
    """The request was sent and its answer never came; it may have been carried out."""


Verdict = Literal["ok", "again", "unknown", "final"]


def judge(answer: Answer) -> Verdict:
    """What an answer says about its request.

    ``again``: not carried out, worth another try. ``unknown``: may have been carried out.
    """
    if answer.status < 400:
        return "ok"
    if answer.status in (409, 429) or rate_limited(answer):
        # Nova and Cinder answer 409 before they touch anything (a task state, a conditional
        # update that lost); a locked server stays so until a person unlocks it.
        return "final" if "is locked" in answer.fault else "again"
    if answer.status in (408, 500, 502, 503, 504):
        return "unknown"
    return "final"


def rate_limited(answer: Answer) -> bool:
    """413 is Cinder's word for an exceeded quota, and of old for too many requests as well.

    Only the latter comes from the rate limiting middleware, as ``overLimitFault``
    (cinder/api/openstack/wsgi.py, RateLimitFault).
    """
    return answer.status == 413 and answer.fault_name == "overLimitFault"


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Seconds of a Retry-After header, given as a number or as a date (RFC 9110, 10.2.3)."""
    value = headers.get("Retry-After", "").strip()
    if not value:
        return None
    if value.isdigit():
        return float(value)
    try:
        when = email.utils.parsedate_to_datetime(value)
    except ValueError:
        return None
    if when.tzinfo is None:
        when = when.replace(tzinfo=UTC)
    return max(0.0, (when - datetime.now(UTC)).total_seconds())


@dataclass(frozen=True)
class Patience:
    """How long one verb goes on by itself; after that the engine decides. Seconds."""

    budget_s: float = 60.0
    first_s: float = 0.5
    longest_s: float = 10.0
    sure_s: float = 15.0
    """How long a lost request is looked for before it counts as never carried out."""
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    now: Callable[[], float] = time.monotonic

    def begin(self) -> "Budget":
        return Budget(self, self.now() + self.budget_s, self.first_s)


@dataclass
class Budget:
    patience: Patience
    ends_at: float
    next_s: float
    spent: int = field(default=0)
    """How often it was paused so far."""

    async def pause(self, error: Retry, retry_after_s: float | None = None) -> None:
        """Sleep before the next try; raise ``error`` when the budget does not reach that far."""
        wait_s = self.next_s * random.uniform(0.5, 1.0)  # noqa: S311 - spreads load, guards nothing
        if retry_after_s is not None:
            # Never before the time that the service asked for; jitter comes on top.
            wait_s = retry_after_s + wait_s * 0.2
        if self.patience.now() + wait_s > self.ends_at:
            if "(--answer-timeout)" not in error.what:
                error.what += f"; asked for {self.patience.budget_s:g} s (--answer-timeout)"
            raise error
        self.next_s = min(self.next_s * 2, self.patience.longest_s)
        self.spent += 1
        await self.patience.sleep(wait_s)
