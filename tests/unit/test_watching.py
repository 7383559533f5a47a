"""What programs read of a transfer: JSON logs, the event stream, metrics, the support bundle."""

import gzip
import json
import re
import stat
import tarfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cli_world as world
import pytest
from click.testing import CliRunner, Result
from command_world import Command, wait_until
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from tests.fakes.http_cloud import Reply
from volferry import errors, scrub
from volferry.cli import program
from volferry.guests import fstab
from volferry.model import Event, State
from volferry.report import records
from volferry.report.metrics import Metrics


@pytest.fixture
def command(tmp_path: Path) -> Iterator[Command]:
    made = Command(tmp_path)
    yield made
    made.close()


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def call(*words: object) -> Result:
    return CliRunner().invoke(program, [str(word) for word in words])


# ---- JSON logs -----------------------------------------------------------------------------------


def test_every_line_of_a_json_log_is_a_record_with_transfer_and_step(command: Command) -> None:
    said = lines(command.run("--log-format", "json").stderr)
    assert all({"at", "level", "transfer", "step", "kind", "facts"} <= set(one) for one in said)
    [id] = {one["transfer"] for one in said} - {""}
    receipts = [one["step"] for one in said if one["kind"] == "receipt"]
    assert receipts[0] == "install" and receipts[-1] == "tidy"
    assert all(one["transfer"] == id and one["step"] for one in said if one["kind"] == "promise")
    kept = lines(command("logs", id, "-f", "json").stdout)
    kinds = ("progress", "word")  # of the moment, and not kept
    assert [one for one in said if one["kind"] not in kinds and one["transfer"]] == kept


def test_an_error_is_one_record_with_its_three_parts(command: Command) -> None:
    command.cloud.held = "none"
    answer = command.cloud.reply

    def refuses(method: str, path: str, body: object) -> Reply:
        fault = {"badRequest": {"code": 400, "message": "no snapshots today"}}
        return (
            Reply(400, fault)
            if (method, path) == ("POST", "/volume/v3/snapshots")
            else answer(method, path, body)
        )

    command.cloud.reply = refuses  # type: ignore[method-assign]
    said = lines(command.run("--log-format", "json", code=1).stderr)
    [error] = [one for one in said if one["level"] == "error"]
    assert error["transfer"] and error["step"] == "snapshot" and error["kind"] == "error"
    assert "no snapshots today" in error["facts"]["what"]
    assert f"volferry resume {error['transfer']}" in error["facts"]["hint"]
    # What stopped it can be told from the journal alone, by whoever comes later.
    told = command("logs", error["transfer"]).stdout.splitlines()
    assert "snapshot" in told[-1] and "error" in told[-1] and "no snapshots today" in told[-1]
    assert f"volferry resume {error['transfer']}" in told[-1]
    slip = command("lisst", "--log-format", "json", code=2)
    assert "lisst" in slip.stderr
    wrong = lines(command("--log-format", "json", "status", "nobody", code=2).stderr)
    assert wrong[-1]["facts"]["what"] == "there is no transfer 'nobody'"


def test_warnings_and_errors_can_be_told_apart() -> None:
    def level(kind: str, **facts: Any) -> str:
        return records.level(Event(at=1.0, transfer="t", kind=kind, facts=facts))

    assert level("bug") == level("error") == "error"
    assert level("retry") == level("outcome", result="reverted") == level("gate") == "warning"
    assert level("gate", open=True) == level("outcome", result="committed") == "info"


@pytest.mark.parametrize("kind", ["retry", "bug", "held", "outcome", "error"])
def test_a_failure_can_be_reconstructed_from_the_logs(kind: str, tmp_path: Path) -> None:
    facts = {
        "retry": {"what": "the cloud was busy: why-it-failed", "pause_s": 3.0, "tries": 2},
        "bug": {"traceback": "Traceback\n  File x\nKeyError: why-it-failed"},
        "held": {"what": "waits: why-it-failed", "hint": "volferry finish"},
        "outcome": {"result": "reverted", "live": "source", "reason": "why-it-failed"},
        "error": {"kind": "Stop", "what": "why-it-failed", "data": "nothing lost", "hint": "h"},
    }[kind]
    event = Event(at=world.BEGAN, transfer=world.ID, step="sync", kind=kind, facts=facts)
    with world.plant(tmp_path, State.STOPPED, "attach", event):
        for form in ("text", "json"):
            told = call("--state", tmp_path, "logs", world.ID, "-f", form).stdout.splitlines()[-1]
            assert "why-it-failed" in told and "sync" in told and kind in told


