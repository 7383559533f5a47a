"""Install what the lab runs on: Debian packages of the host, and the services' own venv."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from lab.errors import LabError
from lab.layout import Layout

# The program that shows that a package is there, and the package.
_HOST_PROGRAMS = {
    "qemu-system-x86_64": "qemu-system-x86",
    "qemu-img": "qemu-utils",
    "mmdebstrap": "mmdebstrap",
    "mkfs.xfs": "xfsprogs",
    "mkfs.ext4": "e2fsprogs",
    "mount": "mount",
    "losetup": "mount",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
    "xz": "xz-utils",
}


def as_root(*command: str | Path) -> list[str]:
    """Return the command as root runs it: itself, or after `sudo` for other users."""
    words = [str(word) for word in command]
    return words if os.geteuid() == 0 else ["sudo", *words]


def find_program(name: str) -> str | None:
    """Return the path of a host program; mkfs and friends are not in a user's $PATH."""
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def missing_packages() -> list[str]:
    """Return the Debian packages that the lab needs and this host lacks."""
    missing = {package for program, package in _HOST_PROGRAMS.items() if not find_program(program)}
    # mmdebstrap checks the archive's signature with these keys.
    if not Path("/usr/share/keyrings/debian-archive-keyring.gpg").exists():
        missing.add("debian-archive-keyring")
    # Debian packs venv's bootstrap apart from python3.
    if not importlib.util.find_spec("ensurepip"):
        missing.add("python3-venv")
    return sorted(missing)


def install_packages(layout: Layout, say: Callable[[str], None]) -> None:
    """Install the missing Debian packages; does nothing when there are none."""
    packages = missing_packages()
    if not packages:
        return
    if not shutil.which("apt-get"):
        raise LabError(
            f"missing on this host: {', '.join(packages)}; there is no apt-get",
            "the lab builds its guests from Debian packages and needs a Debian-like host",
            "run the lab on Debian 12 or newer, for example in a virtual machine",
        )
    say(f"installing Debian packages: {' '.join(packages)}")
    apt = as_root("env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-q", "-y")
    wait = ["-o", "DPkg::Lock::Timeout=300"]
    log = layout.logs / "apt.log"
    run_logged([*apt, *wait, "update"], log, timeout_s=600)
    run_logged([*apt, *wait, "install", "--no-install-recommends", *packages], log, timeout_s=1800)


def install_services(layout: Layout, say: Callable[[str], None]) -> None:
    """Make the virtual environment of the services; does nothing when it is in the cache."""
    # A venv cannot be moved once it is made (its scripts name its path), so completeness is told
    # by a file and not by the folder's final name.
    complete = layout.venv / "complete"
    if complete.exists():
        return
    say("installing OpenStack into a virtual environment (1 to 3 minutes)")
    if layout.venv.exists():
        shutil.rmtree(layout.venv)
    layout.cache.mkdir(parents=True, exist_ok=True)
    log = layout.logs / "pip.log"
    run_logged([sys.executable, "-m", "venv", layout.venv], log, timeout_s=120)
    here = Path(__file__).resolve().parent
    pip: list[str | Path] = [layout.program("pip"), "install", "--disable-pip-version-check"]
    files: list[str | Path] = ["-r", here / "requirements.txt", "-c", here / "constraints.txt"]
    run_logged([*pip, *files], log, timeout_s=1800)
    complete.touch()


def drop_outdated(layout: Layout) -> None:
    """Delete virtual environments and schemas of other versions; a venv has 700 MiB."""
    for folder in (*layout.cache.glob("venv-*"), *layout.cache.glob("schemas-*")):
        if folder not in (layout.venv, layout.schemas):
            shutil.rmtree(folder)


def run_logged(command: Sequence[str | Path], log: Path, timeout_s: float) -> None:
    """Run a command with the caller's environment; its output goes to `log`."""
    words = [str(word) for word in command]
    with log.open("a") as output:
        output.write(f"$ {' '.join(words)}\n")
        output.flush()
        try:
            code = subprocess.run(
                words,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                timeout=timeout_s,
                check=False,
            ).returncode
        except subprocess.TimeoutExpired:
            code = None
    if code != 0:
        ending = f"did not end within {timeout_s:.0f} s" if code is None else f"ended with {code}"
        raise LabError(
            f"`{' '.join(words[:6])} …` {ending}",
            "the lab cannot be built; nothing was started",
            f"read the end of {log}",
        )
