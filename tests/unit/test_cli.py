"""The verbs: what they print where, what they exit with, what they ask operations for."""

import json
import os
import stat
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cli_world as world
import pytest
from click.testing import CliRunner, Result
from ruamel.yaml import YAML

import volferry
from volferry import errors, planfile
from volferry.cli import program
from volferry.model import Event, Plan, State, Transfer, Wanted

VERBS = (
    "plan", "run", "status", "watch", "list", "cutover", "resume", "rollback", "finish", "report",
    "logs", "gc", "support-bundle", "schema", "completion",
)  # fmt: skip


class Operations(types.ModuleType):
    """Stands for ``volferry.operations``: remembers what it was asked, answers as told."""

    def __init__(self) -> None:
        super().__init__("volferry.operations")
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.planned: Plan = world.plan()
        self.answer: Transfer | Exception | None = None

    async def plan(self, wanted: Wanted, *, notice: Any) -> Plan:
        notice("asking the cloud")
        self.asked.append(("plan", {"wanted": wanted}))
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.planned

    async def _do(self, verb: str, listen: Any, facts: dict[str, Any]) -> Transfer | None:
        self.asked.append((verb, facts))
        if isinstance(self.answer, Exception):
            raise self.answer
        for event in world.events() if self.answer else ():
            listen.on_event(event)
        return self.answer

    async def run(self, one: Plan, store: Any, *, listen: Any) -> Transfer | None:
        return await self._do("run", listen, {"plan": one})

    async def resume(self, id: str, store: Any, *, listen: Any, deadlines: Any) -> Transfer | None:
        return await self._do("resume", listen, {"id": id, **deadlines})

    async def finish(self, id: str, store: Any, *, listen: Any) -> Transfer | None:
        return await self._do("finish", listen, {"id": id})

    async def cutover(self, id: str, store: Any, *, now: bool, listen: Any) -> Transfer | None:
        return await self._do("cutover", listen, {"id": id, "now": now})

    async def rollback(
        self,
        id: str,
        store: Any,
        *,
        accept_loss: bool,
        handover_s: float,
        deadlines: Any,
        listen: Any,
    ) -> Transfer | None:
        facts = {"id": id, "accept_loss": accept_loss, **deadlines}
        return await self._do("rollback", listen, facts)


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("OS_", "VOLFERRY_")) or name == "NO_COLOR":
            monkeypatch.delenv(name)


@pytest.fixture
def operations(monkeypatch: pytest.MonkeyPatch) -> Operations:
    fake = Operations()
    monkeypatch.setitem(sys.modules, "volferry.operations", fake)
    monkeypatch.setitem(volferry.__dict__, "operations", fake)
    return fake


@pytest.fixture
def done(tmp_path: Path) -> Iterator[Path]:
    with world.plant(tmp_path / "state") as store:
        yield store.root


def call(*words: str | Path, **more: Any) -> Result:
    return CliRunner().invoke(program, [str(word) for word in words], prog_name="volferry", **more)


# ---- help and usage ------------------------------------------------------------------------------


def test_the_help_names_every_verb_and_every_exit_code() -> None:
    shown = call("--help")
    assert shown.exit_code == 0 and shown.stderr == ""
    for verb in VERBS:
        assert f"\n  {verb} " in shown.stdout
    for heading in ("SYNOPSIS", "EXAMPLES", "EXIT CODES", "FILES", "ENVIRONMENT"):
        assert f"\n{heading}\n" in shown.stdout


@pytest.mark.parametrize("verb", VERBS)
def test_each_verb_has_a_page_of_its_own(verb: str) -> None:
    shown = call(verb, "--help")
    assert shown.exit_code == 0
    assert shown.stdout.startswith(f"volferry {verb} - ")
    for heading in ("SYNOPSIS", "DESCRIPTION", "GLOBAL OPTIONS", "EXAMPLES", "EXIT CODES"):
        assert f"\n{heading}\n" in shown.stdout
    assert max(len(line) for line in shown.stdout.splitlines()) <= 100


