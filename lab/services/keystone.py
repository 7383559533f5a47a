"""Keystone: who may do what, and where the services are."""

from __future__ import annotations

import getpass
import grp
import os
from pathlib import Path

from lab.layout import REGION
from lab.services.base import Service


class Keystone(Service):
    name = "keystone"

    def configuration(self) -> str:
        return f"""\
[DEFAULT]
log_file = {self.layout.logs}/keystone.log
use_stderr = false

[database]
connection = {self.database_url()}

[token]
provider = fernet
# Longer than any test run: a token that ends in the middle would be a second kind of failure.
expiration = 86400

[fernet_tokens]
key_repository = {self.state}/fernet-keys

# Receipts have a repository of their own, by default in /etc/keystone.
[fernet_receipts]
key_repository = {self.state}/fernet-keys

[credential]
key_repository = {self.state}/credential-keys

[cache]
enabled = true
backend = dogpile.cache.memory

[identity]
# The lowest cost that bcrypt has: these passwords guard nothing but this machine's loopback.
password_hash_rounds = 4
"""

    def create_schema(self) -> None:
        self.manage("keystone-manage", "db_sync")

    def fill_database(self) -> None:
        owner = [
            "--keystone-user",
            getpass.getuser(),
            "--keystone-group",
            grp.getgrgid(os.getgid()).gr_name,
        ]
        self.manage("keystone-manage", "fernet_setup", *owner)
        self.manage("keystone-manage", "credential_setup", *owner)
        self.manage(
            "keystone-manage",
            "bootstrap",
            "--bootstrap-region-id",
            REGION,
            "--bootstrap-public-url",
            f"{self.url}/v3",
            variables={"OS_BOOTSTRAP_PASSWORD": self.layout.secret("admin")},
        )

    def command(self) -> list[str | Path]:
        return self.serve("keystone.wsgi.api")

    def variables(self) -> dict[str, str | Path]:
        return {
            "OS_KEYSTONE_CONFIG_DIR": self.layout.configuration,
            "OS_KEYSTONE_CONFIG_FILES": self.config_file,
        }
