"""The real ``volferry`` as a process: real client, engine, steps, channel; a cloud over HTTP and an
``ssh`` program that are stand-ins. Everything of one test lies in one folder.
"""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import terminal
from stand_in_ssh import FACTS

import volferry
from tests.fakes.http_cloud import Reply, StandIn

HERE = Path(__file__).parent
RAW: dict[str, Any] = json.loads(FACTS.read_text())
SOURCE: str = RAW["volume_id"]
SERVER: str = RAW["dmi_uuid"]
TARGET = "7a3ebf00-0000-4000-8000-000000000001"
SNAPSHOT = "5a9b0000-0000-4000-8000-000000000002"

VOLUMES, SNAPSHOTS = "/volume/v3/volumes", "/volume/v3/snapshots"
LINES = f"/compute/v2.1/servers/{SERVER}/os-volume_attachments"


class TinyCloud(StandIn):
    """One server, its volumes and snapshots; everything that is asked for is done at once."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self.secrets: tuple[str, ...] = ()
        self.volumes: dict[str, dict[str, Any]] = {}
        self.snapshots: dict[str, dict[str, Any]] = {}
        self.plugged = ["root", SOURCE]
        self.server_is_gone = False
        self.held = ""
        """``POST /path``: such a request is not answered before ``release``."""
        self.reached, self.release = threading.Event(), threading.Event()
        self.stuck_status = ""
        """The status that a new volume keeps for ever."""
        self.add(SOURCE, "data", status="in-use")

    def add(self, id: str, name: str, **more: Any) -> None:
        self.volumes[id] = {
            "id": id, "name": name, "size": 1, "volume_type": "fast", "status": "available",
            "metadata": {}, "bootable": "false", "attachments": [], **more,
        }  # fmt: skip

    def delete_server(self) -> None:
        """As if somebody had; what was plugged into it is free."""
        self.plugged, self.server_is_gone = [], True

    def accepts(self, identity: Any) -> bool:
        return bool(self.secrets) and any(s in json.dumps(identity) for s in self.secrets)

    def close(self) -> None:
        self.release.set()
        super().close()

    def reply(self, method: str, path: str, body: Any) -> Reply:
        if self.held and re.fullmatch(self.held, f"{method} {path}"):
            self.reached.set()
            self.release.wait(60)
        gone = self.server_is_gone and f"/servers/{SERVER}" in path
        for pattern, answer in () if gone else self._routes:
            match = re.fullmatch(pattern, f"{method} {path}")
            if match:
                return answer(self, match, body)
        return Reply(404, {"itemNotFound": {"code": 404, "message": f"{path} could not be found"}})

    # ---- answers ---------------------------------------------------------------------------------

    def _one_server(self, match: Any, body: Any) -> Reply:
        server = {"id": SERVER, "name": "web-03", "status": "ACTIVE", "image": {"id": "i"}}
        server["OS-EXT-SRV-ATTR:root_device_name"] = "/dev/vda"
        return Reply(body={"server": server} if match else {})

    def _servers(self, match: Any, body: Any) -> Reply:
        found = [] if self.server_is_gone else [self._one_server(match, body).body["server"]]
        return Reply(body={"servers": found})

    def _lines(self, match: Any, body: Any) -> Reply:
        lines = [
            {"volumeId": id, "device": f"/dev/vd{chr(97 + i)}"} for i, id in enumerate(self.plugged)
        ]
        return Reply(body={"volumeAttachments": lines})

    def _attach(self, match: Any, body: Any) -> Reply:
        id = body["volumeAttachment"]["volumeId"]
        self.plugged.append(id)
        self._plugs()
        return Reply(200, {"volumeAttachment": {"volumeId": id}})

    def _detach(self, match: Any, body: Any) -> Reply:
        self.plugged.remove(match[1])
        self._plugs()
        return Reply(202)

    def _plugs(self) -> None:
        plugged = [id for id in self.plugged if id != "root"]
        (self.folder / "attached.json").write_text(json.dumps(plugged))

    def _seen(self, id: str) -> dict[str, Any]:
        volume = dict(self.volumes[id])
        if id in self.plugged:
            volume["status"] = "in-use"
            volume["attachments"] = [{"server_id": SERVER, "volume_id": id, "attachment_id": "a"}]
        elif volume["status"] == "in-use":
            volume["status"] = "available"
        return volume

    def _volume(self, match: Any, body: Any) -> Reply:
        if match[1] not in self.volumes:
            return Reply(404, {"itemNotFound": {"code": 404, "message": "no such volume"}})
        return Reply(body={"volume": self._seen(match[1])})

    def _all_volumes(self, match: Any, body: Any) -> Reply:
        return Reply(body={"volumes": [self._seen(id) for id in self.volumes]})

    def _new_volume(self, match: Any, body: Any) -> Reply:
        fields = {k: v for k, v in body["volume"].items() if k not in ("id", "name")}
        self.add(TARGET, body["volume"]["name"], **fields)
        if self.stuck_status:
            self.volumes[TARGET]["status"] = self.stuck_status
        return Reply(202, {"volume": self.volumes[TARGET]})

    def _update(self, match: Any, body: Any) -> Reply:
        self.volumes[match[1]] |= body["volume"]
        return Reply(200, {"volume": self.volumes[match[1]]})

    def _mark(self, match: Any, body: Any) -> Reply:
        self.volumes[match[1]]["metadata"] |= body["metadata"]
        return Reply(200, body)

    def _action(self, match: Any, body: Any) -> Reply:
        [(verb, what)] = body.items()
        if verb == "os-retype":
            self.volumes[match[1]]["volume_type"] = what["new_type"]
        else:
            self.volumes[match[1]]["metadata"] = {"readonly": str(what["readonly"])}
        return Reply(202)

    def _drop_volume(self, match: Any, body: Any) -> Reply:
        del self.volumes[match[1]]
        return Reply(202)

    def _all_snapshots(self, match: Any, body: Any) -> Reply:
        return Reply(body={"snapshots": list(self.snapshots.values())})

    def _snapshot(self, match: Any, body: Any) -> Reply:
        if match[1] not in self.snapshots:
            return Reply(404, {"itemNotFound": {"code": 404, "message": "no such snapshot"}})
        return Reply(body={"snapshot": self.snapshots[match[1]]})

    def _new_snapshot(self, match: Any, body: Any) -> Reply:
        made = {**body["snapshot"], "id": SNAPSHOT, "size": 1, "status": "available"}
        self.snapshots[SNAPSHOT] = made
        return Reply(202, {"snapshot": made})

    def _drop_snapshot(self, match: Any, body: Any) -> Reply:
        del self.snapshots[match[1]]
        return Reply(202)

    def _types(self, match: Any, body: Any) -> Reply:
        types = [{"id": "1", "name": "fast"}, {"id": "2", "name": "faster"}]
        return Reply(body={"volume_types": types})

    def _quota(self, match: Any, body: Any) -> Reply:
        free = {"limit": 100, "in_use": 1, "reserved": 0}
        return Reply(body={"quota_set": {"volumes": free, "snapshots": free, "gigabytes": free}})

    _routes: tuple[tuple[str, Callable[..., Reply]], ...] = (
        (rf"GET /compute/v2.1/servers/{SERVER}", _one_server),
        (r"GET /compute/v2.1/servers/detail", _servers),
        (rf"GET {LINES}", _lines),
        (rf"POST {LINES}", _attach),
        (rf"DELETE {LINES}/([^/]+)", _detach),
        (rf"GET {VOLUMES}/detail", _all_volumes),
        (rf"GET {VOLUMES}/([^/]+)", _volume),
        (rf"POST {VOLUMES}", _new_volume),
        (rf"PUT {VOLUMES}/([^/]+)", _update),
        (rf"POST {VOLUMES}/([^/]+)/metadata", _mark),
        (rf"POST {VOLUMES}/([^/]+)/action", _action),
        (rf"DELETE {VOLUMES}/([^/]+)", _drop_volume),
        (rf"GET {SNAPSHOTS}/detail", _all_snapshots),
        (rf"GET {SNAPSHOTS}/([^/]+)", _snapshot),
        (rf"POST {SNAPSHOTS}", _new_snapshot),
        (rf"DELETE {SNAPSHOTS}/([^/]+)", _drop_snapshot),
        (r"GET /volume/v3/types", _types),
        (r"GET /volume/v3/os-quota-sets/p1", _quota),
        (r"GET /volume/v3/messages", lambda *_: Reply(body={"messages": []})),
        (r"GET /compute/v2.1/servers/[^/]+/os-instance-actions",
         lambda *_: Reply(body={"instanceActions": []})),
    )  # fmt: skip


class Command:
    """``volferry`` in a folder: its state, its ``ssh``, what it printed."""

    def __init__(self, folder: Path, **variables: str) -> None:
        self.folder, self.state = folder, folder / "state"
        self.cloud = TinyCloud(folder)
        self._started: list[subprocess.Popen[str]] = []
        self.cloud.secrets = ("a-password-like-no-other",)
        programs = folder / "bin"
        programs.mkdir()
        ssh = programs / "ssh"
        ssh.write_text(
            f'#!/bin/sh\nexec "{sys.executable}" "{HERE / "stand_in_ssh.py"}" "{folder}" "$@"\n'
        )
        ssh.chmod(0o755)
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("OS_", "VOLFERRY_"))}
        kept = {k: v for k, v in kept.items() if "proxy" not in k.lower()}
        self.variables = {
            **kept,
            # The tree that is tested, whichever one is installed.
            "PYTHONPATH": str(Path(volferry.__file__).parent.parent),
            "PATH": f"{programs}:{os.environ['PATH']}",
            "HOME": str(folder),
            "OS_AUTH_URL": f"{self.cloud.url}/v3",
            "OS_USERNAME": "demo",
            "OS_PASSWORD": self.cloud.secrets[0],
            "OS_PROJECT_NAME": "demo",
            "OS_USER_DOMAIN_ID": "default",
            "OS_PROJECT_DOMAIN_ID": "default",
            "OS_REGION_NAME": "RegionOne",
            **variables,
        }

    def _argv(self, words: tuple[str, ...]) -> list[str]:
        return [sys.executable, "-m", "volferry", "--state", str(self.state), *words]

    def __call__(self, *words: str, code: int | None = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            self._argv(words), env=self.variables, cwd=self.folder, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        with (self.folder / "said.log").open("a") as log:
            log.write(f"$ {' '.join(words)}\n{done.stdout}{done.stderr}")
        assert code is None or done.returncode == code, done.stderr + done.stdout
        return done

    def on_terminal(self, *words: str, answer: str) -> tuple[str, int]:
        return terminal.run(self._argv(words), {**self.variables, "TERM": "xterm-256color"}, answer)

    def start(self, *words: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            self._argv(words), env=self.variables, cwd=self.folder, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        self._started.append(process)
        return process

    def close(self) -> None:
        for process in self._started:
            process.kill()
            with process:  # closes its pipes and waits for it
                pass
        self.cloud.close()

    def run(self, *more: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        return self(*self.words(*more), code=code)

    @staticmethod
    def words(*more: str) -> tuple[str, ...]:
        common = (
            "--ssh",
            "root@web-03",
            "--method",
            "rsync",
            "--type",
            "faster",
            "--units",
            "auto",
            "--settle",
            "0s",
        )
        return ("run", SERVER, SOURCE, *common, "--max-downtime", "60s", *more)

    def children(self) -> list[dict[str, Any]]:
        path = self.folder / "children.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def transfer(self) -> str:
        return self("list", "-f", "value", "-c", "id").stdout.split()[-1]


def wait_until(true: Callable[[], Any], timeout_s: float = 30.0) -> None:
    ends = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < ends, "it never came to that"
        time.sleep(0.02)


def interrupt(process: subprocess.Popen[str]) -> tuple[float, str]:
    """Ctrl-C; how long it took to end, and what it said."""
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    return time.monotonic() - began, err
