"""On a terminal: the same lines, and below them one that shows how far the present wait is."""

import contextlib
import sys
import time
from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from volferry.cli.listen import Listener
from volferry.cli.output import say
from volferry.cli.settings import Settings, colourful
from volferry.model import Event, Progress
from volferry.report.lines import Line, progress
from volferry.report.words import duration, plain


class LiveListener(Listener):
    """The same lines, and below them one that shows how far the present wait is."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._colour = colourful(sys.stderr)
        self._console = Console(stderr=True, no_color=not self._colour, highlight=False)
        self._line = _Wait()
        self._live: Live | None = None

    def on_progress(self, progress: Progress) -> None:
        if self.quiet:
            return
        self._line.show(progress)
        self._start()

    def on_event(self, event: Event) -> None:
        if event.kind in ("promise", "receipt", "pass", "outcome", "held", "phase"):
            self._stop()  # what the line showed has ended
        super().on_event(event)

    def notice(self, text: str) -> None:
        if not self.quiet:
            self._line.say(text)
            self._start()

    def tell(self, lines: Iterable[Line]) -> None:
        if self._live is None:
            say(lines)
            return
        with contextlib.suppress(OSError, ValueError):
            for line in lines:
                text = Text.from_ansi(line.render(colour=self._colour))
                self._live.console.print(text, soft_wrap=True)

    def close(self) -> None:
        self._stop()

    def _start(self) -> None:
        if self._live is None:
            with contextlib.suppress(OSError, ValueError):
                live = Live(self._line, console=self._console, transient=True, refresh_per_second=4)
                live.start()
                self._live = live

    def _stop(self) -> None:
        if self._live is not None:
            with contextlib.suppress(OSError, ValueError):
                self._live.stop()
            self._live = None


class _Wait:
    """The live line. Between two reports its clock goes on, so that nothing looks stuck."""

    def __init__(self) -> None:
        self._text = ""
        self._progress: Progress | None = None
        self._since = time.monotonic()

    def say(self, text: str) -> None:
        self._progress, self._text, self._since = None, plain(text), time.monotonic()

    def show(self, one: Progress) -> None:
        self._progress, self._since = one, time.monotonic()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        passed = time.monotonic() - self._since
        one = self._progress
        if one is None:
            yield Text(f"  {self._text} ({duration(passed)})", style="dim", end="")
            return
        eta = None if one.eta_s is None else max(0.0, one.eta_s - passed)
        ticking = one.model_copy(update={"elapsed_s": one.elapsed_s + passed, "eta_s": eta})
        text = Text(progress(ticking), no_wrap=True, overflow="ellipsis")
        row = Table.grid(padding=(0, 1))
        done, total = one.done_bytes, one.total_bytes
        if done is None or not total:
            row.add_row(Text(" "), text)
        else:
            bar = ProgressBar(total=total, completed=min(done, total), width=16)
            row.add_row(Text(" "), bar, text)
        yield row
