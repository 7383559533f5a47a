"""A proxy that hurts, between a client and any OpenStack.

The client is sent through it by ``http_proxy``, so the catalogue's addresses stay what they are and
one proxy stands in front of all services, those of a stand-in and those of the lab alike.

    with Proxy() as proxy:
        proxy.order("cut after", "POST", r"/snapshots$")        # the next such request
        proxy.order("503", "GET", times=3)
        ... run something with the environment proxy.environment ...
        proxy.met["cut after"]                                  # how often it happened

``before`` is before the service has seen the request, ``after`` is when its effect has taken place:
the service answered, and the client never hears of it.
"""

import asyncio
import contextlib
import http.client
import json
import re
import time
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

from tests.faults.loopback import Loopback

HOP_BY_HOP = {"connection", "proxy-connection", "keep-alive", "transfer-encoding", "content-length"}
UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f-]{27}")


@dataclass(frozen=True)
class Fault:
    """What becomes of one request."""

    what: Literal["answer", "cut", "silence", "slow", "nothing"]
    after: bool = False
    status: int = 0
    retry_after_s: int | None = None
    seconds: float = 0.0
    """``slow``: how late the answer comes."""
    stale_s: float = 0.0
    """What is read in this time after the effect is what was read before it."""
    late_s: float = 0.0
    """The service gets the request only then; the client may have given up long before."""


FAULTS: dict[str, Fault] = {
    "429": Fault("answer", status=429, retry_after_s=1),
    **{str(code): Fault("answer", status=code) for code in (500, 502, 503, 504)},
    **{f"{code} after": Fault("answer", True, code) for code in (500, 502, 503, 504)},
    "expired token": Fault("answer", status=401),
    "cut before": Fault("cut"),
    "cut after": Fault("cut", True),
    "silence before": Fault("silence"),
    "silence after": Fault("silence", True),
    "late effect": Fault("silence", True, late_s=5),
    "slow": Fault("slow", seconds=0.8),
    "stale reads": Fault("nothing", stale_s=5),
    "cut after, then stale reads": Fault("cut", True, stale_s=5),
}


@dataclass
class Order:
    """The next ``times`` requests that fit meet the fault; -1 is for ever."""

    name: str
    fault: Fault
    method: str
    path: re.Pattern[str]
    times: int

    def fits(self, method: str, path: str) -> bool:
        fits_it = self.method in ("", method) and self.path.search(path) is not None
        return self.times != 0 and fits_it


@dataclass(frozen=True)
class Request:
    method: str
    url: str
    headers: dict[str, str]
    body: bytes

    @property
    def path(self) -> str:
        return urlsplit(self.url).path


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes


