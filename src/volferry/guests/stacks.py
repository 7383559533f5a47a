"""What lies between the volumes and their filesystems: LVM, LUKS and md, as nouns. Pure.

Reads what the agent's ``stack_facts`` says. A layer that is not open counts as well: a reboot, or a
udev event, may open it.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from volferry.guests import crypttab, fstab, lvm_devices
from volferry.model import GuestFacts, Json, Layer, Member

CRYPTTAB = "/etc/crypttab"

# The kernel holds these with no mount and no process to be seen.
_HELD = {"zfs_member": "a member of a ZFS pool", "bcache": "a part of a bcache"}
_STRANGE_KEYS = ("CRYPT-PLAIN", "CRYPT-TCRYPT", "CRYPT-BITLK")


@dataclass(frozen=True)
class Spot:
    """A device on top of the layers that a filesystem may be on."""

    path: str
    dev: str
    size_bytes: int
    volume_id: str
    """The moved volume below it, empty when it spans several."""
    layers: tuple[str, ...]
    names: tuple[str, ...]
    """Other paths that lead to it."""


def layers(raw: Json) -> tuple[Layer, ...]:
    """The layers on the volumes that were asked about, bottom to top."""
    return tuple(_Stack(raw).layers())


def spots(raw: Json, found: Sequence[Layer]) -> list[Spot]:
    """What the layers offer and no other layer has taken."""
    stack = _Stack(raw)
    taken = {path for layer in found for path in layer.devices}
    paths = [path for layer in found for path in layer.above if path not in taken]
    blocks = [stack.by_path[path] for path in paths if path in stack.by_path]
    return [
        Spot(
            path=block["path"],
            dev=block["dev"],
            size_bytes=block["size_bytes"],
            volume_id=stack.only_volume(block["kname"]),
            layers=tuple(
                layer.name for layer in found if set(layer.above) & stack.below(block["kname"])
            ),
            names=tuple(stack.lv_paths.get(block["path"], ())),
        )
        for block in blocks
        if not any(other["disk"] == block["kname"] != other["kname"] for other in stack.above)
    ]


def sides(facts: GuestFacts, targets: Mapping[str, str]) -> tuple[list[Json], list[str]]:
    """Files that name a disk where layers are meant, for either side, and what changes in words.

    ``targets`` are the targets' volume ids by their sources'. The layers' own identity is the same
    on both sides: only an entry of crypttab by the disk (``/dev/vdb``), and one of LVM's devices
    file, which always is, have to follow.
    """
    files, changes = [], []
    table = facts.crypttab
    encrypted = {layer.name: layer for layer in facts.layers if layer.kind == "luks"}
    for entry in crypttab.parse(facts.crypttab):
        layer = encrypted.get(entry.name)
        if layer is None or not layer.volume_ids or fstab.is_stable(entry.device):
            continue
        device = f"UUID={layer.uuid}"
        table = crypttab.with_device(table, entry.line, device)
        changes.append(f"{CRYPTTAB} line {entry.line}: {entry.device} becomes {device}")
    if table != facts.crypttab:
        files.append({"path": CRYPTTAB, "source": facts.crypttab, "target": table})
    listed = lvm_devices.on_targets(facts.lvm_devices, targets)
    if listed != facts.lvm_devices:
        path = facts.lvm_devices_path
        files.append({"path": path, "source": facts.lvm_devices, "target": listed})
        changes.append(f"{path}: the entries of the sources become those of the targets")
    return files, changes


def reasons(facts: GuestFacts) -> Iterator[str]:
    """Why the layers cannot be closed on one side and opened on the other, one by one."""
    for layer in facts.layers:
        if layer.elsewhere:
            disks = ", ".join(layer.elsewhere)
            yield f"{layer.label} lies on {disks} as well, which is not moved"
        if layer.problem:
            yield layer.problem
        if layer.kind == "luks" and layer.above and not layer.key:
            why = layer.key_problem or "no key file was seen to open it"
            yield f"{layer.label} does not open without a person: {why}"
        if layer.kind == "lvm":
            for member in layer.members:
                left = lvm_devices.stays_behind(facts.lvm_devices, member.path, member.volume_id)
                if left and member.volume_id:
                    yield f"{facts.lvm_devices_path} names {member.path} by {left}"


class _Stack:
    def __init__(self, raw: Json) -> None:
        told = raw.get("stack") or {}
        self.probes: dict[str, Json] = {k: v or {} for k, v in (raw.get("blkid") or {}).items()}
        self.links: dict[str, list[str]] = raw.get("links") or {}
        self.moved = {kname: volume_id for volume_id, kname in raw["sources"].items()}
        self.disks: dict[str, Json] = {}
        for disk in raw["sysblock"]:
            kname = disk["kname"]
            self.disks[kname] = {**disk, "slaves": [], "disk": kname, "partition": None}
            for part in disk["partitions"]:
                name = part["path"].removeprefix("/dev/")
                fields = {"kname": name, "disk": kname, "partition": part["number"], "slaves": []}
                self.disks[name] = {**part, **fields}
        listed: list[Json] = told.get("blocks") or []
        self.blocks = {**{block["kname"]: block for block in listed}, **self.disks}
        self.by_path = {block["path"]: block for block in self.blocks.values()}
        self.above = [
            block
            for block in listed
            if block["kname"] not in self.disks and self.volumes(block["kname"])
        ]
        self.lvm: Json = told.get("lvm") or {}
        self.lvm_filters: str = told.get("lvm_filters") or ""
        self.keys: Json = told.get("keys") or {}
        self.arrays: Json = told.get("arrays") or {}
        self.mdadm_conf: str = told.get("mdadm_conf") or ""
        self.crypttab = crypttab.parse(told.get("crypttab") or "")
        self.lv_paths = {
            lv["lv_dm_path"]: [lv["lv_path"]] for lv in self.lvm.get("lvs") or [] if lv["lv_path"]
        }

    # ---- how devices lie on each other -----------------------------------------------------------

    def under(self, kname: str) -> list[str]:
        """The devices straight below: what it is made of, or the disk that it is a part of."""
        block = self.blocks.get(kname) or {"slaves": [], "disk": kname}
        return [*block["slaves"], *([block["disk"]] if block["disk"] != kname else [])]

    def below(self, kname: str) -> set[str]:
        """Paths of all that it lies on, and its own."""
        block = self.blocks.get(kname)
        found = {block["path"]} if block else set()
        return found.union(*(self.below(under) for under in self.under(kname)))

    def bottoms(self, kname: str) -> set[str]:
        under = self.under(kname)
        return set().union(*map(self.bottoms, under)) if under else {kname}

    def volumes(self, kname: str) -> set[str]:
        return {self.moved[disk] for disk in self.bottoms(kname) if disk in self.moved}

    def only_volume(self, kname: str) -> str:
        """The moved volume that it lies on and on nothing else, or empty."""
        bottoms = self.bottoms(kname)
        return self.moved.get(next(iter(bottoms)), "") if len(bottoms) == 1 else ""

    def depth(self, path: str) -> int:
        block = self.by_path.get(path)
        if block is None:
            return 0
        return max((1 + self.depth(self._path(k)) for k in self.under(block["kname"])), default=0)

    def _path(self, kname: str) -> str:
        return self.blocks[kname]["path"] if kname in self.blocks else kname

    # ---- the layers ------------------------------------------------------------------------------

    def layers(self) -> list[Layer]:
        found = [*self._lvm(), *self._luks(), *self._md(), *self._others()]
        return sorted(found, key=lambda layer: max(map(self.depth, layer.devices), default=0))

    def _holding(self, kind: str) -> Iterator[Json]:
        """Devices on the volumes with this content, whether it is open or not."""
        for path, probe in self.probes.items():
            block = self.by_path.get(path)
            if block and probe.get("TYPE") == kind and self.volumes(block["kname"]):
                yield block

    def _made_of(self, paths: Sequence[str]) -> Json:
        """The fields of a layer that say where it lies."""
        members, elsewhere = [], set()
        for path in paths:
            block = self.by_path.get(path)
            bottoms = self.bottoms(block["kname"]) if block else {path}
            elsewhere |= {self._path(disk) for disk in bottoms if disk not in self.moved}
            straight = block is not None and block["disk"] in self.moved and not block["slaves"]
            members.append(
                Member(
                    path=path,
                    volume_id=self.moved[block["disk"]] if block and straight else "",
                    partition=block["partition"] if block and straight else None,
                )
            )
        return {"members": tuple(members), "elsewhere": tuple(sorted(elsewhere))}

    def _lvm(self) -> Iterator[Layer]:
        groups: dict[str, list[Json]] = {}
        known = {pv["pv_uuid"]: pv for pv in self.lvm.get("pvs") or []}
        for block in self._holding("LVM2_member"):
            uuid = self.probes[block["path"]].get("UUID", "")
            groups.setdefault((known.get(uuid) or {}).get("vg_uuid") or uuid, []).append(block)
        for uuid, blocks in groups.items():
            group = next((vg for vg in self.lvm.get("vgs") or [] if vg["vg_uuid"] == uuid), None)
            if group is None:
                # No volume group was made of it, or LVM is not there to say.
                place = self._made_of([block["path"] for block in blocks])
                yield Layer(kind="lvm", name="", uuid="", detail="in no volume group", **place)
                continue
            volumes = [lv for lv in self.lvm.get("lvs") or [] if lv["vg_uuid"] == uuid]
            public = [lv for lv in volumes if "public" in lv["lv_role"].split(",")]
            place = self._made_of([pv["pv_name"] for pv in known.values() if pv["vg_uuid"] == uuid])
            straight = [member.path for member in place["members"] if member.volume_id]
            yield Layer(
                kind="lvm",
                name=group["vg_name"],
                uuid=uuid,
                above=tuple(
                    lv["lv_dm_path"]
                    for lv in public
                    if lv["lv_active"] == "active" and lv["lv_dm_path"] in self.by_path
                ),
                detail=_volumes_in_words(public),
                problem="; ".join([*_group_problems(group, volumes), *self._filtered(straight)]),
                **place,
            )

    def _filtered(self, paths: Sequence[str]) -> Iterator[str]:
        refusing = (lvm_devices.refusing_filter(self.lvm_filters, path) for path in paths)
        for pattern in dict.fromkeys(filter(None, refusing)):
            yield f'a filter of lvm.conf, "{pattern}", would refuse the target'

    def _luks(self) -> Iterator[Layer]:
        for block in self._holding("crypto_LUKS"):
            path, probe = block["path"], self.probes[block["path"]]
            uuid = probe.get("UUID", "")
            names = [path, *self.links.get(path, ()), f"UUID={uuid}"]
            entry = next((e for e in self.crypttab if e.names(names)), None)
            over = next(
                (b for b in self.above if _is_luks(b) and block["kname"] in b["slaves"]), None
            )
            name = over["dm"]["name"] if over else entry.name if entry else ""
            key = self.keys.get(name) or {}
            yield Layer(
                kind="luks",
                name=name,
                uuid=uuid,
                above=(over["path"],) if over else (),
                detail=f"luks{probe.get('VERSION', '')}",
                key=key.get("path", "") if key.get("opens") else "",
                key_problem=key.get("problem", ""),
                open_s=key.get("seconds") or 0.0,
                **self._made_of([path]),
            )

    def _md(self) -> Iterator[Layer]:
        arrays: dict[str, list[Json]] = {}
        for block in self._holding("linux_raid_member"):
            arrays.setdefault(self.probes[block["path"]].get("UUID", ""), []).append(block)
        for uuid, blocks in arrays.items():
            knames = {block["kname"] for block in blocks}
            over = next((b for b in self.above if b["md"] and knames & set(b["slaves"])), None)
            slaves = [self._path(kname) for kname in over["slaves"]] if over else []
            parts = [b["path"] for b in self.above if over and b["disk"] == over["kname"]]
            told = self.arrays.get(over["path"] if over else "") or {}
            yield Layer(
                kind="md",
                name=over["path"] if over else "",
                uuid=told.get("MD_UUID") or uuid,
                above=tuple(dict.fromkeys([over["path"], *parts])) if over else (),
                detail=over["md"]["level"] if over else "",
                at_end=over is not None and over["md"]["metadata_version"] in ("0.90", "1.0"),
                problem=(over and _array_problem(over["md"])) or _disks_named(self.mdadm_conf),
                **self._made_of(slaves or [block["path"] for block in blocks]),
            )

    def _others(self) -> Iterator[Layer]:
        """Device-mapper tables and the like that nobody here knows how to open again."""
        for kind, words in _HELD.items():
            for block in self._holding(kind):
                yield Layer(
                    kind="other",
                    name=block["path"],
                    problem=f"{block['path']} is {words}, which volferry does not take over",
                    **self._made_of([block["path"]]),
                )
        for block in self.above:
            uuid = (block["dm"] or {}).get("uuid", "")
            if block["md"] or block["partition"] is not None or uuid.startswith("LVM-"):
                continue
            if _is_luks(block):
                continue
            what = uuid.partition("-")[0] or "no known owner"
            plain = uuid.startswith(_STRANGE_KEYS)
            yield Layer(
                kind="other",
                name=block["path"],
                uuid=uuid,
                above=(block["path"],),
                detail="encryption without LUKS" if plain else what,
                problem=f"{block['path']} ({'encryption without LUKS' if plain else what}) is of a "
                "kind that volferry does not open again",
                **self._made_of([self._path(kname) for kname in block["slaves"]]),
            )


def _is_luks(block: Json) -> bool:
    return bool(block["dm"]) and block["dm"]["uuid"].startswith("CRYPT-LUKS")


def _volumes_in_words(volumes: Sequence[Json]) -> str:
    """ "2 logical volumes (1 thin)"."""
    special: dict[str, int] = {}
    for lv in volumes:
        kind = "snapshot" if "snapshot" in lv["lv_role"].split(",") else lv["segtype"]
        if kind not in ("linear", "striped"):
            special[kind] = special.get(kind, 0) + 1
    of_them = ", ".join(f"{count} {kind}" for kind, count in sorted(special.items()))
    count = f"{len(volumes)} logical volume{'' if len(volumes) == 1 else 's'}"
    return f"{count} ({of_them})" if of_them else count


def _group_problems(group: Json, volumes: Sequence[Json]) -> Iterator[str]:
    """What of a volume group would not survive being closed and opened again, or is in motion."""
    name = group["vg_name"]
    missing = int(group["vg_missing_pv_count"] or 0)
    if missing:
        yield f"volume group {name} misses {missing} of its physical volumes"
    if group["vg_lock_type"] not in ("", "none"):
        yield f"volume group {name} is shared with other hosts (lock type {group['vg_lock_type']})"
    if "x" in group["vg_attr"][:3]:
        yield f"volume group {name} is exported"
    for lv in volumes:
        full = f"{name}/{lv['lv_name']}"
        if lv["move_pv"]:
            yield f"pvmove is at work in volume group {name}"
        if lv["lv_merging"] not in ("", "0") or lv["lv_converting"] not in ("", "0"):
            yield f"{full} is being merged or converted"
        if lv["lv_health_status"]:
            yield f"{full}: {lv['lv_health_status']}"
        synced = lv["sync_percent"]
        # A cache and a thin volume fill this field too, with how much is clean or mapped.
        if synced and lv["segtype"].startswith(("raid", "mirror")) and float(synced) < 100:
            yield f"{full} is {synced} % in sync"


def _disks_named(mdadm_conf: str) -> str:
    """A line of mdadm.conf(5) that would keep the array from being found on other disks."""
    for line in re.sub(r"\n[ \t]+", " ", mdadm_conf).splitlines():
        keyword, *words = line.split("#")[0].split() or [""]
        only = keyword.upper() == "DEVICE" and "partitions" not in words
        if only or any(word.startswith("devices=") for word in words):
            return f"mdadm.conf names disks: {' '.join([keyword, *words])}"
    return ""


def _array_problem(md: Json) -> str:
    if md["degraded"] not in ("", "0"):
        return f"{md['degraded']} of {md['raid_disks']} members are missing: degraded"
    if md["sync_action"] not in ("", "idle", "frozen"):
        return f"a {md['sync_action']} runs"
    if md["array_state"] in ("inactive", "clear", "broken"):
        return f"its state is {md['array_state']}"
    return ""
