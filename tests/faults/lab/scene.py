"""A volume in use in the lab, the command that moves it through faults, and what must be true."""

import contextlib
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from lab.api import Lab
from tests.faults.cloud.proxy import Proxy
from tests.faults.lab.relay import Relay
from tests.lab.volferry_command import UNIT, Command, Guest
from volferry.model import State
from volferry.steps import SEQUENCE

MOUNT = "/srv/data"
PATIENT_S = 600.0
WHOLE_LINE = re.compile(r"\d{13}")
"""A reset may leave the beginning of a line whose write was never acknowledged."""
DISKS = f"findmnt -nvro SOURCE {MOUNT} | xargs lsblk -nrso KNAME,TYPE | grep -w disk"
DIES_ON_THE_TARGET = (
    f"ExecStartPost=/bin/sh -c '{DISKS} | cmp - /var/tmp/source || (sleep 1; kill -9 $MAINPID) &'"
)
"""For ``unit_with``: the service starts there, and is gone a second later."""


class Scene:
    """Ssh goes through ``relay`` and the cloud's API through ``proxy``, for the command alone."""

    def __init__(
        self, lab: Lab, server: str, volume_id: str, relay: Relay, proxy: Proxy, folder: Path
    ) -> None:
        self.lab, self.relay, self.proxy, self.folder = lab, relay, proxy, folder
        self.guest = Guest(lab, server, volume_id, MOUNT)
        self.config = relay.ssh_config(folder, lab, server)
        self.method = "rsync"
        self.number = 0
        self.given_up: set[str] = set()
        """Lines that the service wrote to a target which was then taken back, as was said."""
        self.next_transfer()

    def next_transfer(self) -> None:
        """A state folder of its own for each."""
        self.number += 1
        state = self.folder / f"state-{self.number}"
        state.mkdir()
        self.volferry = Command(self.lab, state, **self.proxy.environment)

    def put_in_use(self, fstype: str, stack: str = "bare") -> None:
        self.lab.attach(self.guest.name, self.guest.volume_id)
        self.guest.put_in_use(fstype, stack=stack)

    @contextlib.contextmanager
    def unit_with(self, line: str) -> Iterator[None]:
        """One line more in the unit of the service."""
        folder = f"/etc/systemd/system/{UNIT}.d"
        self.guest.sh(
            f"{DISKS} > /var/tmp/source; mkdir -p {folder}; "
            f"cat > {folder}/bad.conf <<'END'\n[Service]\n{line}\nEND\nsystemctl daemon-reload"
        )
        try:
            yield
        finally:
            self.guest.sh(f"rm -rf {folder}; systemctl daemon-reload")

    def set_clock(self, shift: str) -> None:
        self.guest.sh(f"timedatectl set-ntp false; date -s \"$(date -d '{shift}')\"")

    # ---- carrying --------------------------------------------------------------------------------

    def words(self, *more: str) -> tuple[str, ...]:
        # At the mirror's own pace a guest under emulation takes a quarter of an hour.
        pace = ("--pace", "1.0") if self.method == "mirror" else ()
        # On a busy machine a guest's `systemctl daemon-reload` alone may take a minute and a half.
        return (
            "run", self.guest.name, self.guest.volume_id, "--method", self.method, "--unit", UNIT,
            "--ssh-config", str(self.config), "--max-downtime", "600s", "--settle", "2s",
            "--cutover-timeout", "900s", "--attach-timeout", "600s", "--detach-timeout", "600s",
            "--yes", *pace, *more,
        )  # fmt: skip

    def begin(self, *more: str) -> subprocess.Popen[bytes]:
        return self.volferry.start(*self.words(*more))

    def when(self, process: subprocess.Popen[bytes], step: str) -> None:
        """Return once the transfer is in this step or behind it."""
        order = ["", *(step.name for step in SEQUENCE)]
        ends = time.monotonic() + PATIENT_S
        while time.monotonic() < ends:
            now = self.volferry.stands()
            if now and order.index(now.step) >= order.index(step):
                return
            assert process.poll() is None, self.volferry.log.read_text()
            time.sleep(0.5)
        raise AssertionError(f"it never came to '{step}':\n{self.volferry.log.read_text()}")

    def when_phase(self, phase: str) -> None:
        """Return once the agent is in this phase, looked at past the relay. In one session: each
        takes an emulated guest as much time as what it is to see."""
        seen = f'grep -qsE \'"phase": "{phase}"\' /var/lib/volferry/*/cutover.json'
        self.guest.sh(f"until {seen}; do sleep 0.1; done", timeout_s=PATIENT_S)

    def reset(self) -> None:
        """As if somebody had pulled the plug, and put it in again at once."""
        self._boot_again(lambda: self.lab.qmp(self.guest.name, "system_reset"))

    def reboot(self) -> None:
        """In order: everybody is told to end, and is waited for."""
        self._boot_again(lambda: self.try_sh("systemctl reboot --no-block"))

    def _boot_again(self, order: Callable[[], object]) -> None:
        boot = self.boot_id()
        order()
        self.until(lambda: self.boot_id() not in ("", boot), "the guest boots again")
        self.until(lambda: self.is_active() or self.failed(), "the boot has ended")

    def boot_id(self) -> str:
        return self.try_sh("cat /proc/sys/kernel/random/boot_id")

    def is_active(self) -> bool:
        return self.try_sh(f"systemctl is-active {UNIT}") == "active"

    def failed(self) -> bool:
        return self.try_sh("systemctl is-system-running") in ("running", "degraded")

    def try_sh(self, script: str) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.lab.run(self.guest.name, script, root=True, timeout_s=30).stdout.strip()
        return ""

    @staticmethod
    def until(true: Callable[[], bool], what: str, timeout_s: float = PATIENT_S) -> None:
        ends = time.monotonic() + timeout_s
        while not true():
            assert time.monotonic() < ends, f"not within {timeout_s:.0f} s: {what}"
            time.sleep(1)

    def resume_to_the_end(self, tries: int = 4) -> None:
        """Resume until it is done: a guest that goes back by itself may be asked again."""
        for left in range(tries, 0, -1):
            now = self.volferry.stands()
            assert now is not None
            if now.state is State.DONE:
                return
            self.volferry("resume", now.id, code=None if left > 1 else 0)

    # ---- what must be true -----------------------------------------------------------------------

    def check(self, side: str) -> None:
        """The service runs on this volume alone, nothing that was acknowledged is lost."""
        self.until(self.is_active, f"{UNIT} is active")
        assert self.guest.mounted_serial() == side[:20]
        assert self.lost() == []

    def lost(self) -> list[str]:
        """Acknowledged lines that are not on the volume. The log of them is on the root disk."""
        acknowledged = self.guest.sh("cat /var/tmp/acknowledged").split()
        written = set(self.guest.sh(f"cat {MOUNT}/written").split())
        whole = [line for line in acknowledged if WHOLE_LINE.fullmatch(line)]
        assert whole, "the writer never wrote anything"
        return [line for line in whole if line not in written | self.given_up]

    def give_up(self, told: str) -> None:
        """What is lost now is what the service wrote to the target alone: that has to be told."""
        lost = self.lost()
        assert not lost or "services had run on the target for" in told, lost
        self.given_up |= set(lost)

    def check_done(self) -> str:
        """The transfer has ended; the target's id."""
        transfer = self.volferry.stands()
        assert transfer is not None
        assert transfer.state is State.DONE
        report = self.volferry.data("report", transfer.id)
        assert report["not_verified"] == [] and report["verified"]
        target = str(report["moves"][0]["target"]["id"])
        self.check(target)
        assert self.guest.leftovers() == ""
        assert self.of_transfer(transfer.id) == [target]
        return target

    def check_rolled_back(self, id: str) -> None:
        self.check(self.guest.volume_id)
        assert self.guest.leftovers() == ""
        assert self.of_transfer(id) == []

    def of_transfer(self, id: str, *kinds: str) -> list[str]:
        """Volumes and snapshots that carry its mark."""
        every = [
            one
            for kind in kinds or ("volumes", "snapshots")
            for one in self.lab.member.get("block-storage", f"/{kind}/detail")[kind]
        ]
        return [one["id"] for one in every if one["metadata"].get("volferry:transfer") == id]
