"""``make demo``: move a PostgreSQL volume that is in use, reboot, and prove that nothing is lost.

Prints what ``volferry run`` prints and writes ``build/demo.json``. Exit code 0 only when every
claim held.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from lab.api import Lab

HERE = Path(__file__).parent
RESULT = Path("build/demo.json")
STATE = Path("build/demo-state")  # of its own: the user's journal may be another version's
SERVER, SOURCE = "testsrv", "sourcevol"
TARGET_TYPE = "cbs-premium"


def main() -> int:
    lab = Lab()
    with lab.held("make demo"):
        lab.up()
        return demonstrate(lab)


def demonstrate(lab: Lab) -> int:
    shutil.rmtree(STATE, ignore_errors=True)
    say("a fresh server and its volume")
    source = fresh_server(lab)
    script = (HERE / "guest_setup.sh").read_text()
    put(lab, "/usr/local/lib/bank.py", (HERE / "bank.py").read_text())
    unit = lab.ssh(SERVER, f"sh -s /dev/disk/by-id/virtio-{source[:20]} <<'END'\n{script}\nEND",
                   root=True).split()[-1]  # fmt: skip
    wait_for_load(lab, 20)
    before = fingerprint(lab)

    code = volferry(lab, "run", SERVER, SOURCE, "--type", TARGET_TYPE, "--unit", unit,
                    "--max-downtime", "5m", "--cutover-timeout", "15m",
                    "--settle", "10s", "--yes")  # fmt: skip
    report = json.loads(volferry_output(lab, "report", newest(lab), "-f", "json"))
    target = report["moves"][0]["target"]["id"]

    mounted = mounted_volume(lab, [source, target])
    wait_for_load(lab, 20)
    say("rebooting the server")
    lab.ssh(SERVER, "systemctl stop bank.service", root=True)
    reboot(lab)
    after_reboot = mounted_volume(lab, [source, target])
    lab.ssh(SERVER, f"systemctl start {unit}", root=True)
    bank = json.loads(
        lab.ssh(
            SERVER,
            "su postgres -c 'python3 /usr/local/lib/bank.py check /var/lib/bank/acknowledged'",
            root=True,
        )
    )
    shown = lab.volume(source)
    result = {
        "result": "failed",
        "downtime_s": report["cutover"]["downtime_s"],
        "verified": not report["not_verified"] and fingerprint(lab) == before,
        "acknowledged": bank["acknowledged"],
        "lost": bank["lost"],
        "source_status": shown["status"],
        "source_readonly": shown["metadata"].get("readonly", "False"),
        "mounted_volume_id": mounted,
        "target_volume_id": target,
        "mounted_after_reboot": after_reboot,
    }
    left = leftovers(lab)
    held = (
        code == 0
        and result["verified"]
        and bank["lost"] == 0
        and bank["acknowledged"] > 0
        and (result["source_status"], result["source_readonly"]) == ("available", "True")
        and mounted == after_reboot == target
        and not left
    )
    result["result"] = "ok" if held else "failed"
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    if left:
        say(f"left in the guest: {left}")
    print(RESULT.read_text(), end="")
    return 0 if held else 1


def say(text: str) -> None:
    print(f"demo: {text}", file=sys.stderr, flush=True)


def fresh_server(lab: Lab) -> str:
    """``testsrv`` with an empty ``sourcevol`` of 2 GiB; those of an earlier demo are removed."""
    lab.reset()
    lab.sweep(SERVER, SOURCE)
    lab.ensure_server(SERVER, image="debian-12", flavor="m1.medium")
    source = lab.ensure_volume(SOURCE, size_gib=2, volume_type="cbs-standard")
    lab.attach(SERVER, source)
    return source


def put(lab: Lab, path: str, text: str) -> None:
    lab.ssh(SERVER, f"cat > {path} <<'END'\n{text}\nEND", root=True)


def wait_for_load(lab: Lab, commits: int) -> None:
    """Until that many more transactions were acknowledged."""
    count = "wc -l < /var/lib/bank/acknowledged 2>/dev/null || echo 0"
    wanted = int(lab.ssh(SERVER, count, root=True)) + commits
    ends = time.monotonic() + 600
    while int(lab.ssh(SERVER, count, root=True)) < wanted:
        if time.monotonic() > ends:
            raise SystemExit("the load does not commit: see journalctl -u bank.service in testsrv")
        time.sleep(1)


def fingerprint(lab: Lab) -> str:
    script = (HERE / "fingerprint.sh").read_text()
    return lab.ssh(SERVER, f"sh -s <<'END' | sha256sum\n{script}\nEND", root=True)


def environment(lab: Lab) -> dict[str, str]:
    return {
        **os.environ,
        "OS_CLIENT_CONFIG_FILE": str(lab.clouds_yaml),
        "OS_CLOUD": "volferry-lab",
        "VOLFERRY_STATE": str(STATE.absolute()),
    }


def command(lab: Lab, verb: str, *words: str) -> list[str]:
    access = ["--ssh-config", str(lab.ssh_config)] if verb in ("plan", "run") else []
    return [sys.executable, "-m", "volferry", verb, *words, *access]


def volferry(lab: Lab, verb: str, *words: str) -> int:
    """Run a command of volferry for everybody to see."""
    argv = command(lab, verb, *words)
    say("volferry " + " ".join(argv[3:]))
    return subprocess.run(argv, env=environment(lab), check=False).returncode


def volferry_output(lab: Lab, verb: str, *words: str) -> str:
    argv = command(lab, verb, *words)
    done = subprocess.run(argv, env=environment(lab), stdout=subprocess.PIPE, check=True, text=True)
    return done.stdout


def newest(lab: Lab) -> str:
    transfers: list[dict[str, Any]] = json.loads(volferry_output(lab, "list", "-f", "json"))
    return str(max(transfers, key=lambda one: str(one["created_at"]))["id"])


def mounted_volume(lab: Lab, volumes: list[str]) -> str:
    """The id of the volume that is mounted on /srv/data, by the serial of its disk."""
    script = 'd=$(findmnt -nro SOURCE /srv/data) && cat "/sys/class/block/${d#/dev/}/serial"'
    serial = lab.ssh(SERVER, script, root=True).strip()
    return next((one for one in volumes if serial and one.startswith(serial)), "")


def reboot(lab: Lab) -> None:
    boot = lab.ssh(SERVER, "cat /proc/sys/kernel/random/boot_id")
    lab.run(SERVER, "systemctl reboot", root=True)
    ends = time.monotonic() + 600
    while True:
        lab.wait_for_ssh(SERVER)
        tried = lab.run(SERVER, "cat /proc/sys/kernel/random/boot_id")
        if tried.returncode == 0 and tried.stdout != boot:
            break
        if time.monotonic() > ends:
            raise SystemExit("the server did not reboot within 600 s")
        time.sleep(2)
    lab.ssh(SERVER, "systemctl is-system-running --wait || true", root=True)


def leftovers(lab: Lab) -> str:
    """What of ours is left in the guest, one path a line."""
    return lab.ssh(
        SERVER,
        "find / -xdev -iname '*volferry*' -not -path '/proc/*' 2>/dev/null; "
        "systemctl list-units --all --no-legend '*volferry*'",
        root=True,
    ).strip()


if __name__ == "__main__":
    sys.exit(main())