@pytest.mark.parametrize(
    ("words", "what", "hint"),
    [
        (
            ("plan", "a", "b", "--tyype", "x"),
            "there is no option '--tyype'",
            "did you mean --type?",
        ),
        (("lisst",), "no such command 'lisst'", "volferry"),
        (("plan", "a"), "missing argument 'VOLUME…'", "volferry plan --help"),
        (("plan", "a", "b", "c", "--size", "9"), "--size is for one volume", "without --size"),
        (("run", "a", "b", "c", "--name", "n"), "--name is for one volume", "without --name"),
        (("plan", "a", "b", "--size", "0"), "'--size': 0 is not in the range", "plan --help"),
        (("plan", "a", "b", "--max-downtime", "soon"), "'soon' is not a duration", "plan --help"),
        (("plan", "a", "b", "--cutover", "at"), "same word", "plan --help"),
        (("run", "a", "b", "02:00"), "'02:00' is a time", "--cutover 'at 02:00' is one word"),
        (("run", "plan"), "there is no plan file 'plan'", "volferry run SERVER VOLUME"),
        (("run",), "not 0 names", "volferry run --help"),
        (("plan", "a", "b", "--unit", "x", "--units", "auto"), "exclude each other", "--units"),
        (("plan", "a", "b", "--stop", "x"), "--stop without --start", "--start CMD"),
        (("plan", "a", "b", "--local", "--ssh", "x"), "exclude each other", ""),
    ],
)
def test_a_wrong_command_line_is_three_lines_and_exit_code_2(
    words: tuple[str, ...], what: str, hint: str, operations: Operations
) -> None:
    said = call(*words)
    assert said.exit_code == 2 and said.stdout == ""
    first, second, *rest = said.stderr.splitlines()
    assert first.startswith("error: ") and what in first and not first.endswith(".")
    assert second == "  nothing was changed"
    assert hint in "\n".join(rest)
    assert operations.asked == []


def test_an_unknown_transfer_is_named_with_those_that_exist(done: Path) -> None:
    said = call("--state", done, "report", "tr-other")
    assert said.exit_code == 2
    assert "there is no transfer 'tr-other'" in said.stderr and world.ID in said.stderr


def test_a_state_directory_that_cannot_be_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    said = call("--state", tmp_path / "file" / "x", "list")
    assert said.exit_code == 2 and "hint: --state DIR" in said.stderr


# ---- plan ----------------------------------------------------------------------------------------


def test_every_option_of_plan_arrives_as_a_wish(operations: Operations) -> None:
    said = call(
        "plan", "testsrv", "sourcevol", "--type", "cbs-premium", "--size", "60", "--name", "n",
        "--method", "rsync", "--seed", "blank", "--unit", "a.service", "--unit", "b.service",
        "--stop", "x stop", "--start", "x start", "--exclude", "tmp", "--bwlimit", "50M",
        "--cutover", "manual", "--max-downtime", "500ms", "--settle", "0", "--hold", "--raw",
        "--no-read-only", "--keep-snapshot", "--attach-timeout", "3m", "--sync-timeout", "1h",
        "--os-cloud", "mycloud", "--os-region-name", "az", "--ssh", "u@h", "--ssh-config", "f",
    )  # fmt: skip
    assert said.exit_code == 0, said.stderr
    wanted = operations.asked[0][1]["wanted"]
    assert wanted.model_dump(mode="json", exclude_defaults=True) == {
        "os_cloud": "mycloud", "os_region": "az", "server": "testsrv", "volumes": ["sourcevol"],
        "type": "cbs-premium", "size_gib": 60, "name": "n", "method": "rsync", "seed": "blank",
        "access": {"ssh": "u@h", "ssh_config": "f"}, "units": ["a.service", "b.service"],
        "stop": ["x stop"], "start": ["x start"], "exclude": ["tmp"],
        "bwlimit_bytes_s": 50 * 1024**2, "cutover": "manual", "max_downtime_s": 0.5,
        "settle_s": 0.0, "hold": True, "read_only": False, "keep_snapshot": True,
        "raw": True, "timeouts": {"attach_s": 180.0, "sync_s": 3600.0},
    }  # fmt: skip


@pytest.mark.parametrize("verb", ["plan", "run"])
def test_several_volumes_are_named_after_the_server(verb: str, operations: Operations) -> None:
    call(verb, "testsrv", "data1", "data2", "log", "--type", "cbs-premium")
    wanted = operations.asked[0][1]["wanted"]
    assert (wanted.server, wanted.volumes) == ("testsrv", ("data1", "data2", "log"))
    assert wanted.type == "cbs-premium"


def test_a_bare_plan_wishes_for_nothing_but_the_defaults(operations: Operations) -> None:
    call("plan", "testsrv", "sourcevol", "--units", "auto")
    expected = Wanted(server="testsrv", volumes=("sourcevol",), units=("auto",))
    assert operations.asked[0][1]["wanted"] == expected


def test_the_environments_cloud_is_kept_in_the_plan(operations: Operations) -> None:
    call("plan", "a", "b", env={"OS_CLOUD": "envcloud", "OS_REGION_NAME": "r"})
    wanted = operations.asked[0][1]["wanted"]
    assert (wanted.os_cloud, wanted.os_region) == ("envcloud", "r")