# ---- the stream ----------------------------------------------------------------------------------


def test_watch_streams_events_and_progress_of_another_process(command: Command) -> None:
    (command.folder / "hang").write_text("pass")
    process = command.start(*command.words())
    wait_until(lambda: command.state.exists() and "sync" in command("list").stdout)
    watcher = command.start("watch", command.transfer(), "-f", "json")
    assert watcher.stdout is not None
    seen: list[dict[str, Any]] = []
    for line in watcher.stdout:
        seen.append(json.loads(line))
        if seen[-1]["kind"] == "progress":
            break
    assert seen[0]["kind"] in ("phase", "intent")
    assert seen[-1]["facts"]["done_bytes"] == 1 and seen[-1]["step"] == "sync"
    (command.folder / "hang").unlink()
    rest = lines(watcher.communicate(timeout=60)[0])
    process.communicate(timeout=60)
    assert "done" in [one["kind"] for one in rest] and watcher.returncode == 0


def test_a_stream_ends_with_the_exit_code_of_the_transfer(tmp_path: Path) -> None:
    facts = {"kind": "Stop", "what": "x", "data": "", "hint": ""}
    event = Event(at=world.BEGAN, transfer=world.ID, step="sync", kind="error", facts=facts)
    with world.plant(tmp_path, State.STOPPED, "attach", event):
        said = call("--state", tmp_path, "watch", world.ID, "-f", "json")
        assert said.exit_code == 1
        assert [one["level"] for one in lines(said.stdout)][-1] == "error"
        wrong = call("--state", tmp_path, "watch", world.ID, "-f", "json", "-c", "state")
        assert wrong.exit_code == 2 and "stream" in wrong.stderr


# ---- metrics -------------------------------------------------------------------------------------


def scraped(text: str) -> dict[str, float]:
    """Value by sample name and its labels without the transfer."""
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = "".join(f",{v}" for k, v in sorted(sample.labels.items()) if k != "transfer")
            found[sample.name + labels] = sample.value
    return found


def read(where: str) -> dict[str, float]:
    with urllib.request.urlopen(where, timeout=10) as answer:
        return scraped(answer.read().decode())


def test_a_running_engine_answers_prometheus(command: Command) -> None:
    (command.folder / "hang").write_text("pass")
    words = ("--metrics", "0", "--log-format", "json")
    process = command.start(*command.words(*words))
    assert process.stderr is not None
    where = ""
    for line in process.stderr:
        found = re.search(r"http://127\.0\.0\.1:\d+/metrics", line)
        where = found[0] if found else where
        if '"done_bytes": 1,' in line:
            break
    seen = read(where)
    ends = time.monotonic() + 10
    while "volferry_wait_done_bytes" not in seen and time.monotonic() < ends:
        time.sleep(0.05)  # the log hears of it first
        seen = read(where)
    assert seen["volferry_step,sync"] == 1 and seen["volferry_phase,sync"] == 1
    assert seen["volferry_wait_done_bytes"] == 1 and seen["volferry_steps_done_total"] >= 6
    (command.folder / "hang").unlink()
    process.communicate(timeout=60)
    assert process.returncode == 0


def test_metrics_after_a_resume_begin_where_the_journal_ended(tmp_path: Path) -> None:
    whole = Metrics()
    whole.hear_all(world.events())
    with world.plant(tmp_path) as store:
        again = Metrics(world.ID)
        again.hear_all(numbered.event for numbered in store.events(world.ID))
    texts = [_exposed(one) for one in (whole, again)]
    assert scraped(texts[0]) == scraped(texts[1])
    seen = scraped(texts[0])
    assert seen["volferry_downtime_seconds"] == pytest.approx(world.OUTCOME.downtime_s)
    copied = sum(one.bytes_copied for one in world.PASSES)
    final = world.OUTCOME.final_pass
    assert seen["volferry_copied_bytes_total"] == copied + (final.bytes_copied if final else 0)
    assert seen["volferry_cutovers_total,committed"] == 1
    assert f'transfer="{world.ID}"' in texts[0]


