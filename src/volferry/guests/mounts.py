"""The kernel's mount table, as ``/proc/<pid>/mountinfo`` tells it (proc(5), section mountinfo).

Read here rather than from ``findmnt``: it is the kernel's own word, the same on every release, and
it has what a cutover needs to put back (the root of a bind mount, propagation, both option lists).
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """One line. ``options`` are the mount's own, ``super_options`` the filesystem's."""

    id: int
    parent: int
    dev: str
    root: str
    target: str
    options: str
    propagation: str
    fstype: str
    source: str
    super_options: str


def unescape(field: str) -> str:
    r"""Undo the octal escapes (``\040`` is a space) of mountinfo and fstab."""
    raw = field.encode(errors="surrogateescape")
    plain = re.sub(rb"\\([0-7]{3})", lambda m: bytes([int(m[1], 8) & 0xFF]), raw)
    return plain.decode(errors="surrogateescape")


def escape(field: str) -> str:
    r"""The octal escapes that fstab and mountinfo need: space, tab, newline, ``\`` and ``#``."""
    return "".join(f"\\{ord(c):03o}" if c in " \t\n\\#" else c for c in field)


def parse(text: str) -> list[Entry]:
    """All entries, in the kernel's order: a later mount covers an earlier one.

    Raises ``ValueError`` for a line that is not in the documented form: a mount table that is read
    wrongly is worse than none.
    """
    # Only "\n" ends a line; str.splitlines would also cut a name at U+0085 and the like.
    return list(_entries(text.split("\n")))


def _entries(lines: Iterable[str]) -> Iterator[Entry]:
    for line in lines:
        if not line.strip():
            continue
        left, dash, right = line.partition(" - ")
        before, after = left.split(" "), right.split(" ")
        if not dash or len(before) < 6 or len(after) < 3:
            raise ValueError(f"not a line of mountinfo: {line!r}")
        yield Entry(
            id=int(before[0]),
            parent=int(before[1]),
            dev=before[2],
            root=unescape(before[3]),
            target=unescape(before[4]),
            options=before[5],
            propagation=_propagation(before[6:]),
            fstype=after[0],
            source=unescape(after[1]),
            super_options=after[2],
        )


def _propagation(tags: list[str]) -> str:
    kinds = [tag.partition(":")[0] for tag in tags]
    if "unbindable" in kinds:
        return "unbindable"
    names = [word for tag, word in (("master", "slave"), ("shared", "shared")) if tag in kinds]
    return ",".join(names) or "private"


def below(entries: Iterable[Entry], target: str) -> list[Entry]:
    """The mounts strictly inside ``target``."""
    prefix = target.rstrip("/") + "/"
    return [entry for entry in entries if entry.target.startswith(prefix)]
