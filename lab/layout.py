"""The folder of one lab: which file lies where, and which port is whose.

Two labs with two folders share nothing, so everything that could collide (ports, names of
mounts, pids) is derived from the folder or written down in it. Caches lie in the folder as well,
named by the hash of what made them; `wipe` keeps them.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import socket
from dataclasses import dataclass
from pathlib import Path

from lab.errors import LabError

DEFAULT_ROOT = "/var/tmp/volferry-lab"
HOST = "127.0.0.1"
REGION = "RegionOne"
SERVICE_NAMES = ("keystone", "placement", "glance", "neutron", "cinder", "nova")
REPOSITORY = Path(__file__).resolve().parent.parent

# Below the kernel's ephemeral range (32768 and up): a port that is free while the lab is down
# must not become the source port of somebody's outgoing connection.
_FIRST_PORT, _LAST_PORT, _PORTS_PER_LAB = 15000, 31999, 100


def file_hash(*paths: Path, extra: str = "") -> str:
    """Return 12 hex digits that change when one of the files or `extra` changes."""
    digest = hashlib.sha256(extra.encode())
    for path in paths:
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def write_atomically(path: Path, text: str, mode: int = 0o644) -> None:
    """Replace `path` so that a reader sees the old text or the new one, never half of it."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "w") as stream:
        stream.write(text)
    draft.replace(path)


def port_is_free(port: int) -> bool:
    """Say whether nothing listens on the port of this machine's loopback."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


@dataclass(frozen=True)
class Layout:
    """Paths of the lab whose state lies under `root`."""

    root: Path

    @classmethod
    def from_environment(cls) -> Layout:
        """Return the lab that $VOLFERRY_LAB names, or the default one."""
        return cls(Path(os.environ.get("VOLFERRY_LAB") or DEFAULT_ROOT).absolute())

    # --- what users and tests read
    @property
    def clouds_yaml(self) -> Path:
        return self.root / "clouds.yaml"

    @property
    def clouds_admin_yaml(self) -> Path:
        return self.root / "clouds-admin.yaml"

    @property
    def ssh_config(self) -> Path:
        return self.root / "ssh_config"

    @property
    def known_hosts(self) -> Path:
        return self.root / "known_hosts"

    @property
    def ssh_key(self) -> Path:
        return self.root / "ssh_key"

    @property
    def knobs(self) -> Path:
        return self.root / "knobs.json"

    # --- what the lab needs for itself
    @property
    def lock(self) -> Path:
        return self.root / "lock"

    @property
    def user(self) -> Path:
        """Locked by whoever has the lab to itself; holds who that is."""
        return self.root / "user"

    @property
    def cache(self) -> Path:
        return self.root / "cache"

    @property
    def configuration(self) -> Path:
        return self.root / "etc"

    @property
    def databases(self) -> Path:
        return self.root / "databases"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def run(self) -> Path:
        return self.root / "run"

    @property
    def servers(self) -> Path:
        return self.root / "servers"

    @property
    def volumes(self) -> Path:
        return self.root / "volumes"

    @property
    def volumes_image(self) -> Path:
        return self.root / "volumes.xfs"

    @property
    def helpers(self) -> Path:
        """A folder for the services' $PATH: the stand-in for sudo."""
        return self.root / "helpers"

    @property
    def client(self) -> Path:
        """A folder for a person's $PATH: `openstack` and nothing else of the venv."""
        return self.root / "client"

    @property
    def prepared(self) -> Path:
        """Exists when databases and catalogue are complete."""
        return self.root / "prepared"

    @property
    def ports_json(self) -> Path:
        return self.root / "ports.json"

    @property
    def secrets_json(self) -> Path:
        return self.root / "secrets.json"

    @property
    def venv(self) -> Path:
        here = Path(__file__).resolve().parent
        return self.cache / (
            "venv-" + file_hash(here / "requirements.txt", here / "constraints.txt")
        )

    @property
    def schemas(self) -> Path:
        """Databases with all tables and no rows, of the versions in `venv`."""
        here = Path(__file__).resolve().parent
        made_by = file_hash(here / "runtime/neutron_sqlite.py", extra=self.venv.name)
        return self.cache / f"schemas-{made_by}"

    def program(self, name: str) -> Path:
        """Return the path of a program in the services' virtual environment."""
        return self.venv / "bin" / name

    # --- ports and secrets, decided once and written down
    def ports(self) -> dict[str, int]:
        """Return the port of each service, and the first one of the guests' (`guests`)."""
        if not self.ports_json.exists():
            write_atomically(self.ports_json, json.dumps(self._choose_ports(), indent=2) + "\n")
        return {name: int(port) for name, port in json.loads(self.ports_json.read_text()).items()}

    def port(self, service: str) -> int:
        return self.ports()[service]

    def url(self, service: str) -> str:
        return f"http://{HOST}:{self.port(service)}"

    def _choose_ports(self) -> dict[str, int]:
        places = (_LAST_PORT + 1 - _FIRST_PORT) // _PORTS_PER_LAB
        first_place = int(hashlib.sha256(str(self.root).encode()).hexdigest(), 16)
        for attempt in range(places):
            base = _FIRST_PORT + (first_place + attempt) % places * _PORTS_PER_LAB
            wanted = range(base, base + _PORTS_PER_LAB)
            if all(port_is_free(port) for port in wanted):
                chosen = dict(zip(SERVICE_NAMES, wanted, strict=False))
                return {**chosen, "guests": base + 10}
        raise LabError(
            f"no {_PORTS_PER_LAB} free ports in a row in {_FIRST_PORT}-{_LAST_PORT} on {HOST}",
            "the services and the guests' ssh need ports of their own; nothing was started",
            "end what listens there (ss -ltn)",
        )

    def secret(self, name: str) -> str:
        """Return the password called `name`, made at its first use."""
        known: dict[str, str] = {}
        if self.secrets_json.exists():
            known = json.loads(self.secrets_json.read_text())
        if name not in known:
            self.root.mkdir(parents=True, exist_ok=True)  # asked for before the first start
            known[name] = secrets.token_hex(16)
            write_atomically(self.secrets_json, json.dumps(known, indent=2) + "\n", mode=0o600)
        return known[name]