def _exposed(metrics: Metrics) -> str:
    return generate_latest(metrics.registry).decode()


def test_metrics_are_for_this_machine_unless_a_host_is_named() -> None:
    assert Metrics().serve("0").startswith("127.0.0.1:")
    taken = Metrics().serve("127.0.0.1:0")
    with pytest.raises(errors.Usage, match="cannot listen on"):
        Metrics().serve(taken)
    for wrong in ("", "here", "1:x", ":70000"):
        with pytest.raises(errors.Usage, match="is not an address"):
            Metrics().serve(wrong)


# ---- the bundle ----------------------------------------------------------------------------------


def test_a_bundle_has_all_that_is_known_and_no_secret(tmp_path: Path) -> None:
    plan = world.plan()
    [source] = plan.cloud.sources
    source = source.model_copy(update={"metadata": {"owner": "hunter22-of-the-user"}})
    cloud = plan.cloud.model_copy(update={"sources": (source,)})
    wanted = plan.wanted.model_copy(update={"stop": ("mysqladmin -phunter22 shutdown",)})
    bug = Event(
        at=world.BEGAN + 1,
        transfer=world.ID,
        step="sync",
        kind="bug",
        facts={"traceback": "X-Auth-Token: gAAAAABhunter22hunter22hunter22"},
    )
    changed = plan.model_copy(update={"cloud": cloud, "wanted": wanted})
    with world.plant(tmp_path / "state", State.STOPPED, "sync", bug, plan=changed):
        file = tmp_path / "bundle.tar.gz"
        said = call("--state", tmp_path / "state", "support-bundle", world.ID, "--output", file)
    assert said.exit_code == 0, said.stderr
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert b"hunter22" not in gzip.decompress(file.read_bytes())
    with tarfile.open(file) as archive:
        names = {Path(name).name for name in archive.getnames()}
        events = archive.extractfile(f"{world.ID}/events.jsonl")
        assert events is not None and len(events.read().splitlines()) > 5
        assert all(member.mode == 0o600 for member in archive)
    wanted_names = {"README", "transfer.json", "journal.jsonl", "events.txt", "report.json"}
    assert wanted_names <= names
    nowhere = call("--state", tmp_path / "state", "support-bundle", world.ID, "--output", "/no/x")
    assert nowhere.exit_code == 2 and "cannot write" in nowhere.stderr


@pytest.mark.parametrize(
    "said",
    [
        "PGPASSWORD=hunter22 psql",
        "mysql -phunter22 -e x",
        "tool --token hunter22",
        "curl -H 'X-Auth-Token: hunter22'",
        "http://demo:hunter22@keystone/v3",
        '{"password": "hunter22", "a": 1}',
        "-----BEGIN OPENSSH PRIVATE KEY-----\nhunter22\n-----END OPENSSH PRIVATE KEY-----",
        "token gAAAAABhunter22hunter22hunter22",
    ],
)
def test_what_looks_like_a_secret_is_taken_out(said: str) -> None:
    assert "hunter22" not in scrub.text(said)


def test_what_is_no_secret_stays() -> None:
    said = "pass 1: 3 GiB; author=me; bypass: yes; key 'x' of /etc/passwd was read, 12 tokens"
    assert scrub.text(said) == said
    assert scrub.data({"author": "me", "auth_url": "http://x"}) == {
        "author": "me",
        "auth_url": "http://x",
    }
    assert scrub.known({"PWD": str(Path.cwd()), "OS_PASSWORD": "/y-z"}) == {"/y-z"}
    assert scrub.known({"VOLFERRY_STATE": "postgresql://me:in-a-url@db/x"}) == {"in-a-url"}


def test_passwords_of_network_shares_are_taken_out_of_a_kept_fstab() -> None:
    table = "//s/x /m cifs username=a,password=hunter22,uid=3 0 0\nUUID=1\t/  ext4 defaults 0 1\n"
    kept = fstab.without_secrets(table)
    assert kept == table.replace("hunter22", "(removed)")
    assert (
        fstab.without_secrets("k:/ /c ceph secret=hunter22\n") == "k:/ /c ceph secret=(removed)\n"
    )
