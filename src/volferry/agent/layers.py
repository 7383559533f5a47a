"""What lies between a disk and its filesystems: LVM, LUKS, md. Looks only, changes nothing.

The devices and how they lie on each other are read from /sys, which is the kernel's word and needs
no tool; what only a tool can tell (which volume group a disk belongs to while nothing of it is
active, whether a key file opens an encryption) is asked for where it is needed.
"""

import collections
import os
import time
from typing import Any, Dict, Iterable, List, Optional, Set

from volferry.agent.basics import (
    AgentError,
    Json,
    Place,
    asked,
    asked_json,
    names_in,
    read_line,
    read_text,
    run,
)
from volferry.agent.disks import Disk

KEY_S = 60.0
"""Deadline of one try of a key: argon2 takes seconds on purpose."""

# Reading a volume group makes LVM bring its copy in /etc/lvm up to date, unless told not to.
LVM_UNCHANGED = ["--config", "backup{backup=0 archive=0}", "--reportformat", "json"]
LVM_REPORTS = {
    "pvs": ["pv_name,pv_uuid,vg_name,vg_uuid"],
    "vgs": ["vg_name,vg_uuid,vg_attr,vg_missing_pv_count,vg_lock_type,vg_systemid"],
    "lvs": [
        "vg_uuid,lv_name,lv_dm_path,lv_path,lv_attr,lv_active,segtype,lv_role,"
        "sync_percent,lv_health_status,lv_merging,lv_converting,move_pv",
        "--all",
    ],
}
LVM_FILTERS = ["lvmconfig", "--typeconfig", "full", "devices/filter", "devices/global_filter"]
MD_FILES = ("level", "raid_disks", "degraded", "array_state", "sync_action", "metadata_version")


def read_block(place: Place, kname: str) -> Json:
    """One block device as /sys shows it, with what it lies on and what lies on it."""
    folder = "{}/class/block/{}".format(place.sys, kname)
    name = read_line(folder + "/dm/name")
    number = read_line(folder + "/partition")
    return {
        "kname": kname,
        "path": "/dev/mapper/" + name if name else "/dev/" + kname.replace("!", "/"),
        "dev": read_line(folder + "/dev"),
        "size_bytes": 512 * int(read_line(folder + "/size") or 0),
        "slaves": names_in(folder + "/slaves"),
        "holders": names_in(folder + "/holders"),
        "partition": int(number) if number else None,
        "disk": os.path.basename(os.path.dirname(os.path.realpath(folder))) if number else kname,
        "dm": {"name": name, "uuid": read_line(folder + "/dm/uuid")} if name else None,
        "md": {file: read_line("{}/md/{}".format(folder, file)) for file in MD_FILES}
        if os.path.isdir(folder + "/md")
        else None,
    }


def partitions_of(place: Place, kname: str) -> List[str]:
    folder = "{}/class/block/{}".format(place.sys, kname)
    names = names_in(folder)
    return [name for name in names if os.path.exists("{}/{}/partition".format(folder, name))]


def blocks_above(place: Place, disks: Iterable[Disk]) -> List[Json]:
    """Every device that lies on the disks or their partitions, each after those below it."""
    found: Dict[str, Json] = collections.OrderedDict()

    def climb(kname: str) -> None:
        for above in read_block(place, kname)["holders"] + partitions_of(place, kname):
            found.pop(above, None)  # found on a longer way: it comes later
            found[above] = read_block(place, above)
            climb(above)

    ours = set()
    for disk in disks:
        ours |= {disk.kname, *partitions_of(place, disk.kname)}
        climb(disk.kname)
    return [block for kname, block in found.items() if kname not in ours]


def lain_upon(place: Place, paths: Iterable[str]) -> Set[str]:
    """Device numbers of those that have a partition or another device on top."""
    names = [os.path.basename(os.path.realpath(path)) for path in paths]
    blocks = [read_block(place, name) for name in names]
    return {b["dev"] for b in blocks if b["holders"] or partitions_of(place, b["kname"])}


def blocks_below(place: Place, blocks: Iterable[Json]) -> List[Json]:
    """All that these lie on, down to the disks, without themselves."""
    known = {block["kname"] for block in blocks}
    todo = [name for block in blocks for name in block["slaves"]]
    found: List[Json] = []
    while todo:
        kname = todo.pop()
        if kname in known:
            continue
        known.add(kname)
        found.append(read_block(place, kname))
        todo += found[-1]["slaves"]
        if found[-1]["partition"] is not None:
            todo.append(found[-1]["disk"])
    return found


