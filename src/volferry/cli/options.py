"""The options that several verbs share, and the user's words as ``Wanted``."""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.shell_completion import CompletionItem

from volferry import errors
from volferry.cli.help import grouped
from volferry.cli.settings import Settings
from volferry.cli.values import Duration, Gate, Rate

if TYPE_CHECKING:
    from volferry.model import Access, Wanted

F = TypeVar("F", bound=Callable[..., Any])

TIMEOUTS = (
    ("snapshot", "the snapshot to be available", "30m"),
    ("create", "the target to be created and filled", "2h"),
    ("retype", "the target's change of type", "1d"),
    ("attach", "the guest to see the target", "2m"),
    ("detach", "the guest to let go of the source", "5m"),
    ("delete", "what is deleted to be gone", "10m"),
    ("cutover", "the cutover; then the guest takes it back", "2m"),
    ("sync", "all passes together", "7d"),
    ("connect", "ssh to connect", "1m"),
    ("answer", "one answer of the guest or of the cloud", "5m"),
    ("retry", "a guest or a cloud that is away to be back", "15m"),
)
"""One flag for each field of ``model.Timeouts``; a test compares them with the model."""


# ---- global --------------------------------------------------------------------------------------


def _settle(name: str) -> Callable[[click.Context, click.Parameter, Any], None]:
    def keep(ctx: click.Context, param: click.Parameter, value: Any) -> None:
        settings = ctx.find_object(Settings)
        if settings is not None and value:
            setattr(settings, name, value)

    return keep


