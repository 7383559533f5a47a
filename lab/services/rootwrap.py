"""Make the services run their helpers (dd, cp) as the user that they are.

Cinder and Nova call `sudo <service>-rootwrap <file> …`. The lab's own `sudo`, first in their
$PATH, runs the command as the user that it is; the file allows programs from the usual folders.
"""

from __future__ import annotations

import re
from pathlib import Path

from lab.layout import Layout, write_atomically


def configure(layout: Layout, service: str) -> Path:
    """Write the service's rootwrap configuration and return its path."""
    target = layout.configuration / f"{service}-rootwrap.conf"
    shipped = layout.venv / "etc"
    text = (shipped / service / "rootwrap.conf").read_text()
    settings = {
        "filters_path": f"{shipped / service}/rootwrap.d,{shipped}/os-brick/rootwrap.d",
        "exec_dirs": f"{layout.venv}/bin,/sbin,/usr/sbin,/bin,/usr/bin",
    }
    for name, value in settings.items():
        text = re.sub(rf"(?m)^{name}=.*", f"{name}={value}", text)
    write_atomically(target, text)
    return target


def write_sudo(layout: Layout) -> None:
    """Write the stand-in for sudo."""
    layout.helpers.mkdir(exist_ok=True)
    write_atomically(layout.helpers / "sudo", '#!/bin/sh\nexec "$@"\n', mode=0o755)
