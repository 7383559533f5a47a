"""A pass of the rsync method: copy, then compare."""

import contextlib
import os
import threading
import time
from typing import Dict, List, Set, Tuple

from volferry.agent.attributes import LOCKS, Attributes, attributes_of, set_attributes
from volferry.agent.basics import (
    CLOCK_TOLERANCE_S,
    SLACK_S,
    AgentError,
    Json,
    Limit,
    Log,
    Place,
    clock_offset,
    read_json,
    run,
    set_by,
    sync_filesystem,
    to_bytes,
    to_text,
    told_limit,
    write_json,
)
from volferry.agent.compare import SURE_S, Comparison, changed_since, join, lstat
from volferry.agent.mounts import mount_device, mount_source_live, unmount, visible_mount
from volferry.agent.rsync import MOVERS, Copied, Report, RsyncMover


def full_reason(request: Json, boot_id: str, offset: float) -> str:
    """Why everything has to be compared; empty when the watermark of the last pass can be trusted.

    The watermark is a wall clock time, compared with times that the kernel took from the same
    clock: once that clock was set, or belongs to another boot, they do not compare any more."""
    if request.get("watermark") is None:
        return "there is no watermark"
    if request.get("clock_offset") is None or not request.get("boot_id"):
        return "the watermark came without its clock"
    if request["boot_id"] != boot_id:
        return "the guest restarted since the last pass"
    moved = offset - float(request["clock_offset"])
    if abs(moved) > CLOCK_TOLERANCE_S:
        return "the wall clock was moved by {:+.3f} s since the last pass".format(moved)
    return ""


def excluded(request: Json, filesystem: Json) -> List[str]:
    """The paths to leave out of one filesystem: a plain list belongs to the first."""
    given = request.get("exclude") or []
    if isinstance(given, dict):
        paths = given.get(filesystem["mount"], [])
    else:
        paths = given if filesystem is request["filesystems"][0] else []
    for path in paths:
        if not path.strip("/") or ".." in path.split("/"):
            raise AgentError("usage", "cannot exclude {!r}".format(path))
    return [os.path.normpath(path.strip("/")) for path in paths]


class Tree:
    """One filesystem of a pass, both sides mounted."""

    def __init__(self, filesystem: Json, source: str, target: str, mover: RsyncMover) -> None:
        self.filesystem, self.source, self.target = filesystem, source, target
        self.mover = mover
        self.exclude = mover.exclude
        self.copied = Copied()
        self.changed: List[bytes] = []


