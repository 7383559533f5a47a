"""What a Linux guest said, as nouns. Pure functions on the agent's raw facts.

Tested with the output of real guests in ``tests/facts``; see the agent's ``verb_facts`` for the
shape of ``raw``.
"""

import re
from collections.abc import Iterator, Sequence

from volferry.guests import fstab, mounts, stacks, systemd
from volferry.model import (
    Disk,
    DiskRef,
    Filesystem,
    GuestFacts,
    Holder,
    Json,
    Layer,
    Mount,
    MountBy,
    PartitionTable,
    Tool,
    Unit,
)

FSTAB_GENERATED = "/etc/fstab"

# Packages by family of distributions; a name that is the same everywhere stands alone.
_PACKAGES: dict[str, str | tuple[str, str, str]] = {
    # tool: package, or (Debian and Ubuntu, Red Hat and Fedora, SUSE)
    "rsync": "rsync",
    "python3": "python3",
    "unshare": "util-linux",
    "blkid": "util-linux",
    "mount": ("mount", "util-linux", "util-linux"),
    "umount": ("mount", "util-linux", "util-linux"),
    "sfdisk": ("fdisk", "util-linux", "util-linux"),
    "mkfs.ext2": "e2fsprogs",
    "mkfs.ext3": "e2fsprogs",
    "mkfs.ext4": "e2fsprogs",
    "resize2fs": "e2fsprogs",
    "mkfs.xfs": "xfsprogs",
    "xfs_growfs": "xfsprogs",
    "mkfs.btrfs": ("btrfs-progs", "btrfs-progs", "btrfsprogs"),
    "btrfs": ("btrfs-progs", "btrfs-progs", "btrfsprogs"),
    "lvs": "lvm2",
    "cryptsetup": ("cryptsetup-bin", "cryptsetup", "cryptsetup"),
    "mdadm": "mdadm",
}

_CONTENT = {
    "LVM2_member": "an LVM physical volume",
    "crypto_LUKS": "LUKS encryption",
    "linux_raid_member": "a member of an md array",
    "swap": "swap space",
    "zfs_member": "a member of a ZFS pool",
    "bcache": "bcache",
}


def read(raw: Json, sources: Sequence[DiskRef]) -> GuestFacts:
    """All that the plan needs of the guest. ``sources`` are the volumes that are asked about."""
    release = dict(_shell_assignments(raw.get("os_release") or ""))
    table = mounts.parse(raw.get("mountinfo") or "")
    known = disks(raw)
    found = [disk for disk in (_source(raw, known, ref) for ref in sources) if disk]
    stack = raw.get("stack") or {}
    layers = stacks.layers(raw)
    filesystems, other = _content(raw, found, layers, table)
    paths = [m.target for fs in filesystems for m in fs.mounts]
    return GuestFacts(
        family="linux",
        os_name=release.get("PRETTY_NAME", ""),
        kernel=raw["uname"]["release"],
        hostname=raw.get("hostname") or "",
        dmi_uuid=raw.get("dmi_uuid") or "",
        root=raw["uid"] == 0,
        python=raw.get("python") or "",
        systemd=_version(raw.get("systemd_version") or ""),
        source_disks=tuple(found),
        unclear=raw.get("unclear") or {},
        disks=tuple(known),
        partition_tables=tuple(_partition_tables(raw, found)),
        filesystems=tuple(filesystems),
        other_content=tuple(other),
        layers=layers,
        nested_mounts=tuple(raw.get("nested_mounts") or ()),
        subvolumes=sum(n or 0 for n in (raw.get("btrfs_subvolumes") or {}).values()),
        holders=tuple(_holders(raw)),
        units=tuple(_units(raw)),
        tools=tuple(_tools(raw, release)),
        no_tracking=raw.get("no_tracking") or "",
        walk_s=sum(_walk_s(raw, path) for path in dict.fromkeys(paths)),
        fstab=raw.get("fstab") or "",
        crypttab=stack.get("crypttab") or "",
        lvm_devices=(stack.get("lvm_devices") or {}).get("text", ""),
        lvm_devices_path=(stack.get("lvm_devices") or {}).get("path", ""),
        free_bytes=raw.get("var_free") or 0,
    )