class Proxy(Loopback):
    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self.now = now
        self.met: Counter[str] = Counter()
        self.request_ids: list[str] = []
        """Of the answers that the proxy gave in a service's name."""
        self.chance: Callable[[str, str], str] = lambda method, path: ""
        """Names the fault of a request that no order fits; for faults at random."""
        self._orders: list[Order] = []
        self._seen: dict[str, Answer] = {}
        self._new: set[str] = set()
        """Ids that stale reads do not know yet."""
        self._stale_until = -1.0
        self._passing = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """Sends a client that heeds it through this proxy; ``requests`` does."""
        return {"http_proxy": self.url, "no_proxy": ""}

    def order(self, name: str, method: str = "", path: str = "", times: int = 1) -> None:
        self._orders.append(Order(name, FAULTS[name], method, re.compile(path), times))

    def reset(self) -> None:
        """As new, once what is on its way to the services has arrived there."""
        self._orders.clear()
        while self._passing:
            time.sleep(0.002)
        self._seen.clear()
        self._stale_until = -1.0

    # ---- one request -----------------------------------------------------------------------------

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        lost = (OSError, asyncio.IncompleteReadError, http.client.HTTPException)
        try:
            with contextlib.suppress(*lost):
                request = await _read(reader)
                name, fault = self._fault_of(request)
                if name:
                    self.met[name] += 1
                self._passing += 1
                try:
                    answer = await self._answer(request, fault)
                finally:
                    self._passing -= 1
                if fault.what == "silence":
                    await reader.read()  # until the client gives up
                elif answer is not None:
                    writer.write(_written(answer))
                    await writer.drain()
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _answer(self, request: Request, fault: Fault) -> Answer | None:
        """None: there is none, and the connection is cut."""
        answer = None
        if fault.after or fault.what in ("slow", "nothing"):
            await asyncio.sleep(fault.seconds)
            due = self.now() + fault.late_s
            while self.now() < due:
                await asyncio.sleep(0.002)
            answer = self._from_memory(request) or await self._pass_on(request)
            if fault.stale_s:
                self._stale_until = self.now() + fault.stale_s
                self._new = _made(request, answer)
        if fault.what == "cut":
            return None
        return self._in_its_name(fault) if fault.what == "answer" else answer

    def _fault_of(self, request: Request) -> tuple[str, Fault]:
        for order in self._orders:
            if order.fits(request.method, request.path):
                order.times -= 1 if order.times > 0 else 0
                return order.name, order.fault
        name = self.chance(request.method, request.path)
        return (name, FAULTS[name]) if name else ("", Fault("nothing"))

    def _from_memory(self, request: Request) -> Answer | None:
        if request.method != "GET" or self.now() >= self._stale_until:
            return None
        if self._new & set(UUID.findall(request.path)):
            missing = {"itemNotFound": {"code": 404, "message": "It could not be found."}}
            return _json(404, missing)
        return self._seen.get(request.url)

    async def _pass_on(self, request: Request) -> Answer:
        answer = await asyncio.to_thread(_ask, request)
        if request.method == "GET":
            self._seen[request.url] = answer
        return answer

    def _in_its_name(self, fault: Fault) -> Answer:
        """A load balancer answers 502 and 504 itself, in HTML; the others carry a request id."""
        if fault.status in (502, 504):
            page = f"<html><h1>{fault.status} {http.client.responses[fault.status]}</h1></html>"
            return Answer(fault.status, {"Content-Type": "text/html"}, page.encode())
        said = {"code": fault.status, "message": "injected by the proxy"}
        answer = _json(fault.status, {"computeFault": said})
        self.request_ids.append(f"req-{uuid.uuid4()}")
        answer.headers["x-openstack-request-id"] = self.request_ids[-1]
        if fault.retry_after_s is not None:
            answer.headers["Retry-After"] = str(fault.retry_after_s)
        return answer


# ---- HTTP ----------------------------------------------------------------------------------------


async def _read(reader: asyncio.StreamReader) -> Request:
    first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    method, url, _version = first.split(" ")
    headers = {k: v.strip() for k, _, v in (line.partition(":") for line in lines if line)}
    length = next((int(v) for k, v in headers.items() if k.lower() == "content-length"), 0)
    return Request(method, url, headers, await reader.readexactly(length))


def _ask(request: Request) -> Answer:
    there = urlsplit(request.url)
    connection = http.client.HTTPConnection(there.hostname or "", there.port, timeout=120)
    try:
        target = there.path + (f"?{there.query}" if there.query else "")
        connection.request(request.method, target, request.body or None, _kept(request.headers))
        response = connection.getresponse()
        return Answer(response.status, _kept(dict(response.getheaders())), response.read())
    finally:
        connection.close()


def _made(request: Request, answer: Answer) -> set[str]:
    """The id of what this request has made."""
    kind = request.path.rpartition("/")[2].removesuffix("s")
    if request.method != "POST" or kind not in ("volume", "snapshot"):
        return set()
    return {json.loads(answer.body)[kind]["id"]}


def _kept(headers: dict[str, str]) -> dict[str, str]:
    return {k: v for k, v in headers.items() if k.lower() not in HOP_BY_HOP}


def _json(status: int, body: object) -> Answer:
    return Answer(status, {"Content-Type": "application/json"}, json.dumps(body).encode())


def _written(answer: Answer) -> bytes:
    reason = http.client.responses.get(answer.status, "")
    length = {} if answer.status in (204, 304) else {"Content-Length": str(len(answer.body))}
    headers = {**answer.headers, **length, "Connection": "close"}
    head = [f"HTTP/1.1 {answer.status} {reason}", *(f"{k}: {v}" for k, v in headers.items())]
    return "\r\n".join(head).encode("latin-1") + b"\r\n\r\n" + answer.body
