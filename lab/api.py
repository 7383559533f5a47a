"""The lab for Python: what tests and the demo use.

    lab = Lab()
    lab.up()
    lab.ensure_server("web")                      # waits until it is reached by ssh
    volume = lab.ensure_volume("data", size_gib=1)
    lab.attach("web", volume)
    lab.ssh("web", "lsblk", root=True)
    lab.knobs.set("create_snapshot", fail=1)

Clouds are opened by the caller: `openstack.connect(cloud="volferry-lab")` with
OS_CLIENT_CONFIG_FILE set to `lab.clouds_yaml`.
"""

from __future__ import annotations

import fcntl
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from lab import control, guests, processes
from lab.cloud import Cloud, Refused, wait_for
from lab.errors import LabError
from lab.knobs import Knobs
from lab.layout import Layout
from lab.services.cinder import DEFAULT_TYPE

# A boot takes 20 s on an idle machine, and several times as long beside other work. So does all
# else: these deadlines are there to end a run that hangs, not to judge how fast it is.
SSH_TIMEOUT_S = 600
SCRIPT_TIMEOUT_S = 600
CHANGE_TIMEOUT_S = 300

# Ask whether it lives: nobody closes a connection to a guest that was reset.
_SSH_OPTIONS = (
    *("-o", "BatchMode=yes", "-o", "ConnectTimeout=60"),
    *("-o", "ServerAliveInterval=15", "-o", "ServerAliveCountMax=8"),
)

DETACH_ATTEMPTS = 5
HOLD_TIMEOUT_S = 3600

_held_here: set[Path] = set()
"""The locks of the labs that this process has to itself."""


