"""``make soak``: transfer after transfer in the lab, under load and with faults at random.

Prints the transfers, the faults by kind, and what was lost; 0 is the only good number there. What
is drawn from ``--seed`` is which faults come and roughly when; the machine's own pace is not.

A service in the guest writes records to the volume all the time. Each counts as acknowledged once
it lies in a log on another disk, and both were forced to disk before; so whatever happens, the log
may never know more than the volume.
"""

import argparse
import contextlib
import random
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

from lab.api import Lab
from lab.errors import LabError
from tests.faults.cloud.proxy import FAULTS, Proxy
from tests.faults.lab.relay import Relay
from tests.faults.lab.scene import DIES_ON_THE_TARGET, PATIENT_S, Scene
from tests.lab.volferry_command import UNIT, clean
from volferry.model import State

SERVER = "soak"
TYPES = ("cbs-standard", "cbs-standard-iops", "cbs-premium")
LAYOUTS = (
    ("bare", "ext4"), ("bare", "xfs"), ("bare", "btrfs"), ("lvm", "xfs"), ("luks", "ext4"),
)  # fmt: skip
"""What lies on the disk, and the filesystem on that."""
# A request that is never answered is given up after a minute: too long to come at random.
OF_THE_CLOUD = [name for name, fault in FAULTS.items() if fault.what != "silence"]
OF_THE_REST = (
    "none", "controller killed", "guest reset", "guest rebooted", "ssh cut", "agent killed",
    "clock set", "service dies on the target", "rolled back", "target detached", "standby",
)  # fmt: skip
METHODS = ("rsync", "mirror")
ONE_IN = 25
"""So many requests to the cloud for each that meets a fault."""


