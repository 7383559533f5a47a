"""What every part of the agent uses: errors, bytes and files, programs, and where things lie."""

import contextlib
import errno
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Tuple

Json = Dict[str, Any]
Process = Any  # subprocess.Popen[bytes], which 3.6 cannot subscribe

MIB = 1024 * 1024
SLACK_S = 30.0
"""Default reach before the watermark. ctime is taken when a write begins and the kernel's clock for
it is coarse, so a long write of the past may land after the copy; it has to end within this
time."""
CLOCK_TOLERANCE_S = 1.0
COMMAND_S = 30.0
"""Deadline of a command that only asks or sets something small."""
RELOAD_S = 300.0
"""Of a ``systemctl daemon-reload``, which runs every generator again: it took a minute and a half
in a guest that was short of CPU."""
FORWARD_PHASES = (
    "armed",
    "stopping",
    "unmounting",
    "copying",
    "comparing",
    "releasing",
    "awaiting",
    "committing",
    "committed",
    "mounting",
    "starting",
    "settling",
)
TOOLS = (
    "rsync", "mkfs.ext4", "mkfs.ext3", "mkfs.ext2", "mkfs.xfs", "mkfs.btrfs", "tune2fs",
    "resize2fs", "e2fsck", "xfs_admin", "xfs_info", "xfs_growfs", "btrfs", "btrfstune", "blkid",
    "lsblk", "sfdisk", "wipefs", "findmnt", "mount", "umount", "unshare", "udevadm",
    "systemctl", "systemd-run", "systemd-escape", "exportfs", "ionice", "sync", "python3",
    "lvs", "cryptsetup", "mdadm",
)  # fmt: skip
ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LC_ALL": "C",
    "HOME": "/root",
}


class AgentError(Exception):
    """Told to the controller as it is: ``kind`` is how it maps on the tool's own errors."""

    def __init__(self, kind: str, what: str, data: str = "", hint: str = "") -> None:
        super().__init__(what)
        self.kind, self.what, self.data, self.hint = kind, what, data, hint

    def as_json(self) -> Json:
        return {
            "kind": self.kind,
            "what": one_line(self.what),
            "data": one_line(self.data),
            "hint": self.hint,
        }


class Stopped(Exception):
    """SIGTERM arrived: somebody wants this process to end."""


class Shutdown(BaseException):
    """The system is going down: leave everything as the record says, the next boot goes on."""


class Limit(float):
    """Seconds that a wait may take, with what sets them; a plain number is a fixed one. A point on
    the clock that it is added to keeps the name."""

    setter: str

    def __new__(cls, seconds: float, setter: str) -> "Limit":
        limit = super().__new__(cls, seconds)
        limit.setter = setter
        return limit

    def __radd__(self, clock: float) -> "Limit":
        return Limit(clock + float(self), self.setter)


def set_by(limit: float) -> str:
    return getattr(limit, "setter", "a fixed limit")


def told_limit(seconds: float) -> str:
    """How long was waited and what would make it longer, for the message of a wait that expired."""
    return "{:.0f} s ({})".format(seconds, set_by(seconds))


def one_line(text: str) -> str:
    return " ".join(text.split())


# Paths travel as UTF-8 with surrogateescape whatever the locale says: Python 3.6 in a systemd unit
# has the C locale, and os.fsencode() would then refuse every letter that is not ASCII.


def to_bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def to_text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")


def read_bytes(path: str) -> Optional[bytes]:
    """The file's content, or None when it is not there or cannot be read.

    In pieces: /proc/sys answers a read of 4 MiB and more with ENOMEM.
    """
    try:
        with open(to_bytes(path), "rb", buffering=0) as file:
            return b"".join(iter(lambda: file.read(65536), b""))
    except OSError:
        return None


def read_text(path: str) -> str:
    return to_text(read_bytes(path) or b"")


def read_line(path: str) -> str:
    return read_text(path).strip()


def names_in(folder: str) -> List[str]:
    """In order; none where there is no such folder."""
    try:
        return sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return []


def fsync_directory(path: bytes) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class Room:
    """Space on the guest's root disk that is kept for the records of a cutover, and for those of
    the mirror that it asks meanwhile.

    A root disk that fills up while services are down would else leave them down: neither the way
    forward nor the way back can be written down then. A piece is given up for each write that finds
    no space; a write is a few KiB, and frees as much when it has replaced its file. What does not
    fit into a piece gets none: it would take all of them, and may still find no space.
    """

    folder = ""
    PIECES, PIECE = 16, 64 * 1024

    @classmethod
    def keep(cls) -> None:
        """Raises OSError where there is not even that much."""
        os.makedirs(cls.folder, mode=0o700, exist_ok=True)
        for number in range(cls.PIECES):
            path = os.path.join(cls.folder, str(number))
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(fd, 0, cls.PIECE)
            finally:
                os.close(fd)

    @classmethod
    def give(cls) -> bool:
        """Free one piece. False when there is none left."""
        for name in names_in(cls.folder):
            with contextlib.suppress(FileNotFoundError):  # the other process was faster
                os.unlink(os.path.join(cls.folder, name))
                return True
        return False

    @classmethod
    def give_all(cls) -> None:
        while cls.give():
            pass


