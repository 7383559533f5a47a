"""Copying files, by rsync."""

import contextlib
import os
import re
import select
import subprocess
import tempfile
import time
from typing import Callable, Dict, Iterable, List, NamedTuple, Optional, Set, Tuple

from volferry.agent.attributes import clear_locked
from volferry.agent.basics import (
    MIB,
    AgentError,
    Limit,
    Log,
    Process,
    end_process,
    launch,
    one_line,
    run,
    set_by,
    to_text,
    told_limit,
)

RSYNC_EXIT = {  # quoted from rsync(1)
    1: "Syntax or usage error",
    2: "Protocol incompatibility",
    3: "Errors selecting input/output files, directories",
    4: "Requested action not supported",
    5: "Error starting client-server protocol",
    10: "Error in socket I/O",
    11: "Error in file I/O",
    12: "Error in rsync protocol data stream",
    13: "Errors with program diagnostics",
    14: "Error in IPC code",
    15: "Sibling process crashed (e.g. core dumped).",
    16: "Sibling process was killed by a signal.",
    19: "Received SIGUSR1.",
    20: "Received SIGINT, SIGTERM, or SIGHUP.",
    21: "Some error returned by waitpid()",
    22: "Error allocating core memory buffers",
    23: "Partial transfer due to error",
    24: "Partial transfer due to vanished source files",
    25: "The --max-delete limit stopped deletions",
    30: "Timeout in data send/receive",
    35: "Timeout waiting for daemon connection",
}

RACE = re.compile(
    r"file has vanished|No data available \(61\)|failed verification -- update discarded"
    r"|some files(/attrs)? (vanished|were not transferred)"
)
"""Complaints of a file that was removed or cut short while rsync read it: normal while the service
runs, and told by exit code 23 when it was cut short. The comparison sees what came of it."""

Report = Callable[..., None]
"""report(phase, force=False, **progress)"""


class Itemized(NamedTuple):
    """One line of rsync's ``--out-format='%i %l %n'``."""

    flags: str
    size: int
    name: bytes

    @property
    def deleted(self) -> bool:
        return self.flags.startswith("*deleting")

    @property
    def copied(self) -> bool:
        return self.flags[0] in "<>" and self.flags[1] == "f"


def parse_itemized(line: bytes) -> Optional[Itemized]:
    """None for a line that is something else. The flags are 11 characters wide, a name may hold
    anything; rsync writes what cannot be printed as ``\\#ooo``, a backslash in front of such as
    well."""
    match = re.match(rb"^([<>ch.*][fdLDSe][^ ]{9}|\*deleting  ) ([0-9,]+) (.*)$", line, re.S)
    if match is None:
        return None
    name = re.sub(rb"\\#([0-7]{3})", lambda m: bytes([int(m.group(1), 8) & 0xFF]), match.group(3))
    size = int(match.group(2).replace(b",", b""))
    return Itemized(match.group(1).decode("ascii", "replace"), size, name)


def relative(name: bytes) -> bytes:
    """``./`` and ``dir/`` of rsync's listing as paths below the root; the root itself is empty."""
    return b"" if name in (b"./", b".") else name.rstrip(b"/")


def exclude_pattern(path: str) -> str:
    """A literal path as an anchored rsync pattern. rsync takes a backslash as an escape only in a
    pattern that holds a wildcard, so it is doubled only there."""
    plain = "/" + path.strip("/")
    if not re.search(r"[*?\[]", plain):
        return plain
    return re.sub(r"([\\*?\[])", r"\\\1", plain)


class Copied:
    """What one run of a mover did."""

    def __init__(self) -> None:
        self.counts: Dict[str, int] = {}
        self.files = self.deleted = self.bytes = 0
        self.touched: Optional[Set[bytes]] = set()
        """Paths whose content or attributes it wrote; None when it was too many to remember."""
        self.vanished = False

    def add(self, item: Itemized) -> None:
        key = "deleted" if item.deleted else item.flags[:2]
        self.counts[key] = self.counts.get(key, 0) + 1
        if item.deleted:
            self.deleted += 1
            return
        if item.copied:
            self.files += 1
            self.bytes += item.size
        if self.touched is not None:
            self.touched.add(relative(item.name))
            if len(self.touched) > 1000000:
                self.touched = None