class Soak:
    def __init__(self, lab: Lab, seed: int, folder: Path) -> None:
        self.lab, self.seed, self.folder = lab, seed, folder
        self.random = random.Random(seed)
        self.faults: Counter[str] = Counter()
        self.transfers = self.lost = self.wrong = 0

    def run(self, minutes: float) -> int:
        ends = time.monotonic() + minutes * 60
        self.lab.sweep(SERVER, "soak-*")
        self.lab.ensure_server(SERVER)
        with Proxy() as proxy:
            while time.monotonic() < ends:
                # Anew for each volume: a server that was made anew has another port.
                with Relay.to(self.lab, SERVER) as relay:
                    self.with_one_volume(proxy, relay, ends)
        self.faults.update(proxy.met)
        self.tell()
        self.lab.delete_server(SERVER)
        return 1 if self.lost or self.wrong else 0

    def with_one_volume(self, proxy: Proxy, relay: Relay, ends: float) -> None:
        """A few transfers of one volume there and back, with a filesystem of its own."""
        stack, fstype = self.random.choice(LAYOUTS)
        name = f"soak-{self.seed}-{self.transfers}"
        volume = self.lab.ensure_volume(name, 1, self.random.choice(TYPES))
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            scene = Scene(self.lab, SERVER, volume, relay, proxy, Path(folder))
            scene.put_in_use(fstype, stack)
            for _ in range(self.random.randint(2, 5)):
                if time.monotonic() >= ends:
                    break
                try:
                    self.one(scene, stack, fstype)
                except Exception:  # noqa: BLE001 - told with all there is, and the soak goes on
                    self.wrong += 1
                    with contextlib.suppress(Exception):  # the guest may not answer any more
                        self.lost += len(scene.lost())
                    said = scene.volferry.log.read_text() if scene.volferry.log.exists() else ""
                    say(f"{traceback.format_exc()}\n{said}")
                    break
                finally:
                    proxy.chance = lambda method, path: ""
                    relay.heal()
                    scene.volferry.end()
                    scene.next_transfer()
            self.clear_away(scene, stack)

    def one(self, scene: Scene, stack: str, fstype: str) -> None:
        fault, method = self.random.choice(OF_THE_REST), self.random.choice(METHODS)
        if stack != "bare":  # rsync moves bare filesystems only
            method = "mirror"
        if fault == "standby":  # the source of a stack is detached, and cannot be one
            fault, method = ("none", method) if stack != "bare" else (fault, "mirror")
        scene.method = method
        at_s = self.random.uniform(3, 50)
        more = ["--type", self.random.choice(TYPES)]
        if self.random.random() < 0.3:
            more += ["--seed", "blank"]
        if fault == "standby":
            more += ["--keep-standby"]
        drawn = f"{stack} {fstype}, {method}, {' '.join(more)}, {fault} at {at_s:.0f} s"
        say(f"transfer {self.transfers + 1}: {drawn}")
        scene.proxy.chance = self.of_the_cloud(random.Random(self.random.random()))
        source, began = scene.guest.volume_id, time.monotonic()
        running = scene.begin(*more)
        with contextlib.suppress(subprocess.TimeoutExpired):
            running.wait(at_s)
        rolled_back = self.strike(scene, running, fault)
        running.wait(PATIENT_S)
        for _ in range(5):  # it may never have come to its first step
            if scene.volferry.stands():
                break
            scene.begin(*more).wait(PATIENT_S)
        assert scene.volferry.stands(), "it was refused five times"
        if fault == "standby":
            rolled_back = self.end_of_a_standby(scene)
        elif not rolled_back:
            scene.resume_to_the_end(tries=6)
        scene.proxy.chance = lambda method, path: ""
        scene.until(scene.is_active, "the service is back")
        if rolled_back:
            transfer = scene.volferry.stands()
            assert transfer is not None
            scene.check_rolled_back(transfer.id)
        else:
            target = scene.check_done()
            scene.guest.volume_id = target
            self.lab.change_volume(source, "os-update_readonly_flag", readonly=False)
            self.lab.delete_volume(source)
        self.lost += len(scene.lost())
        self.transfers += 1
        say(f"  {'rolled back' if rolled_back else 'done'} in {time.monotonic() - began:.0f} s, "
            f"lost {self.lost}")  # fmt: skip

    def of_the_cloud(self, draw: random.Random):  # type: ignore[no-untyped-def]
        def chance(method: str, path: str) -> str:
            if draw.randrange(ONE_IN):
                return ""
            # Keystone's 401 is its word about the credentials, which a person has to mend.
            kinds = [one for one in OF_THE_CLOUD if "token" not in one or "/auth/" not in path]
            return draw.choice(kinds)

        return chance

    def strike(self, scene: Scene, running: "subprocess.Popen[bytes]", fault: str) -> bool:
        """Let the fault happen. Returns whether the transfer was rolled back."""
        if running.poll() is not None:
            return False  # it was faster
        if fault not in ("none", "standby", "target detached"):
            self.faults[fault] += 1
        if fault == "controller killed":
            running.kill()
        elif fault == "guest reset":
            scene.reset()
        elif fault == "guest rebooted":
            scene.reboot()
        elif fault == "clock set":
            scene.set_clock(self.random.choice(("-2 hours", "+1 day")))
        elif fault == "service dies on the target":
            with scene.unit_with(DIES_ON_THE_TARGET):
                running.wait(PATIENT_S)
            if "the guest stayed on the target" in scene.volferry.log.read_text():
                scene.guest.sh(f"systemctl restart {UNIT}")  # its source was detached before
            scene.until(scene.is_active, "the service is up again")
            scene.give_up(scene.volferry.log.read_text())
        elif fault == "ssh cut":
            scene.relay.cut(self.random.choice((1, 5, 30)))
        elif fault == "agent killed":
            # Only what runs now: the agent's own processes, by what the agent wrote down of them.
            scene.try_sh(
                "for f in /var/lib/volferry/*/worker.json; do python3 -c 'import json, os, sys; "
                'os.kill(json.load(open(sys.argv[1]))["pid"], 9)\' "$f"; done 2>/dev/null'
            )
        elif fault in ("rolled back", "target detached"):
            running.send_signal(signal.SIGINT)
            running.wait(600)
            transfer = scene.volferry.stands()
            if transfer is None or transfer.state is State.DONE:
                return False
            # Later the service may be on its way to it, by the guest alone.
            if fault == "target detached" and transfer.step in ("attach", "prepare", "sync"):
                for target in scene.of_transfer(transfer.id, "volumes"):
                    if self.lab.volume(target)["attachments"]:
                        self.lab.detach(SERVER, target)
                        self.faults[fault] += 1
            for _ in range(5):
                told = scene.volferry("rollback", transfer.id, code=None)
                if told.returncode == 3:  # it is past its cutover: going back would lose writes
                    return False
                if told.returncode == 0:
                    return True
        return False

    def end_of_a_standby(self, scene: Scene) -> bool:
        """Back, which loses nothing, or to its end. Returns whether it was rolled back."""
        transfer = scene.volferry.transfer()
        back = self.random.random() < 0.5
        for words in (("resume", transfer), ("rollback" if back else "finish", transfer)):
            ended = (scene.volferry(*words, code=None).returncode for _ in range(6))
            assert 0 in ended, f"{words[0]} failed six times"
        self.faults["standby gone back to" if back else "standby finished"] += 1
        return back

    def clear_away(self, scene: Scene, stack: str) -> None:
        """What stands in the way of the next volume; a server that is not clean is made anew."""
        clears = stack == "bare"  # what was put together on a disk is not taken apart
        if clears:
            try:
                clean(self.lab, scene.guest)
            except (subprocess.SubprocessError, LabError):
                clears = False
        if not clears:
            self.lab.delete_server(SERVER)
            self.lab.ensure_server(SERVER)
        self.lab.sweep(f"soak-{self.seed}-*")

    def tell(self) -> None:
        say(f"\ntransfers {self.transfers}   seed {self.seed}")
        for name, count in sorted(self.faults.items()):
            say(f"  {name:32}{count:5}")
        say(f"lost = {self.lost}" + (f"   WRONG = {self.wrong}, see above" if self.wrong else ""))


def say(text: str) -> None:
    print(text, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    asked = parser.parse_args()
    lab = Lab()
    with lab.held("soak"), tempfile.TemporaryDirectory(prefix="volferry-soak-") as folder:
        lab.up()
        lab.reset()
        return Soak(lab, asked.seed, Path(folder)).run(asked.minutes)


if __name__ == "__main__":
    sys.exit(main())
