"""uvicorn's HTTP/1.1 connection with a deadline for the head of each request, and a limit on open connections.

uvicorn limits the idle time between requests, but neither the time in which the head of a request arrives nor the
number of connections that send nothing.
"""

from __future__ import annotations

import asyncio
from typing import Any

from dinoneck.errors import missing_extra

try:
    import h11
    import uvicorn
    from uvicorn.protocols.http.h11_impl import H11Protocol
except ImportError as error:
    raise missing_extra("uvicorn", "serve") from error

__all__ = ["ClockedProtocol", "uvicorn"]


class ClockedProtocol(H11Protocol):
    """Close a connection whose next request has no complete head ``head_timeout_s`` after its first byte.

    With ``max_open`` connections open, a new one replaces the connection that has waited longest for the head of a
    request, so clients that send slowly cannot keep others, such as a probe of ``/health``, from being served.
    """

    head_timeout_s = 10.0
    max_open = 320
    waiting: dict[ClockedProtocol, asyncio.TimerHandle] = {}  # noqa: RUF012 - of all connections, the oldest first

    def connection_made(self, transport: Any) -> None:
        """Start the clock."""
        if len(self.connections) >= self.max_open:
            next(iter(self.waiting), self).close(transport)
        super().connection_made(transport)
        self._start()

    def data_received(self, data: bytes) -> None:
        """Stop the clock when the head is complete; start it with the next head, or with a body that no one reads."""
        super().data_received(data)
        complete = self.conn.their_state is not h11.IDLE and self.conn.our_state is not h11.DONE
        if complete:
            self._stop()
        elif self not in self.waiting:
            self._start()

    def on_response_complete(self) -> None:
        """Leave a connection between two requests to uvicorn's own limit."""
        super().on_response_complete()
        self._stop()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clock."""
        self._stop()
        super().connection_lost(exc)

    def close(self, transport: asyncio.Transport | None = None) -> None:
        """Close the connection."""
        self._stop()
        transport = self.transport or transport
        if transport is not None and not transport.is_closing():
            transport.close()

    def _start(self) -> None:
        self.waiting[self] = self.loop.call_later(self.head_timeout_s, self.close)

    def _stop(self) -> None:
        clock = self.waiting.pop(self, None)
        if clock is not None:
            clock.cancel()
