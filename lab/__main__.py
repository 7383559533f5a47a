"""python3 -m lab VERB: see `python3 -m lab --help` and lab/README.md."""

from __future__ import annotations

import argparse
import os
import sys
import time
from dataclasses import asdict, replace

from lab import control, knobs, storage
from lab.errors import LabError
from lab.layout import Layout

_BEGAN = time.monotonic()


def say(text: str) -> None:
    """Tell a person on stderr what goes on, with the seconds since the start."""
    print(f"[{time.monotonic() - _BEGAN:6.1f} s] {text}", file=sys.stderr, flush=True)


def up(layout: Layout) -> None:
    control.up(layout, say)
    say(f"the lab is up; OS_CLIENT_CONFIG_FILE={layout.clouds_yaml} OS_CLOUD=volferry-lab")


def down(layout: Layout) -> None:
    control.down(layout, say)
    say("the lab is down; its state is kept")


def wipe(layout: Layout) -> None:
    control.wipe(layout, say)
    say(f"the state is deleted; {layout.cache} is kept")


def restart(layout: Layout) -> None:
    control.restart(layout, say)
    say("the services run anew; guests were not touched")


def status(layout: Layout) -> int:
    """Print what runs; returns 1 when the lab is not wholly up."""
    if not layout.ports_json.exists():
        print(f"no lab in {layout.root}; `python3 -m lab up` makes one")
        return 1
    services, guests = control.service_status(layout), control.guest_status(layout)
    print(f"{'service':<11}{'pid':>8}{'MiB':>6}  url and log")
    for service in services:
        pid = service.pid or "down"
        print(f"{service.name:<11}{pid:>8}{service.memory_mib:>6}  {service.url}  {service.log}")
    print(f"\n{'guest':<20}{'pid':>8}{'MiB':>6}  ssh port, id, console")
    for guest in guests:
        pid = guest.pid or "off"
        about = f"{guest.ssh_port}  {guest.id}  {guest.console_log}"
        print(f"{guest.name:<20}{pid:>8}{guest.memory_mib:>6}  {about}")
    memory = sum(one.memory_mib for one in services) + sum(one.memory_mib for one in guests)
    print(
        f"\nmemory   {memory} MiB"
        f"\nvolumes  {layout.volumes}: {storage.describe(layout)}"
        f"\nclouds   {layout.clouds_yaml} (cloud volferry-lab, project member)"
        f"\n         {layout.clouds_admin_yaml} (cloud volferry-lab-admin)"
        f"\nlogs     {layout.logs}"
        f"\nenter    python3 -m lab ssh NAME, or ssh -F {layout.ssh_config} NAME"
    )
    for operation, knob in knobs.Knobs(layout.knobs).all().items():
        print(f"knob     {operation}: {_words(knob)}")
    return 0 if all(service.pid for service in services) else 1


def ssh(layout: Layout, words: list[str]) -> None:
    command = ["ssh", "-F", str(layout.ssh_config), *words]
    os.execvp("ssh", command)


def openstack(layout: Layout, words: list[str]) -> None:
    config, cloud = layout.clouds_yaml, "volferry-lab"
    if words[:1] == ["--as-admin"]:
        config, cloud, words = layout.clouds_admin_yaml, "volferry-lab-admin", words[1:]
    variables = {**os.environ, "OS_CLIENT_CONFIG_FILE": str(config), "OS_CLOUD": cloud}
    program = str(layout.program("openstack"))
    os.execve(program, [program, *words], variables)


def env(layout: Layout) -> None:
    print(f"export VOLFERRY_LAB='{layout.root}'")
    print(f"export OS_CLIENT_CONFIG_FILE='{layout.clouds_yaml}'")
    print("export OS_CLOUD='volferry-lab'")
    print(f'export PATH="{layout.client}:$PATH"')


def knob(layout: Layout, words: list[str]) -> None:
    """`knob` lists, `knob reset` turns all off, `knob OPERATION delay=2 fail=1` sets one."""
    board = knobs.Knobs(layout.knobs)
    if words == ["reset"]:
        board.reset()
    elif words:
        try:
            wanted = _settings(words[1:])
            board.set(words[0], delay=wanted.delay, fail=wanted.fail, ignore=wanted.ignore)
        except ValueError as mistake:
            raise LabError(
                str(mistake),
                "no knob was changed",
                "python3 -m lab knob OPERATION [delay=SECONDS] [fail=N|always] [ignore=N|always]",
            ) from mistake
    for operation, effects in knobs.OPERATIONS.items():
        print(f"{operation:<28} {_words(board.get(operation))}")
        for effect, meaning in effects.items():
            print(f"    {effect + '=N':<10} {meaning}")


def _settings(words: list[str]) -> knobs.Knob:
    settings = knobs.Knob()
    for word in words:
        name, _, value = word.partition("=")
        if name == "delay":
            settings = replace(settings, delay=float(value))
        elif name == "fail":
            settings = replace(settings, fail=_count(value))
        elif name == "ignore":
            settings = replace(settings, ignore=_count(value))
        else:
            raise ValueError(f"'{word}' is none of delay=, fail=, ignore=")
    return settings


def _count(value: str) -> int:
    return knobs.ALWAYS if value == "always" else int(value)


def _words(knob: knobs.Knob) -> str:
    on = {name: value for name, value in asdict(knob).items() if value}
    words = (f"{name}={'always' if v == knobs.ALWAYS else v}" for name, v in on.items())
    return " ".join(words) or "-"


_PLAIN = {"up": up, "down": down, "restart": restart, "wipe": wipe, "status": status, "env": env}
_WITH_WORDS = {"ssh": ssh, "openstack": openstack, "knob": knob}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python3 -m lab",
        description="A real OpenStack and real guests on this machine.",
        epilog="The lab's folder is $VOLFERRY_LAB. `openstack --as-admin …` acts as the admin.",
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    verbs.add_parser("up", help="install, prepare and start what is missing")
    verbs.add_parser("down", help="end services and guests; the state is kept")
    verbs.add_parser("restart", help="start the services anew; guests run on")
    verbs.add_parser("wipe", help="down, and delete the state; the caches are kept")
    verbs.add_parser("status", help="what runs, memory, ports, logs")
    verbs.add_parser("env", help='print shell exports: eval "$(python3 -m lab env)"')
    for name, text in (
        ("ssh", "enter a guest, or run a command in it: ssh NAME [COMMAND]"),
        ("openstack", "run the openstack client as the project member"),
        ("knob", "order delays and faults: knob OPERATION delay=2 fail=1 ignore=always"),
    ):
        verbs.add_parser(name, help=text, add_help=False)
    return parser


def main(arguments: list[str]) -> int:
    layout = Layout.from_environment()
    try:
        if arguments and arguments[0] in _WITH_WORDS:
            _WITH_WORDS[arguments[0]](layout, arguments[1:])
            return 0
        return _PLAIN[_parser().parse_args(arguments).verb](layout) or 0
    except LabError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        say("interrupted; the same command goes on from here")
        return 130


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
