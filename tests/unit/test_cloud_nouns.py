"""The services' JSON, as real services wrote it, to nouns."""

from typing import Any

import pytest

from volferry.cloud import lookup, nouns
from volferry.errors import Usage
from volferry.model import MARK, ServerVolume

VOLUME: dict[str, Any] = {
    "id": "064871a5-0c3d-4d66-a1d0-d948556f9e9d",
    "status": "in-use",
    "size": 1,
    "availability_zone": "nova",
    "created_at": "2026-11-23T03:55:13.150386",
    "name": "data",
    "description": None,
    "volume_type": "cbs-standard",
    "snapshot_id": None,
    "metadata": {"readonly": "True", "attached_mode": "ro", MARK: "tr-1"},
    "bootable": "false",
    "encrypted": False,
    "consistencygroup_id": None,
    "multiattach": False,
    "group_id": None,
    "attachments": [
        {
            "id": "064871a5-0c3d-4d66-a1d0-d948556f9e9d",
            "attachment_id": "40dac3ca-337c-4fc9-ae83-12166e5ea1c2",
            "volume_id": "064871a5-0c3d-4d66-a1d0-d948556f9e9d",
            "server_id": "58074d33-df74-46dd-909c-e2cde4b31fb5",
            "host_name": None,
            "device": "/dev/vdb",
        }
    ],
}


def test_a_volume_is_read_without_cinders_own_metadata() -> None:
    volume = nouns.volume(VOLUME)
    assert volume.read_only is True
    assert volume.bootable is False
    assert volume.metadata == {MARK: "tr-1"}
    assert volume.attachments[0].device == "/dev/vdb"
    assert volume.description == ""


def test_a_volume_of_which_a_cloud_tells_only_the_id_is_read() -> None:
    assert nouns.volume({"id": "x"}).id == "x"
    assert nouns.snapshot({"id": "x"}).id == "x"
    assert nouns.server({"id": "x"}).boots_from_volume is None


def test_addresses_come_floating_first_then_ipv4() -> None:
    fixed4 = {"addr": "10.0.0.5", "version": 4, "OS-EXT-IPS:type": "fixed"}
    fixed6 = {"addr": "2001:db8::5", "version": 6, "OS-EXT-IPS:type": "fixed"}
    floating = {"addr": "198.51.100.7", "version": 4, "OS-EXT-IPS:type": "floating"}
    server = nouns.server({"id": "x", "addresses": {"net": [fixed6, fixed4, floating]}})
    assert server.addresses == ("198.51.100.7", "10.0.0.5", "2001:db8::5")


def test_the_root_device_of_a_server_without_an_image_is_its_first() -> None:
    lines = [ServerVolume(volume_id=v, device=f"/dev/{v}") for v in ("vdb", "vdaa", "vda")]
    from_volume = nouns.server({"id": "x", "image": ""})
    assert nouns.root_device(from_volume, lines) == "/dev/vda"
    from_image = nouns.server({"id": "x", "image": {"id": "i"}})
    assert nouns.root_device(from_image, lines) == ""
    told = nouns.server({"id": "x", "image": "", "OS-EXT-SRV-ATTR:root_device_name": "/dev/sda"})
    assert nouns.root_device(told, lines) == "/dev/sda"


def test_quota_counts_what_is_reserved_as_used() -> None:
    quota = nouns.quota(
        {"id": "p", "gigabytes": {"limit": 10, "in_use": 3, "reserved": 2, "allocated": 0}}
    )
    assert quota.limits == {"gigabytes": 10}
    assert quota.used == {"gigabytes": 5}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("064871a5-0c3d-4d66-a1d0-d948556f9e9d", True),
        ("064871a50c3d4d66a1d0d948556f9e9d", True),
        ("web-03", False),
        ("../servers", False),
    ],
)
def test_only_what_looks_like_an_id_is_asked_for_by_id(text: str, expected: bool) -> None:
    assert lookup.may_be_id(text) is expected


def test_an_unknown_name_without_similar_ones_is_told_where_to_look() -> None:
    with pytest.raises(Usage) as wrong:
        lookup.choose("server", "web", [{"id": "1", "name": "database"}, {"id": "2"}])
    assert wrong.value.hint == "'openstack server list' shows those that the project has"
    assert "2 servers" in wrong.value.what
