"""What is put into the guest, and taken out again."""

import base64
import contextlib
import hashlib
import os
import re
import shutil
import stat
import time
import zlib
from typing import Any, List, Optional

from volferry.agent.basics import (
    RELOAD_S,
    AgentError,
    Json,
    Place,
    fsync_directory,
    is_below,
    must,
    names_in,
    read_bytes,
    run,
    safe_name,
    to_bytes,
    to_text,
    unfinished,
    write_atomically,
    write_json,
)
from volferry.agent.disks import Disk, look_for
from volferry.agent.jobs import LANES, UNIT_NAME, Job, Supervisor, lane_dir, unlink_durably
from volferry.agent.mounts import make_directory, mount_table
from volferry.agent.tracker import Tracker, mounted_tracefs

UNTOUCHED = "nothing was installed; the source is untouched and in use"
LOOK_AT_IT = "remove it if it is nobody's: somebody else could have prepared it"
LEAVING_S = 15.0
"""How long a process may take to go after its job has ended."""


def trusted_directory(path: str) -> None:
    """Make a directory of ours, 0700, and refuse one that somebody else could have prepared."""
    if not os.path.lexists(path):
        os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            os.mkdir(path, 0o700)
        fsync_directory(to_bytes(os.path.dirname(path)))
    status = os.lstat(path)
    if not stat.S_ISDIR(status.st_mode):
        raise AgentError("refused", "{} is not a directory".format(path), UNTOUCHED, LOOK_AT_IT)
    if status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise AgentError(
            "refused",
            "{} is of uid {} with mode {:o}, expected uid {} and not writable by others".format(
                path, status.st_uid, stat.S_IMODE(status.st_mode), os.getuid()
            ),
            UNTOUCHED,
            LOOK_AT_IT,
        )


def verb_install(place: Place, request: Json) -> Json:
    """Make the state directory, put the program there under its hash, claim the source volumes."""
    transfer = safe_name(request["transfer"], "transfer id")
    program = base64.b64decode(request["program_b64"])
    if program[:1] == b"\x78":  # no Python program begins with a zlib header
        program = zlib.decompress(program)
    state_dir = place.state_dir(transfer)
    for folder in (place.base, place.base + "/claims", state_dir):
        trusted_directory(folder)
    claims = claim_volumes(place, request["sources"], transfer)
    name = "agent-{}.py".format(hashlib.sha256(program).hexdigest()[:12])
    agent = os.path.join(state_dir, name)
    if read_bytes(agent) != program:
        write_atomically(agent, program, 0o700)
    write_json(os.path.join(state_dir, "settings.json"), place.settings)
    return {"state_dir": state_dir, "agent": agent, "claims": claims}


def claim_volumes(place: Place, sources: List[Json], transfer: str) -> List[str]:
    """All of them or none: a transfer that is refused one must not hold the others."""
    volumes = [safe_name(source.get("volume_id"), "volume id") for source in sources]
    mine = os.path.join(place.state_dir(transfer), "claim")
    if read_bytes(mine) != to_bytes(transfer):
        write_atomically(mine, to_bytes(transfer), 0o600)
    folder = os.path.join(place.base, "claims")
    made = []
    try:
        for volume in volumes:
            if claim(folder, volume, mine):
                made.append(volume)
    except AgentError:
        for volume in made:
            os.unlink(os.path.join(folder, volume))
        raise
    return [os.path.join(folder, volume) for volume in volumes]


def claim(folder: str, volume: str, mine: str) -> bool:
    """link(2) decides between two transfers of one volume, whoever controls them, and what it makes
    says at once whose it is. -> False when it was ours already"""
    path = os.path.join(folder, volume)
    made = True
    try:
        os.link(mine, path)
    except FileExistsError:
        made = False
        holder_of_it = claimed_by(path)
        if holder_of_it != claimed_by(mine):
            raise AgentError(
                "refused",
                "volume '{}' is claimed by transfer '{}'".format(volume, holder_of_it),
                "nothing was changed",
                "end that transfer first, or remove {} when it is gone for good".format(path),
            )
    fsync_directory(to_bytes(folder))
    return made


