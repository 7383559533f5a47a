"""What holds for a whole invocation: global options, where the state lies, colour."""

import dataclasses
import os
import sys
from typing import TYPE_CHECKING, TextIO

from volferry import errors

if TYPE_CHECKING:
    from volferry.store import Store


@dataclasses.dataclass
class Settings:
    """Filled by the global options, which may stand before or after the verb."""

    os_cloud: str = ""
    os_region: str = ""
    state: str = ""
    debug: bool = False
    louder: int = 0
    quieter: int = 0
    log_format: str = "text"
    hurry: bool = False
    """After a Ctrl-C: end with the last word, whatever threads still wait for."""
    transfer: str = ""
    step: str = ""
    """What a line of a JSON log is about: the transfer and the step that were last heard of."""

    @property
    def verbosity(self) -> int:
        return self.louder - self.quieter

    def open_store(self) -> "Store":
        """The journal. Raises ``Usage`` when its place cannot be used."""
        from volferry.store import Store  # noqa: PLC0415 - help needs no database

        try:
            return Store(self.state or None)
        except OSError as fault:
            raise errors.Usage(
                f"cannot use {fault.filename or 'the state directory'}: {fault.strerror}",
                data="nothing was changed",
                hint="--state DIR or VOLFERRY_STATE names another place for the journal",
            ) from fault


def colourful(stream: TextIO) -> bool:
    """Whether to colour: https://no-color.org, and never into a file or a pipe."""
    return is_terminal(stream) and not os.environ.get("NO_COLOR")


def is_terminal(stream: TextIO) -> bool:
    try:
        return stream.isatty() and os.environ.get("TERM") != "dumb"
    except ValueError:  # closed
        return False


def columns(default: int = 80) -> int:
    """Width of the terminal; of stderr, which is where a terminal is when stdout is a pipe."""
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or default
    except (OSError, ValueError):
        return default