def test_global_options_may_stand_on_either_side_of_the_verb(operations: Operations) -> None:
    call("--os-cloud", "one", "plan", "a", "b")
    call("plan", "a", "b", "--os-cloud", "two")
    assert [asked[1]["wanted"].os_cloud for asked in operations.asked] == ["one", "two"]


def test_the_plan_is_data_and_goes_to_stdout(operations: Operations) -> None:
    said = call("plan", "a", "b")
    assert "volferry would move volume sourcevol" in said.stdout
    assert "asking the cloud" in said.stderr and "asking the cloud" not in said.stdout


def test_a_refused_plan_is_printed_and_exits_with_1(operations: Operations) -> None:
    operations.planned = world.refused()
    said = call("plan", "a", "b")
    assert said.exit_code == 1
    assert "refusal   quota: snapshots" in said.stdout
    assert "1 refusal (quota: snapshots)" in said.stderr
    assert "nothing was changed" in said.stderr and "hint: --seed blank" in said.stderr


@pytest.mark.usefixtures("operations")
def test_plan_prints_json_and_single_columns() -> None:
    said = call("plan", "a", "b", "-f", "json")
    assert json.loads(said.stdout)["pairs"][0]["target_type"] == "cbs-premium"
    said = call("plan", "a", "b", "-f", "value", "-c", "method", "-c", "made-at")
    assert said.stdout == f"rsync\n{world.BEGAN}\n"


@pytest.mark.usefixtures("operations")
def test_a_saved_plan_runs(tmp_path: Path, operations: Operations) -> None:
    path = tmp_path / "plan.yaml"
    said = call("plan", "a", "b", "--save", path)
    assert said.exit_code == 0 and f"volferry run {path}" in said.stderr
    with world.plant(tmp_path / "state"):
        operations.answer = world.transfer(State.DONE)
        said = call("--state", tmp_path / "state", "run", path)
    assert said.exit_code == 0, said.stderr
    carried = operations.asked[-1][1]["plan"]
    assert carried.made_at == 0  # so that it is checked again, however young the file is
    assert carried.model_copy(update={"made_at": world.BEGAN}) == world.plan()


def test_how_to_get_there_may_differ_from_the_file(tmp_path: Path, operations: Operations) -> None:
    path = tmp_path / "plan.yaml"
    planfile.save(world.plan(), path)
    with world.plant(tmp_path / "state"):
        operations.answer = world.transfer(State.DONE)
        call("--state", tmp_path / "state", "run", path, "--ssh", "me@there", "--os-cloud", "c2")
    wanted = operations.asked[-1][1]["plan"].wanted
    assert wanted.access.ssh == "me@there" and wanted.os_cloud == "c2"


def test_what_the_file_says_is_not_said_again(tmp_path: Path, operations: Operations) -> None:
    path = tmp_path / "plan.yaml"
    planfile.save(world.plan(), path)
    said = call("run", path, "--type", "other")
    assert said.exit_code == 2 and "--type cannot be given together" in said.stderr
    assert operations.asked == []


def test_a_broken_plan_file_starts_nothing(tmp_path: Path, operations: Operations) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text("version: 3\nwanted:\n  srever: x\n")
    said = call("run", path)
    assert said.exit_code == 2
    assert "did you mean 'server'?" in said.stderr and "version is 3" in said.stderr
    assert operations.asked == []


# ---- run and its kin -----------------------------------------------------------------------------


def test_a_script_is_not_asked_and_gets_phases_and_report(
    done: Path, operations: Operations
) -> None:
    operations.answer = world.transfer(State.DONE)
    said = call("--state", done, "run", "testsrv", "sourcevol")
    assert said.exit_code == 0, said.stderr
    heads = [line for line in said.stderr.splitlines() if line[1:3] == "/6"]
    assert heads == ["1/6 plan", "2/6 seed", "3/6 attach", "4/6 sync", "5/6 cutover", "6/6 finish"]
    assert said.stdout.startswith("moved sourcevol in testsrv: downtime 3.8 s")
    assert "seed" not in said.stdout