def _state(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
    if value and re.search(r"://[^/@]*:[^/@]*@", value):
        raise errors.Usage(
            "--state has a password in it, and everybody on this machine can read arguments",
            data="nothing was changed",
            hint="export VOLFERRY_STATE with that URL instead",
        )
    _settle("state")(ctx, param, value)


def _config_file(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
    if value:
        os.environ["OS_CLIENT_CONFIG_FILE"] = value


def global_options(function: F) -> F:
    """Options that hold for every verb; they may stand before it or after it."""
    name = "Global options"
    hidden: dict[str, Any] = {"expose_value": False}
    for decorate in reversed(
        (
            grouped(
                name, "--os-cloud", metavar="NAME", callback=_settle("os_cloud"),
                shell_complete=complete_clouds,
                help="A cloud of clouds.yaml.  [OS_CLOUD]", **hidden,
            ),
            grouped(
                name, "--os-region-name", metavar="NAME", callback=_settle("os_region"),
                help="A region of it.  [OS_REGION_NAME]", **hidden,
            ),
            grouped(
                name, "--os-client-config", metavar="FILE", type=click.Path(exists=True),
                callback=_config_file,
                help="Another clouds.yaml.  [OS_CLIENT_CONFIG_FILE]", **hidden,
            ),
            grouped(
                name, "--state", metavar="DIR", callback=_state,
                help="Where the journal lies.  [VOLFERRY_STATE]", **hidden,
            ),
            grouped(
                name, "-v", "--verbose", count=True, callback=_settle("louder"),
                help="Tell every step's beginning and receipt as well.", **hidden,
            ),
            grouped(
                name, "-q", "--quiet", count=True, callback=_settle("quieter"),
                help="Only errors and the answer.", **hidden,
            ),
            grouped(
                name, "--log-format", type=click.Choice(["text", "json"]),
                callback=_settle("log_format"),
                help="What goes to stderr: text for people, or JSON lines, each with the transfer"
                " and the step. Default: text.", **hidden,
            ),
            grouped(
                name, "--debug", is_flag=True, callback=_settle("debug"),
                help="With an error, also the stack.", **hidden,
            ),
        )
    ):  # fmt: skip
        function = decorate(function)
    return function


def cloud_of(settings: Settings) -> tuple[str, str]:
    """Cloud and region: the options', else the environment's, so that a resume finds them too."""
    return (
        settings.os_cloud or os.environ.get("OS_CLOUD", ""),
        settings.os_region or os.environ.get("OS_REGION_NAME", ""),
    )


# ---- plan and run --------------------------------------------------------------------------------


def access_options(function: F) -> F:
    name = "Reaching the guest"
    for decorate in reversed(
        (
            grouped(name, "--ssh", metavar="USER@HOST", default="", help="Instead of a Host entry"
                    " that names the server, or the server's address."),
            grouped(name, "--ssh-config", metavar="FILE", default="", type=click.Path(),
                    help="Instead of ~/.ssh/config."),
            grouped(name, "--local", is_flag=True, help="volferry runs in the guest itself."),
        )
    ):  # fmt: skip
        function = decorate(function)
    return function


def wanted_options(function: F) -> F:
    """What is to be moved, and how; every option is a field of ``Wanted``."""
    target, copy, stop, after = "The target", "Copying", "The cutover", "After the cutover"
    options = [
        grouped(target, "--type", metavar="TYPE", help="Volume type. Default: the source's."),
        grouped(target, "--size", "size_gib", metavar="GIB", type=click.IntRange(min=1),
                help="Size in GiB. Default: the source's."),
        grouped(target, "--name", metavar="NAME", help="Name. Default: the source's."),
        grouped(target, "--seed", type=click.Choice(["auto", "snapshot", "blank"]),
                help="Fill it from a snapshot or begin blank. Default: auto."),
        grouped(copy, "--method", metavar="NAME",
                help="Default: the first one that does not decline."),
        grouped(copy, "--raw", is_flag=True,
                help="No filesystem is on it: a database's own device, moved as it is."),
        grouped(copy, "--exclude", metavar="PATH", multiple=True,
                help="Leave this path out: a whole one, or below the (first) mount point;"
                " repeatable."),
        grouped(copy, "--bwlimit", "bwlimit_bytes_s", metavar="RATE", type=Rate(),
                help="At most so many bytes per second; 50M is 50 MiB/s."),
        grouped(copy, "--pace", metavar="PART", type=click.FloatRange(0.01, 1.0),
                help="Part of the disks' time that copying takes beside a service that writes all"
                " the time: 0.01 to 1. Default: 0.05."),
        grouped(copy, "--verify", type=click.Choice(["full", "written", "none"]),
                help="What the mirror compares before the cutover. Default: full."),
        grouped(copy, "--on-divergence", type=click.Choice(["hold", "throttle-sync", "cutover"]),
                help="When the prediction does not fit --max-downtime and passes gain nothing any"
                " more: wait, let the mirror copy without giving way to the service, or cut over"
                " all the same. Default: hold."),
        grouped(stop, "--unit", "unit", metavar="UNIT", multiple=True,
                help="Stop and start this systemd unit; repeatable."),
        grouped(stop, "--units", type=click.Choice(["auto"]),
                help="Stop and start every unit that uses the mount."),
        grouped(stop, "--stop", metavar="CMD", multiple=True,
                help="Stop what is not a unit; repeatable."),
        grouped(stop, "--start", metavar="CMD", multiple=True,
                help="Start it again; repeatable."),
        grouped(stop, "--cutover", metavar="WHEN", type=Gate(),
                help="auto, manual, or a time: 'at 02:00', at=2026-11-23T02:00. A time without a"
                " zone is this machine's. Default: auto."),
        grouped(stop, "--max-downtime", "max_downtime_s", metavar="TIME", type=Duration(),
                help="Cut over only when the prediction fits: 500ms, 10s, 2m. Default: 10s."),
        grouped(after, "--settle", "settle_s", metavar="TIME", type=Duration(zero=True),
                help="Watch the services so long; the guest goes back if they die. Default: 1m."),
        grouped(after, "--hold", is_flag=True, help="Stop there; 'finish' or 'rollback' goes on."),
        grouped(after, "--keep-standby", is_flag=True, help="Hold, and keep the old volume current:"
                " 'rollback' then loses nothing. Its hidden head and tail stay zero after"
                " 'finish', so that nothing can mount it."),
        grouped(after, "--no-read-only", is_flag=True, help="Leave the source writable."),
        grouped(after, "--keep-snapshot", is_flag=True, help="Leave the snapshot."),
    ]  # fmt: skip
    for decorate in reversed(options):
        function = decorate(function)
    return function


def deadline_options(default: str = "") -> Callable[[F], F]:
    """A flag for every wait. ``default``: what holds without it, if not the model's own."""

    def decorate(function: F) -> F:
        for word, what, usual in reversed(TIMEOUTS):
            said = f"For {what}. Default: {default or usual}."
            function = grouped(
                "Deadlines", f"--{word}-timeout", f"{word}_timeout",
                metavar="TIME", type=Duration(), help=said,
            )(function)  # fmt: skip
        return function

    return decorate


def deadlines(options: dict[str, Any]) -> dict[str, float]:
    """The deadlines that were given, by their fields of ``model.Timeouts``."""
    names = {f"{word}_timeout": f"{word}_s" for word, _, _ in TIMEOUTS}
    return {field: options[name] for name, field in names.items() if options.get(name)}


def said(options: dict[str, Any]) -> dict[str, Any]:
    """The options of a command line that were given at all."""
    return {name: value for name, value in options.items() if value not in (None, (), "", False)}


def access(options: dict[str, Any]) -> "Access":
    """How the guest is reached. Raises ``Usage`` for two ways at once."""
    from volferry.model import Access  # noqa: PLC0415 - help needs no model

    if options.get("local") and (options.get("ssh") or options.get("ssh_config")):
        raise errors.Usage("--local and --ssh exclude each other", data="nothing was changed")
    return Access(
        local=bool(options.get("local")),
        ssh=options.get("ssh") or "",
        ssh_config=options.get("ssh_config") or "",
    )


def wanted(
    settings: Settings, server: str, volumes: tuple[str, ...], options: dict[str, Any]
) -> "Wanted":
    """The command line as ``Wanted``. Raises ``Usage`` for words that contradict each other."""
    from volferry.model import Timeouts, Wanted  # noqa: PLC0415 - help needs no model

    given = said(options)
    if given.get("unit") and given.get("units"):
        raise errors.Usage(
            "--unit and --units auto exclude each other",
            data="nothing was changed",
            hint="--units auto takes every unit that 'volferry plan' shows",
        )
    if given.get("stop") and not given.get("start"):
        raise errors.Usage(
            "--stop without --start would leave the service down",
            data="nothing was changed",
            hint="--start CMD starts it again; --start true when something else does",
        )
    for flag, name in (("--size", "size_gib"), ("--name", "name")):
        if name in given and len(volumes) > 1:
            raise errors.Usage(
                f"{flag} is for one volume, and {len(volumes)} are named: {', '.join(volumes)}",
                data="nothing was changed",
                hint=f"without {flag} every target takes after its source",
            )
    cloud, region = cloud_of(settings)
    units = (given.pop("units"),) if "units" in given else given.get("unit", ())
    fields = {name: given[name] for name in Wanted.model_fields if name in given}
    if "settle_s" in options and options["settle_s"] is not None:
        fields["settle_s"] = options["settle_s"]  # zero is an answer
    return Wanted.model_validate(
        {
            **fields,
            "os_cloud": cloud,
            "os_region": region,
            "server": server,
            "volumes": volumes,
            "access": access(options),
            "units": tuple(units),
            "read_only": not options.get("no_read_only"),
            "timeouts": Timeouts(**deadlines(options)),
        }
    )


def metrics_option(function: F) -> F:
    return grouped(
        "Watching it",
        "--metrics",
        metavar="[HOST:]PORT",
        default="",
        help="Answer Prometheus there while it runs; without HOST only on this machine, and port 0"
        " is any free one. Neither TLS nor a password.",
    )(function)


# ---- completion ----------------------------------------------------------------------------------


def transfer_argument(*, required: bool = True) -> Callable[[F], F]:
    return click.argument("id", metavar="ID", required=required, shell_complete=complete_ids)


def complete_ids(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Ids of transfers, newest first. A TAB creates nothing and never fails."""
    settings = ctx.find_object(Settings) or Settings()
    try:
        from volferry.store import state_directory  # noqa: PLC0415 - only here

        named = settings.state or os.environ.get("VOLFERRY_STATE", "")
        if "://" not in named and not _journal_exists(settings.state or state_directory()):
            return []
        with settings.open_store() as store:
            found = store.transfers()
    except Exception:  # noqa: BLE001 - a shell that completes shows no tracebacks
        return []
    return [
        CompletionItem(
            one.id,
            help=f"{one.state.value}: {one.plan.cloud.label} in {one.plan.cloud.server.name}",
        )
        for one in reversed(found)
        if one.id.startswith(incomplete)
    ]


def _journal_exists(place: Any) -> bool:
    return (Path(place) / "store.sqlite").exists()


def cloud_files() -> list[Path]:
    """Where every OpenStack client looks for clouds.yaml, the first that exists wins."""
    named = os.environ.get("OS_CLIENT_CONFIG_FILE")
    return [
        Path(named) if named else Path("clouds.yaml"),
        Path("~/.config/openstack/clouds.yaml").expanduser(),
        Path("/etc/openstack/clouds.yaml"),
    ]


def complete_clouds(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Names in clouds.yaml, where every OpenStack client looks for it."""
    from ruamel.yaml import YAML  # noqa: PLC0415 - only here

    for place in cloud_files():
        try:
            names = YAML(typ="safe", pure=True).load(place)["clouds"]
        except Exception:  # noqa: BLE001, S112 - not there, not ours to complain about now
            continue
        return [CompletionItem(str(name)) for name in names if str(name).startswith(incomplete)]
    return []
