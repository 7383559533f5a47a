"""Nothing waits for ever: every wait in the program is listed here with the flag that bounds it."""

import ast
import functools
import inspect
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path

import cli_world as world
import click
import pytest

import volferry
from volferry import operations
from volferry.agent import basics, services
from volferry.agent.cutover import Cutover
from volferry.agent.jobs import Job
from volferry.agent.passes import FinalPass, LivePass
from volferry.channels import run_here
from volferry.channels.ssh import Ssh
from volferry.cli import program
from volferry.cloud.poller import Waits
from volferry.errors import Retry
from volferry.model import Timeouts

ROOT = Path(volferry.__file__).parent

WAITING = {
    "sleep", "_sleep", "wait", "wait_for", "timeout", "communicate", "get_result", "wait_closed",
    "open_connection", "confirm", "prompt", "flock", "urlopen", "serve_forever", "create_engine",
}  # fmt: skip

# Where something waits: the flags that bound it, or in words why none has to.
BOUNDED: dict[str, tuple[str, ...] | str] = {
    "channels/__init__.py run_here": ("--answer-timeout", "--connect-timeout"),
    "channels/ssh.py Ssh._connect": ("--connect-timeout",),
    "channels/ssh.py Ssh._end_master": "5 s, then it is killed",
    "channels/ssh.py Ssh._master_ends": "2 s, then the 255 is the command's own",
    "channels/ssh.py answers": ("--connect-timeout",),
    "channels/ssh.py first_that_answers": ("--connect-timeout",),
    "cli/gc.py _agreed": "asks a person at a terminal",
    "cli/run.py _consent": "asks a person at a terminal",
    "cli/logs.py command": "--follow, until the transfer stands still",
    "cli/watch.py _follow": "until the transfer stands still",
    "cloud/poller.py Waits._sleep": "see _poll",
    "cloud/poller.py Waits._poll": (
        "--snapshot-timeout", "--create-timeout", "--retype-timeout", "--attach-timeout",
        "--detach-timeout", "--delete-timeout",
    ),
    "cloud/poller.py Waits._if_any": "10 s: SUSPECT_S",
    "cloud/threads.py within": ("--answer-timeout",),
    "cloud/retries.py Budget.pause": ("--answer-timeout",),
    "engine.py Engine._patiently": ("--retry-timeout",),
    "engine.py _Durable.run": "the steps that run in it have deadlines",
    "engine.py steps": "until this process has chosen what it carries, at its beginning",
    "engine.py _EngineLine.wait": "as long as the step says",
    "guests/linux.py LinuxGuest._ended": (
        "--create-timeout", "--sync-timeout", "--cutover-timeout", "--retry-timeout",
    ),
    "steps/progress.py until_sure": "15 s: Patience.sure_s",
    "methods/mirror.py Mirror.sync": ("--sync-timeout",),
    "methods/mirror.py Mirror.catch_up": "--sync-timeout, then the gate says what is missing",
    "methods/mirror.py Mirror._follows_again": ("--sync-timeout",),
    "operations.py rollback": ("--handover-timeout",),
    "steps/attach.py appears": ("--attach-timeout",),
    "steps/cutover.py Cutover._gate": ("--sync-timeout",),
    "steps/step.py Unheard.wait": "a step's own test",
    "steps/step.py Context.sleep": "as long as the step says",
    "store.py _open_file": "30 s for another who writes",
    "store.py _open_url": "30 s, or connect_timeout in the URL; 30 s for a statement",
    "store.py Store.running": "LOCK_NB: it does not wait",
    "store.py Store.hold": "10 tries of 20 ms",
}  # fmt: skip


AGENT_WAITING = {"sleep", "wait", "communicate", "select", "settimeout", "wait_until_free"}

