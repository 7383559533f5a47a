"""The command as a user runs it: a process of its own, against the lab, with a state of its own."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lab.api import Lab
from lab.errors import LabError
from volferry.model import Transfer
from volferry.store import Store

TIMEOUT_S = 1800
UNIT = "writer.service"


class Command:
    def __init__(self, lab: Lab, state: Path, **environment: str) -> None:
        self.lab, self.state, self.more = lab, state, environment
        self.log = state / "output.log"
        self._started: list[subprocess.Popen[bytes]] = []

    def _argv(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "volferry", "--state", str(self.state), *words]

    @property
    def _environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "OS_CLIENT_CONFIG_FILE": str(self.lab.clouds_yaml),
            "OS_CLOUD": "volferry-lab",
            "NO_COLOR": "1",
            "COLUMNS": "200",
            **self.more,
        }

    def __call__(self, *words: str, code: int | None = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            self._argv(*words),
            env=self._environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        with self.log.open("a") as log:
            log.write(f"$ {' '.join(words)}\n{done.stdout}{done.stderr}[{done.returncode}]\n")
        assert code in (None, done.returncode), (
            f"{words[0]} ended with {done.returncode}:\n{done.stderr}"
        )
        return done

    def start(self, *words: str, program: Sequence[str] = ()) -> subprocess.Popen[bytes]:
        """The same in the background; ``end`` ends what still runs.

        ``program``: what to run in place of the command itself.
        """
        argv = self._argv(*words)
        argv = [*program, *argv[3:]] if program else argv
        with self.log.open("a") as log:
            log.write(f"$ {' '.join(words)} &\n")
            log.flush()
            process = subprocess.Popen(
                argv,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self._started.append(process)
        return process

    def end(self) -> None:
        for process in self._started:
            if process.poll() is None:
                process.kill()
            process.wait(60)

    def in_step(self, process: subprocess.Popen[bytes], step: str) -> str:
        """Wait until the transfer that a process carries is in a step; the transfer's id."""
        ends = time.monotonic() + TIMEOUT_S
        while time.monotonic() < ends:
            assert process.poll() is None, self.log.read_text()
            now = self.stands()
            if now and now.step == step:
                return now.id
            time.sleep(0.2)
        raise AssertionError(f"it never came to '{step}':\n{self.log.read_text()}")

    def stands(self) -> Transfer | None:
        """The only transfer. To be asked often: beside an emulated guest a `volferry list` twice a
        second took a core of the two."""
        with Store(self.state) as store:
            return next(iter(store.transfers()), None)

    def kill_when(self, process: subprocess.Popen[bytes], step: str) -> str:
        """SIGKILL it once the transfer is in a step; the transfer's id."""
        transfer = self.in_step(process, step)
        process.send_signal(signal.SIGKILL)
        process.wait(60)
        return transfer

    def until_said(self, text: str, after: str = "") -> None:
        """Wait until a process in the background has said it, ``after`` what the log held then."""
        ends = time.monotonic() + TIMEOUT_S
        while text not in self.log.read_text()[len(after) :]:
            assert time.monotonic() < ends, self.log.read_text()
            time.sleep(0.5)

    def data(self, *words: str) -> Any:
        return json.loads(self(*words, "-f", "json").stdout)

    def transfer(self) -> str:
        [one] = self.data("list")
        return str(one["id"])

    def report(self) -> Any:
        return self.data("report", self.transfer())