def write_atomically(path: str, content: bytes, mode: int) -> None:
    """Replace ``path``: a reader (or a power cut) sees the old content or the new, nothing else.

    Owner and SELinux label of a file that is replaced stay what they were.
    """
    while True:
        try:
            replace_file(path, content, mode, durable=True)
            return
        except OSError as error:
            no_space = error.errno in (errno.ENOSPC, errno.EDQUOT)
            if not no_space or len(content) > Room.PIECE or not Room.give():
                raise


def replace_file(path: str, content: bytes, mode: int, durable: bool) -> None:
    raw = to_bytes(path)
    temporary = unfinished(path)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(temporary, flags, 0o600)
    try:
        with contextlib.suppress(FileNotFoundError):
            before = os.lstat(raw)
            os.fchown(fd, before.st_uid, before.st_gid)
            with contextlib.suppress(OSError):  # no SELinux, or a filesystem without xattrs
                label = os.getxattr(raw, b"security.selinux", follow_symlinks=False)
                os.setxattr(fd, b"security.selinux", label)
        os.fchmod(fd, mode)
        view = memoryview(content)
        while view:
            view = view[os.write(fd, view) :]
        if durable:
            os.fsync(fd)
    finally:
        os.close(fd)
    os.rename(temporary, raw)
    if durable:
        fsync_directory(os.path.dirname(raw))


def unfinished(path: str) -> bytes:
    """Where the new content of a file is written, which a killed writer leaves."""
    folder, name = os.path.split(to_bytes(path))
    return os.path.join(folder, b"." + name + b".volferry-tmp")


def write_json(path: str, value: Any) -> None:
    write_atomically(path, json.dumps(value).encode("ascii"), 0o600)


def read_json(path: str) -> Any:
    """The value in the file, None when there is no such file."""
    raw = read_bytes(path)
    return None if raw is None else json.loads(to_text(raw))


