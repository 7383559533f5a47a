"""volferry's agent: the part that works inside the guest, as root, next to the user's data.

Standard library only, Python 3.6 and later, imports nothing but itself. Here it is a package of
modules; ``program()`` joins them into the one file that is pushed to the guest. It has to do its
work without the controller: from the first service stopped to the last one started everything
happens in one supervised process in the guest, which takes it back by itself on any failure, and
which finds out from its own record where it was when somebody killed it or the guest restarted.
Correctness comes before speed, speed before comfort.

What it promises
----------------
- The source is never written to before the commit. In passes it is seen through a read-only bind
  mount in a private mount namespace; in the cutover its disk is set read-only in the kernel before
  it is read for the last time.
- Nothing counts as verified that was not read back from both sides and compared.
- The commit is the rename of one file (the last of ``sides``). Before it a dead cutover is taken
  back, after it finished forward; which of the two is read from that file, not from memory.
- Every external command has a deadline, no shell runs but for the user's own stop and start
  commands, nobody is killed, nothing is unmounted lazily.

Protocol
--------
``python3 FILE VERB`` reads one JSON object from stdin and writes JSON lines to stdout, of which
the last is ``{"ok": true, "result": {...}}`` or ``{"ok": false, "error": ERROR}``; the exit code is
0 for both. When the program itself comes over stdin the request is an argument:
``python3 - VERB JSON``. Strings that came from the guest (paths, names, raw files) are decoded with
surrogateescape, so bytes that are not UTF-8 arrive as lone surrogates (``\\udcff``) in JSON.

::

    ERROR   {"kind": "busy|refused|failed|missing|doubt|usage", "what": str, "data": str,
             "hint": str}
    REQUEST {"transfer": "tr-…", "settings": SETTINGS?, …the verb's own…}
    SETTINGS{"base": "/var/lib/volferry", "etc": "/etc", "run": "/run", "proc": "/proc",
             "sys": "/sys"}          all optional; tests redirect what is written
    REF     {"volume_id": str, "size_bytes": int, "partition": int|null, "path": str?}
            a disk by what the cloud put on it, resolved anew each time; "path" (a block device)
            goes round the serial for disks without one. Where a disk is meant, "partition" is
            ignored; where a filesystem is meant, null is the whole disk.

Verbs
-----
``facts``      {refs: [REF], units: [str]?, walk_s: float?}            -> see ``verb_facts``
``install``    {transfer, sources: [REF], program_b64: str}           -> {state_dir, agent,
                                                                           claims: [path]}
               the program's text in base64, as it is or compressed by zlib
``apply``      {transfer, files: [FILE], udev: bool, trigger: [REF], systemd: bool}
               FILE {path, content: str|null, mode: int?, expect: str|null ?}
                                   -> {written: [path], removed: [path], same: [path],
                                       skipped: [str]}
``find``       {refs: [REF]}       -> {disks: [{volume_id, state: "present|absent", path, kname,
                                       dev, size_bytes, read_only, serial, links: [path],
                                       partitions: [{number, path, dev, size_bytes}]}]}
               a doubt (two disks of one serial, a wrong size) is an error, absence is not
``start``      {transfer, job_id, job: "prepare|pass|cutover|cutback", request: {…}}
                                   -> {job_id, state, supervisor: "systemd|daemon"}
``status``     {transfer}          -> {job, job_id, state: "none|running|ended|died", phase,
                                       progress: {what, done_bytes, total_bytes, done_files,
                                                  total_files, rate_bytes_s, elapsed_s},
                                       result: {…}|null, error: ERROR|null, log_tail: [str]}
``stop``       {transfer, grace_s?}                                    -> {stopped: bool, state}
``uninstall``  {transfer, files: [path], sources: [REF]?}              -> {removed: [], left: []}
``leftovers``  {}                  -> {left: [{transfer, kind: "state|claim|rule|unit|trace",
                                       path: str, alive: bool?, text: str?}]}
``work``       STATE_DIR, not for the controller: what the supervisor runs
``inside``     not for the controller: the final pass' process in its private mount namespace

Jobs
----
A filesystem is named the same way in every job; several of them (partitions of one volume, or
several volumes) move together, all or none::

    FS {"source": REF, "target": REF, "fstype": "xfs|ext4|ext3|ext2|btrfs", "uuid": str,
        "label": str, "keep_uuid": bool, "mount": "/srv/data", "mounts": [MOUNT]}
    MOUNT {"target": path, "root": "/", "options": str, "super_options": str,
           "by": "fstab|unit|autofs|hand", "unit": str, "propagation": str}     as in model.Mount

``uuid`` and ``label`` are those of the source. ``mount`` is where the source is mounted live, with
its root at the filesystem's root.

**prepare** makes the target ready to be mounted and proves its identity::

    {"seed": "snapshot|blank", "target": REF, "source": REF, "partition_dump": str, "grow": bool,
     "filesystems": [FS]}            several volumes: one prepare job for each pair
    -> {"filesystems": [{"partition", "device", "fstype", "uuid", "label", "size_bytes",
                         "grown": bool}], "notes": [str],
        "publish_s": float, "mount_s": float, "systemctl_s": float}
                                      what udev, one mount and one systemctl take on this guest

**pass** copies what differs, then compares::

    {"method": "rsync", "filesystems": [FS], "number": int, "exclude": [path], "slack_s": 30.0,
     "watermark": float|null, "clock_offset": float|null, "boot_id": str|null,
     "bwlimit_bytes_s": int|null, "deadline_s": float?}
    -> model.Pass's fields, and "clock_offset": float, "boot_id": str, "full": bool,
       "itemized_counts": {str: int}, "notes": [str]

``watermark``, ``clock_offset`` and ``boot_id`` are those of the last pass' result; null (or a clock
that was set, or a restart since) means that everything is compared. ``exclude`` are paths below
``mount`` of the first filesystem, literal, relative; ``{"exclude": {mount: [path]}}`` for several.

**cutover**::

    {"method": "rsync", "filesystems": [FS], "units": [UNIT], "stop": [cmd], "start": [cmd],
     "sides": {"files": [{"path", "source": str|null, "target": str|null, "mode": int}]},
     "exclude", "watermark", "clock_offset", "boot_id", "slack_s",
     "deadline_s": 120, "settle_s": 60, "max_downtime_s": 10}
    UNIT {"name": str, "stop_timeout_s": float, "start_timeout_s": float}
    -> {"outcome": model.Outcome's fields, "notes": [str], "job_id": str, "within_budget": bool}

A side file's content null means that the file does not exist on that side. They are written in the
order given when the target becomes the live side and in reverse when the source does; the last is
the commit. Parts of the downtime: stop, unmount, copy, compare, release, detach, commit, mount,
start.
A cutover that took itself back is an ended job with outcome ``reverted`` and ``error`` set as well.

**cutback** takes the cutover's request (an empty one: as the agent kept it) and goes back to the
source after a commit; same result, and the outcome is ``reverted``. What was written on the target
since the commit stays there and is not copied back.

Where the source has to be detached first (``detach_first``) both wait in phase ``awaiting`` for the
controller, with ``left_s`` in their progress: the cutover until no source is there any more, the
cutback, whose target is hidden by then, until all are there again. A cutback whose sources do not
come shows the target again, and its outcome is ``committed``.
"""

