"""Carry a transfer forward, or take it back. Knows steps, knows no cloud."""

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager

from volferry.model import Event, Transfer
from volferry.steps.step import Context, Step
from volferry.store import Store


class Engine:
    """Carries one transfer at a time, in this process alone."""

    def __init__(
        self,
        store: Store,
        context_for: Callable[[Transfer], AbstractAsyncContextManager[Context]],
        sequence: Sequence[Step],
    ) -> None:
        raise NotImplementedError

    def on_event(self, callback: Callable[[Event], None]) -> None:
        """Call ``callback`` with each event of this process, after it has been stored."""

    def request_stop(self) -> None:
        """Ask the step that runs to end at its next safe point (Ctrl-C, once)."""

    async def carry(self, id: str) -> Transfer:
        """Run every step that has no receipt yet; answers with the transfer, DONE or HELD."""
        raise NotImplementedError

    async def take_back(self, id: str, accept_loss: bool = False) -> Transfer:
        """Undo what stands, newest first; answers with the transfer, ROLLED_BACK."""
        raise NotImplementedError