def disks(raw: Json) -> list[Disk]:
    """Every whole disk that the guest shows."""
    return [
        Disk(
            path=disk["path"],
            size_bytes=disk["size_bytes"],
            serial=disk.get("serial") or disk.get("vpd_pg80") or disk.get("wwid") or "",
            read_only=bool(disk.get("ro")),
            dev=disk["dev"],
        )
        for disk in raw["sysblock"]
    ]


# ---- what lies on the sources --------------------------------------------------------------------


def _source(raw: Json, known: Sequence[Disk], ref: DiskRef) -> Disk | None:
    kname = raw["sources"].get(ref.volume_id)
    disk = next((d for d in known if kname and d.path == f"/dev/{kname}"), None)
    return disk.model_copy(update={"volume_id": ref.volume_id}) if disk else None


def _partition_tables(raw: Json, sources: Sequence[Disk]) -> Iterator[PartitionTable]:
    for disk in sources:
        dump = (raw.get("sfdisk") or {}).get(disk.path, "")
        label = re.search(r"^label: (\w+)", dump, re.MULTILINE)
        if label:
            yield PartitionTable(volume_id=disk.volume_id, label=label[1], dump=dump)


def _content(
    raw: Json, sources: Sequence[Disk], layers: Sequence[Layer], table: list[mounts.Entry]
) -> tuple[list[Filesystem], list[str]]:
    """The mounted filesystems of the disks, and in words whatever else lies on them."""
    found: list[Filesystem | str] = []
    for disk in sources:
        shown = next(d for d in raw["sysblock"] if d["path"] == disk.path)
        parts = shown["partitions"]
        for place in parts or [{**shown, "number": None}]:
            probe = (raw.get("blkid") or {}).get(place["path"]) or {}
            empty = _not_mounted(place["path"], probe.get("TYPE", ""), bool(parts))
            where = {"volume_id": disk.volume_id, "partition": place["number"]}
            found.append(_mounted(raw, table, place, (), where) or empty)
    for spot in stacks.spots(raw, layers):
        kind = ((raw.get("blkid") or {}).get(spot.path) or {}).get("TYPE", "")
        empty = _not_mounted(spot.path, kind, is_partition=True)
        place = {"path": spot.path, "dev": spot.dev, "size_bytes": spot.size_bytes}
        where = {"volume_id": spot.volume_id, "layers": spot.layers}
        found.append(_mounted(raw, table, place, spot.names, where) or empty)
    return (
        [item for item in found if isinstance(item, Filesystem)],
        [item for item in found if isinstance(item, str)],
    )


def _mounted(
    raw: Json, table: list[mounts.Entry], place: Json, names: Sequence[str], where: Json
) -> Filesystem | None:
    """The filesystem on a device, None when none is mounted from it."""
    path = place["path"]
    probe = (raw.get("blkid") or {}).get(path) or {}
    mounted = [
        e for e in table if e.dev == place["dev"] or (e.fstype == "btrfs" and e.source == path)
    ]
    if not mounted:
        return None
    space = (raw.get("statvfs") or {}).get(mounted[0].target) or {}
    names = [*_names(raw, path, probe), *names]
    return Filesystem(
        device=path,
        fstype=mounted[0].fstype,
        uuid=probe.get("UUID", ""),
        label=probe.get("LABEL", ""),
        names=tuple(names),
        size_bytes=place["size_bytes"],
        used_bytes=space.get("used_bytes", 0),
        inodes_used=space.get("inodes_used", 0),
        mounts=tuple(_mount(raw, entry, names, table) for entry in mounted),
        **where,
    )


def _not_mounted(path: str, kind: str, is_partition: bool) -> str:
    if kind in _CONTENT:
        return f"{path} is {_CONTENT[kind]}"
    if kind:
        return f"{path} ({kind}) is not mounted"
    # An extended partition, a BIOS boot partition or just nothing: it can't be told from here.
    return f"{path} has no filesystem" if is_partition else f"{path} has no known content"


def _names(raw: Json, path: str, probe: dict[str, str]) -> list[str]:
    """Every way in which fstab may name a device."""
    names = [path, *((raw.get("links") or {}).get(path) or ())]
    for tag, key in (
        ("UUID", "UUID"),
        ("LABEL", "LABEL"),
        ("PARTUUID", "PART_ENTRY_UUID"),
        ("PARTLABEL", "PART_ENTRY_NAME"),
    ):
        if probe.get(key):
            names.append(f"{tag}={probe[key]}")
    for kind, key in (("uuid", "UUID"), ("label", "LABEL"), ("partuuid", "PART_ENTRY_UUID")):
        if probe.get(key):
            names.append(f"/dev/disk/by-{kind}/{probe[key]}")
    return list(dict.fromkeys(names))


