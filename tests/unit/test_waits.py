"""Nothing waits for ever: every wait in the program is listed here with the flag that bounds it."""

import ast
import inspect
from collections.abc import Iterator
from pathlib import Path

import cli_world as world
import click
import pytest

import volferry
from volferry import operations
from volferry.channels import run_here
from volferry.channels.ssh import Ssh
from volferry.cli import program
from volferry.cloud.poller import Waits
from volferry.errors import Retry
from volferry.model import Timeouts

ROOT = Path(volferry.__file__).parent

WAITING = {
    "sleep", "_sleep", "wait", "wait_for", "timeout", "communicate", "get_result", "wait_closed",
    "open_connection", "confirm", "prompt", "flock", "urlopen", "serve_forever",
}  # fmt: skip

# Where something waits: the flags that bound it, or in words why none has to.
BOUNDED: dict[str, tuple[str, ...] | str] = {
    "channels/__init__.py run_here": ("--answer-timeout", "--connect-timeout"),
    "channels/ssh.py Ssh._connect": ("--connect-timeout",),
    "channels/ssh.py Ssh._end_master": "5 s, then it is killed",
    "channels/ssh.py Ssh._master_ends": "2 s, then the 255 is the command's own",
    "channels/ssh.py answers": "3 s an address, then the next is tried",
    "cli/gc.py _agreed": "asks a person at a terminal",
    "cli/run.py _consent": "asks a person at a terminal",
    "cli/logs.py command": "--follow, until the transfer stands still",
    "cli/watch.py _follow": "until the transfer stands still",
    "cloud/poller.py Waits._sleep": "see _poll",
    "cloud/poller.py Waits._poll": (
        "--snapshot-timeout", "--create-timeout", "--retype-timeout", "--attach-timeout",
        "--detach-timeout", "--delete-timeout",
    ),
    "cloud/retries.py Budget.pause": ("--answer-timeout",),
    "engine.py Engine._patiently": ("--retry-timeout",),
    "engine.py _Durable.run": "the steps that run in it have deadlines",
    "engine.py steps": "until this process has chosen what it carries, at its beginning",
    "engine.py _EngineLine.wait": "as long as the step says",
    "guests/linux.py LinuxGuest._ended": (
        "--create-timeout", "--sync-timeout", "--cutover-timeout", "--retry-timeout",
    ),
    "methods/mirror.py Mirror.sync": ("--sync-timeout",),
    "methods/mirror.py Mirror.catch_up": ("--sync-timeout",),
    "operations.py rollback": ("--handover-timeout",),
    "steps/attach.py appears": ("--attach-timeout",),
    "steps/cutover.py Cutover._gate": ("--sync-timeout",),
    "steps/step.py Unheard.wait": "a step's own test",
    "steps/step.py Context.sleep": "as long as the step says",
    "store.py Store.running": "LOCK_NB: it does not wait",
    "store.py Store.hold": "10 tries of 20 ms",
}  # fmt: skip


def waits() -> Iterator[str]:
    """``file Class.function`` of each call that may wait. The agent has its own list of deadlines
    (``test_language`` and its docstring), because it runs elsewhere."""
    for path in sorted(ROOT.rglob("*.py")):
        name = path.relative_to(ROOT).as_posix()
        if not name.startswith("agent/"):
            yield from (f"{name} {where}" for where in _inside(ast.parse(path.read_text()), ""))


def _inside(node: ast.AST, where: str) -> Iterator[str]:
    for child in ast.iter_child_nodes(node):
        here = where
        if isinstance(child, ast.ClassDef):
            here = f"{child.name}."
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            here = f"{where.rpartition('.')[0]}.{child.name}".lstrip(".")
        elif isinstance(child, ast.Call):
            called = child.func
            said = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
            if said in WAITING:
                yield where
        yield from _inside(child, here)


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


@pytest.mark.parametrize("by", [by for by in BOUNDED.items() if isinstance(by[1], tuple)])
def test_the_message_names_the_flag(by: tuple[str, tuple[str, ...]]) -> None:
    place, named = by
    text = (ROOT / place.split()[0]).read_text()
    callers = "".join(path.read_text() for path in sorted(ROOT.rglob("*.py")))
    for flag in named:
        # Where the flag is handed down, the message has ``{flag}`` and the caller its name.
        handed_down = "{flag}" in text or "wait.flag" in text
        assert flag in text or (handed_down and f'"{flag}"' in callers)


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
