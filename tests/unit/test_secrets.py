"""No secret anywhere: real processes, planted secrets, and a look at everything they leave."""

import gzip
import json
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from command_world import SERVER, SOURCE, Command

from tests.fakes.http_cloud import Reply

PASSWORD = "a-password-like-no-other"
SECRET = "app-credential-secret-8c1f"
TOKEN = "gAAAAABplanted-token-"
EARLIER = "gAAAAABan-earlier-token-of-the-user"

WAYS = {
    "password": ({}, (PASSWORD,)),
    "application credential": (
        {
            "OS_AUTH_TYPE": "v3applicationcredential",
            "OS_APPLICATION_CREDENTIAL_ID": "the-id",
            "OS_APPLICATION_CREDENTIAL_SECRET": SECRET,
        },
        (SECRET,),
    ),
    "token": ({"OS_AUTH_TYPE": "v3token", "OS_TOKEN": EARLIER}, (EARLIER,)),
}
OTHERS = {
    "VOLFERRY_UNUSED_TOKEN": "another-planted-value",
    "PGPASSWORD": "planted-for-postgres",
    "MYSQL_PWD": "planted-for-mysql",
    "AWS_SECRET_ACCESS_KEY": "/planted/key+that-looks-like-a-path",
    "HTTPS_PROXY": "http://someone:planted-for-a-proxy@127.0.0.1:9",
    "DATABASE_URL": "postgresql://someone:planted-in-a-url@db.example/volferry",
    "DSN": "host=db.example user=someone password=planted-in-words",
    "CI_JOB": "eyJhbGciOiJIUzI1NiJ9.planted.signature",
}
"""In the environment of whoever calls volferry. Each says that it is planted, as ``TOKEN`` does."""
_OF_PASSWORD = ("OS_USERNAME", "OS_PASSWORD", "OS_USER_DOMAIN_ID")
_SCOPE = ("OS_PROJECT_NAME", "OS_PROJECT_DOMAIN_ID")


@pytest.fixture
def command_with(tmp_path: Path) -> Iterator[Callable[[str], Command]]:
    """The command, authenticating in one of ``WAYS``."""
    made: list[Command] = []

    def make(way: str) -> Command:
        more, secrets = WAYS[way]
        command = Command(tmp_path, **more)
        if more:
            drop = (*_OF_PASSWORD, *(_SCOPE if way.startswith("app") else ()))
            command.variables = {k: v for k, v in command.variables.items() if k not in drop}
        command.variables.update(OTHERS)
        command.cloud.secrets, command.cloud.token_prefix = secrets, TOKEN
        made.append(command)
        return command

    yield make
    for one in made:
        one.close()


def everything(command: Command) -> Iterator[tuple[str, bytes]]:
    """All that was printed, written, and given to children."""
    for path in command.folder.rglob("*"):
        if path.is_file():
            raw = path.read_bytes()
            yield str(path.relative_to(command.folder)), raw
            if path.name.endswith(".tar.gz"):
                yield f"{path.name} unpacked", gzip.decompress(raw)


def leaks(command: Command, *secrets: str) -> list[str]:
    return [
        f"{name}: {secret}"
        for name, content in everything(command)
        for secret in (*secrets, "planted")
        if secret.encode() in content or secret.encode("utf-16-le") in content
    ]


@pytest.mark.parametrize("way", WAYS)
def test_no_secret_is_in_what_a_whole_transfer_leaves(
    way: str, command_with: Callable[[str], Command]
) -> None:
    command = command_with(way)
    command.run("-v", "--log-format", "json", "--debug")
    id = command.transfer()
    command("support-bundle", id)
    seen = [child["argv"] for child in command.children()]
    assert any("-M" in argv for argv in seen) and len(seen) > 20
    assert not any(name.startswith("OS_") for c in command.children() for name in c["environ"])
    assert leaks(command, *WAYS[way][1]) == []


def test_no_secret_is_in_what_the_other_verbs_say_and_all_files_are_the_owners(
    command_with: Callable[[str], Command],
) -> None:
    command = command_with("password")
    command("plan", SERVER, SOURCE, "--ssh", "root@web-03", "--units", "auto", "--save", "p.yaml")
    command.run()
    id = command.transfer()
    command("support-bundle", id, "--output", str(command.state / "bundle.tar.gz"))
    command("report", id, "--html", str(command.state / "r.html"))
    for words in (("logs", id, "-f", "json"), ("report", id, "-f", "json"), ("gc", "-f", "json")):
        command(*words)
    assert leaks(command, PASSWORD) == []
    for path in (command.state, *command.state.rglob("*")):
        kind = 0o700 if path.is_dir() else 0o600
        assert stat.S_IMODE(path.lstat().st_mode) == kind, path


def test_no_secret_is_in_what_failures_say(command_with: Callable[[str], Command]) -> None:
    command = command_with("application credential")
    quoting = {"badRequest": {"code": 400, "message": f"bad: {SECRET} {TOKEN}1"}}
    answer = command.cloud.reply

    def quotes(method: str, path: str, body: object) -> Reply:
        return Reply(400, quoting) if method == "POST" else answer(method, path, body)

    command.cloud.reply = quotes  # type: ignore[method-assign]
    said = command.run("--debug", code=1)
    assert "bad: (removed)" in said.stderr and "Traceback" in said.stderr
    id = command.transfer()
    command("rollback", id)
    command("support-bundle", id)
    command.cloud.secrets = ("something else",)  # what is in use is refused from now on
    refused = command("plan", SERVER, SOURCE, "--debug", code=2)
    assert "refused the credentials" in refused.stderr and "Unauthorized" in refused.stderr
    assert leaks(command, SECRET) == []


def test_what_ssh_and_a_proxy_command_need_reaches_them(
    command_with: Callable[[str], Command], tmp_path: Path
) -> None:
    (tmp_path / "key.json").touch()
    needed = {
        "SSH_AUTH_SOCK": "/tmp/ssh-x/agent.1",
        "SSH_ASKPASS": "/usr/bin/ssh-askpass",
        "KRB5CCNAME": "FILE:/tmp/krb5cc_0",
        "LC_TIME": "C",
        "HOST_OF_THE_PROXY_COMMAND": "bastion",
        "GOOGLE_APPLICATION_CREDENTIALS": str(tmp_path / "key.json"),
    }
    command = command_with("password")
    command.variables.update(needed)
    command("plan", SERVER, SOURCE, "--ssh", "root@web-03", "--units", "auto")
    for child in command.children():
        assert needed.items() <= child["environ"].items()
        assert {"PATH", "HOME"} <= child["environ"].keys()


def test_the_look_would_find_a_leak(command_with: Callable[[str], Command]) -> None:
    command = command_with("password")
    (command.folder / "leak.json").write_text(json.dumps({"x": f"({PASSWORD})"}))
    assert leaks(command, PASSWORD) == [f"leak.json: {PASSWORD}"]