def _to_stderr(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class Lab:
    """One lab: the one in `root`, or the one that $VOLFERRY_LAB names."""

    def __init__(self, root: Path | None = None) -> None:
        self.layout = Layout(root.absolute()) if root else Layout.from_environment()
        self.knobs = Knobs(self.layout.knobs)
        self.member = Cloud.member(self.layout)
        self.admin = Cloud.admin(self.layout)

    @property
    def clouds_yaml(self) -> Path:
        """Has one cloud, `volferry-lab`: an ordinary member of the project `demo`."""
        return self.layout.clouds_yaml

    @property
    def clouds_admin_yaml(self) -> Path:
        """Has one cloud, `volferry-lab-admin`."""
        return self.layout.clouds_admin_yaml

    @property
    def ssh_config(self) -> Path:
        """Names each server; for `ssh -F`."""
        return self.layout.ssh_config

    def up(self) -> None:
        """Bring the lab up if it is not. Raises LabError."""
        control.up(self.layout, _to_stderr)

    @contextmanager
    def held(self, who: str) -> Iterator[None]:
        """Have the lab for oneself: knobs, quotas and the names of what is swept are one lab's.

        Waits until nobody else holds it; a process that does may say it again. The lock ends with
        its process, however that ends. Raises LabError.
        """
        if self.layout.user in _held_here:
            yield  # several conftest.py have a fixture of their own for the one lab
            return
        self.layout.root.mkdir(parents=True, exist_ok=True)
        with self.layout.user.open("a+") as lock:

            def taken() -> bool:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    return False
                return True

            if not taken():
                lock.seek(0)
                holder = lock.read().strip()
                _to_stderr(f"waiting until the lab is free: {holder}")
                if not processes.wait_until(taken, HOLD_TIMEOUT_S, pause_s=1):
                    raise LabError(
                        f"the lab has not been free for {HOLD_TIMEOUT_S} s: {holder}",
                        "two that use one lab would take each other's servers and faults",
                        "wait for it, or use a second lab: VOLFERRY_LAB=/some/folder",
                    )
            lock.truncate(0)
            lock.write(f"{who}, process {os.getpid()}\n")
            lock.flush()
            _held_here.add(self.layout.user)
            try:
                yield
            finally:
                _held_here.remove(self.layout.user)

    def reset(self) -> None:
        """Turn all knobs off, and put the member's quotas back to what the lab gives it.

        For whoever begins: a run that was killed leaves both as they were, and they outlive even
        the lab's services. Raises LabError.
        """
        self.knobs.reset()
        self.admin.request("DELETE", "block-storage", self._quotas())

    def _quotas(self) -> str:
        """Where the member's quotas are asked for and set."""
        self.member.get("block-storage", "/volumes")  # a project is known from the first login on
        return f"/os-quota-sets/{self.member.project_id}"

    def sweep(self, *patterns: str) -> list[str]:
        """Delete what a run that was cut short left, however it stands; return what that was.

        Servers and volumes whose names match, such as `test-*`, and all snapshots of the latter.
        As an administrator: only that can delete what is stuck in `creating` or `detaching`.
        Raises LabError.
        """

        def all_of(service: str, kind: str) -> list[dict[str, Any]]:
            path = f"/{kind}/detail?all_tenants=1"
            return list(self.admin.get(service, path)[kind])

        def ours(thing: dict[str, Any]) -> bool:
            return any(fnmatchcase(str(thing["name"]), pattern) for pattern in patterns)

        def force(service: str, kind: str, its_id: str, **reset: str) -> None:
            path = f"/{kind}/{its_id}"
            actions: list[dict[str, object]] = [{"os-force_delete": {}}]
            if service == "compute":
                actions = [{"os-resetState": {"state": "error"}}, {"forceDelete": None}]
            else:
                actions.insert(0, {"os-reset_status": {"status": "error", **reset}})
            for action in actions:
                self.admin.post(service, f"{path}/action", action)
            self._until_gone(self.admin, service, path)

        swept = []
        for server in filter(ours, all_of("compute", "servers")):
            force("compute", "servers", server["id"])
            swept.append(f"server {server['name']}")
        volumes = list(filter(ours, all_of("block-storage", "volumes")))
        ids = {volume["id"] for volume in volumes}
        for snapshot in all_of("block-storage", "snapshots"):
            if snapshot["volume_id"] in ids:
                force("block-storage", "snapshots", snapshot["id"])
                swept.append(f"snapshot {snapshot['id']}")
        for volume in volumes:
            for attachment in volume["attachments"]:
                path = f"/attachments/{attachment['attachment_id']}"
                self.admin.request("DELETE", "block-storage", path)
            detached = {"attach_status": "detached", "migration_status": "none"}
            force("block-storage", "volumes", volume["id"], **detached)
            swept.append(f"volume {volume['name']}")
        return swept

    # --- servers
    def ensure_server(self, name: str, image: str = "debian-12", flavor: str = "m1.small") -> str:
        """Return the id of the server of that name, made if need be, reachable by ssh."""
        server = self.find_server(name)
        if server is None:
            body = {
                "name": name,
                "imageRef": self._id("image", f"/v2/images?name={image}", "images", image),
                "flavorRef": self._id("compute", "/flavors", "flavors", flavor),
                "networks": "none",
            }
            server = self.member.post("compute", "/servers", {"server": body})["server"]
        server_id = str(server["id"])
        self.wait_for_server(server_id, "ACTIVE")
        self.wait_for_ssh(server_id)
        return server_id

    def find_server(self, name: str) -> dict[str, Any] | None:
        """Return the server of that name or id, or None."""
        servers = self.member.get("compute", "/servers/detail")["servers"]
        return next((one for one in servers if name in (one["name"], one["id"])), None)

    def wait_for_server(self, name: str, status: str, timeout_s: float = CHANGE_TIMEOUT_S) -> None:
        """Wait until a server has the status. Raises LabError."""
        wait_for(
            f"server {name} is {status}",
            lambda: (self.find_server(name) or {}).get("status"),
            lambda seen: bool(seen == status),
            timeout_s,
            f"read {self.layout.logs}/nova.log",
            hopeless=lambda seen: seen in ("ERROR", None),
        )

    def wait_for_ssh(self, name: str, timeout_s: float = SSH_TIMEOUT_S) -> None:
        """Wait until a command runs in the guest. Raises LabError."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                tried = self.run(name, "true", timeout_s=60)
            except subprocess.TimeoutExpired as late:
                said = str(late)
            else:
                if tried.returncode == 0:
                    return
                said = tried.stderr.strip()
            if time.monotonic() > deadline:
                raise LabError(
                    f"server {name} was not reached by ssh within {timeout_s:.0f} s: {said[-200:]}",
                    "it may still be booting, or it hangs",
                    f"read {self.layout.servers}/*/console.log",
                )
            time.sleep(0.5)

    def delete_server(self, name: str) -> None:
        """Delete a server and wait until it is gone; its volumes become available."""
        server = self.find_server(name)
        if server:
            self._delete("compute", f"/servers/{server['id']}")

    def ssh(
        self, name: str, script: str, *, root: bool = False, timeout_s: float = SCRIPT_TIMEOUT_S
    ) -> str:
        """Run a script in a guest's `sh` and return its output. Raises CalledProcessError."""
        done = self.run(name, script, root=root, timeout_s=timeout_s)
        if done.returncode:
            raise subprocess.CalledProcessError(
                done.returncode, f"ssh {name}", done.stdout, done.stderr
            )
        return done.stdout

    def run(
        self, name: str, script: str, *, root: bool = False, timeout_s: float = SCRIPT_TIMEOUT_S
    ) -> subprocess.CompletedProcess[str]:
        """Run a script in a guest's `sh`, as `debian` or as root, whatever it ends with."""
        login = ["-l", "root"] if root else []
        command = ["ssh", "-F", str(self.ssh_config), *_SSH_OPTIONS]
        return subprocess.run(
            [*command, *login, name, f"sh -c {shlex.quote(script)}"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def qmp(self, name: str, command: str, **arguments: object) -> Any:
        """Run a QMP command on a server's QEMU, behind Nova's back."""
        return guests.qmp(self.layout, self._server_id(name), command, arguments)

    # --- volumes
    @contextmanager
    def quota(self, **limits: int) -> Iterator[None]:
        """For a while, so many more than are used now: `snapshots=0` leaves room for none."""
        path = self._quotas()
        found = self.admin.get("block-storage", f"{path}?usage=true")["quota_set"]

        def put(values: dict[str, int]) -> None:
            self.admin.request("PUT", "block-storage", path, {"quota_set": values})

        try:
            # Cinder refuses a limit below what is in use.
            put({name: found[name]["in_use"] + more for name, more in limits.items()})
            yield
        finally:
            put({name: found[name]["limit"] for name in limits})

    def ensure_volume(
        self,
        name: str,
        size_gib: int = 1,
        volume_type: str = DEFAULT_TYPE,
        *,
        snapshot_id: str | None = None,
    ) -> str:
        """Return the id of the volume of that name, made if need be."""
        volume = self.find_volume(name)
        if volume is None:
            body = {"name": name, "size": size_gib, "volume_type": volume_type}
            if snapshot_id:
                body["snapshot_id"] = snapshot_id
            volume = self.member.post("block-storage", "/volumes", {"volume": body})["volume"]
        volume_id = str(volume["id"])
        self.wait_for_volume(volume_id, "available", "in-use")
        return volume_id

    def find_volume(self, name: str) -> dict[str, Any] | None:
        """Return the volume of that name or id, or None."""
        volumes = self.member.get("block-storage", "/volumes/detail")["volumes"]
        return next((one for one in volumes if name in (one["name"], one["id"])), None)

    def volume(self, volume_id: str) -> dict[str, Any]:
        """Return a volume as Cinder shows it. Raises Refused."""
        found: dict[str, Any] = self.member.get("block-storage", f"/volumes/{volume_id}")["volume"]
        return found

    def wait_for_volume(
        self, volume_id: str, *statuses: str, timeout_s: float = CHANGE_TIMEOUT_S
    ) -> str:
        """Wait until a volume has one of the statuses and return it. Raises LabError."""
        seen: str = wait_for(
            f"volume {volume_id} is {' or '.join(statuses)}",
            lambda: self.volume(volume_id)["status"],
            lambda status: status in statuses,
            timeout_s,
            f"read {self.layout.logs}/cinder.log and nova.log",
            hopeless=lambda status: str(status).startswith("error"),
        )
        return seen

    def change_volume(self, volume_id: str, action: str, **arguments: object) -> None:
        """Ask for an action, such as `os-retype` or `os-update_readonly_flag`; it goes on after."""
        path = f"/volumes/{volume_id}/action"
        self.member.post("block-storage", path, {action: arguments})

    def create_snapshot(self, volume_id: str) -> str:
        """Make a snapshot, of a volume in use too, and return its id when it is there."""
        body = {"volume_id": volume_id, "force": True}
        made = self.member.post("block-storage", "/snapshots", {"snapshot": body})["snapshot"]
        snapshot_id = str(made["id"])
        wait_for(
            f"snapshot {snapshot_id} is available",
            lambda: self.member.get("block-storage", f"/snapshots/{snapshot_id}")["snapshot"],
            lambda snapshot: snapshot["status"] == "available",
            CHANGE_TIMEOUT_S,
            f"read {self.layout.logs}/cinder.log",
            hopeless=lambda snapshot: snapshot["status"] == "error",
        )
        return snapshot_id

    def delete_snapshot(self, snapshot_id: str) -> None:
        """Delete a snapshot and wait until it is gone."""
        self._delete("block-storage", f"/snapshots/{snapshot_id}")

    def attach(self, server: str, volume_id: str) -> None:
        """Attach a volume and wait until it is in use. Raises LabError when the attach fails."""
        path = f"/servers/{self._server_id(server)}/os-volume_attachments"
        self.member.post("compute", path, {"volumeAttachment": {"volumeId": volume_id}})
        # Nova reserved the volume before it answered; `available` means that it gave up since.
        if self.wait_for_volume(volume_id, "in-use", "available") == "available":
            raise LabError(
                f"the attach of volume {volume_id} to {server} failed: it is available again",
                "the guest never had it",
                f"read {self.layout.logs}/nova.log",
            )

    def detach(self, server: str, volume_id: str) -> None:
        """Detach a volume and wait until it is available.

        Asks again when it is `in-use` again: a guest that boots or is busy lets no disk go.
        """
        path = f"/servers/{self._server_id(server)}/os-volume_attachments/{volume_id}"
        for attempt in range(DETACH_ATTEMPTS):
            self.member.request("DELETE", "compute", path)
            last = attempt == DETACH_ATTEMPTS - 1
            ends = ("available",) if last else ("available", "in-use")
            if self.wait_for_volume(volume_id, *ends) == "available":
                return

    def delete_volume(self, volume_id: str) -> None:
        """Delete a volume and wait until it is gone."""
        self._delete("block-storage", f"/volumes/{volume_id}")

    def admin_reset(self, kind: str, its_id: str, status: str = "available") -> None:
        """Set the status of one of the `volumes` or `snapshots`, as an administrator repairs it."""
        path = f"/{kind}/{its_id}/action"
        self.admin.post("block-storage", path, {"os-reset_status": {"status": status}})

    # --- parts
    def _delete(self, service: str, path: str) -> None:
        if not _is_gone(self.member, service, path):
            self.member.request("DELETE", service, path)
            self._until_gone(self.member, service, path)

    def _until_gone(self, cloud: Cloud, service: str, path: str) -> None:
        wait_for(
            f"{path} is gone",
            lambda: _is_gone(cloud, service, path),
            bool,
            CHANGE_TIMEOUT_S,
            f"read the logs in {self.layout.logs}",
        )

    def _server_id(self, name: str) -> str:
        server = self.find_server(name)
        if server is None:
            raise LabError(
                f"the lab has no server '{name}'",
                "nothing was done",
                "`python3 -m lab openstack server list` shows the servers",
            )
        return str(server["id"])

    def _id(self, service: str, path: str, key: str, name: str) -> str:
        found = [one for one in self.member.get(service, path)[key] if one["name"] == name]
        if not found:
            raise LabError(
                f"the lab has no '{name}' among its {key}",
                "nothing was made",
                f"`python3 -m lab openstack {key[:-1]} list` shows what there is",
            )
        return str(found[0]["id"])


def _is_gone(cloud: Cloud, service: str, path: str) -> bool:
    try:
        cloud.get(service, path)
    except Refused as refusal:
        if refusal.code == 404:
            return True
        raise
    return False
