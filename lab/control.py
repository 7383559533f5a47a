"""Bring the lab up, take it down, wipe it, look at it."""

from __future__ import annotations

import fcntl
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from lab import catalog, cloud, guests, images, install, processes, storage
from lab.cloud import Cloud
from lab.errors import LabError
from lab.layout import Layout, write_atomically
from lab.services import ALL, Service, rootwrap
from lab.services.nova import Nova

Say = Callable[[str], None]

START_TIMEOUT_S = 120
LOCK_TIMEOUT_S = 1800
GUEST_SHUTDOWN_S = 20

# What `wipe` leaves. The locks must stay the same files, or two processes could each hold one.
_KEPT_BY_WIPE = {"cache", "lock", "user"}


def up(layout: Layout, say: Say) -> None:
    """Install, prepare and start whatever is missing. Raises LabError."""
    layout.root.mkdir(parents=True, exist_ok=True)
    with _locked(layout, say):
        if is_up(layout):
            return
        for folder in (layout.logs, layout.run, layout.run / "locks"):
            folder.mkdir(parents=True, exist_ok=True)
        _refuse_foreign_state(layout)
        install.install_packages(layout, say)
        processes.in_parallel(
            lambda: _bring_services_up(layout, say),
            lambda: images.build_all(layout, say),
        )


def restart(layout: Layout, say: Say) -> None:
    """Start the services anew, so that changed code and configuration take effect."""
    with _locked(layout, say):
        processes.stop(layout, [kind.name for kind in ALL])
    up(layout, say)


def down(layout: Layout, say: Say) -> None:
    """End services and guests; the state is kept. Guests get time to shut down."""
    if not layout.root.exists():
        return
    with _locked(layout, say):
        _end_all(layout)


def wipe(layout: Layout, say: Say) -> None:
    """`down`, and delete the state; the caches that this tree would fill again are kept."""
    if not layout.root.exists():
        return
    with _locked(layout, say):
        _end_all(layout, shutdown_s=0)
        _delete_state(layout)
        images.drop_outdated(layout)
        install.drop_outdated(layout)


def is_up(layout: Layout) -> bool:
    """Say whether all services run and answer."""
    if not layout.prepared.exists() or not storage.is_ready(layout):
        return False
    services = [kind(layout) for kind in ALL]
    return all(
        processes.find(layout, service.name) and cloud.answers(service.url) for service in services
    )


@dataclass(frozen=True)
class ServiceStatus:
    """What `status` says about a service; pid is None when it does not run."""

    name: str
    pid: int | None
    memory_mib: int
    url: str
    log: str


@dataclass(frozen=True)
class GuestStatus:
    """What `status` says about a guest; pid is None when it does not run."""

    name: str
    id: str
    suite: str
    pid: int | None
    memory_mib: int
    ssh_port: int
    console_log: str


def service_status(layout: Layout) -> list[ServiceStatus]:
    """Return what is known of each service."""
    found = []
    for kind in ALL:
        process = processes.find(layout, kind.name)
        found.append(
            ServiceStatus(
                kind.name,
                process.pid if process else None,
                process.memory_mib() if process else 0,
                layout.url(kind.name),
                f"{layout.logs}/{kind.name}.log",
            )
        )
    return found


def guest_status(layout: Layout) -> list[GuestStatus]:
    """Return what is known of each guest."""
    found = []
    for guest in guests.recorded(layout):
        pid = guests.pid(layout, guest.id)
        found.append(
            GuestStatus(
                guest.name,
                guest.id,
                guest.suite,
                pid,
                processes.memory_mib(pid) if pid else 0,
                guest.ssh_port,
                f"{guests.folder(layout, guest.id)}/console.log",
            )
        )
    return found


# --- starting
def _bring_services_up(layout: Layout, say: Say) -> None:
    install.install_services(layout, say)
    if not layout.prepared.exists():
        # What a failed first start left cannot be gone on with: `nova-manage create_cell`, for
        # one, makes a second cell.
        processes.stop(layout, [kind.name for kind in ALL])
        for name in ("databases", *(kind.name for kind in ALL)):
            shutil.rmtree(layout.root / name, ignore_errors=True)
    layout.databases.mkdir(exist_ok=True)
    layout.configuration.mkdir(exist_ok=True)
    rootwrap.write_sudo(layout)
    if not layout.ssh_key.exists():
        make_key = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "volferry-lab"]
        subprocess.run([*make_key, "-f", layout.ssh_key], check=True, timeout=60)
    storage.mount(layout, say)
    catalog.write_clouds(layout)
    catalog.write_openstack_client(layout)
    services = [kind(layout) for kind in ALL]
    for service in services:
        service.configure()
    began = datetime.now(UTC)
    if layout.prepared.exists():
        say("starting the services")
        _start(layout, services)
        _wait_for_workers(layout, began)
    else:
        _prepare(layout, services, say)