class Ran(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def complaint(self) -> str:
        """The last words of a command that failed."""
        lines = (self.err.strip() or self.out.strip()).splitlines()
        return one_line(" / ".join(lines[-3:])) or "exit code {}".format(self.code)


def find_program(name: str) -> Optional[str]:
    return shutil.which(name, path=environment()["PATH"])


def environment() -> Dict[str, str]:
    """Ours, with the caller's PATH in front; nothing else of the caller's gets in."""
    mine = dict(ENVIRONMENT)
    given = os.environ.get("PATH", "")
    if given:
        mine["PATH"] = given + ":" + mine["PATH"]
    return mine


class Interrupt:
    """SIGTERM as an exception, but never between the start of a program and our knowing of it."""

    held = 0
    pending = False

    @classmethod
    def arrived(cls) -> None:
        if cls.held:
            cls.pending = True
        else:
            raise Stopped()


def launch(argv: List[str], env: Optional[Dict[str, str]] = None, **more: Any) -> Process:
    """Start a program with a clean environment, in the root directory."""
    Interrupt.held += 1
    try:
        words = [to_bytes(word) for word in argv]
        process = subprocess.Popen(words, env=env or environment(), cwd="/", **more)
    finally:
        Interrupt.held -= 1
    if Interrupt.pending:
        Interrupt.pending = False
        end_process(process)
        raise Stopped()
    return process


def run(argv: List[str], timeout_s: float = COMMAND_S, stdin: bytes = b"") -> Ran:
    """Run a program to its end. A missing program, or one past its deadline, is an AgentError."""
    what = os.path.basename(argv[0])
    try:
        process = launch(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
    except OSError as error:
        if error.errno == errno.ENOENT:
            raise AgentError(
                "missing",
                "{} is not installed in the guest".format(what),
                hint="install the package that has {} in the guest".format(what),
            )
        raise AgentError("failed", "{} cannot be run: {}".format(what, error.strerror))
    try:
        out, err = process.communicate(stdin, timeout=max(timeout_s, 0.05))
    except subprocess.TimeoutExpired:
        end_process(process)
        raise AgentError(
            "failed", "{} did not end within {}".format(" ".join(argv[:6]), told_limit(timeout_s))
        )
    except BaseException:  # a signal's too: no program outlives who waits for it
        end_process(process)
        raise
    return Ran(process.returncode, to_text(out), to_text(err))


def end_process(process: Process) -> None:
    """Kill our own child; one stuck in the kernel is left behind rather than waited for."""
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=5)


def must(argv: List[str], timeout_s: float = COMMAND_S, stdin: bytes = b"") -> str:
    """Run a program that has to succeed; its output."""
    ran = run(argv, timeout_s, stdin)
    if ran.code != 0:
        raise AgentError(
            "failed", "{} failed ({}): {}".format(" ".join(argv), ran.code, ran.complaint)
        )
    return ran.out


def asked(problems: List[str], argv: List[str], first_line: bool = False) -> Optional[str]:
    """What a command said, None (and the reason in ``problems``) when it could not."""
    try:
        ran = run(argv)
    except AgentError as error:
        problems.append(error.what)
        return None
    if ran.code != 0:
        problems.append("{} failed ({}): {}".format(" ".join(argv), ran.code, ran.complaint))
        return None
    return (ran.out.splitlines() or [""])[0] if first_line else ran.out


def asked_json(problems: List[str], argv: List[str]) -> Any:
    text = asked(problems, argv)
    try:
        return json.loads(text) if text else None
    except ValueError as error:
        problems.append("{} printed no JSON: {}".format(argv[0], error))
        return None


def sync_filesystem(path: str, timeout_s: float) -> None:
    """syncfs(2) on the filesystem of ``path``: in a process of its own, because it cannot be
    interrupted. ``sync -f`` is coreutils 8.24; before that the whole machine has to be synced."""
    ran = run(["sync", "-f", path], timeout_s)
    if ran.code != 0 and "invalid option" in ran.err:
        ran = run(["sync"], timeout_s)
    if ran.code != 0:
        raise AgentError("failed", "sync of {} failed: {}".format(path, ran.complaint))


class Log:
    """Lines in ``state_dir/log``; the last ones travel with ``status``."""

    path = ""

    @classmethod
    def say(cls, text: str) -> None:
        if not cls.path:
            return
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        line = "{} {} {}\n".format(stamp, os.getpid(), one_line(text))
        with contextlib.suppress(OSError):  # a full disk must cost no more than this line
            fd = os.open(cls.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
            try:
                os.write(fd, to_bytes(line))
            finally:
                os.close(fd)

    @classmethod
    def tail(cls, path: str, lines: int = 20) -> List[str]:
        raw = read_bytes(path) or b""
        # a power cut leaves zeros where lines were not on the disk yet
        return [to_text(line.strip(b"\0")) for line in raw.splitlines()[-lines:]]


class Place:
    """The base paths, and the facts that are read at them."""

    def __init__(self, settings: Optional[Json] = None) -> None:
        given = settings or {}
        self.settings = given
        self.base: str = given.get("base", "/var/lib/volferry")
        self.etc: str = given.get("etc", "/etc")
        self.run: str = given.get("run", "/run")
        self.proc: str = given.get("proc", "/proc")
        self.sys: str = given.get("sys", "/sys")

    @property
    def has_systemd(self) -> bool:
        """As sd_booted(3) tells it."""
        return os.path.isdir(self.run + "/systemd/system")

    @property
    def has_udev(self) -> bool:
        return os.path.exists(self.run + "/udev/control")

    @property
    def boot_id(self) -> str:
        return read_line(self.proc + "/sys/kernel/random/boot_id")

    def state_dir(self, transfer: str) -> str:
        return os.path.join(self.base, safe_name(transfer, "transfer id"))


def clock_offset() -> float:
    """Wall clock minus monotonic clock: constant until somebody sets the wall clock."""
    return time.time() - time.monotonic()


def safe_name(name: Any, what: str) -> str:
    """A name that can be part of a path without leading anywhere else."""
    if not isinstance(name, str) or not re.match(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}\Z", name):
        raise AgentError(
            "usage", "{} {!r} has characters that a file name cannot".format(what, name)
        )
    if name == "claims":
        raise AgentError("usage", "{} may not be 'claims'".format(what))
    return name


def is_below(path: str, folder: str) -> bool:
    return path != folder and path.startswith(folder.rstrip("/") + "/")


def in_child(
    work: Callable[[Callable[[Json], None]], None], timeout_s: float
) -> Tuple[List[Json], bool]:
    """Run ``work`` in a forked child, which may hang in the kernel (a dead NFS server under some
    process' directory); what it told until the deadline counts. -> (told, finished)"""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:  # the child: never returns into the caller's code
        code = 1
        try:
            os.close(reader)
            with os.fdopen(writer, "w") as file:

                def tell(value: Json) -> None:
                    file.write(json.dumps(value) + "\n")
                    file.flush()

                work(tell)
            code = 0
        finally:
            os._exit(code)
    os.close(writer)
    raw, finished = b"", False
    deadline = time.monotonic() + timeout_s
    try:
        while True:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([reader], [], [], left)[0]:
                break
            chunk = os.read(reader, 65536)
            if not chunk:
                finished = True
                break
            raw += chunk
    finally:
        os.close(reader)
        if not finished:
            os.kill(pid, signal.SIGKILL)
        reap(pid, 5.0)
    lines = raw.split(b"\n")[:-1]
    return [json.loads(to_text(line)) for line in lines], finished


def reap(pid: int, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        with contextlib.suppress(ChildProcessError):
            if os.waitpid(pid, os.WNOHANG)[0] == 0:
                time.sleep(0.005)
                continue
        return


def say(value: Json) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()
