"""The program as a process: what it imports, terminals, pipes, signals, completion."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import cli_world as world
import pytest
import terminal

import volferry as package
from volferry.model import State
from volferry.store import Store

HERE = Path(__file__).parent
DRIVER = HERE / "cli_driver.py"


def environment(**more: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("OS_", "VOLFERRY_"))}
    path = f"{HERE}{os.pathsep}{Path(package.__file__).parent.parent}"  # not the installed one
    return {**kept, "PYTHONPATH": path, "TERM": "xterm-256color", **more}


def volferry(*words: str | Path, **more: str) -> subprocess.CompletedProcess[str]:
    code = "from volferry.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, words)],
        env=environment(**more),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def start(scenario: str, state: Path, *words: str, **more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(DRIVER), scenario, "--state", str(state), *words],
        env=environment(**more),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(process: subprocess.Popen[str], word: str) -> str:
    """Read stderr line by line until one has ``word``."""
    assert process.stderr is not None
    read = ""
    for line in process.stderr:
        read += line
        if word in line:
            return read
    raise AssertionError(f"'{word}' never came:\n{read}")


# ---- imports -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words", [["--help"], ["list"], ["run", "--help"], ["resume", "--help"], ["completion", "bash"]]
)
def test_looking_does_not_load_the_clouds_or_the_engine(words: list[str], tmp_path: Path) -> None:
    code = (
        "import sys\nfrom volferry.cli import main\n"
        "try: main()\nexcept SystemExit as end: assert not end.code\n"
        "heavy = {'openstack', 'dbos', 'keystoneauth1', 'requests'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run(
        [sys.executable, "-c", code, "--state", str(tmp_path), *words],
        env=environment(),
        check=True,
        capture_output=True,
        timeout=60,
    )


def test_the_help_loads_neither_models_nor_database() -> None:
    code = (
        "import sys\nfrom volferry.cli import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "heavy = {'pydantic', 'sqlalchemy', 'rich', 'ruamel'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    command = [sys.executable, "-c", code, "--help"]
    subprocess.run(command, env=environment(), check=True, capture_output=True, timeout=60)


def test_a_slip_of_the_fingers_is_answered_without_the_database() -> None:
    code = (
        "import sys\nfrom volferry.cli import main\n"
        "try: main()\nexcept SystemExit as end: assert end.code == 2\n"
        "assert 'sqlalchemy' not in sys.modules\n"
    )
    command = [sys.executable, "-c", code, "lisst"]
    subprocess.run(command, env=environment(), check=True, capture_output=True, timeout=60)


# ---- completion ----------------------------------------------------------------------------------


def complete(state: Path | str, *words: str, **more: str) -> list[str]:
    said = volferry(
        _VOLFERRY_COMPLETE="bash_complete",
        COMP_WORDS=" ".join(["volferry", *words]),
        COMP_CWORD=str(len(words)),
        VOLFERRY_STATE=str(state),
        **more,
    )
    assert said.stderr == ""
    return [line.partition(",")[2] for line in said.stdout.split()]


def test_verbs_options_and_transfer_ids_are_completed(tmp_path: Path) -> None:
    with world.plant(tmp_path):
        assert complete(tmp_path, "re") == ["report", "resume"]
        assert complete(tmp_path, "resume", "tr-") == [world.ID]
        assert "--max-downtime" in complete(tmp_path, "run", "--max")
        assert complete(tmp_path, "plan", "--seed", "sn") == ["snapshot"]


def test_names_of_clouds_are_completed(tmp_path: Path) -> None:
    clouds = tmp_path / "clouds.yaml"
    clouds.write_text("clouds:\n  mycloud: {}\n  other: {}\n")
    found = complete(tmp_path, "plan", "--os-cloud", "my", OS_CLIENT_CONFIG_FILE=str(clouds))
    assert found == ["mycloud"]


def test_a_tab_creates_nothing(tmp_path: Path) -> None:
    assert complete(tmp_path / "none", "resume", "") == []
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_shell_takes_the_script(shell: str, tmp_path: Path) -> None:
    said = volferry("completion", shell)
    assert said.returncode == 0 and "_VOLFERRY_COMPLETE" in said.stdout
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"{shell} is not installed here")
    script = tmp_path / "script"
    script.write_text(said.stdout)
    subprocess.run([program, "-n", str(script)], check=True, timeout=30)


# ---- pipes ---------------------------------------------------------------------------------------


def test_without_a_terminal_there_are_plain_lines_and_no_colour(tmp_path: Path) -> None:
    process = start("smooth", tmp_path, "run", "testsrv", "sourcevol")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "\x1b" not in out + err and "\r" not in out + err
    assert out.startswith("moved sourcevol in testsrv")
    waits = [line for line in err.splitlines() if "pass 1:" in line]
    assert len(waits) == 1  # six reports within the pace of one line
    assert "0 B of 12.0 GiB" in waits[0] and "21.4 MiB/s" in waits[0]


def test_a_reader_that_leaves_is_no_error(tmp_path: Path) -> None:
    with world.plant(tmp_path):
        read, write = os.pipe()
        os.close(read)
        process = subprocess.run(
            [sys.executable, str(DRIVER), "-", "--state", str(tmp_path), "report", world.ID],
            env=environment(),
            stdout=write,
            stderr=subprocess.PIPE,
            timeout=60,
            check=False,
        )
        os.close(write)
    assert process.stderr == b"" and process.returncode == 141


def test_a_transfer_outlives_whoever_listened_to_it(tmp_path: Path) -> None:
    process = start("smooth", tmp_path, "run", "testsrv", "sourcevol")
    assert process.stderr is not None
    with process:
        process.stderr.readline()
        process.stderr.close()
    with Store(tmp_path) as store:
        assert store.transfer(world.ID).state is State.DONE


# ---- signals -------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_one_signal_stops_at_the_next_safe_point(number: signal.Signals, tmp_path: Path) -> None:
    process = start("slow", tmp_path, "run", "testsrv", "sourcevol")
    wait_for(process, "waiting")
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "stopping at the next safe point" in err
    assert f"volferry resume {world.ID} goes on; Ctrl-C again leaves now" in err
    assert "stopped: stopped at a safe point in 'sync' as you asked" in err


def test_a_second_ctrl_c_leaves_at_once_even_when_all_is_stuck(tmp_path: Path) -> None:
    process = start("stuck", tmp_path, "run", "testsrv", "sourcevol")
    wait_for(process, "waiting")
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=10)
    assert process.returncode == 130
    assert "the guest keeps its promises" in err
    assert f"volferry resume {world.ID}" in err


def test_a_second_sigterm_does_not_leave(tmp_path: Path) -> None:
    process = start("stuck", tmp_path, "run", "testsrv", "sourcevol")
    wait_for(process, "waiting")
    for _ in range(2):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=10)
    assert process.returncode == 130


def test_ctrl_c_while_planning_changes_nothing(tmp_path: Path) -> None:
    process = start("planning", tmp_path, "run", "testsrv", "sourcevol")
    wait_for(process, "planning")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.splitlines()[-2:] == ["error: interrupted", "  nothing was changed"]


# ---- following -----------------------------------------------------------------------------------


def test_watch_follows_another_process_to_its_end(tmp_path: Path) -> None:
    carrier = start("alive", tmp_path, "run", "testsrv", "sourcevol")
    wait_for(carrier, "waiting")
    watcher = start("-", tmp_path, "watch", world.ID)
    seen = wait_for(watcher, "after 2 passes")
    assert "5/6 cutover" not in seen
    (tmp_path / "end").touch()
    out, err = watcher.communicate(timeout=60)
    carrier.communicate(timeout=60)
    assert watcher.returncode == 0, err
    assert "5/6 cutover" in err and out.startswith("moved sourcevol")


def test_ctrl_c_ends_the_watching_and_not_the_transfer(tmp_path: Path) -> None:
    carrier = start("alive", tmp_path, "run", "testsrv", "sourcevol")
    wait_for(carrier, "waiting")
    watcher = start("-", tmp_path, "watch", world.ID)
    wait_for(watcher, "after 2 passes")
    watcher.send_signal(signal.SIGINT)
    _, err = watcher.communicate(timeout=60)
    assert watcher.returncode == 130 and "the transfer goes on" in err
    assert carrier.poll() is None
    (tmp_path / "end").touch()
    carrier.communicate(timeout=60)
    assert carrier.returncode == 0


# ---- a terminal ----------------------------------------------------------------------------------


def on_terminal(
    words: Sequence[str], answer: str = "", *, width: int = 100, **more: str
) -> tuple[str, int]:
    argv = [sys.executable, str(DRIVER), *words]
    return terminal.run(argv, environment(**more), answer, width=width)


def test_a_terminal_is_asked_once_and_sees_a_line_that_moves(tmp_path: Path) -> None:
    words = ["smooth", "--state", str(tmp_path), "run", "testsrv", "sourcevol"]
    text, code = on_terminal(words, "y\n")
    assert code == 0, text
    assert text.count("move 'sourcevol' now? [y/N]") == 1
    assert "predicted" in text.partition("[y/N]")[0]  # the essentials come before the question
    assert "\x1b[1m2/6 seed" in text and "━" in text
    assert "12.0 GiB of 12.0 GiB" in text
    assert text.rstrip().count("\x1b[?25l") == text.count("\x1b[?25h")  # the cursor is back
    assert "moved sourcevol in testsrv" in text


def test_a_no_starts_nothing_and_needs_consent(tmp_path: Path) -> None:
    words = ["smooth", "--state", str(tmp_path), "run", "testsrv", "sourcevol"]
    text, code = on_terminal(words, "n\n")
    assert code == 3 and "nothing was changed" in text
    assert "2/6" not in text


def test_yes_is_not_asked_and_no_color_is_obeyed(tmp_path: Path) -> None:
    words = ["smooth", "--state", str(tmp_path), "run", "testsrv", "sourcevol", "--yes"]
    text, code = on_terminal(words, NO_COLOR="1")
    assert code == 0 and "[y/N]" not in text
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]", text)  # no foreground colours


def test_a_dumb_terminal_gets_plain_lines(tmp_path: Path) -> None:
    words = ["smooth", "--state", str(tmp_path), "run", "testsrv", "sourcevol", "--yes"]
    text, code = on_terminal(words, TERM="dumb")
    assert code == 0 and "\x1b" not in text
