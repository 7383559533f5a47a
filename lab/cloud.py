"""The OpenStack API over plain HTTP, as far as the lab itself needs it.

openstacksdk would do, but it is in the services' venv only and takes a second to import.
"""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from typing import Any

from lab.errors import LabError
from lab.layout import Layout

# The newest that the pinned services have, so that answers have all fields.
_MICROVERSIONS = {
    "compute": {"OpenStack-API-Version": "compute 2.93"},
    "block-storage": {"OpenStack-API-Version": "volume 3.70"},
}

_ATTEMPTS = 3


class Refused(LabError):
    """The cloud answered a request with an HTTP error."""

    def __init__(self, method: str, url: str, code: int, text: str) -> None:
        super().__init__(
            f"{method} {url} was answered with HTTP {code}: {text[:300]}",
            "nothing more was done",
            "`python3 -m lab status` says where the services' logs are",
        )
        self.code = code


class Cloud:
    """A user's view of the lab's cloud."""

    def __init__(self, layout: Layout, user: str, password: str, project: str) -> None:
        self.layout = layout
        self._user, self._password, self._project = user, password, project
        self._token = ""
        self._endpoints: dict[str, str] = {}
        self.project_id = self._user_id = ""

    @classmethod
    def admin(cls, layout: Layout) -> Cloud:
        return cls(layout, "admin", layout.secret("admin"), "admin")

    @classmethod
    def member(cls, layout: Layout) -> Cloud:
        return cls(layout, "demo", layout.secret("demo"), "demo")

    @property
    def user_id(self) -> str:
        if not self._user_id:
            self._log_in(timeout_s=60)
        return self._user_id

    def get(self, service: str, path: str) -> Any:
        return self.request("GET", service, path)

    def post(self, service: str, path: str, body: Mapping[str, object]) -> Any:
        return self.request("POST", service, path, body)

    def request(
        self,
        method: str,
        service: str,
        path: str,
        body: Mapping[str, object] | bytes | None = None,
        timeout_s: float = 60,
    ) -> Any:
        """Send a request to a service and return the parsed answer. Raises Refused."""
        if not self._token:
            self._log_in(timeout_s)
        if service == "identity":
            url = f"{self.layout.url('keystone')}/v3{path}"
        else:
            url = self._endpoints[service].rstrip("/") + path
        for attempt in range(_ATTEMPTS):
            headers = {"X-Auth-Token": self._token, **_MICROVERSIONS.get(service, {})}
            try:
                return _exchange(method, url, headers, body, timeout_s)[0]
            except Refused as refusal:
                if attempt == _ATTEMPTS - 1:
                    raise
                if refusal.code == 401:  # a token lives for an hour, a run of all tests may as well
                    self._log_in(timeout_s)
                elif method == "GET" and refusal.code >= 500:
                    time.sleep(1)
                else:
                    raise
        raise AssertionError("the last attempt returns or raises")

    def _log_in(self, timeout_s: float) -> None:
        domain = {"id": "default"}
        user = {"name": self._user, "password": self._password, "domain": domain}
        body = {
            "auth": {
                "identity": {"methods": ["password"], "password": {"user": user}},
                "scope": {"project": {"name": self._project, "domain": domain}},
            }
        }
        url = f"{self.layout.url('keystone')}/v3/auth/tokens"
        answer, headers = _exchange("POST", url, {}, body, timeout_s)
        self._token = headers["X-Subject-Token"]
        self.project_id = answer["token"]["project"]["id"]
        self._user_id = answer["token"]["user"]["id"]
        self._endpoints = {
            service["type"]: service["endpoints"][0]["url"]
            for service in answer["token"]["catalog"]
            if service["endpoints"]
        }


def answers(url: str, timeout_s: float = 5) -> bool:
    """Say whether an HTTP server answers there, with whatever status."""
    try:
        urllib.request.urlopen(url, timeout=timeout_s).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


def wait_for(
    what: str,
    look: Callable[[], Any],
    done: Callable[[Any], bool],
    timeout_s: float,
    hint: str,
    *,
    hopeless: Callable[[Any], bool] = lambda _: False,
) -> Any:
    """Call `look` until `done` accepts what it returns, and return that.

    Raises LabError with the last value after `timeout_s`, or as soon as it is `hopeless`.
    """
    began = time.monotonic()
    while True:
        seen = look()
        if done(seen):
            return seen
        waited = time.monotonic() - began
        if hopeless(seen) or waited > timeout_s:
            raise LabError(
                f"waited {waited:.0f} s of {timeout_s:.0f} s until {what}; last seen:"
                f" {str(seen)[:200]}",
                "the lab did not come to the state that was asked for; what was made stays",
                hint,
            )
        time.sleep(0.3)


def _exchange(
    method: str,
    url: str,
    headers: Mapping[str, str],
    body: Mapping[str, object] | bytes | None,
    timeout_s: float,
) -> tuple[Any, Mapping[str, str]]:
    raw = isinstance(body, bytes)
    data = body if raw or body is None else json.dumps(body).encode()
    kind = "application/octet-stream" if raw else "application/json"
    request = urllib.request.Request(
        url,
        data=data,  # type: ignore[arg-type]
        method=method,
        headers={"Content-Type": kind, "Accept": "application/json", **headers},
    )
    try:
        with urllib.request.urlopen(request, timeout=timeout_s) as answer:
            text = answer.read()
            return (json.loads(text) if text else None), answer.headers
    except urllib.error.HTTPError as refusal:
        message = refusal.read().decode(errors="replace")
        raise Refused(method, url, refusal.code, message) from refusal
    except OSError as failure:
        raise LabError(
            f"{method} {url} was not answered: {failure}",
            "the lab is not up, or not wholly",
            "`python3 -m lab up` brings it up, `python3 -m lab status` says what runs",
        ) from failure