def _prepare(layout: Layout, services: list[Service], say: Say) -> None:
    """First start: databases, users, catalogue, offers."""
    say("making the databases")
    _create_schemas(layout, services)
    processes.in_parallel(*(service.fill_database for service in services))
    say("starting the services")
    began = datetime.now(UTC)
    keystone = services[0]
    _start(layout, [keystone])
    catalog.enter_services(layout)
    _start(layout, services[1:])
    _wait_for_workers(layout, began)
    nova = next(service for service in services if isinstance(service, Nova))
    nova.discover_host()
    catalog.enter_offers(layout)
    write_atomically(layout.prepared, f"{layout.venv.name}\n")


def _create_schemas(layout: Layout, services: list[Service]) -> None:
    """Make all tables, or copy them out of the cache: the migrations take 20 s, the copy none."""
    if not layout.schemas.exists():
        processes.in_parallel(*(service.create_schema for service in services))
        draft = layout.schemas.with_name(f"{layout.schemas.name}.part")
        shutil.rmtree(draft, ignore_errors=True)
        shutil.copytree(layout.databases, draft)
        draft.replace(layout.schemas)
    else:
        shutil.copytree(layout.schemas, layout.databases, dirs_exist_ok=True)


def _start(layout: Layout, services: list[Service]) -> None:
    started = [service for service in services if not processes.find(layout, service.name)]
    for service in started:
        processes.start(layout, service.name, service.command(), service.variables())
    deadline = time.monotonic() + START_TIMEOUT_S
    for service in services:
        while not cloud.answers(service.url):
            ended = [one.name for one in started if not processes.find(layout, one.name)]
            if ended or time.monotonic() > deadline:
                raise LabError(
                    f"{ended[0]} ended at its start"
                    if ended
                    else f"{service.name} did not answer at {service.url} in {START_TIMEOUT_S} s",
                    "the lab is not up; what runs of it keeps running",
                    f"read {layout.logs}/{(ended or [service.name])[0]}.out and .log beside it",
                )
            time.sleep(0.1)


def _wait_for_workers(layout: Layout, began: datetime) -> None:
    """Wait until compute host, back ends and scheduler have reported since `began`."""
    admin = Cloud.admin(layout)
    # Their reports have whole seconds.
    since = (began - timedelta(seconds=1)).strftime("%Y-%m-%dT%H:%M:%S")

    def reported() -> list[str]:
        found = [
            *admin.get("compute", "/os-services")["services"],
            *admin.get("block-storage", "/os-services")["services"],
        ]
        return [
            str(one["binary"])
            for one in found
            if one["state"] == "up" and str(one["updated_at"] or "") >= since
        ]

    wanted = {"nova-compute": 1, "cinder-volume": 2, "cinder-scheduler": 1}
    cloud.wait_for(
        "compute host, both back ends and scheduler have reported",
        reported,
        lambda seen: all(seen.count(name) >= count for name, count in wanted.items()),
        timeout_s=START_TIMEOUT_S,
        hint=f"read {layout.logs}/cinder.log and nova.log",
    )


def _refuse_foreign_state(layout: Layout) -> None:
    if layout.prepared.exists() and layout.prepared.read_text().strip() != layout.venv.name:
        raise LabError(
            f"the state in {layout.root} was made by {layout.prepared.read_text().strip()},"
            f" this tree uses {layout.venv.name}",
            "the databases may have another schema; nothing was started",
            "`python3 -m lab wipe` deletes the state (servers and volumes of the lab too)",
        )


# --- ending
def _end_all(layout: Layout, shutdown_s: float = GUEST_SHUTDOWN_S) -> None:
    # Services first: Nova would take a guest that ends for one that its user powered off.
    processes.stop(layout, [kind.name for kind in ALL])
    running = [guest.id for guest in guests.recorded(layout) if guests.pid(layout, guest.id)]

    def left() -> list[int]:
        return [pid for server in running if (pid := guests.pid(layout, server))]

    if shutdown_s and running:
        for server in running:
            guests.press_power_button(layout, server)
        processes.wait_until(lambda: not left(), shutdown_s)
    for number in (signal.SIGTERM, signal.SIGKILL):
        processes.send(left(), number)
        if processes.wait_until(lambda: not left(), 8):
            break
    storage.unmount(layout)


def _delete_state(layout: Layout) -> None:
    # First of all, so that a wipe that is broken off does not leave a lab that claims to be whole.
    layout.prepared.unlink(missing_ok=True)
    for entry in layout.root.iterdir():
        if entry.name in _KEPT_BY_WIPE:
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


@contextmanager
def _locked(layout: Layout, say: Say) -> Iterator[None]:
    """Let one process at a time change the lab."""
    with layout.lock.open("a") as lock:

        def taken() -> bool:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            return True

        if not taken():
            say("waiting for another `lab` command to end")
            if not processes.wait_until(taken, LOCK_TIMEOUT_S):
                raise LabError(
                    f"another process has held {layout.lock} for {LOCK_TIMEOUT_S} s",
                    "only one command at a time may change a lab; nothing was done",
                    f"`fuser {layout.lock}` says which one",
                )
        yield