def _mount(
    raw: Json, entry: mounts.Entry, names: Sequence[str], table: list[mounts.Entry]
) -> Mount:
    told: Json = next((m for m in raw.get("mount_units") or [] if m["target"] == entry.target), {})
    properties = next(iter(systemd.show(told.get("show") or "")), {})
    line = next(
        (
            e.line
            for e in fstab.parse(raw.get("fstab") or "")
            if e.target == entry.target
            and (fstab.names_device(e.spec, names) or "bind" in e.option_names)
        ),
        0,
    )
    covered = any(e.target == entry.target and e.fstype == "autofs" for e in table)
    if covered or ".automount" in properties.get("TriggeredBy", ""):
        by = MountBy.AUTOFS
    elif properties.get("SourcePath") == FSTAB_GENERATED or (line and not properties):
        by = MountBy.FSTAB
    elif properties.get("FragmentPath"):
        by = MountBy.UNIT
    else:
        by = MountBy.HAND
    return Mount(
        target=entry.target,
        source=entry.source,
        root=entry.root,
        options=entry.options,
        super_options=entry.super_options,
        propagation=entry.propagation,
        dev=entry.dev,
        by=by,
        unit=properties.get("Id", "") if by in (MountBy.FSTAB, MountBy.UNIT) else "",
        unit_names=systemd.what_of(told.get("file") or "") if by is MountBy.UNIT else "",
        fstab_line=line,
    )


def _walk_s(raw: Json, path: str) -> float:
    """Seconds for the whole tree; a walk that was cut short is extrapolated by the inodes used."""
    walk = (raw.get("walk") or {}).get(path)
    if not walk:
        return 0.0
    seconds = float(walk["seconds"])
    used = ((raw.get("statvfs") or {}).get(path) or {}).get("inodes_used") or 0
    if walk["finished"] or not walk["entries"]:
        return seconds
    return seconds * max(1.0, float(used) / float(walk["entries"]))


# ---- who uses it ---------------------------------------------------------------------------------


def _holders(raw: Json) -> Iterator[Holder]:
    for holder in raw.get("holders") or []:
        place = systemd.membership(holder.get("cgroup") or "")
        service = place.unit if place.unit.endswith(".service") else ""
        where = place.session or (place.unit if not service else "")
        name = holder.get("comm") or holder.get("path") or ""
        yield Holder(
            kind=holder["kind"],
            name=f"{name} in {where}" if where else name,
            pid=holder.get("pid") or 0,
            unit=service,
            container=place.container,
            path=holder.get("path") or "",
            stoppable=holder["kind"] == "process" and bool(service),
        )


def _units(raw: Json) -> Iterator[Unit]:
    # A unit that was asked for under a short name or an alias comes twice.
    shown = {p.get("Id", ""): p for p in systemd.show(raw.get("units") or "")}
    for properties in shown.values():
        if properties.get("LoadState") not in ("not-found", "error", "bad-setting"):
            yield systemd.unit(properties)


# ---- tools ---------------------------------------------------------------------------------------


def _tools(raw: Json, release: dict[str, str]) -> Iterator[Tool]:
    found = raw.get("tools") or {}
    family = " ".join((release.get("ID", ""), release.get("ID_LIKE", "")))
    column = 1 if re.search(r"rhel|fedora|centos", family) else 2 if "suse" in family else 0
    for name, package in _PACKAGES.items():
        told = found.get(name) or {}
        yield Tool(
            name=name,
            path=told.get("path", ""),
            version=_dotted(told.get("version", "")),
            package=package if isinstance(package, str) else package[column],
        )


def _dotted(line: str) -> str:
    match = re.search(r"\d+(?:\.\d+)+", line)
    return match[0] if match else ""


def _version(line: str) -> int:
    match = re.search(r"\d+", line)
    return int(match[0]) if match else 0


def _shell_assignments(text: str) -> Iterator[tuple[str, str]]:
    """os-release(5): shell assignments, quoted with double or single quotes where needed."""
    for line in text.splitlines():
        key, equals, value = line.strip().partition("=")
        if equals and not key.startswith("#"):
            yield key, value.strip("\"'")
