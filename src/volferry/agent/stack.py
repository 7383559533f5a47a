"""Closes what lies between a disk and its filesystems, and opens it again on the live side.

A layer is ``model.Layer`` as JSON, a stack is a list of them bottom to top. Only layers that are
open (``above``) are closed and opened; saying it twice is saying it once.

Three facts that shape this. An array that was stopped is put together again by udev as soon as
anybody closes one of its members after writing (seen with mdadm 4.2): its disks have to be in
quarantine from the stop on, and what is found put together already is looked at, not trusted.
systemd's unit of a mapping stays active when the mapping was closed behind its back: opening it
again is a restart. And all layers of a clone look like the original's: after every opening the way
down to the disk is read from /sys and has to end on the live side.
"""

import contextlib
import os
import re
import time
from typing import Any, Callable, Dict, List, Set

from volferry.agent.basics import (
    AgentError,
    Json,
    Limit,
    Place,
    names_in,
    read_text,
    run,
    set_by,
    to_bytes,
    told_limit,
)
from volferry.agent.disks import resolve, resolve_device
from volferry.agent.holders import find_openers, name_holders
from volferry.agent.layers import is_luks, partitions_of, read_block
from volferry.agent.mounts import device_number, mount_table

MOMENT_S = 2.0
"""How long a device may be busy with programs that only look at it, such as those of udev."""


def release_stack(place: Place, layers: List[Json], deadline: float) -> None:
    """Close all layers, top to bottom. ``deadline`` is on the monotonic clock.

    Raises AgentError ``busy`` when somebody holds a device of theirs, who is named.
    """
    settle_events(place, deadline)
    for layer in reversed(layers):
        CLOSE.get(layer["kind"], refuse_unknown)(place, layer, deadline)
    settle_events(place, deadline)
    left = [block["path"] for layer in layers for block in open_blocks(place, layer)]
    if left:
        raise AgentError(
            "failed",
            "{} came back after it was closed".format(", ".join(left)),
            "the disks below may be written to",
            "look for what opens it: udev rules, 'journalctl -b'",
        )


def assemble_stack(
    place: Place, layers: List[Json], refs: Dict[str, Json], deadline: float
) -> None:
    """Open all layers that were open, bottom to top. udev has to know the live side already.

    ``refs`` has for each source's volume id the REF of the disk that is live now. Raises AgentError
    ``doubt`` when a layer turns out to lie on any other disk.
    """
    settle_events(place, deadline)
    disks = {resolve(place, ref).kname for ref in refs.values()}
    for layer in layers:
        if not layer["above"]:
            continue
        members = [member_path(place, member, refs) for member in layer["members"]]
        OPEN.get(layer["kind"], refuse_unknown_open)(place, layer, members, deadline)
        wait_for_paths(layer, deadline)
        for path in layer["above"]:
            found = bottom_disks(place, kname_of(path))
            if found - disks or not found:
                raise AgentError(
                    "doubt",
                    "{} lies on {}, expected {}".format(
                        path, ", ".join(sorted(found)) or "nothing", ", ".join(sorted(disks))
                    ),
                    "it was opened, and nothing was mounted from it",
                )


def open_now(place: Place, layers: List[Json]) -> List[Json]:
    """The layers with what they offer now. Logical volumes come and go, as a backup's snapshot
    does: one that was removed since the plan cannot be opened again, one that was added has to."""
    return [
        dict(layer, above=visible_volumes(place, layer))
        if layer["kind"] == "lvm" and layer["uuid"]
        else layer
        for layer in layers
    ]


def visible_volumes(place: Place, group: Json) -> List[str]:
    # LVM's own parts of a volume have a suffix behind its UUID (-real, -cow, -tdata, …).
    blocks = open_blocks(place, group)
    return [block["path"] for block in blocks if "-" not in block["dm"]["uuid"][len("LVM-") :]]


def stack_problem(place: Place, layers: List[Json]) -> str:
    """Why the stack could not be closed once its users have stopped; empty when it could.

    Costs no tool, so that it can be asked with services running. Who has a device open is not
    looked at: that is often who will be stopped, and ``release_stack`` names who was left.
    """
    opened = [block for layer in layers for block in open_blocks(place, layer)]
    ours = {block["kname"] for block in opened}
    ours |= {name for block in opened for name in partitions_of(place, block["kname"])}
    for block in opened:
        strangers = [name for name in block["holders"] if name not in ours]
        if strangers:
            over = read_block(place, strangers[0])["path"]
            return "{} lies on {}, and is none of the layers".format(over, block["path"])
        wrong = array_problem(block)
        if wrong:
            return "{}: {}".format(block["path"], wrong)
    return ""


