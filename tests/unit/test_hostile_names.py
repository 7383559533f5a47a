"""Names that want to be more than names. Whatever goes through a shell, a file of systemd, udev or
fstab, or an argument list comes out as it went in."""

import asyncio
import os
import re
import subprocess
from pathlib import Path

import cli_world as world
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from volferry import operations
from volferry.channels import quote, run_here
from volferry.channels.local import Local
from volferry.channels.ssh import Ssh
from volferry.errors import Refused
from volferry.guests import fstab, quarantine
from volferry.guests.linux import LinuxGuest
from volferry.guests.mounts import escape, parse, unescape
from volferry.model import Check, Result
from volferry.report.words import plain
from volferry.store import new_id

HOSTILE = [
    "", " ", "a b", "a  b ", "$(touch pwned)", "`touch pwned`", "${HOME}", "'", '"', "'\"'", "\\",
    "\\'", "-n", "--help", "-oProxyCommand=x", "\n", "a\nb", "\t", "*", "?", "[a]", "~", "~root",
    "#", "a;touch pwned", "a&&touch pwned", "|touch pwned", ">pwned", "!!", "a=b", "%s", "{a,b}",
    "ü", "\u202e", "\x1b[2J", "\x7f", os.fsdecode(b"\xff\xfe"), os.fsdecode(b"caf\xe9 $(x)"),
]  # fmt: skip

names = st.text(
    st.characters(blacklist_characters="\0", blacklist_categories=("Cs",)), max_size=20
) | st.binary(max_size=20).map(lambda b: os.fsdecode(b.replace(b"\0", b"")))


@pytest.mark.parametrize("shell", ["sh", "bash"])
async def test_what_is_quoted_arrives_byte_for_byte_and_runs_nothing(
    shell: str, tmp_path: Path
) -> None:
    line = "cd " + quote([str(tmp_path)]) + "; " + quote(["printf", "%s\\0", *HOSTILE])
    done = await run_here([shell, "-c", line], timeout_s=30)
    assert done.out.split(b"\0")[:-1] == [os.fsencode(name) for name in HOSTILE]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", [name for name in HOSTILE if "\n" not in name])
def test_a_command_to_paste_names_what_was_named(name: str, tmp_path: Path) -> None:
    plan = world.plan()
    wanted = plan.wanted.model_copy(update={"server": name, "volumes": ("data", name)})
    check = Check(name="server", result=Result.REFUSAL, found="it is off")
    with pytest.raises(Refused) as said:
        operations.refuse(plan.model_copy(update={"wanted": wanted, "checks": (check,)}))
    words = subprocess.run(
        ["sh", "-c", os.fsencode(f"set -- {said.value.hint}; printf '%s\\0' \"$@\"")],
        capture_output=True, check=True, cwd=tmp_path,
    ).stdout.split(b"\0")  # fmt: skip
    asked = [os.fsencode(word) for word in (name, "data", name)]
    assert words[:-1] == [b"volferry", b"plan", b"--", *asked]


@settings(deadline=None, max_examples=30)  # a process each
@given(st.lists(names, min_size=1, max_size=5))
def test_any_words_survive_a_shell(words: list[str]) -> None:
    line = quote(["printf", "%s\\0", *words])
    said = subprocess.run(["sh", "-c", os.fsencode(line)], capture_output=True, check=True).stdout
    assert said.split(b"\0")[:-1] == [os.fsencode(word) for word in words]


def test_there_is_one_quoting_function_and_one_place_with_a_shell() -> None:
    root = Path(quote.__code__.co_filename).parent.parent
    shells, quotes = [], []
    for path in root.rglob("*.py"):
        text = path.read_text()
        name = path.relative_to(root).as_posix()
        if re.search(r"shell=True|create_subprocess_shell|os\.system|os\.popen|/bin/sh", text):
            shells.append(name)
        if re.search(r"\bshlex\b|pipes\.quote", text):
            quotes.append(name)
    assert shells == ["agent/services.py"]  # in the guest, for the user's own --stop and --start
    assert quotes == ["channels/__init__.py"]


