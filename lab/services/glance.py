"""Glance: the names of the images.

A server's disk does not come out of Glance: the Nova driver finds it in the cache by the image's
property `lab_suite`. Glance holds one MiB of zeros per image, so that its API behaves.
"""

from __future__ import annotations

from pathlib import Path

from lab.services.base import Service


class Glance(Service):
    name = "glance"
    catalog_type = "image"

    @property
    def config_file(self) -> Path:
        # The WSGI module only looks for this name.
        return self.layout.configuration / "glance-api.conf"

    def configure(self) -> None:
        super().configure()
        for folder in ("images", "staging", "tasks"):
            (self.state / folder).mkdir(exist_ok=True)

    def configuration(self) -> str:
        return f"""\
[DEFAULT]
log_file = {self.layout.logs}/glance.log
use_stderr = false
enabled_backends = files:file
enabled_import_methods = []
node_staging_uri = file://{self.state}/staging

[glance_store]
default_backend = files

[files]
filesystem_store_datadir = {self.state}/images

[os_glance_staging_store]
filesystem_store_datadir = {self.state}/staging

[os_glance_tasks_store]
filesystem_store_datadir = {self.state}/tasks

[database]
connection = {self.database_url()}

[paste_deploy]
flavor = keystone
config_file = {self.layout.venv}/etc/glance/glance-api-paste.ini
{self.shared()}"""

    def create_schema(self) -> None:
        self.manage("glance-manage", "db_sync")

    def command(self) -> list[str | Path]:
        return self.serve("glance.wsgi.api")

    def variables(self) -> dict[str, str | Path]:
        return {
            "OS_GLANCE_CONFIG_DIR": self.layout.configuration,
            "OS_GLANCE_CONFIG_FILES": self.config_file.name,
        }
