"""LVM's devices file (lvmdevices(8)): the list of the devices that LVM may use.

Where it is in use, LVM sees no other disk, whatever lies on it; an entry names a disk by what the
cloud put on it. So on a target the group is only found when the entry follows.
"""

import re
from collections.abc import Mapping

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