def claimed_by(path: str) -> str:
    """Who holds a claim; read without following a link. An empty one, as agents left behind that
    made it first and wrote it then, cannot be told apart from another's, so a person decides."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        return to_text(os.read(fd, 256)) or "(unknown)"
    finally:
        os.close(fd)


def current_content(path: str) -> Optional[bytes]:
    """The content of a user's file, None when there is none; anything but a plain file is a
    doubt."""
    raw = to_bytes(path)
    try:
        status = os.lstat(raw)
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(status.st_mode):
        raise AgentError("doubt", "{} is not a plain file, it was left alone".format(path))
    with open(raw, "rb") as file:
        return file.read()


def content_if_plain(path: str) -> Any:
    """The content as ``current_content``, or something that equals no content."""
    try:
        return current_content(path)
    except (AgentError, OSError):
        return NotImplemented


def put_file(state_dir: str, path: str, content: Optional[str], mode: Optional[int]) -> bool:
    """Bring a file of the user's guest to ``content`` (None: away). False when it was so already.

    The first content we ever saw of it is kept in ``backup/``.
    """
    if not path.startswith("/") or os.path.normpath(path) != path:
        raise AgentError("usage", "{!r} is not an absolute, plain path".format(path))
    before = current_content(path)
    wanted = None if content is None else to_bytes(content)
    if before == wanted:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(unfinished(path))
        return False
    keep_backup(state_dir, path, before)
    raw = to_bytes(path)
    if wanted is None:
        unlink_durably(path)
        return True
    if mode is None:
        mode = 0o644 if before is None else stat.S_IMODE(os.lstat(raw).st_mode)
    os.makedirs(os.path.dirname(raw), mode=0o755, exist_ok=True)
    write_atomically(path, wanted, mode)
    return True


def keep_backup(state_dir: str, path: str, content: Optional[bytes]) -> None:
    folder = os.path.join(state_dir, "backup")
    make_directory(folder)
    name = re.sub(r"[^A-Za-z0-9._-]", "_", path.strip("/"))[:200]
    copy = os.path.join(folder, name)
    if content is not None and not os.path.lexists(copy):
        write_atomically(copy, content, 0o600)


def verb_apply(place: Place, request: Json) -> Json:
    """Write and remove files of the guest, then let udev and systemd see it.

    All ``expect`` are looked at before anything is written; a file that has the wanted content
    already is left alone whatever was expected, so that saying it twice is saying it once.
    """
    state_dir = place.state_dir(request["transfer"])
    files = request.get("files", [])
    for file in files:
        if "expect" not in file:
            continue
        now = current_content(file["path"])
        allowed = [
            None if text is None else to_bytes(text) for text in (file["expect"], file["content"])
        ]
        if now not in allowed:
            raise AgentError(
                "doubt",
                "{} is not what it was: it was changed by somebody else".format(file["path"]),
                "nothing was written",
            )
    result: Json = {"written": [], "removed": [], "same": [], "skipped": []}
    for file in files:
        changed = put_file(state_dir, file["path"], file["content"], file.get("mode"))
        what = "same" if not changed else "removed" if file["content"] is None else "written"
        result[what].append(file["path"])
    result["skipped"] = publish(
        place,
        [disk for disk in (look_for(place, ref) for ref in request.get("trigger", [])) if disk],
        bool(request.get("udev")),
        bool(request.get("systemd")),
        60.0,
    )
    return result


def publish(
    place: Place,
    disks: List[Disk],
    udev: bool,
    systemd: bool,
    settle_s: float,
    reload_s: float = RELOAD_S,
) -> List[str]:
    """Make udev and systemd look again at their files and at these disks. -> what was skipped

    "change" is written to the devices' own uevent files, which is what ``udevadm trigger`` does;
    unlike it this works the same with every version.
    """
    skipped = []
    if (udev or disks) and not place.has_udev:
        skipped.append("udev: it does not run here")
    elif udev or disks:
        if udev:
            must(["udevadm", "control", "--reload"])
        for disk in disks:
            for path in [disk.path] + [partition.path for partition in disk.partitions]:
                uevent = "{}/class/block/{}/uevent".format(place.sys, os.path.basename(path))
                # Partitions go with their table when a target is hidden (seen in a guest).
                with contextlib.suppress(FileNotFoundError), open(uevent, "w") as file:
                    file.write("change\n")
        ran = run(["udevadm", "settle", "--timeout={:.0f}".format(settle_s)], settle_s + 5)
        if ran.code != 0:
            skipped.append(
                "udevadm settle: the queue was not empty after {:.0f} s".format(settle_s)
            )
    if systemd and not place.has_systemd:
        skipped.append("systemd: pid 1 is something else")
    elif systemd:
        must(["systemctl", "daemon-reload"], reload_s)
    return skipped


RULE_NAME = re.compile(r"^10-volferry-(.+)\.rules\Z")


def verb_leftovers(place: Place, request: Json) -> Json:
    """Everything that transfers have put into this guest and that is there now; changes nothing.

    Whose it is comes from its name, of a claim from its content. A rule's text is told too: it
    names the disk that it keeps out of use.
    """
    left: List[Json] = []
    for name in names_in(place.base):
        path = os.path.join(place.base, name)
        if name != "claims" and os.path.isdir(path) and not os.path.islink(path):
            alive = any(Job(place, os.path.join(path, lane)).is_alive() for lane in LANES)
            left.append({"transfer": name, "kind": "state", "path": path, "alive": alive})
    for name in names_in(place.base + "/claims"):
        path = "{}/claims/{}".format(place.base, name)
        if os.path.isfile(path) and not os.path.islink(path):
            left.append({"transfer": claimed_by(path), "kind": "claim", "path": path})
    for kind, folder, names in (
        ("rule", place.etc + "/udev/rules.d", RULE_NAME),
        ("unit", place.etc + "/systemd/system", UNIT_NAME),
    ):
        for name in names_in(folder):
            match, path = names.match(name), "{}/{}".format(folder, name)
            if match and os.path.isfile(path) and not os.path.islink(path):
                text = to_text(read_bytes(path) or b"") if kind == "rule" else ""
                left.append({"transfer": match.group(1), "kind": kind, "path": path, "text": text})
    for transfer, path in Tracker.leftovers(mounted_tracefs(place)):
        left.append({"transfer": transfer, "kind": "trace", "path": path})
    return {"left": left}


def is_over(job: Job) -> bool:
    """One that has told its end has its unit to disable and itself to leave: seconds in a guest
    that is busy."""
    ends = time.monotonic() + LEAVING_S
    while job.is_alive():
        if job.state() != "ended" or time.monotonic() >= ends:
            return False
        time.sleep(0.05)
    return True


def verb_uninstall(place: Place, request: Json) -> Json:
    """Remove everything of ours from the guest. Repeatable; what stays is told with the reason."""
    transfer = safe_name(request["transfer"], "transfer id")
    state_dir = place.state_dir(transfer)
    removed: List[str] = []
    left: List[str] = []
    for lane in LANES:
        folder = lane_dir(place, transfer, lane)
        if os.path.isdir(folder) and not is_over(Job(place, folder)):
            raise AgentError(
                "busy",
                "a job of transfer '{}' is still running".format(transfer),
                "the job goes on, and what it needs was not removed",
                "wait for its end, or end the transfer",
            )
        removed += Supervisor(place, transfer, lane).remove_units()
    traces, kept = Tracker.remove_stale(mounted_tracefs(place), transfer)
    removed += traces
    left += kept
    for path in request.get("files", []):
        try:
            there = current_content(path) is not None
            unlink_durably(path)
            removed += [path] if there else []
        except (AgentError, OSError) as error:
            left.append("{}: {}".format(path, error))
    if request.get("files") and place.has_udev:
        must(["udevadm", "control", "--reload"])
    claims = os.path.join(place.base, "claims")
    for name in os.listdir(claims) if os.path.isdir(claims) else []:
        path = os.path.join(claims, name)
        if os.path.isfile(path) and not os.path.islink(path) and claimed_by(path) == transfer:
            unlink_durably(path)
            removed.append(path)
    below = [entry.target for entry in mount_table(place) if is_below(entry.target, state_dir)]
    if below:  # never walk into somebody's data with rmtree
        left.append("{}: {} is mounted in it".format(state_dir, ", ".join(below)))
    elif os.path.isdir(state_dir) and not os.path.islink(state_dir):
        try:
            shutil.rmtree(state_dir)
            fsync_directory(to_bytes(place.base))
            removed.append(state_dir)
        except OSError as error:
            left.append("{}: {}".format(state_dir, error))
    for folder in (claims, place.base):
        with contextlib.suppress(OSError):  # not empty: another transfer's
            os.rmdir(folder)
            fsync_directory(to_bytes(os.path.dirname(folder)))
    return {"removed": removed, "left": left}
