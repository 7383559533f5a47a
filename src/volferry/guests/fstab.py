"""fstab(5): read it, and change one field of one line without touching anything else.

The file belongs to the user: comments, blank lines, tabs and the order stay byte for byte.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass

from volferry.guests.mounts import escape, unescape

# Blanks and tabs alone part fields; ``\s`` would also cut a name at a no-break space.
_FIELDS = re.compile(
    r"^([ \t]*)([^ \t\n]+)([ \t]+)([^ \t\n]+)(?:([ \t]+)([^ \t\n]+)(?:[ \t]+([^ \t\n]+))?)?"
)


@dataclass(frozen=True)
class Entry:
    line: int
    """Counted from 1."""
    spec: str
    """First field, unescaped, quotes of ``UUID="…"`` removed."""
    target: str
    fstype: str
    options: str

    @property
    def option_names(self) -> frozenset[str]:
        return frozenset(option.partition("=")[0] for option in self.options.split(","))


def parse(text: str) -> list[Entry]:
    """The entries, without comments and lines that mount(8) would not understand either."""
    found = []
    for number, line in enumerate(lines_of(text), start=1):
        match = _FIELDS.match(line)
        if not match or match[2].startswith("#"):
            continue
        target = unescape(match[4])
        found.append(
            Entry(
                line=number,
                spec=_plain(match[2]),
                target=target.rstrip("/") or "/",
                fstype=match[6] or "auto",
                options=match[7] or "defaults",
            )
        )
    return found


def with_spec(text: str, line: int, spec: str) -> str:
    """The file with the first field of one line replaced.

    Raises ``ValueError`` when that line is not an entry: somebody has changed the file.
    """
    lines = lines_of(text)
    match = _FIELDS.match(lines[line - 1]) if 0 < line <= len(lines) else None
    if not match or match[2].startswith("#"):
        raise ValueError(f"line {line} of fstab is not an entry")
    old = lines[line - 1]
    lines[line - 1] = old[: match.start(2)] + escape(spec) + old[match.end(2) :]
    return "".join(lines)


_SECRET = re.compile(r"((?:^|,)(?:pass(?:word|wd)?\d?|pwd|secret|key|token)\w*=)[^,\s]+", re.I)


def without_secrets(text: str) -> str:
    """The file with the passwords of network filesystems taken out (``mount.cifs(8)``, ceph's).

    For whoever keeps or shows it; what is written back is never made from this.
    """

    def hide(match: re.Match[str]) -> str:
        return _SECRET.sub(r"\1(removed)", match[0])

    return re.sub(r"[^ \t\n]+", hide, text)


def names_device(spec: str, names: Collection[str]) -> bool:
    """Whether ``spec`` means a device that goes by any of ``names``.

    ``names`` holds the device's paths and its ``UUID=…``, ``LABEL=…``, ``PARTUUID=…``,
    ``PARTLABEL=…``, as they would be written; UUIDs compare without regard to case.
    """
    tag, equals, value = spec.partition("=")
    if equals and tag.upper() in ("UUID", "PARTUUID"):
        return f"{tag.upper()}={value.lower()}" in {
            name.partition("=")[0] + "=" + name.partition("=")[2].lower() for name in names
        }
    return spec in names


def is_stable(spec: str) -> bool:
    """Whether a spec follows the *filesystem* (or its partition) rather than the disk it is on.

    Only such an entry finds the copy, which has the same identity, when the live side is switched.
    ``/dev/vdb`` changes between boots, by-id and by-path name the disk.
    """
    tag, equals, _ = spec.partition("=")
    if equals and tag.upper() in ("UUID", "LABEL", "PARTUUID", "PARTLABEL"):
        return True
    return spec.startswith(
        tuple(f"/dev/disk/by-{kind}/" for kind in ("uuid", "label", "partuuid", "partlabel"))
    )


def is_of_disk(spec: str) -> bool:
    """Whether a spec names a disk by its place or its number, and so not the copy on another."""
    return spec.startswith("/dev/") and not is_stable(spec)


def is_given_at_boot(spec: str) -> bool:
    """Whether a spec names a disk by what it was called at this boot, or by where it is plugged in:
    with another disk beside it the next boot may call it otherwise (seen: of two virtio disks)."""
    return is_of_disk(spec) and not spec.startswith("/dev/disk/by-id/")


def lines_of(text: str) -> list[str]:
    """The lines with their ends. Only "\n" ends one; str.splitlines would also cut at form feeds
    and the like."""
    return re.findall(r"[^\n]*\n|[^\n]+$", text)


def _plain(field: str) -> str:
    tag, equals, value = field.partition("=")
    if equals and len(value) >= 2 and value[0] == value[-1] == '"':
        value = value[1:-1]
    return unescape(tag + equals + value)
