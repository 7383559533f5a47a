"""Cinder: two back ends over raw files, so that a retype really moves data."""

from __future__ import annotations

from pathlib import Path

from lab.services import rootwrap
from lab.services.base import Service

# Back end → folder under the volumes' file system and `volume_backend_name`.
BACK_ENDS = ("standard", "premium")
DEFAULT_TYPE = "cbs-standard"


class Cinder(Service):
    name = "cinder"
    catalog_type = "block-storage"
    catalog_path = "/v3"

    def configuration(self) -> str:
        layout = self.layout
        back_ends = "".join(
            f"""
[{name}]
volume_driver = volferry_lab.filevol.FileVolumeDriver
volume_backend_name = {name}
lab_volume_folder = {layout.volumes}/{name}
"""
            for name in BACK_ENDS
        )
        return f"""\
{self.defaults()}
osapi_volume_workers = 1
api_paste_config = {layout.venv}/etc/cinder/api-paste.ini
rootwrap_config = {rootwrap.configure(layout, "cinder")}
resource_query_filters_file = {layout.venv}/etc/cinder/resource_filters.json
auth_strategy = keystone
enabled_backends = {",".join(BACK_ENDS)}
volume_manager = volferry_lab.filevol.LabVolumeManager
default_volume_type = {DEFAULT_TYPE}
glance_api_servers = {layout.url("glance")}
volume_clear = none
report_interval = 5
service_down_time = 300
backend_stats_polling_interval = 5
periodic_interval = 5
periodic_fuzzy_delay = 1
allow_availability_zone_fallback = true
scheduler_driver_init_wait_time = 10
# An ordered fault must end in `error`, not be tried again on the same back end.
scheduler_max_attempts = 1
quota_volumes = 200
quota_snapshots = 200
quota_gigabytes = 5000

[database]
connection = {self.database_url()}

[coordination]
backend_url = file://{self.state}/coordination
{back_ends}{self.shared()}{self.client("service_user", "send_service_user_token = true")}\
{self.client("nova", "interface = public")}"""

    def create_schema(self) -> None:
        self.manage("cinder-manage", "db", "sync")

    def command(self) -> list[str | Path]:
        return self.all_in_one()
