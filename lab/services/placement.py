"""Placement: what the one compute host has left."""

from __future__ import annotations

from pathlib import Path

from lab.services.base import Service


class Placement(Service):
    name = "placement"
    catalog_type = "placement"

    def configuration(self) -> str:
        return f"""\
[DEFAULT]
log_file = {self.layout.logs}/placement.log
use_stderr = false

[placement_database]
connection = {self.database_url()}

[api]
auth_strategy = keystone
{self.shared()}"""

    def create_schema(self) -> None:
        self.manage("placement-manage", "db", "sync")

    def command(self) -> list[str | Path]:
        return self.serve("placement.wsgi.api")

    def variables(self) -> dict[str, str | Path]:
        return {"OS_PLACEMENT_CONFIG_DIR": self.layout.configuration}
