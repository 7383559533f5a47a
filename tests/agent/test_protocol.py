"""What the controller sends and what it hears, whatever happens on the other side."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from agent_rig import AGENT, Guest, Told


def speak(*argv: str, stdin: bytes = b"") -> list[str]:
    done = subprocess.run(
        [sys.executable, *argv], input=stdin, capture_output=True, check=False, timeout=60
    )
    assert done.returncode == 0
    assert done.stderr == b""
    return done.stdout.decode().splitlines()


def test_the_program_may_come_over_stdin_with_its_request_as_an_argument() -> None:
    lines = speak("-", "find", '{"refs": []}', stdin=AGENT.read_bytes())
    assert json.loads(lines[-1]) == {"ok": True, "result": {"disks": []}}


def test_an_unknown_verb_is_a_usage_error_in_the_same_form() -> None:
    answer = json.loads(speak(str(AGENT), "dance", stdin=b"{}")[-1])
    assert answer["ok"] is False
    assert answer["error"]["kind"] == "usage"
    assert set(answer["error"]) == {"kind", "what", "data", "hint"}


@pytest.mark.parametrize("request_text", [b"", b"{", b"[]", b"nonsense", b'"x"', b"\xff\xfe"])
def test_a_request_that_is_no_object_is_a_usage_error(request_text: bytes) -> None:
    answer = json.loads(speak(str(AGENT), "find", stdin=request_text)[-1])
    assert answer["error"]["kind"] == "usage"


def test_what_a_request_lacks_is_named() -> None:
    answer = json.loads(speak(str(AGENT), "find", stdin=b"{}")[-1])
    assert answer["error"]["kind"] == "usage"
    assert "'refs'" in answer["error"]["what"]


@pytest.mark.parametrize(
    "name", ["../x", "a/b", "", ".", "..", "claims", "a b", "-x", "x\n", "x" * 200]
)
def test_a_transfer_id_cannot_lead_out_of_our_directory(guest: Guest, name: str) -> None:
    guest.transfer = name
    with pytest.raises(Told, match=r"transfer id") as told:
        guest.call("status")
    assert told.value.kind == "usage"


def test_a_message_is_one_line(guest: Guest) -> None:
    with pytest.raises(Told) as told:
        guest.call(
            "find", refs=[{"volume_id": "no\nsuch\nvolume", "path": "/x\ny", "size_bytes": "x"}, 1]
        )
    assert "\n" not in told.value.what


def test_facts_change_nothing_and_need_nothing_installed(guest: Guest, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    facts = guest.call("facts", refs=[{"volume_id": "00000000-nowhere", "size_bytes": 1}], walk_s=1)
    assert sorted(tmp_path.rglob("*")) == before
    assert facts["uid"] == 0
    assert facts["boot_id"] and facts["mountinfo"] and facts["uname"]["release"]
    assert facts["tools"]["mount"]["path"].startswith("/")
    assert facts["holders_complete"] is True
    assert any("no disk answers" in problem for problem in facts["problems"])
    assert abs(facts["clock"]["wall"] - facts["clock"]["monotonic"] - facts["clock"]["offset"]) < 1


def test_a_tool_that_hangs_does_not_hang_the_facts(guest: Guest, stand_in: object) -> None:
    assert callable(stand_in)
    guest.path = stand_in("rsync", "#!/bin/sh\nexec sleep 600\n")
    facts = guest.call("facts", refs=[], walk_s=0)
    assert facts["tools"]["rsync"]["version"] == ""


def test_status_and_stop_of_a_transfer_that_never_was(guest: Guest) -> None:
    assert guest.status()["state"] == "none"
    assert guest.call("stop") == {"stopped": False, "state": "none"}
    with pytest.raises(Told, match="not installed"):
        guest.call("start", job="pass", job_id="p1", request={})