class Guest:
    """A server with a fresh volume in use by a service, and how to look at it."""

    def __init__(self, lab: Lab, name: str, volume_id: str, mount: str) -> None:
        self.lab, self.name, self.volume_id, self.mount = lab, name, volume_id, mount

    @property
    def disk(self) -> str:
        return f"/dev/disk/by-id/virtio-{self.volume_id[:20]}"

    def sh(self, script: str, timeout_s: float = 600) -> str:
        return self.lab.ssh(self.name, script, root=True, timeout_s=timeout_s).strip()

    def run_script(self, name: str, arguments: str) -> str:
        text = Path(__file__).with_name(name).read_text()
        return self.sh(f"sh -s {arguments} <<'SCRIPT'\n{text}\nSCRIPT")

    def put_in_use(
        self,
        fstype: str,
        table: str = "whole",
        fstab: str = "",
        stack: str = "bare",
        more_disks: str = "",
        strewn_kib: int = 0,
    ) -> None:
        """A filesystem with a tree and a service that writes to it, on a stack over the volume."""
        said = self.run_script("stacks.sh", f"{stack} {self.disk} {more_disks}")
        device, usual = said.splitlines()[-1].split()
        words = f"{device} {self.mount} {fstype} {table} {fstab or usual} {UNIT} {strewn_kib}"
        self.run_script("in_use.sh", words)

    def mounted_serial(self) -> str:
        """Serial of the disk below the mount, by the kernel's word: the beginning of a volume's id.
        Of several disks one a line."""
        return self.sh(
            f"for d in $(lsblk -nrso KNAME,TYPE $(findmnt -nvro SOURCE {self.mount}) | "
            "awk '$2 == \"disk\" {print $1}' | sort -u); do cat /sys/class/block/$d/serial; echo; "
            "done | grep ."
        )

    def acknowledged(self) -> int:
        return int(self.sh("wc -l < /var/tmp/acknowledged"))

    def lost(self) -> list[str]:
        """Lines that the writer has forced to the volume and that are not there any more."""
        return self.sh(
            f"sort /var/tmp/acknowledged > /var/tmp/a; sort {self.mount}/written > /var/tmp/b; "
            "comm -23 /var/tmp/a /var/tmp/b"
        ).split()

    def leftovers(self) -> str:
        return self.sh(
            "ls -d /var/lib/volferry/* /etc/udev/rules.d/*volferry* /etc/systemd/system/*volferry* "
            "/run/volferry* 2>/dev/null; grep -l volferry /proc/mounts || true"
        )

    def reboot(self) -> None:
        boot = self.sh("cat /proc/sys/kernel/random/boot_id")
        self.lab.run(self.name, "systemctl reboot", root=True)
        ends = time.monotonic() + 600
        while time.monotonic() < ends:
            try:
                tried = self.lab.run(
                    self.name, "cat /proc/sys/kernel/random/boot_id", root=True, timeout_s=60
                )
            except subprocess.TimeoutExpired:
                continue
            if tried.returncode == 0 and tried.stdout.strip() != boot:
                # A session over ssh comes before the last mounts of a boot under emulation.
                self.sh("systemctl is-system-running --wait >/dev/null || true")
                return
            time.sleep(1)
        raise AssertionError(f"{self.name} did not come back")


def clean(lab: Lab, guest: Guest) -> None:
    """Give the server back as it was; raises where that cannot be had."""
    guest.sh(
        f"systemctl disable -q --now {UNIT}; umount {guest.mount}; "
        f"sed -i '\\|{guest.mount}|d' /etc/fstab; systemctl daemon-reload; "
        "systemctl reset-failed; true"
    )
    if guest.leftovers():
        raise LabError(
            f"a transfer left in {guest.name}: {guest.leftovers()}",
            "the next test would find it",
            "the server is deleted",
        )
    server = lab.find_server(guest.name)
    assert server
    for volume in lab.member.get("block-storage", "/volumes/detail")["volumes"]:
        if server["id"] in [one["server_id"] for one in volume["attachments"]]:
            lab.detach(guest.name, volume["id"])


def words(lab: Lab, guest: Guest, *more: str) -> tuple[str, ...]:
    # On a busy machine a guest's `systemctl daemon-reload` alone may take a minute and a half.
    return (
        guest.name, guest.volume_id, "--method", "rsync", "--unit", UNIT,
        "--ssh-config", str(lab.ssh_config),
        "--max-downtime", "600s", "--settle", "2s", "--cutover-timeout", "900s",
        "--attach-timeout", "600s", "--detach-timeout", "600s", *more,
    )  # fmt: skip


def snapshots(lab: Lab, guest: Guest) -> list[str]:
    """Those of the source that are there; other things may live in this project."""
    every = lab.member.get("block-storage", "/snapshots")["snapshots"]
    return [one["id"] for one in every if one["volume_id"] == guest.volume_id]


def marked(lab: Lab, transfer: str) -> list[str]:
    """The volumes that carry the mark of a transfer."""
    volumes = lab.member.get("block-storage", "/volumes/detail")["volumes"]
    return [v["id"] for v in volumes if v["metadata"].get("volferry:transfer") == transfer]


def tree(guest: Guest) -> str:
    return guest.sh(
        f"cd {guest.mount} && stat -c '%a %u %g' . && find tree | sort | xargs stat -c "
        "'%n %f %u %g %s %h %Y' && find tree ! -type l | sort | xargs getfacl && "
        "find tree -type f | sort | xargs getfattr -d -m- && "
        "find tree -type f | sort | xargs sha256sum"
    )