import ast
import functools
from importlib import resources

MAIN = "wire"
"""The module that is run: all the others are those it imports, and what these import."""


@functools.cache
def program() -> bytes:
    """The agent as one file: every module of this package, each after those that it imports.

    Their imports of each other are left out, so a name at the top of a module may be there only
    once in the whole package, and may not be renamed by ``as``. One file, because it is sent over
    stdin before anything is installed, and named by its hash afterwards.

    Raises ``ValueError`` for modules that import each other in a circle, or a name given twice.
    """
    parts: dict[str, _Part] = {}
    _collect(MAIN, parts, ())
    owners: dict[str, str] = {}
    for name, part in parts.items():
        for given in part.names:
            if given in owners:
                raise ValueError(f"{given} is in {owners[given]} and in {name} of the agent")
            owners[given] = name
    imports = sorted({line for part in parts.values() for line in part.imports}, key=_import_key)
    bodies = [
        f"# ---- {name} {'-' * (93 - len(name))}\n\n{part.body}" for name, part in parts.items()
    ]
    return "\n\n".join([f'r"""{__doc__}"""', "\n".join(imports), *bodies]).encode()


class _Part:
    """A module's text without its imports, and what these were."""

    def __init__(self, text: str) -> None:
        tree = ast.parse(text)
        lines = text.splitlines()
        self.needs: list[str] = []
        self.imports: list[str] = []
        self.names: list[str] = []
        for node in tree.body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                self._take_import(node)
                for number in range(node.lineno - 1, (node.end_lineno or node.lineno)):
                    lines[number] = ""
            elif isinstance(node, ast.FunctionDef | ast.ClassDef):
                self.names.append(node.name)
            elif isinstance(node, ast.Assign):
                self.names += [
                    name.id
                    for target in node.targets
                    for name in ast.walk(target)
                    if isinstance(name, ast.Name)
                ]
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                self.names.append(node.target.id)
        self.body = "\n".join(lines).strip() + "\n"

    def _take_import(self, node: ast.Import | ast.ImportFrom) -> None:
        ours = isinstance(node, ast.ImportFrom) and (node.module or "").startswith(__name__ + ".")
        if ours:
            assert isinstance(node, ast.ImportFrom)
            self.needs.append((node.module or "").rpartition(".")[2])
        elif isinstance(node, ast.ImportFrom):
            # One line a name, so that two modules' imports of one module fall together.
            self.imports += [f"from {node.module} import {alias.name}" for alias in node.names]
        else:
            self.imports.append(ast.unparse(node))


def _collect(name: str, parts: dict[str, _Part], above: tuple[str, ...]) -> None:
    if name in parts:
        return
    if name in above:
        raise ValueError(f"the agent's modules import each other: {' -> '.join((*above, name))}")
    part = _Part(resources.files(__name__).joinpath(f"{name}.py").read_text())
    for needed in part.needs:
        _collect(needed, parts, (*above, name))
    parts[name] = part


def _import_key(line: str) -> tuple[bool, str]:
    return line.startswith("from"), line
