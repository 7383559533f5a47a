"""The rights that SECURITY.md asks for, and no more: in the cloud an application credential with
the access rules of ``docs``, in the guest a login with its sudoers file."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

from lab.api import Lab
from lab.layout import REGION
from tests.lab.naming import named
from tests.lab.volferry_command import Guest
from volferry.cloud.session import Session
from volferry.errors import Usage

DOCS = Path(__file__).resolve().parents[2] / "docs"
LOGIN = "volferry"
BLOCK_STORAGE = {"volumev3": "block-storage"}
"""As SECURITY.md says of clouds whose catalogue has the newer name."""


@contextlib.contextmanager
def application_credential(lab: Lab, folder: Path) -> Iterator[Path]:
    """A clouds.yaml with it, under the lab's own name for the cloud."""
    rules = [
        {**rule, "service": BLOCK_STORAGE.get(rule["service"], rule["service"])}
        for rule in json.loads((DOCS / "access-rules.json").read_text())
    ]
    path = f"/users/{lab.member.user_id}/application_credentials"
    wanted = {"name": named("least"), "roles": [{"name": "member"}], "access_rules": rules}
    made = lab.member.post("identity", path, {"application_credential": wanted})
    credential = made["application_credential"]
    file = folder / "clouds.yaml"
    file.write_text(
        f"""\
clouds:
  volferry-lab:
    auth_type: v3applicationcredential
    auth:
      auth_url: {lab.layout.url("keystone")}/v3
      application_credential_id: {credential["id"]}
      application_credential_secret: {credential["secret"]}
    region_name: {REGION}
    interface: public
    identity_api_version: 3
"""
    )
    file.chmod(0o600)
    try:
        assert may_read(file, "/types")
        assert not may_read(file, "/backups"), "the lab's services do not look at the rules"
        yield file
    finally:
        lab.member.request("DELETE", "identity", f"{path}/{credential['id']}")


def may_read(clouds: Path, path: str) -> bool:
    """Of the block storage."""
    wire = Session.connect("volferry-lab", "", str(clouds), 60)
    try:
        return wire.request("block-storage", "GET", path).status == 200
    except Usage as refused:
        assert "HTTP 401" in refused.what
        return False
    finally:
        wire.close()


def login(guest: Guest) -> str:
    """The words for ``--ssh``. The lab's key may log in as anybody who is there."""
    sudoers = (DOCS / "sudoers").read_text()
    guest.sh(
        f"id {LOGIN} >/dev/null 2>&1 || useradd --create-home --shell /bin/sh {LOGIN}\n"
        f"cat > /etc/sudoers.d/{LOGIN} <<'SUDOERS'\n{sudoers}SUDOERS\n"
        f"chmod 0440 /etc/sudoers.d/{LOGIN}; visudo -qcf /etc/sudoers.d/{LOGIN}"
    )
    return f"{LOGIN}@{guest.name}"