class RsyncMover:
    """Brings the target's tree to the source's with rsync.

    A mover has ``copy`` (make equal by its own quick means) and ``heal`` (make these paths equal
    whatever they look like); what it did is compared by somebody else.
    """

    name = "rsync"

    def __init__(self, source: str, target: str, exclude: List[str]) -> None:
        self.source, self.target, self.exclude = source, target, exclude
        words = run(["rsync", "--version"]).out.split()
        version = words[2].lstrip("v") if len(words) > 2 else "0"
        numbers = [int(word) for word in re.findall(r"\d+", version)[:3]]
        self.nanoseconds = numbers >= [3, 1, 3]
        """``--modify-window=-1`` came with 3.1.3; before, times are compared and kept by the second
        for everything but a copied file."""
        self.complaints: List[str] = []
        """What the last run said on stderr."""

    def options(self) -> List[str]:
        options = ["-aHAXS", "--numeric-ids", "-x", "--out-format=%i %l %n"]
        return options + (["--modify-window=-1"] if self.nanoseconds else [])

    def copy(
        self,
        report: Report,
        deadline: float,
        vanishing_is_fine: bool,
        bwlimit_bytes_s: Optional[int],
    ) -> Copied:
        argv = ["rsync", *self.options(), "--delete", "--delete-excluded"]
        argv += ["--exclude=" + exclude_pattern(path) for path in self.exclude]
        if bwlimit_bytes_s:
            argv.append("--bwlimit={}".format(max(1, bwlimit_bytes_s // 1024)))
        tail = ["--", self.source + "/", self.target + "/"]
        copied = Copied()
        code, words = self.run(argv + tail, b"", copied, report, deadline)
        if code in (11, 23) and "No space left on device" in words:
            # a changed file is written beside the old one at first: too much for a full target
            Log.say("the target is full, again in place: {}".format(words))
            argv += ["--inplace", "--delete-before"]
            code, words = self.run(argv + tail, b"", copied, report, deadline)
        elif code == 23 and "Operation not permitted" in words and clear_locked(self.target):
            Log.say("again after immutable flags were cleared on the target: {}".format(words))
            code, words = self.run(argv + tail, b"", copied, report, deadline)
        copied.vanished = code == 24 or (code == 23 and all(map(RACE.search, self.complaints)))
        if code != 0 and not (copied.vanished and vanishing_is_fine):
            raise rsync_error(code, words)
        return copied

    def heal(self, paths: Iterable[bytes], report: Report, deadline: float) -> None:
        """Copy these again by content and remove those that the source does not have.

        The root goes last, by a listing that leaves out all in it: named among the others, rsync
        takes it for "everything in here".
        """
        names = [path for path in sorted(set(paths)) if path]
        ends = ["--", self.source + "/", self.target + "/"]
        argv = ["rsync", *self.options(), "--ignore-times", "--from0", "--files-from=-"]
        argv += ["--delete-missing-args", "--force", *ends]
        listing = b"".join(path + b"\0" for path in names)
        code, words = self.run(argv, listing, Copied(), report, deadline) if names else (0, "")
        if code in (0, 24):
            argv = ["rsync", *self.options(), "--no-recursive", "--dirs", "--exclude=/*", *ends]
            code, words = self.run(argv, b"", Copied(), report, deadline)
        if code not in (0, 24):
            raise rsync_error(code, words)

    def run(
        self, argv: List[str], stdin: bytes, copied: Copied, report: Report, deadline: float
    ) -> Tuple[int, str]:
        """-> (exit code, its last words). Reads the listing while it comes."""
        began = time.monotonic()
        with tempfile.TemporaryFile() as complaints, tempfile.TemporaryFile() as names:
            names.write(stdin)
            names.seek(0)
            try:
                process = launch(argv, stdin=names, stdout=subprocess.PIPE, stderr=complaints)
            except FileNotFoundError:
                raise AgentError(
                    "missing",
                    "rsync is not installed in the guest",
                    "",
                    "install the package rsync",
                )
            try:
                self.follow(process, copied, report, deadline, began)
                code = process.wait(timeout=max(1.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                most_s = Limit(deadline - began, set_by(deadline))
                raise AgentError("failed", "rsync did not end within {}".format(told_limit(most_s)))
            finally:
                if process.poll() is None:
                    process.terminate()  # it ends its two helpers itself
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(timeout=5)
                end_process(process)
            complaints.seek(0, os.SEEK_END)
            complaints.seek(max(0, complaints.tell() - 16 * MIB))
            said = to_text(complaints.read()).splitlines()
        self.complaints = [line for line in said if line.strip()] or ["it said nothing"]
        return code, one_line(" / ".join(said[-6:]))

    def follow(
        self,
        process: Process,
        copied: Copied,
        report: Report,
        deadline: float,
        began: float,
    ) -> None:
        assert process.stdout is not None
        fd = process.stdout.fileno()
        rest = b""
        while True:
            left = deadline - time.monotonic()
            if left <= 0:
                raise subprocess.TimeoutExpired("rsync", 0)
            if select.select([fd], [], [], min(0.5, left))[0]:
                chunk = os.read(fd, 65536)
                if not chunk:
                    return
                lines = (rest + chunk).split(b"\n")
                rest = lines.pop()
                for line in lines:
                    item = parse_itemized(line)
                    if item is not None:
                        copied.add(item)
            done = copied.bytes
            report(
                "copying",
                what="copying",
                done_bytes=done,
                done_files=copied.files,
                rate_bytes_s=round(done / max(time.monotonic() - began, 0.001)),
            )


def rsync_error(code: int, words: str) -> AgentError:
    meaning = RSYNC_EXIT.get(
        code, "killed by signal {}".format(-code) if code < 0 else "no documented code"
    )
    full = "No space left on device" in words
    return AgentError(
        "failed",
        "{}rsync ended with {} ({}): {}".format(
            "the target is full: " if full else "", code, meaning, words or "it said nothing"
        ),
        "the source was only read",
        "roll back, and begin again with a larger --size" if full else "",
    )


MOVERS: Dict[str, Callable[[str, str, List[str]], RsyncMover]] = {"rsync": RsyncMover}
