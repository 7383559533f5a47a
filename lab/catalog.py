"""What the cloud offers: users, service catalogue, quotas, volume types, flavors, images.

Every function may be called again on a cloud that has it all.
"""

from __future__ import annotations

from pathlib import Path

from lab import images
from lab.cloud import Cloud
from lab.layout import REGION, Layout, write_atomically
from lab.services import ALL
from lab.services.base import SERVICE_PROJECT, SERVICE_USER
from lab.services.cinder import DEFAULT_TYPE

VOLUME_TYPES = {
    DEFAULT_TYPE: "standard",
    # On the same back end: a retype to it changes the type and moves nothing.
    "cbs-standard-iops": "standard",
    "cbs-premium": "premium",
}
FLAVORS = {"m1.small": (1, 1024), "m1.medium": (2, 2048)}

_PLAIN_TYPE_SPECS = {"cbs-standard-iops": {"lab:tier": "iops"}}


def enter_services(layout: Layout) -> None:
    """Make the users and the catalogue; only Keystone needs to run."""
    admin = Cloud.admin(layout)
    roles = {role["name"]: role["id"] for role in admin.get("identity", "/roles")["roles"]}
    _user(admin, layout, SERVICE_PROJECT, SERVICE_USER, "services", roles, ("admin", "service"))
    _user(admin, layout, "demo", "demo", "demo", roles, ("member",))
    known = {service["type"] for service in admin.get("identity", "/services")["services"]}
    for kind in ALL:
        if kind.catalog_type is None or kind.catalog_type in known:
            continue
        entry = {"name": kind.name, "type": kind.catalog_type}
        service = admin.post("identity", "/services", {"service": entry})["service"]
        endpoint = {
            "service_id": service["id"],
            "interface": "public",
            "url": layout.url(kind.name) + kind.catalog_path,
            "region_id": REGION,
        }
        admin.post("identity", "/endpoints", {"endpoint": endpoint})


def enter_offers(layout: Layout) -> None:
    """Make types, flavors and images; all services need to run."""
    admin = Cloud.admin(layout)
    types = {known["name"] for known in admin.get("block-storage", "/types")["volume_types"]}
    for name, back_end in VOLUME_TYPES.items():
        if name not in types:
            specs = {"volume_backend_name": back_end, **_PLAIN_TYPE_SPECS.get(name, {})}
            volume_type = {"name": name, "extra_specs": specs}
            admin.post("block-storage", "/types", {"volume_type": volume_type})
    flavors = {known["name"] for known in admin.get("compute", "/flavors")["flavors"]}
    for name, (vcpus, ram_mib) in FLAVORS.items():
        if name not in flavors:
            flavor = {"name": name, "vcpus": vcpus, "ram": ram_mib, "disk": images.ROOT_DISK_GIB}
            admin.post("compute", "/flavors", {"flavor": flavor})
    known_images = {known["name"] for known in admin.get("image", "/v2/images")["images"]}
    for name, suite in images.SUITES.items():
        for suffix, properties in (("", {}), ("-scsi", {"hw_disk_bus": "scsi"})):
            if name + suffix not in known_images:
                _image(admin, name + suffix, suite, properties)


def write_clouds(layout: Layout) -> None:
    """Write clouds.yaml with the member alone, and clouds-admin.yaml."""
    for path, cloud, name, project in (
        (layout.clouds_yaml, "volferry-lab", "demo", "demo"),
        (layout.clouds_admin_yaml, "volferry-lab-admin", "admin", "admin"),
    ):
        text = f"""\
clouds:
  {cloud}:
    auth:
      auth_url: {layout.url("keystone")}/v3
      username: {name}
      password: {layout.secret(name)}
      project_name: {project}
      user_domain_id: default
      project_domain_id: default
    region_name: {REGION}
    interface: public
    identity_api_version: 3
"""
        write_atomically(path, text, mode=0o600)


def write_openstack_client(layout: Layout) -> Path:
    """Write the command `openstack` that uses the lab's client, and return its path."""
    layout.client.mkdir(exist_ok=True)
    program = layout.client / "openstack"
    write_atomically(program, f'#!/bin/sh\nexec "{layout.program("openstack")}" "$@"\n', mode=0o755)
    return program


def _user(
    admin: Cloud,
    layout: Layout,
    project_name: str,
    name: str,
    secret: str,
    roles: dict[str, str],
    wanted_roles: tuple[str, ...],
) -> None:
    projects = admin.get("identity", f"/projects?name={project_name}")["projects"]
    if not projects:
        project = {"name": project_name, "domain_id": "default"}
        projects = [admin.post("identity", "/projects", {"project": project})["project"]]
    users = admin.get("identity", f"/users?name={name}")["users"]
    if not users:
        user = {"name": name, "password": layout.secret(secret), "domain_id": "default"}
        users = [admin.post("identity", "/users", {"user": user})["user"]]
    for role in wanted_roles:
        grant = f"/projects/{projects[0]['id']}/users/{users[0]['id']}/roles/{roles[role]}"
        admin.request("PUT", "identity", grant)


def _image(admin: Cloud, name: str, suite: str, properties: dict[str, str]) -> None:
    body = {
        "name": name,
        "disk_format": "raw",
        "container_format": "bare",
        "visibility": "public",
        "os_distro": "debian",
        "os_version": name.split("-")[1],
        "lab_suite": suite,
        **properties,
    }
    made = admin.post("image", "/v2/images", body)
    admin.request("PUT", "image", f"/v2/images/{made['id']}/file", bytes(1 << 20))
