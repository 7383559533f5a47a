"""What Terraform and OpenTofu must be told: a volume's id is new, its resource is not.

Import ids are those of the provider's own pages: a volume by its id, an attachment as
``<instance id>/<volume id>``. The resources' addresses are the user's; they cannot be known here.

In the provider's schema ``volume_type`` and ``snapshot_id`` force a new volume, and ``snapshot_id``
is not computed: after the import of a volume that was made from a snapshot, a configuration that
does not name the snapshot would *replace* it. So what the configuration has to say is part of this.
"""

from volferry.model import Seed

VOLUME = "openstack_blockstorage_volume_v3"
ATTACHMENT = "openstack_compute_volume_attach_v2"


def commands(server_id: str, target_id: str, program: str = "terraform") -> tuple[str, ...]:
    """The commands that put the new ids into the state, in their order; ``tofu`` takes the same."""
    return (
        f"{program} state rm {ATTACHMENT}.NAME {VOLUME}.NAME",
        f"{program} import {VOLUME}.NAME {target_id}",
        f"{program} import {ATTACHMENT}.NAME {server_id}/{target_id}",
    )


def configuration(name: str, type: str, size_gib: int, seed: Seed) -> tuple[str, ...]:
    """What the resource of the volume has to say, or the next apply replaces or renames it."""
    lines = [
        f"name        = {_quoted(name)}",
        f"size        = {size_gib}",
        f"volume_type = {_quoted(type)}",
    ]
    if seed is Seed.SNAPSHOT:
        lines.append("lifecycle { ignore_changes = [snapshot_id] }  # or apply replaces the volume")
    return tuple(lines)


def _quoted(text: str) -> str:
    """A string of HCL, in which ``${`` and ``%{`` begin templates."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + escaped.replace("${", "$${").replace("%{", "%%{") + '"'