# Where the agent waits, whatever the module: how the message of one that expires says what it was,
# or in words why there is no such message.
TOLD, CLOCK = "told_limit(", "set_by("
IN_THE_AGENT: dict[str, str] = {
    "run": TOLD,
    "user_command": TOLD,
    "ask_listener": TOLD,
    "is_over": "15 s, then it says that a job is still running",
    "unmount": TOLD,
    "mount_device": TOLD,
    "verb_start": TOLD,
    "wait_for_paths": TOLD,
    "close_with": TOLD,
    "open_array": TOLD,
    "Sides.nobody_has_open": TOLD,
    "Sides.let_go": TOLD,
    "Cutover.final_pass": TOLD,
    "Cutover.await_detach": TOLD,
    "Cutover.wait_for_namespaces": TOLD,
    "Cutover.await_attach": TOLD,
    "DiskFile.reread_partitions": TOLD,
    "FilesMover.check_target": TOLD,
    "FinalPass.copy": TOLD,
    "Inside.prepare": TOLD,
    "Inside.listen": CLOCK,
    "Preparation.run": TOLD,
    "Preparation.wait_for_partitions": TOLD,
    "RsyncMover.run": TOLD,
    "Tracker.close": TOLD,
    "RsyncMover.follow": "RsyncMover.run tells it",
    "Cutover.early_on_the_way": "EARLY_LOOK_S, then the source is taken for gone",
    "Cutover.settle": "--settle, which is how long it is to watch",
    "Listener.accept": "until it is closed",
    "Listener.serve": "10 s for a line of the caller's; its log has what came of it",
    "Mirror.run": "5 s for its own thread at the end",
    "Follower.keep_draining": "as long as it lives",
    "Mirror.turn": "for the next order, as long as it lives",
    "Mirror.obey": "who asked has a limit of its own",
    "Follower.judge": "10 s for a write under way, whose message is of the chunks that differ",
    "Mirror.open_pair": "5 s, then the open says who has it",
    "held_target": "10 s, then the open says that somebody has it",
    "Supervisor.start_unit": "10 s, then it is told to start all the same",
    "Throttle.pay": "a pause of the rate that was asked for; whoever waits ends it",
    "end_process": "5 s, then what is stuck in the kernel is left",
    "in_child": "says that it was cut off, and has what was told by then",
    "locked": "says that it did not get it",
    "reap": "its caller's time, then a zombie is left",
    "supervise": "for the worker, which has the deadlines",
    "verb_stop": "grace_s, then it is killed; 10 s, then its state is told",
    "verb_tell": "ask_listener tells it",
    "wait_until_free": "says that it is not free",
}


def waits_in_the_agent() -> Iterator[tuple[str, str]]:
    """``Class.function`` and its text for each call of the agent that may wait."""
    for path in sorted((ROOT / "agent").glob("*.py")):
        text = path.read_text()
        found = set(_inside(ast.parse(text), "", AGENT_WAITING))
        for place in ast.walk(ast.parse(text)):
            for node in place.body if isinstance(place, ast.Module | ast.ClassDef) else ():
                above = f"{place.name}." if isinstance(place, ast.ClassDef) else ""
                if isinstance(node, ast.FunctionDef) and above + node.name in found:
                    yield above + node.name, ast.get_source_segment(text, node) or ""


def waits() -> Iterator[str]:
    """``file Class.function`` of each call outside the agent that may wait."""
    for path in sorted(ROOT.rglob("*.py")):
        name = path.relative_to(ROOT).as_posix()
        if not name.startswith("agent/"):
            found = _inside(ast.parse(path.read_text()), "", WAITING)
            yield from (f"{name} {where}" for where in found)


def _inside(node: ast.AST, where: str, waiting: set[str]) -> Iterator[str]:
    for child in ast.iter_child_nodes(node):
        here = where
        if isinstance(child, ast.ClassDef):
            here = f"{child.name}."
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            here = f"{where.rpartition('.')[0]}.{child.name}".lstrip(".")
        elif isinstance(child, ast.Call):
            called = child.func
            said = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
            on_name = isinstance(called, ast.Attribute) and isinstance(called.value, ast.Name)
            limited = any(keyword.arg == "timeout" for keyword in child.keywords)
            ours = waiting is AGENT_WAITING and (limited or (said == "join" and on_name))
            if said in waiting or ours:
                yield where
        yield from _inside(child, here, waiting)


def flags(command: click.Command) -> set[str]:
    return {flag for parameter in command.params for flag in parameter.opts}


def test_every_wait_is_listed() -> None:
    assert sorted(set(waits())) == sorted(BOUNDED)