def stack_facts(
    place: Place,
    problems: List[str],
    disks: List[Disk],
    above: List[Json],
    probes: Dict[str, Optional[Dict[str, str]]],
    try_keys: bool,
) -> Json:
    """What the parser of stacks needs; empty where nothing lies on the disks.

    ::

        blocks [{kname, path, dev, size_bytes, slaves: [kname], holders: [kname], partition, disk,
                 dm: {name, uuid}|null, md: {level, degraded, array_state, sync_action, …}|null}]
               the devices on the sources bottom to top, and all else that these lie on
        lvm {pvs: [{…}], vgs: [{…}], lvs: [{…}]}       LVM's own reports, where it has a part
        lvm_devices {path, text}                       its devices file, where it uses one
        lvm_filters: text of ``lvmconfig`` for its filters
        crypttab, mdadm_conf: text
        keys {mapping: {path, opens: bool, seconds, problem}}
        arrays {path: {MD_UUID, MD_NAME, …}}           ``mdadm --detail --export``
    """
    types = {(probe or {}).get("TYPE", "") for probe in probes.values()}
    if not above and not types & {"LVM2_member", "crypto_LUKS", "linux_raid_member"}:
        return {}
    crypttab = read_text(place.etc + "/crypttab")
    encrypted = [block for block in above if block["dm"] and is_luks(block["dm"]["uuid"])]
    return {
        "blocks": above + blocks_below(place, above),
        "lvm": lvm_reports(problems) if "LVM2_member" in types else {},
        "lvm_devices": lvm_devices(place, problems) if "LVM2_member" in types else {},
        "lvm_filters": asked(problems, LVM_FILTERS) if "LVM2_member" in types else "",
        "crypttab": crypttab,
        "mdadm_conf": read_text(place.etc + "/mdadm/mdadm.conf")
        or read_text(place.etc + "/mdadm.conf"),
        "keys": {block["dm"]["name"]: tried_key(place, crypttab, block) for block in encrypted}
        if try_keys
        else {},
        "arrays": {
            block["path"]: exported(
                asked(problems, ["mdadm", "--detail", "--export", block["path"]])
            )
            for block in above
            if block["md"] and block["partition"] is None
        },
    }


def is_luks(dm_uuid: str) -> bool:
    return dm_uuid.startswith("CRYPT-LUKS")


def lvm_reports(problems: List[str]) -> Json:
    reports: Dict[str, Any] = {}
    for name, wanted in LVM_REPORTS.items():
        said = asked_json(problems, [name, *LVM_UNCHANGED, "-o", *wanted]) or {}
        reports[name] = [
            line for part in said.get("report", []) for line in part.get(name[:-1], [])
        ]
    return reports


def lvm_devices(place: Place, problems: List[str]) -> Json:
    """LVM's devices file (lvmdevices(8)); empty when LVM takes any device."""
    folder = place.etc + "/lvm/devices"
    if not os.path.isdir(folder):
        return {}
    asked_for = ["devices/use_devicesfile", "devices/devicesfile"]
    settings = exported(asked(problems, ["lvmconfig", "--typeconfig", "full", *asked_for]))
    path = os.path.join(folder, settings.get("devicesfile", "").strip('"') or "system.devices")
    text = read_text(path) if settings.get("use_devicesfile") == "1" else ""
    return {"path": path, "text": text} if text else {}


def exported(text: Optional[str]) -> Dict[str, str]:
    """Lines of ``KEY=VALUE``."""
    pairs = (line.strip().partition("=") for line in (text or "").splitlines())
    return {key: value for key, equals, value in pairs if equals}


def tried_key(place: Place, crypttab: str, block: Json) -> Json:
    """Whether crypttab(5) names a key that opens this mapping's device without a person.

    The key is tried, not only looked for: a cutover that finds it wrong has closed the mapping
    already. What was meant for a person, a token or another device is told as a problem.
    """
    name = block["dm"]["name"]
    found: Json = {"path": "", "opens": False, "seconds": 0.0, "problem": ""}
    lines = [line.split() for line in crypttab.splitlines()]
    fields = next((line for line in lines if len(line) > 1 and line[0] == name), [])
    if not fields:
        found["problem"] = "it is not in /etc/crypttab"
        return found
    key = fields[2] if len(fields) > 2 and fields[2] not in ("none", "-") else ""
    options = exported("\n".join(fields[3].split(","))) if len(fields) > 3 else {}
    strange = [option for option in CRYPT_OPTIONS_NOT_TRIED if option in options]
    # systemd 248 and later look for a key of the mapping's name there.
    usual = "{}/cryptsetup-keys.d/{}.key".format(place.etc, name)
    if not key and os.path.exists(usual):
        key = usual
    found["path"] = key
    if strange:
        found["problem"] = "crypttab asks for {}, which was not tried".format(", ".join(strange))
    elif not key:
        found["problem"] = "crypttab names no key file: somebody types the passphrase"
    elif not os.path.isfile(key):
        found["problem"] = "its key {} is not a file".format(key)
    else:
        argv = ["cryptsetup", "open", "--type", "luks", "--test-passphrase", "--key-file", key]
        for option in ("keyfile-offset", "keyfile-size"):
            if options.get(option):
                argv += ["--" + option, options[option]]
        began = time.monotonic()
        try:
            ran = run([*argv, read_block(place, block["slaves"][0])["path"]], KEY_S)
        except AgentError as error:
            found["problem"] = error.what
        else:
            found["opens"] = ran.code == 0
            found["seconds"] = round(time.monotonic() - began, 3)
            if ran.code != 0:
                found["problem"] = "{} does not open it: {}".format(key, ran.complaint)
    return found


CRYPT_OPTIONS_NOT_TRIED = (
    "keyscript", "header", "tpm2-device", "fido2-device", "pkcs11-uri", "tcrypt",
)  # fmt: skip
