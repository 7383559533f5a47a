"""The lists of what volferry needs, held against what it does: no call too many, none too few."""

import inspect
import json
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from command_world import SERVER, SNAPSHOT, SOURCE, TARGET, TinyCloud

from tests.fakes.http_cloud import clouds_yaml, password
from volferry.channels import Channel, Completed
from volferry.cloud import Cloud, CloudVerbs
from volferry.guests.linux import LinuxGuest
from volferry.model import DiskRef

DOCS = Path(__file__).parent.parent.parent / "docs"
RULES: list[dict[str, str]] = json.loads((DOCS / "access-rules.json").read_text())
SERVICES = {"compute": "compute", "volume": "volumev3"}
DISCOVERY = ("/**v2.1", "/**v2.1/", "/**v3", "/**v3/")


def permits(rule: dict[str, str], service: str, method: str, path: str) -> bool:
    """As keystonemiddleware's auth_token does it (_path_matches)."""
    pattern = ""
    for token in re.findall(r"{[^}]*}|\*\*|\*|[^{}*]", rule["path"]):
        pattern += {"**": ".*", "*": r"[^\/]+"}.get(token, r"[^\/]+" if token[0] == "{" else token)
    same = rule["service"] == service and rule["method"] == method
    return same and bool(re.match(f"^{pattern}$", path))


async def use_everything(cloud: Cloud, api: TinyCloud) -> set[str]:
    """Every verb there is, each at least once; their names."""
    asked: set[str] = set()

    def verb(name: str) -> Any:
        asked.add(name)
        return getattr(cloud, name)

    await verb("facts")("web-03", ["data"])
    await cloud.facts(SERVER, [SOURCE])
    await verb("server")(SERVER)
    await verb("servers")()
    await verb("server_if_any")(SERVER)
    await verb("volume_if_any")(SOURCE)
    await verb("server_volumes")(SERVER)
    await verb("volumes")()
    await verb("snapshots")()
    await verb("find_volume")("tr-1")
    await verb("find_snapshot")("tr-1")
    await verb("create_snapshot")(SOURCE, "s", "tr-1")
    await verb("snapshot")(SNAPSHOT)
    await verb("wait_snapshot")(SNAPSHOT, deadline_s=5)
    await verb("create_volume")("t", size_gib=1, type="fast", mark="tr-1", source_id=SOURCE)
    await verb("wait_volume")(TARGET, deadline_s=5)
    await verb("volume")(TARGET)
    await verb("retype")(TARGET, "faster")
    await verb("wait_retyped")(TARGET, "faster", deadline_s=5)
    await verb("attach")(SERVER, TARGET)
    await verb("wait_attached")(SERVER, TARGET, deadline_s=5)
    await verb("detach")(SERVER, TARGET)
    await verb("wait_detached")(SERVER, TARGET, deadline_s=5)
    await verb("update_volume")(TARGET, name="n", metadata={"a": "b"})
    await verb("set_read_only")(TARGET, True)
    api.volumes[TARGET]["metadata"] = {"volferry:transfer": "tr-1"}
    await verb("delete_volume")(TARGET, "tr-1")
    await verb("wait_deleted")("volume", TARGET, deadline_s=5)
    await verb("delete_snapshot")(SNAPSHOT, "tr-1")
    await cloud._reason(SOURCE)
    await cloud._server_reason(SERVER, "attach_volume")
    await verb("close")()
    return asked


async def test_the_access_rules_permit_every_call_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [n for n in os.environ if n.startswith("OS_") or "proxy" in n.lower()]:
        monkeypatch.delenv(name)
    api = TinyCloud(tmp_path)
    api.secrets = ("correct horse battery staple",)
    try:
        file = clouds_yaml(tmp_path, here=password(api.url))
        cloud = await Cloud.connect("here", config_file=file)
        asked = await use_everything(cloud, api)
    finally:
        api.close()
    verbs = {n for n, v in vars(CloudVerbs).items() if inspect.iscoroutinefunction(v)}
    assert asked == verbs
    calls = {(SERVICES[s.path.split("/")[1]], s.method, s.path) for s in api.sent}
    refused = [call for call in calls if not any(permits(rule, *call) for rule in RULES)]
    assert refused == []
    needed = [r for r in RULES if r["path"] not in DISCOVERY]
    idle = [rule for rule in needed if not any(permits(rule, *call) for call in calls)]
    assert idle == []


def test_the_access_rules_have_keystones_form() -> None:
    assert len({json.dumps(rule) for rule in RULES}) == len(RULES)
    for rule in RULES:
        assert set(rule) == {"service", "method", "path"}
        assert rule["path"].startswith("/") and len(rule["path"]) <= 128
    for path in ("/v3/p1/volumes/v/../../x", "/v3/p1/volumes", "/v3/p1/volumes/v/encryption"):
        assert not any(permits(rule, "volumev3", "GET", path) for rule in RULES)
    assert not any(permits(r, "compute", "POST", "/v2.1/servers/s/action") for r in RULES)


# ---- the account in the guest --------------------------------------------------------------------


class Written(Channel):
    """A guest that says no; what it was to run as root is kept."""

    where = "nowhere"

    def __init__(self) -> None:
        self.asked: list[list[str]] = []

    async def open(self) -> None: ...
    async def close(self) -> None: ...

    def _command(self, argv: Sequence[str]) -> list[str]:
        raise AssertionError(argv)

    async def run(
        self, argv: Sequence[str], *, stdin: bytes = b"", timeout_s: float, root: bool = False
    ) -> Completed:
        if root:
            self.asked.append(list(argv))
        if "volferry-agent" in " ".join(argv) or "__import__" in " ".join(argv):
            return Completed(0, b'{"ok": true, "result": {"left": [], "disks": []}}', b"", 0.0)
        return Completed(0, b"3.11", b"", 0.0)


def sudoers() -> list[str]:
    """The commands of docs/sudoers, as patterns of sudoers(5)."""
    text = (DOCS / "sudoers").read_text().replace("\\\n", " ")
    alias = re.search(r"^Cmnd_Alias VOLFERRY = (.*)$", text, re.M)
    assert alias
    return [" ".join(one.split()) for one in alias[1].split(", ")]


def allowed(argv: Sequence[str], pattern: str) -> bool:
    program, *words = pattern.split(" ")
    if program.rpartition("/")[2] != argv[0].rpartition("/")[2]:
        return False
    if words == ['""']:
        return len(argv) == 1
    fixed = words[: words.index("*")] if "*" in words else words
    return list(argv[1 : 1 + len(fixed)]) == fixed and ("*" in words or len(argv) == 1 + len(fixed))


async def test_sudo_is_asked_for_nothing_but_what_the_sudoers_file_allows() -> None:
    channel = Written()
    ref = DiskRef(volume_id="v-1", size_bytes=1)
    for guest in (LinuxGuest(channel), LinuxGuest(channel, "tr-1")):
        await guest.probe()
        await guest.leftovers()
    await LinuxGuest(channel, "tr-1").install([ref])
    await LinuxGuest(channel, "tr-1").uninstall()
    assert channel.asked
    patterns = sudoers()
    for argv in channel.asked:
        assert any(allowed(argv, pattern) for pattern in patterns), argv
    idle = [p for p in patterns if not any(allowed(argv, p) for argv in channel.asked)]
    assert idle == []


def test_sudo_itself_reads_the_file() -> None:
    program = shutil.which("visudo", path="/usr/sbin:/usr/bin:/sbin:/bin")
    if program is None:
        pytest.skip("sudo is not installed here")
    subprocess.run([program, "-cf", str(DOCS / "sudoers")], check=True, capture_output=True)
