"""Guest images from Debian packages: one root disk, one kernel, one initramfs per suite.

An image is kept in the cache under the hash of the scripts that make it. It holds no secret and
nothing of one server; those come at boot (guest/identity.sh).
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lab.install import as_root, find_program, run_logged
from lab.layout import Layout, file_hash

# The name in Glance, and the Debian suite behind it.
SUITES = {"debian-12": "bookworm", "debian-13": "trixie"}
ROOT_DISK_GIB = 6

_GUEST = Path(__file__).resolve().parent / "guest"


@dataclass(frozen=True)
class Image:
    """The files that a server of one suite boots from."""

    folder: Path

    @property
    def root_disk(self) -> Path:
        return self.folder / "root.img"

    @property
    def kernel(self) -> Path:
        return self.folder / "vmlinuz"

    @property
    def initramfs(self) -> Path:
        return self.folder / "initrd"


def image(layout: Layout, suite: str) -> Image:
    """Return where the image of a suite lies, built or not."""
    made_by = file_hash(*sorted(_GUEST.iterdir()), extra=f"{suite} {ROOT_DISK_GIB}")
    return Image(layout.cache / f"image-{suite}-{made_by}")


def build(layout: Layout, suite: str, say: Callable[[str], None]) -> None:
    """Build the image of a suite; does nothing when it is in the cache."""
    wanted = image(layout, suite)
    if wanted.folder.exists():
        return
    say(f"building the guest image {suite} (about a minute)")
    layout.cache.mkdir(parents=True, exist_ok=True)
    log = layout.logs / f"image-{suite}.log"
    packages = _packages(suite)
    with tempfile.TemporaryDirectory(prefix=f"{suite}-", dir=layout.cache) as work:
        draft = Image(Path(work) / "image")
        draft.folder.mkdir()
        root = Path(work) / "root"
        bootstrap: list[str | Path] = [
            "mmdebstrap",
            "--mode=root",
            "--variant=minbase",
            f"--include={','.join(packages)}",
            "--dpkgopt=force-confold",
            "--dpkgopt=path-exclude=/usr/share/man/*",
            "--dpkgopt=path-exclude=/usr/share/locale/*",
            f'--essential-hook={_GUEST}/essential.sh "$1"',
            f'--customize-hook={_GUEST}/customize.sh "$1" {draft.folder}',
            suite,
            root,
        ]
        mirror = os.environ.get("VOLFERRY_LAB_DEBIAN_MIRROR")
        try:
            run_logged(as_root(*bootstrap, *([mirror] if mirror else [])), log, timeout_s=1800)
            with draft.root_disk.open("wb") as disk:
                disk.truncate(ROOT_DISK_GIB << 30)
            # -d fills the file system from the folder: no loop device, no mount to clean up.
            mkfs = find_program("mkfs.ext4") or "mkfs.ext4"
            fill = [mkfs, "-q", "-F", "-L", "root", "-E", "lazy_itable_init=0", "-d"]
            run_logged(as_root(*fill, root, draft.root_disk), log, timeout_s=600)
        finally:
            run_logged(as_root("rm", "-rf", "--one-file-system", root), log, timeout_s=300)
        run_logged(as_root("chown", "-R", f"{os.getuid()}", draft.folder), log, timeout_s=60)
        draft.folder.replace(wanted.folder)


def _packages(suite: str) -> list[str]:
    """Those that a line of the list names for every suite, or for this one."""
    lines = [line.split() for line in (_GUEST / "packages").read_text().splitlines()]
    return [
        words[0]
        for words in lines
        if words and words[0][0] != "#" and (not words[1:] or suite in words[1:])
    ]


def build_all(layout: Layout, say: Callable[[str], None]) -> None:
    """Build the images that are not in the cache."""
    for suite in SUITES.values():
        build(layout, suite, say)


def drop_outdated(layout: Layout) -> None:
    """Delete images that no script of this tree makes any more; they are 700 MiB each.

    Only without servers: their disks are overlays on these images.
    """
    wanted = {image(layout, suite).folder for suite in SUITES.values()}
    for folder in layout.cache.glob("image-*"):
        if folder not in wanted:
            shutil.rmtree(folder)
