"""Facts in, a plan out. No input and no output, so that ``plan`` cannot change anything.

Every check here is of something that fails later in the transfer when it is not looked at now; it
comes with the figures that were measured. A refusal means that ``run`` will not start.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

from volferry.errors import VolferryError
from volferry.guests import crypttab, fstab, lvm_devices
from volferry.methods import Method, all_methods
from volferry.model import (
    GIB,
    Check,
    CloudFacts,
    Filesystem,
    GuestFacts,
    Holder,
    MethodChoice,
    Pair,
    Plan,
    Promise,
    Quota,
    Result,
    Seed,
    Server,
    Unit,
    Volume,
    Wanted,
)
from volferry.steps import SEQUENCE
from volferry.steps.step import Undo, fill

MAX_DISKS = 25
"""Disks of a server on virtio: 26 names ``vda``-``vdz``, less the root disk (Nova's default)."""

CSI_MARKS = ("csi.", "kubernetes.io/", "cinder.csi.openstack.org/", "csi.storage.k8s.io/")
STATE_BYTES = 64 * 1024 * 1024
"""What the agent's records and logs may need below ``/var/lib``."""

ROOT_DEVICES = re.compile(r"^/dev/(vd|sd|xvd|hd)a$")


def plan(
    wanted: Wanted,
    cloud: CloudFacts,
    guest: GuestFacts | None,
    trouble: VolferryError | None = None,
) -> Plan:
    """The plan for what the user wants, given all that cloud and guest said.

    ``guest`` is None when the guest could not be asked, for the reason that ``trouble`` gives; that
    is then the only check of the guest.
    """
    facts = guest or GuestFacts(family="unknown")
    choices, method = choose(wanted, cloud, facts)
    pairs = tuple(_pair(wanted, cloud, facts, method, source) for source in cloud.sources)
    units = _units(wanted, facts)
    peak = quota_peak(pairs)
    checks = [
        *_cloud_checks(cloud, pairs),
        *_size_checks(pairs, facts),
        *_quota_checks(cloud, pairs, peak),
        *(
            [
                _method_check(wanted, choices, method),
                *_guest_checks(wanted, cloud, guest, method, pairs),
                *_unit_checks(wanted, guest, units),
            ]
            if guest
            else [_no_guest(trouble)]
        ),
    ]
    draft = Plan(
        wanted=wanted,
        cloud=cloud,
        guest=facts,
        method=method.name if method else "",
        methods=tuple(choices),
        pairs=pairs,
        units=units,
        checks=tuple(checks),
        quota_peak=peak,
    )
    prediction = method.predict(facts, units) if method else None
    return draft.model_copy(update={"prediction": prediction, "promises": tuple(_promises(draft))})


def choose(
    wanted: Wanted, cloud: CloudFacts, guest: GuestFacts
) -> tuple[list[MethodChoice], Method | None]:
    """Every method with why it declines; the wanted one, or the first that does not decline."""
    choices, chosen = [], None
    for method in all_methods():
        reason = method.declines(wanted, cloud, guest)
        choices.append(MethodChoice(name=method.name, declines=reason))
        if not reason and chosen is None and wanted.method in ("", method.name):
            chosen = method
    return choices, chosen


def _type_name(cloud: CloudFacts, name_or_id: str) -> str:
    return next((t.name for t in cloud.types if t.id == name_or_id), name_or_id)


def _pair(
    wanted: Wanted, cloud: CloudFacts, guest: GuestFacts, method: Method | None, source: Volume
) -> Pair:
    size_gib = wanted.size_gib or source.size_gib
    seed = wanted.seed
    if seed is Seed.AUTO:
        blank = size_gib < source.size_gib or (method and method.needs_blank(guest))
        seed = Seed.BLANK if blank else Seed.SNAPSHOT
    return Pair(
        source=source,
        target_name=wanted.name or source.name or f"volferry-{source.id[:8]}",
        target_type=_type_name(cloud, wanted.type) or source.type,
        target_size_gib=size_gib,
        seed=seed,
    )


def quota_peak(pairs: Iterable[Pair]) -> dict[str, int]:
    """What a transfer adds at its peak, by Cinder's quota keys.

    A snapshot counts one snapshot *and* its GiB unless the cloud sets ``no_snapshot_gb_quota``,
    which a member cannot see. A target that is retyped counts for its old type until it has moved.
    """
    peak: Counter[str] = Counter()
    for pair in pairs:
        source, size_gib = pair.source, pair.target_size_gib
        peak.update({"volumes": 1, "gigabytes": size_gib})
        seeded = pair.seed is Seed.SNAPSHOT
        for name in {pair.target_type, source.type if seeded else pair.target_type}:
            peak.update({f"volumes_{name}": 1, f"gigabytes_{name}": size_gib})
        if seeded:
            peak.update({"snapshots": 1, f"snapshots_{source.type}": 1})
            peak.update(dict.fromkeys(("gigabytes", f"gigabytes_{source.type}"), source.size_gib))
    return dict(peak)


def _check(name: str, problem: str, fine: str, hint: str = "", *, warn: bool = False) -> Check:
    """A check that is fine when there is no problem."""
    if not problem:
        return Check(name=name, result=Result.OK, found=fine)
    result = Result.WARNING if warn else Result.REFUSAL
    return Check(name=name, result=result, found=problem, hint=hint)


T = TypeVar("T", Volume, Pair)


def _each(ones: Sequence[T], say: Callable[[T], str]) -> str:
    """What there is to say of volumes or pairs; by their names when there are several."""
    said = [(one.label, say(one)) for one in ones]
    return "; ".join(f"{name}: {text}" if len(ones) > 1 else text for name, text in said if text)


# ---- the cloud -----------------------------------------------------------------------------------


def _cloud_checks(cloud: CloudFacts, pairs: Sequence[Pair]) -> Iterable[Check]:
    server, sources = cloud.server, cloud.sources
    yield Check(
        name="cloud",
        result=Result.OK,
        found=f"{cloud.cloud or 'OS_* variables'}, region {cloud.region or '(default)'}, block "
        f"storage {cloud.block_storage_version}, compute {cloud.compute_version}",
    )
    yield _check(
        "server state",
        "" if server.status == "ACTIVE" else f"status {server.status}, wanted ACTIVE",
        f"{server.name} is ACTIVE",
        f"openstack server start {server.id}",
    )
    busy = "locked" if server.locked else f"task {server.task_state}" if server.task_state else ""
    yield _check(
        "server free",
        busy,
        "unlocked, no task",
        f"openstack server unlock {server.id}" if server.locked else "wait for the task to end",
    )
    yield _check(
        "source attached",
        _each(sources, lambda source: _not_here(source, server.id)),
        f"in-use on {server.name}",
    )
    yield _check(
        "not a boot volume",
        _each(sources, lambda source: _boots(source, server)),
        _each(
            sources,
            lambda source: (
                f"attached as {_device(source, server) or '(unknown)'}"
                + (", bootable flag set but not the root disk" if source.bootable else "")
            ),
        ),
        "a boot volume is retyped offline: openstack volume set --type … on a stopped server",
    )
    yield _check(
        "source kind", _each(sources, _special), "not multi-attach, in no group, not migrating"
    )
    yield _check(
        "source read-write",
        _each(sources, lambda s: "the volume is attached read-only" if s.read_only else ""),
        "attached read-write",
        "nothing writes to it: copy it at leisure",
    )
    yield from _type_checks(cloud, pairs)
    slots, more = len({v.volume_id for v in cloud.server_volumes}), len(pairs)
    yield _check(
        "attach slot",
        f"{slots} volumes are attached, {MAX_DISKS} fit, {more} more needed"
        if slots + more > MAX_DISKS
        else "",
        f"{slots} of {MAX_DISKS} used, {more} more needed",
        "detach a volume that is not needed",
    )
    yield _check(
        "availability zone",
        _each(sources, lambda source: _other_zone(source, server)),
        _each(
            sources,
            lambda s: (
                f"the target is made in '{s.availability_zone or 'the default'}', as the source"
            ),
        ),
        "the source could be attached across zones, so the target should be as well",
        warn=True,
    )


def _device(source: Volume, server: Server) -> str:
    return next((a.device for a in source.attachments if a.server_id == server.id), "")


def _boots(source: Volume, server: Server) -> str:
    device = _device(source, server)
    if not device:
        return ""
    root = device == server.root_device if server.root_device else ROOT_DEVICES.match(device)
    return f"{device} is the server's root disk" if root else ""


def _other_zone(source: Volume, server: Server) -> str:
    here, there = source.availability_zone, server.availability_zone
    return f"volume in '{here}', server in '{there}'" if here and there and here != there else ""


def _not_here(source: Volume, server_id: str) -> str:
    others = [a.server_id for a in source.attachments if a.server_id != server_id]
    if source.status != "in-use":
        return f"volume {source.id} has status '{source.status}', wanted 'in-use'"
    if others and not any(a.server_id == server_id for a in source.attachments):
        return f"volume {source.id} is attached to server {', '.join(others)}, not to this one"
    if not source.attachments:
        return f"volume {source.id} is attached to no server"
    return ""


def _special(source: Volume) -> str:
    if source.multiattach or len(source.attachments) > 1:
        return f"multi-attach volume with {len(source.attachments)} attachments: who else writes?"
    if source.group_id:
        return f"it belongs to group {source.group_id}, whose snapshots are taken together"
    if source.migration_status and source.migration_status not in ("success", "error", "none"):
        return f"it is being migrated ({source.migration_status})"
    marks = sorted(k for k in source.metadata if k.startswith(CSI_MARKS))
    if marks:
        return f"Kubernetes owns it ({marks[0]}): its CSI driver would not know the target"
    return ""


def _type_checks(cloud: CloudFacts, pairs: Sequence[Pair]) -> Iterable[Check]:
    known = sorted(t.name for t in cloud.types)
    wanted = dict.fromkeys(pair.target_type for pair in pairs)
    missing = [one for one in wanted if not any(one in (t.name, t.id) for t in cloud.types)]
    yield _check(
        "target type",
        ", ".join(f"there is no volume type '{one}'" for one in missing),
        ", ".join(wanted),
        f"types of this project: {', '.join(known)}",
    )
    yield _check("seed", "", _each(pairs, _way))
    encrypted = _each(pairs, _stays_encrypted)
    if encrypted:
        yield _check(
            "encryption",
            encrypted,
            "",
            "--seed blank when the target's type is not encrypted the same way",
            warn=True,
        )


def _way(pair: Pair) -> str:
    if pair.target_type == pair.source.type:
        return f"same type as the source; seeded: {pair.seed.value}"
    if pair.seed is Seed.BLANK:
        return "a blank volume of that type"
    return "from the snapshot when its back end serves the type, else by a retype (on-demand)"


def _stays_encrypted(pair: Pair) -> str:
    changes = pair.target_type != pair.source.type and pair.seed is Seed.SNAPSHOT
    if changes and pair.source.encrypted:
        return "the source is encrypted: a retype cannot change that"
    return ""


def _size_checks(pairs: Sequence[Pair], guest: GuestFacts) -> Iterable[Check]:
    yield _check(
        "size",
        _each(pairs, lambda pair: _too_small(pair, guest)),
        _each(pairs, lambda pair: f"{pair.target_size_gib} GiB"),
        "--seed blank" if any(p.seed is Seed.SNAPSHOT for p in pairs) else "--size with as much",
    )


def _too_small(pair: Pair, guest: GuestFacts) -> str:
    source, size_gib = pair.source, pair.target_size_gib
    smaller = f"{size_gib} GiB is less than the source's {source.size_gib} GiB"
    if size_gib < source.size_gib and pair.seed is Seed.SNAPSHOT:
        return f"{smaller}, which its snapshot has"
    if size_gib < source.size_gib and guest.partition_table(source.id):
        return f"{smaller}, which its partition table describes"
    return ""


def _quota_checks(
    cloud: CloudFacts, pairs: Sequence[Pair], peak: dict[str, int]
) -> Iterable[Check]:
    quota = cloud.quota
    if quota is None:
        yield _check(
            "quota",
            f"cannot be read ({cloud.quota_error or 'no answer'}); at the peak: {_sum(peak)}",
            "",
            "ask whoever runs the cloud",
            warn=True,
        )
        return
    short = [_short(quota, key, more) for key, more in sorted(peak.items())]
    largest = max(pair.target_size_gib for pair in pairs)
    if 0 <= quota.limits.get("per_volume_gigabytes", -1) < largest:
        most = quota.limits["per_volume_gigabytes"]
        short.append(f"per_volume_gigabytes: limit {most}, {largest} needed")
    problem = "; ".join(part for part in short if part)
    yield _check(
        "quota",
        problem,
        f"at the peak: {_sum(peak)}",
        "free some, ask for more, or --seed blank, which needs no snapshot",
    )


def _short(quota: Quota, key: str, more: int) -> str:
    limit, used = quota.limits.get(key, -1), quota.used.get(key, 0)
    if limit < 0 or used + more <= limit:
        return ""
    return f"{key}: {used} used of {limit}, {more} more needed"


def _sum(peak: dict[str, int]) -> str:
    plain = {k: v for k, v in peak.items() if "_" not in k}
    return ", ".join(f"+{v} {k}" for k, v in sorted(plain.items()))


def _no_guest(trouble: VolferryError | None) -> Check:
    return Check(
        name="guest",
        result=Result.REFUSAL,
        found=trouble.what if trouble else "the guest was not asked",
        hint=trouble.hint if trouble else "",
    )


# ---- the guest -----------------------------------------------------------------------------------


def _guest_checks(
    wanted: Wanted,
    cloud: CloudFacts,
    guest: GuestFacts,
    method: Method | None,
    pairs: Sequence[Pair],
) -> Iterable[Check]:
    other = guest.dmi_uuid and guest.dmi_uuid.lower() != cloud.server.id.lower()
    yield _check(
        "guest",
        f"the guest says it is {guest.dmi_uuid}, the server is {cloud.server.id}" if other else "",
        f"{guest.os_name}, kernel {guest.kernel}"
        + ("" if guest.dmi_uuid else " (its SMBIOS uuid cannot be read)"),
        "--ssh user@host reaches another machine: check it",
    )
    yield _check(
        "root",
        "" if guest.root else "no root rights in the guest",
        "root by sudo -n, or root itself",
        "allow the ssh user 'sudo -n' without a password, or log in as root",
    )
    yield _check(
        "source disk",
        _each(
            cloud.sources,
            lambda source: (
                ""
                if guest.source_disk(source.id)
                else guest.unclear.get(source.id)
                or f"no disk of the guest carries the id {source.id}"
            ),
        ),
        "; ".join(f"{d.path}, {d.size_bytes} bytes, serial {d.serial}" for d in guest.source_disks),
    )
    names = [fs for fs in guest.filesystems if fs.mounts]
    shown = "; ".join(
        f"{fs.device} {fs.fstype} on {', '.join(m.target for m in fs.mounts)}" for fs in names
    )
    bare = {
        source.id
        for source in cloud.sources
        if not guest.is_mounted(source.id) and source.id not in guest.unclear
    }

    def of_bare(text: str) -> str:
        return _each(cloud.sources, lambda source: text if source.id in bare else "")

    if wanted.raw:
        yield _check(
            "mounts",
            "" if bare else shown,
            "; ".join(filter(None, [shown, of_bare("none, as --raw says")])),
            "without --raw: it has a filesystem",
        )
    else:
        yield _check(
            "mounts",
            of_bare("nothing on the source is mounted"),
            shown,
            "--raw when a program uses the device itself",
        )
    if method:
        missing = method.missing_tools(guest)
        yield _check(
            "tools",
            "missing: " + ", ".join(f"{t.name} (package {t.package})" for t in missing)
            if missing
            else "",
            ", ".join(f"{t.name} {t.version}".strip() for t in method.tools(guest)),
            "install them in the guest; volferry installs nothing",
        )
    yield from _space_checks(names, pairs)
    yield _check(
        "inodes",
        "",
        f"{sum(fs.inodes_used for fs in names)} inodes used; the target gets at least as many",
    )
    short = guest.free_bytes < STATE_BYTES
    yield _check(
        "guest's own space",
        f"{guest.free_bytes} bytes free below /var/lib, {STATE_BYTES} needed" if short else "",
        f"{guest.free_bytes / GIB:.1f} GiB free below /var/lib",
    )
    yield from _mount_checks(guest)
    yield from _stack_checks(cloud, guest)
    yield _check(
        "supervisor",
        ""
        if guest.systemd
        else "no systemd: a supervising process of our own does not survive "
        "a reboot in the middle of the cutover",
        f"systemd {guest.systemd}",
        "after such a reboot the source is mounted as before; start the service by hand",
        warn=True,
    )


def _space_checks(mounted: Sequence[Filesystem], pairs: Sequence[Pair]) -> Iterable[Check]:
    used: Counter[str] = Counter()
    for fs in mounted:
        used[fs.volume_id] += fs.used_bytes

    def full(pair: Pair) -> str:
        need, size = used[pair.source.id], pair.target_size_gib * GIB
        return f"{need} bytes are used, the target has {size}" if size - need < need // 20 else ""

    def fits(pair: Pair) -> str:
        need = used[pair.source.id]
        return f"{need / GIB:.2f} GiB used, target {pair.target_size_gib} GiB"

    yield _check("space", _each(pairs, full), _each(pairs, fits), "--size with more")


def _method_check(wanted: Wanted, choices: Sequence[MethodChoice], method: Method | None) -> Check:
    reasons = "; ".join(f"{c.name}: {c.declines}" for c in choices if c.declines)
    if method:
        return Check(name="method", result=Result.OK, found=method.name)
    if wanted.method and wanted.method not in {c.name for c in choices}:
        reasons = f"there is no method '{wanted.method}', only {', '.join(c.name for c in choices)}"
    return Check(name="method", result=Result.REFUSAL, found=f"no method fits: {reasons}")


def _mount_checks(guest: GuestFacts) -> Iterable[Check]:
    nested = ", ".join(guest.nested_mounts)
    yield _check(
        "nested mounts",
        f"mounted inside: {nested}" if nested else "",
        "none",
        "unmount them first, or move them out of the mount",
    )
    by_disk = [
        f"{mount.unit} mounts {mount.unit_names}, which names the disk"
        for fs in guest.filesystems
        if not fs.layers  # those are the same on both sides
        for mount in fs.mounts
        if fstab.is_of_disk(mount.unit_names)
    ]
    if by_disk:
        yield _check(
            "mount units",
            "; ".join(by_disk),
            "",
            "write What=/dev/disk/by-uuid/… into the unit, then systemctl daemon-reload",
        )
    at_boot = list(_named_at_boot(guest))
    if at_boot:
        yield _check(
            "disk names",
            "; ".join(at_boot) + ": a guest that restarts with both volumes attached may call them "
            "otherwise, and then uses neither",
            "",
            "write UUID=… in its place before the start; the cutover does so anyway",
            warn=True,
        )
    entries = [(m.target, m.fstab_line, m.by.value) for fs in guest.filesystems for m in fs.mounts]
    by_hand = [target for target, _, by in entries if by == "hand"]
    yield _check(
        "fstab",
        f"mounted by hand, not at boot: {', '.join(by_hand)}" if by_hand else "",
        ", ".join(f"{t} (fstab line {n})" if n else f"{t} ({by})" for t, n, by in entries)
        or "no mounts",
        "after a reboot it is not mounted, as before",
        warn=True,
    )


def _named_at_boot(guest: GuestFacts) -> Iterator[str]:
    """Entries that find the source only as long as the guest calls its disks as it does now."""
    for fs in guest.filesystems:
        for entry in fstab.parse(guest.fstab):
            if fs.layers or not fstab.names_device(entry.spec, fs.names):
                continue
            if fstab.is_given_at_boot(entry.spec):
                yield f"fstab line {entry.line} mounts {entry.target} by {entry.spec}"
    encrypted = {layer.name for layer in guest.layers if layer.kind == "luks" and layer.volume_ids}
    for opened in crypttab.parse(guest.crypttab):
        if opened.name in encrypted and fstab.is_given_at_boot(opened.device):
            yield f"crypttab line {opened.line} opens {opened.name} by {opened.device}"


def _stack_checks(cloud: CloudFacts, guest: GuestFacts) -> Iterable[Check]:
    layers = guest.layers
    if not layers:
        return
    other = dict.fromkeys(path for layer in layers for path in layer.elsewhere)
    serials = {disk.path: disk.serial for disk in guest.disks}
    volumes = [
        v.volume_id
        for v in cloud.server_volumes
        if any(serials.get(path) in (v.volume_id, v.volume_id[:20]) for path in other)
    ]
    yield _check(
        "stack disks",
        "; ".join(
            f"{layer.label} lies on {', '.join(layer.elsewhere)} as well, which is not moved"
            for layer in layers
            if layer.elsewhere
        ),
        "; ".join(f"{layer.label} on {', '.join(layer.devices)}" for layer in layers),
        f"name all its volumes, they move together: {', '.join(volumes)}"
        if volumes
        else "what lies on a disk that cannot be moved has to be moved off it first",
    )
    yield _check(
        "stack state",
        "; ".join(layer.problem for layer in layers if layer.problem),
        "; ".join(f"{layer.label}: {layer.detail or 'not open'}" for layer in layers),
        "repair it, or let it end, and plan again",
    )
    encrypted = [layer for layer in layers if layer.kind == "luks" and layer.above]
    if encrypted:
        yield _check(
            "encryption keys",
            "; ".join(
                f"{layer.label}: {layer.key_problem or 'no key file was seen to open it'}"
                for layer in encrypted
                if not layer.key
            ),
            ", ".join(
                f"{layer.key} opens {layer.name} in {layer.open_s:.1f} s" for layer in encrypted
            ),
            "nobody types in a cutover: put a key file into /etc/crypttab (cryptsetup luksAddKey)",
        )
    if guest.lvm_devices:
        left = [
            f"{member.path} is there as {name}"
            for layer in layers
            for member in layer.members
            if member.volume_id and layer.kind == "lvm"
            if (name := lvm_devices.stays_behind(guest.lvm_devices, member.path, member.volume_id))
        ]
        yield _check(
            "LVM devices file",
            "; ".join(left),
            f"{guest.lvm_devices_path} follows the volumes",
            "lvmdevices --deldev, then --adddev, by another kind of id",
        )


# ---- units ---------------------------------------------------------------------------------------


def _units(wanted: Wanted, guest: GuestFacts) -> tuple[Unit, ...]:
    """The units to stop, in the order given; ``auto`` takes all that were found."""
    found = {unit.name: unit for unit in guest.units}
    if wanted.units == ("auto",):
        held = {h.unit for h in guest.holders if h.unit and h.stoppable}
        return tuple(unit for name, unit in found.items() if name in held)
    return tuple(
        found.get(full, Unit(name=full, active=False)) for full in map(_full_name, wanted.units)
    )


def _full_name(name: str) -> str:
    suffixes = (".service", ".socket", ".timer", ".target", ".scope", ".slice", ".path", ".mount")
    return name if name.endswith(suffixes) else f"{name}.service"


def _unit_checks(wanted: Wanted, guest: GuestFacts, units: tuple[Unit, ...]) -> Iterable[Check]:
    known = {unit.name for unit in guest.units}
    unknown = [unit.name for unit in units if unit.name not in known]
    if unknown:
        yield _check(
            "unit names",
            f"the guest knows no unit {', '.join(unknown)}",
            "",
            "see 'systemctl list-units' in the guest",
        )
    stopped = {unit.name for unit in units}
    left = [h for h in guest.holders if not (h.stoppable and h.unit in stopped)]
    suggestions = sorted({h.unit for h in guest.holders if h.unit and h.stoppable})
    yield _check(
        "holders",
        "not stopped by what you named: " + ", ".join(_describe(h) for h in left) if left else "",
        ", ".join(sorted({_describe(h) for h in guest.holders})) or "nobody uses the mount",
        "\n".join(_ways_to_stop(left, suggestions)),
        # Whether a --stop command ends a process cannot be known before it is run.
        warn=bool(wanted.stop) and all(h.kind == "process" for h in left),
    )


def _ways_to_stop(left: Sequence[Holder], units: Sequence[str]) -> Iterable[str]:
    loose = [h for h in left if not (h.unit and h.stoppable)]
    if len(loose) < len(left):
        yield " ".join(f"--unit {unit}" for unit in units) + ", or --units auto"
    if loose:
        names = ", ".join(_describe(h) for h in loose)
        yield f"end what no unit stops ({names}), or --stop CMD --start CMD"


def _describe(holder: Holder) -> str:
    where = holder.unit or (f"container {holder.container}" if holder.container else "")
    who = f"{holder.name} (pid {holder.pid})" if holder.pid else f"{holder.kind} {holder.name}"
    return f"{who} of {where}" if where else who


# ---- promises ------------------------------------------------------------------------------------


def _promises(plan: Plan) -> Iterable[Promise]:
    for step in SEQUENCE:
        if step.applies(plan):
            free = step.undo_costs is Undo.FREE
            yield Promise(
                phase=step.phase,
                step=step.name,
                text=fill(step.promise, step.foreseen(plan)),
                way_back="free" if free else step.undo_costs.value,
            )
