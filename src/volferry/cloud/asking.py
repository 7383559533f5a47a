"""One question to a service, asked until there is a final answer; and its refusal in our words.

What is sent twice is only what can be sent twice. After a lost answer ``once`` looks again before
it asks a second time.
"""

from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, Literal, Protocol, TypeAlias, TypeVar
from urllib.parse import quote

from volferry.cloud import nouns
from volferry.cloud.retries import (
    Answer,
    Budget,
    Patience,
    Unanswered,
    judge,
    rate_limited,
)
from volferry.cloud.threads import within
from volferry.cloud.verbs import TypeNotReachable
from volferry.errors import NotFound, Retry, Stop, VolferryError
from volferry.model import Quota

Service: TypeAlias = Literal["compute", "block-storage"]
T = TypeVar("T")

PAGE = 1000
"""Objects per list request; ``osapi_max_limit`` and ``max_limit`` are 1000 by default."""


WHOLE = 2
"""A whole answer in so many --answer-timeout, which bounds each read of it: there may be another
token to fetch before it."""


class Wire(Protocol):
    """What ``session.Session`` does; a test's stand-in does the same without a network."""

    cloud: str
    region: str
    project_id: str

    @property
    def api_calls(self) -> int: ...

    def version(self, service: Service) -> str: ...

    def supports(self, service: Service, version: tuple[int, int]) -> bool: ...

    def request(
        self,
        service: Service,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
    ) -> Answer: ...

    def close(self) -> None: ...


class Asking:
    """The requests of one project, with one patience."""

    def __init__(self, wire: Wire, patience: Patience) -> None:
        self._wire = wire
        self._patience = patience
        # Whoever asked before us may have died with a request under way.
        self._sure_at = patience.now() + patience.sure_s

    def sure_in_s(self) -> float:
        """See ``CloudVerbs.sure_in_s``."""
        return max(0.0, self._sure_at - self._patience.now())

    async def get(
        self, service: Service, path: str, key: str, params: Mapping[str, str] | None = None
    ) -> Any:
        answer = await self.send(service, "GET", path, params=params, what=f"read {path[1:]}")
        return field(answer, key, service)

    async def list(self, service: Service, path: str, key: str = "") -> list[dict[str, Any]]:
        """All of them, page by page.

        Never filtered by the service: an operator's resource_filters.json can switch a filter off,
        and it is then ignored or refused, depending on the microversion.
        """
        key = key or path.split("/")[1]
        every: list[dict[str, Any]] = []
        while True:
            params = {"limit": str(PAGE)}
            if every:
                params["marker"] = every[-1]["id"]
            answer = await self.send(
                service, "GET", path, params=params, what=f"list {path.split('/')[1]}"
            )
            page = field(answer, key, service)
            every += page
            links = answer.body.get(f"{key}_links", ())
            if not page or not any(link.get("rel") == "next" for link in links):
                return every

    async def delete(
        self, service: Service, path: str, *, find: Callable[[], Awaitable[bool | None]], what: str
    ) -> None:
        """Delete unless ``find`` says that it is gone or going: Cinder refuses a second time."""

        async def post() -> bool:
            try:
                await self.send(service, "DELETE", path, what=what, repeatable=False)
            except NotFound:
                return True
            return True

        await self.once(find, post)

    async def once(
        self, find: Callable[[], Awaitable[T | None]], post: Callable[[], Awaitable[T]]
    ) -> T:
        """Make what ``find`` does not find, and look again before asking a second time."""
        budget = self._patience.begin()
        found = await find()
        while found is None:
            try:
                made = await post()
            except Unanswered as lost:
                found = await self._look_for(find, budget, lost)
                continue
            if budget.spent:
                # The first request may have been slow instead of lost: then there are two now,
                # and ``find`` says so.
                await find()
            return made
        return found

    async def _look_for(
        self, find: Callable[[], Awaitable[T | None]], budget: Budget, lost: Unanswered
    ) -> T | None:
        """Go on looking for what a lost request may have done; None when it surely did nothing.

        One look is not enough: a load balancer gives up on a request that the service still works
        on, and a database replica shows what was before.
        """
        patience = self._patience
        self._sure_at = patience.now() + patience.sure_s
        while True:
            await budget.pause(lost)
            found = await find()
            if found is not None or not self.sure_in_s():
                return found

    async def send(
        self,
        service: Service,
        method: str,
        path: str,
        *,
        what: str,
        params: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
        repeatable: bool | None = None,
    ) -> Answer:
        """Ask until there is a final answer or patience ends.

        What is not repeatable raises ``Unanswered`` as soon as it may have been carried out.
        """
        again = method in ("GET", "PUT") if repeatable is None else repeatable
        budget = self._patience.begin()
        while True:
            wait_s = None
            try:
                answer = await self._answer(service, method, path, params, body)
            except Unanswered as lost:
                if not again:
                    raise
                problem: Retry = lost
            except Retry as never:  # it cannot be sent: nobody there, or no token from Keystone
                problem = never
            else:
                verdict = judge(answer)
                if verdict == "ok":
                    return answer
                if verdict == "final":
                    raise await self._refused(service, method, what, answer)
                problem, wait_s = _busy(service, what, answer, verdict), answer.retry_after_s
                if isinstance(problem, Unanswered) and not again:
                    raise problem
            await budget.pause(problem, wait_s)

    async def _answer(
        self,
        service: Service,
        method: str,
        path: str,
        params: Mapping[str, str] | None,
        body: Mapping[str, Any] | None,
    ) -> Answer:
        limit_s = WHOLE * self._patience.budget_s
        request = partial(self._wire.request, service, method, path, params=params, body=body)
        try:
            return await within(limit_s, request)
        except TimeoutError:
            raise Unanswered(
                f"{service} gave no whole answer to: {method} {path} within {limit_s:g} s, "
                f"{WHOLE} times what each read of it has (--answer-timeout)",
                data="the request may have been carried out",
                hint="check the network, and what lies between here and the cloud",
            ) from None

    async def _refused(
        self, service: Service, method: str, what: str, answer: Answer
    ) -> VolferryError:
        """The error for an answer that will stay the same when asked again."""
        told = f"cannot {what}: {answer.fault} (HTTP {answer.status})"
        where = _request(service, answer)
        if answer.status == 404:
            return NotFound(told, data=where)
        if "requested type is not compatible" in answer.fault:
            return TypeNotReachable(
                told,
                data=_lines("nothing was created", where),
                hint="create it with the snapshot's type and retype it, or use --seed blank",
            )
        if method == "POST" and _over_quota(answer):
            quota, _ = await self.quota() if service == "block-storage" else (None, "")
            return Stop(
                told,
                data=_lines(f"nothing was created{_figures(quota)}", where),
                hint="delete what is no longer needed, or ask the cloud's operator for more quota",
            )
        if answer.status == 403:
            return Stop(
                told,
                data=where,
                hint="volferry needs the role 'member' in the project and no more",
            )
        return Stop(told, data=where)

    async def quota(self) -> tuple[Quota | None, str]:
        path = f"/os-quota-sets/{url_id(self._wire.project_id)}"
        try:
            raw = await self.get("block-storage", path, "quota_set", params={"usage": "true"})
        except (Stop, NotFound) as refused:
            return None, refused.what
        return nouns.quota(raw), ""


