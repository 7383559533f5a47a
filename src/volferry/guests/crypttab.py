"""crypttab(5): read it, and change the device of one line without touching anything else.

The file belongs to the user: comments, blank lines, tabs and the order stay byte for byte.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass

from volferry.guests import fstab

_FIELDS = re.compile(r"^(\s*)(\S+)(\s+)(\S+)(?:\s+(\S+)(?:\s+(\S+))?)?")


@dataclass(frozen=True)
class Entry:
    line: int
    """Counted from 1."""
    name: str
    """Of the mapping below ``/dev/mapper``."""
    device: str
    key: str
    """Empty when a person is asked: ``none``, ``-``, or nothing at all."""
    options: str

    def names(self, names: Collection[str]) -> bool:
        """Whether it means a device that goes by any of ``names``; see ``fstab.names_device``."""
        return fstab.names_device(self.device, names)


def parse(text: str) -> list[Entry]:
    """The entries. crypttab has no escapes: a field is what stands between blanks."""
    found = []
    for number, line in enumerate(fstab.lines_of(text), start=1):
        match = _FIELDS.match(line)
        if not match or match[2].startswith("#"):
            continue
        key = match[5] or ""
        found.append(
            Entry(
                line=number,
                name=match[2],
                device=_plain(match[4]),
                key="" if key in ("none", "-") else key,
                options=match[6] or "",
            )
        )
    return found


def with_device(text: str, line: int, device: str) -> str:
    """The file with the device of one line replaced.

    Raises ``ValueError`` when that line is not an entry: somebody has changed the file.
    """
    lines = fstab.lines_of(text)
    match = _FIELDS.match(lines[line - 1]) if 0 < line <= len(lines) else None
    if not match or match[2].startswith("#"):
        raise ValueError(f"line {line} of crypttab is not an entry")
    old = lines[line - 1]
    lines[line - 1] = old[: match.start(4)] + device + old[match.end(4) :]
    return "".join(lines)


def _plain(field: str) -> str:
    tag, equals, value = field.partition("=")
    return tag + equals + value.strip('"') if equals else field