@pytest.mark.parametrize("name", HOSTILE)
def test_an_ssh_command_is_one_word_and_a_destination_no_option(name: str) -> None:
    ssh = Ssh("root@h")
    argv = ssh._command(["cat", name])
    assert argv[-3:-1] == ["--", "root@h"]
    back = subprocess.run(
        ["sh", "-c", os.fsencode(f"set -- {argv[-1]}; printf '%s\\0' \"$@\"")],
        capture_output=True, check=True,
    ).stdout  # fmt: skip
    assert back.split(b"\0")[:-1] == [b"cat", os.fsencode(name)]


@given(names)
def test_a_mount_point_survives_fstab_and_the_mount_table(name: str) -> None:
    target = "/" + name.strip("/")
    assert unescape(escape(target)) == target
    line = f"UUID=1 {escape(target)} xfs defaults 0 0\n"
    assert line.count("\n") == 1
    table = f"1 1 8:0 / {escape(target)} rw - xfs /dev/vdb rw\n"
    [entry] = parse(table)
    assert entry.target == target
    [found] = fstab.parse(line)
    assert found.target == (target.rstrip("/") or "/")


@given(names, names)
def test_a_changed_fstab_differs_in_one_field_of_one_line(label: str, target: str) -> None:
    lines = ["# mine\n", f"LABEL={escape(label or 'x')} {escape('/' + target)} ext4 a 0 2\n", "\n"]
    changed = fstab.with_spec("".join(lines), 2, "UUID=a b#\n")
    assert changed.startswith("# mine\n") and changed.endswith("\n\n")
    assert changed.count("\n") == "".join(lines).count("\n")
    assert "UUID=a\\040b\\043\\012" in changed


@pytest.mark.parametrize("name", HOSTILE)
def test_a_transfer_id_is_safe_as_a_file_a_unit_and_a_rule(name: str) -> None:
    id = new_id(name)
    assert re.fullmatch(r"tr-[a-z0-9][a-z0-9-]*", id)
    assert quarantine.path(id) == f"/etc/udev/rules.d/10-volferry-{id}.rules"


@pytest.mark.parametrize("name", [*HOSTILE, 'x", RUN+="/bin/sh'])
def test_a_udev_rule_is_not_made_of_what_is_no_volume_id(name: str) -> None:
    with pytest.raises(ValueError, match="is not a volume's id"):
        quarantine.rule([name], "tr-web-03-abcd")


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_shown_to_people_has_no_control_characters(name: str) -> None:
    assert not re.search(r"[\x00-\x1f\x7f-\x9f\u202a-\u202e]", plain(name))


def test_host_keys_are_checked_whatever_the_users_configuration_says(tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.write_text(
        "Host *\n  StrictHostKeyChecking no\n  NoHostAuthenticationForLocalhost yes\n"
        "  BatchMode no\n  ForwardAgent yes\n  ControlMaster auto\n  ControlPersist yes\n"
    )
    argv = Ssh("web-03", str(config))._command(["true"])
    effective = asyncio.run(run_here([argv[0], "-G", *argv[1:]], timeout_s=30)).text.splitlines()
    # ssh's own word for it: 'true' is what 'yes' becomes.
    assert "stricthostkeychecking true" in effective
    assert "nohostauthenticationforlocalhost no" in effective
    assert "batchmode yes" in effective and "forwardagent no" in effective
    assert "controlpersist no" in effective


async def test_no_module_of_the_folder_that_it_is_run_in_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = tmp_path / "taken"
    for module in ("json", "ctypes", "subprocess", "socket"):
        (tmp_path / f"{module}.py").write_text(f"open({str(taken)!r}, 'w')\nraise SystemExit(3)\n")
    monkeypatch.chdir(tmp_path)
    facts = await LinuxGuest(Local()).ask_facts([], [], 0.0)
    assert facts["sysblock"]
    assert not taken.exists()