def test_every_flag_that_bounds_a_wait_can_be_given_to_run_and_to_what_goes_on() -> None:
    ctx = click.Context(program)
    named = {flag for by in BOUNDED.values() if isinstance(by, tuple) for flag in by}
    ours = {f"--{field.removesuffix('_s')}-timeout" for field in Timeouts.model_fields}
    assert named - {"--handover-timeout"} == ours
    for verb in ("plan", "run", "resume", "rollback"):
        command = program.get_command(ctx, verb)
        assert command is not None
        assert ours <= flags(command), verb
        assert verb != "rollback" or "--handover-timeout" in flags(command)


TELLS = {
    "channels/ssh.py answers": "channels/ssh.py find",
    "channels/ssh.py first_that_answers": "channels/ssh.py find",
    "cloud/poller.py Waits._poll": "cloud/poller.py Waits._too_late",
    "cloud/threads.py within": "cloud/asking.py Asking._answer",
}
"""Where the message is not in the function that waits."""


@functools.cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def function(place: str) -> ast.FunctionDef | ast.AsyncFunctionDef:
    """``file Class.function``, or one inside a function."""
    file, _, where = place.partition(" ")
    above: ast.AST = tree(ROOT / file)
    *classes, name = where.split(".")
    for one in classes:
        above = next(n for n in ast.walk(above) if isinstance(n, ast.ClassDef) and n.name == one)
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    return next(n for n in ast.walk(above) if isinstance(n, functions) and n.name == name)


def said_by(place: str) -> str:
    """The texts that a function makes, without its docstring and its defaults."""
    made = function(place)
    body = made.body[1:] if ast.get_docstring(made) else made.body
    texts = (n for one in body for n in ast.walk(one) if isinstance(n, ast.JoinedStr))
    return " ".join(ast.unparse(text) for text in texts)


def handed_to(file: str) -> set[str]:
    """What the functions of a file that take a ``flag`` are given, or have by default."""
    given: list[ast.expr | None] = []
    takers = set()
    for node in ast.walk(tree(ROOT / file)):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if any(one.arg == "flag" for one in node.args.args + node.args.kwonlyargs):
            takers.add(node.name)
            given += node.args.defaults + node.args.kw_defaults
    for path in sorted(ROOT.rglob("*.py")):
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in takers:
                given += [keyword.value for keyword in node.keywords if keyword.arg == "flag"]
    return {one.value for one in given if isinstance(one, ast.Constant)}


@pytest.mark.parametrize("by", [by for by in BOUNDED.items() if isinstance(by[1], tuple)])
def test_the_message_names_the_flag(by: tuple[str, tuple[str, ...]]) -> None:
    place, named = by
    said = said_by(TELLS.get(place, place))
    handed = handed_to(place.split()[0]) if re.search(r"\({(wait\.)?flag}\)", said) else set()
    assert [flag for flag in named if f"({flag})" not in said and flag not in handed] == []


def test_the_clouds_waits_have_a_flag_each() -> None:
    verbs = [v for n, v in vars(Waits).items() if n.startswith("wait_")]
    assert len(verbs) >= 6
    for verb in verbs:
        flag = inspect.signature(verb).parameters["flag"].default
        assert flag.removeprefix("--").removesuffix("-timeout") + "_s" in Timeouts.model_fields


async def test_a_program_that_gives_no_answer_names_its_flag() -> None:
    with pytest.raises(Retry, match=r"gave no answer within 0 s \(--answer-timeout\)"):
        await run_here(["sleep", "30"], timeout_s=0.1)


