"""Neutron: its API alone, without any agent or network.

Nova asks it at each `GET /servers/<id>`, even for servers made with `--nic none`. The guests'
network is QEMU's user mode.
"""

from __future__ import annotations

from pathlib import Path

from lab import processes
from lab.services.base import RUNTIME, Service


class Neutron(Service):
    name = "neutron"
    catalog_type = "network"

    def configuration(self) -> str:
        return f"""\
{self.defaults()}
core_plugin = ml2
service_plugins =
auth_strategy = keystone
api_paste_config = {self.layout.venv}/etc/neutron/api-paste.ini
notify_nova_on_port_status_changes = false
notify_nova_on_port_data_changes = false

[database]
connection = {self.database_url()}

[ml2]
type_drivers = local
tenant_network_types = local
mechanism_drivers =
extension_drivers = port_security
{self.shared()}"""

    def create_schema(self) -> None:
        python, script = self.layout.program("python"), RUNTIME / "neutron_sqlite.py"
        processes.run(self.layout, [python, script, self.database_url()])

    def command(self) -> list[str | Path]:
        return self.serve("neutron.wsgi.api")

    def variables(self) -> dict[str, str | Path]:
        return {
            "OS_NEUTRON_CONFIG_DIR": self.layout.configuration,
            "OS_NEUTRON_CONFIG_FILES": self.config_file.name,
        }