def test_a_transfer_that_is_held_as_asked_is_no_failure(
    tmp_path: Path, operations: Operations
) -> None:
    facts = {"what": "the cutover is done; --hold", "hint": f"volferry finish {world.ID}"}
    held = Event(at=world.BEGAN + 500, transfer=world.ID, step="detach", kind="held", facts=facts)
    with world.plant(tmp_path, State.HELD, "cutover", held):
        operations.answer = world.transfer(State.HELD, "detach")
        said = call("--state", tmp_path, "run", "testsrv", "sourcevol", "--hold")
        watched = call("--state", tmp_path, "watch", world.ID)
    assert said.exit_code == 0
    assert f"volferry finish {world.ID}" in said.stdout
    assert "held: the cutover is done; --hold" in watched.stderr


def test_run_can_answer_with_json_alone(done: Path, operations: Operations) -> None:
    operations.answer = world.transfer(State.DONE)
    said = call("--state", done, "run", "testsrv", "sourcevol", "-f", "json")
    assert json.loads(said.stdout)["cutover"]["downtime_s"] == 3.84


def test_quiet_says_the_answer_and_nothing_else(done: Path, operations: Operations) -> None:
    operations.answer = world.transfer(State.DONE)
    said = call("--state", done, "-q", "resume", world.ID, "-f", "value", "-c", "state")
    assert (said.stdout, said.stderr) == ("done\n", "")


def test_a_refused_plan_is_not_run(operations: Operations, tmp_path: Path) -> None:
    operations.planned = world.refused()
    said = call("--state", tmp_path, "run", "a", "b")
    assert said.exit_code == 1
    assert [asked[0] for asked in operations.asked] == ["plan"]


@pytest.mark.parametrize(
    ("words", "facts"),
    [
        (("cutover", "tr-", "--now"), {"id": world.ID, "now": True}),
        (("cutover", "tr-"), {"id": world.ID, "now": False}),
        (("resume", "tr-"), {"id": world.ID}),
        (("resume", "tr-", "--attach-timeout", "5m"), {"id": world.ID, "attach_s": 300.0}),
        (("finish", "tr-"), {"id": world.ID}),
        (("rollback", "tr-"), {"id": world.ID, "accept_loss": False}),
        (("rollback", "tr-", "--accept-loss"), {"id": world.ID, "accept_loss": True}),
    ],
)
def test_a_decision_is_passed_on_with_the_whole_id(
    words: tuple[str, ...], facts: dict[str, Any], done: Path, operations: Operations
) -> None:
    operations.answer = world.transfer(State.DONE)
    said = call("--state", done, *words)
    assert said.exit_code == 0, said.stderr
    assert operations.asked == [(words[0], facts)]


@pytest.mark.parametrize("verb", ["cutover", "finish", "rollback"])
def test_a_transfer_that_another_process_carries_is_asked(
    verb: str, done: Path, operations: Operations
) -> None:
    said = call("--state", done, verb, world.ID)
    assert said.exit_code == 0 and said.stdout == ""
    assert "has been asked" in said.stderr and f"volferry watch {world.ID}" in said.stderr


@pytest.mark.parametrize(
    ("error", "code", "first"),
    [
        (errors.Stop("no disk", data="untouched", hint="volferry resume x"), 1, "error: no disk"),
        (errors.Usage("no such volume"), 2, "error: no such volume"),
        (errors.NeedsConsent("would lose", hint="--accept-loss"), 3, "error: would lose"),
        (errors.SomeFailed("two of three"), 4, "error: two of three"),
        (errors.Paused("stopped as you asked"), 1, "stopped: stopped as you asked"),
        (RuntimeError("surprise"), 1, "error: unexpected RuntimeError: surprise"),
    ],
)
def test_each_error_has_its_exit_code_and_no_traceback(
    error: Exception, code: int, first: str, done: Path, operations: Operations
) -> None:
    operations.answer = error
    said = call("--state", done, "rollback", world.ID)
    assert said.exit_code == code
    assert said.stderr.splitlines()[0] == first
    assert "Traceback" not in said.stderr


def test_debug_adds_the_stack_and_keeps_the_words(done: Path, operations: Operations) -> None:
    operations.answer = errors.Stop("no disk")
    said = call("--debug", "--state", done, "resume", world.ID)
    assert "Traceback" in said.stderr
    assert said.stderr.splitlines()[-1] == "error: no disk"


# ---- looking -------------------------------------------------------------------------------------


def test_list_has_the_same_columns_in_every_format(done: Path) -> None:
    table = call("--state", done, "list").stdout
    names = [cell.strip() for cell in table.splitlines()[1].strip("|").split("|")]
    rows = json.loads(call("--state", done, "list", "-f", "json").stdout)
    assert list(rows[0]) == names
    assert rows[0]["downtime_s"] == 3.84 and rows[0]["type"] == "cbs-standard -> cbs-premium"
    assert YAML(typ="safe").load(call("--state", done, "list", "-f", "yaml").stdout) == rows
    value = call("--state", done, "list", "-f", "value", "-c", "ID", "-c", "downtime_s").stdout
    assert value == f"{world.ID} 3.84\n"


