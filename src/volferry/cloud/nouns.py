"""The services' JSON as our nouns. Pure; the answers of real services are the specification.

What a member may see differs from cloud to cloud, so every field but the id may be missing.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from volferry.model import (
    Attachment,
    Quota,
    Server,
    ServerVolume,
    Snapshot,
    Volume,
    VolumeType,
)

_CINDERS_OWN = ("readonly", "attached_mode")
"""Admin metadata that Cinder mixes into a volume's metadata; they are not the user's to copy."""


def volume(raw: Mapping[str, Any]) -> Volume:
    metadata = {str(k): str(v) for k, v in (raw.get("metadata") or {}).items()}
    return Volume(
        id=raw["id"],
        name=raw.get("name") or "",
        size_gib=int(raw.get("size") or 0),
        type=raw.get("volume_type") or "",
        status=raw.get("status") or "",
        availability_zone=raw.get("availability_zone") or "",
        bootable=_true(raw.get("bootable")),
        encrypted=_true(raw.get("encrypted")),
        multiattach=_true(raw.get("multiattach")),
        read_only=_true(metadata.get("readonly")),
        group_id=raw.get("group_id") or raw.get("consistencygroup_id") or "",
        migration_status=raw.get("migration_status")
        or raw.get("os-vol-mig-status-attr:migstat")
        or "",
        snapshot_id=raw.get("snapshot_id") or "",
        description=raw.get("description") or "",
        metadata={k: v for k, v in metadata.items() if k not in _CINDERS_OWN},
        attachments=tuple(
            Attachment(
                server_id=a.get("server_id") or "",
                volume_id=a.get("volume_id") or raw["id"],
                attachment_id=a.get("attachment_id") or "",
                device=a.get("device") or "",
            )
            for a in raw.get("attachments") or ()
        ),
    )


def snapshot(raw: Mapping[str, Any]) -> Snapshot:
    return Snapshot(
        id=raw["id"],
        name=raw.get("name") or "",
        volume_id=raw.get("volume_id") or "",
        size_gib=int(raw.get("size") or 0),
        status=raw.get("status") or "",
        progress=raw.get("os-extended-snapshot-attributes:progress") or "",
        metadata={str(k): str(v) for k, v in (raw.get("metadata") or {}).items()},
    )


def server(raw: Mapping[str, Any]) -> Server:
    image = raw.get("image")
    return Server(
        id=raw["id"],
        name=raw.get("name") or "",
        status=raw.get("status") or "",
        task_state=raw.get("OS-EXT-STS:task_state") or "",
        locked=_true(raw.get("locked")),
        availability_zone=raw.get("OS-EXT-AZ:availability_zone") or "",
        addresses=_addresses(raw.get("addresses") or {}),
        root_device=raw.get("OS-EXT-SRV-ATTR:root_device_name") or "",
        # Nova shows ``"image": ""`` for a server that booted from a volume.
        boots_from_volume=None if image is None else not image,
    )


def _addresses(networks: Mapping[str, Sequence[Mapping[str, Any]]]) -> tuple[str, ...]:
    every = [a for addresses in networks.values() for a in addresses if a.get("addr")]
    every.sort(key=lambda a: (a.get("OS-EXT-IPS:type") != "floating", a.get("version") != 4))
    return tuple(dict.fromkeys(str(a["addr"]) for a in every))


def server_volume(raw: Mapping[str, Any]) -> ServerVolume:
    return ServerVolume(
        volume_id=raw.get("volumeId") or raw.get("id") or "",
        device=raw.get("device") or "",
        delete_on_termination=_true(raw.get("delete_on_termination")),
        tag=raw.get("tag") or "",
    )


def root_device(server: Server, volumes: Sequence[ServerVolume]) -> str:
    """The device that the server boots from, as far as a member can know it.

    ``root_device_name`` is shown to administrators only (os-extended-server-attributes). For a
    server without an image the root disk is one of its volumes, and Nova gives the root disk the
    first name of its bus. Empty when neither says it.
    """
    if server.root_device or not server.boots_from_volume:
        return server.root_device
    devices = [v.device for v in volumes if v.device]
    return min(devices, key=lambda d: (len(d), d), default="")


def volume_type(raw: Mapping[str, Any]) -> VolumeType:
    public = raw.get("is_public", raw.get("os-volume-type-access:is_public", True))
    specs = raw.get("extra_specs") or {}
    return VolumeType(
        id=raw["id"],
        name=raw.get("name") or "",
        is_public=_true(public),
        extra_specs={str(k): str(v) for k, v in specs.items()},
    )


def quota(raw: Mapping[str, Any]) -> Quota:
    """From ``os-quota-sets/<project>?usage=true``: limit, in_use and reserved of every key."""
    figures = {k: v for k, v in raw.items() if isinstance(v, Mapping) and "limit" in v}
    return Quota(
        limits={k: int(v["limit"]) for k, v in figures.items()},
        used={
            k: int(v.get("in_use") or 0) + int(v.get("reserved") or 0) for k, v in figures.items()
        },
    )


def _true(value: object) -> bool:
    """Cinder writes booleans as JSON ones, as "true" and as Python's "True"."""
    return value is True or (isinstance(value, str) and value.lower() == "true")