class Pass:
    """What the live pass and the final one have in common; they differ in how the source is seen
    and in what a difference means."""

    final = False

    def __init__(self, place: Place, state_dir: str, request: Json, report: Report) -> None:
        self.place, self.state_dir, self.request = place, state_dir, request
        self.report = report
        self.slack_s = float(request.get("slack_s") or SLACK_S)
        self.limit: float = 7 * 86400.0
        if request.get("deadline_s") is not None:
            flag = "--cutover-timeout" if self.final else "--sync-timeout"
            self.limit = Limit(float(request["deadline_s"]), "what was left of " + flag)
        self.deadline = time.monotonic() + self.limit
        self.result: Json = {
            "number": int(request.get("number") or 0),
            "final": self.final,
            "files_total": 0,
            "files_compared": 0,
            "bytes_compared": 0,
            "changed_meanwhile": 0,
            "healed": 0,
            "notes": [],
        }
        self.full = ""
        self.copy_start = 0.0
        self.locked_paths: List[str] = []

    def run(self) -> Json:
        began = time.monotonic()
        self.copy_start = time.time()
        offset, boot_id = clock_offset(), self.place.boot_id
        self.full = full_reason(self.request, boot_id, offset)
        if self.full:
            self.result["notes"].append("everything is compared: " + self.full)
        trees = self.stage()
        self.report("copying", force=True, what="copying")
        for tree in trees:
            self.unlock(tree)
            self.copy(tree)
        copied = time.monotonic()
        self.report("comparing", force=True, what="comparing")
        for tree in trees:
            sync_filesystem(tree.target, self.left(3600))
        for tree in trees:
            self.compare(tree)
        self.leave(trees)
        counts: Dict[str, int] = {}
        for tree in trees:
            for key, value in tree.copied.counts.items():
                counts[key] = counts.get(key, 0) + value
        self.result.update(
            started_at=self.copy_start,
            copy_s=round(copied - began, 3),
            compare_s=round(time.monotonic() - copied, 3),
            files_copied=sum(tree.copied.files for tree in trees),
            files_deleted=sum(tree.copied.deleted for tree in trees),
            bytes_copied=sum(tree.copied.bytes for tree in trees),
            watermark=self.copy_start,
            clock_offset=offset,
            boot_id=boot_id,
            full=bool(self.full),
            itemized_counts=counts,
        )
        return self.result

    def left(self, most_s: float) -> float:
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise AgentError(
                "failed", "the pass did not end within {}".format(told_limit(self.limit))
            )
        return min(most_s, Limit(left, set_by(self.limit)))

    # -- mounting

    def stage(self) -> List[Tree]:
        trees = []
        method = self.request.get("method") or "rsync"
        if method not in MOVERS:
            raise AgentError("usage", "there is no method '{}'".format(method))
        for number, filesystem in enumerate(self.request["filesystems"]):
            folder = os.path.join(self.state_dir, "mnt", str(number))
            source, target = folder + "/source", folder + "/target"
            self.mount_source(filesystem, source)
            mount_device(self.place, filesystem, filesystem["target"], target, "rw,noatime")
            mover = MOVERS[method](source, target, excluded(self.request, filesystem))
            trees.append(Tree(filesystem, source, target, mover))
        return trees

    def mount_source(self, filesystem: Json, at: str) -> None:
        raise NotImplementedError

    def leave(self, trees: List[Tree]) -> None:
        """Unmount by name rather than by exit: the target's last writes must not fail unseen."""
        for tree in reversed(trees):
            unmount(tree.target, self.left(600), busy_s=10)
            unmount(tree.source, self.left(600), busy_s=10)

    # -- copying

    def copy(self, tree: Tree) -> None:
        raise NotImplementedError

    # -- comparing

    def tick(self, files: int, size: int) -> None:
        self.report("comparing", what="comparing", done_files=files, done_bytes=size)

    def compare(self, tree: Tree) -> None:
        first = self.comparison(tree)
        touched = tree.copied.touched
        if self.full or touched is None:
            first.all(self.tick)
        else:
            first.some(sorted(set(tree.changed) | touched), self.tick)
        self.count(first, tree)
        attributes = first.attributes
        heal, meanwhile = self.judge(tree, first, SURE_S)
        if heal:
            Log.say("healing {} entries, such as {}".format(len(heal), self.sample(first, heal)))
            self.report("comparing", force=True, what="healing", done_files=len(heal))
            paths = with_company(first, heal)
            tree.mover.heal(paths, self.report, self.deadline)
            sync_filesystem(tree.target, self.left(3600))
            again = self.comparison(tree)
            again.some(sorted(paths), self.tick)
            attributes = dict(attributes)
            attributes.update(again.attributes)
            faults, later = self.judge(tree, again, self.slack_s)
            if faults:
                raise AgentError(
                    "failed",
                    "{} entries differ after they were copied twice: {}".format(
                        len(faults), self.sample(again, faults)
                    ),
                    "the source is untouched; the target is not a copy of it",
                )
            meanwhile |= later
            self.result["healed"] += len(heal - later)
        self.result["changed_meanwhile"] += len(meanwhile)
        self.set_attributes(tree, attributes)

    def comparison(self, tree: Tree) -> Comparison:
        return Comparison(tree.source, tree.target, tree.exclude, tree.mover.nanoseconds)

    def count(self, comparison: Comparison, tree: Tree) -> None:
        self.result["files_compared"] += comparison.entries
        self.result["bytes_compared"] += comparison.bytes
        if self.full:
            self.result["files_total"] += comparison.entries

    def judge(
        self, tree: Tree, comparison: Comparison, room_s: float
    ) -> Tuple[Set[bytes], Set[bytes]]:
        """Tell apart what the copy missed from what was written meanwhile. -> (missed,
        meanwhile)"""
        missed: Set[bytes] = set()
        meanwhile: Set[bytes] = set()
        for path in comparison.different:
            late = not self.final and self.changed_after(tree, path, self.copy_start - room_s)
            (meanwhile if late else missed).add(path)
        return missed, meanwhile

    def changed_after(self, tree: Tree, path: bytes, when: float) -> bool:
        """By the inode change times of the entry and of the directory it lies in, looked up now.
        One that is gone, whose directories are gone, changed."""
        root, when_ns = to_bytes(tree.source), int(when * 1000000000)
        status = lstat(join(root, path))
        if status is not None and status.st_ctime_ns >= when_ns:
            return True
        folder = path
        while folder:
            folder = os.path.dirname(folder)
            status = lstat(join(root, folder))
            if status is not None:
                return status.st_ctime_ns >= when_ns
        return False

    def sample(self, comparison: Comparison, paths: Set[bytes]) -> str:
        told = [
            "{} ({})".format(to_text(path) or ".", comparison.different[path])
            for path in comparison.different
            if path in paths
        ]
        more = len(told) - 20
        return "; ".join(told[:20]) + (" and {} more".format(more) if more > 0 else "")

    # -- flags

    def locks_path(self) -> str:
        return os.path.join(self.state_dir, "locked.json")

    def unlock(self, tree: Tree) -> None:
        """Take our own immutable and append-only flags off again, or rsync could not write."""
        known = read_json(self.locks_path()) or {}
        for name in known.get(tree.filesystem["mount"], []):
            path = join(to_bytes(tree.target), to_bytes(name))
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                set_attributes(path, (0, 0))

    def set_attributes(self, tree: Tree, wanted: Dict[bytes, Attributes]) -> None:
        """Set and read back. Deepest first: nothing can be done below an immutable directory."""
        locks = []
        for path in sorted(wanted, key=lambda name: (-name.count(b"/"), name)):
            full = join(to_bytes(tree.target), path)
            if lstat(full) is None:
                continue
            if wanted[path][0] & LOCKS:
                locks.append(to_text(path))
        known = read_json(self.locks_path()) or {}
        mount = tree.filesystem["mount"]
        if locks:  # before they are set: a crash in between must not leave flags that nobody knows
            known[mount] = sorted(set(known.get(mount, [])) | set(locks))
            write_json(self.locks_path(), known)
        for path in sorted(wanted, key=lambda name: (-name.count(b"/"), name)):
            full = join(to_bytes(tree.target), path)
            if lstat(full) is None:
                continue
            set_attributes(full, wanted[path])
            fd = os.open(full, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                now = attributes_of(fd)
            finally:
                os.close(fd)
            if now != wanted[path]:
                raise AgentError(
                    "failed",
                    "flags and project of {} are {} in the target, expected {}".format(
                        to_text(path), now, wanted[path]
                    ),
                )


def with_company(comparison: Comparison, paths: Set[bytes]) -> Set[bytes]:
    """Heal with each entry its directory (whose time the healing moves) and the other names of
    the same file (a hard link can only be made between files of one transfer)."""
    more = set(paths)
    by_path = {name: names for names in comparison.names_of.values() for name in names}
    for path in paths:
        more.update(by_path.get(path, ()))
    for path in list(more):
        while path:
            path = os.path.dirname(path)
            more.add(path)
    return more


class LivePass(Pass):
    """While the service runs: a difference may be its doing."""

    def mount_source(self, filesystem: Json, at: str) -> None:
        mount_source_live(self.place, filesystem, at)
        entry = visible_mount(self.place, filesystem["mount"])
        if entry is not None and entry.propagation == "private":
            run(["umount", entry.target])  # only here, see own_namespace

    def copy(self, tree: Tree) -> None:
        """The source is synced between the watermark and the copy. A store through a shared mapping
        moves ctime only when it dirties a clean page; without this sync a page that stays dirty
        could be written after the copy with a ctime from before the watermark, and no later pass
        would look."""
        sync_filesystem(tree.source, self.left(3600))
        tree.copied = tree.mover.copy(
            self.report, self.deadline, True, self.request.get("bwlimit_bytes_s")
        )
        if not self.full:
            tree.changed = changed_since(
                tree.source, tree.exclude, float(self.request["watermark"]) - self.slack_s
            )


class FinalPass(Pass):
    """In the cutover: the source is unmounted everywhere and read-only in the kernel, so any
    difference that is left is a fault."""

    final = True

    def mount_source(self, filesystem: Json, at: str) -> None:
        mount_device(self.place, filesystem, filesystem["source"], at, "ro,noatime")

    def copy(self, tree: Tree) -> None:
        found: List[List[bytes]] = []
        faults: List[BaseException] = []

        def look() -> None:
            try:
                since = float(self.request["watermark"]) - self.slack_s
                found.append(changed_since(tree.source, tree.exclude, since))
            except BaseException as error:  # noqa: BLE001 - raised again below
                faults.append(error)

        walker = None if self.full else threading.Thread(target=look, daemon=True)
        if walker:
            walker.start()
        tree.copied = tree.mover.copy(self.report, self.deadline, False, None)
        if walker:
            most_s = self.left(3600)
            walker.join(most_s)
            if faults:
                raise faults[0]
            if not found:
                raise AgentError(
                    "failed",
                    "the walk for changed entries did not end within {}".format(told_limit(most_s)),
                )
            tree.changed = found[0]
