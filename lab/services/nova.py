"""Nova: one compute host, whose servers are QEMU processes of this machine."""

from __future__ import annotations

import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

from lab import images
from lab.services import rootwrap
from lab.services.base import Service

# Seconds that a guest has to let a disk go; libvirt's driver gives it 8 x 20.
UNPLUG_TIMEOUT_S = 15


class Nova(Service):
    name = "nova"
    catalog_type = "compute"
    catalog_path = "/v2.1"

    def configure(self) -> None:
        super().configure()
        self.layout.servers.mkdir(exist_ok=True)
        # The API looks for it beside nova.conf, whatever [wsgi]api_paste_config says.
        shipped = self.layout.venv / "etc/nova/api-paste.ini"
        shutil.copy(shipped, self.layout.configuration / "api-paste.ini")

    def configuration(self) -> str:
        layout = self.layout
        suites = ",".join(
            f"{suite}:{images.image(layout, suite).folder}" for suite in images.SUITES.values()
        )
        return f"""\
{self.defaults()}
compute_driver = volferry_lab.qemu.QemuDriver
instances_path = {layout.servers}
rootwrap_config = {rootwrap.configure(layout, "nova")}
osapi_compute_workers = 1
report_interval = 5
service_down_time = 300
heal_instance_info_cache_interval = -1
block_device_allocate_retries = 60
block_device_allocate_retries_interval = 1
block_device_creation_timeout = 120
# What ran before `down` runs again after `up`.
resume_guests_state_on_host_boot = true
# A guest that powered itself off is seen as SHUTOFF after this many seconds.
sync_power_state_interval = 10
initial_cpu_allocation_ratio = 64
initial_ram_allocation_ratio = 8

[lab]
suites = {suites}
accelerator = {os.environ.get("VOLFERRY_LAB_ACCEL") or "tcg"}
first_ssh_port = {layout.port("guests")}
unplug_timeout = {UNPLUG_TIMEOUT_S}

[api]
auth_strategy = keystone

[wsgi]
api_paste_config = {layout.configuration}/api-paste.ini

[database]
connection = {self.database_url("nova_cell1")}

[api_database]
connection = {self.database_url("nova_api")}

[quota]
instances = 20
cores = 64
ram = 102400

[conductor]
workers = 1

[scheduler]
workers = 1
discover_hosts_in_cells_interval = -1

[filter_scheduler]
enabled_filters = ComputeFilter,ImagePropertiesFilter

[vnc]
enabled = false

[cache]
enabled = false

[glance]
api_servers = {layout.url("glance")}

[key_manager]
backend = barbican
{self.shared()}{self.client("service_user", "send_service_user_token = true")}\
{self.client("placement", "valid_interfaces = public")}\
{self.client("cinder", "catalog_info = block-storage::public")}\
{self.client("neutron", "valid_interfaces = public")}"""

    def create_schema(self) -> None:
        self.manage("nova-manage", "api_db", "sync")
        self.manage("nova-manage", "db", "sync", "--local_cell")

    def fill_database(self) -> None:
        # Both cells have the same tables; the migrations of one take five seconds.
        databases = self.layout.databases
        with (
            closing(sqlite3.connect(databases / "nova_cell1.sqlite")) as cell1,
            closing(sqlite3.connect(databases / "nova_cell0.sqlite")) as cell0,
        ):
            cell1.backup(cell0)
        url = self.database_url("nova_cell0")
        self.manage("nova-manage", "cell_v2", "map_cell0", "--database_connection", url)
        self.manage("nova-manage", "cell_v2", "create_cell", "--name", "cell1")

    def discover_host(self) -> None:
        """Enter the compute host into the cell; it must have reported once."""
        self.manage("nova-manage", "cell_v2", "discover_hosts")

    def command(self) -> list[str | Path]:
        return self.all_in_one()

    def variables(self) -> dict[str, str | Path]:
        return {
            "OS_NOVA_CONFIG_DIR": self.layout.configuration,
            "OS_NOVA_DISABLE_EVENTLET_PATCHING": "true",
        }
