"""Which devices LVM may use: its devices file (lvmdevices(8)) and its filters (lvm.conf(5)).

Where the file is in use, LVM sees no other disk, whatever lies on it; an entry names a disk by what
the cloud put on it. So on a target the group is only found when the entry follows. A filter goes by
the names that a disk happens to have.
"""

import re
from collections.abc import Mapping, Sequence

SERIAL = 20
"""Characters of a volume id that virtio-blk shows."""

_ENTRY = re.compile(r"^(.*\bIDNAME=)(\S+)(.*)$")


def on_targets(text: str, targets: Mapping[str, str]) -> str:
    """The file for when the targets are live: ids of sources (keys) become those of targets.

    By device name (``IDTYPE=devname``) nothing needs to change: LVM looks for such an entry's PVID
    on every disk. An encryption's or array's own UUID is the same on both sides.
    """
    lines = re.findall(r"[^\n]*\n|[^\n]+$", text)
    return "".join(_follow(line, targets) for line in lines)


def _follow(line: str, targets: Mapping[str, str]) -> str:
    match = _ENTRY.match(line.rstrip("\n"))
    if not match or line.startswith("#"):
        return line
    name = match[2]
    for source, target in targets.items():
        # The whole id first: its beginning is in it as well.
        name = name.replace(source, target).replace(source[:SERIAL], target[:SERIAL])
    return f"{match[1]}{name}{match[3]}" + line[len(line.rstrip("\n")) :]


def stays_behind(text: str, path: str, volume_id: str) -> str:
    """The name of an entry for a source's device that ``on_targets`` can't make follow, or empty.

    ``path`` is what the device is called now.
    """
    for line in text.splitlines():
        fields = dict(word.split("=", 1) for word in line.split() if "=" in word)
        if line.startswith("#") or fields.get("DEVNAME") != path:
            continue
        if fields.get("IDTYPE") in ("devname", "md_uuid", "crypt_uuid", "lvmlv_uuid"):
            continue
        if volume_id[:SERIAL] not in fields.get("IDNAME", ""):
            return f"{fields.get('IDTYPE', '')} {fields.get('IDNAME', '')}".strip()
    return ""


def refusing_filter(lvmconfig: str, path: str) -> str:
    """The pattern that would keep LVM from the target of ``path``; empty when none does.

    ``lvmconfig`` is what that command says of the filters. How the target will be called is not
    known: another letter, another id. A name is judged by the first pattern that matches it, a
    device is refused when no name of it is accepted and one is refused.
    """
    disk = re.match(r"^(/dev/(?:vd|sd|xvd))[a-z]+(\d*)$", path)
    if not disk:
        return ""
    part = f"-part{disk[2]}" if disk[2] else ""
    by_id = "/dev/disk/by-id/virtio-00000000-0000-0000-0"
    names = [f"{disk[1]}q{disk[2]}", by_id + part]
    for line in lvmconfig.splitlines():
        patterns = re.findall(r'"((?:[^"\\]|\\.)*)"', line)
        verdicts = [verdict for name in names if (verdict := _verdict(patterns, name))]
        refused = [pattern for accepts, pattern in verdicts if not accepts]
        if refused and len(refused) == len(verdicts):
            return refused[0]
    return ""


def _verdict(patterns: Sequence[str], name: str) -> tuple[bool, str] | None:
    """Whether a name is accepted, and by which pattern; None when none matches."""
    closing = {"(": ")", "[": "]", "{": "}"}
    for pattern in patterns:
        kind, opener, rest = pattern[:1], pattern[1:2], pattern[2:]
        expression = rest.rpartition(closing.get(opener, opener))[0]
        if re.search(expression, name):
            return kind == "a", pattern
    return None
