"""uvicorn's HTTP/1.1 connection with a clock: whoever sends the head of a request slowly, or never, is let go.

uvicorn bounds idle time between requests, not the time that a request's head takes, nor a connection that says
nothing at all.
"""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol


class ClockedProtocol(H11Protocol):
    """Closes connections whose next request is not there, head and all, ``head_timeout_s`` after its first byte."""

    head_timeout_s = 10.0
    _clock: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Start the clock."""
        super().connection_made(transport)
        self._start()

    def data_received(self, data: bytes) -> None:
        """Stop the clock if a whole head is there; start it with the next one, or with a body that nobody reads."""
        super().data_received(data)
        whole = self.conn.their_state is not h11.IDLE and self.conn.our_state is not h11.DONE
        if whole:
            self._stop()
        elif self._clock is None:
            self._start()

    def on_response_complete(self) -> None:
        """Leave a connection between two requests to uvicorn's own bound; a body that goes on is clocked above."""
        super().on_response_complete()
        self._stop()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the clock."""
        self._stop()
        super().connection_lost(exc)

    def _start(self) -> None:
        self._clock = self.loop.call_later(self.head_timeout_s, self._let_go)

    def _stop(self) -> None:
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None

    def _let_go(self) -> None:
        self._clock = None
        if not self.transport.is_closing():
            self.transport.close()
