"""Stands for the ``ssh`` program and the guest behind it, for tests that run the real command.

``stand_in_ssh.py FOLDER ARGUMENTS…``. What it was given (arguments, environment, requests) is
written to ``FOLDER/children.jsonl``; the guest is one whose facts were captured (tests/facts), and
what happens in it is a few files in FOLDER. ``FOLDER/hang`` names a verb of the agent, or a job,
that never ends.
"""

import json
import os
import shlex
import sys
import time
from pathlib import Path
from typing import Any

FACTS = Path(__file__).parent.parent / "facts" / "debian-12-xfs-fstab-bind.json"
UUID = "f282268d-7bfa-42ed-b7a0-73f5b689ac68"
GIB = 1024**3


class Guest:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.facts: dict[str, Any] = json.loads(FACTS.read_text())
        self.source = self.facts["volume_id"]

    def kept(self, name: str, default: Any = None) -> Any:
        path = self.folder / f"{name}.json"
        return json.loads(path.read_text()) if path.exists() else default

    def keep(self, name: str, value: Any) -> None:
        (self.folder / f"{name}.json").write_text(json.dumps(value))

    def hangs(self, what: str) -> bool:
        path = self.folder / "hang"
        return path.exists() and path.read_text().strip() == what

    def mountinfo(self) -> str:
        table: str = self.facts["mountinfo"]
        if self.kept("cutover"):
            table = table.replace(" 254:16 ", " 254:32 ").replace("/dev/vdb", "/dev/vdc")
        return table

    def answer(self, verb: str, request: Any) -> Any:
        if self.hangs(verb):
            time.sleep(60)
        if verb == "facts":
            return {**self.facts, "mountinfo": self.mountinfo()}
        if verb == "find":
            return {"disks": [self.disk(ref) for ref in request["refs"]]}
        if verb == "leftovers":
            return {"left": self.kept("leftovers", [])}
        if verb == "start":
            self.keep("job", request)
            return {"job_id": request["job_id"], "state": "running", "supervisor": "systemd"}
        if verb == "status":
            return self.status()
        if verb == "install":
            folder = f"/var/lib/volferry/{request['transfer']}"
            return {"state_dir": folder, "agent": f"{folder}/agent.py", "claim": "claims/x"}
        if verb == "uninstall":
            self.keep("leftovers", [])
            return {"removed": [], "left": self.kept("stays", [])}
        return {"written": [], "removed": [], "same": [], "skipped": [], "stopped": True}

    def disk(self, ref: Any) -> Any:
        plugged = [self.source, *self.kept("attached", [])]
        if ref["volume_id"] not in plugged:
            return {"volume_id": ref["volume_id"], "state": "absent"}
        name, dev = ("vdb", "254:16") if ref["volume_id"] == self.source else ("vdc", "254:32")
        return {
            "volume_id": ref["volume_id"], "state": "present", "path": f"/dev/{name}",
            "kname": name, "dev": dev, "size_bytes": ref["size_bytes"], "read_only": False,
            "serial": ref["volume_id"][:20], "links": [], "partitions": [],
        }  # fmt: skip

    def status(self) -> Any:
        job = self.kept("job")
        told = {"phase": "", "progress": None, "result": None, "error": None, "log_tail": []}
        if job is None:
            return {**told, "job": "", "job_id": "", "state": "none"}
        told |= {"job": job["job"], "job_id": job["job_id"]}
        if self.hangs(job["job"]):
            progress = {"what": "copying", "done_bytes": 1, "total_bytes": GIB, "elapsed_s": 1.0}
            return {**told, "state": "running", "progress": progress}
        if job["job"] == "cutover":
            self.keep("cutover", True)
        return {**told, "state": "ended", "result": self.result(job)}

    def result(self, job: Any) -> Any:
        one = {
            "number": 1, "started_at": time.time(), "copy_s": 0.1, "compare_s": 0.1,
            "files_total": 3, "files_copied": 3, "bytes_copied": 4096, "files_compared": 3,
            "bytes_compared": 4096, "watermark": time.time(), "clock_offset": 1.0, "boot_id": "b",
        }  # fmt: skip
        if job["job"] == "prepare":
            made = {"device": "/dev/vdc", "fstype": "xfs", "uuid": UUID, "partition": None}
            return {
                "filesystems": [made],
                "notes": [],
                "mount_s": 0.1,
                "publish_s": 0.1,
                "systemctl_s": 0.1,
            }
        if job["job"] == "pass":
            return {**one, "number": job["request"]["number"], "notes": []}
        outcome = {
            "result": "committed", "live": "target", "downtime_s": 1.5, "settled": True,
            "parts": {"stop": 0.5, "start": 1.0}, "final_pass": {**one, "number": 9, "final": True},
        }  # fmt: skip
        return {"outcome": outcome, "notes": [], "job_id": job["job_id"]}


def main() -> int:
    guest, words = Guest(Path(sys.argv[1])), sys.argv[2:]
    said = {"argv": words, "environ": dict(os.environ), "stdin": ""}
    code = 0
    if "-M" in words:
        record(guest.folder, said)
        Path(words[words.index("-S") + 1]).touch()
        sys.stdin.read()
        return 0
    command = shlex.split(words[-1])
    if command[:1] == ["id"]:
        print(0)
    elif command[:1] == ["cat"]:
        print(guest.mountinfo(), end="")
    elif "-c" in command and command[-1].startswith("import sys; print"):
        print("3.11")
    elif "-c" in command:
        raw = sys.stdin.buffer.read()
        head, _, rest = raw.partition(b"\n")
        rest = rest[int(head) :] if head.isdigit() else raw
        said["stdin"] = rest.decode()
        record(guest.folder, said)
        print(json.dumps({"ok": True, "result": guest.answer(command[-1], json.loads(rest))}))
        return 0
    record(guest.folder, said)
    return code


def record(folder: Path, said: Any) -> None:
    with (folder / "children.jsonl").open("a") as file:
        file.write(json.dumps(said) + "\n")


if __name__ == "__main__":
    sys.exit(main())