def made(answer: Answer, key: str, service: Service) -> Any:
    """What a request has made. Raises ``Unanswered`` where the answer does not say: whether the
    proxy that answered in the service's place passed the request on nobody knows."""
    try:
        return field(answer, key, service)
    except Retry as nothing:
        lost = "the request may have been carried out"
        raise Unanswered(nothing.what, data=lost, hint=nothing.hint) from None


def field(answer: Answer, key: str, service: Service) -> Any:
    """What the answer holds under ``key``; a proxy may have answered in the service's place."""
    if isinstance(answer.body, dict) and key in answer.body:
        return answer.body[key]
    raise Retry(
        f"{service} answered HTTP {answer.status} without '{key}'",
        hint="something between here and the cloud answers in its place; try again later",
    )


def _busy(service: Service, what: str, answer: Answer, verdict: str) -> Retry:
    kind = Unanswered if verdict == "unknown" else Retry
    asked = (
        f"; it asks to wait {answer.retry_after_s:g} s" if answer.retry_after_s is not None else ""
    )
    return kind(
        f"{service} did not {what}: {answer.fault} (HTTP {answer.status}{asked})",
        data=_lines(
            "the request may have been carried out" if verdict == "unknown" else "",
            _request(service, answer),
        ),
        hint="try again later",
    )


def _request(service: Service, answer: Answer) -> str:
    """What an operator of the cloud asks for."""
    return f"request {answer.request_id} to {service}" if answer.request_id else ""


def _lines(*parts: str) -> str:
    return "\n".join(part for part in parts if part)


def _over_quota(answer: Answer) -> bool:
    if answer.status == 413:
        return not rate_limited(answer)
    return answer.status == 403 and "quota exceeded" in answer.fault.lower()


def _figures(quota: Quota | None) -> str:
    """The quotas that are limited, fullest first."""
    if quota is None:
        return ""
    limited = [(k, quota.used.get(k, 0), limit) for k, limit in quota.limits.items() if limit > 0]
    limited.sort(key=lambda q: q[1] / q[2], reverse=True)
    return "".join(f"\nquota {key}: {used} of {limit} used" for key, used, limit in limited[:6])


def url_id(value: str) -> str:
    return quote(value, safe="")