def array_problem(block: Json) -> str:
    """What of an md array is in motion or missing (Documentation/admin-guide/md.rst)."""
    state = block["md"] or {}
    if state.get("degraded") not in (None, "", "0"):
        return "{} of its {} members are missing".format(state["degraded"], state["raid_disks"])
    if state.get("sync_action") not in (None, "", "idle", "frozen"):
        return "a {} runs".format(state["sync_action"])
    return ""


# ---- how devices lie on each other ---------------------------------------------------------------


def all_blocks(place: Place) -> List[Json]:
    found = []
    for kname in names_in(place.sys + "/block"):
        with contextlib.suppress(FileNotFoundError):
            found.append(read_block(place, kname))
    return found


def kname_of(path: str) -> str:
    return os.path.basename(os.path.realpath(path))


def bottom_disks(place: Place, kname: str) -> Set[str]:
    block = read_block(place, kname)
    under = list(block["slaves"])
    if block["partition"] is not None:
        under.append(block["disk"])
    if not under:
        return {kname} if block["dev"] else set()
    return {disk for name in under for disk in bottom_disks(place, name)}


def open_blocks(place: Place, layer: Json) -> List[Json]:
    """The devices that the layer offers now, its hidden ones as well."""
    found = []
    for block in all_blocks(place):
        dm_uuid = (block["dm"] or {}).get("uuid", "")
        if layer["kind"] == "lvm" and layer["uuid"]:
            ours = dm_uuid.startswith("LVM-" + layer["uuid"].replace("-", ""))
        elif layer["kind"] == "luks":
            ours = is_luks(dm_uuid) and block["dm"]["name"] == layer["name"]
        else:
            ours = block["path"] in layer["above"]
        if ours:
            found.append(block)
    return found


def member_path(place: Place, member: Json, refs: Dict[str, Json]) -> str:
    """Where a device that the layer lies on is now: on the live side, or another layer."""
    if not member["volume_id"]:
        path: str = member["path"]
        return path
    ref = dict(refs[member["volume_id"]], partition=member["partition"])
    return resolve_device(place, ref).path


def wait_for_paths(layer: Json, deadline: float) -> None:
    most_s = seconds_to(deadline)
    while True:
        missing = [path for path in layer["above"] if not os.path.exists(path)]
        if not missing:
            return
        if time.monotonic() >= deadline:
            raise AgentError(
                "failed", "{} did not appear within {} after {} was opened".format(
                    ", ".join(missing), told_limit(most_s), layer["name"]
                )
            )  # fmt: skip
        time.sleep(0.02)


def settle_events(place: Place, deadline: float) -> None:
    """Events on their way open and close devices; one that hangs must not take our time."""
    if place.has_udev:
        seconds = max(1, int(min(10.0, deadline - time.monotonic())))
        with contextlib.suppress(AgentError):
            run(["udevadm", "settle", "--timeout={}".format(seconds)], seconds + 1)


def seconds_to(deadline: float) -> float:
    return Limit(max(0.1, deadline - time.monotonic()), set_by(deadline))


# ---- closing -------------------------------------------------------------------------------------


def close_group(place: Place, layer: Json, deadline: float) -> None:
    # LVM itself tries again for five seconds while somebody only looks at one of the volumes.
    close_with(place, layer, ["vgchange", "-an", layer["name"]], deadline)


def close_mapping(place: Place, layer: Json, deadline: float) -> None:
    # Never "systemctl stop" of its unit: systemd unmounts what is mounted from it (seen with 252).
    close_with(place, layer, ["cryptsetup", "close", "--", layer["name"]], deadline)


def close_array(place: Place, layer: Json, deadline: float) -> None:
    close_with(place, layer, ["mdadm", "--stop", layer["name"]], deadline)


def close_with(place: Place, layer: Json, argv: List[str], deadline: float) -> None:
    """Run the command until nothing of the layer is left: what it says is less than what is."""
    most_s = min(seconds_to(deadline), MOMENT_S)
    give_up = time.monotonic() + most_s
    while True:
        blocks = open_blocks(place, layer)
        if not blocks:
            return
        ran = run(argv, seconds_to(deadline))
        if ran.code == 0 and not open_blocks(place, layer):
            return
        if time.monotonic() >= give_up:
            break
        time.sleep(0.1)
    devices = {block["dev"]: block["path"] for block in open_blocks(place, layer)}
    who = name_holders(find_openers(place, devices, min(5.0, seconds_to(deadline))))
    mounted = [entry.target for entry in mount_table(place) if device_number(entry) in devices]
    where = "mounted on " + ", ".join(mounted) if mounted else "no process is seen to hold it"
    raise AgentError(
        "busy",
        "{} cannot be closed: {} ({}), still after {}".format(
            layer["name"],
            ran.complaint,
            "held by: " + who if who else where,
            told_limit(most_s),
        ),
    )


def refuse_unknown(place: Place, layer: Json, deadline: float) -> None:
    raise AgentError("refused", "{} is of a kind that is not known".format(layer["name"]))


# ---- opening -------------------------------------------------------------------------------------


