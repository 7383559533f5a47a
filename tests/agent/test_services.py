"""Starting units: what is asked of systemd, and how often."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from agent_rig import AGENT

from volferry.agent.basics import AgentError, Place
from volferry.agent.facts import mount_units
from volferry.agent.services import ending_s, start_unit, stop_unit, systemctl_start

SYSTEMCTL = """#!/bin/sh
# A unit that systemd refuses to start until its count of starts is taken back.
echo "$1" >>{here}/calls
for word; do  # as getopt(3) does
    case $word in --) break ;; -p) ;; -*) echo "invalid option -- '$word'" >&2; exit 1 ;; esac
done
case $1 in
reset-failed) rm -f {here}/limited ;;
stop) touch {here}/stopped ;;
start) [ ! -e {here}/limited ] && [ ! -e {here}/broken ] || exit 1; touch {here}/up ;;
show)
    echo Type=simple
    [ -e {here}/span ] && cat {here}/span && exit
    if [ -e {here}/stopped ]; then echo ActiveState=inactive; echo Result=success
    elif [ -e {here}/limited ]; then echo ActiveState=failed; echo Result=start-limit-hit
    elif [ -e {here}/up ]; then echo ActiveState=active; echo Result=success
    else echo ActiveState=failed; echo Result=exit-code; fi ;;
esac
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    program = tmp_path / "systemctl"
    program.write_text(SYSTEMCTL.format(here=tmp_path))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return tmp_path


def calls(here: Path) -> list[str]:
    return (here / "calls").read_text().split()


@pytest.mark.parametrize(
    ("state", "span", "seconds"),
    [
        ("deactivating", "1min 30s", 90.0),
        ("deactivating", "1h 2min 3.5s", 3600.0),
        ("deactivating", "500ms", 0.5),
        ("deactivating", "infinity", 0.0),
        ("active", "1min 30s", 0.0),
    ],
)
def test_a_unit_that_is_stopping_has_its_own_time_for_it(
    here: Path, state: str, span: str, seconds: float
) -> None:
    (here / "span").write_text(f"ActiveState={state}\nTimeoutStopUSec={span}\n")
    assert ending_s("db.service") == seconds


def test_a_systemd_that_tells_nothing_keeps_no_unit_from_being_started(here: Path) -> None:
    (here / "span").write_text("")
    assert ending_s("db.service") == 0.0


def test_a_unit_is_started_and_looked_at_and_nothing_more(here: Path) -> None:
    start_unit("db.service", 5)
    assert calls(here) == ["start", "show"]


def test_a_unit_that_was_started_too_often_is_started_all_the_same(here: Path) -> None:
    (here / "limited").touch()
    start_unit("db.service", 5)
    assert calls(here) == ["start", "show", "reset-failed", "start", "show"]
    assert (here / "up").exists()


def test_a_mount_that_was_started_too_often_is_started_all_the_same(here: Path) -> None:
    (here / "limited").touch()
    assert systemctl_start("srv-data.mount", 5).code == 0
    assert (here / "up").exists()


def test_a_unit_that_does_not_start_is_not_started_twice(here: Path) -> None:
    (here / "broken").touch()
    with pytest.raises(AgentError, match=r"db.service did not start: it is failed \(exit-code\)"):
        start_unit("db.service", 5)
    assert calls(here).count("start") == 1


def test_a_unit_whose_name_looks_like_an_option_is_a_unit(here: Path) -> None:
    (here / "limited").touch()
    start_unit("-x.service", 5)
    assert (here / "up").exists()
    stop_unit("-x.service", 5)
    assert (here / "stopped").exists()


def test_systemctl_is_given_no_name_that_it_could_take_for_an_option() -> None:
    lists = [node for node in ast.walk(ast.parse(AGENT.read_text())) if isinstance(node, ast.List)]
    calls = [[ast.unparse(word) for word in node.elts] for node in lists]
    calls = [words for words in calls if words[:1] == ["'systemctl'"]]
    assert len(calls) > 10
    for words in calls:
        fixed = [word for word in words if word.startswith("'")]
        assert fixed == words or fixed[-1] == "'--'", words


def test_the_file_of_a_mount_unit_is_told_unless_it_is_made_from_fstab(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run/systemd/system").mkdir(parents=True)
    by_fstab = "FragmentPath=/run/systemd/generator/srv-a.mount\nSourcePath=/etc/fstab"
    programs = {
        "systemd-escape": 'for path; do :; done; echo "srv-${path##*/}.mount"',
        "systemctl": 'case "$*" in\n'
        'cat*b.mount) printf "[Mount]\\nWhat=/dev/vdb\\n" ;;\n'
        f'show*a.mount) echo "{by_fstab}" ;;\n'
        'show*b.mount) echo "FragmentPath=/etc/systemd/system/srv-b.mount" ;;\n'
        'show*) echo "FragmentPath=" ;;\n*) exit 1 ;; esac',
    }
    for name, text in programs.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    problems: list[str] = []

    told = mount_units(
        Place({"run": str(tmp_path / "run")}), problems, ["/srv/a", "/srv/b", "/x/c"]
    )

    assert problems == []
    assert [one["file"] for one in told] == ["", "[Mount]\nWhat=/dev/vdb\n", ""]