def test_an_unknown_column_names_the_nearest(done: Path) -> None:
    said = call("--state", done, "list", "-c", "serve")
    assert said.exit_code == 2 and "did you mean 'server'?" in said.stderr


def test_an_empty_list_is_an_empty_list(tmp_path: Path) -> None:
    assert json.loads(call("--state", tmp_path, "list", "-f", "json").stdout) == []
    assert "| id " in call("--state", tmp_path, "list").stdout


def test_the_list_names_all_volumes_and_each_change_of_type_once(tmp_path: Path) -> None:
    with world.plant(tmp_path, plan=world.plan_of_two()):
        said = call("--state", tmp_path, "list", "-f", "value", "-c", "volume", "-c", "type")
    assert said.stdout == "sourcevol, log cbs-standard -> cbs-premium, cbs-premium\n"


def test_status_says_how_it_stands_and_what_can_be_done(tmp_path: Path) -> None:
    with world.plant(tmp_path, State.HELD, "cutover"):
        said = call("--state", tmp_path, "status")
    assert "waits after the cutover" in said.stdout
    assert f"volferry finish {world.ID}" in said.stdout and "rollback" in said.stdout


def test_status_sees_that_the_process_died(tmp_path: Path) -> None:
    with world.plant(tmp_path, State.RUNNING, "attach"):
        said = call("--state", tmp_path, "status", "tr-")
        assert "nobody carries it" in said.stdout and "volferry resume" in said.stdout
        row = json.loads(call("--state", tmp_path, "status", "-f", "json").stdout)
        assert row[0]["state"] == "running (nobody carries it)"


def test_status_without_anything_under_way_says_so(done: Path) -> None:
    said = call("--state", done, "status")
    assert (said.exit_code, said.stdout) == (0, "")
    assert "volferry list" in said.stderr


def test_logs_are_lines_for_people_or_json_lines(done: Path) -> None:
    lines = call("--state", done, "logs", world.ID).stdout.splitlines()
    assert len(lines) == len(world.events())
    assert lines[0].startswith("2026-09-21T14:13:25Z  install")
    records = call("--state", done, "logs", world.ID, "-f", "json").stdout.splitlines()
    assert [json.loads(line)["kind"] for line in records] == [e.kind for e in world.events()]


def test_a_report_page_is_written_whole_and_for_its_owner_only(done: Path, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    said = call("--state", done, "report", world.ID, "--html", path)
    assert said.exit_code == 0 and said.stdout == ""
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.read_text().startswith("<!doctype html>")
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []
    said = call("--state", done, "report", world.ID, "--html", tmp_path / "no" / "dir.html")
    assert said.exit_code == 2 and "cannot write" in said.stderr


def test_watch_ends_with_a_transfer_that_has_ended(done: Path) -> None:
    said = call("--state", done, "watch", world.ID)
    assert said.exit_code == 0
    assert "6/6 finish" in said.stderr and said.stdout.startswith("moved sourcevol")


def test_watch_of_a_dead_process_says_how_to_go_on(tmp_path: Path) -> None:
    with world.plant(tmp_path, State.RUNNING, "attach"):
        said = call("--state", tmp_path, "watch", world.ID)
    assert said.exit_code == 1 and f"volferry resume {world.ID}" in said.stderr


def test_the_schema_is_the_one_of_the_plan_files() -> None:
    assert json.loads(call("schema").stdout) == planfile.schema()


def test_escape_sequences_in_names_do_not_reach_the_terminal(tmp_path: Path) -> None:
    evil = world.plan()
    source = evil.cloud.sources[0].model_copy(update={"name": "\x1b[2Jevil"})
    cloud = evil.cloud.model_copy(update={"sources": (source,)})
    pairs = (evil.pairs[0].model_copy(update={"source": source}),)
    evil = evil.model_copy(update={"cloud": cloud, "pairs": pairs})
    with world.plant(tmp_path, plan=evil):
        for verb in (("list",), ("status", world.ID), ("report", world.ID), ("logs", world.ID)):
            assert "\x1b" not in call("--state", tmp_path, *verb).stdout


def test_a_password_in_an_argument_is_refused() -> None:
    said = call("--state", "postgresql://me:hunter22@db/volferry", "list")
    assert said.exit_code == 2 and "VOLFERRY_STATE" in said.stderr
    assert "hunter22" not in said.stderr + said.stdout