def open_array(place: Place, layer: Json, members: List[str], deadline: float) -> None:
    """udev may be at the same work: what it made of exactly these members is as good, unless it
    gave the array another name or had only some of the members at hand."""
    wanted = {kname_of(path) for path in members}
    complaint = ""
    most_s = seconds_to(deadline)
    while True:
        arrays = [
            block for block in all_blocks(place)
            if block["md"] and block["partition"] is None and wanted & set(block["slaves"])
        ]  # fmt: skip
        for block in arrays:
            running = block["md"]["array_state"] not in ("inactive", "clear", "")
            named = kname_of(layer["name"]) == block["kname"]
            if running and named and set(block["slaves"]) == wanted:
                return
            run(["mdadm", "--stop", block["path"]], seconds_to(deadline))
        if complaint and time.monotonic() >= deadline:
            raise AgentError(
                "failed",
                "{} was not put together within {}: {}".format(
                    layer["name"], told_limit(most_s), complaint
                ),
            )
        argv = ["mdadm", "--assemble", layer["name"], "--uuid", layer["uuid"]]
        complaint = run(argv + sorted(members), seconds_to(deadline)).complaint
        time.sleep(0.05)


def open_mapping(place: Place, layer: Json, members: List[str], deadline: float) -> None:
    if open_blocks(place, layer):
        return
    unit = cryptsetup_unit(place, layer["name"])
    if unit:
        # Not "start": the unit is still active when the mapping was closed behind its back.
        argv = ["systemctl", "restart", "--", unit]
    elif layer["key"]:
        argv = ["cryptsetup", "open", "--type", "luks", "--key-file", layer["key"]]
        argv += [*crypttab_options(place, layer["name"]), "--", *members, layer["name"]]
    else:
        raise AgentError("refused", "{} has no key but a person's".format(layer["name"]))
    ran = run(argv, seconds_to(deadline))
    if not open_blocks(place, layer):
        raise AgentError("failed", "{} was not opened: {}".format(layer["name"], ran.complaint))


def open_group(place: Place, layer: Json, members: List[str], deadline: float) -> None:
    if os.path.exists(place.run + "/lvm/lvmetad.socket"):  # LVM before 2.03 asks it, not the disks
        run(["pvscan", "--cache", *members], seconds_to(deadline))
    # "--yes": a snapshot is not activated without its origin, and LVM asks whether it may.
    ran = run(["lvchange", "--yes", "-ay", *layer["above"]], seconds_to(deadline))
    if ran.code != 0:
        raise AgentError(
            "failed", "volume group {} was not opened: {}".format(layer["name"], ran.complaint)
        )


def refuse_unknown_open(place: Place, layer: Json, members: List[str], deadline: float) -> None:
    refuse_unknown(place, layer, deadline)


CLOSE: Dict[str, Callable[[Place, Json, float], None]] = {
    "lvm": close_group,
    "luks": close_mapping,
    "md": close_array,
}
OPEN: Dict[str, Callable[[Place, Json, List[str], float], None]] = {
    "lvm": open_group,
    "luks": open_mapping,
    "md": open_array,
}


# ---- crypttab ------------------------------------------------------------------------------------


def cryptsetup_unit(place: Place, name: str) -> str:
    """systemd's unit of a mapping; empty where systemd has made none of crypttab."""
    unit = "systemd-cryptsetup@{}.service".format(escaped(name))
    made = os.path.exists("{}/systemd/generator/{}".format(place.run, unit))
    return unit if made and place.has_systemd else ""


def escaped(name: str) -> str:
    """A name as it stands in a unit's (systemd.unit(5)); a mapping's has no slash."""
    start, rest = name[:1], name[1:]
    first = re.sub(r"[^A-Za-z0-9:_]", hexadecimal, start)
    return first + re.sub(r"[^A-Za-z0-9:_.]", hexadecimal, rest)


def hexadecimal(match: Any) -> str:
    return "".join("\\x{:02x}".format(byte) for byte in to_bytes(match.group()))


def crypttab_options(place: Place, name: str) -> List[str]:
    """The options of crypttab(5) that cryptsetup(8) takes under the same name, or nearly so."""
    same = {
        "discard": "--allow-discards",
        "no-read-workqueue": "--perf-no_read_workqueue",
        "no-write-workqueue": "--perf-no_write_workqueue",
        "same-cpu-crypt": "--perf-same_cpu_crypt",
        "submit-from-crypt-cpus": "--perf-submit_from_crypt_cpus",
    }
    lines = [line.split() for line in read_text(place.etc + "/crypttab").splitlines()]
    fields = next((line for line in lines if len(line) > 3 and line[0] == name), [])
    given = fields[3].split(",") if fields else []
    return [same[option] for option in given if option in same] + [
        "--" + option for option in given if option.startswith(("keyfile-offset=", "keyfile-size="))
    ]
