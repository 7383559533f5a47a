"""A volume in use that several tests share, each of which leaves it as it found it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from lab.api import Lab
from tests.lab.naming import named
from tests.lab.volferry_command import UNIT, Command, Guest, snapshots


class Kept:
    """Made when it is asked for, and anew once a test has spoiled it."""

    def __init__(self, lab: Lab, servers: Any) -> None:
        self.lab, self.servers = lab, servers
        self.guest: Guest | None = None
        self.name = ""

    def get(self) -> Guest:
        if self.guest is None:
            self.name = named("kept")
            server = self.servers.get("debian-12")
            volume = self.lab.ensure_volume(self.name, 1, "cbs-standard")
            self.guest = Guest(self.lab, server, volume, "/srv/data")
            self.lab.attach(server, volume)
            self.guest.put_in_use("xfs")
        return self.guest

    def drop(self) -> None:
        guest, self.guest = self.guest, None
        if guest is None:
            return
        self.servers.give_back(guest)
        self.lab.sweep(self.name)

    @contextlib.contextmanager
    def in_use(self, volferry: Command) -> Iterator[Guest]:
        """It is looked at afterwards. A test that moved it says so by the guest's ``volume_id``."""
        guest = self.get()
        fstab = guest.sh("cat /etc/fstab")
        with contextlib.ExitStack() as unless_in_order:
            unless_in_order.callback(self.drop)
            yield guest
            volferry.end()
            assert self.lab.volume(guest.volume_id)["status"] == "in-use"
            assert guest.mounted_serial() == guest.volume_id[:20]
            assert guest.sh(f"systemctl is-active {UNIT}") == "active"
            assert guest.sh("cat /etc/fstab") == fstab
            assert guest.leftovers() == "" and snapshots(self.lab, guest) == []
            assert guest.lost() == []
            unless_in_order.pop_all()
