"""The nouns. Read this first: everything else is verbs on these.

All are frozen pydantic models: a change is a new value. What is persisted (``Plan``, ``Receipt``,
``Pass``, ``Outcome``) is therefore validated whenever it is read back, and the JSON Schema of a
plan file is generated from the same lines that the program runs on.

Sizes are in bytes unless a name says otherwise (Cinder counts in GiB); durations are in seconds;
wall clock times are seconds since the epoch, UTC.
"""

import enum
from typing import Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

Json: TypeAlias = dict[str, Any]
Receipt: TypeAlias = Json
"""What a step leaves for later steps and for undo: plain JSON, no secret ever."""

GIB = 1024**3
MARK = "volferry:transfer"
"""Metadata key that carries our transfer id on every cloud object that we make."""
SOURCE = "volferry:source"
"""Beside it, the id of the source that the object was made for: a transfer may move several."""


class Noun(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


# ---- the cloud's side ----------------------------------------------------------------------------


class Attachment(Noun):
    """A volume in a server, as Cinder tells it. ``device`` is Nova's word, not the guest's name."""

    server_id: str
    volume_id: str
    attachment_id: str = ""
    device: str = ""


class Volume(Noun):
    id: str
    name: str
    size_gib: int
    type: str
    status: str
    availability_zone: str = ""
    bootable: bool = False
    encrypted: bool = False
    multiattach: bool = False
    read_only: bool = False
    group_id: str = ""
    migration_status: str = ""
    snapshot_id: str = ""
    description: str = ""
    metadata: dict[str, str] = Field(default_factory=dict)
    attachments: tuple[Attachment, ...] = ()

    @property
    def size_bytes(self) -> int:
        return self.size_gib * GIB

    @property
    def label(self) -> str:
        """What people call it."""
        return self.name or self.id

    @property
    def ref(self) -> "DiskRef":
        return DiskRef(volume_id=self.id, size_bytes=self.size_bytes)


class Snapshot(Noun):
    id: str
    name: str
    volume_id: str
    size_gib: int
    status: str
    progress: str = ""
    metadata: dict[str, str] = Field(default_factory=dict)


class Server(Noun):
    id: str
    name: str
    status: str
    task_state: str = ""
    locked: bool = False
    availability_zone: str = ""
    addresses: tuple[str, ...] = ()
    """Where ssh may be reached, best first: floating, then fixed addresses."""
    root_device: str = ""
    """``root_device_name`` of the server, such as ``/dev/vda``; empty when the cloud hides it."""
    boots_from_volume: bool | None = None
    """False: its root disk is no volume at all. None when the cloud does not say."""


class ServerVolume(Noun):
    """One line of ``openstack server volume list``."""

    volume_id: str
    device: str = ""
    delete_on_termination: bool = False
    tag: str = ""


class VolumeType(Noun):
    id: str
    name: str
    is_public: bool = True
    extra_specs: dict[str, str] = Field(default_factory=dict)
    """Only what an ordinary member may see, which is often nothing."""


class Quota(Noun):
    """Block storage quota of the project, by Cinder's own keys (``gigabytes_cbs-premium``).

    A limit of -1 is no limit. ``used`` holds what is in use plus what is reserved.
    """

    limits: dict[str, int] = Field(default_factory=dict)
    used: dict[str, int] = Field(default_factory=dict)


class CloudFacts(Noun):
    """All that the cloud said about volumes of one server, read at one time."""

    cloud: str = ""
    region: str = ""
    project_id: str = ""
    block_storage_version: str = ""
    compute_version: str = ""
    server: Server
    sources: tuple[Volume, ...] = Field(min_length=1)
    """In the order in which they were named."""
    server_volumes: tuple[ServerVolume, ...] = ()
    types: tuple[VolumeType, ...] = ()
    quota: Quota | None = None
    quota_error: str = ""

    @property
    def label(self) -> str:
        """The sources, as people call them: ``data1, data2, log``."""
        return ", ".join(source.label for source in self.sources)

    def attached_as(self, volume_id: str) -> dict[str, Any]:
        """The user's words about the attachment of a volume: what becomes of it when the server
        goes, and by which role the guest's metadata calls it. For ``CloudVerbs.attach``."""
        line = next((one for one in self.server_volumes if one.volume_id == volume_id), None)
        return {
            "delete_on_termination": bool(line and line.delete_on_termination),
            "tag": line.tag if line else "",
        }


# ---- the guest's side ----------------------------------------------------------------------------


class DiskRef(Noun):
    """How a disk is named to a guest: by what the cloud put on it, never by ``/dev/vdX``."""

    volume_id: str
    size_bytes: int


class Disk(Noun):
    """A whole disk as the guest shows it now."""

    path: str
    size_bytes: int
    serial: str = ""
    read_only: bool = False
    dev: str = ""
    """``major:minor``"""
    volume_id: str = ""
    """The volume that it is, where the guest was asked for one."""


class PartitionTable(Noun):
    """Of one source disk; a disk without partitions has none."""

    volume_id: str
    label: str
    """``dos`` or ``gpt``."""
    dump: str
    """``sfdisk --dump``"""


class MountBy(enum.StrEnum):
    """Who mounts it, and so who has to mount it again."""

    FSTAB = "fstab"
    UNIT = "unit"
    AUTOFS = "autofs"
    HAND = "hand"


class Mount(Noun):
    """One entry of the guest's mount table."""

    target: str
    source: str
    root: str = "/"
    """Path inside the filesystem: anything but ``/`` is a bind mount or a subvolume."""
    options: str = ""
    super_options: str = ""
    propagation: str = ""
    dev: str = ""
    by: MountBy = MountBy.HAND
    unit: str = ""
    """The systemd mount unit, empty where there is none."""
    unit_names: str = ""
    """What a unit that is no line of fstab says is to be mounted (``What=``)."""
    fstab_line: int = 0
    """Line number in fstab, counted from 1; 0 when it is not there."""


class Filesystem(Noun):
    """A filesystem on a source volume and where it is mounted."""

    device: str
    volume_id: str = ""
    """The source volume that it lies on; empty when it spans several."""
    partition: int | None = None
    """None for a filesystem on the whole disk."""
    fstype: str
    uuid: str
    label: str = ""
    names: tuple[str, ...] = ()
    """Every way in which fstab may name it: its paths, ``UUID=…``, ``LABEL=…``, ``PARTUUID=…``."""
    size_bytes: int = 0
    used_bytes: int = 0
    inodes_used: int = 0
    mounts: tuple[Mount, ...] = ()
    layers: tuple[str, ...] = ()
    """Names of the layers below it, bottom to top; empty straight on a disk or a partition."""


class Member(Noun):
    """One of the devices that a layer lies on."""

    path: str
    volume_id: str = ""
    """The moved volume that this is the disk of, or a partition of; empty for another layer, and
    for a disk that is not moved."""
    partition: int | None = None
    """None for the whole disk."""


class Layer(Noun):
    """What lies between a disk and a filesystem: a volume group, an encryption, an array.

    ``GuestFacts.layers`` has them bottom to top: a layer comes after those that it lies on.
    """

    kind: Literal["lvm", "luks", "md", "other"]
    """``other`` is one that is not known here, and then ``problem`` says so."""
    name: str
    """The volume group, the mapping below ``/dev/mapper``, or the array's path; empty for one that
    is not open and that nothing in the guest gives a name."""
    uuid: str = ""
    members: tuple[Member, ...] = ()
    above: tuple[str, ...] = ()
    """Paths of the devices that it offers now: logical volumes, the mapping, the array and its
    partitions. Empty for one that is not open, which the cutover need not close."""
    detail: str = ""
    """In words what it is made of: ``raid0``, ``luks2``, ``2 logical volumes, of them 1 thin``."""
    at_end: bool = False
    """An array whose superblock lies at the end of its members (metadata 0.90 and 1.0): on a larger
    disk it would not be found."""
    elsewhere: tuple[str, ...] = ()
    """Disks it lies on that are not moved."""
    key: str = ""
    """The key file of crypttab that was seen to open an encryption; empty when a person has to."""
    key_problem: str = ""
    """Why a person has to: no line in crypttab, a passphrase, a key file that does not open it."""
    open_s: float = 0.0
    """Seconds that its key took to be proven, measured; a cutover spends them again."""
    problem: str = ""
    """Why it cannot be moved now: a degraded array, a resync, a volume group in parts."""

    @property
    def label(self) -> str:
        """What people call it."""
        what = {"lvm": "volume group", "luks": "encryption", "md": "array", "other": "device"}
        return f"{what[self.kind]} {self.name or 'on ' + ', '.join(self.devices)}"

    @property
    def devices(self) -> tuple[str, ...]:
        """Paths of the devices that it lies on."""
        return tuple(member.path for member in self.members)

    @property
    def volume_ids(self) -> tuple[str, ...]:
        """The moved volumes that it lies on itself, without those below another layer."""
        return tuple(dict.fromkeys(m.volume_id for m in self.members if m.volume_id))

    @property
    def all_on_source(self) -> bool:
        return not self.elsewhere


class Holder(Noun):
    """Somebody who uses the mount and would make unmounting fail."""

    kind: Literal["process", "mount", "loop", "swap", "nfs", "unit"]
    name: str
    pid: int = 0
    unit: str = ""
    """The systemd unit the process belongs to, empty when there is none."""
    container: str = ""
    path: str = ""
    stoppable: bool = True
    """False: stopping a unit does not let go of the mount; a person has to."""


class Unit(Noun):
    """A systemd unit that the cutover stops and starts, with what its last times were."""

    name: str
    active: bool = True
    enabled: bool = False
    start_s: float | None = None
    stop_s: float | None = None
    """Durations of the last start and the last stop, None when systemd has not seen one."""


class Tool(Noun):
    name: str
    path: str = ""
    version: str = ""
    package: str = ""


class GuestFacts(Noun):
    """All that the guest said, read at one time without changing anything."""

    family: str
    os_name: str = ""
    kernel: str = ""
    hostname: str = ""
    dmi_uuid: str = ""
    root: bool = False
    python: str = ""
    systemd: int = 0
    """systemd's version; 0 where pid 1 is something else."""
    source_disks: tuple[Disk, ...] = ()
    """Those of the sources that are there, in the order of the sources."""
    unclear: dict[str, str] = Field(default_factory=dict)
    """By the id of a source: why it is in doubt which disk it is, such as several paths to it."""
    disks: tuple[Disk, ...] = ()
    partition_tables: tuple[PartitionTable, ...] = ()
    filesystems: tuple[Filesystem, ...] = ()
    other_content: tuple[str, ...] = ()
    """What else lies on the disks (LVM, LUKS, swap, unmounted filesystems), one sentence each."""
    layers: tuple[Layer, ...] = ()
    """Volume groups, encryptions and arrays on the sources, bottom to top."""
    nested_mounts: tuple[str, ...] = ()
    """Other filesystems mounted below one of ours."""
    subvolumes: int = 0
    holders: tuple[Holder, ...] = ()
    units: tuple[Unit, ...] = ()
    """Every systemd unit among the holders, with its times."""
    tools: tuple[Tool, ...] = ()
    no_tracking: str = ""
    """Why writes to the source disks cannot be noted; empty when they can."""
    walk_s: float = 0.0
    """Measured seconds that one walk of the tree takes, extrapolated when it was cut short."""
    fstab: str = ""
    crypttab: str = ""
    lvm_devices: str = ""
    """LVM's list of the devices that it may use (lvmdevices(8)); empty when it takes any."""
    lvm_devices_path: str = ""
    free_bytes: int = 0
    """Free space where our state lies (``/var/lib``)."""

    def tool(self, name: str) -> Tool | None:
        return next((t for t in self.tools if t.name == name and t.path), None)

    def source_disk(self, volume_id: str) -> Disk | None:
        return next((d for d in self.source_disks if d.volume_id == volume_id), None)

    def partition_table(self, volume_id: str) -> PartitionTable | None:
        return next((t for t in self.partition_tables if t.volume_id == volume_id), None)

    def is_mounted(self, volume_id: str) -> bool:
        """Whether a mounted filesystem lies on that volume, or on layers that lie on it."""
        return any(fs.mounts and volume_id in self.below(fs) for fs in self.filesystems)

    def below(self, fs: Filesystem) -> set[str]:
        """Ids of the moved volumes that a filesystem lies on, whatever is between."""
        layers = (layer.volume_ids for layer in self.layers if layer.name in fs.layers)
        return {fs.volume_id}.union(*layers)


# ---- what the user asked for ---------------------------------------------------------------------


class Seed(enum.StrEnum):
    AUTO = "auto"
    SNAPSHOT = "snapshot"
    BLANK = "blank"


class Access(Noun):
    """How the guest is reached. Nothing secret: ssh itself knows keys and agents."""

    local: bool = False
    ssh: str = ""
    ssh_config: str = ""


class Timeouts(Noun):
    """Every wait has a deadline; each is a flag of the same name."""

    snapshot_s: float = 1800.0
    create_s: float = 7200.0
    retype_s: float = 86400.0
    attach_s: float = 120.0
    detach_s: float = 300.0
    cutover_s: float = 120.0
    """The guest takes the cutover back when it has not ended by then."""
    sync_s: float = 7 * 86400.0
    delete_s: float = 600.0
    connect_s: float = 60.0
    answer_s: float = 300.0
    retry_s: float = 900.0
    """How long what may come back (a busy cloud, a guest that restarts) is tried again."""


class Wanted(Noun):
    """The user's words, before anything was looked up."""

    os_cloud: str = ""
    os_region: str = ""
    server: str
    volumes: tuple[str, ...] = Field(min_length=1)
    """They move together, in one cutover: all or none."""
    type: str = ""
    size_gib: int | None = None
    """For one volume only, as is ``name``."""
    name: str = ""
    method: str = ""
    """Empty: the first method that does not decline."""
    seed: Seed = Seed.AUTO
    access: Access = Access()
    units: tuple[str, ...] = ()
    stop: tuple[str, ...] = ()
    start: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    """Paths to leave out: whole ones, or relative to the first mount point."""
    bwlimit_bytes_s: int | None = None
    pace: float = 0.05
    """Part of the disks' time that copying may take while the service writes all the time."""
    verify: Literal["full", "written", "none"] = "full"
    """What the mirror compares before the cutover."""
    on_divergence: Literal["hold", "throttle-sync", "cutover"] = "hold"
    """When passes no longer gain and the prediction does not fit."""
    cutover: str = "auto"
    """``auto``, ``manual``, or an ISO 8601 time with its zone."""
    max_downtime_s: float = 10.0
    settle_s: float = 60.0
    hold: bool = False
    keep_standby: bool = False
    """After the cutover the old volume is kept current, so that going back loses nothing."""
    raw: bool = False
    """The volume holds no filesystem: a database's own device, moved as it is."""
    read_only: bool = True
    keep_snapshot: bool = False
    timeouts: Timeouts = Timeouts()


# ---- the plan ------------------------------------------------------------------------------------


class Result(enum.StrEnum):
    OK = "ok"
    WARNING = "warning"
    REFUSAL = "refusal"


class Check(Noun):
    """One thing that could fail later, looked at before anything is changed."""

    name: str
    result: Result
    found: str
    """What was measured, with its figures."""
    hint: str = ""


class MethodChoice(Noun):
    name: str
    declines: str = ""
    """Why this method does not fit; empty for the one that was chosen."""


class Prediction(Noun):
    """Downtime in seconds and its parts; ``basis`` says where the figures come from."""

    total_s: float
    parts: dict[str, float] = Field(default_factory=dict)
    basis: str = ""


class Promise(Noun):
    phase: str
    step: str
    text: str
    way_back: str = ""


class Pair(Noun):
    """A source and the target that is made to take its place."""

    source: Volume
    target_name: str
    target_type: str
    target_size_gib: int
    seed: Seed

    @property
    def label(self) -> str:
        return self.source.label

    @property
    def grows(self) -> bool:
        return self.target_size_gib > self.source.size_gib


class Plan(Noun):
    """What ``plan`` prints and saves, and what ``run`` carries out after checking it again."""

    version: Literal[2] = 2
    """1 had one volume, and no ``pairs``."""
    made_at: float = 0.0
    wanted: Wanted
    cloud: CloudFacts
    guest: GuestFacts
    method: str = ""
    methods: tuple[MethodChoice, ...] = ()
    pairs: tuple[Pair, ...] = ()
    """One for each source, in their order. They move together, all or none."""
    units: tuple[Unit, ...] = ()
    checks: tuple[Check, ...] = ()
    quota_peak: dict[str, int] = Field(default_factory=dict)
    """What the transfer adds at its peak, by Cinder's quota keys."""
    prediction: Prediction | None = None
    promises: tuple[Promise, ...] = ()

    @property
    def refusals(self) -> tuple[Check, ...]:
        return tuple(c for c in self.checks if c.result is Result.REFUSAL)


# ---- what happened -------------------------------------------------------------------------------


class Pass(Noun):
    """One pass over source and target: what was copied, and what was compared."""

    id: str = ""
    """The mirror's: its process and the number there. No clock tells one pass from another."""
    number: int
    final: bool = False
    started_at: float = 0.0
    copy_s: float = 0.0
    compare_s: float = 0.0
    files_total: int = 0
    files_copied: int = 0
    files_deleted: int = 0
    bytes_copied: int = 0
    files_compared: int = 0
    bytes_compared: int = 0
    changed_meanwhile: int = 0
    """Differing because the service wrote them during the pass; the next pass takes them."""
    chunks_copied: int = 0
    chunks_compared: int = 0
    """The mirror counts chunks where rsync counts files."""
    healed: int = 0
    """Differing though untouched since the copy: copied again by content and compared again."""
    differed_after_loss: int = 0
    """Found by the mirror when it compared everything, because it could not know what was written:
    no fault, copied again and compared again like the healed ones."""
    watermark: float = 0.0
    """Guest wall clock: all that did not change after it has been compared."""
    clock_offset: float = 0.0
    """The guest's wall clock minus its monotonic one: when it moves, the watermark is void."""
    boot_id: str = ""
    kept_at: float = 0.0
    """When its result was known here, by this machine's clock."""

    @property
    def piece(self) -> str:
        """What it counts: files, or chunks of the disk."""
        return "chunk" if self.chunks_copied or self.chunks_compared else "file"

    @property
    def copied(self) -> int:
        return self.files_copied + self.chunks_copied

    @property
    def compared(self) -> int:
        return self.files_compared + self.chunks_compared


Side: TypeAlias = Literal["source", "target"]


class Outcome(Noun):
    """How a cutover ended, as the guest wrote it on its own disk."""

    result: Literal["committed", "reverted"]
    live: Side
    reason: str = ""
    downtime_s: float = 0.0
    parts: dict[str, float] = Field(default_factory=dict)
    clock: Literal["monotonic", "wall"] = "monotonic"
    """``wall`` when the guest restarted in the middle and no monotonic clock spans it."""
    final_pass: Pass | None = None
    settled: bool = False
    problems: tuple[str, ...] = ()
    """What did not come back when the source became the live side again; a person has to look."""
    standby: bool = False
    """The source follows the target: going back loses nothing."""
    was_live_s: float = 0.0
    """Reverted after services had run on the target for so long (wall clock)."""
    fstab_changes: tuple[str, ...] = ()
    """Lines that had to name the filesystem instead of the disk, in words."""
    job_id: str = ""
    """Of the guest's job that ended so: each outcome is told once."""


class State(enum.StrEnum):
    RUNNING = "running"
    STOPPED = "stopped"
    HELD = "held"
    DONE = "done"
    ROLLING_BACK = "rolling back"
    ROLLED_BACK = "rolled back"


class Transfer(Noun):
    """A line of ``volferry list``."""

    id: str
    state: State
    plan: Plan
    created_at: float
    step: str = ""
    error: Json = Field(default_factory=dict)
    """``what``, ``data``, ``hint`` of the error that stopped it."""


class Event(Noun):
    """Something worth telling, in the order it happened."""

    at: float
    transfer: str
    step: str = ""
    kind: str
    """``phase``, ``intent``, ``receipt``, ``promise``, ``progress``, ``pass``, ``note``, …"""
    facts: Json = Field(default_factory=dict)


class Progress(Noun):
    """Of one long wait. Unknown figures are None."""

    what: str
    done_bytes: int | None = None
    total_bytes: int | None = None
    done_files: int | None = None
    total_files: int | None = None
    rate_bytes_s: float | None = None
    eta_s: float | None = None
    elapsed_s: float = 0.0
    note: str = ""