async def test_a_server_that_accepts_and_says_nothing_names_its_flag(tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.write_text("Host silent\n  ProxyCommand sleep 30\n")
    with pytest.raises(Retry, match=r"no connection within 0\.5 s \(--connect-timeout\)"):
        async with Ssh("silent", str(config), connect_s=0.5):
            raise AssertionError


def test_a_deadline_given_to_resume_is_kept(tmp_path: Path) -> None:
    with world.plant(tmp_path) as store:
        operations._wait_longer(store, store.transfer(world.ID), {"attach_s": 7.0})
        assert store.transfer(world.ID).plan.wanted.timeouts.attach_s == 7.0
        assert store.transfer(world.ID).plan.wanted.timeouts.detach_s == Timeouts().detach_s


def test_every_wait_of_the_agent_is_listed() -> None:
    assert sorted({place for place, _ in waits_in_the_agent()}) == sorted(IN_THE_AGENT)


@pytest.mark.parametrize("place", [p for p, by in IN_THE_AGENT.items() if by in (TOLD, CLOCK)])
def test_the_agents_message_says_how_long_and_what_sets_it(place: str) -> None:
    assert IN_THE_AGENT[place] in dict(waits_in_the_agent())[place]


def test_a_limit_keeps_its_name_until_it_is_told() -> None:
    rest = basics.Limit(12.3, "what was left of --cutover-timeout")
    assert basics.told_limit(rest) == "12 s (what was left of --cutover-timeout)"
    assert basics.told_limit(min(60.0, rest)) == basics.told_limit(rest)
    assert basics.told_limit(min(5.0, rest)) == "5 s (a fixed limit)"
    assert basics.set_by(time.monotonic() + rest) == "what was left of --cutover-timeout"
    assert json.dumps({"deadline_s": rest}) == '{"deadline_s": 12.3}'


def test_a_program_of_the_guest_that_does_not_end_says_whose_limit_it_was(tmp_path: Path) -> None:
    fixed = r"sleep 30 did not end within 0 s \(a fixed limit\)"
    with pytest.raises(basics.AgentError, match=fixed):
        basics.run(["sleep", "30"], 0.1)
    rest = basics.Limit(0.1, "what was left of --cutover-timeout")
    place = basics.Place({"run": str(tmp_path)})
    with pytest.raises(basics.AgentError, match=r"'sleep 30' did not end .*--cutover-timeout\)"):
        services.user_command(place, "sleep 30", rest, str(tmp_path / "out"))


def test_a_cutover_out_of_time_names_its_flag(tmp_path: Path) -> None:
    cutover = agent_cutover(tmp_path, deadline_s=7)
    cutover.deadline = time.monotonic() + 5
    assert basics.told_limit(cutover.left(60.0)) == "5 s (what was left of --cutover-timeout)"
    assert basics.told_limit(cutover.left(2.0)) == "2 s (a fixed limit)"
    cutover.deadline = time.monotonic() - 1
    with pytest.raises(basics.AgentError, match=r"within 7 s \(--cutover-timeout\)"):
        cutover.left(60.0)


def test_a_source_that_does_not_come_names_the_flag_or_the_limit_of_a_boot(tmp_path: Path) -> None:
    cutover = agent_cutover(tmp_path, deadline_s=0.1)
    with pytest.raises(basics.AgentError, match=r"within 0 s \(--cutover-timeout\)"):
        cutover.await_attach(cutover.deadline_s)
    with pytest.raises(basics.AgentError, match=r"within 0 s \(a fixed limit\)"):
        cutover.await_attach(0.1)


def agent_cutover(tmp_path: Path, deadline_s: float) -> Cutover:
    folder = tmp_path / "transfer"
    for made in (folder, tmp_path / "sys" / "block"):
        made.mkdir(parents=True)
    place = basics.Place({"sys": str(tmp_path / "sys"), "run": str(tmp_path / "run")})
    ref = {"volume_id": "7f3c9d1e-1111-4222-8333-444455556666", "size_bytes": 1 << 30}
    request = {
        "filesystems": [],
        "pairs": [{"source": ref, "target": {**ref, "volume_id": ref["volume_id"][::-1]}}],
        "deadline_s": deadline_s,
    }
    asked_for = {"job": "cutover", "job_id": "cutover-1", "request": request}
    return Cutover(place, Job(place, str(folder)), asked_for)


def test_a_pass_out_of_time_names_its_flag(tmp_path: Path) -> None:
    for kind, flag in ((LivePass, "--sync-timeout"), (FinalPass, "--cutover-timeout")):
        one = kind(basics.Place(), str(tmp_path), {"deadline_s": 0}, lambda *_, **__: None)
        with pytest.raises(basics.AgentError, match=rf"within 0 s \(what was left of {flag}\)"):
            one.left(60.0)
