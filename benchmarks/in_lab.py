"""In a guest of the lab: the how-to by hand against volferry, same data, same load, one run.

Under software emulation the seconds are long and noisy: quote the ratio.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from lab.api import Lab

HERE = Path(__file__).parent
SERVER, MOUNT, UNIT, SIZE_GIB = "benchsrv", "/srv/data", "load.service", 1


def main() -> dict[str, Any]:
    lab = Lab()
    with lab.held("make bench"):
        lab.up()
        return measure(lab)


def measure(lab: Lab) -> dict[str, Any]:
    source = prepare(lab)
    by_hand_s, between = by_hand(lab, source)
    rsync = volferry(lab, between, "rsync")
    mirror = volferry(lab, rsync["target"], "mirror")
    sweep(lab)
    return {
        "lab_by_hand_s": by_hand_s,
        "lab_rsync_s": rsync["downtime_s"],
        "lab_mirror_s": mirror["downtime_s"],
        "lab_mirror_predicted_s": mirror["predicted_s"],
        "lab_mirror_parts": mirror["parts"],
        "lab_by_hand_over_rsync": round(by_hand_s / rsync["downtime_s"], 2),
        "lab_by_hand_over_mirror": round(by_hand_s / mirror["downtime_s"], 2),
        "controller_mib": max(rsync["controller_mib"], mirror["controller_mib"]),
        "api_calls": mirror["api_calls"],
    }


def say(text: str) -> None:
    print(f"bench: {text}", file=sys.stderr, flush=True)


def script(lab: Lab, name: str, *words: str) -> str:
    text = (HERE / name).read_text()
    given = " ".join(words)
    return lab.ssh(
        SERVER, f"sh -s {given} <<'SCRIPT'\n{text}\nSCRIPT", root=True, timeout_s=900
    ).strip()


def device(volume_id: str) -> str:
    return f"/dev/disk/by-id/virtio-{volume_id[:20]}"


def prepare(lab: Lab) -> str:
    say("a fresh server, a volume and its load")
    sweep(lab)
    lab.ensure_server(SERVER, flavor="m1.medium")
    source = lab.ensure_volume("benchvol", SIZE_GIB)
    lab.attach(SERVER, source)
    script(lab, "load.sh", device(source), MOUNT, UNIT)
    return source


def by_hand(lab: Lab, source: str) -> tuple[float, str]:
    """Seconds of downtime, and the volume that is in use afterwards."""
    say("the how-to, by hand")
    snapshot = lab.create_snapshot(source)
    target = lab.ensure_volume("benchvol-hand", SIZE_GIB, snapshot_id=snapshot)
    lab.attach(SERVER, target)
    seconds = float(script(lab, "by_hand.sh", device(target), MOUNT, UNIT).split()[-1])
    lab.delete_snapshot(snapshot)
    # What the how-to leaves out, so that volferry finds a server as it should be.
    lab.ssh(
        SERVER,
        f"sed -i '\\|{MOUNT}|d' /etc/fstab; echo UUID=$(blkid -s UUID -o value {device(target)}) "
        f"{MOUNT} xfs defaults,nofail 0 0 >> /etc/fstab; systemctl daemon-reload",
        root=True,
    )
    lab.detach(SERVER, source)
    if not lab.ssh(SERVER, f"findmnt -nro TARGET {MOUNT} || true", root=True).strip():
        say("systemd unmounted the new volume when the old one was detached; mounted again")
        lab.ssh(SERVER, f"mount {MOUNT}; systemctl restart {UNIT}", root=True)
    return seconds, target


def volferry(lab: Lab, source: str, method: str) -> dict[str, Any]:
    say(f"volferry, method {method}")
    with tempfile.TemporaryDirectory() as state:
        command = [sys.executable, "-m", "volferry", "--state", state]
        environment = {
            **os.environ,
            "OS_CLIENT_CONFIG_FILE": str(lab.clouds_yaml),
            "OS_CLOUD": "volferry-lab",
        }
        run = ["run", SERVER, source, "--type", "cbs-standard", "--method", method,
               "--unit", UNIT, "--yes",
               "--ssh-config", str(lab.ssh_config), "--max-downtime", "120s", "--settle", "5s",
               "--cutover-timeout", "300s"]  # fmt: skip
        subprocess.run([*command, *run], env=environment, check=True)
        # The largest of all children so far: ssh and the like are far smaller.
        peak_kib = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss

        def asked(*words: str) -> Any:
            argv = [*command, *words, "-f", "json"]
            return json.loads(subprocess.check_output(argv, env=environment))

        report = asked("report", asked("list")[0]["id"])
    return {
        "target": report["moves"][0]["target"]["id"],
        "downtime_s": report["cutover"]["downtime_s"],
        "parts": report["cutover"]["parts"],
        "predicted_s": report["predicted"]["total_s"],
        "passes": len(report["passes"]),
        "controller_mib": round(peak_kib / 1024),
        "api_calls": report["api_calls"],
    }


def sweep(lab: Lab) -> None:
    lab.reset()
    lab.sweep(SERVER, "benchvol*")
