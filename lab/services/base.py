"""What the services have in common."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from lab import processes
from lab.layout import HOST, REGION, Layout, write_atomically

RUNTIME = Path(__file__).resolve().parent.parent / "runtime"
SERVICE_USER = "lab-services"
SERVICE_PROJECT = "service"


class Service:
    """One service of the cloud.

    A subclass says what its configuration is, how its database comes to be, and which command
    runs it. Everything else is the same for all.
    """

    name: str
    catalog_type: str | None = None
    catalog_path: str = ""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout

    @property
    def url(self) -> str:
        return self.layout.url(self.name)

    @property
    def config_file(self) -> Path:
        return self.layout.configuration / f"{self.name}.conf"

    @property
    def state(self) -> Path:
        """The service's own folder."""
        return self.layout.root / self.name

    def configure(self) -> None:
        """Write the configuration; done at each start, so that changes take effect."""
        self.state.mkdir(exist_ok=True)
        write_atomically(self.config_file, self.configuration(), mode=0o600)

    def configuration(self) -> str:
        """Return the text of the configuration file."""
        raise NotImplementedError

    def create_schema(self) -> None:
        """Make the tables, and nothing that belongs to one lab: the result is cached."""
        raise NotImplementedError

    def fill_database(self) -> None:
        """Enter what belongs to this lab; runs once in its life."""

    def command(self) -> list[str | Path]:
        """Return the command that runs the service in the foreground."""
        raise NotImplementedError

    def variables(self) -> dict[str, str | Path]:
        """Return what the command needs in its environment."""
        return {}

    # --- for the subclasses
    def manage(
        self,
        program: str,
        *arguments: str | Path,
        variables: Mapping[str, str | Path] = {},
    ) -> None:
        """Run one of the service's administration programs."""
        command = [self.layout.program(program), "--config-file", self.config_file, *arguments]
        processes.run(self.layout, command, {**self.variables(), **variables})

    def serve(self, module: str) -> list[str | Path]:
        """Return the command that serves the WSGI application of a module."""
        python = self.layout.program("python")
        return [python, RUNTIME / "serve.py", module, str(self.layout.port(self.name))]

    def all_in_one(self) -> list[str | Path]:
        """Return the command that runs API and workers of a project in one process."""
        python, port = self.layout.program("python"), str(self.layout.port(self.name))
        program = RUNTIME / "allinone.py"
        return [python, program, self.name, port, "--config-file", self.config_file]

    def defaults(self) -> str:
        """Return the head of the [DEFAULT] section."""
        return f"""\
[DEFAULT]
log_file = {self.layout.logs}/{self.name}.log
use_stderr = false
state_path = {self.state}
host = lab
my_ip = {HOST}
transport_url = fake:///
# A busy machine answers late, and a call that was given up goes on all the same.
rpc_response_timeout = 300
"""

    def database_url(self, name: str | None = None) -> str:
        return f"sqlite:///{self.layout.databases}/{name or self.name}.sqlite?timeout=30"

    def shared(self) -> str:
        """Return the sections that are the same everywhere."""
        return f"""
[oslo_concurrency]
lock_path = {self.layout.run}/locks

[oslo_messaging_notifications]
driver = noop

[keystone_authtoken]
www_authenticate_uri = {self.layout.url("keystone")}/v3
service_token_roles = service
service_token_roles_required = true
# Without it tokens that have access rules are refused.
service_type = {self.catalog_type}
interface = public
{self._service_user()}"""

    def client(self, section: str, *more: str) -> str:
        """Return a section with which this service logs in at another one."""
        return f"\n[{section}]\n{self._service_user()}" + "".join(f"{line}\n" for line in more)

    def _service_user(self) -> str:
        return f"""\
auth_type = password
auth_url = {self.layout.url("keystone")}/v3
username = {SERVICE_USER}
password = {self.layout.secret("services")}
project_name = {SERVICE_PROJECT}
user_domain_id = default
project_domain_id = default
region_name = {REGION}
"""
