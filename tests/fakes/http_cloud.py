"""A small HTTP stand-in of keystone, nova and cinder, and how to connect to it.

A socket of its own, so that cut connections, refused ones and TLS are real.
"""

import asyncio
import http.server
import json
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from volferry.cloud import Cloud
from volferry.cloud.retries import Patience

SECRET = "correct horse battery staple"


@dataclass
class Reply:
    status: int = 200
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    cut: bool = False
    """Close the connection without an answer."""
    drips_s: float = 0.0
    """Between two bytes of the body."""
    effect: Callable[[Any], None] = lambda body: None
    """What the request does, before it is answered or cut."""


@dataclass
class Sent:
    method: str
    path: str
    body: Any
    headers: dict[str, str]


class StandIn:
    """Keystone, Nova and Cinder on one port; replies are scripted per method and path."""

    def __init__(self) -> None:
        self.compute: tuple[str, str] = ("2.1", "2.96")
        self.volume: tuple[str, str] = ("3.0", "3.71")
        self.regions = ["RegionOne"]
        self.scoped, self.project = True, "p1"
        self.is_keystone = True
        self.token_prefix = "token-"
        self.sent: list[Sent] = []
        self.all_requests = 0
        self.tokens = 0
        self.refused_tokens: set[str] = set()
        self.keystone_says: list[Reply] = []
        """To the next ones who ask for a token, before it gives any again."""
        self._script: dict[tuple[str, str], list[Reply]] = {}
        stand_in = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                stand_in.answer(self)

            do_POST = do_PUT = do_DELETE = do_GET

            def log_message(self, *args: Any) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def says(self, method: str, path: str, *replies: Reply) -> None:
        """Replies in order; the last one stays."""
        self._script[method, path] = list(replies)

    def posts(self, path: str) -> list[Sent]:
        return [s for s in self.sent if s.method == "POST" and s.path == path]

    def answer(self, handler: http.server.BaseHTTPRequestHandler) -> None:
        self.all_requests += 1
        length = int(handler.headers.get("Content-Length") or 0)
        body = json.loads(handler.rfile.read(length)) if length else None
        path = handler.path.split("?")[0]
        reply = self._identity(handler.command, path, body)
        if reply is None:
            token = handler.headers.get("X-Auth-Token") or ""
            self.sent.append(Sent(handler.command, path, body, dict(handler.headers)))
            if token in self.refused_tokens:
                reply = Reply(401, {"error": {"code": 401, "message": "expired"}})
            else:
                reply = self.reply(handler.command, path, body)
        reply.effect(body)
        if reply.cut:
            handler.close_connection = True
            handler.connection.shutdown(socket.SHUT_RDWR)
            return
        data = reply.body if isinstance(reply.body, str) else json.dumps(reply.body)
        kind = "text/html" if isinstance(reply.body, str) else "application/json"
        raw = b"" if reply.body is None else data.encode()
        handler.send_response(reply.status)
        for name, value in {"Content-Type": kind, **reply.headers}.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(raw)))
        handler.end_headers()
        for piece in [raw[i : i + 1] for i in range(len(raw))] if reply.drips_s else [raw]:
            time.sleep(reply.drips_s)
            try:
                handler.wfile.write(piece)
            except OSError:
                return  # nobody waits for it any more

    def reply(self, method: str, path: str, body: Any) -> Reply:
        """What a service says to a request of an authenticated user."""
        replies = self._script.get((method, path), [Reply(404)])
        return replies.pop(0) if len(replies) > 1 else replies[0]

    def accepts(self, identity: Any) -> bool:
        return bool(identity["password"]["user"]["password"] == SECRET)

    def _identity(self, method: str, path: str, body: Any) -> Reply | None:
        if not self.is_keystone:
            return Reply(404, "<html><head><title>x</title></head>nothing here</html>")
        if path in ("/v3", "/v3/"):
            links = [{"rel": "self", "href": f"{self.url}/v3/"}]
            return Reply(body={"version": {"id": "v3.14", "status": "stable", "links": links}})
        if path == "/v3/auth/tokens" and self.keystone_says:
            return self.keystone_says.pop(0)
        if path == "/v3/auth/tokens":
            if not self.accepts(body["auth"]["identity"]):
                error = {"code": 401, "message": f"no: {SECRET}", "title": "Unauthorized"}
                return Reply(401, {"error": error})
            self.tokens += 1
            return Reply(
                201, self._token(), {"X-Subject-Token": f"{self.token_prefix}{self.tokens}"}
            )
        if path in ("/compute/v2.1", "/compute/v2.1/"):
            return Reply(body={"version": self._version("v2.1", "compute/v2.1", self.compute)})
        if path in ("/volume/v3", "/volume/v3/"):
            return Reply(body={"versions": [self._version("v3.0", "volume/v3", self.volume)]})
        return None

    def _version(self, name: str, path: str, span: tuple[str, str]) -> dict[str, Any]:
        links = [{"rel": "self", "href": f"{self.url}/{path}/"}]
        return {
            "id": name,
            "status": "CURRENT",
            "min_version": span[0],
            "version": span[1],
            "links": links,
        }

    def _token(self) -> dict[str, Any]:
        def endpoints(path: str) -> list[dict[str, str]]:
            return [
                {
                    "id": region,
                    "interface": "public",
                    "region_id": region,
                    "region": region,
                    "url": f"{self.url}/{path}",
                }
                for region in self.regions
            ]

        catalog = [
            {"type": "compute", "name": "nova", "id": "1", "endpoints": endpoints("compute/v2.1")},
            {"type": "volumev3", "name": "cinder", "id": "2", "endpoints": endpoints("volume/v3")},
        ]
        token: dict[str, Any] = {
            "expires_at": "2099-01-01T00:00:00.000000Z",
            "issued_at": "2026-01-01T00:00:00.000000Z",
            "methods": ["password"],
            "user": {"id": "u", "name": "demo", "domain": {"id": "default", "name": "Default"}},
            "catalog": catalog,
        }
        if self.scoped:
            domain = {"id": "default", "name": "Default"}
            token["project"] = {"id": self.project, "name": "demo", "domain": domain}
        return {"token": token}


def clouds_yaml(path: Path, **clouds: dict[str, Any]) -> str:
    written = path / "clouds.yaml"
    written.write_text(json.dumps({"clouds": clouds}))  # JSON is YAML
    return str(written)


def password(url: str, secret: str = SECRET, **more: Any) -> dict[str, Any]:
    auth = {
        "auth_url": f"{url}/v3",
        "username": "demo",
        "password": secret,
        "project_name": "demo",
        "user_domain_id": "default",
        "project_domain_id": "default",
    }
    return {"auth": auth, "region_name": "RegionOne", **more}


class Pauses:
    """Sleeps that are written down instead of slept."""

    def __init__(self, budget_s: float = 60) -> None:
        self.slept: list[float] = []
        self.clock = 0.0
        self.patience = Patience(budget_s=budget_s, sleep=self._sleep, now=lambda: self.clock)

    async def _sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.clock += seconds
        await asyncio.sleep(0)


async def connect(stand_in: StandIn, pauses: Pauses | None = None) -> Cloud:
    cloud = await Cloud.connect(
        "here", config_file=clouds_yaml(Path.cwd(), here=password(stand_in.url))
    )
    return Cloud(cloud._wire, pauses.patience) if pauses else cloud
